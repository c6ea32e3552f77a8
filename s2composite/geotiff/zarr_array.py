"""Arrays of Zarr stores as rasters: what they are, and where in the store their tiles are.

zarr parses the metadata. A tile is an inner chunk of a shard, a chunk, or some rows of a large Blosc chunk, which is
compressed in blocks: ESA's chunks of 5490 x 5490 numbers have some 12 rows to a block. What is stored in another way is
read by zarr, in whole chunks.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np
import zarr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.dtypes import check_dtype
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from s2composite.errors import ReadError, SceneError, listed
from s2composite.geotiff.header import Header, Scaling, nodata_in
from s2composite.geotiff.structure import BloscBlocks, Level, Objects, broken, coding, same_geobox
from s2composite.storage.files import display, filesystem, is_remote, storage_errors
from s2composite.storage.http import Identity, Sign, read_head, read_identity, read_range
from s2composite.storage.urls import check_read

__all__ = [
    "ANGLES",
    "SUN_ANGLES",
    "StoredArray",
    "object_href",
    "read_array_header",
    "read_chunks",
    "read_store",
    "split_store",
]

# dimensions of arrays of angles: of the sun, and of the sensor, whose detectors each see a part of the pass
_SUN, _VIEW = ("angle", "y", "x"), ("band", "detector", "angle", "y", "x")
ANGLES = (_SUN, _VIEW)
SUN_ANGLES = ("sun_zenith", "sun_azimuth")

_DOCUMENTS = ("zarr.json", ".zmetadata")  # that hold the metadata of a whole store, if these are consolidated
_NODES = ("zarr.json", ".zgroup", ".zarray")  # one of which every group and array has
_LARGEST_DOCUMENT = 64 << 20  # bytes
_LARGEST_BLOCK = 1 << 30  # bytes of a decoded tile, as for TIFF
_MOST_OBJECTS, _MOST_TILES = 1 << 17, 1 << 22  # of an array, which are held in memory: 40 MB, 64 MB
_MOST_BLOCKS = 1 << 20  # of a Blosc chunk

# A Blosc chunk larger than this is read by rows, a quarter of this and so many blocks at a time or more: a block at the
# border of two tiles is fetched and decoded for both. ESA's blocks of 128 KiB are 12 rows, and a tile 122: a tenth is
# read twice.
_LARGE_CHUNK, _LEAST_BLOCKS = 4 << 20, 3.5
_HEAD = 2048  # bytes of a Blosc chunk in which the places of its blocks are looked for: 508 blocks

_NOT_STORED = np.uint64(2**64 - 1)  # of an inner chunk that a shard does not hold

_COMPRESSIONS = {"blosc": "BLOSC", "zstd": "ZSTD", "gzip": "GZIP", "zlib": "DEFLATE"}


@dataclass(frozen=True, slots=True)
class StoredArray:
    """What a store says of one of its arrays."""

    path: str  # in the store
    metadata: Mapping[str, Any]  # as in zarr.json, or .zarray
    attributes: Mapping[str, Any]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fill: float | None  # of what nobody wrote

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of its dimensions; empty if they have none."""
        names = self.metadata.get("dimension_names") or self.attributes.get("_ARRAY_DIMENSIONS")
        return tuple(names) if isinstance(names, (list, tuple)) else ()


@dataclass(frozen=True, slots=True)
class _Store:
    attributes: Mapping[str, Mapping[str, Any]]  # of each group, "" for the root
    arrays: Mapping[str, StoredArray]


_READ: dict[str, tuple[Identity, _Store]] = {}  # consolidated stores by the place of their document
_MOST_READ = 1024
_LOCK = Lock()


