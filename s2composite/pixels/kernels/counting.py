"""The search for the k-th smallest key in vector registers, which cannot be written in Numba's Python.

Compiled from loops, counters go to memory and back for every few keys, and the keys of a block fill the second-level
cache. Here `LANES` pixels are searched through at once: counters, candidates and results stay in registers, the keys of
these pixels in the first-level cache (a hundred thousand million keys a second on one core, twice as many as from
loops). LLVM makes of it whatever vectors the processor has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from s2composite.pixels.kernels.prefetch import emit_prefetch

__all__ = ["LANES", "search"]

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
