"""Grid: the geobox that all scenes share, or the requested one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo import Resolution, xy_
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, bbox_union, box
from shapely import Polygon
from shapely.affinity import translate

from s2composite.errors import GridError, ParameterError
from s2composite.geotiff.header import Header
from s2composite.geotiff.structure import grid_key
from s2composite.scenes.model import arc_around

__all__ = [
    "Anchor",
    "TargetGrid",
    "Window",
    "aligned_offset",
    "as_fine",
    "centre_longitude",
    "crop",
    "footprint",
    "intersection",
    "level_geobox",
    "native_geoboxes",
    "projected_box",
    "resolution_of",
    "subgrid",
    "target_geobox",
    "turned_to",
    "with_halo",
    "within",
    "zoomed_offset",
]

Window: TypeAlias = tuple[slice, slice]  # (y, x) slices of a geobox, start and stop always given


def within(window: Window, part: Window) -> Window:
    """Return the position of a part of a window within the window."""
    (y, x), (v, u) = window, part
    return slice(v.start - y.start, v.stop - y.start), slice(u.start - x.start, u.stop - x.start)


def intersection(one: Window, other: Window) -> Window:
    """Return what two windows have in common; slices end before they start where they have nothing."""
    (y, x), (v, u) = one, other
    return slice(max(y.start, v.start), min(y.stop, v.stop)), slice(max(x.start, u.start), min(x.stop, u.stop))


def with_halo(window: Window, halo: int, shape: tuple[int, int]) -> tuple[Window, Window]:
    """Return a window with `halo` pixels around it, where a raster of that shape has any, and the window inside that.

    >>> with_halo((slice(0, 4), slice(4, 8)), 2, (10, 9))
    ((slice(0, 6, None), slice(2, 9, None)), (slice(0, 4, None), slice(2, 6, None)))
    """
    y, x = (
        slice(min(max(s.start - halo, 0), s.start), max(min(s.stop + halo, n), s.stop))
        for s, n in zip(window, shape, strict=True)
    )
    return (y, x), within((y, x), window)


def subgrid(geobox: GeoBox, window: Window) -> GeoBox:
    """Return the grid of a window, which may extend beyond `geobox`."""
    y, x = window
    return geobox.translate_pix(x.start, y.start).crop((y.stop - y.start, x.stop - x.start))


_SHOWN = 5  # differing scenes that a message names; the others are counted


# Properties that must be equal to stack scenes without warping, and with warping
_ON_ONE_GRID = ("size", "crs", "origin", "resolution", "dtype", "bands", "nodata")
_ON_PARTS_OF_ONE = ("crs", "resolution", "nodata", "dtype", "bands")
_WARPED = ("dtype", "bands")


def _properties(headers: Sequence[Header]) -> dict[str, str]:
    first, transform = headers[0], headers[0].geobox.transform
    none = (0.0, math.nan)  # what `Stack.fill` is for integers and for floats of files that declare none
    return {
        "size": " + ".join(f"{h.geobox.shape.x} x {h.geobox.shape.y}" for h in headers),
        "crs": str(first.geobox.crs),
        "origin": f"({transform.c:.10g}, {transform.f:.10g})",
        "resolution": f"({transform.a:.10g}, {transform.e:.10g})",
        "dtype": " + ".join(h.dtype.name for h in headers),
        "bands": " + ".join(str(h.bands - (h.alpha is not None)) for h in headers),
        # ESA's JPEG 2000 declare none
        "nodata": " + ".join(str(none[h.dtype.kind == "f"] if h.nodata is None else h.nodata) for h in headers),
    }


def native_geoboxes(
    headers: Mapping[str, Sequence[Header]], places: Mapping[str, str | None], *, grid: bool, converted: bool = False
) -> tuple[GeoBox, ...]:
    """Check that scenes can be stacked and return their distinct grids: for each scene, the grid of its finest file.

    `headers`: of each scene's files, by scene id. `places`: the granule of each scene; scenes of one granule must have
    the same grid, scenes of several must have parts of one grid. `grid`: whether size, CRS, origin and resolution must
    agree, too; not needed if the caller names a target grid. `converted`: whether all values become reflectances,
    so that files may hold them as integers or as floats.
    """
    own = ("dtype", "nodata") if converted else ()
    properties = {scene: _properties(hs) for scene, hs in headers.items()}
    if grid:
        groups: dict[str | None, dict[str, dict[str, str]]] = {}
        for scene, mine in properties.items():
            groups.setdefault(places.get(scene), {})[scene] = mine
        for group in groups.values():
            _check_alike(group, [name for name in _ON_ONE_GRID if name not in own])
    _check_alike(properties, [name for name in (_ON_PARTS_OF_ONE if grid else _WARPED) if name not in own])
    finest = (min((h.geobox for h in hs), key=lambda g: abs(g.resolution.x)) for hs in headers.values())
    return tuple(dict.fromkeys({grid_key(geobox): geobox for geobox in finest}.values()))


def _check_alike(properties: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> None:
    """Raise a GridError that lists how scenes differ from the majority."""
    key = {scene: tuple(mine[name] for name in names) for scene, mine in properties.items()}
    usual = Counter(key.values()).most_common(1)[0][0]
    odd = [scene for scene in key if key[scene] != usual]
    if not odd:
        return
    lines = []
    for scene in odd[:_SHOWN]:
        unlike = [f"{n} {k} instead of {u}" for n, k, u in zip(names, key[scene], usual, strict=True) if k != u]
        lines.append(f"  {scene}: {', '.join(unlike)}")
    if len(odd) > _SHOWN:
        lines.append(f"  and {len(odd) - _SHOWN} more")
    cure = "leave them out, or give a target grid with geobox=, or crs= and resolution=, to warp them to it"
    if all("dtype" in line or "bands" in line for line in lines):
        cure = (
            "leave them out, choose bands= that all scenes have in the same dtype, or, if these are reflectances as "
            "integers and as floats, open them with reflectance=True"
        )
    message = f"{len(odd)} of {len(key)} scenes differ from the others:\n" + "\n".join(lines) + f"\n{cure}"
    raise GridError(message, scenes=tuple(odd))


Anchor: TypeAlias = str | tuple[float, float] | None  # alignment of a new grid's pixels


@dataclass(frozen=True, slots=True)
class TargetGrid:
    """The requested pixel grid; all None: the scenes' own."""

    geobox: GeoBox | None = None  # exactly this grid
    crs: Any = None  # any form of a CRS
    resolution: float | None = None  # pixel size in units of the CRS; see `resolution_of`
    bbox: Any = None  # crop to this; see `bbox_of`
    anchor: Anchor = None  # alignment of a new grid's pixels; None: as in the scenes

    def __post_init__(self) -> None:
        if self.geobox is not None and not isinstance(self.geobox, GeoBox):
            raise ParameterError(
                f"geobox is a {type(self.geobox).__name__}; it is an odc.geo.geobox.GeoBox(shape, transform, crs), and "
                "like= takes an array or the path of a raster"
            )
        for name, coerced in (("crs", crs_of), ("resolution", resolution_of), ("bbox", bbox_of)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, coerced(value))

    @property
    def named(self) -> bool:
        """Whether scenes on different grids may be warped to this."""
        return self.geobox is not None or self.crs is not None


