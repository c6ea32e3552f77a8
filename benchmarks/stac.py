"""The same STAC items, grid and reducer through s2composite, odc-stac + xarray and stackstac + xarray.

    python benchmarks/stac.py [--scenes 24] [--size 1024]

Each in a process of its own: seconds, peak memory, what of it came on top of the interpreter and the imported libraries,
tasks, bytes read. Aligned: the scenes' own grid; warped: another CRS, nearest.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def prepare(folder, scenes, size):
    import numpy as np

    from support.rasters import write_tif
    from support.stac_items import item_of

    rng = np.random.default_rng(0)
    land = rng.integers(200, 4000, (size // 8, size // 8)).repeat(8, 0).repeat(8, 1)
    items = []
    for i in range(scenes):
        paths = {}
        for key in ("red", "green", "blue"):
            noisy = (land + rng.integers(0, 200, land.shape)).astype(np.uint16)
            noisy[: rng.integers(0, size // 2)] = 0
            paths[key] = write_tif(folder / f"{key}{i}.tif", noisy, nodata=0, block=512, predictor=2)
        item = item_of(f"S2A_31TCJ_{i:03d}", f"2023-{1 + i // 28:02d}-{1 + i % 28:02d}T10:46:29Z", paths)
        item["properties"]["proj:code"] = "EPSG:32631"
        item["stac_extensions"] = ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"]
        items.append(item)
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))


def one(folder, who, case, reducer):
    """Run one of them and print what it took."""
    import dask
    import numpy as np
    import xarray as xr
    from odc.geo.geobox import GeoBox

    import s2composite as s2c

    dask.config.set(scheduler="threads", num_workers=2)
    path, bands = folder / "items.json", ["red", "green", "blue"]
    own = s2c.open_cube(path, bands=["red"]).odc.geobox
    grid: GeoBox = own if case == "aligned" else own.to_crs("EPSG:3035", resolution=10)
    s2c.composite(s2c.open_cube(path, bands=bands, geobox=grid[:64, :64]), reducer).compute()  # compiles the kernel
    if who != "s2composite":
        __import__({"odc": "odc.stac", "stackstac": "stackstac"}[who.partition("+")[0]])
    base, read = resident("VmRSS"), bytes_read()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    start = time.perf_counter()
    if who == "s2composite":
        cube = s2c.open_cube(path, bands=bands, geobox=grid)
        lazy = s2c.composite(cube, reducer).dataset["composite"]
    else:
        loader = who.partition("+")[0]
        cube = s2c.open_cube(path, bands=bands, geobox=grid, loader=loader, chunks=512)
        if reducer == "median":
            data = cube.chunk(time=-1)
            lazy = data.where(data != 0).median("time") if loader == "odc" else data.median("time")
        else:
            import geomad

            data = cube.where(cube != 0).chunk(time=-1, band=-1).transpose("y", "x", "band", "time").astype("float32")
            lazy = xr.apply_ufunc(
                lambda block: geomad.nangeomedian_pcm(np.ascontiguousarray(block), num_threads=1), data,
                input_core_dims=[["band", "time"]], output_core_dims=[["band"]], dask="parallelized",
                output_dtypes=["float32"],
            )  # fmt: skip
    tasks = len(dask.optimize(lazy)[0].__dask_graph__())
    lazy.compute()
    took = time.perf_counter() - start
    peak = resident("VmHWM")
    told = {"seconds": round(took, 2), "peak MiB": round(peak), "above imports MiB": round(peak - base), "tasks": tasks}
    sys.stdout.write(json.dumps(told | {"read MB": round((bytes_read() - read) / 1e6)}) + "\n")


def resident(which):
    """MiB of memory that this process has (``VmRSS``), or had at most since its peak was reset (``VmHWM``)."""
    return int(re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def bytes_read():
    """Bytes that this process has read from files."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--one", nargs=4)
    args = parser.parse_args()
    if args.one:
        one(Path(args.one[0]), *args.one[1:])
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), args.scenes, args.size)
        for case in ("aligned", "warped"):
            for reducer in ("median", "geomedian"):
                for who in ("s2composite", "odc+xarray", "stackstac+xarray"):
                    command = [sys.executable, __file__, "--one", name, who, case, reducer]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    print(
                        f"{case:8} {reducer:10} {who:17}", done.stdout.strip() or done.stderr.strip()[-200:], flush=True
                    )


if __name__ == "__main__":
    main()
