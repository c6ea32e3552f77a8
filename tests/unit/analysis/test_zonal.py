"""Zonal statistics are those of exactextract on the whole array, whatever the chunks."""

import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import dask
import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.features
import shapely
import xarray as xr
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio import Affine
from scipy.stats import skew
from typer.testing import CliRunner

import s2composite as s2c
from s2composite.analysis import zonal
from s2composite.cli import app
from s2composite.errors import GridError, ParameterError, SourceError, WriteError
from support import ROOT, TESTS
from support.rasters import write_tif

WEST, NORTH, CRS = 300000, 4900020, 32631
PERCENTILES = ("median", "p10", "p97.5")
EVERY = ("min", "max", "mean", "sum", "stdev", "count", *PERCENTILES)


def raster(values, chunks=None, **attrs):
    """An array ``(band, y, x)`` of 10 m pixels."""
    values = np.asarray(values)
    geobox = GeoBox(values.shape[-2:], Affine(10, 0, WEST, 0, -10, NORTH), CRS)
    coords = dict(xr_coords(geobox, dims=("y", "x")))
    array = xr.DataArray(values, coords, ("time", "band", "y", "x")[-values.ndim :], name="layer", attrs=attrs)
    if values.ndim > 2:
        array = array.assign_coords(band=[f"b{i}" for i in range(values.shape[-3])])
    return array if chunks is None else array.chunk(y=chunks, x=chunks)


def zones(*shapes, crs=CRS, **columns):
    return gpd.GeoDataFrame(columns or {"id": range(len(shapes))}, geometry=list(shapes), crs=crs)


def pixels(top, bottom, left, right):
    """The rectangle of these rows and columns."""
    return shapely.box(WEST + 10 * left, NORTH - 10 * bottom, WEST + 10 * right, NORTH - 10 * top)


def whole(array, frame, nodata=None):
    """What exactextract says of whole arrays, in the columns of zonal_stats.

    In pixels: coordinates of a map are rounded, by 1e-10 of a pixel, and so touch pixels that they do not.
    """
    height, width = array.shape[-2:]
    box = (0, -height, width, 0)
    frame = frame.set_geometry(frame.geometry.affine_transform([0.1, 0, 0, 0.1, -WEST / 10, -NORTH / 10]))
    rows = []
    for i, band in enumerate(array.values):
        source = NumPyRasterSource(band, *box, nodata=nodata, srs_wkt=frame.crs.to_wkt())
        real = NumPyRasterSource(band.astype("float64"), *box, nodata=nodata, srs_wkt=frame.crs.to_wkt())
        table = exact_extract(source, frame, list(EVERY[:6]), output="pandas").astype(float)
        # exactextract cuts percentiles of integers to integers; of the same values as floats it does not.
        cuts = ["median", "quantile(q=0.1)", "quantile(q=0.975)"]
        table = table.join(exact_extract(real, frame, cuts, output="pandas").astype(float))
        table.columns = EVERY
        rows.append(table.assign(band=f"b{i}", zone=range(len(frame))))
    return pd.concat(rows).sort_values(["zone", "band"], ignore_index=True)


points = st.tuples(st.floats(-200, 1200), st.floats(-200, 1000))
polygons = st.builds(
    lambda at, radius, corners, hole: (
        shapely.Point(WEST + at[0], NORTH - at[1])
        .buffer(radius, quad_segs=corners)
        .difference(shapely.Point(WEST + at[0] + 3, NORTH - at[1] - 4).buffer(hole))
    ),
    points,
    st.floats(12, 600),
    st.integers(1, 8),
    st.floats(0.1, 10),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    shapes=st.lists(polygons, min_size=1, max_size=4),
    dtype=st.sampled_from(["uint8", "int16", "float32", "float64"]),
    chunks=st.sampled_from([None, 100, 37, 16]),
    seed=st.integers(0, 99),
)
def test_any_chunks_give_what_exactextract_says_of_the_whole(shapes, dtype, chunks, seed):
    rng = np.random.default_rng(seed)
    values = (rng.random((2, 80, 100)) * 250).astype(dtype)
    values[rng.random(values.shape) < 0.2] = 0
    if np.dtype(dtype).kind == "f":
        values[:, :9] = np.nan
    frame, array = zones(*shapes), raster(values, chunks, nodata=0)
    inside = frame.geometry.intersects(pixels(0, 80, 0, 100).buffer(-1e-6))
    if not inside.any():
        return
    expected = whole(array, frame, nodata=0)
    found = s2c.zonal_stats(array, frame, EVERY)
    assert found["zone"].tolist() == expected["zone"].tolist()
    for name in EVERY:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("chunks", [None, 23])
