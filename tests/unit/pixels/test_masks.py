"""Rules on values: what they drop, in all kernels alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2composite.pixels.masks import Nodata, Saturated, limits_of
from s2composite.pixels.recipe import DTYPES
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer, valid_observations

MEDIAN = (resolve_reducer("luminance_median"),)


def judged(values, dtype, *rules, nodata=None):
    """Return which of some single-band observations are valid, having checked that two kernels agree."""
    pixels = np.array(values, dtype)[:, None, None, None]
    valid = valid_observations(pixels, Recipe((), rules, nodata=nodata))[:, 0, 0]
    counts = [
        reduce_block(pixels[i : i + 1], Recipe(MEDIAN, rules=rules, nodata=nodata))["count"].item()
        for i in range(len(values))
    ]
    assert valid.tolist() == [bool(n) for n in counts]
    return valid.tolist()


def test_defaults_for_each_kind_of_type():
    assert judged([0, 1, 254, 255], np.uint8, Nodata(), Saturated()) == [False, True, True, False]
    assert judged([0, 1, 65535], np.uint16, Nodata(), Saturated()) == [False, True, False]
    assert judged([0, -32768, 32767], np.int16, Nodata(), Saturated()) == [False, True, False]
    assert judged([0, 1e38, np.nan], np.float32, Nodata(), Saturated()) == [True, True, False]


def test_floats_that_are_not_finite_never_pass():
    assert judged([1, np.nan, np.inf, -np.inf], np.float32) == [True, False, False, False]
    assert judged([1, np.nan, np.inf, -np.inf], np.float64, Nodata(-1)) == [True, False, False, False]


def test_the_nodata_value_of_the_cube_and_one_of_its_own():
    assert judged([0, 5, -9999], np.int16, Nodata(), nodata=-9999) == [True, True, False]
    assert judged([0, 5, -9999], np.int16, Nodata(5), nodata=-9999) == [True, False, True]
    assert judged([0, -9999], np.float32, Nodata(), nodata=-9999) == [True, False]


@pytest.mark.parametrize("value", [-1, 256, 0.5, np.nan, np.inf, 1e300])
def test_a_value_the_type_cannot_hold_drops_nothing(value):
    assert judged([0, 1, 255], np.uint8, Nodata(value)) == [True, True, True]


def test_a_value_beyond_float32_drops_nothing():
    assert judged([0, 1], np.float32, Nodata(1e300)) == [True, True]


def test_values_at_the_ends_cost_no_comparison():
    low, high, dropped = limits_of((Nodata(0), Nodata(1), Saturated(), Nodata(77)), np.dtype("uint8"), 2)
    assert (low.tolist(), high.tolist(), dropped.tolist()) == ([2, 2], [254, 254], [77])


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    values=st.lists(st.integers(0, 255), min_size=1, max_size=6),
    drops=st.lists(st.sampled_from([0, 1, 2, 7, 100, 254, 255]), max_size=4),
)
def test_any_dropped_values(dtype, values, drops):
    assert judged(values, dtype, *map(Nodata, drops)) == [value not in drops for value in values]
