"""run_job(): a job from its scenes to its files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, KilledWorker, performance_report
from odc.geo.geom import BoundingBox

from s2composite.compositing import Composite, composite
from s2composite.cube import open_cube
from s2composite.errors import JobError, S2CompositeError
from s2composite.running.cluster import connect
from s2composite.running.job import Job, load_job
from s2composite.scenes.listing import find_scenes
from s2composite.scenes.model import Scene

__all__ = ["JobResult", "run_job"]


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job has done."""

    paths: tuple[str, ...]
    """Files or store written, absolute paths or URLs, the composite first."""

    seconds: float
    """Wall time from finding the scenes to the last file."""

    scenes: int
    """Scenes that went into the composite."""

    shape: tuple[int, int]
    """Rows and columns of the composite, in pixels."""

    windows: int
    """Windows it was made in."""


def run_job(
    job: Job | str | os.PathLike[str] | Mapping[str, Any], *, client: Client | None = None, announce: bool = True
) -> JobResult:
    """Run a job: find its scenes, composite them on its cluster, write the result.

    Parameters
    ----------
    job
        A Job, or what `load_job` takes: the path of a job file, YAML text, a mapping.
    client
        Run on this instead of the job's own cluster; it stays open.
    announce
        Whether to write the cluster's line to the terminal; see `connect`.

    Raises
    ------
    S2CompositeError
        One of its kinds for whatever is wrong with the job, the scenes, the cluster or the output.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "doctest.tif", "cluster": {"workers": 1}, "overwrite": True}
    >>> run_job(job, announce=False).scenes
    3
    """
    job = job if isinstance(job, Job) else load_job(job)
    start = time.perf_counter()
    scenes = _prepared(job)
    cluster: AbstractContextManager[Any] = (
        connect(job.cluster, announce=announce) if client is None else nullcontext(client)
    )
    with cluster as workers, workers.as_current(), _reported(job.performance_report), _named_deaths():
        result = _composite(job, scenes)
        paths = _write(result, job)
    shape, windows = _extent(result)
    return JobResult(paths, time.perf_counter() - start, len(scenes), shape, windows)


def _prepared(job: Job) -> tuple[Scene, ...]:
    """Return the job's scenes; all that can be wrong before there is a cluster is found here."""
    report = job.performance_report
    if report is not None and not os.access(Path(report).parent, os.W_OK):
        raise JobError(
            f"performance_report: cannot write to the directory of {report}; make it first", key="performance_report"
        )
    return find_scenes(job.source, pattern=job.pattern, datetime=job.datetime)


def _composite(job: Job, scenes: tuple[Scene, ...]) -> Composite:
    cube = open_cube(
        scenes,
        bands=job.bands,
        bbox=None if job.bbox is None else BoundingBox(*job.bbox, crs=job.bbox_crs),
        crs=job.crs,
        resolution=job.resolution,
        resampling=job.resampling,
        chunks=job.chunks,
        on_error=job.on_error,
        engine=job.engine,
    )
    name, parameters = job.reducer_call
    return composite(cube, name, **parameters)


def _write(result: Composite, job: Job) -> tuple[str, ...]:
    if job.format == "zarr":
        return (str(result.to_zarr(job.output, overwrite=job.overwrite)),)
    layers = {} if job.layers is None else {"layers": job.layers}
    return result.to_raster(job.output, overwrite=job.overwrite, **layers)


def _extent(result: Composite) -> tuple[tuple[int, int], int]:
    """Return rows and columns, and the number of windows."""
    dataset = result.dataset
    windows = len(dataset.chunksizes.get("y", (0,))) * len(dataset.chunksizes.get("x", (0,)))
    return (dataset.sizes["y"], dataset.sizes["x"]), windows


def _reported(path: str | None) -> AbstractContextManager[Any]:
    report: AbstractContextManager[Any] = nullcontext() if path is None else performance_report(filename=path)
    return report


@contextmanager
def _named_deaths() -> Iterator[None]:
    """Say in our words that workers die, which Dask reports as a task that was tried several times."""
    try:
        yield
    except KilledWorker as error:
        raise S2CompositeError(
            f"workers died again and again over one window ({error.task}), most likely for want of memory; "
            "take smaller chunks, fewer threads, or more memory for each worker"
        ) from error
