"""Directories: the TIFF directories of a raster, its overviews and their masks, in the order of the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.writing.geotags import metadata_tag, nodata_tag
from s2composite.writing.raster import Raster
from s2composite.writing.statistics import Statistics
from s2composite.writing.tiff import LONG, RECORD_OVERHEAD, SHORT, Directory, Tag

__all__ = ["directories"]

_COMPRESSION = {"none": 1, "lzw": 5, "jpeg": 7, "deflate": 8, "zstd": 50000, "webp": 50001}
_SAMPLE_FORMAT = {"u": 1, "i": 2, "f": 3}
_OVERVIEW, _MASK = 1, 4
_GRAY, _RGB, _TRANSPARENCY, _YCBCR = 1, 2, 4, 6
_UNSPECIFIED, _ALPHA = 0, 2


def directories(
    raster: Raster,
    tiles: Sequence[NDArray[Any]],
    offsets: Sequence[NDArray[np.uint64]],
    statistics: Sequence[Statistics],
) -> tuple[Directory, ...]:
    """Return the directories of a file.

    Parameters
    ----------
    tiles
        For each level the sizes of its tiles, fields ``size`` and ``mask_size``.
    offsets
        For each level the positions of the tiles' records in the file, in bytes.
    statistics
        Of each band.
    """
    described = (*raster.geotags, metadata_tag(dict(raster.tags), raster.bands, statistics))
    out: list[Directory] = []
    for level, (index, start) in enumerate(zip(tiles, offsets, strict=True)):
        tags = _image_tags(raster, level) + (described if level == 0 else ())
        positions, sizes = start + np.uint64(RECORD_OVERHEAD // 2), index["size"].astype(np.uint64)
        out.append(Directory(tags, positions.ravel(), sizes.ravel()))
        if raster.mask:
            positions = positions + sizes + np.uint64(RECORD_OVERHEAD)
            out.append(
                Directory(_mask_tags(raster, level), positions.ravel(), index["mask_size"].astype(np.uint64).ravel())
            )
    return tuple(out)


def _common_tags(raster: Raster, level: int, kind: int) -> tuple[Tag, ...]:
    rows, columns = raster.levels[level]
    return (
        Tag(254, LONG, kind | (_OVERVIEW if level else 0)),
        Tag(256, LONG, columns),
        Tag(257, LONG, rows),
        Tag(284, SHORT, 1),
        Tag(322, SHORT, raster.block),
        Tag(323, SHORT, raster.block),
    )


def _image_tags(raster: Raster, level: int) -> tuple[Tag, ...]:
    samples, options = raster.samples, raster.options
    photometric, extra = _colours(raster)
    tags = (
        Tag(258, SHORT, (raster.dtype.itemsize * 8,) * samples),
        Tag(259, SHORT, _COMPRESSION[options.compress]),
        Tag(262, SHORT, photometric),
        Tag(277, SHORT, samples),
        Tag(339, SHORT, (_SAMPLE_FORMAT[raster.dtype.kind],) * samples),
        *nodata_tag(None if raster.mask or raster.alpha else raster.nodata),
    )
    if options.predictor != 1:
        tags += (Tag(317, SHORT, options.predictor),)
    if extra:
        tags += (Tag(338, SHORT, extra),)
    if photometric == _YCBCR:
        tags += (Tag(530, SHORT, (2, 2)),)
    return _common_tags(raster, level, 0) + tags


def _colours(raster: Raster) -> tuple[int, tuple[int, ...]]:
    """Return the photometric interpretation, and what the samples beyond its colours are."""
    if raster.options.compress == "jpeg" and raster.samples == 3:
        return _YCBCR, ()
    if raster.dtype == np.uint8 and len(raster.bands) == 3:
        return _RGB, (_ALPHA,) * raster.alpha
    return _GRAY, (_UNSPECIFIED,) * (raster.samples - 1)


def _mask_tags(raster: Raster, level: int) -> tuple[Tag, ...]:
    facts = {258: 1, 259: _COMPRESSION["deflate"], 262: _TRANSPARENCY, 277: 1, 339: 1}
    return _common_tags(raster, level, _MASK) + tuple(Tag(code, SHORT, value) for code, value in facts.items())
