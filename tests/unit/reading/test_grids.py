"""Any grid: granules and zones in one cube, warped as GDAL and odc-stac do, the same pixels for any chunks."""

import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pyproj
import pytest
import rasterio
import xarray as xr
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

import s2composite as s2c
from s2composite.errors import GridError, ParameterError, ReadError
from s2composite.reading.grid import TargetGrid
from s2composite.reading.stack import open_stack
from s2composite.scenes.find import find_scenes
from support.rasters import ORIGIN, encoded, write_tif
from support.stac_items import item_of

EXACT = {"tolerance": 1e-7, "XSCALE": "1", "YSCALE": "1"}
"""GDAL transforms each pixel by itself, as it does here; by default its pixels depend on where a window begins."""


def by_gdal(path, geobox, bands, resampling="nearest", level=None, **options):
    opened = {} if level is None else {"overview_level": level}
    with (
        rasterio.open(path, **opened) as src,
        WarpedVRT(
            src, crs=geobox.crs.to_wkt(), transform=geobox.transform, width=geobox.shape.x, height=geobox.shape.y,
            resampling=Resampling[resampling], src_nodata=0, nodata=0, **{**EXACT, **options},
        ) as vrt,
    ):  # fmt: skip
        return vrt.read(bands)


# Real imagery: three CRS over one place


@pytest.fixture(scope="module")
def exeter(imagery):
    return sorted((imagery / "exeter_s2_mixed_crs").glob("*.tif"))


EXETER = ["B04", "B03", "B02"]


@pytest.mark.slow
@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
def test_three_crs_over_one_place_agree_with_gdal(exeter, resampling):
    paths = [str(path) for path in exeter]
    pattern = r"exe_(?P<date>\d{4}-\d\d-\d\d)"
    cube = s2c.open_cube(
        paths, pattern=pattern, bands=EXETER, crs="EPSG:32630", resolution=20, resampling=resampling, chunks=100
    )
    geobox = cube.odc.geobox
    assert cube.sizes["time"] == 5
    pixels = cube.values
    for path, scene in zip(paths, pixels, strict=True):
        # where an interpolated value ends in .5, GDAL rounds it up or down as the window asked for begins
        off = np.abs(scene.astype(int) - by_gdal(path, geobox, [3, 2, 1], resampling))
        assert off.max() <= 1
        assert (off > 0).sum() <= 3
    whole = s2c.open_cube(
        paths, pattern=pattern, bands=EXETER, crs="EPSG:32630", resolution=20, resampling=resampling, chunks=4000
    )
    np.testing.assert_array_equal(pixels, whole.values, err_msg="no seam between chunks")
    inner = (pixels > 0).all((0, 1))
    assert inner.mean() > 0.6, "all five are over one place"


def test_there_is_no_shift_between_zones(exeter):
    """The land does not move: a date in UTM matches those in a LAEA best without any shift."""
    pattern = r"exe_(?P<date>\d{4}-\d\d-\d\d)"
    cube = s2c.open_cube(
        list(map(str, exeter)), pattern=pattern, bands=["B08", "SCL"], crs="EPSG:32630", resolution=20,
        resampling={"B08": "bilinear"},
    )  # fmt: skip
    pixels = cube.values[:, :, 60:-60, 60:-60].astype(float)
    clear = np.isin(pixels[:, 1], [4, 5, 6])
    for one, other in ((1, 3), (1, 4), (3, 4)):
        scores = {}
        for shift in ((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)):
            moved = np.roll(pixels[other, 0], shift, (0, 1))
            both = (clear[one] & np.roll(clear[other], shift, (0, 1)))[2:-2, 2:-2]
            scores[shift] = np.corrcoef(pixels[one, 0][2:-2, 2:-2][both], moved[2:-2, 2:-2][both])[0, 1]
        assert max(scores, key=scores.get) == (0, 0), scores


