"""Meaning: one unit for the numbers of all scenes, decided by what products, catalogues and files say."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from s2composite.errors import ParameterError, SceneError
from s2composite.reading.convert import Conversion
from s2composite.reading.header import Header
from s2composite.reading.layout import Part
from s2composite.reading.source import ReadOptions, Source
from s2composite.scenes.grouping import level_of
from s2composite.scenes.model import Scene, Values
from s2composite.scenes.names import same_band
from s2composite.scenes.storage import display
from s2composite.scenes.values import is_mask_band

LOG = logging.getLogger(__name__)

__all__ = [
    "check_alike",
    "check_named_bands",
    "check_named_scenes",
    "conversion_of",
    "numbers_of",
    "saturated_of",
    "shift_of",
    "with_named_shifts",
]


def check_named_scenes(scenes: Sequence[Scene], options: ReadOptions) -> None:
    """Raise a ParameterError that lists the scenes there are, if ``harmonise`` names others."""
    if isinstance(options.harmonise, Mapping):
        known = dict.fromkeys(product.id for scene in scenes for product in scene.parts)
        _refuse("harmonise", "scene", [name for name in options.harmonise if name not in known], known)


def check_named_bands(scenes: Sequence[Scene], bands: Sequence[str], options: ReadOptions) -> None:
    """Raise a ParameterError that lists the bands there are, if ``resampling`` names others.

    Parameters
    ----------
    scenes
        Those that are opened: bands that they have and that are not read may be named, too.
    bands
        Names of the bands that are read.
    options
        How to read.
    """
    if not isinstance(options.resampling, Mapping):
        return
    products = [product for scene in scenes for product in scene.parts]
    assets = [asset for product in products for asset in product.assets]
    names = dict.fromkeys((*bands, *(name for a in assets for name in (a.name, *a.aliases, *a.bands))))
    sensors = {product.sensor for product in products}
    same = {same_band(name, sensor) for sensor in sensors for name in names}
    asked = [name for name in options.resampling if name != "*" and name not in names]
    wrong = [name for name in asked if not same & {same_band(name, sensor) for sensor in sensors}]
    _refuse("resampling", "band", wrong, dict.fromkeys(("*", *names)))


def _refuse(option: str, what: str, wrong: Sequence[str], known: Mapping[str, None]) -> None:
    if wrong:
        shown, asked = [str(name) for name in known], ", ".join(repr(str(name)) for name in wrong[:_SHOWN])
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        raise ParameterError(
            f"{option}= names {what}s that are not there: {asked}; there are {', '.join(shown[:_SHOWN])}{more}"
        )


_SHOWN = 20
"""Names that a message lists."""


def with_named_shifts(
    products: Sequence[Scene], parts: Sequence[tuple[Part, ...]], options: ReadOptions
) -> list[tuple[Part, ...]]:
    """Return parts of files with what the caller says is to be added to the numbers of their products, by id.

    It is added to reflectances, or to all numbers of unknown meaning where a product has no reflectances.
    """
    named = options.harmonise
    if not isinstance(named, Mapping):
        return list(parts)
    return [
        _with_shift(mine, float(named[product.id])) if product.id in named else mine
        for product, mine in zip(products, parts, strict=True)
    ]


def _with_shift(parts: Sequence[Part], shift: float) -> tuple[Part, ...]:
    reflects = any(values.unit == "1" for part in parts for values in part.values)

    def shifted(values: Values) -> Values:
        if values.unit != "1" and (reflects or values.classes or values.shift is not None):
            return values
        return replace(values, shift=shift, scale=values.scale or 1e-4, unit="1")

    return tuple(replace(part, values=tuple(map(shifted, part.values))) for part in parts)


def conversion_of(values: Values, dtype: np.dtype[Any], options: ReadOptions) -> Conversion:
    """Return what is done to the numbers of a band.

    Parameters
    ----------
    values
        What they mean.
    dtype
        Of the file.
    options
        How to read.
    """
    shift = 0.0 if options.harmonise is False or values.shift is None else values.shift
    if not options.reflectance or values.classes or values.scale is None:
        return Conversion(shift, classes=values.classes or options.classes)
    saturated = float(np.iinfo(dtype).max) if dtype.kind in "ui" else None
    return Conversion(shift, values.scale, values.offset, saturated)


def check_alike(
    products: Sequence[Scene],
    parts: Sequence[tuple[Part, ...]],
    headers: Mapping[str, Header],
    names: Sequence[str],
    options: ReadOptions,
) -> None:
    """Raise if numbers of different meaning would come together in a band, or physical values are not known.

    Raises
    ------
    SceneError
        Some products say which offset they have and others do not, their numbers have different units or levels, or
        reflectances are wanted and nothing says their scale.
    ParameterError
        Reflectances are wanted of numbers with an offset that is to be left in them.
    """
    _check_levels(products)
    if options.reflectance:
        _check_scaled(products, parts, headers, names)
    if options.harmonise is False:
        if options.reflectance:
            _check_no_offset_left(products, parts)
        return
    _check_offsets(products, parts, reflectance=options.reflectance)
    if not options.reflectance:
        _check_units(products, parts)


def _bands(products: Sequence[Scene], parts: Sequence[tuple[Part, ...]]) -> Iterator[tuple[Scene, Part, int, Values]]:
    """Yield each band of each product: where it goes, and what its numbers mean."""
    for product, mine in zip(products, parts, strict=True):
        for part in mine:
            for i, values in enumerate(part.values):
                yield product, part, part.row + i, values


def _check_scaled(
    products: Sequence[Scene],
    parts: Sequence[tuple[Part, ...]],
    headers: Mapping[str, Header],
    names: Sequence[str],
) -> None:
    for product, part, row, values in _bands(products, parts):
        header = headers[part.asset.href]
        if values.scale is None and not values.classes and not is_mask_band(names[row]) and header.dtype.kind != "f":
            raise SceneError(
                f"scene {product.id}: reflectance=True, but nothing says the scale of band {names[row]!r} in "
                f"{display(part.asset.href)}: neither its catalogue nor tags of the file (gdal_edit.py -scale), and by "
                "its name it is no band of a known sensor; leave reflectance=True out, or where the numbers are those "
                f"of Sentinel-2 say what to add with harmonise={{{product.id!r}: -1000}} (0: nothing)",
                scene=product.id,
                href=part.asset.href,
            )


def _check_no_offset_left(products: Sequence[Scene], parts: Sequence[tuple[Part, ...]]) -> None:
    """Raise if numbers have an offset that is known: with it left in they would be no reflectances."""
    shifts = {product.id: values.shift for product, _, _, values in _bands(products, parts) if values.shift}
    if shifts:
        scene, shift = next(iter(shifts.items()))
        raise ParameterError(
            f"reflectance=True with harmonise=False: the numbers of {len(shifts)} of {len(products)} scenes ({scene} "
            f"...) have the offset of processing baseline 04.00, {-shift:g}, and with it they are no reflectances; "
            "leave out harmonise=False, or to have the numbers as in the files, reflectance=True"
        )


def _check_offsets(products: Sequence[Scene], parts: Sequence[tuple[Part, ...]], *, reflectance: bool) -> None:
    """Raise if some products say which offset the reflectances of a band have, and others do not."""
    known: set[int] = set()
    unknown: dict[int, list[str]] = {}
    for product, _, row, values in _bands(products, parts):
        if values.shift is None and values.scale is not None:
            unknown.setdefault(row, []).append(product.id)
        elif values.shift is not None and values.scale is not None:
            known.add(row)
    mixed = list(dict.fromkeys(product for row in known for product in unknown.get(row, ())))
    if mixed:
        shown = ", ".join(mixed[:3]) + (f" and {len(mixed) - 3} more" if len(mixed) > 3 else "")
        raise SceneError(
            f"{len(mixed)} of {len(products)} scenes do not say whether their numbers have the offset of processing "
            f"baseline 04.00, and others do: {shown}; say what to add with harmonise={{{mixed[0]!r}: -1000}} (0: "
            "nothing), leave them out, or take all numbers as they are with harmonise=False",
            scene=mixed[0],
        )
    doubtful = list(dict.fromkeys(product for row in unknown.values() for product in row))
    if doubtful and reflectance:
        LOG.warning(
            "reflectance=True: nothing says whether the numbers of %d scenes have the offset of processing baseline "
            "04.00 (%s ...); nothing is taken off, harmonise={%r: -1000} does",
            len(doubtful), doubtful[0], doubtful[0],
        )  # fmt: skip


def _check_levels(products: Sequence[Scene]) -> None:
    """Raise if some products are of the top of the atmosphere and others of the surface: the same names and units."""
    levels = {level: product for product in reversed(products) if (level := level_of(product)) is not None}
    if len(levels) > 1:
        (_, one), (_, other) = sorted(levels.items())
        raise SceneError(
            f"scene {one.id} ({one.collection}) is of level 1, scene {other.id} ({other.collection}) of level 2: what "
            "the satellite saw and what the surface reflects do not mix; open one collection at a time",
            scene=one.id,
        )


def _check_units(products: Sequence[Scene], parts: Sequence[tuple[Part, ...]]) -> None:
    """Raise if the same band has other units in some products, as in collections of several satellites."""
    first: dict[int, tuple[str, float | None, float]] = {}
    for product, part, row, values in _bands(products, parts):
        unit = (values.scale, values.offset)
        known = first.setdefault(row, (product.id, *unit))
        if unit != known[1:] and None not in (unit[0], known[1]):
            raise SceneError(
                f"scene {product.id} ({product.collection}) has numbers of {unit[0]} with offset {unit[1]} in "
                f"{part.asset.name}, scene {known[0]} of {known[1]} with offset {known[2]}; open them with "
                "reflectance=True, or one collection at a time",
                scene=product.id,
            )


def shift_of(files: Sequence[Source]) -> float:
    """Return what is added to the numbers of a scene: NaN where that is not known, or not the same in all files."""
    known = {s.conversion.shift for s in files if any(values.scale is not None for values in s.part.values)}
    unknown = any(values.shift is None for source in files for values in source.part.values)
    if unknown or len(known) > 1:
        return float("nan")
    return known.pop() if known else 0.0


def numbers_of(sources: Sequence[Sequence[Source]], bands: int) -> tuple[Values | None, ...]:
    """Return what the numbers of each band of a stack mean, after they were converted; None if that is not known.

    Nor is it where scenes differ: then it would not be true of a composite.
    """
    found: list[set[Values | None]] = [set() for _ in range(bands)]
    for source in (source for files in sources for source in files):
        for row, values in enumerate(source.part.values, source.part.row):
            found[row].add(_converted(values, source.conversion))
    return tuple(meanings.pop() if len(meanings) == 1 else None for meanings in found)


def _converted(values: Values, how: Conversion) -> Values | None:
    if values.classes or values.scale is None or (values.shift is None and how.scale == 1.0):
        return None
    if (how.scale, how.offset) == (values.scale, values.offset):
        return Values(0.0, 1.0, 0.0, unit=values.unit)
    assert values.shift is not None
    left = (values.shift - how.shift) * values.scale
    return Values(0.0, values.scale, values.offset + left, unit=values.unit)


def saturated_of(sources: Sequence[Sequence[Source]]) -> tuple[float, ...]:
    """Return the physical values, as float32, of what is saturated in the files of a stack."""
    conversions = {source.conversion for files in sources for source in files}
    return tuple(sorted({how.saturated_value for how in conversions if how.saturated is not None}))
