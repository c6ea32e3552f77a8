"""Recipes: what to compute from the observations of a pixel, as one value that travels to the workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import BandError, ParameterError
from s2composite.pixels.kernels.tiles import Observations
from s2composite.pixels.masks import Nodata, Rule, Saturated, default_nodata, reach_of

__all__ = ["DTYPES", "MAX_SCENES", "Layer", "Output", "Recipe", "Reducer", "Scores", "block_width"]

DTYPES = ("uint8", "uint16", "int16", "float32", "float64")  # types of pixels that can be reduced

MAX_SCENES = 32767  # ``source`` is an int16

# About half of it, what is gone through again and again, stays in an L2 cache. Smaller blocks are read in pieces too
# short for the processor to fetch ahead: luminance medians of uint8 870, 1270, 1400 M obs/s with 1/4, 1/2, all of it.
BLOCK_BYTES = 5 << 18  # memory of the observations of a block and of what is calculated from them


@dataclass(frozen=True, slots=True)
class Layer:
    """One array of a composite: what `reduce_block` returns and what is written to one file."""

    name: str  # name of the variable: ``"composite"``, ``"count"``, ``"source"`` ...
    dims: tuple[str, ...]  # ``("band", "y", "x")`` or ``("y", "x")``; with periods ``"time"`` comes first
    dtype: np.dtype[Any]  # type of its values
    nodata: float | None  # value of pixels without a result; None: every pixel has one
    long_name: str  # what it is, in words
    units: str | None  # unit of its values; None: that of the cube
    overviews: Literal["average", "nearest", "mode"]  # resampling of its overviews

    # Whether its values are numbers like the cube's, so that the cube's scale and offset hold for them
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """One array that a reducer makes, before the cube is known."""

    name: str = ""
    """Its own name (``"smad"``), empty for the reducer's main result."""

    long_name: str = ""
    """What it is, in words."""

    per_band: bool = True
    """True: an array ``(band, y, x)``; False: ``(y, x)``."""

    dtype: str | None = None
    """Type of its values; None: that of the cube; ``"float"``: float32, but float64 for a float64 cube."""

    nodata: float | None = None
    """Value of pixels without a result; None: the cube's nodata, or NaN if `dtype` is set."""

    units: str | None = None
    """Unit of its values; None: that of the cube."""

    overviews: Literal["average", "nearest", "mode"] = "average"
    """Resampling of its overviews."""

    scenes: bool = False
    """Whether its values are indices of scenes, negative where there is none."""


