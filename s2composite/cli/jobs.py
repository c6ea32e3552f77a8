# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` is quick
"""Commands on jobs: plan, run, resume, retry, report, init, schema."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from s2composite.cli.options import (
    SOME_FAILED,
    Area,
    Cells,
    JobFile,
    Log,
    Settings,
    Since,
    Windows,
    chosen,
    on_stderr,
    plain,
    plural,
)
from s2composite.errors import JobError, WriteError

__all__ = ["init", "left_out", "plan", "report", "resume", "retry", "run", "schema", "status"]


def plan(
    job: JobFile,
    setting: Settings = None,
    *,
    csv: Annotated[Path | None, typer.Option(metavar="FILE.CSV", help="Write a row for each window.")] = None,
    geojson: Annotated[
        Path | None, typer.Option(metavar="FILE.GEOJSON", help="Write the windows as polygons, for QGIS.")
    ] = None,
    windows: Windows = None,
    cells: Cells = None,
    area: Area = None,
    since: Since = None,
) -> None:
    """Show what a job will read, hold in memory and write; nothing is read but headers.

    Exit code 1: some months of a span cannot be made.
    """
    from s2composite.jobs.schema import load_job
    from s2composite.runner.plan import told_time, write_csv, write_geojson
    from s2composite.writing.publish import target_of

    checked = load_job(job, setting or ())
    for table in (csv, geojson):
        if table is not None:
            target_of(table, overwrite=True)  # before the work
    which = chosen(checked, since=since, windows=windows, cells=cells, area=area)
    found = _plans_of_span(checked, which) if checked.span is not None else _plans(checked, which)
    plans = [(name, plan) for name, plan in found if plan is not None]
    if csv is not None:
        write_csv(plans, csv)
    if geojson is not None:
        write_geojson(plans, geojson)
    if len(plans) > 1:
        total = told_time(sum(plan.minutes for _, plan in plans))
        typer.echo(f"{plural(len(plans), 'product')}, {total} in all")
    if any(plan is None for _, plan in found):
        raise typer.Exit(SOME_FAILED)


def _plans(job: Any, which: Mapping[str, Any]) -> list[tuple[str | None, Any]]:
    """Say what a job, or each of its cells, will take, and return the plans."""
    from s2composite.runner.plan import plan_cells, plan_job

    if job.grid is None:
        planned = plan_job(job, **which)
        typer.echo(planned.explain())
        return [(None, planned)]
    plans: list[tuple[str | None, Any]] = []
    for cell, one in plan_cells(job, **which):
        typer.echo(f"\n{cell.name}\n{left_out(job) if one is None else one.explain()}")
        plans += [] if one is None else [(cell.name, one)]
    return plans


def _plans_of_span(job: Any, which: Mapping[str, Any]) -> list[tuple[str | None, Any]]:
    """Say what each unit of a span will take, and return the plans; None for one that cannot be made."""
    from s2composite.runner.plan import plan_spans

    plans: list[tuple[str | None, Any]] = []
    for one in plan_spans(job, **which):
        typer.echo(one.explain())
        plans += [(None, None)] if one.error is not None else []
        plans += [(None if cell is None else cell.name, plan) for cell, plan in one.plans if plan is not None]
    return plans


def status(
    job: JobFile,
    setting: Settings = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a job is, from its ledger; nothing is computed."""
    from s2composite.jobs.schema import load_job
    from s2composite.runner.report import job_progress
    from s2composite.runner.run import job_products

    checked = load_job(job, setting or ())
    found = {name: job_progress(one) for name, one in job_products(checked)}
    if as_json:
        facts = {name: one.as_dict() for name, one in found.items()}
        typer.echo(json.dumps(facts.get(None, facts), indent=2))
        return
    for name, one in found.items():
        typer.echo(one.summary() if name is None else f"{name}: {one.summary()}")
        for window, why in one.failures[:10]:
            typer.echo(f"  failed: window {window}: {' '.join(why.split())}")


def report(job: JobFile, setting: Settings = None) -> None:
    """Write report.json and report.html beside the ledger: windows by state and time, failures by cause, versions."""
    from s2composite.jobs.schema import load_job
    from s2composite.runner.report import write_report
    from s2composite.runner.run import job_products

    written = [path for _, one in job_products(load_job(job, setting or ())) for path in write_report(one)]
    for path in written or ["nothing has been done yet"]:
        typer.echo(path)


def init(
    path: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="Where to write it.")] = Path("job.yaml"),
) -> None:
    """Write a commented job file to start from."""
    from s2composite.jobs.schema import job_template
    from s2composite.writing.publish import put_small, target_of

    if path.exists():
        raise JobError(f"{path}: exists already; name another file", key=None, line=None)
    put_small(job_template().encode(), target_of(path, overwrite=False), overwrite=False)
    typer.echo(f"{path}; next: s2composite run {path}")


def schema() -> None:
    """Print the JSON Schema of job files, for editors and other programs."""
    from s2composite.jobs.schema import job_schema

    typer.echo(json.dumps(job_schema(), indent=2))


LOG = logging.getLogger("s2composite")


