"""Assemble: parts become one file, in a single pass from the first byte to the last, none of it held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import WriteError
from s2composite.writing.directories import directories
from s2composite.writing.raster import Raster
from s2composite.writing.statistics import Statistics, merge
from s2composite.writing.tiff import CLASSIC_LIMIT, RECORD_OVERHEAD, build_header
from s2composite.writing.window import TILE, Stage, WindowIndex

__all__ = ["FileLayout", "Run", "Sink", "copy_parts", "in_order", "lay_out"]

_AHEAD = 8
"""Runs of tiles that are read ahead of the one being written; a run is a row of tiles of one window."""

In = TypeVar("In")
Out = TypeVar("Out")

Results = Sequence[tuple[Stage, WindowIndex]]

_PLACED = np.dtype([*TILE.descr, ("part", "i4")])


class Sink(Protocol):
    """Whatever takes the bytes of a file."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


class Run(NamedTuple):
    """Neighbouring tiles of one row that lie together, in a part and in the file."""

    part: int
    """Number of the part."""

    start: int
    """Position in the part, in bytes."""

    size: int
    """Bytes."""

    level: int
    """Level."""

    row: int
    """Row of tiles."""

    columns: tuple[int, int]
    """First column of tiles and the one after the last."""


@dataclass(frozen=True, eq=False)
class FileLayout:
    """Where every byte of a file comes from and goes to."""

    raster: Raster
    """The file."""

    parts: tuple[str, ...]
    """Names of the parts."""

    tiles: tuple[NDArray[Any], ...]
    """For each level the `TILE` and the part of each tile ``(row, column)``."""

    offsets: tuple[NDArray[np.uint64], ...]
    """For each level the position in the file of each tile's record."""

    header: bytes
    """Everything before the first tile."""

    size: int
    """Bytes of the file."""

    statistics: tuple[Statistics, ...]
    """Of each band."""

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs of tiles in the order of the file: the smallest overview first, the full resolution last."""
        return tuple(run for level in reversed(range(len(self.tiles))) for run in _runs(self.tiles[level], level))

    def offset(self, run: Run) -> int:
        """Return where a run starts in the file."""
        return int(self.offsets[run.level][run.row, run.columns[0]])


def lay_out(raster: Raster, results: Results) -> FileLayout:
    """Return the layout of a file whose windows have been written.

    Raises
    ------
    WriteError
        A tile is missing, or the file does not fit a classic TIFF and must not be a BigTIFF.
    """
    parts, tiles = _placed(raster, results)
    statistics = _band_statistics(raster, results)
    lengths = [_record_sizes(level) for level in tiles]
    data = sum(int(length.sum()) for length in lengths)
    zeros = tuple(np.zeros(length.shape, np.uint64) for length in lengths)
    big = _is_big(raster, data + len(_header(raster, tiles, zeros, statistics, big=True)))
    start = len(_header(raster, tiles, zeros, statistics, big=big))
    offsets = _offsets(lengths, start)
    header = _header(raster, tiles, offsets, statistics, big=big)
    return FileLayout(raster, parts, tiles, offsets, header, start + data, statistics)


def _placed(raster: Raster, results: Results) -> tuple[tuple[str, ...], tuple[NDArray[Any], ...]]:
    """Return the names of all parts, and for each level where each tile lies in which of them."""
    parts: list[str] = []
    levels = tuple(np.zeros(raster.grid(level), _PLACED) for level in range(len(raster.levels)))
    for level in levels:
        level["part"] = -1
    for stage, index in sorted(results, key=lambda result: (result[0].number, result[1].position)):
        for number, tiles in enumerate(index.tiles, stage.first):
            y, x = (axis.start // raster.block for axis in stage.window(*index.position, number))
            place = levels[number][y : y + tiles.shape[0], x : x + tiles.shape[1]]
            for name in TILE.names or ():
                place[name] = tiles[name]
            place["part"] = len(parts)
        parts.append(index.part)
    for number, level in enumerate(levels):
        _all_there(raster, number, level["part"])
    return tuple(parts), levels


def _all_there(raster: Raster, level: int, parts: NDArray[Any]) -> None:
    missing = np.argwhere(parts < 0)
    if missing.size:
        first = "row {} column {}".format(*missing[0])
        raise WriteError(f"{raster.label}: {len(missing)} tiles of level {level} are missing, the first at {first}")


def _band_statistics(raster: Raster, results: Results) -> tuple[Statistics, ...]:
    """Merge the statistics of tiles row by row over the whole raster, whatever windows they came in."""
    rows, columns = raster.grid(0)
    by_tile: dict[tuple[int, int], tuple[Statistics, ...]] = {}
    for stage, index in results:
        if stage.first == 0:
            y, x = (axis.start // raster.block for axis in stage.window(*index.position))
            places = np.ndindex(index.tiles[0].shape)
            by_tile.update(((y + i, x + j), s) for (i, j), s in zip(places, index.statistics, strict=True))
    ordered = [by_tile[place] for place in np.ndindex(rows, columns)]
    return tuple(merge(tile[band] for tile in ordered) for band in range(len(raster.bands)))


def _record_sizes(tiles: NDArray[Any]) -> NDArray[np.uint64]:
    masks = np.where(tiles["mask_size"], tiles["mask_size"] + np.uint64(RECORD_OVERHEAD), np.uint64(0))
    return (tiles["size"].astype(np.uint64) + np.uint64(RECORD_OVERHEAD) + masks).astype(np.uint64)


def _is_big(raster: Raster, size: int) -> bool:
    wanted = raster.options.bigtiff
    if wanted is False and size > CLASSIC_LIMIT:
        raise WriteError(f"{raster.label}: {size:,} bytes do not fit a classic TIFF; leave bigtiff='auto'")
    return size > CLASSIC_LIMIT if wanted == "auto" else bool(wanted)


def _offsets(lengths: Sequence[NDArray[np.uint64]], start: int) -> tuple[NDArray[np.uint64], ...]:
    out: list[NDArray[np.uint64]] = []
    for length in reversed(lengths):
        ends = np.cumsum(length.ravel(), dtype=np.uint64) + np.uint64(start)
        out.append((ends - length.ravel()).reshape(length.shape))
        start = int(ends[-1])
    return tuple(reversed(out))


def _header(
    raster: Raster,
    tiles: Sequence[NDArray[Any]],
    offsets: Sequence[NDArray[np.uint64]],
    statistics: Sequence[Statistics],
    *,
    big: bool,
) -> bytes:
    return build_header(directories(raster, tiles, offsets, statistics), big=big, mask=raster.mask)


def _runs(tiles: NDArray[Any], level: int) -> Iterator[Run]:
    sizes = _record_sizes(tiles)
    for row, parts in enumerate(tiles["part"]):
        edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
        for first, stop in pairwise(edges):
            size = int(sizes[row, first:stop].sum())
            yield Run(int(parts[first]), int(tiles["start"][row, first]), size, level, row, (first, stop))


def in_order(function: Callable[[In], Out], items: Iterable[In], threads: int = _AHEAD) -> Iterator[Out]:
    """Yield `function` of each item in order; some are computed ahead, never all."""
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[Out]] = [pool.submit(function, item) for item in islice(source, threads)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(function, item) for item in islice(source, 1)]
        finally:
            for future in waiting:
                future.cancel()


def copy_parts(layout: FileLayout, out: Sink, check: Callable[[Run, bytes], None] | None = None) -> None:
    """Write the whole file to `out`.

    Parameters
    ----------
    check
        Called with each run and its bytes before they are written; raises what stops it.
    """
    raster = layout.raster
    last_use = {run.part: i for i, run in enumerate(layout.runs)}

    def load(run: Run) -> bytes:
        data = raster.parts.read(layout.parts[run.part], run.start, run.size)
        if check is not None:
            check(run, data)
        return data

    out.write(layout.header)
    for i, data in enumerate(in_order(load, layout.runs)):
        out.write(data)
        part = layout.runs[i].part
        if last_use[part] == i:
            # So that the disk holds the result about once, not twice.
            raster.parts.remove(layout.parts[part])
