"""Zarr v3 stores: every window writes its own shards; a store is complete and verified before it looks like one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
import zarr.codecs
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph
from distributed import Client
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from zarr.abc.store import Store
from zarr.storage import MemoryStore

from s2composite.cube.georeference import geobox_of, georeferenced
from s2composite.errors import ParameterError, S2CompositeError, WriteError
from s2composite.metrics import metered
from s2composite.writing.encode import halve, level_shapes
from s2composite.writing.layers import STATUS, TIME, Layer, chosen_layers, layer_of, read_status, status_summary
from s2composite.writing.staging import IDENTITY, ROOT, StorePlace, disk_error, opened, place_of, session_of
from s2composite.writing.steps import (
    Work,
    aligned_chunks,
    current_client,
    plan_stages,
    progress_bar,
    regular_chunks,
    run_work,
    window_size,
    work_of,
)
from s2composite.writing.tiles import Chunks, Stage

__all__ = [
    "Building",
    "Hierarchy",
    "Regions",
    "StoreOptions",
    "add_attributes",
    "array_path",
    "begin_store",
    "build_skeleton",
    "complete_store",
    "level_geobox",
    "mark_of",
    "plan_store",
    "with_attributes",
    "write_extra",
    "write_overview",
    "write_skeleton",
    "write_window",
    "write_zarr",
]

_TIME_UNITS = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}
"""Encoding of the times of periods and their bounds, which CF wants to be the same."""

_CONVENTIONS = {
    "proj": ("geo-proj", "f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information"),
    "spatial": ("spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
    "multiscales": ("multiscales", "d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"),
}
"""The GeoZarr conventions in use: repository below github.com/zarr-conventions, UUID, description."""


def array_path(name: str, level: int, *, pyramid: bool) -> str:
    """Return the path of a layer's array in the hierarchy."""
    return f"{level}/{name}" if pyramid else name


def level_geobox(geobox: GeoBox, shape: tuple[int, int], level: int) -> GeoBox:
    """Return the pixel grid of a level: pixels of 2 ** level from the same origin."""
    scale = 1 << level
    a, b, c, d, e, f = tuple(geobox.transform)[:6]
    return GeoBox(shape, type(geobox.transform)(a * scale, b * scale, c, d * scale, e * scale, f), geobox.crs)


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """What a Zarr hierarchy will hold, before any pixel is written."""

    dataset: xr.Dataset
    """With coordinates, attributes and all variables."""

    layers: tuple[Layer, ...]
    """Those with pixels."""

    geobox: GeoBox | None
    """Pixel grid of the full resolution."""

    levels: tuple[tuple[int, int], ...]
    """Rows and columns of the full resolution and each overview."""

    stages: tuple[Stage, ...]
    """Whose windows are the shards."""

    chunk: int
    """Side of the chunks inside shards, in pixels."""

    compression: int
    """Level of zstd."""

    pyramid: bool
    """Each level is a group."""

    shards: bool
    """Chunks lie together in shards, one for each window."""


def build_skeleton(hierarchy: Hierarchy) -> dict[str, bytes]:
    """Return every key of a hierarchy but those of the layers' pixels."""
    keys: dict[str, Any] = {}
    write_skeleton(hierarchy, MemoryStore(keys))
    return {key: value.to_bytes() for key, value in keys.items()}


def write_skeleton(hierarchy: Hierarchy, store: Store) -> None:
    """Write metadata and coordinates into a store, and declare the layers' arrays."""
    with warnings.catch_warnings():
        # Strings and consolidated metadata are extensions of Zarr v3 that all readers in use know.
        warnings.simplefilter("ignore")
        zarr.create_group(store, attributes=_root_attributes(hierarchy), overwrite=True)
        for stage in hierarchy.stages:
            for level in range(stage.first, stage.last + 1):
                _level_dataset(hierarchy, level).to_zarr(
                    store,
                    group=str(level) if hierarchy.pyramid else None,
                    mode="a",
                    compute=False,
                    consolidated=False,
                    encoding=_encodings(hierarchy, stage, level),
                    zarr_format=3,
                    safe_chunks=False,
                )
        _consolidate(store)


