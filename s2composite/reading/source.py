"""Source: one file of one scene, and how it is read onto the target grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from s2composite.errors import GridError, ParameterError, check_choice
from s2composite.reading.convert import AS_THEY_ARE, Conversion
from s2composite.reading.crs import GridKey, grid_key, same_geobox
from s2composite.reading.grid import aligned_offset, as_fine, footprint, level_geobox, turned_to, zoomed_offset
from s2composite.reading.header import Header
from s2composite.reading.layout import Part, alpha_of
from s2composite.reading.signing import Sign
from s2composite.reading.warp import resampling_names
from s2composite.scenes.names import same_band

__all__ = ["Extent", "ReadOptions", "Source", "choose_source", "nodata_of_file"]

Extent: TypeAlias = tuple[int, int, int, int]
"""First and last row, first and last column of the target that a file may reach, the last ones excluded."""

_MARGIN = 2
"""Pixels by which a warped file may reach beyond its transformed outline."""

_EVERYWHERE = (-(1 << 40), 1 << 40, -(1 << 40), 1 << 40)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read."""

    engine: str = "auto"
    """``"tiles"``: decode tiles directly, refuse what that cannot do; ``"gdal"``: all through GDAL; ``"auto"``: tiles
    where possible."""

    on_error: str = "raise"
    """``"raise"`` a `ReadError`, or ``"skip"``: a scene that fails counts as not observed there, and is listed."""

    resampling: str | Mapping[str, str] = "nearest"
    """GDAL's name of the method for files that are not on the target grid; or by band, ``"*"`` for all others. Bands of
    classes are always nearest, unless named."""

    harmonise: bool | Mapping[str, float] = True
    """Whether the offset of processing baseline 04.00 is taken off; or what to add, by id of scenes that do not say."""

    reflectance: bool = False
    """Whether numbers become physical values, float32 with NaN for no data."""

    headers: str = "auto"
    """``"read"``: all when the stack is opened; ``"lazy"``: one of each kind, the others in the tasks that need them;
    ``"auto"``: lazy for many files whose grid the catalogue gives."""

    sign: Sign | None = field(default=None, repr=False)
    """Signs URLs just before they are read."""

    classes: bool = False
    """Whether the bands are read as a mask: classes, flags or percent, none of which may become another."""

    def __post_init__(self) -> None:
        choices = (
            ("engine", ("auto", "tiles", "gdal")),
            ("on_error", ("raise", "skip")),
            ("headers", ("auto", "read", "lazy")),
        )
        for name, valid in choices:
            check_choice(name, getattr(self, name), valid)
        if not isinstance(self.harmonise, (bool, Mapping)):
            raise ParameterError(f"harmonise is {self.harmonise!r}; it is True, False, or numbers to add by scene id")
        for scene, shift in self.harmonise.items() if isinstance(self.harmonise, Mapping) else ():
            if not _is_whole(shift):
                raise ParameterError(
                    f"harmonise={{{scene!r}: {shift!r}}}: give the whole number that is added to the file's (-1000)"
                )
        if not isinstance(self.reflectance, bool):
            raise ParameterError(f"reflectance is {self.reflectance!r}; it is True or False")
        object.__setattr__(self, "resampling", resampling_names(self.resampling))

    def method(self, band: str, sensor: str | None, *, classes: bool) -> str:
        """Return the resampling method of a band of a sensor, which may be named as any catalogue does."""
        if isinstance(self.resampling, str):
            return "nearest" if classes else self.resampling
        same = same_band(band, sensor)
        others = (method for name, method in self.resampling.items() if same_band(name, sensor) == same)
        named = self.resampling.get(band) or next(others, None)
        return named or ("nearest" if classes else self.resampling.get("*", "nearest"))


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and float(value).is_integer()


@dataclass(frozen=True, slots=True)
class Source:
    """One file of one scene, and how it is read."""

    header: Header
    """What the file is."""

    part: Part
    """Which of its bands go where."""

    level: int
    """Level that is read (0: full resolution, then overviews)."""

    offset: tuple[int, int] | None
    """``(y, x)`` of the target's origin in that level's pixels, each repeated `factor` times; None: not on the target
    grid, so it is warped."""

    engine: Literal["tiles", "gdal"]
    """What reads it."""

    why: str
    """Why that engine."""

    extent: Extent = _EVERYWHERE
    """Where it may reach, in pixels of the target."""

    factor: int = 1
    """Pixels of the target along one of the file."""

    resampling: str = "nearest"
    """Method, where it is warped."""

    conversion: Conversion = AS_THEY_ARE
    """What is done to its numbers."""

    nodata: float | None = None
    """What it has where there is no data; None: nothing declared, or a mask says where there is."""

    alpha: int | None = None
    """Its alpha band, counted from 0; None: it has none."""

    member: int = 0
    """Position of its scene among those that were fused; where several have a pixel, the first wins."""


