"""TIFFs of every kind that the tile reader promises to read, written by GDAL (and by tifffile where GDAL cannot)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import rasterio
import tifffile
from affine import Affine
from rasterio.enums import Resampling

TRANSFORM = Affine(10, 0, 300000, 0, -10, 4900020)
SHAPE = (150, 217)
"""No multiple of any block size used here."""


@dataclass(frozen=True)
class Case:
    """A file to make."""

    name: str
    dtype: str = "uint8"
    bands: int = 3
    options: dict = field(default_factory=dict)
    """GDAL's creation options."""
    overviews: tuple[int, ...] = ()
    mask: bool = False
    nodata: float | None = None
    holes: bool = False
    """Whether to put NaN in different places of the bands, or 0 and 255 into an alpha band."""
    empty: bool = False
    """Whether to leave half of the tiles unwritten."""


def pixels(dtype, bands, shape=SHAPE, seed=0):
    """Return an array ``(band, y, x)`` with smooth and noisy parts and the extremes of its dtype."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = np.stack([np.sin(x / (17 + b)) + np.cos(y / (11 + b)) for b in range(bands)])
    values = smooth * 55 + rng.normal(0, 3, smooth.shape) + 120
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        values[:, :5, :5] = [np.nan, np.inf, -np.inf, 0.0, -0.0]
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    scaled = np.clip(values / 255, 0, 1) * (float(limits.max) / 2)
    scaled[:, 20:30, 30:40] = 0
    made = scaled.astype(dtype)
    made[:, 3, 3:9], made[:, 4, 3:9] = limits.min, limits.max
    return made


def _lossless():
    names = ("deflate", "zstd", "lzw", "lzma", "packbits", "lerc", "lerc_deflate", "lerc_zstd")
    codecs = [{"compress": name} for name in names] + [{}]
    for codec in codecs:
        name = codec.get("compress", "none")
        predicts = name in ("deflate", "zstd", "lzw", "lzma")
        for dtype in ("uint8", "uint16", "int16", "float32", "int8", "uint32", "int32", "float64"):
            if name.startswith("lerc") and dtype == "int8":
                continue  # GDAL does not write it
            predictors = [1, 3 if dtype.startswith("float") else 2] if predicts else [None]
            for predictor in predictors:
                for interleave in ("pixel", "band"):
                    options = {**codec, "interleave": interleave, "tiled": True, "blockxsize": 64, "blockysize": 32}
                    if predictor:
                        options["predictor"] = predictor
                    yield Case(f"{name}-{dtype}-p{predictor or 0}-{interleave}", dtype, 3, options)


_TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}

SPECIAL = [
    Case("strips", options={"compress": "deflate", "blockysize": 7, "interleave": "pixel"}),
    Case("strips-band", "int16", options={"compress": "lzw", "blockysize": 16, "interleave": "band", "predictor": 2}),
    Case("strip-single", options={"compress": "zstd", "blockysize": 150}),
    Case("strips-raw", "uint16", 2, {"blockysize": 11}),
    Case("big-endian", "uint16", options={**_TILED, "predictor": 2, "endianness": "big", "interleave": "pixel"}),
    Case("big-endian-float", "float32", options={**_TILED, "predictor": 3, "endianness": "big", "interleave": "pixel"}),
    Case("big-endian-raw", "int32", 1, {"tiled": True, "blockxsize": 64, "blockysize": 64, "endianness": "big"}),
    Case("bigtiff", options={**_TILED, "bigtiff": "yes", "interleave": "pixel"}, overviews=(2, 4)),
    Case("bigtiff-big-endian", "uint16", options={**_TILED, "bigtiff": "yes", "endianness": "big"}, overviews=(2,)),
    Case("overviews", "uint16", options={**_TILED, "predictor": 2, "interleave": "pixel"}, overviews=(2, 4, 8)),
    Case("overviews-band", "float32", options={**_TILED, "predictor": 3, "interleave": "band"}, overviews=(2, 4)),
    Case("mask", options={**_TILED, "interleave": "pixel"}, mask=True),
    Case("mask-overviews", options={**_TILED, "interleave": "pixel"}, mask=True, overviews=(2, 4)),
    Case("sparse", options={**_TILED, "sparse_ok": True, "interleave": "pixel"}, empty=True),
    Case("sparse-nodata", "int16", 3, {**_TILED, "sparse_ok": True, "interleave": "band"}, empty=True, nodata=-9999),
    Case("sparse-nan", "float32", 1, {**_TILED, "sparse_ok": True}, empty=True, nodata=float("nan")),
    Case("nodata", "uint16", options=_TILED, nodata=65535),
    Case("one-band", options={**_TILED, "predictor": 2}, bands=1),
    Case("two-bands", "uint16", 2, {**_TILED, "predictor": 2, "interleave": "pixel"}),
    Case("thirteen-bands", "uint16", 13, {**_TILED, "predictor": 2, "interleave": "pixel"}),
    Case("rgba", options={**_TILED, "photometric": "rgb", "alpha": "yes"}, bands=4),
    Case("palette-like", options={**_TILED, "photometric": "miniswhite"}, bands=1),
    Case("block-wider-than-raster", options={**_TILED, "blockxsize": 256, "blockysize": 256, "interleave": "pixel"}),
    Case("webp", options={**_TILED, "compress": "webp", "webp_lossless": True, "interleave": "pixel"}),
    Case("webp-lossy", options={**_TILED, "compress": "webp", "webp_level": 75, "interleave": "pixel"}),
    Case("webp-rgba", options={**_TILED, "compress": "webp", "webp_lossless": True, "interleave": "pixel"}, bands=4),
    Case("cog", options={"driver": "COG", "compress": "deflate", "blocksize": 128, "predictor": 2}),
    Case("cog-zstd", "int16", 2, {"driver": "COG", "compress": "zstd", "blocksize": 128}, nodata=-1),
    Case("cog-mask", options={"driver": "COG", "compress": "deflate", "blocksize": 128}, mask=True),
    Case("cog-bigtiff", options={"driver": "COG", "compress": "lzw", "blocksize": 128, "bigtiff": "yes"}),
]


def _lerc():
    """LERC where libtiff stores more than the values: masks for NaN and alpha, the file's byte order."""
    for name in ("lerc", "lerc_deflate", "lerc_zstd"):
        for interleave in ("pixel", "band"):
            tiles = {"compress": name, "interleave": interleave, "tiled": True, "blockxsize": 64, "blockysize": 32}
            for bands in (1, 2, 3):
                for dtype in ("float32", "float64"):
                    yield Case(f"{name}-{dtype}-{bands}-nan-{interleave}", dtype, bands, tiles, holes=True)
            strips = {"compress": name, "interleave": interleave, "blockysize": 16}
            yield Case(f"{name}-nan-strips-{interleave}", "float32", 3, strips, holes=True)
            for dtype in ("uint8", "uint16", "int32", "float32", "float64"):
                yield Case(f"{name}-{dtype}-big-endian-{interleave}", dtype, 3, {**tiles, "endianness": "big"})
            big_endian = {**tiles, "endianness": "big"}
            yield Case(f"{name}-nan-big-endian-{interleave}", "float32", 3, big_endian, holes=True)
            rgba = {**tiles, "photometric": "rgb", "alpha": "yes"}
            yield Case(f"{name}-rgba-{interleave}", bands=4, options=rgba, holes=True)
            yield Case(f"{name}-rgba-many-{interleave}", bands=4, options=rgba)


