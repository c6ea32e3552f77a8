"""Cloud-optimised GeoTIFFs and previews: several rasters, written in one pass over the data."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from distributed import Client
from numpy.typing import NDArray

from s2composite.cube.georeference import geobox_of, north_up
from s2composite.cube.graph import Chunks
from s2composite.errors import ParameterError
from s2composite.pixels.stretch import (
    Percentiles,
    Stretch,
    as_stretch,
    check_not_common,
    colour_bands,
    limits,
    plain_limits,
    stretched,
)
from s2composite.storage.files import display, is_remote, join
from s2composite.writing.encode import valid_pixels
from s2composite.writing.layers import (
    RGBA,
    STATUS,
    DatasetPeriod,
    RasterLayer,
    chosen_layers,
    common_nodata,
    file_bands,
    file_names,
    layer_of,
    metadata_of,
    period_path,
    periods_of,
    raster_layers,
    status_summary,
)
from s2composite.writing.options import RasterOptions, check_resampling, checked, overridden
from s2composite.writing.publish import (
    FileLayout,
    assemble,
    assembly_calls,
    geo_tags,
    is_http,
    lay_out,
    name_files,
    target_of,
)
from s2composite.writing.staging import Parts
from s2composite.writing.steps import (
    current_client,
    graph_of,
    overview_steps,
    progress_bar,
    recorded_windows,
    run_calls,
    run_graph,
    window_tasks,
    workers_see,
)
from s2composite.writing.tiles import Raster, Stage, WindowIndex

__all__ = [
    "FilePlan",
    "Preview",
    "Tables",
    "WrittenFile",
    "picture_layer",
    "plan_files",
    "preview_of",
    "status_tags",
    "valid_everywhere",
    "write_files",
    "write_raster",
]

Tables = Mapping[str, NDArray[Any]]  # small arrays that were computed in the same pass as the pixels, by name


@dataclass(frozen=True, eq=False)
class FilePlan:
    """One file to write."""

    path: str  # as given
    layers: tuple[RasterLayer, ...]  # in the order of its bands
    raster: Raster  # without its final name and place for parts
    period: DatasetPeriod


@dataclass(frozen=True, eq=False)
class WrittenFile:
    """A file that is complete, verified and has its name."""

    plan: FilePlan
    layout: FileLayout
    sha256: str  # checksum in hexadecimal digits; empty if not requested

    @property
    def path(self) -> str:
        """Absolute path or URL, with its signature if it has one."""
        return self.layout.raster.path


def write_raster(
    dataset: xr.Dataset,
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
    """Write layers of a dataset as cloud-optimised GeoTIFF, computing them if they are lazy.

    Parameters, results and errors are those of `Composite.to_raster`, but for the dataset. Files lie where its
    coordinates say, with their rows from north to south.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> count = xr.DataArray(np.ones((64, 64), "uint16"), dims=("y", "x"), attrs={"overviews": "nearest"})
    >>> files = write_raster(xr.Dataset({"count": count}), "count.tif", overwrite=True)
    """
    options = RasterOptions(compress, level, predictor, blocksize, overview_resampling, mask, bigtiff, jpeg_quality)
    dataset = north_up(dataset)
    plans = plan_files(dataset, path, layers, options, separate=separate, overrides=overrides, tags=tags)
    written, _ = write_files(dataset, plans, overwrite=overwrite, progress=progress)
    return tuple(file.layout.raster.label for file in written)


# --- what is written -------------------------------------------------------------------------------------------------

# endings by which other libraries choose a format; a GeoTIFF of such a name would be opened as what it is not
_OTHER_FORMATS = (".h5", ".hdf", ".img", ".jp2", ".jpeg", ".jpg", ".nc", ".png", ".vrt", ".webp", ".zarr")


def plan_files(
    dataset: xr.Dataset,
    path: str | os.PathLike[str],
    layers: str | Sequence[str] | None,
    options: RasterOptions,
    *,
    separate: bool | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    tags: Mapping[str, Any] | None = None,
) -> tuple[FilePlan, ...]:
    """Return the files that `write_raster` writes, after all checks that need no access to their places."""
    if not isinstance(path, (str, os.PathLike)):
        raise ParameterError(f"{path!r} is no path; give text or a pathlib.Path")
    if (suffix := PurePath(path).suffix.lower()) in _OTHER_FORMATS:
        raise ParameterError(
            f"{display(os.fspath(path))}: {suffix} is the name of another format than GeoTIFF, which is what is "
            "written; give a name that ends in .tif, or use to_zarr() or to_thumbnail()"
        )
    for name, given in (("overrides", overrides), ("tags", tags)):
        if not isinstance(given, Mapping | None) or not all(isinstance(key, str) for key in given or ()):
            raise ParameterError(f"{name} is {given!r}; it is a mapping from names")
    names = chosen_layers(dataset, layers)
    files = file_names(os.fspath(path), names, separate=separate)
    if unknown := set(overrides or {}) - {group[0] for _, group in files}:
        raise ParameterError(f"overrides names {', '.join(sorted(unknown))}, but no file is written for it alone")
    periods = periods_of(dataset)
    if len(files) * len(periods) > 1 and is_http(files[0][0]):
        raise ParameterError("a signed URL takes one file: write one layer and one period, or pass separate=False")
    return tuple(
        _plan_file(period, file, group, overridden(options, overrides or {}, group[0]), tags)
        for period in periods
        for file, group in files
    )


def _plan_file(
    period: DatasetPeriod, file: str, names: Sequence[str], options: RasterOptions, tags: Mapping[str, Any] | None
) -> FilePlan:
    if RGBA in names and len(names) > 1:
        raise ParameterError("the preview layer 'rgba' goes into a file of its own; leave separate as it is")
    path, dataset = period_path(file, period.label), period.dataset
    layers = tuple(rgba_layer(dataset, options.stretch) if name == RGBA else layer_of(dataset, name) for name in names)
    dtype, nodata = common_nodata(layers, path)
    check_resampling(options, path)
    bands = file_bands(layers, options.overview_resampling)
    options = checked(options, dtype, len(bands), path, averaged=all(band.method == "average" for band in bands))
    masked = options.mask if options.mask is not None else options.lossy and nodata is not None
    geobox = geobox_of(dataset[picture_layer(dataset).name if RGBA in names else names[0]])
    raster = Raster(
        bands=bands,
        shape=(int(layers[0].data.shape[-2]), int(layers[0].data.shape[-1])),
        dtype=dtype,
        nodata=nodata,
        geobox=geobox,
        options=options,
        mask=masked,
        alpha=RGBA in names and not masked,
        tags=metadata_of(period, tags),
        geotags=geo_tags(geobox),
    )
    return FilePlan(path, layers, raster, period)


def status_tags(dataset: xr.Dataset, tables: Tables, windows: Chunks | None = None) -> dict[str, str]:
    """Return the tag that says what could not be read, where something may be left out; see `status_summary`."""
    if STATUS not in dataset:
        return {}
    return {STATUS.upper(): json.dumps(status_summary(dataset, tables[STATUS], windows), separators=(",", ":"))}


# --- how it is written: windows and overviews, then files ------------------------------------------------------------


def write_files(
    dataset: xr.Dataset,
    plans: Sequence[FilePlan],
    *,
    overwrite: bool,
    progress: bool,
    tables: Mapping[str, da.Array] | None = None,
    digest: bool = False,
    before_naming: Callable[[], None] = lambda: None,
) -> tuple[tuple[WrittenFile, ...], Tables]:
    """Write the planned files of a dataset in one pass over the data; return them and the tables computed on the way.

    `tables` are small arrays ``(..., window_y, window_x)`` to compute in the same pass, besides the table of what was
    read. With `digest` the files' checksums are computed. `before_naming` is called just before the first file takes
    its name, when everything before has succeeded.
    """
    # Pixels that are in memory are encoded here: sending them to workers would take longer.
    client = current_client() if any(layer.lazy for plan in plans for layer in plan.layers) else None
    targets = [target_of(plan.path, overwrite=overwrite) for plan in plans]
    lazy = dict(tables or {})
    if STATUS in dataset:
        status = dataset[STATUS].data
        lazy[STATUS] = status if isinstance(status, da.Array) else da.from_array(status, chunks=-1)
    with ExitStack() as stack:
        root = f"{targets[0]}.{uuid.uuid4().hex[:8]}.parts"
        if is_http(targets[0]):
            root = join(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2composite-")), "parts")
        parts = Parts(root)
        stack.callback(parts.clear)
        parts.create()
        seen = workers_see(client, parts)
        rasters = [
            replace(plan.raster, path=target, token=f"{uuid.uuid4().hex[:12]}-{i}", parts=parts)
            for i, (plan, target) in enumerate(zip(plans, targets, strict=True))
        ]
        layers = [[layer.data for layer in plan.layers] for plan in plans]
        results, computed = _encode(rasters, layers, lazy, client, carry=not seen, progress=progress)
        more = status_tags(dataset, computed)
        layouts = [lay_out(raster.with_tags(more), own) for raster, own in zip(rasters, results, strict=True)]
        objects = is_remote(targets[0]) and not is_http(targets[0])
        if objects:  # these have their names at once
            before_naming()
        if client is None or not seen:  # not in a thread, which Ctrl-C would wait for
            checksums = [assemble(layout, digest=digest) for layout in layouts]
        else:
            checksums = run_calls(assembly_calls(layouts, digest=digest), client)
        if not objects:
            before_naming()
        name_files([layout.raster for layout in layouts], overwrite=overwrite)
    return tuple(map(WrittenFile, plans, layouts, checksums)), computed


def _encode(
    rasters: Sequence[Raster],
    layers: Sequence[Sequence[da.Array]],
    lazy: Mapping[str, da.Array],
    client: Client | None,
    *,
    carry: bool,
    progress: bool,
) -> tuple[list[list[tuple[Stage, WindowIndex]]], Tables]:
    """Compute all layers of all files in one pass; return what each window of each file wrote, and the tables.

    With `carry` the workers do not see where parts are stored: they hand them over, and overviews are made here.
    """
    files, work, alone = window_tasks(rasters, layers, lazy, carry=carry)
    # Under keys of their own: a failed write cancels them, and others may hold the original.
    keys = {f"write-table-{name}-{uuid.uuid4().hex[:12]}": name for name in alone}
    work += [(alone[name].rechunk(-1).map_blocks(np.asarray, name=key), name, None) for key, name in keys.items()]
    (graph, windows), tables = graph_of(work), dict[str, NDArray[Any]]()
    total = len(windows) + sum(len(list(stage.positions)) for file in files for stage in file.stages[1:])
    label = ", ".join(raster.label.rpartition("/")[2] for raster in rasters)
    with progress_bar(f"write {label}", total, shown=progress) as advance:

        def receive(key: tuple[Any, ...], result: Any) -> None:
            if key[0] in keys:
                tables[keys[key[0]]] = result
            else:
                for name, data in result.items():
                    rasters[0].parts.write(name, data)
            advance()

        run_graph(graph, windows, client, receive)
        for calls in overview_steps(files):
            run_calls(calls, None if carry else client, advance)
    results, noted = recorded_windows(files)
    return results, {**tables, **noted}


# --- previews --------------------------------------------------------------------------------------------------------

_SAMPLE = 1500  # pixels along an axis from which percentiles are taken


def picture_layer(dataset: xr.Dataset, name: str | None = None) -> RasterLayer:
    """Return the colours of a layer, by default of the composite, else of the first layer with bands."""
    pictures = [known for known in raster_layers(dataset) if dataset[known].ndim == 3]
    if not pictures or (name is not None and name not in pictures):
        known = ", ".join(pictures) or "none"
        raise ParameterError(f"there is no layer {name or 'with bands'!r} to make a picture of; there are {known}")
    layer = layer_of(dataset, name or ("composite" if "composite" in pictures else pictures[0]))
    chosen = colour_bands(layer.bands)
    bands = tuple(layer.bands[i] for i in chosen)
    return replace(layer, data=layer.data[chosen], bands=bands)


@dataclass(frozen=True, eq=False)
class Preview:
    """How a window of a composite's layer becomes one of a picture in 8 bits."""

    layer: str
    bands: tuple[int, ...]  # positions of the bands that are shown: three, or one three times
    nodata: float | None
    ends: NDArray[np.float64]  # values shown black and white, ``(3, 2)``

    def paint(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Return pixels ``(b, y, x)`` of the layer as ``(3, y, x)``: 1 to 255 where they have a value, else 0."""
        shown = pixels[list(self.bands)]
        valid = valid_everywhere(shown, self.nodata)
        return np.where(valid, stretched(shown, self.ends, darkest=1), np.uint8(0))


def preview_of(dataset: xr.Dataset, stretch: Stretch | None = None) -> Preview:
    """Return how a composite becomes a preview; a stretch must not need pixels that are not computed yet."""
    layer = picture_layer(dataset)
    bands = tuple(colour_bands(layer_of(dataset, layer.name).bands))
    ends = as_stretch(plain_limits(layer.data.dtype) if stretch is None else stretch)
    check_not_common(stretch, "previews in files")
    if isinstance(ends, Percentiles):
        if layer.lazy:
            raise ParameterError(
                f"stretch={stretch!r} needs all pixels before the first is written; give values, or compute() first"
            )
        step = max(1, -(-max(layer.data.shape[1:]) // _SAMPLE))
        values = np.asarray(layer.data[:, ::step, ::step])
        ends = limits(values, valid_everywhere(values, layer.nodata), stretch)
    elif len(ends) not in (1, len(layer.bands)):
        raise ParameterError(f"stretch has {len(ends)} pairs of values for {len(layer.bands)} band(s)")
    ends = np.broadcast_to(np.broadcast_to(ends, (len(bands), 2)), (3, 2))
    return Preview(layer.name, bands if len(bands) == 3 else bands * 3, layer.nodata, ends)


def rgba_layer(dataset: xr.Dataset, stretch: Stretch | None = None) -> RasterLayer:
    """Return a preview in 8 bits of a composite, lazily; see `preview_of`."""
    preview = preview_of(dataset, stretch)
    layer = layer_of(dataset, preview.layer)
    ends = preview.ends[:1] if (preview.ends == preview.ends[0]).all() else preview.ends
    words = ", ".join(f"{low:g} to {high:g}" for low, high in ends)
    pixels = layer.data.rechunk({0: -1})
    name = f"stretch-window-{tokenize(pixels.name, preview)}"
    data = pixels.map_blocks(preview.paint, name=name, chunks=((3,), *pixels.chunks[1:]), dtype=np.uint8)
    attrs = {"long_name": f"preview, {words}", "overviews": "average"}
    return RasterLayer("rgba", data, ("red", "green", "blue"), 0.0, attrs, layer.lazy)


def valid_everywhere(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Return where all bands of ``(b, y, x)`` have a value."""
    valid = valid_pixels(pixels, nodata)
    return np.ones(pixels.shape[1:], np.bool_) if valid is None else np.asarray(valid.all(axis=0))
