"""Runner: takes jobs from the queue, a few at a time, and gives each a process of its own that can be ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from s2composite.scenes.access import VARIABLE
from s2composite.scenes.storage import filesystem, is_remote, join
from s2composite.service.documents import job_access, make_place
from s2composite.service.problems import printable, scrubbed
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

_STAMP = re.compile(r"^[\d-]+ [\d:,]+ [A-Z]+ ")
"""When and how bad, before what a line of a job's log says."""

_LINE = 1 << 16
"""Bytes of a line of a log."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A job's process."""

    process: asyncio.subprocess.Process
    """Leader of a group: the workers of its cluster are in it."""

    over: asyncio.Event
    """Set when all of it has ended."""

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


class _Log:
    """A job's log: what earlier attempts wrote stays, and all of them together have one limit.

    Parameters
    ----------
    path
        The file.
    limit
        Bytes at most.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._left = limit - (path.stat().st_size if path.exists() else 0)

    def add(self, text: str) -> None:
        """Add a line, as long as there is room."""
        data = f"{text}\n".encode()
        if self._left <= 0:
            return
        self._left -= len(data)
        if self._left <= 0:
            data = b"the rest is not kept: the log is as long as the service lets it be\n"
        try:
            with self._path.open("ab") as file:
                file.write(data)
        except OSError:  # a full disk of logs ends no job, whose results may be elsewhere
            LOG.exception("%s cannot be written", self._path)
            self._left = 0


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
            row = await self._claimed()
            if row is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._more.wait(), _LOOK)
                continue
            try:
                state, error = await self._run(row)
            except Exception:  # whatever happens to one job, the next one has its turn
                LOG.exception("job %s", row.id)
                state, error = "failed", "the service could not run it; see its log"
            await self._finished(row, state, error)

    async def _claimed(self) -> JobRow | None:
        """Return the next job; None if there is none, or the database does not answer, which may pass."""
        try:
            return await asyncio.to_thread(self._store.claim)
        except SQLAlchemyError as error:
            LOG.error("the queue cannot be read: %s", str(error).partition("\n")[0])  # noqa: TRY400 - told every time
            return None

    async def _finished(self, row: JobRow, state: str, error: str | None) -> None:
        """Note the end of a job, as soon as the database takes it."""
        while True:
            try:
                await asyncio.to_thread(self._store.finish, row, state, error)
            except SQLAlchemyError as problem:
                LOG.error("job %s is %s, which cannot be noted: %s", row.id, state, str(problem).partition("\n")[0])  # noqa: TRY400 - as above
                await asyncio.sleep(_LOOK)
            else:
                return

    async def _run(self, row: JobRow) -> tuple[str, str | None]:
        """Run a job; return the state in which it ended, and why it failed."""
        assert self._settings.storage is not None
        if (before := self._running.get(row.id)) is not None:  # cancelled and put back while its process ends
            await before.over.wait()
        await asyncio.to_thread(make_place, self._settings.storage, row.id)
        self.log_path(row.id).parent.mkdir(parents=True, exist_ok=True)
        running = _Running(await self._started(row), asyncio.Event())
        self._running[row.id] = running
        try:
            if not await asyncio.to_thread(self._store.is_current, row):  # cancelled before it had a process to end
                return "cancelled", None
            async with asyncio.timeout(self._settings.limits.job_seconds):
                last = await self._logged(row.id, running.process)
                code = await running.process.wait()
            error = None if code == 0 else last if code > 0 else f"its process was ended by signal {-code}"
        except TimeoutError:
            code, error = 1, f"it took longer than {self._settings.limits.job_seconds:g} s; retry goes on from there"
        finally:
            await asyncio.shield(running.end())
            del self._running[row.id]
            running.over.set()
        await asyncio.to_thread(self._keep_log, row.id)
        return ("complete" if code == 0 else "failed"), error

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
        """Copy what a job prints to its log, without secrets; return what its last line says."""
        assert process.stdout is not None
        last, log = "", _Log(self.log_path(number), self._settings.limits.log)
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line longer than anybody reads
                continue
            if not line:
                return _STAMP.sub("", last)
            text = printable(scrubbed(line.decode(errors="replace").rstrip()))
            log.add(text)
            last = text or last

    def _keep_log(self, number: str) -> None:
        """Put the log beside the results."""
        storage = self._settings.storage
        assert storage is not None
        target = join(storage, number, LOG_NAME)
        try:
            text = self.log_path(number).read_bytes()
            if is_remote(target):
                fs, path = filesystem(target)
                fs.pipe_file(path, text)
            else:
                Path(target).write_bytes(text)
        except Exception:  # the job is done, whether its log can be put there or not
            LOG.exception("job %s: its log cannot be kept", number)
