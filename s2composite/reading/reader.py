"""One window of many files read into one array ``(t, b, y, x)``, in memory that the next window uses again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ReadError
from s2composite.reading.bands import convert
from s2composite.reading.grid import Window
from s2composite.reading.plan import Patch, Piece, Share, Target, in_turn, opened_sources, requests_of, share_of
from s2composite.reading.sources import Source
from s2composite.reading.tiles import Begun, TileRequest, TileResult, begin_window
from s2composite.reading.warp import read_level, read_warped, warped_coverage
from s2composite.storage.files import is_remote

__all__ = ["FAILED", "OUTSIDE", "READ", "Failure", "Observations", "Pending", "ReadTally", "begin", "borrow", "held"]

_IDLE_SECONDS = 2.0  # how long memory that nobody uses is kept

_LOCK = threading.Lock()
_FREE: list[NDArray[np.uint8]] = []
_BACK: list[threading.Timer] = []  # the timer that gives the memory back, if one runs


@contextmanager
def borrow(size: int, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Lend a flat uninitialised array of `size` values; it must not be used after the block."""
    memory = _take(size * dtype.itemsize)
    try:
        yield memory[: size * dtype.itemsize].view(dtype)
    finally:
        _give(memory)


def held() -> int:
    """Return the bytes that are kept at the moment and used by nobody."""
    with _LOCK:
        return sum(memory.nbytes for memory in _FREE)


def _take(nbytes: int) -> NDArray[np.uint8]:
    with _LOCK:
        _cancel()
        fits = [i for i, memory in enumerate(_FREE) if memory.nbytes >= nbytes]
        if fits:
            return _FREE.pop(min(fits, key=lambda i: _FREE[i].nbytes))
        if _FREE:
            _FREE.pop()  # too small for windows of now: let it go instead of keeping both
    return np.empty(nbytes, np.uint8)


def _give(memory: NDArray[np.uint8]) -> None:
    with _LOCK:
        _FREE.append(memory)
        _cancel()
        timer = threading.Timer(_IDLE_SECONDS, _release)
        timer.daemon = True
        timer.start()
        _BACK.append(timer)


def _cancel() -> None:
    while _BACK:
        _BACK.pop().cancel()


def _release() -> None:
    with _LOCK:
        _FREE.clear()


READ, OUTSIDE, FAILED = 0, 1, 2  # values of `Observations.status`

# bytes of pixels that are decoded beside the window before they are put into it: more of them where that many are
# fetched at once, so that none has to wait for an answer
_ASIDE, _REMOTE_ASIDE = 2 << 20, 16 << 20

_REMOTE_READS = 8  # remote files read at once through GDAL: latency is what is waited for, not the processor


@dataclass(frozen=True, slots=True)
class ReadTally:
    """What reading a window has taken."""

    requests: int  # byte ranges asked for; those of GDAL are not known
    bytes: int  # their size together
    retries: int  # reads that were repeated after a transient failure
    decode: float  # seconds of decoding tiles, without waiting for them
    gdal: float  # seconds in GDAL, waiting included


class Failure(NamedTuple):
    """A part of a window in which a scene could not be read."""

    scene: int  # position of the scene
    part: Window  # of the stack's grid
    error: ReadError


