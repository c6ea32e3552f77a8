"""run_job(): a job from its scenes to its files, window by window, so that it can be interrupted and gone on with."""

from __future__ import annotations

import datetime as dt
import os
import re
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from distributed import Client, performance_report
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, box

from s2composite.compositing import Composite, composite
from s2composite.cube import open_cube
from s2composite.errors import JobError, ParameterError, WriteError
from s2composite.running.bounded import Call, Outcome, Policy, run_bounded
from s2composite.running.cells import Cell, cells_of, read_area
from s2composite.running.cluster import connect
from s2composite.running.job import CELL, Job, load_job
from s2composite.running.ledger import Ledger, read_ledger
from s2composite.running.product import (
    Product,
    begin_product,
    done_windows,
    file_layouts,
    make_overview,
    make_window,
    plan_product,
)
from s2composite.scenes.listing import find_scenes
from s2composite.scenes.model import Scene
from s2composite.scenes.storage import absolute, filesystem, is_remote
from s2composite.windows import work_in
from s2composite.writing.files import WriteJob, finish_files
from s2composite.writing.options import RasterOptions
from s2composite.writing.progress import progress_bar

__all__ = [
    "Failure",
    "JobResult",
    "cell_job",
    "failures_in",
    "job_cells",
    "job_composite",
    "job_scenes",
    "ledger_key",
    "product_state",
    "reaches",
    "run_cells",
    "run_job",
]

Which = Literal["missing", "untried", "failed"]
"""Which windows a run makes: all that are not done, those among them that have not failed, or those that have."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A window that could not be made."""

    window: tuple[int, int]
    """Row and column of the window."""

    error: str
    """Why, in words."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job has done."""

    paths: tuple[str, ...]
    """Files or store written, absolute paths or URLs, the composite first; none if windows failed."""

    seconds: float
    """Wall time from finding the scenes to the last file."""

    scenes: int
    """Scenes that went into the composite."""

    shape: tuple[int, int]
    """Rows and columns of the composite, in pixels."""

    windows: int
    """Windows it is made of."""

    made: int = 0
    """Windows that this run has made; the others were done before."""

    failed: tuple[Failure, ...] = ()
    """Windows that could not be made; the files are written when they have been, see `retry`."""


