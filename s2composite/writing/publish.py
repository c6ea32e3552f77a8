"""Encoded tiles become one file, in one pass from first byte to last, verified before it takes its final name."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio
import tifffile
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile

from s2composite.clusters.submit import ClusterCall
from s2composite.errors import GridError, WriteError
from s2composite.geotiff.structure import (
    ASCII,
    CLASSIC_LIMIT,
    GEO_TAGS,
    LONG,
    RECORD_OVERHEAD,
    SHORT,
    Tag,
    TileDirectory,
    build_header,
)
from s2composite.storage.files import (
    display,
    exists,
    filesystem,
    is_remote,
    join,
    replacing,
    storage_errors,
    write_atomic,
)
from s2composite.writing.encode import Statistics, decode_mask, merge
from s2composite.writing.staging import ASSEMBLED, disk_errors, writable
from s2composite.writing.tiles import TILE, Raster, Stage, WindowIndex, pixel_checksum

__all__ = [
    "FileLayout",
    "assemble",
    "assembly_calls",
    "geo_tags",
    "in_order",
    "is_http",
    "lay_out",
    "name_files",
    "put_small",
    "remove",
    "target_of",
]

# --- final names, and small files ------------------------------------------------------------------------------------


def target_of(path: str | os.PathLike[str], *, overwrite: bool) -> str:
    """Return the absolute path or URL of an output, after all checks that can be made beforehand."""
    target = writable(path)
    if is_remote(target):
        # A URL that is signed for a PUT answers nothing else.
        if not overwrite and not is_http(target):
            with storage_errors(WriteError, f"{display(target)}: cannot be checked", target):
                there = exists(target)
            if there:
                raise _exists_already(target)
        return target
    file = Path(target)
    if not file.parent.is_dir():
        raise WriteError(f"{target}: the directory {file.parent} does not exist; create it first", path=target)
    if file.is_dir():
        raise WriteError(f"{target}: is a directory; name a file in it", path=target)
    if file.exists() and not overwrite:
        raise _exists_already(target)
    return target


def _exists_already(target: str) -> WriteError:
    return WriteError(f"{display(target)}: exists already; pass overwrite=True to replace it", path=display(target))


def is_http(target: str) -> bool:
    """Return whether a target is a plain URL, signed for a PUT and perhaps for nothing else."""
    return target.startswith(("http://", "https://"))


def _upload_errors(target: str) -> AbstractContextManager[None]:
    return storage_errors(WriteError, f"{display(target)}: cannot be uploaded", target, path=display(target))


def put_small(data: bytes, target: str, *, overwrite: bool) -> None:
    """Write a small file, whole or not at all."""
    if is_remote(target):
        with _upload_errors(target):
            # gcsfs loses a last byte \r; JSON ends in a line feed, pictures in their own marks.
            write_atomic(target, data)
        return
    with disk_errors(target, len(data)), replacing(target) as unfinished:
        unfinished.write_bytes(data)
        if not overwrite and Path(target).exists():
            raise _exists_already(target)


def remove(target: str) -> None:
    """Remove a file if it is there."""
    fs, path = filesystem(target)
    with storage_errors(WriteError, f"{display(target)}: cannot be removed", target), suppress(FileNotFoundError):
        fs.rm_file(path)


# --- what a file is: its tags, and where every byte of it comes from and goes to -------------------------------------

_METADATA, _NODATA = 42112, 42113
_COMPRESSION = {"none": 1, "lzw": 5, "jpeg": 7, "deflate": 8, "zstd": 50000, "webp": 50001}
_SAMPLE_FORMAT = {"u": 1, "i": 2, "f": 3}
_OVERVIEW, _MASK = 1, 4
_GRAY, _RGB, _TRANSPARENCY, _YCBCR = 1, 2, 4, 6
_UNSPECIFIED, _ALPHA = 0, 2


def geo_tags(geobox: GeoBox | None) -> tuple[Tag, ...]:
    """Return the tags of a transform and a CRS as GDAL writes them; a GridError if it cannot express the CRS."""
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
        data = memory.read()
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        tags = [tiff.pages[0].tags[code] for code in sorted(GEO_TAGS) if code in tiff.pages[0].tags]
        return tuple(
            Tag(tag.code, int(tag.dtype), tag.value if isinstance(tag.value, str) else tuple(tag.value)) for tag in tags
        )


def _metadata_tag(raster: Raster, statistics: Sequence[Statistics]) -> Tag:
    """Return the tag with GDAL's XML: tags of the file, names, units, scales and statistics of its bands."""
    items = [_item(name, value) for name, value in sorted(dict(raster.tags).items())]
    for sample, (band, found) in enumerate(zip(raster.bands, statistics, strict=True)):
        items.append(_item("DESCRIPTION", band.name, sample=sample, role="description"))
        if band.long_name:
            items.append(_item("LONG_NAME", band.long_name, sample=sample))
        if band.units:
            items.append(_item("UNITTYPE", band.units, sample=sample, role="unittype"))
        for name, value in (("SCALE", band.scale), ("OFFSET", band.offset)):
            if value is not None:
                items.append(_item(name, repr(float(value)), sample=sample, role=name.lower()))
        figures = {"MAXIMUM": found.maximum, "MEAN": found.mean, "MINIMUM": found.minimum, "STDDEV": found.deviation}
        if found.valid:
            items += [_item(f"STATISTICS_{name}", repr(value), sample=sample) for name, value in figures.items()]
        percent = f"{100 * found.valid / max(found.pixels, 1):.4g}"
        items.append(_item("STATISTICS_VALID_PERCENT", percent, sample=sample))
    return Tag(_METADATA, ASCII, "<GDALMetadata>\n" + "".join(items) + "</GDALMetadata>")


