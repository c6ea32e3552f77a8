"""App: the service's endpoints, and what runs behind them from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

import s2composite
from s2composite.errors import S2CompositeError
from s2composite.service.documents import job_here, job_text, sent_document
from s2composite.service.envelope import EXAMPLE, PUSHED_EXAMPLE, WindowRequest, delivered
from s2composite.service.gate import Gate
from s2composite.service.page import jobs_page
from s2composite.service.pool import Windows
from s2composite.service.problems import MEDIA_TYPE, Problem, ProblemError, problem_of, scrubbed
from s2composite.service.runner import Runner
from s2composite.service.settings import Settings
from s2composite.service.store import ENDED, JobRow, Store
from s2composite.service.views import job_facts, job_of, quicklook, report_of

__all__ = ["create_app"]

LOG = logging.getLogger(__name__)

_TAIL = 0.5
"""Seconds between two looks at a log that is followed."""

_JOB_EXAMPLE = {"source": "gs://bucket/t31tcj/", "output": "median.tif", "datetime": "2023-06/2023-08"}

_PROBLEM_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of an endpoint for OpenAPI."""
    words = {400: "not readable", 401: "no token", 403: "not open to callers", 404: "there is no such thing"}
    words |= {409: "its state does not allow it", 413: "too large", 415: "wrong media type", 422: "a field is wrong"}
    words |= {429: "too much is waiting", 503: "may succeed later", 504: "took too long"}
    content = {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA}}
    return {status: {"description": words[status], "content": content} for status in statuses}


class Service:
    """What is behind the endpoints.

    Parameters
    ----------
    settings
        The service's.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        Path(settings.state).mkdir(parents=True, exist_ok=True)
        self.store = Store(settings.database_url)
        self.windows = Windows(settings)
        self.runner = Runner(settings, self.store)

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Run from the first request to the last."""
        self.windows.start()
        await self.runner.start()
        try:
            yield
        finally:
            await self.runner.close()
            await asyncio.to_thread(self.windows.close)
            self.store.close()

    def row(self, number: str) -> JobRow:
        """Return a job.

        Raises
        ------
        ProblemError
            There is none of that id.
        """
        row = self.store.get(number)
        if row is None:
            raise ProblemError(Problem(404, f"there is no job {number[:40]!r}"))
        return row


def create_app(settings: Settings, token: str | None = None) -> FastAPI:
    """Return the service as an ASGI application.

    Parameters
    ----------
    settings
        What is open, and how much.
    token
        What callers must show; None: whoever reaches the address may call.

    Raises
    ------
    ParameterError
        The database cannot be opened.
    """
    service = Service(settings)
    app = FastAPI(
        title="s2composite",
        version=s2composite.__version__,
        summary="Windows and jobs of cloud-free composites.",
        description="Refusals are problem details (RFC 9457) that name the field.",
        lifespan=service.running,
        docs_url=None,  # its scripts come from elsewhere
        redoc_url=None,
    )
    _add_window(app, service)
    _add_jobs(app, service)
    _add_job_files(app, service)
    _add_pages(app, service)
    _add_refusals(app)
    app.add_middleware(Gate, settings=settings, token=token)
    return app


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(ProblemError)
    async def refuse(_: Request, error: ProblemError) -> Response:
        return error.problem.response()

    @app.exception_handler(HTTPException)
    async def misled(_: Request, error: HTTPException) -> Response:
        return Problem(error.status_code, str(error.detail)).response()

    @app.exception_handler(S2CompositeError)
    async def failed(_: Request, error: S2CompositeError) -> Response:
        return problem_of(error).response()

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        number = uuid.uuid4().hex[:8]
        LOG.error("unexpected error %s: %s", number, scrubbed(f"{type(error).__name__}: {error}"))
        return Problem(500, f"an error of the service; its log has it as {number}").response()


# --- windows --------------------------------------------------------------------------------------------------------

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


def _add_window(app: FastAPI, service: Service) -> None:
    @app.post(
        "/median",
        status_code=204,
        tags=["windows"],
        openapi_extra={"requestBody": _MEDIAN_BODY},
        responses={
            200: {"description": "pushed, and can never succeed: kept as a dead letter", "content": {MEDIA_TYPE: {}}},
            **_problems(400, 401, 403, 413, 415, 422, 429, 503, 504),
        },
    )
    async def median(request: Request) -> Response:
        """Make one window and write it. The same request again finds it made."""
        delivery = delivered(await request.body())
        try:
            await service.windows.make(delivery.request(service.settings.limits.datasets))
        except ProblemError as error:
            problem = error.problem
            if not delivery.pushed or problem.transient:
                return problem.response()
            # A refusal would be sent again, five times: it is acknowledged and kept instead.
            LOG.error("dead letter %s: %s", ascii(delivery.message), scrubbed(problem.detail))
            await asyncio.to_thread(service.store.bury, delivery.message, problem.as_dict(), delivery.payload)
            return problem.response(200)
        return Response(status_code=204)

    @app.get("/dead-letters", tags=["windows"], responses=_problems(401))
    def dead_letters(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """List pushed messages that can never succeed, the newest first."""
        letters = service.store.letters(limit)
        return [{"at": x.at, "message": x.message, "problem": x.problem, "payload": x.payload} for x in letters]


# --- jobs -----------------------------------------------------------------------------------------------------------

_JOB_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"type": "object"}, "examples": {"summer": {"value": _JOB_EXAMPLE}}},
        "application/yaml": {
            "schema": {"type": "string"},
            "examples": {"summer": {"value": "source: gs://bucket/t31tcj/\noutput: median.tif\n"}},
        },
    },
}


