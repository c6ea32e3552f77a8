"""How values become the 8 bits of a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ParameterError

__all__ = [
    "NO_DATA_COLOUR", "Percentiles", "Stretch", "as_stretch", "check_not_common", "colour_bands", "limits",
    "limits_of_each", "painted", "plain_limits", "rgba", "stretched",
]  # fmt: skip

Stretch = tuple[float, float] | Sequence[tuple[float, float]] | str
"""How values become dark and bright.

``(0, 3000)``: the values shown black and white; ``[(0, 1200), (0, 1500), (0, 2500)]``: those of each band;
``"2-98%"``: the percentiles of all bands together, so that colours stay true; ``"2-98% per band"``: of each band.
Where there are several periods, percentiles are those of each, which so can be seen beside one with snow or haze;
``"2-98% common"``, for short ``"common"``: those of all periods, so that their brightness can be compared.
"""

_PERCENTILES = re.compile(r"(?:(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*%)?\s*(per band)?\s*(common)?")
_FORMS = (
    "give (low, high), one such pair for each band, or percentiles such as '2-98%', '2-98% per band' or, the same for "
    "all periods, '2-98% common'"
)

# What is seen in figures where there is no data: not white or black, which snow, clouds and shadows are
NO_DATA_COLOUR = "#cccccc"

# Names of bands that make a true-colour picture
_COLOURS = (("red", "green", "blue"), ("b04", "b03", "b02"), ("r", "g", "b"))


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A stretch between percentiles of the pixels."""

    low: float = 2.0  # percentile that is shown black
    high: float = 98.0  # percentile that is shown white
    per_band: bool = False  # for each band separately: more contrast, but no longer true colours
    common: bool = False  # of all periods together, not of each


def as_stretch(stretch: Stretch) -> Percentiles | NDArray[np.float64]:
    """Return what a stretch says: percentiles, or values ``(b, 2)``, one row for all bands.

    >>> as_stretch("1-99% per band")
    Percentiles(low=1.0, high=99.0, per_band=True, common=False)
    >>> as_stretch((0, 3000))
    array([[   0., 3000.]])
    """
    if isinstance(stretch, str):
        match = _PERCENTILES.fullmatch(stretch.strip())
        low, high = ("2", "98") if match is None or match[1] is None else (match[1], match[2])
        if match is None or not any(match.groups()) or not 0 <= float(low) < float(high) <= 100:
            raise ParameterError(f"stretch is {stretch!r}; {_FORMS}")
        return Percentiles(float(low), float(high), match[3] is not None, match[4] is not None)
    try:
        values = np.atleast_2d(np.asarray(stretch, np.float64))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"stretch is {stretch!r}; {_FORMS}") from error
    if values.ndim != 2 or values.shape[1] != 2 or not np.isfinite(values).all():
        raise ParameterError(f"stretch is {stretch!r}; {_FORMS}")
    if not (values[:, 0] < values[:, 1]).all():
        raise ParameterError(f"stretch is {stretch!r}; the value shown white must be above the one shown black")
    return values


def check_not_common(stretch: Stretch | None, what: str) -> None:
    """Raise a ParameterError if a stretch is for pictures made together; `what`, a plural, are made one by one."""
    found = None if stretch is None else as_stretch(stretch)
    if isinstance(found, Percentiles) and found.common:
        raise ParameterError(
            f"stretch is {stretch!r}; {what} are made one by one, so none knows the pixels of the others: give the "
            "values shown black and white, (low, high), or percentiles of each"
        )


