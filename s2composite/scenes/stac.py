"""STAC: an item as a scene: its time, its grid, its bands and what their numbers mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s2composite.errors import SceneError
from s2composite.scenes.dates import utc_time
from s2composite.scenes.item_fields import checked_item
from s2composite.scenes.model import Asset, AssetGrid, Scene, Values, arc_around
from s2composite.scenes.names import asset_bands, common_name, is_picture, same_band, sensor_of
from s2composite.scenes.storage import absolute, display
from s2composite.scenes.values import catalogue_values, is_mask_band

__all__ = ["scene_of_item"]

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
)
_MADE = ("s2:generation_time", "processing:datetime", "created", "updated")
_JP2_TWIN = "-jp2"


def scene_of_item(item: Mapping[str, Any]) -> Scene:
    """Return the scene that a STAC item describes.

    Parameters
    ----------
    item
        A dictionary of STAC 0.9 to 1.1, with any of the extensions ``eo``, ``proj``, ``raster``, ``processing``,
        ``grid`` and ``mgrs``.

    Raises
    ------
    SceneError
        It has no id, no time, or no rasters, or a field is malformed.

    Examples
    --------
    >>> item = {"id": "S2A_31TCJ_20230709_0_L2A", "properties": {"datetime": "2023-07-09T10:50:31Z", "platform":
    ... "sentinel-2a", "s2:processing_baseline": "05.09"}, "assets": {"red": {"href": "https://a/B04.tif", "type":
    ... "image/tiff"}}}
    >>> scene = scene_of_item(item)
    >>> scene.granule, scene.asset("red").values.shift
    ('31TCJ', -1000.0)
    """
    item = checked_item(item)
    properties = item.get("properties") or {}
    scene_id = item.get("id")
    if not scene_id:
        raise SceneError("a STAC item has no id; leave it out")
    sensor = _sensor(item)
    baseline = _baseline(properties, sensor)
    assets = [
        _asset(key, asset, item, baseline, sensor)
        for key, asset in (item.get("assets") or {}).items()
        if asset and _is_raster(key, asset)
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
        sensor=sensor,
        cloud_cover=properties.get("eo:cloud_cover"),
    )


def _time(scene_id: str, properties: Mapping[str, Any]) -> Any:
    told = properties.get("datetime") or properties.get("start_datetime")
    if not told:
        raise SceneError(f"item {scene_id} has no datetime and no start_datetime; leave it out", scene=scene_id)
    return utc_time(told)


def _sensor(item: Mapping[str, Any]) -> str | None:
    properties = item.get("properties") or {}
    software = properties.get("processing:software") or {}
    return sensor_of(
        item.get("collection"), item.get("id"), properties.get("platform"), properties.get("constellation"), *software
    )


def _is_raster(key: str, asset: Mapping[str, Any]) -> bool:
    roles = _NO_DATA_ROLES & set(asset.get("roles") or ())
    # Earth Search v0 and what was made of it call the full picture an overview, too
    if (roles and not (roles == {"overview"} and is_picture(key))) or not asset.get("href"):
        return False
    kind = str(asset.get("type") or "")
    href = display(str(asset["href"])).lower()
    return kind.startswith(_RASTER_TYPES) or href.endswith(_SUFFIXES)


def _asset(
    key: str, asset: Mapping[str, Any], item: Mapping[str, Any], baseline: str | None, sensor: str | None
) -> Asset:
    told = _bands(asset)
    first = told[0] if told else {}
    common = {k: v for k, v in asset.items() if isinstance(v, (int, float, str))}

    def values_of(name: str, band: Mapping[str, Any]) -> Values:
        return catalogue_values(name, asset, {**common, **band}, item, baseline=baseline, sensor=sensor)

    names: tuple[str, ...]
    band_values: tuple[Values, ...] = ()
    aliases: tuple[str, ...] = ()
    if len(told) > 1:
        names = _distinct(told) or asset_bands(same_band(key)[0])
    elif is_picture(key):
        names = ("red", "green", "blue")
    else:
        names = (key,) if told else ()
        aliases = tuple(dict.fromkeys(str(first[k]) for k in ("name", "common_name", "eo:common_name") if first.get(k)))
    if len(told) > 1 and len(names) in (0, len(told)):
        # The red of a picture is no reflectance; bands without names go by that of the asset.
        own = [key] * len(told) if is_picture(key) or not names else names
        band_values = tuple(map(values_of, own, told))
    href, grid = absolute(asset["href"]), _grid(asset, item)
    # a key that says nothing (`data`) may hold a band that does
    called = next((n for n in (key, *aliases) if common_name(n, sensor) or is_mask_band(n)), key)
    return Asset(key, href, names, aliases, values_of(called, first), band_values, grid)


def _bands(asset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what an item says about the bands of an asset: ``bands`` of STAC 1.1, ``eo:bands`` or ``raster:bands``."""
    new, eo, raster = (asset.get(key) or [] for key in ("bands", "eo:bands", "raster:bands"))
    # before 1.1 a list of the wrong length speaks of the colours mixed in, not of the file's bands
    count = len(new) or len(raster) or len(eo)
    merged: list[dict[str, Any]] = [{} for _ in range(count)]
    for told in (raster, eo, new):
        if len(told) == count and all(isinstance(facts, Mapping) for facts in told):
            for band, facts in zip(merged, told, strict=True):
                band.update({str(k).removeprefix("eo:"): v for k, v in facts.items() if v is not None})
    return list(merged)


