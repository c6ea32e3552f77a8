"""Warp: pixels of another grid, and reads through GDAL of files that the tile engine cannot read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import lru_cache
from itertools import product
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioIOError
from rasterio.io import MemoryFile
from rasterio.shutil import copy
from rasterio.vrt import WarpedVRT
from rasterio.warp import SUPPORTED_RESAMPLING
from rasterio.windows import Window as RasterioWindow

from s2composite.errors import ParameterError
from s2composite.geotiff.header import Header
from s2composite.geotiff.zarr_array import read_chunks
from s2composite.reading.grid import as_fine, intersection, level_geobox, subgrid, turned_to, within
from s2composite.reading.tiles import read_tiles
from s2composite.storage.gdal import through_gdal
from s2composite.storage.urls import gdal_limits

__all__ = [
    "WARP_TILE",
    "nearest_pixels", "pixel_ratio", "read_info", "read_level", "read_warped", "resampling_method", "resampling_names",
    "source_pixels",
    "warped_coverage",
]  # fmt: skip

Info = TypeVar("Info")

# GDAL's maximum error in pixels when it interpolates between transformed points. With its default of 0.125, a fifth of
# a bilinear window's pixels depend on where the window begins, and 2 to 4 % of a nearest one's.
_TOLERANCE = 1e-7

# side in pixels of the tiles that GDAL warps. They are aligned to the target grid, whatever the window: if an
# interpolated value ends in .5, as is common between grids of one CRS, its rounding depends on the last digits of a
# coordinate, and these depend on where GDAL begins. Windows that cut tiles warp them more than once.
WARP_TILE = 256

_POINTS = 1 << 16  # points transformed at a time


# names of methods in gdalwarp -r that differ from rasterio's
_GDAL_SPELLINGS = {"near": "nearest", "cubicspline": "cubic_spline"}


def resampling_method(method: str | Resampling) -> Resampling:
    """Return the resampling method for rasterio's or GDAL's name, in upper or lower case."""
    name = method.strip().lower() if isinstance(method, str) else getattr(method, "name", None)
    found = Resampling.__members__.get(_GDAL_SPELLINGS.get(str(name), str(name)))
    if found not in SUPPORTED_RESAMPLING:
        names = ", ".join(known.name for known in SUPPORTED_RESAMPLING)
        raise ParameterError(f"resampling {method!r} is unknown; there are {names}")
    return found


def resampling_names(given: Any) -> str | dict[str, str]:
    """Return rasterio's name of the resampling method, or of each band's method."""
    if isinstance(given, Mapping):
        return {str(band): resampling_method(method).name for band, method in given.items()}
    return "nearest" if given is None else resampling_method(given).name


def read_info(href: str, look: Callable[[rasterio.DatasetReader], Info]) -> Info:
    """Return the result of `look` for an open raster; its errors are passed on."""
    found: list[Info] = []

    def read(url: str) -> None:
        with rasterio.open(url, **gdal_limits(href)) as dataset:
            found.append(look(dataset))

    through_gdal(read, href)
    return found[0]


def read_level(
    header: Header,
    bands: tuple[int, ...],
    level: int,
    window: tuple[slice, slice],
    out: NDArray[Any],
    mask: NDArray[np.uint8] | None = None,
) -> int:
    """Read pixels of one level of a raster, full resolution or overview, into `out`."""
    if header.in_zarr:
        return _read_array(header, level, window, bands, out)
    y, x = window
    part = RasterioWindow(x.start, y.start, x.stop - x.start, y.stop - y.start)

    def read(dataset: rasterio.DatasetReader) -> None:
        _read_bands(dataset, bands, part, out)
        if mask is not None:
            mask[...] = dataset.read_masks([band + 1 for band in bands], window=part)

    return _read_raster(header, level, read, out)


def read_warped(
    header: Header,
    bands: tuple[int, ...],
    level: int,
    geobox: GeoBox,
    window: tuple[slice, slice],
    *,
    resampling: str,
    nodata: float | None,
    fill: float,
    alpha: bool,
    out: NDArray[Any],
) -> int:
    """Read a window of a raster warped to a geobox into `out`; only pixels without valid source pixels get `fill`.

    The pixels do not depend on how a grid is cut into windows: the raster is warped in tiles of the grid, every pixel
    is transformed individually, and the width of the resampling kernel follows from the two resolutions, not from
    GDAL's estimate for the part that is read. A mask or alpha band of the file marks its valid pixels.
    """
    scale = kernel_scale(header.geobox, header.levels[level].shape, geobox)
    tile = np.empty((len(bands), WARP_TILE, WARP_TILE), out.dtype)
    options = {"src_nodata": nodata, "nodata": fill, **_wrap_option(header.geobox), **scale}

    def read(dataset: rasterio.DatasetReader) -> None:
        with nullcontext(dataset) if alpha or ColorInterp.alpha not in dataset.colorinterp else _plain(dataset) as bare:
            for to, at, warped in _warped_tiles(bare, geobox, window, resampling, options):
                _read_bands(warped, bands, RasterioWindow(0, 0, WARP_TILE, WARP_TILE), tile)
                out[(slice(None), *to)] = tile[(slice(None), *at)]

    if header.in_zarr:
        return _read_part(header, level, geobox, window, read)
    return _read_raster(header, level, read, out)


def _read_array(
    header: Header, level: int, window: tuple[slice, slice], bands: tuple[int, ...], out: NDArray[Any]
) -> int:
    """Read a window of an array of a Zarr store into `out` ``(band, y, x)``."""
    if header.undecodable:
        read_chunks(header, level, window, bands, out)
        return 0
    return read_tiles(header, level, window, bands, out).retries


# pixels of a source around those that contain a centre of the target: more than any kernel takes at the same resolution
_KERNEL = 8


def _read_part(
    header: Header,
    level: int,
    geobox: GeoBox,
    window: tuple[slice, slice],
    read: Callable[[rasterio.DatasetReader], None],
) -> int:
    """Read the part of an array of a Zarr store from which GDAL warps a window, and give it to GDAL as a raster."""
    shape = header.levels[level].shape
    grid = level_geobox(header.geobox, shape)
    # GDAL warps whole tiles of the target
    tiles = tuple(slice(s.start // WARP_TILE * WARP_TILE, -(-s.stop // WARP_TILE) * WARP_TILE) for s in window)
    target = subgrid(geobox, (tiles[0], tiles[1]))
    ratio = pixel_ratio(grid, target.crs, abs(target.resolution.x), abs(target.resolution.y))
    around = _KERNEL + math.ceil(_KERNEL / min(*ratio, 1.0))
    found = nearest_pixels(grid.pad(around), target)
    spans = (slice(0, 1), slice(0, 1)) if found is None else found[0]  # of none no pixel counts
    part_y, part_x = (slice(max(s.start - 2 * around, 0), min(s.stop, n)) for s, n in zip(spans, shape, strict=True))
    part = part_y, part_x
    height, width = (s.stop - s.start for s in part)
    pixels = np.empty((header.bands, height, width), header.dtype)
    retries = _read_array(header, level, part, tuple(range(header.bands)), pixels)
    place = subgrid(grid, part)
    with MemoryFile() as memory:
        profile = {"count": header.bands, "height": height, "width": width, "dtype": pixels.dtype.name}
        crs = None if place.crs is None else place.crs.to_wkt()
        with memory.open(driver="GTiff", crs=crs, transform=place.transform, **profile) as dataset:
            dataset.write(pixels)
        with memory.open() as dataset:
            read(dataset)
    return retries


def _read_raster(header: Header, level: int, read: Callable[[rasterio.DatasetReader], None], out: NDArray[Any]) -> int:
    """Read a level of a raster through GDAL, with its mask if it has one."""

    def opened(url: str) -> None:
        with _open_level(url, header.levels[level].shape, gdal_limits(header.href)) as dataset:
            read(dataset)

    # an estimate for limits: two requests to open it, one for each block
    blocks = math.prod(n // side + 1 for n, side in zip(out.shape[-2:], header.levels[level].block, strict=True))
    return through_gdal(
        opened,
        header.href,
        header.sign,
        header.identity,
        files_beside=header.mask_kind == ".msk",
        requests=2 + blocks,
        size=out.nbytes,
    )


def _plain(dataset: rasterio.DatasetReader) -> rasterio.DatasetReader:
    """Open a raster with all bands as data bands: GDAL's warper would use an alpha band as weights."""
    with MemoryFile(ext=".vrt") as file:
        copy(dataset, file.name, driver="VRT")
        text = file.read().decode()
    return rasterio.open(text.replace("<ColorInterp>Alpha</ColorInterp>", ""))


