"""Plots of composites with matplotlib: layers, small multiples of periods, the timeline of scenes.

The functions take a composite or the Dataset of its layers, and are the methods of ``comp.plot``. Pictures are drawn
from at most 1500 pixels a side. No display is needed.
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
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, DateFormatter, num2date
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from s2composite.analysis.picture import (
    cloudy_scene,
    days_of_scenes,
    decimated,
    draw,
    heading,
    layer_of,
    layers_of,
    map_or_new,
    map_size,
    new_figure,
    observed,
    one_scene,
    panels_of,
    period_titles,
    scale_beside,
    scene_position,
    sources_of,
    values_of,
)
from s2composite.cube.result import Composed, coarser
from s2composite.cube.screening import valid_share
from s2composite.errors import ParameterError
from s2composite.pixels.masks import Rule
from s2composite.pixels.stretch import Stretch, limits, limits_of_each, painted

__all__ = ["Plots", "before_after", "periods", "plot_composite", "plot_count", "plot_date", "timeline"]

_PANEL = 3.0  # inches of the longer side of a panel
_LEGEND = 12  # dates up to which each gets a colour of its own; more share a continuous scale


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
        The composite, or its layers; ``comp.plot(...)`` is this function for `comp`.
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
    >>> cube = xr.DataArray(np.full((2, 3, 64, 64), 90, "uint8"), dims=("time", "band", "y", "x"))
    >>> ax = s2c.composite(cube).plot(stretch="1-99%")
    """
    dataset = layers_of(composite)
    shown, ((values, valid),) = panels_of(dataset, layer, bands)
    ends = limits(values, valid, stretch)
    ax = map_or_new(ax, shown[layer])
    names = shown["band"].values.tolist() if bands is not None or len(values) == 1 else ()
    draw(ax, painted(values, valid, ends), shown[layer], heading(dataset, layer, names))
    if len(values) == 1:
        scale_beside(ax, ScalarMappable(Normalize(*ends[0]), "gray"))
    return ax


