"""The client of the service: sends the windows of a job over HTTP or Pub/Sub, retries, and assembles the output."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import google.auth
import httpx
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request as GoogleRequest

from s2composite.errors import JobError, ServiceError
from s2composite.geotiff.header import read_header
from s2composite.jobs.schema import Job, load_job
from s2composite.runner.inputs import job_scenes, ledger_key
from s2composite.runner.ledger import Ledger
from s2composite.runner.run import Failure
from s2composite.storage.files import absolute, display, filesystem, is_remote, join, redact
from s2composite.storage.retry import TRANSIENT, AttemptError, Retry, retry_after, retrying, retrying_async
from s2composite.writing.mosaic import reconstruct
from s2composite.writing.publish import target_of
from s2composite.writing.steps import progress_bar

__all__ = ["DispatchResult", "dispatch", "post_windows", "publish_windows"]

SIDE = 1024  # default side of a window in pixels
_POLL = 2.0  # seconds between listings of the tiles written
_BATCH = 100  # messages published at once: with 216 scenes in each, 2 MB of Pub/Sub's limit of 10 MB

# Keys of a job that are supported here; the service computes only the masked luminance median of RGB scenes.
_KEYS = frozenset({
    "source", "output", "pattern", "times", "datetime", "duplicates", "alternate", "chunks", "raster", "overwrite",
    "policy", "cluster",
})  # fmt: skip

# Default retries of a failed window; `timeout` applies to each response.
RETRY = Retry(attempts=8, first_wait=1.0, longest_wait=60.0, timeout=600.0)


@dataclass(frozen=True, slots=True)
class DispatchResult:
    """The outcome of a job that was sent to a service."""

    path: str | None  # the file; None if windows failed
    tiles: str  # the directory of the tiles
    windows: int
    attempts: int  # number of requests
    seconds: float
    failed: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class _Window:
    position: tuple[int, int]  # row and column of windows
    payload: Mapping[str, Any]  # to post: window, destination, datasets


# Called with the outcome of each attempt to compute a window: the window, the attempt's number from 1, its seconds, why
# it failed (None: the window was computed), and whether no further attempt follows.
_Record = Callable[[_Window, int, float, str | None, bool], None]


@dataclass(frozen=True, slots=True)
class _Plan:
    windows: tuple[_Window, ...]  # column by column, like the original dispatcher
    folder: str  # of the tiles: specific to these scenes and windows, so that other tiles are not mistaken for these
    shape: tuple[int, int]  # rows and columns of the whole, in pixels
    grid: list[int]  # rows and columns of windows
    token: str  # hash of scenes and windows


def dispatch(
    job: Job | str | Path | Mapping[str, Any],
    *,
    url: str | None = None,
    topic: str | None = None,
    token: str | None = None,
    concurrency: int = 16,
    retry: Retry = RETRY,
    silence: float = 900.0,
) -> DispatchResult:
    """Send all windows of a job to a service, wait for them, and assemble the output.

    Call it again to resume an interrupted run: the service finds the windows that already exist.

    Parameters
    ----------
    job
        As for `run`; the service must be allowed to read its scenes and write its output. Windows have `chunks`
        pixels a side, or 1024.
    url
        URL of a service's endpoint, ``https://host/median``.
    topic
        Instead of `url`, a Pub/Sub topic, ``projects/PROJECT/topics/TOPIC``, with a subscription that pushes to a
        service.
    token
        The service's token.
    concurrency
        Number of concurrent windows.
    retry
        Attempts and pauses, unless the service asks for longer pauses.
    silence
        With a topic: seconds without a new tile after which the remaining windows count as failed.

    Raises
    ------
    JobError
        The job has options that the service does not support.
    ServiceError
        Neither or both of `url` and `topic` are given, or the topic cannot be published to.
    TilesError
        Tiles are missing, or do not fit together.
    S2CompositeError
        Another subclass, for errors of scenes or output.

    Examples
    --------
    >>> dispatch("job.yaml", url="https://median-xyz.a.run.app/median", token="...")  # doctest: +SKIP
    """
    start = time.perf_counter()
    job = load_job(job)
    if (url is None) == (topic is None):
        raise ServiceError("give the url of a service, or a topic that is pushed to one")
    for key, field in Job.model_fields.items():
        if key not in _KEYS and getattr(job, key) != field.get_default():
            message = "a service makes only luminance medians of RGB scenes on their grid; omit it, or run the job"
            raise JobError(f"{key}: {message}", key=key, line=None)
    if job.format != "tif":
        raise JobError("output: tiles are assembled into a GeoTIFF; its name must end in .tif", key="output", line=None)
    output = target_of(job.output, overwrite=job.overwrite)
    plan = _plan_windows(job, output)
    attempts, failed, path = 0, list[Failure](), None
    with Ledger(ledger_key(job), f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}") as ledger:
        entry = {"token": plan.token, "windows": plan.grid, "timeout": retry.timeout, "files": [display(output)]}
        ledger.add("start", **entry, done=0, todo=len(plan.windows))
        try:
            with progress_bar(Path(job.output).name, len(plan.windows)) as advance:

                def record(window: _Window, number: int, seconds: float, error: str | None, final: bool) -> None:
                    nonlocal attempts
                    attempts += 1
                    seconds, position = round(seconds, 3), list(window.position)
                    entry = {"token": plan.token, "window": position, "attempt": number, "seconds": seconds}
                    entry |= {"worker": display(url or topic or "")}
                    if error is None:
                        # Only the service knows how a window's time was spent.
                        ledger.add("done", **entry, read=seconds, encode=0.0)
                    else:
                        ledger.add("failed" if final else "retry", **entry, error=error, kind="ServiceError")
                    if final:
                        advance()
                        if error is not None:
                            failed.append(Failure(window.position, error))

                if url is not None:
                    asyncio.run(post_windows(plan.windows, url, token, concurrency, retry, record))
                else:
                    assert topic is not None
                    publish_windows(plan.windows, topic, retry)
                    _wait_for_tiles(plan, silence, record)
            if not failed:
                destinations = [window.payload["destination"] for window in plan.windows]
                raster = {"overwrite": job.overwrite, "progress": False, **(job.raster or {})}
                path = reconstruct(destinations, output, shape=plan.shape, **raster)
                ledger.add("product", token=plan.token, files=[display(path)])
        finally:
            ledger.add("end", token=plan.token)
    in_order = tuple(sorted(failed, key=lambda failure: failure.window))
    return DispatchResult(path, plan.folder, len(plan.windows), attempts, time.perf_counter() - start, in_order)


def _plan_windows(job: Job, output: str) -> _Plan:
    datasets = []
    for scene in job_scenes(job):
        assets = scene.assets if len(scene.assets) == 1 else [a for a in scene.assets if a.name == "TCI"]
        if len(assets) != 1:
            names = ", ".join(asset.name for asset in scene.assets)
            message = f"source: scene {scene.id} has {names}; the service takes one RGB file per scene"
            raise JobError(message, key="source", line=None)
        datasets.append(absolute(assets[0].href))
    height, width = (int(n) for n in read_header(datasets[0]).geobox.shape)
    chunks = (SIDE, SIDE) if isinstance(job.chunks, str) else job.chunks
    rows, columns = (chunks, chunks) if isinstance(chunks, int) else chunks
    token = hashlib.sha256(json.dumps([datasets, height, width, rows, columns]).encode()).hexdigest()
    folder = f"{output.removesuffix('.tif')}.{token[:12]}.tiles"
    windows = tuple(
        _Window(
            (y // rows, x // columns),
            {
                "window": [x, y, min(columns, width - x), min(rows, height - y)],
                "destination": join(folder, f"tile_{x}_{y}.tif"),
                "datasets": datasets,
            },
        )
        for x in range(0, width, columns)
        for y in range(0, height, rows)
    )
    return _Plan(windows, folder, (height, width), [-(-height // rows), -(-width // columns)], token)


def _wait_for_tiles(plan: _Plan, silence: float, record: _Record) -> None:
    """Wait until all tiles have been written, or none has appeared for a while; record each."""
    start = last = time.monotonic()
    missing = {str(window.payload["destination"]).rpartition("/")[2]: window for window in plan.windows}
    while missing:
        fs, path = filesystem(plan.folder)
        if is_remote(plan.folder):
            fs.invalidate_cache()
        try:
            names = [str(name).rpartition("/")[2] for name in fs.ls(path, detail=False)]
        except FileNotFoundError:
            names = []
        arrived = [name for name in names if name in missing]
        for name in arrived:
            record(missing.pop(name), 1, time.monotonic() - start, None, True)
        last = time.monotonic() if arrived else last
        if time.monotonic() - last > silence:
            message = (
                f"no tile has appeared for {silence:g} s; see the service's dead letters and the dead-letter topic"
            )
            for window in missing.values():
                record(window, 1, time.monotonic() - start, message, True)
            return
        if missing:
            time.sleep(_POLL)


# --- over HTTP ------------------------------------------------------------------------------------------------------


async def post_windows(
    windows: Sequence[_Window], url: str, token: str | None, concurrency: int, retry: Retry, record: _Record
) -> None:
    """Post windows to a service, a bounded number at a time; call `record` with the outcome of each attempt."""
    waiting = iter(windows)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)

    async def send(window: _Window) -> None:
        number = 0

        async def attempt() -> None:
            nonlocal number
            number, start, wait, error = number + 1, time.perf_counter(), 0.0, None
            try:
                answer = await client.post(url, json=window.payload)
                if answer.status_code != httpx.codes.NO_CONTENT:
                    try:
                        detail = str(answer.json()["detail"])
                    except (ValueError, KeyError, TypeError):
                        detail = answer.reason_phrase
                    error = f"the service answers {answer.status_code}: {redact(detail)[:1000]}"
                transient = answer.status_code in TRANSIENT
                wait = min(retry_after(answer.headers.get("retry-after", "")), retry.longest_wait)
            except httpx.HTTPError as problem:
                error, transient = f"{type(problem).__name__}: {redact(str(problem))}", True
            final = error is None or not transient or number == retry.attempts
            record(window, number, time.perf_counter() - start, error, final)
            if error is not None:
                raise AttemptError(error, transient=transient, wait=wait)

        with suppress(AttemptError):  # already recorded
            await retrying_async(attempt, retry, url)

    async def work() -> None:
        for window in waiting:
            await send(window)

    client = httpx.AsyncClient(headers=headers, limits=limits, timeout=retry.timeout)
    async with client, asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(windows))):
            group.create_task(work())


# --- through Pub/Sub ------------------------------------------------------------------------------------------------


def publish_windows(windows: Sequence[_Window], topic: str, retry: Retry) -> None:
    """Publish windows to a Pub/Sub topic, whose subscription pushes them to a service.

    ``PUBSUB_EMULATOR_HOST`` names an emulator, as for Google's own clients.
    """
    emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
    base = f"http://{emulator}" if emulator else "https://pubsub.googleapis.com"
    headers = {}
    if not emulator:
        try:
            credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/pubsub"])
            credentials.refresh(GoogleRequest())  # type: ignore[no-untyped-call] # google-auth's
        except GoogleAuthError as error:
            raise ServiceError(f"no Google credentials to publish with: {error}") from error
        headers = {"Authorization": f"Bearer {credentials.token}"}
    with httpx.Client(base_url=base, headers=headers, timeout=60.0) as client:

        def publish(batch: Sequence[_Window]) -> None:
            messages = [{"data": base64.b64encode(json.dumps(w.payload).encode()).decode()} for w in batch]
            try:
                answer = client.post(f"/v1/{topic}:publish", json={"messages": messages})
            except httpx.HTTPError as problem:
                raise AttemptError(f"{type(problem).__name__}: {problem}") from problem
            if not answer.is_success:
                raise AttemptError(f"status {answer.status_code}", transient=answer.status_code in TRANSIENT)

        try:
            for start in range(0, len(windows), _BATCH):
                retrying(partial(publish, windows[start : start + _BATCH]), retry, topic)
        except AttemptError as error:
            raise ServiceError(
                f"{topic}: cannot be published to: {error}; check its name and your rights (pubsub.publisher)"
            ) from None
