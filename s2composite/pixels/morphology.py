"""Morphology of masks with exact Euclidean discs, for stacks of scenes.

All functions take and return marked pixels (of masks, the *bad* ones) as ``(t, y, x)`` bool. Nothing is known of pixels
outside the image, so they change nothing: a dilation does not grow from there, and an erosion does not start there.
These are the borders of scikit-image, and so of odc-algo: a closing never loses a marked pixel, and an opening keeps
what fits a disc that the image cuts off. A disc of radius `r` holds the pixels whose centres are at most `r` away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.pixels.kernels.discs import grow, squared_distances

__all__ = [
    "Step", "apply_steps", "closing", "dilation", "distance_squared", "erosion", "halo_of", "opening", "steps_of",
]  # fmt: skip

Step = tuple[str, int]  # name of an operation, and the radius of its disc in pixels of the mask

MAX_RADIUS = 254


def dilation(marked: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Mark every pixel with a marked one at most `radius` pixels away.

    >>> dilation(np.array([[[0, 0, 1, 0, 0, 0]]], bool), 2).astype(int).tolist()
    [[[1, 1, 1, 1, 1, 0]]]
    """
    return _grown(marked, 1, radius)


def erosion(marked: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Keep marked pixels with only marked ones up to `radius` pixels away, as far as the image reaches."""
    return ~_grown(marked, 0, radius)


def opening(marked: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Erode, then dilate: removes marked spots that no disc fits into."""
    return dilation(erosion(marked, radius), radius)


def closing(marked: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilate, then erode: fills gaps that no disc fits into."""
    return erosion(dilation(marked, radius), radius)


_OPERATIONS = {"closing": (closing, 2), "dilation": (dilation, 1), "erosion": (erosion, 1), "opening": (opening, 2)}


def steps_of(cleanup: Iterable[Any] | None) -> tuple[Step, ...]:
    """Return the steps of a cleanup, checked: ``[("opening", 2), ("dilation", 5)]`` or ``[2, 5]``, or nothing."""
    given = list(cleanup or ())
    if given and all(isinstance(item, int | float) for item in given):
        if len(given) != 2:
            raise ParameterError(f"cleanup {given}: give two radii, of the opening and of the dilation")
        given = list(zip(("opening", "dilation"), given, strict=True))
    steps = []
    for item in given:
        try:
            name, radius = item
            whole = int(radius)
        except (TypeError, ValueError):
            example = "give an operation and a radius, as in ('dilation', 5)"
            raise ParameterError(f"cleanup step {item!r}: {example}") from None
        if name not in _OPERATIONS:
            raise ParameterError(f"unknown operation {name!r} in a cleanup; there are {', '.join(_OPERATIONS)}")
        if whole != radius or not 0 <= whole <= MAX_RADIUS:
            raise ParameterError(f"radius {radius} of {name} in a cleanup: give a whole number from 0 to {MAX_RADIUS}")
        steps.append((name, whole))
    return tuple(steps)


def halo_of(steps: Sequence[Step]) -> int:
    """Return how many pixels around a window matter to `steps`; opening and closing look twice their radius."""
    return sum(_OPERATIONS[name][1] * radius for name, radius in steps)


def apply_steps(marked: NDArray[np.bool_], steps: Sequence[Step]) -> NDArray[np.bool_]:
    """Apply operations to ``(t, y, x)`` masks, in the order given."""
    for name, radius in steps:
        marked = _OPERATIONS[name][0](marked, radius)
    return marked


def distance_squared(marked: NDArray[np.bool_], radius: int) -> NDArray[np.uint16]:
    """Return the squared distance of each pixel to the nearest marked one, at most ``radius ** 2``; radius 1 to 254."""
    out = np.empty(marked.shape, np.uint16)
    squared_distances(np.ascontiguousarray(marked).view(np.uint8), radius, out)
    return out


def _grown(marked: NDArray[np.bool_], wanted: int, radius: int) -> NDArray[np.bool_]:
    """Return the pixels within `radius` of one that is marked (`wanted` 1) or not (0)."""
    if radius == 0 or marked.all() or not marked.any():  # a window without clouds, or of nothing else
        return marked.copy() if wanted else ~marked
    reach = np.array([math.isqrt(radius * radius - dx * dx) for dx in range(radius + 1)])
    out = np.empty(marked.shape, np.uint8)
    grow(np.ascontiguousarray(marked).view(np.uint8), wanted, reach, out)
    return out.view(np.bool_)
