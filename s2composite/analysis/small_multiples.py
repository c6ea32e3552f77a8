"""Small multiples: all periods of a composite side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from s2composite.analysis.drawing import draw, figure_or_new, map_size, scale_beside
from s2composite.analysis.picture import (
    bands_of,
    decimated,
    heading,
    layer_of,
    layers_of,
    observed,
    period_titles,
    values_of,
    with_count,
)
from s2composite.composed import Composed
from s2composite.errors import ParameterError
from s2composite.pixels.stretching import Stretch, limits_of_each, painted

__all__ = ["periods"]

_PANEL = 3.0
"""Inches of the longer side of a panel."""


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
        A composite with periods, or its layers.
    layer : str, default "composite"
        ``"composite"`` or another with bands; ``"count"`` or another without.
    bands : sequence of str, optional
        Three names for red, green and blue, or one. Default: those named red, green, blue or B04, B03, B02, else the
        first three.
    stretch : str or pair of float or sequence of pairs, optional
        The values shown black and white, such a pair for each band, or percentiles: ``"1-99%"``, ``"1-99% per band"``.
        Percentiles, and so the default, are those of each period, so that a summer can be seen beside a winter with
        snow. ``"common"``, or ``"1-99% common"``: those of all periods together, so that their brightness can be
        compared.
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
    figure = figure_or_new(figure, (width * across + 1, (height + 0.3) * down + 0.6))
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
    chosen = bands_of(layer_of(dataset, layer, ("time", "band", "y", "x")), bands)
    shown = decimated(with_count(chosen, dataset))
    found = [values_of(shown.isel(time=t), layer) for t in range(shown.sizes["time"])]
    if not any(seen.any() for _, seen in found):
        raise ParameterError(f"{layer} has no data in any period; look at count: do the rules leave any observation?")
    limits = limits_of_each(found, stretch)
    same = all(np.array_equal(ends, limits[0]) for ends in limits)
    for ax, (one, seen), ends in zip(axes, found, limits, strict=False):
        draw(ax, painted(one, seen, ends), shown, "")
        if len(one) == 1 and seen.any() and not same:
            scale_beside(ax, ScalarMappable(Normalize(*ends[0]), "gray"))
    if chosen.sizes["band"] == 1 and same:
        scale_beside(axes[0], ScalarMappable(Normalize(*limits[0][0]), "gray"), of=axes)
    return [not seen.any() for _, seen in found]


def _numbers(dataset: xr.Dataset, layer: str, bands: Any, stretch: Stretch | None, axes: list[Axes]) -> list[bool]:
    """Draw numbers on one scale; return which periods are empty."""
    if bands is not None or stretch is not None:
        raise ParameterError(f"{layer} has no bands to choose or stretch")
    shown = decimated(layer_of(dataset, layer, ("time", "y", "x")).to_dataset(name=layer))
    values, valid = observed(shown[layer])
    if layer == "count":
        valid &= values > 0  # as where the composite has no data
    if not valid.any():
        raise ParameterError(f"{layer} has no data in any period, there is nothing to draw")
    scale = {"vmin": min(0, values[valid].min()), "vmax": values[valid].max(), "cmap": "viridis"}
    for ax, one, seen in zip(axes, values, valid, strict=False):
        draw(ax, np.ma.masked_where(~seen, one), shown, "", **scale)
    ticks = MaxNLocator(integer=np.issubdtype(values.dtype, np.integer))
    scale_beside(axes[0], axes[0].images[0], of=axes, ticks=ticks)
    return [not seen.any() for seen in valid]
