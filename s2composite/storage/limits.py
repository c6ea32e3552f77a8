"""Limits of hosts: connections at once, requests a minute and bytes a second, kept by all that read together.

Each read asks for its turn with `permit` (`gdal_permit` for GDAL). The threads of a process share the limits, and so do
the workers and clients of a Dask cluster, whose scheduler then does the counting (`s2composite.scheduler_desk`).
Which limits hold is said by the environment (``S2COMPOSITE_LIMITS``) and, host by host before that, by `declare`.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import math
import os
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, islice
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import yaml

from s2composite.errors import ParameterError, plural
from s2composite.storage.files import s3_endpoint

__all__ = [
    "PRESETS", "VARIABLE", "Desk", "Grant", "Lease", "LeaseSource", "Limit", "Rates", "Want", "declare", "gdal_permit",
    "lease_from", "limit_for", "limit_shares", "limits_text", "permit", "resolve_limits",
]  # fmt: skip

LOG = logging.getLogger(__name__)

VARIABLE = "S2COMPOSITE_LIMITS"  # the environment variable with limits as in a job: cdse, [cdse, earth-search], {...}

# --- What is asked for ----------------------------------------------------------------------------------------------


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
class Limit:
    """What is allowed on some hosts together."""

    name: str  # a preset's, or the host's
    hosts: tuple[str, ...]  # these, and all hosts of these domains
    rates: Rates

    def __str__(self) -> str:
        rates, texts = self.rates, []
        if rates.connections is not None:
            texts.append(plural(rates.connections, "connection"))
        if rates.requests is not None:
            unit = {60.0: "minute", 1.0: "second"}[rates.period]
            texts.append(f"{plural(rates.requests, 'request')} a {unit}")
        if rates.bytes is not None:
            texts.append(f"{rates.bytes / 1e6:g} MB a second")
        return f"{self.name}: {', '.join(texts) or 'no limit'}"

    def seconds(self, requests: float, size: float) -> float:
        """Return how long so many requests and bytes take at least."""
        rates = self.rates
        waiting = 0.0 if rates.requests is None else max(0.0, requests / rates.requests - 1) * rates.period
        return max(waiting, 0.0 if rates.bytes is None else size / rates.bytes)


Limits: TypeAlias = Mapping[str, Mapping[str, Any]]  # numbers by name; those of a preset may be left out

PRESETS: Mapping[str, Limit] = {
    limit.name: limit
    for limit in (
        # Quotas of a registered user of the Copernicus Data Space Ecosystem for its S3 interface:
        # https://documentation.dataspace.copernicus.eu/Quotas.html
        Limit("cdse", ("eodata.dataspace.copernicus.eu",), Rates(connections=4, requests=2000)),
        # Microsoft publishes no limit for its readers. Azure takes 20,000 requests a second for an account, which all
        # its readers share; the part of it is our choice.
        Limit(
            "planetary-computer",
            ("blob.core.windows.net", "planetarycomputer.microsoft.com"),
            Rates(requests=1000, period=1.0),
        ),
        # Amazon takes at least 5,500 GET requests a second for a prefix of a bucket, of all readers together:
        # https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html
        # The part of it is our choice.
        Limit(
            "earth-search",
            tuple(
                f"{bucket}.{server}"
                for bucket in ("sentinel-cogs", "e84-earth-search-sentinel-data")
                for server in ("s3.us-west-2.amazonaws.com", "s3.amazonaws.com")
            ),
            Rates(requests=1000, period=1.0),
        ),
    )
}

_KEYS = ("connections", "requests", "bytes")
_RATE = re.compile(r"\s*(\d+)\s*/\s*(minute|second)\s*")
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)B")
_HOST = re.compile(r"(localhost|[a-z0-9-]+(\.[a-z0-9-]+)+)")


def _numbers(name: str, given: Any) -> dict[str, Any]:
    """Return the fields of `Rates` in the numbers given for a host."""
    if not isinstance(given, Mapping):
        raise ParameterError(f"limits: {name}: expected numbers such as {{connections: 4}}, got {given!r}")
    found: dict[str, Any] = {}
    for key, value in given.items():
        where = f"limits: {name}: {key}"
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            raise ParameterError(f"{where}: unknown key; {f'did you mean {near[0]}?' if near else ', '.join(_KEYS)}")
        rate = _RATE.fullmatch(value) if isinstance(value, str) else None
        number = value
        if key == "requests" and rate is not None:
            number, found["period"] = int(rate[1]), {"minute": 60.0, "second": 1.0}[rate[2]]
        elif key == "requests":
            found["period"] = 60.0
        elif key == "bytes" and isinstance(value, str):
            size = _BYTES.fullmatch(value)
            number = 0.0 if size is None else float(size[1]) * _UNITS[size[2]]
        whole = isinstance(number, int) or (key == "bytes" and isinstance(number, float) and math.isfinite(number))
        if value is not None and (not whole or isinstance(number, bool) or number <= 0):
            form = {
                "connections": "a whole number from 1",
                "requests": "a whole number from 1 a minute, or '100/second'",
                "bytes": "bytes a second above 0, such as 20MB",
            }
            raise ParameterError(f"{where}: expected {form[key]}, got {value!r}")
        found[key] = number
    return found


def _as_mapping(given: Any) -> Limits:
    """Return limits by name, from a preset's name, a list of those, or a mapping."""
    if isinstance(given, str):
        return {given: {}}
    if isinstance(given, Mapping):
        return {str(name): {} if numbers is None else numbers for name, numbers in given.items()}
    if isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given):
        return {name: {} for name in given}
    raise ParameterError(
        f"limits: expected a preset ({', '.join(PRESETS)}), a list of these, or numbers by host, "
        f"{{data.example.com: {{connections: 4, requests: 2000, bytes: 20MB}}}}; got {given!r}"
    )


