"""Sentinel-2 products in Zarr, and the same pixels as COGs: composites, decoding alone, and what users do today.

    python benchmarks/zarr_products.py                       # 24 dates of 5490 x 5490, three bands: 8 GB of disk
    python benchmarks/zarr_products.py --dates 8 --size 2745 --chunk 2745

Four archives of the same pixels: ESA's layout (Zarr v2, a Blosc chunk of 5490 x 5490), the optimised one (v3, shards with
inner chunks of 244 x 244 or a divisor near it), COGs with DEFLATE and COGs with ZSTD. In turns: decoding all Blosc chunks
and nothing else, the default composite of each archive (per pixel the observation of median luminance), a median of each
band, and xarray.open_zarr with a median over time. Then a window over HTTP, and the bytes that the server sent beside those
of the blocks that the window needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import imagecodecs
import numcodecs
import numpy as np
import rasterio
import xarray as xr
import zarr
from rasterio.io import MemoryFile
from rasterio.shutil import copy as raster_copy
from reducers import in_turns

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.reading.headers import header_of
from s2composite.reading.tiles import TileRequest, cost_of

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.http_faults import stats, throttled

BANDS = ("B04", "B03", "B02")
GROUP = "measurements/reflectance/r10m"


def write_store(path, scene, chunk, version):
    """Write the bands of a date as a product in Zarr."""
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    for band in BANDS:
        with rasterio.open(scene[band]) as dataset:
            pixels, transform = dataset.read(1), [*dataset.transform][:6]
        facts = {"proj:epsg": 32631, "proj:shape": list(pixels.shape), "proj:transform": transform}
        facts |= {"scale_factor": 1e-4, "add_offset": -0.1}
        side = min(chunk, *pixels.shape)
        if version == 2:
            codec = numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE)
            layout = {"chunks": (side, side), "compressors": codec}
        else:
            inner = next(n for n in range(244, side) if side % n == 0)
            codec = zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
            layout = {"shards": (side, side), "chunks": (inner, inner), "compressors": codec}
        facts |= {"_ARRAY_DIMENSIONS": ["y", "x"]} if version == 2 else {}
        names = {"dimension_names": ["y", "x"]} if version == 3 else {}
        array = group.create_array(
            f"{GROUP}/{band.lower()}",
            shape=pixels.shape, dtype=pixels.dtype, fill_value=0, attributes=facts, **layout, **names,
        )  # fmt: skip
        array[:] = pixels
    zarr.consolidate_metadata(group.store)


def write_zstd(path, source):
    """Write a COG again with ZSTD."""
    with rasterio.open(source) as dataset, MemoryFile() as memory:
        with memory.open(**{**dataset.profile, "driver": "GTiff", "tiled": False}) as copy:
            copy.write(dataset.read())
        raster_copy(memory.name, str(path), driver="COG", compress="ZSTD", predictor="YES", blocksize=512)


def make_archives(home, dates, size, chunk):
    """Write the four archives; return their directories by name."""
    places = {name: home / name for name in ("zarr v2", "zarr v3", "cog deflate", "cog zstd")}
    files = make_scenes(str(places["cog deflate"]), scenes=dates, size=size, assets=BANDS, distinct=min(4, dates))
    scenes = {}
    for file in files:
        stem, _, band = Path(file).stem.rpartition("_")
        scenes.setdefault(stem, {})[band] = file
    for name in ("zarr v2", "zarr v3", "cog zstd"):
        places[name].mkdir(parents=True)
    for stem, scene in scenes.items():
        _, granule, time = stem.split("_") if stem.count("_") == 2 else ("", *stem.split("_"))
        product = f"S2A_MSIL2A_{time}_N0511_R051_{granule}_{time}.zarr"
        write_store(places["zarr v2"] / product, scene, chunk, 2)
        write_store(places["zarr v3"] / product, scene, chunk, 3)
        for band, file in scene.items():
            write_zstd(places["cog zstd"] / f"{stem}_{band}.tif", file)
    return places


def decode_alone(place, threads):
    """Read and decode every Blosc chunk of an archive in ESA's layout, and do nothing with it."""

    def decode(path):
        data = path.read_bytes()
        return len(imagecodecs.blosc_decode(data, numthreads=1, out=int.from_bytes(data[4:8], "little")))

    chunks = [path for path in place.rglob(f"{GROUP.rpartition('/')[2]}/*/*") if not path.name.startswith(".")]
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(decode, chunks))


def by_xarray(place):
    """Open each product as users do today, and take the median over time."""
    products = [xr.open_zarr(str(path), group=GROUP, consolidated=False) for path in sorted(place.glob("*.zarr"))]
    cube = xr.concat([one[[band.lower() for band in BANDS]] for one in products], "time").chunk(time=-1)
    return cube.median("time").compute()


def over_http(place, side):
    """Return the bytes that a server sends for a window of one band and date, and those of the blocks it needs."""
    with throttled(str(place)) as url:
        store = next(place.glob("*.zarr")).name
        header = header_of(f"{url}/{store}/{GROUP}/b04")
        half = header.geobox.shape.y // 2
        window = slice(half, half + side), slice(half // 2, half // 2 + side)
        out = np.empty((1, side, side), np.uint16)
        request = TileRequest(header, 0, window, (0,), out)
        cube = s2c.open_cube(f"{url}/{store}", bands=["B04"])
        comp = s2c.composite(cube.isel(y=window[0], x=window[1]), "median")
        before = stats(url)
        comp.compute()
        after = stats(url)
    return after["bytes"] - before["bytes"], cost_of(request)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dates", type=int, default=24)
    parser.add_argument("--size", type=int, default=5490)
    parser.add_argument("--chunk", type=int, default=5490)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without-xarray", action="store_true", help="it takes long, and all of the memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, dask.config.set(scheduler="threads", num_workers=args.threads):
        places = make_archives(Path(home), args.dates, args.size, args.chunk)
        cubes = {name: s2c.open_cube(str(place), bands=BANDS, harmonise=False) for name, place in places.items()}
        first, *others = (s2c.composite(cube).compute() for cube in cubes.values())
        assert all(np.array_equal(first["composite"], other["composite"]) for other in others)
        ways = {"Blosc chunks decoded": lambda: decode_alone(places["zarr v2"], args.threads)}
        ways |= {f"composite, {name}": lambda cube=cube: s2c.composite(cube).compute() for name, cube in cubes.items()}
        ways["median, zarr v2"] = lambda: s2c.composite(cubes["zarr v2"], "median").compute()
        if not args.without_xarray:
            ways["open_zarr, median('time')"] = lambda: by_xarray(places["zarr v2"])
        best = in_turns(ways, args.rounds)
        pixels = args.dates * args.size**2 * len(BANDS) / 1e6
        print(f"{args.dates} dates of {args.size} x {args.size}, {len(BANDS)} bands, {args.threads} threads, in turns:")
        for name, seconds in best.items():
            ratio = seconds / best["Blosc chunks decoded"]
            print(f"  {name:26} {seconds:7.2f} s   {pixels / seconds:7.0f} Mpixel/s   {ratio:5.2f}")
        for name in ("zarr v2", "zarr v3"):
            sent, needed = over_http(places[name], min(1024, args.size // 4))
            print(f"a window over HTTP from {name}: {sent} bytes for {needed} of blocks, {sent / needed:.3f}")


if __name__ == "__main__":
    main()
