"""Tiles: windows of many files by byte range, decoded straight into the array that the kernels read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ReadError
from s2composite.geotiff.codecs import CorruptTileError, decode_tile
from s2composite.geotiff.header import Header
from s2composite.geotiff.structure import FRAME, Level
from s2composite.storage.files import display
from s2composite.storage.http import ByteRange, Fetched, Fetching
from s2composite.storage.retry import Retry

__all__ = ["Begun", "TileRequest", "TileResult", "begin_window", "cost_of", "read_tiles", "read_window"]

# bytes between two tiles that are rather read than skipped: a request costs more than the time they take
_GAP = 1 << 16

# bytes of one request at most (unless one tile is larger), so that requests can be made side by side
_LONGEST = 8 << 20


@dataclass(frozen=True, slots=True, eq=False)
class TileRequest:
    """A window of one file, and where its pixels go."""

    header: Header  # the file, or the mask of one (header.mask)
    level: int  # 0: full resolution, then the overviews
    window: tuple[slice, slice]  # (y, x) in pixels of that level, inside it
    bands: tuple[int, ...]  # bands of the file, counted from 0
    # (bands, y, x). Fastest as a view of (y, x, band) memory of the header's dtype, as tiles are stored.
    out: NDArray[Any]


@dataclass(frozen=True, slots=True)
class TileResult:
    """What became of a request."""

    # why it failed (href, transient, retries), and then `out` is filled with nodata; None: it did not
    error: ReadError | None
    retries: int  # reads that were repeated
    requests: int  # byte ranges that were asked for
    bytes: int  # bytes that were asked for
    seconds: float  # time it took to decode them, without waiting for them


@dataclass(frozen=True, slots=True)
class _Tile:
    """A tile that a request needs."""

    plane: int  # band of the file if each band has its own tiles, else 0
    row: int  # row of tiles
    column: int  # column of tiles
    start: int  # first byte in the file
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """Neighbouring tiles of one request, fetched together."""

    request: int  # position of the request
    tiles: tuple[_Tile, ...]  # by first byte
    start: int  # first byte to fetch
    stop: int  # byte after the last


def read_tiles(
    header: Header, level: int, window: tuple[slice, slice], bands: tuple[int, ...], out: NDArray[Any]
) -> TileResult:
    """Read a window of one file into `out`; see `TileRequest`."""
    (result,) = read_window([TileRequest(header, level, window, bands, out)])
    if result.error is not None:
        raise result.error
    return result


def read_window(requests: Sequence[TileRequest], *, retry: Retry | None = None) -> tuple[TileResult, ...]:
    """Read windows of many files, decoding in the calling thread while the next bytes are on their way.

    Safe to call from many threads at once. Holds compressed bytes of at most an eighth of the pixels (at least 8 MiB,
    at most 64 MiB) and one decoded tile beside `out`.
    """
    return begin_window(requests, retry=retry).finish()


def cost_of(request: TileRequest) -> tuple[int, int]:
    """Return how many reads a request makes, and of how many bytes, without making any."""
    parts = list(_plan(0, request))
    return len(parts), sum(part.stop - part.start for part in parts)


def begin_window(requests: Sequence[TileRequest], *, retry: Retry | None = None) -> Begun:
    """Ask for the bytes of windows of remote files, and return at once; see `read_window`.

    So the bytes of the next window travel while this one is decoded. `out` is not touched before `Begun.finish`, so the
    next window may have the same memory as this one.
    """
    parts = [part for i, request in enumerate(requests) for part in _plan(i, request)]
    ranges = [_byte_range(requests[part.request].header, part) for part in parts]
    budget = min(max(sum(r.out.nbytes for r in requests) // 8, 8 << 20), 64 << 20)
    return Begun(requests, parts, ranges, Fetching(ranges, retry, budget))


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """Windows whose bytes are on their way."""

    requests: Sequence[TileRequest]  # what is read
    parts: Sequence[_Part]  # what is fetched for it
    ranges: Sequence[ByteRange]  # where that is
    fetching: Fetching  # the bytes

    def finish(self) -> tuple[TileResult, ...]:
        """Decode the windows as their bytes arrive; see `read_window`. Once only."""
        tallies = [_Tally() for _ in self.requests]
        for request in self.requests:
            _fill_sparse(request)
        scratch, missing = np.empty((0, 0, 0)), set(range(len(self.parts)))
        for i, fetched in self.fetching:
            missing.remove(i)
            position = self.parts[i].request
            tally = tallies[position]
            tally.add(self.ranges[i], fetched)
            if tally.error is None:
                arrived = perf_counter()
                scratch = _use(self.requests[position], self.parts[i], fetched.data, scratch, tally)
                tally.seconds += perf_counter() - arrived
        for i in missing:
            tallies[self.parts[i].request].give_up(self.ranges[i])
        for request, tally in zip(self.requests, tallies, strict=True):
            if tally.error is not None:
                request.out[...] = _fill(request)
        return tuple(TileResult(t.error, t.retries, t.requests, t.bytes, t.seconds) for t in tallies)

    def close(self) -> None:
        """Give up the windows without decoding them."""
        self.fetching.close()


@dataclass(slots=True)
class _Tally:
    """What happened to a request so far."""

    error: ReadError | None = None
    retries: int = 0
    requests: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def add(self, part: ByteRange, fetched: Fetched) -> None:
        self.error = self.error or fetched.error
        self.retries += fetched.retries
        self.requests += 1
        self.bytes += part.size

    def give_up(self, part: ByteRange) -> None:
        href = display(part.href)
        why = f"{href}: reading it was given up"
        self.error = self.error or ReadError(why, href=href, transient=True, retries=self.retries)


def _fill(request: TileRequest) -> float:
    """Return what its bands have where nothing is stored: they share a nodata value."""
    return request.header.nodata_of(request.bands[0]) or 0


# --- Which bytes ----------------------------------------------------------------------------------------------------


def _plan(position: int, request: TileRequest) -> Iterator[_Part]:
    """Yield what must be fetched for a request."""
    frame = FRAME if request.header.framed else 0
    tiles = sorted((tile for tile in _tiles(request) if tile.size), key=lambda tile: tile.start)
    while tiles:
        count = _neighbours(tiles)
        stop = max(tile.start + tile.size for tile in tiles[:count])
        yield _Part(position, tuple(tiles[:count]), tiles[0].start - frame, stop + frame)
        tiles = tiles[count:]


def _fill_sparse(request: TileRequest) -> None:
    """Fill what tiles cover that are not stored."""
    if _level(request).counts.all():
        return
    for tile in _tiles(request):
        if not tile.size:
            for band, _, target in _places(request, tile):
                request.out[(band, *target)] = _fill(request)


def _tiles(request: TileRequest) -> Iterator[_Tile]:
    level = _level(request)
    (rows, columns), coding = level.grid, level.coding
    spans = [_blocks(s, b) for s, b in zip(request.window, level.block, strict=True)]
    for plane in sorted(set(request.bands)) if coding.interleave == "band" else (0,):
        for row in spans[0]:
            for column in spans[1]:
                i = (plane * rows + row) * columns + column
                yield _Tile(plane, row, column, int(level.offsets[i]), int(level.counts[i]))


def _blocks(pixels: slice, block: int) -> range:
    return range(pixels.start // block, -(-pixels.stop // block)) if pixels.stop > pixels.start else range(0)


def _neighbours(tiles: Sequence[_Tile]) -> int:
    """Return how many of the first tiles, which are in file order, are best fetched by one request."""
    stop = tiles[0].start + tiles[0].size
    for count, tile in enumerate(tiles[1:], 1):
        if tile.start - stop > _GAP or tile.start + tile.size - tiles[0].start > _LONGEST:
            return count
        stop = max(stop, tile.start + tile.size)
    return len(tiles)


def _byte_range(header: Header, part: _Part) -> ByteRange:
    return ByteRange(header.href, header.identity, part.start, part.stop - part.start, header.sign)


def _level(request: TileRequest) -> Level:
    return request.header.levels[request.level]


# --- Where the pixels go --------------------------------------------------------------------------------------------


def _places(request: TileRequest, tile: _Tile) -> list[tuple[slice, tuple[slice, slice], tuple[slice, slice]]]:
    """Return bands of `out`, pixels of the tile and pixels of `out` that belong together."""
    source, target = [], []
    for s, block, first in zip(request.window, _level(request).block, (tile.row, tile.column), strict=True):
        start = first * block
        lower, upper = max(s.start, start), min(s.stop, start + block)
        source.append(slice(lower - start, upper - start))
        target.append(slice(lower - s.start, upper - s.start))
    if _level(request).coding.interleave == "pixel":
        bands = [slice(0, len(request.bands))]
    else:
        bands = [slice(k, k + 1) for k, band in enumerate(request.bands) if band == tile.plane]
    return [(band, (source[0], source[1]), (target[0], target[1])) for band in bands]


def _use(request: TileRequest, part: _Part, data: bytes, scratch: NDArray[Any], tally: _Tally) -> NDArray[Any]:
    """Decode the tiles of a part into `out`; return the scratch tile for the next ones."""
    view, level = memoryview(data), _level(request)
    shape = (*level.block, level.coding.samples_per_tile)
    if scratch.shape != shape or scratch.dtype != request.header.dtype:
        scratch = np.empty(shape, request.header.dtype)
    for tile in part.tiles:
        try:
            _decode(request, tile, _bytes_of(tile, part, view, framed=request.header.framed), scratch)
        except CorruptTileError as error:
            facts = {"href": display(request.header.href), "transient": False, "retries": tally.retries}
            where = f"the tile in row {tile.row}, column {tile.column} ({tile.size} bytes from byte {tile.start})"
            tally.error = ReadError(f"{facts['href']}: {where} is damaged: {error}", **facts)
            break
    return scratch


def _bytes_of(tile: _Tile, part: _Part, view: memoryview, *, framed: bool) -> memoryview:
    """Return the bytes of a tile, checked against those that frame it, if they do."""
    start = tile.start - part.start
    stop = start + tile.size
    if framed:
        size = int.from_bytes(view[start - FRAME : start], "little")
        if size != tile.size:
            raise CorruptTileError(f"its size before it is {size}")
        if view[stop - FRAME : stop] != view[stop : stop + FRAME]:
            raise CorruptTileError("its last bytes are not those repeated after it")
    return view[start:stop]


def _decode(request: TileRequest, tile: _Tile, data: memoryview, scratch: NDArray[Any]) -> None:
    level = _level(request)
    rows = level.block[0] if level.tiled else min(level.block[0], level.shape[0] - tile.row * level.block[0])
    every = level.coding.interleave == "band" or request.bands == tuple(range(level.coding.samples))
    chosen = slice(None) if every else list(request.bands)
    places = [(request.out[(b, *to)].transpose(1, 2, 0), at) for b, at, to in _places(request, tile)]
    if every and len(places) == 1 and _alike(places[0][0], scratch):
        decode_tile(level.coding, data, rows, places[0][0])
        return
    decode_tile(level.coding, data, rows, scratch)
    for target, at in places:
        target[...] = scratch[at][..., chosen]


def _alike(target: NDArray[Any], scratch: NDArray[Any]) -> bool:
    """Whether a tile can be decoded into `target` as it is."""
    return target.shape == scratch.shape and target.dtype == scratch.dtype and target.flags.c_contiguous
