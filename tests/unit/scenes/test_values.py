"""What the numbers of bands mean: by catalogue, the tags of files, sensor and product; and what is saturated in them."""

import json
import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr

import s2composite as s2c
from s2composite.errors import BandError, ParameterError, SceneError
from s2composite.jobs.schema import load_job
from s2composite.pixels.mask_bands import SCL
from s2composite.runner.inputs import job_composite, job_scenes
from s2composite.scenes.find import find_scenes
from s2composite.scenes.products import common_name, same_band
from support.gdal_cli import needs_gdal
from support.rasters import ORIGIN, write_tif
from support.stac_items import item_of

SIZE = 70


def numbers(seed=1, bands=1, dtype="uint16", low=200, high=9000):
    """Numbers with degenerate pixels first: nodata, the least and the largest valid one."""
    values = np.random.default_rng(seed).integers(low, high, (bands, SIZE, SIZE)).astype(dtype)
    values[:, :3] = 0
    values[:, 3, :4] = [1, 2, np.iinfo(dtype).max - 1, np.iinfo(dtype).max]
    return values


def tagged(path, values, scales=None, offsets=None, units=None, names=None, **options):
    write_tif(path, values, **{"nodata": 0} | options)
    with rasterio.open(path, "r+") as dataset:
        if scales:
            dataset.scales, dataset.offsets = scales, offsets
        if units:
            dataset.units = units
        if names:
            dataset.descriptions = names
    return str(path)


def unscaled(path, tmp_path):
    """What GDAL makes of a file's numbers: physical values, NaN for no data."""
    out = tmp_path / "unscaled.tif"
    command = ["gdal_translate", "-q", "-unscale", "-ot", "Float64", "-a_nodata", "nan", str(path), str(out)]
    subprocess.run(command, check=True)
    with rasterio.open(path) as raw, rasterio.open(out) as dataset:
        return np.where(raw.read() == 0, np.nan, dataset.read())


# --- tags of files -----------------------------------------------------------------------------------------------------


@needs_gdal
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("engine", ["tiles", "gdal"])
@pytest.mark.parametrize(
    ("scales", "offsets", "units"),
    [((1e-4,), (-0.1,), ("",)), ((2.0, 0.00341802), (0.0, 149.0), ("", "K")), ((1e-4, 1e-4), (0.0, 0.0), ("1", "1"))],
)
def test_physical_values_of_tagged_files_are_those_of_gdal(tmp_path, dtype, engine, scales, offsets, units):
    low, high = (1, 250) if dtype == "uint8" else (1, 9000)
    made = numbers(bands=len(scales), dtype="uint8" if dtype == "uint8" else "int16", low=low, high=high).astype(dtype)
    paths = [tagged(tmp_path / f"x_2023060{day}.tif", made, scales, offsets, units) for day in (1, 2)]
    cube = s2c.open_cube(paths, reflectance=True, engine=engine)
    assert cube.dtype == np.float32
    np.testing.assert_allclose(cube.values[1], unscaled(paths[1], tmp_path), rtol=1e-5, atol=1e-6)
    known = {unit for unit in units if unit}
    assert cube.attrs.get("units") == (known.pop() if len(known) == 1 and len(set(units)) == 1 else None)
    np.testing.assert_array_equal(s2c.open_cube(paths).values[0], made)


def test_raw_numbers_say_what_they_mean(tmp_path):
    paths = [tagged(tmp_path / f"x_2023060{d}.tif", numbers(d), (1e-4,), (-0.1,), ("1",)) for d in (1, 2, 3)]
    cube = s2c.open_cube(paths)
    assert {k: cube.attrs[k] for k in ("scale", "offset", "scaled_units")} == {
        "scale": 1e-4, "offset": -0.1, "scaled_units": "1",
    }  # fmt: skip
    assert "units" not in cube.attrs
    assert cube.offset.values.tolist() == [0, 0, 0]
    several = [
        tagged(tmp_path / f"y_2023060{d}.tif", numbers(d, 2), (1e-4, 0.01), (-0.1, 0.0), ("1", "degC"), ("a", "t"))
        for d in (1, 2)
    ]
    assert s2c.open_cube(several).attrs["scaling"] == "a: 0.0001 * number + -0.1 (1); t: 0.01 * number + 0 (degC)"
    assert s2c.open_cube(several, reflectance=True).attrs["band_units"] == "a: 1; t: degC"
    differing = [tagged(tmp_path / "z_20230601.tif", numbers(), (1e-4,), (0.0,)), paths[0]]
    with pytest.raises(SceneError, match=r"scale 0.0001 and offset .*reflectance=True"):
        s2c.open_cube(differing, times=["2023-06-01", "2023-06-02"])


