"""The dataset of a composite: its layers with coordinates and attributes, at full size or from overviews."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Protocol

import dask.array as da
import numpy as np
import xarray as xr

import s2composite
from s2composite.cube.array_values import with_nodata
from s2composite.cube.coerce import ValidArray
from s2composite.cube.georeference import geobox_or_none
from s2composite.cube.graph import taken_layer
from s2composite.cube.open import numbers_attrs, stack_of, to_cube
from s2composite.cube.windows import STATUS, Work, layer_arrays, work_in
from s2composite.errors import ParameterError
from s2composite.pixels.reducers import Recipe
from s2composite.reading.grid import TargetGrid, resolution_of
from s2composite.reading.stack import Stack

__all__ = ["Composed", "coarse_cube", "coarser", "layers_dataset", "located", "small_dataset"]

_COARSEST = 16
"""Maximum default factor by which the resolution is coarser than the cube's: 1/256 of the pixels."""

_ENOUGH = 256
"""Minimum pixels a side by default, if the cube has them: with fewer, shares are unreliable."""


def coarser(cube: xr.DataArray, resolution: float | None = None) -> xr.DataArray:
    """Return a cube from files at a coarser resolution; any other cube unchanged.

    `resolution` is the side of a pixel in units of the CRS; None: up to 16 times that of the cube, by a power of two
    like overviews, with at least 256 pixels a side.
    """
    size, found = None if resolution is None else resolution_of(resolution), stack_of(cube)
    if found is None:
        return cube
    geobox = found[0].geobox
    return coarse_cube(found[0], size or abs(geobox.resolution.x) * _times_coarser(min(geobox.shape)))


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
    cube = to_cube(stack.reopened(stack.bands, grid, stack.options))
    if stack.geobox.transform.b or stack.geobox.transform.d:
        return cube
    # Drop the last row or column if most of it lies outside the grid, where nothing was observed.
    west, south, east, north = stack.geobox.boundingbox.bbox
    inside = {
        "x": np.flatnonzero((cube["x"].values > west) & (cube["x"].values < east)),
        "y": np.flatnonzero((cube["y"].values > south) & (cube["y"].values < north)),
    }
    return cube.isel({dim: slice(int(i[0]), int(i[-1]) + 1) for dim, i in inside.items() if i.size})


_WINDOWS = ("window_y", "window_x")
"""Dimensions of per-window records; a selection of every n-th pixel has no windows."""


class Composed(Protocol):
    """A `Composite`, for modules that `Composite` itself imports when its methods are called."""

    @property
    def dataset(self) -> xr.Dataset:
        """The layers."""


def layers_dataset(array: xr.DataArray, recipe: Recipe, valid: ValidArray | None = None) -> xr.Dataset:
    """Return the layers of a cube ``(time, band, y, x)``, with the coordinates and attributes they inherit.

    `valid` as in `layer_arrays`, which makes them.
    """
    layers, found = recipe.layers(array.dtype, array.sizes["time"]), stack_of(array)
    data = layer_arrays(array, found, recipe, layers, valid)
    coords = {name: array.coords[name] for name in ("band", "y", "x", "spatial_ref") if name in array.coords}
    times = array["time"].values
    scenes = array["scene"].values if "scene" in array.coords else times.astype(str)
    coords |= {"scene": ("scene", scenes), "scene_time": ("scene", times)}
    numbers = numbers_attrs(found[0]) if found else {}  # xarray keeps attributes even after values were changed
    variables: dict[str, Any] = {}
    for layer in layers:
        # Units and scale of the cube apply to layers of the same values.
        scaling = {name: numbers.get(name) for name in ("scale", "offset", "scaled_units") if layer.scaled}
        attrs = {
            "long_name": layer.long_name,
            "units": layer.units or numbers.get("units"),
            **scaling,
            "overviews": layer.overviews,
            "grid_mapping": "spatial_ref" if "spatial_ref" in coords else None,
        }
        attrs = {name: value for name, value in attrs.items() if value is not None}
        variables[layer.name] = with_nodata(xr.DataArray(data[layer.name], dims=layer.dims, attrs=attrs), layer.nodata)
    if STATUS in data:
        codes = {"long_name": "0 read, 1 scene outside the window, 2 reading failed"}
        variables[STATUS] = xr.Variable(("scene", "window_y", "window_x"), data[STATUS], codes)
    names, given = (", ".join(map(say, recipe.reducers)) for say in (attrgetter("name"), str))
    attrs = {"reducer": names} if given == names else {"reducer": names, "parameters": given}
    attrs |= {name: str(array.attrs[name]) for name in ("engine", "engine_reason", "sensor") if name in array.attrs}
    return xr.Dataset(variables, coords, attrs | {"software": f"s2composite {s2composite.__version__}"})


def located(dataset: xr.Dataset) -> xr.Dataset:
    """Record where the windows of ``read_status`` begin, since arrays in memory have no chunks."""
    if STATUS not in dataset or not dataset[STATUS].chunks:
        return dataset
    starts = {
        f"window_{axis}": (f"window_{axis}", np.cumsum([0, *dataset.chunksizes[axis][:-1]]), {"units": "pixel"})
        for axis in ("y", "x")
    }
    return dataset.assign_coords(starts)


def part_of(dataset: xr.Dataset, part: xr.Dataset) -> xr.Dataset:
    """Return a part of a composite's dataset, without ``read_status`` if the part has other windows."""
    if part.sizes.get("scene") != dataset.sizes.get("scene"):
        raise ParameterError(
            "a composite is made of all its scenes, and `source` numbers them; select scenes of the cube, with "
            "cube.isel(time=...), and composite these"
        )
    cut = any(part.sizes.get(dim) != dataset.sizes[dim] for dim in ("y", "x") if dim in dataset.dims)
    return part.drop_dims(_WINDOWS, errors="ignore") if cut else part


def small_dataset(dataset: xr.Dataset, size: int) -> xr.Dataset:
    """Return the layers at a resolution at which the longer side has at most `size` pixels; see `Composite.preview`."""
    step = max(1, -(-max(dataset.sizes["y"], dataset.sizes["x"]) // size))
    work = _whole_work(dataset)
    if work is None or step == 1:
        every = slice(None, None, step)
        return dataset.drop_dims(_WINDOWS, errors="ignore").isel(y=every, x=every)
    cube = coarse_cube(work.stack, abs(work.stack.geobox.resolution.x) * step)
    small = layers_dataset(cube, work.recipe)
    times = {name: dataset[name] for name in ("time", "time_bounds", "period", "scenes") if name in dataset.coords}
    small = small.drop_vars([name for name in small.data_vars if name not in dataset.data_vars])
    return small.assign_coords(times).assign_attrs(rules=dataset.attrs["rules"])


def _whole_work(dataset: xr.Dataset) -> Work | None:
    """Return the work behind a lazy composite if the composite is its whole result, else None."""
    work = work_in(dataset)
    if work is None or work.arrays or "band" not in dataset.coords:
        return None
    made = all(
        isinstance(array.data, da.Array) and taken_layer(array.data.name, array.data.dask) == name
        for name, array in dataset.data_vars.items()
    )
    same = made and geobox_or_none(dataset) == work.stack.geobox and tuple(dataset["band"].values) == work.stack.bands
    periods = len(work.recipe.periods or ())
    return work if same and dataset.sizes.get("time", 0) == periods else None
