"""Stream: the calls of many products as one: windows of the next one are made while the last one is finished."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from distributed import Client

from s2composite.running.bounded import Call, Outcome, Policy, run_bounded
from s2composite.running.making import Making

__all__ = ["Entry", "make_all"]


@dataclass(frozen=True, eq=False)
class Entry:
    """One product among many."""

    name: Any
    """Whatever the caller wants to know it by."""

    making: Making | None
    """None: there is nothing to make."""


def make_all(client: Client, entries: Iterator[Entry], policy: Policy) -> Iterator[tuple[Entry, Outcome | None]]:
    """Make products on a cluster; yield each as it ends, with None, and before that how each attempt of a call ended.

    A product begins when all those before it have handed over all calls that they have at the time. So few are open at
    once: as many as have calls under way.

    Parameters
    ----------
    entries
        Asked for the next one in a thread of its own, while those before are being made.

    Raises
    ------
    ClusterError
        The scheduler is gone.
    """
    with _Agenda(entries) as agenda:
        for outcome in run_bounded(client, agenda, policy):
            making: Making = outcome.call.about[0]
            making.take(outcome)
            yield agenda.entry_of(making), outcome
            yield from ((entry, None) for entry in agenda.ended())
        yield from ((entry, None) for entry in agenda.ended())


class _Agenda(Iterator[Call]):
    """What is to be done: calls of the product begun first, if it has any now, else of the next."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        self._entries = entries
        self._open: list[Entry] = []
        self._ended: list[Entry] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="s2composite-next-product")
        self._coming: Future[Entry | None] | None = self._asked()

    def __next__(self) -> Call:
        while True:
            for entry in list(self._open):
                call = None if entry.making is None else entry.making.next_call()
                if call is not None:
                    return call
                if entry.making is None or entry.making.ended:
                    self._open.remove(entry)
                    self._ended.append(entry)
            # While there is something under way nothing is waited for: it would not be heeded.
            if self._coming is None or (self._open and not self._coming.done()):
                raise StopIteration
            entry_or_none = self._coming.result()
            self._coming = None if entry_or_none is None else self._asked()
            self._open += [] if entry_or_none is None else [entry_or_none]

    def entry_of(self, making: Making) -> Entry:
        """Return the entry of a product that is being made."""
        return next(entry for entry in self._open if entry.making is making)

    def ended(self) -> list[Entry]:
        """Return the products that have ended since this was last asked."""
        ended, self._ended = self._ended, []
        return ended

    def _asked(self) -> Future[Entry | None]:
        # The current client is a variable of the context.
        return self._pool.submit(copy_context().run, self._next)

    def _next(self) -> Entry | None:
        return next(self._entries, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        coming = (
            self._coming.result() if self._coming and self._coming.done() and not self._coming.cancelled() else None
        )
        for entry in [*self._open, *([coming] if coming else [])]:
            if entry.making is not None:
                entry.making.close()
