"""The registry of reducers, and `reduce_block`: observations of a window in, its composite out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s2composite.errors import ParameterError
from s2composite.pixels import picking, spectral, statistics
from s2composite.pixels.kernels.block import Source
from s2composite.pixels.masks import limits_of
from s2composite.pixels.recipe import Call, Layer, Output, Recipe, Reducer

__all__ = [
    "Layer",
    "Output",
    "Recipe",
    "Reducer",
    "reduce_block",
    "reducer_names",
    "resolve_reducer",
    "scene_shares",
]

SLAB_BYTES = 16 << 20
"""Memory for the copy of a piece of a window whose layout no kernel reads."""

_REGISTRY: dict[str, Callable[..., Reducer]] = {
    "geomedian": spectral.geomedian,
    "luminance_median": picking.luminance_median,
    "max": statistics.maximum,
    "mean": statistics.mean,
    "median": statistics.median,
    "min": statistics.minimum,
    "percentile": statistics.percentile,
    "rank": picking.rank,
    "std": statistics.standard_deviation,
    "trimmed_mean": statistics.trimmed_mean,
}


def reducer_names() -> tuple[str, ...]:
    """Return the names that `resolve_reducer` knows, sorted."""
    return tuple(sorted(_REGISTRY))


def resolve_reducer(reducer: str | Reducer, **params: Any) -> Reducer:
    """Return a reducer by name, with its parameters.

    Parameters
    ----------
    reducer
        A name of the registry, or a reducer, which is returned as it is.
    **params
        Parameters of the reducer of that name.

    Raises
    ------
    ParameterError
        The name is unknown, or a parameter is unknown or has a value that makes no sense.

    Examples
    --------
    >>> resolve_reducer("rank", key="B04", quantile=0.25).needs_bands
    ('B04',)
    """
    if isinstance(reducer, Reducer):
        if params:
            raise ParameterError(f"reducer {reducer.name!r} has its parameters already; {sorted(params)} came on top")
        return reducer
    factory = _REGISTRY.get(reducer)
    if factory is None:
        raise ParameterError(f"unknown reducer {reducer!r}; there are {', '.join(reducer_names())}")
    known = list(inspect.signature(factory).parameters)
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise ParameterError(f"reducer {reducer!r} has no parameter {unknown[0]!r}; it has {known or 'none'}")
    return factory(**params)


def reduce_block(
    pixels: NDArray[Any],
    recipe: Recipe,
    *,
    valid: NDArray[np.bool_] | None = None,
    scenes: ArrayLike | None = None,
    inner: tuple[slice, slice] | None = None,
) -> dict[str, NDArray[Any]]:
    """Reduce the observations of one window.

    Parameters
    ----------
    pixels
        ``(t, b, y, x)`` of uint8, uint16, int16, float32 or float64. C-contiguous, or a view of a C-contiguous
        ``(t, y, x, b)`` array: read where it lies. Other layouts are copied in small pieces.
    recipe
        What to make of them.
    valid
        ``(t, y, x)``: False where a mask forbids an observation; combined with the recipe's own rules.
    scenes
        ``(k,)``: indices of the scenes that take part, in the order that settles ties. Default: all.
    inner
        The window's slices of y and x, where `pixels` were read with ``recipe.halo`` pixels more around it.

    Returns
    -------
    dict
        An array for each of ``recipe.layers(...)``, in that order: ``(b, y, x)`` or ``(y, x)``, C-contiguous.
        ``source`` counts in the scenes of `pixels`, whatever `scenes` says.

    Raises
    ------
    ParameterError, BandError
        The recipe does not fit the pixels; see `Recipe.layers`.

    Notes
    -----
    Single-threaded, without the interpreter lock, without state. A pixel's result depends on nothing but its own
    observations. The first call for each type of pixels compiles its kernel.

    Examples
    --------
    >>> pixels = np.array([30, 0, 10, 20], np.uint8).reshape(4, 1, 1, 1)
    >>> result = reduce_block(pixels, Recipe((resolve_reducer("luminance_median"),)))
    >>> {name: array.ravel().tolist() for name, array in result.items()}
    {'composite': [20], 'count': [3], 'source': [3]}
    """
    if pixels.ndim != 4:
        raise ParameterError(f"pixels have {pixels.ndim} dimensions; (time, band, y, x) are needed")
    if inner is not None:
        pixels = pixels[:, :, inner[0], inner[1]]
    dtype = pixels.dtype.newbyteorder("=")
    layers = recipe.layers(dtype, pixels.shape[0])
    chosen = _chosen(scenes, pixels.shape[0])
    usable = _usable(valid, pixels)
    low, high, dropped = limits_of(recipe.rules, dtype, pixels.shape[1], recipe.nodata)
    limits = (low, high, dropped, bool((low == low[:1]).all() and (high == high[:1]).all() and not dropped.size))
    parts = []
    for rows, values, interleaved in _slabs(pixels):
        mask = usable if usable.size == 0 else np.ascontiguousarray(usable[:, rows])
        shape = pixels[0, 0, rows].shape
        source = Source(values, pixels.shape[1], shape[0] * shape[1], interleaved, chosen, _flat(mask), *limits)
        parts.append(_reduce_slab(recipe, layers, source, shape))
    return {layer.name: np.concatenate([part[layer.name] for part in parts], axis=-2) for layer in layers}


def scene_shares(source: NDArray[np.int16], n_times: int) -> NDArray[np.float64]:
    """Return the share of pixels each scene contributed, from a ``source`` layer: ``(n_times,)``, sum at most 1."""
    picked = source[source >= 0].astype(np.intp)
    return np.bincount(picked, minlength=n_times) / max(source.size, 1)


def _reduce_slab(
    recipe: Recipe, layers: tuple[Layer, ...], source: Source, shape: tuple[int, ...]
) -> dict[str, NDArray[Any]]:
    """Run every reducer on one contiguous run of pixels, of `shape` ``(y, x)``."""
    arrays = [
        np.full((source.bands, source.pixels)[-len(layer.dims) + 1 :], layer.nodata or 0, layer.dtype)
        for layer in layers
    ]
    rest = iter(arrays)
    for reducer in recipe.reducers:
        reducer.run(Call(reducer, recipe, source, tuple(next(rest) for _ in reducer.outputs), arrays[-1]))
    return {layer.name: array.reshape(*array.shape[:-1], *shape) for layer, array in zip(layers, arrays, strict=True)}


def _chosen(scenes: ArrayLike | None, n_times: int) -> NDArray[np.int64]:
    """Return the indices of the scenes that take part."""
    if scenes is None:
        return np.arange(n_times)
    chosen = np.atleast_1d(np.asarray(scenes))
    if chosen.ndim != 1 or (
        chosen.size and (chosen.dtype.kind not in "ui" or chosen.min() < 0 or chosen.max() >= n_times)
    ):
        raise ParameterError(f"scenes={scenes!r}: give indices of the {n_times} scenes, 0 to {n_times - 1}")
    return chosen.astype(np.int64)


def _usable(valid: NDArray[np.bool_] | None, pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask of usable observations, ``(t, y, x)``; empty if there is none."""
    if valid is None:
        return np.empty((0, 0, 0), bool)
    times, _, height, width = pixels.shape
    if valid.dtype != np.bool_ or valid.shape != (times, height, width):
        raise ParameterError(f"valid is {valid.dtype} {valid.shape}; bool {(times, height, width)} fits the pixels")
    return valid


def _slabs(pixels: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any], bool]]:
    """Yield slices of rows, their values as flat memory, and whether its pixels are interleaved."""
    times, bands, height, width = pixels.shape
    swapped = pixels.transpose(0, 2, 3, 1)
    native = pixels.dtype.isnative and pixels.flags.aligned
    for array, interleaved in ((pixels, False), (swapped, True)):
        if native and array.flags.c_contiguous:
            yield slice(None), _flat(array), interleaved
            return
    interleaved = abs(pixels.strides[1]) < abs(pixels.strides[3])
    array = swapped if interleaved else pixels
    step = max(SLAB_BYTES // max(times * bands * width * pixels.itemsize, 1), 1)
    for top in range(0, max(height, 1), step):
        rows = slice(top, top + step)
        piece = array[:, rows] if interleaved else array[:, :, rows]
        yield rows, _flat(np.ascontiguousarray(piece, pixels.dtype.newbyteorder("="))), interleaved


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """Return contiguous memory as one read-only dimension: writable and read-only arrays would compile twice."""
    flat = array.reshape(-1)
    flat.flags.writeable = False
    return flat
