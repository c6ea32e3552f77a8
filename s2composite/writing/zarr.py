"""Zarr v3 stores: every window writes its own shards; a store is complete and verified before it looks like one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
import zarr.codecs
from affine import Affine
from dask.array.core import normalize_chunks
from dask.base import tokenize
from dask.delayed import delayed
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from zarr.abc.store import Store
from zarr.storage import MemoryStore

from s2composite.cube.georeference import geobox_of, georeferenced
from s2composite.cube.graph import Chunks
from s2composite.errors import ParameterError, WriteError
from s2composite.metrics import metered
from s2composite.writing.encode import halve, level_shapes
from s2composite.writing.layers import (
    STATUS,
    TIME,
    RasterLayer,
    affine_numbers,
    chosen_layers,
    crs_fields,
    layer_of,
    status_summary,
)
from s2composite.writing.staging import IDENTITY, ROOT, StorePlace, place_of, window_errors
from s2composite.writing.steps import (
    Graph,
    aligned_chunks,
    current_client,
    graph_of,
    overview_calls,
    plan_stages,
    progress_bar,
    run_calls,
    run_graph,
    tables_with,
    window_array,
    window_size,
)
from s2composite.writing.tiles import Stage

__all__ = [
    "Regions",
    "StoreOptions",
    "StorePlan",
    "begin_store",
    "complete_store",
    "mark_of",
    "plan_store",
    "write_window",
    "write_zarr",
]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a store is laid out."""

    chunk: int = 256  # side of the chunks that are read from a shard, in pixels
    level: int = 3  # of zstd, 1 to 22
    shards: bool = True  # one object for each window
    pyramid: bool = False  # overviews as well

    def __post_init__(self) -> None:
        if not isinstance(self.chunk, int) or not 16 <= self.chunk <= 8192:
            raise ParameterError(f"chunk is {self.chunk!r}; it is a number of pixels from 16 to 8192, such as 256")
        if not isinstance(self.level, int) or not 1 <= self.level <= 22:
            raise ParameterError(f"level is {self.level!r}; zstd has 1 to 22")


def write_zarr(
    dataset: xr.Dataset,
    store: Any,
    *,
    overwrite: bool = False,
    resume: bool = False,
    chunk: int = 256,
    level: int = 3,
    shards: bool = True,
    pyramid: bool = False,
    progress: bool = True,
) -> str:
    """Write all layers of a dataset as a Zarr v3 store, computing them if they are lazy.

    Parameters, results and errors are those of `Composite.to_zarr`, but for the dataset; layers of periods keep their
    axis ``time``, with its bounds.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from zarr.storage import MemoryStore
    >>> store = MemoryStore()
    >>> _ = write_zarr(xr.Dataset({"count": (("y", "x"), np.ones((64, 64), "uint16"))}), store)
    >>> int(xr.open_zarr(store)["count"].sum())
    4096
    """
    options = StoreOptions(chunk, level, shards, pyramid)
    dataset = georeferenced(dataset)
    # A transaction of a store with a history, such as icechunk's: changes become visible when committed.
    session = store if isinstance(getattr(store, "store", None), Store) and hasattr(store, "commit") else None
    place = place_of(store if session is None else session.store, overwrite=overwrite)
    if resume and place.store is not None:
        raise ParameterError("resume=True works with a path or URL, not with a store object")
    plan = plan_store(dataset, place, options)
    client = current_client() if any(layer.lazy for layer in plan.layers) else None
    if client is not None and place.store is not None:
        raise ParameterError("workers cannot write into a store object of this process; pass a path or URL")
    with ExitStack() as undo:
        if not resume:
            undo.callback(place.clear)
        if session is not None:
            undo.callback(session.discard_changes)
        begin_store(plan, resume=resume)
        done = place.done()
        total = sum(len(stage.chunks[0]) * len(stage.chunks[1]) for stage in plan.stages)
        with progress_bar(f"write {place.label.rpartition('/')[2]}", total, shown=progress) as advance:
            graph, windows, tables = _window_graph(plan, done)

            def receive(key: tuple[Any, ...], block: Any) -> None:
                if key[0] in tables:  # a block of a variable that is not a picture
                    variable, position = tables[key[0]], key[1:]
                    spans = zip(plan.dataset[variable].data.chunks, position, strict=True)
                    where = tuple(slice(sum(sizes[:i]), sum(sizes[: i + 1])) for sizes, i in spans)
                    mark = mark_of(variable, plan.stages[0], position)
                    with _writing(plan.regions, mark, f"{variable}, block {position}", block.nbytes):
                        _store(plan.regions.array(0, variable), where, block)
                else:
                    advance()

            run_graph(graph, windows, client, receive)
            for stage in plan.stages[1:]:
                calls = overview_calls(stage, place.label, plan.token, write_window, plan.regions, stage)
                left = [call for call in calls if mark_of("", stage, call.args[-1]) not in done]
                run_calls(left, client, advance)
        complete_store(plan)
        undo.pop_all()
    if session is not None:
        session.commit(f"s2composite: {dataset.attrs.get('reducer', 'composite')}")
    return place.label


