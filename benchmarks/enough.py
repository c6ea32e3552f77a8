"""Reading no further than it takes: composites that need few of the observations, beside those of all, in turns.

python benchmarks/enough.py            # a year, every five days: 73 scenes of 1536 x 1536, DEFLATE, with clouds masked by SCL
python benchmarks/enough.py --scenes 48 --size 1024
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import dask
from reducers import in_turns

import s2composite as s2c
import s2composite.reading.tiles
from s2composite.demo import make_scenes

RULES = [s2c.Nodata(), s2c.Saturated(), s2c.SCL(cleanup=[("opening", 2), ("dilation", 5)])]
WAYS = {
    "latest": ("composite", {"reducer": "latest"}),
    "latest, and its count": ("count", {"reducer": "latest"}),
    "best available pixel": ("composite", {"reducer": "best_available_pixel"}),
    "best available pixel, and its count": ("count", {"reducer": "best_available_pixel"}),
    "median": ("composite", {"reducer": "median"}),
    "median, max_count=10": ("composite", {"reducer": "median", "max_count": 10}),
}
"""What is computed of which composite; a count needs every observation."""


def make(directory, name):
    layer, way = WAYS[name]
    cube = s2c.open_cube(directory, bands=["TCI"])
    with dask.config.set(scheduler="threads", num_workers=2):
        return s2c.composite(cube, valid=RULES, **way)[layer].compute()


def peak(directory, name):
    """Return the highest resident memory of a new process, in bytes."""
    make(directory, name)
    # not that of getrusage, which counts what the parent had when it forked
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=73)
    parser.add_argument("--size", type=int, default=1536)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    decoded, decode = Counter(), s2composite.reading.tiles.decode_tile

    def counted(*tile):
        decoded["tiles"] += 1
        decoded["bytes"] += sum(len(part) for part in tile if isinstance(part, (bytes, memoryview)))
        decode(*tile)

    with tempfile.TemporaryDirectory() as directory:
        # all different: where few skies repeat, a pixel that is cloudy in all of them is never clear
        make_scenes(directory, scenes=args.scenes, size=args.size, compress="deflate", assets=("TCI", "SCL"))
        best = in_turns({name: lambda name=name: make(directory, name) for name in WAYS}, args.rounds)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
            memory = dict(zip(WAYS, processes.map(peak, [directory] * len(WAYS), WAYS), strict=True))
        s2composite.reading.tiles.decode_tile = counted
        for name in WAYS:
            decoded.clear()
            make(directory, name)
            said = f"{best[name]:6.2f} s, {decoded['tiles']:6} tiles decoded, {decoded['bytes'] / 1e6:8.1f} MB"
            print(f"{name:35} {said}, {memory[name] / 2**20:6.0f} MiB at most in memory")


if __name__ == "__main__":
    main()
