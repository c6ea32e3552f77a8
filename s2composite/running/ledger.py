"""The ledger: what happened to each window of a job, one line of JSON each, beside the output, only ever added to.

Whoever reads it sees the history; whether a window is done is decided by its record (`s2composite.writing.durable`).
A line is complete or, where a process died over it, the last one of its file; that one is ignored.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from s2composite.errors import WriteError
from s2composite.scenes.storage import display, filesystem, is_remote, join, reason

LOG = logging.getLogger(__name__)

__all__ = ["Ledger", "busy_tokens", "completed", "done_in", "failures_in", "ledger_root", "ledger_table", "read_ledger"]

_SUFFIX = ".ledger"
_DONE = ("done", "found")
"""Events that say that a window is done: its run has made it; its record was there when a run began, of which no line
told because whoever made it was killed or had given it up before."""

_FLUSHED_EVERY = 100
"""Events that are kept in memory where the ledger is on an object store: objects cannot be added to."""

_FLUSHED_AFTER = 5.0
"""Seconds after which they are written all the same, with the next event."""

_SYNCED_AFTER = 1.0
"""Seconds between two waits for the disk: each takes some milliseconds, and only a power failure asks for it."""

_SILENCE = 60.0
"""Seconds of silence beyond twice its timeout after which a run counts as dead: one that lives says so before."""


def ledger_root(output: str) -> str:
    """Return where the ledger of an output lies."""
    return f"{output.rstrip('/')}{_SUFFIX}"


class Ledger:
    """The ledger of one output, open for adding; a context manager. Safe to use from several threads.

    What `add` has written survives the death of the process; that of the machine, but for the last second. On object
    stores, it is written when the ledger is closed, and before that every hundred events or few seconds.

    Parameters
    ----------
    output
        Absolute path or URL of the output.
    run
        Name of this run; each has a file of its own, so that nothing is ever rewritten.
    """

    def __init__(self, output: str, run: str) -> None:
        self._root, self._run = ledger_root(output), run
        self._waiting: list[str] = []
        self._written = 0
        self._flushed = self._synced = time.monotonic()
        self._file: int | None = None
        self._lock = threading.Lock()
        try:
            if not is_remote(self._root):
                Path(self._root).mkdir(exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._file = os.open(Path(self._root, f"{self._run}.jsonl"), flags, 0o644)
        except OSError as error:
            raise WriteError(f"{self._root}: the ledger cannot be written: {error.strerror}") from error

    def add(self, event: str, **facts: Any) -> None:
        """Add an event.

        Raises
        ------
        WriteError
            The ledger cannot be written.
        """
        LOG.info(event, extra={"facts": {"run": self._run, **facts}})
        at = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, "run": self._run, "event": event, **facts}, separators=(",", ":"), default=str)
        with self._lock:
            self._waiting.append(line)
            late = time.monotonic() - self._flushed > _FLUSHED_AFTER
            if self._file is not None or late or len(self._waiting) >= _FLUSHED_EVERY:
                self._flush()

    def _flush(self, *, sync: bool = False) -> None:
        if not self._waiting and not sync:
            return
        data = "".join(f"{line}\n" for line in self._waiting).encode()
        try:
            if self._file is not None:
                self._append(self._file, data, sync=sync)
            elif data:
                fs, path = filesystem(join(self._root, f"{self._run}-{self._written:06d}.jsonl"))
                fs.pipe_file(path, data)
        except Exception as error:  # clients of object stores raise their own kinds
            why = reason(self._root, error)
            raise WriteError(f"{display(self._root)}: the ledger cannot be written: {why}") from error
        self._written += 1
        self._flushed = time.monotonic()
        self._waiting.clear()

    def _append(self, file: int, data: bytes, *, sync: bool) -> None:
        os.write(file, data)
        if sync or time.monotonic() - self._synced > _SYNCED_AFTER:
            os.fsync(file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Write what has not been written; a second call does nothing.

        Raises
        ------
        WriteError
            The ledger cannot be written.
        """
        with self._lock:
            try:
                self._flush(sync=True)
            finally:
                if self._file is not None:
                    os.close(self._file)
                    self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_ledger(output: str) -> tuple[dict[str, Any], ...]:
    """Return the events of an output in order of time; none where there is no ledger."""
    events = [event for text in _files(ledger_root(output)) for event in _events(text)]
    return tuple(sorted(events, key=lambda event: str(event["at"])))


def _files(root: str) -> Iterator[str]:
    if not is_remote(root):
        yield from (file.read_text() for file in sorted(Path(root).glob("*.jsonl")))
        return
    fs, path = filesystem(root)
    fs.invalidate_cache()
    for name in sorted(fs.glob(f"{path}/*.jsonl")):
        yield bytes(fs.cat_file(name)).decode()


def _events(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line of a process that died
        if isinstance(event, Mapping) and "at" in event:
            yield dict(event)


def failures_in(events: Iterable[Mapping[str, Any]], token: str) -> dict[tuple[int, int], str]:
    """Return the windows of a product whose last attempt failed for good, and why."""
    out: dict[tuple[int, int], str] = {}
    for event in events:
        if event.get("token") != token or "window" not in event:
            continue
        if event["event"] == "failed":
            out[_window(event)] = str(event.get("error", ""))
        elif event["event"] in _DONE:
            out.pop(_window(event), None)
    return out


def completed(events: Iterable[Mapping[str, Any]], start: Mapping[str, Any]) -> bool:
    """Return whether the product of a run, told by its `start`, has been completed by it or since."""
    return any(
        event["event"] == "product" and event.get("token") == start["token"] and event["at"] >= start["at"]
        for event in events
    )


def done_in(events: Iterable[Mapping[str, Any]], token: str) -> dict[tuple[int, int], Mapping[str, Any]]:
    """Return the windows of a product that are done, each with the event that says so.

    A run that finds nothing done begins anew: what had been made before it is no longer there.
    """
    out: dict[tuple[int, int], Mapping[str, Any]] = {}
    for event in events:
        if event.get("token") != token:
            continue
        if event["event"] == "start" and not event.get("done"):
            out.clear()
        elif event["event"] in _DONE:
            out[_window(event)] = event
    return out


def _window(event: Mapping[str, Any]) -> tuple[int, int]:
    return int(event["window"][0]), int(event["window"][1])


def busy_tokens(events: Iterable[Mapping[str, Any]], now: dt.datetime | None = None) -> frozenset[str]:
    """Return the tokens of the products that runs are at work on, as far as a ledger can tell.

    A run is at work until it says that it has ended, or has been silent for longer than a window may take.
    """
    now = now or dt.datetime.now(dt.UTC)
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        runs.setdefault(str(event.get("run")), []).append(event)
    return frozenset(
        str(event["token"]) for run in runs.values() if _alive(run, now) for event in run if event["event"] == "start"
    )


def _alive(run: Sequence[Mapping[str, Any]], now: dt.datetime) -> bool:
    if any(event["event"] == "end" for event in run):
        return False
    timeout = max((float(event.get("timeout", 0)) for event in run), default=0.0)
    last = max(dt.datetime.fromisoformat(str(event["at"])) for event in run)
    return (now - last).total_seconds() < 2 * timeout + _SILENCE


def ledger_table(output: str) -> pd.DataFrame:
    """Return the ledger of an output as a table, one row for each event."""
    return pd.DataFrame(list(read_ledger(output)))
