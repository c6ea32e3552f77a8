"""What the numbers of an array mean: which of them says "no data", and whether its attributes still speak of them.

xarray keeps attributes through arithmetic, comparisons, `where` and `astype`, so that ``attrs["nodata"]`` clings to
arrays in which that number is data: an NDVI of 0, a difference of 0, False. What xarray drops there is `encoding`, so
attributes are believed where the encoding is that of a file or of a loader. Where it is gone, the layers of a Dask
graph tell what became of the nodata value, and in memory the values do. What cannot be told is not guessed.
"""

from __future__ import annotations

import logging
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from dask.blockwise import Blockwise, blockwise_token
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.pixels.masks import Nodata, Rule, SwathEdge

__all__ = ["MissingValue", "missing_value_of", "stacked", "with_nodata"]

LOG = logging.getLogger(__name__)

_DECLARATIONS = ("_FillValue", "nodata", "missing_value", "fill_value")
"""Attributes that declare the nodata value, as rioxarray reads them: `rio.write_nodata` wins over what was there."""

_CLINGING = ({"engine"}, {"overviews", "grid_mapping"}, {"AREA_OR_POINT"})
"""Attributes of cubes from `open_cube`, of layers of composites, and of arrays that rioxarray opened. All of these have
an encoding: an array without one was derived from them."""

_STORED = ("dtype", "rasterio_dtype", "source", "_FillValue", "missing_value")
"""Encoding of arrays that xarray's backends or rioxarray opened."""


@dataclass(frozen=True, slots=True)
class MissingValue:
    """Which number of an array says that a pixel has no value. NaN always says so."""

    nodata: float | None
    """The number; NaN: no other than NaN; None: none is declared."""

    derived: bool = False
    """Whether the array was calculated from others, so that its scale and offset are not true either."""

    flags: bool = False
    """Whether the numbers are 0 and 1 of a comparison, so that 0 is not the default it is for other integers."""

    cast: float | None = None
    """A number that still says so in floats whose products are to have NaN; see `with_nan`."""

    unknown: str = ""
    """Why it cannot be told which number it is, and what to do; empty if it can."""

    def known(self) -> MissingValue:
        """Return this value if it can be told.

        Raises
        ------
        ParameterError
            It cannot.
        """
        if self.unknown:
            raise ParameterError(self.unknown)
        return self

    def for_rules(self, rules: Sequence[Rule], dtype: np.dtype[Any]) -> float | None:
        """Return the nodata value for a recipe with these rules, which may name the value themselves.

        Raises
        ------
        ParameterError
            It cannot be told, and a rule asks for it.
        """
        if not self.unknown and not (self.flags and dtype.kind in "iu"):
            return self.nodata
        named = [rule.value for rule in rules if isinstance(rule, Nodata | SwathEdge)]
        if self.unknown and None in named:
            raise ParameterError(self.unknown)
        if dtype.kind == "f":
            return math.nan
        # A number that calculations end at least often, for pixels without a result.
        ends = np.iinfo(dtype)
        return next((float(value) for value in named if value is not None), float(ends.min or ends.max))

    def with_nan(self, array: xr.DataArray) -> xr.DataArray:
        """Return floats with NaN in place of the number that they kept from the integers they were."""
        return array if self.cast is None else array.where(array != self.cast)


def missing_value_of(array: xr.DataArray) -> MissingValue:
    """Return which number of an array says "no data", from all that it shows of its origin.

    Floats that were calculated have NaN for no data and nothing else. In integers that were calculated nobody knows.

    Raises
    ------
    ParameterError
        A declared value is not a number.
    """
    stated = _declared(array.attrs, array)
    if array.dtype.kind == "b":
        return MissingValue(None, derived=True)
    origin = _origin(array)
    if origin == "stored":
        return _as_stored(array, stated)
    if _said(array.attrs):
        return MissingValue(stated, derived=True)
    return _of_derived(array, stated, origin)


def _of_derived(array: xr.DataArray, stated: float | None, origin: Origin) -> MissingValue:
    """Return the nodata value of an array that has lost its encoding, or never had one."""
    if origin == "flags":
        return MissingValue(math.nan if array.dtype.kind == "f" else None, derived=True, flags=True)
    signed = _clings(array.attrs)
    nodata = 0.0 if stated is None and "engine" in array.attrs else stated
    became = nodata if origin == "cast" else _became(array, nodata)
    if became is not None and nodata is not None:
        if array.dtype.kind != "f":
            return MissingValue(None if became == nodata and stated is None else became, derived=True)
        return MissingValue(math.nan, derived=True, cast=None if math.isnan(became) else became)
    if array.dtype.kind == "f":
        return _of_floats(array, stated, origin, signed)
    return _of_integers(array, stated, origin, derived=signed or (origin == "computed" and _reads(array.data.dask)))


