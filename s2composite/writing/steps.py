"""The graph that encodes a raster and its overviews, and its run on the current Dask client or in threads.

Dask fuses chains only. The layers of a composite branch off one task and meet again where they are written; in
between, a scheduler may
send every pixel to another worker, and it does. So what only one window needs becomes part of the task that writes
it.
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
from itertools import accumulate, islice, pairwise
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask import threaded
from dask._task_spec import Alias, GraphNode, Task
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.core import flatten, keys_in_tasks
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
from s2composite.writing.tiles import Chunks, FilePart, Raster, Stage, WindowIndex, WindowResult, encode_files

__all__ = [
    "Encoding",
    "Source",
    "WindowsDone",
    "Work",
    "aligned_chunks",
    "current_client",
    "fused",
    "pace",
    "plan_stages",
    "progress_bar",
    "raster_tasks",
    "regular_chunks",
    "run_on_worker",
    "run_work",
    "window_size",
    "work_of",
    "workers_see",
]

_LINE_EVERY = 0.5
"""Seconds between two updates of the line in a notebook."""

_LOOK_BACK = 3600.0
"""Seconds over which the rate is averaged for the time left: a window of a big job may take minutes."""


@contextmanager
def progress_bar(label: str, total: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show a bar for `total` steps; yields what to call after each."""
    console = Console(stderr=True)
    if not shown or logging.getLogger("s2composite").isEnabledFor(logging.INFO):
        yield lambda: None
    elif console.is_jupyter:  # rich's bar there needs ipywidgets, and swallows what a loop over results prints
        with _line(label, total) as advance:
            yield advance
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Pace(), TimeRemainingColumn())
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


class _Pace(ProgressColumn):
    """The rate since the beginning."""

    def render(self, task: ProgressTask) -> Text:
        """Return the rate of a task."""
        return Text(pace(task.completed, task.elapsed or 0.0), "progress.data.speed")


