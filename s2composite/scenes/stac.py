"""STAC: items, collections of items, searches and stac-geoparquet to scenes. Read as plain dictionaries."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any
from urllib.parse import urljoin

from s2composite.errors import (
    AccessError,
    MissingDependencyError,
    ParameterError,
    S2CompositeError,
    SceneError,
    SourceError,
)
from s2composite.scenes.access import limits
from s2composite.scenes.dates import utc_time
from s2composite.scenes.model import Asset, AssetGrid, Scene
from s2composite.scenes.names import asset_bands, is_picture, same_band
from s2composite.scenes.storage import absolute, display, filesystem, is_remote, reason
from s2composite.scenes.values import catalogue_values

__all__ = ["found_by", "is_stac", "is_stac_file", "items_in", "items_of", "scene_of_item", "with_alternate"]

_FILES = (".json", ".geojson", ".parquet", ".geoparquet")
_SEARCH = ("url", "collections", "bbox", "datetime", "query")
_RASTER_TYPES = (
    "image/tiff",
    "image/vnd.stac.geotiff",
    "image/x.geotiff",
    "image/geotiff",
    "image/jp2",
    "image/vnd.zarr",
)
_NO_DATA_ROLES = {"thumbnail", "overview", "metadata", "tilejson", "index", "browse", "archive", "hidden"}
_SUFFIXES = (".tif", ".tiff", ".jp2")
_GRANULE = re.compile(r"(?<![A-Za-z0-9])T?((?:0?[1-9]|[1-5]\d|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])(?![A-Za-z0-9])")
_PLATFORM = re.compile(r"sentinel-?2([a-d])$", re.IGNORECASE)
_BASELINES = (
    "s2:processing_baseline",
    "sentinel2:processing_baseline",
    "sentinel:processing_baseline",
    "processing:version",
)
_MADE = ("s2:generation_time", "processing:datetime", "created", "updated")
_JP2_TWIN = "-jp2"


# --- Which items ----------------------------------------------------------------------------------------------------


def is_stac(source: object) -> bool:
    """Return whether `source` is something of STAC: a dictionary, an object of pystac, a search of pystac-client."""
    return isinstance(source, Mapping) or (
        not isinstance(source, type) and any(hasattr(source, name) for name in ("to_dict", "items_as_dicts"))
    )


def is_stac_file(href: str) -> bool:
    """Return whether a path or URL names a file of items."""
    return display(href).lower().endswith(_FILES)


def items_of(source: Any) -> list[Mapping[str, Any]]:
    """Return the items in something of STAC, as dictionaries whose asset hrefs are absolute where that is possible.

    Parameters
    ----------
    source
        A pystac Item, ItemCollection or Collection, a search of pystac-client, a dictionary of a Feature or
        FeatureCollection, or a search to be made, ``{"url", "collections", "bbox", "datetime", "query"}``.

    Raises
    ------
    SourceError
        The search finds nothing, or the server does not answer; the message says what was searched.
    """
    if isinstance(source, Mapping):
        return _searched(source) if "url" in source else _some(_features(source, "the dictionary"), "the dictionary")
    if hasattr(source, "items_as_dicts"):
        return _some(_asked(source.items_as_dicts, "the search"), f"the search at {_searched_at(source)}")
    if hasattr(source, "get_items"):  # a Catalog or Collection of pystac
        items = list(source.get_items(recursive=True))
        return _some([_plain(item) for item in items], f"the collection {source.id}")
    return (
        _some([_plain(item) for item in source], "the ItemCollection") if hasattr(source, "items") else [_plain(source)]
    )


def items_in(href: str) -> list[Mapping[str, Any]]:
    """Return the items in a JSON file (item, ItemCollection, collection, catalogue) or a stac-geoparquet file."""
    if not display(href).lower().endswith(".json") and not display(href).lower().endswith(".geojson"):
        return _some(_rows(href), display(href))
    content = read_json(href)
    kind = content.get("type")
    if kind in ("Collection", "Catalog"):
        return _some(list(_linked(content, href, 0)), display(href))
    return _some(_features(content, display(href), href), display(href))


def read_json(href: str) -> Mapping[str, Any]:
    """Return what a JSON file holds."""
    try:
        fs, path = filesystem(href)
        content = json.loads(fs.cat_file(path))
    except S2CompositeError:
        raise
    except ValueError as error:
        raise SourceError(f"{display(href)} is no JSON ({error}); give a STAC item or ItemCollection") from None
    except Exception as error:  # noqa: BLE001 - the backends of fsspec share no class of errors
        raise SourceError(f"cannot read {display(href)}: {reason(href, error)}", href=display(href)) from None
    if not isinstance(content, Mapping):
        raise SourceError(f"{display(href)} holds a list; give a STAC item or ItemCollection", href=display(href))
    return content


def _features(content: Mapping[str, Any], label: str, base: str | None = None) -> list[Mapping[str, Any]]:
    kind = content.get("type")
    if kind == "FeatureCollection":
        return [_absolute(item, base) for item in content.get("features", [])]
    if kind == "Feature" and "assets" in content:
        return [_absolute(content, base)]
    raise ParameterError(
        f"{label} is no STAC item (its type is {kind!r}); give an item, an ItemCollection, or a search as "
        f"{{{', '.join(map(repr, _SEARCH))}}}"
    )


def _linked(content: Mapping[str, Any], href: str, depth: int) -> Iterator[Mapping[str, Any]]:
    """Yield the items that a collection or catalogue links to, in its children too."""
    for link in content.get("links", []):
        there = _resolved(str(link.get("href", "")), href)
        if link.get("rel") == "item":
            yield from _features(read_json(there), display(there), there)
        elif link.get("rel") == "child" and depth < 16:
            yield from _linked(read_json(there), there, depth + 1)


def _rows(href: str) -> list[Mapping[str, Any]]:
    parquet = needed("pyarrow.parquet", "stac")
    arrow = needed("stac_geoparquet.arrow", "stac")
    fs, path = filesystem(href)
    try:
        with fs.open(path, "rb") as file:
            return list(arrow.stac_table_to_items(parquet.read_table(file)))
    except Exception as error:  # noqa: BLE001 - pyarrow and the backends of fsspec share no class of errors
        raise SourceError(f"{display(href)} is no stac-geoparquet: {reason(href, error)}", href=display(href)) from None


def needed(module: str, extra: str) -> Any:
    """Import an optional module, or say which extra brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs the package {module.partition('.')[0]}: pip install 's2composite[{extra}]'"
        ) from error


