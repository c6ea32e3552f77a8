"""Listing: from what a user has (paths, directories, globs, URLs, STAC) to scenes in order of time."""

from __future__ import annotations

import datetime as dt
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from s2composite.errors import ParameterError, S2CompositeError, SceneError, SourceError, check_choice
from s2composite.scenes.dates import Moment, date_range, utc_time
from s2composite.scenes.grouping import DUPLICATES, grouped, newest
from s2composite.scenes.items import is_stac, is_stac_file, items_in, items_of, with_alternate
from s2composite.scenes.model import Asset, Scene
from s2composite.scenes.names import NameFacts, asset_bands, parse_name, sensor_of
from s2composite.scenes.stac import scene_of_item
from s2composite.scenes.storage import absolute, display, filesystem, in_archive, is_remote, reason
from s2composite.scenes.values import named_values

__all__ = ["SceneSource", "find_scenes", "items_of_source"]

SceneSource: TypeAlias = Any
"""Where scenes can be found: a path or URL, a `Scene`, STAC in any form, or several of these."""

_RASTERS = (".tif", ".tiff", ".jp2")
_NO_ACQUISITION = ("MSK_", ".")
"""Prefixes of rasters that are not assets of a scene: masks in .SAFE products, and hidden files."""


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
    items = [found for item in _items(source, alternate) for found in _expanded(item, alternate)]
    files = list(dict.fromkeys(item for item in items if isinstance(item, str)))
    scenes = [item for item in items if isinstance(item, Scene)] + _scenes_of(files, pattern, times)
    ordered = sorted(scenes, key=lambda scene: (scene.time, scene.id))
    _check_unique(ordered)
    if duplicates == "newest":
        ordered = newest(ordered)
    selected = tuple(scene for scene in ordered if wanted is None or scene.time in wanted)
    if not selected:
        span = f"{ordered[0].time:%Y-%m-%d} to {ordered[-1].time:%Y-%m-%d}"
        raise SourceError(f"none of the {len(ordered)} scenes is within {wanted}: they range from {span}")
    return tuple(grouped(selected, groupby))


def _items(source: SceneSource, alternate: str | None) -> list[str | Scene]:
    """Return the parts of a source: scenes, and absolute paths or URLs."""
    if isinstance(source, (str, os.PathLike, Scene)) or is_stac(source):
        source = [source]
    if not isinstance(source, Iterable) or isinstance(source, (bytes, io.IOBase)):
        raise ParameterError(f"the source is {source!r}; give a path, directory, glob, URL, Scene or a list of these")
    parts = list(source)
    items: list[str | Scene] = [_item(part) for part in parts if not is_stac(part)]
    # searches overlap: an item that two of them find is one
    items += _scenes_of_items([item for part in parts if is_stac(part) for item in items_of(part)], alternate)
    if not items:
        raise SourceError("the source is an empty list; give at least one file, directory, glob, URL or Scene")
    return items


def _item(part: object) -> str | Scene:
    if isinstance(part, Scene):
        return part
    if not isinstance(part, (str, os.PathLike)) or not os.fspath(part):
        raise ParameterError(f"{part!r} is not a source; give a path, directory, glob, URL or Scene")
    return absolute(part)


def items_of_source(source: SceneSource) -> list[Any]:
    """Return the STAC items in a source that holds nothing else, as dictionaries.

    Raises
    ------
    ParameterError
        It holds rasters or scenes.
    """
    parts = [source] if isinstance(source, (str, os.PathLike, Scene)) or is_stac(source) else list(source)
    found: list[Any] = []
    for part in parts:
        if is_stac(part):
            found += items_of(part)
            continue
        files = [absolute(part)] if isinstance(part, (str, os.PathLike)) else []
        listed = [file for path in files for file in ([path] if is_stac_file(path) else _rasters(path))]
        if not listed or not all(map(is_stac_file, listed)):
            raise ParameterError(f"{part!r} is not STAC; give items, their files or a search")
        found += [item for file in listed for item in items_in(file)]
    return found


