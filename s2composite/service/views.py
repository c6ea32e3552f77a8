"""Views: what a caller sees of a job: its state and progress, reports, quicklooks."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import imagecodecs
import numpy as np
import rasterio
import xarray as xr

from s2composite.array_values import missing_value_of
from s2composite.pixels.stretching import rgba
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.reports.progress import Progress, job_progress
from s2composite.running.reports.report import Report, job_report
from s2composite.running.run_spans import job_products
from s2composite.scenes.storage import display, filesystem, storage_options
from s2composite.service.problems import Problem, ProblemError, scrubbed
from s2composite.service.store import ENDED, JobRow
from s2composite.writing.preview import valid_everywhere

__all__ = ["Views"]

T = TypeVar("T")

_FAILURES = 100
"""Failed windows that are listed; all are in the report."""

_SIDE = 512
"""Pixels of a quicklook."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One product of a job."""

    name: str | None
    """Of its cell and its unit of a span; None: it is the only one."""

    job: Job
    """What it is made of."""

    progress: Progress
    """How far it is."""


class Views:
    """What callers see of jobs. What cannot change any more is looked at once: ledgers may be far away.

    A page with fifty jobs asks for all of them every five seconds.
    """

    def __init__(self) -> None:
        self._facts, self._pictures = _Kept(5000), _Kept(100)

    def facts(self, row: JobRow) -> dict[str, Any]:
        """Return a job as callers see it: its state, how far its ledgers are, what failed."""
        parts = self._parts(row)
        windows, done = (sum(getattr(part.progress, key) for part in parts) for key in ("windows", "done"))
        failed = [(part.name, window, why) for part in parts for window, why in part.progress.failures]
        share = sum(part.progress.done / part.progress.windows for part in parts if part.progress.windows)
        facts = {
            "id": row.id,
            "state": row.state,
            "progress": 1.0 if row.state == "complete" else round(min(share / max(len(parts), 1), 0.999), 3),
            "counts": {"windows": windows, "done": done, "failed": len(failed)},
            "failures": [_failure(*one) for one in failed[:_FAILURES]],
            "error": None if row.error is None else scrubbed(row.error),
            "output": display(json.loads(row.document)["output"]),
            "files": [display(path) for part in parts for path in part.progress.files],
            "created": row.created,
            "started": row.started,
            "ended": row.ended,
            "attempts": row.attempts,
        }
        return facts if _is_single(parts) else facts | {"products": list(map(_product, parts))}

    def report(self, row: JobRow, product: str | None) -> Report:
        """Return the report of a job, or of one of its products.

        Raises
        ------
        ProblemError
            Nothing has been done yet, or there is no such product.
        """
        report = job_report(self._part(row, product).job)
        if report is None:
            raise ProblemError(Problem(404, "nothing has been done of this job yet, so there is no report"))
        return report

    def quicklook(self, row: JobRow, product: str | None = None) -> bytes:
        """Return a PNG of a job's first file, or of that of one of its products, of the pixels of its overviews.

        Raises
        ------
        ProblemError
            It is not complete.
        """
        part = self._part(row, product)
        complete, files = "complete" in (row.state, part.progress.state), part.progress.files
        if not complete or not (files or part.job.format == "zarr"):
            raise ProblemError(Problem(404, "there is no picture before the job is complete"))
        key = (row.id, part.name, part.progress.last)
        return self._pictures.get(key) or self._pictures.put(key, _picture(part))

    def _part(self, row: JobRow, name: str | None) -> _Part:
        """Return a product of a job by its name; without one the first that is complete, or the first."""
        parts = self._parts(row)
        if name is not None:
            found = [part for part in parts if part.name == name]
        else:
            found = sorted(parts, key=lambda part: part.progress.state != "complete")[:1]
        if not found:
            raise ProblemError(Problem(404, "there is no such product of the job; its facts list them", "/product"))
        return found[0]

    def _parts(self, row: JobRow) -> tuple[_Part, ...]:
        if row.state in ENDED:
            return tuple(self._once(row, "parts", lambda: self._looked_at(row)))
        return self._looked_at(row)

    def _looked_at(self, row: JobRow) -> tuple[_Part, ...]:
        products = self._once(row, "products", lambda: tuple(job_products(load_job(json.loads(row.document)))))
        return tuple(_Part(name, job, self._progress(row, name, job)) for name, job in products)

    def _progress(self, row: JobRow, name: str | None, job: Job) -> Progress:
        if row.attempts == 0:
            return Progress("new", 0, 0, (), None, ())
        key = (row.id, "progress", name)
        found: Progress = self._facts.get(key) or job_progress(job)
        return self._facts.put(key, found) if found.state == "complete" else found

    def _once(self, row: JobRow, what: str, look: Callable[[], Any]) -> Any:
        """Return what is so until the job is begun again."""
        key = (row.id, row.state, row.ended, row.attempts, what)
        return self._facts.get(key) or self._facts.put(key, look())


class _Kept:
    """What was found last, by its key; safe to use from several threads.

    Parameters
    ----------
    most
        How many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held, self._lock = most, OrderedDict[Any, Any](), Lock()

    def get(self, key: Any) -> Any:
        """Return what is kept; None: nothing."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Any, found: T) -> T:
        """Keep what was found, and return it."""
        with self._lock:
            self._held[key] = found
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return found


def _is_single(parts: tuple[_Part, ...]) -> bool:
    return len(parts) == 1 and parts[0].name is None


def _failure(product: str | None, window: tuple[int, int], why: str) -> dict[str, Any]:
    facts = {"window": list(window), "error": scrubbed(why)}
    return facts if product is None else {"product": product, **facts}


def _product(part: _Part) -> dict[str, Any]:
    found = part.progress
    counts = {"windows": found.windows, "done": found.done, "failed": len(found.failures)}
    return {"name": part.name, "state": found.state, "counts": counts, "files": [display(path) for path in found.files]}


def _picture(part: _Part) -> bytes:
    pixels, valid = _of_zarr(part.job.output) if part.job.format == "zarr" else _of_raster(part.progress.files[0])
    return bytes(imagecodecs.png_encode(rgba(pixels, valid, None)))


def _of_raster(path: str) -> tuple[Any, Any]:
    fs, inside = filesystem(path)
    with fs.open(inside, "rb") as file, rasterio.open(file, driver="GTiff") as source:
        scale = max(1, max(source.shape) / _SIDE)
        shape = tuple(max(1, int(n / scale)) for n in source.shape)
        bands = [1, 2, 3] if source.count >= 3 else [1, 1, 1]
        pixels = source.read(bands, out_shape=(3, *shape))
        return pixels, (source.read_masks(bands, out_shape=(3, *shape)) > 0).all(axis=0)


def _of_zarr(path: str) -> tuple[Any, Any]:
    options = storage_options(path) or None
    with xr.open_dataset(path, engine="zarr", mask_and_scale=False, storage_options=options) as store:
        layer = store["composite"]
        nodata = missing_value_of(layer).nodata
        step = max(1, -(-max(layer.shape[-2:]) // _SIDE))
        cut = layer[..., ::step, ::step].values
    pixels = cut.reshape(-1, *cut.shape[-2:])
    pixels = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    return pixels, valid_everywhere(pixels, nodata)
