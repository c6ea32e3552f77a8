"""STAC items as scenes, and what the numbers of their bands mean.

Items come from objects, files, catalogues, searches and stac-geoparquet. Since baseline 04.00 ESA adds 1000 to the
numbers of L1C and L2A. Collection 1 has that offset in scenes of all years, and some
catalogues subtract it again, so the date says nothing: the baseline of the product and its catalogue decide.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import urljoin

from pyproj import CRS
from pyproj.exceptions import CRSError

from s2composite.errors import AccessError, ParameterError, S2CompositeError, SceneError, SourceError, needed
from s2composite.scenes.dates import utc_time
from s2composite.scenes.model import Asset, AssetGrid, Scene, Values, arc_around
from s2composite.scenes.names import asset_bands, common_name, is_picture, same_band, sensor_of
from s2composite.storage.files import absolute, display, filesystem, is_remote, reason
from s2composite.storage.urls import limits

__all__ = [
    "catalogue_values",
    "checked_item",
    "fmask_coding_of",
    "found_by",
    "is_mask_band",
    "is_stac",
    "is_stac_file",
    "items_in",
    "items_of",
    "named_values",
    "scene_of_item",
    "tagged_values",
    "with_alternate",
]

_SHIFT = -1000.0
"""What undoes ESA's offset."""

_SCALE = 1e-4
"""Reflectance of one number."""

_SPECTRAL = re.compile(r"B(?:0[1-9]|1[0-2]|8A)")
_CLASSES = re.compile(
    r"SCL|CLM|(?:OA_)?FMASK|CLASSI.*|B?QA(?:[_0-9].*)?|.*_QA(?:_.*)?|.*_?MASK|MSK_.*|QUALITY.*", re.IGNORECASE
)
_PROBABILITIES = re.compile(r"CLDPRB|SNWPRB|CLP|CLDPRO|.*CLOUD_?PROB.*|.*S2CLOUDLESS_PROB", re.IGNORECASE)
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_BASELINE = re.compile(r"\d+(\.\d+)?")
_LANDSAT_LEVEL = re.compile(r"[-_\d]L([12])(?![0-9])", re.IGNORECASE)
_LANDSAT_COLLECTION_1 = re.compile(r"_01_(?:T[12]|RT)|c1(?![0-9])")

_REFLECTANCES: Mapping[str, tuple[float, float]] = {
    "hls-l30": (1e-4, 0.0),
    "hls-s30": (1e-4, 0.0),
    "maja": (1e-4, 0.0),
    "ga-s2": (1e-4, 0.0),
    "landsat level 1": (2e-5, -0.1),
    "landsat level 2": (2.75e-5, -0.2),
}
"""Scale and offset of reflectances, by sensor: HLS user guide 2.0, MAJA's product format, Geoscience Australia's ARD 3,
and USGS Collection 2 (of level 1 those of OLI: each scene of TM has its own; not corrected for the sun's elevation)."""

_TEMPERATURES: Mapping[str, tuple[float, float, str]] = {
    "hls-l30": (0.01, 0.0, "degC"),
    "landsat level 2": (0.00341802, 149.0, "K"),
}
"""The same for thermal bands, with their unit."""


