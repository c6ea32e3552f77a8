"""Zarr stores: what was computed is what every reader reads; windows are shards; the store is complete or absent."""

import json
import subprocess
import sys
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pytest
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr
import zarr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from s2composite.errors import ParameterError, ReadError, WriteError
from s2composite.writing.zarr import write_zarr
from support.writing_helpers import composite_of, dataset_of, pixels, plain_overview, three_layers


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def same(opened, dataset):
    """Compare all layers, their names, dtypes and attributes."""
    assert set(opened.data_vars) == set(dataset.data_vars)
    for name, layer in dataset.data_vars.items():
        assert opened[name].dtype == layer.dtype
        assert opened[name].dims == layer.dims
        assert np.array_equal(opened[name].values, layer.values, equal_nan=layer.dtype.kind == "f")
        assert opened[name].attrs.get("nodata") == layer.attrs.get("nodata")
    return True


# --- what is written is what was computed ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (515, 1), (256, 256), (257, 511)])
@pytest.mark.parametrize("pyramid", [False, True])
def test_any_size(tmp_path, shape, pyramid):
    dataset = composite_of(pixels((3, *shape), nodata=None))
    path = write_zarr(dataset, tmp_path / "out.zarr", pyramid=pyramid)
    with xr.open_zarr(path, group="0" if pyramid else None) as opened:
        assert same(opened, dataset)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int64", "float32", "float64"])
def test_any_dtype(tmp_path, dtype):
    nodata = np.nan if dtype.startswith("float") else 0
    values = pixels((2, 200, 170), dtype, nodata=nodata)
    path = write_zarr(composite_of(values, 64, nodata=nodata), tmp_path / "out.zarr", chunk=32)
    with xr.open_zarr(path) as opened:
        assert np.array_equal(opened["composite"].values, values, equal_nan=True)
        assert opened["composite"].dtype == dtype
    array = zarr.open_array(path, path="composite", mode="r")
    assert array.fill_value == 0 or np.isnan(array.fill_value)
    assert array.metadata.zarr_format == 3


def test_every_reader_knows_where_it_is(tmp_path):
    dataset, *_ = three_layers()
    path = write_zarr(dataset, tmp_path / "out.zarr")
    with xr.open_zarr(path) as opened:
        assert same(opened, dataset)
        assert opened.odc.geobox == dataset.odc.geobox
        assert opened["count"].odc.geobox == dataset.odc.geobox
        assert opened.rio.crs.to_epsg() == 32631
        assert opened["composite"].rio.transform() == Affine(10, 0, 300000, 0, -10, 4900020)
        assert opened["composite"].rio.nodata == 0
        assert opened["source"].rio.nodata == -1
        assert opened["band"].values.tolist() == ["red", "green", "blue"]
        assert opened["scene"].values.tolist() == dataset["scene"].values.tolist()
        assert np.array_equal(opened["scene_time"].values, dataset["scene_time"].values)
        assert opened.attrs["reducer"] == "luminance_median"
        assert opened.attrs["Conventions"] == "CF-1.11"
        assert opened.attrs["proj:code"] == "EPSG:32631"
        assert opened.attrs["spatial:transform"] == [10.0, 0.0, 300000.0, 0.0, -10.0, 4900020.0]
        assert opened.attrs["spatial:shape"] == [900, 700]
        assert {c["name"] for c in opened.attrs["zarr_conventions"]} == {"proj", "spatial"}
    with xr.open_dataset(path, engine="zarr", consolidated=False) as opened:
        assert same(opened, dataset)


def test_a_crs_without_a_code_is_written_in_words(tmp_path):
    crs = "+proj=aea +lat_1=-18 +lat_2=-36 +lat_0=0 +lon_0=132 +x_0=0 +y_0=0 +ellps=GRS80 +units=m"
    dataset = composite_of(pixels((1, 30, 40)), crs=crs)
    with xr.open_zarr(write_zarr(dataset, tmp_path / "out.zarr")) as opened:
        assert opened.odc.geobox == dataset.odc.geobox
        assert "Albers" in opened.attrs["proj:wkt2"]


