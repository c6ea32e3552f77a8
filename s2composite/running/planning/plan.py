"""Plan: what a job will read, hold in memory and write, window by window, before anything is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from s2composite.compositing import Composite
from s2composite.errors import JobError
from s2composite.reading.grid import centre_longitude
from s2composite.running.cells import Cell, read_area
from s2composite.running.history import failures_in
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.ledger import read_turns
from s2composite.running.planning.sizing import require_fit, task_memory, workers_of
from s2composite.running.products.product import Product, plan_product, product_state
from s2composite.running.scope import (
    cell_job,
    job_cells,
    job_composite,
    job_scenes,
    ledger_key,
    output_block,
    require_scenes,
    scenes_within,
)
from s2composite.running.selection import chosen_windows
from s2composite.scenes.periods import day_of
from s2composite.writing.options import RasterOptions

__all__ = ["Plan", "WindowPlan", "plan_cells", "plan_job", "told_time"]

_DECODED = 250e6
"""Bytes of pixels that one core decodes, reduces and encodes in a second: 78 GB of JPEG in 2.2 minutes on two."""

_GDAL_DECODED = 60e6
"""The same for what GDAL reads."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """One window.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> window = plan_job({"source": "doctest_scenes", "output": "planned.tif"}).windows[0]
    >>> window.pixels, window.days, window.state
    ((0, 256, 0, 256), 3, 'new')
    """

    index: int
    """Its number, row by row."""

    window: tuple[int, int]
    """Row and column of windows."""

    pixels: tuple[int, int, int, int]
    """Top, bottom, left and right, in pixels of the output."""

    scenes: tuple[int, ...]
    """Positions of the scenes that are read."""

    days: int
    """Mean solar days that these are of."""

    requests: int
    """Byte ranges that are read."""

    bytes: int
    """Their size together."""

    decoded: int
    """Bytes of pixels that are decoded."""

    gdal: int
    """Files that GDAL reads, of which requests and bytes are not known."""

    state: str
    """``"new"``, ``"done"`` or ``"failed"``."""


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """What a job will do; shown as `explain` says it.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> plan = plan_job({"source": "doctest_scenes", "output": "planned.tif"})
    >>> len(plan.scenes), plan.task_memory < plan.worker_limit
    (3, True)
    """

    state: str
    """``"new"``; ``"begun"``: some windows are done; ``"skip"``: the output is complete; ``"recompute"``: it is there,
    but of other scenes or parameters."""

    files: tuple[str, ...]
    """What will be written."""

    geobox: GeoBox
    """Grid of the output."""

    scenes: tuple[str, ...]
    """Names of the scenes."""

    periods: tuple[str, ...]
    """Labels of the periods; empty: all scenes make one composite."""

    windows: tuple[WindowPlan, ...]
    """The windows, row by row."""

    task_memory: int
    """Bytes that making the largest window takes."""

    worker_memory: int
    """Bytes that a worker process needs for all its threads."""

    worker_limit: int
    """Bytes that a worker may use."""

    workers: int
    """Worker processes."""

    threads: int
    """Threads of each."""

    unit: str | None = None
    """The unit of a span that it is about, ``"2012-01"``; None: the job has none."""

    @property
    def minutes(self) -> float:
        """An estimate of the time on these workers, if reading is not bound by the network."""
        todo = [w for w in self.windows if w.state != "done"]
        seconds = sum(w.decoded / (_GDAL_DECODED if w.gdal else _DECODED) for w in todo)
        return seconds / 60 / max(self.workers * self.threads, 1)

    def __repr__(self) -> str:
        return self.explain()

    def summary(self) -> str:
        """Return the plan in one line."""
        states = ", ".join(f"{n} {state}" for state, n in self._states().items() if n)
        read, scenes = _size(sum(w.bytes for w in self.windows)), _plural(len(self.scenes), "scene")
        return f"{self.state}: {states} of {len(self.windows)} windows, {scenes}, {read}, {told_time(self.minutes)}"

    def _states(self) -> dict[str, int]:
        return {state: sum(w.state == state for w in self.windows) for state in ("new", "done", "failed")}

    def explain(self) -> str:
        """Return the plan in a few lines."""
        states = self._states()
        top = self.windows[0].pixels
        days = {w.days for w in self.windows}
        total = sum(w.bytes for w in self.windows)
        read = f"{_size(total)} in {_plural(sum(w.requests for w in self.windows), 'request')}"
        unknown = sum(w.gdal for w in self.windows)
        memory = f"{_gib(self.worker_memory)} of {_gib(self.worker_limit)} a worker"
        threads = f"{_plural(self.workers, 'worker')} x {_plural(self.threads, 'thread')}"
        between = f"{min(days)}" if len(days) == 1 else f"{min(days)} to {max(days)}"
        size = f"{self.geobox.shape.y} x {self.geobox.shape.x} pixels of {self.geobox.crs}"
        lines = [
            f"output    {', '.join(self.files[:3])}{f' and {len(self.files) - 3} more' if len(self.files) > 3 else ''}",
            f"state     {self.state}: {', '.join(f'{n} {state}' for state, n in states.items() if n)}",
            f"grid      {size}, {_plural(len(self.windows), 'window')} of up to {top[1] - top[0]} x {top[3] - top[2]}",
            f"scenes    {len(self.scenes)}, on {between} solar days a window",
            f"periods   {', '.join(self.periods[:6])}{' ...' if len(self.periods) > 6 else ''}" if self.periods else "",
            f"reads     {read}{f', and {unknown} windows of files through GDAL' if unknown else ''}",
            f"decodes   {_size(sum(w.decoded for w in self.windows))} of pixels",
            f"memory    {_gib(self.task_memory)} a task, {memory}",
            f"time      {told_time(self.minutes)} on {threads}, network permitting",
        ]
        return "\n".join(line for line in lines if line)


def _gib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if size < 2**29 else f"{size / 2**30:.1f} GiB"


def _size(size: float) -> str:
    """Return a number of bytes as people say it.

    >>> _size(8_400_000), _size(78_000_000_000), _size(2.5e12)
    ('8.4 MB', '78.0 GB', '2.5 TB')
    """
    unit, one = next((pair for pair in (("TB", 1e12), ("GB", 1e9)) if size >= pair[1]), ("MB", 1e6))
    return f"{size / one:.1f} {unit}"


def told_time(minutes: float) -> str:
    """Return an estimate of a time: no more figures than it is good for.

    >>> told_time(0), told_time(0.4), told_time(7.2), told_time(200)
    ('no time', 'under a minute', 'about 7 minutes', 'about 3.3 hours')
    """
    if minutes < 1:
        return "under a minute" if minutes else "no time"
    return f"about {_plural(round(minutes), 'minute')}" if minutes < 90 else f"about {minutes / 60:.1f} hours"


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def plan_job(
    job: Job | str | Path | Mapping[str, Any],
    *,
    check: bool = True,
    windows: str | Collection[tuple[int, int]] | None = None,
    area: str | Geometry | None = None,
) -> Plan:
    """Plan a job: only headers are read, and nothing is written.

    Parameters
    ----------
    job
        As for `run_job`.
    check
        Refuse a job whose windows do not fit into the memory of its workers.
    windows, area
        Only these windows, as for `run_job`.

    Returns
    -------
    Plan
        Windows, scenes, bytes, requests, memory and time; ``explain()`` puts them in words.

    Raises
    ------
    ParameterError
        The windows do not fit; says what would.
    S2CompositeError
        The job or its scenes are wrong; a subclass for each.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> plan = plan_job({"source": "doctest_scenes", "output": "planned.tif"})
    >>> plan.state, len(plan.windows), len(plan.windows[0].scenes)
    ('new', 1, 3)
    """
    job = job if isinstance(job, Job) else load_job(job)
    if job.span is not None:
        raise JobError("the job has a span, so it makes many products: plan_spans() plans it", key="span")
    if job.grid is not None:
        raise JobError("the job has a grid, so it makes many products: plan_cells() plans it", key="grid")
    within = read_area(area) if isinstance(area, str) else area
    result = job_composite(job, job_scenes(job))
    require_scenes(job, result)
    return _planned(job, result, check=check, chosen=windows, area=within)


def plan_cells(
    job: Job | str | Path | Mapping[str, Any],
    *,
    check: bool = True,
    cells: str | None = None,
    area: str | Geometry | None = None,
) -> Iterator[tuple[Cell, Plan | None]]:
    """Plan a job that has a grid, cell by cell; None for a cell that too few scenes touch (``policy.min_scenes``).

    Parameters
    ----------
    job, check
        As for `plan_job`.
    cells, area
        Only these cells, as for `run_cells`.

    Yields
    ------
    cell, plan
        In the order of the grid.

    Raises
    ------
    S2CompositeError
        As for `plan_job`.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "{cell}.tif", "grid": "EPSG:32631;10;100"}
    >>> job |= {"bbox": [0.5111, 44.2216, 0.5113, 44.2218]}
    >>> [(cell.name, plan.state) for cell, plan in plan_cells(job)]
    [('x0301y4899', 'new')]
    """
    job = job if isinstance(job, Job) else load_job(job)
    if job.span is not None:
        raise JobError("the job has a span, so it makes many products: plan_spans() plans it", key="span")
    within = read_area(area) if isinstance(area, str) else area
    chosen, scenes = job_cells(job, cells, within), job_scenes(job)
    with TemporaryDirectory() as folder:
        for cell in chosen:
            result = job_composite(job, scenes, cell.geobox, str(Path(folder, "headers.index")))
            enough = scenes_within(result) >= job.policy.min_scenes
            yield cell, _planned(cell_job(job, cell), result, check=check) if enough else None


def _planned(
    job: Job,
    result: Composite,
    *,
    check: bool,
    chosen: str | Collection[tuple[int, int]] | None = None,
    area: Geometry | None = None,
) -> Plan:
    product = plan_product(result.dataset, job.output, layers=job.layers, options=RasterOptions(**(job.raster or {})))
    events, done = read_turns(ledger_key(job)), product.done()
    failed = failures_in(events, product.token)
    state = product_state(product, events, begun=bool(done))
    states = {window: "done" if window in done or state == "skip" else "new" for window in product.windows}
    states |= {window: "failed" for window in failed if window not in done}
    workers = workers_of(job.cluster)
    wanted = chosen_windows(product.work.stack.geobox, product.work.spatial, chosen, area)
    windows = tuple(
        _window(product, i, window, states[window]) for i, window in enumerate(product.windows) if window in wanted
    )
    task = max(task_memory(product.work, product.stage.window(*w.window)) for w in windows)
    plan = Plan(
        state,
        product.files,
        product.work.stack.geobox,
        tuple(scene.id for scene in product.work.stack.scenes),
        tuple(map(str, result.dataset["period"].values)) if "period" in result.dataset.coords else (),
        windows,
        task,
        workers.need(task),
        workers.limit,
        workers.count,
        workers.threads,
    )
    if check:
        require_fit(product.work, task, workers, output_block(job))
    return plan


def _window(product: Product, index: int, window: tuple[int, int], state: str) -> WindowPlan:
    stack = product.work.stack
    y, x = product.stage.window(*window)
    cost = stack.cost((y, x))
    longitude = 0.0 if stack.geobox.crs is None else centre_longitude(stack.geobox[y, x])
    days = {day_of(stack.scenes[t].time, "solar", longitude) for t in cost.scenes}
    pixels = (y.start, y.stop, x.start, x.stop)
    return WindowPlan(
        index, window, pixels, cost.scenes, len(days), cost.requests, cost.bytes, cost.decoded, cost.gdal, state
    )
