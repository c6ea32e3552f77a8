"""Remote: one byte range of an object on gs://, s3:// or https://, with retries, and proof that it is the same object.

All three are plain HTTP here, on the connections that fsspec keeps; gcsfs and s3fs lend their credentials. So every
status, ETag and retry is seen, which their own readers hide. On a loopback server 840 MB/s at 0.65 s of processor time
a GB (obstore: 1230 MB/s at 0.63), in the time of which JPEG tiles take 5 to 10 s to decode.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import aiohttp
from yarl import URL

from s2composite.errors import AccessError, ReadError, S2CompositeError
from s2composite.reading.signing import REFUSED, Sign, signed
from s2composite.scenes.addresses import ReplyTimeout
from s2composite.scenes.storage import display, filesystem, reason

__all__ = [
    "LOW_SPEED_LIMIT",
    "LOW_SPEED_TIME",
    "Identity",
    "Reply",
    "Retry",
    "Target",
    "request",
    "seconds_since_reply",
    "target_of",
]

LOG = logging.getLogger(__name__)

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_SIGNED_FOR = 7200
"""Seconds a signed URL is valid; a new one is made after half of that."""
_LONGEST_WAIT = 60.0
"""Seconds that a server may ask to wait before the next attempt."""

LOW_SPEED_TIME = 30.0
"""Seconds without an answer, or of too few bytes, after which a connection counts as lost, unless
``GDAL_HTTP_LOW_SPEED_TIME`` says otherwise."""
LOW_SPEED_LIMIT = 1024.0
"""Bytes a second that are too few, unless ``GDAL_HTTP_LOW_SPEED_LIMIT`` says otherwise."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The state of a file or object; any difference means that its index is no longer true."""

    size: int
    """Bytes."""

    etag: str | None = None
    """Entity tag; None for local files and servers that give none."""

    modified: int | None = None
    """Time of the last change, nanoseconds since 1970."""

    ctime: int | None = None
    """Time at which the file's entry in the file system last changed, which nobody can set; None for objects."""

    inode: int | None = None
    """Number of a file; None where numbers are made up by a network's file system, and may not last."""

    system: str | None = None
    """Machine and file system that `ctime` and `inode` are from: copies elsewhere have others."""

    def same(self, other: Identity) -> bool:
        """Whether the object is still the same: by ETag if both have one, else by its times and inode."""
        if self.size != other.size:
            return False
        if self.etag and other.etag:
            return self.etag == other.etag
        if self.system and self.system == other.system:
            return (self.modified, self.ctime, self.inode) == (other.modified, other.ctime, other.inode)
        return None in (self.modified, other.modified) or self.modified == other.modified

    @property
    def state(self) -> tuple[int, str | None, int | None]:
        """What hashes are made of: the same on all machines, and for a file that was put back as it was."""
        return self.size, self.etag, self.modified


@dataclass(frozen=True, slots=True)
class Retry:
    """How failures that may pass are repeated: connection lost, timeout, 429, 5xx, short body.

    GDAL's variables for slow servers hold for the reads that do not go through GDAL, too.
    """

    attempts: int = 5
    """Requests in all before giving up."""

    first_wait: float = 0.25
    """Seconds before the second attempt; doubles each time, and half of it is random so that workers spread out."""

    longest_wait: float = 8.0
    """Seconds at most between attempts, unless the server asks for more."""

    timeout: float = field(default_factory=lambda: _setting("GDAL_HTTP_LOW_SPEED_TIME", 0) or LOW_SPEED_TIME)
    """Seconds after which a connection counts as lost: without a byte, without all headers of an answer, or with fewer
    bytes than `least_rate` a second."""

    least_rate: float = field(default_factory=lambda: _setting("GDAL_HTTP_LOW_SPEED_LIMIT", LOW_SPEED_LIMIT))
    """Bytes a second that must come on average over `timeout`; 0: any rate will do."""


