"""The ledger: what happened to each window of a job, one line of JSON each, beside the output; and queries on it.

It is only ever added to. Whoever reads it sees the history; whether a window is done is decided by its record
(`s2composite.writing.tiles`). A line is complete or, where a process died over it, the last one of its file,
which is ignored.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import pandas as pd
import psutil

from s2composite.errors import WriteError
from s2composite.storage.files import display, filesystem, is_remote, join, storage_errors

__all__ = [
    "Event", "Ledger", "begun_anew", "busy_tokens", "completed", "done_in", "done_windows", "each_event", "failures_in",
    "last_start", "ledger_root", "ledger_table", "order_of", "read_ledger", "read_turns", "rival_in", "trouble_in",
    "unfinished_other", "whereabouts",
]  # fmt: skip

LOG = logging.getLogger(__name__)

Event = Mapping[str, Any]  # a line of a ledger

_FLUSHED_EVERY = 100  # events kept in memory where the ledger is on an object store: objects cannot be added to
_FLUSHED_AFTER = 5.0  # seconds after which they are written all the same, with the next event
_TAIL = 1 << 16  # bytes at the end of a file in which its last event is looked for
_SYNCED_AFTER = 1.0  # seconds between two waits for the disk, of some milliseconds: only a power failure asks for them


def ledger_root(output: str) -> str:
    """Return where the ledger of an output lies."""
    return f"{output.rstrip('/')}.ledger"


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
            events = (event for run in _runs(self._root, last=True) for event in run)
            self._order = max(map(order_of, events), default=0)
        try:
            if not is_remote(self._root):
                Path(self._root).mkdir(exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._file = os.open(Path(self._root, f"{self._run}.jsonl"), flags, 0o644)
        except OSError as error:
            raise WriteError(f"{self._root}: the ledger cannot be written: {error.strerror}") from error

    def add(self, event: str, **about: Any) -> None:
        """Add an event; a WriteError says that the ledger cannot be written."""
        LOG.info(event, extra={"facts": {"run": self._run, **about}})
        with self._lock:
            now = dt.datetime.now(dt.UTC)
            self._order = max(self._order + 1, int(now.timestamp() * 1000))
            at = now.isoformat(timespec="milliseconds")
            line = {"at": at, "order": self._order, "run": self._run, "event": event, **about}
            self._waiting.append(json.dumps(line, separators=(",", ":"), default=str))
            late = time.monotonic() - self._flushed > _FLUSHED_AFTER
            if self._file is not None or late or len(self._waiting) >= _FLUSHED_EVERY:
                self._flush()

    def _flush(self, *, sync: bool = False) -> None:
        if not self._waiting and not sync:
            return
        data = "".join(f"{line}\n" for line in self._waiting).encode()
        with storage_errors(WriteError, f"{display(self._root)}: the ledger cannot be written", self._root):
            if self._file is not None:
                while data:  # a disk that gets full takes a part
                    data = data[os.write(self._file, data) :]
                if sync or time.monotonic() - self._synced > _SYNCED_AFTER:
                    os.fsync(self._file)
                    self._synced = time.monotonic()
            elif data:
                fs, path = filesystem(join(self._root, f"{self._run}-{self._written:06d}.jsonl"))
                fs.pipe_file(path, data)
        self._written += 1
        self._flushed = time.monotonic()
        self._waiting.clear()

    def close(self) -> None:
        """Write what has not been written, with the errors of `add`; a second call does nothing."""
        with self._lock:
            try:
                self._flush(sync=True)
            finally:
                if self._file is not None:
                    os.close(self._file)
                    self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
    return tuple(sorted(each_event(output), key=order_of))


def read_turns(output: str) -> tuple[dict[str, Any], ...]:
    """Return those events that decide what is to be done, in their order: a window that went well leaves none.

    A million windows are as many lines; what is kept of them is small.
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
    """Yield the events of an output, run by run in order of their beginnings; of a million, one is held at a time."""
    with _reading(output):
        for run in _runs(ledger_root(output)):
            yield from run


