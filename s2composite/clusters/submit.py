"""Calls on a cluster: a bounded number in flight, retries, unresponsive workers, Ctrl-C.

The scheduler never holds more than the calls in flight: a million of them wait here, as a generator. A call that
fails in a way
that may pass is made again after a pause, on another worker; so is one whose worker does not answer in time.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self

from distributed import Client, Future, KilledWorker, get_worker

from s2composite.errors import ClusterError, S2CompositeError, WriteError
from s2composite.storage.retry import backoff

__all__ = ["Call", "Interrupts", "Outcome", "Policy", "Suspects", "fetch_results", "run_bounded"]

LOG = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds in which the results of calls that have ended are fetched; they are small."""

_SILENCE = 30.0
"""Seconds without a heartbeat after which a worker that does not end its calls counts as frozen, however short these
are to be: compiling a kernel can hold one up for 10, and a machine that has too much to do for as long."""


class Suspects:
    """Workers that did not answer: watched until they are heard of again, or silent for so long that they are frozen.

    Parameters
    ----------
    client
        Whose workers they are.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._since: dict[str, float] = {}

    def add(self, workers: Iterable[str | None]) -> None:
        """Watch these workers from now on; None: it is not known which one."""
        now = time.monotonic()
        self._since |= {worker: self._since.get(worker, now) for worker in workers if worker is not None}

    def look(self) -> None:
        """Have the scheduler restart those that are frozen."""
        if not self._since:
            return
        now = time.monotonic()
        seconds = {worker: now - since for worker, since in self._since.items()}
        try:
            left = self._client.run_on_scheduler(_restart_frozen, seconds, _SILENCE)
        except Exception as error:  # noqa: BLE001 - a scheduler may forbid it; it does so itself in time
            LOG.warning("workers that are silent could not be restarted: %s", error)
            left = []
        self._since = {worker: self._since[worker] for worker in left}


async def _restart_frozen(seconds: Mapping[str, float], silence: float, dask_scheduler: Any) -> list[str]:
    """Run on the scheduler: restart workers that it has not heard of for longer than `silence`, or do without them.

    It does so itself, but only after `distributed.scheduler.worker-ttl`, five minutes, in which it gives a frozen
    worker more work and has others wait for what it holds. Returned are those to look at again: not heard of since
    they have been watched, for so many seconds each.
    """
    now = time.time()
    known = {
        worker: now - dask_scheduler.workers[worker].last_seen for worker in seconds if worker in dask_scheduler.workers
    }
    frozen = [worker for worker, silent in known.items() if silent > silence]
    if frozen:
        LOG.warning("not heard of for %.0f s, restarting: %s", silence, ", ".join(frozen))
        about = {"timeout": 10, "wait_for_workers": False, "stimulus_id": f"s2composite-silent-{now}"}
        with suppress(TimeoutError):
            await dask_scheduler.restart_workers(frozen, **about)
    return [worker for worker, silent in known.items() if seconds[worker] < silent <= silence]


def fetch_results(client: Client, futures: Collection[Future]) -> tuple[dict[Future, Any], dict[Future, Exception]]:
    """Return the results of calls that have ended without an error, and why some are not to be had.

    They are fetched together. Where that fails, because a worker holds one and is frozen or gone, or one cannot be
    unpickled, each is fetched by itself, so that the others are not lost with it. An error says as `worker` where the
    result was, if that is known.

    Raises
    ------
    OSError, CancelledError
        The scheduler is gone.
    """
    there = [future for future in futures if future.status == "finished"]
    gone: dict[Future, Exception] = {future: _lost(future, None) for future in futures if future not in there}
    try:
        return dict(zip(there, _gathered(client, there), strict=True)), gone
    except Exception:  # noqa: BLE001 - whatever one raises
        found, lost = _one_by_one(client, there)
        return found, gone | lost


def _one_by_one(client: Client, futures: Collection[Future]) -> tuple[dict[Future, Any], dict[Future, Exception]]:
    holders: Mapping[str, Sequence[str]] = client.who_has(list(futures))
    found: dict[Future, Any] = {}
    lost: dict[Future, Exception] = {}
    silent: set[str] = set()
    for future in futures:
        worker = next(iter(holders.get(future.key, ())), None)
        if worker is None or worker in silent:
            lost[future] = _lost(future, worker)
            continue
        try:
            (found[future],) = _gathered(client, [future])
        except TimeoutError:
            silent.add(worker)
            lost[future] = _lost(future, worker)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - what unpickling it raises
            error.__dict__.setdefault("worker", worker)
            lost[future] = error
    return found, lost


def _lost(future: Future, worker: str | None) -> S2CompositeError:
    if worker is None:
        return S2CompositeError(f"{future.key}: the worker that had made it is gone with the result", transient=True)
    told = f"worker {worker} has made it but does not hand over the result; it is frozen or cannot be reached"
    return S2CompositeError(f"{future.key}: {told}", transient=True, worker=worker)


def _gathered(client: Client, futures: Collection[Future]) -> list[Any]:
    async def fetched() -> list[Any]:
        results: list[Any] = await client.gather(list(futures), asynchronous=True)
        return results

    out: list[Any] = client.sync(fetched, callback_timeout=_PATIENCE)
    return out


class Interrupts:
    """Notes interrupts while it is open, a context manager; beside a handler there is, and in the main thread only."""

    def __init__(self) -> None:
        self._noted = False
        before = signal.getsignal(signal.SIGINT)
        self._before = before if _in_main_thread() and callable(before) else None

    def __enter__(self) -> Self:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A generator that is given up may be closed by any thread.
        if self._before is not None and _in_main_thread() and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._before)

    def require_none(self) -> None:
        """Raise KeyboardInterrupt if there has been one: who gets here has not been told."""
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = True
        if self._before is not None:
            self._before(signum, frame)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_TICK = 0.5
"""Seconds after which workers are counted again, and calls that take too long are looked for."""

_QUIET = 30.0
"""Seconds without the end of any call after which a look is taken at whether all workers are paused."""

_LONGEST_PAUSE = 60.0
"""Seconds at most before a call is made again."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How often calls are made."""

    attempts: int = 3
    """Times a call is made before it counts as failed."""

    pause: float = 1.0
    """Seconds before the second attempt; twice as long before each further one, give or take a half."""

    timeout: float = 1800.0
    """Seconds from handing a call to the cluster after which its worker counts as stuck."""

    look_ahead: int = 2
    """Calls for each thread of the cluster that the scheduler knows of at a time."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call."""

    name: str
    """Shown on the dashboard; different for each call of a run."""

    function: Callable[..., Any]
    """What is called; a module-level function."""

    args: tuple[Any, ...]
    """Its arguments; futures among them are resolved on the worker."""

    about: Any = None
    """Whatever the caller wants to know it by; it stays here."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """How one attempt ended."""

    call: Call
    """The call."""

    attempt: int
    """Counted from 1."""

    seconds: float
    """From handing it to the cluster to its end."""

    result: Any = None
    """What it returned."""

    error: BaseException | None = None
    """Why it failed."""

    final: bool = True
    """False: it will be made again."""

    worker: str | None = None
    """Address of the worker that failed, if known."""


@dataclass(frozen=True, eq=False)
class _Flight:
    """A call on the cluster."""

    call: Call
    """What is called."""

    attempt: int
    """Counted from 1."""

    since: float = 0.0
    """When it was handed to the cluster, of `time.monotonic`."""

    avoid: str | None = None
    """Address of a worker on which it has failed."""


def run_bounded(client: Client, calls: Iterator[Call], policy: Policy) -> Iterator[Outcome]:
    """Make calls on a cluster and yield how each attempt ended, in the order in which they end.

    Parameters
    ----------
    calls
        Asked for more whenever there is room, also after it had none: what has ended may lead to further calls. There
        is an end when it has none and none is under way.

    Raises
    ------
    KeyboardInterrupt
        Somebody has pressed Ctrl-C, even if Python dropped the exception.
    ClusterError
        The scheduler is gone. What has been yielded is true; the rest has not happened or will be done again.
    """
    bounded = _Bounded(client, calls, policy)
    try:
        with Interrupts() as interrupts:
            yield from bounded.outcomes(interrupts)
    except (OSError, CancelledError) as error:  # what Dask's connections raise, and futures whose scheduler has gone
        raise _gone(client) from error
    finally:
        with suppress(Exception):
            client.cancel(list(bounded.flying), force=True)


class _Bounded:
    """Calls under way."""

    def __init__(self, client: Client, calls: Iterator[Call], policy: Policy) -> None:
        self._client, self._calls, self._policy = client, calls, policy
        self.flying: dict[Future, _Flight] = {}
        self._again: list[tuple[float, int, _Flight]] = []
        """Calls to be made once more: when they are due, a number that orders equal times, the attempt."""
        self._numbers = itertools.count()
        self._ended: SimpleQueue[Future] = SimpleQueue()
        self._suspects = Suspects(client)
        self._threads, self._looked = 1, -math.inf
        self._last_ended, self._told_paused = time.monotonic(), False

    def outcomes(self, interrupts: Interrupts) -> Iterator[Outcome]:
        """Yield how each attempt ended."""
        while True:
            interrupts.require_none()
            late = self._look_around()
            self._launch()
            if not self.flying and not self._again and not late:
                return
            for outcome in itertools.chain(late, self._landed()):
                if not outcome.final:
                    self._make_again(outcome)
                yield outcome

    def _look_around(self) -> list[Outcome]:
        """Count the threads of the cluster and give up calls that take too long, once in a while."""
        now = time.monotonic()
        if now - self._looked < _TICK:
            return []
        if self._client.status != "running":
            raise _gone(self._client)
        self._looked = now
        self._threads = max(sum(self._client.nthreads().values()), 1)
        late = self._stuck(now)
        self._suspects.look()
        if not self._told_paused and now - self._last_ended > _QUIET:
            self._tell_paused()
        return late

    def _tell_paused(self) -> None:
        """Say once that no call is begun because every worker has more memory in use than Dask allows it."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        if workers and all(worker["status"] == "paused" for worker in workers):
            self._told_paused = True
            LOG.warning(
                "all %d workers are paused: they use more of their memory than distributed.worker.memory.pause allows; "
                "give them more memory, or take smaller chunks",
                len(workers),
            )

    def _launch(self) -> None:
        """Hand calls to the cluster where there is room: first those that are due again, then new ones all at once."""
        most = self._policy.look_ahead * self._threads
        room = most - len(self.flying)
        if room < max(1, most // 4):
            # Each time costs the client and the scheduler a millisecond, whatever is handed over.
            return
        while room and self._again and self._again[0][0] <= time.monotonic():
            flight = heapq.heappop(self._again)[2]
            self._watch(_again_elsewhere(self._client, flight), flight)
            room -= 1
        new = [_Flight(call, 1) for call in itertools.islice(self._calls, room)]
        for flight, future in zip(new, _submitted(self._client, new), strict=True):
            self._watch(future, flight)

    def _watch(self, future: Future, flight: _Flight) -> None:
        self.flying[future] = replace(flight, since=time.monotonic())
        future.add_done_callback(self._ended.put)

    def _landed(self) -> list[Outcome]:
        """Wait a little for calls to end, and return how they did."""
        if not self.flying:
            time.sleep(min(max(self._again[0][0] - time.monotonic(), 0.0), _TICK) if self._again else 0.0)
            return []
        ended: list[Future] = []
        with suppress(Empty):
            ended.append(self._ended.get(timeout=_TICK))
            self._last_ended = time.monotonic()
            while True:
                ended.append(self._ended.get_nowait())
        flights = {future: self.flying.pop(future) for future in ended if future in self.flying}
        failed = ("error", "cancelled")
        results, lost = fetch_results(self._client, [future for future in flights if future.status not in failed])
        self._suspects.add(getattr(error, "worker", None) for error in lost.values())
        return [self._outcome(future, flight, results, lost) for future, flight in flights.items()]

    def _outcome(
        self, future: Future, flight: _Flight, results: Mapping[Future, Any], lost: Mapping[Future, Exception]
    ) -> Outcome:
        seconds = time.monotonic() - flight.since
        if future.status == "cancelled" or self._client.status != "running":
            # Nobody cancels these but a client that has lost its scheduler.
            raise _gone(self._client)
        if future in results:
            future.release()
            return Outcome(flight.call, flight.attempt, seconds, result=results[future])
        error = lost[future] if future in lost else future.exception()
        future.release()
        final = not _may_pass(error) or flight.attempt >= self._policy.attempts
        worker = getattr(error, "worker", None) or getattr(getattr(error, "last_worker", None), "address", None)
        return Outcome(flight.call, flight.attempt, seconds, error=_named(error), final=final, worker=worker)

    def _make_again(self, outcome: Outcome) -> None:
        pause = backoff(outcome.attempt, self._policy.pause, _LONGEST_PAUSE)
        flight = _Flight(outcome.call, outcome.attempt + 1, avoid=outcome.worker)
        heapq.heappush(self._again, (time.monotonic() + pause, next(self._numbers), flight))

    def _stuck(self, now: float) -> list[Outcome]:
        """Give up calls whose worker does not answer; it may still finish them, which does no harm."""
        timeout = self._policy.timeout
        late = [future for future, flight in self.flying.items() if now - flight.since > timeout]
        if not late:
            return []
        at = {key: worker for worker, keys in self._client.processing().items() for key in keys}
        outcomes = [self._given_up(future, at.get(future.key), now) for future in late]
        self._suspects.add(outcome.worker for outcome in outcomes)
        return outcomes

    def _given_up(self, future: Future, worker: str | None, now: float) -> Outcome:
        flight = self.flying.pop(future)
        self._client.cancel([future], force=True)
        error = S2CompositeError(
            f"{flight.call.name}: no answer in {self._policy.timeout:.0f} s from worker {worker or 'unknown'}; it is "
            "frozen, overloaded, or the window takes longer than policy.timeout allows",
            transient=True,
        )
        final = flight.attempt >= self._policy.attempts
        return Outcome(flight.call, flight.attempt, now - flight.since, error=error, final=final, worker=worker)


def _submitted(client: Client, flights: Sequence[_Flight]) -> list[Future]:
    """Hand new calls to the cluster in one message."""
    if not flights:
        return []
    calls = [flight.call for flight in flights]
    functions, args = [call.function for call in calls], [call.args for call in calls]
    futures: list[Future] = client.map(_on_worker, functions, args, key=[call.name for call in calls], pure=False)
    return futures


def _again_elsewhere(client: Client, flight: _Flight) -> Future:
    """Hand a call to the cluster once more, for another worker if there is one."""
    others = [address for address in client.nthreads() if address != flight.avoid] if flight.avoid else []
    where = {"workers": others, "allow_other_workers": True} if others else {}
    key = f"{flight.call.name}-{flight.attempt}"
    return client.submit(_on_worker, flight.call.function, flight.call.args, key=key, pure=False, **where)


def _on_worker(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function; an error of the library says on which worker it happened."""
    try:
        return function(*args)
    except S2CompositeError as error:
        error.__dict__["worker"] = get_worker().address
        raise


def _may_pass(error: BaseException | None) -> bool:
    """Whether trying again can help: errors of the library say so themselves, others may have any cause."""
    if isinstance(error, S2CompositeError):
        return bool(getattr(error, "transient", isinstance(error, WriteError)))
    return True


def _named(error: BaseException | None) -> BaseException | None:
    """Say in our words that workers die, which Dask reports as a task that was tried several times."""
    if isinstance(error, KilledWorker):
        return S2CompositeError(
            "the workers that tried this died, most likely for want of memory; take smaller chunks, fewer threads, or "
            "more memory for each worker"
        )
    return error


def _gone(client: Client) -> ClusterError:
    return ClusterError(
        f"the scheduler is gone ({client.scheduler.address if client.scheduler else 'closed'}); what is done stays "
        "done: start the cluster again and resume the job",
        resumable=True,
    )
