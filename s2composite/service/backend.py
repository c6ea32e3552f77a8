"""Backend: what is behind the endpoints, and runs from the service's start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from s2composite.service.pool import Windows
from s2composite.service.problems import MEDIA_TYPE, Problem, ProblemError
from s2composite.service.runner import Runner
from s2composite.service.settings import Settings
from s2composite.service.store import JobRow, Store
from s2composite.service.views import Views

__all__ = ["Backend", "problems"]

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


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of an endpoint for OpenAPI."""
    words = {400: "not readable", 401: "no token", 403: "not open to callers", 404: "there is no such thing"}
    words |= {409: "its state does not allow it", 413: "too large", 415: "wrong media type", 422: "a field is wrong"}
    words |= {429: "too much is waiting", 503: "may succeed later", 504: "took too long"}
    content = {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA}}
    return {status: {"description": words[status], "content": content} for status in statuses}


class Backend:
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
        if settings.storage is not None:
            self.store.hold()
        self.windows = Windows(settings)
        self.views = Views()
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
