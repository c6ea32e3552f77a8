"""The graph that encodes rasters and their overviews, its run on the current Dask client or in threads, and its stages.

Dask fuses chains only. The layers of a composite branch off one task and meet again where they are written; in between,
a scheduler may send every pixel to another worker, and it does. So what only one window needs becomes part of the task
that writes it.
"""

from __future__ import annotations

import html
import logging
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate, islice
from typing import Any, NoReturn

import dask
import dask.array as da
import numpy as np
from dask import threaded
from dask._task_spec import Alias, GraphNode, Task
from dask.array.core import normalize_chunks
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.core import flatten, reverse_dict
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from distributed import Client, as_completed
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from s2composite.errors import S2CompositeError, WriteError
from s2composite.writing.staging import Parts
from s2composite.writing.tiles import (
    Chunks,
    FilePart,
    Raster,
    Stage,
    WindowIndex,
    WindowResult,
    encode_files,
    encode_window,
    load_record,
    record_name,
    save_record,
)

__all__ = [
    "Encoding",
    "WriteGraph",
    "aligned_chunks",
    "array_windows",
    "block_slices",
    "current_client",
    "fused",
    "graph_of",
    "overview_calls",
    "plan_stages",
    "progress_bar",
    "raster_stages",
    "raster_tasks",
    "recorded_windows",
    "run_graph",
    "run_on_worker",
    "window_size",
    "workers_see",
]

# --- stages: which windows make which levels -------------------------------------------------------------------------

# bytes of a window that is made by rechunking, such as 2048 x 2048 pixels of three bands in 8 bits
_WINDOW_BYTES = 16 << 20

# bytes of a window beyond which a chunk is divided, so that memory stays bounded and all workers have work
_LARGEST_WINDOW = 64 << 20


def window_size(block: int, pixel_bytes: int) -> int:
    """Return the side of windows that hold about `_WINDOW_BYTES`: a tile's, doubled as often as fits."""
    size = block
    while (2 * size) ** 2 * pixel_bytes <= _WINDOW_BYTES:
        size *= 2
    return size


def _inner_edges(chunks: Chunks) -> list[int]:
    return [edge for sizes in chunks for edge in list(accumulate(sizes))[:-1]]


def aligned_chunks(chunks: Chunks, block: int, pixel_bytes: int) -> Chunks:
    """Return the chunks as they are if their inner edges are edges of tiles and none is huge, else regular ones."""
    largest = max(chunks[0]) * max(chunks[1]) * pixel_bytes
    if all(edge % block == 0 for edge in _inner_edges(chunks)) and largest <= _LARGEST_WINDOW:
        return chunks
    regular: Chunks = normalize_chunks(window_size(block, pixel_bytes), (sum(chunks[0]), sum(chunks[1])))
    return regular


def plan_stages(first: Chunks, block: int, levels: Sequence[tuple[int, int]], pixel_bytes: int) -> tuple[Stage, ...]:
    """Return the stages that make all `levels` (rows and columns of each) from chunks with their edges on tiles."""
    out: list[Stage] = []
    level, chunks = 0, first
    while level < len(levels):
        last = len(levels) - 1
        if inner := _inner_edges(chunks):  # how often tiles can be doubled without crossing an edge of a window
            common = int(np.gcd.reduce(inner)) // block
            last = min(level + (common & -common).bit_length() - 1, last)
        out.append(Stage(len(out), level, last, chunks))
        level = last + 1
        if level < len(levels):
            chunks = normalize_chunks(window_size(block, pixel_bytes), levels[level])
    return tuple(out)


def raster_stages(raster: Raster, windows: Chunks) -> tuple[Stage, ...]:
    """Return the stages of a file that is made of these windows."""
    return plan_stages(windows, raster.block, raster.levels, len(raster.bands) * raster.dtype.itemsize)


# --- stages from records: what a durable product does when all windows are there -------------------------------------


