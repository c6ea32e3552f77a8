"""Plan: what a job will read, hold in memory and write, window by window, before anything is read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed.system import MEMORY_LIMIT
from odc.geo.geobox import GeoBox

from s2composite.compositing import Composite
from s2composite.days import products_near
from s2composite.errors import JobError, ParameterError
from s2composite.reading.grid import Window
from s2composite.running.cells import Cell
from s2composite.running.cluster_local import LocalOptions
from s2composite.running.job import Job, load_job
from s2composite.running.ledger import failures_in, read_ledger
from s2composite.running.product import Product, plan_product, product_state
from s2composite.running.scope import cell_job, job_cells, job_composite, job_scenes, ledger_key, reaches
from s2composite.scenes.periods import day_of
from s2composite.windows import Work
from s2composite.writing.options import RasterOptions

__all__ = ["Plan", "WindowPlan", "chosen_windows", "plan_cells", "plan_job"]

_DECODED = 250e6
"""Bytes of pixels that one core decodes, reduces and encodes in a second: 78 GB of JPEG in 2.2 minutes on two."""

_GDAL_DECODED = 60e6
"""The same for what GDAL reads."""

_OVERHEAD = 1.25
"""Memory of a task over the bytes of its window's observations: measured, see `tests/test_compositing.py`."""

_PROCESS = 400 << 20
"""Bytes of a worker process that has done nothing yet but load the libraries and kernels."""


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

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each period and window: the columns of odc-stats first (T, X, Y, datasets, days)."""
        labels = self.periods or ("all",)
        return [
            {
                "T": label,
                "X": w.window[1],
                "Y": w.window[0],
                "datasets": len(w.scenes),
                "days": w.days,
                "requests": w.requests,
                "bytes": w.bytes,
                "decoded": w.decoded,
                "memory": self.task_memory,
                "state": w.state,
            }
            for label in labels
            for w in self.windows
        ]

    def to_csv(self, path: str | Path) -> None:
        """Write the rows as CSV."""
        rows = self.rows()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def to_geojson(self, path: str | Path) -> None:
        """Write the windows as polygons in degrees, with the facts of their rows, one feature for each window."""
        features = [
            {
                "type": "Feature",
                "geometry": _outline(self.geobox, w),
                "properties": {
                    "title": f"window {w.window[0]}/{w.window[1]}",
                    "region_code": f"x{w.window[1]:03d}y{w.window[0]:03d}",
                    "ix": w.window[1],
                    "iy": w.window[0],
                    "index": w.index,
                    "total": len(w.scenes),
                    "days": w.days,
                    "bytes": w.bytes,
                    "state": w.state,
                },
            }
            for w in self.windows
        ]
        Path(path).write_text(json.dumps({"type": "FeatureCollection", "features": features}), "utf-8")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _outline(geobox: GeoBox, window: WindowPlan) -> dict[str, Any] | None:
    if geobox.crs is None:
        return None
    top, bottom, left, right = window.pixels
    shape: dict[str, Any] = geobox[top:bottom, left:right].extent.to_crs("EPSG:4326").json
    return shape


def plan_job(job: Job | str | Path | Mapping[str, Any], *, check: bool = True) -> Plan:
    """Plan a job: nothing is read but headers, nothing is written.

    Parameters
    ----------
    job
        As for `run_job`.
    check
        Refuse a job whose windows do not fit into the memory of its workers.

    Raises
    ------
    ParameterError
        The windows do not fit; says what would.
    S2CompositeError
        One of its kinds for what is wrong with the job or its scenes.

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
    return _planned(job, job_composite(job, job_scenes(job)), check=check)


def plan_cells(job: Job | str | Path | Mapping[str, Any], *, check: bool = True) -> Iterator[tuple[Cell, Plan | None]]:
    """Plan a job that has a grid, cell by cell; None for a cell that no scene touches.

    Raises
    ------
    S2CompositeError
        As `plan_job`.
    """
    job = job if isinstance(job, Job) else load_job(job)
    cells, scenes = job_cells(job), job_scenes(job)
    with TemporaryDirectory() as folder:
        for cell in cells:
            result = job_composite(job, scenes, cell.geobox, str(Path(folder, "headers.index")))
            yield cell, _planned(cell_job(job, cell), result, check=check) if reaches(result, cell) else None


