"""The observations of a window as kernels see them, and the loops that several kernels share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from s2composite.pixels.kernels.compile_cache import kernel, part

__all__ = [
    "Observations", "count_valid", "count_values", "enlarge", "halve_by_means", "judge", "load", "put_picked", "split",
    "validity",
]  # fmt: skip


class Observations(NamedTuple):
    """Flat memory of a stack of scenes, and how to find a value in it."""

    # From the first pixel on, 1-D, of memory ``(scene, b, plane)``, or ``(scene, plane, b)`` if interleaved
    values: Any
    bands: int
    pixels: int
    plane: int  # pixels from a band or scene to the next in memory: more than `pixels` where these are a run of them
    interleaved: bool
    scenes: Any  # ``(t,)`` int64: the scenes to use, as indices into the stack, in the order that settles ties

    # ``(scenes of the stack, plane)`` bool, 1-D from the first pixel on: what mask rules said; empty if nothing
    usable: Any
    low: Any  # ``(b,)``, type of the values: smallest valid value of each band
    high: Any  # ``(b,)``: largest valid value of each band
    dropped: Any  # ``(k,)``: values in between that make an observation invalid too


@part
def split(obs: Observations, scene: int, start: int, n: int, rows: Any) -> None:
    """Copy `n` pixels of one scene from pixel `start` on into ``rows (b, at least n)``."""
    values, bands = obs.values, obs.bands
    at = scene * bands * obs.plane
    if obs.interleaved and bands == 3:  # a loop of its own, because only constant strides vectorise
        pixels, first, second, third = values[at + 3 * start : at + 3 * (start + n)], rows[0], rows[1], rows[2]
        for i in range(n):
            first[i] = pixels[3 * i]
            second[i] = pixels[3 * i + 1]
            third[i] = pixels[3 * i + 2]
    elif obs.interleaved:
        pixels = values[at + bands * start : at + bands * (start + n)]
        for b in range(bands):
            row = rows[b]
            for i in range(n):
                row[i] = pixels[bands * i + b]
    else:
        for b in range(bands):
            row, begin = rows[b], at + b * obs.plane + start
            band = values[begin : begin + n]
            for i in range(n):  # a slice assignment would look for overlap first, and is five times slower
                row[i] = band[i]


@part
def judge(obs: Observations, scene: int, start: int, n: int, rows: Any, valid: Any) -> None:
    """Write whether pixels are valid: usable, and every band within its range and no dropped value; 0 beyond `n`."""
    if obs.usable.size > 0:
        at = scene * obs.plane + start
        usable = obs.usable[at : at + n]
        for i in range(n):
            valid[i] = usable[i]
    else:
        valid[:n] = 1
    valid[n:] = 0
    for b in range(rows.shape[0]):
        row, low, high = rows[b], obs.low[b], obs.high[b]
        for i in range(n):
            valid[i] &= (row[i] >= low) & (row[i] <= high)  # NaN fails both
        for value in obs.dropped:
            for i in range(n):
                valid[i] &= row[i] != value


@part
def load(obs: Observations, start: int, n: int, block: Any, valid: Any) -> None:
    """Load `n` pixels from pixel `start` on.

    ``block (t, b, width)``, out: the values; pixels beyond `n` keep what they held. ``valid (t, width)`` uint8, out: 1
    where an observation may be used, else 0.
    """
    for t in range(obs.scenes.size):
        scene = obs.scenes[t]
        split(obs, scene, start, n, block[t])
        judge(obs, scene, start, n, block[t], valid[t])


@part
def count_valid(valid: Any, n: int, counts: Any, out: Any) -> None:
    """Count the valid observations of each pixel, ``valid (t, width)``, into ``counts (width,)`` and ``out (n,)``."""
    counts[:] = 0
    for t in range(valid.shape[0]):
        row = valid[t]
        for i in range(counts.size):
            counts[i] += np.uint16(row[i])
    for i in range(n):  # a slice assignment would compile for a second and a half more
        out[i] = counts[i]


@part
def put_picked(
    obs: Observations, index: Any, counts: Any, least_count: int, start: int, n: int, out: Any, count: Any, chosen: Any
) -> None:
    """Write the picked observations of the `n` pixels of a block that have at least so many valid ones.

    Their values go into ``out (b, pixels)``, their scenes into ``chosen (pixels,)``, ``counts`` into ``count``.
    """
    size = obs.bands * obs.plane
    across, along = (obs.bands, 1) if obs.interleaved else (1, obs.plane)
    picked = chosen[start : start + n]
    for i in range(n):
        count[start + i] = counts[i]
        enough = index[i] >= 0 and counts[i] >= least_count
        picked[i] = obs.scenes[index[i]] if enough else -1
    for b in range(obs.bands):  # a band at a time: twice as fast as a pixel at a time
        row, first = out[b, start : start + n], start * across + b * along
        for i in range(n):
            if picked[i] >= 0:
                row[i] = obs.values[picked[i] * size + first + i * across]


@kernel
def validity(obs: Observations, width: int, out: Any) -> None:
    """Write which observations are valid: ``out (t * n,)`` uint8, in the order of ``obs.scenes``; blocks of `width`."""
    rows, valid = np.empty((obs.bands, width), obs.values.dtype), np.empty(width, np.uint8)
    for t in range(obs.scenes.size):
        for start in range(0, obs.pixels, width):
            n = min(width, obs.pixels - start)
            split(obs, obs.scenes[t], start, n, rows)
            judge(obs, obs.scenes[t], start, n, rows, valid)
            begin = t * obs.pixels + start
            mine = out[begin : begin + n]
            for i in range(n):  # into a slice: LLVM does not vectorise an index that is a sum
                mine[i] = valid[i]


@kernel
def count_values(values: Any, lowest: int, out: Any) -> None:
    """Count how often each value occurs: ``values (n,)`` of integers, ``out (4, k)`` int64, to be added up.

    A value ``v`` counts as ``v - lowest``, in the arithmetic of its dtype.
    """
    # Four counts: where neighbours are alike, each addition to one would wait for the one before.
    n = values.size
    mask = (1 << (8 * values.itemsize)) - 1
    whole = n - n % 4
    for i in range(0, whole, 4):
        out[0, (np.int64(values[i]) - lowest) & mask] += 1
        out[1, (np.int64(values[i + 1]) - lowest) & mask] += 1
        out[2, (np.int64(values[i + 2]) - lowest) & mask] += 1
        out[3, (np.int64(values[i + 3]) - lowest) & mask] += 1
    for i in range(whole, n):
        out[0, (np.int64(values[i]) - lowest) & mask] += 1


@kernel
def halve_by_means(pixels: Any, known: bool, nodata: int, instead: int, out: Any) -> None:
    """Take the mean of each block of 2 x 2 pixels, of those that have a value; halves are rounded up.

    ``pixels (b, y, x)`` of integers, y and x even; ``out (b, y / 2, x / 2)``. If `known`, pixels of value `nodata` have
    none; it is written where none of four has one, and `instead` where a mean is `nodata` by coincidence.
    """
    bands, height, width = out.shape
    for b in range(bands):
        for y in range(height):
            above, below, row = pixels[b, 2 * y], pixels[b, 2 * y + 1], out[b, y]
            for x in range(width):
                p, q = np.int64(above[2 * x]), np.int64(above[2 * x + 1])
                r, s = np.int64(below[2 * x]), np.int64(below[2 * x + 1])
                total = p + q + r + s
                mean: Any = (total + 2) >> 2
                if known:
                    bad = np.int64(p == nodata) + (q == nodata) + (r == nodata) + (s == nodata)
                    if bad:
                        # 12 is divisible by every count, so means are exact in whole numbers.
                        share = 4 if bad == 1 else 6 if bad == 2 else 12
                        mean = ((total - bad * nodata) * share + 6) // 12
                    mean = nodata if bad == 4 else instead if mean == nodata else mean
                row[x] = mean


@kernel
def enlarge(coarse: Any, factor: int, top: int, left: int, out: Any) -> None:
    """Write each pixel as `factor` x `factor` of them.

    ``coarse (t, rows, columns)``, ``out (t, y, x)``, uint8; `top`, `left` is the first pixel of `out` among those.
    """
    times, height, width = out.shape
    first, skipped = left // factor, left % factor
    line = np.empty((-(-(skipped + width) // factor), factor), np.uint8)
    flat = line.reshape(-1)[skipped : skipped + width]
    for t in range(times):
        for y in range(height):
            row, above = np.divmod(top + y, factor)
            if y == 0 or above == 0:
                values = coarse[t, row, first : first + line.shape[0]]
                for i in range(factor):
                    for c in range(values.size):
                        line[c, i] = values[c]
            target = out[t, y]
            for x in range(target.size):
                target[x] = flat[x]
