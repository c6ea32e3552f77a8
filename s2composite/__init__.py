"""Temporal composites of satellite time series on Dask and xarray.

`open_cube` makes a lazy cube of scenes, `composite` reduces it over time, `Composite` has methods to write and plot.
ARCHITECTURE.md in the repository has the map of the package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from s2composite import _moved

if TYPE_CHECKING:
    from s2composite.analysis import plot
    from s2composite.analysis.zonal import write_zonal_stats, zonal_stats
    from s2composite.clusters.check import check_cluster
    from s2composite.clusters.connect import connect
    from s2composite.cube.composite import Composite, composite
    from s2composite.cube.open import open_cube
    from s2composite.cube.screening import select_scenes, valid_share
    from s2composite.errors import S2CompositeError
    from s2composite.jobs.schema import load_job
    from s2composite.pixels.cloud_net import CloudNet
    from s2composite.pixels.function_mask import Mask
    from s2composite.pixels.mask_bands import SCL, CloudProbability, Fmask, QABits, Usable
    from s2composite.pixels.masks import Nodata, Saturated, SwathEdge, ValueRange
    from s2composite.pixels.reducers import register_reducer, resolve_reducer
    from s2composite.pixels.temporal_mask import TemporalMask
    from s2composite.runner.plan import plan
    from s2composite.runner.plan import plan_cells as plan_cells
    from s2composite.runner.plan import plan_job as plan_job
    from s2composite.runner.run import run
    from s2composite.runner.run import run_cells as run_cells
    from s2composite.runner.run import run_job as run_job
    from s2composite.runner.run import run_spans as run_spans
    from s2composite.scenes.find import find_scenes
    from s2composite.scenes.model import Asset, Scene
    from s2composite.writing.mosaic import reconstruct

__version__ = "0.2.0.dev0"

_moved.install()

_NAMES = {
    "analysis.zonal": ["write_zonal_stats", "zonal_stats"],
    "clusters.check": ["check_cluster"],
    "clusters.connect": ["connect"],
    "cube.composite": ["Composite", "composite"],
    "cube.open": ["open_cube"],
    "cube.screening": ["select_scenes", "valid_share"],
    "errors": ["S2CompositeError"],
    "jobs.schema": ["load_job"],
    "pixels.cloud_net": ["CloudNet"],
    "pixels.function_mask": ["Mask"],
    "pixels.mask_bands": ["CloudProbability", "Fmask", "QABits", "SCL", "Usable"],
    "pixels.masks": ["Nodata", "Saturated", "SwathEdge", "ValueRange"],
    "pixels.reducers": ["register_reducer", "resolve_reducer"],
    "pixels.temporal_mask": ["TemporalMask"],
    "runner.plan": ["plan", "plan_cells", "plan_job"],
    "runner.run": ["run", "run_cells", "run_job", "run_spans"],
    "scenes.find": ["find_scenes"],
    "scenes.model": ["Asset", "Scene"],
    "writing.mosaic": ["reconstruct"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "SCL",
    "Asset",
    "CloudNet",
    "CloudProbability",
    "Composite",
    "Fmask",
    "Mask",
    "Nodata",
    "QABits",
    "S2CompositeError",
    "Saturated",
    "Scene",
    "SwathEdge",
    "TemporalMask",
    "Usable",
    "ValueRange",
    "check_cluster",
    "composite",
    "connect",
    "find_scenes",
    "load_job",
    "open_cube",
    "plan",
    "plot",
    "reconstruct",
    "register_reducer",
    "resolve_reducer",
    "run",
    "select_scenes",
    "valid_share",
    "write_zonal_stats",
    "zonal_stats",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import s2composite` takes milliseconds, and needs no optional package.
    if name == "plot":
        return importlib.import_module("s2composite.analysis.plot")
    if name not in _MODULES:
        raise AttributeError(f"module 's2composite' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"s2composite.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
