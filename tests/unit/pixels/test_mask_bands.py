"""Rules on mask bands: classes, bits, probabilities, cleanup per class, halo, coarser masks."""

import pickle

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import s2composite as s2c
from s2composite.errors import BandError, ParameterError
from s2composite.pixels.mask_bands import (
    QA_BITS,
    SCL,
    SCL_CLASSES,
    CloudProbability,
    Fmask,
    QABits,
    Usable,
    resolve_rule,
    upsample,
)
from s2composite.pixels.masks import Nodata, Saturated, SwathEdge, ValueRange
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer, valid_observations
from support.morphology import peer

MEDIAN = (resolve_reducer("luminance_median"),)


def dropped_classes(rule, classes=12):
    values = np.arange(classes, dtype=np.uint8)[None, None]
    return np.flatnonzero(~rule.valid(values)[0, 0]).tolist()


def test_classes_by_name_and_number():
    assert dropped_classes(SCL()) == [0, 3, 8, 9, 10]
    assert dropped_classes(SCL(["Thin_Cirrus", 11, "water"])) == [0, 6, 10, 11]
    assert dropped_classes(SCL([])) == [0]
    assert dropped_classes(Fmask(coding="odc"), 6) == [0, 2, 3]
    assert set(SCL_CLASSES.values()) == set(range(12))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64, np.float32])
def test_any_type_of_mask(dtype):
    block = np.array([[[4, 9, 0, 10, 5]]]).astype(dtype)
    assert SCL().valid(block).tolist() == [[[True, False, False, False, True]]]


CLEAR = {
    "SCL": (SCL(), 4),
    "fmask": (Fmask(coding="odc"), 1),
    "cfmask": (Fmask(coding="cfmask"), 0),
    "landsat": (QABits("landsat"), 21824),
    "hls": (QABits("hls"), 64),
    "qa60": (QABits("qa60"), 0),
    "probability": (CloudProbability(), 5),
    "own": (Usable(), 1),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf, -3.4e38, 1e20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CLEAR)
def test_floats_that_are_no_value_are_not_usable(name, dtype, missing):
    """What xarray, odc-stac and stackstac make of a mask band with gaps; they are not grown by a cleanup."""
    rule, clear = CLEAR[name]
    block = np.full((2, 3, 5), clear, dtype)
    assert rule.valid(block).all()
    block[1, 1, 2] = missing
    expected = np.ones(block.shape, bool)
    expected[1, 1, 2] = False
    np.testing.assert_array_equal(rule.valid(block), expected)


@pytest.mark.parametrize("make", [SCL, CloudProbability, Usable, QABits, lambda **how: Fmask(coding="odc", **how)])
def test_missing_values_do_not_grow(make):
    rule = make(cleanup=[("dilation", 2)])
    block = np.full((1, 5, 9), 4 if rule.band == "SCL" else 1 if rule.band in ("fmask", "valid") else 64, np.float32)
    if rule.band == "CLDPRB":
        block[:] = 5
    block[0, 2, 4] = np.nan
    assert (~rule.valid(block)).sum() == 1


@pytest.mark.parametrize("fill", [255, 12, -1, -9999])
@pytest.mark.parametrize("rule", [SCL(), SCL([]), Fmask([], coding="odc"), Fmask(coding="cfmask")])
def test_values_that_are_no_class_are_not_usable(rule, fill):
    block = np.array([[[1, fill, 1]]], np.int16)
    assert rule.valid(block)[0, 0].tolist() == [True, False, True]
    assert rule.valid(block.astype(np.float32))[0, 0].tolist() == [True, False, True]
    if fill >= 0:
        assert rule.valid(block.astype(np.uint8))[0, 0].tolist() == [True, False, True]


