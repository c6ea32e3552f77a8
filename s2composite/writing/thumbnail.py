"""Thumbnails: a PNG or WebP of a composite, made from the pixels of its overviews."""

from __future__ import annotations

import os
from typing import Any

import dask.array as da
import imagecodecs
import numpy as np
import rasterio
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from s2composite.errors import ParameterError, WriteError
from s2composite.georeference import north_up
from s2composite.pixels.stretching import Stretch, as_stretch, colour_bands, limits_of_each, painted, rgba
from s2composite.scenes.storage import filesystem, is_remote
from s2composite.writing.files import Written
from s2composite.writing.layers import Layer
from s2composite.writing.overviews import half, halve
from s2composite.writing.periods import period_path, periods_of
from s2composite.writing.preview import picture_layer, valid_everywhere
from s2composite.writing.targets import is_http, put_small, target_of

__all__ = ["MEDIA_TYPES", "check_thumbnail", "thumbnail_of_file", "write_thumbnail"]

MEDIA_TYPES = {"png": "image/png", "webp": "image/webp"}
"""Media type by the suffix of a file."""

_WEBP_QUALITY = 80


def write_thumbnail(
    dataset: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    size: int = 512,
    stretch: Stretch | None = None,
    layer: str | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a small picture, transparent where there is no value. A lazy composite is computed as a whole.

    Its pixels are those of the overview that fits into `size`: means of 2 x 2 valid pixels, repeatedly.

    Parameters
    ----------
    dataset : xarray.Dataset
        Dataset of a composite; with periods there is a picture for each, named as by `write_raster`.
    path : str or os.PathLike
        Local path or URL that ends in ``.png`` or ``.webp``.
    size : int, default 512
        Pixels into which the picture fits, 16 to 4096.
    stretch : str or pair of float or sequence of pairs, optional
        Values shown black and white, such a pair for each band, or percentiles of the picture: ``"1-99%"``,
        ``"1-99% per band"``; ``"common"`` and ``"1-99% common"``: of the pictures of all periods together. Default:
        uint8 unchanged, anything else between percentiles 2 and 98 of each picture.
    layer : str, optional
        Layer to show; default: the composite. Its bands red, green and blue are shown, or else the first three.
    overwrite : bool, default False
        Replace an existing file.

    Returns
    -------
    tuple of str
        The files written.

    Raises
    ------
    ParameterError
        The kind of picture, its size or its stretch is invalid, or there is no layer with bands.
    WriteError
        The output exists or cannot be written.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> values = xr.DataArray(np.full((3, 600, 400), 90, "uint8"), dims=("band", "y", "x"))
    >>> files = write_thumbnail(xr.Dataset({"composite": values}), "small.png", size=200, overwrite=True)
    """
    kind = check_thumbnail(os.fspath(path), size, stretch)
    periods = periods_of(north_up(dataset))
    targets = [target_of(period_path(os.fspath(path), period.label), overwrite=overwrite) for period in periods]
    if any(map(is_http, targets)):
        raise ParameterError("a thumbnail cannot be sent to a signed URL; write it to a path, gs:// or s3://")
    layers = [picture_layer(period.dataset, layer) for period in periods]
    # All periods in one pass over the data.
    shrunk = da.compute(*(_shrunk(one, size) for one in layers))
    pictures = [(pixels, valid_everywhere(pixels, one.nodata)) for pixels, one in zip(shrunk, layers, strict=True)]
    for target, (pixels, valid), ends in zip(targets, pictures, limits_of_each(pictures, stretch), strict=True):
        put_small(_encoded(painted(pixels, valid, ends), kind), target, overwrite=overwrite)
    return tuple(targets)


def check_thumbnail(path: str, size: int, stretch: Stretch | None) -> str:
    """Return the kind of picture that a path asks for.

    Raises
    ------
    ParameterError
        It cannot be written, or size or stretch is invalid.
    """
    kind = path.rpartition(".")[2].lower()
    if kind not in MEDIA_TYPES:
        raise ParameterError(f"{path}: a thumbnail is a {' or '.join(f'.{known}' for known in MEDIA_TYPES)} file")
    if not isinstance(size, int) or isinstance(size, bool) or not 16 <= size <= 4096:
        raise ParameterError(f"size is {size!r}; a thumbnail has 16 to 4096 pixels on its longer side")
    if stretch is not None:
        as_stretch(stretch)
    return kind


def _halvings(shape: tuple[int, ...], size: int) -> int:
    """Return how often an image must be halved to fit."""
    longest, times = max(shape), 0
    while longest > size:
        longest, times = half(longest), times + 1
    return times


def _shrunk(layer: Layer, size: int) -> da.Array:
    """Return a layer halved until it fits, window by window: only small pixels leave the workers."""
    times = _halvings(layer.data.shape[1:], size)
    if not times:
        return layer.data
    step = 1 << times
    chunks = tuple(_multiples(sizes, step) for sizes in layer.data.chunks[1:])
    data = layer.data.rechunk((-1, *chunks))
    return data.map_blocks(
        _halved,
        times,
        layer.nodata,
        name=f"shrink-window-{tokenize(data.name, times, layer.nodata)}",
        dtype=data.dtype,
        chunks=(data.chunks[0], *(tuple(-(-n // step) for n in sizes) for sizes in chunks)),
    )


def _multiples(chunks: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Return chunks of whole blocks, unchanged if they are already."""
    if all(n % step == 0 for n in chunks[:-1]):
        return chunks
    whole = -(-max(chunks) // step) * step
    total = sum(chunks)
    return tuple(min(whole, total - start) for start in range(0, total, whole))


def _halved(pixels: NDArray[Any], times: int, nodata: float | None) -> NDArray[Any]:
    for _ in range(times):
        pixels = halve(pixels, "average", nodata)
    return pixels


def thumbnail_of_file(written: Written, layer: str, kind: str, size: int, stretch: Stretch | None) -> bytes:
    """Return a thumbnail of a layer in a file that has just been written, from its overviews.

    Raises
    ------
    WriteError
        The file cannot be read.
    """
    raster = written.plan.raster
    bands = [i for i, band in enumerate(raster.bands) if band.layer == layer]
    chosen = [bands[i] + 1 for i in colour_bands([raster.bands[i].name.removeprefix(f"{layer}_") for i in bands])]
    shape = raster.levels[min(_halvings(raster.shape, size), len(raster.levels) - 1)]
    try:
        with _opened(written.path) as file, rasterio.open(file) as source:
            # In the shape of an overview GDAL reads just that.
            pixels = source.read(chosen, out_shape=(len(chosen), *shape))
            valid = (source.read_masks(chosen, out_shape=(len(chosen), *shape)) > 0).all(axis=0)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise WriteError(f"{written.label}: its overviews cannot be read for a thumbnail: {error}") from error
    if raster.nodata is not None:
        pixels[:, ~valid] = raster.nodata  # lossy files have something else there
    more = _halvings(shape, size)
    picture = rgba(_halved(pixels, more, raster.nodata), _halved(valid[None].view(np.uint8), more, 0)[0] > 0, stretch)
    return _encoded(picture, kind)


def _opened(path: str) -> Any:
    if is_remote(path):
        fs, inside = filesystem(path)
        return fs.open(inside, "rb")
    return open(path, "rb")  # noqa: PTH123 - closed by the caller, as the remote one


def _encoded(picture: NDArray[np.uint8], kind: str) -> bytes:
    if kind == "png":
        return bytes(imagecodecs.png_encode(picture))
    return bytes(imagecodecs.webp_encode(picture, _WEBP_QUALITY))
