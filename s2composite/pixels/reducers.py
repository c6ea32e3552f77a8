"""Reducers: their registry, custom ones, and `reduce_block`, which reduces the observations of a window."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from s2composite.errors import ParameterError, imported
from s2composite.pixels import select, spectral, statistics
from s2composite.pixels.kernels.compile_cache import kernel_in_memory
from s2composite.pixels.kernels.tiles import Observations, count_valid, load, validity
from s2composite.pixels.masks import Nodata, SwathEdge, limits_of, reach_of
from s2composite.pixels.morphology import dilation, distance_squared
from s2composite.pixels.recipe import MAX_SCENES, Layer, Output, Recipe, Reducer, ReducerCall, Scores, block_width
from s2composite.pixels.statistics import put_rounded

__all__ = [
    "ENTRY_POINTS", "Layer", "Output", "Recipe", "Reducer", "kernel_reducer", "observation_scores", "reduce_block",
    "reducer_names", "register_reducer", "resolve_reducer", "scene_shares", "scores_of_scenes", "usable_observations",
    "valid_observations",
]  # fmt: skip


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


def run_custom(call: ReducerCall) -> None:
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


ENTRY_POINTS = "s2composite.reducers"  # group of entry points in which other packages offer reducers

Maker = Callable[..., Reducer]

_REGISTRY: dict[str, Maker | Reducer] = {
    "best_available_pixel": select.best_available_pixel,
    "closest_to": select.closest_to,
    "earliest": select.earliest,
    "geomedian": spectral.geomedian,
    "latest": select.latest,
    "luminance_median": select.luminance_median,
    "max": statistics.maximum,
    "max_ndvi": select.max_ndvi,
    "mean": statistics.mean,
    "median": statistics.median,
    "medoid": spectral.medoid,
    "min": statistics.minimum,
    "percentile": statistics.percentile,
    "quality_mosaic": select.quality_mosaic,
    "rank": select.rank,
    "std": statistics.standard_deviation,
    "trimmed_mean": statistics.trimmed_mean,
}


def reducer_names() -> tuple[str, ...]:
    """Return the names of the registry and of installed entry points, sorted."""
    return tuple(sorted({*_REGISTRY, *(point.name for point in entry_points(group=ENTRY_POINTS))}))


def register_reducer(name: str, maker: Maker | Reducer) -> None:
    """Register a reducer under a name, in this process.

    Parameters
    ----------
    name
        The name; registering it again replaces the reducer.
    maker
        A reducer, or a function that returns one; its parameters are then those of the name.

    Raises
    ------
    ParameterError
        The name is empty or would be mistaken for an import path.

    Notes
    -----
    Workers need not know the name: a reducer travels with its functions.

    Examples
    --------
    >>> register_reducer("third_quartile", lambda: resolve_reducer("rank", quantile=0.75))
    >>> resolve_reducer("third_quartile").params
    (('key', 'luminance'), ('quantile', 0.75))
    """
    if not name or {".", ":"} & set(name):
        raise ParameterError(f"a reducer cannot be called {name!r}; use letters, digits and underscores")
    _REGISTRY[name] = maker


def resolve_reducer(reducer: str | Reducer, **params: Any) -> Reducer:
    """Return a reducer by name, with its parameters.

    Parameters
    ----------
    reducer
        A name in the registry, or of an entry point in the group ``s2composite.reducers``; the import path of a reducer
        or of a function that returns one, ``"package.module:name"`` or ``"package.module.name"``; or a reducer, which
        is returned unchanged.
    **params
        Parameters of the reducer.

    Returns
    -------
    Reducer
        For `composite`.

    Raises
    ------
    ParameterError
        The name or a parameter is unknown, or a parameter has an invalid value.

    Examples
    --------
    >>> resolve_reducer("rank", key="B04", quantile=0.25).needs_bands
    ('B04',)
    """
    if isinstance(reducer, Reducer):
        return _made(reducer, reducer.name, params)
    given: Any = reducer
    if not isinstance(given, str):
        known, name = reducer_names(), getattr(given, "__name__", "")
        what = f"the function {name}" if callable(given) and hasattr(given, "__name__") else repr(given)
        like = str(name).removeprefix("nan")  # NumPy's functions have names that are reducers'
        if like in known:
            raise ParameterError(f"{what} is no reducer; give its name, {like!r}")
        raise ParameterError(
            f"{what} is no reducer; give one by name ({', '.join(known)}), the path of your own, "
            "'package.module:name', or a Reducer"
        )
    maker = _REGISTRY.get(reducer)
    if maker is None:
        maker = next((point.load() for point in entry_points(group=ENTRY_POINTS, name=reducer)), None)
    if maker is None:
        maker = imported(reducer, f"reducer {reducer!r} cannot be loaded")
    if maker is None:
        raise ParameterError(
            f"unknown reducer {reducer!r}; there are {', '.join(reducer_names())}, or give the path of your own, "
            "as in 'package.module:name'"
        )
    return _made(maker, reducer, params)


def _made(maker: Any, name: str, params: dict[str, Any]) -> Reducer:
    if isinstance(maker, Reducer):
        if params:
            raise ParameterError(f"reducer {name!r} already has its parameters; leave out {sorted(params)}")
        return maker
    if not callable(maker):
        raise ParameterError(f"{name!r} is {maker!r}; give a reducer, or a function that returns one")
    try:
        inspect.signature(maker).bind(**params)
    except TypeError as problem:
        known = list(inspect.signature(maker).parameters)
        for unknown in sorted(set(params) - set(known)):
            raise ParameterError(f"reducer {name!r} has no parameter {unknown!r}; it has {known or 'none'}") from None
        raise ParameterError(f"reducer {name!r}: {problem}; its parameters are {known or 'none'}") from None
    try:
        made = maker(**params)
    except (TypeError, ValueError) as problem:  # a parameter of a type, or a text, that it cannot have
        raise ParameterError(f"reducer {name!r} cannot be made with {params}: {problem}") from problem
    if not isinstance(made, Reducer):
        raise ParameterError(f"{name!r} made {made!r}; it must return a reducer")
    return made


SLAB_BYTES = 16 << 20  # memory for the copy of a piece of a window whose layout no kernel reads

# Pixels that are reduced at once: what reducers calculate on the way, some of it in float64, stays within a few MB
_RUN = 1 << 15


def reduce_block(
    pixels: NDArray[Any],
    recipe: Recipe,
    *,
    valid: NDArray[np.bool_] | None = None,
    scenes: ArrayLike | None = None,
    inner: tuple[slice, slice] | None = None,
    positions: ArrayLike | None = None,
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
        ``(t, y, x)``, as large as `pixels`: False where a mask rule forbids an observation; combined with the recipe's
        own rules on values.
    scenes
        ``(k,)``: indices of the scenes that take part, in the order that settles ties. Default: all. A period uses its
        own scenes among them.
    inner
        Slices of y and x of the window in `pixels`, if these have ``recipe.halo`` more pixels around it.
    positions
        ``(t,)`` ascending: index of each scene of `pixels` among the recipe's, if they are only some of these.

    Returns
    -------
    dict
        An array for each of ``recipe.layers(...)``, in that order: ``(b, y, x)`` or ``(y, x)``, C-contiguous; with
        periods ``(p, b, y, x)`` or ``(p, y, x)``. ``source`` holds indices of the recipe's scenes.

    Raises
    ------
    ParameterError, BandError
        The recipe does not fit the pixels; see `Recipe.layers`.

    Notes
    -----
    Single-threaded, stateless, and without the interpreter lock. The result of a pixel depends on its own observations
    alone. The first call for each type of pixels compiles its kernel.

    Examples
    --------
    >>> pixels = np.array([30, 0, 10, 20], np.uint8).reshape(4, 1, 1, 1)
    >>> result = reduce_block(pixels, Recipe((resolve_reducer("luminance_median"),)))
    >>> {name: array.ravel().tolist() for name, array in result.items()}
    {'composite': [20], 'source': [3], 'count': [3]}
    """
    if pixels.ndim != 4:
        raise ParameterError(f"pixels have {pixels.ndim} dimensions; (time, band, y, x) are needed")
    place = np.arange(pixels.shape[0]) if positions is None else np.asarray(positions, np.int64)
    known = pixels.shape[0] if positions is None or recipe.days is None else len(recipe.days)
    layers = recipe.layers(pixels.dtype.newbyteorder("="), known)
    chosen = np.arange(pixels.shape[0]) if scenes is None else np.atleast_1d(np.asarray(scenes))
    indices = chosen.ndim == 1 and (chosen.dtype.kind in "ui" or not chosen.size)
    if not indices or (chosen.size and not 0 <= chosen.min() <= chosen.max() < pixels.shape[0]):
        last = pixels.shape[0] - 1
        raise ParameterError(f"scenes={scenes!r}: give indices of the {pixels.shape[0]} scenes, 0 to {last}")
    chosen = chosen.astype(np.int64)
    usable, near = _look_around(pixels, recipe, valid)
    if inner is not None:
        pixels, near = pixels[:, :, *inner], near[:, *inner]
        usable = None if usable is None else usable[:, *inner]
    bands, height, width = pixels.shape[1:]
    periods = () if recipe.periods is None else (len(recipe.periods),)
    groups = [chosen] if recipe.periods is None else [chosen[np.isin(place[chosen], p)] for p in recipe.periods]
    heads = {layer.name: (bands,) if "band" in layer.dims else () for layer in layers}
    out = {layer.name: np.empty((len(groups), *heads[layer.name], height * width), layer.dtype) for layer in layers}
    passes = [(usable, range(len(groups)))]
    if recipe.max_count is not None:  # which observations are used differs between periods that share scenes
        passed = valid_observations(pixels, recipe, usable)
        passes = [
            (preferred_observations(passed, recipe, scenes, place), range(g, g + 1)) for g, scenes in enumerate(groups)
        ]
    for mask, some in passes:
        for run, source, distances in _runs(pixels, recipe, mask, near):
            for g in some:
                for name, array in _reduce_run(recipe, layers, source, place, distances, groups[g]).items():
                    out[name][g, ..., run] = array
    return {name: array.reshape(*periods, *heads[name], height, width) for name, array in out.items()}


