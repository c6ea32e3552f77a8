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
    height, width = marked.shape
    one, top = np.int16(1), np.int16(most)
    for y in range(height):
        row, values = down[y], marked[y]
        if y == 0:
            for x in range(width):
                row[x] = 0 if values[x] == wanted else top
        else:
            above = down[y - 1]
            for x in range(width):
                row[x] = 0 if values[x] == wanted else min(np.int16(above[x]) + one, top)
    for y in range(height - 2, -1, -1):
        row, below = down[y], down[y + 1]
        for x in range(width):
            row[x] = min(np.int16(row[x]), np.int16(below[x]) + one)


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
            row, near = out[t, y], down[y]
            for x in range(width):
                padded[radius + x] = near[x]
            row[:] = 0
            for dx in range(-radius, radius + 1):
                at, half = padded[radius + dx : radius + dx + width], np.uint8(reach[abs(dx)])
                for x in range(width):
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
            row, near = out[t, y], down[y]
            for x in range(width):
                padded[radius + x] = np.int32(near[x]) * np.int32(near[x])
            row[:] = radius * radius
            for dx in range(-radius, radius + 1):
                at, aside = padded[radius + dx : radius + dx + width], np.int32(dx * dx)
                for x in range(width):
                    row[x] = min(np.int32(row[x]), at[x] + aside)
