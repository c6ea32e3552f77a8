"""Sentinel-2 in Zarr beside COGs: dates of three formats in one cube, and the median of them.

    python zarr_products.py       # writes products/ and median.tif

Makes generated scenes into products with the layout of ESA's (EOPF, Zarr format 2) and of the optimised GeoZarr
(format 3). For real products give their stores or STAC items to `open_cube`; there is nothing else to do.
"""

from pathlib import Path

import numcodecs
import rasterio
import zarr

import s2composite as s2c
from s2composite.demo import make_scenes


def write_product(file, version):
    """Write the band of a file as a product in Zarr; return the store."""
    stem = Path(file).stem  # T31TCJ_20230709T104629_B04
    granule, time, band = stem.split("_")
    store = f"products/S2A_MSIL2A_{time}_N0511_R051_{granule}_{time}.zarr"
    with rasterio.open(file) as dataset:
        pixels, transform, epsg = dataset.read(1), list(dataset.transform)[:6], dataset.crs.to_epsg()
    layout = {"chunks": pixels.shape, "compressors": numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE)}
    if version == 3:  # a shard with inner chunks
        layout = {"shards": pixels.shape, "chunks": (128, 128), "compressors": zarr.codecs.BloscCodec(cname="zstd")}
    attributes = {"proj:epsg": epsg, "proj:shape": list(pixels.shape), "proj:transform": transform}
    group = zarr.open_group(store, mode="w", zarr_format=version)
    array = group.create_array(
        f"measurements/reflectance/r10m/{band.lower()}",
        shape=pixels.shape,
        dtype=pixels.dtype,
        fill_value=0,
        attributes={**attributes, "scale_factor": 1e-4, "add_offset": -0.1},
        **layout,
    )
    array[:] = pixels + 1000 * (pixels > 0)  # with the offset of processing baseline 04.00, as real ones
    zarr.consolidate_metadata(group.store)
    return store


def main():
    """Make three dates, two of them products in Zarr, and composite all."""
    files = make_scenes("products", scenes=3, size=512, assets=("B04",))
    sources = [write_product(files[0], 2), write_product(files[1], 3), files[2]]
    cube = s2c.open_cube(sources, bands=["red"], harmonise={s2c.find_scenes(files[2])[0].id: 0})
    print(cube.attrs["engine_reason"], cube["offset"].values)
    s2c.composite(cube, "median").to_raster("median.tif")
    same = s2c.composite(s2c.open_cube(list(files), bands=["red"]), "median")
    with rasterio.open("median.tif") as dataset:
        assert (dataset.read(1) == same["composite"].values[0]).all()
    print("median.tif has the same pixels as that of the three COGs")


if __name__ == "__main__":
    main()
