"""Values: baselines harmonised by product metadata, reflectances, and errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import s2composite as s2c
from s2composite.errors import ParameterError, SceneError
from s2composite.pixels.mask_bands import SCL
from s2composite.reading.bands import Conversion, convert, wanted_assets
from s2composite.scenes.find import find_scenes
from support.rasters import write_tif
from support.stac_items import item_of

DAYS = ("01", "06", "11")


@pytest.fixture
def season(tmp_path):
    """Three scenes of the same land, before, after and again before baseline 04.00, with values as in files."""
    land = np.random.default_rng(1).integers(200, 9000, (96, 96)).astype(np.uint16)
    land[:10] = 0
    made = []
    for day, offset in zip(DAYS, (0, 1000, 0), strict=True):
        numbers = np.where(land > 0, land + offset, 0).astype(np.uint16)
        red = write_tif(tmp_path / f"red{day}.tif", numbers, nodata=0)
        scl = write_tif(tmp_path / f"scl{day}.tif", np.full((48, 48), 4, np.uint8), transform=coarse(), nodata=0)
        baseline = {"s2:processing_baseline": "05.09" if offset else "02.14"}
        made.append(item_of(f"S2A_31TCJ_202306{day}", f"2023-06-{day}T10:46:29Z", {"red": red, "scl": scl}, **baseline))
    return made, land


def coarse():
    from affine import Affine

    from support.rasters import ORIGIN

    return ORIGIN @ Affine.scale(2)


def test_a_cube_is_harmonised_and_says_so(season):
    items, land = season
    cube = s2c.open_cube(items, bands=["red"], chunks=64)
    for scene in cube.values:
        np.testing.assert_array_equal(scene[0], land)
    assert cube.offset.values.tolist() == [0, -1000, 0]
    assert "harmonise" in cube.offset.attrs["long_name"]
    raw = s2c.open_cube(items, bands=["red"], harmonise=False)
    assert int(raw.values[1, 0].max()) == int(land.max()) + 1000
    assert raw.offset.values.tolist() == [0, 0, 0]
    assert raw.data.name != cube.data.name
    comp = s2c.composite(cube, "median").compute()
    np.testing.assert_array_equal(comp["composite"][0], land)


def test_reflectance_without_harmonise_is_an_error(season):
    items, _ = season
    said = r"harmonise=False: the values of 1 of 3 scenes \(S2A_31TCJ_20230606 \.\.\.\) have the offset .*, 1000, "
    with pytest.raises(ParameterError, match=said):
        s2c.open_cube(items, bands=["red"], reflectance=True, harmonise=False)
    cube = s2c.open_cube(items[:1], bands=["red"], reflectance=True, harmonise=False)
    assert cube.attrs["units"] == "1"


def test_each_way_to_the_pixels_is_harmonised(season):
    items, land = season
    for engine in ("tiles", "gdal"):
        np.testing.assert_array_equal(s2c.open_cube(items, bands=["red"], engine=engine).values[1, 0], land)
    fine = s2c.open_cube(items, bands=["red"], resolution=5)
    np.testing.assert_array_equal(fine.values[1, 0], land.repeat(2, 0).repeat(2, 1))
    warped = s2c.open_cube(items, bands=["red"], crs="EPSG:3035", resolution=10)
    np.testing.assert_array_equal(warped.values[1], warped.values[0])
    day = s2c.open_cube(items[:2], bands=["red"], groupby="solar_day")
    assert day.sizes["time"] == 2


def test_masks_keep_their_classes(season):
    items, _ = season
    cube = s2c.open_cube(items, bands=["red", "scl"])
    assert set(np.unique(cube.sel(band="scl"))) == {4}
    assert cube.offset.values.tolist() == [0, -1000, 0]
    for reflectance in (False, True):
        data = s2c.open_cube(items, bands=["red"], reflectance=reflectance)
        comp = s2c.composite(data, "median", valid=[s2c.Nodata(), SCL()]).compute()
        assert int(comp["count"].max()) == 3


def test_reflectances(season):
    items, land = season
    cube = s2c.open_cube(items, bands=["red"], reflectance=True)
    assert cube.dtype == np.float32
    expected = np.where(land > 0, land * np.float32(1e-4), np.nan).astype(np.float32)
    for scene in cube.values:
        np.testing.assert_allclose(scene[0], expected, rtol=1e-6)
    for options in ({"engine": "gdal"}, {"crs": "EPSG:3035", "resolution": 10, "resampling": "bilinear"}):
        other = s2c.open_cube(items, bands=["red"], reflectance=True, **options).values
        assert np.nanmax(other) <= 0.9
        assert np.isnan(other).any()
        np.testing.assert_allclose(other[1], other[0], rtol=1e-5)


def without_baseline(items, *days):
    for item in items:
        if item["id"][-2:] in days:
            del item["properties"]["s2:processing_baseline"]
    return items


def test_mixed_known_and_unknown_offsets_are_an_error(season):
    items, land = season
    without_baseline(items, "11")
    with pytest.raises(
        SceneError, match=r"1 of 3 scenes do not declare.*S2A_31TCJ_20230611.*harmonise=False"
    ) as refused:
        s2c.open_cube(items, bands=["red"])
    assert "harmonise={'S2A_31TCJ_20230611': -1000}" in str(refused.value)
    cube = s2c.open_cube(items, bands=["red"], harmonise={"S2A_31TCJ_20230611": 0})
    np.testing.assert_array_equal(cube.values[2, 0], land)
    assert cube.offset.values.tolist() == [0, -1000, 0]
    assert s2c.open_cube(items, bands=["scl"]).sizes["time"] == 3, "classes have no offset"
    s2c.open_cube(items, bands=["red"], harmonise=False)


def test_unknown_offsets_are_not_subtracted(season):
    items, land = season
    cube = s2c.open_cube(without_baseline(items, *DAYS), bands=["red"])
    assert np.isnan(cube.offset.values).all()
    assert int(cube.values[1].max()) == int(land.max()) + 1000


def test_files_are_harmonised_by_the_name_of_their_product():
    folder = "gs://b/S2A_MSIL2A_20230709T104621_N0509_R051_T31TCJ_20230709T170403.SAFE/GRANULE/x/IMG_DATA/R10m"
    (scene,) = find_scenes([f"{folder}/T31TCJ_20230709T104621_{name}_10m.jp2" for name in ("B04", "TCI")])
    ((red,),) = wanted_assets([scene], ["red"])
    assert (red.name, red.values.shift) == ("B04", -1000)
    assert scene.asset("TCI").values.shift == 0
    (plain,) = find_scenes(["gs://b/T31TCJ_20230709T104621_B04.tif"])
    assert plain.asset("B04").values.shift is None


def test_collections_with_other_units_are_refused(season):
    items, _ = season
    for item in items[1:]:
        item["collection"] = "landsat-c2-l2"
        item["id"] = item["id"].replace("S2A", "LC09")
        item["properties"] |= {"platform": "landsat-9", "constellation": "landsat"}
        item["assets"]["red"]["raster:bands"][0] |= {"scale": 2.75e-5, "offset": -0.2}
    with pytest.raises(SceneError, match=r"LC09_31TCJ_20230606 \(landsat-c2-l2\) has scale 2.75e-05.*reflectance=True"):
        s2c.open_cube(items, bands=["red"])
    cube = s2c.open_cube(items, bands=["red"], reflectance=True).compute()
    raw = s2c.open_cube(items[1:2], bands=["red"]).values[0].astype(float)
    expected = np.where(raw > 0, raw * 2.75e-5 - 0.2, np.nan)
    np.testing.assert_allclose(cube.values[1], expected, atol=1e-6)


@given(
    hnp.arrays(np.uint16, 50),
    st.sampled_from([-1000.0, 0.0, 1000.0]),
    st.sampled_from([0, 65535]),
)
def test_a_valid_number_stays_valid_and_nodata_stays_nodata(numbers, shift, nodata):
    out = numbers.copy()
    convert(out, Conversion(shift), nodata, nodata)
    assert ((out == nodata) == (numbers == nodata)).all()
    low = 1 if nodata == 0 else 0
    expected = np.clip(numbers.astype(int) + int(shift), low, 65534)
    # saturated numbers stay, so that a rule knows them, and no other becomes one
    expected[numbers == 65535] = 65535
    np.testing.assert_array_equal(out[numbers != nodata], expected[numbers != nodata])
