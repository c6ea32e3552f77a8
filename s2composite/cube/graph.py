"""Inspect the graph of a Dask array: which scenes its values are read from, and which operations changed them.

A node that holds a `StackHandle`, or the function `take_layer`, identifies the source. The names that Dask gives to
the layers of its functions identify the operations.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import dask.array as da
import numpy as np
from dask.blockwise import Blockwise, blockwise_token
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from numpy.typing import NDArray

from s2composite.reading.stack import Stack

__all__ = [
    "Chunks",
    "Origin",
    "StackHandle",
    "handle_in",
    "nodata_after",
    "origin_of_layer",
    "reads_pixels",
    "take_layer",
    "taken_layer",
]

Chunks = tuple[tuple[int, ...], tuple[int, ...]]
"""Heights of the rows of windows, widths of their columns."""


@dataclass(frozen=True, slots=True, eq=False)
class StackHandle:
    """What the tasks of a cube read: one node of its graph, which is sent once to each worker."""

    stack: Stack
    windows: Chunks

    def __dask_tokenize__(self) -> Any:
        return self.stack.token, self.windows


_Handle = TypeVar("_Handle")


def handle_in(layer: Any, kind: type[_Handle]) -> _Handle | None:
    """Return the value of a type that a graph layer passes to the tasks of others, or None."""
    if not isinstance(layer, MaterializedLayer) or len(layer) != 1:
        return None
    (node,) = layer.values()
    value = getattr(node, "value", None)
    return value if isinstance(value, kind) else None


def take_layer(results: dict[str, NDArray[Any]], layer: str) -> NDArray[Any]:
    """Return one layer of a window's results; a graph layer that calls this belongs to a composite."""
    return results[layer]


def taken_layer(name: str, graph: HighLevelGraph) -> str | None:
    """Return which layer of a composite a graph layer is, or None."""
    layer = graph.layers.get(name)
    taken = isinstance(layer, Blockwise) and getattr(layer.task, "func", None) is take_layer
    return str(layer.task.kwargs["layer"]) if taken else None


Origin = Literal["stored", "cast", "computed", "flags", "unknown"]
"""Values as declared; cast or masked; calculated; results of comparisons; unknown."""

_COMPARED = re.compile(
    r"(eq|ne|lt|le|gt|ge|and_|or_|xor|inv|invert|any|all|is\w+|not\w+|logical_\w+|bitwise_\w+)(-|_\d)"
)
_MOVED = re.compile(
    r"(getitem|astype|transpose|rechunk|concatenate|stack|reshape|broadcast_to|roll|copy|squeeze|expand_dims|where"
    r"|(chunk_)?(max|min))-"
)
_SELECTED = re.compile(r"(getitem|transpose|rechunk|reshape|broadcast_to|copy|squeeze|expand_dims)-")
_OPENED = re.compile(r"(open_\w+|fetch_raster_window)-")
_OF_EACH_PIXEL = frozenset(
    {name for name in dir(operator) if not name.startswith("_")}
    | {name for name in dir(np) if isinstance(getattr(np, name), np.ufunc)}
    | {"astype", "clip", "round", "where"}
) - {"getitem", "setitem"}
_CALCULATED = _OF_EACH_PIXEL | {
    *("mean", "median", "sum", "std", "var", "quantile", "cumsum", "cumprod", "setitem", "lambda")
}


def origin_of_layer(name: str, graph: HighLevelGraph, *, opened: bool, declared: str = "") -> Origin:
    """Return whether the layers of a graph up to `name` only move the values that were read, or calculate.

    `opened`: whether arrays that xarray opened are raw, not derived and then written. `declared` is a layer with a
    known nodata value.
    """
    todo, seen, kinds = [name], {name}, set()
    while todo:
        layer = todo.pop()
        below = graph.dependencies.get(layer, set())
        if layer == declared or _is_read(layer, graph) or (opened and _OPENED.match(layer)):
            kinds.add("stored")
        elif _COMPARED.match(layer):
            kinds.add("compared")
        elif _MOVED.match(layer):
            todo += below - seen
            seen |= below
            if not below:
                kinds.add("unknown")  # held by workers
        else:
            kinds.add("computed" if _function(layer) in _CALCULATED or "aggregate" in layer else "unknown")
    if kinds == {"compared"}:
        return "flags"
    if "computed" in kinds:
        return "computed"
    return "stored" if "stored" in kinds else "unknown"


