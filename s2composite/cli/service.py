"""Commands of the service: run it, and have it make the windows of a job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from s2composite.cli.words import SOME_FAILED

# Commands import what they need when they run: the libraries behind them take two seconds, --help must not.
# ruff: noqa: PLC0415

__all__ = ["dispatch", "serve"]


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
    """Serve windows and jobs over HTTP. Nothing may be read or written but what the settings open."""
    with _needs_extra("serve"):
        from s2composite.service.app import serve as run
    run(config, setting or (), host=host, port=port, read=read, write=write, storage=storage)


def dispatch(
    job: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The job file.")],
    setting: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Overrides a key. Repeatable.")
    ] = None,
    *,
    url: Annotated[str | None, typer.Option(help="Of a service: http://host:8080/median.")] = None,
    topic: Annotated[str | None, typer.Option(help="Or of Pub/Sub: projects/PROJECT/topics/TOPIC.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Windows at a time.")] = 16,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts for each window.")] = 8,
    silence: Annotated[float, typer.Option(min=1, help="With a topic: seconds without a new tile.")] = 900,
) -> None:
    """Have a service make the windows of a job, and put them together. S2COMPOSITE_TOKEN is shown to the service.

    Exit code 0: complete; 1: some windows failed, the others are kept; 2: the job, its input or its output is wrong.
    """
    with _needs_extra("dispatch"):
        from s2composite.service.dispatch import RETRY
        from s2composite.service.dispatch import dispatch as run
    from s2composite.running.jobs.job import load_job

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
    """Name the extra that a command needs where it is not installed."""
    from s2composite.errors import MissingDependencyError

    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{command} needs {error.name}: pip install 's2composite[service]'") from error