def named_values(band: str, baseline: str | None, sensor: str | None = None, product: str = "") -> Values:
    """Return what the numbers of a band mean, by its name, sensor and processing baseline alone.

    Parameters
    ----------
    band
        Name of the asset or band, ``"B04"``.
    baseline
        ``"05.09"``; None where it is not known.
    sensor
        See `s2composite.scenes.names.sensor_of`; None: bands with the numbers of Sentinel-2's are taken for these.
    product
        Name of product and collection.

    Examples
    --------
    >>> named_values("B04", "05.09").shift, named_values("B04", "02.14").shift, named_values("B04", None).shift
    (-1000.0, 0.0, None)
    >>> values = named_values("B4", None, "landsat-oli", "LC08_L2SP_198030_20230601_20230605_02_T1")
    >>> values.scale, values.offset
    (2.75e-05, -0.2)
    """
    if is_mask_band(band):
        coding = _fmask_coding(band, sensor, product)
        return Values(shift=0.0, classes=_is_classes(band), coding=coding, assumed=True)
    (code, *_) = same_band(band, sensor)
    if sensor in (None, "sentinel-2", "sen2like"):
        if _SPECTRAL.fullmatch(code):
            shift = None if sensor == "sen2like" else _by_baseline(baseline)
            return Values(shift, _SCALE, unit="1", assumed=True)
        return Values(shift=0.0 if code in _WITHOUT_OFFSET else None, assumed=True)
    family = _family(sensor, product)
    common = common_name(band, sensor) or ""
    if common.startswith("lwir") and family in _TEMPERATURES:
        scale, offset, unit = _TEMPERATURES[family]
        return Values(0.0, scale, offset, unit=unit, assumed=True)
    if family in _REFLECTANCES and common and not common.startswith("lwir"):
        scale, offset = _REFLECTANCES[family]
        return Values(0.0, scale, offset, unit="1", assumed=True)
    return Values(assumed=True)


_WITHOUT_OFFSET = ("TCI", "PVI", "AOT", "WVP")
"""What comes with a product beside its reflectances."""


def _family(sensor: str, product: str) -> str:
    """Return the key of the tables of numbers: for Landsat its level, where products of the level share them."""
    if not sensor.startswith("landsat"):
        return sensor
    if re.search(r"\bga_ls", product):
        return "ga-s2"
    level = _LANDSAT_LEVEL.search(product)
    if level is None or _LANDSAT_COLLECTION_1.search(product) or (level[1] == "1" and sensor != "landsat-oli"):
        return sensor
    return f"landsat level {level[1]}"


def tagged_values(values: Values, scale: float, offset: float, unit: str | None, *, sensor: str | None) -> Values:
    """Return what the numbers of a band mean, given scale and offset in its file's tags.

    What a catalogue says of its own file stays; what follows from names alone does not.

    Parameters
    ----------
    values
        As known without the file.
    scale, offset, unit
        The tags.
    sensor
        Of the scene.
    """
    if not values.assumed:
        return values if values.scale is not None or values.classes else _scaled(values, scale, offset, unit)
    if values.classes:
        return values
    shift = _shift_in(scale, offset) if sensor == "sentinel-2" and values.scale == _SCALE else None
    if shift is not None:
        return replace(values, shift=shift, scale=scale, offset=0.0, unit=unit or values.unit, assumed=False)
    return _scaled(values, scale, offset, unit)


def _scaled(values: Values, scale: float, offset: float, unit: str | None) -> Values:
    return replace(values, shift=0.0, scale=scale, offset=offset, unit=unit or values.unit, assumed=False)


def catalogue_values(
    name: str,
    asset: Mapping[str, Any],
    band: Mapping[str, Any],
    item: Mapping[str, Any],
    *,
    baseline: str | None,
    sensor: str | None,
) -> Values:
    """Return what the numbers of a band of a STAC item mean.

    What the catalogue says about its own files takes precedence (``earthsearch:boa_offset_applied``, then the
    ``scale`` and ``offset`` of the raster extension) over what products of the sensor and baseline have.

    Parameters
    ----------
    name
        Key of the asset, or name of the band in an asset of several.
    asset
        What the item says about the asset.
    band
        What ``raster:bands`` or ``bands`` say about the band.
    item
        The whole item.
    baseline
        ``"05.09"``; None where it is not known.
    sensor
        Of the item.
    """
    scale, offset, unit = (band.get(key, band.get(f"raster:{key}")) for key in ("scale", "offset", "unit"))
    nodata, dtype = band.get("nodata"), band.get("data_type")
    known = named_values(name, baseline, sensor, f"{item.get('id') or ''} {item.get('collection') or ''}")
    known = replace(known, nodata=nodata, dtype=dtype, unit=unit or known.unit)
    if known.classes or any(key in part for part in (asset, band) for key in _CLASS_KEYS):
        lists = (band.get(_CLASS_KEYS[0]) or asset.get(_CLASS_KEYS[0]) or ()) if known.classes else ()
        listed = {str(one.get("name") or one.get("description")): one.get("value") for one in lists}
        return replace(known, shift=0.0, classes=True, coding=fmask_coding_of(listed) or known.coding, assumed=False)
    said = (scale, offset) != (None, None) and (scale or 1.0, offset or 0.0) != (1.0, 0.0)
    if sensor == "sentinel-2" and known.scale == _SCALE:
        # The flag of Earth Search is about its COGs, not about ESA's own files beside them.
        original = name.endswith("-jp2")
        applied = None if original else _applied(item)
        known = replace(known, nodata=0.0 if nodata is None else nodata)
        if applied is True:
            return replace(known, shift=0.0, scale=scale or _SCALE, assumed=False)
        if said and scale and offset is not None and not original and (applied is None or baseline is None):
            shift = _shift_in(scale, offset)
            return (
                _scaled(known, scale, offset, unit)
                if shift is None
                else replace(known, shift=shift, scale=scale, assumed=False)
            )
        return replace(known, scale=scale if said and scale else _SCALE, assumed=not (said or applied is False))
    if said or (scale is not None and known.scale is None):
        return _scaled(known, 1.0 if scale is None else scale, offset or 0.0, unit)
    # of bands that only their file names, too
    return replace(known, shift=0.0) if _applied(item) else known


