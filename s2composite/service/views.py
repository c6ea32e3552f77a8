"""Views of jobs for callers: state and progress as JSON and as a page, reports, quicklooks."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any, TypeVar

import imagecodecs
import numpy as np
import rasterio
import xarray as xr
from jinja2 import Environment

from s2composite.cube.array_values import missing_value_of
from s2composite.jobs.schema import load_job
from s2composite.pixels.stretch import rgba
from s2composite.runner.inputs import ProductJob, expand
from s2composite.runner.report import Progress, Report, job_progress, job_report
from s2composite.service.queue import ENDED, JobRow
from s2composite.service.security import ProblemError
from s2composite.storage.files import display, filesystem, redact, storage_options
from s2composite.writing.cog import valid_everywhere

__all__ = ["Views", "jobs_page"]

T = TypeVar("T")

_MAX_FAILURES = 100  # failed windows to list; the report has all

_SIDE = 512  # pixels of a quicklook


# A product of a job, and its progress by its ledger.
_Progress = tuple[ProductJob, Progress]


class Views:
    """Views of jobs. Data that cannot change any more is read once, because reading ledgers may be slow.

    A page with fifty jobs requests all of them every five seconds.
    """

    def __init__(self) -> None:
        self._states, self._pictures = _Cache(5000), _Cache(100)

    def summary(self, row: JobRow) -> dict[str, Any]:
        """Return a job's summary: its state, its progress by its ledgers, its failures."""
        products = self._products(row)
        windows, done = (sum(getattr(progress, key) for _, progress in products) for key in ("windows", "done"))
        share, files = 0.0, list[str]()
        failures, listed = list[dict[str, Any]](), list[dict[str, Any]]()
        for product, progress in products:
            share += progress.done / progress.windows if progress.windows else 0
            named = {} if product.name is None else {"product": product.name}
            failures += [named | {"window": list(window), "error": why} for window, why in progress.failures]
            counts = {"windows": progress.windows, "done": progress.done, "failed": len(progress.failures)}
            own_files = [display(path) for path in progress.files]
            files += own_files
            listed.append({"name": product.name, "state": progress.state, "counts": counts, "files": own_files})
        summary = {
            "id": row.id,
            "state": row.state,
            "progress": 1.0 if row.state == "complete" else round(min(share / max(len(products), 1), 0.999), 3),
            "counts": {"windows": windows, "done": done, "failed": len(failures)},
            "failures": [failure | {"error": redact(failure["error"])} for failure in failures[:_MAX_FAILURES]],
            "error": None if row.error is None else redact(row.error),
            "output": display(json.loads(row.document)["output"]),
            "files": files,
            "created": row.created,
            "started": row.started,
            "ended": row.ended,
            "attempts": row.attempts,
        }
        single = len(products) == 1 and products[0][0].name is None
        return summary if single else summary | {"products": listed}

    def report(self, row: JobRow, product: str | None) -> Report:
        """Return the report of a job or of one of its products."""
        report = job_report(self._product(row, product)[0].job)
        if report is None:
            raise ProblemError(404, "this job has not started yet, so there is no report")
        return report

    def quicklook(self, row: JobRow, product: str | None = None) -> bytes:
        """Return a PNG of the first file of a job or of one of its products, from its overviews."""
        one, progress = self._product(row, product)
        complete, files = "complete" in (row.state, progress.state), progress.files
        if not complete or not (files or one.job.format == "zarr"):
            raise ProblemError(404, "there is no picture before the job is complete")
        key = (row.id, one.name, progress.last)
        picture: bytes | None = self._pictures.get(key)
        if picture is None:
            pixels, valid = _zarr_pixels(one.job.output) if one.job.format == "zarr" else _raster_pixels(files[0])
            picture = self._pictures.put(key, bytes(imagecodecs.png_encode(rgba(pixels, valid, None))))
        return picture

    def _product(self, row: JobRow, name: str | None) -> _Progress:
        """Return a product of a job by name; by default the first complete one, else the first."""
        products = self._products(row)
        if name is not None:
            chosen = [one for one in products if one[0].name == name]
        else:
            chosen = sorted(products, key=lambda one: one[1].state != "complete")[:1]
        if not chosen:
            raise ProblemError(404, "the job has no such product; its summary lists the products", "/product")
        return chosen[0]

    def _products(self, row: JobRow) -> tuple[_Progress, ...]:
        # Data that does not change until the job is started again.
        key = (row.id, row.state, row.ended, row.attempts)
        known: tuple[_Progress, ...] | None = self._states.get((*key, "progress"))
        if known is not None:
            return known
        jobs = self._states.get((*key, "products"))
        if jobs is None:
            jobs = self._states.put((*key, "products"), expand(load_job(json.loads(row.document))))
        products = []
        for one in jobs:
            progress = self._states.get((row.id, one.name))
            if progress is None:
                progress = Progress("new", 0, 0, (), None, ()) if row.attempts == 0 else job_progress(one.job)
                if progress.state == "complete":
                    self._states.put((row.id, one.name), progress)
            products.append((one, progress))
        return self._states.put((*key, "progress"), tuple(products)) if row.state in ENDED else tuple(products)


