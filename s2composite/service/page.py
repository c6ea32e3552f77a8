"""Page: the jobs of the service as one page of HTML, made here, without a script or anything from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

__all__ = ["jobs_page"]

_REFRESH = 5
"""Seconds after which a page with running jobs is loaded again."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #1c1c1c; }
h1 { font-size: 1.4rem; } table { border-collapse: collapse; width: 100%; }
td, th { padding: .5rem .8rem .5rem 0; text-align: left; vertical-align: top; border-top: 1px solid #ddd; }
th { border: 0; font-weight: 600; } img { width: 128px; image-rendering: auto; border: 1px solid #ddd; }
progress { width: 9rem; } code { font-size: 13px; } .error { color: #a32020; max-width: 24rem; }
.state { font-weight: 600; } .complete { color: #1d7a3a; } .failed { color: #a32020; } .running { color: #2457a8; }
"""

_COLUMNS = ("job", "state", "windows", "made", "", "")


def jobs_page(jobs: Sequence[dict[str, Any]], windows: int, letters: int) -> str:
    """Return the page.

    Parameters
    ----------
    jobs
        What callers see of each, the newest first.
    windows
        Windows of ``/median`` that are being made or wait.
    letters
        Messages that could never succeed.
    """
    busy = any(job["state"] in ("queued", "running") for job in jobs)
    refresh = f"<meta http-equiv='refresh' content='{_REFRESH}'>" if busy else ""
    head = f"<meta charset='utf-8'>{refresh}<title>s2composite jobs</title><style>{_STYLE}</style>"
    rows = "".join(map(_row, jobs)) or "<tr><td colspan='6'>no jobs yet</td></tr>"
    columns = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    facts = f"{windows} single windows in work, <a href='dead-letters'>{letters} dead letters</a>"
    table = f"<table id='jobs'><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body><h1>Jobs</h1><p>{facts}</p>{table}</body></html>\n"


def _row(job: dict[str, Any]) -> str:
    number, state = html.escape(job["id"]), html.escape(job["state"])
    counts = job["counts"]
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    made = f"<progress max='1' value='{job['progress']}'></progress><br>{counts['done']} of {counts['windows']}{failed}"
    error = f"<div class='error'>{html.escape(job['error'])}</div>" if job["error"] else ""
    times = "<br>".join(html.escape(f"{what} {_time(job[what])}") for what in ("created", "ended") if job[what])
    links = f"<a href='jobs/{number}'>facts</a> <a href='jobs/{number}/log'>log</a>"
    links += f" <a href='jobs/{number}/report'>report</a>" if counts["windows"] else ""
    look = f"<img src='jobs/{number}/quicklook.png' alt='quicklook of {number}'>" if state == "complete" else ""
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


def _time(text: str) -> str:
    return text[:19].replace("T", " ")
