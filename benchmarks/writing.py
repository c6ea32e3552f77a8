"""Writing one granule: median (three bands of 8 bits), count and source as cloud-optimised GeoTIFF, beside GDAL's COG driver and
rioxarray on the finished array and odc-geo's save_cog_with_dask; the share that writing has of the time of a whole job; and a
mosaic on a cluster, process by process.

    python benchmarks/writing.py                               # 10980 x 10980, a few minutes
    python benchmarks/writing.py --only share --scenes /tmp/granule   # scenes as benchmarks/granule.py keeps them
    python benchmarks/writing.py --size 2048
    python benchmarks/writing.py --mosaic 40000 --only mosaic  # peak memory of every process, a few minutes and 10 GB of disk
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil

WINDOW = 1024

COMMON = """
import json, os, sys, time, warnings
import dask, dask.array as da, numpy as np, odc.geo.xr, rasterio, xarray as xr
from odc.geo.geobox import GeoBox
warnings.simplefilter("ignore")
folder, name, compress = sys.argv[1:4]
arrays = {n: np.load(f"{folder}/{n}.npy", mmap_mode="r") for n in ("composite", "count", "source")}
shape = arrays["count"].shape
geobox = GeoBox(shape, rasterio.Affine(10, 0, 300000, 0, -10, 4900020), 32631)
coords = dict(odc.geo.xr.xr_coords(geobox, dims=("y", "x")))
attrs = {"composite": {"nodata": 0, "overviews": "average"}, "count": {"overviews": "average"}, "source": {"nodata": -1, "overviews": "nearest"}}
def lazily(array):
    def window(block_info):
        where = block_info[None]["array-location"]
        return np.asarray(array[tuple(slice(*span) for span in where)])
    chunks = tuple((n,) if n < 16 else tuple(min(1024, n - i) for i in range(0, n, 1024)) for n in array.shape)
    return da.map_blocks(window, chunks=chunks, dtype=array.dtype, meta=np.empty((0,) * array.ndim, array.dtype))
def dataset(lazy):
    variables = {n: (("band", "y", "x")[-a.ndim:], lazily(a) if lazy else np.asarray(a), attrs[n]) for n, a in arrays.items()}
    return xr.Dataset(variables, {**coords, "band": ["red", "green", "blue"]})
"""

CONTENDERS = {
    "this library, window by window": """
from s2composite.writing.cog import write_raster
data = dataset(True)
start = time.perf_counter()
write_raster(data, f"{folder}/{name}.tif", layers="all", compress=compress, overwrite=True)
""",
    "the same at level 6, as the others": """
from s2composite.writing.cog import write_raster
data = dataset(True)
start = time.perf_counter()
write_raster(data, f"{folder}/{name}.tif", layers="all", compress=compress, level=6, overwrite=True)
""",
    "GDAL's COG driver, finished arrays": """
start = time.perf_counter()
for n, a in arrays.items():
    a = np.asarray(a)
    b = a if a.ndim == 3 else a[None]
    options = dict(driver="COG", count=len(b), height=shape[0], width=shape[1], dtype=b.dtype, crs="EPSG:32631", transform=geobox.transform,
                   compress=compress.upper(), predictor="YES" if n == "composite" else "NO", blocksize=512, num_threads="ALL_CPUS",
                   overview_resampling="NEAREST" if n == "source" else "AVERAGE", nodata=attrs[n].get("nodata"))
    with rasterio.open(f"{folder}/{name}_{n}.tif", "w", **options) as out:
        out.write(b)
""",
    "rioxarray, finished arrays": """
import rioxarray
data = dataset(False)
start = time.perf_counter()
for n in arrays:
    layer = data[n].rio.write_crs("EPSG:32631").rio.write_nodata(attrs[n].get("nodata"))
    layer.rio.to_raster(f"{folder}/{name}_{n}.tif", driver="COG", compress=compress.upper(), blocksize=512, num_threads="ALL_CPUS")
""",
    "odc-geo, save_cog_with_dask": """
from odc.geo.cog import save_cog_with_dask
data = dataset(True)
start = time.perf_counter()
work = []
for n in arrays:
    layer = data[n].transpose("y", "x", "band") if data[n].ndim == 3 else data[n]
    work.append(save_cog_with_dask(layer, f"{folder}/{name}_{n}.tif", compression=compress, blocksize=512,
                                   overview_resampling="nearest" if n == "source" else "average"))
