"""Byte ranges of local files and of objects on gs://, s3:// or https://, fetched ahead, with retries.

All three are plain HTTP here, on the connections that fsspec keeps; gcsfs and s3fs lend their credentials. So every
status, ETag and
retry is seen, which their own readers hide.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import platform
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, TypeAlias, cast

import aiohttp
from yarl import URL

from s2composite.errors import AccessError, ParameterError, ReadError, S2CompositeError, imported
from s2composite.storage.files import archive_of, display, filesystem, in_archive, is_remote, reason
from s2composite.storage.urls import ReplyTimeout

__all__ = [
    "HEAD",
    "LOW_SPEED_LIMIT",
    "LOW_SPEED_TIME",
    "REFUSED",
    "ByteRange",
    "Fetched",
    "Fetching",
    "Identity",
    "Reply",
    "Retry",
    "Sign",
    "Target",
    "read_head",
    "read_identity",
    "read_range",
    "request",
    "seconds_since_reply",
    "sign_function",
    "signed",
    "target_of",
]

Sign: TypeAlias = Callable[[str], str]  # returns a URL with a signature, planetary_computer.sign; runs in the workers

REFUSED = (400, 401, 403)  # what servers answer to a signature that has expired; Amazon says 400

# seconds a signed URL is used again: shorter than any signature is valid, long enough for the windows of a file
_KEPT = 240.0
_MOST = 1 << 16

_URLS: dict[tuple[int, str], tuple[float, str]] = {}
_LOCK = Lock()


def sign_function(sign: Sign | str | None) -> Sign | None:
    """Return the function that signs URLs: a function, or its import path, ``"planetary_computer.sign"``."""
    found: object = sign
    if isinstance(sign, str):
        try:
            found = imported(sign)
        except (ImportError, AttributeError, ValueError) as error:
            raise ParameterError(f"sign is {sign!r}, which cannot be imported: {error}") from error
    if sign is not None and not callable(found):
        raise ParameterError(
            f"sign is {sign!r}; it is a function of a URL, such as planetary_computer.sign, or its import path"
        )
    return cast("Sign | None", found)


def signed(sign: Sign | None, href: str, *, fresh: bool = False) -> str:
    """Return where `href` can be read: signed, where there is a `sign`, in this process and not long ago."""
    if sign is None:
        return href
    now, key = time.monotonic(), (id(sign), href)
    with _LOCK:
        known = _URLS.get(key)
    if known is not None and not fresh and now - known[0] < _KEPT:
        return known[1]
    url = _sign(sign, href)
    with _LOCK:
        if len(_URLS) >= _MOST:
            _URLS.clear()
        _URLS[key] = (now, url)
    return url


def _sign(sign: Sign, href: str) -> str:
    try:
        url: object = sign(href)
    except Exception as error:  # noqa: BLE001 - a user's function raises what it likes
        why = re.sub(r"\?[^\s'\")]+", "", f"{type(error).__name__}: {error}")
    else:
        if isinstance(url, str):
            return url
        why = f"it returns {type(url).__name__}, not text"
    label = display(href)
    raise ReadError(f"{label}: it could not be signed: {why}", href=label, transient=True, retries=0)


LOG = logging.getLogger(__name__)

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_SIGNED_FOR = 7200  # seconds a signed URL is valid; a new one is made after half of that
_LONGEST_WAIT = 60.0  # seconds that a server may ask to wait before the next attempt

# seconds without an answer, or of too few bytes, after which a connection counts as lost, unless
# GDAL_HTTP_LOW_SPEED_TIME says otherwise
LOW_SPEED_TIME = 30.0
LOW_SPEED_LIMIT = 1024.0  # bytes a second that are too few, unless GDAL_HTTP_LOW_SPEED_LIMIT says otherwise


@dataclass(frozen=True, slots=True)
class Identity:
    """The state of a file or object; any difference means that its index is no longer true."""

    size: int  # bytes
    etag: str | None = None  # entity tag; None for local files and servers that give none
    modified: int | None = None  # time of the last change, nanoseconds since 1970
    # time at which the file's entry in the file system last changed, which nobody can set; None for objects
    ctime: int | None = None
    # number of a file; None where numbers are made up by a network's file system, and may not last
    inode: int | None = None
    system: str | None = None  # machine and file system that `ctime` and `inode` are from: copies elsewhere have others

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

    attempts: int = 5  # requests in all before giving up
    # seconds before the second attempt; doubles each time, and half of it is random so that workers spread out
    first_wait: float = 0.25
    longest_wait: float = 8.0  # seconds at most between attempts, unless the server asks for more
    # seconds after which a connection counts as lost: without a byte, without all headers of an answer, or with fewer
    # bytes than `least_rate` a second
    timeout: float = field(default_factory=lambda: _setting("GDAL_HTTP_LOW_SPEED_TIME", 0) or LOW_SPEED_TIME)
    # bytes a second that must come on average over `timeout`; 0: any rate will do
    least_rate: float = field(default_factory=lambda: _setting("GDAL_HTTP_LOW_SPEED_LIMIT", LOW_SPEED_LIMIT))


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

    href: str  # as the user names it
    url: str  # where it is; may be signed
    headers: Mapping[str, str]  # credentials
    sign: Sign | None = None  # what made the signature in `url`


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request gave."""

    data: bytes  # the bytes
    identity: Identity  # of the object they came from
    retries: int  # attempts that failed before


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
    """Return where `href` is on the web, with the credentials that this process has, or signed by `sign`."""
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
    """Begin to read `size` bytes from `start`, and return at once."""
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


