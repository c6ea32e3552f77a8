"""Screening: shares compared with a count of pixels, and which scenes are kept."""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scipy.ndimage as ndi
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import s2composite as s2c
from s2composite.cube.result import _times_coarser, coarser
from s2composite.demo import make_items, make_scenes
from s2composite.errors import ParameterError
from s2composite.pixels.mask_bands import SCL
from support.morphology import CLOUDS, expected_valid
from support.rasters import ORIGIN, write_tif


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    directory = tmp_path_factory.mktemp("season")
    make_scenes(str(directory), scenes=6, size=600, seed=3, assets=("TCI", "SCL"), compress="deflate")
    return directory


def counted(pixels):
    observed = (pixels != 0).all(1).mean((1, 2))
    return observed, ((pixels != 0) & (pixels != 255)).all(1).mean((1, 2))


@pytest.mark.parametrize("how", ["files", "memory", "lazy"])
def test_shares_are_counts_of_pixels(season, how):
    cube = s2c.open_cube(season, bands=["TCI"], chunks=200)
    held = {"files": cube, "memory": cube.compute(), "lazy": cube.compute().chunk(time=2, y=170)}[how]
    shares = s2c.valid_share(held).compute()
    observed, valid = counted(cube.values)
    np.testing.assert_allclose(shares["observed"], observed)
    np.testing.assert_allclose(shares["valid"], valid)
    assert shares["scene"].values.tolist() == cube["scene"].values.tolist()


@pytest.mark.parametrize("chunks", [150, 600])
def test_shares_obey_mask_bands_and_masks(season, chunks):
    cube = s2c.open_cube(season, bands=["TCI"], chunks=chunks)
    land = xr.DataArray(np.arange(600)[:, None] + np.zeros(600) < 250, dims=("y", "x"))
    rule = SCL(CLOUDS, cleanup=[("opening", 2), ("dilation", 3)])
    shares = s2c.valid_share(cube, [s2c.Nodata(), rule, land]).compute()
    usable = expected_valid(season) & (cube.values > 0).all(1) & land.values
    np.testing.assert_allclose(shares["valid"], usable.mean((1, 2)))


def test_scenes_below_min_valid_are_left_out_and_logged(season, caplog):
    cube = s2c.open_cube(season, bands=["TCI"])
    rule = SCL(CLOUDS)
    shares = s2c.valid_share(s2c.open_cube(season, bands=["TCI"], resolution=160), [s2c.Nodata(), rule])["valid"].values
    limit = float(np.sort(shares)[2:4].mean())
    with caplog.at_level(logging.INFO):
        chosen = s2c.select_scenes(cube, min_valid=limit, valid=[s2c.Nodata(), rule])
    assert chosen["scene"].values.tolist() == cube["scene"].values[shares >= limit].tolist()
    assert 0 < chosen.sizes["time"] < 6
    for name in cube["scene"].values[shares < limit]:
        assert str(name) in caplog.text
    again = s2c.composite(chosen).compute()
    assert again.dataset.sizes["scene"] == chosen.sizes["time"]
    part = cube.isel(y=slice(100, 500), x=slice(0, 300))
    assert s2c.select_scenes(part, min_valid=0.0).sizes["time"] == 6
    assert s2c.select_scenes(cube.compute(), min_valid=0.01).sizes["time"] <= 6


def test_scenes_in_any_order_are_each_judged_by_their_own_pixels(season):
    cube = s2c.open_cube(season, bands=["TCI"])
    order = [4, 0, 5, 2]
    limit = float(np.sort(s2c.valid_share(coarser(cube))["valid"].values[order])[1:3].mean())
    chosen = s2c.select_scenes(cube.isel(time=order), min_valid=limit)
    assert chosen["scene"].values.tolist() == [
        name for name in cube["scene"].values[order] if name in s2c.select_scenes(cube, min_valid=limit)["scene"].values
    ]
    assert chosen.sizes["time"] == 2
    for reducer, given in (
        ("latest", {}),
        ("mean", {"period": "5D"}),
        ("mean", {"max_count": 1, "prefer": "earliest"}),
    ):
        comp = s2c.composite(cube.isel(time=order), reducer, **given)
        ordered = s2c.composite(cube.isel(time=sorted(order)), reducer, **given)
        np.testing.assert_array_equal(comp.preview(100)["composite"], ordered.preview(100)["composite"])
    assert comp.dropped()["scene"].values.tolist() == cube["scene"].values[order].tolist()


