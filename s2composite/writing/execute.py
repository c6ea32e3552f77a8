"""Execute: run tasks on the current Dask client or in threads, and receive their small results one by one."""

from __future__ import annotations

import time
import traceback
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
from dask import threaded
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.core import flatten, keys_in_tasks
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from distributed import Client, as_completed

from s2composite.errors import S2CompositeError, WriteError
from s2composite.writing.fusion import fused
from s2composite.writing.parts import Parts

__all__ = ["Work", "current_client", "run_on_worker", "run_work", "work_of", "workers_see"]

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
