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
from s2composite.reading.tiles import TileRequest, read_window
from s2composite.reading.warp import read_level, read_warped
from s2composite.scenes.storage import is_remote

__all__ = ["FAILED", "OUTSIDE", "READ", "Observations", "observe"]

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


def observe(
    sources: Sequence[Sequence[Source]],
    geobox: GeoBox,
    window: Window,
    pixels: NDArray[Any],
    fill: float,
    resampling: str,
) -> Observations:
    """Read a window of all scenes into `pixels`.

    Parameters
    ----------
    sources
        The files of each scene.
    geobox, window
        The target grid, and ``(y, x)`` slices of it, which may leave it on any side.
    pixels
        ``(t, b, y, x)``, uninitialised.
    fill
        Value of pixels that no file covers.
    resampling
        Method for files that are not on the grid.

    Returns
    -------
    Observations
        A file that fails does not stop the others: the caller decides what a failure means.
    """
    status = np.array([OUTSIDE if files else FAILED for files in sources], np.uint8)
    jobs = []
    for t, files in enumerate(sources):
        covering = [job for source in files if (job := _job(t, source, window, pixels[t])) is not None]
        if sum(job.out.size for job in covering) < pixels[t].size:
            pixels[t] = fill
        if covering:
            status[t] = READ
        jobs += covering
    outcomes = _read_tiles([j for j in jobs if j.source.engine == "tiles"])
    outcomes += _read_gdal([j for j in jobs if j.source.engine == "gdal"], geobox, resampling, fill)
    errors = {job.scene: error for job, _, error in outcomes if error is not None}
    for t in errors:
        status[t] = FAILED
        pixels[t] = fill
    return Observations(pixels, status, errors, sum(retries for _, retries, _ in outcomes))


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


_Outcome = tuple[_Job, int, ReadError | None]


def _read_tiles(jobs: list[_Job]) -> list[_Outcome]:
    requests = [TileRequest(j.source.header, j.source.level, j.window, j.source.part.file_bands, j.out) for j in jobs]
    return [(job, result.retries, result.error) for job, result in zip(jobs, read_window(requests), strict=True)]


def _read_gdal(jobs: list[_Job], geobox: GeoBox, resampling: str, fill: float) -> list[_Outcome]:
    def read(job: _Job) -> _Outcome:
        source, bands = job.source, job.source.part.file_bands
        try:
            if source.offset is None:
                target = _subgrid(geobox, job.window)
                return job, read_warped(source.header.href, bands, target, resampling, fill, job.out), None
            return job, read_level(source.header.href, bands, source.level, job.window, job.out), None
        except ReadError as error:
            return job, 0, error

    if any(is_remote(job.source.header.href) for job in jobs):
        with ThreadPoolExecutor(_REMOTE_READS) as pool:
            return list(pool.map(read, jobs))
    return [read(job) for job in jobs]


def _subgrid(geobox: GeoBox, window: Window) -> GeoBox:
    y, x = window
    return geobox.translate_pix(x.start, y.start).crop((y.stop - y.start, x.stop - x.start))
