"""Selection: some windows of a product, or some cells of a grid: by number, slice, place, name or area."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from s2composite.cube import Chunks, window_at
from s2composite.errors import JobError, ParameterError
from s2composite.running.cells import Cell, touches
from s2composite.running.jobs.job import Job
from s2composite.running.products.product import Product

__all__ = ["Chosen", "Which", "chosen_cells", "chosen_windows"]

Which = Literal["missing", "untried", "failed"]
"""Which windows a run makes: all that are not done, those among them that have not failed, or those that have."""

OneT = TypeVar("OneT")

_PLACE = re.compile(r"(\d+)/(\d+)|x(\d+)y(\d+)")
"""Row and column, as the ledger writes them; ``x003y004``, column and row, as the plan's GeoJSON names its regions."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which windows to make."""

    which: Which = "missing"
    """Which of those that are not done."""

    error: str | None = None
    """Of those that have failed, only where the error matches this regular expression."""

    windows: str | Collection[tuple[int, int]] | None = None
    """Only these, see `chosen_windows`; None: all."""

    area: Geometry | None = None
    """Only windows that it touches."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.error or "")
        except re.error as problem:
            raise ParameterError(f"error={self.error!r} is not a regular expression: {problem}") from problem

    @property
    def whole(self) -> bool:
        """Whether no window is left out because of where it lies."""
        return self.windows is None and self.area is None

    def anew(self, job: Job) -> bool:
        """Whether what is complete is made again: by a run that may overwrite, not by one that goes on with another."""
        return job.overwrite and self.which == "missing"

    def among(self, product: Product) -> frozenset[tuple[int, int]]:
        """Return the windows of a product that are chosen, done or not."""
        return chosen_windows(product.work.stack.geobox, product.work.spatial, self.windows, self.area)

    def takes(self, window: tuple[int, int], failures: Mapping[tuple[int, int], str]) -> bool:
        """Return whether to make one of those that is not done."""
        if self.which == "missing":
            return True
        if self.which == "untried":
            return window not in failures
        return window in failures and re.search(self.error or "", failures[window]) is not None


def chosen_windows(
    geobox: GeoBox, spatial: Chunks, windows: str | Collection[tuple[int, int]] | None, area: Geometry | None
) -> frozenset[tuple[int, int]]:
    """Return the rows and columns of the windows that are wanted.

    Parameters
    ----------
    geobox
        The grid.
    spatial
        Its windows.
    windows
        ``"7"``, a number; ``"1::10"``, a slice of numbers; ``"3/4"``, row and column; ``"x004y003"``, column and row;
        several with commas. Or rows and columns. None: all.
    area
        Only those that it touches.

    Raises
    ------
    ParameterError
        A part of `windows` is none of these or names no window, or the area touches none.

    Examples
    --------
    >>> grid = GeoBox.from_bbox((0, 0, 40, 10), "EPSG:32631", resolution=1)
    >>> sorted(chosen_windows(grid, ((10,), (10, 10, 10, 10)), "0,2::2,0/3", None))
    [(0, 0), (0, 2), (0, 3)]
    """
    known = list(np.ndindex(len(spatial[0]), len(spatial[1])))
    named = set(known) if windows is None else _named(known, windows)
    if area is None:
        return frozenset(named)
    found = frozenset(at for at in named if touches(geobox[window_at(spatial, *at)], area))
    if not found:
        raise ParameterError("the area touches none of the windows; check its coordinates (degrees)")
    return found


def _named(known: Sequence[tuple[int, int]], windows: str | Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    parts = [part.strip() for part in windows.split(",")] if isinstance(windows, str) else list(windows)
    found: set[tuple[int, int]] = set()
    for part in parts:
        more = _windows(known, part) if isinstance(part, str) else {(int(part[0]), int(part[1]))} & set(known)
        if not more:
            rows, columns = (n + 1 for n in known[-1])
            raise ParameterError(
                f"windows: {part!r} is none of the {len(known)} windows, {rows} rows of {columns}; name some as 7, "
                "1::10, 3/4 (row/column) or x004y003"
            )
        found |= more
    return found


def _windows(known: Sequence[tuple[int, int]], part: str) -> set[tuple[int, int]]:
    place = _PLACE.fullmatch(part)
    if place:
        row, column, x, y = (None if n is None else int(n) for n in place.groups())
        at = (row, column) if row is not None else (y, x)
        return {one for one in known if one == at}
    return set(_numbered(known, part))


def _numbered(known: Sequence[OneT], part: str) -> Sequence[OneT]:
    """Return those that a number or a slice of numbers stands for, none for any other text."""
    try:
        if ":" in part:
            return known[slice(*(int(n) if n.strip() else None for n in part.split(":")))]
        return [known[int(part)]]
    except (ValueError, IndexError, TypeError):
        return []


def chosen_cells(cells: Sequence[Cell], names: str | None, area: Geometry | None) -> tuple[Cell, ...]:
    """Return the cells that are wanted.

    Parameters
    ----------
    cells
        All there are, in order.
    names
        Names, numbers and slices of numbers, with commas; None: all.
    area
        Only those that it touches.

    Raises
    ------
    JobError
        A part of `names` is none of these, or the area touches no cell.
    """
    if names is not None:
        by_name = {cell.name: cell for cell in cells}
        wanted = {cell.name for part in names.split(",") for cell in _cells(cells, by_name, part.strip())}
        cells = [cell for cell in cells if cell.name in wanted]
    found = tuple(cell for cell in cells if area is None or touches(cell.geobox, area))
    if not found:
        raise JobError("the area touches none of the cells; check its coordinates (degrees)", key="area")
    return found


def _cells(cells: Sequence[Cell], by_name: dict[str, Cell], part: str) -> Sequence[Cell]:
    found = [by_name[part]] if part in by_name else _numbered(cells, part)
    if not found:
        near = difflib.get_close_matches(part, by_name, 1) or list(by_name)[:3]
        raise JobError(f"cells: {part!r} is none of the {len(cells)} cells, such as {', '.join(near)}", key="cells")
    return found