@pytest.mark.parametrize("size", [1e-4, 1 / 3, 0.1, 0.00026949458523585647])
def test_zones_made_from_a_grid_in_degrees_count_their_pixels(size, chunks):
    """Coordinates in degrees are rounded, and edges that lie on lines of the grid with them."""
    classes = np.random.default_rng(7).integers(0, 3, (60, 70)).astype("uint8").repeat(2, 0)[:60]
    geobox = GeoBox(classes.shape, Affine(size, 0, 2.1, 0, -size, 48.3), 4326)
    array = xr.DataArray(np.ones((1, *classes.shape), "uint8"), dict(xr_coords(geobox)), ("band", *geobox.dimensions))
    array = array if chunks is None else array.chunk(dict.fromkeys(geobox.dimensions, chunks))
    shapes = [shape for shape, _ in rasterio.features.shapes(classes, transform=geobox.transform)]
    frame = zones(*map(shapely.geometry.shape, shapes), crs=4326)
    inside = [
        rasterio.features.geometry_mask([shape], geobox.shape, geobox.transform, invert=True).sum() for shape in shapes
    ]
    assert max(inside) > 50
    assert s2c.zonal_stats(array, frame, ["count"])["count"].tolist() == inside


@pytest.mark.parametrize("shape", [(1, 80, 100), (2, 80, 100)])
@pytest.mark.parametrize("values", [2, 5, 200])
def test_percentiles_of_few_values(shape, values):
    array = np.random.default_rng(values).integers(1, values + 1, shape).astype("uint8")
    frame = zones(*(shapely.Point(WEST + 400, NORTH - 400).buffer(r) for r in range(15, 390, 7)))
    found, expected = s2c.zonal_stats(raster(array, 16), frame, EVERY), whole(raster(array), frame)
    for name in PERCENTILES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
    assert (found["p97.5"] % 1 > 0).any(), "real numbers, also of integers"


@pytest.mark.parametrize("chunks", [16, 60])
def test_skew_is_that_of_scipy_and_of_covered_shares(chunks):
    values = np.random.default_rng(1).gamma(2.0, 30.0, (1, 60, 60))
    found = s2c.zonal_stats(raster(values, chunks), zones(pixels(5, 55, 7, 50)), ["skew", "count"])
    assert found["skew"][0] == pytest.approx(skew(values[0, 5:55, 7:50].ravel()), rel=1e-10)
    assert found["count"][0] == 50 * 43
    halves = s2c.zonal_stats(raster(values, chunks), zones(pixels(5, 55, 7.5, 50)), ["skew", "count"])
    twice = np.concatenate([values[0, 5:55, 7], *[values[0, 5:55, 8:50].ravel()] * 2])  # a weight of 1/2 is once of two
    assert halves["skew"][0] == pytest.approx(skew(twice), rel=1e-10)
    assert halves["count"][0] == pytest.approx(50 * 42.5)
    flat = s2c.zonal_stats(raster(np.full((1, 60, 60), 0.1), chunks), zones(pixels(5, 55, 7, 50)), ["skew", "stdev"])
    assert np.isnan(flat["skew"][0])
    assert flat["stdev"][0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("chunks", [16, 40])
def test_classes_and_histograms(chunks):
    classes = np.zeros((40, 40), "uint8")
    classes[:20], classes[20:30] = 4, 11
    frame = zones(pixels(0, 20, 0, 10), pixels(10, 40, 5, 35), pixels(30, 40, 0, 40), name=["a", "b", "c"])
    found = s2c.zonal_stats(raster(classes, chunks, nodata=0).rename("SCL"), frame, ["fraction", "count"], name="name")
    assert found.columns.tolist() == ["zone", "band", "fraction_4", "fraction_11", "count"]
    assert found["band"].tolist() == ["SCL"] * 3
    assert found["fraction_4"].tolist()[:2] == [1.0, 0.5]
    assert found["fraction_11"].tolist()[:2] == [0.0, 0.5]
    assert found.loc[2, ["fraction_4", "fraction_11"]].isna().all(), "a zone without a value has no shares"
    bins = [0, 4, 5, 11]
    histogram = s2c.zonal_stats(raster(classes, chunks), frame, ["histogram"], bins=bins)
    assert histogram.columns.tolist()[2:] == ["histogram_0_4", "histogram_4_5", "histogram_5_11"]
    assert histogram.iloc[1, 2:].tolist() == np.histogram(classes[10:40, 5:35], bins)[0].tolist()


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "parquet"])
def test_any_vector_file_in_any_coordinate_system(tmp_path, suffix):
    values = np.random.default_rng(2).integers(1, 200, (2, 80, 100)).astype("uint8")
    frame = zones(shapely.Point(WEST + 500, NORTH - 400).buffer(260), pixels(3, 20, 4, 30), id=["a", "b"])
    path = tmp_path / f"zones.{suffix}"
    degrees = frame.to_crs(4326)
    degrees.to_parquet(path) if suffix == "parquet" else degrees.to_file(path)
    found = s2c.zonal_stats(raster(values, 32), path, EVERY, name="id")
    expected = whole(raster(values), degrees.to_crs(CRS))
    assert found["zone"].tolist() == ["a", "a", "b", "b"]
    for name in ("min", "max"):
        np.testing.assert_allclose(found[name], expected[name])
    # A GeoJSON's corners are rounded, and slivers of a pixel are values of their own to exactextract's percentiles.
    np.testing.assert_allclose(found["median"], expected["median"], rtol=1e-4)
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-6)


