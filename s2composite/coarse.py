"""The same scenes at a coarser resolution, from overviews where the files have them."""

from __future__ import annotations

import xarray as xr

from s2composite.cube import stack_of, to_cube
from s2composite.reading.stack import Stack, TargetGrid, open_stack

__all__ = ["coarse_cube", "coarser"]

_OVERVIEW = 16
"""Default factor by which the resolution is coarser than the cube's: 1/256 of the pixels."""


def coarser(cube: xr.DataArray, resolution: float | None = None) -> xr.DataArray:
    """Return a cube from files at a coarser resolution; any other cube unchanged.

    `resolution` is the side of a pixel in units of the CRS; None: 16 times that of the cube.
    """
    found = stack_of(cube)
    if found is None:
        return cube
    stack = found[0]
    return coarse_cube(stack, resolution or abs(stack.geobox.resolution.x) * _OVERVIEW)


def coarse_cube(stack: Stack, resolution: float) -> xr.DataArray:
    """Return the scenes of a stack with pixels of another size."""
    own_grid = all(source.offset is not None for files in stack.sources for source in files)
    if own_grid:
        grid = TargetGrid(resolution=resolution, bbox=stack.geobox.boundingbox)
    else:
        grid = TargetGrid(geobox=stack.geobox.zoom_to(resolution=resolution))
    return to_cube(open_stack(stack.scenes, stack.bands, grid, stack.options))
