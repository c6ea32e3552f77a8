"""Arrays of odc-stac, stackstac, rioxarray or NumPy as cubes; masks given as arrays; the axis of periods."""

from __future__ import annotations

import datetime as dt
import operator
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias, TypeVar, cast

import dask.array as da
import numpy as np
import xarray as xr

from s2composite.cube.array_values import missing_value_of, stacked
from s2composite.cube.georeference import crs_of, geobox_of, georeferenced, label_shift, rises
from s2composite.cube.masking import coded
from s2composite.cube.open import stack_of
from s2composite.errors import ParameterError
from s2composite.pixels.mask_bands import MaskRule, resolve_rule
from s2composite.pixels.masks import DEFAULT_RULES, Rule
from s2composite.pixels.reducers import Recipe
from s2composite.reading.grid import centre_longitude
from s2composite.scenes.dates import Day, Period, PeriodSpec, day_of, find_periods
from s2composite.scenes.products import fmask_coding_of, named_values, same_band

__all__ = [
    "DAYS",
    "ValidArray",
    "ValidRules",
    "as_cube",
    "days_of",
    "groups_of",
    "usable_cube",
    "with_plain_dims",
    "with_time_axis",
]

_DIMS = ("time", "band", "y", "x")
_SPELLINGS = {
    "time": ("t", "date", "datetime", "valid_time"),
    "band": ("bands", "variable", "wavelength"),
    "y": ("latitude", "lat", "northing", "projection_y_coordinate"),
    "x": ("longitude", "lon", "easting", "projection_x_coordinate"),
}
_PLAIN = {spelling: plain for plain, others in _SPELLINGS.items() for spelling in (plain, *others)}
"""Names of a cube's dimensions here, by the lower-case names that other libraries use."""

_GRID_MAPPING = {"crs_wkt", "spatial_ref", "grid_mapping_name"}
"""Attributes of a variable that describes the coordinate system."""


def as_cube(cube: Any) -> xr.DataArray:
    """Return a cube with dimensions (time, band, y, x) in this order, and coordinates for time and band."""
    if not isinstance(cube, xr.Dataset | xr.DataArray):
        raise ParameterError(f"composite() takes a DataArray or Dataset over time, not a {type(cube).__name__}")
    array = _bands_of(with_plain_dims(cube)) if isinstance(cube, xr.Dataset) else with_plain_dims(cube)
    if "band" not in array.dims:
        only = array.coords["band"].item() if "band" in array.coords and array["band"].ndim == 0 else array.name
        array = array.drop_vars("band", errors="ignore").expand_dims(band=[str("value" if only is None else only)])
    if set(array.dims) != set(_DIMS):
        cure = "; give it one with .expand_dims('time')" if set(array.dims) == set(_DIMS[1:]) else ""
        raise ParameterError(f"the cube has dimensions {array.dims}; composite() takes (time, band, y, x){cure}")
    names = {"time": "times", "band": "bands", "y": "rows", "x": "columns"}
    empty = [name for dim, name in names.items() if array.sizes[dim] == 0]
    if empty:
        raise ParameterError(f"the cube has no {' and no '.join(empty)}; nothing to composite")
    array = array.transpose(*_DIMS)
    if "scene" in array.coords and not array["scene"].ndim:  # `isel(time=0)` removed its dimension
        scenes = np.atleast_1d(array["scene"].values)
        array = array.assign_coords(scene=("time", scenes)) if array.sizes["time"] == 1 else array.drop_vars("scene")
    missing = {dim: np.arange(array.sizes[dim]) for dim in ("time", "band") if dim not in array.coords}
    return georeferenced(array.assign_coords(missing))


_Data = TypeVar("_Data", xr.DataArray, xr.Dataset)


def with_plain_dims(data: _Data) -> _Data:
    """Return an array or Dataset with dimensions renamed to time, band, y and x where they are unambiguous."""
    plain = {dim: _PLAIN.get(str(dim).lower()) for dim in data.dims}
    times = Counter(plain.values())  # if two dimensions match a name, neither is renamed
    renamed = {dim: name for dim, name in plain.items() if name and times[name] == 1 and dim != name}
    # A non-dimension coordinate may already have that name.
    return data.drop_vars(list(renamed.values()), errors="ignore").rename(renamed)