LOSSLESS = [*_lossless(), *SPECIAL, *_lerc()]

_JPEG = {**_TILED, "compress": "jpeg", "interleave": "pixel"}

JPEG = [
    Case("jpeg-ycbcr", options={**_JPEG, "photometric": "ycbcr"}, overviews=(2,)),
    Case("jpeg-rgb", options={**_JPEG, "photometric": "rgb"}),
    Case("jpeg-grey", bands=1, options={**_TILED, "compress": "jpeg"}),
    Case("jpeg-band", options={**_TILED, "compress": "jpeg", "interleave": "band"}),
    Case("jpeg-four", bands=4, options=_JPEG),
    Case("jpeg-own-tables", options={**_JPEG, "photometric": "ycbcr", "jpegtablesmode": 0}),
    Case("jpeg-strips", options={"compress": "jpeg", "photometric": "ycbcr", "interleave": "pixel", "blockysize": 16}),
    Case("jpeg-mask", options={**_JPEG, "photometric": "ycbcr"}, mask=True),
    Case("jpeg-cog", options={"driver": "COG", "compress": "jpeg", "blocksize": 128}),
    Case("jpeg-cog-mask", options={"driver": "COG", "compress": "jpeg", "blocksize": 128}, mask=True),
]


def make(case, directory, *, shape=SHAPE):
    """Write the file of a case and return its path as a string."""
    path = str(directory / f"{case.name}.tif")
    array = pixels(case.dtype, case.bands, shape)
    if case.holes and array.dtype.kind == "f":
        array[np.random.default_rng(1).random(array.shape) > 0.9] = np.nan
    elif case.holes:
        array[-1] = np.random.default_rng(1).choice([0, 255], shape)
    profile = {
        "count": case.bands, "height": shape[0], "width": shape[1], "dtype": case.dtype, "nodata": case.nodata,
        "crs": "EPSG:32631", "transform": TRANSFORM,
    }  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), warnings.catch_warnings():
        # LERC and alpha bands: GDAL says what it is going to do about them
        warnings.simplefilter("ignore")
        options = {"driver": "GTiff", **case.options}
        with rasterio.open(path, "w", **profile, **options) as dataset:
            _write(dataset, array, case)
            if case.overviews:
                dataset.build_overviews(case.overviews, Resampling.average)
    return path


def _write(dataset, array, case):
    if case.empty:
        half = array[:, :64, :128]
        dataset.write(half, window=((0, 64), (0, 128)))
    else:
        dataset.write(array)
    if case.mask:
        mask = np.full(array.shape[1:], 255, np.uint8)
        mask[40:90, 10:200] = 0
        dataset.write_mask(mask)


def make_with_tifffile(path, array, **options):
    """Write a tiled TIFF as GDAL never does: 4:4:4 and 4:2:2 JPEG, for example. ``(y, x, band)``."""
    tifffile.imwrite(path, array, tile=(64, 64), metadata=None, **options)
    return str(path)
