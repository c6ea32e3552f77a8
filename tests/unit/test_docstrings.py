"""The examples of docstrings run, one module after the other.

They reach nearly every kernel. Here, where they run after the tests of these, few are left to be compiled; among the
first tests, they compiled the geometric median at the same time as another process did, for fifteen seconds.
"""

import doctest
import importlib
import pkgutil

import pytest

import s2composite
from s2composite.pixels import reducers as registry
from support.doc_blocks import directory


def modules():
    return [module.name for module in pkgutil.walk_packages(s2composite.__path__, "s2composite.")]


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # examples write rasters that lie nowhere
def test_examples_of_docstrings_run(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))  # examples register reducers
    tested = {}
    for name in modules():
        (tmp_path / name).mkdir()
        with directory(tmp_path / name):
            tested[name] = doctest.testmod(importlib.import_module(name))
    assert [name for name, result in tested.items() if result.failed] == []
    assert sum(result.attempted for result in tested.values()) > 100
