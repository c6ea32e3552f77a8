"""Read a window of many files into one array ``(t, b, y, x)``, in memory that is reused for the next window."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from math import prod
from operator import attrgetter
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ReadError
from s2composite.reading.bands import convert
from s2composite.reading.grid import Window
from s2composite.reading.headers import opened_sources
from s2composite.reading.plan import (
    Piece,
    ReadGrid,
    Subwindow,
    requests_of,
    subwindow_of,
    window_of,
)
from s2composite.reading.sources import FileSource
from s2composite.reading.tiles import KeptTiles, PendingTiles, TileRequest, TileResult, begin_window
from s2composite.reading.warp import read_level, read_warped, warped_coverage
from s2composite.storage.files import is_remote

__all__ = [
    "FAILED",
    "OUTSIDE",
    "READ",
    "PendingRead",
    "ReadFailure",
    "ReadTally",
    "WindowObservations",
    "begin",
    "borrow",
    "held",
    "holds_any",
]

_IDLE_SECONDS = 2.0  # how long unused memory is kept

_LOCK = threading.Lock()
_FREE: list[NDArray[np.uint8]] = []
_BACK: list[threading.Timer] = []  # the timer that frees the memory, if running


@contextmanager
def borrow(size: int, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Lend a flat uninitialised array of `size` values; it must not be used after the block."""
    nbytes = size * dtype.itemsize
    memory = None
    with _LOCK:
        _cancel()
        fits = [i for i, kept in enumerate(_FREE) if kept.nbytes >= nbytes]
        if fits:
            memory = _FREE.pop(min(fits, key=lambda i: _FREE[i].nbytes))
        elif _FREE:
            _FREE.pop()  # too small for current windows: free it instead of keeping both
    if memory is None:
        memory = np.empty(nbytes, np.uint8)
    try:
        yield memory[:nbytes].view(dtype)
    finally:
        with _LOCK:
            _FREE.append(memory)
            _cancel()
            timer = threading.Timer(_IDLE_SECONDS, _release)
            timer.daemon = True
            timer.start()
            _BACK.append(timer)


def held() -> int:
    """Return the bytes currently kept but unused."""
    with _LOCK:
        return sum(memory.nbytes for memory in _FREE)


def _cancel() -> None:
    while _BACK:
        _BACK.pop().cancel()


def _release() -> None:
    with _LOCK:
        _FREE.clear()


READ, OUTSIDE, FAILED = 0, 1, 2  # values of `WindowObservations.status`

# bytes of pixels that are decoded outside the window before they are copied into it: more for remote files, so that
# enough requests are in flight
_ASIDE, _REMOTE_ASIDE = 2 << 20, 16 << 20

_REMOTE_READS = 8  # remote files read concurrently through GDAL: reads wait for the network, not the CPU


@dataclass(frozen=True, slots=True)
class ReadTally:
    """Cost of reading a window."""

    requests: int  # byte ranges fetched; GDAL's are not known
    bytes: int  # their total size
    retries: int  # reads repeated after a transient failure
    decode: float  # seconds of decoding tiles, without waiting for bytes
    gdal: float  # seconds in GDAL, including waiting


class ReadFailure(NamedTuple):
    """A scene that could not be read in a window, or in a part of it."""

    scene: int  # position of the scene
    error: ReadError


