"""Skeleton of a Zarr hierarchy: all its metadata and coordinates, made in memory before any pixel is written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
import zarr.codecs
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from zarr.abc.store import Store
from zarr.storage import MemoryStore

from s2composite.errors import ParameterError
from s2composite.writing.layers import TIME, Layer
from s2composite.writing.window import Stage

__all__ = [
    "Hierarchy",
    "add_attributes",
    "array_path",
    "build_skeleton",
    "level_geobox",
    "with_attributes",
    "write_skeleton",
]

_TIME_UNITS = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "dtype": "int64"}
"""Encoding of the times of periods and their bounds, which CF wants to be the same."""

_CONVENTIONS = {
    "proj": ("geo-proj", "f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information"),
    "spatial": ("spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
    "multiscales": ("multiscales", "d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"),
}
"""The GeoZarr conventions in use: repository below github.com/zarr-conventions, UUID, description."""


def array_path(name: str, level: int, *, pyramid: bool) -> str:
    """Return the path of a layer's array in the hierarchy."""
    return f"{level}/{name}" if pyramid else name


def level_geobox(geobox: GeoBox, shape: tuple[int, int], level: int) -> GeoBox:
    """Return the pixel grid of a level: pixels of 2 ** level from the same origin."""
    scale = 1 << level
    a, b, c, d, e, f = tuple(geobox.transform)[:6]
    return GeoBox(shape, type(geobox.transform)(a * scale, b * scale, c, d * scale, e * scale, f), geobox.crs)


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """What a Zarr hierarchy will hold, before any pixel is written."""

    dataset: xr.Dataset
    """With coordinates, attributes and all variables."""

    layers: tuple[Layer, ...]
    """Those with pixels."""

    geobox: GeoBox | None
    """Pixel grid of the full resolution."""

    levels: tuple[tuple[int, int], ...]
    """Rows and columns of the full resolution and each overview."""

    stages: tuple[Stage, ...]
    """Whose windows are the shards."""

    chunk: int
    """Side of the chunks inside shards, in pixels."""

    compression: int
    """Level of zstd."""

    pyramid: bool
    """Each level is a group."""

    shards: bool
    """Chunks lie together in shards, one for each window."""


def build_skeleton(hierarchy: Hierarchy) -> dict[str, bytes]:
    """Return every key of a hierarchy but those of the layers' pixels."""
    keys: dict[str, Any] = {}
    write_skeleton(hierarchy, MemoryStore(keys))
    return {key: value.to_bytes() for key, value in keys.items()}


def write_skeleton(hierarchy: Hierarchy, store: Store) -> None:
    """Write metadata and coordinates into a store, and declare the layers' arrays."""
    with warnings.catch_warnings():
        # Strings and consolidated metadata are extensions of Zarr v3 that all readers in use know.
        warnings.simplefilter("ignore")
        zarr.create_group(store, attributes=_root_attributes(hierarchy), overwrite=True)
        for stage in hierarchy.stages:
            for level in range(stage.first, stage.last + 1):
                _level_dataset(hierarchy, level).to_zarr(
                    store,
                    group=str(level) if hierarchy.pyramid else None,
                    mode="a",
                    compute=False,
                    consolidated=False,
                    encoding=_encodings(hierarchy, stage, level),
                    zarr_format=3,
                    safe_chunks=False,
                )
        _consolidate(store)


def _consolidate(store: Store) -> None:
    """Copy all metadata into the root's, so that opening takes one request; stores with a history do not need it."""
    if getattr(store, "supports_consolidated_metadata", True):
        zarr.consolidate_metadata(store)


def with_attributes(root: bytes, more: Mapping[str, Any]) -> bytes:
    """Return the metadata of a root with further attributes."""
    metadata = json.loads(root)
    metadata["attributes"].update(more)
    return json.dumps(metadata).encode()


def add_attributes(store: Store, more: Mapping[str, Any]) -> None:
    """Give the root of a store further attributes."""
    if not more:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in write_skeleton
        zarr.open_group(store, mode="r+", use_consolidated=False).update_attributes(dict(more))
        _consolidate(store)


def _level_dataset(hierarchy: Hierarchy, level: int) -> xr.Dataset:
    """Return the dataset of a level, with placeholders for the pixels of layers."""
    dataset = hierarchy.dataset
    coords = _level_coords(hierarchy, level)
    variables = {}
    for layer in hierarchy.layers:
        source = dataset[layer.name]
        sizes = (*source.shape[:-2], *hierarchy.levels[level])
        georeferenced = {"grid_mapping": "spatial_ref"} if "spatial_ref" in coords else {}
        placeholder = da.zeros(sizes, dtype=layer.data.dtype, chunks=sizes)
        variables[layer.name] = xr.Variable(source.dims, placeholder, _plain(source.attrs) | georeferenced)
    if level == 0:
        variables |= {str(name): _placeholder(a) for name, a in dataset.data_vars.items() if name not in variables}
    attrs = _plain(dataset.attrs) if hierarchy.pyramid else _root_attributes(hierarchy)
    out = xr.Dataset(variables, coords, attrs)
    text = {name: coord.astype(object) for name, coord in out.coords.items() if coord.dtype.kind == "U"}
    # In CF, the bounds of a coordinate are not a coordinate themselves.
    return out.assign_coords(text).drop_encoding().reset_coords(list(_bounds(out)))