def test_a_south_up_array_is_measured_where_it_is():
    values = np.arange(80.0).reshape(1, 8, 10)
    frame = zones(pixels(1, 4, 2, 5))
    north = s2c.zonal_stats(raster(values), frame, ["mean", "p10"])
    pd.testing.assert_frame_equal(
        s2c.zonal_stats(raster(values).isel(y=slice(None, None, -1)), frame, ["mean", "p10"]), north
    )


@pytest.fixture(scope="module")
def cube(scenes_dir):
    return s2c.open_cube(scenes_dir, chunks=512)


def fields(cube):
    west, south, east, north = cube.odc.geobox.boundingbox.bbox
    middle = shapely.Point((west + east) / 2, (south + north) / 2)
    return gpd.GeoDataFrame(
        {"id": ["middle", "corner"]},
        geometry=[middle.buffer(1500), shapely.box(west - 100, north - 800, west + 900, north + 100)],
        crs=cube.odc.crs.to_wkt(),
    )


def test_a_composite_with_periods_is_zone_by_period_by_band(cube):
    comp = s2c.composite(cube, period="month")
    table = s2c.zonal_stats(comp, fields(cube), name="id")
    assert table.columns.tolist() == ["zone", "period", "time", "band", "min", "max", "mean", "stdev", "skew", "count"]
    periods = comp.dataset["period"].values.tolist()
    assert len(table) == 2 * len(periods) * 3
    assert table["period"].tolist()[::3] == periods * 2
    for period in periods:
        alone = s2c.zonal_stats(comp.period(period).compute(), fields(cube), name="id")
        pd.testing.assert_frame_equal(
            table[table["period"] == period].drop(columns=["period", "time"]).reset_index(drop=True), alone
        )


def test_a_cube_has_a_row_for_each_scene(cube):
    table = s2c.zonal_stats(cube, fields(cube), ["mean", "count"], name="id")
    assert table.columns.tolist() == ["zone", "time", "scene", "band", "mean", "count"]
    assert len(table) == 2 * cube.sizes["time"] * 3
    values = cube.isel(time=3).compute()
    expected = s2c.zonal_stats(values.drop_vars(["time", "scene"]), fields(cube), ["mean", "count"], name="id")
    scene = table[table["scene"] == str(cube["scene"].values[3])].reset_index(drop=True)
    pd.testing.assert_frame_equal(scene.drop(columns=["time", "scene"]), expected)


