"""Growing the marked pixels of an image by a disc, and squared distances to them, exact in Euclidean distance."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.compile_cache import kernel, part

__all__ = ["grow", "squared_distances"]


@part
def column_distances(marked: Any, wanted: int, most: int, down: Any) -> None:
    """Write the distance of each pixel to the nearest one with value `wanted` in its column, at most `most`.

    ``marked``, ``down (y, x)`` uint8; no pixel above the first or below the last row counts as wanted.
    """
    height = marked.shape[0]
    value, top = np.uint8(wanted), np.uint8(most)
    # Loops end at the size of the row that they write: with a width of its own LLVM does not vectorise them, 10 to 40 x
    for y in range(height):
        row, values = down[y], marked[y]
        for x in range(row.size):
            row[x] = 0 if values[x] == value else top
    for y in range(1, height):
        row, above = down[y], down[y - 1]
        for x in range(row.size):
            row[x] = min(row[x], np.uint8(above[x] + (above[x] < top)))
    for y in range(height - 2, -1, -1):
        row, below = down[y], down[y + 1]
        for x in range(row.size):
            row[x] = min(row[x], np.uint8(below[x] + (below[x] < top)))


@kernel
def grow(marked: Any, wanted: int, reach: Any, out: Any) -> None:
    """Mark every pixel within a disc of a pixel of value `wanted`; there are none outside the image.

    ``marked``, ``out (t, y, x)`` uint8: 0 or 1; `wanted` 1 grows the marked pixels, 0 the others. ``reach (r + 1,)``
    int64: half height of the disc of radius `r` (at most 254) in each column from its middle on.
    """
    times, height, width = marked.shape
    radius = reach.size - 1
    most = radius + 1
    down, padded = np.empty((height, width), np.uint8), np.empty(width + 2 * radius, np.uint8)
    padded[:] = most
    for t in range(times if height > 0 else 0):
        column_distances(marked[t], wanted, most, down)
        for y in range(height):
            row, near, middle = out[t, y], down[y], padded[radius : radius + width]
            for x in range(row.size):
                middle[x], row[x] = near[x], 0
            for dx in range(-radius, radius + 1):
                at, half = padded[radius + dx : radius + dx + width], np.uint8(reach[abs(dx)])
                for x in range(row.size):
                    row[x] |= np.uint8(at[x] <= half)


@kernel
def squared_distances(marked: Any, radius: int, out: Any) -> None:
    """Write the squared distance of each pixel to the nearest marked one, at most ``radius ** 2``.

    ``marked (t, y, x)`` uint8: 0 or 1, nothing outside is marked; `radius` 1 to 254; ``out (t, y, x)`` uint16.
    """
    times, height, width = marked.shape
    most = radius + 1
    down, padded = np.empty((height, width), np.uint8), np.empty(width + 2 * radius, np.int32)
    padded[:] = most * most
    for t in range(times if height > 0 else 0):
        column_distances(marked[t], 1, most, down)
        for y in range(height):
            row, near, middle = out[t, y], down[y], padded[radius : radius + width]
            lowest: Any = most
            longest: Any = radius * radius
            dx = 0
            for x in range(row.size):
                middle[x], row[x] = np.int32(near[x]) * np.int32(near[x]), radius * radius
                lowest = min(lowest, np.int32(near[x]))
            while lowest <= radius and dx * dx < longest:  # outwards, until nothing farther aside could be nearer
                left, right = padded[radius - dx : radius - dx + width], padded[radius + dx : radius + dx + width]
                aside, longest = np.int32(dx * dx), np.int32(0)
                for x in range(row.size):
                    distance = min(np.int32(row[x]), left[x] + aside, right[x] + aside)
                    row[x] = distance
                    longest = max(longest, distance)
                dx += 1
