"""Byte ranges of local files and of objects on gs://, s3:// or https://, fetched ahead, with retries.

All three are plain HTTP here, on the connections that fsspec keeps; gcsfs and s3fs lend their credentials. So every
status, ETag and retry is seen, which their own readers hide.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import platform
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from s2composite.storage.files import archive_of, display, filesystem, in_archive, is_remote, reason, without_queries
from s2composite.storage.limits import Lease, permit
from s2composite.storage.retry import TRANSIENT, AttemptError, Retry, retry_after, retrying_async
from s2composite.storage.urls import ReplyTimeout

__all__ = [
    "HEAD", "REFUSED", "ByteRange", "Fetched", "Fetching", "Identity", "RemoteObject", "Reply", "Sign", "read_head",
    "read_identity", "read_range", "remote_object", "request", "seconds_since_reply", "sign_function", "signed",
]  # fmt: skip

LOG = logging.getLogger(__name__)

# --- Signed URLs ----------------------------------------------------------------------------------------------------

Sign: TypeAlias = Callable[[str], str]  # returns a URL with a signature, planetary_computer.sign; runs in the workers

REFUSED = (400, 401, 403)  # what servers answer to a signature that has expired; Amazon says 400

# Seconds a signed URL is used again: shorter than any signature is valid, long enough for the windows of a file
_KEPT = 240.0
_MOST = 1 << 16

_URLS: dict[tuple[int, str], tuple[float, str]] = {}
_LOCK = Lock()


def sign_function(sign: Sign | str | None) -> Sign | None:
    """Return the function that signs URLs: a function, or its import path, ``"planetary_computer.sign"``."""
    function: object = sign
    if isinstance(sign, str):
        function = imported(sign, f"sign is {sign!r}, which cannot be imported")
    if sign is not None and not callable(function):
        raise ParameterError(
            f"sign is {sign!r}; it is a function of a URL, such as planetary_computer.sign, or its import path"
        )
    return cast("Sign | None", function)


def signed(sign: Sign | None, href: str, *, fresh: bool = False) -> str:
    """Return where `href` can be read: signed, where there is a `sign`, in this process and not long ago.

    With `fresh` it is signed again: the last signature was refused.
    """
    if sign is None:
        return href
    now, key = time.monotonic(), (id(sign), href)
    with _LOCK:
        known = _URLS.get(key)
    if known is not None and not fresh and now - known[0] < _KEPT:
        return known[1]
    try:
        url: object = sign(href)
        why = "" if isinstance(url, str) else f"it returns {type(url).__name__}, not text"
    except Exception as error:  # noqa: BLE001 - a user's function raises what it likes
        why = without_queries(f"{type(error).__name__}: {error}")
    if why:
        raise _read_error(href, f"it could not be signed: {why}", transient=True)
    with _LOCK:
        if len(_URLS) >= _MOST:
            _URLS.clear()
        _URLS[key] = (now, str(url))
    return str(url)


# --- Requests -------------------------------------------------------------------------------------------------------

_SIGNED_FOR = 7200  # seconds a URL on S3 is signed for; a new one is made after half of that

_LAST_REPLIES: dict[str, float] = {}
_MOST_REPLIES = 1 << 16


@dataclass(frozen=True, slots=True)
class Identity:
    """The state of a file or object; any difference means that its index is no longer true."""

    size: int  # bytes
    etag: str | None = None  # None for local files and servers that give none
    modified: int | None = None  # nanoseconds since 1970
    # When the file's entry in the file system last changed, which nobody can set; None for objects
    ctime: int | None = None
    # None where numbers are made up by a network's file system, and may not last
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
class RemoteObject:
    """Where an object is on the web, and what proves that one may read it. Never logged, never pickled."""

    href: str  # as the user names it
    url: str  # may be signed
    headers: Mapping[str, str]  # credentials
    sign: Sign | None = None  # what made the signature in `url`


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request gave."""

    data: bytes
    identity: Identity
    retries: int  # attempts that failed before


