"""`open_cube`: a stack as a lazy DataArray ``(time, band, y, x)``, one task per window."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import delayed
from dask.system import CPU_COUNT
from distributed import default_client
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio.enums import Resampling

import s2composite.scheduler_desk  # noqa: F401 - what is read in a cluster counts in its scheduler
from s2composite.cube.array_values import stacked, with_nodata
from s2composite.cube.georeference import geobox_of, geobox_or_none
from s2composite.cube.graph import Chunks, StackHandle, handle_in
from s2composite.errors import (
    BandError,
    MissingDependencyError,
    ParameterError,
    S2CompositeError,
    SourceError,
    check_choice,
    needed,
)
from s2composite.metrics import record_read, running_workers
from s2composite.reading.bands import BandName, chosen_bands
from s2composite.reading.grid import Anchor, TargetGrid, Window, aligned_offset
from s2composite.reading.headers import header_of
from s2composite.reading.plan import cut
from s2composite.reading.sources import ReadOptions, check_named_bands, check_named_scenes
from s2composite.reading.stack import Stack, open_stack
from s2composite.reading.warp import WARP_TILE
from s2composite.scenes.find import find_scenes, items_of_source
from s2composite.scenes.stac import with_alternate
from s2composite.storage.files import absolute
from s2composite.storage.http import Sign, sign_function
from s2composite.storage.limits import resolve_limits

__all__ = [
    "auto_size",
    "chunk_sides",
    "current_workers",
    "numbers_attrs",
    "open_cube",
    "stack_of",
    "thread_memory",
    "to_cube",
    "window_at",
]

_STACKSTAC_NEEDS = "stackstac needs pandas < 3; loader='odc' and open_cube's own do not"


def _load_with(loader: str, source: Any, alternate: str | None, options: dict[str, Any]) -> xr.DataArray:
    """Load STAC items with another library; options that are None get its defaults."""
    loaders = {"odc": _odc, "stackstac": _stackstac}
    check_choice("loader", loader, ("s2composite", *loaders))
    if any(isinstance(band, int) for band in options["bands"] or ()):
        raise ParameterError(f"loader={loader!r} takes bands by name; numbers are for scenes that are one file each")
    bbox = options["bbox"]
    options["bbox"] = None if bbox is None else tuple(bbox.to_crs("EPSG:4326").bbox)
    pystac = needed("pystac", "stac")
    items = [pystac.Item.from_dict(dict(item)) for item in with_alternate(items_of_source(source), alternate)]
    try:
        return loaders[loader](items, {key: value for key, value in options.items() if value is not None})
    except ValueError as error:
        if isinstance(error, S2CompositeError):
            raise
        message = str(error).partition("\n")[0]
        cure = "give crs= and resolution=, geobox= or like= if the items do not declare their grid"
        raise SourceError(f"{loader} cannot load the {len(items)} items: {message}; {cure}") from error


def _odc(items: Sequence[Any], options: Mapping[str, Any]) -> xr.DataArray:
    odc = needed("odc.stac", "stac")
    height, width = (side or 2048 for side in options["chunks"])
    names = ("bands", "bbox", "crs", "geobox", "resolution", "resampling")
    arguments = {name: options[name] for name in names if name in options}
    if "crs" in arguments and "resolution" not in arguments:
        raise ParameterError("odc-stac needs crs= together with resolution=; give both, or geobox=")
    grouping = {None: "id", "solar_day": "solar_day", "utc_day": "time"}[options.get("groupby")]
    data = odc.load(
        items, chunks={"y": height, "x": width}, groupby=grouping, patch_url=options.get("sign"), **arguments
    )
    spatial = next(iter(data.data_vars.values())).dims[-2:]
    return stacked(data).transpose("time", "band", *spatial)


def _stackstac(items: Sequence[Any], options: Mapping[str, Any]) -> xr.DataArray:
    try:
        stackstac = needed("stackstac", "stackstac", limits=_STACKSTAC_NEEDS)
    except AttributeError as error:
        raise MissingDependencyError(
            f"stackstac does not work with the installed pandas or numpy ({_STACKSTAC_NEEDS}): {error}"
        ) from error
    if "bands" not in options:
        raise BandError(
            "stackstac needs bands=: without them it stacks all assets, and it cannot read those of several bands"
        )
    geobox, sign = options.get("geobox"), options.get("sign")
    grid: dict[str, Any] = {"snap_bounds": geobox is None}
    if "crs" in options:
        grid["epsg"] = int(str(options["crs"]).upper().removeprefix("EPSG:"))
    if "resolution" in options:
        grid["resolution"] = options["resolution"]
    if "bbox" in options:
        grid["bounds_latlon"] = tuple(options["bbox"])
    if geobox is not None:
        grid |= {"epsg": geobox.crs.to_epsg(), "resolution": abs(geobox.resolution.x)}
        grid["bounds"] = geobox.boundingbox.bbox
    if not isinstance(options["resampling"], str):
        raise ParameterError("stackstac takes one resampling method for all bands; give one name")
    plain = [item.to_dict(transform_hrefs=False) for item in items]
    for item in plain:
        for properties in (item["properties"], *item["assets"].values()):
            code = str(properties.get("proj:code") or "")
            if code.startswith("EPSG:"):  # stackstac reads only the older property
                properties.setdefault("proj:epsg", int(code.removeprefix("EPSG:")))
        if sign is not None:  # stackstac cannot sign later, so its array expires with the signatures
            for asset in item["assets"].values():
                asset["href"] = sign(asset["href"])
    cube: xr.DataArray = stackstac.stack(
        plain,
        assets=list(options["bands"]),
        chunksize=tuple(side or 1024 for side in options["chunks"]),
        resampling=Resampling[options["resampling"]],
        **grid,
    )
    return cube


_TASK_SHARE = 0.25
"""Share of a thread's memory that a window's observations may take: the rest is for the next window's compressed
tiles, results waiting to be written, and the process itself."""

_LARGEST_TASK = 768 << 20
"""Bytes of a window's observations above which larger windows are not faster: 216 RGB scenes of 1024 x 1024."""

