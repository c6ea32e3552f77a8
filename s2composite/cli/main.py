# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` is quick
"""The command line: the exit code of each error, and the commands that are not about jobs."""

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
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import s2composite
from s2composite.cli.jobs import (
    BAD_INPUT,
    SOME_FAILED,
    init,
    on_stderr,
    plain,
    plan,
    report,
    resume,
    retry,
    run,
    schema,
    status,
)
from s2composite.errors import MissingDependencyError, S2CompositeError, plural
from s2composite.scenes.model import Asset, Scene

LOG = logging.getLogger("s2composite")

__all__ = ["app", "check", "demo", "dispatch", "main", "scenes", "serve", "zonal"]


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
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    console.print(table)
    for problem in result.problems:
        console.print(f"[bold red]problem:[/] {plain(problem)}", soft_wrap=True)
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
    # If the output is not a terminal, lines are not wrapped, so that grep finds whole names.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    console.print(table)
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
            on_stderr().print(f"[bold red]error:[/] {plain(str(error))}")
        sys.exit(SOME_FAILED if getattr(error, "resumable", False) else BAD_INPUT)


def _interrupted(signum: int, frame: FrameType | None) -> None:
    """Stop cleanly at the first Ctrl-C; at the second, do not wait for the workers."""
    signal.signal(signal.SIGINT, _stop_at_once)
    signal.default_int_handler(signum, frame)


def _stop_at_once(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler of signals
    # Local workers end with their parent, and outputs get their final names only when complete.
    os._exit(128 + signum)


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
