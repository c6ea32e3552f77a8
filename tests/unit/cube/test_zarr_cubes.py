"""Cubes of products in Zarr, alone and among COG and JPEG 2000 of the same pixels: the same bytes."""

from pathlib import Path

import numcodecs
import numpy as np
import pytest
import xarray as xr
import yaml
import zarr

import s2composite as s2c
from s2composite.cube.open import stack_of
from s2composite.errors import GridError, SceneError
from s2composite.geotiff import zarr_array
from s2composite.jobs.schema import load_job
from s2composite.runner.run import run_job
from support.http_faults import fault_server
from support.zarr_products import DAYS, PLACES, consolidate, eopf, geozarr, pixels_of, rasters

RULES = [s2c.Nodata(), s2c.SCL(cleanup=(("opening", 1), ("dilation", 2)))]


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Sources of three dates by format, and two that mix them."""
    directory = tmp_path_factory.mktemp("products")
    for day in DAYS:
        eopf(directory / "v2", day)
        geozarr(directory / "v3", day)
        rasters(directory / "cog", day)
        rasters(directory / "jp2", day, driver="JP2OpenJPEG")

    def files(form, number):
        folder = sorted((directory / form).iterdir())[number]
        return [str(folder)] if folder.suffix == ".zarr" else sorted(map(str, folder.iterdir()))

    sources = {form: [f for n in range(3) for f in files(form, n)] for form in ("v2", "v3", "cog", "jp2")}
    sources["mixed"] = [*files("v2", 0), *files("cog", 1), *files("jp2", 2)]
    sources["mixed, JP2 first"] = [*files("jp2", 0), *files("v2", 1), *files("cog", 2)]
    sources["floats"] = [*files("v3", 0), *files("cog", 1), *files("v2", 2)]
    return sources


def composite(source, **options):
    cube = s2c.open_cube(source, **{"bands": ["B04", "B08"], **options})
    return s2c.composite(cube, valid=RULES).compute()


def same(found, expected):
    for layer in ("composite", "count", "source"):
        np.testing.assert_array_equal(found[layer].values, expected[layer].values, err_msg=layer)


@pytest.mark.parametrize("form", ["v2", "jp2", "mixed", "mixed, JP2 first"])
def test_formats_give_the_same_bytes(form, products):
    expected = composite(products["cog"])
    assert len(np.unique(expected["source"])) == 4
    for chunks in (50, (100, 30), "auto") if form == "mixed" else (50,):
        same(composite(products[form], chunks=chunks), expected)


OTHER_GRIDS = [
    {"crs": "EPSG:3035", "resolution": 15},
    {"crs": "EPSG:3035", "resolution": 15, "resampling": "bilinear"},
    {"crs": "EPSG:3035", "resolution": 9, "resampling": "cubic", "chunks": 64},
    {"resolution": 15, "resampling": "lanczos"},
    {"resolution": 5},
]


SLOW = [
    pytest.param(options, marks=pytest.mark.slow) if "resampling" in options else options for options in OTHER_GRIDS
]


@pytest.mark.parametrize("options", SLOW, ids=str)
def test_other_grids(options, products):
    expected = composite(products["cog"], **options)
    for form in ("v2", "mixed"):
        same(composite(products[form], **options), expected)


@pytest.mark.parametrize(
    "options",
    [{"resolution": 20}, {"resolution": 40, "resampling": "average"}, {"crs": "EPSG:3035", "resolution": 30}],
    ids=str,
)
def test_coarser_arrays_are_overviews(options, products):
    same(composite(products["v2"], **options), composite(products["cog"], **options))
    cube = s2c.open_cube(products["v2"], bands=["B04"], resolution=20)
    np.testing.assert_array_equal(
        cube.values[:, 0], s2c.open_cube(products["v2"], bands=["B04"]).values[:, 0, ::2, ::2]
    )


@pytest.mark.parametrize("options", [{}, {"crs": "EPSG:3035", "resolution": 15}, {"resolution": 20}], ids=str)
def test_reflectances_as_integers_and_as_floats(options, products):
    expected = composite(products["cog"], reflectance=True, **options)
    same(composite(products["v2"], reflectance=True, **options), expected)
    for form in ("v3", "floats"):
        found = composite(products[form], reflectance=True, **options)
        assert found["composite"].dtype == np.float32
        np.testing.assert_allclose(found["composite"], expected["composite"], rtol=0, atol=1e-7, equal_nan=True)
        for layer in ("count", "source"):
            np.testing.assert_array_equal(found[layer], expected[layer])


def test_integers_and_floats_without_reflectance_are_one_error(products):
    with pytest.raises(GridError, match=r"(?s)dtype float32.*reflectance=True"):
        composite(products["floats"])
    assert composite(products["v3"])["composite"].dtype == np.float32


def test_values_are_those_of_xarray(products):
    for form in ("v2", "v3"):
        cube = s2c.open_cube(products[form], bands=["B04"], reflectance=True)
        for values, store in zip(cube.values[:, 0], products[form], strict=True):
            group, _, name = PLACES["b04"].rpartition("/")
            with xr.open_zarr(store, group=group) as dataset:
                theirs = dataset[name].values
            if form == "v2":  # ESA's fill value is in an attribute that xarray does not know
                theirs = np.where(np.isclose(theirs, -0.1), np.nan, theirs)
            dark = values < 2e-4  # what the offset would take below the smallest number
            np.testing.assert_allclose(values[~dark], theirs[~dark], rtol=0, atol=1e-7)


def test_rows_of_large_chunks(products, tmp_path, monkeypatch):
    """As ESA's chunks are read, of which a window takes some blocks."""
    monkeypatch.setattr(zarr_array, "_LARGE_CHUNK", 1 << 12)
    compressor = numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE, 1024)
    stores = [str(eopf(tmp_path, day, chunk=120, compressor=compressor)) for day in DAYS]
    header = stack_of(s2c.open_cube(stores, bands=["B04"]))[0].sources[0][0].header
    assert header.block[0] < 120
    expected = composite(products["cog"])
    for options in ({}, {"chunks": 50}, {"engine": "tiles"}):
        same(composite(stores, **options), expected)
    for options in OTHER_GRIDS[:2]:
        same(composite(stores, **options), composite(products["cog"], **options))