def _setting(name: str, default: float) -> float:
    """Return a number of the environment, the default where it is none that GDAL would take."""
    try:
        value = float(os.environ.get(name, ""))
    except ValueError:
        return default
    return value if value >= 0 and math.isfinite(value) else default


@dataclass(frozen=True, slots=True)
class Target:
    """Where an object is on the web, and what proves that one may read it. Never logged, never pickled."""

    href: str
    """As the user names it."""

    url: str
    """Where it is; may be signed."""

    headers: Mapping[str, str]
    """Credentials."""

    sign: Sign | None = None
    """What made the signature in `url`."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request gave."""

    data: bytes
    """The bytes."""

    identity: Identity
    """Of the object they came from."""

    retries: int
    """Attempts that failed before."""


class _FailedError(Exception):
    """One attempt failed."""

    def __init__(
        self,
        why: str = "",
        *,
        transient: bool = True,
        wait: float = 0.0,
        refused: bool = False,
        closed: bool = False,
    ) -> None:
        super().__init__(why)
        self.transient, self.wait, self.refused, self.closed = transient, wait, refused, closed


def target_of(href: str, sign: Sign | None = None) -> Target:
    """Return where `href` is on the web, with the credentials that this process has, or signed by `sign`.

    Raises
    ------
    ReadError
        There are credentials, but they are of no use.
    """
    url = signed(sign, href)
    if sign is not None and url.startswith("http"):
        return Target(href, url, {}, sign)
    try:
        return _target(href)
    except Exception as error:  # noqa: BLE001 - botocore and google-auth raise what they like
        why, transient = reason(href, error), isinstance(error, OSError)
    raise _read_error(href, why, transient=transient, retries=0)


