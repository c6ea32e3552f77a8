"""Commands: all of them, and what becomes of an error."""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

import s2composite
from s2composite.cli.check import check
from s2composite.cli.demo import demo
from s2composite.cli.job_files import init, plan, report, schema, status
from s2composite.cli.run import resume, retry, run
from s2composite.cli.scenes import scenes
from s2composite.cli.service import dispatch, serve
from s2composite.cli.words import BAD_INPUT, SOME_FAILED, on_stderr, plain
from s2composite.cli.zonal import zonal
from s2composite.errors import S2CompositeError

__all__ = ["app", "main"]

LOG = logging.getLogger("s2composite")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def main() -> None:
    """Run the command line; an error of the library is one line on stderr and exit code 2."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not one whom nobody can interrupt
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
    """Stop in good order; who presses Ctrl-C again does not want to wait until workers have stopped, too."""
    signal.signal(signal.SIGINT, _stop_at_once)
    signal.default_int_handler(signum, frame)


def _stop_at_once(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler of signals
    # Local workers end with their parent, and whatever is written takes its name when it is whole.
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
    """Cloud-free composites of satellite time series: many acquisitions in, one clean picture out."""


for command in (demo, run, plan, resume, retry, status, report, init, schema, zonal, scenes, check, serve, dispatch):
    app.command()(command)
