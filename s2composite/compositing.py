"""Compositing: a cube reduced over time, and what can be done with the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from s2composite.array_masks import ValidRules, rules_of, usable_cube
from s2composite.array_values import missing_value_of
from s2composite.as_cube import days_of, saturated_of
from s2composite.composed import layers_dataset, located, small_dataset
from s2composite.errors import ParameterError, check_choice
from s2composite.period_axis import DAYS, groups_of, with_time_axis
from s2composite.pixels.masks import Rule, rule_text
from s2composite.pixels.reducers import Recipe, Reducer, resolve_reducer
from s2composite.scenes.periods import Day, PeriodSpec
from s2composite.windows import source_shares

if TYPE_CHECKING:
    from s2composite.analysis.explore import Map
    from s2composite.analysis.plot import Plots

__all__ = ["Composite", "composite"]


def composite(
    cube: xr.DataArray | xr.Dataset,
    reducer: str | Reducer | Sequence[str | Reducer] = "luminance_median",
    *,
    valid: ValidRules | None = None,
    period: PeriodSpec | None = None,
    keep_empty: bool = True,
    day: Day = "utc",
    min_count: int = 1,
    **params: Any,
) -> Composite:
    """Reduce a cube over time; lazily if the cube is lazy.

    Parameters
    ----------
    cube
        ``(time, band, y, x)``, from `open_cube` or any other source (NumPy, rioxarray, odc-stac, stackstac). The
        variables ``(time, y, x)`` of a Dataset are stacked as its bands.
    reducer
        A reducer by name or as a value, or several, computed in one pass. ``"luminance_median"`` orders the valid
        observations of a pixel by R + G + B (ties in scene order) and takes the one at index ``n // 2``; all bands come
        from that one observation.
    valid
        Rules that say which observations may be used, or their names as in jobs, ``["nodata", "scl", {"value_range":
        {"low": 1}}]``; ``()`` uses all. Default: `Nodata` and `Saturated`, which drop
        observations with any band empty or saturated. Boolean DataArrays ``(time, y, x)`` or ``(y, x)`` on the cube's
        grid, True where an observation may be used, can stand among them. Rules on mask bands (`SCL` ...) read that
        band beside the data of a cube from `open_cube`; in other cubes they use the cube's own band, which is then left
        out of the composite.
    period
        Make one composite per period, from a single read of the scenes: ``"month"``, ``"season"``, ``"10D"``,
        ``"2023-06-01/2023-08-31"``, ``"rolling-3months"``, a list ...; see `s2composite.scenes.periods.find_periods`.
    keep_empty
        Keep periods without scenes, which have no value anywhere; False drops them.
    day
        How the day of a scene is counted: ``"utc"``, or ``"solar"`` for mean solar time at the centre of the cube.
    min_count
        Pixels with fewer valid observations get no value.
    **params
        Parameters of the reducer, if there is one and it is given by name.

    Returns
    -------
    Composite
        Its ``dataset`` holds ``composite`` ``(band, y, x)`` in the cube's dtype, ``count`` ``(y, x)`` uint16 (valid
        observations) and, for reducers that pick one observation, ``source`` ``(y, x)`` int16 (index of its scene, -1
        where there is none). With `period`, each has ``time`` as its first dimension: the first day of the period, with
        bounds and the coordinate ``period``.

    Raises
    ------
    ParameterError
        The reducer, a parameter or the period is unknown, the cube has other dimensions, its chunks cannot be merged
        over time, a mask is not on its grid, or integers were calculated from others with a nodata value.

    Notes
    -----
    The nodata value is that of the cube's attributes as long as its values are those that were read. What was
    calculated from them (an index, a reflectance) has NaN where nothing was observed, and everything else is data.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([0, 30, 10, 20, 255], "uint8").reshape(5, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> comp = s2c.composite(cube)
    >>> int(comp["composite"][0, 0, 0]), int(comp["count"][0, 0]), int(comp["source"][0, 0])
    (20, 3, 3)
    """
    check_choice("day", day, DAYS)
    if not isinstance(keep_empty, bool):
        raise ParameterError(f"keep_empty is {keep_empty!r}; it is True or False")
    given = rules_of(valid)
    array, rules, mask, applied = usable_cube(_not_yet_composited(cube), given)
    missing = missing_value_of(array)
    array = missing.with_nan(array)
    groups = None if period is None else groups_of(array, period, day, keep_empty=keep_empty)
    recipe = Recipe(
        reducers=_reducers(reducer, params),
        rules=rules,
        bands=tuple(str(band) for band in array["band"].values),
        nodata=missing.for_rules(rules, array.dtype),
        saturated=() if missing.derived else saturated_of(array),
        min_count=min_count,
        days=days_of(array),
        periods=None if groups is None else tuple(group.scenes for group in groups),
    )
    layers = recipe.layers(array.dtype, array.sizes["time"])
    dataset = layers_dataset(array, recipe, layers, mask)
    dataset.attrs["rules"] = ", ".join(_described(rule, recipe, array.dtype) for rule in applied) or "none"
    return Composite(dataset if groups is None else with_time_axis(dataset, groups, day))


@dataclass(frozen=True, eq=False)
class Composite:
    """A composite: an immutable wrapper around a Dataset that can write and draw itself. Lazy until it is computed.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
    >>> comp = s2c.composite(xr.DataArray(values, dims=("time", "band", "y", "x")))
    >>> list(comp.dataset), comp["count"].item()
    (['composite', 'source', 'count'], 3)
    """

    dataset: xr.Dataset
    """Layers ``composite`` ``(band, y, x)``, ``count`` and ``source`` ``(y, x)``, with the scenes along ``scene``."""

    def __getitem__(self, layer: str) -> xr.DataArray:
        """Return a layer by name; a ParameterError lists the layers there are."""
        if not isinstance(layer, str) or layer not in self.dataset.data_vars:
            raise ParameterError(
                f"the composite has no layer {layer!r}; it has {', '.join(map(str, self.dataset.data_vars))}"
            )
        return self.dataset[layer]

    def __repr__(self) -> str:
        lines = [f"<s2composite.Composite {self._summary()}>"]
        for name, array in self.dataset.data_vars.items():
            sizes = ", ".join(f"{dim}: {n}" for dim, n in array.sizes.items())
            nodata = f", nodata {array.attrs['nodata']}" if "nodata" in array.attrs else ""
            lines.append(f"  {name:<12} ({sizes}) {array.dtype}{nodata}")
        lines.append(f"  rules: {self.dataset.attrs.get('rules', 'not known')}")
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
        """Return the composite in memory, all layers computed in one pass.

        Parameters
        ----------
        **kwargs
            Options of `xarray.Dataset.compute`.

        Returns
        -------
        Composite
            With NumPy arrays.
        """
        return Composite(located(self.dataset).compute(**kwargs))

    def persist(self, **kwargs: Any) -> Composite:
        """Return the composite held in the memory of the workers.

        Parameters
        ----------
        **kwargs
            Options of `xarray.Dataset.persist`.

        Returns
        -------
        Composite
            Still with Dask arrays.
        """
        return Composite(self.dataset.persist(**kwargs))

    def date(self) -> xr.DataArray:
        """Return the time of the observation that each pixel comes from.

        Returns
        -------
        xarray.DataArray
            Dimensions of ``source``; datetime64, NaT where there is no observation.

        Raises
        ------
        ParameterError
            There is no ``source``: the reducer does not pick observations.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> times = np.array(["2023-06-01", "2023-07-01", "2023-08-01"], "datetime64[ns]")
        >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
        >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"time": times})
        >>> str(s2c.composite(cube).date().values[0, 0])[:10]
        '2023-08-01'
        """
        times = np.append(self.dataset["scene_time"].values, np.array(["NaT"], "datetime64[ns]"))
        date: xr.DataArray = xr.apply_ufunc(
            lambda source: times[source], self["source"], dask="parallelized", output_dtypes=[times.dtype]
        )
        return date.rename("date").drop_attrs().assign_attrs(long_name="time of the observation")

    def preview(self, size: int = 1024) -> Composite:
        """Return a small composite in memory, in seconds: computed from the overviews of the files.

        It is an estimate: pixels of overviews are means of pixels, clouds among them. Where the composite no longer
        stands for whole files (in memory, cropped, one period taken out, masks given as arrays), every n-th pixel is
        computed instead.

        Parameters
        ----------
        size
            Most pixels along the longer side.

        Returns
        -------
        Composite
            With the same layers, periods and methods: ``comp.preview().plot()``.

        Raises
        ------
        ParameterError
            `size` is less than 1.
        """
        if not isinstance(size, (int, np.integer)) or size < 1:
            raise ParameterError(f"size={size!r}; a preview has 1 pixel or more")
        return Composite(small_dataset(self.dataset, size).compute())

    def period(self, label: str) -> Composite:
        """Return the composite of one period, without the dimension ``time``.

        Parameters
        ----------
        label
            One of the coordinate ``period``, such as ``"2023-06"``.

        Returns
        -------
        Composite
            The layers of that period.

        Raises
        ------
        ParameterError
            There is no such period; lists those there are.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> times = np.array(["2023-06-01", "2023-06-11", "2023-07-01"], "datetime64[ns]")
        >>> values = np.array([30, 10, 20], "uint8").reshape(3, 1, 1, 1)
        >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"time": times})
        >>> s2c.composite(cube, "max", period="month").period("2023-06")["composite"].item()
        30
        """
        labels = self.dataset["period"].values.tolist() if "period" in self.dataset.coords else []
        if label not in labels:
            raise ParameterError(f"there is no period {label!r}; there are {', '.join(labels) or 'none'}")
        return Composite(self.dataset.isel(time=labels.index(label)))

    def shares(self, layer: str = "source") -> xr.DataArray:
        """Return the share of pixels that each scene contributed.

        Parameters
        ----------
        layer
            Layer that holds the indices of the scenes: ``"source"``; with several reducers ``"rank_source"`` and so on.

        Returns
        -------
        xarray.DataArray
            ``(scene,)``, with periods ``(time, scene)``; float64, 0 to 1. The sum is the share of pixels that have a
            value. Lazy if the composite is; computing both together reads the scenes once.

        Raises
        ------
        ParameterError
            There is no such layer: the reducer does not pick observations.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> values = np.array([[30, 10], [10, 30]], "uint8").reshape(2, 1, 1, 2)
        >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
        >>> s2c.composite(cube).shares().values.tolist()
        [0.5, 0.5]
        """
        source = self[layer]
        dims = (*source.dims[:-2], "scene")
        known = (*source.dims[:-2], "period", "scene", "scene_time")
        labels = {name: self.dataset[name] for name in known if name in self.dataset.coords}
        meaning = {"long_name": "share of pixels that come from the scene", "units": "1"}
        share = source_shares(source.data, self.dataset.sizes["scene"])
        return xr.DataArray(share, labels, dims, "share", meaning)

    def to_raster(self, path: str, **options: Any) -> tuple[str, ...]:
        """Write layers as cloud-optimised GeoTIFF.

        Parameters
        ----------
        path
            Local path or URL of the file.
        **options
            See `s2composite.writing.cog.write_raster`.

        Returns
        -------
        tuple of str
            The files written.
        """
        from s2composite.writing.cog import write_raster  # noqa: PLC0415 - a floor below: see ARCHITECTURE.md

        return write_raster(self.dataset, path, **options)

    def to_zarr(self, store: Any, **options: Any) -> str:
        """Write all layers as Zarr v3.

        Parameters
        ----------
        store
            Local path, URL, store of the zarr library, or session of icechunk.
        **options
            See `s2composite.writing.zarr.write_zarr`.

        Returns
        -------
        str
            The store written.
        """
        from s2composite.writing.zarr import write_zarr  # noqa: PLC0415 - a floor below

        return write_zarr(self.dataset, store, **options)

    def to_stac(self, path: str, **options: Any) -> tuple[str, ...]:
        """Write layers as GeoTIFF, a thumbnail, and last of all the STAC item that describes them.

        Parameters
        ----------
        path
            Local path or URL of the item, ending in ``.json``.
        **options
            See `s2composite.writing.metadata.write_stac`.

        Returns
        -------
        tuple of str
            The items written: one, or one for each period.
        """
        from s2composite.writing.metadata import write_stac  # noqa: PLC0415 - a floor below

        return write_stac(self.dataset, path, **options)

    def to_thumbnail(self, path: str, **options: Any) -> tuple[str, ...]:
        """Write a small picture.

        Parameters
        ----------
        path
            Local path or URL, ending in ``.png`` or ``.webp``.
        **options
            See `s2composite.writing.thumbnail.write_thumbnail`.

        Returns
        -------
        tuple of str
            The pictures written: one, or one for each period.
        """
        from s2composite.writing.thumbnail import write_thumbnail  # noqa: PLC0415 - a floor below

        return write_thumbnail(self.dataset, path, **options)

    def explore(self, **options: Any) -> Map:
        """Show the composite on a map to zoom and pan, with a slider for its periods.

        Parameters
        ----------
        **options
            See `s2composite.analysis.explore.explore`.

        Returns
        -------
        s2composite.analysis.explore.Map
            Notebooks display it; ``.save("map.html")`` writes a self-contained page.
        """
        from s2composite.analysis.explore import explore  # noqa: PLC0415 - a floor below

        return explore(self.dataset, **options)

    @property
    def plot(self) -> Plots:
        """Pictures: ``comp.plot()``, ``comp.plot.count()``, ``comp.plot.date()``, ``comp.plot.periods()`` ..."""
        from s2composite.analysis.plot import Plots  # noqa: PLC0415 - a floor below

        return Plots(self.dataset)


def _not_yet_composited(cube: Any) -> Any:
    if isinstance(cube, Composite):
        raise ParameterError("this is already a composite; composite() takes a cube (time, band, y, x)")
    return cube


def _reducers(reducer: str | Reducer | Sequence[str | Reducer], params: Mapping[str, Any]) -> tuple[Reducer, ...]:
    if isinstance(reducer, (str, Reducer)) or not isinstance(reducer, Iterable):
        return (resolve_reducer(reducer, **params),)
    if params:
        raise ParameterError(
            f"parameters {', '.join(params)}: there are several reducers, so give each its own with "
            "resolve_reducer(name, ...)"
        )
    return tuple(resolve_reducer(one) for one in reducer)


def _described(rule: Rule | xr.DataArray, recipe: Recipe, dtype: np.dtype[Any]) -> str:
    if isinstance(rule, xr.DataArray):
        return f"mask {rule.name or 'without a name'}"
    return rule_text(rule, dtype, recipe.nodata, recipe.saturated)
