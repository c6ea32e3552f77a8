"""Zonal statistics: what the pixels of a composite, a cube or a raster are like in each polygon, chunk by chunk.

A zone that lies in one chunk is measured in the task that has the chunk. Of one across several, each chunk gives a
`_Summary`, and those are merged. exactextract says which pixels a zone covers, and which share of each.
"""

from __future__ import annotations

import io
import logging
import os
import re
import uuid
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import rasterio
import rioxarray
import shapely
import xarray as xr
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError

from s2composite.cube.array_values import missing_value_of
from s2composite.cube.coerce import as_cube
from s2composite.cube.composite import Composite
from s2composite.cube.georeference import geobox_of, north_up
from s2composite.errors import GridError, MissingDependencyError, ParameterError, SourceError, listed, needed
from s2composite.geotiff.header import alpha_band
from s2composite.writing.publish import put_small, target_of

if TYPE_CHECKING:
    import geopandas as gpd

__all__ = ["DEFAULT_STATS", "write_zonal_stats", "zonal_stats"]

LOG = logging.getLogger(__name__)

DEFAULT_STATS = ("min", "max", "mean", "stdev", "skew", "count")

_CHUNK = 2048  # side of the pieces that a file, or an array in memory, is cut into
_TOGETHER = 1 << 22  # pixels around zones whose coverage is asked for at once: 64 MB
_PLAIN = ("count", "min", "max", "mean", "sum", "stdev", "skew")

_Window = tuple[int, int, int, int]  # pixels: first row, row after the last, first column, column after the last
_Key = tuple[int, int, int]  # positions of the zone among all zones, of the time and of the band
_Row = dict[str, float]  # statistics by their columns
_Origin = tuple[int, int, int, int]  # time, band, row and column of the raster at which a block begins
# Rows and columns of the pixels of a window that a zone touches, and the share of each that it covers.
_Covered = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


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
    statistics = _parse_statistics(stats, bins)
    cube, timed = _cube(data, layer)
    missing = missing_value_of(cube).known()
    cube = north_up(missing.with_nan(cube))
    geobox = geobox_of(cube)
    if geobox is None or geobox.crs is None:
        raise GridError("the data have no coordinate system, so zones have no place on them; see rioxarray's write_crs")
    transform = geobox.transform
    if transform.b or transform.d or transform.a < 0 or transform.e > 0:
        raise GridError("the data are on a rotated grid; warp them to a north-up one first")
    names, shapes = _read_zones(zones, name, geobox.crs)
    inside = _place_zones(shapes, geobox)
    if not inside:
        raise GridError(f"none of the {len(names)} zones touches the data; are the zones' coordinates what they say?")
    numbers = {zone.number for zone in inside}
    outside = [zone for number, zone in enumerate(names) if number not in numbers]
    if outside:
        LOG.warning("%d of %d zones are outside: %s", len(outside), len(names), listed(outside, 20))
    pixels = (cube if cube.chunks else cube.chunk(y=_CHUNK, x=_CHUNK)).data
    tasks = _tasks(pixels, inside, statistics, missing.nodata)
    measured = {key: row for rows in dask.compute(*tasks) for key, row in rows.items()}
    return _table(measured, names, cube, statistics, timed=timed)