# bytes a header is looked for in: holds the header of a 10980 x 10980 COG even with 256-pixel BigTIFF tiles
HEAD = 1 << 16

_FILES_AHEAD = 8  # local files that are opened, and announced to the kernel to be read from disk, before their turn


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file or object."""

    href: str  # path or URL
    identity: Identity  # what it must still be
    start: int  # first byte
    size: int  # number of bytes
    sign: Sign | None = None  # signs the URL


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of a byte range."""

    data: bytes  # its bytes; empty if there is an error
    error: ReadError | None = None  # why it could not be read
    retries: int = 0  # attempts that failed before


def read_head(href: str, retry: Retry | None = None, sign: Sign | None = None) -> tuple[bytes, Identity]:
    """Return the first `HEAD` bytes of a file or object (fewer if it is smaller), and its identity."""
    if is_remote(href):
        reply = request(target_of(href, sign), 0, HEAD, None, retry or Retry()).result()
        return reply.data, reply.identity
    fd = _open(href)
    try:
        # the identity last: what is written meanwhile shows in it
        return _pread(href, fd, 0, HEAD), _local_identity(os.fstat(fd))
    finally:
        os.close(fd)


def read_identity(href: str, sign: Sign | None = None) -> Identity:
    """Return the identity that a file or object has now."""
    if is_remote(href):
        return request(target_of(href, sign), 0, 1, None, Retry()).result().identity
    try:
        return _local_identity(Path((in_archive(href) and archive_of(href)) or href).stat())
    except OSError as error:
        raise _failure(href, error) from error


def read_range(href: str, start: int, size: int, identity: Identity, sign: Sign | None = None) -> bytes:
    """Return `size` bytes from `start` of an object that must still have `identity`."""
    ((_, fetched),) = Fetching([ByteRange(href, identity, start, size, sign)])
    if fetched.error is not None:
        raise fetched.error
    return fetched.data


class Fetching:
    """Byte ranges on their way: iterate over it for ``(position, Fetched)``, in the order in which they arrive.

    Remote ranges are asked for at once, as many as fit, and the next ones while the caller uses those that came.
    """

    def __init__(self, ranges: Sequence[ByteRange], retry: Retry | None = None, budget: int = 64 << 20) -> None:
        numbered = list(enumerate(ranges))
        self._ranges = ranges
        self._local = [n for n in numbered if not is_remote(n[1].href)]
        self._waiting = deque(n for n in numbered if is_remote(n[1].href))
        self._retry, self._budget, self._held = retry or Retry(), budget, 0
        self._arrived: SimpleQueue[tuple[int, Fetched]] = SimpleQueue()
        self._flying: dict[int, Future[Reply] | None] = {}
        self._target: Target | None = None
        self._ask()

    def __iter__(self) -> Iterator[tuple[int, Fetched]]:
        try:
            yield from _local_files(self._local)
            while self._flying:
                i, fetched = self._arrived.get()
                del self._flying[i]
                yield i, fetched
                self._held -= self._ranges[i].size
                self._ask()
        finally:
            self.close()

    def close(self) -> None:
        """Give up what is still on its way."""
        self._waiting.clear()
        for future in self._flying.values():
            if future is not None:
                future.cancel()
        self._flying.clear()

    def _ask(self) -> None:
        """Ask for remote ranges while there is room for them."""
        while self._waiting and (not self._flying or self._held + self._waiting[0][1].size <= self._budget):
            i, part = self._waiting.popleft()
            self._held += part.size
            try:
                future = request(self._target_of(part), part.start, part.size, part.identity, self._retry)
            except S2CompositeError as error:
                self._flying[i] = None
                self._arrived.put((i, _failed(part.href, error)))
            else:
                self._flying[i] = future
                future.add_done_callback(partial(self._arrive, i))

    def _target_of(self, part: ByteRange) -> Target:
        if self._target is None or self._target.href != part.href:
            self._target = target_of(part.href, part.sign)
        return self._target

    def _arrive(self, i: int, done: Future[Reply]) -> None:
        # always, also for one that was cancelled: somebody may wait for it
        self._arrived.put((i, _fetched(self._ranges[i].href, done)))


