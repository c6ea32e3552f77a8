"""Clouds and shadows of a series: a plain Python oracle, and ground that changes and must stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2composite.errors import ParameterError
from s2composite.pixels.mask_bands import resolve_rule
from s2composite.pixels.temporal_mask import TemporalMask, unlike
from support.oracles import unlike_of_pixel

DAYS = np.arange(0, 365, 5.0)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    scenes=st.integers(1, 40),
    wide=st.booleans(),
    rule=st.builds(
        TemporalMask, brighter=st.sampled_from([0.01, 0.03, 0.1]), darker=st.sampled_from([0.1, 0.2, 0.5]),
        days=st.sampled_from([5, 20, 45, 400]),
    ),
)  # fmt: skip
def test_observations_are_compared_as_plain_python_compares_them(seed, scenes, wide, rule):
    rng = np.random.default_rng(seed)
    days = np.sort(rng.integers(0, 200, scenes).astype(float)) + 19000
    dtype, most = (np.uint16, 1024) if wide else (np.uint8, 256)
    ground = rng.integers(20, most // 2, (1, 7))
    least = np.where(rng.random((scenes, 7)) < 0.5, ground + rng.integers(-5, 6, (scenes, 7)), 0).astype(dtype)
    least = np.where(least == 0, rng.integers(1, most, (scenes, 7)), least).astype(dtype)
    grey = np.minimum(least + rng.integers(0, 30, (scenes, 7)), most - 1).astype(dtype)
    seen = rng.random((scenes, 7)) < 0.8
    found = unlike(least, grey, seen, days, rule)
    for i in range(7):
        assert found[:, i].tolist() == unlike_of_pixel(least[:, i], grey[:, i], seen[:, i], days, rule)


def test_pixels_do_not_depend_on_those_beside_them():
    """More than are looked at at once, and one alone."""
    rng = np.random.default_rng(1)
    least = rng.integers(1, 256, (len(DAYS), 1100)).astype(np.uint8)
    seen = rng.random(least.shape) < 0.9
    whole = unlike(least, least, seen, DAYS, TemporalMask())
    for i in (0, 511, 512, 1099):
        one = [np.ascontiguousarray(a[:, i : i + 1]) for a in (least, least, seen)]
        np.testing.assert_array_equal(unlike(*one, DAYS, TemporalMask())[:, 0], whole[:, i])


def season(ground, clouds=0.4, shadows=0.1, seed=0, brightest=254):
    """Return a season of the ground ``(t,)`` under clouds and shadows for 400 pixels; and which are cloudy, in shadow."""
    rng = np.random.default_rng(seed)
    shape = (len(ground), 400)
    value = np.asarray(ground, float)[:, None] * (1 + 0.03 * rng.standard_normal(shape))
    sky = rng.random(shape)
    value = np.where(sky < clouds, value + (0.3 + 0.7 * rng.random(shape)) * np.maximum(brightest - value, 60), value)
    value = np.where(sky > 1 - shadows, value * (0.35 + 0.2 * rng.random(shape)), value)
    dtype = np.uint8 if brightest < 256 else np.uint16
    return np.clip(np.rint(value), 1, brightest).astype(dtype), sky < clouds, sky > 1 - shadows


def between(days, *pairs):
    return np.interp(days, *zip(*pairs, strict=True))


GROUND = {
    "fields that stay": (np.full(len(DAYS), 40.0), 254),
    "bright sand": (np.full(len(DAYS), 190.0), 254),
    "water": (np.full(len(DAYS), 14.0), 254),
    "water that clears": (between(DAYS, (0, 40), (130, 40), (200, 20), (364, 20)), 254),
    "harvest": (between(DAYS, (0, 25), (150, 22), (185, 70), (200, 70), (260, 62), (364, 60)), 254),
    "ploughed": (np.where(DAYS < 240, 95.0, 50.0), 254),
    "snow for two months": (np.where((DAYS > 20) & (DAYS < 80), 200.0, 40.0), 254),
    "snow for three weeks": (np.where((DAYS > 40) & (DAYS < 62), 200.0, 40.0), 254),
    "snow as a reflectance": (np.where((DAYS > 20) & (DAYS < 62), 560.0, 40.0), 714),
    "ice": (np.full(len(DAYS), 500.0), 714),
}


@pytest.mark.parametrize("name", GROUND)
def test_ground_stays_and_clouds_go(name):
    ground, brightest = GROUND[name]
    values, cloudy, shaded = season(np.repeat(ground, 2), brightest=brightest)
    clear = ~cloudy & ~shaded
    days = np.repeat(DAYS, 2) + np.tile([0, 2.0], len(DAYS))
    found = unlike(values, values, np.ones(values.shape, bool), days, TemporalMask())
    assert found[clear].mean() < 0.04, "clear observations are lost"
    changed = np.abs(np.diff(ground, prepend=ground[0])) > 20
    for start in np.flatnonzero(changed):  # just after a change too
        during = clear[2 * start : 2 * start + 8]
        assert found[2 * start : 2 * start + 8][during].mean() < 0.35
    if name not in ("bright sand", "ice") and "snow" not in name:  # what is as bright as clouds hides them
        assert found[cloudy].mean() > 0.8
        shaded &= np.repeat(ground > 30, 2)[:, None]  # a shadow on dark ground is darker by less than 0.02
        assert not shaded.any() or found[shaded].mean() > 0.6


def test_ground_that_is_dark_anyway_is_not_taken_for_a_shadow():
    rng = np.random.default_rng(1)
    forest = rng.uniform(14, 26, (len(DAYS), 400)).astype(np.uint8)  # reflectances of 0.02 to 0.036, as in real series
    assert not unlike(forest, forest, np.ones(forest.shape, bool), DAYS, TemporalMask(darker=0.1)).any()


def test_a_series_without_anything_to_compare_with_is_left_as_it_is():
    values = np.array([[30, 200, 1]], np.uint8)
    assert not unlike(values, values, np.ones((1, 3), bool), [5.0], TemporalMask()).any()
    twice = np.concatenate([values, values])
    assert not unlike(twice, twice, np.zeros((2, 3), bool), [5.0, 30.0], TemporalMask()).any()
    pair = np.array([[30], [200]], np.uint8)
    both = unlike(pair, pair, np.ones((2, 1), bool), [5.0, 30.0], TemporalMask())
    assert not both.any(), "of two that differ, nothing says which is the ground's"


def test_names_and_parameters():
    assert str(TemporalMask()) == "TemporalMask()"
    assert str(resolve_rule("temporal_mask", bands=["red"], grow=1)) == "TemporalMask(grow=1, bands=('red',))"
    for wrong, says in (
        ({"brighter": 0}, "give a reflectance above 0"),
        ({"darker": 1}, "give a share"),
        ({"days": "many"}, "give days above 0"),
        ({"grow": 300}, "0 to 254"),
        ({"min_left": 1.5}, "whole number"),
        ({"resolution": -1}, "resolution of TemporalMask is -1"),
        ({"bands": []}, "give one to three"),
        ({"bands": ["a", "b", "c", "d"]}, "give one to three"),
        ({"white": 0}, "give the number of a reflectance"),
    ):
        with pytest.raises(ParameterError, match=says):
            TemporalMask(**wrong)