def _plain(item: Any) -> Mapping[str, Any]:
    """Return an item of pystac as a dictionary."""
    if isinstance(item, Mapping):
        return _absolute(item, None)
    if not (hasattr(item, "assets") and hasattr(item, "to_dict")):
        raise ParameterError(f"{type(item).__name__} is not a source; give STAC items, paths, URLs or scenes")
    content: Mapping[str, Any] = item.to_dict(include_self_link=True, transform_hrefs=False)
    return _absolute(content, item.get_self_href())


def _absolute(item: Mapping[str, Any], base: str | None) -> Mapping[str, Any]:
    """Return an item whose asset hrefs are absolute, if it says where it is."""
    links = (str(link.get("href")) for link in item.get("links", []) if link.get("rel") == "self")
    base = base or next(links, None)
    if base is None:
        return item
    assets = {
        key: {**asset, "href": _resolved(str(asset.get("href", "")), base)}
        for key, asset in item.get("assets", {}).items()
    }
    return {**item, "assets": assets}


def _resolved(href: str, base: str) -> str:
    if "://" in href or href.startswith(("/", "~")):
        return href
    if is_remote(base):
        # urljoin knows no gs:// and s3://
        scheme, _, rest = base.partition("://")
        return f"{scheme}://{urljoin(f'http://{rest}', href).removeprefix('http://')}"
    return os.path.normpath(os.path.join(os.path.dirname(absolute(base)), href))  # noqa: PTH118, PTH120 - text in, text out


