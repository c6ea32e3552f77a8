"""From what a user has (paths, directories, globs, URLs, STAC) to scenes in order of time."""

from __future__ import annotations

import datetime as dt
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from s2composite.errors import ParameterError, SceneError, SourceError, check_choice
from s2composite.geotiff.zarr_array import split_store
from s2composite.scenes.dates import Moment, date_range, solar_day, utc_day, utc_time
from s2composite.scenes.model import Asset, Scene, arc_around
from s2composite.scenes.names import ParsedName, asset_bands, parse_name
from s2composite.scenes.products import level_of, named_values, sensor_of
from s2composite.scenes.stac import (
    RASTER_SUFFIXES,
    is_stac,
    is_stac_file,
    items_in,
    items_of,
    scenes_of_items,
    scenes_of_stores,
)
from s2composite.storage.files import absolute, display, filesystem, in_archive, is_remote, storage_errors

__all__ = [
    "DUPLICATES", "GROUPINGS", "SceneSource", "find_scenes", "grouped", "items_of_source", "longitude", "newest",
]  # fmt: skip

DUPLICATES = ("newest", "keep")
GROUPINGS = (None, "solar_day", "utc_day")

# Where scenes can be found: a path or URL, a `Scene`, STAC in any form, or several of these.
SceneSource: TypeAlias = Any

_NO_ACQUISITION = ("MSK_", ".")  # prefixes of masks in .SAFE products, and of hidden files


def find_scenes(
    source: SceneSource,
    *,
    pattern: str | None = None,
    times: Sequence[dt.date | str] | None = None,
    datetime: Moment | Sequence[Moment] = None,
    duplicates: str = "newest",
    groupby: str | None = None,
    alternate: str | None = None,
) -> tuple[Scene, ...]:
    """Find scenes by the names of files, or in a catalogue; no raster is opened.

    Parameters
    ----------
    source
        A file, a directory, a glob (``"data/*_TCI.tif"``, ``"s3://bucket/31/T/CJ/2023/*/*/TCI.tif"``), a prefix on
        ``gs://``, ``s3://`` or ``https://`` (a page with links), a `Scene`, or several of these. In a directory or
        prefix the rasters (``*.tif``, ``*.tiff``, ``*.jp2``) are taken; if there are none, those in the directories
        below it (not on ``https://``). Public buckets need no credentials.
        Or a Sentinel-2 product in Zarr, or a group in it: ``"S2A_MSIL2A_....zarr"`` at any of these places, or several
        in a directory or glob. Their metadata say which bands they have.
        Or STAC: a pystac Item, ItemCollection or Collection, their JSON files or dictionaries, a directory of item
        files, a stac-geoparquet file, a search of pystac-client, or a search to be made, ``{"url", "collections",
        "bbox", "datetime", "query"}``. Searches and stac-geoparquet need ``s2composite[stac]``.
    pattern
        Regular expression with named groups, for names in no known form; see `s2composite.scenes.names.parse_name`.
    times
        Acquisition time of each file, in the order of the files (sorted by name for a directory or glob), for names
        that do not give it.
    datetime
        Which scenes to keep: ``"2023"``, ``"2023-06"``, ``"2023-06-15"``, an interval ``"2023-06-01/2023-08-31"``
        or ``"2023-06-01/.."``, both ends included, or a pair of dates.
    duplicates
        ``"newest"``: of products with the same pass, satellite and pixels only the one with the highest processing
        baseline is kept, or of those the one made last. ``"keep"``: all are.
    groupby
        ``"solar_day"`` fuses the products of a day into one scene: adjacent granules, and the halves of a pass that was
        split. Where several cover a pixel, `composite` takes the first, by time and then id, whose observation passes
        its rules, with the masks of that product. The values of the cube itself, which knows no rules, are those of the
        first product that has all bands there, or else of the first that has any. The day is UTC shifted by four
        minutes per degree of longitude; ``"utc_day"`` does not shift. None: every product is a scene of its own.
    alternate
        Which of the locations that a catalogue gives for a file is read: a key of the alternate-assets extension, such
        as ``"https"`` for the Copernicus Data Space, whose own hrefs are ``s3://``. Assets without that key, and all of
        them for None, are read from their own href.

    Returns
    -------
    tuple[Scene, ...]
        Sorted by time, then id. Files whose names differ only in the asset (``_TCI``, ``_B04_10m``, ``_SCL`` ...) make
        one scene, even in different directories; of an asset in several resolutions the finest is kept.

    Raises
    ------
    SourceError
        Nothing matches, or it cannot be listed.
    SceneError
        A name gives no date, or two files are the same asset of the same scene.
    ParameterError
        `datetime`, `pattern` or `times` is malformed.

    Examples
    --------
    >>> urls = ["gs://tb/T31TCJ_20230709T104629_TCI.tif", "gs://tb/T31TCJ_20230704T104621_TCI.tif"]
    >>> [f"{scene.granule} {scene.time:%Y-%m-%d}" for scene in find_scenes(urls)]
    ['31TCJ 2023-07-04', '31TCJ 2023-07-09']
    """
    for name, value in (("pattern", pattern), ("alternate", alternate)):
        if not isinstance(value, str | None):
            raise ParameterError(f"{name} is {value!r}; it is text")
    wanted = None if datetime is None else date_range(datetime)
    check_choice("duplicates", duplicates, DUPLICATES)
    scenes, files = _scenes_and_files(source, alternate)
    if times is not None and (isinstance(times, (str, bytes)) or not isinstance(times, Iterable)):
        raise ParameterError(f"times is {times!r}; it is a list of dates, one for each file")
    known = [None] * len(files) if times is None else [utc_time(time) for time in times]
    if len(known) != len(files):
        raise ParameterError(
            f"times has {len(known)} entries for {len(files)} files; give one for each, in their order"
        )
    # Files whose names differ only in the asset make one scene.
    files_of_scenes: dict[str, list[tuple[ParsedName, str]]] = {}
    for href, time in zip(files, known, strict=True):
        parsed = parse_name(href, pattern, time=time)
        files_of_scenes.setdefault(parsed.scene_id, []).append((parsed, href))
    scenes += map(_scene_of_files, files_of_scenes.values())
    ordered = sorted(scenes, key=lambda scene: (scene.time, scene.id))
    seen: set[str] = set()
    for scene in ordered:
        if scene.id in seen:
            raise SceneError(f"scene {scene.id} is given twice; ids must be unique, so leave one out", scene=scene.id)
        seen.add(scene.id)
    if duplicates == "newest":
        ordered = newest(ordered)
    selected = tuple(scene for scene in ordered if wanted is None or scene.time in wanted)
    if not selected:
        span = f"{ordered[0].time:%Y-%m-%d} to {ordered[-1].time:%Y-%m-%d}"
        raise SourceError(f"none of the {len(ordered)} scenes is within {wanted}: they range from {span}")
    return tuple(grouped(selected, groupby))


