"""Page: the jobs of the service as one page of HTML, made here, without a script or anything from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

__all__ = ["jobs_page"]

_REFRESH = 5
"""Seconds after which a page with running jobs is loaded again."""

_SHORT = 160
"""Characters of an error that are shown at once; the rest unfolds."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c1c1c; }
h1 { font-size: 1.4rem; } main { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; min-width: 56rem; table-layout: fixed; }
td, th { padding: .5rem .8rem .5rem 0; text-align: left; vertical-align: top; border-top: 1px solid #ddd; }
td { overflow-wrap: anywhere; } th { border: 0; font-weight: 600; }
th:nth-child(1) { width: 26%; } th:nth-child(2) { width: 20%; } th:nth-child(3) { width: 15%; }
th:nth-child(5) { width: 4.5rem; } td:nth-child(5) a { display: block; } th:nth-child(6) { width: 136px; }
img { width: 128px; image-rendering: auto; border: 1px solid #ddd; } progress { width: 9rem; max-width: 100%; }
code { font-size: 12px; } .error { color: #a32020; font-size: 13px; } summary { cursor: pointer; }
.state { font-weight: 600; } .complete { color: #1d7a3a; } .failed { color: #a32020; } .running { color: #2457a8; }
"""

_COLUMNS = ("job", "state", "windows", "made", "", "")


def jobs_page(jobs: Sequence[dict[str, Any]], total: int, windows: int, letters: int) -> str:
    """Return the page.

    Parameters
    ----------
    jobs
        What callers see of each, the newest first.
    total
        How many there are, older ones included.
    windows
        Windows of ``/median`` that are being made or wait.
    letters
        Messages that could never succeed.
    """
    busy = any(job["state"] in ("queued", "running") for job in jobs)
    refresh = f"<meta http-equiv='refresh' content='{_REFRESH}'>" if busy else ""
    meta = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'>{refresh}"
    head = f"{meta}<title>s2composite jobs</title><style>{_STYLE}</style>"
    rows = "".join(map(_row, jobs)) or "<tr><td colspan='6'>no jobs yet</td></tr>"
    columns = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    facts = f"{windows} single windows in work, <a href='dead-letters'>{letters} dead letters</a>"
    table = f"<table id='jobs'><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>"
    body = f"<h1>Jobs</h1><p>{facts}</p><main>{table}</main>{_older(len(jobs), total)}"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>\n"


def _older(shown: int, total: int) -> str:
    return f"<p><a href='jobs?offset={shown}'>{total - shown} older jobs</a></p>" if total > shown else ""


def _row(job: dict[str, Any]) -> str:
    number, state = html.escape(job["id"]), html.escape(job["state"])
    counts = job["counts"]
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    windows = f"{counts['done']} of {counts['windows']}{failed}" if counts["windows"] else "not begun"
    made = f"<progress max='1' value='{job['progress']}'></progress><br>{windows}"
    error = _error(job["error"]) if job["error"] else ""
    made += _products(job.get("products", ()))
    times = "<br>".join(html.escape(f"{what} {_time(job[what])}") for what in ("created", "ended") if job[what])
    links = f"<a href='jobs/{number}'>facts</a> <a href='jobs/{number}/log'>log</a>"
    links += f" <a href='jobs/{number}/report'>report</a>" if counts["windows"] else ""
    look = (
        f"<img loading='lazy' src='jobs/{number}/quicklook.png' alt='quicklook of {number}'>"
        if state == "complete"
        else ""
    )
    name = html.escape(job["output"].rpartition("/")[2])
    cells = (
        f"{name}<br><code>{number}</code>",
        f"<span class='state {state}'>{state}</span>{error}",
        made,
        times,
        links,
        look,
    )
    return f"<tr id='job-{number}'>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _error(text: str) -> str:
    short, rest = html.escape(text[:_SHORT]), html.escape(text[_SHORT:])
    inside = f"<details><summary>{short} ...</summary>{rest}</details>" if rest else short
    return f"<div class='error'>{inside}</div>"


def _products(products: Sequence[dict[str, Any]]) -> str:
    complete = sum(one["state"] == "complete" for one in products)
    return f"<br>{complete} of {len(products)} products" if products else ""


def _time(text: str) -> str:
    return text[:19].replace("T", " ")
