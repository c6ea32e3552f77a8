"""Zones: polygons of a vector file or a GeoDataFrame, checked, in the coordinate system of a raster."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError

from s2composite.errors import GridError, ParameterError, SourceError
from s2composite.optional import needed

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["Zones", "in_pixels", "pixel_bounds", "read_zones"]

_POLYGONS = ("Polygon", "MultiPolygon")


@dataclass(frozen=True, eq=False)
class Zones:
    """Polygons to measure over."""

    names: tuple[Any, ...]
    """What each is called: a number or a text."""

    shapes: NDArray[np.object_]
    """Shapely polygons in the raster's CRS."""


def read_zones(zones: Any, name: str | None, crs: Any) -> Zones:
    """Return zones in the coordinate system of a raster.

    Parameters
    ----------
    zones
        Path or URL of a vector file (GeoJSON, GeoPackage, Shapefile, GeoParquet ...), a GeoDataFrame or a GeoSeries.
    name
        Column whose values name the zones; None: the index.
    crs
        Coordinate system of the raster; an odc.geo CRS.

    Raises
    ------
    MissingDependencyError
        geopandas is not installed.
    SourceError
        The file cannot be read.
    ParameterError
        There is no zone, no column `name`, two zones of one name, or a geometry that is no polygon or not valid.
    GridError
        The zones do not say their CRS, or cannot be expressed in the raster's.
    """
    frame = _frame(zones)
    if frame.empty:
        raise ParameterError(f"{_called(zones)}: it holds no zones")
    names = _names(frame, name)
    _check_shapes(frame.geometry, names)
    if frame.crs is None:
        raise GridError("the zones do not say their coordinate system; set it with zones.set_crs(...)")
    _check_degrees(frame)
    shapes = np.asarray(_projected(frame, crs).geometry.array, object)
    for zone, shape in zip(names, shapes, strict=True):
        if not np.isfinite(shape.bounds).all():
            raise GridError(f"zone {zone!r} cannot be expressed in the raster's coordinate system; cut it to the area")
    return Zones(names, shapes)


def _check_degrees(frame: gpd.GeoDataFrame) -> None:
    """Name coordinates in metres that claim to be degrees: files without a CRS, GeoJSON most of all, are read so."""
    far = np.abs(frame.geometry.total_bounds).max()
    if frame.crs.is_geographic and far > 360:
        raise GridError(
            f"the zones say that they are in degrees ({frame.crs.to_string()}), and have coordinates up to {far:.0f}; "
            "say what they are in with zones.set_crs(..., allow_override=True)"
        )


def _projected(frame: gpd.GeoDataFrame, crs: Any) -> gpd.GeoDataFrame:
    try:
        return frame.to_crs(crs.to_wkt())
    except ProjError as error:
        raise GridError(f"the zones cannot be expressed in the raster's coordinate system: {error}") from error


def _frame(zones: Any) -> gpd.GeoDataFrame:
    gpd = needed("geopandas", "zones", "zones")
    if isinstance(zones, gpd.GeoDataFrame):
        return zones
    if isinstance(zones, gpd.GeoSeries):
        return gpd.GeoDataFrame(geometry=zones)
    if not isinstance(zones, (str, os.PathLike)):
        raise ParameterError(f"zones are a {type(zones).__name__}; give a vector file, a GeoDataFrame or a GeoSeries")
    path = os.fspath(zones)
    try:
        frame = gpd.read_parquet(path) if path.lower().endswith("parquet") else gpd.read_file(path)
    except Exception as error:  # each format's library has its own kinds
        raise SourceError(f"{path}: cannot be read as zones: {error}") from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise SourceError(f"{path}: a table without geometries; zones are polygons")
    return frame


def _called(zones: Any) -> str:
    return os.fspath(zones) if isinstance(zones, (str, os.PathLike)) else "zones"


def _names(frame: gpd.GeoDataFrame, name: str | None) -> tuple[Any, ...]:
    if name is not None and not (isinstance(name, Hashable) and name in frame.columns):
        columns = ", ".join(str(column) for column in frame.columns if column != frame.geometry.name)
        raise ParameterError(f"the zones have no column {name!r}; they have {columns or 'none'}")
    column = frame.index.to_series() if name is None else frame[name]
    if column.isna().any():
        row = int(np.flatnonzero(column.isna())[0])
        raise ParameterError(f"the zone in row {row} has no {name or 'index'}; choose another column, or leave it out")
    twice = column[column.duplicated()].tolist()
    if twice:
        raise ParameterError(f"two zones are called {twice[0]!r}; choose another column, or dissolve() them")
    return tuple(column.tolist())


def _check_shapes(shapes: gpd.GeoSeries, names: tuple[Any, ...]) -> None:
    """Name the first geometry that nothing can be measured over; sums over broken rings would be wrong silently."""
    for zone, shape in zip(names, shapes, strict=True):
        if shape is None or shape.is_empty:
            raise ParameterError(f"zone {zone!r} has no geometry; leave it out")
        if shape.geom_type not in _POLYGONS:
            raise ParameterError(f"zone {zone!r} is a {shape.geom_type}; zones are polygons, as .buffer() makes")
        if not shape.is_valid:
            why = shapely.is_valid_reason(shape)
            raise ParameterError(f"zone {zone!r} is not a valid polygon ({why}); repair it with zones.make_valid()")


_ROUNDINGS = 8
"""Last places of a coordinate by which a corner that is meant to lie on a line of the grid may lie off it."""


def in_pixels(shapes: NDArray[np.object_], geobox: GeoBox) -> NDArray[np.object_]:
    """Return zones in pixels of a grid: x is the column, y the negative row, so that north stays up.

    Zones made from rasters have their corners on the lines of a grid, but for the rounding of coordinates (1e-9 of a
    pixel in degrees), by which an edge would count a pixel too many or too few.
    """
    to_pixels = ~geobox.transform
    size = np.abs([geobox.resolution.x, geobox.resolution.y])

    def placed(corners: NDArray[np.float64]) -> NDArray[np.float64]:
        column, row = to_pixels @ (corners[:, 0], corners[:, 1])
        found = np.stack([column, -row], axis=1)
        lines = np.round(found)
        off = _ROUNDINGS * np.spacing(np.abs(corners).max(axis=0, initial=1)) / size
        return np.where(np.abs(found - lines) <= off, lines, found)

    placed_shapes: NDArray[np.object_] = shapely.transform(shapes, placed)
    return placed_shapes


def pixel_bounds(shapes: NDArray[np.object_], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return the pixels that hold each zone: first row, row after the last, first column, column after the last.

    Cut to the raster: of a zone outside it no row or no column is left.

    Parameters
    ----------
    shapes
        Zones in pixels, from `in_pixels`.
    shape
        ``(y, x)`` of the raster.
    """
    height, width = shape
    west, south, east, north = shapely.bounds(shapes).T
    top, bottom = np.clip(np.floor(-north), 0, height), np.clip(np.ceil(-south), 0, height)
    left, right = np.clip(np.floor(west), 0, width), np.clip(np.ceil(east), 0, width)
    return np.stack([top, bottom, left, right], 1).astype(np.int64)
