"""Single windows: requested directly or pushed by Pub/Sub, computed by a bounded number of processes, reproducibly.

The result is that of the original worker: scenes in the order listed; observations with 0 or 255 in any band are
dropped; of the others, sorted by R + G + B, the triplet at ``n // 2``; 0 if there is none.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import json
import logging
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WindowTimeout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rasterio
import xarray as xr
from odc.geo.xr import xr_coords
from pebble import ProcessExpired, ProcessPool
from pydantic import ConfigDict, Field, JsonValue, ValidationError

import s2composite
from s2composite.config import Strict
from s2composite.cube.windows import compose_window
from s2composite.errors import AccessError, BandError, GridError, ReadError, S2CompositeError, SceneError, SourceError
from s2composite.pixels.recipe import Recipe
from s2composite.pixels.reducers import resolve_reducer
from s2composite.reading.sources import ReadOptions
from s2composite.reading.stack import Stack, open_stack
from s2composite.scenes.model import Asset, Scene
from s2composite.service.security import ProblemError, parse_json, problem_from_error, problems_at, validation_problem
from s2composite.service.settings import Settings
from s2composite.storage.files import absolute, is_remote, redact
from s2composite.storage.http import read_head
from s2composite.storage.urls import VARIABLE, check_read, check_write
from s2composite.writing.cog import write_raster

__all__ = [
    "EXAMPLE", "PUSHED_EXAMPLE", "TAG", "Delivery", "WindowPool", "WindowRequest", "make_window",
    "parse_delivery",
]  # fmt: skip

LOG = logging.getLogger(__name__)


# --- requests -------------------------------------------------------------------------------------------------------

# The payload of a request for a window.
EXAMPLE: dict[str, JsonValue] = {
    "window": [0, 0, 1024, 1024],
    "destination": "gs://bucket/results/tile_0_0.tif",
    "datasets": [
        "gs://bucket/t31tcj/T31TCJ_20230102T104441_TCI.tif",
        "gs://bucket/t31tcj/T31TCJ_20230103T110349_TCI.tif",
    ],
}

# The same in the envelope of Pub/Sub.
PUSHED_EXAMPLE = {
    "message": {"data": base64.b64encode(json.dumps(EXAMPLE).encode()).decode(), "messageId": "7"},
    "subscription": "projects/my-project/subscriptions/windows",
}

Whole = Annotated[int, Field(ge=0, le=10**7)]
Side = Annotated[int, Field(ge=1, le=10**6)]
Href = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]


class WindowRequest(Strict):
    """One window: its area, its scenes and its destination."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [EXAMPLE]},
    )

    window: Annotated[tuple[Whole, Whole, Side, Side], Field(strict=False)]
    """First column, first row, width and height, in pixels of the scenes."""
    destination: Href
    """The cloud-optimised GeoTIFF to write: ``gs://``, ``s3://`` or a path, ending in ``.tif``."""
    datasets: Annotated[tuple[Href, ...], Field(strict=False, min_length=1)]
    """RGB scenes on one grid; of equal luminances, the one listed first is used."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came in."""

    payload: Any  # not checked yet
    # Pub/Sub's id of the message; Pub/Sub retries after any error status. None for a direct request.
    message: str | None = None
    problem: ProblemError | None = None  # why a pushed message has no payload; retrying cannot help

    def request(self, datasets: int) -> WindowRequest:
        """Return the requested window; raise if it has more than `datasets` scenes."""
        if self.problem is not None:
            raise self.problem
        if not isinstance(self.payload, Mapping):
            raise ProblemError(422, "the payload is not an object with window, destination and datasets", "")
        listed = self.payload.get("datasets")
        if isinstance(listed, list) and len(listed) > datasets:
            raise ProblemError(422, f"{len(listed)} datasets; at most {datasets} are allowed", "/datasets")
        try:
            return WindowRequest.model_validate(self.payload)
        except ValidationError as error:
            raise validation_problem(error, "window, destination, datasets") from None


