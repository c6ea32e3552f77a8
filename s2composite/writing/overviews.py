"""Overviews: pixels at half the resolution, in blocks of 2 x 2 from the raster's origin, so windows do not matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.pixels.kernels.tiles import halve_by_means

__all__ = ["half", "halve", "level_shapes", "valid_pixels"]


def half(n: int) -> int:
    """Return the size of an axis at half the resolution."""
    return (n + 1) // 2


def level_shapes(shape: tuple[int, int], smallest: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes ``(y, x)`` of the full resolution and its overviews, until both fit into `smallest` pixels.

    >>> level_shapes((1100, 700), 512)
    ((1100, 700), (550, 350), (275, 175))
    """
    shapes = [shape]
    while max(shapes[-1]) > smallest:
        shapes.append((half(shapes[-1][0]), half(shapes[-1][1])))
    return tuple(shapes)


def valid_pixels(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Return where `pixels` have a value, None if all do; NaN is never a value."""
    valid = None if pixels.dtype.kind != "f" else ~np.isnan(pixels)
    if nodata is not None and not math.isnan(nodata):
        same = pixels != pixels.dtype.type(nodata)
        valid = same if valid is None else valid & same
    return None if valid is None or valid.all() else valid


def halve(pixels: NDArray[Any], method: str, nodata: float | None) -> NDArray[Any]:
    """Return pixels at half the resolution; blocks at an odd edge hold fewer pixels.

    Parameters
    ----------
    pixels
        ``(b, y, x)``.
    method
        ``"average"``: mean of the pixels that have a value, halves rounded up; ``"nearest"``: the upper left pixel;
        ``"mode"``: the most frequent value, the first in reading order among equally frequent ones.
    nodata
        Value of pixels without data (besides NaN); blocks with no other pixels keep it.

    Returns
    -------
    NDArray
        ``(b, ceil(y / 2), ceil(x / 2))`` in the same dtype.

    Examples
    --------
    >>> halve(np.array([[[0, 2], [3, 4]]], "uint8"), "average", nodata=0)
    array([[[3]]], dtype=uint8)
    """
    if method == "nearest":
        return np.ascontiguousarray(pixels[:, ::2, ::2])
    even = _even(pixels)
    if method == "mode":
        return _mode(_corners(even), nodata)
    if pixels.dtype.kind != "f":
        return _mean_of_integers(even, nodata)
    return _mean_of_floats(even, valid_pixels(even, nodata), nodata)


def _even(pixels: NDArray[Any]) -> NDArray[Any]:
    """Repeat the last row and column of odd sizes: means and modes of blocks there stay those of their own pixels."""
    odd = [n % 2 for n in pixels.shape[1:]]
    return np.pad(pixels, ((0, 0), (0, odd[0]), (0, odd[1])), "edge") if any(odd) else pixels


def _corners(pixels: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    return pixels[:, ::2, ::2], pixels[:, ::2, 1::2], pixels[:, 1::2, ::2], pixels[:, 1::2, 1::2]


def _total(pixels: NDArray[Any], dtype: Any) -> NDArray[Any]:
    first, *rest = _corners(pixels)
    total: NDArray[Any] = first.astype(dtype)
    for corner in rest:
        total += corner
    return total


def _mean_of_integers(pixels: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    bands, height, width = pixels.shape
    out = np.empty((bands, height // 2, width // 2), pixels.dtype)
    known = nodata is not None and not math.isnan(nodata)
    value = int(nodata) if nodata is not None and known else 0
    halve_by_means(np.ascontiguousarray(pixels), known, value, _neighbour(value, pixels.dtype), out)
    return out


def _neighbour(nodata: int, dtype: np.dtype[Any]) -> int:
    """Return a neighbour of the nodata value, for means that would equal it by coincidence."""
    return nodata + 1 if nodata < np.iinfo(dtype).max else nodata - 1


def _mean_of_floats(pixels: NDArray[Any], valid: NDArray[np.bool_] | None, nodata: float | None) -> NDArray[Any]:
    if valid is None:
        return (_total(pixels, np.float64) / 4).astype(pixels.dtype)
    total = _total(np.where(valid, pixels, pixels.dtype.type(0)), np.float64)
    count = _total(valid.view(np.uint8), np.uint8)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total / count).astype(pixels.dtype)
    mean[count == 0] = np.nan if nodata is None else nodata
    return np.asarray(mean)


def _mode(corners: tuple[NDArray[Any], ...], nodata: float | None) -> NDArray[Any]:
    # A block without any value keeps the nodata value.
    best = np.full_like(corners[0], corners[0] if nodata is None else nodata)
    most = np.zeros(best.shape, np.uint8)
    for candidate in corners:
        valid = valid_pixels(candidate, nodata)
        count = np.add.reduce([candidate == other for other in corners], dtype=np.uint8)
        count = count if valid is None else count * valid
        wins = count > most
        best[wins], most[wins] = candidate[wins], count[wins]
    return best
