"""Reducers that treat each band separately: median, percentiles, mean, standard deviation, extremes, trimmed mean.

An observation counts in all bands or in none: it is left out if any of its bands is invalid. Results of integer cubes
are rounded to the nearest integer (halves to even), except the standard deviation, which stays a float.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.pixels.kernels.selection import NO_RANK
from s2composite.pixels.kernels.statistics import (
    MAX,
    MEAN,
    MIN,
    STD,
    interpolate,
    moments,
    order_statistics,
    order_statistics_wide,
    sums_between,
)
from s2composite.pixels.recipe import Output, Reducer, ReducerCall, block_width

__all__ = ["maximum", "mean", "median", "minimum", "percentile", "put_rounded", "standard_deviation", "trimmed_mean"]


def median() -> Reducer:
    """Return a reducer that takes the median of each band; of an even number the mean of the two middle values.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> [round(s2c.composite(cube, name)["composite"].item(), 3) for name in ("median", "mean", "min", "max", "std")]
    [20, 20, 10, 30, 8.165]
    """
    return Reducer("median", run_percentiles, (Output("", "median"),), setting=((Fraction(1, 2),), "linear"))


def percentile(q: float | Sequence[float] = (10, 50, 90), *, method: str = "linear") -> Reducer:
    """Return a reducer that takes percentiles of each band.

    Parameters
    ----------
    q
        Percentiles, 0 to 100. One makes the layer ``composite``; several make the layers ``p10``, ``p50``, ``p90`` ...
    method
        ``"linear"`` interpolates between the two nearest values, the default of NumPy and xarray. ``"nearest"`` takes
        the observed value at rank ``round(q / 100 * (n - 1))``, halves to even, as Open Data Cube does (which also
        requires three observations: ``min_count=3``).

    Raises
    ------
    ParameterError
        A percentile is outside 0 to 100 or given twice, or the method is unknown.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> s2c.composite(cube, "percentile", q=25)["composite"].item()
    15
    """
    wanted = tuple(float(p) for p in np.atleast_1d(q))
    if not wanted or len(set(wanted)) < len(wanted) or not all(0 <= p <= 100 for p in wanted):
        raise ParameterError(f"percentiles q={q!r}: give one or more from 0 to 100, each once")
    if method not in {"linear", "nearest"}:
        raise ParameterError(f"percentile: unknown method {method!r}; there are linear and nearest")
    names = [f"p{p:g}" for p in wanted] if len(wanted) > 1 else [""]
    outputs = tuple(Output(name, f"percentile {p:g}") for name, p in zip(names, wanted, strict=True))
    setting = (tuple(Fraction(str(p)) / 100 for p in wanted), method)
    return Reducer("percentile", run_percentiles, outputs, params=(("q", wanted), ("method", method)), setting=setting)


def mean() -> Reducer:
    """Return a reducer that takes the mean of each band."""
    return Reducer("mean", run_moments, (Output("", "mean"),), setting=MEAN)


def standard_deviation() -> Reducer:
    """Return a reducer that takes the standard deviation of each band (divisor `n`), float32 or float64."""
    return Reducer("std", run_moments, (Output("", "standard deviation", dtype="float"),), setting=STD)


def minimum() -> Reducer:
    """Return a reducer that takes the smallest value of each band."""
    return Reducer("min", run_moments, (Output("", "minimum"),), setting=MIN)


def maximum() -> Reducer:
    """Return a reducer that takes the largest value of each band."""
    return Reducer("max", run_moments, (Output("", "maximum"),), setting=MAX)


def trimmed_mean(fraction: float = 0.1) -> Reducer:
    """Return a reducer that takes the mean of each band without its extremes.

    Parameters
    ----------
    fraction
        Share of the observations cut off at either end, rounded down; 0 to below 0.5.

    Raises
    ------
    ParameterError
        `fraction` is outside that range.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([30, 10, 20, 200], "uint8").reshape(4, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> s2c.composite(cube, "trimmed_mean", fraction=0.25)["composite"].item()
    25
    """
    if not 0 <= fraction < 0.5:
        raise ParameterError(f"trimmed_mean: fraction={fraction}; give 0 to below 0.5")
    outputs = (Output("", f"mean without {fraction:g} at either end"),)
    return Reducer(
        "trimmed_mean", run_trimmed, outputs, params=(("fraction", fraction),), setting=Fraction(str(float(fraction)))
    )


def put_rounded(values: NDArray[Any], known: NDArray[np.bool_], out: NDArray[Any]) -> None:
    """Write `values` ``(..., n)`` to `out` where ``known (n,)``, rounded if `out` holds integers (halves to even)."""
    if out.dtype.kind in "ui":
        limits = np.iinfo(out.dtype)
        values = np.clip(np.rint(np.where(known, values, 0)), limits.min, limits.max)
    np.copyto(out, values, where=known, casting="unsafe")


@lru_cache(maxsize=64)  # a window is reduced in several runs, and exact fractions take a millisecond
def _ranks_of_quantiles(
    quantiles: tuple[Fraction, ...], method: str, n_times: int, min_count: int
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Return ranks ``(q, t + 1)`` and the fraction of the step to the next, for each number of valid observations."""
    ranks = np.full((len(quantiles), n_times + 1), NO_RANK, np.int16)
    fractions = np.zeros(ranks.shape)
    for i, quantile in enumerate(quantiles):
        for n in range(max(min_count, 1), n_times + 1):
            exact = quantile * (n - 1)
            ranks[i, n] = int(exact) if method == "linear" else round(exact)
            fractions[i, n] = float(exact - int(exact))
    return ranks, fractions


def run_percentiles(call: ReducerCall) -> None:
    """Run a reducer whose setting is quantiles and a method."""
    quantiles, method = call.reducer.setting
    ranks, fractions = _ranks_of_quantiles(quantiles, method, call.source.scenes.size, call.recipe.min_count)
    low, high = _order_statistics(call, ranks)
    for i, out in enumerate(call.results):
        if method == "linear":
            whole = out.dtype.kind in "ui"
            interpolate(low[i], high[i], fractions[i], call.count, call.recipe.min_count, whole, out)
        else:
            np.copyto(out, low[i], where=call.count >= call.recipe.min_count)


def run_moments(call: ReducerCall) -> None:
    """Run a reducer whose setting is one of the kernel's moments."""
    source, (out,) = call.source, call.results
    values = np.full(out.shape, np.nan)
    width = block_width(source, 1)
    moments(source, call.reducer.setting, call.recipe.min_count, width, values, call.count)
    put_rounded(values, call.count >= call.recipe.min_count, out)


def run_trimmed(call: ReducerCall) -> None:
    """Run a reducer whose setting is the fraction to cut off at either end."""
    source, fraction, (out,) = call.source, call.reducer.setting, call.results
    least = call.recipe.min_count
    cuts = np.array([int(fraction * n) for n in range(source.scenes.size + 1)])
    ends = np.full((2, cuts.size), NO_RANK, np.int16)  # the first and the last observation that is not cut off
    numbers = np.arange(max(least, 1), cuts.size)
    ends[:, numbers] = cuts[numbers], numbers - 1 - cuts[numbers]
    (low, high), _ = _order_statistics(call, ends)
    total, below, above = np.empty(out.shape), np.empty(out.shape, np.uint16), np.empty(out.shape, np.uint16)
    sums_between(source, low, high, block_width(source, 1), total, below, above)
    cut = cuts[call.count]
    with np.errstate(invalid="ignore", divide="ignore"):  # pixels without observations
        edges = low.astype(np.float64) * (below - cut) + high.astype(np.float64) * (above - cut)
        means = np.where(low < high, (total + edges) / (call.count - 2 * cut), low)
    put_rounded(means, call.count >= least, out)


def _order_statistics(call: ReducerCall, ranks: NDArray[np.int16]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the values at `ranks`, and the ones after them, ``(q, b, n)`` each; 0 where there are none."""
    source = call.source
    dtype = source.values.dtype
    shape = (len(ranks), source.bands, source.pixels)
    low, high = np.zeros(shape, dtype), np.zeros(shape, dtype)
    if dtype.kind == "f":
        sign = np.array([1 << (8 * dtype.itemsize - 1)], f"u{dtype.itemsize}")
        order_statistics_wide(source, sign, ranks, block_width(source, 3 + dtype.itemsize), low, high, call.count)
    else:
        lowest = int(np.iinfo(dtype).min)
        order_statistics(source, lowest, ranks, block_width(source, 3), low, high, call.count)
    return low, high
