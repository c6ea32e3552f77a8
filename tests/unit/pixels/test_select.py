"""Reducers that pick by time, quality, score or place among the others; kernels of one's own."""

import datetime as dt
import math
import sys
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from s2composite.errors import BandError, ParameterError
from s2composite.pixels.recipe import DTYPES
from s2composite.pixels.reducers import (
    Recipe,
    kernel_reducer,
    reduce_block,
    reducer_names,
    register_reducer,
    resolve_reducer,
)
from support import oracles

DAYS = (100.0, 100.0, 130.5, 90.0, 200.0, 130.5)


def picked(pixels, name, *, days=None, bands=(), nodata=None, rules=None, min_count=1, scenes=None, **params):
    extra = {} if rules is None else {"rules": rules}
    recipe = Recipe(
        (resolve_reducer(name, **params),), bands=bands, nodata=nodata, days=days, min_count=min_count, **extra
    )
    return reduce_block(pixels, recipe, scenes=scenes)


@st.composite
def stacks(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (6, draw(st.integers(1, 4)), 2, draw(st.integers(1, 40)))
    pixels = rng.integers(1, draw(st.sampled_from([3, 120])), shape).astype(dtype)
    bad = rng.random((6, 1, *shape[2:])) < draw(st.sampled_from([0, 0.5, 1]))
    return np.where(bad, dtype.type(np.nan if dtype.kind == "f" else 0), pixels)


def first_of(pixels, order):
    """The first valid scene in an order, -1 if none: (y, x)."""
    valid = ~np.isnan(oracles.masked(pixels)).any(axis=1)
    source = np.full(pixels.shape[2:], -1)
    for t in reversed(order):
        source[valid[t]] = t
    return source


@settings(max_examples=30, deadline=None)
@given(pixels=stacks())
def test_by_time(pixels):
    orders = {
        ("latest", None): [4, 5, 2, 1, 0, 3],
        ("earliest", None): [3, 0, 1, 2, 5, 4],
        ("closest_to", "1970-05-01"): [2, 5, 0, 1, 3, 4],  # day 120: 10.5 after it, 20 before it
        ("closest_to", "1970-04-26T06:00"): [0, 1, 2, 5, 3, 4],  # day 115.25: as far from 100 as from 130.5
    }
    for (name, day), order in orders.items():
        result = picked(pixels, name, days=DAYS, **({"date": day} if day else {}))
        source = first_of(pixels, order)
        np.testing.assert_array_equal(result["source"], source)
        for y, x in np.ndindex(source.shape):
            if source[y, x] >= 0:
                np.testing.assert_array_equal(result["composite"][:, y, x], pixels[source[y, x], :, y, x])


def test_by_time_among_some_scenes():
    pixels = np.arange(1, 7, dtype=np.uint8)[:, None, None, None]
    assert picked(pixels, "latest", days=DAYS, scenes=[0, 3, 1])["source"].item() == 1
    assert picked(pixels, "latest", days=DAYS, scenes=[1, 3, 0])["source"].item() == 0
    assert picked(pixels, "earliest", days=DAYS, scenes=[5, 2])["source"].item() == 5
    assert picked(pixels, "latest", days=DAYS, scenes=[])["source"].item() == -1


def test_min_count_holds_for_all_that_pick():
    pixels = np.array([5, 0, 6, 0, 0, 0], np.uint8)[:, None, None, None]
    params = {"closest_to": {"date": date(2023, 5, 1).isoformat()}, "best_available_pixel": {"distance": 1}}
    for name in ("latest", "earliest", "closest_to", "medoid", "best_available_pixel"):
        for least, found in ((2, True), (3, False)):
            result = picked(pixels, name, days=DAYS, min_count=least, **params.get(name, {}))
            assert (result["source"].item() >= 0) == found, name
            assert (result["composite"].item() > 0) == found
            assert result["count"].item() == 2


def test_times_are_needed():
    with pytest.raises(ParameterError, match="time of each of the 6 scenes; none given"):
        picked(np.ones((6, 1, 1, 1), np.uint8), "latest")
    with pytest.raises(ParameterError, match="time of each of the 6 scenes; 2 given"):
        picked(np.ones((6, 1, 1, 1), np.uint8), "earliest", days=(1, 2))
    with pytest.raises(ParameterError, match="is not a date"):
        resolve_reducer("closest_to", date="midsummer")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), dtype=st.sampled_from(DTYPES))
