"""Kernels that walk through the scenes once and remember the best so far: first valid, best score; and medoids."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.rank import put_picked
from s2composite.pixels.kernels.tiles import Source, count_valid, fast_part, judge, kernel, part, split

__all__ = ["best_scored", "first_valid", "medoid", "validity"]


@part
def judge_scene(source: Source, t: int, start: int, n: int, rows: Any, valid: Any) -> None:
    """Write which of `n` pixels of the `t`-th scene are valid, 0 beyond; ``rows (b, width)`` is scratch."""
    scene = source.scenes[t]
    split(source, scene, start, n, rows)
    judge(source, scene, start, n, rows, valid)
    valid[n:] = 0


@part
def refuse_few(counts: Any, least_count: int, index: Any) -> None:
    """Take back the choice where there are too few valid observations."""
    for i in range(index.size):
        if counts[i] < least_count:
            index[i] = -1


@kernel
def first_valid(source: Source, least_count: int, width: int, out: Any, count: Any, chosen: Any) -> None:
    """Pick the first valid observation of each pixel, in the order of ``source.scenes``.

    Parameters
    ----------
    source
        The stack.
    least_count
        Pixels with fewer valid observations get none.
    width
        Pixels of a block.
    out
        ``(b, n)``, type of the source, filled with nodata before: values of the picked observation.
    count
        ``(n,)`` uint16, out: valid observations.
    chosen
        ``(n,)`` int16, out: scene of the picked observation, -1 if none.
    """
    rows, valid = np.empty((source.bands, width), source.values.dtype), np.empty(width, np.uint8)
    counts, index = np.empty(width, np.uint16), np.empty(width, np.int16)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        counts[:], index[:] = 0, -1
        for t in range(source.scenes.size):
            judge_scene(source, t, start, n, rows, valid)
            for i in range(width):
                index[i] = np.int16(t) if (valid[i] != 0) & (counts[i] == 0) else index[i]
                counts[i] += np.uint16(valid[i])
        refuse_few(counts, least_count, index)
        put_picked(source, index, start, n, out, chosen)
        for i in range(n):
            count[start + i] = counts[i]


@kernel
def best_scored(
    source: Source,
    of_scene: Any,
    near: Any,
    of_distance: Any,
    least_count: int,
    width: int,
    out: Any,
    count: Any,
    chosen: Any,
) -> None:
    """Pick the valid observation of the highest score, the first of equal ones; parameters as `first_valid`, and these.

    Parameters
    ----------
    of_scene
        ``(t,)`` float32: the part of the score that a whole scene has.
    near
        ``(scenes of the stack, plane)`` uint16, 1-D from the first pixel on: squared distance to the nearest bad pixel
        of the scene, at most ``of_distance.size - 1``; empty if it does not matter.
    of_distance
        float32: the part of the score for each squared distance.
    """
    rows, valid = np.empty((source.bands, width), source.values.dtype), np.empty(width, np.uint8)
    counts, index, best = np.empty(width, np.uint16), np.empty(width, np.int16), np.empty(width, np.float32)
    score = np.empty(width, np.float32)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        counts[:], index[:], best[:] = 0, -1, -np.inf
        for t in range(source.scenes.size):
            judge_scene(source, t, start, n, rows, valid)
            score[:] = of_scene[t]
            if near.size > 0:
                at = source.scenes[t] * source.plane + start
                for i in range(n):
                    score[i] += of_distance[near[at + i]]
            for i in range(width):
                better = (valid[i] != 0) & (score[i] > best[i])
                index[i] = np.int16(t) if better else index[i]
                best[i] = score[i] if better else best[i]
                counts[i] += np.uint16(valid[i])
        refuse_few(counts, least_count, index)
        put_picked(source, index, start, n, out, chosen)
        for i in range(n):
            count[start + i] = counts[i]


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
def medoid(source: Source, kind: Any, least_count: int, width: int, out: Any, count: Any, chosen: Any) -> None:
    """Pick the observation of least total distance to the others, the first of equal ones; parameters as `first_valid`.

    ``kind``, an empty array, has the type to calculate in. The distances are added up for one observation at a time, so
    that the memory grows with their number, not with its square.
    """
    times = source.scenes.size
    rows = np.empty((source.bands, width), source.values.dtype)
    numbers, valid = np.empty((times, source.bands, width), kind.dtype), np.empty((times, width), np.uint8)
    counts, index = np.empty(width, np.uint16), np.empty(width, np.int16)
    square, total, best = np.empty(width, kind.dtype), np.empty(width, kind.dtype), np.empty(width, kind.dtype)
    for start in range(0, source.pixels, width):
        n = min(width, source.pixels - start)
        load_numbers(source, start, n, rows, numbers, valid)
        count_valid(valid, n, counts, count[start : start + n])
        index[:], best[:] = -1, np.inf
        for t in range(times):
            add_distances(numbers, valid, t, square, total)
            for i in range(width):
                better = (valid[t, i] != 0) & (total[i] < best[i])
                index[i] = np.int16(t) if better else index[i]
                best[i] = total[i] if better else best[i]
        refuse_few(counts, least_count, index)
        put_picked(source, index, start, n, out, chosen)


@kernel
def validity(source: Source, width: int, out: Any) -> None:
    """Write which observations are valid: ``out (t * n,)`` uint8, the scenes in the order of ``source.scenes``."""
    rows, valid = np.empty((source.bands, width), source.values.dtype), np.empty(width, np.uint8)
    for t in range(source.scenes.size):
        for start in range(0, source.pixels, width):
            n = min(width, source.pixels - start)
            judge_scene(source, t, start, n, rows, valid)
            for i in range(n):
                out[t * source.pixels + start + i] = valid[i]
