"""Security of the service: error responses, authentication, and the checks of every request."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from threading import Lock
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
from fastapi.responses import Response
from google.auth import jwt
from google.auth.exceptions import GoogleAuthError
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from s2composite.errors import AccessError, ReadError, S2CompositeError, WriteError
from s2composite.service.settings import PushOptions, Settings
from s2composite.storage.files import redact

__all__ = [
    "MEDIA_TYPE", "ProblemError", "PushKeys", "SecurityMiddleware", "check_text", "has_push_token",
    "has_token", "parse_json", "printable", "problem_from_error", "problems_at", "protocol_with_deadline",
    "validation_problem",
]  # fmt: skip

LOG = logging.getLogger(__name__)


# --- text without secrets -------------------------------------------------------------------------------------------

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str) -> str:
    r"""Return a text for a log: control characters replaced, and all lines after the first indented.

    So text from a caller cannot look like a separate line of the log.

    >>> print(printable("no such file: a\n2026-01-01 INFO all is well"))
    no such file: a
        2026-01-01 INFO all is well
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n    ".join(_CONTROL.sub("?", line) for line in lines)


# --- error responses: problem details (RFC 9457) --------------------------------------------------------------------

MEDIA_TYPE = "application/problem+json"
_MAX_DETAIL = 2000  # characters of a detail


class ProblemError(Exception):
    """An error of a request or of the service; `detail` says what is wrong and what to do."""

    def __init__(
        self,
        status: int,
        detail: str,
        pointer: str | None = None,  # JSON pointer (RFC 6901) of the field: /datasets/3
        retry_after: int | None = None,  # seconds after which a retry may succeed; None: it will not
        errors: Sequence[Mapping[str, str]] = (),  # all errors of fields, if there are several
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.pointer, self.retry_after = status, detail, pointer, retry_after
        self.errors = errors

    def __reduce__(self) -> tuple[Any, ...]:
        return ProblemError, (self.status, self.detail, self.pointer, self.retry_after, self.errors)

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status >= 500 or self.status == HTTPStatus.TOO_MANY_REQUESTS

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        detail = redact(self.detail)[:_MAX_DETAIL]
        members: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(self.status).phrase}
        members |= {"status": self.status, "detail": detail}
        if self.errors:
            members["errors"] = self.errors
        elif self.pointer is not None:
            members["errors"] = [{"pointer": self.pointer, "detail": detail}]
        return members

    def response(self, status: int | None = None) -> Response:
        """Return the response, optionally with another status for senders that would misinterpret its own."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        answer = Response(json.dumps(self.as_dict()), status or self.status, headers, MEDIA_TYPE)
        if self.status == HTTPStatus.UNAUTHORIZED:
            # One header for each scheme: Chromium reads only the first of a line, and would not ask for the password.
            for scheme in ("Basic", "Bearer"):
                answer.headers.append("WWW-Authenticate", f'{scheme} realm="s2composite"')
        return answer


def validation_problem(error: ValidationError, known: str) -> ProblemError:
    """Return the problem of a payload that does not match its model; `known` names the valid fields."""
    problems = []
    for details in error.errors(include_url=False, include_input=False)[:20]:
        pointer = "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')[:100]}" for key in details["loc"])
        if details["type"] == "extra_forbidden":
            detail = f"unknown field; the fields are {known}"
        elif details["type"] == "missing":
            detail = "is missing"
        else:
            detail = str(details["msg"]).removeprefix("Value error, ")
        problems.append({"pointer": pointer, "detail": detail})
    first = problems[0]
    return ProblemError(422, f"{first['pointer']}: {first['detail']}", first["pointer"], errors=problems)


def problem_from_error(error: S2CompositeError, pointer: str | None = None) -> ProblemError:
    """Return an error of the library as a problem for the caller; `pointer` is the field it concerns."""
    if isinstance(error, AccessError) or (isinstance(error, WriteError) and _is_permanent(error)):
        return ProblemError(HTTPStatus.FORBIDDEN, str(error), pointer)
    if isinstance(error, WriteError) or (isinstance(error, ReadError) and error.__dict__.get("transient")):
        return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, str(error), pointer, retry_after=10)
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), pointer)


@contextmanager
def problems_at(pointer: str) -> Iterator[None]:
    """Raise errors of the library as problems of a field."""
    try:
        yield
    except S2CompositeError as error:
        raise problem_from_error(error, pointer) from error


def _is_permanent(error: BaseException) -> bool:
    """Return whether a store or disk refused access, or the bucket or directory is missing."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError | FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return True
        cause = cause.__cause__ or cause.__context__
    return "access is denied" in str(error) or "does not exist" in str(error)


