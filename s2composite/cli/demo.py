"""Demo: a season of generated scenes, composited."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from s2composite.cli.words import plural

# Commands import what they need when they run (PLC0415): the libraries behind them take two seconds, --help must not.
# ruff: noqa: PLC0415

__all__ = ["demo"]

MADE = {
    "picture": "one cloudy scene, the composite beside it, and how often each pixel was seen",
    "composite": "the composite, a cloud-optimised GeoTIFF: open it in QGIS",
    "count": "usable observations of each pixel",
    "source": "which scene each pixel was taken from",
    "scenes": "the scenes",
}
"""What the demonstration writes, and what each file shows."""


def demo(
    *,
    directory: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 24,
    size: Annotated[int, typer.Option(min=1, max=10980, help="Rows and columns; 10980 is a whole granule.")] = 1024,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    seed: Annotated[int, typer.Option(help="Another seed gives other land and weather.")] = 0,
    compress: Annotated[str, typer.Option(help="Compression of the scenes: jpeg or deflate.")] = "jpeg",
) -> None:
    """Make a season of scenes and composite them: no network, no account, under a minute."""
    from s2composite.demo import run_demo

    start = perf_counter()
    made = run_demo(directory, scenes=scenes, size=size, seed=seed, compress=compress, workers=workers)
    typer.echo(
        f"{plural(scenes, 'scene')} of {size} x {size} pixels made and composited in {perf_counter() - start:.0f} s\n"
    )
    for what, meaning in MADE.items():
        typer.echo(f"  {_near(made[what]):<32}  {meaning}")
    typer.echo(f"\nNext: s2composite scenes {_near(made['scenes'])}")


def _near(path: str) -> str:
    """Return a path as one would type it from here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
