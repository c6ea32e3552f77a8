"""A product of a job, made window by window so that any of it can be done again: COG files or a Zarr store.

With the same inputs, parameters and version a window has the same bytes, whoever makes it and however often.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.array.core import normalize_chunks
from distributed import get_worker
from numpy.typing import NDArray

import s2composite
from s2composite.clusters.submit import ClusterCall
from s2composite.cube.graph import Chunks
from s2composite.cube.open import window_at
from s2composite.cube.windows import STATUS, Work, compose_window, work_in
from s2composite.errors import ParameterError, WriteError
from s2composite.jobs.schema import Job
from s2composite.metrics import counted_reads
from s2composite.reading.reader import FAILED
from s2composite.storage.files import exists
from s2composite.writing.cog import FilePlan, Preview, plan_files, preview_of, status_tags
from s2composite.writing.layers import RGBA
from s2composite.writing.options import RasterOptions
from s2composite.writing.publish import assembly_calls, lay_out, name_files, target_of
from s2composite.writing.staging import IDENTITY, Parts, StorePlace, place_of
from s2composite.writing.steps import overview_steps, raster_stages, recorded_windows
from s2composite.writing.tiles import Raster, StagedFile, encode_files
from s2composite.writing.zarr import (
    Regions,
    StoreOptions,
    StorePlan,
    begin_store,
    complete_store,
    mark_of,
    plan_store,
)

__all__ = ["Product", "WindowMaker", "make_window", "plan_product", "product_state", "require_free"]


@dataclass(frozen=True, eq=False)
class WindowMaker:
    """All that workers need to make windows: it travels once to each."""

    work: Work
    writer: CogWriter | Regions


def make_window(maker: WindowMaker, position: tuple[int, int]) -> dict[str, Any]:
    """Make a window; return what the ledger tells of it, small and all that reaches the client."""
    start = time.perf_counter()
    work = maker.work
    with counted_reads() as reads:
        layers = compose_window(work.stack, work.recipe, window_at(work.spatial, *position), work.masks)
    composed = time.perf_counter()
    maker.writer.keep(layers, position)
    left_out = [work.stack.scenes[t].id for t in np.flatnonzero(layers[STATUS].ravel() == FAILED)]
    try:
        worker = str(get_worker().address)
    except ValueError:  # outside a cluster
        worker = f"process {os.getpid()}"
    return {
        "worker": worker,
        "read": round(composed - start, 3),  # seconds, with reducing
        "encode": round(time.perf_counter() - composed, 3),  # seconds, with storing
        "bytes": int(reads["bytes"]),
        "requests": int(reads["count"]),  # byte ranges, as far as GDAL does not read
        **({"failed_scenes": left_out} if left_out else {}),
    }


# --- COG --------------------------------------------------------------------------------------------------------------

_WINDOWS = "windows"  # name of the part that holds the side of the windows, in pixels


@dataclass(frozen=True, eq=False)
class CogWriter:
    """Keeps windows as parts of files, with a record of each; what follows the files is for each of them."""

    files: tuple[StagedFile, ...]  # with their final names and the place for parts
    layers: tuple[tuple[str, ...], ...]  # names
    previews: tuple[Preview | None, ...]  # how the file's picture is painted, where it is one
    periods: tuple[int | None, ...]  # that the file is about; None: there are none

    def keep(self, layers: Mapping[str, NDArray[Any]], position: tuple[int, int]) -> None:
        """Encode a window for all files, store their parts, then its record."""

        def blocks() -> Iterator[list[NDArray[Any]]]:
            for names, preview, period in zip(self.layers, self.previews, self.periods, strict=True):
                wanted = names if preview is None else (preview.layer,)
                own = [layers[name] if period is None else layers[name][period] for name in wanted]
                yield own if preview is None else [preview.paint(own[0])]

        encode_files(self.files, blocks(), 0, position, {STATUS: layers[STATUS]})


@dataclass(frozen=True, eq=False)
class CogOutput:
    """Cloud-optimised GeoTIFFs, from the place for their windows to their final names."""

    writer: CogWriter
    parts: Parts  # what is not finished
    dataset: xr.Dataset  # the lazy composite
    token: str  # hash of all that decides about their bytes
    # Different for each run: two that put the same files together at once do not take them from each other.
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:6])

    @property
    def rasters(self) -> tuple[Raster, ...]:
        return tuple(file.raster for file in self.writer.files)

    @property
    def files(self) -> tuple[str, ...]:
        """Final names as messages show them."""
        return tuple(raster.label for raster in self.rasters)

    @property
    def windows(self) -> Chunks:
        """Heights of the rows of windows, widths of their columns."""
        return self.writer.files[0].stages[0].chunks

    @property
    def place(self) -> str:
        """Path or URL of what is not finished."""
        return self.parts.root

    def existing(self) -> tuple[str, ...]:
        """Return what exists under its final name."""
        return tuple(raster.label for raster in self.rasters if exists(raster.path))

    def begin(self, busy: Collection[str], *, overwrite: bool) -> None:  # noqa: ARG002 - each token has its own place
        """Make the place for windows, or go on with what is there; `busy` are tokens that others are making here."""
        self.parts.create()
        if self.token not in busy:
            self.parts.remove_assembled()
        self.parts.write(_WINDOWS, str(max(self.windows[0][0], self.windows[1][0])).encode())

    def done(self) -> frozenset[tuple[int, int]]:
        """Return the windows that are done, by asking the place."""
        names, first = self.parts.names(), self.writer.files[0]
        return frozenset(at for at in first.stages[0].positions if first.record(0, at) in names)

    def steps(self) -> Iterator[list[ClusterCall]]:
        """Yield what is to be done when all windows are there, batch by batch: levels of overviews, then the files."""
        yield from overview_steps(self.writer.files)
        results, tables = recorded_windows(self.writer.files)
        left_out = status_tags(self.dataset, tables, self.windows)
        rasters = [self._own(raster).with_tags(left_out) for raster in self.rasters]
        layouts = [lay_out(raster, own) for raster, own in zip(rasters, results, strict=True)]
        yield assembly_calls(layouts)

    def take_names(self) -> None:
        """Let the output take its final names; it does no harm where it has them already."""
        name_files(list(map(self._own, self.rasters)), overwrite=True)

    def tidy(self) -> None:
        """Remove what only led to the output, now that it has its names."""
        self.parts.clear()

    def _own(self, raster: Raster) -> Raster:
        """Return a file under a temporary name that is this run's."""
        return replace(raster, token=f"{raster.token}-{self.run}")


