"""Days: the products of a day as one scene. Each pixel comes from the first usable one, data and masks together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.masking import Mask, both, passed
from s2composite.metering import tell_read
from s2composite.pixels.masks import lets_through
from s2composite.pixels.reducers import Recipe, usable_observations
from s2composite.reading.grid import Window
from s2composite.reading.observe import FAILED, OUTSIDE, READ
from s2composite.reading.stack import Products, Stack

__all__ = ["DayObservations", "asks_for_coverage", "products_near", "read_days"]


@dataclass(frozen=True, slots=True, eq=False)
class DayObservations:
    """What a window of days holds."""

    pixels: NDArray[Any]
    """``(t, b, y, x)``."""

    passed: NDArray[np.bool_] | None
    """``(t, y, x)``: which observations pass the rules on mask bands and, where the rules on values do not tell, are
    covered by files; None: there are no such rules."""

    status: NDArray[np.uint8]
    """``(t,)``: as `Observations.status`; a day has failed if one of its products has."""


def products_near(stack: Stack, window: Window, pad: int = 0) -> NDArray[np.intp]:
    """Return the positions of the products that may have pixels in a window, ascending: at least one of them."""
    near = stack.products.stack.touching(window, pad=pad)
    return near if near.size else np.zeros(1, np.intp)


def asks_for_coverage(stack: Stack, recipe: Recipe) -> bool:
    """Return whether it matters where files cover pixels: rules that drop what fills the others drop those anyway."""
    return lets_through(stack.fill, recipe.rules, stack.dtype, len(stack.bands), recipe.nodata, recipe.bands)


def read_days(
    products: Products, recipe: Recipe, region: Window, masks: Sequence[Mask], scratch: NDArray[Any] | None = None
) -> DayObservations:
    """Read a region of days, each fused from its products.

    Each pixel comes from the first product whose observation passes all rules: those on values, and those on the mask
    bands of that product, cleaned at their own resolution. If none passes, it comes from the first product that has all
    bands, or else from the first that has any. So an observation and its masks always belong to one product, and a
    cloud in one product does not hide the clear view of another.

    Parameters
    ----------
    products
        Products of the days, which are numbered from 0 without gaps.
    recipe
        Only its rules matter.
    region
        ``(y, x)`` slices of the grid, with ``recipe.halo`` pixels around the window.
    masks
        Mask bands that the rules need, for these products.
    scratch
        Memory for the pixels; see `Stack.read`.
    """
    turn = _turns(products.scene)
    coverage = asks_for_coverage(products.stack, recipe)
    if not turn.any():
        seen = products.stack.read(region, scratch=scratch, coverage=coverage)
        tell_read(seen.tally)
        return DayObservations(seen.pixels, both(passed(masks, region), seen.covered), seen.status)
    first, *others = (np.flatnonzero(turn == k) for k in range(int(turn.max()) + 1))
    days = read_days(_part(products, first), recipe, region, _of(masks, first), scratch)
    fill = float("nan") if coverage else products.stack.fill
    best = {int(t): _rank(days, int(t), recipe, fill) for t in np.unique(products.scene[turn > 0])}
    for later in others:
        more = read_days(_part(products, later), recipe, region, _of(masks, later))
        for i, t in enumerate(products.scene[later].tolist()):
            _fuse(days, t, best[t], more, i, _rank(more, i, recipe, fill))
    return days


def _turns(scene: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the turn of each product among those of its scene.

    >>> _turns(np.array([0, 1, 1, 1, 4, 4]))
    array([0, 0, 1, 2, 0, 1])
    """
    return np.arange(len(scene)) - np.searchsorted(scene, scene)


def _part(products: Products, positions: NDArray[np.intp]) -> Products:
    """Return one product of each of some days."""
    return Products(products.stack.select(positions.tolist()), np.arange(len(positions)))


def _of(masks: Sequence[Mask], positions: NDArray[np.intp]) -> list[Mask]:
    return [mask.select(positions.tolist()) for mask in masks]


def _rank(seen: DayObservations, t: int, recipe: Recipe, fill: float) -> NDArray[np.uint8]:
    """Return how good the observations of one scene are, ``(y, x)``: 0 none, 1 some bands, 2 all of them, 3 usable.

    `fill` is what bands have that are missing; NaN where ``seen.passed`` says what is covered, and any value is one.
    """
    pixels = seen.pixels[t : t + 1]
    there = ~np.isnan(pixels[0]) if np.isnan(fill) else pixels[0] != fill
    rank: NDArray[np.uint8] = there.any(0).astype(np.uint8) + there.all(0).astype(np.uint8)
    usable = usable_observations(pixels, recipe, None if seen.passed is None else seen.passed[t : t + 1])[0]
    rank[usable & (rank > 0)] = 3
    return rank


def _fuse(
    days: DayObservations, t: int, best: NDArray[np.uint8], more: DayObservations, i: int, rank: NDArray[np.uint8]
) -> None:
    """Take the observations of a later product for day `t` where they rank higher."""
    better = rank > best
    np.copyto(days.pixels[t], more.pixels[i], where=better)
    np.copyto(best, rank, where=better)
    if days.passed is not None and more.passed is not None:
        np.copyto(days.passed[t], more.passed[i], where=better)
    states = {int(days.status[t]), int(more.status[i])}
    days.status[t] = FAILED if FAILED in states else READ if READ in states else OUTSIDE
