"""Observe: one window of many files into one array ``(t, b, y, x)``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.errors import ReadError
from s2composite.reading.convert import convert
from s2composite.reading.grid import Window
from s2composite.reading.patches import Patch, Piece
from s2composite.reading.share import Share, Target, in_turn, opened_sources, request_of, share_of, subgrid
from s2composite.reading.source import Source
from s2composite.reading.tiles import Begun, TileResult, begin_window
from s2composite.reading.warp import read_level, read_warped
from s2composite.scenes.storage import is_remote

__all__ = [
    "FAILED",
    "OUTSIDE",
    "READ",
    "Observations",
    "Pending",
    "ReadTally",
    "begin",
]

READ, OUTSIDE, FAILED = 0, 1, 2
"""Values of `Observations.status`."""

_ASIDE, _REMOTE_ASIDE = 2 << 20, 16 << 20
"""Bytes of pixels that are decoded beside the window before they are put into it: more of them where that many are
fetched at once, so that none has to wait for an answer."""

_REMOTE_READS = 8
"""Remote files read at once through GDAL: latency is what is waited for, not the processor."""


@dataclass(frozen=True, slots=True)
class ReadTally:
    """What reading a window has taken."""

    requests: int
    """Byte ranges asked for; those of GDAL are not known."""

    bytes: int
    """Their size together."""

    retries: int
    """Reads that were repeated after a transient failure."""

    decode: float
    """Seconds of decoding tiles, without waiting for them."""

    gdal: float
    """Seconds in GDAL, waiting included."""


@dataclass(frozen=True, slots=True)
class Observations:
    """What a window of a stack holds."""

    pixels: NDArray[Any]
    """``(t, b, y, x)``, native dtype; may be a view of pixel-interleaved memory ``(t, y, x, b)``."""

    status: NDArray[np.uint8]
    """``(t,)``: 0 read, 1 the scene lies outside the window, 2 reading failed (pixels are the fill value)."""

    errors: dict[int, ReadError]
    """Why a scene failed, by its position."""

    tally: ReadTally
    """What it has taken."""


_Outcome = tuple[Share, TileResult]
"""A share and what became of it; what GDAL asked for counts as nothing asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A window whose bytes are on their way."""

    target: Target
    """The grid."""

    pixels: NDArray[Any]
    """``(t, b, y, x)``; written by `finish`, not before: one memory serves a window while the next is fetched."""

    opened: NDArray[np.bool_]
    """``(t,)``: whether the scene has any file."""

    shares: tuple[Share, ...]
    """What is read, in order of scenes."""

    lost: tuple[tuple[int, ReadError], ...]
    """Scenes of which a file cannot be opened."""

    begun: Begun
    """The tiles among it that are decoded where they go."""

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
        return Observations(self.pixels, status, errors, _tally(outcomes))

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
        shares = [share for share in self.shares if share.direct]
        tiles, others = _by_engine(shares)
        yield from zip(tiles, self.begun.finish(), strict=True)
        yield from _read_gdal([(share, self._out(share)) for share in others], self.target)
        for share in shares:
            source = share.source
            convert(self._out(share), source.conversion, source.nodata, self.target.fill)

    def _aside(self, shares: Sequence[Share]) -> Iterator[_Outcome]:
        """Decode files beside the window, and put them into it: some at a time, the bytes of the next on their way."""
        asked: deque[_Batch] = deque()
        try:
            for batch in _batches(shares, self.pixels.dtype):
                asked.append(_Batch.ask(batch, self.pixels.dtype))
                if len(asked) > 1:
                    yield from self._put_batch(asked.popleft())
            while asked:
                yield from self._put_batch(asked.popleft())
        finally:
            for given_up in asked:
                given_up.begun.close()

    def _put_batch(self, asked: _Batch) -> list[_Outcome]:
        batch, raw = asked.shares, asked.raw
        tiles, others = _by_engine(batch)
        outcomes: list[_Outcome] = list(zip(tiles, asked.begun.finish(), strict=True))
        outcomes += _read_gdal([(share, raw[id(share)]) for share in others], self.target)
        for share in batch:
            convert(raw[id(share)], share.source.conversion, share.source.nodata, self.target.fill)
        for unit in _units(batch):
            first = unit[0]
            if first.member == 0:
                for share in unit:
                    _put(raw[id(share)], share, self._out(share), self.target.fill)
            else:
                layer = np.full(self.pixels.shape[1:], self.target.fill, self.pixels.dtype)
                for share in unit:
                    _put(raw[id(share)], share, layer[(share.rows(), *share.place)], self.target.fill)
                _fuse(self.pixels[first.scene], layer, self.target.fill)
        return outcomes


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Files that are decoded beside a window together, their bytes on their way."""

    shares: Sequence[Share]
    """What is read."""

    raw: Mapping[int, NDArray[Any]]
    """Memory for it, by ``id`` of the share."""

    begun: Begun
    """The tiles among it."""

    @classmethod
    def ask(cls, shares: Sequence[Share], dtype: np.dtype[Any]) -> _Batch:
        """Ask for the bytes of a batch."""
        raw = {id(share): share.memory(dtype) for share in shares}
        tiles, _ = _by_engine(shares)
        return cls(shares, raw, begin_window([request_of(share, raw[id(share)]) for share in tiles]))


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
) -> Pending:
    """Ask for the bytes of a window of all scenes.

    Parameters
    ----------
    sources
        The files that may touch the window, each with the position of its scene, in order of scenes and members.
    opened
        ``(t,)``: which scenes have any files.
    target
        The grid.
    piece
        ``(y, x)`` slices of the grid, which may leave it on any side; or a patch of a window.
    pixels
        ``(t, b, y, x)``, uninitialised.
    """
    found, lost = opened_sources(sources)
    parts = (piece.share(*f) if isinstance(piece, Patch) else share_of(*f, piece, target) for f in found)
    shares = in_turn([share for share in parts if share is not None])
    tiles = [
        request_of(share, pixels[(share.scene, share.rows(), *share.place)])
        for share in shares
        if share.direct and share.source.engine == "tiles"
    ]
    return Pending(target, pixels, opened, shares, lost, begin_window(tiles))


