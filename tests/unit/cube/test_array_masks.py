"""Mask arrays and mask bands inside a cube: equal to setting masked pixels to nodata."""

import dask.array as da
import numpy as np
import pytest
import scipy.ndimage as ndi
import xarray as xr

import s2composite as s2c
from s2composite.errors import ParameterError
from s2composite.pixels.mask_bands import SCL

LAYERS = ("composite", "count", "source")


@pytest.fixture(scope="module")
def cube(scenes_dir):
    return s2c.open_cube(scenes_dir, chunks=512)


@pytest.fixture(scope="module")
def usable(cube):
    rng = np.random.default_rng(4)
    shape = tuple(cube.sizes[dim] for dim in ("time", "y", "x"))
    coords = {dim: cube[dim] for dim in ("time", "y", "x")}
    return xr.DataArray(rng.random(shape) < 0.7, coords, ("time", "y", "x"), name="own")


def same(a, b):
    for layer in LAYERS:
        np.testing.assert_array_equal(a[layer], b[layer])


def held(cube, how):
    return {"files": cube, "memory": cube.compute(), "lazy": cube.compute().chunk(time=3, y=170, x=600)}[how]


@pytest.mark.parametrize("how", ["files", "memory", "lazy"])
@pytest.mark.parametrize("mask_chunks", [None, {"time": 2, "y": 100, "x": 333}])
def test_mask_array_equals_the_nodata_rule(cube, usable, how, mask_chunks):
    mask = usable if mask_chunks is None else usable.chunk(mask_chunks)
    expected = s2c.composite(cube.compute().where(usable, np.uint8(0)))
    comp = s2c.composite(held(cube, how), valid=[s2c.Nodata(), s2c.Saturated(), mask.transpose("x", "time", "y")])
    same(comp.compute(), expected)
    assert "mask own" in comp.dataset.attrs["rules"]


def test_masks_are_combined_and_may_be_for_all_times(cube, usable):
    land = xr.DataArray(np.arange(600)[:, None] + np.zeros(600) < 300, dims=("y", "x"))
    expected = s2c.composite(cube.compute().where(usable & land, np.uint8(0)))
    same(s2c.composite(cube, valid=[s2c.Nodata(), s2c.Saturated(), usable, land.chunk(y=64)]).compute(), expected)
    same(s2c.composite(cube.compute(), valid=[s2c.Nodata(), s2c.Saturated(), usable, land]), expected)
    alone = s2c.composite(cube, valid=land).compute()
    assert (alone["count"] == 9 * land).all()


@pytest.mark.parametrize("chunks", [64, 200, 600])
def test_rules_that_look_around_see_the_mask_beyond_their_window(scenes_dir, usable, chunks):
    rules = [s2c.Nodata(), s2c.SwathEdge(5), usable.chunk(time=1, y=90, x=90)]
    whole = s2c.composite(s2c.open_cube(scenes_dir).compute(), valid=[*rules[:2], usable])
    same(s2c.composite(s2c.open_cube(scenes_dir, chunks=chunks), valid=rules).compute(), whole)


def test_selected_times_take_their_part_of_a_mask(cube, usable):
    part = {"time": [1, 4, 7], "y": slice(100, 300), "x": slice(13, 400)}
    expected = s2c.composite(cube.compute().where(usable, np.uint8(0)).isel(part))
    same(s2c.composite(cube.isel(part), valid=[s2c.Nodata(), s2c.Saturated(), usable.isel(part)]).compute(), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.astype("uint8"), "takes boolean arrays"),
        (lambda m: m.isel(y=slice(0, 599)), "own is not on the cube's y axis: 599 values"),
        (lambda m: m.assign_coords(x=m["x"] + 5), "x axis"),
        (lambda m: m.isel(time=slice(None, None, -1)), "time axis"),
        (lambda m: m.expand_dims(band=["red"]), "a mask has"),
        (lambda m: m.isel(y=0), "a mask has"),
        (lambda m: "cloudy", "unknown rule 'cloudy'; there are"),
        (lambda m: 5, "takes rules"),
    ],
)
def test_a_mask_that_does_not_align_is_refused(cube, usable, change, words):
    with pytest.raises(ParameterError, match=words):
        s2c.composite(cube, valid=[s2c.Nodata(), change(usable)])


