"""Plans of a span: what each month, day or year of it will take."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from odc.geo.geom import Geometry

from s2composite.errors import S2CompositeError
from s2composite.running.cells import Cell
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.planning.plan import Plan, plan_cells, plan_job
from s2composite.running.run_spans import SpanJob, span_jobs

__all__ = ["SpanPlan", "plan_spans"]


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
