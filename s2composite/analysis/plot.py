"""Pictures of composites: ordinary matplotlib axes, drawn from at most 1500 pixels a side.

No display is needed. This module is imported when something is drawn, and matplotlib with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.dates import AutoDateLocator, DateFormatter, num2date
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from s2composite.analysis.drawing import (
    colours_of,
    days_of_scenes,
    draw,
    figure_or_new,
    map_or_new,
    map_size,
    scale_beside,
    sources_of,
)
from s2composite.analysis.picture import (
    cloudy_scene,
    decimated,
    heading,
    layer_of,
    layers_of,
    one_scene,
    scene_position,
    values_of,
)
from s2composite.analysis.small_multiples import periods
from s2composite.analysis.timeline import timeline
from s2composite.composed import Composed
from s2composite.errors import ParameterError
from s2composite.pixels.masks import Rule
from s2composite.pixels.stretching import Stretch, limits, painted

__all__ = ["Plots", "before_after", "periods", "plot_composite", "plot_count", "plot_date", "timeline"]

_LEGEND = 12
"""Dates up to which each gets a colour of its own; more share a continuous scale."""


@dataclass(frozen=True)
class Plots:
    """The pictures of one composite: ``comp.plot()``, ``comp.plot.count()``, ``comp.plot.date()`` ..."""

    dataset: xr.Dataset
    """The layers of a composite."""

    def __call__(
        self,
        *,
        layer: str = "composite",
        bands: Sequence[Any] | None = None,
        stretch: Stretch | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw a layer with bands as a colour picture, or in greys with a scale; without data it is transparent.

        Parameters
        ----------
        layer : str, default "composite"
            Which variable.
        bands : sequence of str, optional
            Three names for red, green and blue, or one. Default: those named red, green, blue or B04, B03, B02, else
            the first three.
        stretch : str or pair of float or sequence of pairs, optional
            The values shown black and white, such a pair for each band, or percentiles: ``"1-99%"``,
            ``"1-99% per band"``. Default: uint8 as it is; anything else between the 2nd and the 98th percentile of all
            its valid values.
        ax : matplotlib.axes.Axes, optional
            Where to draw; default: a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            With the picture; ``ax.figure.savefig("composite.png")`` writes it.

        Raises
        ------
        ParameterError
            No such layer or band, or no pixel has data.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> times = np.array(["2023-06-01", "2023-07-01"], "datetime64[ns]")
        >>> pixels = np.full((2, 3, 64, 64), 90, "uint8")
        >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"time": times})
        >>> ax = s2c.composite(cube).plot(stretch="1-99%")
        """
        return plot_composite(self.dataset, layer=layer, bands=bands, stretch=stretch, ax=ax)

    def count(self, *, ax: Axes | None = None) -> Axes:
        """Draw the number of valid observations of each pixel; without any it is transparent, as in the composite.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; default: a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            With the picture.

        Raises
        ------
        ParameterError
            There is no count, or it is 0 everywhere.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> times = np.array(["2023-06-01", "2023-07-01"], "datetime64[ns]")
        >>> pixels = np.full((2, 3, 64, 64), 90, "uint8")
        >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"time": times})
        >>> ax = s2c.composite(cube).plot.count()
        """
        return plot_count(self.dataset, ax=ax)

    def date(self, *, ax: Axes | None = None) -> Axes:
        """Draw the date of the observation that each pixel comes from; up to 12 dates have a legend with their shares.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; default: a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            With the picture.

        Raises
        ------
        ParameterError
            There is no source or no dates, or no pixel has a source.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> times = np.array(["2023-06-01", "2023-07-01"], "datetime64[ns]")
        >>> pixels = np.full((2, 3, 64, 64), 90, "uint8")
        >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"time": times})
        >>> ax = s2c.composite(cube).plot.date()
        """
        return plot_date(self.dataset, ax=ax)

    def before_after(
        self,
        cube: xr.DataArray,
        scene: int | str | None = None,
        *,
        stretch: Stretch | None = None,
        figure: Figure | None = None,
    ) -> Figure:
        """Draw one cloudy scene, the composite, and how many observations it had, side by side.

        Parameters
        ----------
        cube : xarray.DataArray
            ``(time, band, y, x)``: what the composite was made of.
        scene : int or str, optional
            Position or name of the scene. Default: the one that is most partly cloudy in the middle of the area.
        stretch : str or pair of float or sequence of pairs, optional
            The values shown black and white, in both; default as in ``comp.plot()``.
        figure : matplotlib.figure.Figure, optional
            Where to draw; default: a new figure.

        Returns
        -------
        matplotlib.figure.Figure
            With three axes.

        Raises
        ------
        ParameterError
            No such scene, or the composite has no data.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> times = np.array(["2023-06-01", "2023-07-01"], "datetime64[ns]")
        >>> pixels = np.full((2, 3, 64, 64), 90, "uint8")
        >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"time": times})
        >>> figure = s2c.composite(cube).plot.before_after(cube)
        """
        return before_after(cube, self.dataset, scene, stretch=stretch, figure=figure)

    def timeline(
        self,
        cube: xr.DataArray | None = None,
        *,
        valid: Rule | xr.DataArray | Sequence[Rule | xr.DataArray] | None = None,
        resolution: float | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw, for each scene at its date, the share of the composite's pixels that come from it, and what it shows.

        Parameters
        ----------
        cube : xarray.DataArray, optional
            What the composite was made of: the share of the area that each scene shows validly is drawn, too.
        valid : rule or DataArray of bool, or sequence of these, optional
            The rules of the composite, as for `composite`; they say which pixels of the cube count.
        resolution : float, optional
            Pixel size at which the files of a cube from `open_cube` are looked at, in units of its CRS; default: up to
            16 times coarser than the cube, but 256 pixels a side, from overviews where there are some. Other cubes are
            looked at as they are.
        ax : matplotlib.axes.Axes, optional
            Where to draw; default: a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            With the share in percent of each scene.

        Raises
        ------
        ParameterError
            There are no dates, neither source nor cube, no pixel has a source, or the cube has other scenes.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> times = np.array(["2023-06-01", "2023-07-01"], "datetime64[ns]")
        >>> pixels = np.full((2, 3, 64, 64), 90, "uint8")
        >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"time": times})
        >>> ax = s2c.composite(cube).plot.timeline(cube)
        """
        return timeline(self.dataset, cube, valid=valid, resolution=resolution, ax=ax)

    def periods(
        self,
        *,
        layer: str = "composite",
        bands: Sequence[Any] | None = None,
        stretch: Stretch | None = None,
        columns: int = 4,
        figure: Figure | None = None,
    ) -> Figure:
        """Draw each period of a composite, or how many observations each had, in one figure.

        Parameters
        ----------
        layer : str, default "composite"
            ``"composite"`` or another with bands; ``"count"`` or another without.
        bands : sequence of str, optional
            Three names for red, green and blue, or one. Default: those named red, green, blue or B04, B03, B02, else
            the first three.
        stretch : str or pair of float or sequence of pairs, optional
            The values shown black and white, such a pair for each band, or percentiles: ``"1-99%"``,
            ``"1-99% per band"``. Percentiles, and so the default, are those of each period, so that a summer can be
            seen beside a winter with snow. ``"common"``, or ``"1-99% common"``: those of all periods together, so that
            their brightness can be compared.
        columns : int, default 4
            Pictures in a row.
        figure : matplotlib.figure.Figure, optional
            Where to draw; default: a new figure.

        Returns
        -------
        matplotlib.figure.Figure
            With axes for each period; one without a value is left grey and says so.

        Raises
        ------
        ParameterError
            The composite has no periods, there is no such layer or band, or no period has data.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> times = np.array(["2023-06-01", "2023-07-01"], "datetime64[ns]")
        >>> pixels = np.full((2, 3, 64, 64), 90, "uint8")
        >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"time": times})
        >>> figure = s2c.composite(cube, period="month").plot.periods(columns=2)
        """
        return periods(self.dataset, layer=layer, bands=bands, stretch=stretch, columns=columns, figure=figure)


def plot_composite(
    composite: Composed | xr.Dataset,
    *,
    layer: str = "composite",
    bands: Sequence[Any] | None = None,
    stretch: Stretch | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a layer with bands as a colour picture, or in greys with a scale; without data it is transparent.

    Parameters
    ----------
    composite : Composite or xarray.Dataset
        A composite, or its layers: `layer` ``(band, y, x)`` and, to know where there is data, ``count`` ``(y, x)``.
    layer : str, default "composite"
        Which variable.
    bands : sequence of str, optional
        Three names for red, green and blue, or one. Default: those named red, green, blue or B04, B03, B02, else the
        first three.
    stretch : str or pair of float or sequence of pairs, optional
        The values shown black and white, such a pair for each band, or percentiles: ``"1-99%"``, ``"1-99% per band"``.
        Default: uint8 as it is; anything else between the 2nd and the 98th percentile of all its valid values.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With the picture; ``ax.figure.savefig("composite.png")`` writes it.

    Raises
    ------
    ParameterError
        No such layer or band, or no pixel has data.
    """
    dataset = layers_of(composite)
    shown, values, valid = colours_of(dataset, layer, bands)
    ends = limits(values, valid, stretch)
    ax = map_or_new(ax, shown)
    names = shown["band"].values.tolist() if bands is not None or len(values) == 1 else ()
    draw(ax, painted(values, valid, ends), shown, heading(dataset, layer, names))
    if len(values) == 1:
        scale_beside(ax, ScalarMappable(Normalize(*ends[0]), "gray"))
    return ax


