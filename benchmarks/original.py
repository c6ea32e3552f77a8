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
def luminance(sample):
    return sample[0] + sample[1] + sample[2]


@njit(nogil=True)
def median_of_lists(stack, out):
    """stack (t, n, 3) uint8 -> out (n, 3) uint8."""
    for i in range(stack.shape[1]):
        samples = []
        for t in range(stack.shape[0]):
            r, g, b = np.int64(stack[t, i, 0]), np.int64(stack[t, i, 1]), np.int64(stack[t, i, 2])
            if r == 0 or g == 0 or b == 0 or r == 255 or g == 255 or b == 255:
                continue
            samples.append((r, g, b))
        if len(samples) > 0:
            samples.sort(key=luminance)
            r, g, b = samples[len(samples) // 2]
            out[i, 0], out[i, 1], out[i, 2] = r, g, b


def read(path, window):
    with rasterio.open(path) as dataset:
        return dataset.read(window=window)


def window_worker(paths, x0, y0, width, height):
    """Return the composite of one window, (height, width, 3)."""
    window = rasterio.windows.Window(x0, y0, width, height)
    with ThreadPoolExecutor(10) as pool:
        scenes = list(pool.map(lambda path: read(path, window), paths))
    stack = np.stack([np.moveaxis(scene, 0, -1).reshape(-1, 3) for scene in scenes])
    out = np.zeros((width * height, 3), np.uint8)
    median_of_lists(stack, out)
    return out.reshape(height, width, 3)


def main():
    directory, *numbers = sys.argv[1:]
    paths = sorted(Path(directory).glob("*.tif"))
    median_of_lists(np.ones((2, 1, 3), np.uint8), np.zeros((1, 3), np.uint8))  # compiling is not what is timed
    start = time.perf_counter()
    for i in range(0, len(numbers), 4):
        window_worker(paths, *map(int, numbers[i : i + 4]))
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
