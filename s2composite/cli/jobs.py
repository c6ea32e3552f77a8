# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` is quick
"""Commands for jobs, and their shared options: plan, run, resume, retry, report, init, schema."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from s2composite.errors import JobError, WriteError, plural

if TYPE_CHECKING:
    from s2composite.jobs.schema import Job
    from s2composite.runner.inputs import Which
    from s2composite.runner.plan import ProductPlan
    from s2composite.runner.run import ProductResult

LOG = logging.getLogger("s2composite")

__all__ = [
    "BAD_INPUT", "SOME_FAILED", "init", "left_out", "on_stderr", "plain", "plan", "report", "resume", "retry", "run",
    "schema", "status",
]  # fmt: skip

SOME_FAILED = 1  # exit code for a job with failed windows
BAD_INPUT = 2  # exit code for an error of the library, and for a wrong option


def on_stderr() -> Console:
    """Return a console on stderr, for output that is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    """Return a text on one line, with rich markup escaped."""
    return str(escape(" ".join(text.split())))


JobFile = Annotated[
    Path, typer.Argument(metavar="JOB.YAML", help="The job file; it needs two keys, source and output.")
]
Windows = Annotated[
    str | None, typer.Option(help="Only these windows: 7, 1::10 (a slice), 3/4 (row/column), or several with commas.")
]
Cells = Annotated[
    str | None, typer.Option(help="Only these cells of a job with a grid: 31TCJ, 7, 1::10, or several with commas.")
]
Area = Annotated[
    str | None,
    typer.Option(metavar="FILE.GEOJSON", help="Only windows, or cells, that polygons of this file touch."),
]
Log = Annotated[
    Literal["text", "json"] | None,
    typer.Option(help="Write each event to stderr as a line of key=value or JSON, instead of a progress bar."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a key of the job: -s cluster.workers=4. Repeatable."
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="DATE",
        help="For a job with a span: 'last' computes only the last complete month (day, year ...); 2018-03 that month "
        "and all later ones.",
    ),
]


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
    """Show what a job will read, hold in memory and write; reads only headers.

    Exit code 1: some months of a span cannot be computed.
    """
    from s2composite.jobs.schema import load_job, require_selectors
    from s2composite.runner.plan import estimate, write_csv, write_geojson
    from s2composite.runner.plan import plan as plan_products
    from s2composite.writing.publish import target_of

    checked = load_job(job, setting or ())
    for table in (csv, geojson):
        if table is not None:
            target_of(table, overwrite=True)  # before the work
    selectors: dict[str, Any] = {"since": since, "windows": windows, "cells": cells}
    require_selectors(checked, **selectors, prefix="--")

    def show(one: ProductPlan) -> None:
        if checked.span is not None:
            typer.echo(one.explain())
        elif one.plan is None:
            typer.echo(f"\n{one.product.name}\n{left_out(checked)}")
        else:
            head = "" if checked.grid is None else f"\n{one.product.name}\n"
            typer.echo(head + one.plan.explain())

    planned = plan_products(checked, **selectors, area=area, on_product=show)
    if csv is not None:
        write_csv(planned.plans, csv)
    if geojson is not None:
        write_geojson(planned.plans, geojson)
    if len(planned.plans) > 1:
        typer.echo(f"{plural(len(planned.plans), 'product')}, {estimate(planned.minutes)} in all")
    if any(one.error is not None for one in planned.products):
        raise typer.Exit(SOME_FAILED)


