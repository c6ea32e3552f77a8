"""Job files: what a job will take, how far it is, what became of it; a new one, and their schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from s2composite.cli.options import Area, Cells, JobFile, Settings, Windows, chosen
from s2composite.cli.run import left_out
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
) -> None:
    """Show what a job will read, hold in memory and write; only headers are read."""
    from s2composite.running.jobs.job import load_job
    from s2composite.running.planning.plan import Plan, plan_cells, plan_job
    from s2composite.running.planning.tables import write_csv, write_geojson
    from s2composite.running.run_spans import explain_spans

    checked = load_job(job, setting or ())
    if checked.span is not None:
        typer.echo(explain_spans(checked))
        return
    plans: list[tuple[str | None, Plan]] = []
    which = chosen(checked, windows=windows, cells=cells, area=area)
    if checked.grid is None:
        planned = plan_job(checked, **which)
        plans = [(None, planned)]
        typer.echo(planned.explain())
    else:
        for cell, one in plan_cells(checked, **which):
            typer.echo(f"\n{cell.name}\n{left_out(checked) if one is None else one.explain()}")
            plans += [] if one is None else [(cell.name, one)]
    if csv is not None:
        write_csv(plans, csv)
    if geojson is not None:
        write_geojson(plans, geojson)


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

    if path.exists():
        raise JobError(f"{path}: exists already; name another file", key=None, line=None)
    path.write_text(job_template(), "utf-8")
    typer.echo(f"{path}; next: s2composite run {path}")


def schema() -> None:
    """Print the JSON Schema of job files, for editors and other programs."""
    from s2composite.running.jobs.job import job_schema

    typer.echo(json.dumps(job_schema(), indent=2))