def _of_integers(array: xr.DataArray, stated: float | None, origin: Origin, *, derived: bool) -> MissingValue:
    """Return the nodata value of integers that have lost their encoding, or never had one."""
    if not derived or (stated is None and "engine" not in array.attrs):
        return MissingValue(stated, derived)
    if origin == "computed":
        return MissingValue(stated, derived, unknown=_unknown(array, stated))
    if array.chunks is None and bool((array.values <= 1).all() and (array.values >= 0).all()):
        return MissingValue(None, derived, flags=True)
    # Scaling, masking and clipping leave 0 what it is, and unsigned integers are not shifted.
    kept = array.dtype.kind == "u" and not stated
    return MissingValue(stated, derived, unknown="" if kept else _unknown(array, stated))


def _as_stored(array: xr.DataArray, stated: float | None) -> MissingValue:
    """Return the declaration of an array whose numbers are those of a file or loader, or were decoded from them."""
    encoded = _declared({"nodata": array.encoding.get("nodata")}, array)
    if encoded is None:
        encoded = _declared({name: array.encoding.get(name) for name in ("_FillValue", "missing_value")}, array)
        if encoded is not None and array.dtype.kind == "f":
            encoded = math.nan  # xarray and rioxarray put NaN where the file has that number
    value = encoded if stated is None else stated
    # xarray pads integers with NaN in `reindex` and `shift`, and keeps what they mean.
    if "nodata" in array.encoding and value is not None and array.dtype.kind == "f" and _was_integer(array):
        return MissingValue(math.nan, cast=None if math.isnan(value) else value)
    return MissingValue(value)


def _was_integer(array: xr.DataArray) -> bool:
    kept = array.encoding.get("native", array.dtype)
    return np.dtype(kept).kind in "iu"


def _declared(attrs: Mapping[Any, Any], array: xr.DataArray) -> float | None:
    """Return the nodata value among attributes, None if there is none."""
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
                f"{_called(array)} declares {name}={value!r}; give one number, with assign_attrs({name}=...)"
            )
        return next(iter(numbers.values()))
    return None


def _said(attrs: Mapping[Any, Any]) -> bool:
    """Return whether the user said the value, as `rio.write_nodata` does.

    Arrays of ours and of odc-stac have ``nodata`` alone, those of rioxarray other attributes beside ``_FillValue``.
    """
    return "_FillValue" in attrs and ("nodata" in attrs or not _clings(attrs))


def _clings(attrs: Mapping[Any, Any]) -> bool:
    return any(names <= set(attrs) for names in _CLINGING)


def _has(attrs: Mapping[Any, Any], names: tuple[str, ...]) -> bool:
    return any(name in attrs for name in names)


Origin = Literal["stored", "cast", "computed", "flags", "unknown"]
"""Numbers as they were declared; the same in another type, or masked; calculated; comparisons; nobody knows."""


def _origin(array: xr.DataArray) -> Origin:
    """Return where the numbers of an array come from."""
    opened = _has(array.attrs, ("grid_mapping", "AREA_OR_POINT"))
    of_graph = "unknown" if array.chunks is None else _of_graph(array.data.name, array.data.dask, opened=opened)
    if _encoded(array):
        # Assignments in place keep the encoding.
        return of_graph if of_graph in ("computed", "flags") else "stored"
    return "cast" if of_graph == "stored" else of_graph


def _encoded(array: xr.DataArray) -> bool:
    """Return whether an array has the encoding that it was opened with."""
    attrs, encoding = array.attrs, array.encoding
    if "nodata" in encoding:
        return True
    if "AREA_OR_POINT" in attrs:
        return "rasterio_dtype" in encoding
    located = "grid_mapping" in encoding or "grid_mapping" in attrs
    if not _has(encoding, _STORED):
        # write_crs of a derived array leaves this, too; raw ones of ours have more.
        return "grid_mapping" in encoding and not _has(attrs, ("engine", "overviews"))
    if "engine" in attrs:
        return located  # a cube that was written and opened again: what is derived from one has lost the grid mapping
    filled = "_FillValue" in encoding and array.dtype.kind == "f" and _has(attrs, ("nodata",))
    return located or not filled