@dataclass(frozen=True, slots=True)
class WindowObservations:
    """The observations of a window of a stack."""

    pixels: NDArray[Any]  # (t, b, y, x), native dtype; may be a view of pixel-interleaved memory (t, y, x, b)
    # (t, y, x): where files have all bands and no mask or alpha band marks nodata; None: not requested
    covered: NDArray[np.bool_] | None
    # (t,): 0 read, at least in part, 1 the scene lies outside the window, 2 reading failed (pixels are the fill value)
    status: NDArray[np.uint8]
    failures: tuple[ReadFailure, ...]  # the first of each scene
    tally: ReadTally
    lost: NDArray[np.bool_] | None = None  # (t, y, x): pixels of tiles that cannot be read; None: there are none

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which scenes could not be read, or not all of them: ``(t,)``."""
        failed: NDArray[np.bool_] = self.status == FAILED
        return failed if self.lost is None else failed | self.lost.any(axis=(1, 2))

    @property
    def usable(self) -> NDArray[np.bool_] | None:
        """Where files cover pixels, in tiles that can be read: ``(t, y, x)``; None: everywhere."""
        if self.lost is None:
            return self.covered
        return ~self.lost if self.covered is None else self.covered & ~self.lost

    def put(self, t: int, place: tuple[Any, Any], part: WindowObservations) -> None:
        """Replace the pixels of scene `t` at ``place (y, x)`` by those of a part read of that scene alone."""
        here = self.pixels[t][(slice(None), *place)]
        self.pixels[t][(slice(None), *place)] = part.pixels[0].reshape(here.shape)
        if self.covered is not None and part.covered is not None:
            self.covered[t][place] = part.covered[0].reshape(here.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """The part of a file read for a window, and memory for it."""

    sub: Subwindow
    out: NDArray[Any]  # (band, y, x): its bands, then its alpha band
    # (1, y, x): the file's mask, or the pixels that GDAL warped; 0 where there is no data. (band, y, x) if GDAL reads
    # the mask of each band. None: not read.
    mask: NDArray[np.uint8] | None
    # (y, x) of `sub.place`: which pixels are needed. Tiles without any are not decoded, and GDAL reads nothing if there
    # are none. None: all are needed.
    wanted: NDArray[np.bool_] | None
    requests: list[TileRequest]  # the tiles to decode; empty if GDAL reads it

    @classmethod
    def into(
        cls,
        sub: Subwindow,
        out: NDArray[Any],
        *,
        coverage: bool,
        wanted: NDArray[np.bool_] | None,
        kept: KeptTiles | None = None,
    ) -> _Reading:
        """Return the reading into `out`.

        `coverage`: whether covered pixels are recorded. ``wanted (t, y, x)``: which pixels of the window are needed.
        """
        masked = sub.masked or (coverage and sub.warped)
        masks = len(sub.bands) if sub.masked and sub.source.engine != "tiles" else 1
        mask = np.empty((masks, *sub.shape[1:]), np.uint8) if masked else None
        need = None if wanted is None else wanted[(sub.scene, *sub.place)]
        requests = requests_of(sub, out, mask, need) if sub.source.engine == "tiles" else []
        if sub.source.factor > 1:  # other pieces of the window need other parts of these tiles
            requests = [replace(request, kept=kept) for request in requests]
        return cls(sub, out, mask, need, requests)

    @property
    def whole(self) -> bool:
        """Whether GDAL or zarr reads it; False if no pixel is needed."""
        return self.sub.source.engine != "tiles" and (self.wanted is None or bool(self.wanted.any()))

    def valid(self) -> NDArray[np.bool_] | None:
        """Return the pixels that are valid by mask and alpha band: ``(1, y, x)`` or ``(band, y, x)``."""
        bands = len(self.sub.source.part.file_bands)
        valid = None if self.mask is None else self.mask[:bands] != 0
        if len(self.sub.bands) == bands:
            return valid
        opaque: NDArray[np.bool_] = self.out[-1:] != 0
        return opaque if valid is None else valid & opaque

    def convert(self, fill: float) -> NDArray[Any]:
        """Return the bands of the stack, converted to stack values in place."""
        source = self.sub.source
        numbers = self.out[: len(source.part.file_bands)]
        if source.engine != "tiles" and not self.whole:
            numbers[...] = fill
            if self.mask is not None:
                self.mask[...] = 0
        elif self.sub.warped:
            convert(numbers, source.conversion, _warp_fill(source, fill), fill)
        else:
            convert(numbers, source.conversion, source.nodata, fill, self.valid())
        return numbers


def _warp_fill(source: FileSource, fill: float) -> float:
    """Return the value that GDAL writes to pixels without data: the stack's fill value, if it fits the file's type."""
    dtype = source.header.dtype
    if dtype.kind == "f" or (np.isfinite(fill) and np.iinfo(dtype).min <= fill <= np.iinfo(dtype).max):
        return fill
    return 0.0 if source.nodata is None else source.nodata


_Outcome = tuple[Subwindow, list[TileResult]]  # requests by GDAL are not counted


@dataclass(frozen=True, slots=True, eq=False)
class PendingRead:
    """A window whose bytes are being fetched."""

    window: Window  # that of a tile selection, if it is one
    target: ReadGrid
    # (t, b, y, x); written only by `finish`: the next window is fetched while this memory is still in use
    pixels: NDArray[Any]
    status: NDArray[np.uint8]  # (t,): as in `WindowObservations`, if nothing fails
    subwindows: tuple[Subwindow, ...]  # those with needed pixels, in order of scenes
    direct: tuple[_Reading, ...]  # those that are decoded in place
    tiles: PendingTiles  # of `direct`
    lost: tuple[tuple[int, ReadError], ...]  # scenes with a file that cannot be opened
    coverage: NDArray[np.uint16] | None  # (t, y, x): number of bands a pixel has; None: not requested
    wanted: NDArray[np.bool_] | None  # (t, y, x): which pixels are needed; None: all
    needed: NDArray[np.bool_]  # (t,): scenes with needed pixels
    kept: KeptTiles | None  # tiles that other pieces of the window need, too

    def finish(self) -> WindowObservations:
        """Decode the window. If a file fails, the others are still read; the caller handles the failures."""
        fill, status = self.target.fill, self.status.copy()
        filled = np.zeros(len(status), np.int64)
        for sub in self.subwindows:
            if sub.member == 0:
                filled[sub.scene] += self.pixels[(sub.scene, sub.rows(), *sub.place)].size
        # scenes that no file covers entirely
        self.pixels[(filled < self.pixels[0].size) & self.needed] = fill
        outcomes = _read(self.direct, self.tiles, self.target)
        for reading in self.direct:
            reading.convert(fill)
            self._count_coverage(reading)
        outcomes += self._decode_buffered([sub for sub in self.subwindows if not sub.direct])
        errors, seconds = dict(self.lost), {True: 0.0, False: 0.0}
        for sub, results in outcomes:
            # a file whose mask cannot be read has failed
            if (error := next((result.error for result in results if result.error is not None), None)) is not None:
                errors[sub.scene] = error
            seconds[sub.source.engine == "tiles"] += sum(result.seconds for result in results)
        for failed in errors:
            status[failed] = FAILED
            self.pixels[failed] = fill
        covered = None if self.coverage is None else self.coverage == self.pixels.shape[1]
        failures = tuple(ReadFailure(t, errors[t]) for t in sorted(errors))
        every = [result for _, results in outcomes for result in results]
        sums = (sum(r.requests for r in every), sum(r.bytes for r in every), sum(r.retries for r in every))
        tally = ReadTally(*sums, decode=seconds[True], gdal=seconds[False])
        return WindowObservations(self.pixels, covered, status, failures, tally)

    def close(self) -> None:
        """Cancel the window."""
        self.tiles.close()

    def _decode_buffered(self, subwindows: Sequence[Subwindow]) -> list[_Outcome]:
        """Decode files outside the window and copy them into it, some at a time, while the next are fetched."""
        outcomes: list[_Outcome] = []
        pending: deque[tuple[list[list[_Reading]], PendingTiles]] = deque()
        coverage, dtype = self.coverage is not None, self.pixels.dtype
        try:
            for batch in _batches(subwindows, dtype):
                units = [
                    [
                        _Reading.into(sub, sub.memory(dtype), coverage=coverage, wanted=self.wanted, kept=self.kept)
                        for sub in unit
                    ]
                    for unit in batch
                ]
                pending.append((units, _begin_tiles(chain(*units))))
                if len(pending) > 1:
                    outcomes += self._put_batch(*pending.popleft())
            while pending:
                outcomes += self._put_batch(*pending.popleft())
        finally:
            for _, tiles in pending:
                tiles.close()
        return outcomes

    def _put_batch(self, units: Sequence[Sequence[_Reading]], tiles: PendingTiles) -> list[_Outcome]:
        fill = self.target.fill
        outcomes = _read([*chain(*units)], tiles, self.target)
        for unit in units:
            first, pixels = unit[0].sub, self.pixels[unit[0].sub.scene]
            layer = np.full(pixels.shape, fill, pixels.dtype) if first.member else pixels
            for reading in unit:
                sub = reading.sub
                _put(reading.convert(fill), sub, layer[(sub.rows(), *sub.place)], fill)
                self._count_coverage(reading)
            if first.member:
                # use a later member where there is no observation yet, or one that lacks a band this member has
                missing, lacking = _equals(pixels, fill), _equals(layer, fill)
                np.copyto(pixels, layer, where=missing.all(0) | (missing.any(0) & ~lacking.any(0)))
        return outcomes

    def _count_coverage(self, reading: _Reading) -> None:
        """Count the bands that a file provides for each pixel; with several members, those of the first."""
        sub = reading.sub
        if self.coverage is None or sub.member:
            return
        valid = reading.valid()
        bands = np.ones(sub.shape[1:], np.uint16)
        if valid is not None:
            bands[~valid.all(0)] = 0
        out = self.coverage[(sub.scene, *sub.place)]
        given = np.empty_like(out)
        _put(bands[None], sub, given[None], 0)
        out += given * np.uint16(len(sub.source.part.file_bands))


def begin(
    sources: Sequence[tuple[int, FileSource]],
    opened: NDArray[np.bool_],
    target: ReadGrid,
    piece: Piece,
    pixels: NDArray[Any],
    *,
    coverage: bool,
    wanted: NDArray[np.bool_] | None = None,
    kept: KeptTiles | None = None,
) -> PendingRead:
    """Request the bytes of a window of all scenes.

    `sources` are the files that may touch the window, each with the position of its scene, in order of scenes and
    members. `pixels` is ``(t, b, y, x)``, uninitialised. `coverage`: whether to record which pixels files cover.
    ``wanted (t, y, x)``: which pixels are needed (None: all); other pixels, and scenes without any, are undefined.
    """
    readable, lost = opened_sources(sources)
    subwindows: list[Subwindow] = []
    members: dict[int, dict[int, int]] = {}  # of each scene, those that touch the window
    for t, source in readable:
        if (sub := subwindow_of(t, source, piece, target)) is not None:
            turns = members.setdefault(t, {})
            subwindows.append(replace(sub, member=turns.setdefault(source.member, len(turns))))
    status = np.where(opened, np.uint8(OUTSIDE), np.uint8(FAILED)).astype(np.uint8)
    status[[sub.scene for sub in subwindows]] = READ
    needed = np.ones(len(pixels), bool) if wanted is None else holds_any(wanted)
    asked = tuple(sub for sub in subwindows if needed[sub.scene])
    direct = tuple(
        _Reading.into(sub, pixels[(sub.scene, sub.rows(), *sub.place)], coverage=coverage, wanted=wanted)
        for sub in asked
        if sub.direct
    )
    counts = np.zeros((len(pixels), *pixels.shape[2:]), np.uint16) if coverage else None
    window, tiles = window_of(piece), _begin_tiles(direct)
    return PendingRead(window, target, pixels, status, asked, direct, tiles, lost, counts, wanted, needed, kept)


def holds_any(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which planes of ``(t, y, x)`` hold a marked pixel: most do in one of a few, which are looked at first."""
    found: NDArray[np.bool_] = np.asarray(marked[:, ::32, ::32].any(axis=(1, 2)))
    rest = np.flatnonzero(~found)
    found[rest] = [marked[t].any() for t in rest]
    return found