def _bands_of(dataset: xr.Dataset) -> xr.DataArray:
    """Return the variables of a Dataset as bands, without those that have no y and x, such as time bounds."""
    systems = [name for name, array in dataset.data_vars.items() if _GRID_MAPPING & set(array.attrs)]
    # GDAL writes the CRS as a variable; concatenation over time may have repeated it.
    located = dataset.drop_vars(systems).assign_coords(
        {name: xr.Variable((), 0, dataset[name].attrs) for name in systems}
    )
    pictures = located.drop_vars([name for name, a in located.data_vars.items() if not {"y", "x"} <= set(a.dims)])
    names = ", ".join(map(str, pictures.data_vars))
    if not names:
        raise ParameterError(
            f"no variable of the Dataset has y and x; it has {', '.join(map(str, dataset.data_vars)) or 'none'}"
        )
    if any("band" in array.dims for array in pictures.data_vars.values()):
        if len(pictures.data_vars) > 1:
            raise ParameterError(f"several variables of the Dataset have bands ({names}); choose one, dataset[name]")
        return next(iter(pictures.data_vars.values()))
    timeless = [str(name) for name, array in pictures.data_vars.items() if "time" not in array.dims]
    if timeless and len(timeless) < len(pictures.data_vars):
        raise ParameterError(
            f"{', '.join(timeless)} of the Dataset has no time, so it is no band of scenes; remove it with drop_vars()"
        )
    return stacked(pictures)


def days_of(array: xr.DataArray) -> tuple[float, ...] | None:
    """Return the time of each scene in days since 1970-01-01T00:00 UTC, None if the times are not dates."""
    times = array["time"].values
    if not np.issubdtype(times.dtype, np.datetime64):
        return None
    return tuple((times.astype("datetime64[us]").astype(np.int64) / 86_400_000_000).tolist())


ValidArray: TypeAlias = Any
"""``(time, y, x)`` bool of a cube, NumPy or Dask: False where an observation must not be used."""

OneRule: TypeAlias = Rule | xr.DataArray | str | Mapping[str, Mapping[str, Any] | None]
"""A rule; by its name, ``"scl"``, or with parameters ``{"scl": {"closing": 3}}``, as in jobs; or a boolean array."""

ValidRules: TypeAlias = OneRule | Sequence[OneRule]
"""What `composite` takes as ``valid``: rules and the user's own boolean arrays."""


def rules_of(valid: ValidRules | None) -> tuple[Rule | xr.DataArray, ...]:
    """Return ``valid`` as a tuple of rules and arrays; None means the default rules."""
    if valid is None:
        return DEFAULT_RULES
    several = isinstance(valid, Iterable) and not isinstance(valid, (str, bytes, Mapping, xr.DataArray, xr.Dataset))
    rules: list[Any] = []
    for given in cast("Iterable[Any]", valid) if several else (valid,):
        if isinstance(given, str):
            rules.append(resolve_rule(given))
        elif isinstance(given, Mapping) and not isinstance(given, xr.Dataset):
            if len(given) != 1 or not isinstance(next(iter(given.values())), Mapping | None):
                raise ParameterError(
                    f"valid contains {dict(given)!r}; a rule with parameters is {{name: {{parameter: value}}}}"
                )
            ((name, parameters),) = given.items()
            rules.append(resolve_rule(name, **(parameters or {})))
        else:
            rules.append(given)
    return tuple(rules)


def usable_cube(
    cube: Any, valid: ValidRules | None
) -> tuple[xr.DataArray, Recipe, ValidArray | None, tuple[Rule | xr.DataArray, ...]]:
    """Separate a cube from its masks.

    Rules on mask bands that the cube or Dataset contains are evaluated, and those bands removed from it. A cube from
    `open_cube` is not changed: its mask bands are read separately, at their own resolution.

    Returns the cube ``(time, band, y, x)``; a recipe without reducers, with the rules that are still to be evaluated;
    ``(time, y, x)`` masks and evaluated rules combined, None if there are none; and `valid` in its order, with masks as
    ``(time, y, x)`` of the cube and rules on Fmask in the coding of their band.
    """
    rules = rules_of(valid)
    for one in rules:
        if not isinstance(one, Rule | xr.DataArray):
            raise ParameterError(
                f"valid contains {repr(one)[:100]}; it takes rules (Nodata(), SCL() ..., or their names) and boolean "
                "DataArrays (time, y, x)"
            )
    array, bands = _split_masks(cube, {one.band for one in rules if isinstance(one, MaskRule)})
    stack = stack_of(array)
    applied: list[Rule | xr.DataArray] = []
    left: list[Rule] = []
    masks: list[ValidArray] = []
    given = next(iter(cube.data_vars.values()), None) if isinstance(cube, xr.Dataset) else cube
    shift = label_shift(given) if isinstance(given, xr.DataArray) else None
    for one in rules:
        if isinstance(one, xr.DataArray):
            masks.append(_aligned(one, array, shift))
            applied.append(xr.DataArray(masks[-1], dims=("time", "y", "x"), name=one.name))
        elif isinstance(one, MaskRule) and one.band in bands:
            band = bands[one.band]
            applied.append(rule := _coded_by_band(one, band))
            masks.append(_evaluated(rule, band.data))
        else:
            known = coded(one, stack[0].scenes) if isinstance(one, MaskRule) and stack else one
            applied.append(known)
            left.append(known)
    missing = missing_value_of(array)
    array = missing.with_nan(array)
    declared = np.atleast_1d(array.attrs.get("saturated", ()))
    trusted = declared.dtype.kind in "iuf" and not missing.derived
    recipe = Recipe(
        reducers=(),
        rules=tuple(left),
        bands=tuple(str(band) for band in array["band"].values),
        nodata=missing.for_rules(left, array.dtype),
        saturated=tuple(map(float, declared)) if trusted else (),
    )
    return array, recipe, reduce(operator.and_, masks) if masks else None, tuple(applied)


