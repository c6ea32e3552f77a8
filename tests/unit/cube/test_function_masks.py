"""Masks by a function: the same for any windows and workers, from overviews, cleaned, and errors that name the scene."""

import os
import re
import sys
from functools import partial

import dask
import numpy as np
import pytest
import rasterio

import s2composite as s2c
from s2composite.cube import tile_masks
from s2composite.demo import make_scenes
from s2composite.errors import BandError, ParameterError, SceneError
from s2composite.pixels.morphology import apply_steps
from s2composite.runner.plan import plan
from s2composite.storage.files import filesystem
from support.storage_servers import CREDENTIALS, gcs_server, s3_server

SIZE = 520


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    directory = tmp_path_factory.mktemp("season")
    make_scenes(str(directory), scenes=5, size=SIZE, seed=3, assets=("TCI", "SCL"), compress="deflate")
    return directory


@pytest.fixture(autouse=True)
def _forgotten():
    """Each test evaluates its tiles itself."""
    tile_masks._TILES.clear()


def dull(pixels, limit=150):
    return pixels.max(axis=0) < limit


def brighter_than_around(pixels):
    """Uses three pixels around each pixel."""
    grey = np.pad(pixels.sum(axis=0, dtype=np.int32), 3, mode="edge")
    around = sum(np.roll(grey, (dy, dx), (0, 1)) for dy in range(-3, 4) for dx in range(-3, 4))[3:-3, 3:-3]
    return (pixels.sum(axis=0) * 49 < around * 1.1).astype(np.uint8) + 7


def classes(pixels):
    return pixels[0]


def files(directory, asset="TCI", level=None):
    options = {} if level is None else {"overview_level": level}
    for path in sorted(directory.glob(f"*_{asset}.tif")):
        with rasterio.open(path, **options) as dataset:
            yield dataset.read()


def counts(cube, *rules, **how):
    return s2c.composite(cube, valid=[s2c.Nodata(), *rules], **how).compute()["count"].values


def observed(directory):
    return np.stack([(pixels > 0).all(axis=0) for pixels in files(directory)])


@pytest.mark.parametrize(
    ("side", "chunks"),
    [
        (128, 130), (1024, 512), (1024, (64, 520)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(128, 512), (128, (64, 520)), (1024, 130)]),
    ],
)  # fmt: skip
def test_result_does_not_depend_on_windows_or_tiles(season, chunks, side, monkeypatch):
    """Tiles of another size give the same result if their surroundings are as large as the function needs."""
    monkeypatch.setattr(s2c.Mask, "side", side)
    steps = (("opening", 1), ("dilation", 2))
    rule = s2c.Mask(brighter_than_around, surroundings=3, classes=[7], cleanup=steps)
    valid = ~apply_steps(np.stack([brighter_than_around(p) == 7 for p in files(season)]), steps)
    expected = (valid & observed(season)).sum(axis=0)
    cube = s2c.open_cube(season, bands=["TCI"], chunks=chunks)
    np.testing.assert_array_equal(counts(cube, rule), expected)
    part = {"y": slice(101, 307), "x": slice(33, 300)}
    np.testing.assert_array_equal(counts(cube.isel(part), rule), expected[tuple(part.values())])
    few = counts(cube.isel(time=[1, 3]), rule)
    np.testing.assert_array_equal(few, (valid & observed(season))[[1, 3]].sum(axis=0))
    assert 0 < expected.mean() < observed(season).sum(axis=0).mean()


def test_coarser_resolution_reads_overviews(season):
    with rasterio.open(min(season.glob("*_TCI.tif"))) as dataset:
        factor = dataset.overviews(1)[0]
    valid = np.stack([dull(pixels) for pixels in files(season, level=0)]).repeat(factor, 1).repeat(factor, 2)
    rule = s2c.Mask(partial(dull, limit=150), resolution=10 * factor)
    cube = s2c.open_cube(season, bands=["TCI"], chunks=200)
    expected = (valid[:, :SIZE, :SIZE] & observed(season)).sum(axis=0)
    np.testing.assert_array_equal(counts(cube, rule), expected)
    # a resolution that files do not have: the nearest pixels of the next finer one
    odd = counts(cube, s2c.Mask(dull, resolution=50))
    np.testing.assert_array_equal(
        odd, counts(s2c.open_cube(season, bands=["TCI"], chunks=520), s2c.Mask(dull, resolution=50))
    )
    assert abs(odd - expected).mean() < 0.5


