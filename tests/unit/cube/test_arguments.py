"""Arguments in the style of stackstac, odc-stac, rasterio, rioxarray and pandas: accepted, or an error of ours."""

import datetime as dt
import inspect
import io
import signal
from pathlib import Path

import geopandas as gpd
import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pandas as pd
import pyproj
import pystac
import pytest
import rasterio
import shapely
import xarray as xr
from odc.geo import geom, resxy_, resyx_
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

import s2composite as s2c
from s2composite.cli import main
from s2composite.clusters.connect import read_cluster
from s2composite.errors import BandError, ParameterError, S2CompositeError
from s2composite.pixels import reducers as registry
from s2composite.pixels.mask_bands import _RULES, resolve_rule
from s2composite.scenes.dates import find_periods
from s2composite.writing.cog import write_raster
from s2composite.writing.zarr import write_zarr
from support.rasters import encoded, write_tif

ODD = {
    "None": None, "zero": 0, "negative": -1, "huge": 10**30, "NaN": float("nan"), "infinity": float("inf"), "half": 1.5,
    "true": True, "false": False, "no text": "", "word": "foo", "line": "é\n", "NUL": "a\0b", "bytes": b"x",
    "list": [], "tuple": (), "dict": {}, "set": set(), "array": np.array([]), "list of None": [None],
    "numbers": (1, 2, 3), "mapping": {"a": 1}, "nested": [[1]], "object": object(), "function": lambda x: x,
    "type": dt.datetime, "file": io.BytesIO(b"x"),
}  # fmt: skip
"""Values that most arguments cannot have."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three scenes, each one file with three named bands."""
    directory = tmp_path_factory.mktemp("scenes")
    for t in range(3):
        path = write_tif(directory / f"S2A_31TCJ_202306{1 + 10 * t:02d}T105619_x.tif", encoded(t), nodata=0)
        with rasterio.open(path, "r+") as dataset:
            dataset.descriptions = ("B04", "B03", "B08")
    return directory


@pytest.fixture(scope="module")
def cube(folder):
    return s2c.open_cube(folder)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A directory in which files with odd names may be created."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(call):
    """Return the result of a call, or its error if it is one of ours."""
    try:
        return call()
    except S2CompositeError as error:
        return error


# --- what is understood ---------------------------------------------------------------------------------------------


def area(cube):
    return cube.odc.geobox[50:100, 20:60].geographic_extent


BANDS = [
    ("B08", ["B08"]),
    (["red"], ["B04"]),
    ([1], ["B04"]),
    (3, ["B08"]),
    ([3, 1], ["B08", "B04"]),
    (["B04", 2], ["B04", "B03"]),
    (np.array([2]), ["B03"]),
    (np.array(["B03"]), ["B03"]),
    (pd.Index(["B03", "B04"]), ["B03", "B04"]),
    ({"B08": "nir"}, ["B08"]),
]


@pytest.mark.parametrize(("bands", "names"), BANDS)
def test_bands(folder, bands, names):
    found = s2c.open_cube(folder, bands=bands)
    positions = [("B04", "B03", "B08").index(name) for name in names]
    with rasterio.open(sorted(folder.iterdir())[1]) as dataset:
        np.testing.assert_array_equal(found.values[1], dataset.read([p + 1 for p in positions]))
    assert len(found["band"]) == len(names)


def test_bands_of_a_generator_and_of_a_file_without_names(folder, tmp_path):
    assert s2c.open_cube(folder, bands=(name for name in ["B04", "B08"])).sizes["band"] == 2
    path = write_tif(tmp_path / "T31TCJ_20230601.tif", encoded(0))
    np.testing.assert_array_equal(s2c.open_cube(path, bands=[3, 1]).values[0], encoded(0)[[2, 0]])


@pytest.mark.parametrize(
    ("bands", "error", "words"),
    [
        ([4], BandError, "no band 4; it has .*B04, B03, B08; numbers count"),
        ([0], ParameterError, "contains 0; it takes names .* from 1"),
        (["B04", "B04"], ParameterError, "name at least one, and each once"),
        (["B04", 1], BandError, "name each band once"),
        ([], ParameterError, "name at least one"),
    ],
)
def test_unknown_bands(folder, bands, error, words):
    with pytest.raises(error, match=words):
        s2c.open_cube(folder, bands=bands)


