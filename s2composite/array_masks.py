"""Masks given as arrays: boolean DataArrays, and mask bands inside a cube that is not from `open_cube`."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias, cast

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from s2composite.as_cube import as_cube, with_plain_dims
from s2composite.cube import stack_of
from s2composite.errors import ParameterError
from s2composite.georeference import crs_of, label_shift
from s2composite.masking import coded
from s2composite.pixels.flags import MaskRule
from s2composite.pixels.masks import DEFAULT_RULES, Rule
from s2composite.pixels.rules import resolve_rule
from s2composite.scenes.names import same_band
from s2composite.scenes.values import fmask_coding_of, named_values

__all__ = ["ValidArray", "ValidRules", "rules_of", "usable_cube"]

ValidArray: TypeAlias = Any
"""``(time, y, x)`` bool of a cube, NumPy or Dask: False where an observation must not be used."""

OneRule: TypeAlias = Rule | xr.DataArray | str | Mapping[str, Mapping[str, Any] | None]
"""A rule; by its name, ``"scl"``, or with parameters ``{"scl": {"closing": 3}}``, as in jobs; or a boolean array."""

ValidRules: TypeAlias = OneRule | Sequence[OneRule]
"""What `composite` takes as ``valid``: rules, and boolean arrays of the user's own."""


def rules_of(valid: ValidRules | None) -> tuple[Rule | xr.DataArray, ...]:
    """Return what was given as ``valid`` as a tuple of rules and arrays; the default rules for None.

    Raises
    ------
    ParameterError
        A name, or a parameter of a rule, is unknown.
    """
    if valid is None:
        return DEFAULT_RULES
    several = isinstance(valid, Iterable) and not isinstance(valid, (str, bytes, Mapping, xr.DataArray, xr.Dataset))
    return tuple(map(_rule, cast("Iterable[Any]", valid) if several else (valid,)))


def _rule(given: Any) -> Any:
    if isinstance(given, str):
        return resolve_rule(given)
    if isinstance(given, Mapping) and not isinstance(given, xr.Dataset):
        if len(given) != 1 or not isinstance(next(iter(given.values())), Mapping | None):
            raise ParameterError(
                f"valid holds {dict(given)!r}; a rule with parameters is {{name: {{parameter: value}}}}"
            )
        ((name, parameters),) = given.items()
        return resolve_rule(name, **(parameters or {}))
    return given


def usable_cube(
    cube: Any, valid: Sequence[Rule | xr.DataArray]
) -> tuple[xr.DataArray, tuple[Rule, ...], ValidArray | None, tuple[Rule | xr.DataArray, ...]]:
    """Separate a cube from its masks.

    Rules on mask bands that the cube or Dataset contains are evaluated, and those bands removed from it. A cube from
    `open_cube` is left as it is: its mask bands are read beside the data, at their own resolution.

    Returns
    -------
    cube
        ``(time, band, y, x)``.
    rules
        Rules that are still to be evaluated.
    mask
        ``(time, y, x)``: masks and evaluated rules combined; None if there are none.
    applied
        `valid` in its order, each rule on Fmask in the coding of its band.

    Raises
    ------
    ParameterError
        The cube has other dimensions, a mask is not boolean or not on the cube's grid and times, or `valid` holds
        something that is neither a rule nor an array.
    """
    for one in valid:
        if not isinstance(one, Rule | xr.DataArray):
            raise ParameterError(
                f"valid holds {repr(one)[:100]}; it takes rules (Nodata(), SCL() ..., or their names) and boolean "
                "DataArrays (time, y, x)"
            )
    array, bands = _apart(cube, {one.band for one in valid if isinstance(one, MaskRule)})
    found = stack_of(array)
    applied: list[Rule | xr.DataArray] = []
    left: list[Rule] = []
    masks: list[ValidArray] = []
    shift = _shift_of(cube)
    for one in valid:
        if isinstance(one, xr.DataArray):
            applied.append(one)
            masks.append(_aligned(one, array, shift))
        elif isinstance(one, MaskRule) and one.band in bands:
            band = bands[one.band]
            applied.append(rule := _coded_by_band(one, band))
            masks.append(_evaluated(rule, band.data))
        else:
            known = coded(one, found[0].scenes) if isinstance(one, MaskRule) and found else one
            applied.append(known)
            left.append(known)
    return array, tuple(left), _together(masks), tuple(applied)


def _coded_by_band(rule: MaskRule, band: xr.DataArray) -> MaskRule:
    """Return a rule on Fmask in the coding that the name of the band, or Open Data Cube's list of its classes, says."""
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


