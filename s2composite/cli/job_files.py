"""Job files: what a job will take, how far it is, what became of it; a new one, and their schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from s2composite.cli.options import Area, Cells, JobFile, Settings, Since, Windows, chosen
from s2composite.cli.run import left_out
from s2composite.cli.words import SOME_FAILED, plural
from s2composite.errors import JobError

# Commands import what they need when they run (PLC0415): the libraries behind them take two seconds, --help must not.
# ruff: noqa: PLC0415

__all__ = ["init", "plan", "report", "schema", "status"]


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
    from s2composite.running.jobs.job import load_job
    from s2composite.running.planning.plan import told_time
    from s2composite.running.planning.tables import write_csv, write_geojson
    from s2composite.writing.targets import target_of

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
    from s2composite.running.planning.plan import plan_cells, plan_job

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
    from s2composite.running.planning.span_plans import plan_spans

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
    from s2composite.running.jobs.job import load_job
    from s2composite.running.reports.progress import job_progress
    from s2composite.running.run_spans import job_products

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
    from s2composite.running.jobs.job import load_job
    from s2composite.running.reports.page import write_report
    from s2composite.running.run_spans import job_products

    written = [path for _, one in job_products(load_job(job, setting or ())) for path in write_report(one)]
    for path in written or ["nothing has been done yet"]:
        typer.echo(path)


def init(
    path: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="Where to write it.")] = Path("job.yaml"),
) -> None:
    """Write a commented job file to start from."""
    from s2composite.running.jobs.template import job_template
    from s2composite.writing.targets import put_small, target_of

    if path.exists():
        raise JobError(f"{path}: exists already; name another file", key=None, line=None)
    put_small(job_template().encode(), target_of(path, overwrite=False), overwrite=False)
    typer.echo(f"{path}; next: s2composite run {path}")


def schema() -> None:
    """Print the JSON Schema of job files, for editors and other programs."""
    from s2composite.running.jobs.job import job_schema

    typer.echo(json.dumps(job_schema(), indent=2))
