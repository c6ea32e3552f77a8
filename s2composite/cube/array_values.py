"""What the numbers of an array mean: which of them says "no data", and whether its attributes still speak of them.

xarray keeps attributes through arithmetic, comparisons, `where` and `astype`, so that ``attrs["nodata"]`` clings to
arrays in which that number is data: an NDVI of 0, a difference of 0, False. What xarray drops there is `encoding`,
so
attributes are believed where the encoding is that of a file or of a loader. Where it is gone, the layers of a Dask
graph tell what became of the nodata value. Of arrays in memory, or held by workers, there is no graph: floats say
"no
data" with NaN, unsigned integers with 0, and a time series that holds none of these is refused, since nobody can
tell
whether its numbers were calculated from nodata. What cannot be told is not guessed.
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
from s2composite.metrics import COMPOSITE_WINDOW, SEND_HEADERS
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
    floats = array.dtype.kind == "f"
    if origin == "flags":
        return MissingValue(math.nan if floats else None, derived=True, flags=True)
    nodata = 0.0 if stated is None and "engine" in array.attrs else stated
    signed = _clings(array.attrs) or _was_loaded(array)
    derived = signed or (origin == "computed" and (floats or _reads(array.data.dask)))
    if nodata is None or math.isnan(nodata):
        return MissingValue(math.nan if floats and derived else stated, derived)
    found = _Became(unique=True, value=nodata) if origin == "cast" else _became(array, nodata)
    if found is not None and found.unique:
        kept = None if found.value == nodata and stated is None else found.value
        cast = None if math.isnan(found.value) else found.value
        return MissingValue(math.nan, True, cast=cast) if floats else MissingValue(kept, True)
    if found is not None and floats:
        return _as_data(array, nodata)
    if found is None and signed and (array.chunks is None or not _reads(array.data.dask)):
        return _of_held(array, nodata, stated)
    value = math.nan if floats and derived else stated
    return MissingValue(value, derived, unknown=_unknown(array, nodata) if derived and not floats else "")


def _of_held(array: xr.DataArray, nodata: float, stated: float | None) -> MissingValue:
    """Return the nodata value of an array in memory, or held by workers, that was derived from one which declared it.

    Scaling, masking and clipping leave 0 what it is in unsigned integers.
    """
    floats, series = array.dtype.kind == "f", array.sizes.get("time", 1) > 1
    if floats and bool(array.isnull().any()):
        return MissingValue(math.nan, derived=True)
    # Nothing but 0 is an area without any observation, rather than a comparison that is true nowhere.
    if bool(array.isin((0, 1)).all()) and bool((array == 1).any()):
        return MissingValue(math.nan if floats else None, derived=True, flags=True)
    if not floats:
        known = array.dtype.kind == "u" and nodata == 0 and (not series or bool((array == 0).any()))
        return MissingValue(stated, derived=True, unknown="" if known else _unknown(array, nodata))
    return _as_data(array, nodata)


def _as_data(array: xr.DataArray, nodata: float) -> MissingValue:
    """Return the nodata value of floats among whose numbers are those that were calculated from nodata.

    Maps are often differences, of which 0 is data: that is said. Series are refused.
    """
    series = array.sizes.get("time", 1) > 1
    if not series:
        LOG.warning(
            "%s was derived from an array whose nodata value was %g, which counts as data now: no NaN takes its place; "
            "put NaN there before calculating if it is not",
            _called(array),
            nodata,
        )
    return MissingValue(math.nan, derived=True, unknown=_unknown(array, nodata) if series else "")


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


def _was_loaded(array: xr.DataArray) -> bool:
    """Return whether an array was derived from one of odc-stac, whose arrays have no other attributes."""
    return "spatial_ref" in array.coords and isinstance(array.attrs.get("nodata"), float) and len(array.attrs) == 1


def _has(attrs: Mapping[Any, Any], names: tuple[str, ...]) -> bool:
    return any(name in attrs for name in names)


Origin = Literal["stored", "cast", "computed", "flags", "unknown"]
"""Numbers as they were declared; the same in another type, or masked; calculated; comparisons; nobody knows."""


def _origin(array: xr.DataArray) -> Origin:
    """Return where the numbers of an array come from."""
    data = array.data
    stated = str(array.encoding.get("layer", ""))
    of_graph = "unknown" if array.chunks is None else _of_graph(data.name, data.dask, opened=_raw(array), stated=stated)
    if _encoded(array):
        # Assignments in place keep the encoding.
        return of_graph if of_graph in ("computed", "flags") else "stored"
    return "cast" if of_graph == "stored" else of_graph


def _raw(array: xr.DataArray) -> bool:
    """Return whether what xarray opened are the numbers of a raster or composite, not what was derived and written."""
    return _has(array.attrs, ("grid_mapping", "AREA_OR_POINT")) and not _from_integers(array)


def _from_integers(array: xr.DataArray) -> bool:
    """Return whether floats were made from a cube of integers: the nodata value that they still have is one."""
    return array.dtype.kind == "f" and isinstance(array.attrs.get("nodata"), int | np.integer)


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
        # A cube that was written and opened again: what is derived from one has lost the grid mapping, or is not raw.
        return located and not _from_integers(array)
    filled = "_FillValue" in encoding and array.dtype.kind == "f" and _has(attrs, ("nodata",))
    return located or not filled


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


def _of_graph(name: str, graph: HighLevelGraph, *, opened: bool, stated: str = "") -> Origin:
    """Return whether the layers of a Dask array only move what was read, or calculate.

    `opened` says whether arrays that xarray opened are raw, and not what was derived from one and written; `stated` is
    a layer for which `with_nodata` declared the nodata value.
    """
    todo, seen, kinds = [name], {name}, set()
    while todo:
        layer = todo.pop()
        below = graph.dependencies.get(layer, set())
        if layer == stated or _is_read(layer, graph) or (opened and _OPENED.match(layer)):
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
    ours = (SEND_HEADERS, COMPOSITE_WINDOW)
    return f"open-{name}" in graph.layers or any(one.startswith(ours) for one in graph.dependencies.get(name, ()))


def _reads(graph: HighLevelGraph) -> bool:
    """Return whether a graph reads what `open_cube` or another library opened, or makes a composite."""
    return any(name.startswith("open-") or _OPENED.match(name) or _is_read(name, graph) for name in graph.layers)


def _function(layer: str) -> str:
    """Return what Dask calls the function of a layer.

    >>> _function("add-0123abcd"), _function("sqrt_0-0123abcd")
    ('add', 'sqrt')
    """
    return re.split(r"-|_\d", layer, maxsplit=1)[0]


@dataclass(frozen=True, slots=True)
class _Became:
    """What became of a nodata value."""

    unique: bool
    """Whether no other value can have come to the same."""

    value: float


_TYPES = tuple(map(np.dtype, ("uint8", "int8", "uint16", "int16", "float32")))


def _became(array: xr.DataArray, nodata: float) -> _Became | None:
    """Return what became of the nodata value of a lazy array; None: more than what was read went into its pixels.

    The same is done with all values of the type that was read, which only a stack of `open_cube` says: of others all
    possible ones have to agree. Where several bands or scenes were combined, other values can always come to the same.
    """
    if array.chunks is None:
        return None
    graph = array.data.dask
    stacks = [dict(layer) for name, layer in graph.layers.items() if name.startswith(SEND_HEADERS)]
    found: list[_Became] = []
    for dtype in {np.dtype(node.value.stack.dtype) for stack in stacks for node in stack.values()} or _TYPES:
        ends = np.iinfo(dtype if dtype.kind in "iu" and dtype.itemsize <= 2 else np.int16)
        if not ends.min <= nodata <= ends.max:
            continue
        values = np.arange(ends.min, ends.max + 1).astype(dtype)
        leaves: dict[tuple[str, ...], NDArray[Any]] = {}
        try:
            with np.errstate(all="ignore"):
                results = _calculated((array.data.name,), graph, values, leaves)
        except (OverflowError, TypeError):
            continue  # what is done cannot be done with this type
        if any(_of_graph(path[-1], graph, opened=True) != "stored" for path in leaves):
            return None
        known = _raw(array) or all(_of_graph(path[-1], graph, opened=False) == "stored" for path in leaves)
        here = results[values == nodata]
        if here.size and results.dtype == array.dtype:
            alone = known and len(leaves) == 1 and (results == here).sum() == 1
            found.append(_Became(bool(np.isnan(here[0]) or alone), float(here[0])))
    if not found:
        return None
    return _Became(all(one.unique for one in found) and len({str(one.value) for one in found}) == 1, found[0].value)


def _calculated(
    path: tuple[str, ...], graph: HighLevelGraph, values: NDArray[Any], leaves: dict[tuple[str, ...], NDArray[Any]]
) -> NDArray[Any]:
    """Do with `values` what the layers of a graph do with each pixel; fill in where they start.

    Parameters
    ----------
    path
        Layer, after the selections that were made of it: other bands of the same layer are other values.
    """
    name = path[-1]
    layer, below = graph.layers[name], graph.dependencies.get(name, set())
    if _SELECTED.match(name) and len(below) == 1 and not _is_read(name, graph):
        return _calculated((*path, *below), graph, values, leaves)
    each = isinstance(layer, Blockwise) and _function(name) in _OF_EACH_PIXEL and not _COMPARED.match(name)
    if not each or _is_read(name, graph):
        return leaves.setdefault(path, values)
    arguments = {
        blockwise_token(i): argument
        if axes is None
        else _calculated((*path[:-1], str(argument)), graph, values, leaves)
        for i, (argument, axes) in enumerate(layer.indices)
    }
    return np.broadcast_to(layer.task(arguments), values.shape)


def _unknown(array: xr.DataArray, stated: float | None) -> str:
    """Return why nobody can tell the nodata value of an array, and what to do."""
    number = 0.0 if stated is None else stated
    return (
        f"{_called(array)} ({array.dtype}) was derived from one whose nodata value was {number:g}; which of its "
        f"numbers mean no data cannot be told. Put NaN there first, cube.where(cube != {number:g}), "
        "or say which: .drop_attrs(deep=False).assign_attrs(_FillValue=...), without assign_attrs() if all numbers are "
        "data, as where nothing was missing; composite() also takes it as a rule: valid=[Nodata(...)], or ()"
    )


def _called(array: xr.DataArray) -> str:
    return "the array" if array.name is None else f"the array {str(array.name)!r}"


def with_nodata(array: xr.DataArray, nodata: float | None) -> xr.DataArray:
    """Return an array that declares its nodata value, in a way that does not outlive arithmetic.

    `encoding` is what xarray drops when values change; it does not write keys that it does not know into files, but the
    grid mapping, by which the array is known again when it is opened.
    """
    shown = int(nodata) if nodata is not None and array.dtype.kind in "iu" and nodata == int(nodata) else nodata
    out = array if nodata is None else array.assign_attrs(nodata=shown)
    out = out.copy(deep=False) if out is array else out
    out.encoding = {**array.encoding, "nodata": nodata, "native": str(array.dtype)}
    if array.chunks is not None:
        out.encoding["layer"] = array.data.name
    if "spatial_ref" in array.coords and "grid_mapping" not in array.attrs:
        out.encoding["grid_mapping"] = "spatial_ref"
        if "coordinates" not in array.attrs:
            # xarray leaves the grid mapping out of the coordinates that it lists, and would open it as a variable
            names = sorted(str(name) for name in array.coords if name not in array.dims and " " not in str(name))
            out.encoding["coordinates"] = " ".join(names)
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
