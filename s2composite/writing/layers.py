"""Layers: which variables of a composite go into which files, and what their bands are called."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from s2composite.array_values import missing_value_of
from s2composite.errors import ParameterError
from s2composite.writing.options import OVERVIEWS
from s2composite.writing.raster import Band

__all__ = [
    "RGBA",
    "TIME",
    "Layer",
    "chosen_layers",
    "common_nodata",
    "facts_of",
    "file_bands",
    "file_names",
    "raster_layers",
]

RGBA = "rgba"
"""A layer that can be written of every composite: its first three bands stretched to 8 bits."""

TIME = "time"
"""The axis of periods."""

_SPATIAL = ("y", "x")

_SCALING = ("scale", "offset", "scaled_units", "scale_factor", "add_offset")
"""Attributes that are no longer true where values were calculated."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a composite."""

    name: str
    """Name of the variable."""

    data: da.Array
    """``(b, y, x)`` or ``(y, x)``; with periods, the time axis comes first."""

    bands: tuple[str, ...]
    """Names of its bands."""

    nodata: float | None
    """Nodata value; None: every pixel has a value."""

    attrs: Mapping[str, Any]
    """Attributes of the variable."""

    lazy: bool = True
    """Whether its pixels are still to be computed."""

    @property
    def method(self) -> str:
        """How its overviews are made."""
        return str(self.attrs.get("overviews", "average"))


def raster_layers(dataset: xr.Dataset) -> tuple[str, ...]:
    """Return the names of variables that are pictures: ``(y, x)``, optionally with bands, and time before these."""
    return tuple(str(name) for name, a in dataset.data_vars.items() if _is_picture(a))


def _is_picture(array: xr.DataArray) -> bool:
    return array.dims[-2:] == _SPATIAL and array.ndim - (array.dims[0] == TIME) in (2, 3)


