"""Find the nodata value of an array, and whether its attributes still describe its values.

xarray keeps attributes through arithmetic, comparisons, `where` and `astype`: ``attrs["nodata"]`` stays on arrays in
which that number is data (an NDVI of 0, a difference of 0, False). xarray drops `encoding` in these operations, so
attributes are trusted while the array has the encoding of a file or loader. Without it, the layers of the Dask graph
show how the nodata value changed. Arrays in memory or on workers have no graph. There, NaN is nodata in floats and 0
in unsigned integers. A time series with neither raises an error, because its values may have been calculated from
nodata. Nothing is guessed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from s2composite.cube.graph import Origin, nodata_after, origin_of_layer, reads_pixels
from s2composite.errors import ParameterError
from s2composite.pixels.masks import Nodata, Rule, SwathEdge

__all__ = ["MissingValue", "missing_value_of", "stacked", "with_nodata"]

LOG = logging.getLogger(__name__)

_DECLARATIONS = ("_FillValue", "nodata", "missing_value", "fill_value")
"""Attributes that declare the nodata value, in rioxarray's order: `rio.write_nodata` overrides earlier ones."""

_INHERITED = ({"engine"}, {"overviews", "grid_mapping"}, {"AREA_OR_POINT"})
"""Attributes of cubes from `open_cube`, layers of composites and arrays that rioxarray opened. All of these have an
encoding, so an array that has the attributes but no encoding was derived from them."""

_STORED = ("dtype", "rasterio_dtype", "source", "_FillValue", "missing_value")
"""Encoding of arrays that xarray's backends or rioxarray opened."""


@dataclass(frozen=True, slots=True)
class MissingValue:
    """The nodata value of an array. NaN always means nodata."""

    nodata: float | None
    """The number; NaN: only NaN is nodata; None: none is declared."""

    derived: bool = False
    """Whether the array was calculated from others, so that its scale and offset do not apply either."""

    flags: bool = False
    """Whether the values are the result of a comparison; then 0 is not the default nodata value."""

    cast: float | None = None
    """A nodata number kept from integers in floats; outputs get NaN instead (see `with_nan`)."""

    unknown: str = ""
    """Why the nodata value cannot be determined, and what to do; empty if it can."""

    def known(self) -> MissingValue:
        """Return this value, or raise a ParameterError if it cannot be determined."""
        if self.unknown:
            raise ParameterError(self.unknown)
        return self

    def for_rules(self, rules: Sequence[Rule], dtype: np.dtype[Any]) -> float | None:
        """Return the nodata value for a recipe; the rules may set it themselves."""
        if not self.unknown and not (self.flags and dtype.kind in "iu"):
            return self.nodata
        named = [rule.value for rule in rules if isinstance(rule, Nodata | SwathEdge)]
        if self.unknown and None in named:
            raise ParameterError(self.unknown)
        if dtype.kind == "f":
            return math.nan
        # A number that calculations rarely produce, for pixels without a result.
        ends = np.iinfo(dtype)
        return next((float(value) for value in named if value is not None), float(ends.min or ends.max))

    def with_nan(self, array: xr.DataArray) -> xr.DataArray:
        """Return floats with NaN in place of the nodata number kept from integers."""
        return array if self.cast is None else array.where(array != self.cast)


def missing_value_of(array: xr.DataArray) -> MissingValue:
    """Return the nodata value of an array, from its attributes, encoding and graph.

    In calculated floats only NaN is nodata. In calculated integers the nodata value is unknown.
    """
    attrs, encoding = array.attrs, array.encoding
    stated = _declared(attrs, array)
    if array.dtype.kind == "b":
        return MissingValue(None, derived=True)
    origin = _origin(array)
    if origin != "stored":
        if "_FillValue" in attrs and ("nodata" in attrs or not _inherits(attrs)):
            # The user set it, as `rio.write_nodata` does: our arrays and those of odc-stac have only `nodata`, those
            # of rioxarray have other attributes next to _FillValue.
            return MissingValue(stated, derived=True)
        return _nodata_of_derived(array, stated, origin)
    encoded = _declared({"nodata": encoding.get("nodata")}, array)
    if encoded is None:
        encoded = _declared({name: encoding.get(name) for name in ("_FillValue", "missing_value")}, array)
        if encoded is not None and array.dtype.kind == "f":
            encoded = math.nan  # xarray and rioxarray put NaN where the file has that number
    value = encoded if stated is None else stated
    if "nodata" not in encoding or value is None or array.dtype.kind != "f":
        return MissingValue(value)
    # xarray pads integers with NaN in `reindex` and `shift`, and the other values keep their meaning.
    was_integer = np.dtype(encoding.get("native", array.dtype)).kind in "iu"
    return MissingValue(math.nan, cast=None if math.isnan(value) else value) if was_integer else MissingValue(value)


