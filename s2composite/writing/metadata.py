"""Metadata: files, thumbnail and STAC item of a composite in one call; the item comes last, so it means complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.georeference import north_up
from s2composite.pixels.reducers import scene_shares
from s2composite.pixels.stretching import Stretch, check_not_common
from s2composite.scenes.storage import display
from s2composite.writing.cog import plan_files, status_tags, tables_of
from s2composite.writing.files import FilePlan, Tables, WriteJob, Written, write_files
from s2composite.writing.layers import layer_of
from s2composite.writing.options import RasterOptions
from s2composite.writing.periods import Period, period_path, periods_of
from s2composite.writing.stac import Lineage, build_item, check_times, multihash
from s2composite.writing.status import STATUS, status_summary
from s2composite.writing.targets import is_http, put_small, remove, target_of
from s2composite.writing.thumbnail import MEDIA_TYPES, check_thumbnail, thumbnail_of_file

__all__ = ["write_stac"]

_SHARES = "shares"


def write_stac(
    dataset: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    layers: str | Sequence[str] | None = "all",
    separate: bool | None = None,
    overwrite: bool = False,
    thumbnail: str | None = "png",
    size: int = 512,
    stretch: Stretch | None = None,
    derived_from: Mapping[str, str] | None = None,
    properties: Mapping[str, Any] | None = None,
    compress: str = "deflate",
    level: int | None = None,
    predictor: str | int = "auto",
    blocksize: int = 512,
    overview_resampling: str | None = None,
    mask: bool | None = None,
    bigtiff: bool | str = "auto",
    jpeg_quality: int = 85,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    tags: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[str, ...]:
    """Write layers as cloud-optimised GeoTIFF, a thumbnail, and last of all a STAC 1.1 item that describes them.

    ``median.json`` has the files ``median.tif``, ``median_count.tif`` ... and ``median_thumbnail.png`` beside it. If
    the item exists, all of them do, complete and verified; an item to be replaced is removed before its files are.

    Parameters
    ----------
    dataset : xarray.Dataset
        Dataset of a composite; with periods there are files and an item for each, named as by `write_raster`.
    path : str or os.PathLike
        Local path, ``gs://`` or ``s3://`` URL of the item, ending in ``.json``.
    layers : str or sequence of str, default "all"
        One or several names of layers, or ``"all"``. ``"rgba"``: a preview in 8 bits of its first three bands.
    separate : bool, optional
        One file per layer: ``median.tif``, ``median_count.tif``. False: one file with all layers as bands, in the
        smallest dtype and with a nodata value that suit them all. Default: separate.
    overwrite : bool, default False
        Replace existing files.
    thumbnail : {"png", "webp"}, optional
        Kind of the thumbnail; None: there is none.
    size : int, default 512
        Pixels into which the thumbnail fits, 16 to 4096.
    stretch : str or pair of float or sequence of pairs, optional
        Values shown black and white in the thumbnail, such a pair for each band, or percentiles: ``"1-99%"``,
        ``"1-99% per band"``. Default: uint8 unchanged, anything else between percentiles 2 and 98.
    derived_from : mapping from str to str, optional
        Address of each scene's own STAC item, by the name of the scene, for links.
    properties : mapping from str, optional
        Further properties of the item.
    compress : {"deflate", "zstd", "lzw", "webp", "jpeg", "none"}
        Compression of the tiles. ``"webp"`` loses nothing without a `level`; ``"jpeg"`` loses a little. Both take
        pixels of 8 bits only.
    level : int, optional
        Effort: deflate 1 to 12, zstd 1 to 22 (default 9); of webp the quality, 1 to 100. Default of deflate: ISA-L's,
        several times as fast as level 6, for files that are 9 % larger.
    predictor : {"auto", 1, 2, 3}
        1 none, 2 differences, 3 floating point. ``"auto"``: 3 for floats, 2 for integers whose overviews are means.
    blocksize : int, default 512
        Side of a tile in pixels, a multiple of 16 from 64 to 8192.
    overview_resampling : {"average", "nearest", "mode"}, optional
        How overviews are made. Default: as suits each layer, means of valid pixels, and nearest for indices of scenes.
    mask : bool, optional
        Mark missing pixels in a mask of one bit instead of by a nodata value. Default: for jpeg and lossy webp only.
    bigtiff : bool or "auto", default "auto"
        BigTIFF, which may exceed 4 GB. ``"auto"``: only if needed.
    jpeg_quality : int, default 85
        1 to 100.
    overrides : mapping from str to mapping, optional
        Other encoding options for some layers: ``{"rgba": {"compress": "jpeg", "jpeg_quality": 90}}``.
    tags : mapping from str, optional
        Further tags for the files, which record scenes, rules, reducer and version in any case; and, if unreadable
        scenes are skipped, which were missing in which windows (``READ_STATUS``).
    progress : bool, default True
        Show how far the call is, in terminals and notebooks.

    Returns
    -------
    tuple of str
        The items written.

    Raises
    ------
    ParameterError
        Options are invalid or contradict each other, or scenes have no times; raised before anything is computed.
    WriteError
        An output exists or cannot be written; then there is no item.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> layer = xr.DataArray(np.ones((3, 64, 64), "uint8"), dims=("band", "y", "x"), attrs={"nodata": 0})
    >>> times = np.array(["2023-06-01", "2023-06-06"], "datetime64[ns]")
    >>> dataset = xr.Dataset({"composite": layer}, {"scene": ["a", "b"], "scene_time": ("scene", times)})
    >>> items = write_stac(dataset, "median.json", overwrite=True)
    """
    stem, dot, suffix = os.fspath(path).rpartition(".")
    if not dot or suffix.lower() != "json" or is_http(stem):
        raise ParameterError(f"{display(os.fspath(path))}: name a .json file on a disk, gs:// or s3://")
    dataset = north_up(dataset)
    options = RasterOptions(compress, level, predictor, blocksize, overview_resampling, mask, bigtiff, jpeg_quality)
    plans = plan_files(dataset, f"{stem}.tif", layers, options, separate=separate, overrides=overrides, tags=tags)
    lineage = _Sources(dataset, _known_scenes(dataset, derived_from or {}))
    entries = [
        _entry(period, stem, thumbnail, size, stretch, plans, overwrite=overwrite) for period in periods_of(dataset)
    ]
    job = WriteJob(
        plans,
        overwrite,
        progress,
        tables_of(dataset) | _shares_table(dataset),
        lambda tables: status_tags(dataset, tables),
        digest=True,
        before_naming=lambda: _withdraw(entries) if overwrite else None,
    )
    written, tables = write_files(job)
    by_plan = {id(file.plan): file for file in written}
    for number, entry in enumerate(entries):
        files = [by_plan[id(plan)] for plan in entry.plans]
        asset = _write_thumbnail(entry, files, size, stretch, overwrite=overwrite)
        item = build_item(
            lineage.of(number, tables),
            entry.period,
            [(file, f"./{file.path.rpartition('/')[2]}") for file in files],
            thumbnail=asset,
            properties=dict(properties or {}),
            created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        )
        put_small(json.dumps(item, indent=1).encode() + b"\n", entry.item, overwrite=overwrite)
    return tuple(display(entry.item) for entry in entries)


@dataclass(frozen=True, eq=False)
class _Entry:
    """One item to write."""

    period: Period
    """Period that it covers."""

    item: str
    """Absolute path or URL of the item."""

    plans: tuple[FilePlan, ...]
    """Its files."""

    thumbnail: str | None
    """Absolute path or URL of its thumbnail."""


def _withdraw(entries: Sequence[_Entry]) -> None:
    """Remove items that are about to be replaced: they must not describe half-written files."""
    for entry in entries:
        remove(entry.item)


def _entry(
    period: Period,
    stem: str,
    thumbnail: str | None,
    size: int,
    stretch: Stretch | None,
    plans: Sequence[FilePlan],
    *,
    overwrite: bool,
) -> _Entry:
    check_times(period)
    own = tuple(plan for plan in plans if plan.period.label == period.label)
    item = target_of(period_path(f"{stem}.json", period.label), overwrite=overwrite)
    pictured = thumbnail is not None and any(layer.data.ndim == 3 for plan in own for layer in plan.layers)
    if not pictured:
        return _Entry(period, item, own, None)
    if thumbnail not in MEDIA_TYPES:
        raise ParameterError(f"thumbnail is {thumbnail!r}; it is one of {', '.join(MEDIA_TYPES)} or None")
    picture = period_path(f"{stem}_thumbnail.{thumbnail}", period.label)
    check_thumbnail(picture, size, stretch)
    check_not_common(stretch, "thumbnails of STAC items")
    return _Entry(period, item, own, target_of(picture, overwrite=overwrite))


def _write_thumbnail(
    entry: _Entry, files: Sequence[Written], size: int, stretch: Stretch | None, *, overwrite: bool
) -> dict[str, Any] | None:
    """Write the thumbnail of an item and return its asset."""
    if entry.thumbnail is None:
        return None
    kind = entry.thumbnail.rpartition(".")[2]
    layers = [(file, layer.name) for file in files for layer in file.plan.layers if layer.data.ndim == 3]
    # Prefer the composite; a preview is already stretched.
    file, layer = min(layers, key=lambda found: (found[1] != "composite", found[1] == "rgba"))
    data = thumbnail_of_file(file, layer, kind, size, None if layer == "rgba" else stretch)
    put_small(data, entry.thumbnail, overwrite=overwrite)
    name = entry.thumbnail.rpartition("/")[2]
    return {
        "href": f"./{name}",
        "type": MEDIA_TYPES[kind],
        "title": "thumbnail",
        "roles": ["thumbnail"],
        "file:size": len(data),
        "file:checksum": multihash(hashlib.sha256(data).hexdigest()),
    }


@dataclass(frozen=True, eq=False)
class _Sources:
    """What the items of one call are derived from."""

    dataset: xr.Dataset
    """The whole composite."""

    derived_from: Mapping[str, str]
    """Hrefs of the scenes' own items."""

    def of(self, number: int, tables: Tables) -> Lineage:
        """Return the lineage of the period at an index."""
        status = status_summary(self.dataset, tables[STATUS]) if STATUS in tables else None
        shares = None
        if _SHARES in tables:
            counts = tables[_SHARES][min(number, len(tables[_SHARES]) - 1)].sum(axis=(1, 2))
            shares = counts / max(self.dataset.sizes["y"] * self.dataset.sizes["x"], 1)
        return Lineage(self.dataset, shares, status, self.derived_from)