def _target(href: str) -> Target:
    if href.startswith("gs://"):
        fs, path = filesystem(href)
        headers: dict[str, str] = {}
        fs.credentials.apply(headers)
        return Target(href, fs.url(path), headers)
    if href.startswith("s3://"):
        return Target(href, _signed(*filesystem(href), int(time.time() // (_SIGNED_FOR // 2))), {})
    return Target(href, href, {})


@lru_cache(4096)
def _signed(fs: Any, path: str, period: int) -> str:  # noqa: ARG001 - a new period is a new signature
    """Return the URL of an object on S3, signed (0.3 ms) once in a `period`; plain for those without credentials."""
    if not fs.anon:
        # Newer buckets take only version 4, and it names the region, which s3fs then looks up for each bucket.
        version = {"config_kwargs": {"signature_version": "s3v4"}, "cache_regions": True}
        fs = type(fs)(**{**fs.storage_options, **version})
    payer = {"RequestPayer": "requester"} if fs.req_kw.get("RequestPayer") else {}
    return str(fs.url(path, expires=_SIGNED_FOR, **payer))


_LAST_REPLIES: dict[str, float] = {}
_MOST_REPLIES = 1 << 16


def seconds_since_reply(href: str) -> float:
    """Return how long ago this process got bytes of an object; infinite if it got none."""
    return time.monotonic() - _LAST_REPLIES.get(href, -math.inf)


def request(target: Target, start: int, size: int, identity: Identity | None, retry: Retry) -> Future[Reply]:
    """Begin to read `size` bytes from `start`, and return at once.

    Parameters
    ----------
    target
        The object.
    start, size
        Bytes.
    identity
        What the object must still be; None: anything, and fewer bytes than `size` if it is smaller.
    retry
        What to do about failures.

    Returns
    -------
    Future
        Of the reply. Whatever happens, it ends: with a reply, with a `ReadError`, whose ``transient`` tells whether
        trying again later could help, or with an `AccessError` where the server sends on to a place that is not open.
    """
    web = filesystem("https://")[0]
    coroutine = _persist(web, target, start, size, identity=identity, retry=retry)
    return asyncio.run_coroutine_threadsafe(coroutine, web.loop)


async def _persist(
    web: Any, target: Target, start: int, size: int, *, identity: Identity | None, retry: Retry
) -> Reply:
    error = _FailedError()
    for attempt in range(retry.attempts):
        try:
            data, found = await _attempt(web, target, start, size, retry)
            _check(data, start, size, found, identity)
        except _FailedError as failed:
            error = failed
        else:
            if len(_LAST_REPLIES) >= _MOST_REPLIES:
                _LAST_REPLIES.clear()
            _LAST_REPLIES[target.href] = time.monotonic()
            return Reply(data, found, attempt)
        if error.refused and target.sign is not None:
            # once: a new signature that is refused too is no matter of time
            target = await asyncio.to_thread(_signed_anew, target)
            continue
        if not error.transient or attempt + 1 == retry.attempts:
            break
        wait = min(retry.longest_wait, retry.first_wait * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311 - jitter
        wait = max(wait, min(error.wait, _LONGEST_WAIT))
        LOG.warning(
            "%s: %s; attempt %d of %d failed, the next in %.1f s",
            display(target.href),
            error,
            attempt + 1,
            retry.attempts,
            wait,
            extra={"facts": {"href": display(target.href), "attempt": attempt + 1}},
        )
        await asyncio.sleep(wait)
    if error.closed:
        raise AccessError(f"{display(target.href)}: {error}")
    tried = f" (tried {attempt + 1} times)" if attempt else ""
    raise _read_error(target.href, f"{error}{tried}", transient=error.transient, retries=attempt)


def _signed_anew(target: Target) -> Target:
    assert target.sign is not None
    return replace(target, url=signed(target.sign, target.href, fresh=True), sign=None)


def _read_error(href: str, why: str, *, transient: bool, retries: int) -> ReadError:
    """Return what to raise, outside any except clause: workers cannot pickle what aiohttp and botocore raise."""
    href = display(href)
    return ReadError(f"{href}: {why}", href=href, transient=transient, retries=retries)


def _check(data: bytes, start: int, size: int, found: Identity, identity: Identity | None) -> None:
    if identity is not None and not identity.same(found):
        raise _FailedError(f"it has changed since its header was read ({_change(identity, found)})", transient=False)
    if len(data) < size and (identity is not None or len(data) < found.size):
        raise _FailedError(f"the server sent {len(data)} of {size} bytes", transient=True)
    if len(data) > found.size - start:
        raise _FailedError(f"the server sent {len(data)} bytes of an object that has {found.size}", transient=True)


def _change(before: Identity, now: Identity) -> str:
    if before.size != now.size:
        return f"{before.size} bytes then, {now.size} now"
    if before.etag and now.etag and before.etag != now.etag:
        return f"ETag {_printable(before.etag)} then, {_printable(now.etag)} now"
    return "another time of change"


async def _attempt(web: Any, target: Target, start: int, size: int, retry: Retry) -> tuple[bytes, Identity]:
    """Make one request; whatever goes wrong is a `_FailedError`, for somebody waits for this in another thread."""
    headers = {**target.headers, "Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
    limits = aiohttp.ClientTimeout(total=None, sock_connect=retry.timeout, sock_read=retry.timeout)
    # nothing is unpacked: a range of an object is what it is, and what it might become is not known beforehand
    plain: dict[str, Any] = {"auto_decompress": False, "read_bufsize": 1 << 20}
    try:
        # a signature is over the URL as it is written: it must not be written anew
        url = URL(target.url, encoded="%" in target.url)
        session = await web.set_session()
        # the time of a single byte alone (sock_read) lets headers and bodies take for ever that come byte by byte
        async with asyncio.timeout(None) as limit:
            reply = ReplyTimeout(limit, retry.timeout)
            async with session.get(url, headers=headers, timeout=limits, trace_request_ctx=reply, **plain) as response:
                found = _identity_in(response, start, size)
                return b"" if found.size == 0 else await _body(response, size, reply, retry.least_rate), found
    except (_FailedError, asyncio.CancelledError):
        raise
    except S2CompositeError as error:
        raise _FailedError(str(error), transient=False, closed=isinstance(error, AccessError)) from error
    except (aiohttp.InvalidURL, aiohttp.TooManyRedirects, aiohttp.ClientConnectorCertificateError) as error:
        raise _FailedError(_told(error), transient=False) from error
    except TimeoutError as error:
        slow = f", or less than {retry.least_rate:g} bytes a second" if retry.least_rate else ""
        raise _FailedError(f"no answer for {retry.timeout:g} s{slow}", transient=True) from error
    except (aiohttp.ClientError, OSError) as error:
        raise _FailedError(f"the connection failed: {_told(error)}", transient=True) from error
    except Exception as error:  # parsers of URLs and headers raise what they like
        raise _FailedError(f"the server's answer makes no sense: {_told(error)}", transient=False) from error


async def _body(response: aiohttp.ClientResponse, size: int, reply: ReplyTimeout, least_rate: float) -> bytes:
    """Return what a server sends, which is at most what it was asked for, and not too slow."""
    parts, left = [], size
    most = least = least_rate * reply.seconds
    reply.begin()
    while left >= 0 and (part := await response.content.readany()):
        parts.append(part)
        left -= len(part)
        least -= len(part)
        if least <= 0:
            reply.begin()
            least = most
    if left < 0:
        raise _FailedError(f"the server sent more than the {size} bytes that it was asked for", transient=False)
    return b"".join(parts)


def _told(error: Exception) -> str:
    """Return what aiohttp says, without the query of a URL, which may be a signature."""
    return _printable(re.sub(r"\?[^\s'\")]+", "", f"{type(error).__name__} {error}").strip())


def _printable(text: str | None) -> str:
    """Return what a server sent so that it can be logged: bytes that are no text, and no more than a line."""
    return " ".join((text or "").encode("ascii", "backslashreplace").decode().split())[:200]


# --- What the headers of an answer say. A server may send anything: what is not understood says nothing. -------------

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-[0-9]{1,19}|\*)/([0-9]{1,19})")


def _identity_in(response: aiohttp.ClientResponse, start: int, size: int) -> Identity:
    """Return the identity of the object in an answer that holds the range that was asked for."""
    told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    first, total = (None if n is None else int(n) for n in (told.groups() if told else (None, None)))
    if response.status == 416 and total == 0:
        return Identity(0)
    if response.status == 200 and start == 0 and (response.content_length or size + 1) <= size:
        total = response.content_length or 0
    elif response.status != 206 or not total or first != start:
        raise _refusal(response, start)
    return Identity(total, response.headers.get("ETag"), _modified(response.headers.get("Last-Modified", "")))


def _modified(text: str) -> int | None:
    """Return a date as nanoseconds since 1970; None for what is none."""
    try:
        date = parsedate_to_datetime(text)
        return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()) * 10**9
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _seconds(text: str) -> float:
    """Return the seconds of a ``Retry-After``; 0 for what says none."""
    return float(text) if re.fullmatch(r"[0-9]{1,9}", text.strip()) else 0.0


def _refusal(response: aiohttp.ClientResponse, start: int) -> _FailedError:
    status = response.status
    if status in (200, 206):
        return _FailedError("the server does not serve byte ranges (status 200 and all of the object)", transient=False)
    if status == 416:
        return _FailedError(f"it has changed since its header was read (it ends before byte {start})", transient=False)
    if status in _TRANSIENT:
        told = f"the server answered {status} {_printable(response.reason)}"
        return _FailedError(told, transient=True, wait=_seconds(response.headers.get("Retry-After", "")))
    return _FailedError(f"{_words(status)} (status {status})", transient=False, refused=status in REFUSED)


def _words(status: int) -> str:
    return {401: "access is denied", 403: "access is denied", 404: "it does not exist", 410: "it is gone"}.get(
        status, "the server refused it"
    )
