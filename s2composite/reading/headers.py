"""Read the headers of many files: concurrently, lazily if their catalogue has enough metadata, or from an index.

An index is a file of headers, so that a stack that was opened before is opened without reading them again.
"""

from __future__ import annotations

import json
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from affine import Affine

from s2composite.errors import ParameterError, ReadError, S2CompositeError, SceneError, WriteError
from s2composite.geotiff.header import Header, Scaling, mask_of, read_header, signing
from s2composite.geotiff.structure import Level, coding, pack, same_geobox, unpack
from s2composite.geotiff.zarr_array import read_array_header, split_store
from s2composite.reading.sources import FileSource, ReadOptions, nodata_of_file
from s2composite.scenes.model import Asset, Scene
from s2composite.storage.files import display, is_remote, write_atomic
from s2composite.storage.http import Identity, Sign, read_identity
from s2composite.storage.urls import check_read

__all__ = ["header_of", "is_lazy", "load_index", "open_headers", "opened_sources", "save_index"]

_UNSEEN = Identity(-1)  # of a file that has not been opened

_READS, _READS_IN_A_TASK = 32, 16  # concurrent header reads: remote ones wait for the network, local ones take 0.3 ms
_LAZY_FROM = 256  # number of files from which tasks read the headers, if the catalogue gives the grids
_MOST_KEPT = 4096  # headers cached by a process: about 40 MB for scenes of 10980 x 10980

_KEPT: dict[str, Header] = {}
_LOCK = Lock()


def header_of(href: str, sign: Sign | None = None) -> Header:
    """Return what a raster file, or an array of a Zarr store, is."""
    return read_header(href, sign) if split_store(href) is None else read_array_header(href, sign)


def is_lazy(header: Header) -> bool:
    """Return whether the file has not been opened yet."""
    return header.identity == _UNSEEN


def opened_sources(
    sources: Sequence[tuple[int, FileSource]],
) -> tuple[list[tuple[int, FileSource]], tuple[tuple[int, ReadError], ...]]:
    """Open files that were not opened yet; return the readable sources, and errors for the others.

    An error is a file that cannot be opened or differs from what was expected. Each process reads a header once.
    """
    lazy = {source.header.href: source.header for _, source in sources if is_lazy(source.header)}
    with _LOCK:
        real: dict[str, Header | ReadError] = {href: _KEPT[href] for href in lazy if href in _KEPT}
    missing = [header for href, header in lazy.items() if href not in real]

    def read(header: Header) -> Header | ReadError:
        try:
            return header_of(header.href, header.sign)
        except ReadError as error:
            return error
        except S2CompositeError as error:
            return ReadError(str(error), href=display(header.href), transient=False, retries=0)

    if missing:
        with ThreadPoolExecutor(min(_READS_IN_A_TASK, len(missing))) as pool:
            new = dict(zip([h.href for h in missing], pool.map(read, missing), strict=True))
        with _LOCK:
            if len(_KEPT) + len(new) > _MOST_KEPT:
                _KEPT.clear()
            _KEPT.update({href: header for href, header in new.items() if isinstance(header, Header)})
        real |= new
    readable: list[tuple[int, FileSource]] = []
    lost: list[tuple[int, ReadError]] = []
    for t, source in sources:
        if source.header.href not in lazy:
            readable.append((t, source))
            continue
        header = _checked(source.header, real[source.header.href])
        if isinstance(header, ReadError):
            lost.append((t, header))
            continue
        opened = replace(source, header=header, nodata=nodata_of_file(header, source.part))
        if header.undecodable and source.engine == "tiles":
            opened = replace(opened, engine="zarr" if header.in_zarr else "gdal", why=header.undecodable)
        readable.append((t, opened))
    return readable, tuple(lost)


def _checked(lazy: Header, real: Header | ReadError) -> Header | ReadError:
    """Return the real header, or an error if it differs from the lazy one."""
    if isinstance(real, ReadError):
        return real
    mine, other = lazy.geobox, real.geobox
    # grids may differ by rounding: catalogues format CRS and numbers in different ways
    same = mine.shape == other.shape and mine.crs == other.crs and mine.transform.almost_equals(other.transform, 1e-6)
    alike = {
        "grid": mine == other or same,
        "dtype": lazy.dtype == real.dtype,
        "number of bands": lazy.bands == real.bands,
        "scale and offset": lazy.scaling == real.scaling,
        "nodata of single bands": list(map(str, lazy.band_nodata)) == list(map(str, real.band_nodata)),
        "overviews": [v.shape for v in lazy.levels] == [v.shape for v in real.levels],
    }
    unlike = [name for name, holds in alike.items() if not holds]
    if not unlike:
        return replace(real, sign=lazy.sign)
    href = display(lazy.href)
    why = f"{href}: its {' and '.join(unlike)} differ from its catalogue or the other files"
    return ReadError(f"{why}; open the scenes with headers='read'", href=href, transient=False, retries=0)


