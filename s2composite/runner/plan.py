"""Plans: what a job will read, hold in memory and write, window by window, before anything is read."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from s2composite.cube.composite import Composite
from s2composite.cube.open import window_at
from s2composite.errors import S2CompositeError, listed, plural, size_text
from s2composite.jobs.schema import Job
from s2composite.reading.grid import centre_longitude, footprint
from s2composite.runner.inputs import (
    ProductJob,
    ledger_key,
    output_block,
    product_composite,
    require_fit,
    require_kind,
    scenes_of_products,
    select_windows,
    selected_products,
    task_memory,
    workers_of,
)
from s2composite.runner.ledger import failures_in, read_turns
from s2composite.runner.product import plan_product, product_state
from s2composite.scenes.dates import day_of
from s2composite.storage.limits import Limit, limit_shares
from s2composite.writing.publish import put_small, target_of

__all__ = [
    "JobPlan", "Plan", "ProductPlan", "WindowPlan", "estimate", "plan", "plan_cells", "plan_job", "plan_spans",
    "write_csv", "write_geojson",
]  # fmt: skip

# Bytes of pixels that one core decodes, reduces and encodes in a second: 78 GB of JPEG in 2.2 minutes on two.
_DECODED = 250e6
_GDAL_DECODED = 60e6  # the same for what GDAL reads


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
    """Byte ranges that are read at most, those of masks included."""
    bytes: int
    """Their size together."""
    decoded: int
    """Bytes of pixels that are decoded at most."""
    gdal: int
    """Files that GDAL reads, of which requests and bytes are not known."""
    state: str
    """``"new"``, ``"done"`` or ``"failed"``."""
    seconds: float = 0.0
    """What a thread computes for masks beside reading, where that is known (`CloudNet`)."""


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """What a job will do; shown as `explain` says it."""

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
    at_most: bool = False
    """Whether less may be read: tiles under clouds of a mask, and scenes that do not matter any more, are not."""
    limits: tuple[tuple[Limit, float], ...] = ()
    """The limits of hosts that the files are on, and the share of the files that each holds for."""

    @property
    def minutes(self) -> float:
        """An estimate of the time on these workers, if reading is not bound by the network but by limits of hosts."""
        todo = self._todo()
        seconds = sum(w.decoded / (_GDAL_DECODED if w.gdal else _DECODED) + w.seconds for w in todo)
        return max(seconds / 60 / max(self.workers * self.threads, 1), self.limited[0])

    @property
    def limited(self) -> tuple[float, Limit | None]:
        """Minutes that the reads take at least under the limits of hosts, and the limit that says so.

        What GDAL reads is not in it.
        """
        todo = self._todo()
        requests, size = sum(w.requests for w in todo), sum(w.bytes for w in todo)
        times = [(limit.seconds(share * requests, share * size) / 60, limit) for limit, share in self.limits]
        return max(times, key=lambda one: one[0], default=(0.0, None))

    def _todo(self) -> list[WindowPlan]:
        return [w for w in self.windows if w.state != "done"]

    def __repr__(self) -> str:
        return self.explain()

    def summary(self) -> str:
        """Return the plan in one line."""
        states = ", ".join(f"{n} {state}" for state, n in self._states().items() if n)
        read, scenes = self._most(size_text(sum(w.bytes for w in self.windows))), plural(len(self.scenes), "scene")
        return f"{self.state}: {states} of {len(self.windows)} windows, {scenes}, {read}, {estimate(self.minutes)}"

    def _most(self, text: str) -> str:
        return f"at most {text}" if self.at_most else text

    def _states(self) -> dict[str, int]:
        return {state: sum(w.state == state for w in self.windows) for state in ("new", "done", "failed")}

    def explain(self) -> str:
        """Return the plan in a few lines."""
        states, (least, limit) = self._states(), self.limited
        top = self.windows[0].pixels
        days = {w.days for w in self.windows}
        read = size_text(sum(w.bytes for w in self.windows))
        read += f" in {plural(sum(w.requests for w in self.windows), 'request')}"
        unknown = sum(w.gdal for w in self.windows)
        memory = f"{_gib(self.worker_memory)} of {_gib(self.worker_limit)} a worker"
        threads = f"{plural(self.workers, 'worker')} x {plural(self.threads, 'thread')}"
        between = f"{min(days)}" if len(days) == 1 else f"{min(days)} to {max(days)}"
        size = f"{self.geobox.shape.y} x {self.geobox.shape.x} pixels of {self.geobox.crs}"
        lines = [
            f"output    {listed(self.files, 3)}",
            f"state     {self.state}: {', '.join(f'{n} {state}' for state, n in states.items() if n)}",
            f"grid      {size}, {plural(len(self.windows), 'window')} of up to {top[1] - top[0]} x {top[3] - top[2]}",
            f"scenes    {len(self.scenes)}, on {between} solar days a window",
            f"periods   {', '.join(self.periods[:6])}{' ...' if len(self.periods) > 6 else ''}" if self.periods else "",
            f"reads     {self._most(read)}{f', and {unknown} windows of files through GDAL' if unknown else ''}",
            f"decodes   {self._most(size_text(sum(w.decoded for w in self.windows)))} of pixels",
            f"memory    {_gib(self.task_memory)} a task, {memory}",
            f"limits    these reads take {estimate(least)} at least by {limit}" if least else "",
            f"time      {estimate(self.minutes)} on {threads}, network permitting",
        ]
        return "\n".join(line for line in lines if line)


def _gib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB" if size < 2**29 else f"{size / 2**30:.1f} GiB"


def estimate(minutes: float) -> str:
    """Return an estimate of a time: no more figures than it is good for.

    >>> estimate(0), estimate(0.4), estimate(7.2), estimate(200)
    ('no time', 'under a minute', 'about 7 minutes', 'about 3.3 hours')
    """
    if minutes < 1:
        return "under a minute" if minutes else "no time"
    return f"about {plural(round(minutes), 'minute')}" if minutes < 90 else f"about {minutes / 60:.1f} hours"


Named = tuple[str | None, Plan]  # a plan and the name of its cell; None: the job has no grid


@dataclass(frozen=True, eq=False)
class ProductPlan:
    """What one product of a job will take."""

    product: ProductJob
    """Which one: its name, period and cell, and what the job means for it."""
    plan: Plan | None = None
    """None: it cannot be made, or is a cell that fewer scenes touch than ``policy.min_scenes``."""
    error: S2CompositeError | None = None
    """Why it cannot be made."""

    def explain(self) -> str:
        """Return it in one line."""
        if self.plan is None:
            return f"{self.product.name}: {self.error or 'too few scenes touch it'}"
        return f"{self.product.name}: {self.plan.summary()} -> {self.plan.files[0]}"


@dataclass(frozen=True, eq=False, repr=False)
class JobPlan:
    """What a job will do; shown as `explain` says it.

    The plan of a job that makes one product has the attributes of `Plan` itself: ``state``, ``windows``, ``scenes`` ...
    """

    products: tuple[ProductPlan, ...]
    """In the order of the job: units of the span by time, cells of the grid by name."""

    @property
    def plans(self) -> tuple[Named, ...]:
        """The plans of products that can be made, each after the name of its cell: what the tables are made of."""
        pairs = ((one.product.cell, one.plan) for one in self.products)
        return tuple((None if cell is None else cell.name, plan) for cell, plan in pairs if plan is not None)

    @property
    def minutes(self) -> float:
        """An estimate of the time on these workers, if reading is not bound by the network."""
        return sum(plan.minutes for _, plan in self.plans)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or len(self.products) != 1 or self.products[0].plan is None:
            raise AttributeError(f"a plan of {len(self.products)} products has no {name!r}; see its products")
        return getattr(self.products[0].plan, name)

    def __repr__(self) -> str:
        return self.explain()

    def explain(self) -> str:
        """Return the plan in a few lines, or of several products in a line for each."""
        if len(self.products) == 1 and self.products[0].product.name is None and self.products[0].plan is not None:
            return self.products[0].plan.explain()
        lines = [one.explain() for one in self.products]
        return "\n".join([*lines, f"{plural(len(lines), 'product')}, {estimate(self.minutes)} in all"])


def plan(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    *,
    check: bool = True,
    windows: str | Collection[tuple[int, int]] | None = None,
    cells: str | None = None,
    area: str | Geometry | None = None,
    since: str | None = None,
    today: dt.date | None = None,
    on_product: Callable[[ProductPlan], None] | None = None,
) -> JobPlan:
    """Plan a job: only headers are read, and nothing is written.

    Parameters
    ----------
    job
        A Job, or what `load_job` takes: the path of a job file, YAML text, a mapping.
    check
        Refuse a job whose windows do not fit into the memory of its workers.
    windows, cells, area, since, today
        Only these windows, cells or units, as for `run`.
    on_product
        Called with the plan of each product when it is made.

    Returns
    -------
    JobPlan
        For each product windows, scenes, bytes, requests, memory and time; ``explain()`` puts them in words. Of the
        units of a span one that cannot be made stops no other: its plan has an `error`.

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
    >>> found = plan({"source": "doctest_scenes", "output": "planned.tif"})
    >>> found.state, len(found.scenes), found.task_memory < found.worker_limit
    ('new', 3, True)
    >>> found.windows[0].pixels, found.windows[0].days, found.windows[0].state
    ((0, 256, 0, 256), 3, 'new')
    >>> job = {"source": "doctest_scenes", "output": "{{pointInTime}}.tif", "span": {"start": 2023, "end": 2023}}
    >>> [(one.product.name, len(one.plan.scenes)) for one in plan(job).products]
    [('2023', 3)]
    """
    job, products, within = selected_products(job, since, today, windows, cells, area)
    plans = []
    with TemporaryDirectory() as folder:
        for product, scenes, index in scenes_of_products(products, folder):
            try:
                composite = product_composite(product, scenes, index)
                planned = None if composite is None else _planned(product, composite, windows, within, check=check)
                one = ProductPlan(product, planned)
            except S2CompositeError as error:
                if job.span is None:
                    raise
                one = ProductPlan(product, error=error)
            plans.append(one)
            if on_product is not None:
                on_product(one)
    return JobPlan(tuple(plans))


def _planned(
    source: ProductJob,
    composite: Composite,
    selected: str | Collection[tuple[int, int]] | None,
    area: Geometry | None,
    *,
    check: bool,
) -> Plan:
    job, dataset = source.job, composite.dataset
    product = plan_product(job, dataset)
    stack = product.work.stack
    events, done = read_turns(ledger_key(job)), product.output.done()
    state = product_state(product, events, begun=bool(done))
    states = {window: "done" if window in done or state == "skip" else "new" for window in product.windows}
    states |= {window: "failed" for window in failures_in(events, product.token) if window not in done}
    workers = workers_of(job.cluster)
    wanted = select_windows(stack.geobox, product.work.spatial, selected, area)
    windows = []
    for i, window in enumerate(product.windows):
        if window in wanted:
            y, x = window_at(product.work.spatial, *window)
            cost = stack.cost((y, x))
            costs = [cost, *(one for mask in product.work.masks for one in mask.costs((y, x)))]
            longitude = 0.0 if stack.geobox.crs is None else centre_longitude(stack.geobox[y, x])
            days = {day_of(stack.scenes[t].time, "solar", longitude) for t in cost.scenes}
            read = (
                sum(one.requests for one in costs),
                sum(one.bytes for one in costs),
                sum(one.decoded for one in costs),
                sum(one.gdal for one in costs),
            )
            seconds = sum(one.seconds for one in costs)
            pixels = (y.start, y.stop, x.start, x.stop)
            windows.append(WindowPlan(i, window, pixels, cost.scenes, len(days), *read, states[window], seconds))
    task = max(task_memory(product.work, window_at(product.work.spatial, *w.window)) for w in windows)
    if check:
        require_fit(product.work, task, workers, output_block(job))
    return Plan(
        state,
        product.files,
        stack.geobox,
        tuple(scene.id for scene in stack.scenes),
        tuple(map(str, dataset["period"].values)) if "period" in dataset.coords else (),
        tuple(windows),
        task,
        workers.need(task),
        workers.limit,
        workers.count,
        workers.threads,
        None if source.period is None else source.period.label,
        bool(product.work.masks) or product.work.recipe.ends_early,
        limit_shares(source.header.href for files in stack.sources for source in files),
    )


_COLUMNS = (
    "T", "X", "Y", "datasets", "days", "cell", "index", "requests", "bytes", "decoded", "memory", "product", "state",
)  # fmt: skip


def write_csv(plans: Sequence[Named], path: str | Path) -> None:
    """Write plans as CSV, a row for each period and window.

    Columns are those of odc-stats (``T``, ``X``, ``Y``, ``datasets``, ``days``), then the cell, what reading takes, and
    what there is already.

    Raises
    ------
    WriteError
        It cannot be written there.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "planned.tif", "period": "2023-04/2023-09"}
    >>> write_csv(plan(job).plans, "windows.csv")
    >>> Path("windows.csv").read_text().splitlines()[0]
    'T,X,Y,datasets,days,cell,index,requests,bytes,decoded,memory,product,state'
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS if plans else _COLUMNS[:5])
    for cell, one in plans:
        for label in one.periods or (one.unit or "all",):
            for w in one.windows:
                place = (label, w.window[1], w.window[0], len(w.scenes), w.days, cell or "", w.index)
                writer.writerow((*place, w.requests, w.bytes, w.decoded, one.task_memory, one.state, w.state))
    put_small(text.getvalue().encode(), target_of(path, overwrite=True), overwrite=True)


