"""Calls on a cluster: a bounded number in flight, retries, unresponsive workers, Ctrl-C.

The scheduler holds only the calls in flight; the others wait here in a generator. A call that fails with a transient
error, or whose worker does not answer in time, is retried after a pause on another worker.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, NamedTuple

from distributed import Client, Future, KilledWorker, get_worker

from s2composite.errors import ClusterError, S2CompositeError, WriteError
from s2composite.metrics import running_workers
from s2composite.storage.retry import backoff

__all__ = ["ClusterCall", "Outcome", "Policy", "UnresponsiveWorkers", "fetch_results", "run_bounded"]

LOG = logging.getLogger(__name__)

_FETCH_TIMEOUT = 10.0  # seconds to fetch the results of ended calls; they are small

# Minimum seconds without a heartbeat after which a worker that does not end its calls counts as frozen, however short
# the timeout: compiling a kernel, or an overloaded machine, can block a worker for 10.
_HEARTBEAT_TIMEOUT = 30.0

_CHECK_EVERY = 0.5  # seconds between counting workers and looking for calls that take too long
_PAUSED_AFTER = 30.0  # seconds without any call ending before checking whether all workers are paused
_LONGEST_PAUSE = 60.0  # maximum seconds before a retry


@dataclass(frozen=True, slots=True)
class Policy:
    """How calls are retried."""

    attempts: int = 3  # attempts before a call counts as failed
    pause: float = 1.0  # seconds before the second attempt; doubled for each further one, with jitter of a half
    timeout: float = 1800.0  # seconds after submitting a call after which its worker counts as stuck
    look_ahead: int = 2  # calls submitted at a time for each thread of the cluster


@dataclass(frozen=True, eq=False)
class ClusterCall:
    """One call: a module-level function and its arguments; futures among these are resolved on the worker."""

    name: str  # shown on the dashboard; different for each call of a run
    function: Callable[..., Any]
    args: tuple[Any, ...]
    about: Any = None  # the caller's own identifier; not sent to the worker


@dataclass(frozen=True, eq=False)
class Outcome:
    """How one attempt of a call ended."""

    call: ClusterCall
    attempt: int  # from 1
    seconds: float  # from submission to its end
    result: Any = None
    error: BaseException | None = None
    final: bool = True  # False: it will be retried
    worker: str | None = None  # address of the worker that failed, if known


def run_bounded(client: Client, calls: Iterator[ClusterCall | None], policy: Policy) -> Generator[Outcome, None, None]:
    """Run calls on a cluster and yield the outcome of each attempt, in the order in which they end.

    Parameters
    ----------
    calls
        Read whenever more calls may be submitted. None: no call now, but an ended call may lead to further ones. The
        run ends when there is no further call and none is in flight.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C was pressed, even if Python dropped the exception.
    ClusterError
        The scheduler is lost. Outcomes already yielded are valid; other calls were not made, or will be repeated.
    """
    loop = _CallLoop(client, calls, policy)
    try:
        with _interrupts() as require_none:
            yield from loop.outcomes(require_none)
    except (OSError, CancelledError) as error:  # from Dask's connections, and from futures after the scheduler is lost
        raise _scheduler_lost(client) from error
    finally:
        with suppress(Exception):  # the scheduler may be lost
            client.cancel(list(loop.in_flight), force=True)


class _InFlight(NamedTuple):
    call: ClusterCall
    number: int
    since: float


class _CallLoop:
    def __init__(self, client: Client, calls: Iterator[ClusterCall | None], policy: Policy) -> None:
        self._client, self._calls, self._policy = client, calls, policy
        self.in_flight: dict[Future, _InFlight] = {}
        # Due time, a number that orders equal times, the call, the number of the attempt, the worker to avoid.
        self._retries: list[tuple[float, int, ClusterCall, int, str | None]] = []
        self._numbers = itertools.count()
        self._ended: SimpleQueue[Future] = SimpleQueue()
        self._unresponsive = UnresponsiveWorkers(client)
        self._threads, self._checked = 1, -math.inf
        self._last_ended, self._paused_logged = time.monotonic(), False

    def outcomes(self, require_none: Callable[[], None]) -> Iterator[Outcome]:
        while True:
            require_none()
            late = self._check_workers()
            self._submit()
            if not self.in_flight and not self._retries and not late:
                return
            for outcome in [*late, *self._collect()]:
                if not outcome.final:
                    due = time.monotonic() + backoff(outcome.attempt, self._policy.pause, _LONGEST_PAUSE)
                    retry = (due, next(self._numbers), outcome.call, outcome.attempt + 1, outcome.worker)
                    heapq.heappush(self._retries, retry)
                yield outcome

    def _check_workers(self) -> list[Outcome]:
        """Periodically count the cluster's threads, and give up calls whose worker does not answer.

        A worker may still finish such a call, which is harmless.
        """
        now, client, policy = time.monotonic(), self._client, self._policy
        if now - self._checked < _CHECK_EVERY:
            return []
        if client.status != "running":
            raise _scheduler_lost(client)
        self._checked = now
        self._threads = max(sum(client.nthreads().values()), 1)
        outcomes = []
        late = [future for future, attempt in self.in_flight.items() if now - attempt.since > policy.timeout]
        if late:
            worker_of = {key: worker for worker, keys in client.processing().items() for key in keys}
            for future in late:
                call, number, since = self.in_flight.pop(future)
                worker = worker_of.get(future.key)
                client.cancel([future], force=True)
                error = S2CompositeError(
                    f"{call.name}: no answer in {policy.timeout:.0f} s from worker {worker or 'unknown'}; it is "
                    "frozen, overloaded, or the window takes longer than policy.timeout allows",
                    transient=True,
                )
                final = number >= policy.attempts
                outcomes.append(Outcome(call, number, now - since, error=error, final=final, worker=worker))
                self._unresponsive.add([worker])
        self._unresponsive.restart_frozen()
        if not self._paused_logged and now - self._last_ended > _PAUSED_AFTER:
            workers = running_workers(client).values()
            if workers and all(worker["status"] == "paused" for worker in workers):
                self._paused_logged = True
                LOG.warning(
                    "all %d workers are paused: they use more of their memory than distributed.worker.memory.pause "
                    "allows; give them more memory, or use smaller chunks",
                    len(workers),
                )
        return outcomes

    def _submit(self) -> None:
        """Submit as many calls as may be in flight: first retries that are due, then new calls."""
        client, most = self._client, self._policy.look_ahead * self._threads
        free = most - len(self.in_flight)
        if free < max(1, most // 4):
            # Each submission costs the client and the scheduler a millisecond, whatever its size.
            return
        submitted: list[tuple[Future, ClusterCall, int]] = []
        while len(submitted) < free and self._retries and self._retries[0][0] <= time.monotonic():
            _, _, call, number, avoid = heapq.heappop(self._retries)
            others = [address for address in client.nthreads() if address != avoid] if avoid else []
            where = {"workers": others, "allow_other_workers": True} if others else {}
            key = f"{call.name}-{number}"
            future = client.submit(_on_worker, call.function, call.args, key=key, pure=False, **where)
            submitted.append((future, call, number))
        more = itertools.islice(self._calls, free - len(submitted))
        new = [call for call in itertools.takewhile(lambda call: call is not None, more) if call is not None]
        if new:  # in one message
            functions, args = [call.function for call in new], [call.args for call in new]
            futures = client.map(_on_worker, functions, args, key=[call.name for call in new], pure=False)
            submitted += [(future, call, 1) for future, call in zip(futures, new, strict=True)]
        for future, call, number in submitted:
            self.in_flight[future] = _InFlight(call, number, time.monotonic())
            future.add_done_callback(self._ended.put)

    def _collect(self) -> list[Outcome]:
        """Wait briefly for calls to end, and return their outcomes."""
        if not self.in_flight:
            wait = self._retries[0][0] - time.monotonic() if self._retries else 0.0
            time.sleep(min(max(wait, 0.0), _CHECK_EVERY))
            return []
        ended: list[Future] = []
        with suppress(Empty):
            ended.append(self._ended.get(timeout=_CHECK_EVERY))
            self._last_ended = time.monotonic()
            while True:
                ended.append(self._ended.get_nowait())
        attempts = {future: self.in_flight.pop(future) for future in ended if future in self.in_flight}
        failed = ("error", "cancelled")
        results, lost = fetch_results(self._client, [future for future in attempts if future.status not in failed])
        self._unresponsive.add(getattr(error, "worker", None) for error in lost.values())
        outcomes = []
        for future, (call, number, since) in attempts.items():
            if future.status == "cancelled" or self._client.status != "running":
                # Futures are cancelled only by a client that has lost its scheduler.
                raise _scheduler_lost(self._client)
            seconds = time.monotonic() - since
            if future in results:
                outcomes.append(Outcome(call, number, seconds, result=results[future]))
            else:
                error = lost[future] if future in lost else future.exception()
                final = number >= self._policy.attempts
                if isinstance(error, S2CompositeError):  # records whether it is transient; others may have any cause
                    final = final or not getattr(error, "transient", isinstance(error, WriteError))
                worker = getattr(error, "worker", None) or getattr(getattr(error, "last_worker", None), "address", None)
                if isinstance(error, KilledWorker):  # Dask reports it as a task that was tried several times
                    error = S2CompositeError(
                        "the workers that tried this died, most likely out of memory; use smaller chunks, fewer "
                        "threads, or more memory for each worker"
                    )
                outcomes.append(Outcome(call, number, seconds, error=error, final=final, worker=worker))
            future.release()
        return outcomes


def _on_worker(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        return function(*args)
    except S2CompositeError as error:
        error.__dict__["worker"] = get_worker().address
        raise


def _scheduler_lost(client: Client) -> ClusterError:
    return ClusterError(
        f"the scheduler was lost ({client.scheduler.address if client.scheduler else 'closed'}); finished windows are "
        "kept: start the cluster again and resume the job",
        resumable=True,
    )


# --- results ----------------------------------------------------------------------------------------------------------


def fetch_results(client: Client, futures: Collection[Future]) -> tuple[dict[Future, Any], dict[Future, Exception]]:
    """Return the results of calls that ended without an error, and an error for each that cannot be fetched.

    They are fetched together. If that fails, because a worker that holds one is frozen or lost, or one cannot be
    unpickled, each is fetched separately, so that the others are not lost. The error's `worker` is the address of the
    worker that held the result, if known.

    Raises
    ------
    OSError, CancelledError
        The scheduler is lost.
    """
    finished = [future for future in futures if future.status == "finished"]
    lost: dict[Future, Exception] = {future: _lost(future, None) for future in futures if future not in finished}
    found, error = _gather(client, finished)
    if error is None:
        return dict(zip(finished, found, strict=True)), lost
    workers_of = client.who_has(finished)
    results: dict[Future, Any] = {}
    unresponsive: set[str] = set()
    for future in finished:
        worker = next(iter(workers_of.get(future.key, ())), None)
        if worker is None or worker in unresponsive:
            lost[future] = _lost(future, worker)
            continue
        found, error = _gather(client, [future])
        if error is None:
            (results[future],) = found
        elif isinstance(error, CancelledError):
            raise error
        elif isinstance(error, TimeoutError):
            unresponsive.add(worker)
            lost[future] = _lost(future, worker)
        else:
            error.__dict__.setdefault("worker", worker)
            lost[future] = error
    return results, lost


def _gather(client: Client, futures: Collection[Future]) -> tuple[list[Any], Exception | None]:
    """Return the results of several calls together, or the error if these cannot be fetched."""

    async def gather() -> Any:
        return await client.gather(list(futures), asynchronous=True)

    try:
        return client.sync(gather, callback_timeout=_FETCH_TIMEOUT), None
    except Exception as error:  # noqa: BLE001 - unpickling may raise anything
        return [], error


def _lost(future: Future, worker: str | None) -> S2CompositeError:
    if worker is None:
        return S2CompositeError(f"{future.key}: the worker that held the result was lost", transient=True)
    message = f"worker {worker} holds the result but does not send it; it is frozen or cannot be reached"
    return S2CompositeError(f"{future.key}: {message}", transient=True, worker=worker)


# --- unresponsive workers ---------------------------------------------------------------------------------------------


class UnresponsiveWorkers:
    """Workers that did not answer: watched until a heartbeat arrives, or until they count as frozen."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._since: dict[str, float] = {}

    def add(self, workers: Iterable[str | None]) -> None:
        """Start watching these workers; None: the worker is unknown."""
        now = time.monotonic()
        self._since |= {worker: self._since.get(worker, now) for worker in workers if worker is not None}

    def restart_frozen(self) -> None:
        """Have the scheduler restart frozen workers."""
        if not self._since:
            return
        now = time.monotonic()
        seconds = {worker: now - since for worker, since in self._since.items()}
        try:
            left = self._client.run_on_scheduler(_restart_frozen, seconds, _HEARTBEAT_TIMEOUT)
        except Exception as error:  # noqa: BLE001 - a scheduler may forbid it; it will restart them itself later
            LOG.warning("unresponsive workers could not be restarted: %s", error)
            left = []
        self._since = {worker: self._since[worker] for worker in left}


