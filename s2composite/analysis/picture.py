"""A few of a composite's pixels as an array of colours, and the matplotlib axes and legends they are drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, MaxNLocator
from numpy.typing import NDArray

from s2composite.cube.array_values import missing_value_of
from s2composite.cube.georeference import crs_of, north_up
from s2composite.cube.open import stack_of, to_cube
from s2composite.cube.result import Composed
from s2composite.errors import ParameterError
from s2composite.pixels.stretch import NO_DATA_COLOUR, colour_bands
from s2composite.scenes.dates import period_title

__all__ = [
    "PlotFigure", "cloudy_scene", "days_of_scenes", "decimated", "draw", "heading", "layer_of", "layers_of",
    "map_or_new", "map_size", "new_figure", "observed", "one_scene", "panels_of", "period_titles", "scale_beside",
    "scene_position", "sources_of", "values_of",
]  # fmt: skip

_SIDE = 1500  # pixels along the longer side that a picture is drawn from; a figure has fewer
_SAMPLE = 512  # side of the window in the middle of a cube in which scenes are compared to find a cloudy one
_TITLES = {"count": "valid observations"}  # of layers whose names say too little
_UNITS = {"metre": "m", "degrees_east": "° east", "degrees_north": "° north"}

_Layers = TypeVar("_Layers", xr.Dataset, xr.DataArray)


def layers_of(composite: Composed | xr.Dataset) -> xr.Dataset:
    """Return the layers of a composite, which may also come as they are, with north at the top."""
    return north_up(composite if isinstance(composite, xr.Dataset) else composite.dataset)


def layer_of(dataset: xr.Dataset, name: str, dims: tuple[str, ...]) -> xr.DataArray:
    """Return a variable of a dataset after a look at its dimensions."""
    if name not in dataset:
        raise ParameterError(f"there is no layer {name!r} to draw; there are {', '.join(map(str, dataset.data_vars))}")
    array = dataset[name]
    if set(array.dims) != set(dims):
        cure = "Choose with .isel() or .sel()"
        if "time" in array.dims:
            cure = "Draw all periods with plot.periods(), or one with .period(label).plot()"
        raise ParameterError(f"{name} has dimensions {array.dims}; a picture needs {dims}. {cure}")
    return array.transpose(*dims)


def heading(dataset: xr.Dataset, layer: str = "composite", bands: Sequence[Any] = ()) -> str:
    """Return what a picture is of: reducer or layer, bands, and the period or the dates of the scenes."""
    name = str(dataset.attrs.get("reducer", layer)) if layer == "composite" else layer
    what = _TITLES.get(name, name).replace("_", " ") + (f", {', '.join(map(str, bands))}" if len(bands) else "")
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


def _bands_of(array: xr.DataArray, bands: Sequence[Any] | None) -> xr.DataArray:
    """Return the three bands, or the one, to draw."""
    names = list(array["band"].values) if "band" in array.coords else list(range(array.sizes["band"]))
    if bands is None:
        return array.isel(band=colour_bands(names))
    if len(bands) not in (1, 3) or not all(band in names for band in bands):
        raise ParameterError(f"bands={list(bands)!r}; choose one or three of {[str(name) for name in names]}")
    return array.isel(band=[names.index(band) for band in bands])


def panels_of(
    dataset: xr.Dataset, layer: str, bands: Sequence[Any] | None, *, periodic: bool = False, side: int = _SIDE
) -> tuple[xr.Dataset, list[tuple[NDArray[Any], NDArray[np.bool_]]]]:
    """Return what is drawn of a layer, and the `values_of` it: of each period, or of the only one."""
    dims = ("time", "band", "y", "x") if periodic else ("band", "y", "x")
    layers = {layer: _bands_of(layer_of(dataset, layer, dims), bands)}
    if "count" in dataset:  # says where there is data
        layers["count"] = dataset["count"]
    shown = decimated(xr.Dataset(layers), side)
    times = [shown.isel(time=t) for t in range(shown.sizes["time"])] if periodic else [shown]
    panels = [values_of(one[layer], one.get("count")) for one in times]
    if not any(valid.any() for _, valid in panels):
        where = "pixel of any period" if periodic else "pixel"
        raise ParameterError(f"{layer} has no data in any {where}; look at count: do the rules leave any observation?")
    return shown, panels


def decimated(layers: _Layers, side: int = _SIDE) -> _Layers:
    """Return every n-th row and column, so that no side has more pixels, in memory, all layers in one pass."""
    step = max(1, -(-max(layers.sizes["y"], layers.sizes["x"]) // side))
    return layers.isel(y=slice(None, None, step), x=slice(None, None, step)).compute()


def values_of(array: xr.DataArray, count: xr.DataArray | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the pixels of a layer ``(band, y, x)``, and where there is data ``(y, x)``, as its count says."""
    array = array.transpose("band", "y", "x")
    if count is not None:
        return array.values, np.isfinite(array.values).all(0) & (count.values > 0)
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
    starts = {dim: max(0, (cube.sizes[dim] - _SAMPLE) // 2) for dim in ("y", "x")}
    rows, columns = (slice(start, min(cube.sizes[dim], start + _SAMPLE)) for dim, start in starts.items())
    found = stack_of(cube)
    window = cube.isel(y=rows, x=columns)
    if found:
        window = window.copy(data=found[0].read((rows, columns)).pixels)
    pixels, valid = observed(window[:, :, ::2, ::2].compute())
    brightness = np.where(valid.all(1), pixels.sum(1, dtype=np.float64), np.nan)
    seen = np.isfinite(brightness)
    if not seen.any():
        return 0
    with np.errstate(invalid="ignore", divide="ignore"):  # reflectances can be 0 or below
        ratio = np.log(brightness[:, seen.any(0)] / np.nanmedian(brightness[:, seen.any(0)], axis=0))
    spread = [row[np.isfinite(row)].std() if np.isfinite(row).any() else 0 for row in ratio]
    return int(np.argmax(np.array(spread) * seen.mean((1, 2))))


def one_scene(cube: xr.DataArray, position: int) -> xr.DataArray:
    """Return a scene ``(band, y, x)``, of which alone the files are read."""
    one = cube.isel(time=[position])
    found = stack_of(one)
    whole = to_cube(found[0]) if found else one
    return _bands_of(whole.isel(time=0), None)


def scene_position(cube: xr.DataArray, scene: int | str) -> int:
    """Return the position of a scene given by its name or position, which may count from the end."""
    times = cube.sizes["time"]
    if isinstance(scene, str):
        names = [str(name) for name in cube["scene"].values] if "scene" in cube.coords else []
        if scene not in names:
            raise ParameterError(f"the cube has no scene {scene!r}; it has {times}, such as {names[:3]}")
        return names.index(scene)
    if not -times <= scene < times:
        raise ParameterError(f"the cube has {times} scenes, there is no scene {scene}")
    return scene % times


def sources_of(dataset: xr.Dataset) -> xr.DataArray:
    """Return which scene each pixel comes from, of every n-th pixel."""
    if "source" not in dataset:
        name = dataset.attrs.get("reducer", "the composite")
        raise ParameterError(
            f"there is no layer 'source': {name} makes a pixel of several scenes, so it has no date. medoid, "
            "luminance_median and latest, which take one, have it, and plot.timeline(cube) shows what each scene shows"
        )
    source = decimated(layer_of(dataset, "source", ("y", "x")))
    if (source < 0).all():
        raise ParameterError("source is -1 in every pixel: no observation was valid, there is nothing to draw")
    return source


def days_of_scenes(dataset: xr.Dataset) -> NDArray[np.float64]:
    """Return the time of each scene in days, as matplotlib counts them."""
    if "scene_time" not in dataset.coords or not np.issubdtype(dataset["scene_time"].dtype, np.datetime64):
        raise ParameterError(
            "the composite has no coordinate scene_time with the scenes' dates; its cube's time had none"
        )
    days: NDArray[np.float64] = date2num(dataset["scene_time"].values)
    return days


def draw(
    ax: Axes,
    picture: NDArray[Any],
    shown: xr.DataArray,
    title: str,
    *,
    cmap: str | Colormap | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
) -> None:
    """Draw a picture, or numbers by a scale of colours, with the coordinates of its pixels."""
    x, y = _ends(shown)
    extent = (x[0], x[1], y[1], y[0]) if "y" in shown.coords else (0, x[1], y[1], 0)
    ax.set_facecolor(NO_DATA_COLOUR)
    ax.imshow(picture, extent=extent, interpolation="nearest", cmap=cmap, vmin=vmin, vmax=vmax)
    ax.set(title=title, xlabel=_label(shown, "x"), ylabel=_label(shown, "y"))
    ax.ticklabel_format(style="plain", useOffset=False)
    high, wide = abs(y[1] - y[0]), abs(x[1] - x[0])
    # coordinates have six or seven digits: few beside each other can be read, as many as are wanted above each other
    ax.xaxis.set_major_locator(MaxNLocator(5 if high < 2 * wide else 1, prune="both"))
    ax.yaxis.set_major_locator(MaxNLocator(8 if wide < 2 * high else 2))


def _ends(shown: xr.Dataset | xr.DataArray) -> list[tuple[float, float]]:
    """Return where the first pixel begins and the last one ends, along x and along y."""
    ends = []
    for dim in ("x", "y"):
        if dim not in shown.coords:
            ends.append((0.0, float(shown.sizes[dim])))
            continue
        first, last = shown[dim].values[[0, -1]]
        half = (last - first) / max(shown.sizes[dim] - 1, 1) / 2 or 0.5
        ends.append((float(first - half), float(last + half)))
    return ends


def _label(shown: xr.DataArray, dim: str) -> str:
    if dim not in shown.coords:
        return f"{dim} (pixels)"
    units = str(shown[dim].attrs.get("units", ""))
    crs = crs_of(shown) if dim == "x" else None
    code = None if crs is None else crs.to_epsg()
    details = ", ".join(part for part in (_UNITS.get(units, units), f"EPSG:{code}" if code else "") if part)
    return f"{dim} ({details})" if details else dim


def scale_beside(
    ax: Axes,
    shown: ScalarMappable,
    of: Axes | Sequence[Axes] | None = None,
    *,
    location: str | None = None,
    ticks: Locator | None = None,
) -> Colorbar:
    """Draw the scale of an image, or of whatever has colours, below it where it is wide and beside it otherwise."""
    bottom, top = sorted(ax.get_ylim())
    left, right = sorted(ax.get_xlim())
    slender = (top - bottom) / (right - left)
    place: dict[str, Any] = {"location": "right", "fraction": 0.05 * max(1, slender), "pad": 0.03}
    if of is None and slender < 0.5:
        place = {"location": "bottom", "aspect": 40}
    if location is not None:
        place["location"] = location
    return ax.figure.colorbar(shown, ax=ax if of is None else of, ticks=ticks, **place)


def map_or_new(ax: Axes | None, shown: xr.DataArray) -> Axes:
    """Return axes, those of a new figure in the shape of what is shown if there are none."""
    width, height = map_size(shown, 7.0)
    return new_figure(width + 1.5, height + 1.0).subplots() if ax is None else ax


def map_size(shown: xr.Dataset | xr.DataArray, longest: float) -> tuple[float, float]:
    """Return the inches of a map whose longer side has so many; a strip is not drawn thinner than a fifth of that."""
    wide, high = (abs(end - begin) for begin, end in _ends(shown))
    most = max(wide, high)
    return longest * max(wide / most, 0.2), longest * max(high / most, 0.2)


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of pyplot, its size in inches: ``plt.show()`` shows it, and a notebook at the end of its cell."""
    figure: Figure = plt.figure(FigureClass=PlotFigure, figsize=(width, height), layout="compressed")
    return figure


class PlotFigure(Figure):
    """A figure that a notebook shows once, whether or not it is the last value of a cell.

    The inline backend draws all figures of pyplot at the end of a cell, also one that IPython has just displayed as the
    value of that cell.
    """

    def _ipython_display_(self) -> None:
        """Take the figure from those that the inline backend will draw, and leave displaying it to IPython."""
        if "inline" in plt.get_backend().lower():
            plt.close(self)
        raise NotImplementedError  # makes IPython go on to the other representations, as intended
