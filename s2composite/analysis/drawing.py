"""How pictures are drawn: axes, extents, colours. No display is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from numpy.typing import NDArray

from s2composite.analysis.picture import bands_of, decimated, layer_of, values_of, with_count
from s2composite.errors import ParameterError

__all__ = ["axes_or_new", "colours_of", "days_of_scenes", "draw", "figure_or_new"]


def colours_of(
    dataset: xr.Dataset, layer: str, bands: Sequence[Any] | None
) -> tuple[xr.Dataset, NDArray[Any], NDArray[np.bool_]]:
    """Return what is drawn of a layer: with its coordinates, its pixels ``(band, y, x)``, and where it has data."""
    shown = decimated(with_count(bands_of(layer_of(dataset, layer, ("band", "y", "x")), bands), dataset))
    values, valid = values_of(shown, layer)
    if not valid.any():
        raise ParameterError(f"{layer} has no data in any pixel; look at count: do the rules leave any observation?")
    return shown, values, valid


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
    ax.set_facecolor("0.8")  # what is transparent must not look like a cloud
    ax.imshow(picture, extent=extent, interpolation="nearest", **options)
    ax.set(title=title, xlabel=_label(shown, "x"), ylabel=_label(shown, "y"))
    ax.ticklabel_format(style="plain", useOffset=False)
    ax.tick_params(axis="x", labelrotation=45)
    return ax


def _edges(centres: NDArray[Any]) -> tuple[float, float]:
    """Return where the first pixel begins and the last one ends."""
    half = (centres[-1] - centres[0]) / max(len(centres) - 1, 1) / 2 or 0.5
    return float(centres[0] - half), float(centres[-1] + half)


def _label(shown: xr.Dataset, dim: str) -> str:
    units = shown[dim].attrs.get("units", "") if dim in shown.coords else "pixels"
    return f"{dim} ({units})" if units else dim


def axes_or_new(ax: Axes | None, size: tuple[float, float] = (8, 7)) -> Axes:
    """Return axes, those of a new figure of a size in inches if there are none."""
    return figure_or_new(None, size).subplots() if ax is None else ax


def figure_or_new(figure: Figure | None, size: tuple[float, float]) -> Figure:
    """Return a figure, a new one of a size in inches if there is none."""
    return plt.figure(figsize=size, layout="constrained") if figure is None else figure
