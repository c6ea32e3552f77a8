"""The composite: same bytes for any chunking and any way to open, few tasks, a small graph."""

import collections

import cloudpickle
import dask
import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pytest
import rioxarray
import xarray as xr
from dask.utils import key_split
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import s2composite as s2c
from s2composite.errors import ParameterError
from support.oracles import plain_luminance_median
from support.rasters import series

LAYERS = ("composite", "count", "source")


@pytest.fixture(scope="module")
def cube(scenes_dir):
    return s2c.open_cube(scenes_dir)


@pytest.fixture(scope="module")
def reference(cube):
    return s2c.composite(cube).compute()


def same(a, b):
    for layer in LAYERS:
        np.testing.assert_array_equal(a[layer].values, b[layer].values)


def test_composite_equals_the_definition(cube, reference):
    part = {"y": slice(40, 110), "x": slice(300, 380)}
    expected = plain_luminance_median(cube.isel(part).values)
    for layer in LAYERS:
        np.testing.assert_array_equal(reference[layer].isel(part).values, expected[layer])
    assert expected["count"].max() > 2


def test_layers_dtypes_and_labels(reference):
    ds = reference.dataset
    assert ds["composite"].dims == ("band", "y", "x")
    assert (ds["composite"].dtype, ds["count"].dtype, ds["source"].dtype) == (np.uint8, np.uint16, np.int16)
    assert ds["composite"].rio.crs.to_epsg() == 32631
    assert ds["count"].odc.geobox.transform.c == 300000
    assert ds.sizes["scene"] == 9
    date = reference.date()
    picked = int(ds["source"][100, 100])
    expected = ds["scene_time"].values[picked] if picked >= 0 else np.datetime64("NaT")
    assert date.values[100, 100] == expected or (np.isnat(date.values[100, 100]) and picked < 0)


@pytest.mark.slow
@given(chunks=st.one_of(st.integers(30, 700), st.tuples(st.integers(60, 700), st.integers(60, 700))))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_chunks_same_bytes(scenes_dir, reference, chunks):
    same(s2c.composite(s2c.open_cube(scenes_dir, chunks=chunks)).compute(), reference)


def test_any_way_to_hold_the_cube_same_bytes(cube, reference, scenes_dir):
    loaded = cube.compute()
    same(s2c.composite(loaded), reference)
    same(s2c.composite(loaded.chunk(time=2, y=250, x=250)), reference)
    same(s2c.composite(loaded.transpose("y", "x", "band", "time")), reference)
    same(s2c.composite(cube + np.uint8(0)).compute(), reference)
    same(s2c.composite(cube.to_dataset("band")).compute(), reference)
    paths = sorted(scenes_dir.glob("*_TCI.tif"))
    opened = xr.concat([rioxarray.open_rasterio(p, chunks=300) for p in paths], dim="time")
    same(s2c.composite(opened).compute(), reference)
    opened.close()


def test_selected_times_and_areas_read_only_those(cube, reference):
    half = cube.isel(time=[0, 2, 4, 6])
    same(s2c.composite(half).compute(), s2c.composite(half.compute()))
    part = cube.isel(y=slice(100, 300), x=slice(50, 400))
    same(
        s2c.composite(part).compute(),
        {layer: reference[layer].isel(y=slice(100, 300), x=slice(50, 400)) for layer in LAYERS},
    )
    backwards = cube.isel(time=slice(None, None, -1))
    same(s2c.composite(backwards).compute(), s2c.composite(backwards.compute()))
    flipped = cube.isel(y=slice(None, None, -1))
    same(s2c.composite(flipped).compute(), s2c.composite(flipped.compute()))
    one_band = cube.sel(band=["green"])
    same(s2c.composite(one_band).compute(), s2c.composite(one_band.compute()))


def test_changed_values_are_not_read_again_from_the_files(cube):
    masked = cube.where(cube.time > cube.time[3], np.uint8(0))
    comp = s2c.composite(masked).compute()
    assert int(comp["source"].min()) >= -1
    assert set(np.unique(comp["source"])) <= {-1, 4, 5, 6, 7, 8}


