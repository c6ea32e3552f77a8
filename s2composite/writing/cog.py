"""Cloud-optimised GeoTIFF: encoded by the workers, assembled in one pass, verified before it takes its final name."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import xarray as xr
from distributed import Client

from s2composite.errors import ParameterError
from s2composite.scenes.storage import is_remote, join
from s2composite.writing.assemble import FileLayout, lay_out
from s2composite.writing.execute import current_client, run_on_worker, run_work, work_of, workers_see
from s2composite.writing.geotags import geo_tags
from s2composite.writing.layers import (
    RGBA,
    Layer,
    chosen_layers,
    common_nodata,
    facts_of,
    file_bands,
    file_names,
    geobox_of,
    layer_of,
)
from s2composite.writing.options import RasterOptions, checked, overridden
from s2composite.writing.parts import Parts
from s2composite.writing.preview import rgba_layer
from s2composite.writing.progress import progress_bar
from s2composite.writing.pyramid import raster_tasks
from s2composite.writing.raster import Raster
from s2composite.writing.targets import assemble_file, assemble_object, is_http, put, take_name, target_of
from s2composite.writing.window import Stage, WindowIndex

__all__ = ["write_raster"]


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

    Runs on the current Dask client, else in threads. The workers encode the tiles of their own windows; one pass puts
    them together. A file is complete and verified, tile by tile, before it takes its final name; if anything fails,
    nothing is left under that name.

    Parameters
    ----------
    dataset
        Of a composite: layers ``(band, y, x)`` or ``(y, x)``.
    path
        Local path, ``gs://`` or ``s3://`` URL, or an ``https://`` URL signed for a PUT.
    layers
        One or several names of layers, or ``"all"``; default: the composite. ``"rgba"``: a preview in 8 bits of
        its first three bands.
    separate
        One file for each layer: ``median.tif``, ``median_count.tif``. False: one file with all as bands, in the
        smallest dtype and with one nodata value that suit all. Default: separate.
    overwrite
        Replace what is there.
    compress, level, predictor, blocksize, overview_resampling, mask, bigtiff, jpeg_quality
        How files are encoded; see `s2composite.writing.options.RasterOptions`.
    overrides
        Other such options for some layers: ``{"rgba": {"compress": "jpeg", "jpeg_quality": 90}}``.
    tags
        Further facts for the files' metadata, which holds scenes, rules, reducer and version anyway.
    progress
        Show a progress bar, in terminals and notebooks.

    Returns
    -------
    tuple of str
        The files written: absolute paths or URLs, without signatures.

    Raises
    ------
    ParameterError
        Options that make no sense or do not go together; before anything is computed.
    WriteError
        The output exists, cannot be written, or an encoder, worker or upload failed; names the window.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> count = xr.DataArray(np.ones((64, 64), "uint16"), dims=("y", "x"), attrs={"overviews": "nearest"})
    >>> files = write_raster(xr.Dataset({"count": count}), "count.tif", overwrite=True)
    """
    options = RasterOptions(compress, level, predictor, blocksize, overview_resampling, mask, bigtiff, jpeg_quality)
    names = chosen_layers(dataset, layers)
    files = file_names(os.fspath(path), names, separate=separate)
    if unknown := set(overrides or {}) - {group[0] for _, group in files}:
        raise ParameterError(f"overrides names {', '.join(sorted(unknown))}, but no file is written for it alone")
    if len(files) > 1 and is_http(files[0][0]):
        raise ParameterError("a signed URL takes one file: write one layer, or pass separate=False")
    plans = [_plan_file(dataset, file, group, overridden(options, overrides or {}, group[0])) for file, group in files]
    job = _Job(tuple(plans), facts_of(dataset, tags), overwrite, progress)
    return _write(job)


@dataclass(frozen=True, eq=False)
class _Plan:
    """One file to write."""

    path: str
    """As given."""

    layers: tuple[Layer, ...]
    """In the order of its bands."""

    raster: Raster
    """Without its final name, place for parts and tags."""


@dataclass(frozen=True, eq=False)
class _Job:
    """One call."""

    plans: tuple[_Plan, ...]
    """The files."""

    facts: tuple[tuple[str, str], ...]
    """For the tags."""

    overwrite: bool
    """Replace what is there."""

    progress: bool
    """Show a bar."""


