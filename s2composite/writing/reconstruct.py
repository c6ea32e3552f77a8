"""Reconstruct: one file from the tiles that separate workers have written, if all are there and fit together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from dask.base import tokenize
from dask.delayed import delayed
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from s2composite.errors import SourceError, TilesError
from s2composite.reading.warp import read_info
from s2composite.scenes.storage import absolute, display, filesystem, is_remote, reason
from s2composite.writing.cog import write_raster
from s2composite.writing.mosaic import Mosaic, Tile, check_alike, lay_tiles

__all__ = ["reconstruct"]

_ENDS = (".tif", ".tiff")


def reconstruct(
    tiles: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    shape: tuple[int, int] | None = None,
    **options: Any,
) -> str:
    """Assemble the tiles that separate workers have written as one cloud-optimised GeoTIFF.

    The position of a tile follows from its name, ``tile_{x}_{y}.tif`` with the column and row of its first pixel, or
    from its georeference; if it has both, they must agree. Tiles are read, encoded and forgotten one by one, on the
    current Dask client or in threads, so that memory holds a few of them. The file is complete and verified, or absent.

    Parameters
    ----------
    tiles
        A directory, a glob, a ``gs://`` or ``s3://`` prefix, or paths and URLs.
    path
        As for `s2composite.writing.cog.write_raster`.
    shape
        ``(y, x)``: rows and columns of the whole. Without it, a missing last row or column of tiles goes unnoticed;
        only gaps between the outermost tiles are found.
    **options
        Encoding, ``overwrite``, ``tags`` and ``progress``, as for `s2composite.writing.cog.write_raster`.

    Returns
    -------
    str
        The file written.

    Raises
    ------
    SourceError
        There are no tiles, or they cannot be listed.
    TilesError
        Tiles are missing, overlap, or differ from the others; carries ``missing``, ``overlapping`` or ``unlike``.
    ReadError
        A tile cannot be read.
    WriteError
        The file exists or cannot be written.

    Examples
    --------
    >>> import s2composite as s2c
    >>> s2c.reconstruct("gs://bucket/results/", "median.tif")  # doctest: +SKIP
    '/home/me/median.tif'
    """
    hrefs = _listed(tiles)
    # Whether tiles are georeferenced is one of the questions. Warnings are set here, since threads share the setting.
    with warnings.catch_warnings(), ThreadPoolExecutor(16) as pool:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        found = list(pool.map(_look, hrefs))
    check_alike(found)
    mosaic = lay_tiles(found, shape)
    (written,) = write_raster(_dataset(mosaic), path, **{"layers": "composite", **options})
    return written


# --- which tiles ----------------------------------------------------------------------------------------------------


def _listed(tiles: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the paths or URLs of all tiles.

    Raises
    ------
    SourceError
        There are none, or they cannot be listed.
    """
    if not isinstance(tiles, str | os.PathLike):
        hrefs = [absolute(tile) for tile in tiles]
        where = "the list"
    else:
        where = absolute(tiles)
        hrefs = _found(where)
    if not hrefs:
        raise SourceError(f"{display(where)}: holds no tiles (.tif files)")
    return sorted(set(hrefs))


def _found(where: str) -> list[str]:
    fs, path = filesystem(where)
    scheme = f"{where.partition('://')[0]}://" if is_remote(where) else ""
    try:
        if any(sign in path for sign in "*?["):
            names = fs.glob(path)
        else:
            names = [path] if path.lower().endswith(_ENDS) else fs.ls(path.rstrip("/"), detail=False)
    except FileNotFoundError as error:
        raise SourceError(f"{display(where)}: does not exist") from error
    except Exception as error:  # clients of object stores raise their own kinds
        raise SourceError(f"{display(where)}: cannot be listed: {reason(where, error)}") from error
    return [f"{scheme}{name}" for name in map(str, names) if name.lower().endswith(_ENDS)]


def _look(href: str) -> Tile:
    """Return a tile as its header describes it.

    Raises
    ------
    TilesError
        It has a mask, which would be lost.
    """

    def look(source: rasterio.DatasetReader) -> Tile:
        georeferenced = source.crs is not None or source.transform != Affine.identity()
        if any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in source.mask_flag_enums):
            raise TilesError(f"{display(href)}: has a mask beside its pixels; write tiles with a nodata value instead")
        return Tile(
            href,
            source.count,
            source.dtypes[0],
            source.nodata,
            None if source.crs is None else source.crs.to_wkt(),
            source.transform if georeferenced else None,
            source.shape,
            source.descriptions,
        )

    return read_info(href, look)


# --- pixels ---------------------------------------------------------------------------------------------------------


def _dataset(mosaic: Mosaic) -> xr.Dataset:
    """Return the whole, lazily: one task per cell reads its part of a tile."""
    first = mosaic.tiles[0]
    chunks = tuple(tuple(b - a for a, b in pairwise(axis)) for axis in mosaic.edges)
    shared = delayed(mosaic, name=f"send-tile-list-{tokenize(mosaic.tiles)}", pure=True, traverse=False)
    data = da.map_blocks(
        _read_cell,
        mosaic=shared,
        chunks=((first.bands,), *chunks),
        dtype=first.dtype,
        meta=np.empty((0, 0, 0), first.dtype),
        name=f"read-tiles-{tokenize(mosaic.tiles, mosaic.edges)}",
    )
    names = [name or f"band_{i + 1}" for i, name in enumerate(first.names)]
    coords: dict[Any, Any] = {"band": names if len(set(names)) == len(names) else list(range(1, len(names) + 1))}
    if mosaic.transform is not None:
        geobox = GeoBox((mosaic.edges[0][-1], mosaic.edges[1][-1]), mosaic.transform, first.crs)
        coords |= dict(xr_coords(geobox, dims=("y", "x")))
    attrs = {"overviews": "average"} | ({} if first.nodata is None else {"nodata": first.nodata})
    return xr.Dataset({"composite": (("band", "y", "x"), data, attrs)}, coords, {"tiles": str(len(mosaic.tiles))})


def _read_cell(mosaic: Mosaic, block_id: tuple[int, int, int]) -> NDArray[Any]:
    _, row, column = block_id
    number = int(mosaic.owners[row, column])
    tile, place = mosaic.tiles[number], mosaic.places[number]
    window = tuple(
        slice(axis[i] - start, axis[i + 1] - start)
        for axis, i, start in zip(mosaic.edges, (row, column), place, strict=True)
    )
    part = Window.from_slices(*window)
    return read_info(tile.href, lambda source: source.read(window=part))