_CLASS_KEYS = ("classification:classes", "classification:bitfields", "file:values")


def _fmask_coding(band: str, sensor: str | None, product: str) -> str | None:
    """Return the coding of a band of Fmask, as far as names say it."""
    if same_band(band)[0] != "FMASK":
        return None
    if (sensor or "").startswith("hls"):
        return "hls"
    return "odc" if band.lower().startswith("oa_") or re.search(r"\bga_", product) else None


def fmask_coding_of(classes: Mapping[str, Any]) -> str | None:
    """Return the coding of a band of Fmask whose classes are listed by name; None if they are of neither coding.

    >>> fmask_coding_of({"clear": 0, "water": 1, "cloud_shadow": 2, "snow": 3, "cloud": 4})
    'cfmask'
    """
    clouds = {str(value) for name, value in classes.items() if "cloud" in name.lower() and "shadow" not in name.lower()}
    return {"2": "odc", "4": "cfmask"}.get(clouds.pop()) if len(clouds) == 1 else None


def is_mask_band(name: str) -> bool:
    """Return whether a band of this name says which pixels may be used, and is no observation itself."""
    (code, *_) = same_band(name)
    return _is_classes(name) or _PROBABILITIES.fullmatch(code) is not None


def _is_classes(name: str) -> bool:
    return _CLASSES.fullmatch(same_band(name)[0]) is not None


def _applied(item: Mapping[str, Any]) -> bool | None:
    """Return whether a catalogue says that it has taken ESA's offset off; None if it says nothing."""
    properties = item.get("properties") or {}
    return next((bool(properties[key]) for key in _APPLIED if properties.get(key) is not None), None)


def _shift_in(scale: float, offset: float) -> float | None:
    """Return the whole number that scale and offset add to numbers; None if it is none."""
    shift = offset / scale
    return float(round(shift)) if abs(shift - round(shift)) < 1e-6 * max(1.0, abs(shift)) else None


def _by_baseline(baseline: str | None) -> float | None:
    if baseline is None or not _BASELINE.fullmatch(baseline):
        return None
    # 99.99 is a placeholder of reprocessing campaigns, not a baseline.
    return None if baseline == "99.99" else (_SHIFT if float(baseline) >= 4 else 0.0)


Kind: TypeAlias = Callable[[Any], Any]
"""Returns a value as it is used; raises `_MalformedError` if it is of another kind."""

_DEEPEST = 8
"""Lists within lists that a geometry may have; a MultiPolygon has four."""


class _MalformedError(Exception):
    """A value of another kind: where it is, and what it should be."""

    def __init__(self, value: object, what: str, path: str = "") -> None:
        super().__init__()
        self.value, self.what, self.path = value, what, path