def _consolidate(store: Store) -> None:
    """Copy all metadata into the root's, so that opening takes one request; stores with a history do not need it."""
    if getattr(store, "supports_consolidated_metadata", True):
        zarr.consolidate_metadata(store)


def with_attributes(root: bytes, more: Mapping[str, Any]) -> bytes:
    """Return the metadata of a root with further attributes."""
    metadata = json.loads(root)
    metadata["attributes"].update(more)
    return json.dumps(metadata).encode()


def add_attributes(store: Store, more: Mapping[str, Any]) -> None:
    """Give the root of a store further attributes."""
    if not more:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in write_skeleton
        zarr.open_group(store, mode="r+", use_consolidated=False).update_attributes(dict(more))
        _consolidate(store)


def _level_dataset(hierarchy: Hierarchy, level: int) -> xr.Dataset:
    """Return the dataset of a level, with placeholders for the pixels of layers."""
    dataset = hierarchy.dataset
    coords = _level_coords(hierarchy, level)
    variables = {}
    for layer in hierarchy.layers:
        source = dataset[layer.name]
        sizes = (*source.shape[:-2], *hierarchy.levels[level])
        georeferenced = {"grid_mapping": "spatial_ref"} if "spatial_ref" in coords else {}
        placeholder = da.zeros(sizes, dtype=layer.data.dtype, chunks=sizes)
        variables[layer.name] = xr.Variable(source.dims, placeholder, _plain(source.attrs) | georeferenced)
    if level == 0:
        variables |= {str(name): _placeholder(a) for name, a in dataset.data_vars.items() if name not in variables}
    attrs = _plain(dataset.attrs) if hierarchy.pyramid else _root_attributes(hierarchy)
    out = xr.Dataset(variables, coords, attrs)
    text = {name: coord.astype(object) for name, coord in out.coords.items() if coord.dtype.kind == "U"}
    # In CF, the bounds of a coordinate are not a coordinate themselves.
    return out.assign_coords(text).drop_encoding().reset_coords(list(_bounds(out)))


def _bounds(dataset: xr.Dataset) -> Iterator[str]:
    """Yield the names of the coordinates that hold the bounds of others."""
    for coord in list(dataset.coords.values()):
        if coord.attrs.get("bounds") in dataset.coords:
            yield coord.attrs["bounds"]


def _level_coords(hierarchy: Hierarchy, level: int) -> dict[Hashable, Any]:
    coords: dict[Hashable, Any] = dict(hierarchy.dataset.coords)
    if level:
        coords = {name: coord for name, coord in coords.items() if not set(coord.dims) & {"y", "x"}}
        if hierarchy.geobox is not None:
            grid = level_geobox(hierarchy.geobox, hierarchy.levels[level], level)
            coords |= dict(xr_coords(grid, dims=("y", "x")))
    return coords


def _placeholder(array: xr.DataArray) -> xr.Variable:
    """Return a variable that is not a picture: unchanged, or a placeholder if it is lazy."""
    if not array.chunks:
        return array.variable
    chunks = tuple(sizes[0] for sizes in array.chunks)
    return array.variable.copy(data=da.zeros(array.shape, dtype=array.dtype, chunks=chunks))