def _bounds(dataset: xr.Dataset) -> Iterator[str]:
    """Yield the names of the coordinates that hold the bounds of others."""
    for coord in list(dataset.coords.values()):
        if coord.attrs.get("bounds") in dataset.coords:
            yield coord.attrs["bounds"]


def _level_coords(hierarchy: Hierarchy, level: int) -> dict[Hashable, Any]:
    coords: dict[Hashable, Any] = dict(hierarchy.dataset.coords)
    if level:
        coords = {name: coord for name, coord in coords.items() if not set(coord.dims) & {"y", "x"}}
        if hierarchy.geobox is not None:
            grid = level_geobox(hierarchy.geobox, hierarchy.levels[level], level)
            coords |= dict(xr_coords(grid, dims=("y", "x")))
    return coords


def _placeholder(array: xr.DataArray) -> xr.Variable:
    """Return a variable that is not a picture: unchanged, or a placeholder if it is lazy."""
    if not array.chunks:
        return array.variable
    chunks = tuple(sizes[0] for sizes in array.chunks)
    return array.variable.copy(data=da.zeros(array.shape, dtype=array.dtype, chunks=chunks))


def _encodings(hierarchy: Hierarchy, stage: Stage, level: int) -> dict[str, dict[str, Any]]:
    chunk = hierarchy.chunk
    compressor = zarr.codecs.ZstdCodec(level=hierarchy.compression, checksum=True)
    window = tuple(-(-axis.stop // chunk) * chunk for axis in stage.window(0, 0, level))
    out: dict[str, dict[str, Any]] = {}
    for layer in hierarchy.layers:
        whole = layer.data.shape[:-2]
        # Few bands are read together, as those of a picture; periods are read one by one.
        dims = hierarchy.dataset[layer.name].dims
        head = tuple(n if n <= 4 and dim != TIME else 1 for n, dim in zip(whole, dims, strict=False))
        encoding: dict[str, Any] = {"chunks": (*head, chunk, chunk), "compressors": [compressor]}
        if hierarchy.shards and (*head, *window) != (*whole, chunk, chunk):
            encoding["shards"] = (*whole, *window)
        if layer.nodata is not None:
            # Chunks that are not stored have no values, and GDAL reads the fill value as nodata.
            encoding["fill_value"] = layer.data.dtype.type(layer.nodata).item()
        out[layer.name] = encoding
    coords = hierarchy.dataset.coords
    if TIME in coords and coords[TIME].dtype.kind == "M":
        out |= dict.fromkeys({TIME, *_bounds(hierarchy.dataset)}, _TIME_UNITS)
    return out


def _root_attributes(hierarchy: Hierarchy) -> dict[str, Any]:
    geobox = hierarchy.geobox
    attrs: dict[str, Any] = {"Conventions": "CF-1.11", **_plain(hierarchy.dataset.attrs)}
    used = []
    if geobox is not None:
        used = ["spatial"] if geobox.crs is None else ["proj", "spatial"]
        attrs |= _spatial(geobox)
    if hierarchy.pyramid:
        used.append("multiscales")
        attrs["multiscales"] = _multiscales(hierarchy)
    if used:
        attrs["zarr_conventions"] = [_convention(name) for name in used]
    return attrs


def _plain(attrs: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Return attributes as JSON has them.

    Raises
    ------
    ParameterError
        One has no equivalent in JSON.
    """
    out = {}
    for name, value in attrs.items():
        plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        try:
            json.dumps(plain)
        except TypeError as error:
            raise ParameterError(
                f"attribute {name!r} is a {type(value).__name__}, which Zarr cannot hold; make it text or numbers"
            ) from error
        out[str(name)] = plain
    return out


def _convention(name: str) -> dict[str, str]:
    repository, uuid, description = _CONVENTIONS[name]
    base = f"zarr-conventions/{repository}"
    return {
        "schema_url": f"https://raw.githubusercontent.com/{base}/refs/tags/v1/schema.json",
        "spec_url": f"https://github.com/{base}/blob/v1/README.md",
        "uuid": uuid,
        "name": name,
        "description": description,
    }


def _spatial(geobox: GeoBox) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(tuple(geobox.transform)[:6]),
        "spatial:shape": [int(n) for n in geobox.shape],
        "spatial:bbox": [float(v) for v in geobox.boundingbox.bbox],
        "spatial:registration": "pixel",
    }
    if geobox.crs is not None:
        # Only an exact code: pyproj also offers codes of similar systems.
        authority = geobox.crs.proj.to_authority(min_confidence=100)
        attrs |= {"proj:code": ":".join(authority)} if authority else {"proj:wkt2": geobox.crs.to_wkt()}
    return attrs


def _multiscales(hierarchy: Hierarchy) -> dict[str, Any]:
    layout: list[dict[str, Any]] = []
    for level, shape in enumerate(hierarchy.levels):
        entry: dict[str, Any] = {"asset": str(level), "spatial:shape": list(shape)}
        if hierarchy.geobox is not None:
            entry["spatial:transform"] = list(tuple(level_geobox(hierarchy.geobox, shape, level).transform)[:6])
        if level:
            entry |= {"derived_from": str(level - 1), "transform": {"scale": [2.0, 2.0], "translation": [0.0, 0.0]}}
        layout.append(entry)
    return {"layout": layout, "resampling_method": hierarchy.layers[0].method}