def _coded_by_band(rule: MaskRule, band: xr.DataArray) -> MaskRule:
    """Return an Fmask rule in the coding given by the band's name or by Open Data Cube's list of its classes."""
    if not rule.codings:
        return rule
    flags = band.attrs.get("flags_definition")
    lists = (
        [flag.get("values") for flag in flags.values() if isinstance(flag, Mapping)]
        if isinstance(flags, Mapping)
        else []
    )
    listed = {str(name): value for values in lists if isinstance(values, Mapping) for value, name in values.items()}
    name = str(band["band"].item()) if "band" in band.coords else rule.band
    return rule.in_coding(fmask_coding_of(listed) or named_values(name, None).coding)


def _split_masks(cube: Any, wanted: Collection[str]) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """Return a cube without its mask bands, and the mask bands ``(time, y, x)`` by the names used in rules."""
    if isinstance(cube, xr.Dataset):
        # Before bands are stacked: mask bands often have another dtype.
        names = _names_in(wanted, list(map(str, cube.data_vars)))
        bands = {band: as_cube(cube[name])[:, 0].assign_attrs(cube[name].attrs) for band, name in names.items()}
        rest: Any = cube.drop_vars(names.values())
        left = len(rest.data_vars)
    else:
        rest = as_cube(cube)
        names = {} if not wanted or stack_of(rest) is not None else _names_in(wanted, list(rest["band"].values))
        bands = {band: rest.sel(band=name) for band, name in names.items()}
        rest = rest.sel(band=[band for band in rest["band"].values if band not in names.values()]) if names else rest
        left = rest.sizes["band"]
    if names and not left:
        raise ParameterError(
            f"the cube has only the mask band {next(iter(names.values()))!r}; there is no band to composite"
        )
    return (as_cube(rest) if isinstance(rest, xr.Dataset) else rest), bands


def _names_in(wanted: Collection[str], names: Sequence[Any]) -> dict[str, Any]:
    """Map names of mask bands to the cube's names: ``scl``, as in catalogues, is the band ``SCL``."""
    alike = {band: [name for name in names if same_band(str(name))[0] == same_band(band)[0]] for band in wanted}
    return {band: band if band in names else found[0] for band, found in alike.items() if found}


def _evaluated(rule: MaskRule, band: Any) -> ValidArray:
    """Evaluate a rule on its band ``(t, y, x)``; each chunk gets the surrounding pixels that affect it."""
    if not isinstance(band, da.Array):
        return rule.valid(np.asarray(band))
    return da.map_overlap(
        rule.valid,
        band.rechunk({0: -1}),
        depth={0: 0, 1: min(rule.halo, band.shape[1]), 2: min(rule.halo, band.shape[2])},
        boundary="none",
        dtype=bool,
        meta=np.empty((0, 0, 0), bool),
    )


