"""Pyramid: the Dask graph that encodes a raster and its overviews, window by window.

The task of a window makes the tiles of the full resolution and of every overview whose tiles lie inside the window, for
all files made from the same pixels, and keeps its pixels at the next level. These make up the windows of the next
stage, until one window is left: a tree in which nothing is ever larger than a few windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from s2composite.writing.raster import Raster
from s2composite.writing.window import Chunks, FilePart, Stage, WindowIndex, WindowResult, encode_files

__all__ = [
    "Encoding",
    "Source",
    "WindowsDone",
    "aligned_chunks",
    "plan_stages",
    "raster_tasks",
    "regular_chunks",
    "window_size",
]

_WINDOW_BYTES = 16 << 20
"""Bytes of a window that is made by rechunking, such as 2048 x 2048 pixels of three bands in 8 bits."""

_LARGEST_WINDOW = 64 << 20
"""Bytes of a window beyond which a chunk is divided, so that memory stays bounded and all workers have work."""


def window_size(block: int, pixel_bytes: int) -> int:
    """Return the side of windows that hold about `_WINDOW_BYTES`: a tile's, doubled as often as fits."""
    size = block
    while (2 * size) ** 2 * pixel_bytes <= _WINDOW_BYTES:
        size *= 2
    return size


def regular_chunks(shape: tuple[int, int], size: int) -> Chunks:
    """Return chunks of equal size, smaller ones at the end.

    >>> regular_chunks((1100, 512), 512)
    ((512, 512, 76), (512,))
    """
    rows, columns = (tuple(min(size, n - start) for start in range(0, n, size)) for n in shape)
    return rows, columns


def aligned_chunks(chunks: Chunks, block: int, pixel_bytes: int) -> Chunks:
    """Return the chunks as they are if their inner edges are edges of tiles and none is huge, else regular ones."""
    inner = [edge for sizes in chunks for edge in list(accumulate(sizes))[:-1]]
    largest = max(chunks[0]) * max(chunks[1]) * pixel_bytes
    if all(edge % block == 0 for edge in inner) and largest <= _LARGEST_WINDOW:
        return chunks
    return regular_chunks((sum(chunks[0]), sum(chunks[1])), window_size(block, pixel_bytes))


def plan_stages(first: Chunks, block: int, levels: Sequence[tuple[int, int]], pixel_bytes: int) -> tuple[Stage, ...]:
    """Return the stages that make all levels.

    Parameters
    ----------
    first
        Chunks of the full resolution, edges on tiles.
    levels
        Rows and columns of each level.
    """
    out: list[Stage] = []
    level, chunks = 0, first
    while level < len(levels):
        last = min(level + _inner_levels(chunks, block), len(levels) - 1)
        out.append(Stage(len(out), level, last, chunks))
        level = last + 1
        if level < len(levels):
            chunks = regular_chunks(levels[level], window_size(block, pixel_bytes))
    return tuple(out)


def _inner_levels(chunks: Chunks, block: int) -> int:
    """Return how often tiles of `block` pixels can be doubled without crossing an edge of a window."""
    inner = [edge for sizes in chunks for edge in list(accumulate(sizes))[:-1]]
    if not inner:
        return 64
    common = int(np.gcd.reduce(inner)) // block
    return (common & -common).bit_length() - 1


