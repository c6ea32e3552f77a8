"""Window: the pixels of a window become encoded tiles, at the full resolution and in the overviews inside it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import S2CompositeError, WriteError
from s2composite.metering import metered, tell
from s2composite.writing.codec import encode_mask
from s2composite.writing.raster import Raster
from s2composite.writing.statistics import Statistics, tile_statistics
from s2composite.writing.tiff import RECORD_OVERHEAD, tile_record

__all__ = [
    "TILE",
    "FilePart",
    "Stage",
    "WindowIndex",
    "WindowResult",
    "encode_files",
    "encode_window",
    "pixel_checksum",
]

TILE = np.dtype([("start", "u8"), ("size", "u4"), ("mask_size", "u4"), ("crc", "u4"), ("mask_crc", "u4")])
"""A tile: position of its record in the part, bytes of tile and mask, checksums of their decoded pixels."""

Chunks = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Stage:
    """Windows that make some successive levels; the next stage starts from the pixels they keep."""

    number: int
    """0 starts from the layers themselves."""

    first: int
    """First level that is made; the windows' pixels are at this resolution."""

    last: int
    """Last level that is made: all tiles up to it lie inside a single window."""

    chunks: Chunks
    """Heights of the rows of windows and widths of the columns, in pixels of the first level."""

    def window(self, row: int, column: int, level: int | None = None) -> tuple[slice, slice]:
        """Return the window in a row and column of windows, in pixels of `level`."""
        shift = 0 if level is None else level - self.first
        starts = (sum(self.chunks[0][:row]), sum(self.chunks[1][:column]))
        sizes = (self.chunks[0][row], self.chunks[1][column])
        scale = 1 << shift
        y, x = (slice(s // scale, s // scale + -(-n // scale)) for s, n in zip(starts, sizes, strict=True))
        return y, x

    def describe(self, row: int, column: int) -> str:
        """Return the window in words, in pixels of the full resolution."""
        y, x = self.window(row, column)
        scale = 1 << self.first
        return f"window y {y.start * scale}:{y.stop * scale}, x {x.start * scale}:{x.stop * scale}"


@dataclass(frozen=True, slots=True)
class WindowIndex:
    """What a window has written; small, and all that ever reaches the client."""

    position: tuple[int, int]
    """Row and column of the window in its stage."""

    part: str
    """Name of its part."""

    tiles: tuple[NDArray[Any], ...]
    """For each level of the stage the `TILE` of each tile ``(row, column)`` of the window."""

    statistics: tuple[tuple[Statistics, ...], ...] = ()
    """For each tile of the full resolution, row by row, those of each band."""

    data: bytes = b""
    """The part itself, where workers do not see the place for parts."""


@dataclass(frozen=True, slots=True)
class WindowResult:
    """Result of a window's task."""

    index: WindowIndex
    """What was written."""

    top: NDArray[Any] | None
    """Pixels ``(b, y, x)`` from which the next stage makes its levels."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """The part of a window in one file."""

    raster: Raster
    """The file."""

    stage: Stage
    """Whose window it is."""


def encode_files(
    blocks: Iterable[Sequence[NDArray[Any]]], files: Sequence[FilePart], position: tuple[int, int]
) -> tuple[WindowResult, ...]:
    """Encode a window of several files and store the parts; see `encode_window`.

    Parameters
    ----------
    blocks
        Layers of each file; consumed one after the other.
    """
    return tuple(encode_window(own, file.raster, file.stage, position) for own, file in zip(blocks, files, strict=True))


def encode_window(
    blocks: Sequence[NDArray[Any]], raster: Raster, stage: Stage, position: tuple[int, int]
) -> WindowResult:
    """Encode a window and store its part.

    Parameters
    ----------
    blocks
        The window of each layer, ``(b, y, x)`` or ``(y, x)``; for later stages the pixels of the stage before.
    position
        Row and column of the window.

    Raises
    ------
    WriteError
        Encoding or storing failed; names the window. More precise errors of the library pass unchanged.
    """
    where = stage.describe(*position)
    try:
        with metered("encode"):
            return _encode_window(_stacked(blocks, raster), raster, stage, position)
    except WriteError as error:
        raise WriteError(f"{raster.label}, {where}: {error}", **(error.__dict__ | {"window": where})) from error
    except S2CompositeError:
        raise
    except Exception as error:  # whatever an encoder raises
        message = f"{raster.label}, {where}: {type(error).__name__}: {error}"
        raise WriteError(message, window=where, path=raster.label) from error


def _stacked(blocks: Sequence[NDArray[Any]], raster: Raster) -> NDArray[Any]:
    """Return all layers as bands ``(b, y, x)`` in the dtype and with the nodata value of the file."""
    planes = [np.asarray(block) if block.ndim == 3 else np.asarray(block)[None] for block in blocks]
    if len(planes) == 1 and planes[0].dtype == raster.dtype:
        return planes[0]
    out, start = np.empty((len(raster.bands), *planes[0].shape[1:]), raster.dtype), 0
    for plane in planes:
        own, target = raster.bands[start].nodata, out[start : start + len(plane)]
        target[:] = plane
        if own is not None and raster.nodata is not None and own not in (raster.nodata, math.nan):
            target[plane == own] = raster.nodata
        start += len(plane)
    return out


def _encode_window(pixels: NDArray[Any], raster: Raster, stage: Stage, position: tuple[int, int]) -> WindowResult:
    records: list[bytes] = []
    tiles, statistics, start = [], [], 0
    for level in range(stage.first, stage.last + 1):
        if level > stage.first:
            pixels = raster.halved(pixels)
        rows, columns = (-(-n // raster.block) for n in pixels.shape[1:])
        index = np.zeros((rows, columns), TILE)
        for place, tile in zip(np.ndindex(rows, columns), _tiles(pixels, raster.block), strict=True):
            record, entry = _encode_tile(tile, raster, start)
            index[place] = entry
            records.append(record)
            start += len(record)
            if level == 0:
                statistics.append(tuple(tile_statistics(band, raster.nodata) for band in tile))
        tiles.append(index)
    name, data = f"{raster.token}_{stage.number}_{position[0]}_{position[1]}.part", b"".join(records)
    if not raster.parts.carried:
        with metered("store"):
            raster.parts.write(name, data)
        tell("store", len(data), "bytes")
    held = data if raster.parts.carried else b""
    top = raster.halved(pixels) if stage.last + 1 < len(raster.levels) else None
    return WindowResult(WindowIndex(position, name, tuple(tiles), tuple(statistics), held), top)


def _tiles(pixels: NDArray[Any], block: int) -> Iterator[NDArray[Any]]:
    """Yield the tiles ``(b, y, x)`` of a window row by row; those at the edge are smaller."""
    for y in range(0, pixels.shape[1], block):
        for x in range(0, pixels.shape[2], block):
            yield pixels[:, y : y + block, x : x + block]


def _encode_tile(tile: NDArray[Any], raster: Raster, start: int) -> tuple[bytes, tuple[int, ...]]:
    """Return the record of a tile, with that of its mask, and its `TILE`."""
    valid = raster.valid(tile) if raster.mask or raster.alpha else None
    whole = _padded(tile, raster.block)
    if raster.alpha:
        assert valid is not None
        whole = np.concatenate([whole, _padded(valid[None], raster.block) * raster.dtype.type(255)])
    interleaved = np.ascontiguousarray(whole.transpose(1, 2, 0))
    data = raster.codec.encode(interleaved)
    crc = pixel_checksum(raster.codec.decode(data) if raster.options.lossy else interleaved)
    if not raster.mask:
        return tile_record(data), (start, len(data), 0, crc, 0)
    assert valid is not None
    covered = _padded(valid[None], raster.block)[0]
    mask = encode_mask(covered)
    record = tile_record(data) + tile_record(mask)
    assert len(record) == len(data) + len(mask) + 2 * RECORD_OVERHEAD
    return record, (start, len(data), len(mask), crc, pixel_checksum(covered))


def _padded(tile: NDArray[Any], block: int) -> NDArray[Any]:
    """Repeat the last row and column up to the size of a tile: this compresses best, and does not ring in JPEG."""
    missing = [block - n for n in tile.shape[1:]]
    return np.pad(tile, ((0, 0), (0, missing[0]), (0, missing[1])), "edge") if any(missing) else tile


def pixel_checksum(pixels: NDArray[Any]) -> int:
    """Return the CRC-32 of decoded pixels."""
    return zlib.crc32(np.ascontiguousarray(pixels).view(np.uint8).data)
