"""Progress: one bar, in terminals and notebooks, silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(label: str, total: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show a bar for `total` steps; yields what to call after each."""
    console = Console(stderr=True)
    # Without ipywidgets rich would warn at every bar.
    notebook = console.is_jupyter and find_spec("ipywidgets") is not None
    if not shown or not (console.is_terminal or notebook):
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)
