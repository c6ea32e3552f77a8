"""One file from the tiles that separate workers have written, if all are there, alike and fit together."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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

from s2composite.errors import SourceError, TilesError
from s2composite.reading.warp import read_info
from s2composite.storage.files import absolute, display, filesystem, is_remote, storage_errors
from s2composite.writing.cog import write_raster

__all__ = ["Mosaic", "Tile", "check_alike", "lay_tiles", "reconstruct"]

_PLACE = re.compile(r"tile_(\d+)_(\d+)\.tiff?$", re.IGNORECASE)
_LISTED = 20
"""Missing tiles that a message names; all are in the error's ``missing``."""

_SLACK = 0.01
"""Fraction of a pixel by which tiles may be off the grid: coordinates are rounded when they are written."""


class Tile(NamedTuple):
    """What the header of one tile says."""

    href: str
    """Absolute path or URL."""

    bands: int
    """Number of bands."""

    dtype: str
    """Type of its pixels."""

    nodata: float | None
    """Its nodata value, if it has one."""

    crs: str | None
    """Its CRS as WKT, if it has one."""

    transform: Affine | None
    """Pixels to coordinates; None: it is not georeferenced."""

    shape: tuple[int, int]
    """``(y, x)`` in pixels."""

    names: tuple[str | None, ...]
    """Description of each band."""

    @property
    def named(self) -> tuple[int, int] | None:
        """Row and column of the first pixel, as the name says."""
        match = _PLACE.search(self.href)
        return None if match is None else (int(match[2]), int(match[1]))


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Where tiles lie in the whole that they make."""

    tiles: tuple[Tile, ...]
    """The tiles, in no particular order."""

    places: tuple[tuple[int, int], ...]
    """Row and column of the first pixel of each tile."""

    edges: tuple[tuple[int, ...], tuple[int, ...]]
    """All rows and columns at which a tile begins or ends; each cell between them belongs to one tile."""

    owners: NDArray[np.intp]
    """Index of the tile of each cell ``(row, column)``."""

    transform: Affine | None
    """Transform of the whole; None: it is not georeferenced."""


def check_alike(tiles: Sequence[Tile]) -> None:
    """Refuse tiles that differ from most others.

    Raises
    ------
    TilesError
        A tile differs; names it, and in what.
    """
    facts: dict[str, Callable[[Tile], Any]] = {
        "number of bands": lambda t: t.bands,
        "dtype": lambda t: t.dtype,
        "nodata value": lambda t: str(t.nodata),
        "CRS": lambda t: t.crs,
        "size of pixels": lambda t: (
            None if t.transform is None else tuple(np.round(tuple(t.transform)[i], 9) for i in (0, 1, 3, 4))
        ),
    }
    for what, fact in facts.items():
        counted = Counter(fact(tile) for tile in tiles)
        usual = counted.most_common(1)[0][0]
        odd = [tile for tile in tiles if fact(tile) != usual]
        if odd:
            raise TilesError(
                f"{display(odd[0].href)}: its {what} is {_short(fact(odd[0]))}, but {_short(usual)} for most tiles"
                + (f"; {len(odd) - 1} more differ" if len(odd) > 1 else ""),
                unlike=tuple(display(tile.href) for tile in odd),
            )


def _short(value: Any) -> str:
    text = str(value)
    match = re.match(r'\w+\["([^"]+)"', text)
    return match[1] if match else text


def lay_tiles(tiles: Sequence[Tile], shape: tuple[int, int] | None) -> Mosaic:
    """Return where tiles lie in a whole of `shape` ``(y, x)``; None: in the smallest that holds them.

    Raises
    ------
    TilesError
        A tile is missing, overlaps another, reaches beyond the whole, or nothing says where it lies.
    """
    places, transform = _places(tiles)
    whole = shape or tuple(
        max(place[axis] + tile.shape[axis] for place, tile in zip(places, tiles, strict=True)) for axis in (0, 1)
    )
    spans = [((y, y + tile.shape[0]), (x, x + tile.shape[1])) for (y, x), tile in zip(places, tiles, strict=True)]
    for tile, ((_, bottom), (_, right)) in zip(tiles, spans, strict=True):
        if bottom > whole[0] or right > whole[1]:
            raise TilesError(f"{display(tile.href)}: reaches beyond the {whole[0]} x {whole[1]} pixels of the whole")
    edges = tuple(tuple(sorted({0, whole[axis], *(edge for span in spans for edge in span[axis])})) for axis in (0, 1))
    owners = _owners(tiles, spans, edges)
    if (owners < 0).any():
        raise _missing(tiles, spans, edges, owners)
    return Mosaic(tuple(tiles), tuple(places), (edges[0], edges[1]), owners, transform)


def _places(tiles: Sequence[Tile]) -> tuple[list[tuple[int, int]], Affine | None]:
    """Return row and column of the first pixel of each tile, and the transform of the whole.

    Raises
    ------
    TilesError
        Name and georeference are missing, or contradict each other.
    """
    by_name = [tile.named for tile in tiles]
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


def _owners(tiles: Sequence[Tile], spans: Sequence[Any], edges: Sequence[tuple[int, ...]]) -> NDArray[np.intp]:
    """Return the number of the tile of each cell, -1 where there is none.

    Raises
    ------
    TilesError
        Two tiles overlap.
    """
    owners = np.full([len(axis) - 1 for axis in edges], -1)
    for number, span in enumerate(spans):
        cells = tuple(slice(*np.searchsorted(axis, ends)) for axis, ends in zip(edges, span, strict=True))
        if (taken := owners[cells][owners[cells] >= 0]).size:
            pair = (display(tiles[int(taken[0])].href), display(tiles[number].href))
            raise TilesError(f"{pair[0]} and {pair[1]} overlap", overlapping=pair)
        owners[cells] = number
    return owners


def _missing(
    tiles: Sequence[Tile], spans: Sequence[Any], edges: Sequence[tuple[int, ...]], owners: NDArray[np.intp]
) -> TilesError:
    """Return the error that lists what is missing, by name if the tiles have names."""
    named = all(tile.named for tile in tiles)
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
    listed = ", ".join(list(missing)[:_LISTED]) + (f" and {len(missing) - _LISTED} more" * (len(missing) > _LISTED))
    return TilesError(
        f"{len(missing)} tile(s) are missing besides the {len(tiles)} found: {listed}", missing=tuple(missing)
    )


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
    with storage_errors(SourceError, f"{display(where)}: cannot be listed", where):
        try:
            if any(sign in path for sign in "*?["):
                names = fs.glob(path)
            else:
                names = [path] if path.lower().endswith(_ENDS) else fs.ls(path.rstrip("/"), detail=False)
        except FileNotFoundError as error:
            raise SourceError(f"{display(where)}: does not exist") from error
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
