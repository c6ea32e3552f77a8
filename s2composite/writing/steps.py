"""Writing in steps: windows as tasks of a graph, overviews and files as calls; their run on a cluster or in threads.

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
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from itertools import accumulate, islice
from typing import Any

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

from s2composite.clusters.submit import ClusterCall
from s2composite.cube.graph import Chunks
from s2composite.errors import S2CompositeError, WriteError
from s2composite.reading.grid import intersection, within
from s2composite.writing.publish import in_order
from s2composite.writing.staging import Parts
from s2composite.writing.tiles import (
    Raster,
    Stage,
    StagedFile,
    WindowIndex,
    encode_files,
    load_record,
    recorded_index,
)

__all__ = [
    "Graph",
    "aligned_chunks",
    "current_client",
    "fused",
    "graph_of",
    "overview_calls",
    "overview_steps",
    "plan_stages",
    "progress_bar",
    "raster_stages",
    "recorded_windows",
    "run_calls",
    "run_graph",
    "tables_with",
    "window_array",
    "window_size",
    "window_tasks",
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


# --- windows: what makes one becomes one task of a graph --------------------------------------------------------------


def window_array(
    function: Callable[..., Any],
    name: str,
    windows: Chunks,
    layers: Sequence[da.Array],
    tables: Mapping[str, da.Array],
    **more: Any,
) -> da.Array:
    """Return an array ``(y, x)`` whose tasks call a function with a window of each layer and each table.

    It also takes the names of the tables (see `tables_with`), the window's `block_id` and what `more` says.
    """
    ones = (1,) * len(windows[0]), (1,) * len(windows[1])
    data = []
    for layer, spatial in [*((layer, windows) for layer in layers), *((table, ones) for table in tables.values())]:
        chunks = (*((n,) for n in layer.shape[:-2]), *spatial)
        data.append(layer if layer.chunks == chunks else layer.rechunk(chunks))
    return da.map_blocks(
        function,
        *data,
        tables=tuple(tables),
        drop_axis=list(range(max(array.ndim for array in data) - 2)),
        chunks=windows,
        dtype=object,
        meta=np.empty((0, 0), object),
        name=name,
        **more,
    )


def tables_with(windows: Chunks, origin: AbstractSet[str], tables: Mapping[str, da.Array]) -> dict[str, da.Array]:
    """Return the tables ``(..., window_y, window_x)`` with one value per window that come from some layers of a graph.

    They are computed by the tasks that make the windows: else these would be tasks of their own, as others need them.
    """
    ones = (1,) * len(windows[0]), (1,) * len(windows[1])
    return {n: t for n, t in tables.items() if t.chunks[-2:] == ones and not origin.isdisjoint(t.dask.layers)}


def window_tasks(
    rasters: Sequence[Raster],
    layers: Sequence[Sequence[da.Array]],
    tables: Mapping[str, da.Array],
    *,
    carry: bool = False,
) -> tuple[tuple[StagedFile, ...], list[tuple[da.Array, str, Stage | None]], dict[str, da.Array]]:
    """Return files in stages, and the work of encoding their windows from the layers, ``(b, y, x)`` or ``(y, x)``.

    One task makes a window of all files whose pixels have a common origin: it reads, reduces and encodes them, so that
    a window is never the result of a task. Its result is what `encode_files` carries. Of `tables`, small arrays
    ``(..., window_y, window_x)`` by name, those with one value per window that come from the same tasks as files are
    noted with them; the others are returned.
    """
    left, files, work = dict(tables), list[StagedFile](), list[tuple[da.Array, str, Stage | None]]()
    groups: list[tuple[Chunks, set[str], list[int]]] = []  # windows, Dask layers and numbers of files made together
    for number, (raster, data) in enumerate(zip(rasters, layers, strict=True)):
        windows = aligned_chunks(data[0].chunks[-2:], raster.block, len(raster.bands) * raster.dtype.itemsize)
        origin, numbers = {name for layer in data for name in layer.dask.layers}, [number]
        for group in [group for group in groups if group[0] == windows and group[1] & origin]:
            groups.remove(group)
            origin, numbers = group[1] | origin, sorted(group[2] + numbers)
        groups.append((windows, origin, numbers))
    for windows, origin, numbers in sorted(groups, key=lambda group: group[2]):
        own = tables_with(windows, origin, left)
        left = {name: table for name, table in left.items() if name not in own}
        records = "all" if len(groups) == 1 else str(numbers[0])
        some = tuple(StagedFile(n, rasters[n], raster_stages(rasters[n], windows), records) for n in numbers)
        files += some
        token = some[0].raster.token
        written = window_array(
            _encode_blocks,
            f"write-window-{token}-0",
            windows,
            [layer for n in numbers for layer in layers[n]],
            own,
            files=delayed(some, name=f"send-file-plan-{token}", pure=True, traverse=False),
            counts=tuple(len(layers[n]) for n in numbers),
            carry=carry,
        )
        labels = [file.raster.label for file in some]
        shown = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more files" if len(labels) > 4 else "")
        work.append((written, shown, some[0].stages[0]))
    return tuple(sorted(files, key=lambda file: file.number)), work, left


def _encode_blocks(
    *blocks: NDArray[Any],
    files: Sequence[StagedFile],
    counts: Sequence[int],
    tables: Sequence[str],
    carry: bool,
    block_id: tuple[int, int],
) -> dict[str, bytes]:
    """Encode a window: the blocks are those of so many layers for each file, then those of the tables."""
    rest = iter(blocks)
    own = [list(islice(rest, n)) for n in counts]
    return encode_files(files, own, 0, block_id, dict(zip(tables, rest, strict=True)), carry=carry)


# --- overviews: calls that work from the records of the stage before -------------------------------------------------


def overview_calls(
    stage: Stage, label: str, token: str, function: Callable[..., None], *arguments: Any
) -> list[ClusterCall]:
    """Return the calls of a function that make the windows of a later stage; the last argument is the position."""
    return [
        ClusterCall(
            f"write-overview-{token}-{stage.number}-{row}-{column}",
            function,
            (*arguments, (row, column)),
            f"{label}, {stage.describe(row, column)}",
        )
        for row, column in stage.positions
    ]


def overview_steps(files: Sequence[StagedFile]) -> Iterator[list[ClusterCall]]:
    """Yield for each later stage the calls that make its windows; any may be made twice."""
    for number in range(1, max(len(file.stages) for file in files)):
        yield [
            call
            for file in files
            if number < len(file.stages)
            for call in overview_calls(
                file.stages[number], file.raster.label, file.raster.token, make_overview, file, number
            )
        ]


def make_overview(file: StagedFile, number: int, position: tuple[int, int]) -> None:
    """Encode a window of a later stage from what the windows below it have left, and keep its record."""
    raster, (below, stage) = file.raster, file.stages[number - 1 : number + 1]
    window = stage.window(*position)
    pixels = np.empty((len(raster.bands), *(axis.stop - axis.start for axis in window)), raster.dtype)
    for at in below.positions:
        top = below.window(*at, stage.first)
        shared = intersection(window, top)
        if all(axis.start < axis.stop for axis in shared):
            kept = load_record(raster.parts, file.record(below.number, at))[f"top_{file.number}"]
            pixels[:, *within(window, shared)] = kept[:, *within(top, shared)]
    encode_files([file], [[pixels]], number, position)


def recorded_windows(
    files: Sequence[StagedFile],
) -> tuple[list[list[tuple[Stage, WindowIndex]]], dict[str, NDArray[Any]]]:
    """Return what each window of each file has written, and the tables that came with the windows, from all records."""
    parts = files[0].raster.parts
    records = {file.record(n, at): (n, at) for file in files for n, s in enumerate(file.stages) for at in s.positions}
    results: list[list[tuple[Stage, WindowIndex]]] = [[] for _ in files]
    tables: dict[str, NDArray[Any]] = {}
    loaded = in_order(lambda name: load_record(parts, name), records)
    for (number, (row, column)), record in zip(records.values(), loaded, strict=True):
        of_files = [int(key.removeprefix("name_")) for key in record if key.startswith("name_")]
        for file in of_files:
            results[file].append((files[file].stages[number], recorded_index(record, file)))
        for name in (key for key in record if key.startswith("table_")):
            block, windows = record[name], files[of_files[0]].stages[0].chunks
            shape = (*block.shape[:-2], len(windows[0]), len(windows[1]))
            table = tables.setdefault(name.removeprefix("table_"), np.zeros(shape, block.dtype))
            table[..., row, column] = block[..., 0, 0]
    return results, tables


# --- graphs ----------------------------------------------------------------------------------------------------------


Graph = Mapping[Any, GraphNode]


def graph_of(
    arrays: Sequence[tuple[da.Array, str, Stage | None]], wanted: Callable[[Any], bool] = lambda _: True
) -> tuple[Graph, dict[Any, str]]:
    """Return the work of computing the chunks of arrays, each with a label, and the stage whose windows they are.

    The graphs are optimized together, so that tasks which several arrays need are run once. What only one task needs
    becomes part of it. `wanted` says whether the chunk with a key is to be computed. Returned, too, are the keys of the
    wanted tasks, each with what it computes, for messages.
    """
    windows = {
        key: f"{label}, {stage.describe(*key[1:]) if stage else f'block {key[1:]}'}"
        for array, label, stage in arrays
        for key in flatten(array.__dask_keys__())
        if wanted(key)
    }
    graph = HighLevelGraph.merge(*(array.__dask_graph__() for array, _, _ in arrays))
    optimized = da.Array.__dask_optimize__(graph, list(windows))
    return fused(optimized, windows, windows), windows


def fused(graph: Graph, heads: Iterable[Any], kept: Collection[Any]) -> Graph:
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


def _branches(graph: Graph, keys: set[Any]) -> list[set[Any]]:
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


def run_graph(
    graph: Graph, windows: Mapping[Any, str], client: Client | None, receive: Callable[[Any, Any], None]
) -> None:
    """Run the tasks of `graph_of` and hand each result to `receive` with its key; foreign errors become WriteErrors."""
    if not windows:
        return
    if client is not None:
        _run_on_cluster(graph, windows, client, receive)
        return

    def finished(key: Any, result: Any, *_: Any) -> None:
        if key in windows:
            receive(key, result)

    chosen = get_scheduler()
    try:
        with Callback(posttask=finished):
            if chosen not in (None, threaded.get) and not isinstance(getattr(chosen, "__self__", None), Client):
                chosen(graph, list(windows))
                return
            # A pool of its own, so that when a task fails all others have ended before the clean-up.
            with ThreadPoolExecutor(dask.config.get("num_workers", None) or CPU_COUNT) as pool:
                threaded.get(graph, list(windows), pool=dask.config.get("pool", None) or pool)
    except S2CompositeError:
        raise
    except Exception as error:  # whatever a task raises
        # Only Dask's own frame knows the key of the task that raised.
        frames = [
            frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "execute_task"
        ]
        raise _failure(graph, windows, error, frames[0].f_locals.get("key") if frames else None) from error


def _run_on_cluster(
    graph: Graph, windows: Mapping[Any, str], client: Client, receive: Callable[[Any, Any], None]
) -> None:
    futures = client.get(graph, list(windows), sync=False)

    def give_up() -> None:
        with suppress(Exception):  # the client may be gone, and then that is the error that matters
            client.cancel(futures, force=True)
            # Cancelling does not stop a task that is running.
            keys = {key for key in graph if "write" in str(key)}

            def at_work(dask_worker: Any) -> bool:
                return any(task.key in keys for task in dask_worker.state.all_running_tasks)

            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline and any(client.run(at_work, on_error="ignore").values()):
                time.sleep(0.05)

    with ExitStack() as undo:
        undo.callback(give_up)
        completed = as_completed(futures, raise_errors=False)
        for future in completed:
            if future.status in ("lost", "pending"):
                # The worker that held the result has died since; the scheduler computes it again.
                completed.add(future)
                continue
            if future.status != "finished":
                # The failure of another window may be seen first; this task is then lost with the worker that held it.
                died = RuntimeError(f"the task was {future.status}: the worker that ran it died")
                error = future.exception() if future.status == "error" else died
                if isinstance(error, S2CompositeError):
                    raise error
                raise _failure({}, windows, error, future.key) from error
            receive(future.key, future.result())
            future.release()
        undo.pop_all()


def _failure(graph: Graph, windows: Mapping[Any, str], error: BaseException, key: Any) -> WriteError:
    """Return a WriteError for a foreign error in the task with a key; it names the nearest windows that need it."""
    users = reverse_dict({key: node.dependencies for key, node in graph.items()})
    reached, named = {key}, list[str]()
    while reached and not named:
        named = sorted(windows[k] for k in reached if k in windows)
        reached = {user for k in reached for user in users.get(k, ())}
    where = " or ".join(named[:4]) or "a window"
    return WriteError(f"{where}: {type(error).__name__}: {error}", window=where)


def run_calls(
    calls: Iterable[ClusterCall], client: Client | None, advance: Callable[[], None] = lambda: None
) -> list[Any]:
    """Make calls as `run_graph` runs tasks, and return their results; `about` says in messages what each makes."""
    calls, results = list(calls), dict[str, Any]()

    def receive(name: str, result: Any) -> None:
        results[name] = result
        advance()

    graph = {call.name: Task(call.name, call.function, *call.args) for call in calls}
    run_graph(graph, {call.name: call.about for call in calls}, client, receive)
    return [results[call.name] for call in calls]


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