def test_a_cube_on_another_grid_takes_the_nearest_of_the_mask(season):
    plain = s2c.open_cube(season, bands=["TCI"])
    rule = s2c.Mask(dull)
    valid = np.stack([dull(pixels) for pixels in files(season)])
    cube = s2c.open_cube(season, bands=["TCI"], crs="EPSG:3035", resolution=10, chunks=100)
    # pixels that the cube takes from the files, by the same rule on its own values
    own = ((cube > 0).all("band") & (cube.max("band") < 150)).sum("time").values
    np.testing.assert_array_equal(counts(cube, rule), own)
    np.testing.assert_array_equal(counts(plain, rule), (valid & observed(season)).sum(axis=0))


def test_it_may_look_at_bands_that_the_cube_does_not_have(season):
    cube = s2c.open_cube(season, bands=["TCI"])
    rule = s2c.Mask(classes, bands="SCL", classes=(3, 8, 9, 10), cleanup=[("dilation", 2)])
    same = counts(cube, s2c.SCL(cleanup=[("dilation", 2)]))
    np.testing.assert_array_equal(counts(cube, rule, s2c.Mask(classes, bands="SCL", classes=0)), same)
    assert "Mask(" in s2c.composite(cube, valid=rule).dataset.attrs["rules"]
    with pytest.raises(BandError, match="B11"):
        s2c.composite(cube, valid=s2c.Mask(dull, bands=["B11"]))


def test_what_it_leaves_nothing_of_is_not_read_and_tiles_are_evaluated_once(season, monkeypatch):
    seen = []

    def nothing(pixels):
        seen.append(pixels.shape)
        return np.zeros(pixels.shape[1:], bool)

    cube = s2c.open_cube(season, bands=["TCI"], chunks=100)
    with dask.config.set(scheduler="threads"):
        assert counts(cube, s2c.Mask(nothing, resolution=20)).max() == 0
    assert len(seen) == 5  # scenes, of one tile each
    # in less memory than tiles take they are evaluated again, with the same result
    monkeypatch.setattr(tile_masks, "_KEPT_BYTES", 1)
    monkeypatch.setattr(s2c.Mask, "side", 128)
    expected = counts(s2c.open_cube(season, bands=["TCI"], chunks=520), s2c.Mask(dull))
    np.testing.assert_array_equal(counts(cube, s2c.Mask(dull)), expected)
    assert len(tile_masks._TILES) == 1


@pytest.mark.parametrize(
    ("function", "given", "says"),
    [
        (lambda pixels: np.ones((3, 3), bool), {}, "shape (3, 3) for pixels (band, y, x) (3, 520, 520)"),
        (lambda pixels: None, {}, "NoneType of shape ()"),
        (lambda pixels: pixels[0] / 255, {}, "float64; return bool"),
        (lambda pixels: pixels[0], {}, "say which to drop with classes="),
        (lambda pixels: pixels[0] > 3, {"classes": [1]}, "leave classes= out"),
    ],
)
def test_what_a_function_must_not_return_is_refused_with_scene_and_window(season, function, given, says):
    cube = s2c.open_cube(season, bands=["TCI"], on_error="skip")
    with pytest.raises(ParameterError, match=re.escape(says)) as error:
        counts(cube, s2c.Mask(function, **given))
    assert "scene T31TCJ_2023" in str(error.value)
    assert error.value.window == (0, 520, 0, 520)


def test_a_function_that_fails_on_a_scene_stops_or_leaves_it_out(season):
    first = next(files(season))

    def fails(pixels):
        if (pixels == first).all():
            raise ZeroDivisionError("no light")
        return dull(pixels)

    cube = s2c.open_cube(season, bands=["TCI"])
    with pytest.raises(
        SceneError, match=r"scene T31TCJ_\w+, window y 0:520 x 0:520 .*fails.* ZeroDivisionError: no light"
    ):
        counts(cube, s2c.Mask(fails))
    skipping = s2c.open_cube(season, bands=["TCI"], on_error="skip")
    np.testing.assert_array_equal(
        counts(skipping, s2c.Mask(fails)), counts(cube.isel(time=slice(1, None)), s2c.Mask(dull))
    )


