"""Periods: a dataset whose layers have a time axis, as one dataset for each period, each with a name for files."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import xarray as xr

from s2composite.errors import ParameterError
from s2composite.writing.layers import TIME, raster_layers

__all__ = ["PLACE", "Period", "period_path", "periods_of"]

PLACE = "{period}"
"""Placeholder in a path for the name of the period."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, eq=False)
class Period:
    """A part of a dataset in time."""

    label: str | None
    """Name for files, ``2023-01``; None: there is no time axis."""

    dataset: xr.Dataset
    """Its layers ``(b, y, x)`` or ``(y, x)``."""

    span: tuple[np.datetime64, np.datetime64] | None = None
    """Start, and end (exclusive); None if the dataset does not say."""


def periods_of(dataset: xr.Dataset) -> tuple[Period, ...]:
    """Return the periods of a dataset; a single one without a name if layers have no time axis.

    Raises
    ------
    ParameterError
        Two have the same name in files.
    """
    if not any(TIME in dataset[name].dims for name in raster_layers(dataset)):
        return (Period(None, dataset),)
    given = dataset["period"].values if "period" in dataset.coords else _stamps(dataset)
    labels = [_UNSAFE.sub("-", str(label)).strip("-.") or "period" for label in given]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ParameterError(f"several periods would be called {twice[0]!r} in file names; rename some in 'period'")
    return tuple(Period(label, dataset.isel({TIME: i}), _span(dataset, i)) for i, label in enumerate(labels))


def _stamps(dataset: xr.Dataset) -> list[str]:
    if TIME not in dataset.coords:
        return [str(i) for i in range(dataset.sizes[TIME])]
    times = dataset[TIME].values
    return [str(time.astype("datetime64[s]") if times.dtype.kind == "M" else time) for time in times]


def _span(dataset: xr.Dataset, position: int) -> tuple[np.datetime64, np.datetime64] | None:
    name = dataset[TIME].attrs.get("bounds") if TIME in dataset.coords else None
    # Selecting layers of a dataset drops the bounds, but not the attribute that names them.
    if name not in dataset.variables:
        return None
    start, end = dataset[name].values[position]
    return start, end


def period_path(path: str, label: str | None) -> str:
    """Return the path of a period's file.

    >>> period_path("out/median_count.tif", "2023-01"), period_path("{period}/median.tif", "2023-01")
    ('out/median_count_2023-01.tif', '2023-01/median.tif')

    Raises
    ------
    ParameterError
        The path has a placeholder, but there are no periods.
    """
    if label is None:
        if PLACE in path:
            raise ParameterError(f"{path}: has a place for a period, but the composite has no periods")
        return path
    if PLACE in path:
        return path.replace(PLACE, label)
    folder, slash, file = path.rpartition("/")
    stem, dot, suffix = file.rpartition(".")
    return f"{folder}{slash}{stem}_{label}{dot}{suffix}" if dot else f"{path}_{label}"