def plot_count(composite: Composed | xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the number of valid observations of each pixel; without any it is transparent, as in the composite.

    Parameters
    ----------
    composite : Composite or xarray.Dataset
        The composite, or its layers; ``comp.plot.count(...)`` is this function for `comp`.
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
    >>> cube = xr.DataArray(np.full((2, 3, 64, 64), 90, "uint8"), dims=("time", "band", "y", "x"))
    >>> ax = s2c.composite(cube).plot.count()
    """
    dataset = layers_of(composite)
    shown = decimated(layer_of(dataset, "count", ("y", "x")))
    count = shown.values
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
        The composite, or its layers; ``comp.plot.date(...)`` is this function for `comp`.
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
    dataset = layers_of(composite)
    shown = sources_of(dataset)
    days = days_of_scenes(dataset)
    source = shown.values
    dates = np.unique(days[source[source >= 0]])
    ax = map_or_new(ax, shown)
    if len(dates) <= _LEGEND:
        colours = mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(dates)))
        rank = np.where(source >= 0, np.searchsorted(dates, days[source]), np.nan)
        draw(ax, rank, shown, "date of the observation", cmap=ListedColormap(colours), vmin=-0.5, vmax=len(dates) - 0.5)
        shares = np.bincount(rank[np.isfinite(rank)].astype(int)) / np.isfinite(rank).sum()
        labels = [f"{num2date(day):%Y-%m-%d}  {share:.0%}" for day, share in zip(dates, shares, strict=True)]
        patches = [Patch(color=colour, label=label) for colour, label in zip(colours, labels, strict=True)]
        ax.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)
    else:
        day = np.where(source >= 0, days[source], np.nan)
        draw(ax, day, shown, "date of the observation", cmap="turbo")
        bar = scale_beside(ax, ax.images[-1], location="right", ticks=AutoDateLocator(maxticks=8))
        bar.ax.yaxis.set_major_formatter(DateFormatter("%Y-%m-%d"))
    return ax


def before_after(
    cube: xr.DataArray,
    composite: Composed | xr.Dataset,
    scene: int | str | None = None,
    *,
    stretch: Stretch | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw one cloudy scene, the composite, and its number of observations; options as of `Plots.before_after`."""
    dataset = layers_of(composite)
    position = cloudy_scene(cube) if scene is None else scene_position(cube, scene)
    shown, ((values, valid),) = panels_of(dataset, "composite", None)
    ends = limits(values, valid, stretch)
    before = decimated(one_scene(cube, position))
    width, height = map_size(shown, 4.0)
    figure = new_figure(3 * width + 2, height + 1.5) if figure is None else figure
    axes = figure.subplots(1, 3)
    time = cube["time"].values[position]
    title = f"one scene, {str(time)[:10] if isinstance(time, np.datetime64) else time}"
    draw(axes[0], painted(*values_of(before), ends), before, title)
    draw(axes[1], painted(values, valid, ends), shown["composite"], heading(dataset))
    plot_count(shown, ax=axes[2])
    for ax in axes[1:]:
        ax.set_ylabel("")
        ax.tick_params(labelleft=False)
    return figure


def timeline(
    composite: Composed | xr.Dataset,
    cube: xr.DataArray | None = None,
    *,
    valid: Rule | xr.DataArray | Sequence[Rule | xr.DataArray] | None = None,
    resolution: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw, for each scene at its date, the share of the composite's pixels that come from it, and what it shows.

    A composite without ``source``, such as a geomedian, takes no pixel from a single scene: of it, what the scenes of
    the `cube` show is drawn.

    Parameters
    ----------
    composite : Composite or xarray.Dataset
        The composite, or its layers; ``comp.plot.timeline(...)`` is this function for `comp`.
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
    dataset = layers_of(composite)
    days = days_of_scenes(dataset)
    if cube is None or "source" in dataset:
        source = sources_of(dataset).values
        share = np.bincount(source[source >= 0], minlength=len(days)) / (source >= 0).sum() * 100
        what, *_ = heading(dataset).splitlines()
        title = f"{what}: pixels of {np.count_nonzero(share)} of {len(days)} scenes"
    else:
        share, title = None, f"what {len(days)} scenes show of the area"
    shown = None
    if cube is not None:
        if not np.array_equal(cube["time"].values, dataset["scene_time"].values):
            raise ParameterError(
                f"the cube has {cube.sizes['time']} scenes and the composite {dataset.sizes['scene']}, not the same "
                "ones; give the cube it was made of"
            )
        shown = np.asarray(valid_share(coarser(cube, resolution), valid)["valid"].compute() * 100, np.float64)
    ax = new_figure(11, 4.5).subplots() if ax is None else ax
    width = float(np.clip(400 / len(days), 1.5, 14))
    if shown is not None:
        ax.vlines(days, 0, shown, linewidth=width, color="0.75", label="valid in the scene, % of the area")
    if share is not None:
        label = "taken for the composite, % of its pixels"
        ax.vlines(days, 0, share, linewidth=width / 2, color="tab:green", label=label)
    ax.plot(days, np.zeros_like(days), "|", color="0.3")
    locator = AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    ax.set(ylabel="share of pixels (%)", title=title, ylim=(0, None if shown is None else 102))
    if shown is not None:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    return ax


def periods(
    composite: Composed | xr.Dataset,
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
    composite : Composite or xarray.Dataset
        The composite, or its layers; ``comp.plot.periods(...)`` is this function for `comp`.
    layer : str, default "composite"
        ``"composite"`` or another with bands; ``"count"`` or another without.
    bands : sequence of str, optional
        Three names for red, green and blue, or one, as for `plot_composite`.
    stretch : str or pair of float or sequence of pairs, optional
        As for `plot_composite`. Percentiles, and so the default, are those of each period, so that a summer can be
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
    dataset = layers_of(composite)
    if "time" not in dataset.dims or "period" not in dataset.coords:
        raise ParameterError("the composite has no periods; make it with period=, or draw it with plot()")
    if columns < 1:
        raise ParameterError(f"columns={columns}; give 1 or more")
    labels = period_titles(dataset)
    across = min(columns, len(labels))
    down = -(-len(labels) // across)
    width, height = map_size(dataset, _PANEL)
    figure = new_figure(width * across + 1, (height + 0.3) * down + 0.6) if figure is None else figure
    figure.suptitle(heading(dataset, layer, bands or ()))
    axes = figure.subplots(down, across, squeeze=False).ravel().tolist()
    draw_all = _pictures if layer in dataset and "band" in dataset[layer].dims else _numbers
    empty = draw_all(dataset, layer, bands, stretch, axes)
    for ax, label, nothing in zip(axes, labels, empty, strict=False):
        ax.set(title=label, xlabel="", ylabel="", xticks=[], yticks=[])
        if nothing:
            ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color="0.3")
    for ax in axes[len(labels) :]:
        ax.remove()
    return figure


def _pictures(dataset: xr.Dataset, layer: str, bands: Any, stretch: Stretch | None, axes: list[Axes]) -> list[bool]:
    """Draw colours; return which periods are empty."""
    shown, panels = panels_of(dataset, layer, bands, periodic=True)
    limits = limits_of_each(panels, stretch)
    same = all(np.array_equal(ends, limits[0]) for ends in limits)
    for ax, (one, seen), ends in zip(axes, panels, limits, strict=False):
        draw(ax, painted(one, seen, ends), shown[layer], "")
        if len(one) == 1 and seen.any() and not same:
            scale_beside(ax, ScalarMappable(Normalize(*ends[0]), "gray"))
    if shown.sizes["band"] == 1 and same:
        scale_beside(axes[0], ScalarMappable(Normalize(*limits[0][0]), "gray"), of=axes)
    return [not seen.any() for _, seen in panels]


def _numbers(dataset: xr.Dataset, layer: str, bands: Any, stretch: Stretch | None, axes: list[Axes]) -> list[bool]:
    """Draw numbers on one scale; return which periods are empty."""
    if bands is not None or stretch is not None:
        raise ParameterError(f"{layer} has no bands to choose or stretch")
    shown = decimated(layer_of(dataset, layer, ("time", "y", "x")))
    values, valid = observed(shown)
    if layer == "count":
        valid &= values > 0  # as where the composite has no data
    if not valid.any():
        raise ParameterError(f"{layer} has no data in any period, there is nothing to draw")
    low, high = min(0, values[valid].min()), values[valid].max()
    for ax, one, seen in zip(axes, values, valid, strict=False):
        draw(ax, np.ma.masked_where(~seen, one), shown, "", cmap="viridis", vmin=low, vmax=high)
    ticks = MaxNLocator(integer=np.issubdtype(values.dtype, np.integer))
    scale_beside(axes[0], axes[0].images[0], of=axes, ticks=ticks)
    return [not seen.any() for seen in valid]


@dataclass(frozen=True)
class Plots:
    """The pictures of one composite, ``comp.plot()``, ``comp.plot.count()`` ...: the functions of this module."""

    dataset: xr.Dataset
    """The layers of a composite."""

    __call__ = plot_composite
    count = plot_count
    date = plot_date
    timeline = timeline
    periods = periods

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
