"""TIFF as bytes: the header of a cloud-optimised GeoTIFF, all directories before any pixel.

A tile is stored as GDAL's COG driver stores it: its size in 4 bytes, the tile, its last 4 bytes again. The ghost area
after the TIFF header says so, and lets GDAL read a tile without fetching the table of sizes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSIC_LIMIT", "RECORD_OVERHEAD", "Directory", "Tag", "build_header", "tile_record"]

CLASSIC_LIMIT = 2**32 - 2**16
"""Bytes beyond which offsets no longer fit a classic TIFF, with room to spare."""

RECORD_OVERHEAD = 8
"""Bytes around each stored tile: its size before, its last four bytes after."""

SHORT, LONG, DOUBLE, ASCII, LONG8 = 3, 4, 12, 2, 16
_CODES = {SHORT: "H", LONG: "I", DOUBLE: "d", LONG8: "Q"}

_TILE_OFFSETS, _TILE_COUNTS = 324, 325


@dataclass(frozen=True, slots=True)
class Tag:
    """An entry of a TIFF directory."""

    code: int
    """Number of the tag."""

    kind: int
    """TIFF field type: 2 ASCII, 3 SHORT, 4 LONG, 12 DOUBLE, 16 LONG8."""

    values: Any
    """Text for ASCII, else numbers."""

    def payload(self) -> tuple[int, bytes]:
        """Return the number of values and their bytes, little endian."""
        if self.kind == ASCII:
            data = self.values.encode() + b"\0"
            return len(data), data
        values = np.atleast_1d(np.asarray(self.values))
        return values.size, values.astype("<" + _CODES[self.kind]).tobytes()


@dataclass(frozen=True, slots=True)
class Directory:
    """One image of the file: the full resolution, an overview, or the mask of one of them."""

    tags: tuple[Tag, ...]
    """All but the offsets and sizes of tiles."""

    offsets: NDArray[np.uint64]
    """Position of each tile in the file, row by row, in bytes."""

    counts: NDArray[np.uint64]
    """Size of each tile in bytes, row by row."""


def tile_record(data: bytes) -> bytes:
    r"""Return a tile as it lies in the file.

    >>> tile_record(b"abcdef")
    b'\x06\x00\x00\x00abcdefcdef'
    """
    return struct.pack("<I", len(data)) + data + data[-4:].rjust(4, b"\0")


def build_header(directories: Sequence[Directory], *, big: bool, mask: bool) -> bytes:
    """Return everything that stands before the first tile.

    Parameters
    ----------
    directories
        In the order of the file. The length of the header depends on the number of tiles only, not on offsets.
    big
        BigTIFF.
    mask
        The tile of a mask follows each tile of the image.
    """
    ghost = _ghost(mask=mask)
    start = (16 if big else 8) + len(ghost)
    start += -start % 8
    first = struct.pack("<2sHHHQ", b"II", 43, 8, 0, start) if big else struct.pack("<2sHI", b"II", 42, start)
    parts = [(first + ghost).ljust(start, b"\0")]
    position = start
    for i, directory in enumerate(directories):
        block = _directory(directory, position, big=big, last=i == len(directories) - 1)
        parts.append(block)
        position += len(block)
    return b"".join(parts)


def _ghost(*, mask: bool) -> bytes:
    facts: Mapping[str, str] = {
        "LAYOUT": "IFDS_BEFORE_DATA",
        "BLOCK_ORDER": "ROW_MAJOR",
        "BLOCK_LEADER": "SIZE_AS_UINT4",
        "BLOCK_TRAILER": "LAST_4_BYTES_REPEATED",
        "KNOWN_INCOMPATIBLE_EDITION": "NO",
    }
    lines = [f"{key}={value}\n" for key, value in facts.items()]
    # The blank after NO leaves room for a later editor to write YES.
    text = "".join(lines) + " " + ("MASK_INTERLEAVED_WITH_IMAGERY=YES\n" if mask else "")
    return f"GDAL_STRUCTURAL_METADATA_SIZE={len(text):06d} bytes\n{text}".encode()


def _directory(directory: Directory, position: int, *, big: bool, last: bool) -> bytes:
    """Return a directory that starts at `position`, followed by those of its values that do not fit into it."""
    offsets = Tag(_TILE_OFFSETS, LONG8 if big else LONG, directory.offsets)
    tags = sorted([*directory.tags, offsets, Tag(_TILE_COUNTS, LONG, directory.counts)], key=lambda tag: tag.code)
    count, entry, pointer, room = ("<Q", "<HHQ", "<Q", 8) if big else ("<H", "<HHI", "<I", 4)
    body = struct.calcsize(count) + len(tags) * (struct.calcsize(entry) + room) + struct.calcsize(pointer)
    overflow = position + body + (-(position + body) % 8)
    out, values = [struct.pack(count, len(tags))], b" " * 0
    for tag in tags:
        number, data = tag.payload()
        out.append(struct.pack(entry, tag.code, tag.kind, number))
        if len(data) <= room:
            out.append(data.ljust(room, b"\0"))
        else:
            out.append(struct.pack(pointer, overflow + len(values)))
            values += data + b"\0" * (-len(data) % 8)
    following = 0 if last else overflow + len(values)
    out.append(struct.pack(pointer, following))
    return b"".join(out).ljust(overflow - position, b"\0") + values
