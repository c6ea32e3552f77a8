"""Pyramid: the Dask graph that encodes a raster, window by window, and its overviews from what windows leave.

A window's task makes the tiles of the full resolution and of every overview whose tiles lie inside the window, and
leaves its pixels at the next level. Those are the windows of the next stage, until one window is left: a tree, in which
nothing is ever larger than a few windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import NDArray

from s2composite.writing.raster import Raster
from s2composite.writing.window import Chunks, Stage, WindowIndex, WindowResult, encode_window

__all__ = ["aligned_chunks", "plan_stages", "raster_tasks", "regular_chunks", "window_size"]

_WINDOW_BYTES = 16 << 20
"""Pixels of a window that is made by rechunking: 2048 x 2048 of three bands in 8 bits."""

_LARGEST_WINDOW = 64 << 20
"""Pixels of a window beyond which a chunk is divided, so that memory stays bounded and all workers have work."""


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
    """Return how often tiles of `block` pixels can be doubled and still not cross an edge of a window."""
    inner = [edge for sizes in chunks for edge in list(accumulate(sizes))[:-1]]
    if not inner:
        return 64
    common = int(np.gcd.reduce(inner)) // block
    return (common & -common).bit_length() - 1


def raster_tasks(layers: Sequence[da.Array], raster: Raster) -> list[tuple[Stage, da.Array]]:
    """Return for each stage an array with one `WindowIndex` for each window, lazily.

    Parameters
    ----------
    layers
        ``(b, y, x)`` or ``(y, x)``, in the order of the raster's bands.
    """
    pixel_bytes = len(raster.bands) * raster.dtype.itemsize
    first = aligned_chunks(layers[0].chunks[-2:], raster.block, pixel_bytes)
    shared = delayed(raster, name=f"s2composite-raster-{raster.token}", pure=True, traverse=False)
    data = [_rechunked(layer, first) for layer in layers]
    out = []
    for stage in plan_stages(first, raster.block, raster.levels, pixel_bytes):
        if stage.number:
            data = [_rechunked(data[0], stage.chunks)]
        packed = _written(data, shared, raster, stage)
        out.append((stage, _indices(packed, raster, stage)))
        if stage.last + 1 < len(raster.levels):
            data = [_top(packed, raster, stage)]
    return out


def _rechunked(layer: da.Array, chunks: Chunks) -> da.Array:
    wanted = (*((n,) for n in layer.shape[:-2]), *chunks)
    return layer if layer.chunks == wanted else layer.rechunk(wanted)


def _written(data: Sequence[da.Array], shared: Delayed, raster: Raster, stage: Stage) -> da.Array:
    return da.map_blocks(
        _write,
        *data,
        raster=shared,
        stage=stage,
        drop_axis=[0] if any(layer.ndim == 3 for layer in data) else [],
        chunks=stage.chunks,
        dtype=object,
        meta=np.empty((0, 0), object),
        name=f"write-{raster.token}-{stage.number}",
    )


def _write(*blocks: NDArray[Any], raster: Raster, stage: Stage, block_id: tuple[int, int]) -> WindowResult:
    return encode_window(blocks, raster, stage, block_id)


def _indices(packed: da.Array, raster: Raster, stage: Stage) -> da.Array:
    name = f"written-{raster.token}-{stage.number}"
    return da.map_blocks(_index, packed, dtype=object, meta=np.empty((0, 0), object), name=name)


def _index(result: WindowResult) -> WindowIndex:
    return result.index


def _top(packed: da.Array, raster: Raster, stage: Stage) -> da.Array:
    scale = 1 << (stage.last + 1 - stage.first)
    rows, columns = (tuple(-(-n // scale) for n in sizes) for sizes in stage.chunks)
    return da.map_blocks(
        _pixels,
        packed,
        new_axis=[0],
        chunks=((len(raster.bands),), rows, columns),
        dtype=raster.dtype,
        meta=np.empty((0, 0, 0), raster.dtype),
        name=f"overview-{raster.token}-{stage.last + 1}",
    )


def _pixels(result: WindowResult) -> NDArray[Any]:
    assert result.top is not None
    return result.top
