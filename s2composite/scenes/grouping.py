"""Grouping: reprocessed products, and products of one day that make one scene."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from s2composite.errors import SceneError, check_choice
from s2composite.scenes.dates import solar_day, utc_day
from s2composite.scenes.model import Scene, arc_around

__all__ = ["DUPLICATES", "GROUPINGS", "grouped", "level_of", "longitude", "newest"]

_Box: TypeAlias = tuple[float, float, float, float]

DUPLICATES = ("newest", "keep")
GROUPINGS = (None, "solar_day", "utc_day")

_SAME_PLACE = 0.01
"""Degrees by which the boxes of two products with the same pixels may differ."""

_LEVEL = re.compile(r"(?:[-_]|\d)l([12])[a-z]{0,2}(?:[-_]|$)", re.IGNORECASE)

_SAME_PASS = dt.timedelta(minutes=2)
"""Time within which products of a satellite and granule belong to the same pass."""


def newest(scenes: Sequence[Scene]) -> list[Scene]:
    """Leave out products that were reprocessed: of the same satellite, granule, pass and pixels.

    The one with the highest processing baseline is kept, or of those the one made last. The halves of a split pass have
    different boxes, so both stay; scenes without baseline and processing time all stay.

    Parameters
    ----------
    scenes
        In order of time.

    Returns
    -------
    list of Scene
        In the same order.
    """
    by_place: dict[tuple[str, str | None, str | None], list[Scene]] = {}
    for scene in scenes:
        if scene.granule is not None and (scene.baseline or scene.made):
            by_place.setdefault((scene.granule, scene.platform, level_of(scene)), []).append(scene)
    replaced: set[str] = set()
    for rivals in by_place.values():
        for i, one in enumerate(rivals):
            for other in rivals[i + 1 :]:
                if other.time - one.time > _SAME_PASS:
                    break
                if _same_pixels(one, other) and _age(one) != _age(other):
                    replaced.add(min(one, other, key=_age).id)
    return [scene for scene in scenes if scene.id not in replaced]


def level_of(scene: Scene) -> str | None:
    """Return the processing level that the collection of a scene names, ``"1"`` or ``"2"``; None if it names none.

    >>> import datetime as dt
    >>> from s2composite.scenes.model import Asset
    >>> time, files = dt.datetime(2023, 7, 9, tzinfo=dt.UTC), (Asset("B04", "a.tif"),)
    >>> level_of(Scene("a", time, files, collection="sentinel-2-l2a"))
    '2'
    """
    found = _LEVEL.search(scene.collection or "")
    return found[1] if found else None


def _age(scene: Scene) -> tuple[str, dt.datetime]:
    return scene.baseline or "", scene.made or dt.datetime.min.replace(tzinfo=dt.UTC)


def _same_pixels(one: Scene, other: Scene) -> bool:
    if one.bbox is None or other.bbox is None:
        # Without boxes, halves of a pass and reprocessed products look alike, but halves share their baseline.
        return (one.baseline or "") != (other.baseline or "") and None not in (one.baseline, other.baseline)
    return max(abs(a - b) for a, b in zip(one.bbox, other.bbox, strict=True)) < _SAME_PLACE


def grouped(scenes: Sequence[Scene], by: str | None) -> list[Scene]:
    """Fuse the scenes of a day: adjacent granules, and the halves of a split pass.

    Parameters
    ----------
    scenes
        In order of time, then id. Where several of a day have a valid pixel, the first of them wins.
    by
        ``"solar_day"``, ``"utc_day"``, or None: every product stays a scene of its own.

    Raises
    ------
    SceneError
        The solar day of a scene is wanted, but its position is unknown.

    Examples
    --------
    >>> from s2composite.scenes.listing import find_scenes
    >>> passes = ("31TCJ_20230709T104629", "31TDJ_20230709T104629", "31TCJ_20230714T104621")
    >>> names = [f"gs://bucket/T{name}_TCI.tif" for name in passes]
    >>> [len(scene.parts) for scene in grouped(find_scenes(names), "solar_day")]
    [2, 1]
    """
    check_choice("groupby", by, GROUPINGS)
    if by is None:
        return list(scenes)
    days: dict[dt.date, list[Scene]] = {}
    for scene in scenes:
        day = utc_day(scene.time) if by == "utc_day" else solar_day(scene.time, longitude(scene))
        days.setdefault(day, []).append(scene)
    return [_fused(members) for members in days.values()]


def longitude(scene: Scene) -> float:
    """Return the longitude of a scene in degrees: the middle of its box, or else of its granule's UTM zone.

    The box of a granule that crosses the antimeridian is often given as one around the globe.
    """
    if scene.bbox is not None and (scene.granule is None or scene.bbox[2] - scene.bbox[0] < 180):
        west, _, east, _ = scene.bbox
        middle = (west + east + (360 if east < west else 0)) / 2
        return (middle + 180) % 360 - 180
    if scene.granule is not None:
        return int(scene.granule[:2]) * 6 - 183
    raise SceneError(
        f"scene {scene.id}: its position is unknown, and so is its solar day; use groupby='utc_day'",
        scene=scene.id,
    )


def _fused(members: Sequence[Scene]) -> Scene:
    first = members[0]
    if len(members) == 1:
        return first

    granules = "+".join(dict.fromkeys(member.granule for member in members if member.granule))
    return replace(
        first,
        id=f"{first.id}+{len(members) - 1}",
        assets=(),
        granule=granules or None,
        orbit=_shared([member.orbit for member in members]),
        baseline=_shared([member.baseline for member in members]),
        platform=_shared([member.platform for member in members]),
        collection=_shared([member.collection for member in members]),
        sensor=_shared([member.sensor for member in members]),
        cloud_cover=_mean([member.cloud_cover for member in members]),
        bbox=_box([member.bbox for member in members]),
        members=tuple(members),
    )


_T = TypeVar("_T")


def _shared(values: Sequence[_T]) -> _T | None:
    """Return the common value, None if they differ."""
    return values[0] if len(set(values)) == 1 else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are known, None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _box(boxes: Sequence[_Box | None]) -> _Box | None:
    """Return the box around all boxes; None if one is unknown."""
    known = [box for box in boxes if box is not None]
    if len(known) < len(boxes):
        return None
    west, south, east, north = zip(*known, strict=True)
    left, right = arc_around(zip(west, east, strict=True))
    return left, min(south), right - 360 if right > 180 else right, max(north)