def _begin_tiles(readings: Iterable[_Reading]) -> PendingTiles:
    return begin_window([request for reading in readings for request in reading.requests])


def _read(readings: Sequence[_Reading], tiles: PendingTiles, target: ReadGrid) -> list[_Outcome]:
    """Decode the tiles of readings as they arrive, then read the others through GDAL."""
    results = iter(tiles.finish())
    outcomes: list[_Outcome] = [
        (reading.sub, list(islice(results, len(reading.requests))))
        for reading in readings
        if reading.sub.source.engine == "tiles"
    ]
    others = [reading for reading in readings if reading.whole]

    def read(reading: _Reading) -> tuple[int, ReadError | None]:
        try:
            return _read_gdal(reading, target), None
        except ReadError as error:
            return 0, error

    begun = perf_counter()
    if any(is_remote(reading.sub.source.header.href) for reading in others):
        with ThreadPoolExecutor(_REMOTE_READS) as pool:
            retries = list(pool.map(read, others))
    else:
        retries = [read(reading) for reading in others]
    # files read concurrently share the elapsed time
    each = (perf_counter() - begun) / max(len(others), 1)
    return outcomes + [
        (reading.sub, [TileResult(error, n, seconds=each)]) for reading, (n, error) in zip(others, retries, strict=True)
    ]