def status(
    job: JobFile,
    setting: Settings = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the progress of a job from its ledger; computes nothing."""
    from s2composite.jobs.schema import load_job
    from s2composite.runner.inputs import expand
    from s2composite.runner.report import job_progress

    progress = {one.name: job_progress(one.job) for one in expand(load_job(job, setting or ()))}
    if as_json:
        content = {name: one.as_dict() for name, one in progress.items()}
        typer.echo(json.dumps(content.get(None, content), indent=2))
        return
    for name, one in progress.items():
        typer.echo(one.summary() if name is None else f"{name}: {one.summary()}")
        for window, why in one.failures[:10]:
            typer.echo(f"  failed: window {window}: {' '.join(why.split())}")


def report(job: JobFile, setting: Settings = None) -> None:
    """Write report.json and report.html to the ledger: windows by state and time, failures by cause, versions."""
    from s2composite.jobs.schema import load_job
    from s2composite.runner.inputs import expand
    from s2composite.runner.report import write_report

    written = [path for one in expand(load_job(job, setting or ())) for path in write_report(one.job)]
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
    """Run a job file: find its scenes, composite them, write the result. Resumes an interrupted run.

    Exit code 0: complete; 1: some windows or some months of a span failed, the others are kept; 2: the job, its input
    or its output is wrong.
    """
    settings = list(setting or ())
    settings += ["overwrite=true"] if overwrite else []
    settings += [f"performance_report={json.dumps(str(performance_report))}"] if performance_report else []
    _run(job, settings, log, since=since, windows=windows, cells=cells, area=area)


def resume(job: JobFile, setting: Settings = None, *, since: Since = None, log: Log = None) -> None:
    """Resume an interrupted job: compute the windows that have not been attempted yet."""
    _run(job, setting or (), log, since=since, which="untried")


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
    """Compute failed windows again."""
    _run(job, setting or (), log, since=since, which="failed", error=error)


def _run(
    job: Path,
    settings: Sequence[str],
    log: Literal["text", "json"] | None,
    *,
    since: str | None = None,
    windows: str | None = None,
    cells: str | None = None,
    area: str | None = None,
    which: Which = "missing",
    error: str | None = None,
) -> None:
    from s2composite.jobs.schema import load_job, require_selectors
    from s2composite.logs import log_to_stderr

    if log is not None:
        log_to_stderr(log)
    checked = load_job(job, settings)
    selectors: dict[str, Any] = {"since": since, "windows": windows, "cells": cells}
    require_selectors(checked, **selectors, prefix="--")

    # After the check, so that a mistake in the job is reported at once.
    from s2composite.runner.run import run as run_products

    result = run_products(
        checked,
        announce=log is None,
        which=which,
        error=error,
        area=area,
        **selectors,
        on_product=partial(_show_product, checked),
    )
    if checked.span is not None and not result.complete:
        on_stderr().print("what is done is kept: s2composite run makes the rest, retry what failed")
    if not result.complete:
        raise typer.Exit(SOME_FAILED)


def _show_product(job: Job, result: ProductResult) -> None:
    """Print the results, write the report, and list failures."""
    if result.left_out:
        typer.echo(f"{result.name}: {left_out(job)}")
        return
    if job.span is not None or job.grid is not None:
        typer.echo(result.summary())
    else:
        made = f", {result.made} of them made now"
        if result.paths and result.made == result.windows:
            made = ""
        elif result.paths:
            before = result.windows - result.made
            made = f", {before} of them made before" if result.made else ", complete before: nothing was made"
        pixels = " x ".join(map(str, result.shape))
        work = f"{plural(result.scenes, 'scene')}, {pixels} pixels, {plural(result.windows, 'window')}"
        typer.echo("\n".join([f"{work} in {result.seconds:.1f} s{made}", *result.paths]))

    from s2composite.runner.report import write_report

    try:
        write_report(result.product.job)
    except WriteError as error:  # the outputs exist in any case
        LOG.warning("%s", error)
        on_stderr().print(f"the report cannot be written: {plain(str(error))}")
    if job.span is not None:
        for problem in result.problems():
            on_stderr().print(f"[bold red]failed:[/] {plain(problem)}")
    elif not result.paths and not LOG.handlers:  # otherwise the log has it
        console, kept = on_stderr(), "what is done is kept"
        for failure in result.failed[:10]:
            console.print(f"[bold red]failed:[/] window {failure.window}: {plain(failure.error)}")
        if result.error is not None:
            console.print(f"[bold red]failed:[/] {plain(result.error)}")
        if result.failed:
            console.print(
                f"{plural(len(result.failed), 'window')} failed; {kept}: s2composite retry makes the failed ones again"
            )
        elif result.error is None:
            console.print(f"some windows are not made yet; {kept}: s2composite run makes the rest")
        else:
            console.print(f"{kept}: s2composite run goes on with it")


def left_out(job: Job) -> str:
    """Return why a cell was left out."""
    least = job.policy.min_scenes
    return "no scene touches it" if least == 1 else f"fewer than {least} scenes touch it (policy.min_scenes)"