def _known_scenes(dataset: xr.Dataset, derived_from: Mapping[str, str]) -> Mapping[str, str]:
    if "scene" not in dataset.coords:
        raise ParameterError("a STAC item lists its scenes, and the dataset has no coordinate 'scene'")
    known = {str(scene) for scene in dataset["scene"].values}
    if unknown := sorted(set(derived_from) - known):
        raise ParameterError(f"derived_from names {unknown[0]!r}, which is not a scene of the composite")
    return derived_from


def _shares_table(dataset: xr.Dataset) -> dict[str, da.Array]:
    """Return for each period and window how many pixels come from each scene ``(t, scene, window_y, window_x)``."""
    if "source" not in dataset:
        return {}
    data, scenes = layer_of(dataset, "source").data, dataset.sizes["scene"]
    data = data if data.ndim == 3 else data[None]
    windows = tuple((1,) * n for n in data.numblocks[1:])
    counts = da.map_blocks(
        _picked,
        data,
        name=f"count-sources-{tokenize(data.name, scenes)}",
        scenes=scenes,
        new_axis=[1],
        chunks=(data.chunks[0], (scenes,), *windows),
        dtype=np.int64,
        meta=np.empty((0,) * 4, np.int64),
    )
    return {_SHARES: counts}


def _picked(source: NDArray[np.int16], scenes: int) -> NDArray[np.int64]:
    if source.size and source.max() >= scenes:
        raise ParameterError(
            f"layer 'source' names scene {source.max()}, but there are {scenes}: of another composite?"
        )
    counts = [np.rint(scene_shares(one, scenes) * one.size) for one in source]
    return np.asarray(counts, np.int64)[:, :, None, None]