def test_band_numbers_need_scenes_of_one_file(tmp_path):
    for name in ("B04", "B08"):
        write_tif(tmp_path / f"T31TCJ_20230601T105619_{name}.tif", encoded(0, bands=1))
    with pytest.raises(BandError, match=r"no band 1; it has B04, B08; .*only file"):
        s2c.open_cube(tmp_path, bands=[1])


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_numbers_beside_names_count_the_bands_of_the_file_that_is_opened(on_error, tmp_path):
    write_tif(tmp_path / "T31TCJ_20230601T105619_TCI.tif", encoded(0))
    write_tif(tmp_path / "T31TCJ_20230601T105619_SCL.tif", encoded(0, bands=1))
    assert s2c.open_cube(tmp_path, bands=["red", 2], on_error=on_error).band.values.tolist() == ["red", "green"]


@pytest.mark.parametrize(
    "resolution", [20, "20", 20.0, np.float32(20), (20, -20), (-20, 20), [20, 20], np.array([20, 20]), resyx_(-20, 20)]
)
def test_resolutions(folder, resolution):
    assert s2c.open_cube(folder, resolution=resolution).odc.geobox == s2c.open_cube(folder, resolution=20).odc.geobox


@pytest.mark.parametrize(
    ("resolution", "words"),
    [
        ((10, 20), "pixels are square here; geobox= takes any grid"),
        (resxy_(10, -30), "pixels are square here"),
        (-10, "must be positive"),
        ((-10, -10), "must be positive"),
        ((10, -10, 1), "must be positive"),
        ("ten", "must be positive, a number"),
    ],
)
def test_invalid_resolutions(folder, resolution, words):
    with pytest.raises(ParameterError, match=words):
        s2c.open_cube(folder, resolution=resolution)


@pytest.mark.parametrize(
    ("resampling", "name"),
    [
        (Resampling.bilinear, "bilinear"),
        ("BILINEAR", "bilinear"),
        ("near", "nearest"),
        (None, "nearest"),
        ("cubicspline", "cubic_spline"),
        ({"*": Resampling.cubic}, {"*": "cubic"}),
        ({"B04": "Average", "*": "near"}, {"B04": "average", "*": "nearest"}),
    ],
)
def test_resampling_methods(folder, resampling, name):
    options = {"crs": "EPSG:3035", "resolution": 10}
    xr.testing.assert_identical(
        s2c.open_cube(folder, resampling=resampling, **options), s2c.open_cube(folder, resampling=name, **options)
    )


@pytest.mark.parametrize("resampling", [Resampling.gauss, "gauss", "smooth", 1, {"B04": "smooth"}, ["nearest"]])
def test_invalid_resampling_methods(folder, resampling):
    with pytest.raises(ParameterError, match="is unknown; there are nearest, bilinear"):
        s2c.open_cube(folder, resampling=resampling)


@pytest.mark.parametrize(
    "crs",
    [
        3035, "3035", "epsg:3035", np.int64(3035), CRS(3035), pyproj.CRS(3035), rasterio.crs.CRS.from_epsg(3035),
        pyproj.CRS(3035).to_wkt(),
    ],
)  # fmt: skip
def test_coordinate_systems(folder, crs):
    assert s2c.open_cube(folder, crs=crs).odc.geobox == s2c.open_cube(folder, crs="EPSG:3035").odc.geobox


BOXES = {
    "tuple": lambda g: g.boundingbox.bbox,
    "texts": lambda g: [str(value) for value in g.boundingbox.bbox],
    "array": lambda g: np.array(g.boundingbox.bbox),
    "rasterio": lambda g: rasterio.coords.BoundingBox(*g.boundingbox.bbox),
    "odc-geo box": lambda g: g.boundingbox,
    "odc-geo geometry": lambda g: g,
    "odc-geo, projected": lambda g: geom.box(*g.boundingbox.bbox, "EPSG:4326").boundingbox,
    "shapely": lambda g: shapely.box(*g.boundingbox.bbox),
    "GeoJSON": lambda g: shapely.box(*g.boundingbox.bbox).__geo_interface__,
    "feature": lambda g: {"type": "Feature", "geometry": shapely.box(*g.boundingbox.bbox).__geo_interface__},
    "geopandas": lambda g: gpd.GeoDataFrame(geometry=[shapely.box(*g.boundingbox.bbox)], crs=4326),
    "series": lambda g: gpd.GeoSeries([shapely.box(*g.boundingbox.bbox)], crs="EPSG:4326"),
}


