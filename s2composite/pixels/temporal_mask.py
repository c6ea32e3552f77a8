"""Clouds and shadows found in a time series itself: observations that are unlike those of the weeks around them."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.pixels.function_mask import band_list, positive_resolution, shown
from s2composite.pixels.kernels.temporal import mark_unlike
from s2composite.pixels.masks import Rule
from s2composite.pixels.morphology import MAX_RADIUS

__all__ = ["WHITE", "TemporalMask", "alone", "unlike"]

WHITE = 0.3558
"""Reflectance that true colours show as 255, as in ESA's products."""

_BINS = 3
"""Parts of `days` that scenes are put into: what is compared with a scene is 3 of them before its own, and 3 after."""

_NEAR = 0.4
"""Share of `days` before and after a scene in which three others like it show that it is the ground's."""

_QUANTILES = (0.2, 0.4)
"""Of what is compared with: first among all observations, of which most may be clouds, then among those left."""

_FIRST = 1.4
"""How much brighter than the limit a cloud is in the first pass, whose reference is darker."""

_LEAST_DARK = 0.02
"""By how much the mean of the bands is darker in a shadow, at least, as a reflectance: dark forests vary by a fifth."""


@dataclass(frozen=True, slots=True)
class TemporalMask(Rule):
    """Drop clouds, haze and shadows found by comparing each scene with those of the weeks before and after it.

    For true colours, too, that come without any mask. Scenes are compared at about 80 m, read from overviews. An
    observation is a cloud if the smallest of its bands is brighter than in the weeks before and also than in the weeks
    after, and a shadow if their mean is darker than both; so a harvest, or snow that comes and stays, is like one of
    them. What three other scenes of these days show alike is ground, too, such as snow that lies for two weeks. What is
    found is grown.

    Parameters
    ----------
    brighter
        By how much the smallest band of a cloud is brighter, as a reflectance; of true colours 0.02 are 14 of 255.
    darker
        By which share a shadow is darker. It is also darker by a reflectance of 0.02 at least.
    days
        How many days before, and after, a scene is compared with; in steps of a third of it.
    grow
        Radius in pixels of `resolution` by which clouds and shadows are grown; spots of a few pixels are not.
    min_left
        A pixel that would be left with fewer observations, of all scenes, keeps them all. Those of a single period do
        not count: a month in which a pixel is never clear has no value there, as with other masks.
    resolution
        Size of the pixels that are compared, in units of the scenes' CRS; from overviews if files have that one.
        Default: the scenes' own, doubled as often as comes nearest to 80 m.
    bands
        Names (or numbers) of one to three bands, such as red, green and blue. Default: the cube's bands of these names,
        or all of a cube of up to three.
    white
        The number of a reflectance of 0.3558. Default: 255 of 8 bits, else what catalogue or files say of their scale.

    Raises
    ------
    ParameterError
        A parameter makes no sense.

    Notes
    -----
    A cloud is what makes blue brighter than before, by a reflectance of 0.03: that is the multi-temporal test of MAJA
    [1]_, in which the reference is the latest clear scene, as for data that arrive one by one. Here both sides are
    known, so 0.02 is enough: the reference of each is a low quantile, first of all observations, then of those that the
    first pass leaves. In the first and last weeks of a series there is one side only.
    Instead of blue it is the smallest band that is compared: over vegetation and water that is blue or red, over ice,
    where clouds are not brighter in blue, it is red or near infrared.

    References
    ----------
    .. [1] O. Hagolle, M. Huc, D. Villa Pascual, G. Dedieu (2010): A multi-temporal method for cloud detection, applied
       to FORMOSAT-2, VENuS, LANDSAT and SENTINEL-2 images. Remote Sensing of Environment 114, 1747-1755.

    Examples
    --------
    >>> import s2composite as s2c
    >>> from s2composite.demo import make_scenes
    >>> cube = s2c.open_cube(make_scenes("doctest_series", scenes=8, size=256))
    >>> comp = s2c.composite(cube, valid=["nodata", "saturated", s2c.TemporalMask()]).compute()
    >>> int(comp["count"].max()) <= 8
    True
    """

    brighter: float = 0.02
    """By how much a cloud's smallest band is brighter, as a reflectance."""

    darker: float = 0.15
    """By which share a shadow is darker."""

    days: float = 45
    """Days before and after that a scene is compared with."""

    grow: int = 4
    """Radius by which what is found is grown."""

    min_left: int = 2
    """Observations of all scenes that must be left of a pixel, or all of it are used."""

    resolution: float | None = None
    """Size of the pixels that are compared; None: about 80 m."""

    bands: tuple[str | int, ...] | None = None
    """One to three bands; None: red, green and blue of the cube."""

    white: float | None = None
    """The number of a reflectance of 0.3558; None: 255, or as the source says."""

    def __post_init__(self) -> None:
        for name, most, what in (("brighter", 1, "a reflectance"), ("darker", 1, "a share"), ("days", 1e5, "days")):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < most:
                raise ParameterError(f"{name} of TemporalMask is {value!r}; give {what} above 0 and below {most:g}")
        for name, most in (("grow", MAX_RADIUS), ("min_left", 32767)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= most:
                raise ParameterError(f"{name} of TemporalMask is {value!r}; give a whole number, 0 to {most}")
        object.__setattr__(self, "resolution", positive_resolution("TemporalMask", self.resolution))
        bands = band_list("bands of TemporalMask", self.bands, "give one to three, as red, green and blue", most=3)
        object.__setattr__(self, "bands", bands)
        white: Any = self.white
        number = isinstance(white, numbers.Real) and not isinstance(white, bool)
        if white is not None and not (number and 0 < float(white) < np.inf):
            raise ParameterError(f"white of TemporalMask is {white!r}; give the number of a reflectance of {WHITE}")

    __str__ = shown


def unlike(
    least: NDArray[Any],
    grey: NDArray[Any],
    seen: NDArray[np.bool_],
    days: Sequence[float],
    rule: TemporalMask,
    pixels: slice = slice(None),
) -> NDArray[np.bool_]:
    """Return which observations of some pixels are unlike those before and after them: ``(t, n)``, not grown.

    Parameters
    ----------
    least, grey
        ``(t, n)``, smallest band and mean, in 255ths of `WHITE`: uint8, or uint16 of 10 bits. Scenes in order of time.
    seen
        ``(t, n)``: where there is an observation.
    days
        Time of each scene in days.
    rule
        Its limits.
    pixels
        Which of the n, one after the other; default: all.
    """
    spans = _spans(days, rule)
    times = np.asarray(days, np.float64)
    near = np.searchsorted(times, times - _NEAR * rule.days), np.searchsorted(times, times + _NEAR * rule.days, "right")
    bright, dark = rule.brighter / WHITE * 255, (round(256 * (1 - rule.darker)), round(_LEAST_DARK / WHITE * 255))
    limits = np.array([[round(_FIRST * bright), *dark], [round(bright), *dark]])
    eight = least.dtype == np.uint8
    settings = (8, 250) if eight else (10, 1024)
    first, stop, _ = pixels.indices(least.shape[1])
    bad = np.empty((len(least), stop - first), np.uint8)
    mark_unlike(least, grey, seen.view(np.uint8), first, spans, near, settings, limits, np.array(_QUANTILES), bad)
    return bad.view(np.bool_)


def alone(days: Sequence[float], rule: TemporalMask) -> NDArray[np.bool_]:
    """Return which scenes of a series, ``(t,)``, have none before or after that they are compared with."""
    first, last, before, after = _spans(days, rule)
    lonely: NDArray[np.bool_] = (last <= first)[before] & (last <= first)[after]
    return lonely


def _spans(days: Sequence[float], rule: TemporalMask) -> tuple[NDArray[np.int64], ...]:
    """Return the first and last scene of each span of time, and which spans lie before and after each scene."""
    step = rule.days / _BINS
    bins = np.floor(np.asarray(days, np.float64) / step).astype(np.int64)
    starts = np.unique(np.concatenate([bins - _BINS, bins + 1]))
    first, last = np.searchsorted(bins, starts), np.searchsorted(bins, starts + _BINS)
    return first, last, np.searchsorted(starts, bins - _BINS), np.searchsorted(starts, bins + 1)
