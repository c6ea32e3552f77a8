"""The k-th smallest key of every pixel of a block, bit by bit.

The wanted key is built from its highest bit down: a bit is set if no more than `rank` keys lie below the key with it
set. Each step counts "keys below the candidate" for all pixels of the block at once: a compare and an add over
contiguous pixels, with no branch and no exchange, so it runs at the speed of the vector units: five thousand million
ten-bit keys a second on one core, where a sort for each pixel does thirty million. Equal keys keep scene order.

Keys are looked at eight bits at a time, as int8: the narrower the numbers, the more of them in a vector, and signed ones
compare faster than unsigned ones on x86.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.block import Source, fetch
from s2composite.pixels.kernels.compiled import part

__all__ = ["NO_RANK", "pick", "select"]

NO_RANK = 32767
"""The rank of a pixel that is to get no observation: there are never as many."""

COUNT_AT_MOST = 120
"""Scenes that an int8 can count, in steps of eight."""


@part
def count_below(digits: Any, candidate: Any, partly: Any, below: Any, source: Source, start: int, scene: int) -> int:
    """Count the digits below each pixel's candidate: ``digits (t, n)`` int8, ``below (n,)`` int16; `partly` is scratch.

    Counting leaves the memory idle, so pixels from `start` on of the scenes from `scene` on are fetched meanwhile.
    """
    times, n = digits.shape
    below[:] = 0
    for first in range(0, times, COUNT_AT_MOST):
        last = min(first + COUNT_AT_MOST, times)
        eights = last - (last - first) % 8  # eight scenes a step: counters are loaded and stored once for eight digits
        partly[:] = 0
        for t in range(first, eights, 8):
            d0, d1, d2, d3 = digits[t], digits[t + 1], digits[t + 2], digits[t + 3]
            d4, d5, d6, d7 = digits[t + 4], digits[t + 5], digits[t + 6], digits[t + 7]
            for i in range(n):
                c = candidate[i]
                partly[i] += (
                    np.int8(d0[i] < c) + np.int8(d1[i] < c) + np.int8(d2[i] < c) + np.int8(d3[i] < c)
                    + np.int8(d4[i] < c) + np.int8(d5[i] < c) + np.int8(d6[i] < c) + np.int8(d7[i] < c)
                )  # fmt: skip
            fetch(source, scene, start, n)
            scene += 1
        for t in range(eights, last):
            d = digits[t]
            for i in range(n):
                partly[i] += np.int8(d[i] < candidate[i])
        for i in range(n):
            below[i] += partly[i]
    return scene


@part
def select_digit(digits: Any, bits: int, rank: Any, digit: Any, source: Source, start: int, scene: int) -> int:
    """Find the digit at `rank`; on return, `rank` is the rank among the digits equal to it.

    ``digits (t, n)`` int8 counted from -128, of which only the lowest `bits` bits vary; ``rank``, ``digit (n,)``.
    """
    n = digit.size
    partly, below, smaller = np.empty(n, np.int8), np.empty(n, np.int16), np.zeros(n, np.int16)
    digit[:] = -128
    for bit in range(bits - 1, -1, -1):
        one = np.int32(1 << bit)
        for i in range(n):
            digit[i] += one
        scene = count_below(digits, digit, partly, below, source, start, scene)
        for i in range(n):
            taken = below[i] <= rank[i]
            digit[i] -= np.int32(0) if taken else one
            smaller[i] = below[i] if taken else smaller[i]
    for i in range(n):
        rank[i] -= smaller[i]
    return scene


@part
def key_range(keys: Any, least: Any, most: Any) -> None:
    """Write the smallest and the largest valid key of each pixel; 0 twice where there is no valid one."""
    kind = keys.dtype.type
    zero, one = kind(0), kind(1)
    for i in range(least.size):
        least[i] = ~zero
        most[i] = zero
    for t in range(keys.shape[0]):
        row = keys[t]
        for i in range(least.size):
            least[i] = min(least[i], row[i])
            most[i] = max(most[i], kind(row[i] + one))  # the key that is not valid becomes 0
    for i in range(least.size):
        most[i] = max(most[i], one) - one
        least[i] = min(least[i], most[i])


@part
def bits_of_range(least: Any, most: Any) -> int:
    """Return how many bits the largest difference has; at least 1."""
    differences = np.uint64(1)
    for i in range(least.size):
        differences |= np.uint64(most[i] - least[i])
    bits = 0
    while differences > np.uint64(0):
        differences >>= np.uint64(1)
        bits += 1
    return bits


@part
def write_digits(keys: Any, least: Any, shift: int, found: Any, digits: Any) -> None:
    """Write eight bits of each key, counted from `least`, as -128 to 127.

    127, the last, where the key is not valid or has other bits above these than those `found`.
    """
    kind = keys.dtype.type
    none, down, eight = kind(~kind(0)), kind(shift), kind(8)
    for t in range(keys.shape[0]):
        row, out = keys[t], digits[t]
        for i in range(found.size):
            key = kind(kind(row[i] - least[i]) >> down)
            same = (row[i] != none) & (kind(key >> eight) == found[i])
            out[i] = np.int8(np.int16(np.uint8(key)) - 128) if same else np.int8(127)


@part
def select(keys: Any, bits: int, rank: Any, key: Any, digits: Any, source: Source, start: int) -> None:
    """Find the key at `rank` for each pixel, eight bits at a time from the highest.

    Parameters
    ----------
    keys
        ``(t, n)`` uint16, uint32 or uint64; all bits set where an observation is not valid.
    bits
        How many bits the keys have; 0: as many as the keys of a pixel span, which is found out. Each costs a pass.
    rank
        ``(n,)`` int16, 0 the smallest; on return, the rank among the keys equal to the one found.
    key
        ``(n,)``, type of `keys`, out: the key found; anything where there are not more than `rank` keys.
    digits
        ``(t, n)`` int8: scratch.
    source, start
        Where the pixels of the next block begin: they are fetched into the cache while keys are counted.
    """
    kind = keys.dtype.type
    least, found, digit = np.zeros_like(key), np.zeros_like(key), np.empty(key.size, np.int8)
    if bits == 0:
        key_range(keys, least, key)
        bits = bits_of_range(least, key)
    scene = 0
    for stage in range((bits - 1) // 8, -1, -1):
        if stage == 0:  # constant shifts vectorise in the keys' own width
            write_digits(keys, least, 0, found, digits)
        elif stage == 1:
            write_digits(keys, least, 8, found, digits)
        else:
            write_digits(keys, least, 8 * stage, found, digits)
        scene = select_digit(digits, min(bits - 8 * stage, 8), rank, digit, source, start, scene)
        for i in range(key.size):
            found[i] = kind(found[i] << kind(8)) | kind(np.uint8(np.int16(digit[i]) + 128))
    for i in range(key.size):
        key[i] = least[i] + found[i]


@part
def pick(keys: Any, key: Any, left: Any, index: Any) -> None:
    """Find the observation with each pixel's `key`: the `left`-th of them in scene order, -1 where there is none."""
    index[:] = -1
    for t in range(keys.shape[0]):
        row = keys[t]
        for i in range(index.size):
            same = row[i] == key[i]
            index[i] = np.int16(t) if same & (left[i] == 0) else index[i]
            left[i] -= np.int16(same)
