"""Plan the read of a window: the part of each file, its place in the window, and its cost. Reads no pixels.

A window on another grid is not aligned with the files' tiles. Read as a whole, it holds all its observations at once,
and its memory grows with its size. Cut along the tiles, it is read a few tiles at a time, each decoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.reading.grid import Window, intersection, level_geobox, subgrid, within
from s2composite.reading.headers import is_lazy
from s2composite.reading.sources import FileSource
from s2composite.reading.tiles import TileRequest, cost_of
from s2composite.reading.warp import nearest_pixels, pixel_ratio, source_pixels

__all__ = [
    "Piece",
    "ReadCost",
    "ReadGrid",
    "Subwindow",
    "TileSelection",
    "along_tiles",
    "cost_of_window",
    "cut",
    "largest_selection",
    "requests_of",
    "shape_of",
    "subwindow_of",
    "tile_selections",
    "touched",
    "window_of",
]


@dataclass(frozen=True, slots=True, eq=False)
class Subwindow:
    """A source, and the part of the window that it covers."""

    scene: int  # position of the scene
    # order among the files of a scene that may cover the same pixels; those with 0 are written first
    member: int
    source: FileSource  # the file
    window: Window  # decoded area in pixels of the source's level, or in pixels of the geobox if GDAL warps
    place: Window  # destination, in pixels of the window
    # the part of the decoded pixels, each repeated, that is used; None: they are not repeated
    inner: Window | None = None
    # index of the decoded pixel for each pixel of `place`, -1 for none; None: copied one to one
    index: NDArray[np.int32] | None = None

    @property
    def warped(self) -> bool:
        """Whether GDAL warps it to the target grid, and applies the file's mask and alpha band itself."""
        return self.source.offset is None and self.source.resampling != "nearest"

    @property
    def masked(self) -> bool:
        """Whether a mask is read with it."""
        return bool(self.source.header.mask_kind) and not self.warped

    @property
    def bands(self) -> tuple[int, ...]:
        """Bands of the file to decode: those of the stack, then the alpha band."""
        alpha = self.source.alpha
        return self.source.part.file_bands + (() if alpha is None or self.warped else (alpha,))

    @property
    def direct(self) -> bool:
        """Whether it is decoded in place."""
        alone = self.bands == self.source.part.file_bands
        return self.inner is None and self.index is None and self.member == 0 and alone

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(bands, y, x)`` of the decoded pixels."""
        y, x = self.window
        return len(self.bands), y.stop - y.start, x.stop - x.start

    def rows(self) -> slice:
        """Return its bands in the stack."""
        part = self.source.part
        return slice(part.row, part.row + len(part.file_bands))

    def memory(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return memory for the decoded pixels, in the file's layout."""
        bands, height, width = self.shape
        if self.source.header.coding.interleave == "pixel":
            return np.moveaxis(np.empty((height, width, bands), dtype), 2, 0)
        return np.empty((bands, height, width), dtype)


@dataclass(frozen=True, slots=True)
class ReadGrid:
    """The target grid."""

    # pixel grid from which the stack's was cut: transforms of parts differ in their last digits, which can change
    # rounding, so all parts are described as parts of the same grid
    whole: GeoBox
    shift: tuple[int, int]  # (y, x) of the stack's first pixel in it
    fill: float  # value of pixels that no file covers

    def in_whole(self, window: Window) -> Window:
        """Return a window of the stack in pixels of the whole grid; it may extend beyond that grid."""
        y, x = (slice(s.start + n, s.stop + n) for s, n in zip(window, self.shift, strict=True))
        return y, x

    def grid(self, window: Window) -> GeoBox:
        """Return the grid of a window of the stack."""
        return subgrid(self.whole, self.in_whole(window))


@dataclass(frozen=True, slots=True)
class ReadCost:
    """Cost of reading a window, computed from the tile index without reading anything."""

    scenes: tuple[int, ...]  # positions of the scenes that are read
    requests: int  # byte ranges to fetch
    bytes: int  # their total size
    decoded: int  # bytes of decoded pixels
    gdal: int  # files read by GDAL, with unknown requests and bytes
    seconds: float = 0.0  # that a thread computes beside reading, where that is known


