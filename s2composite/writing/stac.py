"""STAC: the STAC 1.1 item that describes files that have been written. Values in, a dict out."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from shapely.geometry import mapping
from shapely.geometry.polygon import orient

from s2composite.errors import ParameterError
from s2composite.reading.grid import footprint
from s2composite.scenes.names import common_name
from s2composite.writing.files import Written
from s2composite.writing.periods import Period
from s2composite.writing.raster import Band, Raster
from s2composite.writing.statistics import Statistics

__all__ = ["Lineage", "build_item", "check_times", "item_id", "multihash"]

_EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "eo": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
}
_GEOTIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
_SOFTWARE = ("s2composite", "dask", "imagecodecs", "numba", "numpy", "odc-geo", "rasterio", "xarray")

_SHA256 = "1220"
"""The code of sha2-256 among multihashes, and the number of its bytes."""


@dataclass(frozen=True, eq=False)
class Lineage:
    """What a result was made of."""

    dataset: xr.Dataset
    """The whole composite."""

    shares: np.ndarray[Any, np.dtype[np.float64]] | None
    """Share of the pixels that each scene contributed; None: the reducer does not pick scenes."""

    read_status: Mapping[str, Any] | None
    """What could not be read; None: failures were errors."""

    derived_from: Mapping[str, str]
    """Hrefs of the scenes' own items, as far as they are known."""


def multihash(sha256: str) -> str:
    """Return a SHA-256 in hexadecimal digits as the multihash that STAC wants."""
    return f"{_SHA256}{sha256}"


def check_times(period: Period) -> tuple[str, str]:
    """Return the first and last moment of a period in UTC, which every item needs.

    Raises
    ------
    ParameterError
        The scenes have no times.
    """
    if period.span is not None:
        # The end of a period is exclusive, that of a STAC item inclusive.
        return _stamp(period.span[0]), _stamp(period.span[1] - np.timedelta64(1, "s"))
    times = period.dataset["scene_time"].values if "scene_time" in period.dataset.coords else np.array([])
    if times.dtype.kind != "M" or not times.size:
        raise ParameterError("a STAC item needs dates, and the composite has no 'scene_time' with any")
    return _stamp(times.min()), _stamp(times.max())


def _stamp(time: np.datetime64) -> str:
    return f"{np.datetime_as_string(time, unit='s')}Z"


def item_id(lineage: Lineage, period: Period, rasters: Sequence[Raster]) -> str:
    """Return an id that is the same for the same pixels: from scenes, method, software and grid, not the path."""
    dataset, (start, end) = lineage.dataset, check_times(period)
    facts = {
        "attributes": {name: str(value) for name, value in sorted(dataset.attrs.items())},
        "scenes": [str(scene) for scene in dataset["scene"].values],
        "period": [period.label, start, end],
        "grid": [None if raster.geobox is None else _grid(raster.geobox) for raster in rasters],
        "bands": [[(band.name, band.layer) for band in raster.bands] for raster in rasters],
        "dtypes": [raster.dtype.name for raster in rasters],
        "shapes": [raster.shape for raster in rasters],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(dataset.attrs.get("reducer", "composite"))).strip("-")
    return f"{name}_{start[:10]}_{end[:10]}_{digest[:12]}"


def _grid(geobox: GeoBox) -> list[Any]:
    return [*_six(geobox), None if geobox.crs is None else geobox.crs.to_wkt()]


def _six(geobox: GeoBox) -> list[float]:
    return [float(value) for value in tuple(geobox.transform)[:6]]


def build_item(
    lineage: Lineage,
    period: Period,
    files: Sequence[tuple[Written, str]],
    *,
    thumbnail: Mapping[str, Any] | None,
    properties: Mapping[str, Any],
    created: str,
) -> dict[str, Any]:
    """Return the item of a period.

    Parameters
    ----------
    files
        Those of the period, each with its href.
    thumbnail
        Its asset; None: there is none.
    properties
        Further properties; they override those made here.
    created
        When the files were written.
    """
    rasters = [written.plan.raster for written, _ in files]
    geobox = rasters[0].geobox
    start, end = check_times(period)
    sensor = lineage.dataset.attrs.get("sensor")
    assets = {_asset_key(written.plan.raster): _asset(written, href, sensor) for written, href in files}
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": item_id(lineage, period, rasters),
        **_place(geobox),
        "properties": {
            "datetime": None,
            "start_datetime": start,
            "end_datetime": end,
            "created": created,
            **_projection(rasters[0]),
            **_processing(lineage),
            **_provenance(lineage, period),
            **properties,
        },
        "links": [
            {"rel": "derived_from", "href": href, "title": scene, "type": "application/geo+json"}
            for scene, href in sorted(lineage.derived_from.items())
        ],
        "assets": assets | ({"thumbnail": dict(thumbnail)} if thumbnail else {}),
    }
    used = json.dumps(item)
    item["stac_extensions"] = [uri for prefix, uri in _EXTENSIONS.items() if f'"{prefix}:' in used]
    return item


# --- where ----------------------------------------------------------------------------------------------------------


def _place(geobox: GeoBox | None) -> dict[str, Any]:
    """Return the outline in longitude and latitude; no geometry if the pixels are not georeferenced."""
    if geobox is None or geobox.crs is None:
        return {"geometry": None}
    outline = footprint(geobox).geom
    parts = [orient(part) for part in getattr(outline, "geoms", [outline])]
    shapes = [_rounded(mapping(part)["coordinates"]) for part in parts]
    geometry = (
        {"type": "Polygon", "coordinates": shapes[0]}
        if len(shapes) == 1
        else {"type": "MultiPolygon", "coordinates": shapes}
    )
    return {"geometry": geometry, "bbox": _bbox([part.bounds for part in parts])}


