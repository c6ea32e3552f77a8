"""The commands of the service: ``s2composite serve`` and ``s2composite dispatch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Commands import what they need when they run: the libraries behind them take two seconds, --help must not.
# ruff: noqa: PLC0415

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(serve)


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
    from s2composite.errors import MissingDependencyError

    try:
        from s2composite.service.server import serve as run
    except ImportError as error:
        raise MissingDependencyError(f"serve needs {error.name}: pip install 's2composite[service]'") from error
    run(config, setting or (), host=host, port=port, read=read, write=write, storage=storage)