def test_four_tasks_a_window(scenes_dir):
    cube = s2c.open_cube(scenes_dir, chunks=256)
    windows = cube.data.npartitions // 1
    (dataset,) = dask.optimize(s2c.composite(cube).dataset)
    names = collections.Counter(key_split(key) for key in dict(dataset.__dask_graph__()) if isinstance(key, tuple))
    assert names["composite-window"] == windows
    assert sum(names.values()) <= 4 * windows
    assert not any(name.startswith("read") for name in names)


def test_the_graph_of_a_year_over_a_granule_is_small(tmp_path):
    from odc.geo.geobox import GeoBox

    from support.rasters import ORIGIN

    scenes = s2c.find_scenes(series(tmp_path, scenes=5)) * 44
    many = [s2c.Scene(f"{i:03d}-{s.id}", s.time, s.assets, s.granule) for i, s in enumerate(scenes)][:216]
    cube = s2c.open_cube(many, geobox=GeoBox((10980, 10980), ORIGIN, "EPSG:32631"), chunks=1024)
    comp = s2c.composite(cube)
    assert comp["count"].data.npartitions == 121
    (dataset,) = dask.optimize(comp.dataset)
    assert len(cloudpickle.dumps(dataset.__dask_graph__())) < 1_000_000


def test_a_foreign_lazy_cube_is_never_a_task_result(scenes_dir):
    cube = s2c.open_cube(scenes_dir, chunks=256) + np.uint8(0)
    (dataset,) = dask.optimize(s2c.composite(cube).dataset)
    graph = dict(dataset.__dask_graph__())
    windows = cube.data.npartitions
    names = collections.Counter(key[0].rsplit("-", 1)[0] for key in graph if isinstance(key, tuple))
    assert names.pop("add-composite-window") == windows, "reads, adds and reduces"
    assert names.pop("composite-window") == windows, "an alias of it"
    assert names == {"take-composite": windows, "take-count": windows, "take-source": windows}, names


def test_a_task_takes_little_more_memory_than_the_pixels_of_its_window(scenes_dir):
    import tracemalloc

    from s2composite.cube.open import stack_of
    from s2composite.cube.windows import compose_window
    from s2composite.pixels.reducers import Recipe, resolve_reducer

    stack, _ = stack_of(s2c.open_cube(scenes_dir))
    recipe = Recipe((resolve_reducer("luminance_median"),), bands=stack.bands)
    window = (slice(0, 600), slice(0, 600))
    compose_window(stack, recipe, window)
    tracemalloc.start()
    compose_window(stack, recipe, window)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.25 * stack.size(window) * stack.dtype.itemsize


def test_a_warped_window_takes_the_memory_that_was_planned_and_not_that_of_its_pixels(tmp_path):
    import tracemalloc

    from s2composite.cube.windows import compose_window, work_in
    from s2composite.runner.inputs import task_memory
    from support.rasters import write_tif

    pixels = np.random.default_rng(3).integers(1, 250, (3, 1024, 1024), np.uint8)
    first = write_tif(tmp_path / "T31TCJ_20230601T104629_TCI.tif", pixels, block=256)
    for day in range(2, 29):
        (tmp_path / f"T31TCJ_202306{day:02d}T104629_TCI.tif").symlink_to(first)
    cube = s2c.open_cube(tmp_path, crs="EPSG:3035", resolution=10, chunks=4096)
    work = work_in(s2c.composite(cube, "median").dataset)
    window = tuple(slice(0, n) for n in cube.shape[2:])
    compose_window(work.stack, work.recipe, tuple(slice(0, 64) for _ in window))
    tracemalloc.start()
    compose_window(work.stack, work.recipe, window)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < task_memory(work, window) < 0.8 * cube.nbytes


def test_rules_can_be_changed_and_switched_off():
    values = np.array([0, 255, 40, 50], "uint8").reshape(4, 1, 1, 1)
    cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    assert int(s2c.composite(cube)["count"][0, 0]) == 2
    assert int(s2c.composite(cube, valid=())["count"][0, 0]) == 4
    assert int(s2c.composite(cube, valid=s2c.Nodata())["count"][0, 0]) == 3
    assert int(s2c.composite(cube, valid=[s2c.Nodata(40), s2c.Saturated(50)])["count"][0, 0]) == 2


