"""Discs, openings, dilations and distances equal SciPy's on whole images, and on windows with their halo.

The border is scikit-image's, which odc-algo cleans masks with: what lies outside grows nothing and removes nothing.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from s2composite.errors import ParameterError
from s2composite.pixels import morphology as m
from support.morphology import PEERS, disc, peer


@st.composite
def masks(draw, most=40):
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, most)), draw(st.integers(1, most)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    marked = rng.random(shape) < draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    if draw(st.booleans()):  # spots that an opening keeps
        marked = ndimage.binary_dilation(marked, np.ones((1, 3, 3)))
    return marked


STEPS = st.lists(st.tuples(st.sampled_from(sorted(PEERS)), st.integers(0, 7)), max_size=3)


@settings(max_examples=80, deadline=None)
@given(marked=masks(), steps=STEPS)
def test_steps_are_scipys(marked, steps):
    before = marked.copy()
    np.testing.assert_array_equal(m.apply_steps(marked, steps), peer(marked, steps))
    np.testing.assert_array_equal(marked, before)


def by_hand(scene, name, radius):
    """One operation in plain Python, by looking at all pixels of the image within the radius of each."""
    near = [
        (dy, dx) for dy, dx in product(range(-radius, radius + 1), repeat=2) if dy * dy + dx * dx <= radius * radius
    ]
    rows, columns = range(len(scene)), range(len(scene[0]))

    def looked(scene, decide):
        return [
            [decide(scene[y + dy][x + dx] for dy, dx in near if y + dy in rows and x + dx in columns) for x in columns]
            for y in rows
        ]

    decisions = {"dilation": (any,), "erosion": (all,), "opening": (all, any), "closing": (any, all)}
    for decide in decisions[name]:
        scene = looked(scene, decide)
    return scene


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 2), (9, 9)])
@pytest.mark.parametrize("name", sorted(PEERS))
def test_steps_at_the_border_by_hand(name, shape):
    rng = np.random.default_rng(3)
    for radius in (1, 2, 3):
        for share in (0.1, 0.6):
            marked = rng.random((1, *shape)) < share
            found = m.apply_steps(marked, [(name, radius)])[0].tolist()
            assert found == by_hand(marked[0].tolist(), name, radius)


def test_a_cloud_at_the_border_survives_closing_and_opening():
    """A closing never loses a marked pixel; an opening keeps a corner that it would keep within the image."""
    marked = np.zeros((1, 9, 9), bool)
    marked[0, 0:3, 0:4] = True  # cut off by the corner
    marked[0, 5:8, 5:8] = True
    assert (m.closing(marked, 3) >= marked).all()
    assert m.opening(marked, 2)[0, 0:3, 0:3].sum() == 9 - 1, "the disc's round corner is all that is lost"
    assert not m.opening(marked, 2)[0, 5:8, 5:8].any()
    everywhere = np.ones((1, 4, 5), bool)
    for name, radius in product(PEERS, (1, 9)):
        assert m.apply_steps(everywhere, [(name, radius)]).all()


@settings(max_examples=60, deadline=None)
@given(marked=masks(), radius=st.integers(0, 9))
def test_closing_only_adds_and_opening_only_removes(marked, radius):
    assert (m.closing(marked, radius) >= marked).all()
    assert (m.opening(marked, radius) <= marked).all()


@pytest.mark.parametrize("radius", [60, 254])
def test_large_discs(radius):
    marked = np.zeros((1, 400, 300), bool)
    marked[0, 170:190, 100:140] = True
    far = ndimage.distance_transform_edt(~marked[0])
    np.testing.assert_array_equal(m.dilation(marked, radius)[0], far <= radius)


@settings(max_examples=40, deadline=None)
@given(marked=masks(), radius=st.integers(1, 12))
def test_squared_distances_are_scipys(marked, radius):
    found = m.distance_squared(marked, radius)
    for scene, result in zip(marked, found, strict=True):
        far = ndimage.distance_transform_edt(~scene) ** 2 if scene.any() else np.full(scene.shape, np.inf)
        np.testing.assert_array_equal(result, np.minimum(np.round(far), radius**2))


@settings(max_examples=60, deadline=None)
@given(marked=masks(most=60), steps=STEPS, data=st.data())
def test_a_window_with_its_halo_is_the_window_of_the_whole(marked, steps, data):
    _, height, width = marked.shape
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width))
    halo = m.halo_of(steps)
    top, left = max(y0 - halo, 0), max(x0 - halo, 0)
    part = m.apply_steps(np.ascontiguousarray(marked[:, top : y1 + halo, left : x1 + halo]), steps)
    whole = m.apply_steps(marked, steps)[:, y0:y1, x0:x1]
    np.testing.assert_array_equal(part[:, y0 - top : y1 - top, x0 - left : x1 - left], whole)


def test_a_smaller_halo_would_not_do():
    """A disc that an opening of radius 2 removes because its leftmost pixel is missing, seen from its rightmost one."""
    marked = np.zeros((1, 5, 9), bool)
    marked[0, :, 2:7] = disc(2)
    marked[0, 2, 2] = False
    assert not m.opening(marked, 2)[0, 2, 6]
    assert not m.opening(marked[:, :, 2:], 2)[0, 2, 4]  # four pixels to the left of it
    assert m.opening(marked[:, :, 3:], 2)[0, 2, 3]  # three
    assert m.halo_of([("opening", 2)]) == 4


@pytest.mark.parametrize(
    ("given_steps", "steps"),
    [
        (None, ()),
        ([], ()),
        ([2, 5], (("opening", 2), ("dilation", 5))),
        ([0, 0], (("opening", 0), ("dilation", 0))),
        ([("closing", 1), ["dilation", 3]], (("closing", 1), ("dilation", 3))),
    ],
)
def test_spellings_of_steps(given_steps, steps):
    assert m.steps_of(given_steps) == steps


@pytest.mark.parametrize(
    ("given_steps", "said"),
    [
        ([("blur", 2)], "closing, dilation, erosion, opening"),
        ([("dilation", -1)], "0 to 254"),
        ([("dilation", 255)], "0 to 254"),
        ([("dilation", 1.5)], "whole number"),
        ([("dilation", "far")], "an operation and a radius"),
        (["dilation"], "an operation and a radius"),
        ([2, 5, 1], "two radii"),
        ([2.5, 1], "whole number"),
    ],
)
def test_wrong_steps(given_steps, said):
    with pytest.raises(ParameterError, match=said):
        m.steps_of(given_steps)


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
def test_empty_images(shape):
    assert m.opening(np.zeros(shape, bool), 2).shape == shape
    assert m.distance_squared(np.zeros(shape, bool), 2).shape == shape