def resolve_limits(given: Any) -> tuple[Limit, ...]:
    """Return the limits that a preset's name, a list of those, or a mapping of presets and hosts stands for.

    >>> [str(limit) for limit in resolve_limits({"cdse": {"connections": 2}, "example.com": {"bytes": "20MB"}})]
    ['cdse: 2 connections, 2000 requests a minute', 'example.com: 20 MB a second']
    """
    found = []
    for name, numbers in ({} if given is None else _as_mapping(given)).items():
        own, preset = _numbers(name, numbers), PRESETS.get(name)
        if preset is None and not _HOST.fullmatch(name):
            near = difflib.get_close_matches(name, PRESETS, 1)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
            raise ParameterError(f"limits: {name!r} is neither a preset nor a host such as data.example.com; {meant}")
        if preset is None and not own:
            raise ParameterError(f"limits: {name}: has no numbers; give {', '.join(_KEYS[:-1])} or {_KEYS[-1]}")
        if preset is None:
            found.append(Limit(name, (name,), Rates(**own)))
        else:
            kept = {key: getattr(preset.rates, key) for key in (*_KEYS, "period")}
            found.append(Limit(name, preset.hosts, Rates(**{**kept, **own})))
    return tuple(found)


def limits_text(given: Any) -> str:
    """Return the value of the environment variable in which `given` comes before what is in the variable now."""
    resolve_limits(given)
    text = os.environ.get(VARIABLE)
    return json.dumps({**({} if text is None else _as_mapping(_parsed(text))), **_as_mapping(given)})


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParameterError(f"{VARIABLE} is not valid YAML: {text!r}") from error


# --- What holds in this process --------------------------------------------------------------------------------------

_declared: tuple[Limit, ...] = ()


def declare(limits: tuple[Limit, ...]) -> None:
    """Let limits hold for all reads of this process from now on, in place of those of the same name."""
    global _declared  # noqa: PLW0603 - what a host allows is one thing for a process
    if limits and not set(limits) <= set(_declared):
        names = {limit.name for limit in limits}
        _declared = (*(limit for limit in _declared if limit.name not in names), *limits)