def test_fills_of_other_bands():
    assert QABits("hls", []).valid(np.array([[[64, 255]]], np.uint8))[0, 0].tolist() == [True, False]
    probabilities = np.array([[[0, 39, -9999, -1]]])
    assert CloudProbability().valid(probabilities)[0, 0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("rule", [SCL(), Fmask(coding="odc"), QABits("landsat"), QABits("hls"), Usable()])
def test_classes_that_were_interpolated_are_refused(rule):
    with pytest.raises(ParameterError, match=rf"'{rule.band}' holds 4.5, .*interpolated.*nearest"):
        rule.valid(np.array([[[5, 4.5, np.nan]]]))


ODC = {"nodata": 0, "valid": 1, "cloud": 2, "shadow": 3, "snow": 4, "water": 5}
CFMASK = {"clear": 0, "water": 1, "cloud_shadow": 2, "snow": 3, "cloud": 4}


@pytest.mark.parametrize("values", [[0, 0, 4, 1], [0, 0, 0, 0], [1, 1, 4, 2], [0, 1, 4, 255], [64, 66, 0, 5]])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_coding_of_fmask_never_follows_from_values(values, dtype):
    block = np.array([[values]], dtype)
    with pytest.raises(ParameterError, match=r"'odc'.*'cfmask'.*QABits\('hls'\)"):
        Fmask().valid(block)
    assert Fmask().in_coding("odc").valid(block)[0, 0].tolist() == np.isin(values, (1, 4, 5)).tolist()
    assert Fmask().in_coding("cfmask").valid(block)[0, 0].tolist() == np.isin(values, (0, 1, 3)).tolist()
    assert Fmask(coding="odc").in_coding("cfmask") == Fmask(coding="odc"), "what was said stays"


def test_classes_of_fmask_by_number_belong_to_codings_that_have_them():
    assert Fmask([5]).in_coding("odc").valid(np.array([[[1, 5]]]))[0, 0].tolist() == [True, False]
    with pytest.raises(ParameterError, match="classes that only odc has"):
        Fmask([5]).in_coding("cfmask")
    with pytest.raises(ParameterError, match=r"has bits: use QABits\('hls'\)"):
        Fmask().in_coding("hls")
    assert Fmask(["snow"], coding="cfmask").valid(np.array([[[0, 3, 4]]]))[0, 0].tolist() == [True, False, True]


def fmask_dataset(name, values, **attrs):
    values = np.array(values, np.uint8).reshape(-1, 1, 1)
    red = np.full(values.shape, 500, np.uint16)
    return xr.Dataset({"red": (("time", "y", "x"), red), name: (("time", "y", "x"), values, attrs)})


@pytest.mark.parametrize(
    ("name", "attrs", "codes"),
    [
        ("oa_fmask", {}, ODC),
        ("fmask", {"flags_definition": {"fmask": {"values": {str(n): name for name, n in ODC.items()}}}}, ODC),
        ("fmask", {"flags_definition": {"fmask": {"values": {n: name for name, n in CFMASK.items()}}}}, CFMASK),
    ],
)
def test_names_and_lists_of_classes_of_datasets_say_the_coding_of_fmask(name, attrs, codes):
    clear = {codes.get("valid", codes.get("clear")), codes["water"], codes["snow"]}
    values = [0, 1, 4, 2, 3]
    for lazy in (False, True):
        cube = fmask_dataset(name, values, **attrs)
        comp = s2c.composite(cube.chunk() if lazy else cube, valid=Fmask())
        assert comp["count"].values.item() == sum(value in clear for value in values)


@pytest.mark.parametrize("attrs", [{}, {"flags_definition": 5}, {"flags_definition": {"fmask": {"values": [1]}}}])
def test_a_band_of_fmask_that_says_nothing_is_asked_about_when_the_composite_is_made(attrs):
    for values in ([1, 1, 2], [0, 5, 4]):
        cube = fmask_dataset("fmask", values, **attrs).chunk()
        with pytest.raises(ParameterError, match=r"nothing says which coding .*'fmask'.*coding='odc'.*coding='cfmask'"):
            s2c.composite(cube, valid="fmask")
        assert s2c.composite(cube, valid={"fmask": {"coding": "odc"}})["count"].values.item() == 2


def test_one_class_need_not_be_in_a_list():
    for one, several in (
        (Fmask(3), Fmask([3])),
        (Fmask("snow", coding="odc"), Fmask(["snow"], coding="odc")),
        (SCL("thin cirrus"), SCL(["thin cirrus"])),
        (SCL(3), SCL([3])),
        (QABits("landsat", "snow"), QABits("landsat", ["snow"])),
        (resolve_rule("scl", classes=11), SCL([11])),
    ):
        assert one == several
    comp = s2c.composite(fmask_dataset("oa_fmask", [1, 2, 5, 5]), valid=Fmask(5))
    assert comp["count"].item() == 2


def test_a_composite_says_in_which_coding_fmask_was_understood():
    comp = s2c.composite(fmask_dataset("oa_fmask", [1, 2]), valid=["nodata", Fmask(cleanup=[("dilation", 1)])])
    assert comp.dataset.attrs["rules"].endswith("Fmask odc(cloud, shadow; cleanup [('dilation', 1)])")
    assert str(Fmask(coding="cfmask")) == str(Fmask().in_coding("cfmask")) == "Fmask cfmask(cloud, shadow)"


@pytest.mark.parametrize("band", ["QA_PIXEL", "qa_pixel", "pixel_qa", "BQA"])
def test_bits_of_landsat_are_no_fmask(band):
    with pytest.raises(ParameterError, match=rf"use QABits\('landsat', band='{band}'\)"):
        s2c.composite(fmask_dataset(band, [1, 2]), valid=Fmask(band=band))
    with pytest.raises(ParameterError, match=r"bands of bits QABits\('hls'\) or QABits\('landsat'\)"):
        Fmask().in_coding(None)


def test_bits_of_landsat():
    rule = QABits("landsat")
    clear, cloud, shadow, fill, dilated, high = 21824, 22280, 23888, 1, 21826, 0x300
    block = np.array([[[clear, cloud, shadow, fill, dilated, high]]], np.uint16)
    assert rule.valid(block)[0, 0].tolist() == [True, False, False, False, False, True]
    assert not QABits("landsat", ["cloud high"]).valid(block)[0, 0, 5]
    assert QABits("landsat", ["cloud medium"]).valid(block)[0, 0, 5]
    assert (rule.band, QABits("qa60").band, QABits("hls").band) == ("QA_PIXEL", "QA60", "Fmask")


def test_bits_of_the_others():
    assert QABits("qa60").valid(np.array([[[0, 1024, 2048, 3072]]], np.uint16))[0, 0].tolist() == [True] + [False] * 3
    assert QABits("qa60").valid(np.array([[[0, 255]]], np.uint8)).all(), (
        "a mask in too few bits has none of these flags"
    )
    block = np.array([[[0, 2, 4, 8, 16, 32, 64, 192]]], np.uint8)
    assert QABits("hls").valid(block)[0, 0].tolist() == [True, False, False, False, True, True, True, True]
    assert not QABits("hls", ["aerosol high"]).valid(block)[0, 0, 7]
    for scheme, flags in QA_BITS.items():
        assert all(value & ~mask == 0 for mask, value in flags.values()), scheme


def test_cloud_probability_and_masks_of_ones_own():
    block = np.array([[[0, 40, 41, 100]]], np.uint8)
    assert CloudProbability().valid(block)[0, 0].tolist() == [True, True, False, False]
    assert CloudProbability(50.5).valid(block.astype(np.float32))[0, 0].tolist() == [True, True, True, False]
    assert not CloudProbability().valid(np.array([[[np.nan]]])).any()
    own = np.array([[[True, False, True, True]]])
    assert Usable().valid(own).tolist() == own.tolist()
    assert Usable(cleanup=[("dilation", 1)]).valid(own)[0, 0].tolist() == [False, False, False, True]


@pytest.mark.parametrize(("scale", "dtype"), [(1, np.float32), (1, np.float64), (100, np.uint8)])
def test_scores_are_usable_from_a_minimum_on(scale, dtype):
    scores = (np.array([[[0, 0.25, 0.5, 0.75, 1]]]) * scale).astype(dtype)
    rule = Usable("cs_cdf", minimum=0.5 * scale)
    assert rule.valid(scores)[0, 0].tolist() == [False, False, True, True, True]
    grown = Usable("cs_cdf", minimum=0.5 * scale, cleanup=[("dilation", 1)])
    assert grown.valid(scores)[0, 0].tolist() == [False, False, False, True, True]


def test_missing_scores_are_not_usable_and_do_not_grow():
    rule = Usable("cs_cdf", minimum=0.6, cleanup=[("dilation", 1)])
    assert rule.valid(np.array([[[0.9, np.nan, 0.9]]]))[0, 0].tolist() == [True, False, True]
    assert str(rule) == "Usable >= 0.6(cleanup [('dilation', 1)])"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), opening=st.integers(0, 3), dilation=st.integers(0, 4))
