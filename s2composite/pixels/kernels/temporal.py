"""Observations that are unlike those of the weeks before and after, for all pixels of an area."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.compile_cache import kernel, part
from s2composite.pixels.kernels.selection import INVALID, NO_RANK, select

__all__ = ["mark_unlike"]

_RUN = 512  # pixels at a time: keys of 216 scenes take 440 KB, which an L2 cache holds


@part
def write_references(values: Any, use: Any, first: Any, last: Any, bits: int, quantile: float, refs: Any) -> None:
    """Write the quantile of the usable values of each span of scenes, `INVALID` where there is none.

    ``values``, ``use (t, n)``; ``first``, ``last (w,)``: the span's scenes; ``refs (w, n)`` uint16.
    """
    times, n = values.shape
    keys = np.empty((times, n), np.uint16)
    for t in range(times):
        row, used, out = values[t], use[t], keys[t]
        for i in range(n):
            out[i] = np.uint16(row[i]) if used[i] else np.uint16(INVALID)
    rank, number = np.empty(n, np.int16), np.empty(n, np.int16)
    for w in range(first.size):
        ref = refs[w]
        number[:] = 0
        for t in range(first[w], last[w]):
            used = use[t]
            for i in range(n):
                number[i] += np.int16(used[i])
        for i in range(n):
            rank[i] = np.int16(quantile * (number[i] - 1) + 0.5) if number[i] else np.int16(NO_RANK)
        select(keys[first[w] : last[w]], bits, rank, ref)
        for i in range(n):
            ref[i] = ref[i] if number[i] else np.uint16(INVALID)


@part
def find_alike(least: Any, grey: Any, seen: Any, near: Any, most: int, alike: Any) -> None:
    """Find the observations with three others in scenes that are near whose values are like theirs: to 1/16, or 8."""
    times, n = least.shape
    number, margin = np.empty(n, np.int16), np.empty(n, np.int16)
    for t in range(times):
        mine, mine_too, out = least[t], grey[t], alike[t]
        for i in range(n):
            number[i] = 0
            margin[i] = max(np.int16(8), np.int16(mine[i] >> 4))
        for s in range(near[0][t], near[1][t]):
            if s != t:
                one, two, here = least[s], grey[s], seen[s]
                for i in range(n):
                    a, b = (
                        np.int16(np.int16(one[i]) - np.int16(mine[i])),
                        np.int16(np.int16(two[i]) - np.int16(mine_too[i])),
                    )
                    far = (a > margin[i]) | (a < -margin[i]) | (b > margin[i]) | (b < -margin[i])
                    number[i] += np.int16((not far) & (here[i] != 0))
        for i in range(n):
            out[i] = (number[i] >= 3) & (mine[i] < most)


@part
def mark_run(
    least: Any, grey: Any, seen: Any, use: Any, alike: Any, spans: Any, settings: Any, limits: Any, refs: Any, bad: Any
) -> None:
    """Mark what is brighter than both references of its scene, or darker than both, and not like three others."""
    first, last, before, after = spans
    bits, quantile = settings
    brighter, darker, least_dark = limits
    times, n = least.shape
    leasts, greys = refs
    write_references(least, use, first, last, bits, quantile, leasts)
    write_references(grey, use, first, last, bits, quantile, greys)
    none = np.int32(INVALID)
    for t in range(times):
        b0, b1, g0, g1 = leasts[before[t]], leasts[after[t]], greys[before[t]], greys[after[t]]
        b, g, here, same, out = least[t], grey[t], seen[t], alike[t], bad[t]
        for i in range(n):
            x0, x1 = np.int32(b0[i]), np.int32(b1[i])
            top = max(-1 if x0 == none else x0, -1 if x1 == none else x1)
            low = min(np.int32(g0[i]), np.int32(g1[i]))  # none is larger than any
            bright = (top >= 0) & (np.int32(b[i]) > top + brighter)
            dark = (low < none) & (np.int32(g[i]) * 256 < low * darker) & (low - np.int32(g[i]) >= least_dark)
            out[i] = (bright | dark) & (here[i] != 0) & (same[i] == 0)


@kernel
def mark_unlike(
    least: Any,
    grey: Any,
    seen: Any,
    first: int,
    spans: Any,
    near: Any,
    settings: Any,
    limits: Any,
    quantiles: Any,
    bad: Any,
) -> None:
    """Mark the observations of a cloud or a shadow.

    Parameters
    ----------
    least, grey, seen
        ``(t, n)``, scenes in order of time: the smallest and the mean of the bands of each observation, and where there
        is one (uint8: 0 or 1).
    first
        The first of the pixels that are looked at: those of `bad`.
    spans
        ``first``, ``last (w,)``: the scenes of each span of time, and ``before``, ``after (t,)``: the spans that each
        scene is compared with; all int64.
    near
        ``first``, ``last (t,)``: the scenes among which three like an observation show that it is the ground's.
    settings
        Bits of the values, and the value from which none is like another (of 8 bits, white).
    limits
        ``(2, 3)``: in each of two passes, by how much the least may be brighter than its reference, how many 256ths of
        its reference grey must have, and by how much a shadow's is below it.
    quantiles
        ``(2,)``: the references' quantile in each pass; in the second among what the first leaves.
    bad
        ``(t, m)`` uint8, out.
    """
    times, m = bad.shape
    refs = (np.empty((spans[0].size, _RUN), np.uint16), np.empty((spans[0].size, _RUN), np.uint16))
    use = np.empty((times, _RUN), np.uint8)
    for start in range(first, first + m, _RUN):
        stop = min(start + _RUN, first + m)
        size = stop - start
        b, g, s = least[:, start:stop].copy(), grey[:, start:stop].copy(), seen[:, start:stop].copy()
        u, marked = use[:, :size].copy(), np.zeros((times, size), np.uint8)
        own = (refs[0][:, :size].copy(), refs[1][:, :size].copy())
        alike = np.empty((times, size), np.uint8)
        find_alike(b, g, s, near, settings[1], alike)
        for passed in range(2):
            for t in range(times):
                for i in range(size):
                    u[t, i] = s[t, i] & (1 - marked[t, i])
            setting = (settings[0], quantiles[passed])
            limit = (limits[passed, 0], limits[passed, 1], limits[passed, 2])
            mark_run(b, g, s, u, alike, spans, setting, limit, own, marked)
        for t in range(times):
            row = bad[t, start - first : stop - first]
            for i in range(size):  # a slice assignment would compile three seconds more
                row[i] = marked[t, i]
