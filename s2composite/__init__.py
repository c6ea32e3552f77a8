"""Temporal composites of satellite time series on Dask and xarray.

`open_cube` makes a lazy cube of scenes, `composite` reduces it over time, the `Composite` writes and draws itself.
ARCHITECTURE.md in the repository has the map of the package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2composite.analysis import plot
    from s2composite.analysis.zonal import write_zonal_stats, zonal_stats
    from s2composite.clusters.check import check_cluster
    from s2composite.clusters.connect import connect
    from s2composite.compositing import Composite, composite
    from s2composite.cube import open_cube
    from s2composite.errors import S2CompositeError
    from s2composite.pixels.flags import SCL, CloudProbability, Fmask, QABits, Usable
    from s2composite.pixels.masks import Nodata, Saturated, SwathEdge, ValueRange
    from s2composite.pixels.reducers import register_reducer, resolve_reducer
    from s2composite.running.jobs.job import load_job
    from s2composite.running.planning.plan import plan_cells, plan_job
    from s2composite.running.run import run_cells, run_job
    from s2composite.running.run_spans import run_spans
    from s2composite.scenes.listing import find_scenes
    from s2composite.scenes.model import Asset, Scene
    from s2composite.screening import select_scenes, valid_share
    from s2composite.writing.reconstruct import reconstruct

__version__ = "0.1.0"

_ROOMS = {
    "Asset": "scenes.model",
    "CloudProbability": "pixels.flags",
    "Composite": "compositing",
    "Fmask": "pixels.flags",
    "Nodata": "pixels.masks",
    "QABits": "pixels.flags",
    "S2CompositeError": "errors",
    "SCL": "pixels.flags",
    "Saturated": "pixels.masks",
    "Scene": "scenes.model",
    "SwathEdge": "pixels.masks",
    "Usable": "pixels.flags",
    "ValueRange": "pixels.masks",
    "check_cluster": "clusters.check",
    "composite": "compositing",
    "connect": "clusters.connect",
    "find_scenes": "scenes.listing",
    "load_job": "running.jobs.job",
    "open_cube": "cube",
    "reconstruct": "writing.reconstruct",
    "register_reducer": "pixels.reducers",
    "resolve_reducer": "pixels.reducers",
    "plan_cells": "running.planning.plan",
    "plan_job": "running.planning.plan",
    "run_cells": "running.run",
    "run_job": "running.run",
    "run_spans": "running.run_spans",
    "select_scenes": "screening",
    "valid_share": "screening",
    "write_zonal_stats": "analysis.zonal",
    "zonal_stats": "analysis.zonal",
}

__all__ = [
    "SCL",
    "Asset",
    "CloudProbability",
    "Composite",
    "Fmask",
    "Nodata",
    "QABits",
    "S2CompositeError",
    "Saturated",
    "Scene",
    "SwathEdge",
    "Usable",
    "ValueRange",
    "check_cluster",
    "composite",
    "connect",
    "find_scenes",
    "load_job",
    "open_cube",
    "plan_cells",
    "plan_job",
    "plot",
    "reconstruct",
    "register_reducer",
    "resolve_reducer",
    "run_cells",
    "run_job",
    "run_spans",
    "select_scenes",
    "valid_share",
    "write_zonal_stats",
    "zonal_stats",
]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: `import s2composite` takes milliseconds, and needs no optional package.
    if name == "plot":
        return importlib.import_module("s2composite.analysis.plot")
    if name not in _ROOMS:
        raise AttributeError(f"module 's2composite' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"s2composite.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
