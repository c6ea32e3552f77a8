"""Which variables of a composite go into which files, by period, and what their bands are called."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from s2composite.cube.array_values import missing_value_of
from s2composite.cube.graph import Chunks
from s2composite.cube.windows import STATUS
from s2composite.errors import ParameterError
from s2composite.reading.reader import FAILED
from s2composite.writing.options import OVERVIEWS
from s2composite.writing.tiles import Band

__all__ = [
    "RGBA",
    "STATUS",
    "TIME",
    "DatasetPeriod",
    "RasterLayer",
    "affine_numbers",
    "chosen_layers",
    "common_nodata",
    "crs_fields",
    "file_bands",
    "file_names",
    "layer_of",
    "metadata_of",
    "period_path",
    "periods_of",
    "raster_layers",
    "status_summary",
]

RGBA = "rgba"  # a layer that can be written of every composite: its first three bands stretched to 8 bits

TIME = "time"  # the axis of periods

# attributes that are no longer true where values were calculated
_SCALING = ("scale", "offset", "scaled_units", "scale_factor", "add_offset")


@dataclass(frozen=True, eq=False)
class RasterLayer:
    """One layer of a composite, to be written as bands of a file."""

    name: str
    data: da.Array  # ``(b, y, x)`` or ``(y, x)``; with periods, the time axis comes first
    bands: tuple[str, ...]
    nodata: float | None  # None: every pixel has a value
    attrs: Mapping[str, Any]
    lazy: bool = True  # whether its pixels are still to be computed

    @property
    def method(self) -> str:
        """How its overviews are made."""
        return str(self.attrs.get("overviews", "average"))


def raster_layers(dataset: xr.Dataset) -> tuple[str, ...]:
    """Return the names of variables that are pictures: ``(y, x)``, optionally with bands, and time before these."""
    pictures = {name: a for name, a in dataset.data_vars.items() if a.dims[-2:] == ("y", "x")}
    return tuple(str(name) for name, a in pictures.items() if a.ndim - (a.dims[0] == TIME) in (2, 3))


def chosen_layers(dataset: xr.Dataset, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the layers to write: names, ``"all"``, or None: the composite, or with several reducers all with bands."""
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


def layer_of(dataset: xr.Dataset, name: str) -> RasterLayer:
    """Return a layer with its pixels as a Dask array, after a check of what its attributes say."""
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
    bands: tuple[str, ...] = (str(array.name),)
    if _has_bands(array):
        dim = array.dims[-3]
        numbered = [f"{array.name}_{i + 1}" for i in range(array.sizes[dim])]
        bands = tuple(map(str, array[dim].values)) if dim in array.coords else tuple(numbered)
    if missing.nodata is not None and not fits(missing.nodata, data.dtype):
        raise ParameterError(
            f"layer {name!r}: nodata {missing.nodata:g} is not a value of {data.dtype.name}; "
            "correct its attrs['nodata']"
        )
    return RasterLayer(name, data, bands, missing.nodata, attrs, lazy)


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
    return tuple((path if name == "composite" else _with_word(path, name), (name,)) for name in names)


def _with_word(path: str, word: str) -> str:
    """Return ``median_word.tif`` for ``median.tif``."""
    folder, slash, file = path.rpartition("/")
    stem, dot, suffix = file.rpartition(".")
    return f"{folder}{slash}{stem}_{word}{dot}{suffix}" if dot else f"{path}_{word}"


def file_bands(layers: Sequence[RasterLayer], resampling: str | None) -> tuple[Band, ...]:
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


def common_nodata(layers: Sequence[RasterLayer], label: str) -> tuple[np.dtype[Any], float | None]:
    """Return the dtype of a file with these layers, and its nodata value: a GeoTIFF has one for all bands.

    If those of the layers differ, one is chosen that cannot be mistaken for a value of another layer, and given to
    pixels without a value; raises a ParameterError if there is none. Layers without a nodata value (a count) keep their
    values.
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


def crs_fields(crs: CRS) -> dict[str, str]:
    """Return the code of a CRS, or its WKT if it has none, as STAC and GeoZarr name them."""
    # Only an exact code: pyproj also offers codes of similar systems.
    authority = crs.proj.to_authority(min_confidence=100)
    return {"proj:code": ":".join(authority)} if authority else {"proj:wkt2": crs.to_wkt()}


def affine_numbers(geobox: GeoBox) -> list[float]:
    """Return the six numbers of a grid's transform, row by row, as STAC and GeoZarr list them."""
    return [float(value) for value in tuple(geobox.transform)[:6]]


@dataclass(frozen=True, eq=False)
class DatasetPeriod:
    """A part of a dataset in time."""

    label: str | None  # name for files, ``2023-01``; None: there is no time axis
    dataset: xr.Dataset  # its layers ``(b, y, x)`` or ``(y, x)``

    # start, and end (exclusive); None if the dataset does not say
    span: tuple[np.datetime64, np.datetime64] | None = None


