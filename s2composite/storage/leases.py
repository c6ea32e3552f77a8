"""Leases of requests: who may send how many requests to a host now, counted in one place for all that ask.

That place is a `Desk`, in the process or in Dask's scheduler (`s2composite.scheduler_desk`). A lease is a batch of
requests, and a connection where these are limited. When it is returned its requests go on counting for as long as the
host may count them. So the number of requests that arrive at the host in any period is no more than what it allows,
however long they are on their way and in whatever order they arrive.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Desk", "Grant", "Rates", "Want"]

# Servers of a host may count a request a little later than they answer it: what they allow in a period is spread over
# this much more.
_MARGIN = 1.01

# Share of a period's requests in one lease: it counts from when it is granted, so large ones would lower the rate.
_SHARE = 0.01

Want = tuple[int, int]  # of one read that waits: requests, bytes


@dataclass(frozen=True, slots=True)
class Rates:
    """What a host allows; None: as much as one likes."""

    connections: int | None = None  # at once
    requests: int | None = None  # in a period
    period: float = 60.0  # seconds
    bytes: float | None = None  # a second

    def countable(self, requests: int) -> int:
        """Return what a read with so many requests counts: no more than a whole period's, or it would never begin."""
        return requests if self.requests is None else min(requests, self.requests)


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease: requests that may be made now, one after the other where connections are limited."""

    number: int  # its name at the desk
    requests: int
    bytes: int


@dataclass(slots=True)
class _Host:
    """What has been granted of a host."""

    connections: int = 0  # open leases
    spent: deque[tuple[float, int]] = field(default_factory=deque)  # until when so many requests count
    counting: int = 0  # requests of open leases and spent ones
    paid_until: float = -math.inf  # when the bytes granted so far will have had their time

    def take(self, rates: Rates, wants: Sequence[Want], now: float) -> Want | float:
        """Return the size of a lease for the first reads that wait, or the seconds after which there may be one."""
        share = len(wants)
        if rates.connections is not None:
            free = rates.connections - self.connections
            if free <= 0:
                return math.inf
            share = -(-share // free)  # the others are for the other connections
        while self.spent and self.spent[0][0] <= now:
            self.counting -= self.spent.popleft()[1]
        if rates.bytes is not None and self.paid_until > now:
            return self.paid_until - now
        room = math.inf if rates.requests is None else rates.requests - self.counting
        most_requests = math.inf if rates.requests is None else min(room, max(1, int(rates.requests * _SHARE)))
        most_bytes = math.inf if rates.bytes is None else rates.bytes
        requests, size = wants[0]
        requests = rates.countable(requests)
        if requests > room:
            return self.spent[0][0] - now if self.spent else math.inf
        for more, larger in wants[1:share]:
            if requests + more > most_requests or size + larger > most_bytes:
                break
            requests, size = requests + more, size + larger
        self.connections += 1
        self.counting += requests
        if rates.bytes is not None:
            self.paid_until = max(self.paid_until, now) + size / rates.bytes
        return requests, size

    def settle(self, grant: Grant, rates: Rates, requests: int, size: int, now: float) -> None:
        """End a lease of which so many requests and bytes were used."""
        self.connections -= 1
        self.counting -= grant.requests - requests
        self.spent.append((now + rates.period * _MARGIN, requests))
        if rates.bytes is not None:
            self.paid_until -= (grant.bytes - size) / rates.bytes


@dataclass(slots=True)
class _Ask:
    holder: str
    rates: Rates
    wants: Sequence[Want]
    granted: asyncio.Future[Grant | None]


class Desk:
    """Grants leases in the order in which they are asked for, by name of what is counted together; in one event loop.

    `exists` tells whether a holder is still there, `clock` the seconds.
    """

    def __init__(
        self, exists: Callable[[str], bool] = lambda _: True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._exists, self._clock = exists, clock
        self._numbers = itertools.count()
        self._hosts: dict[str, _Host] = {}
        self._asks: dict[str, deque[_Ask]] = {}
        self._open: dict[int, tuple[Grant, str, _Ask]] = {}  # leases by number, the name they are of, who asked
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def lease(self, holder: str, name: str, rates: Rates, wants: Sequence[Want]) -> Grant | None:
        """Wait for a lease; None: the holder is gone."""
        ask = _Ask(holder, rates, wants, asyncio.get_running_loop().create_future())
        self._asks.setdefault(name, deque()).append(ask)
        self._serve(name)
        return await ask.granted

    def settle(self, number: int, requests: int, size: int) -> None:
        """End a lease of which so many requests and bytes were used; one that has ended stays as it is."""
        if (lease := self._open.pop(number, None)) is not None:
            grant, name, ask = lease
            self._hosts[name].settle(grant, ask.rates, requests, size, self._clock())
            self._serve(name)

    def forget(self, holder: str) -> None:
        """End the leases of a holder that is gone: its connections are free, its requests were perhaps made."""
        for grant in [grant for grant, _, ask in self._open.values() if ask.holder == holder]:
            self.settle(grant.number, grant.requests, grant.bytes)
        for name in list(self._asks):
            self._serve(name)

    def _serve(self, name: str) -> None:
        """Grant what can be granted now, and come back when more can."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        host, asks = self._hosts.setdefault(name, _Host()), self._asks.get(name, deque())
        while asks:
            ask = asks[0]
            if ask.granted.done() or not self._exists(ask.holder):
                asks.popleft()
                if not ask.granted.done():
                    ask.granted.set_result(None)
                continue
            taken = host.take(ask.rates, ask.wants, self._clock())
            if not isinstance(taken, tuple):
                if math.isfinite(taken):
                    self._timers[name] = asyncio.get_running_loop().call_later(taken, self._serve, name)
                return
            asks.popleft()
            grant = Grant(next(self._numbers), *taken)
            self._open[grant.number] = grant, name, ask
            ask.granted.set_result(grant)