def checked_item(item: object) -> Mapping[str, Any]:
    """Return an item with its fields as the types that they have by the specification.

    Raises
    ------
    SceneError
        A field has a value of another kind; the message names item and field.
    """
    try:
        checked: Mapping[str, Any] = _fields(_ITEM)(item)
    except _MalformedError as wrong:
        name = str(item.get("id")) if isinstance(item, Mapping) else "without id"
        shown = repr(wrong.value)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        field = wrong.path.lstrip(".") or "it"
        raise SceneError(
            f"item {name[:200]}: {field} is {shown}, which is not {wrong.what}; correct the item, or leave it out",
            scene=name,
        ) from None
    return checked


def _fields(kinds: Mapping[str, Kind]) -> Kind:
    """Return the kind of an object with fields of certain kinds; others stay as they are, null is absent."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _MalformedError(value, "an object")
        out: dict[str, Any] = {}
        for key, one in value.items():
            try:
                out[str(key)] = kinds[key](one) if one is not None and key in kinds else one
            except _MalformedError as wrong:
                raise _MalformedError(wrong.value, wrong.what, f".{key}{wrong.path}") from None
        return out

    return check


def _named(kind: Kind) -> Kind:
    """Return the kind of an object whose fields, of any name, are all of one kind."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _MalformedError(value, "an object")
        return dict(_fields(dict.fromkeys(value, kind))(value))

    return check


def _list(kind: Kind, what: str) -> Kind:
    def check(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)):
            raise _MalformedError(value, what)
        out = []
        for i, one in enumerate(value):
            try:
                out.append(kind(one))
            except _MalformedError as wrong:
                raise _MalformedError(wrong.value, wrong.what, f"[{i}]{wrong.path}") from None
        return out

    return check


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise _MalformedError(value, "text")


def _any_number(value: Any) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise _MalformedError(value, "a number")


def _number(value: Any) -> float:
    number = _any_number(value)
    if not math.isfinite(number):
        raise _MalformedError(value, "a finite number")
    return number


def _scale(value: Any) -> float:
    number = _number(value)
    if number == 0:
        raise _MalformedError(value, "a number other than 0")
    return number


def _orbit_number(value: Any) -> int:
    number = _number(value)
    if not number.is_integer() or not 0 <= number <= 999:
        raise _MalformedError(value, "the number of an orbit")
    return int(number)


def _flag(value: Any) -> bool:
    flags = {"true": True, "false": False, "1": True, "0": False}
    if isinstance(value, (bool, int, str)) and str(value).strip().lower() in flags:
        return flags[str(value).strip().lower()]
    raise _MalformedError(value, "true or false")


def _date(value: Any) -> str:
    """Return a date as it was written."""
    try:
        utc_time(_text(value))
    except ParameterError:
        raise _MalformedError(value, "a date such as 2023-06-15T10:46:29Z") from None
    return str(value)


def _box(value: Any) -> list[float]:
    box: list[float] = _list(_number, "a list of numbers")(value)
    if len(box) not in (0, 4, 6):
        raise _MalformedError(value, "a list of 4 or 6 numbers")
    return box


def _coordinates(value: Any, depth: int = 0) -> Any:
    if not isinstance(value, (list, tuple)) or depth > _DEEPEST:
        raise _MalformedError(value, "a list of positions")
    if value and not isinstance(value[0], (list, tuple)):
        if len(value) < 2:
            raise _MalformedError(value, "a position of two numbers")
        return [_number(one) for one in value]
    return [_coordinates(one, depth + 1) for one in value]


def _band_list(value: Any) -> list[Any]:
    """Return bands. STAC before 0.9 has numbers here, which refer to a list elsewhere; some catalogues nest lists."""
    if isinstance(value, (list, tuple)):
        value = [band for one in value for band in (one if isinstance(one, list) else [one])]
    bands: list[Any] = _list(_band, "a list of bands")(value)
    return bands


def _band(value: Any) -> Any:
    return value if isinstance(value, int) and not isinstance(value, bool) else _fields(_BAND)(value)


# --- what a file's header says as well -------------------------------------------------------------------------------


