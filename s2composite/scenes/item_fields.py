"""Fields of STAC items: their types, checked once when an item comes in, so that nothing after has to.

Numbers and dates as text are understood. Fields that only repeat what a file's header says (its grid) and the
cloud cover are left out where they are malformed; any other field with a value of another kind is an error that names
item and field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from pyproj import CRS
from pyproj.exceptions import CRSError

from s2composite.errors import ParameterError, SceneError
from s2composite.scenes.dates import utc_time

__all__ = ["checked_item"]

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


def _orbit(value: Any) -> int:
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


def _bands(value: Any) -> list[Any]:
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
    **dict.fromkeys(("bands", "eo:bands", "raster:bands"), _bands),
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
    **dict.fromkeys(("sat:relative_orbit", "sentinel:relative_orbit"), _orbit),
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
