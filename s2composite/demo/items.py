"""STAC items of generated scenes, in the form of Earth Search: what a catalogue would say of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.warp import transform_bounds

from s2composite.errors import WriteError
from s2composite.scenes.listing import SceneSource, find_scenes
from s2composite.scenes.model import Asset, Scene

__all__ = ["make_items"]

_COMMON_NAMES = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}
_REFLECTANCE = {"scale": 1e-4, "offset": 0}
_CLOUDS = (8, 9, 10)
"""Classes of the scene classification that ESA counts as clouds."""


def make_items(scenes: SceneSource, directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write a STAC item for each generated scene, so that a catalogue can be tried without a network.

    Items are as Earth Search has them: grids (``proj``), types, and ``eo:cloud_cover`` from the classification.

    Parameters
    ----------
    scenes
        What `find_scenes` takes, on this machine: the directory that `make_scenes` has filled.
    directory
        Where to write ``T31TCJ_20230709T104629.json`` and so on; made if it is not there. Another one than that of the
        scenes: where there are rasters, item files beside them are not looked at.

    Returns
    -------
    tuple of str
        Paths of the items, ordered by time.

    Raises
    ------
    SourceError
        There are no scenes.
    WriteError
        The directory or a file cannot be written.

    Examples
    --------
    >>> import s2composite as s2c
    >>> from s2composite.demo import make_items, make_scenes
    >>> files = make_scenes("doctest_l2a", scenes=2, size=256, assets=["B04", "B08", "SCL"])
    >>> items = make_items("doctest_l2a", "doctest_items")
    >>> s2c.open_cube("doctest_items", bands=["red", "nir"]).shape
    (2, 2, 256, 256)
    """
    home = Path(directory)
    found = find_scenes(scenes)
    try:
        home.mkdir(parents=True, exist_ok=True)
        return tuple(_write(scene, home) for scene in found)
    except OSError as error:
        raise WriteError(f"cannot write items to {home}: {error.strerror}; is it writable?") from error


def _write(scene: Scene, home: Path) -> str:
    path = home / f"{scene.id}.json"
    path.write_text(json.dumps(_item(scene, home), indent=2), "utf-8")
    return str(path)


def _item(scene: Scene, home: Path) -> dict[str, Any]:
    facts = {asset.name: _described(asset, home) for asset in scene.assets}
    west, south, east, north = box = _bounds(scene)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        ],
        "id": scene.id,
        "collection": "sentinel-2-l2a",
        "bbox": list(box),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "links": [],
        "assets": facts,
        "properties": {
            "datetime": f"{scene.time:%Y-%m-%dT%H:%M:%SZ}",
            "constellation": "sentinel-2",
            "platform": "sentinel-2a",
            "grid:code": f"MGRS-{scene.granule}",
            "s2:processing_baseline": "05.09",
            "earthsearch:boa_offset_applied": True,  # generated numbers are reflectance x 10000, no offset on top
            **_cloud_cover(scene),
        },
    }


def _described(asset: Asset, home: Path) -> dict[str, Any]:
    """Return what an item says of a file."""
    with rasterio.open(asset.href) as file:
        bands = [{"data_type": kind, "nodata": file.nodata} for kind in file.dtypes]
        grid = {
            "proj:code": str(file.crs),
            "proj:shape": list(file.shape),
            "proj:transform": list(file.transform)[:6],
        }
    name = _COMMON_NAMES.get(asset.name)
    spectral: Mapping[str, Any] = {} if name is None else {"eo:bands": [{"name": asset.name, "common_name": name}]}
    return {
        "href": os.path.relpath(asset.href, home.absolute()),
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "raster:bands": [{**band, **(_REFLECTANCE if name else {})} for band in bands],
        **grid,
        **spectral,
    }


def _bounds(scene: Scene) -> tuple[float, float, float, float]:
    """Return west, south, east and north in degrees."""
    with rasterio.open(scene.assets[0].href) as file:
        west, south, east, north = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    return west, south, east, north


def _cloud_cover(scene: Scene) -> dict[str, float]:
    """Return the share of clouds in percent of what was seen; nothing for a scene without classification."""
    classes = next((asset.href for asset in scene.assets if asset.name == "SCL"), None)
    if classes is None:
        return {}
    with rasterio.open(classes) as file:
        values = file.read(1)
    seen = np.count_nonzero(values)
    return {"eo:cloud_cover": round(100 * np.isin(values, _CLOUDS).sum() / max(seen, 1), 2)}