def preferred_observations(
    valid: NDArray[np.bool_], recipe: Recipe, scenes: NDArray[np.int64], place: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which valid observations ``(t, y, x)`` of some scenes are used where ``recipe.max_count`` limits them.

    ``place (t,)`` is the index of each scene among the recipe's.
    """
    rank, most = np.argsort(recipe.preference), recipe.max_count or MAX_SCENES
    used = np.zeros(valid.shape, np.bool_)
    count = np.zeros(valid.shape[1:], np.uint16)
    for t in scenes[np.argsort(rank[place[scenes]], kind="stable")]:
        np.logical_and(valid[t], count < most, out=used[t])
        count += used[t]
    return used


def valid_observations(
    pixels: NDArray[Any], recipe: Recipe, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return which observations, ``(t, y, x)``, pass the rules on values of a recipe, and `valid` as in `reduce_block`.

    Rules that look around an observation (`SwathEdge`) look at the observation alone here.

    >>> pixels = np.array([[[[0, 7, 255]], [[9, 9, 9]]]], np.uint8)
    >>> valid_observations(pixels, Recipe(()))
    array([[[False,  True, False]]])
    """
    times, width = pixels.shape[0], pixels.shape[3]
    parts = []
    for _, source in _slabs(pixels, recipe, valid):
        out = np.empty(times * source.pixels, np.uint8)
        validity(source, 4096, out)
        parts.append(out.view(np.bool_).reshape(times, source.pixels // max(width, 1), width))
    return np.concatenate(parts, axis=1)


def usable_observations(
    pixels: NDArray[Any], recipe: Recipe, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Do as `valid_observations` with all rules on values, also those that look around, with ``recipe.halo`` pixels.

    >>> from s2composite.pixels.masks import SwathEdge
    >>> pixels = np.array([[[[0, 7, 9, 9]]]], np.uint8)
    >>> usable_observations(pixels, Recipe((), (SwathEdge(1),)))
    array([[[False, False,  True,  True]]])
    """
    return valid_observations(pixels, recipe, _without_edges(pixels, recipe, valid))


def scores_of_scenes(recipe: Recipe, place: NDArray[np.int64]) -> Scores:
    """Score scenes at some positions among the recipe's, where the recipe ends early: the highest are read first.

    With ``max_count`` the scores are the order of preference, and distances add nothing.
    """
    if recipe.max_count is not None:
        return Scores(-np.argsort(recipe.preference)[place].astype(np.float32), np.empty(0, np.float32))
    (reducer,) = recipe.reducers
    assert reducer.score is not None
    return reducer.score(reducer, np.array(recipe.days, np.float64)[place] if reducer.needs_days else None, place)


def observation_scores(
    pixels: NDArray[Any], recipe: Recipe, valid: NDArray[np.bool_] | None, scores: Scores
) -> NDArray[np.float32]:
    """Return the score of each observation, ``(t, y, x)``: minus infinity where it is not valid by any rule.

    `pixels` and `valid` are as for `reduce_block`, `scores` those of their scenes.
    """
    usable, near = _look_around(pixels, recipe, valid)
    out = np.where(valid_observations(pixels, recipe, usable), scores.of_scene[:, None, None], np.float32(-np.inf))
    if near.size and scores.of_distance.size:
        out += scores.of_distance[near]
    return out


def scene_shares(source: NDArray[np.int16], n_times: int) -> NDArray[np.float64]:
    """Return the share of pixels each scene contributed, from a ``source`` layer: ``(n_times,)``, sum at most 1."""
    picked = source[source >= 0].astype(np.intp)
    return np.bincount(picked, minlength=n_times) / max(source.size, 1)


def _reduce_run(
    recipe: Recipe,
    layers: tuple[Layer, ...],
    source: Observations,
    place: NDArray[np.int64],
    near: NDArray[np.uint16],
    scenes: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """Run every reducer on one contiguous run of pixels, for some scenes: ``(b, n)`` or ``(n,)`` for each layer."""
    source = source._replace(scenes=scenes)
    sizes = {True: (source.bands, source.pixels), False: (source.pixels,)}
    arrays = [np.full(sizes["band" in layer.dims], layer.nodata or 0, layer.dtype) for layer in layers]
    count = arrays[-1] if recipe.counted else np.zeros(source.pixels, np.uint16)
    rest = iter(arrays)
    for reducer in recipe.reducers:
        results = tuple(next(rest) for _ in reducer.outputs)
        distances = near if reducer.reach else near[:0]
        reducer.run(ReducerCall(reducer, recipe, source, results, count, distances, place))
        for output, array in zip(reducer.outputs, results, strict=True):
            # Ascending positions that end where they would are all there are.
            if output.scenes and place.size and place[-1] >= place.size:
                array[:] = np.where(array < 0, array, place[np.maximum(array, 0)])
    return {layer.name: array for layer, array in zip(layers, arrays, strict=True)}


def _look_around(
    pixels: NDArray[Any], recipe: Recipe, valid: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_] | None, NDArray[np.uint16]]:
    """Evaluate what depends on the surroundings of an observation.

    Returns the mask of usable observations without those near nodata (None: nothing forbids one), and the squared
    distance of each to the nearest invalid one (empty if no reducer needs it), both ``(t, y, x)``.
    """
    usable = _without_edges(pixels, recipe, valid)
    reach = max((reducer.reach for reducer in recipe.reducers), default=0)
    if not reach:
        return usable, np.empty((0, 0, 0), np.uint16)
    return usable, distance_squared(~valid_observations(pixels, recipe, usable), reach)


def _without_edges(pixels: NDArray[Any], recipe: Recipe, valid: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return the mask of usable observations, None if there is none, without those that a rule finds near nodata."""
    _check_fits(valid, pixels)
    edge = reach_of(recipe.rules)
    if not edge:
        return valid
    nodata = tuple(Nodata(rule.value) for rule in recipe.rules if isinstance(rule, SwathEdge))
    near_nodata = dilation(~valid_observations(pixels, Recipe((), nodata, nodata=recipe.nodata)), edge)
    return ~near_nodata if valid is None else valid & ~near_nodata


def _check_fits(valid: NDArray[np.bool_] | None, pixels: NDArray[Any]) -> None:
    times, _, height, width = pixels.shape
    if valid is not None and (valid.dtype != np.bool_ or valid.shape != (times, height, width)):
        raise ParameterError(f"valid is {valid.dtype} {valid.shape}; bool {(times, height, width)} fits the pixels")


def _slabs(
    pixels: NDArray[Any], recipe: Recipe, valid: NDArray[np.bool_] | None
) -> Iterator[tuple[slice, Observations]]:
    """Yield slices of rows and their observations as kernels see them, all scenes of `pixels` in their order.

    Pixels that kernels can read where they lie are one slab; others are copied, `SLAB_BYTES` at a time.
    """
    _check_fits(valid, pixels)
    times, bands, height, width = pixels.shape
    dtype = pixels.dtype.newbyteorder("=")
    low, high, dropped = limits_of(recipe.rules, dtype, bands, recipe.nodata, recipe.bands, recipe.saturated)
    usable = np.empty((0, 0, 0), bool) if valid is None else valid
    swapped = pixels.transpose(0, 2, 3, 1)
    interleaved = not pixels.flags.c_contiguous and (
        swapped.flags.c_contiguous or abs(pixels.strides[1]) < abs(pixels.strides[3])
    )
    array = swapped if interleaved else pixels
    step = max(height, 1)
    if not (array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative):
        step = max(SLAB_BYTES // max(times * bands * width * pixels.itemsize, 1), 1)
    for top in range(0, max(height, 1), step):
        rows = slice(top, top + step)
        values = _flat(np.ascontiguousarray(array[:, rows] if interleaved else array[:, :, rows], dtype))
        n = values.size // max(times * bands, 1)
        mask = _flat(usable[:, rows])
        yield rows, Observations(values, bands, n, n, interleaved, np.arange(times), mask, low, high, dropped)


def _runs(
    pixels: NDArray[Any], recipe: Recipe, usable: NDArray[np.bool_] | None, near: NDArray[np.uint16]
) -> Iterator[tuple[slice, Observations, NDArray[np.uint16]]]:
    """Yield which pixels of the window, their observations as kernels see them, and their distances."""
    width = pixels.shape[3]
    for rows, source in _slabs(pixels, recipe, usable):
        first, distances = rows.start * width, _flat(near[:, rows])
        for start in range(0, source.pixels, _RUN):
            n = min(_RUN, source.pixels - start)
            values = source.values[start * source.bands if source.interleaved else start :]
            run = source._replace(values=values, usable=source.usable[start:], pixels=n)
            yield slice(first + start, first + start + n), run, distances[start:]


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """Return memory as one read-only dimension, copied if need be: writable and read-only ones would compile twice."""
    flat = np.ascontiguousarray(array).reshape(-1)
    flat.flags.writeable = False
    return flat
