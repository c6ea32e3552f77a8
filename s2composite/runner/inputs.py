"""What a run starts from: the products of a job, their scenes and composites, selected windows, and their size."""

from __future__ import annotations

import datetime as dt
import difflib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr
from dask.utils import parse_bytes
from distributed.system import MEMORY_LIMIT
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box

from s2composite.clusters.backends import MEMORY_SHARE, LocalOptions, local_shape
from s2composite.cube.composite import Composite, composite
from s2composite.cube.graph import Chunks
from s2composite.cube.masking import products_near
from s2composite.cube.open import auto_size, current_workers, open_cube, to_cube, window_at
from s2composite.cube.windows import Work, work_in
from s2composite.errors import JobError, ParameterError, S2CompositeError, WriteError
from s2composite.jobs.grid import Cell, cells_of, read_area, touches
from s2composite.jobs.schedule import has_template, spans_of, written_out
from s2composite.jobs.schema import CELL, Job, load_job, require_selectors
from s2composite.reading.grid import Window
from s2composite.reading.tiles import KEPT_BYTES
from s2composite.scenes.dates import Period
from s2composite.scenes.find import find_scenes
from s2composite.scenes.model import Scene
from s2composite.storage.files import absolute, is_remote
from s2composite.writing.options import RasterOptions
from s2composite.writing.zarr import StoreOptions

__all__ = [
    "ProductJob", "Selection", "Which", "Workers", "expand", "fitting_side", "job_cells", "job_composite", "job_scenes",
    "ledger_key", "output_block", "product_composite", "require_fit", "require_kind", "require_places",
    "scenes_of_products", "select_windows", "selected_products", "span_jobs", "task_memory", "workers_of",
]  # fmt: skip


# --- the products of a job --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ProductJob:
    """One product of a job: the unit of a span, the cell of a grid, both, or all there is; see `expand`."""

    job: Job
    """What the job means for it: with its dates and its output, without the span and the grid."""
    name: str | None = None
    """``"2012-04"``, ``"31TCJ"``, ``"2012-04, 31TCJ"``; None: the job makes one product."""
    period: Period | None = None
    """The unit of the span."""
    cell: Cell | None = None
    """The cell of the grid."""
    error: S2CompositeError | None = None
    """Why a unit of the span cannot be cut into cells."""


def expand(
    job: Job,
    *,
    since: str | None = None,
    today: dt.date | None = None,
    cells: str | None = None,
    area: Geometry | None = None,
    strict: bool = True,
) -> tuple[ProductJob, ...]:
    r"""Return the products of a job: of each unit of its span, in order of time, each cell of its grid.

    Parameters
    ----------
    since, today, cells, area
        As for `s2composite.run`.
    strict
        Raise what is wrong with one unit of a span; else it is the `error` of that unit, and the others go on.

    Raises
    ------
    S2CompositeError
        The span, the grid or the area is wrong.

    Examples
    --------
    >>> from s2composite import load_job
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201205}")
    >>> first, second = expand(job)
    >>> first.name, first.job.output, first.job.datetime
    ('2012-04', 'm201204.tif', '2012-04-01/2012-04-30')
    """
    units = (ProductJob(job),) if job.span is None else span_jobs(job, since, today)
    if job.grid is None:
        return units
    products: list[ProductJob] = []
    cells_by_area: dict[str | None, tuple[Cell, ...]] = {}
    for unit in units:
        one = unit.job
        try:
            if one.area not in cells_by_area:
                cells_by_area[one.area] = job_cells(one, cells, area)
        except S2CompositeError as error:
            if strict or job.span is None:
                raise
            products.append(replace(unit, error=error))
            continue
        for cell in cells_by_area[one.area]:
            own = one.model_copy(update={"output": one.output.replace(CELL, cell.name), "grid": None, "area": None})
            name = cell.name if unit.name is None else f"{unit.name}, {cell.name}"
            products.append(ProductJob(own, name, unit.period, cell))
    return tuple(products)