@dataclass(frozen=True, eq=False)
class Source:
    """Where the pixels of one file come from."""

    layers: tuple[da.Array, ...]
    """``(b, y, x)`` or ``(y, x)``, in the order of the file's bands."""

    raster: Raster
    """The file."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """Windows of one or several files, each made by one task."""

    files: tuple[int, ...]
    """Which of the sources."""

    stages: tuple[Stage, ...]
    """For each file; their windows are the same."""

    tables: tuple[str, ...]
    """Names of small arrays that come with the windows."""

    packed: da.Array
    """``(y, x)``: a `_Packed` for each window, which stays where it was made."""

    done: da.Array
    """``(y, x)``: a `WindowsDone` for each window."""


@dataclass(frozen=True, slots=True)
class WindowsDone:
    """What a task reports: small, and all that ever reaches the client."""

    indices: tuple[WindowIndex, ...]
    """For each file."""

    tables: Mapping[str, NDArray[Any]]
    """Blocks of small arrays, by name."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """Result of a task."""

    results: tuple[WindowResult, ...]
    """For each file."""

    tables: Mapping[str, NDArray[Any]]
    """Blocks of small arrays, by name."""


@dataclass(eq=False)
class _Group:
    """Files whose first windows are the same and made of the same tasks."""

    chunks: Chunks
    """The windows."""

    made_of: set[str]
    """Names of the Dask layers behind their pixels."""

    files: list[int]
    """Which of the sources."""


def raster_tasks(sources: Sequence[Source], tables: Mapping[str, da.Array] | None = None) -> list[Encoding]:
    """Return the work of encoding files, lazily.

    One task makes a window of all files whose pixels have a common origin: it reads, reduces and encodes them, so that
    a window is never the result of a task.

    Parameters
    ----------
    tables
        Small arrays ``(..., window_y, window_x)`` by name. Those with one value per window that come from the same
        tasks as files are computed with them; the others are left out.
    """
    left = dict(tables or {})
    out = []
    for group in _groups(sources):
        own = {name: table for name, table in left.items() if _comes_with(table, group)}
        left = {name: table for name, table in left.items() if name not in own}
        rasters = [sources[file].raster for file in group.files]
        plans = [plan_stages(group.chunks, raster.block, raster.levels, _pixel_bytes(raster)) for raster in rasters]
        data = [[_rechunked(layer, group.chunks) for layer in sources[file].layers] for file in group.files]
        first = _encoding(group.files, data, rasters, [stages[0] for stages in plans], own)
        out.append(first)
        for number, file in enumerate(group.files):
            out += _overviews(file, first.packed, number, rasters[number], plans[number])
    return out


def _overviews(file: int, packed: da.Array, number: int, raster: Raster, stages: Sequence[Stage]) -> Iterator[Encoding]:
    """Yield the later stages of a file, whose first stage is the one with a number in `packed`."""
    for below, stage in pairwise(stages):
        top = _rechunked(_top(packed, number, raster, below), stage.chunks)
        encoding = _encoding([file], [[top]], [raster], [stage], {})
        yield encoding
        packed, number = encoding.packed, 0


def _pixel_bytes(raster: Raster) -> int:
    return len(raster.bands) * raster.dtype.itemsize


def _groups(sources: Sequence[Source]) -> list[_Group]:
    groups: list[_Group] = []
    for file, source in enumerate(sources):
        raster = source.raster
        chunks = aligned_chunks(source.layers[0].chunks[-2:], raster.block, _pixel_bytes(raster))
        new = _Group(chunks, {name for layer in source.layers for name in layer.dask.layers}, [file])
        for group in [group for group in groups if group.chunks == chunks and group.made_of & new.made_of]:
            groups.remove(group)
            new = _Group(chunks, group.made_of | new.made_of, sorted(group.files + new.files))
        groups.append(new)
    return sorted(groups, key=lambda group: group.files)


def _comes_with(table: da.Array, group: _Group) -> bool:
    windows = tuple((1,) * len(sizes) for sizes in group.chunks)
    return table.chunks[-2:] == windows and not group.made_of.isdisjoint(table.dask.layers)


def _rechunked(layer: da.Array, chunks: Chunks) -> da.Array:
    wanted = (*((n,) for n in layer.shape[:-2]), *chunks)
    return layer if layer.chunks == wanted else layer.rechunk(wanted)


def _encoding(
    files: Sequence[int],
    data: Sequence[Sequence[da.Array]],
    rasters: Sequence[Raster],
    stages: Sequence[Stage],
    tables: Mapping[str, da.Array],
) -> Encoding:
    """Return the work of one stage: `data` are the layers of each file in chunks of the stage's windows."""
    token = f"{rasters[0].token}-{stages[0].number}"
    parts = tuple(FilePart(*part) for part in zip(rasters, stages, strict=True))
    arrays = [layer for layers in data for layer in layers]
    arrays += [_rechunked(table, (table.chunks[-2], table.chunks[-1])) for table in tables.values()]
    packed = da.map_blocks(
        _write,
        *arrays,
        parts=delayed(parts, name=f"send-file-plan-{token}", pure=True, traverse=False),
        layers=tuple(map(len, data)),
        tables=tuple(tables),
        drop_axis=list(range(max(array.ndim for array in arrays) - 2)),
        chunks=stages[0].chunks,
        dtype=object,
        meta=np.empty((0, 0), object),
        name=f"write-{'overview' if stages[0].number else 'window'}-{token}",
    )
    done = da.map_blocks(_done, packed, dtype=object, meta=np.empty((0, 0), object), name=f"report-window-{token}")
    return Encoding(tuple(files), tuple(stages), tuple(tables), packed, done)


def _write(
    *blocks: NDArray[Any],
    parts: Sequence[FilePart],
    layers: Sequence[int],
    tables: Sequence[str],
    block_id: tuple[int, int],
) -> _Packed:
    """Encode a window: the blocks are those of so many layers for each file, then those of the tables."""
    rest = iter(blocks)
    results = encode_files((list(islice(rest, n)) for n in layers), parts, block_id)
    return _Packed(results, dict(zip(tables, rest, strict=True)))


def _done(packed: _Packed) -> WindowsDone:
    return WindowsDone(tuple(result.index for result in packed.results), packed.tables)


def _top(packed: da.Array, number: int, raster: Raster, stage: Stage) -> da.Array:
    scale = 1 << (stage.last + 1 - stage.first)
    rows, columns = (tuple(-(-n // scale) for n in sizes) for sizes in stage.chunks)
    return da.map_blocks(
        _pixels,
        packed,
        number=number,
        new_axis=[0],
        chunks=((len(raster.bands),), rows, columns),
        dtype=raster.dtype,
        meta=np.empty((0, 0, 0), raster.dtype),
        name=f"take-overview-{raster.token}-{stage.last + 1}",
    )


def _pixels(packed: _Packed, number: int) -> NDArray[Any]:
    top = packed.results[number].top
    assert top is not None
    return top
