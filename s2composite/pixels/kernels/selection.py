"""The search for the k-th smallest key in vector registers, which cannot be written in Numba's Python.

Compiled from loops, counters go to memory and back for every few keys, and the keys of a block fill the second-
level
cache. Here `LANES` pixels are searched through at once: counters, candidates and results stay in registers, the
keys of
these pixels in the first-level cache (a hundred thousand million keys a second on one core, twice as many as from
loops). LLVM makes of it whatever vectors the processor has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from s2composite.pixels.kernels.tiles import LINE_BYTES, Source, emit_prefetch, part

__all__ = ["FIRST", "LANES", "LAST", "NO_RANK", "pick", "search", "select", "select_wide"]

LANES = 64
"""Pixels that are searched through at once."""

_KEY = ir.IntType(16)
_KEY_BYTES = 2
_LOWEST = -32768


@intrinsic  # type: ignore[untyped-decorator]  # numba publishes no types
def search(  # the parameters are types here; two have the same always
    _context: Any,
    keys: Any,
    first: Any,  # noqa: ARG001 - an int
    bits: Any,  # noqa: ARG001 - an int
    rank: Any,
    key: Any,
    values: Any,
    scenes: Any,
    ahead: Any,
) -> Any:
    """Find the keys at the ranks of `LANES` pixels, bit by bit.

    Parameters
    ----------
    keys
        ``(t, n)`` int16, C-contiguous.
    first
        int: the first of the pixels.
    bits
        int: how many of the last bits vary; those above are those of the lowest key.
    rank
        ``(LANES,)`` int16; on return, the rank among the keys equal to the one found.
    key
        ``(LANES,)`` int16, out: the keys found.
    values, scenes, ahead
        Memory to fetch meanwhile. ``ahead (bits,)`` int64 has for each bit an index that is added to those of
        ``scenes (t,)`` int64: these values' cache lines are fetched. Negative: none.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def array(k: int) -> Any:
            return context.make_array(signature.args[k])(context, builder, arguments[k])

        vector, counter = ir.VectorType(_KEY, LANES), arguments[2].type
        table, flat, starts, plan = array(0), array(5), array(6), array(7)
        (times, _), (pitch, _) = (cgutils.unpack_tuple(builder, pair) for pair in (table.shape, table.strides))
        rows = builder.bitcast(builder.gep(table.data, [arguments[1]]), ir.IntType(8).as_pointer())
        rank_at, key_at = (builder.bitcast(array(k).data, vector.as_pointer()) for k in (3, 4))
        wanted = builder.load(rank_at, align=_KEY_BYTES)
        lowest = ir.Constant(vector, [_LOWEST] * LANES)
        found, smaller = (cgutils.alloca_once_value(builder, value) for value in (lowest, ir.Constant(vector, None)))
        below = cgutils.alloca_once(builder, vector)

        def count(t: Any, candidate: Any) -> None:
            here = builder.gep(rows, [builder.mul(t, pitch)])
            seen = builder.load(builder.bitcast(here, vector.as_pointer()), align=_KEY_BYTES)
            less = builder.sext(builder.icmp_signed("<", seen, candidate), vector)  # -1 or 0
            builder.store(builder.sub(builder.load(below), less), below)

        with cgutils.for_range(builder, arguments[2]) as bit:
            place = builder.sub(builder.sub(arguments[2], bit.index), ir.Constant(counter, 1))
            one = builder.trunc(builder.shl(ir.Constant(counter, 1), place), _KEY)
            ones = builder.shuffle_vector(
                builder.insert_element(ir.Constant(vector, ir.Undefined), one, ir.Constant(ir.IntType(32), 0)),
                ir.Constant(vector, ir.Undefined),
                ir.Constant(ir.VectorType(ir.IntType(32), LANES), None),
            )
            candidate = builder.add(builder.load(found), ones)
            builder.store(ir.Constant(vector, None), below)
            line = builder.load(builder.gep(plan.data, [bit.index]))
            with builder.if_else(builder.icmp_signed("<", line, ir.Constant(line.type, 0))) as (alone, fetching):
                with alone, cgutils.for_range(builder, times) as loop:
                    count(loop.index, candidate)
                with fetching, cgutils.for_range(builder, times) as loop:
                    start = builder.load(builder.gep(starts.data, [loop.index]))
                    emit_prefetch(builder, builder.gep(flat.data, [builder.add(start, line)]))
                    count(loop.index, candidate)
            counted = builder.load(below)
            taken = builder.icmp_signed("<=", counted, wanted)
            builder.store(builder.select(taken, candidate, builder.load(found)), found)
            builder.store(builder.select(taken, counted, builder.load(smaller)), smaller)
        builder.store(builder.load(found), key_at, align=_KEY_BYTES)
        builder.store(builder.sub(wanted, builder.load(smaller)), rank_at, align=_KEY_BYTES)
        return context.get_dummy_value()

    return types.void(keys, types.intp, types.intp, rank, key, values, scenes, ahead), generate


