"""Geometric medians: the point of least total distance to a pixel's observations, and how they scatter around it.

Weiszfeld's steps, each extrapolated by the two last (Anderson, 1965), settle most pixels; Newton's, three times as
dear, the others, in which observations are few or nearly on a line. A step that does not lead to a smaller sum of
distances is taken back, and Weiszfeld's is taken instead, which always does; the next is shorter. Where the answer is
an observation, Newton's steps cannot end there: the nearest one is tried, and the condition of Vardi and Zhang says
whether it holds.
All pixels of a block take each step together, in vector instructions, but each starts from its own mean and stops at
its own convergence, so that its result does not depend on its neighbours. Pixels that have converged are squeezed out
as soon as that pays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.compile_cache import fast_part, kernel, part
from s2composite.pixels.kernels.selection import next_key, select_wide
from s2composite.pixels.kernels.tiles import Observations, count_valid, judge, put_picked, split

__all__ = ["geomedian", "medoid"]

FIRST = 6  # steps before those of Newton, which want to start near
MANY = 16  # observations from which a pixel may end by an extrapolated step: around few, sums of distances can be flat
LANES = 32  # pixels are squeezed together to multiples of this, so that every pixel goes through the same vector code


@part
def clear(ok: Any, numbers: Any) -> None:
    """Set numbers ``(b, n)`` to 0 where not valid."""
    for b in range(numbers.shape[0]):
        number = numbers[b]
        for i in range(ok.size):
            number[i] = number[i] if ok[i] else 0


@part
def load_packed(obs: Observations, start: int, n: int, rows: Any, numbers: Any, valid: Any, counts: Any) -> int:
    """Load the valid observations of `n` pixels as floats, and return how many the pixel with most of them has.

    Those of a pixel come first, in scene order, so that all that follows is spared what is missing. Packing takes as
    long as two steps at most, and nothing where scenes show all pixels of a block, or none.

    ``rows (b, width)``, type of the source, is scratch. Out: ``numbers (t, b, width)`` the observations and
    ``valid (t, width)`` uint8 1 for each, 0 beyond those of a pixel; ``counts (width,)`` uint16 how many these are.
    """
    bands, width = rows.shape
    flat, step, ok = numbers.reshape(numbers.size), bands * width, np.zeros(width, np.uint8)
    alike = True  # all pixels have the same number of observations so far
    counts[:] = 0
    for t in range(obs.scenes.size):
        scene = obs.scenes[t]
        split(obs, scene, start, n, rows)
        judge(obs, scene, start, n, rows, ok)
        shown = 0
        for i in range(width):  # twenty times as fast as `any` and `all`, which look at one after the other
            shown += ok[i]
        if shown == 0:
            continue
        alike &= shown == width
        for b in range(bands):
            row = rows[b]
            if alike:
                number = numbers[counts[0], b]
                for i in range(width):
                    number[i] = row[i]
            else:
                band = flat[b * width :]
                for i in range(width):  # what is not valid is written, too, and the next over it: no branch
                    band[i + step * np.int64(counts[i])] = row[i]
        for i in range(width):
            counts[i] += np.uint16(ok[i])
    most = int(counts.max())
    for t in range(most):
        here = valid[t]
        for i in range(width):
            here[i] = t < counts[i]
    for t in range(counts.min(), most):
        clear(valid[t], numbers[t])
    return most


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
def differences(scene: Any, current: Any, m: int, apart: Any, square: Any) -> None:
    """Write how far the observations of a scene are from `current`: vectors ``(b, n)`` and squared lengths ``(n,)``."""
    square[:] = 0
    for b in range(current.shape[0]):
        row, now, off = scene[b], current[b], apart[b]
        for i in range(m):
            off[i] = row[i] - now[i]
            square[i] += off[i] * off[i]


@fast_part
def nearer(ok: Any, m: int, square: Any, t: int, nearest: Any, which: Any) -> None:
    """Note which observations of scene `t` are the nearest so far, but for those at a distance of 0."""
    kind = square.dtype.type
    for i in range(m):
        closer = (ok[i] > 0) & (square[i] > kind(0)) & (square[i] < nearest[i])
        nearest[i] = square[i] if closer else nearest[i]
        which[i] = t if closer else which[i]


@fast_part
def invert(ok: Any, m: int, weight: Any, far: Any, meets: Any) -> None:
    """Turn squared distances into their inverse roots, and add up the roots and how many of them are 0.

    The inverse of 0, and of what is not valid, is 0.
    """
    kind = weight.dtype.type
    zero, one = kind(0), kind(1)
    for i in range(m):
        square, used = weight[i], kind(ok[i])
        weight[i] = (used if square > zero else zero) / np.sqrt(square if square > zero else one)
        far[i] += square * weight[i]
        meets[i] += zero if square > zero else used


@fast_part
def pull(
    numbers: Any, valid: Any, m: int, current: Any, newton: bool, apart: Any, weight: Any, force: Any, sums: Any,
    which: Any, curved: Any,
) -> None:  # fmt: skip
    """Add up how observations pull at `current`, for the first `m` pixels.

    ``force (b, n)`` is the sum of unit vectors `u` from `current` to each observation; ``sums (4, n)`` the sum of
    distances `d`, that of ``1 / d``, the number of observations that `current` meets, which do not pull, and the
    squared distance of the nearest other. If `newton`, ``which (n,)`` says which that is, and ``curved``, rows of a
    lower triangle, is the sum of ``u u' / d``: the sum of ``1 / d`` in the diagonal less that is the matrix of second
    derivatives. ``apart (b, n)``, ``weight (n,)`` are scratch.
    """
    bands = current.shape[0]
    force[:], sums[:], curved[:] = 0, 0, 0
    nearest = sums[3]
    nearest[:] = np.inf
    for t in range(numbers.shape[0]):
        differences(numbers[t], current, m, apart, weight)
        if newton:
            nearer(valid[t], m, weight, t, nearest, which)
        invert(valid[t], m, weight, sums[0], sums[2])
        weights = sums[1]
        for i in range(m):
            weights[i] += weight[i]
        for b in range(bands):
            unit, total = apart[b], force[b]
            for i in range(m):
                unit[i] *= weight[i]
                total[i] += unit[i]
        if newton:
            for b in range(bands):
                one_side = apart[b]
                for c in range(b + 1):
                    other, total = apart[c], curved[b * (b + 1) // 2 + c]
                    for i in range(m):
                        total[i] += one_side[i] * other[i] * weight[i]


@part
def extrapolate(force: Any, weights: Any, current: Any, last: Any, back: Any, m: int, scratch: Any, step: Any) -> None:
    """Write Weiszfeld's step, less the part of its last change that makes the remaining force least.

    ``last``, ``back (b, n)`` are the place before `current` and Weiszfeld's step from there; ``scratch (3, n)``.
    """
    kind = step.dtype.type
    zero, one = kind(0), kind(1)
    product, square, part_of = scratch[0], scratch[1], scratch[2]
    product[:m], square[:m] = 0, 0
    for i in range(m):
        part_of[i] = one / (weights[i] if weights[i] > zero else one)
    for b in range(step.shape[0]):
        pulling, aside, to = force[b], back[b], step[b]
        for i in range(m):
            to[i] = pulling[i] * part_of[i]
        for i in range(m):
            change = to[i] - aside[i]
            product[i] += to[i] * change
            square[i] += change * change
    for i in range(m):
        part_of[i] = product[i] / (square[i] if square[i] > zero else one)
    for b in range(step.shape[0]):
        now, before, aside, to = current[b], last[b], back[b], step[b]
        for i in range(m):
            to[i] -= part_of[i] * (now[i] + to[i] - before[i] - aside[i])


@part
def derivatives(bands: int, weights: Any, m: int, share: Any, curved: Any) -> None:
    """Turn `curved` into the matrix of second derivatives, ``weights`` in the diagonal less it, in its memory.

    `share`, just below 1, of it is taken: where observations lie on a line, nothing would be left.
    """
    at = 0
    for b in range(bands):
        for c in range(b + 1):
            row = curved[at]
            for i in range(m):
                row[i] = (weights[i] if c == b else 0) - share[0] * row[i]
            at += 1


@part
def subtract(one: Any, other: Any, third: Any, m: int, row: Any) -> None:
    """Subtract a product of three rows from `row`."""
    for i in range(m):
        row[i] -= one[i] * other[i] * third[i]


@part
def factorise(bands: int, weights: Any, m: int, share: Any, matrix: Any) -> None:
    """Turn the rows of a lower triangle into those of L and D of its LDL', pivots at least what `share` leaves."""
    one = share.dtype.type(1)
    least = one - share[0]
    for b in range(bands):
        first, pivot = b * (b + 1) // 2, matrix[b * (b + 3) // 2]
        for c in range(b):
            subtract(matrix[first + c], matrix[first + c], matrix[c * (c + 3) // 2], m, pivot)
        for i in range(m):
            pivot[i] = max(pivot[i], least * weights[i]) if weights[i] > 0 else one
        for below in range(b + 1, bands):
            start = below * (below + 1) // 2
            row = matrix[start + b]
            for c in range(b):
                subtract(matrix[start + c], matrix[first + c], matrix[c * (c + 3) // 2], m, row)
            for i in range(m):
                row[i] /= pivot[i]


@part
def solve(factors: Any, force: Any, m: int, step: Any) -> None:
    """Write Newton's step for the first `m` pixels: `force` over second derivatives, of which there are L and D."""
    bands = force.shape[0]
    for b in range(bands):
        to, pulling = step[b], force[b]
        for i in range(m):
            to[i] = pulling[i]
        for c in range(b):
            row, known = factors[b * (b + 1) // 2 + c], step[c]
            for i in range(m):
                to[i] -= row[i] * known[i]
    for b in range(bands - 1, -1, -1):
        to, pivot = step[b], factors[b * (b + 3) // 2]
        for i in range(m):
            to[i] /= pivot[i]
        for c in range(b + 1, bands):
            row, known = factors[c * (c + 1) // 2 + b], step[c]
            for i in range(m):
                to[i] -= row[i] * known[i]


# Rows of what is remembered of each pixel: the sum of distances and the squared force where it was last, how near an
# observation was that it was tried at in vain, whether its next place is taken without being compared, and how long its
# step was, or how long it may be
FAR, PULL, TRIED, SURE, REACH = range(5)


# What a pixel does next: nothing; back to where it was, and Weiszfeld's step from there; that from here; Newton's step;
# to the nearest observation
STAY, BACK, PLAIN, NEWTON, TRY = range(5)


@part
def squares(rows: Any, m: int, out: Any) -> None:
    """Write the sum of the squares of ``rows (b, n)``, for the first `m` pixels."""
    out[:m] = 0
    for b in range(rows.shape[0]):
        row = rows[b]
        for i in range(m):
            out[i] += row[i] * row[i]


@part
def nearest_decides(numbers: Any, force: Any, current: Any, which: int, near: Any, i: int) -> bool:
    """Return whether all observations but the nearest pull at pixel `i` less than that one alone."""
    kind = current.dtype.type
    rest = kind(0)
    for b in range(current.shape[0]):
        pulling = force[b, i] - (numbers[which, b, i] - current[b, i]) / near
        rest += pulling * pulling
    return bool(rest <= kind(1))


@part
def decide(
    numbers: Any, force: Any, sums: Any, which: Any, step: Any, counts: Any, m: int, bold: bool, newton: bool,
    eps: Any, current: Any, memory: Any, going: Any, scratch: Any, free: Any, scale: Any, ways: Any,
) -> int:  # fmt: skip
    """Write what each of the first `m` pixels does next, ``ways (n,)``, and return how many go on after that.

    ``free``, ``scale (n,)``, out, are the parts of the force and of Newton's step that are taken; ``memory (5, n)`` see
    `FAR`; ``scratch (3, n)``. If `bold` there is a step, ``(b, n)``: Newton's if `newton`,
    else the extrapolated one. ``eps (1,)``: below it, a step is the last; negative: times the mean distance.
    """
    kind = current.dtype.type
    zero, one, tiny = kind(0), kind(1), kind(np.finfo(current.dtype).eps)
    squares(force, m, scratch[0])
    squares(step, m, scratch[1])
    squares(current, m, scratch[2])
    left = 0
    for i in range(m):
        ways[i] = STAY
        if going[i] == zero:
            continue
        far, weights, meets, squared = sums[0, i], sums[1, i], sums[2, i], scratch[0, i]
        less = far <= memory[FAR, i] * (one + 4 * tiny)
        # Rounding hides how sums of distances differ near the end, not how forces do.
        better = less or (squared < memory[PULL, i] and meets == zero and far <= memory[FAR, i] * (one + 64 * tiny))
        if memory[SURE, i] == zero and not better:
            ways[i], memory[SURE, i] = BACK, one
            memory[REACH, i] *= kind(0.25)
            left += 1
            continue
        if weights == zero or squared <= meets * meets:  # nothing pulls, or the observations that it meets hold it
            going[i] = zero
            continue
        memory[REACH, i] *= one if memory[SURE, i] > zero else kind(4)
        memory[FAR, i], memory[PULL, i], memory[SURE, i] = far, squared, kind(not bold)
        free[i] = (one - meets / np.sqrt(squared)) / weights
        spread, near = far / kind(counts[i]), np.sqrt(sums[3, i])
        close = bold and meets == zero and near < kind(0.5) * spread and near < kind(0.25) * memory[TRIED, i]
        if close and (near < kind(0.02) * spread or nearest_decides(numbers, force, current, which[i], near, i)):
            ways[i], memory[TRIED, i] = TRY, near
            left += 1
            continue
        plain = squared * free[i] * free[i]
        ways[i] = NEWTON if bold and meets == zero else PLAIN
        moved = plain
        if ways[i] == NEWTON:
            moved, length = scratch[1, i], np.sqrt(scratch[1, i])
            memory[REACH, i] = min(memory[REACH, i], length, spread)
            scale[i] = memory[REACH, i] / length if length > zero else one
        least = eps[0] if eps[0] > zero else -eps[0] * spread
        # What is left after a step of Newton's is much less than the step; after others, only among many observations.
        settled = newton or (bold and counts[i] >= MANY)
        least *= one if newton else kind(0.25)
        if (settled and moved <= least * least) or plain <= tiny * tiny * scratch[2, i]:
            going[i] = zero
        else:
            left += 1
    return left


@part
def move(
    numbers: Any, force: Any, step: Any, which: Any, m: int, free: Any, scale: Any, ways: Any, row: Any, current: Any,
    last: Any, back: Any,
) -> None:  # fmt: skip
    """Move the first `m` pixels to their next places.

    ``last``, ``back (b, n)`` are the place a pixel was at before, and the step of Weiszfeld from there, which never
    leads to a larger sum of distances.
    """
    for b in range(current.shape[0]):
        now, before, aside, newton, pulling = current[b], last[b], back[b], step[b], force[b]
        for i in range(m):
            row[i] = now[i] + (
                newton[i] * scale[i] if ways[i] == NEWTON else pulling[i] * free[i] if ways[i] == PLAIN else 0
            )
        for i in range(m):
            row[i] = before[i] + aside[i] if ways[i] == BACK else row[i]
        for i in range(m):
            before[i] = now[i] if ways[i] >= PLAIN else before[i]
            aside[i] = pulling[i] * free[i] if ways[i] >= PLAIN else aside[i]
        for i in range(m):
            now[i] = row[i]
    for i in range(m):
        if ways[i] == TRY:
            for b in range(current.shape[0]):
                current[b, i] = numbers[which[i], b, i]


@part
def to_front(row: Any, here: Any, kept: int, out: Any) -> None:
    """Write what is at the first `kept` of the places ``here`` to the front of a row, which may be the same."""
    for i in range(kept):
        out[i] = row[here[i]]


@part
def squeeze(
    numbers: Any, valid: Any, counts: Any, current: Any, last: Any, back: Any, memory: Any, going: Any, lanes: Any,
    m: int, out: Any, fewer: Any, fewer_valid: Any,
) -> int:  # fmt: skip
    """Write out the estimates of pixels that have stopped, move the others to the front; return how many to go on with.

    Their observations go to the front of ``fewer (t, b, n)``, ``fewer_valid (t, n)``, which may be the same memory.
    ``lanes (n,)`` says which pixel of the block is where, -1: none; ``out (b, n)`` has the pixels in their places.
    """
    kept, here = 0, np.empty(m, np.int64)
    for i in range(m):
        if going[i] > 0:
            here[kept] = i
            lanes[kept], going[kept], counts[kept] = lanes[i], going[i], counts[i]
            kept += 1
        elif lanes[i] >= 0:
            for b in range(current.shape[0]):
                out[b, lanes[i]] = current[b, i]
    for t in range(valid.shape[0]):
        to_front(valid[t], here, kept, fewer_valid[t])
        for b in range(current.shape[0]):
            to_front(numbers[t, b], here, kept, fewer[t, b])
    for b in range(current.shape[0]):
        to_front(current[b], here, kept, current[b])
        to_front(last[b], here, kept, last[b])
        to_front(back[b], here, kept, back[b])
    for k in range(memory.shape[0]):
        to_front(memory[k], here, kept, memory[k])
    rounded = (kept + LANES - 1) // LANES * LANES
    for i in range(kept, rounded):
        lanes[i], going[i] = -1, 0
    return rounded


@part
def iterate(
    numbers: Any, valid: Any, count: Any, eps: Any, max_iterations: int, fewer: Any, fewer_valid: Any, out: Any
) -> None:
    """Find the geometric medians of a block: ``numbers (t, b, n)`` into ``out (b, n)``.

    ``fewer (t, b, n / 2 or more)``, ``fewer_valid`` get the observations of pixels that go on, and may be the same.
    """
    (bands, n), kind = out.shape, out.dtype
    current, last, back = np.empty((bands, n), kind), np.empty((bands, n), kind), np.empty((bands, n), kind)
    force, step, apart = np.empty((bands, n), kind), np.zeros((bands, n), kind), np.empty((bands, n), kind)
    curved, weight = np.empty((bands * (bands + 1) // 2, n), kind), np.empty(n, kind)
    sums, memory, scratch = np.empty((4, n), kind), np.zeros((5, n), kind), np.empty((3, n), kind)
    which = np.zeros(n, np.int32)
    memory[TRIED], memory[REACH], memory[SURE] = np.inf, np.inf, 1
    free, scale, ways = np.zeros(n, kind), np.zeros(n, kind), np.zeros(n, np.int32)
    going, lanes, counts = np.ones(n, kind), np.arange(n), count.copy()
    share = np.array([1 - 32 * np.finfo(kind).eps], kind)
    means(numbers, counts, current)
    m = n
    for k in range(max_iterations):
        newton, bold = k >= FIRST, k > 0
        pull(numbers, valid, m, current, newton, apart, weight, force, sums, which, curved)
        if newton:
            derivatives(bands, sums[1], m, share, curved)
            factorise(bands, sums[1], m, share, curved)
            solve(curved, force, m, step)
        elif bold:
            extrapolate(force, sums[1], current, last, back, m, scratch, step)
        left = decide(
            numbers, force, sums, which, step, counts, m, bold, newton, eps, current, memory, going, scratch, free,
            scale, ways,
        )  # fmt: skip
        move(numbers, force, step, which, m, free, scale, ways, weight, current, last, back)
        if left == 0:
            break
        if 2 * left <= m and m > LANES:
            m = squeeze(numbers, valid, counts, current, last, back, memory, going, lanes, m, out, fewer, fewer_valid)
            numbers, valid = fewer, fewer_valid
    going[:] = 0
    squeeze(numbers, valid, counts, current, last, back, memory, going, lanes, m, out, fewer, fewer_valid)


@fast_part
def add_lengths(row: Any, mid: Any, length: Any, longer: Any) -> None:
    """Add a band to the squared lengths of observations, and to what these exceed the middle's by: all ``(n,)``."""
    for i in range(row.size):
        length[i] += row[i] * row[i]
        longer[i] += (row[i] - mid[i]) * (row[i] + mid[i])


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
def cosine(length: Any, longer: Any, square: Any, reach: Any, out: Any) -> None:
    """Write ``1 - cos`` of the angles between observations and the middle, by the law of cosines.

    In single precision, the cosine itself hides angles below 0.02 degrees. ``length (n,)`` are squared lengths of
    observations, ``longer`` their difference from the middle's, ``reach`` its length, ``square`` squared distances.
    """
    kind = out.dtype.type
    zero, one, two = kind(0), kind(1), kind(2)
    for i in range(out.size):
        long = np.sqrt(length[i])
        both, product = long + reach[i], long * reach[i]
        gap = longer[i] / (both if both > zero else one)
        angle = max(square[i] - gap * gap, zero) / (two * product if product > zero else one)
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
    reach, length, longer = np.zeros(n, kind), np.empty(n, kind), np.empty(n, kind)
    square, apart, both = np.empty(n, kind), np.empty(n, kind), np.empty(n, kind)
    for b in range(middle.shape[0]):
        mid = middle[b]
        for i in range(n):
            reach[i] += mid[i] * mid[i]
    for i in range(n):
        reach[i] = np.sqrt(reach[i])
    for t in range(valid.shape[0]):
        length[:], longer[:], square[:], apart[:], both[:] = 0, 0, 0, 0, 0
        for b in range(middle.shape[0]):
            row, mid = numbers[t, b], middle[b]
            add_lengths(row, mid, length, longer)
            add_squares(row, mid, square)
            add_absolutes(row, mid, apart, both)
        cosine(length, longer, square, reach, out[t, 0])
        euclidean = out[t, 1]
        for i in range(n):
            euclidean[i] = np.sqrt(square[i])
        share(apart, both, out[t, 2])
        for k in range(3):
            hide(valid[t], keys[t, k])


@part
def middle_values(keys: Any, real: Any, digits: Any, counts: Any, ranks: Any) -> Any:
    """Return medians of ``keys (t, n)``, bits of positive numbers: the mean of the two middle ones of an even number.

    ``real``, an array, has the type of the numbers.
    """
    n = counts.size
    rank, found, following = np.empty(n, np.int16), np.empty(n, keys.dtype), np.empty(n, keys.dtype)
    for i in range(n):
        rank[i] = ranks[counts[i]]
    select_wide(keys, rank, found, digits)
    next_key(keys, found, rank, following)
    low, high = found.view(real.dtype), following.view(real.dtype)
    half = real.dtype.type(0.5)
    for i in range(n):
        low[i] = low[i] if counts[i] % 2 else (low[i] + high[i]) * half
    return low


@kernel
def geomedian(
    obs: Observations, eps: Any, max_iterations: int, bits: Any, ranks: Any, width: int, out: Any, scatter: Any,
    count: Any,
) -> None:  # fmt: skip
    """Find geometric medians and, if wanted, the median distances of the observations from them.

    Calculated in the type of ``eps (1,)``, float32 or float64; ``bits (0,)`` has that of an unsigned integer as wide. A
    pixel whose estimate moves less than `eps` has converged (negative: less than that, made positive, times the mean
    distance of its observations); the others stop after `max_iterations`. ``ranks (t + 1,)`` int16: lower middle rank
    for each number of valid observations. `width`: pixels of a block, a multiple of 64.

    Out: ``out (b, n)``, 0 where there is no valid observation; ``scatter (3, n)``, the median of cosine, Euclidean and
    Bray-Curtis distances, ``(0, 0)`` if not wanted; ``count (n,)`` uint16.
    """
    times, kind, spread = obs.scenes.size, eps.dtype, scatter.size > 0
    half = width // 2 + LANES if spread else 0
    fewer, fewer_valid = np.empty((times, obs.bands, half), kind), np.empty((times, half), np.uint8)
    rows, numbers = np.empty((obs.bands, width), obs.values.dtype), np.empty((times, obs.bands, width), kind)
    valid, counts = np.empty((times, width), np.uint8), np.empty(width, np.uint16)
    middle, three = np.empty((obs.bands, width), kind), np.empty((times, 3, width), kind)
    numbers3, digits = three.reshape((times, 3 * width)), np.empty((times, 3 * width), np.uint16)
    keys, keys3 = three.view(bits.dtype), numbers3.view(bits.dtype)
    counts3 = np.empty(3 * width, np.uint16)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        most = load_packed(obs, start, n, rows, numbers, valid, counts)
        here, here_valid = numbers[:most], valid[:most]
        there, there_valid = here, here_valid
        if spread:  # observations are needed again
            there, there_valid = fewer[:most], fewer_valid[:most]
        for i in range(n):
            count[start + i] = counts[i]
        iterate(here, here_valid, counts, eps, max_iterations, there, there_valid, middle)
        for b in range(obs.bands):
            for i in range(n):
                out[b, start + i] = middle[b, i]
        if spread:
            distances(here, here_valid, middle, three, keys)
            for i in range(3 * width):
                counts3[i] = counts[i % width]
            medians = middle_values(keys3[: len(here)], eps, digits[: len(here)], counts3, ranks)
            for k in range(3):  # all three at once: longer rows go faster
                for i in range(n):
                    scatter[k, start + i] = medians[k * width + i]


@part
def load_numbers(obs: Observations, start: int, n: int, rows: Any, numbers: Any, valid: Any) -> None:
    """Load `n` pixels as floats: ``numbers (t, b, width)``, 0 where not valid; ``rows (b, width)`` is scratch."""
    for t in range(obs.scenes.size):
        scene = obs.scenes[t]
        split(obs, scene, start, n, rows)
        judge(obs, scene, start, n, rows, valid[t])
        ok = valid[t]
        for b in range(rows.shape[0]):
            row, number = rows[b], numbers[t, b]
            for i in range(ok.size):
                number[i] = row[i] if ok[i] else 0


@fast_part
def add_distances(numbers: Any, valid: Any, t: int, square: Any, total: Any) -> None:
    """Add up the distances of the `t`-th observation of each pixel from all valid ones: ``square``, ``total (n,)``."""
    kind = square.dtype.type
    total[:] = 0
    for other in range(numbers.shape[0]):
        square[:] = 0
        for b in range(numbers.shape[1]):
            here, there = numbers[t, b], numbers[other, b]
            for i in range(square.size):
                off = here[i] - there[i]
                square[i] += off * off
        ok = valid[other]
        for i in range(square.size):
            total[i] += kind(ok[i]) * np.sqrt(square[i])


@kernel
def medoid(obs: Observations, kind: Any, least_count: int, width: int, out: Any, count: Any, chosen: Any) -> None:
    """Pick the observation of least total distance to the others, the first of equal ones; parameters as `first_valid`.

    ``kind``, an empty array, has the type to calculate in. The distances are added up for one observation at a time, so
    that the memory grows with their number, not with its square.
    """
    times = obs.scenes.size
    rows = np.empty((obs.bands, width), obs.values.dtype)
    numbers, valid = np.empty((times, obs.bands, width), kind.dtype), np.empty((times, width), np.uint8)
    counts, index = np.empty(width, np.uint16), np.empty(width, np.int16)
    square, total, best = np.empty(width, kind.dtype), np.empty(width, kind.dtype), np.empty(width, kind.dtype)
    for start in range(0, obs.pixels, width):
        n = min(width, obs.pixels - start)
        load_numbers(obs, start, n, rows, numbers, valid)
        count_valid(valid, n, counts, count[start : start + n])
        index[:], best[:] = -1, np.inf
        for t in range(times):
            add_distances(numbers, valid, t, square, total)
            for i in range(width):
                better = (valid[t, i] != 0) & (total[i] < best[i])
                index[i] = np.int16(t) if better else index[i]
                best[i] = total[i] if better else best[i]
        put_picked(obs, index, counts, least_count, start, n, out, count, chosen)
