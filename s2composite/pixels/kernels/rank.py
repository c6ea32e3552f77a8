"""Rank composites: order a pixel's observations by a key, take the one at a rank, whole."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.block import Source, count_valid, load
from s2composite.pixels.kernels.compiled import kernel, part
from s2composite.pixels.kernels.select import LAST, pick, select, select_wide

__all__ = ["rank_by_number", "rank_by_small_sum", "rank_by_sum"]


@part
def put_picked(source: Source, block: Any, index: Any, start: int, n: int, out: Any, chosen: Any) -> None:
    """Write the picked observations: their values into ``out (b, pixels)``, their scenes into ``chosen (pixels,)``."""
    for i in range(n):
        t = index[i]
        chosen[start + i] = -1
        if t >= 0:
            chosen[start + i] = source.scenes[t]
            for b in range(block.shape[1]):
                out[b, start + i] = block[t, b, i]


@part
def look_up(counts: Any, ranks: Any, rank: Any) -> None:
    """Look up the rank that each pixel wants, given how many valid observations it has."""
    for i in range(rank.size):
        rank[i] = ranks[counts[i]]


@part
def small_sums(block: Any, valid: Any, bands: Any, keys: Any) -> None:
    """Add up bands as uint16: ``block (t, b, n)`` into ``keys (t, n)``, `LAST` where not valid."""
    for t in range(block.shape[0]):
        key, ok = keys[t], valid[t]
        for i in range(key.size):
            key[i] = np.uint16(0) if ok[i] != 0 else np.uint16(LAST)
        for b in bands:
            row = block[t, b]
            for i in range(key.size):
                key[i] += np.uint16(row[i]) * np.uint16(ok[i])


@part
def sums(block: Any, bands: Any, least: int, wide: Any) -> None:
    """Add up bands, counted from the `least` value of their type: ``block (t, b, n)`` into ``wide (t, n)`` uint32."""
    for t in range(block.shape[0]):
        key = wide[t]
        key[:] = 0
        for b in bands:
            row = block[t, b]
            for i in range(key.size):
                key[i] += np.uint32(np.int32(row[i]) - np.int32(least))


@part
def weighted(rows: Any, bands: Any, weights: Any, term: Any, number: Any) -> None:
    """Add up bands times weights, one after the other, in the type of `number`."""
    number[:] = 0
    for k in range(bands.size):
        row, weight = rows[bands[k]], weights[k]
        for i in range(number.size):
            term[i] = row[i]
        for i in range(number.size):
            number[i] += term[i] * weight


@part
def difference(rows: Any, bands: Any, term: Any, number: Any) -> None:
    """Normalised difference ``(a - b) / (a + b)`` of two bands, in the type of `number`."""
    a, b = rows[bands[0]], rows[bands[1]]
    for i in range(number.size):
        number[i] = a[i]
        term[i] = b[i]
    for i in range(number.size):
        both = number[i] + term[i]
        number[i] = (number[i] - term[i]) / both if both != 0 else np.nan


@part
def order(number: Any, sign: Any, bits: Any) -> None:
    """Turn floats into integers of the same order, in place: `bits` is the memory of `number` as unsigned integers."""
    for i in range(number.size):
        number[i] = number[i] + 0.0 if number[i] == number[i] else -np.inf  # -0 is 0; an undefined key comes first
    for i in range(number.size):
        bits[i] = ~bits[i] if bits[i] & sign[0] else bits[i] | sign[0]


@kernel
def rank_by_small_sum(
    source: Source, bands: Any, bits: int, ranks: Any, width: int, out: Any, count: Any, chosen: Any
) -> None:
    """Rank by a plain sum of `bands` that fits 16 bits, `LAST` excepted (uint8 data).

    Parameters
    ----------
    source
        The stack.
    bands
        ``(k,)`` int64: indices of the bands to add up.
    bits
        Bits of the largest possible sum.
    ranks
        ``(t + 1,)`` uint16: the rank to take for each number of valid observations, `LAST` to take none.
    width
        Pixels of a block.
    out
        ``(b, n)``, dtype of the source, filled with nodata before: values of the picked observation.
    count
        ``(n,)`` uint16, out: valid observations.
    chosen
        ``(n,)`` int16, out: scene of the picked observation, -1 if none.
    """
    scenes = source.scenes.size
    block = np.empty((scenes, source.bands, width), source.values.dtype)
    valid = np.empty((scenes, width), np.uint8)
    keys = np.empty((scenes, width), np.uint16)
    counts, rank, index = np.empty(width, np.uint16), np.empty(width, np.uint16), np.empty(width, np.int16)
    key, below = np.empty(width, np.uint16), np.empty(width, np.uint16)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        load(source, start, n, block, valid)
        count_valid(valid, n, counts, count[start : start + n])
        look_up(counts, ranks, rank)
        small_sums(block, valid, bands, keys)
        select(keys, bits, rank, key, below)
        pick(keys, valid, key, rank, index)
        put_picked(source, block, index, start, n, out, chosen)


@kernel
def rank_by_sum(
    source: Source, bands: Any, least: int, ranks: Any, width: int, out: Any, count: Any, chosen: Any
) -> None:
    """Rank by a plain sum of `bands` of integers; parameters as `rank_by_small_sum`, `least` value of the dtype."""
    scenes = source.scenes.size
    block = np.empty((scenes, source.bands, width), source.values.dtype)
    valid = np.empty((scenes, width), np.uint8)
    keys = np.empty((scenes, width), np.uint16)
    wide, key = np.empty((scenes, width), np.uint32), np.empty(width, np.uint32)
    counts, rank, index = np.empty(width, np.uint16), np.empty(width, np.uint16), np.empty(width, np.int16)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        load(source, start, n, block, valid)
        count_valid(valid, n, counts, count[start : start + n])
        look_up(counts, ranks, rank)
        sums(block, bands, least, wide)
        select_wide(wide, valid, rank, key, keys)
        pick(wide, valid, key, rank, index)
        put_picked(source, block, index, start, n, out, chosen)


@kernel
def rank_by_number(
    source: Source, bands: Any, weights: Any, sign: Any, ranks: Any, width: int, out: Any, count: Any, chosen: Any
) -> None:
    """Rank by a floating-point key; parameters as `rank_by_small_sum`, but for these two.

    Parameters
    ----------
    weights
        ``(k,)`` float32 or float64, the type of the key: weights of `bands`; empty: their normalised difference.
    sign
        ``(1,)`` unsigned integer as wide as the key: its sign bit.
    """
    scenes = source.scenes.size
    block = np.empty((scenes, source.bands, width), source.values.dtype)
    valid = np.empty((scenes, width), np.uint8)
    keys = np.empty((scenes, width), np.uint16)
    number, term = np.empty((scenes, width), weights.dtype), np.empty(width, weights.dtype)
    wide, key = number.view(sign.dtype), np.empty(width, sign.dtype)
    counts, rank, index = np.empty(width, np.uint16), np.empty(width, np.uint16), np.empty(width, np.int16)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        load(source, start, n, block, valid)
        count_valid(valid, n, counts, count[start : start + n])
        look_up(counts, ranks, rank)
        for t in range(scenes):
            if weights.size > 0:
                weighted(block[t], bands, weights, term, number[t])
            else:
                difference(block[t], bands, term, number[t])
            order(number[t], sign, wide[t])
        select_wide(wide, valid, rank, key, keys)
        pick(wide, valid, key, rank, index)
        put_picked(source, block, index, start, n, out, chosen)
