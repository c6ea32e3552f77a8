"""Arrays from odc-stac, stackstac, rioxarray or NumPy as a cube ``(time, band, y, x)``."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from s2composite.array_values import stacked
from s2composite.errors import ParameterError
from s2composite.georeference import georeferenced

__all__ = ["as_cube", "days_of", "saturated_of", "with_plain_dims"]

_DIMS = ("time", "band", "y", "x")
_SPELLINGS = {
    "time": ("t", "date", "datetime", "valid_time"),
    "band": ("bands", "variable", "wavelength"),
    "y": ("latitude", "lat", "northing", "projection_y_coordinate"),
    "x": ("longitude", "lon", "easting", "projection_x_coordinate"),
}
"""What other libraries call the dimensions of a cube, in lower case."""

_GRID_MAPPING = {"crs_wkt", "spatial_ref", "grid_mapping_name"}
"""Attributes of a variable that describes the coordinate system."""


def as_cube(cube: Any) -> xr.DataArray:
    """Return a cube with dimensions (time, band, y, x) in this order, and coordinates for time and band.

    Raises
    ------
    ParameterError
        It is neither a DataArray nor a Dataset, has other dimensions, or no times, or a Dataset holds something that is
        not a band.
    """
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
    array = _with_scenes(array.transpose(*_DIMS))
    missing = {dim: np.arange(array.sizes[dim]) for dim in ("time", "band") if dim not in array.coords}
    return georeferenced(array.assign_coords(missing))


_Data = TypeVar("_Data", xr.DataArray, xr.Dataset)


def with_plain_dims(data: _Data) -> _Data:
    """Return an array or Dataset whose dimensions are called time, band, y and x, where it is clear which those are."""
    renamed = _plain_names(tuple(data.dims))
    # A coordinate that is no dimension may have that name already.
    return data.drop_vars(list(renamed.values()), errors="ignore").rename(renamed)


def _plain_names(dims: tuple[Hashable, ...]) -> dict[Hashable, str]:
    """Return what dimensions are to be called; those of which two could be meant are left alone."""
    alike = {plain: [dim for dim in dims if str(dim).lower() in (plain, *_SPELLINGS[plain])] for plain in _DIMS}
    return {there[0]: plain for plain, there in alike.items() if len(there) == 1 and there[0] != plain}


def _bands_of(dataset: xr.Dataset) -> xr.DataArray:
    """Return the variables of a Dataset as bands; those without y and x, such as bounds of times, are none."""
    systems = [name for name, array in dataset.data_vars.items() if _GRID_MAPPING & set(array.attrs)]
    # GDAL writes the coordinate system as a variable, which concatenation over time may have repeated.
    located = dataset.drop_vars(systems).assign_coords(
        {name: xr.Variable((), 0, dataset[name].attrs) for name in systems}
    )
    pictures = located.drop_vars([name for name, a in located.data_vars.items() if not {"y", "x"} <= set(a.dims)])
    names = ", ".join(map(str, pictures.data_vars))
    if not names:
        raise ParameterError(
            f"no variable of the Dataset has y and x; there are {', '.join(map(str, dataset.data_vars)) or 'none'}"
        )
    if any("band" in array.dims for array in pictures.data_vars.values()):
        if len(pictures.data_vars) > 1:
            raise ParameterError(f"several variables of the Dataset have bands ({names}); choose one, dataset[name]")
        return next(iter(pictures.data_vars.values()))
    timeless = [str(name) for name, array in pictures.data_vars.items() if "time" not in array.dims]
    if timeless and len(timeless) < len(pictures.data_vars):
        raise ParameterError(
            f"{', '.join(timeless)} of the Dataset has no time and so is no band of scenes; drop_vars() leaves it out"
        )
    return stacked(pictures)


def _with_scenes(array: xr.DataArray) -> xr.DataArray:
    """Return a cube whose coordinate ``scene`` has the dimension time, which `isel(time=0)` takes from it."""
    if "scene" not in array.coords or array["scene"].ndim:
        return array
    if array.sizes["time"] > 1:
        return array.drop_vars("scene")
    return array.assign_coords(scene=("time", np.atleast_1d(array["scene"].values)))


def saturated_of(array: xr.DataArray) -> tuple[float, ...]:
    """Return the values of saturated pixels that a cube of physical values declares."""
    declared = np.atleast_1d(array.attrs.get("saturated", ()))
    return tuple(map(float, declared)) if declared.dtype.kind in "iuf" else ()


def days_of(array: xr.DataArray) -> tuple[float, ...] | None:
    """Return the time of each scene in days since 1970-01-01T00:00 UTC, None if the times are not dates."""
    times = array["time"].values
    if not np.issubdtype(times.dtype, np.datetime64):
        return None
    return tuple((times.astype("datetime64[us]").astype(np.int64) / 86_400_000_000).tolist())
