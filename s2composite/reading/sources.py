"""The files of each scene's bands, how each is read onto the target grid, and the units of their values."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from s2composite.errors import GridError, ParameterError, SceneError, check_choice, listed
from s2composite.geotiff.header import Header
from s2composite.geotiff.structure import GridKey, grid_key, same_geobox
from s2composite.reading.bands import (
    AS_THEY_ARE,
    BandSource,
    Conversion,
    alpha_of,
)
from s2composite.reading.grid import aligned_offset, as_fine, footprint, level_geobox, turned_to, zoomed_offset
from s2composite.reading.warp import resampling_names
from s2composite.scenes.model import Scene, Values
from s2composite.scenes.products import is_mask_band, level_of, same_band
from s2composite.storage.files import display
from s2composite.storage.http import Sign
from s2composite.storage.limits import Limit

__all__ = [
    "Extent",
    "FileSource",
    "ReadOptions",
    "check_alike",
    "check_named_bands",
    "check_named_scenes",
    "choose_source",
    "conversion_of",
    "nodata_of_file",
    "numbers_of",
    "sources_of",
    "target_extent",
    "with_named_shifts",
]

# first and last row, first and last column of the target that a file may cover; the last are exclusive
Extent: TypeAlias = tuple[int, int, int, int]

_MARGIN = 2  # pixels by which a warped file may reach beyond its transformed outline

_EVERYWHERE = (-(1 << 40), 1 << 40, -(1 << 40), 1 << 40)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read."""

    # "tiles": decode tiles directly, or raise an error; "gdal": all through GDAL; "auto": tiles where possible
    engine: str = "auto"
    # "raise" a `ReadError`, or "skip": a scene that fails counts as not observed there, and is listed
    on_error: str = "raise"
    # GDAL's name of the method for files that are not on the target grid; or by band, "*" for all others. Bands of
    # classes use nearest unless named.
    resampling: str | Mapping[str, str] = "nearest"
    # whether to subtract the offset of processing baseline 04.00; or the number to add, by id, to scenes without it
    harmonise: bool | Mapping[str, float] = True
    reflectance: bool = False  # whether values become physical, float32 with NaN for nodata
    # "read": all when the stack is opened; "lazy": one of each kind, the others in the tasks that need them; "auto":
    # lazy for many files whose grid the catalogue gives
    headers: str = "auto"
    sign: Sign | None = field(default=None, repr=False)  # signs URLs just before they are read
    # what hosts allow, in place of what holds otherwise; it changes no pixel
    limits: tuple[Limit, ...] = field(default=(), repr=False, compare=False)
    # whether the bands are read as a mask: classes, flags or percent, which must not change
    classes: bool = False

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
            number = isinstance(shift, (int, float, np.number)) and not isinstance(shift, bool)
            if not (number and float(shift).is_integer()):
                raise ParameterError(
                    f"harmonise={{{scene!r}: {shift!r}}}: give the whole number that is added to the file's (-1000)"
                )
        if not isinstance(self.reflectance, bool):
            raise ParameterError(f"reflectance is {self.reflectance!r}; it is True or False")
        object.__setattr__(self, "resampling", resampling_names(self.resampling))

    def method(self, band: str, sensor: str | None, *, classes: bool) -> str:
        """Return the resampling method of a sensor's band, which may have any catalogue's name."""
        if isinstance(self.resampling, str):
            return "nearest" if classes else self.resampling
        same = same_band(band, sensor)
        others = (method for name, method in self.resampling.items() if same_band(name, sensor) == same)
        named = self.resampling.get(band) or next(others, None)
        return named or ("nearest" if classes else self.resampling.get("*", "nearest"))


