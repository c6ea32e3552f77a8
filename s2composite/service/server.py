"""Server: the service on an address, from settings to the last request."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn

from s2composite.service.app import create_app
from s2composite.service.arrival import prompt
from s2composite.service.problems import printable, scrubbed
from s2composite.service.settings import load_settings, taken_token

__all__ = ["serve"]

_GRACE = 10
"""Seconds that requests have to end when the service is stopped."""


class _Scrubbing(logging.Formatter):
    """Lines without anything that is secret, errors of other libraries included; none that a caller has made up."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(scrubbed(super().format(record)))


def serve(config: str | os.PathLike[str] | None, settings: Sequence[str] = (), **more: Any) -> None:
    """Run the service until it is stopped.

    Parameters
    ----------
    config, settings
        As for `s2composite.service.settings.load_settings`.
    **more
        Settings by name; None: as the others say.

    Raises
    ------
    JobError, ParameterError
        A setting is wrong, the token is missing, or the database cannot be opened.
    """
    checked = load_settings(config, settings, **more)
    token = taken_token(checked)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Scrubbing("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # HTTP clients log whole URLs.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = create_app(checked, token)
    # Its own access log would have the query of each URL.
    uvicorn.run(
        app,
        http=prompt(checked.limits.arrival),
        ws="none",
        host=checked.host,
        port=checked.port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=checked.limits.connections,
        timeout_graceful_shutdown=_GRACE,
    )