def plot_count(composite: Composed | xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the number of valid observations of each pixel; without any it is transparent, as in the composite.

    Parameters
    ----------
    composite : Composite or xarray.Dataset
        A composite, or its layers: ``count`` ``(y, x)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With the picture.

    Raises
    ------
    ParameterError
        There is no count, or it is 0 everywhere.
    """
    dataset = layers_of(composite)
    shown = decimated(layer_of(dataset, "count", ("y", "x")).to_dataset(name="count"))
    count = shown["count"].values
    if not count.any():
        raise ParameterError("count is 0 in every pixel: no observation was valid, there is nothing to draw")
    ax = map_or_new(ax, shown)
    draw(ax, np.ma.masked_equal(count, 0), shown, "valid observations", vmin=0, cmap="viridis")
    scale_beside(ax, ax.images[-1], ticks=MaxNLocator(integer=True))
    return ax


def plot_date(composite: Composed | xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the date of the observation that each pixel comes from; up to 12 dates have a legend with their shares.

    Parameters
    ----------
    composite : Composite or xarray.Dataset
        A composite, or its layers: ``source`` ``(y, x)``, with the coordinate ``scene_time``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With the picture.

    Raises
    ------
    ParameterError
        There is no source or no dates, or no pixel has a source.
    """
    dataset = layers_of(composite)
    shown = sources_of(dataset).to_dataset(name="source")
    days = days_of_scenes(dataset)
    source = shown["source"].values
    found = np.unique(days[source[source >= 0]])
    ax = map_or_new(ax, shown)
    if len(found) <= _LEGEND:
        _draw_dates(ax, shown, source, days, found)
    else:
        _draw_date_scale(ax, shown, np.where(source >= 0, days[source], np.nan))
    return ax


def _draw_dates(ax: Axes, shown: xr.Dataset, source: NDArray[Any], days: NDArray[Any], found: NDArray[Any]) -> None:
    """Draw few dates, each in a colour of its own."""
    colours = mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(found)))
    rank = np.where(source >= 0, np.searchsorted(found, days[source]), np.nan)
    draw(ax, rank, shown, "date of the observation", cmap=ListedColormap(colours), vmin=-0.5, vmax=len(found) - 0.5)
    shares = np.bincount(rank[np.isfinite(rank)].astype(int)) / np.isfinite(rank).sum()
    labels = [f"{num2date(day):%Y-%m-%d}  {share:.0%}" for day, share in zip(found, shares, strict=True)]
    patches = [Patch(color=colour, label=label) for colour, label in zip(colours, labels, strict=True)]
    ax.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)


