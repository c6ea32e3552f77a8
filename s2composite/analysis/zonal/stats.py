"""Which statistics of a zone are asked for, and what they are for some pixels of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.analysis.zonal.summary import (
    Moments,
    Table,
    merged_moments,
    merged_tables,
    moments_of,
    percentiles_of,
    shares_of,
    table_of,
)
from s2composite.errors import ParameterError

__all__ = ["Part", "Wanted", "finished", "merged", "part_of", "wanted_of"]

_PLAIN = ("count", "min", "max", "mean", "sum", "stdev", "skew")
_PERCENTILE = re.compile(r"p(\d+(?:\.\d+)?)")

_CLASSES = 1000
"""Values beyond which an array does not hold classes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be known of each zone."""

    stats: tuple[str, ...]
    """As they were asked for."""

    percentiles: dict[str, float] = field(default_factory=dict)
    """Percentiles by their names, 0 to 100."""

    edges: tuple[float, ...] = ()
    """Edges of the histogram's bins; none without a histogram."""


def wanted_of(stats: Sequence[str], bins: Sequence[float] | None) -> Wanted:
    """Return the statistics of these names.

    Raises
    ------
    ParameterError
        There is no such statistic, or bins and histogram are not both given, or bins do not rise.
    """
    if not isinstance(stats, Iterable):
        raise ParameterError(f"stats is {stats!r}; it is a list of names, such as ['mean', 'p90']")
    names = (stats,) if isinstance(stats, str) else tuple(stats)
    percentiles = {}
    for name in names:
        if not isinstance(name, str):
            raise ParameterError(f"stats has {name!r}; it is a list of names, such as ['mean', 'p90']")
        match = _PERCENTILE.fullmatch(name)
        if name == "median" or (match and float(match[1]) <= 100):
            percentiles[name] = 50.0 if match is None else float(match[1])
        elif name not in (*_PLAIN, "histogram", "fraction"):
            known = ", ".join((*_PLAIN, "median", "p10 (any percentile)", "histogram", "fraction"))
            raise ParameterError(f"there is no statistic {name!r}; there are {known}")
    if not names or len(set(names)) < len(names):
        raise ParameterError(f"stats={list(names)!r}; name each statistic once, and at least one")
    return Wanted(names, percentiles, _edges(bins, "histogram" in names))


def _edges(bins: Sequence[float] | None, asked: bool) -> tuple[float, ...]:
    if (bins is not None) != asked:
        raise ParameterError("a histogram needs bins=, the edges of its bins, and bins= is for stats=['histogram']")
    edges = () if bins is None else tuple(np.atleast_1d(np.asarray(bins, np.float64)).tolist())
    if asked and (len(edges) < 2 or not (np.diff(edges) > 0).all()):
        raise ParameterError(f"bins={bins!r}; give at least two edges, each above the one before")
    return edges


@dataclass(frozen=True, eq=False)
class Part:
    """What is known of the pixels of a zone, or of some of them."""

    moments: Moments
    """Count, extremes, moments."""

    table: Table | None
    """Values and weights, where percentiles or fractions need them."""

    histogram: NDArray[np.float64] | None
    """Pixels in each bin."""


def part_of(values: NDArray[Any], weights: NDArray[np.float64], wanted: Wanted) -> Part:
    """Return what is to be known of pixels ``(n,)`` with their weights."""
    tabled = "fraction" in wanted.stats or bool(wanted.percentiles)
    histogram = np.histogram(values, wanted.edges, weights=weights)[0] if wanted.edges else None
    return Part(moments_of(values, weights), table_of(values, weights) if tabled else None, histogram)


def merged(parts: Sequence[Part]) -> Part:
    """Return what is known of all parts of a zone."""
    tables = [part.table for part in parts if part.table is not None]
    histograms = [part.histogram for part in parts if part.histogram is not None]
    return Part(
        merged_moments([part.moments for part in parts]),
        merged_tables(tables) if tables else None,
        np.sum(histograms, axis=0) if histograms else None,
    )


def finished(part: Part, wanted: Wanted) -> dict[str, float]:
    """Return the statistics of a zone by their columns."""
    known = part.moments.statistics()
    if wanted.percentiles:
        assert part.table is not None
        found = percentiles_of(part.table, tuple(wanted.percentiles.values()))
        known |= dict(zip(wanted.percentiles, found, strict=True))
    row: dict[str, float] = {}
    for name in wanted.stats:
        if name == "histogram":
            assert part.histogram is not None
            row |= dict(zip(_bins(wanted.edges), part.histogram.tolist(), strict=True))
        elif name == "fraction":
            row |= _fractions(part)
        else:
            row[name] = known[name]
    return row


def _bins(edges: Sequence[float]) -> list[str]:
    return [f"histogram_{low:g}_{high:g}" for low, high in pairwise(edges)]


def _fractions(part: Part) -> dict[str, float]:
    assert part.table is not None
    shares = shares_of(part.table)
    if len(shares) > _CLASSES:
        raise ParameterError(f"fraction: a zone has {len(shares)} different values; classes are up to {_CLASSES}")
    return {f"fraction_{value:g}": share for value, share in shares.items()}