def _batches(subwindows: Sequence[Subwindow], dtype: np.dtype[Any]) -> Iterator[list[list[Subwindow]]]:
    """Yield the files of each scene and member together, first members first, in batches that fit into memory."""
    limit = _REMOTE_ASIDE if any(is_remote(sub.source.header.href) for sub in subwindows) else _ASIDE
    batch: list[list[Subwindow]] = []
    size = 0
    in_order = sorted(subwindows, key=attrgetter("member", "scene"))
    for _, unit in groupby(in_order, attrgetter("member", "scene")):
        files = list(unit)
        more = sum(prod(sub.shape) * dtype.itemsize for sub in files)
        if batch and size + more > limit:
            yield batch
            batch, size = [], 0
        batch.append(files)
        size += more
    if batch:
        yield batch


def _put(raw: NDArray[Any], sub: Subwindow, out: NDArray[Any], fill: float) -> None:
    """Copy decoded pixels to their destination: repeated, picked by index, or one to one."""
    if sub.index is not None:
        bands = len(raw)
        if bands > 1 and sub.source.header.coding.interleave == "pixel":
            flat = np.moveaxis(raw, 0, 2).reshape(-1, bands)
            out[...] = np.moveaxis(flat[sub.index], 2, 0)
        else:
            for band, target in zip(raw, out, strict=True):
                np.take(band.reshape(-1), sub.index, out=target, mode="clip")
        outside = sub.index < 0
        if outside.any():
            out[:, outside] = fill
    elif sub.inner is not None:
        f = sub.source.factor
        out[...] = raw.repeat(f, axis=1).repeat(f, axis=2)[(slice(None), *sub.inner)]
    else:
        out[...] = raw


