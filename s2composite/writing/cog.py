"""Cloud-optimised GeoTIFFs and previews: several rasters, written in one pass over the data."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import PurePath
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from distributed import Client
from numpy.typing import NDArray

from s2composite.cube.georeference import geobox_of, north_up
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
from s2composite.writing.assemble import FileLayout, geo_tags, lay_out
from s2composite.writing.encode import Statistics, valid_pixels
from s2composite.writing.layers import (
    RGBA,
    STATUS,
    Layer,
    Period,
    chosen_layers,
    common_nodata,
    facts_of,
    file_bands,
    file_names,
    layer_of,
    period_path,
    periods_of,
    raster_layers,
    read_status,
    status_summary,
)
from s2composite.writing.options import RasterOptions, check_resampling, checked, overridden
from s2composite.writing.publish import assemble_file, assemble_object, is_http, put, take_name, target_of
from s2composite.writing.staging import ASSEMBLED, Parts
from s2composite.writing.steps import (
    Encoding,
    Source,
    WindowsDone,
    current_client,
    progress_bar,
    raster_tasks,
    run_on_worker,
    run_work,
    work_of,
    workers_see,
)
from s2composite.writing.tiles import Raster, Stage, WindowIndex

__all__ = [
    "FilePlan",
    "Preview",
    "Tables",
    "WriteJob",
    "Written",
    "assembling",
    "name_files",
    "picture_layer",
    "plan_files",
    "preview_of",
    "rgba_layer",
    "status_tags",
    "tables_of",
    "valid_everywhere",
    "write_files",
    "write_raster",
]

Tables = Mapping[str, NDArray[Any]]
"""Small arrays that were computed in the same pass as the pixels, by name."""

_NAMED = 4
"""Files that a message lists individually."""


@dataclass(frozen=True, eq=False)
class FilePlan:
    """One file to write."""

    path: str
    """As given."""

    layers: tuple[Layer, ...]
    """In the order of its bands."""

    raster: Raster
    """Without its final name and place for parts."""

    period: Period
    """Period that it covers."""


@dataclass(frozen=True, eq=False)
class WriteJob:
    """One call."""

    plans: tuple[FilePlan, ...]
    """The files."""

    overwrite: bool
    """Replace what is there."""

    progress: bool
    """Show a bar."""

    aside: Mapping[str, da.Array] = field(default_factory=dict)
    """Small arrays ``(..., window_y, window_x)`` to compute in the same pass as the pixels: nothing is read again."""

    tags: Callable[[Tables], Mapping[str, str]] = lambda _: {}
    """Further tags of all files, made of these arrays."""

    digest: bool = False
    """Compute the files' checksums."""

    before_naming: Callable[[], None] = lambda: None
    """Called just before the first file takes its name, when everything before has succeeded."""


@dataclass(frozen=True, eq=False)
class Written:
    """A file that is complete, verified and has its name."""

    plan: FilePlan
    """The plan it was written from."""

    path: str
    """Absolute path or URL, with its signature if it has one."""

    size: int
    """Bytes."""

    sha256: str
    """Checksum in hexadecimal digits; empty if not requested."""

    statistics: tuple[Statistics, ...]
    """Of each band."""

    @property
    def label(self) -> str:
        """Return the path or URL as messages show it."""
        return replace(self.plan.raster, path=self.path).label


def write_files(job: WriteJob) -> tuple[tuple[Written, ...], Tables]:
    """Write all files of a job in one pass over the data; return them and the arrays computed on the way.

    Raises
    ------
    WriteError
        An output exists, cannot be written, or an encoder, worker or upload failed; names the window.
    """
    # Pixels that are in memory are encoded here: sending them to workers would take longer.
    client = current_client() if any(layer.lazy for plan in job.plans for layer in plan.layers) else None
    targets = [target_of(plan.path, overwrite=job.overwrite) for plan in job.plans]
    with ExitStack() as stack:
        parts = _place(targets[0], client, stack)
        rasters = [
            replace(plan.raster, path=target, token=f"{uuid.uuid4().hex[:12]}-{i}", parts=parts)
            for i, (plan, target) in enumerate(zip(job.plans, targets, strict=True))
        ]
        found, tables = _encode(job, rasters, client)
        more = job.tags(tables)
        rasters = [replace(raster, tags=tuple(sorted({**dict(raster.tags), **more}.items()))) for raster in rasters]
        layouts = [lay_out(raster, results) for raster, results in zip(rasters, found, strict=True)]
        sums = _finish(layouts, client, job)
    written = (
        Written(plan, layout.raster.path, layout.size, checksum, layout.statistics)
        for plan, layout, checksum in zip(job.plans, layouts, sums, strict=True)
    )
    return tuple(written), tables


