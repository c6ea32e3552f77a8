"""Zarr v3: every window writes its own shards; a store is complete, and verified, before it looks like one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph
from distributed import Client
from numpy.typing import NDArray

from s2composite.errors import ParameterError, S2CompositeError, WriteError
from s2composite.metering import metered
from s2composite.writing.execute import Work, current_client, run_work, work_of
from s2composite.writing.layers import Layer, chosen_layers, geobox_of, layer_of
from s2composite.writing.overviews import halve, level_shapes
from s2composite.writing.parts import disk_error
from s2composite.writing.progress import progress_bar
from s2composite.writing.pyramid import aligned_chunks, plan_stages, regular_chunks, window_size
from s2composite.writing.skeleton import (
    Hierarchy,
    add_attributes,
    array_path,
    build_skeleton,
    with_attributes,
    write_skeleton,
)
from s2composite.writing.status import STATUS, read_status, status_summary
from s2composite.writing.stores import IDENTITY, ROOT, StorePlace, opened, place_of, session_of
from s2composite.writing.window import Chunks, Stage

__all__ = ["write_zarr"]


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

    Runs on the current Dask client, else in threads. Each window writes its own shards and reads them back; the store
    gets its final name (a directory) or its root metadata (an object store) last, so it is complete or absent. Where
    scenes that cannot be read are skipped, the table of them is a variable and the root's attribute ``read_status`` its
    summary.

    Parameters
    ----------
    dataset
        Of a composite; layers of periods keep their axis ``time``, with its bounds.
    store
        Local path, ``gs://`` or ``s3://`` URL, or a store object of the zarr library, such as a MemoryStore. A writable
        session of icechunk is committed when everything is written, else its changes are discarded.
    overwrite
        Replace what is there.
    resume
        Continue what an interrupted call with the same data has left; if this one is interrupted, leave what is done.
    chunk
        Side of the chunks that are read from a shard, in pixels.
    level
        Of zstd, 1 to 22.
    shards
        One object for each window, with an index of its chunks. False: one object for each chunk, which GDAL before
        3.13 needs.
    pyramid
        Overviews as well, as GeoZarr's multiscales: group ``0`` is the full resolution, ``1`` half of it, and so on.
    progress
        Show a progress bar, in terminals and notebooks.

    Returns
    -------
    str
        The store written: absolute path or URL.

    Raises
    ------
    ParameterError
        Options that make no sense; before anything is computed.
    WriteError
        The store exists, cannot be written, or a window failed; names the window.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from zarr.storage import MemoryStore
    >>> store = MemoryStore()
    >>> _ = write_zarr(xr.Dataset({"count": (("y", "x"), np.ones((64, 64), "uint16"))}), store)
    >>> int(xr.open_zarr(store)["count"].sum())
    4096
    """
    _check(chunk, level)
    session = session_of(store)
    names = chosen_layers(dataset, "all")
    layers = tuple(layer_of(dataset, name) for name in names)
    place = place_of(store if session is None else session.store, overwrite=overwrite)
    if resume and place.store is not None:
        raise ParameterError("resume=True works with a path or URL, not with a store object")
    lazy = any(layer.lazy for layer in layers)
    client = current_client() if lazy else None
    if client is not None and place.store is not None:
        raise ParameterError("workers cannot write into a store object of this process; pass a path or URL")
    job = _plan(dataset, layers, place, chunk, level, shards=shards, pyramid=pyramid)
    try:
        _prepare(job, resume=resume)
        _write(job, client, progress=progress)
        summary = _summary(job)
    except BaseException:
        if session is not None:
            session.discard_changes()
        if not resume:
            place.clear()
        raise
    if place.store is None:
        place.complete(with_attributes(job.skeleton[ROOT], summary))
    else:
        add_attributes(place.store, summary)
    if session is not None:
        session.commit(f"s2composite: {dataset.attrs.get('reducer', 'composite')}")
    return place.label