_WINDOWS_A_THREAD = 2
"""Windows per thread into which a small area is cut, so that no thread is idle during the last window."""

_SMALLEST_SHARE = 512
"""Minimum side in pixels of windows that are reduced to share the work; smaller ones would decode tiles twice."""


def open_cube(
    source: Any,
    *,
    bands: BandName | Sequence[BandName] | None = None,
    bbox: Any = None,
    crs: Any = None,
    geobox: GeoBox | None = None,
    resolution: Any = None,
    like: Any = None,
    anchor: Anchor = None,
    resampling: str | Resampling | Mapping[str, str | Resampling] = "nearest",
    datetime: Any = None,
    groupby: str | None = None,
    duplicates: str = "newest",
    harmonise: bool | Mapping[str, float] = True,
    reflectance: bool = False,
    sign: Sign | str | None = None,
    limits: Any = None,
    headers: str = "auto",
    chunks: Any = "auto",
    on_error: str = "raise",
    engine: str = "auto",
    pattern: str | None = None,
    times: Sequence[Any] | None = None,
    index: str | os.PathLike[str] | None = None,
    alternate: str | None = None,
    loader: str = "s2composite",
) -> xr.DataArray:
    """Open cloud-optimised GeoTIFFs or STAC items as a lazy cube; no pixel is read.

    Parameters
    ----------
    source
        A path, a directory, a glob, a ``gs://``, ``s3://`` or ``https://`` prefix, a Sentinel-2 product in Zarr,
        scenes, or a list of these; or STAC items, an ItemCollection, their files, or a search. See `find_scenes`.
    bands
        Bands, by the names of any catalogue (``"red"``, ``"B04"``), or whole assets (``"TCI"``), in the order wanted;
        or, for scenes that are one file each, band numbers from 1, as in rasterio and GDAL. One or several.
        Names such as ``"B05"`` mean bands of the scenes' own sensor. Default: the only asset of the scenes apart from
        mask bands (SCL, QA ...), or their true-colour picture.
    bbox
        Crop to west, south, east, north in degrees, to a geometry's bounds in degrees (shapely, GeoJSON), or to the
        bounds of an object with its own CRS: a BoundingBox or Geometry of odc-geo, a GeoDataFrame.
    crs, geobox, resolution, like, anchor
        A grid other than the scenes' own. `crs` is an EPSG code, text, or an object of pyproj, rasterio or odc-geo;
        `resolution` a number or ``(10, -10)``. `like` is an array, a GeoBox, or the path of a raster. Granules of one
        UTM zone share a grid without any of these. If an overview has the resolution it is read; otherwise the next
        finer one is resampled. `anchor` aligns the pixels of a new grid: ``"edge"``, ``"center"``, ``"floating"``, or
        two fractions of a pixel.
    resampling
        GDAL's name of the method, or rasterio's ``Resampling``, for files that are not on the target grid; or one for
        each band, ``{"red": "cubic", "*": "bilinear"}``. Bands of classes use nearest unless they are named. With
        nearest, pixels of a file that are a whole multiple of the grid's are repeated.
    datetime
        ``"2023"``, ``"2023-06"``, ``"2023-06-01/2023-08-31"``, ``"2023-06-01/.."``.
    groupby
        ``"solar_day"`` or ``"utc_day"`` merges the products of a day into one scene: each pixel, bands and masks
        together, comes from the first product, by time and id, that is valid there; see `find_scenes`. None: every
        product is a separate scene.
    duplicates
        ``"newest"``: reprocessed products replace older ones; ``"keep"``: all are used.
    harmonise
        True: subtract the offset that processing baseline 04.00 introduced, as declared by each product, never by
        date; the coordinate ``offset`` records the number added. Values that would fall to nodata or below become the
        smallest valid value; saturated values do not change. False: values as in the files. A mapping gives the number
        to add to the values of some scenes, by id, ``{"SCENE": -1000}``.
    reflectance
        Physical values, float32 with NaN for no data, instead of the values in the files, with the scale and offset of
        the catalogue, the file's tags, or the sensor. Raises an error for integers of unknown scale, and for
        ``harmonise=False`` if products have the baseline offset, which is not part of a reflectance.
    sign
        A function that returns a URL with a signature, such as ``planetary_computer.sign``, or its import path as text.
        It is called in the tasks, just before reading, and again if a server refuses access.
    limits
        What hosts allow, so that they refuse nothing: a preset, ``"cdse"``, ``"planetary-computer"`` or
        ``"earth-search"``, a list of these, or numbers by preset or host,
        ``{"data.example.com": {"connections": 4, "requests": 2000, "bytes": "20MB"}}``: connections at once, requests a
        minute (or ``"100/second"``), bytes a second. All threads of a process and all workers of a Dask cluster keep
        them together. They take the place of those of the same name given to `connect` or in the environment variable
        ``S2COMPOSITE_LIMITS``, for all that the process reads from then on.
    headers
        ``"read"``: read every header now. ``"lazy"``: read one of each kind; the tasks check that the others match the
        catalogue. ``"auto"``: lazy from 256 files on, if the catalogue gives the grids.
    chunks
        Window size in pixels: ``"auto"`` or None derives it from the memory of a worker thread; a number, ``(y, x)`` or
        ``{"y": 512, "x": 512}`` larger than the internal blocks of the files is rounded up to whole blocks; -1 is the
        whole axis. A window always contains all times and bands.
    on_error
        ``"raise"``, or ``"skip"``: a scene that cannot be read counts as not observed.
    engine
        ``"auto"``, ``"tiles"`` (decode tiles directly) or ``"gdal"`` (everything but Zarr).
    pattern, times
        How to get the dates of scenes with unusual names; see `find_scenes`.
    index
        A file that stores the headers, next to the data or in a cache, so that the next call reads only those of new
        and changed files. With ``headers="lazy"`` files in the index are not checked for changes, and one of each kind
        of the others is read and stored. Reading a file that has changed is then an error; ``headers="read"`` updates
        the index.
    alternate
        Which of a file's locations in the catalogue to read, such as ``"https"``; see `find_scenes`.
    loader
        ``"odc"`` or ``"stackstac"``: load the STAC items with that library, and return its array in our layout. Values
        are then as in the files, not harmonised. stackstac needs pandas < 3.

    Returns
    -------
    xarray.DataArray
        ``(time, band, y, x)`` in the dtype of the files, with the coordinates ``scene``, ``offset`` (the number added
        to harmonise baselines, NaN if unknown) and ``spatial_ref``, and with ``granule``, ``orbit``, ``baseline`` and
        ``cloud_cover`` (percent) if the name or metadata of any scene has them. Attributes describe the values:
        ``units``, or ``scale``, ``offset`` and ``scaled_units`` of the physical values (``scaling`` or ``band_units``
        where bands differ); and the reader, ``engine``, with its reason, ``engine_reason``. One task per spatial chunk
        reads all scenes and bands.

    Raises
    ------
    SourceError, SceneError, GridError, BandError, ParameterError
        The message says what is wrong and what to do.

    Examples
    --------
    >>> import s2composite as s2c
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> cube = s2c.open_cube("doctest_scenes")
    >>> cube.dims, cube.shape, cube.dtype
    (('time', 'band', 'y', 'x'), (3, 3, 256, 256), dtype('uint8'))
    """
    chosen, sides = chosen_bands(bands), chunk_sides(chunks)
    if like is not None:
        if geobox is not None or crs is not None or resolution is not None or anchor is not None:
            raise ParameterError("like= already sets the grid; leave out geobox=, crs=, resolution= and anchor=")
        geobox = _geobox_of(like)
    target = TargetGrid(geobox, crs, resolution, bbox, anchor)
    options = ReadOptions(
        engine, on_error, resampling, harmonise, reflectance, headers, sign_function(sign), resolve_limits(limits)
    )
    if not isinstance(loader, str) or loader != "s2composite":
        if reflectance or harmonise is not True or datetime is not None or on_error != "raise" or limits is not None:
            raise ParameterError(
                f"loader={loader!r} reads with another library, which does not support reflectance=, harmonise=, "
                "datetime=, limits= or on_error=; leave these out"
            )
        grid = {"bbox": target.bbox, "crs": target.crs, "geobox": geobox, "resolution": target.resolution}
        how = {"resampling": options.resampling, "groupby": groupby, "sign": options.sign}
        return _load_with(loader, source, alternate, {"bands": chosen, "chunks": sides, **grid, **how})
    scenes = find_scenes(
        source,
        pattern=pattern,
        times=times,
        datetime=datetime,
        duplicates=duplicates,
        groupby=groupby,
        alternate=alternate,
    )
    check_named_scenes(scenes, options)
    stack = open_stack(scenes, chosen, target, options, index)
    check_named_bands(scenes, stack.bands, options)
    return to_cube(stack, sides)


