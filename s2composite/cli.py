# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` is quick
"""The command line: ``s2composite demo``, ``run``, ``resume``, ``retry``, ``status``, ``scenes``, ``zonal`` ..."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import s2composite
from s2composite.errors import JobError, MissingDependencyError, S2CompositeError, WriteError, plural
from s2composite.scenes.model import Asset, Scene

if TYPE_CHECKING:
    from s2composite.jobs.schema import Job
    from s2composite.runner.plan import ProductPlan
    from s2composite.runner.run import ProductResult

__all__ = ["app", "main"]

LOG = logging.getLogger("s2composite")

SOME_FAILED = 1  # exit code for a job with failed windows
BAD_INPUT = 2  # exit code for an error of the library, and for a wrong option


def _stderr() -> Console:
    """Return a console on stderr, for output that is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Return a text on one line, with rich markup escaped."""
    return str(escape(" ".join(text.split())))


# --- jobs -------------------------------------------------------------------------------------------------------------

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
            typer.echo(f"\n{one.product.name}\n{_left_out(checked)}")
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
    since: str | None,
    windows: str | None = None,
    cells: str | None = None,
    **options: Any,
) -> None:
    """Run a job; `options` are those of `s2composite.run`."""
    from s2composite.jobs.schema import load_job, require_selectors
    from s2composite.logs import log_to_stderr

    if log is not None:
        log_to_stderr(log)
    checked = load_job(job, settings)
    selectors: dict[str, Any] = {"since": since, "windows": windows, "cells": cells}
    require_selectors(checked, **selectors, prefix="--")

    # After the check, so that a mistake in the job is reported at once.
    from s2composite.runner.run import run as run_products

    show = partial(_show_product, checked)
    result = run_products(checked, announce=log is None, **selectors, **options, on_product=show)
    if checked.span is not None and not result.complete:
        _stderr().print("what is done is kept: s2composite run makes the rest, retry what failed")
    if not result.complete:
        raise typer.Exit(SOME_FAILED)


def _show_product(job: Job, result: ProductResult) -> None:
    """Print the results, write the report, and list failures."""
    if result.left_out:
        typer.echo(f"{result.name}: {_left_out(job)}")
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
        _stderr().print(f"the report cannot be written: {_plain(str(error))}")
    if job.span is not None:
        for problem in result.problems():
            _stderr().print(f"[bold red]failed:[/] {_plain(problem)}")
    elif not result.paths and not LOG.handlers:  # otherwise the log has it
        console, kept = _stderr(), "what is done is kept"
        for failure in result.failed[:10]:
            console.print(f"[bold red]failed:[/] window {failure.window}: {_plain(failure.error)}")
        if result.error is not None:
            console.print(f"[bold red]failed:[/] {_plain(result.error)}")
        if result.failed:
            console.print(
                f"{plural(len(result.failed), 'window')} failed; {kept}: s2composite retry makes the failed ones again"
            )
        elif result.error is None:
            console.print(f"some windows are not made yet; {kept}: s2composite run makes the rest")
        else:
            console.print(f"{kept}: s2composite run goes on with it")


def _left_out(job: Job) -> str:
    """Return why a cell was left out."""
    least = job.policy.min_scenes
    return "no scene touches it" if least == 1 else f"fewer than {least} scenes touch it (policy.min_scenes)"


# --- other commands ---------------------------------------------------------------------------------------------------


def _printed(table: Table) -> Console:
    """Print a table; return the console for what follows."""
    # If the output is not a terminal, lines are not wrapped, so that grep finds whole names.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    console.print(table)
    return console


def check(
    cluster: Annotated[
        str, typer.Argument(metavar="CLUSTER.YAML", help="A cluster's file, 'local', or a scheduler's address.")
    ],
    *,
    source: Annotated[str | None, typer.Option(help="Scenes; every worker reads a header of one.")] = None,
    target: Annotated[str | None, typer.Option(help="Where every worker writes and deletes a small object.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for the answers of all workers.")] = 60,
) -> None:
    """Start or join a cluster and check what every worker has and can reach; exit code 2 if there are problems."""
    from s2composite.clusters.check import check_cluster
    from s2composite.clusters.connect import connect

    with connect(cluster) as client:
        result = check_cluster(client, source=source, target=target, timeout=timeout)
    columns = ("worker", "threads", "memory", "python", "s2composite", "dask", "numpy", "numba", "rasterio", "gdal")
    asked = [name for name, value in (("source", source), ("target", target)) if value is not None]
    table = Table(*columns, *asked, "environment", box=None, header_style="bold", pad_edge=False)
    for worker in result.workers:
        memory = "no limit" if worker.memory is None else f"{worker.memory / 1e9:.1f} GB"
        versions = (worker.versions.get(name) or "-" for name in columns[3:-1])
        answers = [Text("?", "bold red")] * (len(asked) + 2)  # not checked
        if (findings := worker.findings) is not None:
            good = [*(getattr(findings, name) is None for name in asked), not findings.environment]
            answers = [Text(findings.gdal), *(Text("ok") if fine else Text("problem", "bold red") for fine in good)]
        table.add_row(*map(Text, (worker.address, str(worker.threads), memory, *versions)), *answers)
    console = _printed(table)
    for problem in result.problems:
        console.print(f"[bold red]problem:[/] {_plain(problem)}", soft_wrap=True)
    console.print(f"{plural(len(result.workers), 'worker')}, {plural(len(result.problems), 'problem')}")
    if not result.ok:
        raise typer.Exit(BAD_INPUT)


# Columns of the table of scenes; the second are properties that all scenes of a stack should share.
SHOWN = ("time", "granule", "id", "asset", "size", "bands", "blocks", "compression", "dtype", "valid by")
COMPARED = ("granule", "bands", "size", "blocks", "compression", "dtype", "valid by", "crs", "grid")


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
    from s2composite.scenes.find import find_scenes

    found = find_scenes(source if len(source) > 1 else source[0], pattern=pattern, datetime=datetime)
    files = [(scene, asset) for scene in found for asset in scene.assets]
    with ThreadPoolExecutor(32) as pool:
        rows = _flagged(list(pool.map(lambda file: _described(*file), files)))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    several = len({row["asset"] for row in rows}) > 1
    columns = [column for column in SHOWN if several or column != "asset"]
    table = Table(*columns, "differs in", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        cells = []
        for column in columns:
            value = "" if row.get(column) is None else row[column]
            text = " x ".join(map(str, value)) if isinstance(value, list) else str(value)
            cells.append(Text(text, "bold red" if column in row["odd"] else ""))
        table.add_row(*cells, Text(row.get("error") or ", ".join(row["odd"]), "bold red"))
    odd = sum(bool(row["odd"]) for row in rows)
    console = _printed(table)
    counts = f"{plural(len(found), 'scene')}, {plural(len(rows), 'file')}"
    console.print(f"{counts}, {odd or 'none'} unlike the majority")


def _described(scene: Scene, asset: Asset) -> dict[str, Any]:
    """Return the metadata from the name and header of one file, or why it cannot be read."""
    from s2composite.reading.headers import header_of
    from s2composite.storage.files import display

    named = {
        "time": scene.time.isoformat().replace("+00:00", "Z"),
        "granule": scene.granule,
        "id": scene.id,
        "orbit": scene.orbit,
        "baseline": scene.baseline,
        "asset": asset.name,
        "href": display(asset.href),  # a signed URL without its signature
    }
    try:
        header = header_of(asset.href)
    except S2CompositeError as error:
        return {**named, "error": str(error)}
    grid = header.geobox
    return {
        **named,
        "bands": header.bands,
        "size": list(grid.shape),
        "blocks": list(header.block),
        "compression": header.coding.compression,
        "dtype": str(header.dtype),
        "valid by": header.valid_by or "—",
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


def zonal(
    raster: Annotated[str, typer.Argument(metavar="RASTER", help="A composite, or any raster that GDAL reads.")],
    zones: Annotated[str, typer.Argument(metavar="ZONES", help="Polygons: GeoJSON, GeoPackage, GeoParquet ...")],
    table: Annotated[str, typer.Argument(metavar="TABLE.CSV", help="Where the table goes; .csv or .parquet.")],
    *,
    stats: Annotated[
        str, typer.Option(help="Also sum, median, any percentile as p10, fraction (of each class).")
    ] = "min,max,mean,stdev,skew,count",
    name: Annotated[str | None, typer.Option(help="Column that names the zones; default: they are numbered.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that exists.")] = False,
) -> None:
    """Compute statistics of a raster over polygons, weighting pixels by the share that a polygon covers."""
    from s2composite.analysis.zonal import write_zonal_stats, zonal_stats
    from s2composite.writing.publish import target_of

    target_of(table, overwrite=overwrite)  # before the work
    rows = zonal_stats(raster, zones, stats.split(","), name=name)
    typer.echo(f"{plural(len(rows), 'row')}: {write_zonal_stats(rows, table, overwrite=overwrite)}")


# Outputs of the demo, and what each file shows.
MADE = {
    "picture": "one cloudy scene, the composite beside it, and how often each pixel was seen",
    "composite": "the composite, a cloud-optimised GeoTIFF: open it in QGIS",
    "count": "usable observations of each pixel",
    "source": "which scene each pixel was taken from",
    "scenes": "the scenes",
}


def demo(
    *,
    directory: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 24,
    size: Annotated[int, typer.Option(min=1, max=10980, help="Rows and columns; 10980 is a whole granule.")] = 1024,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the generated land and weather.")] = 0,
    compress: Annotated[str, typer.Option(help="Compression of the scenes: jpeg or deflate.")] = "jpeg",
) -> None:
    """Generate a season of scenes and composite them: no network, no account, under a minute."""
    from s2composite.demo import run_demo

    start = perf_counter()
    made = run_demo(directory, scenes=scenes, size=size, seed=seed, compress=compress, workers=workers)
    typer.echo(
        f"{plural(scenes, 'scene')} of {size} x {size} pixels made and composited in {perf_counter() - start:.0f} s\n"
    )
    for what, meaning in MADE.items():
        typer.echo(f"  {_relative(made[what]):<32}  {meaning}")
    typer.echo(f"\nNext: s2composite scenes {_relative(made['scenes'])}")


def _relative(path: str) -> str:
    """Return a path relative to the current directory if it is below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def serve(
    config: Annotated[Path | None, typer.Argument(metavar="SERVICE.YAML", help="Settings of the service.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Overrides a setting. Repeatable.")
    ] = None,
    *,
    host: Annotated[str | None, typer.Option(help="Address; any but loopback needs S2COMPOSITE_TOKEN.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0: a free one.")] = None,
    read: Annotated[list[str] | None, typer.Option(help="A place that may be read. Repeatable.")] = None,
    write: Annotated[list[str] | None, typer.Option(help="A place that may be written. Repeatable.")] = None,
    storage: Annotated[str | None, typer.Option(help="Where results of jobs go.")] = None,
) -> None:
    """Serve windows and jobs over HTTP. Only locations in the settings may be read or written."""
    with _needs_extra("serve"):
        from s2composite.service.app import serve as run
    run(config, setting or (), host=host, port=port, read=read, write=write, storage=storage)


