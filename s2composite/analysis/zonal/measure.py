"""Zonal statistics: what the pixels of a composite or a cube are like in each polygon."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from itertools import product
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import rasterio
import rioxarray
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError

from s2composite.analysis.zonal.stats import Wanted, finished, part_of, wanted_of
from s2composite.analysis.zonal.tasks import Raster, Row, Zone, zonal_tasks
from s2composite.analysis.zonal.zones import in_pixels, pixel_bounds, read_zones
from s2composite.array_values import missing_value_of
from s2composite.as_cube import as_cube
from s2composite.compositing import Composite
from s2composite.errors import GridError, ParameterError, SourceError
from s2composite.georeference import geobox_of, north_up
from s2composite.optional import needed
from s2composite.reading.header import alpha_band

__all__ = ["DEFAULT_STATS", "zonal_stats"]

LOG = logging.getLogger(__name__)

DEFAULT_STATS = ("min", "max", "mean", "stdev", "skew", "count")

_CHUNK = 2048
"""Side of the pieces that a file, or an array in memory, is cut into."""


def zonal_stats(
    data: Composite | xr.Dataset | xr.DataArray | str | os.PathLike[str],
    zones: Any,
    stats: Sequence[str] = DEFAULT_STATS,
    *,
    layer: str = "composite",
    name: str | None = None,
    bins: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Return statistics of the pixels of each zone, weighted by the part of each pixel that the zone covers.

    Parameters
    ----------
    data
        A composite, also with periods; a cube ``(time, band, y, x)``; any array ``(band, y, x)`` or ``(y, x)`` with a
        CRS; or the path of a raster. Files and lazy arrays are measured chunk by chunk on the cluster of the current
        client, and only figures come back.
    zones
        Polygons in any CRS: a vector file, a GeoDataFrame, a GeoSeries.
    stats
        ``count`` (pixels with a value), ``min``, ``max``, ``mean``, ``sum``, ``stdev`` (of the population), ``skew``,
        ``median``, any percentile as ``p10`` or ``p97.5``, ``histogram`` (pixels in each of `bins`), ``fraction``
        (share of each class among the pixels with a value).
    layer
        Layer of a composite or Dataset.
    name
        Column that names the zones; default: their index.
    bins
        Edges of the histogram's bins, of which the last is closed.

    Returns
    -------
    pandas.DataFrame
        A row for each zone, time (``period`` and ``time``, or ``time`` and ``scene``) and ``band``, in this order. A
        zone without any value, such as one outside the raster, has count 0 and NaN; the log names those outside.

    Raises
    ------
    ParameterError
        Unknown statistic, layer or column, no zones, a zone that is not a valid polygon.
    GridError
        Zones without a CRS, a raster without one, or no zone touches the raster.
    SourceError
        The file of zones or the raster cannot be read.
    MissingDependencyError
        ``pip install 's2composite[zones]'``.

    Notes
    -----
    All figures are those that exactextract (Baston) gives for the whole array; skew, which it has not, is that of
    scipy.stats. Its percentiles interpolate between the values that differ, each with the pixels that have it, so that
    for a handful of classes they are far from those of sorted pixels; of integers, too, they are real numbers, those of
    the same values as floats. They take memory for the different values of a zone.

    Examples
    --------
    >>> import numpy as np, shapely, geopandas as gpd, xarray as xr, s2composite as s2c
    >>> from odc.geo.geobox import GeoBox
    >>> from odc.geo.xr import wrap_xr
    >>> box = GeoBox.from_bbox((0, 0, 40, 20), "EPSG:32631", resolution=10)
    >>> array = wrap_xr(np.array([[1, 2, 3, 4], [5, 6, 7, 8]], "uint8"), box)
    >>> field = gpd.GeoDataFrame({"id": ["a"]}, geometry=[shapely.box(0, 0, 15, 20)], crs="EPSG:32631")
    >>> s2c.zonal_stats(array.rename("ndvi"), field, ["mean", "count"], name="id").to_dict("records")
    [{'zone': 'a', 'band': 'ndvi', 'mean': 3.3333333333333335, 'count': 3.0}]
    """
    needed("exactextract", "zones", "zonal statistics")
    wanted = wanted_of(stats, bins)
    cube, timed = _cube(data, layer)
    missing = missing_value_of(cube).known()
    cube = north_up(missing.with_nan(cube))
    geobox = _grid_of(cube)
    known = read_zones(zones, name, geobox.crs)
    shapes = in_pixels(known.shapes, geobox)
    inside = pixel_bounds(shapes, geobox.shape)
    measured = [
        Zone(number, shape, *map(int, bounds))
        for number, (shape, bounds) in enumerate(zip(shapes, inside, strict=True))
        if bounds[0] < bounds[1] and bounds[2] < bounds[3]
    ]
    _report_outside(known.names, {zone.number for zone in measured})
    grid = Raster(missing.nodata, wanted)
    pixels = (cube if cube.chunks else cube.chunk(y=_CHUNK, x=_CHUNK)).data
    rows = [row for rows in dask.compute(*zonal_tasks(pixels, measured, grid)) for row in rows]
    return _tidy(rows, known.names, cube, wanted, timed=timed)


def _cube(data: Any, layer: str) -> tuple[xr.DataArray, bool]:
    """Return what is measured as ``(time, band, y, x)``, and whether it has times."""
    dataset = data.dataset if isinstance(data, Composite) else data
    if isinstance(dataset, (str, os.PathLike)):
        return as_cube(_opened(os.fspath(dataset)).expand_dims("time")), False
    if isinstance(dataset, xr.Dataset):
        if not isinstance(layer, str) or layer not in dataset:
            raise ParameterError(f"there is no layer {layer!r}; there are {', '.join(map(str, dataset.data_vars))}")
        dataset = dataset[layer]
    if not isinstance(dataset, xr.DataArray):
        raise ParameterError(f"data is a {type(data).__name__}; give a composite, a Dataset, a DataArray or a path")
    timed = "time" in dataset.dims
    return as_cube(dataset if timed else dataset.drop_vars("time", errors="ignore").expand_dims("time")), timed


