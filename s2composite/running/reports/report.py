"""Report: what happened in a job, from its ledger; JSON for programs, and `report_page` for people."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from s2composite.running.jobs.job import Job
from s2composite.running.ledger import failures_in, read_ledger
from s2composite.running.scope import ledger_key
from s2composite.scenes.storage import display_text

__all__ = ["Report", "WorkerDone", "job_report"]

_PACKAGES = ("s2composite", "numpy", "numba", "dask", "distributed", "xarray", "rasterio", "imagecodecs", "zarr")


@dataclass(frozen=True, slots=True)
class WorkerDone:
    """What one worker has done."""

    windows: int
    """Number of windows that it made."""

    seconds: float
    """Time that they took."""

    failed: int
    """Attempts that failed on it."""


@dataclass(frozen=True, eq=False)
class Report:
    """What happened to the latest product of a job."""

    job: str
    """The job file as YAML, without default values and without users and signatures of URLs."""

    state: str
    """``"complete"``, ``"failed"`` or ``"interrupted"``."""

    files: tuple[str, ...]
    """Files that were or will be written."""

    shape: tuple[int, int]
    """Rows and columns of windows."""

    seconds: Mapping[tuple[int, int], float]
    """Seconds from submitting each finished window to its end."""

    failures: Mapping[tuple[int, int], str]
    """Why each failed window failed."""

    timings: Mapping[str, float]
    """Total seconds of all workers: ``read`` (with reducing), ``encode`` (with storing)."""

    retries: int
    """Failed attempts that were repeated."""

    workers: Mapping[str, WorkerDone]
    """What each worker has done, by address."""

    failed_scenes: Mapping[str, int]
    """Scenes that could not be read, and the number of windows they are missing from."""

    begun: str
    """Time of the first event, ISO 8601, UTC."""

    ended: str
    """Time of the last event."""

    versions: Mapping[str, str]
    """Versions of Python and the packages that matter."""

    def states(self) -> dict[tuple[int, int], str]:
        """Return ``"done"``, ``"failed"`` or ``"open"`` for each window, row by row."""
        windows = ((row, column) for row in range(self.shape[0]) for column in range(self.shape[1]))
        every = self.state == "complete"
        return {
            w: "failed" if w in self.failures else "done" if every or w in self.seconds else "open" for w in windows
        }

    def causes(self) -> tuple[tuple[str, tuple[tuple[int, int], ...]], ...]:
        """Return failures grouped by cause, the most frequent first, each with its windows."""
        groups: dict[str, list[tuple[int, int]]] = {}
        for window, error in sorted(self.failures.items()):
            groups.setdefault(_cause(error), []).append(window)
        return tuple(
            (cause, tuple(windows)) for cause, windows in sorted(groups.items(), key=lambda item: -len(item[1]))
        )

    def to_json(self) -> str:
        """Return the report as JSON."""
        facts = {
            "state": self.state,
            "files": self.files,
            "windows": self.shape,
            "done": len(self.seconds),
            "failures": [{"window": window, "error": error} for window, error in sorted(self.failures.items())],
            "causes": [{"cause": cause, "windows": windows} for cause, windows in self.causes()],
            "seconds": [{"window": window, "seconds": took} for window, took in sorted(self.seconds.items())],
            "timings": dict(self.timings),
            "retries": self.retries,
            "workers": {address: asdict(work) for address, work in self.workers.items()},
            "failed_scenes": dict(self.failed_scenes),
            "begun": self.begun,
            "ended": self.ended,
            "versions": dict(self.versions),
            "job": self.job,
        }
        return json.dumps(facts, indent=2)


def _cause(error: str) -> str:
    """Return an error without the parts that differ from window to window."""
    return re.sub(r"window y \d+:\d+,? x \d+:\d+", "window ...", re.sub(r"\b\d+ bytes\b|byte \d+", "... bytes", error))


def job_report(job: Job) -> Report | None:
    """Return the report of a job from its ledger; None if nothing has been done yet."""
    events = read_ledger(ledger_key(job))
    starts = [event for event in events if event["event"] == "start"]
    if not starts:
        return None
    start = starts[-1]
    own = [event for event in events if event.get("token") == start["token"]]
    done = {_window(event): event for event in own if event["event"] == "done"}
    failures = failures_in(events, start["token"])
    complete = any(event["event"] == "product" for event in own)
    scenes: dict[str, int] = {}
    for event in done.values():
        for scene in event.get("failed_scenes", ()):
            scenes[scene] = scenes.get(scene, 0) + 1
    return Report(
        job=display_text(job.to_yaml()),
        state="complete" if complete else "failed" if failures else "interrupted",
        files=tuple(start["files"]),
        shape=(int(start["windows"][0]), int(start["windows"][1])),
        seconds={window: float(event["seconds"]) for window, event in done.items()},
        failures=failures,
        timings={name: round(sum(float(event[name]) for event in done.values()), 3) for name in ("read", "encode")},
        retries=sum(event["event"] == "retry" for event in own),
        workers=_workers(own, done.values()),
        failed_scenes=scenes,
        begun=str(own[0]["at"]),
        ended=str(own[-1]["at"]),
        versions=_versions(),
    )


def _workers(events: Iterable[Mapping[str, Any]], done: Iterable[Mapping[str, Any]]) -> dict[str, WorkerDone]:
    """Return what each worker has done, from all events and those of the windows that are done."""
    windows, seconds, failed = Counter[str](), Counter[str](), Counter[str]()
    for event in done:
        windows[event["worker"]] += 1
        seconds[event["worker"]] += event["read"] + event["encode"]
    for event in events:
        if event["event"] in ("retry", "failed"):
            failed[event["worker"] or "unknown"] += 1
    return {w: WorkerDone(windows[w], round(seconds[w], 3), failed[w]) for w in windows.keys() | failed.keys()}


def _window(event: Mapping[str, Any]) -> tuple[int, int]:
    return int(event["window"][0]), int(event["window"][1])


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
