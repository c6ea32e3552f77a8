"""An area cut into the cells of a grid, each of which becomes a product of its own."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from math import ceil, floor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, box
from odc.geo.gridspec import GridSpec
from pydantic import BeforeValidator, Field

from s2composite.config import Count, Expected, FilePath, Positive, Strict, Text
from s2composite.errors import GridError, JobError, S2CompositeError
from s2composite.reading.grid import footprint

__all__ = [
    "Cell",
    "CellsOptions",
    "GridOptions",
    "MgrsOptions",
    "OdcOptions",
    "UtmOptions",
    "cells_of",
    "read_area",
    "touches",
]

_GRANULE = 109_800
"""Side of a Sentinel-2 granule in metres."""

_SQUARE = 100_000
"""Side of a square of the Military Grid Reference System in metres."""

_SAFE = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")
"""Names that stay within their directory, and are seen there."""

_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
_ROWS = "ABCDEFGHJKLMNPQRSTUV"
_BANDS = "CDEFGHJKLMNPQRSTUVWX"


@dataclass(frozen=True, slots=True)
class Cell:
    """One piece of an area.

    Examples
    --------
    >>> cell = cells_of(MgrsOptions(type="mgrs"), box(1.2, 43.6, 1.21, 43.61, "EPSG:4326"))[0]
    >>> cell.name, tuple(cell.geobox.shape)
    ('31TCJ', (10980, 10980))
    """

    name: str
    """Safe in file names: ``"31TCJ"``, ``"x0030y0480"``."""

    geobox: GeoBox
    """Its pixels."""


class OdcOptions(Strict):
    """A grid of equal tiles, as Open Data Cube has them.

    Examples
    --------
    >>> grid = OdcOptions(crs="EPSG:3035", resolution=10, shape=10_000)
    >>> [cell.name for cell in cells_of(grid, box(1.0, 43.6, 1.05, 43.65, "EPSG:4326"))]
    ['x0035y0023']
    """

    type: Literal["odc"] = "odc"
    """Names the kind of grid."""

    crs: Text
    """Coordinate system of the grid."""

    resolution: Positive
    """Pixel size in units of the CRS."""

    shape: Annotated[Count, Expected("pixels along a side of a tile, a whole number")]
    """Pixels along a side of a tile; tile 0, 0 begins at the CRS's origin."""


class UtmOptions(Strict):
    """Squares in each UTM zone that the area touches.

    Examples
    --------
    >>> [cell.name for cell in cells_of(UtmOptions(type="utm", size=50_000), box(1.2, 43.6, 1.21, 43.61, "EPSG:4326"))]
    ['32631x0007y0096']
    """

    type: Literal["utm"]
    """Names the kind of grid."""

    size: Positive
    """Side of a square in metres, a multiple of the resolution."""

    resolution: Positive = 10
    """Pixel size in metres."""

    buffer: Annotated[float, Field(ge=0)] = 0
    """Metres by which each square is larger on every side."""


class MgrsOptions(Strict):
    """The granules of Sentinel-2.

    Examples
    --------
    >>> [cell.name for cell in cells_of(MgrsOptions(type="mgrs"), box(1.2, 43.6, 1.21, 43.61, "EPSG:4326"))]
    ['31TCJ']
    """

    type: Literal["mgrs"]
    """Names the kind of grid."""

    resolution: Positive = 10
    """Pixel size in metres: 10, 20, 60 or another divisor of 109800."""


class CellsOptions(Strict):
    """The polygons of a GeoJSON file: each one's bounding box, in a CRS of your choice.

    Examples
    --------
    >>> field = {"type": "Feature", "geometry": box(1.2, 43.6, 1.3, 43.7, None).json, "properties": {"id": "north"}}
    >>> Path("fields.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [field]})) > 0
    True
    >>> [cell.name for cell in cells_of(CellsOptions(type="cells", file="fields.geojson", name="id"), None)]
    ['north']
    """

    type: Literal["cells"]
    """Names the kind of grid."""

    file: FilePath
    """GeoJSON file of polygons in degrees."""

    name: Text = "name"
    """Property that names a polygon."""

    crs: Text = "utm"
    """Coordinate system of the pixels; ``"utm"``: that of the UTM zone the polygon's centre lies in."""

    resolution: Positive = 10
    """Pixel size in units of the CRS."""


