"""Composites of several periods: a file for each period and layer, or one Zarr store with the axis of time."""

from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr

from s2composite.errors import ParameterError, ReadError, WriteError
from s2composite.writing.cog import write_raster
from s2composite.writing.zarr import write_zarr
from support.writing_helpers import periods_of_layers, pixels


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("chunks", [None, 128])
def test_a_file_for_each_period_and_layer(tmp_path, chunks):
    dataset, arrays = periods_of_layers(chunks=chunks)
    files = write_raster(dataset, tmp_path / "median.tif", layers="all", blocksize=128)
    assert [Path(path).name for path in files] == [
        f"median{layer}_2023-0{month}.tif" for month in (1, 2, 3) for layer in ("", "_count", "_source")
    ]
    for i, month in enumerate(("2023-01", "2023-02", "2023-03")):
        for layer, suffix in (("composite", ""), ("count", "_count"), ("source", "_source")):
            with rasterio.open(tmp_path / f"median{suffix}_{month}.tif") as source:
                assert np.array_equal(source.read().squeeze(), arrays[layer][i])
                tags = source.tags()
                assert tags["PERIOD"] == month
                assert tags["PERIOD_START"] == f"{month}-01T00:00:00"
                assert tags["PERIOD_END"] == f"2023-0{i + 2}-01T00:00:00"
                # `source` counts in all scenes, whatever the period.
                assert tags["SCENES"].count(",") == 1


def test_a_place_in_the_path_for_the_period(tmp_path):
    dataset, arrays = periods_of_layers(("2023-Q1", "2023-12--P3M"))
    for label in ("2023-Q1", "2023-12--P3M"):
        (tmp_path / label).mkdir()
    files = write_raster(dataset, tmp_path / "{period}" / "median.tif", layers=("composite", "count"), blocksize=128)
    assert [path.removeprefix(f"{tmp_path}/") for path in files] == [
        "2023-Q1/median.tif",
        "2023-Q1/median_count.tif",
        "2023-12--P3M/median.tif",
        "2023-12--P3M/median_count.tif",
    ]
    with rasterio.open(files[2]) as source:
        assert np.array_equal(source.read(), arrays["composite"][1])


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("2023/01 to 02", "m_2023-01-to-02.tif"),
        ("../../etc", "m_etc.tif"),
        ("été 2023", "m_t-2023.tif"),
        ("...", "m_period.tif"),
        ("", "m_period.tif"),
    ],
)
def test_labels_are_safe_as_file_names(tmp_path, label, name):
    dataset, _ = periods_of_layers((label,))
    (path,) = write_raster(dataset, tmp_path / "m.tif")
    assert names(tmp_path) == [name]
    assert Path(path) == tmp_path / name


def test_labels_that_become_the_same_are_refused(tmp_path):
    dataset, _ = periods_of_layers(("a/b", "a b"))
    with pytest.raises(ParameterError, match="several periods would be called 'a-b'"):
        write_raster(dataset, tmp_path / "m.tif")


def test_a_place_for_periods_where_there_are_none(tmp_path):
    dataset, _ = periods_of_layers(("2023-01",))
    with pytest.raises(ParameterError, match="has no periods"):
        write_raster(dataset.isel(time=0), tmp_path / "m_{period}.tif")


def test_without_labels_times_are_names(tmp_path):
    dataset, _ = periods_of_layers(("a", "b"))
    files = write_raster(dataset.drop_vars("period"), tmp_path / "m.tif")
    assert [Path(path).name for path in files] == ["m_2023-01-01T00-00-00.tif", "m_2023-02-01T00-00-00.tif"]
    files = write_raster(dataset.drop_vars(["period", "time", "time_bounds"]), tmp_path / "n.tif")
    assert [Path(path).name for path in files] == ["n_0.tif", "n_1.tif"]


def test_slow_bands_of_a_period_in_one_file_and_previews(tmp_path):
    dataset, arrays = periods_of_layers(("2023-01", "2023-02"))
    _, two = write_raster(dataset, tmp_path / "m.tif", layers="all", separate=False, blocksize=128)
    with rasterio.open(two) as source:
        assert source.descriptions == ("red", "green", "blue", "count", "source")
        assert np.array_equal(source.read(4), arrays["count"][1])
    previews = write_raster(dataset, tmp_path / "p.tif", layers="rgba", overrides={"rgba": {"compress": "jpeg"}})
    assert [Path(path).name for path in previews] == ["p_2023-01.tif", "p_2023-02.tif"]


