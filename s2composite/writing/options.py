"""Options: how one raster file is encoded, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from s2composite.errors import ParameterError
from s2composite.pixels.stretch import Stretch

__all__ = ["OVERVIEWS", "RasterOptions", "check_resampling", "checked", "overridden"]

COMPRESSIONS = ("deflate", "zstd", "lzw", "webp", "jpeg", "none")
OVERVIEWS = ("average", "nearest", "mode")

_LEVELS = {"deflate": (1, 12), "zstd": (1, 22), "webp": (1, 100)}
_WITH_PREDICTOR = ("deflate", "zstd", "lzw")
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


@dataclass(frozen=True, slots=True)
class RasterOptions:
    """How one raster file is encoded: each option as `Composite.to_raster` describes it.

    `stretch` is for the layer ``rgba``: the values shown darkest and brightest, such a pair for each band, or
    percentiles (``"2-98%"``, ``"2-98% per band"``) if the pixels are in memory.

    Examples
    --------
    >>> RasterOptions(compress="jpeg").lossy, RasterOptions(compress="webp").lossy
    (True, False)
    """

    compress: str = "deflate"
    level: int | None = None
    predictor: str | int = "auto"
    blocksize: int = 512
    overview_resampling: str | None = None
    mask: bool | None = None
    bigtiff: bool | str = "auto"
    jpeg_quality: int = 85
    stretch: Stretch | None = None

    @property
    def lossy(self) -> bool:
        """Whether decoded pixels differ from those given."""
        return self.compress == "jpeg" or (self.compress == "webp" and self.level is not None)


def check_resampling(options: RasterOptions, label: str) -> None:
    """Raise a ParameterError if there is no such way of making overviews; before any band is described by it."""
    if options.overview_resampling is not None:
        _check_choice(label, "overview_resampling", options.overview_resampling, OVERVIEWS)


def overridden(options: RasterOptions, overrides: Mapping[str, Mapping[str, Any]], layer: str) -> RasterOptions:
    """Return the options of one layer; raises a ParameterError if a key of its overrides is not an option."""
    own = overrides.get(layer, {})
    if not isinstance(own, Mapping):
        raise ParameterError(f"overrides[{layer!r}] is {own!r}; it is a mapping from options to values")
    known = {field.name for field in fields(RasterOptions)}
    if unknown := sorted(set(own) - known):
        raise ParameterError(
            f"overrides[{layer!r}] has the unknown option {unknown[0]!r}; options are {', '.join(sorted(known))}"
        )
    return replace(options, **own)


def checked(
    options: RasterOptions, dtype: np.dtype[Any], bands: int, label: str, *, averaged: bool = True
) -> RasterOptions:
    """Return the options with ``predictor`` decided for pixels of `dtype`, or raise a ParameterError.

    `averaged` says whether overviews are means, because pixels are quantities and not codes; `label` is for messages.
    """
    if dtype.name not in _DTYPES:
        raise ParameterError(
            f"{label}: not every GeoTIFF reader supports {dtype.name}; cast to one of {', '.join(_DTYPES)}"
        )
    name = options.compress
    _check_choice(label, "compress", name, COMPRESSIONS)
    check_resampling(options, label)
    if not isinstance(options.bigtiff, bool | str) or options.bigtiff not in (True, False, "auto"):
        raise ParameterError(f"{label}: bigtiff is {options.bigtiff!r}; it is True, False or 'auto'")
    _check_integer(label, "blocksize", options.blocksize, 64, 8192)
    if options.blocksize % 16:
        raise ParameterError(f"{label}: blocksize is {options.blocksize}; it is a multiple of 16, such as 512")
    if options.level is not None:
        if name not in _LEVELS:
            raise ParameterError(f"{label}: compress={name!r} has no level" + ("; use jpeg_quality" * (name == "jpeg")))
        _check_integer(label, "level", options.level, *_LEVELS[name])
    _check_integer(label, "jpeg_quality", options.jpeg_quality, 1, 100)
    counts = {"jpeg": (1, 3), "webp": (3,)}.get(name, (bands,))
    if name in ("jpeg", "webp") and dtype != np.uint8:
        raise ParameterError(
            f"{label}: compress={name!r} takes uint8 pixels, these are {dtype.name}; use deflate or zstd, "
            "or write the preview layer 'rgba'"
        )
    if bands not in counts:
        wanted = " or ".join(map(str, counts))
        raise ParameterError(f"{label}: compress={name!r} takes {wanted} bands, there are {bands}; use deflate")
    return replace(options, predictor=_predictor(options, dtype, label, averaged=averaged))


def _predictor(options: RasterOptions, dtype: np.dtype[Any], label: str, *, averaged: bool) -> int:
    given, floats = options.predictor, dtype.kind == "f"
    if isinstance(given, str) and given == "auto":
        # Differences of neighbours suit pictures, but not classes and indices of scenes, which come in flat patches.
        return (3 if floats else 2 if averaged else 1) if options.compress in _WITH_PREDICTOR else 1
    if not isinstance(given, int) or isinstance(given, bool) or given not in (1, 2, 3):
        raise ParameterError(f"{label}: predictor is {given!r}; it is 'auto', 1 (none), 2 (integers) or 3 (floats)")
    if given != 1 and options.compress not in _WITH_PREDICTOR:
        raise ParameterError(f"{label}: compress={options.compress!r} has no predictor; leave it 'auto'")
    if given != 1 and (given == 3) != floats:
        raise ParameterError(
            f"{label}: predictor {given} is for {'floats' if given == 3 else 'integers'}, not {dtype.name}"
        )
    return int(given)


def _check_choice(label: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ParameterError(f"{label}: {name} is {value!r}; it is one of {', '.join(choices)}")


def _check_integer(label: str, name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ParameterError(f"{label}: {name} is {value!r}; it is a whole number from {low} to {high}")
