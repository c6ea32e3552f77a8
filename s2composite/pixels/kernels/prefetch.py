"""Prefetching memory, for which Numba has no function."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["LINE_BYTES", "emit_prefetch", "prefetch"]

LINE_BYTES = 64
"""A cache line of nearly every processor; where it is longer, some calls are redundant."""

_READ, _SECOND_LEVEL, _DATA = 0, 2, 1  # what LLVM's prefetch wants to know


def emit_prefetch(builder: Any, pointer: Any) -> None:
    """Write the instruction that brings the cache line of a pointer into the second-level cache."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    builder.call(function, [builder.bitcast(pointer, byte), number(_READ), number(_SECOND_LEVEL), number(_DATA)])


@intrinsic  # type: ignore[untyped-decorator]  # numba publishes no types
def prefetch(_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001 - its type is always the same
    """Bring the cache line of ``array[index]`` into the second-level cache; the index may lie outside the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        emit_prefetch(builder, builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