def slow_periods(calls, fail_at=None):
    """Three periods whose windows are made together, as `compose_window` makes them, counting how often."""

    def make(block_id):
        calls.append(block_id)
        if block_id == fail_at:
            raise ReadError("scene S2A: truncated")
        return np.full((3, 3, 128, 128), sum(block_id) + 1, np.uint8)

    dataset, _ = periods_of_layers(shape=(256, 256))
    data = da.map_blocks(
        make, chunks=((3,), (3,), (128, 128), (128, 128)), dtype="uint8", meta=np.empty((0,) * 4, "uint8"), name="made"
    )
    dataset["composite"] = dataset["composite"].copy(data=data)
    dataset["count"] = dataset["count"].copy(data=data[:, 0].astype("uint16"))
    return dataset[["composite", "count"]]


def test_each_window_is_made_once_for_all_periods(tmp_path):
    calls = []
    write_raster(slow_periods(calls), tmp_path / "m.tif", layers="all", blocksize=64)
    assert len(calls) == len(set(calls)) == 4
    assert len(names(tmp_path)) == 6


def test_a_failure_in_one_window_leaves_no_period(tmp_path):
    with pytest.raises(ReadError, match="truncated"):
        write_raster(slow_periods([], (0, 0, 1, 0)), tmp_path / "m.tif", layers="all", blocksize=64)
    assert names(tmp_path) == []


def test_one_period_that_exists_stops_all_before_anything_is_computed(tmp_path):
    (tmp_path / "m_2023-02.tif").write_text("theirs")
    calls = []
    with pytest.raises(WriteError, match=r"m_2023-02\.tif: exists already"):
        write_raster(slow_periods(calls), tmp_path / "m.tif")
    assert calls == []
    assert names(tmp_path) == ["m_2023-02.tif"]


@pytest.mark.parametrize("pyramid", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("chunks", [pytest.param(None, marks=pytest.mark.slow), 128])
def test_zarr_has_the_axis_of_time_with_bounds(tmp_path, pyramid, chunks):
    dataset, arrays = periods_of_layers(shape=(700, 600), chunks=chunks)
    store = write_zarr(dataset, tmp_path / "out.zarr", chunk=64, pyramid=pyramid)
    with xr.open_zarr(store, group="0" if pyramid else None, decode_coords="all", mask_and_scale=False) as opened:
        for name, values in arrays.items():
            assert opened[name].dims == dataset[name].dims
            assert np.array_equal(opened[name].values, values)
        assert opened["time"].encoding["bounds"] == "time_bounds"
        assert np.array_equal(opened["time"].values, dataset["time"].values)
        assert np.array_equal(opened["time_bounds"].values, dataset["time_bounds"].values)
        assert opened["period"].values.tolist() == ["2023-01", "2023-02", "2023-03"]
        assert opened["composite"].odc.geobox == dataset["composite"].odc.geobox
        # Each period can be read without the others.
        assert opened["composite"].encoding["chunks"][0] == 1
    with xr.open_zarr(store, group="0" if pyramid else None, decode_times=False, decode_coords="all") as raw:
        # CF: bounds are in the units of what they bound.
        units = raw["time"].attrs["units"]
        assert raw["time_bounds"].attrs.get("units", units) == units
        assert raw["time_bounds"].values.ravel()[:2].tolist() == [1672531200, 1675209600]


def test_zarr_overviews_of_periods_are_those_of_each(tmp_path):
    values = pixels((2, 3, 600, 520), "uint16")
    dataset, _ = periods_of_layers(("a", "b"), shape=(600, 520), chunks=None)
    dataset = dataset[["composite"]].assign(composite=dataset["composite"].copy(data=values))
    store = write_zarr(dataset, tmp_path / "out.zarr", chunk=64, pyramid=True)
    for i in (0, 1):
        one = write_zarr(dataset.isel(time=i), tmp_path / f"{i}.zarr", chunk=64, pyramid=True)
        for level in ("0", "1"):
            with xr.open_zarr(store, group=level) as both, xr.open_zarr(one, group=level) as alone:
                assert np.array_equal(both["composite"].values[i], alone["composite"].values)


def test_schedulers_agree(tmp_path):
    with dask.config.set(scheduler="synchronous"):
        one = write_raster(slow_periods([]), tmp_path / "one.tif", layers="all")
    two = write_raster(slow_periods([]), tmp_path / "two.tif", layers="all")
    for a, b in zip(one, two, strict=True):
        assert Path(a).read_bytes() == Path(b).read_bytes()