@pytest.mark.parametrize("form", BOXES)
def test_bounding_boxes(folder, cube, form):
    expected = s2c.open_cube(folder, bbox=area(cube).boundingbox.bbox)
    found = s2c.open_cube(folder, bbox=BOXES[form](area(cube)))
    assert found.odc.geobox == expected.odc.geobox
    assert found.shape[2] in range(50, 60)
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_projected_frame_names_its_own_crs(folder, cube):
    bounds = cube.odc.geobox[50:100, 20:60].extent.boundingbox.bbox
    frame = gpd.GeoDataFrame(geometry=[shapely.box(*bounds)], crs=32631)
    assert s2c.open_cube(folder, bbox=frame).shape[2:] == (50, 40)
    assert s2c.open_cube(folder, bbox=cube.odc.geobox[50:100, 20:60]).shape[2:] == (50, 40)


@pytest.mark.parametrize(
    ("bbox", "words"),
    [
        (geom.BoundingBox(0, 0, 1, 1, None), "without a CRS"),
        (gpd.GeoSeries([shapely.box(0, 0, 1, 1)]), "GeoSeries without a CRS"),
        (gpd.GeoSeries([], crs=4326), "is empty"),
        (shapely.Point(1, 44), "is empty"),
        (shapely.Polygon(), "is empty"),
        ((1, 44, 1, 45), "is empty"),
        ((600000, 4800000, 700000, 4900000), "not in degrees"),
        ((1, 44, 0, 2, 45, 100), "it takes four"),
        ("1,44,2,45", "it takes four"),
        ({"type": "Polygon"}, "in degrees, or a geometry"),
        (("1", "44", "2", "north"), "in degrees, or a geometry"),
    ],
)
def test_invalid_bounding_boxes(folder, bbox, words):
    with pytest.raises(ParameterError, match=words):
        s2c.open_cube(folder, bbox=bbox)


@pytest.mark.parametrize("geobox", [(64, 64), "a.tif", "cube", 5, GeoBox])
def test_a_geobox_is_one_of_odc_geo(folder, cube, geobox):
    with pytest.raises(ParameterError, match=r"it is an odc.geo.geobox.GeoBox.*like= takes an array"):
        s2c.open_cube(folder, geobox=cube if geobox == "cube" else geobox)


@pytest.mark.parametrize("like", ["array", "dataset", "composite", "path", "text", "geobox"])
def test_like(folder, cube, like):
    first = min(folder.iterdir())
    target = {
        "array": cube, "dataset": cube.to_dataset("band"), "composite": s2c.composite(cube), "path": first,
        "text": str(first), "geobox": cube.odc.geobox,
    }[like]  # fmt: skip
    assert s2c.open_cube(folder, like=target).odc.geobox == cube.odc.geobox


@pytest.mark.parametrize(
    ("chunks", "sizes"),
    [
        ({"x": 64, "y": 128}, ((128, 72), (64, 64, 8))),
        ({"longitude": 64, "latitude": 128}, ((128, 72), (64, 64, 8))),
        ({"time": -1, "band": -1, "x": 64, "y": 128}, ((128, 72), (64, 64, 8))),
        ((128, 64), ((128, 72), (64, 64, 8))),
        ([128, 64], ((128, 72), (64, 64, 8))),
        (np.int64(64), ((64, 64, 64, 8), (64, 64, 8))),
        (-1, ((200,), (136,))),
        ((-1, 64), ((200,), (64, 64, 8))),
        ({"x": -1, "y": 64}, ((64, 64, 64, 8), (136,))),
        (10**30, ((200,), (136,))),
    ],
)
def test_chunks(folder, chunks, sizes):
    assert s2c.open_cube(folder, chunks=chunks).chunks[2:] == sizes


@pytest.mark.parametrize("chunks", [None, {}, "auto", ("auto", "auto"), {"x": "auto"}, {"y": None}])
def test_chunks_that_are_left_open(folder, cube, chunks):
    assert s2c.open_cube(folder, chunks=chunks).chunks == cube.chunks


def test_one_window_of_a_crop_that_does_not_begin_with_a_block(folder, cube):
    assert s2c.open_cube(folder, bbox=cube.odc.geobox[30:150, 10:130], chunks=-1).chunks[2:] == ((120,), (120,))


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ({"time": 1, "x": 64, "y": 64}, "a window holds all times and bands"),
        ({"z": 64}, "keys y and x"),
        ((1, 1, 64, 64), r"or \(y, x\)"),
        (0, "positive number"),
        (-2, "positive number"),
        (64.0, "positive number"),
        (True, "positive number"),
        ("128MiB", "positive number"),
    ],
)
def test_invalid_chunks(folder, chunks, words):
    with pytest.raises(ParameterError, match=words):
        s2c.open_cube(folder, chunks=chunks)