@contextmanager
def _line(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar and a line that a notebook writes over again, also where others print meanwhile."""
    from IPython.display import display  # noqa: PLC0415 - there is one where this runs

    begun = looked = time.monotonic()
    done = 0

    def drawn(*, over: bool = False) -> dict[str, str]:
        seconds = time.monotonic() - begun
        told = [f"{done}/{total}", pace(done, seconds)]
        if over:
            told.append(f"in {timedelta(seconds=round(seconds))}")
        elif done:
            told.append(f"{timedelta(seconds=round(seconds / done * (total - done)))} left")
        text = f"{label}: {', '.join(filter(None, told))}"
        bar = f'<progress value="{done}" max="{total}" style="width: 20em; vertical-align: middle"></progress>'
        return {"text/plain": text, "text/html": f"<div>{bar} {html.escape(text)}</div>"}

    handle = display(drawn(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def advance() -> None:
        nonlocal done, looked
        done += 1
        if time.monotonic() - looked >= _LINE_EVERY:
            looked = time.monotonic()
            handle.update(drawn(), raw=True)

    try:
        yield advance
    finally:
        handle.update(drawn(over=True), raw=True)


_Graph = Mapping[Any, GraphNode]
_Users = Mapping[Any, set[Any]]


def fused(graph: _Graph, heads: Iterable[Any], kept: Collection[Any]) -> _Graph:
    """Return a graph in which tasks contain the tasks that only they need, if these come from one task.

    Many tasks that meet in one (the partial sums of a mean) stay separate: they can run in parallel, and together might
    not fit into memory.

    Parameters
    ----------
    graph
        As `dask.array.optimize` returns it. Where Dask's own fusion is switched off, nothing is fused here either.
    heads
        Keys of the tasks that grow; those that are not in the graph are passed over.
    kept
        Keys whose results are wanted.
    """
    if dask.config.get("optimization.fuse.active") is False:
        return graph
    out, users = dict(graph), _users(graph)
    for head in heads:
        if head not in out:
            continue
        inner = [key for branch in _branches(out, _needed_by_it_alone(out, users, head, kept)) for key in branch]
        if inner:
            out[head] = out[head].fuse(*(out.pop(key) for key in inner), out[head], key=head)
    return out


def _users(graph: _Graph) -> _Users:
    users: dict[Any, set[Any]] = {}
    for key, node in graph.items():
        for needed in node.dependencies:
            users.setdefault(needed, set()).add(key)
    return users


def _needed_by_it_alone(graph: _Graph, users: _Users, head: Any, kept: Collection[Any]) -> set[Any]:
    """Return the tasks whose results only serve the task `head`."""
    inside, waiting = {head}, list(graph[head].dependencies)
    while waiting:
        key = waiting.pop()
        # Data that many tasks need, and results already on the cluster, are not tasks.
        if key not in inside and key not in kept and isinstance(graph.get(key), (Task, Alias)) and users[key] <= inside:
            inside.add(key)
            waiting.extend(graph[key].dependencies)
    return inside - {head}


def _branches(graph: _Graph, keys: set[Any]) -> list[set[Any]]:
    """Return for each branch of a tree its tasks from the last common source on."""
    return [part for branch in _connected(graph, keys) if (part := _from_one(graph, branch))]


def _connected(graph: _Graph, keys: set[Any]) -> list[set[Any]]:
    branches: list[set[Any]] = []
    for key in keys:
        near = {key} | (graph[key].dependencies & keys)
        touched = [branch for branch in branches if branch & near]
        branches = [branch for branch in branches if not branch & near] + [near.union(*touched)]
    return branches


def _from_one(graph: _Graph, branch: set[Any]) -> set[Any]:
    while len(first := {key for key in branch if not graph[key].dependencies & branch}) > 1:
        branch = branch - first
    return branch


_PATIENCE = 30
"""Seconds to wait for tasks that are running when another has failed."""


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


@dataclass(frozen=True, eq=False)
class Work:
    """Tasks whose results are wanted, and what they depend on."""

    graph: Mapping[Any, Any]
    """Dask graph."""

    windows: Mapping[Any, str]
    """What each wanted task computes, by its key, for messages."""


def work_of(
    arrays: Mapping[Callable[[tuple[int, ...]], str], da.Array],
    wanted: Callable[[Any], bool] = lambda _: True,
    whole: Sequence[da.Array] = (),
) -> Work:
    """Return the work of computing the chunks of arrays.

    The graphs are optimized together, so that tasks which several arrays need are run once. What only one task needs
    becomes part of it.

    Parameters
    ----------
    arrays
        By a function that describes the chunk at a position.
    wanted
        Whether the chunk with a key is to be computed.
    whole
        Intermediate arrays whose tasks also absorb what only they need.
    """
    keys = {key: say for say, array in arrays.items() for key in flatten(array.__dask_keys__())}
    windows = {key: say(key[1:]) for key, say in keys.items() if wanted(key)}
    graph = HighLevelGraph.merge(*(array.__dask_graph__() for array in arrays.values()))
    heads = [key for array in whole for key in flatten(array.__dask_keys__())]
    optimized = da.Array.__dask_optimize__(graph, list(windows))
    return Work(fused(optimized, [*heads, *windows], windows), windows)


def run_work(work: Work, client: Client | None, receive: Callable[[Any, Any], None]) -> None:
    """Run tasks and hand each result to `receive` with the task's key.

    Raises
    ------
    WriteError
        A task failed with an error from outside the library, or the worker that ran it died; names the window.
    """
    if not work.windows:
        return
    if client is None:
        _run_here(work, receive)
    else:
        _run_on_cluster(work, client, receive)


def _run_here(work: Work, receive: Callable[[Any, Any], None]) -> None:
    def finished(key: Any, result: Any, *_: Any) -> None:
        if key in work.windows:
            receive(key, result)

    with Callback(posttask=finished):
        try:
            _compute_here(work)
        except S2CompositeError:
            raise
        except Exception as error:
            raise _failure(work, error, _failed_key(error)) from error


def _compute_here(work: Work) -> None:
    chosen = get_scheduler()
    if chosen not in (None, threaded.get) and not isinstance(getattr(chosen, "__self__", None), Client):
        chosen(work.graph, list(work.windows))
        return
    # A pool of its own, so that when a task fails all others have ended before the clean-up.
    with ThreadPoolExecutor(dask.config.get("num_workers", None) or CPU_COUNT) as pool:
        threaded.get(work.graph, list(work.windows), pool=dask.config.get("pool", None) or pool)


def _run_on_cluster(work: Work, client: Client, receive: Callable[[Any, Any], None]) -> None:
    futures = client.get(work.graph, list(work.windows), sync=False)
    try:
        completed = as_completed(futures, raise_errors=False)
        for future in completed:
            if future.status in ("lost", "pending"):
                # The worker that held the result has died since; the scheduler computes it again.
                completed.add(future)
                continue
            if future.status != "finished":
                _raise(work, future, client)
            receive(future.key, future.result())
            future.release()
    except BaseException:
        with suppress(Exception):  # the client may be gone, and then that is the error that matters
            client.cancel(futures, force=True)
            _settle(work, client)
        raise


def _settle(work: Work, client: Client) -> None:
    """Wait until the workers have finished their tasks of this work: cancelling does not stop a running one."""
    keys = {key for key in work.graph if "write" in str(key)}
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and any(client.run(_at_work, keys=keys, on_error="ignore").values()):
        time.sleep(0.05)


def _at_work(keys: Collection[Any], dask_worker: Any) -> bool:
    return any(task.key in keys for task in dask_worker.state.all_running_tasks)


def _failed_key(error: BaseException) -> Any:
    """Return the key of the task that raised in a scheduler of this process, which only Dask's own frame knows."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "execute_task"]
    return frames[0].f_locals.get("key") if frames else None


def _raise(work: Work, future: Any, client: Client) -> None:
    # The failure of another window may be seen first; this task is then lost with the worker that held it.
    died = RuntimeError(f"the task was {future.status}: the worker that ran it died")
    error = future.exception() if future.status == "error" else died
    if isinstance(error, S2CompositeError):
        raise error
    blamed = None
    with suppress(Exception):  # the scheduler may have forgotten it
        blamed = client.run_on_scheduler(_blamed, key=future.key)
    raise _failure(work, error, blamed or future.key) from error


def _blamed(key: Any, dask_scheduler: Any) -> Any:
    return dask_scheduler.tasks[key].exception_blame.key


def _failure(work: Work, error: BaseException, key: Any) -> WriteError:
    """Return a WriteError for a foreign error in the task with a key; it names the windows that need that task."""
    needing = _windows_of(work, key)
    where = " or ".join(needing[:4]) or "a window"
    return WriteError(f"{where}: {type(error).__name__}: {error}", window=where)


def _windows_of(work: Work, key: Any) -> list[str]:
    """Return the windows nearest to a task among those that need its result."""
    users: dict[Any, list[Any]] = {}
    for user, task in work.graph.items():
        for needed in keys_in_tasks(work.graph, [task]):
            users.setdefault(needed, []).append(user)
    reached = {key}
    while reached:
        if found := [work.windows[k] for k in reached if k in work.windows]:
            return sorted(found)
        reached = {user for k in reached for user in users.get(k, ())}
    return []


def run_on_worker(client: Client, function: Callable[..., Any], *args: Any, label: str, **options: Any) -> Any:
    """Run a function on a worker and return its result.

    Raises
    ------
    WriteError
        It failed with an error from outside the library, or its worker died.
    """
    future = client.submit(function, *args, **options, pure=False, key=f"assemble-file-{label}-{uuid.uuid4().hex[:8]}")
    try:
        return future.result()
    except S2CompositeError:
        raise
    except Exception as error:
        raise WriteError(f"assembling {label}: {type(error).__name__}: {error}") from error
    finally:
        with suppress(Exception):
            client.cancel([future], force=True)


_WINDOW_BYTES = 16 << 20
"""Bytes of a window that is made by rechunking, such as 2048 x 2048 pixels of three bands in 8 bits."""

_LARGEST_WINDOW = 64 << 20
"""Bytes of a window beyond which a chunk is divided, so that memory stays bounded and all workers have work."""


def window_size(block: int, pixel_bytes: int) -> int:
    """Return the side of windows that hold about `_WINDOW_BYTES`: a tile's, doubled as often as fits."""
    size = block
    while (2 * size) ** 2 * pixel_bytes <= _WINDOW_BYTES:
        size *= 2
    return size


def regular_chunks(shape: tuple[int, int], size: int) -> Chunks:
    """Return chunks of equal size, smaller ones at the end.

    >>> regular_chunks((1100, 512), 512)
    ((512, 512, 76), (512,))
    """
    rows, columns = (tuple(min(size, n - start) for start in range(0, n, size)) for n in shape)
    return rows, columns


def aligned_chunks(chunks: Chunks, block: int, pixel_bytes: int) -> Chunks:
    """Return the chunks as they are if their inner edges are edges of tiles and none is huge, else regular ones."""
    inner = [edge for sizes in chunks for edge in list(accumulate(sizes))[:-1]]
    largest = max(chunks[0]) * max(chunks[1]) * pixel_bytes
    if all(edge % block == 0 for edge in inner) and largest <= _LARGEST_WINDOW:
        return chunks
    return regular_chunks((sum(chunks[0]), sum(chunks[1])), window_size(block, pixel_bytes))


def plan_stages(first: Chunks, block: int, levels: Sequence[tuple[int, int]], pixel_bytes: int) -> tuple[Stage, ...]:
    """Return the stages that make all levels.

    Parameters
    ----------
    first
        Chunks of the full resolution, edges on tiles.
    levels
        Rows and columns of each level.
    """
    out: list[Stage] = []
    level, chunks = 0, first
    while level < len(levels):
        last = min(level + _inner_levels(chunks, block), len(levels) - 1)
        out.append(Stage(len(out), level, last, chunks))
        level = last + 1
        if level < len(levels):
            chunks = regular_chunks(levels[level], window_size(block, pixel_bytes))
    return tuple(out)


def _inner_levels(chunks: Chunks, block: int) -> int:
    """Return how often tiles of `block` pixels can be doubled without crossing an edge of a window."""
    inner = [edge for sizes in chunks for edge in list(accumulate(sizes))[:-1]]
    if not inner:
        return 64
    common = int(np.gcd.reduce(inner)) // block
    return (common & -common).bit_length() - 1


@dataclass(frozen=True, eq=False)
class Source:
    """Where the pixels of one file come from."""

    layers: tuple[da.Array, ...]
    """``(b, y, x)`` or ``(y, x)``, in the order of the file's bands."""

    raster: Raster
    """The file."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """Windows of one or several files, each made by one task."""

    files: tuple[int, ...]
    """Which of the sources."""

    stages: tuple[Stage, ...]
    """For each file; their windows are the same."""

    tables: tuple[str, ...]
    """Names of small arrays that come with the windows."""

    packed: da.Array
    """``(y, x)``: a `_Packed` for each window, which stays where it was made."""

    done: da.Array
    """``(y, x)``: a `WindowsDone` for each window."""


@dataclass(frozen=True, slots=True)
class WindowsDone:
    """What a task reports: small, and all that ever reaches the client."""

    indices: tuple[WindowIndex, ...]
    """For each file."""

    tables: Mapping[str, NDArray[Any]]
    """Blocks of small arrays, by name."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """Result of a task."""

    results: tuple[WindowResult, ...]
    """For each file."""

    tables: Mapping[str, NDArray[Any]]
    """Blocks of small arrays, by name."""


@dataclass(eq=False)
class _Group:
    """Files whose first windows are the same and made of the same tasks."""

    chunks: Chunks
    """The windows."""

    made_of: set[str]
    """Names of the Dask layers behind their pixels."""

    files: list[int]
    """Which of the sources."""


def raster_tasks(sources: Sequence[Source], tables: Mapping[str, da.Array] | None = None) -> list[Encoding]:
    """Return the work of encoding files, lazily.

    One task makes a window of all files whose pixels have a common origin: it reads, reduces and encodes them, so that
    a window is never the result of a task.

    Parameters
    ----------
    tables
        Small arrays ``(..., window_y, window_x)`` by name. Those with one value per window that come from the same
        tasks as files are computed with them; the others are left out.
    """
    left = dict(tables or {})
    out = []
    for group in _groups(sources):
        own = {name: table for name, table in left.items() if _comes_with(table, group)}
        left = {name: table for name, table in left.items() if name not in own}
        rasters = [sources[file].raster for file in group.files]
        plans = [plan_stages(group.chunks, raster.block, raster.levels, _pixel_bytes(raster)) for raster in rasters]
        data = [[_rechunked(layer, group.chunks) for layer in sources[file].layers] for file in group.files]
        first = _encoding(group.files, data, rasters, [stages[0] for stages in plans], own)
        out.append(first)
        for number, file in enumerate(group.files):
            out += _overviews(file, first.packed, number, rasters[number], plans[number])
    return out


def _overviews(file: int, packed: da.Array, number: int, raster: Raster, stages: Sequence[Stage]) -> Iterator[Encoding]:
    """Yield the later stages of a file, whose first stage is the one with a number in `packed`."""
    for below, stage in pairwise(stages):
        top = _rechunked(_top(packed, number, raster, below), stage.chunks)
        encoding = _encoding([file], [[top]], [raster], [stage], {})
        yield encoding
        packed, number = encoding.packed, 0


def _pixel_bytes(raster: Raster) -> int:
    return len(raster.bands) * raster.dtype.itemsize


def _groups(sources: Sequence[Source]) -> list[_Group]:
    groups: list[_Group] = []
    for file, source in enumerate(sources):
        raster = source.raster
        chunks = aligned_chunks(source.layers[0].chunks[-2:], raster.block, _pixel_bytes(raster))
        new = _Group(chunks, {name for layer in source.layers for name in layer.dask.layers}, [file])
        for group in [group for group in groups if group.chunks == chunks and group.made_of & new.made_of]:
            groups.remove(group)
            new = _Group(chunks, group.made_of | new.made_of, sorted(group.files + new.files))
        groups.append(new)
    return sorted(groups, key=lambda group: group.files)


def _comes_with(table: da.Array, group: _Group) -> bool:
    windows = tuple((1,) * len(sizes) for sizes in group.chunks)
    return table.chunks[-2:] == windows and not group.made_of.isdisjoint(table.dask.layers)


def _rechunked(layer: da.Array, chunks: Chunks) -> da.Array:
    wanted = (*((n,) for n in layer.shape[:-2]), *chunks)
    return layer if layer.chunks == wanted else layer.rechunk(wanted)


def _encoding(
    files: Sequence[int],
    data: Sequence[Sequence[da.Array]],
    rasters: Sequence[Raster],
    stages: Sequence[Stage],
    tables: Mapping[str, da.Array],
) -> Encoding:
    """Return the work of one stage: `data` are the layers of each file in chunks of the stage's windows."""
    token = f"{rasters[0].token}-{stages[0].number}"
    parts = tuple(FilePart(*part) for part in zip(rasters, stages, strict=True))
    arrays = [layer for layers in data for layer in layers]
    arrays += [_rechunked(table, (table.chunks[-2], table.chunks[-1])) for table in tables.values()]
    packed = da.map_blocks(
        _write,
        *arrays,
        parts=delayed(parts, name=f"send-file-plan-{token}", pure=True, traverse=False),
        layers=tuple(map(len, data)),
        tables=tuple(tables),
        drop_axis=list(range(max(array.ndim for array in arrays) - 2)),
        chunks=stages[0].chunks,
        dtype=object,
        meta=np.empty((0, 0), object),
        name=f"write-{'overview' if stages[0].number else 'window'}-{token}",
    )
    done = da.map_blocks(_done, packed, dtype=object, meta=np.empty((0, 0), object), name=f"report-window-{token}")
    return Encoding(tuple(files), tuple(stages), tuple(tables), packed, done)


def _write(
    *blocks: NDArray[Any],
    parts: Sequence[FilePart],
    layers: Sequence[int],
    tables: Sequence[str],
    block_id: tuple[int, int],
) -> _Packed:
    """Encode a window: the blocks are those of so many layers for each file, then those of the tables."""
    rest = iter(blocks)
    results = encode_files((list(islice(rest, n)) for n in layers), parts, block_id)
    return _Packed(results, dict(zip(tables, rest, strict=True)))


def _done(packed: _Packed) -> WindowsDone:
    return WindowsDone(tuple(result.index for result in packed.results), packed.tables)


def _top(packed: da.Array, number: int, raster: Raster, stage: Stage) -> da.Array:
    scale = 1 << (stage.last + 1 - stage.first)
    rows, columns = (tuple(-(-n // scale) for n in sizes) for sizes in stage.chunks)
    return da.map_blocks(
        _pixels,
        packed,
        number=number,
        new_axis=[0],
        chunks=((len(raster.bands),), rows, columns),
        dtype=raster.dtype,
        meta=np.empty((0, 0, 0), raster.dtype),
        name=f"take-overview-{raster.token}-{stage.last + 1}",
    )


def _pixels(packed: _Packed, number: int) -> NDArray[Any]:
    top = packed.results[number].top
    assert top is not None
    return top