def cost_of_window(sources: Sequence[tuple[int, FileSource]], target: ReadGrid, window: Window) -> ReadCost:
    """Return the cost of reading a window of files; see `begin`."""
    subwindows = [sub for t, source in sources if (sub := subwindow_of(t, source, window, target)) is not None]
    known = [sub for sub in subwindows if sub.source.engine == "tiles" and not is_lazy(sub.source.header)]
    zeros = [np.broadcast_to(sub.source.header.dtype.type(0), sub.shape) for sub in known]
    costs = [
        cost_of(request)
        for sub, out in zip(known, zeros, strict=True)
        for request in requests_of(sub, out, out[:1] if sub.masked else None)
    ]
    return ReadCost(
        tuple(sorted({sub.scene for sub in subwindows})),
        sum(requests for requests, _ in costs),
        sum(size for _, size in costs),
        sum(int(np.prod(sub.shape)) * sub.source.header.dtype.itemsize for sub in subwindows),
        len(subwindows) - len(known),
    )


def subwindow_of(t: int, source: FileSource, piece: Piece, target: ReadGrid) -> Subwindow | None:
    """Return the subwindow of a source of scene `t` in a window or piece, or None if they do not intersect."""
    if isinstance(piece, TileSelection):
        place = slice(0, 1), slice(0, len(piece.pixels))
        return None if piece.tiles is None else Subwindow(t, 0, source, piece.tiles, place, index=piece.index)
    met = touched(source, piece)
    if met is None:
        return None
    part, place = met
    if source.offset is None:
        if source.resampling != "nearest":  # interpolated by GDAL
            return Subwindow(t, 0, source, part, place)
        shape = source.header.levels[source.level].shape
        picked = nearest_pixels(level_geobox(source.header.geobox, shape), target.grid(part))
        return None if picked is None else Subwindow(t, 0, source, picked[0], place, index=picked[1])
    y, x = (slice(s.start + o, s.stop + o) for s, o in zip(part, source.offset, strict=True))
    if source.factor == 1:
        return Subwindow(t, 0, source, (y, x), place)
    f = source.factor
    coarse = tuple(slice(s.start // f, -(-s.stop // f)) for s in (y, x))
    inner = tuple(slice(s.start - c.start * f, s.stop - c.start * f) for s, c in zip((y, x), coarse, strict=True))
    return Subwindow(t, 0, source, (coarse[0], coarse[1]), place, (inner[0], inner[1]))


def touched(source: FileSource, window: Window) -> tuple[Window, Window] | None:
    """Return the part of a window that a source may cover, in pixels of the target and of the window, or None."""
    top, bottom, left, right = source.extent
    part = intersection(window, (slice(top, bottom), slice(left, right)))
    return None if any(s.start >= s.stop for s in part) else (part, within(window, part))


def requests_of(
    sub: Subwindow, out: NDArray[Any], mask: NDArray[Any] | None, wanted: NDArray[np.bool_] | None = None
) -> list[TileRequest]:
    """Return the tiles to decode into `out`, and the tiles of the file's mask to decode into `mask`, if given.

    `wanted` marks the pixels of ``sub.place`` that are needed; None: all are.
    """
    header, level, window = sub.source.header, sub.source.level, sub.window
    requests = [TileRequest(header, level, window, sub.bands, out)]
    if mask is not None:
        assert header.mask is not None
        requests.append(TileRequest(header.mask, level, window, (0,), mask))
    if wanted is None:
        return requests
    needed = [_needed_tiles(sub, one.header.levels[level].block, wanted) for one in requests]
    return [one if n.all() else replace(one, needed=n) for one, n in zip(requests, needed, strict=True)]


def _needed_tiles(sub: Subwindow, block: tuple[int, int], wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which tiles of size `block` touched by a subwindow contain a needed pixel."""
    first = [s.start // n for s, n in zip(sub.window, block, strict=True)]
    shape = [-(-s.stop // n) - f for s, n, f in zip(sub.window, block, first, strict=True)]
    if sub.index is not None:
        taken = sub.index[wanted]
        pixels = np.divmod(taken[taken >= 0], sub.shape[2])
        needed = np.zeros(shape, bool)
        needed[tuple((p + s.start) // n - f for p, s, n, f in zip(pixels, sub.window, block, first, strict=True))] = (
            True
        )
        return needed
    if shape == [1, 1]:
        return np.array([[wanted.any()]])
    edges = []  # where tiles end, in pixels of the target
    for axis, (s, n) in enumerate(zip(sub.window, block, strict=True)):
        begun, factor = (0, 1) if sub.inner is None else (sub.inner[axis].start, sub.source.factor)
        ends = (np.arange(first[axis] + 1, -(-s.stop // n)) * n - s.start) * factor - begun
        edges.append([0, *ends.tolist(), wanted.shape[axis]])
    tiles = ((slice(*y), slice(*x)) for y in pairwise(edges[0]) for x in pairwise(edges[1]))
    # most hold a pixel among a few, which are looked at first
    some = [bool(wanted[y, x][::32, ::32].any() or wanted[y, x].any()) for y, x in tiles]
    return np.array(some).reshape(shape)


_SIDE = 512  # minimum side of a selection's tiles in pixels: small tiles are grouped

_MARGIN = 1.1  # factor by which a tile may contain more target pixels than the ratio of their sizes


@dataclass(frozen=True, slots=True, eq=False)
class TileSelection:
    """The pixels of a window that come from the same tiles of all files."""

    window: Window  # the window, (y, x) slices of the target
    pixels: NDArray[np.int32]  # (n,): their positions in the flattened window
    # the part read, (y, x) in pixels of the files' level; None: they are outside the files
    tiles: Window | None
    index: NDArray[np.int32]  # (1, n): position of each in the flattened part; empty if they are outside


Piece: TypeAlias = Window | TileSelection  # unit of reading: a rectangle, or pixels from the same tiles


def window_of(piece: Piece) -> Window:
    """Return the window that a piece is, or is a part of."""
    return piece.window if isinstance(piece, TileSelection) else piece


def shape_of(piece: Piece) -> tuple[int, int]:
    """Return the rows and columns of a piece; a selection is one row."""
    if isinstance(piece, TileSelection):
        return 1, len(piece.pixels)
    return int(piece[0].stop - piece[0].start), int(piece[1].stop - piece[1].start)


def tile_selections(
    sources: Sequence[FileSource], target: ReadGrid, window: Window, side: int | None = None
) -> tuple[TileSelection, ...]:
    """Cut a window along the tiles of its (opened) files; empty if the files do not have the same tiles.

    `side` is the least side of a selection's tiles in pixels, 1 for each tile by itself.
    """
    cells = _cells(sources, side or _SIDE)
    if cells is None:
        return ()
    shape = tuple(s.stop - s.start for s in window)
    # by cell: pixels of the window, and the cell's pixel for each
    parts: dict[int, list[tuple[NDArray[np.int32], NDArray[np.int32]]]] = {}
    taken = np.zeros(shape, bool)
    if (met := touched(sources[0], window)) is not None:
        part, (down, right) = met
        for rows, *found, inside in source_pixels(cells.grid, target.grid(part)):
            inner = (slice(down.start + rows.start, down.start + rows.stop), right)
            taken[inner] = inside
            pixels = (np.flatnonzero(taken[inner[0]]) + inner[0].start * shape[1]).astype(np.int32)
            if not pixels.size:
                continue
            row, column = found[0][inside], found[1][inside]
            of_pixel = row // cells.shape[0] * cells.columns + column // cells.shape[1]
            order = np.argsort(of_pixel, kind="stable")
            numbers, starts = np.unique(of_pixel[order], return_index=True)
            for number, some in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
                y, x = cells.window(number)
                index = (row[some] - y.start) * (x.stop - x.start) + (column[some] - x.start)
                parts.setdefault(number, []).append((pixels[some], index))
    selections = []
    for cell in sorted(parts):
        y, x = cells.window(cell)
        pixels, index = (np.concatenate(arrays) for arrays in zip(*parts.pop(cell), strict=True))
        # only the part of the cell that they need
        row, column = np.divmod(index, x.stop - x.start)
        (top, bottom), (left, end) = ((int(a.min()), int(a.max()) + 1) for a in (row, column))
        tiles = slice(y.start + top, y.start + bottom), slice(x.start + left, x.start + end)
        index = ((row - top) * (end - left) + (column - left))[None]
        selections.append(TileSelection(window, pixels, tiles, index))
    outside = np.flatnonzero(~taken).astype(np.int32)
    for start in range(0, len(outside), cells.size):
        none = np.empty((1, 0), np.int32)
        selections.append(TileSelection(window, outside[start : start + cells.size], None, none))
    return tuple(selections)


def along_tiles(
    sources: Sequence[FileSource], target: ReadGrid, piece: Piece, blocks: Sequence[Window]
) -> tuple[tuple[Piece, tuple[Any, Any]], ...]:
    """Cut a piece along the tiles of all (opened) files; return the parts and ``(y, x)`` of their pixels in it.

    If GDAL warps files, or those on another grid have different tiles, return `blocks` of the target.
    """
    window = window_of(piece)
    selections = tile_selections(sources, target, window, side=1)
    if isinstance(piece, TileSelection):
        order = np.argsort(piece.pixels)
        parts: list[tuple[Piece, tuple[Any, Any]]] = []
        for one in selections:
            mine = np.isin(one.pixels, piece.pixels)
            pixels, index = one.pixels[mine], one.index if one.tiles is None else one.index[:, mine]
            at = order[np.searchsorted(piece.pixels, pixels, sorter=order)]
            if at.size:
                parts.append((replace(one, pixels=pixels, index=index), (np.zeros_like(at), at)))
        return tuple(parts) or ((piece, (slice(None), slice(None))),)
    if selections:
        width = window[1].stop - window[1].start
        return tuple((part, np.divmod(part.pixels, width)) for part in selections)
    if sources and all(source.offset is not None for source in sources):
        levels = [
            (source, header.levels[source.level].block)
            for source in sources
            for header in (source.header, source.header.mask)
            if header is not None
        ]
        spans = []
        for axis, span in enumerate(window):
            cuts = [cut(span, block[axis] * s.factor, s.offset[axis]) for s, block in levels if s.offset is not None]
            starts = sorted({one.start for some in cuts for one in some})
            spans.append([slice(a, b) for a, b in pairwise([*starts, span.stop])])
        blocks = [(y, x) for y in spans[0] for x in spans[1]]
    return tuple((block, within(window, block)) for block in blocks)


def cut(span: slice, block: int, origin: int) -> list[slice]:
    """Cut a slice at the borders of blocks; the first block starts `origin` pixels before 0.

    >>> cut(slice(100, 1100), 512, 0)
    [slice(100, 512, None), slice(512, 1024, None), slice(1024, 1100, None)]
    """
    first = span.start + block - (span.start + origin) % block
    borders = [span.start, *range(first, span.stop, block), span.stop]
    return [slice(a, b) for a, b in pairwise(borders)]


def largest_selection(sources: Sequence[FileSource], target: GeoBox) -> int | None:
    """Return the maximum pixels of a selection, None if windows cannot be cut along tiles; opens nothing."""
    cells = _cells(sources, _SIDE)
    if cells is None:
        return None
    y, x = pixel_ratio(cells.grid, target.crs, abs(target.resolution.x), abs(target.resolution.y))
    return int(cells.size * max(1.0, y * x) * _MARGIN)


@dataclass(frozen=True, slots=True)
class _Cells:
    """Whole tiles of a file, grouped into cells."""

    grid: GeoBox  # of the level to read
    shape: tuple[int, int]  # (y, x) pixels of a cell

    @property
    def size(self) -> int:
        """Pixels of a cell."""
        return self.shape[0] * self.shape[1]

    @property
    def columns(self) -> int:
        """Number of cells in a row."""
        return -(-int(self.grid.shape.x) // self.shape[1])

    def window(self, cell: int) -> Window:
        """Return the pixels of a cell."""
        y, x = (i * n for i, n in zip(divmod(cell, self.columns), self.shape, strict=True))
        bottom, right = self.grid.shape
        return slice(y, min(y + self.shape[0], bottom)), slice(x, min(x + self.shape[1], right))


def _cells(sources: Sequence[FileSource], side: int) -> _Cells | None:
    """Return the cells that files have in common, of whole tiles and at least `side` pixels a side, or None."""
    if not sources or any(source.offset is not None or source.engine != "tiles" for source in sources):
        return None
    first = sources[0]
    level = first.header.levels[first.level]
    for source in sources:
        other = source.header.levels[source.level]
        if (source.header.geobox, other.shape, other.block) != (first.header.geobox, level.shape, level.block):
            return None
    height, width = (min(-(-side // block) * block, n) for block, n in zip(level.block, level.shape, strict=True))
    return _Cells(level_geobox(first.header.geobox, level.shape), (height, width))