def _equals(numbers: NDArray[Any], fill: float) -> NDArray[np.bool_]:
    """Return where values equal the fill value, which may be NaN."""
    same: NDArray[np.bool_] = np.isnan(numbers) if np.isnan(fill) else numbers == fill
    return same


def _read_gdal(reading: _Reading, target: ReadGrid) -> int:
    """Read a file's part through GDAL; return the number of retries."""
    sub, source = reading.sub, reading.sub.source
    header, level = source.header, source.level
    if not sub.warped:
        return read_level(header, sub.bands, level, sub.window, reading.out, reading.mask)
    window = target.in_whole(sub.window)
    by_number = not header.mask_kind and source.alpha is None
    fill = _warp_fill(source, target.fill)
    retries = read_warped(
        header,
        source.part.file_bands,
        level,
        target.whole,
        window,
        resampling=source.resampling,
        nodata=0.0 if by_number and source.nodata is None else source.nodata,
        fill=fill,
        alpha=source.alpha is not None,
        out=reading.out,
    )
    if reading.mask is not None and by_number:
        bounds = window[0].start, window[0].stop, window[1].start, window[1].stop
        shape = header.levels[level].shape
        reading.mask[0] = warped_coverage(header.geobox, shape, target.whole, bounds, source.resampling)
    elif reading.mask is not None:
        reading.mask[0] = (~_equals(reading.out, fill)).any(axis=0)
    return retries
