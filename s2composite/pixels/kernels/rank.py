"""Kernels that pick one whole observation of each pixel: the one at a rank, the first, or the one of best score."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from s2composite.pixels.kernels.compile_cache import kernel, part
from s2composite.pixels.kernels.selection import pick, select, select_wide
from s2composite.pixels.kernels.tiles import Observations, judge, put_picked, split

__all__ = ["Key", "best_scored", "first_valid", "order", "rank_by_key", "rank_by_small_key"]


class Key(NamedTuple):
    """What observations are ordered by: a weighted sum of their bands, or a normalised difference of two."""

    weights: Any
    """``(b,)``, type of the key: weight of each band in the sum."""

    zero: Any
    """The key of a sum of zero."""

    invalid: Any
    """The key of an observation that is not valid; nothing else has it."""

    pair: Any
    """``(2,)`` int64: the bands of the difference; empty for a sum."""


@part
def sums_of_three(obs: Observations, key: Key, first: Any, second: Any, third: Any, row: Any) -> None:
    """Write the keys of three bands in one pass, which is a third faster in all than the general loops."""
    kind, zero, invalid = row.dtype.type, key.zero, key.invalid
    w0, w1, w2 = key.weights[0], key.weights[1], key.weights[2]
    low0, low1, low2 = obs.low[0], obs.low[1], obs.low[2]
    high0, high1, high2 = obs.high[0], obs.high[1], obs.high[2]
    for i in range(first.size):
        a, b, c = first[i], second[i], third[i]
        valid = (a >= low0) & (a <= high0) & (b >= low1) & (b <= high1) & (c >= low2) & (c <= high2)
        total = kind(kind(kind(zero + kind(kind(a) * w0)) + kind(kind(b) * w1)) + kind(kind(c) * w2))
        row[i] = total if valid else invalid


@part
def write_keys(obs: Observations, key: Key, start: int, n: int, rows: Any, valid: Any, keys: Any) -> None:
    """Write the keys ``(t, width)`` of `n` pixels from pixel `start` on; ``rows (b, width)``, ``valid`` are scratch."""
    kind = keys.dtype.type
    zero, invalid = key.zero, key.invalid
    for t in range(obs.scenes.size):
        scene, row = obs.scenes[t], keys[t]
        split(obs, scene, start, n, rows)
        if obs.bands == 3 and key.pair.size == 0 and obs.dropped.size == 0 and obs.usable.size == 0:
            sums_of_three(obs, key, rows[0, :n], rows[1, :n], rows[2, :n], row)
            for i in range(n, row.size):
                row[i] = invalid
            continue
        judge(obs, scene, start, n, rows, valid)
        if key.pair.size > 0:
            first, second = rows[key.pair[0]], rows[key.pair[1]]
            for i in range(row.size):
                a, b = kind(first[i]), kind(second[i])
                total = a + b
                ratio = (a - b) / total if total != 0 else -np.inf
                row[i] = -np.inf if np.isnan(ratio) else ratio
        else:
            for i in range(row.size):
                row[i] = zero
            for band in range(obs.bands):
                values, weight = rows[band], key.weights[band]
                for i in range(row.size):
                    row[i] = kind(row[i] + kind(kind(values[i]) * weight))
        for i in range(row.size):
            row[i] = row[i] if valid[i] else invalid


@part
def count_keys(keys: Any, invalid: Any, ranks: Any, counts: Any, rank: Any) -> None:
    """Count the valid keys of each pixel, and look up the rank that it wants."""
    counts[:] = 0
    for t in range(keys.shape[0]):
        row = keys[t]
        for i in range(counts.size):
            counts[i] += np.uint16(row[i] != invalid)
    for i in range(counts.size):
        rank[i] = ranks[counts[i]]


@kernel
def rank_by_small_key(
    obs: Observations, key: Key, bits: int, ranks: Any, width: int, out: Any, count: Any, chosen: Any
) -> None:
    """Rank by keys of at most `bits` bits, uint16 with `INVALID`; blocks of `width` pixels.

    ``ranks (t + 1,)`` int16 has the rank to take for each number of valid observations, ``NO_RANK`` to take none.
    Out: ``out (b, n)``, type of the source, filled with nodata before, gets the values of the picked observation,
    ``count (n,)`` uint16 the number of valid ones, ``chosen (n,)`` int16 the scene of the picked one, -1 if none.
    """
    rows, keys = np.empty((obs.bands, width), obs.values.dtype), np.empty((obs.scenes.size, width), np.uint16)
    valid, counts, found = np.empty(width, np.uint8), np.empty(width, np.uint16), np.empty(width, np.uint16)
    rank, index = np.empty(width, np.int16), np.empty(width, np.int16)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        write_keys(obs, key, start, n, rows, valid, keys)
        count_keys(keys, key.invalid, ranks, counts, rank)
        select(keys, bits, rank, found)
        pick(keys, found, rank, index)
        put_picked(obs, index, start, n, out, chosen)
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
def rank_by_key(
    obs: Observations, key: Key, sign: Any, ranks: Any, width: int, out: Any, count: Any, chosen: Any
) -> None:
    """Do as `rank_by_small_key` with keys of 32 or 64 bits: uint32, all bits set if not valid, or floats with NaN.

    ``sign (1,)`` is an unsigned integer as wide as the key: for floats its sign bit, for integers 0.
    """
    times = obs.scenes.size
    rows, digits = np.empty((obs.bands, width), obs.values.dtype), np.empty((times, width), np.uint16)
    keys = np.empty((times, width), key.weights.dtype)
    wide, found = keys.view(sign.dtype), np.empty(width, sign.dtype)
    valid, counts = np.empty(width, np.uint8), np.empty(width, np.uint16)
    rank, index = np.empty(width, np.int16), np.empty(width, np.int16)
    invalid = ~sign[0] | sign[0]
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        write_keys(obs, key, start, n, rows, valid, keys)
        if sign[0] != 0:
            order(keys, sign, wide)
        count_keys(wide, invalid, ranks, counts, rank)
        select_wide(wide, rank, found, digits)
        pick(wide, found, rank, index)
        put_picked(obs, index, start, n, out, chosen)
        for i in range(n):
            count[start + i] = counts[i]


@kernel
def first_valid(obs: Observations, least_count: int, width: int, out: Any, count: Any, chosen: Any) -> None:
    """Pick the first valid observation of each pixel, in the order of ``obs.scenes``; out as `rank_by_small_key`.

    Pixels with fewer than `least_count` valid observations get none.
    """
    rows, valid = np.empty((obs.bands, width), obs.values.dtype), np.empty(width, np.uint8)
    counts, index = np.empty(width, np.uint16), np.empty(width, np.int16)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        counts[:], index[:] = 0, -1
        for t in range(obs.scenes.size):
            split(obs, obs.scenes[t], start, n, rows)
            judge(obs, obs.scenes[t], start, n, rows, valid)
            for i in range(width):
                index[i] = np.int16(t) if (valid[i] != 0) & (counts[i] == 0) else index[i]
                counts[i] += np.uint16(valid[i])
        for i in range(n):
            count[start + i] = counts[i]
            index[i] = index[i] if counts[i] >= least_count else -1
        put_picked(obs, index, start, n, out, chosen)


@kernel
def best_scored(
    obs: Observations,
    of_scene: Any,
    near: Any,
    of_distance: Any,
    least_count: int,
    width: int,
    out: Any,
    count: Any,
    chosen: Any,
) -> None:
    """Pick the valid observation of the highest score, the first of equal ones; else as `first_valid`.

    The score is ``of_scene (t,)`` float32 plus ``of_distance`` float32 at the squared distance to the nearest bad pixel
    of the scene: ``near (scenes of the stack, plane)`` uint16, 1-D from the first pixel on, at most
    ``of_distance.size - 1``; empty if it does not matter.
    """
    rows, valid = np.empty((obs.bands, width), obs.values.dtype), np.empty(width, np.uint8)
    counts, index, best = np.empty(width, np.uint16), np.empty(width, np.int16), np.empty(width, np.float32)
    score = np.empty(width, np.float32)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        counts[:], index[:], best[:] = 0, -1, -np.inf
        for t in range(obs.scenes.size):
            split(obs, obs.scenes[t], start, n, rows)
            judge(obs, obs.scenes[t], start, n, rows, valid)
            score[:] = of_scene[t]
            if near.size > 0:
                at = obs.scenes[t] * obs.plane + start
                for i in range(n):
                    score[i] += of_distance[near[at + i]]
            for i in range(width):
                better = (valid[i] != 0) & (score[i] > best[i])
                index[i] = np.int16(t) if better else index[i]
                best[i] = score[i] if better else best[i]
                counts[i] += np.uint16(valid[i])
        for i in range(n):
            count[start + i] = counts[i]
            index[i] = index[i] if counts[i] >= least_count else -1
        put_picked(obs, index, start, n, out, chosen)
