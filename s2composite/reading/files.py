"""Files: which files give the bands of which scene, and how each is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from odc.geo.geobox import GeoBox

from s2composite.errors import BandError
from s2composite.reading.header import Header
from s2composite.reading.layout import Part, check_bands, parts_of, wanted_assets
from s2composite.reading.meaning import conversion_of
from s2composite.reading.source import ReadOptions, Source, choose_source
from s2composite.scenes.model import Asset, Scene

__all__ = ["assets_of", "layout_of", "sources_of"]


def assets_of(products: Sequence[Scene], bands: Sequence[str] | None, options: ReadOptions) -> list[tuple[Asset, ...]]:
    """Return the assets of each product; none for one that lacks a band and is skipped."""
    if bands is None or options.on_error == "raise":
        every = list(wanted_assets(products, bands))
        for product, assets in zip(products, every, strict=True):
            if bands is not None and not assets:
                check_bands(product, product.assets, bands)
        return every
    found: list[tuple[Asset, ...]] = []
    for product in products:
        declared = all(asset.bands for asset in product.assets)
        assets = wanted_assets([product], bands)[0]
        try:
            if declared:
                check_bands(product, assets, bands)
        except BandError:
            assets = ()
        found.append(assets)
    if not any(found):
        check_bands(products[0], products[0].assets, bands)
    return found


def sources_of(
    scenes: Sequence[Scene],
    parts: Sequence[tuple[Part, ...]],
    shifts: Sequence[Mapping[str, float]],
    names: tuple[str, ...],
    headers: Mapping[str, Header],
    geobox: GeoBox,
    options: ReadOptions,
) -> tuple[tuple[Source, ...], ...]:
    """Return the files of each scene; none where one of its products cannot be used."""
    found: list[tuple[Source, ...]] = []
    products = iter(zip(parts, shifts, strict=True))
    for scene in scenes:
        files: list[Source] = []
        complete = True
        for member, _ in enumerate(scene.parts):
            mine, shift = next(products)
            complete = complete and bool(mine)
            for part in mine:
                values = part.asset.values
                files += [
                    choose_source(
                        headers[part.asset.href],
                        one,
                        geobox,
                        options,
                        resampling=method,
                        conversion=conversion_of(values, shift.get(part.asset.href, 0.0), options),
                        member=member,
                    )
                    for one, method in _by_method(part, names, options)
                ]
        found.append(tuple(files) if complete else ())
    return tuple(found)


def _by_method(part: Part, names: tuple[str, ...], options: ReadOptions) -> list[tuple[Part, str]]:
    """Split a part where its bands are resampled in different ways."""
    classes = part.asset.values.classes
    rows = range(part.row, part.row + len(part.file_bands))
    methods = [options.method(names[row], classes=classes) for row in rows]
    split: list[tuple[Part, str]] = []
    for row, band, method in zip(rows, part.file_bands, methods, strict=True):
        if split and split[-1][1] == method:
            last = split[-1][0]
            split[-1] = (replace(last, file_bands=(*last.file_bands, band)), method)
        else:
            split.append((Part(part.asset, (band,), row), method))
    return split


def layout_of(
    scenes: Sequence[Scene],
    wanted: Sequence[Sequence[Asset]],
    headers: Mapping[str, Header],
    bands: Sequence[str] | None,
    usable: Sequence[bool],
) -> tuple[tuple[str, ...], tuple[tuple[Part, ...], ...]]:
    """Return the names of the bands, and the parts of files that give them, of each product; none where not usable."""
    names: tuple[str, ...] | None = None
    parts: list[tuple[Part, ...]] = []
    for scene, assets, ok in zip(scenes, wanted, usable, strict=True):
        if not ok:
            parts.append(())
            continue
        found, files = parts_of(scene, assets, headers, bands)
        names = names or found
        if found != names:
            raise BandError(
                f"scene {scene.id} has bands {', '.join(found)}, the scenes before it {', '.join(names)}; "
                "leave it out, or choose bands= that all have",
                scene=scene.id,
            )
        parts.append(files)
    assert names is not None
    return names, tuple(parts)