def write_geojson(plans: Sequence[Named], path: str | Path) -> None:
    """Write the windows of plans as polygons in degrees, one feature for each window.

    Raises
    ------
    WriteError
        It cannot be written there.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> write_geojson(plan({"source": "doctest_scenes", "output": "planned.tif"}).plans, "windows.geojson")
    >>> json.loads(Path("windows.geojson").read_text())["features"][0]["properties"]["region_code"]
    'x000y000'
    """

    def outline(geobox: GeoBox, window: WindowPlan) -> dict[str, Any] | None:
        top, bottom, left, right = window.pixels
        return None if geobox.crs is None else footprint(geobox[top:bottom, left:right]).json

    features = [
        {
            "type": "Feature",
            "geometry": outline(plan.geobox, w),
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


# --- the names before `plan`, which stay for one release --------------------------------------------------------------


def plan_job(job: Job | str | os.PathLike[str] | Mapping[str, Any], **options: Any) -> JobPlan:
    """Plan a job that makes one product: the old name of `plan`, which takes every job."""
    return plan(require_kind(job, "plan"), **options)


def plan_cells(
    job: Job | str | os.PathLike[str] | Mapping[str, Any], **options: Any
) -> Iterator[tuple[Any, Plan | None]]:
    """Plan a job with a grid; yield each cell and its plan, None for one that too few scenes touch. Use `plan`."""
    for one in plan(require_kind(job, "plan", grid=True), **options).products:
        yield one.product.cell, one.plan


def plan_spans(job: Job | str | os.PathLike[str] | Mapping[str, Any], **options: Any) -> Iterator[ProductPlan]:
    """Plan a job with a span; yield the plan of each product. Use `plan`."""
    yield from plan(require_kind(job, "plan", span=True), **options).products