def limit_for(href: str) -> Limit | None:
    """Return the limit that holds for a URL; None: there is none.

    An object on ``s3://bucket/`` is on the host ``bucket.s3.amazonaws.com`` or on that of ``AWS_ENDPOINT_URL``, one on
    ``gs://`` on ``storage.googleapis.com``.
    """
    text = os.environ.get(VARIABLE)
    if text is None and not _declared:
        return None
    if href.startswith("s3://"):
        href = s3_endpoint() or f"https://{href[5:].partition('/')[0]}.s3.amazonaws.com"
    elif href.startswith("gs://"):
        href = "https://storage.googleapis.com"
    return _limit_of(urlsplit(href).hostname or "", text, _declared)


def limit_shares(hrefs: Iterable[str]) -> tuple[tuple[Limit, float], ...]:
    """Return the limits that hold for some URLs, each with the share of the URLs."""
    found = Counter(map(limit_for, hrefs))
    return tuple((limit, n / found.total()) for limit, n in found.items() if limit is not None)


@lru_cache(1024)
def _limit_of(host: str, text: str | None, declared: tuple[Limit, ...]) -> Limit | None:
    names = {limit.name for limit in declared}
    others = () if text is None else (one for one in resolve_limits(_parsed(text)) if one.name not in names)
    covering = [
        (len(domain), limit)
        for limit in (*others, *declared)
        for domain in limit.hosts
        if f".{host}".endswith(f".{domain}")
    ]
    return max(covering, key=lambda one: one[0], default=(0, None))[1]


# --- Leases: who may send how many requests to a host now, counted in one place for all that ask --------------------

# That place is a `Desk`, in the process or in Dask's scheduler. A lease is a batch of requests, and a connection where
# these are limited. When it is returned its requests go on counting for as long as the host may count them. So the
# number of requests that arrive at the host in any period is no more than what it allows, however long they are on
# their way and in whatever order they arrive.

# Servers of a host may count a request a little later than they answer it: what they allow in a period is spread over
# this much more.
_MARGIN = 1.01

# Share of a period's requests in one lease: it counts from when it is granted, so large ones would lower the rate.
_SHARE = 0.01

Want = tuple[int, int]  # of one read that waits: requests, bytes


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
        self._numbers = count()
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


# --- Turns ----------------------------------------------------------------------------------------------------------

_LONGEST = 1.0  # seconds after which a connection is given back, also where more requests were granted

_MOST_WANTS = 64  # reads that a process asks for at a time


