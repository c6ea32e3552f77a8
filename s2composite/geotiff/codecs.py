"""Codecs: the bytes of one tile to its pixels, by the fastest well-kept library for each compression.

All of them release the interpreter's lock. On 512 x 512 x 3 tiles of one core of a 2.6 GHz Xeon: JPEG 1450 MB/s with
simplejpeg (1380 with imagecodecs; its fast DCT and fast upsampling give 6 to 10 % more and change half, or a fifth, of
all values: not used), DEFLATE 640 MB/s with libdeflate (zlib-ng 430, zlib 250), horizontal differences 2800 MB/s.

Lossless codecs give GDAL's values exactly, JPEG those of GDAL with libjpeg-turbo (Debian's, conda-forge's). GDAL in
rasterio's wheels has IJG's libjpeg 9, which enlarges subsampled colour (4:2:0) otherwise.

A tile claims what it decodes to. All that is decoded goes into memory of the size that the file's header gives, so a
claim of more is an error before it costs anything.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from s2composite.geotiff.structure import BloscBlocks, Coding

__all__ = ["CorruptTileError", "decode_blosc_rows", "decode_tile"]


class CorruptTileError(ValueError):
    """The bytes of a tile are not what its codec writes; internal, it becomes a `ReadError` that names the file."""


_LOSSLESS: Mapping[str, Callable[..., Any]] = {
    "BLOSC": imagecodecs.blosc_decode,
    "DEFLATE": imagecodecs.deflate_decode,  # libdeflate: verifies the checksum at the end
    "GZIP": imagecodecs.gzip_decode,
    "LZMA": imagecodecs.lzma_decode,
    "LZW": imagecodecs.lzw_decode,
    "PACKBITS": imagecodecs.packbits_decode,
    "ZSTD": imagecodecs.zstd_decode,
}

_BLOSC_MEMCPY = 0x2  # flag of a chunk whose bytes are stored as they are

_SEGMENT = struct.Struct(">HH")
_START_OF_SCAN = 0xFFDA
_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
# A JPEG's segments: marker and size. Frames of all kinds; JFIF and Adobe, which say what the components are.
_COLOURS = frozenset((0xFFE0, 0xFFEE))

# output colours by bands; CMYK is libjpeg's name for four bands left as they are
_JPEG_COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}


# Tiles in which all values are the same, outside of a swath above all, have the same few bytes in every file of a
# writer: they are decoded once. At most so many bytes, and so many times smaller than their pixels, may a tile be that
# is looked for here. A tile of 512 x 512 x 3 zeros takes 0.01 ms instead of 0.10 (DEFLATE) or 0.27 (JPEG).
_SAME_BYTES, _SAME_RATIO, _SAME_KEPT = 1 << 13, 64, 512

_SAME: dict[tuple[Coding, int, tuple[int, ...], bytes], np.generic | None] = {}


def decode_tile(coding: Coding, data: bytes | memoryview, rows: int, out: NDArray[Any]) -> None:
    """Decode a tile ``(y, x, sample)`` of which `rows` rows are stored."""
    if len(data) > _SAME_BYTES or len(data) * _SAME_RATIO > out.nbytes:
        _decode(coding, data, rows, out)
        return
    key = (coding, rows, out.shape, bytes(data))
    value = _SAME.get(key)
    if value is not None:
        out[:rows].fill(value)
        return
    _decode(coding, data, rows, out)
    if key not in _SAME:
        if len(_SAME) >= _SAME_KEPT:
            _SAME.clear()
        first = out[0, 0, 0]
        same = out[:rows].tobytes() == first.tobytes() * out[:rows].size  # by their bits: NaN is NaN
        _SAME[key] = first if same else None


def decode_blosc_rows(blocks: BloscBlocks, data: memoryview, first: int, start: int, out: NDArray[Any]) -> None:
    """Decode ``out.nbytes`` bytes from `start` of a decoded Blosc chunk, of which only the blocks' bytes are there.

    `data` begins at byte `first` of the chunk. The blocks become a chunk of their own, with a header that says so.
    """
    if blocks.head[2] & _BLOSC_MEMCPY:
        at = int(blocks.starts[0]) + start - first
        raw: Any = np.frombuffer(data[at : at + out.nbytes], np.uint8)
    else:
        some = blocks.holding(start, start + out.nbytes)
        starts, stops = (ends[some] - first for ends in (blocks.starts, blocks.stops))
        sizes = stops - starts
        head = 16 + 4 * len(sizes)
        size = min(some.stop * blocks.block, blocks.size) - some.start * blocks.block
        places = (head + np.cumsum(sizes) - sizes).astype("<i4").tobytes()
        parts = (data[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True))
        chunk = b"".join(
            (blocks.head, struct.pack("<III", size, blocks.block, head + int(sizes.sum())), places, *parts)
        )
        try:
            decoded = _LOSSLESS["BLOSC"](chunk, numthreads=1, out=np.empty(size, np.uint8))
        except RuntimeError as error:
            raise CorruptTileError(f"BLOSC: {error}") from error
        raw = decoded[start - some.start * blocks.block :][: out.nbytes]
    if len(raw) < out.nbytes:
        raise CorruptTileError(f"BLOSC: it holds {len(raw)} bytes instead of {out.nbytes}")
    out.reshape(-1).view(np.uint8)[:] = raw


def _decode(coding: Coding, data: bytes | memoryview, rows: int, out: NDArray[Any]) -> None:
    try:
        if coding.compression == "JPEG":
            # TIFF says what the components are, whatever markers the tile has of its own; a JPEG without the marker
            # that is put first here leaves its reader guessing, wrongly for RGB.
            adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + (b"\1" if coding.photometric == "YCBCR" else b"\0")
            # as libtiff, let the last strip have all the rows of a strip
            shapes = {(rows, *out.shape[1:]), out.shape}
            stream = b"".join((b"\xff\xd8", adobe, _tables(coding.tables), *_segments(data, shapes)))
            simplejpeg.decode_jpeg(stream, _JPEG_COLOURS[coding.samples_per_tile], buffer=out, strict=True)
        elif coding.compression == "WEBP":
            # an opaque tile of a raster with an alpha band is stored without it
            imagecodecs.webp_decode(bytes(data), hasalpha=True if out.shape[2] == 4 else None, out=out[:rows])
        elif coding.compression == "LERC":
            _lerc(coding, data, out[:rows])
        elif coding.bits == 1:  # a mask, to 0 and 255 as GDAL returns it
            packed = np.empty((out.shape[0], -(-out.shape[1] // 8)), np.uint8)
            _unpack(coding, data, rows * packed.shape[1], packed.reshape(-1))
            out[..., 0] = np.unpackbits(packed, axis=1, count=out.shape[1]) * np.uint8(255)
        else:
            _unpack(coding, data, rows * out[0].nbytes, out.reshape(-1).view(np.uint8))
            if coding.predictor == 3:
                out[...] = imagecodecs.floatpred_decode(out, axis=-2)
            elif np.dtype(coding.dtype).byteorder == ">":
                out.byteswap(inplace=True)
            if coding.predictor == 2:
                imagecodecs.delta_decode(out, axis=-2, out=out)
    # codecs report with types of their own, all of them RuntimeErrors, or ValueErrors
    except (RuntimeError, ValueError) as error:
        raise CorruptTileError(f"{coding.compression}: {error}") from error


@lru_cache(1024)
def _tables(tables: bytes) -> bytes:
    return b"".join(_segments(tables, ()))


def _segments(data: bytes | memoryview, shapes: Collection[tuple[int, ...]]) -> Iterator[bytes | memoryview]:
    """Yield the segments of a JPEG but those that speak of its colours, and all that follows the first scan's header.

    Its frame must have one of `shapes`, ``(y, x, component)``: the decoder allocates what the frame's header claims.
    """
    if data and bytes(data[:2]) != b"\xff\xd8":
        raise ValueError("it does not begin as a JPEG")
    at, end = 2, len(data) - 4
    while at <= end:
        marker, size = _SEGMENT.unpack_from(data, at)
        if marker == 0xFFFF:  # any number of 0xff may stand before a marker
            at += 1
            continue
        if marker == _START_OF_SCAN:
            yield data[at:]
            return
        if marker in _FRAMES:
            frame = bytes(data[at + 5 : at + 10])
            shape = (int.from_bytes(frame[:2]), int.from_bytes(frame[2:4]), *frame[4:])
            if shape not in shapes:
                raise ValueError(f"it holds {shape} instead of {max(shapes, default=())}")
        if marker not in _COLOURS:
            yield data[at : at + 2 + size]
        at += 2 + size


def _lerc(coding: Coding, data: bytes | memoryview, out: NDArray[Any]) -> None:
    if coding.inner:  # libtiff's limit: a blob that compresses nothing, and masks
        data = _LOSSLESS[coding.inner](data, out=np.empty(256 + out.nbytes + out.nbytes // 3, np.uint8))
    blob, bands = bytes(data), out.shape[2]
    if blob[:6] != b"Lerc2 ":  # the decoder would decompress other things, of any size
        raise ValueError("it does not begin as a LERC blob")
    depth = int.from_bytes(blob[22:26], "little") if int.from_bytes(blob[6:10], "little") >= 4 else 1
    alpha = depth == bands - 1 and out.dtype == np.uint8  # one of 0 and 255 is stored as a mask
    planar = depth == 1 < bands and out.dtype.kind == "f"  # bands of different masks are stored one after another
    if depth == bands:
        pixels = out
    elif alpha:
        pixels = np.empty((*out.shape[:2], depth), out.dtype)
    elif planar:
        pixels = np.empty((bands, *out.shape[:2]), out.dtype)
    else:
        raise ValueError(f"it holds {depth} bands instead of {bands}")
    _, valid = imagecodecs.lerc_decode(blob, masks=True, out=pixels[..., 0] if depth == 1 and not planar else pixels)
    if alpha:
        out[..., :-1], out[..., -1] = pixels, 255 if valid is None else 255 * valid
    elif planar:
        out[...] = np.moveaxis(pixels, 0, -1)
    if valid is not None and out.dtype.kind == "f":
        out[~np.moveaxis(valid, 0, -1) if planar else ~valid] = np.nan
    if np.dtype(coding.dtype).byteorder == ">":  # libtiff encodes the bytes of such a file as they are in it
        out.byteswap(inplace=True)


def _unpack(coding: Coding, data: bytes | memoryview, needed: int, raw: NDArray[np.uint8]) -> None:
    """Decompress into `raw`, whose first `needed` bytes must get filled."""
    if coding.compression == "NONE":
        got = np.frombuffer(data, np.uint8)[: raw.size]
        raw[: got.size] = got
    elif coding.compression == "BLOSC" and int.from_bytes(data[12:16], "little") != len(data):
        # c-blosc believes its head, and reads beyond the bytes that there are
        raise ValueError(f"it has {len(data)} bytes, by its own head {int.from_bytes(data[12:16], 'little')}")
    else:
        got = _LOSSLESS[coding.compression](data, out=raw)
    if len(got) < needed:
        raise ValueError(f"it holds {len(got)} bytes instead of {needed}")
