"""A whole granule: 216 scenes of 10980 x 10980 to median.tif on a local cluster; how cost grows with scenes and windows; and
a preview of the same stack from its overviews.

    python benchmarks/granule.py --directory /tmp/granule            # a few minutes, and 2 GB of disk for the scenes
    python benchmarks/granule.py --scenes 12 --size 2048 --distinct 2

The scenes are a few different full-size files under many names: their pixels are read and decoded each time, only making them
is cheaper.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from pathlib import Path

import psutil

import s2composite as s2c
from s2composite.demo import make_scenes


class PeakMemory:
    """Highest resident memory of this process and all its children together while the block runs."""

    def __enter__(self):
        self.bytes, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        me = psutil.Process()
        while not self._done.wait(0.2):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
            self.bytes = max(self.bytes, total)

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def timed(make):
    start = time.perf_counter()
    make()
    return time.perf_counter() - start


def growth(name, label, points, make):
    """Time `make(point)` for each point; print the cost of one unit and what a straight line says costs nothing."""
    print(f"\n{name}")
    seconds = []
    for point in points:
        seconds.append(min(timed(lambda point=point: make(point)) for _ in range(2)))
        print(f"  {point:5d} {label:8} {seconds[-1]:7.2f} s   {seconds[-1] / point * 1e3:8.1f} ms each")
    slope = (seconds[-1] - seconds[0]) / (points[-1] - points[0])
    print(
        f"  a line through first and last: {slope * 1e3:.1f} ms for one more, intercept {seconds[0] - slope * points[0]:.2f} s"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=216)
    parser.add_argument("--size", type=int, default=10980)
    parser.add_argument("--distinct", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="keep the scenes here, and use those that are there")
    parser.add_argument("--growth", action="store_true", help="also measure how cost grows")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.directory or Path(scratch) / "scenes"
        if not directory.exists():
            took = timed(
                lambda: make_scenes(str(directory), scenes=args.scenes, size=args.size, distinct=args.distinct)
            )
            print(f"made {args.distinct} scenes of {args.size} x {args.size} under {args.scenes} names in {took:.0f} s")
        with s2c.connect("local", workers=args.workers, threads=1):
            granule(directory, Path(scratch), args)
            if args.growth:
                measure_growth(directory, args)
            resolution = 160 if args.size == 10980 else 80
            preview = timed(lambda: s2c.composite(s2c.open_cube(directory, resolution=resolution)).compute())
            print(f"\npreview at {resolution} m from overviews: {preview:.1f} s")


def granule(directory, out, args):
    with PeakMemory() as memory:
        start = time.perf_counter()
        cube = s2c.open_cube(directory)
        opened = time.perf_counter() - start
        s2c.composite(cube).to_raster(str(out / "median.tif"), layers=("composite", "count", "source"))
        took = time.perf_counter() - start
    pixels = cube.sizes["time"] * cube.sizes["y"] * cube.sizes["x"]
    print(
        f"{cube.sizes['time']} scenes x 3 x {args.size} x {args.size}, {args.workers} workers, windows {cube.data.chunksize[2:]}"
    )
    print(f"  {took / 60:.2f} minutes to median.tif, count and source ({opened:.2f} s to open)")
    print(f"  {pixels / took / 1e6:.0f} M observations/s, {3 * pixels / took / 1e6:.0f} MB/s decoded")
    print(f"  peak memory of all processes {memory.bytes / 2**30:.2f} GiB")


def measure_growth(directory, args):
    # Windows in a row of one size, so that a window more is the same work more.
    side = 1024 if args.size >= 4096 else args.size // 4
    cube = s2c.open_cube(directory, chunks=side)
    scenes = [n for n in (54, 108, 216) if n <= args.scenes] or [args.scenes // 4, args.scenes // 2, args.scenes]
    some = cube.isel(y=slice(0, 2 * side), x=slice(0, 2 * side))
    growth(
        "cost of four windows as the stack grows",
        "scenes",
        scenes,
        lambda n: s2c.composite(some.isel(time=slice(0, n))).compute(),
    )
    counts = [n for n in (1, 4, 16, 121) if n <= (args.size // side + 1) ** 2]
    third = cube.isel(time=slice(0, max(1, args.scenes // 4)))

    def windows(n):
        width = int(n**0.5) * side
        s2c.composite(third.isel(y=slice(0, width), x=slice(0, width))).compute()

    growth(f"cost of windows of {third.sizes['time']} scenes", "windows", counts, windows)


if __name__ == "__main__":
    main()