def split_store(href: str) -> tuple[str, str] | None:
    """Return the store and the path in it that a path or URL leads to; None if it leads to no Zarr.

    >>> split_store("s3://bucket/S2A_MSIL2A.zarr/measurements/reflectance/r10m")
    ('s3://bucket/S2A_MSIL2A.zarr', 'measurements/reflectance/r10m')
    """
    base, mark, query = href.partition("?") if is_remote(href) else (href, "", "")
    parts = base.rstrip("/").split("/")
    for i, part in enumerate(parts):
        if part.lower().endswith(".zarr"):
            return "/".join(parts[: i + 1]) + mark + query, "/".join(parts[i + 1 :])
    if is_remote(href) or not os.path.isdir(href):  # noqa: PTH112 - names are text here
        return None
    path = Path(href)
    nodes = [one for one in (path, *path.parents) if any((one / name).exists() for name in _NODES)]
    if not nodes or nodes[0] != path:
        return None
    return str(nodes[-1]), path.relative_to(nodes[-1]).as_posix().removeprefix(".")


def object_href(store: str, key: str) -> str:
    """Return where an object of a store is; a query (signature) stays at the end."""
    base, mark, query = store.partition("?") if is_remote(store) else (store, "", "")
    return f"{base.rstrip('/')}/{key.strip('/')}{mark}{query}"


def read_store(store: str, sign: Sign | None = None) -> _Store:
    """Return what a store says of its groups and arrays, from its consolidated metadata if it has these."""
    check_read(store)
    refused: ReadError | None = None
    for name in _DOCUMENTS:
        href = object_href(store, name)
        try:
            identity = read_identity(href, sign)
        except ReadError as error:
            details = error.__dict__
            if details.get("transient"):
                raise
            if not details.get("missing"):  # buckets that nobody may list refuse what is not there
                refused = refused or error
            continue
        with _LOCK:
            known = _READ.get(href)
        if known is not None and known[0].same(identity):
            return known[1]
        if identity.size > _LARGEST_DOCUMENT:
            raise broken(href, f"its metadata have {identity.size} bytes")
        document = read_range(href, 0, identity.size, identity, sign) if identity.size else b""
        if (found := _consolidated(href, name, document)) is not None:
            with _LOCK:
                if len(_READ) >= _MOST_READ:
                    _READ.clear()
                _READ[href] = identity, found
            return found
    if refused is not None:
        raise refused
    if store.startswith("http"):
        raise SceneError(
            f"{display(store)} has no consolidated metadata, and a web server does not list what is in a store; "
            "write them with zarr.consolidate_metadata, or give the store on s3://, gs:// or a disk",
            href=display(store),
        )
    with storage_errors(SceneError, f"cannot open the Zarr store {display(store)}", store, href=display(store)):
        return _described(zarr.open_group(_zarr_store(store), mode="r", use_consolidated=False))


def _consolidated(href: str, name: str, document: bytes) -> _Store | None:
    """Return what a document says of a store; None if it is that of the root alone."""
    buffer = default_buffer_prototype().buffer
    parts = {name: buffer.from_bytes(document)}
    with storage_errors(SceneError, f"{display(href)} is damaged, fetch it again", href, href=display(href)):
        content = json.loads(document)
        if name == ".zmetadata":  # zarr takes what the root is from its own documents
            root = content["metadata"]
            parts[".zgroup"] = buffer.from_bytes(b'{"zarr_format": 2}')
            parts[".zattrs"] = buffer.from_bytes(json.dumps(root.get(".zattrs") or {}).encode())
        if name == "zarr.json" and (content.get("node_type") == "array" or not content.get("consolidated_metadata")):
            return None
        return _described(zarr.open_group(MemoryStore(parts, read_only=True), mode="r", use_consolidated=True))


def _described(group: zarr.Group) -> _Store:
    attributes, arrays = {"": dict(group.attrs)}, {}
    for path, node in group.members(max_depth=None):
        if isinstance(node, zarr.Group):
            attributes[path] = dict(node.attrs)
        else:
            fill = None if node.dtype.kind not in "uif" or node.fill_value is None else float(node.fill_value)
            arrays[path] = StoredArray(path, node.metadata.to_dict(), dict(node.attrs), node.dtype, node.shape, fill)
    return _Store(attributes, arrays)


def _zarr_store(store: str) -> LocalStore | FsspecStore:
    if not is_remote(store):
        return LocalStore(store, read_only=True)
    fs, path = filesystem(store)
    return FsspecStore.from_mapper(fs.get_mapper(path), read_only=True)


