"""The ledger: what happened to each window of a job, one line of JSON each, beside the output, only ever added to.

Whoever reads it sees the history; whether a window is done is decided by its record (`s2composite.writing.durable`).
A line is complete or, where a process died over it, the last one of its file; that one is ignored.

Events have a place in the ledger's order, ``order``: the milliseconds since 1970, but always more than those of the
event before and of all events that were there when the run began. So a clock that is set back, or is another machine's,
puts no event before what it came after.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from s2composite.errors import S2CompositeError, WriteError
from s2composite.scenes.storage import display, filesystem, is_remote, join, reason

LOG = logging.getLogger(__name__)

__all__ = ["Ledger", "each_event", "ledger_root", "ledger_table", "order_of", "read_ledger", "read_turns"]

_SUFFIX = ".ledger"
_FLUSHED_EVERY = 100
"""Events that are kept in memory where the ledger is on an object store: objects cannot be added to."""

_FLUSHED_AFTER = 5.0
"""Seconds after which they are written all the same, with the next event."""

_TAIL = 1 << 16
"""Bytes at the end of a file in which its last event is looked for."""

_SYNCED_AFTER = 1.0
"""Seconds between two waits for the disk: each takes some milliseconds, and only a power failure asks for it."""


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
        with _reading(output):
            self._order = max(map(order_of, _last_events(self._root)), default=0)
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
        with self._lock:
            now = dt.datetime.now(dt.UTC)
            self._order = max(self._order + 1, int(now.timestamp() * 1000))
            told = {
                "at": now.isoformat(timespec="milliseconds"),
                "order": self._order,
                "run": self._run,
                "event": event,
            }
            self._waiting.append(json.dumps(told | facts, separators=(",", ":"), default=str))
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
        while data:  # a disk that gets full takes a part
            data = data[os.write(file, data) :]
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
    """Return the events of an output in their order; none where there is no ledger.

    Raises
    ------
    WriteError
        It cannot be read.

    Examples
    --------
    >>> with Ledger("noted.tif", "first") as ledger:
    ...     ledger.add("done", window=[0, 1], seconds=1.5)
    >>> [(event["event"], event["window"]) for event in read_ledger("noted.tif")][-1]
    ('done', [0, 1])
    """
    with _reading(output):
        events = [event for run in _runs(ledger_root(output)) for event in run]
    return tuple(sorted(events, key=order_of))


def read_turns(output: str) -> tuple[dict[str, Any], ...]:
    """Return those events that decide what is to be done, in their order: a window that went well leaves none.

    A million windows are as many lines; what is kept of them is small.

    Raises
    ------
    WriteError
        The ledger cannot be read.
    """
    kept: list[dict[str, Any]] = []
    failed: set[tuple[Any, ...]] = set()
    with _reading(output):
        for run in _runs(ledger_root(output)):
            last: dict[str, Any] | None = None
            for event in run:
                window = (event.get("token"), *event["window"]) if "window" in event else None
                if event["event"] == "failed" and window:
                    failed.add(window)
                if window is None or window in failed:
                    kept.append(event)
                last = event
            # When it was last heard of.
            if last is not None:
                kept.append({"at": last["at"], "order": order_of(last), "run": last["run"], "event": "last"})
    return tuple(sorted(kept, key=order_of))


def each_event(output: str) -> Iterator[dict[str, Any]]:
    """Yield the events of an output, run by run in order of their beginnings; of a million, one is held at a time.

    Raises
    ------
    WriteError
        The ledger cannot be read.
    """
    with _reading(output):
        for run in _runs(ledger_root(output)):
            yield from run


def order_of(event: Mapping[str, Any]) -> int:
    """Return the place of an event among those of its ledger; that of one of an earlier version is its time."""
    order = event.get("order")
    if isinstance(order, int):
        return order
    try:
        return int(dt.datetime.fromisoformat(str(event["at"])).timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0


@contextmanager
def _reading(output: str) -> Iterator[None]:
    try:
        yield
    except S2CompositeError:
        raise
    except Exception as error:  # clients of object stores raise their own kinds
        root = ledger_root(output)
        raise WriteError(f"{display(root)}: the ledger cannot be read: {reason(root, error)}") from error


def _runs(root: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the events of each run, the runs in order of their names, which begin with the time."""
    if not is_remote(root):
        for file in sorted(Path(root).glob("*.jsonl")):
            with file.open("rb") as lines:
                yield _events(lines)
        return
    fs, path = filesystem(root)
    fs.invalidate_cache()
    for _, objects in groupby(sorted(fs.glob(f"{path}/*.jsonl")), _run_of_object):
        yield (event for name in objects for event in _events(fs.cat_file(name).splitlines()))


def _last_events(root: str) -> Iterator[dict[str, Any]]:
    """Yield the last events of each run, without reading what came before."""
    if not is_remote(root):
        for file in Path(root).glob("*.jsonl"):
            with file.open("rb") as lines:
                lines.seek(max(file.stat().st_size - _TAIL, 0))
                yield from _events(lines)
        return
    fs, path = filesystem(root)
    fs.invalidate_cache()
    for _, objects in groupby(sorted(fs.glob(f"{path}/*.jsonl")), _run_of_object):
        yield from _events(fs.cat_file(list(objects)[-1]).splitlines())


def _run_of_object(name: str) -> str:
    return name.rpartition("/")[2].rpartition("-")[0]


def _events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line of a process that died
        if isinstance(event, Mapping) and {"at", "run", "event"} <= event.keys():
            yield dict(event)


def ledger_table(output: str) -> pd.DataFrame:
    """Return the ledger of an output as a table, one row for each event.

    Examples
    --------
    >>> with Ledger("noted.tif", "first") as ledger:
    ...     ledger.add("done", window=[0, 1], seconds=1.5)
    >>> float(ledger_table("noted.tif")["seconds"].median())
    1.5
    """
    return pd.DataFrame(list(read_ledger(output)))
