"""The ledger: what happened to each window of a job, one line of JSON each, beside the output, only ever added to.

Whoever reads it sees the history; whether a window is done is decided by its record (`s2composite.writing.durable`).
A line is complete or, where a process died over it, the last one of its file; that one is ignored.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from s2composite.errors import WriteError
from s2composite.scenes.storage import display, filesystem, is_remote, join, reason

__all__ = ["Ledger", "ledger_root", "ledger_table", "read_ledger"]

_SUFFIX = ".ledger"
_FLUSHED_EVERY = 100
"""Events that are kept in memory where the ledger is on an object store: objects cannot be added to."""


def ledger_root(output: str) -> str:
    """Return where the ledger of an output lies."""
    return f"{output.rstrip('/')}{_SUFFIX}"


class Ledger:
    """The ledger of one output, open for adding; a context manager. Safe to use from several threads.

    Local ledgers are on the disk when `add` returns; those on object stores when it is closed, and every hundred
    events before.

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
        self._lock = threading.Lock()
        try:
            if not is_remote(self._root):
                Path(self._root).mkdir(exist_ok=True)
        except OSError as error:
            raise WriteError(f"{self._root}: the ledger cannot be written: {error.strerror}") from error

    def add(self, event: str, **facts: Any) -> None:
        """Add an event.

        Raises
        ------
        WriteError
            The ledger cannot be written.
        """
        at = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, "run": self._run, "event": event, **facts}, separators=(",", ":"), default=str)
        with self._lock:
            self._waiting.append(line)
            if not is_remote(self._root) or len(self._waiting) >= _FLUSHED_EVERY:
                self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        data = ("\n".join(self._waiting) + "\n").encode()
        try:
            if is_remote(self._root):
                fs, path = filesystem(join(self._root, f"{self._run}-{self._written:06d}.jsonl"))
                fs.pipe_file(path, data)
            else:
                _append(Path(self._root, f"{self._run}.jsonl"), data)
        except Exception as error:  # clients of object stores raise their own kinds
            why = reason(self._root, error)
            raise WriteError(f"{display(self._root)}: the ledger cannot be written: {why}") from error
        self._written += 1
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._flush()


def _append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def ledger_table(output: str) -> pd.DataFrame:
    """Return the ledger of an output as a table, one row for each event."""
    return pd.DataFrame(list(read_ledger(output)))
