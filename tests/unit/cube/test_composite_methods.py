"""The methods of a composite have the options, defaults and descriptions of the functions that they call."""

import copy
import inspect
import pickle
import re
import sys
from dataclasses import fields

import numpy as np
import pytest
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import s2composite as s2c
from s2composite.analysis.explore import explore
from s2composite.analysis.plot import Plots, before_after, periods, plot_composite, plot_count, plot_date, timeline
from s2composite.demo import make_scenes
from s2composite.errors import ParameterError
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
    (Plots.before_after, before_after, "composite"),
]
# Methods that are the function itself, whose first argument is what has the layers.
SAME = [
    (Plots.__call__, plot_composite),
    (Plots.count, plot_count),
    (Plots.date, plot_date),
    (Plots.timeline, timeline),
    (Plots.periods, periods),
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


@pytest.mark.parametrize(("method", "function"), SAME, ids=[function.__name__ for _, function in SAME])
def test_plots_are_the_functions(method, function):
    assert method is function
    assert next(iter(inspect.signature(function).parameters)) == "composite"
    entries = described(function)
    names = [name for name, *_ in options(function)]
    assert [name.partition(" : ")[0] for title, name in entries if title == "Parameters"] == names
    assert all(" : " in name for title, name in entries if title == "Parameters"), "types"
    assert {"Returns", "Raises", "Examples"} <= {title for title, _ in entries}
    with pytest.raises(TypeError, match="'compres'"):
        method(Plots(xr.Dataset()), compres="zstd")


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
    entries = [name.partition(" : ")[0].split(", ") for title, name in mine if title == "Parameters"]
    assert [name for together in entries for name in together] == names
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


@pytest.fixture(scope="module")
def comp():
    times = np.array(["2023-06-01", "2023-07-01"], "datetime64[ns]")
    grid = GeoBox.from_bbox((300000, 4800000, 300640, 4800640), "EPSG:32631", resolution=10)
    coords = {**xr_coords(grid, dims=("y", "x")), "time": times, "band": ["red", "green", "blue"]}
    cube = xr.DataArray(np.full((2, 3, 64, 64), 90, "uint8"), coords, ("time", "band", "y", "x"))
    return s2c.composite(cube.chunk(y=32, x=32), period="month")


def test_layers_are_attributes_too(comp):
    for name in ("composite", "source", "count"):
        assert getattr(comp, name).identical(comp[name])
        assert name in dir(comp)
    assert {"plot", "to_raster", "sel"} <= set(dir(comp))


def test_layers_have_the_accessors_of_rioxarray_and_odc_geo(comp):
    assert comp.dataset.rio.crs == comp["composite"].rio.crs == comp.count.rio.crs == 32631
    assert comp["count"].odc.geobox == comp.dataset.odc.geobox


def test_selections_are_composites(comp, tmp_path):
    part = comp.isel(y=slice(0, 16), x=slice(8, 24)).sel(band=["red"], time="2023-06-01")
    assert isinstance(part, s2c.Composite)
    expected = comp.dataset.isel(y=slice(0, 16), x=slice(8, 24)).sel(band=["red"], time="2023-06-01")
    assert part.dataset.identical(expected)
    assert comp.isel({"y": 0}).dataset.identical(comp.dataset.isel({"y": 0}))
    assert comp.sel({"x": comp.dataset["x"][:2]}).count.shape == (2, 64, 2)
    (path,) = part.to_raster(tmp_path / "part.tif", progress=False)
    assert rasterio.open(path).shape == (16, 16)


def test_scenes_of_a_composite_cannot_be_selected(tmp_path):
    comp = s2c.composite(s2c.open_cube(make_scenes(str(tmp_path), scenes=3, size=64)))
    for select in (lambda: comp.isel(scene=[1, 2]), lambda: comp.isel(scene=0)):
        with pytest.raises(ParameterError, match=r"select scenes of the cube, with cube.isel\(time="):
            select()


def test_read_status_is_dropped_from_partial_windows(comp):
    table = xr.DataArray(np.zeros((2, 2, 2), "uint8"), dims=("scene", "window_y", "window_x"))
    skipping = s2c.Composite(comp.dataset.assign(read_status=table))
    assert "read_status" in skipping.isel(time=0).sel(band="red").dataset
    assert "read_status" not in skipping.isel(y=slice(0, 40)).dataset


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rio", r"no attribute 'rio'; use its dataset or a layer: \.dataset\.rio, \['composite'\]\.rio"),
        ("mean", r"no attribute 'mean'; use its dataset.*\.dataset\.mean"),
        ("to_geotiff", "no attribute 'to_geotiff'; its layers are composite, source, count"),
        ("_private", "'Composite' object has no attribute '_private'"),
    ],
)
def test_mistyped_attribute_error_points_to_the_dataset(comp, name, words):
    with pytest.raises(AttributeError, match=words):
        getattr(comp, name)
    with pytest.raises(s2c.S2CompositeError, match=f"no layer '{name}'; it has composite, source, count"):
        comp[name]


def test_composites_are_copied_and_pickled(comp):
    for other in (copy.copy(comp), copy.deepcopy(comp), pickle.loads(pickle.dumps(comp))):
        assert other.dataset.identical(comp.dataset)
