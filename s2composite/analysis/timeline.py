"""The timeline: what each scene shows of the area, and what of it went into the composite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from numpy.typing import NDArray

from s2composite.analysis.drawing import axes_or_new, days_of_scenes
from s2composite.analysis.picture import decimated, layer_of, layers_of
from s2composite.coarse import coarser
from s2composite.composed import Composed
from s2composite.errors import ParameterError
from s2composite.pixels.masks import Rule
from s2composite.screening import valid_share

__all__ = ["timeline"]


def timeline(
    composite: Composed | xr.Dataset,
    cube: xr.DataArray | None = None,
    *,
    valid: Rule | xr.DataArray | Sequence[Rule | xr.DataArray] | None = None,
    resolution: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw, for each scene at its date, the share of the composite's pixels that come from it.

    Parameters
    ----------
    composite
        A composite, or its layers: ``source`` ``(y, x)``, with the coordinate ``scene_time``.
    cube
        What the composite was made of: the share of the area that each scene shows validly is drawn, too.
    valid
        The rules of the composite, as for `composite`; they say which pixels of the cube count.
    resolution
        Pixel size at which the files of a cube from `open_cube` are looked at, in units of its CRS; default: 16 times
        coarser than the cube, from overviews where there are some. Other cubes are looked at as they are.
    ax
        Where to draw; default: a new figure.

    Raises
    ------
    ParameterError
        There is no source or no dates, no pixel has a source, or the cube has other scenes.
    """
    dataset = layers_of(composite)
    source = decimated(layer_of(dataset, "source", ("y", "x")).to_dataset(name="source"))["source"].values
    days = days_of_scenes(dataset)
    if (source < 0).all():
        raise ParameterError("source is -1 in every pixel: no observation was valid, there is nothing to draw")
    share = np.bincount(source[source >= 0], minlength=len(days)) / (source >= 0).sum() * 100
    ax = axes_or_new(ax, (11, 4.5))
    if cube is not None:
        shown = _shown(cube, dataset, valid, resolution)
        ax.vlines(days, 0, shown, linewidth=5, color="0.75", label="valid in the scene, % of the area")
    ax.vlines(days, 0, share, linewidth=2, color="tab:green", label="taken for the composite, % of its pixels")
    ax.plot(days, np.zeros_like(days), "|", color="0.3")
    locator = AutoDateLocator()
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    title = f"dates of {np.count_nonzero(share)} of {len(days)} scenes"
    ax.set(ylabel="share of pixels (%)", title=title, ylim=(0, None))
    if cube is not None:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    return ax


def _shown(cube: xr.DataArray, dataset: xr.Dataset, valid: Any, resolution: float | None) -> NDArray[np.float64]:
    """Return the share of the area that each scene shows validly, in percent."""
    if not np.array_equal(cube["time"].values, dataset["scene_time"].values):
        raise ParameterError(
            f"the cube has {cube.sizes['time']} scenes and the composite {dataset.sizes['scene']}, not the same ones; "
            "give the cube it was made of"
        )
    shares = valid_share(coarser(cube, resolution), valid)["valid"].compute()
    return np.asarray(shares.values * 100, np.float64)
