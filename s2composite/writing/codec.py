"""Codec: a tile of pixels to bytes and back, as TIFF defines it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from isal import isal_zlib
from numpy.typing import NDArray

from s2composite.writing.options import RasterOptions

__all__ = ["Codec", "decode_mask", "encode_mask"]

ISAL, ZSTD, MASK = 2, 9, 6


@dataclass(frozen=True, slots=True)
class Codec:
    """Encodes tiles ``(y, x, b)`` of one raster and decodes them again."""

    options: RasterOptions
    """With the predictor decided."""

    shape: tuple[int, int, int]
    """Of a tile: rows, columns, bands."""

    dtype: np.dtype[Any]
    """Of the pixels."""

    def encode(self, tile: NDArray[Any]) -> bytes:
        """Return the bytes of a C-contiguous tile."""
        name, level = self.options.compress, self.options.level
        if name == "jpeg":
            return _encode_jpeg(tile, self.options.jpeg_quality)
        if name == "webp":
            return bytes(imagecodecs.webp_encode(tile, level, lossless=level is None))
        data = self._predict(tile).tobytes()
        if name == "deflate":
            # Encoding is most of the cost of writing. A median in 8 bits: ISA-L 300 MB/s and 1/1.42 of the size,
            # libdeflate 110 MB/s and 1/1.44 at level 1, 57 MB/s and 1/1.45 at level 6.
            return isal_zlib.compress(data, ISAL) if level is None else bytes(imagecodecs.deflate_encode(data, level))
        if name == "zstd":
            return bytes(imagecodecs.zstd_encode(data, ZSTD if level is None else level))
        return bytes(imagecodecs.lzw_encode(data)) if name == "lzw" else data

    def decode(self, data: bytes) -> NDArray[Any]:
        """Return the tile in `data`; raises whatever the decoder raises for bytes that are not one."""
        name = self.options.compress
        if name == "jpeg":
            space = "RGB" if self.shape[2] == 3 else "GRAY"
            return np.asarray(simplejpeg.decode_jpeg(data, space)).reshape(self.shape)
        if name == "webp":
            return np.asarray(imagecodecs.webp_decode(data)).reshape(self.shape)
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        decoders = {
            "deflate": imagecodecs.deflate_decode,
            "zstd": imagecodecs.zstd_decode,
            "lzw": imagecodecs.lzw_decode,
        }
        plain = decoders[name](data, out=size) if name in decoders else data
        return self._unpredict(np.frombuffer(plain, self.dtype.newbyteorder("<")).reshape(self.shape))

    def _predict(self, tile: NDArray[Any]) -> NDArray[Any]:
        if self.options.predictor == 2:
            out = tile.copy()
            out[:, 1:] -= tile[:, :-1]
            return out
        if self.options.predictor == 3:
            return np.asarray(imagecodecs.floatpred_encode(tile, axis=-2))
        return tile

    def _unpredict(self, data: NDArray[Any]) -> NDArray[Any]:
        if self.options.predictor == 2:
            return np.asarray(imagecodecs.delta_decode(data, axis=1))
        if self.options.predictor == 3:
            return np.asarray(imagecodecs.floatpred_decode(data, axis=-2))
        return data


def _encode_jpeg(tile: NDArray[Any], quality: int) -> bytes:
    if tile.shape[2] == 1:
        return bytes(simplejpeg.encode_jpeg(tile, quality=quality, colorspace="GRAY", colorsubsampling="Gray"))
    return bytes(simplejpeg.encode_jpeg(tile, quality=quality, colorspace="RGB", colorsubsampling="420"))


def encode_mask(valid: NDArray[np.bool_]) -> bytes:
    """Return the bytes of a mask tile ``(y, x)``: one bit for each pixel, deflated."""
    return bytes(imagecodecs.deflate_encode(np.packbits(valid, axis=1).tobytes(), MASK))


def decode_mask(data: bytes, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask tile in `data`."""
    size = shape[0] * ((shape[1] + 7) // 8)
    bits = np.frombuffer(imagecodecs.deflate_decode(data, out=size), np.uint8).reshape(shape[0], -1)
    return np.unpackbits(bits, axis=1, count=shape[1]).view(np.bool_)
