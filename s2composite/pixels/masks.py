"""Rules of validity: which observations may be used, as values that can be changed, combined or left out.

A rule on values looks at the bands of the data themselves; an observation (one scene at one pixel) is dropped if any
of its bands fails. Floating-point values that are not finite never pass, whatever the rules are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Limits", "Nodata", "Rule", "Saturated", "default_nodata", "limits_of", "valid_values"]


class Rule(Protocol):
    """What every rule has."""

    def limits(self, limits: Limits) -> Limits:
        """Return `limits`, narrowed by this rule."""
        ...


@dataclass(frozen=True)
class Limits:
    """What the rules on values amount to for one cube."""

    low: NDArray[Any]
    """``(b,)``, dtype of the cube: smallest valid value of each band."""

    high: NDArray[Any]
    """``(b,)``: largest valid value of each band."""

    nodata: float
    """The cube's nodata value."""

    dropped: tuple[float, ...] = ()
    """Values that make an observation invalid in any band."""

    def drop(self, value: float) -> Limits:
        """Return limits that exclude `value` too."""
        return Limits(self.low, self.high, self.nodata, (*self.dropped, value))


@dataclass(frozen=True, slots=True)
class Nodata:
    """Drop an observation if any band has the nodata value."""

    value: float | None = None
    """The value; None: the nodata value of the cube, which is 0 for integers and NaN for floats unless it says so."""

    def limits(self, limits: Limits) -> Limits:
        """Return `limits` without the nodata value."""
        return limits.drop(limits.nodata if self.value is None else self.value)


@dataclass(frozen=True, slots=True)
class Saturated:
    """Drop an observation if any band is saturated."""

    value: float | None = None
    """The value of a saturated band; None: the largest of an integer dtype, nothing for floats."""

    def limits(self, limits: Limits) -> Limits:
        """Return `limits` without the saturated value."""
        if self.value is not None:
            return limits.drop(self.value)
        dtype = limits.low.dtype
        return limits.drop(float(np.iinfo(dtype).max)) if dtype.kind in "ui" else limits


def default_nodata(dtype: np.dtype[Any], nodata: float | None = None) -> float:
    """Return the nodata value of a cube: `nodata`, or if it is None 0 for integers and NaN for floats."""
    if nodata is not None:
        return float(nodata)
    return 0.0 if dtype.kind in "ui" else float("nan")


def limits_of(
    rules: Sequence[Rule], dtype: np.dtype[Any], bands: int, nodata: float | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Boil rules on values down to what a kernel compares with.

    Parameters
    ----------
    rules
        The rules, in any order: they are combined with AND.
    dtype
        Type of the cube.
    bands
        Number of its bands.
    nodata
        Its nodata value, None: 0 for integers, NaN for floats.

    Returns
    -------
    low, high
        ``(bands,)`` of `dtype`: the range of valid values, both ends included.
    dropped
        ``(k,)`` of `dtype`: values inside that range that are not valid either.
    """
    ends = np.iinfo(dtype) if dtype.kind in "ui" else np.finfo(dtype)
    limits = Limits(np.full(bands, ends.min, dtype), np.full(bands, ends.max, dtype), default_nodata(dtype, nodata))
    for rule in rules:
        limits = rule.limits(limits)
    return _narrowed(limits)


def _narrowed(limits: Limits) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Move dropped values at the ends of the range into the range: one comparison less for each value."""
    low, high, dtype = limits.low.copy(), limits.high.copy(), limits.low.dtype
    dropped = set(map(dtype.type, filter(lambda value: _holds(dtype, value), limits.dropped)))
    inside = sorted(dropped)
    if dtype.kind in "ui":
        for value in inside:
            low[low == value] += 1
        for value in reversed(inside):
            high[high == value] -= 1
        inside = [value for value in inside if ((low <= value) & (value <= high)).any()]
    return low, high, np.array(inside, dtype)


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether `dtype` can hold `value`; one that it cannot hold drops nothing."""
    if not np.isfinite(value):
        return False
    if dtype.kind == "f":
        return bool(abs(value) <= float(np.finfo(dtype).max))
    return float(value).is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def valid_values(
    pixels: NDArray[Any], rules: Sequence[Rule] = (Nodata(), Saturated()), nodata: float | None = None
) -> NDArray[np.bool_]:
    """Say which observations pass rules on values; the reducers do the same inside their kernels.

    Parameters
    ----------
    pixels
        ``(t, b, y, x)``.
    rules
        The rules.
    nodata
        The cube's nodata value, None: 0 for integers, NaN for floats.

    Returns
    -------
    valid
        ``(t, y, x)`` bool.

    Examples
    --------
    >>> pixels = np.array([[[[0, 7, 255]], [[9, 9, 9]]]], np.uint8)
    >>> valid_values(pixels)
    array([[[False,  True, False]]])
    """
    low, high, dropped = limits_of(rules, pixels.dtype, pixels.shape[1], nodata)
    column = np.s_[:, None, None]
    valid: NDArray[np.bool_] = np.all((pixels >= low[column]) & (pixels <= high[column]), axis=1)
    for value in dropped:
        valid &= (pixels != value).all(axis=1)
    return valid
