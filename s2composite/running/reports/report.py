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

from s2composite.running.history import completed, done_in, failures_in, trouble_in
from s2composite.running.jobs.job import Job
from s2composite.running.ledger import read_ledger
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
    r"""What happened to the latest product of a job.

    Examples
    --------
    >>> from s2composite import load_job
    >>> from s2composite.running.ledger import Ledger
    >>> with Ledger("reported.tif", "first") as ledger:
    ...     ledger.add("start", token="t", windows=[1, 2], files=["reported.tif"])
    ...     ledger.add("failed", token="t", window=[0, 1], error="the file is damaged")
    >>> report = job_report(load_job("source: scenes\noutput: reported.tif"))
    >>> report.state, report.causes()
    ('failed', (('the file is damaged', ((0, 1),)),))
    """

    job: str
    """The job file as YAML, without default values and without users and signatures of URLs."""

    state: str
    """``"complete"``, ``"failed"`` or ``"interrupted"``."""

    files: tuple[str, ...]
    """Files that were or will be written."""

    shape: tuple[int, int]
    """Rows and columns of windows."""

    seconds: Mapping[tuple[int, int], float]
    """Seconds from submitting each window whose end was noted to its end."""

    found: frozenset[tuple[int, int]]
    """Other finished windows: made when a run was killed, not noted, and found by the next run."""

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

    error: str | None = None
    """What kept the files from being put together, all windows being done."""

    def states(self) -> dict[tuple[int, int], str]:
        """Return ``"done"``, ``"failed"`` or ``"open"`` for each window, row by row."""
        windows = ((row, column) for row in range(self.shape[0]) for column in range(self.shape[1]))
        done = self.seconds.keys() | self.found
        return {w: "failed" if w in self.failures else "done" if w in done else "open" for w in windows}

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
            "done": len(self.seconds.keys() | self.found),
            "error": self.error,
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
    r"""Return the report of a job from its ledger; None if nothing has been done yet.

    Examples
    --------
    >>> from s2composite import load_job
    >>> job_report(load_job("source: scenes\noutput: not_begun.tif")) is None
    True
    """
    events = read_ledger(ledger_key(job))
    starts = [event for event in events if event["event"] == "start"]
    if not starts:
        return None
    start = starts[-1]
    own = [event for event in events if event.get("token") == start["token"]]
    all_done = done_in(events, start["token"])
    done = {window: event for window, event in all_done.items() if event["event"] == "done"}
    failures = failures_in(events, start["token"])
    trouble = trouble_in(own, start["token"])
    scenes: dict[str, int] = {}
    for event in done.values():
        for scene in event.get("failed_scenes", ()):
            scenes[scene] = scenes.get(scene, 0) + 1
    return Report(
        job=display_text(job.to_yaml()),
        state="complete" if completed(events, start) else "failed" if failures or trouble else "interrupted",
        files=tuple(start["files"]),
        shape=(int(start["windows"][0]), int(start["windows"][1])),
        seconds={window: float(event["seconds"]) for window, event in done.items()},
        found=frozenset(all_done.keys() - done.keys()),
        failures=failures,
        timings={name: round(sum(float(event[name]) for event in done.values()), 3) for name in ("read", "encode")},
        retries=sum(event["event"] == "retry" for event in own),
        workers=_workers(own, done.values()),
        failed_scenes=scenes,
        begun=str(own[0]["at"]),
        ended=str(own[-1]["at"]),
        versions=_versions(),
        error=trouble,
    )


def _workers(events: Iterable[Mapping[str, Any]], done: Iterable[Mapping[str, Any]]) -> dict[str, WorkerDone]:
    """Return what each worker has done, from all events and those of the windows that are done."""
    windows, seconds, failed = Counter[str](), Counter[str](), Counter[str]()
    for event in done:
        windows[event["worker"]] += 1
        seconds[event["worker"]] += event["read"] + event["encode"]
    for event in events:
        if event["event"] in ("retry", "failed"):
            failed[event.get("worker") or "unknown"] += 1
    return {w: WorkerDone(windows[w], round(seconds[w], 3), failed[w]) for w in windows.keys() | failed.keys()}


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
