"""Files, thumbnail and STAC 1.1 item of a composite in one call; the item comes last, so it means complete."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import dask.array as da
import imagecodecs
import numpy as np
import rasterio
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from shapely.geometry import mapping
from shapely.geometry.polygon import orient

from s2composite.cube.georeference import north_up
from s2composite.errors import ParameterError, WriteError
from s2composite.pixels.reducers import scene_shares
from s2composite.pixels.stretch import (
    Stretch,
    as_stretch,
    check_not_common,
    colour_bands,
    limits_of_each,
    painted,
    rgba,
)
from s2composite.reading.grid import footprint
from s2composite.scenes.names import common_name
from s2composite.storage.files import display, filesystem, is_remote
from s2composite.writing.cog import (
    FilePlan,
    Tables,
    WriteJob,
    Written,
    picture_layer,
    plan_files,
    status_tags,
    tables_of,
    valid_everywhere,
    write_files,
)
from s2composite.writing.encode import Statistics, half, halve
from s2composite.writing.layers import STATUS, Layer, Period, layer_of, period_path, periods_of, status_summary
from s2composite.writing.options import RasterOptions
from s2composite.writing.publish import is_http, put_small, remove, target_of
from s2composite.writing.tiles import Band, Raster

__all__ = [
    "MEDIA_TYPES",
    "Lineage",
    "build_item",
    "check_thumbnail",
    "check_times",
    "item_id",
    "multihash",
    "thumbnail_of_file",
    "write_stac",
    "write_thumbnail",
]

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


MEDIA_TYPES = {"png": "image/png", "webp": "image/webp"}
"""Media type by the suffix of a file."""

_WEBP_QUALITY = 80


def write_thumbnail(
    dataset: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    size: int = 512,
    stretch: Stretch | None = None,
    layer: str | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a small picture, transparent where there is no value. A lazy composite is computed as a whole.

    Its pixels are those of the overview that fits into `size`: means of 2 x 2 valid pixels, repeatedly.

    Parameters
    ----------
    dataset : xarray.Dataset
        Dataset of a composite; with periods there is a picture for each, named as by `write_raster`.
    path : str or os.PathLike
        Local path or URL that ends in ``.png`` or ``.webp``.
    size : int, default 512
        Pixels into which the picture fits, 16 to 4096.
    stretch : str or pair of float or sequence of pairs, optional
        Values shown black and white, such a pair for each band, or percentiles of the picture: ``"1-99%"``,
        ``"1-99% per band"``; ``"common"`` and ``"1-99% common"``: of the pictures of all periods together. Default:
        uint8 unchanged, anything else between percentiles 2 and 98 of each picture.
    layer : str, optional
        Layer to show; default: the composite. Its bands red, green and blue are shown, or else the first three.
    overwrite : bool, default False
        Replace an existing file.

    Returns
    -------
    tuple of str
        The files written.

    Raises
    ------
    ParameterError
        The kind of picture, its size or its stretch is invalid, or there is no layer with bands.
    WriteError
        The output exists or cannot be written.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> values = xr.DataArray(np.full((3, 600, 400), 90, "uint8"), dims=("band", "y", "x"))
    >>> files = write_thumbnail(xr.Dataset({"composite": values}), "small.png", size=200, overwrite=True)
    """
    kind = check_thumbnail(os.fspath(path), size, stretch)
    periods = periods_of(north_up(dataset))
    targets = [target_of(period_path(os.fspath(path), period.label), overwrite=overwrite) for period in periods]
    if any(map(is_http, targets)):
        raise ParameterError("a thumbnail cannot be sent to a signed URL; write it to a path, gs:// or s3://")
    layers = [picture_layer(period.dataset, layer) for period in periods]
    # All periods in one pass over the data.
    shrunk = da.compute(*(_shrunk(one, size) for one in layers))
    pictures = [(pixels, valid_everywhere(pixels, one.nodata)) for pixels, one in zip(shrunk, layers, strict=True)]
    for target, (pixels, valid), ends in zip(targets, pictures, limits_of_each(pictures, stretch), strict=True):
        put_small(_encoded(painted(pixels, valid, ends), kind), target, overwrite=overwrite)
    return tuple(targets)


def check_thumbnail(path: str, size: int, stretch: Stretch | None) -> str:
    """Return the kind of picture that a path asks for.

    Raises
    ------
    ParameterError
        It cannot be written, or size or stretch is invalid.
    """
    kind = path.rpartition(".")[2].lower()
    if kind not in MEDIA_TYPES:
        raise ParameterError(f"{path}: a thumbnail is a {' or '.join(f'.{known}' for known in MEDIA_TYPES)} file")
    if not isinstance(size, int) or isinstance(size, bool) or not 16 <= size <= 4096:
        raise ParameterError(f"size is {size!r}; a thumbnail has 16 to 4096 pixels on its longer side")
    if stretch is not None:
        as_stretch(stretch)
    return kind


