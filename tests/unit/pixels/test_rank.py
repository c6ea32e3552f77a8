"""Rank composites against the plain-Python definition, for every type, layout and degenerate pixel."""

import pickle

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2composite.pixels.kernels.rank import luminance_median
from s2composite.pixels.masks import Nodata, Saturated
from s2composite.pixels.recipe import DTYPES
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer
from support import oracles

MEDIAN = Recipe((resolve_reducer("luminance_median"),))


def planar(pixels):
    return np.ascontiguousarray(pixels)


def interleaved(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def cut_out(pixels):
    return np.pad(pixels, ((0, 0), (0, 0), (1, 2), (2, 1)))[:, :, 1:-2, 2:-1]


def cut_out_interleaved(pixels):
    return (
        np.pad(pixels, ((0, 0), (0, 0), (1, 2), (2, 1)))
        .transpose(0, 2, 3, 1)
        .copy()[:, 1:-2, 2:-1]
        .transpose(0, 3, 1, 2)
    )


def fortran(pixels):
    return np.asfortranarray(pixels)


def byte_swapped(pixels):
    return pixels.astype(pixels.dtype.newbyteorder())


TIMES, BANDS = st.integers(1, 400), st.integers(1, 5)
LAYOUTS = [planar, interleaved, cut_out, cut_out_interleaved, fortran, byte_swapped]


def dropped_by_default(dtype):
    return (0, np.iinfo(dtype).max) if np.dtype(dtype).kind in "ui" else ()


@st.composite
def stacks(draw, times=TIMES, bands=BANDS):
    """Stacks (t, b, y, x) with few distinct values (many ties) or many, and a share of nodata and saturation."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = (draw(times), draw(bands), draw(st.integers(1, 3)), draw(st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from(["ties", "near", "all"]))
    if dtype.kind == "f":
        low, high = {"ties": (0, 3), "near": (1000, 1100), "all": (-1e30, 1e30)}[spread]
        pixels = rng.uniform(low, high, shape)
        pixels = np.round(pixels) if spread == "ties" else pixels
    else:
        ends = np.iinfo(dtype)
        low, high = {"ties": (1, 4), "near": (100, 140), "all": (ends.min, ends.max + 1)}[spread]
        pixels = rng.integers(low, high, shape)
    pixels = pixels.astype(dtype)
    bad = draw(st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    for value in (*dropped_by_default(dtype), *((np.nan, np.inf, -np.inf) if dtype.kind == "f" else ())):
        pixels[rng.random(shape) < bad / 2] = value
    return pixels


def assert_same(result, expected):
    composite, count, source = expected
    np.testing.assert_array_equal(result["count"], count)
    np.testing.assert_array_equal(result["source"], source)
    np.testing.assert_array_equal(result["composite"], composite)
    assert result["composite"].dtype == composite.dtype.newbyteorder("=")
    assert (result["count"].dtype, result["source"].dtype) == (np.uint16, np.int16)


@settings(max_examples=60, deadline=None)
@given(pixels=stacks(), layout=st.sampled_from(LAYOUTS))
def test_luminance_median_is_the_definition(pixels, layout):
    fill = 0 if pixels.dtype.kind in "ui" else np.nan
    expected = oracles.rank_composite(pixels, dropped_by_default(pixels.dtype), oracles.luminance, nodata=fill)
    assert_same(reduce_block(layout(pixels), MEDIAN), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("times", [1, 2, 3, 7, 8, 9, 16, 400])
def test_few_and_many_scenes(dtype, times):
    pixels = np.random.default_rng(times).integers(1, 255, (times, 3, 2, 70)).astype(dtype)
    assert_same(reduce_block(pixels, MEDIAN), oracles.rank_composite(pixels, (), oracles.luminance))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_valid_observation(dtype, layout):
    bad = 0 if np.dtype(dtype).kind in "ui" else np.nan
    result = reduce_block(layout(np.full((5, 3, 2, 3), bad, dtype)), MEDIAN)
    np.testing.assert_array_equal(result["composite"], np.full((3, 2, 3), bad, dtype))
    assert not result["count"].any()
    assert (result["source"] == -1).all()


@pytest.mark.parametrize("band", [0, 1, 2])
@pytest.mark.parametrize("bad", [0, 255])
def test_one_bad_band_drops_the_observation(band, bad):
    pixels = np.full((2, 3, 1, 1), 10, np.uint8)
    pixels[0, band] = bad
    result = reduce_block(pixels, MEDIAN)
    assert (result["count"].item(), result["source"].item()) == (1, 1)


def test_a_sum_beyond_uint8_does_not_overflow():
    pixels = np.array([[200, 200, 200], [1, 1, 2], [100, 100, 99]], np.uint8)[:, :, None, None]
    assert reduce_block(pixels, MEDIAN)["source"].item() == 2


@pytest.mark.parametrize("bands", [1, 2, 4, 13, 256, 257, 300])
def test_any_number_of_bands(bands):
    pixels = np.random.default_rng(bands).integers(1, 255, (9, bands, 1, 3), dtype=np.uint8)
    assert_same(reduce_block(interleaved(pixels), MEDIAN), oracles.rank_composite(pixels, (), oracles.luminance))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_at_the_ends_of_the_type_without_rules(dtype):
    ends = np.iinfo(dtype) if np.dtype(dtype).kind in "ui" else np.finfo(dtype)
    pixels = np.array([ends.max, ends.min, 0, ends.max, 1], dtype)[:, None, None, None]
    recipe = Recipe((resolve_reducer("luminance_median"),), rules=())
    assert_same(reduce_block(pixels, recipe), oracles.rank_composite(pixels, (), oracles.luminance))


def test_negative_zero_ties_with_zero():
    pixels = np.array([0.0, -0.0, 0.0, -0.0, 0.0], np.float32)[:, None, None, None]
    assert reduce_block(pixels, MEDIAN)["source"].item() == 2


def test_luminance_equals_the_original_worker_on_every_pixel():
    """Its unstable sort may return any of the tied triplets; the luminance must agree everywhere."""
    pixels = np.random.default_rng(3).integers(0, 256, (216, 3, 40, 50), dtype=np.uint8)
    result = reduce_block(interleaved(pixels), MEDIAN)
    for y, x in np.ndindex(40, 50):
        triplets = [tuple(map(int, o)) for o in pixels[:, :, y, x] if oracles.is_valid(o, (0, 255))]
        triplets.sort(key=sum)
        assert sum(map(int, result["composite"][:, y, x])) == sum(triplets[len(triplets) // 2])
        assert tuple(map(int, result["composite"][:, y, x])) in triplets
        assert len(triplets) == result["count"][y, x]


@settings(max_examples=40, deadline=None)
@given(pixels=stacks(times=st.integers(1, 30), bands=st.integers(2, 4)), data=st.data())
def test_rank_by_any_key_and_quantile(pixels, data):
    real = np.float64 if pixels.dtype == np.float64 else np.float32
    names = ("B1", "B2", "B3", "B4")[: pixels.shape[1]]
    quantile = data.draw(st.sampled_from([0, 0.1, 0.25, 0.29, 0.5, 0.7, 1]))
    kind = data.draw(st.sampled_from(["band", "difference", "weights"]))
    if kind == "band":
        params, key = {"key": "B2"}, lambda o: float(o[1])
    elif kind == "difference":
        params, key = {"key": ("B2", "B1")}, lambda o: oracles.difference(o[1], o[0], real)
    else:
        params = {"weights": {"B2": 0.25, "B1": -2.0}}

        def key(o):
            with np.errstate(over="ignore", invalid="ignore"):
                return float(real(o[1]) * real(0.25) + real(o[0]) * real(-2))

    recipe = Recipe((resolve_reducer("rank", quantile=quantile, **params),), bands=names)
    fill = 0 if pixels.dtype.kind in "ui" else np.nan
    expected = oracles.rank_composite(
        pixels, dropped_by_default(pixels.dtype), key, lambda n: oracles.quantile_index(n, quantile), nodata=fill
    )
    assert_same(reduce_block(pixels, recipe), expected)


@pytest.mark.parametrize(("quantile", "scene"), [(0, 0), (0.5, 2), (1, 1)])
def test_an_undefined_difference_comes_first(quantile, scene):
    pixels = np.array([[5, -5], [9, 1], [3, 1]], np.int16)[:, :, None, None]
    recipe = Recipe((resolve_reducer("rank", key=("a", "b"), quantile=quantile),), rules=(), bands=("a", "b"))
    assert reduce_block(pixels, recipe)["source"].item() == scene


@settings(max_examples=25, deadline=None)
@given(pixels=stacks(times=st.integers(1, 40), bands=st.just(3)), data=st.data())
def test_a_pixel_depends_on_itself_only(pixels, data):
    """The same pixel alone, among others, at the end of a block, in any window: the same result."""
    many = np.tile(pixels, (1, 1, 1, data.draw(st.sampled_from([1, 7, 300]))))
    width = pixels.shape[3]
    whole, alone = reduce_block(many, MEDIAN), reduce_block(pixels, MEDIAN)
    for name in ("composite", "count", "source"):
        np.testing.assert_array_equal(whole[name][..., :width], alone[name])
        np.testing.assert_array_equal(whole[name][..., -width:], alone[name])


@settings(max_examples=25, deadline=None)
@given(pixels=stacks(times=st.integers(1, 40)), data=st.data())
def test_scenes_and_masks_leave_observations_out(pixels, data):
    times = pixels.shape[0]
    scenes = data.draw(st.lists(st.integers(0, times - 1), unique=True))
    usable = np.random.default_rng(times).random((times, *pixels.shape[2:])) < 0.7
    result = reduce_block(pixels, MEDIAN, scenes=np.array(scenes, int), valid=usable)
    fill = 0 if pixels.dtype.kind in "ui" else np.nan
    dropped = dropped_by_default(pixels.dtype)
    composite, count, source = oracles.rank_composite(
        pixels[scenes], dropped, oracles.luminance, nodata=fill, usable=usable[scenes]
    )
    source = np.where(source >= 0, np.array([*scenes, -1], np.int16)[source], np.int16(-1))
    assert_same(result, (composite, count, source))


@pytest.mark.parametrize("min_count", [1, 2, 3, 4])
def test_min_count(min_count):
    pixels = np.array([7, 0, 9, 8], np.uint8)[:, None, None, None]
    result = reduce_block(pixels, Recipe(MEDIAN.reducers, min_count=min_count))
    assert result["count"].item() == 3
    assert result["source"].item() == (3 if min_count <= 3 else -1)
    assert result["composite"].item() == (8 if min_count <= 3 else 0)


def test_the_cube_nodata_is_dropped_and_written():
    recipe = Recipe(MEDIAN.reducers, nodata=-9999)
    result = reduce_block(np.array([[-9999, 5], [7, 5], [5, -9999]], np.int16)[:, :, None, None], recipe)
    assert (result["count"].item(), result["source"].item()) == (1, 1)
    empty = reduce_block(np.full((2, 1, 1, 1), -9999, np.int16), recipe)
    assert empty["composite"].item() == -9999


def test_the_most_scenes_there_can_be():
    pixels = np.full((32767, 1, 1, 2), 100, np.uint8)
    pixels[32000:] = 99
    result = reduce_block(pixels, MEDIAN)
    assert result["source"].tolist() == [[16383 - 767, 16383 - 767]]
    assert result["count"].tolist() == [[32767, 32767]]


def test_window_inside_a_halo():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 9, 11), dtype=np.uint8)
    inner = (slice(2, 7), slice(3, 10))
    cut = reduce_block(np.ascontiguousarray(pixels[:, :, 2:7, 3:10]), MEDIAN)
    for name, array in reduce_block(pixels, MEDIAN, inner=inner).items():
        np.testing.assert_array_equal(array, cut[name])


def test_rules_can_be_changed_and_switched_off():
    pixels = np.array([0, 255, 7], np.uint8)[:, None, None, None]

    def count(*rules):
        return reduce_block(pixels, Recipe(MEDIAN.reducers, rules=rules))["count"].item()

    assert [count(), count(Nodata()), count(Saturated()), count(Nodata(7), Saturated(0))] == [3, 2, 2, 1]


@pytest.mark.parametrize("shape", [(3, 3, 0, 5), (3, 3, 5, 0)])
def test_an_empty_window(shape):
    result = reduce_block(np.empty(shape, np.uint8), MEDIAN)
    assert result["composite"].shape == shape[1:]


def test_large_slabs_of_odd_layout_join(monkeypatch):
    monkeypatch.setattr("s2composite.pixels.reducers.SLAB_BYTES", 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 19, 11), dtype=np.uint8)
    for layout in (cut_out, cut_out_interleaved, fortran):
        for name, array in reduce_block(layout(pixels), MEDIAN).items():
            np.testing.assert_array_equal(array, reduce_block(pixels, MEDIAN)[name])


@settings(max_examples=30, deadline=None)
@given(pixels=stacks())
@pytest.mark.filterwarnings("error")
def test_the_gufunc_is_the_definition(pixels):
    fill = 0 if pixels.dtype.kind in "ui" else np.nan
    expected = oracles.rank_composite(pixels, dropped_by_default(pixels.dtype), oracles.luminance, nodata=fill)
    composite, count, source = luminance_median(np.moveaxis(pixels, (0, 1), (-2, -1)))
    assert_same({"composite": np.moveaxis(composite, -1, 0), "count": count, "source": source}, expected)


def few_pixels(*shape):
    return np.random.default_rng(1).integers(0, 12, shape, np.uint8)


def test_the_gufunc_broadcasts_and_writes_into_out():
    pixels = few_pixels(2, 5, 4, 9, 3)
    composite, count, source = luminance_median(pixels)
    assert (composite.shape, count.shape, source.shape) == ((2, 5, 4, 3), (2, 5, 4), (2, 5, 4))
    one = luminance_median(pixels[1, 2, 3])
    assert (one[0].tolist(), one[1], one[2]) == (composite[1, 2, 3].tolist(), count[1, 2, 3], source[1, 2, 3])
    out = np.empty_like(composite), np.empty_like(count), np.empty_like(source)
    given = luminance_median(pixels, out=out)
    for array, written, expected in zip(given, out, (composite, count, source), strict=True):
        assert array is written
        np.testing.assert_array_equal(written, expected)
    moved = luminance_median(np.moveaxis(pixels, -2, 0), axes=[(0, -1), -1, (), ()])
    np.testing.assert_array_equal(moved[0], composite)


def test_the_gufunc_on_dask():
    pixels = few_pixels(9, 3, 8, 10)
    lazy = da.from_array(pixels, chunks=(9, 3, 4, 5)).transpose(2, 3, 0, 1)
    expected = reduce_block(pixels, MEDIAN)
    composite, count, source = da.apply_gufunc(
        luminance_median, "(t,b)->(b),(),()", lazy, output_dtypes=[np.uint8, np.uint16, np.int16]
    )
    np.testing.assert_array_equal(composite.transpose(2, 0, 1).compute(), expected["composite"])
    np.testing.assert_array_equal(count.compute(), expected["count"])
    np.testing.assert_array_equal(source.compute(), expected["source"])
    only = lazy.map_blocks(lambda block: luminance_median(block)[0], drop_axis=2, dtype=np.uint8)
    np.testing.assert_array_equal(only.transpose(2, 0, 1).compute(), expected["composite"])


def test_the_gufunc_travels_and_refuses_other_types():
    assert pickle.loads(pickle.dumps(luminance_median)) is luminance_median
    with pytest.raises(TypeError, match="complex64"):
        luminance_median(np.ones((2, 3), np.complex64))
