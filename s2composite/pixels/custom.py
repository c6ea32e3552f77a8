"""Custom reducers: a plain function that Numba can compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

from s2composite.pixels.kernels.block import count_valid, load
from s2composite.pixels.kernels.compiled import kernel_in_memory
from s2composite.pixels.recipe import Call, Output, Reducer, block_width
from s2composite.pixels.statistics import put_rounded

__all__ = ["kernel_reducer"]


def kernel_reducer(
    function: Callable[..., None], *, name: str | None = None, dtype: str | None = None, long_name: str = ""
) -> Reducer:
    """Make a reducer from a function.

    Parameters
    ----------
    function
        ``function(block, valid, out)``: `block` ``(t, b, n)`` holds the observations of `n` pixels in the cube's dtype,
        `valid` ``(t, n)`` uint8 is 1 where an observation may be used, and `out` ``(b, n)`` float64 takes the result.
        Numba compiles it, unless it is compiled already. The result of a pixel must depend on that pixel alone. Loops
        over pixels should be innermost. Results of pixels with too few valid observations are ignored.
    name
        Name of the reducer; default: that of the function.
    dtype
        Type of the result; None: that of the cube, rounded for integers.
    long_name
        What the result is, in words.

    Returns
    -------
    Reducer
        For `composite`, or `register_reducer`.

    Examples
    --------
    >>> def last_valid(block, valid, out):
    ...     for t in range(block.shape[0]):
    ...         for b in range(block.shape[1]):
    ...             for i in range(block.shape[2]):
    ...                 if valid[t, i]:
    ...                     out[b, i] = block[t, b, i]
    >>> str(kernel_reducer(last_valid))
    'last_valid'
    """
    title = str(name or getattr(function, "__name__", "custom"))
    if not numba.extending.is_jitted(function):  # here, so that all tasks of a worker share it
        function = numba.njit(nogil=True, error_model="numpy")(function)
    return Reducer(title, run_custom, (Output("", long_name or title, dtype=dtype),), setting=function)


def run_custom(call: Call) -> None:
    """Run a reducer whose setting is a function."""
    (out,) = call.results
    values = np.zeros(out.shape)
    width = block_width(call.source, 1)
    _driver(call.reducer.setting)(call.source, width, values, call.count)
    put_rounded(values, call.count >= call.recipe.min_count, out)


@cache
def _driver(function: Callable[..., None]) -> Callable[..., None]:
    """Return the compiled loop over blocks that calls `function`."""

    @kernel_in_memory
    def drive(source: Any, width: int, out: Any, count: Any) -> None:
        block = np.zeros((source.scenes.size, source.bands, width), source.values.dtype)
        valid, counts = np.empty((source.scenes.size, width), np.uint8), np.empty(width, np.uint16)
        result = np.empty((source.bands, width), np.float64)
        for start in range(0, source.pixels, width):
            n = min(width, source.pixels - start)
            load(source, start, n, block, valid)
            count_valid(valid, n, counts, count[start : start + n])
            result[:] = 0
            function(block, valid, result)
            for b in range(source.bands):
                for i in range(n):
                    out[b, start + i] = result[b, i]

    return drive