def selected_products(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    since: str | None,
    today: dt.date | None,
    windows: str | Collection[tuple[int, int]] | None,
    cells: str | None,
    area: str | Geometry | None,
) -> tuple[Job, tuple[ProductJob, ...], Geometry | None]:
    """Return a job, its products and the area that selects their windows; what selects is as for `s2composite.run`."""
    job = load_job(job)
    require_selectors(job, since=since, windows=windows, cells=cells)
    within = read_area(area) if isinstance(area, str) else area
    products = expand(job, since=since, today=today, cells=cells, area=within, strict=False)
    return job, products, within if job.grid is None else None  # of a grid the area has selected cells


def span_jobs(job: Job, since: str | None = None, today: dt.date | None = None) -> tuple[ProductJob, ...]:
    """Return what a job with a span means for each of its units, in order of time; a grid stays in their jobs."""
    if job.span is None:
        raise JobError("the job has no span; run_job() runs it once", key="span")
    step = job.span.step

    def filled(value: Any, period: Period) -> Any:
        if isinstance(value, tuple):
            return tuple(filled(one, period) for one in value)
        return written_out(value, period, step) if isinstance(value, str) else value

    units: dict[str, ProductJob] = {}
    for period in spans_of(job.span, since, today):
        own = {key: filled(getattr(job, key), period) for key in ("source", "output", "area")}
        if (other := units.get(own["output"])) is not None:
            raise JobError(
                f"output: {other.name} and {period.label} would both be {own['output']}; "
                f"write the whole {step} with {{{{pointInTime}}}}",
                key="output",
            )
        own_job = job.model_copy(update={**own, "datetime": f"{period.start}/{period.last}", "span": None})
        units[own["output"]] = ProductJob(own_job, period.label, period)
    return tuple(units.values())


def job_cells(job: Job, names: str | None = None, within: Geometry | None = None) -> tuple[Cell, ...]:
    """Return the cells of a job that has a grid; `names` and `within` as `cells` and `area` for `s2composite.run`."""
    if job.grid is None:
        raise JobError("the job has no grid to cut an area into cells", key="grid")
    area = None
    if job.area is not None:
        area = read_area(job.area)
    elif job.bbox is not None:
        area = box(*job.bbox, job.bbox_crs).to_crs("EPSG:4326")
    cells: Sequence[Cell] = cells_of(job.grid, area)
    if names is not None:
        by_name = {cell.name: cell for cell in cells}
        wanted: set[str] = set()
        for part in map(str.strip, names.split(",")):
            named = [by_name[part]] if part in by_name else _numbered(cells, part)
            if not named:
                near = difflib.get_close_matches(part, by_name, 1) or list(by_name)[:3]
                raise JobError(
                    f"cells: {part!r} is none of the {len(cells)} cells, such as {', '.join(near)}", key="cells"
                )
            wanted |= {cell.name for cell in named}
        cells = [cell for cell in cells if cell.name in wanted]
    chosen = tuple(cell for cell in cells if within is None or touches(cell.geobox, within))
    if not chosen:
        raise JobError("the area touches none of the cells; check its coordinates (degrees)", key="area")
    return chosen


def require_kind(
    job: Job | str | os.PathLike[str] | Mapping[str, Any], verb: str, *, span: bool = False, grid: bool = False
) -> Job:
    """Return a job of the kind that an old name of `run` or `plan` takes."""
    job = load_job(job)
    if job.span is not None and not span:
        raise JobError(f"the job has a span, so it makes many products: {verb}_spans() {verb}s it", key="span")
    if job.span is None and span:
        raise JobError("the job has no span; run_job() runs it once", key="span")
    if job.grid is not None and not grid and not span:
        raise JobError(f"the job has a grid, so it makes many products: {verb}_cells() {verb}s it", key="grid")
    if job.grid is None and grid:
        raise JobError("the job has no grid to cut an area into cells", key="grid")
    return job


def require_places(job: Job) -> None:
    """Refuse an output whose directory does not exist, or a place for Dask's report that cannot be written to."""
    report = job.performance_report
    directory = Path(job.output).parent
    if not is_remote(job.output) and not has_template(str(directory)) and CELL not in str(directory):
        place = Path(absolute(job.output)).parent
        if not place.is_dir():
            raise WriteError(f"{job.output}: the directory {place} does not exist; create it first", path=job.output)
    if report is not None and not os.access(Path(report).parent, os.W_OK):
        raise JobError(
            f"performance_report: cannot write to the directory of {report}; make it first", key="performance_report"
        )


