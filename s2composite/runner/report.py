"""Reports of a job from its ledger: progress, JSON for programs, and a page of HTML that needs nothing beside it."""

from __future__ import annotations

import base64
import datetime as dt
import json
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import numpy as np
from imagecodecs import png_encode

import s2composite
from s2composite.errors import plural, size_text
from s2composite.jobs.schema import Job
from s2composite.runner.inputs import ledger_key
from s2composite.runner.ledger import completed, done_in, failures_in, last_start, ledger_root, read_ledger, trouble_in
from s2composite.storage.files import exists, join, redact
from s2composite.writing.publish import put_small

__all__ = ["Progress", "Report", "WorkerDone", "job_progress", "job_report", "report_page", "write_report"]


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
        counts = {"state": self.state, "windows": self.windows, "done": self.done, "failed": failures}
        return counts | {"error": self.error, "last": self.last, "files": list(self.files)}

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
    start = last_start(events)
    if start is None:
        return Progress("new", 0, 0, (), None, ())
    token, (rows, columns) = start["token"], start["windows"]
    failures = tuple(sorted(failures_in(events, token).items()))
    files, trouble = tuple(start["files"]), trouble_in(events, token)
    state = "failed" if failures or trouble else "running or interrupted"
    if completed(events, start):
        # What was put on a signed URL cannot be looked at.
        local = [file for file in files if not file.startswith(("http://", "https://"))]
        state = "complete" if all(map(exists, local)) else "gone"
    done, last = len(done_in(events, token)), str(events[-1]["at"])
    return Progress(state, int(rows) * int(columns), done, failures, last, files, trouble)


_PACKAGES = ("numpy", "numba", "dask", "distributed", "xarray", "rasterio", "imagecodecs", "zarr")


@dataclass(frozen=True, slots=True)
class WorkerDone:
    """What one worker has done."""

    windows: int  # that it made
    seconds: float  # that they took
    failed: int  # attempts that failed on it


@dataclass(frozen=True, eq=False)
class Report:
    r"""What happened to the latest product of a job.

    Examples
    --------
    >>> from s2composite import load_job
    >>> from s2composite.runner.ledger import Ledger
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
    read: int
    """Bytes that were read for the windows whose end was noted, as far as GDAL does not read."""
    requests: int
    """Byte ranges that these came in."""
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
            # Without the parts that differ from window to window.
            cause = re.sub(r"\b\d+ bytes\b|byte \d+", "... bytes", error)
            cause = re.sub(r"window y \d+:\d+,? x \d+:\d+", "window ...", cause)
            groups.setdefault(cause, []).append(window)
        by_number = sorted(groups.items(), key=lambda item: -len(item[1]))
        return tuple((cause, tuple(windows)) for cause, windows in by_number)

    def to_json(self) -> str:
        """Return the report as JSON."""
        content = {
            "state": self.state,
            "files": self.files,
            "windows": self.shape,
            "done": len(self.seconds.keys() | self.found),
            "error": self.error,
            "failures": [{"window": window, "error": error} for window, error in sorted(self.failures.items())],
            "causes": [{"cause": cause, "windows": windows} for cause, windows in self.causes()],
            "seconds": [{"window": window, "seconds": took} for window, took in sorted(self.seconds.items())],
            "timings": dict(self.timings),
            "read": self.read,
            "requests": self.requests,
            "retries": self.retries,
            "workers": {address: asdict(work) for address, work in self.workers.items()},
            "failed_scenes": dict(self.failed_scenes),
            "begun": self.begun,
            "ended": self.ended,
            "versions": dict(self.versions),
            "job": self.job,
        }
        return json.dumps(content, indent=2)


def job_report(job: Job) -> Report | None:
    r"""Return the report of a job from its ledger; None if nothing has been done yet.

    Examples
    --------
    >>> from s2composite import load_job
    >>> job_report(load_job("source: scenes\noutput: not_begun.tif")) is None
    True
    """
    events = read_ledger(ledger_key(job))
    start = last_start(events)
    if start is None:
        return None
    own = [event for event in events if event.get("token") == start["token"]]
    all_done = done_in(events, start["token"])
    done = {window: event for window, event in all_done.items() if event["event"] == "done"}
    failures = failures_in(events, start["token"])
    trouble = trouble_in(own, start["token"])
    scenes = Counter(scene for event in done.values() for scene in event.get("failed_scenes", ()))
    windows, seconds, failed = Counter[str](), Counter[str](), Counter[str]()
    for event in done.values():
        windows[event["worker"]] += 1
        seconds[event["worker"]] += event["read"] + event["encode"]
    for event in own:
        if event["event"] in ("retry", "failed"):
            failed[event.get("worker") or "unknown"] += 1
    versions = {"python": platform.python_version(), "s2composite": s2composite.__version__}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return Report(
        job=redact(job.to_yaml()),
        state="complete" if completed(events, start) else "failed" if failures or trouble else "interrupted",
        files=tuple(start["files"]),
        shape=(int(start["windows"][0]), int(start["windows"][1])),
        seconds={window: float(event["seconds"]) for window, event in done.items()},
        found=frozenset(all_done.keys() - done.keys()),
        failures=failures,
        timings={name: round(sum(float(event[name]) for event in done.values()), 3) for name in ("read", "encode")},
        read=sum(int(event.get("bytes", 0)) for event in done.values()),
        requests=sum(int(event.get("requests", 0)) for event in done.values()),
        retries=sum(event["event"] == "retry" for event in own),
        workers={w: WorkerDone(windows[w], round(seconds[w], 3), failed[w]) for w in windows.keys() | failed.keys()},
        failed_scenes=dict(scenes),
        begun=str(own[0]["at"]),
        ended=str(own[-1]["at"]),
        versions=versions,
        error=trouble,
    )


_COLOURS = {"done": "#2f6fb7", "failed": "#c8372d", "open": "#c9ced6"}  # of the states of windows
_PALEST = 0.25  # opacity of the fastest window; the slowest has 1
_MOST_RECTANGLES = 5000  # windows drawn one by one and told about under the pointer; more are a picture, a pixel each
_MAP_SIDE = 640  # pixels

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #dfe3e8; --card: #f6f7f9; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #343b44; --card: #1d2229; --paper: #14181d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
.soft, dt, th, figcaption { color: var(--soft); } .number { text-align: right; font-variant-numeric: tabular-nums; }
.state { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: #fff; font-weight: 600; }
.complete { background: #2c7d4b; } .failed { background: #c8372d; } .interrupted { background: #a86a00; }
.bar { display: flex; height: .6rem; margin: 1rem 0; border-radius: .3rem; overflow: hidden; background: var(--line); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0; }
dl div { background: var(--card); border-radius: .5rem; padding: .6rem .9rem; }
dt { font-size: .85rem; } dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
figure { margin: 0; } figure svg, figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .6rem; font-size: .9rem; }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .35em 0 1em; vertical-align: -.1em; }
.key:first-child { margin-left: 0; } .ramp { width: 6em; }
.key-done { background: #2f6fb7; } .key-failed { background: #c8372d; } .key-open { background: #c9ced6; }
.ramp { background: linear-gradient(90deg, #2f6fb740, #2f6fb7); }
table { border-collapse: collapse; } td, th { padding: .25rem 1.25rem .25rem 0; text-align: left; vertical-align: top;
  font-weight: normal; } td { overflow-wrap: anywhere; } th.number { text-align: right; }
details { background: var(--card); border-left: 4px solid #c8372d; border-radius: .3rem; margin: .6rem 0;
  padding: .5rem .9rem; overflow-wrap: anywhere; }
summary { cursor: pointer; } summary b { margin-right: .5em; } details p { margin: .5rem 0 0; }
pre { background: var(--card); border-radius: .5rem; padding: .9rem; overflow-x: auto; font-size: .87rem; }
"""


