"""Blocks of pixels: how kernels reach the observations of a few hundred neighbouring pixels.

A kernel walks over the pixels of a window in blocks whose scratch memory stays in the L2 cache. All its inner loops run
over the contiguous pixels of a block, which is what lets LLVM use vector instructions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from s2composite.pixels.kernels.compiled import part
from s2composite.pixels.kernels.prefetch import LINE_BYTES, prefetch

__all__ = ["Source", "count_valid", "fetch", "judge", "load", "split"]


class Source(NamedTuple):
    """The stack as a kernel sees it: flat memory, and how to find a value in it."""

    values: Any
    """The values from the first pixel on, 1-D, of memory ``(scene, b, plane)`` or interleaved ``(scene, plane, b)``."""

    bands: int
    """Number of bands ``b``."""

    pixels: int
    """Number of pixels ``n``."""

    plane: int
    """Pixels from a band or scene to the next in memory: more than `pixels` where these are a run of them."""

    interleaved: bool
    """True: the bands of a pixel lie together."""

    scenes: Any
    """``(t,)`` int64: the scenes to use, as indices into the stack, in the order that settles ties."""

    usable: Any
    """``(scenes of the stack, plane)`` bool, 1-D from the first pixel on: what mask rules said; empty if nothing."""

    low: Any
    """``(b,)``, type of the values: smallest valid value of each band."""

    high: Any
    """``(b,)``: largest valid value of each band."""

    dropped: Any
    """``(k,)``: values in between that make an observation invalid too."""

    plain: bool
    """True: all bands have the same range."""


@part
def fetch(source: Source, t: int, start: int, n: int) -> None:
    """Bring `n` pixels of the `t`-th scene from pixel `start` on into the cache, for later; beyond the end: nothing."""
    if t >= source.scenes.size or start + n > source.pixels:
        return
    size = source.bands * source.plane
    step = LINE_BYTES // source.values.itemsize
    if source.interleaved:
        first = source.scenes[t] * size + start * source.bands
        for at in range(first, first + n * source.bands, step):
            prefetch(source.values, at)
    else:
        for b in range(source.bands):
            first = source.scenes[t] * size + b * source.plane + start
            for at in range(first, first + n, step):
                prefetch(source.values, at)


@part
def split_three(values: Any, n: int, first: Any, second: Any, third: Any) -> None:
    """Move `n` interleaved pixels of three bands apart; a loop of its own because only constant strides vectorise."""
    for i in range(n):
        first[i] = values[3 * i]
        second[i] = values[3 * i + 1]
        third[i] = values[3 * i + 2]


@part
def split(source: Source, scene: int, start: int, n: int, rows: Any) -> None:
    """Copy `n` pixels of one scene from pixel `start` on into ``rows (b, at least n)``."""
    values, bands = source.values, source.bands
    at = scene * bands * source.plane
    if source.interleaved:
        pixels = values[at + bands * start : at + bands * (start + n)]
        if bands == 3:
            split_three(pixels, n, rows[0], rows[1], rows[2])
            return
        for b in range(bands):
            row = rows[b]
            for i in range(n):
                row[i] = pixels[bands * i + b]
    else:
        for b in range(bands):
            row, begin = rows[b], at + b * source.plane + start
            band = values[begin : begin + n]
            for i in range(n):  # a slice assignment would look for overlap first, and is five times slower
                row[i] = band[i]


@part
def judge(source: Source, scene: int, start: int, n: int, rows: Any, valid: Any) -> None:
    """Write which of `n` pixels are valid: usable, and every band within its range and not a dropped value."""
    if source.usable.size > 0:
        at = scene * source.plane + start
        usable = source.usable[at : at + n]
        for i in range(n):
            valid[i] = usable[i]
    else:
        valid[:n] = 1
    for b in range(rows.shape[0]):
        row, low, high = rows[b], source.low[b], source.high[b]
        for i in range(n):
            valid[i] &= (row[i] >= low) & (row[i] <= high)  # NaN fails both
        for value in source.dropped:
            for i in range(n):
                valid[i] &= row[i] != value


@part
def load(source: Source, start: int, n: int, block: Any, valid: Any) -> None:
    """Load `n` pixels from pixel `start` on.

    Parameters
    ----------
    source
        The stack.
    start, n
        First pixel and number of pixels; ``n`` is at most the width of the block.
    block
        ``(t, b, width)``, type of the source: the values. Pixels beyond `n` keep what they held.
    valid
        ``(t, width)`` uint8: 1 where the observation may be used, else 0; 0 beyond `n`.
    """
    for t in range(source.scenes.size):
        fetch(source, t + 2, start, n)
        scene = source.scenes[t]
        split(source, scene, start, n, block[t])
        judge(source, scene, start, n, block[t], valid[t])
        valid[t, n:] = 0


@part
def count_valid(valid: Any, n: int, counts: Any, out: Any) -> None:
    """Count the valid observations of each pixel of a block.

    Parameters
    ----------
    valid
        ``(t, width)`` uint8: 1 or 0.
    n
        How many of the pixels are wanted in `out`.
    counts
        ``(width,)`` uint16, out: the counts.
    out
        ``(n,)`` uint16, out: the first of them once more.
    """
    counts[:] = 0
    for t in range(valid.shape[0]):
        row = valid[t]
        for i in range(counts.size):
            counts[i] += np.uint16(row[i])
    for i in range(n):  # a slice assignment would compile for a second and a half more
        out[i] = counts[i]