def _planned(job: Job, result: Composite, *, check: bool) -> Plan:
    product = plan_product(result.dataset, job.output, layers=job.layers, options=RasterOptions(**(job.raster or {})))
    events = read_ledger(ledger_key(job))
    done = product.done()
    failed = failures_in(events, product.token)
    state = product_state(product, events, begun=bool(done))
    states = {window: "done" if window in done or state == "skip" else "new" for window in product.windows}
    states |= {window: "failed" for window in failed if window not in done}
    workers, threads, limit = _workers(job)
    windows = tuple(_window(product, i, window, states[window]) for i, window in enumerate(product.windows))
    task = max(_memory(product.work, product.stage.window(*w.window)) for w in windows)
    plan = Plan(
        state,
        product.files,
        product.work.stack.geobox,
        tuple(scene.id for scene in product.work.stack.scenes),
        tuple(map(str, result.dataset["period"].values)) if "period" in result.dataset.coords else (),
        windows,
        task,
        _PROCESS + task * threads,
        limit,
        workers,
        threads,
    )
    if check:
        _check_memory(plan, product)
    return plan


def _workers(job: Job) -> tuple[int, int, int]:
    """Return workers, threads of each and bytes of each; those of this machine where the job's are not known."""
    options = job.cluster
    if not isinstance(options, LocalOptions):
        return 1, 1, int(MEMORY_LIMIT)
    workers = options.workers or max(1, CPU_COUNT // (options.threads or 1))
    threads = options.threads or max(1, CPU_COUNT // workers)
    memory = parse_bytes(options.memory) if options.memory else int(MEMORY_LIMIT * 0.9) // workers
    return workers, threads, int(memory)


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


def _memory(work: Work, window: Window) -> int:
    """Return the bytes that making a window takes: its observations, masks and result."""
    stack, (y, x) = work.stack, window
    halo = work.recipe.halo
    height, width = y.stop - y.start + 2 * halo, x.stop - x.start + 2 * halo
    near = products_near(stack, (y, x), halo)
    scenes = len(near)
    overlapping = len(np.unique(stack.products.scene[near])) < scenes
    pieces = [(y, x)] if work.masks or halo or overlapping else stack.pieces((y, x))
    largest = max(stack.size(piece) for piece in pieces) * stack.dtype.itemsize * scenes // stack.shape[0]
    masks = len(work.masks) * scenes * height * width * 2
    layers = work.recipe.layers(stack.dtype, stack.shape[0])
    result = sum(layer.dtype.itemsize * (stack.shape[1] if "band" in layer.dims else 1) for layer in layers)
    return int(_OVERHEAD * largest + masks + 3 * result * max(len(work.recipe.periods or ()), 1) * height * width)


def _check_memory(plan: Plan, product: Product) -> None:
    if plan.worker_memory <= plan.worker_limit:
        return
    rows, columns = product.work.spatial
    side = max(rows[0], columns[0])
    available = max((plan.worker_limit - _PROCESS) / max(plan.threads, 1), 0)
    fits = int(side * np.sqrt(available / plan.task_memory))
    raise ParameterError(
        f"a window of {rows[0]} x {columns[0]} takes {_gib(plan.task_memory)}, {plan.threads} at once and the "
        f"process {_gib(plan.worker_memory)}, and a worker has {_gib(plan.worker_limit)}: "
        + (f"set chunks to {fits} or less" if fits >= 64 else "give workers more memory or fewer threads")
    )


def chosen_windows(windows: Sequence[WindowPlan], selection: str) -> tuple[tuple[int, int], ...]:
    """Return the windows that a selection names.

    Parameters
    ----------
    selection
        ``"7"``, a number; ``"1::10"``, a slice of numbers; ``"3/4"``, row and column; several with commas.

    Raises
    ------
    ParameterError
        It is none of these, or names no window.

    Examples
    --------
    >>> w = [WindowPlan(i, (0, i), (0, 1, i, i + 1), (), 0, 0, 0, 0, 0, "new") for i in range(5)]
    >>> chosen_windows(w, "0,2::2")
    ((0, 0), (0, 2), (0, 4))
    """
    known = {w.window for w in windows}
    chosen: dict[tuple[int, int], None] = {}
    for part in (part.strip() for part in selection.split(",")):
        chosen |= dict.fromkeys(_named(windows, part))
    if not chosen or not set(chosen) <= known:
        rows, columns = (max(axis) + 1 for axis in zip(*known, strict=True))
        raise ParameterError(
            f"windows={selection!r}: there are {len(windows)} windows, {rows} rows of {columns}; name some as 7, 1::10 "
            "or 3/4 (row/column)"
        )
    return tuple(sorted(chosen))


def _named(windows: Sequence[WindowPlan], part: str) -> list[tuple[int, int]]:
    try:
        if "/" in part:
            row, column = part.split("/")
            return [(int(row), int(column))]
        if ":" in part:
            return [w.window for w in windows[slice(*(int(n) if n else None for n in part.split(":")))]]
        return [windows[int(part)].window]
    except (ValueError, IndexError):
        return []