def _rounded(value: Any) -> Any:
    return round(value, 7) if isinstance(value, float) else [_rounded(part) for part in value]


def _bbox(bounds: Sequence[tuple[float, float, float, float]]) -> list[float]:
    """Return west, south, east, north; west is greater than east where the antimeridian is crossed."""
    west, south, east, north = (
        f(values) for f, values in zip((min, min, max, max), zip(*bounds, strict=True), strict=True)
    )
    if len(bounds) > 1 and west == -180 and east == 180:
        begins, ends = min(b[0] for b in bounds if b[2] == 180), max(b[2] for b in bounds if b[0] == -180)
        west, east = (begins, ends) if begins > ends else (west, east)
    return [round(float(value), 7) for value in (west, south, east, north)]


def _projection(raster: Raster) -> dict[str, Any]:
    geobox = raster.geobox
    shape = {"proj:shape": [int(n) for n in raster.shape]}
    if geobox is None:
        return shape
    facts = {**shape, "proj:transform": _six(geobox), "proj:bbox": [float(v) for v in geobox.boundingbox.bbox]}
    if geobox.crs is None:
        return facts
    # Only an exact code: pyproj also offers codes of similar systems.
    authority = geobox.crs.proj.to_authority(min_confidence=100)
    code = ":".join(authority) if authority else None
    return {**facts, "proj:code": code, **({} if code else {"proj:wkt2": geobox.crs.to_wkt()})}


# --- what -----------------------------------------------------------------------------------------------------------


def _asset_key(raster: Raster) -> str:
    layers = list(dict.fromkeys(band.layer for band in raster.bands))
    return layers[0] if len(layers) == 1 else "data"


def _asset(written: Written, href: str, sensor: str | None) -> dict[str, Any]:
    raster, key = written.plan.raster, _asset_key(written.plan.raster)
    asset = {
        "href": href,
        "type": _GEOTIFF,
        "title": ", ".join(dict.fromkeys(band.long_name or band.layer for band in raster.bands)),
        "roles": ["visual", "overview"] if key == "rgba" else ["data"],
        "data_type": raster.dtype.name,
        "file:size": written.size,
        "file:checksum": multihash(written.sha256),
        "bands": [
            _band(raster, band, found, sensor) for band, found in zip(raster.bands, written.statistics, strict=True)
        ],
    }
    nodata = None if raster.mask or raster.alpha else raster.nodata
    return asset if nodata is None else asset | {"nodata": "nan" if math.isnan(nodata) else nodata}


def _band(raster: Raster, band: Band, statistics: Statistics, sensor: str | None) -> dict[str, Any]:
    facts = {
        "name": band.name,
        "description": band.long_name or None,
        "unit": band.units or None,
        "statistics": _statistics(statistics),
        "raster:sampling": "area",
        "raster:spatial_resolution": _resolution(raster.geobox),
        "raster:scale": None if band.scale is None else float(band.scale),
        "raster:offset": None if band.offset is None else float(band.offset),
        "eo:common_name": common_name(band.name.removeprefix(f"{band.layer}_"), sensor),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _resolution(geobox: GeoBox | None) -> float | None:
    """Return the size of pixels in metres, None where they have another unit."""
    if geobox is None or geobox.crs is None or not geobox.crs.projected:
        return None
    axis = geobox.crs.proj.axis_info[0]
    return abs(float(geobox.resolution.x)) * float(axis.unit_conversion_factor)


def _statistics(found: Statistics) -> dict[str, float]:
    facts: dict[str, float] = {"count": found.valid, "valid_percent": 100 * found.valid / max(found.pixels, 1)}
    if found.valid:
        facts |= {
            "minimum": found.minimum,
            "maximum": found.maximum,
            "mean": found.mean,
            "stddev": found.deviation,
        }
    return facts


# --- how ------------------------------------------------------------------------------------------------------------


def _processing(lineage: Lineage) -> dict[str, Any]:
    attrs = lineage.dataset.attrs
    method = attrs.get("parameters", attrs.get("reducer", "composite"))
    scenes, rules = lineage.dataset.sizes["scene"], attrs.get("rules", "none")
    return {
        "processing:level": "L3",
        "processing:lineage": f"{method} of {scenes} scenes; rules for observations: {rules}",
        "processing:software": {
            **{name: version(name) for name in _SOFTWARE},
            "GDAL": rasterio.__gdal_version__,
            "Python": platform.python_version(),
        },
    }


def _provenance(lineage: Lineage, period: Period) -> dict[str, Any]:
    attrs = lineage.dataset.attrs
    facts: dict[str, Any] = {
        f"s2composite:{name}": str(attrs[name])
        for name in ("reducer", "parameters", "rules", "engine", "engine_reason")
        if name in attrs
    }
    facts["s2composite:scenes"] = _scenes(lineage)
    if lineage.read_status is not None:
        facts["s2composite:read_status"] = dict(lineage.read_status)
    return facts if period.label is None else {**facts, "s2composite:period": period.label}


def _scenes(lineage: Lineage) -> list[dict[str, Any]]:
    dataset = lineage.dataset
    out: list[dict[str, Any]] = [{"id": str(scene)} for scene in dataset["scene"].values]
    if "scene_time" in dataset.coords and dataset["scene_time"].dtype.kind == "M":
        for entry, time in zip(out, dataset["scene_time"].values, strict=True):
            entry["datetime"] = _stamp(time)
    if lineage.shares is not None:
        for entry, share in zip(out, lineage.shares.tolist(), strict=True):
            entry["share"] = round(share, 6)
    return out
