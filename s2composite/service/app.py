"""The service as an ASGI application, its endpoints, and the server that runs it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

import s2composite
from s2composite.errors import S2CompositeError
from s2composite.runner.report import report_page
from s2composite.service.jobs import JobRunner, accept_job
from s2composite.service.queue import ENDED, JobRow, JobStore
from s2composite.service.security import (
    MEDIA_TYPE,
    ProblemError,
    SecurityMiddleware,
    printable,
    problem_from_error,
    protocol_with_deadline,
)
from s2composite.service.settings import Settings, load_settings, take_token
from s2composite.service.views import Views, jobs_page
from s2composite.service.windows import EXAMPLE, PUSHED_EXAMPLE, WindowPool, WindowRequest, parse_delivery
from s2composite.storage.files import redact

__all__ = ["create_app", "serve"]

LOG = logging.getLogger(__name__)

_GRACE = 10  # seconds for requests to end when the service is stopped
_POLL = 0.5  # seconds between reads of a log that is followed
_MAX_OFFSET = 2**31 - 1  # databases reject numbers of 64 bits and more


class Backend:
    """The state shared by the endpoints."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        Path(settings.state).mkdir(parents=True, exist_ok=True)
        self.store = JobStore(settings.database_url)
        if settings.storage is not None:
            self.store.lock()
        self.windows = WindowPool(settings)
        self.views = Views()
        self.runner = JobRunner(settings, self.store)

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Run from before the first request until after the last."""
        self.windows.start()
        await self.runner.start()
        try:
            yield
        finally:
            await self.runner.close()
            await asyncio.to_thread(self.windows.close)
            self.store.close()

    def row(self, number: str) -> JobRow:
        """Return a job."""
        row = self.store.get(number)
        if row is None:
            raise ProblemError(404, f"there is no job {number[:40]!r}")
        return row


# --- OpenAPI descriptions of requests and errors --------------------------------------------------------------------

_TEXT = {"type": "string"}
_ERRORS = {"type": "array", "items": {"type": "object", "properties": {"pointer": _TEXT, "detail": _TEXT}}}
_PROBLEM = {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT, "errors": _ERRORS}

_PROBLEMS = {
    400: "not readable", 401: "no token", 403: "not allowed", 404: "not found",
    409: "not possible in this state", 413: "too large", 415: "wrong media type", 422: "a field is wrong",
    429: "too many requests are waiting", 503: "may succeed later", 504: "took too long",
}  # fmt: skip


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"schema": {"type": "object", "properties": _PROBLEM}}}
    return {status: {"description": _PROBLEMS[status], "content": content} for status in statuses}


_MEDIAN_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": WindowRequest.model_json_schema(),
            "examples": {
                "bare": {"summary": "the payload", "value": EXAMPLE},
                "pushed": {"summary": "as Pub/Sub pushes it", "value": PUSHED_EXAMPLE},
            },
        }
    },
}

_SUMMER = {"source": "gs://bucket/t31tcj/", "output": "median.tif", "datetime": "2023-06/2023-08"}
_CELLS = {
    "source": "gs://bucket/scenes/", "output": "median_{cell}.tif", "grid": {"type": "utm", "size": 20000},
    "bbox": [1.2, 43.4, 1.7, 43.8],
}  # fmt: skip
_YAML = "source: gs://bucket/t31tcj/\noutput: median.tif\n"

_JOB_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "examples": {"summer": {"value": _SUMMER}, "cells": {"value": _CELLS}},
        },
        "application/yaml": {"schema": _TEXT, "examples": {"summer": {"value": _YAML}}},
    },
}


# --- endpoints ------------------------------------------------------------------------------------------------------

_router = APIRouter()


async def _backend(request: Request) -> Any:
    return request.app.state.backend


Service = Annotated[Backend, Depends(_backend)]

# Name of one of a job's products, as listed in its summary; None: the first.
Product = Annotated[str | None, Query(max_length=200)]


@_router.post(
    "/median",
    status_code=204,
    tags=["windows"],
    openapi_extra={"requestBody": _MEDIAN_BODY},
    responses={
        200: {"description": "pushed, and can never succeed: kept as a dead letter", "content": {MEDIA_TYPE: {}}},
        **_problems(400, 401, 403, 413, 415, 422, 429, 503, 504),
    },
)
async def median(service: Service, request: Request) -> Response:
    """Compute one window and write it. A repeated request finds the existing file."""
    delivery = parse_delivery(await request.body())
    try:
        await service.windows.make(delivery.request(service.settings.limits.datasets))
    except ProblemError as problem:
        if delivery.message is None or problem.transient:
            return problem.response()
        # Pub/Sub would deliver a rejected message again, five times: acknowledge it and store it instead.
        LOG.warning("dead letter %s: %s", ascii(delivery.message), redact(problem.detail))
        letter = (delivery.message, problem.as_dict(), delivery.payload)
        await asyncio.to_thread(service.store.add_dead_letter, *letter)
        return problem.response(200)
    return Response(status_code=204)


@_router.get("/dead-letters", tags=["windows"], responses=_problems(401))
def dead_letters(service: Service, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
    """List pushed messages that can never succeed, newest first."""
    return service.store.dead_letters(limit)


@_router.post(
    "/jobs",
    status_code=202,
    tags=["jobs"],
    openapi_extra={"requestBody": _JOB_BODY},
    responses=_problems(400, 401, 403, 413, 415, 422, 429),
)
async def post_job(service: Service, request: Request, response: Response) -> dict[str, Any]:
    """Add a job to the queue: the keys of a job file, with a plain name as `output`; returns its id."""
    if service.settings.storage is None:
        raise ProblemError(403, "this service does not accept jobs: it has no storage for results")
    body, number = await request.body(), str(uuid.uuid4())
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    text = await asyncio.to_thread(accept_job, body, media, number, service.settings)
    if not await asyncio.to_thread(service.store.add, number, text, service.settings.limits.jobs):
        raise ProblemError(429, "too many jobs are waiting; try again later", retry_after=60)
    service.runner.notified.set()
    response.headers["Location"] = f"/jobs/{number}"
    return {"id": number, "state": "queued", "href": f"/jobs/{number}"}


@_router.get("/jobs", tags=["jobs"], responses=_problems(401))
def jobs(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    offset: Annotated[int, Query(ge=0, le=_MAX_OFFSET)] = 0,
) -> list[dict[str, Any]]:
    """List jobs, newest first."""
    return [service.views.summary(row) for row in service.store.jobs(limit, offset)]


@_router.get("/jobs/{number}", tags=["jobs"], responses=_problems(401, 404))
def job(service: Service, number: str) -> dict[str, Any]:
    """Return the state of a job, its progress, and its failed windows."""
    return service.views.summary(service.row(number))


@_router.delete("/jobs/{number}", status_code=202, tags=["jobs"], responses=_problems(401, 404, 409))
async def cancel(service: Service, number: str) -> dict[str, Any]:
    """Cancel a job: it stops at once; finished windows are kept, and a retry resumes from there."""
    row = await asyncio.to_thread(service.row, number)
    if not await asyncio.to_thread(service.store.transition, number, ("queued", "running"), "cancelled"):
        raise ProblemError(409, f"the job is {row.state}: there is nothing to cancel")
    await service.runner.cancel(number)
    return {"id": number, "state": "cancelled"}


@_router.post("/jobs/{number}/retry", status_code=202, tags=["jobs"], responses=_problems(401, 404, 409, 429))
async def retry(service: Service, number: str) -> dict[str, Any]:
    """Put a job that failed or was cancelled back into the queue; finished windows are not computed again."""
    row = await asyncio.to_thread(service.row, number)
    again = ("failed", "cancelled")
    if not await asyncio.to_thread(service.store.transition, number, again, "queued", error=None, ended=None):
        raise ProblemError(409, f"the job is {row.state}: only failed and cancelled jobs can be retried")
    service.runner.notified.set()
    return {"id": number, "state": "queued"}


@_router.get("/jobs/{number}/log", tags=["jobs"], response_class=PlainTextResponse, responses=_problems(401, 404))
def log(service: Service, number: str, *, follow: bool = False) -> Response:
    """Return the log; with `follow`, line by line until the job has ended."""
    service.row(number)
    path = service.runner.log_path(number)
    if not follow:
        return PlainTextResponse(_read_from(path, 0))

    async def lines() -> AsyncIterator[bytes]:
        sent = 0
        while True:  # until the job has ended and the whole log was sent
            ended = (await asyncio.to_thread(service.row, number)).state in ENDED
            data = await asyncio.to_thread(_read_from, path, sent)
            sent += len(data)
            if data:
                yield data
            if ended:
                return
            await asyncio.sleep(_POLL)

    return StreamingResponse(lines(), media_type="text/plain")


def _read_from(path: Path, start: int) -> bytes:
    """Return a file's content from a byte on; empty if it does not exist yet."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""


