"""Statistics of each band by itself: order statistics, sums and extremes of a pixel's valid observations."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.compile_cache import kernel, part
from s2composite.pixels.kernels.rank import order
from s2composite.pixels.kernels.selection import INVALID, NO_RANK, next_key, select, select_wide
from s2composite.pixels.kernels.tiles import Observations, count_valid, load

__all__ = [
    "MAX", "MEAN", "MIN", "STD", "interpolate", "moments", "order_statistics", "order_statistics_wide", "sums_between",
]  # fmt: skip

MEAN, STD, MIN, MAX = 0, 1, 2, 3


@part
def varying_bits(block: Any, b: int, valid: Any, lowest: int) -> Any:
    """Return how many of the last bits of the valid values of a band vary, and the least value with the same others."""
    n = valid.shape[1]
    ones, zeros = np.zeros(n, np.uint16), np.zeros(n, np.uint16)
    shift = np.int32(lowest)
    for t in range(valid.shape[0]):
        row, ok = block[t, b], valid[t]
        for i in range(n):
            value, used = np.uint16(np.int32(row[i]) - shift), np.uint16(0) - np.uint16(ok[i])
            ones[i] |= value & used
            zeros[i] |= ~value & used
    one, zero = np.uint16(0), np.uint16(0)
    for i in range(n):
        one |= ones[i]
        zero |= zeros[i]
    bits = 0
    while (one & zero) >> bits:
        bits += 1
    return max(bits, 1), (np.int64(one) >> bits << bits) + lowest


@kernel
def order_statistics(obs: Observations, lowest: int, ranks: Any, width: int, low: Any, high: Any, count: Any) -> None:
    """Find the values at given ranks, and the next ones, of each band: integers of at most sixteen bits.

    `lowest` is the lowest number of their type, ``ranks (q, t + 1)`` int16 the ranks wanted for each number of valid
    observations, ``NO_RANK`` for none, `width` the pixels of a block. ``low``, ``high (q, b, n)``, type of the values,
    out: the value at the rank, and the one after it (the same if it is the last); left as they are where no rank is
    wanted. ``count (n,)`` uint16, out: valid observations.
    """
    times = obs.scenes.size
    block, valid = np.empty((times, obs.bands, width), obs.values.dtype), np.empty((times, width), np.uint8)
    keys, counts = np.empty((times, width), np.uint16), np.empty(width, np.uint16)
    rank, found, following = np.empty(width, np.int16), np.empty(width, np.uint16), np.empty(width, np.uint16)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        load(obs, start, n, block, valid)
        count_valid(valid, n, counts, count[start : start + n])
        for b in range(obs.bands):
            bits, least = varying_bits(block, b, valid, lowest)
            shift = np.int32(least)
            for t in range(times):
                row, ok, key = block[t, b], valid[t], keys[t]
                for i in range(width):
                    key[i] = np.uint16(np.int32(row[i]) - shift) if ok[i] else np.uint16(INVALID)
            for q in range(ranks.shape[0]):
                for i in range(width):
                    rank[i] = ranks[q, counts[i]]
                select(keys, bits, rank, found)
                next_key(keys, found, rank, following)
                for i in range(n):
                    wanted = ranks[q, counts[i]]
                    if wanted != NO_RANK:
                        low[q, b, start + i] = found[i] + least
                        high[q, b, start + i] = (following[i] if wanted + 1 < counts[i] else found[i]) + least


@part
def unorder(keys: Any, top: Any) -> None:
    """Turn keys back into the floats that they were made of, in place."""
    for i in range(keys.size):
        keys[i] = keys[i] ^ top if keys[i] & top else ~keys[i]


@kernel
def order_statistics_wide(
    obs: Observations, sign: Any, ranks: Any, width: int, low: Any, high: Any, count: Any
) -> None:
    """Do as `order_statistics` for floats; `sign` ``(1,)`` is an unsigned integer as wide, its sign bit set."""
    times, top = obs.scenes.size, sign[0]
    block, valid = np.empty((times, obs.bands, width), obs.values.dtype), np.empty((times, width), np.uint8)
    numbers, digits = np.empty((times, width), obs.values.dtype), np.empty((times, width), np.uint16)
    keys, counts, rank = numbers.view(sign.dtype), np.empty(width, np.uint16), np.empty(width, np.int16)
    found, following = np.empty(width, sign.dtype), np.empty(width, sign.dtype)
    lower, upper = found.view(obs.values.dtype), following.view(obs.values.dtype)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        load(obs, start, n, block, valid)
        count_valid(valid, n, counts, count[start : start + n])
        for b in range(obs.bands):
            for t in range(times):
                row, ok, number = block[t, b], valid[t], numbers[t]
                for i in range(width):
                    number[i] = row[i] if ok[i] else np.nan
            order(numbers, sign, keys)
            for q in range(ranks.shape[0]):
                for i in range(width):
                    rank[i] = ranks[q, counts[i]]
                select_wide(keys, rank, found, digits)
                next_key(keys, found, rank, following)
                unorder(found, top)
                unorder(following, top)
                for i in range(n):
                    wanted = ranks[q, counts[i]]
                    if wanted != NO_RANK:
                        low[q, b, start + i] = lower[i]
                        high[q, b, start + i] = upper[i] if wanted + 1 < counts[i] else lower[i]


@kernel
def interpolate(low: Any, high: Any, fractions: Any, count: Any, least_count: int, whole: bool, out: Any) -> None:
    """Write the value at a fraction of the step from `low` to `high` ``(b, n)``, rounded if `whole` (halves to even).

    ``fractions (t + 1,)`` has that for each number of valid observations, ``count (n,)``; ``out (b, n)`` stays as it is
    where these are fewer than `least_count`. The arithmetic is that of NumPy's percentiles, from the nearer end.
    """
    kind = out.dtype.type
    for b in range(out.shape[0]):
        first, last, row = low[b], high[b], out[b]
        for i in range(row.size):
            start, end, fraction = np.float64(first[i]), np.float64(last[i]), fractions[count[i]]
            step = end - start
            value = start + step * fraction if fraction < 0.5 else end - step * (1 - fraction)
            value = np.rint(value) if whole else value
            row[i] = kind(value) if count[i] >= least_count else row[i]


@part
def add_up(block: Any, b: int, valid: Any, counts: Any, mean: Any) -> None:
    """Write the mean of band `b`: ``block (t, b, n)``, ``valid (t, n)``, ``mean (n,)`` float64."""
    mean[:] = 0
    for t in range(valid.shape[0]):
        row, ok = block[t, b], valid[t]
        for i in range(mean.size):
            mean[i] += np.float64(row[i]) if ok[i] else 0.0
    for i in range(mean.size):
        mean[i] /= max(counts[i], 1)


@kernel
def moments(obs: Observations, which: int, least_count: int, width: int, out: Any, count: Any) -> None:
    """Write the mean, standard deviation, minimum or maximum of each band, as `which` says; blocks of `width` pixels.

    ``out (b, n)`` float64; pixels with fewer than `least_count` valid observations are left as they are.
    ``count (n,)`` uint16, out: valid observations.
    """
    times, sign = obs.scenes.size, -1.0 if which == MIN else 1.0
    block, valid = np.empty((times, obs.bands, width), obs.values.dtype), np.empty((times, width), np.uint8)
    counts, mean, result = np.empty(width, np.uint16), np.empty(width, np.float64), np.empty(width, np.float64)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        load(obs, start, n, block, valid)
        count_valid(valid, n, counts, count[start : start + n])
        for b in range(obs.bands):
            if which == MEAN:
                add_up(block, b, valid, counts, result)
            elif which == STD:
                add_up(block, b, valid, counts, mean)
                result[:] = 0
                for t in range(times):
                    row, ok = block[t, b], valid[t]
                    for i in range(width):
                        off = np.float64(row[i]) - mean[i] if ok[i] else 0.0
                        result[i] += off * off
                for i in range(width):
                    result[i] = np.sqrt(result[i] / max(counts[i], 1))
            else:
                result[:] = -np.inf
                for t in range(times):
                    row, ok = block[t, b], valid[t]
                    for i in range(width):
                        value = sign * np.float64(row[i])
                        result[i] = value if (ok[i] != 0) & (value > result[i]) else result[i]
                for i in range(width):
                    result[i] *= sign
            for i in range(n):
                if counts[i] >= least_count:
                    out[b, start + i] = result[i]


@kernel
def sums_between(obs: Observations, low: Any, high: Any, width: int, total: Any, below: Any, above: Any) -> None:
    """Add up the valid values between two limits ``(b, n)``, and count those at or beyond them.

    Out: ``total (b, n)`` float64, the sum of the values above `low` and below `high`; ``below``, ``above (b, n)``
    uint16, how many are not above `low`, and how many not below `high`. Blocks of `width` pixels.
    """
    times = obs.scenes.size
    block, valid = np.empty((times, obs.bands, width), obs.values.dtype), np.empty((times, width), np.uint8)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        load(obs, start, n, block, valid)
        for b in range(obs.bands):
            least, most = low[b, start : start + n], high[b, start : start + n]
            sums, under, over = total[b, start : start + n], below[b, start : start + n], above[b, start : start + n]
            for i in range(n):
                sums[i], under[i], over[i] = 0, 0, 0
            for t in range(times):
                row, ok = block[t, b], valid[t]
                for i in range(n):
                    beneath, beyond = row[i] <= least[i], row[i] >= most[i]
                    sums[i] += np.float64(row[i]) if (ok[i] != 0) & ~(beneath | beyond) else 0.0
                    under[i] += np.uint16((ok[i] != 0) & beneath)
                    over[i] += np.uint16((ok[i] != 0) & beyond)
