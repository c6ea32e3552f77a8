"""Files: which files give the bands of which scene, and how each is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from odc.geo.geobox import GeoBox

from s2composite.errors import BandError
from s2composite.reading.convert import Conversion
from s2composite.reading.header import Header
from s2composite.reading.layout import BandName, Part, alpha_of, band_names, check_bands, parts_of, wanted_assets
from s2composite.reading.meaning import conversion_of
from s2composite.reading.source import ReadOptions, Source, choose_source, nodata_of_file
from s2composite.scenes.model import Asset, Scene
from s2composite.scenes.names import same_band

LOG = logging.getLogger(__name__)

__all__ = ["assets_of", "layout_of", "sources_of"]


def assets_of(
    products: Sequence[Scene], bands: Sequence[BandName] | None, options: ReadOptions
) -> list[tuple[Asset, ...]]:
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
    names: tuple[str, ...],
    headers: Mapping[str, Header],
    geobox: GeoBox,
    options: ReadOptions,
) -> tuple[tuple[Source, ...], ...]:
    """Return the files of each scene; none where one of its products cannot be used."""
    found: list[tuple[Source, ...]] = []
    products = iter(parts)
    for scene in scenes:
        files: list[Source] = []
        complete = True
        for member, _ in enumerate(scene.parts):
            mine = next(products)
            complete = complete and bool(mine)
            for part in mine:
                sensor = scene.parts[member].sensor
                header = headers[part.asset.href]
                files += [
                    choose_source(header, one, geobox, options, resampling=method, conversion=conversion, member=member)
                    for one, method, conversion in _split(part, header, names, sensor, options)
                ]
        found.append(tuple(files) if complete else ())
    return tuple(found)


def _split(
    part: Part, header: Header, names: tuple[str, ...], sensor: str | None, options: ReadOptions
) -> list[tuple[Part, str, Conversion]]:
    """Split a part where its bands are resampled or converted in different ways, or have another nodata value."""
    split: list[tuple[Part, str, Conversion]] = []
    rows = range(part.row, part.row + len(part.file_bands))
    for row, band, values in zip(rows, part.file_bands, part.values, strict=True):
        method = options.method(names[row], sensor, classes=values.classes)
        how = (method, conversion_of(values, header.dtype, options))
        one = Part(part.asset, (band,), row, (values,))
        last = split[-1][0] if split and split[-1][1:] == how else None
        if last is not None and repr(nodata_of_file(header, last)) == repr(nodata_of_file(header, one)):  # NaN, too
            longer = replace(last, file_bands=(*last.file_bands, band), values=(*last.values, values))
            split[-1] = (longer, *how)
        else:
            split.append((one, *how))
    return split


def layout_of(
    scenes: Sequence[Scene],
    wanted: Sequence[Sequence[Asset]],
    headers: Mapping[str, Header],
    bands: Sequence[BandName] | None,
    usable: Sequence[bool],
    options: ReadOptions,
) -> tuple[tuple[str, ...], tuple[tuple[Part, ...], ...]]:
    """Return the names of the bands, and the parts of files that give them, of each product; none where not usable.

    Raises
    ------
    BandError
        A product lacks a band, or all do if such products are skipped; or products have other bands than the first.
    """
    first: tuple[tuple[str, ...], str | None] | None = None
    parts: list[tuple[Part, ...]] = []
    lacking: list[BandError] = []
    for scene, assets, ok in zip(scenes, wanted, usable, strict=True):
        try:
            found, files = parts_of(scene, assets, headers, bands) if ok else ((), ())
        except BandError as error:
            if options.on_error == "raise" or bands is None:
                raise
            lacking.append(error)
            found, files = (), ()
        if files:
            if first is None and bands is None:
                _report_masks(assets, headers, found)
            first = first or (found, scene.sensor)
            _check_same(scene, found, *first)
        parts.append(files)
    if first is None:
        raise lacking[0]
    return first[0], tuple(parts)


def _report_masks(assets: Sequence[Asset], headers: Mapping[str, Header], found: tuple[str, ...]) -> None:
    """Say which bands of the files are left out where no bands were asked for."""
    there = [(asset, *entry) for asset in assets for entry in enumerate(band_names(asset, headers[asset.href]))]
    left = [name for asset, i, name in there if name not in found and i != alpha_of(asset, headers[asset.href])]
    if left:
        LOG.warning(
            "mask bands are no observations and left out: %s; rules such as SCL() find them, bands= asks for them",
            ", ".join(left),
        )


def _check_same(scene: Scene, found: tuple[str, ...], names: tuple[str, ...], sensor: str | None) -> None:
    """Raise if a scene has other bands than the scenes before it, or means others by their names."""
    if found != names:
        raise BandError(
            f"scene {scene.id} has bands {', '.join(found)}, the scenes before it {', '.join(names)}; "
            "leave it out, or choose bands= that all have",
            scene=scene.id,
        )
    for name in names if scene.sensor != sensor else ():
        mine, theirs = same_band(name, scene.sensor)[1:], same_band(name, sensor)[1:]
        if mine and theirs and not set(mine) & set(theirs):
            raise BandError(
                f"band {name} of scene {scene.id} ({scene.sensor}) is {mine[0]}, that of the scenes before it "
                f"({sensor}) {theirs[0]}; choose bands= by common names, such as {mine[0]!r}, or open one sensor",
                scene=scene.id,
                band=name,
            )