def _written_out(value: Any) -> Any:
    """Return the mapping that odc-stats' ``"crs;resolution;shape"`` or a bare ``"mgrs"`` stands for."""
    if value == "mgrs":
        return {"type": "mgrs"}
    if isinstance(value, str) and value.count(";") == 2:
        crs, resolution, shape = (part.strip() for part in value.split(";"))
        try:
            return {"type": "odc", "crs": crs, "resolution": float(resolution), "shape": int(shape)}
        except ValueError:
            raise ValueError(f"expected crs;resolution;shape such as EPSG:3035;10;10000, got {value!r}") from None
    return value


GridOptions = Annotated[
    Annotated[OdcOptions | UtmOptions | MgrsOptions | CellsOptions, Field(discriminator="type")],
    BeforeValidator(_written_out),
]


def cells_of(grid: OdcOptions | UtmOptions | MgrsOptions | CellsOptions, area: Geometry | None) -> tuple[Cell, ...]:
    """Return the cells of a grid that an area touches, in order of their names.

    Parameters
    ----------
    area
        Polygon; None: all cells there are, which only a file of cells has.

    Raises
    ------
    JobError
        There is no area and the grid has no end, or no cell touches it; or the file of cells is wrong.
    """
    if isinstance(grid, CellsOptions):
        cells = [cell for cell in _polygons(grid) if area is None or touches(cell.geobox, area)]
    elif area is None:
        raise JobError(f"grid {grid.type} has no end: give an area, as a GeoJSON file or as bbox", key="area")
    elif isinstance(grid, OdcOptions):
        tiles = GridSpec(grid.crs, (grid.shape, grid.shape), grid.resolution)
        geoboxes = tiles.tiles_from_geopolygon(area.to_crs(grid.crs))
        cells = [Cell(f"x{x:04d}y{y:04d}", geobox) for (x, y), geobox in geoboxes]
    else:
        cells = [cell for zone in _zones(area) for cell in _in_zone(grid, zone, area)]
    if not cells:
        raise JobError(f"no cell of grid {grid.type} touches the area; check its coordinates (degrees)", key="area")
    return tuple(sorted(cells, key=lambda cell: cell.name))


def read_area(path: str) -> Geometry:
    """Return what the polygons of a GeoJSON file cover together.

    Raises
    ------
    JobError
        It is missing, no GeoJSON, or has no polygon.
    """
    return reduce(operator.or_, (shape for shape, _ in _features(path)))


def _features(path: str) -> list[tuple[Geometry, dict[str, Any]]]:
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        features = content.get("features", [content]) if isinstance(content, dict) else []
        pairs = [(one.get("geometry", one), one.get("properties") or {}) for one in features]
        polygons = [
            (Geometry(shape, "EPSG:4326"), properties)
            for shape, properties in pairs
            if "Polygon" in str(shape.get("type", ""))
        ]
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror}", key="area") from error
    except (ValueError, AttributeError, S2CompositeError) as error:
        raise JobError(f"{path}: not GeoJSON: {error}", key="area") from error
    if not polygons:
        raise JobError(f"{path}: has no polygon", key="area")
    return polygons


def _polygons(grid: CellsOptions) -> Iterator[Cell]:
    seen: set[str] = set()
    for shape, properties in _features(grid.file):
        if grid.name not in properties:
            known = ", ".join(map(str, properties)) or "none"
            raise JobError(f"{grid.file}: a polygon has no property {grid.name!r}; it has {known}", key="grid.name")
        name = str(properties[grid.name])
        if name in seen:
            raise JobError(f"{grid.file}: two polygons are named {name!r}, and would be one product", key="grid.name")
        if not _SAFE.fullmatch(name):
            raise JobError(
                f"{grid.file}: a polygon is named {name!r}, which is no part of a file's name; name them otherwise",
                key="grid.name",
            )
        seen.add(name)
        crs = _utm(*shape.centroid.coords[0]) if grid.crs == "utm" else grid.crs
        bounds = shape.to_crs(crs).boundingbox
        yield Cell(name, GeoBox.from_bbox(bounds, resolution=grid.resolution))


