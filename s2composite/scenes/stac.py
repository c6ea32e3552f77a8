"""STAC items as scenes. Items come from objects, files, catalogues, searches, stac-geoparquet and Zarr stores."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin

from pydantic_core import SchemaValidator, ValidationError
from pydantic_core import core_schema as cs
from pyproj import CRS
from pyproj.exceptions import CRSError

from s2composite.errors import AccessError, ParameterError, ReadError, SceneError, SourceError, needed
from s2composite.geotiff.zarr_array import ANGLES, SUN_ANGLES, StoredArray, object_href, read_store, split_store
from s2composite.scenes.dates import utc_time
from s2composite.scenes.model import Asset, AssetGrid, Scene, Values, arc_around
from s2composite.scenes.names import asset_bands, parse_name
from s2composite.scenes.products import catalogue_values, common_name, is_mask_band, is_picture, same_band, sensor_of
from s2composite.storage.files import absolute, display, filesystem, is_remote, storage_errors
from s2composite.storage.urls import limits

__all__ = [
    "RASTER_SUFFIXES", "is_stac", "is_stac_file", "item_of_store", "items_in", "items_of", "scene_of_item",
    "scenes_of_items", "scenes_of_stores", "with_alternate",
]  # fmt: skip

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
_FILES = (".json", ".geojson", ".parquet", ".geoparquet")
_SEARCH = ("url", "collections", "bbox", "datetime", "query")
_READS = 32  # Zarr stores whose metadata are read at once
_MAX_CHILDREN = 16  # catalogues within catalogues that are followed


# --- items ----------------------------------------------------------------------------------------------------------


def is_stac(source: object) -> bool:
    """Return whether `source` is STAC: a dictionary, an object of pystac, or a search of pystac-client."""
    if isinstance(source, type) or hasattr(source, "__array__"):  # a Series of pandas, which may hold paths
        return False
    return isinstance(source, Mapping) or any(hasattr(source, name) for name in ("to_dict", "items_as_dicts"))


def is_stac_file(href: str) -> bool:
    """Return whether a path or URL names a file of items."""
    return display(href).lower().endswith(_FILES)


def items_of(source: Any) -> list[Mapping[str, Any]]:
    """Return the items in a STAC object as dictionaries, with absolute asset hrefs where possible.

    The object is one of pystac or pystac-client, a dictionary, or a search to be made as a dictionary with ``url``.
    """
    if isinstance(source, Mapping) and "url" not in source:
        return _not_empty(_features(source, "the dictionary"), "the dictionary")
    if isinstance(source, Mapping):
        unknown = [key for key in source if key not in (*_SEARCH, "intersects", "ids", "filter", "limit", "max_items")]
        if unknown:
            raise ParameterError(
                f"the search has the unknown keys {', '.join(unknown)}; there are {', '.join(_SEARCH)}"
            )
        options = {key: value for key, value in source.items() if key != "url" and value is not None}
        label = _label_of_search(source["url"], options)
        if limits() is not None:
            raise AccessError(f"{label}: searches follow links unasked, so none is made here; give item files")
        client = needed("pystac_client", "stac")
        url = source["url"]
        return _items_found(lambda: client.Client.open(url).search(**options).items_as_dicts(), label, url)
    if hasattr(source, "items_as_dicts"):
        url = getattr(source, "url", "its address")
        return _items_found(source.items_as_dicts, _label_of_search(url, getattr(source, "_parameters", {})), url)
    if hasattr(source, "get_items"):  # a Catalog or Collection of pystac
        items = list(source.get_items(recursive=True))
        return _not_empty([_from_pystac(item) for item in items], f"the collection {source.id}")
    if hasattr(source, "items"):
        return _not_empty([_from_pystac(item) for item in source], "the ItemCollection")
    return [_from_pystac(source)]


def items_in(href: str) -> list[Mapping[str, Any]]:
    """Return the items in a JSON file (item, ItemCollection, collection, catalogue) or a stac-geoparquet file."""
    label = display(href)
    if not label.lower().endswith((".json", ".geojson")):
        parquet = needed("pyarrow.parquet", "stac")
        arrow = needed("stac_geoparquet.arrow", "stac")
        fs, path = filesystem(href)
        not_parquet = storage_errors(SourceError, f"{label} is not stac-geoparquet", href, href=label)
        with not_parquet, fs.open(path, "rb") as file:
            rows = arrow.stac_table_to_items(parquet.read_table(file))
            return _not_empty([_with_absolute_hrefs(item, None) for item in rows], label)
    content = _read_json(href)
    if content.get("type") in ("Collection", "Catalog"):
        return _not_empty(list(_linked_items(content, href, 0)), label)
    return _not_empty(_features(content, label, href), label)


def _read_json(href: str) -> Mapping[str, Any]:
    with storage_errors(SourceError, f"cannot read {display(href)}", href, href=display(href)):
        try:
            fs, path = filesystem(href)
            content = json.loads(fs.cat_file(path))
        except ValueError as error:
            raise SourceError(f"{display(href)} is not JSON ({error}); give a STAC item or ItemCollection") from None
    if not isinstance(content, Mapping):
        raise SourceError(f"{display(href)} holds a list; give a STAC item or ItemCollection", href=display(href))
    return content


def _features(content: Mapping[str, Any], label: str, base: str | None = None) -> list[Mapping[str, Any]]:
    kind = content.get("type")
    if kind == "FeatureCollection":
        features = content.get("features") or []
        if not isinstance(features, Sequence):
            raise ParameterError(f"{label} is not an ItemCollection: its features are not a list")
        return [_with_absolute_hrefs(item, base) for item in features]
    if kind == "Feature" and "assets" in content:
        return [_with_absolute_hrefs(content, base)]
    raise ParameterError(
        f"{label} is not a STAC item (its type is {kind!r}); give an item, an ItemCollection, or a search as "
        f"{{{', '.join(map(repr, _SEARCH))}}}"
    )


def _linked_items(content: Mapping[str, Any], href: str, depth: int) -> Iterator[Mapping[str, Any]]:
    """Yield the items that a collection or catalogue links to, in its children too."""
    for link in _checked_item({"links": content.get("links"), "id": href})["links"] or ():
        target = _resolved(str(link.get("href", "")), href)
        if link.get("rel") == "item":
            yield from _features(_read_json(target), display(target), target)
        elif link.get("rel") == "child" and depth < _MAX_CHILDREN:
            yield from _linked_items(_read_json(target), target, depth + 1)


def _from_pystac(item: Any) -> Mapping[str, Any]:
    if isinstance(item, Mapping):
        return _with_absolute_hrefs(item, None)
    if not (hasattr(item, "assets") and hasattr(item, "to_dict")):
        raise ParameterError(f"{type(item).__name__} is not a source; give STAC items, paths, URLs or scenes")
    content: Mapping[str, Any] = item.to_dict(include_self_link=True, transform_hrefs=False)
    return _with_absolute_hrefs(content, item.get_self_href())


def _with_absolute_hrefs(raw: object, base: str | None) -> Mapping[str, Any]:
    """Return an item, its fields checked, whose asset hrefs are absolute, if it says where it is."""
    item = _checked_item(raw)
    links = (link["href"] for link in item.get("links") or () if link.get("rel") == "self" and link.get("href"))
    base = base or next(links, None)
    if base is None:
        return item
    assets = {
        key: {**asset, "href": _resolved(asset["href"], base)} if asset and asset.get("href") else asset
        for key, asset in (item.get("assets") or {}).items()
    }
    return {**item, "assets": assets}


def _resolved(href: str, base: str) -> str:
    if "://" in href or href.startswith(("/", "~")):
        return href
    if is_remote(base):
        # urljoin does not support gs:// and s3://.
        scheme, _, rest = base.partition("://")
        return f"{scheme}://{urljoin(f'http://{rest}', href).removeprefix('http://')}"
    return os.path.normpath(os.path.join(os.path.dirname(absolute(base)), href))  # noqa: PTH118, PTH120 - text in, text out


def _label_of_search(url: object, options: Mapping[str, Any]) -> str:
    asked = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"the search at {display(str(url))} for {asked or 'everything'}"


def _items_found(search: Callable[[], Any], label: str, url: object) -> list[Mapping[str, Any]]:
    with storage_errors(SourceError, f"{label} failed", str(url)):
        items = [_with_absolute_hrefs(item, None) for item in search()]
    return _not_empty(items, label)


def _not_empty(items: list[Mapping[str, Any]], label: str) -> list[Mapping[str, Any]]:
    if not items:
        raise SourceError(f"{label} gives no items; widen the area, the time or the query, or correct the collection")
    return items


def with_alternate(items: Sequence[Mapping[str, Any]], name: str | None) -> list[Mapping[str, Any]]:
    """Return items with the hrefs of a catalogue's ``alternate`` of a name, such as ``"https"``.

    Assets without it are unchanged; that no asset has it is an error.

    >>> asset = {"href": "s3://eodata/B04.jp2", "alternate": {"https": {"href": "https://host/B04.jp2"}}}
    >>> with_alternate([{"id": "a", "assets": {"B04": asset}}], "https")[0]["assets"]["B04"]["href"]
    'https://host/B04.jp2'
    """
    if name is None or not items:
        return list(items)
    names, changed = set[str](), list[Mapping[str, Any]]()
    for item in items:
        assets = {}
        for key, asset in (item.get("assets") or {}).items():
            if asset:
                alternates = asset.get("alternate") or {}
                names.update(alternates)
                href = (alternates.get(name) or {}).get("href")
                assets[key] = {**asset, "href": href} if href else asset
        changed.append({**item, "assets": assets})
    if name not in names:
        raise ParameterError(
            f"alternate is {name!r}, and the assets of the {len(items)} items have "
            f"{', '.join(sorted(map(repr, names))) or 'no alternates'}; leave it out to read their own hrefs"
        )
    return changed


# --- scenes ---------------------------------------------------------------------------------------------------------

_RASTER_TYPES = (
    "image/tiff", "image/vnd.stac.geotiff", "image/x.geotiff", "image/geotiff", "image/jp2", "image/vnd.zarr",
    "application/vnd.zarr",
)  # fmt: skip
_NO_DATA_ROLES = {"thumbnail", "overview", "metadata", "tilejson", "index", "browse", "archive", "hidden"}
_GRANULE = re.compile(r"(?<![A-Za-z0-9])T?((?:0?[1-9]|[1-5]\d|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])(?![A-Za-z0-9])")
_PLATFORM = re.compile(r"sentinel-?2([a-d])$", re.IGNORECASE)
_BASELINES = (
    "s2:processing_baseline", "sentinel2:processing_baseline", "sentinel:processing_baseline", "eopf:baseline",
)  # fmt: skip
_MADE = ("s2:generation_time", "processing:datetime", "created", "updated")


def scene_of_item(item: Mapping[str, Any]) -> Scene:
    """Return the scene that a STAC item describes.

    The item is of STAC 0.9 to 1.1, with any of the extensions ``eo``, ``proj``, ``raster``, ``processing``, ``grid``
    and ``mgrs``. A SceneError says that it has no id, no time or no rasters, or that a field is malformed.

    >>> item = {"id": "S2A_31TCJ_20230709_0_L2A", "properties": {"datetime": "2023-07-09T10:50:31Z", "platform":
    ... "sentinel-2a", "s2:processing_baseline": "05.09"}, "assets": {"red": {"href": "https://a/B04.tif", "type":
    ... "image/tiff"}}}
    >>> scene = scene_of_item(item)
    >>> scene.granule, scene.asset("red").values.shift
    ('31TCJ', -1000.0)
    """
    item = _checked_item(item)
    properties = item.get("properties") or {}
    scene_id = item.get("id")
    if not scene_id:
        raise SceneError("a STAC item has no id; leave it out")
    software = properties.get("processing:software") or {}
    names = (item.get("collection"), scene_id, properties.get("platform"), properties.get("constellation"))
    sensor = sensor_of(*names, *software)
    baseline = _baseline(properties, sensor)
    assets = [
        _asset(key, asset, item, baseline, sensor)
        for key, asset in (item.get("assets") or {}).items()
        if asset and _is_raster(key, asset)
    ]
    if not assets:
        raise SceneError(f"item {scene_id} has no rasters among its assets; leave it out", scene=scene_id)
    time = properties.get("datetime") or properties.get("start_datetime")
    if not time:
        raise SceneError(f"item {scene_id} has no datetime and no start_datetime; leave it out", scene=scene_id)
    platform = properties.get("platform")
    satellite = _PLATFORM.search(str(platform or ""))
    orbit = properties.get("sat:relative_orbit", properties.get("sentinel:relative_orbit"))
    if orbit is None and (match := _in_product_name(properties, r"_R(\d{3})_")):
        orbit = int(match[1])
    made = next((utc_time(properties[key]) for key in _MADE if properties.get(key)), None)
    return Scene(
        id=str(scene_id),
        time=utc_time(time),
        assets=tuple(sorted(assets, key=_preference)),
        granule=_granule(scene_id, properties),
        orbit=orbit,
        baseline=baseline,
        platform=f"S2{satellite[1].upper()}" if satellite else (str(platform) if platform else None),
        bbox=_bbox(item),
        made=made,
        collection=item.get("collection"),
        sensor=sensor,
        cloud_cover=properties.get("eo:cloud_cover"),
    )


def scenes_of_items(items: Sequence[Mapping[str, Any]], alternate: str | None) -> list[Scene]:
    """Return the scenes of items, each once: searches overlap. `alternate` is that of `with_alternate`."""
    with ThreadPoolExecutor(_READS) as pool:
        expanded = list(pool.map(_with_arrays, with_alternate(items, alternate)))
    return list(dict.fromkeys(map(scene_of_item, expanded)))


def scenes_of_stores(hrefs: Sequence[str]) -> list[Scene]:
    """Return the scenes of products in Zarr stores."""
    with ThreadPoolExecutor(_READS) as pool:
        return list(map(scene_of_item, pool.map(item_of_store, hrefs)))


def _is_raster(key: str, asset: Mapping[str, Any]) -> bool:
    roles = _NO_DATA_ROLES & set(asset.get("roles") or ())
    # Earth Search v0 and what was made of it call the full picture an overview, too
    if (roles and not (roles == {"overview"} and is_picture(key))) or not asset.get("href"):
        return False
    href = display(str(asset["href"])).lower()
    return str(asset.get("type") or "").startswith(_RASTER_TYPES) or href.endswith(RASTER_SUFFIXES)


def _asset(
    key: str, asset: Mapping[str, Any], item: Mapping[str, Any], baseline: str | None, sensor: str | None
) -> Asset:
    bands = _bands(asset)
    first = bands[0] if bands else {}
    common = {k: v for k, v in asset.items() if isinstance(v, (int, float, str))}

    def values_of(name: str, band: Mapping[str, Any]) -> Values:
        return catalogue_values(name, asset, {**common, **band}, item, baseline=baseline, sensor=sensor)

    names: tuple[str, ...]
    band_values: tuple[Values, ...] = ()
    aliases: tuple[str, ...] = ()
    if len(bands) > 1:
        # by their common names if they are distinct, or else their names
        listed = (tuple(str(band.get(word) or "") for band in bands) for word in ("common_name", "name"))
        names = next((n for n in listed if all(n) and len(set(n)) == len(n)), ()) or asset_bands(same_band(key)[0])
        if len(names) in (0, len(bands)):
            # The red of a picture is no reflectance; bands without names go by that of the asset.
            own = [key] * len(bands) if is_picture(key) or not names else names
            band_values = tuple(map(values_of, own, bands))
    elif is_picture(key):
        names = ("red", "green", "blue")
    else:
        names = (key,) if bands else ()
        aliases = tuple(dict.fromkeys(str(first[k]) for k in ("name", "common_name", "eo:common_name") if first.get(k)))
    # a key that says nothing (`data`) may hold a band that does
    called = next((n for n in (key, *aliases) if common_name(n, sensor) or is_mask_band(n)), key)
    properties = item.get("properties") or {}
    code, epsg, wkt, transform, shape = (
        properties.get(f"proj:{name}") if asset.get(f"proj:{name}") is None else asset[f"proj:{name}"]
        for name in ("code", "epsg", "wkt2", "transform", "shape")
    )
    crs = code or (f"EPSG:{epsg}" if epsg else None) or wkt
    # an incomplete grid is none: the header has to tell
    grid = AssetGrid(crs, tuple(transform[:6]), (shape[0], shape[1])) if crs and transform and shape else None
    return Asset(key, absolute(asset["href"]), names, aliases, values_of(called, first), band_values, grid)


def _bands(asset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what an item says about the bands of an asset: ``bands`` of STAC 1.1, ``eo:bands`` or ``raster:bands``."""
    new, eo, raster = (asset.get(key) or [] for key in ("bands", "eo:bands", "raster:bands"))
    # before 1.1 a list of the wrong length speaks of the colours mixed in, not of the file's bands
    merged: list[dict[str, Any]] = [{} for _ in range(len(new) or len(raster) or len(eo))]
    for listed in (raster, eo, new):
        if len(listed) == len(merged) and all(isinstance(fields, Mapping) for fields in listed):
            for band, fields in zip(merged, listed, strict=True):
                band.update({str(k).removeprefix("eo:"): v for k, v in fields.items() if v is not None})
    return merged