_COMPARED = re.compile(
    r"(eq|ne|lt|le|gt|ge|and_|or_|xor|inv|invert|any|all|is\w+|not\w+|logical_\w+|bitwise_\w+)(-|_\d)"
)
_MOVED = re.compile(
    r"(getitem|astype|transpose|rechunk|concatenate|stack|reshape|broadcast_to|roll|copy|squeeze|expand_dims|where)-"
)
_OPENED = re.compile(r"(open_\w+|fetch_raster_window)-")
_OF_EACH_PIXEL = frozenset(
    {name for name in dir(operator) if not name.startswith("_")}
    | {name for name in dir(np) if isinstance(getattr(np, name), np.ufunc)}
    | {"astype", "clip", "round", "where"}
) - {"getitem", "setitem"}
_CALCULATED = _OF_EACH_PIXEL | {
    *("mean", "median", "sum", "max", "min", "std", "var", "quantile", "cumsum", "cumprod", "setitem", "lambda")
}


def _of_graph(name: str, graph: HighLevelGraph, *, opened: bool) -> Origin:
    """Return whether the layers of a Dask array only move what was read, or calculate.

    `opened` says whether arrays that xarray opened are raw, and not what was derived from one and written.
    """
    todo, seen, kinds = [name], {name}, set()
    while todo:
        layer = todo.pop()
        below = graph.dependencies.get(layer, set())
        if _is_read(layer, graph) or (opened and _OPENED.match(layer)):
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


def _is_read(name: str, graph: HighLevelGraph) -> bool:
    """Return whether a layer holds what odc-stac or `open_cube` read, or is one of a composite."""
    ours = ("s2composite-stack-", "read+composite-", "reduce-")
    return f"open-{name}" in graph.layers or any(one.startswith(ours) for one in graph.dependencies.get(name, ()))


def _reads(graph: HighLevelGraph) -> bool:
    """Return whether a graph reads what another library opened."""
    return any(name.startswith("open-") or _OPENED.match(name) for name in graph.layers)


def _function(layer: str) -> str:
    """Return what Dask calls the function of a layer.

    >>> _function("add-0123abcd"), _function("sqrt_0-0123abcd")
    ('add', 'sqrt')
    """
    return re.split(r"-|_\d", layer, maxsplit=1)[0]


def _became(array: xr.DataArray, nodata: float | None) -> float | None:
    """Return what became of the nodata value of a cube of integers from `open_cube`; None if that is not certain.

    Where every pixel was calculated from itself alone, the same is done with all values that the type has. If another
    value came to the same, nobody can tell the two apart any more.
    """
    if nodata is None or array.chunks is None or "engine" not in array.attrs:
        return None
    graph = array.data.dask
    stacks = [layer for name, layer in graph.layers.items() if name.startswith("s2composite-stack-")]
    if len(stacks) != 1:
        return None
    (read,) = dict(stacks[0]).values()
    dtype = np.dtype(read.value.stack.dtype)
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return None
    ends = np.iinfo(dtype)
    values = np.arange(ends.min, ends.max + 1).astype(dtype)
    leaves: dict[str, NDArray[Any]] = {}
    with np.errstate(all="ignore"):
        results = _calculated(array.data.name, graph, values, leaves)
    if len(leaves) != 1 or _of_graph(next(iter(leaves)), graph, opened=False) != "stored":
        return None
    here = results[values == nodata]
    if not here.size:
        return None
    same = np.isnan(results) if np.isnan(here).any() else results == here
    return float(here[0]) if same.sum() == 1 or np.isnan(here[0]) else None


def _calculated(
    name: str, graph: HighLevelGraph, values: NDArray[Any], leaves: dict[str, NDArray[Any]]
) -> NDArray[Any]:
    """Do with `values` what the layers of a graph do with each pixel; fill in which layers they start from."""
    layer = graph.layers[name]
    if not isinstance(layer, Blockwise) or _function(name) not in _OF_EACH_PIXEL or _is_read(name, graph):
        return leaves.setdefault(name, values)
    arguments = {
        blockwise_token(i): argument if axes is None else _calculated(str(argument), graph, values, leaves)
        for i, (argument, axes) in enumerate(layer.indices)
    }
    return np.broadcast_to(layer.task(arguments), values.shape)


def _of_floats(array: xr.DataArray, stated: float | None, origin: Origin, signed: bool) -> MissingValue:
    """Return the nodata value of floats that have lost their encoding, or never had one."""
    if origin == "computed" or stated is None or math.isnan(stated):
        nan = origin == "computed" or signed
        return MissingValue(math.nan if nan else stated, derived=nan)
    if array.chunks is not None:
        # Held by workers, or cut into chunks later: no look at the values without computing them.
        held = signed and bool(_MOVED.match(array.data.name))
        return MissingValue(math.nan if signed else stated, signed, unknown=_unknown(array, stated) if held else "")
    return _of_derived_values(array, stated) if signed else _of_values(array, stated)


