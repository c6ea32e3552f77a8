"""Previews: a small composite of the files' overviews, without the files' pixels."""

import numpy as np
import pytest
import xarray as xr

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.errors import ParameterError


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    directory = tmp_path_factory.mktemp("preview")
    make_scenes(str(directory), scenes=5, size=1200, seed=2, compress="deflate")
    return s2c.open_cube(str(directory))


def test_it_is_the_composite_of_the_scenes_overviews(cube):
    found = s2c.composite(cube, min_count=2).preview(300)
    coarse = s2c.open_cube([str(a) for a in hrefs(cube)], resolution=40)
    xr.testing.assert_identical(
        found.dataset.drop_attrs(), s2c.composite(coarse, min_count=2).compute().dataset.drop_attrs()
    )
    assert found["composite"].sizes["y"] == 300
    assert found.dataset.odc.geobox.extent.boundingbox == cube.odc.geobox.extent.boundingbox
    assert not found.dataset.chunks


def hrefs(cube):
    from s2composite.cube.open import stack_of

    return [asset.href for scene in stack_of(cube)[0].scenes for asset in scene.assets]


def test_no_full_pixel_is_read(cube, monkeypatch):
    from s2composite.reading.stack import Stack

    shapes = []
    read = Stack.read_all
    monkeypatch.setattr(
        Stack, "read_all", lambda self, *args, **how: (shapes.append(self.shape), read(self, *args, **how))[1]
    )
    for reducer in ("luminance_median", ["luminance_median", "mean"]):
        s2c.composite(cube, reducer).preview(300)
    assert {shape[2:] for shape in shapes} == {(300, 300)}


def test_its_periods_and_reducers_are_those_of_the_composite(cube):
    comp = s2c.composite(cube, ["luminance_median", "mean"], period="month")
    small = comp.preview(300)
    assert set(small.dataset.data_vars) == set(comp.dataset.data_vars)
    for name in ("time", "period", "scenes", "time_bounds"):
        np.testing.assert_array_equal(small.dataset[name], comp.dataset[name])
    assert small.dataset.attrs["reducer"] == comp.dataset.attrs["reducer"]
    assert small.plot.periods(layer=next(n for n in small.dataset.data_vars if "band" in small.dataset[n].dims)).axes


def test_of_anything_else_every_nth_pixel_is_taken(cube):
    whole = s2c.composite(cube)
    computed = whole.compute()
    expected = computed.dataset.isel(y=slice(None, None, 4), x=slice(None, None, 4))
    xr.testing.assert_identical(computed.preview(300).dataset, expected)
    part = s2c.Composite(whole.dataset.isel(y=slice(0, 600)))
    xr.testing.assert_identical(part.preview(300).dataset["count"], computed.dataset["count"][:600:4, ::4])
    mask = xr.zeros_like(cube[:, 0], bool)
    assert int(s2c.composite(cube, valid=[mask.compute()]).preview(300)["count"].max()) == 0, "masks are not forgotten"
    month = s2c.composite(cube, period="month")
    one = month.dataset["period"].values[0]
    np.testing.assert_array_equal(
        month.period(one).preview(300)["count"], month.compute().period(one)["count"][::4, ::4]
    )


def test_a_preview_that_is_not_smaller_is_the_composite(cube):
    xr.testing.assert_identical(s2c.composite(cube).preview(5000).dataset, s2c.composite(cube).dataset.compute())
    with pytest.raises(ParameterError, match="size=0"):
        s2c.composite(cube).preview(0)