def run_job(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    *,
    client: Client | None = None,
    announce: bool = True,
    which: Which = "missing",
    error: str | None = None,
    windows: Collection[tuple[int, int]] | None = None,
) -> JobResult:
    """Run a job: find its scenes, composite them on its cluster, write the result.

    A run that was interrupted is gone on with: windows that are done, of the same scenes, parameters and version, are
    not made again. What happens is noted in the ledger beside the output. A window that fails in a way that may pass is
    tried again on another worker; one that fails for good does not stop the others.

    Parameters
    ----------
    job
        A Job, or what `load_job` takes: the path of a job file, YAML text, a mapping.
    client
        Run on this instead of the job's own cluster; it stays open.
    announce
        Whether to write the cluster's line to the terminal; see `connect`.
    which
        Windows to make among those that are not done: ``"missing"``, all of them; ``"untried"``, those that have not
        failed before; ``"failed"``, those that have.
    error
        With ``which="failed"``: only windows whose error matches this regular expression.
    windows
        Only these, as rows and columns; the files are written when all are done.

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
    if job.span is not None:
        raise JobError("the job has a span, so it makes many products: run_spans() runs it", key="span")
    if job.grid is not None:
        raise JobError("the job has a grid, so it makes many products: run_cells() runs it", key="grid")
    start = time.perf_counter()
    scenes = _prepared(job)
    cluster: AbstractContextManager[Any] = (
        connect(job.cluster, announce=announce) if client is None else nullcontext(client)
    )
    with cluster as workers, workers.as_current(), _reported(job.performance_report):
        result = job_composite(job, scenes)
        if job.format == "zarr":
            return _run_zarr(job, result, start)
        return _run_product(job, result, workers, start, _Chosen(which, error, windows))


def run_cells(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    *,
    client: Client | None = None,
    announce: bool = True,
    which: Which = "missing",
    error: str | None = None,
) -> Iterator[tuple[Cell, JobResult | None]]:
    """Run a job that has a grid: one product for each cell that its area touches, on one cluster.

    Parameters
    ----------
    job, client, announce, which, error
        As for `run_job`.

    Yields
    ------
    cell, result
        As each cell ends; None for a cell that no scene touches.

    Raises
    ------
    S2CompositeError
        One of its kinds for whatever is wrong with the job, the scenes, the cluster or an output.
    """
    job = job if isinstance(job, Job) else load_job(job)
    if job.span is not None:
        raise JobError("the job has a span, so it makes many products: run_spans() runs it", key="span")
    cells = job_cells(job)
    scenes = _prepared(job)
    cluster: AbstractContextManager[Any] = (
        connect(job.cluster, announce=announce) if client is None else nullcontext(client)
    )
    with cluster as workers, workers.as_current(), _reported(job.performance_report), TemporaryDirectory() as folder:
        for cell in cells:
            start = time.perf_counter()
            # Headers are read once for all cells.
            result = job_composite(job, scenes, cell.geobox, str(Path(folder, "headers.index")))
            if not reaches(result, cell):
                yield cell, None
                continue
            mine = cell_job(job, cell)
            if mine.format == "zarr":
                yield cell, _run_zarr(mine, result, start)
            else:
                yield cell, _run_product(mine, result, workers, start, _Chosen(which, error, None))


def reaches(result: Composite, cell: Cell) -> bool:
    """Return whether any scene of a cell's composite touches it."""
    work = work_in(result.dataset)
    whole = (slice(0, int(cell.geobox.shape.y)), slice(0, int(cell.geobox.shape.x)))
    return work is not None and len(work.stack.touching(whole)) > 0


def cell_job(job: Job, cell: Cell) -> Job:
    """Return what a job means for one of its cells, but for the grid."""
    return job.model_copy(update={"output": job.output.replace(CELL, cell.name), "grid": None, "area": None})


def job_cells(job: Job) -> tuple[Cell, ...]:
    """Return the cells of a job that has a grid.

    Raises
    ------
    JobError
        It has none, or no cell touches its area.
    """
    if job.grid is None:
        raise JobError("the job has no grid to cut an area into cells", key="grid")
    area = None
    if job.area is not None:
        area = read_area(job.area)
    elif job.bbox is not None:
        area = box(*job.bbox, job.bbox_crs).to_crs("EPSG:4326")
    return cells_of(job.grid, area)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which windows to make."""

    which: Which
    error: str | None
    windows: Collection[tuple[int, int]] | None

    def __post_init__(self) -> None:
        try:
            re.compile(self.error or "")
        except re.error as problem:
            raise ParameterError(f"error={self.error!r} is not a regular expression: {problem}") from problem

    def takes(self, window: tuple[int, int], failures: Mapping[tuple[int, int], str]) -> bool:
        """Return whether to make a window that is not done."""
        if self.windows is not None and window not in self.windows:
            return False
        if self.which == "missing":
            return True
        if self.which == "untried":
            return window not in failures
        return window in failures and re.search(self.error or "", failures[window]) is not None


def _prepared(job: Job) -> tuple[Scene, ...]:
    """Return the job's scenes; what can be wrong before there is a cluster is found here."""
    report = job.performance_report
    if report is not None and not os.access(Path(report).parent, os.W_OK):
        raise JobError(
            f"performance_report: cannot write to the directory of {report}; make it first", key="performance_report"
        )
    return job_scenes(job)


def job_scenes(job: Job) -> tuple[Scene, ...]:
    """Return the scenes that a job is about."""
    return find_scenes(job.source, pattern=job.pattern, datetime=job.datetime)


