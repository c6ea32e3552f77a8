"""The TIFF format: directories and tags, read and written; the tiles of a resolution; georeferences.

What is written has the layout of GDAL's COG driver: a tile is stored as its size in 4 bytes, the tile, its last 4 bytes
again. The ghost area after the TIFF header says so, and lets GDAL read a tile without fetching the table of sizes.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio import crs as rasterio_crs
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from s2composite.errors import SceneError
from s2composite.storage.files import display
from s2composite.storage.http import Identity, Sign, read_head, read_range

__all__ = [
    "CLASSIC_LIMIT",
    "FRAME",
    "GEO_TAGS",
    "RECORD_OVERHEAD",
    "RPC",
    "TIEPOINT",
    "BloscBlocks",
    "Coding",
    "Directory",
    "GridKey",
    "Level",
    "Objects",
    "RawTag",
    "Tag",
    "Tiff",
    "TileDirectory",
    "broken",
    "build_header",
    "coding",
    "crs_from_wkt",
    "geobox_from_tags",
    "grid_key",
    "level_of",
    "open_tiff",
    "pack",
    "same_geobox",
    "tile_record",
    "unpack",
    "why_undecodable",
]  # fmt: skip

_SCALE, TIEPOINT, _MATRIX = 33550, 33922, 34264
GEO_TAGS = frozenset({_SCALE, TIEPOINT, _MATRIX, 34735, 34736, 34737})  # tags that say where the pixels are

# (tag, type, count, value) as they are in the file, in the file's byte order
RawTag: TypeAlias = tuple[int, int, int, bytes]

GridKey: TypeAlias = tuple[tuple[int, int], Affine, str | None]  # shape (y, x), transform and CRS of a geobox


@lru_cache(4096)
def same_geobox(shape: tuple[int, int], transform: Affine, crs: CRS | str | None) -> GeoBox:
    """Return a geobox, for equal arguments the same object."""
    return GeoBox(shape, transform, crs)


def grid_key(geobox: GeoBox) -> GridKey:
    """Return the arguments of `same_geobox` for a geobox, as keys: pyproj takes 50 µs to hash a CRS, each time."""
    crs = None if geobox.crs is None else str(geobox.crs)
    return (geobox.shape.y, geobox.shape.x), geobox.transform, crs


@lru_cache(4096)
def geobox_from_tags(tags: tuple[RawTag, ...], order: str, shape: tuple[int, int]) -> GeoBox:
    """Return the geobox that GeoTIFF tags describe: GDAL's own reading of them, so exactly what rasterio says.

    It reads them in a TIFF of one pixel: 1 ms, against 0.1 ms for the rest of a header. Equal arguments give the same
    object, so that a pickled tuple of headers holds it once.
    """
    if not tags:
        return same_geobox(shape, Affine.identity(), None)
    known = {tag: value for tag, _, _, value in tags}
    placed = _MATRIX in known or (_SCALE in known and TIEPOINT in known)
    if not placed:  # a CRS alone, or ground control points: GDAL warns of a file without geotransform
        matrix = (1.0, 0, 0, 1, 0, -1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1)
        unit = (_MATRIX, 12, 16, struct.pack(f"{order}16d", *matrix))
        tags = (*(t for t in tags if t[0] not in (_SCALE, TIEPOINT)), unit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # of damaged tags, which are none then
        # of one pixel of 8 bits in the first 8 bytes after the header, so that the directory begins after them
        plain = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
        tags += tuple((tag, SHORT, 1, struct.pack(f"{order}H", value)) for tag, value in plain.items())
        head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI8x", 42, 16)
        with MemoryFile(head + _encoded(tags, 16, order), ext=".tif") as memory, memory.open() as dataset:
            crs = crs_from_wkt(dataset.crs.to_wkt()) if dataset.crs else None
            return same_geobox(shape, dataset.transform if placed else Affine.identity(), crs)


@lru_cache(256)
def crs_from_wkt(wkt: str) -> CRS:
    """Return the CRS of GDAL's WKT, by its EPSG code if it is that code's definition: equal codes compare fast."""
    crs = rasterio_crs.CRS.from_wkt(wkt)
    code = crs.to_epsg()
    return CRS(f"EPSG:{code}") if code and rasterio_crs.CRS.from_epsg(code) == crs else CRS(wkt)


Value: TypeAlias = "bytes | tuple[Any, ...] | NDArray[np.uint64]"

_OFFSETS = {273, 279, 324, 325}  # offsets and byte counts of strips and tiles: arrays, for they are long

RPC = 50844  # tag of rational polynomial coefficients
_WANTED = GEO_TAGS | _OFFSETS | {254, 256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 322, 323, 338, 339, 347}
_WANTED |= {42112, 42113, 50674, RPC}  # GDAL's metadata and nodata, LERC's parameters

_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_FORMATS |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {kind: struct.calcsize("=" + code) for kind, code in _FORMATS.items()}
_BYTES = (1, 2, 7)
_WHOLE = (1, 3, 4, 6, 8, 9, 13, 16, 17, 18)  # types of whole numbers, any of which an offset or a byte count may have

_MORE = 1 << 14  # least number of bytes read beyond the first ones: what is wanted next lies beside what is wanted now

_MOST_DIRECTORIES = 4096  # A chain longer than this is a loop or no raster of ours

# bytes of a header, which is held in memory: 16 million tiles; a server may claim any number and send them
_LARGEST_HEADER = 256 << 20


@dataclass(frozen=True, slots=True)
class Directory:
    """One image file directory."""

    # values of the tags that matter here: text as bytes, offsets and byte counts as arrays, others as tuples
    values: Mapping[int, Value]
    geo: tuple[RawTag, ...]  # the tags of `GEO_TAGS` as they are in the file

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

    order: str  # byte order, "<" or ">"
    directories: tuple[Directory, ...]  # in file order
    notes: str  # GDAL's structural metadata between the header and the first directory; empty where there is none


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
    """Return the directories of a TIFF, or None where the file is something else, and the file's identity."""
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
    ghost = head[16 if version == 43 else 8 :]
    size = int(ghost[30:36]) if ghost[30:36].isdigit() else 0
    framed = ghost.startswith(b"GDAL_STRUCTURAL_METADATA_SIZE=")
    notes = ghost[43 : 43 + size].decode("ascii", "replace") if framed else ""
    return Tiff(order, directories, notes), identity


