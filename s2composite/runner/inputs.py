"""What a run starts from: its scenes and composite, selected windows or cells, and the size of windows."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr
from dask.utils import parse_bytes
from distributed import default_client
from distributed.system import MEMORY_LIMIT
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box

from s2composite.clusters.backends import MEMORY_SHARE, LocalOptions, local_shape
from s2composite.cube.composite import Composite, composite
from s2composite.cube.graph import Chunks
from s2composite.cube.masking import products_near
from s2composite.cube.open import auto_size, open_cube, to_cube, window_at
from s2composite.cube.windows import Work, work_in
from s2composite.errors import JobError, ParameterError, WriteError
from s2composite.jobs.grid import Cell, cells_of, read_area, touches
from s2composite.jobs.schedule import has_template
from s2composite.jobs.schema import CELL, Job
from s2composite.reading.grid import Window
from s2composite.runner.product import Product
from s2composite.scenes.find import find_scenes
from s2composite.scenes.model import Scene
from s2composite.storage.files import absolute, is_remote
from s2composite.writing.options import RasterOptions
from s2composite.writing.zarr import StoreOptions

__all__ = [
    "Chosen",
    "Which",
    "Workers",
    "cell_job",
    "chosen_cells",
    "chosen_windows",
    "fitting_side",
    "job_cells",
    "job_composite",
    "job_scenes",
    "ledger_key",
    "output_block",
    "require_fit",
    "require_place",
    "require_scenes",
    "scenes_within",
    "task_memory",
    "workers_of",
]

_OVERHEAD = 1.25
"""Memory of a task over the bytes of its window's observations: measured, see `tests/unit/cube/test_compositing.py`."""

_PROCESS = 400 << 20
"""Bytes of a worker process that has done nothing yet but load the libraries and kernels."""

_INDEX = 12
"""Bytes for each pixel of a window on another grid: which pixel of the files it takes."""

_LOOKS = 4
"""Rows and columns of windows that are looked at to find a size for all."""


@dataclass(frozen=True, slots=True)
class Workers:
    """What a job runs on."""

    count: int
    """Worker processes."""

    threads: int
    """Threads of each."""

    limit: int
    """Bytes that each may use."""

    def need(self, task: int) -> int:
        """Return the bytes that a worker needs to make windows of so many bytes on all of its threads."""
        return _PROCESS + task * self.threads