@pytest.mark.parametrize(
    ("datetime", "kept"),
    [
        (slice("2023-06-05", "2023-06-25"), [1, 2]),
        (slice(None, "2023-06-12"), [0, 1]),
        (["2023-06-05", "2023-06-25"], [1, 2]),
        ((dt.datetime(2023, 6, 5, tzinfo=dt.UTC), None), [1, 2]),
        (dt.date(2023, 6, 11), [1]),
        (pd.Timestamp("2023-06-11T10:56:19"), [1]),
        (pd.Timestamp("2023-06-11T12:56:19+02:00"), [1]),
        ([pd.Timestamp("2023-06-05"), pd.Timestamp("2023-06-30")], [1, 2]),
        (pd.DatetimeIndex(["2023-06-05", "2023-06-30"]), [1, 2]),
        (np.array(["2023-06-05", "2023-06-30"], "datetime64[ns]"), [1, 2]),
        (np.datetime64("2023-06"), [0, 1, 2]),
        (pd.Period("2023-06"), [0, 1, 2]),
        ("2023-06/2023-08", [0, 1, 2]),
        (2023, [0, 1, 2]),
        (np.int64(2023), [0, 1, 2]),
    ],
)
def test_dates(folder, cube, datetime, kept):
    assert s2c.open_cube(folder, datetime=datetime)["time"].values.tolist() == cube["time"].values[kept].tolist()


NONE = [pd.NaT, np.datetime64("NaT", "ns"), slice("2023", "2024", 2), [], ["1", "2", "3"], 1.5]


@pytest.mark.parametrize("datetime", NONE)
def test_invalid_dates(folder, datetime):
    with pytest.raises(ParameterError, match="is not a date or an interval"):
        s2c.open_cube(folder, datetime=datetime)


TIMES = ["2023-01-01", "2023-01-02", "2023-01-03"]


@pytest.mark.parametrize(
    "times", [TIMES, tuple(TIMES), pd.DatetimeIndex(TIMES), np.array(TIMES, "datetime64[ns]"), iter(TIMES)]
)
def test_times(folder, times):
    assert s2c.open_cube(folder, times=times)["time"].dt.strftime("%Y-%m-%d").values.tolist() == TIMES


def test_sources(folder):
    files = sorted(folder.iterdir())
    for source in (folder, str(folder), iter(files), set(files), np.array(list(map(str, files))), pd.Series(files)):
        assert len(s2c.find_scenes(source)) == 3


@pytest.mark.parametrize(
    "source", ["open", "reader", io.BytesIO(b"x"), pystac.Asset("a.tif"), pd.Series([1]), dt.date(2023, 1, 1)]
)
def test_invalid_sources(folder, source):
    first = min(folder.iterdir())
    if isinstance(source, str) and source == "reader":
        with rasterio.open(first) as dataset, pytest.raises(ParameterError, match="source"):
            s2c.find_scenes(dataset)
    elif isinstance(source, str):
        with first.open("rb") as file, pytest.raises(ParameterError, match=r"source.*give a path"):
            s2c.find_scenes(file)
    else:
        with pytest.raises(S2CompositeError):
            s2c.find_scenes(source)


@pytest.mark.parametrize(
    ("reducer", "words"),
    [
        (np.median, "the function median is no reducer; give its name, 'median'"),
        (np.nanmean, "the function nanmean is no reducer; give its name, 'mean'"),
        (xr.DataArray.max, "give its name, 'max'"),
        (np.sort, "the function sort is no reducer; give one by name"),
        (None, "None is no reducer"),
        ([np.median], "give its name, 'median'"),
        ([], "give at least one"),
    ],
)
def test_invalid_reducers(cube, reducer, words):
    with pytest.raises(ParameterError, match=words):
        s2c.composite(cube, reducer)


@pytest.mark.parametrize(
    ("valid", "rules"),
    [
        ("nodata", [s2c.Nodata()]),
        (["nodata", "saturated"], [s2c.Nodata(), s2c.Saturated()]),
        ({"value_range": {"low": 60, "high": 200}}, [s2c.ValueRange(60, 200)]),
        (["nodata", {"value_range": {"low": 60}}], [s2c.Nodata(), s2c.ValueRange(60)]),
        ([{"nodata": None}, s2c.Saturated()], [s2c.Nodata(), s2c.Saturated()]),
        (iter([s2c.Nodata()]), [s2c.Nodata()]),
    ],
)
def test_rules_by_name(cube, valid, rules):
    found, expected = s2c.composite(cube, valid=valid), s2c.composite(cube, valid=rules)
    assert found.dataset.attrs == expected.dataset.attrs
    xr.testing.assert_identical(found.dataset.compute(), expected.dataset.compute())


