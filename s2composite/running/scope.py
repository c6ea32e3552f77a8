"""Scope: what a job is about: its scenes, its composite, the cells of its grid, where its ledger lies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box

from s2composite.compositing import Composite, composite
from s2composite.cube import open_cube, to_cube
from s2composite.errors import JobError, WriteError
from s2composite.running.cells import Cell, cells_of, read_area
from s2composite.running.jobs.job import CELL, Job
from s2composite.running.planning.sizing import fitting_side, workers_of
from s2composite.running.selection import chosen_cells
from s2composite.running.spans import has_template
from s2composite.scenes.listing import find_scenes
from s2composite.scenes.model import Scene
from s2composite.scenes.storage import absolute, is_remote
from s2composite.windows import work_in
from s2composite.writing.building import StoreOptions
from s2composite.writing.options import RasterOptions

__all__ = [
    "cell_job",
    "job_cells",
    "job_composite",
    "job_scenes",
    "ledger_key",
    "output_block",
    "require_place",
    "require_scenes",
    "scenes_within",
]


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
