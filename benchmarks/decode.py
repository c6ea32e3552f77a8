"""How near reading and compositing are to decoding: `read_window`, and `composite(open_cube(...)).compute()`, beside the
codec alone on the same tiles.

The codec alone gets the bytes of each tile from memory and decodes them into one buffer again and again. Both run on
two threads in one process, in turns, and the best of each counts; rasterio reads windows of 1024 once.

    python benchmarks/decode.py                                # 216 scenes of 2048 x 2048, JPEG and DEFLATE
    python benchmarks/decode.py --scenes 54 --size 1024 --rounds 1
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import dask
import imagecodecs
import numpy as np
import rasterio
import simplejpeg

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.geotiff.header import read_header
from s2composite.reading.tiles import TileRequest, read_window

THREADS = 2


def windows(size, edge):
    """Return all windows of `edge` pixels."""
    starts = range(0, size, edge)
    return [(slice(y, min(y + edge, size)), slice(x, min(x + edge, size))) for y, x in product(starts, starts)]


def seconds(task, items):
    """Return the wall time of `task` over `items` on the threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        start = time.perf_counter()
        list(pool.map(task, items))
        return time.perf_counter() - start


def codec_alone(headers):
    """Return a task that decodes all tiles of one scene, whose bytes are in memory."""
    contents = {Path(h.href).stat().st_ino: Path(h.href).read_bytes() for h in headers}

    def decode(header):
        level, data = header.levels[0], memoryview(contents[Path(header.href).stat().st_ino])
        out = np.empty((*level.block, header.bands), header.dtype)
        for start, size in zip(level.offsets.tolist(), level.counts.tolist(), strict=True):
            tile = data[start : start + size]
            if header.coding.compression == "JPEG":
                simplejpeg.decode_jpeg(level.coding.tables[:-2] + bytes(tile[2:]), "RGB", buffer=out)
            else:
                imagecodecs.deflate_decode(tile, out=out.reshape(-1).view(np.uint8))
                if level.coding.predictor == 2:
                    imagecodecs.delta_decode(out, axis=-2, out=out)

    return decode


def ours(headers):
    """Return a task that reads a window of all scenes into memory that its thread uses again, as `compose_window` does."""
    memory = threading.local()

    def read(window):
        shape = (len(headers), *(s.stop - s.start for s in window), headers[0].bands)
        if not hasattr(memory, "flat") or memory.flat.size < np.prod(shape):
            memory.flat = np.ones(np.prod(shape), headers[0].dtype)
        pixels = np.moveaxis(memory.flat[: np.prod(shape)].reshape(shape), 3, 1)
        results = read_window([TileRequest(h, 0, window, (0, 1, 2), pixels[t]) for t, h in enumerate(headers)])
        assert not any(r.error for r in results)

    return read


def with_rasterio(headers):
    """Return a task that reads a window of all scenes through GDAL."""

    def read(window):
        y, x = window
        part = rasterio.windows.Window(x.start, y.start, x.stop - x.start, y.stop - y.start)
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            for header in headers:
                with rasterio.open(header.href) as dataset:
                    dataset.read(window=part)

    return read


def composite(directory, size):
    """Return the wall time from the files to the composite in memory."""
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        start = time.perf_counter()
        s2c.composite(s2c.open_cube(directory, chunks=size // THREADS)).compute()
        return time.perf_counter() - start


def measure(compress, args, directory):
    """Print one compression's figures."""
    make_scenes(directory, scenes=args.scenes, size=args.size, compress=compress, distinct=args.distinct)
    start = time.perf_counter()
    headers = tuple(read_header(str(path)) for path in sorted(Path(directory).glob("*.tif")))
    opening = time.perf_counter() - start
    alone, read = codec_alone(headers), ours(headers)
    gigabytes = len(headers) * args.size**2 * 3 / 1e9
    codec, tiles, whole = [], [], []
    composite(directory, args.size)  # compiles the kernel
    for _ in range(args.rounds):
        codec.append(seconds(alone, headers))
        tiles.append(seconds(read, windows(args.size, args.window)))
        whole.append(composite(directory, args.size))
    gdal = seconds(with_rasterio(headers), windows(args.size, 1024))
    print(
        f"{compress}: {len(headers)} scenes of {args.size}, {gigabytes:.2f} GB; headers {opening * 1e3:.0f} ms\n"
        f"  codec library alone  {min(codec):6.2f} s  {gigabytes / min(codec) * 1e3:6.0f} MB/s on {THREADS} threads\n"
        f"  read_window          {min(tiles):6.2f} s  {min(tiles) / min(codec):6.2f} x the codec alone\n"
        f"  composite()          {min(whole):6.2f} s  {min(whole) / min(codec):6.2f} x the codec alone\n"
        f"  rasterio             {gdal:6.2f} s  {gdal / min(tiles):6.2f} x read_window"
    )


def main():
    """Run both compressions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=216)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--distinct", type=int, default=8, help="scenes with pixels of their own; the others are links")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for compress in ("jpeg", "deflate"):
        with tempfile.TemporaryDirectory() as directory:
            measure(compress, args, directory)


if __name__ == "__main__":
    main()
