"""What holds for every reducer, whatever the pixels: observed values, indifference to invalid scenes, equal scenes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2composite.pixels.reducers import Recipe, reduce_block, reducer_names, resolve_reducer
from support import oracles

PICKING = {
    "luminance_median": {}, "rank": {"key": "b1", "quantile": 0.3}, "quality_mosaic": {"key": ("b1", "b0")},
    "max_ndvi": {"nir": "b1", "red": "b0"}, "latest": {}, "earliest": {}, "closest_to": {"date": "1970-02-01"},
    "medoid": {}, "best_available_pixel": {"day_of_year": 40},
}  # fmt: skip
MAKING = {
    "geomedian": {}, "median": {}, "percentile": {"q": 20}, "mean": {}, "std": {}, "min": {}, "max": {},
    "trimmed_mean": {},
}  # fmt: skip
EVERY = PICKING | MAKING
BANDS = ("b0", "b1", "b2")


@st.composite
def stacks(draw):
    """(t, 3, 2, n) of uint8 or float32, from all missing to all there."""
    dtype = np.dtype(draw(st.sampled_from(["uint8", "float32"])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 14)), 3, 2, draw(st.sampled_from([1, 5, 70])))
    pixels = rng.integers(1, draw(st.sampled_from([4, 250])), shape).astype(dtype)
    bad = rng.random((shape[0], 1, *shape[2:])) < draw(st.sampled_from([0, 0.4, 0.9, 1]))
    return np.where(bad, dtype.type(np.nan if dtype.kind == "f" else 0), pixels)


def recipe_of(pixels, name, days=None):
    days = tuple(range(len(pixels))) if days is None else days
    return Recipe((resolve_reducer(name, **EVERY[name]),), bands=BANDS, days=days)


def reduced(pixels, name, days=None):
    return reduce_block(pixels, recipe_of(pixels, name, days))


def test_no_reducer_is_forgotten():
    assert set(EVERY) == set(reducer_names())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pixels=stacks(), name=st.sampled_from(sorted(PICKING)))
def test_a_picked_value_is_an_observed_one(pixels, name):
    result = reduced(pixels, name)
    valid = ~np.isnan(oracles.masked(pixels, (0, 255) if pixels.dtype.kind == "u" else ())).any(axis=1)
    for y, x in np.ndindex(pixels.shape[2:]):
        scene = result["source"][y, x]
        assert (scene >= 0) == valid[:, y, x].any()
        if scene >= 0:
            assert valid[scene, y, x]
            np.testing.assert_array_equal(result["composite"][:, y, x], pixels[scene, :, y, x])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pixels=stacks(), name=st.sampled_from(sorted(EVERY)), data=st.data())
def test_an_invalid_scene_changes_nothing(pixels, name, data):
    at = data.draw(st.integers(0, len(pixels)))
    bad = pixels.dtype.type(np.nan if pixels.dtype.kind == "f" else 0)
    more = np.insert(pixels, at, bad, axis=0)
    days = tuple(range(len(pixels)))
    without, with_it = reduced(pixels, name), reduced(more, name, (*days[:at], 33, *days[at:]))
    for layer, array in without.items():
        moved = array + ((array >= at) & (array >= 0)) if layer == "source" else array
        np.testing.assert_array_equal(with_it[layer], moved)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pixels=stacks(), name=st.sampled_from(sorted(EVERY)), times=st.integers(1, 20))
def test_equal_observations_return_themselves(pixels, name, times):
    result = reduced(np.repeat(pixels[:1], times, axis=0), name)["composite"]
    if name == "std":
        assert not np.nan_to_num(result).any()
    elif name == "geomedian" and pixels.dtype.kind == "f":
        np.testing.assert_allclose(result, pixels[0], rtol=1e-6)
    else:
        dropped = pixels.dtype.kind == "u" and (pixels[0] == 255).any()
        assert dropped or np.array_equal(result, pixels[0], equal_nan=pixels.dtype.kind == "f")


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(pixels=stacks(), name=st.sampled_from(sorted(EVERY)), start=st.integers(0, 69), n=st.integers(1, 70))
def test_neighbours_change_nothing(pixels, name, start, n):
    """But for those that a reducer looks at and says so: a distance to clouds is one of pixels around."""
    columns = pixels.shape[3]
    start = min(start, columns - 1)
    stop = min(start + n, columns)
    recipe = recipe_of(pixels, name)
    first, last = max(start - recipe.halo, 0), min(stop + recipe.halo, columns)
    inner = (slice(0, 2), slice(start - first, stop - first))
    part = reduce_block(np.ascontiguousarray(pixels[..., first:last]), recipe, inner=inner)
    whole = reduced(pixels, name)
    for layer, array in part.items():
        np.testing.assert_array_equal(array, whole[layer][..., start:stop])


@pytest.mark.parametrize(
    "name", sorted({"median", "percentile", "mean", "std", "min", "max", "trimmed_mean", "geomedian"})
)
def test_the_order_of_scenes_does_not_matter(name):
    rng = np.random.default_rng(3)
    pixels = rng.integers(1, 250, (11, 3, 2, 40)).astype(np.uint8)
    order = rng.permutation(11)
    one, other = reduced(pixels, name), reduced(pixels[order], name)
    for layer, array in one.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(other[layer], array, rtol=2e-2, atol=1e-3)
        else:
            assert np.abs(other[layer].astype(int) - array).max() <= (name == "geomedian")