def _fetched(href: str, done: Future[Reply]) -> Fetched:
    try:
        reply = done.result()
    except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever is raised here, nobody would see
        return _failed(href, error)
    return Fetched(reply.data, None, reply.retries)


def _failed(href: str, error: BaseException) -> Fetched:
    if isinstance(error, ReadError):
        return Fetched(b"", error, error.__dict__.get("retries", 0))
    href = display(href)
    why = str(error) if isinstance(error, S2CompositeError) else f"{href}: {type(error).__name__} {error}".strip()
    return Fetched(b"", ReadError(why, href=href, transient=False, retries=0))


# --- Local files ----------------------------------------------------------------------------------------------------


def _local_files(numbered: Iterable[tuple[int, ByteRange]]) -> Iterator[tuple[int, Fetched]]:
    files = (list(group) for _, group in groupby(numbered, key=lambda n: n[1].href))
    ahead: deque[tuple[list[tuple[int, ByteRange]], int | ReadError]] = deque()
    try:
        while True:
            # Opening takes 10 us, so files are not kept open: nothing to bound, and a new file is never missed.
            while len(ahead) < _FILES_AHEAD and (group := next(files, None)):
                ahead.append((group, _announce([r for _, r in group])))
            if not ahead:
                return
            group, fd = ahead[0]
            for i, part in group:
                yield i, _fetch_local(part, fd)
            _close(ahead.popleft()[1])
    finally:
        for _, fd in ahead:
            _close(fd)


def _close(fd: int | ReadError) -> None:
    if isinstance(fd, int):
        os.close(fd)


def _announce(parts: Sequence[ByteRange]) -> int | ReadError:
    """Open a file, and have the kernel begin to read its parts."""
    try:
        fd = _open(parts[0].href)
    except ReadError as error:
        return error
    if hasattr(os, "posix_fadvise"):
        for part in parts:
            os.posix_fadvise(fd, part.start, part.size, os.POSIX_FADV_WILLNEED)
    return fd


def _fetch_local(part: ByteRange, fd: int | ReadError) -> Fetched:
    if isinstance(fd, ReadError):
        return Fetched(b"", fd)
    try:
        data = _pread(part.href, fd, part.start, part.size)
    except ReadError as error:
        return Fetched(b"", error)
    # after each part: a file may be written to while it is read
    if not part.identity.same(_local_identity(os.fstat(fd))):
        why = f"{part.href} has changed since its header was read"
        return Fetched(b"", ReadError(why, href=part.href, transient=False, retries=0))
    if len(data) < part.size:
        why = f"{part.href}: got {len(data)} of {part.size} bytes at byte {part.start}"
        return Fetched(b"", ReadError(why, href=part.href, transient=False, retries=0))
    return Fetched(data)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _failure(path, error) from error


def _pread(path: str, fd: int, start: int, size: int) -> bytes:
    try:
        return os.pread(fd, size, start)
    except OSError as error:
        raise _failure(path, error) from error


def _failure(path: str, error: OSError) -> ReadError:
    permanent = isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError))
    return ReadError(f"{path}: {error.strerror or error}", href=path, transient=not permanent, retries=0)


def _local_identity(stat: os.stat_result) -> Identity:
    # Devices without a number of a driver are networks, FUSE, overlays: what they call an inode may change by itself.
    inode = stat.st_ino if hasattr(os, "major") and os.major(stat.st_dev) else None
    return Identity(stat.st_size, None, stat.st_mtime_ns, stat.st_ctime_ns, inode, _system(stat.st_dev))


@lru_cache(64)
def _system(device: int) -> str:
    return f"{platform.node()} {device}"
