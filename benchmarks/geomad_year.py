"""GeoMAD of a granule: geometric median, its three deviations and the count of a year of Sentinel-2 L2A, masked by SCL.

    python benchmarks/geomad_year.py --directory /tmp/geomad       # 10980 x 10980, 146 dates, 6 bands: 4 GB of disk for the scenes
    python benchmarks/geomad_year.py --directory /tmp/geomad --bands 10
    python benchmarks/geomad_year.py --size 2048 --dates 24
    python benchmarks/geomad_year.py --directory /tmp/geomad --workers 0 --part 256    # only the part

Then a part of it as others make it, odc-stac and geomad with the same masks, odc-algo where it is installed, and by this
library, in turns. The reflectances are a few different files under many names, which are read and decoded each time. Of the classifications there are more:
fields of cloud as large as real ones, a fifth of the dates overcast all over.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import dask
import numpy as np
import odc.stac
import pystac
import rasterio
import scipy.ndimage as ndi
import xarray as xr
from granule import PeakMemory
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.shutil import copy as raster_copy
from reducers import geomad_way, in_turns

try:
    from odc.algo import geomedian_with_mads, mask_cleanup
except ImportError as error:  # not installed, or without what it imports: numexpr, toolz
    WITHOUT_ODC_ALGO = f"odc-algo is left out: {error}"
else:
    WITHOUT_ODC_ALGO = ""

import s2composite as s2c
from s2composite.demo import make_items, make_scenes

AT_10_M = ("B02", "B03", "B04", "B08")
AT_20_M = {"B11": "B04", "B12": "B08", "B05": "B04", "B06": "B08", "B07": "B08", "B8A": "B08"}
"""Bands at 20 m, and which of the others they are averaged from."""

CLEANUP = (("opening", 2), ("dilation", 5))
CLOUDY = (3, 8, 9, 10)
RULES = [s2c.Nodata(), s2c.SCL(cleanup=CLEANUP)]
SKIES = 24
"""Classifications that differ."""


def write_cog(path, pixels, crs, transform):
    """Write pixels ``(y, x)`` as a COG, 0 is nodata."""
    height, width = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": pixels.dtype.name, "nodata": 0}
    with MemoryFile() as memory:
        with memory.open(**profile, crs=crs, transform=transform) as dataset:
            dataset.write(pixels, 1)
        raster_copy(memory.name, path, driver="COG", blocksize=512, compress="DEFLATE", predictor="YES")


def sky_of(classes, number):
    """Return classes under another sky: fields of cloud of some 20 km, and a fifth of all dates overcast."""
    rng = np.random.default_rng(number)
    height, width = classes.shape
    field = rng.normal(size=(height // 32 + 2, width // 32 + 2))
    field = ndi.gaussian_filter(field, 30) / 0.0094 + ndi.gaussian_filter(field, 4) / 0.28
    field = ndi.zoom(field, 32, order=1)[:height, :width]
    cover = 1.0 if number % 5 == 0 else (number * 0.618) % 1
    cloudy = field <= np.quantile(field, cover)
    return np.where((classes > 0) & cloudy, 9, np.where(np.isin(classes, CLOUDY), 4, classes)).astype(np.uint8)


def make_archive(directory, dates, size):
    """Write the archive: reflectances that make_scenes renders, further bands, skies."""
    make_scenes(str(directory), scenes=dates, size=size, assets=(*AT_10_M, "SCL"), distinct=min(3, dates))
    made = {}
    for path in sorted(directory.glob("*_B04.tif")):
        stem, inode = path.name.removesuffix("B04.tif"), path.stat().st_ino
        for band, origin in AT_20_M.items():
            target = directory / f"{stem}{band}.tif"
            if (inode, band) in made:
                target.hardlink_to(made[inode, band])
                continue
            with rasterio.open(directory / f"{stem}{origin}.tif") as dataset:
                half = tuple(-(-n // 2) for n in dataset.shape)
                pixels = dataset.read(1, out_shape=half, resampling=Resampling.average)
                write_cog(target, pixels, dataset.crs, dataset.transform @ dataset.transform.scale(2))
            made[inode, band] = target
    skies = {}
    for number, path in enumerate(sorted(directory.glob("*_SCL.tif"))):
        with rasterio.open(path) as dataset:
            classes, crs, transform = dataset.read(1), dataset.crs, dataset.transform
        path.unlink()
        if number % SKIES in skies:
            path.hardlink_to(skies[number % SKIES])
        else:
            write_cog(path, sky_of(classes, number), crs, transform)
            skies[number % SKIES] = path


def whole(directory, bands, out, workers):
    """Make the whole granule, and say what it took."""
    with s2c.connect("local", workers=workers, threads=1, memory="2GiB", dashboard=":0"), PeakMemory() as memory:
        start = time.perf_counter()
        comp = s2c.composite(s2c.open_cube(directory, bands=bands, resolution=10), "geomedian", valid=RULES)
        comp.to_stac(str(out / "geomad.json"), layers=["composite", "smad", "emad", "bcmad", "count"])
        took = time.perf_counter() - start
    with rasterio.open(next(out.glob("geomad_count.tif"))) as dataset:
        count = dataset.read(1, out_shape=(549, 549))
    sizes = {dim: comp.dataset.sizes[dim] for dim in ("y", "x")}
    print(
        f"{sizes} with {len(bands)} bands, {workers} workers: {took / 60:.2f} minutes, {memory.bytes / 2**30:.2f} GiB"
    )
    print(f"  observations of a pixel: {count.min()} to {count.max()}, {count.mean():.1f} on average")


def by_odc_stac(items, bands, geobox):
    """Make a part as users of odc-stac do: load it, clean its masks, geomad."""
    chunks = {"x": 512, "y": 512}
    with dask.config.set(scheduler="threads", num_workers=2):
        data = odc.stac.load(items, bands=bands, geobox=geobox, chunks=chunks, resampling="nearest").compute()
        coarse = odc.stac.load(items, bands=["SCL"], geobox=geobox.zoom_out(2), chunks=chunks).compute()
    discs = {radius: np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1]) <= radius for _, radius in CLEANUP}
    usable = []
    for classes in coarse["SCL"].values:
        bad = ndi.binary_opening(np.isin(classes, CLOUDY), discs[2])
        bad = ndi.binary_dilation(bad, discs[5]) | (classes == 0)
        usable.append(np.kron(~bad, np.ones((2, 2), bool)))
    cube = np.stack([data[band].values for band in bands], axis=-1).astype(np.float32)
    cube[(cube == 0).any(-1) | ~np.stack(usable)] = np.nan
    return geomad_way(np.ascontiguousarray(cube.transpose(1, 2, 3, 0)), 2, 1e-4, True)()


def by_odc_algo(items, bands, geobox):
    """Make a part as users of odc-stats do, but for the database: masks of odc-algo, cleaned at their own resolution."""
    chunks = {"x": 512, "y": 512}
    with dask.config.set(scheduler="threads", num_workers=2):
        data = odc.stac.load(items, bands=bands, geobox=geobox, chunks=chunks, resampling="nearest")
        coarse = odc.stac.load(items, bands=["SCL"], geobox=geobox.zoom_out(2), chunks=chunks)["SCL"]
        bad = mask_cleanup(coarse.isin(CLOUDY), CLEANUP) | (coarse == 0)
        where = bad.data.repeat(2, axis=1).repeat(2, axis=2).rechunk(data[bands[0]].chunks)
        seen = xr.concat([data[band] != 0 for band in bands], "band").all("band")
        usable = data.astype("float32").where(seen & ~data[bands[0]].copy(data=where))
        return geomedian_with_mads(usable, reshape_strategy="yxbt", work_chunks=(128, 128)).compute()


def part_of(directory, bands, side, rounds):
    """Make a part in turns with odc-stac and geomad."""
    with tempfile.TemporaryDirectory() as home:
        items = [pystac.Item.from_file(path) for path in make_items(str(directory), home)]
        cube = s2c.open_cube(directory, bands=bands, resolution=10)
        y, x = (slice(n // 2 // 512 * 512, n // 2 // 512 * 512 + side) for n in cube.shape[2:])
        geobox: GeoBox = cube.odc.geobox[y, x]
        ways = {
            "s2composite": lambda: s2c.composite(cube.isel(y=y, x=x), "geomedian", valid=RULES).compute(),
            "odc-stac and geomad": lambda: by_odc_stac(items, bands, geobox),
        }
        if WITHOUT_ODC_ALGO:
            print(WITHOUT_ODC_ALGO)
        else:
            ways["odc-stac and odc-algo"] = lambda: by_odc_algo(items, bands, geobox)
        best = in_turns(ways, rounds)
    print(f"a part of {side} x {side}, in turns, best of {rounds}, without a cluster:")
    for name, seconds in best.items():
        print(f"  {name:22} {seconds:7.1f} s   {seconds / best['s2composite']:5.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dates", type=int, default=146)
    parser.add_argument("--size", type=int, default=10980)
    parser.add_argument("--bands", type=int, choices=(6, 10), default=6)
    parser.add_argument("--workers", type=int, default=2, help="for the whole granule; 0: only the part")
    parser.add_argument("--part", type=int, default=512, help="side of the part that others make too; 0: none")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="keep the scenes here, and use those that are there")
    args = parser.parse_args()
    bands = [*AT_10_M, *list(AT_20_M)[: args.bands - 4]]
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.directory or Path(scratch) / "scenes"
        if not directory.exists():
            start = time.perf_counter()
            make_archive(directory, args.dates, args.size)
            print(f"made {args.dates} dates of {args.size} x {args.size} in {time.perf_counter() - start:.0f} s")
        if args.workers:
            whole(directory, bands, Path(scratch), args.workers)
        if args.part:
            part_of(directory, bands, args.part, args.rounds)


if __name__ == "__main__":
    main()
