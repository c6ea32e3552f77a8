"""Values: what the numbers of an asset mean, and how processing baselines of Sentinel-2 are harmonised.

Since baseline 04.00 ESA adds 1000 to the numbers of L1C and L2A. Collection 1 has that offset in scenes of all years,
and some catalogues subtract it again, so the date says nothing: the baseline of the product and its catalogue do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from s2composite.scenes.model import Values
from s2composite.scenes.names import same_band

__all__ = ["catalogue_values", "named_values"]

_SHIFT = -1000.0
"""What undoes ESA's offset."""

_SCALE = 1e-4
"""Reflectance of one number."""

_SPECTRAL = re.compile(r"B(?:0[1-9]|1[0-2]|8A)")
_CLASSES = re.compile(r"SCL|(?:OA_)?FMASK|CLASSI.*|QA(?:_.*|60)?|.*_?MASK|QUALITY.*", re.IGNORECASE)
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_HARMONISED_COLLECTION = re.compile(r"^ga_s2")
"""Collections derived from Sentinel-2 with their own reflectances, without ESA's offset."""


def named_values(asset: str, baseline: str | None) -> Values:
    """Return what the numbers of a file mean, by its asset and the processing baseline in its name.

    Parameters
    ----------
    asset
        Name of the asset, ``"B04"``.
    baseline
        ``"05.09"``; None where it is not known.

    Examples
    --------
    >>> named_values("B04", "05.09").shift, named_values("B04", "02.14").shift, named_values("B04", None).shift
    (-1000.0, 0.0, None)
    """
    (code, *_) = same_band(asset)
    if not _SPECTRAL.fullmatch(code):
        return Values(shift=0.0, classes=_is_classes(asset))
    return Values(shift=_by_baseline(baseline), scale=_SCALE)


def catalogue_values(
    name: str, asset: Mapping[str, Any], band: Mapping[str, Any], item: Mapping[str, Any], baseline: str | None
) -> Values:
    """Return what the numbers of an asset of a STAC item mean.

    What the catalogue says about its own files takes precedence (``earthsearch:boa_offset_applied``, then the
    ``offset`` of the raster extension) over the baseline of the product.

    Parameters
    ----------
    name, asset
        Key of the asset, and what the item says about it.
    band
        What ``raster:bands`` or ``bands`` say about its first band.
    item
        The whole item.
    baseline
        ``"05.09"``; None where it is not known.
    """
    scale, offset = (band.get(key, band.get(f"raster:{key}")) for key in ("scale", "offset"))
    nodata, dtype = band.get("nodata"), band.get("data_type")
    number = None if nodata is None else float(nodata)
    classes = _is_classes(name) or any(key in part for part in (asset, band) for key in _CLASS_KEYS)
    if not (_is_sentinel2(item) and _SPECTRAL.fullmatch(same_band(name)[0])):
        return Values(0.0, scale, float(offset or 0), number, classes, dtype)
    # The flag of Earth Search is about its COGs, not about ESA's own files beside them.
    original = name.endswith("-jp2")
    shift = _by_baseline(baseline) if original else _shift(item, scale, offset, baseline)
    return Values(shift, scale or _SCALE, 0.0, 0.0 if number is None else number, False, dtype)


_CLASS_KEYS = ("classification:classes", "classification:bitfields", "file:values")


def _shift(item: Mapping[str, Any], scale: float | None, offset: float | None, baseline: str | None) -> float | None:
    if _HARMONISED_COLLECTION.match(str(item.get("collection") or "")):
        return 0.0
    properties = item.get("properties") or {}
    applied = next((properties[key] for key in _APPLIED if properties.get(key) is not None), None)
    if applied is True:
        return 0.0
    if (applied is None or baseline is None) and offset is not None and scale:
        return float(round(offset / scale))
    return _by_baseline(baseline)


def _by_baseline(baseline: str | None) -> float | None:
    if baseline is None or not re.fullmatch(r"\d+(\.\d+)?", baseline):
        return None
    # 99.99 is a placeholder of reprocessing campaigns, not a baseline.
    return None if baseline == "99.99" else (_SHIFT if float(baseline) >= 4 else 0.0)


def _is_classes(asset: str) -> bool:
    return _CLASSES.fullmatch(same_band(asset)[0]) is not None


def _is_sentinel2(item: Mapping[str, Any]) -> bool:
    properties = item.get("properties") or {}
    told = f"{properties.get('platform', '')} {properties.get('constellation', '')} {item.get('collection') or ''}"
    return (
        re.search(r"sentinel-?_?2|\bs2_", told, re.IGNORECASE) is not None
        or re.match(r"S2[A-D]_", str(item.get("id"))) is not None
    )
