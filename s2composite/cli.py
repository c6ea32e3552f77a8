"""The command line: ``s2composite demo``, ``run``, ``resume``, ``retry``, ``status``, ``scenes``, ``zonal`` ..."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import s2composite
from s2composite.errors import JobError, S2CompositeError
from s2composite.scenes.model import Asset, Scene
from s2composite.service.cli import add_commands

# Commands import what they need when they run (PLC0415): the libraries behind them take two seconds, --help must not.
# ruff: noqa: PLC0415

__all__ = ["app", "main"]

LOG = logging.getLogger("s2composite")

SOME_FAILED = 1
"""Exit code for a job of which windows failed."""

BAD_INPUT = 2
"""Exit code for an error that the message explains; that of a wrong option, too."""

SHOWN = ("time", "granule", "id", "asset", "size", "bands", "blocks", "compression", "dtype")
"""Columns of the table of scenes."""

COMPARED = ("granule", "bands", "size", "blocks", "compression", "dtype", "crs", "grid")
"""Facts in which all scenes of a stack should agree."""

MADE = {
    "picture": "one cloudy scene, the composite beside it, and how often each pixel was seen",
    "composite": "the composite, a cloud-optimised GeoTIFF: open it in QGIS",
    "count": "usable observations of each pixel",
    "source": "which scene each pixel was taken from",
    "scenes": "the scenes",
}
"""What the demonstration leaves, and what is to be seen there."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def main() -> None:
    """Run the command line; an error of the library is one line on stderr and exit code 2."""
    try:
        app()
    except S2CompositeError as error:
        if LOG.handlers:
            LOG.log(logging.ERROR, "%s", error, extra={"facts": {"error": type(error).__name__}})
        else:
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {_plain(str(error))}")
        sys.exit(SOME_FAILED if getattr(error, "resumable", False) else BAD_INPUT)


def _plain(text: str) -> str:
    """Return a text on one line, with nothing in it that rich takes for markup."""
    from rich.markup import escape

    return escape(" ".join(text.split()))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"s2composite {s2composite.__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Cloud-free composites of satellite time series: many acquisitions in, one clean picture out."""


@app.command()
def demo(
    *,
    directory: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 24,
    size: Annotated[int, typer.Option(min=1, max=10980, help="Rows and columns; 10980 is a whole granule.")] = 1024,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    seed: Annotated[int, typer.Option(help="Another number, another land and weather.")] = 0,
    compress: Annotated[str, typer.Option(help="Of the scenes: jpeg or deflate.")] = "jpeg",
) -> None:
    """Make a season of scenes and composite them: no network, no account, under a minute."""
    from s2composite.demo import run_demo

    start = perf_counter()
    made = run_demo(directory, scenes=scenes, size=size, seed=seed, compress=compress, workers=workers)
    typer.echo(
        f"{_plural(scenes, 'scene')} of {size} x {size} pixels made and composited in {perf_counter() - start:.0f} s\n"
    )
    for what, meaning in MADE.items():
        typer.echo(f"  {_near(made[what]):<32}  {meaning}")
    typer.echo(f"\nNext: s2composite scenes {_near(made['scenes'])}")


def _near(path: str) -> str:
    """Return a path as one would type it from here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


JobFile = Annotated[
    Path, typer.Argument(metavar="JOB.YAML", help="The job file; it needs two keys, source and output.")
]
Windows = Annotated[
    str | None, typer.Option(help="Only these windows: 7, 1::10 (a slice), 3/4 (row/column), or several with commas.")
]
Cells = Annotated[
    str | None, typer.Option(help="Of a job with a grid, only these cells: 31TCJ, 7, 1::10, or several with commas.")
]
Area = Annotated[
    str | None, typer.Option(metavar="FILE.GEOJSON", help="Only windows, or cells, that its polygons touch.")
]
Log = Annotated[
    Literal["text", "json"] | None,
    typer.Option(help="Write a line to stderr for each event: key=value, or JSON. There is no progress bar then."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Overrides a key of the job: -s cluster.workers=4. Repeatable."
    ),
]


Since = Annotated[
    str | None,
    typer.Option(
        metavar="DATE",
        help="Of a job with a span: 'last', only the month (day, year ...) that was over last; 2018-03, from then on.",
    ),
]


@app.command()
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
    """Run a job file: find its scenes, composite them, write the result. Goes on with what was interrupted.

    Exit code 0: complete; 1: some windows or some months of a span failed, the others are kept; 2: the job, its input
    or its output is wrong.
    """
    settings = list(setting or ())
    settings += ["overwrite=true"] if overwrite else []
    settings += [f"performance_report={json.dumps(str(performance_report))}"] if performance_report else []
    _run(job, settings, log, since, windows=windows, cells=cells, area=area)


@app.command()
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
    """Show what a job will read, hold in memory and write; nothing is read but headers."""
    from s2composite.running.job import load_job
    from s2composite.running.plan import Plan, plan_cells, plan_job
    from s2composite.running.plan_tables import write_csv, write_geojson
    from s2composite.running.run_spans import explain_spans

    checked = load_job(job, setting or ())
    if checked.span is not None:
        typer.echo(explain_spans(checked))
        return
    plans: list[tuple[str | None, Plan]] = []
    chosen = _chosen(checked, windows=windows, cells=cells, area=area)
    if checked.grid is None:
        planned = plan_job(checked, **chosen)
        plans = [(None, planned)]
        typer.echo(planned.explain())
    else:
        for cell, one in plan_cells(checked, **chosen):
            typer.echo(f"\n{cell.name}\n{_left_out(checked) if one is None else one.explain()}")
            plans += [] if one is None else [(cell.name, one)]
    if csv is not None:
        write_csv(plans, csv)
    if geojson is not None:
        write_geojson(plans, geojson)


def _chosen(job: Any, *, windows: str | None = None, cells: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the options that choose, of those that a job can have."""
    if job.grid is None and cells is not None:
        raise JobError("--cells: the job has no grid; --windows and --area choose among its windows", key="grid")
    if job.grid is not None and windows is not None:
        raise JobError("--windows: the job has a grid; --cells and --area choose among its cells", key="grid")
    return {"windows": windows, **more} if job.grid is None else {"cells": cells, **more}


