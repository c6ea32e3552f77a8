"""Source: one file of one scene, and how it is read onto the target grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from odc.geo.geobox import GeoBox

from s2composite.errors import GridError, ParameterError
from s2composite.reading.grid import aligned_offset, level_geobox
from s2composite.reading.header import Header
from s2composite.reading.layout import Part
from s2composite.reading.warp import resampling_method

__all__ = ["ReadOptions", "Source", "choose_source"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read."""

    engine: str = "auto"
    """``"tiles"``: decode tiles directly, refuse what that cannot do; ``"gdal"``: all through GDAL; ``"auto"``: tiles
    where possible."""

    on_error: str = "raise"
    """``"raise"`` a `ReadError`, or ``"skip"``: a scene that fails counts as not observed there, and is listed."""

    resampling: str = "nearest"
    """GDAL's name of the method for scenes that are not on the target grid."""

    def __post_init__(self) -> None:
        for name, valid in (("engine", ("auto", "tiles", "gdal")), ("on_error", ("raise", "skip"))):
            value = getattr(self, name)
            if value not in valid:
                raise ParameterError(f"{name} is {value!r}; it is one of {', '.join(map(repr, valid))}")
        resampling_method(self.resampling)


@dataclass(frozen=True, slots=True)
class Source:
    """One file of one scene, and how it is read."""

    header: Header
    """What the file is."""

    part: Part
    """Which of its bands go where."""

    level: int
    """Level that is on the target grid (0: full resolution, then overviews); 0 if the file is warped."""

    offset: tuple[int, int] | None
    """``(y, x)`` of the target's origin in that level's pixels; None: not on the target grid, so it is warped."""

    engine: Literal["tiles", "gdal"]
    """What reads it."""

    why: str
    """Why that engine."""


def choose_source(header: Header, part: Part, geobox: GeoBox, options: ReadOptions) -> Source:
    """Decide how a file is read onto a grid.

    Raises
    ------
    GridError
        ``engine="tiles"`` is demanded and the file needs GDAL; says why.
    """
    level, offset = _level_on(header, geobox)
    if offset is None:
        why = "not on the target grid, warped"
    elif header.undecodable:
        why = header.undecodable
    elif options.engine == "gdal":
        why = "asked for"
    else:
        return Source(header, part, level, offset, "tiles", "on the target grid")
    if options.engine == "tiles":
        raise GridError(
            f"{header.href} cannot be read by engine='tiles': {why}; use engine='auto' or 'gdal'", href=header.href
        )
    return Source(header, part, level, offset, "gdal", why)


def _level_on(header: Header, geobox: GeoBox) -> tuple[int, tuple[int, int] | None]:
    if header.geobox == geobox:
        return 0, (0, 0)
    for level in range(len(header.levels)):
        offset = aligned_offset(level_geobox(header, level), geobox)
        if offset is not None:
            return level, offset
    return 0, None
