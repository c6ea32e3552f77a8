"""Pool: windows made by processes of their own, a bounded number at a time, the same window never twice at once.

Processes and not threads: a window that takes too long, or that a native library crashes over, is ended without the
service, and what runs there has its own limits (`s2composite.scenes.access`). Handing a window over costs 0.1 ms.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from pathlib import Path

import numpy as np
import rasterio
from pebble import ProcessExpired, ProcessPool

from s2composite.errors import S2CompositeError
from s2composite.scenes.access import VARIABLE
from s2composite.service.envelope import WindowRequest
from s2composite.service.median import Made, make_median
from s2composite.service.problems import Problem, ProblemError, problem_of, scrubbed
from s2composite.service.settings import Settings

__all__ = ["Windows"]

LOG = logging.getLogger(__name__)

_RENEWED = 2000
"""Windows after which a process makes room for a fresh one, so that nothing that a library leaks adds up."""

Key = tuple[str, tuple[int, ...], Sequence[str]]


class Windows:
    """Makes windows; open from `start` to `close`.

    Parameters
    ----------
    settings
        How many, how long, and where from and to.

    Attributes
    ----------
    made, found
        Windows that were made since the start, and asked for again when they were there.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: dict[Key, asyncio.Task[Made]] = {}
        self._pool: ProcessPool | None = None
        self._first: Future[None] | None = None
        self.made = 0
        self.found = 0

    def start(self) -> None:
        """Start the processes, and have each compile its kernels."""
        workers = self._settings.workers
        # The libraries are imported once, by a process without threads, of which all others are copies: one that was
        # ended is replaced in no time.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([make_median.__module__])
        self._pool = ProcessPool(
            max_workers=workers,
            max_tasks=_RENEWED,
            initializer=_begin,
            initargs=[self._settings.access.to_json(), self._settings.warm],
            context=context,
        )
        self._first = self._pool.schedule(_nothing)

    @property
    def ready(self) -> bool:
        """Whether a process has compiled its kernels."""
        return self._first is not None and self._first.done()

    def close(self) -> None:
        """End the processes: what is not finished is not written, and whoever asked for it asks again."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call] # pebble's
            self._pool.join()

    @property
    def waiting(self) -> int:
        """Windows that are being made or wait."""
        return len(self._running)

    async def make(self, request: WindowRequest) -> Made:
        """Make a window; whoever asks for one that is being made gets that.

        Raises
        ------
        ProblemError
            What is wrong with the request, too many are waiting, or it took too long.
        """
        self._check_size(request)
        key = (request.destination, request.window, request.datasets)
        task = self._running.get(key)
        if task is None:
            if len(self._running) >= self._settings.limits.waiting:
                told = f"{len(self._running)} windows are waiting; try again later"
                raise ProblemError(Problem(429, told, retry_after=1))
            task = asyncio.create_task(self._made(request))
            self._running[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        # A caller who hangs up does not stop the window: it asks again and then finds it made.
        return await asyncio.shield(task)

    def _forget(self, key: Key, task: asyncio.Task[Made]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may be left who does

    async def _made(self, request: WindowRequest) -> Made:
        assert self._pool is not None
        limit = self._settings.limits.seconds
        future: Future[Made | Problem] = self._pool.schedule(_outcome, args=[request], timeout=limit)
        try:
            outcome = await asyncio.wrap_future(future)
        except TookTooLong:
            raise ProblemError(
                Problem(504, f"the window took longer than {limit:g} s; ask for a smaller one")
            ) from None
        except ProcessExpired as error:
            LOG.error("a process ended while it made a window: exit code %s", error.exitcode)  # noqa: TRY400 - no frames worth showing
            told = "the process that made the window has ended; try again"
            raise ProblemError(Problem(503, told, retry_after=1)) from None
        if isinstance(outcome, Problem):
            raise ProblemError(outcome)
        self.found += outcome.again
        self.made += not outcome.again
        return outcome

    def _check_size(self, request: WindowRequest) -> None:
        limits = self._settings.limits
        pixels = request.window[2] * request.window[3]
        if pixels > limits.pixels:
            raise ProblemError(Problem(422, f"{pixels} pixels; at most {limits.pixels} are made at once", "/window"))
        size = pixels * 3 * len(request.datasets)
        if size > limits.observations:
            told = f"{size} bytes of observations; at most {limits.observations}: ask for a smaller window"
            raise ProblemError(Problem(422, told, "/window"))


def _outcome(request: WindowRequest) -> Made | Problem:
    """Make a window in a worker; what fails comes back as a value, because not every exception can travel."""
    try:
        return make_median(request)
    except ProblemError as error:
        return error.problem
    except S2CompositeError as error:
        return problem_of(error)
    except Exception as error:  # noqa: BLE001 - a worker lives on, whatever a library raises
        LOG.error("%s", scrubbed(traceback.format_exc()))  # noqa: TRY400 - the traceback without secrets
        return Problem(500, f"the window could not be made: {type(error).__name__}; the service's log says more")


def _nothing() -> None:
    """Run when a process has begun."""


def _begin(access: str, warm: bool) -> None:
    """Prepare a process: its limits, and the kernels, which take seconds to compile."""
    if warm:
        _compile()
    os.environ[VARIABLE] = access


def _compile() -> None:
    """Make a window of generated pixels."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, f"{i}.tif")) for i in range(2)]
        for i, file in enumerate(files):
            profile = {
                "driver": "GTiff",
                "count": 3,
                "height": 256,
                "width": 256,
                "dtype": "uint8",
                "crs": "EPSG:32631",
            }
            more = {"tiled": True, "compress": "deflate", "photometric": "RGB", "interleave": "pixel"}
            place = rasterio.Affine(10, 0, 300000, 0, -10, 4900020)
            with rasterio.open(file, "w", **profile, **more, transform=place) as made:
                made.write(np.full((3, 256, 256), 40 + i, np.uint8))
        out = str(Path(folder, "out.tif"))
        make_median(WindowRequest(window=(0, 0, 200, 100), destination=out, datasets=tuple(files)))
