"""Files: several rasters written in one pass over the data, each complete and verified before it takes its name."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client
from numpy.typing import NDArray

from s2composite.scenes.storage import is_remote, join
from s2composite.writing.assemble import FileLayout, lay_out
from s2composite.writing.execute import current_client, run_on_worker, run_work, work_of, workers_see
from s2composite.writing.layers import Layer
from s2composite.writing.parts import ASSEMBLED, Parts
from s2composite.writing.periods import Period
from s2composite.writing.progress import progress_bar
from s2composite.writing.pyramid import Encoding, Source, WindowsDone, raster_tasks
from s2composite.writing.raster import Raster
from s2composite.writing.statistics import Statistics
from s2composite.writing.targets import assemble_file, assemble_object, is_http, put, take_name, target_of
from s2composite.writing.window import Stage, WindowIndex

__all__ = ["FilePlan", "Tables", "WriteJob", "Written", "assembling", "name_files", "write_files"]

Tables = Mapping[str, NDArray[Any]]
"""Small arrays that were computed in the same pass as the pixels, by name."""

_NAMED = 4
"""Files that a message lists individually."""


@dataclass(frozen=True, eq=False)
class FilePlan:
    """One file to write."""

    path: str
    """As given."""

    layers: tuple[Layer, ...]
    """In the order of its bands."""

    raster: Raster
    """Without its final name and place for parts."""

    period: Period
    """Period that it covers."""


@dataclass(frozen=True, eq=False)
class WriteJob:
    """One call."""

    plans: tuple[FilePlan, ...]
    """The files."""

    overwrite: bool
    """Replace what is there."""

    progress: bool
    """Show a bar."""

    aside: Mapping[str, da.Array] = field(default_factory=dict)
    """Small arrays ``(..., window_y, window_x)`` to compute in the same pass as the pixels: nothing is read again."""

    tags: Callable[[Tables], Mapping[str, str]] = lambda _: {}
    """Further tags of all files, made of these arrays."""

    digest: bool = False
    """Compute the files' checksums."""

    before_naming: Callable[[], None] = lambda: None
    """Called just before the first file takes its name, when everything before has succeeded."""


@dataclass(frozen=True, eq=False)
class Written:
    """A file that is complete, verified and has its name."""

    plan: FilePlan
    """The plan it was written from."""

    path: str
    """Absolute path or URL, with its signature if it has one."""

    size: int
    """Bytes."""

    sha256: str
    """Checksum in hexadecimal digits; empty if not requested."""

    statistics: tuple[Statistics, ...]
    """Of each band."""

    @property
    def label(self) -> str:
        """Return the path or URL as messages show it."""
        return replace(self.plan.raster, path=self.path).label


def write_files(job: WriteJob) -> tuple[tuple[Written, ...], Tables]:
    """Write all files of a job in one pass over the data; return them and the arrays computed on the way.

    Raises
    ------
    WriteError
        An output exists, cannot be written, or an encoder, worker or upload failed; names the window.
    """
    # Pixels that are in memory are encoded here: sending them to workers would take longer.
    client = current_client() if any(layer.lazy for plan in job.plans for layer in plan.layers) else None
    targets = [target_of(plan.path, overwrite=job.overwrite) for plan in job.plans]
    with ExitStack() as stack:
        parts = _place(targets[0], client, stack)
        rasters = [
            replace(plan.raster, path=target, token=f"{uuid.uuid4().hex[:12]}-{i}", parts=parts)
            for i, (plan, target) in enumerate(zip(job.plans, targets, strict=True))
        ]
        found, tables = _encode(job, rasters, client)
        more = job.tags(tables)
        rasters = [replace(raster, tags=tuple(sorted({**dict(raster.tags), **more}.items()))) for raster in rasters]
        layouts = [lay_out(raster, results) for raster, results in zip(rasters, found, strict=True)]
        sums = _finish(layouts, client, job)
    written = (
        Written(plan, layout.raster.path, layout.size, checksum, layout.statistics)
        for plan, layout, checksum in zip(job.plans, layouts, sums, strict=True)
    )
    return tuple(written), tables


