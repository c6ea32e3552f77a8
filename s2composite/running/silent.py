"""Silent: what to do about workers that do not answer, whether they hold a result, or are at a call for too long."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from distributed import Client, Future

from s2composite.errors import S2CompositeError

__all__ = ["Suspects", "fetch_results"]

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