@dataclass(frozen=True, slots=True)
class Observations:
    """What a window of a stack holds."""

    pixels: NDArray[Any]  # (t, b, y, x), native dtype; may be a view of pixel-interleaved memory (t, y, x, b)
    # (t, y, x): where files have all bands, and no mask or alpha band says that there are no data; None: nobody asked
    covered: NDArray[np.bool_] | None
    # (t,): 0 read, 1 the scene lies outside the window, 2 reading failed (pixels are the fill value)
    status: NDArray[np.uint8]
    failures: tuple[Failure, ...]  # the first of each scene in each part that failed
    tally: ReadTally

    def cut(self, place: Window) -> Observations:
        """Return a copy of a part, laid out in memory as the whole."""
        pixels = self.pixels[(..., *place)].copy(order="K")
        covered = None if self.covered is None else self.covered[(..., *place)].copy()
        return replace(self, pixels=pixels, covered=covered)


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """A share, and memory for what is read of it."""

    share: Share  # what is read
    out: NDArray[Any]  # (band, y, x): its bands, and its alpha band after them
    # (1, y, x): the file's mask, or where GDAL warped anything to; 0 where there is nothing. (band, y, x) where GDAL
    # reads the mask of each. None: not read.
    mask: NDArray[np.uint8] | None

    @classmethod
    def into(cls, share: Share, out: NDArray[Any], *, coverage: bool) -> _Reading:
        """Return the reading of a share into `out`; `coverage` tells whether anybody asks which pixels it covers."""
        wanted = share.masked or (coverage and share.warped)
        masks = len(share.bands) if share.masked and share.source.engine == "gdal" else 1
        return cls(share, out, np.empty((masks, *share.shape[1:]), np.uint8) if wanted else None)

    def requests(self) -> list[TileRequest]:
        """Return the tiles to decode."""
        return requests_of(self.share, self.out, self.mask)

    def valid(self) -> NDArray[np.bool_] | None:
        """Return which pixels neither mask nor alpha band leaves out: ``(1, y, x)`` or ``(band, y, x)``."""
        bands = len(self.share.source.part.file_bands)
        valid = None if self.mask is None else self.mask[:bands] != 0
        if len(self.share.bands) == bands:
            return valid
        opaque: NDArray[np.bool_] = self.out[-1:] != 0
        return opaque if valid is None else valid & opaque

    def numbers(self, fill: float) -> NDArray[Any]:
        """Return the bands of the stack, converted to its numbers."""
        source = self.share.source
        numbers = self.out[: len(source.part.file_bands)]
        if self.share.warped:
            convert(numbers, source.conversion, _warp_fill(source, fill), fill)
        else:
            convert(numbers, source.conversion, source.nodata, fill, self.valid())
        return numbers


def _warp_fill(source: Source, fill: float) -> float:
    """Return what GDAL writes where it warps nothing to: the stack's fill value, if the file's type can hold it."""
    dtype = source.header.dtype
    if dtype.kind == "f" or (np.isfinite(fill) and np.iinfo(dtype).min <= fill <= np.iinfo(dtype).max):
        return fill
    return 0.0 if source.nodata is None else source.nodata


