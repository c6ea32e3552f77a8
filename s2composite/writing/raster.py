"""Raster: all that is known about an output file before its pixels are. It travels to the workers once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.scenes.storage import display
from s2composite.writing.codec import Codec
from s2composite.writing.options import RasterOptions
from s2composite.writing.overviews import halve, level_shapes, valid_pixels
from s2composite.writing.parts import Parts
from s2composite.writing.tiff import Tag

__all__ = ["Band", "Raster"]

_OVERVIEW_LIMIT = 512
"""Pixels into which the smallest overview fits; validators want overviews beyond that."""


@dataclass(frozen=True, slots=True)
class Band:
    """One band of a file."""

    name: str
    """Shown by GDAL and QGIS as its description."""

    layer: str
    """The layer it comes from."""

    method: str
    """How its overviews are made: ``average``, ``nearest`` or ``mode``."""

    nodata: float | None = None
    """Nodata value of the layer; that of the file may differ if layers disagree."""

    long_name: str = ""
    """In words."""

    units: str = ""
    """Unit of its values."""

    scale: float | None = None
    """Factor from stored to physical values."""

    offset: float | None = None
    """Added to scaled values."""


@dataclass(frozen=True, eq=False)
class Raster:
    """One output file: what the workers, the assembler and the verification agree on."""

    path: str
    """Final name: an absolute path or a URL."""

    token: str
    """Different for each file and attempt: Dask must never take the tasks of an earlier one for done."""

    parts: Parts
    """Where encoded tiles lie until the file is assembled."""

    bands: tuple[Band, ...]
    """In the order of the file."""

    shape: tuple[int, int]
    """Rows, columns."""

    dtype: np.dtype[Any]
    """Of all bands."""

    nodata: float | None
    """Nodata value of the file."""

    geobox: GeoBox | None
    """Pixel grid; None: not georeferenced."""

    options: RasterOptions
    """Checked, with the predictor decided."""

    mask: bool = False
    """Whether missing pixels are marked in a mask instead of by nodata."""

    alpha: bool = False
    """Whether a last band is added, 255 where there is a value and 0 elsewhere."""

    tags: tuple[tuple[str, str], ...] = ()
    """Facts for GDAL's metadata."""

    geotags: tuple[Tag, ...] = ()
    """Transform and CRS, as tags."""

    @property
    def label(self) -> str:
        """Return the final name as messages show it."""
        return display(self.path)

    @cached_property
    def block(self) -> int:
        """Side of a tile in pixels: smaller than asked for where the whole raster is."""
        return min(self.options.blocksize, -(-max(self.shape) // 16) * 16)

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the full resolution and each overview."""
        return level_shapes(self.shape, min(self.block, _OVERVIEW_LIMIT))

    @property
    def samples(self) -> int:
        """Number of bands in the file."""
        return len(self.bands) + self.alpha

    @cached_property
    def codec(self) -> Codec:
        """Encoder of tiles."""
        return Codec(self.options, (self.block, self.block, self.samples), self.dtype)

    def grid(self, level: int) -> tuple[int, int]:
        """Return the number of rows and columns of tiles of a level."""
        rows, columns = self.levels[level]
        return -(-rows // self.block), -(-columns // self.block)

    def halved(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return ``(b, y, x)`` at half the resolution, each band in its own way."""
        runs = [(method, len(list(run))) for method, run in groupby(band.method for band in self.bands)]
        if len(runs) == 1:
            return halve(pixels, runs[0][0], self.nodata)
        stops = np.cumsum([n for _, n in runs])
        return np.concatenate(
            [halve(pixels[stop - n : stop], method, self.nodata) for (method, n), stop in zip(runs, stops, strict=True)]
        )

    def valid(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where any band of ``(b, y, x)`` has a value."""
        valid = valid_pixels(pixels, self.nodata)
        return np.ones(pixels.shape[1:], np.bool_) if valid is None else np.asarray(valid.any(axis=0))