# --- what a store will hold ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StorePlan:
    """A Zarr store, before any pixel is written."""

    dataset: xr.Dataset  # with coordinates, attributes and all variables
    layers: tuple[RasterLayer, ...]  # those with pixels
    geobox: GeoBox | None
    levels: tuple[tuple[int, int], ...]  # rows and columns of the full resolution and each overview
    stages: tuple[Stage, ...]  # whose windows are the shards
    options: StoreOptions
    place: StorePlace
    token: str  # hash of what is written
    metadata: Mapping[str, bytes]  # all keys but those of pixels
    windows: Chunks | None  # of the table of what was read; None: the dataset says

    @cached_property
    def regions(self) -> Regions:
        """What tasks need."""
        layers = {layer.name: (layer.method, layer.nodata) for layer in self.layers}
        variables = self.dataset.data_vars.items()
        tables = tuple(str(name) for name, array in variables if name not in layers and array.chunks)
        return Regions(self.place, layers, tables, self.stages[0], self.options.pyramid, self.token)

    def grid(self, level: int) -> GeoBox | None:
        """Return the pixel grid of a level: pixels of 2 ** level from the same origin."""
        if self.geobox is None:
            return None
        return GeoBox(self.levels[level], self.geobox.transform @ Affine.scale(1 << level), self.geobox.crs)


def plan_store(
    dataset: xr.Dataset,
    place: StorePlace,
    options: StoreOptions,
    *,
    windows: Chunks | None = None,
    token: str | None = None,
) -> StorePlan:
    """Plan a store; nothing is computed or written.

    `windows` are heights and widths, but for the last ones equal and whole chunks, and also those of the table of what
    was read; None: those of the layers' chunks, where they suit, else others. `token` is a hash of what is written;
    None: of the layers' data.
    """
    layers = tuple(layer_of(dataset, name) for name in chosen_layers(dataset, "all"))
    chunk, data = options.chunk, layers[0].data
    shape = (int(data.shape[-2]), int(data.shape[-1]))
    levels = level_shapes(shape, max(chunk, 512)) if options.pyramid else (shape,)
    pixel_bytes = sum(layer.data.dtype.itemsize * int(np.prod(layer.data.shape[:-2])) for layer in layers)
    given = windows
    if windows is None:
        windows = aligned_chunks(data.chunks[-2:], chunk, pixel_bytes)
        # Shards are of one size, whole inner chunks.
        if not all(len({*sizes[:-1]}) <= 1 and sizes[-1] <= sizes[0] for sizes in windows):
            windows = normalize_chunks(window_size(chunk, pixel_bytes), shape)
    stages = plan_stages(windows, chunk, levels, pixel_bytes)
    geobox = geobox_of(dataset[layers[0].name])
    plan = StorePlan(dataset, layers, geobox, levels, stages, options, place, token or "", {}, given)
    keys: dict[str, Any] = {}
    _write_metadata(plan, MemoryStore(keys))  # now, since it refuses attributes that Zarr cannot hold
    metadata = {key: value.to_bytes() for key, value in keys.items()}
    # Pixels in memory are hashed, lazy ones have the hash of how they are made as their name.
    data = [dataset[layer.name].data for layer in layers]
    format_of_marks = 2  # what is marked as done: a window with the tables that come with it
    return replace(
        plan, metadata=metadata, token=token or tokenize(data, sorted(metadata.items()), stages, format_of_marks)
    )


