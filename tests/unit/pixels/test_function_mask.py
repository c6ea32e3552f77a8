"""What may be given to `Mask`."""

import functools
import pickle

import numpy as np
import pytest

from s2composite.errors import ParameterError
from s2composite.pixels.function_mask import Mask
from s2composite.pixels.mask_bands import resolve_rule, rule_names


def clear(pixels):
    return pixels[0] < 9


class Network:
    """A callable object, as models are."""

    def __call__(self, pixels):
        return pixels[0]


def test_functions_objects_and_paths_are_taken_and_named():
    pixels = np.array([[[5, 9, 12]]], np.uint8)
    assert Mask(clear).valid(pixels).tolist() == [[True, False, False]]
    assert Mask(Network(), classes=9).valid(pixels).tolist() == [[True, False, True]]
    assert str(Mask(Network(), bands="B02", classes=9)).endswith("Network, bands=('B02',), classes=(9,))")
    assert str(Mask(functools.partial(clear))).startswith("Mask(functools.partial")
    assert str(Mask("numpy.isfinite", cleanup=[1, 2])) == str(
        resolve_rule("mask", function="numpy:isfinite", cleanup=[["opening", 1], ["dilation", 2]])
    )
    assert "0x" not in str(Mask(clear))
    again = pickle.loads(pickle.dumps(Mask(clear, bands=["B02"], resolution=20)))
    assert again == Mask(clear, bands=("B02",), resolution=20.0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"function": 3}, "give one that takes an array"),
        ({"function": "no_such_module.clear"}, "cannot be loaded"),
        ({"function": "numpy"}, "give one that takes"),
        ({"bands": []}, "give their names"),
        ({"bands": [2.5]}, "give their names"),
        ({"resolution": 0}, "resolution of Mask is 0"),
        ({"resolution": "fine"}, "resolution of Mask is 'fine'"),
        ({"surroundings": -1}, "give 0 to 4096"),
        ({"surroundings": 2.0}, "give 0 to 4096"),
        ({"classes": "cloud"}, "numbers of those to drop"),
        ({"classes": [True]}, "numbers of those to drop"),
        ({"cleanup": {1: []}}, "one list of steps"),
    ],
)
def test_what_makes_no_sense_is_refused(given, says):
    with pytest.raises(ParameterError, match=says):
        Mask(**({"function": clear} | given))


def test_names_for_others_leave_out_what_imports():
    assert set(rule_names()) - set(rule_names(imports=False)) == {"mask"}