def order_of(event: Event) -> int:
    """Return the place of an event among those of its ledger; that of one of an earlier version is its time."""
    order = event.get("order")
    if isinstance(order, int):
        return order
    try:
        return int(dt.datetime.fromisoformat(str(event["at"])).timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0


def _reading(output: str) -> AbstractContextManager[None]:
    root = ledger_root(output)
    return storage_errors(WriteError, f"{display(root)}: the ledger cannot be read", root)


def _runs(root: str, *, last: bool = False) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the events of each run, the runs in order of their names, which begin with the time.

    With `last` only the last events of each, without reading what came before.
    """
    if not is_remote(root):
        for file in sorted(Path(root).glob("*.jsonl")):
            with file.open("rb") as lines:
                lines.seek(max(file.stat().st_size - _TAIL, 0) if last else 0)
                yield _events(lines)
        return
    fs, path = filesystem(root)
    fs.invalidate_cache()
    parts_of_runs = groupby(sorted(fs.glob(f"{path}/*.jsonl")), lambda name: name.rpartition("/")[2].rpartition("-")[0])
    for _, objects in parts_of_runs:
        names = list(objects)[-1:] if last else list(objects)
        yield (event for name in names for event in _events(fs.cat_file(name).splitlines()))


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


# Events that say that a window is done: its run has made it; its record was there when a run began, of which no line
# told because whoever made it was killed or had given it up before.
_DONE = ("done", "found")

_CLOCKS = 60.0  # seconds by which the clock of processes and that of the ledger may differ
_SILENCE = 60.0  # seconds beyond twice its timeout after which a silent run counts as dead: one that lives says so


def failures_in(events: Iterable[Event], token: str) -> dict[tuple[int, int], str]:
    """Return the windows of a product whose last attempt failed for good, and why; none once it is complete."""
    out: dict[tuple[int, int], str] = {}
    for event in events:
        if event.get("token") != token:
            continue
        if event["event"] == "product":
            out.clear()
        elif "window" in event:
            if event["event"] == "failed":
                out[_window(event)] = str(event.get("error", ""))
            elif event["event"] in _DONE:
                out.pop(_window(event), None)
    return out


def completed(events: Iterable[Event], start: Event) -> bool:
    """Return whether the product of a run, told by its `start`, has been completed by it or since."""
    return any(
        event["event"] == "product" and event.get("token") == start["token"] and order_of(event) >= order_of(start)
        for event in events
    )


def begun_anew(events: Iterable[Event], token: str) -> int:
    """Return the place in the ledger's order at which the last run of a product began that found nothing done.

    What had been made before is not there.
    """
    starts = (event for event in events if event["event"] == "start" and event.get("token") == token)
    return max((order_of(event) for event in starts if not event.get("done")), default=0)


def last_start(events: Sequence[Event]) -> Event | None:
    """Return the start of the last run of a ledger; None: nothing has been done."""
    return next((event for event in reversed(events) if event["event"] == "start"), None)


def unfinished_other(events: Sequence[Event], token: str) -> Event | None:
    """Return the start of the last run of a ledger if it ended without its product, which was another than `token`.

    Nothing that it made is of use to the product of that token. One that is still at work is not meant.
    """
    start = last_start(events)
    if start is None or start.get("token") in (token, *busy_tokens(events)) or completed(events, start):
        return None
    return start


def done_windows(events: Iterable[Event], token: str, since: int) -> set[tuple[int, int]]:
    """Return the windows of a product that events since `begun_anew` say are done; the events in any order."""
    return {window for window, _ in _done(events, token, since)}


def done_in(events: Sequence[Event], token: str) -> dict[tuple[int, int], Event]:
    """Return the windows of a product that are done, each with the last event that says so."""
    return dict(_done(events, token, begun_anew(events, token)))


def _done(events: Iterable[Event], token: str, since: int) -> Iterator[tuple[tuple[int, int], Event]]:
    for event in events:
        if event.get("token") == token and event["event"] in _DONE and order_of(event) >= since:
            yield _window(event), event


def _window(event: Event) -> tuple[int, int]:
    return int(event["window"][0]), int(event["window"][1])


def trouble_in(events: Iterable[Event], token: str) -> str | None:
    """Return why the last run of a product could not put its files together, all windows being there."""
    trouble = None
    for event in events:
        if event.get("token") != token:
            continue
        if event["event"] == "failed" and "window" not in event:
            trouble = str(event.get("error", ""))
        elif event["event"] in ("start", "product"):
            trouble = None
    return trouble


def whereabouts() -> dict[str, Any]:
    """Return what tells this process from all others: host (with its space of process numbers) and number."""
    host = platform.node()
    with suppress(OSError):  # containers of one name do not see each other's processes
        host += f" {Path('/proc/self/ns/pid').readlink()}"
    return {"host": host, "process": os.getpid()}


def rival_in(events: Iterable[Event], token: str) -> Event | None:
    """Return the start of a run that another process of this machine is making all of a product with, if there is one.

    Of processes elsewhere nobody knows for certain whether they live. Runs of chosen windows may share a product.
    """
    for run in _by_run(events):
        for event in run:
            if event["event"] == "start" and event.get("token") == token and event.get("whole") and _lives(run) is True:
                return event
    return None


def busy_tokens(events: Iterable[Event]) -> frozenset[str]:
    """Return the tokens of the products that runs are at work on, as far as a ledger can tell.

    A run is at work until it says that it has ended, its process is gone, or, where that is on another machine, it has
    been silent for longer than a window may take.
    """
    now = dt.datetime.now(dt.UTC)
    tokens: set[str] = set()
    for run in _by_run(events):
        lives = _lives(run)
        if lives is None:
            timeout = max((float(event.get("timeout", 0)) for event in run), default=0.0)
            lives = (now - max(map(_time, run))).total_seconds() < 2 * timeout + _SILENCE
        if lives:
            tokens |= {str(event["token"]) for event in run if event["event"] == "start"}
    return frozenset(tokens)


def _by_run(events: Iterable[Event]) -> list[list[Event]]:
    runs: dict[str, list[Event]] = {}
    for event in events:
        runs.setdefault(str(event["run"]), []).append(event)
    return list(runs.values())


def _lives(run: Sequence[Event]) -> bool | None:
    """Return whether the process of a run lives and has not ended it; None: it is not for this process to see."""
    if any(event["event"] == "end" for event in run):
        return False
    start = next((event for event in run if event["event"] == "start"), None)
    here = whereabouts()
    if start is None or start.get("host") != here["host"] or start.get("process") == here["process"]:
        return None
    try:
        process = psutil.Process(int(start["process"]))
        begun = dt.datetime.fromtimestamp(process.create_time(), dt.UTC)
        # The number may be another process's by now.
        later = (begun - _time(start)).total_seconds() > _CLOCKS
        return process.status() != psutil.STATUS_ZOMBIE and not later
    except psutil.NoSuchProcess:
        return False


def _time(event: Event) -> dt.datetime:
    return dt.datetime.fromisoformat(str(event["at"]))
