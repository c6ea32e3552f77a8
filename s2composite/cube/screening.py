"""Share of the area that is valid in each scene, what each rule drops of it, and selection of scenes by it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from s2composite.cube.coerce import ValidArray, ValidRules, usable_cube
from s2composite.cube.graph import Chunks
from s2composite.cube.masking import OpenedMask, begin_days, masks_of
from s2composite.cube.open import stack_of, window_at
from s2composite.cube.result import coarser
from s2composite.cube.windows import refuse_masks
from s2composite.errors import ParameterError
from s2composite.pixels.masks import Nodata, Rule, SwathEdge
from s2composite.pixels.reducers import Recipe, usable_observations, valid_observations
from s2composite.reading.grid import Window, with_halo
from s2composite.reading.stack import Stack

__all__ = ["dropped_shares", "select_scenes", "valid_share"]

LOG = logging.getLogger(__name__)


def valid_share(cube: xr.DataArray | xr.Dataset, valid: ValidRules | None = None) -> xr.Dataset:
    """Return the share of the area that each scene covers, and the share with valid observations.

    Parameters
    ----------
    cube
        ``(time, band, y, x)``, as for `composite`. An estimate from overviews is much faster than full resolution:
        ``open_cube(source, resolution=160)``.
    valid
        Rules and masks, as for `composite`.

    Returns
    -------
    xarray.Dataset
        ``observed`` ``(time,)``, the share of pixels that are not nodata, and ``valid`` ``(time,)``, the share that
        pass the rules; float64, 0 to 1, lazy if the cube is. For lazy cubes from other sources than `open_cube`,
        `SwathEdge` counts as `Nodata`.

    Raises
    ------
    ParameterError
        As for `composite`.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([[0, 9], [255, 9], [9, 9]], "uint8").reshape(3, 1, 1, 2)
    >>> shares = s2c.valid_share(xr.DataArray(values, dims=("time", "band", "y", "x")))
    >>> shares["observed"].values.tolist(), shares["valid"].values.tolist()
    ([0.5, 1.0, 1.0], [0.5, 0.5, 1.0])
    """
    array, recipe, mask, _ = usable_cube(cube, valid)
    counts = _counts(array, recipe, mask) / (array.sizes["y"] * array.sizes["x"])
    labels = {name: array[name] for name in array.coords if array[name].dims == ("time",)}
    attrs = {"units": "1", "long_name": "share of the area's pixels"}
    return xr.Dataset({n: ("time", counts[:, i], attrs) for i, n in enumerate(("observed", "valid"))}, labels)


def _counts(cube: xr.DataArray, recipe: Recipe, mask: ValidArray | None) -> Any:
    """Return the numbers of observed and of valid pixels: ``(t, 2)``."""
    source = stack_of(cube)
    if source is None:
        refuse_masks(recipe)
    if not isinstance(cube.data, da.Array):
        return _count_block(cube.data, None if mask is None else mask[:, None], recipe=recipe)[:, 0, 0]
    data = cube.data.rechunk({0: -1, 1: -1})
    given = [] if mask is None else [da.asarray(mask).rechunk((data.chunks[0], *data.chunks[2:]))[:, None]]
    count: Callable[..., NDArray[np.int64]]
    how: dict[str, Any]
    if source is None:
        count, arrays, how = _count_block, [data, *given], {}
        token = tokenize([array.name for array in arrays], recipe)
    else:
        # The products are read, not the cube: which one of a day is used depends on the rules, and the cube does not
        # record what files cover, nor has it the pixels around a window.
        stack, windows = source
        count, arrays = _count_window, given
        how = {"stack": stack, "windows": windows, "masks": masks_of(stack, recipe.rules)}
        token = tokenize([array.name for array in arrays], recipe, stack.token, windows)
    parts = da.map_blocks(
        count,
        *arrays,
        recipe=recipe,
        **how,
        **({"drop_axis": 1, "new_axis": 3} if arrays else {}),
        name=f"count-valid-{token}",
        chunks=(data.chunks[0], *((1,) * n for n in data.numblocks[2:]), (2,)),
        dtype=np.int64,
        meta=np.empty((0, 0, 0, 0), np.int64),
    )
    return parts.sum(axis=(1, 2))


def _count_window(
    valid: NDArray[np.bool_] | None = None,
    *,
    recipe: Recipe,
    stack: Stack,
    windows: Chunks,
    masks: Sequence[OpenedMask],
    block_id: tuple[int, ...],
) -> NDArray[np.int64]:
    region, inner = with_halo(window_at(windows, block_id[1], block_id[2]), recipe.halo, stack.shape[2:])
    seen = begin_days(stack.products, recipe, region, masks, all_pixels=True)(None)  # observed pixels, valid or not
    usable = seen.valid
    if valid is not None:
        usable = np.zeros(seen.pixels[:, 0].shape, bool)
        usable[(slice(None), *inner)] = valid[:, 0]
        usable &= True if seen.valid is None else seen.valid
    return _count_block(seen.pixels, None if usable is None else usable[:, None], inner, recipe=recipe)


def _count_block(
    pixels: NDArray[Any],
    usable: NDArray[np.bool_] | None = None,
    inner: Window = (slice(None), slice(None)),
    *,
    recipe: Recipe,
) -> NDArray[np.int64]:
    """Return the numbers of observed and of valid pixels in the inner part of a block: ``(t, 1, 1, 2)``.

    ``usable (t, 1, y, x)`` is False where an observation must not be used.
    """
    observed = valid_observations(pixels, Recipe((), (Nodata(),), recipe.bands, recipe.nodata))
    valid = usable_observations(pixels, recipe, None if usable is None else usable[:, 0])
    counts = [which[(slice(None), *inner)].sum((1, 2)) for which in (observed, valid)]
    return np.stack(counts, axis=-1)[:, None, None]


def dropped_shares(
    cube: xr.DataArray, rules: Mapping[str, Rule | xr.DataArray], resolution: float | None
) -> xr.DataArray:
    """Return the share of each scene's observed pixels that each rule drops: see `Composite.dropped`.

    `cube` is from files; the keys of `rules` name them in the result.
    """
    given = any(isinstance(rule, xr.DataArray) for rule in rules.values())
    if given and resolution is not None:
        raise ParameterError(
            f"resolution={resolution!r}: masks given as arrays are on the cube's own grid; leave it out"
        )
    look = cube if given else coarser(cube, resolution)
    fine, coarse = (found[0].geobox.resolution.x for found in map(stack_of, (cube, look)) if found)
    used = {
        name: replace(rule, pixels=max(1, round(rule.pixels * fine / coarse))) if isinstance(rule, SwathEdge) else rule
        for name, rule in rules.items()
    }
    parts = []
    for some in (*([rule] for rule in used.values()), list(used.values())):
        # With Nodata in each, so that they all count the same pixels, whichever product of a day is used.
        shares = valid_share(look, [Nodata(), *some])
        parts.append(1 - shares["valid"] / shares["observed"].where(shares["observed"] > 0))
    names = xr.Variable("rule", np.array([*used, "all"], dtype=str))
    dropped = xr.concat(parts, names).transpose("time", "rule").rename("dropped")
    return dropped.assign_attrs(units="1", long_name="share of the scene's observed pixels").compute()


def select_scenes(
    cube: xr.DataArray,
    *,
    min_valid: float = 0.0,
    max_cloud_cover: float = 100.0,
    valid: Rule | Sequence[Rule] | None = None,
    resolution: float | None = None,
) -> xr.DataArray:
    """Return a cube without the scenes that show too little of it; the log names those left out.

    Parameters
    ----------
    cube
        ``(time, band, y, x)``, from `open_cube` or any other source.
    min_valid
        Leave out scenes whose valid observations cover less than this share of the area, 0 to 1. Reads pixels now.
    max_cloud_cover
        Leave out scenes whose metadata report more cloud cover, in percent; scenes without that entry are kept.
    valid
        Rules for `min_valid`, as for `composite`.
    resolution
        Pixel size, in units of the CRS, at which the files of a cube from `open_cube` are read for `min_valid`.
        Default: up to 16 times that of the cube, but at least 256 pixels a side, from overviews if the files have any.
        Other cubes are read at their own resolution.

    Returns
    -------
    xarray.DataArray
        The same cube with fewer times.

    Raises
    ------
    ParameterError
        A limit is out of range, no scene is left, or the cube has no coordinate ``cloud_cover``.

    Examples
    --------
    >>> import s2composite as s2c
    >>> from s2composite.demo import make_scenes
    >>> cube = s2c.open_cube(make_scenes("doctest_clouds", scenes=4, size=256))
    >>> s2c.select_scenes(cube, min_valid=0.05).sizes["time"] <= 4
    True
    """
    limits: tuple[tuple[Any, float], ...] = ((min_valid, 1), (max_cloud_cover, 100))
    if not all(isinstance(limit, Real) and 0 <= float(limit) <= most for limit, most in limits):
        raise ParameterError(
            f"min_valid={min_valid!r}, max_cloud_cover={max_cloud_cover!r}: give a share from 0 to 1, and a percentage"
        )
    keep = np.ones(cube.sizes["time"], bool)
    if max_cloud_cover < 100:
        if "cloud_cover" not in cube.coords:
            raise ParameterError("the cube has no coordinate cloud_cover; scenes from STAC items have one")
        keep &= ~(cube["cloud_cover"].values > max_cloud_cover)
    if min_valid > 0 and keep.any():
        kept = np.flatnonzero(keep)
        shares = valid_share(coarser(cube.isel(time=kept), resolution), valid)
        keep[kept] = shares["valid"].compute().values >= min_valid
    names = np.atleast_1d(cube["scene" if "scene" in cube.coords else "time"].values)
    if not keep.any():
        raise ParameterError(f"none of the {len(keep)} scenes passes the limits; allow a smaller share or more clouds")
    if not keep.all():
        LOG.info("left out %d of %d scenes: %s", (~keep).sum(), len(keep), ", ".join(map(str, names[~keep])))
    return cube.isel(time=np.flatnonzero(keep))