def test_cleanup_for_all_classes_together(seed, opening, dilation):
    block = np.random.default_rng(seed).integers(0, 12, (2, 20, 23)).astype(np.uint8)
    block[:, 5:15, 5:15] = 9
    steps = [("opening", opening), ("dilation", dilation)]
    bad = peer(np.isin(block, [3, 8, 9, 10]), steps) | (block == 0)
    np.testing.assert_array_equal(SCL(cleanup=steps).valid(block), ~bad)
    np.testing.assert_array_equal(SCL(cleanup=[opening, dilation]).valid(block), ~bad)


def test_cleanup_for_each_class():
    rng = np.random.default_rng(0)
    block = rng.choice(np.array([4, 3, 8, 9, 10, 0], np.uint8), (2, 30, 31), p=[0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
    cleanup = {"thin cirrus": [("dilation", 3)], ("cloud shadows", "cloud high probability"): [("closing", 2)]}
    rule = SCL(["cloud medium probability", "thin cirrus"], cleanup=cleanup)
    bad = peer(block == 10, [("dilation", 3)]) | peer(np.isin(block, [3, 9]), [("closing", 2)]) | np.isin(block, [0, 8])
    np.testing.assert_array_equal(rule.valid(block), ~bad)
    assert rule.halo == 4
    assert (SCL().halo, SCL(cleanup=[2, 5]).halo) == (0, 9)


def test_rules_travel_and_have_names():
    rules = (
        SCL(cleanup=[2, 5]),
        QABits("hls", ["cloud"]),
        CloudProbability(30),
        Usable(),
        Fmask(),
        SwathEdge(4),
        ValueRange(1),
    )
    assert pickle.loads(pickle.dumps(rules)) == rules
    assert str(CloudProbability(30)) == "CloudProbability > 30"
    assert str(SCL(["water"], cleanup=[2, 5])) == "SCL(water; cleanup [2, 5])"
    assert len({*rules}) == len(rules)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SCL(["clouds"]), "thin cirrus"),
        (lambda: SCL("clouds"), "unknown SCL class 'clouds'"),
        (lambda: SCL(None), "SCL class None: give one or several"),
        (lambda: SCL(True), "unknown SCL class True"),
        (lambda: Fmask(9), "unknown Fmask class 9"),
        (lambda: QABits("landsat", 3), "unknown flag of landsat 3; there are fill"),
        (lambda: QABits("landsat", cleanup={3: [1, 2]}), "unknown flag of landsat 3; there are fill"),
        (lambda: SCL([12]), "unknown SCL class 12"),
        (lambda: SCL(cleanup={"clouds": []}), "unknown SCL class"),
        (lambda: SCL(["snow"], cleanup={"snow_or_ice": []}), "unknown SCL class 'snow'"),
        (lambda: SCL(cleanup=[("melt", 1)]), "opening"),
        (lambda: QABits("modis"), "landsat, hls, qa60"),
        (lambda: QABits("qa60", ["cloud"]), "opaque cloud"),
        (lambda: Fmask(["fog"]), "shadow"),
        (lambda: Fmask(coding="hls"), "odc, cfmask"),
        (lambda: CloudProbability(cleanup={"a": []}), "no classes"),
        (lambda: Usable(cleanup={"a": []}), "no classes"),
        (lambda: Usable("cs", minimum="high"), "minimum of Usable is 'high'"),
        (lambda: Usable("cs", minimum=np.nan), "finite"),
        (lambda: SwathEdge(0), "1 to 254"),
        (lambda: ValueRange(5, 1), "is empty"),
    ],
)
def test_wrong_rules(make, said):
    with pytest.raises(ParameterError, match=said):
        make()


