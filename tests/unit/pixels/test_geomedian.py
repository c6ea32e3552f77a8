"""Geometric medians: the definition, geomad's results, degenerate pixels, and independence of neighbours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2composite.errors import ParameterError
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer
from support import oracles

geomad = pytest.importorskip("geomad", reason="geomad is the peer that these tests compare with")


def recipe(nodata=None, min_count=1, rules=None, **params):
    given_rules = {} if rules is None else {"rules": rules}
    return Recipe((resolve_reducer("geomedian", **params),), nodata=nodata, min_count=min_count, **given_rules)


def season(times, bands, height, width, seed=0, missing=0.4):
    """Reflectances with noise, clouds and missing observations, float32."""
    rng = np.random.default_rng(seed)
    land = rng.gamma(3, 0.05, (1, bands, height, width))
    cloud = (rng.random((times, 1, height, width)) < 0.15) * rng.random((times, bands, height, width)) * 0.6
    pixels = (land + rng.normal(0, 0.02, (times, bands, height, width)) + cloud).clip(1e-3).astype(np.float32)
    pixels[(rng.random((times, 1, height, width)) < missing).repeat(bands, axis=1)] = np.nan
    return pixels


def points_at(pixels, y, x):
    points = pixels[:, :, y, x].astype(np.float64)
    return points[np.isfinite(points).all(axis=1)]


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@settings(max_examples=30, deadline=None)
@given(
    times=st.integers(1, 30),
    bands=st.integers(1, 7),
    seed=st.integers(0, 1000),
    missing=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_geomedians_and_deviations_are_the_definition(dtype, times, bands, seed, missing):
    pixels = season(times, bands, 2, 3, seed, missing).astype(dtype)
    result = reduce_block(pixels, recipe(eps=1e-7, max_iterations=20000))
    for y, x in np.ndindex(2, 3):
        points = points_at(pixels, y, x)
        assert result["count"][y, x] == len(points)
        found = result["composite"][:, y, x].astype(np.float64)
        if not len(points):
            assert np.isnan(found).all()
            assert np.isnan(result["smad"][y, x])
            continue
        best = oracles.geometric_median(points)
        assert oracles.total_distance(points, found) <= oracles.total_distance(points, best) * (1 + 1e-4) + 1e-6
        expected = oracles.deviations(points, found)
        got = [result[name][y, x] for name in ("smad", "emad", "bcmad")]
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_geomad_gives_the_same():
    pixels = season(40, 6, 12, 20)
    swapped = np.ascontiguousarray(pixels.transpose(2, 3, 1, 0))
    middle = geomad.nangeomedian_pcm(swapped, num_threads=1, eps=1e-6, maxiters=5000)
    result = reduce_block(pixels, recipe(eps=1e-6, max_iterations=5000))
    enough = result["count"] >= 3
    np.testing.assert_allclose(result["composite"][:, enough], middle.transpose(2, 0, 1)[:, enough], atol=1e-4)
    for name, peer in (("smad", geomad.smad_pcm), ("emad", geomad.emad_pcm), ("bcmad", geomad.bcmad_pcm)):
        np.testing.assert_allclose(result[name][enough], peer(swapped, middle, num_threads=1)[enough], atol=2e-4)


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_geomad_gives_the_same_for_integers_with_and_without_nodata(dtype, missing):
    floats = season(30, 6, 6, 15, seed=1, missing=missing)
    nodata = 0 if dtype == np.uint16 else -999
    pixels = np.where(np.isnan(floats), nodata, np.round(np.nan_to_num(floats) * 10000)).astype(dtype)
    swapped, how = np.ascontiguousarray(pixels.transpose(2, 3, 1, 0)), {"nodata": nodata, "num_threads": 1}
    middle = geomad.nangeomedian_pcm(swapped, eps=1e-2, maxiters=5000, scale=1.0, offset=0.0, **how)
    result = reduce_block(pixels, recipe(nodata=nodata, eps=1e-2, max_iterations=5000))
    enough = result["count"] >= 3
    assert enough.mean() > 0.9
    off = np.abs(result["composite"] - middle.transpose(2, 0, 1))[:, enough]
    assert off.max() <= 0.5 + 0.25, "rounded, and two ways of stopping"
    wide = np.where(swapped == nodata, np.nan, swapped).astype(np.float32)  # geomad's deviations know no int16
    for name, peer in (("smad", geomad.smad_pcm), ("emad", geomad.emad_pcm), ("bcmad", geomad.bcmad_pcm)):
        expected = peer(wide, middle, num_threads=1)
        np.testing.assert_allclose(result[name][enough], expected[enough], rtol=5e-3, atol=1e-5)


def test_a_perturbed_geomedian_is_no_better():
    pixels = season(15, 4, 3, 4, missing=0.2)
    result = reduce_block(pixels, recipe(eps=1e-6, deviations=False))["composite"].astype(np.float64)
    rng = np.random.default_rng(0)
    for y, x in np.ndindex(3, 4):
        points = points_at(pixels, y, x)
        here = oracles.total_distance(points, result[:, y, x])
        for _ in range(50):
            aside = result[:, y, x] + rng.normal(0, 0.01, 4)
            assert oracles.total_distance(points, aside) >= here * (1 - 1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, pytest.param(np.int16, marks=pytest.mark.slow)])
def test_integers_are_rounded(dtype):
    rng = np.random.default_rng(2)
    pixels = rng.integers(1, 200, (11, 3, 2, 40)).astype(dtype)
    whole = reduce_block(pixels, recipe(eps=1e-3))
    exact, scatter = np.empty(pixels.shape[1:]), np.empty(pixels.shape[2:])
    for y, x in np.ndindex(scatter.shape):
        points = pixels[:, :, y, x].astype(np.float64)
        exact[:, y, x] = oracles.geometric_median(points)
        scatter[y, x] = oracles.deviations(points, exact[:, y, x])[1]
    assert whole["composite"].dtype == dtype
    assert np.abs(whole["composite"] - exact).max() <= 0.5 + 0.01
    assert (whole["composite"] != np.floor(exact)).any(), "truncation would round down always"
    np.testing.assert_allclose(whole["emad"], scatter, rtol=1e-3)
    assert whole["emad"].dtype == np.float32


def test_nodata_in_one_band_drops_the_observation():
    pixels = np.array([[10, 20], [0, 250], [12, 22], [11, 0]], np.uint8)[:, :, None, None]
    result = reduce_block(pixels, recipe())
    assert result["count"].item() == 2
    assert result["composite"].ravel().tolist() == [11, 21]


def test_one_two_and_equal_observations():
    one = np.array([[7, 9]], np.uint16)[:, :, None, None]
    assert reduce_block(one, recipe())["composite"].ravel().tolist() == [7, 9]
    assert [reduce_block(one, recipe())[name].item() for name in ("smad", "emad", "bcmad")] == [0, 0, 0]
    same = np.tile(one, (6, 1, 1, 1))
    assert reduce_block(same, recipe())["composite"].ravel().tolist() == [7, 9]
    assert reduce_block(same, recipe())["emad"].item() == 0
    two = np.array([[10, 10], [20, 30]], np.float32)[:, :, None, None]
    middle = reduce_block(two, recipe())["composite"].ravel().astype(np.float64)
    assert oracles.total_distance(two[:, :, 0, 0], middle) == pytest.approx(np.hypot(10, 20), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_an_estimate_that_meets_an_observation_goes_on_where_it_must(dtype):
    """The mean of these is the first of them, which is not their geometric median; plain Weiszfeld stops there."""
    points = np.array([[0, 0], [9, 0], [-3, 1], [-3, -1], [-3, 0]], np.float64)
    assert points.mean(axis=0).tolist() == [0, 0]
    best = oracles.geometric_median(points)
    assert np.abs(best).max() > 1
    result = reduce_block(points[:, :, None, None].astype(dtype) + 16, recipe(eps=1e-9, max_iterations=10000))
    np.testing.assert_allclose(result["composite"].ravel() - 16, best, atol=1e-4)


def test_an_observation_that_is_the_geomedian_holds_the_estimate():
    points = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    result = reduce_block(points[:, :, None, None] + 5, recipe(eps=1e-7))
    np.testing.assert_allclose(result["composite"].ravel(), [5, 5], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_neighbours_do_not_matter(dtype):
    """Slow and quick pixels side by side, alone, in other order, in other blocks: the same bits."""
    pixels = season(25, 4, 1, 150, seed=4)
    if dtype == np.uint16:
        pixels = np.where(np.isnan(pixels), 0, pixels * 10000).astype(dtype)
    pixels[:, :, :, ::3] = pixels[:1, :, :, ::3]  # a third of them converges at once
    whole = reduce_block(pixels, recipe())
    order = np.random.default_rng(0).permutation(150)
    shuffled = reduce_block(np.ascontiguousarray(pixels[..., order]), recipe())
    tiled = reduce_block(np.tile(pixels, (1, 1, 4, 3)), recipe())
    for name, array in whole.items():
        np.testing.assert_array_equal(shuffled[name], array[..., order])
        np.testing.assert_array_equal(tiled[name], np.tile(array, (4, 3)))
    for x in (0, 1, 149):
        alone = reduce_block(np.ascontiguousarray(pixels[..., x : x + 1]), recipe())
        for name, array in whole.items():
            np.testing.assert_array_equal(alone[name], array[..., x : x + 1])


@pytest.mark.parametrize(("dtype", "unit"), [(np.uint16, 1), (np.float32, 1e-4), (np.float32, 1.0), (np.uint8, 0.02)])
def test_the_default_converges_in_any_unit(dtype, unit):
    """Against float64 until nothing moves: half a digital number at the 99th percentile, deviations to a thousandth."""
    numbers = np.where(np.isnan(floats := season(12, 4, 6, 10, seed=9, missing=0.3)), 0, np.round(floats * 10000))
    values = numbers.clip(0, 12000) * unit
    missing = (numbers == 0).any(axis=1, keepdims=True)
    if np.dtype(dtype).kind == "u":
        values = np.where(missing, 0, np.round(values).clip(1, 254 if dtype == np.uint8 else None))
    else:
        values = np.where(missing, np.nan, values)
    pixels = values.astype(dtype)
    result = reduce_block(pixels, recipe())
    off, apart = [], []
    for y, x in np.argwhere(result["count"] >= 5):
        points = pixels[~missing[:, 0, y, x], :, y, x].astype(np.float64)
        best = oracles.geometric_median(points)
        off.append(np.abs(result["composite"][:, y, x] - best).max())
        got = [result[name][y, x] for name in ("smad", "emad", "bcmad")]
        apart.append(np.abs(np.array(got) / oracles.deviations(points, best) - 1))
    assert len(off) > 40
    assert np.quantile(off, 0.99) <= (0.5 + 1e-2 if np.dtype(dtype).kind == "u" else 0.5 * unit)
    assert np.quantile(apart, 0.99) <= 1e-3


def test_an_invalid_scene_changes_nothing():
    pixels = season(9, 3, 2, 30)
    more = np.insert(pixels, 4, np.nan, axis=0)
    for name, array in reduce_block(pixels, recipe()).items():
        np.testing.assert_array_equal(reduce_block(more, recipe())[name], array)


def test_min_count_nodata_and_no_scenes():
    pixels = np.array([[-9, 5, -9], [-9, 6, 7]], np.int16)[:, None, None, :]
    result = reduce_block(pixels, recipe(nodata=-9, min_count=2))
    assert result["composite"].ravel().tolist() == [-9, 6, -9]
    assert np.isnan(result["emad"]).tolist() == [[True, False, True]]
    nothing = reduce_block(pixels, recipe(nodata=-9), scenes=[])
    assert (nothing["composite"] == -9).all()
    assert not nothing["count"].any()


def test_layers_and_their_names():
    def names(**params):
        return [layer.name for layer in recipe(**params).layers(np.dtype("uint16"), 3)]

    assert names() == ["composite", "smad", "emad", "bcmad", "count"]
    assert names(names="dev") == ["composite", "sdev", "edev", "bcdev", "count"]
    assert names(deviations=False) == ["composite", "count"]


@pytest.mark.parametrize("params", [{"names": "odc"}, {"eps": 0}, {"eps": float("nan")}, {"max_iterations": 0}])
def test_wrong_parameters(params):
    with pytest.raises(ParameterError, match=next(iter(params))):
        resolve_reducer("geomedian", **params)
