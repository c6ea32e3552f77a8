"""Report: what happened in a job, as JSON for programs and as one page of HTML for people, made from its ledger."""

from __future__ import annotations

import html
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from s2composite.running.job import Job
from s2composite.running.ledger import failures_in, ledger_root, read_ledger
from s2composite.running.scope import ledger_key
from s2composite.scenes.storage import filesystem, is_remote, join

__all__ = ["Report", "job_report", "write_report"]

_PACKAGES = ("s2composite", "numpy", "numba", "dask", "distributed", "xarray", "rasterio", "imagecodecs", "zarr")

_COLOURS = {"done": "#3b7dd8", "failed": "#d43d3d", "open": "#d9d9d9"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1c1c1c; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; } svg { max-width: 100%; height: auto; }
.legend span { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -.1em; }
"""


@dataclass(frozen=True, eq=False)
class Report:
    """What happened to the product of a job that was last worked on."""

    job: str
    """The job file, as YAML; what has its default value is left out."""

    state: str
    """``"complete"``, ``"failed"`` or ``"interrupted"``."""

    files: tuple[str, ...]
    """What was or will be written."""

    shape: tuple[int, int]
    """Rows and columns of windows."""

    seconds: Mapping[tuple[int, int], float]
    """For each window that is done the seconds from handing it to the cluster to its end."""

    failures: Mapping[tuple[int, int], str]
    """For each window that has failed, why."""

    timings: Mapping[str, float]
    """Seconds of all workers together: ``read`` (with reducing), ``encode`` (with storing)."""

    retries: int
    """Attempts that failed and were made again."""

    failed_scenes: Mapping[str, int]
    """Scenes that were left out because they could not be read, and from how many windows."""

    begun: str
    """Time of the first event, ISO 8601, UTC."""

    ended: str
    """Time of the last event."""

    versions: Mapping[str, str]
    """Of Python and the packages that matter."""

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
            "failed_scenes": dict(self.failed_scenes),
            "begun": self.begun,
            "ended": self.ended,
            "versions": dict(self.versions),
            "job": self.job,
        }
        return json.dumps(facts, indent=2)

    def to_html(self) -> str:
        """Return the report as one page that needs nothing beside it."""
        rows, columns = self.shape
        facts = {
            "state": f"{self.state}: {len(self.seconds)} of {rows * columns} windows done, {len(self.failures)} failed",
            "files": ", ".join(self.files),
            "time": f"{self.begun} to {self.ended}",
            "workers": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.timings.items()),
            "retries": str(self.retries),
        }
        body = [
            f"<h1>{html.escape(self.files[0].rpartition('/')[2] if self.files else 'job')}</h1>",
            _table([(name, html.escape(value)) for name, value in facts.items()]),
            "<h2>Windows</h2>",
            _map(self),
            _failures(self),
            _scenes(self),
            "<h2>Job</h2>",
            f"<pre>{html.escape(self.job)}</pre>",
            "<h2>Versions</h2>",
            _table([(name, html.escape(number)) for name, number in self.versions.items()]),
        ]
        title = html.escape(self.files[0] if self.files else "job")
        head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        return head + "\n".join(body) + "</html>\n"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{name}</th><td>{cell}</td></tr>" for name, cell in rows) + "</table>"


def _map(report: Report) -> str:
    """Return the windows as a picture: darker ones took longer."""
    rows, columns = report.shape
    side = max(4, min(24, 720 // max(rows, columns)))
    slowest = max(report.seconds.values(), default=1.0) or 1.0
    cells = []
    for row in range(rows):
        for column in range(columns):
            window = (row, column)
            state = "failed" if window in report.failures else "done" if window in report.seconds else "open"
            took = report.seconds.get(window)
            depth = 0.35 + 0.65 * (took / slowest) if took is not None and state == "done" else 1.0
            told = f"window {row}/{column}: {state}" + (f", {took:.2f} s" if took is not None else "")
            cells.append(
                f"<rect x='{column * side}' y='{row * side}' width='{side - 1}' height='{side - 1}' "
                f"fill='{_COLOURS[state]}' fill-opacity='{depth:.2f}'><title>{html.escape(told)}</title></rect>"
            )
    legend = "".join(f"<span style='background:{colour}'></span>{state}" for state, colour in _COLOURS.items())
    size = f"width='{columns * side}' height='{rows * side}' viewBox='0 0 {columns * side} {rows * side}'"
    return f"<svg {size} role='img'>{''.join(cells)}</svg><p class='legend'>{legend}, darker: slower</p>"


def _failures(report: Report) -> str:
    if not report.failures:
        return ""
    rows = [
        (f"{len(windows)} &times;", f"{html.escape(cause)}<br><small>windows {_listed(windows)}</small>")
        for cause, windows in report.causes()
    ]
    return "<h2>Failures</h2>" + _table(rows)


def _listed(windows: Sequence[tuple[int, int]]) -> str:
    more = f" and {len(windows) - 12} more" if len(windows) > 12 else ""
    return ", ".join(f"{row}/{column}" for row, column in windows[:12]) + more


def _scenes(report: Report) -> str:
    if not report.failed_scenes:
        return ""
    rows = [(html.escape(scene), f"left out of {n} windows") for scene, n in sorted(report.failed_scenes.items())]
    return "<h2>Scenes that could not be read</h2>" + _table(rows)


def _cause(error: str) -> str:
    """Return an error without what is different in each window."""
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
        job=job.to_yaml(),
        state="complete" if complete else "failed" if failures else "interrupted",
        files=tuple(start["files"]),
        shape=(int(start["windows"][0]), int(start["windows"][1])),
        seconds={window: float(event["seconds"]) for window, event in done.items()},
        failures=failures,
        timings={name: round(sum(float(event[name]) for event in done.values()), 3) for name in ("read", "encode")},
        retries=sum(event["event"] == "retry" for event in own),
        failed_scenes=scenes,
        begun=str(own[0]["at"]),
        ended=str(own[-1]["at"]),
        versions=_versions(),
    )


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


def write_report(job: Job) -> tuple[str, ...]:
    """Write ``report.json`` and ``report.html`` beside the ledger; return where, nothing if nothing has been done."""
    report = job_report(job)
    if report is None:
        return ()
    root = ledger_root(ledger_key(job))
    written = []
    for name, text in (("report.json", report.to_json()), ("report.html", report.to_html())):
        target = join(root, name)
        if is_remote(target):
            fs, path = filesystem(target)
            fs.pipe_file(path, text.encode())
        else:
            Path(target).write_text(text, "utf-8")
        written.append(target)
    return tuple(written)