# --- bodies ---------------------------------------------------------------------------------------------------------


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON body."""

    def refuse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number in JSON")

    if not body.strip():
        raise ProblemError(400, "the body is empty; send JSON", "")
    try:
        text = body.decode("utf-8-sig")
        content = json.loads(text, parse_constant=refuse_constant)
    except RecursionError:
        raise ProblemError(400, "the body is nested too deeply", "") from None
    except UnicodeDecodeError as error:
        raise ProblemError(400, f"the body is not UTF-8 (byte {error.start})", "") from None
    except ValueError as error:
        raise ProblemError(400, f"the body is not JSON: {error}", "") from None
    if "\\u" in text:
        check_text(content)
    return content


def check_text(content: Any) -> None:
    r"""Reject lone surrogates (``\ud800``), which JSON and YAML can express but nothing can encode."""
    try:
        json.dumps(content, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ProblemError(400, "the body has half a surrogate pair, which is not text", "") from None


# --- who may call ---------------------------------------------------------------------------------------------------

_KEYS_FRESH = 3600.0  # seconds after which the signer's public keys are fetched again: they change every few days
_KEYS_AGAIN = 30.0  # seconds before a retry if they could not be fetched
_ISSUERS = ("https://accounts.google.com", "accounts.google.com")


def has_token(header: str, token: str, *, read_only: bool) -> bool:
    """Return whether an ``Authorization`` header has the token, as a bearer or as a password.

    A browser adds a stored password to requests that any page makes it send, so a password is accepted only for
    requests that change nothing (`read_only`).

    >>> has_token("Bearer 0123456789abcdef", "0123456789abcdef", read_only=False)
    True
    """
    scheme, _, value = header.partition(" ")
    shown = value.strip()
    if scheme.lower() == "basic" and read_only:
        try:
            shown = base64.b64decode(shown, validate=True).decode().partition(":")[2]
        except ValueError:  # not ASCII, not base64, not UTF-8
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(shown.encode(), token.encode())


class PushKeys:
    """The public keys of the signer of Pub/Sub's tokens, fetched when needed and cached for an hour.

    If they cannot be fetched, the old keys are kept, and the next attempt waits: anybody can cause a fetch.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: Mapping[str, str] = {}
        self._next_fetch = 0.0
        self._lock = Lock()

    def get(self) -> Mapping[str, str]:
        """Return certificates by id; empty until they have been fetched."""
        with self._lock:
            if time.monotonic() >= self._next_fetch:
                try:
                    self._keys = dict(httpx.get(self._url, timeout=10).raise_for_status().json())
                    self._next_fetch = time.monotonic() + _KEYS_FRESH
                except (httpx.HTTPError, ValueError, TypeError) as error:
                    LOG.warning("the public keys for pushes cannot be fetched: %s", type(error).__name__)
                    self._next_fetch = time.monotonic() + _KEYS_AGAIN
            return self._keys


