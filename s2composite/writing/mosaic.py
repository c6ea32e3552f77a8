"""One file from the tiles that separate workers have written, if all are there, alike and fit together."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

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

from s2composite.cube.georeference import north_up
from s2composite.errors import SourceError, TilesError, listed
from s2composite.reading.warp import read_info
from s2composite.storage.files import absolute, display, filesystem, is_remote, storage_errors
from s2composite.writing.cog import plan_files, write_files
from s2composite.writing.options import RasterOptions

__all__ = ["reconstruct"]

_LISTED = 20  # missing tiles that a message names; all are in the error's ``missing``

_SLACK = 0.01  # fraction of a pixel by which tiles may be off the grid: coordinates are rounded when they are written


class Tile(NamedTuple):
    """What the header of one tile says."""

    href: str
    bands: int
    dtype: str
    nodata: float | None
    crs: str | None  # as WKT
    transform: Affine | None  # None: it is not georeferenced
    shape: tuple[int, int]  # ``(y, x)`` in pixels
    names: tuple[str | None, ...]  # description of each band

    @property
    def position(self) -> tuple[int, int] | None:
        """Row and column of the first pixel, as the name says."""
        match = re.search(r"tile_(\d+)_(\d+)\.tiff?$", self.href, re.IGNORECASE)
        return None if match is None else (int(match[2]), int(match[1]))


def reconstruct(
    tiles: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    shape: tuple[int, int] | None = None,
    overwrite: bool = False,
    compress: str = "deflate",
    level: int | None = None,
    predictor: str | int = "auto",
    blocksize: int = 512,
    overview_resampling: str | None = None,
    mask: bool | None = None,
    bigtiff: bool | str = "auto",
    jpeg_quality: int = 85,
    tags: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> str:
    """Assemble the tiles that separate workers have written as one cloud-optimised GeoTIFF.

    The position of a tile follows from its name, ``tile_{x}_{y}.tif`` with the column and row of its first pixel, or
    from its georeference; if it has both, they must agree. Tiles are read, encoded and forgotten one by one, on the
    current Dask client or in threads, so that memory holds a few of them. The file is complete and verified, or absent.

    Parameters
    ----------
    tiles : str, os.PathLike or iterable of these
        A directory, a glob, a ``gs://`` or ``s3://`` prefix, or paths and URLs.
    path : str or os.PathLike
        Local path, ``gs://`` or ``s3://`` URL, or an ``https://`` URL signed for a PUT.
    shape : tuple of int, optional
        ``(y, x)``: rows and columns of the whole. Without it, a missing last row or column of tiles goes unnoticed;
        only gaps between the outermost tiles are found.
    overwrite, compress, level, predictor, blocksize, overview_resampling, mask, bigtiff, jpeg_quality, tags, progress
        As for `Composite.to_raster`.

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
        headers = list(pool.map(_read_tile_header, hrefs))
    _check_alike(headers)
    mosaic = _lay_tiles(headers, shape)
    # The whole is lazy: one task for each cell reads its part of a tile.
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
    dataset = north_up(
        xr.Dataset({"composite": (("band", "y", "x"), data, attrs)}, coords, {"tiles": str(len(mosaic.tiles))})
    )
    options = RasterOptions(compress, level, predictor, blocksize, overview_resampling, mask, bigtiff, jpeg_quality)
    plans = plan_files(dataset, path, "composite", options, tags=tags)
    (written,), _ = write_files(dataset, plans, overwrite=overwrite, progress=progress)
    return display(written.path)


# --- which tiles ------------------------------------------------------------------------------------------------------