def _place(target: str, client: Client | None, stack: ExitStack) -> Parts:
    """Return the place for parts, which is removed when the stack closes, whatever happens."""
    root = f"{target}.{uuid.uuid4().hex[:8]}.parts"
    if is_http(target):
        root = join(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2composite-")), "parts")
    parts = Parts(root)
    stack.callback(parts.clear)
    parts.create()
    return parts if workers_see(client, parts) else replace(parts, carried=True)


def _encode(
    job: WriteJob, rasters: Sequence[Raster], client: Client | None
) -> tuple[list[list[tuple[Stage, WindowIndex]]], Tables]:
    """Compute all layers of all files in one pass; return what each window of each file wrote, and the tables."""
    sources = [
        Source(tuple(layer.data for layer in plan.layers), raster)
        for plan, raster in zip(job.plans, rasters, strict=True)
    ]
    encodings = {encoding.done.name: encoding for encoding in raster_tasks(sources, job.aside)}
    with_windows = {name for encoding in encodings.values() for name in encoding.tables}
    alone = {array.name: (name, array) for name, array in map(_renamed, job.aside.items()) if name not in with_windows}
    tables = {name: np.empty(array.shape, array.dtype) for name, array in job.aside.items()}
    namers = {_namer(rasters, encoding): encoding.done for encoding in encodings.values()}
    namers |= {_table_namer(name): array for name, array in alone.values()}
    work = work_of(namers, whole=[encoding.packed for encoding in encodings.values()])
    found: list[list[tuple[Stage, WindowIndex]]] = [[] for _ in rasters]
    label = ", ".join(raster.label.rpartition("/")[2] for raster in rasters)
    with progress_bar(f"write {label}", len(work.windows), shown=job.progress) as advance:

        def take_in(encoding: Encoding, position: Sequence[int], result: WindowsDone) -> None:
            row, column = position
            for file, stage, index in zip(encoding.files, encoding.stages, result.indices, strict=True):
                found[file].append((stage, _stored(rasters[file].parts, index)))
            for name, block in result.tables.items():
                tables[name][..., row : row + 1, column : column + 1] = block

        def receive(key: tuple[Any, ...], result: Any) -> None:
            if key[0] in alone:
                name, array = alone[key[0]]
                tables[name][_place_of(array, key[1:])] = result
            else:
                take_in(encodings[key[0]], key[1:], result)
            advance()

        run_work(work, client, receive)
    return found, tables


def _namer(rasters: Sequence[Raster], encoding: Encoding) -> Callable[[tuple[int, ...]], str]:
    labels = [rasters[file].label for file in encoding.files]
    files = ", ".join(labels[:_NAMED]) + (f" and {len(labels) - _NAMED} more files" if len(labels) > _NAMED else "")
    return lambda position: f"{files}, {encoding.stages[0].describe(*position)}"


def _renamed(item: tuple[str, da.Array]) -> tuple[str, da.Array]:
    """Return an array under keys of its own: a failed write cancels them, and others may hold the original."""
    name, array = item
    return name, array.map_blocks(np.asarray, dtype=array.dtype, name=f"write-table-{name}-{uuid.uuid4().hex[:12]}")


def _table_namer(name: str) -> Callable[[tuple[int, ...]], str]:
    return lambda position: f"{name}, block {position}"


def _place_of(array: da.Array, position: Sequence[int]) -> tuple[slice, ...]:
    """Return where a block of an array lies in it."""
    ends = [list(accumulate(sizes)) for sizes in array.chunks]
    return tuple(slice(end[i] - sizes[i], end[i]) for end, sizes, i in zip(ends, array.chunks, position, strict=True))


def _stored(parts: Parts, index: WindowIndex) -> WindowIndex:
    """Store a part that a worker has handed back."""
    if not parts.carried:
        return index
    parts.write(index.part, index.data)
    return replace(index, data=b"")


def assembling(layouts: Sequence[FileLayout]) -> list[tuple[Callable[..., str], tuple[Any, ...]]]:
    """Return for each file the function that assembles and verifies it, and its arguments; workers can call it."""
    if is_remote(layouts[0].raster.path) and not is_http(layouts[0].raster.path):
        return [(assemble_object, (layout,)) for layout in layouts]
    return [(assemble_file, (layout, _assembled(layout.raster))) for layout in layouts]


def _assembled(raster: Raster) -> str:
    """Return where a file is put together until it takes its name."""
    return join(raster.parts.root, f"{raster.token}{ASSEMBLED}")


def name_files(rasters: Sequence[Raster], *, overwrite: bool) -> None:
    """Give assembled files their names; objects have them already.

    Raises
    ------
    WriteError
        Something else was written there meanwhile, or a server refuses.
    """
    for raster in rasters:
        if is_http(raster.path):
            put(_assembled(raster), raster.path)
        elif not is_remote(raster.path):
            take_name(_assembled(raster), raster.path, overwrite=overwrite)


def _finish(layouts: Sequence[FileLayout], client: Client | None, job: WriteJob) -> list[str]:
    """Assemble and verify all files, then give them their names; return their checksums."""
    there = None if layouts[0].raster.parts.carried else client
    objects = is_remote(layouts[0].raster.path) and not is_http(layouts[0].raster.path)
    if objects:
        job.before_naming()
    sums = [
        _call(there, layout.raster.label, function, *args, digest=job.digest)
        for layout, (function, args) in zip(layouts, assembling(layouts), strict=True)
    ]
    if not objects:
        job.before_naming()
    name_files([layout.raster for layout in layouts], overwrite=job.overwrite)
    return sums


def _call(client: Client | None, label: str, function: Any, *args: Any, digest: bool) -> str:
    if client is None:
        return str(function(*args, digest=digest))
    return str(run_on_worker(client, function, *args, digest=digest, label=label))


_SAMPLE = 1500
"""Pixels along an axis from which percentiles are taken."""


def picture_layer(dataset: xr.Dataset, name: str | None = None) -> Layer:
    """Return the bands of a layer that make a picture: red, green and blue by name, else the first three, or one.

    Parameters
    ----------
    name
        Of a layer with bands; None: the composite, else the first.

    Raises
    ------
    ParameterError
        There is no such layer.
    """
    pictures = [known for known in raster_layers(dataset) if dataset[known].ndim == 3]
    if not pictures or (name is not None and name not in pictures):
        there = ", ".join(pictures) or "none"
        raise ParameterError(f"there is no layer {name or 'with bands'!r} to make a picture of; there are {there}")
    layer = layer_of(dataset, name or ("composite" if "composite" in pictures else pictures[0]))
    chosen = colour_bands(layer.bands)
    bands = tuple(layer.bands[i] for i in chosen)
    return Layer(layer.name, layer.data[chosen], bands, layer.nodata, layer.attrs, layer.lazy)


@dataclass(frozen=True, eq=False)
class Preview:
    """How a window of a composite's layer becomes one of a picture in 8 bits."""

    layer: str
    """What it is a picture of."""

    bands: tuple[int, ...]
    """Positions of the bands that are shown: three, or one three times."""

    nodata: float | None
    """Nodata value of the layer."""

    ends: NDArray[np.float64]
    """Values shown black and white, ``(3, 2)``."""

    def paint(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Return pixels ``(b, y, x)`` of the layer as ``(3, y, x)``: 1 to 255 where they have a value, else 0."""
        shown = pixels[list(self.bands)]
        valid = valid_everywhere(shown, self.nodata)
        return np.where(valid, stretched(shown, self.ends, darkest=1), np.uint8(0))


def preview_of(dataset: xr.Dataset, stretch: Stretch | None = None) -> Preview:
    """Return how a composite becomes a preview: its bands, and the values they show black and white.

    Raises
    ------
    ParameterError
        There is no layer with bands, or the stretch is malformed or needs pixels that are not computed yet.
    """
    layer = picture_layer(dataset)
    bands = tuple(colour_bands(layer_of(dataset, layer.name).bands))
    ends = np.broadcast_to(_ends(layer, stretch), (len(bands), 2))
    return Preview(layer.name, bands if len(bands) == 3 else bands * 3, layer.nodata, np.broadcast_to(ends, (3, 2)))


def _told(ends: NDArray[np.float64]) -> NDArray[np.float64]:
    return ends[:1] if (ends == ends[0]).all() else ends


def rgba_layer(dataset: xr.Dataset, stretch: Stretch | None = None) -> Layer:
    """Return a preview in 8 bits of a composite, lazily; see `Preview`.

    Raises
    ------
    ParameterError
        As for `preview_of`.
    """
    preview = preview_of(dataset, stretch)
    layer = layer_of(dataset, preview.layer)
    words = ", ".join(f"{low:g} to {high:g}" for low, high in _told(preview.ends))
    pixels = layer.data.rechunk({0: -1})
    name = f"stretch-window-{tokenize(pixels.name, preview)}"
    data = pixels.map_blocks(preview.paint, name=name, chunks=((3,), *pixels.chunks[1:]), dtype=np.uint8)
    attrs = {"long_name": f"preview, {words}", "overviews": "average"}
    return Layer("rgba", data, ("red", "green", "blue"), 0.0, attrs, layer.lazy)


def _ends(layer: Layer, stretch: Stretch | None) -> NDArray[np.float64]:
    """Return the values shown black and white, ``(b, 2)``."""
    found = as_stretch(plain_limits(layer.data.dtype) if stretch is None else stretch)
    check_not_common(stretch, "previews in files")
    if isinstance(found, Percentiles):
        if layer.lazy:
            raise ParameterError(
                f"stretch={stretch!r} needs all pixels before the first is written; give values, or compute() first"
            )
        step = max(1, -(-max(layer.data.shape[1:]) // _SAMPLE))
        values = np.asarray(layer.data[:, ::step, ::step])
        return limits(values, valid_everywhere(values, layer.nodata), stretch)
    if len(found) not in (1, len(layer.bands)):
        raise ParameterError(f"stretch has {len(found)} pairs of values for {len(layer.bands)} band(s)")
    return found


def valid_everywhere(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Return where all bands of ``(b, y, x)`` have a value."""
    valid = valid_pixels(pixels, nodata)
    return np.ones(pixels.shape[1:], np.bool_) if valid is None else np.asarray(valid.all(axis=0))


_OTHER_FORMATS = (".h5", ".hdf", ".img", ".jp2", ".jpeg", ".jpg", ".nc", ".png", ".vrt", ".webp", ".zarr")
"""Endings by which other libraries choose a format; a GeoTIFF of such a name would be opened as what it is not."""


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
    """Write layers as cloud-optimised GeoTIFF, computing them if they are lazy.

    Runs on the current Dask client, otherwise in threads. Workers encode the tiles of their own windows; one pass
    assembles them. A file is complete and verified, tile by tile, before it takes its final name; if anything fails,
    nothing is left under that name.

    Parameters
    ----------
    dataset : xarray.Dataset
        Dataset of a composite: layers ``(band, y, x)`` or ``(y, x)``; with periods also ``time``, and a file for each.
        Files lie where the coordinates say, with their rows from north to south.
    path : str or os.PathLike
        Local path, ``gs://`` or ``s3://`` URL, or an ``https://`` URL signed for a PUT. The name of a period is
        appended, ``median_2023-01.tif``, or replaces ``{period}`` in the path.
    layers : str or sequence of str, optional
        One or several names of layers, or ``"all"``; default: the composite. ``"rgba"``: a preview in 8 bits of
        its first three bands.
    separate : bool, optional
        One file per layer: ``median.tif``, ``median_count.tif``. False: one file with all layers as bands, in the
        smallest dtype and with a nodata value that suit them all. Default: separate.
    overwrite : bool, default False
        Replace existing files.
    compress : {"deflate", "zstd", "lzw", "webp", "jpeg", "none"}
        Compression of the tiles. ``"webp"`` loses nothing without a `level`; ``"jpeg"`` loses a little. Both take
        pixels of 8 bits only.
    level : int, optional
        Effort: deflate 1 to 12, zstd 1 to 22 (default 9); of webp the quality, 1 to 100. Default of deflate: ISA-L's,
        several times as fast as level 6, for files that are 9 % larger.
    predictor : {"auto", 1, 2, 3}
        1 none, 2 differences, 3 floating point. ``"auto"``: 3 for floats, 2 for integers whose overviews are means.
    blocksize : int, default 512
        Side of a tile in pixels, a multiple of 16 from 64 to 8192.
    overview_resampling : {"average", "nearest", "mode"}, optional
        How overviews are made. Default: as suits each layer, means of valid pixels, and nearest for indices of scenes.
    mask : bool, optional
        Mark missing pixels in a mask of one bit instead of by a nodata value. Default: for jpeg and lossy webp only.
    bigtiff : bool or "auto", default "auto"
        BigTIFF, which may exceed 4 GB. ``"auto"``: only if needed.
    jpeg_quality : int, default 85
        1 to 100.
    overrides : mapping from str to mapping, optional
        Other encoding options for some layers: ``{"rgba": {"compress": "jpeg", "jpeg_quality": 90}}``.
    tags : mapping from str, optional
        Further tags for the files, which record scenes, rules, reducer and version in any case; and, if unreadable
        scenes are skipped, which were missing in which windows (``READ_STATUS``).
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
    >>> import numpy as np, xarray as xr
    >>> count = xr.DataArray(np.ones((64, 64), "uint16"), dims=("y", "x"), attrs={"overviews": "nearest"})
    >>> files = write_raster(xr.Dataset({"count": count}), "count.tif", overwrite=True)
    """
    options = RasterOptions(compress, level, predictor, blocksize, overview_resampling, mask, bigtiff, jpeg_quality)
    dataset = north_up(dataset)
    plans = plan_files(dataset, path, layers, options, separate=separate, overrides=overrides, tags=tags)
    job = WriteJob(plans, overwrite, progress, tables_of(dataset), lambda tables: status_tags(dataset, tables))
    written, _ = write_files(job)
    return tuple(file.label for file in written)


def tables_of(dataset: xr.Dataset) -> dict[str, Any]:
    """Return what is computed together with the pixels: the table of what was read, if there is one."""
    status = read_status(dataset)
    return {} if status is None else {STATUS: status}


def status_tags(dataset: xr.Dataset, tables: Tables) -> dict[str, str]:
    """Return the tag that says what could not be read, where that is known."""
    if STATUS not in tables:
        return {}
    return {STATUS.upper(): json.dumps(status_summary(dataset, tables[STATUS]), separators=(",", ":"))}


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
    """Return the files that `write_raster` writes, after all checks that need no access to their places.

    Raises
    ------
    ParameterError
        Options are invalid or contradict each other.
    """
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
    period: Period, file: str, names: Sequence[str], options: RasterOptions, tags: Mapping[str, Any] | None
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
    alpha = RGBA in names and not masked
    geobox = geobox_of(dataset["composite" if RGBA in names else names[0]])
    shape = (int(layers[0].data.shape[-2]), int(layers[0].data.shape[-1]))
    facts = facts_of(dataset, _period_facts(period) | dict(tags or {}))
    raster = Raster(
        "", "", Parts(""), bands, shape, dtype, nodata, geobox, options, masked, alpha, facts, geo_tags(geobox)
    )
    return FilePlan(path, layers, raster, period)


def _period_facts(period: Period) -> dict[str, str]:
    """Return the tags that name the period of a file."""
    facts = {} if period.label is None else {"PERIOD": period.label}
    if period.span is not None:
        start, end = np.datetime_as_string(np.array(period.span), unit="s")
        facts |= {"PERIOD_START": str(start), "PERIOD_END": str(end)}
    return facts
