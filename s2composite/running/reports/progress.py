"""Progress: how far a job is, according to its ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from s2composite.running.jobs.job import Job
from s2composite.running.ledger import failures_in, read_ledger
from s2composite.running.scope import ledger_key

__all__ = ["Progress", "job_progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is."""

    state: str
    """``"new"``, ``"running or interrupted"``, ``"failed"`` or ``"complete"``."""

    windows: int
    """Windows of the latest product; 0: not begun."""

    done: int
    """Windows that are made."""

    failures: tuple[tuple[tuple[int, int], str], ...]
    """Windows that failed for good, and why."""

    last: str | None
    """Time of the last event, ISO 8601, UTC."""

    files: tuple[str, ...]
    """Files that are or will be written."""

    def as_dict(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        failures = [{"window": list(window), "error": why} for window, why in self.failures]
        facts = {"state": self.state, "windows": self.windows, "done": self.done, "failed": failures}
        return facts | {"last": self.last, "files": list(self.files)}

    def summary(self) -> str:
        """Return it in one line."""
        if self.state == "new":
            return "new: nothing has been done"
        return (
            f"{self.state}: {self.done} of {self.windows} windows done, {len(self.failures)} failed, last {self.last}"
        )


def job_progress(job: Job) -> Progress:
    """Return how far a job is; if its scenes or parameters have changed since, how far it was before."""
    events = read_ledger(ledger_key(job))
    starts = [event for event in events if event["event"] == "start"]
    if not starts:
        return Progress("new", 0, 0, (), None, ())
    start = starts[-1]
    token, rows_columns = start["token"], start["windows"]
    total = int(rows_columns[0]) * int(rows_columns[1])
    own = [event for event in events if event.get("token") == token]
    complete = any(event["event"] == "product" for event in own if event["at"] >= start["at"])
    done = {tuple(event["window"]) for event in own if event["event"] == "done"}
    failures = tuple(sorted(failures_in(events, token).items()))
    state = "complete" if complete else "failed" if failures else "running or interrupted"
    count = total if complete else min(max(len(done), int(start["done"])), total)
    return Progress(state, total, count, failures, str(events[-1]["at"]), tuple(start["files"]))
