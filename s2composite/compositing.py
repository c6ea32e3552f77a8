"""Compositing: a cube reduced over time, and what can be done with the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from s2composite.array_masks import usable_cube
from s2composite.as_cube import days_of, nodata_of
from s2composite.composed import layers_dataset, located, small_dataset
from s2composite.errors import ParameterError
from s2composite.period_axis import groups_of, with_time_axis
from s2composite.pixels.masks import DEFAULT_RULES, Rule
from s2composite.pixels.reducers import Recipe, Reducer, resolve_reducer
from s2composite.scenes.periods import Day, PeriodSpec
from s2composite.windows import layer_arrays, source_shares

if TYPE_CHECKING:
    from s2composite.analysis.explore import Map
    from s2composite.analysis.plot import Plots

__all__ = ["Composite", "composite"]


def composite(
    cube: xr.DataArray | xr.Dataset,
    reducer: str | Reducer | Sequence[str | Reducer] = "luminance_median",
    *,
    valid: Rule | xr.DataArray | Sequence[Rule | xr.DataArray] | None = None,
    period: PeriodSpec | None = None,
    keep_empty: bool = True,
    day: Day = "utc",
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
        `Saturated` in any band. Among them may be masks of your own: boolean DataArrays ``(time, y, x)`` or ``(y, x)``
        on the cube's grid, True where an observation may be used. Rules on mask bands (`SCL` ...) read that band beside
        the data for cubes from `open_cube`; of other cubes the band itself is taken, which then is not composited.
    period
        Make a composite for each period, from one read of the scenes: ``"month"``, ``"season"``, ``"10D"``,
        ``"2023-06-01/2023-08-31"``, ``"rolling-3months"``, a list ...; see `s2composite.scenes.periods.find_periods`.
    keep_empty
        Keep periods without a scene, which have no value anywhere; False drops them.
    day
        What a scene's day is: ``"utc"``, or ``"solar"``, mean solar time at the centre of the cube.
    min_count
        A pixel with fewer valid observations gets no value.
    **params
        Parameters of the reducer, where it is one and given by name.

    Returns
    -------
    Composite
        Its ``dataset`` holds ``composite`` ``(band, y, x)`` in the cube's dtype, ``count`` ``(y, x)`` uint16 (valid
        observations) and, for reducers that pick one, ``source`` ``(y, x)`` int16 (index of the scene, -1: none). With
        `period`, each has a first dimension ``time`` (the period's first day, with bounds and the coordinate
        ``period``).

    Raises
    ------
    ParameterError
        Unknown reducer, parameter or period, a cube of other dimensions, chunks that cannot be merged over time, or a
        mask that is not on the cube's grid.

    Examples
    --------
    >>> import numpy as np, xarray as xr, s2composite as s2c
    >>> values = np.array([0, 30, 10, 20, 255], "uint8").reshape(5, 1, 1, 1)
    >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    >>> comp = s2c.composite(cube)
    >>> int(comp["composite"][0, 0, 0]), int(comp["count"][0, 0]), int(comp["source"][0, 0])
    (20, 3, 3)
    """
    given = _rules(valid)
    array, rules, mask = usable_cube(_not_yet_composited(cube), given)
    groups = None if period is None else groups_of(array, period, day, keep_empty=keep_empty)
    recipe = Recipe(
        reducers=_reducers(reducer, params),
        rules=rules,
        bands=tuple(str(band) for band in array["band"].values),
        nodata=nodata_of(array),
        min_count=min_count,
        days=days_of(array),
        periods=None if groups is None else tuple(group.scenes for group in groups),
    )
    layers = recipe.layers(array.dtype, array.sizes["time"])
    dataset = layers_dataset(array, recipe, layers, layer_arrays(array, recipe, layers, mask))
    dataset.attrs["rules"] = ", ".join(map(_described, given)) or "none"
    return Composite(dataset if groups is None else with_time_axis(dataset, groups, day))


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
        return Composite(located(self.dataset).compute(**kwargs))

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

    def preview(self, size: int = 1024) -> Composite:
        """Return a small composite in memory, in seconds: made of the files' overviews instead of all their pixels.

        It is an estimate, as overviews are means of pixels, clouds among them. Of a composite that is not one of whole
        files any more (in memory, cut out, one of several periods, with masks that are arrays) every n-th pixel is
        computed.

        Parameters
        ----------
        size
            Pixels into which the longer side fits.

        Returns
        -------
        Composite
            Its layers and periods are the same, and so are its verbs: ``comp.preview().plot()``.

        Raises
        ------
        ParameterError
            The size is less than one pixel.
        """
        if size < 1:
            raise ParameterError(f"size={size}; a preview has 1 pixel or more")
        return Composite(small_dataset(self.dataset, size).compute())

    def period(self, label: str) -> Composite:
        """Return the composite of one period, without ``time``; a ParameterError lists the periods there are."""
        labels = self.dataset["period"].values.tolist() if "period" in self.dataset.coords else []
        if label not in labels:
            raise ParameterError(f"there is no period {label!r}; there are {', '.join(labels) or 'none'}")
        return Composite(self.dataset.isel(time=labels.index(label)))

    def shares(self, layer: str = "source") -> xr.DataArray:
        """Return the share of pixels that each scene contributed: ``(scene,)`` float64, with periods ``(time, scene)``.

        Their sum is the share of pixels that have a value. Lazy if the composite is; computing both at once reads the
        scenes once.

        Parameters
        ----------
        layer
            Where the scenes' indices are: ``"source"``; with several reducers ``"rank_source"`` and the like.

        Raises
        ------
        ParameterError
            There is no such layer: the reducer does not pick observations.
        """
        source = self[layer]
        dims = (*source.dims[:-2], "scene")
        known = (*source.dims[:-2], "period", "scene", "scene_time")
        labels = {name: self.dataset[name] for name in known if name in self.dataset.coords}
        meaning = {"long_name": "share of pixels that come from the scene", "units": "1"}
        share = source_shares(source.data, self.dataset.sizes["scene"])
        return xr.DataArray(share, labels, dims, "share", meaning)

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

    def explore(self, **options: Any) -> Map:
        """Show the composite on a map to zoom and pan, its periods by a slider; see `s2composite.analysis.explore`.

        Returns
        -------
        s2composite.analysis.explore.Map
            Shown by a notebook as it is; ``.save("map.html")`` makes a page that needs nothing beside it.
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
        raise ParameterError("this is a composite already; composite() takes a cube (time, band, y, x)")
    return cube


def _reducers(reducer: str | Reducer | Sequence[str | Reducer], params: Mapping[str, Any]) -> tuple[Reducer, ...]:
    if isinstance(reducer, (str, Reducer)):
        return (resolve_reducer(reducer, **params),)
    if params:
        raise ParameterError(
            f"parameters {', '.join(params)} with several reducers: give each its own, with resolve_reducer(name, ...)"
        )
    return tuple(resolve_reducer(one) for one in reducer)


def _rules(valid: Rule | xr.DataArray | Sequence[Rule | xr.DataArray] | None) -> tuple[Rule | xr.DataArray, ...]:
    if valid is None:
        return DEFAULT_RULES
    return tuple(valid) if isinstance(valid, Sequence) else (valid,)


def _described(rule: Rule | xr.DataArray) -> str:
    return f"mask {rule.name or 'without a name'}" if isinstance(rule, xr.DataArray) else str(rule)