def overview_calls(
    rasters: Sequence[Raster], stages: Sequence[Sequence[Stage]], number: int
) -> Iterator[tuple[str, Callable[..., None], tuple[Any, ...]]]:
    """Yield name, function and arguments of calls that make the windows of a later stage; any may be called twice."""
    for file, (raster, own) in enumerate(zip(rasters, stages, strict=True)):
        if number < len(own):
            below, stage = own[number - 1 : number + 1]
            for row, column in stage.positions:
                arguments = (raster, file, below, stage, (row, column))
                yield f"make-overview-{file}-{number}-{row}-{column}", make_overview, arguments


def make_overview(raster: Raster, file: int, below: Stage, stage: Stage, position: tuple[int, int]) -> None:
    """Encode a window of a later stage from what the windows below it have left, and keep its record."""
    window = stage.window(*position)
    pixels = np.empty((len(raster.bands), *(axis.stop - axis.start for axis in window)), raster.dtype)
    for at in below.positions:
        top = below.window(*at, stage.first)
        shared = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(window, top, strict=True)]
        if all(axis.start < axis.stop for axis in shared):
            kept = _recorded_result(raster.parts, file, below, at).top
            assert kept is not None
            pixels[:, *_relative(shared, window)] = kept[:, *_relative(shared, top)]
    result = encode_window([pixels], raster, stage, position)
    save_record(raster.parts, record_name(stage, position, file), [result])


def _relative(part: Sequence[slice], whole: Sequence[slice]) -> list[slice]:
    return [slice(a.start - b.start, a.stop - b.start) for a, b in zip(part, whole, strict=True)]


def _recorded_result(parts: Parts, file: int, stage: Stage, position: tuple[int, int]) -> WindowResult:
    if stage.number == 0:
        return load_record(parts, record_name(stage, position))[0][file]
    return load_record(parts, record_name(stage, position, file))[0][0]


def recorded_windows(
    rasters: Sequence[Raster], stages: Sequence[Sequence[Stage]]
) -> tuple[list[list[tuple[Stage, WindowIndex]]], dict[str, NDArray[Any]]]:
    """Return what each window of each file has written, and the tables that came with the windows, from all records."""
    parts, first = rasters[0].parts, stages[0][0]
    results: list[list[tuple[Stage, WindowIndex]]] = [[] for _ in rasters]
    tables: dict[str, NDArray[Any]] = {}
    for row, column in first.positions:
        of_files, blocks = load_record(parts, record_name(first, (row, column)))
        for own, result in zip(results, of_files, strict=True):
            own.append((first, result.index))
        for name, block in blocks.items():
            shape = (*block.shape[:-2], len(first.chunks[0]), len(first.chunks[1]))
            tables.setdefault(name, np.zeros(shape, block.dtype))[..., row, column] = block[..., 0, 0]
    for file, (own, later) in enumerate(zip(results, stages, strict=True)):
        for stage in later[1:]:
            own += [(stage, _recorded_result(parts, file, stage, at).index) for at in stage.positions]
    return results, tables


# --- the graph: what makes one window becomes one task ---------------------------------------------------------------


def array_windows(layer: da.Array, chunks: Chunks) -> da.Array:
    """Return a layer in chunks of windows, with all its bands."""
    wanted = (*((n,) for n in layer.shape[:-2]), *chunks)
    return layer if layer.chunks == wanted else layer.rechunk(wanted)


_Encoded = tuple[tuple[WindowResult, ...], dict[str, NDArray[Any]]]  # results of files, blocks of tables by name


@dataclass(frozen=True, eq=False)
class Encoding:
    """Windows of one or several files, each made by one task."""

    files: tuple[int, ...]  # which of the files
    stages: tuple[Stage, ...]  # for each file; their windows are the same
    tables: tuple[str, ...]  # names of small arrays that come with the windows
    encoded: da.Array  # ``(y, x)``: for each window what the task made, which stays there
    done: da.Array  # ``(y, x)``: for each window the indices of files and blocks of tables, all that reaches the client


