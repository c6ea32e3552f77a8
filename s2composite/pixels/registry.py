"""The registry of reducers: by name, by import path, or from entry points of other packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from s2composite.errors import ParameterError
from s2composite.optional import imported
from s2composite.pixels import picking, scoring, spectral, statistics
from s2composite.pixels.recipe import Reducer

__all__ = ["ENTRY_POINTS", "reducer_names", "register_reducer", "resolve_reducer"]

ENTRY_POINTS = "s2composite.reducers"
"""Group of entry points in which other packages offer reducers."""

Maker = Callable[..., Reducer]

_REGISTRY: dict[str, Maker | Reducer] = {
    "best_available_pixel": scoring.best_available_pixel,
    "closest_to": picking.closest_to,
    "earliest": picking.earliest,
    "geomedian": spectral.geomedian,
    "latest": picking.latest,
    "luminance_median": picking.luminance_median,
    "max": statistics.maximum,
    "max_ndvi": picking.max_ndvi,
    "mean": statistics.mean,
    "median": statistics.median,
    "medoid": spectral.medoid,
    "min": statistics.minimum,
    "percentile": statistics.percentile,
    "quality_mosaic": picking.quality_mosaic,
    "rank": picking.rank,
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
    if not isinstance(reducer, str):
        raise ParameterError(f"{_described(reducer)} is no reducer; {_instead(reducer)}")
    maker = _REGISTRY.get(reducer)
    if maker is None:
        maker = _from_entry_point(reducer) or _from_path(reducer)
    return _made(maker, reducer, params)


def _described(given: Any) -> str:
    return f"the function {given.__name__}" if callable(given) and hasattr(given, "__name__") else repr(given)


def _instead(given: Any) -> str:
    """Return what to give instead of something that is no reducer: NumPy's functions have names that are reducers'."""
    known = reducer_names()
    name = str(getattr(given, "__name__", "")).removeprefix("nan")
    if name in known:
        return f"give its name, {name!r}"
    return f"give one by name ({', '.join(known)}), the path of your own, 'package.module:name', or a Reducer"


def _made(maker: Any, name: str, params: dict[str, Any]) -> Reducer:
    """Return the reducer that `maker` is or makes."""
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


def _from_entry_point(name: str) -> Any:
    """Return what an installed package offers under `name`, None if none does."""
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return point.load()
    return None


def _from_path(path: str) -> Any:
    """Return what lies at ``package.module:name`` or ``package.module.name``."""
    try:
        found = imported(path)
    except (ImportError, AttributeError, ValueError, TypeError) as problem:
        raise ParameterError(f"reducer {path!r} cannot be loaded: {problem}") from problem
    if found is None:
        raise ParameterError(
            f"unknown reducer {path!r}; there are {', '.join(reducer_names())}, or give the path of your own, "
            "as in 'package.module:name'"
        )
    return found