# said by GDAL of the arrays that odc-stac warps into
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_odc_stac_has_the_same_pixels(exeter):
    odc_stac = pytest.importorskip("odc.stac")
    import pystac

    items = [
        pystac.Item.from_dict(item_of(path.stem[:14], f"{path.stem[4:14]}T11:00:00Z", {"data": path}, projection=False))
        for path in exeter
    ]
    for item in items:  # odc-stac needs to be told of each band
        item.assets["data"].extra_fields["raster:bands"] = [{"data_type": "uint16", "nodata": 0}] * 5
    geobox = GeoBox((300, 320), Affine(20, 0, 460600, 0, -20, 5621900), "EPSG:32630")
    theirs = odc_stac.load(items, bands=["data.3", "data.5"], geobox=geobox, chunks={}, groupby="id")
    ours = s2c.open_cube(
        [str(p) for p in exeter], pattern=r"exe_(?P<date>\d{4}-\d\d-\d\d)", bands=["B04", "SCL"], geobox=geobox
    )
    for name in ("B04", "SCL"):
        their = theirs[{"B04": "data.3", "SCL": "data.5"}[name]].values
        for t, path in enumerate(exeter):
            band, mine = {"B04": 3, "SCL": 5}[name], ours.sel(band=name).values[t]
            loose = by_gdal(path, geobox, [band], tolerance=0.125)
            np.testing.assert_array_equal(their[t], loose[0])
            np.testing.assert_array_equal(mine, by_gdal(path, geobox, [band])[0])
            # odc-stac leaves GDAL its error of an eighth of a pixel: what differs lies so near to the next pixel
            differs = their[t] != mine
            assert differs.mean() < 0.05
            assert (to_next_pixel(path, geobox)[differs] <= 0.125).all(), "and nowhere else"


def to_next_pixel(path, geobox):
    """Distance of each pixel centre of a grid from the edge of the file's pixel, in the file's pixels: ``(y, x)``."""
    rows, columns = np.mgrid[: geobox.shape.y, : geobox.shape.x] + 0.5
    x, y = geobox.transform @ (columns, rows)
    with rasterio.open(path) as src:
        to_file = pyproj.Transformer.from_crs(geobox.crs.to_wkt(), src.crs.to_wkt(), always_xy=True)
        places = ~src.transform @ to_file.transform(x, y)
    return np.min([np.abs(place - np.round(place)) for place in places], axis=0)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # odc-loader warps into memory
@pytest.mark.parametrize("shift", [0, 3.3, -7.9])
@pytest.mark.parametrize("resolution", [20, 10, 27])
def test_odc_stac_has_every_pixel_in_the_scenes_own_crs(imagery, shift, resolution):
    """Without a projection between the grids, GDAL does not approximate, and all pixels are the same."""
    odc_stac = pytest.importorskip("odc.stac")
    import pystac

    path = imagery / "zagreb_t33twl_120m"
    files = sorted(path.glob("*_B04.tif"))
    items = [item_of(file.stem[:22], "2023-08-10T10:00:00Z", {"red": file}) for file in files[:2]]
    with rasterio.open(files[0]) as src:
        origin = src.transform @ Affine.translation(20, 30) @ Affine.scale(1 / 120)
    geobox = GeoBox((220, 190), origin @ Affine.translation(shift, -shift) @ Affine.scale(resolution * 6), "EPSG:32633")
    ours = s2c.open_cube(items, bands=["red"], geobox=geobox, harmonise=False).values[:, 0]
    loaded = odc_stac.load(
        [pystac.Item.from_dict(item) for item in items], bands=["red"], geobox=geobox, chunks={}, groupby="id"
    )
    np.testing.assert_array_equal(loaded["red"].values, ours)
    assert len(np.unique(ours)) > 500


@pytest.mark.slow
def test_the_single_scenes_in_other_grids(imagery):
    folder = imagery / "single_scenes"
    for name, bands in (("T29RKH_20200219_B04.tif", [1]), ("T29RKH_20200219_TCI.tif", [1, 2, 3])):
        for crs in ("EPSG:4326", "EPSG:3857", "EPSG:32628"):
            cube = s2c.open_cube(str(folder / name), crs=crs, chunks=300)
            np.testing.assert_array_equal(cube.values[0], by_gdal(folder / name, cube.odc.geobox, bands))
    scl = s2c.open_cube(
        sorted(map(str, folder.glob("T29RKH*.tif"))), bands=["B04", "SCL"], crs="EPSG:3857", resampling="bilinear"
    )
    assert set(np.unique(scl.sel(band="SCL"))) <= set(range(12)), "there is no mean of classes"
    np.testing.assert_array_equal(
        scl.sel(band="SCL").values[0], by_gdal(folder / "T29RKH_20200219_SCL.tif", scl.odc.geobox, 1)
    )