def raster_tasks(
    rasters: Sequence[Raster], layers: Sequence[Sequence[da.Array]], tables: Mapping[str, da.Array]
) -> list[Encoding]:
    """Return the work of encoding files, lazily, from the layers ``(b, y, x)`` or ``(y, x)`` of each.

    One task makes a window of all files whose pixels have a common origin: it reads, reduces and encodes them, so that
    a window is never the result of a task. Of `tables`, small arrays ``(..., window_y, window_x)`` by name, those with
    one value per window that come from the same tasks as files are computed with them; the others are left out.
    """
    left = dict(tables)
    out = []
    for windows, origin, files in _common_windows(rasters, layers):
        ones = tuple((1,) * len(sizes) for sizes in windows)
        own = {n: t for n, t in left.items() if t.chunks[-2:] == ones and not origin.isdisjoint(t.dask.layers)}
        left = {name: table for name, table in left.items() if name not in own}
        stages = [raster_stages(rasters[file], windows) for file in files]
        data = [[array_windows(layer, windows) for layer in layers[file]] for file in files]
        parts = [FilePart(rasters[file], first) for file, (first, *_) in zip(files, stages, strict=True)]
        out.append(together := _encoding(files, parts, data, own))
        for number, (file, (first, *later)) in enumerate(zip(files, stages, strict=True)):
            encoded, raster, below = together.encoded, rasters[file], first
            for stage in later:
                # Of the first stage's results, which hold several files, the one of this file.
                kept = _kept_pixels(encoded, number if below is first else 0, raster, below)
                data = [[array_windows(kept, stage.chunks)]]
                out.append(alone := _encoding([file], [FilePart(raster, stage)], data, {}))
                encoded, below = alone.encoded, stage
    return out


def _common_windows(
    rasters: Sequence[Raster], layers: Sequence[Sequence[da.Array]]
) -> list[tuple[Chunks, set[str], list[int]]]:
    """Return groups of files whose windows are the same and made of the same tasks: windows, Dask layers, files."""
    groups: list[tuple[Chunks, set[str], list[int]]] = []
    for file, (raster, own) in enumerate(zip(rasters, layers, strict=True)):
        windows = aligned_chunks(own[0].chunks[-2:], raster.block, len(raster.bands) * raster.dtype.itemsize)
        origin, files = {name for layer in own for name in layer.dask.layers}, [file]
        for group in [group for group in groups if group[0] == windows and group[1] & origin]:
            groups.remove(group)
            origin, files = group[1] | origin, sorted(group[2] + files)
        groups.append((windows, origin, files))
    return sorted(groups, key=lambda group: group[2])


def _encoding(
    files: Sequence[int],
    parts: Sequence[FilePart],
    data: Sequence[Sequence[da.Array]],
    tables: Mapping[str, da.Array],
) -> Encoding:
    """Return the work of one stage: `data` are the layers of each file in chunks of the stage's windows."""
    stage, none = parts[0].stage, np.empty((0, 0), object)
    token = f"{parts[0].raster.token}-{stage.number}"
    arrays = [layer for layers in data for layer in layers]
    arrays += [array_windows(table, (table.chunks[-2], table.chunks[-1])) for table in tables.values()]
    encoded = da.map_blocks(
        _encode_blocks,
        *arrays,
        parts=delayed(tuple(parts), name=f"send-file-plan-{token}", pure=True, traverse=False),
        layers=tuple(map(len, data)),
        tables=tuple(tables),
        drop_axis=list(range(max(array.ndim for array in arrays) - 2)),
        chunks=stage.chunks,
        dtype=object,
        meta=none,
        name=f"write-{'overview' if stage.number else 'window'}-{token}",
    )
    done = da.map_blocks(_report, encoded, dtype=object, meta=none, name=f"report-window-{token}")
    return Encoding(tuple(files), tuple(part.stage for part in parts), tuple(tables), encoded, done)


def _encode_blocks(
    *blocks: NDArray[Any],
    parts: Sequence[FilePart],
    layers: Sequence[int],
    tables: Sequence[str],
    block_id: tuple[int, int],
) -> _Encoded:
    """Encode a window: the blocks are those of so many layers for each file, then those of the tables."""
    rest = iter(blocks)
    results = encode_files((list(islice(rest, n)) for n in layers), parts, block_id)
    return results, dict(zip(tables, rest, strict=True))