def _geobox_of(like: Any) -> GeoBox:
    """Return the grid of a GeoBox, an array with a georeference, a composite, or a raster file."""
    if isinstance(like, GeoBox):
        return like
    if isinstance(like, (str, os.PathLike)):
        return header_of(absolute(like)).geobox
    data = getattr(like, "dataset", like)
    geobox = geobox_of(data) if isinstance(data, (xr.DataArray, xr.Dataset)) else None
    if geobox is None or geobox.crs is None:
        raise ParameterError(
            f"like= is a {type(like).__name__} without a georeference; give an array with a CRS, or geobox="
        )
    return geobox


def to_cube(stack: Stack, chunks: Any = "auto") -> xr.DataArray:
    """Return a stack as a lazy cube; see `open_cube`."""
    sides, origins = _chunk_sizes(stack, chunks)
    rows, columns = (
        tuple(part.stop - part.start for part in cut(slice(0, n), size, origin))
        for n, size, origin in zip(stack.shape[2:], sides, origins, strict=True)
    )
    handle = StackHandle(stack, (rows, columns))
    times, bands = stack.shape[:2]
    token = f"{stack.token}-{str(tokenize(handle.windows))[:8]}"
    data = da.map_blocks(
        _read_block,
        read=delayed(handle, name=f"send-headers-{token}", pure=True, traverse=False),
        chunks=((times,), (bands,), rows, columns),
        dtype=stack.dtype,
        meta=np.empty((0, 0, 0, 0), stack.dtype),
        name=f"read-window-{token}",
    )
    # the engines in use and why: "tiles", "on the target grid (216 files)"
    reasons: dict[str, Counter[str]] = {}
    for source in chain.from_iterable(stack.sources):
        reasons.setdefault(source.engine, Counter())[source.why] += 1
    lines = {
        engine: ", ".join(f"{why} ({n} file{'s' * (n > 1)})" for why, n in counts.items())
        for engine, counts in reasons.items()
    }
    reason = "; ".join(why if len(lines) == 1 else f"{engine}: {why}" for engine, why in lines.items())
    # numbers and strings only: netCDF and Zarr can store these
    attrs: dict[str, Any] = {"engine": ", ".join(lines), "engine_reason": reason, **numbers_attrs(stack)}
    sensors = {product.sensor for scene in stack.scenes for product in scene.parts}
    if len(sensors) == 1 and None not in sensors:
        (attrs["sensor"],) = sensors
    cube = xr.DataArray(data, _coords(stack), ("time", "band", "y", "x"), name="cube", attrs=attrs)
    return with_nodata(cube, stack.nodata)