def _if_sound(kind: Kind) -> Kind:
    def check(value: Any) -> Any:
        try:
            return kind(value)
        except _MalformedError:
            return None

    return check


def _transform(value: Any) -> list[float]:
    numbers: list[float] = _list(_number, "a list of numbers")(value)
    if len(numbers) not in (6, 9) or numbers[0] * numbers[4] == numbers[1] * numbers[3]:
        raise _MalformedError(value, "a transform of 6 or 9 numbers")
    return numbers


def _shape(value: Any) -> list[int]:
    numbers: list[float] = _list(_number, "a list of numbers")(value)
    if len(numbers) != 2 or not all(n.is_integer() and 0 < n < 1 << 31 for n in numbers):
        raise _MalformedError(value, "rows and columns")
    return [int(n) for n in numbers]


@lru_cache(1024)
def _is_crs(text: str) -> bool:
    try:
        CRS.from_user_input(text)
    except CRSError:
        return False
    return True


def _crs(value: Any) -> str:
    text = _text(value)
    if not _is_crs(text):
        raise _MalformedError(value, "a coordinate system that PROJ knows")
    return text


def _epsg(value: Any) -> int:
    number = _number(value)
    if not number.is_integer() or not _is_crs(f"EPSG:{int(number)}"):
        raise _MalformedError(value, "the EPSG code of a coordinate system")
    return int(number)


# --- the fields ------------------------------------------------------------------------------------------------------

_GRID: Mapping[str, Kind] = {
    "proj:code": _if_sound(_crs),
    "proj:epsg": _if_sound(_epsg),
    "proj:wkt2": _if_sound(_crs),
    "proj:transform": _if_sound(_transform),
    "proj:shape": _if_sound(_shape),
}

_BAND: Mapping[str, Kind] = {
    **dict.fromkeys(("name", "common_name", "eo:common_name", "unit", "raster:unit", "data_type"), _text),
    **dict.fromkeys(("scale", "raster:scale"), _scale),
    **dict.fromkeys(("offset", "raster:offset"), _number),
    "nodata": _any_number,
    "classification:classes": _list(_fields({"name": _text, "description": _text}), "a list of classes"),
}

_ASSET: Mapping[str, Kind] = {
    **_BAND,
    **_GRID,
    "href": _text,
    "type": _text,
    "roles": _list(_text, "a list of text"),
    **dict.fromkeys(("bands", "eo:bands", "raster:bands"), _band_list),
    "alternate": _named(_fields({"href": _text})),
}

_PROPERTIES: Mapping[str, Kind] = {
    **_GRID,
    **dict.fromkeys(
        ("datetime", "start_datetime", "s2:generation_time", "processing:datetime", "created", "updated"), _date
    ),
    **dict.fromkeys(
        (
            "platform", "constellation", "s2:processing_baseline", "sentinel2:processing_baseline",
            "sentinel:processing_baseline", "processing:version", "grid:code", "s2:mgrs_tile", "odc:region_code",
            "mgrs:utm_zone", "mgrs:latitude_band", "mgrs:grid_square", "title", "s2:product_uri",
            "sentinel:product_id",
        ),
        _text,
    ),
    **dict.fromkeys(("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"), _flag),
    **dict.fromkeys(("sat:relative_orbit", "sentinel:relative_orbit"), _orbit_number),
    "eo:cloud_cover": _if_sound(_number),
    "processing:software": _named(lambda value: value),
}  # fmt: skip

_ITEM: Mapping[str, Kind] = {
    "id": _text,
    "collection": _text,
    "bbox": _box,
    "geometry": _fields({"coordinates": _coordinates}),
    "links": _list(_fields({"href": _text, "rel": _text}), "a list of links"),
    "properties": _fields(_PROPERTIES),
    "assets": _named(_fields(_ASSET)),
}


