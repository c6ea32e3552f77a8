"""Sizing: what workers a job has, what memory a window takes, and how large windows may be so that they fit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.utils import parse_bytes
from distributed import default_client
from distributed.system import MEMORY_LIMIT

from s2composite.clusters.backends import MEMORY_SHARE, LocalOptions, local_shape
from s2composite.cube import auto_size, window_at
from s2composite.days import products_near
from s2composite.errors import ParameterError
from s2composite.reading.grid import Window
from s2composite.windows import Work

__all__ = ["Workers", "fitting_side", "require_fit", "task_memory", "workers_of"]

_OVERHEAD = 1.25
"""Memory of a task over the bytes of its window's observations: measured, see `tests/unit/test_compositing.py`."""

_PROCESS = 400 << 20
"""Bytes of a worker process that has done nothing yet but load the libraries and kernels."""

_INDEX = 12
"""Bytes for each pixel of a window on another grid: which pixel of the files it takes."""

_LOOKS = 4
"""Rows and columns of windows that are looked at to find a size for all."""


@dataclass(frozen=True, slots=True)
class Workers:
    """What a job runs on."""

    count: int
    """Worker processes."""

    threads: int
    """Threads of each."""

    limit: int
    """Bytes that each may use."""

    def need(self, task: int) -> int:
        """Return the bytes that a worker needs to make windows of so many bytes on all of its threads."""
        return _PROCESS + task * self.threads


def workers_of(cluster: Any) -> Workers:
    """Return the workers of the current client; where there is none those that a cluster's options ask for.

    What the options leave open is as this machine has it.
    """
    try:
        there = default_client().scheduler_info(n_workers=-1)["workers"].values()
    except ValueError:
        there = []
    if there:
        limits = [worker["memory_limit"] or int(MEMORY_LIMIT) for worker in there]
        return Workers(len(there), max(worker["nthreads"] for worker in there), min(limits))
    if isinstance(cluster, LocalOptions):
        count, threads = local_shape(cluster)
        return Workers(count, threads, _bytes(cluster.memory) or int(MEMORY_LIMIT * MEMORY_SHARE) // count)
    count = cluster.awaited or getattr(cluster, "workers", None) or getattr(cluster, "maximum", None) or 1
    threads = getattr(cluster, "threads", None) or 1
    return Workers(count, threads, _bytes(getattr(cluster, "memory", None)) or int(MEMORY_LIMIT))


def _bytes(memory: str | None) -> int:
    return int(parse_bytes(memory)) if memory else 0


def task_memory(work: Work, window: Window) -> int:
    """Return the bytes that making a window takes: the observations of its largest piece, masks, index and result."""
    stack, (y, x) = work.stack, window
    halo = work.recipe.halo
    height, width = y.stop - y.start + 2 * halo, x.stop - x.start + 2 * halo
    near = products_near(stack, (y, x), halo)
    scenes = len(near)
    overlapping = len(np.unique(stack.products.scene[near])) < scenes
    whole = bool(work.masks) or halo > 0 or overlapping
    largest = (stack.size if whole else stack.largest)((y, x)) * stack.dtype.itemsize * scenes // stack.shape[0]
    masks = len(work.masks) * scenes * height * width * 2
    layers = work.recipe.layers(stack.dtype, stack.shape[0])
    result = sum(layer.dtype.itemsize * (stack.shape[1] if "band" in layer.dims else 1) for layer in layers)
    index = 0 if stack.snaps else _INDEX * height * width
    results = 3 * result * max(len(work.recipe.periods or ()), 1) * height * width
    return int(_OVERHEAD * largest + masks + index + results)


def fitting_side(work: Work, workers: Workers, block: int) -> int:
    """Return how large square windows may be so that all threads of a worker can make one.

    Parameters
    ----------
    block
        Side of the output's tiles, the smallest window there is.
    """
    side = max(max(auto_size(work.stack, workers.limit // workers.threads)) // block * block, block)
    while side > block and workers.need(_sampled(work, side)) > workers.limit:
        side //= 2
        for unit in (max(work.stack.block), block):
            side = max(side // unit * unit, min(side, unit))
    return max(side, block)


def _sampled(work: Work, side: int) -> int:
    """Return the largest memory of some windows of a side, spread over the grid."""
    spans = []
    for n in work.stack.shape[2:]:
        starts = np.linspace(0, max(n - side, 0), min(_LOOKS, -(-n // side)), dtype=int)
        spans.append([slice(start, min(start + side, n)) for start in starts.tolist()])
    return max(task_memory(work, (y, x)) for y, x in itertools.product(*spans))


def require_fit(work: Work, task: int, workers: Workers, block: int) -> None:
    """Refuse windows that do not fit into the workers' memory.

    Parameters
    ----------
    task
        Bytes of the largest window.
    block
        As for `fitting_side`.

    Raises
    ------
    ParameterError
        They do not fit; says what would.
    """
    if workers.need(task) <= workers.limit:
        return
    window = window_at(work.spatial, 0, 0)
    rows, columns = (s.stop - s.start for s in window)
    side = fitting_side(work, workers, block)
    fits = workers.need(_sampled(work, side)) <= workers.limit
    available = max(workers.limit - _PROCESS, 0)
    cures = [f"set chunks to {side} or less"] if fits else []
    cures += [f"cluster.threads to {available // task} or less"] if 0 < available // task < workers.threads else []
    cures += [f"cluster.memory to {_gib(workers.need(task))} or more"]
    raise ParameterError(
        f"a window of {rows} x {columns} takes {_gib(task)}, {workers.threads} at once and the process "
        f"{_gib(workers.need(task))}, and a worker has {_gib(workers.limit)}: {', or '.join(cures)}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
