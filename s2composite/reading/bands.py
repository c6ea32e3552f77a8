"""Choose the file and file band for each band of the stack, and convert file values to stack values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import BandError, ParameterError, SceneError, listed
from s2composite.geotiff.header import Header, nodata_in
from s2composite.scenes.model import Asset, Scene, Values
from s2composite.scenes.products import is_mask_band, is_picture, named_values, same_band, tagged_values

__all__ = [
    "AS_THEY_ARE",
    "BandName",
    "BandSource",
    "Conversion",
    "alpha_of",
    "assets_of",
    "chosen_bands",
    "convert",
    "declares",
    "layout_of",
    "wanted_assets",
]

LOG = logging.getLogger(__name__)

# the name of a band or a whole asset, or the number of a band in a scene's only file, counted from 1 as in GDAL
BandName: TypeAlias = str | int


@dataclass(frozen=True, slots=True)
class BandSource:
    """The bands of a stack that one file provides."""

    asset: Asset  # the file
    file_bands: tuple[int, ...]  # its bands to read, counted from 0
    row: int  # position of the first on the stack's band axis; the others follow it
    values: tuple[Values, ...]  # scale, offset and unit of each


def chosen_bands(bands: Any) -> tuple[BandName, ...] | None:
    """Return the requested bands, given as one name or number or a collection of these; None for None."""
    if bands is None:
        return None
    several = isinstance(bands, Iterable) and not isinstance(bands, (str, bytes))
    chosen = tuple(one.item() if isinstance(one, np.generic) else one for one in (bands if several else (bands,)))
    for band in chosen:
        number = isinstance(band, int) and not isinstance(band, bool) and band > 0
        if not (number or (isinstance(band, str) and band.strip())):
            raise ParameterError(
                f"bands contains {band!r}; it takes names such as 'red', 'B04' or 'TCI', and numbers of bands from 1"
            )
    if not chosen or len(set(chosen)) < len(chosen):
        raise ParameterError(f"bands is {list(chosen)!r}; name at least one, and each once")
    return chosen


def wanted_assets(scenes: Sequence[Scene], bands: Sequence[BandName] | None) -> tuple[tuple[Asset, ...], ...]:
    """Return, for each scene, the assets whose headers are needed for `bands`.

    Without `bands` this is the only asset of a scene, or its true-colour picture; this choice is logged if there are
    other observations.
    """
    if bands is not None:
        return tuple(_assets_for(scene, bands) for scene in scenes)
    pictured = all(any(is_picture(asset.name) for asset in scene.assets) for scene in scenes)
    chosen: list[tuple[Asset, ...]] = []
    for scene in scenes:
        if len(scene.assets) == 1:
            chosen.append(scene.assets)
        elif pictured:
            chosen.append((next(asset for asset in scene.assets if is_picture(asset.name)),))
        else:
            names = sorted({asset.name for other in scenes for asset in other.assets})
            raise BandError(
                f"the scenes have several assets ({', '.join(names)}) and no bands are chosen; "
                f"choose with bands=, for example bands=[{names[0]!r}]",
                scene=scene.id,
            )
    names = sorted({asset.name for scene in scenes for asset in scene.assets if not is_picture(asset.name)})
    others = [name for name in names if not is_mask_band(name)]
    if pictured and others:
        # the user may have meant the reflectances
        picture = chosen[0][0].name
        LOG.warning(
            "bands= is not given, so the 8-bit picture %s is opened, not %s; choose with bands=, for example "
            "bands=[%r], or bands=[%r] for the picture without this message",
            picture, listed(others, _SHOWN), others[0], picture,
        )  # fmt: skip
    return tuple(chosen)


_SHOWN = 12  # maximum names listed in a message


def _assets_for(scene: Scene, bands: Sequence[BandName]) -> tuple[Asset, ...]:
    found = [_find(band, _declared(scene.assets), scene) for band in bands]
    named = {asset.name for entries in found for asset, _, _ in entries}
    if not all(found):
        # A file whose name does not give its bands may give them in its header.
        named |= {asset.name for asset in scene.assets if not asset.bands}
    return tuple(asset for asset in scene.assets if asset.name in named)


def assets_of(products: Sequence[Scene], bands: Sequence[BandName] | None, *, skip: bool) -> list[tuple[Asset, ...]]:
    """Return the assets of each product; with `skip` none for a product that lacks a band."""
    every = list(wanted_assets(products, bands))
    if bands is None:
        return every
    if skip:
        # files whose names do not tell of their bands may have them
        for i, (product, assets) in enumerate(zip(products, tuple(every), strict=True)):
            lacking = not all(_find(band, _declared(assets), product) for band in bands)
            if lacking and all(asset.bands for asset in product.assets):
                every[i] = ()
    for product, assets in zip(products, every, strict=True):
        if not assets and not (skip and any(every)):
            for band in bands:
                _must_find(band, _declared(product.assets), product)
    return every


def declares(scene: Scene, bands: Sequence[BandName]) -> bool:
    """Return whether the names of a scene's assets, without their headers, tell of all of `bands`."""
    return all(_find(band, _declared(scene.assets), scene) for band in bands)


