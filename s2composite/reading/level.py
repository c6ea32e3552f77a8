"""Level: one resolution of a TIFF, how its tiles are encoded and where they are."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from s2composite.reading.tiff import Directory

__all__ = ["FRAME", "Coding", "Level", "coding", "level_of", "pack", "unpack", "why_undecodable"]

_COMPRESSIONS = {
    1: "NONE", 5: "LZW", 6: "OLD-JPEG", 7: "JPEG", 8: "DEFLATE", 32773: "PACKBITS", 32946: "DEFLATE", 34887: "LERC",
    34925: "LZMA", 50000: "ZSTD", 50001: "WEBP", 50002: "JXL", 52546: "JXL",
}  # fmt: skip
_DECODABLE = ("NONE", "LZW", "JPEG", "DEFLATE", "PACKBITS", "LERC", "LZMA", "ZSTD", "WEBP")
_PREDICTED = ("LZW", "DEFLATE", "LZMA", "ZSTD")
"""Compressions that heed the predictor."""

_PHOTOMETRICS = {
    0: "MINISWHITE", 1: "MINISBLACK", 2: "RGB", 3: "PALETTE", 4: "MASK", 5: "CMYK", 6: "YCBCR", 8: "CIELAB",
}  # fmt: skip
_LARGEST_BLOCK = 1 << 30
"""Bytes of a decoded tile; more is a damaged header, or one strip for a whole raster, which GDAL reads by rows."""

_LARGEST_SIDE, _MOST_BANDS = (1 << 31) - 1, (1 << 16) - 1
"""Pixels on a side, which is GDAL's limit; bands, which is libtiff's (SamplesPerPixel is a number of 16 bits)."""

FRAME = 4
"""Bytes before each tile that hold its size, and after it that repeat its last ones, in files of GDAL's COG driver."""

_LERC_CODECS = {0: "", 1: "DEFLATE", 2: "ZSTD"}


@dataclass(frozen=True, slots=True)
class Coding:
    """How the tiles of a level are encoded."""

    compression: str
    """GDAL's word: ``"JPEG"``, ``"DEFLATE"``, ``"NONE"`` ..."""

    predictor: int
    """1 none, 2 horizontal differences, 3 floating point."""

    photometric: str
    """TIFF's word: ``"RGB"``, ``"YCBCR"``, ``"MINISBLACK"`` ..."""

    interleave: Literal["pixel", "band"]
    """Whether a tile holds all bands or one."""

    samples: int
    """Bands in the file."""

    dtype: str
    """Of a sample in the file, with its byte order: ``"<u2"``."""

    bits: int
    """Bits of a sample; 1 in masks."""

    tables: bytes
    """JPEG tables that all tiles share, or empty."""

    inner: str
    """Compression of the data inside LERC: ``"DEFLATE"``, ``"ZSTD"`` or empty."""

    @property
    def planes(self) -> int:
        """Tiles that hold one place: the number of bands if each has its own, else 1."""
        return self.samples if self.interleave == "band" else 1

    @property
    def samples_per_tile(self) -> int:
        """Bands in a tile."""
        return 1 if self.interleave == "band" else self.samples


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One resolution of a raster and where its tiles are."""

    shape: tuple[int, int]
    """``(y, x)`` in pixels."""

    block: tuple[int, int]
    """``(y, x)`` of a tile; strips are tiles as wide as the raster."""

    tiled: bool
    """Whether blocks are tiles, all of one size, or strips, the last of which may have fewer rows."""

    coding: Coding
    """How the tiles are encoded."""

    offsets: NDArray[np.uint64] = field(repr=False)
    """``(planes * rows * columns,)`` first byte of each tile; empty where only GDAL can read the file."""

    counts: NDArray[np.uint64] = field(repr=False)
    """``(planes * rows * columns,)`` bytes of each tile; 0: sparse, all nodata."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def block_bytes(self) -> int:
        """Bytes of a block when decoded."""
        return self.block[0] * self.block[1] * self.coding.samples_per_tile * np.dtype(self.coding.dtype).itemsize

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (self.shape, self.block, self.tiled, self.coding, pack(self.offsets, self.counts))


def pack(offsets: NDArray[np.uint64], counts: NDArray[np.uint64]) -> bytes:
    """Return the index in little more than the byte counts' entropy: most tiles begin where the one before ends."""
    gaps = np.diff(offsets - _before(counts), prepend=np.uint64(0))
    return zlib.compress(np.stack([gaps, counts]).view(np.uint8).reshape(-1, 8).T.tobytes(), 6)