def test_cloud_cover_is_a_fact_of_the_metadata(season):
    cube = s2c.open_cube(season, bands=["TCI"])
    with pytest.raises(ParameterError, match="STAC"):
        s2c.select_scenes(cube, max_cloud_cover=50)
    known = cube.assign_coords(cloud_cover=("time", [10.0, 90.0, np.nan, 50.0, 51.0, 0.0]))
    assert s2c.select_scenes(known, max_cloud_cover=50).sizes["time"] == 4


@pytest.mark.parametrize("groupby", [None, "utc_day"])
def test_cloud_cover_comes_with_stac_items(tmp_path, groupby):
    make_scenes(tmp_path / "files", scenes=3, size=64, assets=["TCI"])
    items = [json.loads(Path(item).read_text()) for item in make_items(tmp_path / "files", tmp_path / "items")]
    for item, cover in zip(items, [10.0, "unknown", 60], strict=True):
        item["properties"]["eo:cloud_cover"] = cover
        item["assets"]["TCI"]["href"] = str(tmp_path / "items" / item["assets"]["TCI"]["href"])
    second = copy.deepcopy(items[2])  # another granule of the day
    second["id"], second["properties"]["eo:cloud_cover"] = "T31TDJ_other", 20
    second["properties"]["grid:code"] = "MGRS-31TDJ"
    cube = s2c.open_cube([*items, second], groupby=groupby)
    covers = [10, np.nan, 40] if groupby else [10, np.nan, 60, 20]
    np.testing.assert_array_equal(cube["cloud_cover"], covers)
    assert s2c.select_scenes(cube, max_cloud_cover=50).sizes["time"] == 3


@pytest.mark.parametrize(("limits", "words"), [({"min_valid": 2}, "0 to 1"), ({"max_cloud_cover": -1}, "percent")])
def test_limits_that_make_no_sense(season, limits, words):
    with pytest.raises(ParameterError, match=words):
        s2c.select_scenes(s2c.open_cube(season, bands=["TCI"]), **limits)
    with pytest.raises(ParameterError, match="none of the 6 scenes"):
        s2c.select_scenes(s2c.open_cube(season, bands=["TCI"]), min_valid=1.0, valid=s2c.ValueRange(254, 254))


@pytest.mark.parametrize("resolution", [None, 160, 120, 30])
def test_coarse_shares_exclude_pixels_outside_the_area(tmp_path, resolution):
    for day in (1, 2):
        write_tif(tmp_path / f"T31TCJ_2023070{day}T104629_TCI.tif", np.full((3, 100, 100), day, "uint8"), block=128)
    cube = s2c.open_cube(tmp_path)
    look = coarser(cube, resolution)
    assert (s2c.valid_share(look, s2c.Nodata())["observed"].values == 1).all()
    assert s2c.select_scenes(cube, min_valid=1, valid=s2c.Nodata(), resolution=resolution).sizes["time"] == 2
    assert (s2c.composite(cube, valid=s2c.Nodata()).preview(33)["count"].values == 2).all()


@pytest.mark.parametrize(("size", "times"), [(100, 1), (511, 1), (600, 2), (1024, 4), (10980, 16)])
def test_small_areas_use_a_finer_resolution(size, times):
    assert _times_coarser(size) == times


