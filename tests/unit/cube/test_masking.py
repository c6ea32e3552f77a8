"""Mask bands: at their own resolution, cleaned with the pixels around a window, the same for any chunks."""

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.errors import BandError, ParameterError
from s2composite.pixels.mask_bands import SCL
from support.morphology import CLOUDS, expected_valid, peer
from support.rasters import ORIGIN, write_tif
from support.stac_items import item_of


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    directory = tmp_path_factory.mktemp("season")
    make_scenes(str(directory), scenes=6, size=600, seed=3, assets=("TCI", "SCL"), compress="deflate")
    return directory


def test_a_mask_at_20_m_over_10_m_equals_scipy_on_the_whole(season):
    cube = s2c.open_cube(season, bands=["TCI"])
    rule = SCL(CLOUDS, cleanup=[("opening", 2), ("dilation", 3)])
    comp = s2c.composite(cube, valid=[s2c.Nodata(), rule]).compute()
    pixels, valid = cube.values, expected_valid(season)
    usable = valid & (pixels > 0).all(1)
    np.testing.assert_array_equal(comp["count"], usable.sum(0))
    masked = cube.copy(data=np.where(valid[:, None], pixels, 0))
    np.testing.assert_array_equal(comp["composite"], s2c.composite(masked, valid=s2c.Nodata())["composite"])
    assert int(comp["count"].min()) < int(comp["count"].max())


@pytest.mark.parametrize("chunks", [100, 170, 512, (64, 600)])
def test_result_does_not_depend_on_chunk_borders(season, chunks):
    rule = SCL(CLOUDS, cleanup=[("opening", 2), ("dilation", 3)])
    whole = s2c.composite(s2c.open_cube(season, bands=["TCI"], chunks=600), valid=[s2c.Nodata(), rule]).compute()
    cut = s2c.composite(s2c.open_cube(season, bands=["TCI"], chunks=chunks), valid=[s2c.Nodata(), rule]).compute()
    for layer in ("composite", "count", "source"):
        np.testing.assert_array_equal(cut[layer], whole[layer])
    part = {"y": slice(101, 407), "x": slice(33, 500)}
    cropped = s2c.open_cube(season, bands=["TCI"]).isel(part)
    np.testing.assert_array_equal(
        s2c.composite(cropped, valid=[s2c.Nodata(), rule]).compute()["count"], whole["count"].isel(part)
    )


@pytest.mark.parametrize("chunks", [200, 600])
def test_area_outside_the_mask_band_does_not_grow_into_it(season, chunks):
    """The nodata class is cleaned, too: like scipy, everything outside counts as valid."""
    rule = SCL(("no data", "cloud high probability"), cleanup=[("dilation", 4)])
    comp = s2c.composite(s2c.open_cube(season, bands=["TCI"], chunks=chunks), valid=rule).compute()
    expected = []
    for path in sorted(season.glob("*_SCL.tif")):
        with rasterio.open(path) as dataset:
            (bad,) = peer(np.isin(dataset.read(1), (0, 9))[None], [("dilation", 4)])
        expected.append(np.kron(~bad, np.ones((2, 2), bool)))
    np.testing.assert_array_equal(comp["count"], np.sum(expected, axis=0))
    assert int(comp["count"][0].max()) > 0


def test_masks_without_their_band_are_an_error(season):
    cube = s2c.open_cube(season, bands=["TCI"])
    with pytest.raises(ParameterError, match="open_cube"):
        s2c.composite(cube.compute(), valid=SCL())
    with pytest.raises(BandError, match="no band 'SCL'"):
        s2c.composite(s2c.open_cube(str(season / "*_TCI.tif")), valid=SCL())