@dataclass(frozen=True, slots=True)
class FileSource:
    """One file of one scene, and how to read it."""

    header: Header  # what the file is
    part: BandSource  # its bands and their places in the stack
    level: int  # level to read (0: full resolution, then overviews)
    # (y, x) of the target's origin in that level's pixels, each repeated `factor` times; None: not on the target grid,
    # to be warped
    offset: tuple[int, int] | None
    engine: Literal["tiles", "gdal", "zarr"]  # what reads it
    why: str  # reason for that engine
    extent: Extent = _EVERYWHERE  # pixels of the target that it may cover
    factor: int = 1  # pixels of the target along one of the file
    resampling: str = "nearest"  # method for warping
    conversion: Conversion = AS_THEY_ARE  # conversion of its values
    # its nodata value; None: not declared, or validity is given by a mask
    nodata: float | None = None
    alpha: int | None = None  # its alpha band, counted from 0; None: it has none
    member: int = 0  # position of its scene among those that were fused; the first with a pixel is used


def choose_source(
    header: Header,
    part: BandSource,
    geobox: GeoBox,
    options: ReadOptions,
    resampling: str,
    conversion: Conversion,
    member: int,
) -> FileSource:
    """Decide how a file is read onto a grid."""
    if (header.geobox.crs is None) != (geobox.crs is None):
        lacks, has = ("file", "requested grid") if header.geobox.crs is None else ("requested grid", "file")
        raise GridError(
            f"{header.href}: the {lacks} has no CRS and the {has} has one, so the file cannot be warped to the grid; "
            "write the CRS into the file (gdal_edit.py -a_srs EPSG:32631 file.tif), or request another grid",
            href=header.href,
        )
    nearest = resampling == "nearest"
    level, offset, factor, extent = _placed(
        grid_key(header.geobox), tuple(v.shape for v in header.levels), grid_key(geobox), nearest
    )
    warped = offset is None and not nearest
    engine: Literal["tiles", "gdal", "zarr"] = "zarr" if header.in_zarr and not warped else "gdal"
    if header.undecodable:
        why = "not on the target grid, warped" if warped else header.undecodable
    elif options.engine == "gdal" and engine == "gdal":
        why = "asked for"
    else:
        why = f"not on the target grid, warped ({resampling})" if warped else ""
    if why and options.engine == "tiles":
        raise GridError(
            f"{header.href} cannot be read by engine='tiles': {why}; use engine='auto' or 'gdal'",
            href=header.href,
            why=why,
        )
    if not why:
        engine = "tiles"
        on_grid = "on the target grid" if factor == 1 else "on the target grid, pixels repeated"
        why = "nearest pixels of another grid" if offset is None else on_grid
    return FileSource(
        header,
        part,
        level,
        offset,
        engine,
        why,
        extent,
        factor,
        resampling,
        conversion,
        nodata_of_file(header, part),
        alpha_of(part.asset, header),
        member,
    )


def nodata_of_file(header: Header, part: BandSource) -> float | None:
    """Return the nodata value of a file.

    If there is a mask, only the mask counts, as in GDAL; otherwise the file's own tag, or its catalogue. For floats
    without a declared value it is NaN.
    """
    if header.mask_kind:
        return None
    tag = header.nodata_of(part.file_bands[0])
    declared = part.values[0].nodata if tag is None else tag
    return float("nan") if declared is None and header.dtype.kind == "f" else declared


@lru_cache(4096)
def _placed(
    source_key: GridKey, shapes: tuple[tuple[int, int], ...], target_key: GridKey, nearest: bool
) -> tuple[int, tuple[int, int] | None, int, Extent]:
    """Return the level to read, the offset or None, the factor and the extent (cached, as scenes share few grids)."""
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
    # the coarsest level whose pixels are not larger than the target's
    ratio = abs(target.resolution.x / as_fine(source, target.crs).resolution.x)
    fine = [level for level, shape in enumerate(shapes) if source.shape.x / shape[1] <= ratio * 1.01]
    return max(fine, default=0), None, 1, target_extent(source, target)


def target_extent(source: GeoBox, target: GeoBox) -> Extent:
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


# error of an outline of four times 128 points, as a share of the file's size: for a circle, 0.0003
_CURVED = 1e-3


