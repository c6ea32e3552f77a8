"""Rules: which observations may be used, as values that can be changed, combined or left out.

A rule on values looks at the bands of the data themselves; an observation (one scene at one pixel) is dropped if any
of its bands fails. Rules on mask bands (`s2composite.pixels.mask_bands`) look at a band that comes with the data.
Rules are combined with AND, so their order does not matter. Floating-point values that are not finite never pass.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import BandError, ParameterError

__all__ = [
    "DEFAULT_RULES", "Limits", "Nodata", "Rule", "Saturated", "SwathEdge", "ValueRange", "default_nodata",
    "lets_through", "limits_of", "reach_of", "rule_text",
]  # fmt: skip


@runtime_checkable
class Rule(Protocol):
    """What every rule can do."""

    def limits(self, limits: Limits) -> Limits:
        """Return `limits` on the values of the bands, narrowed by this rule; by most rules they are not."""
        return limits


@dataclass(frozen=True)
class Limits:
    """The rules on values, combined for one cube."""

    low: NDArray[Any]  # ``(b,)``, dtype of the cube: smallest valid value of each band
    high: NDArray[Any]  # ``(b,)``: largest valid value of each band
    nodata: float  # the cube's nodata value
    bands: tuple[str, ...] = ()  # names of the bands; may be empty
    dropped: tuple[float, ...] = ()  # values that make an observation invalid in any band
    saturated: tuple[float, ...] = ()  # values of saturated bands, where they are not the largest of an integer type

    def drop(self, *values: float) -> Limits:
        """Return limits that exclude `values` too."""
        return replace(self, dropped=(*self.dropped, *values))


def check_number(name: str, value: object) -> None:
    """Raise a ParameterError unless the value that a rule looks for is a number, or None."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | None):
        raise ParameterError(f"{name} is {value!r}; give a number")


@dataclass(frozen=True, slots=True)
class Nodata:
    """Drop an observation if any band has the nodata value.

    Parameters
    ----------
    value
        The nodata value; None: that of the cube, which is 0 for integers and NaN for floats unless it declares another.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([0, 7, 9], "uint8").reshape(3, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> s2c.composite(cube, "min", valid=s2c.Nodata())["composite"].item()
    7
    >>> s2c.composite(cube, "max", valid=s2c.Nodata(9))["composite"].item()
    7
    """

    value: float | None = None

    def __post_init__(self) -> None:
        check_number("the value of Nodata", self.value)

    def limits(self, limits: Limits) -> Limits:
        """Return `limits` without the nodata value."""
        return limits.drop(limits.nodata if self.value is None else self.value)


