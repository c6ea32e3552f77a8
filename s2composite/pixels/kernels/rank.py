"""Kernels that pick one whole observation of each pixel: the one at a rank, the first, or the one of best score."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np

from s2composite.pixels.kernels.compile_cache import kernel, part
from s2composite.pixels.kernels.selection import pick, select, select_wide
from s2composite.pixels.kernels.tiles import Observations, judge, put_picked, split

__all__ = [
    "Key",
    "best_scored",
    "first_valid",
    "keep_best",
    "luminance_median",
    "order",
    "rank_by_key",
    "rank_by_small_key",
]


class Key(NamedTuple):
    """What observations are ordered by: a weighted sum of their bands, or a normalised difference of two."""

    weights: Any  # ``(b,)``, type of the key: weight of each band in the sum
    zero: Any  # the key of a sum of zero
    invalid: Any  # the key of an observation that is not valid; nothing else has it
    pair: Any  # ``(2,)`` int64: the bands of the difference; empty for a sum


@part
def write_keys(obs: Observations, key: Key, start: int, n: int, rows: Any, valid: Any, keys: Any) -> None:
    """Write the keys ``(t, width)`` of `n` pixels from pixel `start` on; ``rows (b, width)``, ``valid`` are scratch."""
    kind = keys.dtype.type
    zero, invalid = key.zero, key.invalid
    for t in range(obs.scenes.size):
        scene, row = obs.scenes[t], keys[t]
        split(obs, scene, start, n, rows)
        judge(obs, scene, start, n, rows, valid)
        if key.pair.size > 0:
            first, second = rows[key.pair[0]], rows[key.pair[1]]
            for i in range(row.size):
                a, b = kind(first[i]), kind(second[i])
                total = a + b
                ratio = (a - b) / total if total != 0 else -np.inf
                row[i] = -np.inf if np.isnan(ratio) else ratio
        else:
            for i in range(row.size):
                row[i] = zero
            for band in range(obs.bands):
                values, weight = rows[band], key.weights[band]
                for i in range(row.size):
                    row[i] = kind(row[i] + kind(kind(values[i]) * weight))
        for i in range(row.size):
            row[i] = row[i] if valid[i] else invalid


@part
def count_keys(keys: Any, invalid: Any, ranks: Any, counts: Any, rank: Any) -> None:
    """Count the valid keys of each pixel, and look up the rank that it wants."""
    counts[:] = 0
    for t in range(keys.shape[0]):
        row = keys[t]
        for i in range(counts.size):
            counts[i] += np.uint16(row[i] != invalid)
    for i in range(counts.size):
        rank[i] = ranks[counts[i]]


@kernel
def rank_by_small_key(
    obs: Observations, key: Key, bits: int, ranks: Any, width: int, out: Any, count: Any, chosen: Any
) -> None:
    """Rank by keys of at most `bits` bits, uint16 with `INVALID`; blocks of `width` pixels.

    ``ranks (t + 1,)`` int16 has the rank to take for each number of valid observations, ``NO_RANK`` to take none.
    Out: ``out (b, n)``, type of the source, filled with nodata before, gets the values of the picked observation,
    ``count (n,)`` uint16 the number of valid ones, ``chosen (n,)`` int16 the scene of the picked one, -1 if none.
    """
    rows, keys = np.empty((obs.bands, width), obs.values.dtype), np.empty((obs.scenes.size, width), np.uint16)
    valid, counts, found = np.empty(width, np.uint8), np.empty(width, np.uint16), np.empty(width, np.uint16)
    rank, index = np.empty(width, np.int16), np.empty(width, np.int16)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        write_keys(obs, key, start, n, rows, valid, keys)
        count_keys(keys, key.invalid, ranks, counts, rank)
        select(keys, bits, rank, found)
        pick(keys, found, rank, index)
        put_picked(obs, index, counts, 0, start, n, out, count, chosen)


@part
def order(numbers: Any, sign: Any, keys: Any) -> None:
    """Turn floats into integers of the same order in place, NaN into all bits set: `keys` is their memory.

    Only the bits are looked at: LLVM leaves a loop scalar that reads memory under one type and writes it under another.
    """
    kind = keys.dtype.type
    zero, top, last, one = kind(0), sign[0], kind(8 * keys.itemsize - 1), kind(1)
    infinity = np.full(1, np.inf, numbers.dtype).view(keys.dtype)[0]
    beyond = kind(infinity << one)  # without its sign
    for t in range(keys.shape[0]):
        bits = keys[t]
        for i in range(bits.size):  # no branches: a wrong guess costs more than all of this
            value = zero if bits[i] == top else bits[i]  # -0 becomes 0
            flip = kind(kind(zero - kind(value >> last)) | top)
            missing = kind(~zero) if kind(value << one) > beyond else zero
            bits[i] = kind(kind(value ^ flip) | missing)


@kernel
def rank_by_key(
    obs: Observations, key: Key, sign: Any, ranks: Any, width: int, out: Any, count: Any, chosen: Any
) -> None:
    """Do as `rank_by_small_key` with keys of 32 or 64 bits: uint32, all bits set if not valid, or floats with NaN.

    ``sign (1,)`` is an unsigned integer as wide as the key: for floats its sign bit, for integers 0.
    """
    times = obs.scenes.size
    rows, digits = np.empty((obs.bands, width), obs.values.dtype), np.empty((times, width), np.uint16)
    keys = np.empty((times, width), key.weights.dtype)
    wide, found = keys.view(sign.dtype), np.empty(width, sign.dtype)
    valid, counts = np.empty(width, np.uint8), np.empty(width, np.uint16)
    rank, index = np.empty(width, np.int16), np.empty(width, np.int16)
    invalid = ~sign[0] | sign[0]
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        write_keys(obs, key, start, n, rows, valid, keys)
        if sign[0] != 0:
            order(keys, sign, wide)
        count_keys(wide, invalid, ranks, counts, rank)
        select_wide(wide, rank, found, digits)
        pick(wide, found, rank, index)
        put_picked(obs, index, counts, 0, start, n, out, count, chosen)


@kernel
def first_valid(obs: Observations, least_count: int, width: int, out: Any, count: Any, chosen: Any) -> None:
    """Pick the first valid observation of each pixel, in the order of ``obs.scenes``; out as `rank_by_small_key`.

    Pixels with fewer than `least_count` valid observations get none.
    """
    rows, valid = np.empty((obs.bands, width), obs.values.dtype), np.empty(width, np.uint8)
    counts, index = np.empty(width, np.uint16), np.empty(width, np.int16)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        counts[:], index[:] = 0, -1
        for t in range(obs.scenes.size):
            split(obs, obs.scenes[t], start, n, rows)
            judge(obs, obs.scenes[t], start, n, rows, valid)
            for i in range(width):
                index[i] = np.int16(t) if (valid[i] != 0) & (counts[i] == 0) else index[i]
                counts[i] += np.uint16(valid[i])
        put_picked(obs, index, counts, least_count, start, n, out, count, chosen)


@kernel
def best_scored(
    obs: Observations, of_scene: Any, near: Any, of_distance: Any, least_count: int, width: int, out: Any, count: Any,
    chosen: Any,
) -> None:  # fmt: skip
    """Pick the valid observation of the highest score, the first of equal ones; else as `first_valid`.

    The score is ``of_scene (t,)`` float32 plus ``of_distance`` float32 at the squared distance to the nearest bad pixel
    of the scene: ``near (scenes of the stack, plane)`` uint16, 1-D from the first pixel on, at most
    ``of_distance.size - 1``; empty if it does not matter.
    """
    rows, valid = np.empty((obs.bands, width), obs.values.dtype), np.empty(width, np.uint8)
    counts, index, best = np.empty(width, np.uint16), np.empty(width, np.int16), np.empty(width, np.float32)
    score = np.empty(width, np.float32)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        counts[:], index[:], best[:] = 0, -1, -np.inf
        for t in range(obs.scenes.size):
            split(obs, obs.scenes[t], start, n, rows)
            judge(obs, obs.scenes[t], start, n, rows, valid)
            score[:] = of_scene[t]
            if near.size > 0:
                at = obs.scenes[t] * obs.plane + start
                for i in range(n):
                    score[i] += of_distance[near[at + i]]
            for i in range(width):
                better = (valid[i] != 0) & (score[i] > best[i])
                index[i] = np.int16(t) if better else index[i]
                best[i] = score[i] if better else best[i]
                counts[i] += np.uint16(valid[i])
        put_picked(obs, index, counts, least_count, start, n, out, count, chosen)


@kernel
def keep_best(values: Any, score: Any, scene: int, best: Any, count: Any, picked: Any, chosen: Any) -> None:
    """Take the observations of one scene that are better than the best so far: what `best_scored` does, scene by scene.

    ``values (b, y, x)`` and ``score (y, x)``, minus infinity where an observation is not valid, are of the scene; of
    equal scores that of the first scene counts, in whatever order they come. The others are updated: ``best (y, x)``,
    ``count (y, x)`` of valid observations, ``picked (b, y, x)``, ``chosen (y, x)``, negative before the first.
    """
    for y in range(score.shape[0]):
        for x in range(score.shape[1]):
            if score[y, x] == -np.inf:
                continue
            count[y, x] += np.uint16(1)
            if score[y, x] > best[y, x] or (score[y, x] == best[y, x] and scene < chosen[y, x]):
                best[y, x], chosen[y, x] = score[y, x], np.int16(scene)
                for b in range(values.shape[0]):
                    picked[b, y, x] = values[b, y, x]


@kernel
def median_of_pixel(
    pixel: Any, low: Any, high: Any, nodata: Any, zero: Any, keys: Any, flip: int, composite: Any, count: Any,
    source: Any,
) -> None:  # fmt: skip
    """Find the observation of median luminance of one ``pixel (t, b)``; see `luminance_median`."""
    kind, integers = zero.dtype.type, keys.view(np.int64)
    n = 0
    for t in range(pixel.shape[0]):
        valid, total = True, zero[0]
        for b in range(pixel.shape[1]):
            value = pixel[t, b]
            valid &= (value >= low) & (value <= high) & (value != nodata)
            total = kind(total + kind(value))
        valid &= not np.isnan(total)  # of opposite infinities
        keys[t] = total
        n += valid
        # Of floats, the bits have the order of the numbers once those of negative ones are flipped.
        bits = integers[t]
        integers[t] = bits ^ ((bits >> 63) & flip) if valid else np.iinfo(np.int64).max
    count[0], source[0] = n, -1
    for b in range(pixel.shape[1]):
        composite[b] = nodata
    if n == 0:
        return
    least, most = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for t in range(pixel.shape[0]):
        least = min(least, integers[t])
        most = max(most, integers[t] if integers[t] != np.iinfo(np.int64).max else most)
    below = 0
    while least < most:  # the first key with more than n // 2 at or below it
        middle = (least >> 1) + (most >> 1) + (least & most & 1)
        smaller = 0
        for t in range(pixel.shape[0]):
            smaller += integers[t] <= middle
        if smaller > n // 2:
            most = middle
        else:
            least, below = middle + 1, smaller
    left = n // 2 - below
    for t in range(pixel.shape[0]):
        if integers[t] == least:
            if left == 0:
                source[0] = t
                break
            left -= 1
    for b in range(pixel.shape[1]):
        composite[b] = pixel[source[0], b]


@cache
def _gufunc(dtype: np.dtype[Any]) -> Any:
    """Return the gufunc for observations of a type, compiled now: never at import, nor kept on disk (numba#10128)."""
    ends: Any
    wide: Any
    if dtype.kind in "ui":
        ends = np.iinfo(dtype)
        low, high, nodata = dtype.type(ends.min), dtype.type(ends.max - 1), dtype.type(0)
        zero, wide, flip = np.zeros(1, np.int64), np.int64, 0
    else:
        ends = np.finfo(dtype)
        low, high, nodata = ends.min, ends.max, dtype.type(np.nan)
        zero, wide, flip = np.zeros(1, dtype), np.float64, np.iinfo(np.int64).max
    name = dtype.name

    def loop(pixel: Any, composite: Any, count: Any, source: Any) -> None:
        keys = np.empty(pixel.shape[0], wide)
        median_of_pixel(pixel, low, high, nodata, zero, keys, flip, composite, count, source)

    types = [f"void({name}[:,:], {name}[:], uint16[:], int16[:])"]
    return numba.guvectorize(types, "(t,b)->(b),(),()", nopython=True)(loop)


def luminance_median(observations: Any, out: Any = None, *, axes: Any = None) -> Any:
    """Find the observation of median luminance of each pixel, as a generalised ufunc ``(t,b)->(b),(),()``.

    The kernel of the default reducer for arrays of any origin: NumPy's, Dask's (`dask.array.apply_gufunc`, or
    `dask.array.map_blocks`), or a loop of your own. Loops are compiled on the first call for each type in a process.

    Parameters
    ----------
    observations
        ``(..., t, b)`` of uint8, uint16, int16, float32 or float64, in the order of scenes. One with 0 (no data) or the
        largest number of its integer type (saturated) in any band is left out; of floats, one with NaN or an infinity.
    out
        The three arrays to write the results into.
    axes
        Where the axes of `observations` and of the results are, as NumPy's generalised ufuncs take it:
        ``[(0, -1), -1, (), ()]`` for ``(t, ..., b)``.

    Returns
    -------
    composite
        ``(..., b)``, type of `observations`: of `n` valid observations, sorted by the sum of their bands and then by
        scene, the one at index ``n // 2``; 0 or NaN where there is none.
    count
        ``(...)`` uint16: the number of valid observations.
    source
        ``(...)`` int16: the scene, -1 where there is none.

    Raises
    ------
    TypeError
        `observations` have another type.

    Examples
    --------
    >>> import numpy as np
    >>> pixels = np.array([[[9, 1, 1], [2, 2, 2], [0, 5, 5], [3, 3, 3]]], np.uint8)  # one pixel, four scenes
    >>> composite, count, source = luminance_median(pixels)
    >>> composite.tolist(), count.tolist(), source.tolist()
    ([[3, 3, 3]], [3], [3])
    """
    observations = np.asarray(observations)
    dtype = observations.dtype.newbyteorder("=")
    if dtype.name not in ("uint8", "uint16", "int16", "float32", "float64"):
        raise TypeError(f"observations are {dtype}; give uint8, uint16, int16, float32 or float64")
    options = {"out": None if out is None else tuple(out), "axes": axes}
    given = {name: value for name, value in options.items() if value is not None}
    with np.errstate(invalid="ignore", over="ignore"):  # NaN is compared, and is no cause for a warning
        return _gufunc(dtype)(observations, **given)