def _report(encoded: _Encoded) -> tuple[tuple[WindowIndex, ...], dict[str, NDArray[Any]]]:
    return tuple(result.index for result in encoded[0]), encoded[1]


def _kept_pixels(encoded: da.Array, number: int, raster: Raster, stage: Stage) -> da.Array:
    """Return the pixels that the windows of a stage keep for the next one."""
    scale = 1 << (stage.last + 1 - stage.first)
    rows, columns = (tuple(-(-n // scale) for n in sizes) for sizes in stage.chunks)
    return da.map_blocks(
        _top_pixels,
        encoded,
        number=number,
        new_axis=[0],
        chunks=((len(raster.bands),), rows, columns),
        dtype=raster.dtype,
        meta=np.empty((0, 0, 0), raster.dtype),
        name=f"take-overview-{raster.token}-{stage.last + 1}",
    )


def _top_pixels(encoded: _Encoded, number: int) -> NDArray[Any]:
    top = encoded[0][number].top
    assert top is not None
    return top


_Graph = Mapping[Any, GraphNode]


@dataclass(frozen=True, eq=False)
class WriteGraph:
    """Tasks whose results are wanted, and what they depend on."""

    graph: _Graph
    windows: Mapping[Any, str]  # what each wanted task computes, by its key, for messages


def graph_of(
    arrays: Sequence[tuple[da.Array, str, Stage | None]],
    wanted: Callable[[Any], bool] = lambda _: True,
    whole: Sequence[da.Array] = (),
) -> WriteGraph:
    """Return the work of computing the chunks of arrays, each with a label, and the stage whose windows they are.

    The graphs are optimized together, so that tasks which several arrays need are run once. What only one task needs
    becomes part of it, also where it is a task of the intermediate arrays `whole`. `wanted` says whether the chunk with
    a key is to be computed.
    """
    windows = {
        key: f"{label}, {stage.describe(*key[1:]) if stage else f'block {key[1:]}'}"
        for array, label, stage in arrays
        for key in flatten(array.__dask_keys__())
        if wanted(key)
    }
    graph = HighLevelGraph.merge(*(array.__dask_graph__() for array, _, _ in arrays))
    heads = [key for array in whole for key in flatten(array.__dask_keys__())]
    optimized = da.Array.__dask_optimize__(graph, list(windows))
    return WriteGraph(fused(optimized, [*heads, *windows], windows), windows)


def block_slices(chunks: Sequence[Sequence[int]], position: Sequence[int]) -> tuple[slice, ...]:
    """Return the part of an array that the chunk at a position is."""
    starts = [sum(sizes[:i]) for sizes, i in zip(chunks, position, strict=True)]
    return tuple(slice(start, start + sizes[i]) for start, sizes, i in zip(starts, chunks, position, strict=True))


def fused(graph: _Graph, heads: Iterable[Any], kept: Collection[Any]) -> _Graph:
    """Return a graph in which the tasks `heads` contain the tasks that only they need, if these come from one task.

    Many tasks that meet in one (the partial sums of a mean) stay separate: they can run in parallel, and together might
    not fit into memory. The graph is as `dask.array.optimize` returns it; where Dask's own fusion is switched off,
    nothing is fused here either. Results of the keys `kept` are wanted; heads that are not in the graph are passed
    over.
    """
    if dask.config.get("optimization.fuse.active") is False:
        return graph
    users = reverse_dict({key: node.dependencies for key, node in graph.items()})
    out = dict(graph)
    for head in heads:
        if head not in out:
            continue
        inside, waiting = {head}, list(out[head].dependencies)
        while waiting:
            key = waiting.pop()
            # Data that many tasks need, and results already on the cluster, are not tasks.
            if key in inside or key in kept or not isinstance(out.get(key), (Task, Alias)):
                continue
            if users[key] <= inside:  # it serves this head alone
                inside.add(key)
                waiting.extend(out[key].dependencies)
        inner = [key for branch in _branches(out, inside - {head}) for key in branch]
        if inner:
            out[head] = out[head].fuse(*(out.pop(key) for key in inner), out[head], key=head)
    return out


def _branches(graph: _Graph, keys: set[Any]) -> list[set[Any]]:
    """Return for each connected part of some tasks what follows from its last common source on, with that."""
    branches: list[set[Any]] = []
    for key in keys:
        near = {key} | (graph[key].dependencies & keys)
        touched = [branch for branch in branches if branch & near]
        branches = [branch for branch in branches if not branch & near] + [near.union(*touched)]
    out = []
    for branch in branches:
        left = branch
        while len(first := {key for key in left if not graph[key].dependencies & left}) > 1:
            left = left - first
        if left:
            out.append(left)
    return out


# --- its run ---------------------------------------------------------------------------------------------------------

_PATIENCE = 30  # seconds to wait for tasks that are running when another has failed


def current_client() -> Client | None:
    """Return the client that Dask would compute with here, None for threads or processes of its own."""
    owner = getattr(get_scheduler(), "__self__", None)
    return owner if isinstance(owner, Client) else None


def workers_see(client: Client | None, parts: Parts) -> bool:
    """Return whether all workers see an existing place for parts."""
    if client is None or parts.remote:
        return True
    answers = client.run(parts.visible)
    # Without workers (an adaptive cluster at rest) the first one that starts answers for all.
    if answers:
        return all(answers.values())
    return bool(client.submit(parts.visible, key=f"check-directory-{uuid.uuid4().hex}").result())


def run_graph(work: WriteGraph, client: Client | None, receive: Callable[[Any, Any], None]) -> None:
    """Run tasks and hand each result to `receive` with the task's key; foreign errors become WriteErrors of windows."""
    if not work.windows:
        return
    if client is None:
        _run_here(work, receive)
    else:
        _run_on_cluster(work, client, receive)


def _run_here(work: WriteGraph, receive: Callable[[Any, Any], None]) -> None:
    def finished(key: Any, result: Any, *_: Any) -> None:
        if key in work.windows:
            receive(key, result)

    chosen = get_scheduler()
    try:
        with Callback(posttask=finished):
            if chosen not in (None, threaded.get) and not isinstance(getattr(chosen, "__self__", None), Client):
                chosen(work.graph, list(work.windows))
                return
            # A pool of its own, so that when a task fails all others have ended before the clean-up.
            with ThreadPoolExecutor(dask.config.get("num_workers", None) or CPU_COUNT) as pool:
                threaded.get(work.graph, list(work.windows), pool=dask.config.get("pool", None) or pool)
    except S2CompositeError:
        raise
    except Exception as error:  # whatever a task raises
        # Only Dask's own frame knows the key of the task that raised.
        frames = [
            frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "execute_task"
        ]
        raise _failure(work, error, frames[0].f_locals.get("key") if frames else None) from error


def _run_on_cluster(work: WriteGraph, client: Client, receive: Callable[[Any, Any], None]) -> None:
    futures = client.get(work.graph, list(work.windows), sync=False)
    try:
        completed = as_completed(futures, raise_errors=False)
        for future in completed:
            if future.status in ("lost", "pending"):
                # The worker that held the result has died since; the scheduler computes it again.
                completed.add(future)
                continue
            if future.status != "finished":
                _raise_failure(future, work, client)
            receive(future.key, future.result())
            future.release()
    except BaseException:
        with suppress(Exception):  # the client may be gone, and then that is the error that matters
            client.cancel(futures, force=True)
            # Cancelling does not stop a task that is running.
            keys = {key for key in work.graph if "write" in str(key)}

            def at_work(dask_worker: Any) -> bool:
                return any(task.key in keys for task in dask_worker.state.all_running_tasks)

            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline and any(client.run(at_work, on_error="ignore").values()):
                time.sleep(0.05)
        raise


def _raise_failure(future: Any, work: WriteGraph, client: Client) -> NoReturn:
    """Raise why a task gave no result."""
    # The failure of another window may be seen first; this task is then lost with the worker that held it.
    died = RuntimeError(f"the task was {future.status}: the worker that ran it died")
    error = future.exception() if future.status == "error" else died
    if isinstance(error, S2CompositeError):
        raise error
    key = future.key

    def blamed(dask_scheduler: Any) -> Any:
        return dask_scheduler.tasks[key].exception_blame.key

    with suppress(Exception):  # the scheduler may have forgotten it
        key = client.run_on_scheduler(blamed)
    raise _failure(work, error, key) from error


def _failure(work: WriteGraph, error: BaseException, key: Any) -> WriteError:
    """Return a WriteError for a foreign error in the task with a key; it names the nearest windows that need it."""
    users = reverse_dict({key: node.dependencies for key, node in work.graph.items()})
    windows: list[str] = []
    reached = {key}
    while reached and not windows:
        windows = sorted(work.windows[k] for k in reached if k in work.windows)
        reached = {user for k in reached for user in users.get(k, ())}
    where = " or ".join(windows[:4]) or "a window"
    return WriteError(f"{where}: {type(error).__name__}: {error}", window=where)


def run_on_worker(client: Client, function: Callable[[], Any], label: str) -> Any:
    """Assemble a file on a worker; foreign errors, and a worker's death, become a WriteError."""
    future = client.submit(function, pure=False, key=f"assemble-file-{label}-{uuid.uuid4().hex[:8]}")
    try:
        return future.result()
    except S2CompositeError:
        raise
    except Exception as error:  # whatever the function raises
        raise WriteError(f"assembling {label}: {type(error).__name__}: {error}") from error
    finally:
        with suppress(Exception):  # the client may be gone
            client.cancel([future], force=True)


# --- how far it is ---------------------------------------------------------------------------------------------------

_LINE_EVERY = 0.5  # seconds between two updates of the line in a notebook

_LOOK_BACK = 3600.0  # seconds over which the rate is averaged for the time left: a window of a big job may take minutes


@contextmanager
def progress_bar(label: str, total: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show a bar for `total` steps; yields what to call after each."""
    console = Console(stderr=True)
    if not shown or logging.getLogger("s2composite").isEnabledFor(logging.INFO):
        yield lambda: None
    elif console.is_jupyter:  # rich's bar there needs ipywidgets, and swallows what a loop over results prints
        with _notebook_line(label, total) as advance:
            yield advance
    elif console.is_terminal:
        words = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        columns = (*words, _RateColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, speed_estimate_period=_LOOK_BACK) as progress:
            task = progress.add_task(label, total=total)
            yield lambda: progress.advance(task)
    else:
        yield lambda: None


def pace(done: float, seconds: float) -> str:
    """Return a rate as people say it.

    >>> pace(50, 10), pace(3, 60), pace(2, 3600), pace(0, 5)
    ('5.0/s', '3.0/min', '2.0/h', '')
    """
    if not done or not seconds:
        return ""
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        rate = done / seconds * length
        if rate >= 1 or unit == "h":
            break
    return f"{rate:.1f}/{unit}"


class _RateColumn(ProgressColumn):
    """The rate since the beginning."""

    def render(self, task: ProgressTask) -> Text:
        """Return the rate of a task."""
        return Text(pace(task.completed, task.elapsed or 0.0), "progress.data.speed")


@contextmanager
def _notebook_line(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar and a line that a notebook writes over again, also where others print meanwhile."""
    from IPython.display import display  # noqa: PLC0415 - there is one where this runs

    started = updated = time.monotonic()
    done = 0

    def shown(*, finished: bool = False) -> dict[str, str]:
        seconds = time.monotonic() - started
        words = [f"{done}/{total}", pace(done, seconds)]
        if finished:
            words.append(f"in {timedelta(seconds=round(seconds))}")
        elif done:
            words.append(f"{timedelta(seconds=round(seconds / done * (total - done)))} left")
        text = f"{label}: {', '.join(filter(None, words))}"
        bar = f'<progress value="{done}" max="{total}" style="width: 20em; vertical-align: middle"></progress>'
        return {"text/plain": text, "text/html": f"<div>{bar} {html.escape(text)}</div>"}

    handle = display(shown(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def advance() -> None:
        nonlocal done, updated
        done += 1
        if time.monotonic() - updated >= _LINE_EVERY:
            updated = time.monotonic()
            handle.update(shown(), raw=True)

    try:
        yield advance
    finally:
        handle.update(shown(finished=True), raw=True)
