"""Options that several commands share, and the wording of counts and durations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

__all__ = [
    "BAD_INPUT",
    "SOME_FAILED",
    "Area",
    "Cells",
    "JobFile",
    "Log",
    "Settings",
    "Since",
    "Windows",
    "on_stderr",
    "plain",
]

SOME_FAILED = 1  # exit code for a job of which windows failed
BAD_INPUT = 2  # exit code for an error that the message explains; that of a wrong option, too


def on_stderr() -> Console:
    """Return the terminal of what is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    """Return a text on one line, with nothing in it that rich takes for markup."""
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
        help="For a job with a span: 'last' makes only the month (day, year ...) that has just ended; 2018-03 that "
        "month and all later ones.",
    ),
]
