"""Words: how the command line says things."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

__all__ = ["BAD_INPUT", "SOME_FAILED", "on_stderr", "plain", "plural"]

SOME_FAILED = 1
"""Exit code for a job of which windows failed."""

BAD_INPUT = 2
"""Exit code for an error that the message explains; that of a wrong option, too."""


def on_stderr() -> Console:
    """Return the terminal of what is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    """Return a text on one line, with nothing in it that rich takes for markup."""
    return str(escape(" ".join(text.split())))


def plural(n: int, word: str) -> str:
    """Return a number of things.

    >>> plural(1, "window"), plural(2, "window")
    ('1 window', '2 windows')
    """
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