def _encodings(hierarchy: Hierarchy, stage: Stage, level: int) -> dict[str, dict[str, Any]]:
    chunk = hierarchy.chunk
    compressor = zarr.codecs.ZstdCodec(level=hierarchy.compression, checksum=True)
    window = tuple(-(-axis.stop // chunk) * chunk for axis in stage.window(0, 0, level))
    out: dict[str, dict[str, Any]] = {}
    for layer in hierarchy.layers:
        whole = layer.data.shape[:-2]
        # Few bands are read together, as those of a picture; periods are read one by one.
        dims = hierarchy.dataset[layer.name].dims
        head = tuple(n if n <= 4 and dim != TIME else 1 for n, dim in zip(whole, dims, strict=False))
        encoding: dict[str, Any] = {"chunks": (*head, chunk, chunk), "compressors": [compressor]}
        if hierarchy.shards and (*head, *window) != (*whole, chunk, chunk):
            encoding["shards"] = (*whole, *window)
        if layer.nodata is not None:
            # Chunks that are not stored have no values, and GDAL reads the fill value as nodata.
            encoding["fill_value"] = layer.data.dtype.type(layer.nodata).item()
        out[layer.name] = encoding
    coords = hierarchy.dataset.coords
    if TIME in coords and coords[TIME].dtype.kind == "M":
        out |= dict.fromkeys({TIME, *_bounds(hierarchy.dataset)}, _TIME_UNITS)
    return out


def _root_attributes(hierarchy: Hierarchy) -> dict[str, Any]:
    geobox = hierarchy.geobox
    attrs: dict[str, Any] = {"Conventions": "CF-1.11", **_plain(hierarchy.dataset.attrs)}
    used = []
    if geobox is not None:
        used = ["spatial"] if geobox.crs is None else ["proj", "spatial"]
        attrs |= _spatial(geobox)
    if hierarchy.pyramid:
        used.append("multiscales")
        attrs["multiscales"] = _multiscales(hierarchy)
    if used:
        attrs["zarr_conventions"] = [_convention(name) for name in used]
    return attrs


def _plain(attrs: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Return attributes as JSON has them.

    Raises
    ------
    ParameterError
        One has no equivalent in JSON.
    """
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


def _convention(name: str) -> dict[str, str]:
    repository, uuid, description = _CONVENTIONS[name]
    base = f"zarr-conventions/{repository}"
    return {
        "schema_url": f"https://raw.githubusercontent.com/{base}/refs/tags/v1/schema.json",
        "spec_url": f"https://github.com/{base}/blob/v1/README.md",
        "uuid": uuid,
        "name": name,
        "description": description,
    }


def _spatial(geobox: GeoBox) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(tuple(geobox.transform)[:6]),
        "spatial:shape": [int(n) for n in geobox.shape],
        "spatial:bbox": [float(v) for v in geobox.boundingbox.bbox],
        "spatial:registration": "pixel",
    }
    if geobox.crs is not None:
        # Only an exact code: pyproj also offers codes of similar systems.
        authority = geobox.crs.proj.to_authority(min_confidence=100)
        attrs |= {"proj:code": ":".join(authority)} if authority else {"proj:wkt2": geobox.crs.to_wkt()}
    return attrs


def _multiscales(hierarchy: Hierarchy) -> dict[str, Any]:
    layout: list[dict[str, Any]] = []
    for level, shape in enumerate(hierarchy.levels):
        entry: dict[str, Any] = {"asset": str(level), "spatial:shape": list(shape)}
        if hierarchy.geobox is not None:
            entry["spatial:transform"] = list(tuple(level_geobox(hierarchy.geobox, shape, level).transform)[:6])
        if level:
            entry |= {"derived_from": str(level - 1), "transform": {"scale": [2.0, 2.0], "translation": [0.0, 0.0]}}
        layout.append(entry)
    return {"layout": layout, "resampling_method": hierarchy.layers[0].method}


@dataclass(frozen=True, eq=False)
class Regions:
    """What every task that writes into a store needs: it travels once to each worker."""

    place: StorePlace
    """Where to write."""

    names: tuple[str, ...]
    """Layers in the order of a task's blocks."""

    methods: tuple[str, ...]
    """How each layer's overviews are made."""

    nodata: tuple[float | None, ...]
    """Of each layer."""

    pyramid: bool
    """Levels beyond the full resolution are made."""

    token: str
    """Hash of what is written."""

    def require(self) -> None:
        """Raise if writing was given up, and remove what was written since.

        Raises
        ------
        WriteError
            The record of what is being written is gone, or is of other data.
        """
        if self.place.store is not None:
            return
        found = self.place.get(IDENTITY)
        if found is None and self.place.get(ROOT) is not None:
            # The store is complete: another worker has made this window while this one did not answer.
            self.place.forget()
        elif found is None:
            self.place.clear()
        if found is None or found.decode() != self.token:
            raise WriteError("writing was given up")


def mark_of(name: str, stage: Stage, position: Sequence[int]) -> str:
    """Return the name under which a window, or a block of another variable, is marked as done."""
    return "-".join([name or f"s{stage.number}", *map(str, position)])


def write_window(
    regions: Regions,
    stage: Stage,
    position: tuple[int, int],
    blocks: Sequence[NDArray[Any]],
    extras: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write a window of all layers, in all levels of the stage.

    Parameters
    ----------
    blocks
        Of each layer, ``(..., y, x)``.
    extras
        Values of other variables for this window by name, ``(..., 1, 1)``.

    Raises
    ------
    WriteError
        It cannot be written, or reads back differently; names the window.
    """

    def write() -> None:
        for name, values in (extras or {}).items():
            _store(_array(regions, name), (..., *(slice(n, n + 1) for n in position)), values)
        pixels = list(blocks)
        for level in range(stage.first, stage.last + 1):
            if level > stage.first:
                pixels = _halved(pixels, regions)
            _store_level(pixels, regions, level, stage.window(*position, level))

    size = sum(block.nbytes for block in blocks)
    _guarded(regions, mark_of("", stage, position), stage.describe(*position), size, write)


def write_overview(regions: Regions, stage: Stage, position: tuple[int, int]) -> None:
    """Make levels from the level below, which is in the store.

    Raises
    ------
    WriteError
        As for `write_window`.
    """
    y, x = stage.window(*position)
    below = tuple(slice(2 * axis.start, 2 * axis.stop) for axis in (y, x))

    def write() -> None:
        paths = {name: array_path(name, stage.first - 1, pyramid=True) for name in regions.names}
        arrays = opened(regions.place, paths)
        pixels = [np.asarray(arrays[name][(..., *below)]) for name in regions.names]
        for level in range(stage.first, stage.last + 1):
            pixels = _halved(pixels, regions)
            _store_level(pixels, regions, level, stage.window(*position, level))

    _guarded(regions, mark_of("", stage, position), stage.describe(*position), 0, write)


def write_extra(regions: Regions, variable: str, starts: Sequence[int], block: NDArray[Any], mark: str) -> None:
    """Write a block of a variable that is not a picture.

    Parameters
    ----------
    starts
        Its first index along each axis.
    mark
        Name under which it is marked as done.

    Raises
    ------
    WriteError
        As for `write_window`.
    """
    where = tuple(slice(start, start + n) for start, n in zip(starts, block.shape, strict=True))

    def write() -> None:
        _store(_array(regions, variable), where, block)

    _guarded(regions, mark, f"{variable}{tuple(starts)}", block.nbytes, write)


def _array(regions: Regions, variable: str) -> Any:
    return opened(regions.place, {variable: array_path(variable, 0, pyramid=regions.pyramid)})[variable]


def _guarded(regions: Regions, mark: str, where: str, size: int, write: Callable[[], None]) -> None:
    """Write a window of `size` bytes, mark it as done, and name it in errors."""
    label = regions.place.label
    try:
        regions.require()
        with metered("encode"):
            write()
        regions.place.mark(mark)
        regions.require()
    except WriteError as error:
        raise WriteError(f"{label}, {where}: {error}", **(error.__dict__ | {"window": where})) from error
    except OSError as error:
        raise disk_error(error, f"{label}, {where}", size) from error
    except S2CompositeError:
        raise
    except Exception as error:  # whatever a store raises
        raise WriteError(f"{label}, {where}: {type(error).__name__}: {error}", window=where, path=label) from error


def _halved(pixels: Sequence[NDArray[Any]], regions: Regions) -> list[NDArray[Any]]:
    out = []
    for layer, method, nodata in zip(pixels, regions.methods, regions.nodata, strict=True):
        halved = halve(layer.reshape(-1, *layer.shape[-2:]), method, nodata)
        out.append(halved.reshape(*layer.shape[:-2], *halved.shape[-2:]))
    return out


def _store_level(pixels: Sequence[NDArray[Any]], regions: Regions, level: int, window: tuple[slice, slice]) -> None:
    arrays = opened(regions.place, {name: array_path(name, level, pyramid=regions.pyramid) for name in regions.names})
    for name, layer in zip(regions.names, pixels, strict=True):
        _store(arrays[name], (..., *window), layer)


def _store(array: Any, where: tuple[Any, ...], values: NDArray[Any]) -> None:
    """Write a region and read it back."""
    array[where] = values
    back = np.asarray(array[where])
    if not np.array_equal(back, values, equal_nan=values.dtype.kind == "f"):
        raise WriteError(f"{array.path} reads back differently from what was written")


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
    """Write all layers as a Zarr v3 store, computing them if they are lazy.

    Runs on the current Dask client, otherwise in threads. Each window writes its own shards and reads them back; the
    store gets its final name (a directory) or its root metadata (an object store) last, so it is complete or absent. If
    unreadable scenes are skipped, the variable ``read_status`` has a table of them and the root attribute of that name
    a summary.

    Parameters
    ----------
    dataset : xarray.Dataset
        Dataset of a composite; layers of periods keep their axis ``time``, with its bounds.
    store : str, os.PathLike, zarr store or icechunk session
        Local path, ``gs://`` or ``s3://`` URL, or a store object of the zarr library, such as a MemoryStore. A writable
        session of icechunk is committed when everything is written; on an error its changes are discarded.
    overwrite : bool, default False
        Replace an existing store.
    resume : bool, default False
        Continue an interrupted call with the same data; if this call is interrupted, keep what is done.
    chunk : int, default 256
        Side of the chunks inside a shard, in pixels.
    level : int, default 3
        Compression level of zstd, 1 to 22.
    shards : bool, default True
        One object per window, with an index of its chunks. False: one object per chunk, which GDAL before 3.13 needs.
    pyramid : bool, default False
        Also write overviews, as GeoZarr's multiscales: group ``0`` is the full resolution, ``1`` half of it, and so on.
    progress : bool, default True
        Show how far the call is, in terminals and notebooks.

    Returns
    -------
    str
        The store written: absolute path or URL.

    Raises
    ------
    ParameterError
        An option is invalid; raised before anything is computed.
    WriteError
        The store exists or cannot be written, or a window failed; names the window.

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
    session = session_of(store)
    place = place_of(store if session is None else session.store, overwrite=overwrite)
    if resume and place.store is not None:
        raise ParameterError("resume=True works with a path or URL, not with a store object")
    building = plan_store(dataset, place, options)
    client = current_client() if any(layer.lazy for layer in building.hierarchy.layers) else None
    if client is not None and place.store is not None:
        raise ParameterError("workers cannot write into a store object of this process; pass a path or URL")
    try:
        begin_store(building, resume=resume)
        _write(building, client, progress=progress)
        complete_store(building)
    except BaseException:
        if session is not None:
            session.discard_changes()
        if not resume:
            place.clear()
        raise
    if session is not None:
        session.commit(f"s2composite: {dataset.attrs.get('reducer', 'composite')}")
    return place.label


def _write(building: Building, client: Client | None, *, progress: bool) -> None:
    done = building.regions.place.done()
    stages = building.hierarchy.stages
    total = sum(len(stage.chunks[0]) * len(stage.chunks[1]) for stage in stages)
    regions = delayed(building.regions, name=f"send-store-plan-{building.regions.token}", pure=True, traverse=False)
    with progress_bar(f"write {building.regions.place.label.rpartition('/')[2]}", total, shown=progress) as advance:

        def receive(_key: Any, _result: Any) -> None:
            advance()

        for stage in stages:
            make = _later_stage if stage.number else _first_stage
            run_work(make(building, stage, regions, done), client, receive)


def _first_stage(building: Building, stage: Stage, regions: Delayed, done: frozenset[str]) -> Work:
    """Return the work of writing everything that comes from the dataset: layers and other variables."""
    arrays = {"": _layers_array(building, stage, regions), **_extra_arrays(building, regions)}
    marks = {array.name: name for name, array in arrays.items()}
    label = building.regions.place.label

    def namer(name: str) -> Callable[[tuple[int, ...]], str]:
        return lambda position: f"{label}, {f'{name}{position}' if name else stage.describe(*position)}"

    def wanted(key: tuple[Any, ...]) -> bool:
        return mark_of(marks[key[0]], stage, key[1:]) not in done

    return work_of({namer(name): array for name, array in arrays.items()}, wanted)


def _later_stage(building: Building, stage: Stage, regions: Delayed, done: frozenset[str]) -> Work:
    """Return the work of levels made from those below, which are in the store."""
    tasks, windows = [], {}
    for position in np.ndindex(len(stage.chunks[0]), len(stage.chunks[1])):
        if mark_of("", stage, position) not in done:
            key = f"write-overview-{building.regions.token}-{stage.number}-{position[0]}-{position[1]}"
            tasks.append(delayed(write_overview)(regions, stage, position, dask_key_name=key))
            windows[key] = f"{building.regions.place.label}, {stage.describe(*position)}"
    return Work(HighLevelGraph.merge(*(task.__dask_graph__() for task in tasks)), windows)


def _layers_array(building: Building, stage: Stage, regions: Delayed) -> da.Array:
    """Return an array with one task per window that writes all layers."""
    data = []
    for layer in building.hierarchy.layers:
        wanted = (*((n,) for n in layer.data.shape[:-2]), *stage.chunks)
        data.append(layer.data if layer.data.chunks == wanted else layer.data.rechunk(wanted))
    return da.map_blocks(
        _write_window,
        *data,
        regions=regions,
        stage=stage,
        drop_axis=list(range(max(array.ndim for array in data) - 2)),
        chunks=stage.chunks,
        dtype=object,
        meta=np.empty((0, 0), object),
        name=f"write-window-{building.regions.token}",
    )


def _extra_arrays(building: Building, regions: Delayed) -> dict[str, da.Array]:
    """Return for each lazy variable that is not a picture (``read_status``) an array that writes it."""
    out = {}
    for name, array in building.hierarchy.dataset.data_vars.items():
        if name not in building.regions.names and array.chunks:
            out[str(name)] = da.map_blocks(
                _write_extra,
                array.data,
                regions=regions,
                variable=str(name),
                spans=array.data.chunks,
                dtype=object,
                meta=np.empty((0,) * array.ndim, object),
                name=f"write-table-{name}-{building.regions.token}",
            )
    return out


def _write_window(*blocks: NDArray[Any], regions: Regions, stage: Stage, block_id: tuple[int, int]) -> bool:
    write_window(regions, stage, block_id, blocks)
    return True


def _write_extra(
    block: NDArray[Any], regions: Regions, variable: str, spans: tuple[tuple[int, ...], ...], block_id: tuple[int, ...]
) -> bool:
    starts = [sum(sizes[:i]) for sizes, i in zip(spans, block_id, strict=True)]
    write_extra(regions, variable, starts, block, "-".join([variable, *map(str, block_id)]))
    return True
