"""Statistics of the valid pixels of a band, tile by tile, merged in the order of tiles: windows do not matter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2composite.pixels.kernels.tiles import count_values
from s2composite.writing.overviews import valid_pixels

__all__ = ["Statistics", "merge", "tile_statistics"]


class Statistics(NamedTuple):
    """Of valid pixels."""

    valid: int
    """Number of valid pixels."""

    pixels: int
    """Number of pixels."""

    minimum: float
    """NaN if none is valid."""

    maximum: float
    """NaN if none is valid."""

    mean: float
    """NaN if none is valid."""

    squares: float
    """Sum of squared differences from the mean."""

    @property
    def deviation(self) -> float:
        """Standard deviation of the population."""
        return math.sqrt(self.squares / self.valid) if self.valid else math.nan


def tile_statistics(tile: NDArray[Any], nodata: float | None) -> Statistics:
    """Return the statistics of one band of a tile ``(y, x)``."""
    if tile.dtype.kind in "iu" and tile.dtype.itemsize <= 2 and tile.size:
        return _from_histogram(tile, nodata)
    valid = valid_pixels(tile, nodata)
    values = (tile if valid is None else tile[valid]).astype(np.float64).ravel()
    if tile.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        return Statistics(0, tile.size, math.nan, math.nan, math.nan, 0.0)
    mean = float(values.mean())
    deviations = values - mean
    squares = float(np.sum(deviations * deviations))
    return Statistics(values.size, tile.size, float(values.min()), float(values.max()), mean, squares)


def _from_histogram(tile: NDArray[Any], nodata: float | None) -> Statistics:
    lowest = int(tile.min())
    counts = np.zeros((4, int(tile.max()) - lowest + 1), np.int64)
    count_values(np.ascontiguousarray(tile).ravel().view(f"u{tile.itemsize}"), lowest, counts)
    histogram = counts.sum(axis=0)
    if nodata is not None and 0 <= nodata - lowest < len(histogram):
        histogram[int(nodata) - lowest] = 0
    count = int(histogram.sum())
    if not count:
        return Statistics(0, tile.size, math.nan, math.nan, math.nan, 0.0)
    there = np.flatnonzero(histogram)
    values = np.arange(lowest, lowest + len(histogram), dtype=np.float64)
    mean = float(np.dot(histogram, values)) / count
    squares = float(np.sum(histogram * (values - mean) ** 2))
    return Statistics(count, tile.size, float(values[there[0]]), float(values[there[-1]]), mean, squares)


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Return the statistics of all parts together (Chan's update, in the order given)."""
    total = Statistics(0, 0, math.nan, math.nan, math.nan, 0.0)
    for part in parts:
        total = _pair(total, part)
    return total


def _pair(a: Statistics, b: Statistics) -> Statistics:
    pixels = a.pixels + b.pixels
    if not a.valid or not b.valid:
        one = a if a.valid else b
        return one._replace(pixels=pixels)
    count, delta = a.valid + b.valid, b.mean - a.mean
    mean = a.mean + delta * b.valid / count
    squares = a.squares + b.squares + delta * delta * a.valid * b.valid / count
    return Statistics(count, pixels, min(a.minimum, b.minimum), max(a.maximum, b.maximum), mean, squares)