def _cog_output(work: Work, dataset: xr.Dataset, plans: Sequence[FilePlan], token: str) -> CogOutput:
    targets = [target_of(plan.path, overwrite=True) for plan in plans]
    # Beside the first file: the workers write there anyway, and no other disk is needed.
    parts = Parts(f"{targets[0]}.{token[:12]}.parts", kept=True)
    # Windows of any size give the same bytes, but not in one place for parts.
    begun = int(parts.read(_WINDOWS)) if _WINDOWS in parts.names() else None
    windows = _windows_of(work, lcm(*(plan.raster.block for plan in plans)), begun)
    rasters = [
        replace(plan.raster, path=target, token=f"{token[:12]}-{i}", parts=parts)
        for i, (plan, target) in enumerate(zip(plans, targets, strict=True))
    ]
    files = tuple(StagedFile(i, raster, raster_stages(raster, windows)) for i, raster in enumerate(rasters))
    layers = tuple(tuple(layer.name for layer in plan.layers) for plan in plans)
    previews = tuple(
        preview_of(plan.period.dataset, plan.raster.options.stretch) if RGBA in names else None
        for plan, names in zip(plans, layers, strict=True)
    )
    periods: tuple[int | None, ...] = (None,) * len(plans)
    if "period" in dataset.coords:
        labels = dataset["period"].values
        periods = tuple(int(np.flatnonzero(labels == plan.period.dataset["period"].values)[0]) for plan in plans)
    return CogOutput(CogWriter(files, layers, previews, periods), parts, dataset, token)


