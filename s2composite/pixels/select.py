"""Reducers that pick one whole observation of each pixel, so that all its bands come from one date."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.pixels.kernels.rank import Key, best_scored, first_valid, rank_by_key, rank_by_small_key
from s2composite.pixels.kernels.selection import INVALID, NO_RANK
from s2composite.pixels.recipe import Output, Reducer, ReducerCall, Scores, block_width

__all__ = [
    "SOURCE", "RankKey", "best_available_pixel", "closest_to", "earliest", "latest", "luminance_median", "max_ndvi",
    "quality_mosaic", "rank", "ranks_at",
]  # fmt: skip

# The layer that says which scene was picked
SOURCE = Output(
    "source",
    "index of the scene",
    per_band=False,
    dtype="int16",
    nodata=-1,
    units="1",
    overviews="nearest",
    scenes=True,
)


@dataclass(frozen=True, slots=True)
class RankKey:
    """What observations are ordered by, and which one is taken."""

    bands: tuple[str, ...] = ()  # bands to add up, or the two of a normalised difference; empty: all bands of the cube
    weights: tuple[float, ...] = ()  # weight of each band in the sum; empty: 1
    difference: bool = False  # whether it is the normalised difference of the two bands and not their sum
    quantile: float = 0.5  # which observation in that order is taken, 0 (first) to 1 (last)


def luminance_median() -> Reducer:
    """Return the default reducer: the observation of median luminance.

    Valid observations are ordered by luminance, the plain sum of all bands (red + green + blue for true colour), equal
    luminances by scene order; of `n` of them the one at index ``n // 2`` is taken, whole.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> s2c.composite(cube, "luminance_median")["composite"].item()
    20
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
        ``"luminance"``, the sum of the bands; the name of a band; or two names ``(a, b)`` for the normalised difference
        ``(a - b) / (a + b)``, such as ``("B08", "B04")`` for NDVI. Observations with ``a + b`` = 0 come first.
    weights
        Weight of each band by name, for a weighted sum with ``key="luminance"``; computed in float32 (float64 for
        float64 data).
    quantile
        0 to 1: of `n` ordered observations the one at index ``floor(quantile * n)`` is taken, or the last for 1.

    Raises
    ------
    ParameterError
        `quantile` is outside 0 to 1, or `key` and `weights` are malformed.

    Notes
    -----
    Ties keep scene order. Sums of integers are exact; sums of floats are computed band by band in their own type.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> s2c.composite(cube, "rank", quantile=0)["composite"].item()
    10
    """
    if not isinstance(weights, Mapping | None):
        raise ParameterError(f"weights is {weights!r}; it is a mapping from bands to numbers")
    if weights is not None and key != "luminance":
        raise ParameterError(f"weights go with key='luminance', not with key={key!r}; leave them out")
    if weights is not None and not (weights and all(np.isfinite(w) for w in weights.values())):
        raise ParameterError(f"weights {dict(weights)}: give at least one band, and finite numbers")
    if not isinstance(key, str) and (len(key) != 2 or key[0] == key[1]):
        raise ParameterError(f"key {key!r}: a normalised difference needs two different bands, as in ('B08', 'B04')")
    bands = tuple(key)
    if isinstance(key, str):
        bands = tuple(weights or ()) if key == "luminance" else (key,)
    ranks_at(quantile, 1, 1)
    setting = RankKey(bands, tuple(map(float, (weights or {}).values())), not isinstance(key, str), float(quantile))
    params: tuple[tuple[str, object], ...] = (("key", key), ("quantile", quantile))
    if weights is not None:
        params += (("weights", tuple(weights.items())),)
    label = key if isinstance(key, str) else f"({key[0]} - {key[1]}) / ({key[0]} + {key[1]})"
    outputs = (Output("", f"observation at quantile {quantile:g} of {label}"), SOURCE)
    return Reducer("rank", run_rank, outputs, params=params, needs_bands=bands, setting=setting)


def quality_mosaic(
    key: str | tuple[str, str] = ("B08", "B04"), *, weights: Mapping[str, float] | None = None
) -> Reducer:
    """Return a reducer that takes the observation with the greatest key, by default NDVI.

    Of ties the last in scene order is taken, as by `rank` with ``quantile=1``.

    Parameters
    ----------
    key, weights
        As for `rank`.

    Raises
    ------
    ParameterError
        `key` or `weights` are malformed.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([[3000, 1000], [1000, 3000]], "uint16").reshape(2, 2, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"band": ["B04", "B08"]})
    >>> s2c.composite(cube, "quality_mosaic", key="B04")["composite"].values.ravel().tolist()
    [3000, 1000]
    """
    best = rank(key, weights=weights, quantile=1)
    return replace(best, name="quality_mosaic", params=tuple(p for p in best.params if p[0] != "quantile"))


def max_ndvi(nir: str = "B08", red: str = "B04") -> Reducer:
    """Return a reducer that takes the observation with the greatest NDVI, ``(nir - red) / (nir + red)``.

    Parameters
    ----------
    nir, red
        Names of the bands.

    Notes
    -----
    The maximum value composite of Holben (1986), https://doi.org/10.1080/01431168608948945, with NDVI as its value.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([[3000, 1000], [1000, 3000]], "uint16").reshape(2, 2, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"band": ["B04", "B08"]})
    >>> s2c.composite(cube, "max_ndvi")["composite"].values.ravel().tolist()
    [1000, 3000]
    """
    return replace(quality_mosaic((nir, red)), name="max_ndvi", params=(("nir", nir), ("red", red)))


def latest() -> Reducer:
    """Return a reducer that takes the latest valid observation; at equal times the last in scene order.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
    >>> times = np.array(["2023-06-01", "2023-07-01", "2023-08-01"], "datetime64[ns]")
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"time": times})
    >>> [s2c.composite(cube, name)["composite"].item() for name in ("latest", "earliest")]
    [20, 30]
    """
    return _by_time("latest", "latest observation", math.inf)


def earliest() -> Reducer:
    """Return a reducer that takes the earliest valid observation; at equal times the first in scene order."""
    return _by_time("earliest", "earliest observation", -math.inf)


def closest_to(date: str | datetime) -> Reducer:
    """Return a reducer that takes the valid observation nearest in time; of two equally near ones the earlier.

    Parameters
    ----------
    date
        ISO date or time, ``"2023-07-15"`` or ``"2023-07-15T10:30"``, in UTC unless it says otherwise.

    Raises
    ------
    ParameterError
        `date` is not a date.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
    >>> times = np.array(["2023-06-01", "2023-07-01", "2023-08-01"], "datetime64[ns]")
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"time": times})
    >>> s2c.composite(cube, "closest_to", date="2023-07-10")["composite"].item()
    10
    """
    try:
        moment = date if isinstance(date, datetime) else datetime.fromisoformat(date)
    except (TypeError, ValueError):
        raise ParameterError(f"closest_to: {date!r} is not a date; give one such as '2023-07-15'") from None
    days = day_number(moment)
    return _by_time("closest_to", f"observation nearest to {date}", days, params=(("date", str(date)),))


def day_number(moment: datetime) -> float:
    """Return a time in days since 1970; one without a zone is in UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() / 86400