def test_granules_next_to_the_antimeridian_make_one_picture(imagery):
    folder = imagery / "single_scenes"
    files = [str(path) for path in sorted(folder.glob("T01W*_B04.jp2"))]
    cube = s2c.open_cube(files, groupby="utc_day")
    assert cube.sizes["time"] == 1
    assert str(cube.granule.values[0]) == "01WCQ+01WCR"
    boxes = []
    pixels = cube.values[0, 0]
    for path in files:
        with rasterio.open(path) as src:
            boxes.append(src.bounds)
            top = round((cube.odc.geobox.boundingbox.top - src.bounds.top) / 120)
            left = round((src.bounds.left - cube.odc.geobox.boundingbox.left) / 120)
            there = pixels[top : top + src.height, left : left + src.width]
            own = src.read(1)
            assert (there[own > 0] > 0).all(), "what one of them has, the day has"
    assert abs(pixels.shape[0] * 120 - (max(b.top for b in boxes) - min(b.bottom for b in boxes))) <= 120


# Pixels that say where they are


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A 10 m, a 20 m and a 60 m band, and the next granule, with values that encode the position."""
    folder = tmp_path_factory.mktemp("place")
    assets = {}
    for name, size in (("B04", 10), ("B05", 20), ("B09", 60)):
        n = 1200 // size
        y, x = np.mgrid[:n, :n]
        values = (1 + y * 211 + x * 7).astype(np.uint16)
        assets[name] = write_tif(
            folder / f"T31TCJ_20230709T104629_{name}.tif", values, transform=ORIGIN @ Affine.scale(size / 10), nodata=0
        )
    return folder, assets


def test_coarser_bands_are_repeated_on_the_direct_path(place):
    folder, assets = place
    cube = s2c.open_cube(folder, bands=["B04", "B05", "B09"], chunks=50)
    assert cube.attrs["engine"] == "tiles"
    assert "repeated" in cube.attrs["engine_reason"]
    for name, factor in (("B04", 1), ("B05", 2), ("B09", 6)):
        with rasterio.open(assets[name]) as src:
            expected = src.read(1).repeat(factor, 0).repeat(factor, 1)
        np.testing.assert_array_equal(cube.sel(band=name).values[0], expected)
    gdal = s2c.open_cube(folder, bands=["B04", "B05", "B09"], engine="gdal")
    np.testing.assert_array_equal(cube.values, gdal.values)
    red = s2c.open_cube(folder, bands=["B05"])
    assert red.odc.geobox.resolution.x == 20


@given(y0=st.integers(0, 118), x0=st.integers(0, 118), height=st.integers(1, 60), width=st.integers(1, 60))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_crop_of_repeated_pixels(place, y0, x0, height, width):
    folder, assets = place
    geobox = GeoBox((120, 120), ORIGIN, "EPSG:32631")[y0 : min(y0 + height, 120), x0 : min(x0 + width, 120)]
    cube = s2c.open_cube(folder, bands=["B05", "B09"], geobox=geobox, chunks=17)
    for name, factor in (("B05", 2), ("B09", 6)):
        with rasterio.open(assets[name]) as src:
            expected = src.read(1).repeat(factor, 0).repeat(factor, 1)
        part = expected[y0 : min(y0 + height, 120), x0 : min(x0 + width, 120)]
        np.testing.assert_array_equal(cube.sel(band=name).values[0], part)


@given(
    angle=st.floats(-40, 40), scale=st.floats(0.3, 3), x=st.floats(-500, 900), y=st.floats(-900, 500),
    chunks=st.integers(10, 90),
)  # fmt: skip
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_affine_grid_picks_the_pixels_that_gdal_does(place, angle, scale, x, y, chunks):
    _, assets = place
    transform = (
        Affine.translation(300000 + x, 4900020 + y) @ Affine.rotation(angle) @ Affine.scale(10 * scale, -10 * scale)
    )
    geobox = GeoBox((70, 80), transform, "EPSG:32631")
    cube = s2c.open_cube(assets["B04"], geobox=geobox, chunks=chunks)
    np.testing.assert_array_equal(cube.values[0, 0], by_gdal(assets["B04"], geobox, 1))


@pytest.mark.parametrize(
    "resampling",
    ["nearest", "bilinear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cubic", "average"))],
)
@pytest.mark.parametrize("resolution", [10, 35])
def test_warped_pixels_do_not_depend_on_chunks(place, resampling, resolution):
    _, assets = place
    options = {"crs": "EPSG:3035", "resolution": resolution, "resampling": resampling}
    whole = s2c.open_cube(assets["B04"], chunks=4000, **options).values
    assert len(np.unique(whole)) > 500
    for chunks in (13, 32):
        np.testing.assert_array_equal(s2c.open_cube(assets["B04"], chunks=chunks, **options).values, whole)


def test_resampling_per_band(place):
    folder, assets = place
    geobox = s2c.open_cube(assets["B04"], crs="EPSG:3035", resolution=10).odc.geobox
    cube = s2c.open_cube(
        folder,
        bands=["B04", "B05", "B09"],
        geobox=geobox,
        resampling={"B05": "cubic", "*": "bilinear", "B09": "nearest"},
    )
    for name, method in (("B04", "bilinear"), ("B05", "cubic"), ("B09", "nearest")):
        np.testing.assert_array_equal(cube.sel(band=name).values[0], by_gdal(assets[name], geobox, 1, method))
    with pytest.raises(ParameterError, match="resampling 'smooth' is unknown"):
        s2c.open_cube(folder, bands=["B04"], resampling={"B04": "smooth"})


def test_coarser_grids_are_read_from_overviews(tmp_path):
    path = write_tif(
        tmp_path / "T31TCJ_20230709T104629_B04.tif", encoded(0, 1, 400, 400)[0], overviews=(2, 4), nodata=0
    )
    cube = s2c.open_cube(path, crs="EPSG:3035", resolution=45)
    np.testing.assert_array_equal(cube.values[0, 0], by_gdal(path, cube.odc.geobox, 1, level=1))
    smooth = s2c.open_cube(path, crs="EPSG:3035", resolution=45, resampling="bilinear")
    own = by_gdal(path, cube.odc.geobox, 1, "bilinear", level=1, XSCALE="0.888", YSCALE="0.888")
    assert np.abs(smooth.values[0, 0].astype(int) - own).mean() < 2


# Granules


def test_granules_of_one_zone_make_one_grid_on_the_direct_path(tmp_path):
    land = encoded(0, 1, 200, 300)[0]
    spots = {"31TCJ": 0, "31TDJ": 140}
    for tile, left in spots.items():
        write_tif(
            tmp_path / f"T{tile}_20230709T104629_B04.tif", land[:, left : left + 160],
            transform=ORIGIN @ Affine.translation(left, 0), nodata=0,
        )  # fmt: skip
    cube = s2c.open_cube(tmp_path, chunks=64)
    assert cube.shape == (2, 1, 200, 300)
    assert cube.attrs["engine"] == "tiles"
    pixels = cube.values[:, 0]
    np.testing.assert_array_equal(pixels[0, :, :160], land[:, :160])
    np.testing.assert_array_equal(pixels[1, :, 140:], land[:, 140:])
    assert not pixels[0, :, 160:].any()
    day = s2c.open_cube(tmp_path, groupby="solar_day", chunks=64)
    np.testing.assert_array_equal(day.values[0, 0], land)
    comp = s2c.composite(s2c.open_cube(tmp_path, groupby="solar_day"), "median").compute()
    np.testing.assert_array_equal(comp["composite"][0], land)
    assert int(comp["count"].min()) == int(comp["count"].max()) == 1


def test_items_without_a_granule_may_lie_beside_each_other(tmp_path):
    land = encoded(0, 1, 100, 180)[0]
    items = []
    for i, left in enumerate((0, 80)):
        path = write_tif(
            tmp_path / f"{i}.tif", land[:, left : left + 100], transform=ORIGIN @ Affine.translation(left, 0), nodata=0
        )
        items.append(item_of(f"scene{i}", "2023-07-09T10:46:29Z", {"red": path}))
    cube = s2c.open_cube(items, bands=["red"], groupby="solar_day")
    np.testing.assert_array_equal(cube.values[0, 0], land)


def test_halves_of_a_pass_fuse_and_the_first_valid_pixel_wins(tmp_path):
    one, two = np.zeros((3, 90, 90), np.uint8), np.full((3, 90, 90), 200, np.uint8)
    one[:, :50] = 100
    one[1, 20:30] = 0  # a band is missing there
    two[:, 25:35] = 0
    for i, pixels in enumerate((one, two)):
        write_tif(tmp_path / f"T31TCJ_20230709T10463{i}_TCI.tif", pixels, nodata=0)
    cube = s2c.open_cube(tmp_path, groupby="solar_day", chunks=40)
    assert cube.sizes["time"] == 1
    expected = np.where(one > 0, one, 0)
    whole = (one > 0).all(0)
    take = ~(one > 0).any(0) | (~whole & (two > 0).all(0))
    expected = np.where(take, two, expected)
    np.testing.assert_array_equal(cube.values[0], expected)
    assert set(np.unique(cube.values[0][:, 20:25])) == {200}, "all bands of an observation come from one product"


@pytest.mark.slow
def test_several_zones_in_one_cube(tmp_path):
    """A plane through three zones: each file has its pixels' longitude, so a seam or shift would be detected."""
    from pyproj import Transformer

    for zone, west in ((31, 5.85), (32, 6.0)):
        crs = f"EPSG:326{zone}"
        x0, y0 = Transformer.from_crs(4326, crs, always_xy=True).transform(west, 45.0)
        transform = Affine(10, 0, round(x0, -1), 0, -10, round(y0, -1))
        rows, columns = np.mgrid[:300, :1500] + 0.5
        x, y = transform @ (columns, rows)
        east, _ = Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
        values = np.round((east - 5) * 30000).astype(np.uint16)
        tile = {31: "31TGK", 32: "32TKQ"}[zone]
        write_tif(tmp_path / f"T{tile}_20230709T104629_B04.tif", values, crs=crs, transform=transform, nodata=0)
    with pytest.raises(GridError, match=r"(?s)crs EPSG:326.*give a target grid"):
        s2c.open_cube(tmp_path)
    for resampling, error in (("nearest", 3.0), ("bilinear", 1.0)):
        cube = s2c.open_cube(
            tmp_path, crs="EPSG:3035", resolution=10, groupby="utc_day", resampling=resampling, chunks=256
        )
        pixels, geobox = cube.values[0, 0], cube.odc.geobox
        rows, columns = np.mgrid[: geobox.shape.y, : geobox.shape.x] + 0.5
        east, _ = Transformer.from_crs(3035, 4326, always_xy=True).transform(*(geobox.transform @ (columns, rows)))
        there = pixels > 0
        assert there.mean() > 0.5
        apart = np.abs(pixels[there] - (east[there] - 5) * 30000)
        assert apart.max() < 4.5, "no shift, no seam"
        assert np.quantile(apart, 0.99) < error