_Outcome = tuple[Share, TileResult]  # A share and what became of it; what GDAL asked for counts as nothing asked for


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A window whose bytes are on their way."""

    window: Window  # that of a patch, if it is one
    target: Target
    # (t, b, y, x); written by `finish`, not before: one memory serves a window while the next is fetched
    pixels: NDArray[Any]
    opened: NDArray[np.bool_]  # (t,): whether the scene has any file
    shares: tuple[Share, ...]  # what is read, in order of scenes
    direct: tuple[_Reading, ...]  # those that are decoded where they go
    lost: tuple[tuple[int, ReadError], ...]  # scenes of which a file cannot be opened
    begun: Begun  # the tiles that are decoded where they go
    coverage: NDArray[np.uint16] | None  # (t, y, x): how many bands a pixel has; None: nobody asks

    def finish(self) -> Observations:
        """Decode the window. A file that fails does not stop the others: the caller decides what a failure means."""
        status = np.where(self.opened, np.uint8(OUTSIDE), np.uint8(FAILED)).astype(np.uint8)
        self._fill(status)
        outcomes = list(self._direct())
        outcomes += self._aside([share for share in self.shares if not share.direct])
        errors = dict(self.lost) | {share.scene: result.error for share, result in outcomes if result.error is not None}
        for failed in errors:
            status[failed] = FAILED
            self.pixels[failed] = self.target.fill
        covered = None if self.coverage is None else self.coverage == self.pixels.shape[1]
        failures = tuple(Failure(t, self.window, errors[t]) for t in sorted(errors))
        return Observations(self.pixels, covered, status, failures, _tally(outcomes))

    def close(self) -> None:
        """Give the window up."""
        self.begun.close()

    def _fill(self, status: NDArray[np.uint8]) -> None:
        """Fill scenes that no file covers entirely, and say which are covered at all."""
        covered = np.zeros(len(status), np.int64)
        for share in self.shares:
            status[share.scene] = READ
            if share.member == 0:
                covered[share.scene] += self._out(share).size
        for t in np.flatnonzero(covered < self.pixels[0].size):
            self.pixels[t] = self.target.fill

    def _out(self, share: Share) -> NDArray[Any]:
        """Return where a share's pixels go."""
        return self.pixels[(share.scene, share.rows(), *share.place)]

    def _direct(self) -> Iterator[_Outcome]:
        tiles, others = _by_engine(self.direct)
        yield from _outcomes(tiles, self.begun.finish())
        yield from _read_gdal(others, self.target)
        for reading in self.direct:
            reading.numbers(self.target.fill)
            self._cover(reading)

    def _aside(self, shares: Sequence[Share]) -> Iterator[_Outcome]:
        """Decode files beside the window, and put them into it: some at a time, the bytes of the next on their way."""
        asked: deque[_Batch] = deque()
        try:
            for batch in _batches(shares, self.pixels.dtype):
                asked.append(_Batch.ask(batch, self.pixels.dtype, coverage=self.coverage is not None))
                if len(asked) > 1:
                    yield from self._put_batch(asked.popleft())
            while asked:
                yield from self._put_batch(asked.popleft())
        finally:
            for given_up in asked:
                given_up.begun.close()

    def _put_batch(self, asked: _Batch) -> list[_Outcome]:
        fill = self.target.fill
        tiles, others = _by_engine(asked.readings)
        outcomes = list(_outcomes(tiles, asked.begun.finish()))
        outcomes += _read_gdal(others, self.target)
        raw = {id(reading.share): reading.numbers(fill) for reading in asked.readings}
        for unit in _units([reading.share for reading in asked.readings]):
            first = unit[0]
            if first.member == 0:
                for share in unit:
                    _put(raw[id(share)], share, self._out(share), fill)
            else:
                layer = np.full(self.pixels.shape[1:], fill, self.pixels.dtype)
                for share in unit:
                    _put(raw[id(share)], share, layer[(share.rows(), *share.place)], fill)
                _fuse(self.pixels[first.scene], layer, fill)
        for reading in asked.readings:
            self._cover(reading)
        return outcomes

    def _cover(self, reading: _Reading) -> None:
        """Count the bands that a file gives to each pixel; of several members, those of the first."""
        share = reading.share
        if self.coverage is None or share.member:
            return
        valid = reading.valid()
        bands = np.ones(share.shape[1:], np.uint16)
        if valid is not None:
            bands[~valid.all(0)] = 0
        out = self.coverage[(share.scene, *share.place)]
        given = np.empty_like(out)
        _put(bands[None], share, given[None], 0)
        out += given * np.uint16(len(share.source.part.file_bands))


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Files that are decoded beside a window together, their bytes on their way."""

    readings: Sequence[_Reading]  # what is read
    begun: Begun  # the tiles among it

    @classmethod
    def ask(cls, shares: Sequence[Share], dtype: np.dtype[Any], *, coverage: bool) -> _Batch:
        """Ask for the bytes of a batch."""
        readings = [_Reading.into(share, share.memory(dtype), coverage=coverage) for share in shares]
        return cls(readings, _begun(readings))


def _begun(readings: Sequence[_Reading]) -> Begun:
    """Ask for the tiles among some readings."""
    return begin_window([request for reading in _by_engine(readings)[0] for request in reading.requests()])


def _outcomes(readings: Sequence[_Reading], results: Sequence[TileResult]) -> Iterator[_Outcome]:
    """Yield what became of readings of tiles: a file whose mask cannot be read has failed."""
    rest = iter(results)
    for reading in readings:
        mine = list(islice(rest, len(reading.requests())))
        error = next((result.error for result in mine if result.error is not None), None)
        sums = (sum(r.retries for r in mine), sum(r.requests for r in mine), sum(r.bytes for r in mine))
        yield reading.share, TileResult(error, *sums, sum(r.seconds for r in mine))


def _tally(outcomes: Sequence[_Outcome]) -> ReadTally:
    results = [result for _, result in outcomes]
    seconds = {"tiles": 0.0, "gdal": 0.0}
    for share, result in outcomes:
        seconds[share.source.engine] += result.seconds
    asked = (sum(r.requests for r in results), sum(r.bytes for r in results), sum(r.retries for r in results))
    return ReadTally(*asked, seconds["tiles"], seconds["gdal"])


def begin(
    sources: Sequence[tuple[int, Source]],
    opened: NDArray[np.bool_],
    target: Target,
    piece: Piece,
    pixels: NDArray[Any],
    *,
    coverage: bool,
) -> Pending:
    """Ask for the bytes of a window of all scenes."""
    found, lost = opened_sources(sources)
    parts = (piece.share(*f) if isinstance(piece, Patch) else share_of(*f, piece, target) for f in found)
    shares = in_turn([share for share in parts if share is not None])
    direct = [
        _Reading.into(share, pixels[(share.scene, share.rows(), *share.place)], coverage=coverage)
        for share in shares
        if share.direct
    ]
    counts = np.zeros((len(pixels), *pixels.shape[2:]), np.uint16) if coverage else None
    window = piece.window if isinstance(piece, Patch) else piece
    return Pending(window, target, pixels, opened, shares, tuple(direct), lost, _begun(direct), counts)


def _by_engine(readings: Sequence[_Reading]) -> tuple[list[_Reading], list[_Reading]]:
    tiles = [reading for reading in readings if reading.share.source.engine == "tiles"]
    return tiles, [reading for reading in readings if reading.share.source.engine != "tiles"]


def _units(shares: Sequence[Share]) -> list[list[Share]]:
    """Group shares by scene and member, those that write first before those that fill what is left."""
    units: dict[tuple[int, int], list[Share]] = {}
    for share in shares:
        units.setdefault((share.member, share.scene), []).append(share)
    return [units[key] for key in sorted(units)]


def _batches(shares: Sequence[Share], dtype: np.dtype[Any]) -> Iterator[list[Share]]:
    """Yield shares, units together, as many at once as there is memory for."""
    limit = _REMOTE_ASIDE if any(is_remote(share.source.header.href) for share in shares) else _ASIDE
    batch: list[Share] = []
    size = 0
    for unit in _units(shares):
        more = sum(int(np.prod(share.shape)) * dtype.itemsize for share in unit)
        if batch and size + more > limit:
            yield batch
            batch, size = [], 0
        batch += unit
        size += more
    if batch:
        yield batch


def _put(raw: NDArray[Any], share: Share, out: NDArray[Any], fill: float) -> None:
    """Put decoded pixels where they go: repeated, picked, or as they are."""
    if share.index is not None:
        bands = len(raw)
        if bands > 1 and share.source.header.interleave == "pixel":
            flat = np.moveaxis(raw, 0, 2).reshape(-1, bands)
            out[...] = np.moveaxis(flat[share.index], 2, 0)
        else:
            for band, target in zip(raw, out, strict=True):
                np.take(band.reshape(-1), share.index, out=target, mode="clip")
        outside = share.index < 0
        if outside.any():
            out[:, outside] = fill
    elif share.inner is not None:
        f = share.source.factor
        out[...] = raw.repeat(f, axis=1).repeat(f, axis=2)[(slice(None), *share.inner)]
    else:
        out[...] = raw


def _fuse(pixels: NDArray[Any], layer: NDArray[Any], fill: float) -> None:
    """Take a later member's observations where there is none yet, or one that lacks a band it has."""
    missing, lacking = _is(pixels, fill), _is(layer, fill)
    better = missing.all(0) | (missing.any(0) & ~lacking.any(0))
    np.copyto(pixels, layer, where=better)


