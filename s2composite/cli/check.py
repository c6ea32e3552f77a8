"""Check: what every worker of a cluster has and can reach."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2composite.cli.words import BAD_INPUT, plain, plural

# Commands import what they need when they run (PLC0415): the libraries behind them take two seconds, --help must not.
# ruff: noqa: PLC0415

__all__ = ["check"]


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
    from s2composite.clusters.check import check_cluster
    from s2composite.clusters.connect import connect

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
        console.print(f"[bold red]problem:[/] {plain(problem)}", soft_wrap=True)
    console.print(f"{plural(len(found.workers), 'worker')}, {plural(len(found.problems), 'problem')}")
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
