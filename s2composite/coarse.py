"""The same scenes at a coarser resolution, from overviews where the files have them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from s2composite.cube import stack_of, to_cube
from s2composite.reading.stack import Stack, TargetGrid, open_stack

__all__ = ["coarse_cube", "coarser"]

_COARSEST = 16
"""Largest default factor by which the resolution is coarser than the cube's: 1/256 of the pixels."""

_ENOUGH = 256
"""Pixels a side that are looked at by default, if the cube has them: a share of fewer is a guess."""


def coarser(cube: xr.DataArray, resolution: float | None = None) -> xr.DataArray:
    """Return a cube from files at a coarser resolution; any other cube unchanged.

    `resolution` is the side of a pixel in units of the CRS; None: up to 16 times that of the cube, a power of two, as
    overviews are, that leaves 256 pixels a side.
    """
    found = stack_of(cube)
    if found is None:
        return cube
    geobox = found[0].geobox
    return coarse_cube(found[0], resolution or abs(geobox.resolution.x) * _times_coarser(min(geobox.shape)))


def _times_coarser(side: int) -> int:
    return min(_COARSEST, 1 << max(0, (side // _ENOUGH).bit_length() - 1))


def coarse_cube(stack: Stack, resolution: float) -> xr.DataArray:
    """Return the scenes of a stack with pixels of another size."""
    sources = [source for files in stack.sources for source in files]
    own_grid = all(source.offset is not None for source in sources)
    if own_grid and len({source.header.geobox for source in sources}) == 1:
        grid = TargetGrid(resolution=resolution, bbox=stack.geobox.boundingbox)
    else:
        grid = TargetGrid(geobox=stack.geobox.zoom_to(resolution=resolution))
    return _within(to_cube(open_stack(stack.scenes, stack.bands, grid, stack.options)), stack.geobox)


def _within(cube: xr.DataArray, whole: GeoBox) -> xr.DataArray:
    """Leave out the last row or column where most of it lies outside of the whole grid, and nothing was observed."""
    if whole.transform.b or whole.transform.d:
        return cube
    (west, south, east, north) = whole.boundingbox.bbox
    inside = {
        "x": np.flatnonzero((cube["x"].values > west) & (cube["x"].values < east)),
        "y": np.flatnonzero((cube["y"].values > south) & (cube["y"].values < north)),
    }
    return cube.isel({dim: slice(int(i[0]), int(i[-1]) + 1) for dim, i in inside.items() if i.size})