def test_a_mask_rule_by_name_looks_at_its_band(cube):
    scl = xr.full_like(cube.isel(band=0), 4).where(cube["time"] != cube["time"][1], 9).rename("SCL").astype("uint8")
    dataset = cube.to_dataset("band").assign(SCL=scl)
    assert int(s2c.composite(dataset, valid="scl")["count"].max()) == 2


@pytest.mark.parametrize(
    ("valid", "words"),
    [
        ("cloudy", "unknown rule 'cloudy'; there are .*scl"),
        ({"value_range": {"lo": 1}}, "no parameter 'lo'"),
        ({"value_range": {"low": "x"}}, "give a number"),
        ({"value_range": 1}, "a rule with parameters is"),
        ({"nodata": {}, "saturated": {}}, "a rule with parameters is"),
        (s2c.SCL, "takes rules"),
        (np.ones((3, 200, 136), bool), "takes rules"),
    ],
)
def test_invalid_rules(cube, valid, words):
    with pytest.raises(ParameterError, match=words):
        s2c.composite(cube, valid=valid)


FIRST, LAST = dt.date(2022, 12, 5), dt.date(2023, 8, 20)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ("MS", "month"), ("ME", "month"), ("1ME", "month"), ("2MS", "2M"), ("QS", "quarter"), ("QE-DEC", "quarter"),
        ("QS-DEC", "season"), ("QE-FEB", "season"), ("YS", "year"), ("YE", "year"), ("YS-JUL", "annual-fy"),
        ("2YS", "2Y"), ("D", "day"), (pd.offsets.MonthBegin(), "month"), (pd.offsets.MonthEnd(), "month"),
        (pd.offsets.QuarterEnd(), "quarter"), (pd.offsets.QuarterBegin(startingMonth=12), "season"),
        (pd.offsets.YearBegin(), "year"), (pd.offsets.Day(10), "10D"), (pd.Timedelta("10D"), "10D"),
        (dt.timedelta(days=10), "10D"), (pd.Period("2023-06"), "2023-06"),
        (pd.period_range("2023-01", "2023-03", freq="M"), ["2023-01", "2023-02", "2023-03"]),
    ],
    ids=str,
)  # fmt: skip
def test_periods_of_pandas(given, same):
    assert find_periods(given, FIRST, LAST) == find_periods(same, FIRST, LAST)


@pytest.mark.parametrize("spec", ["MS", "ME", "QS", "QS-DEC", "YS", "D"])
def test_periods_of_pandas_begin_where_its_own_do(spec):
    ours = find_periods(spec, FIRST, LAST)
    begin = pd.tseries.frequencies.to_offset(spec.replace("ME", "MS"))
    starts = pd.date_range(begin.rollback(pd.Timestamp(FIRST)), pd.Timestamp(LAST), freq=begin)
    assert [period.start for period in ours] == [start.date() for start in starts]


@pytest.mark.parametrize(
    "spec", ["SMS", "h", "W", "B", "2QS", pd.offsets.Week(weekday=0), dt.timedelta(hours=3), pd.NaT]
)
def test_unsupported_pandas_periods(spec):
    with pytest.raises(ParameterError, match="is not understood"):
        find_periods(spec, FIRST, LAST)


# --- nothing else comes out -----------------------------------------------------------------------------------------

OPENING = [name for name in inspect.signature(s2c.open_cube).parameters if name != "source"]
COMPOSING = [name for name in inspect.signature(s2c.composite).parameters if name not in ("cube", "params")]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", OPENING)
def test_open_cube_accepts_or_rejects_arguments(folder, there, name, odd):
    outcome(lambda: s2c.open_cube(folder, **{name: ODD[odd]}))


@pytest.mark.parametrize("odd", ODD)
def test_sources_and_cubes_are_accepted_or_rejected(there, odd):
    assert isinstance(outcome(lambda: s2c.find_scenes(ODD[odd])), S2CompositeError)
    assert isinstance(outcome(lambda: s2c.composite(ODD[odd])), S2CompositeError)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", COMPOSING)
