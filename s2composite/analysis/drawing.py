"""How pictures are drawn: axes, extents, colours. No display is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from s2composite.analysis.picture import bands_of, decimated, layer_of, values_of, with_count
from s2composite.errors import ParameterError
from s2composite.georeference import crs_of
from s2composite.pixels.stretching import NO_DATA_COLOUR

__all__ = [
    "PlotFigure",
    "axes_or_new",
    "colours_of",
    "days_of_scenes",
    "draw",
    "figure_or_new",
    "map_or_new",
    "map_size",
    "scale_beside",
    "sources_of",
]


def colours_of(
    dataset: xr.Dataset, layer: str, bands: Sequence[Any] | None
) -> tuple[xr.Dataset, NDArray[Any], NDArray[np.bool_]]:
    """Return what is drawn of a layer: with its coordinates, its pixels ``(band, y, x)``, and where it has data."""
    shown = decimated(with_count(bands_of(layer_of(dataset, layer, ("band", "y", "x")), bands), dataset))
    values, valid = values_of(shown, layer)
    if not valid.any():
        raise ParameterError(f"{layer} has no data in any pixel; look at count: do the rules leave any observation?")
    return shown, values, valid


def sources_of(dataset: xr.Dataset) -> xr.DataArray:
    """Return which scene each pixel comes from, of every n-th pixel."""
    if "source" not in dataset:
        name = dataset.attrs.get("reducer", "the composite")
        raise ParameterError(
            f"there is no layer 'source': {name} makes a pixel of several scenes, so it has no date. medoid, "
            "luminance_median and latest, which take one, have it, and plot.timeline(cube) shows what each scene shows"
        )
    source = decimated(layer_of(dataset, "source", ("y", "x")).to_dataset(name="source"))["source"]
    if (source < 0).all():
        raise ParameterError("source is -1 in every pixel: no observation was valid, there is nothing to draw")
    return source


def days_of_scenes(dataset: xr.Dataset) -> NDArray[np.float64]:
    """Return the time of each scene as matplotlib counts days."""
    if "scene_time" not in dataset.coords or not np.issubdtype(dataset["scene_time"].dtype, np.datetime64):
        raise ParameterError(
            "the composite has no coordinate scene_time with the scenes' dates; its cube's time had none"
        )
    days: NDArray[np.float64] = date2num(dataset["scene_time"].values)
    return days


def draw(ax: Axes, picture: NDArray[Any], shown: xr.Dataset, title: str, **options: Any) -> Axes:
    """Draw a picture with the coordinates of its pixels."""
    x, y = (_edges(shown[dim].values) if dim in shown.coords else (0, shown.sizes[dim]) for dim in ("x", "y"))
    extent = (x[0], x[1], y[1], y[0]) if "y" in shown.coords else (0, x[1], y[1], 0)
    ax.set_facecolor(NO_DATA_COLOUR)
    ax.imshow(picture, extent=extent, interpolation="nearest", **options)
    ax.set(title=title, xlabel=_label(shown, "x"), ylabel=_label(shown, "y"))
    ax.ticklabel_format(style="plain", useOffset=False)
    high, wide = abs(y[1] - y[0]), abs(x[1] - x[0])
    # coordinates have six or seven digits: few beside each other can be read, as many as are wanted above each other
    ax.xaxis.set_major_locator(MaxNLocator(5 if high < 2 * wide else 1, prune="both"))
    ax.yaxis.set_major_locator(MaxNLocator(8 if wide < 2 * high else 2))
    return ax


def _edges(centres: NDArray[Any]) -> tuple[float, float]:
    """Return where the first pixel begins and the last one ends."""
    half = (centres[-1] - centres[0]) / max(len(centres) - 1, 1) / 2 or 0.5
    return float(centres[0] - half), float(centres[-1] + half)


_UNITS = {"metre": "m", "degrees_east": "° east", "degrees_north": "° north"}


def _label(shown: xr.Dataset, dim: str) -> str:
    if dim not in shown.coords:
        return f"{dim} (pixels)"
    units = str(shown[dim].attrs.get("units", ""))
    crs = crs_of(next(iter(shown.data_vars.values()))) if dim == "x" else None
    code = None if crs is None else crs.to_epsg()
    details = ", ".join(part for part in (_UNITS.get(units, units), f"EPSG:{code}" if code else "") if part)
    return f"{dim} ({details})" if details else dim


def scale_beside(ax: Axes, shown: Any, of: Axes | Sequence[Axes] | None = None, **options: Any) -> Colorbar:
    """Draw the scale of an image, or of whatever has colours, below it where it is wide and beside it otherwise."""
    bottom, top = sorted(ax.get_ylim())
    left, right = sorted(ax.get_xlim())
    slender = (top - bottom) / (right - left)
    below = of is None and slender < 0.5
    beside = {"location": "right", "fraction": 0.05 * max(1, slender), "pad": 0.03}
    place = {"location": "bottom", "aspect": 40} if below else beside
    return ax.figure.colorbar(shown, ax=ax if of is None else of, **{**place, **options})


def map_or_new(ax: Axes | None, shown: xr.Dataset) -> Axes:
    """Return axes, those of a new figure in the shape of what is shown if there are none."""
    width, height = map_size(shown, 7.0)
    return axes_or_new(ax, (width + 1.5, height + 1.0))


def map_size(shown: xr.Dataset, longest: float) -> tuple[float, float]:
    """Return the inches of a map whose longer side has so many; a strip is not drawn thinner than a fifth of that."""
    x, y = (_edges(shown[dim].values) if dim in shown.coords else (0, shown.sizes[dim]) for dim in ("x", "y"))
    wide, high = abs(x[1] - x[0]), abs(y[1] - y[0])
    most = max(wide, high)
    return longest * max(wide / most, 0.2), longest * max(high / most, 0.2)


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return axes, those of a new figure of a size in inches if there are none."""
    return figure_or_new(None, size).subplots() if ax is None else ax


def figure_or_new(figure: Figure | None, size: tuple[float, float]) -> Figure:
    """Return a figure, a new one of a size in inches if there is none.

    A new one is a figure of pyplot: ``plt.show()`` shows it in a script, and a notebook at the end of its cell.
    """
    if figure is not None:
        return figure
    new: Figure = plt.figure(FigureClass=PlotFigure, figsize=size, layout="compressed")
    return new


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