@settings(max_examples=40, deadline=None)
@given(factor=st.integers(1, 6), data=st.data())
def test_coarser_masks(factor, data):
    valid = np.random.default_rng(factor).random((2, 5, 4)) < 0.5
    top, left = data.draw(st.integers(0, 5 * factor - 1)), data.draw(st.integers(0, 4 * factor - 1))
    shape = (data.draw(st.integers(1, 5 * factor - top)), data.draw(st.integers(1, 4 * factor - left)))
    whole = valid.repeat(factor, axis=1).repeat(factor, axis=2)
    part = upsample(valid, factor, shape, top=top, left=left)
    np.testing.assert_array_equal(part, whole[:, top : top + shape[0], left : left + shape[1]])


def test_a_mask_that_does_not_cover_the_data():
    with pytest.raises(ParameterError, match="does not cover"):
        upsample(np.ones((1, 5, 5), bool), 2, (10, 10), top=1)


def test_ranges_of_values():
    pixels = np.array([[1, 50], [10, 50], [20, 50], [10, 5]], np.int16)[:, :, None, None]

    def passed(*rules, names=("red", "nir")):
        return valid_observations(pixels, Recipe((), rules, bands=names))[:, 0, 0].tolist()

    assert passed(ValueRange(2, 40)) == [False] * 3 + [True]
    assert passed(ValueRange(2, 15, bands=("red",))) == [False, True, False, True]
    assert passed(ValueRange(9.5, 10.5, bands=("red",))) == [False, True, False, True]
    assert passed(ValueRange(low=-1e9), ValueRange(high=1e9)) == [True] * 4
    assert passed(ValueRange(2, 40, bands=("red",)), ValueRange(high=49, bands=("nir",))) == [False] * 3 + [True]
    with pytest.raises(BandError, match="swir"):
        passed(ValueRange(0, bands=("swir",)))