def begin_store(plan: StorePlan, *, resume: bool) -> None:
    """Make the store without its root, or resume an interrupted one; raises a WriteError if that was of other data."""
    place = plan.place
    if place.store is not None:
        _write_metadata(plan, place.store)
        return
    left = place.get(IDENTITY) if resume else None
    if left is not None and left.decode() != plan.token:
        raise WriteError(
            f"{place.label}: an interrupted write of other data or with other options is there; "
            "pass resume=False to start again"
        )
    if left is None:
        place.create(plan.token.encode())
    for key, data in plan.metadata.items():
        if key != ROOT:
            place.put(key, data)


def complete_store(plan: StorePlan) -> None:
    """Make a store complete, now that all its regions are written; its attributes say what could not be read."""
    place, dataset = plan.place, plan.dataset
    more: dict[str, Any] = {}
    if STATUS in dataset:
        # From the store, since a resumed write has added to it.
        table = np.asarray(plan.regions.array(0, STATUS)[:])
        more = {STATUS: status_summary(dataset, table, plan.windows)}
    if place.store is None:
        root = json.loads(plan.metadata[ROOT])
        root["attributes"].update(more)
        place.complete(json.dumps(root).encode())
    elif more:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in _write_metadata
            zarr.open_group(place.store, mode="r+", use_consolidated=False).update_attributes(more)
            _consolidate(place.store)


# --- metadata --------------------------------------------------------------------------------------------------------

# encoding of the times of periods and their bounds, which CF wants to be the same
_TIME_UNITS = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}