def _read_block(*, read: StackHandle, block_id: tuple[int, ...]) -> NDArray[Any]:
    observations = read.stack.read(window_at(read.windows, block_id[2], block_id[3]))
    record_read(observations.tally)
    return observations.pixels


def numbers_attrs(stack: Stack) -> dict[str, Any]:
    """Return attributes that describe the values: units, or scale and offset to physical values.

    The names are not those of CF (``scale_factor``), because xarray would apply these when it opens a written file.
    """
    attrs: dict[str, Any] = {"saturated": list(stack.saturated)} if stack.saturated else {}
    numbers = stack.numbers
    if len(set(numbers)) == 1:
        values = numbers[0]
        if values is None:
            return attrs
        if (values.scale, values.offset) == (1.0, 0.0):
            common: dict[str, Any] = {"units": values.unit}
        else:
            common = {"scale": values.scale, "offset": values.offset, "scaled_units": values.unit}
        return attrs | {name: value for name, value in common.items() if value is not None}
    texts = []
    for band, values in zip(stack.bands, numbers, strict=True):
        if values:
            unit = values.unit or "unknown unit"
            physical = (values.scale, values.offset) == (1.0, 0.0)
            text = unit if physical else f"{values.scale:g} * number + {values.offset:g} ({unit})"
            texts.append(f"{band}: {text}")
    return attrs | {"band_units" if stack.options.reflectance else "scaling": "; ".join(texts)}