def unpack(shape: tuple[int, int], block: tuple[int, int], tiled: bool, coding: Coding, packed: bytes) -> Level:
    """Return the level whose index was packed."""
    shuffled = np.frombuffer(zlib.decompress(packed), np.uint8)
    columns = np.ascontiguousarray(shuffled.reshape(8, shuffled.size // 8).T)
    gaps, counts = columns.view(np.uint64).reshape(2, shuffled.size // 16)
    return Level(shape, block, tiled, coding, np.cumsum(gaps) + _before(counts), counts)


def _before(counts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.cumsum(counts, dtype=np.uint64) - counts


def level_of(directory: Directory, order: str) -> Level:
    """Return the level that a directory describes; a ValueError if that makes no sense."""
    d = directory
    shape = d.number(257), d.number(256)
    tiled = 322 in d.values
    block = (d.number(323), d.number(322)) if tiled else (min(d.number(278, shape[0]), shape[0]), shape[1])
    if not (0 < min(shape) <= max(shape) <= _LARGEST_SIDE and min(block) > 0 and 0 < d.number(277, 1) <= _MOST_BANDS):
        raise ValueError(f"size {shape}, blocks {block}, {d.number(277, 1)} bands")
    if any(1 < len(d.numbers(tag)) < d.number(277, 1) for tag in (258, 339)):
        raise ValueError(f"{d.number(277, 1)} bands, but the types of {len(d.numbers(258))}")
    if d.number(284, 1) not in (1, 2):
        raise ValueError(f"planar configuration {d.number(284, 1)}")
    empty = np.empty(0, np.uint64)
    offsets, counts = (np.asarray(d.values.get(tag, empty)) for tag in ((324, 325) if tiled else (273, 279)))
    level = Level(shape, block, tiled, _coding_of(d, order), offsets, counts)
    tiles = level.grid[0] * level.grid[1] * level.coding.planes
    if len(offsets) < tiles and level.coding.compression != "OLD-JPEG":  # which may have its own way to say where it is
        raise ValueError(f"{len(offsets)} tiles or strips, where its size needs {tiles}")
    return level if len(offsets) == len(counts) == tiles else replace(level, offsets=empty, counts=empty)


def _coding_of(d: Directory, order: str) -> Coding:
    compression = _COMPRESSIONS.get(d.number(259, 1), f"compression {d.number(259, 1)}")
    bits = d.number(258, 1)
    lerc = d.numbers(50674)
    return coding(
        compression=compression,
        predictor=d.number(317, 1) if compression in _PREDICTED else 1,
        photometric=_PHOTOMETRICS.get(d.number(262), "OTHER"),
        interleave="band" if d.number(284, 1) == 2 and d.number(277, 1) > 1 else "pixel",
        samples=d.number(277, 1),
        dtype=_dtype(d.number(339, 1), bits, order),
        bits=bits,
        tables=bytes(d.values.get(347, b"")),
        inner=_LERC_CODECS.get(lerc[1], "?") if len(lerc) > 1 else "",
    )


def _dtype(kind: int, bits: int, order: str) -> str:
    """Return the dtype of a sample; for odd ones the next larger, in which GDAL returns them."""
    if kind in (5, 6):  # complex integers, too, are complex floats in NumPy
        return f"{order}c{8 if bits <= 64 and (kind, bits) != (5, 64) else 16}"
    size = next((size for size in (8, 16, 32, 64) if bits <= size), 64)
    return f"{order}{'f' if kind == 3 else 'i' if kind == 2 else 'u'}{max(size, 32 if kind == 3 else 8) // 8}"


@lru_cache(1024)
def coding(**fields: Any) -> Coding:
    """Return the same object for equal files, so that a pickled tuple of headers holds their JPEG tables once."""
    return Coding(**fields)


def why_undecodable(level: Level, directory: Directory) -> str:
    """Return why only GDAL can read the tiles of a level; empty if they can be decoded here."""
    coding, d = level.coding, directory
    bits, kinds = d.numbers(258) or (1,), d.numbers(339) or (1,)
    block = level.block[0] * level.block[1] * coding.samples_per_tile * np.dtype("u8").itemsize
    reasons = {
        f"{coding.compression} compression": coding.compression not in _DECODABLE or coding.inner == "?",
        "bands of different types": len(set(bits)) > 1 or len(set(kinds)) > 1,
        f"{coding.bits} bits a sample": not _known_type(coding),
        "samples that are no real numbers": kinds[0] not in (1, 2, 3),
        f"predictor {coding.predictor}": coding.predictor not in _predictors(coding),
        "bits in reverse order": d.number(266, 1) == 2,
        f"photometric {coding.photometric}": not _known_photometric(coding),
        "no index of its tiles": not len(level.offsets),
        "a single block of more than 1 GiB": block > _LARGEST_BLOCK,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def _known_type(coding: Coding) -> bool:
    if coding.photometric == "MASK" and coding.bits == 1:
        return True
    return coding.bits == 8 * int(coding.dtype[2:]) and (coding.bits == 8 or coding.compression not in ("JPEG", "WEBP"))


def _predictors(coding: Coding) -> tuple[int, ...]:
    return (1, 3) if coding.dtype[1] == "f" else (1, 2)


def _known_photometric(coding: Coding) -> bool:
    if coding.photometric == "YCBCR":
        return coding.compression == "JPEG" and coding.samples == 3 and coding.interleave == "pixel"
    if coding.compression == "JPEG" and coding.samples_per_tile not in (1, 3, 4):
        return False
    return coding.photometric in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "MASK")