def _declared(assets: Sequence[Asset]) -> list[_Entry]:
    return [(asset, i, name) for asset in assets for i, name in enumerate(asset.bands or (asset.name,))]


def band_names(asset: Asset, header: Header) -> tuple[str, ...]:
    """Return the names of a file's bands: as declared, from its descriptions, or from its photometric tag."""
    alpha = alpha_of(asset, header)
    data = [band for band in range(header.bands) if band != alpha]
    declared = asset.bands or asset.band_values
    if declared and len(declared) not in (header.bands, len(data)):
        listed = f": {', '.join(asset.bands)}" if asset.bands else ""
        raise SceneError(
            f"{asset.href} has {header.bands} band(s), but {asset.name} should have {len(declared)}{listed}; remove "
            "the file, or name its bands with Asset(bands=...)",
            href=asset.href,
        )
    names = asset.bands
    if not names:
        described = tuple(name for band in data if (name := header.descriptions[band]))
        if len(set(described)) == len(data):
            names = described
        elif len(data) == 1:
            names = (asset.name,)
        elif header.photometric in ("RGB", "YCBCR") and len(data) in (3, 4):
            names = ("red", "green", "blue", "alpha")[: len(data)]
        else:
            names = tuple(f"band_{band + 1}" for band in data)
    return names if len(names) == header.bands else (*names[:alpha], "alpha", *names[alpha:])


def alpha_of(asset: Asset, header: Header) -> int | None:
    """Return the alpha band, unless it was given the name of another band; None if there is none."""
    if header.alpha is not None and len(asset.bands) == header.bands and asset.bands[header.alpha] != "alpha":
        return None
    return header.alpha


def layout_of(
    scenes: Sequence[Scene],
    wanted: Sequence[Sequence[Asset]],
    headers: Mapping[str, Header],
    bands: Sequence[BandName] | None,
    usable: Sequence[bool],
    *,
    skip: bool,
) -> tuple[tuple[str, ...], tuple[tuple[BandSource, ...], ...]]:
    """Return the names of the bands, and the parts of files for each product; none if it is not usable."""
    first: tuple[tuple[str, ...], str | None] | None = None
    parts: list[tuple[BandSource, ...]] = []
    lacking: list[BandError] = []
    for scene, assets, ok in zip(scenes, wanted, usable, strict=True):
        try:
            mine, files, left = _parts_of(scene, assets, headers, bands) if ok else ((), (), ())
        except BandError as error:
            if not skip or bands is None:
                raise
            lacking.append(error)
            mine, files, left = (), (), ()
        if files:
            if first is None and left:
                LOG.warning(
                    "mask bands are not observations and are left out: %s; rules such as SCL() find them, "
                    "bands= requests them",
                    ", ".join(left),
                )
            first = first or (mine, scene.sensor)
            _check_same(scene, mine, *first)
        parts.append(files)
    if first is None:
        raise lacking[0]
    return first[0], tuple(parts)


def _check_same(scene: Scene, found: tuple[str, ...], names: tuple[str, ...], sensor: str | None) -> None:
    """Raise if a scene's bands, or the meaning of their names, differ from the scenes before it."""
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