def _place(target: str, client: Client | None, stack: ExitStack) -> Parts:
    """Return the place for parts, which is removed when the stack closes, whatever happens."""
    root = f"{target}.{uuid.uuid4().hex[:8]}.parts"
    if is_http(target):
        root = join(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2composite-")), "parts")
    parts = Parts(root)
    stack.callback(parts.clear)
    parts.create()
    return parts if workers_see(client, parts) else replace(parts, carried=True)


def _encode(
    job: WriteJob, rasters: Sequence[Raster], client: Client | None
) -> tuple[list[list[tuple[Stage, WindowIndex]]], Tables]:
    """Compute all layers of all files in one pass; return what each window of each file wrote, and the tables."""
    sources = [
        Source(tuple(layer.data for layer in plan.layers), raster)
        for plan, raster in zip(job.plans, rasters, strict=True)
    ]
    encodings = {encoding.done.name: encoding for encoding in raster_tasks(sources, job.aside)}
    with_windows = {name for encoding in encodings.values() for name in encoding.tables}
    alone = {array.name: (name, array) for name, array in map(_renamed, job.aside.items()) if name not in with_windows}
    tables = {name: np.empty(array.shape, array.dtype) for name, array in job.aside.items()}
    namers = {_namer(rasters, encoding): encoding.done for encoding in encodings.values()}
    namers |= {_table_namer(name): array for name, array in alone.values()}
    work = work_of(namers, whole=[encoding.packed for encoding in encodings.values()])
    found: list[list[tuple[Stage, WindowIndex]]] = [[] for _ in rasters]
    label = ", ".join(raster.label.rpartition("/")[2] for raster in rasters)
    with progress_bar(f"write {label}", len(work.windows), shown=job.progress) as advance:

        def take_in(encoding: Encoding, position: Sequence[int], result: WindowsDone) -> None:
            row, column = position
            for file, stage, index in zip(encoding.files, encoding.stages, result.indices, strict=True):
                found[file].append((stage, _stored(rasters[file].parts, index)))
            for name, block in result.tables.items():
                tables[name][..., row : row + 1, column : column + 1] = block

        def receive(key: tuple[Any, ...], result: Any) -> None:
            if key[0] in alone:
                name, array = alone[key[0]]
                tables[name][_place_of(array, key[1:])] = result
            else:
                take_in(encodings[key[0]], key[1:], result)
            advance()

        run_work(work, client, receive)
    return found, tables


def _namer(rasters: Sequence[Raster], encoding: Encoding) -> Callable[[tuple[int, ...]], str]:
    labels = [rasters[file].label for file in encoding.files]
    files = ", ".join(labels[:_NAMED]) + (f" and {len(labels) - _NAMED} more files" if len(labels) > _NAMED else "")
    return lambda position: f"{files}, {encoding.stages[0].describe(*position)}"


def _renamed(item: tuple[str, da.Array]) -> tuple[str, da.Array]:
    """Return an array under keys of its own: a failed write cancels them, and others may hold the original."""
    name, array = item
    return name, array.map_blocks(np.asarray, dtype=array.dtype, name=f"write-table-{name}-{uuid.uuid4().hex[:12]}")


def _table_namer(name: str) -> Callable[[tuple[int, ...]], str]:
    return lambda position: f"{name}, block {position}"


def _place_of(array: da.Array, position: Sequence[int]) -> tuple[slice, ...]:
    """Return where a block of an array lies in it."""
    ends = [list(accumulate(sizes)) for sizes in array.chunks]
    return tuple(slice(end[i] - sizes[i], end[i]) for end, sizes, i in zip(ends, array.chunks, position, strict=True))


def _stored(parts: Parts, index: WindowIndex) -> WindowIndex:
    """Store a part that a worker has handed back."""
    if not parts.carried:
        return index
    parts.write(index.part, index.data)
    return replace(index, data=b"")


def assembling(layouts: Sequence[FileLayout]) -> list[tuple[Callable[..., str], tuple[Any, ...]]]:
    """Return for each file the function that assembles and verifies it, and its arguments; workers can call it."""
    if is_remote(layouts[0].raster.path) and not is_http(layouts[0].raster.path):
        return [(assemble_object, (layout,)) for layout in layouts]
    return [(assemble_file, (layout, _assembled(layout.raster))) for layout in layouts]


def _assembled(raster: Raster) -> str:
    """Return where a file is put together until it takes its name."""
    return join(raster.parts.root, f"{raster.token}{ASSEMBLED}")


def name_files(rasters: Sequence[Raster], *, overwrite: bool) -> None:
    """Give assembled files their names; objects have them already.

    Raises
    ------
    WriteError
        Something else was written there meanwhile, or a server refuses.
    """
    for raster in rasters:
        if is_http(raster.path):
            put(_assembled(raster), raster.path)
        elif not is_remote(raster.path):
            take_name(_assembled(raster), raster.path, overwrite=overwrite)


def _finish(layouts: Sequence[FileLayout], client: Client | None, job: WriteJob) -> list[str]:
    """Assemble and verify all files, then give them their names; return their checksums."""
    there = None if layouts[0].raster.parts.carried else client
    objects = is_remote(layouts[0].raster.path) and not is_http(layouts[0].raster.path)
    if objects:
        job.before_naming()
    sums = [
        _call(there, layout.raster.label, function, *args, digest=job.digest)
        for layout, (function, args) in zip(layouts, assembling(layouts), strict=True)
    ]
    if not objects:
        job.before_naming()
    name_files([layout.raster for layout in layouts], overwrite=job.overwrite)
    return sums


def _call(client: Client | None, label: str, function: Any, *args: Any, digest: bool) -> str:
    if client is None:
        return str(function(*args, digest=digest))
    return str(run_on_worker(client, function, *args, digest=digest, label=label))