def _item(name: str, value: str, **attributes: Any) -> str:
    # GDAL escapes values twice, and undoes it twice when it reads them.
    more = "".join(f" {key}={quoteattr(str(v))}" for key, v in attributes.items())
    return f"  <Item name={quoteattr(name)}{more}>{escape(escape(value))}</Item>\n"


def _directories(
    raster: Raster,
    tiles: Sequence[NDArray[Any]],
    offsets: Sequence[NDArray[np.uint64]],
    statistics: Sequence[Statistics],
) -> tuple[TileDirectory, ...]:
    """Return the directories of a file, from the sizes of tiles and the positions of their records at each level."""
    samples, options = raster.samples, raster.options
    # The samples beyond the colours of the photometric interpretation are "extra".
    photometric, extra = _GRAY, (_UNSPECIFIED,) * (samples - 1)
    if options.compress == "jpeg" and samples == 3:
        photometric, extra = _YCBCR, ()
    elif raster.dtype == np.uint8 and len(raster.bands) == 3:
        photometric, extra = _RGB, (_ALPHA,) * raster.alpha
    image = [
        Tag(258, SHORT, (raster.dtype.itemsize * 8,) * samples),
        Tag(259, SHORT, _COMPRESSION[options.compress]),
        Tag(262, SHORT, photometric),
        Tag(277, SHORT, samples),
        Tag(339, SHORT, (_SAMPLE_FORMAT[raster.dtype.kind],) * samples),
    ]
    if raster.nodata is not None and not (raster.mask or raster.alpha):
        value = float(raster.nodata)
        text = str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
        image.append(Tag(_NODATA, ASCII, text))
    if options.predictor != 1:
        image.append(Tag(317, SHORT, options.predictor))
    if extra:
        image.append(Tag(338, SHORT, extra))
    if photometric == _YCBCR:
        image.append(Tag(530, SHORT, (2, 2)))
    values = {258: 1, 259: _COMPRESSION["deflate"], 262: _TRANSPARENCY, 277: 1, 339: 1}
    mask = [Tag(code, SHORT, value) for code, value in values.items()]
    described = (*raster.geotags, _metadata_tag(raster, statistics))
    out: list[TileDirectory] = []
    for level, (index, start) in enumerate(zip(tiles, offsets, strict=True)):
        kind, (rows, columns) = _OVERVIEW if level else 0, raster.levels[level]
        shape = [Tag(256, LONG, columns), Tag(257, LONG, rows), Tag(284, SHORT, 1)]
        shape += [Tag(322, SHORT, raster.block), Tag(323, SHORT, raster.block)]
        tags = (Tag(254, LONG, kind), *shape, *image, *(() if level else described))
        positions, sizes = start + np.uint64(RECORD_OVERHEAD // 2), index["size"].astype(np.uint64)
        out.append(TileDirectory(tags, positions.ravel(), sizes.ravel()))
        if raster.mask:
            positions = positions + sizes + np.uint64(RECORD_OVERHEAD)
            tags = (Tag(254, LONG, kind | _MASK), *shape, *mask)
            out.append(TileDirectory(tags, positions.ravel(), index["mask_size"].astype(np.uint64).ravel()))
    return tuple(out)


_AHEAD = 8  # runs of tiles that are read ahead of the one being written; a run is a row of tiles of one window

In = TypeVar("In")
Out = TypeVar("Out")

_PLACED = np.dtype([*TILE.descr, ("part", "i4")])


class Run(NamedTuple):
    """Neighbouring tiles of one row that lie together, in a part and in the file."""

    part: int  # number of the part
    start: int  # position in the part, in bytes
    size: int  # bytes
    level: int
    row: int
    columns: tuple[int, int]  # first column of tiles and the one after the last


@dataclass(frozen=True, eq=False)
class FileLayout:
    """Where every byte of a file comes from and goes to."""

    raster: Raster
    parts: tuple[str, ...]  # names of the parts
    tiles: tuple[NDArray[Any], ...]  # for each level the `TILE` and the part of each tile ``(row, column)``
    offsets: tuple[NDArray[np.uint64], ...]  # for each level the position in the file of each tile's record
    header: bytes  # everything before the first tile
    size: int  # bytes of the file
    statistics: tuple[Statistics, ...]  # of each band

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs of tiles in the order of the file: the smallest overview first, the full resolution last."""
        runs = []
        for level, tiles in reversed(list(enumerate(self.tiles))):
            sizes = _record_sizes(tiles)
            for row, parts in enumerate(tiles["part"]):
                for first, stop in pairwise([0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]):
                    size, start = int(sizes[row, first:stop].sum()), int(tiles["start"][row, first])
                    runs.append(Run(int(parts[first]), start, size, level, row, (first, stop)))
        return tuple(runs)


def _record_sizes(tiles: NDArray[Any]) -> NDArray[np.uint64]:
    masks = np.where(tiles["mask_size"], tiles["mask_size"] + np.uint64(RECORD_OVERHEAD), np.uint64(0))
    return (tiles["size"].astype(np.uint64) + np.uint64(RECORD_OVERHEAD) + masks).astype(np.uint64)


def lay_out(raster: Raster, results: Sequence[tuple[Stage, WindowIndex]]) -> FileLayout:
    """Return the layout of a file whose windows have been written, or raise a WriteError if a tile is missing."""
    parts: list[str] = []
    tiles = tuple(np.zeros(raster.grid(level), _PLACED) for level in range(len(raster.levels)))
    for level in tiles:
        level["part"] = -1
    by_tile = np.empty(raster.grid(0), object)
    for stage, index in sorted(results, key=lambda result: (result[0].number, result[1].position)):
        for number, own in enumerate(index.tiles, stage.first):
            y, x = (axis.start // raster.block for axis in stage.window(*index.position, number))
            place = tiles[number][y : y + own.shape[0], x : x + own.shape[1]]
            for name in TILE.names or ():
                place[name] = own[name]
            place["part"] = len(parts)
            if number == 0:
                for (i, j), of_bands in zip(np.ndindex(own.shape), index.statistics, strict=True):
                    by_tile[y + i, x + j] = of_bands
        parts.append(index.part)
    for number, level in enumerate(tiles):
        missing = np.argwhere(level["part"] < 0)
        if missing.size:
            first = "row {} column {}".format(*missing[0])
            raise WriteError(
                f"{raster.label}: {len(missing)} tiles of level {number} are missing, the first at {first}"
            )
    # Row by row over the whole raster, whatever windows they came in.
    statistics = tuple(merge(tile[band] for tile in by_tile.flat) for band in range(len(raster.bands)))
    lengths = [_record_sizes(level) for level in tiles]
    data = sum(int(length.sum()) for length in lengths)

    def header(offsets: Sequence[NDArray[np.uint64]], *, big: bool) -> bytes:
        return build_header(_directories(raster, tiles, offsets, statistics), big=big, mask=raster.mask)

    # Positions do not change the size of a header, but follow from it.
    zeros = tuple(np.zeros(length.shape, np.uint64) for length in lengths)
    wanted, size = raster.options.bigtiff, data + len(header(zeros, big=True))
    if wanted is False and size > CLASSIC_LIMIT:
        raise WriteError(f"{raster.label}: {size:,} bytes do not fit a classic TIFF; leave bigtiff='auto'")
    big = size > CLASSIC_LIMIT if wanted == "auto" else bool(wanted)
    start = position = len(header(zeros, big=big))
    offsets: list[NDArray[np.uint64]] = []
    for length in reversed(lengths):
        ends = np.cumsum(length.ravel(), dtype=np.uint64) + np.uint64(position)
        offsets.insert(0, (ends - length.ravel()).reshape(length.shape))
        position = int(ends[-1])
    return FileLayout(raster, tuple(parts), tiles, tuple(offsets), header(offsets, big=big), start + data, statistics)


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


def copy_parts(layout: FileLayout, out: IO[bytes], *, check: bool = False, digest: bool = False) -> str:
    """Write the whole file to `out`, with `check` each run once it is checked; return its SHA-256 if `digest`."""
    raster, checksum = layout.raster, hashlib.sha256()
    last = {run.part: run for run in layout.runs}

    def load(run: Run) -> bytes:
        data = raster.parts.read(layout.parts[run.part], run.start, run.size)
        if check:
            check_run(layout, run, data)
        return data

    loaded = zip(layout.runs, in_order(load, layout.runs), strict=True)
    for run, data in chain([(None, layout.header)], loaded):
        out.write(data)
        if digest:
            checksum.update(data)
        if run is not None and run is last[run.part]:
            # So that the disk holds the result about once, not twice.
            raster.parts.remove(layout.parts[run.part])
    return checksum.hexdigest() if digest else ""


def verify_file(layout: FileLayout, path: str) -> None:
    """Read back a finished file, or raise a WriteError: its size, directories, and the decoded pixels of every tile."""
    size = Path(path).stat().st_size
    if size != layout.size:
        raise WriteError(f"{layout.raster.label}: {size:,} bytes were written instead of {layout.size:,}")
    with Path(path).open("rb") as file:
        if file.read(len(layout.header)) != layout.header:
            raise WriteError(f"{layout.raster.label}: the header reads differently from what was written")

        def check(run: Run) -> None:
            start = int(layout.offsets[run.level][run.row, run.columns[0]])
            check_run(layout, run, os.pread(file.fileno(), run.size, start))

        for _ in in_order(check, layout.runs, threads=min(os.cpu_count() or 1, 8)):
            pass
    with rasterio.open(path) as source:
        _compare(layout.raster, source)


def _compare(raster: Raster, source: DatasetReader) -> None:
    properties: list[tuple[str, Any, Any]] = [
        ("size", source.shape, raster.shape),
        ("dtype", set(source.dtypes), {raster.dtype.name}),
        ("number of bands", source.count, raster.samples),
        ("blocks", set(source.block_shapes), {(raster.block, raster.block)}),
        ("number of overviews", len(source.overviews(1)), len(raster.levels) - 1),
    ]
    if raster.geobox is not None:
        properties.append(("transform", source.transform.almost_equals(raster.geobox.transform, 1e-9), True))
    if not (raster.mask or raster.alpha):
        nodata = None if raster.nodata is None else float(raster.nodata)
        properties.append(("nodata value", str(source.nodata), str(nodata)))
    for name, seen, expected in properties:
        if seen != expected:
            raise WriteError(f"{raster.label}: GDAL reads the {name} as {seen}, not {expected}")


def check_run(layout: FileLayout, run: Run, data: bytes) -> None:
    """Compare the decoded pixels of a run with the checksums of what was encoded; a WriteError names a damaged tile."""
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


def _check_pixels(decode: Callable[[bytes], NDArray[Any]], data: bytes, crc: int, where: str) -> None:
    try:
        pixels = decode(data)
    except (RuntimeError, ValueError) as error:  # codecs have errors of their own, all of these kinds
        raise WriteError(f"{where} cannot be decoded: {type(error).__name__}: {error}") from error
    if pixel_checksum(np.asarray(pixels)) != crc:
        raise WriteError(f"{where} is damaged: its pixels are not those that were computed")


# --- putting it together, verified, and naming it --------------------------------------------------------------------

_UPLOAD_BLOCK = 16 << 20
_MOST_BLOCKS = 9_000  # S3 takes 10 000 parts at most


def assembly_calls(layouts: Sequence[FileLayout], *, digest: bool = False) -> list[ClusterCall]:
    """Return the calls that put files together."""
    call = partial(assemble, digest=digest)
    named = [(layout, layout.raster.token, layout.raster.label) for layout in layouts]
    return [ClusterCall(f"assemble-file-{token}", call, (one,), f"assembling {label}") for one, token, label in named]


def assemble(layout: FileLayout, *, digest: bool = False) -> str:
    """Put a file together and verify it; return its SHA-256 in hexadecimal digits if `digest`, else nothing."""
    if is_remote(layout.raster.path) and not is_http(layout.raster.path):
        return assemble_object(layout, digest=digest)
    path = _assembled(layout.raster)
    with disk_errors(path, layout.size), replacing(path) as unfinished:
        with unfinished.open("wb") as file:
            checksum = copy_parts(layout, file, digest=digest)
            file.flush()
            os.fsync(file.fileno())
        verify_file(layout, str(unfinished))
    return checksum


def _assembled(raster: Raster) -> str:
    """Return where a file is put together until it takes its name."""
    return join(raster.parts.root, f"{raster.token}{ASSEMBLED}")


def name_files(rasters: Sequence[Raster], *, overwrite: bool) -> None:
    """Give assembled files their names, or send them to URLs that are signed for a PUT; objects have them already."""
    for raster in rasters:
        path, target = _assembled(raster), raster.path
        if is_http(target):
            headers = {"Content-Length": str(Path(path).stat().st_size), "Content-Type": "image/tiff"}
            with Path(path).open("rb") as file, _upload_errors(target):
                # http(s), checked by target_of
                request = urllib.request.Request(target, file, headers, method="PUT")  # noqa: S310
                try:
                    urllib.request.urlopen(request, timeout=600).close()  # noqa: S310
                except urllib.error.HTTPError as error:
                    error.close()
                    why = f"{display(target)}: the server refuses the upload: {error.code} {error.reason}"
                    raise WriteError(why) from error
        elif not is_remote(target):
            take_name(path, target, overwrite=overwrite)


def take_name(temporary: str, target: str, *, overwrite: bool) -> None:
    """Give a verified local file its final name."""
    if not overwrite and Path(target).exists():
        raise _exists_already(target)
    with disk_errors(target, 0):
        # Another file system has no renaming; parts of a local target always lie beside it.
        Path(temporary).replace(target)


def assemble_object(layout: FileLayout, *, digest: bool = False) -> str:
    """Stream a file into an object store; it exists there only once all tiles have been verified.

    The bytes are decoded and compared while they are sent; the digests of the store guard the transfer. Returns the
    SHA-256 of the file if `digest`.
    """
    target = layout.raster.path
    try:
        with MemoryFile(layout.header) as memory, memory.open() as source:
            _compare(layout.raster, source)
    except RasterioError as error:
        raise WriteError(f"{layout.raster.label}: GDAL cannot read the header: {error}") from error
    fs, path = filesystem(target)
    block = max(_UPLOAD_BLOCK, -(-layout.size // _MOST_BLOCKS >> 18) + 1 << 18)
    with _upload_errors(target), ExitStack() as undo:
        out = fs.open(path, "wb", autocommit=False, block_size=block)

        def give_up() -> None:
            out.closed = True  # closing it would complete an incomplete file
            with suppress(Exception):  # an error while giving up would hide the one that made us
                out.discard()

        undo.callback(give_up)
        checksum = copy_parts(layout, out, check=True, digest=digest)
        out.close()
        layout.raster.parts.require()
        out.commit()
        undo.pop_all()
        fs.invalidate_cache()
        size = fs.info(path)["size"]
        if size != layout.size:
            fs.rm_file(path)
            raise WriteError(
                f"{layout.raster.label}: the store holds {size:,} of {layout.size:,} bytes, so it was removed"
            )
    return checksum
