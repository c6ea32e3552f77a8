"""Rank composites: order a pixel's observations by a key, take the one at a rank, whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from s2composite.pixels.kernels.selection import pick, select, select_wide
from s2composite.pixels.kernels.tiles import Source, kernel, part, split

__all__ = ["Key", "rank_by_key", "rank_by_small_key"]


class Key(NamedTuple):
    """What observations are ordered by: a weighted sum of their bands, or a normalised difference of two."""

    weights: Any
    """``(b,)``, type of the key: weight of each band in the sum."""

    first: Any
    """The key of a sum of zero."""

    none: Any
    """The key of an observation that is not valid; nothing else has it."""

    pair: Any
    """``(2,)`` int64: the bands of the difference; empty for a sum."""


@part
def add_three(values: Any, low: Any, high: Any, key: Key, row: Any) -> None:
    """Write the keys of interleaved pixels of three bands, all with the same range ``low`` to ``high``."""
    kind, first, none = row.dtype.type, key.first, key.none
    w0, w1, w2 = key.weights[0], key.weights[1], key.weights[2]
    for i in range(values.size // 3):
        r, g, b = values[3 * i], values[3 * i + 1], values[3 * i + 2]
        good = (min(r, g, b) >= low) & (max(r, g, b) <= high) & ~(np.isnan(r) | np.isnan(g) | np.isnan(b))
        total = kind(kind(kind(first + kind(kind(r) * w0)) + kind(kind(g) * w1)) + kind(kind(b) * w2))
        row[i] = total if good else none


@part
def add_planes(reds: Any, greens: Any, blues: Any, low: Any, high: Any, key: Key, row: Any) -> None:
    """Do as `add_three` for pixels of three bands that lie apart."""
    kind, first, none = row.dtype.type, key.first, key.none
    w0, w1, w2 = key.weights[0], key.weights[1], key.weights[2]
    for i in range(reds.size):
        r, g, b = reds[i], greens[i], blues[i]
        good = (min(r, g, b) >= low) & (max(r, g, b) <= high) & ~(np.isnan(r) | np.isnan(g) | np.isnan(b))
        total = kind(kind(kind(first + kind(kind(r) * w0)) + kind(kind(g) * w1)) + kind(kind(b) * w2))
        row[i] = total if good else none


@part
def forbid_three(values: Any, value: Any, none: Any, row: Any) -> None:
    """Write `none` where one of three interleaved bands has a value that makes the observation invalid."""
    for i in range(values.size // 3):
        bad = (values[3 * i] == value) | (values[3 * i + 1] == value) | (values[3 * i + 2] == value)
        row[i] = none if bad else row[i]


@part
def add_band(values: Any, low: Any, high: Any, weight: Any, none: Any, row: Any) -> None:
    """Add a band times its weight to each key that is not `none` yet; `none` where it is out of its range."""
    kind = row.dtype.type
    for i in range(values.size):
        good = (values[i] >= low) & (values[i] <= high) & ~np.isnan(row[i]) & (row[i] != none)
        row[i] = kind(row[i] + kind(kind(values[i]) * weight)) if good else none


@part
def subtract(a: Any, b: Any, none: Any, row: Any) -> None:
    """Write the normalised difference ``(a - b) / (a + b)``; minus infinity where it is undefined."""
    kind = row.dtype.type
    for i in range(a.size):
        x, y = kind(a[i]), kind(b[i])
        both = x + y
        value = (x - y) / both if both != 0 else -np.inf
        row[i] = none if np.isnan(row[i]) else (-np.inf if np.isnan(value) else value)


@part
def forbid(usable: Any, none: Any, row: Any) -> None:
    """Write `none` where an observation is not usable."""
    for i in range(usable.size):
        row[i] = row[i] if usable[i] else none


@part
def forbid_value(values: Any, value: Any, none: Any, row: Any) -> None:
    """Write `none` where a band has a value that makes the observation invalid."""
    for i in range(values.size):
        row[i] = row[i] if values[i] != value else none


@part
def write_three_keys(source: Source, key: Key, start: int, n: int, keys: Any) -> None:
    """Write the keys of `n` pixels of three bands whose ranges are the same."""
    values, low, high = source.values, source.low[0], source.high[0]
    for t in range(source.scenes.size):
        at, row = source.scenes[t] * 3 * source.plane, keys[t]
        if source.interleaved:
            pixels = values[at + 3 * start : at + 3 * (start + n)]
            add_three(pixels, low, high, key, row)
            for value in source.dropped:
                forbid_three(pixels, value, key.none, row)
        else:
            first, second, third = at + start, at + source.plane + start, at + 2 * source.plane + start
            reds, greens, blues = values[first : first + n], values[second : second + n], values[third : third + n]
            add_planes(reds, greens, blues, low, high, key, row)
            for value in source.dropped:
                forbid_value(reds, value, key.none, row)
                forbid_value(greens, value, key.none, row)
                forbid_value(blues, value, key.none, row)


@part
def write_any_keys(source: Source, key: Key, start: int, n: int, bands: Any, keys: Any) -> None:
    """Write the keys of `n` pixels of any kind; ``bands (b, width)`` is scratch."""
    for t in range(source.scenes.size):
        row = keys[t]
        for i in range(n):
            row[i] = key.first
        split(source, source.scenes[t], start, n, bands)
        for b in range(source.bands):
            add_band(bands[b, :n], source.low[b], source.high[b], key.weights[b], key.none, row)
            for value in source.dropped:
                forbid_value(bands[b, :n], value, key.none, row)
        if key.pair.size > 0:
            subtract(bands[key.pair[0], :n], bands[key.pair[1], :n], key.none, row)


@part
def write_keys(source: Source, key: Key, start: int, n: int, bands: Any, keys: Any) -> None:
    """Write the keys of `n` pixels from pixel `start` on: ``keys (t, width)``; ``bands (b, width)`` is scratch."""
    if source.bands == 3 and source.plain and key.pair.size == 0:
        write_three_keys(source, key, start, n, keys)
    else:
        write_any_keys(source, key, start, n, bands, keys)
    for t in range(source.scenes.size):
        if source.usable.size > 0:
            at = source.scenes[t] * source.plane + start
            forbid(source.usable[at : at + n], key.none, keys[t])
        for i in range(n, keys.shape[1]):
            keys[t, i] = key.none


@part
def count_keys(keys: Any, none: Any, ranks: Any, counts: Any, rank: Any) -> None:
    """Count the keys that are not `none`, and look up the rank that each pixel wants."""
    counts[:] = 0
    for t in range(keys.shape[0]):
        row = keys[t]
        for i in range(counts.size):
            counts[i] += np.uint16(row[i] != none)
    for i in range(counts.size):
        rank[i] = ranks[counts[i]]


@part
def put_picked(source: Source, index: Any, start: int, n: int, out: Any, chosen: Any) -> None:
    """Write the picked observations: their values into ``out (b, pixels)``, their scenes into ``chosen (pixels,)``."""
    size = source.bands * source.plane
    across, along = (source.bands, 1) if source.interleaved else (1, source.plane)
    for i in range(start, start + n):
        chosen[i] = -1
        if index[i - start] >= 0:
            chosen[i] = source.scenes[index[i - start]]
            at = source.scenes[index[i - start]] * size + i * across
            for b in range(source.bands):
                out[b, i] = source.values[at + b * along]


@kernel
def rank_by_small_key(
    source: Source, key: Key, bits: int, ranks: Any, width: int, out: Any, count: Any, chosen: Any
) -> None:
    """Rank by integer keys of at most sixteen bits.

    Parameters
    ----------
    source
        The stack.
    key
        What to order by: of type int16, counted from ``FIRST``, less than ``LAST``.
    bits
        Bits of the largest key.
    ranks
        ``(t + 1,)`` int16: the rank to take for each number of valid observations, ``NO_RANK`` to take none.
    width
        Pixels of a block.
    out
        ``(b, n)``, type of the source, filled with nodata before: values of the picked observation.
    count
        ``(n,)`` uint16, out: valid observations.
    chosen
        ``(n,)`` int16, out: scene of the picked observation, -1 if none.
    """
    times = source.scenes.size
    bands, keys = np.empty((source.bands, width), source.values.dtype), np.empty((times, width), np.int16)
    counts, rank, index = np.empty(width, np.uint16), np.empty(width, np.int16), np.empty(width, np.int16)
    found = np.empty(width, np.int16)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        write_keys(source, key, start, n, bands, keys)
        count_keys(keys, key.none, ranks, counts, rank)
        select(keys, bits, rank, found, source, start + width, 0)
        pick(keys, found, rank, index)
        put_picked(source, index, start, n, out, chosen)
        for i in range(n):
            count[start + i] = counts[i]


@part
def order(numbers: Any, sign: Any, keys: Any) -> None:
    """Turn floats into integers of the same order in place, NaN into all bits set: `keys` is their memory.

    Only the bits are looked at: LLVM leaves a loop scalar that reads memory under one type and writes it under another.
    """
    kind = keys.dtype.type
    zero, top, last, one = kind(0), sign[0], kind(8 * keys.itemsize - 1), kind(1)
    infinity = np.full(1, np.inf, numbers.dtype).view(keys.dtype)[0]
    beyond = kind(infinity << one)  # without its sign
    for t in range(keys.shape[0]):
        bits = keys[t]
        for i in range(bits.size):  # no branches: a wrong guess costs more than all of this
            value = zero if bits[i] == top else bits[i]  # -0 becomes 0
            flip = kind(kind(zero - kind(value >> last)) | top)
            missing = kind(~zero) if kind(value << one) > beyond else zero
            bits[i] = kind(kind(value ^ flip) | missing)


@kernel
def rank_by_key(source: Source, key: Key, sign: Any, ranks: Any, width: int, out: Any, count: Any, chosen: Any) -> None:
    """Rank by keys of 32 or 64 bits; parameters as `rank_by_small_key`, but for these.

    Parameters
    ----------
    key
        What to order by: uint32 with all bits set for none, or float32 or float64 with NaN.
    sign
        ``(1,)`` unsigned integer as wide as the key: for floats its sign bit, for integers 0.
    """
    times = source.scenes.size
    bands, digits = np.empty((source.bands, width), source.values.dtype), np.empty((times, width), np.int16)
    keys = np.empty((times, width), key.weights.dtype)
    wide, found = keys.view(sign.dtype), np.empty(width, sign.dtype)
    counts, rank, index = np.empty(width, np.uint16), np.empty(width, np.int16), np.empty(width, np.int16)
    none = ~sign[0] | sign[0]
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        write_keys(source, key, start, n, bands, keys)
        if sign[0] != 0:
            order(keys, sign, wide)
        count_keys(wide, none, ranks, counts, rank)
        select_wide(wide, rank, found, digits, source, start + width)
        pick(wide, found, rank, index)
        put_picked(source, index, start, n, out, chosen)
        for i in range(n):
            count[start + i] = counts[i]