def _parts_of(source: SceneSource) -> list[Any]:
    if isinstance(source, (str, os.PathLike, Scene)) or is_stac(source):
        source = [source]
    if not isinstance(source, Iterable) or isinstance(source, (bytes, io.IOBase)):
        raise ParameterError(f"the source is {source!r}; give a path, directory, glob, URL, Scene or a list of these")
    parts = list(source)
    for part in parts:
        if not (is_stac(part) or isinstance(part, Scene) or (isinstance(part, (str, os.PathLike)) and os.fspath(part))):
            raise ParameterError(f"{part!r} is not a source; give a path, directory, glob, URL or Scene")
    if not parts:
        raise SourceError("the source is an empty list; give at least one file, directory, glob, URL or Scene")
    return parts


def _scenes_and_files(source: SceneSource, alternate: str | None) -> tuple[list[Scene], list[str]]:
    """Return the scenes in a source and its catalogues, and the rasters that its paths, globs and URLs stand for."""
    parts = _parts_of(source)
    hrefs = [part if isinstance(part, Scene) else absolute(part) for part in parts if not is_stac(part)]
    of_items = scenes_of_items([item for part in parts if is_stac(part) for item in items_of(part)], alternate)
    scenes, files = list[Scene](), dict[str, None]()
    for href in hrefs:
        if isinstance(href, Scene):
            scenes.append(href)
            continue
        listed = _files_of(href)
        if is_stac_file(listed[0]) and split_store(listed[0]) is None:
            scenes += scenes_of_items([item for file in listed for item in items_in(file)], alternate)
        else:
            files |= dict.fromkeys(listed)
    stores = [href for href in files if split_store(href) is not None]
    return scenes + scenes_of_stores(stores) + of_items, [href for href in files if href not in stores]


def items_of_source(source: SceneSource) -> list[Any]:
    """Return the STAC items in a source that holds nothing else, as dictionaries."""
    items: list[Any] = []
    for part in _parts_of(source):
        if is_stac(part):
            items += items_of(part)
            continue
        files = _files_of(absolute(part)) if isinstance(part, (str, os.PathLike)) else []
        if not files or not all(map(is_stac_file, files)):
            raise ParameterError(f"{part!r} is not STAC; give items, their files or a search")
        items += [item for file in files for item in items_in(file)]
    return items


