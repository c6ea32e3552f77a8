"""Zonal statistics on a cluster: tasks that measure zones, each where its pixels are.

A zone that lies in one chunk is measured in the task that has the chunk; of one over several, each chunk says what it
knows (`Part`), and that is merged. Coverage is that of exactextract.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import shapely
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from s2composite.analysis.zonal.stats import Part, Wanted, finished, merged, part_of

__all__ = ["Raster", "Row", "Zone", "zonal_tasks"]

Row = dict[str, Any]
"""``zone``, ``time`` and ``band`` as positions, and the statistics."""

Key = tuple[int, int]
"""Positions along time and band."""

Window = tuple[int, int, int, int]
"""Pixels of the raster: first row, row after the last, first column, column after the last."""

Covered = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Rows and columns of the pixels of a window that a zone touches, and the share of each that it covers."""


@dataclass(frozen=True, eq=False)
class Zone:
    """A zone and the pixels that hold it."""

    number: int
    """Position among the zones."""

    shape: Any
    """Shapely polygon in pixels: x is the column, y the negative row."""

    top: int
    """First row of the raster that it touches."""

    bottom: int
    """Row after the last."""

    left: int
    """First column."""

    right: int
    """Column after the last."""


@dataclass(frozen=True, slots=True)
class Raster:
    """What tasks know of the raster, and what they are to find out."""

    nodata: float | None
    """Value of pixels without a value; None: there is no such value."""

    wanted: Wanted
    """The statistics."""

    def valid(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where there are values."""
        valid = np.ones(pixels.shape, np.bool_) if pixels.dtype.kind in "iub" else ~np.isnan(pixels)
        return valid if self.nodata is None else np.asarray(valid & (pixels != self.nodata))


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a block begins."""

    time: int
    """Position along time."""

    band: int
    """Position along band."""

    top: int
    """Row of the raster."""

    left: int
    """Column of the raster."""


@dataclass(frozen=True, eq=False)
class _Blocks:
    """The chunks of an array ``(time, band, y, x)``, not computed yet."""

    blocks: NDArray[np.object_]
    """Each chunk as a Delayed."""

    starts: tuple[list[int], ...]
    """Along each axis, where the chunks begin."""

    def origin(self, *index: int) -> _Origin:
        """Return where a block begins."""
        return _Origin(*(starts[i] for starts, i in zip(self.starts, index, strict=True)))

    def under(self, zone: Zone) -> tuple[list[int], list[int]]:
        """Return the rows and the columns of chunks that hold a zone."""
        spans = ((self.starts[2], zone.top, zone.bottom), (self.starts[3], zone.left, zone.right))
        edges = [np.searchsorted(starts, [first, stop - 1], side="right") - 1 for starts, first, stop in spans]
        rows, columns = (list(range(first, last + 1)) for first, last in edges)
        return rows, columns

    def call(self, function: Any, index: tuple[int, int, int, int], **facts: Any) -> Delayed:
        """Return the call of a function with a block, its origin, and what else it takes."""
        # bound, because Dask searches arguments for tasks, which takes as long as measuring small zones
        key = f"measure-zones-{uuid.uuid4().hex}"
        call: Delayed = delayed(partial(function, **facts))(self.blocks[index], self.origin(*index), dask_key_name=key)
        return call


def zonal_tasks(data: da.Array, zones: Sequence[Zone], raster: Raster) -> Iterator[Delayed]:
    """Yield tasks that return rows, all zones, times and bands together."""
    # Fused once, so that all tasks mean the same blocks.
    starts = tuple(np.cumsum([0, *sizes[:-1]]).tolist() for sizes in data.chunks)
    blocks = _Blocks(data.to_delayed(), starts)
    alone: dict[tuple[int, int], list[Zone]] = {}
    spread: list[Zone] = []
    for zone in zones:
        rows, columns = blocks.under(zone)
        if len(rows) == len(columns) == 1:
            alone.setdefault((rows[0], columns[0]), []).append(zone)
        else:
            spread.append(zone)
    for t, b in product(range(data.numblocks[0]), range(data.numblocks[1])):
        for (row, column), inside in alone.items():
            yield blocks.call(_rows, (t, b, row, column), zones=inside, raster=raster)
        for zone in spread:
            yield _summed(blocks, (t, b), zone, raster)


def _summed(blocks: _Blocks, key: Key, zone: Zone, raster: Raster) -> Delayed:
    """Return the rows of a zone from what each of several blocks knows."""
    rows, columns = blocks.under(zone)
    parts = [blocks.call(_parts, (*key, row, column), zone=zone, raster=raster) for row in rows for column in columns]
    name = f"merge-zones-{uuid.uuid4().hex}"
    call: Delayed = delayed(partial(_merged_rows, zone=zone, wanted=raster.wanted))(parts, dask_key_name=name)
    return call


def _crop(block: NDArray[Any], origin: _Origin, zone: Zone) -> tuple[NDArray[Any], Window]:
    """Return the pixels of a block around a zone, and which of the raster's they are."""
    top, bottom = max(zone.top, origin.top), min(zone.bottom, origin.top + block.shape[2])
    left, right = max(zone.left, origin.left), min(zone.right, origin.left + block.shape[3])
    rows, columns = slice(top - origin.top, bottom - origin.top), slice(left - origin.left, right - origin.left)
    return block[:, :, rows, columns], (top, bottom, left, right)


def _rows(block: NDArray[Any], origin: _Origin, zones: Sequence[Zone], raster: Raster) -> list[Row]:
    """Return the rows of zones that lie in a block."""
    window = (origin.top, origin.top + block.shape[2], origin.left, origin.left + block.shape[3])
    rows = []
    for batch in _batches(zones):
        for zone, covered in zip(batch, _coverage(window, [zone.shape for zone in batch]), strict=True):
            rows += _merged_rows([_measured(block, origin, covered, raster)], zone, raster.wanted)
    return rows


_TOGETHER = 1 << 22
"""Pixels around zones whose coverage is asked for at once: 64 MB."""


def _batches(zones: Sequence[Zone]) -> Iterator[list[Zone]]:
    """Yield zones together as long as they are small: each call of exactextract costs as much as many small zones."""
    batch: list[Zone] = []
    pixels = 0
    for zone in zones:
        area = (zone.bottom - zone.top) * (zone.right - zone.left)
        if batch and pixels + area > _TOGETHER:
            yield batch
            batch, pixels = [], 0
        batch.append(zone)
        pixels += area
    yield batch


def _parts(block: NDArray[Any], origin: _Origin, zone: Zone, raster: Raster) -> dict[Key, Part]:
    """Return what a block knows of a zone, for each of its times and bands."""
    pixels, window = _crop(block, origin, zone)
    (covered,) = _coverage(window, [zone.shape])
    return _measured(pixels, origin, covered, raster)


def _measured(pixels: NDArray[Any], origin: _Origin, covered: Covered, raster: Raster) -> dict[Key, Part]:
    """Return what pixels ``(t, b, y, x)`` that a zone covers are like, for each time and band."""
    rows, columns, weights = covered
    found = {}
    for t, b in np.ndindex(pixels.shape[:2]):
        values = pixels[t, b][rows, columns]
        valid = raster.valid(values)
        found[origin.time + t, origin.band + b] = part_of(values[valid], weights[valid], raster.wanted)
    return found


def _merged_rows(parts: Sequence[Mapping[Key, Part]], zone: Zone, wanted: Wanted) -> list[Row]:
    return [
        {"zone": zone.number, "time": key[0], "band": key[1], **finished(merged([part[key] for part in parts]), wanted)}
        for key in parts[0]
    ]


def _coverage(window: Window, shapes: Sequence[Any]) -> list[Covered]:
    """Return the pixels of a window that each zone touches, and the share of each that it covers.

    exactextract 0.3.0 crashes the process where an edge of a hole lies on the border of its raster, as in a raster of
    ``NumPyRasterSource(np.zeros((9, 9)), 8, 8, 17, 17)`` for the zone
    ``box(3, 3, 17, 17).difference(box(8, 8, 12, 12))``. Zones made from rasters are full of edges on the borders of
    chunks. So it gets a raster with a pixel more on each side, zones that have no corner on the border of that, and no
    limit at which it would cut the raster again.
    """
    from exactextract import exact_extract  # noqa: PLC0415 - an extra
    from exactextract.raster import NumPyRasterSource  # noqa: PLC0415

    height, width = window[1] - window[0], window[3] - window[2]
    blank = NumPyRasterSource(np.broadcast_to(np.uint8(0), (height + 2, width + 2)), *_box(window, 1))
    cut = _cut(np.array(shapes, object), window)
    features = [
        {"type": "Feature", "properties": {"zone": i}, "geometry": shapely.geometry.mapping(shape)}
        for i, shape in enumerate(cut)
        if not shape.is_empty
    ]
    nothing = np.empty(0, np.int64)
    covered: list[Covered] = [(nothing, nothing, np.empty(0))] * len(shapes)
    options = {"include_cols": ["zone"], "max_cells_in_memory": (height + 2) * (width + 2)}
    for found in exact_extract(blank, features, ["cell_id", "coverage"], **options) if features else ():
        facts = found["properties"]
        rows, columns = np.divmod(facts["cell_id"], width + 2)
        inside = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
        covered[facts["zone"]] = (rows[inside] - 1, columns[inside] - 1, facts["coverage"][inside])
    return covered


def _box(window: Window, margin: float) -> tuple[float, float, float, float]:
    """Return the bounds of a window and a margin of so many pixels around it, as zones have them: in pixels."""
    top, bottom, left, right = window
    return left - margin, -bottom - margin, right + margin, -top + margin


def _cut(shapes: NDArray[np.object_], window: Window) -> NDArray[np.object_]:
    """Return zones, of which those with corners on the border of a raster one pixel larger than a window are cut.

    The others stay as they are: to the last bits, coverage depends on where the corners of a zone are.
    """
    corners, zone = shapely.get_coordinates(shapes, return_index=True)
    west, south, east, north = _box(window, 1)
    x, y = corners.T
    critical = np.unique(zone[(x == west) | (x == east) | (y == south) | (y == north)])
    if critical.size:
        parts = shapely.intersection(shapes[critical], shapely.box(*_box(window, 0.5)))
        shapes[critical] = [_polygonal(part) for part in parts]
    return shapes


def _polygonal(shape: Any) -> Any:
    """Return a geometry without the points and lines in which a zone touches what it was cut by."""
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    return shapely.union_all([part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"])