def _directories(file: _File, order: str, *, big: bool) -> Iterator[Directory]:
    if big and struct.unpack(order + "HH", file.get(4, 4)) != (8, 0):
        raise broken(file.href, "it is a BigTIFF whose offsets do not have 8 bytes")
    count_code, entry_code, pointer = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    head, entry_size, space = (struct.calcsize("=" + code) for code in (count_code, entry_code, pointer))
    (start,) = struct.unpack(order + pointer, file.get(8 if big else 4, space))
    starts: set[int] = set()
    while start:
        if start in starts or len(starts) > _MOST_DIRECTORIES:
            raise broken(file.href, "its directories form a loop")
        starts.add(start)
        (count,) = struct.unpack(order + count_code, file.get(start, head))
        table = file.get(start + head, count * entry_size + space)
        yield _directory(file, struct.iter_unpack(order + entry_code, table[:-space]), order)
        (start,) = struct.unpack(order + pointer, table[-space:])


def _directory(file: _File, entries: Iterable[tuple[int, int, int, bytes]], order: str) -> Directory:
    values: dict[int, Value] = {}
    geo: list[RawTag] = []
    seen: set[int] = set()
    for tag, kind, items, field_ in entries:
        if tag not in _WANTED or tag in seen or kind not in _FORMATS or not items:
            continue
        seen.add(tag)  # of a tag that is there twice the first counts, as in libtiff
        size = items * _SIZES[kind]
        if size <= len(field_):
            raw = field_[:size]
        else:
            raw = file.get(struct.unpack(order + ("Q" if len(field_) == 8 else "I"), field_)[0], size)
        if tag in GEO_TAGS:
            geo.append((tag, kind, items, raw))
        elif tag in _OFFSETS:
            if kind not in _WHOLE:
                raise ValueError(f"offsets or byte counts of type {kind}")
            values[tag] = np.frombuffer(raw, np.dtype(order + _FORMATS[kind])).astype(np.uint64)
        elif kind in _BYTES:
            values[tag] = raw
        else:
            code = _FORMATS[kind]
            values[tag] = struct.unpack(f"{order}{items * len(code)}{code[0]}", raw)
    return Directory(values, tuple(geo))


_COMPRESSIONS = {
    1: "NONE", 5: "LZW", 6: "OLD-JPEG", 7: "JPEG", 8: "DEFLATE", 32773: "PACKBITS", 32946: "DEFLATE", 34887: "LERC",
    34925: "LZMA", 50000: "ZSTD", 50001: "WEBP", 50002: "JXL", 52546: "JXL",
}  # fmt: skip
_DECODABLE = ("NONE", "LZW", "JPEG", "DEFLATE", "PACKBITS", "LERC", "LZMA", "ZSTD", "WEBP")
_PREDICTED = ("LZW", "DEFLATE", "LZMA", "ZSTD")  # compressions that heed the predictor