def _is(numbers: NDArray[Any], fill: float) -> NDArray[np.bool_]:
    """Return where numbers are the fill value, which may be NaN."""
    found: NDArray[np.bool_] = np.isnan(numbers) if np.isnan(fill) else numbers == fill
    return found


def _read_gdal(readings: Sequence[_Reading], target: Target) -> list[_Outcome]:
    def read(reading: _Reading) -> tuple[int, ReadError | None]:
        try:
            return _read_one(reading, target), None
        except ReadError as error:
            return 0, error

    begun = perf_counter()
    if any(is_remote(reading.share.source.header.href) for reading in readings):
        with ThreadPoolExecutor(_REMOTE_READS) as pool:
            results = list(pool.map(read, readings))
    else:
        results = [read(reading) for reading in readings]
    # they share the time in which several of them are read
    each = (perf_counter() - begun) / max(len(readings), 1)
    return [
        (reading.share, TileResult(error, n, 0, 0, each)) for reading, (n, error) in zip(readings, results, strict=True)
    ]


def _read_one(reading: _Reading, target: Target) -> int:
    """Read a share through GDAL; return the retries that were needed."""
    share, source = reading.share, reading.share.source
    header, level = source.header, source.level
    if not share.warped:
        return read_level(header, share.bands, level, share.window, reading.out, reading.mask)
    window, bands = target.in_whole(share.window), source.part.file_bands
    by_number = not header.mask_kind and source.alpha is None
    nodata = 0.0 if by_number and source.nodata is None else source.nodata
    fill = _warp_fill(source, target.fill)
    retries = read_warped(
        header,
        bands,
        level,
        target.whole,
        window,
        resampling=source.resampling,
        nodata=nodata,
        fill=fill,
        alpha=source.alpha is not None,
        out=reading.out,
    )
    if reading.mask is not None and by_number:
        reading.mask[0] = warped_coverage(header, level, target.whole, window, source.resampling)
    elif reading.mask is not None:
        reading.mask[0] = (~_is(reading.out, fill)).any(axis=0)
    return retries
