"""Geometric medians: the point of least total distance to a pixel's observations, and how they scatter around it.

Weiszfeld's iteration with the step of Vardi and Zhang where the estimate meets an observation. All pixels of a block
take each step together, in vector instructions, but each starts from its own mean and stops at its own convergence, so
that its result does not depend on its neighbours. Pixels that have converged are squeezed out as soon as that pays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.block import Source, count_valid, judge, split
from s2composite.pixels.kernels.compiled import fast_part, kernel, part
from s2composite.pixels.kernels.selection import select_wide
from s2composite.pixels.kernels.statistics import look_up, next_key

__all__ = ["geomedian"]

LANES = 32
"""Pixels are squeezed together to multiples of this, so that every pixel goes through the same vector code."""


@part
def load_numbers(source: Source, start: int, n: int, rows: Any, numbers: Any, valid: Any) -> None:
    """Load `n` pixels as floats: ``numbers (t, b, width)``, 0 where not valid; ``rows (b, width)`` is scratch."""
    for t in range(source.scenes.size):
        scene = source.scenes[t]
        split(source, scene, start, n, rows)
        judge(source, scene, start, n, rows, valid[t])
        valid[t, n:] = 0
        ok = valid[t]
        for b in range(rows.shape[0]):
            row, number = rows[b], numbers[t, b]
            for i in range(ok.size):
                number[i] = row[i] if ok[i] else 0


@part
def means(numbers: Any, counts: Any, current: Any) -> None:
    """Write the mean of each pixel: ``numbers (t, b, n)`` into ``current (b, n)``."""
    for b in range(current.shape[0]):
        mean = current[b]
        mean[:] = 0
        for t in range(numbers.shape[0]):
            row = numbers[t, b]
            for i in range(mean.size):
                mean[i] += row[i]
        for i in range(mean.size):
            mean[i] /= max(counts[i], 1)


@fast_part
def accumulate(
    numbers: Any, valid: Any, m: int, current: Any, total: Any, weights: Any, meets: Any, weight: Any
) -> None:
    """Add up observations over their distance from `current`, for the first `m` pixels.

    ``total (b, n)`` is the weighted sum, ``weights (n,)`` the sum of weights, ``meets (n,)`` the number of observations
    that `current` meets exactly, which have no weight; ``weight (n,)`` is scratch.
    """
    kind = weight.dtype.type
    zero, one = kind(0), kind(1)
    total[:] = 0
    weights[:] = 0
    meets[:] = 0
    for t in range(numbers.shape[0]):
        ok = valid[t]
        weight[:] = 0
        for b in range(current.shape[0]):
            row, now = numbers[t, b], current[b]
            for i in range(m):
                off = row[i] - now[i]
                weight[i] += off * off
        for i in range(m):
            used, apart = kind(ok[i]), weight[i] > zero
            over = used / np.sqrt(weight[i] if apart else one)
            meets[i] += zero if apart else used
            weight[i] = over if apart else zero
            weights[i] += weight[i]
        for b in range(current.shape[0]):
            row, sums = numbers[t, b], total[b]
            for i in range(m):
                sums[i] += row[i] * weight[i]


@part
def move(total: Any, weights: Any, meets: Any, m: int, eps: Any, current: Any, going: Any) -> int:
    """Move the first `m` pixels to their next estimate and return how many go on.

    A pixel with ``going`` 0 stays; one that moves less than `eps` is stopped.
    """
    kind = current.dtype.type
    zero, one, least = kind(0), kind(1), eps[0] * eps[0]
    share, gone = np.zeros(m, current.dtype), np.zeros(m, current.dtype)
    for b in range(current.shape[0]):
        sums, now = total[b], current[b]
        for i in range(m):
            force = sums[i] - weights[i] * now[i]
            share[i] += force * force
    for i in range(m):  # all the way to the weighted mean, unless observations under the estimate hold it
        pull = np.sqrt(share[i])
        free = one - meets[i] / pull if pull > meets[i] else zero
        share[i] = free / weights[i] if (going[i] > zero) & (weights[i] > zero) else zero
    for b in range(current.shape[0]):
        sums, now = total[b], current[b]
        for i in range(m):
            step = (sums[i] - weights[i] * now[i]) * share[i]
            now[i] += step
            gone[i] += step * step
    left = 0
    for i in range(m):
        going[i] = going[i] if gone[i] >= least else zero
        left += going[i] > zero
    return left


@part
def to_front(row: Any, here: Any, kept: int) -> None:
    """Move the first `kept` of the places ``here`` to the front of a row."""
    for i in range(kept):
        row[i] = row[here[i]]


@part
def squeeze(numbers: Any, valid: Any, current: Any, going: Any, lanes: Any, m: int, out: Any) -> int:
    """Write out the estimates of pixels that have stopped, move the others to the front; return how many to go on with.

    ``lanes (n,)`` says which pixel of the block is where, -1: none; ``out (b, n)`` has the pixels in their places.
    """
    kept, here = 0, np.empty(m, np.int64)
    for i in range(m):
        if going[i] > 0:
            here[kept] = i
            lanes[kept], going[kept] = lanes[i], going[i]
            kept += 1
        elif lanes[i] >= 0:
            for b in range(current.shape[0]):
                out[b, lanes[i]] = current[b, i]
    for t in range(valid.shape[0]):
        to_front(valid[t], here, kept)
        for b in range(current.shape[0]):
            to_front(numbers[t, b], here, kept)
    for b in range(current.shape[0]):
        to_front(current[b], here, kept)
    rounded = (kept + LANES - 1) // LANES * LANES
    for i in range(kept, rounded):
        lanes[i], going[i] = -1, 0
    return rounded


@part
def iterate(numbers: Any, valid: Any, counts: Any, eps: Any, max_iterations: int, out: Any) -> None:
    """Find the geometric medians of a block: ``numbers (t, b, n)``, which is used up, into ``out (b, n)``."""
    bands, n = out.shape
    current, total = np.empty((bands, n), out.dtype), np.empty((bands, n), out.dtype)
    weights, meets, weight = np.empty(n, out.dtype), np.empty(n, out.dtype), np.empty(n, out.dtype)
    going, lanes = np.ones(n, out.dtype), np.arange(n)
    means(numbers, counts, current)
    m = left = n
    for _ in range(max_iterations):
        accumulate(numbers, valid, m, current, total, weights, meets, weight)
        left = move(total, weights, meets, m, eps, current, going)
        if left == 0:
            break
        if 2 * left <= m and m > LANES:
            m = squeeze(numbers, valid, current, going, lanes, m, out)
    going[:] = 0
    squeeze(numbers, valid, current, going, lanes, m, out)


@fast_part
def add_products(row: Any, mid: Any, length: Any, dot: Any) -> None:
    """Add a band to the scalar products of observations with themselves and with the middle: all ``(n,)``."""
    for i in range(row.size):
        length[i] += row[i] * row[i]
        dot[i] += row[i] * mid[i]


@fast_part
def add_squares(row: Any, mid: Any, square: Any) -> None:
    """Add a band to the squared distances from the middle: all ``(n,)``."""
    for i in range(row.size):
        square[i] += (row[i] - mid[i]) * (row[i] - mid[i])


@fast_part
def add_absolutes(row: Any, mid: Any, apart: Any, both: Any) -> None:
    """Add a band to the absolute differences from and sums with the middle: all ``(n,)``."""
    for i in range(row.size):
        apart[i] += abs(row[i] - mid[i])
        both[i] += abs(row[i] + mid[i])


@part
def cosine(length: Any, dot: Any, reach: Any, out: Any) -> None:
    """Write ``1 - cos``: from squared lengths, products with the middle, and the length of that, all ``(n,)``."""
    kind = out.dtype.type
    zero, one = kind(0), kind(1)
    for i in range(out.size):
        product = np.sqrt(length[i]) * reach[i]
        angle = max(one - dot[i] / (product if product > zero else one), zero)
        out[i] = angle if product > zero else zero


@part
def share(apart: Any, both: Any, out: Any) -> None:
    """Write ``apart / both``, 0 where both are 0."""
    kind = out.dtype.type
    zero, one = kind(0), kind(1)
    for i in range(out.size):
        out[i] = apart[i] / (both[i] if both[i] > zero else one)


@part
def hide(ok: Any, keys: Any) -> None:
    """Set all bits of the keys of observations that are not valid, and clear the sign of the others."""
    kind = keys.dtype.type
    one = kind(1)
    plain = kind(~kind(0)) >> one
    for i in range(keys.size):
        keys[i] = kind(keys[i] & plain) | kind(kind(ok[i]) - one)


@part
def distances(numbers: Any, valid: Any, middle: Any, out: Any, keys: Any) -> None:
    """Write the cosine, Euclidean and Bray-Curtis distances of observations from `middle` ``(b, n)``.

    ``out (t, 3, n)``; ``keys``, its memory as unsigned integers, gets all bits set where not valid. No distance is
    negative, so the bits of the others have their order. A loop writes two arrays at most: LLVM leaves scalar what
    needs more checks for overlap than that.
    """
    kind, n = middle.dtype, middle.shape[1]
    reach, length, dot = np.zeros(n, kind), np.empty(n, kind), np.empty(n, kind)
    square, apart, both = np.empty(n, kind), np.empty(n, kind), np.empty(n, kind)
    for b in range(middle.shape[0]):
        mid = middle[b]
        for i in range(n):
            reach[i] += mid[i] * mid[i]
    for i in range(n):
        reach[i] = np.sqrt(reach[i])
    for t in range(valid.shape[0]):
        length[:], dot[:], square[:], apart[:], both[:] = 0, 0, 0, 0, 0
        for b in range(middle.shape[0]):
            row, mid = numbers[t, b], middle[b]
            add_products(row, mid, length, dot)
            add_squares(row, mid, square)
            add_absolutes(row, mid, apart, both)
        cosine(length, dot, reach, out[t, 0])
        euclidean = out[t, 1]
        for i in range(n):
            euclidean[i] = np.sqrt(square[i])
        share(apart, both, out[t, 2])
        for k in range(3):
            hide(valid[t], keys[t, k])


@part
def middle_values(keys: Any, real: Any, digits: Any, counts: Any, ranks: Any, source: Source) -> Any:
    """Return medians of ``keys (t, n)``, bits of positive numbers: the mean of the two middle ones of an even number.

    ``real``, an array, has the type of the numbers.
    """
    n, none = counts.size, ~keys.dtype.type(0)
    rank, found, following = np.empty(n, np.int16), np.empty(n, keys.dtype), np.empty(n, keys.dtype)
    look_up(counts, ranks, rank)
    select_wide(keys, rank, found, digits, source, source.pixels)
    next_key(keys, found, rank, none, following)
    low, high = found.view(real.dtype), following.view(real.dtype)
    half = real.dtype.type(0.5)
    for i in range(n):
        low[i] = low[i] if counts[i] % 2 else (low[i] + high[i]) * half
    return low


@kernel
def geomedian(
    source: Source, eps: Any, max_iterations: int, bits: Any, ranks: Any, width: int, out: Any, scatter: Any, count: Any
) -> None:
    """Find geometric medians and, if wanted, the median distances of the observations from them.

    Parameters
    ----------
    source
        The stack.
    eps
        ``(1,)`` float32 or float64, the type that is calculated in: a pixel whose estimate moves less has converged.
    max_iterations
        When to stop a pixel that has not.
    bits
        ``(0,)``: has the type of an unsigned integer as wide.
    ranks
        ``(t + 1,)`` int16: lower middle rank for each number of valid observations.
    width
        Pixels of a block, a multiple of 64.
    out
        ``(b, n)``, type of `eps`, out; 0 where there is no valid observation.
    scatter
        ``(3, n)``, type of `eps`, out: median of cosine, Euclidean and Bray-Curtis distances; ``(0, 0)``: not wanted.
    count
        ``(n,)`` uint16, out: valid observations.
    """
    times, kind = source.scenes.size, eps.dtype
    rows, numbers = np.empty((source.bands, width), source.values.dtype), np.empty((times, source.bands, width), kind)
    valid, counts = np.empty((times, width), np.uint8), np.empty(width, np.uint16)
    middle, three = np.empty((source.bands, width), kind), np.empty((times, 3, width), kind)
    numbers3, digits = three.reshape((times, 3 * width)), np.empty((times, 3 * width), np.int16)
    keys, keys3 = three.view(bits.dtype), numbers3.view(bits.dtype)
    counts3 = np.empty(3 * width, np.uint16)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        load_numbers(source, start, n, rows, numbers, valid)
        count_valid(valid, n, counts, count[start : start + n])
        iterate(numbers, valid, counts, eps, max_iterations, middle)
        for b in range(source.bands):
            for i in range(n):
                out[b, start + i] = middle[b, i]
        if scatter.size > 0:
            load_numbers(source, start, n, rows, numbers, valid)
            distances(numbers, valid, middle, three, keys)
            for i in range(3 * width):
                counts3[i] = counts[i % width]
            medians = middle_values(keys3, eps, digits, counts3, ranks, source)
            for k in range(3):  # all three at once: longer rows go faster
                for i in range(n):
                    scatter[k, start + i] = medians[k * width + i]
