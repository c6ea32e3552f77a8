"""Headers kept in a file, so that a stack that was opened before is opened without reading them again."""

from __future__ import annotations

import json
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from s2composite.errors import ParameterError, ReadError, WriteError
from s2composite.geotiff.header import Header, Scaling, mask_of, read_headers, signing
from s2composite.geotiff.structure import Level, coding, pack, same_geobox, unpack
from s2composite.storage.atomic import write_atomic
from s2composite.storage.files import is_remote
from s2composite.storage.http import Identity, Sign, read_identity
from s2composite.storage.urls import check_read

__all__ = ["load_index", "read_headers_cached", "save_index"]

_FORMAT = "s2composite index 4"


def save_index(headers: Sequence[Header], path: str | os.PathLike[str]) -> None:
    """Write headers to a file, which is complete when it takes its name.

    Text (JSON, compressed), not a pickle: reading it cannot run anything. About 1.5 KB a scene of 10980 x 10980.
    """
    path = _place(path)
    content = {"format": _FORMAT, "headers": [_to_plain(header) for header in headers]}
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
    max_workers: int = 32,
    sign: Sign | None = None,
    *,
    check: bool = True,
) -> dict[str, Header]:
    """Return the headers of an index whose files are still the same."""
    known = _load(_place(path))
    wanted = [signing(known[href], sign) for href in dict.fromkeys(hrefs) if href in known]
    for header in wanted:
        check_read(header.href)
    if not check:
        return {header.href: header for header in wanted}
    with ThreadPoolExecutor(max(1, min(max_workers, len(wanted)))) as pool:
        return {h.href: h for h, same in zip(wanted, pool.map(_is_unchanged, wanted), strict=True) if same}


def read_headers_cached(
    hrefs: Sequence[str], path: str | os.PathLike[str], max_workers: int = 32
) -> tuple[Header, ...]:
    """Return the headers of files, from an index where they are unchanged; the others are read and added to it."""
    headers = load_index(path, hrefs, max_workers)
    missing = [href for href in dict.fromkeys(hrefs) if href not in headers]
    if missing:
        headers |= {header.href: header for header in read_headers(missing, max_workers)}
        save_index(list((_load(_place(path)) | headers).values()), path)
    return tuple(headers[href] for href in hrefs)


def _load(path: Path) -> dict[str, Header]:
    try:
        content = json.loads(zlib.decompress(path.read_bytes()))
        if content["format"] != _FORMAT:
            return {}
        headers = [_from_plain(plain) for plain in content["headers"]]
    # a cache that cannot be read is one that has nothing
    except (OSError, zlib.error, ValueError, KeyError, TypeError, IndexError):
        return {}
    return {header.href: header for header in headers}


def _is_unchanged(header: Header) -> bool:
    try:
        if not header.identity.same(read_identity(header.href, header.sign)):
            return False
        if header.mask_kind != ".msk":
            return is_remote(header.href) or not Path(f"{header.href}.msk").exists()
        return header.mask is None or header.mask.identity.same(read_identity(header.mask.href))
    except ReadError:
        return False


def _to_plain(header: Header) -> dict[str, Any]:
    mask = None
    if header.mask is not None and header.mask.href == header.href:
        # of a mask in the file itself only the levels are its own
        mask = {"levels": [_level_to_plain(level) for level in header.mask.levels]}
    elif header.mask is not None:
        mask = _to_plain(header.mask)
    return {
        "href": header.href,
        "identity": asdict(header.identity),
        "transform": list(header.geobox.transform)[:6],
        "crs": str(header.geobox.crs) if header.geobox.crs else None,
        "dtype": header.dtype.str,
        "nodata": header.nodata,
        "band_nodata": header.band_nodata,
        "descriptions": header.descriptions,
        "levels": [_level_to_plain(level) for level in header.levels],
        "mask": mask,
        "mask_kind": header.mask_kind,
        "alpha": header.alpha,
        "bands": header.bands,
        "undecodable": header.undecodable,
        "framed": header.framed,
        "scaling": [None if s is None else [s.scale, s.offset, s.unit] for s in header.scaling],
    }


def _level_to_plain(level: Level) -> list[Any]:
    how = asdict(level.coding) | {"tables": b64encode(level.coding.tables).decode()}
    packed = b64encode(pack(level.offsets, level.counts)).decode()
    return [level.shape, level.block, level.tiled, how, packed]


def _from_plain(plain: Mapping[str, Any]) -> Header:
    levels = tuple(_level_from_plain(level) for level in plain["levels"])
    header = Header(
        plain["href"],
        Identity(**plain["identity"]),
        same_geobox(levels[0].shape, Affine(*plain["transform"]), plain["crs"]),
        plain["bands"],
        np.dtype(plain["dtype"]),
        plain["nodata"],
        tuple(plain["descriptions"]),
        levels,
        band_nodata=tuple(plain["band_nodata"]),
        undecodable=plain["undecodable"],
        framed=plain["framed"],
        mask_kind=plain["mask_kind"],
        alpha=plain["alpha"],
        scaling=tuple(None if s is None else Scaling(*s) for s in plain["scaling"]),
    )
    mask = plain["mask"]
    if mask is None:
        return header
    if "href" in mask:
        return replace(header, mask=_from_plain(mask))
    return replace(header, mask=mask_of(header, tuple(_level_from_plain(level) for level in mask["levels"])))


def _level_from_plain(plain: Sequence[Any]) -> Level:
    shape, block, tiled, how, packed = plain
    same = coding(**how | {"tables": b64decode(how["tables"])})
    return unpack(tuple(shape), tuple(block), tiled, same, b64decode(packed))