@pytest.mark.slow
def test_processes_with_a_cold_numba_cache_agree(scenes_dir, reference, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cold"))
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        same(s2c.composite(s2c.open_cube(scenes_dir, chunks=128)).compute(), reference)


def test_repr_says_what_it_is(cube, reference):
    assert "luminance_median of 9 scenes" in repr(s2c.composite(cube))
    assert "lazy" in repr(s2c.composite(cube))
    assert "in memory" in repr(reference)
    assert "<b>s2composite.Composite</b>" in reference._repr_html_()
    lines = [line.strip() for line in repr(reference).splitlines()]
    assert "composite    (band: 3, y: 600, x: 600) uint8, nodata 0" in lines
    assert "source       (y: 600, x: 600) int16, nodata -1" in lines
    assert lines[-1] == "rules: nodata 0, saturated 255"
    assert "None" not in repr(reference) + repr(reference.dataset)


def test_attributes_are_strings_and_numbers_without_duplicates(cube):
    attrs = s2c.composite(cube).dataset.attrs
    assert {name: value for name, value in attrs.items() if name != "software"} == {
        "reducer": "luminance_median",
        "rules": "nodata 0, saturated 255",
        "engine": "tiles",
        "engine_reason": "on the target grid (9 files)",
        "sensor": "sentinel-2",
    }
    nodata = s2c.composite(cube)["composite"].attrs["nodata"]
    assert (nodata, type(nodata)) == (0, int)
    assert s2c.composite(cube, "trimmed_mean", fraction=0.2).dataset.attrs["parameters"] == "trimmed_mean(fraction=0.2)"


@pytest.mark.parametrize(
    ("valid", "dtype", "says"),
    [
        ([s2c.Nodata(7), s2c.Saturated(200)], "uint8", "nodata 7, saturated 200"),
        (None, "uint16", "nodata 0, saturated 65535"),
        (None, "float32", "nodata NaN, saturated (no value is known)"),
        (s2c.ValueRange(1, 200), "uint8", "values from 1 to 200"),
        (s2c.ValueRange(high=0.5, bands="red"), "float32", "values to 0.5 of red"),
        (s2c.SwathEdge(3), "uint8", "3 pixels around nodata 0"),
        ((), "uint8", "none"),
    ],
)
def test_rules_are_described_with_their_values(valid, dtype, says):
    values = np.full((2, 1, 4, 4), 5, dtype)
    cube = xr.DataArray(values, {"band": ["red"]}, ("time", "band", "y", "x"))
    assert s2c.composite(cube, "median", valid=valid).dataset.attrs["rules"] == says


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda c: s2c.composite(c, "mediane"), "luminance_median"),
        (lambda c: s2c.composite(c, quantile=2), "quantile"),
        (lambda c: s2c.composite(c.isel(time=0)), "time, band, y, x"),
        (lambda c: s2c.composite(c.isel(time=slice(0, 0))), "no times"),
        (lambda c: s2c.composite(c.values), "DataArray"),
        (lambda c: s2c.composite(s2c.composite(c)), "already a composite"),
        (lambda c: s2c.composite(c)["colour"], "composite, source, count"),
    ],
)
def test_bad_arguments_say_what_is_valid(cube, make, words):
    with pytest.raises(ParameterError, match=words):
        make(cube)


def test_arrays_from_odc_stac_go_straight_in(scenes_dir, tmp_path):
    import odc.stac
    import pystac
    from odc.geo.geobox import GeoBox

    from support.rasters import ORIGIN, encoded, write_tif

    grid, items = GeoBox((200, 136), ORIGIN, "EPSG:32631"), []
    for t in range(4):
        bands = dict(zip(("red", "green", "blue"), encoded(t), strict=True))
        hrefs = {name: write_tif(tmp_path / f"S{t}_{name}.tif", band, nodata=0) for name, band in bands.items()}
        proj = {"proj:epsg": 32631, "proj:shape": list(grid.shape), "proj:transform": list(ORIGIN)[:6]}
        item = {
            "type": "Feature", "stac_version": "1.0.0", "id": f"S{t}", "collection": "s2", "links": [],
            "stac_extensions": ["https://stac-extensions.github.io/projection/v1.1.0/schema.json"],
            "geometry": grid.geographic_extent.json, "bbox": list(grid.geographic_extent.boundingbox.bbox),
            "properties": {"datetime": f"2023-06-{1 + 5 * t:02d}T10:46:29Z", **proj},
            "assets": {name: {"href": href, "type": "image/tiff", "roles": ["data"]} for name, href in hrefs.items()},
        }  # fmt: skip
        items.append(pystac.Item.from_dict(item))
    settings = {"s2": {"assets": {"*": {"data_type": "uint8", "nodata": 0}}}}
    loaded = odc.stac.load(
        items, geobox=grid, chunks={"x": 64, "y": 64}, stac_cfg=settings, bands=["red", "green", "blue"]
    )
    comp = s2c.composite(loaded).compute()
    expected = plain_luminance_median(np.stack([encoded(t) for t in range(4)]))
    for layer in LAYERS:
        np.testing.assert_array_equal(comp[layer].values, expected[layer])
    assert comp["composite"].odc.geobox == grid


