"""Patches: the pixels of a window that the same tiles of the files on another grid give. No pixels are read here.

A window on another grid lies askew over the files' tiles. Read whole, it holds all its observations at once, and takes
more memory the larger it is. Cut along the tiles, it is read a few tiles at a time, each decoded once, and what is held
is what these give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.reading.grid import Window, level_geobox
from s2composite.reading.share import Share, Target, touched
from s2composite.reading.source import Source
from s2composite.reading.warp import pixel_ratio, source_pixels

__all__ = ["Patch", "Piece", "largest_patch", "patches_of"]

_SIDE = 512
"""Pixels that the tiles of a patch have at least along each side: small tiles are put together."""

_MARGIN = 1.1
"""How much more pixels of the target may lie in a tile than the ratio of their sizes says."""


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Some pixels of a window."""

    window: Window
    """The window, ``(y, x)`` slices of the target."""

    pixels: NDArray[np.int32]
    """``(n,)``: which they are, in the flattened window."""

    tiles: Window | None
    """What they are taken from, ``(y, x)`` in pixels of the files' level; None: they lie outside of the files."""

    index: NDArray[np.int32]
    """``(1, n)``: which of those, flattened, each takes; empty where they lie outside."""

    def share(self, t: int, source: Source) -> Share | None:
        """Return what a source of scene `t` gives to it, None if nothing."""
        if self.tiles is None:
            return None
        return Share(t, 0, source, self.tiles, (slice(0, 1), slice(0, len(self.pixels))), index=self.index)


Piece: TypeAlias = Window | Patch
"""What is read at once: a rectangle, or pixels that the same tiles give."""


def patches_of(sources: Sequence[Source], target: Target, window: Window) -> tuple[Patch, ...]:
    """Cut a window along the tiles of its files; empty where the files do not have the same tiles.

    Parameters
    ----------
    sources
        All files that may touch the window, opened.
    target
        The grid.
    window
        ``(y, x)`` slices of it.
    """
    cells = _cells(sources)
    if cells is None:
        return ()
    shape = tuple(s.stop - s.start for s in window)
    found = touched(sources[0], window)
    parts: dict[int, list[tuple[NDArray[np.int32], NDArray[np.int32]]]] = {}
    taken = np.zeros(shape, bool)
    if found is not None:
        there, (down, right) = found
        for rows, row, column, inside in source_pixels(cells.grid, target.grid(there)):
            inner = (slice(down.start + rows.start, down.start + rows.stop), right)
            taken[inner] = inside
            here = np.flatnonzero(taken[inner[0]]) + inner[0].start * shape[1]
            if here.size:
                cells.sort(here.astype(np.int32), row[inside], column[inside], parts)
    patches = [_patch(window, cells.window(cell), *parts.pop(cell)) for cell in sorted(parts)]
    outside = np.flatnonzero(~taken).astype(np.int32)
    return (*patches, *(Patch(window, some, None, _NONE) for some in _in_turn(outside, cells.size)))


_NONE = np.empty((1, 0), np.int32)


def largest_patch(sources: Sequence[Source], target: GeoBox) -> int | None:
    """Return how many pixels a patch has at most, None where windows cannot be cut into patches; nothing is opened."""
    cells = _cells(sources)
    if cells is None:
        return None
    y, x = pixel_ratio(cells.grid, target.crs, abs(target.resolution.x), abs(target.resolution.y))
    return int(cells.size * max(1.0, y * x) * _MARGIN)


@dataclass(frozen=True, slots=True)
class _Cells:
    """Whole tiles of a file, put together to cells."""

    grid: GeoBox
    """Of the level that is read."""

    shape: tuple[int, int]
    """``(y, x)`` pixels of a cell."""

    @property
    def size(self) -> int:
        """Pixels of a cell."""
        return self.shape[0] * self.shape[1]

    @property
    def columns(self) -> int:
        """Cells side by side."""
        return -(-int(self.grid.shape.x) // self.shape[1])

    def window(self, cell: int) -> Window:
        """Return the pixels of a cell."""
        y, x = (i * n for i, n in zip(divmod(cell, self.columns), self.shape, strict=True))
        bottom, right = self.grid.shape
        return slice(y, min(y + self.shape[0], bottom)), slice(x, min(x + self.shape[1], right))

    def sort(
        self,
        pixels: NDArray[np.int32],
        row: NDArray[np.int32],
        column: NDArray[np.int32],
        parts: dict[int, list[tuple[NDArray[np.int32], NDArray[np.int32]]]],
    ) -> None:
        """Add pixels of the target, which lie in `row` and `column` of the file, to the parts of their cells."""
        cell = row // self.shape[0] * self.columns + column // self.shape[1]
        order = np.argsort(cell, kind="stable")
        cells, starts = np.unique(cell[order], return_index=True)
        for number, some in zip(cells.tolist(), np.split(order, starts[1:]), strict=True):
            y, x = self.window(number)
            index = (row[some] - y.start) * (x.stop - x.start) + (column[some] - x.start)
            parts.setdefault(number, []).append((pixels[some], index))


def _cells(sources: Sequence[Source]) -> _Cells | None:
    """Return the cells that files have in common, None where there is no such thing."""
    if not sources or any(source.offset is not None or source.engine != "tiles" for source in sources):
        return None
    first = sources[0]
    level = first.header.levels[first.level]
    for source in sources:
        other = source.header.levels[source.level]
        if (source.header.geobox, other.shape, other.block) != (first.header.geobox, level.shape, level.block):
            return None
    height, width = (min(-(-_SIDE // block) * block, n) for block, n in zip(level.block, level.shape, strict=True))
    return _Cells(level_geobox(first.header.geobox, level.shape), (height, width))


def _patch(window: Window, cell: Window, *some: tuple[NDArray[np.int32], NDArray[np.int32]]) -> Patch:
    """Put the parts of a patch together, and take no more of its cell than it needs."""
    pixels, index = (np.concatenate(arrays) for arrays in zip(*some, strict=True))
    row, column = np.divmod(index, cell[1].stop - cell[1].start)
    (top, bottom), (left, right) = ((int(a.min()), int(a.max()) + 1) for a in (row, column))
    tiles = slice(cell[0].start + top, cell[0].start + bottom), slice(cell[1].start + left, cell[1].start + right)
    return Patch(window, pixels, tiles, ((row - top) * (right - left) + (column - left))[None])


def _in_turn(pixels: NDArray[np.int32], most: int) -> Iterator[NDArray[np.int32]]:
    return (pixels[start : start + most] for start in range(0, len(pixels), most))
