"""TIFF: the directories of a classic or Big TIFF of either byte order, from as few reads as possible."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import SceneError
from s2composite.reading.crs import GEO_TAGS, RawTag
from s2composite.reading.fetch import Identity, read_head, read_range
from s2composite.reading.signing import Sign
from s2composite.scenes.storage import display

__all__ = ["RPC", "Directory", "Tiff", "broken", "open_tiff"]

Value: TypeAlias = "bytes | tuple[Any, ...] | NDArray[np.uint64]"

_OFFSETS = {273, 279, 324, 325}
"""Offsets and byte counts of strips and tiles: arrays, for they are long."""

_WANTED = GEO_TAGS | _OFFSETS | {254, 256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 322, 323, 338, 339, 347}
RPC = 50844
"""Tag of rational polynomial coefficients."""

_WANTED |= {42112, 42113, 50674, RPC}  # GDAL's metadata and nodata, LERC's parameters

_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_FORMATS |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {kind: struct.calcsize("=" + code) for kind, code in _FORMATS.items()}
_BYTES = (1, 2, 7)
_WHOLE = (1, 3, 4, 6, 8, 9, 13, 16, 17, 18)
"""Types of whole numbers, any of which an offset or a byte count may have."""

_MORE = 1 << 14
"""Least number of bytes read beyond the first ones: what is wanted next lies beside what is wanted now."""

_MOST_DIRECTORIES = 4096
"""A chain longer than this is a loop or no raster of ours."""

_LARGEST_HEADER = 256 << 20
"""Bytes of a header, which is held in memory: 16 million tiles; a server may claim any number and send them."""


@dataclass(frozen=True, slots=True)
class Directory:
    """One image file directory."""

    values: Mapping[int, Value]
    """Values of the tags that matter here: text as bytes, offsets and byte counts as arrays, others as tuples."""

    geo: tuple[RawTag, ...]
    """The tags of `GEO_TAGS` as they are in the file."""

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first value of a numeric tag."""
        return int(self.values[tag][0]) if tag in self.values else default

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Return the values of a numeric tag; empty if it is not there."""
        return tuple(int(v) for v in self.values.get(tag, ()))

    def text(self, tag: int) -> str:
        """Return a text tag without its end mark; empty if it is not there."""
        return bytes(self.values.get(tag, b"")).rstrip(b"\0").decode("utf-8", "replace").strip()


@dataclass(frozen=True, slots=True)
class Tiff:
    """The directories of a TIFF."""

    order: str
    """Byte order, ``"<"`` or ``">"``."""

    directories: tuple[Directory, ...]
    """In file order."""

    notes: str
    """GDAL's structural metadata between the header and the first directory; empty where there is none."""