# Asking for a grid


def test_like_takes_what_has_a_grid(place):
    _, assets = place
    model = s2c.open_cube(assets["B04"], crs="EPSG:3035", resolution=17)
    for like in (
        model,
        model.odc.geobox,
        model.rename("values").to_dataset(name="values"),
        s2c.composite(model, "median"),
    ):
        cube = s2c.open_cube(assets["B04"], like=like)
        assert cube.odc.geobox == model.odc.geobox
        np.testing.assert_array_equal(cube.values, model.values)
    assert s2c.open_cube(assets["B05"], like=assets["B04"]).odc.geobox.resolution.x == 10
    with pytest.raises(ParameterError, match="like= is a DataArray without a georeference"):
        s2c.open_cube(assets["B04"], like=xr.DataArray(np.zeros((2, 2)), dims=("a", "b")))
    with pytest.raises(ParameterError, match="like= already sets the grid"):
        s2c.open_cube(assets["B04"], like=model, resolution=10)


@pytest.mark.parametrize(("anchor", "rest"), [("edge", 0), ("center", 0.5), ((0.25, 0.25), 0.25), ("floating", None)])
def test_anchors(place, anchor, rest):
    _, assets = place
    geobox = s2c.open_cube(assets["B04"], crs="EPSG:3035", resolution=10, anchor=anchor).odc.geobox
    if rest is not None:
        assert (geobox.transform.c / 10) % 1 == pytest.approx(rest, abs=1e-6)
    with pytest.raises(ParameterError, match="anchor 'corner' is invalid"):
        s2c.open_cube(assets["B04"], crs="EPSG:3035", resolution=10, anchor="corner")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"crs": "EPSG:4326", "resolution": 10}, GridError, "resolution 10 is larger than the whole data .* degrees"),
        ({"crs": "EPSG:32631", "resolution": 0.0001}, GridError, "0.0001 .*metre.* times finer .* other units"),
        ({"crs": "EPSG:3035", "resolution": 0.0001}, GridError, "times finer"),
        ({"resolution": 0.0001}, GridError, "times finer"),
        ({"crs": "EPSG:99999"}, ParameterError, "crs 'EPSG:99999' is unknown"),
        ({"crs": "EPSG:3035", "resolution": -10}, ParameterError, "must be positive"),
        ({"resampling": {"*": "smooth"}}, ParameterError, "bilinear"),
    ],
)
def test_implausible_grids_are_an_error(place, options, error, words):
    _, assets = place
    with pytest.raises(error, match=words):
        s2c.open_cube(assets["B04"], **options)


