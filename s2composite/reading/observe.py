"""Observe: one window of many files into one array ``(t, b, y, x)``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.errors import ReadError
from s2composite.reading.grid import Window
from s2composite.reading.source import Source
from s2composite.reading.tiles import Begun, TileRequest, begin_window
from s2composite.reading.warp import read_level, read_warped
from s2composite.scenes.storage import is_remote

__all__ = ["FAILED", "OUTSIDE", "READ", "Observations", "Pending", "Target", "begin"]

READ, OUTSIDE, FAILED = 0, 1, 2
"""Values of `Observations.status`."""

_REMOTE_READS = 8
"""Remote files read at once through GDAL: latency is what is waited for, not the processor."""


@dataclass(frozen=True, slots=True)
class Observations:
    """What a window of a stack holds."""

    pixels: NDArray[Any]
    """``(t, b, y, x)``, native dtype; may be a view of pixel-interleaved memory ``(t, y, x, b)``."""

    status: NDArray[np.uint8]
    """``(t,)``: 0 read, 1 the scene lies outside of the window, 2 reading failed (pixels are the fill value)."""

    errors: dict[int, ReadError]
    """Why a scene failed, by its position."""

    retries: int
    """Reads that were repeated after a transient failure."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A source, and the part of the window that it covers."""

    scene: int
    source: Source
    window: Window
    """In pixels of the source's level, or of the geobox where it is warped."""
    out: NDArray[Any]
    """``(bands of the source, y, x)`` view of the result."""


@dataclass(frozen=True, slots=True)
class Target:
    """The grid that is read onto."""

    geobox: GeoBox
    """Pixel grid."""

    fill: float
    """Value of pixels that no file covers."""

    resampling: str
    """Method for files that are not on the grid."""


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A window whose bytes are on their way."""

    target: Target
    """The grid."""

    pixels: NDArray[Any]
    """``(t, b, y, x)``; written by `finish`, not before: one memory serves a window while the next is fetched."""

    opened: tuple[bool, ...]
    """``(t,)``: whether the scene has any file."""

    jobs: tuple[_Job, ...]
    """What is read, in order of scenes."""

    begun: Begun
    """The tiles among it."""

    def finish(self) -> Observations:
        """Decode the window. A file that fails does not stop the others: the caller decides what a failure means."""
        status = np.array([OUTSIDE if opened else FAILED for opened in self.opened], np.uint8)
        covered = np.zeros(len(status), np.int64)
        for job in self.jobs:
            status[job.scene] = READ
            covered[job.scene] += job.out.size
        for t in np.flatnonzero(covered < self.pixels[0].size):
            self.pixels[t] = self.target.fill
        outcomes = [(r.retries, r.error) for r in self.begun.finish()]
        outcomes += _read_gdal([job for job in self.jobs if job.source.engine == "gdal"], self.target)
        order = sorted(self.jobs, key=lambda job: job.source.engine == "gdal")
        errors = {job.scene: error for job, (_, error) in zip(order, outcomes, strict=True) if error is not None}
        for failed in errors:
            status[failed] = FAILED
            self.pixels[failed] = self.target.fill
        return Observations(self.pixels, status, errors, sum(retries for retries, _ in outcomes))

    def close(self) -> None:
        """Give the window up."""
        self.begun.close()


def begin(sources: Sequence[Sequence[Source]], target: Target, window: Window, pixels: NDArray[Any]) -> Pending:
    """Ask for the bytes of a window of all scenes.

    Parameters
    ----------
    sources
        The files of each scene.
    target
        The grid.
    window
        ``(y, x)`` slices of the grid, which may leave it on any side.
    pixels
        ``(t, b, y, x)``, uninitialised.
    """
    jobs = tuple(
        job
        for t, files in enumerate(sources)
        for source in files
        if (job := _job(t, source, window, pixels[t])) is not None
    )
    tiles = [
        TileRequest(job.source.header, job.source.level, job.window, job.source.part.file_bands, job.out)
        for job in jobs
        if job.source.engine == "tiles"
    ]
    return Pending(target, pixels, tuple(map(bool, sources)), jobs, begin_window(tiles))


def _job(t: int, source: Source, window: Window, out: NDArray[Any]) -> _Job | None:
    """Return what a source gives to a window, None if they do not touch."""
    part = source.part
    bands = out[part.row : part.row + len(part.file_bands)]
    if source.offset is None:
        return _Job(t, source, window, bands)
    shape = source.header.levels[source.level].shape
    inside, target = [], []
    for s, offset, size in zip(window, source.offset, shape, strict=True):
        start, stop = max(s.start + offset, 0), min(s.stop + offset, size)
        if start >= stop:
            return None
        inside.append(slice(start, stop))
        target.append(slice(start - offset - s.start, stop - offset - s.start))
    return _Job(t, source, (inside[0], inside[1]), bands[:, target[0], target[1]])


def _read_gdal(jobs: list[_Job], target: Target) -> list[tuple[int, ReadError | None]]:
    """Return retries and error of each."""

    def read(job: _Job) -> tuple[int, ReadError | None]:
        source, bands = job.source, job.source.part.file_bands
        try:
            if source.offset is None:
                grid = _subgrid(target.geobox, job.window)
                return read_warped(source.header.href, bands, grid, target.resampling, target.fill, job.out), None
            return read_level(source.header.href, bands, source.level, job.window, job.out), None
        except ReadError as error:
            return 0, error

    if any(is_remote(job.source.header.href) for job in jobs):
        with ThreadPoolExecutor(_REMOTE_READS) as pool:
            return list(pool.map(read, jobs))
    return [read(job) for job in jobs]


def _subgrid(geobox: GeoBox, window: Window) -> GeoBox:
    y, x = window
    return geobox.translate_pix(x.start, y.start).crop((y.stop - y.start, x.stop - x.start))
