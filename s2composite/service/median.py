"""Median: one window of some RGB scenes, written as a cloud-optimised GeoTIFF. The same request gives the same bytes.

What a request means is what the course's worker made of it: scenes in the order they are listed, an observation dropped
where any band is 0 or 255, of the others the triplet at ``n // 2`` in order of R + G + B, 0 where there is none.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import xarray as xr
from odc.geo.xr import xr_coords

import s2composite
from s2composite.errors import AccessError, BandError, GridError, ReadError, S2CompositeError, SceneError, SourceError
from s2composite.pixels.recipe import Recipe
from s2composite.pixels.reducers import resolve_reducer
from s2composite.reading.fetch import read_head
from s2composite.reading.source import ReadOptions
from s2composite.reading.stack import Stack, open_stack
from s2composite.scenes.access import check_read, check_write
from s2composite.scenes.model import Asset, Scene
from s2composite.scenes.storage import absolute, is_remote
from s2composite.service.envelope import WindowRequest
from s2composite.service.problems import Problem, ProblemError, problem_of
from s2composite.windows import compose_window
from s2composite.writing.cog import write_raster

__all__ = ["TAG", "Made", "make_median"]

TAG = "S2COMPOSITE_WINDOW"
"""Tag of the file that says of which window of which scenes it is: whoever is asked again finds it made."""

BANDS = ("red", "green", "blue")

_RECIPE = Recipe((resolve_reducer("luminance_median"),), bands=BANDS, nodata=0)

_OPTIONS = ReadOptions(engine="tiles", harmonise=False, headers="read")
"""GDAL is not let near scenes that a stranger names: it opens what files name inside them."""

_KEPT = 4
"""Stacks that a worker keeps: all windows of a job have the same scenes, whose headers then are read once."""

_FRESH = 300.0
"""Seconds that a stack is kept: scenes that are replaced are noticed then, or when their pixels are read."""

_LARGEST_TILE = 128 << 20
"""Bytes of an encoded tile of a scene, which is fetched whole; decoded ones are limited by what reads them."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_stacks: OrderedDict[tuple[str, ...], tuple[float, Stack]] = OrderedDict()
_lock = Lock()


@dataclass(frozen=True, slots=True)
class Made:
    """A window that is there."""

    destination: str
    """Absolute path or URL of the file."""

    again: bool
    """It was there before, made of the same."""

    seconds: float
    """Time it took."""


def make_median(request: WindowRequest) -> Made:
    """Make the window that a request asks for, unless it is there.

    Raises
    ------
    ProblemError
        Names the field that is wrong, or says that a later attempt may succeed.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> make_median(WindowRequest(window=(0, 0, 64, 64), destination="doctest_tile.tif", datasets=tuple(files))).again
    False
    """
    start = time.perf_counter()
    destination = _destination(request.destination)
    datasets = tuple(_dataset(i, href) for i, href in enumerate(request.datasets))
    try:
        again = _make_patiently(request, destination, datasets)
    except (ReadError, SceneError, GridError, BandError, SourceError, AccessError) as error:
        raise ProblemError(_about_scene(error, datasets)) from error
    return Made(destination, again, time.perf_counter() - start)


def _make_patiently(request: WindowRequest, destination: str, datasets: tuple[str, ...]) -> bool:
    try:
        return _make(request, destination, datasets)
    except ReadError as error:
        if error.__dict__.get("transient"):
            raise
        # A scene may have been replaced since its header was read.
        _forget(datasets)
        return _make(request, destination, datasets)


def _make(request: WindowRequest, destination: str, datasets: tuple[str, ...]) -> bool:
    """Make a window; return whether it was there already."""
    stack = _stack(datasets)
    x, y, width, height = request.window
    _check_inside(request.window, stack)
    token = _token(stack, request.window)
    if _is_there(destination, token):
        return True
    window = (slice(y, y + height), slice(x, x + width))
    pixels = compose_window(stack, _RECIPE, window)["composite"]
    try:
        _write(pixels, stack, window, destination, token)
    except S2CompositeError as error:
        raise ProblemError(problem_of(error, "/destination")) from error
    return False


# --- what is asked for ----------------------------------------------------------------------------------------------


def _destination(href: str) -> str:
    try:
        target = absolute(href)
        check_write(target)
    except S2CompositeError as error:
        raise ProblemError(problem_of(error, "/destination")) from error
    if not target.lower().endswith((".tif", ".tiff")):
        raise ProblemError(Problem(422, "destination: a window is a GeoTIFF; its name ends in .tif", "/destination"))
    return target


def _dataset(number: int, href: str) -> str:
    try:
        target = absolute(href)
        check_read(target)
    except S2CompositeError as error:
        raise ProblemError(problem_of(error, f"/datasets/{number}")) from error
    return target