def _preference(asset: Asset) -> tuple[bool, bool, float]:
    """Return a sort key by which the best asset for a band comes first: COG, then the finest."""
    size = abs(asset.grid.transform[0]) if asset.grid else float((re.findall(r"_(\d+)m$", asset.name) or [0])[0])
    return is_picture(asset.name), asset.name.endswith("-jp2"), size


def _granule(scene_id: str, properties: Mapping[str, Any]) -> str | None:
    parts = [properties.get(f"mgrs:{key}") for key in ("utm_zone", "latitude_band", "grid_square")]
    candidates = (
        properties.get("s2:mgrs_tile"),
        str(properties.get("grid:code", "")).removeprefix("MGRS-"),
        "".join(map(str, parts)) if all(parts) else "",
        properties.get("odc:region_code"),
        str(scene_id).replace("_", " "),
    )
    match = next((m for text in candidates if text and (m := _GRANULE.search(str(text)))), None)
    return match[1].zfill(5) if match else None


def _baseline(properties: Mapping[str, Any], sensor: str | None) -> str | None:
    """Return the processing baseline of a product of ESA; other software has versions of its own."""
    if sensor not in (None, "sentinel-2"):
        return None
    stated = next((properties[key] for key in _BASELINES if properties.get(key)), "")
    if match := re.fullmatch(r"N?(\d{1,2})\.?(\d{2})|(\d{1,2})\.(\d)", stated):
        major, minor = match[1] or match[3], match[2] or f"{match[4]}0"
        return f"{major.zfill(2)}.{minor}"
    version = properties.get("processing:version") or ""
    if re.fullmatch(r"\d{2}\.\d{2}", version) and sensor:
        software = properties.get("processing:software") or {}
        if not software or any(re.search(r"sen2cor|\bipf\b|baseline", name, re.IGNORECASE) for name in software):
            return str(version)
    match = _in_product_name(properties, r"_N(\d{2})(\d{2})_")
    return f"{match[1]}.{match[2]}" if match else None


