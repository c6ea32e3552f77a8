"""Bounded: many calls on a cluster, a few at a time, each tried again where that may help.

The scheduler never holds more than the calls in flight: a million of them wait here, as a generator. A call that fails
in a way that may pass is made again after a pause, on another worker; so is one whose worker does not answer in time.
Whatever is called must not mind being made twice.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future, KilledWorker, get_worker, wait
from distributed.client import FuturesCancelledError

from s2composite.errors import ClusterError, S2CompositeError, WriteError

__all__ = ["Call", "Outcome", "Policy", "run_bounded"]

LOG = logging.getLogger(__name__)

_TICK = 0.5
"""Seconds after which calls that take too long are looked for."""

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
    attempt: int
    since: float
    """Of `time.monotonic`."""


def run_bounded(client: Client, calls: Iterator[Call], policy: Policy) -> Iterator[Outcome]:
    """Make calls on a cluster and yield how each attempt ended, in the order in which they end.

    Raises
    ------
    ClusterError
        The scheduler is gone. What has been yielded is true; the rest has not happened or will be done again.
    """
    flying: dict[Future, _Flight] = {}
    again: list[tuple[float, int, Call, int, str | None]] = []
    try:
        yield from _until_done(client, calls, policy, flying, again)
    except OSError as error:  # what Dask's connections raise, too
        raise _gone(client) from error
    finally:
        with suppress(Exception):
            client.cancel(list(flying), force=True)


def _until_done(
    client: Client,
    calls: Iterator[Call],
    policy: Policy,
    flying: dict[Future, _Flight],
    again: list[tuple[float, int, Call, int, str | None]],
) -> Iterator[Outcome]:
    numbers = itertools.count()
    while True:
        _launch(client, calls, policy, flying, again)
        if not flying and not again:
            return
        for future in _ended(flying, again):
            flight = flying.pop(future)
            outcome = _outcome(client, future, flight, policy)
            future.release()
            if not outcome.final:
                due = time.monotonic() + _pause(policy, flight.attempt)
                heapq.heappush(again, (due, next(numbers), flight.call, flight.attempt + 1, outcome.worker))
            yield outcome
        for outcome in _stuck(client, flying, policy):
            if not outcome.final:
                entry = (time.monotonic(), next(numbers), outcome.call, outcome.attempt + 1, outcome.worker)
                heapq.heappush(again, entry)
            yield outcome


def _launch(
    client: Client,
    calls: Iterator[Call],
    policy: Policy,
    flying: dict[Future, _Flight],
    again: list[tuple[float, int, Call, int, str | None]],
) -> None:
    """Hand calls to the cluster while there is room: first those that are due again."""
    if client.status != "running":
        raise _gone(client)
    threads = max(sum(client.nthreads().values()), 1)
    while len(flying) < policy.look_ahead * threads:
        if again and again[0][0] <= time.monotonic():
            _, _, call, attempt, avoid = heapq.heappop(again)
        else:
            found = next(calls, None)
            if found is None:
                return
            call, attempt, avoid = found, 1, None
        flying[_submitted(client, call, attempt, avoid)] = _Flight(call, attempt, time.monotonic())


def _submitted(client: Client, call: Call, attempt: int, avoid: str | None) -> Future:
    others = [address for address in client.nthreads() if address != avoid] if avoid else []
    where = {"workers": others, "allow_other_workers": True} if others else {}
    key = f"{call.name}-{attempt}" if attempt > 1 else call.name
    return client.submit(_on_worker, call.function, *call.args, key=key, pure=False, **where)


def _on_worker(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function; an error of the library says on which worker it happened."""
    try:
        return function(*args)
    except S2CompositeError as error:
        error.__dict__["worker"] = get_worker().address
        raise


def _ended(flying: dict[Future, _Flight], again: list[tuple[float, int, Call, int, str | None]]) -> list[Future]:
    """Wait a little for calls to end, and return those that did."""
    if not flying:
        time.sleep(min(max(again[0][0] - time.monotonic(), 0.0), _TICK))
        return []
    with suppress(TimeoutError, FuturesCancelledError):
        wait(list(flying), timeout=_TICK, return_when="FIRST_COMPLETED")
    return [future for future in flying if future.status != "pending"]


def _outcome(client: Client, future: Future, flight: _Flight, policy: Policy) -> Outcome:
    seconds = time.monotonic() - flight.since
    if future.status == "finished":
        return Outcome(flight.call, flight.attempt, seconds, result=future.result())
    if future.status == "cancelled" or client.status != "running":
        # Nobody cancels these but a client that has lost its scheduler.
        raise _gone(client)
    error = future.exception() if future.status == "error" else RuntimeError(f"the task was {future.status}")
    final = not _may_pass(error) or flight.attempt >= policy.attempts
    worker = getattr(error, "worker", None) or getattr(getattr(error, "last_worker", None), "address", None)
    return Outcome(flight.call, flight.attempt, seconds, error=_named(error), final=final, worker=worker)


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


def _stuck(client: Client, flying: dict[Future, _Flight], policy: Policy) -> Iterator[Outcome]:
    """Give up calls whose worker does not answer; it may still finish them, which does no harm."""
    now = time.monotonic()
    late = [future for future, flight in flying.items() if now - flight.since > policy.timeout]
    if not late:
        return
    at = {key: worker for worker, keys in client.processing().items() for key in keys}
    for future in late:
        flight, worker = flying.pop(future), at.get(future.key)
        client.cancel([future], force=True)
        error = S2CompositeError(
            f"{flight.call.name}: no answer in {policy.timeout:.0f} s from worker {worker or 'unknown'}; it is frozen, "
            "overloaded, or the window takes longer than policy.timeout allows",
            transient=True,
        )
        yield Outcome(
            flight.call,
            flight.attempt,
            now - flight.since,
            error=error,
            final=flight.attempt >= policy.attempts,
            worker=worker,
        )


def _pause(policy: Policy, attempt: int) -> float:
    longest = min(policy.pause * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


def _gone(client: Client) -> ClusterError:
    return ClusterError(
        f"the scheduler is gone ({client.scheduler.address if client.scheduler else 'closed'}); what is done stays "
        "done: start the cluster again and resume the job",
        resumable=True,
    )