def window_at(spatial: Chunks, row: int, column: int) -> Window:
    """Return the window in a row and column of windows."""
    y, x = sum(spatial[0][:row]), sum(spatial[1][:column])
    return slice(y, y + spatial[0][row]), slice(x, x + spatial[1][column])


def stack_of(cube: xr.DataArray) -> tuple[Stack, Chunks] | None:
    """Return the stack and windows behind a cube from `open_cube`, None for any other array.

    After a selection of times or an area, a cube still has a stack, with the same selection. A cube with changed values
    or coordinates has none.
    """
    if not isinstance(cube.data, da.Array):
        return None
    graph = cube.data.dask
    handles = {name: handle for name, layer in graph.layers.items() if (handle := handle_in(layer, StackHandle))}
    reads = [name for name, below in graph.dependencies.items() if below & handles.keys()]
    others = graph.layers.keys() - handles.keys() - set(reads)
    if len(handles) != 1 or len(reads) != 1 or not all(name.startswith("getitem-") for name in others):
        return None
    ((sent, handle),) = handles.items()
    if cube.dims != ("time", "band", "y", "x") or "scene" not in cube.coords or len(cube.data.chunks[0]) > 1:
        return None
    stack = handle.stack
    times, bands, rows, columns = _selection(handle, cube.data, sent, reads[0])
    labels = [stack.scenes[t].id for t in times], [stack.bands[b] for b in bands]
    labelled = [str(scene) for scene in np.atleast_1d(cube["scene"].values)], list(cube["band"].values)
    if labels != labelled or bands != list(range(len(stack.bands))) or not _is_run(rows) or not _is_run(columns):
        return None
    geobox = geobox_or_none(cube)
    if geobox is None or aligned_offset(stack.geobox, geobox) != (rows[0], columns[0]):
        return None
    if geobox != stack.geobox:
        stack = stack.crop(geobox)
    if times != list(range(len(stack.scenes))):
        stack = stack.select(times)
    return stack, cube.data.chunks[2:]


