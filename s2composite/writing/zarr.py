"""Zarr v3: every window writes its own shards; a store is complete and verified before it looks like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph
from distributed import Client
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.georeference import georeferenced
from s2composite.writing.building import Building, StoreOptions, begin_store, complete_store, plan_store
from s2composite.writing.execute import Work, current_client, run_work, work_of
from s2composite.writing.progress import progress_bar
from s2composite.writing.regions import Regions, mark_of, write_extra, write_overview, write_window
from s2composite.writing.stores import place_of, session_of
from s2composite.writing.window import Stage

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
