"""The page of the command line, made from the command line itself by Typer's own generator."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

PLACE = "<!-- commands -->"
GENERATOR = [sys.executable, "-m", "typer", "s2composite.cli", "utils", "docs", "--name", "s2composite"]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands where a page has their place."""
    return markdown.replace(PLACE, _commands()) if PLACE in markdown else markdown


def _commands() -> str:
    """Return what each command takes, without the generator's own title."""
    made = subprocess.run(GENERATOR, capture_output=True, text=True, check=True).stdout  # noqa: S603 - a fixed command
    return made.partition("\n")[2]
