"""`composite` reduces a cube over time; `Composite` wraps the result and its methods."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from s2composite.cube.coerce import (
    DAYS,
    ValidRules,
    days_of,
    groups_of,
    usable_cube,
    with_time_axis,
)
from s2composite.cube.open import stack_of
from s2composite.cube.result import layers_dataset, located, part_of, small_dataset
from s2composite.cube.screening import dropped_shares
from s2composite.cube.windows import counted_together, source_shares
from s2composite.errors import ParameterError, check_choice
from s2composite.pixels.masks import Rule, rule_text
from s2composite.pixels.reducers import Reducer, resolve_reducer
from s2composite.pixels.select import day_number, order_by_time, run_by_time
from s2composite.pixels.stretch import Stretch
from s2composite.scenes.dates import Day, PeriodSpec

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
    max_count: int | None = None,
    prefer: str | None = None,
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
        Rules that select the observations to use, or their names as in jobs, ``["nodata", "scl", {"value_range":
        {"low": 1}}]``; ``()`` uses all. Default: `Nodata` and `Saturated`, which drop
        observations with any band empty or saturated. The list may contain boolean DataArrays ``(time, y, x)`` or
        ``(y, x)`` on the cube's grid, True where an observation may be used. For a cube from `open_cube`, rules on mask
        bands (`SCL` ...) read that band from the scenes; in other cubes they use the cube's own band, which is then
        left out of the composite.
    period
        Make one composite per period, from a single read of the scenes: ``"month"``, ``"season"``, ``"10D"``,
        ``"2023-06-01/2023-08-31"``, ``"rolling-3months"``, a list ...; see `s2composite.scenes.dates.find_periods`.
    keep_empty
        Keep periods without scenes, filled with nodata; False drops them.
    day
        How the day of a scene is counted: ``"utc"``, or ``"solar"`` for mean solar time at the centre of the cube.
    min_count
        Pixels with fewer valid observations become nodata.
    max_count
        Use at most this many valid observations of each pixel (and period), the first in the order of `prefer`. Scenes
        are read in that order, in each block of the files only until every pixel has enough, so the saving depends on
        how often clouds hide the last pixel of a block. ``count`` is the number used. Reducers that pick by time or
        score stop reading early in any case, unless ``count`` is computed, too.
    prefer
        Which observations come first: ``"latest"``, ``"earliest"``, those nearest to a date (``"2023-07-15"``), or
        those with the smallest value of a scene coordinate (``"cloud_cover"``). Default: the reducer's own order if it
        picks by time, else ``"latest"``.
    **params
        Parameters of the reducer, if a single one is given by name.

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
        over time, a mask is not on its grid, or integers were calculated from others that have a nodata value.

    Notes
    -----
    The nodata value is taken from the cube's attributes while its values are unchanged since they were read. In values
    calculated from them (an index, a reflectance) only NaN is nodata.

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
    if isinstance(cast("Any", cube), Composite):
        raise ParameterError("this is already a composite; composite() takes a cube (time, band, y, x)")
    array, recipe, mask, applied = usable_cube(cube, valid)
    groups = None if period is None else groups_of(array, period, day, keep_empty=keep_empty)
    if prefer is not None and max_count is None:
        raise ParameterError(f"prefer={prefer!r} orders the observations for max_count; give max_count, too")
    if isinstance(reducer, (str, Reducer)) or not isinstance(reducer, Iterable):
        reducers: tuple[Reducer, ...] = (resolve_reducer(reducer, **params),)
    elif params:
        raise ParameterError(
            f"parameters {', '.join(params)}: there are several reducers, so give each its own with "
            "resolve_reducer(name, ...)"
        )
    else:
        reducers = tuple(resolve_reducer(one) for one in reducer)
    recipe = replace(
        recipe,
        reducers=reducers,
        min_count=min_count,
        max_count=max_count,
        preference=() if max_count is None else _preference(array, prefer, reducers),
        days=days_of(array),
        periods=None if groups is None else tuple(scenes for _, scenes in groups),
    )
    dataset = layers_dataset(array, recipe, mask)
    texts = [
        f"mask {rule.name or 'without a name'}"
        if isinstance(rule, xr.DataArray)
        else rule_text(rule, array.dtype, recipe.nodata, recipe.saturated)
        for rule in applied
    ]
    dataset.attrs["rules"] = ", ".join(texts) or "none"
    dataset = dataset if groups is None else with_time_axis(dataset, groups, day)
    made_of = None if stack_of(array) is None else (array, dict(zip(_short_names(texts), applied, strict=True)))
    return Composite(dataset, made_of)


@dataclass(frozen=True, eq=False)
class Composite:
    """A composite: an immutable wrapper around a Dataset, with methods to write and plot it. Lazy until it is computed.

    Each layer is an xarray.DataArray, ``comp["count"]`` or ``comp.count``; ``comp.sel`` and ``comp.isel`` select as in
    xarray. Use the dataset and the layers for everything else in xarray, rioxarray and odc-geo:
    ``comp.dataset.rio``, ``comp["composite"].odc``.

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

    _made_of: tuple[xr.DataArray, Mapping[str, Rule | xr.DataArray]] | None = field(default=None, repr=False)
    """The cube, if it is from files, and the rules by short names."""

    def __getitem__(self, layer: str) -> xr.DataArray:
        """Return a layer by name; for an unknown name a ParameterError lists the layers."""
        if not isinstance(layer, str) or layer not in self.dataset.data_vars:
            raise ParameterError(
                f"the composite has no layer {layer!r}; it has {', '.join(map(str, self.dataset.data_vars))}"
            )
        return self.dataset[layer]

    if not TYPE_CHECKING:  # so that type checkers report mistyped names

        def __getattr__(self, name: str) -> xr.DataArray:
            if name == "dataset" or name.startswith("_"):  # "dataset": while a copy is being made
                raise AttributeError(f"'Composite' object has no attribute {name!r}")
            if name in self.dataset.data_vars:
                return self.dataset[name]
            if hasattr(self.dataset, name):
                hint = f"use its dataset or a layer: .dataset.{name}, ['composite'].{name}"
            else:
                hint = f"its layers are {', '.join(map(str, self.dataset.data_vars))}"
            raise AttributeError(f"a Composite has no attribute {name!r}; {hint}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(str(name) for name in self.dataset.data_vars if str(name).isidentifier())})

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
        return replace(self, dataset=located(counted_together(self.dataset)).compute(**kwargs))

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
        return replace(self, dataset=counted_together(self.dataset).persist(**kwargs))

    def _for_layers(self, layers: str | Sequence[str] | None) -> xr.Dataset:
        """Return the dataset to write some layers of, from a single reading."""
        names = layers if isinstance(layers, (list, tuple)) else (layers,)
        counted = any(isinstance(name, str) and name in ("all", "count") for name in names)
        return counted_together(self.dataset) if counted else self.dataset

    def sel(self, indexers: Mapping[Any, Any] | None = None, **kwargs: Any) -> Composite:
        """Return a part of the composite, selected by labels.

        Parameters
        ----------
        indexers : mapping, optional
            Labels by dimension, as in `xarray.Dataset.sel`.
        **kwargs
            Labels by dimension, and options of `xarray.Dataset.sel`.

        Returns
        -------
        Composite
            Still lazy if the composite is.

        Raises
        ------
        KeyError
            There is no such label or dimension.
        ParameterError
            Scenes are selected: the composite is made of all.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> values = np.arange(24, dtype="uint8").reshape(2, 3, 2, 2)
        >>> cube = xr.DataArray(values, dims=("time", "band", "y", "x"), coords={"band": ["red", "green", "blue"]})
        >>> s2c.composite(cube, "max").sel(band=["red", "blue"])["composite"].sizes["band"]
        2
        """
        return replace(self, dataset=part_of(self.dataset, self.dataset.sel(indexers, **kwargs)))

    def isel(self, indexers: Mapping[Any, Any] | None = None, **kwargs: Any) -> Composite:
        """Return a part of the composite, selected by positions.

        Parameters
        ----------
        indexers : mapping, optional
            Positions by dimension, as in `xarray.Dataset.isel`.
        **kwargs
            Positions by dimension, and options of `xarray.Dataset.isel`.

        Returns
        -------
        Composite
            Still lazy if the composite is; writing it reads only scenes within the part.

        Raises
        ------
        ValueError
            There is no such dimension.
        ParameterError
            Scenes are selected: the composite is made of all.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> cube = xr.DataArray(np.full((2, 3, 64, 64), 90, "uint8"), dims=("time", "band", "y", "x"))
        >>> s2c.composite(cube).isel(y=slice(0, 16), x=slice(8, 24)).count.shape
        (16, 16)
        """
        return replace(self, dataset=part_of(self.dataset, self.dataset.isel(indexers, **kwargs)))

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

        def look_up_date(source: NDArray[np.int16]) -> NDArray[np.datetime64]:
            return times[source]

        date: xr.DataArray = xr.apply_ufunc(
            look_up_date, self["source"], dask="parallelized", output_dtypes=[times.dtype]
        )
        return date.rename("date").drop_attrs().assign_attrs(long_name="time of the observation")

    def dropped(self, resolution: float | None = None) -> xr.DataArray:
        """Return the share of each scene's observed pixels that each rule drops; reads the scenes again, now.

        Each rule is evaluated alone; ``"all"`` is what any of them drops. If the products of a day are fused, a rule
        drops a pixel of the day if it drops those of all its products. A selected part of the composite has the shares
        of that part, for all scenes.

        Parameters
        ----------
        resolution
            Pixel size at which files are read, in units of the CRS: that of the cube gives exact shares. Default: up to
            16 times that of the cube, but at least 256 pixels a side, from overviews if the files have any. Mask bands
            are read at their own resolution in any case; with masks given as arrays, it is always that of the cube.

        Returns
        -------
        xarray.DataArray
            ``(time, rule)`` float64, 0 to 1, with the coordinates of the scenes; NaN where a scene has no pixel. The
            rules in their order have the names in which `Composite` lists them, without what is in parentheses unless
            two were the same.

        Raises
        ------
        ParameterError
            The composite was not made of a cube from `open_cube` with unchanged values, or `resolution` is given
            together with masks that are arrays.

        Examples
        --------
        >>> import s2composite as s2c
        >>> from s2composite.demo import make_scenes
        >>> cube = s2c.open_cube(make_scenes("doctest_dropped", scenes=4, size=256))
        >>> dropped = s2c.composite(cube, valid=["nodata", {"value_range": {"high": 200}}]).dropped()
        >>> dropped["rule"].values.tolist(), dropped.sizes["time"]
        (['nodata 0', 'values to 200', 'all'], 4)
        """
        if self._made_of is None:
            raise ParameterError(
                "dropped() reads the scenes again, so it needs a composite of a cube from open_cube() with unchanged "
                "values; for any cube, s2composite.valid_share(cube, rule) is the share that a rule leaves"
            )
        cube, rules = self._made_of
        spans = {}
        for dim in ("y", "x"):
            kept = np.flatnonzero(np.isin(cube[dim].values, self.dataset[dim].values))
            spans[dim] = slice(int(kept[0]), int(kept[-1]) + 1)
        part = {name: rule.isel(spans) if isinstance(rule, xr.DataArray) else rule for name, rule in rules.items()}
        return dropped_shares(cube.isel(spans), part, resolution)

    def preview(self, size: int = 1024) -> Composite:
        """Return a small composite in memory, in seconds: computed from the overviews of the files.

        It is an estimate: pixels of overviews are means of pixels, including clouds. If the composite does not cover
        whole files (in memory, cropped, one period selected, masks given as arrays), every n-th pixel is computed
        instead.

        Parameters
        ----------
        size
            Maximum pixels along the longer side.

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
            A value of the coordinate ``period``, such as ``"2023-06"``.

        Returns
        -------
        Composite
            The layers of that period.

        Raises
        ------
        ParameterError
            There is no such period; the message lists the valid ones.

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
            raise ParameterError(f"there is no period {label!r}; the periods are {', '.join(labels) or 'none'}")
        return replace(self, dataset=self.dataset.isel(time=labels.index(label)))

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
            There is no such layer, because the reducer does not pick observations.

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
        attrs = {"long_name": "share of pixels that come from the scene", "units": "1"}
        share = source_shares(source.data, self.dataset.sizes["scene"])
        return xr.DataArray(share, labels, dims, "share", attrs)

    def to_raster(
        self,
        path: str | os.PathLike[str],
        *,
        layers: str | Sequence[str] | None = None,
        separate: bool | None = None,
        overwrite: bool = False,
        compress: str = "deflate",
        level: int | None = None,
        predictor: str | int = "auto",
        blocksize: int = 512,
        overview_resampling: str | None = None,
        mask: bool | None = None,
        bigtiff: bool | str = "auto",
        jpeg_quality: int = 85,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        tags: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> tuple[str, ...]:
        """Write layers as cloud-optimised GeoTIFF, computing them if they are lazy.

        Runs on the current Dask client, otherwise in threads. Workers encode the tiles of their own windows; one pass
        assembles them. A file is complete and verified, tile by tile, before it takes its final name; if anything
        fails, nothing is left under that name.

        Parameters
        ----------
        path : str or os.PathLike
            Local path, ``gs://`` or ``s3://`` URL, or an ``https://`` URL signed for a PUT. The name of a period is
            appended, ``median_2023-01.tif``, or replaces ``{period}`` in the path.
        layers : str or sequence of str, optional
            One or several names of layers, or ``"all"``; default: the composite. ``"rgba"``: a preview in 8 bits of
            its first three bands.
        separate : bool, optional
            One file per layer: ``median.tif``, ``median_count.tif``. False: one file with all layers as bands, in the
            smallest dtype and with a nodata value that fit all layers. Default: separate.
        overwrite : bool, default False
            Replace existing files.
        compress : {"deflate", "zstd", "lzw", "webp", "jpeg", "none"}
            Compression of the tiles. ``"webp"`` loses nothing without a `level`; ``"jpeg"`` loses a little. Both take
            pixels of 8 bits only.
        level : int, optional
            Effort: deflate 1 to 12, zstd 1 to 22 (default 9); of webp the quality, 1 to 100. Default of deflate:
            ISA-L's, several times as fast as level 6, for files that are 9 % larger.
        predictor : {"auto", 1, 2, 3}
            1 none, 2 differences, 3 floating point. ``"auto"``: 3 for floats, 2 for integers whose overviews are means.
        blocksize : int, default 512
            Side of a tile in pixels, a multiple of 16 from 64 to 8192.
        overview_resampling : {"average", "nearest", "mode"}, optional
            How overviews are made. Default: means of valid pixels; nearest for indices of scenes.
        mask : bool, optional
            Mark missing pixels in a mask of one bit instead of by a nodata value. Default: for jpeg and lossy webp
            only.
        bigtiff : bool or "auto", default "auto"
            BigTIFF, which may exceed 4 GB. ``"auto"``: only if needed.
        jpeg_quality : int, default 85
            1 to 100.
        overrides : mapping from str to mapping, optional
            Other encoding options for some layers: ``{"rgba": {"compress": "jpeg", "jpeg_quality": 90}}``.
        tags : mapping from str, optional
            Further tags for the files. Files always record scenes, rules, reducer and version and, if unreadable scenes
            are skipped, which were missing in which windows (``READ_STATUS``).
        progress : bool, default True
            Show how far the call is, in terminals and notebooks.

        Returns
        -------
        tuple of str
            The files written: absolute paths or URLs, without signatures.

        Raises
        ------
        ParameterError
            Options are invalid or contradict each other; raised before anything is computed.
        WriteError
            The output exists or cannot be written, or an encoder, worker or upload failed; names the window.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> cube = xr.DataArray(np.full((2, 3, 64, 64), 90, "uint8"), dims=("time", "band", "y", "x"))
        >>> files = s2c.composite(cube).to_raster("median.tif", compress="zstd", overwrite=True)
        """
        from s2composite.writing.cog import write_raster  # noqa: PLC0415 - imported by its callers only: see ARCHITECTURE.md

        return write_raster(
            self._for_layers(layers),
            path,
            layers=layers,
            separate=separate,
            overwrite=overwrite,
            compress=compress,
            level=level,
            predictor=predictor,
            blocksize=blocksize,
            overview_resampling=overview_resampling,
            mask=mask,
            bigtiff=bigtiff,
            jpeg_quality=jpeg_quality,
            overrides=overrides,
            tags=tags,
            progress=progress,
        )

    def to_zarr(
        self,
        store: Any,
        *,
        overwrite: bool = False,
        resume: bool = False,
        chunk: int = 256,
        level: int = 3,
        shards: bool = True,
        pyramid: bool = False,
        progress: bool = True,
    ) -> str:
        """Write all layers as a Zarr v3 store, computing them if they are lazy.

        Runs on the current Dask client, otherwise in threads. Each window writes its own shards and reads them back;
        the store gets its final name (a directory) or its root metadata (an object store) last, so it is complete or
        absent. If unreadable scenes are skipped, the variable ``read_status`` lists them and the root attribute of the
        same name summarises them.

        Parameters
        ----------
        store : str, os.PathLike, zarr store or icechunk session
            Local path, ``gs://`` or ``s3://`` URL, or a store object of the zarr library, such as a MemoryStore. A
            writable session of icechunk is committed when everything is written; on an error its changes are discarded.
        overwrite : bool, default False
            Replace an existing store.
        resume : bool, default False
            Continue an interrupted call with the same data; if this call is interrupted, keep the finished windows.
        chunk : int, default 256
            Side of the chunks inside a shard, in pixels.
        level : int, default 3
            Compression level of zstd, 1 to 22.
        shards : bool, default True
            One object per window, with an index of its chunks. False: one object per chunk, which GDAL before 3.13
            needs.
        pyramid : bool, default False
            Also write overviews, as GeoZarr multiscales: group ``0`` has the full resolution, ``1`` half of it, and so
            on.
        progress : bool, default True
            Show how far the call is, in terminals and notebooks.

        Returns
        -------
        str
            The store written: absolute path or URL.

        Raises
        ------
        ParameterError
            An option is invalid; raised before anything is computed.
        WriteError
            The store exists or cannot be written, or a window failed; names the window.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> cube = xr.DataArray(np.full((2, 3, 64, 64), 90, "uint8"), dims=("time", "band", "y", "x"))
        >>> store = s2c.composite(cube).to_zarr("median.zarr", pyramid=True, overwrite=True)
        >>> int(xr.open_zarr(store, group="0")["count"].max())
        2
        """
        from s2composite.writing.zarr import write_zarr  # noqa: PLC0415

        return write_zarr(
            counted_together(self.dataset),
            store,
            overwrite=overwrite,
            resume=resume,
            chunk=chunk,
            level=level,
            shards=shards,
            pyramid=pyramid,
            progress=progress,
        )

    def to_stac(
        self,
        path: str | os.PathLike[str],
        *,
        layers: str | Sequence[str] | None = "all",
        separate: bool | None = None,
        overwrite: bool = False,
        thumbnail: str | None = "png",
        size: int = 512,
        stretch: Stretch | None = None,
        derived_from: Mapping[str, str] | None = None,
        properties: Mapping[str, Any] | None = None,
        compress: str = "deflate",
        level: int | None = None,
        predictor: str | int = "auto",
        blocksize: int = 512,
        overview_resampling: str | None = None,
        mask: bool | None = None,
        bigtiff: bool | str = "auto",
        jpeg_quality: int = 85,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        tags: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> tuple[str, ...]:
        """Write layers as cloud-optimised GeoTIFF, a thumbnail, and last a STAC 1.1 item that describes them.

        The files ``median.tif``, ``median_count.tif`` ... and ``median_thumbnail.png`` are next to ``median.json``.
        If the item exists, all its files are complete and verified: an item that is replaced is removed before its
        files.

        Parameters
        ----------
        path : str or os.PathLike
            Local path, ``gs://`` or ``s3://`` URL of the item, ending in ``.json``.
        layers : str or sequence of str, default "all"
            One or several names of layers, as for `to_raster`.
        separate, overwrite : bool, optional
            As for `to_raster`.
        thumbnail : {"png", "webp"}, optional
            Kind of the thumbnail; None: no thumbnail.
        size : int, default 512
            Maximum width and height of the thumbnail in pixels, 16 to 4096.
        stretch : str or pair of float or sequence of pairs, optional
            Values shown black and white in the thumbnail, a pair for each band, or percentiles: ``"1-99%"``,
            ``"1-99% per band"``. Default: uint8 unchanged, anything else between percentiles 2 and 98.
        derived_from : mapping from str to str, optional
            Address of each scene's own STAC item, by the name of the scene, for links.
        properties : mapping from str, optional
            Further properties of the item.
        compress, level, predictor, blocksize, overview_resampling, mask, bigtiff, jpeg_quality : optional
            How files are encoded, as for `to_raster`.
        overrides, tags : mapping from str, optional
            As for `to_raster`.
        progress : bool, default True
            Show how far the call is, in terminals and notebooks.

        Returns
        -------
        tuple of str
            The items written.

        Raises
        ------
        ParameterError
            Options are invalid or contradict each other, or scenes have no times; raised before anything is computed.
        WriteError
            An output exists or cannot be written; then there is no item.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> times = np.array(["2023-06-01", "2023-07-01"], "datetime64[ns]")
        >>> pixels = np.full((2, 3, 64, 64), 90, "uint8")
        >>> cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), coords={"time": times})
        >>> items = s2c.composite(cube).to_stac("median.json", thumbnail="webp", overwrite=True)
        """
        from s2composite.writing.stac import write_stac  # noqa: PLC0415

        return write_stac(
            self._for_layers(layers),
            path,
            layers=layers,
            separate=separate,
            overwrite=overwrite,
            thumbnail=thumbnail,
            size=size,
            stretch=stretch,
            derived_from=derived_from,
            properties=properties,
            compress=compress,
            level=level,
            predictor=predictor,
            blocksize=blocksize,
            overview_resampling=overview_resampling,
            mask=mask,
            bigtiff=bigtiff,
            jpeg_quality=jpeg_quality,
            overrides=overrides,
            tags=tags,
            progress=progress,
        )

    def to_thumbnail(
        self,
        path: str | os.PathLike[str],
        *,
        size: int = 512,
        stretch: Stretch | None = None,
        layer: str | None = None,
        overwrite: bool = False,
    ) -> tuple[str, ...]:
        """Write a small picture, transparent where there is no value. A lazy composite is computed as a whole.

        Its pixels are those of the overview that fits into `size`: means of 2 x 2 valid pixels, repeatedly.

        Parameters
        ----------
        path : str or os.PathLike
            Local path or URL that ends in ``.png`` or ``.webp``.
        size : int, default 512
            Maximum width and height of the picture in pixels, 16 to 4096.
        stretch : str or pair of float or sequence of pairs, optional
            Values shown black and white, a pair for each band, or percentiles of the picture: ``"1-99%"``,
            ``"1-99% per band"``; ``"common"`` and ``"1-99% common"``: of the pictures of all periods together. Default:
            uint8 unchanged, anything else between percentiles 2 and 98 of each picture.
        layer : str, optional
            Layer to show; default: the composite. Shows its bands red, green and blue, or else the first three.
        overwrite : bool, default False
            Replace an existing file.

        Returns
        -------
        tuple of str
            The files written.

        Raises
        ------
        ParameterError
            The kind of picture, its size or its stretch is invalid, or there is no layer with bands.
        WriteError
            The output exists or cannot be written.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> cube = xr.DataArray(np.full((2, 3, 64, 64), 90, "uint8"), dims=("time", "band", "y", "x"))
        >>> files = s2c.composite(cube).to_thumbnail("median.png", size=200, overwrite=True)
        """
        from s2composite.writing.stac import write_thumbnail  # noqa: PLC0415

        return write_thumbnail(self.dataset, path, size=size, stretch=stretch, layer=layer, overwrite=overwrite)

    def explore(
        self,
        *,
        layer: str = "composite",
        bands: Sequence[Any] | None = None,
        stretch: Stretch | None = None,
        basemap: str | None = "OpenStreetMap Mapnik",
    ) -> Map:
        """Show the composite on a map to zoom and pan, with a slider for its periods.

        A lazy composite is computed; ``comp.preview().explore()`` takes seconds. A page holds at most 12 million
        pixels, so more periods are shown at a coarser resolution.

        Parameters
        ----------
        layer : str, default "composite"
            Layer to show.
        bands : sequence of str, optional
            Three names for red, green and blue, or one. Default: those named red, green, blue or B04, B03, B02, else
            the first three.
        stretch : str or pair of float or sequence of pairs, optional
            Values shown black and white, a pair for each band, or percentiles: ``"1-99%"``, ``"1-99% per band"``.
            Percentiles, including the default, are computed for each period; with ``"common"`` and ``"1-99% common"``
            for all periods together, so that brightness can be compared.
        basemap : str, optional
            Name of a background as Bokeh's ``add_tile`` takes it; None: no background. Default:
            ``"OpenStreetMap Mapnik"``.

        Returns
        -------
        Map
            Call ``.save("map.html")``, or put it on the last line of a notebook cell.

        Raises
        ------
        ParameterError
            No such layer, band or background, or no pixel has data.
        GridError
            The composite has no CRS, or crosses the antimeridian or a pole, which web maps cannot show.

        Examples
        --------
        >>> import numpy as np, xarray as xr, s2composite as s2c
        >>> from odc.geo.geobox import GeoBox
        >>> from odc.geo.xr import xr_coords
        >>> grid = GeoBox.from_bbox((300000, 4800000, 301000, 4801000), "EPSG:32631", resolution=10)
        >>> cube = xr.DataArray(np.full((2, 3, 100, 100), 90, "uint8"), dims=("time", "band", "y", "x"))
        >>> comp = s2c.composite(cube.assign_coords(xr_coords(grid, dims=("y", "x"))))
        >>> page = comp.explore().save("map.html", overwrite=True)
        """
        from s2composite.analysis.explore import explore  # noqa: PLC0415

        return explore(self.dataset, layer=layer, bands=bands, stretch=stretch, basemap=basemap)

    @cached_property  # notebooks show help for it, unlike for a property
    def plot(self) -> Plots:
        """Pictures: ``comp.plot()``, ``comp.plot.count()``, ``comp.plot.date()``, ``comp.plot.periods()`` ..."""
        from s2composite.analysis.plot import Plots  # noqa: PLC0415

        return Plots(self.dataset)


def _short_names(rules: Sequence[str]) -> list[str]:
    """Return a name for each rule: what comes before a parenthesis, or all of it where that is not unique."""
    starts = [text.partition("(")[0].strip() for text in rules]
    names = [start if starts.count(start) == 1 else text for start, text in zip(starts, rules, strict=True)]
    return [name if names.count(name) == 1 else f"{name} {i + 1}" for i, name in enumerate(names)]


def _preference(array: xr.DataArray, prefer: str | None, reducers: Sequence[Reducer]) -> tuple[int, ...]:
    """Return the positions of the scenes, the preferred one first."""
    coordinate = None if prefer is None else array.coords.get(prefer)
    if coordinate is not None and coordinate.dims == ("time",) and coordinate.dtype.kind in "iuf":
        return tuple(np.argsort(coordinate.values, kind="stable").tolist())  # NaN last
    targets = {"latest": math.inf, "earliest": -math.inf}
    if prefer is None:
        target = next((one.setting for one in reducers if one.run is run_by_time), math.inf)
    elif prefer in targets:
        target = targets[prefer]
    else:
        try:
            target = day_number(datetime.fromisoformat(prefer))
        except (TypeError, ValueError):
            numbers = [n for n, c in array.coords.items() if c.dims == ("time",) and c.dtype.kind in "iuf"]
            raise ParameterError(
                f"prefer is {prefer!r}; it is 'latest', 'earliest', a date such as '2023-07-15', or a coordinate of "
                f"the scenes ({', '.join(map(str, numbers)) or 'this cube has no numeric one'})"
            ) from None
    days = days_of(array)
    if days is None:
        raise ParameterError("max_count needs the times of the scenes, or prefer= with a numeric coordinate")
    return tuple(order_by_time(np.array(days), target).tolist())
