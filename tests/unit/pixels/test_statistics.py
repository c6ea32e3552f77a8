"""Per-band statistics equal NumPy's and xarray's; rounding, nodata, ties of percentiles, few observations."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from s2composite.errors import ParameterError
from s2composite.pixels.recipe import DTYPES
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer
from support import oracles

PEERS = {
    "median": np.nanmedian,
    "mean": np.nanmean,
    "std": np.nanstd,
    "min": np.nanmin,
    "max": np.nanmax,
}


def reduced(pixels, name, *, nodata=None, min_count=1, **params):
    reducer = resolve_reducer(name, **params)
    return reduce_block(pixels, Recipe((reducer,), nodata=nodata, min_count=min_count))


def dropped(dtype):
    return (0, np.iinfo(dtype).max) if np.dtype(dtype).kind in "ui" else ()


@st.composite
def stacks(draw, most=60):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = (draw(st.integers(1, most)), draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 70)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = draw(st.sampled_from([(1, 4), (20, 90), (-300, 30000), (-32000, 32000)]))
    if dtype.kind == "f":
        pixels = rng.normal(low, high, shape)
    else:
        ends = np.iinfo(dtype)
        pixels = rng.integers(max(low, ends.min), min(high, ends.max), shape)
    pixels = pixels.astype(dtype)
    bad = rng.random((shape[0], 1, *shape[2:])) < draw(st.sampled_from([0, 0.4, 0.95, 1]))
    return np.where(bad, dtype.type(np.nan if dtype.kind == "f" else 0), pixels)


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of pixels without observations
        return function(*arguments, **options)


def expected_in(dtype, values):
    """What a statistic becomes in the type of the cube: rounded for integers, nodata where there is none."""
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    return np.where(np.isnan(values), 0, np.rint(values)).astype(dtype)


def assert_close(result, expected):
    if expected.dtype.kind in "ui":
        np.testing.assert_array_equal(result, expected)
    else:
        scale = np.nanmax(np.abs(expected), initial=1)
        np.testing.assert_allclose(result, expected, rtol=2e-6, atol=2e-6 * scale)
    assert result.dtype == expected.dtype


@settings(max_examples=60, deadline=None)
@given(pixels=stacks(), name=st.sampled_from(sorted(PEERS)))
def test_statistics_are_numpys(pixels, name):
    values = oracles.masked(pixels, dropped(pixels.dtype))
    expected = quietly(PEERS[name], values, axis=0)
    result = reduced(pixels, name)["composite"]
    if name == "std":
        real = np.float64 if pixels.dtype == np.float64 else np.float32
        assert result.dtype == real
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.nanmax(np.abs(values), initial=1))
    elif (
        name == "mean" and pixels.dtype.kind in "ui"
    ):  # NumPy's sums of the same numbers may end on either side of a half
        known = ~np.isnan(expected)
        assert (np.abs(result[known] - expected[known]) <= 0.5 + 1e-9).all()
        assert not result[~known].any()
    else:
        assert_close(result, expected_in(pixels.dtype, expected))


@pytest.mark.parametrize("values", [(0, 65535), (0, 0, 65535, 65535), (1, 65534, 65535)])
def test_medians_of_values_at_both_ends_of_the_type(values):
    for pixels in (np.array(values, np.uint16), np.array([value - 32768 for value in values], np.int16)):
        recipe = Recipe((resolve_reducer("median"),), rules=())
        result = reduce_block(pixels[:, None, None, None], recipe)["composite"]
        assert result.item() == np.rint(np.median(pixels))


@settings(max_examples=60, deadline=None)
@given(pixels=stacks(), q=st.sampled_from([0, 5, 10, 25, 33.3, 50, 75, 90, 100]))
def test_percentiles_are_numpys(pixels, q):
    values = oracles.masked(pixels, dropped(pixels.dtype))
    expected = quietly(np.nanpercentile, values, q, axis=0)
    result = reduced(pixels, "percentile", q=q)["composite"]
    if pixels.dtype.kind == "f":
        assert_close(result, expected.astype(pixels.dtype))
        return
    known = ~np.isnan(expected)  # where NumPy's place between two values is inexact, a half may go either way
    assert (np.abs(result[known] - expected[known]) <= 0.5 + 1e-6).all()
    assert not result[~known].any()


def test_percentiles_lie_exactly_between_two_values():
    pixels = np.array([10, 20, 30, 40], np.uint8)[:, None, None, None]
    for q, expected in ((0, 10), (10, 13), (25, 18), (50, 25), (75, 32), (100, 40)):  # 17.5, 32.5: halves to even
        assert reduced(pixels, "percentile", q=q)["composite"].item() == expected
        exact = 10 + 10 * Fraction(str(q)) / 100 * 3
        assert abs(expected - exact) <= Fraction(1, 2)


@settings(max_examples=30, deadline=None)
@given(pixels=stacks(), q=st.sampled_from([0, 10, 25, 50, 90, 100]))
def test_nearest_percentiles_are_observed_values(pixels, q):
    values = oracles.masked(pixels, dropped(pixels.dtype))
    result = reduced(pixels, "percentile", q=q, method="nearest", min_count=3)["composite"]
    for place in np.ndindex(values.shape[1:]):
        series = values[(slice(None), *place)]
        series = series[~np.isnan(series)]
        if len(series) >= 3:
            assert float(result[place]) == oracles.nearest_percentile(series, q)
        else:
            assert np.isnan(result[place]) if pixels.dtype.kind == "f" else result[place] == 0


@settings(max_examples=30, deadline=None)
@given(pixels=stacks(), fraction=st.sampled_from([0, 0.1, 0.25, 0.3, 0.49]))
def test_trimmed_means(pixels, fraction):
    values = oracles.masked(pixels, dropped(pixels.dtype))
    result = reduced(pixels, "trimmed_mean", fraction=fraction)["composite"]
    scale = np.nanmax(np.abs(values), initial=1)
    for place in np.ndindex(values.shape[1:]):
        series = values[(slice(None), *place)]
        series = series[~np.isnan(series)]
        if len(series):
            slack = 1e-6 * scale if pixels.dtype.kind == "f" else 0.5 + 1e-9
            assert abs(float(result[place]) - oracles.trimmed_mean(series, fraction)) <= slack


@settings(max_examples=25, deadline=None)
@given(pixels=stacks(most=20))
def test_percentiles_rise_and_stay_between_the_extremes(pixels):
    several = reduced(pixels, "percentile", q=(5, 50, 95))
    low, middle, high = several["p5"], several["p50"], several["p95"]
    known = several["count"] > 0
    for below, above in ((reduced(pixels, "min")["composite"], low), (low, middle), (middle, high)):
        assert (below[:, known] <= above[:, known]).all()
    assert (high[:, known] <= reduced(pixels, "max")["composite"][:, known]).all()


@pytest.mark.parametrize("name", [*PEERS, "trimmed_mean", "percentile"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_observations_return_themselves(name, dtype):
    pixels = np.full((7, 2, 3, 5), 77, dtype)
    result = reduced(pixels, name, **({"q": 30} if name == "percentile" else {}))["composite"]
    assert (result == (0 if name == "std" else 77)).all()


@pytest.mark.parametrize("name", [*PEERS, "trimmed_mean", "percentile"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_invalid_scene_changes_nothing(name, dtype):
    rng = np.random.default_rng(5)
    pixels = rng.integers(1, 200, (9, 2, 3, 5)).astype(dtype)
    bad = np.full((1, 2, 3, 5), 0 if np.dtype(dtype).kind in "ui" else np.nan, dtype)
    params = {"q": (10, 80)} if name == "percentile" else {}
    without = reduced(pixels, name, **params)
    with_it = reduced(np.concatenate([pixels[:4], bad, pixels[4:]]), name, **params)
    for layer, array in without.items():
        np.testing.assert_array_equal(with_it[layer], array)


@pytest.mark.parametrize("name", sorted(PEERS))
def test_statistics_are_xarrays(name):
    rng = np.random.default_rng(1)
    pixels = rng.normal(0.3, 0.1, (12, 3, 8, 9)).astype(np.float32)
    pixels[rng.random((12, 1, 8, 9)).repeat(3, axis=1) < 0.3] = np.nan
    cube = xr.DataArray(pixels.astype(np.float64), dims=("time", "band", "y", "x"))
    np.testing.assert_allclose(reduced(pixels, name)["composite"], getattr(cube, name)("time"), rtol=1e-5)


@pytest.mark.parametrize("name", [*PEERS, "trimmed_mean", "percentile"])
def test_min_count_and_nodata(name):
    pixels = np.array([[5, -9, -9], [5, 7, -9], [-9, 9, -9]], np.int16)[:, None, None, :]
    params = {"q": 50} if name == "percentile" else {}
    result = reduced(pixels, name, nodata=-9, min_count=2, **params)
    assert result["count"].tolist() == [[2, 2, 0]]
    filled = result["composite"][0, 0]
    assert np.isnan(filled[2]) if name == "std" else filled[2] == -9
    assert not (filled[:2] == -9).any()
    strict = reduced(pixels, name, nodata=-9, min_count=3, **params)["composite"]
    assert np.isnan(strict).all() if name == "std" else (strict == -9).all()


def test_results_are_rounded_not_truncated():
    pixels = np.array([1, 1, 3, 2], np.uint8)[:, None, None, None]  # mean 1.75, median 1.5
    assert reduced(pixels, "mean")["composite"].item() == 2
    assert reduced(pixels, "median")["composite"].item() == 2
    assert reduced(np.array([-1, -2, -2, -2], np.int16)[:, None, None, None], "mean")["composite"].item() == -2


def test_no_scenes_at_all():
    pixels = np.ones((3, 2, 2, 2), np.uint16)
    for name in [*PEERS, "trimmed_mean"]:
        result = reduce_block(pixels, Recipe((resolve_reducer(name),)), scenes=[])
        assert not result["count"].any()
        assert not np.nan_to_num(result["composite"]).any()


@pytest.mark.parametrize("q", [-1, 101, (), (10, 10), float("nan")])
def test_wrong_percentiles(q):
    with pytest.raises(ParameterError, match="0 to 100"):
        resolve_reducer("percentile", q=q)


def test_wrong_parameters():
    with pytest.raises(ParameterError, match="linear and nearest"):
        resolve_reducer("percentile", method="closest")
    for fraction in (-0.1, 0.5, float("nan")):
        with pytest.raises(ParameterError, match="trimmed_mean"):
            resolve_reducer("trimmed_mean", fraction=fraction)


def test_layers_of_percentiles():
    def names(q):
        layers = Recipe((resolve_reducer("percentile", q=q),)).layers(np.dtype("uint8"), 3)
        return [layer.name for layer in layers]

    assert names(10) == ["composite", "count"]
    assert names((2.5, 50)) == ["p2.5", "p50", "count"]
