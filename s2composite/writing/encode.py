"""A tile of pixels to bytes and back, its overviews and its statistics; windows do not matter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import simplejpeg
from isal import isal_zlib
from numpy.typing import NDArray

from s2composite.geotiff.codecs import decode_tile
from s2composite.geotiff.structure import coding
from s2composite.pixels.kernels.tiles import count_values, halve_by_means
from s2composite.writing.options import RasterOptions

__all__ = [
    "Codec",
    "Statistics",
    "decode_mask",
    "encode_mask",
    "halve",
    "level_shapes",
    "merge",
    "tile_statistics",
    "valid_pixels",
]

ISAL, ZSTD, MASK = 2, 9, 6


@dataclass(frozen=True, slots=True)
class Codec:
    """Encodes tiles ``(y, x, b)`` of one raster and decodes them again."""

    options: RasterOptions  # with the predictor decided
    shape: tuple[int, int, int]  # of a tile: rows, columns, bands
    dtype: np.dtype[Any]

    def encode(self, tile: NDArray[Any]) -> bytes:
        """Return the bytes of a C-contiguous tile."""
        name, level, predictor = self.options.compress, self.options.level, self.options.predictor
        if name == "jpeg":
            space, subsampling = ("GRAY", "Gray") if tile.shape[2] == 1 else ("RGB", "420")
            quality = self.options.jpeg_quality
            return bytes(simplejpeg.encode_jpeg(tile, quality, colorspace=space, colorsubsampling=subsampling))
        if name == "webp":
            return bytes(imagecodecs.webp_encode(tile, level, lossless=level is None))
        if predictor == 2:
            differences = tile.copy()
            differences[:, 1:] -= tile[:, :-1]
            tile = differences
        elif predictor == 3:
            tile = np.asarray(imagecodecs.floatpred_encode(tile, axis=-2))
        data = tile.tobytes()
        if name == "deflate":
            # Encoding is most of the cost of writing. A median in 8 bits: ISA-L 300 MB/s and 1/1.42 of the size,
            # libdeflate 110 MB/s and 1/1.44 at level 1, 57 MB/s and 1/1.45 at level 6.
            return isal_zlib.compress(data, ISAL) if level is None else bytes(imagecodecs.deflate_encode(data, level))
        if name == "zstd":
            return bytes(imagecodecs.zstd_encode(data, ZSTD if level is None else level))
        return bytes(imagecodecs.lzw_encode(data)) if name == "lzw" else data

    def decode(self, data: bytes) -> NDArray[Any]:
        """Return the tile in `data`; raises a CorruptTileError for bytes that are not one."""
        samples, name = self.shape[2], self.options.compress
        how = coding(
            compression=name.upper(),
            predictor=self.options.predictor,
            photometric="YCBCR" if name == "jpeg" and samples == 3 else "MINISBLACK",
            interleave="pixel",
            samples=samples,
            dtype=f"<{self.dtype.kind}{self.dtype.itemsize}",
            bits=8 * self.dtype.itemsize,
            tables=b"",
            inner="",
        )
        out = np.empty(self.shape, self.dtype)
        decode_tile(how, data, self.shape[0], out)
        return out


def encode_mask(valid: NDArray[np.bool_]) -> bytes:
    """Return the bytes of a mask tile ``(y, x)``: one bit for each pixel, deflated."""
    return bytes(imagecodecs.deflate_encode(np.packbits(valid, axis=1).tobytes(), MASK))


def decode_mask(data: bytes, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask tile in `data`."""
    size = shape[0] * ((shape[1] + 7) // 8)
    bits = np.frombuffer(imagecodecs.deflate_decode(data, out=size), np.uint8).reshape(shape[0], -1)
    return np.unpackbits(bits, axis=1, count=shape[1]).view(np.bool_)


def level_shapes(shape: tuple[int, int], smallest: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes ``(y, x)`` of the full resolution and its overviews, until both fit into `smallest` pixels.

    >>> level_shapes((1100, 700), 512)
    ((1100, 700), (550, 350), (275, 175))
    """
    shapes = [shape]
    while max(shapes[-1]) > smallest:
        rows, columns = shapes[-1]
        shapes.append(((rows + 1) // 2, (columns + 1) // 2))
    return tuple(shapes)


def valid_pixels(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Return where `pixels` have a value, None if all do; NaN is never a value."""
    valid = None if pixels.dtype.kind != "f" else ~np.isnan(pixels)
    if nodata is not None and not math.isnan(nodata):
        same = pixels != pixels.dtype.type(nodata)
        valid = same if valid is None else valid & same
    return None if valid is None or valid.all() else valid


def halve(pixels: NDArray[Any], method: str, nodata: float | None) -> NDArray[Any]:
    """Return pixels ``(..., y, x)`` at half the resolution; blocks at an odd edge hold fewer pixels.

    ``"average"``: mean of the pixels that have a value, halves rounded up; ``"nearest"``: the upper left pixel;
    ``"mode"``: the most frequent value, the first in reading order among equally frequent ones. Blocks with no other
    pixels than `nodata` (or NaN) keep that.

    >>> halve(np.array([[[0, 2], [3, 4]]], "uint8"), "average", nodata=0)
    array([[[3]]], dtype=uint8)
    """
    if method == "nearest":
        return np.ascontiguousarray(pixels[..., ::2, ::2])
    *head, height, width = pixels.shape
    if height % 2 or width % 2:  # means and modes of blocks at the edge stay those of their own pixels
        pixels = np.pad(pixels, (*((0, 0) for _ in head), (0, height % 2), (0, width % 2)), "edge")
    if method == "mode":
        return _modes(pixels, nodata)
    if pixels.dtype.kind == "f":
        if (valid := valid_pixels(pixels, nodata)) is None:
            return (_sums(pixels, np.float64) / 4).astype(pixels.dtype)
        total = _sums(np.where(valid, pixels, pixels.dtype.type(0)), np.float64)
        count = _sums(valid.view(np.uint8), np.uint8)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (total / count).astype(pixels.dtype)
        mean[count == 0] = np.nan if nodata is None else nodata
        return np.asarray(mean)
    bands, rows, columns = math.prod(head), (height + 1) // 2, (width + 1) // 2
    out = np.empty((bands, rows, columns), pixels.dtype)
    known = nodata is not None and not math.isnan(nodata)
    value = int(nodata) if nodata is not None and known else 0
    # What a mean becomes that would equal the nodata value by coincidence.
    neighbour = value + 1 if value < np.iinfo(pixels.dtype).max else value - 1
    halve_by_means(np.ascontiguousarray(pixels).reshape(bands, 2 * rows, 2 * columns), known, value, neighbour, out)
    return out.reshape(*head, rows, columns)


def _corners(pixels: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    return pixels[..., ::2, ::2], pixels[..., ::2, 1::2], pixels[..., 1::2, ::2], pixels[..., 1::2, 1::2]


def _sums(pixels: NDArray[Any], dtype: Any) -> NDArray[Any]:
    first, *rest = _corners(pixels)
    total: NDArray[Any] = first.astype(dtype)
    for corner in rest:
        total += corner
    return total


def _modes(pixels: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    corners = _corners(pixels)
    # A block without any value keeps the nodata value.
    best = np.full_like(corners[0], corners[0] if nodata is None else nodata)
    most = np.zeros(best.shape, np.uint8)
    for candidate in corners:
        valid = valid_pixels(candidate, nodata)
        count = np.add.reduce([candidate == other for other in corners], dtype=np.uint8)
        count = count if valid is None else count * valid
        wins = count > most
        best[wins], most[wins] = candidate[wins], count[wins]
    return best


class Statistics(NamedTuple):
    """Of valid pixels; minimum, maximum and mean are NaN if none is valid."""

    valid: int = 0  # number of valid pixels
    pixels: int = 0  # number of pixels
    minimum: float = math.nan
    maximum: float = math.nan
    mean: float = math.nan
    squares: float = 0.0  # sum of squared differences from the mean

    @property
    def deviation(self) -> float:
        """Standard deviation of the population."""
        return math.sqrt(self.squares / self.valid) if self.valid else math.nan


def tile_statistics(tile: NDArray[Any], nodata: float | None) -> Statistics:
    """Return the statistics of one band of a tile ``(y, x)``."""
    if tile.dtype.kind in "iu" and tile.dtype.itemsize <= 2 and tile.size:
        lowest = int(tile.min())
        counts = np.zeros((4, int(tile.max()) - lowest + 1), np.int64)
        count_values(np.ascontiguousarray(tile).ravel().view(f"u{tile.itemsize}"), lowest, counts)
        histogram = counts.sum(axis=0)
        if nodata is not None and 0 <= nodata - lowest < len(histogram):
            histogram[int(nodata) - lowest] = 0
        if not (count := int(histogram.sum())):
            return Statistics(pixels=tile.size)
        present = np.flatnonzero(histogram)
        values = np.arange(lowest, lowest + len(histogram), dtype=np.float64)
        mean = float(np.dot(histogram, values)) / count
        squares = float(np.sum(histogram * (values - mean) ** 2))
        return Statistics(count, tile.size, float(values[present[0]]), float(values[present[-1]]), mean, squares)
    valid = valid_pixels(tile, nodata)
    values = (tile if valid is None else tile[valid]).astype(np.float64).ravel()
    if tile.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        return Statistics(pixels=tile.size)
    mean = float(values.mean())
    deviations = values - mean
    squares = float(np.sum(deviations * deviations))
    return Statistics(values.size, tile.size, float(values.min()), float(values.max()), mean, squares)


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Return the statistics of all parts together (Chan's update, in the order given)."""
    total = Statistics()
    for part in parts:
        pixels = total.pixels + part.pixels
        if not total.valid or not part.valid:
            total = (total if total.valid else part)._replace(pixels=pixels)
            continue
        count, delta = total.valid + part.valid, part.mean - total.mean
        mean = total.mean + delta * part.valid / count
        squares = total.squares + part.squares + delta * delta * total.valid * part.valid / count
        lowest, highest = min(total.minimum, part.minimum), max(total.maximum, part.maximum)
        total = Statistics(count, pixels, lowest, highest, mean, squares)
    return total
