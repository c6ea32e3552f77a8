"""Progress: a bar with rate and time left, in terminals and notebooks; none elsewhere, or beside a log."""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["pace", "progress_bar"]

_LINE_EVERY = 0.5
"""Seconds between two updates of the line in a notebook."""

_LOOK_BACK = 3600.0
"""Seconds over which the rate is averaged for the time left: a window of a big job may take minutes."""


@contextmanager
def progress_bar(label: str, total: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show a bar for `total` steps; yields what to call after each."""
    console = Console(stderr=True)
    if not shown or logging.getLogger("s2composite").isEnabledFor(logging.INFO):
        yield lambda: None
    elif console.is_jupyter:  # rich's bar there needs ipywidgets, and swallows what a loop over results prints
        with _line(label, total) as advance:
            yield advance
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Pace(), TimeRemainingColumn())
        with Progress(*columns, console=console, speed_estimate_period=_LOOK_BACK) as progress:
            task = progress.add_task(label, total=total)
            yield lambda: progress.advance(task)
    else:
        yield lambda: None


def pace(done: float, seconds: float) -> str:
    """Return a rate as people say it.

    >>> pace(50, 10), pace(3, 60), pace(2, 3600), pace(0, 5)
    ('5.0/s', '3.0/min', '2.0/h', '')
    """
    if not done or not seconds:
        return ""
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        rate = done / seconds * length
        if rate >= 1 or unit == "h":
            break
    return f"{rate:.1f}/{unit}"


class _Pace(ProgressColumn):
    """The rate since the beginning."""

    def render(self, task: Task) -> Text:
        """Return the rate of a task."""
        return Text(pace(task.completed, task.elapsed or 0.0), "progress.data.speed")


@contextmanager
def _line(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar and a line that a notebook writes over again, also where others print meanwhile."""
    from IPython.display import display  # noqa: PLC0415 - there is one where this runs

    begun = looked = time.monotonic()
    done = 0

    def drawn(*, over: bool = False) -> dict[str, str]:
        seconds = time.monotonic() - begun
        told = [f"{done}/{total}", pace(done, seconds)]
        if over:
            told.append(f"in {timedelta(seconds=round(seconds))}")
        elif done:
            told.append(f"{timedelta(seconds=round(seconds / done * (total - done)))} left")
        text = f"{label}: {', '.join(filter(None, told))}"
        bar = f'<progress value="{done}" max="{total}" style="width: 20em; vertical-align: middle"></progress>'
        return {"text/plain": text, "text/html": f"<div>{bar} {html.escape(text)}</div>"}

    handle = display(drawn(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def advance() -> None:
        nonlocal done, looked
        done += 1
        if time.monotonic() - looked >= _LINE_EVERY:
            looked = time.monotonic()
            handle.update(drawn(), raw=True)

    try:
        yield advance
    finally:
        handle.update(drawn(over=True), raw=True)
