"""Find the grid of an array's pixels: from its coordinates, and from attributes only what coordinates lack."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

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

__all__ = ["crs_of", "geobox_of", "geobox_or_none", "georeferenced", "label_shift", "north_up", "rises"]

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
    picture = _picture(data)
    if picture is None:
        return None
    array, dims = picture
    if any(coord.attrs.get("gcps") for coord in array.coords.variables.values() if coord.ndim == 0):
        raise ParameterError(
            f"{_name(array)} is located by ground control points, so its pixels are not on a grid; warp it first, with "
            "gdalwarp or rio.reproject"
        )
    crs, recorded = crs_of(array), _recorded_transforms(array)
    shape = (array.sizes[dims[0]], array.sizes[dims[1]])
    if any(dim not in array.coords for dim in dims):
        return _without_coordinates(array, shape, crs, recorded)
    dx, dy = label_shift(array) or (0.0, 0.0)
    transform = _transform(_axis(array, dims[0], dy), _axis(array, dims[1], dx), recorded)
    if transform is None and crs is None:
        return None  # a single pixel with a position but no known size
    if transform is None:
        raise ParameterError(
            f"{_name(array)} has a single pixel along {' and '.join(d for d in dims if array.sizes[d] == 1)}, and "
            "no attribute that agrees with its coordinates gives the pixel size; select more pixels, or write its "
            "transform (rio.write_transform)"
        )
    return GeoBox(shape, transform, crs)


def geobox_or_none(data: xr.DataArray | xr.Dataset) -> GeoBox | None:
    """Return the grid of an array's pixels, or None if it has none that is regular and known."""
    try:
        return geobox_of(data)
    except ParameterError:
        return None


def georeferenced(data: _ArrayOrDataset) -> _ArrayOrDataset:
    """Return an array with the centres of its pixels as coordinates, and a ``spatial_ref`` that agrees with them.

    stackstac's coordinates are by default corners of pixels; everything else expects centres. Attributes and a
    ``GeoTransform`` that describe an earlier grid are replaced. An array without a CRS, or whose coordinates are not
    a regular grid, is returned unchanged.
    """
    picture = _picture(data)
    if picture is None:
        return data
    array, dims = picture
    shift = label_shift(array, warn=True) or (0.0, 0.0)
    geobox = geobox_or_none(array)
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
    data = data.assign_coords(coords)
    for one in (data,) if isinstance(data, xr.DataArray) else data.data_vars.values():
        # attributes that describe an earlier grid, which ``spatial_ref`` replaces
        if _stackstac_grid(one) is not None:
            one.attrs = {name: value for name, value in one.attrs.items() if name not in _STACKSTAC}
        for notes in (one.attrs, one.encoding):
            if "grid_mapping" in notes:
                notes["grid_mapping"] = "spatial_ref"
    return data


def north_up(data: _ArrayOrDataset) -> _ArrayOrDataset:
    """Return an array with its rows from north to south and its columns from west to east.

    Without a CRS, rows and columns are those of a picture and are not changed.
    """
    picture = _picture(data)
    if picture is None or crs_of(picture[0]) is None or any(t.b or t.d for t in _recorded_transforms(picture[0])):
        return data
    array, (y, x) = picture
    flips = {dim: slice(None, None, -1) for dim, rising in ((y, True), (x, False)) if rises(array, dim) is rising}
    return georeferenced(data.isel(flips)) if flips else data


def rises(array: xr.DataArray, dim: str) -> bool | None:
    """Return whether a coordinate increases; None if it neither increases nor decreases, or there is none."""
    if dim not in array.coords or array.sizes[dim] < 2:
        return None
    first, last = array[dim].values[[0, -1]]
    return bool(last > first) if first != last else None


def label_shift(array: xr.DataArray, *, warn: bool = False) -> tuple[float, float] | None:
    """Return the shift that turns an array's coordinates ``(x, y)`` into the centres of its pixels.

    None: unknown, so they are taken as centres. stackstac's coordinates are the upper left corners of its pixels,
    except with ``xy_coords="center"``; coordinates derived from them (every second one, means of two, interpolated
    ones) are off by half an original pixel; `warn` logs it. Raises a ParameterError for a stackstac array that has
    lost the attributes that tell whether its coordinates are corners.
    """
    dims = _spatial_dims(array)
    if dims is None or any(dim not in array.coords for dim in dims):
        return None
    made = _stackstac_grid(array)
    if made is None:
        return (0.0, 0.0) if _geotransform(array) is not None else _shift_of_snapped(array, dims)
    (transform, crs), now = made, crs_of(array)
    if crs is not None and now is not None and crs != now:  # it has been reprojected
        return 0.0, 0.0
    y, x = (np.asarray(array[dim].values, np.float64) for dim in dims)
    corners = _are_corners(x, transform.c, transform.a), _are_corners(y, transform.f, transform.e)
    if warn and None in corners:
        LOG.warning(
            "%s: its coordinates are taken as corners of pixels of size %g, stackstac's default; if it was made with "
            "xy_coords='center', remove the attributes %s and call write_crs()",
            _name(array),
            abs(transform.a),
            ", ".join(name for name in _STACKSTAC if name in array.attrs),
        )
    dx, dy = (
        0.0 if corner is False else size / 2 for corner, size in zip(corners, (transform.a, transform.e), strict=True)
    )
    return dx, dy


