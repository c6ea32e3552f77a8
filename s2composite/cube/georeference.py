"""Find the grid of an array's pixels: from its coordinates, and from attributes only what coordinates lack."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import rioxarray  # noqa: F401 - arrays have .rio, as they have .odc by odc.geo.xr
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import CRS as ProjCRS  # noqa: N811 - odc-geo has a CRS, too
from pyproj.exceptions import CRSError

from s2composite.errors import ParameterError

__all__ = ["crs_of", "geobox_of", "georeferenced", "label_shift", "north_up"]

LOG = logging.getLogger(__name__)

_ArrayOrDataset = TypeVar("_ArrayOrDataset", xr.DataArray, xr.Dataset)

_DIMS = (("y", "x"), ("latitude", "longitude"), ("lat", "lon"), ("Y", "X"), ("northing", "easting"))

_STACKSTAC = ("spec", "crs", "transform", "resolution", "resolution_xy")
"""Attributes in which stackstac describes the grid that an array had when it was made."""

_TOLERANCE = 0.01
"""Tolerance in pixels when coordinates are compared with a grid."""


def geobox_of(data: xr.DataArray | xr.Dataset) -> GeoBox | None:
    """Return the grid of an array's pixels, or None if it has no georeference.

    One-dimensional coordinates decide. Attributes that describe an earlier grid (``GeoTransform``, stackstac's
    ``transform``) are used if they agree with the coordinates: for the size of a single pixel, and for full precision.

    Raises
    ------
    ParameterError
        The coordinates are not evenly spaced, or the size of a single pixel is not known, or there are none and the
        array may have been cut since its attributes were written.
    """
    array = _picture(data)
    dims = None if array is None else _spatial_dims(array)
    if array is None or dims is None:
        return None
    if any(coord.attrs.get("gcps") for coord in array.coords.variables.values() if coord.ndim == 0):
        raise ParameterError(
            f"{_name(array)} is located by ground control points, so its pixels are not on a grid; warp it first, with "
            "gdalwarp or rio.reproject"
        )
    crs, recorded = crs_of(array), _recorded_transforms(array)
    shape = (array.sizes[dims[0]], array.sizes[dims[1]])
    if any(dim not in array.coords for dim in dims):
        return _without_coordinates(array, shape, crs, recorded)
    shift = label_shift(array) or (0.0, 0.0)
    labels = [array.coords.variables[dim].values for dim in dims]
    y, x = (np.asarray(values, np.float64) + by for values, by in zip(labels, (shift[1], shift[0]), strict=True))
    slack = [float(np.spacing(np.abs(values).max())) if values.dtype.kind == "f" else 0 for values in labels]
    transform = _transform(array, dims, (y, x), slack, recorded)
    if transform is None and crs is None:
        return None  # a single pixel with a position but no known size
    if transform is None:
        raise ParameterError(
            f"{_name(array)} has a single pixel along {' and '.join(d for d in dims if array.sizes[d] == 1)}, and "
            "no attribute that agrees with its coordinates gives the pixel size; select more pixels, or write its "
            "transform (rio.write_transform)"
        )
    return GeoBox(shape, transform, crs)


def georeferenced(data: _ArrayOrDataset) -> _ArrayOrDataset:
    """Return an array with the centres of its pixels as coordinates, and a ``spatial_ref`` that agrees with them.

    stackstac's coordinates are by default corners of pixels; everything else expects centres. Attributes and a
    ``GeoTransform`` that describe an earlier grid are replaced. An array without a CRS, or whose coordinates are not
    a regular grid, is returned unchanged.
    """
    array = _picture(data)
    dims = None if array is None else _spatial_dims(array)
    if array is None or dims is None:
        return data
    shift = label_shift(array) or (0.0, 0.0)
    _warn_of_corners(array, dims)
    try:
        geobox = geobox_of(array)
    except ParameterError:
        geobox = None
    if geobox is None or geobox.crs is None or not geobox.axis_aligned:
        return data  # coordinates of a rotated grid are pixels of the grid that GeoTransform describes
    mapping = _grid_mapping(array)
    current = mapping == "spatial_ref" and _geotransform(array) == geobox.transform
    if current and shift == (0.0, 0.0) and _stackstac_grid(array) is None:
        return data
    coords = xr_coords(geobox, dims=dims)
    if shift == (0.0, 0.0) and all(dim in array.coords for dim in dims):
        coords = {"spatial_ref": coords["spatial_ref"]}  # keep the coordinates that the caller selects and aligns by
    if isinstance(mapping, str) and mapping != "spatial_ref":
        data = data.drop_vars(mapping)
    return _without_earlier_grid(data.assign_coords(coords))


def north_up(data: _ArrayOrDataset) -> _ArrayOrDataset:
    """Return an array with its rows from north to south and its columns from west to east.

    Without a CRS, rows and columns are those of a picture and are not changed.
    """
    array = _picture(data)
    dims = None if array is None else _spatial_dims(array)
    if array is None or dims is None or crs_of(array) is None or any(t.b or t.d for t in _recorded_transforms(array)):
        return data
    y, x = dims
    wrong = ((y, True), (x, False))
    flips = {dim: slice(None, None, -1) for dim, rising in wrong if _rises(array, dim) is rising}
    return georeferenced(data.isel(flips)) if flips else data


def _rises(array: xr.DataArray, dim: str) -> bool | None:
    """Return whether a coordinate increases; None if it neither increases nor decreases."""
    if dim not in array.coords or array.sizes[dim] < 2:
        return None
    first, last = array[dim].values[[0, -1]]
    return bool(last > first) if first != last else None


def label_shift(array: xr.DataArray) -> tuple[float, float] | None:
    """Return the shift that turns an array's coordinates ``(x, y)`` into the centres of its pixels.

    None: unknown, so they are taken as centres. stackstac's coordinates are the upper left corners of its pixels,
    except with ``xy_coords="center"``; coordinates derived from them (every second one, means of two, interpolated
    ones) are off by half an original pixel. Raises a ParameterError for a stackstac array that has lost the attributes
    that tell whether its coordinates are corners.
    """
    dims = _spatial_dims(array)
    if dims is None or any(dim not in array.coords for dim in dims):
        return None
    made = _stackstac_grid(array)
    if made is None:
        return (0.0, 0.0) if _geotransform(array) is not None else _shift_of_snapped(array, dims)
    if _is_reprojected(array, made[1]):
        return 0.0, 0.0
    transform = made[0]
    dx, dy = (
        0.0 if corner is False else size / 2
        for corner, size in zip(_on_corners(array, dims, transform), (transform.a, transform.e), strict=True)
    )
    return dx, dy


def _is_reprojected(array: xr.DataArray, crs: CRS | None) -> bool:
    now = crs_of(array)
    return crs is not None and now is not None and crs != now


def _on_corners(array: xr.DataArray, dims: Sequence[str], transform: Affine) -> tuple[bool | None, bool | None]:
    """Return whether the coordinates x and y are corners of a grid's pixels, not centres; None: ambiguous."""
    y, x = (np.asarray(array[dim].values, np.float64) for dim in dims)
    return _are_corners(x, transform.c, transform.a), _are_corners(y, transform.f, transform.e)