def nearest(directory, cube, opening=2, dilation=3):
    """Whole masks at 20 m, cleaned by scipy, looked up for each pixel of the cube."""
    valid = expected_valid(directory, opening, dilation)[:, ::2, ::2]
    with rasterio.open(min(directory.glob("*_SCL.tif"))) as dataset:
        inverse, crs = ~dataset.transform, dataset.crs
    x, y = np.meshgrid(cube["x"].values, cube["y"].values)
    x, y = pyproj.Transformer.from_crs(cube.rio.crs, crs, always_xy=True).transform(x, y)
    columns, rows = (np.floor(n).astype(int) for n in inverse @ (x, y))
    inside = (rows >= 0) & (rows < valid.shape[1]) & (columns >= 0) & (columns < valid.shape[2])
    return valid[:, rows.clip(0, valid.shape[1] - 1), columns.clip(0, valid.shape[2] - 1)] & inside


@pytest.mark.parametrize(
    "grid",
    [
        pytest.param({"crs": "EPSG:3035", "resolution": 10}, marks=pytest.mark.slow),
        {"resolution": 40},
        {"resolution": 160},
    ],
)
def test_mask_on_another_grid_is_cleaned_on_its_own_grid_and_sampled(season, grid, monkeypatch):
    rule = SCL(CLOUDS, cleanup=[("opening", 2), ("dilation", 3)])
    cube = s2c.open_cube(season, bands=["TCI"], **grid)
    comp = s2c.composite(cube, valid=[s2c.Nodata(), rule]).compute()
    usable = nearest(season, cube) & (cube.values > 0).all(1)
    np.testing.assert_array_equal(comp["count"], usable.sum(0))
    assert int(comp["count"].max()) > 0
    monkeypatch.setattr("s2composite.cube.masking._LARGEST_READ", 6 * 1000)
    small = s2c.composite(s2c.open_cube(season, bands=["TCI"], **grid, chunks=70), valid=[s2c.Nodata(), rule])
    np.testing.assert_array_equal(small.compute()["count"], comp["count"])


def test_masks_of_scenes_on_different_grids(season, tmp_path):
    """One scene's mask is on a different grid: the same mask, cropped and moved."""
    for path in season.glob("*.tif"):
        (tmp_path / path.name).symlink_to(path)
    odd = min(tmp_path.glob("*_SCL.tif"))
    with rasterio.open(odd) as dataset:
        values, profile = dataset.read(1), dataset.profile
    odd.unlink()
    profile.update(height=250, width=300, transform=profile["transform"] @ Affine.translation(0, 20))
    with rasterio.open(odd, "w", **profile) as dataset:
        dataset.write(values[20:270], 1)
    rule = SCL(CLOUDS)
    cube = s2c.open_cube(tmp_path, bands=["TCI"])
    comp = s2c.composite(cube, valid=[rule]).compute()
    expected = expected_valid(season, 0, 0)
    expected[0, :40] = expected[0, 540:] = False
    np.testing.assert_array_equal(comp["count"], expected.sum(0))
    odd.write_bytes(b"not a TIFF")
    skipping = s2c.open_cube(tmp_path, bands=["TCI"], on_error="skip")
    expected[0] = False
    np.testing.assert_array_equal(s2c.composite(skipping, valid=[rule]).compute()["count"], expected.sum(0))


def fmask_items(directory, collections, name, classes):
    """An item for each collection, with a band and its Fmask; pixel values 0 to 5."""
    items = []
    for t, collection in enumerate(collections):
        band = write_tif(directory / f"red{t}.tif", np.full((1, 1, 6), 500, np.uint16))
        mask = write_tif(directory / f"mask{t}.tif", np.arange(6, dtype=np.uint8).reshape(1, 1, 6), nodata=None)
        time = f"2023-06-0{t + 1}T00:00:00Z"
        item = item_of(f"scene{t}", time, {"red": band, name: mask}, collection=collection, platform="any")
        item["properties"].pop("constellation")
        if classes:
            listed = [{"value": value, "name": what} for what, value in classes.items()]
            item["assets"][name]["classification:classes"] = listed
        items.append(item)
    return items


CFMASK = {"clear": 0, "water": 1, "cloud_shadow": 2, "snow": 3, "cloud": 4}
ODC = {"nodata": 0, "clear": 1, "cloud": 2, "cloud_shadow": 3, "snow": 4, "water": 5}


