"""Tiles: windows of many files, read by byte range and decoded directly into the array that the kernels read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ReadError
from s2composite.geotiff.codecs import CorruptTileError, decode_blosc_rows, decode_tile
from s2composite.geotiff.header import Header
from s2composite.geotiff.structure import FRAME, Level
from s2composite.reading.grid import intersection, within
from s2composite.storage.files import display
from s2composite.storage.http import ByteRange, Fetching, Identity
from s2composite.storage.retry import Retry

__all__ = [
    "KEPT_BYTES",
    "KeptTiles",
    "PendingTiles",
    "TileRequest",
    "TileResult",
    "begin_window",
    "cost_of",
    "read_tiles",
    "read_window",
]

# gap in bytes between two tiles that is read rather than skipped: another request would take longer
_GAP = 1 << 16

# maximum bytes of one request (unless one tile is larger), so that requests can run concurrently
_LONGEST = 8 << 20


# 146 dates of two bands at 20 m, read in pieces of a tile at 10 m, take 153 MB
KEPT_BYTES = 256 << 20


@dataclass(slots=True, eq=False)
class KeptTiles:
    """Decoded tiles of which one piece of a window after the other needs a part, as long as there is room."""

    room: int = KEPT_BYTES
    # By file or object, first byte, and row: a block of Blosc at the border of two tiles may be the first of both.
    tiles: dict[tuple[str, int, int], NDArray[Any]] = field(default_factory=dict)

    def keep(self, key: tuple[str, int, int], tile: NDArray[Any]) -> None:
        """Keep a copy of a tile, if there is room."""
        if tile.nbytes <= self.room:
            self.tiles[key] = tile.copy()
            self.room -= tile.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class TileRequest:
    """A window of one file, and the destination of its pixels."""

    header: Header  # the file, or the mask of one (header.mask)
    level: int  # 0: full resolution, then the overviews
    window: tuple[slice, slice]  # (y, x) in pixels of that level, inside it
    bands: tuple[int, ...]  # bands of the file, counted from 0
    # (bands, y, x). Fastest as a view of (y, x, band) memory of the header's dtype, as tiles are stored.
    out: NDArray[Any]
    # (rows, columns) of the tiles that the window touches: which to decode, the others are nodata; None: all
    needed: NDArray[np.bool_] | None = None
    kept: KeptTiles | None = None  # where tiles are looked up and kept; None: nobody needs more of them


@dataclass(slots=True)
class TileResult:
    """The outcome of a request, so far."""

    # why it failed (href, transient, retries); then `out` is filled with nodata; None: success
    error: ReadError | None = None
    retries: int = 0  # repeated reads
    requests: int = 0  # byte ranges requested
    bytes: int = 0  # their total size
    seconds: float = 0.0  # of decoding, without waiting for bytes


class _Tile(NamedTuple):
    """A tile that a request needs."""

    plane: int  # band of the file if each band has its own tiles, else 0
    row: int  # of tiles
    column: int  # of tiles
    source: int  # which of the level's objects holds it; 0 if it has none
    start: int  # first byte in the file or object
    size: int  # bytes; 0: it is not stored, or not needed
    needed: bool


class _TileRun(NamedTuple):
    """Neighbouring tiles of one request, fetched together."""

    request: int  # position of the request
    tiles: tuple[_Tile, ...]  # by first byte, of one file or object
    range: ByteRange  # the bytes to fetch


def read_tiles(
    header: Header, level: int, window: tuple[slice, slice], bands: tuple[int, ...], out: NDArray[Any]
) -> TileResult:
    """Read a window of one file into `out`; see `TileRequest`."""
    (result,) = read_window([TileRequest(header, level, window, bands, out)])
    if result.error is not None:
        raise result.error
    return result


def read_window(requests: Sequence[TileRequest], *, retry: Retry | None = None) -> tuple[TileResult, ...]:
    """Read windows of many files, decoding in the calling thread while the next bytes are fetched.

    Safe to call from many threads at once. Holds compressed bytes of at most an eighth of the pixels (at least 8 MiB,
    at most 64 MiB) and one decoded tile in addition to `out`.
    """
    return begin_window(requests, retry=retry).finish()


def cost_of(request: TileRequest) -> tuple[int, int]:
    """Return the number of reads of a request and their bytes, without reading."""
    runs = list(_plan(0, request))
    return len(runs), sum(run.range.size for run in runs)


def begin_window(requests: Sequence[TileRequest], *, retry: Retry | None = None) -> PendingTiles:
    """Request the bytes of windows of remote files, and return immediately; see `read_window`.

    This lets the next window be fetched while this one is decoded. `out` is written only when the window is finished,
    so consecutive windows may share memory.
    """
    runs = [run for i, request in enumerate(requests) for run in _plan(i, request)]
    budget = min(max(sum(r.out.nbytes for r in requests) // 8, 8 << 20), 64 << 20)
    return PendingTiles(requests, runs, Fetching([run.range for run in runs], retry, budget))


@dataclass(frozen=True, slots=True, eq=False)
class PendingTiles:
    """Windows whose bytes are being fetched."""

    requests: Sequence[TileRequest]
    runs: Sequence[_TileRun]
    fetching: Fetching

    def finish(self) -> tuple[TileResult, ...]:
        """Decode the windows as their bytes arrive; see `read_window`. Call it once."""
        tallies = tuple(TileResult() for _ in self.requests)
        for request in self.requests:
            if not ((request.needed is None or request.needed.all()) and _level(request).counts.all()):
                for tile in _tiles(request):
                    if not tile.size:  # not stored, or not needed
                        _fill_tile(request, tile)
        scratch, missing = np.empty((0, 0, 0)), set(range(len(self.runs)))
        for i, fetched in self.fetching:
            missing.remove(i)
            run = self.runs[i]
            tally = tallies[run.request]
            if run.range.identity is None and fetched.error is not None and fetched.error.__dict__.get("missing"):
                for tile in run.tiles:  # a chunk that nobody wrote
                    _fill_tile(self.requests[run.request], tile)
                continue
            tally.error = tally.error or fetched.error
            tally.retries += fetched.retries
            tally.requests += 1
            tally.bytes += len(fetched.data)
            if tally.error is None:
                arrived = perf_counter()
                scratch = _decode_run(self.requests[run.request], run, fetched.data, scratch, tally)
                tally.seconds += perf_counter() - arrived
        for i in missing:
            tally, href = tallies[self.runs[i].request], display(self.runs[i].range.href)
            why = f"{href}: reading it was cancelled"
            tally.error = tally.error or ReadError(why, href=href, transient=True, retries=tally.retries)
        for request, tally in zip(self.requests, tallies, strict=True):
            if tally.error is not None:
                request.out[...] = _fill(request)
        return tallies

    def close(self) -> None:
        """Cancel the windows without decoding them."""
        self.fetching.close()


def _fill(request: TileRequest) -> float:
    """Return the value of pixels that are not stored: the nodata value that its bands share."""
    return request.header.nodata_of(request.bands[0]) or 0


def _fill_tile(request: TileRequest, tile: _Tile) -> None:
    objects = _level(request).objects
    fill = _fill(request) if objects is None or not tile.needed else objects.fill
    for band, _, place in _places(request, tile):
        request.out[(band, *place)] = fill


# --- Which bytes ----------------------------------------------------------------------------------------------------


def _plan(position: int, request: TileRequest) -> Iterator[_TileRun]:
    """Yield the tiles of a request, in file order, grouped by those to fetch together."""
    frame = FRAME if request.header.framed else 0
    tiles = sorted((tile for tile in _tiles(request) if tile.size), key=lambda tile: (tile.source, tile.start))
    first = 0
    while first < len(tiles):
        start = tiles[first].start
        stop, last = start + tiles[first].size, first + 1
        while last < len(tiles):
            end = tiles[last].start + tiles[last].size
            other = tiles[last].source != tiles[first].source
            if other or tiles[last].start - stop > _GAP or end - start > _LONGEST:
                break
            stop, last = max(stop, end), last + 1
        href, identity = _file_of(request, tiles[first])
        where = ByteRange(href, identity, start - frame, stop - start + 2 * frame, request.header.sign)
        yield _TileRun(position, tuple(tiles[first:last]), where)
        first = last


def _tiles(request: TileRequest) -> Iterator[_Tile]:
    level = _level(request)
    (rows, columns), coding = level.grid, level.coding
    row_span, column_span = (
        range(s.start // b, -(-s.stop // b)) if s.stop > s.start else range(0)
        for s, b in zip(request.window, level.block, strict=True)
    )
    for plane in sorted(set(request.bands)) if coding.interleave == "band" else (0,):
        for row in row_span:
            for column in column_span:
                i = (plane * rows + row) * columns + column
                at = row - row_span.start, column - column_span.start
                needed = request.needed is None or bool(request.needed[at])
                source = 0 if level.objects is None else int(level.objects.of_tile[i])
                size = int(level.counts[i]) if needed else 0
                yield _Tile(plane, row, column, source, int(level.offsets[i]), size, needed)


def _file_of(request: TileRequest, tile: _Tile) -> tuple[str, Identity | None]:
    """Return the file or object that holds a tile, and what it must still be."""
    objects = _level(request).objects
    if objects is None:
        return request.header.href, request.header.identity
    return objects.hrefs[tile.source], objects.identities[tile.source]


def _level(request: TileRequest) -> Level:
    return request.header.levels[request.level]


# --- Where the pixels go --------------------------------------------------------------------------------------------


def _places(request: TileRequest, tile: _Tile) -> list[tuple[slice, tuple[slice, slice], tuple[slice, slice]]]:
    """Return the bands of `out`, the pixels of the tile and the matching pixels of `out`."""
    (row, column), (height, width) = (tile.row, tile.column), _level(request).block
    place = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
    part = intersection(request.window, place)
    source, target = within(place, part), within(request.window, part)
    if _level(request).coding.interleave == "pixel":
        bands = [slice(0, len(request.bands))]
    else:
        bands = [slice(k, k + 1) for k, band in enumerate(request.bands) if band == tile.plane]
    return [(band, source, target) for band in bands]


def _decode_run(
    request: TileRequest, run: _TileRun, data: bytes, scratch: NDArray[Any], tally: TileResult
) -> NDArray[Any]:
    """Decode the tiles of a run into `out`; return the scratch tile for the next ones."""
    view, level, header = memoryview(data), _level(request), request.header
    shape = (*level.block, level.coding.samples_per_tile)
    if scratch.shape != shape or scratch.dtype != header.dtype:
        scratch = np.empty(shape, header.dtype)
    for tile in run.tiles:
        try:
            start = tile.start - run.range.start
            stop = start + tile.size
            if header.framed:
                size = int.from_bytes(view[start - FRAME : start], "little")
                if size != tile.size:
                    raise CorruptTileError(f"its size before it is {size}")  # noqa: TRY301 - as the decoder does
                if view[stop - FRAME : stop] != view[stop : stop + FRAME]:
                    raise CorruptTileError("its last bytes are not those repeated after it")  # noqa: TRY301
            _decode(request, tile, view[start:stop], scratch)
        except CorruptTileError as error:
            href = display(run.range.href)
            where = f"the tile in row {tile.row}, column {tile.column} ({tile.size} bytes from byte {tile.start})"
            why = f"{href}: {where} is damaged: {error}"
            tally.error = ReadError(why, href=href, transient=False, retries=tally.retries)
            break
    return scratch


def _decode(request: TileRequest, tile: _Tile, data: memoryview, scratch: NDArray[Any]) -> None:
    level = _level(request)
    rows = level.block[0] if level.tiled else min(level.block[0], level.shape[0] - tile.row * level.block[0])
    every = level.coding.interleave == "band" or request.bands == tuple(range(level.coding.samples))
    chosen = slice(None) if every else list(request.bands)
    places = [(request.out[(b, *to)].transpose(1, 2, 0), at) for b, at, to in _places(request, tile)]
    if every and len(places) == 1:
        target = places[0][0]
        if target.shape == scratch.shape and target.dtype == scratch.dtype and target.flags.c_contiguous:
            _decode_pixels(level, tile, data, rows, target)
            return
    kept, key = request.kept, (_file_of(request, tile)[0], tile.start, tile.row)
    whole = None if kept is None else kept.tiles.get(key)
    if whole is None:
        whole = scratch
        _decode_pixels(level, tile, data, rows, whole)
        if kept is not None:
            kept.keep(key, whole)
    for target, at in places:
        target[...] = whole[at][..., chosen]


def _decode_pixels(level: Level, tile: _Tile, data: memoryview, rows: int, out: NDArray[Any]) -> None:
    blocks = level.objects.blosc[tile.source] if level.objects is not None and level.objects.blosc else None
    if level.objects is not None and level.coding.compression == "NONE" and len(data) != out.nbytes:
        raise CorruptTileError(f"it holds {len(data)} bytes instead of {out.nbytes}")
    if blocks is None:
        decode_tile(level.coding, data, rows, out)
    else:  # some rows of a chunk
        first = tile.row % (blocks.size // out.nbytes) * out.nbytes
        decode_blosc_rows(blocks, data, tile.start, first, out)
