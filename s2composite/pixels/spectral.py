"""Reducers that treat the bands of an observation together, as a point in space: geometric median and medoid."""

from __future__ import annotations

import numpy as np

from s2composite.errors import ParameterError
from s2composite.pixels.kernels.geomedian import geomedian as geomedian_kernel
from s2composite.pixels.kernels.geomedian import medoid as medoid_kernel
from s2composite.pixels.recipe import Output, Reducer, ReducerCall, block_width
from s2composite.pixels.select import SOURCE
from s2composite.pixels.statistics import put_rounded

__all__ = ["geomedian", "medoid"]

# A pixel has converged when Newton's step is below this share of the mean distance of its observations. The error that
# is left is of the order of its square: 0.01 DN at the 99th percentile of real data.
RELATIVE_EPS = 3e-4

# Pixels of a block of geometric medians. Of 192 to 1152, 384 is the fastest or within 4 % of it for 30 to 600 scenes of
# 3 to 10 bands: longer rows leave the cache, shorter ones cost more calls, and rows of 2^n bytes share its lines.
BLOCK_WIDTH = 384

SPREADS = ("median cosine distance from it", "median Euclidean distance from it", "median Bray-Curtis distance from it")
LAYERS = {"mad": ("smad", "emad", "bcmad"), "dev": ("sdev", "edev", "bcdev")}


def geomedian(
    *, deviations: bool = True, names: str = "mad", eps: float | None = None, max_iterations: int = 1000
) -> Reducer:
    """Return a reducer that takes the geometric median: the point with the least total distance to all observations.

    Parameters
    ----------
    deviations
        Also make the layers ``smad``, ``emad`` and ``bcmad``: the median of the observations' cosine distance
        ``1 - cos(x, g)``, Euclidean distance (in the cube's units) and Bray-Curtis distance
        ``sum |x - g| / sum |x + g|`` from the geometric median `g`. NaN where there are no observations.
    names
        ``"mad"`` for these names, ``"dev"`` for ``sdev``, ``edev``, ``bcdev``, as in products of Open Data Cube.
    eps
        A pixel has converged when its estimate moves less than this, in the cube's units. Default: 3e-4 of the mean
        distance of its observations, so that the result is the same in any unit.
    max_iterations
        Iterations after which a pixel stops in any case.

    Raises
    ------
    ParameterError
        `names`, `eps` or `max_iterations` is invalid.

    Notes
    -----
    Newton's iteration, safeguarded by Weiszfeld's with the condition of Vardi and Zhang (2000),
    https://doi.org/10.1073/pnas.97.4.1423; it converges in about six steps, and what is left is hundredths of a digital
    number. Where observations lie on a line, or four are the corners of a quadrilateral that is nearly flat, many
    points have nearly the same total distance: what is returned is one of them, to the precision of float32. The
    deviations are those of Roberts, Dunn and Mueller (2018), https://doi.org/10.1109/IGARSS.2018.8518312. Computed in
    float32 (float64 for float64 cubes) and rounded once, at the end; deviations are taken before rounding. Each pixel
    starts from its own mean and stops by itself, so that neighbours do not change its result.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([[1000, 3000], [1200, 3400], [9000, 9000]], "uint16").reshape(3, 2, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"band": ["B04", "B08"]})
    >>> s2c.composite(cube, "geomedian", deviations=False)["composite"].values.ravel().tolist()
    [1200, 3400]
    """
    if names not in LAYERS:
        raise ParameterError(f"geomedian: unknown names={names!r}; there are {', '.join(LAYERS)}")
    if eps is not None and not 0 < eps < float("inf"):
        raise ParameterError(f"geomedian: eps={eps}; give a positive number")
    if not isinstance(max_iterations, int) or not 1 <= max_iterations < 1 << 31:
        raise ParameterError(f"geomedian: max_iterations={max_iterations!r}; give a whole number from 1")
    outputs: tuple[Output, ...] = (Output("", "geometric median"),)
    if deviations:
        units = ("1", None, "1")
        outputs += tuple(
            Output(name, what, per_band=False, dtype="float", units=unit)
            for name, what, unit in zip(LAYERS[names], SPREADS, units, strict=True)
        )
    params = (("deviations", deviations), ("eps", eps), ("max_iterations", max_iterations))
    return Reducer("geomedian", run_geomedian, outputs, params=params, setting=(eps, max_iterations))


def medoid() -> Reducer:
    """Return a reducer that takes the medoid: the observation with the least total Euclidean distance to all others.

    Of ties the first in scene order is taken. Distances are computed in float32 (float64 for float64 cubes).

    Notes
    -----
    Flood (2013), https://doi.org/10.3390/rs5126481.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([[10, 30], [12, 34], [90, 90]], "uint8").reshape(3, 2, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"band": ["B04", "B08"]})
    >>> s2c.composite(cube, "medoid")["composite"].values.ravel().tolist()
    [12, 34]
    """
    return Reducer("medoid", run_medoid, (Output("", "medoid"), SOURCE))


def run_medoid(call: ReducerCall) -> None:
    """Run the medoid."""
    source = call.source
    kind = np.empty(0, np.float64 if source.values.dtype == np.float64 else np.float32)
    # A block is gone through once for each of its observations, so all of it should stay in the cache.
    width = block_width(source, 2 * (source.bands * kind.itemsize + 1) + source.bands * source.values.itemsize)
    medoid_kernel(source, kind, call.recipe.min_count, width, call.results[0], call.count, call.results[1])


def run_geomedian(call: ReducerCall) -> None:
    """Run a reducer whose setting is a threshold and a number of iterations."""
    source, (eps, most) = call.source, call.reducer.setting
    dtype = source.values.dtype
    real = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    if eps is None:
        eps = -RELATIVE_EPS  # the kernel's sign for a share
    times = source.scenes.size
    ranks = ((np.arange(times + 1) - 1).clip(0) // 2).astype(np.int16)
    bits = np.empty(0, f"u{real.itemsize}")
    middle = np.empty((source.bands, source.pixels), real)
    scatter = np.empty((3, source.pixels) if len(call.results) > 1 else (0, 0), real)
    geomedian_kernel(source, np.array([eps], real), most, bits, ranks, BLOCK_WIDTH, middle, scatter, call.count)
    known = call.count >= call.recipe.min_count
    for values, out in zip((middle, *scatter), call.results, strict=False):
        put_rounded(values, known, out)
