"""Georeference: the GeoTIFF tags of a file, read by GDAL itself, once for each distinct set of tags."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TypeAlias

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio import crs as rasterio_crs
from rasterio.io import MemoryFile

__all__ = ["GEO_TAGS", "TIEPOINT", "GridKey", "RawTag", "crs_from_wkt", "geobox_from_tags", "grid_key", "same_geobox"]

_SCALE, TIEPOINT, _MATRIX = 33550, 33922, 34264
GEO_TAGS = frozenset({_SCALE, TIEPOINT, _MATRIX, 34735, 34736, 34737})
"""Tags that say where the pixels are."""

RawTag: TypeAlias = tuple[int, int, int, bytes]
"""``(tag, type, count, value)`` as they are in the file, in the file's byte order."""

GridKey: TypeAlias = tuple[tuple[int, int], Affine, str | None]
"""Shape ``(y, x)``, transform and CRS of a geobox."""


@lru_cache(4096)
def geobox_from_tags(tags: tuple[RawTag, ...], order: str, shape: tuple[int, int]) -> GeoBox:
    """Return the geobox that GeoTIFF tags describe: GDAL's own reading of them, so exactly what rasterio says.

    Equal arguments give the same object, so that a pickled tuple of headers holds it once.

    Parameters
    ----------
    tags
        Those of `GEO_TAGS` that the file has, by number.
    order
        The file's byte order, ``"<"`` or ``">"``.
    shape
        ``(y, x)`` in pixels.
    """
    return same_geobox(shape, *_georeference(tags, order))


@lru_cache(4096)
def same_geobox(shape: tuple[int, int], transform: Affine, crs: CRS | str | None) -> GeoBox:
    """Return a geobox, for equal arguments the same object."""
    return GeoBox(shape, transform, crs)


def grid_key(geobox: GeoBox) -> GridKey:
    """Return the arguments of `same_geobox` for a geobox, as keys: pyproj takes 50 µs to hash a CRS, each time."""
    crs = None if geobox.crs is None else str(geobox.crs)
    return (geobox.shape.y, geobox.shape.x), geobox.transform, crs


@lru_cache(1024)
def _georeference(tags: tuple[RawTag, ...], order: str) -> tuple[Affine, CRS | None]:
    """Let GDAL read `tags` in a TIFF of one pixel (1 ms, against 0.1 ms for the rest of a header: hence the cache)."""
    if not tags:
        return Affine.identity(), None
    known = {tag: value for tag, _, _, value in tags}
    placed = _MATRIX in known or (_SCALE in known and TIEPOINT in known)
    if not placed:  # a CRS alone, or ground control points: GDAL warns of a file without geotransform
        tags = (*(t for t in tags if t[0] not in (_SCALE, TIEPOINT)), _unit_matrix(order))
    with MemoryFile(_one_pixel(tags, order), ext=".tif") as memory, memory.open() as dataset:
        crs = crs_from_wkt(dataset.crs.to_wkt()) if dataset.crs else None
        return (dataset.transform if placed else Affine.identity()), crs


def _unit_matrix(order: str) -> RawTag:
    matrix = (1.0, 0, 0, 1, 0, -1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1)
    return _MATRIX, 12, 16, struct.pack(f"{order}16d", *matrix)


def _one_pixel(tags: tuple[RawTag, ...], order: str) -> bytes:
    """Return a TIFF of one pixel with `tags`."""

    def short(tag: int, value: int) -> RawTag:
        return tag, 3, 1, struct.pack(f"{order}H", value)

    plain = [short(256, 1), short(257, 1), short(258, 8), short(259, 1), short(262, 1), short(273, 8), short(277, 1)]
    entries = sorted([*plain, short(278, 1), short(279, 1), *tags])
    start = 8 + 2  # the header, the pixel and a byte of padding
    end = start + 2 + 12 * len(entries) + 4
    directory, values = struct.pack(f"{order}H", len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack(f"{order}I", end + len(values))
            values += value + b"\0" * (len(value) % 2)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + field
    magic = b"II" if order == "<" else b"MM"
    return magic + struct.pack(f"{order}HI", 42, start) + b"\0\0" + directory + bytes(4) + values


@lru_cache(256)
def crs_from_wkt(wkt: str) -> CRS:
    """Return the CRS of GDAL's WKT, by its EPSG code if it is that code's definition: equal codes compare fast."""
    crs = rasterio_crs.CRS.from_wkt(wkt)
    code = crs.to_epsg()
    return CRS(f"EPSG:{code}") if code and rasterio_crs.CRS.from_epsg(code) == crs else CRS(wkt)
