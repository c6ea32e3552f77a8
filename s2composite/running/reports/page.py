"""The page of a report: one file of HTML that needs nothing beside it, and runs nothing."""

from __future__ import annotations

import base64
import datetime as dt
import html
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import numpy as np
from imagecodecs import png_encode

from s2composite.running.jobs.job import Job
from s2composite.running.ledger import ledger_root
from s2composite.running.reports.report import Report, job_report
from s2composite.running.scope import ledger_key
from s2composite.scenes.storage import join
from s2composite.writing.targets import put_small

__all__ = ["report_page", "write_report"]

_STATES = ("done", "failed", "open")
_COLOURS = {"done": "#2f6fb7", "failed": "#c8372d", "open": "#c9ced6"}
_PALEST = 0.25
"""Opacity of the fastest window; the slowest has 1."""

_MOST_RECTANGLES = 5000
"""Windows that are drawn one by one and told about under the pointer; more are one picture, a pixel each."""

_MAP_SIDE = 640

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
    parts = [
        f"<p class='soft'>s2composite {_text(report.versions.get('s2composite', ''))}</p>",
        f"<h1>{_text(name)}</h1>",
        _summary(report),
        _section("Windows", _map(report)),
        _section("Failures", _failures(report)),
        _section("Scenes that could not be read", _scenes(report.failed_scenes)),
        _section("Workers", _workers(report)),
        _section("Files", _table([[_text(path)] for path in report.files])),
        _section("Job", f"<pre>{_text(report.job)}</pre>"),
        _section("Versions", _table([[_text(k), _text(v)] for k, v in report.versions.items()])),
    ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{_text(name)}</title>"
    body = "\n".join(part for part in parts if part)
    head = f"<head>{head}<style>{_STYLE}</style></head>"
    return f"<!doctype html><html lang='en'>{head}<body><main>{body}</main></body></html>\n"


def _text(value: object) -> str:
    return html.escape(str(value))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), numbers: int = 0) -> str:
    """Return rows of HTML as a table, of which the last `numbers` columns are aligned to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        marks = [""] * (len(cells) - numbers) + [" class='number'"] * numbers
        return "<tr>" + "".join(f"<{tag}{m}>{c}</{tag}>" for c, m in zip(cells, marks, strict=True)) + "</tr>"

    return "<table>" + (row(header, "th") if header else "") + "".join(row(cells, "td") for cells in rows) + "</table>"


def _summary(report: Report) -> str:
    total = report.shape[0] * report.shape[1]
    counts = {state: sum(one == state for one in report.states().values()) for state in _STATES}
    begun, ended = map(dt.datetime.fromisoformat, (report.begun, report.ended))
    seconds = list(report.seconds.values())
    last = f"{ended:%H:%M:%S}" if begun.date() == ended.date() else f"{ended:%Y-%m-%d %H:%M:%S}"
    bar = "".join(
        f"<span style='width:{100 * counts[state] / max(total, 1):.2f}%;background:{_COLOURS[state]}'></span>"
        for state in _STATES
    )
    facts = {
        "done": f"{counts['done']} of {total}",
        "failed": str(counts["failed"]),
        "not tried": str(counts["open"]),
        "retries": str(report.retries),
        "from first to last": duration((ended - begun).total_seconds()),
        "a window, median": duration(median(seconds)) if seconds else "-",
        "a window, slowest": duration(max(seconds)) if seconds else "-",
    }
    facts |= {f"{what}, all workers": duration(took) for what, took in report.timings.items()}
    tiles = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
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
    slowest = max(report.seconds.values(), default=0.0)
    told = f"map of {report.shape[0]} x {report.shape[1]} windows by state and time"
    many = report.shape[0] * report.shape[1] > _MOST_RECTANGLES
    picture = _picture(report, slowest, told) if many else _rectangles(report, slowest, told)
    keys = "".join(f"<span class='key key-{state}'></span>{state}" for state in _STATES)
    ramp = f"<span class='key ramp'></span>done in 0 to {duration(slowest)}" if slowest else ""
    return f"<figure>{picture}<figcaption>{keys}{ramp}</figcaption></figure>"


def _depth(report: Report, window: tuple[int, int], slowest: float) -> float:
    """Return how opaque a window is."""
    took = report.seconds.get(window)
    return 1.0 if took is None or not slowest else _PALEST + (1 - _PALEST) * took / slowest


def _rectangles(report: Report, slowest: float, told: str) -> str:
    rows, columns = report.shape
    side = max(6, min(48, _MAP_SIDE // max(rows, columns)))
    cells = []
    for (row, column), state in report.states().items():
        window = (row, column)
        depth = _depth(report, window, slowest) if state == "done" else 1.0
        words = f"window {row}/{column}: {state}"
        words += f", {duration(report.seconds[window])}" if window in report.seconds else ""
        words += f": {report.failures[window]}" if state == "failed" else ""
        cells.append(
            f"<rect x='{column * side}' y='{row * side}' width='{side - 1}' height='{side - 1}' "
            f"fill='{_COLOURS[state]}' fill-opacity='{depth:.2f}'><title>{_text(words)}</title></rect>"
        )
    size = f"width='{columns * side}' height='{rows * side}' viewBox='0 0 {columns * side} {rows * side}'"
    return f"<svg {size} role='img' aria-label='{told}'>{''.join(cells)}</svg>"


def _picture(report: Report, slowest: float, told: str) -> str:
    rows, columns = report.shape
    pixels = np.empty((rows, columns, 4), np.uint8)
    for window, state in report.states().items():
        colour = bytes.fromhex(_COLOURS[state][1:])
        depth = _depth(report, window, slowest) if state == "done" else 1.0
        pixels[window] = (*colour, round(255 * depth))
    data = base64.b64encode(png_encode(pixels)).decode()
    width = max(_MAP_SIDE, columns) if columns >= rows else round(max(_MAP_SIDE, rows) * columns / rows)
    style = f"width:{width}px;image-rendering:pixelated"
    return f"<img src='data:image/png;base64,{data}' alt='{told}' style='{style}'>"


def _failures(report: Report) -> str:
    trouble = "" if report.error is None else f"<details open><summary>{_text(report.error)}</summary></details>"
    return trouble + "".join(
        f"<details{' open' if i < 3 else ''}><summary><b>{len(windows)} &times;</b>{_text(cause)}</summary>"
        f"<p class='soft'>windows {', '.join(f'{row}/{column}' for row, column in windows)}</p></details>"
        for i, (cause, windows) in enumerate(report.causes())
    )


def _scenes(failed: Mapping[str, int]) -> str:
    rows = [[_text(scene), str(n)] for scene, n in sorted(failed.items())]
    return _table(rows, ["scene", "left out of windows"], 1) if rows else ""


def _workers(report: Report) -> str:
    rows = [
        [_text(address), str(work.windows), duration(work.seconds), str(work.failed)]
        for address, work in sorted(report.workers.items())
    ]
    return _table(rows, ["worker", "windows", "at work", "failed attempts"], 3) if rows else ""


def write_report(job: Job) -> tuple[str, ...]:
    r"""Write ``report.json`` and ``report.html`` beside the ledger; return where, nothing if nothing has been done.

    Raises
    ------
    WriteError
        They cannot be written there.

    Examples
    --------
    >>> from s2composite import load_job
    >>> from s2composite.running.ledger import Ledger
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