# --- Zarr -------------------------------------------------------------------------------------------------------------

_OPTIONS = StoreOptions()

# Of a store that a job is writing: the product's token, and the side of the windows, which are the store's shards.
_IDENTITY = re.compile(r"(?P<token>[0-9a-f]{64})-(?P<side>\d+)")


@dataclass(frozen=True, eq=False)
class ZarrOutput:
    """A Zarr store; its members are those of `CogOutput`."""

    store: StorePlan

    @property
    def writer(self) -> Regions:
        return self.store.regions

    @property
    def files(self) -> tuple[str, ...]:
        return (self._place.label,)

    @property
    def windows(self) -> Chunks:
        return self.writer.stage.chunks

    @property
    def place(self) -> str:
        """Beside its final name, or in an object store under it, without the root's metadata."""
        return self._place.root

    @property
    def _place(self) -> StorePlace:
        return self.writer.place

    @property
    def _named(self) -> bool:
        """Whether the store was just about complete when a run was interrupted."""
        return self._place.named(self.writer.token.encode())

    def existing(self) -> tuple[str, ...]:
        return self.files if self._place.occupied() else ()

    def begin(self, busy: Collection[str], *, overwrite: bool) -> None:
        """Write all but pixels, or go on with what was begun; give way to a run that writes something else there.

        With `overwrite` begin anew where the place holds something else.
        """
        if self._named:
            return
        identity = self._place.get(IDENTITY)
        own = identity == self.writer.token.encode()
        # What another job has left here and is not at work on is of no use any more.
        left = None if own or identity is None else _IDENTITY.fullmatch(identity.decode())
        if left is not None and left["token"] in busy:
            raise WriteError(f"{self._place.label}: another run is writing there; wait for its end, or stop it")
        begin_store(self.store, resume=own or not (overwrite or left))

    def done(self) -> frozenset[tuple[int, int]]:
        if self._named:
            return frozenset(self.writer.stage.positions)
        marks = self._place.done()
        return frozenset(at for at in self.writer.stage.positions if mark_of("", self.writer.stage, at) in marks)

    def steps(self) -> Iterator[list[ClusterCall]]:
        yield from ()

    def take_names(self) -> None:
        if not self._named:
            complete_store(self.store)

    def tidy(self) -> None:
        """Remove the notes of a run that was interrupted while the store took its name."""
        self._place.tidy()


def _zarr_output(work: Work, dataset: xr.Dataset, path: str, token: str) -> ZarrOutput:
    place = place_of(path, overwrite=True)
    begun = _IDENTITY.fullmatch((place.get(IDENTITY) or b"").decode())
    if begun is not None and begun["token"] != token:
        begun = None
    windows = _windows_of(work, _OPTIONS.chunk, None if begun is None else int(begun["side"]))  # which are its shards
    if STATUS in dataset:  # a value for each of these windows
        ones = (1,) * len(windows[0]), (1,) * len(windows[1])
        table = da.zeros((*dataset[STATUS].shape[:1], *map(len, ones)), dtype=np.uint8, chunks=(-1, *ones))
        dataset = dataset.assign({STATUS: (dataset[STATUS].dims, table, dataset[STATUS].attrs)})
    identity = f"{token}-{max(windows[0][0], windows[1][0])}"
    store = plan_store(dataset, place, _OPTIONS, windows=windows, token=identity)
    return ZarrOutput(store)