@_router.get("/jobs/{number}/report", tags=["jobs"], response_class=HTMLResponse, responses=_problems(401, 404))
def report(service: Service, number: str, request: Request, product: Product = None) -> Response:
    """Return the report as a page, or as JSON if the client accepts only that."""
    content = service.views.report(service.row(number), product)
    if request.headers.get("accept", "").startswith("application/json"):
        return Response(redact(content.to_json()), media_type="application/json")
    return HTMLResponse(redact(report_page(content)))


@_router.get(
    "/jobs/{number}/quicklook.png",
    tags=["jobs"],
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, **_problems(401, 404)},
)
def look(service: Service, number: str, product: Product = None) -> Response:
    """Return a small picture of the result."""
    return Response(service.views.quicklook(service.row(number), product), media_type="image/png")


@_router.get("/", response_class=HTMLResponse, tags=["pages"], responses=_problems(401))
def page(service: Service) -> str:
    """Show jobs, their progress and their results."""
    store = service.store
    jobs = [service.views.summary(row) for row in store.jobs(50)]
    return jobs_page(jobs, store.job_count(), service.windows.waiting, store.dead_letter_count())


@_router.get("/health", tags=["pages"], responses=_problems(503))
async def health(service: Service) -> dict[str, Any]:
    """Return whether the service is ready; 503 while its kernels are compiled."""
    windows = service.windows
    if not windows.ready:
        raise ProblemError(503, "the kernels are being compiled", retry_after=2)
    counts = {"waiting": windows.waiting, "made": windows.made, "found": windows.reused}
    return {"status": "ok", "version": s2composite.__version__, "windows": counts}