dask.compute(*work)
""",
}

END = """
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


class PeakMemory:
    """Highest resident memory of each process of a tree while the block runs, bytes by process id; shared maps count too."""

    def __init__(self, root=None):
        self.root, self.peaks, self._done = psutil.Process(root), {}, threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(0.1):
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [self.root, *self.root.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        info = process.memory_info()
                        own = info.rss - info.shared
                        self.peaks[process.pid] = max(self.peaks.get(process.pid, 0), own)

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def texture(size, seed):
    """Return a picture with the look of land: relief on several scales, fields, and the noise of a sensor; uint8."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(size, dtype=np.float32)[s] for s in ((slice(None), None), (None, slice(None))))
    relief = sum(np.sin(x / s + seed) * np.cos(y / (s * 1.3)) * a for s, a in ((900, 25), (170, 18), (41, 10)))
    fields = (
        rng.normal(0, 14, (size // 24 + 1, size // 24 + 1)).astype(np.float32).repeat(24, 0).repeat(24, 1)[:size, :size]
    )
    return np.clip(95 + relief + fields + rng.normal(0, 2.5, (size, size)).astype(np.float32), 1, 254).astype(np.uint8)


def make_granule(folder, size):
    """Save the layers of a composite of 216 scenes, a swath edge in one corner."""
    base = texture(size, 1)
    bands = np.stack([base, np.clip(base.astype(np.int16) + 9, 1, 254), np.clip(base // 2 + 40, 1, 254)]).astype(
        np.uint8
    )
    edge = np.add.outer(np.arange(size), np.arange(size)) < size // 2
    bands[:, edge] = 0
    count = (texture(size, 2) // 3 + 30).astype(np.uint16)
    source = (np.random.default_rng(3).integers(0, 216, (size, size))).astype(np.int16)
    count[edge], source[edge] = 0, -1
    for name, array in (("composite", bands), ("count", count), ("source", source)):
        np.save(f"{folder}/{name}.npy", array)


def contend(folder, name, code, compress):
    command = [sys.executable, "-c", COMMON + code + END, str(folder), "out", compress]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process, PeakMemory(process.pid) as peak:
        out, errors = process.communicate()
    files = list(Path(folder).glob("out*.tif"))
    size = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink()
    if process.returncode:
        print(f"{name:36} failed: {errors.strip().splitlines()[-1]}")
        return
    seconds = json.loads(out.strip().splitlines()[-1])["seconds"]
    print(f"{name:36} {seconds:8.1f} s {max(peak.peaks.values()) / 2**20:8.0f} MiB {size / 1e6:10.1f} MB")


SHARE = """
import sys, time
import s2composite as s2c

def watch():
    # On a worker: note the seconds that each window takes to be encoded, which is a part of its task.
    from s2composite.writing import tiles
    whole, tiles.spent = tiles.encode_window, []
    def encode_window(*args):
        start = time.perf_counter()
        try:
            return whole(*args)
        finally:
            tiles.spent.append(time.perf_counter() - start)
    tiles.encode_window = encode_window

def watched():
    from s2composite.writing import tiles
    return sum(tiles.spent)

def seconds(dask_scheduler):
    return {name: dict(prefix.all_durations) for name, prefix in dask_scheduler.task_prefixes.items()}

if __name__ == "__main__":
    folder, scenes, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with s2c.connect("local", workers=workers, threads=1) as client:
        client.run(watch)
        cube = s2c.open_cube(scenes)
        start = time.perf_counter()
        s2c.composite(cube).to_raster(folder + "/job.tif", layers="all")
        wall = time.perf_counter() - start
        durations = client.run_on_scheduler(seconds)
        encoding = sum(client.run(watched).values())
    spent = {name: sum(parts.values()) for name, parts in durations.items()}
    assembling = sum(s for name, s in spent.items() if name.startswith("assemble"))
    reading = durations["write-window"]["compute"] + durations.get("write-overview", {}).get("compute", 0) - encoding
    moved = sum(parts.get("transfer", 0) for parts in durations.values())
    # Whatever is neither reading nor reducing is writing: encoding, what goes on to the overviews, and fetching it.
    writing = sum(spent.values()) - assembling - reading
    # While windows are made all workers are busy; a file is assembled by one.
    share = ((wall - assembling) * writing / (writing + reading) + assembling) / wall
    print(f"whole job, {cube.sizes['time']} scenes of {cube.sizes['y']} x {cube.sizes['x']}, {workers} workers: {wall:.0f} s")
    print(f"  task seconds: reading and reducing {reading:.1f}, encoding {encoding:.1f}, other {writing - encoding:.1f} (of which {moved:.1f} fetching from other workers); assembling and verifying {assembling:.1f} s")
    print(f"  writing is {100 * share:.1f} % of the wall time")
"""


def share(folder, scenes, workers):
    """Print the share of writing in the time of a whole job."""
    script = Path(folder) / "share.py"
    script.write_text(SHARE)
    subprocess.run([sys.executable, script, folder, scenes, str(workers)], check=True)


MOSAIC = """
import sys, time
import dask.array as da, numpy as np, rasterio, xarray as xr
import odc.geo.xr
from odc.geo.geobox import GeoBox
from distributed import Client, LocalCluster
from s2composite.writing.cog import write_raster

def window(block_id):
    y, x = np.mgrid[:2048, :2048].astype("float32")
    rng = np.random.default_rng(block_id)
    base = 100 + 60 * np.sin((x + 2048 * block_id[2]) / 300) * np.cos((y + 2048 * block_id[1]) / 200) + rng.normal(0, 2, x.shape)
    return np.stack([base, base + 9, base / 2 + 40]).clip(1, 254).astype("uint8")

if __name__ == "__main__":
    folder, size, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    n = -(-size // 2048)
    data = da.map_blocks(window, chunks=((3,), (2048,) * n, (2048,) * n), dtype="uint8", meta=np.empty((0, 0, 0), "uint8"))[:, :size, :size]
    geobox = GeoBox((size, size), rasterio.Affine(10, 0, 300000, 0, -10, 4900020), 32631)
    layer = xr.DataArray(data, dims=("band", "y", "x"), coords=dict(odc.geo.xr.xr_coords(geobox, dims=("y", "x"))), attrs={"nodata": 0})
    with LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster, Client(cluster):
        start = time.perf_counter()
        write_raster(xr.Dataset({"composite": layer}), folder + "/mosaic.tif", overwrite=True)
        print(time.perf_counter() - start)
"""


def mosaic(folder, size, workers):
    """Write a large composite on a cluster of processes of 2 GiB each."""
    script = Path(folder) / "mosaic.py"
    script.write_text(MOSAIC)
    with (
        subprocess.Popen(
            [sys.executable, script, folder, str(size), str(workers)], stdout=subprocess.PIPE, text=True
        ) as process,
        PeakMemory(process.pid) as peak,
    ):
        out, _ = process.communicate()
    if process.returncode:
        sys.exit("the mosaic failed")
    file = Path(folder) / "mosaic.tif"
    peaks = sorted((b / 2**20 for b in peak.peaks.values()), reverse=True)
    print(f"\n{size} x {size} x 3 on {workers} processes: {float(out):.0f} s, {file.stat().st_size / 1e9:.2f} GB")
    print("peak memory of each process, MiB:", ", ".join(f"{p:.0f}" for p in peaks))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=10980)
    parser.add_argument("--compress", default="deflate")
    parser.add_argument("--mosaic", type=int, default=40000, help="side of the mosaic, in pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=["granule", "share", "mosaic"])
    parser.add_argument("--scenes", help="a directory of scenes for the whole job, as benchmarks/granule.py keeps them")
    parser.add_argument("--directory", help="where to write; default: a temporary directory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        if args.only in (None, "granule"):
            make_granule(folder, args.size)
            print(f"{args.size} x {args.size}, median + count + source, {args.compress}, {os.cpu_count()} cores")
            print(f"{'':36} {'time':>10} {'memory':>12} {'size':>13}")
            for name, code in CONTENDERS.items():
                contend(folder, name, code, args.compress)
        if args.scenes and args.only in (None, "share"):
            share(folder, args.scenes, args.workers)
        if args.only in (None, "mosaic"):
            mosaic(folder, args.mosaic, args.workers)


if __name__ == "__main__":
    main()