# --- both -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Product:
    """What one composite becomes; the windows of its work are those of the output."""

    work: Work
    output: CogOutput | ZarrOutput
    token: str  # hash of inputs, parameters and version: products of the same token have the same values

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of all windows, row by row."""
        rows, columns = self.work.spatial
        return tuple(np.ndindex(len(rows), len(columns)))

    @property
    def files(self) -> tuple[str, ...]:
        """Final names as messages show them."""
        return self.output.files


def _windows_of(work: Work, block: int, begun: int | None) -> Chunks:
    """Return windows of the side with which a product was begun, else as large as the cube's, their edges on blocks."""
    side = begun or max(max(*work.spatial[0], *work.spatial[1]) // block * block, block)
    windows: Chunks = normalize_chunks(side, work.stack.shape[2:])
    return windows


def plan_product(job: Job, dataset: xr.Dataset) -> Product:
    """Plan what the lazy composite of a job becomes; nothing is computed or written.

    Raises
    ------
    ParameterError
        The composite is not one of files, options do not go together, or a preview's stretch needs pixels that are not
        there yet.
    WriteError
        The directory of an output does not exist, its place cannot be read, or something else is there.
    """
    work = work_in(dataset)
    if work is None:
        raise ParameterError("a product is made window by window from files: composite a cube from open_cube()")
    output: CogOutput | ZarrOutput
    if job.format == "zarr":
        token = _token(work, dataset, [repr((job.output, _OPTIONS))])
        output = _zarr_output(work, dataset, job.output, token)
    else:
        plans = plan_files(dataset, job.output, job.layers, RasterOptions(**(job.raster or {})))
        files = [(p.path, p.raster.bands, p.raster.options, p.raster.nodata, p.raster.tags) for p in plans]
        token = _token(work, dataset, list(map(repr, files)))
        output = _cog_output(work, dataset, plans, token)
        counted = any(layer.name == "count" for plan in plans for layer in plan.layers)
        work = replace(work, recipe=replace(work.recipe, counted=counted))
    return Product(replace(work, spatial=output.windows), output, token)


def _token(work: Work, dataset: xr.Dataset, files: Sequence[str]) -> str:
    """Return the hash of all that decides about the bytes of files, and where they are to be."""
    recipe = work.recipe
    content = {
        "version": s2composite.__version__,
        "stack": work.stack.token,
        "masks": [repr(mask.__dask_tokenize__()) for mask in work.masks],
        "recipe": [
            *map(str, recipe.reducers),
            *map(str, recipe.rules),
            repr((recipe.bands, recipe.nodata, recipe.min_count, recipe.days, recipe.periods)),
            *([repr((recipe.max_count, recipe.preference))] if recipe.max_count is not None else []),
        ],
        "facts": {key: str(value) for key, value in sorted(dataset.attrs.items())},
        "files": list(files),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def product_state(product: Product, events: Sequence[Mapping[str, Any]], *, begun: bool = False) -> str:
    """Return ``"skip"`` if the last files written here are these and still there, ``"recompute"`` if others are.

    ``"begun"`` if a run was interrupted while these took their names. If there are none, ``"begun"`` or ``"new"``, as
    the caller knows.
    """
    existing, last = product.output.existing(), _last_event(product, events)
    if existing == product.files and last == "product":
        return "skip"
    if existing and last == "assemble":
        return "begun"
    return "recompute" if existing else "begun" if begun else "new"


def _last_event(product: Product, events: Sequence[Mapping[str, Any]]) -> str | None:
    """Return how far the last files came that were written here, if they are those of this product."""
    last = next((event for event in reversed(events) if event["event"] in ("assemble", "product")), None)
    return str(last["event"]) if last is not None and last["token"] == product.token else None


def require_free(product: Product, events: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to write over what is there."""
    if _last_event(product, events) == "assemble":
        return  # a run was interrupted while they took their names
    known = any(event["event"] == "product" for event in events)
    what = "is not what this job makes of its scenes now" if known else "no ledger beside it says what it is"
    for label in product.output.existing():
        raise WriteError(f"{label}: exists already, and {what}; set overwrite to replace it", path=label)