def _zones(area: Geometry) -> list[tuple[int, bool]]:
    """Return the UTM zones that an area in degrees touches, and whether north of the equator."""
    west, south, east, north = area.boundingbox.bbox
    numbers = range(floor((west + 180) / 6) + 1, min(floor((east + 180) / 6) + 1, 60) + 1)
    return [
        (zone, up)
        for zone in numbers
        for up in (True, False)
        if (north > 0 if up else south < 0) and _overlap(area, _zone_box(zone, up=up))
    ]


def _zone_box(zone: int, *, up: bool) -> Geometry:
    west = zone * 6 - 186
    return box(west, 0 if up else -80, west + 6, 84 if up else 0, "EPSG:4326")


def _overlap(a: Geometry, b: Geometry) -> bool:
    return bool((a & b).area > 0)


def _in_zone(grid: UtmOptions | MgrsOptions, zone: tuple[int, bool], area: Geometry) -> Iterator[Cell]:
    number, up = zone
    crs = f"EPSG:{(32600 if up else 32700) + number}"
    part = area & _zone_box(number, up=up)
    size = _SQUARE if isinstance(grid, MgrsOptions) else grid.size
    west, south, east, north = part.to_crs(crs).boundingbox.bbox
    for row in range(floor(south / size), ceil(north / size)):
        for column in range(floor(west / size), ceil(east / size)):
            square = box(column * size, row * size, (column + 1) * size, (row + 1) * size, crs)
            if not _overlap(square.to_crs("EPSG:4326", resolution=size / 8), part):
                continue
            if isinstance(grid, MgrsOptions):
                yield _granule(grid, zone, (column, row))
                continue
            left, bottom = column * size - grid.buffer, row * size - grid.buffer
            pixels = round((size + 2 * grid.buffer) / grid.resolution)
            bounds = (left, bottom, left + pixels * grid.resolution, bottom + pixels * grid.resolution)
            geobox = GeoBox.from_bbox(bounds, crs, resolution=grid.resolution)
            yield Cell(f"{crs[5:]}x{column:04d}y{row:04d}", geobox)


def _granule(grid: MgrsOptions, zone: tuple[int, bool], square: tuple[int, int]) -> Cell:
    """Return a granule of Sentinel-2: a square of the grid reference system, widened to whole 60 m pixels."""
    number, up = zone
    column, row = square
    crs = f"EPSG:{(32600 if up else 32700) + number}"
    left, top = floor(column * _SQUARE / 60) * 60, ceil((row + 1) * _SQUARE / 60) * 60
    side = round(_GRANULE / grid.resolution)
    bounds = (left, top - _GRANULE, left + _GRANULE, top)
    geobox = GeoBox.from_bbox(bounds, crs, shape=(side, side))
    middle = box(column * _SQUARE, row * _SQUARE, (column + 1) * _SQUARE, (row + 1) * _SQUARE, crs).centroid
    latitude = middle.to_crs("EPSG:4326").coords[0][1]
    band = _BANDS[int(np.clip((latitude + 80) // 8, 0, 19))]
    letters = _COLUMNS[number % 3][column - 1] + _ROWS[(row + (5 if number % 2 == 0 else 0)) % 20]
    return Cell(f"{number:02d}{band}{letters}", geobox)


def _utm(longitude: float, latitude: float) -> str:
    zone = min(floor((longitude + 180) / 6) + 1, 60)
    return f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"


def touches(geobox: GeoBox, area: Geometry) -> bool:
    """Return whether pixels of a grid and an area in degrees overlap."""
    if geobox.crs is None:
        raise GridError("the scenes have no coordinate system, so an area has no place on them; name windows instead")
    return _overlap(footprint(geobox), area)
