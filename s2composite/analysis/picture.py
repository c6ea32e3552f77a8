"""What a picture is made of: a few of a composite's pixels, in memory, as colours. No matplotlib here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from s2composite.array_values import missing_value_of
from s2composite.composed import Composed
from s2composite.cube import stack_of, to_cube
from s2composite.errors import ParameterError
from s2composite.georeference import north_up
from s2composite.pixels.stretching import colour_bands
from s2composite.scenes.periods import period_title

__all__ = [
    "bands_of",
    "cloudy_scene",
    "decimated",
    "heading",
    "layer_of",
    "layers_of",
    "observed",
    "one_scene",
    "period_titles",
    "scene_position",
    "values_of",
    "with_count",
]

_SIDE = 1500
"""Pixels along the longer side that a picture is drawn from; a figure has fewer."""

_CURE = {
    True: "Draw all periods with plot.periods(), or one with .period(label).plot()",
    False: "Choose with .isel() or .sel()",
}

_MEANT = {"count": "valid observations"}
"""Layers whose names say too little."""

_SAMPLE = 512
"""Side of the window in the middle of a cube in which scenes are compared to find a cloudy one."""


def layers_of(composite: Composed | xr.Dataset) -> xr.Dataset:
    """Return the layers of a composite, which may also come as they are, with north at the top."""
    return north_up(composite if isinstance(composite, xr.Dataset) else composite.dataset)


def layer_of(dataset: xr.Dataset, name: str, dims: tuple[str, ...]) -> xr.DataArray:
    """Return a variable of a dataset after a look at its dimensions."""
    if name not in dataset:
        raise ParameterError(f"there is no layer {name!r} to draw; there are {', '.join(map(str, dataset.data_vars))}")
    array = dataset[name]
    if set(array.dims) != set(dims):
        raise ParameterError(
            f"{name} has dimensions {array.dims}; a picture needs {dims}. {_CURE['time' in array.dims]}"
        )
    return array.transpose(*dims)


def heading(dataset: xr.Dataset, layer: str = "composite", bands: Sequence[Any] = ()) -> str:
    """Return what a picture is of: reducer or layer, bands, and the period or the dates of the scenes."""
    name = str(dataset.attrs.get("reducer", layer)) if layer == "composite" else layer
    what = _MEANT.get(name, name).replace("_", " ") + (f", {', '.join(map(str, bands))}" if len(bands) else "")
    if "period" in dataset.coords and dataset["period"].ndim == 0:
        return f"{what}\n{period_title(str(dataset['period'].item()))}"
    if "scene_time" not in dataset.coords or not np.issubdtype(dataset["scene_time"].dtype, np.datetime64):
        return what
    days = np.datetime_as_string(np.sort(dataset["scene_time"].values)[[0, -1]], unit="D")
    return f"{what}\n{dataset.sizes['scene']} scenes, {' to '.join(dict.fromkeys(days.tolist()))}"


def period_titles(dataset: xr.Dataset) -> list[str]:
    """Return what people call the periods along ``time``; where there are none, the labels of that dimension."""
    if "period" in dataset.coords:
        return [period_title(str(label)) for label in dataset["period"].values]
    return [str(label) for label in dataset["time"].values]


def bands_of(array: xr.DataArray, bands: Sequence[Any] | None) -> xr.DataArray:
    """Return the three bands, or the one, to draw."""
    there = list(array["band"].values) if "band" in array.coords else list(range(array.sizes["band"]))
    if bands is None:
        return array.isel(band=colour_bands(there))
    if len(bands) not in (1, 3) or not all(band in there for band in bands):
        raise ParameterError(f"bands={list(bands)!r}; choose one or three of {[str(name) for name in there]}")
    return array.isel(band=[there.index(band) for band in bands])


def with_count(array: xr.DataArray, dataset: xr.Dataset) -> xr.Dataset:
    """Return a layer together with the count, which says where it has data."""
    name = str(array.name)
    layers = {name: array, "count": dataset["count"]} if "count" in dataset else {name: array}
    return xr.Dataset(layers)


def decimated(dataset: xr.Dataset, side: int = _SIDE) -> xr.Dataset:
    """Return every n-th row and column, so that no side has more pixels, in memory, all layers in one pass."""
    step = max(1, -(-max(dataset.sizes["y"], dataset.sizes["x"]) // side))
    return dataset.isel(y=slice(None, None, step), x=slice(None, None, step)).compute()


def values_of(shown: xr.Dataset, layer: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the pixels of a layer ``(band, y, x)``, and where there is data ``(y, x)``."""
    array = shown[layer].transpose("band", "y", "x")
    if "count" in shown:
        return array.values, np.isfinite(array.values).all(0) & (shown["count"].values > 0)
    values, valid = observed(array)
    return values, np.isfinite(values).all(0) & valid.any(0)


def observed(array: xr.DataArray) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the values of an array in memory, and which of them are data; integers declare nodata, or it is 0."""
    missing = missing_value_of(array).known()
    values = missing.with_nan(array).values
    nodata = 0 if missing.nodata is None and not missing.derived else missing.nodata
    return values, np.isfinite(values) if nodata is None else np.isfinite(values) & (values != nodata)


def cloudy_scene(cube: xr.DataArray) -> int:
    """Return the position of the scene that shows best what a composite is for: clouds, and the land between them.

    In a window in the middle, brightness is compared with each pixel's median over time. The ratio varies most where a
    scene is partly cloudy; it varies little under a clear sky, haze or a closed cover. Missing parts count against it.
    """
    rows, columns = (_middle(cube.sizes[dim]) for dim in ("y", "x"))
    found = stack_of(cube)
    window = cube.isel(y=rows, x=columns)
    if found:
        window = window.copy(data=found[0].read((rows, columns)).pixels)
    pixels, there = observed(window[:, :, ::2, ::2].compute())
    brightness = np.where(there.all(1), pixels.sum(1, dtype=np.float64), np.nan)
    seen = np.isfinite(brightness)
    if not seen.any():
        return 0
    with np.errstate(invalid="ignore", divide="ignore"):  # reflectances can be 0 or below
        ratio = np.log(brightness[:, seen.any(0)] / np.nanmedian(brightness[:, seen.any(0)], axis=0))
    spread = [row[np.isfinite(row)].std() if np.isfinite(row).any() else 0 for row in ratio]
    return int(np.argmax(np.array(spread) * seen.mean((1, 2))))


def _middle(n: int) -> slice:
    start = max(0, (n - _SAMPLE) // 2)
    return slice(start, min(n, start + _SAMPLE))


def one_scene(cube: xr.DataArray, position: int) -> xr.DataArray:
    """Return a scene ``(band, y, x)``, so that reading it does not read the others."""
    one = cube.isel(time=[position])
    found = stack_of(one)
    whole = to_cube(found[0]) if found else one
    return bands_of(whole.isel(time=0), None)


def scene_position(cube: xr.DataArray, scene: int | str) -> int:
    """Return the position of a scene given by its position, also from the end, or its name."""
    times = cube.sizes["time"]
    if isinstance(scene, str):
        names = [str(name) for name in cube["scene"].values] if "scene" in cube.coords else []
        if scene not in names:
            raise ParameterError(f"the cube has no scene {scene!r}; it has {times}, such as {names[:3]}")
        return names.index(scene)
    if not -times <= scene < times:
        raise ParameterError(f"the cube has {times} scenes, there is no scene {scene}")
    return scene % times
