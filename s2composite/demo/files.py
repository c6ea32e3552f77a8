"""Files of synthetic scenes: cloud-optimised GeoTIFFs, several at once in bounded memory, and their STAC items."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.shutil import copy as raster_copy
from rasterio.transform import Affine
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterWindow

from s2composite.demo.imagery import ASSETS, Box, Land, Overpass, overpasses, render, render_land, weather_of
from s2composite.errors import ParameterError, WriteError, check_choice
from s2composite.scenes.find import SceneSource, find_scenes
from s2composite.scenes.model import Scene
from s2composite.scenes.products import common_name

__all__ = ["make_items", "make_scenes"]

_SIZE = 10980  # rows and columns of a whole granule at 10 m
_WEST, _NORTH, _CRS = 300000, 4900020, "EPSG:32631"  # upper left corner of T31TCJ in metres of its UTM zone
_BLOCK = 512  # side of the files' blocks, and of the boxes that are rendered at a time: 1 MB stays in the cache

_COMPRESSION: dict[str, dict[str, Any]] = {
    "jpeg": {"COMPRESS": "JPEG", "QUALITY": 90},
    "deflate": {"COMPRESS": "DEFLATE", "PREDICTOR": "YES", "LEVEL": 6},
}


def make_scenes(
    directory: str | os.PathLike[str],
    *,
    scenes: int = 24,
    size: int = 1024,
    seed: int = 0,
    compress: str = "jpeg",
    year: int = 2023,
    assets: Sequence[str] = ("TCI",),
    distinct: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[str, ...]:
    """Make a season of synthetic Sentinel-2 scenes of the granule T31TCJ as cloud-optimised GeoTIFFs.

    Fields, woods, a river and towns change with the season under clouds, shadows and haze; three relative orbits see
    parts of the area, with 0 where they do not; the tops of clouds are 255. Dates follow the real rhythm of two
    satellites: April to September while there are enough of them (110), else the year (219), else several years.

    Parameters
    ----------
    directory
        Where to write; made if it is not there. Files of the same name are replaced, others stay.
    scenes
        Number of scenes.
    size
        Rows and columns of 10 m: the upper left part of the granule's real grid, 10980 for all of it. The swaths' edges
        are moved to cross that part; apart from them a pixel has the same value at any size.
    seed
        Another number gives another land and another weather. The same arguments give the same bytes.
    compress
        ``"jpeg"`` (YCbCr, quality 90; lossy, so that the edge of a swath is not exactly 0) or ``"deflate"`` (lossless).
        Assets other than TCI are always lossless.
    year
        Year of the first scenes.
    assets
        Any of ``"TCI"`` (3 x uint8), ``"SCL"`` (scene classification, uint8, 20 m), ``"B02"``, ``"B03"``, ``"B04"`` and
        ``"B08"`` (reflectance x 10000, uint16, 10 m); each is a file of its own.
    distinct
        Render only so many scenes; the others are links to them under their own dates. For benchmarks of large stacks.
    progress
        Called with the number of scenes done and of all scenes after each scene.

    Returns
    -------
    tuple of str
        Paths ``T31TCJ_20230709T104629_TCI.tif``, ordered by time, those of a scene in the order of `assets`.

    Raises
    ------
    ParameterError
        An argument makes no sense.
    WriteError
        The directory or a file cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> [Path(file).name for file in files]
    ['T31TCJ_20230501T110629_TCI.tif', 'T31TCJ_20230702T105629_TCI.tif', 'T31TCJ_20230831T105629_TCI.tif']
    """
    assets, rendered = tuple(assets), scenes if distinct is None else distinct
    if not 1 <= rendered <= scenes:
        raise ParameterError(
            f"scenes={scenes}, distinct={rendered}: give at least 1 scene, and at most as many distinct ones"
        )
    if not 16 <= size <= _SIZE:
        raise ParameterError(f"size={size}; give 16 to {_SIZE} pixels, the size of the whole granule")
    check_choice("compress", compress, tuple(_COMPRESSION))
    if not 1 <= year <= 9000:
        raise ParameterError(f"year={year}; give 1 to 9000")
    if not assets or len(set(assets)) < len(assets) or not set(assets) <= set(ASSETS):
        raise ParameterError(f"assets={assets!r}; use some of {ASSETS}, each once")
    home, dates = Path(directory), overpasses(scenes, year)
    files = {date: {asset: home / f"{date.stem}_{asset}.tif" for asset in assets} for date in dates}
    # The i-th of the rendered scenes stands for all dates up to the next.
    first = [-(-i * scenes // rendered) for i in range(rendered)]
    copies = [(i, first[i * rendered // scenes]) for i in sorted(set(range(scenes)) - set(first))]
    report = progress or (lambda *_: None)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (
            TemporaryDirectory(prefix=".making-", dir=home) as scratch,
            ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool,
        ):
            land = _render_whole_land(size, seed, pool)
            running = [
                pool.submit(_write_scene, dates[i], index, files[dates[i]], land, seed, compress, Path(scratch))
                for index, i in enumerate(first)
            ]
            try:
                for done, future in enumerate(as_completed(running), 1):
                    future.result()
                    report(done, scenes)
            finally:
                pool.shutdown(cancel_futures=True)
        for done, (i, source) in enumerate(copies, rendered + 1):
            for asset in assets:
                original, path = files[dates[source]][asset], files[dates[i]][asset]
                path.unlink(missing_ok=True)
                try:
                    path.hardlink_to(original)
                except OSError:  # a file system without hard links
                    shutil.copyfile(original, path)
            report(done, scenes)
    except (OSError, RasterioError) as error:
        raise WriteError(f"cannot write scenes to {directory}: {error}; is it writable, and is there room?") from error
    return tuple(str(path) for paths in files.values() for path in paths.values())


def _boxes(size: int) -> list[Box]:
    steps = range(0, size, _BLOCK)
    return [Box(y, x, min(y + _BLOCK, size), min(x + _BLOCK, size)) for y in steps for x in steps]


def _render_whole_land(size: int, seed: int, pool: ThreadPoolExecutor) -> Land:
    """Render the land once for all scenes: 362 MB for the granule."""
    shape = (size, size)
    whole = Land(np.empty(shape, np.uint8), np.empty(shape, np.int8), np.empty(shape, np.int8))

    def fill(box: Box) -> None:
        for layer, rendered in zip(whole.part(box), render_land(box, seed), strict=True):
            layer[...] = rendered

    list(pool.map(fill, _boxes(size)))
    return whole


def _write_scene(
    overpass: Overpass, index: int, files: dict[str, Path], land: Land, seed: int, compress: str, scratch: Path
) -> None:
    """Render a scene box by box into plain TIFFs, and make these into COGs that have their names once complete."""
    size, weather = len(land.cover), weather_of(overpass, index, seed)
    drafts = {asset: scratch / path.stem for asset, path in files.items()}
    step = {asset: 2 if asset == "SCL" else 1 for asset in files}  # in pixels of 10 m
    # A small cache, because each pixel is written once; scenes are made side by side instead of the blocks of one.
    with rasterio.Env(GDAL_CACHEMAX=64, GDAL_NUM_THREADS=1, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        with ExitStack() as stack:
            open_files = {}
            for asset in files:
                side = -(-size // step[asset])
                # A block is a box, written once and whole. Of blocks written in four parts, a part was once empty,
                # likely because other threads filled the cache of GDAL meanwhile; not proven.
                block = _BLOCK // step[asset]
                open_files[asset] = stack.enter_context(
                    rasterio.open(
                        drafts[asset], "w", driver="GTiff", width=side, height=side, count=3 if asset == "TCI" else 1,
                        dtype="uint8" if asset in ("TCI", "SCL") else "uint16", nodata=0, crs=_CRS,
                        transform=Affine(10 * step[asset], 0, _WEST, 0, -10 * step[asset], _NORTH),
                        tiled=True, blockxsize=block, blockysize=block, interleave="pixel",
                    )
                )  # fmt: skip
            for box in _boxes(size):
                for asset, pixels in render(
                    box, land.part(box), overpass, weather, size=size, assets=tuple(files)
                ).items():
                    _, height, width = pixels.shape
                    window = RasterWindow(box.x0 // step[asset], box.y0 // step[asset], width, height)
                    open_files[asset].write(pixels, window=window)
        for asset, path in files.items():
            finished = scratch / path.name
            options = {
                "BLOCKSIZE": _BLOCK,
                "OVERVIEW_RESAMPLING": "MODE" if asset == "SCL" else "AVERAGE",
                "BIGTIFF": "IF_SAFER",
                **_COMPRESSION[compress if asset == "TCI" else "deflate"],
            }
            try:
                raster_copy(drafts[asset], finished, driver="COG", **options)
            except Exception as error:  # GDAL's own errors have no public class in rasterio
                raise OSError(f"{path.name}: {error}") from error
            drafts[asset].unlink()
            finished.replace(path)


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
    home, listed = Path(directory), find_scenes(scenes)
    paths = []
    try:
        home.mkdir(parents=True, exist_ok=True)
        for scene in listed:
            paths.append(home / f"{scene.id}.json")
            paths[-1].write_text(json.dumps(_item(scene, home), indent=2), "utf-8")
    except OSError as error:
        raise WriteError(f"cannot write items to {home}: {error.strerror}; is it writable?") from error
    return tuple(str(path) for path in paths)


def _item(scene: Scene, home: Path) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "datetime": f"{scene.time:%Y-%m-%dT%H:%M:%SZ}",
        "constellation": "sentinel-2",
        "platform": "sentinel-2a",
        "grid:code": f"MGRS-{scene.granule}",
        "s2:processing_baseline": "05.09",
        "earthsearch:boa_offset_applied": True,  # generated numbers are reflectance x 10000, no offset on top
    }
    assets = {}
    for asset in scene.assets:
        with rasterio.open(asset.href) as file:
            fields = {
                "href": os.path.relpath(asset.href, home.absolute()),
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
                "raster:bands": [{"data_type": dtype, "nodata": file.nodata} for dtype in file.dtypes],
                "proj:code": str(file.crs),
                "proj:shape": list(file.shape),
                "proj:transform": list(file.transform)[:6],
            }
            if asset.name == "SCL":
                classes = file.read(1)
                cloudy, seen = np.isin(classes, (8, 9, 10)).sum(), np.count_nonzero(classes)  # as ESA counts clouds
                properties["eo:cloud_cover"] = round(100 * cloudy / max(seen, 1), 2)
            if asset is scene.assets[0]:
                west, south, east, north = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        if (band := common_name(asset.name)) is not None:
            fields["raster:bands"] = [{**values, "scale": 1e-4, "offset": 0} for values in fields["raster:bands"]]
            fields["eo:bands"] = [{"name": asset.name, "common_name": band}]
        assets[asset.name] = fields
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
        "bbox": [west, south, east, north],
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
        },
        "links": [],
        "assets": assets,
        "properties": properties,
    }