def target_geobox(natives: Sequence[GeoBox], headers: Sequence[Header], target: TargetGrid) -> GeoBox:
    """Return the requested grid, or the union of the scenes' own grids.

    A resolution within 1 % of an overview's gives that overview's own grid, so that it is read without resampling:
    an overview of an odd-sized raster is slightly stretched (10980 pixels at 1/16 are 687 of 159.8 m, not 160).
    """
    crs, resolution, anchor = target.crs, target.resolution, target.anchor
    if target.geobox is not None:
        if crs is not None or resolution is not None or anchor is not None:
            raise ParameterError("geobox= already sets crs, resolution and anchor; give one or the other")
        return target.geobox
    if any(native.crs is None for native in natives) and (crs is not None or anchor is not None):
        raise GridError(
            "the scenes have no CRS, so they cannot be warped to another grid: leave out crs= and anchor=, or write "
            "the CRS into the files (gdal_edit.py -a_srs EPSG:32631 file.tif)"
        )
    crs = natives[0].crs if crs is None else crs
    native = None
    if anchor is None and all(native.crs == crs for native in natives):
        native = natives[0] if len(natives) == 1 else _union(natives)
    if native is not None:
        grid = native if resolution is None else _coarser(native, natives, headers, resolution)
    elif len(natives) == 1 and anchor is None:
        grid = _to_crs(natives[0], crs, resolution)
    else:
        grid = _grid_around(natives, crs, resolution, "edge" if anchor is None else anchor)
    if resolution is None:
        return grid
    # pixels so much finer than the data's that other units were probably meant
    own = as_fine(natives[0], grid.crs)
    finer = abs(own.resolution.x / grid.resolution.x)
    if finer > _FINEST:
        raise GridError(
            f"resolution {resolution:.10g} in the units of {grid.crs} ({_unit(grid.crs)}) is {finer:.3g} times finer "
            f"than the data's {abs(own.resolution.x):.4g}, a grid of {grid.shape.x} x {grid.shape.y} pixels; was it "
            "meant in other units? geobox= takes any grid"
        )
    return grid