@dataclass(eq=False, slots=True)
class Lease:
    """Requests that this process may make now."""

    source: LeaseSource
    grant: Grant
    rates: Rates
    began: float = field(default_factory=time.monotonic)
    requests: int = 0  # made so far
    bytes: int = 0
    running: int = 0
    kept: Any = None

    @property
    def has_connection(self) -> bool:
        """Whether it is for one connection, which ends with it."""
        return self.rates.connections is not None

    async def keep(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Return what `make` makes for this lease, once; it is closed with the lease."""
        if self.kept is None:
            self.kept = await make()
        return self.kept

    async def give_back(self) -> None:
        """Close what was made for it, and end it."""
        try:
            if self.kept is not None:
                await self.kept.close()
        finally:
            await self.source.settle(self.grant.number, self.requests, self.bytes)

    def takes(self, want: Want) -> bool:
        """Return whether it has room for a read."""
        if self.has_connection and (self.running or (self.requests and time.monotonic() - self.began > _LONGEST)):
            return False
        enough = self.requests + self.rates.countable(want[0]) <= self.grant.requests
        return enough and (self.rates.bytes is None or self.bytes + want[1] <= self.grant.bytes)


@dataclass(eq=False, slots=True)
class _Gate:
    """Reads of this process that wait for their turn on the hosts of a limit; in one event loop."""

    limit: Limit
    waiting: deque[tuple[Want, asyncio.Future[Lease]]] = field(default_factory=deque)
    asking: asyncio.Task[None] | None = None
    ending: set[asyncio.Task[None]] = field(default_factory=set)

    async def turn(self, want: Want) -> Lease:
        """Wait for the turn of a read."""
        turn: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self.waiting.append((want, turn))
        if self.asking is None:
            self.asking = asyncio.create_task(self._ask())
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # its turn had come before
                self.end(turn.result())
            raise

    async def _ask(self) -> None:
        """Ask for leases as long as reads wait."""
        try:
            while self._drop_cancelled():
                wants = [want for want, _ in islice(self.waiting, _MOST_WANTS)]
                source = _find_shared() or _OWN.setdefault(asyncio.get_running_loop(), _OwnDesk())
                grant = await source.lease(self.limit, wants)
                if isinstance(grant, Grant):
                    self._begin(Lease(source, grant, self.limit.rates))
                elif self._drop_cancelled():
                    LOG.warning("limits: %s; this process keeps the limits of %s by itself", grant, self.limit)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - those who wait raise it
            while self._drop_cancelled():
                self.waiting.popleft()[1].set_exception(error)
        finally:
            self.asking = None

    def _drop_cancelled(self) -> bool:
        while self.waiting and self.waiting[0][1].done():
            self.waiting.popleft()
        return bool(self.waiting)

    def _begin(self, lease: Lease) -> None:
        """Begin the reads that a lease has room for; give it back if there are none and none run."""
        while self._drop_cancelled() and lease.takes(self.waiting[0][0]):
            (requests, size), turn = self.waiting.popleft()
            lease.requests += lease.rates.countable(requests)
            lease.bytes += size
            lease.running += 1
            turn.set_result(lease)
        if not lease.running:
            task = asyncio.create_task(lease.give_back())
            self.ending.add(task)
            task.add_done_callback(self.ending.discard)

    def end(self, lease: Lease) -> None:
        """End a read."""
        lease.running -= 1
        self._begin(lease)


_GATES: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Limit, _Gate]] = WeakKeyDictionary()


@asynccontextmanager
async def permit(href: str, size: int, requests: int = 1) -> AsyncIterator[Lease | None]:
    """Wait until so many requests of `size` bytes in all may be made of the host of a URL; None: it has no limit."""
    limit = limit_for(href)
    if limit is None:
        yield None
        return
    gate = _GATES.setdefault(asyncio.get_running_loop(), {}).setdefault(limit, _Gate(limit))
    lease = await gate.turn((requests, size))
    try:
        yield lease
    finally:
        gate.end(lease)


@contextmanager
def gdal_permit(href: str, size: int, requests: int, loop: asyncio.AbstractEventLoop) -> Iterator[Lease | None]:
    """Wait as `permit` does, in a thread other than that of `loop`, in which it is asked for."""
    if limit_for(href) is None:
        yield None
        return
    waiting = permit(href, size, requests)
    turn = asyncio.run_coroutine_threadsafe(waiting.__aenter__(), loop)
    try:
        lease = turn.result()
    finally:
        turn.cancel()  # of one that was interrupted; what has come stays
    try:
        yield lease
    finally:
        asyncio.run_coroutine_threadsafe(waiting.__aexit__(None, None, None), loop).result()


# --- Where it is counted ----------------------------------------------------------------------------------------------


class LeaseSource(Protocol):
    """What counts for this process, asked in one event loop."""

    async def lease(self, limit: Limit, wants: list[Want]) -> Grant | str:
        """Wait for a lease; or return why it does not count any more: then it is not found again."""

    async def settle(self, number: int, requests: int, size: int) -> None:
        """End a lease of which so many requests and bytes were used."""


class _OwnDesk:
    """The desk of this process alone."""

    def __init__(self) -> None:
        self._desk = Desk()

    async def lease(self, limit: Limit, wants: list[Want]) -> Grant | str:
        return await self._desk.lease("", limit.name, limit.rates, wants) or ""

    async def settle(self, number: int, requests: int, size: int) -> None:
        self._desk.settle(number, requests, size)


_OWN: WeakKeyDictionary[asyncio.AbstractEventLoop, _OwnDesk] = WeakKeyDictionary()
_find_shared: Callable[[], LeaseSource | None] = lambda: None  # noqa: E731


def lease_from(find: Callable[[], LeaseSource | None]) -> None:
    """Ask what `find` returns for leases before this process counts by itself; it is called in the event loop."""
    global _find_shared  # noqa: PLW0603 - layers above this one know of clusters
    _find_shared = find