def test_uncovered_pixels_are_never_valid(tmp_path):
    """Granules that overlap in part: the expected share follows from their outlines."""
    for t, left in enumerate((0, 30, 400)):
        array = np.full((60, 60), 9, "uint8")
        array[:, :6] = 0
        place = ORIGIN @ Affine.translation(left, 0)
        write_tif(tmp_path / f"S{t}_2023060{t + 1}_B04.tif", array, transform=place, nodata=0)
    area = GeoBox((60, 120), ORIGIN, "EPSG:32631")
    cube = s2c.open_cube(tmp_path, geobox=area, chunks=50)
    for rules in ((), s2c.ValueRange(high=200), s2c.Saturated()):
        shares = s2c.valid_share(cube, rules)
        assert shares["valid"].values.tolist() == [0.5, 0.5, 0.0]
        assert shares["observed"].values.tolist() == [0.45, 0.45, 0.0]
        kept = s2c.select_scenes(cube, min_valid=0.4, valid=rules, resolution=10)
        assert kept.sizes["time"] == 2
    shares = s2c.valid_share(s2c.open_cube(tmp_path, geobox=area, chunks=50, groupby="utc_day"), ())
    assert shares["valid"].values.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("rule", [SCL(), s2c.TemporalMask(), s2c.Mask(len)])
@pytest.mark.parametrize("chunks", [None, {"y": 100}])
def test_rules_that_need_files_are_refused_where_there_are_none(season, rule, chunks):
    cube = s2c.open_cube(season, bands=["TCI"]).compute()
    with pytest.raises(ParameterError, match="need the scenes' files"):
        s2c.valid_share(cube if chunks is None else cube.chunk(chunks), [s2c.Nodata(), rule])


@pytest.mark.parametrize("held", ["files", "memory"])
def test_shares_leave_out_edges_of_the_swath(season, held):
    cube = s2c.open_cube(season, bands=["TCI"], chunks=170)
    wanted = ~near_nodata(cube.values, 5)
    shares = s2c.valid_share(cube if held == "files" else cube.compute(), s2c.SwathEdge(5)).compute()
    np.testing.assert_allclose(shares["valid"], wanted.mean((1, 2)))
    assert (shares["valid"] < shares["observed"]).any()


def near_nodata(pixels, reach):
    """Where nodata in any band is within a distance, by the distance transform of SciPy."""
    seen = (pixels > 0).all(1)
    return np.stack([ndi.distance_transform_edt(one) <= reach if not one.all() else ~one for one in seen])


def reddish(pixels):
    return pixels[0] <= pixels[2]


def bluish(pixels):
    return pixels[0] < pixels[2]


@pytest.mark.parametrize(
    "how", ["lazy", "part", *(pytest.param(how, marks=pytest.mark.slow) for how in ("computed", "monthly", "period"))]
)
def test_what_each_rule_drops_is_counted_among_observed_pixels(season, how):
    """Rules of every kind, against whole images read by rasterio and counted with NumPy."""
    cube = s2c.open_cube(season, bands=["TCI"], chunks=170)
    pixels = np.stack([rasterio.open(path).read() for path in sorted(season.glob("*_TCI.tif"))])
    rows = xr.DataArray(np.arange(600)[:, None] + np.zeros(600) < 250, dims=("y", "x"), name="rows")
    days = xr.DataArray(np.arange(6 * 600 * 600).reshape(6, 600, 600) % 7 > 0, dims=("time", "y", "x"))
    scl, edge = SCL(CLOUDS, cleanup=[("opening", 2), ("dilation", 3)]), s2c.SwathEdge(5)
    high = s2c.ValueRange(high=200)
    rules = [s2c.Nodata(), s2c.Saturated(), high, edge, scl, rows, s2c.Mask(reddish, surroundings=0), days]
    usable = {
        "nodata 0": pixels.min(1) > 0,
        "saturated 255": pixels.max(1) < 255,
        "values to 200": pixels.max(1) <= 200,
        "5 pixels around nodata 0": ~near_nodata(pixels, 5),
        "SCL": expected_valid(season),
        "mask rows": np.broadcast_to(rows.values, days.shape),
        "Mask": pixels[:, 0] <= pixels[:, 2],
        "mask without a name": days.values,
    }
    usable["all"] = np.logical_and.reduce(list(usable.values()))
    comp = s2c.composite(cube, valid=rules, period="month" if how in ("monthly", "period") else None)
    where = (slice(None), slice(None), slice(None))
    if how == "computed":
        comp = comp.compute()
    elif how == "period":
        comp = comp.period("2023-06")
    elif how == "part":
        comp, where = comp.isel(y=slice(100, 420), x=slice(31, 500, 2)), (slice(None), slice(100, 420), slice(31, 500))
    dropped = comp.dropped()
    assert dropped["rule"].values.tolist() == list(usable)
    assert dropped["scene"].values.tolist() == cube["scene"].values.tolist()
    observed = (pixels.min(1) > 0)[where]
    for name, one in usable.items():
        wanted = (~one[where] & observed).sum((1, 2)) / observed.sum((1, 2))
        np.testing.assert_allclose(dropped.sel(rule=name), wanted, err_msg=name)
        assert name == "nodata 0" or wanted.max() > 0, name