def run(
    job: JobFile,
    setting: Settings = None,
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    performance_report: Annotated[
        Path | None, typer.Option(metavar="FILE.HTML", help="Write Dask's performance report.")
    ] = None,
    windows: Windows = None,
    cells: Cells = None,
    area: Area = None,
    since: Since = None,
    log: Log = None,
) -> None:
    """Run a job file: find its scenes, composite them, write the result. Resumes what was interrupted.

    Exit code 0: complete; 1: some windows or some months of a span failed, the others are kept; 2: the job, its input
    or its output is wrong.
    """
    settings = list(setting or ())
    settings += ["overwrite=true"] if overwrite else []
    settings += [f"performance_report={json.dumps(str(performance_report))}"] if performance_report else []
    _run(job, settings, log, since, windows=windows, cells=cells, area=area)


def resume(job: JobFile, setting: Settings = None, *, since: Since = None, log: Log = None) -> None:
    """Resume an interrupted job: make the windows that have neither been made nor failed."""
    _run(job, setting or (), log, since, which="untried")


def retry(
    job: JobFile,
    setting: Settings = None,
    *,
    error: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Only windows whose error matches this regular expression.")
    ] = None,
    since: Since = None,
    log: Log = None,
) -> None:
    """Make failed windows again."""
    _run(job, setting or (), log, since, which="failed", error=error)


def _run(
    job: Path, settings: Sequence[str], log: Literal["text", "json"] | None, since: str | None, **which: Any
) -> None:
    from s2composite.jobs.schema import load_job
    from s2composite.logs import log_to_stderr

    if log is not None:
        log_to_stderr(log)
    checked = load_job(job, settings)
    options = {"announce": log is None, **chosen(checked, since=since, **which)}

    # After the check, so that a mistake in the job is told at once.
    from s2composite.runner.run import run_cells, run_job, run_spans

    if checked.span is not None:
        _tell_spans(checked, run_spans(checked, **options))
        return
    if checked.grid is not None:
        _tell_cells(checked, run_cells(checked, **options))
        return
    result = run_job(checked, **options)
    _report(checked)
    pixels = " x ".join(map(str, result.shape))
    work = f"{plural(result.scenes, 'scene')}, {pixels} pixels, {plural(result.windows, 'window')}"
    typer.echo(f"{work} in {result.seconds:.1f} s{_made(result)}")
    for path in result.paths:
        typer.echo(path)
    if not result.paths:
        _explain(result.failed)
        raise typer.Exit(SOME_FAILED)


def _report(job: Any) -> None:
    """Write a job's report; where that cannot be, what was made is there all the same."""
    from s2composite.runner.report import write_report

    try:
        write_report(job)
    except WriteError as error:
        LOG.warning("%s", error)
        on_stderr().print(f"the report cannot be written: {plain(str(error))}")


def _made(result: Any) -> str:
    """Return how many of the windows were made now, unless all were."""
    if not result.paths:
        return f", {result.made} of them made now"
    if result.made == result.windows:
        return ""
    return (
        f", {result.windows - result.made} of them made before"
        if result.made
        else ", complete before: nothing was made"
    )


def left_out(job: Any) -> str:
    """Return why a cell is left out."""
    least = job.policy.min_scenes
    return "no scene touches it" if least == 1 else f"fewer than {least} scenes touch it (policy.min_scenes)"


def _tell_cells(job: Any, results: Iterable[tuple[Any, Any]]) -> None:
    """Say what became of each cell, as it ends, and write its report."""
    from s2composite.runner.inputs import cell_job

    some_failed = False
    for cell, result in results:
        if result is None:
            typer.echo(f"{cell.name}: {left_out(job)}")
            continue
        typer.echo(f"{cell.name}: {plural(result.made, 'window')} made in {result.seconds:.1f} s")
        _report(cell_job(job, cell))
        for path in result.paths:
            typer.echo(path)
        if not result.paths:
            _explain(result.failed, result.error)
            some_failed = True
    if some_failed:
        raise typer.Exit(SOME_FAILED)


def _tell_spans(job: Any, results: Iterable[Any]) -> None:
    """Say what became of each unit of a span, as it ends, and write its reports."""
    from s2composite.runner.inputs import cell_job

    console = on_stderr()
    some_failed = False
    for one in results:
        typer.echo(one.summary())
        for cell, result in one.results:
            if result is None:
                typer.echo(f"{one.period.label}, {cell.name}: {left_out(job)}")
            else:
                _report(one.job if cell is None else cell_job(one.job, cell))
        for problem in one.problems():
            console.print(f"[bold red]failed:[/] {plain(problem)}")
        some_failed |= not one.complete
    if some_failed:
        console.print("what is done is kept: s2composite run makes the rest, retry what failed")
        raise typer.Exit(SOME_FAILED)


_KEPT = "what is done is kept"


def _explain(failed: Sequence[Any], error: str | None = None) -> None:
    if LOG.handlers:
        return  # the log has said it
    console = on_stderr()
    for failure in failed[:10]:
        console.print(f"[bold red]failed:[/] window {failure.window}: {plain(failure.error)}")
    if error is not None:
        console.print(f"[bold red]failed:[/] {plain(error)}")
    if failed:
        console.print(f"{plural(len(failed), 'window')} failed; {_KEPT}: s2composite retry makes the failed ones again")
    elif error is None:
        console.print(f"some windows are not made yet; {_KEPT}: s2composite run makes the rest")
    else:
        console.print(f"{_KEPT}: s2composite run goes on with it")
