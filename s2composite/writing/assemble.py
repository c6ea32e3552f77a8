"""Encoded tiles become one file, in one pass from first byte to last, verified before it takes its name."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio
import tifffile
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile

from s2composite.errors import GridError, WriteError
from s2composite.geotiff.structure import (
    ASCII,
    CLASSIC_LIMIT,
    LONG,
    RECORD_OVERHEAD,
    SHORT,
    Tag,
    TileDirectory,
    build_header,
)
from s2composite.writing.encode import Statistics, decode_mask, merge
from s2composite.writing.tiles import TILE, Band, Raster, Stage, WindowIndex, pixel_checksum

__all__ = [
    "FileLayout",
    "Run",
    "Sink",
    "check_header",
    "check_run",
    "copy_parts",
    "directories",
    "geo_tags",
    "in_order",
    "lay_out",
    "metadata_tag",
    "nodata_tag",
    "verify_file",
]

_GEO_CODES = (33550, 33922, 34264, 34735, 34736, 34737)
_METADATA, _NODATA = 42112, 42113


def geo_tags(geobox: GeoBox | None) -> tuple[Tag, ...]:
    """Return the tags that hold the transform and the CRS of a geobox, as GDAL writes them.

    Raises
    ------
    GridError
        The CRS cannot be expressed in a GeoTIFF.
    """
    if geobox is None:
        return ()
    crs = None if geobox.crs is None else rasterio.crs.CRS.from_wkt(geobox.crs.to_wkt())
    profile = {"driver": "GTiff", "width": 1, "height": 1, "count": 1, "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(**profile, crs=crs, transform=geobox.transform):
            pass
        with memory.open() as back:
            if crs is not None and back.crs is None:
                raise GridError(f"a GeoTIFF cannot express the CRS {str(geobox.crs)[:200]}; reproject to another")
        return _copied(memory.read())


def _copied(data: bytes) -> tuple[Tag, ...]:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        tags = tiff.pages[0].tags
        return tuple(Tag(code, int(tags[code].dtype), _values(tags[code].value)) for code in _GEO_CODES if code in tags)


def _values(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(value)


def nodata_tag(nodata: float | None) -> tuple[Tag, ...]:
    """Return the tag of the nodata value, if there is one."""
    return () if nodata is None else (Tag(_NODATA, ASCII, _number(nodata)),)


def _number(value: float) -> str:
    if math.isnan(value):
        return "nan"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def metadata_tag(facts: Mapping[str, str], bands: Sequence[Band], statistics: Sequence[Statistics]) -> Tag:
    """Return the tag with GDAL's XML: facts of the file, names, units, scales and statistics of its bands."""
    items = [_item(name, value) for name, value in sorted(facts.items())]
    for sample, (band, statistic) in enumerate(zip(bands, statistics, strict=True)):
        items += _band_items(sample, band)
        items += [_item(name, value, sample=sample) for name, value in _figures(statistic)]
    return Tag(_METADATA, ASCII, "<GDALMetadata>\n" + "".join(items) + "</GDALMetadata>")


def _band_items(sample: int, band: Band) -> Iterator[str]:
    yield _item("DESCRIPTION", band.name, sample=sample, role="description")
    if band.long_name:
        yield _item("LONG_NAME", band.long_name, sample=sample)
    if band.units:
        yield _item("UNITTYPE", band.units, sample=sample, role="unittype")
    for name, value in (("SCALE", band.scale), ("OFFSET", band.offset)):
        if value is not None:
            yield _item(name, repr(float(value)), sample=sample, role=name.lower())


def _figures(statistic: Statistics) -> Iterator[tuple[str, str]]:
    if statistic.valid:
        yield "STATISTICS_MAXIMUM", repr(statistic.maximum)
        yield "STATISTICS_MEAN", repr(statistic.mean)
        yield "STATISTICS_MINIMUM", repr(statistic.minimum)
        yield "STATISTICS_STDDEV", repr(statistic.deviation)
    yield "STATISTICS_VALID_PERCENT", f"{100 * statistic.valid / max(statistic.pixels, 1):.4g}"


