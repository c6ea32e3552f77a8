"""Observe: one window of many files into one array ``(t, b, y, x)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.errors import ReadError
from s2composite.reading.convert import convert
from s2composite.reading.grid import Window, level_geobox
from s2composite.reading.header import Header
from s2composite.reading.promise import fulfilled, is_promised
from s2composite.reading.source import Source
from s2composite.reading.tiles import Begun, TileRequest, TileResult, begin_window, cost_of
from s2composite.reading.warp import nearest_pixels, read_level, read_warped
from s2composite.scenes.storage import is_remote

__all__ = [
    "FAILED",
    "OUTSIDE",
    "READ",
    "Observations",
    "Pending",
    "ReadCost",
    "ReadTally",
    "Target",
    "begin",
    "cost_of_window",
]

READ, OUTSIDE, FAILED = 0, 1, 2
"""Values of `Observations.status`."""

_ASIDE = 64 << 20
"""Bytes of pixels that are decoded beside the window before they are put into it."""

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
    """``(t,)``: 0 read, 1 the scene lies outside of the window, 2 reading failed (pixels are the fill value)."""

    errors: dict[int, ReadError]
    """Why a scene failed, by its position."""

    tally: ReadTally
    """What it has taken."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A source, and the part of the window that it covers."""

    scene: int
    """Position of the scene."""

    member: int
    """Turn among the files of a scene that may cover the same pixels; those of turn 0 are the first to write."""

    source: Source
    """The file."""

    window: Window
    """What is decoded, in pixels of the source's level; in pixels of the geobox where GDAL warps."""

    place: Window
    """Where it goes, in pixels of the window."""

    inner: Window | None = None
    """The part of the decoded pixels, each repeated, that is wanted; None: they are not repeated."""

    index: NDArray[np.int32] | None = None
    """Which of the decoded pixels each of `place` takes, -1 for none; None: they are as they are."""

    @property
    def direct(self) -> bool:
        """Whether it is decoded where it goes."""
        return self.inner is None and self.index is None and self.member == 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(bands, y, x)`` of what is decoded."""
        y, x = self.window
        return len(self.source.part.file_bands), y.stop - y.start, x.stop - x.start

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

    geobox: GeoBox
    """Pixel grid."""

    fill: float
    """Value of pixels that no file covers."""


_Outcome = tuple[_Job, TileResult]
"""A job and what became of it; what GDAL asked for counts as nothing asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A window whose bytes are on their way."""

    target: Target
    """The grid."""

    pixels: NDArray[Any]
    """``(t, b, y, x)``; written by `finish`, not before: one memory serves a window while the next is fetched."""

    opened: NDArray[np.bool_]
    """``(t,)``: whether the scene has any file."""

    jobs: tuple[_Job, ...]
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
        for batch in _batches([job for job in self.jobs if not job.direct], self.pixels.dtype):
            outcomes += self._aside(batch)
        errors = dict(self.lost) | {job.scene: result.error for job, result in outcomes if result.error is not None}
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
        for job in self.jobs:
            status[job.scene] = READ
            if job.direct:
                covered[job.scene] += self._out(job).size
        for t in np.flatnonzero(covered < self.pixels[0].size):
            self.pixels[t] = self.target.fill

    def _out(self, job: _Job) -> NDArray[Any]:
        """Return where a job's pixels go."""
        return self.pixels[(job.scene, job.rows(), *job.place)]

    def _direct(self) -> Iterator[_Outcome]:
        jobs = [job for job in self.jobs if job.direct]
        tiles, others = _by_engine(jobs)
        yield from zip(tiles, self.begun.finish(), strict=True)
        yield from _read_gdal([(job, self._out(job)) for job in others], self.target)
        for job in jobs:
            source = job.source
            convert(self._out(job), source.conversion, source.nodata, self.target.fill)

    def _aside(self, batch: Sequence[_Job]) -> list[_Outcome]:
        """Decode some files beside the window, and put them into it."""
        raw = {id(job): job.memory(self.pixels.dtype) for job in batch}
        tiles, others = _by_engine(batch)
        begun = begin_window([_request(job, raw[id(job)]) for job in tiles])
        outcomes: list[_Outcome] = list(zip(tiles, begun.finish(), strict=True))
        outcomes += _read_gdal([(job, raw[id(job)]) for job in others], self.target)
        for job in batch:
            convert(raw[id(job)], job.source.conversion, job.source.nodata, self.target.fill)
        for unit in _units(batch):
            first = unit[0]
            if first.member == 0:
                for job in unit:
                    _put(raw[id(job)], job, self._out(job), self.target.fill)
            else:
                layer = np.full(self.pixels.shape[1:], self.target.fill, self.pixels.dtype)
                for job in unit:
                    _put(raw[id(job)], job, layer[(job.rows(), *job.place)], self.target.fill)
                _fuse(self.pixels[first.scene], layer, self.target.fill)
        return outcomes


