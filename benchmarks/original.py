"""The original window worker's way, rewritten for comparison: whole-window reads with rasterio, then for each pixel a list
of RGB triplets that is sorted with a key function, in Numba.

    python benchmarks/original.py DIRECTORY X0 Y0 WIDTH HEIGHT [X0 Y0 WIDTH HEIGHT ...]
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
from numba import njit


@njit(nogil=True)
def luminance(triplet):
    total = 0 * np.int64(1)
    for value in triplet:
        total += value
    return total


@njit(nogil=True)
def median_of_lists(buffers, lowest, highest, out):
    """buffers (t, 3 n): red, green and blue of a window one after the other, as they are read -> out (3 n,).

    For each pixel the triplets of all dates go into an array, its rows into a list, and the list is sorted by their sum.
    """
    pixels = buffers.shape[1] // 3
    samples = np.zeros((buffers.shape[0], 3), buffers.dtype)
    for i in range(pixels):
        count = 0
        for t in range(buffers.shape[0]):
            r, g, b = buffers[t, i], buffers[t, i + pixels], buffers[t, i + 2 * pixels]
            if r == lowest or g == lowest or b == lowest or r == highest or g == highest or b == highest:
                continue
            samples[count, 0], samples[count, 1], samples[count, 2] = r, g, b
            count += 1
        if count > 0:
            triplets = list(samples[:count])
            triplets.sort(key=luminance)
            middle = triplets[count // 2]
            out[i], out[i + pixels], out[i + 2 * pixels] = middle[0], middle[1], middle[2]


def read(path, window):
    with rasterio.open(path) as dataset:
        return dataset.read(window=window)


def window_worker(paths, x0, y0, width, height):
    """Return the composite of one window, (3, height, width)."""
    window = rasterio.windows.Window(x0, y0, width, height)
    with ThreadPoolExecutor(10) as pool:
        scenes = list(pool.map(lambda path: read(path, window), paths))
    buffers = np.stack([scene.reshape(-1) for scene in scenes])
    out = np.zeros(3 * width * height, np.uint8)
    median_of_lists(buffers, 0, 255, out)
    return out.reshape(3, height, width)


def main():
    directory, *numbers = sys.argv[1:]
    paths = sorted(Path(directory).glob("*.tif"))
    median_of_lists(np.ones((2, 3), np.uint8), 0, 255, np.zeros(3, np.uint8))  # compiling is not what is timed
    start = time.perf_counter()
    for i in range(0, len(numbers), 4):
        window_worker(paths, *map(int, numbers[i : i + 4]))
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