def test_observations_near_nodata_are_dropped():
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 255, (4, 3, 30, 40), dtype=np.uint8)
    pixels[0, 1, 10, 10] = 0
    pixels[1, :, :, :7] = 0
    rules = (Nodata(), Saturated(), SwathEdge(3))
    near = np.stack(
        [ndimage.distance_transform_edt(~scene) <= 3 if scene.any() else scene for scene in (pixels == 0).any(1)]
    )
    count = (~near & (pixels != 255).all(axis=1)).sum(axis=0)
    recipe = Recipe(MEDIAN, rules)
    assert recipe.halo == 3
    whole = reduce_block(pixels, recipe)
    np.testing.assert_array_equal(whole["count"], count)
    part = reduce_block(pixels[:, :, 2:25, 1:30], recipe, inner=(slice(3, 20), slice(3, 26)))
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][..., 5:22, 4:27])


def test_a_mask_and_the_edge_of_the_swath_together():
    pixels = np.full((2, 1, 3, 9), 50, np.uint8)
    pixels[:, :, :, 0] = 0
    usable = np.ones((2, 3, 9), bool)
    usable[0, :, 8] = False
    result = reduce_block(pixels, Recipe(MEDIAN, (Nodata(), SwathEdge(2))), valid=usable)
    assert result["count"][1].tolist() == [0, 0, 0, 2, 2, 2, 2, 2, 1]
