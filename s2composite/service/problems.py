"""Problems: what is wrong with a request, as RFC 9457 has it, without anything that is secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.responses import Response
from pydantic import ValidationError

from s2composite.errors import AccessError, ReadError, S2CompositeError, WriteError

__all__ = ["MEDIA_TYPE", "Problem", "ProblemError", "invalid", "printable", "problem_of", "scrubbed"]

MEDIA_TYPE = "application/problem+json"

_LONGEST = 2000
"""Characters of a detail."""

# Each takes time in proportion to the text, whatever it holds: one that began with \w+:// took minutes for 100 kB of a.
_WORD = re.compile(r"[^\s'\"]+")
_USER = re.compile(r"(?<=://)[^\s'\"/?#]*@")
_QUERY = re.compile(r"\?[^)\]]*")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")


def scrubbed(text: str) -> str:
    """Return a text without users and signatures of URLs, and without credentials of headers.

    Examples
    --------
    >>> scrubbed("GET https://me:pw@host/a.tif?sig=abc failed; Authorization: Bearer abcdefghij")
    'GET https://host/a.tif failed; Authorization: Bearer ...'
    """
    return _BEARER.sub(r"\1 ...", _WORD.sub(_unsigned, _USER.sub("", text)))


def _unsigned(word: re.Match[str]) -> str:
    """Return a word without the queries of the URLs in it."""
    before, mark, rest = word[0].partition("://")
    return f"{before}{mark}{_QUERY.sub('', rest)}"


def printable(text: str) -> str:
    r"""Return a text for a log: without what steers a terminal, its second and further lines indented.

    So nothing that a caller has named looks like a line of the log's own.

    Examples
    --------
    >>> print(printable("no such file: a\n2026-01-01 INFO all is well"))
    no such file: a
        2026-01-01 INFO all is well
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n    ".join(_CONTROL.sub("?", line) for line in lines)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    status: int
    """HTTP status."""

    detail: str
    """What is wrong, and what to do."""

    pointer: str | None = None
    """JSON pointer (RFC 6901) of the field: ``/datasets/3``."""

    retry_after: int | None = None
    """Seconds after which it may be different; None: it will not by itself."""

    more: Mapping[str, Any] = field(default_factory=dict)
    """Further members."""

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status >= 500 or self.status == HTTPStatus.TOO_MANY_REQUESTS

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        facts: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        facts["detail"] = scrubbed(self.detail)[:_LONGEST]
        if self.pointer is not None:
            facts["errors"] = [{"pointer": self.pointer, "detail": facts["detail"]}]
        return facts | dict(self.more)

    def response(self, status: int | None = None) -> Response:
        """Return the answer, with another status than its own where the sender would misunderstand that."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        answer = Response(json.dumps(self.as_dict()), status or self.status, headers, MEDIA_TYPE)
        if self.status == HTTPStatus.UNAUTHORIZED:
            # A header each: Chromium reads the first scheme of a line alone, and would not ask for the password.
            for scheme in ("Basic", "Bearer"):
                answer.headers.append("WWW-Authenticate", f'{scheme} realm="s2composite"')
        return answer


class ProblemError(Exception):
    """Carries a problem to whoever answers."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return ProblemError, (self.problem,)


def invalid(error: ValidationError, known: str) -> Problem:
    """Return the problem of a payload that is not what its model says; `known` names the fields there are."""
    details = error.errors(include_url=False, include_input=False)
    problems = [{"pointer": _pointer(one["loc"]), "detail": _told(dict(one), known)} for one in details[:20]]
    first = problems[0]
    return Problem(422, f"{first['pointer']}: {first['detail']}", first["pointer"], more={"errors": problems})


def _pointer(keys: tuple[Any, ...]) -> str:
    return "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')[:100]}" for key in keys)


def _told(details: Mapping[str, Any], known: str) -> str:
    if details["type"] == "extra_forbidden":
        return f"unknown field; there are {known}"
    if details["type"] == "missing":
        return "is missing"
    return str(details["msg"]).removeprefix("Value error, ")


def problem_of(error: S2CompositeError, pointer: str | None = None) -> Problem:
    """Return the problem that an error of the library is to a caller.

    Parameters
    ----------
    error
        What was raised.
    pointer
        The field it is about.
    """
    facts = error.__dict__
    if isinstance(error, AccessError):
        return Problem(HTTPStatus.FORBIDDEN, str(error), pointer)
    if isinstance(error, ReadError) and facts.get("transient"):
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), pointer, retry_after=10)
    if isinstance(error, WriteError):
        if _is_refusal(error):
            return Problem(HTTPStatus.FORBIDDEN, str(error), pointer)
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), pointer, retry_after=10)
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), pointer)


def _is_refusal(error: BaseException) -> bool:
    """Return whether a store or disk refused for good: no right, no bucket, no directory."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError | FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return True
        cause = cause.__cause__ or cause.__context__
    return "access is denied" in str(error) or "does not exist" in str(error)