# Only what touches a window


def test_a_window_knows_the_scenes_that_touch_it(tmp_path):
    for i in range(4):
        write_tif(
            tmp_path / f"T3{i}TCJ_2023070{i + 1}T104629_B04.tif", np.full((100, 100), i + 1, np.uint16),
            transform=ORIGIN @ Affine.translation(90 * i, 0), nodata=0,
        )  # fmt: skip
    stack = open_stack(find_scenes(tmp_path))
    assert stack.shape == (4, 1, 100, 370)
    assert stack.depth == 2
    for window, expected in (
        ((slice(0, 100), slice(0, 80)), [0]),
        ((slice(0, 100), slice(95, 98)), [0, 1]),
        ((slice(0, 10), slice(0, 370)), [0, 1, 2, 3]),
        ((slice(200, 210), slice(0, 370)), []),
    ):
        assert stack.touching(window).tolist() == expected
        few = stack.select(stack.touching(window)) if expected else stack
        seen, every = few.read(window), stack.read(window)
        positions = expected or range(4)
        np.testing.assert_array_equal(seen.pixels, every.pixels[list(positions)])
        assert not every.pixels[[t for t in range(4) if t not in expected]].any()
    assert stack.touching((slice(0, 100), slice(85, 89)), pad=2).tolist() == [0, 1]
    other = open_stack(find_scenes(tmp_path), target=TargetGrid(crs="EPSG:3035", resolution=10))
    for x in range(0, other.shape[3], 50):
        window = (slice(0, other.shape[2]), slice(x, min(x + 50, other.shape[3])))
        found = other.touching(window).tolist()
        read = other.read(window).pixels
        assert set(np.flatnonzero(read.any((1, 2, 3)))) <= set(found)


