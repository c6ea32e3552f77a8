"""Modules are in layers: a module imports only from layers above its own and from earlier modules of its own layer."""

import ast
import subprocess
import sys

import pytest

from support import ROOT

PACKAGE = ROOT / "s2composite"

LAYERS = (
    "scenes", "reading", "pixels", "pixels.kernels", "writing", "running", "running.jobs", "clusters",
    "running.products", "running.planning", "running.reports", "analysis", "service",
)  # fmt: skip

# In the order of ARCHITECTURE.md: from what imports nothing to what imports the most.
MODULES = [
    "errors", "optional",
    "scenes.model", "scenes.dates", "scenes.periods", "scenes.access", "scenes.addresses", "scenes.credentials", "scenes.storage", "scenes.names", "scenes.values", "scenes.item_fields", "scenes.items", "scenes.stac", "scenes.grouping",
    "scenes.listing",
    "reading.crs", "reading.signing", "reading.remote", "reading.fetch", "reading.gdal", "reading.tiff", "reading.level", "reading.header", "reading.index",
    "reading.codecs", "reading.tiles",
    "reading.grid", "reading.layout", "reading.convert", "reading.promise", "reading.warp", "reading.source",
    "reading.meaning", "reading.files", "reading.opening", "reading.share", "reading.patches", "reading.observe", "reading.scratch", "reading.stack",
    "pixels.kernels", "pixels.morphology", "pixels.masks", "pixels.codings", "pixels.flags", "pixels.rules", "pixels.recipe", "pixels.picking",
    "pixels.statistics", "pixels.spectral", "pixels.scoring", "pixels.custom", "pixels.registry", "pixels.reducers",
    "pixels.stretching",
    "metering",
    "georeference",
    "masking",
    "array_values", "interop",
    "cube", "coarse", "days",
    "as_cube", "array_masks", "period_axis",
    "windows",
    "screening",
    "composed", "compositing",
    "writing",
    "running.jobs.yaml_text", "running.jobs.document", "running.reports.logs", "running.jobs.fields",
    "clusters.ray", "clusters.backends", "clusters.connect", "clusters.check",
    "running.silent", "running.interrupts", "running.bounded", "running.cells", "running.spans", "running.jobs.job",
    "analysis.picture", "analysis.drawing", "analysis.timeline", "analysis.small_multiples", "analysis.plot", "analysis.explore", "analysis.zonal",
    "running.ledger", "running.history", "running.products.window", "running.products.cog", "running.products.zarr", "running.products.product", "running.selection", "running.planning.sizing", "running.scope", "running.making",
    "running.stream", "running.run", "running.run_spans", "running.planning.plan", "running.planning.span_plans", "running.planning.tables", "running.reports.progress", "running.reports.report", "running.reports.page", "running.jobs.template",
    "service.settings", "service.security", "service.queue", "service.windows", "service.jobs", "service.process", "service.views", "service.app", "service.dispatch",
    "demo",
    "cli.words", "cli.options", "cli.demo", "cli.run", "cli.job_files", "cli.zonal", "cli.scenes", "cli.check", "cli.service", "cli.commands", "cli",
]  # fmt: skip

# composite() offers its verbs as methods and imports the layers below it only when one is called.
LAZY = {("compositing", "writing"), ("compositing", "analysis.plot"), ("compositing", "analysis.explore")}


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_of(name):
    fits = [module for module in MODULES if name == module or name.startswith(module + ".")]
    return max(fits, key=len) if fits else None


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("s2composite."):
            module = node.module.removeprefix("s2composite.")
            # `from s2composite.pixels import masks` imports the module, not the layer
            yield from (f"{module}.{a.name}" for a in node.names) if module in LAYERS else (module,)
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("s2composite.") for a in node.names if a.name.startswith("s2composite."))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_from_above(path):
    name = name_of(path)
    if name in LAYERS:
        assert not list(imports_of(path)), "the __init__ of a layer holds its docstring, nothing else"
        return
    module = module_of(name)
    assert module, f"{name} has no place in the order of modules: add it to MODULES and to ARCHITECTURE.md"
    for target in imports_of(path):
        other = module_of(target)
        assert other, f"{name} imports {target}, which has no place in MODULES"
        allowed = other == module or MODULES.index(other) < MODULES.index(module) or (module, other) in LAZY
        assert allowed, f"{name} imports {target}, which is in a lower layer"


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
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
