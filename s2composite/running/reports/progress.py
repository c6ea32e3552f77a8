"""Progress: how far a job is, according to its ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from s2composite.running.history import completed, done_in, failures_in, trouble_in
from s2composite.running.jobs.job import Job
from s2composite.running.ledger import read_ledger
from s2composite.running.scope import ledger_key
from s2composite.scenes.storage import exists

__all__ = ["Progress", "job_progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Examples
    --------
    >>> progress = Progress("failed", 9, 8, (((0, 1), "the file is damaged"),), "2023-06-01T12:00:00", ("median.tif",))
    >>> print(progress.summary())
    failed: 8 of 9 windows done, 1 failed, last 2023-06-01T12:00:00
    """

    state: str
    """``"new"``, ``"running or interrupted"``, ``"failed"``, ``"complete"``, or ``"gone"``: complete, but its files are
    not there any more."""

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

    error: str | None = None
    """What kept the files from being put together, all windows being done."""

    def as_dict(self) -> dict[str, Any]:
        """Return it in the types of JSON."""
        failures = [{"window": list(window), "error": why} for window, why in self.failures]
        facts = {"state": self.state, "windows": self.windows, "done": self.done, "failed": failures}
        return facts | {"error": self.error, "last": self.last, "files": list(self.files)}

    def summary(self) -> str:
        """Return it in one line."""
        if self.state == "new":
            return "new: nothing has been done"
        if self.state == "gone":
            return f"gone: it was complete, last {self.last}, and its files are not there any more; run makes it again"
        return (
            f"{self.state}: {self.done} of {self.windows} windows done, {len(self.failures)} failed, last {self.last}"
        )


def job_progress(job: Job) -> Progress:
    r"""Return how far a job is; if its scenes or parameters have changed since, how far it was before.

    Examples
    --------
    >>> from s2composite import load_job
    >>> print(job_progress(load_job("source: scenes\noutput: not_begun.tif")).summary())
    new: nothing has been done
    """
    events = read_ledger(ledger_key(job))
    starts = [event for event in events if event["event"] == "start"]
    if not starts:
        return Progress("new", 0, 0, (), None, ())
    start = starts[-1]
    token, rows_columns = start["token"], start["windows"]
    total = int(rows_columns[0]) * int(rows_columns[1])
    complete = completed(events, start)
    failures = tuple(sorted(failures_in(events, token).items()))
    files, trouble = tuple(start["files"]), trouble_in(events, token)
    state = "failed" if failures or trouble else "running or interrupted"
    if complete:
        state = "complete" if all(map(_there, files)) else "gone"
    return Progress(state, total, len(done_in(events, token)), failures, str(events[-1]["at"]), files, trouble)


def _there(file: str) -> bool:
    # What was put on a signed URL cannot be looked at.
    return file.startswith(("http://", "https://")) or exists(file)