def crs_of(crs: Any) -> CRS:
    """Return a CRS from text, an EPSG code, or an object of pyproj, rasterio or odc-geo."""
    try:
        return CRS(int(crs) if isinstance(crs, np.integer) else crs)
    except Exception as error:
        raise ParameterError(f"crs {crs!r} is unknown ({error}); write it like 'EPSG:32631'") from error


def _union(geoboxes: Sequence[GeoBox]) -> GeoBox | None:
    """Return the grid of which all are parts; None if there is none."""
    first = geoboxes[0]
    offsets = [aligned_offset(first, other) for other in geoboxes]
    if any(offset is None for offset in offsets):
        return None
    rows = [(o[0], o[0] + g.shape.y) for o, g in zip(offsets, geoboxes, strict=True) if o is not None]
    columns = [(o[1], o[1] + g.shape.x) for o, g in zip(offsets, geoboxes, strict=True) if o is not None]
    top, left = min(r[0] for r in rows), min(c[0] for c in columns)
    shape = (max(r[1] for r in rows) - top, max(c[1] for c in columns) - left)
    return GeoBox(shape, first.transform @ Affine.translation(left, top), first.crs)


def _to_crs(native: GeoBox, crs: CRS, resolution: float | None) -> GeoBox:
    if resolution is not None:
        _check_size(native, crs, resolution)
    if crs.geographic and _crosses_antimeridian_or_pole(native):
        fine = resolution or abs(as_fine(native, crs, "auto").resolution.x)
        return GeoBox.from_bbox(_box_around([native], crs), crs, resolution=fine, tight=True)
    if _crosses_antimeridian_or_pole(native):
        projected_box(native, crs)
    return native.to_crs(crs, resolution="auto" if resolution is None else resolution)


def _crosses_antimeridian_or_pole(native: GeoBox) -> bool:
    """Return whether a grid crosses the antimeridian or contains a pole; its outline in another CRS may be split."""
    shape = footprint(native).geom
    west, _, east, _ = shape.bounds
    return len(_parts(shape)) > 1 or east - west > 180


