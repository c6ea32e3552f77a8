"""How kernels are compiled: by Numba, on their first call, without the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["kernel"]

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile `function` on its first call for each set of types; it runs without the interpreter lock."""
    return cast("F", njit(nogil=True, error_model="numpy")(function))