def test_greatest_ndvi(seed, dtype):
    pixels = np.random.default_rng(seed).integers(1, 120, (9, 3, 2, 7)).astype(dtype)
    real = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    bands = ("B02", "B04", "B08")
    composite, count, source = oracles.rank_composite(
        pixels, (0,), lambda o: oracles.difference(o[2], o[1], real), lambda n: n - 1
    )
    for name, params in (("max_ndvi", {}), ("quality_mosaic", {}), ("quality_mosaic", {"key": ("B08", "B04")})):
        result = picked(pixels, name, bands=bands, **params)
        np.testing.assert_array_equal(result["source"], source)
        np.testing.assert_array_equal(result["composite"], composite)
        np.testing.assert_array_equal(result["count"], count)
    with pytest.raises(BandError, match="B08"):
        picked(pixels, "max_ndvi", bands=("B02", "B03", "B04"))


@settings(max_examples=30, deadline=None)
@given(pixels=stacks())
def test_medoids_have_the_least_total_distance(pixels):
    result = picked(pixels, "medoid")
    values = oracles.masked(pixels)
    for y, x in np.ndindex(pixels.shape[2:]):
        points = values[:, :, y, x]
        alive = np.flatnonzero(~np.isnan(points).any(axis=1))
        t = result["source"][y, x]
        assert result["count"][y, x] == len(alive)
        if not len(alive):
            assert t == -1
            continue
        totals = {k: oracles.total_distance(points[alive], points[k]) for k in alive}
        assert totals[t] <= min(totals.values()) * (1 + 1e-5)
        equal = [k for k in alive if (points[k] == points[t]).all()]
        assert t == min(equal), "of equal observations the first in scene order"


def score(days, t, distance, clear, weights, best=196.0, spread=38.0, reach=50):
    date = dt.date(1970, 1, 1) + dt.timedelta(int(days[t]))
    day = date.timetuple().tm_yday + days[t] % 1
    apart = abs(day - best)
    apart = min(apart, 365.25 - apart)
    near = 1 / (1 + math.exp(-10 / reach * (min(distance, reach) - reach / 2)))
    return weights[0] * math.exp(-0.5 * (apart / spread) ** 2) + weights[1] * near + weights[2] * clear


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.2, 3, 0.5)])
def test_best_available_pixels(weights):
    rng = np.random.default_rng(0)
    days = (19500.25, 19570.0, 19640.5, 19365.0)
    clear = (0.2, 0.9, 0.5, 0.6)
    pixels = rng.integers(1, 255, (4, 2, 24, 30), dtype=np.uint8)
    bad = ndimage.binary_dilation(rng.random((4, 24, 30)) < 0.01, np.ones((1, 3, 3)))
    pixels[bad[:, None].repeat(2, axis=1)] = 0
    far = np.stack([ndimage.distance_transform_edt(~scene) if scene.any() else np.full((24, 30), 99) for scene in bad])
    result = picked(pixels, "best_available_pixel", days=days, clear=clear, distance=7, weights=weights)
    for y, x in np.ndindex(24, 30):
        scores = [-1 if bad[t, y, x] else score(days, t, far[t, y, x], clear[t], weights, reach=7) for t in range(4)]
        t = result["source"][y, x]
        assert t == -1 if max(scores) < 0 else scores[t] >= max(scores) - 1e-6


def test_best_available_pixels_in_windows_with_a_halo():
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 255, (5, 1, 40, 50), dtype=np.uint8)
    pixels[rng.random(pixels.shape) < 0.02] = 0
    recipe = Recipe((resolve_reducer("best_available_pixel", distance=6),), days=(1, 50, 100, 150, 200))
    assert recipe.halo == 6
    whole = reduce_block(pixels, recipe)
    for top, left in ((0, 0), (0, 25), (20, 0), (20, 25), (13, 17)):
        y0, x0, y1, x1 = max(top - 6, 0), max(left - 6, 0), min(top + 26, 40), min(left + 31, 50)
        inner = (slice(top - y0, min(top + 20, 40) - y0), slice(left - x0, min(left + 25, 50) - x0))
        part = reduce_block(np.ascontiguousarray(pixels[:, :, y0:y1, x0:x1]), recipe, inner=inner)
        for name, array in part.items():
            np.testing.assert_array_equal(array, whole[name][..., top : top + 20, left : left + 25])