@pytest.mark.parametrize("reducer", ["median", "luminance_median", "mean", "std"])
def test_outputs_carry_what_their_numbers_mean(tmp_path, reducer):
    paths = [tagged(tmp_path / f"x_2023060{d}.tif", numbers(d), (1e-4,), (-0.1,), ("1",)) for d in (1, 2, 3)]
    comp = s2c.composite(s2c.open_cube(paths), reducer)
    comp.to_raster(str(tmp_path / "out.tif"), progress=False)
    (item,) = comp.to_stac(str(tmp_path / "item.json"), progress=False)
    scaled = reducer != "std"
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert (dataset.scales, dataset.offsets) == (((1e-4,), (-0.1,)) if scaled else ((1.0,), (0.0,)))
        raw = dataset.read(masked=True)
    physical = s2c.open_cube(find_scenes(item), bands=["composite"], reflectance=True) if scaled else None
    if physical is not None:
        expected = np.ma.filled(raw.astype(float) * 1e-4 - 0.1, np.nan)
        np.testing.assert_allclose(physical.values[0], expected, rtol=1e-5, atol=1e-6)
    store = comp.to_zarr(str(tmp_path / "out.zarr"), progress=False)
    with xr.open_zarr(store) as opened:
        read = opened["composite"].values
    same = comp["composite"].values
    np.testing.assert_array_equal(np.nan_to_num(read), np.nan_to_num(same), err_msg="numbers are not decoded unasked")
    derived = s2c.composite(s2c.open_cube(paths) * np.float32(2), reducer)
    assert not {"scale", "offset", "scaled_units"} & set(derived["composite"].attrs)


def test_reflectance_of_numbers_that_nobody_scales_is_refused(tmp_path):
    paths = [write_tif(tmp_path / f"x_2023060{d}.tif", numbers(), nodata=0) for d in (1, 2)]
    with pytest.raises(SceneError, match=r"the scale of band 'data' in .*x_20230601\.tif is unknown.*harmonise="):
        s2c.open_cube(paths, reflectance=True)
    said = s2c.open_cube(paths, reflectance=True, harmonise={"x_20230601": -1000, "x_20230602": 0})
    assert said.offset.values.tolist() == [-1000, 0]
    assert float(said.max()) == pytest.approx(6.5535)
    floats = [write_tif(tmp_path / f"f_2023060{d}.tif", numbers().astype("float32"), nodata=0) for d in (1, 2)]
    cube = s2c.open_cube(floats, reflectance=True)
    assert "units" not in cube.attrs
    assert cube.dtype == np.float32


# --- sensors -----------------------------------------------------------------------------------------------------------

LANDSAT = "{}_198030_20230601_20230605_02_T1"