def test_a_cache_of_a_function_is_for_its_source_and_parameters(season, tmp_path, monkeypatch):
    module, folder = tmp_path / "cached_masks.py", tmp_path / "cache"
    text = "calls = []\n\ndef dull(pixels):\n    calls.append(0)\n    return pixels.max(axis=0) < 150\n"
    module.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    cube = s2c.open_cube(season, bands=["TCI"])

    def found(**how):
        tile_masks._TILES.clear()
        rule = s2c.Mask("cached_masks:dull", cache=folder, **how)
        assert "cache=" not in str(rule)
        return counts(cube, rule), sys.modules["cached_masks"].calls

    expected = counts(cube, s2c.Mask(dull))
    for _ in range(2):
        made, calls = found()
        np.testing.assert_array_equal(made, expected)
        assert len(calls) == 5
    assert len(found(resolution=20)[1]) == 10
    module.write_text(text.replace("150", "100"))
    assert len(found()[1]) == 15


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["s3", "gs"])
def test_a_cache_in_a_bucket_serves_other_runs_and_is_repaired(season, tmp_path, monkeypatch, caplog, bucket):
    (tmp_path / "bucket_masks.py").write_text(
        "calls = []\n\ndef dull(pixels):\n    calls.append(0)\n    return pixels.max(axis=0) < 150\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bucket_masks", raising=False)
    cube = s2c.open_cube(season, bands=["TCI"])
    expected = counts(cube, s2c.Mask(dull))

    def calls_of(folder):
        tile_masks._TILES.clear()
        np.testing.assert_array_equal(counts(cube, s2c.Mask("bucket_masks:dull", cache=folder)), expected)
        return len(sys.modules["bucket_masks"].calls)

    running, more = (s3_server(), CREDENTIALS) if bucket == "s3" else (gcs_server(), {})
    with running as server, server.selected(**more):
        server.put("kept/of/another.txt")
        folder = server.url("kept/masks")
        assert [calls_of(folder), calls_of(folder)] == [5, 5]
        fs, path = filesystem(folder)
        fs.invalidate_cache()
        objects = sorted(fs.ls(path, detail=False))
        assert len(objects) == 5
        whole = fs.cat_file(objects[0])
        server.put(objects[0], whole[: len(whole) // 2])
        assert [calls_of(folder), calls_of(folder)] == [6, 6]
        assert "the tile is computed again" in caplog.text
        assert fs.cat_file(objects[0]) == whole


def test_cubes_that_are_not_files_are_refused(season):
    cube = s2c.open_cube(season, bands=["TCI"])
    for other in (cube.compute(), cube / 2):
        with pytest.raises(ParameterError, match="open_cube"):
            s2c.composite(other, valid=s2c.Mask(dull))


def job_of(season, tmp_path, monkeypatch):
    """A job with a function of a module that workers find, too."""
    (tmp_path / "my_masks.py").write_text("def dull(pixels):\n    return pixels.max(axis=0) < 150\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    rule = {"mask": {"function": "my_masks:dull", "surroundings": 8}}
    output = {"output": str(tmp_path / "a.tif"), "layers": ["composite", "count"]}
    return {"source": str(season), "bands": ["TCI"], "valid": ["nodata", rule], **output}


def test_valid_share_and_plan_include_mask_functions(season, tmp_path, monkeypatch):
    cube = s2c.open_cube(season, bands=["TCI"])
    valid = np.stack([dull(pixels) for pixels in files(season)]) & observed(season)
    shares = s2c.valid_share(cube, [s2c.Nodata(), s2c.Mask(dull)])["valid"].compute()
    np.testing.assert_allclose(shares, valid.mean(axis=(1, 2)))
    job = job_of(season, tmp_path, monkeypatch)
    plain = plan({**job, "valid": ["nodata"]}).task_memory
    assert plan(job).task_memory > plain + tile_masks._KEPT_BYTES


@pytest.mark.slow
def test_jobs_find_the_function_by_its_path(season, tmp_path, monkeypatch):
    job = job_of(season, tmp_path, monkeypatch)
    s2c.run(job)
    with rasterio.open(tmp_path / "a_count.tif") as made:
        np.testing.assert_array_equal(made.read(1), counts(s2c.open_cube(season, bands=["TCI"]), s2c.Mask(dull)))
    assert s2c.run(job).made == 0  # the same job has the same token


@pytest.mark.slow
def test_workers_give_the_same_result(season, client_of_test):
    limit = 140
    cube = s2c.open_cube(season, bands=["TCI"], chunks=200)
    rule = s2c.Mask(lambda pixels: pixels.max(axis=0) < limit, surroundings=4, cleanup=[("dilation", 2)])
    there = counts(cube, rule)
    with dask.config.set(scheduler="threads"):
        np.testing.assert_array_equal(counts(cube, rule), there)