def _halvings(shape: tuple[int, ...], size: int) -> int:
    """Return how often an image must be halved to fit."""
    longest, times = max(shape), 0
    while longest > size:
        longest, times = half(longest), times + 1
    return times


def _shrunk(layer: Layer, size: int) -> da.Array:
    """Return a layer halved until it fits, window by window: only small pixels leave the workers."""
    times = _halvings(layer.data.shape[1:], size)
    if not times:
        return layer.data
    step = 1 << times
    chunks = tuple(_multiples(sizes, step) for sizes in layer.data.chunks[1:])
    data = layer.data.rechunk((-1, *chunks))
    return data.map_blocks(
        _halved,
        times,
        layer.nodata,
        name=f"shrink-window-{tokenize(data.name, times, layer.nodata)}",
        dtype=data.dtype,
        chunks=(data.chunks[0], *(tuple(-(-n // step) for n in sizes) for sizes in chunks)),
    )


def _multiples(chunks: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Return chunks of whole blocks, unchanged if they are already."""
    if all(n % step == 0 for n in chunks[:-1]):
        return chunks
    whole = -(-max(chunks) // step) * step
    total = sum(chunks)
    return tuple(min(whole, total - start) for start in range(0, total, whole))


def _halved(pixels: NDArray[Any], times: int, nodata: float | None) -> NDArray[Any]:
    for _ in range(times):
        pixels = halve(pixels, "average", nodata)
    return pixels


def thumbnail_of_file(written: Written, layer: str, kind: str, size: int, stretch: Stretch | None) -> bytes:
    """Return a thumbnail of a layer in a file that has just been written, from its overviews.

    Raises
    ------
    WriteError
        The file cannot be read.
    """
    raster = written.plan.raster
    bands = [i for i, band in enumerate(raster.bands) if band.layer == layer]
    chosen = [bands[i] + 1 for i in colour_bands([raster.bands[i].name.removeprefix(f"{layer}_") for i in bands])]
    shape = raster.levels[min(_halvings(raster.shape, size), len(raster.levels) - 1)]
    try:
        with _opened(written.path) as file, rasterio.open(file) as source:
            # In the shape of an overview GDAL reads just that.
            pixels = source.read(chosen, out_shape=(len(chosen), *shape))
            valid = (source.read_masks(chosen, out_shape=(len(chosen), *shape)) > 0).all(axis=0)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise WriteError(f"{written.label}: its overviews cannot be read for a thumbnail: {error}") from error
    if raster.nodata is not None:
        pixels[:, ~valid] = raster.nodata  # lossy files have something else there
    more = _halvings(shape, size)
    picture = rgba(_halved(pixels, more, raster.nodata), _halved(valid[None].view(np.uint8), more, 0)[0] > 0, stretch)
    return _encoded(picture, kind)


def _opened(path: str) -> Any:
    if is_remote(path):
        fs, inside = filesystem(path)
        return fs.open(inside, "rb")
    return open(path, "rb")  # noqa: PTH123 - closed by the caller, as the remote one


def _encoded(picture: NDArray[np.uint8], kind: str) -> bytes:
    if kind == "png":
        return bytes(imagecodecs.png_encode(picture))
    return bytes(imagecodecs.webp_encode(picture, _WEBP_QUALITY))


_EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "eo": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
}
_GEOTIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
_SOFTWARE = ("s2composite", "dask", "imagecodecs", "numba", "numpy", "odc-geo", "rasterio", "xarray")

_SHA256 = "1220"
"""The code of sha2-256 among multihashes, and the number of its bytes."""


@dataclass(frozen=True, eq=False)
class Lineage:
    """What a result was made of."""

    dataset: xr.Dataset
    """The whole composite."""

    shares: np.ndarray[Any, np.dtype[np.float64]] | None
    """Share of the pixels that each scene contributed; None: the reducer does not pick scenes."""

    read_status: Mapping[str, Any] | None
    """What could not be read; None: failures were errors."""

    derived_from: Mapping[str, str]
    """Hrefs of the scenes' own items, as far as they are known."""


def multihash(sha256: str) -> str:
    """Return a SHA-256 in hexadecimal digits as the multihash that STAC wants."""
    return f"{_SHA256}{sha256}"


def check_times(period: Period) -> tuple[str, str]:
    """Return the first and last moment of a period in UTC, which every item needs.

    Raises
    ------
    ParameterError
        The scenes have no times.
    """
    if period.span is not None:
        # The end of a period is exclusive, that of a STAC item inclusive.
        return _stamp(period.span[0]), _stamp(period.span[1] - np.timedelta64(1, "s"))
    times = period.dataset["scene_time"].values if "scene_time" in period.dataset.coords else np.array([])
    if times.dtype.kind != "M" or not times.size:
        raise ParameterError("a STAC item needs dates, and the composite has no 'scene_time' with any")
    return _stamp(times.min()), _stamp(times.max())


def _stamp(time: np.datetime64) -> str:
    return f"{np.datetime_as_string(time, unit='s')}Z"


def item_id(lineage: Lineage, period: Period, rasters: Sequence[Raster]) -> str:
    """Return an id that is the same for the same pixels: from scenes, method, software and grid, not the path."""
    dataset, (start, end) = lineage.dataset, check_times(period)
    facts = {
        "attributes": {name: str(value) for name, value in sorted(dataset.attrs.items())},
        "scenes": [str(scene) for scene in dataset["scene"].values],
        "period": [period.label, start, end],
        "grid": [None if raster.geobox is None else _grid(raster.geobox) for raster in rasters],
        "bands": [[(band.name, band.layer) for band in raster.bands] for raster in rasters],
        "dtypes": [raster.dtype.name for raster in rasters],
        "shapes": [raster.shape for raster in rasters],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(dataset.attrs.get("reducer", "composite"))).strip("-")
    return f"{name}_{start[:10]}_{end[:10]}_{digest[:12]}"


def _grid(geobox: GeoBox) -> list[Any]:
    return [*_six(geobox), None if geobox.crs is None else geobox.crs.to_wkt()]


def _six(geobox: GeoBox) -> list[float]:
    return [float(value) for value in tuple(geobox.transform)[:6]]


def build_item(
    lineage: Lineage,
    period: Period,
    files: Sequence[tuple[Written, str]],
    *,
    thumbnail: Mapping[str, Any] | None,
    properties: Mapping[str, Any],
    created: str,
) -> dict[str, Any]:
    """Return the item of a period.

    Parameters
    ----------
    files
        Those of the period, each with its href.
    thumbnail
        Its asset; None: there is none.
    properties
        Further properties; they override those made here.
    created
        When the files were written.
    """
    rasters = [written.plan.raster for written, _ in files]
    geobox = rasters[0].geobox
    start, end = check_times(period)
    sensor = lineage.dataset.attrs.get("sensor")
    assets = {_asset_key(written.plan.raster): _asset(written, href, sensor) for written, href in files}
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": item_id(lineage, period, rasters),
        **_place(geobox),
        "properties": {
            "datetime": None,
            "start_datetime": start,
            "end_datetime": end,
            "created": created,
            **_projection(rasters[0]),
            **_processing(lineage),
            **_provenance(lineage, period),
            **properties,
        },
        "links": [
            {"rel": "derived_from", "href": href, "title": scene, "type": "application/geo+json"}
            for scene, href in sorted(lineage.derived_from.items())
        ],
        "assets": assets | ({"thumbnail": dict(thumbnail)} if thumbnail else {}),
    }
    used = json.dumps(item)
    item["stac_extensions"] = [uri for prefix, uri in _EXTENSIONS.items() if f'"{prefix}:' in used]
    return item


# --- where ----------------------------------------------------------------------------------------------------------


def _place(geobox: GeoBox | None) -> dict[str, Any]:
    """Return the outline in longitude and latitude; no geometry if the pixels are not georeferenced."""
    if geobox is None or geobox.crs is None:
        return {"geometry": None}
    outline = footprint(geobox).geom
    parts = [orient(part) for part in getattr(outline, "geoms", [outline])]
    shapes = [_rounded(mapping(part)["coordinates"]) for part in parts]
    geometry = (
        {"type": "Polygon", "coordinates": shapes[0]}
        if len(shapes) == 1
        else {"type": "MultiPolygon", "coordinates": shapes}
    )
    return {"geometry": geometry, "bbox": _bbox([part.bounds for part in parts])}


def _rounded(value: Any) -> Any:
    return round(value, 7) if isinstance(value, float) else [_rounded(part) for part in value]


def _bbox(bounds: Sequence[tuple[float, float, float, float]]) -> list[float]:
    """Return west, south, east, north; west is greater than east where the antimeridian is crossed."""
    west, south, east, north = (
        f(values) for f, values in zip((min, min, max, max), zip(*bounds, strict=True), strict=True)
    )
    if len(bounds) > 1 and west == -180 and east == 180:
        begins, ends = min(b[0] for b in bounds if b[2] == 180), max(b[2] for b in bounds if b[0] == -180)
        west, east = (begins, ends) if begins > ends else (west, east)
    return [round(float(value), 7) for value in (west, south, east, north)]


def _projection(raster: Raster) -> dict[str, Any]:
    geobox = raster.geobox
    shape = {"proj:shape": [int(n) for n in raster.shape]}
    if geobox is None:
        return shape
    facts = {**shape, "proj:transform": _six(geobox), "proj:bbox": [float(v) for v in geobox.boundingbox.bbox]}
    if geobox.crs is None:
        return facts
    # Only an exact code: pyproj also offers codes of similar systems.
    authority = geobox.crs.proj.to_authority(min_confidence=100)
    code = ":".join(authority) if authority else None
    return {**facts, "proj:code": code, **({} if code else {"proj:wkt2": geobox.crs.to_wkt()})}


# --- what -----------------------------------------------------------------------------------------------------------


def _asset_key(raster: Raster) -> str:
    layers = list(dict.fromkeys(band.layer for band in raster.bands))
    return layers[0] if len(layers) == 1 else "data"


def _asset(written: Written, href: str, sensor: str | None) -> dict[str, Any]:
    raster, key = written.plan.raster, _asset_key(written.plan.raster)
    asset = {
        "href": href,
        "type": _GEOTIFF,
        "title": ", ".join(dict.fromkeys(band.long_name or band.layer for band in raster.bands)),
        "roles": ["visual", "overview"] if key == "rgba" else ["data"],
        "data_type": raster.dtype.name,
        "file:size": written.size,
        "file:checksum": multihash(written.sha256),
        "bands": [
            _band(raster, band, found, sensor) for band, found in zip(raster.bands, written.statistics, strict=True)
        ],
    }
    nodata = None if raster.mask or raster.alpha else raster.nodata
    return asset if nodata is None else asset | {"nodata": "nan" if math.isnan(nodata) else nodata}


def _band(raster: Raster, band: Band, statistics: Statistics, sensor: str | None) -> dict[str, Any]:
    facts = {
        "name": band.name,
        "description": band.long_name or None,
        "unit": band.units or None,
        "statistics": _statistics(statistics),
        "raster:sampling": "area",
        "raster:spatial_resolution": _resolution(raster.geobox),
        "raster:scale": None if band.scale is None else float(band.scale),
        "raster:offset": None if band.offset is None else float(band.offset),
        "eo:common_name": common_name(band.name.removeprefix(f"{band.layer}_"), sensor),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _resolution(geobox: GeoBox | None) -> float | None:
    """Return the size of pixels in metres, None where they have another unit."""
    if geobox is None or geobox.crs is None or not geobox.crs.projected:
        return None
    axis = geobox.crs.proj.axis_info[0]
    return abs(float(geobox.resolution.x)) * float(axis.unit_conversion_factor)


def _statistics(found: Statistics) -> dict[str, float]:
    facts: dict[str, float] = {"count": found.valid, "valid_percent": 100 * found.valid / max(found.pixels, 1)}
    if found.valid:
        facts |= {
            "minimum": found.minimum,
            "maximum": found.maximum,
            "mean": found.mean,
            "stddev": found.deviation,
        }
    return facts


# --- how ------------------------------------------------------------------------------------------------------------


def _processing(lineage: Lineage) -> dict[str, Any]:
    attrs = lineage.dataset.attrs
    method = attrs.get("parameters", attrs.get("reducer", "composite"))
    scenes, rules = lineage.dataset.sizes["scene"], attrs.get("rules", "none")
    return {
        "processing:level": "L3",
        "processing:lineage": f"{method} of {scenes} scenes; rules for observations: {rules}",
        "processing:software": {
            **{name: version(name) for name in _SOFTWARE},
            "GDAL": rasterio.__gdal_version__,
            "Python": platform.python_version(),
        },
    }


def _provenance(lineage: Lineage, period: Period) -> dict[str, Any]:
    attrs = lineage.dataset.attrs
    facts: dict[str, Any] = {
        f"s2composite:{name}": str(attrs[name])
        for name in ("reducer", "parameters", "rules", "engine", "engine_reason")
        if name in attrs
    }
    facts["s2composite:scenes"] = _scenes(lineage)
    if lineage.read_status is not None:
        facts["s2composite:read_status"] = dict(lineage.read_status)
    return facts if period.label is None else {**facts, "s2composite:period": period.label}


def _scenes(lineage: Lineage) -> list[dict[str, Any]]:
    dataset = lineage.dataset
    out: list[dict[str, Any]] = [{"id": str(scene)} for scene in dataset["scene"].values]
    if "scene_time" in dataset.coords and dataset["scene_time"].dtype.kind == "M":
        for entry, time in zip(out, dataset["scene_time"].values, strict=True):
            entry["datetime"] = _stamp(time)
    if lineage.shares is not None:
        for entry, share in zip(out, lineage.shares.tolist(), strict=True):
            entry["share"] = round(share, 6)
    return out