def _plan_file(dataset: xr.Dataset, path: str, names: Sequence[str], options: RasterOptions) -> _Plan:
    if RGBA in names and len(names) > 1:
        raise ParameterError("the preview layer 'rgba' goes into a file of its own; leave separate as it is")
    layers = tuple(rgba_layer(dataset, options.stretch) if name == RGBA else layer_of(dataset, name) for name in names)
    dtype, nodata = common_nodata(layers, path)
    bands = file_bands(layers, options.overview_resampling)
    options = checked(options, dtype, len(bands), path, averaged=all(band.method == "average" for band in bands))
    masked = options.mask if options.mask is not None else options.lossy and nodata is not None
    alpha = RGBA in names and not masked
    geobox = geobox_of(dataset, "composite" if RGBA in names else names[0])
    shape = (int(layers[0].data.shape[-2]), int(layers[0].data.shape[-1]))
    raster = Raster(
        "", "", Parts(""), bands, shape, dtype, nodata, geobox, options, masked, alpha, (), geo_tags(geobox)
    )
    return _Plan(path, layers, raster)


def _write(job: _Job) -> tuple[str, ...]:
    # Pixels that are here already are encoded here: sending them to workers takes longer.
    client = current_client() if any(layer.lazy for plan in job.plans for layer in plan.layers) else None
    targets = [target_of(plan.path, overwrite=job.overwrite) for plan in job.plans]
    with ExitStack() as stack:
        parts = _place(targets[0], client, stack)
        rasters = [
            replace(plan.raster, path=target, token=f"{uuid.uuid4().hex[:12]}-{i}", parts=parts, tags=job.facts)
            for i, (plan, target) in enumerate(zip(job.plans, targets, strict=True))
        ]
        found = _encode(job, rasters, client)
        layouts = [lay_out(raster, results) for raster, results in zip(rasters, found, strict=True)]
        _finish(layouts, client, overwrite=job.overwrite)
    return tuple(raster.label for raster in rasters)


def _place(target: str, client: Client | None, stack: ExitStack) -> Parts:
    """Return where parts lie, and see to it that it vanishes at the end, however that comes."""
    root = f"{target}.{uuid.uuid4().hex[:8]}.parts"
    if is_http(target):
        root = join(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2composite-")), "parts")
    parts = Parts(root)
    stack.callback(parts.clear)
    parts.create()
    return parts if workers_see(client, parts) else replace(parts, carried=True)


def _encode(job: _Job, rasters: Sequence[Raster], client: Client | None) -> list[list[tuple[Stage, WindowIndex]]]:
    """Compute all layers of all files in one pass; return what each window of each file has written."""
    owners = {
        array.name: (number, stage, array)
        for number, (plan, raster) in enumerate(zip(job.plans, rasters, strict=True))
        for stage, array in raster_tasks([layer.data for layer in plan.layers], raster)
    }
    work = work_of({_namer(rasters[number], stage): array for number, stage, array in owners.values()})
    found: list[list[tuple[Stage, WindowIndex]]] = [[] for _ in rasters]
    label = ", ".join(raster.label.rpartition("/")[2] for raster in rasters)
    with progress_bar(f"write {label}", len(work.windows), shown=job.progress) as advance:

        def receive(key: tuple[Any, ...], index: WindowIndex) -> None:
            number, stage, _ = owners[key[0]]
            found[number].append((stage, _stored(rasters[number].parts, index)))
            advance()

        run_work(work, client, receive)
    return found


def _namer(raster: Raster, stage: Stage) -> Callable[[tuple[int, ...]], str]:
    return lambda position: f"{raster.label}, {stage.describe(*position)}"


def _stored(parts: Parts, index: WindowIndex) -> WindowIndex:
    """Store a part that a worker has handed back."""
    if not parts.carried:
        return index
    parts.write(index.part, index.data)
    return replace(index, data=b"")


def _finish(layouts: Sequence[FileLayout], client: Client | None, *, overwrite: bool) -> None:
    """Assemble and verify all files, then let them take their names."""
    there = None if layouts[0].raster.parts.carried else client
    finished = []
    for layout in layouts:
        raster = layout.raster
        if is_remote(raster.path) and not is_http(raster.path):
            _call(there, raster.label, assemble_object, layout)
        else:
            temporary = join(raster.parts.root, f"{raster.token}.assembled")
            _call(there, raster.label, assemble_file, layout, temporary)
            finished.append((temporary, raster.path))
    for temporary, target in finished:
        if is_http(target):
            put(temporary, target)
        else:
            take_name(temporary, target, overwrite=overwrite)


def _call(client: Client | None, label: str, function: Any, *args: Any) -> None:
    if client is None:
        function(*args)
    else:
        run_on_worker(client, function, *args, label=label)