def test_a_raster_that_is_not_georeferenced(tmp_path):
    dataset = composite_of(pixels((3, 50, 60)), transform=None)
    with xr.open_zarr(write_zarr(dataset, tmp_path / "out.zarr")) as opened:
        assert same(opened, dataset)
        assert "zarr_conventions" not in opened.attrs


def test_gdal_reads_chunks_without_shards(tmp_path):
    """GDAL before 3.13 has no shards, and before 3.11 it knows an earlier draft of the format only."""
    import rasterio

    dataset, values, *_ = three_layers()
    path = write_zarr(dataset, tmp_path / "out.zarr", shards=False)
    assert zarr.open_array(path, path="composite", mode="r").shards is None
    if tuple(map(int, rasterio.__gdal_version__.split(".")[:2])) < (3, 11):
        pytest.skip(f"GDAL {rasterio.__gdal_version__} does not know the final format")
    with rasterio.open(f'ZARR:"{path}":/composite') as source:
        assert np.array_equal(source.read(), values)
        assert source.crs.to_epsg() == 32631
        assert source.nodata == 0


# --- shards and chunks ---------------------------------------------------------------------------------------------------


def test_windows_are_shards(tmp_path):
    dataset, *_ = three_layers((900, 700), chunks=256)
    path = write_zarr(dataset, tmp_path / "out.zarr", chunk=64)
    group = zarr.open_group(path, mode="r")
    assert group["composite"].shards == (3, 256, 256)
    assert group["composite"].chunks == (3, 64, 64)
    assert group["count"].shards == (256, 256)
    shards = sorted(str(p.relative_to(path)) for p in Path(path).glob("composite/c/**/*") if p.is_file())
    assert shards == [f"composite/c/0/{y}/{x}" for y in range(4) for x in range(3)]
    assert "zstd" in json.dumps(group["composite"].metadata.to_dict()["codecs"][0], default=str)


def test_windows_without_any_value(tmp_path):
    values = np.full((1, 128, 128), -5, "int16")
    values[0, :64, :64] = 7
    path = write_zarr(composite_of(values, 64, nodata=-5), tmp_path / "out.zarr", chunk=32)
    with xr.open_zarr(path) as opened:
        assert np.array_equal(opened["composite"].values, values)


@pytest.mark.parametrize("bands", [3, 4, 5, 12])
def test_few_bands_are_read_together(tmp_path, bands):
    values = pixels((bands, 100, 90))
    path = write_zarr(composite_of(values, 64), tmp_path / "out.zarr", chunk=32)
    array = zarr.open_array(path, path="composite", mode="r")
    assert array.chunks == (bands if bands <= 4 else 1, 32, 32)
    assert array.shards == (bands, 64, 64)
    assert np.array_equal(array[:], values)


@pytest.mark.slow
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 90), st.integers(1, 90), st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_any_shape_and_chunks(height, width, rows, columns, shards, pyramid):
    values = pixels((2, height, width), "int16", seed=width)
    store = MemoryStore()
    write_zarr(composite_of(values, (rows, columns)), store, chunk=32, shards=shards, pyramid=pyramid)
    with xr.open_zarr(store, group="0" if pyramid else None) as opened:
        assert np.array_equal(opened["composite"].values, values)