def _item(name: str, value: str, **attributes: Any) -> str:
    # GDAL escapes values twice, and undoes it twice when it reads them.
    more = "".join(f" {key}={quoteattr(str(v))}" for key, v in attributes.items())
    return f"  <Item name={quoteattr(name)}{more}>{escape(escape(value))}</Item>\n"


_COMPRESSION = {"none": 1, "lzw": 5, "jpeg": 7, "deflate": 8, "zstd": 50000, "webp": 50001}
_SAMPLE_FORMAT = {"u": 1, "i": 2, "f": 3}
_OVERVIEW, _MASK = 1, 4
_GRAY, _RGB, _TRANSPARENCY, _YCBCR = 1, 2, 4, 6
_UNSPECIFIED, _ALPHA = 0, 2


def directories(
    raster: Raster,
    tiles: Sequence[NDArray[Any]],
    offsets: Sequence[NDArray[np.uint64]],
    statistics: Sequence[Statistics],
) -> tuple[TileDirectory, ...]:
    """Return the directories of a file.

    Parameters
    ----------
    tiles
        For each level the sizes of its tiles, fields ``size`` and ``mask_size``.
    offsets
        For each level the positions of the tiles' records in the file, in bytes.
    statistics
        Of each band.
    """
    described = (*raster.geotags, metadata_tag(dict(raster.tags), raster.bands, statistics))
    out: list[TileDirectory] = []
    for level, (index, start) in enumerate(zip(tiles, offsets, strict=True)):
        tags = _image_tags(raster, level) + (described if level == 0 else ())
        positions, sizes = start + np.uint64(RECORD_OVERHEAD // 2), index["size"].astype(np.uint64)
        out.append(TileDirectory(tags, positions.ravel(), sizes.ravel()))
        if raster.mask:
            positions = positions + sizes + np.uint64(RECORD_OVERHEAD)
            out.append(
                TileDirectory(
                    _mask_tags(raster, level), positions.ravel(), index["mask_size"].astype(np.uint64).ravel()
                )
            )
    return tuple(out)


def _common_tags(raster: Raster, level: int, kind: int) -> tuple[Tag, ...]:
    rows, columns = raster.levels[level]
    return (
        Tag(254, LONG, kind | (_OVERVIEW if level else 0)),
        Tag(256, LONG, columns),
        Tag(257, LONG, rows),
        Tag(284, SHORT, 1),
        Tag(322, SHORT, raster.block),
        Tag(323, SHORT, raster.block),
    )


def _image_tags(raster: Raster, level: int) -> tuple[Tag, ...]:
    samples, options = raster.samples, raster.options
    photometric, extra = _colours(raster)
    tags = (
        Tag(258, SHORT, (raster.dtype.itemsize * 8,) * samples),
        Tag(259, SHORT, _COMPRESSION[options.compress]),
        Tag(262, SHORT, photometric),
        Tag(277, SHORT, samples),
        Tag(339, SHORT, (_SAMPLE_FORMAT[raster.dtype.kind],) * samples),
        *nodata_tag(None if raster.mask or raster.alpha else raster.nodata),
    )
    if options.predictor != 1:
        tags += (Tag(317, SHORT, options.predictor),)
    if extra:
        tags += (Tag(338, SHORT, extra),)
    if photometric == _YCBCR:
        tags += (Tag(530, SHORT, (2, 2)),)
    return _common_tags(raster, level, 0) + tags


def _colours(raster: Raster) -> tuple[int, tuple[int, ...]]:
    """Return the photometric interpretation, and what the samples beyond its colours are."""
    if raster.options.compress == "jpeg" and raster.samples == 3:
        return _YCBCR, ()
    if raster.dtype == np.uint8 and len(raster.bands) == 3:
        return _RGB, (_ALPHA,) * raster.alpha
    return _GRAY, (_UNSPECIFIED,) * (raster.samples - 1)


def _mask_tags(raster: Raster, level: int) -> tuple[Tag, ...]:
    facts = {258: 1, 259: _COMPRESSION["deflate"], 262: _TRANSPARENCY, 277: 1, 339: 1}
    return _common_tags(raster, level, _MASK) + tuple(Tag(code, SHORT, value) for code, value in facts.items())


_AHEAD = 8
"""Runs of tiles that are read ahead of the one being written; a run is a row of tiles of one window."""

In = TypeVar("In")
Out = TypeVar("Out")

Results = Sequence[tuple[Stage, WindowIndex]]

_PLACED = np.dtype([*TILE.descr, ("part", "i4")])


class Sink(Protocol):
    """Whatever takes the bytes of a file."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


class Run(NamedTuple):
    """Neighbouring tiles of one row that lie together, in a part and in the file."""

    part: int
    """Number of the part."""

    start: int
    """Position in the part, in bytes."""

    size: int
    """Bytes."""

    level: int
    """Level."""

    row: int
    """Row of tiles."""

    columns: tuple[int, int]
    """First column of tiles and the one after the last."""


@dataclass(frozen=True, eq=False)
class FileLayout:
    """Where every byte of a file comes from and goes to."""

    raster: Raster
    """The file."""

    parts: tuple[str, ...]
    """Names of the parts."""

    tiles: tuple[NDArray[Any], ...]
    """For each level the `TILE` and the part of each tile ``(row, column)``."""

    offsets: tuple[NDArray[np.uint64], ...]
    """For each level the position in the file of each tile's record."""

    header: bytes
    """Everything before the first tile."""

    size: int
    """Bytes of the file."""

    statistics: tuple[Statistics, ...]
    """Of each band."""

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs of tiles in the order of the file: the smallest overview first, the full resolution last."""
        return tuple(run for level in reversed(range(len(self.tiles))) for run in _runs(self.tiles[level], level))

    def offset(self, run: Run) -> int:
        """Return where a run starts in the file."""
        return int(self.offsets[run.level][run.row, run.columns[0]])


def lay_out(raster: Raster, results: Results) -> FileLayout:
    """Return the layout of a file whose windows have been written.

    Raises
    ------
    WriteError
        A tile is missing, or the file does not fit a classic TIFF and must not be a BigTIFF.
    """
    parts, tiles = _placed(raster, results)
    statistics = _band_statistics(raster, results)
    lengths = [_record_sizes(level) for level in tiles]
    data = sum(int(length.sum()) for length in lengths)
    zeros = tuple(np.zeros(length.shape, np.uint64) for length in lengths)
    big = _is_big(raster, data + len(_header(raster, tiles, zeros, statistics, big=True)))
    start = len(_header(raster, tiles, zeros, statistics, big=big))
    offsets = _offsets(lengths, start)
    header = _header(raster, tiles, offsets, statistics, big=big)
    return FileLayout(raster, parts, tiles, offsets, header, start + data, statistics)


def _placed(raster: Raster, results: Results) -> tuple[tuple[str, ...], tuple[NDArray[Any], ...]]:
    """Return the names of all parts, and for each level where each tile lies in which of them."""
    parts: list[str] = []
    levels = tuple(np.zeros(raster.grid(level), _PLACED) for level in range(len(raster.levels)))
    for level in levels:
        level["part"] = -1
    for stage, index in sorted(results, key=lambda result: (result[0].number, result[1].position)):
        for number, tiles in enumerate(index.tiles, stage.first):
            y, x = (axis.start // raster.block for axis in stage.window(*index.position, number))
            place = levels[number][y : y + tiles.shape[0], x : x + tiles.shape[1]]
            for name in TILE.names or ():
                place[name] = tiles[name]
            place["part"] = len(parts)
        parts.append(index.part)
    for number, level in enumerate(levels):
        _all_there(raster, number, level["part"])
    return tuple(parts), levels


def _all_there(raster: Raster, level: int, parts: NDArray[Any]) -> None:
    missing = np.argwhere(parts < 0)
    if missing.size:
        first = "row {} column {}".format(*missing[0])
        raise WriteError(f"{raster.label}: {len(missing)} tiles of level {level} are missing, the first at {first}")


def _band_statistics(raster: Raster, results: Results) -> tuple[Statistics, ...]:
    """Merge the statistics of tiles row by row over the whole raster, whatever windows they came in."""
    rows, columns = raster.grid(0)
    by_tile: dict[tuple[int, int], tuple[Statistics, ...]] = {}
    for stage, index in results:
        if stage.first == 0:
            y, x = (axis.start // raster.block for axis in stage.window(*index.position))
            places = np.ndindex(index.tiles[0].shape)
            by_tile.update(((y + i, x + j), s) for (i, j), s in zip(places, index.statistics, strict=True))
    ordered = [by_tile[place] for place in np.ndindex(rows, columns)]
    return tuple(merge(tile[band] for tile in ordered) for band in range(len(raster.bands)))


def _record_sizes(tiles: NDArray[Any]) -> NDArray[np.uint64]:
    masks = np.where(tiles["mask_size"], tiles["mask_size"] + np.uint64(RECORD_OVERHEAD), np.uint64(0))
    return (tiles["size"].astype(np.uint64) + np.uint64(RECORD_OVERHEAD) + masks).astype(np.uint64)


def _is_big(raster: Raster, size: int) -> bool:
    wanted = raster.options.bigtiff
    if wanted is False and size > CLASSIC_LIMIT:
        raise WriteError(f"{raster.label}: {size:,} bytes do not fit a classic TIFF; leave bigtiff='auto'")
    return size > CLASSIC_LIMIT if wanted == "auto" else bool(wanted)


def _offsets(lengths: Sequence[NDArray[np.uint64]], start: int) -> tuple[NDArray[np.uint64], ...]:
    out: list[NDArray[np.uint64]] = []
    for length in reversed(lengths):
        ends = np.cumsum(length.ravel(), dtype=np.uint64) + np.uint64(start)
        out.append((ends - length.ravel()).reshape(length.shape))
        start = int(ends[-1])
    return tuple(reversed(out))


def _header(
    raster: Raster,
    tiles: Sequence[NDArray[Any]],
    offsets: Sequence[NDArray[np.uint64]],
    statistics: Sequence[Statistics],
    *,
    big: bool,
) -> bytes:
    return build_header(directories(raster, tiles, offsets, statistics), big=big, mask=raster.mask)


def _runs(tiles: NDArray[Any], level: int) -> Iterator[Run]:
    sizes = _record_sizes(tiles)
    for row, parts in enumerate(tiles["part"]):
        edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
        for first, stop in pairwise(edges):
            size = int(sizes[row, first:stop].sum())
            yield Run(int(parts[first]), int(tiles["start"][row, first]), size, level, row, (first, stop))


def in_order(function: Callable[[In], Out], items: Iterable[In], threads: int = _AHEAD) -> Iterator[Out]:
    """Yield `function` of each item in order; some are computed ahead, never all."""
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[Out]] = [pool.submit(function, item) for item in islice(source, threads)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(function, item) for item in islice(source, 1)]
        finally:
            for future in waiting:
                future.cancel()


def copy_parts(layout: FileLayout, out: Sink, check: Callable[[Run, bytes], None] | None = None) -> None:
    """Write the whole file to `out`.

    Parameters
    ----------
    check
        Called with each run and its bytes before they are written; raises what stops it.
    """
    raster = layout.raster
    last_use = {run.part: i for i, run in enumerate(layout.runs)}

    def load(run: Run) -> bytes:
        data = raster.parts.read(layout.parts[run.part], run.start, run.size)
        if check is not None:
            check(run, data)
        return data

    out.write(layout.header)
    for i, data in enumerate(in_order(load, layout.runs)):
        out.write(data)
        part = layout.runs[i].part
        if last_use[part] == i:
            # So that the disk holds the result about once, not twice.
            raster.parts.remove(layout.parts[part])


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