def test_layers_of_a_composite(cube):
    comp = s2c.composite(cube)
    table = s2c.zonal_stats(comp, fields(cube), ["max"], layer="count")
    assert table["band"].tolist() == ["count", "count"]
    assert 0 < table["max"].max() <= cube.sizes["time"]
    with pytest.raises(ParameterError, match=r"no layer 'cuont'; there are composite, "):
        s2c.zonal_stats(comp, fields(cube), layer="cuont")


@pytest.mark.slow
def test_on_a_cluster_of_processes(cube):
    comp = s2c.composite(cube)
    here = s2c.zonal_stats(comp, fields(cube), EVERY, name="id")
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False):
        pd.testing.assert_frame_equal(s2c.zonal_stats(comp, fields(cube), EVERY, name="id"), here)


@pytest.mark.slow
def test_only_chunks_under_zones_are_made_and_never_all_at_once():
    made = []

    def block(block_id):
        made.append(block_id)
        return np.random.default_rng(block_id).random((1, 500, 500))

    array = da.map_blocks(block, chunks=((1,), (500,) * 8, (500,) * 8), dtype=float, meta=np.empty((0, 0, 0)))
    lazy = raster(np.broadcast_to(np.float64(0), (1, 4000, 4000))).copy(data=array)
    s2c.zonal_stats(lazy, zones(pixels(10, 60, 10, 60), pixels(480, 520, 700, 720)))
    assert sorted(made) == [(0, 0, 0), (0, 0, 1), (0, 1, 1)]
    tracemalloc.start()
    with dask.config.set(scheduler="sync"):
        table = s2c.zonal_stats(lazy, zones(pixels(0, 4000, 0, 4000)), ["mean", "stdev", "skew", "count"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table["count"][0] == 16e6
    assert table["mean"][0] == pytest.approx(0.5, abs=1e-3)
    assert peak < 16e6 * 8 / 3, "the whole array has 128 MB"


def test_zones_outside_have_no_pixels_and_are_named(caplog):
    frame = zones(pixels(0, 4, 0, 4), pixels(900, 910, 0, 4), id=["in", "out"])
    with caplog.at_level(logging.WARNING):
        table = s2c.zonal_stats(raster(np.ones((1, 8, 8))), frame, ["count", "mean", "median"], name="id")
    assert "1 of 2 zones are outside: out" in caplog.text
    assert table["count"].tolist() == [16, 0]
    assert table.loc[1, ["mean", "median"]].isna().all()
    with pytest.raises(GridError, match="none of the 1 zones touches the data"):
        s2c.zonal_stats(raster(np.ones((1, 8, 8))), frame.iloc[1:])


def test_two_rows_of_one_index_are_named_as_they_are_written():
    twice = zones(*[pixels(0, 1, 0, 1)] * 2).set_index(pd.Index([7, 7]))
    with pytest.raises(ParameterError, match="two zones are called 7;"):
        s2c.zonal_stats(raster(np.ones((1, 8, 8))), twice)


@pytest.mark.parametrize("together", [1, 40, 10**6])
def test_zones_are_measured_together_and_each_for_itself(together, monkeypatch):
    """Small zones, overlapping ones, one with a hole, one in two parts, one smaller than a pixel; in and across chunks."""
    monkeypatch.setattr(zonal, "_TOGETHER", together)
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 25, (20, 2))
    small = [pixels(top, top + 4.3, left, left + 3.7) for top, left in corners]
    holed = pixels(2, 12, 2, 12).difference(pixels(4, 7.5, 4, 7.5))
    parts = shapely.MultiPolygon([pixels(1, 3, 1, 3), pixels(20.2, 24, 20, 24.4)])
    frame = zones(*small, *small, holed, parts, pixels(5.2, 5.4, 5.2, 5.4))
    array = raster(rng.integers(0, 200, (2, 30, 30)).astype("int16"), chunks=16)
    table = s2c.zonal_stats(array, frame, EVERY)
    expected = whole(array, frame)
    np.testing.assert_allclose(table[list(EVERY)], expected[list(EVERY)], rtol=1e-12)


ALIGNED = """
import sys
import numpy as np
import rasterio.features
import shapely
import s2composite as s2c
from test_zonal import EVERY, raster, whole, zones

rng = np.random.default_rng(int(sys.argv[1]))
classes = rng.choice(np.array([1, 1, 1, 1, 1, 2, 3], np.uint8), (23, 31)).repeat(3, axis=0).repeat(2, axis=1)
classes[rng.random(classes.shape) < 0.05] = 4
array = raster(rng.integers(1, 200, (1, *classes.shape)).astype("uint8"))
found = [
    (shapely.geometry.shape(shape), value)
    for shape, value in rasterio.features.shapes(classes, transform=array.odc.geobox.transform)
]
shapes = [shape for shape, _ in found]
shapes += [shapely.MultiPolygon([shape for shape, value in found if value == k]) for k in (1, 2, 3, 4)]
frame = zones(*shapes)
print(sum(shapely.get_num_interior_rings(shapely.get_parts(shapes)).tolist()), "holes")
expected = whole(array, frame)
# A part of the raster ends within the zones, and holes at its border.
part = array[:, 3:60, 4:50]
for chunks in (6, 12, 23):
    table = s2c.zonal_stats(array.chunk(y=chunks, x=chunks + 3), frame, EVERY)
    for name in EVERY:
        np.testing.assert_allclose(table[name], expected[name], rtol=1e-9, err_msg=name)
    table = s2c.zonal_stats(part.chunk(y=chunks, x=chunks + 3), frame, ["count", "sum"])
    for shape, count, total in zip(shapes, table["count"], table["sum"]):
        inside = rasterio.features.geometry_mask([shape], part.shape[1:], part.odc.geobox.transform, invert=True)
        np.testing.assert_allclose([count, total], [inside.sum(), part.values[0][inside].sum()], rtol=1e-6, atol=1e-6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_zones_of_a_raster_with_holes_at_the_borders_of_chunks(seed):
    """In a process of its own: exactextract crashes it where an edge of a hole lies on the border of its raster."""
    done = subprocess.run(
        [sys.executable, "-c", ALIGNED, str(seed)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{TESTS}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 100


def test_a_zone_of_nothing_but_nodata():
    table = s2c.zonal_stats(raster(np.zeros((1, 8, 8), "uint8"), nodata=0), zones(pixels(0, 4, 0, 4)), EVERY)
    assert table["count"].tolist() == [0]
    assert table[["min", "max", "mean", "stdev", "median"]].isna().all(axis=None)


BOW = shapely.Polygon([(WEST, NORTH), (WEST + 50, NORTH - 50), (WEST + 50, NORTH), (WEST, NORTH - 50)])


@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        (zones(), ParameterError, "holds no zones"),
        (zones(pixels(0, 1, 0, 1), crs=None), GridError, "set_crs"),
        (zones(BOW, id=["bow"]), ParameterError, r"'bow' is not a valid polygon \(Self-intersection.*make_valid"),
        (zones(shapely.Point(WEST, NORTH), id=["p"]), ParameterError, "'p' is a Point"),
        (zones(shapely.Polygon(), id=["e"]), ParameterError, "'e' has no geometry"),
        (zones(None, id=["n"]), ParameterError, "'n' has no geometry"),
        (zones(*[pixels(0, 1, 0, 1)] * 2, id=["a", "a"]), ParameterError, "two zones are called 'a'"),
        (zones(pixels(0, 1, 0, 1), name=["x"]), ParameterError, "no column 'id'; they have name"),
        (zones(*[pixels(0, 1, 0, 1)] * 2, crs=CRS, id=["a", None]), ParameterError, "row 1 has no id"),
        (
            zones(pixels(0, 4, 0, 4), crs=4326, id=["metres"]),
            GridError,
            r"in degrees \(EPSG:4326\).*up to 4900020; .*set_crs",
        ),
        (zones(shapely.box(3, 80, 4, 95), crs=4326, id=["pole"]), GridError, "'pole' cannot be expressed"),
        (17, ParameterError, "zones are a int"),
    ],
)
def test_zones_that_nothing_can_be_measured_over_are_named(frame, error, words):
    with pytest.raises(error, match=words):
        s2c.zonal_stats(raster(np.ones((1, 8, 8))), frame, name="id")


def test_files_of_zones_that_cannot_be_read(tmp_path):
    array = raster(np.ones((1, 8, 8)))
    with pytest.raises(SourceError, match=r"none\.geojson: cannot be read"):
        s2c.zonal_stats(array, tmp_path / "none.geojson")
    (tmp_path / "text.gpkg").write_text("no")
    with pytest.raises(SourceError, match="cannot be read"):
        s2c.zonal_stats(array, tmp_path / "text.gpkg")
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "table.csv")
    with pytest.raises(SourceError, match="without geometries"):
        s2c.zonal_stats(array, tmp_path / "table.csv")
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(ParameterError, match="holds no zones"):
        s2c.zonal_stats(array, tmp_path / "empty.geojson")


@pytest.mark.parametrize(
    ("stats", "options", "words"),
    [
        (["maen"], {}, "no statistic 'maen'; there are count, min"),
        (["p101"], {}, "no statistic 'p101'"),
        ([], {}, "at least one"),
        (["mean", "mean"], {}, "once"),
        (["histogram"], {}, "needs bins="),
        (["mean"], {"bins": [0, 1]}, "bins="),
        (["histogram"], {"bins": [1, 0]}, "above the one before"),
        (["histogram"], {"bins": 10}, "two edges"),
    ],
)
def test_statistics_that_make_no_sense(stats, options, words):
    with pytest.raises(ParameterError, match=words):
        s2c.zonal_stats(raster(np.ones((1, 8, 8))), zones(pixels(0, 4, 0, 4)), stats, **options)


def test_data_that_zones_have_no_place_on():
    frame = zones(pixels(0, 4, 0, 4))
    with pytest.raises(GridError, match="no coordinate system"):
        s2c.zonal_stats(xr.DataArray(np.ones((8, 8)), dims=("y", "x")), frame)
    turned = GeoBox((8, 8), Affine(10, 0, WEST, 0, -10, NORTH) @ Affine.rotation(20), CRS)
    with pytest.raises(GridError, match="rotated"):
        s2c.zonal_stats(xr.DataArray(np.ones((8, 8)), xr_coords(turned, dims=("y", "x")), ("y", "x")), frame)
    with pytest.raises(ParameterError, match="DataArray"):
        s2c.zonal_stats(np.ones((8, 8)), frame)
    with pytest.raises(ParameterError, match="different values"):
        s2c.zonal_stats(raster(np.random.default_rng(0).random((1, 40, 40))), zones(pixels(0, 40, 0, 40)), ["fraction"])


def test_tables_as_files(tmp_path):
    table = s2c.zonal_stats(raster(np.arange(64.0).reshape(1, 8, 8)), zones(pixels(0, 4, 0, 4), pixels(1, 7, 2, 6)))
    csv, parquet = (s2c.write_zonal_stats(table, tmp_path / f"zones.{kind}") for kind in ("csv", "parquet"))
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), table)
    found = pd.read_csv(csv)
    assert found.columns.tolist()[2:] == ["min", "max", "mean", "stddev", "skew", "count"]
    np.testing.assert_allclose(found["stddev"], table["stdev"])
    with pytest.raises(WriteError, match="exists"):
        s2c.write_zonal_stats(table, csv)
    with pytest.raises(ParameterError, match=r"\.csv or \.parquet"):
        s2c.write_zonal_stats(table, tmp_path / "zones.xlsx")


def test_a_written_composite_from_the_command_line(cube, tmp_path):
    comp = s2c.composite(cube)
    comp.to_raster(str(tmp_path / "median.tif"), progress=False)
    fields(cube).to_crs(4326).to_file(tmp_path / "zones.geojson")
    arguments = [
        "zonal",
        *(str(tmp_path / name) for name in ("median.tif", "zones.geojson", "out.csv")),
        "--name",
        "id",
    ]
    done = CliRunner().invoke(app, [*arguments, "--stats", "min,mean,p10,stdev"])
    assert done.exit_code == 0, done.output
    assert "6 rows" in done.output
    found = pd.read_csv(tmp_path / "out.csv")
    assert found.columns.tolist() == ["zone", "band", "min", "mean", "p10", "stddev"]
    expected = s2c.zonal_stats(comp, tmp_path / "zones.geojson", ["min", "mean", "p10", "stdev"], name="id")
    np.testing.assert_allclose(found.iloc[:, 2:], expected.iloc[:, 2:])
    assert isinstance(CliRunner().invoke(app, arguments).exception, WriteError), "it exists"
    with pytest.raises(SourceError, match=r"none\.tif: cannot be read as a raster"):
        s2c.zonal_stats(tmp_path / "none.tif", fields(cube))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize(
    ("scales", "offsets"), [((1e-4, 1e-4), (-0.1, -0.1)), ((1.0, 0.00341802), (0.0, 149.0)), ((1.0, 1.0), (0.0, -5.0))]
)
def test_scale_and_offset_of_a_file_are_applied_as_exactextract_applies_them(tmp_path, dtype, scales, offsets):
    values = np.random.default_rng(3).integers(1, 200, (2, 70, 90)).astype(dtype)
    values[:, :9] = 0
    path = write_tif(tmp_path / "raster.tif", values, nodata=0)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = scales, offsets
    frame = zones(pixels(3, 40, 5, 60), pixels(0, 9, 0, 80), pixels(30, 70, 30, 90))
    stats = ["min", "max", "mean", "stdev", "count"]
    found = s2c.zonal_stats(path, frame, stats, name="id")
    expected = exact_extract(path, frame, stats, output="pandas").astype(float)
    rtol = 2e-5 if dtype == "float32" else 1e-9
    for band in (1, 2):
        mine = found[found["band"] == str(band)].reset_index(drop=True)
        for name in stats:
            np.testing.assert_allclose(mine[name], expected[f"band_{band}_{name}"], rtol, 1e-12, err_msg=name)


def test_months_of_a_forest(imagery):
    """Romania: green in summer, bare or white in winter; the table is that of plain sums."""
    folder = imagery / "romania_s2_l2a_10m"
    cube = s2c.open_cube(str(folder / "*_BOA.tif"), datetime="2018")
    classes = s2c.open_cube(str(folder / "*_SCL.tif"), datetime="2018").compute()
    clear = classes[:, 0].isin([4, 5, 6, 7]).drop_vars("band", errors="ignore")
    months = s2c.composite(cube, "median", valid=[s2c.Nodata(), clear], period="month").compute()
    west, south, east, north = cube.odc.geobox.boundingbox.bbox
    halves = gpd.GeoDataFrame(
        {"id": ["west", "east"]},
        geometry=[
            shapely.box(west, south, (west + east) / 2, north),
            shapely.box((west + east) / 2, south, east, north),
        ],
        crs=3035,
    )
    table = s2c.zonal_stats(months, halves, ["mean", "count"], name="id")
    means = table.set_index(["band", "period", "zone"])["mean"]
    red, infrared = (means[str(band)] for band in months.dataset["band"].values[2:])
    ndvi = ((infrared - red) / (infrared + red)).sort_index()
    assert ndvi.loc["2018-06":"2018-08"].min() > 0.7, "a forest in leaf"
    assert ndvi.loc["2018-06":"2018-08"].mean() > ndvi.loc["2018-11":"2018-12"].mean() + 0.1
    july = months.period("2018-07")["composite"].values[3, :, :50]
    row = table[(table["zone"] == "west") & (table["period"] == "2018-07")].iloc[3]
    assert row["mean"] == pytest.approx(july[july > 0].mean(), rel=1e-5)
    assert row["count"] == pytest.approx((july > 0).sum(), rel=1e-5)


def test_classes_of_real_scenes(imagery):
    """Zagreb: shares of the scene classes of each date, and clouds where the dates are known to be cloudy."""
    cube = s2c.open_cube(str(imagery / "zagreb_t33twl_120m" / "*_SCL.tif"))
    frame = gpd.GeoDataFrame({"id": ["all"]}, geometry=[shapely.box(*cube.odc.geobox.boundingbox.bbox)], crs=32633)
    table = s2c.zonal_stats(cube, frame, ["fraction", "count"], name="id")
    clouds = table[["fraction_8", "fraction_9", "fraction_10"]].sum(axis=1)
    for scene, share, count in zip(cube.values[:, 0], clouds, table["count"], strict=True):
        assert count == pytest.approx((scene > 0).sum())
        assert share == pytest.approx(np.isin(scene, (8, 9, 10)).sum() / (scene > 0).sum())
    assert (clouds > 0.4).sum() >= 1
    assert (clouds < 0.4).sum() >= 3
