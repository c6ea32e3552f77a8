"""What could not be read travels into files: found in the same pass as the pixels, told in tags and in Zarr."""

import json
import os
import shutil

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr

import s2composite as s2c
from s2composite.writing import layers as status
from s2composite.writing.cog import write_raster
from s2composite.writing.layers import status_summary
from s2composite.writing.zarr import write_zarr
from support.writing_helpers import composed_windows, composite_of, pixels


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Three scenes of 300 x 300, of which the second ends early: some of its tiles are not there."""
    from s2composite.demo import make_scenes

    folder = tmp_path_factory.mktemp("broken")
    make_scenes(str(folder), scenes=3, size=300, seed=1, compress="deflate")
    second = sorted(folder.glob("*.tif"))[1]
    os.truncate(second, 60_000)
    return folder


def told(path):
    with rasterio.open(path) as source:
        return json.loads(source.tags()["READ_STATUS"])


def everything_failed(summary, name):
    return summary["failed"] == {
        name: [
            [top, bottom, left, right]
            for top, bottom in ((0, 128), (128, 256), (256, 300))
            for left, right in ((0, 128), (128, 256), (256, 300))
        ]
    }


def test_failures_stand_in_every_file_and_nothing_is_read_twice(tmp_path, broken):
    comp = s2c.composite(s2c.open_cube(broken, on_error="skip", chunks=128))
    with composed_windows() as windows:
        files = comp.to_raster(str(tmp_path / "out.tif"), layers="all")
    assert len(windows) == 9
    assert len(files) == 3
    for path in files:
        summary = told(path)
        assert (summary["scenes"], summary["windows"], summary["unit"]) == (3, [3, 3], "pixels")
        assert summary["failed_windows"] == 9
        assert everything_failed(summary, "T31TCJ_20230702T105629")
    # In memory there are no chunks left that say where windows are.
    again = comp.compute().to_raster(str(tmp_path / "again.tif"))
    assert told(again[0]) == summary


def test_on_a_cluster(tmp_path, broken, client_of_test):
    comp = s2c.composite(s2c.open_cube(broken, on_error="skip", chunks=128))
    persisted = comp.persist()
    (path,) = persisted.to_raster(str(tmp_path / "out.tif"))
    assert everything_failed(told(path), "T31TCJ_20230702T105629")
    # What is persisted is still there after it was written.
    assert (persisted["read_status"].values[1] == 2).all()


def test_a_write_without_failures_says_so(tmp_path, broken):
    fine = tmp_path / "fine"
    fine.mkdir()
    for path in sorted(broken.glob("*.tif"))[::2]:
        shutil.copy(path, fine)
    comp = s2c.composite(s2c.open_cube(fine, on_error="skip"))
    (path,) = comp.to_raster(str(tmp_path / "out.tif"))
    assert told(path)["failed"] == {}
    assert told(path)["failed_windows"] == 0


def test_a_composite_that_raises_instead_says_nothing(tmp_path):
    (path,) = write_raster(composite_of(pixels((1, 40, 40))), tmp_path / "out.tif")
    with rasterio.open(path) as source:
        assert "READ_STATUS" not in source.tags()


def table(shape, failed=()):
    out = np.zeros(shape, np.uint8)
    for place in failed:
        out[place] = 2
    out[0, 0, 0] = 1
    return out


def with_table(values):
    dataset = composite_of(pixels((1, 300, 300)), 100)
    dataset["read_status"] = (("scene", "window_y", "window_x"), values)
    return dataset


def test_windows_are_pixels_where_chunks_say_so_else_windows():
    values = table((2, 3, 3), [(1, 2, 0)])
    lazy = with_table(values)
    assert status_summary(lazy, values)["failed"] == {"S2B_31TCJ_20230606": [[200, 300, 0, 100]]}
    # Cut to other chunks, nothing says which pixels the windows were.
    cut = lazy.assign(composite=lazy["composite"].compute())
    summary = status_summary(cut, values)
    assert (summary["unit"], summary["failed"]) == ("windows", {"S2B_31TCJ_20230606": [[2, 0]]})


def test_a_long_list_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(status, "_LISTED", 4)
    values = np.full((2, 3, 3), 2, np.uint8)
    summary = status_summary(with_table(values), values)
    assert summary["failed_windows"] == 18
    assert sum(map(len, summary["failed"].values())) == 4
    assert summary["not_listed"] == 14


@pytest.mark.parametrize("pyramid", [False, True])
def test_zarr_holds_the_table_and_its_summary(tmp_path, broken, pyramid):
    comp = s2c.composite(s2c.open_cube(broken, on_error="skip", chunks=128))
    store = comp.to_zarr(tmp_path / "out.zarr", chunk=64, pyramid=pyramid)
    with xr.open_zarr(store, group="0" if pyramid else None) as opened:
        assert (opened["read_status"].values == np.array([0, 2, 0])[:, None, None]).all()
    for root in (zarr.open_group(store, use_consolidated=False), zarr.open_consolidated(store)):
        assert everything_failed(root.attrs["read_status"], "T31TCJ_20230702T105629")


def test_zarr_in_a_store_object():
    store = zarr.storage.MemoryStore()
    values = table((2, 3, 3), [(0, 1, 1)])
    write_zarr(with_table(values), store, chunk=100)
    with xr.open_zarr(store) as opened:
        assert np.array_equal(opened["read_status"].values, values)
        assert opened.attrs["read_status"]["failed_windows"] == 1
