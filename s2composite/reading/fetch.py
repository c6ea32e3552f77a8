"""Fetch: many byte ranges of local files and remote objects, the next ones on their way while one is being used."""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue

from s2composite.errors import ReadError, S2CompositeError
from s2composite.reading.remote import Identity, Reply, Retry, Target, request, target_of
from s2composite.reading.signing import Sign
from s2composite.scenes.storage import archive_of, display, in_archive, is_remote

__all__ = [
    "HEAD",
    "ByteRange",
    "Fetched",
    "Fetching",
    "Identity",
    "Retry",
    "read_head",
    "read_identity",
    "read_range",
]

HEAD = 1 << 16
"""Bytes a header is looked for in: holds the header of a 10980 x 10980 COG even with 256-pixel BigTIFF tiles."""

_FILES_AHEAD = 8
"""Local files that are opened, and announced to the kernel to be read from disk, before their turn."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file or object."""

    href: str
    """Path or URL."""

    identity: Identity
    """What it must still be."""

    start: int
    """First byte."""

    size: int
    """Number of bytes."""

    sign: Sign | None = None
    """Signs the URL."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of a byte range."""

    data: bytes
    """Its bytes; empty if there is an error."""

    error: ReadError | None = None
    """Why it could not be read."""

    retries: int = 0
    """Attempts that failed before."""


def read_head(href: str, retry: Retry | None = None, sign: Sign | None = None) -> tuple[bytes, Identity]:
    """Return the first `HEAD` bytes of a file or object (fewer if it is smaller), and its identity.

    Raises
    ------
    ReadError
        It is missing, denied or cannot be reached.
    """
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
    """Return the identity that a file or object has now.

    Raises
    ------
    ReadError
        It is missing, denied or cannot be reached.
    """
    if is_remote(href):
        return request(target_of(href, sign), 0, 1, None, Retry()).result().identity
    try:
        return _local_identity(Path((in_archive(href) and archive_of(href)) or href).stat())
    except OSError as error:
        raise _failure(href, error) from error


def read_range(href: str, start: int, size: int, identity: Identity, sign: Sign | None = None) -> bytes:
    """Return `size` bytes from `start` of an object that must still have `identity`.

    Raises
    ------
    ReadError
        It has changed, or cannot be read.
    """
    ((_, fetched),) = Fetching([ByteRange(href, identity, start, size, sign)])
    if fetched.error is not None:
        raise fetched.error
    return fetched.data


class Fetching:
    """Byte ranges on their way: iterate over it for ``(position, Fetched)``, in the order in which they arrive.

    Remote ranges are asked for at once, as many as fit, and the next ones while the caller uses those that came.

    Parameters
    ----------
    ranges
        Neighbouring ranges should be one. Those of one file should follow each other.
    retry
        What to do about failures of remote reads.
    budget
        Bytes that are in flight or waiting to be used at most (more only for a single range that is larger).
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
