"""Reducers that pick one whole observation of each pixel, so that all its bands come from one date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.pixels.kernels.rank import Key, rank_by_key, rank_by_small_key
from s2composite.pixels.kernels.selection import FIRST, LAST, NO_RANK
from s2composite.pixels.recipe import Call, Output, Reducer, block_width

__all__ = ["SOURCE", "RankKey", "luminance_median", "rank", "ranks_at", "run_rank"]

SOURCE = Output(
    "source", "index of the scene", per_band=False, dtype="int16", nodata=-1, units="1", overviews="nearest"
)
"""The layer that says which scene was picked."""


@dataclass(frozen=True, slots=True)
class RankKey:
    """What observations are ordered by, and which of them is taken."""

    bands: tuple[str, ...] = ()
    """Bands to add up, or the two of a normalised difference; none: all of the cube."""

    weights: tuple[float, ...] = ()
    """Weight of each of them in the sum; none: 1."""

    difference: bool = False
    """True: the normalised difference of the two bands, not their sum."""

    quantile: float = 0.5
    """0 to 1."""


def luminance_median() -> Reducer:
    """Return the default reducer: the observation of median luminance.

    Valid observations are ordered by luminance, the plain sum of all bands (red + green + blue for true colour), equal
    luminances by scene order; of `n` of them the one at index ``n // 2`` is taken, whole.
    """
    outputs = (Output("", "observation of median luminance"), SOURCE)
    return Reducer("luminance_median", run_rank, outputs, setting=RankKey())


def rank(
    key: str | tuple[str, str] = "luminance", *, weights: Mapping[str, float] | None = None, quantile: float = 0.5
) -> Reducer:
    """Return a reducer that orders a pixel's observations by a key and takes the one at a quantile, whole.

    Parameters
    ----------
    key
        ``"luminance"``: the sum of the bands; the name of a band; or two names ``(a, b)``: the normalised difference
        ``(a - b) / (a + b)``, such as ``("B08", "B04")`` for NDVI. Where ``a + b`` is 0 it comes first.
    weights
        With ``key="luminance"``: band name to weight; the key is then the weighted sum, in float32 (float64 for
        float64 data).
    quantile
        0 to 1: of `n` observations in order the one at index ``floor(quantile * n)`` is taken, the last for 1.

    Raises
    ------
    ParameterError
        `quantile` is outside 0 to 1, or the key makes no sense.

    Notes
    -----
    Equal keys keep scene order. Sums of integers are exact; sums of floats are taken band after band in their own type.
    """
    bands = _key_bands(key, weights)
    ranks_at(quantile, 1, 1)
    setting = RankKey(bands, tuple(map(float, (weights or {}).values())), not isinstance(key, str), float(quantile))
    params: tuple[tuple[str, object], ...] = (("key", key), ("quantile", quantile))
    if weights is not None:
        params += (("weights", tuple(weights.items())),)
    label = key if isinstance(key, str) else f"({key[0]} - {key[1]}) / ({key[0]} + {key[1]})"
    outputs = (Output("", f"observation at quantile {quantile:g} of {label}"), SOURCE)
    return Reducer("rank", run_rank, outputs, params=params, needs_bands=bands, setting=setting)


def ranks_at(quantile: float, n_times: int, min_count: int) -> NDArray[np.int16]:
    """Return the rank to take for 0 to `n_times` valid observations; `NO_RANK`, none, for fewer than `min_count`."""
    if not 0 <= quantile <= 1:
        raise ParameterError(f"quantile {quantile} is outside 0 to 1")
    exact = Fraction(str(float(quantile)))  # as it is written: 0.29 of 100 is 29, which the float product is not
    ranks = [min(int(exact * n), n - 1) if n >= min_count else NO_RANK for n in range(n_times + 1)]
    return np.array(ranks, np.int16)


def run_rank(call: Call) -> None:
    """Run a reducer with a `RankKey`: the kernel that fits the key and the type."""
    key: RankKey = call.reducer.setting
    source, bands = call.source, call.bands(key.bands)
    dtype = source.values.dtype
    ranks = ranks_at(key.quantile, source.scenes.size, call.recipe.min_count)
    results = (call.results[0], call.count, call.results[1])
    most = int(255 * bands.size)
    if dtype.kind == "f" or key.difference or key.weights:
        real = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        sign = np.array([1 << (8 * real.itemsize - 1)], f"u{real.itemsize}")
        order = _kernel_key(call, key, real, 0, np.nan)
        rank_by_key(source, order, sign, ranks, block_width(source, 2 + real.itemsize), *results)
    elif dtype == np.uint8 and most < LAST - FIRST:
        order = _kernel_key(call, key, np.dtype(np.int16), FIRST, LAST)
        rank_by_small_key(source, order, most.bit_length(), ranks, block_width(source, 2), *results)
    else:
        order = _kernel_key(call, key, np.dtype(np.uint32), -int(np.iinfo(dtype).min) * bands.size, 0xFFFFFFFF)
        rank_by_key(source, order, np.zeros(1, np.uint32), ranks, block_width(source, 2 + 4), *results)


def _kernel_key(call: Call, key: RankKey, dtype: np.dtype[Any], first: int, none: float) -> Key:
    """Return `key` as kernels want it, in the type of its values."""
    bands = call.bands(key.bands)
    weights = np.zeros(call.source.bands, dtype)
    if not key.difference:
        weights[bands] = key.weights or 1
    pair = bands if key.difference else np.empty(0, np.int64)
    return Key(weights, dtype.type(first), dtype.type(none), pair)


def _key_bands(key: str | tuple[str, str], weights: Mapping[str, float] | None) -> tuple[str, ...]:
    """Return the bands that a key of `rank` names; raise if it makes no sense."""
    if weights is not None and key != "luminance":
        raise ParameterError(f"weights belong to key='luminance', not to key {key!r}")
    if weights is not None and not (weights and all(np.isfinite(w) for w in weights.values())):
        raise ParameterError(f"weights {dict(weights)}: give at least one band, and finite numbers")
    if isinstance(key, str):
        return tuple(weights or ()) if key == "luminance" else (key,)
    if len(key) != 2 or key[0] == key[1]:
        raise ParameterError(f"key {key!r}: a normalised difference needs two different bands, as in ('B08', 'B04')")
    return tuple(key)