def order_by_time(days: NDArray[np.float64], target: float) -> NDArray[np.intp]:
    """Return the order of times by their distance to `target`, the earlier of two equal ones first.

    Infinity: the latest first, and of those at one time the last; minus infinity: the earliest first.
    """
    if math.isinf(target):
        order = np.lexsort((np.arange(days.size), days))
        return order[::-1] if target > 0 else order
    return np.lexsort((np.arange(days.size), days, np.abs(days - target)))


def scores_by_time(reducer: Reducer, days: NDArray[np.float64] | None, scenes: NDArray[np.int64]) -> Scores:
    """Score scenes by a reducer whose setting is a time, in days since 1970: the nearest highest."""
    scores = np.empty(scenes.size, np.float32)
    if days is not None:
        scores[order_by_time(days, reducer.setting)] = -np.arange(scenes.size)
    return Scores(scores, np.empty(0, np.float32))


def run_by_time(call: ReducerCall) -> None:
    """Run a reducer that picks by time."""
    order = order_by_time(call.days(), call.reducer.setting)
    source = call.source._replace(scenes=call.source.scenes[order])
    first_valid(source, call.recipe.min_count, 1024, call.results[0], call.count, call.results[1])


def _by_time(name: str, what: str, setting: float, params: tuple[tuple[str, object], ...] = ()) -> Reducer:
    """Return a reducer that picks by time."""
    outputs = (Output("", what), SOURCE)
    return Reducer(name, run_by_time, outputs, params=params, setting=setting, needs_days=True, score=scores_by_time)


