"""open_cube: its lazy result and its errors."""

import os
import pickle
from dataclasses import replace
from time import process_time

import cloudpickle
import dask
import numpy as np
import pytest
import rasterio
import xarray
from affine import Affine
from dask.system import CPU_COUNT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox

import s2composite as s2c
from s2composite.errors import BandError, GridError, ParameterError, ReadError, SceneError, SourceError
from s2composite.geotiff import structure as tiff
from support.rasters import ORIGIN, encoded, series, write_tif


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("series")
    series(directory, overviews=(2, 4), nodata=0)
    return directory


@pytest.fixture(scope="module")
def expected(folder):
    scenes = []
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as dataset:
            scenes.append(dataset.read())
    return np.stack(scenes)


def test_a_cube_is_lazy_labelled_and_georeferenced(folder):
    cube = s2c.open_cube(folder)
    assert cube.dims == ("time", "band", "y", "x")
    assert cube.shape == (5, 3, 200, 136)
    assert cube.dtype == np.uint8
    assert dask.is_dask_collection(cube.data)
    assert list(cube.band.values) == ["red", "green", "blue"]
    assert str(cube.time.values[1]) == "2023-06-06T10:46:29.000000000"
    assert set(cube.granule.values) == {"31TCJ"}
    assert cube.scene.values[0].startswith("T31TCJ_20230601T104629")
    with rasterio.open(min(folder.glob("*.tif"))) as dataset:
        assert cube.rio.crs == dataset.crs
        assert cube.rio.transform() == dataset.transform
        assert cube.odc.geobox.transform == dataset.transform
    assert cube.attrs["engine"] == "tiles"
    assert cube.attrs["nodata"] == 0


def test_coordinates_without_values_are_left_out(folder):
    assert not {"orbit", "baseline"} & set(s2c.open_cube(folder).coords), "names of true-colour pictures have neither"
    scenes = s2c.find_scenes(folder)
    some = [replace(scenes[0], orbit=51, baseline="05.09"), *scenes[1:]]
    cube = s2c.open_cube(some)
    assert cube["orbit"].values.tolist() == [51, 0, 0, 0, 0]
    assert cube["baseline"].values.tolist() == ["05.09", "", "", "", ""]
    nameless = s2c.open_cube([replace(scene, granule=None) for scene in scenes])
    assert {"scene", "offset", "spatial_ref"} <= set(nameless.coords)
    assert "granule" not in nameless.coords
    assert s2c.composite(nameless)["composite"].equals(s2c.composite(cube)["composite"])


@pytest.mark.parametrize("engine", ["tiles", "gdal"])
@pytest.mark.parametrize("chunks", ["auto", 64, 128, 50, (64, 136), 1000])
def test_pixels_equal_rasterio(folder, expected, engine, chunks):
    cube = s2c.open_cube(folder, chunks=chunks, engine=engine)
    np.testing.assert_array_equal(cube.values, expected)


def test_windows_snap_to_blocks_and_are_one_task_each(folder):
    cube = s2c.open_cube(folder, chunks=100)  # rounded up to two blocks of 64
    assert cube.chunks == ((5,), (3,), (128, 72), (128, 8))
    keys = dict(dask.optimize(cube.data)[0].dask)
    reads = [key for key in keys if isinstance(key, tuple)]
    assert len(reads) == 4
    assert len(keys) == len(reads) + 1  # and the stack, once


