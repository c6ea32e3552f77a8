"""Products by sensor: what names tell of them, what their bands are called, and what their numbers mean.

Since baseline 04.00 ESA adds 1000 to the numbers of L1C and L2A. Collection 1 has that offset in scenes of all years,
and some catalogues subtract it again, so the date says nothing: the baseline of the product and its catalogue decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

from s2composite.scenes.model import Scene, Values
from s2composite.scenes.names import PICTURES

__all__ = [
    "catalogue_values", "common_name", "fmask_coding_of", "is_mask_band", "is_picture", "level_of", "named_values",
    "product_level", "same_band", "sensor_of", "tagged_values",
]  # fmt: skip

# --- sensors and their bands ----------------------------------------------------------------------------------------

_Bands: TypeAlias = Mapping[str, tuple[str, ...]]  # all names of a band, by each of them in lower case


def _bands(*same: tuple[str, ...]) -> _Bands:
    """Return bands from the names that catalogues give to each: its number first, then common names."""
    table = {name.lower(): names for names in same for name in names}
    return table | {f"b{int(names[0][1:])}": names for names in same if re.fullmatch(r"B0\d", names[0])}


_MSI = _bands(
    ("B01", "coastal", "coastal_aerosol"), ("B02", "blue"), ("B03", "green"), ("B04", "red"),
    ("B05", "rededge1", "rededge071", "red_edge_1"), ("B06", "rededge2", "rededge075", "red_edge_2"),
    ("B07", "rededge3", "rededge078", "red_edge_3"), ("B08", "nir", "nir_1"), ("B8A", "nir08", "nir_2"),
    ("B09", "nir09"), ("B10", "cirrus"), ("B11", "swir16", "swir_2"), ("B12", "swir22", "swir_3"), ("TCI", "visual"),
    ("CLDPRB", "CLD", "cloud"), ("SNWPRB", "SNW", "snow"),
)  # fmt: skip
_OLI = _bands(  # and TIRS of Landsat 8 and 9
    ("B01", "coastal", "coastal_aerosol"), ("B02", "blue"), ("B03", "green"), ("B04", "red"),
    ("B05", "nir08", "nir"), ("B06", "swir16", "swir_1"), ("B07", "swir22", "swir_2"), ("B08", "pan", "panchromatic"),
    ("B09", "cirrus"), ("B10", "lwir11", "lwir"), ("B11", "lwir12"),
)  # fmt: skip
_TM = _bands(  # and ETM+: Landsat 4, 5 and 7
    ("B01", "blue"), ("B02", "green"), ("B03", "red"), ("B04", "nir08", "nir"), ("B05", "swir16", "swir_1"),
    ("B06", "lwir"), ("B07", "swir22", "swir_2"), ("B08", "pan", "panchromatic"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Sensor:
    """A sensor, or those who make products of one."""

    form: str  # what names of products, collections and platforms say of it
    bands: _Bands
    reflectance: tuple[float, float] | None = None  # scale and offset; None: unknown, or not one for all its products
    temperature: tuple[float, float, str] | None = None  # the same of thermal bands, with their unit
    surface_only: bool = False  # there are no products of level 1


_UNKNOWN, _PLAIN = _Sensor("", _MSI), (1e-4, 0.0)

# The first whose form matches counts. Numbers: HLS user guide 2.0, MAJA's product format, Geoscience Australia's ARD 3.
_SENSORS: Mapping[str, _Sensor] = {
    "hls-l30": _Sensor(r"hls\S*?l30", _OLI, _PLAIN, (0.01, 0.0, "degC"), surface_only=True),
    "hls-s30": _Sensor(r"hls\S*?s30", _MSI, _PLAIN, surface_only=True),
    "landsat-tm": _Sensor(r"(?<![A-Z0-9])L[ET]0[4-7]_|landsat[-_ ]?[457](?!\d)|\bga_ls[57]", _TM),
    "landsat-oli": _Sensor(r"(?<![A-Z0-9])L[COT]0[89]_|landsat[-_ ]?[89](?!\d)|\bga_ls[89]", _OLI),
    "landsat": _Sensor(r"landsat|(?<![A-Z0-9])LM0[1-5]_", {}),
    "maja": _Sensor(r"SENTINEL2[A-D]_\d{8}-|theia|maja", _MSI, _PLAIN, surface_only=True),
    "sen2like": _Sensor(r"MSIL2[FH]_|sen2like", _MSI, surface_only=True),
    "ga-s2": _Sensor(r"\bga_s2", _MSI, _PLAIN, surface_only=True),
    "sentinel-2": _Sensor(r"sentinel[-_ ]?(?:s)?2|\bs2_|(?<![A-Z0-9])S2[A-D]_|(?<![A-Z0-9])T\d\d[A-Z]{3}_\d{8}", _MSI),
}

# Reflectances and temperatures of USGS Collection 2, by level (of level 1 those of OLI: each scene of TM has its own;
# not corrected for the sun's elevation).
_LANDSAT: Mapping[str, tuple[tuple[float, float], tuple[float, float, str] | None]] = {
    "1": ((2e-5, -0.1), None),
    "2": ((2.75e-5, -0.2), (0.00341802, 149.0, "K")),
}

# Common names of STAC's extension ``eo``.
_COMMON = {
    "coastal", "blue", "green", "red", "nir", "nir08", "nir09", "rededge071", "rededge075", "rededge078", "cirrus",
    "swir16", "swir22", "pan", "lwir", "lwir11", "lwir12",
}  # fmt: skip
_DECORATION = re.compile(
    r"^nbart?_|^oa_(?=fmask)|^(?:sr|st|oli|tirs|tm|etm)_(?=b\d)|-jp2$|[_-](?:10|20|60)m$", re.IGNORECASE
)


def is_picture(asset: str) -> bool:
    """Return whether an asset is the true-colour picture, by its name in any catalogue."""
    return same_band(asset)[0] in PICTURES


@lru_cache(4096)
def same_band(name: str, sensor: str | None = None) -> tuple[str, ...]:
    """Return all names that catalogues give to a band of a sensor, its number first; None: Sentinel-2.

    >>> same_band("red"), same_band("B02_10m"), same_band("scl")
    (('B04', 'red'), ('B02', 'blue'), ('SCL',))
    >>> same_band("B5", "landsat-oli")
    ('B05', 'nir08', 'nir')
    """
    plain = _DECORATION.sub("", _DECORATION.sub("", name)).lower()
    return _SENSORS.get(sensor or "", _UNKNOWN).bands.get(plain, (plain.upper(),))


def common_name(band: str, sensor: str | None = None) -> str | None:
    """Return the common name of a band in STAC's extension ``eo``; None if it has none.

    >>> common_name("B05"), common_name("B05", "hls-l30"), common_name("SCL")
    ('rededge071', 'nir08', None)
    """
    if band.lower() in _COMMON:
        return band.lower()
    return next((name for name in same_band(band, sensor) if name in _COMMON), None)


def sensor_of(*texts: object) -> str | None:
    """Return the sensor, or who made its products, that names of products, collections or platforms tell of.

    >>> sensor_of("LC08_L1TP_198030_20230601_20230605_02_T1"), sensor_of("hls2-l30", "landsat-8"), sensor_of("a.tif")
    ('landsat-oli', 'hls-l30', None)
    """
    text = " ".join(str(text) for text in texts if text)
    return next((name for name, sensor in _SENSORS.items() if re.search(sensor.form, text, re.IGNORECASE)), None)


_LEVEL = re.compile(r"(?:[-_]|\d)l([12])[a-z]{0,2}(?:[-_]|$)", re.IGNORECASE)
_MSI_LEVEL = re.compile(r"MSIL([12])[A-Z]_")


def level_of(scene: Scene) -> str | None:
    """Return the processing level that the collection of a scene names, ``"1"`` or ``"2"``; None if it names none."""
    match = _LEVEL.search(scene.collection or "")
    return match[1] if match else None


def product_level(scene: Scene) -> str | None:
    """Return the processing level of a scene, ``"1"`` or ``"2"``, that any of its names says; None if none does.

    Those are its collection, its own and those of files, its sensor where this has one level only, and bands that only
    one level has.
    """
    named = [(_LEVEL, scene.collection or ""), (_LEVEL, scene.id)]
    named += [(_MSI_LEVEL, text) for text in (scene.id, *(asset.href for asset in scene.assets))]
    match = next((match for form, text in named if (match := form.search(text))), None)
    if match is not None:
        return match[1]
    bands = {same_band(asset.name, scene.sensor)[0] for asset in scene.assets}
    if _SENSORS.get(scene.sensor or "", _UNKNOWN).surface_only or bands & {"SCL", "AOT", "WVP"}:
        return "2"
    return "1" if scene.sensor in (None, "sentinel-2") and "B10" in bands else None


# --- the numbers ----------------------------------------------------------------------------------------------------

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
    known = _SENSORS.get(sensor, _UNKNOWN)
    reflectance, temperature = known.reflectance, known.temperature
    if sensor.startswith("landsat"):
        level = _LANDSAT_LEVEL.search(product)
        if re.search(r"\bga_ls", product):
            reflectance = _PLAIN
        elif level and not _LANDSAT_COLLECTION_1.search(product) and (level[1] == "2" or sensor == "landsat-oli"):
            reflectance, temperature = _LANDSAT[level[1]]
    common = common_name(band, sensor) or ""
    if common.startswith("lwir") and temperature:
        scale, offset, unit = temperature
        return Values(0.0, scale, offset, unit=unit, assumed=True)
    if reflectance and common and not common.startswith("lwir"):
        scale, offset = reflectance
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
