"""Blocks of pixels: the small planar piece ``(t, b, n)`` of the stack that every kernel works on.

A kernel walks over the pixels of a window in blocks. `load` brings one block into scratch memory that stays in the
L2 cache, whatever the layout of the source, and says which observations are valid. After that every loop of every
kernel runs over `n` contiguous pixels, which is what lets LLVM use vector instructions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from s2composite.pixels.kernels.compiled import part

__all__ = ["Source", "count_valid", "load"]


class Source(NamedTuple):
    """The stack as a kernel sees it: flat memory, and how to find a value in it."""

    values: Any
    """All values, 1-D and contiguous: planar ``(t, b, n)`` or pixel-interleaved ``(t, n, b)`` when given its shape."""

    bands: int
    """Number of bands ``b``."""

    pixels: int
    """Number of pixels ``n``."""

    interleaved: bool
    """True: the bands of a pixel lie together."""

    scenes: Any
    """``(t,)`` int64: the scenes to use, as indices into the stack, in the order that settles ties."""

    usable: Any
    """``(scenes of the stack * n,)`` bool, what the mask rules said; empty if there are none."""

    low: Any
    """``(b,)``, dtype of the values: smallest valid value of each band."""

    high: Any
    """``(b,)``: largest valid value of each band."""

    dropped: Any
    """``(k,)``: further values that make an observation invalid."""


@part
def copy_row(values: Any, n: int, row: Any) -> None:
    """Copy `n` values; a plain loop vectorises, a slice assignment checks for overlap first (five times slower)."""
    for i in range(n):
        row[i] = values[i]


@part
def split_three(values: Any, n: int, first: Any, second: Any, third: Any) -> None:
    """Move `n` interleaved pixels of three bands apart; a loop of its own because only constant strides vectorise."""
    for i in range(n):
        first[i] = values[3 * i]
        second[i] = values[3 * i + 1]
        third[i] = values[3 * i + 2]


@part
def split_any(values: Any, n: int, rows: Any) -> None:
    """Move `n` interleaved pixels of any number of bands apart."""
    bands = rows.shape[0]
    for b in range(bands):
        row = rows[b]
        for i in range(n):
            row[i] = values[bands * i + b]


@part
def copy_rows(source: Source, scene: int, start: int, n: int, rows: Any) -> None:
    """Copy `n` pixels of one scene from pixel `start` on into ``rows (b, at least n)``."""
    values, bands = source.values, source.bands
    at = scene * bands * source.pixels
    if not source.interleaved:
        for b in range(bands):
            begin = at + b * source.pixels + start
            copy_row(values[begin : begin + n], n, rows[b])
        return
    pixels = values[at + bands * start : at + bands * (start + n)]
    if bands == 3:
        split_three(pixels, n, rows[0], rows[1], rows[2])
    else:
        split_any(pixels, n, rows)


@part
def judge(source: Source, scene: int, start: int, n: int, rows: Any, valid: Any) -> None:
    """Write which of `n` pixels are valid: usable, and every band within its range and not a dropped value."""
    if source.usable.size > 0:
        at = scene * source.pixels + start
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
        ``(t, b, width)``, dtype of the source: the values. Pixels beyond `n` keep what they held.
    valid
        ``(t, width)`` uint8: 1 where the observation may be used, else 0; 0 beyond `n`.
    """
    for t in range(source.scenes.size):
        scene = source.scenes[t]
        copy_rows(source, scene, start, n, block[t])
        judge(source, scene, start, n, block[t], valid[t])
        valid[t, n:] = 0


@part
def count_valid(valid: Any, n: int, counts: Any, out: Any) -> None:
    """Count the valid observations of each pixel.

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