def ledger_key(job: Job) -> str:
    """Return what the ledger of a job lies beside: the output, absolute, without a place for periods."""
    return absolute(job.output.replace("{period}", "periods"))


# --- scenes and composites --------------------------------------------------------------------------------------------


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(function).parameters)


# Keys of a job that these functions take under the same name; reducers and rules are made of names.
_FINDING = (_parameters(find_scenes) - {"source"}) & Job.model_fields.keys()
_OPENING = (_parameters(open_cube) - _parameters(find_scenes)) & Job.model_fields.keys()
_COMPOSING = (_parameters(composite) - {"reducer", "valid"}) & Job.model_fields.keys()


def _options(job: Job, keys: Collection[str]) -> dict[str, Any]:
    return {key: getattr(job, key) for key in keys}


def job_scenes(job: Job) -> tuple[Scene, ...]:
    """Return the scenes that a job is about."""
    return find_scenes(job.source, **_options(job, _FINDING))


def scenes_of_products(
    products: Sequence[ProductJob], folder: str, scenes: tuple[Scene, ...] | None = None
) -> Iterator[tuple[ProductJob, tuple[Scene, ...] | S2CompositeError, str]]:
    """Yield products, their scenes or why there are none, and a file in `folder` for the scenes' headers.

    `scenes` are those of all products, if they have been looked for. Else they are, and their headers read, once for
    all cells of a unit of a span.
    """
    for period, unit in itertools.groupby(products, key=lambda one: one.period):
        index = str(Path(folder, f"{'headers' if period is None else period.start}.index"))
        own: tuple[Scene, ...] | S2CompositeError | None = scenes
        for product in unit:
            if own is None:
                try:
                    own = job_scenes(product.job)
                except S2CompositeError as error:
                    own = error
            yield product, product.error or own, index


def product_composite(
    product: ProductJob, scenes: tuple[Scene, ...] | S2CompositeError, index: str
) -> Composite | None:
    """Return the lazy composite of a product; None for a cell that too few scenes touch; raise why it has no scenes."""
    if isinstance(scenes, S2CompositeError):
        raise scenes
    job, cell = product.job, product.cell
    result = job_composite(job, scenes) if cell is None else job_composite(job, scenes, cell.geobox, index)
    work, least = work_in(result.dataset), job.policy.min_scenes
    number = 0
    if work is not None:
        number = len(work.stack.touching((slice(0, work.stack.shape[2]), slice(0, work.stack.shape[3]))))
    if number >= least:
        return result
    if cell is not None:
        return None
    raise JobError(
        f"policy.min_scenes is {least}, and {number} scenes touch the area: take a longer time or a lower number",
        key="policy.min_scenes",
    )


def job_composite(
    job: Job, scenes: tuple[Scene, ...], geobox: GeoBox | None = None, index: str | None = None
) -> Composite:
    """Return the lazy composite that a job is about, on the grid of one of its cells if that is given.

    Windows whose size is left open are as large as the workers' memory allows.
    """
    bbox = None if job.bbox is None or geobox is not None else BoundingBox(*job.bbox, crs=job.bbox_crs)
    here: dict[str, Any] = {"geobox": geobox, "bbox": bbox, "index": job.index or index, "duplicates": "keep"}
    if isinstance(job.harmonise, Mapping):  # a cell or a month has some of the scenes
        known = {product.id for scene in scenes for product in scene.parts}
        here["harmonise"] = {scene: shift for scene, shift in job.harmonise.items() if scene in known}

    def composed(cube: xr.DataArray) -> Composite:
        return composite(cube, job.reducers, valid=job.rules, **_options(job, _COMPOSING))

    cube = open_cube(scenes, **_options(job, _OPENING) | here)
    result = composed(cube)
    work = work_in(result.dataset) if job.chunks == "auto" else None
    if work is None:
        return result
    resized = to_cube(work.stack, fitting_side(work, workers_of(job.cluster), output_block(job)))
    return result if resized.chunks == cube.chunks else composed(resized)


def output_block(job: Job) -> int:
    """Return the side of the tiles or chunks of a job's output, of which windows are made."""
    return RasterOptions(**(job.raster or {})).blocksize if job.format == "tif" else StoreOptions().chunk