def ranks_at(quantile: float, n_times: int, min_count: int) -> NDArray[np.int16]:
    """Return the rank to take for 0 to `n_times` valid observations; `NO_RANK` for fewer than `min_count`."""
    if not 0 <= quantile <= 1:
        raise ParameterError(f"quantile {quantile} is outside 0 to 1")
    exact = Fraction(str(float(quantile)))  # as it is written: 0.29 of 100 is 29, which the float product is not
    above, below = exact.as_integer_ratio()
    ranks = [min(above * n // below, n - 1) if n >= min_count else NO_RANK for n in range(n_times + 1)]
    return np.array(ranks, np.int16)


def run_rank(call: ReducerCall) -> None:
    """Run a reducer with a `RankKey`: the kernel that fits the key and the type."""
    key: RankKey = call.reducer.setting
    source, bands = call.source, call.bands(key.bands)
    dtype = source.values.dtype
    ranks = ranks_at(key.quantile, source.scenes.size, call.recipe.min_count)
    results = (call.results[0], call.count, call.results[1])
    most = int(255 * bands.size)
    if dtype.kind == "f" or key.difference or key.weights:
        kind, first, none = np.dtype(np.float64 if dtype == np.float64 else np.float32), 0, np.nan
    elif dtype == np.uint8 and most < INVALID:
        kind, first, none = np.dtype(np.uint16), 0, INVALID
    else:
        kind, first, none = np.dtype(np.uint32), -int(np.iinfo(dtype).min) * bands.size, 0xFFFFFFFF
    weights = np.zeros(source.bands, kind)
    if not key.difference:
        weights[bands] = key.weights or 1
    order = Key(weights, kind.type(first), kind.type(none), bands if key.difference else np.empty(0, np.int64))
    if kind == np.uint16:
        rank_by_small_key(source, order, most.bit_length(), ranks, block_width(source, 2), *results)
    else:
        sign = np.array([1 << (8 * kind.itemsize - 1) if kind.kind == "f" else 0], f"u{kind.itemsize}")
        rank_by_key(source, order, sign, ranks, block_width(source, 2 + kind.itemsize), *results)


DAYS_A_YEAR = 365.25


def best_available_pixel(
    day_of_year: float = 196,
    *,
    spread: float = 38,
    distance: int = 50,
    clear: Sequence[float] | None = None,
    weights: tuple[float, float, float] = (1, 1, 1),
) -> Reducer:
    """Return a reducer that takes the observation with the best score, the best available pixel of FORCE.

    The score is the weighted sum of three scores from 0 to 1:

    - season, ``exp(-((d - day_of_year) / spread) ** 2 / 2)``, where the difference of days wraps around the year;
    - distance `D` in pixels to the nearest invalid observation of the same scene,
      ``1 / (1 + exp(-10 / distance * (min(D, distance) - distance / 2)))``;
    - `clear`, one value for each scene.

    Parameters
    ----------
    day_of_year
        The best day, 1 to 366.
    spread
        Standard deviation of the season's score, in days.
    distance
        Distance beyond which being farther from clouds no longer counts, 1 to 254 pixels of the data. As many pixels
        are read around each window.
    clear
        Share of each scene that is clear, 0 to 1. It must be given, since no window sees a whole scene.
    weights
        Weights of season, distance and `clear`, none negative; 0 leaves a score out.

    Raises
    ------
    ParameterError
        A parameter is out of range.

    Notes
    -----
    Of ties the first in scene order is taken. Scores are float32. After D. Frantz (2019), FORCE,
    https://doi.org/10.3390/rs11091124.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
    >>> times = np.array(["2023-06-01", "2023-07-01", "2023-08-01"], "datetime64[ns]")
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"time": times})
    >>> s2c.composite(cube, "best_available_pixel", day_of_year=213, weights=(1, 0, 0))["composite"].item()
    20
    """
    if not 1 <= day_of_year <= 366 or not 0 < spread < math.inf:
        raise ParameterError(
            f"day_of_year={day_of_year}, spread={spread}: give a day from 1 to 366, and a positive number of days"
        )
    if not 1 <= distance <= 254:
        raise ParameterError(f"distance={distance}: give 1 to 254 pixels")
    if len(weights) != 3 or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ParameterError(f"weights={weights}: give three, none negative, at least one positive")
    share = None if clear is None else tuple(float(value) for value in clear)
    if share is not None and not all(0 <= value <= 1 for value in share):
        raise ParameterError("clear: give a share from 0 to 1 for each scene")
    named = {"day_of_year": day_of_year, "spread": spread, "distance": distance, "weights": weights}
    named |= {} if share is None else {"clear": share}
    return Reducer(
        "best_available_pixel",
        run_best_available,
        (Output("", "best available pixel"), SOURCE),
        params=tuple(named.items()),
        setting=(float(day_of_year), float(spread), int(distance), share, tuple(map(float, weights))),
        needs_days=bool(weights[0]),
        reach=int(distance) if weights[1] else 0,
        score=best_available_scores,
    )


def run_best_available(call: ReducerCall) -> None:
    """Run the best available pixel."""
    scores = best_available_scores(call.reducer, call.days() if call.reducer.needs_days else None, call.scenes())
    picked, chosen = call.results
    least = call.recipe.min_count
    best_scored(call.source, scores.of_scene, call.near, scores.of_distance, least, 1024, picked, call.count, chosen)


def best_available_scores(reducer: Reducer, days: NDArray[np.float64] | None, scenes: NDArray[np.int64]) -> Scores:
    """Score scenes for the best available pixel: their season and how clear they are, and the distance to clouds."""
    best, spread, distance, clear, (season, far, clearness) = reducer.setting
    of_distance = np.empty(0, np.float32)
    if far:
        pixels = np.sqrt(np.arange(distance**2 + 1))
        of_distance = (far / (1 + np.exp(-10 / distance * (pixels - distance / 2)))).astype(np.float32)
    scores = np.zeros(scenes.size)
    if days is not None:
        years = np.floor(days).astype("datetime64[D]").astype("datetime64[Y]").astype("datetime64[D]")
        days = 1 + days - years.astype(np.float64)  # days of the year, 1 to below 367
        apart = np.abs(days - best)
        apart = np.minimum(apart, DAYS_A_YEAR - apart)
        scores += season * np.exp(-0.5 * (apart / spread) ** 2)
    if clearness and clear is not None:
        if len(clear) <= scenes.max(initial=-1):
            raise ParameterError(f"clear has {len(clear)} values; give one for each scene of the cube")
        scores += clearness * np.asarray(clear)[scenes]
    return Scores(scores.astype(np.float32), of_distance)
