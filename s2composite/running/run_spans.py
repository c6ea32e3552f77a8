"""run_spans(): a job for each month of a span, all of them one stream of windows; one that fails stops no other."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Client
from odc.geo.geom import Geometry

from s2composite.errors import JobError, S2CompositeError
from s2composite.running.cells import Cell, read_area
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.making import JobResult
from s2composite.running.run import Begun, begin_product, cluster_of, require_places
from s2composite.running.scope import cell_job, job_cells, job_scenes
from s2composite.running.selection import Chosen, Which
from s2composite.running.spans import spans_of, written_out
from s2composite.running.stream import Entry, make_all
from s2composite.scenes.periods import Period
from s2composite.writing.progress import progress_bar

__all__ = ["SpanJob", "SpanResult", "job_products", "run_spans", "span_jobs"]

_WRITTEN_OUT = ("source", "output", "area")
"""Keys of a job in which templates stand for the date."""


@dataclass(frozen=True, slots=True)
class SpanJob:
    r"""What a job means for one unit of its span.

    Examples
    --------
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201204}")
    >>> one = span_jobs(job)[0]
    >>> one.period.label, one.job.datetime
    ('2012-04', '2012-04-01/2012-04-30')
    """

    period: Period
    """The unit."""

    job: Job
    """The job, with its dates and without the span."""


@dataclass(frozen=True, slots=True)
class SpanResult:
    r"""What became of one unit of a span.

    Examples
    --------
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201204}")
    >>> one = span_jobs(job)[0]
    >>> result = SpanResult(one.period, one.job, error=S2CompositeError("no scene"))
    >>> result.complete, result.problems()
    (False, ('2012-04: no scene',))
    """

    period: Period
    """The unit."""

    job: Job
    """The job that was run."""

    results: tuple[tuple[Cell | None, JobResult | None], ...] = ()
    """The products: one, or with a grid one for each cell (None: no scene touches it)."""

    error: S2CompositeError | None = None
    """Why there are none."""

    @property
    def complete(self) -> bool:
        """Whether everything was written."""
        return self.error is None and all(result is None or result.paths for _, result in self.results)

    def summary(self) -> str:
        """Return what was made, and below it the files."""
        products = [result for _, result in self.results if result is not None]
        made, seconds = sum(result.made for result in products), sum(result.seconds for result in products)
        head = f"{self.period.label}: {made} window{'s' * (made != 1)} made in {seconds:.1f} s"
        return "\n".join([head, *(path for result in products for path in result.paths)])

    def problems(self) -> tuple[str, ...]:
        """Return what failed, a line each."""
        label = self.period.label
        lines = [] if self.error is None else [f"{label}: {self.error}"]
        for cell, result in self.results:
            name = label if cell is None else f"{label}, {cell.name}"
            if result is not None and not result.paths:
                lines += [f"{name}: window {failure.window}: {failure.error}" for failure in result.failed[:3]]
                lines += [f"{name}: {len(result.failed)} windows in all"] if len(result.failed) > 3 else []
                lines += [f"{name}: {result.error}"] if result.error else []
        return tuple(lines)


def span_jobs(job: Job, since: str | None = None, today: dt.date | None = None) -> tuple[SpanJob, ...]:
    r"""Return the jobs that a job with a span stands for, in order of time.

    Parameters
    ----------
    job
        With a span.
    since, today
        As for `run_spans`.

    Raises
    ------
    JobError
        It has no span, or two units would have one output.
    ParameterError
        Nothing of the span is over.

    Examples
    --------
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201205}")
    >>> [(one.job.output, one.job.datetime) for one in span_jobs(job)]
    [('m201204.tif', '2012-04-01/2012-04-30'), ('m201205.tif', '2012-05-01/2012-05-31')]
    """
    if job.span is None:
        raise JobError("the job has no span; run_job() runs it once", key="span")
    step = job.span.step
    jobs = [SpanJob(period, _for_period(job, period)) for period in spans_of(job.span, since, today)]
    outputs: dict[str, Period] = {}
    for one in jobs:
        other = outputs.setdefault(one.job.output, one.period)
        if other is not one.period:
            raise JobError(
                f"output: {other.label} and {one.period.label} would both be {one.job.output}; "
                f"write the whole {step} with {{{{pointInTime}}}}",
                key="output",
            )
    return tuple(jobs)


def job_products(job: Job) -> Iterator[tuple[str | None, Job]]:
    r"""Yield the name and the job of each unit of a span and each cell of a grid; of others the job, without a name.

    Examples
    --------
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201205}")
    >>> [name for name, one in job_products(job)]
    ['2012-04', '2012-05']
    """
    if job.span is not None:
        for unit in span_jobs(job):
            for name, one in job_products(unit.job):
                yield unit.period.label if name is None else f"{unit.period.label}, {name}", one
    elif job.grid is not None:
        yield from ((cell.name, cell_job(job, cell)) for cell in job_cells(job))
    else:
        yield None, job


def _for_period(job: Job, period: Period) -> Job:
    assert job.span is not None
    unit = job.span.step

    def filled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(filled, value))
        return written_out(value, period, unit) if isinstance(value, str) else value

    texts = {key: filled(getattr(job, key)) for key in _WRITTEN_OUT}
    dates = f"{period.start}/{period.end - dt.timedelta(days=1)}"
    return job.model_copy(update={**texts, "datetime": dates, "span": None})


def run_spans(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    *,
    since: str | None = None,
    today: dt.date | None = None,
    client: Client | None = None,
    announce: bool = True,
    which: Which = "missing",
    error: str | None = None,
    windows: str | Collection[tuple[int, int]] | None = None,
    cells: str | None = None,
    area: str | Geometry | None = None,
) -> Iterator[SpanResult]:
    """Run a job for each month, day or year of its span, all on one cluster.

    Each has its own output and ledger, so an interrupted run is resumed and nothing complete is made again. A unit that
    fails, such as a month without scenes, does not stop the others. Windows of the
    next unit are made while the files of the one before are assembled.

    Parameters
    ----------
    job
        A job with ``span``; as for `run_job`.
    since
        ``"last"``: only the unit that ended last, for a monthly cron job. A date: that unit and all later ones.
    today
        The day that decides which units have ended; default: today in UTC.
    client, announce, which, error
        As for `run_job`.
    windows, area
        Of each unit, only these windows, as for `run_job`.
    cells, area
        If the job has a grid: only these cells, as for `run_cells`.

    Yields
    ------
    SpanResult
        As each unit ends, in order of time: one that ends before another that is earlier waits for it.

    Raises
    ------
    S2CompositeError
        The job or its span is wrong, or the cluster does not answer.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "{{pointInTime}}.tif", "cluster": {"workers": 1}}
    >>> job |= {"span": {"start": "2023-07", "end": "2023-08"}, "overwrite": True}
    >>> [(one.period.label, one.complete) for one in run_spans(job, announce=False)]
    [('2023-07', True), ('2023-08', True)]
    """
    job = job if isinstance(job, Job) else load_job(job)
    require_places(job)
    jobs = span_jobs(job, since, today)
    within = read_area(area) if isinstance(area, str) else area
    chosen = Chosen(which, error) if job.grid is not None else Chosen(which, error, windows, within)
    ended: dict[Period, list[_Part]] = {one.period: [] for one in jobs}
    with (
        cluster_of(job, client, announce=announce) as workers,
        TemporaryDirectory() as folder,
        progress_bar(f"{job.span.step}s" if job.span is not None else "", len(jobs)) as advance,
    ):
        parts = (part for one in jobs for part in _parts(one, workers, chosen, folder, cells, within))
        entries = (Entry(part, part.begun.making) for part in parts)
        for entry, outcome in make_all(workers, entries, job.policy.as_policy()):
            part: _Part = entry.name
            if outcome is not None:
                continue
            ended[part.unit.period].append(part)
            if len(ended[part.unit.period]) == part.siblings:
                advance()
            for period in _leading(ended):
                yield _result(ended.pop(period))


@dataclass(frozen=True, eq=False)
class _Part:
    """One product of one unit."""

    unit: SpanJob
    """The unit."""

    cell: Cell | None
    """Which of its cells; None: it has no grid."""

    siblings: int
    """Products of the unit, this one included."""

    begun: Begun
    """The product."""

    error: S2CompositeError | None = None
    """Why the unit has no products at all."""


def _parts(
    one: SpanJob, client: Client, chosen: Chosen, folder: str, names: str | None, within: Geometry | None
) -> Iterator[_Part]:
    """Begin the products of a unit, one after the other as they are asked for."""
    try:
        cells = [None] if one.job.grid is None else job_cells(one.job, names, within)
        scenes = job_scenes(one.job)
    except S2CompositeError as error:
        yield _Part(one, None, 1, Begun(), error)
        return
    # Headers are read once for all cells of a unit.
    index = str(Path(folder, f"{one.period.start}.index"))
    for cell in cells:
        yield _Part(one, cell, len(cells), begin_product(one.job, scenes, cell, client, chosen, index))


def _leading(ended: Mapping[Period, list[_Part]]) -> list[Period]:
    """Return those units, from the first on, all of whose products have ended."""
    whole = takewhile(lambda item: item[1] and len(item[1]) == item[1][0].siblings, ended.items())
    return [period for period, _ in whole]


def _result(parts: list[_Part]) -> SpanResult:
    unit = parts[0].unit
    if parts[0].error is not None:
        return SpanResult(unit.period, unit.job, error=parts[0].error)
    return SpanResult(unit.period, unit.job, tuple((part.cell, part.begun.result) for part in parts))