def _nodata_of_derived(array: xr.DataArray, stated: float | None, origin: Origin) -> MissingValue:
    """Return the nodata value of an array without an encoding."""
    floats, attrs = array.dtype.kind == "f", array.attrs
    if origin == "flags":
        return MissingValue(math.nan if floats else None, derived=True, flags=True)
    nodata = 0.0 if stated is None and "engine" in attrs else stated
    # Arrays of odc-stac have no other attribute.
    loaded = "spatial_ref" in array.coords and isinstance(attrs.get("nodata"), float) and len(attrs) == 1
    inherits = loaded or _inherits(attrs)
    reads = array.chunks is not None and reads_pixels(array.data.dask)
    derived = inherits or (origin == "computed" and (floats or reads))
    if nodata is None or math.isnan(nodata):
        return MissingValue(math.nan if floats and derived else stated, derived)
    if origin == "cast":
        became: tuple[float, bool] | None = (nodata, True)
    else:
        became = None if array.chunks is None else nodata_after(array.data, nodata, raw=_is_raw(array))
    if became is None and inherits and not reads:
        return _nodata_in_memory(array, nodata, stated)
    if became is not None and floats:
        value, unique = became
        cast = None if math.isnan(value) else value
        return MissingValue(math.nan, derived=True, cast=cast) if unique else _as_data(array, nodata)
    if became is not None and became[1]:
        return MissingValue(None if became[0] == nodata and stated is None else became[0], derived=True)
    unknown = _unknown(array, nodata) if derived and not floats else ""
    return MissingValue(math.nan if floats and derived else stated, derived, unknown=unknown)


def _nodata_in_memory(array: xr.DataArray, nodata: float, stated: float | None) -> MissingValue:
    """Return the nodata value of an array in memory or on workers, derived from an array that declared one.

    In unsigned integers, 0 stays 0 through scaling, masking and clipping.
    """
    floats, series = array.dtype.kind == "f", array.sizes.get("time", 1) > 1
    if floats and bool(array.isnull().any()):
        return MissingValue(math.nan, derived=True)
    # If all values are 0, assume an area without observations, not a comparison that is False everywhere.
    if bool(array.isin((0, 1)).all()) and bool((array == 1).any()):
        return MissingValue(math.nan if floats else None, derived=True, flags=True)
    if not floats:
        known = array.dtype.kind == "u" and nodata == 0 and (not series or bool((array == 0).any()))
        return MissingValue(stated, derived=True, unknown="" if known else _unknown(array, nodata))
    return _as_data(array, nodata)


def _as_data(array: xr.DataArray, nodata: float) -> MissingValue:
    """Return the nodata value of floats that may contain values calculated from nodata.

    Maps are often differences, where 0 is data: this is logged. A time series raises an error.
    """
    series = array.sizes.get("time", 1) > 1
    if not series:
        LOG.warning(
            "%s was derived from an array with nodata value %g and has no NaN, so every value counts as data; if it "
            "had nodata pixels, set them to NaN before calculating",
            _array_name(array),
            nodata,
        )
    return MissingValue(math.nan, derived=True, unknown=_unknown(array, nodata) if series else "")


def _declared(attrs: Mapping[Any, Any], array: xr.DataArray) -> float | None:
    """Return the nodata value in attributes, or None; raise a ParameterError if it is not a number."""
    for name in _DECLARATIONS:
        value = attrs.get(name)
        if value is None:
            continue
        try:
            numbers = {str(float(one)): float(one) for one in np.atleast_1d(value).tolist()}
        except (TypeError, ValueError):
            numbers = {}
        if len(numbers) != 1:
            raise ParameterError(
                f"{_array_name(array)} declares {name}={value!r}; give one number, with assign_attrs({name}=...)"
            )
        return next(iter(numbers.values()))
    return None


def _inherits(attrs: Mapping[Any, Any]) -> bool:
    return any(names <= set(attrs) for names in _INHERITED)


def _origin(array: xr.DataArray) -> Origin:
    of_graph: Origin = "unknown"
    if array.chunks is not None:
        declared = str(array.encoding.get("layer", ""))
        of_graph = origin_of_layer(array.data.name, array.data.dask, opened=_is_raw(array), declared=declared)
    if _is_encoded(array):
        # In-place assignments keep the encoding.
        return of_graph if of_graph in ("computed", "flags") else "stored"
    return "cast" if of_graph == "stored" else of_graph