def _are_corners(labels: NDArray[np.float64], origin: float, step: float) -> bool | None:
    """Return whether labels are edges of the pixels that begin at `origin`, not centres; None: ambiguous.

    Every third centre is a centre, and the mean of three centres is one. The mean of two corners is a centre, the
    mean of two centres is an edge.
    """
    times = abs((labels[-1] - labels[0]) / (len(labels) - 1) / step) if len(labels) > 1 else 1.0
    place = (labels[0] - origin) / step % 1
    if not np.isfinite(times) or abs(times - round(times)) > 1e-6 or round(times) % 2 == 0:
        return None
    if min(place, 1 - place) < _TOLERANCE:
        return True
    return False if abs(place - 0.5) < _TOLERANCE else None


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
        bounds, steps = _in_spec(array, "bounds"), _in_spec(array, "resolutions_xy")
        if bounds is None or steps is None:
            return None
        transform = Affine(steps[0], 0, bounds[0], 0, -steps[1], bounds[3])
    return transform, crs


def _in_spec(array: xr.DataArray, name: str) -> list[float] | None:
    """Return numbers by their name in stackstac's attribute ``spec``: a line of text."""
    found = re.search(rf"{name}=\(([^)]*)\)", str(array.attrs.get("spec", "")))
    return None if found is None else list(map(float, found[1].split(",")))


def _shift_of_snapped(array: xr.DataArray, dims: Sequence[str]) -> tuple[float, float] | None:
    """Return the shift of a stackstac array without its attributes: corners are multiples of the pixel size."""
    if not _is_stackstac_code(array):
        return None
    shifts = []
    for dim in reversed(dims):
        labels = np.asarray(array[dim].values, np.float64)
        step = (labels[-1] - labels[0]) / (len(labels) - 1) if len(labels) > 1 else math.nan
        corners = _are_corners(labels, 0.0, step) if step else None
        if corners is None:
            raise ParameterError(
                f"{_name(array)} is from stackstac (it has the coordinate epsg) but lost the attributes that tell "
                "whether its coordinates are corners or centres of pixels; keep them (keep_attrs=True), or make the "
                "coordinates centres, drop epsg, and call write_crs()"
            )
        shifts.append(step / 2 if corners else 0.0)
    return shifts[0], shifts[1]


def _is_stackstac_code(array: xr.DataArray) -> bool:
    return "epsg" in array.coords and array["epsg"].ndim == 0 and array["epsg"].dtype.kind in "iu"


def _picture(data: xr.DataArray | xr.Dataset) -> tuple[xr.DataArray, tuple[str, str]] | None:
    """Return an array with pixels, or the first such variable of a Dataset, and the names of its dimensions y and x."""
    for array in (data,) if isinstance(data, xr.DataArray) else data.data_vars.values():
        if (dims := _spatial_dims(array)) is not None:
            return array, dims
    return None


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
    made, bounds = _stackstac_grid(array), _in_spec(array, "bounds")
    if made is not None and bounds is not None:
        west, south, east, north = bounds
        if shape == (round((north - south) / abs(made[0].e)), round((east - west) / made[0].a)):
            return GeoBox(shape, made[0], made[1])
    if not recorded or crs is None:
        return None
    raise ParameterError(
        f"{_name(array)} has no y and x coordinates; its attributes give its original location, but not whether it was "
        "cropped since. Open it with coordinates (parse_coordinates=True, xy_coords='center'), or warp a rotated one "
        "first"
    )


class _Axis(NamedTuple):
    """The centres of pixels along one axis."""

    first: float
    step: float  # NaN for a single pixel
    size: int
    slack: float  # the error of floating point numbers


def _axis(array: xr.DataArray, dim: str, shift: float) -> _Axis:
    """Return an axis whose labels are off the centres of pixels by `shift`; they must be evenly spaced."""
    labels = array.coords.variables[dim].values
    values = np.asarray(labels, np.float64) + shift
    slack = float(np.spacing(np.abs(labels).max())) if labels.dtype.kind == "f" else 0.0
    if len(values) == 1 and np.isfinite(values[0]):
        return _Axis(float(values[0]), math.nan, 1, slack)
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
    return _Axis(float(values[0]), step, len(values), slack)


def _transform(y: _Axis, x: _Axis, recorded: Sequence[Affine]) -> Affine | None:
    """Return the transform of a grid with these pixel centres; None for a single pixel of unknown size."""
    dx, dy = x.step, y.step
    turned = next((t for t in recorded if t.b or t.d), None)
    if turned is not None:  # coordinates of a rotated grid are in pixels
        dx, dy = (1.0 if math.isnan(step) else step for step in (dx, dy))
        return turned @ Affine(dx, 0, x.first - dx / 2, 0, dy, y.first - dy / 2)
    for known in recorded:  # the same grid, moved by whole pixels, has its full precision
        row, column = _pixels_moved(y, known.f, known.e), _pixels_moved(x, known.c, known.a)
        if row is not None and column is not None:
            return known if row == column == 0 else known @ Affine.translation(column, row)
    if math.isnan(dx) or math.isnan(dy):
        return None
    return Affine(dx, 0, x.first - dx / 2, 0, dy, y.first - dy / 2)


def _pixels_moved(axis: _Axis, origin: float, size: float) -> int | None:
    """Return how many pixels of a known grid an axis begins after its origin; None if it is not of that grid."""
    if not size:
        return None
    place = (axis.first - origin) / size - 0.5
    allowed = min(_TOLERANCE + 2 * axis.slack / abs(size), 0.25)
    drift = 0.0 if math.isnan(axis.step) else abs(axis.step / size - 1) * axis.size
    return None if abs(place - round(place)) > allowed or drift > allowed else round(place)


def _name(array: xr.DataArray) -> str:
    return f"array {array.name!r}" if array.name is not None else "the array"