def write_zonal_stats(table: pd.DataFrame, path: str | os.PathLike[str], *, overwrite: bool = False) -> str:
    """Write a table of `zonal_stats` as CSV or Parquet.

    Parameters
    ----------
    table
        From `zonal_stats`.
    path
        Local path or URL that ends in ``.csv`` or ``.parquet``. In a CSV the standard deviation is called ``stddev``,
        so that ``min,max,mean,stddev,skew,count`` are the columns of tif_stats.
    overwrite
        Replace an existing file.

    Returns
    -------
    str
        The file written.

    Raises
    ------
    ParameterError
        The path ends in something else.
    MissingDependencyError
        Parquet needs pyarrow.
    WriteError
        The file exists or cannot be written.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"zone": ["a"], "band": ["red"], "mean": [3.5], "stdev": [1.0]})
    >>> with open(write_zonal_stats(table, "zones.csv", overwrite=True)) as file:
    ...     print(file.read())
    zone,band,mean,stddev
    a,red,3.5,1.0
    <BLANKLINE>
    """
    kind = os.fspath(path).rpartition(".")[2].lower()
    if kind not in ("csv", "parquet"):
        raise ParameterError(f"{os.fspath(path)}: a table is a .csv or .parquet file")
    target = target_of(os.fspath(path), overwrite=overwrite)
    if kind == "csv":
        encoded = table.rename(columns={"stdev": "stddev"}).to_csv(index=False).encode()
    else:
        buffer = io.BytesIO()
        try:
            table.to_parquet(buffer, index=False, engine="pyarrow")
        except ImportError as error:
            raise MissingDependencyError(f"Parquet needs pyarrow; pip install 's2composite[zones]': {error}") from error
        encoded = buffer.getvalue()
    put_small(encoded, target, overwrite=overwrite)
    return target


# -- what is asked for -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Statistics:
    """The statistics that are asked for."""

    names: tuple[str, ...]
    percentiles: dict[str, float]  # by their names, 0 to 100
    edges: tuple[float, ...]  # of the histogram's bins; none without a histogram


def _parse_statistics(stats: Sequence[str], bins: Sequence[float] | None) -> _Statistics:
    if not isinstance(stats, Iterable):
        raise ParameterError(f"stats is {stats!r}; it is a list of names, such as ['mean', 'p90']")
    names = (stats,) if isinstance(stats, str) else tuple(stats)
    percentiles = {}
    for name in names:
        if not isinstance(name, str):
            raise ParameterError(f"stats has {name!r}; it is a list of names, such as ['mean', 'p90']")
        match = re.fullmatch(r"p(\d+(?:\.\d+)?)", name)
        if name == "median" or (match and float(match[1]) <= 100):
            percentiles[name] = 50.0 if match is None else float(match[1])
        elif name not in (*_PLAIN, "histogram", "fraction"):
            known = ", ".join((*_PLAIN, "median", "p10 (any percentile)", "histogram", "fraction"))
            raise ParameterError(f"there is no statistic {name!r}; there are {known}")
    if not names or len(set(names)) < len(names):
        raise ParameterError(f"stats={list(names)!r}; name each statistic once, and at least one")
    if (bins is not None) != ("histogram" in names):
        raise ParameterError("a histogram needs bins=, the edges of its bins, and bins= is for stats=['histogram']")
    edges = () if bins is None else tuple(np.atleast_1d(np.asarray(bins, np.float64)).tolist())
    if bins is not None and (len(edges) < 2 or not (np.diff(edges) > 0).all()):
        raise ParameterError(f"bins={bins!r}; give at least two edges, each above the one before")
    return _Statistics(names, percentiles, edges)


# -- the raster --------------------------------------------------------------------------------------------------------


def _cube(data: Any, layer: str) -> tuple[xr.DataArray, bool]:
    """Return what is measured as ``(time, band, y, x)``, and whether it has times."""
    array = data.dataset if isinstance(data, Composite) else data
    if isinstance(array, (str, os.PathLike)):
        return as_cube(_open_raster(os.fspath(array)).expand_dims("time")), False
    if isinstance(array, xr.Dataset):
        if not isinstance(layer, str) or layer not in array:
            raise ParameterError(f"there is no layer {layer!r}; there are {', '.join(map(str, array.data_vars))}")
        array = array[layer]
    if not isinstance(array, xr.DataArray):
        raise ParameterError(f"data is a {type(data).__name__}; give a composite, a Dataset, a DataArray or a path")
    timed = "time" in array.dims
    return as_cube(array if timed else array.drop_vars("time", errors="ignore").expand_dims("time")), timed