@pytest.mark.parametrize(
    ("name", "scale", "offset", "unit", "shift"),
    [
        (LANDSAT.format("LC08_L1TP") + "_B4", 2e-5, -0.1, "1", 0),
        (LANDSAT.format("LC09_L2SP") + "_SR_B4", 2.75e-5, -0.2, "1", 0),
        (LANDSAT.format("LC09_L2SP") + "_ST_B10", 0.00341802, 149.0, "K", 0),
        (LANDSAT.format("LE07_L2SP") + "_SR_B4", 2.75e-5, -0.2, "1", 0),
        (LANDSAT.format("LE07_L1TP") + "_B4", None, 0, None, np.nan),
        ("LC08_L1TP_198030_20230601_20230605_01_T1_B4", None, 0, None, np.nan),
        ("HLS.L30.T31TCJ.2023152T103000.v2.0.B05", 1e-4, 0, "1", 0),
        ("HLS.L30.T31TCJ.2023152T103000.v2.0.B10", 0.01, 0, "degC", 0),
        ("HLS.S30.T31TCJ.2023152T103000.v2.0.B8A", 1e-4, 0, "1", 0),
        ("SENTINEL2A_20230601-105619-123_L2A_T31TCJ_C_V3-1_FRE_B4", 1e-4, 0, "1", 0),
        ("S2A_MSIL2A_20230601T104621_N0509_R051_T31TCJ_20230601T170403_B04", 1e-4, 0, "1", -1000),
        ("S2A_MSIL1C_20200601T104621_N0214_R051_T31TCJ_20200601T170403_B04", 1e-4, 0, "1", 0),
        ("S2A_MSIL2F_20230601T104621_N0509_R051_T31TCJ_20230601T170403_B04", 1e-4, 0, "1", np.nan),
        ("T31TCJ_20230601T104629_B04", 1e-4, 0, "1", np.nan),
    ],
)
def test_numbers_of_files_are_those_of_their_sensor(tmp_path, name, scale, offset, unit, shift):
    made = numbers(low=8000, high=20000)
    path = write_tif(tmp_path / f"{name}.tif", made, nodata=0)
    times = ["2023-06-01"]
    np.testing.assert_equal(s2c.open_cube(path, times=times).offset.item(), shift)
    if scale is None:
        with pytest.raises(SceneError, match="the scale of band"):
            s2c.open_cube(path, times=times, reflectance=True)
        return
    cube = s2c.open_cube(path, times=times, reflectance=True)
    expected = np.where(made == 0, np.nan, (made + np.nan_to_num(shift)) * scale + offset)
    expected[made == 65535] = 65535 * scale + offset
    np.testing.assert_allclose(cube.values[0], expected, rtol=1e-5, atol=1e-6)
    assert cube.attrs["units"] == unit


def landsat_or_hls(tmp_path, scene_id, collection, platform, assets, **band):
    paths = {key: write_tif(tmp_path / f"{scene_id}.{key}.tif", numbers(i), nodata=0) for i, key in enumerate(assets)}
    item = item_of(scene_id, "2023-06-01T10:30:00Z", paths, collection=collection, platform=platform)
    del item["properties"]["constellation"]
    for asset in item["assets"].values():
        asset["raster:bands"][0] |= band
    return item


def test_bands_go_by_the_names_of_their_sensor(tmp_path):
    l30 = landsat_or_hls(tmp_path, "HLS.L30.T31TCJ.a", "hls2-l30", "landsat-8", ["B04", "B05", "B06"])
    s30 = landsat_or_hls(tmp_path, "HLS.S30.T31TCJ.b", "hls2-s30", "sentinel-2a", ["B04", "B05", "B8A", "B11"])
    cube = s2c.open_cube([l30, s30], bands=["red", "nir08", "swir16"])
    with rasterio.open(l30["assets"]["B05"]["href"]) as one, rasterio.open(s30["assets"]["B8A"]["href"]) as other:
        np.testing.assert_array_equal(cube.values[:, 1], np.stack([one.read(1), other.read(1)]))
    assert cube.offset.values.tolist() == [0, 0], "HLS has no offset of ESA"
    with pytest.raises(BandError, match="no band 'rededge1'"):
        s2c.open_cube(l30, bands=["rededge1"])
    with pytest.raises(BandError, match=r"band B05 of scene HLS\.S30.*rededge1.*HLS\.|band B05 .*nir08"):
        s2c.open_cube([l30, s30], bands=["B05"])
    assert s2c.open_cube([l30, s30], bands=["B04"]).sizes["time"] == 2


@pytest.mark.parametrize(
    ("sensor", "band", "common"),
    [
        (None, "B05", "rededge071"), ("sentinel-2", "B8A", "nir08"), ("hls-s30", "B05", "rededge071"),
        ("hls-l30", "B05", "nir08"), ("landsat-oli", "SR_B5", "nir08"), ("landsat-oli", "B10", "lwir11"),
        ("landsat-tm", "B4", "nir08"), ("landsat-tm", "B1", "blue"), ("landsat", "B4", None), ("landsat", "red", "red"),
        (None, "SCL", None), ("ga-s2", "nbart_swir_3", "swir22"), ("landsat-oli", "nbart_swir_2", "swir22"),
    ],
)  # fmt: skip
def test_common_names_by_sensor(sensor, band, common):
    assert common_name(band, sensor) == common
    if common:
        assert same_band(common, sensor) == same_band(band, sensor)