def scl_like(shape, seed=8):
    rng = np.random.default_rng(seed)
    blobs = ndi.gaussian_filter(rng.normal(size=shape), (0, 3, 3)) > 0.05
    return np.where(blobs, 9, 4).astype(np.uint8)


@pytest.mark.parametrize("how", ["memory", "lazy"])
@pytest.mark.parametrize("kind", ["dataset", "dataarray", "float"])
def test_mask_band_in_the_cube_is_applied_and_removed(how, kind):
    rng = np.random.default_rng(5)
    values = rng.integers(1, 4000, (5, 2, 90, 70), np.uint16)
    scl = scl_like((5, 90, 70))
    bad = np.stack(
        [ndi.binary_dilation(one, np.hypot(*np.ogrid[-3:4, -3:4]) <= 3) for one in np.isin(scl, (3, 8, 9, 10))]
    )
    dims = ("time", "y", "x")
    cube = xr.Dataset({"red": (dims, values[:, 0]), "nir": (dims, values[:, 1]), "SCL": (dims, scl)})
    if kind != "dataset":
        cube = cube.to_dataarray("band").transpose("time", "band", "y", "x")
    if kind == "float":
        cube = cube.astype("float32")
    if how == "lazy":
        cube = cube.chunk(time=2, y=31, x=40)
    comp = s2c.composite(cube, "median", valid=[s2c.Nodata(), SCL(cleanup=[("dilation", 3)])]).compute()
    plain = xr.DataArray(np.where(bad[:, None], 0, values), dims=("time", "band", "y", "x"))
    np.testing.assert_array_equal(comp["count"], s2c.composite(plain, "median", valid=s2c.Nodata())["count"])
    assert comp["composite"].sizes["band"] == 2
    assert comp["composite"].dtype == (np.float32 if kind == "float" else np.uint16)
    assert "SCL" in comp.dataset.attrs["rules"]


@pytest.mark.parametrize("size", [(1, 6), (6, 1), (1, 1), (2, 2)])
def test_mask_bands_smaller_than_what_surrounds_a_pixel(size):
    scl = np.full((3, *size), 4, np.uint8)
    scl[0, 0, 0] = 9
    dims, rule = ("time", "y", "x"), SCL(cleanup=[("dilation", 3)])
    cube = xr.Dataset({"red": (dims, np.full((3, *size), 7, np.uint16)), "SCL": (dims, scl)})
    whole = s2c.composite(cube, valid=rule).compute()
    assert whole["count"].values[0, 0] == 2
    for chunks in (1, 2, 6):
        same(s2c.composite(cube.chunk(time=2, y=chunks, x=chunks), valid=rule).compute(), whole)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float64"])
def test_labels_of_any_type(dtype):
    """Differences of unsigned labels that fall wrap around."""
    cube = xr.DataArray(np.full((2, 1, 4, 4), 7, np.uint16), dims=("time", "band", "y", "x"))
    cube = cube.assign_coords(y=np.arange(4, dtype=dtype)[::-1], x=np.arange(4, dtype=dtype))
    top = xr.DataArray(np.arange(4) == 0, dims="y", coords={"y": cube["y"]}).expand_dims(x=cube["x"], axis=1)
    for mask in (top, top.isel(y=slice(None, None, -1))):
        counts = s2c.composite(cube, "median", valid=mask).compute()["count"].values
        assert counts.tolist() == [[2] * 4] + [[0] * 4] * 3
    with pytest.raises(ParameterError, match="y axis"):
        s2c.composite(cube, "median", valid=top.assign_coords(y=top["y"] + 100))


def test_cube_with_only_a_mask_band_is_an_error():
    scl = xr.DataArray(scl_like((3, 8, 8)), dims=("time", "y", "x"), name="SCL")
    with pytest.raises(ParameterError, match="only the mask band"):
        s2c.composite(scl, valid=SCL())
    with pytest.raises(ParameterError, match="only the mask band"):
        s2c.composite(scl.to_dataset(), valid=SCL())


def test_masks_stay_lazy(cube, usable):
    def explode(block):
        raise AssertionError

    lazy = xr.DataArray(da.map_blocks(explode, da.ones(usable.shape, chunks=600), dtype=bool), dims=usable.dims)
    s2c.composite(cube, valid=[s2c.Nodata(), lazy])