def _scenes_of_items(items: Sequence[Any], alternate: str | None) -> list[Scene]:
    """Return the scenes of STAC items; one that a search gives twice is one."""
    return list(dict.fromkeys(map(scene_of_item, with_alternate(items, alternate))))


def _expanded(item: str | Scene, alternate: str | None) -> list[str | Scene]:
    """Return the rasters or scenes that a path, glob or URL stands for."""
    if isinstance(item, Scene):
        return [item]
    if is_stac_file(item) and not _is_glob(item):
        return [*_scenes_of_items(items_in(item), alternate)]
    found = _rasters(item)
    if not is_stac_file(found[0]):
        return [*found]
    return [*_scenes_of_items([one for file in found for one in items_in(file)], alternate)]


# --- files ----------------------------------------------------------------------------------------------------------


def _rasters(source: str) -> list[str]:
    """Return the rasters that a path, glob or URL stands for, sorted by name."""
    if in_archive(source) or (is_remote(source) and _is_raster(source) and not _is_glob(source)):
        return [source]
    try:
        found = _listed(source)
    except S2CompositeError:
        raise
    except Exception as error:  # noqa: BLE001 - the backends of fsspec share no class of errors
        raise SourceError(f"cannot list {display(source)}: {reason(source, error)}", href=display(source)) from None
    if not found:
        raise SourceError(_nothing(source), href=display(source))
    return found


def _listed(source: str) -> list[str]:
    fs, path = filesystem(source)
    if _is_glob(source):
        entries = list(fs.glob(path, detail=True).values())
        return _chosen(fs, entries, source, any_file=_names_extension(path))
    entries = _directory(fs, path)
    if [entry["name"] for entry in entries if entry["type"] == "file"] == [path]:
        return [source]
    return _chosen(fs, entries, source)


def _directory(fs: Any, path: str) -> list[dict[str, Any]]:
    """Return the entries of a directory; on an object store without it, those whose names begin with its path."""
    try:
        entries: list[dict[str, Any]] = fs.ls(path, detail=True)
    except FileNotFoundError:
        entries = [] if _has_real_directories(fs) else list(fs.glob(f"{path}*", detail=True).values())
        if not entries:
            raise
    return entries


def _chosen(fs: Any, entries: Sequence[dict[str, Any]], source: str, *, any_file: bool = False) -> list[str]:
    """Return the rasters (or all files) among the entries of a listing; if there are none, those in its directories."""
    kinds = [(entry["name"], _kind(entry)) for entry in entries]
    found = [name for name, kind in kinds if kind == "file" and _is_asset(name) and (any_file or _is_raster(name))]
    if not found and "http" not in fs.protocol:
        # item files count where there are no rasters beside them
        found = [name for name, kind in kinds if kind == "file" and _is_asset(name) and is_stac_file(name)]
    if not found and "http" not in fs.protocol:
        below = [name for folder, kind in kinds if kind == "directory" for name in fs.find(folder)]
        found = _topmost([name for name in below if _is_asset(name) and _is_raster(name)])
    scheme = "" if _has_real_directories(fs) else f"{source.partition('://')[0]}://"
    return sorted(scheme + name for name in found)


def _kind(entry: dict[str, Any]) -> str:
    """Return ``"file"`` or ``"directory"``; for a link, what it leads to."""
    if not entry.get("islink"):
        return str(entry["type"])
    return "directory" if os.path.isdir(entry["name"]) else "file"  # noqa: PTH112 - names are text here


def _topmost(names: Sequence[str]) -> list[str]:
    """Leave out files in directories below one that has files itself: only the upper one counts."""
    folders = {name.rpartition("/")[0] for name in names}
    return [name for name in names if not any(str(p) in folders for p in PurePosixPath(name).parent.parents)]


def _has_real_directories(fs: Any) -> bool:
    """Return whether it is a disk or a web server, not an object store."""
    return "file" in fs.protocol or "http" in fs.protocol


def _is_raster(name: str) -> bool:
    return display(name).lower().endswith(_RASTERS)


def _is_asset(name: str) -> bool:
    return not name.rpartition("/")[2].startswith(_NO_ACQUISITION)


