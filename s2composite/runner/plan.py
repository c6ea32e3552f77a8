"""Plans: what a job will read, hold in memory and write, window by window, before anything is read."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from s2composite.cube.composite import Composite
from s2composite.errors import JobError, S2CompositeError
from s2composite.jobs.grid import Cell, read_area
from s2composite.jobs.schema import Job, load_job
from s2composite.reading.grid import centre_longitude, footprint
from s2composite.runner.inputs import (
    cell_job,
    chosen_windows,
    job_cells,
    job_composite,
    job_scenes,
    ledger_key,
    output_block,
    require_fit,
    require_scenes,
    scenes_within,
    task_memory,
    workers_of,
)
from s2composite.runner.ledger import failures_in, read_turns
from s2composite.runner.product import Product, plan_product, product_state
from s2composite.runner.run import SpanJob, span_jobs
from s2composite.scenes.dates import day_of
from s2composite.writing.options import RasterOptions
from s2composite.writing.publish import put_small, target_of

__all__ = [
    "Plan",
    "SpanPlan",
    "WindowPlan",
    "plan_cells",
    "plan_job",
    "plan_rows",
    "plan_spans",
    "told_time",
    "write_csv",
    "write_geojson",
]

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


@dataclass(frozen=True, eq=False)
class SpanPlan:
    """What one unit of a span will take.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "{{pointInTime}}.tif", "span": {"start": 2022, "end": 2022}}
    >>> next(plan_spans(job)).explain().partition(":")[0]
    '2022'
    """

    unit: SpanJob
    """The unit, and what the job means for it."""

    plans: tuple[tuple[Cell | None, Plan | None], ...] = ()
    """A plan, or with a grid one for each cell (None: too few scenes touch it)."""

    error: S2CompositeError | None = None
    """Why it cannot be made."""

    def explain(self) -> str:
        """Return a line for each product."""
        label = self.unit.period.label
        if self.error is not None:
            return f"{label}: {self.error}"
        lines = []
        for cell, plan in self.plans:
            name = label if cell is None else f"{label}, {cell.name}"
            lines.append(f"{name}: {f'{plan.summary()} -> {plan.files[0]}' if plan else 'too few scenes touch it'}")
        return "\n".join(lines)


def plan_spans(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    *,
    since: str | None = None,
    today: dt.date | None = None,
    check: bool = True,
    windows: str | Collection[tuple[int, int]] | None = None,
    cells: str | None = None,
    area: str | Geometry | None = None,
) -> Iterator[SpanPlan]:
    """Plan a job with a span, unit by unit; one that cannot be made stops no other.

    Parameters
    ----------
    job, since, today
        As for `run_spans`.
    check, windows, cells, area
        As for `plan_job`, or `plan_cells` if the job has a grid.

    Raises
    ------
    JobError
        The job or its span is wrong.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "{{pointInTime}}.tif", "span": {"start": 2023, "end": 2023}}
    >>> [(one.unit.period.label, len(plan.scenes)) for one in plan_spans(job) for _, plan in one.plans]
    [('2023', 3)]
    """
    job = job if isinstance(job, Job) else load_job(job)
    for unit in span_jobs(job, since, today):
        label = unit.period.label
        planned: list[tuple[Cell | None, Plan | None]]
        try:
            if job.grid is None:
                planned = [(None, plan_job(unit.job, check=check, windows=windows, area=area))]
            else:
                planned = [*plan_cells(unit.job, check=check, cells=cells, area=area)]
        except S2CompositeError as error:
            yield SpanPlan(unit, error=error)
        else:
            yield SpanPlan(unit, tuple((cell, plan and replace(plan, unit=label)) for cell, plan in planned))


Named = tuple[str | None, Plan]
"""A plan and the name of its cell; None: the job has no grid."""


def plan_rows(plans: Sequence[Named]) -> list[dict[str, Any]]:
    """Return a row for each period and window.

    Columns are those of odc-stats (``T``, ``X``, ``Y``, ``datasets``, ``days``), then the cell, what reading takes, and
    what there is already.
    """
    return [
        {
            "T": label,
            "X": w.window[1],
            "Y": w.window[0],
            "datasets": len(w.scenes),
            "days": w.days,
            "cell": cell or "",
            "index": w.index,
            "requests": w.requests,
            "bytes": w.bytes,
            "decoded": w.decoded,
            "memory": plan.task_memory,
            "product": plan.state,
            "state": w.state,
        }
        for cell, plan in plans
        for label in plan.periods or (plan.unit or "all",)
        for w in plan.windows
    ]


def write_csv(plans: Sequence[Named], path: str | Path) -> None:
    """Write the rows of plans as CSV.

    Raises
    ------
    WriteError
        It cannot be written there.

    Examples
    --------
    >>> from s2composite import plan_job
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> plan = plan_job({"source": "doctest_scenes", "output": "planned.tif", "period": "2023-04/2023-09"})
    >>> write_csv([(None, plan)], "windows.csv")
    >>> Path("windows.csv").read_text().splitlines()[0]
    'T,X,Y,datasets,days,cell,index,requests,bytes,decoded,memory,product,state'
    """
    rows = plan_rows(plans)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["T", "X", "Y", "datasets", "days"])
    writer.writeheader()
    writer.writerows(rows)
    put_small(text.getvalue().encode(), target_of(path, overwrite=True), overwrite=True)


def write_geojson(plans: Sequence[Named], path: str | Path) -> None:
    """Write the windows of plans as polygons in degrees, one feature for each window.

    Raises
    ------
    WriteError
        It cannot be written there.

    Examples
    --------
    >>> from s2composite import plan_job
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> write_geojson([(None, plan_job({"source": "doctest_scenes", "output": "planned.tif"}))], "windows.geojson")
    >>> json.loads(Path("windows.geojson").read_text())["features"][0]["properties"]["region_code"]
    'x000y000'
    """
    features = [
        {
            "type": "Feature",
            "geometry": _outline(plan.geobox, w),
            "properties": {
                "title": " ".join(filter(None, [plan.unit, cell, f"window {w.window[0]}/{w.window[1]}"])),
                "region_code": f"x{w.window[1]:03d}y{w.window[0]:03d}",
                "cell": cell,
                "unit": plan.unit,
                "ix": w.window[1],
                "iy": w.window[0],
                "index": w.index,
                "total": len(w.scenes),
                "days": w.days,
                "bytes": w.bytes,
                "state": w.state,
            },
        }
        for cell, plan in plans
        for w in plan.windows
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    put_small(text.encode(), target_of(path, overwrite=True), overwrite=True)


def _outline(geobox: GeoBox, window: WindowPlan) -> dict[str, Any] | None:
    if geobox.crs is None:
        return None
    top, bottom, left, right = window.pixels
    shape: dict[str, Any] = footprint(geobox[top:bottom, left:right]).json
    return shape
