"""Endpoints of jobs: taken, told about, cancelled, tried again."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse

from s2composite.running.reports.page import report_page
from s2composite.service.backend import Backend, problems
from s2composite.service.documents import job_here, job_text, sent_document
from s2composite.service.problems import Problem, ProblemError, scrubbed
from s2composite.service.settings import Settings
from s2composite.service.store import ENDED

__all__ = ["add_jobs"]

_TAIL = 0.5
"""Seconds between two looks at a log that is followed."""

_LAST = 2**31 - 1
"""Largest offset: databases take no number of 64 bits and more."""

_JOB_EXAMPLE = {"source": "gs://bucket/t31tcj/", "output": "median.tif", "datetime": "2023-06/2023-08"}

_GRID_EXAMPLE = {
    "source": "gs://bucket/scenes/",
    "output": "median_{cell}.tif",
    "grid": {"type": "utm", "size": 20000},
    "bbox": [1.2, 43.4, 1.7, 43.8],
}

Product = Annotated[str | None, Query(max_length=200)]
"""Name of one of several products of a job, as its facts list them; None: the first."""

_JOB_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "examples": {"summer": {"value": _JOB_EXAMPLE}, "cells": {"value": _GRID_EXAMPLE}},
        },
        "application/yaml": {
            "schema": {"type": "string"},
            "examples": {"summer": {"value": "source: gs://bucket/t31tcj/\noutput: median.tif\n"}},
        },
    },
}


def add_jobs(app: FastAPI, service: Backend) -> None:
    """Add them to an application."""
    _add_files(app, service)

    @app.post(
        "/jobs",
        status_code=202,
        tags=["jobs"],
        openapi_extra={"requestBody": _JOB_BODY},
        responses=problems(400, 401, 403, 413, 415, 422, 429),
    )
    async def post_job(request: Request, response: Response) -> dict[str, Any]:
        """Take a job into the queue: the keys of a job file, `output` a plain name; its id is the answer."""
        if service.settings.storage is None:
            raise ProblemError(Problem(403, "this service takes no jobs: it has no storage for results"))
        body, number = await request.body(), str(uuid.uuid4())
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        text = await asyncio.to_thread(_checked_job, body, media, number, service.settings)
        if not await asyncio.to_thread(service.store.add, number, text, service.settings.limits.jobs):
            raise ProblemError(Problem(429, "too many jobs are waiting; try again later", retry_after=60))
        service.runner.notify()
        response.headers["Location"] = f"/jobs/{number}"
        return {"id": number, "state": "queued", "href": f"/jobs/{number}"}

    @app.get("/jobs", tags=["jobs"], responses=problems(401))
    def jobs(
        limit: Annotated[int, Query(ge=1, le=500)] = 50, offset: Annotated[int, Query(ge=0, le=_LAST)] = 0
    ) -> list[dict[str, Any]]:
        """List jobs, the newest first."""
        return [service.views.facts(row) for row in service.store.jobs(limit, offset)]

    @app.get("/jobs/{number}", tags=["jobs"], responses=problems(401, 404))
    def job(number: str) -> dict[str, Any]:
        """Tell the state of a job, how far it is, and which windows failed."""
        return service.views.facts(service.row(number))

    @app.delete("/jobs/{number}", status_code=202, tags=["jobs"], responses=problems(401, 404, 409))
    async def cancel(number: str) -> dict[str, Any]:
        """Cancel a job: it stops at once; what is done stays, and a retry goes on from there."""
        row = await asyncio.to_thread(service.row, number)
        if not await asyncio.to_thread(service.store.move, number, ("queued", "running"), "cancelled"):
            raise ProblemError(Problem(409, f"the job is {row.state}: there is nothing to cancel"))
        await service.runner.cancel(number)
        return {"id": number, "state": "cancelled"}

    @app.post("/jobs/{number}/retry", status_code=202, tags=["jobs"], responses=problems(401, 404, 409, 429))
    async def retry(number: str) -> dict[str, Any]:
        """Put a job that failed or was cancelled back into the queue; windows that are done are not made again."""
        row = await asyncio.to_thread(service.row, number)
        again = ("failed", "cancelled")
        if not await asyncio.to_thread(service.store.move, number, again, "queued", error=None, ended=None):
            raise ProblemError(Problem(409, f"the job is {row.state}: only failed and cancelled ones are tried again"))
        service.runner.notify()
        return {"id": number, "state": "queued"}


def _checked_job(body: bytes, media: str, number: str, settings: Settings) -> str:
    return job_text(job_here(sent_document(body, media), number, settings))


def _add_files(app: FastAPI, service: Backend) -> None:
    @app.get("/jobs/{number}/log", tags=["jobs"], response_class=PlainTextResponse, responses=problems(401, 404))
    def log(number: str, *, follow: bool = False) -> Response:
        """Return the log; with `follow` it is sent line by line until the job has ended."""
        service.row(number)
        path = service.runner.log_path(number)
        if follow:
            return StreamingResponse(_followed(path, lambda: service.row(number).state), media_type="text/plain")
        return PlainTextResponse(_rest(path, 0))

    @app.get("/jobs/{number}/report", tags=["jobs"], response_class=HTMLResponse, responses=problems(401, 404))
    def report(number: str, request: Request, product: Product = None) -> Response:
        """Return the report as a page, or as JSON to whoever accepts nothing else."""
        found = service.views.report(service.row(number), product)
        if request.headers.get("accept", "").startswith("application/json"):
            return Response(scrubbed(found.to_json()), media_type="application/json")
        return HTMLResponse(scrubbed(report_page(found)))

    @app.get(
        "/jobs/{number}/quicklook.png",
        tags=["jobs"],
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **problems(401, 404)},
    )
    def look(number: str, product: Product = None) -> Response:
        """Return a small picture of the result."""
        return Response(service.views.quicklook(service.row(number), product), media_type="image/png")


async def _followed(path: Path, state: Callable[[], str]) -> AsyncIterator[bytes]:
    """Yield what a log gets, until the job has ended and all of it was sent."""
    sent = 0
    while True:
        ended = await asyncio.to_thread(state) in ENDED
        data = await asyncio.to_thread(_rest, path, sent)
        sent += len(data)
        if data:
            yield data
        if ended:
            return
        await asyncio.sleep(_TAIL)


def _rest(path: Path, start: int) -> bytes:
    """Return what a file has from a byte on; nothing where it does not exist yet."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""
