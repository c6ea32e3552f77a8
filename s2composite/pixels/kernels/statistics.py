"""Statistics of each band by itself: order statistics, sums and extremes of a pixel's valid observations."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.rank import order
from s2composite.pixels.kernels.selection import FIRST, LAST, NO_RANK, select, select_wide
from s2composite.pixels.kernels.tiles import Source, count_valid, kernel, load, part

__all__ = ["MAX", "MEAN", "MIN", "STD", "moments", "order_statistics", "order_statistics_wide", "sums_between"]

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


@part
def write_small(block: Any, b: int, valid: Any, least: int, keys: Any) -> None:
    """Write the values of band `b` as keys that count from `least`; `LAST` where not valid."""
    shift = np.int32(FIRST - least)
    for t in range(valid.shape[0]):
        row, ok, key = block[t, b], valid[t], keys[t]
        for i in range(key.size):
            key[i] = np.int16(np.int32(row[i]) + shift) if ok[i] else np.int16(LAST)


@part
def next_key(keys: Any, key: Any, left: Any, none: Any, following: Any) -> None:
    """Find the key that follows each pixel's `key`, the `left`-th among equal ones; `key` itself if none does."""
    equal = np.zeros(left.size, np.int16)
    following[:] = none
    for t in range(keys.shape[0]):
        row = keys[t]
        for i in range(left.size):
            equal[i] += np.int16(row[i] == key[i])
            following[i] = row[i] if (row[i] > key[i]) & (row[i] < following[i]) else following[i]
    for i in range(left.size):
        if left[i] + 1 < equal[i] or following[i] == none:
            following[i] = key[i]


@part
def look_up(counts: Any, ranks: Any, rank: Any) -> None:
    """Look up the rank that each pixel wants, given how many valid observations it has."""
    for i in range(rank.size):
        rank[i] = ranks[counts[i]]


@kernel
def order_statistics(source: Source, lowest: int, ranks: Any, width: int, low: Any, high: Any, count: Any) -> None:
    """Find the values at given ranks, and the next ones, of each band: integers of at most sixteen bits.

    Parameters
    ----------
    source
        The stack.
    lowest
        The lowest number that its type can hold.
    ranks
        ``(q, t + 1)`` int16: the ranks wanted for each number of valid observations, ``NO_RANK`` for none.
    width
        Pixels of a block.
    low, high
        ``(q, b, n)``, type of the source, out: the value at the rank, and the one after it (the same if it is the
        last); left as they are where no rank is wanted.
    count
        ``(n,)`` uint16, out: valid observations.
    """
    times = source.scenes.size
    block, valid = np.empty((times, source.bands, width), source.values.dtype), np.empty((times, width), np.uint8)
    keys, counts = np.empty((times, width), np.int16), np.empty(width, np.uint16)
    rank, found, following = np.empty(width, np.int16), np.empty(width, np.int16), np.empty(width, np.int16)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        load(source, start, n, block, valid)
        count_valid(valid, n, counts, count[start : start + n])
        for b in range(source.bands):
            bits, least = varying_bits(block, b, valid, lowest)
            write_small(block, b, valid, least, keys)
            for q in range(ranks.shape[0]):
                look_up(counts, ranks[q], rank)
                select(keys, bits, rank, found, source, source.pixels, 0)
                next_key(keys, found, rank, np.int16(LAST), following)
                for i in range(n):
                    if ranks[q, counts[i]] != NO_RANK:
                        low[q, b, start + i] = found[i] - FIRST + least
                        high[q, b, start + i] = following[i] - FIRST + least


@part
def write_wide(block: Any, b: int, valid: Any, numbers: Any) -> None:
    """Copy the values of band `b`; NaN where not valid."""
    for t in range(valid.shape[0]):
        row, ok, number = block[t, b], valid[t], numbers[t]
        for i in range(number.size):
            number[i] = row[i] if ok[i] else np.nan


@part
def unorder(keys: Any, top: Any) -> None:
    """Turn keys back into the floats that they were made of, in place."""
    for i in range(keys.size):
        keys[i] = keys[i] ^ top if keys[i] & top else ~keys[i]