# --- pyramids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1500, *(pytest.param(n, marks=pytest.mark.slow) for n in (64, 100))])
def test_pyramid_is_that_of_plain_python(tmp_path, chunks):
    dataset, values, count, source = three_layers((1300, 530), chunks)
    path = write_zarr(dataset, tmp_path / "out.zarr", chunk=64, pyramid=True)
    levels = [values, count[None], source[None]]
    with xr.open_datatree(path, engine="zarr") as tree:
        assert sorted(tree.children) == ["0", "1", "2"]
        for level in range(3):
            node = tree[str(level)].to_dataset()
            assert np.array_equal(node["composite"].values, levels[0])
            assert np.array_equal(node["count"].values, levels[1][0])
            assert np.array_equal(node["source"].values, levels[2][0])
            assert node.odc.geobox.crs == dataset.odc.geobox.crs
            assert node.odc.geobox.transform == dataset.odc.geobox.transform * Affine.scale(2**level)
            levels = [fast(levels[0], 0), fast(levels[1], None), levels[2][:, ::2, ::2]]
        layout = tree.attrs["multiscales"]["layout"]
    assert [entry["asset"] for entry in layout] == ["0", "1", "2"]
    assert [entry["spatial:shape"] for entry in layout] == [[1300, 530], [650, 265], [325, 133]]
    assert layout[2]["derived_from"] == "1"
    assert layout[2]["transform"] == {"scale": [2.0, 2.0], "translation": [0.0, 0.0]}