FIRST = -32768
"""The smallest key there is: keys count from here."""

LAST = 32767
"""The largest key there is, and that of an observation which is not valid."""

NO_RANK = 32767
"""The rank of a pixel that is to get no observation: there are never as many."""


@part
def plan_fetch(source: Source, start: int, n: int, line: int, ahead: Any) -> None:
    """Say which cache lines to fetch of `n` pixels from pixel `start` on, the same of each scene.

    ``ahead (m,)`` int64, out: index in a scene of the first value of lines number `line` and after it; -1: no more.
    """
    step = LINE_BYTES // source.values.itemsize
    runs, run = (1, n * source.bands) if source.interleaved else (source.bands, n)
    lines = (run + step - 1) // step if start + n <= source.pixels else 0
    for i in range(ahead.size):
        k, at = (line + i) // max(lines, 1), (line + i) % max(lines, 1)
        begin = start * source.bands if source.interleaved else k * source.plane + start
        ahead[i] = begin + at * step if k < runs and lines > 0 else -1


@part
def select(keys: Any, bits: int, rank: Any, key: Any, source: Source, start: int, line: int) -> int:
    """Find the key at `rank` (0: smallest) for each pixel.

    Parameters
    ----------
    keys
        ``(t, n)`` int16, `FIRST` plus less than ``2 ** bits``, or `LAST`; `n` is a multiple of `LANES`.
    bits
        1 to 16: how many bits the keys have.
    rank
        ``(n,)`` int16; on return, the rank among the keys equal to the one found.
    key
        ``(n,)`` int16, out: the key found; anything where there are not more than `rank` keys.
    source, start, line
        Where the pixels of the next block begin, and the first cache line of them that has not been fetched yet: the
        search leaves the memory idle, so they are fetched meanwhile, a line of each scene for each bit.

    Returns
    -------
    line
        The first cache line that has still not been fetched.
    """
    n = key.size
    starts, ahead = source.scenes * (source.bands * source.plane), np.empty(n // LANES * bits, np.int64)
    plan_fetch(source, start, n, line, ahead)
    for first in range(0, n, LANES):
        at, last = first // LANES * bits, first + LANES
        search(keys, first, bits, rank[first:last], key[first:last], source.values, starts, ahead[at : at + bits])
    return line + ahead.size


@part
def key_range(wide: Any, least: Any, most: Any) -> None:
    """Write the smallest and the largest valid key of each pixel; 0 twice where there is no valid one."""
    kind = wide.dtype.type
    zero, one = kind(0), kind(1)
    for i in range(least.size):
        least[i] = ~zero
        most[i] = zero
    for t in range(wide.shape[0]):
        row = wide[t]
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
def digits(wide: Any, least: Any, shift: int, found: Any, keys: Any) -> None:
    """Write 16 bits of each wide key, counted from `least`; `LAST` where it has other bits above than those `found`."""
    kind = wide.dtype.type
    none, down, half = ~kind(0), kind(shift), kind(16)
    for t in range(wide.shape[0]):
        row, out = wide[t], keys[t]
        for i in range(found.size):
            key = kind(row[i] - least[i]) >> down
            same = (row[i] != none) & ((key >> half) == found[i])
            out[i] = np.int16(np.int32(np.uint16(key)) + FIRST) if same else np.int16(LAST)


@part
def select_wide(wide: Any, rank: Any, key: Any, keys: Any, source: Source, start: int) -> None:
    """Find the wide key at `rank` for each pixel, sixteen bits at a time from the highest.

    Only as many bits as the keys of a pixel span cost a pass each: observations of one place share most of theirs.

    Parameters
    ----------
    wide
        ``(t, n)`` uint32 or uint64; all bits set where an observation is not valid.
    rank
        ``(n,)`` int16; on return, the rank among the keys equal to the one found.
    key
        ``(n,)``, type of `wide`, out: the key found; anything where there are not more than `rank` keys.
    keys
        ``(t, n)`` int16: scratch.
    source, start
        Where the pixels of the next block begin.
    """
    kind = wide.dtype.type
    least, found, digit = np.empty_like(key), np.zeros_like(key), np.empty(rank.size, np.int16)
    line = 0
    key_range(wide, least, key)
    bits = bits_of_range(least, key)
    for stage in range((bits - 1) // 16, -1, -1):
        if stage == 0:  # constant shifts vectorise in the keys' own width
            digits(wide, least, 0, found, keys)
        elif stage == 1:
            digits(wide, least, 16, found, keys)
        else:
            digits(wide, least, 16 * stage, found, keys)
        line = select(keys, min(bits - 16 * stage, 16), rank, digit, source, start, line)
        for i in range(key.size):
            found[i] = (found[i] << kind(16)) | kind(np.uint16(np.int32(digit[i]) - FIRST))
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