# --- files ----------------------------------------------------------------------------------------------------------


def _files_of(source: str) -> list[str]:
    """Return the rasters that a path, glob or URL stands for, sorted by name; item files where there are none."""
    is_glob = _is_glob(source)
    if in_archive(source) or (
        not is_glob
        and (is_stac_file(source) or split_store(source) is not None or (is_remote(source) and _is_raster(source)))
    ):
        return [source]
    with storage_errors(SourceError, f"cannot list {display(source)}", source, href=display(source)):
        fs, path = filesystem(source)
        any_file = False
        if is_glob:
            entries = list(fs.glob(path, detail=True).values())
            # A glob that names an extension (*.img) takes any file that it matches.
            _, dot, extension = path.rpartition("/")[2].rpartition(".")
            any_file = bool(dot) and extension.isalnum()
        else:
            try:
                entries = fs.ls(path, detail=True)
            except FileNotFoundError:
                # An object store has no directories: what names begin with is one, too.
                entries = [] if _has_real_directories(fs) else list(fs.glob(f"{path}*", detail=True).values())
                if not entries:
                    raise
            if [entry["name"] for entry in entries if entry["type"] == "file"] == [path]:
                return [source]
        rasters = _select_files(fs, entries, source, any_file=any_file)
    if rasters:
        return rasters
    kinds, shown = ", ".join(f"*{suffix}" for suffix in RASTER_SUFFIXES), display(source)
    message = f"there are no rasters ({kinds}) in {shown} or below it; give the directory they are in, or a glob"
    if is_glob:
        message = f"no file matches {shown}; correct the path, or the glob"
    elif source.startswith("http"):
        message = (
            f"{shown} shows no links to rasters ({kinds}); give the page that does, the files' own URLs, or "
            "for a bucket its gs:// or s3:// URL"
        )
    raise SourceError(message, href=shown)


def _select_files(fs: Any, entries: Sequence[dict[str, Any]], source: str, *, any_file: bool) -> list[str]:
    """Return the rasters (or all files) among the entries of a listing; if there are none, those in its directories."""
    files, folders, stores = [], [], []
    for entry in entries:
        name, kind = entry["name"], entry["type"]
        if entry.get("islink"):  # what it leads to
            kind = "directory" if os.path.isdir(name) else "file"  # noqa: PTH112 - names are text here
        if kind == "directory" and display(name).rstrip("/").lower().endswith(".zarr"):
            stores.append(name.rstrip("/"))
        elif kind == "directory":
            folders.append(name)
        elif kind == "file" and _is_asset(name):
            files.append(name)
    selected = [name for name in files if any_file or _is_raster(name)] + stores
    if not selected and "http" not in fs.protocol:
        # item files count where there are no rasters beside them
        selected = [name for name in files if is_stac_file(name)]
    if not selected and "http" not in fs.protocol:
        below = [name for folder in folders for name in fs.find(folder) if _is_asset(name) and _is_raster(name)]
        # Of files in directories below one that has files itself only the upper ones count.
        upper = {name.rpartition("/")[0] for name in below}
        selected = [name for name in below if not any(str(p) in upper for p in PurePosixPath(name).parent.parents)]
    scheme = "" if _has_real_directories(fs) else f"{source.partition('://')[0]}://"
    return sorted(scheme + name for name in selected)


def _has_real_directories(fs: Any) -> bool:
    """Return whether it is a disk or a web server, not an object store."""
    return "file" in fs.protocol or "http" in fs.protocol


def _is_raster(name: str) -> bool:
    return display(name).lower().endswith(RASTER_SUFFIXES)


def _is_asset(name: str) -> bool:
    return not name.rpartition("/")[2].startswith(_NO_ACQUISITION)


def _is_glob(source: str) -> bool:
    if is_remote(source):
        return any(sign in source for sign in ("*" if source.startswith("http") else "*?["))
    return any(sign in source for sign in "*?[") and not os.path.lexists(source)


# --- the scenes of files --------------------------------------------------------------------------------------------