def _are_corners(labels: NDArray[np.float64], origin: float, step: float) -> bool | None:
    """Return whether labels are edges of the pixels that begin at `origin`, not centres; None: ambiguous.

    Every third centre is a centre, and the mean of three centres is one. The mean of two corners is a centre, the
    mean of two centres is an edge.
    """
    times = abs((labels[-1] - labels[0]) / (len(labels) - 1) / step) if len(labels) > 1 else 1.0
    place = (labels[0] - origin) / step % 1
    if abs(times - round(times)) > 1e-6 or round(times) % 2 == 0:
        return None
    if min(place, 1 - place) < _TOLERANCE:
        return True
    return False if abs(place - 0.5) < _TOLERANCE else None


def _warn_of_corners(array: xr.DataArray, dims: Sequence[str]) -> None:
    """Log that ambiguous coordinates were taken as corners."""
    made = _stackstac_grid(array)
    if made is None or any(dim not in array.coords for dim in dims) or _is_reprojected(array, made[1]):
        return
    if None in _on_corners(array, dims, made[0]):
        LOG.warning(
            "%s: its coordinates are taken as corners of pixels of size %g, stackstac's default; if it was made with "
            "xy_coords='center', remove the attributes %s and call write_crs()",
            _name(array),
            abs(made[0].a),
            ", ".join(name for name in _STACKSTAC if name in array.attrs),
        )


def _stackstac_grid(array: xr.DataArray) -> tuple[Affine, CRS | None] | None:
    """Return the grid on which stackstac made an array; None for other arrays or without its attributes."""
    attrs = array.attrs
    if not ("spec" in attrs or ("transform" in attrs and ("epsg" in array.coords or "resolution" in attrs))):
        return None
    spec = str(attrs.get("spec", ""))
    code = re.search(r"epsg=(\d+)", spec)
    crs = CRS(f"EPSG:{code[1]}") if code else _parsed(attrs["crs"]) if "crs" in attrs else None
    transform = _affine(attrs.get("transform"))
    if transform is None:
        bounds, steps = (re.search(rf"{name}=\(([^)]*)\)", spec) for name in ("bounds", "resolutions_xy"))
        if not bounds or not steps:
            return None
        west, _, _, north = map(float, bounds[1].split(","))
        width, height = map(float, steps[1].split(","))
        transform = Affine(width, 0, west, 0, -height, north)
    return transform, crs