def job_composite(
    job: Job, scenes: tuple[Scene, ...], geobox: GeoBox | None = None, index: str | None = None
) -> Composite:
    """Return the lazy composite that a job is about, on the grid of one of its cells if that is given."""
    cube = open_cube(
        scenes,
        bands=job.bands,
        geobox=geobox,
        index=index,
        bbox=None if job.bbox is None or geobox is not None else BoundingBox(*job.bbox, crs=job.bbox_crs),
        crs=job.crs,
        resolution=job.resolution,
        resampling=job.resampling,
        chunks=job.chunks,
        on_error=job.on_error,
        engine=job.engine,
    )
    return composite(
        cube,
        job.reducers,
        valid=job.rules,
        period=job.period,
        keep_empty=job.keep_empty,
        day=job.day,
        min_count=job.min_count,
    )


def _reported(path: str | None) -> AbstractContextManager[Any]:
    report: AbstractContextManager[Any] = nullcontext() if path is None else performance_report(filename=path)
    return report


def ledger_key(job: Job) -> str:
    """Return what the ledger of a job lies beside: the output, absolute, without a place for periods."""
    return absolute(job.output.replace("{period}", "periods"))


def _run_zarr(job: Job, result: Composite, start: float) -> JobResult:
    """Write a Zarr store, which keeps its own note of what is done."""
    rows, columns = (result.dataset.chunksizes.get(axis, (0,)) for axis in ("y", "x"))
    path = str(result.to_zarr(job.output, overwrite=job.overwrite, resume=not job.overwrite))
    windows = len(rows) * len(columns)
    shape = (result.dataset.sizes["y"], result.dataset.sizes["x"])
    return JobResult((path,), time.perf_counter() - start, result.dataset.sizes["scene"], shape, windows, windows)


def _run_product(job: Job, result: Composite, client: Client, start: float, chosen: _Chosen) -> JobResult:
    product = plan_product(result.dataset, job.output, layers=job.layers, options=RasterOptions(**(job.raster or {})))
    events = read_ledger(ledger_key(job))
    paths = tuple(raster.label for raster in product.rasters)
    shape = (int(product.work.stack.geobox.shape.y), int(product.work.stack.geobox.shape.x))
    facts = (len(product.work.stack.scenes), shape, len(product.windows))
    if product_state(product, events) == "skip" and not job.overwrite:
        return JobResult(paths, time.perf_counter() - start, *facts)
    if not job.overwrite:
        _check_free(product)
    begin_product(product)
    with Ledger(ledger_key(job), _run_name()) as ledger:
        run = _Run(product, client, job.policy.as_policy(), ledger)
        made, failures = run.make_windows(chosen, failures_in(events, product.token))
        if failures or len(done_windows(product, product.parts.names())) < len(product.windows):
            return JobResult((), time.perf_counter() - start, *facts, made, failures)
        run.make_overviews()
        finish_files(file_layouts(product, result.dataset), client, WriteJob((), overwrite=True, progress=False))
        ledger.add("product", token=product.token, files=list(paths))
        product.parts.clear()
    return JobResult(paths, time.perf_counter() - start, *facts, made)


def _run_name() -> str:
    return f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def product_state(product: Product, events: tuple[dict[str, Any], ...], *, begun: bool = False) -> str:
    """Return ``"skip"`` if the last files written here are these and still there, ``"recompute"`` if others are.

    If there are none, ``"begun"`` or ``"new"``, as the caller knows.
    """
    last = [event for event in events if event["event"] == "product"][-1:]
    there = [_exists(raster.path) for raster in product.rasters]
    if all(there) and last and last[0]["token"] == product.token:
        return "skip"
    return "recompute" if any(there) else "begun" if begun else "new"


def _exists(path: str) -> bool:
    if not is_remote(path):
        return Path(path).exists()
    fs, name = filesystem(path)
    return bool(fs.exists(name))


def _check_free(product: Product) -> None:
    for raster in product.rasters:
        if _exists(raster.path):
            raise WriteError(
                f"{raster.label}: exists already, and is not what this job makes of its scenes now; "
                "set overwrite to replace it",
                path=raster.label,
            )