def _scene_of_files(members: Sequence[tuple[ParsedName, str]]) -> Scene:
    first, href = members[0]
    for name, other in members:
        if name.time != first.time:
            raise SceneError(
                f"{display(href)} and {display(other)} are the same scene by name, {first.scene_id}, but not by time "
                f"({first.time} and {name.time}); give them the same time, or name the scene with pattern= (group id)",
                scene=first.scene_id,
            )

    def first_known(detail: str) -> Any:
        return next((getattr(name, detail) for name, _ in members if getattr(name, detail)), None)

    baseline = first_known("baseline")
    sensor = sensor_of(first.scene_id) or sensor_of(display(href).rpartition("/")[2])
    assets = []  # each once, by name, in its finest resolution
    ordered = sorted(members, key=lambda member: (member[0].asset, member[0].resolution or 0))
    for asset, group in groupby(ordered, key=lambda member: member[0].asset):
        (name, finest), *others = group
        for rival, other in others:
            if rival.resolution == name.resolution or name.resolution is None:
                raise SceneError(
                    f"{display(finest)} and {display(other)} are both the asset {asset} of scene {name.scene_id}; "
                    "leave one out, for example with a glob, or tell them apart with pattern= (group id)",
                    scene=name.scene_id,
                )
        values = named_values(asset, baseline, sensor, name.scene_id)
        assets.append(Asset(asset, finest, asset_bands(asset), values=values))
    return Scene(
        id=first.scene_id,
        time=first.time,
        assets=tuple(assets),
        granule=first_known("granule"),
        orbit=first_known("orbit"),
        baseline=baseline,
        platform=first_known("platform"),
        sensor=sensor,
    )


# --- products that were reprocessed, and scenes of a day --------------------------------------------------------------

_SAME_PLACE = 0.01  # degrees by which the boxes of two products with the same pixels may differ
_SAME_PASS = dt.timedelta(minutes=2)  # within which products of a satellite and granule belong to the same pass


def newest(scenes: Sequence[Scene]) -> list[Scene]:
    """Leave out products that were reprocessed: of the same satellite, granule, pass and pixels; `scenes` are in order.

    The one with the highest processing baseline is kept, or of those the one made last. The halves of a split pass have
    different boxes, so both stay; scenes without baseline and processing time all stay.
    """

    def age(scene: Scene) -> tuple[str, dt.datetime]:
        return scene.baseline or "", scene.made or dt.datetime.min.replace(tzinfo=dt.UTC)

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
                if one.bbox is None or other.bbox is None:
                    # Without boxes, halves of a pass and reprocessed products look alike, but halves share a baseline.
                    same_pixels = None not in (one.baseline, other.baseline) and one.baseline != other.baseline
                else:
                    differences = (abs(a - b) for a, b in zip(one.bbox, other.bbox, strict=True))
                    same_pixels = max(differences) < _SAME_PLACE
                if same_pixels and age(one) != age(other):
                    replaced.add(min(one, other, key=age).id)
    return [scene for scene in scenes if scene.id not in replaced]


def grouped(scenes: Sequence[Scene], by: str | None) -> list[Scene]:
    """Fuse the scenes of a day: adjacent granules, and the halves of a split pass.

    The scenes are in order of time, then id: where several of a day have a valid pixel, the first of them wins. Without
    `by` every product stays a scene of its own. A SceneError says that the position of a scene, and so its solar day,
    is unknown.
    """
    check_choice("groupby", by, GROUPINGS)
    if by is None:
        return list(scenes)
    days: dict[dt.date, list[Scene]] = {}
    for scene in scenes:
        day = utc_day(scene.time) if by == "utc_day" else solar_day(scene.time, longitude(scene))
        days.setdefault(day, []).append(scene)
    fused = []
    for members in days.values():
        first = members[0]
        if len(members) == 1:
            fused.append(first)
            continue
        same: dict[str, Any] = {}
        for name in ("orbit", "baseline", "platform", "collection", "sensor"):
            values = {getattr(member, name) for member in members}
            same[name] = values.pop() if len(values) == 1 else None
        granules = "+".join(dict.fromkeys(member.granule for member in members if member.granule))
        clouds = [member.cloud_cover for member in members if member.cloud_cover is not None]
        boxes = [member.bbox for member in members if member.bbox is not None]
        bbox = None
        if len(boxes) == len(members):
            west, south, east, north = zip(*boxes, strict=True)
            left, right = arc_around(zip(west, east, strict=True))
            bbox = left, min(south), right - 360 if right > 180 else right, max(north)
        fused.append(
            replace(
                first,
                id=f"{first.id}+{len(members) - 1}",
                assets=(),
                granule=granules or None,
                **same,
                cloud_cover=sum(clouds) / len(clouds) if clouds else None,
                bbox=bbox,
                members=tuple(members),
            )
        )
    return fused


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