def open_headers(
    products: Sequence[Scene],
    wanted: Sequence[Sequence[Asset]],
    options: ReadOptions,
    index: str | os.PathLike[str] | None,
) -> tuple[dict[str, Header], dict[str, S2CompositeError]]:
    """Return headers of the `wanted` assets by href, read or lazy, and the errors if these are to be skipped.

    Headers in the file `index` are not read again. With lazy headers they are used without a check, and reading a file
    that has changed raises an error; otherwise each is checked now.
    """
    every = [asset for assets in wanted for asset in assets]
    lacking = next((asset for asset in every if asset.grid is None), None)
    if options.headers == "lazy" and lacking is not None:
        raise ParameterError(
            f"headers='lazy' needs the projection extension, and {display(lacking.href)} has none; use headers='read'"
        )
    many = options.headers == "auto" and index is None and len(every) >= _LAZY_FROM
    if lacking is not None or not (many or options.headers == "lazy"):
        return _read_headers(wanted, options, index)
    # by kind: asset, size and type determine the rest of a header; the tasks check it
    kinds: dict[tuple[Any, ...], list[Asset]] = {}
    for product, assets in zip(products, wanted, strict=True):
        for asset in assets:
            assert asset.grid is not None
            kinds.setdefault((product.collection, asset.name, asset.grid.shape, asset.values.dtype), []).append(asset)
    hrefs = [asset.href for members in kinds.values() for asset in members]
    known = {} if index is None else load_index(index, hrefs, sign=options.sign, check=False)
    unknown = [members for members in kinds.values() if not any(asset.href in known for asset in members)]
    samples, broken = _read_headers([members[:1] for members in unknown], options, None)
    # if the first file of a kind cannot be opened, read all others of that kind
    failed = [members for members in unknown if members[0].href in broken]
    more, lost = _read_headers(failed, options, None) if failed else ({}, {})
    read = known | samples | more
    if index is not None and read.keys() - known.keys():
        save_index(list(read.values()), index)
    headers = dict(read)
    for members in kinds.values():
        sample = next((read[asset.href] for asset in members if asset.href in read), None)
        if sample is None or members in failed:
            continue
        for asset in members:
            # the grid from its catalogue, the rest from a file of the same kind
            if asset.href not in read and (grid := asset.grid) is not None:
                place = same_geobox(grid.shape, Affine(*grid.transform), grid.crs)
                own = {"href": asset.href, "identity": _UNSEEN, "geobox": place, "mask": None, "sign": options.sign}
                headers[asset.href] = replace(sample, **own)
    return headers, broken | lost


def _read_headers(
    wanted: Sequence[Sequence[Asset]], options: ReadOptions, index: str | os.PathLike[str] | None
) -> tuple[dict[str, Header], dict[str, S2CompositeError]]:
    """Return headers, and errors if these are to be skipped, by href."""
    hrefs = list(dict.fromkeys(asset.href for assets in wanted for asset in assets))
    known = {} if index is None else load_index(index, hrefs, sign=options.sign)

    def read(href: str) -> Header | S2CompositeError:
        try:
            return known.get(href) or header_of(href, options.sign)
        except (SceneError, ReadError) as error:
            if options.on_error == "raise":
                raise
            return error

    with ThreadPoolExecutor(_READS) as pool:
        results = dict(zip(hrefs, pool.map(read, hrefs), strict=True))
    headers = {href: header for href, header in results.items() if isinstance(header, Header)}
    if index is not None and headers.keys() - known.keys():
        save_index(list(headers.values()), index)
    return headers, {href: error for href, error in results.items() if not isinstance(error, Header)}


# --- An index: headers kept in a file --------------------------------------------------------------------------------


_FORMAT = "s2composite index 4"