def test_what_only_zarr_can_read(products, tmp_path):
    stores = [str(eopf(tmp_path, day, compressor=numcodecs.LZ4())) for day in DAYS]
    cube = s2c.open_cube(stores, bands=["B04"])
    assert cube.attrs["engine"] == "zarr"
    assert "codec lz4" in cube.attrs["engine_reason"]
    for options in ({}, {"chunks": 50}, *OTHER_GRIDS[:2]):
        same(composite(stores, **options), composite(products["cog"], **options))


def test_previews_read_coarser_arrays(products):
    directory = Path(products["v2"][0]).parent
    with fault_server(directory) as server:
        cube = s2c.open_cube([server.url(Path(one).name) for one in products["v2"]], bands=["B04"])
        server.state.requests.clear()
        s2c.composite(cube).preview(60)
        s2c.select_scenes(cube, min_valid=0.1, resolution=20)
        pixels = {path for path, *_ in server.state.requests if not path.endswith((".zmetadata", "zarr.json"))}
    assert pixels
    assert all("/r20m/" in path for path in pixels)


def test_an_index_keeps_no_arrays(products, tmp_path):
    expected = composite(products["cog"])
    for _ in range(2):
        same(composite(products["mixed"], index=tmp_path / "index"), expected)
        same(composite(products["v2"], index=tmp_path / "index"), expected)


def test_workers_in_processes(products, client):
    expected = {form: composite(products[form], reflectance=True) for form in ("v2", "floats")}
    with client.as_current():
        for form, each in expected.items():
            cube = s2c.open_cube(products[form], bands=["B04", "B08"], reflectance=True, chunks=60)
            same(s2c.composite(cube, valid=RULES).compute(), each)