_PHOTOMETRICS = {
    0: "MINISWHITE", 1: "MINISBLACK", 2: "RGB", 3: "PALETTE", 4: "MASK", 5: "CMYK", 6: "YCBCR", 8: "CIELAB",
}  # fmt: skip
# bytes of a decoded tile; more is a damaged header, or one strip for a whole raster, which GDAL reads by rows
_LARGEST_BLOCK = 1 << 30

# pixels on a side, which is GDAL's limit; bands, which is libtiff's (SamplesPerPixel is a number of 16 bits)
_LARGEST_SIDE, _MOST_BANDS = (1 << 31) - 1, (1 << 16) - 1

# bytes before each tile that hold its size, and after it that repeat its last ones, in files of GDAL's COG driver
FRAME = 4

_LERC_CODECS = {0: "", 1: "DEFLATE", 2: "ZSTD"}


@dataclass(frozen=True, slots=True)
class Coding:
    """How the tiles of a level are encoded."""

    compression: str  # GDAL's word: "JPEG", "DEFLATE", "NONE" ..
    predictor: int  # 1 none, 2 horizontal differences, 3 floating point
    photometric: str  # TIFF's word: "RGB", "YCBCR", "MINISBLACK" ..
    interleave: Literal["pixel", "band"]  # whether a tile holds all bands or one
    samples: int  # bands in the file
    dtype: str  # of a sample in the file, with its byte order: "<u2"
    bits: int  # bits of a sample; 1 in masks
    tables: bytes = b""  # JPEG tables that all tiles share, or empty
    inner: str = ""  # compression of the data inside LERC: "DEFLATE", "ZSTD" or empty

    @property
    def planes(self) -> int:
        """Tiles that hold one place: the number of bands if each has its own, else 1."""
        return self.samples if self.interleave == "band" else 1

    @property
    def samples_per_tile(self) -> int:
        """Bands in a tile."""
        return 1 if self.interleave == "band" else self.samples


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The objects of a Zarr store that hold the tiles of an array: its shards, or its chunks."""

    hrefs: tuple[str, ...]
    identities: tuple[Identity | None, ...]  # None: not opened yet; one that is not there has the value `fill`
    of_tile: NDArray[np.uint32] = field(repr=False)  # (rows * columns,): which object holds it
    fill: float  # of pixels in a chunk that is not there
    # where the blocks of each object are, if its tiles are rows of a Blosc chunk; empty: a tile is decoded whole
    blosc: tuple[BloscBlocks | None, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class BloscBlocks:
    """Where the blocks of a Blosc chunk are: each is compressed by itself."""

    head: bytes  # the first four of a chunk's bytes: versions, flags, size of a number
    size: int  # bytes of the chunk when decoded
    block: int  # bytes of a block when decoded; the last may have fewer
    starts: NDArray[np.int64] = field(repr=False)  # (blocks,): first byte of each in the object
    stops: NDArray[np.int64] = field(repr=False)  # (blocks,): byte after the last

    def holding(self, first: int, last: int) -> slice:
        """Return the blocks that hold the decoded bytes from `first` to before `last`."""
        blocks = slice(first // self.block, -(-last // self.block))
        # c-blosc decodes a shorter block only behind a whole one
        short = blocks.start == len(self.starts) - 1 and self.size % self.block
        return slice(max(blocks.start - 1, 0), blocks.stop) if short else blocks


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One resolution of a raster and where its tiles are."""

    shape: tuple[int, int]  # (y, x) in pixels
    block: tuple[int, int]  # (y, x) of a tile; strips are tiles as wide as the raster
    tiled: bool  # whether blocks are tiles, all of one size, or strips, the last of which may have fewer rows
    coding: Coding  # how the tiles are encoded
    # (planes * rows * columns,) first byte of each tile; empty where only GDAL can read the file
    offsets: NDArray[np.uint64] = field(repr=False)
    # (planes * rows * columns,) bytes of each tile; 0: sparse, all nodata
    counts: NDArray[np.uint64] = field(repr=False)
    objects: Objects | None = field(default=None, repr=False)  # where tiles are; None: in the header's own file

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def block_bytes(self) -> int:
        """Bytes of a block when decoded."""
        return self.block[0] * self.block[1] * self.coding.samples_per_tile * np.dtype(self.coding.dtype).itemsize

    def __reduce__(self) -> tuple[Any, ...]:
        packed = pack(self.offsets, self.counts)
        return unpack, (self.shape, self.block, self.tiled, self.coding, packed, self.objects)