# Patches: windows on another grid, cut along the files' tiles


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """Five scenes of 300 x 300 in tiles of 64, with holes."""
    folder, rng = tmp_path_factory.mktemp("tiled"), np.random.default_rng(7)
    for day in range(1, 6):
        pixels = rng.integers(1, 250, (3, 300, 300), np.uint8)
        pixels[:, rng.random((300, 300)) < 0.3] = 0
        write_tif(folder / f"T31TCJ_202306{day:02d}T104629_TCI.tif", pixels, nodata=0, block=64)
    return folder


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angle=st.floats(-180, 180), scale=st.floats(0.4, 3), shift=st.tuples(*[st.floats(-200, 200)] * 2),
    side=st.sampled_from([1, 64, 100, 1000]), chunks=st.sampled_from([50, 170, 400]),
    reducer=st.sampled_from(["median", "luminance_median", "std"]),
)  # fmt: skip
def test_composite_does_not_depend_on_tile_selections(tiled, monkeypatch, angle, scale, shift, side, chunks, reducer):
    """The composite equals that of the whole grid read in one piece, for tiles and windows of any size."""
    monkeypatch.setattr("s2composite.reading.plan._SIDE", side)
    own = s2c.open_cube(tiled).odc.geobox
    turn = Affine.translation(150, 150) @ Affine.rotation(angle) @ Affine.scale(scale) @ Affine.translation(*shift)
    grid = GeoBox((230, 310), own.transform @ turn, own.crs)
    cube = s2c.open_cube(tiled, geobox=grid, chunks=chunks)
    whole = xr.DataArray(cube.values, dims=cube.dims, coords=cube.coords, attrs=cube.attrs)
    xr.testing.assert_equal(s2c.composite(cube, reducer).compute().dataset, s2c.composite(whole, reducer).dataset)