def _open_raster(path: str) -> xr.DataArray:
    """Return a raster lazily: physical values, its bands by their names if they have some, without an alpha band."""
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
            bands = [band for band in range(dataset.count) if band != alpha]
            scales, offsets = (np.array(v)[bands, None, None] for v in (dataset.scales, dataset.offsets))
    except (OSError, RasterioError) as error:
        raise SourceError(f"{path}: cannot be read as a raster: {error}") from error
    names = array.attrs.get("long_name")
    if isinstance(names, tuple) and len(set(names)) == len(names):
        array = array.assign_coords(band=list(names))
    array = array.isel(band=bands).drop_encoding() if masked else array.isel(band=bands)
    if (scales == 1).all() and (offsets == 0).all():
        return array
    # NaN where there is no data, and the precision in which exactextract measures
    nodata, dtype = missing_value_of(array).nodata, array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
    values = array.data.astype(dtype) * scales.astype(dtype) + offsets.astype(dtype)
    physical = array.copy(data=values if nodata is None else da.where(array.data == nodata, np.nan, values))
    return physical.drop_attrs(deep=False).drop_encoding()


# -- the zones ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Zone:
    """A zone that touches the raster."""

    number: int
    shape: Any  # Shapely polygon in pixels: x is the column, y the negative row
    window: _Window


def _read_zones(zones: Any, name: str | None, crs: Any) -> tuple[list[Any], NDArray[np.object_]]:
    """Return the names of zones, and their polygons in a raster's coordinate system, checked."""
    frame = _zone_frame(zones)
    if name is not None and not (isinstance(name, Hashable) and name in frame.columns):
        columns = ", ".join(str(column) for column in frame.columns if column != frame.geometry.name)
        raise ParameterError(f"the zones have no column {name!r}; they have {columns or 'none'}")
    column = frame.index.to_series() if name is None else frame[name]
    if column.isna().any():
        row = int(np.flatnonzero(column.isna())[0])
        raise ParameterError(f"the zone in row {row} has no {name or 'index'}; choose another column, or leave it out")
    if duplicates := column[column.duplicated()].tolist():
        raise ParameterError(f"two zones are called {duplicates[0]!r}; choose another column, or dissolve() them")
    names: list[Any] = column.tolist()
    for zone, shape in zip(names, frame.geometry, strict=True):
        if shape is None or shape.is_empty:
            raise ParameterError(f"zone {zone!r} has no geometry; leave it out")
        if shape.geom_type not in ("Polygon", "MultiPolygon"):
            raise ParameterError(f"zone {zone!r} is a {shape.geom_type}; zones are polygons, as .buffer() makes")
        # sums over broken rings would be wrong silently
        if not shape.is_valid:
            why = shapely.is_valid_reason(shape)
            raise ParameterError(f"zone {zone!r} is not a valid polygon ({why}); repair it with zones.make_valid()")
    if frame.crs is None:
        raise GridError("the zones do not say their coordinate system; set it with zones.set_crs(...)")
    # Files without a CRS, GeoJSON most of all, are read as degrees.
    largest = np.abs(frame.geometry.total_bounds).max()
    if frame.crs.is_geographic and largest > 360:
        raise GridError(
            f"the zones say that they are in degrees ({frame.crs.to_string()}), and have coordinates up to "
            f"{largest:.0f}; say what they are in with zones.set_crs(..., allow_override=True)"
        )
    try:
        shapes = np.asarray(frame.to_crs(crs.to_wkt()).geometry.array, object)
    except ProjError as error:
        raise GridError(f"the zones cannot be expressed in the raster's coordinate system: {error}") from error
    for zone, shape in zip(names, shapes, strict=True):
        if not np.isfinite(shape.bounds).all():
            raise GridError(f"zone {zone!r} cannot be expressed in the raster's coordinate system; cut it to the area")
    return names, shapes