def _aligned(mask: xr.DataArray, cube: xr.DataArray, shift: tuple[float, float] | None) -> ValidArray:
    """Return a mask as ``(time, y, x)`` of the cube; one without time applies to all scenes.

    `shift` is the shift of the original cube's coordinates; a mask made from that cube has the same coordinates.
    """
    name = mask.name or "the mask"
    if mask.dtype != np.bool_:
        raise ParameterError(f"{name} is {mask.dtype}; valid takes boolean arrays, True where an observation is valid")
    mask = with_plain_dims(mask)
    extra = set(mask.dims) - {"time", "y", "x"}
    if extra or not {"y", "x"} <= set(mask.dims):
        raise ParameterError(f"{name} has dimensions {tuple(mask.dims)}; a mask has (time, y, x) or (y, x)")
    theirs, ours = crs_of(mask), crs_of(cube)
    if theirs is not None and ours is not None and theirs != ours:
        names = [f"EPSG:{crs.epsg}" if crs.epsg else str(crs) for crs in (theirs, ours)]
        raise ParameterError(f"{name} is in {names[0]}, the cube in {names[1]}; reproject it to the cube's grid")
    own = label_shift(mask)
    dx, dy = (own if own is not None else shift) or (0.0, 0.0)
    moved = {dim: mask[dim] + by for dim, by in (("x", dx), ("y", dy)) if dim in mask.coords}
    mask = mask.assign_coords(moved)
    # axes that run opposite to the cube's, such as rows from south to north
    opposite = [dim for dim in moved if {rises(mask, dim), rises(cube, dim)} == {True, False}]
    mask = mask.isel({dim: slice(None, None, -1) for dim in opposite})
    for dim in mask.dims:
        _check_axis(str(dim), name, mask, cube)
    if "time" in mask.dims:
        data: ValidArray = mask.transpose("time", "y", "x").data
        return data
    data = mask.transpose("y", "x").data
    shape = (cube.sizes["time"], *data.shape)
    return (
        da.broadcast_to(data, shape)
        if isinstance(data, da.Array)
        else np.ascontiguousarray(np.broadcast_to(data, shape))
    )


def _check_axis(dim: str, name: object, mask: xr.DataArray, cube: xr.DataArray) -> None:
    """Raise unless a mask's axis is the cube's: sizes must match, and labels if both have them."""
    same = mask.sizes[dim] == cube.sizes[dim]
    if same and dim in mask.coords and dim in cube.coords:
        ours, theirs = cube[dim].values, mask[dim].values
        if dim == "time":
            same = bool((ours == theirs).all())
        else:
            step = abs(float(ours[-1]) - float(ours[0])) / max(len(ours) - 1, 1)
            same = bool(np.allclose(ours, theirs, rtol=0, atol=0.01 * step))
    if not same:
        raise ParameterError(
            f"{name} is not on the cube's {dim} axis: {_axis(mask, dim)} against {_axis(cube, dim)} of the cube; "
            "select or reproject it to the cube's scenes and grid"
        )


def _axis(array: xr.DataArray, dim: str) -> str:
    size = f"{array.sizes[dim]} values"
    if dim not in array.coords:
        return size
    return f"{size} from {array[dim].values[0]} to {array[dim].values[-1]}"


DAYS = ("utc", "solar")
"""How days are counted."""


def groups_of(
    cube: xr.DataArray, spec: PeriodSpec, day: Day, *, keep_empty: bool
) -> tuple[tuple[Period, tuple[int, ...]], ...]:
    """Return the periods of a cube ``(time, band, y, x)`` with the positions of the scenes in each."""
    times = cube["time"].values
    if not np.issubdtype(times.dtype, np.datetime64) or np.isnat(times).any():
        raise ParameterError("periods need dates, and the cube's time coordinate has none; assign them to it")
    longitude = 0.0
    if day == "solar":
        geobox = geobox_of(cube)
        if geobox is None or geobox.crs is None:
            raise ParameterError('day="solar" needs the position of the cube, which has no CRS; use day="utc"')
        longitude = centre_longitude(geobox)
    moments = times.astype("datetime64[us]").astype(dt.datetime)
    days = [day_of(moment.replace(tzinfo=dt.UTC), day, longitude) for moment in moments]
    groups = [
        (period, tuple(t for t, one in enumerate(days) if one in period))
        for period in find_periods(spec, min(days), max(days))
    ]
    if not any(scenes for _, scenes in groups):
        raise ParameterError(
            f"no scene lies in period {spec!r}: it covers {groups[0][0].start} to {groups[-1][0].end}, "
            f"the scenes {min(days)} to {max(days)}"
        )
    return tuple((period, scenes) for period, scenes in groups if keep_empty or scenes)


def with_time_axis(dataset: xr.Dataset, groups: Sequence[tuple[Period, tuple[int, ...]]], day: Day) -> xr.Dataset:
    """Return a dataset with the coordinates of its dimension ``time``.

    ``time`` is the first day of each period, ``time_bounds`` ``(time, bnds)`` that day and the day after the last,
    ``period`` its label, and ``scenes`` the number of scenes in it.
    """
    bounds = np.array([(period.start, period.end) for period, _ in groups], "datetime64[ns]")
    labels = np.array([period.label for period, _ in groups], dtype=str)
    numbers = np.array([len(scenes) for _, scenes in groups], np.int32)
    coords = {
        "time": ("time", bounds[:, 0], {"standard_name": "time", "bounds": "time_bounds", "day": day}),
        "time_bounds": (("time", "bnds"), bounds, {"long_name": "first day of the period, day after its last"}),
        "period": ("time", labels),
        "scenes": ("time", numbers, {"long_name": "scenes in the period"}),
    }
    return dataset.assign_coords(coords)