_WIDE = 60  # degrees of longitude above which the outline of a file in another projection is unreliable


def _holds_pole(source: GeoBox) -> bool:
    """Return whether a grid contains a pole, so that its outline in degrees does not give its extent."""
    for latitude in (-90, 90):
        x, y = CRS("EPSG:4326").transformer_to_crs(source.crs)(0, latitude)
        column, row = ~source.transform @ (x, y)
        if -1 <= column <= source.shape.x + 1 and -1 <= row <= source.shape.y + 1:
            return True
    return False


LOG = logging.getLogger(__name__)


def check_named_scenes(scenes: Sequence[Scene], options: ReadOptions) -> None:
    """Raise a ParameterError that lists the scenes, if ``harmonise`` names others."""
    if isinstance(options.harmonise, Mapping):
        known = dict.fromkeys(product.id for scene in scenes for product in scene.parts)
        _refuse("harmonise", "scene", [name for name in options.harmonise if name not in known], known)


def check_named_bands(scenes: Sequence[Scene], bands: Sequence[str], options: ReadOptions) -> None:
    """Raise a ParameterError that lists the bands, if ``resampling`` names others."""
    if not isinstance(options.resampling, Mapping):
        return
    products = [product for scene in scenes for product in scene.parts]
    assets = [asset for product in products for asset in product.assets]
    names = dict.fromkeys((*bands, *(name for a in assets for name in (a.name, *a.aliases, *a.bands))))
    sensors = {product.sensor for product in products}
    same = {same_band(name, sensor) for sensor in sensors for name in names}
    asked = [name for name in options.resampling if name != "*" and name not in names]
    wrong = [name for name in asked if not same & {same_band(name, sensor) for sensor in sensors}]
    _refuse("resampling", "band", wrong, dict.fromkeys(("*", *names)))


def _refuse(option: str, what: str, wrong: Sequence[str], known: Mapping[str, None]) -> None:
    if wrong:
        asked = ", ".join(repr(str(name)) for name in wrong[:_SHOWN])
        raise ParameterError(f"{option}= names unknown {what}s: {asked}; the {what}s are {listed(known, _SHOWN)}")


_SHOWN = 20  # maximum names listed in a message


def with_named_shifts(
    products: Sequence[Scene], parts: Sequence[tuple[BandSource, ...]], options: ReadOptions
) -> list[tuple[BandSource, ...]]:
    """Return parts of files with the shifts that the caller gives for their products, by id.

    A shift is added to reflectances, or to all values of unknown meaning if a product has no reflectances.
    """
    named = options.harmonise
    if not isinstance(named, Mapping):
        return list(parts)
    return [
        _with_shift(mine, float(named[product.id])) if product.id in named else mine
        for product, mine in zip(products, parts, strict=True)
    ]


def _with_shift(parts: Sequence[BandSource], shift: float) -> tuple[BandSource, ...]:
    reflects = any(values.unit == "1" for part in parts for values in part.values)

    def shifted(values: Values) -> Values:
        if values.unit != "1" and (reflects or values.classes or values.shift is not None):
            return values
        return replace(values, shift=shift, scale=values.scale or 1e-4, unit="1")

    return tuple(replace(part, values=tuple(map(shifted, part.values))) for part in parts)


def conversion_of(values: Values, dtype: np.dtype[Any], options: ReadOptions) -> Conversion:
    """Return the conversion of a band's values."""
    shift = 0.0 if options.harmonise is False or values.shift is None else values.shift
    if dtype.kind in "ui" and abs(shift) > np.iinfo(dtype).max:  # 8 bits are not ESA's numbers
        shift = 0.0
    if not options.reflectance or values.classes or values.scale is None:
        return Conversion(shift, classes=values.classes or options.classes)
    saturated = float(np.iinfo(dtype).max) if dtype.kind in "ui" else None
    return Conversion(shift, values.scale, values.offset, saturated)


