"""Best available pixel: the observation with the best score of season, distance to cloud and clearness of its scene."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.pixels.kernels.walking import best_scored
from s2composite.pixels.picking import SOURCE
from s2composite.pixels.recipe import Call, Output, Reducer

__all__ = ["best_available_pixel"]

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
    )


def run_best_available(call: Call) -> None:
    """Run the best available pixel."""
    _, _, distance, _, (_, far, _) = call.reducer.setting
    of_distance = np.empty(0, np.float32)
    if far:
        pixels = np.sqrt(np.arange(distance**2 + 1))
        of_distance = (far / (1 + np.exp(-10 / distance * (pixels - distance / 2)))).astype(np.float32)
    picked, chosen = call.results
    least = call.recipe.min_count
    best_scored(call.source, _scene_scores(call), call.near, of_distance, least, 1024, picked, call.count, chosen)


def _scene_scores(call: Call) -> NDArray[np.float32]:
    """Return the part of the score that does not depend on the pixel, for each scene that takes part."""
    best, spread, _, clear, (season, _, clearness) = call.reducer.setting
    scenes = call.source.scenes
    scores = np.zeros(scenes.size)
    if season:
        days = _day_of_year(call.days())
        apart = np.abs(days - best)
        apart = np.minimum(apart, DAYS_A_YEAR - apart)
        scores += season * np.exp(-0.5 * (apart / spread) ** 2)
    if clearness and clear is not None:
        if len(clear) <= call.scenes().max(initial=-1):
            raise ParameterError(f"clear has {len(clear)} values; give one for each scene of the cube")
        scores += clearness * np.asarray(clear)[call.scenes()]
    return scores.astype(np.float32)


def _day_of_year(days: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return days of the year, 1 to below 367, from days since 1970-01-01."""
    dates = np.floor(days).astype("datetime64[D]")
    return 1 + days - dates.astype("datetime64[Y]").astype("datetime64[D]").astype(np.float64)