def choose_source(
    header: Header,
    part: Part,
    geobox: GeoBox,
    options: ReadOptions,
    *,
    resampling: str = "nearest",
    conversion: Conversion = AS_THEY_ARE,
    member: int = 0,
) -> Source:
    """Decide how a file is read onto a grid.

    Raises
    ------
    GridError
        ``engine="tiles"`` is demanded and the file needs GDAL; says why. Or the file has no CRS, and the grid has one.
    """
    _check_same_world(header, geobox)
    nearest = resampling == "nearest"
    level, offset, factor, extent = _placed(
        grid_key(header.geobox), tuple(v.shape for v in header.levels), grid_key(geobox), nearest
    )
    if header.undecodable:
        why = header.undecodable if offset is not None else "not on the target grid, warped"
    elif options.engine == "gdal":
        why = "asked for"
    elif offset is None and not nearest:
        why = f"not on the target grid, warped ({resampling})"
    else:
        why = ""
    if why and options.engine == "tiles":
        raise GridError(
            f"{header.href} cannot be read by engine='tiles': {why}; use engine='auto' or 'gdal'",
            href=header.href,
            why=why,
        )
    told = why or ("on the target grid" if factor == 1 and offset is not None else _TOLD[offset is None])
    return Source(
        header,
        part,
        level,
        offset,
        "gdal" if why else "tiles",
        told,
        extent,
        factor,
        resampling,
        conversion,
        nodata_of_file(header, part),
        alpha_of(part.asset, header),
        member,
    )


def _check_same_world(header: Header, geobox: GeoBox) -> None:
    """Raise if either the file or the grid has a CRS, and the other has none."""
    if (header.geobox.crs is None) != (geobox.crs is None):
        lacks, has = ("file", "grid that is asked for") if header.geobox.crs is None else ("grid asked for", "file")
        raise GridError(
            f"{header.href}: the {lacks} has no coordinate system and the {has} has one, so there is no way from one "
            "to the other; write the CRS into the file (gdal_edit.py -a_srs EPSG:32631 file.tif), or ask for another "
            "grid",
            href=header.href,
        )


def nodata_of_file(header: Header, part: Part) -> float | None:
    """Return the number that a file has where there is no data.

    A mask decides alone, as in GDAL; else the file's own tag does, or its catalogue. Floats that declare nothing have
    NaN there.
    """
    if header.mask_kind:
        return None
    tag = header.nodata_of(part.file_bands[0])
    declared = part.values[0].nodata if tag is None else tag
    return float("nan") if declared is None and header.dtype.kind == "f" else declared


_TOLD = {False: "on the target grid, pixels repeated", True: "nearest pixels of another grid"}


@lru_cache(4096)
def _placed(
    source_key: GridKey, shapes: tuple[tuple[int, int], ...], target_key: GridKey, nearest: bool
) -> tuple[int, tuple[int, int] | None, int, Extent]:
    """Return the level to read, the offset or None, the factor and the extent; scenes share a few grids."""
    source, target = same_geobox(*source_key), same_geobox(*target_key)
    for level, shape in enumerate(shapes):
        offset = (0, 0) if level == 0 and source == target else aligned_offset(level_geobox(source, shape), target)
        if offset is not None:
            top, left = -offset[0], -offset[1]
            return level, offset, 1, (top, top + shape[0], left, left + shape[1])
    zoomed = zoomed_offset(source, target) if nearest else None
    if zoomed is not None:
        offset, factor = zoomed
        (height, width), top, left = shapes[0], -offset[0], -offset[1]
        return 0, offset, factor, (top, top + height * factor, left, left + width * factor)
    return _coarse_enough(source, shapes, target), None, 1, _reach(source, target)


def _coarse_enough(source: GeoBox, shapes: tuple[tuple[int, int], ...], target: GeoBox) -> int:
    """Return the coarsest level whose pixels are not larger than the target's."""
    if source.crs == target.crs:
        ratio = abs(target.resolution.x / source.resolution.x)
    else:
        there = as_fine(source, target.crs)
        ratio = abs(target.resolution.x / there.resolution.x)
    fine = [level for level, shape in enumerate(shapes) if source.shape.x / shape[1] <= ratio * 1.01]
    return max(fine, default=0)


def _reach(source: GeoBox, target: GeoBox) -> Extent:
    """Return the target's pixels in the box around a file's outline."""
    pixels = source.boundary(129)
    x, y = source.transform @ (pixels[:, 0], pixels[:, 1])
    if source.crs != target.crs:
        west, _, east, _ = footprint(source).geom.bounds
        if east - west > _WIDE or (target.crs.geographic and _holds_pole(source)):
            return _EVERYWHERE
        x, y = source.crs.transformer_to_crs(target.crs)(x, y)
    if target.crs is not None and target.crs.geographic:
        x = turned_to(x, target)
    back = ~target.transform
    columns, rows = back @ (np.asarray(x), np.asarray(y))
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        return _EVERYWHERE
    # The outline is curved between two of its points.
    sides = [(v.min(), v.max(), _MARGIN + (v.max() - v.min()) * _CURVED) for v in (rows, columns)]
    (top, bottom), (left, right) = ((int(np.floor(low - by)), int(np.ceil(high + by))) for low, high, by in sides)
    return top, bottom, left, right


_CURVED = 1e-3
"""Share of its size by which an outline of four times 128 points may miss that of a file: of a circle, 0.0003."""


_WIDE = 60
"""Degrees of longitude from which the outline of a file on another projection may be anything."""


def _holds_pole(source: GeoBox) -> bool:
    """Return whether a pole lies in a grid, so that its outline in degrees says nothing of where it reaches."""
    for latitude in (-90, 90):
        x, y = CRS("EPSG:4326").transformer_to_crs(source.crs)(0, latitude)
        column, row = ~source.transform @ (x, y)
        if -1 <= column <= source.shape.x + 1 and -1 <= row <= source.shape.y + 1:
            return True
    return False
