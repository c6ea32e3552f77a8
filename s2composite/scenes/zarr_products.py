"""Sentinel-2 products in Zarr stores as STAC items: ESA's (EOPF) and the optimised ones made of them (GeoZarr)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from s2composite.errors import ReadError, SceneError, SourceError
from s2composite.geotiff.zarr_array import ANGLES, SUN_ANGLES, StoredArray, object_href, read_store, split_store
from s2composite.scenes.names import parse_name
from s2composite.storage.files import absolute, display

__all__ = ["item_of_store", "with_arrays"]

_CODE = re.compile(r"b(0[1-9]|1[0-2]|8a)|scl|cld|snw|aot|wvp", re.IGNORECASE)
_TYPE = "application/vnd.zarr"
_UNREADABLE = {"product"}  # the only asset of a store whose metadata cannot be read
_READS = 32  # stores whose metadata are read at once


def item_of_store(href: str) -> dict[str, Any]:
    """Return a product as a STAC item whose assets are its arrays ``(y, x)``, or those below a path in it.

    The product says of itself what it is (``stac_discovery``); otherwise its name does.
    """
    found = split_store(href)
    assert found is not None
    store, path = found
    assets = _assets(store, [path])
    attributes = {} if assets.keys() == _UNREADABLE else read_store(store).attributes[""]
    item: Mapping[str, Any] = attributes.get("stac_discovery") or {}
    properties = dict(item.get("properties") or {})
    if not (properties.get("datetime") or properties.get("start_datetime")):
        parsed = parse_name(store)
        properties |= {"datetime": parsed.time.isoformat(), "platform": parsed.platform}
        told = {"sat:relative_orbit": parsed.orbit, "s2:processing_baseline": parsed.baseline}
        properties |= {key: value for key, value in told.items() if value is not None}
    name = re.sub(r"\.(SAFE|zarr)$", "", str(item.get("id") or display(store).rpartition("/")[2]), flags=re.IGNORECASE)
    facts = {key: item.get(key) for key in ("bbox", "geometry") if item.get(key)}
    return {**facts, "type": "Feature", "id": name, "properties": properties, "assets": assets}


def with_arrays(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return items in whose assets a group of a Zarr store is replaced by the arrays in it, each band once.

    Other assets, and items without a Zarr store, are unchanged.
    """

    def expanded(item: Mapping[str, Any]) -> Mapping[str, Any]:
        groups: dict[str, list[str]] = {}
        others = {}
        for key, asset in (item.get("assets") or {}).items():
            href = str((asset or {}).get("href") or "")
            said = f"{href} {(asset or {}).get('type') or ''}".lower()
            found = None
            with suppress(SourceError):  # assets may be in places that are not read
                found = split_store(absolute(href)) if "zarr" in said else None
            roles = set((asset or {}).get("roles") or ())
            hidden = {"metadata", "thumbnail", "overview"} & roles and "data" not in roles
            if found is None or hidden or display(href).endswith((".json", ".zmetadata")):
                others[key] = asset
            else:
                groups.setdefault(found[0], []).append(found[1])
        arrays: dict[str, Any] = {}
        rasters = any(str((asset or {}).get("type")).startswith("image/") for asset in others.values())
        for store, paths in groups.items():
            try:
                found_here = _assets(store, paths)
            except SceneError:  # a store of something else, beside the rasters of the scene
                found_here = {}
                if not rasters:
                    raise
            if not (rasters and found_here.keys() == _UNREADABLE):
                arrays = found_here | arrays
        return {**item, "assets": {**others, **arrays}} if groups else item

    with ThreadPoolExecutor(_READS) as pool:
        return list(pool.map(expanded, items))


def _assets(store: str, paths: Sequence[str]) -> dict[str, Any]:
    """Return the arrays ``(y, x)`` with a grid at or below some paths: measurements first, the finest of a name."""
    try:
        stored = read_store(store)
    except (ReadError, SceneError):  # again where its header is read: on_error= says what becomes of the scene
        return {name: {"href": store, "type": _TYPE} for name in _UNREADABLE}
    found: dict[str, StoredArray] = {}
    ranks: dict[str, tuple[bool, tuple[int, ...]]] = {}
    for array in stored.arrays.values():
        inside = any(not path or f"{array.path}/".startswith(f"{path}/") for path in paths)
        grid = {**stored.attributes.get(array.path.rpartition("/")[0], {}), **array.attributes}
        placed = any(key in grid for key in ("proj:transform", "spatial:transform"))
        flat = placed and len(array.shape) == 2 and array.dimensions in ((), ("y", "x"))
        if not inside or not (flat or array.dimensions in ANGLES):
            continue
        name = array.path.rpartition("/")[2]
        name = name.upper() if _CODE.fullmatch(name) else name
        # Masks of detectors and of quality have the names of the bands that they are for.
        rank = (array.path.startswith("measurements/"), array.shape)
        if rank > ranks.get(name, (False, ())):
            found[name], ranks[name] = array, rank
    if not found:
        raise SceneError(
            f"{display(object_href(store, paths[0]))} holds no array (y, x) that says where its pixels are "
            "(proj:transform); a cube (time, band, y, x) is opened with xarray.open_zarr and given to composite()",
            href=display(store),
        )
    return {
        name: {
            "href": object_href(store, array.path),
            "type": _TYPE,
            "data_type": array.dtype.name,
            "proj:shape": list(array.shape[-2:]),
            **{key: array.attributes[key] for key in ("proj:transform", "proj:epsg") if key in array.attributes},
            **({"bands": [{"name": one} for one in SUN_ANGLES]} if array.dimensions == ANGLES[0] else {}),
        }
        for name, array in found.items()
    }
