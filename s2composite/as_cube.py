"""Arrays from odc-stac, stackstac, rioxarray or NumPy as a cube ``(time, band, y, x)``."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from s2composite.errors import ParameterError
from s2composite.georeference import georeferenced

__all__ = ["as_cube", "days_of", "nodata_of", "saturated_of"]

_DIMS = ("time", "band", "y", "x")
_SPELLINGS = {"latitude": "y", "lat": "y", "longitude": "x", "lon": "x"}


def as_cube(cube: Any) -> xr.DataArray:
    """Return a cube with dimensions (time, band, y, x) in this order, and coordinates for time and band.

    Raises
    ------
    ParameterError
        It is neither a DataArray nor a Dataset, has other dimensions, or no times.
    """
    array = cube.to_dataarray("band") if isinstance(cube, xr.Dataset) else cube
    if not isinstance(array, xr.DataArray):
        raise ParameterError(f"composite() takes a DataArray or Dataset over time, not a {type(cube).__name__}")
    array = array.rename({old: new for old, new in _SPELLINGS.items() if old in array.dims})
    if "band" not in array.dims:
        array = array.drop_vars("band", errors="ignore").expand_dims(band=[str(array.name or "value")])
    if set(array.dims) != set(_DIMS):
        raise ParameterError(f"the cube has dimensions {tuple(array.dims)}; composite() takes (time, band, y, x)")
    if array.sizes["time"] == 0:
        raise ParameterError("the cube has no times; nothing to composite")
    array = array.transpose(*_DIMS)
    missing = {dim: np.arange(array.sizes[dim]) for dim in ("time", "band") if dim not in array.coords}
    return georeferenced(array.assign_coords(missing))


def nodata_of(array: xr.DataArray) -> float | None:
    """Return the nodata value that a cube declares, None if it declares none."""
    for value in (array.attrs.get("nodata"), array.encoding.get("_FillValue"), array.attrs.get("_FillValue")):
        if value is not None:
            return float(value)
    return None


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
