"""App: the service as an ASGI application: endpoints, the page, what is said when something fails."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

import s2composite
from s2composite.errors import S2CompositeError
from s2composite.service.backend import Backend, problems
from s2composite.service.gate import Gate
from s2composite.service.job_endpoints import add_jobs
from s2composite.service.page import jobs_page
from s2composite.service.problems import Problem, ProblemError, problem_of
from s2composite.service.settings import Settings
from s2composite.service.window_endpoints import add_windows

__all__ = ["create_app"]

LOG = logging.getLogger(__name__)


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
        The database cannot be opened, or another service takes jobs from it.
    """
    service = Backend(settings)
    app = FastAPI(
        title="s2composite",
        version=s2composite.__version__,
        summary="Windows and jobs of cloud-free composites.",
        description="Refusals are problem details (RFC 9457) that name the field.",
        lifespan=service.running,
        docs_url=None,  # its scripts come from elsewhere
        redoc_url=None,
    )
    add_windows(app, service)
    add_jobs(app, service)
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

    @app.exception_handler(SQLAlchemyError)
    async def lost(_: Request, error: SQLAlchemyError) -> Response:
        LOG.error("the database: %s", str(error).partition("\n")[0])
        return Problem(503, "the database of the service does not answer; try again", retry_after=5).response()

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        number = uuid.uuid4().hex[:8]
        LOG.error("unexpected error %s", number, exc_info=error)
        return Problem(500, f"an error of the service; its log has it as {number}").response()


def _add_pages(app: FastAPI, service: Backend) -> None:
    @app.get("/", response_class=HTMLResponse, tags=["pages"], responses=problems(401))
    def page() -> str:
        """Show jobs, how far they are, and what came out."""
        rows = service.store.jobs(50)
        facts = [service.views.facts(row) for row in rows]
        store = service.store
        return jobs_page(facts, store.job_count(), service.windows.waiting, store.letter_count())

    @app.get("/health", tags=["pages"], responses=problems(503))
    async def health() -> dict[str, Any]:
        """Tell that the service is ready; 503 while its kernels are compiled."""
        if not service.windows.ready:
            raise ProblemError(Problem(503, "the kernels are being compiled", retry_after=2))
        windows = service.windows
        facts = {"waiting": windows.waiting, "made": windows.made, "found": windows.found}
        return {"status": "ok", "version": s2composite.__version__, "windows": facts}
