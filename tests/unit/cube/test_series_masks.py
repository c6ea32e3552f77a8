"""Clouds and shadows from the series: the same for any windows, counted against the truth of generated years."""

import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from functools import partial

import dask
import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from rasterio.enums import Resampling

import s2composite as s2c
from s2composite.cube import tile_masks
from s2composite.cube.masking import masks_of
from s2composite.cube.open import stack_of
from s2composite.demo import make_scenes
from s2composite.errors import BandError, ParameterError
from s2composite.pixels.temporal_mask import TemporalMask, unlike
from s2composite.runner.plan import plan
from support.morphology import peer
from support.oracles import unlike_of_pixel
from support.services import served

SIZE = 640
RULE = TemporalMask(resolution=40, grow=1)


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    """Scenes that have an overview of 20 m, and one of 40 m."""
    directory = tmp_path_factory.mktemp("season")
    make_scenes(str(directory), scenes=12, size=SIZE, seed=3, compress="deflate")
    with rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=64):
        for path in directory.glob("*_TCI.tif"):
            with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
                dataset.build_overviews([2, 4], Resampling.average)
    return directory


@pytest.fixture(autouse=True)
def _forgotten():
    """Each test evaluates its tiles itself."""
    tile_masks._TILES.clear()


def expected(directory, rule=RULE, keep=None):
    """Which observations may be used by the rule alone: whole overviews, each pixel four of the data's along a side."""
    paths = sorted(directory.glob("*_TCI.tif"))
    paths = paths if keep is None else [paths[t] for t in keep]
    values, days = [], []
    for path in paths:
        with rasterio.open(path, overview_level=1) as dataset:
            values.append(dataset.read())
        days.append(
            np.datetime64(s2c.find_scenes(str(path))[0].time.replace(tzinfo=None)).astype("M8[s]").astype(float)
        )
    values = np.stack(values)
    seen = (values > 0).all(axis=1)
    flat = [a.reshape(len(values), -1) for a in (values.min(1), values.sum(1, dtype=np.uint16) // 3, seen)]
    bad = unlike(flat[0], flat[1].astype(np.uint8), flat[2], np.array(days) / 86400, rule).reshape(seen.shape)
    bad |= peer(bad, [("opening", 1), ("dilation", rule.grow)])
    few = (seen & ~bad).sum(axis=0) < rule.min_left
    return (~bad | few).repeat(4, 1).repeat(4, 2)


def observed(directory):
    pixels = []
    for path in sorted(directory.glob("*_TCI.tif")):
        with rasterio.open(path) as dataset:
            pixels.append(dataset.read())
    return (np.stack(pixels) > 0).all(axis=1)


def counts(cube, *rules, **how):
    return s2c.composite(cube, valid=[s2c.Nodata(), *rules], **how).compute()["count"].values


@pytest.mark.parametrize(("chunks", "side"), [(100, 512), (512, 64), ((64, 640), 96)])
def test_windows_tiles_areas_and_threads_never_show(season, chunks, side, monkeypatch):
    monkeypatch.setattr(tile_masks.SeriesMask, "SIDE", side)
    cube = s2c.open_cube(season, chunks=chunks)
    wanted = (expected(season) & observed(season)).sum(axis=0)
    with dask.config.set(scheduler="threads"):
        np.testing.assert_array_equal(counts(cube, RULE), wanted)
        part = {"y": slice(101, 307), "x": slice(33, 500)}
        np.testing.assert_array_equal(counts(cube.isel(part), RULE), wanted[tuple(part.values())])
    assert wanted.sum() < 0.9 * observed(season).sum()
    monthly = s2c.composite(cube, valid=[s2c.Nodata(), RULE], period="month").compute()
    assert int(monthly["count"].sum()) == wanted.sum()


def in_threads(tile, evaluate, number=2):
    """What became of each thread that needs the same scenes of a tile."""
    with ThreadPoolExecutor(number) as pool:
        waiting = [pool.submit(tile.fill, range(3), None, evaluate) for _ in range(number)]
        return [one.exception() for one in waiting]


def planes(scenes):
    return [(k, np.ones((1, 8, 8), bool), False) for k in scenes]


def test_threads_that_need_a_tile_evaluate_it_together():
    tile, all_of_them = tile_masks._TileBits(), threading.Barrier(3)
    evaluated, made = [], []

    def call(i):
        all_of_them.wait(60)
        made.append((i, threading.get_ident()))

    def evaluate(scenes, share):
        evaluated.append(list(scenes))
        share(partial(call, i) for i in range(3))
        share(partial(call, i) for i in range(3, 9))
        assert sorted(i for i, _ in made) == list(range(9))
        return planes(scenes)

    assert in_threads(tile, evaluate, 3) == [None] * 3
    assert evaluated == [[0, 1, 2]]
    assert len({thread for _, thread in made}) == 3


@pytest.mark.parametrize("fails", ["the thread that evaluates", "a thread that helps"])
def test_a_call_that_fails_is_made_by_another_thread(fails):
    tile, both, evaluating, number, made = tile_masks._TileBits(), threading.Barrier(2), [], itertools.count(), []

    def call(i):
        if next(number) < 2:
            both.wait(60)
            if (threading.get_ident() == evaluating[0]) == (fails == "the thread that evaluates"):
                raise ZeroDivisionError
        made.append((len(evaluating), i))

    def evaluate(scenes, share):
        evaluating.append(threading.get_ident())
        share(partial(call, i) for i in range(5))
        return planes(scenes)

    assert sorted(map(type, in_threads(tile, evaluate)), key=str) == [type(None), ZeroDivisionError]
    assert sorted(tile.planes) == [0, 1, 2]
    # one that has failed itself evaluates nothing, so the other begins again
    times = 2 if fails == "the thread that evaluates" else 1
    assert len(evaluating) == times
    assert sorted(i for time, i in made if time == times) == list(range(5))
    assert not any((tile.claimed, tile.todo, tile.running))


def test_some_of_the_scenes_are_a_series_of_their_own(season):
    cube = s2c.open_cube(season).isel(time=[0, 2, 3, 7, 8, 11])
    wanted = (expected(season, keep=[0, 2, 3, 7, 8, 11]) & observed(season)[[0, 2, 3, 7, 8, 11]]).sum(axis=0)
    np.testing.assert_array_equal(counts(cube, RULE), wanted)


def test_a_pixel_that_would_keep_too_few_keeps_all(season):
    cube = s2c.open_cube(season)
    every = TemporalMask(resolution=40, min_left=12)
    np.testing.assert_array_equal(counts(cube, every), observed(season).sum(axis=0))
    none = TemporalMask(resolution=40, grow=3, min_left=0)
    np.testing.assert_array_equal(counts(cube, none), (expected(season, none) & observed(season)).sum(axis=0))


@pytest.mark.slow
def test_other_grids_resolutions_and_rules_beside_it(season):
    cube = s2c.open_cube(season)
    (mask,) = masks_of(stack_of(cube)[0], [TemporalMask()])
    assert mask.mask.stack.geobox.resolution.x == 80  # of 10 m, whether files have that or not
    moved = s2c.open_cube(season, crs="EPSG:3035", resolution=10, chunks=100)
    some, every = counts(moved, RULE), counts(moved)
    assert 0.4 < some.sum() / every.sum() < 0.95
    np.testing.assert_array_equal(counts(s2c.open_cube(season, crs="EPSG:3035", resolution=10, chunks=640), RULE), some)
    both = counts(cube, RULE, s2c.Mask(lambda pixels: pixels[0] < 120), s2c.SwathEdge(2))
    assert (both <= counts(cube, RULE)).all()


def test_numbers_have_to_mean_something(tmp_path):
    assets = ("B02", "B03", "B04", "B08", "TCI")
    make_scenes(str(tmp_path), scenes=10, size=256, seed=1, assets=assets, compress="deflate")
    bands = ["B04", "B03", "B02"]
    raw, more = s2c.open_cube(tmp_path, bands=bands), s2c.open_cube(tmp_path, bands=["B08", *bands])
    same = counts(raw, TemporalMask())
    np.testing.assert_array_equal(counts(s2c.open_cube(tmp_path, bands=bands, reflectance=True), TemporalMask()), same)
    np.testing.assert_array_equal(counts(more, TemporalMask()), counts(more, TemporalMask(white=3558, bands=bands)))
    pictures = counts(s2c.open_cube(tmp_path, bands=["TCI"]), TemporalMask())
    assert abs(pictures.astype(int) - same).mean() < 0.5  # but for rounding and what is brighter than white
    with pytest.raises(BandError, match="X"):
        s2c.composite(raw, valid=TemporalMask(bands=["X"]))


def test_landsat_is_compared_at_60_m_as_reflectance(tmp_path):
    """Surface reflectance of Collection 2, whose numbers have a scale and an offset, pixel by pixel in plain Python."""
    rng, days = np.random.default_rng(5), [date(2023, 5, 2) + timedelta(8 * i) for i in range(12)]
    sky = (
        rng.random((len(days), 8, 6)).repeat(8, 1).repeat(8, 2)
    )  # clouds, and shadows, which are a share of the ground
    place = {"transform": Affine(30, 0, 3e5, 0, -30, 4.9e6), "crs": "EPSG:32631", "nodata": 0, "dtype": "uint16"}
    half = []
    for day, above in zip(days, sky, strict=True):
        name = f"LC08_L2SP_198030_{day:%Y%m%d}_{day:%Y%m%d}_02_T1_SR_B"
        for band, ground in ((4, 0.06), (3, 0.07), (2, 0.05)):
            reflectance = np.where(above < 0.2, 0.3, np.where(above > 0.9, 0.4 * ground, ground))
            reflectance += rng.normal(0, 0.004, above.shape)
            numbers = np.rint((reflectance + 0.2) / 0.0000275).astype("uint16")
            numbers[:5, :9] = 0
            path = tmp_path / f"{name}{band}.TIF"
            with rasterio.open(path, "w", driver="GTiff", height=64, width=48, count=1, tiled=True, **place) as dataset:
                dataset.write(numbers, 1)
                dataset.build_overviews([2], Resampling.nearest)
            with rasterio.open(path, overview_level=0) as dataset:
                half.append(dataset.read(1))
    half = np.stack(half).reshape(len(days), 3, 32, 24)
    bits = np.rint(np.clip((half * 0.0000275 - 0.2) / 0.3558 * 255, 1, 1023)).astype(np.uint16)
    least, grey, seen = bits.min(1), bits.sum(1, dtype=int) // 3, (half > 0).all(1)
    bad, days = np.zeros(seen.shape, bool), [float((day - date(1970, 1, 1)).days) for day in days]
    for y, x in np.ndindex(bad.shape[1:]):
        bad[:, y, x] = unlike_of_pixel(least[:, y, x], grey[:, y, x], seen[:, y, x], days, TemporalMask())
    bad |= peer(bad, [("opening", 1), ("dilation", 4)])
    valid = ~bad | ((seen & ~bad).sum(0) < 2)
    assert 0.2 < (~valid).mean() < 0.9
    cube = s2c.open_cube(tmp_path, bands=["red", "green", "blue"])
    observed = (cube.values > 0).all(1)
    np.testing.assert_array_equal(counts(cube, TemporalMask()), (valid.repeat(2, 1).repeat(2, 2) & observed).sum(0))


def test_numbers_of_unknown_meaning_and_too_many_bands_are_refused(tmp_path):
    place = {"transform": Affine(10, 0, 3e5, 0, -10, 4.9e6), "crs": "EPSG:32631", "nodata": 0}
    for day in (1, 6):
        with rasterio.open(
            tmp_path / f"x_202306{day:02}.tif",
            "w",
            driver="GTiff",
            width=64,
            height=64,
            count=4,
            dtype="uint16",
            **place,
        ) as dataset:
            dataset.write(np.full((4, 64, 64), 900, "uint16"))
    cube = s2c.open_cube(tmp_path)
    with pytest.raises(BandError, match="looks at red, green and blue"):
        s2c.composite(cube, valid=TemporalMask())
    with pytest.raises(ParameterError, match=r"say which is a reflectance of 0\.3558 with white="):
        s2c.composite(cube, valid=TemporalMask(bands=[1, 2, 3]))
    assert counts(cube, TemporalMask(bands=[1, 2, 3], white=3558)).min() == 2


def test_a_file_that_is_damaged_costs_its_scene_and_no_other(season, tmp_path):
    for path in season.glob("*.tif"):
        os.link(path, tmp_path / path.name)
    broken = sorted(tmp_path.glob("*.tif"))[5]
    data = broken.read_bytes()
    broken.unlink()
    with rasterio.open(sorted(season.glob("*.tif"))[5], overview_level=1):
        broken.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    cube = s2c.open_cube(tmp_path, on_error="skip")
    comp = s2c.composite(cube, valid=[s2c.Nodata(), RULE]).compute()
    rest = [t for t in range(12) if t != 5]
    others = counts(s2c.open_cube(season).isel(time=rest), RULE)
    assert (comp["read_status"].values[5] == 2).any()
    assert abs(comp["count"].values.astype(int) - others).mean() < 1
    with pytest.raises(s2c.S2CompositeError, match=s2c.find_scenes(str(broken))[0].id):
        counts(s2c.open_cube(tmp_path), RULE)


def test_jobs_plans_and_shares_know_it(season, tmp_path):
    job = {"source": str(season), "output": str(tmp_path / "a.tif"), "valid": ["nodata"]}
    plain = plan(job).task_memory
    job["valid"].append({"temporal_mask": {"resolution": 40, "grow": 1}})
    assert plan(job).task_memory > plain + tile_masks._KEPT_BYTES
    cube = s2c.open_cube(season)
    shares = s2c.valid_share(cube, [s2c.Nodata(), RULE])["valid"].compute()
    np.testing.assert_allclose(shares, (expected(season) & observed(season)).mean(axis=(1, 2)))


@pytest.mark.slow
def test_workers_give_the_same_bytes(season, client_of_test):
    """Two processes with tiles of their own, and one thread here."""
    comp = s2c.composite(s2c.open_cube(season, chunks=100), valid=[s2c.Nodata(), RULE])
    there = comp.compute()
    with dask.config.set(scheduler="synchronous"):
        here = comp.compute()
    for layer in ("composite", "count", "source"):
        assert there[layer].values.tobytes() == here[layer].values.tobytes()
    np.testing.assert_array_equal(there["count"].values, (expected(season) & observed(season)).sum(axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["command", "service"])
def test_a_job_makes_the_same_files(season, tmp_path, way):
    job = {
        "source": str(season),
        "output": "median.tif",
        "layers": ["composite", "count"],
        "chunks": 128,
        "valid": ["nodata", {"temporal_mask": {"resolution": 40, "grow": 1}}],
    }
    if way == "command":
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job | {"cluster": {"workers": 2}}))
        command = [sys.executable, "-c", "from s2composite.cli import main; main()", "run", "job.yaml"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        folder = tmp_path
    else:
        (tmp_path / "store").mkdir()
        with served(tmp_path / "run", read=[str(season)], storage=str(tmp_path / "store")) as service:
            number = service.post("/jobs", job).json()["id"]
            facts = service.job(number, "complete", "failed")
            assert facts["state"] == "complete", service.get(f"/jobs/{number}/log").text
        folder = tmp_path / "store" / number
    here = s2c.composite(s2c.open_cube(season), valid=[s2c.Nodata(), RULE]).compute()
    for name, layer in (("median.tif", "composite"), ("median_count.tif", "count")):
        with rasterio.open(folder / name) as dataset:
            np.testing.assert_array_equal(dataset.read(), here[layer].values.reshape(dataset.count, SIZE, SIZE))
    np.testing.assert_array_equal(here["count"].values, (expected(season) & observed(season)).sum(axis=0))


def picked(cube, truth, valid):
    """Share of the composite's pixels that are of a cloud, haze or shadow; and of those that have no value."""
    source = s2c.composite(cube, valid=valid).compute()["source"].values
    of = np.take_along_axis(truth, source[None].clip(0), axis=0)[0]
    return (np.isin(of, (3, 8, 9, 10)) & (source >= 0)).mean(), (source < 0).mean()


@pytest.mark.parametrize(
    ("scenes", "size"),
    [(24, 384), pytest.param(72, 1024, marks=pytest.mark.slow), pytest.param(216, 768, marks=pytest.mark.slow)],
)
def test_a_quarter_of_clouds_haze_and_shadows_is_left_in_composites_of_generated_years(scenes, size, tmp_path):
    make_scenes(str(tmp_path), scenes=scenes, size=size, assets=("TCI", "SCL"))
    truth = []
    for path in sorted(tmp_path.glob("*_SCL.tif")):
        with rasterio.open(path) as dataset:
            truth.append(dataset.read(1).repeat(2, 0).repeat(2, 1))
    cube = s2c.open_cube(tmp_path, bands=["TCI"])
    before, _ = picked(cube, np.stack(truth), None)
    after, empty = picked(cube, np.stack(truth), ["nodata", "saturated", TemporalMask()])
    assert before > 0.03
    assert after < before / 4
    assert empty < 0.001


def test_scenes_that_are_compared_with_none_are_named(season, caplog):
    cube = s2c.open_cube(season)
    s2c.composite(cube, valid=[RULE])
    assert not caplog.messages, "each of the twelve is compared with others"
    s2c.composite(cube.isel(time=slice(0, 2)), valid=[TemporalMask(days=300)])
    (said,) = caplog.messages
    assert "none for 2 of 2" in said
    assert str(cube["scene"].values[0]) in said
    assert "days=" in said
    caplog.clear()
    s2c.composite(cube.isel(time=[0, 11]), valid=[TemporalMask(days=3)])
    assert "none for 2 of 2" in caplog.messages[0]
