"""Previews: bands of a composite stretched to 8 bits, window by window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.pixels.stretching import (
    Percentiles,
    Stretch,
    as_stretch,
    check_not_common,
    colour_bands,
    limits,
    plain_limits,
    stretched,
)
from s2composite.writing.layers import Layer, layer_of, raster_layers
from s2composite.writing.overviews import valid_pixels

__all__ = ["Preview", "picture_layer", "preview_of", "rgba_layer", "valid_everywhere"]

_SAMPLE = 1500
"""Pixels along an axis from which percentiles are taken."""


def picture_layer(dataset: xr.Dataset, name: str | None = None) -> Layer:
    """Return the bands of a layer that make a picture: red, green and blue by name, else the first three, or one.

    Parameters
    ----------
    name
        Of a layer with bands; None: the composite, else the first.

    Raises
    ------
    ParameterError
        There is no such layer.
    """
    pictures = [known for known in raster_layers(dataset) if dataset[known].ndim == 3]
    if not pictures or (name is not None and name not in pictures):
        there = ", ".join(pictures) or "none"
        raise ParameterError(f"there is no layer {name or 'with bands'!r} to make a picture of; there are {there}")
    layer = layer_of(dataset, name or ("composite" if "composite" in pictures else pictures[0]))
    chosen = colour_bands(layer.bands)
    bands = tuple(layer.bands[i] for i in chosen)
    return Layer(layer.name, layer.data[chosen], bands, layer.nodata, layer.attrs, layer.lazy)


@dataclass(frozen=True, eq=False)
class Preview:
    """How a window of a composite's layer becomes one of a picture in 8 bits."""

    layer: str
    """What it is a picture of."""

    bands: tuple[int, ...]
    """Positions of the bands that are shown: three, or one three times."""

    nodata: float | None
    """Nodata value of the layer."""

    ends: NDArray[np.float64]
    """Values shown black and white, ``(3, 2)``."""

    def paint(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Return pixels ``(b, y, x)`` of the layer as ``(3, y, x)``: 1 to 255 where they have a value, else 0."""
        shown = pixels[list(self.bands)]
        valid = valid_everywhere(shown, self.nodata)
        return np.where(valid, stretched(shown, self.ends, darkest=1), np.uint8(0))


def preview_of(dataset: xr.Dataset, stretch: Stretch | None = None) -> Preview:
    """Return how a composite becomes a preview: its bands, and the values they show black and white.

    Raises
    ------
    ParameterError
        There is no layer with bands, or the stretch is malformed or needs pixels that are not computed yet.
    """
    layer = picture_layer(dataset)
    bands = tuple(colour_bands(layer_of(dataset, layer.name).bands))
    ends = np.broadcast_to(_ends(layer, stretch), (len(bands), 2))
    return Preview(layer.name, bands if len(bands) == 3 else bands * 3, layer.nodata, np.broadcast_to(ends, (3, 2)))


def _told(ends: NDArray[np.float64]) -> NDArray[np.float64]:
    return ends[:1] if (ends == ends[0]).all() else ends


def rgba_layer(dataset: xr.Dataset, stretch: Stretch | None = None) -> Layer:
    """Return a preview in 8 bits of a composite, lazily; see `Preview`.

    Raises
    ------
    ParameterError
        As for `preview_of`.
    """
    preview = preview_of(dataset, stretch)
    layer = layer_of(dataset, preview.layer)
    words = ", ".join(f"{low:g} to {high:g}" for low, high in _told(preview.ends))
    pixels = layer.data.rechunk({0: -1})
    name = f"stretch-window-{tokenize(pixels.name, preview)}"
    data = pixels.map_blocks(preview.paint, name=name, chunks=((3,), *pixels.chunks[1:]), dtype=np.uint8)
    attrs = {"long_name": f"preview, {words}", "overviews": "average"}
    return Layer("rgba", data, ("red", "green", "blue"), 0.0, attrs, layer.lazy)


def _ends(layer: Layer, stretch: Stretch | None) -> NDArray[np.float64]:
    """Return the values shown black and white, ``(b, 2)``."""
    found = as_stretch(plain_limits(layer.data.dtype) if stretch is None else stretch)
    check_not_common(stretch, "previews in files")
    if isinstance(found, Percentiles):
        if layer.lazy:
            raise ParameterError(
                f"stretch={stretch!r} needs all pixels before the first is written; give values, or compute() first"
            )
        step = max(1, -(-max(layer.data.shape[1:]) // _SAMPLE))
        values = np.asarray(layer.data[:, ::step, ::step])
        return limits(values, valid_everywhere(values, layer.nodata), stretch)
    if len(found) not in (1, len(layer.bands)):
        raise ParameterError(f"stretch has {len(found)} pairs of values for {len(layer.bands)} band(s)")
    return found


def valid_everywhere(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Return where all bands of ``(b, y, x)`` have a value."""
    valid = valid_pixels(pixels, nodata)
    return np.ones(pixels.shape[1:], np.bool_) if valid is None else np.asarray(valid.all(axis=0))