def fast(values, nodata):
    """Mean of blocks of 2 x 2, ignoring nodata, by NumPy's masked arrays; a corner is checked with plain Python."""
    padded = np.pad(values, [(0, 0), *((0, n % 2) for n in values.shape[1:])], "edge").astype("float64")
    masked = np.ma.masked_array(padded, padded == nodata if nodata is not None else False)
    b, y, x = padded.shape
    mean = masked.reshape(b, y // 2, 2, x // 2, 2).mean(axis=(2, 4))
    out = np.floor(mean.filled(0 if nodata is None else nodata) + 0.5).astype(values.dtype)
    assert np.array_equal(out[:, -9:, -9:], plain_overview(values, "average", nodata)[:, -9:, -9:])
    return out


# --- where it is written ---------------------------------------------------------------------------------------------------


def test_a_store_object(tmp_path):
    dataset, *_ = three_layers()
    store = MemoryStore()
    write_zarr(dataset, store)
    with xr.open_zarr(store) as opened:
        assert same(opened, dataset)
    with pytest.raises(WriteError, match="holds a hierarchy already; pass overwrite=True"):
        write_zarr(dataset, store)
    write_zarr(dataset, store, overwrite=True)


@pytest.mark.slow
def test_an_icechunk_session_is_committed_when_all_is_there():
    icechunk = pytest.importorskip("icechunk", reason="install s2composite[icechunk]")
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    dataset, *_ = three_layers((300, 270), 128)
    session = repository.writable_session("main")
    write_zarr(dataset, session, chunk=64)
    with xr.open_zarr(repository.readonly_session("main").store, consolidated=False) as opened:
        assert same(opened, dataset)
    assert "luminance_median" in next(iter(repository.ancestry(branch="main"))).message

    def fail(block):
        raise ReadError("scene S2A: truncated")

    broken = dataset.assign(count=dataset["count"].copy(data=dataset["count"].data.map_blocks(fail, dtype="uint16")))
    session = repository.writable_session("main")
    with pytest.raises(ReadError, match="truncated"):
        write_zarr(broken, session, chunk=64, overwrite=True)
    assert not session.has_uncommitted_changes
    with xr.open_zarr(repository.readonly_session("main").store, consolidated=False) as opened:
        assert same(opened, dataset)


def test_what_exists_is_replaced_as_a_whole(tmp_path):
    write_zarr(composite_of(pixels((3, 300, 300)), 64), tmp_path / "out.zarr", pyramid=True, chunk=32)
    dataset, *_ = three_layers((90, 80))
    path = write_zarr(dataset, tmp_path / "out.zarr", overwrite=True)
    with xr.open_zarr(path) as opened:
        assert same(opened, dataset)
    assert names(tmp_path) == ["out.zarr"]
    assert "0" not in names(tmp_path / "out.zarr")


def random_pixels(block_id):
    return np.random.default_rng(block_id).integers(1, 200, (3, 128, 128)).astype("uint8")


def lazily_made(rows=5, columns=4):
    chunks = ((3,), (128,) * rows, (128,) * columns)
    data = da.map_blocks(random_pixels, chunks=chunks, dtype="uint8", meta=np.empty((0, 0, 0), "uint8"))
    dataset = composite_of(np.zeros((3, 128 * rows, 128 * columns), "uint8"))
    dataset["composite"] = dataset["composite"].copy(data=data)
    status = da.map_blocks(
        lambda block_id: np.full((2, 1, 1), sum(block_id), "uint8"),
        chunks=((2,), (1,) * rows, (1,) * columns),
        dtype="uint8",
        meta=np.empty((0, 0, 0), "uint8"),
    )
    dataset["read_status"] = (("scene", "window_y", "window_x"), status, {"long_name": "0 read"})
    return dataset


@pytest.mark.parametrize("pyramid", [False, True])
def test_cluster_of_processes_and_what_is_no_picture(tmp_path, client_of_test, pyramid):
    path = write_zarr(lazily_made(), tmp_path / "out.zarr", chunk=64, pyramid=pyramid)
    with pytest.raises(ParameterError, match="workers cannot write into a store object"):
        write_zarr(lazily_made(), MemoryStore())
    with dask.config.set(scheduler="threads"), xr.open_zarr(path, group="0" if pyramid else None) as opened:
        assert same(opened, lazily_made())
        assert opened["read_status"].shape == (2, 5, 4)
    assert names(tmp_path) == ["out.zarr"]


def test_the_zarr_library_alone_reads_it_in_a_fresh_process(tmp_path):
    dataset, values, *_ = three_layers((130, 120), 64)
    path = write_zarr(dataset, tmp_path / "out.zarr", chunk=32)
    code = f"import zarr; print(int(zarr.open_group({path!r}, mode='r')['composite'][:].astype('int64').sum()))"
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == values.astype("int64").sum()


# --- bad input -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"chunk": 8}, "chunk is 8; it is a number of pixels from 16"),
        ({"chunk": "auto"}, "chunk is 'auto'"),
        ({"level": 0}, "zstd has 1 to 22"),
        ({"level": 23}, "zstd has 1 to 22"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, says):
    with pytest.raises(ParameterError, match=says):
        write_zarr(composite_of(pixels((1, 20, 20))), tmp_path / "out.zarr", **options)
    assert names(tmp_path) == []


def test_targets_that_make_no_sense(tmp_path):
    dataset = composite_of(pixels((1, 20, 20)))
    with pytest.raises(ParameterError, match="cannot be written over HTTP"):
        write_zarr(dataset, "https://example.org/out.zarr")
    with pytest.raises(ParameterError, match="scheme ftp"):
        write_zarr(dataset, "ftp://example.org/out.zarr")
    with pytest.raises(ParameterError, match="resume=True works with a path"):
        write_zarr(dataset, MemoryStore(), resume=True)
    with pytest.raises(ParameterError, match="no layer with the dimensions"):
        write_zarr(xr.Dataset({"a": ("x", [1])}), tmp_path / "out.zarr")


def test_layers_of_different_chunks(tmp_path):
    dataset, _, count, _ = three_layers((300, 280), 64)
    dataset["count"] = dataset["count"].copy(data=da.from_array(count, chunks=(100, 33)))
    with xr.open_zarr(write_zarr(dataset, tmp_path / "out.zarr", chunk=32)) as opened:
        assert same(opened, dataset)


def test_attributes_that_json_does_not_know_are_refused_early(tmp_path):
    dataset = dataset_of({"composite": (pixels((1, 20, 20)), {})}).assign_attrs(weird=object())
    with pytest.raises(ParameterError, match="attribute 'weird'"):
        write_zarr(dataset, tmp_path / "out.zarr")
    assert names(tmp_path) == []
