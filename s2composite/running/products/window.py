"""Window: what workers run for each window of a product: read, reduce, encode, keep.

With the same inputs, parameters and version a window has the same bytes, whoever makes it and however often.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from distributed import get_worker
from numpy.typing import NDArray

from s2composite.reading.observe import FAILED
from s2composite.windows import STATUS, Work, compose_window
from s2composite.writing.window import Stage

__all__ = ["Step", "WindowDone", "WindowMaker", "Writer", "make_window"]


class Writer(Protocol):
    """What keeps the windows of one kind of output; it travels to the workers."""

    def keep(self, layers: Mapping[str, NDArray[Any]], position: tuple[int, int]) -> None:
        """Encode and store a window, and note that it is done when all of it is there.

        Raises
        ------
        WriteError
            It cannot be stored; names the window.
        """


@dataclass(frozen=True, eq=False)
class WindowMaker:
    """All that workers need to make windows: it travels once to each."""

    work: Work
    """Scenes, recipe and masks; its windows are those of the product."""

    writer: Writer
    """Where they go."""


@dataclass(frozen=True, slots=True)
class WindowDone:
    """What a window tells when it is done: small, and all that reaches the client."""

    worker: str
    """Address of the worker."""

    read_and_reduce: float
    """Seconds."""

    encode: float
    """Seconds, with storing."""

    failed_scenes: tuple[str, ...]
    """Scenes that could not be read and were left out."""


@dataclass(frozen=True, eq=False)
class Step:
    """Something to be done on a worker when all windows are there."""

    name: str
    """In words, for messages and the dashboard; without blanks."""

    function: Callable[..., Any]
    """A module-level function that does not mind being called twice."""

    args: tuple[Any, ...]
    """Its arguments."""


def make_window(maker: WindowMaker, position: tuple[int, int]) -> WindowDone:
    """Make a window.

    Raises
    ------
    S2CompositeError
        One of its kinds; names the window.
    """
    start = time.perf_counter()
    work = maker.work
    window = Stage(0, 0, 0, work.spatial).window(*position)
    layers = compose_window(work.stack, work.recipe, window, work.masks)
    composed = time.perf_counter()
    maker.writer.keep(layers, position)
    failed = tuple(work.stack.scenes[t].id for t in np.flatnonzero(layers[STATUS].ravel() == FAILED))
    return WindowDone(_address(), composed - start, time.perf_counter() - composed, failed)


def _address() -> str:
    try:
        return str(get_worker().address)
    except ValueError:  # outside a cluster
        return f"process {os.getpid()}"
