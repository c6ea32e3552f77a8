"""Mosaic: where the tiles of separate workers lie, and whether they are alike and make a whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from s2composite.errors import TilesError
from s2composite.scenes.storage import display

__all__ = ["Mosaic", "Tile", "check_alike", "lay_tiles"]

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
