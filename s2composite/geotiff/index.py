"""Headers kept in a file, so that a stack that was opened before is opened without reading them again."""

from __future__ import annotations

import json
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from s2composite.errors import ParameterError, ReadError, WriteError
from s2composite.geotiff.header import Header, Scaling, mask_of, signing
from s2composite.geotiff.structure import Level, coding, pack, same_geobox, unpack
from s2composite.storage.files import is_remote, write_atomic
from s2composite.storage.http import Identity, Sign, read_identity
from s2composite.storage.urls import check_read

__all__ = ["load_index", "save_index"]

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
