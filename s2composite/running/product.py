"""Product: the files that one composite becomes, made window by window so that any of it can be done again.

`make_window` and `make_overview` are what workers run. Both write to the product's place for parts and keep a record;
with the same inputs, parameters and version they write the same bytes, whoever runs them and however often.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import numpy as np
import xarray as xr
from distributed import get_worker
from numpy.typing import NDArray

import s2composite
from s2composite.cube import Chunks
from s2composite.errors import ParameterError
from s2composite.pixels.recipe import Recipe
from s2composite.windows import STATUS, Work, compose_window, work_in
from s2composite.writing.assemble import lay_out
from s2composite.writing.cog import plan_files, status_tags
from s2composite.writing.durable import load_record, record_name, save_record
from s2composite.writing.files import FilePlan
from s2composite.writing.layers import RGBA
from s2composite.writing.options import RasterOptions
from s2composite.writing.parts import Parts
from s2composite.writing.pyramid import plan_stages, regular_chunks
from s2composite.writing.raster import Raster
from s2composite.writing.targets import target_of
from s2composite.writing.window import Stage, WindowIndex, WindowResult, encode_window

__all__ = [
    "Product",
    "WindowDone",
    "begin_product",
    "done_windows",
    "file_layouts",
    "make_overview",
    "make_window",
    "plan_product",
]

_WINDOWS = "windows"
"""Name of the part that holds the side of the windows, in pixels."""

ALL = "all"
"""First word of the records of windows, which are about all files."""


@dataclass(frozen=True, eq=False)
class Product:
    """All that workers need to make a product: it travels once to each."""

    work: Work
    """Scenes, recipe and masks; its windows are those of the product."""

    rasters: tuple[Raster, ...]
    """The files, with their final names and the place for parts."""

    layers: tuple[tuple[str, ...], ...]
    """For each file the names of its layers."""

    periods: tuple[int | None, ...]
    """For each file the period it is about; None: there are none."""

    stages: tuple[tuple[Stage, ...], ...]
    """For each file what makes its levels."""

    token: str
    """Hash of inputs, parameters and version: products of the same token have the same bytes."""

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of all windows, row by row."""
        rows, columns = self.work.spatial
        return tuple(np.ndindex(len(rows), len(columns)))

    @property
    def stage(self) -> Stage:
        """The first stage, whose windows are the same for all files."""
        return self.stages[0][0]

    @property
    def parts(self) -> Parts:
        """Where parts and records lie."""
        return self.rasters[0].parts


@dataclass(frozen=True, slots=True)
class WindowDone:
    """What a window tells when it is done: small, and all that reaches the client."""

    worker: str
    """Address of the worker."""

    read_and_reduce: float
    """Seconds."""

    encode: float
    """Seconds, with writing the parts."""

    failed_scenes: tuple[str, ...]
    """Scenes that could not be read and were left out."""


def plan_product(
    dataset: xr.Dataset,
    output: str,
    *,
    layers: Sequence[str] | None = None,
    options: RasterOptions | None = None,
) -> Product:
    """Plan the files of a lazy composite; nothing is computed or written.

    Parameters
    ----------
    dataset
        Of a composite of a cube from files.
    output
        Path or URL of the file; see `write_raster` for the names of several.

    Raises
    ------
    ParameterError
        The composite is not one of files, or options do not go together.
    WriteError
        The directory of an output does not exist, or its place for parts cannot be read.
    """
    work = work_in(dataset)
    if work is None:
        raise ParameterError("a product is made window by window from files: composite a cube from open_cube()")
    plans = plan_files(dataset, output, layers, options or RasterOptions())
    if any(layer.name == RGBA for plan in plans for layer in plan.layers):
        raise ParameterError("the preview 'rgba' is no layer of a job; write it with Composite.to_raster()")
    targets = [target_of(plan.path, overwrite=True) for plan in plans]
    token = _token(work, dataset, plans)
    # Beside the first file: the workers write there anyway, and no other disk is needed.
    parts = Parts(f"{targets[0]}.{token[:12]}.parts", kept=True)
    work = replace(work, spatial=_begun_windows(parts, work) or _windows(work, plans))
    rasters = tuple(
        replace(plan.raster, path=target, token=f"{token[:12]}-{i}", parts=parts)
        for i, (plan, target) in enumerate(zip(plans, targets, strict=True))
    )
    labels = None if "period" not in dataset.coords else [str(label) for label in dataset["period"].values]
    return Product(
        work,
        rasters,
        tuple(tuple(layer.name for layer in plan.layers) for plan in plans),
        tuple(None if labels is None else _position(plan, dataset) for plan in plans),
        tuple(_stages(raster, work.spatial) for raster in rasters),
        token,
    )


def _position(plan: FilePlan, dataset: xr.Dataset) -> int:
    """Return which of the dataset's periods a file is about."""
    own = plan.period.dataset["period"].values
    return int(np.flatnonzero(dataset["period"].values == own)[0])


def _begun_windows(parts: Parts, work: Work) -> Chunks | None:
    """Return the windows in which a product was begun: any give the same bytes, but not in one place for parts."""
    if _WINDOWS not in parts.names():
        return None
    return regular_chunks(work.stack.shape[2:], int(parts.read_whole(_WINDOWS)))


def begin_product(product: Product) -> None:
    """Make the place for a product's parts, or see that it is there, and note the size of its windows.

    Raises
    ------
    WriteError
        The place cannot be written to.
    """
    product.parts.create()
    product.parts.write(_WINDOWS, str(max(product.work.spatial[0][0], product.work.spatial[1][0])).encode())


