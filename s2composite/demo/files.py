"""Write scenes as cloud-optimised GeoTIFFs, several at once, in bounded memory at any size."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.shutil import copy as raster_copy
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow

from s2composite.demo.noise import Box
from s2composite.demo.passes import Pass, passes
from s2composite.demo.scene import ASSETS, View, render
from s2composite.demo.sky import weather_of
from s2composite.demo.terrain import Land, render_land
from s2composite.errors import ParameterError, WriteError

__all__ = ["make_scenes"]

_SIZE = 10980
"""Rows and columns of a whole granule at 10 m."""

_WEST, _NORTH, _CRS = 300000, 4900020, "EPSG:32631"
"""Upper left corner of T31TCJ in metres of its UTM zone."""

_BLOCK = 512
"""Side of the files' blocks, and of the boxes that are rendered at a time: arrays of 1 MB stay in the cache."""

_COMPRESSION: dict[str, dict[str, Any]] = {
    "jpeg": {"COMPRESS": "JPEG", "QUALITY": 90},
    "deflate": {"COMPRESS": "DEFLATE", "PREDICTOR": "YES", "LEVEL": 6},
}

_GDAL = {"GDAL_CACHEMAX": 64, "GDAL_NUM_THREADS": 1, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""A small cache, because each pixel is written once; scenes are made side by side instead of the blocks of one."""


@dataclass(frozen=True, slots=True)
class _Series:
    """All that the scenes of one call have in common."""

    directory: Path
    """Where the files go."""

    size: int
    """Rows and columns."""

    seed: int
    """Which land and which weather."""

    compress: str
    """A key of _COMPRESSION."""

    assets: tuple[str, ...]
    """Which of ASSETS to write."""

    def path(self, scene: Pass, asset: str) -> Path:
        return self.directory / f"{scene.stem}_{asset}.tif"


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
    wanted = scenes if distinct is None else distinct
    _check(scenes, size, compress, year, wanted)
    _check_assets(tuple(assets))
    series = _Series(Path(directory), size, seed, compress, tuple(assets))
    dates = passes(scenes, year)
    try:
        series.directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".making-", dir=series.directory) as scratch:
            for done in _make(series, dates, wanted, Path(scratch)):
                if progress is not None:
                    progress(done, scenes)
    except (OSError, RasterioError) as error:
        raise WriteError(f"cannot write scenes to {directory}: {error}; is it writable, and is there room?") from error
    return tuple(str(series.path(scene, asset)) for scene in dates for asset in assets)


def _check(scenes: int, size: int, compress: str, year: int, distinct: int) -> None:
    if not 1 <= distinct <= scenes:
        raise ParameterError(
            f"scenes={scenes}, distinct={distinct}: give at least 1 scene, and at most as many distinct ones"
        )
    if not 16 <= size <= _SIZE:
        raise ParameterError(f"size={size}; give 16 to {_SIZE} pixels, the size of the whole granule")
    if compress not in _COMPRESSION:
        raise ParameterError(f"compress={compress!r}; use one of {sorted(_COMPRESSION)}")
    if not 1 <= year <= 9000:
        raise ParameterError(f"year={year}; give 1 to 9000")


def _check_assets(assets: tuple[str, ...]) -> None:
    if not assets or len(set(assets)) < len(assets) or not set(assets) <= set(ASSETS):
        raise ParameterError(f"assets={assets!r}; use some of {ASSETS}, each once")


def _make(series: _Series, dates: Sequence[Pass], wanted: int, scratch: Path) -> Iterator[int]:
    """Make the files, several scenes at once; yield how many scenes are done after each."""
    scenes = len(dates)
    rendered = [-(-i * scenes // wanted) for i in range(wanted)]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        land = _survey(series, pool)
        running = [pool.submit(_make_scene, series, dates[i], index, land, scratch) for index, i in enumerate(rendered)]
        try:
            for done, future in enumerate(as_completed(running), 1):
                future.result()
                yield done
        finally:
            pool.shutdown(cancel_futures=True)
    done = wanted
    for i in sorted(set(range(scenes)) - set(rendered)):
        _link(series, dates[rendered[i * wanted // scenes]], dates[i])
        done += 1
        yield done


def _boxes(size: int) -> list[Box]:
    steps = range(0, size, _BLOCK)
    return [Box(y, x, min(y + _BLOCK, size), min(x + _BLOCK, size)) for y in steps for x in steps]


def _survey(series: _Series, pool: ThreadPoolExecutor) -> NDArray[np.uint8]:
    """Render the land once for all scenes; return cover, texture and slope, ``(3, y, x)``: 362 MB for the granule."""
    maps = np.empty((3, series.size, series.size), np.uint8)

    def fill(box: Box) -> None:
        land = render_land(box, series.seed)
        for layer, values in enumerate((land.cover, land.texture, land.slope)):
            maps[layer, box.y0 : box.y1, box.x0 : box.x1] = values.view(np.uint8)

    list(pool.map(fill, _boxes(series.size)))
    return maps


def _land(maps: NDArray[np.uint8], box: Box) -> Land:
    cover, texture, slope = maps[:, box.y0 : box.y1, box.x0 : box.x1]
    return Land(cover, texture.view(np.int8), slope.view(np.int8))


def _make_scene(series: _Series, scene: Pass, index: int, maps: NDArray[np.uint8], scratch: Path) -> None:
    """Render a scene box by box into plain TIFFs, and make these into its files."""
    view = View(scene, weather_of(scene, index, series.seed), series.size, series.assets)
    with rasterio.Env(**_GDAL):
        with ExitStack() as stack:
            drafts = {asset: stack.enter_context(_draft(series, scene, asset, scratch)) for asset in series.assets}
            for box in _boxes(series.size):
                for asset, pixels in render(view, box, _land(maps, box)).items():
                    drafts[asset].write(pixels if pixels.ndim == 3 else pixels[None], window=_window(box, asset))
        for asset in series.assets:
            _finish(series, scene, asset, scratch)


def _step(asset: str) -> int:
    """Return how many pixels of 10 m a pixel of an asset is wide."""
    return 2 if asset == "SCL" else 1


def _window(box: Box, asset: str) -> RasterWindow:
    step = _step(asset)
    return RasterWindow(box.x0 // step, box.y0 // step, -(-box.shape[1] // step), -(-box.shape[0] // step))


def _draft(series: _Series, scene: Pass, asset: str, scratch: Path) -> Any:
    """Open an uncompressed TIFF for an asset."""
    step = _step(asset)
    side = -(-series.size // step)
    profile = {
        "width": side,
        "height": side,
        "count": 3 if asset == "TCI" else 1,
        "dtype": "uint8" if asset in ("TCI", "SCL") else "uint16",
        "nodata": 0,
        "crs": _CRS,
        "transform": Affine(10 * step, 0, _WEST, 0, -10 * step, _NORTH),
    }
    blocks = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "interleave": "pixel"}
    return rasterio.open(scratch / f"{scene.stem}_{asset}", "w", driver="GTiff", **profile, **blocks)


def _finish(series: _Series, scene: Pass, asset: str, scratch: Path) -> None:
    """Turn an asset's draft into a COG that has its name only when it is complete."""
    options = _COMPRESSION[series.compress if asset == "TCI" else "deflate"]
    draft, path = scratch / f"{scene.stem}_{asset}", series.path(scene, asset)
    overviews = "MODE" if asset == "SCL" else "AVERAGE"
    fixed = {"BLOCKSIZE": _BLOCK, "OVERVIEW_RESAMPLING": overviews, "BIGTIFF": "IF_SAFER"}
    try:
        raster_copy(draft, scratch / path.name, driver="COG", **fixed, **options)
    except Exception as error:  # GDAL's own errors have no public class in rasterio
        raise OSError(f"{path.name}: {error}") from error
    draft.unlink()
    (scratch / path.name).replace(path)


def _link(series: _Series, scene: Pass, alias: Pass) -> None:
    """Give a scene's files a second date."""
    for asset in series.assets:
        path = series.path(alias, asset)
        path.unlink(missing_ok=True)
        try:
            path.hardlink_to(series.path(scene, asset))
        except OSError:  # a file system without hard links
            shutil.copyfile(series.path(scene, asset), path)
