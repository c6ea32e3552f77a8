"""Convert: numbers of a file to the numbers of the stack, in place: harmonised baselines, reflectances, nodata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AS_THEY_ARE", "Conversion", "convert"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is done to the numbers of a file: ``(number + shift) * scale + offset``."""

    shift: float = 0.0
    """Added to numbers that are not nodata, which then stay within their type and different from nodata."""

    scale: float = 1.0
    """Only where the stack has floating-point numbers."""

    offset: float = 0.0
    """Only where the stack has floating-point numbers."""

    saturated: float | None = None
    """The file's number of saturated pixels, the largest of its type, where the stack has floating-point numbers."""

    classes: bool = False
    """Whether the numbers are classes or flags: none of them may become another."""

    @property
    def changes(self) -> bool:
        """Whether any number becomes another."""
        return (self.shift, self.scale, self.offset) != (0.0, 1.0, 0.0)

    @property
    def saturated_value(self) -> float:
        """What a saturated number becomes: nothing is added to it, so that it is the same in all scenes."""
        assert self.saturated is not None
        return float(np.float32(self.saturated * self.scale + self.offset))


AS_THEY_ARE = Conversion()


def convert(
    numbers: NDArray[Any],
    how: Conversion,
    nodata: float | None,
    fill: float,
    valid: NDArray[np.bool_] | None = None,
) -> None:
    """Convert numbers in place: this is where the validity of a file's pixels becomes the stack's fill value.

    A valid number that the shift would bring to nodata or below becomes the least valid one: dark water stays observed.
    A saturated number, the largest of the file's type, is not shifted, so that rules still know it, and none becomes
    saturated.
    A valid number that the stack takes for no data, because the file says otherwise what is valid, becomes the one
    next to it, as GDAL's warper does it; a class does not.

    Parameters
    ----------
    numbers
        ``(b, y, x)``, in the type of the stack.
    how
        What to do.
    nodata
        What the file has where it has no data; None: nothing declared. Without `valid` numbers that are converted then
        have no data at 0, as in all products of Sentinel-2.
    fill
        What the stack has there.
    valid
        ``(y, x)`` or ``(b, y, x)``: where the file's mask or alpha band says that there are data; None: it has neither.

    Examples
    --------
    >>> numbers = np.array([0, 400, 1000, 1001, 9000], np.uint16)
    >>> convert(numbers, Conversion(shift=-1000.0), 0, 0)
    >>> numbers
    array([   0,    1,    1,    1, 8000], dtype=uint16)
    >>> numbers = np.array([7, 0, 9], np.uint8)
    >>> convert(numbers, AS_THEY_ARE, None, 0, np.array([False, True, True]))
    >>> numbers
    array([0, 1, 9], dtype=uint8)
    """
    if valid is None and not how.changes and (nodata is None or _same(nodata, fill)):
        return
    missing = 0.0 if nodata is None and valid is None else nodata
    there = np.ones(numbers.shape, bool) if valid is None else np.broadcast_to(valid, numbers.shape)
    if missing is not None:
        there = there & (~np.isnan(numbers) if np.isnan(missing) else numbers != missing)
    if numbers.dtype.kind == "f":
        saturated = None if how.saturated is None else numbers == how.saturated
        numbers += how.shift
        if (how.scale, how.offset) != (1.0, 0.0):
            numbers *= how.scale
            numbers += how.offset
        if saturated is not None:
            numbers[saturated] = how.saturated_value
    elif how.shift:
        _shift(numbers, int(how.shift), fill if missing is None else missing, there)
    if (nodata is not None or valid is not None) and not how.classes:
        numbers[there & (numbers == fill)] = _next_to(fill, numbers.dtype)
    numbers[~there] = fill


def _same(one: float, other: float) -> bool:
    return one == other or (np.isnan(one) and np.isnan(other))


def _next_to(fill: float, dtype: np.dtype[Any]) -> Any:
    """Return the number that stands for a valid `fill`: below it, above it where it is the lowest."""
    if dtype.kind == "f":
        return np.nextafter(dtype.type(fill), dtype.type(-np.inf))
    return dtype.type(fill + 1 if fill == np.iinfo(dtype).min else fill - 1)


def _shift(numbers: NDArray[Any], shift: int, nodata: float, there: NDArray[np.bool_]) -> None:
    limits = np.iinfo(numbers.dtype)
    lowest = limits.min + (nodata == limits.min)
    highest = limits.max - 1
    there = there & (numbers != limits.max)
    if shift < 0:
        np.maximum(numbers, numbers.dtype.type(min(lowest - shift, highest)), out=numbers, where=there)
        np.subtract(numbers, numbers.dtype.type(-shift), out=numbers, where=there)
    else:
        np.minimum(numbers, numbers.dtype.type(max(highest - shift, lowest)), out=numbers, where=there)
        np.add(numbers, numbers.dtype.type(shift), out=numbers, where=there)
