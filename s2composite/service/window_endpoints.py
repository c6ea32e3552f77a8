"""Endpoints of single windows: ``/median`` and what could never be made."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from s2composite.service.backend import Backend, problems
from s2composite.service.envelope import EXAMPLE, PUSHED_EXAMPLE, WindowRequest, delivered
from s2composite.service.problems import MEDIA_TYPE, ProblemError, scrubbed

__all__ = ["add_windows"]

LOG = logging.getLogger(__name__)

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


def add_windows(app: FastAPI, service: Backend) -> None:
    """Add them to an application."""

    @app.post(
        "/median",
        status_code=204,
        tags=["windows"],
        openapi_extra={"requestBody": _MEDIAN_BODY},
        responses={
            200: {"description": "pushed, and can never succeed: kept as a dead letter", "content": {MEDIA_TYPE: {}}},
            **problems(400, 401, 403, 413, 415, 422, 429, 503, 504),
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
            assert delivery.message is not None
            LOG.warning("dead letter %s: %s", ascii(delivery.message), scrubbed(problem.detail))
            await asyncio.to_thread(service.store.bury, delivery.message, problem.as_dict(), delivery.payload)
            return problem.response(200)
        return Response(status_code=204)

    @app.get("/dead-letters", tags=["windows"], responses=problems(401))
    def dead_letters(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """List pushed messages that can never succeed, the newest first."""
        letters = service.store.letters(limit)
        return [{"at": x.at, "message": x.message, "problem": x.problem, "payload": x.payload} for x in letters]
