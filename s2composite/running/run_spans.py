"""run_spans(): a job for each month of a span, one after the other on one cluster; one that fails stops no other."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from distributed import Client

from s2composite.errors import ClusterError, JobError, S2CompositeError
from s2composite.running.cells import Cell
from s2composite.running.clusters.connect import connect
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.making import JobResult
from s2composite.running.run import cell_job, job_cells, run_cells, run_job
from s2composite.running.spans import spans_of, written_out
from s2composite.scenes.periods import Period

__all__ = ["SpanJob", "SpanResult", "explain_spans", "job_products", "run_spans", "span_jobs"]

_WRITTEN_OUT = ("source", "output", "area", "performance_report")
"""Keys of a job in which templates stand for the date."""


@dataclass(frozen=True, slots=True)
class SpanJob:
    """What a job means for one unit of its span."""

    period: Period
    """The unit."""

    job: Job
    """The job, with its dates and without the span."""


@dataclass(frozen=True, slots=True)
class SpanResult:
    """What became of one unit of a span."""

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


def explain_spans(job: Job) -> str:
    """Return a line for each unit of a span: from where to where. What one takes, `plan_job` says of its job."""
    lines = []
    for one in span_jobs(job):
        sources = one.job.source if isinstance(one.job.source, str) else ", ".join(one.job.source)
        lines.append(f"{one.period.label}: {sources}, {one.job.datetime} -> {one.job.output}")
    return "\n".join(lines)


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
    **chosen: Any,
) -> Iterator[SpanResult]:
    """Run a job for each month, day or year of its span, all on one cluster.

    Each has its own output and ledger, so an interrupted run is resumed and nothing complete is made again. A unit that
    fails, such as a month without scenes, does not stop the others.

    Parameters
    ----------
    job
        A job with ``span``; as for `run_job`.
    since
        ``"last"``: only the unit that ended last, for a monthly cron job. A date: that unit and all later ones.
    today
        The day that decides which units have ended; default: today in UTC.
    client, announce
        As for `run_job`.
    **chosen
        Which windows or cells to make of each: ``which``, ``error`` and other options of `run_job`, or of `run_cells`
        if the job has a grid.

    Yields
    ------
    SpanResult
        As each unit ends.

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
    jobs = span_jobs(job, since, today)
    cluster: AbstractContextManager[Any] = (
        connect(job.cluster, announce=announce) if client is None else nullcontext(client)
    )
    with cluster as workers:
        for one in jobs:
            try:
                results = _results(one.job, client=workers, **chosen)
            except ClusterError:
                raise  # no other unit would fare better
            except S2CompositeError as problem:
                yield SpanResult(one.period, one.job, error=problem)
            else:
                yield SpanResult(one.period, one.job, results)


def _results(job: Job, **options: Any) -> tuple[tuple[Cell | None, JobResult | None], ...]:
    if job.grid is not None:
        return tuple(run_cells(job, **options))
    return ((None, run_job(job, **options)),)
