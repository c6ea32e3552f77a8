"""Small GeoTIFFs for tests, written by GDAL."""

import numpy as np
import rasterio
from affine import Affine

ORIGIN = Affine(10, 0, 300000, 0, -10, 4900020)
"""Upper left corner of granule T31TCJ, 10 m pixels."""


def write_tif(path, array, *, transform=ORIGIN, crs="EPSG:32631", block=64, overviews=(), **profile):
    """Write ``(band, y, x)`` or ``(y, x)`` as a tiled GeoTIFF and return its path as a string."""
    array = np.atleast_3d(array) if array.ndim == 3 else array[None]
    options = {"tiled": True, "blockxsize": block, "blockysize": block, "compress": "deflate", **profile}
    count, height, width = array.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=array.dtype,
        crs=crs,
        transform=transform,
        **options,
    ) as dataset:
        dataset.write(array)
        if overviews:
            dataset.build_overviews(overviews, rasterio.enums.Resampling.average)
    return str(path)


def encoded(scene, bands=3, height=200, width=136):
    """Return pixels whose value says scene, band and place, so that a shifted or swapped window cannot look right."""
    b, y, x = np.ogrid[:bands, :height, :width]
    return (1 + (scene * 37 + b * 71 + y * 3 + x * 5) % 254).astype(np.uint8)


def series(directory, scenes=5, **options):
    """Write `scenes` encoded scenes, five days apart, and return their paths."""
    made = []
    for t in range(scenes):
        name = f"T31TCJ_202306{1 + 5 * t:02d}T104629_TCI.tif"
        made.append(write_tif(directory / name, encoded(t), interleave="pixel", photometric="RGB", **options))
    return made


def vrt(source):
    return (
        '<VRTDataset rasterXSize="136" rasterYSize="200"><SRS>EPSG:32631</SRS>'
        "<GeoTransform>300000, 10, 0, 4900020, 0, -10</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