def _check(chunk: int, level: int) -> None:
    if not isinstance(chunk, int) or not 16 <= chunk <= 8192:
        raise ParameterError(f"chunk is {chunk!r}; it is a number of pixels from 16 to 8192, such as 256")
    if not isinstance(level, int) or not 1 <= level <= 22:
        raise ParameterError(f"level is {level!r}; zstd has 1 to 22")


@dataclass(frozen=True, eq=False)
class _Shared:
    """What every task needs: it travels once to each worker."""

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
        """Stop where writing was given up, and take away what came after that.

        Raises
        ------
        WriteError
            The note of what is being written is gone, or is about something else.
        """
        if self.place.store is not None:
            return
        found = self.place.get(IDENTITY)
        if found is None:
            self.place.clear()
        if found is None or found.decode() != self.token:
            raise WriteError("writing was given up")


@dataclass(frozen=True, eq=False)
class _Job:
    """One call."""

    hierarchy: Hierarchy
    """What to write."""

    shared: _Shared
    """For the tasks."""

    skeleton: Mapping[str, bytes]
    """All keys but those of pixels."""


def _plan(
    dataset: xr.Dataset,
    layers: tuple[Layer, ...],
    place: StorePlace,
    chunk: int,
    level: int,
    *,
    shards: bool,
    pyramid: bool,
) -> _Job:
    shape = (int(layers[0].data.shape[-2]), int(layers[0].data.shape[-1]))
    levels = level_shapes(shape, max(chunk, 512)) if pyramid else (shape,)
    pixel = sum(layer.data.dtype.itemsize * int(np.prod(layer.data.shape[:-2])) for layer in layers)
    stages = plan_stages(_window_chunks(layers[0].data.chunks[-2:], chunk, pixel), chunk, levels, pixel)
    geobox = geobox_of(dataset, layers[0].name)
    hierarchy = Hierarchy(dataset, layers, geobox, levels, stages, chunk, level, pyramid, shards)
    skeleton = build_skeleton(hierarchy)
    shared = _Shared(
        place,
        tuple(layer.name for layer in layers),
        tuple(layer.method for layer in layers),
        tuple(layer.nodata for layer in layers),
        pyramid,
        # Pixels in memory are hashed, lazy ones have the hash of how they are made as their name.
        tokenize([dataset[layer.name].data for layer in layers], sorted(skeleton.items()), stages),
    )
    return _Job(hierarchy, shared, skeleton)


def _window_chunks(chunks: Chunks, chunk: int, pixel_bytes: int) -> Chunks:
    """Return the chunks if they are equal ones of whole inner chunks, as shards must be, else such."""
    aligned = aligned_chunks(chunks, chunk, pixel_bytes)
    regular = all(len({*sizes[:-1]}) <= 1 and sizes[-1] <= sizes[0] for sizes in aligned)
    if regular:
        return aligned
    return regular_chunks((sum(chunks[0]), sum(chunks[1])), window_size(chunk, pixel_bytes))


def _prepare(job: _Job, *, resume: bool) -> None:
    """Make the store without its root, or go on with what is there."""
    place = job.shared.place
    if place.store is not None:
        write_skeleton(job.hierarchy, place.store)
        return
    left = place.get(IDENTITY) if resume else None
    if left is not None and left.decode() != job.shared.token:
        raise WriteError(
            f"{place.label}: an interrupted write of other data or with other options is there; "
            "pass resume=False to start again"
        )
    if left is None:
        place.clear()
        # First of all: it says that what is there was written here, and may be removed again.
        place.put(IDENTITY, job.shared.token.encode())
    for key, data in job.skeleton.items():
        if key != ROOT:
            place.put(key, data)