def parse_delivery(body: bytes) -> Delivery:
    """Return the content of a body: a payload, or Pub/Sub's envelope around one."""
    content = parse_json(body)
    if not isinstance(content, Mapping) or "message" not in content:
        return Delivery(content)
    message = content["message"]
    if not isinstance(message, Mapping):
        raise ProblemError(400, "message: not an object; Pub/Sub sends {'message': {'data': ...}}", "/message")
    number = str(message.get("messageId") or message.get("message_id") or "without id")[:100]
    data = message.get("data")
    if not isinstance(data, str):
        raise ProblemError(400, "message.data: is missing, or no text in base64", "/message/data")
    try:
        return Delivery(parse_json(base64.b64decode(data, validate=True)), number)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        return Delivery(None, number, ProblemError(422, f"message.data: not base64: {error}", "/message/data"))
    except ProblemError as error:
        return Delivery(None, number, ProblemError(422, f"message.data: {error.detail}", "/message/data"))


# --- one window -----------------------------------------------------------------------------------------------------

# Tag that identifies the window and scenes of a file, so that a repeated request finds it.
TAG = "S2COMPOSITE_WINDOW"

BANDS = ("red", "green", "blue")

_RECIPE = Recipe((resolve_reducer("luminance_median"),), bands=BANDS, nodata=0)

# GDAL is not used on scenes that a caller names: it opens other files that a file refers to.
_OPTIONS = ReadOptions(engine="tiles", harmonise=False, headers="read")

_MAX_STACKS = 4  # cached by a worker: all windows of a job have the same scenes, whose headers are then read once
_STACK_FRESH = 300.0  # seconds: replaced scenes are noticed after this, or when their pixels are read
_MAX_TILE = 128 << 20  # bytes of an encoded tile, which is fetched whole; the reader limits decoded ones
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def make_window(request: WindowRequest) -> bool:
    """Compute and write the requested window, unless the same one exists; return whether it existed.

    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> request = WindowRequest(window=(0, 0, 64, 64), destination="doctest_tile.tif", datasets=tuple(files))
    >>> make_window(request), make_window(request)
    (False, True)
    """
    with problems_at("/destination"):
        destination = absolute(request.destination)
        check_write(destination)
    if not destination.lower().endswith((".tif", ".tiff")):
        raise ProblemError(422, "destination: a window is a GeoTIFF; its name ends in .tif", "/destination")
    datasets = []
    for number, href in enumerate(request.datasets):
        with problems_at(f"/datasets/{number}"):
            datasets.append(absolute(href))
            check_read(datasets[-1])
    scenes = tuple(datasets)
    try:
        try:
            return _write_window(request.window, destination, scenes)
        except ReadError as error:
            if error.__dict__.get("transient"):
                raise
            # The scene may have been replaced since its header was read.
            _stack_of.cache_clear()
            return _write_window(request.window, destination, scenes)
    except (ReadError, SceneError, GridError, BandError, SourceError, AccessError) as error:
        raise _scene_problem(error, scenes) from error