# --- What an array is -----------------------------------------------------------------------------------------------


def read_array_header(href: str, sign: Sign | None = None) -> Header:
    """Return what an array of a Zarr store is, its overviews, and where their tiles are.

    Overviews are arrays of the same name in the groups beside its own (``r20m``, ``r120m``) that cover the same area.
    """
    found = split_store(href)
    assert found is not None
    store, path = found
    stored = read_store(store, sign)
    array = stored.arrays.get(path)
    if array is None:
        has = listed([name for name, one in stored.arrays.items() if len(one.shape) == 2], 12) or "none"
        raise SceneError(f"{display(href)}: the store has no array {path}; it has {has}", href=display(href))
    names: tuple[str | None, ...] = (None,)
    angles = array.dimensions in ANGLES
    if angles:
        geobox, names = _angles(href, store, stored, array)
    elif len(array.shape) == 2 and array.dtype.kind in "uif" and 0 not in array.shape and check_dtype(array.dtype.name):
        geobox = _geobox(href, stored, array)
    else:
        raise SceneError(
            f"{display(href)} is {array.dtype} {array.shape}, not numbers (y, x); a cube (time, band, y, x) is opened "
            "with xarray.open_zarr and given to composite()",
            href=display(href),
        )
    levels, undecodable = [], ""
    for one in (array, *(() if angles else _overviews(stored, array))):
        level, why = _level(store, one, sign)
        levels.append(level)
        undecodable = undecodable or why
    states = [one.state for level in levels if level.objects for one in level.objects.identities if one is not None]
    digest = hashlib.sha256(repr((array.metadata, array.attributes, states)).encode()).hexdigest()[:32]
    return Header(
        href,
        Identity(sum(int(level.counts.sum()) for level in levels), digest),
        geobox,
        len(names),
        array.dtype.newbyteorder("="),
        _nodata(array),
        names,
        tuple(levels),
        scaling=() if angles else (_scaling(href, array),),
        undecodable=undecodable,
        sign=sign,
    )


def _angles(href: str, store: str, stored: _Store, array: StoredArray) -> tuple[GeoBox, tuple[str | None, ...]]:
    """Return the grid of a product's angles, whose pixels lie around the points, and the names of their bands."""
    group = array.path.rpartition("/")[0]
    codes = (one.attributes.get("proj:code") or one.attributes.get("proj:epsg") for one in stored.arrays.values())
    code = next(filter(None, codes), None)  # of the bands: the angles have none
    if code is None:
        raise SceneError(f"{display(href)}: no band of its store has a CRS (proj:epsg)", href=display(href))
    with storage_errors(SceneError, f"cannot read the grid of {display(href)}", href, href=display(href)):
        points = {
            name: np.asarray(zarr.open_array(_zarr_store(store), path=f"{group}/{name}", mode="r")[:])
            for name in array.dimensions
        }
        y, x = points["y"], points["x"]
        step_y, step_x = float(y[1] - y[0]), float(x[1] - x[0])
        transform = Affine(step_x, 0, float(x[0]) - step_x / 2, 0, step_y, float(y[0]) - step_y / 2)
        geobox = same_geobox((len(y), len(x)), transform, f"EPSG:{code}" if isinstance(code, int) else str(code))
    names = [f"sun_{angle}" for angle in points["angle"]]
    if array.dimensions == _VIEW:
        names = [f"view_{angle}_{str(band).upper()}" for band in points["band"] for angle in points["angle"]]
    elif tuple(names) != SUN_ANGLES:
        raise broken(href, f"its angles are {', '.join(names)}")
    return geobox, tuple(names)


