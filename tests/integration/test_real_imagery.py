"""The whole path on real imagery: from files to composite, COG and Zarr."""

import numpy as np
import pytest
import rasterio
import xarray as xr

import s2composite as s2c
from support.oracles import plain_luminance_median


def cloudy(rgb):
    """Share of bright and grey pixels among those with data: a crude but independent eye for clouds."""
    rgb = rgb.astype(int)
    there = rgb.min(0) > 0
    white = (rgb.min(0) > 150) & (rgb.max(0) - rgb.min(0) < 40)
    return (white & there).sum() / there.sum()


@pytest.fixture(scope="module")
def perito(imagery):
    return s2c.open_cube(imagery / "perito_moreno_rgb_west")


def test_the_glacier_is_clear_of_clouds(perito):
    assert perito.shape == (23, 3, 768, 768)
    comp = s2c.composite(perito).compute()
    picture = comp["composite"].values
    scenes = [cloudy(scene) for scene in perito.values]
    assert cloudy(picture) < 0.01
    assert max(scenes) > 0.3, "there is something to be cleared away"
    outside = (perito.values == 0).all((0, 1))
    assert (comp["count"].values[outside] == 0).all()
    assert (picture[:, outside] == 0).all()
    assert (comp["source"].values[outside] == -1).all()


def test_it_is_the_plain_definition_on_real_pixels(perito):
    part = perito.isel(y=slice(560, 620), x=slice(0, 60)).compute()  # across the edge of the data
    comp, expected = s2c.composite(part), plain_luminance_median(part.values)
    for layer, values in expected.items():
        np.testing.assert_array_equal(comp[layer].values, values)


def test_140_dates_of_forest(imagery, tmp_path):
    cube = s2c.open_cube(str(imagery / "romania_s2_l2a_10m" / "*_TCI.tif"))
    assert cube.shape == (140, 3, 100, 100)
    comp = s2c.composite(cube)
    (path,) = comp.to_raster(str(tmp_path / "forest.tif"), progress=False)
    comp.to_zarr(str(tmp_path / "forest.zarr"), progress=False)
    computed = comp.compute()["composite"].values
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), computed)
        assert dataset.crs.to_epsg() == 3035
    with xr.open_zarr(tmp_path / "forest.zarr") as store:
        np.testing.assert_array_equal(store["composite"].values, computed)
    assert np.median(computed, axis=(1, 2))[1] > np.median(computed, axis=(1, 2))[0], "a forest is green"
    expected = plain_luminance_median(cube.isel(y=slice(0, 30), x=slice(0, 30)).values)
    np.testing.assert_array_equal(computed[:, :30, :30], expected["composite"])