def check_alike(
    products: Sequence[Scene],
    parts: Sequence[tuple[BandSource, ...]],
    headers: Mapping[str, Header],
    names: Sequence[str],
    options: ReadOptions,
) -> None:
    """Raise if a band would mix values of different meaning, or physical values are unknown."""
    levels = {level: product for product in reversed(products) if (level := level_of(product)) is not None}
    if len(levels) > 1:
        # both have the same names and units
        (_, one), (_, other) = sorted(levels.items())
        raise SceneError(
            f"scene {one.id} ({one.collection}) is of level 1, scene {other.id} ({other.collection}) of level 2: "
            "top-of-atmosphere and surface reflectance cannot be mixed; open one collection at a time",
            scene=one.id,
        )
    if options.reflectance:
        _check_scaled(products, parts, headers, names)
    if options.harmonise is False:
        shifts = {product.id: values.shift for product, _, _, values in _bands(products, parts) if values.shift}
        if options.reflectance and shifts:
            # unless the offset is subtracted, they are not reflectances
            scene, shift = next(iter(shifts.items()))
            raise ParameterError(
                f"reflectance=True with harmonise=False: the values of {len(shifts)} of {len(products)} scenes ({scene}"
                f" ...) have the offset of processing baseline 04.00, {-shift:g}, and with it they are not "
                "reflectances; leave out harmonise=False or, for the values as in the files, reflectance=True"
            )
        return
    _check_offsets(products, parts, reflectance=options.reflectance)
    if not options.reflectance:
        _check_units(products, parts)


def _bands(
    products: Sequence[Scene], parts: Sequence[tuple[BandSource, ...]]
) -> Iterator[tuple[Scene, BandSource, int, Values]]:
    """Yield each band of each product: its place, and the meaning of its values."""
    for product, mine in zip(products, parts, strict=True):
        for part in mine:
            for i, values in enumerate(part.values):
                yield product, part, part.row + i, values


def _check_scaled(
    products: Sequence[Scene],
    parts: Sequence[tuple[BandSource, ...]],
    headers: Mapping[str, Header],
    names: Sequence[str],
) -> None:
    for product, part, row, values in _bands(products, parts):
        header = headers[part.asset.href]
        if values.scale is None and not values.classes and not is_mask_band(names[row]) and header.dtype.kind != "f":
            raise SceneError(
                f"scene {product.id}: no reflectances (reflectance=True, CloudNet): the scale of band {names[row]!r} "
                f"in {display(part.asset.href)} is unknown, as neither its catalogue nor tags of the file give it, and "
                "its name is not a band of a known sensor; write it into the file (gdal_edit.py -scale), do without, "
                f"or for Sentinel-2 give the number to add with harmonise={{{product.id!r}: -1000}} (0: nothing)",
                scene=product.id,
                href=part.asset.href,
            )


def _check_offsets(products: Sequence[Scene], parts: Sequence[tuple[BandSource, ...]], *, reflectance: bool) -> None:
    """Raise if some products declare the offset of a band's reflectances, and others do not."""
    known: set[int] = set()
    unknown: dict[int, list[str]] = {}
    for product, _, row, values in _bands(products, parts):
        if values.shift is None and values.scale is not None:
            unknown.setdefault(row, []).append(product.id)
        elif values.shift is not None and values.scale is not None:
            known.add(row)
    mixed = list(dict.fromkeys(product for row in known for product in unknown.get(row, ())))
    if mixed:
        raise SceneError(
            f"{len(mixed)} of {len(products)} scenes do not declare whether their values have the offset of processing "
            f"baseline 04.00, and others do: {listed(mixed, 3)}; give the number to add with "
            f"harmonise={{{mixed[0]!r}: -1000}} (0: nothing), leave them out, or use all values "
            "unchanged with harmonise=False",
            scene=mixed[0],
        )
    doubtful = list(dict.fromkeys(product for row in unknown.values() for product in row))
    if doubtful and reflectance:
        LOG.warning(
            "reflectance=True: it is unknown whether the values of %d scenes have the offset of processing baseline "
            "04.00 (%s ...); nothing is subtracted; to subtract it, give harmonise={%r: -1000}",
            len(doubtful), doubtful[0], doubtful[0],
        )  # fmt: skip