class _File:
    """The bytes of a file, read when they are asked for: a COG's headers are all in the first ones."""

    def __init__(self, href: str, head: bytes, identity: Identity, sign: Sign | None) -> None:
        self.href, self.identity, self.sign = href, identity, sign
        self._parts: list[tuple[int, bytes]] = [(0, head)]
        self._returned = 0

    def get(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`.

        In a sound file no two values share bytes (twice the file's size leaves room for writers that share some): a
        small file must not cost what thousands of directories would that all point to the same ones.
        """
        self._returned += size
        if start + size <= self.identity.size and self._returned > 2 * self.identity.size + _MORE:
            raise broken(self.href, "its directories overlap")
        for first, data in self._parts:
            if first <= start and start + size <= first + len(data):
                return data[start - first : start - first + size]
        if start + size > self.identity.size:
            raise broken(self.href, f"its header points to byte {start + size}, the file ends at {self.identity.size}")
        much = min(max(size, _MORE), self.identity.size - start)
        held = sum(len(data) for _, data in self._parts) + much
        if held > _LARGEST_HEADER:
            raise broken(self.href, f"its header would have {held} bytes")
        more = read_range(self.href, start, much, self.identity, self.sign)
        self._parts.append((start, more))
        return more[:size]


def broken(href: str, why: str) -> SceneError:
    """Return the error of a file that is not what its header promises."""
    href = display(href)
    return SceneError(f"{href} is truncated or damaged: {why}; fetch it again, or leave it out", href=href)


def open_tiff(href: str, sign: Sign | None = None) -> tuple[Tiff | None, Identity]:
    """Return the directories of a TIFF, or None where the file is something else, and the file's identity.

    Raises
    ------
    SceneError
        The file is empty, truncated or damaged.
    """
    head, identity = read_head(href, sign=sign)
    if not head:
        raise SceneError(f"{display(href)} is empty (0 bytes); fetch it again, or leave it out", href=display(href))
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 4 or (version := struct.unpack(f"{order}H", head[2:4])[0]) not in (42, 43):
        return None, identity
    try:
        directories = tuple(_directories(_File(href, head, identity, sign), order, big=version == 43))
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise broken(href, f"its header makes no sense ({error})") from error
    return Tiff(order, directories, _notes(head[16 if version == 43 else 8 :])), identity


def _notes(data: bytes) -> str:
    if not data.startswith(b"GDAL_STRUCTURAL_METADATA_SIZE="):
        return ""
    size = int(data[30:36]) if data[30:36].isdigit() else 0
    return data[43 : 43 + size].decode("ascii", "replace")


def _directories(file: _File, order: str, *, big: bool) -> Iterator[Directory]:
    if big and struct.unpack(order + "HH", file.get(4, 4)) != (8, 0):
        raise broken(file.href, "it is a BigTIFF whose offsets do not have 8 bytes")
    start = struct.unpack(order + ("Q" if big else "I"), file.get(8, 8) if big else file.get(4, 4))[0]
    seen: set[int] = set()
    while start:
        if start in seen or len(seen) > _MOST_DIRECTORIES:
            raise broken(file.href, "its directories form a loop")
        seen.add(start)
        directory, start = _directory(file, start, order, big=big)
        yield directory


def _directory(file: _File, start: int, order: str, *, big: bool) -> tuple[Directory, int]:
    """Return the directory at `start` and where the next one is (0: none)."""
    count_code, entry_code, next_code = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    head = struct.calcsize("=" + count_code)
    count = struct.unpack(order + count_code, file.get(start, head))[0]
    entry_size, next_size = struct.calcsize("=" + entry_code), struct.calcsize("=" + next_code)
    table = file.get(start + head, count * entry_size + next_size)
    values: dict[int, Value] = {}
    geo: list[RawTag] = []
    seen: set[int] = set()
    for tag, kind, items, field in struct.iter_unpack(order + entry_code, table[: count * entry_size]):
        if tag not in _WANTED or tag in seen or kind not in _FORMATS or not items:
            continue
        seen.add(tag)  # of a tag that is there twice the first counts, as in libtiff
        raw = _raw(file, order, items * _SIZES[kind], field)
        if tag in GEO_TAGS:
            geo.append((tag, kind, items, raw))
        else:
            values[tag] = _value(tag, kind, items, raw, order)
    return Directory(values, tuple(geo)), struct.unpack(order + next_code, table[-next_size:])[0]


def _raw(file: _File, order: str, size: int, field: bytes) -> bytes:
    if size <= len(field):
        return field[:size]
    return file.get(struct.unpack(order + ("Q" if len(field) == 8 else "I"), field)[0], size)


def _value(tag: int, kind: int, items: int, raw: bytes, order: str) -> Value:
    if tag in _OFFSETS:
        if kind not in _WHOLE:
            raise ValueError(f"offsets or byte counts of type {kind}")
        return np.frombuffer(raw, np.dtype(order + _FORMATS[kind])).astype(np.uint64)
    if kind in _BYTES:
        return raw
    code = _FORMATS[kind]
    return struct.unpack(f"{order}{items * len(code)}{code[0]}", raw)