def _geobox(href: str, stored: _Store, array: StoredArray) -> GeoBox:
    """Return the grid that the attributes of an array, or of its group, give (``proj:``, ``spatial:``)."""
    group = array.path.rpartition("/")[0]
    facts = {**stored.attributes.get(group, {}), **array.attributes}
    crs = facts.get("proj:code") or facts.get("proj:epsg") or facts.get("proj:wkt2")
    transform = facts.get("proj:transform")
    try:
        if transform is None or tuple(facts.get("proj:shape", array.shape)) != array.shape:
            transform = facts.get("spatial:transform")
        place = Affine(*map(float, (transform or ())[:6]))
        if not np.isfinite(place.determinant * sum(place)) or not place.determinant:
            raise ValueError(transform)  # noqa: TRY301 - as float() does
        text = f"EPSG:{crs}" if isinstance(crs, int) else str(crs)
        CRS.from_user_input(text)
        geobox = same_geobox((array.shape[0], array.shape[1]), place, text)
        geobox.resolution  # noqa: B018 - of a transform whose numbers are too far apart there is none
    except (TypeError, ValueError, CRSError, np.linalg.LinAlgError) as error:
        raise SceneError(
            f"{display(href)} does not say where its pixels are: proj:transform is {transform!r}, its CRS {crs!r}; "
            "write proj:code (or proj:epsg) and proj:transform to its attributes, or open it with xarray.open_zarr",
            href=display(href),
        ) from error
    return geobox


def _overviews(stored: _Store, array: StoredArray) -> list[StoredArray]:
    """Return the coarser arrays of the same band, from fine to coarse."""
    group, _, name = array.path.rpartition("/")
    beside = group.rpartition("/")[0]
    coarser = []
    for path, other in stored.arrays.items():
        above = path.rpartition("/")[0]
        if path.rpartition("/")[2] != name or above.rpartition("/")[0] != beside or len(other.shape) != 2:
            continue
        if _corner(other) not in (None, _corner(array)) or _numbers(other) != _numbers(array):
            continue
        factors = {divmod(full, n) for full, n in zip(array.shape, other.shape, strict=True)}
        if len(factors) == 1 and (factor := factors.pop())[0] > 1 and not factor[1] and other.dtype == array.dtype:
            coarser.append(other)
    return sorted(coarser, key=lambda other: -other.shape[0])


def _corner(array: StoredArray) -> list[Any] | None:
    """Return where an array begins; None if it does not say so: GeoZarr's coarsest have the transform of finer ones."""
    transform, shape = (array.attributes.get(key) for key in ("proj:transform", "proj:shape"))
    return transform[2:6:3] if isinstance(transform, list) and shape == list(array.shape) else None


def _numbers(array: StoredArray) -> tuple[str, ...]:
    """Return what the numbers of an array mean."""
    return repr(_nodata(array)), *(repr(array.attributes.get(key)) for key in ("scale_factor", "add_offset"))


def _nodata(array: StoredArray) -> float | None:
    """Return its fill value, as GDAL does: that of its attributes, else that of its metadata."""
    stated = array.fill
    if isinstance(own := array.attributes.get("_FillValue"), (int, float)) and not isinstance(own, bool):
        stated = own  # xarray writes floats as base64, which are also in the metadata
    return None if stated is None else nodata_in(float(stated), array.dtype)


def _scaling(href: str, array: StoredArray) -> Scaling | None:
    scale, offset = (array.attributes.get(key) for key in ("scale_factor", "add_offset"))
    unit = array.attributes.get("units")
    if scale is None and offset is None:  # reflectances as floats have the unit 1
        return Scaling(1.0, 0.0, str(unit)) if array.dtype.kind == "f" and unit else None
    try:
        scaling = Scaling(float(1.0 if scale is None else scale), float(offset or 0.0), None)
    except (TypeError, ValueError):
        scaling = Scaling(0.0, 0.0, None)
    if not (np.isfinite((scaling.scale, scaling.offset)).all() and scaling.scale):
        raise broken(href, f"its scale_factor is {scale!r}, its add_offset {offset!r}")
    return scaling


# --- Where its tiles are --------------------------------------------------------------------------------------------