def _opened(path: str) -> xr.DataArray:
    """Return a raster lazily, its bands by their names if they have some."""
    try:
        with rasterio.open(path) as dataset, warnings.catch_warnings():
            # each band's own scale and offset are applied below
            warnings.filterwarnings("ignore", "(Offsets|Scales|Scale factors) differ", UserWarning)
            alpha = alpha_band([one.name for one in dataset.colorinterp], dataset.descriptions)
            flags = dataset.mask_flag_enums[0]
            masked = MaskFlags.per_dataset in flags and (alpha is not None or MaskFlags.alpha not in flags)
            # Without a lock each thread reads for itself. What a mask or an alpha band leaves out becomes NaN.
            chunks = {"y": _CHUNK, "x": _CHUNK}
            array: xr.DataArray = rioxarray.open_rasterio(path, masked=masked, chunks=chunks, lock=False)
            data = [band for band in range(dataset.count) if band != alpha]
            scales, offsets = (np.array(v)[data, None, None] for v in (dataset.scales, dataset.offsets))
    except (OSError, RasterioError) as error:
        raise SourceError(f"{path}: cannot be read as a raster: {error}") from error
    names = array.attrs.get("long_name")
    if isinstance(names, tuple) and len(set(names)) == len(names):
        array = array.assign_coords(band=list(names))
    array = array.isel(band=data).drop_encoding() if masked else array.isel(band=data)
    return array if (scales == 1).all() and (offsets == 0).all() else _scaled(array, scales, offsets)


def _scaled(array: xr.DataArray, scales: NDArray[np.float64], offsets: NDArray[np.float64]) -> xr.DataArray:
    """Return physical values, NaN where there is no data: those that exactextract measures, in its precision."""
    nodata, kind = missing_value_of(array).nodata, array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
    values = array.data.astype(kind) * scales.astype(kind) + offsets.astype(kind)
    there = array.copy(data=values if nodata is None else da.where(array.data == nodata, np.nan, values))
    return there.drop_attrs(deep=False).drop_encoding()


def _grid_of(cube: xr.DataArray) -> GeoBox:
    geobox = geobox_of(cube)
    if geobox is None or geobox.crs is None:
        raise GridError("the data have no coordinate system, so zones have no place on them; see rioxarray's write_crs")
    turned = geobox.transform
    if turned.b or turned.d or turned.a < 0 or turned.e > 0:
        raise GridError("the data are on a rotated grid; warp them to a north-up one first")
    return geobox


def _report_outside(names: Sequence[Any], inside: set[int]) -> None:
    outside = [str(zone) for number, zone in enumerate(names) if number not in inside]
    if not inside:
        raise GridError(f"none of the {len(names)} zones touches the data; are the zones' coordinates what they say?")
    if outside:
        more = f" and {len(outside) - 20} more" if len(outside) > 20 else ""
        LOG.warning("%d of %d zones are outside: %s%s", len(outside), len(names), ", ".join(outside[:20]), more)


def _tidy(rows: list[Row], names: Sequence[Any], cube: xr.DataArray, wanted: Wanted, *, timed: bool) -> pd.DataFrame:
    """Return all rows as a table, those of zones outside among them."""
    there = {row["zone"] for row in rows}
    outside = [zone for zone in range(len(names)) if zone not in there]
    nothing = finished(part_of(np.empty(0), np.empty(0), wanted), wanted)
    planes = list(product(range(cube.sizes["time"]), range(cube.sizes["band"])))
    rows += [{"zone": zone, "time": t, "band": b, **nothing} for zone in outside for t, b in planes]
    table = pd.DataFrame(rows).sort_values(["zone", "time", "band"], ignore_index=True)
    labels: dict[str, Any] = {"zone": pd.Series(list(names))[table["zone"]].to_numpy()}
    labels |= _times(cube, table["time"].to_numpy()) if timed else {}
    labels["band"] = _labels(cube, "band", table["band"].to_numpy())
    return pd.DataFrame(labels).join(_columns(table, wanted))


def _times(cube: xr.DataArray, index: NDArray[np.int64]) -> dict[str, Any]:
    """Return the columns that say which time a row is about."""
    time = {"time": np.asarray(cube["time"])[index]}
    if "period" in cube.coords:
        return {"period": _labels(cube, "period", index), **time}
    return time | ({"scene": _labels(cube, "scene", index)} if "scene" in cube.coords else {})


def _labels(cube: xr.DataArray, name: str, index: NDArray[np.int64]) -> NDArray[np.object_]:
    return np.asarray(cube[name]).astype(str).astype(object)[index]


def _columns(table: pd.DataFrame, wanted: Wanted) -> pd.DataFrame:
    """Return the statistics in the order asked for; a class that a zone has nothing of has a share of 0 there."""
    shares = sorted((c for c in table.columns if c.startswith("fraction_")), key=lambda c: float(c.partition("_")[2]))
    spelled = {"fraction": shares, "histogram": [c for c in table.columns if c.startswith("histogram_")]}
    columns = [column for name in wanted.stats for column in spelled.get(name, [name])]
    figures = table[columns].astype(float)
    measured = figures[shares].notna().any(axis=1)
    figures.loc[measured, shares] = figures.loc[measured, shares].fillna(0)
    return figures