def _write(job: _Job, client: Client | None, *, progress: bool) -> None:
    done = job.shared.place.done()
    stages = job.hierarchy.stages
    total = sum(len(stage.chunks[0]) * len(stage.chunks[1]) for stage in stages)
    shared = delayed(job.shared, name=f"s2composite-zarr-{job.shared.token}", pure=True, traverse=False)
    with progress_bar(f"write {job.shared.place.label.rpartition('/')[2]}", total, shown=progress) as advance:

        def receive(_key: Any, _result: Any) -> None:
            advance()

        for stage in stages:
            work = (
                _first_stage(job, stage, shared, done) if stage.number == 0 else _later_stage(job, stage, shared, done)
            )
            run_work(work, client, receive)


def _first_stage(job: _Job, stage: Stage, shared: Delayed, done: frozenset[str]) -> Work:
    """Return the work of all that comes from the dataset: layers, and what is no picture."""
    arrays = {"": _layers_array(job, stage, shared), **_extra_arrays(job, shared)}
    marks = {array.name: name for name, array in arrays.items()}
    label = job.shared.place.label

    def namer(name: str) -> Callable[[tuple[int, ...]], str]:
        return lambda position: f"{label}, {f'{name}{position}' if name else stage.describe(*position)}"

    def wanted(key: tuple[Any, ...]) -> bool:
        return _mark(marks[key[0]], stage, key[1:]) not in done

    return work_of({namer(name): array for name, array in arrays.items()}, wanted)


def _later_stage(job: _Job, stage: Stage, shared: Delayed, done: frozenset[str]) -> Work:
    """Return the work of levels that are made from those below, which lie in the store."""
    tasks, windows = [], {}
    for position in np.ndindex(len(stage.chunks[0]), len(stage.chunks[1])):
        if _mark("", stage, position) not in done:
            key = f"overview-{job.shared.token}-{stage.number}-{position[0]}-{position[1]}"
            tasks.append(delayed(_write_overview)(shared, stage, position, dask_key_name=key))
            windows[key] = f"{job.shared.place.label}, {stage.describe(*position)}"
    return Work(HighLevelGraph.merge(*(task.__dask_graph__() for task in tasks)), windows)


def _summary(job: _Job) -> dict[str, Any]:
    """Return the attributes that say what could not be read, from the store: what a resumed write found counts too."""
    if read_status(job.hierarchy.dataset) is None:
        return {}
    path = array_path(STATUS, 0, pyramid=job.shared.pyramid)
    table = np.asarray(opened(job.shared.place, {STATUS: path})[STATUS][:])
    return {STATUS: status_summary(job.hierarchy.dataset, table)}


def _mark(name: str, stage: Stage, position: Sequence[int]) -> str:
    return "-".join([name or f"s{stage.number}", *map(str, position)])


def _layers_array(job: _Job, stage: Stage, shared: Delayed) -> da.Array:
    """Return an array with one task for each window, which writes all layers of it."""
    data = []
    for layer in job.hierarchy.layers:
        wanted = (*((n,) for n in layer.data.shape[:-2]), *stage.chunks)
        data.append(layer.data if layer.data.chunks == wanted else layer.data.rechunk(wanted))
    return da.map_blocks(
        _write_window,
        *data,
        shared=shared,
        stage=stage,
        drop_axis=list(range(max(array.ndim for array in data) - 2)),
        chunks=stage.chunks,
        dtype=object,
        meta=np.empty((0, 0), object),
        name=f"write-zarr-{job.shared.token}",
    )


def _extra_arrays(job: _Job, shared: Delayed) -> dict[str, da.Array]:
    """Return for each lazy variable that is no picture (what was read of each scene) an array to write it."""
    out = {}
    for name, array in job.hierarchy.dataset.data_vars.items():
        if name not in job.shared.names and array.chunks:
            out[str(name)] = da.map_blocks(
                _write_extra,
                array.data,
                shared=shared,
                variable=str(name),
                spans=array.data.chunks,
                dtype=object,
                meta=np.empty((0,) * array.ndim, object),
                name=f"write-{name}-{job.shared.token}",
            )
    return out