@pytest.mark.slow
def test_a_job(products, client, tmp_path):
    job = {
        "source": products["mixed"], "bands": ["B04", "B08"], "output": str(tmp_path / "median.tif"), "chunks": 64,
        "valid": ["nodata", {"scl": {"cleanup": [["opening", 1], ["dilation", 2]]}}], "raster": {"blocksize": 64},
    }  # fmt: skip
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    result = run_job(load_job(path), client=client)
    expected = composite(products["cog"])["composite"].values
    found = s2c.open_cube(str(result.paths[0]), times=["2025-10-04"]).values[0]
    np.testing.assert_array_equal(found, expected.reshape(found.shape))


def test_pixels_are_there(products):
    """That all formats agree would mean nothing if all were empty."""
    values = s2c.open_cube(products["mixed"], bands=["B04"], harmonise=False).values[:, 0]
    np.testing.assert_array_equal(values, np.stack([pixels_of(day)["b04"] for day in DAYS]))


def with_angles(store, version):
    """Add angles in points 5 km apart: of the sun, and of two bands seen by three detectors, the second by none."""
    points = np.arange(23)
    sun = np.stack([40 + 0.1 * points[:, None] + 0.01 * points, np.full((23, 23), 150.0)])
    view = np.full((2, 3, 2, 23, 23), np.nan)
    view[:, 0, :, :, :12], view[:, 2, :, :, 10:] = 1, 3
    view += 10 * np.arange(2)[:, None, None, None, None] + 100 * np.arange(2)[:, None, None]
    arrays = {
        "x": (699960 + 5000 * points, ["x"]),
        "y": (4700040 - 5000 * points, ["y"]),
        "angle": (np.array(["zenith", "azimuth"]), ["angle"]),
        "band": (np.array(["b04", "b8a"]), ["band"]),
        "detector": (np.arange(3), ["detector"]),
        "sun_angles": (sun, ["angle", "y", "x"]),
        "viewing_incidence_angles": (view, ["band", "detector", "angle", "y", "x"]),
    }
    root = zarr.open_group(store, mode="r+", zarr_format=version, use_consolidated=False)
    for name, (values, dimensions) in arrays.items():
        named = {"attributes": {"_ARRAY_DIMENSIONS": dimensions}} if version == 2 else {"dimension_names": dimensions}
        array = root.create_array(
            f"conditions/geometry/{name}", shape=values.shape, dtype=values.dtype, fill_value=None, **named
        )
        array[:] = values
    consolidate(store)
    return sun, view


@pytest.mark.filterwarnings("ignore:The data type:zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize(("make", "version"), [(eopf, 2), (geozarr, 3)])
def test_angles_are_bands(make, version, tmp_path):
    store = str(make(tmp_path, 1))
    sun, view = with_angles(store, version)
    cube = s2c.open_cube(store, bands=["sun_zenith", "sun_azimuth"])
    np.testing.assert_array_equal(cube[0], sun)
    assert (cube.x.values[:2] == [699960, 704960]).all()  # a pixel lies around its point
    assert (cube.y.values[:2] == [4700040, 4695040]).all()
    seen = s2c.open_cube(store, bands=["view_azimuth_B8A", "view_zenith_B04"])[0].values
    np.testing.assert_array_equal(seen[0], np.where(np.arange(23) < 12, view[1, 0, 1], view[1, 2, 1]))
    np.testing.assert_array_equal(seen[1], np.where(np.arange(23) < 12, view[0, 0, 0], view[0, 2, 0]))
    fine = s2c.open_cube(store, bands=["B04", "sun_zenith"], resampling={"sun_zenith": "bilinear"}, reflectance=True)
    y, x = (np.abs(fine[axis].values - fine[axis].values[0]) + 5 for axis in ("y", "x"))  # metres from the first point
    np.testing.assert_allclose(fine[0, 1], 40 + 0.1 * y[:, None] / 5000 + 0.01 * x / 5000, atol=1e-5)


def test_angles_in_another_order_are_not_mixed_up(tmp_path):
    store = str(eopf(tmp_path, 1))
    with_angles(store, 2)
    zarr.open_array(f"{store}/conditions/geometry/angle", mode="r+")[:] = np.array(["azimuth", "zenith"])
    with pytest.raises(SceneError, match="its angles are sun_azimuth, sun_zenith"):
        s2c.open_cube(store, bands=["sun_zenith"])
