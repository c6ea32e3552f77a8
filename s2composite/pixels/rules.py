"""Rules by name, as job files write them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from s2composite.errors import ParameterError
from s2composite.pixels.flags import SCL, CloudProbability, Fmask, QABits, Usable
from s2composite.pixels.masks import Nodata, Rule, Saturated, SwathEdge, ValueRange

__all__ = ["resolve_rule", "rule_names"]

_RULES: dict[str, Callable[..., Rule]] = {
    "cloud_probability": CloudProbability,
    "fmask": Fmask,
    "nodata": Nodata,
    "qa_bits": QABits,
    "saturated": Saturated,
    "scl": SCL,
    "swath_edge": SwathEdge,
    "usable": Usable,
    "value_range": ValueRange,
}


def rule_names() -> tuple[str, ...]:
    """Return the names of rules."""
    return tuple(_RULES)


def resolve_rule(name: str, **params: Any) -> Rule:
    """Return a rule by name, with its parameters.

    Raises
    ------
    ParameterError
        The name or a parameter is unknown, or a parameter has an invalid value.

    Examples
    --------
    >>> resolve_rule("value_range", low=1, high=10000)
    ValueRange(low=1, high=10000, bands=None)
    """
    if name not in _RULES:
        raise ParameterError(f"unknown rule {name!r}; there are {', '.join(_RULES)}")
    known = list(inspect.signature(_RULES[name]).parameters)
    for unknown in sorted(set(params) - set(known)):
        raise ParameterError(f"rule {name!r} has no parameter {unknown!r}; it has {', '.join(known)}")
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()}
    try:
        return _RULES[name](**made)
    except (TypeError, ValueError) as problem:  # a parameter is missing, or of a type that it cannot have
        raise ParameterError(f"rule {name!r} cannot be made with {params}: {problem}") from problem
