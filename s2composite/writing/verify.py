"""Verify: a file is read back and compared with what the workers made, before it takes its final name."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile

from s2composite.errors import WriteError
from s2composite.writing.assemble import FileLayout, Run, in_order
from s2composite.writing.codec import decode_mask
from s2composite.writing.tiff import RECORD_OVERHEAD
from s2composite.writing.window import pixel_checksum

__all__ = ["check_header", "check_run", "verify_file"]


def verify_file(layout: FileLayout, path: str) -> None:
    """Read back a finished file: its size, its directories, and the decoded pixels of every tile.

    Raises
    ------
    WriteError
        Something differs from what the workers made; names the tile.
    """
    size = Path(path).stat().st_size
    if size != layout.size:
        raise WriteError(f"{layout.raster.label}: {size:,} bytes were written instead of {layout.size:,}")
    with Path(path).open("rb") as file:
        if file.read(len(layout.header)) != layout.header:
            raise WriteError(f"{layout.raster.label}: the header reads differently from what was written")

        def check(run: Run) -> None:
            check_run(layout, run, os.pread(file.fileno(), run.size, layout.offset(run)))

        for _ in in_order(check, layout.runs, threads=min(os.cpu_count() or 1, 8)):
            pass
    with rasterio.open(path) as source:
        _compare(layout, source)


def check_header(layout: FileLayout) -> None:
    """Let GDAL read the header of a file that is about to be written.

    Raises
    ------
    WriteError
        GDAL reads something else than was meant.
    """
    try:
        with MemoryFile(layout.header) as memory, memory.open() as source:
            _compare(layout, source)
    except RasterioError as error:
        raise WriteError(f"{layout.raster.label}: GDAL cannot read the header: {error}") from error


def _compare(layout: FileLayout, source: DatasetReader) -> None:
    for what, seen, meant in _facts(layout, source):
        if seen != meant:
            raise WriteError(f"{layout.raster.label}: GDAL reads the {what} as {seen}, not {meant}")


def _facts(layout: FileLayout, source: DatasetReader) -> Iterator[tuple[str, Any, Any]]:
    raster = layout.raster
    yield "size", source.shape, raster.shape
    yield "dtype", set(source.dtypes), {raster.dtype.name}
    yield "number of bands", source.count, raster.samples
    yield "blocks", set(source.block_shapes), {(raster.block, raster.block)}
    yield "number of overviews", len(source.overviews(1)), len(raster.levels) - 1
    if raster.geobox is not None:
        yield "transform", source.transform.almost_equals(raster.geobox.transform, 1e-9), True
    if not (raster.mask or raster.alpha):
        yield "nodata value", str(source.nodata), str(None if raster.nodata is None else float(raster.nodata))


def check_run(layout: FileLayout, run: Run, data: bytes) -> None:
    """Decode the tiles of a run and compare their pixels with the checksums of those that the workers encoded.

    Raises
    ------
    WriteError
        A tile is damaged; names it.
    """
    raster, position = layout.raster, 0
    for column in range(*run.columns):
        tile = layout.tiles[run.level][run.row, column]
        where = f"{raster.label}: tile row {run.row} column {column} of level {run.level}"
        image, position = _record(data, position, int(tile["size"]), where)
        _check_pixels(raster.codec.decode, image, int(tile["crc"]), where)
        if raster.mask:
            mask, position = _record(data, position, int(tile["mask_size"]), f"{where} of the mask")
            _check_pixels(lambda m: decode_mask(m, (raster.block, raster.block)), mask, int(tile["mask_crc"]), where)


def _record(data: bytes, position: int, size: int, where: str) -> tuple[bytes, int]:
    """Return the tile in the record at `position`, and where the next record starts."""
    stop = position + size + RECORD_OVERHEAD
    body = data[position + 4 : stop - 4]
    sizes = struct.unpack_from("<I", data, position) if len(data) >= stop else (-1,)
    if sizes[0] != size or data[stop - 4 : stop] != body[-4:].rjust(4, b"\0"):
        raise WriteError(f"{where} is damaged: the size before it or the bytes repeated after it differ")
    return body, stop


def _check_pixels(decode: Any, data: bytes, crc: int, where: str) -> None:
    try:
        pixels = decode(data)
    except Exception as error:  # whatever a decoder raises
        raise WriteError(f"{where} cannot be decoded: {type(error).__name__}: {error}") from error
    if pixel_checksum(np.asarray(pixels)) != crc:
        raise WriteError(f"{where} is damaged: its pixels are not those that were computed")
