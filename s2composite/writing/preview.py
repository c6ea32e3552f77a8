"""Previews: the first three bands of a composite stretched to 8 bits."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.writing.layers import Layer, layer_of, raster_layers
from s2composite.writing.overviews import valid_pixels

__all__ = ["default_stretch", "rgba_layer", "stretched"]


def default_stretch(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the values that become the darkest and the brightest: reflectance up to 0.3, or pictures as they are."""
    if dtype == np.uint8:
        return (0.0, 255.0)
    return (0.0, 0.3) if dtype.kind == "f" else (0.0, 3000.0)


def stretched(pixels: NDArray[Any], nodata: float | None, stretch: tuple[float, float]) -> NDArray[np.uint8]:
    """Return pixels ``(b, y, x)`` as 1 to 255, 0 where any band has no value."""
    low, high = stretch
    scaled = (pixels.astype(np.float32) - low) * np.float32(255 / (high - low))
    valid = valid_pixels(pixels, nodata)
    out = np.clip(np.nan_to_num(np.round(scaled)), 1, 255).astype(np.uint8)
    return out if valid is None else np.where(valid.all(axis=0), out, np.uint8(0))


def rgba_layer(dataset: xr.Dataset, stretch: tuple[float, float] | None = None) -> Layer:
    """Return a preview in 8 bits of the first three bands (or the only one, three times) of a composite, lazily.

    Raises
    ------
    ParameterError
        There is no layer with bands, or the stretch is empty.
    """
    bands = [name for name in raster_layers(dataset) if dataset[name].ndim == 3]
    if not bands:
        raise ParameterError("there is no layer with bands to make an 'rgba' preview of")
    layer = layer_of(dataset, "composite" if "composite" in bands else bands[0])
    low, high = stretch or default_stretch(layer.data.dtype)
    if not low < high:
        raise ParameterError(f"stretch is ({low}, {high}); it is a darkest and a brightest value, in this order")
    first = layer.data[:3] if layer.data.shape[0] >= 3 else da.repeat(layer.data[:1], 3, axis=0)
    data = first.rechunk({0: -1}).map_blocks(stretched, layer.nodata, (low, high), dtype=np.uint8)
    attrs = {"long_name": f"preview, {low:g} to {high:g}", "overviews": "average"}
    return Layer("rgba", data, ("red", "green", "blue"), 0.0, attrs, layer.lazy)
