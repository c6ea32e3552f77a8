"""Zonal statistics of one granule (three bands of 16 bits, some hundred zones), chunk by chunk from the file, beside exactextract
on the whole array: wall time and peak memory, each in a process of its own, and whether the figures are the same.

    python benchmarks/zonal.py                  # 10980 x 10980, a minute and 0.8 GB of disk
    python benchmarks/zonal.py --size 2048
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely

COMMON = """
import json, os, resource, sys, time, warnings
os.environ["GDAL_CACHEMAX"] = "64"
warnings.simplefilter("ignore")
import dask, geopandas as gpd, numpy as np, rioxarray
raster, zones, table, stats = sys.argv[1:4] + [json.loads(sys.argv[4])]
"""

OURS = """
import s2composite as s2c
start = time.perf_counter()
data = rioxarray.open_rasterio(raster, chunks={"y": 1024, "x": 1024}, lock=False)
with dask.config.set(num_workers=2):
    s2c.zonal_stats(data, zones, stats, name="id").to_parquet(table)
"""

THEIRS = """
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
start = time.perf_counter()
data = rioxarray.open_rasterio(raster)
frame = gpd.read_file(zones).to_crs(data.rio.crs)
west, south, east, north = data.rio.bounds()
spelled = {"median": "median", "p10": "quantile(q=0.1)"}
sources = [
    NumPyRasterSource(band, west, south, east, north, nodata=0, name=f"b{i}", srs_wkt=frame.crs.to_wkt())
    for i, band in enumerate(data.values)
]
exact_extract(sources, frame, [spelled.get(name, name) for name in stats], include_cols=["id"], output="pandas").to_parquet(table)
"""

REPORT = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak}))
"""


def make(folder, size, zones):
    """Write a tiled raster that is empty in a corner, and zones of 300 m to 6 km across in degrees."""
    rng = np.random.default_rng(0)
    raster = f"{folder}/granule.tif"
    profile = {
        "driver": "GTiff",
        "width": size,
        "height": size,
        "count": 3,
        "dtype": "uint16",
        "nodata": 0,
        "tiled": True,
    }
    profile |= {
        "blockxsize": 512,
        "blockysize": 512,
        "crs": "EPSG:32631",
        "transform": rasterio.Affine(10, 0, 300000, 0, -10, 4900020),
    }
    with rasterio.open(raster, "w", **profile) as file:
        for top in range(0, size, 512):
            rows = min(512, size - top)
            land = 800 + 600 * np.sin(np.arange(top, top + rows) / 400)[:, None] * np.cos(np.arange(size) / 300)
            pixels = (land + rng.normal(0, 60, (3, rows, size))).clip(1, 10000).astype("uint16")
            pixels[:, :, : max(0, size // 8 - top)] = 0
            file.write(pixels, window=rasterio.windows.Window(0, top, size, rows))
    centres = rng.uniform([300000, 4900020 - 10 * size], [300000 + 10 * size, 4900020], (zones, 2))
    shapes = shapely.buffer(shapely.points(centres), rng.uniform(150, 3000, zones) * min(1, size / 10980))
    path = f"{folder}/zones.gpkg"
    gpd.GeoDataFrame({"id": range(zones)}, geometry=shapes, crs=32631).to_crs(4326).to_file(path)
    return raster, path


def run(code, *args):
    out = subprocess.run(
        [sys.executable, "-c", COMMON + code + REPORT, *args], capture_output=True, text=True, check=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def largest_difference(ours, theirs, stats):
    """Return the largest relative difference of all figures."""
    table, other = pd.read_parquet(ours), pd.read_parquet(theirs).set_index("id")
    worst = 0.0
    for band, rows in table.groupby("band", sort=False):
        for name in stats:
            theirs = other[f"b{int(band) - 1}_{'quantile_10' if name == 'p10' else name}"].astype(float)
            mine = rows.set_index("zone")[name]
            worst = max(worst, float((abs(mine - theirs) / abs(theirs).clip(lower=1)).max()))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=10980)
    parser.add_argument("--zones", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zonal-") as folder:
        raster, zones = make(folder, options.size, options.zones)
        print(
            f"{options.zones} zones, {options.size} x {options.size} x 3 uint16, {Path(raster).stat().st_size / 1e6:.0f} MB; 2 threads"
        )
        for stats in (["min", "max", "mean", "stdev", "count"], ["mean", "median", "p10"]):
            print(", ".join(stats))
            tables = {}
            for name, code in (("zonal_stats, chunk by chunk", OURS), ("exactextract, whole array", THEIRS)):
                tables[name] = f"{folder}/{name[:5]}.parquet"
                facts = run(code, raster, zones, tables[name], json.dumps(stats))
                print(f"  {name:<28} {facts['seconds']:6.1f} s  {facts['peak'] / 1e9:5.2f} GB at most")
            print(f"  largest relative difference {largest_difference(*tables.values(), stats):.1e}")


if __name__ == "__main__":
    main()
