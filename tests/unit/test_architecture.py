"""The shape of the package: folders are layers, modules form no cycles, and the budgets of their sizes hold."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from s2composite._moved import MOVED
from support import ROOT

PACKAGE = ROOT / "s2composite"

# From what imports nothing of the package to what imports the most; a folder imports from those on lines above its own.
LAYERS = [
    ["_moved", "errors", "pixels.kernels"],
    ["config", "pixels", "storage"],
    ["geotiff", "logs"],
    ["scenes"],
    ["reading"],
    ["metrics", "scheduler_desk"],
    ["clusters", "cube"],
    ["writing"],
    ["analysis", "jobs"],
    ["demo", "runner"],
    ["service"],
    ["cli"],
]

# `Composite` has what can be done with it as methods, and imports the modules that do it when one is called.
METHODS = {("cube.composite", layer) for layer in ("writing", "analysis")}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}
MODULES = {name: path for name, path in FILES.items() if path.name != "__init__.py"}


def layer_of(name):
    return max((one for line in LAYERS for one in line if f"{name}.".startswith(f"{one}.")), key=len, default=None)


def level(layer):
    return next(i for i, line in enumerate(LAYERS) if layer in line)


def imports_of(path):
    """The modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith("s2composite."):
            module = node.module.removeprefix("s2composite").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                yield inner if inner in FILES else module
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("s2composite.") for a in node.names if a.name.startswith("s2composite."))


@pytest.mark.parametrize("name", FILES)
def test_a_layer_imports_only_from_those_above(name):
    layer = layer_of(name)
    assert layer, f"{name} is in no layer: add its folder to LAYERS and to ARCHITECTURE.md"
    for target in filter(None, imports_of(FILES[name])):
        other = layer_of(target)
        allowed = other == layer or level(other) < level(layer) or (name, other) in METHODS
        assert allowed, f"{name} imports {target}, which is in no layer above its own"


def test_modules_form_no_cycle():
    graph = {
        name: {target for target in imports_of(path) if (name, layer_of(target or "errors")) not in METHODS}
        for name, path in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("name", [name for name, path in FILES.items() if path.name == "__init__.py"])
def test_the_init_of_a_layer_holds_its_docstring(name):
    body = ast.parse(FILES[name].read_text()).body
    assert name in ("cli", "demo") or len(body) == 1


@pytest.mark.parametrize("old", MOVED)
def test_old_names_of_modules_are_imported_for_one_release(old):
    with pytest.warns(DeprecationWarning, match=f"is now s2composite.{MOVED[old]}"):
        module = importlib.import_module(f"s2composite.{old}")
    assert module is importlib.import_module(f"s2composite.{MOVED[old]}")


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("storage", {"dask", "distributed", "xarray", "numba"}),
        ("geotiff", {"dask", "distributed", "xarray", "numba"}),
        ("scenes", {"dask", "distributed", "xarray", "rasterio", "numba"}),
        ("reading", {"dask", "distributed", "xarray", "numba"}),
        ("pixels", {"dask", "distributed", "xarray", "rasterio", "fsspec"}),
    ],
)
def test_layers_do_not_import_what_they_must_do_without(layer, forbidden):
    for path in (PACKAGE / layer).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            used = {n.split(".")[0] for n in names} & forbidden
            assert not used, f"{path.relative_to(PACKAGE)} imports {used}"


def test_importing_the_package_does_no_work():
    code = "import sys, s2composite; print(sorted({m.split('.')[0] for m in sys.modules} & {'dask','numba','rasterio','xarray'}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_what_is_imported_from_the_package_elsewhere_exists():
    """In benchmarks, examples and notebooks, which the tests do not run, or not all of them."""
    missing = []
    for folder in ("benchmarks", "examples", "notebooks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "s2composite":
                    module = importlib.import_module(node.module)
                    missing += [
                        f"{path.name}: {node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)
                    ]
    assert missing == []
