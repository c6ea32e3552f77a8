"""Values: what the numbers of a band mean, and how processing baselines of Sentinel-2 are harmonised.

Since baseline 04.00 ESA adds 1000 to the numbers of L1C and L2A. Collection 1 has that offset in scenes of all years,
and some catalogues subtract it again, so the date says nothing: the baseline of the product and its catalogue do.

Who knows best comes first: a catalogue about its own files, then the tags in a file, then the name of product and band.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from s2composite.scenes.model import Values
from s2composite.scenes.names import common_name, same_band

__all__ = ["catalogue_values", "fmask_coding_of", "is_mask_band", "named_values", "tagged_values"]

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
