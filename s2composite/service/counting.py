"""Counting: how many products a job asks for, estimated before any is listed: a grid of a metre would have no end."""

from __future__ import annotations

import datetime as dt
import math

from odc.geo.geom import box

from s2composite.errors import S2CompositeError
from s2composite.running.cells import CellsOptions, GridOptions, OdcOptions, UtmOptions
from s2composite.running.jobs.job import Job
from s2composite.running.spans import SpanOptions
from s2composite.scenes.dates import date_range
from s2composite.service.problems import Problem, ProblemError

__all__ = ["check_count"]

_DAYS = {"day": 1, "week": 7, "month": 28, "quarter": 90, "season": 90, "year": 365}
"""Days that a unit of a span has at least."""

_DEGREE = 111_320.0
"""Metres of a degree of latitude."""

_GRANULE = 100_000.0
"""Metres from one granule of Sentinel-2 to the next."""


def check_count(job: Job, most: int) -> None:
    """Refuse a job with more products than `most`: units of its span times cells of its grid.

    Raises
    ------
    ProblemError
        There are more, or the area that the cells are of is not said.
    """
    units = 1.0 if job.span is None else _units(job.span)
    if units > most:
        told = f"about {units:.0f} products, one for each {job.span.step if job.span else ''}; at most {most} are made"
        raise ProblemError(Problem(422, f"span: {told}", "/span"))
    cells = 1.0 if job.grid is None else _cells(job, job.grid)
    if units * cells > most:
        told = f"about {units * cells:.0f} products; at most {most} are made: take a smaller area or larger cells"
        raise ProblemError(Problem(422, f"grid: {told}", "/grid"))


def _units(span: SpanOptions) -> float:
    first, last = date_range(span.start).first, None if span.end is None else date_range(span.end).last
    assert first is not None
    end = dt.datetime.now(dt.UTC).date() if last is None else last.date()
    return (end - first.date()).days / _DAYS[span.step] + 1


def _cells(job: Job, grid: GridOptions) -> float:
    if isinstance(grid, CellsOptions):
        raise ProblemError(Problem(403, "grid.file: is the operator's to set, not a caller's", "/grid/file"))
    if job.bbox is None:
        told = "bbox: a grid has no end; say which area it is about, [west, south, east, north]"
        raise ProblemError(Problem(422, told, "/bbox"))
    try:
        crs = grid.crs if isinstance(grid, OdcOptions) else "EPSG:4326"
        west, south, east, north = box(*job.bbox, job.bbox_crs).to_crs(crs).boundingbox.bbox
    except (S2CompositeError, ValueError, RuntimeError) as error:
        raise ProblemError(Problem(422, f"bbox: cannot be brought onto the grid: {error}", "/bbox")) from None
    width, height = east - west, north - south
    if isinstance(grid, OdcOptions):
        side = grid.resolution * grid.shape
    else:
        nearest = 0.0 if south < 0 < north else min(abs(south), abs(north))
        width, height = width * _DEGREE * math.cos(math.radians(nearest)), height * _DEGREE
        side = grid.size if isinstance(grid, UtmOptions) else _GRANULE
    count: float = (width / side + 1) * (height / side + 1)
    if not math.isfinite(count):
        raise ProblemError(Problem(422, "bbox: cannot be brought onto the grid", "/bbox"))
    return count
