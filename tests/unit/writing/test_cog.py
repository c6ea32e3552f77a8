"""Cloud-optimised GeoTIFFs: what was computed is what every reader reads, whatever the windows, options and scheduler."""

import io
import json
import struct
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import rasterio
import rioxarray
import tifffile
import xarray as xr
from affine import Affine
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from rio_cogeo import cog_validate

import s2composite.writing.publish
from s2composite.errors import ParameterError, WriteError
from s2composite.writing.cog import write_raster
from s2composite.writing.encode import halve, merge, tile_statistics
from support.writing_helpers import UTM, composite_of, dataset_of, pixels, plain_overview, three_layers

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def write(dataset, path, **options):
    (written,) = write_raster(dataset, path, **options)
    return written


def read(path, **options):
    with rasterio.open(path, **options) as source:
        return source.read()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def valid_cog(path):
    good, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert good, (errors, warnings)
    return True


# --- what is written is what was computed ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (515, 1), (16, 16), (511, 512), (513, 1025), (1100, 700)])
def test_any_size(tmp_path, shape):
    values = pixels((3, *shape), nodata=None)
    path = write(composite_of(values), tmp_path / "out.tif")
    assert np.array_equal(read(path), values)
    # Validators measure overviews along x only, and a column of single pixels does not get narrower.
    assert shape[1] == 1 or valid_cog(path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compress", ["deflate", "zstd", "lzw", "none"])
def test_any_dtype_and_compression(tmp_path, dtype, compress):
    values = pixels((2, 300, 270), dtype)
    path = write(composite_of(values, 128), tmp_path / "out.tif", compress=compress, blocksize=128)
    with rasterio.open(path) as source:
        assert np.array_equal(source.read(), values)
        assert source.dtypes == (dtype, dtype)
        assert source.compression is None if compress == "none" else source.compression.name == compress
        assert len(source.overviews(1)) == 2
    assert valid_cog(path)


@pytest.mark.parametrize("predictor", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_predictors(tmp_path, predictor, dtype):
    floats = dtype.startswith("float")
    values = pixels((3, 200, 150), dtype)
    if (predictor == 3) != floats and predictor != 1:
        with pytest.raises(ParameterError, match="predictor"):
            write(composite_of(values), tmp_path / "out.tif", predictor=predictor)
        return
    path = write(composite_of(values), tmp_path / "out.tif", predictor=predictor)
    assert np.array_equal(read(path), values)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].predictor == predictor
        assert np.array_equal(tiff.asarray(), values.transpose(1, 2, 0))


def test_nan_is_kept_and_is_no_value(tmp_path):
    values = pixels((1, 600, 600), "float32", nodata=np.nan)
    path = write(composite_of(values, 256, nodata=np.nan), tmp_path / "out.tif")
    assert np.array_equal(read(path), values, equal_nan=True)
    with rasterio.open(path) as source:
        assert np.isnan(source.nodata)
        assert np.array_equal(source.read_masks(1) > 0, ~np.isnan(values[0]))


def test_boolean_layers_become_bytes(tmp_path):
    values = pixels((40, 50)) > 100
    path = write(dataset_of({"cloud": (values, {"overviews": "mode"})}), tmp_path / "out.tif")
    assert np.array_equal(read(path)[0], values)


def test_webp_without_a_level_is_lossless(tmp_path):
    values = pixels((3, 300, 300))
    path = write(composite_of(values, 128), tmp_path / "out.tif", compress="webp", mask=False)
    assert np.array_equal(read(path), values)
    assert valid_cog(path)


def test_every_reader_reads_the_same(tmp_path):
    dataset, values, count, source = three_layers()
    files = write_raster(dataset, tmp_path / "median.tif", layers="all")
    assert [Path(f).name for f in files] == ["median.tif", "median_count.tif", "median_source.tif"]
    for path, want in zip(files, (values, count[None], source[None]), strict=True):
        with rioxarray.open_rasterio(path) as array:
            assert np.array_equal(array.values, want)
            assert array.odc.geobox == dataset.odc.geobox
            assert array.rio.crs.to_epsg() == 32631
        with xr.open_dataset(path, engine="rasterio", mask_and_scale=False) as opened:
            assert np.array_equal(opened["band_data"].values, want)
        with tifffile.TiffFile(path) as tiff:
            assert np.array_equal(np.atleast_3d(tiff.asarray()), want.transpose(1, 2, 0))
        assert valid_cog(path)


# --- overviews ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["average", "nearest", "mode"])
@pytest.mark.parametrize("nodata", [0, None])
def test_overviews_are_those_of_plain_python(tmp_path, method, nodata):
    values = pixels((2, 150, 131), "uint16", nodata=nodata)
    dataset = composite_of(values, 64, overviews=method, nodata=nodata)
    path = write(dataset, tmp_path / "out.tif", blocksize=64)
    want = values
    for level in range(2):
        want = plain_overview(want, method, nodata)
        assert np.array_equal(read(path, overview_level=level), want)


@given(
    st.sampled_from(["uint8", "int8", "uint16", "int16", "int32", "uint32", "float32"]),
    st.sampled_from(["average", "nearest", "mode"]),
    st.sampled_from([None, 0, 3]),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_halving_property(dtype, method, nodata, shape, seed):
    values = np.random.default_rng(seed).integers(0, 6, (2, *shape)).astype(dtype)
    if dtype.startswith("float") and seed % 2:
        values[values == 5] = np.nan
    got, want = halve(values, method, nodata), plain_overview(values, method, nodata)
    assert got.dtype == values.dtype
    assert np.array_equal(got, want, equal_nan=dtype.startswith("float"))


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_halving_windows_is_halving_the_whole(seed, rows, columns):
    values = np.random.default_rng(seed).integers(0, 9, (1, 4 * rows + 3, 4 * columns + 1)).astype("uint8")
    whole = halve(values, "average", 0)
    for y in range(0, values.shape[1], 4):
        for x in range(0, values.shape[2], 4):
            part = halve(values[:, y : y + 4, x : x + 4], "average", 0)
            assert np.array_equal(part, whole[:, y // 2 : y // 2 + part.shape[1], x // 2 : x // 2 + part.shape[2]])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_means_at_the_ends_of_a_dtype_do_not_overflow(dtype):
    limits = np.iinfo(dtype)
    for value in (limits.min, limits.max):
        for nodata in (None, 7):
            assert (halve(np.full((1, 3, 3), value, dtype), "average", nodata) == value).all()


def test_layers_can_be_asked_for_another_resampling(tmp_path):
    values = pixels((1, 600, 600))
    path = write(composite_of(values, 256), tmp_path / "out.tif", overview_resampling="nearest")
    assert np.array_equal(read(path, overview_level=0), values[:, ::2, ::2])


# --- the same bytes, whatever the windows --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A file written from one chunk, and its pixels."""
    values = pixels((3, 700, 900), seed=4)
    path = write(composite_of(values), tmp_path_factory.mktemp("cog") / "reference.tif", blocksize=64)
    with open(path, "rb") as file:
        return values, file.read()


@pytest.mark.parametrize(
    "chunks",
    [
        64,
        128,
        256,
        192,
        100,
        333,
        10_000,
        ((100, 600), (900,)),
        ((64, 640 - 64, 60), (448, 452)),
        ((512, 188), (1,) * 900),
    ],
    ids=str,
)
def test_the_same_bytes_for_any_chunks(tmp_path, reference, chunks):
    values, want = reference
    lazy = da.from_array(values, chunks=(1, *((chunks, chunks) if isinstance(chunks, int) else chunks)))
    dataset = composite_of(values)
    dataset["composite"] = dataset["composite"].copy(data=lazy)
    path = write(dataset, tmp_path / "out.tif", blocksize=64)
    with open(path, "rb") as file:
        assert file.read() == want


@pytest.mark.slow
@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(1, 130), st.integers(1, 130), st.sampled_from([64, 80, 128])
)
@settings(max_examples=25, deadline=None)
def test_any_shape_and_chunks(tmp_path_factory, height, width, rows, columns, blocksize):
    values = pixels((1, height, width), "int16", seed=height)
    rows, columns = max(rows, height // 30), max(columns, width // 30)  # 90 000 chunks of one pixel take minutes
    folder = tmp_path_factory.mktemp("any")
    one = write(composite_of(values), folder / "one.tif", blocksize=blocksize)
    many = write(composite_of(values, (rows, columns)), folder / "many.tif", blocksize=blocksize)
    assert np.array_equal(read(one), values)
    with open(one, "rb") as a, open(many, "rb") as b:
        assert a.read() == b.read()


def test_each_window_is_computed_once_for_all_layers(tmp_path):
    calls = []

    def compute(block, block_id):
        calls.append(block_id)
        return block

    base = da.zeros((3, 512, 512), chunks=(3, 128, 128), dtype="uint8").map_blocks(compute, dtype="uint8", name="slow")
    dataset = composite_of(np.zeros((3, 512, 512), "uint8"))
    dataset["composite"] = dataset["composite"].copy(data=base)
    dataset["count"] = (("y", "x"), base.sum(axis=0).astype("uint16"), {"overviews": "nearest"})
    calls.clear()
    write_raster(dataset, tmp_path / "out.tif", layers="all", blocksize=64)
    assert len(calls) == len(set(calls)) == 16


def test_tasks_per_window(tmp_path):
    tasks = []
    dataset = composite_of(pixels((3, 1024, 1024)), 128)
    with dask.callbacks.Callback(pretask=lambda key, *_: tasks.append(str(key))):
        write(dataset, tmp_path / "out.tif", blocksize=128)
    # Reading the chunk (here: slicing an array), encoding it, and handing over its index and its overview.
    assert len(tasks) < 4.5 * 64, tasks
    assert sum("'write-" in task for task in tasks) in range(64, 64 + 8)


# --- schedulers ----------------------------------------------------------------------------------------------------------


def random_pixels(block_id):
    return np.random.default_rng(block_id).integers(1, 200, (3, 128, 128)).astype("uint8")


def lazily_made(rows=5, columns=4):
    """A dataset whose pixels are made in the workers."""
    chunks = ((3,), (128,) * rows, (128,) * columns)
    data = da.map_blocks(random_pixels, chunks=chunks, dtype="uint8", meta=np.empty((0, 0, 0), "uint8"))
    dataset = composite_of(np.zeros((3, 128 * rows, 128 * columns), "uint8"))
    dataset["composite"] = dataset["composite"].copy(data=data)
    return dataset


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_schedulers_of_one_machine(tmp_path, scheduler):
    dataset = lazily_made()
    with dask.config.set(scheduler=scheduler):
        path = write(dataset, tmp_path / "out.tif", blocksize=128)
    assert np.array_equal(read(path), dataset["composite"].values)


def test_cluster_of_processes(tmp_path, client_of_test):
    dataset = lazily_made()
    files = write_raster(dataset, tmp_path / "cluster.tif", layers="composite", blocksize=128)
    with dask.config.set(scheduler="threads"):
        again = write(dataset, tmp_path / "threads.tif", blocksize=128)
    with open(files[0], "rb") as a, open(again, "rb") as b:
        assert a.read() == b.read()
    assert names(tmp_path) == ["cluster.tif", "threads.tif"]


def test_workers_without_the_disk_hand_their_parts_back(tmp_path, client_of_test, monkeypatch):
    monkeypatch.setattr("s2composite.writing.cog.workers_see", lambda client, parts: False)
    dataset = lazily_made()
    path = write(dataset, tmp_path / "out.tif", blocksize=128)
    assert np.array_equal(read(path), dataset["composite"].values)
    assert names(tmp_path) == ["out.tif"]


def test_pixels_in_memory_are_not_sent_to_workers(tmp_path, client_of_test, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something is sent to the workers")

    monkeypatch.setattr(Client, "get", refuse)
    monkeypatch.setattr(Client, "submit", refuse)
    values = pixels((3, 300, 300))
    path = write(composite_of(values), tmp_path / "out.tif")
    assert np.array_equal(read(path), values)


@pytest.mark.parametrize("name", ["out.nc", "out.zarr", "out.JP2", "out.png"])
def test_names_of_other_formats(tmp_path, name):
    with pytest.raises(ParameterError, match=r"another format than GeoTIFF.* ends in \.tif"):
        write_raster(composite_of(pixels((3, 40, 40))), tmp_path / name)
    assert names(tmp_path) == []


# --- what a file says of itself ------------------------------------------------------------------------------------------


def test_tags_names_and_statistics(tmp_path):
    values = pixels((3, 600, 500), "uint16")
    dataset = composite_of(values, 256, long_name="median <of & all>", units="1", scale_factor=1e-4, add_offset=-0.1)
    path = write(dataset, tmp_path / "out.tif", tags={"CAMPAIGN": 7})
    with rasterio.open(path) as source:
        assert source.descriptions == ("red", "green", "blue")
        tags = source.tags()
        assert tags["SCENES"] == "S2A_31TCJ_20230601,S2B_31TCJ_20230606"
        assert tags["SCENE_TIMES"] == "2023-06-01T10:46:29,2023-06-06T10:46:31"
        assert tags["REDUCER"] == "luminance_median"
        assert tags["RULES"] == "Nodata(), Saturated()"
        assert tags["SOFTWARE"] == "s2composite 0.1.0"
        assert tags["CAMPAIGN"] == "7"
        assert source.nodata == 0
        assert source.scales == (1e-4,) * 3
        assert source.offsets == (-0.1,) * 3
        assert source.units == ("1",) * 3
        for band in (1, 2, 3):
            there = values[band - 1][values[band - 1] != 0].astype("float64")
            facts = source.tags(band)
            assert facts["LONG_NAME"] == "median <of & all>"
            assert float(facts["STATISTICS_MINIMUM"]) == there.min()
            assert float(facts["STATISTICS_MAXIMUM"]) == there.max()
            assert float(facts["STATISTICS_MEAN"]) == pytest.approx(there.mean(), rel=1e-12)
            assert float(facts["STATISTICS_STDDEV"]) == pytest.approx(there.std(), rel=1e-12)
            assert float(facts["STATISTICS_VALID_PERCENT"]) == pytest.approx(
                100 * there.size / values[0].size, rel=1e-3
            )


def test_a_raster_without_any_value(tmp_path):
    path = write(composite_of(np.zeros((3, 600, 600), "uint8"), 256), tmp_path / "out.tif")
    assert not read(path, overview_level=0).any()
    with rasterio.open(path) as source:
        assert "STATISTICS_MEAN" not in source.tags(1)
        assert source.tags(1)["STATISTICS_VALID_PERCENT"] == "0"
    assert valid_cog(path)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.sampled_from(["uint8", "uint16", "float32"]))
@settings(deadline=None)
def test_merged_statistics(sizes, dtype):
    values = np.random.default_rng(sum(sizes)).integers(0, 200, sum(sizes) or 1).astype(dtype)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    got, there = merge(tile_statistics(part[None], 0) for part in parts), values[values != 0].astype("float64")
    assert got.valid == there.size
    assert got.pixels == sum(part.size for part in parts)
    if there.size:
        assert (got.minimum, got.maximum) == (there.min(), there.max())
        assert got.mean == pytest.approx(there.mean())
        assert got.deviation == pytest.approx(there.std(), abs=1e-9)


@given(
    st.sampled_from(["uint8", "int8", "uint16", "int16"]), st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9)
)
@settings(deadline=None)
def test_statistics_over_the_whole_range_of_a_dtype(dtype, seed, height, width):
    rng, limits = np.random.default_rng(seed), np.iinfo(dtype)
    tile = rng.integers(limits.min, limits.max, (height, 2 * width), dtype, endpoint=True)[:, ::2]
    tile[rng.random(tile.shape) < 0.2] = limits.min
    got, there = tile_statistics(tile, int(limits.min)), tile[tile != limits.min].astype("float64")
    assert (got.valid, got.pixels) == (there.size, tile.size)
    if there.size:
        assert (got.minimum, got.maximum) == (there.min(), there.max())
        assert got.mean == pytest.approx(there.mean())
        assert got.deviation == pytest.approx(there.std(), abs=1e-9)


ALBERS = "+proj=aea +lat_1=-18 +lat_2=-36 +lat_0=0 +lon_0=132 +x_0=0 +y_0=0 +ellps=GRS80 +units=m"
SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m"


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326", "EPSG:3857", "EPSG:2154", "EPSG:27700", ALBERS, SINUSOIDAL])
def test_coordinate_systems(tmp_path, crs):
    transform = Affine(1e-4, 0, 1.5, 0, -1e-4, 43.5) if crs == "EPSG:4326" else UTM
    path = write(composite_of(pixels((1, 50, 60)), crs=crs, transform=transform), tmp_path / "out.tif")
    with rasterio.open(path) as source, rasterio.open(path) as again:
        assert source.transform.almost_equals(transform, 1e-12)
        assert source.crs == rasterio.crs.CRS.from_user_input(crs) or source.crs.to_proj4() == again.crs.to_proj4()
        x, y = 300050.0, 4899900.0
        want = rasterio.warp.transform(crs, "EPSG:4326", [x], [y])
        assert np.allclose(rasterio.warp.transform(source.crs, "EPSG:4326", [x], [y]), want, atol=1e-7)


def test_a_rotated_grid(tmp_path):
    transform = Affine.translation(3e5, 5e6) * Affine.rotation(20) * Affine.scale(10, -10)
    path = write(composite_of(pixels((1, 50, 60)), transform=transform), tmp_path / "out.tif")
    with rasterio.open(path) as source:
        assert source.transform.almost_equals(transform, 1e-6)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_that_is_not_georeferenced(tmp_path):
    values = pixels((3, 50, 60))
    path = write(composite_of(values, transform=None), tmp_path / "out.tif")
    with rasterio.open(path) as source:
        assert source.crs is None
        assert np.array_equal(source.read(), values)


def test_unevenly_spaced_coordinates_are_refused(tmp_path):
    dataset = composite_of(pixels((1, 3, 3))).drop_vars("spatial_ref")
    dataset = dataset.assign_coords(y=[0.0, 1.0, 5.0])
    with pytest.raises(ParameterError, match="evenly spaced"):
        write(dataset, tmp_path / "out.tif")


# --- the bytes -------------------------------------------------------------------------------------------------------------


def test_the_ghost_area_is_gdals(tmp_path):
    values = pixels((3, 600, 600))
    ours = write(composite_of(values), tmp_path / "ours.tif", mask=False)
    size = {"width": 600, "height": 600, "count": 3, "dtype": "uint8", "nodata": 0, "interleave": "pixel"}
    grid = {"crs": "EPSG:32631", "transform": UTM}
    with rasterio.open(tmp_path / "gdal.tif", "w", driver="COG", **size, **grid) as gdal:
        gdal.write(values)
    with open(ours, "rb") as a, open(tmp_path / "gdal.tif", "rb") as b:
        assert a.read(8 + 43 + 140)[8:] == b.read(8 + 43 + 140)[8:]


def test_sizes_stand_around_every_tile_in_order(tmp_path):
    path = write(composite_of(pixels((3, 700, 900)), 256), tmp_path / "out.tif", blocksize=128)
    with open(path, "rb") as file:
        data = file.read()
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        assert tiff.pages[0].is_tiled
        stored = [(page.dataoffsets, page.databytecounts) for page in reversed(tiff.pages)]
        headers_end = max(page.offset for page in tiff.pages)
    position = None
    for offsets, counts in stored:
        for offset, count in zip(offsets, counts, strict=True):
            assert struct.unpack_from("<I", data, offset - 4)[0] == count
            assert data[offset + count : offset + count + 4] == data[offset + count - 4 : offset + count]
            assert offset - 4 == position or position is None
            assert offset > headers_end
            position = offset + count + 4
    assert position == len(data)


def test_bigtiff_on_request_and_where_needed(tmp_path, monkeypatch):
    dataset, values, *_ = three_layers()
    small, big = (write(dataset, tmp_path / f"{b}.tif", bigtiff=b) for b in (False, True))
    monkeypatch.setattr(s2composite.writing.publish, "CLASSIC_LIMIT", 100_000)
    needed = write(dataset, tmp_path / "needed.tif")
    versions = []
    for path in (small, big, needed):
        with open(path, "rb") as file:
            versions.append(struct.unpack("<2sH", file.read(4))[1])
        assert np.array_equal(read(path), values)
        assert valid_cog(path)
    assert versions == [42, 43, 43]
    with pytest.raises(WriteError, match="bigtiff"):
        write(dataset, tmp_path / "refused.tif", bigtiff=False)
    assert not (tmp_path / "refused.tif").exists()


# --- several layers in one file --------------------------------------------------------------------------------------------


def test_one_file_with_named_bands(tmp_path):
    dataset, values, count, source = three_layers()
    path = write(dataset, tmp_path / "all.tif", layers="all", separate=False)
    with rasterio.open(path) as opened:
        assert opened.descriptions == ("red", "green", "blue", "count", "source")
        assert set(opened.dtypes) == {"int32"}
        assert opened.nodata == -1
        bands = opened.read()
        masks = opened.read_masks()
    valid = values != 0
    wide = np.where(valid, values, np.int32(-1))
    assert np.array_equal(bands[:3], wide)
    assert np.array_equal(bands[3], count)
    assert np.array_equal(bands[4], source)
    assert np.array_equal(masks[:3] > 0, valid)
    want = plain_overview(wide[:, :64, :64], "average", -1)
    assert np.array_equal(read(path, overview_level=0)[:3, :32, :32], want)
    assert np.array_equal(read(path, overview_level=0)[4], source[::2, ::2])
    assert valid_cog(path)


@pytest.mark.parametrize(
    ("layers", "dtype", "nodata"),
    [
        ([("uint8", 0), ("uint16", None)], "uint16", 0),
        ([("uint8", 0), ("int16", -1)], "int16", -1),
        ([("int16", 0), ("int16", -1)], "int32", -(2**31)),
        ([("float32", float("nan")), ("uint16", 0)], "float32", float("nan")),
        ([("uint8", None), ("uint8", None)], "uint8", None),
        ([("int32", 0), ("int32", -1)], None, None),
    ],
)
def test_one_nodata_value_for_all(tmp_path, layers, dtype, nodata):
    given = {}
    for i, (kind, none) in enumerate(layers):
        given[f"layer{i}"] = (pixels((40, 50), kind, seed=i, nodata=none), {"nodata": none})
    dataset = dataset_of(given)
    if dtype is None:
        with pytest.raises(ParameterError, match="separate=True"):
            write(dataset, tmp_path / "out.tif", layers="all", separate=False)
        return
    path = write(dataset, tmp_path / "out.tif", layers="all", separate=False)
    with rasterio.open(path) as source:
        assert source.dtypes[0] == dtype
        assert source.nodata == nodata or (np.isnan(nodata) and np.isnan(source.nodata))
        for i, (values, attrs) in enumerate(given.values()):
            empty = np.zeros(values.shape, bool) if attrs["nodata"] is None else values == attrs["nodata"]
            empty |= np.isnan(values) if values.dtype.kind == "f" else False
            assert np.array_equal(source.read(i + 1)[~empty], values[~empty])
            if attrs["nodata"] is not None:
                assert np.array_equal(source.read_masks(i + 1) == 0, empty)


# --- previews --------------------------------------------------------------------------------------------------------------


def smooth(shape=(600, 500)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    values = np.stack([120 + 80 * np.sin(x / 60 + k) * np.cos(y / 50) for k in range(3)]).astype("uint8")
    values[:, :200, :100] = 0
    return values


@pytest.mark.parametrize(("compress", "level"), [("jpeg", None), ("webp", 80)])
def test_lossy_previews_have_a_mask_instead_of_nodata(tmp_path, compress, level):
    values = smooth()
    path = write(composite_of(values, 256), tmp_path / "out.tif", compress=compress, level=level)
    with rasterio.open(path) as source:
        assert source.nodata is None
        assert source.mask_flag_enums == ([rasterio.enums.MaskFlags.per_dataset],) * 3
        assert np.array_equal(source.dataset_mask() > 0, values[0] != 0)
        assert compress != "jpeg" or source.photometric.name == "ycbcr"
        inside = source.read()[:, 220:, 120:].astype(int) - values[:, 220:, 120:]
        assert np.abs(inside).mean() < 2
    with rasterio.open(path, overview_level=0) as overview:
        assert np.array_equal(overview.dataset_mask() > 0, values[0, ::2, ::2] != 0)
    assert valid_cog(path)


def test_a_mask_on_request(tmp_path):
    values = pixels((2, 300, 310), "int16")
    path = write(composite_of(values, 128), tmp_path / "out.tif", mask=True, blocksize=128)
    with rasterio.open(path) as source:
        assert source.nodata is None
        assert np.array_equal(source.read(), values)
        assert np.array_equal(source.dataset_mask() > 0, (values != 0).any(axis=0))
    assert valid_cog(path)


def test_gray_jpeg(tmp_path):
    values = smooth()[0]
    path = write(dataset_of({"luminance": (values, {})}), tmp_path / "out.tif", compress="jpeg", jpeg_quality=95)
    assert np.abs(read(path)[0].astype(int) - values).mean() < 2
    assert valid_cog(path)


def test_rgba_preview_of_reflectances(tmp_path):
    values = smooth().astype("uint16") * 20
    dataset = composite_of(values, 256)
    files = write_raster(
        dataset,
        tmp_path / "out.tif",
        layers=("composite", "rgba"),
        overrides={"rgba": {"compress": "zstd", "stretch": (0, 4000)}},
    )
    assert [Path(f).name for f in files] == ["out.tif", "out_rgba.tif"]
    with rasterio.open(files[1]) as source:
        rgba = source.read()
        assert [c.name for c in source.colorinterp] == ["red", "green", "blue", "alpha"]
    assert np.array_equal(rgba[3] == 255, values[0] != 0)
    want = np.clip(np.round(values / 4000 * 255), 1, 255)
    assert np.array_equal(rgba[:3][:, rgba[3] == 255], want[:, values[0] != 0])
    assert valid_cog(files[1])


def test_rgba_preview_of_the_first_of_several_reducers(tmp_path):
    values = pixels((3, 100, 90))
    named = dataset_of({name: (values // n, {"nodata": 0}) for n, name in enumerate(("max", "median"), 1)})
    plain = dataset_of({"composite": (values, {"nodata": 0})})
    files = [write_raster(d, tmp_path / f"{i}.tif", layers="rgba")[0] for i, d in enumerate((named, plain))]
    with rasterio.open(files[0]) as first, rasterio.open(files[1]) as same:
        assert np.array_equal(first.read(), same.read())
        assert first.transform == same.transform


def test_rgba_preview_as_jpeg_and_of_one_band(tmp_path):
    values = smooth()[:1]
    path = write(
        composite_of(values),
        tmp_path / "out.tif",
        layers="rgba",
        overrides={"rgba": {"compress": "jpeg", "jpeg_quality": 90}},
    )
    with rasterio.open(path) as source:
        assert source.count == 3
        assert np.array_equal(source.dataset_mask() > 0, values[0] != 0)


def test_rgba_preview_as_lossless_webp_without_a_gap(tmp_path):
    values = pixels(
        (3, 600, 100), nodata=None
    )  # libwebp leaves out the alpha band of a tile that has a value everywhere
    overrides = {"rgba": {"compress": "webp"}}
    with rasterio.open(write(composite_of(values), tmp_path / "out.tif", layers="rgba", overrides=overrides)) as source:
        assert np.array_equal(source.read(), [*values, np.full(values.shape[1:], 255)])


# --- bad input -------------------------------------------------------------------------------------------------------------


def fails_if_computed():
    def fail(block):
        raise AssertionError("pixels were computed")

    dataset = composite_of(np.zeros((3, 300, 300), "uint16"), 100)
    dataset["composite"] = dataset["composite"].copy(data=dataset["composite"].data.map_blocks(fail, dtype="uint16"))
    return dataset


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"compress": "gzip"}, "compress is 'gzip'; it is one of deflate"),
        ({"compress": "jpeg"}, "takes uint8 pixels, these are uint16"),
        ({"compress": "deflate", "level": 13}, "level is 13"),
        ({"compress": "lzw", "level": 3}, "has no level"),
        ({"compress": "jpeg", "level": 3}, "use jpeg_quality"),
        ({"blocksize": 100}, "multiple of 16"),
        ({"blocksize": "512"}, "blocksize is '512'"),
        ({"predictor": 4}, "predictor is 4"),
        ({"compress": "none", "predictor": 2}, "has no predictor"),
        ({"overview_resampling": "cubic"}, "overview_resampling is 'cubic'"),
        ({"bigtiff": "maybe"}, "bigtiff is 'maybe'"),
        ({"layers": "median"}, "no layer 'median' to write; there are composite, rgba"),
        ({"layers": ()}, "name each layer once"),
        ({"layers": ("composite", "composite")}, "name each layer once"),
        ({"overrides": {"composite": {"quality": 3}}}, "unknown option 'quality'"),
        ({"overrides": {"rgba": {"jpeg_quality": 90}}}, "overrides names rgba"),
        ({"layers": "rgba", "overrides": {"rgba": {"stretch": (5, 5)}}}, "stretch is"),
        ({"layers": ("composite", "rgba"), "separate": False}, "file of its own"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_computing(tmp_path, options, says):
    with pytest.raises(ParameterError, match=says):
        write_raster(fails_if_computed(), tmp_path / "out.tif", **options)
    assert names(tmp_path) == []


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float16", "complex64"])
def test_dtypes_that_few_readers_know_are_refused(tmp_path, dtype):
    with pytest.raises(ParameterError, match=f"{dtype}; cast"):
        write(composite_of(np.ones((1, 4, 4), dtype)), tmp_path / "out.tif")


def test_a_nodata_value_that_is_no_value_of_the_dtype(tmp_path):
    with pytest.raises(ParameterError, match="nodata -1 is not a value of uint8"):
        write(composite_of(pixels((1, 4, 4)), nodata=-1), tmp_path / "out.tif")


def test_nothing_to_write(tmp_path):
    with pytest.raises(ParameterError, match="no layer with the dimensions"):
        write_raster(xr.Dataset({"a": ("x", [1])}), tmp_path / "out.tif")


def test_metadata_with_quotes_survives(tmp_path):
    dataset = composite_of(pixels((1, 20, 20))).assign_attrs(reducer='a "quoted" <name> & more', options={"a": [1, 2]})
    with rasterio.open(write(dataset, tmp_path / "out.tif")) as source:
        assert source.tags()["REDUCER"] == 'a "quoted" <name> & more'
        assert json.loads(source.tags()["OPTIONS"]) == {"a": [1, 2]}


def test_a_real_composite_from_scenes_to_file(tmp_path, scenes_dir):
    import s2composite as s2c

    comp = s2c.composite(s2c.open_cube(str(scenes_dir), chunks=512))
    files = comp.to_raster(tmp_path / "median.tif", layers="all")
    for path, layer in zip(files, comp.dataset.data_vars, strict=True):
        assert path.endswith("median.tif" if layer == "composite" else f"median_{layer}.tif")
        assert np.array_equal(read(path).squeeze(), comp[layer].values)
        assert valid_cog(path)
    with rioxarray.open_rasterio(files[0]) as array:
        assert array.odc.geobox == comp["composite"].odc.geobox
