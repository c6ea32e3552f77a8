"""Limits of hosts in a Dask cluster: leases of requests are counted in its scheduler.

The first worker or client that reads under a limit installs a desk in the scheduler. All ask it for leases, each a
batch of requests, over connections of their own, so that tasks and Dask's messages are not in the way. The leases of a
worker or client that dies end with it. Where the scheduler is gone, each process counts by itself.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from distributed.core import ConnectionPool
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps

from s2composite.storage.limits import Desk, Grant, Limit, Rates, Want, lease_from

__all__ = ["SchedulerDesk"]

_CONNECT = 10.0  # seconds after which a scheduler that does not answer counts as gone


class SchedulerDesk(SchedulerPlugin):  # type: ignore[misc] # distributed has no types
    """A desk in Dask's scheduler, for its workers and clients: the leases of those that die end."""

    name = "s2composite-limits"

    def start(self, scheduler: Any) -> None:
        """Begin; Dask calls this in the scheduler."""
        self._desk = Desk(lambda holder: holder in scheduler.workers or holder in scheduler.clients)
        scheduler.handlers["s2composite_lease"] = self._lease
        scheduler.handlers["s2composite_settle"] = self._settle

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:  # noqa: ARG002 - Dask passes it
        """End what a worker held."""
        self._desk.forget(worker)

    def remove_client(self, scheduler: Any, client: str) -> None:  # noqa: ARG002 - Dask passes it
        """End what a client held."""
        self._desk.forget(client)

    async def _lease(
        self, holder: str, host: str, rates: Sequence[Any], wants: Sequence[Sequence[int]]
    ) -> tuple[int, int, int] | None:
        grant = await self._desk.lease(holder, host, Rates(*rates), [(n, size) for n, size in wants])
        return None if grant is None else (grant.number, grant.requests, grant.bytes)

    def _settle(self, number: int, requests: int, size: int) -> str:
        self._desk.settle(number, requests, size)
        return "OK"


class _RemoteDesk:
    """The desk in the scheduler of a cluster that this process belongs to."""

    def __init__(self, address: str, holder: str, connection: Mapping[str, Any]) -> None:
        self._holder, self._address = holder, address
        self._pool = ConnectionPool(timeout=_CONNECT, connection_args=connection)
        self._scheduler = self._pool(address)
        self._begun = False
        self._beginning = asyncio.Lock()
        self.lost = False

    async def lease(self, limit: Limit, wants: list[Want]) -> Grant | str:
        """Wait for a lease; or return why the scheduler gives none: it is gone, or knows this process no more."""
        rates = limit.rates
        try:
            async with self._beginning:
                if not self._begun:
                    await self._pool.start()
                    install, plugin = self._scheduler.register_scheduler_plugin, SchedulerDesk()
                    await install(plugin=dumps(plugin), name=plugin.name, idempotent=True)
                    self._begun = True
            numbers = (rates.connections, rates.requests, rates.period, rates.bytes)
            granted = await self._scheduler.s2composite_lease(
                holder=self._holder, host=limit.name, rates=numbers, wants=wants
            )
        except (OSError, ImportError, AttributeError) as error:  # the last two: it lacks this s2composite
            self.lost = True
            return f"the scheduler at {self._address} does not count requests ({type(error).__name__}: {error})"
        if granted is None:
            self.lost = True
            return f"the scheduler at {self._address} does not know this process any more"
        return Grant(*granted)

    async def settle(self, number: int, requests: int, size: int) -> None:
        """End a lease; a scheduler that is gone needs no telling."""
        try:
            await self._scheduler.s2composite_settle(number=number, requests=requests, size=size)
        except OSError:
            self.lost = True


_DESKS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], _RemoteDesk]] = WeakKeyDictionary()


def _shared_desk() -> _RemoteDesk | None:
    """Return the desk of the cluster that this process belongs to, for the running event loop; None: there is none."""
    if (member := _member()) is None:
        return None
    address, holder, connection = member
    desks = _DESKS.setdefault(asyncio.get_running_loop(), {})
    if (address, holder) not in desks:
        desks[address, holder] = _RemoteDesk(address, holder, connection)
    return None if desks[address, holder].lost else desks[address, holder]


def _member() -> tuple[str, str, Mapping[str, Any]] | None:
    """Return the scheduler that this process works for or is a client of, its name there, and how to connect."""
    if (workers := sys.modules.get("distributed.worker")) is not None:
        # get_worker() knows only the thread of a task
        for worker in list(workers.Worker._instances):  # noqa: SLF001
            if worker.status.name in ("running", "paused", "closing_gracefully"):
                return worker.scheduler.address, worker.address, worker.security.get_connection_args("worker")
    if (clients := sys.modules.get("distributed.client")) is not None:
        try:
            client = clients.default_client()
        except ValueError:
            return None
        if client.status == "running" and client.scheduler is not None:
            return client.scheduler.address, client.id, client.security.get_connection_args("client")
    return None


lease_from(_shared_desk)