def _is_raw(array: xr.DataArray) -> bool:
    """Return whether xarray opened an original raster or composite, not a derived array that was written."""
    return not {"grid_mapping", "AREA_OR_POINT"}.isdisjoint(array.attrs) and not _from_integers(array)


def _from_integers(array: xr.DataArray) -> bool:
    """Return whether floats were made from a cube of integers: their nodata value is still an integer."""
    return array.dtype.kind == "f" and isinstance(array.attrs.get("nodata"), int | np.integer)


def _is_encoded(array: xr.DataArray) -> bool:
    """Return whether an array still has the encoding it was opened with."""
    attrs, encoding = array.attrs, array.encoding
    if "nodata" in encoding:
        return True
    if "AREA_OR_POINT" in attrs:
        return "rasterio_dtype" in encoding
    located = "grid_mapping" in encoding or "grid_mapping" in attrs
    if encoding.keys().isdisjoint(_STORED):
        # write_crs leaves this on derived arrays, too; our raw arrays have more.
        return "grid_mapping" in encoding and attrs.keys().isdisjoint(("engine", "overviews"))
    if "engine" in attrs:
        # A cube that was written and reopened: arrays derived from one have lost the grid mapping, or are not raw.
        return located and not _from_integers(array)
    filled = "_FillValue" in encoding and array.dtype.kind == "f" and "nodata" in attrs
    return located or not filled


def _unknown(array: xr.DataArray, stated: float | None) -> str:
    """Return why the nodata value of an array cannot be determined, and what to do."""
    number = 0.0 if stated is None else stated
    return (
        f"{_array_name(array)} ({array.dtype}) was derived from one with nodata value {number:g}; its own nodata value "
        f"cannot be determined. Set nodata to NaN before calculating, cube.where(cube != {number:g}), or declare it: "
        ".drop_attrs(deep=False).assign_attrs(_FillValue=...), without assign_attrs() if all values are data; "
        "composite() also accepts it as a rule: valid=[Nodata(...)], or ()"
    )


def _array_name(array: xr.DataArray) -> str:
    return "the array" if array.name is None else f"the array {str(array.name)!r}"


def with_nodata(array: xr.DataArray, nodata: float | None) -> xr.DataArray:
    """Return an array that declares its nodata value in a way that arithmetic removes.

    xarray drops `encoding` when values change. Of the encoding it writes only the grid mapping to files, which
    identifies the array when it is reopened.
    """
    shown = int(nodata) if nodata is not None and array.dtype.kind in "iu" and nodata == int(nodata) else nodata
    out = array.copy(deep=False) if nodata is None else array.assign_attrs(nodata=shown)
    out.encoding = {**array.encoding, "nodata": nodata, "native": str(array.dtype)}
    if array.chunks is not None:
        out.encoding["layer"] = array.data.name
    if "spatial_ref" in array.coords and "grid_mapping" not in array.attrs:
        out.encoding["grid_mapping"] = "spatial_ref"
        if "coordinates" not in array.attrs:
            # xarray does not list the grid mapping among the coordinates, and would open it as a variable
            names = sorted(str(name) for name in array.coords if name not in array.dims and " " not in str(name))
            out.encoding["coordinates"] = " ".join(names)
    return out


def stacked(dataset: xr.Dataset) -> xr.DataArray:
    """Return the variables of a Dataset as the bands of one array, with one nodata value for all of them.

    Integers with different nodata values become floats with NaN.
    """
    variables = {str(name): array for name, array in dataset.data_vars.items()}
    missing = {name: missing_value_of(array) for name, array in variables.items()}
    first = next(iter(variables.values()))
    if any(one.unknown for one in missing.values()):
        # Rules that set a value need no other; without them, the value of this array is unknown, too.
        return dataset.to_dataarray("band").assign_attrs(first.attrs)
    clean = {name: missing[name].with_nan(array) for name, array in variables.items()}
    values = {str(one.nodata): one.nodata for one in missing.values()}
    if all(array.dtype.kind in "iu" for array in variables.values()) and set(values) == {"None", "0.0"}:
        values.pop("None")  # 0 is the default
    nodata = next(iter(values.values())) if len(values) == 1 else math.nan
    if len(values) > 1:
        for name, array in clean.items():
            floats, own = array.astype(np.result_type(array.dtype, np.float32), copy=False), missing[name].nodata
            clean[name] = floats if own is None or math.isnan(own) else floats.where(array != own)
    array = xr.Dataset(clean, attrs=dataset.attrs).to_dataarray("band")
    return with_nodata(array.assign_attrs(first.attrs), nodata)