class Scores(NamedTuple):
    """Scores of observations that do not depend on their values."""

    of_scene: NDArray[np.float32]  # ``(t,)``

    # ``(n,)``: what is added for each squared distance to the nearest invalid observation of the scene, none negative;
    # empty if it does not matter
    of_distance: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reducer:
    """How the observations of a pixel become its result; made by `resolve_reducer`."""

    name: str
    """Name in the registry, and of its layers where several reducers run together."""

    run: Callable[[ReducerCall], None]
    """Reduces one run of pixels: fills the arrays of the call. A module-level function, so that it travels."""

    outputs: tuple[Output, ...] = (Output(),)
    """What it makes, in order."""

    params: tuple[tuple[str, Any], ...] = ()
    """Its parameters as given, as pairs of name and value; shown in metadata."""

    setting: Any = None
    """What `run` needs to know, in any form that can be pickled."""

    needs_bands: tuple[str, ...] = ()
    """Bands that the cube must have."""

    needs_days: bool = False
    """True: it needs the times of the scenes."""

    reach: int = 0
    """Greater than 0: it needs the distance of each observation to the nearest invalid one, up to so many pixels."""

    score: Callable[[Reducer, NDArray[np.float64] | None, NDArray[np.int64]], Scores] | None = None
    """Scores scenes from their times and their positions among the recipe's, if it picks the observation of the highest
    score. None: what it picks depends on the values, or it picks none."""

    def __str__(self) -> str:
        """Return the reducer as code, for metadata."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.params)
        return f"{self.name}({given})" if given else self.name

    def named(self, name: str) -> Reducer:
        """Return the reducer under another name; two of a kind in one recipe need different ones."""
        return replace(self, name=name)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that determines the result of a block of observations, apart from the observations."""

    reducers: tuple[Reducer, ...]  # what to make of them, all in one pass
    rules: tuple[Rule, ...] = (Nodata(), Saturated())  # which of them may be used

    # Names of the cube's bands, in order; may be empty where no reducer asks for a band by name
    bands: tuple[str, ...] = ()

    # The cube's nodata value and the fill of results of its type; None: 0 for integers, NaN for floats
    nodata: float | None = None
    saturated: tuple[float, ...] = ()  # values of saturated bands in a cube of floating-point numbers
    min_count: int = 1  # pixels with fewer valid observations get no result (``count`` still says how many there were)

    # Of each pixel only so many valid observations are used, in the order of `preference`; None: all
    max_count: int | None = None
    preference: tuple[int, ...] = ()  # indices of all scenes, the best first; needed with `max_count`

    # Time of each scene in days since 1970-01-01T00:00 UTC; only reducers that know dates need it
    days: tuple[float, ...] | None = None

    # Indices of the scenes of each period, all made from one read; None: all scenes make one result
    periods: tuple[tuple[int, ...], ...] | None = None

    # Whether ``count`` is wanted. Without it, scenes that cannot change what is picked need not be read.
    counted: bool = True

    def layers(self, dtype: np.dtype[Any], n_times: int) -> tuple[Layer, ...]:
        """Return the layers that `reduce_block` makes from `n_times` scenes of type `dtype`, in order.

        Raises
        ------
        ParameterError
            The recipe cannot work: no reducer, the same one twice, unknown type, too many scenes, times missing.
        BandError
            A reducer needs a band that the cube does not have.
        """
        dtype = np.dtype(dtype)
        self._check(dtype, n_times)
        float_type = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        times = () if self.periods is None else ("time",)
        made = []
        for reducer in self.reducers:
            for output in reducer.outputs:
                name = output.name or "composite"
                if len(self.reducers) > 1:
                    name = f"{reducer.name}_{output.name}" if output.name else reducer.name
                like_cube = output.dtype is None
                nodata = self.fill(dtype) if like_cube else float("nan")
                layer = Layer(
                    name=name,
                    dims=(*times, "band", "y", "x") if output.per_band else (*times, "y", "x"),
                    dtype=dtype if like_cube else float_type if output.dtype == "float" else np.dtype(output.dtype),
                    nodata=nodata if output.nodata is None else output.nodata,
                    long_name=output.long_name or f"{reducer.name} composite",
                    units=output.units,
                    overviews=output.overviews,
                    scaled=output.units is None and like_cube,
                )
                made.append(layer)
        if self.counted:
            dims, counts = (*times, "y", "x"), np.dtype("uint16")
            made.append(Layer("count", dims, counts, None, "number of valid observations", "1", "average"))
        return tuple(made)

    @property
    def ends_early(self) -> bool:
        """Whether scenes may be left unread: a few observations are enough, or that of the highest score is."""
        scored = len(self.reducers) == 1 and self.reducers[0].score is not None
        return self.max_count is not None or (scored and not self.counted)

    @property
    def halo(self) -> int:
        """Pixels of the data around a window that decide about the window's own; 0 for most recipes."""
        return reach_of(self.rules) + max((reducer.reach for reducer in self.reducers), default=0)

    def fill(self, dtype: np.dtype[Any]) -> float:
        """Return the nodata value of results of the cube's type."""
        return default_nodata(dtype, self.nodata)

    def _check(self, dtype: np.dtype[Any], n_times: int) -> None:
        if dtype.name not in DTYPES:
            raise ParameterError(f"pixels of type {dtype} cannot be reduced; convert the cube to one of {list(DTYPES)}")
        if not 0 < n_times <= MAX_SCENES:
            raise ParameterError(
                f"{n_times} scenes cannot be reduced at once: at least 1, at most {MAX_SCENES}; select others by time"
            )
        names = [reducer.name for reducer in self.reducers]
        if not names or len(set(names)) < len(names):
            raise ParameterError(
                f"reducers {names}: give at least one, and different names to two of a kind, with named()"
            )
        if self.periods is not None and not self.periods:
            raise ParameterError("there are no periods to reduce; give at least one")
        limits: dict[str, Any] = {"min_count": self.min_count}
        limits |= {} if self.max_count is None else {"max_count": self.max_count}
        for name, value in limits.items():
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or not 0 < value <= MAX_SCENES:
                raise ParameterError(f"{name}={value!r}; give a whole number, 1 to {MAX_SCENES}")
        if self.max_count is not None and self.max_count < self.min_count:
            raise ParameterError(
                f"max_count={self.max_count} is less than min_count={self.min_count}: no pixel would have a value"
            )
        for reducer in self.reducers:
            missing = [band for band in reducer.needs_bands if band not in self.bands]
            if missing:
                raise BandError(f"reducer {reducer.name!r} needs the bands {missing}; the cube has {list(self.bands)}")
            if reducer.needs_days and (self.days is None or len(self.days) != n_times):
                known = "none" if self.days is None else str(len(self.days))
                raise ParameterError(
                    f"reducer {reducer.name!r} needs the time of each of the {n_times} scenes; {known} given"
                )


@dataclass(frozen=True, slots=True)
class ReducerCall:
    """One call of a reducer: a run of pixels, and where the results go."""

    reducer: Reducer
    recipe: Recipe  # the recipe it is part of
    source: Observations
    results: tuple[NDArray[Any], ...]  # an array for each output, ``(b, n)`` or ``(n,)``, filled with its nodata value
    count: NDArray[np.uint16]  # ``(n,)``: number of valid observations, to be filled in

    # Squared distance to the nearest invalid observation, if the reducer needs it; as `Observations.usable`
    near: NDArray[np.uint16]
    positions: NDArray[np.int64]  # ``(t,)``: which scene of the recipe's each one of `source` is

    def scenes(self) -> NDArray[np.int64]:
        """Return which of the recipe's scenes take part, in the order of the source."""
        scenes: NDArray[np.int64] = self.positions[self.source.scenes]
        return scenes

    def days(self) -> NDArray[np.float64]:
        """Return the time of each scene that takes part, in days since 1970."""
        days: NDArray[np.float64] = np.array(self.recipe.days, np.float64)[self.scenes()]
        return days

    def bands(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        """Return the indices of bands; of all of them for no names."""
        chosen = [self.recipe.bands.index(name) for name in names] if names else range(self.source.bands)
        return np.array(chosen, np.int64)


def block_width(obs: Observations, scratch: int) -> int:
    """Return the number of pixels of a block that stays in the L2 cache: an odd multiple of 64.

    `scratch` is the scratch memory in bytes for each observation.
    """
    observation = obs.bands * obs.values.itemsize + scratch
    fits = min(max(BLOCK_BYTES // max(obs.scenes.size * observation, 1), 64), 4096)
    blocks = -(-obs.pixels // fits) or 1  # of one width, because a short one takes as long as the others
    lanes = -(-obs.pixels // (64 * blocks))
    return int(64 * (lanes | 1))  # rows of 2^n bytes would share lines of the cache: 10 to 15 % slower
