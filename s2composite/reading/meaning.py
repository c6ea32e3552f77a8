"""Meaning: one unit for the numbers of all scenes, decided by what products and catalogues say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from s2composite.errors import SceneError
from s2composite.reading.convert import AS_THEY_ARE, Conversion
from s2composite.reading.layout import Part
from s2composite.reading.source import ReadOptions, Source
from s2composite.scenes.grouping import level_of
from s2composite.scenes.model import Scene, Values

__all__ = ["conversion_of", "shift_of", "shifts_of", "with_named_shifts"]


def with_named_shifts(scenes: Sequence[Scene], options: ReadOptions) -> list[Scene]:
    """Return scenes that know what the caller says is to be added to their numbers, where they did not know it."""
    if not isinstance(options.harmonise, Mapping):
        return list(scenes)
    return [_with_shift(scene, options.harmonise) for scene in scenes]


def _with_shift(scene: Scene, named: Mapping[str, float]) -> Scene:
    members = tuple(_with_shift(member, named) for member in scene.members)
    if scene.id not in named:
        return replace(scene, members=members)
    shift = float(named[scene.id])
    assets = tuple(
        replace(a, values=replace(a.values, shift=shift, scale=a.values.scale or 1e-4)) if a.values.shift is None else a
        for a in scene.assets
    )
    return replace(scene, members=members, assets=assets)


def conversion_of(values: Values, shift: float, options: ReadOptions) -> Conversion:
    """Return what is done to the numbers of a file, given what is added to harmonise them."""
    if not options.reflectance:
        return Conversion(shift) if shift else AS_THEY_ARE
    if values.classes or values.scale is None:
        return Conversion(shift)
    return Conversion(shift, values.scale, values.offset)


def shifts_of(
    products: Sequence[Scene], parts: Sequence[tuple[Part, ...]], options: ReadOptions
) -> list[Mapping[str, float]]:
    """Return what is added to the numbers of each product's files, by href.

    Raises
    ------
    SceneError
        Some products say which offset they have and others do not, or their numbers have different units or levels.
    """
    _check_levels(products)
    if options.harmonise is False:
        return [{} for _ in products]
    found: list[Mapping[str, float]] = []
    unknown: list[str] = []
    known = False
    for product, mine in zip(products, parts, strict=True):
        shifts: dict[str, float] = {}
        for part in mine:
            values = part.asset.values
            if values.shift is None:
                unknown.append(product.id)
            else:
                # pictures and classes have no offset, so they do not make a cube one of mixed offsets
                known = known or values.scale is not None
                shifts[part.asset.href] = values.shift
        found.append(shifts)
    if unknown and known:
        raise SceneError(_unknown_offset(list(dict.fromkeys(unknown)), len(products)), scene=unknown[0])
    if not options.reflectance:
        _check_units(products, parts)
    return found


def _unknown_offset(unknown: Sequence[str], total: int) -> str:
    shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
    return (
        f"{len(unknown)} of {total} scenes do not say whether their numbers have the offset of processing baseline "
        f"04.00, and others do: {shown}; say what to add with harmonise={{{unknown[0]!r}: -1000}} (0: nothing), leave "
        "them out, or take all numbers as they are with harmonise=False"
    )


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
    for product, mine in zip(products, parts, strict=True):
        for part in mine:
            values = part.asset.values
            unit = (values.scale, values.offset)
            known = first.setdefault(part.row, (product.id, *unit))
            if unit != known[1:] and None not in (unit[0], known[1]):
                raise SceneError(
                    f"scene {product.id} ({product.collection}) has numbers of {unit[0]} with offset {unit[1]} in "
                    f"{part.asset.name}, scene {known[0]} of {known[1]} with offset {known[2]}; open them with "
                    "reflectance=True, or one collection at a time",
                    scene=product.id,
                )


def shift_of(files: Sequence[Source]) -> float:
    """Return what is added to the numbers of a scene: NaN where that is not known, or not the same in all files."""
    known = {source.conversion.shift for source in files if source.part.asset.values.scale is not None}
    unknown = any(source.part.asset.values.shift is None and not source.conversion.shift for source in files)
    if unknown or len(known) > 1:
        return float("nan")
    return known.pop() if known else 0.0