@pytest.mark.parametrize(
    ("collections", "name", "classes", "expected"),
    [
        (["ga_s2am_ard_3"], "oa_fmask", None, [1, 4, 5]),
        (["ga_ls8c_ard_3", "ga_s2bm_ard_3"], "oa_fmask", None, [1, 4, 5]),
        (["ga_ls9c_ard_3"], "fmask", None, [1, 4, 5]),
        (["own"], "fmask", ODC, [1, 4, 5]),
        (["own"], "Fmask", CFMASK, [0, 1, 3]),
        (["own"], "Fmask", None, "nothing says"),
        (["landsat-c2l2-sr"], "Fmask", None, "nothing says"),
        (["HLSL30.v2.0"], "Fmask", None, "use QABits.'hls'"),
        (["hls2-s30"], "Fmask", None, "use QABits.'hls'"),
        (["ga_s2am_ard_3", "hls2-s30"], "fmask", None, "different codings"),
    ],
)
def test_items_say_the_coding_of_fmask(tmp_path, collections, name, classes, expected):
    """Before any pixel is read, independent of pixel values."""
    cube = s2c.open_cube(fmask_items(tmp_path, collections, name, classes), bands=["red"])
    if isinstance(expected, str):
        with pytest.raises(ParameterError, match=expected):
            s2c.composite(cube, valid=s2c.Fmask(band=name))
        return
    for rule in (s2c.Fmask(band=name), s2c.Fmask()):  # oa_fmask is found by the usual name, too
        count = s2c.composite(cube, valid=rule)["count"].values.ravel()
        np.testing.assert_array_equal(count, len(collections) * np.isin(np.arange(6), expected))
        said = s2c.composite(cube, valid=["nodata", rule]).dataset.attrs["rules"]
        assert said.endswith(f"Fmask {'cfmask' if classes is CFMASK else 'odc'}(cloud, shadow)")


@pytest.mark.parametrize("days", ["each", "fused"])
@pytest.mark.parametrize("reducer", ["median", "latest"])
def test_a_mask_that_cannot_be_read_is_named_and_costs_its_scene_the_block(days, reducer, tmp_path):
    """A tile of one scene's classes is damaged; the mask is at twice the data's pixel size, in tiles of 64."""
    rng = np.random.default_rng(3)
    for t in range(3):
        name = f"T31TCJ_2023060{1 if days == 'fused' else t + 1}T10{t}629"
        write_tif(tmp_path / f"{name}_B04.tif", rng.integers(1, 200, (1, 256, 256)).astype("uint8"), block=64)
        place = ORIGIN @ Affine.scale(2)
        write_tif(tmp_path / f"{name}_SCL.tif", np.full((1, 128, 128), 4, "uint8"), transform=place, block=64)
    damaged = sorted(tmp_path.glob("*_SCL.tif"))[1]
    with rasterio.open(damaged) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1))
        size = int(dataset.get_tag_item("BLOCK_SIZE_1_0", "TIFF", bidx=1))
    data = bytearray(damaged.read_bytes())
    data[start : start + size] = bytes(size)
    damaged.write_bytes(data)
    groups = {"groupby": "solar_day"} if days == "fused" else {}
    cube = s2c.open_cube(tmp_path, bands=["B04"], on_error="skip", chunks=128, **groups)
    comp = s2c.composite(cube, reducer, valid=[SCL()])
    made = comp.dataset.compute()
    expected = np.full((256, 256), 1 if days == "fused" else 3)
    expected[:128, 128:] -= days == "each"  # one of the others has the day
    np.testing.assert_array_equal(made["count"], expected)
    if reducer == "median" or days == "fused":
        failed = np.argwhere(made["read_status"].values == 2).tolist()
        assert failed == [[0 if days == "fused" else 1, 0, 1]]
    strict = s2c.open_cube(tmp_path, bands=["B04"], chunks=128, **groups)
    with pytest.raises(s2c.S2CompositeError, match=rf"scene T31TCJ_.*{damaged.name}"):
        s2c.composite(strict, "median", valid=[SCL()]).compute()
