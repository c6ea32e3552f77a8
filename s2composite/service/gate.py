"""Gate: what every request passes before anything looks at it, and the headers of every answer."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s2composite.service.auth import PushKeys, is_pushed_by, shows_token
from s2composite.service.problems import Problem
from s2composite.service.settings import Settings

__all__ = ["Gate"]

LOG = logging.getLogger(__name__)

_OPEN = ("/health",)
"""Paths that need no token: what they say is no secret."""

_JSON = ("application/json",)
_DOCUMENTS = ("application/json", "application/yaml", "application/x-yaml", "text/yaml")
_MEDIA = {"/median": _JSON, "/jobs": _DOCUMENTS}
"""What a body may be. A page elsewhere can make a browser send forms and text, but not these."""

_NOBODY = Problem(401, "a token is needed: Authorization: Bearer TOKEN")

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_POLICY = (
    b"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; form-action 'none'; frame-ancestors 'none'"
)
"""Pages bring their styles and small pictures along; nothing else runs or loads."""


class Gate:
    """ASGI middleware: host, token, media type and size, in this order; times and logs what passes.

    Parameters
    ----------
    app
        What is behind it.
    settings
        The service's.
    token
        What callers must show; None: this machine may call without.
    """

    def __init__(self, app: ASGIApp, settings: Settings, token: str | None) -> None:
        self._app, self._settings, self._token = app, settings, token
        self._keys = None if settings.push is None else PushKeys(settings.push.certificates)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS, (b"content-security-policy", _POLICY)]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._foreign(headers) or await self._unknown(scope, headers)
        if problem is None and not scope["query_string"].isascii():
            problem = Problem(400, "the query of the URL has bytes that are no ASCII; write them as %XX")
        body = None
        if problem is None and scope["method"] in ("POST", "PUT", "PATCH"):
            problem = _unreadable(scope["path"], headers, self._settings.limits.body)
            if problem is None:
                body, problem = await self._body(receive)
        try:
            if problem is not None:
                await problem.response()(scope, receive, answer)
            else:
                await self._app(scope, receive if body is None else _replayed(body, receive), answer)
        finally:
            # The path alone: a query may hold what is secret.
            took = (time.perf_counter() - start) * 1e3
            LOG.info("%s %s %d %.0f ms", scope["method"], ascii(scope["path"])[1:-1][:200], status, took)

    def _foreign(self, headers: dict[str, str]) -> Problem | None:
        """Return the problem of a request that a page elsewhere makes a browser send."""
        host = headers.get("host", "")
        if self._token is None and not _is_known(host, self._settings.names):
            # The page's own name leads to this machine (DNS rebinding).
            return Problem(421, f"host {host[:100]!r} is not served here; add it to names, or protect it with a token")
        origin = headers.get("origin")
        if origin is not None and _parsed(origin).netloc != host:
            return Problem(403, "requests that a page elsewhere sends are not answered")
        return None

    async def _unknown(self, scope: Scope, headers: dict[str, str]) -> Problem | None:
        """Return the problem of a caller who is not known."""
        if self._token is None or scope["path"] in _OPEN:
            return None
        header = headers.get("authorization", "")
        if shows_token(header, self._token, looking=scope["method"] in ("GET", "HEAD")):
            return None
        push = self._settings.push
        if push is None or self._keys is None or scope["path"] != "/median":
            return _NOBODY
        # In a thread: the signer's keys may have to be fetched.
        if await asyncio.to_thread(is_pushed_by, header, push, self._keys):
            return None
        return _NOBODY

    async def _body(self, receive: Receive) -> tuple[bytes | None, Problem | None]:
        """Return the whole body, as long as it is small and comes in time."""
        limit, seconds, parts, size = self._settings.limits.body, self._settings.limits.arrival, [], 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None, Problem(400, "the body ended early")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        return None, _too_large(limit)
                    if not message.get("more_body", False):
                        return b"".join(parts), None
        except TimeoutError:
            return None, Problem(408, f"the body did not arrive within {seconds:g} s")


def _unreadable(path: str, headers: dict[str, str], limit: int) -> Problem | None:
    """Return the problem of a body that is not looked at."""
    length = headers.get("content-length", "0")
    # as many digits as 2**63 has: int() refuses thousands of them
    if not re.fullmatch(r"[0-9]{1,19}", length) or int(length) > limit:
        return _too_large(limit)
    if headers.get("content-encoding", "identity") != "identity":
        return Problem(415, "a compressed body is not accepted: what it becomes is not known beforehand")
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    taken = _MEDIA.get(path)
    if taken is not None and media not in taken:
        return Problem(415, f"the body is {media[:60] or 'of no type'}; send Content-Type: {' or '.join(taken)}")
    return None


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body is larger than {limit} bytes")


def _is_known(host: str, names: Iterable[str]) -> bool:
    name = _parsed(f"//{host}").hostname or ""
    return name in ("127.0.0.1", "localhost", "::1", *names)


def _parsed(url: str) -> SplitResult:
    """Return the parts of a URL; none of one that is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