def _in_product_name(properties: Mapping[str, Any], pattern: str) -> re.Match[str] | None:
    names = (str(properties.get(key) or "") for key in ("s2:product_uri", "sentinel:product_id", "title"))
    return next((match for name in names if (match := re.search(pattern, name))), None)


def _bbox(item: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    stated, bbox = item.get("bbox"), None
    if stated and len(stated) in (4, 6):
        half = len(stated) // 2
        bbox = stated[0], stated[1], stated[half], stated[half + 1]
        if bbox[2] - bbox[0] < 180:
            return bbox
    # A box around half of the globe or more may be of an outline that crosses the antimeridian.
    rings = list(_rings((item.get("geometry") or {}).get("coordinates") or []))
    if not rings:
        return bbox
    spans = []
    for longitudes in ([point[0] for point in ring] for ring in rings):
        west, east = min(longitudes), max(longitudes)
        turned = [longitude % 360 for longitude in longitudes]
        # a ring that jumps over more than half of the globe crosses the antimeridian
        crosses = 180 < east - west < 360 and max(turned) - min(turned) < 180
        spans.append((min(turned), max(turned)) if crosses else (west, east))
    west, east = arc_around(spans)
    latitudes = [point[1] for ring in rings for point in ring]
    return west, min(latitudes), east - 360 if east > 180 else east, max(latitudes)


def _rings(coordinates: Sequence[Any]) -> Iterator[list[tuple[float, float]]]:
    """Yield the rings, or lines or points, of a geometry."""
    if coordinates and isinstance(coordinates[0], (int, float)):
        yield [(float(coordinates[0]), float(coordinates[1]))]
    elif coordinates and coordinates[0] and isinstance(coordinates[0][0], (int, float)):
        yield [(float(point[0]), float(point[1])) for point in coordinates]
    else:
        for part in coordinates:
            yield from _rings(part)


# --- products in Zarr stores: ESA's (EOPF), and the optimised ones made of them (GeoZarr) ----------------------------

_CODE = re.compile(r"b(0[1-9]|1[0-2]|8a)|scl|cld|snw|aot|wvp", re.IGNORECASE)
_TYPE = "application/vnd.zarr"
_UNREADABLE = {"product"}  # the only asset of a store whose metadata cannot be read


def item_of_store(href: str) -> dict[str, Any]:
    """Return a product as a STAC item whose assets are its arrays ``(y, x)``, or those below a path in it.

    The product says of itself what it is (``stac_discovery``); otherwise its name does.
    """
    found = split_store(href)
    assert found is not None
    store, path = found
    assets = _arrays_in(store, [path])
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


def _with_arrays(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an item in whose assets a group of a Zarr store is replaced by the arrays in it, each band once.

    Other assets, and items without a Zarr store, are unchanged.
    """
    groups: dict[str, list[str]] = {}
    others = {}
    for key, asset in (item.get("assets") or {}).items():
        href = str((asset or {}).get("href") or "")
        said = f"{href} {(asset or {}).get('type') or ''}".lower() if href else ""
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
            found_here = _arrays_in(store, paths)
        except (SceneError, AccessError):  # a store of something else, beside the rasters of the scene
            found_here = {}
            if not rasters:
                raise
        if not (rasters and found_here.keys() == _UNREADABLE):
            arrays = found_here | arrays
    return {**item, "assets": {**others, **arrays}} if groups else item


def _arrays_in(store: str, paths: Sequence[str]) -> dict[str, Any]:
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


# --- the fields of an item, checked ---------------------------------------------------------------------------------

_DEEPEST = 8  # lists within lists that a geometry may have; a MultiPolygon has four
_KINDS = {"list_type": "a list", "dict_type": "an object"}  # what pydantic's own checks ask for


def _checked_item(item: object) -> Mapping[str, Any]:
    """Return an item with its fields as the types that they have by the specification; null is absent."""
    try:
        checked: Mapping[str, Any] = _ITEM.validate_python(item)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        what = wrong["ctx"]["error"] if wrong["type"] == "value_error" else _KINDS.get(wrong["type"], wrong["msg"])
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in wrong["loc"])
        shown = repr(wrong["input"])
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        name = str(item.get("id")) if isinstance(item, Mapping) else "without id"
        raise SceneError(
            f"item {name[:200]}: {path.lstrip('.') or 'it'} is {shown}, which is not {what}; correct the item, or "
            "leave it out",
            scene=name,
        ) from None
    return checked


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError("text")


def _any_number(value: Any) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    raise ValueError("a number")


def _finite(value: Any) -> float:
    if not math.isfinite(number := _any_number(value)):
        raise ValueError("a finite number")
    return number


def _flag(value: Any) -> bool:
    flag = {"true": True, "false": False, "1": True, "0": False}.get(str(value).strip().lower())
    if flag is None or not isinstance(value, (bool, int, str)):
        raise ValueError("true or false")
    return flag


def _date(value: Any) -> str:
    try:
        utc_time(_text(value))
    except (ParameterError, ValueError):
        raise ValueError("a date such as 2023-06-15T10:46:29Z") from None
    return str(value)  # as it was written


def _coordinates(value: Any, depth: int = 0) -> Any:
    if not isinstance(value, (list, tuple)) or depth > _DEEPEST:
        raise ValueError("a list of positions")
    if value and not isinstance(value[0], (list, tuple)):
        if len(value) < 2:
            raise ValueError("a position of two numbers")
        return [_finite(one) for one in value]
    return [_coordinates(one, depth + 1) for one in value]


def _bands_in(value: Any) -> list[Any]:
    """Return bands, which some catalogues nest in lists."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("a list of bands")  # noqa: TRY004 - pydantic
    return [band for one in value for band in (one if isinstance(one, list) else [one])]


def _band_or_number(value: Any, check: Callable[[Any], Any]) -> Any:
    """Return a band. STAC before 0.9 has numbers here, which refer to a list elsewhere."""
    return value if isinstance(value, int) and not isinstance(value, bool) else check(value)


@lru_cache(1024)
def _is_crs(text: str) -> bool:
    try:
        CRS.from_user_input(text)
    except CRSError:
        return False
    return True


def _where(
    schema: cs.CoreSchema,
    condition: Callable[[Any], bool],
    what: str,
    convert: Callable[[Any], Any] = lambda value: value,
) -> cs.CoreSchema:
    """Return a check that a condition is added to; `what` says what such a value is."""

    def check(value: Any) -> Any:
        if not condition(value):
            raise ValueError(what)
        return convert(value)

    return cs.no_info_after_validator_function(check, schema)


def _object(fields: Mapping[str, cs.CoreSchema]) -> cs.CoreSchema:
    nullable = {name: cs.typed_dict_field(cs.nullable_schema(one), required=False) for name, one in fields.items()}
    return cs.typed_dict_schema(nullable, extra_behavior="allow")


def _mapping(values: cs.CoreSchema) -> cs.CoreSchema:
    return cs.dict_schema(cs.no_info_plain_validator_function(str), cs.nullable_schema(values))


def _or_none(schema: cs.CoreSchema) -> cs.CoreSchema:
    """Return the check of what a file's header says as well: None where it is malformed."""
    return cs.with_default_schema(schema, default=None, on_error="default")


_a_text, _a_date, _a_flag, _number, _number_or_nan = map(
    cs.no_info_plain_validator_function, (_text, _date, _flag, _finite, _any_number)
)
_numbers = cs.list_schema(_number)
_orbit = _where(_number, lambda n: n.is_integer() and 0 <= n <= 999, "the number of an orbit", int)
_crs = _where(_a_text, _is_crs, "a coordinate system that PROJ knows")
_epsg = _where(
    _number, lambda n: n.is_integer() and _is_crs(f"EPSG:{int(n)}"), "the EPSG code of a coordinate system", int
)
_transform = _where(
    _numbers, lambda t: len(t) in (6, 9) and t[0] * t[4] != t[1] * t[3], "a transform of 6 or 9 numbers"
)
_shape = _where(
    _numbers,
    lambda sides: len(sides) == 2 and all(n.is_integer() and 0 < n < 1 << 31 for n in sides),
    "rows and columns",
    lambda sides: [int(n) for n in sides],
)

_GRID = {
    **dict.fromkeys(("proj:code", "proj:wkt2"), _or_none(_crs)),
    "proj:epsg": _or_none(_epsg),
    "proj:transform": _or_none(_transform),
    "proj:shape": _or_none(_shape),
}

_BAND = {
    **dict.fromkeys(("name", "common_name", "eo:common_name", "unit", "raster:unit", "data_type"), _a_text),
    **dict.fromkeys(("scale", "raster:scale"), _where(_number, lambda n: n != 0, "a number other than 0")),
    **dict.fromkeys(("offset", "raster:offset"), _number),
    "nodata": _number_or_nan,
    "classification:classes": cs.list_schema(_object({"name": _a_text, "description": _a_text})),
}
_bands_list = cs.no_info_before_validator_function(
    _bands_in, cs.list_schema(cs.no_info_wrap_validator_function(_band_or_number, _object(_BAND)))
)

_ASSET = {
    **_BAND,
    **_GRID,
    "href": _a_text,
    "type": _a_text,
    "roles": cs.list_schema(_a_text),
    **dict.fromkeys(("bands", "eo:bands", "raster:bands"), _bands_list),
    "alternate": _mapping(_object({"href": _a_text})),
}

_PROPERTIES = {
    **_GRID,
    **dict.fromkeys(("datetime", "start_datetime", *_MADE), _a_date),
    **dict.fromkeys(
        (
            *_BASELINES, "platform", "constellation", "processing:version", "grid:code", "s2:mgrs_tile",
            "odc:region_code", "mgrs:utm_zone", "mgrs:latitude_band", "mgrs:grid_square", "title", "s2:product_uri",
            "sentinel:product_id",
        ),
        _a_text,
    ),
    **dict.fromkeys(("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"), _a_flag),
    **dict.fromkeys(("sat:relative_orbit", "sentinel:relative_orbit"), _orbit),
    "eo:cloud_cover": _or_none(_number),
    "processing:software": _mapping(cs.any_schema()),
}  # fmt: skip

_ITEM = SchemaValidator(_object({
    "id": _a_text,
    "collection": _a_text,
    "bbox": _where(_numbers, lambda box: len(box) in (0, 4, 6), "a list of 4 or 6 numbers"),
    "geometry": _object({"coordinates": cs.no_info_plain_validator_function(_coordinates)}),
    "links": cs.list_schema(_object({"href": _a_text, "rel": _a_text})),
    "properties": _object(_PROPERTIES),
    "assets": _mapping(_object(_ASSET)),
}))  # fmt: skip
