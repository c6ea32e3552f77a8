"""Layout: which file and which band of it serves each band of the stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from s2composite.errors import BandError, SceneError
from s2composite.reading.header import Header
from s2composite.scenes.model import Asset, Scene

__all__ = ["Part", "band_names", "parts_of", "wanted_assets"]

_PICTURES = ("TCI", "visual")


@dataclass(frozen=True, slots=True)
class Part:
    """What one file gives to the bands of a stack."""

    asset: Asset
    """The file."""

    file_bands: tuple[int, ...]
    """Its bands that are read, counted from 0."""

    row: int
    """Where the first of them goes on the stack's band axis; the others follow it."""


def wanted_assets(scenes: Sequence[Scene], bands: Sequence[str] | None) -> tuple[tuple[Asset, ...], ...]:
    """Return, for each scene, the assets whose headers have to be read to serve `bands`.

    Without `bands` that is the only asset of a scene, or its true-colour picture.

    Raises
    ------
    BandError
        The scenes have several assets and nothing says which is meant.
    """
    if bands is None:
        return tuple((_default_asset(scene, scenes),) for scene in scenes)
    return tuple(_assets_for(scene, bands) for scene in scenes)


def _default_asset(scene: Scene, scenes: Sequence[Scene]) -> Asset:
    if len(scene.assets) == 1:
        return scene.assets[0]
    for picture in _PICTURES:
        if all(any(a.name == picture for a in other.assets) for other in scenes):
            return scene.asset(picture)
    names = sorted({asset.name for other in scenes for asset in other.assets})
    raise BandError(
        f"the scenes have several assets ({', '.join(names)}) and no bands are chosen; "
        f"choose with bands=, for example bands=[{names[0]!r}]",
        scene=scene.id,
    )


def _assets_for(scene: Scene, bands: Sequence[str]) -> tuple[Asset, ...]:
    named = [a for a in scene.assets if a.name in bands or set(a.bands) & set(bands)]
    known = {a.name for a in named}.union(*(a.bands for a in named))
    if all(band in known for band in bands):
        return tuple(named)
    # A file that does not say its bands by its name may still say them in its header.
    return tuple(a for a in scene.assets if a in named or not a.bands)


def band_names(asset: Asset, header: Header) -> tuple[str, ...]:
    """Return the names of a file's bands: as declared, as the file describes them, or as its photometry implies.

    Raises
    ------
    SceneError
        The asset is known to have other bands than the file has.
    """
    if asset.bands:
        if len(asset.bands) != header.bands:
            raise SceneError(
                f"{asset.href} has {header.bands} band(s), but a {asset.name} has {len(asset.bands)}: "
                f"{', '.join(asset.bands)}; remove the file, or name its bands with Asset(bands=...)",
                href=asset.href,
            )
        return asset.bands
    described = header.descriptions
    if all(described) and len(set(described)) == header.bands:
        return tuple(str(name) for name in described)
    if header.bands == 1:
        return (asset.name,)
    if header.photometric in ("RGB", "YCBCR") and header.bands in (3, 4):
        return ("red", "green", "blue", "alpha")[: header.bands]
    return tuple(f"band_{i}" for i in range(1, header.bands + 1))


def parts_of(
    scene: Scene, assets: Sequence[Asset], headers: Mapping[str, Header], bands: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[Part, ...]]:
    """Return the names of the bands a scene gives, and the parts of files that give them.

    Parameters
    ----------
    scene, assets
        A scene and those of its assets whose headers were read.
    headers
        By href.
    bands
        Names of bands or of whole assets, in the order wanted; None for all bands of `assets`.

    Raises
    ------
    BandError
        A band is not there; the message lists those that are.
    """
    where = [(asset, i, name) for asset in assets for i, name in enumerate(band_names(asset, headers[asset.href]))]
    chosen = (
        [(asset, i, name) for wanted in bands for asset, i, name in _find(wanted, where, scene)] if bands else where
    )
    parts: list[Part] = []
    for row, (asset, i, _) in enumerate(chosen):
        if parts and parts[-1].asset is asset:
            parts[-1] = replace(parts[-1], file_bands=(*parts[-1].file_bands, i))
        else:
            parts.append(Part(asset, (i,), row))
    return tuple(name for _, _, name in chosen), tuple(parts)


def _find(wanted: str, where: list[tuple[Asset, int, str]], scene: Scene) -> list[tuple[Asset, int, str]]:
    by_band = [entry for entry in where if entry[2] == wanted]
    found = by_band[:1] or [entry for entry in where if entry[0].name == wanted]
    if not found:
        there = dict.fromkeys(name for asset in scene.assets for name in (*asset.bands, asset.name))
        there |= dict.fromkeys(name for _, _, name in where)
        raise BandError(
            f"scene {scene.id} has no band {wanted!r}; it has {', '.join(there)}", scene=scene.id, band=wanted
        )
    return found
