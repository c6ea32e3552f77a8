"""The methods of a composite take what the functions take that they call: options, defaults, and words about them."""

import inspect
import re
import sys
from dataclasses import fields

import numpy as np
import pytest
import xarray as xr

import s2composite as s2c
from s2composite.analysis.explore import explore
from s2composite.analysis.plot import Plots, before_after, periods, plot_composite, plot_count, plot_date, timeline
from s2composite.writing.cog import write_raster
from s2composite.writing.options import RasterOptions
from s2composite.writing.stac import write_stac, write_thumbnail
from s2composite.writing.zarr import write_zarr

METHODS = [
    (s2c.Composite.to_raster, write_raster, "dataset"),
    (s2c.Composite.to_zarr, write_zarr, "dataset"),
    (s2c.Composite.to_stac, write_stac, "dataset"),
    (s2c.Composite.to_thumbnail, write_thumbnail, "dataset"),
    (s2c.Composite.explore, explore, "composite"),
    (Plots.__call__, plot_composite, "composite"),
    (Plots.count, plot_count, "composite"),
    (Plots.date, plot_date, "composite"),
    (Plots.before_after, before_after, "composite"),
    (Plots.timeline, timeline, "composite"),
    (Plots.periods, periods, "composite"),
]
each_method = pytest.mark.parametrize(
    ("method", "function", "own"), METHODS, ids=[method.__qualname__ for method, *_ in METHODS]
)


def options(function, *left_out):
    """The name, kind, default and annotation of each parameter."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default, p.annotation) for p in found if p.name not in left_out]


def described(function):
    """Its docstring's entries, by section and name, without the breaks of its lines."""
    sections = re.split(r"\n\n(?=[A-Z]\w+\n-+\n)", inspect.getdoc(function))
    entries = {}
    for section in sections[1:]:
        title, _, text = section.split("\n", 2)
        for entry in re.split(r"\n(?=\S)", text):
            name, _, words = entry.partition("\n")
            entries[title, name] = " ".join(words.split())
    return entries


@each_method
def test_signatures_are_those_of_the_functions(method, function, own):
    assert options(method, "self") == options(function, own)
    assert inspect.signature(method).return_annotation == inspect.signature(function).return_annotation


@each_method
def test_every_option_reaches_the_function(method, function, own, monkeypatch):
    calls = []
    module = sys.modules["s2composite.analysis.plot" if "Plots" in method.__qualname__ else function.__module__]
    monkeypatch.setattr(module, function.__name__, lambda *args, **options: calls.append((args, options)))
    dataset = xr.Dataset()
    receiver = Plots(dataset) if "Plots" in method.__qualname__ else s2c.Composite(dataset)
    given = {name: object() for name, *_ in options(method, "self")}
    method(receiver, **given)
    ((args, named),) = calls
    assert inspect.signature(function).bind(*args, **named).arguments == {own: dataset, **given}


@each_method
def test_help_describes_every_option_and_the_function_refers_to_it(method, function, own):
    mine, theirs = described(method), described(function)
    names = [name for name, *_ in options(method, "self")]
    assert [name.partition(" : ")[0] for title, name in mine if title == "Parameters"] == names
    assert all(" : " in name for title, name in mine if title == "Parameters"), "types"
    assert f"`{method.__qualname__.removesuffix('.__call__')}`" in inspect.getdoc(function) or all(
        words == theirs[entry] for entry, words in mine.items() if entry[0] != "Examples"
    )
    assert {"Returns", "Raises", "Examples"} <= {title for title, _ in mine}


@pytest.mark.parametrize("function", [write_raster, write_stac])
def test_files_are_encoded_as_raster_options_say(function):
    given = {name: default for name, _, default, _ in options(function)}
    encoding = {field.name: field.default for field in fields(RasterOptions) if field.name != "stretch"}
    assert {name: given[name] for name in encoding} == encoding


@each_method
def test_an_unknown_option_is_named(method, function, own):
    cube = xr.DataArray(np.full((2, 3, 8, 8), 90, "uint8"), dims=("time", "band", "y", "x"))
    comp = s2c.composite(cube)
    with pytest.raises(TypeError, match="'compres'"):
        method(comp.plot if "Plots" in method.__qualname__ else comp, compres="zstd")
