"""What is known of the pixels of one zone: sums that parts of the zone can be put together from. NumPy only.

Each pixel counts with the share of it that the zone covers. Moments of parts are merged by the formulas of Pébay,
"Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical moments",
Sandia report SAND2008-6212 (2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Moments",
    "Table",
    "merged_moments",
    "merged_tables",
    "moments_of",
    "percentiles_of",
    "shares_of",
    "table_of",
]


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, extremes and central moments of values with weights."""

    count: float
    """Sum of the weights: pixels."""

    low: float
    """Smallest value; infinity if there is none."""

    high: float
    """Largest value; minus infinity if there is none."""

    mean: float
    """Weighted mean; 0 if there is no value."""

    m2: float
    """Weighted sum of squared differences to the mean."""

    m3: float
    """Weighted sum of cubed differences to the mean."""

    def statistics(self) -> dict[str, float]:
        """Return min, max, mean, sum, stdev, skew and count; NaN where there is no value.

        stdev is that of the population; skew, the third standardised moment, is NaN where all values are the same.
        """
        if self.count == 0:
            return dict.fromkeys(("min", "max", "mean", "stdev", "skew"), np.nan) | {"sum": 0.0, "count": 0.0}
        variance = self.m2 / self.count
        return {
            "min": self.low,
            "max": self.high,
            "mean": self.mean,
            "sum": self.mean * self.count,
            "stdev": float(np.sqrt(variance)),
            "skew": float("nan") if self.low == self.high else self.m3 / self.count / variance**1.5,
            "count": self.count,
        }


_NOTHING = Moments(0.0, np.inf, -np.inf, 0.0, 0.0, 0.0)


def moments_of(values: NDArray[Any], weights: NDArray[np.float64]) -> Moments:
    """Return the moments of values ``(n,)``, each with its weight."""
    count = float(weights.sum())
    if count == 0:
        return _NOTHING
    # Sums instead of products of vectors, for which BLAS starts threads of its own: 20 times slower beside Dask's.
    mean = float((weights * values).sum() / count)
    apart = np.subtract(values, mean, dtype=np.float64)
    square = weights * apart * apart
    return Moments(
        count, float(values.min()), float(values.max()), mean, float(square.sum()), float((square * apart).sum())
    )


def merged_moments(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all values of the parts."""
    return reduce(_with, parts, _NOTHING)


def _with(a: Moments, b: Moments) -> Moments:
    if a.count == 0 or b.count == 0:
        return b if a.count == 0 else a
    n, apart = a.count + b.count, b.mean - a.mean
    m2 = a.m2 + b.m2 + apart**2 * a.count * b.count / n
    m3 = a.m3 + b.m3 + apart**3 * a.count * b.count * (a.count - b.count) / n**2
    m3 += 3 * apart * (a.count * b.m2 - b.count * a.m2) / n
    return Moments(n, min(a.low, b.low), max(a.high, b.high), a.mean + apart * b.count / n, m2, m3)


@dataclass(frozen=True, eq=False)
class Table:
    """How much of a zone each value has: all that is to be known of its pixels but where they are."""

    values: NDArray[Any]
    """``(n,)``, rising, in the raster's dtype."""

    weights: NDArray[np.float64]
    """``(n,)``, sum of the weights of the pixels that have the value."""


def table_of(values: NDArray[Any], weights: NDArray[np.float64]) -> Table:
    """Return the table of values ``(n,)``, each with its weight."""
    found, inverse = np.unique(values, return_inverse=True)
    return Table(found, np.bincount(inverse, weights, len(found)).astype(np.float64))


def merged_tables(parts: Sequence[Table]) -> Table:
    """Return the table of all values of the parts."""
    return table_of(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "weights")))


def shares_of(table: Table) -> dict[Any, float]:
    """Return for each value the share of the weights that it has."""
    return dict(zip(table.values.tolist(), (table.weights / table.weights.sum()).tolist(), strict=True))


def percentiles_of(table: Table, percentiles: Sequence[float]) -> list[float]:
    """Return percentiles, 0 to 100, by exactextract's definition, also of integers as real numbers; NaN for no values.

    Of the different values x_0 < ... < x_{n-1} with weights w_i, x_i lies at s_i = i w_i + (n - 1) (w_0 + ... +
    w_{i-1}), and the quantile q is interpolated linearly at q (n - 1) (w_0 + ... + w_{n-1}).
    """
    values, weights = table.values, table.weights
    n = len(values)
    if not n:
        return [np.nan] * len(percentiles)
    sums = np.cumsum(weights)
    places = np.arange(n) * weights
    places[1:] += (n - 1) * sums[:-1]
    end = float(sums[-1]) * (n - 1)
    return [_interpolated(values, places, percentile / 100 * end) for percentile in percentiles]


def _interpolated(values: NDArray[Any], places: NDArray[np.float64], place: float) -> float:
    right = int(np.searchsorted(places, place, side="right"))
    if right == len(values):
        return float(values[-1])
    low, high = float(values[right - 1]), float(values[right])
    apart = places[right] - places[right - 1]
    return float(low + (place - places[right - 1]) * (high - low) / apart)