def has_push_token(header: str, push: PushOptions, keys: PushKeys) -> bool:
    """Return whether an ``Authorization`` header holds a valid token of the account that pushes."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "bearer" or value.count(".") != 2:
        return False
    try:
        claims = jwt.decode(value, certs=keys.get(), audience=push.audience)  # type: ignore[no-untyped-call]
    except (GoogleAuthError, ValueError, LookupError, TypeError, AttributeError):  # the last ones: unexpected JSON
        return False
    verified = claims.get("iss") in _ISSUERS and claims.get("email_verified") is True
    return verified and hmac.compare_digest(str(claims.get("email", "")).encode(), push.email.encode())


# --- checks of every request ----------------------------------------------------------------------------------------

_NO_TOKEN_NEEDED = ("/health",)  # paths with public responses

_JSON = ("application/json",)
_DOCUMENTS = ("application/json", "application/yaml", "application/x-yaml", "text/yaml")
# Accepted media types. Another web page can make a browser send forms and text, but not these.
_MEDIA = {"/median": _JSON, "/jobs": _DOCUMENTS}

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# Pages contain their styles and small pictures; nothing else may run or load.
_POLICY = (
    b"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; form-action 'none'; frame-ancestors 'none'"
)


class SecurityMiddleware:
    """ASGI middleware: checks host, token, media type and size of a request, in this order; logs it and its time.

    Without a token, anybody who can reach the address may call.
    """

    def __init__(self, app: ASGIApp, settings: Settings, token: str | None) -> None:
        self._app, self._settings, self._token = app, settings, token
        self._keys = None if settings.push is None else PushKeys(settings.push.certificates)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request with an error, or pass it on."""
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
        try:
            try:
                self._check_origin(headers)
                await self._check_caller(scope, headers)
                if not scope["query_string"].isascii():
                    detail = "the query of the URL has bytes that are not ASCII; write them as %XX"
                    raise ProblemError(400, detail)  # noqa: TRY301 - answered below
                if scope["method"] in ("POST", "PUT", "PATCH"):
                    _check_body_headers(scope["path"], headers, self._settings.limits.body)
                    receive = _receive_again(await self._read_body(receive), receive)
            except ProblemError as problem:
                await problem.response()(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        finally:
            # Only the path: a query may contain secrets.
            took = (time.perf_counter() - start) * 1e3
            LOG.info("%s %s %d %.0f ms", scope["method"], ascii(scope["path"])[1:-1][:200], status, took)

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Reject requests that another web page makes a browser send."""
        host = headers.get("host", "")
        if self._token is None:
            # The page's host name may resolve to this machine (DNS rebinding).
            name = _split_url(f"//{host}").hostname or ""
            if name not in ("127.0.0.1", "localhost", "::1", *self._settings.names):
                detail = f"host {host[:100]!r} is not served here; add it to names, or protect it with a token"
                raise ProblemError(421, detail)
        origin = headers.get("origin")
        if origin is not None and _split_url(origin).netloc != host:
            raise ProblemError(403, "requests sent by other web pages are not allowed")

    async def _check_caller(self, scope: Scope, headers: dict[str, str]) -> None:
        """Reject a caller with neither the token nor that of the account that pushes."""
        if self._token is None or scope["path"] in _NO_TOKEN_NEEDED:
            return
        header, push, keys = headers.get("authorization", ""), self._settings.push, self._keys
        if has_token(header, self._token, read_only=scope["method"] in ("GET", "HEAD")):
            return
        if push is not None and keys is not None and scope["path"] == "/median":
            # In a thread: the signer's keys may have to be fetched.
            pushed = await asyncio.to_thread(has_push_token, header, push, keys)
        else:
            pushed = False
        if not pushed:
            raise ProblemError(401, "a token is needed: Authorization: Bearer TOKEN")

    async def _read_body(self, receive: Receive) -> bytes:
        """Return the whole body, if it is small enough and arrives in time."""
        limit, seconds, parts, size = self._settings.limits.body, self._settings.limits.arrival, [], 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ProblemError(400, "the body ended early")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ProblemError(408, f"the body did not arrive within {seconds:g} s") from None


def _check_body_headers(path: str, headers: dict[str, str], limit: int) -> None:
    """Reject a body by its headers, before it is read."""
    length = headers.get("content-length", "0")
    # at most as many digits as 2**63: int() rejects thousands of them
    if not re.fullmatch(r"[0-9]{1,19}", length) or int(length) > limit:
        raise _too_large(limit)
    if headers.get("content-encoding", "identity") != "identity":
        raise ProblemError(415, "a compressed body is not accepted: its decompressed size is unknown")
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    accepted = _MEDIA.get(path)
    if accepted is not None and media not in accepted:
        detail = f"the body is {media[:60] or 'of no type'}; send Content-Type: {' or '.join(accepted)}"
        raise ProblemError(415, detail)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, f"the body is larger than {limit} bytes")


def _split_url(url: str) -> SplitResult:
    """Return the parts of a URL; empty parts if it is invalid."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _receive_again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns a body that was already read."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


# --- slow connections -----------------------------------------------------------------------------------------------


def protocol_with_deadline(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with a limit on the time until a request is being processed.

    uvicorn waits indefinitely for the end of a header, and for the rest of a body that it has already responded to. A
    thousand such connections are cheap for an attacker and would block all other callers.
    """

    class DeadlineProtocol(H11Protocol):
        """HTTP/1.1; closes connections without a request in process for too long."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
            super().connection_made(transport)
            self._update_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._update_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _update_timer(self) -> None:
            """Stop the timer while a request is in process; otherwise start it unless it is running."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return DeadlineProtocol