_FILES = (".json", ".geojson", ".parquet", ".geoparquet")
_SEARCH = ("url", "collections", "bbox", "datetime", "query")


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

    Parameters
    ----------
    source
        A pystac Item, ItemCollection or Collection; a search of pystac-client; a Feature or FeatureCollection as a
        dictionary; or a search to be made, ``{"url", "collections", "bbox", "datetime", "query"}``.

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
        raise SourceError(f"{display(href)} is not JSON ({error}); give a STAC item or ItemCollection") from None
    except Exception as error:  # noqa: BLE001 - the backends of fsspec share no class of errors
        raise SourceError(f"cannot read {display(href)}: {reason(href, error)}", href=display(href)) from None
    if not isinstance(content, Mapping):
        raise SourceError(f"{display(href)} holds a list; give a STAC item or ItemCollection", href=display(href))
    return content


def _features(content: Mapping[str, Any], label: str, base: str | None = None) -> list[Mapping[str, Any]]:
    kind = content.get("type")
    if kind == "FeatureCollection":
        features = content.get("features") or []
        if not isinstance(features, Sequence):
            raise ParameterError(f"{label} is not an ItemCollection: its features are not a list")
        return [_absolute(item, base) for item in features]
    if kind == "Feature" and "assets" in content:
        return [_absolute(content, base)]
    raise ParameterError(
        f"{label} is not a STAC item (its type is {kind!r}); give an item, an ItemCollection, or a search as "
        f"{{{', '.join(map(repr, _SEARCH))}}}"
    )


def _linked(content: Mapping[str, Any], href: str, depth: int) -> Iterator[Mapping[str, Any]]:
    """Yield the items that a collection or catalogue links to, in its children too."""
    for link in checked_item({"links": content.get("links"), "id": href})["links"] or ():
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
            return [_absolute(item, None) for item in arrow.stac_table_to_items(parquet.read_table(file))]
    except S2CompositeError:
        raise
    except Exception as error:  # noqa: BLE001 - pyarrow and the backends of fsspec share no class of errors
        raise SourceError(
            f"{display(href)} is not stac-geoparquet: {reason(href, error)}", href=display(href)
        ) from None


def _plain(item: Any) -> Mapping[str, Any]:
    """Return an item of pystac as a dictionary."""
    if isinstance(item, Mapping):
        return _absolute(item, None)
    if not (hasattr(item, "assets") and hasattr(item, "to_dict")):
        raise ParameterError(f"{type(item).__name__} is not a source; give STAC items, paths, URLs or scenes")
    content: Mapping[str, Any] = item.to_dict(include_self_link=True, transform_hrefs=False)
    return _absolute(content, item.get_self_href())


def _absolute(raw: object, base: str | None) -> Mapping[str, Any]:
    """Return an item, its fields checked, whose asset hrefs are absolute, if it says where it is."""
    item = checked_item(raw)
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
    """Return items with the hrefs of a catalogue's ``alternate`` of a name; assets without it are unchanged.

    Parameters
    ----------
    items
        Dictionaries, with the alternate-assets extension where they have it.
    name
        Key of the alternate, such as ``"https"``; None: leave the items unchanged.

    Raises
    ------
    ParameterError
        No asset has that alternate.

    Examples
    --------
    >>> asset = {"href": "s3://eodata/B04.jp2", "alternate": {"https": {"href": "https://host/B04.jp2"}}}
    >>> with_alternate([{"id": "a", "assets": {"B04": asset}}], "https")[0]["assets"]["B04"]["href"]
    'https://host/B04.jp2'
    """
    if name is None or not items:
        return list(items)
    known = {key for item in items for asset in _assets(item).values() for key in asset.get("alternate") or ()}
    if name not in known:
        raise ParameterError(
            f"alternate is {name!r}, and the assets of the {len(items)} items have "
            f"{', '.join(sorted(map(repr, known))) or 'no alternates'}; leave it out to read their own hrefs"
        )
    return [
        {**item, "assets": {key: _alternate(asset, name) for key, asset in _assets(item).items()}} for item in items
    ]


def _assets(item: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return {key: asset for key, asset in (item.get("assets") or {}).items() if asset}


def _alternate(asset: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = (asset.get("alternate") or {}).get(name) or {}
    return {**asset, "href": found["href"]} if found.get("href") else asset


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