def test_common_names_of_written_items(tmp_path):
    item = landsat_or_hls(tmp_path, "HLS.L30.T31TCJ.a", "hls2-l30", "landsat-8", ["B05"])
    comp = s2c.composite(s2c.open_cube(item, bands=["B05"]), "median")
    (path,) = comp.to_stac(str(tmp_path / "out.json"), progress=False)
    (band,) = json.loads(Path(path).read_text())["assets"]["composite"]["bands"]
    assert band["eo:common_name"] == "nir08"
    assert band["raster:scale"] == 1e-4


@pytest.mark.parametrize(
    ("properties", "collection", "baseline", "shift"),
    [
        ({"processing:version": "05.11"}, "sentinel-2-l2a", "05.11", -1000),
        ({"processing:version": "05.11", "processing:software": {"Sen2Cor": "2.11"}}, "sentinel-2-l2a", "05.11", -1000),
        ({"processing:version": "04.08", "processing:software": {"MAJA": "4.8"}}, "sentinel-2-l2a", "", 0),
        ({"processing:version": "05.11", "processing:software": {"FORCE": "3"}}, "sentinel-2-l2a", "", np.nan),
        ({"processing:version": "4.8"}, "theia-maja", "", 0),
        ({"processing:version": "4.8"}, "sentinel-2-l2a", "", np.nan),
        ({"s2:processing_baseline": "4.00"}, "sentinel-2-l2a", "04.00", -1000),
        ({"s2:processing_baseline": 5.1}, "sentinel-2-l2a", "05.10", -1000),
        ({"s2:processing_baseline": "N0509"}, "sentinel-2-l2a", "05.09", -1000),
        ({"s2:processing_baseline": "05.09"}, "sen2like-l2f", "", np.nan),
        ({}, "sentinel-2-l2a", "", np.nan),
    ],
)
def test_baselines_are_those_of_products_of_esa(tmp_path, properties, collection, baseline, shift):
    path = write_tif(tmp_path / "B04.tif", numbers(low=2000), nodata=0)
    item = item_of("S2A_1", "2023-06-01T10:46:29Z", {"B04": path}, collection=collection, **properties)
    cube = s2c.open_cube(item, bands=["B04"])
    assert ("baseline" in cube.coords) == bool(baseline)
    assert not baseline or str(cube.baseline.item()) == baseline
    np.testing.assert_equal(cube.offset.item(), shift)


def test_an_item_of_nothing_known_is_left_alone(tmp_path):
    made = numbers(low=2000)
    path = write_tif(tmp_path / "a.tif", made, nodata=0)
    item = item_of("scene", "2023-06-01T10:46:29Z", {"index": path}, collection=None, platform=None, constellation=None)
    cube = s2c.open_cube(item, bands=["index"])
    assert np.isnan(cube.offset.item())
    np.testing.assert_array_equal(cube.values[0], made)
    assert not {"units", "scale", "offset"} & set(cube.attrs)


@pytest.mark.parametrize(
    ("dtype", "said", "known"),
    [
        ("uint16", "nan", None), ("uint16", -9999, None), ("uint16", "65535", 65535), ("uint16", "-inf", None),
        ("int16", -9999, -9999), ("int16", 65535, None), ("uint8", 0, 0), ("uint8", 256, None), ("float32", "nan", "nan"),
        ("float32", -9999, -9999), ("float32", None, None),
    ],
)  # fmt: skip
def test_nodata_of_a_catalogue_is_one_that_the_file_can_hold(tmp_path, dtype, said, known):
    made = np.full((SIZE, SIZE), 7, dtype)
    made[0] = 7 if known is None else float(known)
    path = write_tif(tmp_path / "a.tif", made)
    item = item_of("scene", "2023-06-01T10:46:29Z", {"b": path}, collection="other", platform="x", constellation="x")
    item["assets"]["b"]["raster:bands"] = [{"nodata": said}]
    cube = s2c.open_cube(item, bands=["b"])
    number = None if known is None else np.dtype(dtype).type(known).item()
    assert str(cube.attrs.get("nodata")) == str(number)
    count = s2c.composite(cube, "max", valid=s2c.Nodata()).compute()["count"].values
    assert set(count[1:].ravel().tolist()) == {1}
    assert set(count[0].tolist()) == ({1} if known is None else {0})


