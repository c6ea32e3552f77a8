"""Cloud-optimised GeoTIFF: encoded by the workers, assembled in one pass, verified before it takes its final name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import xarray as xr

from s2composite.errors import ParameterError
from s2composite.georeference import geobox_of, north_up
from s2composite.scenes.storage import display
from s2composite.writing.files import FilePlan, Tables, WriteJob, write_files
from s2composite.writing.geotags import geo_tags
from s2composite.writing.layers import (
    RGBA,
    chosen_layers,
    common_nodata,
    facts_of,
    file_bands,
    file_names,
    layer_of,
)
from s2composite.writing.options import RasterOptions, check_resampling, checked, overridden
from s2composite.writing.parts import Parts
from s2composite.writing.periods import Period, period_path, periods_of
from s2composite.writing.preview import rgba_layer
from s2composite.writing.raster import Raster
from s2composite.writing.status import STATUS, read_status, status_summary
from s2composite.writing.targets import is_http

__all__ = ["plan_files", "status_tags", "tables_of", "write_raster"]

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