# the GeoZarr conventions in use: repository below github.com/zarr-conventions, UUID, description
_CONVENTIONS = {
    "proj": ("geo-proj", "f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information"),
    "spatial": ("spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
    "multiscales": ("multiscales", "d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"),
}


def _write_metadata(plan: StorePlan, store: Store) -> None:
    """Write metadata and coordinates into a store, and declare the layers' arrays."""
    with warnings.catch_warnings():
        # Strings and consolidated metadata are extensions of Zarr v3 that all readers in use know.
        warnings.simplefilter("ignore")
        zarr.create_group(store, attributes=_root_attributes(plan), overwrite=True)
        for stage in plan.stages:
            for level in range(stage.first, stage.last + 1):
                _level_dataset(plan, level).to_zarr(
                    store,
                    group=str(level) if plan.options.pyramid else None,
                    mode="a",
                    compute=False,
                    consolidated=False,
                    encoding=_encodings(plan, stage, level),
                    zarr_format=3,
                    safe_chunks=False,
                )
        _consolidate(store)


def _consolidate(store: Store) -> None:
    """Copy all metadata into the root's, so that opening takes one request; stores with a history do not need it."""
    if getattr(store, "supports_consolidated_metadata", True):
        zarr.consolidate_metadata(store)


def _level_dataset(plan: StorePlan, level: int) -> xr.Dataset:
    """Return the dataset of a level, with placeholders for what is written by tasks."""
    dataset = plan.dataset
    coords: dict[Hashable, Any] = dict(dataset.coords)
    if level:
        coords = {name: coord for name, coord in coords.items() if not set(coord.dims) & {"y", "x"}}
        if (grid := plan.grid(level)) is not None:
            coords |= dict(xr_coords(grid, dims=("y", "x")))
    mapping = {"grid_mapping": "spatial_ref"} if "spatial_ref" in coords else {}
    variables = {}
    for layer in plan.layers:
        source = dataset[layer.name]
        sizes = (*source.shape[:-2], *plan.levels[level])
        placeholder = da.zeros(sizes, dtype=layer.data.dtype, chunks=sizes)
        variables[layer.name] = xr.Variable(source.dims, placeholder, _plain(source.attrs) | mapping)
    for name, array in dataset.data_vars.items():
        if level == 0 and name not in variables:
            chunks = tuple(sizes[0] for sizes in array.chunks or ())
            lazy = da.zeros(array.shape, dtype=array.dtype, chunks=chunks) if chunks else None
            variables[str(name)] = array.variable if lazy is None else array.variable.copy(data=lazy)
    attrs = _plain(dataset.attrs) if plan.options.pyramid else _root_attributes(plan)
    out = xr.Dataset(variables, coords, attrs)
    text = {name: coord.astype(object) for name, coord in out.coords.items() if coord.dtype.kind == "U"}
    # In CF, the bounds of a coordinate are not a coordinate themselves.
    return out.assign_coords(text).drop_encoding().reset_coords(list(_bounds(out)))


def _bounds(dataset: xr.Dataset) -> Iterator[str]:
    """Yield the names of the coordinates that hold the bounds of others."""
    for coord in list(dataset.coords.values()):
        if coord.attrs.get("bounds") in dataset.coords:
            yield coord.attrs["bounds"]


def _encodings(plan: StorePlan, stage: Stage, level: int) -> dict[str, dict[str, Any]]:
    chunk = plan.options.chunk
    compressor = zarr.codecs.ZstdCodec(level=plan.options.level, checksum=True)
    window = tuple(-(-axis.stop // chunk) * chunk for axis in stage.window(0, 0, level))
    out: dict[str, dict[str, Any]] = {}
    for layer in plan.layers:
        whole = layer.data.shape[:-2]
        # Few bands are read together, as those of a picture; periods are read one by one.
        dims = plan.dataset[layer.name].dims
        head = tuple(n if n <= 4 and dim != TIME else 1 for n, dim in zip(whole, dims, strict=False))
        encoding: dict[str, Any] = {"chunks": (*head, chunk, chunk), "compressors": [compressor]}
        if plan.options.shards and (*head, *window) != (*whole, chunk, chunk):
            encoding["shards"] = (*whole, *window)
        if layer.nodata is not None:
            # Chunks that are not stored have no values, and GDAL reads the fill value as nodata.
            encoding["fill_value"] = layer.data.dtype.type(layer.nodata).item()
        out[layer.name] = encoding
    coords = plan.dataset.coords
    if TIME in coords and coords[TIME].dtype.kind == "M":
        out |= dict.fromkeys({TIME, *_bounds(plan.dataset)}, _TIME_UNITS)
    return out


def _root_attributes(plan: StorePlan) -> dict[str, Any]:
    geobox = plan.geobox
    attrs: dict[str, Any] = {"Conventions": "CF-1.11", **_plain(plan.dataset.attrs)}
    used = []
    if geobox is not None:
        used = ["spatial"] if geobox.crs is None else ["proj", "spatial"]
        attrs |= {
            "spatial:dimensions": ["y", "x"],
            "spatial:transform": affine_numbers(geobox),
            "spatial:shape": [int(n) for n in geobox.shape],
            "spatial:bbox": [float(v) for v in geobox.boundingbox.bbox],
            "spatial:registration": "pixel",
        }
        if geobox.crs is not None:
            attrs |= crs_fields(geobox.crs)
    if plan.options.pyramid:
        used.append("multiscales")
        layout: list[dict[str, Any]] = []
        for level, shape in enumerate(plan.levels):
            entry: dict[str, Any] = {"asset": str(level), "spatial:shape": list(shape)}
            if (grid := plan.grid(level)) is not None:
                entry["spatial:transform"] = affine_numbers(grid)
            if level:
                entry |= {"derived_from": str(level - 1), "transform": {"scale": [2.0, 2.0], "translation": [0.0, 0.0]}}
            layout.append(entry)
        attrs["multiscales"] = {"layout": layout, "resampling_method": plan.layers[0].method}
    if used:
        attrs["zarr_conventions"] = [
            {
                "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{repository}/refs/tags/v1/schema.json",
                "spec_url": f"https://github.com/zarr-conventions/{repository}/blob/v1/README.md",
                "uuid": uuid,
                "name": name,
                "description": description,
            }
            for name, (repository, uuid, description) in _CONVENTIONS.items()
            if name in used
        ]
    return attrs


def _plain(attrs: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Return attributes as JSON has them; raises a ParameterError for one that has no equivalent."""
    out = {}
    for name, value in attrs.items():
        plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        try:
            json.dumps(plain)
        except TypeError as error:
            raise ParameterError(
                f"attribute {name!r} is a {type(value).__name__}, which Zarr cannot hold; make it text or numbers"
            ) from error
        out[str(name)] = plain
    return out


# --- windows, in tasks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Regions:
    """What every task that writes into a store needs: it travels once to each worker."""

    place: StorePlace
    layers: Mapping[str, tuple[str, float | None]]  # how each layer's overviews are made, and its nodata value
    tables: tuple[str, ...]  # other variables that are computed
    stage: Stage  # the windows
    pyramid: bool
    token: str  # hash of what is written

    def keep(self, layers: Mapping[str, NDArray[Any]], position: tuple[int, int]) -> None:
        """Write a window of all layers, and the values of tables that come with it."""
        write_window(self, self.stage, position, {name: layers[name] for name in (*self.layers, *self.tables)})

    def array(self, level: int, name: str) -> Any:
        """Return an array of a level, opened for writing."""
        return zarr.open_array(self.place.open(), path=f"{level}/{name}" if self.pyramid else name, mode="r+")


def mark_of(name: str, stage: Stage, position: Sequence[int]) -> str:
    """Return the name under which a window, or a block of another variable, is marked as done."""
    return "-".join([name or f"s{stage.number}", *map(str, position)])


def write_window(
    regions: Regions,
    stage: Stage,
    position: tuple[int, int],
    values: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write a window in all levels of the stage, and mark it as done.

    `values` are, by name, those of all layers ``(..., y, x)``, and of tables for this window ``(..., 1, 1)``. Without
    them the levels are made from the one below them, which is in the store.
    """
    values = values or {}
    size = sum(block.nbytes for block in values.values())
    with _writing(regions, mark_of("", stage, position), stage.describe(*position), size):
        for name in values.keys() - regions.layers.keys():
            _store(regions.array(0, name), (..., *(slice(n, n + 1) for n in position)), values[name])
        if values:
            pixels = {name: values[name] for name in regions.layers}
        else:
            below = tuple(slice(2 * axis.start, 2 * axis.stop) for axis in stage.window(*position))
            pixels = {name: regions.array(stage.first - 1, name)[(..., *below)] for name in regions.layers}
        for level in range(stage.first, stage.last + 1):
            if level > stage.first or not values:
                pixels = {name: halve(pixels[name], *how) for name, how in regions.layers.items()}
            for name, layer in pixels.items():
                _store(regions.array(level, name), (..., *stage.window(*position, level)), layer)


@contextmanager
def _writing(regions: Regions, mark: str, where: str, size: int) -> Iterator[None]:
    """Write `size` bytes, mark them as done, and name the window in errors."""
    with window_errors(regions.place.label, where, size):
        regions.place.require(regions.token)
        with metered("encode"):
            yield
        regions.place.mark(mark)
        regions.place.require(regions.token)


def _store(array: Any, where: tuple[Any, ...], values: NDArray[Any]) -> None:
    """Write a region and read it back."""
    array[where] = values
    back = np.asarray(array[where])
    if not np.array_equal(back, values, equal_nan=values.dtype.kind == "f"):
        raise WriteError(f"{array.path} reads back differently from what was written")


# --- steps: windows, then overviews ----------------------------------------------------------------------------------


def _window_graph(plan: StorePlan, done: frozenset[str]) -> tuple[Graph, dict[Any, str], dict[str, str]]:
    """Return the work of writing what comes from the dataset, layers and other lazy variables, but for what is done.

    As `graph_of`; and, by the name of their tasks, those variables whose blocks are results of tasks of their own.
    """
    label, stage, token = plan.place.label, plan.stages[0], plan.token
    regions = delayed(plan.regions, name=f"send-store-plan-{token}", pure=True, traverse=False)
    layers = [layer.data for layer in plan.layers]
    tables = {name: plan.dataset[name].data for name in plan.regions.tables}
    own = tables_with(stage.chunks, {name for layer in layers for name in layer.dask.layers}, tables)
    name = f"write-window-{token}-0"
    windows = window_array(_write_blocks, name, stage.chunks, layers, own, regions=regions)
    alone = {f"write-table-{variable}-{token}-0": variable for variable in tables.keys() - own.keys()}
    arrays: list[tuple[da.Array, str, Stage | None]] = [(windows, label, stage)]
    for name, variable in alone.items():
        arrays.append((tables[variable].map_blocks(np.asarray, name=name), f"{label}, {variable}", None))
    graph, wanted = graph_of(arrays, lambda key: mark_of(alone.get(key[0], ""), stage, key[1:]) not in done)
    return graph, wanted, alone


def _write_blocks(*blocks: NDArray[Any], regions: Regions, tables: Sequence[str], block_id: tuple[int, int]) -> None:
    write_window(regions, regions.stage, block_id, dict(zip((*regions.layers, *tables), blocks, strict=True)))