def _check_units(products: Sequence[Scene], parts: Sequence[tuple[BandSource, ...]]) -> None:
    """Raise if the units of a band differ between products, as in collections of several satellites."""
    first: dict[int, tuple[str, float | None, float]] = {}
    for product, part, row, values in _bands(products, parts):
        unit = (values.scale, values.offset)
        known = first.setdefault(row, (product.id, *unit))
        if unit != known[1:] and None not in (unit[0], known[1]):
            raise SceneError(
                f"scene {product.id} ({product.collection}) has scale {unit[0]} and offset {unit[1]} in "
                f"{part.asset.name}, scene {known[0]} scale {known[1]} and offset {known[2]}; open them with "
                "reflectance=True, or one collection at a time",
                scene=product.id,
            )


def numbers_of(sources: Sequence[Sequence[FileSource]], bands: int) -> tuple[Values | None, ...]:
    """Return scale, offset and unit of each band of a stack after conversion; None if unknown.

    None, too, if scenes differ, since no single answer would hold for a composite.
    """
    by_row: list[set[Values | None]] = [set() for _ in range(bands)]
    for source in (source for files in sources for source in files):
        how = source.conversion
        for row, values in enumerate(source.part.values, source.part.row):
            numbers = None
            if not values.classes and values.scale is not None and (values.shift is not None or how.scale != 1.0):
                if (how.scale, how.offset) == (values.scale, values.offset):
                    numbers = Values(0.0, 1.0, 0.0, unit=values.unit)
                else:
                    assert values.shift is not None
                    left = (values.shift - how.shift) * values.scale
                    numbers = Values(0.0, values.scale, values.offset + left, unit=values.unit)
            by_row[row].add(numbers)
    return tuple(meanings.pop() if len(meanings) == 1 else None for meanings in by_row)


def sources_of(
    scenes: Sequence[Scene],
    parts: Sequence[tuple[BandSource, ...]],
    names: tuple[str, ...],
    headers: Mapping[str, Header],
    geobox: GeoBox,
    options: ReadOptions,
) -> tuple[tuple[FileSource, ...], ...]:
    """Return the files of each scene; none if one of its products cannot be used."""
    sources: list[tuple[FileSource, ...]] = []
    products = iter(parts)
    for scene in scenes:
        files: list[FileSource] = []
        mine = list(islice(products, len(scene.parts)))
        for member, (product, from_files) in enumerate(zip(scene.parts, mine, strict=True)):
            for part in from_files:
                header = headers[part.asset.href]
                files += [
                    choose_source(header, one, geobox, options, method, conversion, member)
                    for one, method, conversion in _split(part, header, names, product.sensor, options)
                ]
        sources.append(tuple(files) if all(mine) else ())
    return tuple(sources)


def _split(
    part: BandSource, header: Header, names: tuple[str, ...], sensor: str | None, options: ReadOptions
) -> list[tuple[BandSource, str, Conversion]]:
    """Split a part if its bands differ in resampling, conversion or nodata value."""
    split: list[tuple[BandSource, str, Conversion]] = []
    rows = range(part.row, part.row + len(part.file_bands))
    for row, band, values in zip(rows, part.file_bands, part.values, strict=True):
        method = options.method(names[row], sensor, classes=values.classes)
        how = (method, conversion_of(values, header.dtype, options))
        one = BandSource(part.asset, (band,), row, (values,))
        last = split[-1][0] if split and split[-1][1:] == how else None
        if last is not None and repr(nodata_of_file(header, last)) == repr(nodata_of_file(header, one)):  # NaN, too
            longer = replace(last, file_bands=(*last.file_bands, band), values=(*last.values, values))
            split[-1] = (longer, *how)
        else:
            split.append((one, *how))
    return split