def _by_engine(shares: Sequence[Share]) -> tuple[list[Share], list[Share]]:
    tiles = [share for share in shares if share.source.engine == "tiles"]
    return tiles, [share for share in shares if share.source.engine != "tiles"]


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
    """Take a later member's observations where there is none yet, or one that lacks a band it has.

    Parameters
    ----------
    pixels
        ``(b, y, x)`` of the scene so far.
    layer
        ``(b, y, x)`` of the next member.
    """
    missing, lacking = (np.isnan(a) if np.isnan(fill) else a == fill for a in (pixels, layer))
    better = missing.all(0) | (missing.any(0) & ~lacking.any(0))
    np.copyto(pixels, layer, where=better)


def _read_gdal(shares: Sequence[tuple[Share, NDArray[Any]]], target: Target) -> list[_Outcome]:
    def read(task: tuple[Share, NDArray[Any]]) -> tuple[int, ReadError | None]:
        share, out = task
        source, bands = share.source, share.source.part.file_bands
        try:
            if source.offset is None:
                grid, window = _around(target.geobox, share.window)
                nodata = 0.0 if source.nodata is None else source.nodata
                retries = read_warped(
                    source.header, bands, source.level, grid, window, resampling=source.resampling, fill=nodata, out=out
                )
                return retries, None
            head, shape = source.header, source.header.levels[source.level].shape
            return read_level(head.href, bands, shape, share.window, out, head.sign, head.identity), None
        except ReadError as error:
            return 0, error

    begun = perf_counter()
    if any(is_remote(share.source.header.href) for share, _ in shares):
        with ThreadPoolExecutor(_REMOTE_READS) as pool:
            results = list(pool.map(read, shares))
    else:
        results = [read(task) for task in shares]
    each = (perf_counter() - begun) / max(len(shares), 1)  # they share the time in which several of them are read
    return [(share, TileResult(error, n, 0, 0, each)) for (share, _), (n, error) in zip(shares, results, strict=True)]


def _around(geobox: GeoBox, window: Window) -> tuple[GeoBox, Window]:
    """Return the grid and a window of it, the grid grown where the window leaves it.

    A window of the whole grid, not a grid of its own: transforms differ in their last digits, which rounding can show.
    """
    height, width = geobox.shape.y, geobox.shape.x
    if all(s.start >= 0 and s.stop <= n for s, n in zip(window, (height, width), strict=True)):
        return geobox, window
    y, x = window
    return subgrid(geobox, window), (slice(0, y.stop - y.start), slice(0, x.stop - x.start))