def _level(store: str, array: StoredArray, sign: Sign | None) -> tuple[Level, str]:
    """Return where the tiles of an array are, and why only zarr can read it (empty: its tiles can be decoded)."""
    href = object_href(store, array.path)
    chunk, inner, codec, why = _layout(array)
    shape = (array.shape[-2], array.shape[-1])
    if min(*chunk, *inner) < 1:
        raise broken(href, f"chunks of {chunk}")
    block_bytes = prod(inner) * array.dtype.itemsize
    if block_bytes > _LARGEST_BLOCK:
        raise broken(href, f"a chunk of {block_bytes} bytes when decoded")
    objects_of_it = prod(-(-n // side) for n, side in zip(shape, chunk, strict=True))
    tiles = objects_of_it * prod(n // side for n, side in zip(chunk, inner, strict=True))
    if not why and (objects_of_it > _MOST_OBJECTS or tiles > _MOST_TILES):
        raise broken(href, f"{objects_of_it} objects with {tiles} chunks")
    how = coding(
        compression=_COMPRESSIONS.get(codec, "NONE"),
        predictor=1,
        photometric="MINISBLACK",
        interleave="band",
        samples=1,
        dtype=array.dtype.str,
        bits=8 * array.dtype.itemsize,
    )
    if why:
        none = np.empty(0, np.uint64)
        objects = Objects((href,), (None,), np.empty(0, np.uint32), array.fill or 0)
        return Level(shape, inner, tiled=True, coding=how, offsets=none, counts=none, objects=objects), why
    hrefs = [object_href(store, f"{array.path}/{key}") for key in _keys(array, chunk)]
    inner, places, identities, blosc = _stored_tiles(hrefs, array, chunk, inner, codec, sign)
    (rows, columns), (height, width) = (-(-n // side) for n, side in zip(shape, chunk, strict=True)), places.shape[1:3]
    index = places.reshape(rows, columns, height, width, 2).swapaxes(1, 2).reshape(rows * height, columns * width, 2)
    of_tile = np.arange(len(hrefs), dtype=np.uint32).reshape(rows, columns).repeat(height, 0).repeat(width, 1)
    within = tuple(slice(-(-n // side)) for n, side in zip(shape, inner, strict=True))
    offsets, counts = np.ascontiguousarray(np.moveaxis(index[within], 2, 0)).reshape(2, -1)
    objects = Objects(tuple(hrefs), tuple(identities), of_tile[within].reshape(-1), array.fill or 0, tuple(blosc))
    return Level(shape, inner, tiled=True, coding=how, offsets=offsets, counts=counts, objects=objects), ""


def _stored_tiles(
    hrefs: Sequence[str],
    array: StoredArray,
    chunk: tuple[int, int],
    inner: tuple[int, int],
    codec: str,
    sign: Sign | None,
) -> tuple[tuple[int, int], NDArray[np.uint64], Sequence[Identity | None], Sequence[BloscBlocks | None]]:
    """Return the shape of the tiles in an array's objects, and of each object first byte and size of its tiles.

    ``(objects, y, x, 2)``; 0 for tiles that are not stored. Then the identity of each object, None for one that is not
    there or was not looked at, and where its blocks are if its tiles are rows of a Blosc chunk.
    """
    block_bytes = prod(inner) * array.dtype.itemsize
    identities: Sequence[Identity | None] = [None] * len(hrefs)
    blosc: Sequence[BloscBlocks | None] = ()
    if inner != chunk:
        at_start = array.metadata["codecs"][0]["configuration"].get("index_location") == "start"
        inside = chunk[0] // inner[0], chunk[1] // inner[1]
        found = [_found(lambda one: _shard_index(one, prod(inside), sign, at_start=at_start), one) for one in hrefs]
        indices, identities = zip(*found, strict=True)
        none = np.zeros((prod(inside), 2), np.uint64)
        places = np.stack([none if index is None else index for index in indices])
        return inner, places.reshape(-1, *inside, 2), identities, blosc
    if codec == "blosc" and block_bytes > _LARGE_CHUNK:
        found = [_found(lambda one: _blosc_blocks(one, block_bytes, sign), one) for one in hrefs]
        blosc, identities = zip(*found, strict=True)
        size = max((blocks.block for blocks in blosc if blocks is not None), default=block_bytes)
        most = int(block_bytes / max(_LARGE_CHUNK / 4, _LEAST_BLOCKS * size))  # tiles in a chunk
        number = next((n for n in range(most, 1, -1) if chunk[0] % n == 0), 1)
        places = np.zeros((len(hrefs), number, 1, 2), np.uint64)
        ends = np.arange(number + 1) * (block_bytes // number)
        for i, blocks in enumerate(blosc):
            for j, (first, last) in enumerate(pairwise(ends.tolist()) if blocks is not None else ()):
                some = blocks.holding(first, last)
                start = blocks.starts[some].min()
                places[i, j, 0] = start, blocks.stops[some].max() - start
        return (chunk[0] // number, chunk[1]), places, identities, blosc
    # A request for each of many objects of a bucket would take too long: they are as large as no codec makes them until
    # they are read, and what is not there then is the fill value.
    sizes = [block_bytes + (block_bytes >> 6) + 1024] * len(hrefs)
    if not is_remote(hrefs[0]):
        identities = [_found(lambda one: (None, read_identity(one)), one)[1] for one in hrefs]
        sizes = [0 if one is None else one.size for one in identities]
    places = np.zeros((len(hrefs), 1, 1, 2), np.uint64)
    places[:, 0, 0, 1] = sizes
    return chunk, places, identities, blosc


def _layout(array: StoredArray) -> tuple[tuple[int, int], tuple[int, int], str, str]:
    """Return the shape of an array's chunks and of their tiles, the codec of a tile, and why only zarr can read it."""
    m = array.metadata
    if len(array.shape) > 2:
        side = array.shape[-2], array.shape[-1]
        return side, side, "", "more than two dimensions of Zarr"
    if m["zarr_format"] == 2:
        chunk = tuple(m["chunks"])
        codec = (m["compressor"] or {"id": ""})["id"]
        why = "filters of Zarr" if m["filters"] else "" if m["order"] == "C" else "Zarr in Fortran's order"
        return chunk, chunk, codec, why or _unknown(codec, big=array.dtype.byteorder == ">")
    grid = m["chunk_grid"]
    chunk = tuple(grid["configuration"].get("chunk_shape", array.shape))
    codecs, inner = list(m["codecs"]), chunk
    if codecs and codecs[0]["name"] == "sharding_indexed":
        shard = codecs[0]["configuration"]
        inner, index = tuple(shard["chunk_shape"]), [one["name"] for one in shard["index_codecs"]]
        if (
            len(codecs) > 1
            or index != ["bytes", "crc32c"]
            or any(a % max(b, 1) for a, b in zip(chunk, inner, strict=True))
        ):
            return chunk, inner, "", "a shard of Zarr with other codecs"
        codecs = list(shard["codecs"])
    names = [one["name"] for one in codecs]
    codec = names[1] if len(names) == 2 else ""
    encoded = m["chunk_key_encoding"]["name"] in ("default", "v2")
    if grid["name"] != "regular" or not encoded or names[:1] != ["bytes"] or len(names) > 2:
        return chunk, inner, "", f"codecs {', '.join(names)} of Zarr"
    big = (codecs[0].get("configuration") or {}).get("endian") == "big"
    return chunk, inner, codec, _unknown(codec, big=big)


def _unknown(codec: str, *, big: bool) -> str:
    if big:
        return "big-endian numbers of Zarr"
    return f"codec {codec} of Zarr" if codec and codec not in _COMPRESSIONS else ""


def _keys(array: StoredArray, chunk: tuple[int, int]) -> Iterator[str]:
    """Yield the keys of an array's chunks, row by row."""
    m = array.metadata
    separator, prefix = m.get("dimension_separator", "."), ""
    if m["zarr_format"] == 3:
        encoding = m["chunk_key_encoding"]
        default = encoding["name"] == "default"
        separator = (encoding.get("configuration") or {}).get("separator", "/" if default else ".")
        prefix = f"c{separator}" if default else ""
    rows, columns = (-(-n // side) for n, side in zip(array.shape, chunk, strict=True))
    return (f"{prefix}{row}{separator}{column}" for row, column in product(range(rows), range(columns)))


def _found(read: Callable[[str], tuple[Any, Identity]], href: str) -> tuple[Any, Identity | None]:
    """Return what is read of an object, and its identity; nothing for one that is not there: it is the fill value."""
    try:
        return read(href)
    except ReadError as error:
        if error.__dict__.get("missing"):
            return None, None
        raise


def _shard_index(href: str, chunks: int, sign: Sign | None, *, at_start: bool) -> tuple[NDArray[np.uint64], Identity]:
    """Return first byte and size of each inner chunk of a shard ``(chunks, 2)``, 0 for those that it does not hold."""
    size = 16 * chunks + 4
    identity = read_identity(href, sign)
    if identity.size < size:
        raise broken(href, f"it has {identity.size} bytes, and the index of a shard has {size}")
    data = read_range(href, 0 if at_start else identity.size - size, size, identity, sign)
    if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise broken(href, "the index of the shard does not have its checksum")
    index = np.frombuffer(data[:-4], "<u8").reshape(chunks, 2).astype(np.uint64)
    index[(index == _NOT_STORED).all(axis=1)] = 0
    end = np.uint64(identity.size)
    if (index[:, 0] > end).any() or (index[:, 1] > end - index[:, 0]).any():
        raise broken(href, f"it has {identity.size} bytes, and inner chunks beyond them")
    return index, identity


def _blosc_blocks(href: str, size: int, sign: Sign | None) -> tuple[BloscBlocks, Identity]:
    """Return where the blocks of a Blosc chunk are, which must hold `size` bytes when decoded."""
    head, identity = read_head(href, sign=sign, size=_HEAD)
    if len(head) < 16:
        raise broken(href, f"it has {identity.size} bytes, and is no Blosc chunk")
    decoded, block, encoded = struct.unpack("<III", head[4:16])
    if decoded != size:
        raise broken(href, f"it holds {decoded} bytes, and by the metadata of its array {size}")
    if encoded != identity.size or not 0 < block <= decoded:
        raise broken(href, f"it has {identity.size} bytes, by its own head {encoded} in blocks of {block}")
    count = -(-decoded // block)
    if head[2] & 2:  # stored as it is
        starts = 16 + np.arange(count, dtype=np.int64) * block
        stops = np.minimum(starts + block, 16 + decoded)
    else:
        end = 16 + 4 * count
        if end > identity.size or count > _MOST_BLOCKS:
            raise broken(href, f"it has {identity.size} bytes, and {count} blocks")
        if end > len(head):
            head = read_range(href, 0, end, identity, sign)
        starts = np.frombuffer(head, "<i4", count, 16).astype(np.int64)
        order = np.argsort(starts)  # blocks that threads encode are stored as they become ready
        stops = np.empty_like(starts)
        stops[order] = np.append(starts[order][1:], encoded)
        if starts.min() < end or (stops <= starts).any():
            raise broken(href, "blocks that overlap, or lie beyond its end")
    if stops.max() > identity.size:
        raise broken(href, f"it has {identity.size} bytes, and blocks beyond them")
    return BloscBlocks(head[:4], decoded, block, starts, stops), identity


def read_chunks(
    header: Header, level: int, window: tuple[slice, slice], bands: tuple[int, ...], out: NDArray[Any]
) -> None:
    """Read a window of an array into `out` ``(band, y, x)`` through zarr, in whole chunks."""
    objects = header.levels[level].objects
    assert objects is not None
    href = objects.hrefs[0]
    found = split_store(href)
    assert found is not None
    check_read(href)
    label = display(href)
    facts = {"href": label, "transient": is_remote(href), "retries": 0}
    with storage_errors(ReadError, f"{label}: zarr cannot read it", href, **facts):
        array = zarr.open_array(_zarr_store(found[0]), path=found[1], mode="r")
        whole = np.asarray(array[(..., *window)])
        if whole.ndim == len(_VIEW):  # of the first detector that sees a point
            sees = np.isnan(whole).argmin(axis=1)[:, None]
            whole = np.take_along_axis(whole, sees, axis=1)
        out[...] = whole.reshape(-1, *whole.shape[-2:])[list(bands)]