@dataclass(frozen=True, slots=True)
class Saturated:
    """Drop an observation if any band is saturated.

    Parameters
    ----------
    value
        The value of a saturated band; None: what the largest number of the files' integer type became, which in
        integers it still is. Floats are saturated where the cube says so (`open_cube` with ``reflectance=True``).

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([7, 9, 255], "uint8").reshape(3, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> s2c.composite(cube, "max", valid=s2c.Saturated())["composite"].item()
    9
    """

    value: float | None = None

    def __post_init__(self) -> None:
        check_number("the value of Saturated", self.value)

    def limits(self, limits: Limits) -> Limits:
        """Return `limits` without the saturated value."""
        if self.value is not None:
            return limits.drop(self.value)
        dtype = limits.low.dtype
        if dtype.kind in "ui":
            return limits.drop(float(np.iinfo(dtype).max))
        return limits.drop(*limits.saturated)


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Drop an observation if a band lies outside a range, both ends of which are valid.

    Parameters
    ----------
    low, high
        Smallest and largest valid value; None: no limit.
    bands
        Names of the bands to look at; None: all.

    Raises
    ------
    ParameterError
        `low` is above `high`.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([5, 7, 240], "uint8").reshape(3, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> s2c.composite(cube, "max", valid=s2c.ValueRange(high=200))["composite"].item()
    7
    """

    low: float | None = None
    high: float | None = None
    bands: tuple[str, ...] | None = None

    def limits(self, limits: Limits) -> Limits:
        """Return `limits` within this range."""
        missing = sorted(set(self.bands or ()) - set(limits.bands))
        if missing:
            raise BandError(f"ValueRange asks for the bands {missing}; the cube has {list(limits.bands)}")
        low, high = limits.low.copy(), limits.high.copy()
        named = [limits.bands.index(band) for band in self.bands or ()]
        for index in range(low.size) if self.bands is None else named:
            if self.low is not None:
                low[index] = max(low[index], _nearest(low.dtype, self.low, math.ceil))
            if self.high is not None:
                high[index] = min(high[index], _nearest(high.dtype, self.high, math.floor))
        return replace(limits, low=low, high=high)

    def __post_init__(self) -> None:
        check_number("the lower end of ValueRange", self.low)
        check_number("the upper end of ValueRange", self.high)
        if self.bands is not None:
            given: Any = self.bands
            given = (given,) if isinstance(given, str) else given
            if not isinstance(given, Iterable) or not all(isinstance(band, str) for band in given):
                raise ParameterError(f"the bands of ValueRange are {self.bands!r}; give their names")
            object.__setattr__(self, "bands", tuple(given))
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ParameterError(f"ValueRange from {self.low} to {self.high} is empty; swap the two")


@dataclass(frozen=True, slots=True)
class SwathEdge:
    """Drop observations near nodata, where a lossy source (JPEG, WebP) has colours outside the swath.

    Parameters
    ----------
    pixels
        Distance to the nearest pixel with nodata in any band up to which observations are dropped, 1 to 254 pixels of
        the data. The default is one block of JPEG.
    value
        The nodata value; None: that of the cube.

    Raises
    ------
    ParameterError
        `pixels` is not 1 to 254.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> cube = xr.DataArray(np.array([0, 9, 9], "uint8").reshape(1, 1, 1, 3), dims=("time", "band", "y", "x"))
    >>> s2c.composite(cube, "max", valid=s2c.SwathEdge(1))["count"].values.tolist()
    [[0, 0, 1]]
    """

    pixels: int = 8
    value: float | None = None

    def __post_init__(self) -> None:
        check_number("the value of SwathEdge", self.value)
        if not isinstance(self.pixels, int) or not 1 <= self.pixels <= 254:
            raise ParameterError(f"SwathEdge({self.pixels}): give 1 to 254 pixels")

    def limits(self, limits: Limits) -> Limits:
        """Return `limits` without the nodata value."""
        return Nodata(self.value).limits(limits)


DEFAULT_RULES: tuple[Rule, ...] = (Nodata(), Saturated())  # that apply where none are given


def default_nodata(dtype: np.dtype[Any], nodata: float | None = None) -> float:
    """Return the nodata value of a cube: `nodata`, or if it is None 0 for integers and NaN for floats."""
    if nodata is not None:
        return float(nodata)
    return 0.0 if dtype.kind in "ui" else float("nan")


def rule_text(rule: Rule, dtype: np.dtype[Any], nodata: float | None = None, saturated: tuple[float, ...] = ()) -> str:
    """Return a rule in words, with the values that it stands for in a cube; the others are those of `limits_of`.

    >>> rule_text(Nodata(), np.dtype("uint8")), rule_text(Saturated(), np.dtype("uint8"))
    ('nodata 0', 'saturated 255')
    """
    match rule:
        case Nodata(value):
            return f"nodata {_number_text(default_nodata(dtype, nodata) if value is None else value)}"
        case SwathEdge(pixels, value):
            return f"{pixels} pixels around {rule_text(Nodata(value), dtype, nodata)}"
        case Saturated(value):
            dropped = rule.limits(Limits(np.zeros(1, dtype), np.zeros(1, dtype), 0.0, saturated=saturated)).dropped
            return f"saturated {' or '.join(map(_number_text, dropped)) or '(no value is known)'}"
        case ValueRange(low, high, bands):
            ends = [f"{word} {_number_text(end)}" for word, end in (("from", low), ("to", high)) if end is not None]
            return " ".join(["values", *ends, *(["of", " and ".join(bands)] if bands else [])])
        case _:
            return str(rule)


def _number_text(value: float) -> str:
    return f"{value:.10g}".replace("nan", "NaN")


def limits_of(
    rules: Sequence[Rule],
    dtype: np.dtype[Any],
    bands: int,
    nodata: float | None = None,
    names: Sequence[str] = (),
    saturated: tuple[float, ...] = (),
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Reduce rules on the values of a cube's `dtype`: ``low, high (bands,)``, ``dropped (k,)``.

    Both ends of the range are valid, `dropped` are values inside that are not. ``nodata`` None: 0 for integers, NaN for
    floats; ``saturated``: values of saturated bands of floating-point cubes.
    """
    ends = np.iinfo(dtype) if dtype.kind in "ui" else np.finfo(dtype)
    low, high = np.full(bands, ends.min, dtype), np.full(bands, ends.max, dtype)
    limits = Limits(low, high, default_nodata(dtype, nodata), tuple(names), saturated=saturated)
    for rule in rules:
        limits = rule.limits(limits)
    low, high = limits.low.copy(), limits.high.copy()
    # The range is narrowed where dropped values lie at its ends, which saves a comparison for each; one that the type
    # cannot hold drops nothing.
    inside = sorted({dtype.type(value) for value in limits.dropped if _holds(dtype, value)})
    if dtype.kind in "ui":
        for value in inside:
            low[low == value] += 1
        for value in reversed(inside):
            high[high == value] -= 1
        inside = [value for value in inside if ((low <= value) & (value <= high)).any()]
    return low, high, np.array(inside, dtype)


def lets_through(
    value: float, rules: Sequence[Rule], dtype: np.dtype[Any], bands: int, nodata: float | None, names: Sequence[str]
) -> bool:
    """Return whether a value passes rules in any of the bands; the others are those of `limits_of`."""
    low, high, dropped = limits_of(rules, dtype, bands, nodata, names)
    return bool(((low <= value) & (value <= high)).any()) and value not in dropped


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if not np.isfinite(value):
        return False
    if dtype.kind == "f":
        return bool(abs(value) <= float(np.finfo(dtype).max))
    return float(value).is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _nearest(dtype: np.dtype[Any], value: float, whole: Callable[[float], int]) -> Any:
    """Return the number of `dtype` that a limit is, made `whole` for integers."""
    if dtype.kind == "f":
        return dtype.type(value)
    ends = np.iinfo(dtype)
    return dtype.type(min(max(whole(value), ends.min), ends.max))


def reach_of(rules: Sequence[Rule]) -> int:
    """Return how many pixels around an observation decide whether it passes the rules on values."""
    return max((rule.pixels for rule in rules if isinstance(rule, SwathEdge)), default=0)