def _of_derived_values(array: xr.DataArray, stated: float) -> MissingValue:
    """Return the nodata value of floats in memory that were derived from an array which declared one.

    Whole numbers, none below 0 and the declared one among them, are what `astype` makes of integers, but differences
    can be like that, too. Maps of differences are common, and time series that only changed their type.
    """
    values = array.values[np.isfinite(array.values)]
    whole = (values == stated).any() and (values == np.rint(values)).all() and not np.isin(values, (0, 1)).all()
    doubtful = whole and (stated != 0 or (array.sizes.get("time", 1) > 1 and values.min() >= 0))
    if whole and not doubtful and values.min() >= 0:
        LOG.warning(
            "%s was derived from an array whose nodata value was %g, which counts as data now; put NaN there before "
            "calculating if it is not",
            _called(array),
            stated,
        )
    return MissingValue(math.nan, derived=True, unknown=_unknown(array, stated) if doubtful else "")


def _of_values(array: xr.DataArray, stated: float) -> MissingValue:
    """Return the nodata value of floats in memory of which only the declaration is known.

    They may be derived from one of odc-stac, whose arrays have no other attributes: then 0 is data among negative
    numbers and flags, and no data among whole numbers.
    """
    loaded = "spatial_ref" in array.coords and isinstance(array.attrs.get("nodata"), float) and len(array.attrs) == 1
    values = array.values[np.isfinite(array.values)]
    if not loaded or stated != 0 or not (values == 0).any():
        return MissingValue(stated)
    if values.min() < 0 or np.isin(values, (0, 1)).all():
        return MissingValue(math.nan, derived=True)
    whole = bool((values == np.rint(values)).all())
    return MissingValue(stated, unknown="" if whole else _unknown(array, stated))


def _unknown(array: xr.DataArray, stated: float | None) -> str:
    """Return why nobody can tell the nodata value of an array, and what to do."""
    number = 0.0 if stated is None else stated
    return (
        f"{_called(array)} ({array.dtype}) was derived from one whose nodata value was {number:g}; which of its "
        f"numbers mean no data cannot be told. Put NaN there first, cube.where(cube != {number:g}), "
        "or say which: .drop_attrs(deep=False).assign_attrs(_FillValue=...), without assign_attrs() if all numbers are "
        "data; composite() also takes it as a rule: valid=[Nodata(...)], or valid=() for none"
    )


def _called(array: xr.DataArray) -> str:
    return "the array" if array.name is None else f"the array {str(array.name)!r}"


def with_nodata(array: xr.DataArray, nodata: float | None) -> xr.DataArray:
    """Return an array that declares its nodata value, in a way that does not outlive arithmetic.

    `encoding` is what xarray drops when values change; it does not write keys that it does not know into files, but the
    grid mapping, by which the array is known again when it is opened.
    """
    out = array if nodata is None else array.assign_attrs(nodata=nodata)
    out = out.copy(deep=False) if out is array else out
    out.encoding = {**array.encoding, "nodata": nodata, "native": str(array.dtype)}
    if "spatial_ref" in array.coords and "grid_mapping" not in array.attrs:
        out.encoding["grid_mapping"] = "spatial_ref"
    return out


def stacked(dataset: xr.Dataset) -> xr.DataArray:
    """Return the variables of a Dataset as the bands of one array, with a nodata value that is true for all of them.

    Integers with different ones become floats with NaN.
    """
    variables = {str(name): array for name, array in dataset.data_vars.items()}
    missing = {name: missing_value_of(array) for name, array in variables.items()}
    first = next(iter(variables.values()))
    if any(one.unknown for one in missing.values()):
        # Rules that name a value need no other; without them, this array cannot be told either.
        return dataset.to_dataarray("band").assign_attrs(first.attrs)
    clean = {name: missing[name].with_nan(array) for name, array in variables.items()}
    values = {str(one.nodata): one.nodata for one in missing.values()}
    if all(array.dtype.kind in "iu" for array in variables.values()) and set(values) == {"None", "0.0"}:
        values.pop("None")  # 0 is the default
    nodata = next(iter(values.values())) if len(values) == 1 else math.nan
    if len(values) > 1:
        clean = {name: _only_nan(array, missing[name].nodata) for name, array in clean.items()}
    array = xr.Dataset(clean, attrs=dataset.attrs).to_dataarray("band")
    return with_nodata(array.assign_attrs(first.attrs), nodata)


def _only_nan(array: xr.DataArray, nodata: float | None) -> xr.DataArray:
    """Return an array as floats that hold NaN where it has no value."""
    floats = array.astype(np.result_type(array.dtype, np.float32), copy=False)
    return floats if nodata is None or math.isnan(nodata) else floats.where(array != nodata)