def _write_window(*blocks: NDArray[Any], shared: _Shared, stage: Stage, block_id: tuple[int, int]) -> bool:
    def write() -> None:
        pixels = list(blocks)
        for level in range(stage.first, stage.last + 1):
            if level > stage.first:
                pixels = _halved(pixels, shared)
            _store_level(pixels, shared, level, stage.window(*block_id, level))

    return _guarded(
        shared, _mark("", stage, block_id), stage.describe(*block_id), sum(block.nbytes for block in blocks), write
    )


def _write_overview(shared: _Shared, stage: Stage, position: tuple[int, int]) -> bool:
    """Make levels from the one below, which lies in the store."""
    y, x = stage.window(*position)
    below = tuple(slice(2 * axis.start, 2 * axis.stop) for axis in (y, x))

    def write() -> None:
        paths = {name: array_path(name, stage.first - 1, pyramid=True) for name in shared.names}
        arrays = opened(shared.place, paths)
        pixels = [np.asarray(arrays[name][(..., *below)]) for name in shared.names]
        for level in range(stage.first, stage.last + 1):
            pixels = _halved(pixels, shared)
            _store_level(pixels, shared, level, stage.window(*position, level))

    return _guarded(shared, _mark("", stage, position), stage.describe(*position), 0, write)


def _write_extra(
    block: NDArray[Any], shared: _Shared, variable: str, spans: tuple[tuple[int, ...], ...], block_id: tuple[int, ...]
) -> bool:
    starts = [sum(sizes[:i]) for sizes, i in zip(spans, block_id, strict=True)]
    where = tuple(slice(start, start + n) for start, n in zip(starts, block.shape, strict=True))

    def write() -> None:
        path = array_path(variable, 0, pyramid=shared.pyramid)
        _store(opened(shared.place, {variable: path})[variable], where, block)

    return _guarded(shared, "-".join([variable, *map(str, block_id)]), f"{variable}{block_id}", block.nbytes, write)


def _guarded(shared: _Shared, mark: str, where: str, size: int, write: Callable[[], None]) -> bool:
    """Run the writing of a window of `size` bytes, remember that it is done, and name it in errors."""
    label = shared.place.label
    try:
        shared.require()
        with metered("encode"):
            write()
        shared.place.mark(mark)
        shared.require()
    except WriteError as error:
        raise WriteError(f"{label}, {where}: {error}", **(error.__dict__ | {"window": where})) from error
    except OSError as error:
        raise disk_error(error, f"{label}, {where}", size) from error
    except S2CompositeError:
        raise
    except Exception as error:  # whatever a store raises
        raise WriteError(f"{label}, {where}: {type(error).__name__}: {error}", window=where, path=label) from error
    return True


def _halved(pixels: Sequence[NDArray[Any]], shared: _Shared) -> list[NDArray[Any]]:
    out = []
    for layer, method, nodata in zip(pixels, shared.methods, shared.nodata, strict=True):
        halved = halve(layer.reshape(-1, *layer.shape[-2:]), method, nodata)
        out.append(halved.reshape(*layer.shape[:-2], *halved.shape[-2:]))
    return out


def _store_level(pixels: Sequence[NDArray[Any]], shared: _Shared, level: int, window: tuple[slice, slice]) -> None:
    arrays = opened(shared.place, {name: array_path(name, level, pyramid=shared.pyramid) for name in shared.names})
    for name, layer in zip(shared.names, pixels, strict=True):
        _store(arrays[name], (..., *window), layer)


def _store(array: Any, where: tuple[Any, ...], values: NDArray[Any]) -> None:
    """Write a region and read it back."""
    array[where] = values
    back = np.asarray(array[where])
    if not np.array_equal(back, values, equal_nan=values.dtype.kind == "f"):
        raise WriteError(f"{array.path} reads back differently from what was written")