def _add_jobs(app: FastAPI, service: Service) -> None:
    @app.post(
        "/jobs",
        status_code=202,
        tags=["jobs"],
        openapi_extra={"requestBody": _JOB_BODY},
        responses=_problems(400, 401, 403, 413, 415, 422, 429),
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

    @app.get("/jobs", tags=["jobs"], responses=_problems(401))
    def jobs(
        limit: Annotated[int, Query(ge=1, le=500)] = 50, offset: Annotated[int, Query(ge=0)] = 0
    ) -> list[dict[str, Any]]:
        """List jobs, the newest first."""
        return [job_facts(row) for row in service.store.jobs(limit, offset)]

    @app.get("/jobs/{number}", tags=["jobs"], responses=_problems(401, 404))
    def job(number: str) -> dict[str, Any]:
        """Tell the state of a job, how far it is, and which windows failed."""
        return job_facts(service.row(number))

    @app.delete("/jobs/{number}", status_code=202, tags=["jobs"], responses=_problems(401, 404, 409))
    async def cancel(number: str) -> dict[str, Any]:
        """Cancel a job: it stops at once; what is done stays, and a retry goes on from there."""
        row = await asyncio.to_thread(service.row, number)
        if not await asyncio.to_thread(service.store.move, number, ("queued", "running"), "cancelled"):
            raise ProblemError(Problem(409, f"the job is {row.state}: there is nothing to cancel"))
        await service.runner.cancel(number)
        return {"id": number, "state": "cancelled"}

    @app.post("/jobs/{number}/retry", status_code=202, tags=["jobs"], responses=_problems(401, 404, 409, 429))
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


def _add_job_files(app: FastAPI, service: Service) -> None:
    @app.get(
        "/jobs/{number}/log", tags=["jobs"], response_class=PlainTextResponse, responses=_problems(401, 404)
    )
    def log(number: str, *, follow: bool = False) -> Response:
        """Return the log; with `follow` it is sent line by line until the job has ended."""
        service.row(number)
        path = service.runner.log_path(number)
        if follow:
            return StreamingResponse(_followed(path, lambda: service.row(number).state), media_type="text/plain")
        return PlainTextResponse(path.read_bytes() if path.exists() else b"")

    @app.get("/jobs/{number}/report", tags=["jobs"], response_class=HTMLResponse, responses=_problems(401, 404))
    def report(number: str, request: Request) -> Response:
        """Return the report as a page, or as JSON to whoever accepts nothing else."""
        found = report_of(service.row(number))
        if request.headers.get("accept", "").startswith("application/json"):
            return Response(scrubbed(found.to_json()), media_type="application/json")
        return HTMLResponse(scrubbed(found.to_html()))

    @app.get(
        "/jobs/{number}/quicklook.png",
        tags=["jobs"],
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **_problems(401, 404)},
    )
    def look(number: str) -> Response:
        """Return a small picture of the result."""
        return Response(quicklook(service.row(number)), media_type="image/png")


async def _followed(path: Path, state: Callable[[], str]) -> AsyncIterator[bytes]:
    """Yield what a log gets, until the job has ended and all of it was sent."""
    sent = 0
    while True:
        ended = await asyncio.to_thread(state) in ENDED
        if path.exists():
            data = await asyncio.to_thread(_rest, path, sent)
            sent += len(data)
            if data:
                yield data
        if ended:
            return
        await asyncio.sleep(_TAIL)


def _rest(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


# --- pages ----------------------------------------------------------------------------------------------------------


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.get("/", response_class=HTMLResponse, tags=["pages"], responses=_problems(401))
    def page() -> str:
        """Show jobs, how far they are, and what came out."""
        rows = service.store.jobs(50)
        letters = len(service.store.letters(1000))
        return jobs_page([job_facts(row) for row in rows], service.windows.waiting, letters)

    @app.get("/health", tags=["pages"])
    async def health() -> dict[str, Any]:
        """Tell that the service answers."""
        return {"status": "ok", "version": s2composite.__version__, "windows": service.windows.waiting}