class _Cache:
    """A thread-safe cache of the `most` most recently used values."""

    def __init__(self, most: int) -> None:
        self._most, self._values, self._lock = most, OrderedDict[Any, Any](), Lock()

    def get(self, key: Any) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Any, value: T) -> T:
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


def _raster_pixels(path: str) -> tuple[Any, Any]:
    fs, inside = filesystem(path)
    with fs.open(inside, "rb") as file, rasterio.open(file, driver="GTiff") as source:
        scale = max(1, max(source.shape) / _SIDE)
        shape = tuple(max(1, int(n / scale)) for n in source.shape)
        bands = [1, 2, 3] if source.count >= 3 else [1, 1, 1]
        pixels = source.read(bands, out_shape=(3, *shape))
        return pixels, (source.read_masks(bands, out_shape=(3, *shape)) > 0).all(axis=0)


def _zarr_pixels(path: str) -> tuple[Any, Any]:
    options = storage_options(path) or None
    with xr.open_dataset(path, engine="zarr", mask_and_scale=False, storage_options=options) as store:
        layer = store["composite"]
        nodata = missing_value_of(layer).nodata
        step = max(1, -(-max(layer.shape[-2:]) // _SIDE))
        thinned = layer[..., ::step, ::step].values
    pixels = thinned.reshape(-1, *thinned.shape[-2:])
    pixels = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    return pixels, valid_everywhere(pixels, nodata)


# --- the page of jobs: HTML without scripts or external resources ----------------------------------------------------

_SHORT = 160  # characters of an error to show; the rest unfolds

_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang='en'>
<head>
<meta charset='utf-8'><meta name='viewport' content='width=device-width'>
{% if jobs | selectattr("state", "in", ("queued", "running")) | first is defined %}
<meta http-equiv='refresh' content='5'>
{% endif %}
<title>s2composite jobs</title>
<style>
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
</style>
</head>
<body>
<h1>Jobs</h1>
<p>{{ windows }} single windows in work, <a href='dead-letters'>{{ letters }} dead letters</a></p>
<main><table id='jobs'>
<thead><tr><th>job</th><th>state</th><th>windows</th><th>made</th><th></th><th></th></tr></thead>
<tbody>
{% for job in jobs %}
{% set counts = job.counts %}
<tr id='job-{{ job.id }}'>
<td>{{ job.output.rpartition("/")[2] }}<br><code>{{ job.id }}</code></td>
<td><span class='state {{ job.state }}'>{{ job.state }}</span>
{% if job.error %}
<div class='error'>
{% if job.error | length > short %}
<details><summary>{{ job.error[:short] }} ...</summary>{{ job.error[short:] }}</details>
{% else %}
{{ job.error }}
{% endif %}
</div>
{% endif %}
</td>
<td><progress max='1' value='{{ job.progress }}'></progress><br>
{% if counts.windows %}
{{ counts.done }} of {{ counts.windows }}{% if counts.failed %}, {{ counts.failed }} failed{% endif %}

{% else %}
not begun
{% endif %}
{% if job.products %}
<br>{{ job.products | selectattr("state", "eq", "complete") | list | length }} of {{ job.products | length }} products
{% endif %}
</td>
<td>created {{ job.created[:19].replace("T", " ") }}
{% if job.ended %}
<br>ended {{ job.ended[:19].replace("T", " ") }}
{% endif %}
</td>
<td><a href='jobs/{{ job.id }}'>facts</a> <a href='jobs/{{ job.id }}/log'>log</a>
{% if counts.windows %}
<a href='jobs/{{ job.id }}/report'>report</a>
{% endif %}
</td>
<td>
{% if job.state == "complete" %}
<img loading='lazy' src='jobs/{{ job.id }}/quicklook.png' alt='quicklook of {{ job.id }}'>
{% endif %}
</td>
</tr>
{% else %}
<tr><td colspan='6'>no jobs yet</td></tr>
{% endfor %}
</tbody>
</table></main>
{% if total > jobs | length %}
<p><a href='jobs?offset={{ jobs | length }}'>{{ total - jobs | length }} older jobs</a></p>
{% endif %}
</body>
</html>
""")


def jobs_page(jobs: Sequence[dict[str, Any]], total: int, windows: int, letters: int) -> str:
    """Return the page of jobs, which reloads itself while any of them runs."""
    return _PAGE.render(jobs=jobs, total=total, windows=windows, letters=letters, short=_SHORT)
