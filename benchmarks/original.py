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


@njit
def median_of_lists(buffers, lowest, highest):
    """buffers: for each date red, green and blue of a window one after the other (3 n,) -> (3 n,).

    As the original does it, step by step: buffers in a list, each valid triplet written into an array as a small list, its
    rows in a list, that list sorted with ``sum`` as the key.
    """
    pixels = len(buffers[0]) // 3
    samples = np.zeros((len(buffers), 3), buffers[0].dtype)
    out = np.zeros_like(buffers[0])
    for i in range(pixels):
        count = 0
        for t in range(len(buffers)):
            if (
                buffers[t][i] == lowest or buffers[t][i + pixels] == lowest or buffers[t][i + 2 * pixels] == lowest
                or buffers[t][i] == highest or buffers[t][i + pixels] == highest or buffers[t][i + 2 * pixels] == highest
            ):  # fmt: skip
                continue
            samples[count] = [buffers[t][i], buffers[t][i + pixels], buffers[t][i + 2 * pixels]]
            count += 1
        if count > 0:
            triplets = list(samples[:count])
            triplets.sort(key=lambda triplet: sum(triplet))  # noqa: PLW0108 - as the original does it
            out[i], out[i + pixels], out[i + 2 * pixels] = triplets[count // 2]
    return out


def read(path, window):
    with rasterio.open(path) as dataset:
        return dataset.read(window=window)


def window_worker(paths, x0, y0, width, height):
    """Return the composite of one window, (3, height, width)."""
    window = rasterio.windows.Window(x0, y0, width, height)
    with ThreadPoolExecutor(10) as pool:
        scenes = list(pool.map(lambda path: read(path, window), paths))
    return median_of_lists([scene.reshape(-1) for scene in scenes], 0, 255).reshape(3, height, width)


def main():
    directory, *numbers = sys.argv[1:]
    paths = sorted(Path(directory).glob("*.tif"))
    median_of_lists([np.ones(3, np.uint8)] * 2, 0, 255)  # compiling is not what is timed
    start = time.perf_counter()
    for i in range(0, len(numbers), 4):
        window_worker(paths, *map(int, numbers[i : i + 4]))
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
