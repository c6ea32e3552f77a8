"""History: what the events of a ledger say: what failed, what is complete, and which runs are at work."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from s2composite.running.ledger import order_of

__all__ = [
    "begun_anew",
    "busy_tokens",
    "completed",
    "done_in",
    "done_windows",
    "failures_in",
    "rival_in",
    "trouble_in",
    "unfinished_other",
    "whereabouts",
]

_DONE = ("done", "found")
"""Events that say that a window is done: its run has made it; its record was there when a run began, of which no line
told because whoever made it was killed or had given it up before."""

_CLOCKS = 60.0
"""Seconds by which the clock of processes and that of the ledger may differ."""

_SILENCE = 60.0
"""Seconds of silence beyond twice its timeout after which a run counts as dead: one that lives says so before."""


def failures_in(events: Iterable[Mapping[str, Any]], token: str) -> dict[tuple[int, int], str]:
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


def completed(events: Iterable[Mapping[str, Any]], start: Mapping[str, Any]) -> bool:
    """Return whether the product of a run, told by its `start`, has been completed by it or since."""
    return any(
        event["event"] == "product" and event.get("token") == start["token"] and order_of(event) >= order_of(start)
        for event in events
    )


def begun_anew(events: Iterable[Mapping[str, Any]], token: str) -> int:
    """Return the place in the ledger's order at which the last run of a product began that found nothing done.

    What had been made before is not there.
    """
    starts = (event for event in events if event["event"] == "start" and event.get("token") == token)
    return max((order_of(event) for event in starts if not event.get("done")), default=0)


def unfinished_other(events: Sequence[Mapping[str, Any]], token: str) -> Mapping[str, Any] | None:
    """Return the start of the last run of a ledger if it ended without its product, which was another than `token`.

    Nothing that it made is of use to the product of that token. One that is still at work is not meant.
    """
    start: Mapping[str, Any] | None = next((event for event in reversed(events) if event["event"] == "start"), None)
    if start is None or start.get("token") in (token, *busy_tokens(events)) or completed(events, start):
        return None
    return start


def done_windows(events: Iterable[Mapping[str, Any]], token: str, since: int) -> set[tuple[int, int]]:
    """Return the windows of a product that events since `begun_anew` say are done; the events in any order."""
    return {_window(event) for event in events if _says_done(event, token, since)}


def done_in(events: Sequence[Mapping[str, Any]], token: str) -> dict[tuple[int, int], Mapping[str, Any]]:
    """Return the windows of a product that are done, each with the last event that says so."""
    since = begun_anew(events, token)
    return {_window(event): event for event in events if _says_done(event, token, since)}


def _says_done(event: Mapping[str, Any], token: str, since: int) -> bool:
    return event.get("token") == token and event["event"] in _DONE and order_of(event) >= since


def _window(event: Mapping[str, Any]) -> tuple[int, int]:
    return int(event["window"][0]), int(event["window"][1])


def trouble_in(events: Iterable[Mapping[str, Any]], token: str) -> str | None:
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


def rival_in(events: Iterable[Mapping[str, Any]], token: str) -> Mapping[str, Any] | None:
    """Return the start of a run that another process of this machine is making all of a product with, if there is one.

    Of processes elsewhere nobody knows for certain whether they live. Runs of chosen windows may share a product.
    """
    for run in _by_run(events):
        for event in run:
            if event["event"] == "start" and event.get("token") == token and event.get("whole") and _lives(run) is True:
                return event
    return None


def busy_tokens(events: Iterable[Mapping[str, Any]], now: dt.datetime | None = None) -> frozenset[str]:
    """Return the tokens of the products that runs are at work on, as far as a ledger can tell.

    A run is at work until it says that it has ended, its process is gone, or, where that is on another machine, it has
    been silent for longer than a window may take.
    """
    now = now or dt.datetime.now(dt.UTC)
    runs = [run for run in _by_run(events) if _at_work(run, now)]
    return frozenset(str(event["token"]) for run in runs for event in run if event["event"] == "start")


def _by_run(events: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        runs.setdefault(str(event["run"]), []).append(event)
    return list(runs.values())


def _lives(run: Sequence[Mapping[str, Any]]) -> bool | None:
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


def _at_work(run: Sequence[Mapping[str, Any]], now: dt.datetime) -> bool:
    lives = _lives(run)
    if lives is not None:
        return lives
    timeout = max((float(event.get("timeout", 0)) for event in run), default=0.0)
    return (now - max(map(_time, run))).total_seconds() < 2 * timeout + _SILENCE


def _time(event: Mapping[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(str(event["at"]))