def _listed(tiles: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the paths or URLs of all tiles; raises a SourceError if there are none, or they cannot be listed."""
    if not isinstance(tiles, str | os.PathLike):
        where, hrefs = "the list", [absolute(tile) for tile in tiles]
    else:
        where = absolute(tiles)
        fs, path = filesystem(where)
        scheme = f"{where.partition('://')[0]}://" if is_remote(where) else ""
        ends = (".tif", ".tiff")
        with storage_errors(SourceError, f"{display(where)}: cannot be listed", where):
            try:
                if any(sign in path for sign in "*?["):
                    names = fs.glob(path)
                else:
                    names = [path] if path.lower().endswith(ends) else fs.ls(path.rstrip("/"), detail=False)
            except FileNotFoundError as error:
                raise SourceError(f"{display(where)}: does not exist") from error
        hrefs = [f"{scheme}{name}" for name in map(str, names) if name.lower().endswith(ends)]
    if not hrefs:
        raise SourceError(f"{display(where)}: holds no tiles (.tif files)")
    return sorted(set(hrefs))


def _read_tile_header(href: str) -> Tile:
    """Return a tile as its header describes it; raises a TilesError if it has a mask, which would be lost."""

    def tile_of(source: rasterio.DatasetReader) -> Tile:
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

    return read_info(href, tile_of)


def _check_alike(tiles: Sequence[Tile]) -> None:
    """Raise a TilesError that names a tile which differs from most others, and in what."""
    properties: dict[str, Callable[[Tile], Any]] = {
        "number of bands": lambda t: t.bands,
        "dtype": lambda t: t.dtype,
        "nodata value": lambda t: str(t.nodata),
        "CRS": lambda t: t.crs,
        "size of pixels": lambda t: (
            None if t.transform is None else tuple(np.round(tuple(t.transform)[i], 9) for i in (0, 1, 3, 4))
        ),
    }

    def short(value: Any) -> str:  # of a CRS its name
        match = re.match(r'\w+\["([^"]+)"', str(value))
        return match[1] if match else str(value)

    for name, value_of in properties.items():
        usual = Counter(value_of(tile) for tile in tiles).most_common(1)[0][0]
        odd = [tile for tile in tiles if value_of(tile) != usual]
        if odd:
            raise TilesError(
                f"{display(odd[0].href)}: its {name} is {short(value_of(odd[0]))}, but {short(usual)} for most tiles"
                + (f"; {len(odd) - 1} more differ" if len(odd) > 1 else ""),
                unlike=tuple(display(tile.href) for tile in odd),
            )


# --- where they lie ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Where tiles lie in the whole that they make."""

    tiles: tuple[Tile, ...]  # in no particular order
    places: tuple[tuple[int, int], ...]  # row and column of the first pixel of each tile

    # all rows and columns at which a tile begins or ends; each cell between them belongs to one tile
    edges: tuple[tuple[int, ...], tuple[int, ...]]
    owners: NDArray[np.intp]  # index of the tile of each cell ``(row, column)``
    transform: Affine | None  # of the whole; None: it is not georeferenced


def _lay_tiles(tiles: Sequence[Tile], shape: tuple[int, int] | None) -> Mosaic:
    """Return where tiles lie in a whole of `shape` ``(y, x)``; None: in the smallest that holds them."""
    places, transform = _places(tiles)
    whole = shape or tuple(
        max(place[axis] + tile.shape[axis] for place, tile in zip(places, tiles, strict=True)) for axis in (0, 1)
    )
    spans = [((y, y + tile.shape[0]), (x, x + tile.shape[1])) for (y, x), tile in zip(places, tiles, strict=True)]
    for tile, ((_, bottom), (_, right)) in zip(tiles, spans, strict=True):
        if bottom > whole[0] or right > whole[1]:
            raise TilesError(f"{display(tile.href)}: reaches beyond the {whole[0]} x {whole[1]} pixels of the whole")
    edges = tuple(tuple(sorted({0, whole[axis], *(edge for span in spans for edge in span[axis])})) for axis in (0, 1))
    owners = np.full([len(axis) - 1 for axis in edges], -1)
    for number, span in enumerate(spans):
        cells = tuple(slice(*np.searchsorted(axis, ends)) for axis, ends in zip(edges, span, strict=True))
        if (taken := owners[cells][owners[cells] >= 0]).size:
            pair = (display(tiles[int(taken[0])].href), display(tiles[number].href))
            raise TilesError(f"{pair[0]} and {pair[1]} overlap", overlapping=pair)
        owners[cells] = number
    if not (owners < 0).any():
        return Mosaic(tuple(tiles), tuple(places), (edges[0], edges[1]), owners, transform)
    # What is missing is listed by name if the tiles have names.
    named = all(tile.position for tile in tiles)
    steps = [Counter(span[axis][1] - span[axis][0] for span in spans).most_common(1)[0][0] for axis in (0, 1)]
    missing: dict[str, None] = {}
    for row, column in np.argwhere(owners < 0):
        y, x = edges[0][row : row + 2], edges[1][column : column + 2]
        if not named:
            missing[f"y {y[0]}:{y[1]}, x {x[0]}:{x[1]}"] = None
            continue
        # A gap of several tiles is one cell if nothing begins or ends inside it.
        for top in range(y[0] // steps[0] * steps[0], y[1], steps[0]):
            for left in range(x[0] // steps[1] * steps[1], x[1], steps[1]):
                missing[f"tile_{left}_{top}.tif"] = None
    raise TilesError(
        f"{len(missing)} tile(s) are missing besides the {len(tiles)} found: {listed(missing, _LISTED)}",
        missing=tuple(missing),
    )


def _places(tiles: Sequence[Tile]) -> tuple[list[tuple[int, int]], Affine | None]:
    """Return row and column of the first pixel of each tile, by name or georeference, and the whole's transform."""
    by_name = [tile.position for tile in tiles]
    if tiles[0].transform is None:
        if unknown := [tile for tile, place in zip(tiles, by_name, strict=True) if place is None]:
            raise TilesError(
                f"{display(unknown[0].href)}: neither its name (tile_X_Y.tif) nor its georeference say where it is"
            )
        return [place for place in by_name if place is not None], None
    base = tiles[0].transform
    exact = [~base @ (tile.transform @ (0, 0)) for tile in tiles if tile.transform is not None]
    offsets = np.array([(row, column) for column, row in exact])
    whole = np.rint(offsets).astype(int)
    if (aside := np.abs(offsets - whole).max(axis=1) > _SLACK).any():
        odd = tiles[int(np.argmax(aside))]
        raise TilesError(f"{display(odd.href)}: lies between the pixels of the others", unlike=(display(odd.href),))
    if all(place is not None for place in by_name):
        origin = np.array(by_name[0])
        disagree = (whole + origin != np.array(by_name)).any(axis=1)
        if disagree.any():
            odd = tiles[int(np.argmax(disagree))]
            raise TilesError(f"{display(odd.href)}: its name and its georeference say different places")
    else:
        origin = -whole.min(axis=0)
    places = [(int(y), int(x)) for y, x in whole + origin]
    return places, base @ Affine.translation(-int(origin[1]), -int(origin[0]))


# --- pixels -----------------------------------------------------------------------------------------------------------


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