def periods_of(dataset: xr.Dataset) -> tuple[DatasetPeriod, ...]:
    """Return the periods of a dataset; a single one without a name if layers have no time axis."""
    if not any(TIME in dataset[name].dims for name in raster_layers(dataset)):
        return (DatasetPeriod(None, dataset),)
    names: Iterable[Any] = range(dataset.sizes[TIME])
    if "period" in dataset.coords:
        names = dataset["period"].values
    elif TIME in dataset.coords:
        times = dataset[TIME].values
        names = times.astype("datetime64[s]") if times.dtype.kind == "M" else times
    labels = [re.sub(r"[^A-Za-z0-9._-]+", "-", str(name)).strip("-.") or "period" for name in names]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ParameterError(f"several periods would be called {twice[0]!r} in file names; rename some in 'period'")
    # Selecting layers of a dataset drops the bounds, but not the attribute that names them.
    bounds = dataset[TIME].attrs.get("bounds") if TIME in dataset.coords else None
    spans = [tuple(span) for span in dataset[bounds].values] if bounds in dataset.variables else [None] * len(labels)
    return tuple(
        DatasetPeriod(label, dataset.isel({TIME: i}), span)
        for i, (label, span) in enumerate(zip(labels, spans, strict=True))
    )


def period_path(path: str, label: str | None) -> str:
    """Return the path of a period's file; raises a ParameterError for ``{period}`` where there are no periods.

    >>> period_path("out/median_count.tif", "2023-01"), period_path("{period}/median.tif", "2023-01")
    ('out/median_count_2023-01.tif', '2023-01/median.tif')
    """
    placed = "{period}" in path
    if label is None:
        if placed:
            raise ParameterError(f"{path}: has a place for a period, but the composite has no periods")
        return path
    return path.replace("{period}", label) if placed else _with_word(path, label)


def metadata_of(period: DatasetPeriod, more: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """Return a file's tags: the attributes of its dataset, its scenes and their times, its period, and `more`."""
    dataset = period.dataset
    tags: dict[str, Any] = {str(name).upper(): v for name, v in dataset.attrs.items() if name != "grid_mapping"}
    if "scene" in dataset.coords:
        tags["SCENES"] = ",".join(map(str, dataset["scene"].values))
    if "scene_time" in dataset.coords:
        times = dataset["scene_time"].values
        stamps = np.datetime_as_string(times, unit="s") if times.dtype.kind == "M" else times
        tags["SCENE_TIMES"] = ",".join(map(str, stamps))
    if period.label is not None:
        tags["PERIOD"] = period.label
    if period.span is not None:
        tags["PERIOD_START"], tags["PERIOD_END"] = map(str, np.datetime_as_string(np.array(period.span), unit="s"))
    tags |= {str(name): value for name, value in (more or {}).items()}
    texts = {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in tags.items()}
    return tuple(sorted(texts.items()))


_LISTED = 400  # windows that are listed individually: tags hold a few kB


def status_summary(dataset: xr.Dataset, table: NDArray[np.uint8], windows: Chunks | None = None) -> dict[str, Any]:
    """Return what failed in a table ``(scene, window_y, window_x)`` of 0 read, 1 outside, 2 failed, in JSON's types.

    ``scenes`` and ``windows`` (rows, columns): their numbers; ``failed``: the windows that each scene is missing from,
    as pixels ``[top, bottom, left, right]`` or, if the dataset does not know these, as ``[row, column]`` of windows;
    ``unit``: which of the two; ``failed_windows``: their number; ``not_listed``: how many are left out of the list.
    `windows` are heights and widths of those in the table; None: as the dataset says.
    """
    if windows is None:
        rows, columns = (_window_edges(dataset, axis, n) for axis, n in zip(("y", "x"), table.shape[1:], strict=True))
    else:
        rows, columns = ([0, *accumulate(sizes)] for sizes in windows)
    places = np.argwhere(table == FAILED).tolist()
    failed: dict[str, list[list[int]]] = {}
    for scene, row, column in places[:_LISTED]:
        place = [row, column] if not rows or not columns else [*rows[row : row + 2], *columns[column : column + 2]]
        failed.setdefault(str(dataset["scene"].values[scene]), []).append(place)
    summary: dict[str, Any] = {
        "scenes": table.shape[0],
        "windows": list(table.shape[1:]),
        "unit": "pixels" if rows and columns else "windows",
        "failed_windows": len(places),
        "failed": failed,
    }
    return summary | ({"not_listed": len(places) - _LISTED} if len(places) > _LISTED else {})


def _window_edges(dataset: xr.Dataset, axis: str, windows: int) -> list[int] | None:
    """Return the first pixel of each window along an axis and the end of the last; None if unknown."""
    name = f"window_{axis}"
    if name in dataset.coords:
        return [*dataset[name].values.tolist(), dataset.sizes[axis]]
    for array in dataset.data_vars.values():
        chunks = dict(zip(array.dims, array.chunks or (), strict=False)).get(axis, ())
        if len(chunks) == windows:
            return [0, *accumulate(chunks)]
    return None
