"""Views: what a caller sees of a job: its state and progress, a report, a quicklook."""

from __future__ import annotations

import json
from typing import Any

import imagecodecs
import numpy as np
import rasterio
import xarray as xr

from s2composite.pixels.stretching import rgba
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.reports.progress import job_progress
from s2composite.running.reports.report import Report, job_report
from s2composite.scenes.storage import display, filesystem, storage_options
from s2composite.service.problems import Problem, ProblemError, scrubbed
from s2composite.service.store import JobRow
from s2composite.writing.preview import valid_everywhere

__all__ = ["job_facts", "job_of", "quicklook", "report_of"]

_FAILURES = 100
"""Failed windows that are listed; all are in the report."""

_SIDE = 512
"""Pixels of a quicklook."""


def job_of(row: JobRow) -> Job:
    """Return the job that is kept in a row."""
    return load_job(json.loads(row.document))


def job_facts(row: JobRow) -> dict[str, Any]:
    """Return a job as callers see it: its state, how far its ledger is, what failed."""
    job = job_of(row)
    found = job_progress(job)
    failures = [{"window": list(window), "error": scrubbed(why)} for window, why in found.failures[:_FAILURES]]
    share = found.done / found.windows if found.windows else 0.0
    return {
        "id": row.id,
        "state": row.state,
        "progress": 1.0 if row.state == "complete" else round(min(share, 0.999), 3),
        "counts": {"windows": found.windows, "done": found.done, "failed": len(found.failures)},
        "failures": failures,
        "error": None if row.error is None else scrubbed(row.error),
        "output": display(job.output),
        "files": [display(path) for path in found.files],
        "created": row.created,
        "started": row.started,
        "ended": row.ended,
        "attempts": row.attempts,
    }


def report_of(row: JobRow) -> Report:
    """Return the report of a job.

    Raises
    ------
    ProblemError
        Nothing has been done yet.
    """
    report = job_report(job_of(row))
    if report is None:
        raise ProblemError(Problem(404, "nothing has been done of this job yet, so there is no report"))
    return report


def quicklook(row: JobRow) -> bytes:
    """Return a PNG of a job's first file, of the pixels of its overviews.

    Raises
    ------
    ProblemError
        It is not complete.
    """
    job = job_of(row)
    files = job_progress(job).files
    if row.state != "complete" or not (files or job.format == "zarr"):
        raise ProblemError(Problem(404, "there is no picture before the job is complete"))
    pixels, valid = _of_zarr(job.output) if job.format == "zarr" else _of_raster(files[0])
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
        step = max(1, -(-max(layer.shape[-2:]) // _SIDE))
        cut = layer[..., ::step, ::step].values
        nodata = layer.attrs.get("nodata", layer.attrs.get("_FillValue"))
    pixels = cut.reshape(-1, *cut.shape[-2:])
    pixels = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    return pixels, valid_everywhere(pixels, nodata)
