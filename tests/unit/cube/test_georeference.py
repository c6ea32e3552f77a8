"""Georeference: arrays by their coordinates, files by their geotransform, grids at the antimeridian and the poles."""

import datetime as dt
import subprocess

import numpy as np
import odc.stac
import pandas as pd
import pystac
import pytest
import rasterio
import rasterio.shutil
import rioxarray
import shapely
import stackstac
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox
from odc.geo.xr import xr_coords
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from shapely.geometry import shape as shape_of

import s2composite as s2c
from s2composite.cube.georeference import geobox_of, georeferenced, north_up
from s2composite.cube.open import stack_of
from s2composite.errors import GridError, ParameterError, SceneError
from s2composite.reading.grid import centre_longitude, footprint
from s2composite.scenes.dates import solar_day
from s2composite.scenes.find import find_scenes, grouped, longitude
from s2composite.scenes.model import Asset, Scene, arc_around
from support.gdal_cli import needs_gdal
from support.rasters import encoded, series, write_tif
from support.stac_items import item_of

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

CORNER = (600000.0, 4900020.0)
UTM = Affine(10, 0, CORNER[0], 0, -10, CORNER[1])
SIZE = 24
TIMES = pd.date_range("2023-06-01", periods=3)


def values(bands=1):
    """Return pixels that are all different, so that a shifted or flipped raster is detected."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([np.stack([1000 * (b + 1) + y * SIZE + x + t for b in range(bands)]) for t in range(3)]).astype(
        "float32"
    )


def from_stackstac(xy_coords="topleft"):
    """Return an array with coordinates as from stackstac 0.5."""
    half = 5.0 if xy_coords == "center" else 0.0
    coords = {
        "time": TIMES, "band": ["red"], "epsg": 32631,
        "x": CORNER[0] + half + 10 * np.arange(SIZE), "y": CORNER[1] - half - 10 * np.arange(SIZE),
    }  # fmt: skip
    spec = stackstac.raster_spec.RasterSpec(32631, (600000, 4900020 - 10 * SIZE, 600000 + 10 * SIZE, 4900020), (10, 10))
    attrs = {"spec": spec, "crs": "epsg:32631", "transform": spec.transform, "resolution": 10}
    return xr.DataArray(values(), coords, ("time", "band", "y", "x"), "stackstac-0", attrs)


def from_odc():
    """Return an array with centres, CRS and GeoTransform, as from odc-stac and rioxarray."""
    grid = xr_coords(GeoBox((SIZE, SIZE), UTM, "EPSG:32631"), dims=("y", "x"))
    return xr.DataArray(values(), {"time": TIMES, "band": ["red"], **grid}, ("time", "band", "y", "x"), "cube")


EVERY_SECOND = {"y": slice(None, None, 2), "x": slice(None, None, 2)}

DERIVED = {
    "as it is": (lambda a: a, (0, 0, 10, -10)),
    "a part": (lambda a: a.isel(y=slice(3, 20), x=slice(5, 19)), (50, -30, 10, -10)),
    "every second": (lambda a: a.isel(EVERY_SECOND), (-5, 5, 20, -20)),
    "every third column": (lambda a: a.isel(x=slice(1, None, 3)), (0, 0, 30, -10)),
    "means of 2 x 2": (lambda a: a.coarsen(y=2, x=2).mean(), (0, 0, 20, -20)),
    "means of 3 x 3": (lambda a: a.coarsen(y=3, x=3).mean(), (0, 0, 30, -30)),
    "south first": (lambda a: a.sortby("y"), (0, 0, 10, -10)),
    "turned by hand": (lambda a: a.isel(y=slice(None, None, -1), x=slice(None, None, -1)), (0, 0, 10, -10)),
    "moved": (lambda a: a.assign_coords(x=a.x + 1000, y=a.y - 500), (1000, -500, 10, -10)),
    "finer": (
        lambda a: a.interp(x=a.x.values[0] + 5.0 * np.arange(20), y=a.y.values[0] - 5.0 * np.arange(20)),
        (2.5, -2.5, 5, -5),
    ),
    "write_crs": (lambda a: a.rio.write_crs("EPSG:32631"), (0, 0, 10, -10)),
    "write_transform": (lambda a: a.rio.write_crs("EPSG:32631").rio.write_transform(), (0, 0, 10, -10)),
    "write_crs, then means": (lambda a: a.rio.write_crs("EPSG:32631").coarsen(y=2, x=2).mean(), (0, 0, 20, -20)),
    "one column": (lambda a: a.isel(x=[4]), (40, 0, 10, -10)),
    "one pixel": (lambda a: a.isel(x=[4], y=[7]), (40, -70, 10, -10)),
    "arithmetic": (lambda a: a * 2.0, (0, 0, 10, -10)),
    "attributes gone": (lambda a: a.drop_attrs(deep=False), (0, 0, 10, -10)),
}
"""What is done to an array, and where its first pixel then begins from `CORNER`, and the steps, of a file with north up."""


@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize(
    "made", [from_odc, from_stackstac, lambda: from_stackstac("center")], ids=["odc", "corners", "centres"]
)
def test_a_file_lies_where_the_coordinates_say(name, made, tmp_path):
    change, (right, down, width, height) = DERIVED[name]
    array = change(made())
    centred = "spec" in array.attrs and np.isclose(made().x.values[0], CORNER[0] + 5)
    if centred and name in ("every second", "means of 2 x 2", "finer", "write_crs, then means"):
        pytest.skip("the same labels as of corners; a warning says so, see the next test")
    (path,) = s2c.composite(array, "median", valid=()).to_raster(str(tmp_path / "out.tif"), progress=False)
    with rasterio.open(path) as file:
        assert tuple(file.transform)[:6] == pytest.approx(
            (width, 0, CORNER[0] + right, 0, height, CORNER[1] + down), abs=1e-6
        )
        assert file.crs == "EPSG:32631"
        pixels = file.read(1)
    north = array.median("time").isel(band=0).sortby("y", ascending=False).sortby("x")
    np.testing.assert_allclose(pixels, north.values, rtol=1e-6)


def test_ambiguous_stackstac_coordinates_are_logged(caplog):
    with caplog.at_level("WARNING"):
        cube = georeferenced(from_stackstac().isel(EVERY_SECOND))
    assert "corners of pixels of size 10" in caplog.text
    assert not {"spec", "transform"} & set(cube.attrs)
    caplog.clear()
    assert georeferenced(cube) is cube
    assert not caplog.text


@pytest.mark.parametrize("xy_coords", ["topleft", "center"])
def test_stackstac_itself(xy_coords, tmp_path):
    path = write_tif(tmp_path / "a.tif", values()[0].astype("uint16"), transform=UTM, nodata=0)
    item = item_of("S2A_31TCJ_20230601_0_L2A", "2023-06-01T10:56:19Z", {"red": path})
    array = stackstac.stack(
        [item],
        assets=["red"],
        epsg=32631,
        resolution=10,
        bounds=tuple(rasterio.open(path).bounds),
        snap_bounds=False,
        xy_coords=xy_coords,
    )
    assert geobox_of(array).transform == UTM
    assert geobox_of(array.isel(x=slice(3, 9))).transform == UTM @ Affine.translation(3, 0)
    no_labels = stackstac.stack(
        [item],
        assets=["red"],
        epsg=32631,
        resolution=10,
        bounds=tuple(rasterio.open(path).bounds),
        snap_bounds=False,
        xy_coords=False,
    )
    assert geobox_of(no_labels).transform == UTM
    with pytest.raises(ParameterError, match="no y and x coordinates"):
        geobox_of(no_labels.isel(x=slice(3, 9)))


def test_odc_stac_and_rioxarray_agree_with_the_file(tmp_path):
    path = write_tif(tmp_path / "a.tif", values()[0].astype("uint16"), transform=UTM, nodata=0)
    item = pystac.Item.from_dict(item_of("S2A_31TCJ_20230601_0_L2A", "2023-06-01T10:56:19Z", {"red": path}))
    assert (
        geobox_of(odc.stac.load([item], bands=["red"], geobox=GeoBox((SIZE, SIZE), UTM, "EPSG:32631"))["red"]).transform
        == UTM
    )
    with rioxarray.open_rasterio(path) as array:
        cut = array.rio.clip_box(600050, 4899850, 600150, 4899950)
        assert geobox_of(cut).transform == cut.rio.transform() == UTM @ Affine.translation(5, 7)
        assert geobox_of(array.isel(x=slice(4, None))).transform == UTM @ Affine.translation(4, 0)
        assert geobox_of(array.rio.reproject("EPSG:3857")).transform == array.rio.reproject("EPSG:3857").rio.transform()


def test_clipped_and_padded_corners_stay_corners():
    array = from_stackstac()[:, 0].rio.write_crs("EPSG:32631")
    cut = array.rio.clip_box(600050, 4899850, 600150, 4899950)
    assert geobox_of(cut).transform.c % 10 == geobox_of(cut).transform.f % 10 == 0
    column, row = (round(v) for v in ~UTM @ (geobox_of(cut).transform.c, geobox_of(cut).transform.f))
    np.testing.assert_array_equal(
        cut.values, array.values[:, row : row + cut.sizes["y"], column : column + cut.sizes["x"]]
    )
    other = array[0].rio.reproject("EPSG:3857")
    assert geobox_of(other).transform == other.rio.transform(), "new coordinates, which are centres"


def test_a_stale_geotransform_is_replaced():
    """rioxarray reads the GeoTransform, odc-geo the coordinates: after a composite both agree."""
    for change in ("a part", "every second", "means of 2 x 2", "moved"):
        comp = s2c.composite(DERIVED[change][0](from_odc()), "median", valid=())
        assert (
            comp["composite"].rio.transform()
            == comp["composite"].odc.geobox.transform
            == geobox_of(comp.dataset).transform
        )
        half = comp.dataset.isel(EVERY_SECOND)
        assert geobox_of(half).resolution.x == 2 * geobox_of(comp.dataset).resolution.x


@pytest.mark.parametrize("where", ["crs", "transverse_mercator"])
def test_the_crs_may_have_any_name(where, tmp_path):
    array = from_odc().rename(spatial_ref=where)
    array.encoding["grid_mapping"] = where
    comp = s2c.composite(array, "median", valid=())
    (path,) = comp.to_raster(str(tmp_path / "out.tif"), progress=False)
    assert rasterio.open(path).crs == "EPSG:32631"


def test_a_crs_in_cf_attributes_alone():
    array = from_odc().drop_vars("spatial_ref")
    grid = {
        "grid_mapping_name": "latitude_longitude",
        "semi_major_axis": 6378137.0,
        "inverse_flattening": 298.257223563,
    }
    place = {"x": 2 + 0.01 * np.arange(SIZE), "y": 44 - 0.01 * np.arange(SIZE), "crs": ((), 0, grid)}
    cube = georeferenced(array.assign_coords(place))
    assert cube.odc.geobox.crs.geographic
    assert tuple(geobox_of(cube).transform)[:6] == pytest.approx((0.01, 0, 1.995, 0, -0.01, 44.005))


def test_masks_in_degrees_have_the_names_of_their_cube():
    array = from_odc().rename(y="latitude", x="longitude")
    mask = array.isel(band=0, drop=True) > 1100
    np.testing.assert_array_equal(
        s2c.composite(array, "median", valid=[mask])["count"].values,
        s2c.composite(from_odc(), "median", valid=[from_odc().isel(band=0, drop=True) > 1100])["count"].values,
    )


def test_single_precision_coordinates(tmp_path):
    array = from_odc()
    rounded = array.assign_coords(x=array.x.astype("float32"), y=array.y.astype("float32"))
    assert geobox_of(rounded).transform == UTM
    bare = rounded.drop_vars("spatial_ref")
    assert tuple(geobox_of(bare).transform)[:6] == pytest.approx(tuple(UTM)[:6], abs=0.3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.roll(x=5, roll_coords=True), "x coordinates are not evenly spaced"),
        (lambda a: a.isel(y=[0, 1, 5]), "y coordinates are not evenly spaced"),
        (lambda a: a.assign_coords(x=np.full(SIZE, 7.0)), "x coordinates are not evenly spaced"),
        (lambda a: a.assign_coords(x=np.where(np.arange(SIZE) == 3, np.nan, a.x)), "not evenly spaced"),
        (lambda a: a.isel(x=slice(None, None, 2)).isel(y=[3]), "single pixel along y"),
        (lambda a: a.coarsen(x=2).mean().isel(x=[3]), "single pixel along x"),
        (lambda a: a.assign_coords(x=a.x + 3).isel(x=[3]), "single pixel along x"),
        (lambda a: a.drop_vars(["x", "y"]), "no y and x coordinates"),
    ],
)
@pytest.mark.parametrize("made", [from_odc, lambda: georeferenced(from_stackstac())], ids=["odc", "stackstac"])
def test_writing_with_an_unknown_location_is_an_error(change, words, made, tmp_path):
    comp = s2c.composite(change(made()), "median", valid=())
    assert comp["composite"].shape[0] == 1, "pixels without a place can be composited"
    for write in (comp.to_raster, comp.to_zarr):
        with pytest.raises(ParameterError, match=words):
            write(str(tmp_path / "out"), progress=False)
    with pytest.raises(ParameterError, match=words):
        s2c.open_cube(write_tif(tmp_path / "S2A_31TCJ_20230601T105619_x.tif", encoded(0)), like=comp)


def test_stackstac_without_its_attributes_after_means(tmp_path):
    array = from_stackstac().coarsen(y=2, x=2).mean().drop_attrs(deep=False)
    with pytest.raises(ParameterError, match="lost the attributes"):
        s2c.composite(array, "median", valid=())


def test_stackstac_without_its_attributes_after_padding():
    array = from_stackstac().pad(x=(0, 1), constant_values=0).drop_attrs(deep=False)  # the last label is NaN
    with pytest.raises(ParameterError, match="lost the attributes"):
        s2c.composite(array, "median", valid=())


# --- our own cubes and composites ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("series")
    series(directory, scenes=3)
    return str(directory)


CHANGES = {
    "cut": lambda c: c.isel(x=slice(30, 99), y=slice(70, 150)),
    "cut twice": lambda c: c.isel(x=slice(30, None)).isel(x=slice(4, 70), time=[2, 0]),
    "moved a pixel": lambda c: c.assign_coords(x=c.x + 10),
    "moved half a pixel": lambda c: c.assign_coords(y=c.y - 5),
    "south first": lambda c: c.sortby("y"),
    "turned and back": lambda c: c.isel(y=slice(None, None, -1)).isel(y=slice(None, None, -1)),
    "every second": lambda c: c.isel(EVERY_SECOND),
    "values turned, labels not": lambda c: c.copy(data=c.data[:, :, ::-1]),
    "bands turned, labels not": lambda c: c.copy(data=c.data[:, ::-1]),
    "dates turned, labels not": lambda c: c.copy(data=c.data[::-1]),
    "rolled": lambda c: c.roll(x=7),
    "rolled with labels": lambda c: c.roll(time=1, roll_coords=True),
    "a column": lambda c: c.isel(x=[17]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_cube_with_changed_labels_or_values_is_not_read_from_files(folder, name, tmp_path):
    """Reading the files again, as for whole cubes, must not undo changes of labels or values."""
    cube = CHANGES[name](s2c.open_cube(folder, chunks=64))
    lazy, loaded = s2c.composite(cube, "latest"), s2c.composite(cube.compute(), "latest")
    np.testing.assert_array_equal(lazy["composite"].values, loaded["composite"].values)
    np.testing.assert_array_equal(lazy["source"].values, loaded["source"].values)
    assert (stack_of(cube) is not None) == (name in ("cut", "cut twice", "turned and back", "a column"))
    (path,) = lazy.to_raster(str(tmp_path / "out.tif"), progress=False)
    with rasterio.open(path) as file:
        assert file.transform.e < 0
        x = cube.x.values
        y = cube.y.values
        for column, row in ((0, 0), (len(x) - 1, 0), (len(x) // 2, len(y) // 3)):
            (found,) = file.sample([(float(x[column]), float(y[row]))])
            np.testing.assert_array_equal(found, lazy["composite"].values[:, row, column])


@pytest.mark.parametrize("layer_order", ["as it is", "south first", "every second", "means"])
def test_changed_composite_is_written_at_its_location(folder, layer_order, tmp_path):
    from s2composite.writing.cog import write_raster
    from s2composite.writing.zarr import write_zarr

    dataset = s2c.composite(s2c.open_cube(folder, chunks=64)).dataset[["composite"]]
    changed = {
        "as it is": dataset,
        "south first": dataset.sortby("y"),
        "every second": dataset.isel(EVERY_SECOND),
        "means": dataset.astype("float32").coarsen(y=2, x=2).mean(),
    }[layer_order]
    (path,) = write_raster(changed, str(tmp_path / "out.tif"), progress=False)
    with rioxarray.open_rasterio(path) as file:
        there = changed["composite"].sortby("y", ascending=False)
        np.testing.assert_array_equal(file.values, there.values)
        np.testing.assert_allclose(file.y, there.y)
        np.testing.assert_allclose(file.x, there.x)
    store = write_zarr(changed, str(tmp_path / "out.zarr"), progress=False)
    back = xr.open_zarr(store, decode_coords="all")["composite"]
    np.testing.assert_array_equal(back.values, changed["composite"].values)
    assert back.rio.transform() == back.rio.transform(recalc=True) == back.odc.geobox.transform


def test_a_preview_of_changed_layers_shows_the_change(folder):
    comp = s2c.composite(s2c.open_cube(folder, chunks=64))
    doubled = s2c.Composite(comp.dataset.assign(composite=comp["composite"] // 2))
    np.testing.assert_array_equal(doubled.preview(50)["composite"], comp["composite"][:, ::4, ::4].values // 2)


# --- masks, like=, zones, pictures ----------------------------------------------------------------------------------------


def masks_of(array):
    keep = array.isel(band=0, drop=True) > 1100
    return {
        "of the array": keep,
        "without attributes": keep.drop_attrs(deep=False),
        "with a CRS": keep.rio.write_crs("EPSG:32631"),
        "south first": keep.sortby("y"),
        "turned": keep.isel(x=slice(None, None, -1)),
        "one for all": keep.isel(time=1),
    }


@pytest.mark.parametrize(
    "name", ["of the array", "without attributes", "with a CRS", "south first", "turned", "one for all"]
)
@pytest.mark.parametrize(
    "made", [from_odc, from_stackstac, lambda: from_stackstac("center")], ids=["odc", "corners", "centres"]
)
def test_masks_are_aligned_by_coordinates(made, name):
    array = made()
    mask = masks_of(array)[name]
    expected = array.where(
        mask.sortby("y", ascending=False).sortby("x").drop_vars("spatial_ref", errors="ignore")
    ).count("time")
    comp = s2c.composite(array, "median", valid=[mask])
    np.testing.assert_array_equal(comp["count"].values, expected.isel(band=0).values)


def test_a_mask_of_another_library_on_the_same_grid():
    mask = from_odc().isel(band=0, drop=True) > 1100
    ours = s2c.composite(from_odc(), "median", valid=[mask])["count"].values
    np.testing.assert_array_equal(s2c.composite(from_stackstac(), "median", valid=[mask])["count"].values, ours)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.assign_coords(x=m.x + 5), "not on the cube's x axis"),
        (lambda m: m.isel(y=slice(1, None)), "not on the cube's y axis"),
        (lambda m: m.drop_vars("spatial_ref").rio.write_crs("EPSG:32632"), "is in EPSG:32632, the cube in EPSG:32631"),
    ],
)
def test_mask_at_another_location_is_an_error(change, words):
    with pytest.raises(ParameterError, match=words):
        s2c.composite(from_odc(), "median", valid=[change(from_odc().isel(band=0, drop=True) > 1100)])


@pytest.mark.parametrize("name", ["a part", "every second", "means of 2 x 2", "moved", "write_crs", "one column"])
def test_like_uses_the_location_of_the_array(name, tmp_path):
    path = write_tif(
        tmp_path / "S2A_31TCJ_20230601T105619_x.tif", values()[0].astype("uint16"), transform=UTM, nodata=0
    )
    for made in (from_odc, from_stackstac):
        array = DERIVED[name][0](made())
        cube = s2c.open_cube(path, like=array)
        right, down, width, height = DERIVED[name][1]
        assert tuple(cube.odc.geobox.transform)[:6] == pytest.approx(
            (width, 0, CORNER[0] + right, 0, height, CORNER[1] + down)
        )


@pytest.mark.parametrize("name", ["as it is", "means of 2 x 2", "south first", "write_crs"])
def test_zones_are_measured_where_the_pixels_lie(name):
    gpd = pytest.importorskip("geopandas")
    zone = gpd.GeoDataFrame(geometry=[shapely.box(600040, 4899900, 600080, 4899960)], crs="EPSG:32631")
    for made in (from_odc, from_stackstac):
        (mean,) = s2c.zonal_stats(DERIVED[name][0](made())[:1], zone, ["mean"])["mean"]
        assert mean == pytest.approx(values()[0, 0, 6:12, 4:8].mean())


def test_pictures_have_north_at_the_top(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    array = xr.concat([from_odc()] * 3, pd.Index(["red", "green", "blue"], name="band")).transpose(
        "time", "band", "y", "x"
    )
    pictures, drawn = [], []
    for cube in (array, array.sortby("y")):
        comp = s2c.composite(cube, "median", valid=())
        (path,) = comp.to_thumbnail(str(tmp_path / f"{len(pictures)}.png"), size=64)
        with rasterio.open(path) as file:
            pictures.append(file.read())
        ax = comp.plot()
        drawn.append((ax.images[0].get_array(), ax.images[0].get_extent(), ax.get_ylim()))
        matplotlib.pyplot.close(ax.figure)
    np.testing.assert_array_equal(*pictures)
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1:] == drawn[1][1:]
    assert drawn[0][2][0] < drawn[0][2][1], "north is up"


# --- files ---------------------------------------------------------------------------------------------------------------


def located_by_points(path):
    write_tif(path, encoded(0, bands=1), crs=None, transform=Affine.identity(), nodata=0)
    points = [GroundControlPoint(r, c, 2 + c / 1360, 44 - r / 2000) for r in (0, 200) for c in (0, 136)]
    with rasterio.open(path, "r+") as file:
        file.gcps = points, rasterio.crs.CRS.from_epsg(4326)


def located_by_coefficients(path):
    write_tif(path, encoded(0, bands=1), crs=None, transform=Affine.identity(), nodata=0)
    line, sample = ([0.0] * 20 for _ in range(2))
    line[2], sample[1] = 1.0, 1.0
    with rasterio.open(path, "r+") as file:
        file.rpcs = RPC(
            height_off=100.0, height_scale=1.0, lat_off=44.0, lat_scale=0.02, long_off=2.0, long_scale=0.02,
            line_off=50.0, line_scale=50.0, samp_off=60.0, samp_scale=60.0, line_num_coeff=line, samp_num_coeff=sample,
            line_den_coeff=[1.0] + [0.0] * 19, samp_den_coeff=[1.0] + [0.0] * 19,
        )  # fmt: skip


@pytest.mark.parametrize("engine", ["auto", "gdal", "tiles"])
@pytest.mark.parametrize(
    ("make", "words"),
    [(located_by_points, "control points.*gdalwarp -tps"), (located_by_coefficients, "RPCs.*gdalwarp -rpc")],
)
def test_files_without_a_grid_raise_an_error_with_advice(make, words, engine, tmp_path):
    path = tmp_path / "S1A_31TCJ_20230601T105619_x.tif"
    make(path)
    with pytest.raises(SceneError, match=words):
        s2c.open_cube(str(path), engine=engine)
    with pytest.raises(SceneError, match=words):
        s2c.open_cube(write_tif(tmp_path / "S2A_31TCJ_20230604T105619_x.tif", encoded(0)), like=str(path))
    translated = tmp_path / "S1A_31TCJ_20230601T105619_x.vrt"
    rasterio.shutil.copy(path, translated, driver="VRT")
    with pytest.raises(SceneError, match=words):
        s2c.open_cube(str(translated))


@needs_gdal
def test_advice_to_warp_files_with_control_points_works(tmp_path):
    path, warped = tmp_path / "x.tif", tmp_path / "S1A_31TCJ_20230601T105619_x.tif"
    located_by_points(path)
    subprocess.run(["gdalwarp", "-q", "-tps", "-t_srs", "EPSG:32631", str(path), str(warped)], check=True)
    with rasterio.open(warped) as file:
        cube = s2c.open_cube(str(warped))
        assert cube.odc.geobox.transform == file.transform
        np.testing.assert_array_equal(cube.values[0], file.read())


def test_zones_and_jobs_refuse_control_points(tmp_path):
    gpd = pytest.importorskip("geopandas")
    path = tmp_path / "S1A_31TCJ_20230601T105619_x.tif"
    located_by_points(path)
    zone = gpd.GeoDataFrame(geometry=[shapely.box(2, 43.9, 2.1, 44)], crs="EPSG:4326")
    with pytest.raises(s2c.S2CompositeError, match="ground control points"):
        s2c.zonal_stats(str(path), zone, ["mean"])
    with rioxarray.open_rasterio(path) as array, pytest.raises(ParameterError, match="ground control points"):
        geobox_of(array)
    with pytest.raises(s2c.S2CompositeError, match="ground control points"):
        s2c.plan_job({"source": str(path), "output": str(tmp_path / "out.tif")})


ROTATED = Affine.translation(600000, 4900000) @ Affine.rotation(20) @ Affine.scale(10, -10)


@pytest.mark.parametrize("engine", ["auto", "gdal"])
def test_rotated_files(engine, tmp_path):
    path = write_tif(tmp_path / "S2A_31TCJ_20230601T105619_x.tif", encoded(0), transform=ROTATED, nodata=0)
    cube = s2c.open_cube(path, engine=engine)
    part = cube.isel(x=slice(10, 60), y=slice(5, 99))
    (out,) = s2c.composite(part, "median").to_raster(str(tmp_path / "out.tif"), progress=False)
    with rasterio.open(out) as file:
        assert file.transform.almost_equals(ROTATED @ Affine.translation(10, 5), 1e-6)
        np.testing.assert_array_equal(file.read(), encoded(0)[:, 5:99, 10:60])
    grid = GeoBox.from_bbox((600300, 4899300, 601000, 4899900), "EPSG:32631", resolution=10)
    warped = s2c.open_cube(path, engine=engine, geobox=grid).values[0]
    np.testing.assert_array_equal(warped, nearest(encoded(0), GeoBox((200, 136), ROTATED, "EPSG:32631"), grid))


def nearest(pixels, source, target):
    """Return which pixel of ``(b, y, x)`` lies at each centre of a target, 0 outside: pyproj and NumPy."""
    x, y = target.transform @ tuple(np.meshgrid(np.arange(target.shape.x) + 0.5, np.arange(target.shape.y) + 0.5))
    if source.crs != target.crs:
        x, y = Transformer.from_crs(str(target.crs), str(source.crs), always_xy=True).transform(x, y)
    column, row = (np.floor(v) for v in ~source.transform @ (x, y))
    inside = (column >= 0) & (column < source.shape.x) & (row >= 0) & (row < source.shape.y)
    found = pixels[:, np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)]
    return np.where(inside, found, 0)


# --- no CRS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path):
    """Scenes without any georeference."""
    (tmp_path / "bare").mkdir()
    for i in range(2):
        write_tif(
            tmp_path / "bare" / f"S2A_31TCJ_2023060{1 + i}T105619_x.tif",
            encoded(i),
            crs=None,
            transform=Affine.identity(),
            photometric="RGB",
            overviews=[2, 4],
        )
    return str(tmp_path / "bare")


def test_operations_without_a_crs(bare, tmp_path):
    cube = s2c.open_cube(bare)
    comp = s2c.composite(cube)
    assert comp.preview(50)["composite"].shape == (3, 50, 34)
    assert s2c.select_scenes(cube, min_valid=0.01).sizes["time"] == 2
    assert comp.plot.timeline(cube) is not None
    (path,) = comp.to_raster(str(tmp_path / "o.tif"), progress=False)
    with rasterio.open(path) as file:
        assert file.crs is None
        np.testing.assert_array_equal(file.read(), comp["composite"].values)
    comp.to_zarr(str(tmp_path / "o.zarr"), progress=False)
    assert s2c.open_cube(bare, resolution=2).shape[2:] == (100, 68)
    assert s2c.open_cube(bare, bbox=BoundingBox(10, 20, 50, 90, None)).shape[2:] == (70, 40)


@pytest.mark.parametrize(
    "call",
    [
        lambda where, cube: s2c.open_cube(where, bbox=[0, 0, 1, 1]),
        lambda where, cube: s2c.open_cube(where, crs="EPSG:32631", resolution=10),
        lambda where, cube: s2c.open_cube(where, anchor="center"),
        lambda where, cube: s2c.open_cube(where, geobox=GeoBox((9, 9), UTM, "EPSG:32631")),
        lambda where, cube: s2c.open_cube(where, like=from_odc()),
        lambda where, cube: s2c.composite(cube, period="month", day="solar"),
        lambda where, cube: s2c.composite(cube).explore(),
        lambda where, cube: s2c.plan_job({"source": where, "output": "o.tif"}, area=shapely.box(0, 0, 1, 1)),
    ],
    ids=["bbox", "crs", "anchor", "geobox", "like", "solar", "explore", "area"],
)
def test_operations_that_need_a_crs_raise_an_error(bare, call):
    with pytest.raises(s2c.S2CompositeError, match=r"no coordinate system|no CRS"):
        call(bare, s2c.open_cube(bare))


def test_a_grid_without_a_crs_for_files_that_have_one(folder, bare):
    with pytest.raises(GridError, match="the requested grid has no CRS"):
        s2c.open_cube(folder, geobox=GeoBox((9, 9), UTM, None))
    with pytest.raises(ParameterError, match="without a georeference"):
        s2c.open_cube(folder, like=s2c.open_cube(bare))


# --- the antimeridian and the poles --------------------------------------------------------------------------------------

PLACES = {
    "zone 1 over 180": GeoBox.from_bbox((100000, 7000000, 209800, 7109800), "EPSG:32701", resolution=1000),
    "zone 60 over 180": GeoBox.from_bbox((790000, 8000000, 840000, 8050000), "EPSG:32760", resolution=500),
    "degrees beyond 180": GeoBox.from_bbox((170, -20, 190, -10), "EPSG:4326", resolution=0.1),
    "degrees before -180": GeoBox.from_bbox((-190, -20, -170, -10), "EPSG:4326", resolution=0.1),
    "0 to 360": GeoBox.from_bbox((0, -60, 360, 60), "EPSG:4326", resolution=1),
    "the globe": GeoBox.from_bbox((-180, -90, 180, 90), "EPSG:4326", resolution=1),
    "Pacific": GeoBox.from_bbox((2500000, -2000000, 4500000, -1000000), "EPSG:3832", resolution=10000),
    "South Pole": GeoBox.from_bbox((-1e6, -1e6, 1e6, 1e6), "EPSG:3031", resolution=10000),
    "South Pole, not in the middle": GeoBox.from_bbox((-1e5, -1e6, 2e6, 1e6), "EPSG:3031", resolution=10000),
    "South Pole in the corner": GeoBox.from_bbox((0, 0, 2e6, 1e6), "EPSG:3031", resolution=10000),
    "South Pole at the edge": GeoBox.from_bbox((0, -1e6, 1e6, 1e6), "EPSG:3031", resolution=10000),
    "Antarctica over 180": GeoBox.from_bbox((-5e5, -2e6, 5e5, -1e6), "EPSG:3031", resolution=10000),
    "North Pole": GeoBox.from_bbox((-1e6, -1.5e6, 1e6, 5e5), "EPSG:3413", resolution=10000),
    "elsewhere": GeoBox.from_bbox((300000, 4800000, 409800, 4909800), "EPSG:32631", resolution=1000),
}


@pytest.mark.parametrize("name", PLACES)
def test_footprints_hold_the_pixels_and_nothing_else(name):
    from s2composite.writing.stac import _place

    grid = PLACES[name]
    place = _place(grid)
    shape, (west, south, east, north) = shape_of(place["geometry"]), place["bbox"]
    assert shape.is_valid
    assert -180 <= shape.bounds[0] <= shape.bounds[2] <= 180
    rng = np.random.default_rng(0)
    x, y = grid.transform @ (rng.uniform(0.5, grid.shape.x - 0.5, 2000), rng.uniform(0.5, grid.shape.y - 0.5, 2000))
    lon, lat = Transformer.from_crs(str(grid.crs), "EPSG:4326", always_xy=True).transform(x, y)
    lon = (lon + 180) % 360 - 180
    assert shapely.contains_xy(shape, lon, lat).mean() > 0.995, "chords of 64 to a side"
    within = ((lon >= west) & (lon <= east)) if west <= east else ((lon >= west) | (lon <= east))
    assert (within & (lat >= south - 1e-3) & (lat <= north + 1e-3)).mean() > 0.995
    lon, lat = rng.uniform(-180, 180, 4000), np.degrees(np.arcsin(rng.uniform(-1, 1, 4000)))
    x, y = Transformer.from_crs("EPSG:4326", str(grid.crs), always_xy=True).transform(lon, lat)
    x, y = np.nan_to_num([x, y], nan=1e30, posinf=1e30)
    turns = (0, 360, -360) if grid.crs.geographic else (0,)
    truth = np.zeros(len(lon), bool)
    for turn in turns:
        column, row = ~grid.transform @ (x + turn, y)
        truth |= (column > 0) & (column < grid.shape.x) & (row > 0) & (row < grid.shape.y)
    assert (truth != shapely.contains_xy(shape, lon, lat)).sum() <= 8


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (PLACES["degrees beyond 180"], -180.0),
        (GeoBox.from_bbox((175, -20, 195, -10), "EPSG:4326", resolution=0.1), -175.0),
        (GeoBox.from_bbox((3000000, 0, 3339584.7238, 1000), "EPSG:3832", resolution=100), 178.4743),
        (GeoBox.from_bbox((3400000, 0, 3600000, 1000), "EPSG:3832", resolution=100), -178.5589),
        (GeoBox.from_bbox((500000, 4800000, 500020, 4800020), "EPSG:32601", resolution=10), -177.0),
    ],
)
def test_the_centre_of_a_grid_beyond_180(grid, expected):
    assert centre_longitude(grid) == pytest.approx(expected, abs=1e-3)


def test_solar_days_at_the_antimeridian():
    """Mean solar time: at 170 degrees east the sun is 11 h 20 min ahead of UTC, at 190 it is as far behind as at -170."""
    moment = dt.datetime(2023, 6, 1, 22, 30, tzinfo=dt.UTC)
    assert solar_day(moment, 170) == dt.date(2023, 6, 2)
    assert solar_day(moment, 190) == solar_day(moment, -170) == dt.date(2023, 6, 1)
    grid = GeoBox.from_bbox((182, -20, 190, -10), "EPSG:4326", resolution=1)
    times = np.array(["2023-06-01T22:30"], "datetime64[ns]")
    cube = xr.DataArray(
        np.ones((1, 1, 10, 8), "uint8"), {"time": times, **xr_coords(grid, dims=("y", "x"))}, ("time", "band", "y", "x")
    )
    (label,) = s2c.composite(cube, "max", period="1D", day="solar").dataset["period"].values
    assert str(label).startswith("2023-06-01")


def scene_at(name, box, granule=None):
    return Scene(
        name, dt.datetime(2023, 6, 1, 22, 30, tzinfo=dt.UTC), (Asset("B04", f"{name}.tif"),), bbox=box, granule=granule
    )


def test_longitudes_of_scenes():
    assert longitude(scene_at("a", (179.0, -18.0, -179.5, -17.0))) == pytest.approx(179.75)
    assert longitude(scene_at("b", (-180.0, -18.0, 180.0, -17.0), "01KAB")) == -177
    assert longitude(scene_at("c", (-180.0, -18.0, 180.0, -17.0), "60KXG")) == 177
    (fused,) = grouped(
        [scene_at("d", (179.0, -18.0, 179.9, -17.0)), scene_at("e", (179.5, -18.0, -179.6, -17.0))], "solar_day"
    )
    assert fused.bbox == pytest.approx((179.0, -18.0, -179.6, -17.0))


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(1, 3), (2, 5)], (1, 5)),
        ([(170, 180), (-180, -175)], (170, 185)),
        ([(179, -179)], (179, 181)),
        ([(175, 185), (-179, -170)], (175, 190)),
        ([(-180, 180)], (-180, 180)),
        ([(0, 120), (110, -120), (-130, 10)], (-180, 180)),
        ([(5, 5)], (5, 5)),
    ],
)
def test_the_shortest_arc(spans, expected):
    assert arc_around(spans) == pytest.approx(expected)


SPLIT = {"type": "MultiPolygon", "coordinates": [
    [[[179.2, -18], [180, -18], [180, -17], [179.2, -17], [179.2, -18]]],
    [[[-180, -18], [-179.8, -18], [-179.8, -17], [-180, -17], [-180, -18]]],
]}  # fmt: skip
UNSPLIT = {"type": "Polygon", "coordinates": [[[179.2, -18], [-179.8, -18], [-179.8, -17], [179.2, -17], [179.2, -18]]]}
GLOBE = {"type": "Polygon", "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]]}


@pytest.mark.parametrize(
    ("geometry", "box", "expected"),
    [
        (SPLIT, [-180, -18, 180, -17], (179.2, -18, -179.8, -17)),
        (SPLIT, None, (179.2, -18, -179.8, -17)),
        (UNSPLIT, [-179.8, -18, 179.2, -17], (179.2, -18, -179.8, -17)),
        (UNSPLIT, [179.2, -18, -179.8, -17], (179.2, -18, -179.8, -17)),
        (GLOBE, [-180, -90, 180, 90], (-180, -90, 180, 90)),
    ],
)
def test_boxes_of_items_over_the_antimeridian(geometry, box, expected, tmp_path):
    path = write_tif(tmp_path / "B04.tif", encoded(0, bands=1), nodata=0)
    item = item_of("S2A_60KXG_20230601_0_L2A", "2023-06-01T22:30:00Z", {"red": path}) | {
        "geometry": geometry,
        "bbox": box,
    }
    if box is None:
        del item["bbox"]
    (scene,) = find_scenes([item])
    assert scene.bbox == pytest.approx(expected)


@pytest.fixture
def granules(tmp_path):
    """Adjacent files of zone 60 and zone 1, the first crossing the antimeridian, and one over the pole."""
    found, pixels = {}, encoded(0, bands=1, height=160, width=160)
    for name, crs, (lon, lat) in (
        ("60KXG", 32760, (180, -18)),
        ("01KAB", 32701, (-178, -18)),
        ("01CDE", 3031, (0, -90)),
    ):
        x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
        transform = Affine(100, 0, round(x, -2) - 8000, 0, -100, round(y, -2) + 8000)
        path = write_tif(
            tmp_path / f"S2A_{name}_20230601T222619_x.tif", pixels, crs=f"EPSG:{crs}", transform=transform, nodata=0
        )
        found[name] = path, pixels, GeoBox((160, 160), transform, f"EPSG:{crs}")
    return found


@pytest.mark.parametrize("engine", ["auto", "gdal"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("60KXG", {"crs": "EPSG:4326"}),
        ("60KXG", {"crs": "EPSG:4326", "resolution": 0.001}),
        ("60KXG", {"crs": "EPSG:4326", "bbox": (179.97, -18.03, -179.97, -17.97)}),
        ("60KXG", {"bbox": (179.97, -18.03, -179.97, -17.97)}),
        ("60KXG", {"crs": "EPSG:3832"}),
        ("60KXG", {"geobox": GeoBox.from_bbox((179.8, -18.2, 180.2, -17.8), "EPSG:4326", resolution=0.002)}),
        ("60KXG", {"geobox": GeoBox.from_bbox((-180.2, -18.2, -179.8, -17.8), "EPSG:4326", resolution=0.002)}),
        ("01KAB", {"geobox": GeoBox.from_bbox((181.8, -18.2, 182.2, -17.8), "EPSG:4326", resolution=0.002)}),
        ("01CDE", {"geobox": GeoBox.from_bbox((-180, -90, 180, -89), "EPSG:4326", resolution=0.1)}),
        ("01CDE", {"bbox": (-180, -90, 180, -89.95)}),
    ],
)
def test_pixels_over_the_antimeridian_and_the_pole(granules, name, options, engine):
    path, pixels, source = granules[name]
    cube = s2c.open_cube(path, engine=engine, **options)
    grid = cube.odc.geobox
    assert max(grid.shape) <= 3600
    expected = nearest(pixels, source, grid)
    np.testing.assert_array_equal(cube.values[0], expected)
    assert (expected > 0).any()
    if "geobox" not in options and "bbox" not in options:
        assert (expected > 0).sum() > 0.7 * pixels.size, "no part of the scene is left out"


def test_zones_60_and_1_on_one_grid(granules):
    for options in ({"crs": "EPSG:4326"}, {"crs": "EPSG:3832", "resolution": 100}):
        cube = s2c.open_cube([granules["60KXG"][0], granules["01KAB"][0]], **options)
        assert max(cube.shape) < 3000
        for scene, name in zip(cube.values, ("01KAB", "60KXG"), strict=True):
            np.testing.assert_array_equal(scene, nearest(granules[name][1], granules[name][2], cube.odc.geobox))


def test_a_box_over_the_antimeridian_where_the_grid_ends(granules, tmp_path):
    with pytest.raises(GridError, match="EPSG:3857 is cut"):
        s2c.open_cube(granules["60KXG"][0], crs="EPSG:3857", resolution=100)
    globe = write_tif(
        tmp_path / "S2A_31TCJ_20230601T222619_x.tif",
        encoded(0, 1, 180, 360),
        crs="EPSG:4326",
        transform=Affine(1, 0, -180, 0, -1, 90),
    )
    with pytest.raises(GridError, match="crosses the antimeridian, where this grid"):
        s2c.open_cube(globe, bbox=(170, -20, -170, -10))
    east = s2c.open_cube(globe, bbox=(170, -20, 180, -10))
    np.testing.assert_array_equal(east.values[0, 0], encoded(0, 1, 180, 360)[0, 100:110, 350:])


@pytest.mark.parametrize("engine", ["auto", "gdal"])
def test_files_with_degrees_from_0_to_360(engine, tmp_path):
    pixels = encoded(0, 1, 180, 360)
    path = write_tif(
        tmp_path / "S2A_31TCJ_20230601T222619_x.tif", pixels, crs="EPSG:4326", transform=Affine(1, 0, 0, 0, -1, 90)
    )
    grid = GeoBox.from_bbox((200000, 4000000, 800000, 5000000), "EPSG:32629", resolution=20000)
    x, y = grid.transform @ tuple(np.meshgrid(np.arange(grid.shape.x) + 0.5, np.arange(grid.shape.y) + 0.5))
    lon, lat = Transformer.from_crs("EPSG:32629", "EPSG:4326", always_xy=True).transform(x, y)
    expected = pixels[0, np.floor(90 - lat).astype(int), np.floor(lon % 360).astype(int)]
    np.testing.assert_array_equal(s2c.open_cube(path, geobox=grid, engine=engine).values[0, 0], expected)
    west = s2c.open_cube(path, bbox=(-10, 30, -5, 40), engine=engine)
    np.testing.assert_array_equal(west.values[0, 0], pixels[0, 50:60, 350:355])


def test_a_map_ends_at_the_antimeridian(granules):
    with pytest.raises(GridError, match="EPSG:3857 is cut"):
        s2c.composite(s2c.open_cube(granules["60KXG"][0]), "median").explore()


def test_an_item_over_the_antimeridian_follows_geojson(granules, tmp_path):
    import json

    (path,) = s2c.composite(s2c.open_cube(granules["60KXG"][0]), "median").to_stac(
        str(tmp_path / "item.json"), progress=False
    )
    with open(path) as file:
        item = json.load(file)
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["bbox"][0] > 179 > -179 > item["bbox"][2]


def test_north_up_leaves_rows_of_pictures_alone():
    plain = from_odc().drop_vars("spatial_ref")
    plain = plain.assign_coords(y=np.arange(SIZE), x=np.arange(SIZE))
    for coord in ("x", "y"):
        plain[coord].attrs.clear()
    assert north_up(plain) is plain
    assert footprint(PLACES["elsewhere"]).crs == "EPSG:4326"
