"""Which part of each file a window takes, where it goes, and what it costs. No pixels are read here.

A window on another grid lies askew over the files' tiles. Read whole, it holds all its observations at once, and
takes more memory
the larger it is. Cut along the tiles, it is read a few tiles at a time, each decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.errors import ReadError
from s2composite.geotiff.header import Header
from s2composite.reading.grid import Window, level_geobox
from s2composite.reading.headers import fulfilled, is_promised
from s2composite.reading.sources import Source, nodata_of_file
from s2composite.reading.tiles import TileRequest, cost_of
from s2composite.reading.warp import nearest_pixels, pixel_ratio, source_pixels

__all__ = [
    "Patch",
    "Piece",
    "ReadCost",
    "Share",
    "Target",
    "cost_of_window",
    "in_turn",
    "largest_patch",
    "opened_sources",
    "patches_of",
    "requests_of",
    "share_of",
    "subgrid",
    "touched",
]


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A source, and the part of the window that it covers."""

    scene: int  # position of the scene
    # turn among the files of a scene that may cover the same pixels; those of turn 0 are the first to write
    member: int
    source: Source  # the file
    window: Window  # what is decoded, in pixels of the source's level; in pixels of the geobox where GDAL warps
    place: Window  # where it goes, in pixels of the window
    # the part of the decoded pixels, each repeated, that is wanted; None: they are not repeated
    inner: Window | None = None
    # which of the decoded pixels each of `place` takes, -1 for none; None: they are as they are
    index: NDArray[np.int32] | None = None

    @property
    def warped(self) -> bool:
        """Whether GDAL puts it on the target grid, and heeds the file's mask and alpha band itself."""
        return self.source.offset is None and self.source.resampling != "nearest"

    @property
    def masked(self) -> bool:
        """Whether a mask is read beside it."""
        return bool(self.source.header.mask_kind) and not self.warped

    @property
    def bands(self) -> tuple[int, ...]:
        """Bands of the file that are decoded: those of the stack, then the alpha band."""
        alpha = self.source.alpha
        return self.source.part.file_bands + (() if alpha is None or self.warped else (alpha,))

    @property
    def direct(self) -> bool:
        """Whether it is decoded where it goes."""
        alone = self.bands == self.source.part.file_bands
        return self.inner is None and self.index is None and self.member == 0 and alone

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(bands, y, x)`` of what is decoded."""
        y, x = self.window
        return len(self.bands), y.stop - y.start, x.stop - x.start

    def rows(self) -> slice:
        """Return its bands in the stack."""
        part = self.source.part
        return slice(part.row, part.row + len(part.file_bands))

    def memory(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return memory for what is decoded, laid out as the file is."""
        bands, height, width = self.shape
        if self.source.header.interleave == "pixel":
            return np.moveaxis(np.empty((height, width, bands), dtype), 2, 0)
        return np.empty((bands, height, width), dtype)


@dataclass(frozen=True, slots=True)
class Target:
    """The grid that is read onto."""

    # pixel grid from which the stack's was cut: transforms of parts differ in their last digits, which rounding can
    # show, so all parts are described as parts of the same grid
    whole: GeoBox
    shift: tuple[int, int]  # (y, x) of the stack's first pixel in it
    fill: float  # value of pixels that no file covers

    def in_whole(self, window: Window) -> Window:
        """Return a window of the stack as one of the whole grid, which it may leave."""
        y, x = (slice(s.start + n, s.stop + n) for s, n in zip(window, self.shift, strict=True))
        return y, x

    def grid(self, window: Window) -> GeoBox:
        """Return the grid of a window of the stack."""
        return subgrid(self.whole, self.in_whole(window))


@dataclass(frozen=True, slots=True)
class ReadCost:
    """What reading a window takes, as the tile index tells it: nothing is read to find out."""

    scenes: tuple[int, ...]  # positions of the scenes that are read
    requests: int  # byte ranges asked for
    bytes: int  # their size together
    decoded: int  # bytes of pixels that are decoded
    gdal: int  # files that GDAL reads, of which neither requests nor bytes are known


def cost_of_window(sources: Sequence[tuple[int, Source]], target: Target, window: Window) -> ReadCost:
    """Return what reading a window of files takes; see `begin`."""
    shares = [share for t, source in sources if (share := share_of(t, source, window, target)) is not None]
    known = [share for share in shares if share.source.engine == "tiles" and not is_promised(share.source.header)]
    zeros = [np.broadcast_to(share.source.header.dtype.type(0), share.shape) for share in known]
    costs = [
        cost_of(request)
        for share, out in zip(known, zeros, strict=True)
        for request in requests_of(share, out, out[:1] if share.masked else None)
    ]
    return ReadCost(
        tuple(sorted({share.scene for share in shares})),
        sum(requests for requests, _ in costs),
        sum(size for _, size in costs),
        sum(int(np.prod(share.shape)) * share.source.header.dtype.itemsize for share in shares),
        len(shares) - len(known),
    )