def save_index(headers: Sequence[Header], path: str | os.PathLike[str]) -> None:
    """Write headers to a file, which is complete when it takes its name.

    Text (JSON, compressed), not a pickle: reading it cannot run anything. About 1.5 KB a scene of 10980 x 10980. Arrays
    of Zarr stores are not kept, since they are in many objects, each of which would have to be looked at.
    """
    path = _place(path)
    content = {"format": _FORMAT, "headers": [_to_plain(header) for header in headers if not header.in_zarr]}
    try:
        write_atomic(path, zlib.compress(json.dumps(content).encode()))
    except (OSError, ValueError) as error:  # the latter: NUL in the name
        raise WriteError(f"{path}: the index of headers cannot be written: {error}", path=str(path)) from error


def _place(path: str | os.PathLike[str]) -> Path:
    """Return where an index is; a ParameterError where that is no local file."""
    if not isinstance(path, (str, os.PathLike)) or not str(path).strip() or is_remote(str(path)):
        raise ParameterError(f"index is {path!r}; it is the path of a local file, which is made if it is not there")
    return Path(path)


def load_index(
    path: str | os.PathLike[str],
    hrefs: Sequence[str],
    sign: Sign | None = None,
    *,
    check: bool = True,
) -> dict[str, Header]:
    """Return the headers of an index whose files are still the same."""
    path = _place(path)
    try:
        content = json.loads(zlib.decompress(path.read_bytes()))
        headers = [_from_plain(plain) for plain in content["headers"]] if content["format"] == _FORMAT else []
    # a cache that cannot be read is one that has nothing
    except (OSError, zlib.error, ValueError, KeyError, TypeError, IndexError):
        return {}
    known = {header.href: header for header in headers}
    wanted = [signing(known[href], sign) for href in dict.fromkeys(hrefs) if href in known]
    for header in wanted:
        check_read(header.href)
    if not check:
        return {header.href: header for header in wanted}

    def is_unchanged(header: Header) -> bool:
        try:
            if not header.identity.same(read_identity(header.href, header.sign)):
                return False
            if header.mask_kind != ".msk":
                return is_remote(header.href) or not Path(f"{header.href}.msk").exists()
            return header.mask is None or header.mask.identity.same(read_identity(header.mask.href))
        except ReadError:
            return False

    with ThreadPoolExecutor(max(1, min(32, len(wanted)))) as pool:
        return {h.href: h for h, same in zip(wanted, pool.map(is_unchanged, wanted), strict=True) if same}


def _to_plain(header: Header) -> dict[str, Any]:
    plain = {one.name: getattr(header, one.name) for one in fields(header) if one.name not in ("geobox", "sign")}
    mask = header.mask
    # of a mask in the file itself only the levels are its own
    inside = mask is not None and mask.href == header.href
    return plain | {
        "identity": asdict(header.identity),
        "transform": list(header.geobox.transform)[:6],
        "crs": str(header.geobox.crs) if header.geobox.crs else None,
        "dtype": header.dtype.str,
        "levels": _levels_to_plain(header),
        "mask": mask and ({"levels": _levels_to_plain(mask)} if inside else _to_plain(mask)),
        "scaling": [scaling and astuple(scaling) for scaling in header.scaling],
    }


def _levels_to_plain(header: Header) -> list[Any]:
    plain = []
    for level in header.levels:
        how = asdict(level.coding) | {"tables": b64encode(level.coding.tables).decode()}
        packed = b64encode(pack(level.offsets, level.counts)).decode()
        plain.append([level.shape, level.block, level.tiled, how, packed])
    return plain


def _from_plain(plain: Mapping[str, Any]) -> Header:
    same: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in dict(plain).items()
    }
    transform, crs, mask = Affine(*same.pop("transform")), same.pop("crs"), plain["mask"]
    levels = _levels_from_plain(plain)
    header = Header(
        **same
        | {
            "identity": Identity(**plain["identity"]),
            "geobox": same_geobox(levels[0].shape, transform, crs),
            "dtype": np.dtype(plain["dtype"]),
            "levels": levels,
            "mask": None,
            "scaling": tuple(scaling and Scaling(*scaling) for scaling in plain["scaling"]),
        }
    )
    if mask is None:
        return header
    return replace(header, mask=_from_plain(mask) if "href" in mask else mask_of(header, _levels_from_plain(mask)))


def _levels_from_plain(plain: Mapping[str, Any]) -> tuple[Level, ...]:
    levels = []
    for shape, block, tiled, how, packed in plain["levels"]:
        same = coding(**how | {"tables": b64decode(how["tables"])})
        levels.append(unpack(tuple(shape), tuple(block), tiled, same, b64decode(packed)))
    return tuple(levels)