def _windows(work: Work, plans: Sequence[FilePlan]) -> Chunks:
    """Return the windows: as large as those of the cube, their edges on tiles of all files."""
    block = lcm(*(plan.raster.block for plan in plans))
    side = max(*work.spatial[0], *work.spatial[1]) // block * block
    return regular_chunks(work.stack.shape[2:], max(side, block))


def _stages(raster: Raster, windows: Chunks) -> tuple[Stage, ...]:
    return plan_stages(windows, raster.block, raster.levels, len(raster.bands) * raster.dtype.itemsize)


def _token(work: Work, dataset: xr.Dataset, plans: Sequence[FilePlan]) -> str:
    facts = {
        "version": s2composite.__version__,
        "stack": work.stack.token,
        "masks": [repr(mask.__dask_tokenize__()) for mask in work.masks],
        "recipe": _recipe_facts(work.recipe),
        "facts": {key: str(value) for key, value in sorted(dataset.attrs.items())},
        "files": [repr((p.path, p.raster.bands, p.raster.options, p.raster.nodata, p.raster.tags)) for p in plans],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _recipe_facts(recipe: Recipe) -> list[str]:
    return [
        *map(str, recipe.reducers),
        *map(str, recipe.rules),
        repr((recipe.bands, recipe.nodata, recipe.min_count, recipe.days, recipe.periods)),
    ]


def make_window(product: Product, position: tuple[int, int]) -> WindowDone:
    """Read, reduce and encode one window, and keep its record.

    Raises
    ------
    S2CompositeError
        One of its kinds; names the window.
    """
    start = time.perf_counter()
    work = product.work
    layers = compose_window(work.stack, work.recipe, product.stage.window(*position), work.masks)
    composed = time.perf_counter()
    results = [
        encode_window([_block(layers[name], period) for name in names], raster, stages[0], position)
        for raster, names, period, stages in zip(
            product.rasters, product.layers, product.periods, product.stages, strict=True
        )
    ]
    save_record(product.parts, record_name(ALL, product.stage, position), results, {STATUS: layers[STATUS]})
    failed = tuple(work.stack.scenes[t].id for t in np.flatnonzero(layers[STATUS].ravel() == 2))
    return WindowDone(_address(), composed - start, time.perf_counter() - composed, failed)


def _block(layer: NDArray[Any], period: int | None) -> NDArray[Any]:
    return layer if period is None else layer[period]


def _address() -> str:
    try:
        return str(get_worker().address)
    except ValueError:  # outside of a cluster
        return f"process {os.getpid()}"


def make_overview(product: Product, number: int, stage: Stage, position: tuple[int, int]) -> None:
    """Make the overviews of one window of a later stage from what the windows below it have left, and keep its record.

    Raises
    ------
    WriteError
        A record is missing or damaged, or encoding failed; names the window.
    """
    below = product.stages[number][stage.number - 1]
    y, x = stage.window(*position)
    raster = product.rasters[number]
    out = np.empty((len(raster.bands), y.stop - y.start, x.stop - x.start), raster.dtype)
    for row, column in np.ndindex(len(below.chunks[0]), len(below.chunks[1])):
        top_y, top_x = below.window(row, column, stage.first)
        rows, columns = _overlap(top_y, y), _overlap(top_x, x)
        if rows is None or columns is None:
            continue
        top = _result(product, number, below, (row, column)).top
        assert top is not None
        out[:, _shifted(rows, y), _shifted(columns, x)] = top[:, _shifted(rows, top_y), _shifted(columns, top_x)]
    result = encode_window([out], raster, stage, position)
    save_record(product.parts, record_name(str(number), stage, position), [result], {})


def _overlap(a: slice, b: slice) -> slice | None:
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop else None


def _shifted(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _result(product: Product, number: int, stage: Stage, position: tuple[int, int]) -> WindowResult:
    if stage.number == 0:
        return load_record(product.parts, record_name(ALL, stage, position))[0][number]
    return load_record(product.parts, record_name(str(number), stage, position))[0][0]


def done_windows(product: Product, names: frozenset[str]) -> frozenset[tuple[int, int]]:
    """Return the windows whose records are among the names of parts."""
    return frozenset(at for at in product.windows if record_name(ALL, product.stage, at) in names)


def file_layouts(product: Product, dataset: xr.Dataset) -> list[Any]:
    """Return the layout of each file, all of whose windows are done.

    Raises
    ------
    WriteError
        A record or a tile is missing.
    """
    found: list[list[tuple[Stage, WindowIndex]]] = [[] for _ in product.rasters]
    status = np.zeros((len(product.work.stack.scenes), *map(len, product.work.spatial)), np.uint8)
    for position in product.windows:
        results, tables = load_record(product.parts, record_name(ALL, product.stage, position))
        status[:, position[0], position[1]] = tables[STATUS].ravel()
        for number, result in enumerate(results):
            found[number].append((product.stage, result.index))
    for number, stages in enumerate(product.stages):
        for stage in stages[1:]:
            for position in np.ndindex(*map(len, stage.chunks)):
                found[number].append((stage, _result(product, number, stage, position).index))
    more = _status_tags(product, dataset, status)
    rasters = [replace(r, tags=tuple(sorted({**dict(r.tags), **more}.items()))) for r in product.rasters]
    return [lay_out(raster, results) for raster, results in zip(rasters, found, strict=True)]


def _status_tags(product: Product, dataset: xr.Dataset, status: NDArray[np.uint8]) -> Mapping[str, str]:
    """Return the tag about scenes that were left out, where that is allowed."""
    if STATUS not in dataset:
        return {}
    starts = {
        f"window_{axis}": (f"window_{axis}", np.cumsum([0, *sizes[:-1]]))
        for axis, sizes in zip(("y", "x"), product.work.spatial, strict=True)
    }
    return status_tags(dataset.drop_vars(STATUS).assign_coords(starts), {STATUS: status})
