"""A year of scenes from files to composite: this library, its kernel behind rasterio reads, the original window worker, and
odc-stac with a median over time, one after the other in one run, each in processes of its own.

    python benchmarks/end_to_end.py                        # 216 scenes of 2048 x 2048, both compressions
    python benchmarks/end_to_end.py --scenes 24 --size 512 --compress deflate
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

HERE = Path(__file__).parent

OURS = """
import gc, json, sys, time, dask, s2composite as s2c
from s2composite.cube.windows import compose_window
cube = s2c.open_cube(sys.argv[1], chunks=1024, engine=sys.argv[2])
s2c.composite(cube.isel(x=slice(0, 64), y=slice(0, 64), time=slice(0, 2))).compute()  # compile before the clock starts
tasks = []
gc.collect()  # what the imports left: 0.1 s, which would fall into one run and not into another
from dask.callbacks import Callback
with Callback(posttask=lambda *a: tasks.append(a[0])), dask.config.set(scheduler="threads", num_workers=2):
    start = time.perf_counter()
    comp = s2c.composite(s2c.open_cube(sys.argv[1], chunks=1024, engine=sys.argv[2])).compute()
    print(json.dumps({"seconds": time.perf_counter() - start, "tasks": len(tasks)}))
"""

ODC = """
import json, sys, time, dask, warnings, pystac, odc.stac, numpy as np, rasterio
from pathlib import Path
from odc.geo.geobox import GeoBox
warnings.simplefilter("ignore")
items = []
for i, path in enumerate(sorted(Path(sys.argv[1]).glob("*.tif"))):
    with rasterio.open(path) as src:
        grid = GeoBox((src.height, src.width), src.transform, src.crs.to_epsg())
    when = f"{path.name[7:11]}-{path.name[11:13]}-{path.name[13:15]}T{path.name[16:18]}:{path.name[18:20]}:{path.name[20:22]}Z"
    footprint = grid.geographic_extent
    items.append(pystac.Item.from_dict({
        "type": "Feature", "stac_version": "1.0.0", "id": path.stem, "collection": "tci", "links": [],
        "stac_extensions": ["https://stac-extensions.github.io/projection/v1.1.0/schema.json"],
        "geometry": footprint.json, "bbox": list(footprint.boundingbox.bbox),
        "properties": {"datetime": when, "proj:epsg": grid.crs.epsg, "proj:shape": list(grid.shape), "proj:transform": list(grid.transform)[:6]},
        "assets": {"red": {"href": str(path), "type": "image/tiff; application=geotiff", "roles": ["data"]}},
    }))
cfg = {"tci": {"assets": {"*": {"data_type": "uint8", "nodata": 0}}}}
tasks = []
from dask.callbacks import Callback
with Callback(posttask=lambda *a: tasks.append(a[0])), dask.config.set(scheduler="threads", num_workers=2):
    start = time.perf_counter()
    cube = odc.stac.load(items, bands=["red"], chunks={"x": 1024, "y": 1024, "time": -1}, stac_cfg=cfg, groupby="id")["red"]
    cube.where((cube > 0) & (cube < 255)).median("time").compute()
    print(json.dumps({"seconds": time.perf_counter() - start, "tasks": len(tasks)}))
"""


def watched(commands):
    """Run commands side by side; return what each printed and the highest memory of all together, in bytes."""
    processes = [subprocess.Popen([sys.executable, *c], stdout=subprocess.PIPE, text=True, cwd=HERE) for c in commands]
    peak, done = [0], threading.Event()

    def watch():
        while not done.wait(0.05):
            total = 0
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += psutil.Process(process.pid).memory_info().rss
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed = [process.communicate()[0] for process in processes]
    done.set()
    watcher.join()
    if any(process.returncode for process in processes):
        raise SystemExit("a contestant failed")
    return [out.strip().splitlines()[-1] for out in printed], peak[0]


def ours(directory, engine):
    (out,), peak = watched([["-c", OURS, str(directory), engine]])
    result = json.loads(out)
    return result["seconds"], peak, result["tasks"]


def original(directory, size):
    """Two window workers at once, each with half of the windows."""
    windows = [
        (x, y, min(1024, size - x), min(1024, size - y)) for x in range(0, size, 1024) for y in range(0, size, 1024)
    ]
    halves = [h for h in (windows[::2], windows[1::2]) if h]
    commands = [["original.py", str(directory), *(str(v) for w in half for v in w)] for half in halves]
    out, peak = watched(commands)
    return max(map(float, out)), peak, len(windows)


def odc(directory):
    (out,), peak = watched([["-c", ODC, str(directory)]])
    result = json.loads(out)
    return result["seconds"], peak, result["tasks"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=216)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--compress", choices=["jpeg", "deflate", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=2, help="runs of the fast contestants; the best counts")
    parser.add_argument("--directory", type=Path, help="keep the scenes here, and use those that are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for compress in ["jpeg", "deflate"] if args.compress == "both" else [args.compress]:
            directory = (args.directory or Path(scratch)) / f"{compress}_{args.scenes}_{args.size}"
            run(directory, compress, args)


def run(directory, compress, args):
    from s2composite.demo import make_scenes

    if not directory.exists():
        start = time.perf_counter()
        make_scenes(str(directory), scenes=args.scenes, size=args.size, compress=compress)
        print(
            f"made {args.scenes} {compress} scenes of {args.size} x {args.size} in {time.perf_counter() - start:.0f} s"
        )
    rows = {
        "s2composite, tiles": min(ours(directory, "tiles") for _ in range(args.rounds)),
        "s2composite, engine='gdal'": min(ours(directory, "gdal") for _ in range(args.rounds)),
        "original worker, two at once": original(directory, args.size),
        "odc-stac + nanmedian, 1 of 3 bands": odc(directory),
    }
    base = rows["s2composite, tiles"][0]
    print(f"\n{args.scenes} {compress} scenes of {args.size} x {args.size}, 2 cores")
    print(f"{'':36} {'seconds':>8} {'ratio':>7} {'peak MiB':>9} {'tasks':>6}")
    for name, (seconds, peak, tasks) in rows.items():
        print(f"{name:36} {seconds:8.2f} {seconds / base:6.1f}x {peak / 2**20:9.0f} {tasks:6d}")


if __name__ == "__main__":
    main()