def _shift_of_snapped(array: xr.DataArray, dims: Sequence[str]) -> tuple[float, float] | None:
    """Return the shift of a stackstac array without its attributes: corners are multiples of the pixel size."""
    if not _is_stackstac_code(array):
        return None
    shifts = []
    for dim in reversed(dims):
        labels = np.asarray(array[dim].values, np.float64)
        step = (labels[-1] - labels[0]) / (len(labels) - 1) if len(labels) > 1 else math.nan
        place = labels[0] / step % 1
        if min(place, 1 - place) < _TOLERANCE:
            shifts.append(step / 2)
        elif abs(place - 0.5) < _TOLERANCE:
            shifts.append(0.0)
        else:
            raise ParameterError(
                f"{_name(array)} is from stackstac (it has the coordinate epsg) but lost the attributes that tell "
                "whether its coordinates are corners or centres of pixels; keep them (keep_attrs=True), or make the "
                "coordinates centres, drop epsg, and call write_crs()"
            )
    return shifts[0], shifts[1]


def _is_stackstac_code(array: xr.DataArray) -> bool:
    return "epsg" in array.coords and array["epsg"].ndim == 0 and array["epsg"].dtype.kind in "iu"


def _picture(data: xr.DataArray | xr.Dataset) -> xr.DataArray | None:
    """Return an array, or the first variable of a Dataset that has pixels."""
    if isinstance(data, xr.DataArray):
        return data
    return next((a for a in data.data_vars.values() if _spatial_dims(a) is not None), None)


def _spatial_dims(array: xr.DataArray) -> tuple[str, str] | None:
    return next((dims for dims in _DIMS if set(dims) <= set(array.dims)), None)


def _grid_mapping(array: xr.DataArray) -> Hashable | None:
    """Return the name of the coordinate that holds the CRS."""
    coords = array.coords.variables  # `coords` would make an array of each, which is slow
    named = (array.encoding.get("grid_mapping"), array.attrs.get("grid_mapping"), "spatial_ref")
    others = (name for name, coord in coords.items() if coord.ndim == 0)
    return next((name for name in chain(named, others) if name in coords and _wkt(coords[name].attrs)), None)


def _wkt(attrs: Mapping[Any, Any]) -> str:
    text = attrs.get("spatial_ref") or attrs.get("crs_wkt")
    if text or "grid_mapping_name" not in attrs:
        return str(text or "")
    try:
        return str(ProjCRS.from_cf(dict(attrs)).to_wkt())
    except (CRSError, KeyError, TypeError, ValueError):
        return ""


def crs_of(array: xr.DataArray) -> CRS | None:
    """Return the CRS of an array, or None; raise a ParameterError if PROJ does not know it."""
    mapping = _grid_mapping(array)
    if mapping is not None:
        return _parsed(_wkt(array.coords.variables[mapping].attrs))
    if array.attrs.get("crs"):
        return _parsed(array.attrs["crs"])
    if _is_stackstac_code(array):
        return _parsed(f"EPSG:{int(array['epsg'])}")
    dims = _spatial_dims(array)
    labelled = None if dims is None else array.coords.get(dims[0])
    text = None if labelled is None else labelled.attrs.get("crs")
    return _parsed(text) if text else None


def _parsed(text: Any) -> CRS:
    try:
        return CRS(text)
    except (CRSError, TypeError, ValueError) as error:
        raise ParameterError(f"the array's CRS {str(text)[:80]!r} is unknown ({error}); write_crs() another") from error


def _geotransform(array: xr.DataArray) -> Affine | None:
    """Return the ``GeoTransform`` that GDAL, rioxarray and odc-geo write next to the CRS."""
    coord = array.coords.variables.get("spatial_ref" if (name := _grid_mapping(array)) is None else name)
    text = "" if coord is None else coord.attrs.get("GeoTransform", "")
    numbers = str(text).split() if not isinstance(text, (list, tuple, np.ndarray)) else list(text)
    try:
        return Affine.from_gdal(*map(float, numbers)) if len(numbers) == 6 else None
    except ValueError:
        return None


def _recorded_transforms(array: xr.DataArray) -> list[Affine]:
    """Return the transforms in the attributes: of the current grid or of an earlier one."""
    found = (_geotransform(array), _affine(array.attrs.get("transform")))
    return [transform for transform in found if transform is not None]