def _warped_tiles(
    dataset: rasterio.DatasetReader,
    geobox: GeoBox,
    window: tuple[slice, slice],
    resampling: str,
    options: Mapping[str, Any],
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice], WarpedVRT]]:
    """Yield the warped tiles of a grid that a window touches: pixels, their place in the window, and in the tile."""
    starts = (range(s.start // WARP_TILE * WARP_TILE, s.stop, WARP_TILE) for s in window)
    for top, left in product(*starts):
        place = slice(top, top + WARP_TILE), slice(left, left + WARP_TILE)
        part = intersection(window, place)
        tile = subgrid(geobox, place)
        with WarpedVRT(
            dataset,
            crs=str(tile.crs),
            transform=tile.transform,
            width=WARP_TILE,
            height=WARP_TILE,
            resampling=resampling_method(resampling),
            tolerance=_TOLERANCE,
            UNIFIED_SRC_NODATA="PARTIAL",  # as in gdalwarp; by default rasterio treats nodata in some bands as values
            **options,
        ) as warped:
            yield within(window, part), within(place, part), warped


@lru_cache(8)
def warped_coverage(
    source: GeoBox, shape: tuple[int, int], geobox: GeoBox, bounds: tuple[int, int, int, int], resampling: str
) -> NDArray[np.bool_]:
    """Return which pixels of a window, ``(y, y, x, x)``, a raster of that grid and shape covers when GDAL warps it.

    It is warped without pixels. Results are cached: scenes share few grids.
    """
    place = level_geobox(source, shape)
    vrt = ET.Element("VRTDataset", rasterXSize=str(shape[1]), rasterYSize=str(shape[0]))
    ET.SubElement(vrt, "SRS").text = str(place.crs.to_wkt())
    ET.SubElement(vrt, "GeoTransform").text = ",".join(map(repr, place.transform.to_gdal()))
    ET.SubElement(vrt, "VRTRasterBand", dataType="Byte", band="1")
    window = slice(bounds[0], bounds[1]), slice(bounds[2], bounds[3])
    options = {"add_alpha": True, **_wrap_option(source), **kernel_scale(source, shape, geobox)}
    covered = np.zeros((bounds[1] - bounds[0], bounds[3] - bounds[2]), bool)
    with rasterio.open(ET.tostring(vrt, encoding="unicode")) as dataset:
        for to, at, warped in _warped_tiles(dataset, geobox, window, resampling, options):
            covered[to] = warped.read(2)[at] > 0
    covered.flags.writeable = False
    return covered


@lru_cache(256)
def _wrap_option(source: GeoBox) -> dict[str, str]:
    """Return GDAL's option for a file with degrees from 0 to 360, half of which would otherwise be empty."""
    west, _, east, _ = source.boundingbox.bbox
    if source.crs is None or not source.crs.geographic or (west >= -180.001 and east <= 180.001):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PROJ.4 text has less than WKT, but only degrees matter here
        text = source.crs.proj.to_proj4()
    return {"src_crs": f"{text.replace('+type=crs', '')} +lon_wrap={(west + east) / 2:.10g}"}


def kernel_scale(source: GeoBox, shape: tuple[int, int], target: GeoBox) -> dict[str, str]:
    """Return GDAL's options for the width of the resampling kernel: pixels of the target in one of the source."""
    ratio = pixel_ratio(source, target.crs, abs(target.resolution.x), abs(target.resolution.y))
    pairs = zip(ratio, shape, source.shape, strict=True)
    # projections differ by up to 1 %: widen the kernel only if pixels of the target are clearly larger
    y, x = (1.0 if scale > 0.99 else scale for scale in (r * full / n for r, n, full in pairs))
    return {"XSCALE": f"{x:.9g}", "YSCALE": f"{y:.9g}"}


@lru_cache(4096)
def pixel_ratio(source: GeoBox, crs: Any, width: float, height: float) -> tuple[float, float]:
    """Return the number of pixels of `width` and `height` in `crs` along one of the source's ``(y, x)``."""
    own = as_fine(source, crs).resolution
    return abs(own.y) / height, abs(own.x) / width


@lru_cache(4)
def nearest_pixels(source: GeoBox, target: GeoBox) -> tuple[tuple[slice, slice], NDArray[np.int32]] | None:
    """Return the pixels of a source that contain the centres of a target's pixels.

    The last results are cached: the scenes of a window share few grids.
    """
    shape = (target.shape.y, target.shape.x)
    row, column, inside = np.empty(shape, np.int32), np.empty(shape, np.int32), np.zeros(shape, bool)
    for rows, *found in source_pixels(source, target):
        row[rows], column[rows], inside[rows] = found
    if not inside.any():
        return None
    top, bottom = int(row[inside].min()), int(row[inside].max()) + 1
    left, right = int(column[inside].min()), int(column[inside].max()) + 1
    index = np.where(inside, (row - top) * np.int32(right - left) + (column - left), np.int32(-1))
    index.flags.writeable = False
    return (slice(top, bottom), slice(left, right)), index


def source_pixels(
    source: GeoBox, target: GeoBox
) -> Iterator[tuple[slice, NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]]:
    """Yield rows of a target, the source's row and column for each centre, and whether the centre is in the source.

    Some rows at a time: their coordinates take ten times the memory of the result. Row and column are undefined for
    centres outside the source.
    """
    to_source, transform = ~source.transform, target.transform
    height, width = target.shape.y, target.shape.x
    columns, step = np.arange(width) + 0.5, max(_POINTS // max(width, 1), 1)
    for first in range(0, height, step):
        rows = np.arange(first, min(first + step, height)) + 0.5
        # centres in coordinates, then in the source's CRS, then in its pixels
        x = transform.a * columns[None, :] + transform.b * rows[:, None] + transform.c
        y = transform.d * columns[None, :] + transform.e * rows[:, None] + transform.f
        if source.crs != target.crs:
            x, y = _transformer(str(target.crs), str(source.crs)).transform(x, y)
            if source.crs.geographic:  # a file may have degrees from 0 to 360
                x = turned_to(x, source)
        with np.errstate(invalid="ignore"):
            column = np.floor(to_source.a * x + to_source.b * y + to_source.c + 1e-10)
            row = np.floor(to_source.d * x + to_source.e * y + to_source.f + 1e-10)
            inside = (column >= 0) & (column < source.shape.x) & (row >= 0) & (row < source.shape.y)
            column, row = (np.where(inside, a, 0).astype(np.int32) for a in (column, row))
        yield slice(first, first + len(rows)), row, column, inside


@lru_cache(64)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def _read_bands(dataset: Any, bands: tuple[int, ...], window: RasterioWindow, out: NDArray[Any]) -> None:
    """Read into `out`; rasterio reads bands together only if they have the same type."""
    if len({dataset.dtypes[band] for band in bands}) == 1:
        out[...] = dataset.read([band + 1 for band in bands], window=window)
    else:
        for layer, band in zip(out, bands, strict=True):
            layer[...] = dataset.read(band + 1, window=window)


def _open_level(url: str, shape: tuple[int, int], limits: Mapping[str, Any]) -> Any:
    """Open the full resolution or overview of `shape`: GDAL numbers overviews in file order, which may be any."""
    dataset = rasterio.open(url, **limits)
    for number in range(len(dataset.overviews(1))):
        if dataset.shape == shape:
            break
        dataset.close()
        dataset = rasterio.open(url, overview_level=number, **limits)
    if dataset.shape != shape:
        dataset.close()
        raise RasterioIOError(f"it has no resolution of {shape[0]} x {shape[1]} pixels")
    return dataset