@kernel
def order_statistics_wide(source: Source, sign: Any, ranks: Any, width: int, low: Any, high: Any, count: Any) -> None:
    """Do as `order_statistics` for floats; `sign` ``(1,)`` is an unsigned integer as wide, its sign bit set."""
    times, top = source.scenes.size, sign[0]
    block, valid = np.empty((times, source.bands, width), source.values.dtype), np.empty((times, width), np.uint8)
    numbers, digits = np.empty((times, width), source.values.dtype), np.empty((times, width), np.int16)
    keys, counts, rank = numbers.view(sign.dtype), np.empty(width, np.uint16), np.empty(width, np.int16)
    found, following = np.empty(width, sign.dtype), np.empty(width, sign.dtype)
    lower, upper = found.view(source.values.dtype), following.view(source.values.dtype)
    none = sign.dtype.type(~top | top)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        load(source, start, n, block, valid)
        count_valid(valid, n, counts, count[start : start + n])
        for b in range(source.bands):
            write_wide(block, b, valid, numbers)
            order(numbers, sign, keys)
            for q in range(ranks.shape[0]):
                look_up(counts, ranks[q], rank)
                select_wide(keys, rank, found, digits, source, source.pixels)
                next_key(keys, found, rank, none, following)
                unorder(found, top)
                unorder(following, top)
                for i in range(n):
                    if ranks[q, counts[i]] != NO_RANK:
                        low[q, b, start + i] = lower[i]
                        high[q, b, start + i] = upper[i]


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


@part
def deviation(block: Any, b: int, valid: Any, counts: Any, mean: Any, out: Any) -> None:
    """Write the standard deviation of band `b` around its `mean`, dividing by the number of observations."""
    out[:] = 0
    for t in range(valid.shape[0]):
        row, ok = block[t, b], valid[t]
        for i in range(mean.size):
            off = np.float64(row[i]) - mean[i] if ok[i] else 0.0
            out[i] += off * off
    for i in range(mean.size):
        out[i] = np.sqrt(out[i] / max(counts[i], 1))


@part
def extreme(block: Any, b: int, valid: Any, sign: float, out: Any) -> None:
    """Write the largest (`sign` 1) or smallest (-1) valid value of band `b`."""
    out[:] = -np.inf
    for t in range(valid.shape[0]):
        row, ok = block[t, b], valid[t]
        for i in range(out.size):
            value = sign * np.float64(row[i])
            out[i] = value if (ok[i] != 0) & (value > out[i]) else out[i]
    for i in range(out.size):
        out[i] *= sign


@kernel
def moments(source: Source, which: int, least_count: int, width: int, out: Any, count: Any) -> None:
    """Write the mean, standard deviation, minimum or maximum of each band, as `which` says.

    Parameters
    ----------
    source
        The stack.
    which
        ``MEAN``, ``STD``, ``MIN`` or ``MAX``.
    least_count
        Pixels with fewer valid observations are left as they are in `out`.
    width
        Pixels of a block.
    out
        ``(b, n)`` float64, out.
    count
        ``(n,)`` uint16, out: valid observations.
    """
    times = source.scenes.size
    block, valid = np.empty((times, source.bands, width), source.values.dtype), np.empty((times, width), np.uint8)
    counts, mean, result = np.empty(width, np.uint16), np.empty(width, np.float64), np.empty(width, np.float64)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        load(source, start, n, block, valid)
        count_valid(valid, n, counts, count[start : start + n])
        for b in range(source.bands):
            if which == MEAN:
                add_up(block, b, valid, counts, result)
            elif which == STD:
                add_up(block, b, valid, counts, mean)
                deviation(block, b, valid, counts, mean, result)
            else:
                extreme(block, b, valid, 1.0 if which == MAX else -1.0, result)
            for i in range(n):
                if counts[i] >= least_count:
                    out[b, start + i] = result[i]


@kernel
def sums_between(source: Source, low: Any, high: Any, width: int, total: Any, below: Any, above: Any) -> None:
    """Add up the valid values between two limits, and count those at or beyond them.

    Parameters
    ----------
    source
        The stack.
    low, high
        ``(b, n)``, type of the source: the limits.
    width
        Pixels of a block.
    total
        ``(b, n)`` float64, out: sum of the values above `low` and below `high`.
    below, above
        ``(b, n)`` uint16, out: how many are not above `low`, and how many not below `high`.
    """
    times = source.scenes.size
    block, valid = np.empty((times, source.bands, width), source.values.dtype), np.empty((times, width), np.uint8)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        load(source, start, n, block, valid)
        for b in range(source.bands):
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