async def _restart_frozen(seconds: Mapping[str, float], limit: float, dask_scheduler: Any) -> list[str]:
    """Run on the scheduler: restart or remove workers without a heartbeat for longer than `limit`.

    The scheduler does this itself, but only after `distributed.scheduler.worker-ttl`, five minutes. Until then it gives
    a frozen worker more work, and other workers wait for its results. `seconds` is how long each has been watched.
    Returns the workers to check again: those without a heartbeat since watching began.
    """
    now = time.time()
    silent = {
        worker: now - dask_scheduler.workers[worker].last_seen for worker in seconds if worker in dask_scheduler.workers
    }
    frozen = [worker for worker, since in silent.items() if since > limit]
    if frozen:
        LOG.warning("no heartbeat for %.0f s, restarting: %s", limit, ", ".join(frozen))
        about = {"timeout": 10, "wait_for_workers": False, "stimulus_id": f"s2composite-silent-{now}"}
        with suppress(TimeoutError):
            await dask_scheduler.restart_workers(frozen, **about)
    return [worker for worker, since in silent.items() if seconds[worker] < since <= limit]


# --- interrupts -------------------------------------------------------------------------------------------------------


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Record interrupts in the main thread, next to the existing handler; yield a function that then raises them.

    Python drops exceptions that a handler raises while a destructor runs.
    """
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)
        if callable(before):
            before(signum, frame)

    def require_none() -> None:
        if noted:
            raise KeyboardInterrupt

    def in_main_thread() -> bool:
        return threading.current_thread() is threading.main_thread()

    watching = in_main_thread() and callable(before)
    if watching:
        signal.signal(signal.SIGINT, note)
    try:
        yield require_none
    finally:
        # An abandoned generator may be closed by any thread.
        if watching and in_main_thread() and signal.getsignal(signal.SIGINT) == note:
            signal.signal(signal.SIGINT, before)