@pytest.mark.parametrize("form", ["raster:bands", "bands", "asset"])
def test_scale_of_each_band_in_a_catalogue(tmp_path, form):
    made = numbers(bands=2)
    path = tagged(tmp_path / "a.tif", made, (5.0, 5.0), (7.0, 7.0))
    item = item_of(
        "scene", "2023-06-01T10:46:29Z", {"image": path}, collection="other", platform="other", constellation="x"
    )
    asset = item["assets"]["image"]
    prefix = "" if form == "raster:bands" else "raster:"
    bands = [
        {"name": "a", f"{prefix}scale": 1e-4, f"{prefix}offset": -0.1, "unit": "1"},
        {"name": "t", f"{prefix}scale": 0.01, f"{prefix}offset": 0, "unit": "degC"},
    ]
    scales, offsets = np.array([1e-4, 0.01])[:, None, None], np.array([-0.1, 0])[:, None, None]
    if form == "asset":
        del asset["raster:bands"]
        asset |= {"raster:scale": 0.5, "raster:offset": 2, "bands": [{"name": "a"}, {"name": "t"}]}
        scales, offsets = 0.5, 2
    else:
        asset[form] = bands
        if form == "bands":
            del asset["raster:bands"]
        else:
            asset["eo:bands"] = [{"name": "a"}, {"name": "t"}]
    cube = s2c.open_cube(item, bands=["a", "t"], reflectance=True)
    expected = np.where(made == 0, np.nan, made * scales + offsets)
    np.testing.assert_allclose(cube.values[0], expected, rtol=1e-5, atol=1e-5)


UNNAMED = [
    {"raster:scale": 1e-4, "raster:offset": -0.1, "nodata": 0},
    {"raster:scale": 0.01, "nodata": 0},
    {"raster:scale": 2, "nodata": 0},
]


@pytest.mark.parametrize(
    ("bands", "described", "alpha"),
    [
        (UNNAMED, None, False),
        (UNNAMED, ("u", "v", "w"), False),
        (UNNAMED, None, True),
        ([{**band, "name": "same"} for band in UNNAMED], None, False),
        ([{**band, "name": name} for band, name in zip(UNNAMED, "uvw", strict=True)], None, True),
        (
            [{**band, "name": name} for band, name in zip([*UNNAMED, {}], ("u", "v", "w", "alpha"), strict=True)],
            None,
            True,
        ),
    ],
)
def test_scale_of_bands_by_their_order(tmp_path, bands, described, alpha):
    """Bands need no names, and the catalogue may or may not count the alpha band."""
    made = numbers(bands=3)
    opaque = np.full((1, SIZE, SIZE), np.iinfo("uint16").max, "uint16")
    written = np.concatenate([made, opaque]) if alpha else made
    options = {"nodata": None, "alpha": "YES", "photometric": "RGB"} if alpha else {}
    path = tagged(tmp_path / "a.tif", written, names=described, **options)
    item = item_of("scene", "2023-06-01T10:46:29Z", {"data": path}, collection="other", platform="x", constellation="x")
    del item["assets"]["data"]["raster:bands"]
    item["assets"]["data"]["bands"] = bands
    cube = s2c.open_cube(item, reflectance=True)
    physical = made * np.array([1e-4, 0.01, 2])[:, None, None] + np.array([-0.1, 0, 0])[:, None, None]
    physical[made == 0] = np.nan
    np.testing.assert_allclose(cube.values[0], physical, rtol=1e-5, atol=1e-5)


def test_a_file_of_other_bands_than_the_catalogue_says(tmp_path):
    path = tagged(tmp_path / "a.tif", numbers(bands=2))
    item = item_of("scene", "2023-06-01T10:46:29Z", {"data": path}, collection="other")
    item["assets"]["data"]["raster:bands"] = [{"scale": 0.1}] * 3
    with pytest.raises(SceneError, match=r"a\.tif has 2 band\(s\), but data should have 3"):
        s2c.open_cube(item)


