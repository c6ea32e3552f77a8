"""Warp: reads through GDAL. Whatever the tile engine cannot read, and whatever is not on the target grid."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from s2composite.errors import ParameterError, ReadError
from s2composite.scenes.storage import display, gdal_options, is_remote

__all__ = ["read_level", "read_warped", "resampling_method"]

LOG = logging.getLogger(__name__)

_OPTIONS: Mapping[str, str | int] = {
    # No directory listing beside each file: on object stores that is one slow request a scene.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # ReadMultiRange of GDAL before 3.13 does not retry a failed part.
    "GDAL_HTTP_MULTIRANGE": "SERIAL",
    # 5 % of the memory for each process by default, which looks like a leak; a window is read once.
    "GDAL_CACHEMAX": 64 << 20,
    "VSI_CACHE": "NO",
    # Several decoding threads on a remote file can leave blank pixels and no error (GDAL#11552).
    "GDAL_NUM_THREADS": "1",
}
_ATTEMPTS = 4
_PERMANENT = ("404", "403", "401", "not recognized", "No such file", "does not exist", "Permission denied")


def resampling_method(name: str) -> Resampling:
    """Return GDAL's resampling method called `name`; a ParameterError lists those there are."""
    try:
        return Resampling[name]
    except KeyError:
        names = ", ".join(method.name for method in Resampling)
        raise ParameterError(f"resampling {name!r} is unknown; there are {names}") from None


def read_level(href: str, bands: tuple[int, ...], level: int, window: tuple[slice, slice], out: NDArray[Any]) -> int:
    """Read pixels of one level (0: full resolution) of a raster into `out`.

    Parameters
    ----------
    bands
        Bands of the file, counted from 0.
    window
        ``(y, x)`` in that level's pixels, inside of the raster.
    out
        ``(len(bands), y, x)``, any strides.

    Returns
    -------
    int
        Retries that were needed.

    Raises
    ------
    ReadError
        With ``transient`` telling whether trying again later could help.
    """
    y, x = window
    part = RasterioWindow(x.start, y.start, x.stop - x.start, y.stop - y.start)

    def read() -> None:
        options = {} if level == 0 else {"overview_level": level - 1}
        with rasterio.open(href, **options) as dataset:
            out[...] = dataset.read([b + 1 for b in bands], window=part)

    return _with_retries(read, href)


def read_warped(
    href: str, bands: tuple[int, ...], geobox: GeoBox, resampling: str, fill: float, out: NDArray[Any]
) -> int:
    """Read a raster warped to a geobox into `out`; pixels it does not cover get `fill`.

    Parameters
    ----------
    bands
        Bands of the file, counted from 0.
    geobox
        The target pixels; its shape is that of `out`.
    resampling
        GDAL's name of the method.
    fill
        Value of pixels outside of the raster, and its nodata value if it names none itself.
    out
        ``(len(bands), y, x)``, any strides.

    Returns
    -------
    int
        Retries that were needed.

    Raises
    ------
    ReadError
        With ``transient`` telling whether trying again later could help.
    """

    def read() -> None:
        with rasterio.open(href) as dataset:
            nodata = fill if dataset.nodata is None else dataset.nodata
            with WarpedVRT(
                dataset,
                crs=str(geobox.crs),
                transform=geobox.transform,
                width=geobox.shape.x,
                height=geobox.shape.y,
                resampling=resampling_method(resampling),
                src_nodata=nodata,
                nodata=fill,
            ) as warped:
                out[...] = warped.read([b + 1 for b in bands])

    return _with_retries(read, href)


def _with_retries(read: Callable[[], None], href: str) -> int:
    """Run `read` until it succeeds, the failure is permanent or the attempts are used up; return the retries."""
    for attempt in range(_ATTEMPTS):
        # GDAL remembers a failed request and would replay it: a retry has to bypass its cache.
        fresh = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsigs/:/vsis3/"} if attempt else {}
        try:
            with rasterio.Env(**_OPTIONS, **gdal_options(href), **fresh):
                read()
        except (RasterioError, OSError) as error:
            transient = is_remote(href) and not any(sign in str(error) for sign in _PERMANENT)
            # GDAL's own words may hold the whole URL, and a signature with it.
            why = f"{display(href)}: GDAL cannot read it: {error}".replace(href, display(href))
            if not transient or attempt == _ATTEMPTS - 1:
                raise ReadError(why, href=display(href), transient=transient, retries=attempt) from None
            wait = random.uniform(0.5, 1.0) * 0.25 * 2**attempt  # noqa: S311 - jitter, not a secret
            LOG.warning("%s; attempt %d of %d failed, the next in %.1f s", why, attempt + 1, _ATTEMPTS, wait)
            time.sleep(wait)
        else:
            return attempt
    raise AssertionError
