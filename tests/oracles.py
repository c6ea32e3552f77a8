"""Slow oracles in plain Python, written from the definitions and from nothing else."""

import math
from fractions import Fraction

import numpy as np


def is_valid(observation, dropped):
    """observation: the values of all bands. Dropped if any band has a dropped value or is not finite."""
    return not any(value in dropped or not math.isfinite(value) for value in map(float, observation))


def luminance(observation):
    """The plain sum of the bands: exact for integers, band after band in their own type for floats."""
    if observation.dtype.kind in "ui":
        return sum(map(int, observation))
    total = observation.dtype.type(0)
    for value in observation:
        total += value
    return float(total)


def difference(a, b, dtype):
    """Normalised difference in `dtype`; minus infinity where it is undefined."""
    a, b = dtype(a), dtype(b)
    with np.errstate(over="ignore", invalid="ignore"):
        both = a + b
        value = float((a - b) / both) if both != 0 else -math.inf
    return -math.inf if math.isnan(value) else value


def median_index(n, _quantile=None):
    return n // 2


def quantile_index(n, quantile):
    return min(math.floor(Fraction(str(quantile)) * n), n - 1)


def rank_pixel(observations, usable, key, index_of, min_count=1):
    """observations (t, b), usable (t,) -> index of the picked one or -1, number of usable ones."""
    ranked = [(key(observation), t) for t, observation in enumerate(observations) if usable[t]]
    ranked.sort()  # equal keys by scene order
    if len(ranked) < min_count:
        return -1, len(ranked)
    return ranked[index_of(len(ranked))][1], len(ranked)


def rank_composite(pixels, dropped, key, index_of=median_index, nodata=0, min_count=1, usable=None):
    """pixels (t, b, y, x) -> composite (b, y, x), count (y, x), source (y, x)."""
    times, bands, height, width = pixels.shape
    composite = np.full((bands, height, width), nodata, pixels.dtype)
    count = np.zeros((height, width), np.uint16)
    source = np.full((height, width), -1, np.int16)
    for y in range(height):
        for x in range(width):
            seen = pixels[:, :, y, x]
            ok = [is_valid(seen[t], dropped) and (usable is None or usable[t, y, x]) for t in range(times)]
            source[y, x], count[y, x] = rank_pixel(seen, ok, key, index_of, min_count)
            if source[y, x] >= 0:
                composite[:, y, x] = seen[source[y, x]]
    return composite, count, source