def failures_in(events: tuple[dict[str, Any], ...], token: str) -> dict[tuple[int, int], str]:
    """Return the windows of a product whose last attempt failed for good, and why."""
    out: dict[tuple[int, int], str] = {}
    for event in events:
        if event.get("token") != token or "window" not in event:
            continue
        window = (int(event["window"][0]), int(event["window"][1]))
        if event["event"] == "failed":
            out[window] = str(event.get("error", ""))
        elif event["event"] == "done":
            out.pop(window, None)
    return out


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of a product on a cluster."""

    product: Product
    client: Client
    policy: Policy
    ledger: Ledger

    def make_windows(self, chosen: _Chosen, failures: Mapping[tuple[int, int], str]) -> tuple[int, tuple[Failure, ...]]:
        """Make the windows that are chosen; return how many were made, and those that are failed now."""
        product = self.product
        done = done_windows(product, product.parts.names())
        todo = [window for window in product.windows if window not in done and chosen.takes(window, failures)]
        facts = {"token": product.token, "windows": list(map(len, product.work.spatial)), "done": len(done)}
        self.ledger.add("start", **facts, todo=len(todo), files=[raster.label for raster in product.rasters])
        failed = {window: why for window, why in failures.items() if window not in done and window not in todo}
        calls = (self._call("window", window, make_window, window) for window in todo)
        made = 0
        with progress_bar(f"{product.rasters[0].label.rpartition('/')[2]}", len(todo)) as advance:
            for outcome in run_bounded(self.client, calls, self.policy):
                self._note(outcome)
                made += outcome.error is None
                if outcome.error is not None and outcome.final:
                    failed[outcome.call.about] = str(outcome.error)
                if outcome.final:
                    advance()
        return made, tuple(Failure(window, why) for window, why in sorted(failed.items()))

    def make_overviews(self) -> None:
        """Make what is above the windows.

        Raises
        ------
        S2CompositeError
            One could not be made.
        """
        depth = max(len(stages) for stages in self.product.stages)
        for level in range(1, depth):
            for outcome in run_bounded(self.client, self._overview_calls(level), self.policy):
                if outcome.error is not None and outcome.final:
                    raise outcome.error

    def _overview_calls(self, level: int) -> Iterator[Call]:
        for number, stages in enumerate(self.product.stages):
            if level < len(stages):
                stage = stages[level]
                rows, columns = map(len, stage.chunks)
                for window in ((row, column) for row in range(rows) for column in range(columns)):
                    make = partial(make_overview, number=number, stage=stage, position=window)
                    yield self._call(f"overview-{number}-{level}", window, make)

    def _call(self, kind: str, window: tuple[int, int], function: Any, *args: Any) -> Call:
        name = f"{kind}-{self.product.token[:8]}-{window[0]}-{window[1]}-{uuid.uuid4().hex[:4]}"
        return Call(name, function, (self._held, *args), window)

    @cached_property
    def _held(self) -> Any:
        """The product on the cluster; whoever loses it gets it from the scheduler again."""
        return self.client.submit(_hold, self.product, key=f"product-{self.product.token[:16]}", pure=True)

    def _note(self, outcome: Outcome) -> None:
        facts: dict[str, Any] = {
            "token": self.product.token,
            "window": list(outcome.call.about),
            "attempt": outcome.attempt,
            "seconds": round(outcome.seconds, 3),
        }
        if outcome.error is None:
            done = outcome.result
            facts |= {"worker": done.worker, "read": round(done.read_and_reduce, 3), "encode": round(done.encode, 3)}
            facts |= {"failed_scenes": list(done.failed_scenes)} if done.failed_scenes else {}
            self.ledger.add("done", **facts)
        else:
            facts |= {"worker": outcome.worker, "error": str(outcome.error), "kind": type(outcome.error).__name__}
            self.ledger.add("failed" if outcome.final else "retry", **facts)


def _hold(product: Product) -> Product:
    return product