def _zone_frame(zones: Any) -> gpd.GeoDataFrame:
    gpd = needed("geopandas", "zones", "zones")
    source = "zones"
    if isinstance(zones, (str, os.PathLike)):
        source = os.fspath(zones)
        try:
            zones = gpd.read_parquet(source) if source.lower().endswith("parquet") else gpd.read_file(source)
        # of GDAL and pyogrio, of pyarrow, and of a format whose library is missing
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, ImportError) as error:
            raise SourceError(f"{source}: cannot be read as zones: {error}") from error
        if not isinstance(zones, gpd.GeoDataFrame):
            raise SourceError(f"{source}: a table without geometries; zones are polygons")
    if not isinstance(zones, (gpd.GeoDataFrame, gpd.GeoSeries)):
        raise ParameterError(f"zones are a {type(zones).__name__}; give a vector file, a GeoDataFrame or a GeoSeries")
    if zones.empty:
        raise ParameterError(f"{source}: it holds no zones")
    return zones if isinstance(zones, gpd.GeoDataFrame) else gpd.GeoDataFrame(geometry=zones)


def _place_zones(shapes: NDArray[np.object_], geobox: GeoBox) -> list[_Zone]:
    """Return those zones that touch a grid, in its pixels.

    Zones made from rasters have their corners on the lines of a grid, but for the rounding of coordinates (1e-9 of a
    pixel in degrees), by which an edge would count a pixel too many or too few.
    """
    to_pixels = ~geobox.transform
    size = np.abs([geobox.resolution.x, geobox.resolution.y])

    def to_grid(corners: NDArray[np.float64]) -> NDArray[np.float64]:
        column, row = to_pixels @ (corners[:, 0], corners[:, 1])
        positions = np.stack([column, -row], axis=1)
        lines = np.round(positions)
        # A corner that is meant to lie on a line may lie off it by the last places of its coordinates.
        tolerance = 8 * np.spacing(np.abs(corners).max(axis=0, initial=1)) / size
        return np.where(np.abs(positions - lines) <= tolerance, lines, positions)

    shapes = shapely.transform(shapes, to_grid)
    height, width = geobox.shape
    west, south, east, north = shapely.bounds(shapes).T
    tops, bottoms = np.clip(np.floor(-north), 0, height), np.clip(np.ceil(-south), 0, height)
    lefts, rights = np.clip(np.floor(west), 0, width), np.clip(np.ceil(east), 0, width)
    windows = np.stack([tops, bottoms, lefts, rights], 1).astype(np.int64).tolist()
    return [
        _Zone(number, shape, (top, bottom, left, right))
        for number, (shape, (top, bottom, left, right)) in enumerate(zip(shapes, windows, strict=True))
        if top < bottom and left < right
    ]


# -- which pixels a zone covers ----------------------------------------------------------------------------------------


def _coverage(window: _Window, shapes: Sequence[Any]) -> list[_Covered]:
    """Return which pixels of a window each zone covers.

    exactextract 0.3.0 crashes the process where an edge of a hole lies on the border of its raster, as in a raster of
    ``NumPyRasterSource(np.zeros((9, 9)), 8, 8, 17, 17)`` for the zone
    ``box(3, 3, 17, 17).difference(box(8, 8, 12, 12))``. Zones made from rasters are full of edges on the borders of
    chunks. So it gets a raster with a pixel more on each side, zones that have no corner on the border of that, and no
    limit at which it would cut the raster again.
    """
    from exactextract import exact_extract  # noqa: PLC0415 - an extra
    from exactextract.raster import NumPyRasterSource  # noqa: PLC0415

    top, bottom, left, right = window
    height, width = bottom - top, right - left
    border = west, south, east, north = left - 1, -bottom - 1, right + 1, -top + 1
    blank = NumPyRasterSource(np.broadcast_to(np.uint8(0), (height + 2, width + 2)), *border)

    # Zones without such a corner stay as they are: to the last bits, coverage depends on where the corners are.
    zones = np.array(shapes, object)
    corners, zone_of_corner = shapely.get_coordinates(zones, return_index=True)
    x, y = corners.T
    critical = np.unique(zone_of_corner[(x == west) | (x == east) | (y == south) | (y == north)])
    half_pixel_around = shapely.box(left - 0.5, -bottom - 0.5, right + 0.5, -top + 0.5)
    for i in critical:
        cut = shapely.intersection(zones[i], half_pixel_around)
        if cut.geom_type not in ("Polygon", "MultiPolygon"):  # with points and lines in which it touches the cut
            cut = shapely.union_all([part for part in shapely.get_parts(cut) if part.geom_type == "Polygon"])
        zones[i] = cut

    features = [
        {"type": "Feature", "properties": {"zone": i}, "geometry": shapely.geometry.mapping(zone)}
        for i, zone in enumerate(zones)
        if not zone.is_empty
    ]
    nothing = np.empty(0, np.int64)
    covered: list[_Covered] = [(nothing, nothing, np.empty(0))] * len(zones)
    options = {"include_cols": ["zone"], "max_cells_in_memory": (height + 2) * (width + 2)}
    for feature in exact_extract(blank, features, ["cell_id", "coverage"], **options) if features else ():
        properties = feature["properties"]
        rows, columns = np.divmod(properties["cell_id"], width + 2)
        inside = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
        covered[properties["zone"]] = (rows[inside] - 1, columns[inside] - 1, properties["coverage"][inside])
    return covered