def _draw_date_scale(ax: Axes, shown: xr.Dataset, day: NDArray[Any]) -> None:
    """Draw many dates on one scale."""
    draw(ax, day, shown, "date of the observation", cmap="turbo")
    bar = scale_beside(ax, ax.images[-1], location="right", ticks=AutoDateLocator(maxticks=8))
    bar.ax.yaxis.set_major_formatter(DateFormatter("%Y-%m-%d"))


def before_after(
    cube: xr.DataArray,
    composite: Composed | xr.Dataset,
    scene: int | str | None = None,
    *,
    stretch: Stretch | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw one cloudy scene, the composite, and how many observations it had, side by side.

    Parameters
    ----------
    cube : xarray.DataArray
        ``(time, band, y, x)``: what the composite was made of.
    composite : Composite or xarray.Dataset
        A composite, or its layers.
    scene : int or str, optional
        Position or name of the scene. Default: the one that is most partly cloudy in the middle of the area.
    stretch : str or pair of float or sequence of pairs, optional
        The values shown black and white, in both; default as in `plot_composite`.
    figure : matplotlib.figure.Figure, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        With three axes.

    Raises
    ------
    ParameterError
        No such scene, or the composite has no data.
    """
    dataset = layers_of(composite)
    position = cloudy_scene(cube) if scene is None else scene_position(cube, scene)
    shown, values, valid = colours_of(dataset, "composite", None)
    ends = limits(values, valid, stretch)
    before = decimated(one_scene(cube, position).to_dataset(name="before"))
    seen, observed = values_of(before, "before")
    width, height = map_size(shown, 4.0)
    figure = figure_or_new(figure, (3 * width + 2, height + 1.5))
    axes = figure.subplots(1, 3)
    draw(axes[0], painted(seen, observed, ends), before, _title(cube, position))
    draw(axes[1], painted(values, valid, ends), shown, heading(dataset))
    plot_count(shown, ax=axes[2])
    for ax in axes[1:]:
        ax.set_ylabel("")
        ax.tick_params(labelleft=False)
    return figure


def _title(cube: xr.DataArray, position: int) -> str:
    time = cube["time"].values[position]
    return f"one scene, {str(time)[:10] if isinstance(time, np.datetime64) else time}"
