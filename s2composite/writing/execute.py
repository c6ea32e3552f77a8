"""Execute: run tasks on the current Dask client or in threads, and take their small results one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import dask
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.delayed import Delayed
from distributed import Client, as_completed

from s2composite.errors import S2CompositeError, WriteError
from s2composite.writing.parts import Parts

__all__ = ["current_client", "keyed", "run_on_worker", "run_tasks", "workers_see"]


def current_client() -> Client | None:
    """Return the client that Dask would compute with here, None for threads or processes of its own."""
    owner = getattr(get_scheduler(), "__self__", None)
    return owner if isinstance(owner, Client) else None


def workers_see(client: Client | None, parts: Parts) -> bool:
    """Return whether the workers see a place for parts that exists."""
    if client is None or parts.remote:
        return True
    answers = client.run(parts.visible)
    # Without workers (an adaptive cluster at rest) the first one that starts answers for all.
    return all(answers.values()) if answers else bool(client.submit(parts.visible, pure=False).result())


def run_tasks(
    tasks: Mapping[str, Delayed], client: Client | None, receive: Callable[[str, Any], None], windows: Mapping[str, str]
) -> None:
    """Run tasks and hand each result to `receive` with the task's key.

    Parameters
    ----------
    tasks
        By the key of the task.
    windows
        For each key what it computes, for messages.

    Raises
    ------
    WriteError
        A task failed with an error that is none of the library's, or the worker that ran it died; names the window.
    """
    if client is None:
        _run_in_threads(tasks, receive, windows)
    else:
        _run_on_cluster(tasks, client, receive, windows)


def _run_in_threads(
    tasks: Mapping[str, Delayed], receive: Callable[[str, Any], None], windows: Mapping[str, str]
) -> None:
    running: set[str] = set()

    def finished(key: Any, result: Any, *_: Any) -> None:
        running.discard(key)
        if key in tasks:
            receive(key, result)

    with Callback(pretask=lambda key, *_: running.add(key), posttask=finished):
        try:
            # Threads unless a scheduler was chosen: what tasks hand over are arrays, and encoders release the GIL.
            dask.compute(*tasks.values(), optimize_graph=False, scheduler=get_scheduler() or "threads")
        except S2CompositeError:
            raise
        except Exception as error:
            at_work = sorted({windows[key] for key in running if key in windows})
            raise WriteError(_failure(error, " or ".join(at_work[:4]))) from error


def _run_on_cluster(
    tasks: Mapping[str, Delayed], client: Client, receive: Callable[[str, Any], None], windows: Mapping[str, str]
) -> None:
    futures = client.compute(list(tasks.values()), optimize_graph=False)
    keys = {future.key: key for future, key in zip(futures, tasks, strict=True)}
    try:
        for future in as_completed(futures, raise_errors=False):
            key = keys[future.key]
            if future.status != "finished":
                _raise(future, windows[key])
            receive(key, future.result())
            future.release()
    finally:
        with suppress(Exception):  # the client may be gone already, which then is what matters
            client.cancel([future for future in futures if not future.done()], force=True)


def _raise(future: Any, window: str) -> None:
    error = future.exception() if future.status == "error" else RuntimeError(f"the task was {future.status}")
    if isinstance(error, S2CompositeError):
        raise error
    raise WriteError(_failure(error, window), window=window) from error


def _failure(error: BaseException, where: str) -> str:
    return f"{where or 'a window'}: {type(error).__name__}: {error}"


def run_on_worker(client: Client, function: Callable[..., Any], *args: Any, label: str) -> Any:
    """Run a function on a worker and return its result.

    Raises
    ------
    WriteError
        It failed with an error that is none of the library's, or its worker died.
    """
    future = client.submit(function, *args, pure=False, key=f"assemble-{label}")
    try:
        return future.result()
    except S2CompositeError:
        raise
    except Exception as error:
        raise WriteError(_failure(error, f"assembling {label}")) from error
    finally:
        with suppress(Exception):
            client.cancel([future], force=True)


def keyed(arrays: Sequence[Any]) -> list[list[Delayed]]:
    """Return the tasks of arrays, optimized together, so that tasks which several arrays need are run once."""
    return [list(array.to_delayed(optimize_graph=False).ravel()) for array in dask.optimize(*arrays)]