def test_what_is_dropped_can_be_estimated_from_overviews(season):
    rules = [s2c.Nodata(), s2c.ValueRange(high=150), s2c.SwathEdge(8), s2c.TemporalMask()]
    comp = s2c.composite(s2c.open_cube(season, bands=["TCI"]), valid=rules)
    exact, guess = comp.dropped(10), comp.dropped()
    assert (comp.dropped(20) == guess).all()  # 256 pixels a side, at least
    assert (exact != guess).any()
    np.testing.assert_allclose(guess, exact, atol=0.03)
    with pytest.raises(ParameterError, match="resolution"):
        comp.dropped(-1)


def test_same_rules_and_scenes_without_pixels(tmp_path):
    write_tif(tmp_path / "T31TCJ_20230701T104629_TCI.tif", np.zeros((3, 64, 64), "uint8"), block=64, nodata=0)
    write_tif(tmp_path / "T31TCJ_20230702T104629_TCI.tif", np.full((3, 64, 64), 9, "uint8"), block=64, nodata=0)
    cube = s2c.open_cube(tmp_path)
    every = xr.DataArray(np.ones((64, 64), bool), dims=("y", "x"))
    rules = [s2c.Mask(reddish), s2c.Mask(bluish), every, every & False, s2c.Nodata(9), s2c.Nodata(9)]
    dropped = s2c.composite(cube, valid=rules).dropped()
    names = dropped["rule"].values.tolist()
    assert names[0].endswith("reddish)")
    assert names[1].endswith("bluish)")
    assert names[2:] == ["mask without a name 3", "mask without a name 4", "nodata 9 5", "nodata 9 6", "all"]
    assert np.isnan(dropped[0]).all()
    assert dropped[1].values.tolist() == [0, 1, 0, 1, 1, 1, 1]
    assert s2c.composite(cube, valid=()).dropped()["rule"].values.tolist() == ["all"]
    with pytest.raises(ParameterError, match="own grid"):
        s2c.composite(cube, valid=every).dropped(20)


@pytest.mark.parametrize("held", ["memory", "chunks", "computed with"])
def test_dropped_needs_scenes(season, held):
    cube = s2c.open_cube(season, bands=["TCI"])
    if held == "computed with":
        cube = cube.where(cube > 0)
    else:
        cube = cube.compute() if held == "memory" else cube.compute().chunk(y=300)
    with pytest.raises(ParameterError, match=r"valid_share\(cube, rule\)"):
        s2c.composite(cube).dropped()
    with pytest.raises(ParameterError, match="open_cube"):
        s2c.Composite(s2c.composite(cube).dataset).dropped()
