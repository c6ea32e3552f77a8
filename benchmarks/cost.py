"""Core-seconds per input megapixel of common composites, and what is saved where masks leave nothing of a tile.

    python benchmarks/cost.py             # 48 dates of 2048 x 2048: four bands (DEFLATE), true colours (JPEG), SCL
    python benchmarks/cost.py --dates 24 --size 1024

An input megapixel is a million pixels of one band of one date, of whichever dates masks leave something or nothing. Seconds
are those of the processor, in one thread, from compressed files to arrays in memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import dask
import numpy as np
import rasterio
from reducers import in_turns

import s2composite as s2c
import s2composite.reading.stack
import s2composite.reading.tiles
from s2composite.demo import make_scenes

BANDS = ("B02", "B03", "B04", "B08")
RULES = [s2c.Nodata(), s2c.SCL(cleanup=[("opening", 2), ("dilation", 5)])]
BLOCK = 512
WAYS = {
    "max NDVI": ["max_ndvi"],
    "best available pixel": ["best_available_pixel"],
    "median": ["median"],
    "geomedian and its deviations": ["geomedian"],
}
PUBLISHED = """\
Published by others, on their machines, from other files (not measured here):
  openEO on CDSE, services of the APEx catalogue, from JPEG 2000    2.5 to 11.2 processor seconds a megapixel
  odc-stats, geomedian of 9600 x 9600 pixels in 10 bands            12 to 20 minutes on 32 cores"""


def overcast(directory, share):
    """Let the classes of a share of all tiles, drawn for each date, be cloud and all others clear; return how many."""
    rng = np.random.default_rng(1)
    usable = 0
    for path in sorted(directory.glob("*_SCL.tif")):
        with rasterio.open(path) as dataset:
            classes, profile = np.full(dataset.shape, 4, np.uint8), dataset.profile
        path.unlink()
        side = BLOCK // 2  # classes have twice the pixel size
        for top in range(0, classes.shape[0], side):
            for left in range(0, classes.shape[1], side):
                cloudy = rng.random() < share
                usable += not cloudy
                if cloudy:
                    classes[top : top + side, left : left + side] = 9
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(classes, 1)
    return usable


def costs(directory, dates, size):
    """Print the table of core-seconds."""
    cube = s2c.open_cube(directory, bands=list(BANDS))
    megapixels = dates * len(BANDS) * size * size / 1e6
    print(f"{dates} dates, {len(BANDS)} bands, {size} x {size}: {megapixels:.0f} input megapixels")
    for name, reducers in WAYS.items():
        comp = s2c.composite(cube, *reducers, valid=RULES)
        layers = comp.dataset if "geomedian" in reducers else comp["composite"]
        with dask.config.set(scheduler="synchronous"):
            layers.compute()  # kernels are compiled
            start = time.process_time()
            layers.compute()
            took = time.process_time() - start
        print(f"  {name:32} {took:7.1f} s   {took / megapixels:7.4f} core-seconds a megapixel")
    print(PUBLISHED)


def saved(directory, name, bands, reducer, usable, rounds):
    """Print what tiles under clouds save."""
    cube = s2c.open_cube(directory, bands=list(bands))
    comp = s2c.composite(cube, reducer, valid=RULES)
    begin, decode = s2composite.reading.stack.begin, s2composite.reading.tiles.decode_tile
    decoded = Counter()

    def make(everything):
        s2composite.reading.stack.begin = begin
        if everything:
            s2composite.reading.stack.begin = lambda *args, **options: begin(*args, **{**options, "wanted": None})
        with dask.config.set(scheduler="synchronous"):
            return comp.compute()

    def counted(coding, data, rows, out):
        decoded[out.dtype, out.shape[-1]] += 1
        return decode(coding, data, rows, out)

    best = in_turns({"usable tiles": lambda: make(False), "all tiles": lambda: make(True)}, rounds)
    s2composite.reading.tiles.decode_tile = counted
    make(False)
    s2composite.reading.tiles.decode_tile = decode
    ratio, files = best["all tiles"] / best["usable tiles"], len(bands)
    tiles = decoded[cube.dtype, cube.sizes["band"] // files] / files / usable
    print(f"    {name:24} {ratio:.2f} times as fast, {tiles:.3f} tiles decoded for each usable one")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dates", type=int, default=48)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        make_scenes(scratch, scenes=args.dates, size=args.size, assets=("TCI", *BANDS, "SCL"), distinct=6)
        costs(directory, args.dates, args.size)
        print("\nMedians that leave tiles under clouds unread, against reading them all, in turns:")
        for share in (0.0, 0.3, 0.6):
            usable = overcast(directory, share)
            print(f"  {share:.0%} of the tiles under clouds")
            saved(directory, "four bands", BANDS, "median", usable, args.rounds)
            saved(directory, "true colours", ("TCI",), "luminance_median", usable, args.rounds)


if __name__ == "__main__":
    main()