# --- the size of windows ----------------------------------------------------------------------------------------------

# Memory of a task over the bytes of its window's observations: measured, see `tests/unit/cube/test_compositing.py`.
_OVERHEAD = 1.25
_PROCESS = 400 << 20  # bytes of a worker process that has done nothing yet but load the libraries and kernels
_INDEX = 12  # bytes for each pixel of a window on another grid: which pixel of the files it takes
_SAMPLED = 4  # rows and columns of windows that are looked at to find a size for all


@dataclass(frozen=True, slots=True)
class Workers:
    """What a job runs on: worker processes, threads of each, bytes that each may use."""

    count: int
    threads: int
    limit: int

    def need(self, task: int) -> int:
        """Return the bytes that a worker needs to make windows of so many bytes on all of its threads."""
        return _PROCESS + task * self.threads


def workers_of(cluster: Any) -> Workers:
    """Return the workers of the current client; where there is none those that a cluster's options ask for.

    What the options leave open is as this machine has it.
    """
    if running := current_workers():
        limits = [worker["memory_limit"] or int(MEMORY_LIMIT) for worker in running]
        return Workers(len(running), max(worker["nthreads"] for worker in running), min(limits))
    memory = getattr(cluster, "memory", None)
    limit = int(parse_bytes(memory)) if memory else 0
    if isinstance(cluster, LocalOptions):
        count, threads = local_shape(cluster)
        return Workers(count, threads, limit or int(MEMORY_LIMIT * MEMORY_SHARE) // count)
    count = cluster.awaited or getattr(cluster, "workers", None) or getattr(cluster, "maximum", None) or 1
    return Workers(count, getattr(cluster, "threads", None) or 1, limit or int(MEMORY_LIMIT))


def task_memory(work: Work, window: Window) -> int:
    """Return the bytes that a window takes: observations of its largest piece, kept tiles, masks, index and result."""
    stack, (y, x) = work.stack, window
    halo = work.recipe.halo
    height, width = y.stop - y.start + 2 * halo, x.stop - x.start + 2 * halo
    near = products_near(stack, (y, x), halo)
    scenes = len(near)
    overlapping = len(np.unique(stack.products.scene[near])) < scenes
    whole = bool(work.masks) or halo > 0 or overlapping
    largest = (stack.size if whole else stack.largest)((y, x)) * stack.dtype.itemsize * scenes // stack.shape[0]
    kept = min(KEPT_BYTES, stack.size((y, x)) * stack.dtype.itemsize // 4) if stack.mixed else 0
    masks = len(work.masks) * scenes * height * width * 2 + max((mask.memory() for mask in work.masks), default=0)
    layers = work.recipe.layers(stack.dtype, stack.shape[0])
    result = sum(layer.dtype.itemsize * (stack.shape[1] if "band" in layer.dims else 1) for layer in layers)
    index = 0 if stack.snaps else _INDEX * height * width
    results = 3 * result * max(len(work.recipe.periods or ()), 1) * height * width
    return int(_OVERHEAD * largest + kept + masks + index + results)


def fitting_side(work: Work, workers: Workers, block: int) -> int:
    """Return how large square windows may be so that all threads of a worker can make one; `block` at least."""
    side = max(max(auto_size(work.stack, workers.limit // workers.threads)) // block * block, block)
    while side > block and workers.need(_sampled(work, side)) > workers.limit:
        side //= 2
        for unit in (max(work.stack.block), block):
            side = max(side // unit * unit, min(side, unit))
    return max(side, block)


def _sampled(work: Work, side: int) -> int:
    """Return the largest memory of some windows of a side, spread over the grid."""
    spans = []
    for n in work.stack.shape[2:]:
        starts = np.linspace(0, max(n - side, 0), min(_SAMPLED, -(-n // side)), dtype=int)
        spans.append([slice(start, min(start + side, n)) for start in starts.tolist()])
    return max(task_memory(work, (y, x)) for y, x in itertools.product(*spans))


def require_fit(work: Work, task: int, workers: Workers, block: int) -> None:
    """Refuse windows of which the largest takes `task` bytes, if they do not fit into the workers' memory."""
    if workers.need(task) <= workers.limit:
        return

    rows, columns = (s.stop - s.start for s in window_at(work.spatial, 0, 0))
    side = fitting_side(work, workers, block)
    fits = workers.need(_sampled(work, side)) <= workers.limit
    threads = max(workers.limit - _PROCESS, 0) // task
    cures = [f"set chunks to {side} or less"] if fits else []
    cures += [f"cluster.threads to {threads} or less"] if 0 < threads < workers.threads else []
    one, all_threads, limit = (f"{size / 2**30:.2f} GiB" for size in (task, workers.need(task), workers.limit))
    cures += [f"cluster.memory to {all_threads} or more"]
    raise ParameterError(
        f"a window of {rows} x {columns} takes {one}, {workers.threads} at once and the process {all_threads}, and a "
        f"worker has {limit}: {', or '.join(cures)}"
    )


# --- selected windows -------------------------------------------------------------------------------------------------

# Which windows a run makes: all that are not done, those among them that have not failed, or those that have.
Which = Literal["missing", "untried", "failed"]

OneT = TypeVar("OneT")

# Row and column, as the ledger writes them; x003y004, column and row, as the plan's GeoJSON names its regions.
_PLACE = re.compile(r"(\d+)/(\d+)|x(\d+)y(\d+)")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which windows of a product to make; see `s2composite.run`."""

    which: Which = "missing"
    error: str | None = None
    windows: str | Collection[tuple[int, int]] | None = None
    area: Geometry | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.error or "")
        except re.error as problem:
            raise ParameterError(f"error={self.error!r} is not a regular expression: {problem}") from problem

    @property
    def whole(self) -> bool:
        """Whether no window is left out because of where it lies."""
        return self.windows is None and self.area is None

    def replaces(self, job: Job) -> bool:
        """Whether what is complete is made again: by a run that may overwrite, not by one that goes on with another."""
        return job.overwrite and self.which == "missing"

    def includes(self, window: tuple[int, int], failures: Mapping[tuple[int, int], str]) -> bool:
        """Whether to make a window that is not done."""
        if self.which == "missing":
            return True
        if self.which == "untried":
            return window not in failures
        return window in failures and re.search(self.error or "", failures[window]) is not None


def select_windows(
    geobox: GeoBox, spatial: Chunks, windows: str | Collection[tuple[int, int]] | None, area: Geometry | None
) -> frozenset[tuple[int, int]]:
    """Return the rows and columns of the windows of a grid that are wanted; `windows` and `area` as for a run.

    >>> grid = GeoBox.from_bbox((0, 0, 40, 10), "EPSG:32631", resolution=1)
    >>> sorted(select_windows(grid, ((10,), (10, 10, 10, 10)), "0,2::2,0/3", None))
    [(0, 0), (0, 2), (0, 3)]
    """
    known = list(np.ndindex(len(spatial[0]), len(spatial[1])))
    every = set(known)
    wanted = every if windows is None else set()
    for part in windows.split(",") if isinstance(windows, str) else windows or ():
        if not isinstance(part, str):
            named = {(int(part[0]), int(part[1]))} & every
        elif place := _PLACE.fullmatch(part.strip()):
            named = {(int(place[1] or place[4]), int(place[2] or place[3]))} & every
        else:
            named = set(_numbered(known, part.strip()))
        if not named:
            shown = part.strip() if isinstance(part, str) else part
            rows, columns = (n + 1 for n in known[-1])
            raise ParameterError(
                f"windows: {shown!r} is none of the {len(known)} windows, {rows} rows of {columns}; name some as 7, "
                "1::10, 3/4 (row/column) or x004y003"
            )
        wanted |= named
    if area is None:
        return frozenset(wanted)
    touched = frozenset(at for at in wanted if touches(geobox[window_at(spatial, *at)], area))
    if not touched:
        raise ParameterError("the area touches none of the windows; check its coordinates (degrees)")
    return touched


def _numbered(known: Sequence[OneT], part: str) -> Sequence[OneT]:
    """Return those that a number or a slice of numbers stands for, none for any other text."""
    try:
        if ":" in part:
            return known[slice(*(int(n) if n.strip() else None for n in part.split(":")))]
        return [known[int(part)]]
    except (ValueError, IndexError, TypeError):
        return []