def workers_of(cluster: Any) -> Workers:
    """Return the workers of the current client; where there is none those that a cluster's options ask for.

    What the options leave open is as this machine has it.
    """
    try:
        there = default_client().scheduler_info(n_workers=-1)["workers"].values()
    except ValueError:
        there = []
    if there:
        limits = [worker["memory_limit"] or int(MEMORY_LIMIT) for worker in there]
        return Workers(len(there), max(worker["nthreads"] for worker in there), min(limits))
    if isinstance(cluster, LocalOptions):
        count, threads = local_shape(cluster)
        return Workers(count, threads, _bytes(cluster.memory) or int(MEMORY_LIMIT * MEMORY_SHARE) // count)
    count = cluster.awaited or getattr(cluster, "workers", None) or getattr(cluster, "maximum", None) or 1
    threads = getattr(cluster, "threads", None) or 1
    return Workers(count, threads, _bytes(getattr(cluster, "memory", None)) or int(MEMORY_LIMIT))


def _bytes(memory: str | None) -> int:
    return int(parse_bytes(memory)) if memory else 0


def task_memory(work: Work, window: Window) -> int:
    """Return the bytes that making a window takes: the observations of its largest piece, masks, index and result."""
    stack, (y, x) = work.stack, window
    halo = work.recipe.halo
    height, width = y.stop - y.start + 2 * halo, x.stop - x.start + 2 * halo
    near = products_near(stack, (y, x), halo)
    scenes = len(near)
    overlapping = len(np.unique(stack.products.scene[near])) < scenes
    whole = bool(work.masks) or halo > 0 or overlapping
    largest = (stack.size if whole else stack.largest)((y, x)) * stack.dtype.itemsize * scenes // stack.shape[0]
    masks = len(work.masks) * scenes * height * width * 2
    layers = work.recipe.layers(stack.dtype, stack.shape[0])
    result = sum(layer.dtype.itemsize * (stack.shape[1] if "band" in layer.dims else 1) for layer in layers)
    index = 0 if stack.snaps else _INDEX * height * width
    results = 3 * result * max(len(work.recipe.periods or ()), 1) * height * width
    return int(_OVERHEAD * largest + masks + index + results)


def fitting_side(work: Work, workers: Workers, block: int) -> int:
    """Return how large square windows may be so that all threads of a worker can make one.

    Parameters
    ----------
    block
        Side of the output's tiles, the smallest window there is.
    """
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
        starts = np.linspace(0, max(n - side, 0), min(_LOOKS, -(-n // side)), dtype=int)
        spans.append([slice(start, min(start + side, n)) for start in starts.tolist()])
    return max(task_memory(work, (y, x)) for y, x in itertools.product(*spans))


def require_fit(work: Work, task: int, workers: Workers, block: int) -> None:
    """Refuse windows that do not fit into the workers' memory.

    Parameters
    ----------
    task
        Bytes of the largest window.
    block
        As for `fitting_side`.

    Raises
    ------
    ParameterError
        They do not fit; says what would.
    """
    if workers.need(task) <= workers.limit:
        return
    window = window_at(work.spatial, 0, 0)
    rows, columns = (s.stop - s.start for s in window)
    side = fitting_side(work, workers, block)
    fits = workers.need(_sampled(work, side)) <= workers.limit
    available = max(workers.limit - _PROCESS, 0)
    cures = [f"set chunks to {side} or less"] if fits else []
    cures += [f"cluster.threads to {available // task} or less"] if 0 < available // task < workers.threads else []
    cures += [f"cluster.memory to {_gib(workers.need(task))} or more"]
    raise ParameterError(
        f"a window of {rows} x {columns} takes {_gib(task)}, {workers.threads} at once and the process "
        f"{_gib(workers.need(task))}, and a worker has {_gib(workers.limit)}: {', or '.join(cures)}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(function).parameters)


_FINDING = (_parameters(find_scenes) - {"source"}) & Job.model_fields.keys()
"""Keys of a job that `find_scenes` takes under the same name."""

_OPENING = (_parameters(open_cube) - _parameters(find_scenes)) & Job.model_fields.keys()
"""Keys of a job that `open_cube` takes under the same name, once the scenes are found."""

_COMPOSING = (_parameters(composite) - {"reducer", "valid"}) & Job.model_fields.keys()
"""Keys of a job that `composite` takes under the same name; its reducers and rules are made of names."""


def _options(job: Job, keys: Collection[str]) -> dict[str, Any]:
    return {key: getattr(job, key) for key in keys}


def job_scenes(job: Job) -> tuple[Scene, ...]:
    """Return the scenes that a job is about."""
    return find_scenes(job.source, **_options(job, _FINDING))


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
    cube = open_cube(scenes, **_options(job, _OPENING) | here)
    result = _composed(job, cube)
    work = work_in(result.dataset) if job.chunks == "auto" else None
    if work is None:
        return result
    side = fitting_side(work, workers_of(job.cluster), output_block(job))
    resized = to_cube(work.stack, side)
    return result if resized.chunks == cube.chunks else _composed(job, resized)


def output_block(job: Job) -> int:
    """Return the side of the tiles or chunks of a job's output, of which windows are made."""
    return RasterOptions(**(job.raster or {})).blocksize if job.format == "tif" else StoreOptions().chunk


def _composed(job: Job, cube: xr.DataArray) -> Composite:
    return composite(cube, job.reducers, valid=job.rules, **_options(job, _COMPOSING))


def job_cells(job: Job, names: str | None = None, within: Geometry | None = None) -> tuple[Cell, ...]:
    """Return the cells of a job that has a grid, or some of them; see `chosen_cells`.

    Raises
    ------
    JobError
        It has none, no cell touches its area, or none is chosen.
    """
    if job.grid is None:
        raise JobError("the job has no grid to cut an area into cells", key="grid")
    area = None
    if job.area is not None:
        area = read_area(job.area)
    elif job.bbox is not None:
        area = box(*job.bbox, job.bbox_crs).to_crs("EPSG:4326")
    return chosen_cells(cells_of(job.grid, area), names, within)


def cell_job(job: Job, cell: Cell) -> Job:
    """Return what a job means for one of its cells, but for the grid."""
    return job.model_copy(update={"output": job.output.replace(CELL, cell.name), "grid": None, "area": None})


def scenes_within(result: Composite) -> int:
    """Return how many scenes touch the area of a composite."""
    work = work_in(result.dataset)
    return (
        0 if work is None else len(work.stack.touching((slice(0, work.stack.shape[2]), slice(0, work.stack.shape[3]))))
    )


def require_scenes(job: Job, result: Composite) -> None:
    """Refuse a composite that fewer scenes touch than the job's policy wants.

    Raises
    ------
    JobError
        Says how many there are.
    """
    there, wanted = scenes_within(result), job.policy.min_scenes
    if there < wanted:
        raise JobError(
            f"policy.min_scenes is {wanted}, and {there} scenes touch the area: take a longer time or a lower number",
            key="policy.min_scenes",
        )


def require_place(job: Job) -> None:
    """Refuse an output whose directory does not exist, before anything is started for it.

    Raises
    ------
    WriteError
        Names the directory.
    """
    directory = Path(job.output).parent
    if not is_remote(job.output) and not has_template(str(directory)) and CELL not in str(directory):
        place = Path(absolute(job.output)).parent
        if not place.is_dir():
            raise WriteError(f"{job.output}: the directory {place} does not exist; create it first", path=job.output)


def ledger_key(job: Job) -> str:
    """Return what the ledger of a job lies beside: the output, absolute, without a place for periods."""
    return absolute(job.output.replace("{period}", "periods"))


Which = Literal["missing", "untried", "failed"]
"""Which windows a run makes: all that are not done, those among them that have not failed, or those that have."""

OneT = TypeVar("OneT")

_PLACE = re.compile(r"(\d+)/(\d+)|x(\d+)y(\d+)")
"""Row and column, as the ledger writes them; ``x003y004``, column and row, as the plan's GeoJSON names its regions."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which windows to make."""

    which: Which = "missing"
    """Which of those that are not done."""

    error: str | None = None
    """Of those that have failed, only where the error matches this regular expression."""

    windows: str | Collection[tuple[int, int]] | None = None
    """Only these, see `chosen_windows`; None: all."""

    area: Geometry | None = None
    """Only windows that it touches."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.error or "")
        except re.error as problem:
            raise ParameterError(f"error={self.error!r} is not a regular expression: {problem}") from problem

    @property
    def whole(self) -> bool:
        """Whether no window is left out because of where it lies."""
        return self.windows is None and self.area is None

    def anew(self, job: Job) -> bool:
        """Whether what is complete is made again: by a run that may overwrite, not by one that goes on with another."""
        return job.overwrite and self.which == "missing"

    def among(self, product: Product) -> frozenset[tuple[int, int]]:
        """Return the windows of a product that are chosen, done or not."""
        return chosen_windows(product.work.stack.geobox, product.work.spatial, self.windows, self.area)

    def takes(self, window: tuple[int, int], failures: Mapping[tuple[int, int], str]) -> bool:
        """Return whether to make one of those that is not done."""
        if self.which == "missing":
            return True
        if self.which == "untried":
            return window not in failures
        return window in failures and re.search(self.error or "", failures[window]) is not None


def chosen_windows(
    geobox: GeoBox, spatial: Chunks, windows: str | Collection[tuple[int, int]] | None, area: Geometry | None
) -> frozenset[tuple[int, int]]:
    """Return the rows and columns of the windows that are wanted.

    Parameters
    ----------
    geobox
        The grid.
    spatial
        Its windows.
    windows
        ``"7"``, a number; ``"1::10"``, a slice of numbers; ``"3/4"``, row and column; ``"x004y003"``, column and row;
        several with commas. Or rows and columns. None: all.
    area
        Only those that it touches.

    Raises
    ------
    ParameterError
        A part of `windows` is none of these or names no window, or the area touches none.

    Examples
    --------
    >>> grid = GeoBox.from_bbox((0, 0, 40, 10), "EPSG:32631", resolution=1)
    >>> sorted(chosen_windows(grid, ((10,), (10, 10, 10, 10)), "0,2::2,0/3", None))
    [(0, 0), (0, 2), (0, 3)]
    """
    known = list(np.ndindex(len(spatial[0]), len(spatial[1])))
    named = set(known) if windows is None else _named(known, windows)
    if area is None:
        return frozenset(named)
    found = frozenset(at for at in named if touches(geobox[window_at(spatial, *at)], area))
    if not found:
        raise ParameterError("the area touches none of the windows; check its coordinates (degrees)")
    return found


def _named(known: Sequence[tuple[int, int]], windows: str | Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    parts = [part.strip() for part in windows.split(",")] if isinstance(windows, str) else list(windows)
    found: set[tuple[int, int]] = set()
    for part in parts:
        more = _windows(known, part) if isinstance(part, str) else {(int(part[0]), int(part[1]))} & set(known)
        if not more:
            rows, columns = (n + 1 for n in known[-1])
            raise ParameterError(
                f"windows: {part!r} is none of the {len(known)} windows, {rows} rows of {columns}; name some as 7, "
                "1::10, 3/4 (row/column) or x004y003"
            )
        found |= more
    return found


def _windows(known: Sequence[tuple[int, int]], part: str) -> set[tuple[int, int]]:
    place = _PLACE.fullmatch(part)
    if place:
        row, column, x, y = (None if n is None else int(n) for n in place.groups())
        at = (row, column) if row is not None else (y, x)
        return {one for one in known if one == at}
    return set(_numbered(known, part))


def _numbered(known: Sequence[OneT], part: str) -> Sequence[OneT]:
    """Return those that a number or a slice of numbers stands for, none for any other text."""
    try:
        if ":" in part:
            return known[slice(*(int(n) if n.strip() else None for n in part.split(":")))]
        return [known[int(part)]]
    except (ValueError, IndexError, TypeError):
        return []


def chosen_cells(cells: Sequence[Cell], names: str | None, area: Geometry | None) -> tuple[Cell, ...]:
    """Return the cells that are wanted.

    Parameters
    ----------
    cells
        All there are, in order.
    names
        Names, numbers and slices of numbers, with commas; None: all.
    area
        Only those that it touches.

    Raises
    ------
    JobError
        A part of `names` is none of these, or the area touches no cell.
    """
    if names is not None:
        by_name = {cell.name: cell for cell in cells}
        wanted = {cell.name for part in names.split(",") for cell in _cells(cells, by_name, part.strip())}
        cells = [cell for cell in cells if cell.name in wanted]
    found = tuple(cell for cell in cells if area is None or touches(cell.geobox, area))
    if not found:
        raise JobError("the area touches none of the cells; check its coordinates (degrees)", key="area")
    return found


def _cells(cells: Sequence[Cell], by_name: dict[str, Cell], part: str) -> Sequence[Cell]:
    found = [by_name[part]] if part in by_name else _numbered(cells, part)
    if not found:
        near = difflib.get_close_matches(part, by_name, 1) or list(by_name)[:3]
        raise JobError(f"cells: {part!r} is none of the {len(cells)} cells, such as {', '.join(near)}", key="cells")
    return found
