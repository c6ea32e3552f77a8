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
from s2composite.reading.grid import Window
from s2composite.running.cells import Cell, read_area
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.ledger import failures_in, read_ledger
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

__all__ = ["Plan", "WindowPlan", "plan_cells", "plan_job"]

_DECODED = 250e6
"""Bytes of pixels that one core decodes, reduces and encodes in a second: 78 GB of JPEG in 2.2 minutes on two."""

_GDAL_DECODED = 60e6
"""The same for what GDAL reads."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """One window."""

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


@dataclass(frozen=True, eq=False)
class Plan:
    """What a job will do."""

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

    @property
    def minutes(self) -> float:
        """An estimate of the time on these workers, if reading is not bound by the network."""
        todo = [w for w in self.windows if w.state != "done"]
        seconds = sum(w.decoded / (_GDAL_DECODED if w.gdal else _DECODED) for w in todo)
        return seconds / 60 / max(self.workers * self.threads, 1)

    def explain(self) -> str:
        """Return the plan in a few lines."""
        states = {state: sum(w.state == state for w in self.windows) for state in ("new", "done", "failed")}
        top = self.windows[0].pixels
        days = {w.days for w in self.windows}
        total = sum(w.bytes for w in self.windows)
        read = f"{total / 1e9:.2f} GB in {sum(w.requests for w in self.windows)} requests"
        unknown = sum(w.gdal for w in self.windows)
        memory = f"{_gib(self.worker_memory)} of {_gib(self.worker_limit)} a worker"
        threads = f"{self.workers} x {self.threads} threads"
        size = f"{self.geobox.shape.y} x {self.geobox.shape.x} pixels of {self.geobox.crs}"
        lines = [
            f"output    {', '.join(self.files[:3])}{f' and {len(self.files) - 3} more' if len(self.files) > 3 else ''}",
            f"state     {self.state}: {', '.join(f'{n} {state}' for state, n in states.items() if n)}",
            f"grid      {size}, {len(self.windows)} windows of up to {top[1] - top[0]} x {top[3] - top[2]}",
            f"scenes    {len(self.scenes)}, on {min(days)} to {max(days)} solar days a window",
            f"periods   {', '.join(self.periods[:6])}{' ...' if len(self.periods) > 6 else ''}" if self.periods else "",
            f"reads     {read}{f', and {unknown} windows of files through GDAL' if unknown else ''}",
            f"decodes   {sum(w.decoded for w in self.windows) / 1e9:.2f} GB of pixels",
            f"memory    {_gib(self.task_memory)} a task, {memory}",
            f"time      about {self.minutes:.1f} minutes on {threads}, network permitting",
        ]
        return "\n".join(line for line in lines if line)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


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
    events = read_ledger(ledger_key(job))
    done = product.done()
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
    longitude = _longitude(stack.geobox, (y, x))
    days = {day_of(stack.scenes[t].time, "solar", longitude) for t in cost.scenes}
    pixels = (y.start, y.stop, x.start, x.stop)
    return WindowPlan(
        index, window, pixels, cost.scenes, len(days), cost.requests, cost.bytes, cost.decoded, cost.gdal, state
    )


def _longitude(geobox: GeoBox, window: Window) -> float:
    if geobox.crs is None:
        return 0.0
    y, x = ((s.start + s.stop) / 2 for s in window)
    centre = geobox[int(y) : int(y) + 1, int(x) : int(x) + 1].extent.centroid.to_crs("EPSG:4326")
    return float(centre.coords[0][0])