def test_composite_accepts_or_rejects_arguments(cube, name, odd):
    outcome(lambda: s2c.composite(cube, **{name: ODD[odd]}).compute())


PARAMETERS = [(name, one) for name, make in registry._REGISTRY.items() for one in inspect.signature(make).parameters]


@pytest.mark.slow
@pytest.mark.parametrize(("reducer", "parameter"), PARAMETERS)
def test_reducer_parameters_are_accepted_or_rejected(cube, reducer, parameter):
    small = cube.isel(y=slice(0, 8), x=slice(0, 8)).compute()
    for odd in [*ODD.values(), "0.5", [1, "x"], np.array([10.0, 90.0]), 200, -5]:
        outcome(lambda odd=odd: s2c.composite(small, reducer, **{parameter: odd}).compute())


@pytest.mark.parametrize("rule", _RULES)
def test_rule_parameters_are_accepted_or_rejected(rule):
    for parameter in inspect.signature(_RULES[rule]).parameters:
        for odd in [*ODD.values(), "0.5", [1, "x"], 200, -5]:
            outcome(lambda parameter=parameter, odd=odd: resolve_rule(rule, **{parameter: odd}))


# --- writing, zones, clusters and the rest ----------------------------------------------------------------------------

SWITCHES = ("overwrite", "progress", "resume", "shards", "pyramid", "separate", "mask")
"""Arguments that are true or false, for which anything counts that Python takes for one of them."""


@pytest.fixture(scope="module")
def small(cube):
    return s2c.composite(cube.isel(y=slice(0, 64), x=slice(0, 64))).compute()


@pytest.fixture(scope="module")
def zones(small):
    return gpd.GeoDataFrame({"name": ["a"]}, geometry=[small.dataset.odc.geobox.extent.geom], crs=32631)


def parameters(function, *left_out):
    return [name for name in inspect.signature(function).parameters if name not in (*left_out, *SWITCHES)]


@pytest.mark.parametrize("odd", ODD)
def test_output_options_are_accepted_or_rejected(small, there, odd):
    outcome(lambda: small.to_raster(ODD[odd]))
    outcome(lambda: small.to_zarr(ODD[odd]))
    for name in parameters(write_raster, "dataset", "path"):
        outcome(lambda name=name: small.to_raster(f"{name}.tif", **{name: ODD[odd]}))
    for name in parameters(write_zarr, "dataset", "store"):
        outcome(lambda name=name: small.to_zarr(f"{name}.zarr", **{name: ODD[odd]}))


@pytest.mark.parametrize("odd", ODD)
def test_zone_arguments_are_accepted_or_rejected(small, zones, odd):
    assert isinstance(outcome(lambda: s2c.zonal_stats(ODD[odd], zones)), S2CompositeError)
    assert isinstance(outcome(lambda: s2c.zonal_stats(small, ODD[odd])), S2CompositeError)
    for name in parameters(s2c.zonal_stats, "data", "zones"):
        outcome(lambda name=name: s2c.zonal_stats(small, zones, **{name: ODD[odd]}))


@pytest.mark.parametrize("odd", ODD)
def test_clusters_and_jobs_are_accepted_or_rejected(there, odd):
    outcome(lambda: read_cluster(ODD[odd]))
    assert isinstance(outcome(lambda: s2c.load_job(ODD[odd])), S2CompositeError)
    for name in ("workers", "threads", "memory", "dashboard"):
        outcome(lambda name=name: read_cluster("local", **{name: ODD[odd]}))


@pytest.mark.parametrize("odd", ODD)
def test_arguments_of_previews_and_shares_are_accepted_or_rejected(cube, small, odd):
    value = ODD[odd]
    for call in (small.preview, small.period, small.shares, small.__getitem__):
        outcome(lambda call=call: call(value))
    outcome(lambda: s2c.valid_share(cube, value))
    for name in parameters(s2c.select_scenes, "cube"):
        outcome(lambda name=name: s2c.select_scenes(cube, **{"min_valid": 0.1, name: value}))


def test_command_line_error_is_one_line(folder, there, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the command changes what Ctrl-C does in its process
    job = f"source: {folder}\noutput: a.tif\n"
    for line in ("resolution: many", "groupby: day", "bands: [9]", "crs: EPSG:1", "like: missing.tif"):
        Path("job.yaml").write_text(f"{job}{line}\n")
        monkeypatch.setattr("sys.argv", ["s2composite", "plan", "job.yaml"])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 2
        assert said.err.startswith("error: ")
        assert (said.err.count("\n"), said.out) == (1, "")
