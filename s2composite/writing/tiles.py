"""An output file before its pixels are known; a window's pixels as encoded tiles; the record of what is done."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.cube.graph import Chunks
from s2composite.errors import WriteError
from s2composite.geotiff.structure import Tag, tile_record
from s2composite.metrics import metered, record_value
from s2composite.storage.files import display, join
from s2composite.writing.encode import (
    Codec,
    Statistics,
    encode_mask,
    halve,
    level_shapes,
    tile_statistics,
    valid_pixels,
)
from s2composite.writing.options import RasterOptions
from s2composite.writing.staging import Parts, window_errors

__all__ = [
    "TILE",
    "Band",
    "Raster",
    "Stage",
    "StagedFile",
    "WindowIndex",
    "encode_files",
    "load_record",
    "pixel_checksum",
    "recorded_index",
]

_OVERVIEW_LIMIT = 512  # pixels into which the smallest overview fits; validators want overviews beyond that


@dataclass(frozen=True, slots=True)
class Band:
    """One band of a file."""

    name: str  # GDAL shows this as its description
    layer: str
    method: str  # how its overviews are made: ``average``, ``nearest`` or ``mode``
    nodata: float | None = None  # nodata value of the layer; that of the file may differ if layers disagree
    long_name: str = ""
    units: str = ""
    scale: float | None = None
    offset: float | None = None


@dataclass(frozen=True, eq=False)
class Raster:
    """One output file: what the workers, the assembler and the verification agree on."""

    bands: tuple[Band, ...]
    shape: tuple[int, int]  # ``(y, x)``
    dtype: np.dtype[Any]
    nodata: float | None
    geobox: GeoBox | None
    options: RasterOptions  # checked, with the predictor decided
    mask: bool = False  # whether missing pixels are marked in a mask instead of by nodata
    alpha: bool = False  # whether a last band is added, 255 where there is a value and 0 elsewhere
    tags: tuple[tuple[str, str], ...] = ()  # for GDAL's metadata
    geotags: tuple[Tag, ...] = ()  # transform and CRS, as tags
    path: str = ""  # final name: an absolute path or a URL
    token: str = ""  # different for each file and attempt: Dask must never take the tasks of an earlier one for done
    parts: Parts = field(default_factory=lambda: Parts(""))  # where encoded tiles lie until the file is assembled

    @property
    def label(self) -> str:
        """The final name as messages show it."""
        return display(self.path)

    @cached_property
    def block(self) -> int:
        """Side of a tile in pixels: smaller than asked for where the whole raster is."""
        return min(self.options.blocksize, -(-max(self.shape) // 16) * 16)

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the full resolution and each overview."""
        return level_shapes(self.shape, min(self.block, _OVERVIEW_LIMIT))

    @property
    def samples(self) -> int:
        """Number of bands in the file."""
        return len(self.bands) + self.alpha

    @cached_property
    def codec(self) -> Codec:
        """Encoder of tiles."""
        return Codec(self.options, (self.block, self.block, self.samples), self.dtype)

    def with_tags(self, more: Mapping[str, str]) -> Raster:
        """Return the file with further tags."""
        return replace(self, tags=tuple(sorted({**dict(self.tags), **more}.items())))

    def grid(self, level: int) -> tuple[int, int]:
        """Return the number of rows and columns of tiles of a level."""
        rows, columns = self.levels[level]
        return -(-rows // self.block), -(-columns // self.block)

    def halved(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return ``(b, y, x)`` at half the resolution, each band in its own way."""
        out, start = [], 0
        for method, run in groupby(band.method for band in self.bands):
            stop = start + len(list(run))
            out.append(halve(pixels[start:stop], method, self.nodata))
            start = stop
        return out[0] if len(out) == 1 else np.concatenate(out)

    def valid(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where any band of ``(b, y, x)`` has a value."""
        valid = valid_pixels(pixels, self.nodata)
        return np.ones(pixels.shape[1:], np.bool_) if valid is None else np.asarray(valid.any(axis=0))


# a tile: position of its record in the part, bytes of tile and mask, checksums of their decoded pixels
TILE = np.dtype([("start", "u8"), ("size", "u4"), ("mask_size", "u4"), ("crc", "u4"), ("mask_crc", "u4")])


@dataclass(frozen=True, slots=True)
class Stage:
    """Windows that make some successive levels; the next stage starts from the pixels they keep."""

    number: int  # 0 starts from the layers themselves
    first: int  # first level that is made; the windows' pixels are at this resolution
    last: int  # last level that is made: all tiles up to it lie inside a single window
    chunks: Chunks  # heights of the rows of windows and widths of the columns, in pixels of the first level

    @property
    def positions(self) -> Iterator[tuple[int, int]]:
        """Rows and columns of all windows, row by row."""
        yield from np.ndindex(len(self.chunks[0]), len(self.chunks[1]))

    def window(self, row: int, column: int, level: int | None = None) -> tuple[slice, slice]:
        """Return the window in a row and column of windows, in pixels of `level`."""
        starts = (sum(self.chunks[0][:row]), sum(self.chunks[1][:column]))
        sizes = (self.chunks[0][row], self.chunks[1][column])
        scale = 1 << (0 if level is None else level - self.first)
        y, x = (slice(s // scale, s // scale + -(-n // scale)) for s, n in zip(starts, sizes, strict=True))
        return y, x

    def describe(self, row: int, column: int) -> str:
        """Return the window in words, in pixels of the full resolution."""
        y, x = self.window(row, column)
        scale = 1 << self.first
        return f"window y {y.start * scale}:{y.stop * scale}, x {x.start * scale}:{x.stop * scale}"


@dataclass(frozen=True, eq=False)
class StagedFile:
    """A file, and the stages that make its levels."""

    number: int  # among those that are written together
    raster: Raster
    stages: tuple[Stage, ...]
    group: str = "all"  # the files whose windows are made by the same tasks, in the names of records

    def record(self, number: int, position: tuple[int, int]) -> str:
        """Return the name of the record of a window: one for all files of the group in the first stage, later its own.

        A window that has one is done.
        """
        return f"{self.number if number else self.group}_{number}_{position[0]}_{position[1]}.done"


@dataclass(frozen=True, slots=True)
class WindowIndex:
    """What a window has written to its part."""

    position: tuple[int, int]  # row and column of the window in its stage
    part: str  # name of its part

    # for each level of the stage the `TILE` of each tile ``(row, column)`` of the window
    tiles: tuple[NDArray[Any], ...]

    # for each tile of the full resolution, row by row, those of each band
    statistics: tuple[tuple[Statistics, ...], ...] = ()


def encode_files(
    files: Sequence[StagedFile],
    blocks: Iterable[Sequence[NDArray[Any]]],
    number: int,
    position: tuple[int, int],
    tables: Mapping[str, NDArray[Any]] | None = None,
    *,
    carry: bool = False,
) -> dict[str, bytes]:
    """Encode a window of a stage, file by file, store their parts and, last of all, the record of the window.

    `blocks` are the window of each file's layers, ``(b, y, x)`` or ``(y, x)``; for later stages the pixels that the one
    before has kept. `tables` are small arrays that are noted with it. With `carry` nothing is stored but returned, by
    name: where workers do not see the place, the client stores it.
    """
    parts, carried, noted = files[0].raster.parts, dict[str, bytes](), dict[str, NDArray[Any]]()
    for file, own in zip(files, blocks, strict=True):
        n, raster, stage = file.number, file.raster, file.stages[number]
        size = sum(block.nbytes for block in own)
        with window_errors(raster.label, stage.describe(*position), size), metered("encode"):
            index, data, top = encode_window(own, raster, stage, position)
            if carry:
                carried[index.part] = data
            else:
                with metered("store"):
                    parts.write(index.part, data)
                record_value("store", len(data), "bytes")
        noted |= {f"name_{n}": np.array(index.part), f"position_{n}": np.array(position)}
        noted |= {f"tiles_{n}_{level}": tiles for level, tiles in enumerate(index.tiles)}
        if index.statistics:
            # Integers up to 2**53 are exact in float64, and a tile has no more pixels than that.
            noted[f"statistics_{n}"] = np.array(index.statistics, np.float64)
        if top is not None:
            noted[f"top_{n}"] = top
    noted |= {f"table_{name}": table for name, table in (tables or {}).items()}
    name, record = files[0].record(number, position), _packed(noted)
    if carry:
        return {**carried, name: record}
    with window_errors(files[0].raster.label, files[0].stages[number].describe(*position), len(record)):
        parts.write(name, record)
    return {}


def encode_window(
    blocks: Sequence[NDArray[Any]], raster: Raster, stage: Stage, position: tuple[int, int]
) -> tuple[WindowIndex, bytes, NDArray[Any] | None]:
    """Return the part of a window, and the pixels ``(b, y, x)`` from which the next stage makes its levels.

    The part holds the tiles of all levels of the stage, row by row; those at the edge are filled up.
    """
    planes = [np.asarray(block) if block.ndim == 3 else np.asarray(block)[None] for block in blocks]
    pixels = planes[0]
    if len(planes) > 1 or pixels.dtype != raster.dtype:  # all in the dtype and with the nodata value of the file
        pixels = np.concatenate(planes, dtype=raster.dtype, casting="unsafe")
        owns = [band.nodata for band in raster.bands]
        for own, band, target in zip(owns, chain(*planes), pixels, strict=True):
            if own is not None and raster.nodata is not None and own not in (raster.nodata, math.nan):
                target[band == own] = raster.nodata
    records, tiles, statistics, start, block = list[bytes](), [], [], 0, raster.block
    for level in range(stage.first, stage.last + 1):
        if level > stage.first:
            pixels = raster.halved(pixels)
        index = np.zeros(tuple(-(-n // block) for n in pixels.shape[1:]), TILE)
        for row, column in np.ndindex(index.shape):
            tile = pixels[:, row * block : (row + 1) * block, column * block : (column + 1) * block]
            record, entry = _encode_tile(tile, raster, start)
            index[row, column] = entry
            records.append(record)
            start += len(record)
            if level == 0:
                statistics.append(tuple(tile_statistics(band, raster.nodata) for band in tile))
        tiles.append(index)
    name = f"{raster.token}_{stage.number}_{position[0]}_{position[1]}.part"
    top = raster.halved(pixels) if stage.last + 1 < len(raster.levels) else None
    return WindowIndex(position, name, tuple(tiles), tuple(statistics)), b"".join(records), top


def _encode_tile(tile: NDArray[Any], raster: Raster, start: int) -> tuple[bytes, tuple[int, ...]]:
    """Return the record of a tile, with that of its mask, and its `TILE`."""
    whole = _padded(tile, raster.block)
    if raster.alpha:
        opaque = _padded(raster.valid(tile)[None], raster.block) * raster.dtype.type(255)
        whole = np.concatenate([whole, opaque])
    interleaved = np.ascontiguousarray(whole.transpose(1, 2, 0))
    data = raster.codec.encode(interleaved)
    crc = pixel_checksum(raster.codec.decode(data) if raster.options.lossy else interleaved)
    if not raster.mask:
        return tile_record(data), (start, len(data), 0, crc, 0)
    covered = _padded(raster.valid(tile)[None], raster.block)[0]
    mask = encode_mask(covered)
    return tile_record(data) + tile_record(mask), (start, len(data), len(mask), crc, pixel_checksum(covered))


def _padded(tile: NDArray[Any], block: int) -> NDArray[Any]:
    """Repeat the last row and column up to the size of a tile: this compresses best, and does not ring in JPEG."""
    missing = [block - n for n in tile.shape[1:]]
    return np.pad(tile, ((0, 0), (0, missing[0]), (0, missing[1])), "edge") if any(missing) else tile


def pixel_checksum(pixels: NDArray[Any]) -> int:
    """Return the CRC-32 of decoded pixels."""
    return zlib.crc32(np.ascontiguousarray(pixels).view(np.uint8).data)


def recorded_index(record: Mapping[str, NDArray[Any]], number: int) -> WindowIndex:
    """Return what a window has written to its part of a file, from its record."""
    row, column = record[f"position_{number}"].tolist()
    tiles: list[NDArray[Any]] = []
    while (level := f"tiles_{number}_{len(tiles)}") in record:
        tiles.append(record[level].view(TILE))
    rows = record[f"statistics_{number}"].tolist() if f"statistics_{number}" in record else []
    statistics = tuple(tuple(Statistics(int(b[0]), int(b[1]), *b[2:]) for b in bands) for bands in rows)
    return WindowIndex((row, column), str(record[f"name_{number}"]), tuple(tiles), statistics)


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays as bytes: their checksum, a line of JSON with the dtype and shape of each, and their values."""
    # Not NumPy's own format: its headers are Python, which CPython 3.11 sometimes fails to parse in several threads.
    head = json.dumps({name: (array.dtype.str, array.shape) for name, array in arrays.items()}).encode()
    body = b"".join([head, b"\n", *(array.tobytes() for array in arrays.values())])
    return struct.pack("<I", zlib.crc32(body)) + body


def load_record(parts: Parts, name: str) -> Mapping[str, NDArray[Any]]:
    """Return what is noted of a window, as arrays; raises a WriteError if that is gone or damaged."""
    data, where = parts.read(name), display(join(parts.root, name))
    if data[:4] != struct.pack("<I", zlib.crc32(memoryview(data)[4:])):
        raise WriteError(f"{where}: the record of a window is damaged; remove it and resume")
    start = data.index(b"\n", 4) + 1
    arrays: dict[str, NDArray[Any]] = {}
    for key, (dtype, shape) in json.loads(data[4:start]).items():
        arrays[key] = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        start += arrays[key].nbytes
    return arrays
