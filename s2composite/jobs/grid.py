"""Cut an area into the cells of a grid; each cell becomes a separate product."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import product
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
    "Cell", "CellsOptions", "GridOptions", "MgrsOptions", "OdcOptions", "UtmOptions", "cells_of", "read_area",
    "touches",
]  # fmt: skip

_GRANULE = 109_800  # side of a Sentinel-2 granule in metres
_SQUARE = 100_000  # side of a square of the Military Grid Reference System in metres
_SAFE = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")  # names that stay within their directory and are not hidden
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
    """A grid of equal tiles, as in Open Data Cube.

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
    """Metres by which each square is extended on every side."""


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
    """The bounding boxes of the polygons in a GeoJSON file, in a CRS of your choice.

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
    """Coordinate system of the pixels; ``"utm"``: the UTM zone of the polygon's centre."""

    resolution: Positive = 10
    """Pixel size in units of the CRS."""


def _written_out(value: Any) -> Any:
    """Return the mapping for odc-stats' ``"crs;resolution;shape"`` or a bare ``"mgrs"``."""
    if value == "mgrs":
        return {"type": "mgrs"}
    if isinstance(value, str) and value.count(";") == 2:
        crs, resolution, shape = (part.strip() for part in value.split(";"))
        try:
            return {"type": "odc", "crs": crs, "resolution": float(resolution), "shape": int(shape)}
        except ValueError:
            raise ValueError(f"expected crs;resolution;shape such as EPSG:3035;10;10000, got {value!r}") from None
    return value


Grid = OdcOptions | UtmOptions | MgrsOptions | CellsOptions
GridOptions = Annotated[Annotated[Grid, Field(discriminator="type")], BeforeValidator(_written_out)]


def cells_of(grid: Grid, area: Geometry | None) -> tuple[Cell, ...]:
    """Return the cells of a grid that a polygon touches, ordered by name; a file of cells needs no polygon."""
    if isinstance(grid, CellsOptions):
        cells = [cell for cell in _polygons(grid) if area is None or touches(cell.geobox, area)]
    elif area is None:
        raise JobError(f"grid {grid.type} is unbounded: give an area, as a GeoJSON file or as bbox", key="area")
    elif isinstance(grid, OdcOptions):
        tiles = GridSpec(grid.crs, (grid.shape, grid.shape), grid.resolution)
        geoboxes = tiles.tiles_from_geopolygon(area.to_crs(grid.crs))
        cells = [Cell(f"x{x:04d}y{y:04d}", geobox) for (x, y), geobox in geoboxes]
    else:
        cells = list(_in_zones(grid, area))
    if not cells:
        raise JobError(f"no cell of grid {grid.type} touches the area; check its coordinates (degrees)", key="area")
    return tuple(sorted(cells, key=lambda cell: cell.name))


def read_area(path: str) -> Geometry:
    """Return the union of the polygons in a GeoJSON file."""
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
        name, problem = str(properties.get(grid.name)), None
        if grid.name not in properties:
            known = ", ".join(map(str, properties)) or "none"
            problem = f"a polygon has no property {grid.name!r}; it has {known}"
        elif name in seen:
            problem = f"two polygons are named {name!r}, and would be one product"
        elif not _SAFE.fullmatch(name):
            problem = f"a polygon is named {name!r}, which is not valid in a file's name; rename it"
        if problem is not None:
            raise JobError(f"{grid.file}: {problem}", key="grid.name")
        seen.add(name)
        crs = grid.crs
        if crs == "utm":
            longitude, latitude = shape.centroid.coords[0]
            crs = _utm(_zone_at(longitude), north=latitude >= 0)
        bounds = shape.to_crs(crs).boundingbox
        yield Cell(name, GeoBox.from_bbox(bounds, resolution=grid.resolution))


def _zone_at(longitude: float) -> int:
    return min(floor((longitude + 180) / 6) + 1, 60)


def _utm(zone: int, *, north: bool) -> str:
    return f"EPSG:{(32600 if north else 32700) + zone}"


def _overlap(a: Geometry, b: Geometry) -> bool:
    return bool((a & b).area > 0)


def _in_zones(grid: UtmOptions | MgrsOptions, area: Geometry) -> Iterator[Cell]:
    """Yield the cells that an area in degrees touches, in each half of each UTM zone."""
    size = _SQUARE if isinstance(grid, MgrsOptions) else grid.size
    zones = range(_zone_at(area.boundingbox.left), _zone_at(area.boundingbox.right) + 1)
    for zone, north in product(zones, (True, False)):
        crs, west = _utm(zone, north=north), zone * 6 - 186
        part = area & box(west, 0 if north else -80, west + 6, 84 if north else 0, "EPSG:4326")
        if part.area <= 0:
            continue
        left, bottom, right, top = part.to_crs(crs).boundingbox.bbox
        rows, columns = range(floor(bottom / size), ceil(top / size)), range(floor(left / size), ceil(right / size))
        for row, column in product(rows, columns):
            square = box(column * size, row * size, (column + 1) * size, (row + 1) * size, crs)
            if not _overlap(square.to_crs("EPSG:4326", resolution=size / 8), part):
                continue
            if isinstance(grid, MgrsOptions):
                yield _granule(grid.resolution, zone, square, column, row)
                continue
            side = round((size + 2 * grid.buffer) / grid.resolution) * grid.resolution
            x, y = column * size - grid.buffer, row * size - grid.buffer
            geobox = GeoBox.from_bbox((x, y, x + side, y + side), crs, resolution=grid.resolution)
            yield Cell(f"{crs[5:]}x{column:04d}y{row:04d}", geobox)


def _granule(resolution: float, zone: int, square: Geometry, column: int, row: int) -> Cell:
    """Return a granule of Sentinel-2: a square of the grid reference system, extended to whole 60 m pixels."""
    left, top = floor(column * _SQUARE / 60) * 60, ceil((row + 1) * _SQUARE / 60) * 60
    side = round(_GRANULE / resolution)
    geobox = GeoBox.from_bbox((left, top - _GRANULE, left + _GRANULE, top), square.crs, shape=(side, side))
    latitude = square.centroid.to_crs("EPSG:4326").coords[0][1]
    band = _BANDS[int(np.clip((latitude + 80) // 8, 0, 19))]
    letters = _COLUMNS[zone % 3][column - 1] + _ROWS[(row + (5 if zone % 2 == 0 else 0)) % 20]
    return Cell(f"{zone:02d}{band}{letters}", geobox)


def touches(geobox: GeoBox, area: Geometry) -> bool:
    """Return whether pixels of a grid and an area in degrees overlap."""
    if geobox.crs is None:
        raise GridError("the scenes have no CRS, so windows cannot be selected by an area; name windows instead")
    return _overlap(footprint(geobox), area)
