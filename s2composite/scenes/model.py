"""Scene and Asset: which acquisitions exist and where their files are. Names and dates only, no pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from s2composite.errors import SceneError

__all__ = ["Asset", "AssetGrid", "Scene", "Values"]


@dataclass(frozen=True, slots=True)
class AssetGrid:
    """Where the pixels of a file are, as its catalogue says."""

    crs: str
    """Name of the coordinate system, ``"EPSG:32631"``, or its WKT."""

    transform: tuple[float, ...]
    """Affine transform of pixels to coordinates, six numbers by rows."""

    shape: tuple[int, int]
    """``(y, x)`` in pixels."""


@dataclass(frozen=True, slots=True)
class Values:
    """What the numbers in a file mean: ``(number + shift) * scale + offset``."""

    shift: float | None = None
    """Added to the numbers so that all processing baselines agree; 0: nothing to add, None: not known."""

    scale: float | None = None
    """Physical units of one number; None: the numbers have no other unit."""

    offset: float = 0.0
    """Physical value of a (shifted) number 0."""

    nodata: float | None = None
    """What the catalogue declares as no data, for files that do not say."""

    classes: bool = False
    """Whether the numbers are classes or flags, of which there is no mean."""

    dtype: str | None = None
    """Type of the numbers as the catalogue says, ``"uint16"``."""


_UNKNOWN = Values()


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of a scene."""

    name: str
    """What the file holds, as the product calls it: ``"TCI"``, ``"B04"``; ``"data"`` if its name does not say."""

    href: str
    """Absolute local path or URL (``gs://``, ``s3://``, ``https://``)."""

    bands: tuple[str, ...] = ()
    """Names of its bands in file order; empty: as the file itself says, or as ``name`` implies."""

    aliases: tuple[str, ...] = ()
    """Other names of the only band of a file, such as its common name."""

    values: Values = _UNKNOWN
    """What its numbers mean."""

    grid: AssetGrid | None = None
    """Where its pixels are, if a catalogue says so."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One acquisition of one granule."""

    id: str
    """Unique name, as a user would look it up: the file's or product's name without the asset's suffix."""

    time: datetime
    """Start of sensing, time zone UTC; midnight where the name gives a day only."""

    assets: tuple[Asset, ...] = field(repr=False)
    """Its files, at least one, each name once; none in a scene that was fused of others."""

    granule: str | None = None
    """MGRS tile, ``"31TCJ"``."""

    orbit: int | None = None
    """Relative orbit, 1 to 143."""

    baseline: str | None = None
    """Processing baseline, ``"05.09"``."""

    platform: str | None = None
    """``"S2A"``, ``"S2B"`` ..."""

    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north of its pixels in degrees."""

    made: datetime | None = None
    """When the product was made, UTC: of two of the same acquisition the later one counts."""

    collection: str | None = None
    """The catalogue's collection."""

    members: tuple[Scene, ...] = field(default=(), repr=False)
    """The scenes that it was fused of, the one whose pixels win first."""

    def __post_init__(self) -> None:
        if self.time.tzinfo is None:
            raise SceneError(f"scene {self.id}: its time {self.time} has no time zone; give it one (UTC)")
        if not self.assets and not self.members:
            raise SceneError(f"scene {self.id} has no assets; give it at least one file")
        names = [asset.name for asset in self.assets]
        if len(set(names)) < len(names):
            raise SceneError(f"scene {self.id} has two assets of the same name among {names}; name each once")

    @property
    def parts(self) -> tuple[Scene, ...]:
        """Its members, or itself."""
        return self.members or (self,)

    def asset(self, name: str) -> Asset:
        """Return the asset called `name`; a SceneError lists those there are."""
        for asset in self.assets:
            if asset.name == name:
                return asset
        raise SceneError(f"scene {self.id} has no asset {name!r}; it has {[a.name for a in self.assets]}")