def _is_run(positions: Sequence[int]) -> bool:
    return list(positions) == list(range(positions[0], positions[0] + len(positions))) if positions else False


def _selection(handle: StackHandle, data: da.Array, sent: str, read: str) -> list[list[int]]:
    """Return the positions along each axis that were selected from what the layer `read` reads.

    Coordinates are not reliable for this: they can be reassigned. So the selections in the graph are applied to
    positions instead of pixels, along one row of blocks for each axis.
    """
    sizes = ((len(handle.stack.scenes),), (len(handle.stack.bands),), *handle.windows)
    if data.name == read:
        return [list(range(sum(chunks))) for chunks in sizes]

    def along(axis: int) -> list[int]:
        def block(key: tuple[Any, ...]) -> NDArray[np.int64]:
            shape = [sizes[dim][number] for dim, number in enumerate(key[1:])]
            start = sum(sizes[axis][: key[1 + axis]])
            ends = [-1 if dim == axis else 1 for dim in range(len(shape))]
            return np.broadcast_to(np.arange(start, start + shape[axis]).reshape(ends), shape)

        keys = [
            (data.name, *(n if dim == axis else 0 for dim in range(data.ndim))) for n in range(data.numblocks[axis])
        ]
        tasks = dict(data.dask.cull(keys)).items()
        graph = {key: block(key) if key[0] == read else task for key, task in tasks if key != sent}
        first = tuple(slice(None) if dim == axis else 0 for dim in range(data.ndim))
        return [int(position) for positions in dask.get(graph, keys) for position in positions[first]]

    return [along(axis) for axis in range(data.ndim)]


_OF_SCENES: Mapping[str, tuple[Any, Any, Mapping[str, str]]] = {
    "granule": (str, "", {}),
    "orbit": (np.int16, 0, {"long_name": "relative orbit, 0: unknown"}),
    "baseline": (str, "", {}),
    "cloud_cover": (np.float64, math.nan, {"long_name": "cloud cover by the catalogue", "units": "percent"}),
}
"""Coordinates that scenes have if it is known of them: their type, what stands for an unknown value, attributes."""


def _coords(stack: Stack) -> dict[str, Any]:
    scenes = stack.scenes
    coords: dict[str, Any] = dict(xr_coords(stack.geobox, dims=("y", "x")))
    coords["time"] = ("time", np.array([s.time.replace(tzinfo=None) for s in scenes], "datetime64[ns]"))
    coords["band"] = ("band", list(stack.bands))
    coords["scene"] = ("time", np.array([s.id for s in scenes], dtype=str))
    for name, (dtype, missing, attrs) in _OF_SCENES.items():
        values = [getattr(scene, name) for scene in scenes]
        if any(value not in (None, missing) for value in values):  # left out if no scene has it
            known = [missing if value is None else value for value in values]
            coords[name] = ("time", np.array(known, dtype), attrs)
    coords["offset"] = (
        "time",
        stack.shifts(),
        {"long_name": "added to the files' numbers to harmonise processing baselines, NaN: not known, or several"},
    )
    return coords