@pytest.mark.parametrize(
    "params",
    [
        {"day_of_year": 0}, {"spread": 0}, {"distance": 0}, {"distance": 300}, {"weights": (0, 0, 0)},
        {"weights": (1, 1)}, {"weights": (-1, 1, 1)}, {"clear": (2,)},
    ],
)  # fmt: skip
def test_wrong_scores(params):
    with pytest.raises(ParameterError, match=next(iter(params))):
        resolve_reducer("best_available_pixel", **params)


def test_too_few_shares_of_clearness():
    with pytest.raises(ParameterError, match="one for each scene"):
        picked(np.ones((6, 1, 1, 1), np.uint8), "best_available_pixel", days=DAYS, clear=(1, 1))


def spread_of(block, valid, out):
    """Largest minus smallest valid value."""
    for b in range(block.shape[1]):
        for i in range(block.shape[2]):
            low, high = np.inf, -np.inf
            for t in range(block.shape[0]):
                if valid[t, i]:
                    low, high = min(low, block[t, b, i]), max(high, block[t, b, i])
            out[b, i] = high - low


def make_spread(factor: float = 1.0):
    return kernel_reducer(spread_of, name=f"spread{factor:g}")


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(pixels=stacks())
def test_a_kernel_of_ones_own(pixels):
    result = reduce_block(pixels, Recipe((kernel_reducer(spread_of),)))
    values = oracles.masked(pixels)
    known = result["count"] > 0
    with np.errstate(all="ignore"):
        expected = np.nanmax(values, axis=0, where=known, initial=-np.inf) - np.nanmin(
            values, axis=0, where=known, initial=np.inf
        )
    np.testing.assert_array_equal(result["composite"][:, known], expected[:, known])
    assert result["composite"].dtype == pixels.dtype


def test_a_kernel_of_ones_own_in_another_type():
    def half(block, valid, out):
        out[:] = 0.5

    result = reduce_block(np.ones((2, 1, 1, 3), np.uint8), Recipe((kernel_reducer(half, dtype="float32"),)))
    assert result["composite"].dtype == np.float32
    assert (result["composite"] == 0.5).all()
    rounded = reduce_block(np.ones((2, 1, 1, 3), np.uint8), Recipe((kernel_reducer(half),)))
    assert not rounded["composite"].any(), "halves go to even"


def test_names_paths_and_registration(monkeypatch):
    for path in ("test_select:make_spread", "test_select.make_spread"):
        assert resolve_reducer(path, factor=2).name == "spread2"
    monkeypatch.setattr("s2composite.pixels.reducers._REGISTRY", {})
    register_reducer("spread", make_spread)
    assert "spread" in reducer_names()
    assert resolve_reducer("spread").name == "spread1"
    register_reducer("fixed", kernel_reducer(spread_of))
    assert resolve_reducer("fixed").name == "spread_of"
    for name in ("", "a.b", "a:b"):
        with pytest.raises(ParameterError, match="cannot be called"):
            register_reducer(name, make_spread)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("test_select:missing", "cannot be loaded"),
        ("no_such_module:thing", "cannot be loaded"),
        ("test_select:DAYS", "a reducer, or a function that returns one"),
        ("test_select:first_of", "its parameters are"),
        ("os:getcwd", "must return a reducer"),
        (":", "unknown reducer"),
    ],
)
def test_wrong_paths(path, said):
    with pytest.raises(ParameterError, match=said):
        resolve_reducer(path)


def test_entry_points_of_other_packages(tmp_path, monkeypatch):
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[s2composite.reducers]\nspread_elsewhere = test_select:make_spread\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "spread_elsewhere" in reducer_names()
    assert resolve_reducer("spread_elsewhere", factor=3).name == "spread3"


def test_several_reducers_in_one_pass_give_what_each_gives_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 5, 70), dtype=np.uint8)
    names = ("luminance_median", "geomedian", "median", "medoid", "latest", "std")
    reducers = tuple(map(resolve_reducer, names))
    days = tuple(range(8))
    together = reduce_block(pixels, Recipe(reducers, days=days))
    for reducer in reducers:
        alone = reduce_block(pixels, Recipe((reducer,), days=days))
        np.testing.assert_array_equal(together[reducer.name], alone["composite"])
        for name in set(alone) - {"composite", "count"}:
            np.testing.assert_array_equal(together[f"{reducer.name}_{name}"], alone[name])
        np.testing.assert_array_equal(together["count"], alone["count"])