@pytest.mark.parametrize(("applied", "shift"), [(True, 0), (False, -1000), (None, -1000)])
def test_what_an_item_says_of_bands_that_only_the_file_names(tmp_path, applied, shift):
    made = np.concatenate([numbers(1, 2, low=2000), np.full((1, SIZE, SIZE), 4, "uint16")])
    path = tagged(tmp_path / "a.tif", made, names=("B04", "B03", "SCL"))
    properties = {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": applied}
    item = item_of("S2A_31TCJ_20230601", "2023-06-01T10:46:29Z", {"stack": path}, **properties)
    cube = s2c.open_cube(item)
    assert cube.offset.item() == shift
    assert cube.values[0, 0, 9, 9] == int(made[0, 9, 9]) + shift
    item["assets"]["stack"] |= {"raster:scale": 0.1, "raster:bands": []}
    scaled = s2c.open_cube(item, bands=["B04", "SCL"], reflectance=True).values[0, :, 9, 9]
    np.testing.assert_allclose(scaled, [made[0, 9, 9] * 0.1, 4], rtol=1e-6)


# --- several bands in a file -------------------------------------------------------------------------------------------


@pytest.fixture
def stacked(tmp_path):
    """Files that hold reflectances and the scene classification."""
    made = np.concatenate([numbers(1, 3, low=2000), np.full((1, SIZE, SIZE), 4, "uint16")])
    made[3, 20:40] = 9
    names = ("B02", "B03", "B04", "SCL")
    return [tagged(tmp_path / f"x_2023060{day}.tif", made, names=names) for day in (1, 2, 3)], made


def test_a_mask_band_beside_the_data_is_left_out_with_a_word_and_found_by_rules(stacked, caplog):
    paths, made = stacked
    with caplog.at_level(logging.WARNING):
        cube = s2c.open_cube(paths)
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "mask bands are not observations and are left out: SCL"
    ]
    assert cube.band.values.tolist() == ["B02", "B03", "B04"]
    np.testing.assert_array_equal(cube.values[0], made[:3])
    comp = s2c.composite(cube, "median", valid=[s2c.Nodata(), SCL()]).compute()
    expected = np.where((made[:3] == 0).any(0) | (made[3] == 9), 0, 3)
    np.testing.assert_array_equal(comp["count"], expected)
    assert s2c.open_cube(paths, bands=["B02", "SCL"]).band.values.tolist() == ["B02", "SCL"]


@pytest.mark.parametrize(
    "name", ["SCL", "Fmask", "QA_PIXEL", "QA60", "pixel_qa", "oa_fmask", "dataMask", "CLM", "CLDPRB", "cloud_mask"]
)
def test_mask_bands_are_known_by_name(tmp_path, name):
    made = numbers(1, 2)
    paths = [tagged(tmp_path / f"x_2023060{d}.tif", made, names=("B02", name)) for d in (1, 2)]
    assert s2c.open_cube(paths).band.values.tolist() == ["B02"]
    assert s2c.open_cube(paths, bands=[name]).sizes["band"] == 1
    alone = [tagged(tmp_path / f"y_2023060{d}.tif", made[:1], names=(name,)) for d in (1, 2)]
    assert s2c.open_cube(alone).band.values.tolist() == [name], "a cube of masks alone is one"


def test_harmonise_and_reflectance_of_files_of_several_bands(stacked):
    paths, made = stacked
    cube = s2c.open_cube(paths)
    assert np.isnan(cube.offset.values).all()
    named = {"x_20230601": -1000, "x_20230602": 0, "x_20230603": -1000}
    bands = ["B02", "SCL"]
    shifted = s2c.open_cube(paths, bands=bands, harmonise=named)
    assert shifted.offset.values.tolist() == [-1000, 0, -1000]
    wanted = np.where(made[0] == 0, 0, np.maximum(made[0].astype(int) - 1000, 1))
    wanted[made[0] == 65535] = 65535
    np.testing.assert_array_equal(shifted.values[0, 0], wanted)
    np.testing.assert_array_equal(shifted.values[1, 0], made[0])
    np.testing.assert_array_equal(shifted.values[:, 1], np.broadcast_to(made[3], (3, SIZE, SIZE)))
    reflectances = s2c.open_cube(paths, bands=["B02"], reflectance=True, harmonise=named)
    physical = np.where(made[0] == 0, np.nan, (made[0] - 1000.0) * 1e-4)
    physical[made[0] == 65535] = 6.5535
    np.testing.assert_allclose(reflectances.values[2, 0], physical, rtol=1e-5, atol=1e-6)


