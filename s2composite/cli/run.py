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
from s2composite.errors import JobError

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
    if since is not None and checked.span is None:
        raise JobError(f"{job}: --since chooses from a span, and the job has none; leave it out", key="span", line=None)

    # After the check, so that a mistake in the job shows at once.
    from s2composite.running.reports.page import write_report
    from s2composite.running.run import run_cells, run_job
    from s2composite.running.run_spans import run_spans

    if checked.span is not None:
        _tell_spans(run_spans(checked, since=since, announce=log is None, **chosen(checked, **which)))
        return
    if checked.grid is not None:
        _tell_cells(checked, run_cells(checked, announce=log is None, **chosen(checked, **which)))
        return
    result = run_job(checked, announce=log is None, **chosen(checked, **which))
    write_report(checked)
    pixels = " x ".join(map(str, result.shape))
    work = f"{plural(result.scenes, 'scene')}, {pixels} pixels, {plural(result.windows, 'window')}"
    typer.echo(f"{work} in {result.seconds:.1f} s{_made(result)}")
    for path in result.paths:
        typer.echo(path)
    if not result.paths:
        _explain(result.failed)
        raise typer.Exit(SOME_FAILED)


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
    from s2composite.running.reports.page import write_report
    from s2composite.running.scope import cell_job

    some_failed = False
    for cell, result in results:
        if result is None:
            typer.echo(f"{cell.name}: {left_out(job)}")
            continue
        typer.echo(f"{cell.name}: {plural(result.made, 'window')} made in {result.seconds:.1f} s")
        write_report(cell_job(job, cell))
        for path in result.paths:
            typer.echo(path)
        if not result.paths:
            _explain(result.failed, result.error)
            some_failed = True
    if some_failed:
        raise typer.Exit(SOME_FAILED)


def _tell_spans(results: Iterable[Any]) -> None:
    """Say what became of each unit of a span, as it ends."""
    console = on_stderr()
    some_failed = False
    for one in results:
        typer.echo(one.summary())
        for problem in one.problems():
            console.print(f"[bold red]failed:[/] {plain(problem)}")
        some_failed |= not one.complete
    if some_failed:
        console.print("what is done is kept: s2composite run makes the rest, retry what failed")
        raise typer.Exit(SOME_FAILED)


def _explain(failed: Sequence[Any], error: str | None = None) -> None:
    if LOG.handlers:
        return  # the log has said it
    console = on_stderr()
    for failure in failed[:10]:
        console.print(f"[bold red]failed:[/] window {failure.window}: {plain(failure.error)}")
    if error is not None:
        console.print(f"[bold red]failed:[/] {plain(error)}")
    more = f"{len(failed)} windows failed" if failed else "some windows are not made yet" if error is None else "failed"
    console.print(f"{more}; what is done is kept: s2composite retry makes the failed ones again")