def _check_inside(window: tuple[int, int, int, int], stack: Stack) -> None:
    x, y, width, height = window
    rows, columns = stack.shape[2:]
    if x + width > columns or y + height > rows:
        raise ProblemError(
            Problem(422, f"window out of bounds: {list(window)} of scenes with {columns} x {rows} pixels", "/window")
        )


# --- scenes ---------------------------------------------------------------------------------------------------------


def _stack(datasets: tuple[str, ...]) -> Stack:
    """Return the stack of scenes in the order they are listed; the last ones are kept."""
    with _lock:
        held = _stacks.get(datasets)
        if held is not None and time.monotonic() - held[0] < _FRESH:
            _stacks.move_to_end(datasets)
            return held[1]
    stack = _opened(datasets)
    with _lock:
        _stacks[datasets] = (time.monotonic(), stack)
        while len(_stacks) > _KEPT:
            _stacks.popitem(last=False)
    return stack


def _forget(datasets: tuple[str, ...]) -> None:
    with _lock:
        _stacks.pop(datasets, None)


def _opened(datasets: tuple[str, ...]) -> Stack:
    stack = open_stack([_scene(i, href) for i, href in enumerate(datasets)], options=_OPTIONS)
    if len(stack.bands) != len(BANDS):
        raise ProblemError(Problem(422, f"expecting 3 bands, got {len(stack.bands)}", "/datasets/0"))
    if stack.dtype != np.uint8:
        raise ProblemError(Problem(422, f"expecting pixels of uint8, got {stack.dtype}", "/datasets/0"))
    for number, files in enumerate(stack.sources):
        for source in files:
            largest = int(source.header.levels[source.level].counts.max(initial=np.uint64(0)))
            if largest > _LARGEST_TILE:
                told = f"a tile has {largest} bytes; at most {_LARGEST_TILE} are fetched at once"
                raise ProblemError(Problem(422, told, f"/datasets/{number}"))
    return stack


def _scene(number: int, href: str) -> Scene:
    """Return a scene whose place in the order of time is that in the list; names need not tell a date."""
    name = href.partition("?")[0].rpartition("/")[2].rpartition(".")[0]
    return Scene(f"{number:05d}:{name}", _EPOCH + dt.timedelta(seconds=number), (Asset("data", href),))


def _about_scene(error: S2CompositeError, datasets: Sequence[str]) -> Problem:
    """Return the problem of an error about a scene, whose number its name begins with."""
    if why := error.__dict__.get("why"):
        told = f"needs GDAL ({why}), which opens no scene of a window: write it as a TIFF on the grid of the others"
        error = GridError(f"{error.__dict__['href']}: {told}, or send a job", href=error.__dict__["href"])
    name, href = str(error.__dict__.get("scene") or ""), str(error.__dict__.get("href") or "")
    number = name.partition(":")[0]
    if number.isdecimal():
        return problem_of(error, f"/datasets/{int(number)}")
    found = [i for i, dataset in enumerate(datasets) if href and dataset.partition("?")[0] == href.partition("?")[0]]
    return problem_of(error, f"/datasets/{found[0]}" if found else "/datasets")


# --- the file -------------------------------------------------------------------------------------------------------


def _token(stack: Stack, window: tuple[int, int, int, int]) -> str:
    """Return the hash of all that decides the bytes of a window."""
    facts = [s2composite.__version__, stack.token, list(window)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _is_there(destination: str, token: str) -> bool:
    """Return whether the file is there and of the same: a file under its final name is whole."""
    try:
        head, _ = read_head(destination)
    except ReadError as error:
        if error.__dict__.get("transient"):
            raise ProblemError(problem_of(error, "/destination")) from error
        return False  # not there, or not to be read by us: writing it will tell
    return token.encode() in head


def _write(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    stack: Stack,
    window: tuple[slice, slice],
    destination: str,
    token: str,
) -> None:
    coords = dict(xr_coords(stack.geobox[window], dims=("y", "x"))) | {"band": list(BANDS)}
    attrs = {"nodata": 0, "overviews": "average", "long_name": "masked luminance median"}
    facts = {"reducer": "luminance_median", "software": f"s2composite {s2composite.__version__}"}
    dataset = xr.Dataset({"composite": (("band", "y", "x"), pixels, attrs)}, coords, facts)
    if not is_remote(destination):
        Path(destination).parent.mkdir(parents=True, exist_ok=True)
    tags = {TAG: token, "SCENES": str(len(stack.scenes))}
    write_raster(dataset, destination, layers="composite", blocksize=256, overwrite=True, tags=tags, progress=False)