def _tally(outcomes: Sequence[_Outcome]) -> ReadTally:
    results = [result for _, result in outcomes]
    seconds = {"tiles": 0.0, "gdal": 0.0}
    for job, result in outcomes:
        seconds[job.source.engine] += result.seconds
    asked = (sum(r.requests for r in results), sum(r.bytes for r in results), sum(r.retries for r in results))
    return ReadTally(*asked, seconds["tiles"], seconds["gdal"])


def begin(
    sources: Sequence[tuple[int, Source]],
    opened: NDArray[np.bool_],
    target: Target,
    window: Window,
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
    window
        ``(y, x)`` slices of the grid, which may leave it on any side.
    pixels
        ``(t, b, y, x)``, uninitialised.
    """
    found, lost = _fulfilled(sources)
    jobs = _in_turn([job for t, source in found if (job := _job(t, source, window, target)) is not None])
    tiles = [
        _request(job, pixels[(job.scene, job.rows(), *job.place)])
        for job in jobs
        if job.direct and job.source.engine == "tiles"
    ]
    return Pending(target, pixels, opened, jobs, lost, begin_window(tiles))


@dataclass(frozen=True, slots=True)
class ReadCost:
    """What reading a window takes, as the tile index tells it: nothing is read to find out."""

    scenes: tuple[int, ...]
    """Positions of the scenes that are read."""

    requests: int
    """Byte ranges asked for."""

    bytes: int
    """Their size together."""

    decoded: int
    """Bytes of pixels that are decoded."""

    gdal: int
    """Files that GDAL reads, of which neither requests nor bytes are known."""


def cost_of_window(sources: Sequence[tuple[int, Source]], target: Target, window: Window) -> ReadCost:
    """Return what reading a window of files takes; see `begin`."""
    jobs = [job for t, source in sources if (job := _job(t, source, window, target)) is not None]
    known = [job for job in jobs if job.source.engine == "tiles" and not is_promised(job.source.header)]
    costs = [cost_of(_request(job, np.broadcast_to(job.source.header.dtype.type(0), job.shape))) for job in known]
    return ReadCost(
        tuple(sorted({job.scene for job in jobs})),
        sum(requests for requests, _ in costs),
        sum(size for _, size in costs),
        sum(int(np.prod(job.shape)) * job.source.header.dtype.itemsize for job in jobs),
        len(jobs) - len(known),
    )


def _fulfilled(
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
    nodata = source.nodata if header.nodata is None else header.nodata
    if not header.undecodable or source.engine == "gdal":
        return replace(source, header=header, nodata=nodata)
    offset = source.offset if source.factor == 1 else None
    return replace(source, header=header, nodata=nodata, engine="gdal", offset=offset, factor=1, why=header.undecodable)


def _in_turn(jobs: Sequence[_Job]) -> tuple[_Job, ...]:
    """Count the members of each scene that touch the window."""
    turns: dict[int, dict[int, int]] = {}
    for job in jobs:
        members = turns.setdefault(job.scene, {})
        members.setdefault(job.source.member, len(members))
    return tuple(replace(job, member=turns[job.scene][job.source.member]) for job in jobs)


def _job(t: int, source: Source, window: Window, target: Target) -> _Job | None:
    """Return what a source gives to a window, None if they do not touch."""
    spans, place = [], []
    for s, (first, last) in zip(window, (source.extent[:2], source.extent[2:]), strict=True):
        start, stop = max(s.start, first), min(s.stop, last)
        if start >= stop:
            return None
        spans.append(slice(start, stop))
        place.append(slice(start - s.start, stop - s.start))
    at, there = (place[0], place[1]), (spans[0], spans[1])
    if source.offset is None:
        return _warped(t, source, there, at, target)
    y, x = (slice(s.start + o, s.stop + o) for s, o in zip(there, source.offset, strict=True))
    if source.factor == 1:
        return _Job(t, 0, source, (y, x), at)
    f = source.factor
    coarse = tuple(slice(s.start // f, -(-s.stop // f)) for s in (y, x))
    inner = tuple(slice(s.start - c.start * f, s.stop - c.start * f) for s, c in zip((y, x), coarse, strict=True))
    return _Job(t, 0, source, (coarse[0], coarse[1]), at, (inner[0], inner[1]))


def _warped(t: int, source: Source, there: Window, place: Window, target: Target) -> _Job | None:
    """Return the job of a file on another grid: pixels picked from its tiles, or left to GDAL."""
    if source.engine == "gdal":
        return _Job(t, 0, source, there, place)
    shape = source.header.levels[source.level].shape
    found = nearest_pixels(level_geobox(source.header.geobox, shape), _subgrid(target.geobox, there))
    return None if found is None else _Job(t, 0, source, found[0], place, index=found[1])


def _request(job: _Job, out: NDArray[Any]) -> TileRequest:
    return TileRequest(job.source.header, job.source.level, job.window, job.source.part.file_bands, out)


def _by_engine(jobs: Sequence[_Job]) -> tuple[list[_Job], list[_Job]]:
    tiles = [job for job in jobs if job.source.engine == "tiles"]
    return tiles, [job for job in jobs if job.source.engine != "tiles"]


def _units(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Group jobs by scene and member, those that write first before those that fill what is left."""
    units: dict[tuple[int, int], list[_Job]] = {}
    for job in jobs:
        units.setdefault((job.member, job.scene), []).append(job)
    return [units[key] for key in sorted(units)]


def _batches(jobs: Sequence[_Job], dtype: np.dtype[Any]) -> Iterator[list[_Job]]:
    """Yield jobs, units together, as many at once as there is memory for."""
    batch: list[_Job] = []
    size = 0
    for unit in _units(jobs):
        more = sum(int(np.prod(job.shape)) * dtype.itemsize for job in unit)
        if batch and size + more > _ASIDE:
            yield batch
            batch, size = [], 0
        batch += unit
        size += more
    if batch:
        yield batch


def _put(raw: NDArray[Any], job: _Job, out: NDArray[Any], fill: float) -> None:
    """Put decoded pixels where they go: repeated, picked, or as they are."""
    if job.index is not None:
        bands = len(raw)
        if bands > 1 and job.source.header.interleave == "pixel":
            flat = np.moveaxis(raw, 0, 2).reshape(-1, bands)
            out[...] = np.moveaxis(flat[job.index], 2, 0)
        else:
            for band, target in zip(raw, out, strict=True):
                target[...] = band.reshape(-1)[job.index]
        outside = job.index < 0
        if outside.any():
            out[:, outside] = fill
    elif job.inner is not None:
        f = job.source.factor
        out[...] = raw.repeat(f, axis=1).repeat(f, axis=2)[(slice(None), *job.inner)]
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


def _read_gdal(jobs: Sequence[tuple[_Job, NDArray[Any]]], target: Target) -> list[_Outcome]:
    def read(task: tuple[_Job, NDArray[Any]]) -> tuple[int, ReadError | None]:
        job, out = task
        source, bands = job.source, job.source.part.file_bands
        try:
            if source.offset is None:
                grid, window = _around(target.geobox, job.window)
                nodata = 0.0 if source.nodata is None else source.nodata
                retries = read_warped(
                    source.header, bands, source.level, grid, window, resampling=source.resampling, fill=nodata, out=out
                )
                return retries, None
            return read_level(source.header.href, bands, source.level, job.window, out, source.header.sign), None
        except ReadError as error:
            return 0, error

    begun = perf_counter()
    if any(is_remote(job.source.header.href) for job, _ in jobs):
        with ThreadPoolExecutor(_REMOTE_READS) as pool:
            results = list(pool.map(read, jobs))
    else:
        results = [read(task) for task in jobs]
    each = (perf_counter() - begun) / max(len(jobs), 1)  # they share the time in which several of them are read
    return [(job, TileResult(error, n, 0, 0, each)) for (job, _), (n, error) in zip(jobs, results, strict=True)]


def _around(geobox: GeoBox, window: Window) -> tuple[GeoBox, Window]:
    """Return the grid and a window of it, the grid grown where the window leaves it.

    A window of the whole grid, not a grid of its own: transforms differ in their last digits, which rounding can show.
    """
    height, width = geobox.shape.y, geobox.shape.x
    if all(s.start >= 0 and s.stop <= n for s, n in zip(window, (height, width), strict=True)):
        return geobox, window
    y, x = window
    return _subgrid(geobox, window), (slice(0, y.stop - y.start), slice(0, x.stop - x.start))


def _subgrid(geobox: GeoBox, window: Window) -> GeoBox:
    y, x = window
    return geobox.translate_pix(x.start, y.start).crop((y.stop - y.start, x.stop - x.start))
