"""Codecs: the bytes of one tile to its pixels, by the fastest well-kept library for each compression.

All of them release the interpreter's lock. On 512 x 512 x 3 tiles of one core of a 2.6 GHz Xeon: JPEG 1450 MB/s with
simplejpeg (1380 with imagecodecs; its fast DCT and fast upsampling give 6 to 10 % more and change half, or a fifth, of
all values: not used), DEFLATE 640 MB/s with libdeflate (zlib-ng 430, zlib 250), horizontal differences 2800 MB/s.

Lossless codecs give GDAL's values exactly. JPEG gives libjpeg-turbo's; GDAL in rasterio's wheels has IJG's libjpeg,
which enlarges subsampled colour (4:2:0) otherwise: on Sentinel-2 imagery at quality 75 to 90 a fifth of the values
differs, by 0.3 to 0.5 DN on average, less than 8 DN for 99 %, up to 46 DN at hard edges of colour; these are a little
nearer to the original. Grey, RGB and 4:4:4 JPEG are the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from s2composite.reading.level import Coding

__all__ = ["CorruptTileError", "decode_tile"]


class CorruptTileError(ValueError):
    """The bytes of a tile are not what its codec writes; internal, it becomes a `ReadError` that names the file."""


_LOSSLESS: Mapping[str, Callable[..., Any]] = {
    "DEFLATE": imagecodecs.deflate_decode,  # libdeflate: verifies the checksum at the end
    "LZMA": imagecodecs.lzma_decode,
    "LZW": imagecodecs.lzw_decode,
    "PACKBITS": imagecodecs.packbits_decode,
    "ZSTD": imagecodecs.zstd_decode,
}

_JPEG_COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}
"""Output colours by bands; CMYK is libjpeg's name for four bands left as they are."""


def decode_tile(coding: Coding, data: bytes | memoryview, rows: int, out: NDArray[Any]) -> None:
    """Decode a tile.

    Parameters
    ----------
    coding
        How it is encoded.
    data
        Its bytes.
    rows
        Rows that it must have: fewer than `out` only in the last strip of a file in strips.
    out
        ``(y, x, band)``, C-contiguous, in the file's dtype but the machine's byte order; gets the pixels.

    Raises
    ------
    CorruptTileError
        The bytes are damaged or truncated, as far as the codec can tell, or hold another shape.
    """
    try:
        if coding.compression == "JPEG":
            _jpeg(coding, data, out[:rows])
        elif coding.compression == "WEBP":
            _image(imagecodecs.webp_decode(bytes(data)), out[:rows])
        elif coding.compression == "LERC":
            _lerc(coding, data, out[:rows])
        else:
            _lossless(coding, data, rows, out)
    # codecs report with types of their own, all of them RuntimeErrors, or ValueErrors
    except (RuntimeError, ValueError) as error:
        raise CorruptTileError(f"{coding.compression}: {error}") from error


def _jpeg(coding: Coding, data: bytes | memoryview, out: NDArray[np.uint8]) -> None:
    if bytes(data[:2]) != b"\xff\xd8":
        raise ValueError("it does not begin as a JPEG")
    # TIFF says what the components are; a JPEG without this marker leaves its reader guessing, wrongly for RGB.
    transform = b"\1" if coding.photometric == "YCBCR" else b"\0"
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + transform
    stream = b"".join((b"\xff\xd8", adobe, coding.tables[2:-2], data[2:]))
    pixels = simplejpeg.decode_jpeg(stream, _JPEG_COLOURS[coding.samples_per_tile], buffer=out, strict=True)
    if pixels.shape != out.shape:
        raise ValueError(f"it holds {pixels.shape} instead of {out.shape}")


def _image(pixels: NDArray[Any], out: NDArray[Any]) -> None:
    pixels = np.atleast_3d(pixels)
    if pixels.shape[:2] != out.shape[:2] or pixels.shape[2] > out.shape[2] or pixels.dtype != out.dtype:
        raise ValueError(f"it holds {pixels.shape} of {pixels.dtype} instead of {out.shape} of {out.dtype}")
    out[..., : pixels.shape[2]] = pixels
    out[..., pixels.shape[2] :] = 255  # an opaque tile of a raster with an alpha band is stored without it


def _lerc(coding: Coding, data: bytes | memoryview, out: NDArray[Any]) -> None:
    plain = bytes(_LOSSLESS[coding.inner](data) if coding.inner else data)
    pixels, valid = imagecodecs.lerc_decode(plain, masks=True)
    _image(pixels, out)
    if valid is not None and out.dtype.kind == "f":
        out[np.broadcast_to(np.atleast_3d(valid), out.shape) == 0] = np.nan


def _lossless(coding: Coding, data: bytes | memoryview, rows: int, out: NDArray[Any]) -> None:
    if coding.bits == 1:
        _bits(coding, data, rows, out)
        return
    raw = out.reshape(-1).view(np.uint8)
    _unpack(coding, data, rows * out[0].nbytes, raw)
    if coding.predictor == 3:
        out[...] = imagecodecs.floatpred_decode(out, axis=-2)
        return
    if np.dtype(coding.dtype).byteorder == ">":
        out.byteswap(inplace=True)
    if coding.predictor == 2:
        imagecodecs.delta_decode(out, axis=-2, out=out)


def _unpack(coding: Coding, data: bytes | memoryview, needed: int, raw: NDArray[np.uint8]) -> None:
    """Decompress into `raw`, whose first `needed` bytes must get filled."""
    if coding.compression == "NONE":
        got = np.frombuffer(data, np.uint8)[: raw.size]
        raw[: got.size] = got
    else:
        got = _LOSSLESS[coding.compression](data, out=raw)
    if len(got) < needed:
        raise ValueError(f"it holds {len(got)} bytes instead of {needed}")


def _bits(coding: Coding, data: bytes | memoryview, rows: int, out: NDArray[Any]) -> None:
    """Decode a mask of one bit a pixel to 0 and 255, as GDAL returns it."""
    packed = np.empty((out.shape[0], -(-out.shape[1] // 8)), np.uint8)
    _unpack(coding, data, rows * packed.shape[1], packed.reshape(-1))
    out[..., 0] = np.unpackbits(packed, axis=1, count=out.shape[1]) * np.uint8(255)