def chosen_layers(dataset: xr.Dataset, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the layers to write.

    Parameters
    ----------
    wanted
        Names, ``"all"``, or None: the composite itself, or with several reducers all that have bands.

    Raises
    ------
    ParameterError
        A name is unknown or given twice, or there is nothing to write.
    """
    known = raster_layers(dataset)
    if not known:
        raise ParameterError("the dataset has no layer with the dimensions (y, x) or (band, y, x)")
    if wanted is None:
        return ("composite",) if "composite" in known else tuple(n for n in known if _has_bands(dataset[n])) or known
    if not isinstance(wanted, Iterable):
        raise ParameterError(f"layers is {wanted!r}; it is 'all', or one or several of {', '.join((*known, RGBA))}")
    names = known if isinstance(wanted, str) and wanted == "all" else (wanted,) if isinstance(wanted, str) else wanted
    names = tuple(names)
    for name in names:
        if not isinstance(name, str) or (name not in known and name != RGBA):
            raise ParameterError(f"there is no layer {name!r} to write; there are {', '.join((*known, RGBA))}")
    if not names or len(set(names)) < len(names):
        raise ParameterError(f"layers is {list(names)}; name each layer once, or pass 'all'")
    return names


def _has_bands(array: xr.DataArray) -> bool:
    return array.ndim - (array.dims[0] == TIME) == 3


def layer_of(dataset: xr.Dataset, name: str) -> Layer:
    """Return a layer with its pixels as a Dask array.

    Raises
    ------
    ParameterError
        The nodata value or the resampling of overviews is invalid, or nobody can tell the nodata value of integers that
        were calculated.
    """
    array = dataset[name]
    missing = missing_value_of(array).known()
    array = missing.with_nan(array)
    attrs = dict(array.attrs)
    if missing.derived:
        attrs = {name: value for name, value in attrs.items() if name not in _SCALING}
    if attrs.get("overviews", "average") not in OVERVIEWS:
        raise ParameterError(
            f"layer {name!r}: overviews is {attrs['overviews']!r}; it is one of {', '.join(OVERVIEWS)}"
        )
    data, lazy = array.data, isinstance(array.data, da.Array)
    if not lazy:
        # name=False: hashing the pixels would take longer than encoding some of them.
        data = da.from_array(data, chunks=(*((-1,) * (array.ndim - 2)), 2048, 2048), name=False)
    data = data.astype(np.uint8) if data.dtype == np.bool_ else data
    return Layer(name, data, _band_names(array), _nodata(name, missing.nodata, data.dtype), attrs, lazy)


def _band_names(array: xr.DataArray) -> tuple[str, ...]:
    if not _has_bands(array):
        return (str(array.name),)
    dim = array.dims[-3]
    if dim in array.coords:
        return tuple(str(value) for value in array[dim].values)
    return tuple(f"{array.name}_{i + 1}" for i in range(array.sizes[dim]))


def _nodata(name: str, value: float | None, dtype: np.dtype[Any]) -> float | None:
    if value is not None and not fits(value, dtype):
        raise ParameterError(
            f"layer {name!r}: nodata {value:g} is not a value of {dtype.name}; correct its attrs['nodata']"
        )
    return value


def fits(value: float, dtype: np.dtype[Any]) -> bool:
    """Return whether pixels of `dtype` can have a value."""
    if dtype.kind not in "iu":
        return True
    limits = np.iinfo(dtype)
    return not math.isnan(value) and value.is_integer() and limits.min <= value <= limits.max


def file_names(path: str, names: Sequence[str], *, separate: bool | None) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return each file with the layers in it.

    >>> file_names("out/median.tif", ["composite", "count"], separate=None)
    (('out/median.tif', ('composite',)), ('out/median_count.tif', ('count',)))
    """
    if separate is False or len(names) == 1:
        return ((path, tuple(names)),)
    folder, slash, file = path.rpartition("/")
    stem, dot, suffix = file.rpartition(".")
    stem, suffix = (stem, dot + suffix) if dot else (file, "")
    return tuple((path if n == "composite" else f"{folder}{slash}{stem}_{n}{suffix}", (n,)) for n in names)


def file_bands(layers: Sequence[Layer], resampling: str | None) -> tuple[Band, ...]:
    """Return the bands of a file that holds these layers."""
    several = sum(layer.data.ndim == 3 for layer in layers) > 1
    return tuple(
        Band(
            name=f"{layer.name}_{name}" if several and layer.data.ndim == 3 else name,
            layer=layer.name,
            method=resampling or layer.method,
            nodata=layer.nodata,
            long_name=str(layer.attrs.get("long_name", "")),
            units=str(layer.attrs.get("units", layer.attrs.get("scaled_units", ""))),
            scale=layer.attrs.get("scale", layer.attrs.get("scale_factor")),
            offset=layer.attrs.get("offset", layer.attrs.get("add_offset")),
        )
        for layer in layers
        for name in layer.bands
    )


def common_nodata(layers: Sequence[Layer], label: str) -> tuple[np.dtype[Any], float | None]:
    """Return the dtype of a file with these layers, and its nodata value: a GeoTIFF has one for all bands.

    If those of the layers differ, one is chosen that cannot be mistaken for a value of another layer, and given to
    pixels without a value. Layers without a nodata value (a count) keep their values.

    Raises
    ------
    ParameterError
        No value suits all layers.
    """
    dtype = np.result_type(*(layer.data.dtype for layer in layers))
    values = {layer.nodata for layer in layers if layer.nodata is not None}
    if not values:
        return dtype, None
    if dtype.kind == "f" and (any(map(math.isnan, values)) or len(values) > 1):
        return dtype, math.nan
    for value in sorted(values):
        if all(layer.nodata in (None, value) or not fits(value, layer.data.dtype) for layer in layers):
            return dtype, value
    if dtype.kind in "iu" and dtype.itemsize < 4:
        return np.dtype(np.int32), float(np.iinfo(np.int32).min)
    names = ", ".join(f"{layer.name} ({layer.nodata})" for layer in layers)
    raise ParameterError(f"{label}: no nodata value serves all of {names} in one file; pass separate=True or mask=True")


def facts_of(dataset: xr.Dataset, more: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """Return the facts for a file's tags: the dataset's attributes, its scenes and their times, and `more`."""
    facts = {str(name).upper(): _text(value) for name, value in dataset.attrs.items() if name != "grid_mapping"}
    if "scene" in dataset.coords:
        facts["SCENES"] = _listed(dataset["scene"].values)
    if "scene_time" in dataset.coords:
        times = dataset["scene_time"].values
        stamps = np.datetime_as_string(times, unit="s") if times.dtype.kind == "M" else times
        facts["SCENE_TIMES"] = _listed(stamps)
    facts.update({str(name): _text(value) for name, value in (more or {}).items()})
    return tuple(sorted(facts.items()))


def _listed(values: Iterable[Any]) -> str:
    return ",".join(str(value) for value in values)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