def test_a_window_on_another_grid_is_read_a_few_tiles_at_a_time(tiled, monkeypatch):
    monkeypatch.setattr("s2composite.reading.plan._SIDE", 64)
    stack = open_stack(find_scenes(tiled), target=TargetGrid(crs="EPSG:3035", resolution=10))
    window = tuple(slice(0, n) for n in stack.shape[2:])
    pieces = stack.pieces(window)
    taken = np.concatenate([piece.pixels for piece in pieces])
    assert np.array_equal(np.sort(taken), np.arange(window[0].stop * window[1].stop)), "each pixel once"
    tiles = [piece.tiles for piece in pieces if piece.tiles is not None]
    assert len(tiles) == 25
    assert all(s.start // 64 == (s.stop - 1) // 64 for tile in tiles for s in tile), "each tile is decoded once"
    assert max(map(stack.size, pieces)) <= stack.largest(window) < stack.size(window) / 10


def test_files_that_share_no_tiles_are_read_in_rectangles(tiled, tmp_path):
    for path in tiled.iterdir():
        (tmp_path / path.name).symlink_to(path)
    other = np.full((3, 300, 300), 9, np.uint8)
    write_tif(tmp_path / "T31TCJ_20230701T104629_TCI.tif", other, nodata=0, block=128)
    stack = open_stack(find_scenes(tmp_path), target=TargetGrid(crs="EPSG:3035", resolution=10))
    window = tuple(slice(0, n) for n in stack.shape[2:])
    assert stack.pieces(window) == (window,)
    assert stack.largest(window) == stack.size(window)


def test_a_damaged_tile_costs_the_same_observations_however_a_window_is_cut(tiled, tmp_path, monkeypatch):
    monkeypatch.setattr("s2composite.reading.plan._SIDE", 64)
    for path in tiled.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "T31TCJ_20230603T104629_TCI.tif"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = bytes(500)
    damaged.write_bytes(content)
    options = {"crs": "EPSG:3035", "resolution": 4}
    with pytest.raises(ReadError, match="20230603"):
        s2c.composite(s2c.open_cube(tmp_path, **options), "median").compute()
    cubes = [s2c.open_cube(tmp_path, **options, on_error="skip", chunks=chunks) for chunks in (512, 4096)]
    skipped = [s2c.composite(cube, "median").compute().dataset for cube in cubes]
    np.testing.assert_array_equal(skipped[0]["composite"], skipped[1]["composite"])
    np.testing.assert_array_equal(skipped[0]["count"], skipped[1]["count"])
    whole = s2c.composite(s2c.open_cube(tiled, **options), "median").compute().dataset
    fewer = whole["count"].values.astype(int) - skipped[1]["count"].values
    assert 0 < fewer.sum() < whole["count"].values.sum() / 5
    assert (fewer >= 0).all()
