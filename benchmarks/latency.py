"""What latency costs: windows of a stack over HTTP, from a server that answers at once and from one that takes its time.

Both have the same bandwidth over all connections. Requests and bytes are what the server counted, beside the least that
the windows need: one request for each run of neighbouring tiles, and the bytes of the tiles. Then a composite masked by SCL,
whose windows request nothing else before they have their masks: by a worker of one thread, of two, and by threads alone.

    python benchmarks/latency.py                              # 50 ms, 100 MB/s, 72 scenes of 2048 x 2048
    python benchmarks/latency.py --scenes 24 --size 1024 --bandwidth 50
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import numpy as np
from decode import windows
from distributed import Client

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.geotiff.header import read_header
from s2composite.reading.tiles import TileRequest, begin_window

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.http_faults import stats, throttled


def read_all(headers, size, edge, threads):
    """Read all windows; return seconds."""

    memory = threading.local()

    def begin(piece):
        pixels = memory.pixels[:, : piece[0].stop - piece[0].start, : piece[1].stop - piece[1].start]
        outs = np.moveaxis(pixels, 3, 1)
        return begin_window([TileRequest(h, 0, piece, (0, 1, 2), o) for h, o in zip(headers, outs, strict=True)])

    def read(window):
        if not hasattr(memory, "pixels"):
            memory.pixels = np.empty((len(headers), 512, edge, 3), np.uint8)
        y, x = window
        # a row of tiles at a time, the bytes of the next one on their way
        pieces = [(slice(row, min(row + 512, y.stop)), x) for row in range(y.start, y.stop, 512)]
        begun = begin(pieces[0])
        for piece in [*pieces[1:], None]:
            ahead = begin(piece) if piece else None
            assert not any(r.error or r.retries for r in begun.finish())
            begun = ahead

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(read, windows(size, edge)))
        return time.perf_counter() - start


def least(headers, size, edge):
    """Return the requests and bytes that the windows need at least."""
    requests = total = 0
    for header in headers:
        level = header.levels[0]
        for y, x in windows(size, edge):
            for row in range(y.start // level.block[0], -(-y.stop // level.block[0])):
                first = row * level.grid[1] + x.start // level.block[1]
                last = row * level.grid[1] + -(-x.stop // level.block[1])
                requests += 1
                total += int(level.counts[first:last].sum())
    return requests, total


def measure(directory, latency, args):
    """Read everything from a server; return seconds, and what it counted for headers and for windows."""
    with throttled(directory, latency=latency, bandwidth=args.bandwidth * 1e6) as url:
        names = sorted(path.name for path in Path(directory).glob("*.tif"))
        start = time.perf_counter()
        with ThreadPoolExecutor(32) as pool:
            headers = tuple(pool.map(read_header, [f"{url}/{name}" for name in names]))
        opening, before = time.perf_counter() - start, stats(url)
        seconds = read_all(headers, args.size, args.window, args.threads)
        after = stats(url)
    counted = {name: after[name] - before[name] for name in after}
    print(
        f"{latency * 1e3:4.0f} ms: headers {opening:5.2f} s in {before['requests']} requests; "
        f"windows {seconds:6.2f} s, {counted['bytes'] / seconds / 1e6:6.1f} MB/s, "
        f"{counted['requests']} requests, {counted['bytes'] / 1e6:.1f} MB"
    )
    return headers, counted["bytes"] / seconds


def masked(directory, latency, args):
    """Composite from a server with masks; return seconds, and what it counted."""
    with throttled(directory, latency=latency, bandwidth=args.bandwidth * 1e6) as url:
        names = sorted(path.name for path in Path(directory).glob("*.tif"))
        cube = s2c.open_cube([f"{url}/{name}" for name in names], bands=["TCI"], chunks=args.window)
        comp = s2c.composite(cube, valid=[s2c.Nodata(), s2c.SCL(cleanup=[("opening", 2), ("dilation", 5)])])
        start, before = time.perf_counter(), stats(url)
        comp.compute()
        seconds, after = time.perf_counter() - start, stats(url)
    print(
        f"{latency * 1e3:4.0f} ms: masked composite {seconds:6.2f} s, {after['requests'] - before['requests']} requests, "
        f"{(after['bytes'] - before['bytes']) / 1e6:.1f} MB"
    )
    return seconds


def compare_masked(name, directory, args):
    """Composite with masks, with and without latency in turns."""
    print(f"{name}:")
    latencies = (0.0, args.latency / 1e3, 3 * args.latency / 1e3)
    rounds = [[masked(directory, latency, args) for latency in latencies] for _ in range(args.rounds)]
    near, far, farther = map(min, zip(*rounds, strict=True))
    print(
        f"a masked composite takes {far / near:.2f} times as long with {args.latency:g} ms, "
        f"{farther / near:.2f} times with {3 * args.latency:g} ms (best of {args.rounds} each)"
    )


def main():
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=72)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--latency", type=float, default=50.0, help="milliseconds before each answer")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="MB/s over all connections")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compress", default="jpeg", choices=["jpeg", "deflate"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        make_scenes(directory, scenes=args.scenes, size=args.size, compress=args.compress, distinct=6)
        near, far = [], []
        for _ in range(args.rounds):
            near.append(measure(directory, 0.0, args)[1])
            headers, speed = measure(directory, args.latency / 1e3, args)
            far.append(speed)
        requests, total = least(headers, args.size, args.window)
    print(f"least possible: {requests} requests, {total / 1e6:.1f} MB")
    print(f"throughput with latency: {max(far) / max(near):.0%} of that without (best of {args.rounds} each)")
    with tempfile.TemporaryDirectory() as directory:
        assets = ("TCI", "SCL")
        make_scenes(directory, scenes=args.scenes, size=args.size, compress=args.compress, distinct=6, assets=assets)
        for threads in (1, 2):
            name = f"a worker of {threads} thread{'s' * (threads > 1)}"
            with Client(n_workers=1, threads_per_worker=threads, dashboard_address=":0"):
                compare_masked(name, directory, args)
        with dask.config.set(scheduler="threads", num_workers=args.threads):
            compare_masked(f"{args.threads} threads", directory, args)


if __name__ == "__main__":
    main()