def remote_object(href: str, sign: Sign | None = None) -> RemoteObject:
    """Return where `href` is on the web, with the credentials that this process has, or signed by `sign`."""
    url = signed(sign, href)
    if sign is not None and url.startswith("http"):
        return RemoteObject(href, url, {}, sign)
    try:
        if href.startswith("gs://"):
            fs, path = filesystem(href)
            headers: dict[str, str] = {}
            fs.credentials.apply(headers)
            return RemoteObject(href, fs.url(path), headers)
        if href.startswith("s3://"):
            return RemoteObject(href, _signed_for_s3(*filesystem(href), int(time.time() // (_SIGNED_FOR // 2))), {})
    except Exception as error:  # noqa: BLE001 - botocore and google-auth raise what they like
        why, transient = reason(href, error), isinstance(error, OSError)
    else:
        return RemoteObject(href, href, {})
    raise _read_error(href, why, transient=transient)


@lru_cache(4096)
def _signed_for_s3(fs: Any, path: str, period: int) -> str:  # noqa: ARG001 - a new period is a new signature
    """Return the URL of an object on S3, signed (0.3 ms) once in a `period`; plain for those without credentials."""
    if not fs.anon:
        # Newer buckets take only version 4, and it names the region, which s3fs then looks up for each bucket.
        version = {"config_kwargs": {"signature_version": "s3v4"}, "cache_regions": True}
        fs = type(fs)(**{**fs.storage_options, **version})
    payer = {"RequestPayer": "requester"} if fs.req_kw.get("RequestPayer") else {}
    return str(fs.url(path, expires=_SIGNED_FOR, **payer))


def seconds_since_reply(href: str) -> float:
    """Return how long ago this process got bytes of an object; infinite if it got none."""
    return time.monotonic() - _LAST_REPLIES.get(href, -math.inf)


def request(target: RemoteObject, start: int, size: int, identity: Identity | None, retry: Retry) -> Future[Reply]:
    """Begin to read `size` bytes from `start` of an object that must still have `identity`, and return at once.

    Without an identity anything will do, and fewer bytes if it is smaller. Whatever happens, the future ends: with a
    reply, with a `ReadError`, whose ``transient`` tells whether trying again later could help, or with an `AccessError`
    where the server sends on to a place that is not open.
    """
    web = filesystem("https://")[0]
    coroutine = _request(web, target, start, size, identity=identity, retry=retry)
    return asyncio.run_coroutine_threadsafe(coroutine, web.loop)


async def _request(
    web: Any, target: RemoteObject, start: int, size: int, *, identity: Identity | None, retry: Retry
) -> Reply:
    href = target.href

    async def attempt() -> tuple[bytes, Identity]:
        nonlocal target
        try:
            async with permit(target.href, size) as lease:
                data, state = await _get_range(web, target, start, size, retry, lease)
            _check(data, start, size, state, identity)
        except AttemptError as error:
            failure = error
        else:
            return data, state
        if failure.refused and target.sign is not None:
            # once: a new signature that is refused too is no matter of time
            url = await asyncio.to_thread(signed, target.sign, href, fresh=True)
            target, failure.renewed = replace(target, url=url, sign=None), True
        raise failure

    try:
        (data, state), retries = await retrying_async(attempt, retry, display(href), LOG)
    except AttemptError as error:
        failure = error
    else:
        if len(_LAST_REPLIES) >= _MOST_REPLIES:
            _LAST_REPLIES.clear()
        _LAST_REPLIES[href] = time.monotonic()
        return Reply(data, state, retries)
    # outside of the except clause: workers cannot pickle what aiohttp and botocore raise
    if failure.forbidden:
        raise AccessError(f"{display(href)}: {failure}")
    retries = failure.attempts - 1
    tried = f" (tried {retries + 1} times)" if retries else ""
    raise _read_error(href, f"{failure}{tried}", transient=failure.transient, retries=retries, missing=failure.missing)


def _read_error(href: str, why: str, *, transient: bool, retries: int = 0, missing: bool = False) -> ReadError:
    href = display(href)
    return ReadError(f"{href}: {why}", href=href, transient=transient, retries=retries, missing=missing)


def _check(data: bytes, start: int, size: int, state: Identity, identity: Identity | None) -> None:
    if identity is not None and not identity.same(state):
        change = "another time of change"
        if identity.size != state.size:
            change = f"{identity.size} bytes then, {state.size} now"
        elif identity.etag and state.etag and identity.etag != state.etag:
            change = f"ETag {_printable(identity.etag)} then, {_printable(state.etag)} now"
        raise AttemptError(f"it has changed since its header was read ({change})", transient=False)
    if len(data) < size and (identity is not None or len(data) < state.size):
        raise AttemptError(f"the server sent {len(data)} of {size} bytes")
    if len(data) > state.size - start:
        raise AttemptError(f"the server sent {len(data)} bytes of an object that has {state.size}")


async def _get_range(
    web: Any, target: RemoteObject, start: int, size: int, retry: Retry, lease: Lease | None
) -> tuple[bytes, Identity]:
    """Make one request; whatever goes wrong is an `AttemptError`, for somebody waits for this in another thread."""
    headers = {**target.headers, "Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
    limits = aiohttp.ClientTimeout(total=None, sock_connect=retry.timeout, sock_read=retry.timeout)
    # nothing is unpacked: a range of an object is what it is, and what it might become is not known beforehand
    plain: dict[str, Any] = {"auto_decompress": False, "read_bufsize": 1 << 20}
    try:
        # a signature is over the URL as it is written: it must not be written anew
        url = URL(target.url, encoded="%" in target.url)
        session = await web.set_session()
        if lease is not None and lease.has_connection:
            session = await lease.keep(partial(web.get_client, loop=web.loop, **web.client_kwargs))
        # the time of a single byte alone (sock_read) lets headers and bodies take for ever that come byte by byte
        async with asyncio.timeout(None) as limit:
            reply = ReplyTimeout(limit, retry.timeout)
            async with session.get(url, headers=headers, timeout=limits, trace_request_ctx=reply, **plain) as response:
                state = _identity_in(response, start, size)
                return b"" if state.size == 0 else await _body(response, size, reply, retry.least_rate), state
    except (AttemptError, asyncio.CancelledError):
        raise
    except S2CompositeError as error:
        raise AttemptError(str(error), transient=False, forbidden=isinstance(error, AccessError)) from error
    except (aiohttp.InvalidURL, aiohttp.TooManyRedirects, aiohttp.ClientConnectorCertificateError) as error:
        raise AttemptError(_message(error), transient=False) from error
    except TimeoutError as error:
        slow = f", or less than {retry.least_rate:g} bytes a second" if retry.least_rate else ""
        raise AttemptError(f"no answer for {retry.timeout:g} s{slow}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise AttemptError(f"the connection failed: {_message(error)}") from error
    except Exception as error:  # parsers of URLs and headers raise what they like
        raise AttemptError(f"the server's answer makes no sense: {_message(error)}", transient=False) from error


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
        raise AttemptError(f"the server sent more than the {size} bytes that it was asked for", transient=False)
    return b"".join(parts)


def _message(error: Exception) -> str:
    return _printable(without_queries(f"{type(error).__name__} {error}").strip())


def _printable(text: str | None) -> str:
    """Return what a server sent so that it can be logged: bytes that are no text, and no more than a line."""
    return " ".join((text or "").encode("ascii", "backslashreplace").decode().split())[:200]


# --- What the headers of an answer say. A server may send anything: what is not understood says nothing. -------------

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-[0-9]{1,19}|\*)/([0-9]{1,19})")

_REFUSALS = {401: "access is denied", 403: "access is denied", 404: "it does not exist", 410: "it is gone"}
_MISSING = (404, 410)


def _identity_in(response: aiohttp.ClientResponse, start: int, size: int) -> Identity:
    """Return the identity of the object in an answer that holds the range that was asked for."""
    status, headers = response.status, response.headers
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    first, total = (None if n is None else int(n) for n in (match.groups() if match else (None, None)))
    if status == 416 and total == 0:
        return Identity(0)
    if status == 200 and start == 0 and (response.content_length or size + 1) <= size:
        return Identity(response.content_length or 0, headers.get("ETag"), _modified(headers.get("Last-Modified", "")))
    if status == 206 and total and first == start:
        return Identity(total, headers.get("ETag"), _modified(headers.get("Last-Modified", "")))
    if status in (200, 206):
        raise AttemptError("the server does not serve byte ranges (status 200 and all of the object)", transient=False)
    if status == 416:
        raise AttemptError(f"it has changed since its header was read (it ends before byte {start})", transient=False)
    if status in TRANSIENT:
        wait = retry_after(headers.get("Retry-After", ""))
        raise AttemptError(f"the server answered {status} {_printable(response.reason)}", wait=wait)
    why = _REFUSALS.get(status, "the server refused it")
    refused, missing = status in REFUSED, status in _MISSING
    raise AttemptError(f"{why} (status {status})", transient=False, refused=refused, missing=missing)


def _modified(text: str) -> int | None:
    """Return a date as nanoseconds since 1970; None for what is none."""
    try:
        date = parsedate_to_datetime(text)
        return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()) * 10**9
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


# --- Byte ranges ----------------------------------------------------------------------------------------------------

# Bytes a header is looked for in: holds the header of a 10980 x 10980 COG even with 256-pixel BigTIFF tiles
HEAD = 1 << 16

_FILES_AHEAD = 8  # local files that are opened, and announced to the kernel to be read from disk, before their turn


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file or object."""

    href: str
    identity: Identity | None  # what it must still be; None: anything, and fewer bytes if it is smaller
    start: int
    size: int  # bytes
    sign: Sign | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A byte range that has arrived, or failed."""

    data: bytes  # empty if there is an error
    error: ReadError | None = None
    retries: int = 0  # attempts that failed before


def read_head(
    href: str, retry: Retry | None = None, sign: Sign | None = None, size: int = HEAD
) -> tuple[bytes, Identity]:
    """Return the first `size` bytes of a file or object (fewer if it is smaller), and its identity."""
    if is_remote(href):
        reply = request(remote_object(href, sign), 0, size, None, retry or Retry()).result()
        return reply.data, reply.identity
    with _system_errors(href), Path(href).open("rb", buffering=0) as file:
        # the identity last: what is written meanwhile shows in it
        return os.pread(file.fileno(), size, 0), _local_identity(os.fstat(file.fileno()))


def read_identity(href: str, sign: Sign | None = None) -> Identity:
    """Return the identity that a file or object has now."""
    if is_remote(href):
        return request(remote_object(href, sign), 0, 1, None, Retry()).result().identity
    with _system_errors(href):
        return _local_identity(Path((in_archive(href) and archive_of(href)) or href).stat())


def read_range(href: str, start: int, size: int, identity: Identity, sign: Sign | None = None) -> bytes:
    """Return `size` bytes from `start` of an object that must still have `identity`."""
    ((_, fetched),) = Fetching([ByteRange(href, identity, start, size, sign)])
    if fetched.error is not None:
        raise fetched.error
    return fetched.data


class Fetching:
    """Byte ranges on their way: iterate over it for ``(position, Fetched)``, in the order in which they arrive.

    Remote ranges are asked for at once, as many as fit into `budget` (bytes in flight or waiting to be used; more only
    for a single range that is larger), and the next ones while the caller uses those that came. Neighbouring ranges
    should be one, and those of one file follow each other.
    """

    def __init__(self, ranges: Sequence[ByteRange], retry: Retry | None = None, budget: int = 64 << 20) -> None:
        numbered = list(enumerate(ranges))
        self._ranges = ranges
        self._local = [n for n in numbered if not is_remote(n[1].href)]
        self._waiting = deque(n for n in numbered if is_remote(n[1].href))
        self._retry, self._budget, self._held = retry or Retry(), budget, 0
        self._arrived: SimpleQueue[tuple[int, Fetched]] = SimpleQueue()
        self._flying: dict[int, Future[Reply]] = {}
        self._target: RemoteObject | None = None
        self._ask()

    def __iter__(self) -> Iterator[tuple[int, Fetched]]:
        try:
            yield from _local_ranges(self._local)
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
            future.cancel()
        self._flying.clear()

    def _ask(self) -> None:
        """Ask for remote ranges while there is room for them."""
        while self._waiting and (not self._flying or self._held + self._waiting[0][1].size <= self._budget):
            i, part = self._waiting.popleft()
            self._held += part.size
            try:
                if self._target is None or self._target.href != part.href:
                    self._target = remote_object(part.href, part.sign)
                future = request(self._target, part.start, part.size, part.identity, self._retry)
            except S2CompositeError as error:
                future = Future()
                future.set_exception(error)
            self._flying[i] = future
            future.add_done_callback(partial(self._arrive, i))

    def _arrive(self, i: int, done: Future[Reply]) -> None:
        try:
            reply = done.result()
            fetched = Fetched(reply.data, None, reply.retries)
        except ReadError as error:
            fetched = Fetched(b"", error, error.__dict__.get("retries", 0))
        except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever is raised here, nobody would see
            href = display(self._ranges[i].href)
            why = f"{href}: {type(error).__name__} {error}".strip()
            if isinstance(error, S2CompositeError):
                why = str(error)
            fetched = Fetched(b"", ReadError(why, href=href, transient=False, retries=0))
        # always, also for one that was cancelled: somebody may wait for it
        self._arrived.put((i, fetched))


# --- Local files ----------------------------------------------------------------------------------------------------


def _local_ranges(numbered: Iterable[tuple[int, ByteRange]]) -> Iterator[tuple[int, Fetched]]:
    files = [list(group) for _, group in groupby(numbered, key=lambda n: n[1].href)]
    opened: deque[int | ReadError] = deque()
    try:
        for n, parts in enumerate(files):
            # Opening takes 10 us, so files are not kept open: nothing to bound, and a new file is never missed.
            opened.extend(map(_open_ahead, files[n + len(opened) : n + _FILES_AHEAD]))
            fd = opened[0]
            for i, part in parts:
                yield i, Fetched(b"", fd) if isinstance(fd, ReadError) else _read_local(part, fd)
            opened.popleft()
            if isinstance(fd, int):
                os.close(fd)
    finally:
        for fd in opened:
            if isinstance(fd, int):
                os.close(fd)


def _open_ahead(parts: Sequence[tuple[int, ByteRange]]) -> int | ReadError:
    """Open a file, and have the kernel begin to read its parts."""
    href = parts[0][1].href
    try:
        with _system_errors(href):
            fd = os.open(href, os.O_RDONLY)
    except ReadError as error:
        return error
    if hasattr(os, "posix_fadvise"):
        for _, part in parts:
            os.posix_fadvise(fd, part.start, part.size, os.POSIX_FADV_WILLNEED)
    return fd


def _read_local(part: ByteRange, fd: int) -> Fetched:
    try:
        with _system_errors(part.href):
            data = os.pread(fd, part.size, part.start)
    except ReadError as error:
        return Fetched(b"", error)
    # after each part: a file may be written to while it is read
    if part.identity is not None and not part.identity.same(_local_identity(os.fstat(fd))):
        why = f"{part.href} has changed since its header was read"
    elif len(data) < part.size and part.identity is not None:
        why = f"{part.href}: got {len(data)} of {part.size} bytes at byte {part.start}"
    else:
        return Fetched(data)
    return Fetched(b"", ReadError(why, href=part.href, transient=False, retries=0))


@contextmanager
def _system_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        permanent = isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError))
        why = f"{path}: {error.strerror or error}"
        missing = isinstance(error, FileNotFoundError)
        raise ReadError(why, href=path, transient=not permanent, retries=0, missing=missing) from error


def _local_identity(stat: os.stat_result) -> Identity:
    # Devices without a number of a driver are networks, FUSE, overlays: what they call an inode may change by itself.
    inode = stat.st_ino if hasattr(os, "major") and os.major(stat.st_dev) else None
    system = f"{platform.node()} {stat.st_dev}"
    return Identity(stat.st_size, None, stat.st_mtime_ns, stat.st_ctime_ns, inode, system)
