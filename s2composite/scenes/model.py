"""Scene and Asset: which acquisitions there are, and where their files are. Names and dates only, no pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from s2composite.errors import SceneError

__all__ = ["Asset", "AssetGrid", "Scene", "Values", "arc_around"]


@dataclass(frozen=True, slots=True)
class AssetGrid:
    """Pixel grid of a file, as its catalogue gives it."""

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
    """Added to the numbers to make processing baselines agree; 0: nothing to add, None: unknown."""

    scale: float | None = None
    """Physical value of one count; None: the numbers have no physical unit."""

    offset: float = 0.0
    """Physical value of a (shifted) number 0."""

    nodata: float | None = None
    """Nodata value in the catalogue, for files that declare none."""

    classes: bool = False
    """Whether the numbers are classes or flags, which have no mean."""

    coding: str | None = None
    """Of a band of Fmask: ``"odc"``, ``"cfmask"`` or ``"hls"``; None: unknown, or another band."""

    dtype: str | None = None
    """Type of the numbers in the catalogue, ``"uint16"``."""

    unit: str | None = None
    """Unit of physical values, ``"1"`` for reflectances; None: unknown."""

    assumed: bool = False
    """Whether this follows from the name of sensor and band alone; scale and offset in the file's own tags win."""


_UNKNOWN = Values()


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of a scene.

    Examples
    --------
    >>> import s2composite as s2c
    >>> s2c.Asset("B04", "gs://bucket/B04.tif").name
    'B04'
    """

    name: str
    """Content of the file, by its name in the product: ``"TCI"``, ``"B04"``; ``"data"`` if that is unknown."""

    href: str
    """Absolute local path or URL (``gs://``, ``s3://``, ``https://``)."""

    bands: tuple[str, ...] = ()
    """Names of its bands in file order; empty: as given in the file, or implied by `name`."""

    aliases: tuple[str, ...] = ()
    """Other names of the only band of a file, such as its common name."""

    values: Values = _UNKNOWN
    """Meaning of its numbers."""

    band_values: tuple[Values, ...] = ()
    """The same for each of its bands, named or not, where a catalogue describes them; empty: `values` holds for all."""

    grid: AssetGrid | None = None
    """Its pixel grid, if a catalogue gives it."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One acquisition of one granule.

    Examples
    --------
    >>> import datetime as dt, s2composite as s2c
    >>> time = dt.datetime(2023, 7, 9, 10, 46, 29, tzinfo=dt.UTC)
    >>> scene = s2c.Scene("T31TCJ_20230709T104629", time, (s2c.Asset("B04", "gs://bucket/B04.tif"),))
    >>> scene.asset("B04").href
    'gs://bucket/B04.tif'
    """

    id: str
    """Unique name: that of the file or product, without the suffix of the asset."""

    time: datetime
    """Start of sensing in UTC; midnight if the name gives only a day."""

    assets: tuple[Asset, ...] = field(repr=False)
    """Its files, at least one, with unique names; empty for a scene fused from others."""

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
    """When the product was made, in UTC: of two for the same acquisition the later one is used."""

    collection: str | None = None
    """Collection in the catalogue."""

    sensor: str | None = None
    """Whose band numbers and values it has: ``"sentinel-2"``, ``"landsat-oli"``, ``"hls-l30"`` ... (see
    `s2composite.scenes.products.sensor_of`); None: unknown, band numbers are then taken for those of Sentinel-2."""

    cloud_cover: float | None = None
    """Clouds in percent, as the catalogue has them; the mean of a scene fused from several."""

    members: tuple[Scene, ...] = field(default=(), repr=False)
    """The scenes that it was fused from, in order of precedence."""

    def __post_init__(self) -> None:
        if self.time.tzinfo is None:
            raise SceneError(f"scene {self.id}: its time {self.time} has no time zone; give it one (UTC)")
        if not 1678 <= self.time.year <= 2261:
            raise SceneError(f"scene {self.id}: its time {self.time} is outside 1678 to 2261; correct or leave it out")
        if not self.assets and not self.members:
            raise SceneError(f"scene {self.id} has no assets; give it at least one file")
        names = [asset.name for asset in self.assets]
        if len(set(names)) < len(names):
            raise SceneError(f"scene {self.id} has two assets of the same name among {names}; name each once")

    @property
    def parts(self) -> tuple[Scene, ...]:
        """Its members, or the scene itself."""
        return self.members or (self,)

    def asset(self, name: str) -> Asset:
        """Return an asset.

        Parameters
        ----------
        name
            Its name.

        Returns
        -------
        Asset
            The asset of that name.

        Raises
        ------
        SceneError
            There is no such asset; lists those there are.
        """
        for asset in self.assets:
            if asset.name == name:
                return asset
        raise SceneError(f"scene {self.id} has no asset {name!r}; it has {[a.name for a in self.assets]}")


def arc_around(spans: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the shortest span of longitudes that holds all of some, west and east; east may be beyond 180.

    >>> arc_around([(170.0, 180.0), (-180.0, -175.0)])
    (170.0, 185.0)
    """
    known = []
    for west, east in spans:
        turns = 0 if -180 <= west < 180 else (west + 180) // 360  # the west from -180 to 180
        known.append((west - 360 * turns, (east if east >= west else east + 360) - 360 * turns))
    known.sort()
    if any(east - west >= 360 for west, east in known):
        return -180.0, 180.0
    first, reach = known[0]
    widest, left, right = 0.0, first, reach
    for west, east in known[1:]:
        if west - reach > widest:
            widest, left, right = west - reach, west, reach + 360
        reach = max(reach, east)
    rest = first + 360 - reach
    if max(rest, widest) <= 0:
        return -180.0, 180.0
    return (first, reach) if rest >= widest else (left, max(right, reach))