def pack(offsets: NDArray[np.uint64], counts: NDArray[np.uint64]) -> bytes:
    """Return the index in little more than the byte counts' entropy: most tiles begin where the one before ends."""
    gaps = np.diff(offsets - _before(counts), prepend=np.uint64(0))
    return zlib.compress(np.stack([gaps, counts]).view(np.uint8).reshape(-1, 8).T.tobytes(), 6)


def unpack(
    shape: tuple[int, int],
    block: tuple[int, int],
    tiled: bool,
    coding: Coding,
    packed: bytes,
    objects: Objects | None = None,
) -> Level:
    """Return the level whose index was packed."""
    shuffled = np.frombuffer(zlib.decompress(packed), np.uint8)
    columns = np.ascontiguousarray(shuffled.reshape(8, shuffled.size // 8).T)
    gaps, counts = columns.view(np.uint64).reshape(2, shuffled.size // 16)
    return Level(shape, block, tiled, coding, np.cumsum(gaps) + _before(counts), counts, objects)


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
    compression = _COMPRESSIONS.get(d.number(259, 1), f"compression {d.number(259, 1)}")
    kind, bits, lerc = d.number(339, 1), d.number(258, 1), d.numbers(50674)
    # the type of a sample; of odd ones the next larger, in which GDAL returns them
    size = next((size for size in (8, 16, 32, 64) if bits <= size), 64)
    dtype = f"{order}{'f' if kind == 3 else 'i' if kind == 2 else 'u'}{max(size, 32 if kind == 3 else 8) // 8}"
    if kind in (5, 6):  # complex integers, too, are complex floats in NumPy
        dtype = f"{order}c{8 if bits <= 64 and (kind, bits) != (5, 64) else 16}"
    how = coding(
        compression=compression,
        predictor=d.number(317, 1) if compression in _PREDICTED else 1,
        photometric=_PHOTOMETRICS.get(d.number(262), "OTHER"),
        interleave="band" if d.number(284, 1) == 2 and d.number(277, 1) > 1 else "pixel",
        samples=d.number(277, 1),
        dtype=dtype,
        bits=bits,
        tables=bytes(d.values.get(347, b"")),
        inner=_LERC_CODECS.get(lerc[1], "?") if len(lerc) > 1 else "",
    )
    level = Level(shape, block, tiled, how, offsets, counts)
    tiles = level.grid[0] * level.grid[1] * level.coding.planes
    if len(offsets) < tiles and level.coding.compression != "OLD-JPEG":  # which may have its own way to say where it is
        raise ValueError(f"{len(offsets)} tiles or strips, where its size needs {tiles}")
    return level if len(offsets) == len(counts) == tiles else replace(level, offsets=empty, counts=empty)


@lru_cache(1024)
def coding(**fields: Any) -> Coding:
    """Return the same object for equal files, so that a pickled tuple of headers holds their JPEG tables once."""
    return Coding(**fields)


def why_undecodable(level: Level, directory: Directory) -> str:
    """Return why only GDAL can read the tiles of a level; empty if they can be decoded here."""
    coding, d = level.coding, directory
    bits, kinds = d.numbers(258) or (1,), d.numbers(339) or (1,)
    block = level.block[0] * level.block[1] * coding.samples_per_tile * np.dtype("u8").itemsize
    jpeg = coding.compression == "JPEG"
    whole = coding.bits == 8 * int(coding.dtype[2:]) and (
        coding.bits == 8 or not (jpeg or coding.compression == "WEBP")
    )
    if coding.photometric == "YCBCR":
        known_colours = jpeg and coding.samples == 3 and coding.interleave == "pixel"
    else:
        known_colours = coding.photometric in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "MASK")
        known_colours = known_colours and not (jpeg and coding.samples_per_tile not in (1, 3, 4))
    reasons = {
        f"{coding.compression} compression": coding.compression not in _DECODABLE or coding.inner == "?",
        "bands of different types": len(set(bits)) > 1 or len(set(kinds)) > 1,
        f"{coding.bits} bits a sample": not (whole or (coding.photometric == "MASK" and coding.bits == 1)),
        "samples that are no real numbers": kinds[0] not in (1, 2, 3),
        f"predictor {coding.predictor}": coding.predictor not in ((1, 3) if coding.dtype[1] == "f" else (1, 2)),
        "bits in reverse order": d.number(266, 1) == 2,
        f"photometric {coding.photometric}": not known_colours,
        "no index of its tiles": not len(level.offsets),
        "a single block of more than 1 GiB": block > _LARGEST_BLOCK,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


CLASSIC_LIMIT = 2**32 - 2**16  # bytes beyond which offsets no longer fit a classic TIFF, with some to spare

RECORD_OVERHEAD = 2 * FRAME  # bytes around each stored tile

SHORT, LONG, DOUBLE, ASCII, LONG8 = 3, 4, 12, 2, 16
_CODES = {SHORT: "H", LONG: "I", DOUBLE: "d", LONG8: "Q"}

_TILE_OFFSETS, _TILE_COUNTS = 324, 325


@dataclass(frozen=True, slots=True)
class Tag:
    """An entry of a TIFF directory."""

    code: int  # number of the tag
    kind: int  # TIFF field type: 2 ASCII, 3 SHORT, 4 LONG, 12 DOUBLE, 16 LONG8
    values: Any  # text for ASCII, else numbers

    def payload(self) -> tuple[int, bytes]:
        """Return the number of values and their bytes, little endian."""
        if self.kind == ASCII:
            data = self.values.encode() + b"\0"
            return len(data), data
        values = np.atleast_1d(np.asarray(self.values))
        return values.size, values.astype("<" + _CODES[self.kind]).tobytes()


@dataclass(frozen=True, slots=True)
class TileDirectory:
    """One image of the file: the full resolution, an overview, or the mask of one of them."""

    tags: tuple[Tag, ...]  # all but the offsets and sizes of tiles
    offsets: NDArray[np.uint64]  # position of each tile in the file, row by row, in bytes
    counts: NDArray[np.uint64]  # size of each tile in bytes, row by row


def tile_record(data: bytes) -> bytes:
    r"""Return a tile as it lies in the file.

    >>> tile_record(b"abcdef")
    b'\x06\x00\x00\x00abcdefcdef'
    """
    return struct.pack("<I", len(data)) + data + data[-4:].rjust(4, b"\0")


def build_header(directories: Sequence[TileDirectory], *, big: bool, mask: bool) -> bytes:
    """Return everything that stands before the first tile."""
    # The blank after NO lets a later editor write YES.
    text = (
        "LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
        "BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
    ) + ("MASK_INTERLEAVED_WITH_IMAGERY=YES\n" if mask else "")
    ghost = f"GDAL_STRUCTURAL_METADATA_SIZE={len(text):06d} bytes\n{text}".encode()
    start = (16 if big else 8) + len(ghost)
    start += -start % 8
    first = struct.pack("<2sHHHQ", b"II", 43, 8, 0, start) if big else struct.pack("<2sHI", b"II", 42, start)
    parts = [(first + ghost).ljust(start, b"\0")]
    position = start
    for i, directory in enumerate(directories):
        offsets = Tag(_TILE_OFFSETS, LONG8 if big else LONG, directory.offsets)
        tags = (*directory.tags, offsets, Tag(_TILE_COUNTS, LONG, directory.counts))
        entries = [(tag.code, tag.kind, *tag.payload()) for tag in tags]
        parts.append(_encoded(entries, position, "<", big=big, last=i == len(directories) - 1))
        position += len(parts[-1])
    return b"".join(parts)


def _encoded(tags: Iterable[RawTag], position: int, order: str, *, big: bool = False, last: bool = True) -> bytes:
    """Return a directory that starts at `position`, followed by those of its values that do not fit into it."""
    tags = sorted(tags)
    count, entry, pointer = (order + code for code in (("Q", "HHQ", "Q") if big else ("H", "HHI", "I")))
    space = struct.calcsize(pointer)
    body = struct.calcsize(count) + len(tags) * (struct.calcsize(entry) + space) + struct.calcsize(pointer)
    overflow = position + body + (-(position + body) % 8)
    out, values = [struct.pack(count, len(tags))], b""
    for code, kind, number, data in tags:
        out.append(struct.pack(entry, code, kind, number))
        if len(data) <= space:
            out.append(data.ljust(space, b"\0"))
        else:
            out.append(struct.pack(pointer, overflow + len(values)))
            values += data + b"\0" * (-len(data) % 8)
    out.append(struct.pack(pointer, 0 if last else overflow + len(values)))
    return b"".join(out).ljust(overflow - position, b"\0") + values
