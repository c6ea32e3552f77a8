"""Files, thumbnail and STAC 1.1 item of a composite in one call; the item comes last, so it means complete."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import dask.array as da
import imagecodecs
import numpy as np
import rasterio
import xarray as xr
from dask.array.core import normalize_chunks
from dask.base import tokenize
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from shapely.geometry import mapping
from shapely.geometry.polygon import orient

import s2composite
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
from s2composite.scenes.products import common_name
from s2composite.storage.files import display, filesystem, is_remote
from s2composite.writing.cog import (
    FilePlan,
    Tables,
    WrittenFile,
    picture_layer,
    plan_files,
    valid_everywhere,
    write_files,
)
from s2composite.writing.encode import halve, level_shapes
from s2composite.writing.layers import (
    STATUS,
    DatasetPeriod,
    RasterLayer,
    affine_numbers,
    crs_fields,
    layer_of,
    period_path,
    periods_of,
    status_summary,
)
from s2composite.writing.options import RasterOptions
from s2composite.writing.publish import is_http, put_small, remove, target_of
from s2composite.writing.tiles import Raster

__all__ = ["write_stac", "write_thumbnail"]

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

    Parameters, results and errors are those of `Composite.to_stac`, but for the dataset.

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
    if "scene" not in dataset.coords:
        raise ParameterError("a STAC item lists its scenes, and the dataset has no coordinate 'scene'")
    if unknown := sorted(set(derived_from or {}) - set(map(str, dataset["scene"].values))):
        raise ParameterError(f"derived_from names {unknown[0]!r}, which is not a scene of the composite")
    items = [
        _plan_item(period, stem, thumbnail, size, stretch, plans, overwrite=overwrite) for period in periods_of(dataset)
    ]

    def withdraw() -> None:
        """Remove items that are about to be replaced: they must not describe half-written files."""
        for item in items if overwrite else ():
            remove(item.path)

    written, tables = write_files(
        dataset,
        plans,
        overwrite=overwrite,
        progress=progress,
        tables=_shares_table(dataset),
        digest=True,
        before_naming=withdraw,
    )
    for number, item in enumerate(items):
        files = [file for file in written if file.plan.period.label == item.period.label]
        picture = _write_item_thumbnail(item, files, size, stretch, overwrite=overwrite)
        provenance = _provenance(dataset, item.period, number, tables)
        document = _build_item(dataset, item, files, provenance, dict(properties or {}))
        document["links"] = [
            {"rel": "derived_from", "href": href, "title": scene, "type": "application/geo+json"}
            for scene, href in sorted((derived_from or {}).items())
        ]
        document["assets"] |= picture
        put_small(json.dumps(document, indent=1).encode() + b"\n", item.path, overwrite=overwrite)
    return tuple(display(item.path) for item in items)


@dataclass(frozen=True, eq=False)
class ItemPlan:
    """One item to write."""

    period: DatasetPeriod
    span: tuple[str, str]  # first and last moment in UTC
    path: str  # absolute path or URL
    thumbnail: str | None  # absolute path or URL of its thumbnail


def _plan_item(
    period: DatasetPeriod,
    stem: str,
    thumbnail: str | None,
    size: int,
    stretch: Stretch | None,
    plans: Sequence[FilePlan],
    *,
    overwrite: bool,
) -> ItemPlan:
    span = _time_range(period)
    path = target_of(period_path(f"{stem}.json", period.label), overwrite=overwrite)
    if thumbnail is None or not any(layer.data.ndim == 3 for plan in plans for layer in plan.layers):
        return ItemPlan(period, span, path, None)
    if thumbnail not in MEDIA_TYPES:
        raise ParameterError(f"thumbnail is {thumbnail!r}; it is one of {', '.join(MEDIA_TYPES)} or None")
    picture = period_path(f"{stem}_thumbnail.{thumbnail}", period.label)
    _check_thumbnail(picture, size, stretch)
    check_not_common(stretch, "thumbnails of STAC items")
    return ItemPlan(period, span, path, target_of(picture, overwrite=overwrite))


def _write_item_thumbnail(
    item: ItemPlan, files: Sequence[WrittenFile], size: int, stretch: Stretch | None, *, overwrite: bool
) -> dict[str, Any]:
    """Write the thumbnail of an item, if it has one; return it as one of its assets."""
    if item.thumbnail is None:
        return {}
    kind = item.thumbnail.rpartition(".")[2]
    layers = [(file, layer.name) for file in files for layer in file.plan.layers if layer.data.ndim == 3]
    # Prefer the composite; a preview is already stretched.
    file, layer = min(layers, key=lambda candidate: (candidate[1] != "composite", candidate[1] == "rgba"))
    # Its pixels are read from the overviews of the file that has just been written.
    raster = file.plan.raster
    bands = [i for i, band in enumerate(raster.bands) if band.layer == layer]
    chosen = [bands[i] + 1 for i in colour_bands([raster.bands[i].name.removeprefix(f"{layer}_") for i in bands])]
    shape = next((level for level in raster.levels if max(level) <= size), raster.levels[-1])
    try:
        with ExitStack() as stack:
            opened: Any = file.path
            if is_remote(opened):
                fs, inside = filesystem(opened)
                opened = stack.enter_context(fs.open(inside, "rb"))
            source = stack.enter_context(rasterio.open(opened))
            # In the shape of an overview GDAL reads just that.
            pixels = source.read(chosen, out_shape=(len(chosen), *shape))
            valid = (source.read_masks(chosen, out_shape=(len(chosen), *shape)) > 0).all(axis=0)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise WriteError(
            f"{file.layout.raster.label}: its overviews cannot be read for a thumbnail: {error}"
        ) from error
    if raster.nodata is not None:
        pixels[:, ~valid] = raster.nodata  # lossy files have something else there
    more = len(level_shapes(shape, size)) - 1
    picture = rgba(
        _halved(pixels, more, raster.nodata),
        _halved(valid[None].view(np.uint8), more, 0)[0] > 0,
        None if layer == "rgba" else stretch,
    )
    data = _encoded(picture, kind)
    put_small(data, item.thumbnail, overwrite=overwrite)
    asset = {
        "href": f"./{item.thumbnail.rpartition('/')[2]}",
        "type": MEDIA_TYPES[kind],
        "title": "thumbnail",
        "roles": ["thumbnail"],
        "file:size": len(data),
        "file:checksum": f"{_SHA256}{hashlib.sha256(data).hexdigest()}",
    }
    return {"thumbnail": asset}


def _shares_table(dataset: xr.Dataset) -> dict[str, da.Array]:
    """Return for each period and window how many pixels come from each scene ``(t, scene, window_y, window_x)``."""
    if "source" not in dataset:
        return {}
    data, scenes = layer_of(dataset, "source").data, dataset.sizes["scene"]
    data = data if data.ndim == 3 else data[None]
    windows = tuple((1,) * n for n in data.numblocks[1:])
    counts = da.map_blocks(
        _pixels_of_scenes,
        data,
        name=f"count-sources-{tokenize(data.name, scenes)}",
        scenes=scenes,
        new_axis=[1],
        chunks=(data.chunks[0], (scenes,), *windows),
        dtype=np.int64,
        meta=np.empty((0,) * 4, np.int64),
    )
    return {_SHARES: counts}


def _pixels_of_scenes(source: NDArray[np.int16], scenes: int) -> NDArray[np.int64]:
    if source.size and source.max() >= scenes:
        raise ParameterError(
            f"layer 'source' names scene {source.max()}, but there are {scenes}: of another composite?"
        )
    counts = [np.rint(scene_shares(one, scenes) * one.size) for one in source]
    return np.asarray(counts, np.int64)[:, :, None, None]


# --- thumbnails ------------------------------------------------------------------------------------------------------

MEDIA_TYPES = {"png": "image/png", "webp": "image/webp"}  # media type by the suffix of a file

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
    """Write a small picture, transparent where there is no value. A lazy dataset is computed as a whole.

    Parameters, results and errors are those of `Composite.to_thumbnail`, but for the dataset. The picture's pixels are
    those of the overview that fits into `size`: means of 2 x 2 valid pixels, repeatedly.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> values = xr.DataArray(np.full((3, 600, 400), 90, "uint8"), dims=("band", "y", "x"))
    >>> files = write_thumbnail(xr.Dataset({"composite": values}), "small.png", size=200, overwrite=True)
    """
    kind = _check_thumbnail(os.fspath(path), size, stretch)
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


def _check_thumbnail(path: str, size: int, stretch: Stretch | None) -> str:
    """Return the kind of picture that a path asks for."""
    kind = path.rpartition(".")[2].lower()
    if kind not in MEDIA_TYPES:
        raise ParameterError(f"{path}: a thumbnail is a {' or '.join(f'.{known}' for known in MEDIA_TYPES)} file")
    if not isinstance(size, int) or isinstance(size, bool) or not 16 <= size <= 4096:
        raise ParameterError(f"size is {size!r}; a thumbnail has 16 to 4096 pixels on its longer side")
    if stretch is not None:
        as_stretch(stretch)
    return kind


def _shrunk(layer: RasterLayer, size: int) -> da.Array:
    """Return a layer halved until it fits, window by window: only small pixels leave the workers."""
    times = len(level_shapes(layer.data.shape[1:], size)) - 1
    if not times:
        return layer.data
    step, chunks = 1 << times, layer.data.chunks[1:]
    if any(n % step for sizes in chunks for n in sizes[:-1]):  # halving must not cross their edges
        chunks = normalize_chunks(-(-max(map(max, chunks)) // step) * step, layer.data.shape[1:])
    data = layer.data.rechunk((-1, *chunks))
    return data.map_blocks(
        _halved,
        times,
        layer.nodata,
        name=f"shrink-window-{tokenize(data.name, times, layer.nodata)}",
        dtype=data.dtype,
        chunks=(data.chunks[0], *(tuple(-(-n // step) for n in sizes) for sizes in chunks)),
    )


def _halved(pixels: NDArray[Any], times: int, nodata: float | None) -> NDArray[Any]:
    for _ in range(times):
        pixels = halve(pixels, "average", nodata)
    return pixels


def _encoded(picture: NDArray[np.uint8], kind: str) -> bytes:
    if kind == "png":
        return bytes(imagecodecs.png_encode(picture))
    return bytes(imagecodecs.webp_encode(picture, _WEBP_QUALITY))


# --- items -----------------------------------------------------------------------------------------------------------

_EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "eo": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
}
_GEOTIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
_SOFTWARE = ("dask", "imagecodecs", "numba", "numpy", "odc-geo", "rasterio", "xarray")

_SHA256 = "1220"  # the code of sha2-256 among multihashes, and the number of its bytes


def _time_range(period: DatasetPeriod) -> tuple[str, str]:
    """Return the first and last moment of a period in UTC, which every item needs."""
    if period.span is not None:
        # The end of a period is exclusive, that of a STAC item inclusive.
        return _timestamp(period.span[0]), _timestamp(period.span[1] - np.timedelta64(1, "s"))
    times = period.dataset["scene_time"].values if "scene_time" in period.dataset.coords else np.array([])
    if times.dtype.kind != "M" or not times.size:
        raise ParameterError("a STAC item needs dates, and the composite has no 'scene_time' with any")
    return _timestamp(times.min()), _timestamp(times.max())


def _timestamp(time: np.datetime64) -> str:
    return f"{np.datetime_as_string(time, unit='s')}Z"


def _item_id(dataset: xr.Dataset, item: ItemPlan, rasters: Sequence[Raster]) -> str:
    """Return an id that is the same for the same pixels: from scenes, method, software and grid, not the path."""
    start, end = item.span
    grids = [raster.geobox for raster in rasters]
    identity = {
        "attributes": {name: str(value) for name, value in sorted(dataset.attrs.items())},
        "scenes": [str(scene) for scene in dataset["scene"].values],
        "period": [item.period.label, start, end],
        "grid": [None if g is None else [*affine_numbers(g), None if g.crs is None else g.crs.to_wkt()] for g in grids],
        "bands": [[(band.name, band.layer) for band in raster.bands] for raster in rasters],
        "dtypes": [raster.dtype.name for raster in rasters],
        "shapes": [raster.shape for raster in rasters],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(dataset.attrs.get("reducer", "composite"))).strip("-")
    return f"{name}_{start[:10]}_{end[:10]}_{digest[:12]}"


def _build_item(
    dataset: xr.Dataset,
    plan: ItemPlan,
    files: Sequence[WrittenFile],
    provenance: Mapping[str, Any],
    properties: Mapping[str, Any],
) -> dict[str, Any]:
    """Return an item with its files beside it, without links; `properties` override those made here."""
    rasters = [file.plan.raster for file in files]
    geobox = rasters[0].geobox
    projection: dict[str, Any] = {"proj:shape": [int(n) for n in rasters[0].shape]}
    if geobox is not None:
        projection["proj:transform"] = affine_numbers(geobox)
        projection["proj:bbox"] = [float(v) for v in geobox.boundingbox.bbox]
        if geobox.crs is not None:
            projection |= {"proj:code": None} | crs_fields(geobox.crs)
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": _item_id(dataset, plan, rasters),
        **_place(geobox),
        "properties": {
            "datetime": None,
            "start_datetime": plan.span[0],
            "end_datetime": plan.span[1],
            "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            **projection,
            **provenance,
            **properties,
        },
        "links": [],
        "assets": {_asset_key(file.plan.raster): _asset(file, dataset.attrs.get("sensor")) for file in files},
    }
    used = json.dumps(item)
    item["stac_extensions"] = [uri for prefix, uri in _EXTENSIONS.items() if f'"{prefix}:' in used]
    return item


def _place(geobox: GeoBox | None) -> dict[str, Any]:
    """Return the outline in longitude and latitude; no geometry if the pixels are not georeferenced.

    The west of its box is greater than its east where the antimeridian is crossed.
    """
    if geobox is None or geobox.crs is None:
        return {"geometry": None}
    outline = footprint(geobox).geom
    parts = [orient(part) for part in getattr(outline, "geoms", [outline])]
    shapes = [_rounded(mapping(part)["coordinates"]) for part in parts]
    several = len(shapes) > 1
    geometry = {"type": f"{'Multi' * several}Polygon", "coordinates": shapes if several else shapes[0]}
    bounds = [part.bounds for part in parts]
    west, south = min(b[0] for b in bounds), min(b[1] for b in bounds)
    east, north = max(b[2] for b in bounds), max(b[3] for b in bounds)
    if len(bounds) > 1 and west == -180 and east == 180:
        begins, ends = min(b[0] for b in bounds if b[2] == 180), max(b[2] for b in bounds if b[0] == -180)
        west, east = (begins, ends) if begins > ends else (west, east)
    return {"geometry": geometry, "bbox": [round(float(value), 7) for value in (west, south, east, north)]}


def _rounded(value: Any) -> Any:
    return round(value, 7) if isinstance(value, float) else [_rounded(part) for part in value]


def _asset_key(raster: Raster) -> str:
    layers = list(dict.fromkeys(band.layer for band in raster.bands))
    return layers[0] if len(layers) == 1 else "data"


def _asset(file: WrittenFile, sensor: str | None) -> dict[str, Any]:
    raster, key = file.plan.raster, _asset_key(file.plan.raster)
    geobox, resolution = raster.geobox, None
    if geobox is not None and geobox.crs is not None and geobox.crs.projected:  # else pixels are not in metres
        unit = geobox.crs.proj.axis_info[0].unit_conversion_factor
        resolution = abs(float(geobox.resolution.x)) * float(unit)
    bands = []
    for band, statistics in zip(raster.bands, file.layout.statistics, strict=True):
        percent = 100 * statistics.valid / max(statistics.pixels, 1)
        figures: dict[str, float] = {"count": statistics.valid, "valid_percent": percent}
        if statistics.valid:
            figures |= {"minimum": statistics.minimum, "maximum": statistics.maximum}
            figures |= {"mean": statistics.mean, "stddev": statistics.deviation}
        fields = {
            "name": band.name,
            "description": band.long_name or None,
            "unit": band.units or None,
            "statistics": figures,
            "raster:sampling": "area",
            "raster:spatial_resolution": resolution,
            "raster:scale": None if band.scale is None else float(band.scale),
            "raster:offset": None if band.offset is None else float(band.offset),
            "eo:common_name": common_name(band.name.removeprefix(f"{band.layer}_"), sensor),
        }
        bands.append({name: value for name, value in fields.items() if value is not None})
    asset = {
        "href": f"./{file.path.rpartition('/')[2]}",
        "type": _GEOTIFF,
        "title": ", ".join(dict.fromkeys(band.long_name or band.layer for band in raster.bands)),
        "roles": ["visual", "overview"] if key == "rgba" else ["data"],
        "data_type": raster.dtype.name,
        "file:size": file.layout.size,
        "file:checksum": f"{_SHA256}{file.sha256}",
        "bands": bands,
    }
    nodata = None if raster.mask or raster.alpha else raster.nodata
    return asset if nodata is None else asset | {"nodata": "nan" if math.isnan(nodata) else nodata}


def _provenance(dataset: xr.Dataset, period: DatasetPeriod, number: int, tables: Tables) -> dict[str, Any]:
    """Return what the period at an index was made of, and how."""
    attrs = dataset.attrs
    scenes: list[dict[str, Any]] = [{"id": str(scene)} for scene in dataset["scene"].values]
    if "scene_time" in dataset.coords and dataset["scene_time"].dtype.kind == "M":
        for scene, time in zip(scenes, dataset["scene_time"].values, strict=True):
            scene["datetime"] = _timestamp(time)
    if _SHARES in tables:  # the reducer picks scenes
        counts = tables[_SHARES][min(number, len(tables[_SHARES]) - 1)].sum(axis=(1, 2))
        shares = counts / max(dataset.sizes["y"] * dataset.sizes["x"], 1)
        for scene, share in zip(scenes, shares.tolist(), strict=True):
            scene["share"] = round(share, 6)
    method, rules = attrs.get("parameters", attrs.get("reducer", "composite")), attrs.get("rules", "none")
    fields: dict[str, Any] = {
        "processing:level": "L3",
        "processing:lineage": f"{method} of {len(scenes)} scenes; rules for observations: {rules}",
        "processing:software": {
            "s2composite": s2composite.__version__,
            **{name: version(name) for name in _SOFTWARE},
            "GDAL": rasterio.__gdal_version__,
            "Python": platform.python_version(),
        },
    }
    named = ("reducer", "parameters", "rules", "engine", "engine_reason")
    fields |= {f"s2composite:{name}": str(attrs[name]) for name in named if name in attrs}
    fields["s2composite:scenes"] = scenes
    if STATUS in tables:
        fields["s2composite:read_status"] = status_summary(dataset, tables[STATUS])
    return fields if period.label is None else {**fields, "s2composite:period": period.label}