# -- what they are like ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class _Summary:
    """What is known of some pixels of a zone, each weighted by the share of it that the zone covers."""

    count: float  # sum of the weights, in pixels
    low: float  # infinity if there is no value
    high: float  # minus infinity if there is no value
    mean: float  # 0 if there is no value
    m2: float  # sum of squared differences to the mean
    m3: float  # sum of cubed differences to the mean
    # The different values ``(n,)``, rising, and their weights, if percentiles or fractions need them; else empty
    table: tuple[NDArray[Any], NDArray[np.float64]]
    histogram: NDArray[np.float64]  # empty if it is not asked for


def _summarize(values: NDArray[Any], weights: NDArray[np.float64], statistics: _Statistics) -> _Summary:
    """Return what is to be known of pixels ``(n,)`` with their weights."""
    tabled = "fraction" in statistics.names or statistics.percentiles
    table = _tabulate(values, weights) if tabled else (np.empty(0), np.empty(0))
    histogram = np.histogram(values, statistics.edges, weights=weights)[0] if statistics.edges else np.empty(0)
    count = float(weights.sum())
    if count == 0:
        return _Summary(0.0, np.inf, -np.inf, 0.0, 0.0, 0.0, table, histogram)
    # Sums instead of products of vectors, for which BLAS starts threads of its own: 20 times slower beside Dask's.
    mean = float((weights * values).sum() / count)
    difference = np.subtract(values, mean, dtype=np.float64)
    square = weights * difference * difference
    m2, m3 = float(square.sum()), float((square * difference).sum())
    return _Summary(count, float(values.min()), float(values.max()), mean, m2, m3, table, histogram)


