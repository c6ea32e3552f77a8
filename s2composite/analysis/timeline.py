"""The timeline: what each scene shows of the area, and what of it went into the composite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from numpy.typing import NDArray

from s2composite.analysis.drawing import axes_or_new, days_of_scenes, sources_of
from s2composite.analysis.picture import heading, layers_of
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
    """Draw, for each scene at its date, the share of the composite's pixels that come from it, and what it shows.

    Parameters
    ----------
    composite : Composite or xarray.Dataset
        A composite, or its layers, with the coordinate ``scene_time``. Only one with ``source`` takes its pixels from
        single scenes; of others, such as a geomedian, it is drawn what the scenes of the cube show.
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
    shown = None if cube is None else _shown(cube, dataset, valid, resolution)
    ax = axes_or_new(ax, (11, 4.5))
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


def _shown(cube: xr.DataArray, dataset: xr.Dataset, valid: Any, resolution: float | None) -> NDArray[np.float64]:
    """Return the share of the area that each scene shows validly, in percent."""
    if not np.array_equal(cube["time"].values, dataset["scene_time"].values):
        raise ParameterError(
            f"the cube has {cube.sizes['time']} scenes and the composite {dataset.sizes['scene']}, not the same ones; "
            "give the cube it was made of"
        )
    shares = valid_share(coarser(cube, resolution), valid)["valid"].compute()
    return np.asarray(shares.values * 100, np.float64)