def _is_glob(source: str) -> bool:
    if is_remote(source):
        return any(sign in source for sign in ("*" if source.startswith("http") else "*?["))
    return any(sign in source for sign in "*?[") and not os.path.lexists(source)


def _names_extension(pattern: str) -> bool:
    """Return whether a glob names an extension (``*.img``), so that any file it matches is taken."""
    extension = pattern.rpartition("/")[2].rpartition(".")
    return bool(extension[1]) and extension[2].isalnum()


def _nothing(source: str) -> str:
    if _is_glob(source):
        return f"no file matches {display(source)}; correct the path, or the glob"
    kinds = ", ".join(f"*{suffix}" for suffix in _RASTERS)
    if source.startswith("http"):
        return (
            f"{display(source)} shows no links to rasters ({kinds}); give the page that does, the files' own URLs, or "
            "for a bucket its gs:// or s3:// URL"
        )
    return f"there are no rasters ({kinds}) in {display(source)} or below it; give the directory they are in, or a glob"


# --- scenes ---------------------------------------------------------------------------------------------------------


def _scenes_of(files: Sequence[str], pattern: str | None, times: Sequence[dt.date | str] | None) -> list[Scene]:
    """Group files into scenes by what their names tell."""
    if times is not None and (isinstance(times, (str, bytes)) or not isinstance(times, Iterable)):
        raise ParameterError(f"times is {times!r}; it is a list of dates, one for each file")
    known = [None] * len(files) if times is None else [utc_time(time) for time in times]
    if len(known) != len(files):
        raise ParameterError(
            f"times has {len(known)} entries for {len(files)} files; give one for each, in their order"
        )
    parsed = [(parse_name(href, pattern, time=time), href) for href, time in zip(files, known, strict=True)]
    parsed.sort(key=lambda member: member[0].scene_id)
    return [_scene(list(members)) for _, members in groupby(parsed, key=lambda member: member[0].scene_id)]


def _scene(members: Sequence[tuple[NameFacts, str]]) -> Scene:
    """Return the scene that the files of one scene id make."""
    first, href = members[0]
    for facts, other in members:
        if facts.time != first.time:
            raise SceneError(
                f"{display(href)} and {display(other)} are the same scene by name, {first.scene_id}, but not by time "
                f"({first.time} and {facts.time}); give them the same time, or name the scene with pattern= (group id)",
                scene=first.scene_id,
            )
    baseline = next((facts.baseline for facts, _ in members if facts.baseline), None)
    sensor = sensor_of(first.scene_id) or sensor_of(display(href).rpartition("/")[2])
    return Scene(
        id=first.scene_id,
        time=first.time,
        assets=tuple(_assets(members, baseline, sensor)),
        granule=next((facts.granule for facts, _ in members if facts.granule), None),
        orbit=next((facts.orbit for facts, _ in members if facts.orbit), None),
        baseline=baseline,
        platform=next((facts.platform for facts, _ in members if facts.platform), None),
        sensor=sensor,
    )


def _assets(members: Sequence[tuple[NameFacts, str]], baseline: str | None, sensor: str | None) -> Iterator[Asset]:
    """Yield each asset of a scene once, by name, in its finest resolution."""
    ordered = sorted(members, key=lambda member: (member[0].asset, member[0].resolution or 0))
    for name, group in groupby(ordered, key=lambda member: member[0].asset):
        (facts, href), *others = group
        for rival, other in others:
            if rival.resolution == facts.resolution or facts.resolution is None:
                raise SceneError(
                    f"{display(href)} and {display(other)} are both the asset {name} of scene {facts.scene_id}; "
                    "leave one out, for example with a glob, or tell them apart with pattern= (group id)",
                    scene=facts.scene_id,
                )
        values = named_values(name, baseline, sensor, facts.scene_id)
        yield Asset(name, href, asset_bands(name), values=values)


def _check_unique(scenes: Sequence[Scene]) -> None:
    seen: set[str] = set()
    for scene in scenes:
        if scene.id in seen:
            raise SceneError(f"scene {scene.id} is given twice; ids must be unique, so leave one out", scene=scene.id)
        seen.add(scene.id)