def report_page(report: Report) -> str:
    """Return a report as a page."""
    name = report.files[0].rpartition("/")[2] if report.files else "job"
    scenes = [[escape(scene), str(n)] for scene, n in sorted(report.failed_scenes.items())]
    workers = [
        [escape(address), str(work.windows), duration(work.seconds), str(work.failed)]
        for address, work in sorted(report.workers.items())
    ]
    failures = "" if report.error is None else f"<details open><summary>{escape(report.error)}</summary></details>"
    for i, (cause, windows) in enumerate(report.causes()):
        failures += (
            f"<details{' open' if i < 3 else ''}><summary><b>{len(windows)} &times;</b>{escape(cause)}</summary>"
            f"<p class='soft'>windows {', '.join(f'{row}/{column}' for row, column in windows)}</p></details>"
        )
    parts = [
        f"<p class='soft'>s2composite {escape(report.versions.get('s2composite', ''))}</p>",
        f"<h1>{escape(name)}</h1>",
        _summary(report),
        _section("Windows", _map(report)),
        _section("Failures", failures),
        _section("Scenes that could not be read", _table(scenes, ["scene", "left out of windows"], 1)),
        _section("Workers", _table(workers, ["worker", "windows", "at work", "failed attempts"], 3)),
        _section("Files", _table([[escape(path)] for path in report.files])),
        _section("Job", f"<pre>{escape(report.job)}</pre>"),
        _section("Versions", _table([[escape(k), escape(v)] for k, v in report.versions.items()])),
    ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(name)}</title>"
    body = "\n".join(part for part in parts if part)
    head = f"<head>{head}<style>{_STYLE}</style></head>"
    return f"<!doctype html><html lang='en'>{head}<body><main>{body}</main></body></html>\n"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), numbers: int = 0) -> str:
    """Return rows of HTML as a table, of which the last `numbers` columns are aligned to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        marks = [""] * (len(cells) - numbers) + [" class='number'"] * numbers
        return "<tr>" + "".join(f"<{tag}{m}>{c}</{tag}>" for c, m in zip(cells, marks, strict=True)) + "</tr>"

    if not rows:
        return ""
    return "<table>" + (row(header, "th") if header else "") + "".join(row(cells, "td") for cells in rows) + "</table>"


def _summary(report: Report) -> str:
    total = report.shape[0] * report.shape[1]
    counts = Counter(report.states().values())
    begun, ended = map(dt.datetime.fromisoformat, (report.begun, report.ended))
    seconds = list(report.seconds.values())
    last = f"{ended:%H:%M:%S}" if begun.date() == ended.date() else f"{ended:%Y-%m-%d %H:%M:%S}"
    bar = "".join(
        f"<span style='width:{100 * counts[state] / max(total, 1):.2f}%;background:{colour}'></span>"
        for state, colour in _COLOURS.items()
    )
    figures = {
        "done": f"{counts['done']} of {total}",
        "failed": str(counts["failed"]),
        "not tried": str(counts["open"]),
        "read": f"{size_text(report.read)} in {plural(report.requests, 'request')}",
        "retries": str(report.retries),
        "from first to last": duration((ended - begun).total_seconds()),
        "a window, median": duration(median(seconds)) if seconds else "-",
        "a window, slowest": duration(max(seconds)) if seconds else "-",
    }
    figures |= {f"{what}, all workers": duration(took) for what, took in report.timings.items()}
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures.items())
    return (
        f"<p><span class='state {report.state}'>{report.state}</span> {begun:%Y-%m-%d %H:%M:%S} to {last} UTC</p>"
        f"<div class='bar'>{bar}</div><dl>{tiles}</dl>"
    )


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(0.1234), duration(61.2), duration(7380)
    ('0.12 s', '1 min 01 s', '2 h 03 min')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _map(report: Report) -> str:
    """Return the windows where they lie, coloured by state; those that took longer are darker."""
    rows, columns = report.shape
    slowest = max(report.seconds.values(), default=0.0)
    opacity = dict.fromkeys(report.states(), 1.0)
    if slowest:
        for window in report.seconds.keys() - report.failures.keys():
            opacity[window] = _PALEST + (1 - _PALEST) * report.seconds[window] / slowest
    label = f"map of {rows} x {columns} windows by state and time"
    if rows * columns > _MOST_RECTANGLES:
        pixels = np.empty((rows, columns, 4), np.uint8)
        for window, state in report.states().items():
            pixels[window] = (*bytes.fromhex(_COLOURS[state][1:]), round(255 * opacity[window]))
        data = base64.b64encode(png_encode(pixels)).decode()
        width = max(_MAP_SIDE, columns) if columns >= rows else round(max(_MAP_SIDE, rows) * columns / rows)
        style = f"width:{width}px;image-rendering:pixelated"
        picture = f"<img src='data:image/png;base64,{data}' alt='{label}' style='{style}'>"
    else:
        side = max(6, min(48, _MAP_SIDE // max(rows, columns)))
        size = f"width='{columns * side}' height='{rows * side}' viewBox='0 0 {columns * side} {rows * side}'"
        cells = ""
        for (row, column), state in report.states().items():
            window = (row, column)
            words = f"window {row}/{column}: {state}"
            words += f", {duration(report.seconds[window])}" if window in report.seconds else ""
            words += f": {report.failures[window]}" if state == "failed" else ""
            cells += (
                f"<rect x='{column * side}' y='{row * side}' width='{side - 1}' height='{side - 1}' "
                f"fill='{_COLOURS[state]}' fill-opacity='{opacity[window]:.2f}'>"
                f"<title>{escape(words)}</title></rect>"
            )
        picture = f"<svg {size} role='img' aria-label='{label}'>{cells}</svg>"
    keys = "".join(f"<span class='key key-{state}'></span>{state}" for state in _COLOURS)
    ramp = f"<span class='key ramp'></span>done in 0 to {duration(slowest)}" if slowest else ""
    return f"<figure>{picture}<figcaption>{keys}{ramp}</figcaption></figure>"


def write_report(job: Job) -> tuple[str, ...]:
    r"""Write ``report.json`` and ``report.html`` beside the ledger; return where, nothing if nothing has been done.

    Raises
    ------
    WriteError
        They cannot be written there.

    Examples
    --------
    >>> from s2composite import load_job
    >>> from s2composite.runner.ledger import Ledger
    >>> with Ledger("reported.tif", "first") as ledger:
    ...     ledger.add("start", token="t", windows=[1, 2], files=["reported.tif"])
    >>> [path.rpartition("/")[2] for path in write_report(load_job("source: scenes\noutput: reported.tif"))]
    ['report.json', 'report.html']
    """
    report = job_report(job)
    if report is None:
        return ()
    root = ledger_root(ledger_key(job))
    written = []
    for name, text in (("report.json", report.to_json()), ("report.html", report_page(report))):
        target = join(root, name)
        put_small(text.encode(), target, overwrite=True)
        written.append(target)
    return tuple(written)