def test_products_of_a_day_are_named_one_by_one(tmp_path):
    made = np.concatenate([np.full((1, SIZE, SIZE), 5000, "uint16"), np.full((1, SIZE, SIZE), 4, "uint16")])
    made[0, 0] = 65535
    names = [f"{granule}_20230601T100000" for granule in ("T31TCJ", "T31TDJ")]
    for i, name in enumerate(names):
        beside = ORIGIN @ ORIGIN.translation(SIZE * i, 0)
        tagged(tmp_path / f"{name}.tif", made, names=("B04", "SCL"), transform=beside)
    options = {"groupby": "utc_day", "harmonise": {names[0]: -1000, names[1]: 0}}
    cube = s2c.open_cube(str(tmp_path), **options)
    assert cube.band.values.tolist() == ["B04"]
    assert np.isnan(cube.offset.item()), "several"
    comp = s2c.composite(cube, "max", valid=[s2c.Nodata(), s2c.Saturated(), SCL()]).compute()
    expected = np.repeat([[4000, 5000]], SIZE, axis=1).repeat(SIZE, axis=0)
    expected[0] = 0
    np.testing.assert_array_equal(comp["composite"][0], expected)
    with pytest.raises(ParameterError, match=f"the scenes are {names[0]}, {names[1]}"):
        s2c.open_cube(str(tmp_path), groupby="utc_day", harmonise={str(cube.scene.values[0]): -1000})


def test_reflectance_of_an_unknown_offset_says_so(stacked, caplog):
    paths, _ = stacked
    with caplog.at_level(logging.WARNING):
        s2c.open_cube(paths, bands=["B02"], reflectance=True)
    assert "it is unknown whether the values of 3 scenes have the offset" in caplog.text


# --- names that match nothing ------------------------------------------------------------------------------------------


def two_items(tmp_path, **properties):
    items = []
    for day in (1, 2):
        path = write_tif(tmp_path / f"red{day}.tif", numbers(day), nodata=0)
        items.append(item_of(f"it{day}", f"2023-06-0{day}T10:00:00Z", {"B04": path}, **properties))
    return items


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"harmonise": {"S2_it1": -1000}}, r"harmonise= names unknown scenes: 'S2_it1'; the scenes are it1, it2"),
        ({"harmonise": {"it1": -1000, "it3": 0}}, r"'it3'; the scenes are it1, it2"),
        ({"harmonise": {"it1": -0.1, "it2": 0}}, r"harmonise=\{'it1': -0.1\}: give the whole number"),
        ({"harmonise": {"it1": "-1000", "it2": 0}}, r"harmonise=\{'it1': '-1000'\}"),
        ({"resampling": {"rde": "bilinear"}}, r"resampling= names unknown bands: 'rde'; the bands are \*, red, B04"),
        ({"resampling": {"B05": "bilinear", "*": "cubic"}}, r"'B05'; the bands are"),
        ({"resampling": {"red": "biliner"}}, "biliner"),
    ],
)  # fmt: skip
def test_names_that_match_nothing_are_refused(tmp_path, options, words):
    with pytest.raises(ParameterError, match=words):
        s2c.open_cube(two_items(tmp_path), bands=["red"], crs="EPSG:3857", resolution=14, **options)


@pytest.mark.parametrize("name", ["red", "B04", "b4", "B04_10m"])
def test_resampling_by_any_name_of_a_band(tmp_path, name):
    cube = s2c.open_cube(
        two_items(tmp_path), bands=["red"], crs="EPSG:3857", resolution=14, resampling={name: "bilinear"}
    )
    assert "bilinear" in cube.attrs["engine_reason"]


def test_the_caller_knows_better_than_the_product(tmp_path):
    items = two_items(tmp_path, **{"s2:processing_baseline": "05.09"})
    cube = s2c.open_cube(items, bands=["red"], harmonise={"it1": 0})
    assert cube.offset.values.tolist() == [0, -1000]