# --- Searches -------------------------------------------------------------------------------------------------------


def _searched(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Make a search and return what it finds."""
    unknown = [key for key in search if key not in (*_SEARCH, "intersects", "ids", "filter", "limit", "max_items")]
    if unknown:
        raise ParameterError(f"the search has the unknown keys {', '.join(unknown)}; there are {', '.join(_SEARCH)}")
    if limits() is not None:
        raise AccessError(f"{found_by(search)}: searches follow links unasked, so none is made here; give item files")
    client = needed("pystac_client", "stac")
    options = {key: value for key, value in search.items() if key != "url" and value is not None}
    label = found_by(search)
    found = _asked(lambda: client.Client.open(search["url"]).search(**options).items_as_dicts(), label)
    return _some(found, label)


def found_by(search: Mapping[str, Any]) -> str:
    """Return a search in words."""
    told = ", ".join(f"{key} {value}" for key, value in search.items() if key != "url" and value is not None)
    return f"the search at {display(str(search['url']))} for {told or 'everything'}"


def _asked(ask: Callable[[], Any], label: str) -> list[Mapping[str, Any]]:
    try:
        return [_absolute(item, None) for item in ask()]
    except S2CompositeError:
        raise
    except Exception as error:  # noqa: BLE001 - pystac-client, requests and urllib3 share no class of errors
        told = re.sub(r"\?[^\s'\")]+", "", str(error)).partition("\n")[0]
        raise SourceError(f"{label} failed: {type(error).__name__}: {told}") from None


def _searched_at(search: Any) -> str:
    told = ", ".join(f"{key} {value}" for key, value in getattr(search, "_parameters", {}).items())
    return f"{display(str(getattr(search, 'url', 'its address')))} for {told}"


def _some(items: list[Mapping[str, Any]], label: str) -> list[Mapping[str, Any]]:
    if not items:
        raise SourceError(f"{label} gives no items; widen the area, the time or the query, or correct the collection")
    return items


def with_alternate(items: Sequence[Mapping[str, Any]], name: str | None) -> list[Mapping[str, Any]]:
    """Return items whose assets are where a catalogue's ``alternate`` of a name has them; the others stay as they are.

    Parameters
    ----------
    items
        Dictionaries, with the alternate-assets extension where they have it.
    name
        Key of the alternate, ``"https"``; None: as they are.

    Raises
    ------
    ParameterError
        No asset of any item has it.

    Examples
    --------
    >>> asset = {"href": "s3://eodata/B04.jp2", "alternate": {"https": {"href": "https://host/B04.jp2"}}}
    >>> with_alternate([{"id": "a", "assets": {"B04": asset}}], "https")[0]["assets"]["B04"]["href"]
    'https://host/B04.jp2'
    """
    if name is None or not items:
        return list(items)
    known = {key for item in items for asset in item.get("assets", {}).values() for key in asset.get("alternate") or ()}
    if name not in known:
        raise ParameterError(
            f"alternate is {name!r}, and the assets of the {len(items)} items have "
            f"{', '.join(sorted(map(repr, known))) or 'no alternates'}; leave it out to read their own hrefs"
        )
    return [
        {**item, "assets": {key: _alternate(asset, name) for key, asset in item.get("assets", {}).items()}}
        for item in items
    ]


def _alternate(asset: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = (asset.get("alternate") or {}).get(name) or {}
    return {**asset, "href": found["href"]} if found.get("href") else asset


# --- One item -------------------------------------------------------------------------------------------------------


def scene_of_item(item: Mapping[str, Any]) -> Scene:
    """Return the scene that a STAC item describes.

    Parameters
    ----------
    item
        A dictionary of STAC 0.9 to 1.1, with the extensions ``eo``, ``proj``, ``raster``, ``processing``, ``grid`` and
        ``mgrs`` where it has them.

    Raises
    ------
    SceneError
        It has no id, no time, or no rasters.

    Examples
    --------
    >>> item = {"id": "S2A_31TCJ_20230709_0_L2A", "properties": {"datetime": "2023-07-09T10:50:31Z", "platform":
    ... "sentinel-2a", "s2:processing_baseline": "05.09"}, "assets": {"red": {"href": "https://a/B04.tif", "type":
    ... "image/tiff"}}}
    >>> scene = scene_of_item(item)
    >>> scene.granule, scene.asset("red").values.shift
    ('31TCJ', -1000.0)
    """
    properties = item.get("properties") or {}
    scene_id = item.get("id")
    if not scene_id:
        raise SceneError("a STAC item has no id; leave it out")
    baseline = _baseline(properties)
    assets = [
        _asset(key, asset, item, baseline)
        for key, asset in (item.get("assets") or {}).items()
        if _is_raster(key, asset)
    ]
    if not assets:
        raise SceneError(f"item {scene_id} has no rasters among its assets; leave it out", scene=scene_id)
    platform = _PLATFORM.search(str(properties.get("platform", "")))
    return Scene(
        id=str(scene_id),
        time=_time(scene_id, properties),
        assets=tuple(sorted(assets, key=_preference)),
        granule=_granule(scene_id, properties),
        orbit=_orbit(properties),
        baseline=baseline,
        platform=f"S2{platform[1].upper()}"
        if platform
        else (str(properties["platform"]) if properties.get("platform") else None),
        bbox=_bbox(item),
        made=_made(properties),
        collection=item.get("collection"),
    )


def _time(scene_id: str, properties: Mapping[str, Any]) -> Any:
    told = properties.get("datetime") or properties.get("start_datetime")
    if not told:
        raise SceneError(f"item {scene_id} has no datetime and no start_datetime; leave it out", scene=scene_id)
    try:
        return utc_time(str(told))
    except ParameterError as error:
        raise SceneError(f"item {scene_id}: its datetime is none ({error}); leave it out", scene=scene_id) from None


def _is_raster(key: str, asset: Mapping[str, Any]) -> bool:
    roles = _NO_DATA_ROLES & set(asset.get("roles") or ())
    # Earth Search v0 and what was made of it call the full picture an overview, too
    if (roles and not (roles == {"overview"} and is_picture(key))) or not asset.get("href"):
        return False
    kind = str(asset.get("type") or "")
    href = display(str(asset["href"])).lower()
    return kind.startswith(_RASTER_TYPES) or href.endswith(_SUFFIXES)


def _asset(key: str, asset: Mapping[str, Any], item: Mapping[str, Any], baseline: str | None) -> Asset:
    told = _bands(asset)
    first = told[0] if told else {}
    values = catalogue_values(
        key, asset, {**{k: v for k, v in asset.items() if isinstance(v, (int, float, str))}, **first}, item, baseline
    )
    names: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    if len(told) > 1:
        names = _distinct(told) or asset_bands(same_band(key)[0])
    elif is_picture(key):
        names = ("red", "green", "blue")
    else:
        names = (key,) if told else ()
        aliases = tuple(dict.fromkeys(str(first[k]) for k in ("name", "common_name", "eo:common_name") if first.get(k)))
    return Asset(key, absolute(str(asset["href"])), names, aliases, values, _grid(asset, item))


def _bands(asset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what an item says of an asset's bands: STAC 1.1's ``bands``, or ``eo:bands`` and ``raster:bands``."""
    new, eo, raster = (asset.get(key) or [] for key in ("bands", "eo:bands", "raster:bands"))
    # before 1.1 a list of the wrong length speaks of the colours mixed in, not of the file's bands
    count = len(new) or len(raster) or len(eo)
    merged: list[dict[str, Any]] = [{} for _ in range(count)]
    for told in (raster, eo, new):
        if len(told) == count and all(isinstance(facts, Mapping) for facts in told):
            for band, facts in zip(merged, told, strict=True):
                band.update({str(k).removeprefix("eo:"): v for k, v in facts.items()})
    return list(merged)


def _distinct(bands: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return common names of bands if they tell them apart, else their names; empty if neither does."""
    for key in ("common_name", "name"):
        names = [band.get(key) for band in bands]
        if all(names) and len(set(names)) == len(names):
            return tuple(map(str, names))
    return ()


def _grid(asset: Mapping[str, Any], item: Mapping[str, Any]) -> AssetGrid | None:
    """Return the grid that the projection extension gives; None where it is not complete."""
    properties = item.get("properties") or {}

    def told(key: str) -> Any:
        value = asset.get(f"proj:{key}")
        return properties.get(f"proj:{key}") if value is None else value

    code = told("code") or (f"EPSG:{told('epsg')}" if told("epsg") else None) or told("wkt2")
    transform, shape = told("transform"), told("shape")
    if not code or not transform or len(transform) not in (6, 9) or not shape or len(shape) != 2:
        return None
    try:
        return AssetGrid(str(code), tuple(float(v) for v in transform[:6]), (int(shape[0]), int(shape[1])))
    except (TypeError, ValueError):  # what is no grid is none: the file's header tells it
        return None


def _preference(asset: Asset) -> tuple[bool, bool, float]:
    """Order assets so that of those which hold the same band the best comes first: COG, then the finest."""
    size = abs(asset.grid.transform[0]) if asset.grid else float((re.findall(r"_(\d+)m$", asset.name) or [0])[0])
    return is_picture(asset.name), asset.name.endswith(_JP2_TWIN), size


def _granule(scene_id: str, properties: Mapping[str, Any]) -> str | None:
    parts = [properties.get(f"mgrs:{key}") for key in ("utm_zone", "latitude_band", "grid_square")]
    told = (
        properties.get("s2:mgrs_tile"),
        str(properties.get("grid:code", "")).removeprefix("MGRS-"),
        "".join(map(str, parts)) if all(parts) else "",
        properties.get("odc:region_code"),
        str(scene_id).replace("_", " "),
    )
    match = next((m for text in told if text and (m := _GRANULE.search(str(text)))), None)
    return match[1].zfill(5) if match else None


def _orbit(properties: Mapping[str, Any]) -> int | None:
    told = properties.get("sat:relative_orbit", properties.get("sentinel:relative_orbit"))
    return None if told is None else int(told)


def _baseline(properties: Mapping[str, Any]) -> str | None:
    told = next((properties[key] for key in _BASELINES if properties.get(key)), None)
    if told is not None and re.fullmatch(r"\d{1,2}\.\d{1,2}", str(told)):
        return str(told).zfill(5)
    names = (str(properties.get(key) or "") for key in ("s2:product_uri", "sentinel:product_id", "title"))
    match = next((m for name in names if (m := re.search(r"_N(\d{2})(\d{2})_", name))), None)
    return f"{match[1]}.{match[2]}" if match else None


def _made(properties: Mapping[str, Any]) -> Any:
    told = next((properties[key] for key in _MADE if properties.get(key)), None)
    return None if told is None else utc_time(str(told))


def _bbox(item: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    box = item.get("bbox")
    if box and len(box) in (4, 6):
        half = len(box) // 2
        return float(box[0]), float(box[1]), float(box[half]), float(box[half + 1])
    points = list(_points((item.get("geometry") or {}).get("coordinates") or []))
    if not points:
        return None
    west, south, east, north = *map(min, zip(*points, strict=True)), *map(max, zip(*points, strict=True))
    return west, south, east, north


def _points(coordinates: Sequence[Any]) -> Iterator[tuple[float, float]]:
    if coordinates and isinstance(coordinates[0], (int, float)):
        yield float(coordinates[0]), float(coordinates[1])
    else:
        for part in coordinates:
            yield from _points(part)
