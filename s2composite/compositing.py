"""Compositing: a cube reduced over time, and what can be done with the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from s2composite.errors import ParameterError
from s2composite.pixels.masks import Nodata, Rule, Saturated
from s2composite.pixels.reducers import Layer, Recipe, Reducer, resolve_reducer
from s2composite.windows import STATUS, layer_arrays

if TYPE_CHECKING:
    from s2composite.analysis.plot import Plots

__all__ = ["Composite", "composite"]

_DIMS = ("time", "band", "y", "x")
_SPELLINGS = {"latitude": "y", "lat": "y", "longitude": "x", "lon": "x"}

_DEFAULT_RULES: tuple[Rule, ...] = (Nodata(), Saturated())


def composite(
    cube: xr.DataArray | xr.Dataset,
    reducer: str | Reducer | Sequence[str | Reducer] = "luminance_median",
    *,
    valid: Rule | Sequence[Rule] | None = None,
    min_count: int = 1,
    **params: Any,
) -> Composite:
    """Reduce a cube over time, lazily if the cube is lazy.

    Parameters
    ----------
    cube
        ``(time, band, y, x)``, from `open_cube` or anything else (NumPy-backed, rioxarray, odc-stac, stackstac); a
        Dataset of bands ``(time, y, x)`` is stacked.
    reducer
        Name or value of a reducer, or several, which are made in one pass. ``"luminance_median"``: of the valid
        observations of a pixel, in order of R + G + B (equal sums in order of scenes), the one at index ``n // 2``; all
        bands come from that one observation.
    valid
        Rules that say which observations may be used; ``()`` uses all. Default: those that are neither `Nodata` nor
        `Saturated` in any band.
    min_count
        A pixel with fewer valid observations gets no value.
    **params
        Parameters of the reducer, where it is one and given by name.

    Returns
    -------
    Composite
        Its ``dataset`` holds ``composite`` ``(band, y, x)`` in the cube's dtype, ``count`` ``(y, x)`` uint16 (valid
        observations) and, for reducers that pick one, ``source`` ``(y, x)`` int16 (index of the scene, -1: none).

    Raises
    ------
    ParameterError
        Unknown reducer or parameter, a cube of other dimensions, or chunks that cannot be merged over time.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([0, 30, 10, 20, 255], "uint8").reshape(5, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> comp = s2c.composite(cube)
    >>> int(comp["composite"][0, 0, 0]), int(comp["count"][0, 0]), int(comp["source"][0, 0])
    (20, 3, 3)
    """
    array = _four_dims(cube)
    recipe = Recipe(
        reducers=_reducers(reducer, params),
        rules=_rules(valid),
        bands=tuple(str(band) for band in array["band"].values),
        nodata=_nodata(array),
        min_count=min_count,
        days=_days(array),
    )
    layers = recipe.layers(array.dtype, array.sizes["time"])
    return Composite(_dataset(array, recipe, layers, layer_arrays(array, recipe, layers)))


@dataclass(frozen=True, eq=False)
class Composite:
    """A composite: an immutable wrapper that owns a Dataset and adds verbs. Lazy until computed or written."""

    dataset: xr.Dataset
    """Layers ``composite`` ``(band, y, x)``, ``count`` and ``source`` ``(y, x)``, with the scenes along ``scene``."""

    def __getitem__(self, layer: str) -> xr.DataArray:
        """Return a layer; a ParameterError lists those there are."""
        if layer not in self.dataset.data_vars:
            raise ParameterError(
                f"the composite has no layer {layer!r}; it has {', '.join(map(str, self.dataset.data_vars))}"
            )
        return self.dataset[layer]

    def __repr__(self) -> str:
        lines = [f"<s2composite.Composite {self._summary()}>"]
        lines += [f"  {name:<12} {dict(a.sizes)} {a.dtype}" for name, a in self.dataset.data_vars.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<p><b>s2composite.Composite</b> {self._summary()}</p>{self.dataset._repr_html_()}"

    def _summary(self) -> str:
        attrs, times = self.dataset.attrs, self.dataset["scene_time"].values
        state = "lazy" if self.dataset.chunks else "in memory"
        span = (
            f", {str(times.min())[:10]} to {str(times.max())[:10]}" if np.issubdtype(times.dtype, np.datetime64) else ""
        )
        return f"{attrs['reducer']} of {self.dataset.sizes['scene']} scenes{span}, {state}"

    def compute(self, **kwargs: Any) -> Composite:
        """Return the composite in memory; all layers in one pass."""
        return Composite(_located(self.dataset).compute(**kwargs))

    def persist(self, **kwargs: Any) -> Composite:
        """Return the composite held in the memory of the workers."""
        return Composite(self.dataset.persist(**kwargs))

    def date(self) -> xr.DataArray:
        """Return the time of the observation that each pixel comes from: ``(y, x)`` datetime64, NaT where none is.

        Raises
        ------
        ParameterError
            The reducer does not pick observations, so there is no ``source``.
        """
        times = np.append(self.dataset["scene_time"].values, np.array(["NaT"], "datetime64[ns]"))
        date: xr.DataArray = xr.apply_ufunc(
            lambda source: times[source], self["source"], dask="parallelized", output_dtypes=[times.dtype]
        )
        return date.rename("date").assign_attrs(long_name="time of the observation")

    def to_raster(self, path: str, **options: Any) -> tuple[str, ...]:
        """Write layers as cloud-optimised GeoTIFF; see `s2composite.writing.cog.write_raster` for the options.

        Returns
        -------
        tuple of str
            The files written.
        """
        from s2composite.writing.cog import write_raster  # noqa: PLC0415 - a floor below: see ARCHITECTURE.md

        return write_raster(self.dataset, path, **options)

    def to_zarr(self, store: Any, **options: Any) -> Any:
        """Write all layers as Zarr v3; see `s2composite.writing.zarr.write_zarr` for the options."""
        from s2composite.writing.zarr import write_zarr  # noqa: PLC0415 - a floor below

        return write_zarr(self.dataset, store, **options)

    def to_stac(self, path: str, **options: Any) -> tuple[str, ...]:
        """Write layers as GeoTIFF, a thumbnail, and last a STAC item; see `s2composite.writing.metadata.write_stac`.

        Returns
        -------
        tuple of str
            The items written: one, or one for each period.
        """
        from s2composite.writing.metadata import write_stac  # noqa: PLC0415 - a floor below

        return write_stac(self.dataset, path, **options)

    def to_thumbnail(self, path: str, **options: Any) -> tuple[str, ...]:
        """Write a small PNG or WebP; see `s2composite.writing.thumbnail.write_thumbnail` for the options.

        Returns
        -------
        tuple of str
            The pictures written: one, or one for each period.
        """
        from s2composite.writing.thumbnail import write_thumbnail  # noqa: PLC0415 - a floor below

        return write_thumbnail(self.dataset, path, **options)

    @property
    def plot(self) -> Plots:
        """Pictures: ``comp.plot()``, ``comp.plot.count()``, ``comp.plot.date()``."""
        from s2composite.analysis.plot import Plots  # noqa: PLC0415 - a floor below

        return Plots(self.dataset)


def _located(dataset: xr.Dataset) -> xr.Dataset:
    """Let the windows of ``read_status`` say where they begin: in memory there are no chunks left that would."""
    if STATUS not in dataset or not dataset[STATUS].chunks:
        return dataset
    starts = {
        f"window_{axis}": (f"window_{axis}", np.cumsum([0, *dataset.chunksizes[axis][:-1]]), {"units": "pixel"})
        for axis in ("y", "x")
    }
    return dataset.assign_coords(starts)


def _four_dims(cube: Any) -> xr.DataArray:
    """Return a cube with the dimensions (time, band, y, x) in this order, and a coordinate for time and band."""
    if isinstance(cube, Composite):
        raise ParameterError("this is a composite already; composite() takes a cube (time, band, y, x)")
    array = cube.to_dataarray("band") if isinstance(cube, xr.Dataset) else cube
    if not isinstance(array, xr.DataArray):
        raise ParameterError(f"composite() takes a DataArray (time, band, y, x), not {type(cube).__name__}")
    array = array.rename({old: new for old, new in _SPELLINGS.items() if old in array.dims})
    if "band" not in array.dims:
        array = array.drop_vars("band", errors="ignore").expand_dims(band=[str(array.name or "value")])
    if set(array.dims) != set(_DIMS):
        raise ParameterError(f"the cube has dimensions {tuple(array.dims)}; composite() takes (time, band, y, x)")
    if array.sizes["time"] == 0:
        raise ParameterError("the cube has no times; nothing to composite")
    array = array.transpose(*_DIMS)
    missing = {dim: np.arange(array.sizes[dim]) for dim in ("time", "band") if dim not in array.coords}
    return _georeferenced(array.assign_coords(missing))


def _georeferenced(array: xr.DataArray) -> xr.DataArray:
    """Give a cube of stackstac the coordinates that rioxarray and odc-geo understand.

    It names its CRS and transform in the attributes alone, and by default its coordinates are the corners of pixels,
    which everything else takes for their centres: half a pixel off, and nobody sees it.
    """
    if "spatial_ref" in array.coords or not {"crs", "transform"} <= set(array.attrs) or "x" not in array.coords:
        return array
    transform = Affine(*tuple(array.attrs["transform"])[:6])
    # The cube may have been cut since: its coordinates say where it is now, the transform what they mean.
    x, y = float(array["x"][0]), float(array["y"][0])
    column, row = ~transform @ (x, y)
    origin = Affine.translation(float(np.floor(column + 1e-6)), float(np.floor(row + 1e-6)))
    geobox = GeoBox((array.sizes["y"], array.sizes["x"]), transform @ origin, array.attrs["crs"])
    return array.assign_coords(xr_coords(geobox, dims=("y", "x")))


def _reducers(reducer: str | Reducer | Sequence[str | Reducer], params: Mapping[str, Any]) -> tuple[Reducer, ...]:
    if isinstance(reducer, (str, Reducer)):
        return (resolve_reducer(reducer, **params),)
    if params:
        raise ParameterError(
            f"parameters {', '.join(params)} with several reducers: give each its own, with resolve_reducer(name, ...)"
        )
    return tuple(resolve_reducer(one) for one in reducer)


def _rules(valid: Rule | Sequence[Rule] | None) -> tuple[Rule, ...]:
    if valid is None:
        return _DEFAULT_RULES
    return tuple(valid) if isinstance(valid, Sequence) else (valid,)


def _nodata(array: xr.DataArray) -> float | None:
    for value in (array.attrs.get("nodata"), array.encoding.get("_FillValue"), array.attrs.get("_FillValue")):
        if value is not None:
            return float(value)
    return None


def _days(array: xr.DataArray) -> tuple[float, ...] | None:
    times = array["time"].values
    if not np.issubdtype(times.dtype, np.datetime64):
        return None
    return tuple((times.astype("datetime64[us]").astype(np.int64) / 86_400_000_000).tolist())


def _dataset(array: xr.DataArray, recipe: Recipe, layers: Sequence[Layer], data: Mapping[str, Any]) -> xr.Dataset:
    coords = {name: array.coords[name] for name in ("band", "y", "x", "spatial_ref") if name in array.coords}
    times = array["time"].values
    scenes = array["scene"].values if "scene" in array.coords else times.astype(str)
    coords |= {"scene": ("scene", scenes), "scene_time": ("scene", times)}
    variables = {
        layer.name: xr.Variable(layer.dims, data[layer.name], _layer_attrs(layer, "spatial_ref" in coords))
        for layer in layers
    }
    if STATUS in data:
        meaning = {"long_name": "0 read, 1 scene outside of the window, 2 reading failed"}
        variables[STATUS] = xr.Variable(("scene", "window_y", "window_x"), data[STATUS], meaning)
    return xr.Dataset(variables, coords, _facts(array, recipe))


def _layer_attrs(layer: Layer, georeferenced: bool) -> dict[str, Any]:
    attrs = {
        "long_name": layer.long_name,
        "units": layer.units,
        "nodata": layer.nodata,
        "overviews": layer.overviews,
        "grid_mapping": "spatial_ref" if georeferenced else None,
    }
    return {key: value for key, value in attrs.items() if value is not None}


def _facts(array: xr.DataArray, recipe: Recipe) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "reducer": ", ".join(reducer.name for reducer in recipe.reducers),
        "parameters": ", ".join(str(reducer) for reducer in recipe.reducers),
        "rules": ", ".join(str(rule) for rule in recipe.rules) or "none",
        "software": f"s2composite {version('s2composite')}",
    }
    if "engine" in array.attrs:
        facts["engine"] = "; ".join(f"{name}: {why}" for name, why in array.attrs["engine"].items())
    return facts