def opened_sources(
    sources: Sequence[tuple[int, Source]],
) -> tuple[list[tuple[int, Source]], tuple[tuple[int, ReadError], ...]]:
    """Open the files that were not opened yet, and return the sources that can be read."""
    real = fulfilled([source.header for _, source in sources if is_promised(source.header)])
    found: list[tuple[int, Source]] = []
    lost: list[tuple[int, ReadError]] = []
    for t, source in sources:
        header = real.get(source.header.href) if is_promised(source.header) else source.header
        if isinstance(header, Header):
            found.append((t, source if header is source.header else _with_header(source, header)))
        elif header is not None:
            lost.append((t, header))
    return found, tuple(lost)


def _with_header(source: Source, header: Header) -> Source:
    nodata = nodata_of_file(header, source.part)
    if not header.undecodable or source.engine == "gdal":
        return replace(source, header=header, nodata=nodata)
    return replace(source, header=header, nodata=nodata, engine="gdal", why=header.undecodable)


def in_turn(shares: Sequence[Share]) -> tuple[Share, ...]:
    """Count the members of each scene that touch the window."""
    turns: dict[int, dict[int, int]] = {}
    for share in shares:
        members = turns.setdefault(share.scene, {})
        members.setdefault(share.source.member, len(members))
    return tuple(replace(share, member=turns[share.scene][share.source.member]) for share in shares)


def share_of(t: int, source: Source, window: Window, target: Target) -> Share | None:
    """Return what a source gives to a window, None if they do not touch."""
    met = touched(source, window)
    if met is None:
        return None
    there, at = met
    if source.offset is None:
        return _warped(t, source, there, at, target)
    y, x = (slice(s.start + o, s.stop + o) for s, o in zip(there, source.offset, strict=True))
    if source.factor == 1:
        return Share(t, 0, source, (y, x), at)
    f = source.factor
    coarse = tuple(slice(s.start // f, -(-s.stop // f)) for s in (y, x))
    inner = tuple(slice(s.start - c.start * f, s.stop - c.start * f) for s, c in zip((y, x), coarse, strict=True))
    return Share(t, 0, source, (coarse[0], coarse[1]), at, (inner[0], inner[1]))


def touched(source: Source, window: Window) -> tuple[Window, Window] | None:
    """Return the part of a window that a source may reach, in pixels of the target and of the window; None: no part."""
    spans, place = [], []
    for s, (first, last) in zip(window, (source.extent[:2], source.extent[2:]), strict=True):
        start, stop = max(s.start, first), min(s.stop, last)
        if start >= stop:
            return None
        spans.append(slice(start, stop))
        place.append(slice(start - s.start, stop - s.start))
    return (spans[0], spans[1]), (place[0], place[1])


def _warped(t: int, source: Source, there: Window, place: Window, target: Target) -> Share | None:
    """Return the share of a file on another grid: pixels picked from it, or interpolated by GDAL."""
    if source.resampling != "nearest":
        return Share(t, 0, source, there, place)
    shape = source.header.levels[source.level].shape
    found = nearest_pixels(level_geobox(source.header.geobox, shape), target.grid(there))
    return None if found is None else Share(t, 0, source, found[0], place, index=found[1])


def requests_of(share: Share, out: NDArray[Any], mask: NDArray[Any] | None) -> list[TileRequest]:
    """Return the tiles of a share, to be decoded into `out`, and those of its file's mask, if that is wanted."""
    header, level, window = share.source.header, share.source.level, share.window
    pixels = TileRequest(header, level, window, share.bands, out)
    if mask is None:
        return [pixels]
    assert header.mask is not None
    return [pixels, TileRequest(header.mask, level, window, (0,), mask)]


def subgrid(geobox: GeoBox, window: Window) -> GeoBox:
    """Return the grid of a window, which may leave that of `geobox`."""
    y, x = window
    return geobox.translate_pix(x.start, y.start).crop((y.stop - y.start, x.stop - x.start))


_SIDE = 512  # pixels that the tiles of a patch have at least along each side: small tiles are put together

_MARGIN = 1.1  # how much more pixels of the target may lie in a tile than the ratio of their sizes says


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Some pixels of a window."""

    window: Window  # the window, (y, x) slices of the target
    pixels: NDArray[np.int32]  # (n,): which they are, in the flattened window
    # what they are taken from, (y, x) in pixels of the files' level; None: they lie outside of the files
    tiles: Window | None
    index: NDArray[np.int32]  # (1, n): which of those, flattened, each takes; empty where they lie outside

    def share(self, t: int, source: Source) -> Share | None:
        """Return what a source of scene `t` gives to it, None if nothing."""
        if self.tiles is None:
            return None
        return Share(t, 0, source, self.tiles, (slice(0, 1), slice(0, len(self.pixels))), index=self.index)


Piece: TypeAlias = Window | Patch  # what is read at once: a rectangle, or pixels that the same tiles give


def patches_of(sources: Sequence[Source], target: Target, window: Window) -> tuple[Patch, ...]:
    """Cut a window along the tiles of its files; empty where the files do not have the same tiles."""
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

    grid: GeoBox  # of the level that is read
    shape: tuple[int, int]  # (y, x) pixels of a cell

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
