"""Run: the commands that make windows: run, resume, retry."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from s2composite.cli.options import Area, Cells, JobFile, Log, Settings, Since, Windows, chosen
from s2composite.cli.words import SOME_FAILED, on_stderr, plain, plural
from s2composite.errors import WriteError

# Commands import what they need when they run (PLC0415): the libraries behind them take two seconds, --help must not.
# ruff: noqa: PLC0415

__all__ = ["left_out", "resume", "retry", "run"]

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
    from s2composite.running.jobs.job import load_job
    from s2composite.running.reports.logs import log_to_stderr

    if log is not None:
        log_to_stderr(log)
    checked = load_job(job, settings)
    options = {"announce": log is None, **chosen(checked, since=since, **which)}

    # After the check, so that a mistake in the job is told at once.
    from s2composite.running.run import run_cells, run_job
    from s2composite.running.run_spans import run_spans

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
    from s2composite.running.reports.page import write_report

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
    from s2composite.running.scope import cell_job

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
    from s2composite.running.scope import cell_job

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