@app.command()
def resume(job: JobFile, setting: Settings = None, *, since: Since = None, log: Log = None) -> None:
    """Go on with a job that was interrupted: make the windows that have neither been made nor failed."""
    _run(job, setting or (), log, since, which="untried")


@app.command()
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
    """Make the windows again that have failed."""
    _run(job, setting or (), log, since, which="failed", error=error)


def _run(
    job: Path, settings: Sequence[str], log: Literal["text", "json"] | None, since: str | None, **which: Any
) -> None:
    from s2composite.running.job import load_job
    from s2composite.running.logs import log_to_stderr

    if log is not None:
        log_to_stderr(log)
    checked = load_job(job, settings)
    if since is not None and checked.span is None:
        raise JobError(f"{job}: --since is about a span, and the job has none", key="span", line=None)

    # After the check, so that a mistake in the job is told at once.
    from s2composite.running.report_page import write_report
    from s2composite.running.run import run_cells, run_job
    from s2composite.running.run_spans import run_spans

    if checked.span is not None:
        _tell_spans(run_spans(checked, since=since, announce=log is None, **_chosen(checked, **which)))
        return
    if checked.grid is not None:
        _tell_cells(checked, run_cells(checked, announce=log is None, **_chosen(checked, **which)))
        return
    result = run_job(checked, announce=log is None, **_chosen(checked, **which))
    write_report(checked)
    pixels = " x ".join(map(str, result.shape))
    before = f", {result.windows - result.made} of them made before" if 0 < result.made < result.windows else ""
    before = before if result.paths else f", {result.made} of them made now"
    work = f"{_plural(result.scenes, 'scene')}, {pixels} pixels, {_plural(result.windows, 'window')}"
    typer.echo(f"{work} in {result.seconds:.1f} s{before}")
    for path in result.paths:
        typer.echo(path)
    if not result.paths:
        _explain(result.failed)
        raise typer.Exit(SOME_FAILED)


def _left_out(job: Any) -> str:
    """Return why a cell is left out."""
    least = job.policy.min_scenes
    return "no scene touches it" if least == 1 else f"fewer than {least} scenes touch it (policy.min_scenes)"


def _tell_cells(job: Any, results: Iterable[tuple[Any, Any]]) -> None:
    """Say what became of each cell, as it ends, and write its report."""
    from s2composite.running.report_page import write_report
    from s2composite.running.scope import cell_job

    some_failed = False
    for cell, result in results:
        if result is None:
            typer.echo(f"{cell.name}: {_left_out(job)}")
            continue
        typer.echo(f"{cell.name}: {_plural(result.made, 'window')} made in {result.seconds:.1f} s")
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
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    some_failed = False
    for one in results:
        typer.echo(one.summary())
        for problem in one.problems():
            console.print(f"[bold red]failed:[/] {_plain(problem)}")
        some_failed |= not one.complete
    if some_failed:
        console.print("what is done is kept: s2composite run makes the rest, retry what failed")
        raise typer.Exit(SOME_FAILED)


def _explain(failed: Sequence[Any], error: str | None = None) -> None:
    if LOG.handlers:
        return  # the log has said it
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for failure in failed[:10]:
        console.print(f"[bold red]failed:[/] window {failure.window}: {_plain(failure.error)}")
    if error is not None:
        console.print(f"[bold red]failed:[/] {_plain(error)}")
    more = f"{len(failed)} windows failed" if failed else "some windows are not made yet" if error is None else "failed"
    console.print(f"{more}; what is done is kept: s2composite retry makes the failed ones again")