# --- the application and its server --------------------------------------------------------------------------------


def create_app(settings: Settings, token: str | None = None) -> FastAPI:
    """Return the service as an ASGI application; without a `token`, anybody who can reach the address may call it."""
    backend = Backend(settings)
    app = FastAPI(
        title="s2composite",
        version=s2composite.__version__,
        summary="Windows and jobs of cloud-free composites.",
        description="Refusals are problem details (RFC 9457) that name the field.",
        lifespan=backend.running,
        docs_url=None,  # it loads scripts from other hosts
        redoc_url=None,
    )
    app.state.backend = backend
    app.include_router(_router)
    app.add_middleware(SecurityMiddleware, settings=settings, token=token)

    @app.exception_handler(ProblemError)
    async def refused(_: Request, error: ProblemError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def no_such_endpoint(_: Request, error: HTTPException) -> Response:
        return ProblemError(error.status_code, str(error.detail)).response()

    @app.exception_handler(S2CompositeError)
    async def failed(_: Request, error: S2CompositeError) -> Response:
        return problem_from_error(error).response()

    @app.exception_handler(SQLAlchemyError)
    async def database_failed(_: Request, error: SQLAlchemyError) -> Response:
        LOG.error("the database: %s", str(error).partition("\n")[0])
        return ProblemError(503, "the database of the service does not answer; try again", retry_after=5).response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        number = uuid.uuid4().hex[:8]
        LOG.error("unexpected error %s", number, exc_info=error)
        return ProblemError(500, f"an error of the service; see {number} in its log").response()

    return app


def serve(config: str | os.PathLike[str] | None, settings: Sequence[str] = (), **more: Any) -> None:
    """Run the service until it is stopped."""

    class RedactingFormatter(logging.Formatter):
        # Log lines, including errors of other libraries, contain no secrets, and callers cannot forge lines.
        def format(self, record: logging.LogRecord) -> str:
            return printable(redact(super().format(record)))

    checked = load_settings(config, settings, **more)
    token = take_token(checked)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # HTTP clients log whole URLs.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = create_app(checked, token)
    # uvicorn's access log would contain the query of each URL.
    uvicorn.run(
        app,
        http=protocol_with_deadline(checked.limits.arrival),
        ws="none",
        host=checked.host,
        port=checked.port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=checked.limits.connections,
        timeout_graceful_shutdown=_GRACE,
    )