def _distinct(bands: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the common names of bands if they are distinct, or else their names; empty if neither are."""
    for key in ("common_name", "name"):
        names = [band.get(key) for band in bands]
        if all(names) and len(set(names)) == len(names):
            return tuple(map(str, names))
    return ()


def _grid(asset: Mapping[str, Any], item: Mapping[str, Any]) -> AssetGrid | None:
    """Return the grid that the projection extension gives; None if it is incomplete."""
    properties = item.get("properties") or {}

    def told(key: str) -> Any:
        value = asset.get(f"proj:{key}")
        return properties.get(f"proj:{key}") if value is None else value

    code = told("code") or (f"EPSG:{told('epsg')}" if told("epsg") else None) or told("wkt2")
    transform, shape = told("transform"), told("shape")
    if not (code and transform and shape):  # the header of the file has to tell
        return None
    return AssetGrid(code, tuple(transform[:6]), (shape[0], shape[1]))


def _preference(asset: Asset) -> tuple[bool, bool, float]:
    """Return a sort key by which the best asset for a band comes first: COG, then the finest."""
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
    told: int | None = properties.get("sat:relative_orbit", properties.get("sentinel:relative_orbit"))
    if told is not None:
        return told
    match = _in_product_name(properties, r"_R(\d{3})_")
    return int(match[1]) if match else None


def _baseline(properties: Mapping[str, Any], sensor: str | None) -> str | None:
    """Return the processing baseline of a product of ESA; other software has versions of its own."""
    if sensor not in (None, "sentinel-2"):
        return None
    told = next((properties[key] for key in _BASELINES if properties.get(key)), "")
    if match := re.fullmatch(r"N?(\d{1,2})\.?(\d{2})|(\d{1,2})\.(\d)", told):
        major, minor = match[1] or match[3], match[2] or f"{match[4]}0"
        return f"{major.zfill(2)}.{minor}"
    version = properties.get("processing:version") or ""
    if re.fullmatch(r"\d{2}\.\d{2}", version) and sensor and _is_of_esa(properties):
        return version
    match = _in_product_name(properties, r"_N(\d{2})(\d{2})_")
    return f"{match[1]}.{match[2]}" if match else None


def _is_of_esa(properties: Mapping[str, Any]) -> bool:
    """Return whether no other software than ESA's is said to have made a product."""
    software = properties.get("processing:software") or {}
    return not software or any(re.search(r"sen2cor|\bipf\b|baseline", name, re.IGNORECASE) for name in software)


def _in_product_name(properties: Mapping[str, Any], pattern: str) -> re.Match[str] | None:
    names = (str(properties.get(key) or "") for key in ("s2:product_uri", "sentinel:product_id", "title"))
    return next((match for name in names if (match := re.search(pattern, name))), None)


def _made(properties: Mapping[str, Any]) -> Any:
    told = next((properties[key] for key in _MADE if properties.get(key)), None)
    return None if told is None else utc_time(told)


def _bbox(item: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    box, found = item.get("bbox"), None
    if box and len(box) in (4, 6):
        half = len(box) // 2
        found = box[0], box[1], box[half], box[half + 1]
        if found[2] - found[0] < 180:
            return found
    # A box around half of the globe or more may be of an outline that crosses the antimeridian.
    rings = list(_rings((item.get("geometry") or {}).get("coordinates") or []))
    if not rings:
        return found
    west, east = arc_around(_span([point[0] for point in ring]) for ring in rings)
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


def _span(longitudes: Sequence[float]) -> tuple[float, float]:
    """Return the west and east of a ring; one that jumps over more than half of the globe crosses the antimeridian."""
    west, east = min(longitudes), max(longitudes)
    turned = [longitude % 360 for longitude in longitudes]
    crosses = 180 < east - west < 360 and max(turned) - min(turned) < 180
    return (min(turned), max(turned)) if crosses else (west, east)
