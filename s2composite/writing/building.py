"""Building: a Zarr store from its plan to its final name, apart from the regions that tasks write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from dask.base import tokenize

from s2composite.errors import ParameterError, WriteError
from s2composite.georeference import geobox_of
from s2composite.writing.layers import chosen_layers, layer_of
from s2composite.writing.overviews import level_shapes
from s2composite.writing.pyramid import aligned_chunks, plan_stages, regular_chunks, window_size
from s2composite.writing.regions import Regions
from s2composite.writing.skeleton import (
    Hierarchy,
    add_attributes,
    array_path,
    build_skeleton,
    with_attributes,
    write_skeleton,
)
from s2composite.writing.status import STATUS, read_status, status_summary
from s2composite.writing.stores import IDENTITY, ROOT, StorePlace, opened
from s2composite.writing.window import Chunks

__all__ = ["Building", "StoreOptions", "begin_store", "complete_store", "plan_store"]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a store is laid out; see `write_zarr`."""

    chunk: int = 256
    """Side of the chunks that are read from a shard, in pixels."""

    level: int = 3
    """Of zstd, 1 to 22."""

    shards: bool = True
    """One object for each window."""

    pyramid: bool = False
    """Overviews as well."""

    def __post_init__(self) -> None:
        if not isinstance(self.chunk, int) or not 16 <= self.chunk <= 8192:
            raise ParameterError(f"chunk is {self.chunk!r}; it is a number of pixels from 16 to 8192, such as 256")
        if not isinstance(self.level, int) or not 1 <= self.level <= 22:
            raise ParameterError(f"level is {self.level!r}; zstd has 1 to 22")


@dataclass(frozen=True, eq=False)
class Building:
    """A store that is to be written."""

    hierarchy: Hierarchy
    """What it holds."""

    regions: Regions
    """For the tasks."""

    skeleton: Mapping[str, bytes]
    """All keys but those of pixels."""


def plan_store(
    dataset: xr.Dataset,
    place: StorePlace,
    options: StoreOptions,
    *,
    windows: Chunks | None = None,
    token: str | None = None,
) -> Building:
    """Plan a store; nothing is computed or written.

    Parameters
    ----------
    windows
        Heights and widths, but for the last ones equal and whole chunks; None: those of the layers' chunks, where they
        suit, else others.
    token
        Hash of what is written; None: of the layers' data.
    """
    layers = tuple(layer_of(dataset, name) for name in chosen_layers(dataset, "all"))
    chunk, pyramid = options.chunk, options.pyramid
    shape = (int(layers[0].data.shape[-2]), int(layers[0].data.shape[-1]))
    levels = level_shapes(shape, max(chunk, 512)) if pyramid else (shape,)
    pixel = sum(layer.data.dtype.itemsize * int(np.prod(layer.data.shape[:-2])) for layer in layers)
    windows = windows or _window_chunks(layers[0].data.chunks[-2:], chunk, pixel)
    stages = plan_stages(windows, chunk, levels, pixel)
    geobox = geobox_of(dataset[layers[0].name])
    hierarchy = Hierarchy(dataset, layers, geobox, levels, stages, chunk, options.level, pyramid, options.shards)
    skeleton = build_skeleton(hierarchy)
    regions = Regions(
        place,
        tuple(layer.name for layer in layers),
        tuple(layer.method for layer in layers),
        tuple(layer.nodata for layer in layers),
        pyramid,
        # Pixels in memory are hashed, lazy ones have the hash of how they are made as their name.
        token or tokenize([dataset[layer.name].data for layer in layers], sorted(skeleton.items()), stages),
    )
    return Building(hierarchy, regions, skeleton)


def _window_chunks(chunks: Chunks, chunk: int, pixel_bytes: int) -> Chunks:
    """Return the chunks if they are equal ones of whole inner chunks, as shards must be, else such."""
    aligned = aligned_chunks(chunks, chunk, pixel_bytes)
    regular = all(len({*sizes[:-1]}) <= 1 and sizes[-1] <= sizes[0] for sizes in aligned)
    if regular:
        return aligned
    return regular_chunks((sum(chunks[0]), sum(chunks[1])), window_size(chunk, pixel_bytes))


def begin_store(building: Building, *, resume: bool) -> None:
    """Make the store without its root, or resume an interrupted one.

    Raises
    ------
    WriteError
        It cannot be written, or the interrupted write was of other data.
    """
    place = building.regions.place
    if place.store is not None:
        write_skeleton(building.hierarchy, place.store)
        return
    left = place.get(IDENTITY) if resume else None
    if left is not None and left.decode() != building.regions.token:
        raise WriteError(
            f"{place.label}: an interrupted write of other data or with other options is there; "
            "pass resume=False to start again"
        )
    if left is None:
        place.clear()
        # First of all: it marks what is written here as ours, so that it may be removed again.
        place.put(IDENTITY, building.regions.token.encode())
    for key, data in building.skeleton.items():
        if key != ROOT:
            place.put(key, data)


def complete_store(building: Building) -> None:
    """Make a store complete, now that all its regions are written.

    Raises
    ------
    WriteError
        It cannot take its final name.
    """
    place, summary = building.regions.place, _summary(building)
    if place.store is None:
        place.complete(with_attributes(building.skeleton[ROOT], summary))
    else:
        add_attributes(place.store, summary)


def _summary(building: Building) -> dict[str, Any]:
    """Return the attributes that say what could not be read; from the store, since a resumed write has added to it."""
    if read_status(building.hierarchy.dataset) is None:
        return {}
    path = array_path(STATUS, 0, pyramid=building.regions.pyramid)
    table = np.asarray(opened(building.regions.place, {STATUS: path})[STATUS][:])
    return {STATUS: status_summary(building.hierarchy.dataset, table)}
