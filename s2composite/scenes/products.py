"""What the numbers of products mean: scale, offset, baseline shift and mask codings, by sensor, baseline and catalogue.

Since baseline 04.00 ESA adds 1000 to the numbers of L1C and L2A. Collection 1 has that offset in scenes of all years,
and some catalogues subtract it again, so the date says nothing: the baseline of the product and its catalogue decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from s2composite.scenes.model import Values
from s2composite.scenes.names import common_name, same_band

__all__ = ["catalogue_values", "fmask_coding_of", "is_mask_band", "named_values", "tagged_values"]

_SHIFT = -1000.0  # undoes ESA's offset
_SCALE = 1e-4  # reflectance of one number
_WITHOUT_OFFSET = ("TCI", "PVI", "AOT", "WVP")  # what comes with a product beside its reflectances

_SPECTRAL = re.compile(r"B(?:0[1-9]|1[0-2]|8A)")
_CLASSES = re.compile(
    r"SCL|CLM|(?:OA_)?FMASK|CLASSI.*|B?QA(?:[_0-9].*)?|.*_QA(?:_.*)?|.*_?MASK|MSK_.*|QUALITY.*", re.IGNORECASE
)
_PROBABILITIES = re.compile(r"CLDPRB|SNWPRB|CLP|CLDPRO|.*CLOUD_?PROB.*|.*S2CLOUDLESS_PROB", re.IGNORECASE)
_OFFSET_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_CLASS_KEYS = ("classification:classes", "classification:bitfields", "file:values")
_BASELINE = re.compile(r"\d+(\.\d+)?")
_LANDSAT_LEVEL = re.compile(r"[-_\d]L([12])(?![0-9])", re.IGNORECASE)
_LANDSAT_COLLECTION_1 = re.compile(r"_01_(?:T[12]|RT)|c1(?![0-9])")

# Scale and offset of reflectances, by sensor: HLS user guide 2.0, MAJA's product format, Geoscience Australia's ARD 3,
# and USGS Collection 2 (of level 1 those of OLI: each scene of TM has its own; not corrected for the sun's elevation).
_REFLECTANCES: Mapping[str, tuple[float, float]] = {
    "hls-l30": (1e-4, 0.0),
    "hls-s30": (1e-4, 0.0),
    "maja": (1e-4, 0.0),
    "ga-s2": (1e-4, 0.0),
    "landsat level 1": (2e-5, -0.1),
    "landsat level 2": (2.75e-5, -0.2),
}

# The same for thermal bands, with their unit.
_TEMPERATURES: Mapping[str, tuple[float, float, str]] = {
    "hls-l30": (0.01, 0.0, "degC"),
    "landsat level 2": (0.00341802, 149.0, "K"),
}


def named_values(band: str, baseline: str | None, sensor: str | None = None, product: str = "") -> Values:
    """Return what the numbers of a band mean, by its name, sensor, processing baseline and product alone.

    Without a sensor, bands with the numbers of Sentinel-2's are taken for these.

    Examples
    --------
    >>> named_values("B04", "05.09").shift, named_values("B04", "02.14").shift, named_values("B04", None).shift
    (-1000.0, 0.0, None)
    >>> values = named_values("B4", None, "landsat-oli", "LC08_L2SP_198030_20230601_20230605_02_T1")
    >>> values.scale, values.offset
    (2.75e-05, -0.2)
    """
    if is_mask_band(band):
        coding = None
        if same_band(band)[0] == "FMASK":
            of_odc = band.lower().startswith("oa_") or re.search(r"\bga_", product)
            coding = "hls" if (sensor or "").startswith("hls") else "odc" if of_odc else None
        return Values(shift=0.0, classes=_is_classes(band), coding=coding, assumed=True)
    if sensor in (None, "sentinel-2", "sen2like"):
        (code, *_) = same_band(band, sensor)
        if not _SPECTRAL.fullmatch(code):
            return Values(shift=0.0 if code in _WITHOUT_OFFSET else None, assumed=True)
        shift = None
        # 99.99 is a placeholder of reprocessing campaigns, not a baseline.
        if sensor != "sen2like" and baseline is not None and _BASELINE.fullmatch(baseline) and baseline != "99.99":
            shift = _SHIFT if float(baseline) >= 4 else 0.0
        return Values(shift, _SCALE, unit="1", assumed=True)
    family = sensor
    if sensor.startswith("landsat"):
        level = _LANDSAT_LEVEL.search(product)
        if re.search(r"\bga_ls", product):
            family = "ga-s2"
        elif level and not _LANDSAT_COLLECTION_1.search(product) and (level[1] == "2" or sensor == "landsat-oli"):
            family = f"landsat level {level[1]}"
    common = common_name(band, sensor) or ""
    if common.startswith("lwir") and family in _TEMPERATURES:
        scale, offset, unit = _TEMPERATURES[family]
        return Values(0.0, scale, offset, unit=unit, assumed=True)
    if family in _REFLECTANCES and common and not common.startswith("lwir"):
        scale, offset = _REFLECTANCES[family]
        return Values(0.0, scale, offset, unit="1", assumed=True)
    return Values(assumed=True)


def tagged_values(values: Values, scale: float, offset: float, unit: str | None, *, sensor: str | None) -> Values:
    """Return `values` with the scale and offset of a file's tags.

    What a catalogue says of its own file stays; what follows from names alone does not.
    """
    if values.classes or (values.scale is not None and not values.assumed):
        return values
    if sensor == "sentinel-2" and values.scale == _SCALE:
        return _shifted(values, scale, offset, unit or values.unit)
    return _scaled(values, scale, offset, unit)


def catalogue_values(
    name: str,
    asset: Mapping[str, Any],
    band: Mapping[str, Any],
    item: Mapping[str, Any],
    *,
    baseline: str | None,
    sensor: str | None,
) -> Values:
    """Return what the numbers of a band of a STAC item mean; `name`: of the asset, or of its band if it has several.

    What the catalogue says about its own files takes precedence (``earthsearch:boa_offset_applied``, then the
    ``scale`` and ``offset`` of the raster extension) over what products of the sensor and baseline have.
    """
    scale, offset, unit = (band.get(key, band.get(f"raster:{key}")) for key in ("scale", "offset", "unit"))
    nodata = band.get("nodata")
    values = named_values(name, baseline, sensor, f"{item.get('id') or ''} {item.get('collection') or ''}")
    values = replace(values, nodata=nodata, dtype=band.get("data_type"), unit=unit or values.unit)
    if values.classes or any(key in part for part in (asset, band) for key in _CLASS_KEYS):
        listed = (band.get(_CLASS_KEYS[0]) or asset.get(_CLASS_KEYS[0]) or ()) if values.classes else ()
        codes = {str(one.get("name") or one.get("description")): one.get("value") for one in listed}
        return replace(values, shift=0.0, classes=True, coding=fmask_coding_of(codes) or values.coding, assumed=False)
    properties = item.get("properties") or {}
    flags = [properties[key] for key in _OFFSET_APPLIED if properties.get(key) is not None]
    applied = bool(flags[0]) if flags else None  # whether the catalogue has taken ESA's offset off; None: not stated
    stated = (scale, offset) != (None, None) and (scale or 1.0, offset or 0.0) != (1.0, 0.0)
    if sensor == "sentinel-2" and values.scale == _SCALE:
        # The flag of Earth Search is about its COGs, not about ESA's own files beside them.
        original = name.endswith("-jp2")
        applied = None if original else applied
        values = replace(values, nodata=0.0 if nodata is None else nodata)
        if applied is True:
            return replace(values, shift=0.0, scale=scale or _SCALE, assumed=False)
        if stated and scale and offset is not None and not original and (applied is None or baseline is None):
            return _shifted(values, scale, offset, unit)
        return replace(values, scale=scale if stated and scale else _SCALE, assumed=not (stated or applied is False))
    if stated or (scale is not None and values.scale is None):
        return _scaled(values, 1.0 if scale is None else scale, offset or 0.0, unit)
    # of bands that only their file names, too
    return replace(values, shift=0.0) if applied else values


def _scaled(values: Values, scale: float, offset: float, unit: str | None) -> Values:
    return replace(values, shift=0.0, scale=scale, offset=offset, unit=unit or values.unit, assumed=False)


def _shifted(values: Values, scale: float, offset: float, unit: str | None) -> Values:
    """Return values whose offset is a shift of the numbers where it is a whole number of them."""
    shift = offset / scale
    scaled = _scaled(values, scale, offset, unit)
    if abs(shift - round(shift)) < 1e-6 * max(1.0, abs(shift)):
        return replace(scaled, shift=float(round(shift)), offset=0.0)
    return scaled


def fmask_coding_of(classes: Mapping[str, Any]) -> str | None:
    """Return the coding of a band of Fmask whose classes are listed by name; None if they are of neither coding.

    >>> fmask_coding_of({"clear": 0, "water": 1, "cloud_shadow": 2, "snow": 3, "cloud": 4})
    'cfmask'
    """
    clouds = {str(value) for name, value in classes.items() if "cloud" in name.lower() and "shadow" not in name.lower()}
    return {"2": "odc", "4": "cfmask"}.get(clouds.pop()) if len(clouds) == 1 else None


def is_mask_band(name: str) -> bool:
    """Return whether a band of this name says which pixels may be used, and is no observation itself."""
    return _is_classes(name) or _PROBABILITIES.fullmatch(same_band(name)[0]) is not None


def _is_classes(name: str) -> bool:
    return _CLASSES.fullmatch(same_band(name)[0]) is not None