def _tabulate(values: NDArray[Any], weights: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    unique, inverse = np.unique(values, return_inverse=True)
    return unique, np.bincount(inverse, weights, len(unique)).astype(np.float64)


def _merge(parts: Sequence[_Summary]) -> _Summary:
    """Return what is known of all parts of a zone.

    Moments are merged by the formulas of Pébay, "Formulas for robust, one-pass parallel computation of covariances and
    arbitrary-order statistical moments", Sandia report SAND2008-6212 (2008).
    """
    if len(parts) == 1:
        return parts[0]
    first, *others = [part for part in parts if part.count > 0] or parts[:1]
    count, low, high, mean, m2, m3 = first.count, first.low, first.high, first.mean, first.m2, first.m3
    for part in others:
        n, difference = count + part.count, part.mean - mean
        m3 = m3 + part.m3 + difference**3 * count * part.count * (count - part.count) / n**2
        m3 += 3 * difference * (count * part.m2 - part.count * m2) / n
        m2 = m2 + part.m2 + difference**2 * count * part.count / n
        mean += difference * part.count / n
        count, low, high = n, min(low, part.low), max(high, part.high)
    table = _tabulate(*map(np.concatenate, zip(*(part.table for part in parts), strict=True)))
    return _Summary(count, low, high, mean, m2, m3, table, np.sum([part.histogram for part in parts], axis=0))


def _row(summary: _Summary, statistics: _Statistics) -> _Row:
    """Return the statistics of a zone; NaN where there is no value.

    stdev is that of the population; skew, the third standardised moment, is NaN where all values are the same.
    """
    count, nan = summary.count, float("nan")
    known = {"count": count, "sum": summary.mean * count, **dict.fromkeys(("min", "max", "mean", "stdev", "skew"), nan)}
    if count > 0:
        variance = summary.m2 / count
        known |= {"min": summary.low, "max": summary.high, "mean": summary.mean, "stdev": float(np.sqrt(variance))}
        known["skew"] = nan if summary.low == summary.high else summary.m3 / count / variance**1.5
    if statistics.percentiles:
        percentiles = _percentiles(*summary.table, list(statistics.percentiles.values()))
        known |= dict(zip(statistics.percentiles, percentiles, strict=True))
    row: _Row = {}
    for name in statistics.names:
        if name == "histogram":
            bins = [f"histogram_{low:g}_{high:g}" for low, high in pairwise(statistics.edges)]
            row |= dict(zip(bins, summary.histogram.tolist(), strict=True))
        elif name == "fraction":
            values, weights = summary.table
            if (n := len(values)) > 1000:  # no classes
                raise ParameterError(f"fraction: a zone has {n} different values; classes are up to 1000")
            shares = zip(values.tolist(), (weights / weights.sum()).tolist(), strict=True)
            row |= {f"fraction_{value:g}": share for value, share in shares}
        else:
            row[name] = known[name]
    return row


def _percentiles(values: NDArray[Any], weights: NDArray[np.float64], percentiles: Sequence[float]) -> list[float]:
    """Return percentiles, 0 to 100, by exactextract's definition, also of integers as real numbers; NaN for no values.

    Of the different values x_0 < ... < x_{n-1} with weights w_i, x_i lies at s_i = i w_i + (n - 1) (w_0 + ... +
    w_{i-1}), and the quantile q is interpolated linearly at q (n - 1) (w_0 + ... + w_{n-1}).
    """
    n = len(values)
    if not n:
        return [np.nan] * len(percentiles)
    sums = np.cumsum(weights)
    places = np.arange(n) * weights
    places[1:] += (n - 1) * sums[:-1]
    end = float(sums[-1]) * (n - 1)
    results = []
    for place in (percentile / 100 * end for percentile in percentiles):
        right = int(np.searchsorted(places, place, side="right"))
        if right == n:
            results.append(float(values[-1]))
        else:
            low, high = float(values[right - 1]), float(values[right])
            step = places[right] - places[right - 1]
            results.append(float(low + (place - places[right - 1]) * (high - low) / step))
    return results


# -- tasks, each where its pixels are ----------------------------------------------------------------------------------


def _tasks(data: da.Array, zones: Sequence[_Zone], statistics: _Statistics, nodata: float | None) -> Iterator[Delayed]:
    """Yield tasks that return rows, all zones, times and bands of an array ``(time, band, y, x)`` together."""
    # Fused once, so that all tasks mean the same blocks.
    blocks = data.to_delayed()
    starts = [np.cumsum([0, *sizes[:-1]]).tolist() for sizes in data.chunks]
    # Zones that lie in one chunk are measured together, others each for itself.
    groups: dict[tuple[Any, ...], list[_Zone]] = {}
    for zone in zones:
        top, bottom, left, right = zone.window
        rows = np.searchsorted(starts[2], [top, bottom - 1], side="right") - 1
        columns = np.searchsorted(starts[3], [left, right - 1], side="right") - 1
        chunks = tuple(product(range(rows[0], rows[1] + 1), range(columns[0], columns[1] + 1)))
        groups.setdefault((chunks, None if len(chunks) == 1 else zone.number), []).append(zone)
    for t, b in np.ndindex(*data.numblocks[:2]):
        for (chunks, _), inside in groups.items():
            parts = []
            for index in ((t, b, *chunk) for chunk in chunks):
                origin = tuple(begins[i] for begins, i in zip(starts, index, strict=True))
                # bound, because Dask searches arguments for tasks, which takes as long as measuring small zones
                measure = partial(_measure, origin=origin, zones=inside, statistics=statistics, nodata=nodata)
                key = f"measure-zones-{uuid.uuid4().hex}"
                parts.append(delayed(measure)(blocks[index], dask_key_name=key))
            key = f"merge-zones-{uuid.uuid4().hex}"
            yield delayed(partial(_rows, statistics=statistics))(parts, dask_key_name=key)


def _rows(parts: Sequence[Mapping[_Key, _Summary]], statistics: _Statistics) -> dict[_Key, _Row]:
    return {key: _row(_merge([part[key] for part in parts]), statistics) for key in parts[0]}


def _measure(
    block: NDArray[Any], origin: _Origin, zones: Sequence[_Zone], statistics: _Statistics, nodata: float | None
) -> dict[_Key, _Summary]:
    """Return what a block ``(t, b, y, x)`` knows of each zone, for each of its times and bands."""
    time, band, first_row, first_column = origin
    measured = {}
    for batch in _batches(zones):
        # The pixels of the block around these zones.
        tops, bottoms, lefts, rights = zip(*(zone.window for zone in batch), strict=True)
        top, bottom = max(first_row, min(tops)), min(first_row + block.shape[2], max(bottoms))
        left, right = max(first_column, min(lefts)), min(first_column + block.shape[3], max(rights))
        pixels = block[:, :, top - first_row : bottom - first_row, left - first_column : right - first_column]
        covered = _coverage((top, bottom, left, right), [zone.shape for zone in batch])
        for zone, (rows, columns, weights) in zip(batch, covered, strict=True):
            for t, b in np.ndindex(pixels.shape[:2]):
                values = pixels[t, b][rows, columns]
                valid = np.ones(values.shape, np.bool_) if values.dtype.kind in "iub" else ~np.isnan(values)
                if nodata is not None:
                    valid &= values != nodata
                key = zone.number, time + t, band + b
                measured[key] = _summarize(values[valid], weights[valid], statistics)
    return measured


def _batches(zones: Sequence[_Zone]) -> Iterator[list[_Zone]]:
    """Yield zones together as long as they are small: each call of exactextract costs as much as many small zones."""
    batch: list[_Zone] = []
    pixels = 0
    for zone in zones:
        top, bottom, left, right = zone.window
        area = (bottom - top) * (right - left)
        if batch and pixels + area > _TOGETHER:
            yield batch
            batch, pixels = [], 0
        batch.append(zone)
        pixels += area
    yield batch


# -- the table ---------------------------------------------------------------------------------------------------------


def _table(
    measured: Mapping[_Key, _Row], names: Sequence[Any], cube: xr.DataArray, statistics: _Statistics, *, timed: bool
) -> pd.DataFrame:
    nothing = _row(_summarize(np.empty(0), np.empty(0), statistics), statistics)
    keys = list(product(range(len(names)), range(cube.sizes["time"]), range(cube.sizes["band"])))
    table = pd.DataFrame([measured.get(key, nothing) for key in keys])
    zone, time, band = np.array(keys).T

    def labels_of(coordinate: str, positions: NDArray[np.int64]) -> Any:
        return np.asarray(cube[coordinate]).astype(str).astype(object)[positions]

    labels: dict[str, Any] = {"zone": pd.Series(list(names))[zone].to_numpy()}
    if timed and "period" in cube.coords:
        labels["period"] = labels_of("period", time)
    if timed:
        labels["time"] = np.asarray(cube["time"])[time]
    if timed and "period" not in cube.coords and "scene" in cube.coords:
        labels["scene"] = labels_of("scene", time)
    labels["band"] = labels_of("band", band)

    shares = sorted((c for c in table.columns if c.startswith("fraction_")), key=lambda c: float(c.partition("_")[2]))
    columns_of = {"fraction": shares, "histogram": [c for c in table.columns if c.startswith("histogram_")]}
    figures = table[[c for name in statistics.names for c in columns_of.get(name, [name])]].astype(float)
    # A class that a zone has nothing of has a share of 0 there.
    with_classes = figures[shares].notna().any(axis=1)
    figures.loc[with_classes, shares] = figures.loc[with_classes, shares].fillna(0)
    return pd.DataFrame(labels).join(figures)