def reads_pixels(graph: HighLevelGraph) -> bool:
    """Return whether a graph reads data opened by `open_cube` or another library, or makes a composite."""
    return any(name.startswith("open-") or _OPENED.match(name) or _is_read(name, graph) for name in graph.layers)


def _is_read(name: str, graph: HighLevelGraph) -> bool:
    """Return whether a layer holds data read by odc-stac or `open_cube`, or belongs to a composite."""
    if f"open-{name}" in graph.layers or taken_layer(name, graph) is not None:
        return True
    return any(handle_in(graph.layers.get(below), StackHandle) for below in graph.dependencies.get(name, ()))


def _function(layer: str) -> str:
    """Return Dask's name for the function of a layer.

    >>> _function("add-0123abcd"), _function("sqrt_0-0123abcd")
    ('add', 'sqrt')
    """
    return re.split(r"-|_\d", layer, maxsplit=1)[0]


_TYPES = tuple(map(np.dtype, ("uint8", "int8", "uint16", "int16", "float32")))


def nodata_after(data: da.Array, nodata: float, *, raw: bool) -> tuple[float, bool] | None:
    """Return the number that a nodata value maps to in a lazy array, and whether no other value maps to it.

    None: the pixels were combined with other data. `raw`: whether arrays that xarray opened are as first written. The
    operations are applied to all values of the source dtype. Only a stack records this dtype; for other arrays, all
    possible dtypes must agree. If several bands or scenes were combined, other values may always map to it.
    """
    graph = data.dask
    handles = [handle_in(layer, StackHandle) for layer in graph.layers.values()]
    became: list[tuple[float, bool]] = []
    for dtype in {np.dtype(handle.stack.dtype) for handle in handles if handle} or _TYPES:
        ends = np.iinfo(dtype if dtype.kind in "iu" and dtype.itemsize <= 2 else np.int16)
        if not ends.min <= nodata <= ends.max:
            continue
        values = np.arange(ends.min, ends.max + 1).astype(dtype)
        starts: dict[tuple[str, ...], NDArray[Any]] = {}
        try:
            with np.errstate(all="ignore"):
                results = _calculated((data.name,), graph, values, starts)
        except (OverflowError, TypeError):
            continue  # the operations do not support this dtype
        if any(origin_of_layer(path[-1], graph, opened=True) != "stored" for path in starts):
            return None
        known = raw or all(origin_of_layer(path[-1], graph, opened=False) == "stored" for path in starts)
        result = results[values == nodata]
        if result.size and results.dtype == data.dtype:
            alone = known and len(starts) == 1 and (results == result).sum() == 1
            became.append((float(result[0]), bool(np.isnan(result[0]) or alone)))
    if not became:
        return None
    return became[0][0], all(unique for _, unique in became) and len({str(value) for value, _ in became}) == 1


def _calculated(
    path: tuple[str, ...], graph: HighLevelGraph, values: NDArray[Any], starts: dict[tuple[str, ...], NDArray[Any]]
) -> NDArray[Any]:
    """Apply to `values` what the layers of a graph do to each pixel, from the layers where they start.

    `path` is a layer and the selections made from it: other bands of the same layer have other values.
    """
    name = path[-1]
    layer, below = graph.layers[name], graph.dependencies.get(name, set())
    read = _is_read(name, graph)
    if _SELECTED.match(name) and len(below) == 1 and not read:
        return _calculated((*path, *below), graph, values, starts)
    each = isinstance(layer, Blockwise) and _function(name) in _OF_EACH_PIXEL and not _COMPARED.match(name)
    if not each or read:
        return starts.setdefault(path, values)
    arguments = {
        blockwise_token(i): argument
        if axes is None
        else _calculated((*path[:-1], str(argument)), graph, values, starts)
        for i, (argument, axes) in enumerate(layer.indices)
    }
    return np.broadcast_to(layer.task(arguments), values.shape)