def _apart(cube: Any, wanted: Collection[str]) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """Return a cube without its mask bands, and those ``(time, y, x)`` by the names that rules have for them."""
    if isinstance(cube, xr.Dataset):
        # Before they are stacked: mask bands are often of another type.
        here = _called(wanted, list(map(str, cube.data_vars)))
        bands = {band: as_cube(cube[name])[:, 0].assign_attrs(cube[name].attrs) for band, name in here.items()}
        rest: Any = cube.drop_vars(here.values())
        left = len(rest.data_vars)
    else:
        rest = as_cube(cube)
        here = {} if not wanted or stack_of(rest) is not None else _called(wanted, list(rest["band"].values))
        bands = {band: rest.sel(band=name) for band, name in here.items()}
        rest = rest.sel(band=[band for band in rest["band"].values if band not in here.values()]) if here else rest
        left = rest.sizes["band"]
    if here and not left:
        raise ParameterError(
            f"the cube has no band besides the mask band {next(iter(here.values()))!r}; there is nothing to composite"
        )
    return (as_cube(rest) if isinstance(rest, xr.Dataset) else rest), bands


def _called(wanted: Collection[str], names: Sequence[Any]) -> dict[str, Any]:
    """Return what mask bands are called where they are: ``scl``, as catalogues have it, is the band ``SCL``."""
    alike = {band: [name for name in names if same_band(str(name))[0] == same_band(band)[0]] for band in wanted}
    return {band: band if band in names else found[0] for band, found in alike.items() if found}


def _together(masks: Sequence[ValidArray]) -> ValidArray | None:
    return reduce(operator.and_, masks) if masks else None


def _evaluated(rule: MaskRule, band: Any) -> ValidArray:
    """Evaluate a rule on its band ``(t, y, x)``; each chunk sees the pixels around it that matter."""
    if not isinstance(band, da.Array):
        return rule.valid(np.asarray(band))
    halo = {1: rule.halo, 2: rule.halo}
    return da.map_overlap(
        _evaluated_block,
        band.rechunk({0: -1}),
        rule=rule,
        depth={0: 0, **halo},
        boundary="none",
        dtype=bool,
        meta=np.empty((0, 0, 0), bool),
    )


def _evaluated_block(block: NDArray[Any], rule: MaskRule) -> NDArray[np.bool_]:
    return rule.valid(block)


def _shift_of(cube: Any) -> tuple[float, float] | None:
    """Return what is added to a cube's coordinates for the centres of its pixels; see `label_shift`."""
    array = next(iter(cube.data_vars.values()), None) if isinstance(cube, xr.Dataset) else cube
    return label_shift(array) if isinstance(array, xr.DataArray) else None


def _aligned(mask: xr.DataArray, cube: xr.DataArray, shift: tuple[float, float] | None) -> ValidArray:
    """Return a mask as ``(time, y, x)`` of the cube; one without time applies to all scenes.

    Parameters
    ----------
    shift
        Of the coordinates of the cube as it was given, with which a mask made from it agrees.
    """
    name = mask.name or "the mask"
    if mask.dtype != np.bool_:
        raise ParameterError(f"{name} is {mask.dtype}; valid takes boolean arrays, True where an observation is valid")
    mask = with_plain_dims(mask)
    extra = set(mask.dims) - {"time", "y", "x"}
    if extra or not {"y", "x"} <= set(mask.dims):
        raise ParameterError(f"{name} has dimensions {tuple(mask.dims)}; a mask has (time, y, x) or (y, x)")
    there, here = crs_of(mask), crs_of(cube)
    if there is not None and here is not None and there != here:
        names = [f"EPSG:{crs.epsg}" if crs.epsg else str(crs) for crs in (there, here)]
        raise ParameterError(f"{name} is in {names[0]}, the cube in {names[1]}; reproject it to the cube's grid")
    own = label_shift(mask)
    dx, dy = (own if own is not None else shift) or (0.0, 0.0)
    moved = {dim: mask[dim] + by for dim, by in (("x", dx), ("y", dy)) if dim in mask.coords}
    mask = mask.assign_coords(moved)
    mask = mask.isel({dim: slice(None, None, -1) for dim in moved if _is_reversed(mask, cube, dim)})
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


def _is_reversed(mask: xr.DataArray, cube: xr.DataArray, dim: str) -> bool:
    """Return whether an axis runs the other way: rows from south to north, where the cube's begin in the north."""
    if dim not in cube.coords or mask.sizes[dim] < 2 or cube.sizes[dim] < 2:
        return False
    first, last = mask[dim].values[[0, -1]]
    return bool(np.sign(last - first) == -np.sign(cube[dim].values[-1] - cube[dim].values[0]))


def _check_axis(dim: str, name: object, mask: xr.DataArray, cube: xr.DataArray) -> None:
    """Raise if a mask's axis is not the cube's: sizes have to agree, and labels where both have them."""
    same = mask.sizes[dim] == cube.sizes[dim]
    if same and dim in mask.coords and dim in cube.coords:
        ours, theirs = cube[dim].values, mask[dim].values
        if dim == "time":
            same = bool((ours == theirs).all())
        else:
            step = abs(float(ours[-1] - ours[0])) / max(len(ours) - 1, 1)
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