def _affine(transform: Any) -> Affine | None:
    try:
        return Affine(*(float(v) for v in tuple(transform)[:6]))
    except (TypeError, ValueError):
        return None


def _without_coordinates(
    array: xr.DataArray, shape: tuple[int, int], crs: CRS | None, recorded: Sequence[Affine]
) -> GeoBox | None:
    """Return the grid of an array without coordinates: stackstac's, if the shapes match."""
    made = _stackstac_grid(array)
    sizes = re.search(r"bounds=\(([^)]*)\)", str(array.attrs.get("spec", "")))
    if made is not None and sizes:
        west, south, east, north = map(float, sizes[1].split(","))
        if shape == (round((north - south) / abs(made[0].e)), round((east - west) / made[0].a)):
            return GeoBox(shape, made[0], made[1])
    if not recorded or crs is None:
        return None
    raise ParameterError(
        f"{_name(array)} has no y and x coordinates; its attributes give its original location, but not whether it was "
        "cropped since. Open it with coordinates (parse_coordinates=True, xy_coords='center'), or warp a rotated one "
        "first"
    )


def _transform(
    array: xr.DataArray,
    dims: Sequence[str],
    centres: tuple[NDArray[np.float64], NDArray[np.float64]],
    slack: Sequence[float],
    recorded: Sequence[Affine],
) -> Affine | None:
    """Return the transform of a grid with these pixel centres; None for a single pixel of unknown size."""
    turned = next((t for t in recorded if t.b or t.d), None)
    (y0, dy), (x0, dx) = (
        _axis(array, dim, values, more) for dim, values, more in zip(dims, centres, slack, strict=True)
    )
    if turned is not None:  # coordinates of a rotated grid are in pixels
        dx, dy = (1.0 if math.isnan(step) else step for step in (dx, dy))
        return turned @ Affine(dx, 0, x0 - dx / 2, 0, dy, y0 - dy / 2)
    for known in recorded:
        exact = _moved(known, (y0, dy), (x0, dx), centres, slack)
        if exact is not None:
            return exact
    if math.isnan(dx) or math.isnan(dy):
        return None
    return Affine(dx, 0, x0 - dx / 2, 0, dy, y0 - dy / 2)


def _axis(array: xr.DataArray, dim: str, values: NDArray[np.float64], slack: float) -> tuple[float, float]:
    """Return the first centre of an axis and its step; the step of a single pixel is NaN."""
    if len(values) == 1 and np.isfinite(values[0]):
        return float(values[0]), math.nan
    step = float(values[-1] - values[0]) / (len(values) - 1)
    even = values[0] + step * np.arange(len(values))
    if (
        not step
        or not np.isfinite(values).all()
        or not np.allclose(values, even, rtol=0, atol=_TOLERANCE * abs(step) + slack)
    ):
        raise ParameterError(
            f"{_name(array)}: its {dim} coordinates are not evenly spaced, which a raster needs; sort them "
            f"(sortby({dim!r})), or interpolate to a regular grid"
        )
    return float(values[0]), step


def _moved(
    known: Affine,
    y: tuple[float, float],
    x: tuple[float, float],
    centres: tuple[NDArray[np.float64], NDArray[np.float64]],
    slack: Sequence[float],
) -> Affine | None:
    """Return a known transform, moved by whole pixels to the coordinates; None if none of them fits."""
    if not known.a or not known.e:
        return None
    places = []
    steps = (y, known.f, known.e, centres[0], slack[0]), (x, known.c, known.a, centres[1], slack[1])
    for (first, step), origin, size, values, more in steps:
        place = (first - origin) / size - 0.5
        allowed = min(_TOLERANCE + 2 * more / abs(size), 0.25)
        drift = 0.0 if math.isnan(step) else abs(step / size - 1) * len(values)
        if abs(place - round(place)) > allowed or drift > allowed:
            return None
        places.append(round(place))
    row, column = places
    return known if row == column == 0 else known @ Affine.translation(column, row)


def _without_earlier_grid(data: _ArrayOrDataset) -> _ArrayOrDataset:
    """Return data without attributes that describe an earlier grid; ``spatial_ref`` replaces them."""
    data = data.copy(deep=False)
    for array in (data,) if isinstance(data, xr.DataArray) else data.data_vars.values():
        if _stackstac_grid(array) is not None:
            array.attrs = {name: value for name, value in array.attrs.items() if name not in _STACKSTAC}
        for notes in (array.attrs, array.encoding):
            if "grid_mapping" in notes:
                notes["grid_mapping"] = "spatial_ref"
    return data


def _name(array: xr.DataArray) -> str:
    return f"array {array.name!r}" if array.name is not None else "the array"