def plain_limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the stretch for pixels that are not known yet: pictures as they are, reflectance up to 0.3."""
    if dtype == np.uint8:
        return (0.0, 255.0)
    return (0.0, 0.3) if dtype.kind == "f" else (0.0, 3000.0)


def limits(values: NDArray[Any], valid: NDArray[np.bool_], stretch: Stretch | None = None) -> NDArray[np.float64]:
    """Return the values to show black and white, ``(b, 2)``, one row for all bands.

    ``values (b, y, x)`` are valid at ``valid (y, x)``. Without a stretch, pictures in 8 bits are shown as they are,
    other values between their percentiles 2 and 98.
    """
    if stretch is None and values.dtype == np.uint8:
        return np.array([plain_limits(values.dtype)])
    found = Percentiles() if stretch is None else as_stretch(stretch)
    if isinstance(found, Percentiles):
        seen = values[:, valid]
        if not seen.size:
            return np.array([plain_limits(values.dtype)])
        bands = seen if found.per_band else seen.reshape(1, -1)
        return np.asarray(np.percentile(bands, (found.low, found.high), axis=1).T, np.float64)
    return _for_bands(found, len(values))


def limits_of_each(
    pictures: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]], stretch: Stretch | None = None
) -> list[NDArray[np.float64]]:
    """Return the values to show black and white in each of several pictures of the same bands, as `limits` does in one.

    Percentiles are those of each picture, those that are ``common`` of all that have data together.

    >>> summer, winter = np.arange(101.0), np.arange(101.0) * 10
    >>> pictures = [(season.reshape(1, 1, -1), np.ones((1, 101), bool)) for season in (summer, winter)]
    >>> [ends.tolist() for ends in limits_of_each(pictures, "0-100%")]
    [[[0.0, 100.0]], [[0.0, 1000.0]]]
    >>> [ends.tolist() for ends in limits_of_each(pictures, "0-100% common")]
    [[[0.0, 1000.0]], [[0.0, 1000.0]]]
    """
    found = None if stretch is None else as_stretch(stretch)
    if isinstance(found, Percentiles) and found.common:
        seen = [values[:, valid] for values, valid in pictures]
        values = np.concatenate(seen, axis=1)[:, None]
        return [limits(values, np.ones(values.shape[1:], bool), stretch)] * len(pictures)
    return [limits(values, valid, stretch) for values, valid in pictures]


def _for_bands(values: NDArray[np.float64], bands: int) -> NDArray[np.float64]:
    if len(values) not in (1, bands):
        pairs = f"{len(values)} pairs of values for {bands} band(s)"
        raise ParameterError(f"stretch has {pairs}; give one, or one for each")
    return values


def stretched(values: NDArray[Any], ends: NDArray[np.float64], darkest: int = 0) -> NDArray[np.uint8]:
    """Return pixels ``(b, y, x)`` between the values shown black and white ``(b, 2)`` as `darkest` to 255."""
    exact = np.result_type(values.dtype, np.float32)
    low, high = (end.astype(exact)[:, None, None] for end in _for_bands(ends, len(values)).T)
    span = np.where(high > low, high - low, exact.type(255))
    scaled = (values.astype(exact) - low) * (exact.type(255) / span)
    return np.asarray(np.clip(np.nan_to_num(np.rint(scaled)), darkest, 255), np.uint8)


def rgba(values: NDArray[Any], valid: NDArray[np.bool_], stretch: Stretch | None = None) -> NDArray[np.uint8]:
    """Return a picture as `painted` does, with the `limits` that a stretch gives."""
    return painted(values, valid, limits(values, valid, stretch))


def painted(values: NDArray[Any], valid: NDArray[np.bool_], ends: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return pixels ``(b, y, x)`` of one or three bands as a picture ``(y, x, 4)``, transparent where not valid.

    All pictures are transparent there, in files and on maps; figures have `NO_DATA_COLOUR` behind them.
    """
    picture = np.zeros((*valid.shape, 4), np.uint8)
    picture[..., :3] = np.moveaxis(stretched(values, ends), 0, 2)
    picture[~valid] = 0
    picture[..., 3] = np.where(valid, 255, 0)
    return picture


def colour_bands(names: Sequence[Any]) -> list[int]:
    """Return the positions of bands that make a picture: three by their names, else the first; of one if there are few.

    >>> colour_bands(["B02", "B03", "B04", "B08"])
    [2, 1, 0]
    """
    spoken = {str(name).lower(): i for i, name in enumerate(names)}
    for colours in _COLOURS:
        if all(name in spoken for name in colours):
            return [spoken[name] for name in colours]
    return [0, 1, 2] if len(names) >= 3 else [0]