def dispatch(
    job: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The job file.")],
    setting: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Overrides a key. Repeatable.")
    ] = None,
    *,
    url: Annotated[str | None, typer.Option(help="URL of a service: http://host:8080/median.")] = None,
    topic: Annotated[str | None, typer.Option(help="Or a Pub/Sub topic: projects/PROJECT/topics/TOPIC.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Concurrent windows.")] = 16,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts for each window.")] = 8,
    silence: Annotated[float, typer.Option(min=1, help="With a topic: seconds without a new tile.")] = 900,
) -> None:
    """Have a service compute the windows of a job, and assemble the output. S2COMPOSITE_TOKEN is sent to the service.

    Exit code 0: complete; 1: some windows failed, the others are kept; 2: the job, its input or its output is wrong.
    """
    with _needs_extra("dispatch"):
        from s2composite.service.dispatch import RETRY
        from s2composite.service.dispatch import dispatch as run
    from s2composite.jobs.schema import load_job

    done = run(
        load_job(job, setting or ()),
        url=url,
        topic=topic,
        token=os.environ.get("S2COMPOSITE_TOKEN") or None,
        concurrency=concurrency,
        retry=replace(RETRY, attempts=attempts),
        silence=silence,
    )
    typer.echo(f"{done.windows} windows in {done.attempts} requests, {done.seconds:.1f} s")
    if done.path is not None:
        typer.echo(done.path)
        return
    for failure in done.failed[:10]:
        typer.echo(f"failed: window {failure.window}: {' '.join(failure.error.split())}", err=True)
    typer.echo(f"{len(done.failed)} windows failed; the others are kept: run it again", err=True)
    raise typer.Exit(SOME_FAILED)


@contextmanager
def _needs_extra(command: str) -> Iterator[None]:
    """Name the extra that a command needs if it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{command} needs {error.name}: pip install 's2composite[service]'") from error


# --- the program ------------------------------------------------------------------------------------------------------

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def main() -> None:
    """Run the command line; an error of the library is one line on stderr and exit code 2."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if Ctrl-C is ignored
        signal.signal(signal.SIGINT, _interrupted)
    try:
        app()
    except S2CompositeError as error:
        if LOG.handlers:
            LOG.log(logging.ERROR, "%s", error, extra={"facts": {"error": type(error).__name__}})
        else:
            _stderr().print(f"[bold red]error:[/] {_plain(str(error))}")
        sys.exit(SOME_FAILED if getattr(error, "resumable", False) else BAD_INPUT)


def _interrupted(signum: int, frame: FrameType | None) -> None:
    """Stop cleanly at the first Ctrl-C; at the second, do not wait for the workers."""
    # Local workers end with their parent, and outputs get their final names only when complete.
    signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    signal.default_int_handler(signum, frame)


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
    """Cloud-free composites of satellite time series."""


for command in (demo, run, plan, resume, retry, status, report, init, schema, zonal, scenes, check, serve, dispatch):
    app.command()(command)
