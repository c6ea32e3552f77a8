"""Scene and Asset: which acquisitions exist and where their files are. Names and dates only, no pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from s2composite.errors import SceneError

__all__ = ["Asset", "Scene"]


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of a scene."""

    name: str
    """What the file holds, as the product calls it: ``"TCI"``, ``"B04"``; ``"data"`` if its name does not say."""

    href: str
    """Absolute local path or URL (``gs://``, ``s3://``, ``https://``)."""

    bands: tuple[str, ...] = ()
    """Names of its bands in file order; empty: as the file itself says, or as ``name`` implies."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One acquisition of one granule."""

    id: str
    """Unique name, as a user would look it up: the file's or product's name without the asset's suffix."""

    time: datetime
    """Start of sensing, time zone UTC; midnight where the name gives a day only."""

    assets: tuple[Asset, ...] = field(repr=False)
    """Its files, at least one, each name once."""

    granule: str | None = None
    """MGRS tile, ``"31TCJ"``."""

    orbit: int | None = None
    """Relative orbit, 1 to 143."""

    baseline: str | None = None
    """Processing baseline, ``"05.09"``."""

    platform: str | None = None
    """``"S2A"``, ``"S2B"`` ..."""

    def __post_init__(self) -> None:
        if self.time.tzinfo is None:
            raise SceneError(f"scene {self.id}: its time {self.time} has no time zone; give it one (UTC)")
        if not self.assets:
            raise SceneError(f"scene {self.id} has no assets; give it at least one file")
        names = [asset.name for asset in self.assets]
        if len(set(names)) < len(names):
            raise SceneError(f"scene {self.id} has two assets of the same name among {names}; name each once")

    def asset(self, name: str) -> Asset:
        """Return the asset called `name`; a SceneError lists those there are."""
        for asset in self.assets:
            if asset.name == name:
                return asset
        raise SceneError(f"scene {self.id} has no asset {name!r}; it has {[a.name for a in self.assets]}")