def chunk_sides(chunks: Any) -> tuple[int | None, int | None]:
    """Return the requested height and width of windows: -1: the whole axis, None: chosen by memory.

    >>> chunk_sides({"x": 512, "y": -1}), chunk_sides("auto")
    ((-1, 512), (None, None))
    """
    pair = chunks if isinstance(chunks, (tuple, list, np.ndarray)) else (chunks, chunks)
    if isinstance(chunks, Mapping):
        named = {_AXES.get(str(dim), str(dim)): size for dim, size in chunks.items()}
        pair = (named.pop("y", None), named.pop("x", None))
        if any(size not in (-1, None, "auto") for size in named.values()) or named.keys() - {"time", "band"}:
            raise ParameterError(
                f"chunks is {chunks!r}; it has the keys y and x, because a window holds all times and bands of its area"
            )
    sides: list[int | None] = []
    for side in pair:
        whole = isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side >= -1
        default = side is None or (isinstance(side, str) and side == "auto")
        sides.append(None if default else int(side) if whole else 0)
    if len(sides) != 2 or 0 in sides:
        raise ParameterError(f"chunks is {chunks!r}; it is 'auto', a positive number of pixels, -1, or (y, x) of these")
    return sides[0], sides[1]


_AXES = {"latitude": "y", "lat": "y", "longitude": "x", "lon": "x"}


def _chunk_sizes(stack: Stack, chunks: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of the windows ``(y, x)`` and the position of the geobox's origin in a window."""
    sides, origin, auto = chunk_sides(chunks), stack.block_origin, (0, 0)
    if None in sides:
        auto = auto_size(stack, thread_memory())
        # Smaller windows, of whole blocks or tiles of a warp, if there would be too few for all threads.
        blocks = stack.block if stack.snaps else (WARP_TILE, WARP_TILE)
        threads = thread_count()
        wanted = 1 if threads == 1 else _WINDOWS_A_THREAD * threads
        while math.prod(-(-n // side) for n, side in zip(stack.shape[2:], auto, strict=True)) < wanted:
            axis = 0 if auto[0] >= auto[1] else 1
            half = -(-auto[axis] // (2 * blocks[axis])) * blocks[axis]
            if half >= auto[axis] or half < _SMALLEST_SHARE:
                break
            auto = (half, auto[1]) if axis == 0 else (auto[0], half)
    y, x = (
        size if side is None else n + start if side == -1 else -(-side // block) * block if side > block else side
        for side, size, n, start, block in zip(sides, auto, stack.shape[2:], origin, stack.block, strict=True)
    )
    return (y, x), origin


def auto_size(stack: Stack, memory: int) -> tuple[int, int]:
    """Return the largest nearly square window of whole blocks whose observations fit into a share of the memory."""
    _, bands, height, width = stack.shape
    # A window holds only the scenes that touch it: few of a country's.
    limit = min(_LARGEST_TASK, int(memory * _TASK_SHARE)) // (stack.depth * bands * stack.dtype.itemsize)
    y, x = stack.block
    while y * x > limit and max(y, x) > 64:
        y, x = (y // 2, x) if y >= x else (y, x // 2)
    while True:
        wider = (y * 2, x) if y <= x else (y, x * 2)
        if wider[0] * wider[1] > limit or (y >= height and x >= width):
            return min(y, height), min(x, width)
        y, x = wider


def thread_count() -> int:
    """Return the number of concurrent tasks: threads of the current client's workers, else cores of this machine."""
    workers = current_workers()
    return int(CPU_COUNT) if workers is None else max(1, sum(int(worker["nthreads"]) for worker in workers))


def thread_memory() -> int:
    """Return the bytes per worker thread: of the current client's smallest worker, else of this machine."""
    shares = [w["memory_limit"] // w["nthreads"] for w in current_workers() or () if w["memory_limit"]]
    return min(shares) if shares else int(MEMORY_LIMIT) // (os.cpu_count() or 1)


def current_workers() -> list[Mapping[str, Any]] | None:
    """Return what the scheduler knows of each worker of the current client; None without a client."""
    try:
        return list(running_workers(default_client()).values())
    except ValueError:
        return None
