"""Scope: what a job is about: its scenes, its composite, the cells of its grid, where its ledger lies."""

from __future__ import annotations

from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, box

from s2composite.compositing import Composite, composite
from s2composite.cube import open_cube
from s2composite.errors import JobError
from s2composite.running.cells import Cell, cells_of, read_area
from s2composite.running.job import CELL, Job
from s2composite.scenes.listing import find_scenes
from s2composite.scenes.model import Scene
from s2composite.scenes.storage import absolute
from s2composite.windows import work_in

__all__ = ["cell_job", "job_cells", "job_composite", "job_scenes", "ledger_key", "reaches"]


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


def cell_job(job: Job, cell: Cell) -> Job:
    """Return what a job means for one of its cells, but for the grid."""
    return job.model_copy(update={"output": job.output.replace(CELL, cell.name), "grid": None, "area": None})


def reaches(result: Composite, cell: Cell) -> bool:
    """Return whether any scene of a cell's composite touches it."""
    work = work_in(result.dataset)
    whole = (slice(0, int(cell.geobox.shape.y)), slice(0, int(cell.geobox.shape.x)))
    return work is not None and len(work.stack.touching(whole)) > 0


def ledger_key(job: Job) -> str:
    """Return what the ledger of a job lies beside: the output, absolute, without a place for periods."""
    return absolute(job.output.replace("{period}", "periods"))