def _parts_of(
    scene: Scene, assets: Sequence[Asset], headers: Mapping[str, Header], bands: Sequence[BandName] | None
) -> tuple[tuple[str, ...], tuple[BandSource, ...], tuple[str, ...]]:
    """Return the names of the bands that a scene provides, the parts of files that do, and mask bands left out."""
    entries = [(asset, i, name) for asset in assets for i, name in enumerate(band_names(asset, headers[asset.href]))]
    data = [entry for entry in entries if entry[1] != alpha_of(entry[0], headers[entry[0].href])]
    values_of = {(asset.href, i): _values(asset, i, name, headers[asset.href], scene) for asset, i, name in entries}
    if bands:
        # an alpha band is not data unless requested
        chosen = [e for one in bands for e in _find(one, data, scene) or _must_find(one, entries, scene)]
    else:
        # mask bands among bands of observations are not reflectances
        chosen = [entry for entry in data if not is_mask_band(entry[2])] or data
    parts: list[BandSource] = []
    for row, (asset, i, _) in enumerate(chosen):
        values = values_of[asset.href, i]
        if parts and parts[-1].asset is asset:
            last = parts[-1]
            parts[-1] = replace(last, file_bands=(*last.file_bands, i), values=(*last.values, values))
        else:
            parts.append(BandSource(asset, (i,), row, (values,)))
    names = tuple(name for _, _, name in chosen)
    if bands and len(set(names)) < len(names):
        raise BandError(f"bands is {list(bands)}, which means {', '.join(names)}: name each band once", scene=scene.id)
    left = () if bands else tuple(name for _, _, name in data if name not in names)
    return names, tuple(parts), left


def _values(asset: Asset, i: int, name: str, header: Header, scene: Scene) -> Values:
    """Return scale, offset and unit of a band: from the catalogue, else the file's tags, else its name."""
    values, alpha = asset.values, alpha_of(asset, header)
    if 0 < len(asset.band_values) < header.bands:
        data = [band for band in range(header.bands) if band != alpha]
        values = Values() if i == alpha else asset.band_values[data.index(i)]
    elif asset.band_values:
        values = asset.band_values[i]
    described = not asset.bands and name == header.descriptions[i]
    if described and (is_mask_band(name) or (values.assumed and header.dtype.itemsize > 1)):
        # the file itself names its bands
        named = named_values(name, scene.baseline, scene.sensor, scene.id)
        values = replace(named, nodata=values.nodata, shift=named.shift if values.shift is None else values.shift)
    if values.nodata is not None:
        values = replace(values, nodata=nodata_in(values.nodata, header.dtype))
    tags = header.scaling[i] if header.scaling else None
    return values if tags is None else tagged_values(values, tags.scale, tags.offset, tags.unit, sensor=scene.sensor)


_Entry: TypeAlias = tuple[Asset, int, str]  # an asset, the position of one of its bands, and that band's name


def _must_find(wanted: BandName, entries: Sequence[_Entry], scene: Scene) -> list[_Entry]:
    found = _find(wanted, entries, scene)
    if not found:
        names = dict.fromkeys(name for asset in scene.assets for name in (*asset.bands, asset.name))
        names |= dict.fromkeys(name for _, _, name in entries)
        cure = "where other scenes have it, on_error='skip' leaves this one out"
        if isinstance(wanted, int):
            cure = "numbers count the bands of a scene's only file, from 1; use names if there are several files"
        raise BandError(
            f"scene {scene.id} has no band {wanted!r}; it has {', '.join(names)}; {cure}",
            scene=scene.id,
            band=wanted,
        )
    return found


def _find(wanted: BandName, entries: Sequence[_Entry], scene: Scene) -> list[_Entry]:
    """Return the band, or all bands of the asset, named by `wanted`; the first lookup that matches is used.

    Bands of a picture come last: its 8-bit red is not meant by "red" if there is another red.
    """
    if isinstance(wanted, int):
        alone = len({asset.name for asset, _, _ in entries}) == 1
        return [entries[wanted - 1]] if wanted <= len(entries) and alone else []
    sensor = scene.sensor
    same = same_band(wanted, sensor)
    single = {asset.name for asset, _, _ in entries} - {asset.name for asset, i, _ in entries if i}
    ways: tuple[Callable[[Asset, str], bool], ...] = (
        lambda asset, _: asset.name == wanted,
        lambda asset, name: name == wanted and not is_picture(asset.name),
        lambda asset, _: asset.name in single and (wanted in asset.aliases or same_band(asset.name, sensor) == same),
        lambda asset, name: same_band(name, sensor) == same and not is_picture(asset.name),
        lambda asset, _: same_band(asset.name, sensor) == same,
        lambda _, name: name == wanted,
    )
    found: list[_Entry] = []
    for fits in ways:
        found = found or [(asset, i, name) for asset, i, name in entries if fits(asset, name)]
    if len({asset.name for asset, _, _ in found}) > 1:
        # the first of several assets that hold the same band, in the scenes' order of preference
        codes = dict.fromkeys(same_band(asset.name, sensor)[0] for asset, _, _ in found if asset.bands)
        if len(codes) > 1:
            names = ", ".join(dict.fromkeys(asset.name for asset, _, _ in found))
            raise BandError(
                f"scene {scene.id}: {wanted!r} may mean {names}; name one",
                scene=scene.id,
                band=wanted,
            )
        found = [entry for entry in found if entry[0] is found[0][0]]
    if len(found) > 1:
        return found
    # a band is named as requested, so that catalogues with different names give the same name
    return [(asset, i, wanted if asset.bands or name == asset.name else name) for asset, i, name in found]


