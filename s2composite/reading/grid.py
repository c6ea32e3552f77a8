"""Grid: the geobox that all scenes share, or the one that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, box

from s2composite.errors import GridError, ParameterError
from s2composite.reading.header import Header

__all__ = ["Window", "aligned_offset", "common_geobox", "crop", "level_geobox", "target_geobox"]

Window: TypeAlias = tuple[slice, slice]
"""``(y, x)`` slices of a geobox, start and stop always given."""

_SHOWN = 5
"""Differing scenes that a message names before it says how many more there are."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What has to be equal for scenes to be stacked without warping."""

    size: str
    crs: str
    origin: str
    resolution: str
    dtype: str
    bands: str
    nodata: str


def _facts(headers: Sequence[Header]) -> _Facts:
    first, transform = headers[0], headers[0].geobox.transform
    return _Facts(
        size=" + ".join(f"{h.geobox.shape.x} x {h.geobox.shape.y}" for h in headers),
        crs=str(first.geobox.crs),
        origin=f"({transform.c:.10g}, {transform.f:.10g})",
        resolution=f"({transform.a:.10g}, {transform.e:.10g})",
        dtype=" + ".join(h.dtype.name for h in headers),
        bands=" + ".join(str(h.bands) for h in headers),
        nodata=" + ".join(str(h.nodata) for h in headers),
    )


def common_geobox(headers: Mapping[str, Sequence[Header]], *, grid: bool) -> GeoBox:
    """Check that scenes can be stacked and return the geobox they share, the finest if a scene's files differ.

    Parameters
    ----------
    headers
        The headers of each scene's files, by scene id.
    grid
        Whether size, CRS, origin and resolution must agree too; not so when the caller names a target grid.

    Raises
    ------
    GridError
        Scenes differ from the majority; the message names each with what differs.
    """
    facts = {scene: _facts(hs) for scene, hs in headers.items()}
    fields = [f for f in _Facts.__dataclass_fields__ if grid or f in ("dtype", "bands")]
    key = {scene: tuple(getattr(f, name) for name in fields) for scene, f in facts.items()}
    usual = Counter(key.values()).most_common(1)[0][0]
    odd = [scene for scene in key if key[scene] != usual]
    if odd:
        raise GridError(_difference(odd, key, usual, fields, len(key)), scenes=tuple(odd))
    reference = next(iter(headers.values()))
    return min((h.geobox for h in reference), key=lambda g: abs(g.resolution.x))


def _difference(odd: list[str], key: Mapping[str, Any], usual: Any, fields: list[str], total: int) -> str:
    lines = []
    for scene in odd[:_SHOWN]:
        unlike = [f"{n} {k} instead of {u}" for n, k, u in zip(fields, key[scene], usual, strict=True) if k != u]
        lines.append(f"  {scene}: {', '.join(unlike)}")
    if len(odd) > _SHOWN:
        lines.append(f"  and {len(odd) - _SHOWN} more")
    cure = "leave them out, or name a target grid with geobox=, or crs= and resolution=, to have them warped to it"
    if all("dtype" in line or "bands" in line for line in lines):
        cure = "leave them out, or choose bands= that all scenes have in the same dtype"
    return f"{len(odd)} of {total} scenes differ from the others:\n" + "\n".join(lines) + f"\n{cure}"


def target_geobox(
    native: GeoBox,
    headers: Sequence[Header],
    *,
    crs: Any = None,
    resolution: float | None = None,
    geobox: GeoBox | None = None,
) -> GeoBox:
    """Return the grid that was asked for, or `native`.

    A `resolution` that is an overview's, within 1 %, gives that overview's own grid, so that it is read as it is:
    an overview of an odd-sized raster is stretched a little (10980 pixels at 1/16 are 687 of 159.8 m, not 160).
    """
    if geobox is not None:
        if crs is not None or resolution is not None:
            raise ParameterError("geobox= already says crs and resolution; give one or the other")
        return geobox
    if crs is None or native.crs == crs:
        return native if resolution is None else _coarser(native, headers, resolution)
    return native.to_crs(crs, resolution="auto" if resolution is None else resolution)


def _coarser(native: GeoBox, headers: Sequence[Header], resolution: float) -> GeoBox:
    if not resolution > 0:
        raise ParameterError(f"resolution is {resolution}; it must be positive, in the units of {native.crs}")
    step = abs(native.resolution.x)
    for header in headers:
        for level in range(len(header.levels)):
            candidate = level_geobox(header, level)
            if header.geobox == native and abs(abs(candidate.resolution.x) / resolution - 1) < 0.01:
                return candidate
    if resolution > step * max(native.shape):
        raise GridError(
            f"resolution {resolution} is larger than the whole grid ({step * max(native.shape)} in the units of "
            f"{native.crs}); was it meant in other units?"
        )
    return native.zoom_to(resolution=resolution)


def level_geobox(header: Header, level: int) -> GeoBox:
    """Return the grid of a header's level: the full resolution's extent, cut into that level's pixels."""
    full, shape = header.geobox, header.levels[level].shape
    if level == 0:
        return full
    scale = Affine.scale(full.shape.x / shape[1], full.shape.y / shape[0])
    return GeoBox(shape, full.transform @ scale, full.crs)


def crop(geobox: GeoBox, bbox: BoundingBox | Sequence[float] | None) -> GeoBox:
    """Cut a geobox down to the pixels that a bounding box touches.

    Parameters
    ----------
    bbox
        ``(west, south, east, north)`` in degrees of longitude and latitude, as in STAC, or an
        `odc.geo.geom.BoundingBox`, which names its own CRS.

    Raises
    ------
    GridError
        The box does not touch the grid; the message gives both extents.
    ParameterError
        Not four numbers in order, or not degrees.
    """
    if bbox is None:
        return geobox
    region = bbox if isinstance(bbox, BoundingBox) else _lonlat(bbox)
    # densified, or the straight edge of a large box in degrees cuts off a sliver of a projected grid
    shape = box(*region.bbox, region.crs).segmented(max(region.span_x, region.span_y) / 32).to_crs(geobox.crs)
    roi = geobox.overlap_roi(geobox.enclosing(shape))
    if any(s.stop <= s.start for s in roi):
        here = geobox.extent.boundingbox.to_crs(region.crs)
        raise GridError(
            f"bbox {tuple(round(v, 6) for v in region.bbox)} does not touch the scenes, which cover "
            f"{tuple(round(v, 6) for v in here.bbox)} in {region.crs}"
        )
    return geobox[roi]


def _lonlat(bbox: Sequence[float]) -> BoundingBox:
    if len(bbox) != 4:
        raise ParameterError(f"bbox has {len(bbox)} values; it takes four: west, south, east, north")
    west, south, east, north = (float(v) for v in bbox)
    if not (west < east and south < north):
        raise ParameterError(f"bbox {tuple(bbox)} is empty; the order is west, south, east, north")
    if max(abs(west), abs(east)) > 360 or max(abs(south), abs(north)) > 90:
        raise ParameterError(
            f"bbox {tuple(bbox)} is not in degrees of longitude and latitude; for other coordinates pass "
            "odc.geo.geom.BoundingBox(left, bottom, right, top, crs=...)"
        )
    return BoundingBox(west, south, east, north, "EPSG:4326")


def aligned_offset(source: GeoBox, target: GeoBox) -> tuple[int, int] | None:
    """Return where `target`'s origin lies in `source`'s pixels ``(y, x)`` if both are the same grid, else None.

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
