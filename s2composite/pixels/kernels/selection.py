"""Selection: the key at a given rank among the keys of a pixel, for all pixels of a block at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.compile_cache import part

__all__ = ["INVALID", "NO_RANK", "next_key", "pick", "select", "select_wide"]

INVALID = 0xFFFF  # the key of an observation that is not valid, in 16 bits; in wide keys, too, all bits are set

NO_RANK = 32767  # the rank of a pixel that is to get no observation: there are never as many


@part
def select(keys: Any, bits: int, rank: Any, key: Any) -> None:
    """Find the key at `rank` (0: smallest) of each pixel; `rank` becomes that among the keys equal to it.

    ``keys (t, n)`` uint16 of at most `bits` bits, or `INVALID`; ``rank (n,)`` int16; ``key (n,)`` uint16, out: anything
    where there are not more than `rank` keys.
    """
    # Bit by bit from the highest: a bit is set if at most `rank` keys are smaller than the key with it. The inner loop
    # runs over pixels, which LLVM turns into vector instructions (a sort of each pixel is 80 times slower), and four
    # scenes a step load and store the counters once for four keys.
    times, n = keys.shape[0], key.size
    below, smaller = np.empty(n, np.int16), np.zeros(n, np.int16)
    fours = times - times % 4
    for i in range(n):
        key[i] = 0
    for bit in range(bits - 1, -1, -1):
        one = np.uint16(1 << bit)
        for i in range(n):
            key[i] |= one
            below[i] = 0
        for t in range(0, fours, 4):
            a, b, c, d = keys[t], keys[t + 1], keys[t + 2], keys[t + 3]
            for i in range(n):
                k = key[i]
                below[i] += np.int16(a[i] < k) + np.int16(b[i] < k) + np.int16(c[i] < k) + np.int16(d[i] < k)
        for t in range(fours, times):
            row = keys[t]
            for i in range(n):
                below[i] += np.int16(row[i] < key[i])
        for i in range(n):
            taken = below[i] <= rank[i]
            key[i] = key[i] if taken else np.uint16(key[i] ^ one)
            smaller[i] = below[i] if taken else smaller[i]
    for i in range(n):
        rank[i] -= smaller[i]


@part
def write_digits(wide: Any, least: Any, shift: int, found: Any, digits: Any) -> None:
    """Write 16 bits of each wide key above `least`; `INVALID` where the bits above them are not those `found`."""
    kind = wide.dtype.type
    invalid, down, sixteen = ~kind(0), kind(shift), kind(16)
    for t in range(wide.shape[0]):
        row, out = wide[t], digits[t]
        for i in range(found.size):
            key = kind(row[i] - least[i]) >> down
            same = (row[i] != invalid) & ((key >> sixteen) == found[i])
            out[i] = np.uint16(key) if same else np.uint16(INVALID)


@part
def select_wide(wide: Any, rank: Any, key: Any, digits: Any) -> None:
    """Do as `select` for ``wide (t, n)`` uint32 or uint64; ``digits (t, n)`` uint16 is scratch."""
    # Sixteen bits at a time from the highest. Only as many bits as the keys of a pixel span cost a pass each:
    # observations of one place share most of theirs.
    kind, n = wide.dtype.type, key.size
    zero, one = kind(0), kind(1)
    least, most, found = np.full(n, ~zero), np.zeros(n, wide.dtype), np.zeros(n, wide.dtype)
    digit = np.empty(n, np.uint16)
    for t in range(wide.shape[0]):
        row = wide[t]
        for i in range(n):
            least[i] = min(least[i], row[i])
            most[i] = max(most[i], kind(row[i] + one))  # the key that is not valid becomes 0
    span = one
    for i in range(n):
        highest = max(most[i], one) - one
        least[i] = min(least[i], highest)  # no valid observation: 0
        span |= kind(highest - least[i])
    bits = 0
    while span > zero:
        span >>= one
        bits += 1
    for stage in range((bits - 1) // 16, -1, -1):
        if stage == 0:  # constant shifts vectorise in the keys' own width
            write_digits(wide, least, 0, found, digits)
        elif stage == 1:
            write_digits(wide, least, 16, found, digits)
        else:
            write_digits(wide, least, 16 * stage, found, digits)
        select(digits, min(bits - 16 * stage, 16), rank, digit)
        for i in range(n):
            found[i] = (found[i] << kind(16)) | kind(digit[i])
    for i in range(n):
        key[i] = least[i] + found[i]


@part
def above(value: Any, key: Any, otherwise: Any) -> Any:
    return value if value > key else otherwise


@part
def next_key(keys: Any, key: Any, left: Any, following: Any) -> None:
    """Find the key that follows each pixel's `key`, the `left`-th of those equal to it; all bits set if none does."""
    times, n, none = keys.shape[0], key.size, ~keys.dtype.type(0)
    equal = np.zeros(n, np.int16)
    following[:] = none
    fours = times - times % 4
    for t in range(0, fours, 4):
        a, b, c, d = keys[t], keys[t + 1], keys[t + 2], keys[t + 3]
        for i in range(n):
            k = key[i]
            equal[i] += np.int16(a[i] == k) + np.int16(b[i] == k) + np.int16(c[i] == k) + np.int16(d[i] == k)
            first, second = (
                min(above(a[i], k, none), above(b[i], k, none)),
                min(above(c[i], k, none), above(d[i], k, none)),
            )
            following[i] = min(following[i], first, second)
    for t in range(fours, times):
        row = keys[t]
        for i in range(n):
            equal[i] += np.int16(row[i] == key[i])
            following[i] = min(following[i], above(row[i], key[i], none))
    for i in range(n):
        following[i] = key[i] if left[i] + 1 < equal[i] else following[i]


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