def _write_window(box: tuple[int, int, int, int], destination: str, datasets: tuple[str, ...]) -> bool:
    """Write a window of ``(x, y, width, height)``; return whether it already existed."""
    stack = _stack_of(datasets, int(time.monotonic() // _STACK_FRESH))
    x, y, width, height = box
    rows, columns = stack.shape[2:]
    if x + width > columns or y + height > rows:
        detail = f"window out of bounds: {list(box)} of scenes with {columns} x {rows} pixels"
        raise ProblemError(422, detail, "/window")
    # The token covers everything that determines the bytes.
    token = hashlib.sha256(json.dumps([s2composite.__version__, stack.token, list(box)]).encode()).hexdigest()
    try:
        # A file under its final name is complete.
        if token.encode() in read_head(destination)[0]:
            return True
    except ReadError as error:
        if error.__dict__.get("transient"):
            raise problem_from_error(error, "/destination") from error
        # It does not exist, or this process may not read it; writing it will raise the error.
    window = (slice(y, y + height), slice(x, x + width))
    pixels = compose_window(stack, _RECIPE, window)["composite"]
    with problems_at("/destination"):
        coords = dict(xr_coords(stack.geobox[window], dims=("y", "x"))) | {"band": list(BANDS)}
        attrs = {"nodata": 0, "overviews": "average", "long_name": "masked luminance median"}
        lineage = {"reducer": "luminance_median", "software": f"s2composite {s2composite.__version__}"}
        dataset = xr.Dataset({"composite": (("band", "y", "x"), pixels, attrs)}, coords, lineage)
        if not is_remote(destination):
            Path(destination).parent.mkdir(parents=True, exist_ok=True)
        tags = {TAG: token, "SCENES": str(len(stack.scenes))}
        write_raster(dataset, destination, layers="composite", blocksize=256, overwrite=True, tags=tags, progress=False)
    return False


@lru_cache(_MAX_STACKS)
def _stack_of(datasets: tuple[str, ...], period: int) -> Stack:  # noqa: ARG001 - a new period is a new look at headers
    """Return the stack of scenes in the order listed, opened once in a `period`."""
    scenes = []
    for number, href in enumerate(datasets):
        # The list gives the order of time; names need not contain a date.
        name = href.partition("?")[0].rpartition("/")[2].rpartition(".")[0]
        time_in_order = _EPOCH + dt.timedelta(seconds=number)
        scenes.append(Scene(f"{number:05d}:{name}", time_in_order, (Asset("data", href),)))
    stack = open_stack(scenes, options=_OPTIONS)
    if len(stack.bands) != len(BANDS):
        raise ProblemError(422, f"expecting 3 bands, got {len(stack.bands)}", "/datasets/0")
    if stack.dtype != np.uint8:
        raise ProblemError(422, f"expecting pixels of uint8, got {stack.dtype}", "/datasets/0")
    for number, files in enumerate(stack.sources):
        for source in files:
            largest = int(source.header.levels[source.level].counts.max(initial=np.uint64(0)))
            if largest > _MAX_TILE:
                detail = f"a tile has {largest} bytes; at most {_MAX_TILE} are fetched at once"
                raise ProblemError(422, detail, f"/datasets/{number}")
    return stack


def _scene_problem(error: S2CompositeError, datasets: Sequence[str]) -> ProblemError:
    """Return the problem for an error about a scene; the scene's name begins with its number."""
    if why := error.__dict__.get("why"):
        detail = f"needs GDAL ({why}), which opens no scene of a window: write it as a TIFF on the grid of the others"
        error = GridError(f"{error.__dict__['href']}: {detail}, or send a job", href=error.__dict__["href"])
    name, href = str(error.__dict__.get("scene") or ""), str(error.__dict__.get("href") or "")
    number = name.partition(":")[0]
    if number.isdecimal():
        return problem_from_error(error, f"/datasets/{int(number)}")
    same = [i for i, dataset in enumerate(datasets) if href and dataset.partition("?")[0] == href.partition("?")[0]]
    return problem_from_error(error, f"/datasets/{same[0]}" if same else "/datasets")


# --- the processes --------------------------------------------------------------------------------------------------

_MAX_TASKS = 2000  # after which a process is replaced, so that memory leaks of libraries do not add up


class WindowPool:
    """Computes windows between `start` and `close`, a bounded number at a time, never the same one twice at once.

    It uses processes, not threads: a window that takes too long, or crashes in a native library, is ended without
    affecting the service, and each process has its own limits (`s2composite.storage.urls`). Submitting a window costs
    0.1 ms.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: dict[WindowRequest, asyncio.Task[None]] = {}
        self._pool: ProcessPool | None = None
        self._first: Future[int] | None = None
        self.made = 0
        self.reused = 0

    def start(self) -> None:
        """Start the processes, and have each compile its kernels."""
        # The libraries are imported once, in a process without threads from which all others are forked: a process that
        # was ended is replaced at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pool = ProcessPool(
            max_workers=self._settings.workers,
            max_tasks=_MAX_TASKS,
            initializer=_initialize_worker,
            initargs=[self._settings.access.to_json(), self._settings.warm],
            context=context,
        )
        self._first = self._pool.schedule(int)  # runs when a process has started

    @property
    def ready(self) -> bool:
        """Whether a process has compiled its kernels."""
        return self._first is not None and self._first.done()

    def close(self) -> None:
        """End the processes: unfinished windows are not written, and their callers must retry."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call] # pebble's
            self._pool.join()

    @property
    def waiting(self) -> int:
        """Number of windows in progress or waiting."""
        return len(self._running)

    async def make(self, request: WindowRequest) -> None:
        """Compute a window; a request for a window in progress waits for that one."""
        limits = self._settings.limits
        pixels = request.window[2] * request.window[3]
        if pixels > limits.pixels:
            raise ProblemError(422, f"{pixels} pixels; at most {limits.pixels} are allowed", "/window")
        size = pixels * 3 * len(request.datasets)
        if size > limits.observations:
            detail = f"{size} bytes of observations; at most {limits.observations}: ask for a smaller window"
            raise ProblemError(422, detail, "/window")
        task = self._running.get(request)
        if task is None:
            if len(self._running) >= limits.waiting:
                detail = f"{len(self._running)} windows are waiting; try again later"
                raise ProblemError(429, detail, retry_after=1)
            task = asyncio.create_task(self._make(request))
            self._running[request] = task

            def forget(done: asyncio.Task[None]) -> None:
                del self._running[request]
                if not done.cancelled():
                    done.exception()  # callers that waited got it; there may be none left

            task.add_done_callback(forget)
        # A caller that disconnects does not stop the window: a retry then finds the file.
        await asyncio.shield(task)

    async def _make(self, request: WindowRequest) -> None:
        assert self._pool is not None
        limit = self._settings.limits.seconds
        future: Future[bool | ProblemError] = self._pool.schedule(_make_in_worker, args=[request], timeout=limit)
        try:
            outcome = await asyncio.wrap_future(future)
        except WindowTimeout:
            detail = f"the window took longer than {limit:g} s; ask for a smaller one"
            raise ProblemError(504, detail) from None
        except ProcessExpired as error:
            LOG.error("a process ended while it computed a window: exit code %s", error.exitcode)  # noqa: TRY400 - no frames worth showing
            detail = "the process that computed the window has ended; try again"
            raise ProblemError(503, detail, retry_after=1) from None
        if isinstance(outcome, ProblemError):
            raise outcome
        self.reused += outcome
        self.made += not outcome


def _make_in_worker(request: WindowRequest) -> bool | ProblemError:
    """Compute a window in a worker; return errors as values, because not every exception can be pickled."""
    try:
        return make_window(request)
    except ProblemError as error:
        return error
    except S2CompositeError as error:
        return problem_from_error(error)
    except Exception as error:  # noqa: BLE001 - the worker must survive any error of a library
        LOG.error("%s", redact(traceback.format_exc()))  # noqa: TRY400 - the traceback without secrets
        return ProblemError(500, f"the window could not be computed: {type(error).__name__}; see the service's log")


def _initialize_worker(access: str, warm: bool) -> None:
    """Compile the kernels, which takes seconds, with a window of generated pixels; then restrict the process."""
    if warm:
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder, f"{i}.tif")) for i in range(2)]
            for i, file in enumerate(files):
                profile = {"driver": "GTiff", "count": 3, "height": 256, "width": 256, "dtype": "uint8"}
                profile |= {"tiled": True, "compress": "deflate", "photometric": "RGB", "interleave": "pixel"}
                transform = rasterio.Affine(10, 0, 300000, 0, -10, 4900020)
                with rasterio.open(file, "w", **profile, crs="EPSG:32631", transform=transform) as made:
                    made.write(np.full((3, 256, 256), 40 + i, np.uint8))
            out = str(Path(folder, "out.tif"))
            make_window(WindowRequest(window=(0, 0, 200, 100), destination=out, datasets=tuple(files)))
    os.environ[VARIABLE] = access