# --- what is saturated -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["02.14", "05.09"])
@pytest.mark.parametrize("reflectance", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"engine": "gdal"}, {"resolution": 5}, {"crs": "EPSG:32632", "resolution": 10}], ids=str
)
def test_saturated_is_what_the_files_have_so(tmp_path, baseline, reflectance, options):
    items = []
    for day in (1, 2):
        made = np.full((SIZE, SIZE), 3000, "uint16")
        made[:35] = 65535
        made[40:44] = 65534
        path = write_tif(tmp_path / f"{day}.tif", made, nodata=0)
        facts = {"s2:processing_baseline": baseline}
        items.append(item_of(f"S2A_31TCJ_2023060{day}", f"2023-06-0{day}T10:46:29Z", {"red": path}, **facts))
    cube = s2c.open_cube(items, bands=["red"], reflectance=reflectance, **options)
    raw = s2c.open_cube(items, bands=["red"], harmonise=False, **options).values[0, 0]
    for lazy_or_not in (cube, cube.compute()):
        counts = s2c.composite(lazy_or_not, "max").compute()["count"].values
        np.testing.assert_array_equal(counts, np.where((raw == 0) | (raw == 65535), 0, 2))
        everything = s2c.composite(lazy_or_not, "max", valid=()).compute()["composite"].values
        assert np.isfinite(everything[0][raw == 65535]).all()
    shares = s2c.valid_share(cube.compute())
    assert shares["valid"].values == pytest.approx(((raw != 0) & (raw != 65535)).mean())
    if reflectance:
        assert cube.attrs["saturated"] == [float(np.float32(6.5535))]


def test_saturated_pictures_of_reflectances(tmp_path):
    made = np.array([[1, 100, 254, 255]], "uint8")
    paths = [tagged(tmp_path / f"x_2023060{d}.tif", made, (0.01,), (-0.5,), ("1",)) for d in (1, 2)]
    comp = s2c.composite(s2c.open_cube(paths, reflectance=True), "max").compute()
    assert comp["count"].values.tolist() == [[2, 2, 2, 0]]
    assert comp["composite"].attrs["units"] == "1"


# --- scenes that lack a band -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("headers", ["read", "lazy"])
def test_scenes_that_lack_a_band_are_skipped(tmp_path, declared, headers):
    items = []
    for i in range(3):
        there = [band for band in ("red", "nir") if (band, i) != ("nir", 1)]
        paths = {band: write_tif(tmp_path / f"{band}{i}.tif", numbers(i), nodata=0) for band in there}
        items.append(item_of(f"it{i}", f"2023-06-0{i + 1}T10:00:00Z", paths))
        for band, asset in items[-1]["assets"].items():
            del asset["raster:bands"]
            if declared:
                asset["eo:bands"] = [{"name": band}]
    cube = s2c.open_cube(items, bands=["red", "nir"], on_error="skip", headers=headers)
    counts = s2c.composite(cube, "max").compute()["count"]
    assert cube.sizes["time"] == 3
    assert int(counts.max()) == 2
    with pytest.raises(BandError, match="it1 has no band 'nir'"):
        s2c.open_cube(items, bands=["red", "nir"], headers=headers)
    with pytest.raises(BandError, match="no band 'swir16'"):
        s2c.open_cube(items, bands=["swir16"], on_error="skip")


def test_a_job_names_scenes_of_which_a_cell_or_month_has_some(tmp_path):
    for name in ("x_20230601_B04", "x_20230701_B04"):
        write_tif(tmp_path / f"{name}.tif", numbers(low=2000), nodata=0)
    text = f"source: {tmp_path}\noutput: {tmp_path}/out.tif\nbands: [B04]\nharmonise: {{x_20230601: -1000, x_20230701: 0}}\n"
    (tmp_path / "job.yaml").write_text(text)
    job = load_job(tmp_path / "job.yaml")
    first, _ = job_scenes(job)
    with rasterio.open(first.assets[0].href) as dataset:
        raw = dataset.read().astype(int)
    comp = job_composite(job, (first,)).compute()["composite"].values
    np.testing.assert_array_equal(comp, np.where((raw == 0) | (raw == 65535), 0, np.maximum(raw - 1000, 1)))
