"""Runner: takes jobs from the queue, a few at a time, and gives each a process of its own that can be ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from s2composite.scenes.access import VARIABLE
from s2composite.scenes.storage import filesystem, is_remote, join
from s2composite.service.documents import job_access, make_place
from s2composite.service.problems import scrubbed
from s2composite.service.settings import Settings
from s2composite.service.store import JobRow, Store

__all__ = ["LOG_NAME", "Runner"]

LOG = logging.getLogger(__name__)

LOG_NAME = "job_log.txt"
"""The log of a job, beside its results when it has ended."""

_GRACE = 5.0
"""Seconds that a cancelled job has to close its cluster before it is killed."""

_LOOK = 2.0
"""Seconds after which the queue is looked at without being told of a new job."""

_LINE = 1 << 16
"""Bytes of a line of a log."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A job's process."""

    process: asyncio.subprocess.Process
    """Leader of a group: the workers of its cluster are in it."""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    async def end(self) -> None:
        """End it, by force if it takes longer."""
        self.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), _GRACE)
        self.signal(signal.SIGKILL)


class Runner:
    """Runs jobs from `start` to `close`.

    Parameters
    ----------
    settings
        How many at a time, how long, on which cluster.
    store
        Where they wait.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._running: dict[str, _Running] = {}
        self._more = asyncio.Event()
        self._slots: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take up the queue, first of all what was running when the service ended: its ledger knows how far it was."""
        again = await asyncio.to_thread(self._store.requeue)
        if again:
            LOG.info("%d jobs go on where they were interrupted", again)
        self._slots = [asyncio.create_task(self._work()) for _ in range(self._settings.limits.running)]

    async def close(self) -> None:
        """End all jobs; they go on when the service starts again."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)

    def notify(self) -> None:
        """Tell that there is a new job."""
        self._more.set()

    async def cancel(self, number: str) -> None:
        """End the process of a job, if it has one."""
        if (running := self._running.get(number)) is not None:
            await running.end()

    def log_path(self, number: str) -> Path:
        """Return where the log of a job is while it runs."""
        return Path(self._settings.state) / "logs" / f"{number}.txt"

    async def _work(self) -> None:
        while True:
            self._more.clear()
            row = await asyncio.to_thread(self._store.claim)
            if row is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._more.wait(), _LOOK)
                continue
            try:
                await self._run(row)
            except Exception:  # whatever happens to one job, the next one has its turn
                LOG.exception("job %s", row.id)
                self._store.move(row.id, ("running",), "failed", error="the service could not run it; see its log")

    async def _run(self, row: JobRow) -> None:
        assert self._settings.storage is not None
        await asyncio.to_thread(make_place, self._settings.storage, row.id)
        self.log_path(row.id).parent.mkdir(parents=True, exist_ok=True)
        running = _Running(await self._started(row))
        self._running[row.id] = running
        try:
            async with asyncio.timeout(self._settings.limits.job_seconds):
                last = await self._logged(row.id, running.process)
                code = await running.process.wait()
            error = None if code == 0 else last if code > 0 else f"its process was ended by signal {-code}"
        except TimeoutError:
            code, error = 1, f"it took longer than {self._settings.limits.job_seconds:g} s; retry goes on from there"
        finally:
            await asyncio.shield(running.end())
            del self._running[row.id]
        state = "complete" if code == 0 else "failed"
        await asyncio.to_thread(self._keep_log, row.id)
        await asyncio.to_thread(self._store.move, row.id, ("running",), state, error=error)

    async def _started(self, row: JobRow) -> asyncio.subprocess.Process:
        access = job_access(self._settings, row.id)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "s2composite.service.process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, VARIABLE: access.to_json(), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            limit=_LINE,
        )
        order = {"id": row.id, "which": row.which, "job": json.loads(row.document)}
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
        return process

    async def _logged(self, number: str, process: asyncio.subprocess.Process) -> str:
        """Copy what a job prints to its log, without secrets; return its last line."""
        assert process.stdout is not None
        last, size, limit = "", 0, self._settings.limits.log
        with self.log_path(number).open("a", encoding="utf-8") as file:
            while True:
                try:
                    line = await process.stdout.readline()
                except ValueError:  # a line longer than anybody reads
                    continue
                if not line:
                    return last
                last = scrubbed(line.decode(errors="replace")).rstrip() or last
                size += len(last) + 1
                if size <= limit:
                    file.write(f"{last}\n")
                    file.flush()

    def _keep_log(self, number: str) -> None:
        """Put the log beside the results."""
        storage = self._settings.storage
        assert storage is not None
        text = self.log_path(number).read_bytes()
        target = join(storage, number, LOG_NAME)
        try:
            if is_remote(target):
                fs, path = filesystem(target)
                fs.pipe_file(path, text)
            else:
                Path(target).write_bytes(text)
        except Exception:  # the job is done, whether its log can be put there or not
            LOG.exception("job %s: its log cannot be kept", number)