def as_fine(native: GeoBox, crs: CRS, method: str = "fit") -> GeoBox:
    """Return a grid in a CRS with pixels of about the same size, for all or part of the area; itself in its own CRS."""
    if native.crs == crs:
        return native
    if _crosses_antimeridian_or_pole(native):
        places = ((native.shape.y * n // 4, native.shape.x * n // 4) for n in (1, 3))
        patches = [native[row : row + 2, column : column + 2] for row, column in places]
        native = next((patch for patch in patches if not _crosses_antimeridian_or_pole(patch)), native)
    try:
        return native.to_crs(crs, resolution=method)
    except (np.linalg.LinAlgError, ValueError, AssertionError) as error:
        raise GridError(
            f"{crs} is not defined at the location of the scenes in {native.crs}; choose another CRS"
        ) from error


def _box_around(natives: Sequence[GeoBox], crs: CRS) -> BoundingBox:
    """Return the box around grids; in degrees it extends beyond 180 if they cross the antimeridian."""
    if not crs.geographic:
        return bbox_union([projected_box(native, crs) for native in natives])
    parts = [part.bounds for native in natives for part in _parts(footprint(native).to_crs(crs).geom)]
    west, south, east, north = zip(*parts, strict=True)
    left, right = arc_around(zip(west, east, strict=True))
    return BoundingBox(left, min(south), right, max(north), crs)


def projected_box(native: GeoBox, crs: CRS) -> BoundingBox:
    """Return the box around a grid in a projection."""
    span = native.extent.to_crs(crs).boundingbox
    if _crosses_antimeridian_or_pole(native):
        size = as_fine(native, crs).resolution.map(abs)
        if not max(span.span_x / size.x, span.span_y / size.y) < _TORN * sum(native.shape):
            raise GridError(
                f"the scenes cross the antimeridian or a pole, where {crs} is cut; choose a CRS that is continuous "
                "there, such as EPSG:3832 around 180 degrees, EPSG:3413 or EPSG:3031 around a pole"
            )
    return span


_TORN = 20  # factor by which a grid may be longer in another CRS; above it, the CRS is assumed to be cut there


def _parts(shape: Any) -> Sequence[Any]:
    return list(getattr(shape, "geoms", [shape]))


def _grid_around(
    natives: Sequence[GeoBox], crs: CRS, resolution: float | None, anchor: str | tuple[float, float]
) -> GeoBox:
    """Return a new grid around all scenes."""
    span = _box_around(natives, crs)
    if resolution is None:
        resolution = min(abs(_to_crs(native, crs, None).resolution.x) for native in natives)
    _check_size(natives[0], crs, resolution, span)
    try:
        at = anchor if isinstance(anchor, str) else xy_(*anchor)
        return GeoBox.from_bbox(span, crs, resolution=resolution, anchor=at)
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise ParameterError(f"anchor {anchor!r} is invalid ({error}); give 'edge', 'center', 'floating'") from error


def _check_size(native: GeoBox, crs: CRS, resolution: float, span: BoundingBox | None = None) -> None:
    """Raise if one pixel would be larger than the data."""
    span = _box_around([native], crs) if span is None else span
    if resolution > max(span.span_x, span.span_y):
        raise GridError(
            f"resolution {resolution:.10g} is larger than the whole data ({max(span.span_x, span.span_y):.6g} in the "
            f"units of {crs}, {_unit(crs)}); was it meant in other units?"
        )


_FINEST = 100  # factor by which pixels may be finer than the data's; above it, an error is raised


def _unit(crs: CRS | None) -> str:
    if crs is None:
        return "pixels"
    return "degrees" if crs.geographic else ", ".join(dict.fromkeys(crs.units)) or "its units"


def _coarser(native: GeoBox, natives: Sequence[GeoBox], headers: Sequence[Header], resolution: float) -> GeoBox:
    step = abs(native.resolution.x)
    if len(natives) == 1:
        for header in headers:
            for level in header.levels:
                candidate = level_geobox(header.geobox, level.shape)
                if header.geobox == native and abs(abs(candidate.resolution.x) / resolution - 1) < 0.01:
                    return candidate
    if resolution > step * max(native.shape):
        raise GridError(
            f"resolution {resolution:.10g} is larger than the whole grid ({step * max(native.shape)} in the units of "
            f"{native.crs}); was it meant in other units?"
        )
    return native.zoom_to(resolution=resolution)


def level_geobox(full: GeoBox, shape: tuple[int, int]) -> GeoBox:
    """Return the grid of a level of ``(y, x)`` pixels: the full resolution's extent, divided into these pixels."""
    if full.shape == shape:
        return full
    scale = Affine.scale(full.shape.x / shape[1], full.shape.y / shape[0])
    return GeoBox(shape, full.transform @ scale, full.crs)


def resolution_of(resolution: Any) -> float:
    """Return a pixel size from a number, text, or a pair as in odc-geo, datacube, rasterio and stackstac.

    >>> resolution_of((10, -10)), resolution_of("20")
    (10.0, 20.0)
    """
    if isinstance(resolution, Resolution):
        resolution = (resolution.x, resolution.y)
    given = resolution if isinstance(resolution, (tuple, list, np.ndarray)) else (resolution,)
    try:
        sides = [math.nan if isinstance(side, (bool, bytes)) else float(side) for side in given]
    except (TypeError, ValueError):
        sides = []
    size = max(sides, default=0.0)
    if not (0 < size < math.inf) or len(sides) > 2:
        raise ParameterError(f"resolution is {resolution!r}; it must be positive, a number in the units of the CRS")
    if any(abs(side) != size for side in sides):
        raise ParameterError(f"resolution is {resolution!r}, and pixels are square here; geobox= takes any grid")
    return size


def crop(geobox: GeoBox, region: BoundingBox | None) -> GeoBox:
    """Crop a geobox to the pixels that a bounding box touches."""
    if region is None:
        return geobox
    parts = [region]
    if region.crs is not None and region.crs.geographic and region.left < 180 < region.right and region.span_x < 360:
        # in two at the antimeridian
        west = BoundingBox(region.left, region.bottom, 180, region.top, region.crs)
        parts = [west, BoundingBox(-180, region.bottom, region.right - 360, region.top, region.crs)]
    found = [window for part in parts for window in _windows_in(geobox, part)]
    windows = [(y, x) for y, x in found if y.stop > y.start and x.stop > x.start]
    if not windows:
        here = geobox.extent.boundingbox if region.crs is None else _box_around([geobox], region.crs)
        raise GridError(
            f"bbox {tuple(round(v, 6) for v in region.bbox)} does not touch the scenes, which cover "
            f"{tuple(round(v, 6) for v in here.bbox)} in {region.crs}"
        )
    rows, columns = (
        slice(min(s.start for s in spans), max(s.stop for s in spans)) for spans in zip(*windows, strict=True)
    )
    if len(windows) > 1 and columns.stop - columns.start > 2 * sum(x.stop - x.start for _, x in windows):
        raise GridError(
            f"bbox {tuple(round(v, 6) for v in region.bbox)} crosses the antimeridian, where this grid in "
            f"{geobox.crs} ends; crop each side, or choose a grid that continues there, such as crs='EPSG:3832'"
        )
    return geobox[rows, columns]


def _windows_in(geobox: GeoBox, region: BoundingBox) -> Iterator[Window]:
    """Yield the pixels that a box touches, possibly none; in degrees it may be shifted by 360."""
    if geobox.crs is None and region.crs is not None:
        raise GridError(
            f"the scenes have no CRS, so they cannot be cropped to a bbox in {region.crs}; crop by pixels with "
            "cube.isel(), or write the CRS into the files (gdal_edit.py -a_srs EPSG:32631 file.tif)"
        )
    if geobox.crs is not None and region.crs is None:
        raise ParameterError("bbox is a BoundingBox without a CRS; give it one")
    shape = box(*region.bbox, region.crs)
    if region.crs != geobox.crs:
        # densified: otherwise the straight edge of a large box in degrees cuts off part of a projected grid
        shape = shape.segmented(max(region.span_x, region.span_y) / 512).to_crs(geobox.crs)
    if geobox.crs is None:
        columns, rows = zip(*(~geobox.transform @ point for point in shape.geom.exterior.coords), strict=True)
        window = tuple(
            slice(max(0, math.floor(min(at) + 1e-6)), min(n, math.ceil(max(at) - 1e-6)))
            for at, n in ((rows, geobox.shape.y), (columns, geobox.shape.x))
        )
        yield window[0], window[1]
        return
    for turn in (0, -360, 360) if geobox.crs.geographic else (0,):
        moved = Geometry(translate(shape.geom, turn), shape.crs)
        yield geobox.overlap_roi(geobox.enclosing(moved))


def bbox_of(bbox: Any) -> BoundingBox:
    """Return a bounding box with its CRS."""
    box_in_crs = bbox if isinstance(bbox, BoundingBox) else getattr(bbox, "boundingbox", None)
    if hasattr(bbox, "total_bounds"):
        if bbox.crs is None:
            raise ParameterError(f"bbox is a {type(bbox).__name__} without a CRS; give it one")
        box_in_crs = BoundingBox(*map(float, bbox.total_bounds), crs_of(bbox.crs))
    if isinstance(box_in_crs, BoundingBox):
        _check_corners(box_in_crs.bbox)
        return box_in_crs
    corners = _corners(bbox)
    west, south, east, north = corners
    if -180 <= east < west <= 180 and west - east > 180:
        corners = west, south, east + 360, north
    _check_corners(corners)
    if max(abs(west), abs(east)) > 360 or max(abs(south), abs(north)) > 90:
        raise ParameterError(
            f"bbox {corners} is not in degrees of longitude and latitude; for other coordinates pass "
            "odc.geo.geom.BoundingBox(left, bottom, right, top, crs=...)"
        )
    return BoundingBox(*corners, "EPSG:4326")


def _corners(bbox: Any) -> tuple[float, float, float, float]:
    """Return the corners of a box or geometry in degrees."""
    try:
        if isinstance(bbox, Mapping):
            values = Geometry(bbox.get("geometry", bbox), "EPSG:4326").boundingbox.bbox
        else:
            values = bbox.bounds if hasattr(bbox, "geom_type") else [] if isinstance(bbox, (str, bytes)) else bbox
        corners = tuple(float(value) for value in values)
    except Exception as error:  # shapely and invalid GeoJSON raise errors of many kinds
        raise ParameterError(
            f"bbox is {repr(bbox)[:100]}; it takes west, south, east, north in degrees, or a geometry"
        ) from error
    if len(corners) != 4:
        raise ParameterError(f"bbox has {len(corners)} values; it takes four: west, south, east, north")
    return corners[0], corners[1], corners[2], corners[3]


def _check_corners(corners: tuple[float, float, float, float]) -> None:
    west, south, east, north = corners
    if not (-math.inf < west < east < math.inf and -math.inf < south < north < math.inf):
        raise ParameterError(f"bbox {corners} is empty; the order is west, south, east, north")


def centre_longitude(geobox: GeoBox) -> float:
    """Return the longitude of the centre of a grid with a CRS, -180 to 180 degrees east."""
    x, y = geobox.transform @ (geobox.shape.x / 2, geobox.shape.y / 2)
    longitude, _ = geobox.crs.transformer_to_crs("EPSG:4326")(x, y)
    return float((longitude + 180) % 360 - 180)


def turned_to(longitude: Any, geobox: GeoBox) -> NDArray[np.float64]:
    """Return longitudes within 180 degrees of the middle of a grid in degrees, which may extend beyond 180."""
    away = np.asarray(longitude) - (geobox.boundingbox.left + geobox.boundingbox.span_x / 2)
    with np.errstate(invalid="ignore"):  # infinity where a projection is undefined
        return np.asarray(np.where(np.abs(away) <= 180, longitude, longitude - 360 * np.round(away / 360)), np.float64)


def footprint(geobox: GeoBox) -> Geometry:
    """Return the outline of a grid with a CRS in degrees, cut at the antimeridian and closed over the poles.

    In degrees, an outline around a pole is a line from one antimeridian to the other, and so is the pole.
    """
    pixels = geobox.boundary(65)
    x, y = geobox.transform @ (pixels[:, 0], pixels[:, 1])
    longitude, latitude = (np.asarray(v) for v in geobox.crs.transformer_to_crs("EPSG:4326")(x, y))
    known = np.isfinite(longitude) & np.isfinite(latitude)
    ring = np.stack([longitude[known], latitude[known]], axis=1)
    if len(ring) and (ring[0] != ring[-1]).any():
        ring = np.concatenate([ring, ring[:1]])
    at_pole = np.flatnonzero((np.abs(ring[:, 1]) > _POLE) & (not geobox.crs.geographic))
    if at_pole.size:  # a single point in a projection, with an arbitrary longitude
        ring = np.roll(ring[:-1], -int(at_pole[0]) - 1, axis=0)
        pole, ring = math.copysign(90, ring[-1, 1]), ring[np.abs(ring[:, 1]) <= _POLE]
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)
    around = round(float(ring[-1, 0] - ring[0, 0]) / 360)
    if not at_pole.size and around:
        pole = math.copysign(90, float(ring[:, 1].mean()))
    if at_pole.size or around:
        ring = np.concatenate([ring, [[ring[-1, 0], pole], [ring[0, 0], pole]]])
    shape = Polygon(ring)
    west, _, east, _ = shape.bounds
    turns = range(math.floor((west + 180) / 360), math.ceil((east + 180) / 360))
    parts = [translate(shape & shapely.box(360 * n - 180, -90, 360 * n + 180, 90), -360 * n) for n in turns]
    return Geometry(parts[0] if len(parts) == 1 else shapely.union_all(parts, grid_size=1e-9), "EPSG:4326")


_POLE = 90 - 1e-7  # degrees of latitude above which a point counts as the pole


def aligned_offset(source: GeoBox, target: GeoBox) -> tuple[int, int] | None:
    """Return the position of `target`'s origin in `source`'s pixels ``(y, x)`` if both are the same grid, else None.

    Same grid: equal CRS, equal pixel size, origins a whole number of pixels apart (to a thousandth of a pixel over the
    whole of `target`).
    """
    if source.crs != target.crs:
        return None
    to_source = ~source.transform @ target.transform
    linear = (to_source.a - 1, to_source.b, to_source.d, to_source.e - 1)
    if max(abs(v) for v in linear) * max(target.shape) > 1e-3:
        return None
    x, y = round(to_source.c), round(to_source.f)
    if abs(to_source.c - x) > 1e-3 or abs(to_source.f - y) > 1e-3:
        return None
    return y, x


def zoomed_offset(source: GeoBox, target: GeoBox) -> tuple[tuple[int, int], int] | None:
    """Return offset (in cut pixels) and factor, 2 to 64, where `target` cuts each pixel of `source`; else None."""
    if source.crs != target.crs or not target.resolution.x:
        return None
    factor = round(source.resolution.x / target.resolution.x)
    if not 2 <= factor <= 64:
        return None
    cut = GeoBox(
        (source.shape.y * factor, source.shape.x * factor), source.transform @ Affine.scale(1 / factor), source.crs
    )
    offset = aligned_offset(cut, target)
    return None if offset is None else (offset, factor)