@given(
    x0=st.integers(0, 135),
    y0=st.integers(0, 199),
    width=st.integers(1, 136),
    height=st.integers(1, 200),
    chunks=st.integers(20, 200),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_crop_reads_those_pixels(folder, expected, x0, y0, width, height, chunks):
    x1, y1 = min(x0 + width, 136), min(y0 + height, 200)
    geobox = GeoBox((200, 136), ORIGIN, "EPSG:32631")[y0:y1, x0:x1]
    cube = s2c.open_cube(folder, geobox=geobox, chunks=chunks)
    np.testing.assert_array_equal(cube.values, expected[:, :, y0:y1, x0:x1])
    edges = np.cumsum(cube.chunks[2])[:-1] + y0
    if chunks > 64:
        assert not (edges % 64).any(), "windows of a cropped cube snap to the files' blocks"


def test_a_geobox_beyond_the_files_is_filled_with_nodata(folder, expected):
    geobox = GeoBox((200, 136), ORIGIN, "EPSG:32631").pad(10)
    cube = s2c.open_cube(folder, geobox=geobox)
    np.testing.assert_array_equal(cube.values[:, :, 10:-10, 10:-10], expected)
    frame = cube.values.copy()
    frame[:, :, 10:-10, 10:-10] = 0
    assert not frame.any()


def test_bbox_and_datetime_select(folder, expected):
    whole = s2c.open_cube(folder)
    box = BoundingBox(300100, 4899000, 300300, 4899500, "EPSG:32631")
    cube = s2c.open_cube(folder, bbox=box, datetime="2023-06-05/2023-06-15")
    assert cube.sizes == {"time": 2, "band": 3, "y": 50, "x": 20}
    np.testing.assert_array_equal(cube.values, expected[1:3, :, 52:102, 10:30])
    np.testing.assert_array_equal(cube.x, whole.x[10:30])
    lonlat = box.to_crs("EPSG:4326")
    assert s2c.open_cube(folder, bbox=lonlat.bbox).sizes["x"] >= 20


def test_bands_are_chosen_in_the_order_asked_for(folder, expected):
    cube = s2c.open_cube(folder, bands=["blue", "red"])
    assert list(cube.band.values) == ["blue", "red"]
    np.testing.assert_array_equal(cube.values, expected[:, [2, 0]])
    np.testing.assert_array_equal(s2c.open_cube(folder, bands=["TCI"]).values, expected)


def test_choice_of_the_true_colour_picture_is_logged(tmp_path, caplog):
    for name, bands, dtype in (("TCI", 3, np.uint8), ("B04", 1, np.uint16), ("SCL", 1, np.uint8)):
        write_tif(tmp_path / f"T31TCJ_20230601T104629_{name}.tif", np.full((bands, 80, 80), 7, dtype))
    assert s2c.open_cube(tmp_path).dtype == np.uint8
    (told,) = caplog.messages
    assert told == (
        "bands= is not given, so the 8-bit picture TCI is opened, not B04; choose with bands=, for example "
        "bands=['B04'], or bands=['TCI'] for the picture without this message"
    )
    caplog.clear()
    s2c.open_cube(tmp_path, bands=["TCI"])
    (tmp_path / "T31TCJ_20230601T104629_B04.tif").unlink()
    s2c.open_cube(tmp_path)
    assert not caplog.messages, "a mask beside a picture is no other choice"


def test_bands_from_several_files_make_one_scene(tmp_path):
    for day in ("01", "06"):
        for band, value in (("B04", 7), ("B08", 9)):
            write_tif(
                tmp_path / f"T31TCJ_202306{day}T104629_{band}.tif", np.full((80, 80), value + int(day), np.uint16)
            )
    with pytest.raises(BandError, match="B04, B08"):
        s2c.open_cube(tmp_path)
    cube = s2c.open_cube(tmp_path, bands=["B08", "B04"])
    assert cube.shape == (2, 2, 80, 80)
    assert cube.values[:, :, 0, 0].tolist() == [[10, 8], [15, 13]]


@pytest.mark.parametrize(("resolution", "level"), [(20, 2), (40, 4)])
@pytest.mark.parametrize("engine", ["tiles", "gdal"])
def test_a_resolution_of_an_overview_reads_the_overview(folder, resolution, level, engine):
    cube = s2c.open_cube(folder, resolution=resolution, engine=engine)
    for t, path in enumerate(sorted(folder.glob("*.tif"))):
        with rasterio.open(path, overview_level=level // 2 - 1) as dataset:
            np.testing.assert_array_equal(cube.values[t], dataset.read())
            assert cube.rio.transform() == dataset.transform


def test_another_grid_is_warped_as_gdal_does(folder):
    cube = s2c.open_cube(folder, crs="EPSG:3035", resolution=10, resampling="bilinear")
    assert cube.rio.crs.to_epsg() == 3035
    path = sorted(folder.glob("*.tif"))[2]
    with (
        rasterio.open(path) as src,
        rasterio.vrt.WarpedVRT(
            src, crs="EPSG:3035", transform=cube.rio.transform(), width=cube.sizes["x"], height=cube.sizes["y"],
            resampling=rasterio.enums.Resampling.bilinear, tolerance=1e-7, XSCALE="1", YSCALE="1",
        ) as vrt,
    ):  # fmt: skip
        np.testing.assert_array_equal(cube.values[2], vrt.read())
    assert cube.attrs["engine"] == "gdal"
    assert "warped" in cube.attrs["engine_reason"]
    with pytest.raises(GridError, match=r"engine='tiles'.*warped"):
        s2c.open_cube(folder, crs="EPSG:3035", resolution=10, engine="tiles", resampling="cubic")


def test_opening_a_year_is_fast_and_small(tmp_path):
    paths = series(tmp_path, scenes=5)
    scenes = s2c.find_scenes(paths) * 44
    many = [s2c.Scene(f"{i}-{s.id}", s.time, s.assets, s.granule) for i, s in enumerate(scenes)][:216]
    s2c.open_cube(many)
    start = process_time()
    cube = s2c.open_cube(many)
    assert process_time() - start < 1
    assert cube.sizes["time"] == 216


def test_auto_chunks_follow_from_the_memory_of_a_worker_thread(tmp_path, monkeypatch):
    from s2composite.cube import open as cube_module

    write_tif(tmp_path / "T31TCJ_20230601T104629_TCI.tif", encoded(0, 3, 2100, 2100), block=256)
    for memory, size in ((1 << 20, (256, 256)), (8 << 20, (1024, 512)), (200 << 20, (2100, 2100))):
        monkeypatch.setattr(cube_module, "thread_memory", lambda memory=memory: memory)
        monkeypatch.setattr(cube_module, "thread_count", lambda: 1)
        cube = s2c.open_cube(tmp_path)
        assert cube.data.chunksize[2:] == size
        assert size[0] * size[1] * 3 <= memory / 4


def test_cubes_in_different_windows_are_computed_together(folder, expected):
    one, other = s2c.open_cube(folder, chunks=64), s2c.open_cube(folder, chunks=128)
    assert one.chunks != other.chunks
    for cubes in ((one, other), (other, one)):
        for pixels in dask.compute(*cubes):
            np.testing.assert_array_equal(pixels, expected)


def test_index_avoids_reading_headers_of_unchanged_files(tmp_path, monkeypatch):
    paths, index = series(tmp_path, scenes=3), tmp_path / "index.bin"
    first = s2c.open_cube(paths, index=index)
    pixels = first.values
    written = index.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(tiff, "read_head", lambda *_, **__: pytest.fail("a header was read"))
        assert s2c.open_cube(paths, index=index).data.name == first.data.name
    assert index.stat().st_mtime_ns == written
    with open(paths[2], "r+b") as file:
        magic = file.read(4)
        file.seek(0)
        file.write(b"junk")
    os.utime(paths[2])
    with pytest.raises(SceneError):
        s2c.open_cube(paths, index=index)
    with open(paths[2], "r+b") as file:
        file.write(magic)
    np.testing.assert_array_equal(s2c.open_cube(paths, index=index).values, pixels)


def test_a_stack_survives_pickling(folder, expected):
    cube = s2c.open_cube(folder)
    np.testing.assert_array_equal(pickle.loads(cloudpickle.dumps(cube)).values, expected)


def test_the_same_files_have_the_same_keys(folder):
    assert s2c.open_cube(folder).data.name == s2c.open_cube(folder).data.name
    assert s2c.open_cube(folder).data.name != s2c.open_cube(folder, engine="gdal").data.name


# What is refused, and how it is said


def test_error_names_the_differing_scene_and_property(tmp_path):
    series(tmp_path, scenes=4)
    write_tif(tmp_path / "T31TCJ_20230701T104629_TCI.tif", encoded(0, 3, 100, 136))
    write_tif(tmp_path / "T31TCJ_20230706T104629_TCI.tif", encoded(0), crs="EPSG:32632")
    write_tif(tmp_path / "T31TCJ_20230711T104629_TCI.tif", encoded(0).astype(np.uint16))
    write_tif(tmp_path / "T31TCJ_20230716T104629_TCI.tif", encoded(0), transform=ORIGIN @ Affine.translation(1, 0))
    with pytest.raises(GridError) as error:
        s2c.open_cube(tmp_path)
    message = str(error.value)
    assert "4 of 8 scenes" in message
    assert "20230701T104629: size 136 x 100 instead of 136 x 200" in message
    assert "crs EPSG:32632 instead of EPSG:32631" in message
    assert "dtype uint16 instead of uint8" in message
    assert "origin (300010, 4900020) instead of (300000, 4900020)" in message
    assert "geobox=" in message


def test_a_wrong_band_count_is_named(tmp_path):
    series(tmp_path, scenes=2)
    write_tif(tmp_path / "T31TCJ_20230701T104629_TCI.tif", encoded(0)[:1])
    with pytest.raises(SceneError, match=r"20230701T104629_TCI\.tif has 1 band.*red, green, blue"):
        s2c.open_cube(tmp_path)


def test_not_a_tiff_and_truncated_files_are_named(tmp_path):
    paths = series(tmp_path, scenes=2)
    bad = tmp_path / "T31TCJ_20230701T104629_TCI.tif"
    bad.write_bytes(b"this is no picture")
    with pytest.raises(SceneError, match="20230701T104629_TCI"):
        s2c.open_cube(tmp_path)
    with open(paths[0], "rb") as good:
        bad.write_bytes(good.read()[:40])
    with pytest.raises(SceneError, match="20230701T104629_TCI"):
        s2c.open_cube(tmp_path)


def test_a_file_damaged_in_its_pixels_raises_and_can_be_skipped(tmp_path):
    paths = series(tmp_path, scenes=3)
    with open(paths[1], "r+b") as bad:
        bad.seek(len(bad.read()) // 2)
        bad.write(b"\0" * 500)
    cube = s2c.open_cube(tmp_path)
    with pytest.raises(ReadError, match=r"20230606T104629.*window y 0:200 x 0:136.*on_error='skip'"):
        cube.compute()
    comp = s2c.composite(s2c.open_cube(tmp_path, on_error="skip")).compute()
    assert comp["read_status"].values.ravel().tolist() == [0, 2, 0]
    lost = comp["count"].values == 2
    assert lost.any()
    assert not (comp["source"].values[lost] == 1).any()
    blocks = {(y // 64, x // 64) for y, x in np.argwhere(lost)}
    assert lost.sum() == sum(min(64, 200 - 64 * r) * min(64, 136 - 64 * c) for r, c in blocks), (
        "whole blocks, no others"
    )
    for chunks in (30, 64, 200):
        again = s2c.composite(s2c.open_cube(tmp_path, on_error="skip", chunks=chunks)).compute()
        np.testing.assert_array_equal(again["composite"], comp["composite"])
        np.testing.assert_array_equal(again["count"], comp["count"])


@pytest.mark.parametrize("options", [{}, {"crs": "EPSG:3035", "resolution": 13}], ids=["own grid", "other CRS"])
@pytest.mark.parametrize(("block", "shift"), [(16, 0), (64, 20)])
def test_a_damaged_tile_costs_its_own_pixels_and_no_others(block, shift, options, tmp_path):
    """Whatever the windows are, and the tiles of the other scenes."""
    for t, (side, down) in enumerate([(64, 0), (block, shift), (64, 0)]):
        pixels = encoded(t, 1, 100, 90) % 200 + 1
        pixels[:, :side, :side] = 255 if t == 1 else 7
        path = tmp_path / f"T31TC{'K' if down else 'J'}_2023060{t + 1}T104629_B04.tif"
        write_tif(path, pixels, block=side, transform=ORIGIN @ Affine.translation(down, down))
    opened = {"bands": ["B04"], "on_error": "skip", **options}
    whole = s2c.open_cube(tmp_path, **opened).compute()
    readable = (whole.isel(band=0, drop=True) != 255).compute()
    assert 0 < (~readable).sum() < readable[0].size / 2
    (damaged,) = tmp_path.glob("*20230602*")
    with rasterio.open(damaged) as dataset:
        start, size = (int(dataset.get_tag_item(f"BLOCK_{what}_0_0", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:start] + bytes(size) + content[start + size :])
    limited, best = {"max_count": 2}, {"distance": 5}
    for reducer, params in (("mean", {}), ("mean", limited), ("latest", {}), ("best_available_pixel", best)):
        expected = s2c.composite(whole, reducer, valid=[s2c.Nodata(), readable], **params)
        for chunks in (30, 1000):
            comp = s2c.composite(
                s2c.open_cube(tmp_path, **opened, chunks=chunks), reducer, valid=s2c.Nodata(), **params
            )
            np.testing.assert_array_equal(comp["composite"], expected["composite"])
            np.testing.assert_array_equal(comp["count"], expected["count"])
            failed = (comp["read_status"] == 2).any(("window_y", "window_x"))
            assert not failed.values[[0, 2]].any()
            assert failed.values[1] or reducer == "latest" or params


def test_a_scene_that_cannot_be_opened_can_be_skipped(tmp_path):
    series(tmp_path, scenes=3)
    (tmp_path / "T31TCJ_20230602T104629_TCI.tif").write_bytes(b"junk")
    comp = s2c.composite(s2c.open_cube(tmp_path, on_error="skip")).compute()
    assert comp["read_status"].values.ravel().tolist() == [0, 2, 0, 0]
    assert "20230602T104629" in str(comp.dataset.scene.values[1])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"bands": ["nir"]}, BandError, "no band 'nir'; it has red, green, blue, TCI"),
        ({"bbox": (100.0, 10.0, 101.0, 11.0)}, GridError, "does not touch the scenes"),
        ({"bbox": (1.0, 2.0, 3.0)}, ParameterError, "four: west, south, east, north"),
        ({"bbox": (2.0, 44.0, 1.0, 45.0)}, ParameterError, "order is west"),
        ({"bbox": (300000, 4890000, 301000, 4891000)}, ParameterError, "BoundingBox"),
        ({"chunks": 0}, ParameterError, "chunks is 0"),
        ({"chunks": "big"}, ParameterError, "'auto'"),
        ({"engine": "magic"}, ParameterError, "'auto', 'tiles', 'gdal'"),
        ({"on_error": "ignore"}, ParameterError, "'raise', 'skip'"),
        ({"resampling": "smooth"}, ParameterError, "bilinear"),
        ({"resolution": -1}, ParameterError, "positive"),
        ({"resolution": 1e6}, GridError, "other units"),
        ({"datetime": "1999"}, SourceError, "2023"),
    ],
)
def test_bad_arguments_say_what_is_valid(folder, options, error, words):
    with pytest.raises(error, match=words):
        s2c.open_cube(folder, **options)


def test_a_small_area_has_windows_for_every_thread(tmp_path):
    """A single window would leave the other threads idle; windows of whole blocks, so no tile is decoded twice."""
    for day in (4, 9):
        write_tif(tmp_path / f"T31TCJ_2023070{day}T104629_TCI.tif", encoded(day, 3, 1100, 1500), block=256, nodata=0)
    cube = s2c.open_cube(tmp_path)
    rows, columns = cube.chunks[2:]
    assert len(rows) * len(columns) >= min(2 * CPU_COUNT, 6)
    assert {size % 256 for size in (*rows[:-1], *columns[:-1])} == {0}
    whole = s2c.composite(s2c.open_cube(tmp_path, chunks=2048)).compute()
    np.testing.assert_array_equal(s2c.composite(cube).compute()["composite"], whole["composite"])
    warped = s2c.open_cube(tmp_path, crs="EPSG:3035", resolution=10)
    assert min(warped.chunks[2]) > 256, "no slivers where there are no blocks to keep"
    with s2c.connect("local", workers=2, threads=8, dashboard=":0", announce=False):
        many = s2c.open_cube(tmp_path)
        assert max(many.chunks[2]) == max(many.chunks[3]) == 512, "not smaller than pays"


@pytest.mark.filterwarnings("ignore:The data type .FixedLengthUTF32")  # zarr's, for any array of texts
def test_a_cube_is_written_by_xarray(folder, tmp_path):
    cube = s2c.open_cube(folder)
    assert not [name for name in cube.coords if cube[name].dtype == object]
    cube.astype("int16").to_netcdf(tmp_path / "cube.nc", engine="scipy")  # netCDF 3 has no unsigned bytes
    cube.to_zarr(tmp_path / "cube.zarr", consolidated=False)
    for name, engine in (("cube.nc", "scipy"), ("cube.zarr", "zarr")):
        options = {"consolidated": False} if engine == "zarr" else {}
        back = xarray.open_dataarray(tmp_path / name, engine=engine, **options)
        assert set(back.coords) == set(cube.coords), "the CRS, too"
        xarray.testing.assert_equal(
            back, xarray.open_dataarray(tmp_path / name, engine=engine, decode_coords="all", **options)
        )
        np.testing.assert_array_equal(back.values, cube.values)
        assert back.odc.geobox == cube.odc.geobox
        assert back.attrs["engine"] == cube.attrs["engine"] == "tiles"
        assert back.attrs["engine_reason"] == cube.attrs["engine_reason"] == "on the target grid (5 files)"
        for coord in ("time", "band", "scene", "granule", "offset"):
            np.testing.assert_array_equal(back[coord].values.astype(cube[coord].dtype), cube[coord].values)
