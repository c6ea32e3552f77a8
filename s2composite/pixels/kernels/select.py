"""The k-th smallest key of every pixel of a block, bit by bit.

The wanted key is built from its highest bit down: a bit is set if no more than `rank` keys lie below the key with it
set. Each step counts "keys below the candidate" for all pixels of the block at once: a compare and an add over
contiguous pixels, with no branch and no exchange, so it runs at the speed of the vector units (4-5 thousand million
ten-bit keys a second on one core, where a sort for each pixel does 20 million). Equal keys keep scene order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.compiled import part

__all__ = ["LAST", "pick", "select", "select_wide"]

LAST = 0xFFFF
"""The key of an observation that is not valid: sorts behind, or equal to, all others."""


@part
def count_below(keys: Any, candidate: Any, below: Any) -> None:
    """Count the keys below each pixel's candidate: ``keys (t, n)``, the rest ``(n,)``, all uint16."""
    below[:] = 0
    scenes = keys.shape[0]
    eights = scenes - scenes % 8  # eight scenes a step: counters are loaded and stored once for eight keys
    for t in range(0, eights, 8):
        k0, k1, k2, k3 = keys[t], keys[t + 1], keys[t + 2], keys[t + 3]
        k4, k5, k6, k7 = keys[t + 4], keys[t + 5], keys[t + 6], keys[t + 7]
        for i in range(below.size):
            c = candidate[i]
            below[i] += (
                np.uint16(k0[i] < c)
                + np.uint16(k1[i] < c)
                + np.uint16(k2[i] < c)
                + np.uint16(k3[i] < c)
                + np.uint16(k4[i] < c)
                + np.uint16(k5[i] < c)
                + np.uint16(k6[i] < c)
                + np.uint16(k7[i] < c)
            )
    for t in range(eights, scenes):
        k = keys[t]
        for i in range(below.size):
            below[i] += np.uint16(k[i] < candidate[i])


@part
def select(keys: Any, bits: int, rank: Any, key: Any, below: Any) -> None:
    """Find the key at `rank` (0: smallest) for each pixel.

    Parameters
    ----------
    keys
        ``(t, n)`` uint16, each below ``2 ** bits`` or `LAST`.
    bits
        1 to 16: how many bits the keys have.
    rank
        ``(n,)`` uint16; on return, the rank among the keys equal to the one found.
    key
        ``(n,)`` uint16, out: the key found; anything where there are not more than `rank` keys.
    below
        ``(n,)`` uint16: scratch.
    """
    smaller = np.zeros(key.size, np.uint16)
    key[:] = 0
    for bit in range(bits - 1, -1, -1):
        one = np.uint16(1 << bit)
        for i in range(key.size):
            key[i] |= one
        count_below(keys, key, below)
        for i in range(key.size):
            taken = below[i] <= rank[i]
            key[i] = key[i] if taken else np.uint16(key[i] ^ one)
            smaller[i] = below[i] if taken else smaller[i]
    for i in range(key.size):
        rank[i] -= smaller[i]


@part
def key_range(wide: Any, valid: Any, least: Any, most: Any) -> None:
    """Write the smallest and the largest valid key of each pixel; 0 twice where there is no valid one."""
    for i in range(least.size):
        least[i] = ~np.uint64(0)
        most[i] = 0
    for t in range(wide.shape[0]):
        row, ok = wide[t], valid[t]
        for i in range(least.size):
            least[i] = row[i] if (ok[i] != 0) & (row[i] < least[i]) else least[i]
            most[i] = row[i] if (ok[i] != 0) & (row[i] > most[i]) else most[i]
    for i in range(least.size):
        least[i] = min(least[i], most[i])


@part
def digits(wide: Any, valid: Any, least: Any, shift: int, found: Any, keys: Any) -> None:
    """Write 16 bits of each wide key, counted from `least`; `LAST` where the bits above are not those `found`."""
    down, mask = np.uint64(shift), np.uint64(0xFFFF)
    for t in range(wide.shape[0]):
        row, ok, out = wide[t], valid[t], keys[t]
        for i in range(row.size):
            key = np.uint64(row[i] - least[i]) >> down
            same = (ok[i] != 0) & (key >> np.uint64(16) == found[i])
            out[i] = np.uint16(key & mask) if same else np.uint16(0xFFFF)


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
def select_wide(wide: Any, valid: Any, rank: Any, key: Any, keys: Any) -> None:
    """Find the wide key at `rank` of each pixel's valid observations, sixteen bits at a time from the highest.

    Only as many bits as the keys of a pixel span cost a pass each: observations of one place share most of theirs.

    Parameters
    ----------
    wide
        ``(t, n)`` uint32 or uint64.
    valid
        ``(t, n)`` uint8.
    rank
        ``(n,)`` uint16, below the number of valid observations; on return, the rank among those of equal key.
    key
        ``(n,)``, type of `wide`, out: the key found.
    keys
        ``(t, n)`` uint16: scratch.
    """
    least, most = np.empty_like(key), np.empty_like(key)
    part, below = np.empty(rank.size, np.uint16), np.empty(rank.size, np.uint16)
    found = np.zeros(rank.size, np.uint64)
    key_range(wide, valid, least, most)
    bits = bits_of_range(least, most)
    for stage in range((bits - 1) // 16, -1, -1):
        digits(wide, valid, least, 16 * stage, found, keys)
        select(keys, min(bits - 16 * stage, 16), rank, part, below)
        for i in range(key.size):
            found[i] = (found[i] << np.uint64(16)) | np.uint64(part[i])
    for i in range(key.size):
        key[i] = least[i] + found[i]


@part
def pick(keys: Any, valid: Any, key: Any, left: Any, index: Any) -> None:
    """Find the observation with each pixel's `key`: the `left`-th of them in scene order, -1 where there is none."""
    index[:] = -1
    for t in range(keys.shape[0]):
        row, ok = keys[t], valid[t]
        for i in range(index.size):
            same = (row[i] == key[i]) & (ok[i] != 0)
            index[i] = np.int16(t) if same & (left[i] == 0) else index[i]
            left[i] -= np.uint16(same)
