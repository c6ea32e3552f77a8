"""Codings of mask bands: which value is which class, and which bits are which flag."""

from __future__ import annotations

__all__ = ["FMASK_CLASSES", "QA_BANDS", "QA_BITS", "QA_DEFAULTS", "QA_MISSING", "SCL_CLASSES"]

SCL_CLASSES = {
    "no data": 0,
    "saturated or defective": 1,
    "dark area pixels": 2,
    "cloud shadows": 3,
    "vegetation": 4,
    "bare soils": 5,
    "water": 6,
    "unclassified": 7,
    "cloud medium probability": 8,
    "cloud high probability": 9,
    "thin cirrus": 10,
    "snow or ice": 11,
}
"""Classes of Sentinel-2's scene classification."""

FMASK_CLASSES = {
    "odc": {"nodata": 0, "valid": 1, "cloud": 2, "shadow": 3, "snow": 4, "water": 5},
    "cfmask": {"valid": 0, "water": 1, "shadow": 2, "snow": 3, "cloud": 4, "nodata": 255},
}
"""Classes of Fmask, as products of Open Data Cube have it, and as CFmask and Fmask 4 write it."""

QA_BITS: dict[str, dict[str, tuple[int, int]]] = {
    "landsat": {
        "fill": (0x1, 0x1),
        "dilated cloud": (0x2, 0x2),
        "cirrus": (0x4, 0x4),
        "cloud": (0x8, 0x8),
        "cloud shadow": (0x10, 0x10),
        "snow": (0x20, 0x20),
        "clear": (0x40, 0x40),
        "water": (0x80, 0x80),
        "cloud medium": (0x300, 0x200),
        "cloud high": (0x300, 0x300),
        "cloud shadow high": (0xC00, 0xC00),
        "snow high": (0x3000, 0x3000),
        "cirrus high": (0xC000, 0xC000),
    },
    "hls": {
        "cirrus": (0x1, 0x1),
        "cloud": (0x2, 0x2),
        "adjacent": (0x4, 0x4),
        "cloud shadow": (0x8, 0x8),
        "snow": (0x10, 0x10),
        "water": (0x20, 0x20),
        "aerosol high": (0xC0, 0xC0),
        "fill": (0xFF, 0xFF),
    },
    "qa60": {"opaque cloud": (0x400, 0x400), "cirrus": (0x800, 0x800)},
}
"""Flags of Landsat Collection 2, HLS' Fmask and Sentinel-2 QA60: the bits they look at, and what these must be."""

QA_DEFAULTS = {
    "landsat": ("dilated cloud", "cirrus", "cloud", "cloud shadow"),
    "hls": ("cloud", "adjacent", "cloud shadow"),
    "qa60": ("opaque cloud", "cirrus"),
}
"""Flags that `QABits` drops where none are named."""

QA_MISSING = {"landsat": ("fill",), "hls": ("fill",), "qa60": ()}
"""Flags of pixels that hold no observation: always dropped, never cleaned."""

QA_BANDS = {"landsat": "QA_PIXEL", "hls": "Fmask", "qa60": "QA60"}
"""Usual name of the mask band."""