@dataclass(frozen=True, slots=True)
class Conversion:
    """Conversion of a file's values: ``(number + shift) * scale + offset``."""

    # added to values that are not nodata; results stay within the type and different from nodata
    shift: float = 0.0
    scale: float = 1.0  # only for floating-point stacks
    offset: float = 0.0  # only for floating-point stacks
    # the file's value of saturated pixels, the largest of its type, for floating-point stacks
    saturated: float | None = None
    classes: bool = False  # whether the values are classes or flags, which must not change

    @property
    def changes(self) -> bool:
        """Whether any value changes."""
        return (self.shift, self.scale, self.offset) != (0.0, 1.0, 0.0)

    @property
    def saturated_value(self) -> float:
        """The converted value of saturated pixels: they are not shifted, so it is the same in all scenes."""
        assert self.saturated is not None
        return float(np.float32(self.saturated * self.scale + self.offset))


AS_THEY_ARE = Conversion()


def convert(
    numbers: NDArray[Any],
    how: Conversion,
    nodata: float | None,
    fill: float,
    valid: NDArray[np.bool_] | None = None,
) -> None:
    """Convert values in place, and set pixels that are not valid in the file to the stack's fill value.

    A valid value that the shift would move to nodata or below becomes the smallest valid value: dark water stays valid.
    A saturated value, the largest of the file's type, is not shifted, so that rules still recognise it; no other value
    becomes saturated. A valid value equal to the stack's nodata value, in a file that declares validity in another way,
    is changed to the adjacent value, as GDAL's warper does; classes are not changed.

    >>> numbers = np.array([0, 400, 1000, 1001, 9000], np.uint16)
    >>> convert(numbers, Conversion(shift=-1000.0), 0, 0)
    >>> numbers
    array([   0,    1,    1,    1, 8000], dtype=uint16)
    >>> numbers = np.array([7, 0, 9], np.uint8)
    >>> convert(numbers, AS_THEY_ARE, None, 0, np.array([False, True, True]))
    >>> numbers
    array([0, 1, 9], dtype=uint8)
    """
    same = nodata is not None and (nodata == fill or (np.isnan(nodata) and np.isnan(fill)))
    if valid is None and not how.changes and (nodata is None or same):
        return
    missing = 0.0 if nodata is None and valid is None else nodata
    observed = np.ones(numbers.shape, bool) if valid is None else np.broadcast_to(valid, numbers.shape)
    if missing is not None:
        observed = observed & (~np.isnan(numbers) if np.isnan(missing) else numbers != missing)
    dtype = numbers.dtype
    if dtype.kind == "f":
        saturated = None if how.saturated is None else numbers == how.saturated
        numbers += how.shift
        if (how.scale, how.offset) != (1.0, 0.0):
            numbers *= how.scale
            numbers += how.offset
        if saturated is not None:
            numbers[saturated] = how.saturated_value
    elif how.shift:
        shift, limits = int(how.shift), np.iinfo(dtype)
        lowest = limits.min + ((fill if missing is None else missing) == limits.min)
        highest = limits.max - 1
        shifted = observed & (numbers != limits.max)
        if shift < 0:
            np.maximum(numbers, dtype.type(min(lowest - shift, highest)), out=numbers, where=shifted)
            np.subtract(numbers, dtype.type(-shift), out=numbers, where=shifted)
        else:
            np.minimum(numbers, dtype.type(max(highest - shift, lowest)), out=numbers, where=shifted)
            np.add(numbers, dtype.type(shift), out=numbers, where=shifted)
    if (nodata is not None or valid is not None) and not how.classes:
        # a valid value equal to `fill` becomes the next lower value, or the next higher if it is the lowest
        if dtype.kind == "f":
            nearest = np.nextafter(dtype.type(fill), dtype.type(-np.inf))
        else:
            nearest = dtype.type(fill + 1 if fill == np.iinfo(dtype).min else fill - 1)
        numbers[observed & (numbers == fill)] = nearest
    numbers[~observed] = fill