@app.command()
def status(
    job: JobFile,
    setting: Settings = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a job is, from its ledger: nothing is read or computed."""
    from s2composite.running.job import load_job
    from s2composite.running.progress import job_progress

    checked = load_job(job, setting or ())
    found = {name: job_progress(one) for name, one in _products(checked)}
    if as_json:
        facts = {name: one.as_dict() for name, one in found.items()}
        typer.echo(json.dumps(facts.get(None, facts), indent=2))
        return
    for name, one in found.items():
        typer.echo(one.summary() if name is None else f"{name}: {one.summary()}")
        for window, why in one.failures[:10]:
            typer.echo(f"  failed: window {window}: {' '.join(why.split())}")


def _products(job: Any) -> Iterator[tuple[str | None, Any]]:
    """Yield the name and the job of each cell and month; a job without a grid or a span is one without a name."""
    from s2composite.running.run_spans import span_jobs
    from s2composite.running.scope import cell_job, job_cells

    if job.span is not None:
        products = ((one.period.label, name, each) for one in span_jobs(job) for name, each in _products(one.job))
        yield from ((label if name is None else f"{label}, {name}", each) for label, name, each in products)
    elif job.grid is None:
        yield None, job
    else:
        yield from ((cell.name, cell_job(job, cell)) for cell in job_cells(job))


@app.command()
def report(job: JobFile, setting: Settings = None) -> None:
    """Write report.json and report.html beside the ledger: windows by state and time, failures by cause, versions."""
    from s2composite.running.job import load_job
    from s2composite.running.report_page import write_report

    written = [path for _, one in _products(load_job(job, setting or ())) for path in write_report(one)]
    for path in written or ["nothing has been done yet"]:
        typer.echo(path)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="Where to write it.")] = Path("job.yaml"),
) -> None:
    """Write a commented job file to start from."""
    from s2composite.running.template import job_template

    if path.exists():
        raise JobError(f"{path}: exists already; name another file", key=None, line=None)
    path.write_text(job_template(), "utf-8")
    typer.echo(f"{path}; next: s2composite run {path}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors and other programs."""
    from s2composite.running.job import job_schema

    typer.echo(json.dumps(job_schema(), indent=2))


@app.command()
def zonal(
    raster: Annotated[str, typer.Argument(metavar="RASTER", help="A composite, or any raster that GDAL reads.")],
    zones: Annotated[str, typer.Argument(metavar="ZONES", help="Polygons: GeoJSON, GeoPackage, GeoParquet ...")],
    table: Annotated[str, typer.Argument(metavar="TABLE.CSV", help="Where the table goes; .csv or .parquet.")],
    *,
    stats: Annotated[
        str, typer.Option(help="Also sum, median, any percentile as p10, fraction (of each class).")
    ] = "min,max,mean,stdev,skew,count",
    name: Annotated[str | None, typer.Option(help="Column that names the zones; else they are numbered.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that exists.")] = False,
) -> None:
    """Measure a raster over polygons, with the share of each pixel that a polygon covers."""
    from s2composite.analysis.zonal import zonal_stats
    from s2composite.analysis.zonal_table import write_zonal_stats
    from s2composite.writing.targets import target_of

    target_of(table, overwrite=overwrite)  # before the work
    found = zonal_stats(raster, zones, stats.split(","), name=name)
    typer.echo(f"{_plural(len(found), 'row')}: {write_zonal_stats(found, table, overwrite=overwrite)}")


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


@app.command()
def scenes(
    source: Annotated[
        list[str], typer.Argument(help="Paths, directories, patterns or URL prefixes (gs://, s3://, https://).")
    ],
    *,
    datetime: Annotated[str | None, typer.Option(help="Only these dates: 2023-06, 2023-06-01/2023-08-31.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Regular expression with named groups for unusual names.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the scenes of a source; those that differ from the majority are marked."""
    from s2composite.scenes.listing import find_scenes

    found = find_scenes(source if len(source) > 1 else source[0], pattern=pattern, datetime=datetime)
    files = [(scene, asset) for scene in found for asset in scene.assets]
    with ThreadPoolExecutor(32) as pool:
        headers = pool.map(_described, [asset.href for _, asset in files])
    rows = _flagged([{**_named(*file), **header} for file, header in zip(files, headers, strict=True)])
    typer.echo(json.dumps(rows, indent=2)) if as_json else _print_table(rows, len(found))


def _named(scene: Scene, asset: Asset) -> dict[str, Any]:
    """Return what the names say about one file."""
    from s2composite.scenes.storage import display  # a signed URL without its signature

    return {
        "time": scene.time.isoformat().replace("+00:00", "Z"),
        "granule": scene.granule,
        "id": scene.id,
        "orbit": scene.orbit,
        "baseline": scene.baseline,
        "asset": asset.name,
        "href": display(asset.href),
    }


def _described(href: str) -> dict[str, Any]:
    """Return what the header of one file says; for a file that cannot be read, why."""
    from s2composite.reading.header import read_header

    try:
        header = read_header(href)
    except S2CompositeError as error:
        return {"error": str(error)}
    grid = header.geobox
    return {
        "bands": header.bands,
        "size": list(grid.shape),
        "blocks": list(header.block),
        "compression": header.compression,
        "dtype": str(header.dtype),
        "crs": str(grid.crs),
        "grid": list(grid.transform)[:6],
        "engine": header.undecodable or "tiles",
    }


def _flagged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each row the columns in which it differs from most files of the same asset, as ``odd``.

    >>> [row["odd"] for row in _flagged([{"asset": "TCI", "dtype": d} for d in ("uint8", "uint8", "int16")])]
    [[], [], ['dtype']]
    """
    usual = {
        (asset, column): Counter(str(row[column]) for row in rows if row["asset"] == asset and column in row)
        for asset in {row["asset"] for row in rows}
        for column in COMPARED
    }

    def differs(row: Mapping[str, Any], column: str) -> bool:
        return column in row and str(row[column]) != usual[row["asset"], column].most_common(1)[0][0]

    return [{**row, "odd": ["error"] if "error" in row else [c for c in COMPARED if differs(row, c)]} for row in rows]


def _print_table(rows: Sequence[Mapping[str, Any]], scenes: int) -> None:
    several = len({row["asset"] for row in rows}) > 1
    columns = [column for column in SHOWN if several or column != "asset"]
    table = Table(*columns, "differs in", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        cells = [_cell(row.get(column), odd=column in row["odd"]) for column in columns]
        table.add_row(*cells, Text(row.get("error") or ", ".join(row["odd"]), "bold red"))
    odd = sum(bool(row["odd"]) for row in rows)
    # Where the output is not a terminal its lines are as long as they need to be: grep wants whole names.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    console.print(table)
    console.print(f"{_plural(scenes, 'scene')}, {_plural(len(rows), 'file')}, {odd or 'none'} unlike the majority")


def _cell(value: Any, *, odd: bool) -> Text:
    text = " x ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return Text(text, "bold red" if odd else "")


@app.command()
def check(
    cluster: Annotated[
        str, typer.Argument(metavar="CLUSTER.YAML", help="A cluster's file, 'local', or a scheduler's address.")
    ],
    *,
    source: Annotated[str | None, typer.Option(help="Scenes of which every worker reads a header.")] = None,
    target: Annotated[str | None, typer.Option(help="Where every worker writes and deletes a small object.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for the answers of all workers.")] = 60,
) -> None:
    """Start or join a cluster and report what every worker has and can reach; exit code 2 if something is wrong."""
    from s2composite.running.cluster import connect
    from s2composite.running.cluster_check import check_cluster

    with connect(cluster) as client:
        found = check_cluster(client, source=source, target=target, timeout=timeout)
    columns = ("worker", "threads", "memory", "python", "s2composite", "dask", "numpy", "numba", "rasterio", "gdal")
    asked = [name for name, value in (("source", source), ("target", target)) if value is not None]
    table = Table(*columns, *asked, "environment", box=None, header_style="bold", pad_edge=False)
    for worker in found.workers:
        table.add_row(*_worker_row(worker, columns[3:-1], asked))
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    console.print(table)
    for problem in found.problems:
        console.print(f"[bold red]problem:[/] {_plain(problem)}", soft_wrap=True)
    console.print(f"{_plural(len(found.workers), 'worker')}, {_plural(len(found.problems), 'problem')}")
    if not found.ok:
        raise typer.Exit(BAD_INPUT)


def _worker_row(worker: Any, packages: Sequence[str], asked: Sequence[str]) -> list[Text]:
    """Return the cells of one worker; what it could not find out is a question mark."""
    findings = worker.findings
    memory = "no limit" if worker.memory is None else f"{worker.memory / 1e9:.1f} GB"
    facts = [worker.address, str(worker.threads), memory, *(worker.versions.get(name) or "-" for name in packages)]
    if findings is None:
        return [Text(text) for text in facts] + [Text("?", "bold red")] * (len(asked) + 2)
    good = [*(getattr(findings, name) is None for name in asked), not findings.environment]
    words = [Text("ok") if fine else Text("problem", "bold red") for fine in good]
    return [*map(Text, facts), Text(findings.gdal), *words]


add_commands(app)