@pytest.mark.parametrize("corner", [True, False])
def test_arrays_as_stackstac_makes_them_are_not_half_a_pixel_off(corner):
    from odc.geo.geobox import GeoBox

    from support.rasters import ORIGIN, encoded

    grid = GeoBox((200, 136), ORIGIN, "EPSG:32631")
    pixels = np.stack([encoded(t) for t in range(4)])
    shift = 0 if corner else 5
    cube = xr.DataArray(
        pixels.astype(float),
        {"x": 300000 + shift + 10.0 * np.arange(136), "y": 4900020 - shift - 10.0 * np.arange(200)},
        ("time", "band", "y", "x"),
        attrs={"crs": "epsg:32631", "transform": ORIGIN, "resolution": 10.0},
    )
    comp = s2c.composite(cube)
    assert comp["composite"].odc.geobox == grid
    np.testing.assert_array_equal(comp["composite"], plain_luminance_median(pixels)["composite"])
    part = s2c.composite(cube.isel(y=slice(30, 90), x=slice(7, 50)))
    assert part["count"].odc.geobox == grid[30:90, 7:50]


# --- Scenes that touch a window ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scattered(tmp_path_factory):
    """Twelve scenes of 128 x 128 on a grid of 400 x 400, none of which covers the grid; and that grid."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    from support.rasters import ORIGIN, write_tif

    directory = tmp_path_factory.mktemp("scattered")
    rng = np.random.default_rng(12)
    for t in range(12):
        y, x = rng.integers(0, 272, 2)
        pixels = rng.integers(1, 250, (3, 128, 128), np.uint8)
        name = f"T31TCJ_202306{t + 1:02d}T104629_TCI.tif"
        write_tif(directory / name, pixels, transform=ORIGIN @ Affine.translation(int(x), int(y)), nodata=0)
    return directory, GeoBox((400, 400), ORIGIN, "EPSG:32631")


@pytest.mark.parametrize("chunks", [64, 100, 400])
@pytest.mark.parametrize(
    ("reducer", "params"),
    [
        ("luminance_median", {}),
        ("latest", {}),
        ("closest_to", {"date": "2023-06-06"}),
        ("best_available_pixel", {"distance": 9, "clear": tuple(np.linspace(0, 1, 12))}),
        ("geomedian", {}),
    ],
)
def test_scenes_that_do_not_touch_a_window_do_not_matter(scattered, chunks, reducer, params):
    directory, grid = scattered
    cube = s2c.open_cube(directory, geobox=grid, chunks=chunks)
    rules = [s2c.Nodata(), s2c.Saturated()]
    comp = s2c.composite(cube, reducer, valid=rules, period=["2023-06-01/2023-06-07", "2023-06"], **params).compute()
    whole = s2c.composite(cube.compute(), reducer, valid=rules, period=["2023-06-01/2023-06-07", "2023-06"], **params)
    for layer in whole.dataset.data_vars:
        np.testing.assert_array_equal(comp[layer], whole[layer])
    assert 0 < int(comp["count"].max()) < 12


def test_a_window_takes_memory_for_the_scenes_that_touch_it(scattered):
    from s2composite.cube.open import window_at
    from s2composite.cube.windows import work_in

    directory, grid = scattered
    comp = s2c.composite(s2c.open_cube(directory, geobox=grid, chunks=50, on_error="skip"))
    work = work_in(comp.dataset)
    status = comp.compute()["read_status"].values
    for row, column in np.ndindex(status.shape[1:]):
        window = window_at(work.spatial, row, column)
        read = np.flatnonzero(status[:, row, column] == 0)
        assert set(read) <= set(work.stack.touching(window))
    assert 0 < (status == 0).mean() < 0.5
