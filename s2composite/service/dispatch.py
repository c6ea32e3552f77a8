"""Dispatch: a job whose windows a service makes: sent, followed, tried again, put together when all are there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from s2composite.errors import JobError, ServiceError
from s2composite.reading.header import read_header
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.ledger import Ledger
from s2composite.running.run import Failure, job_scenes, ledger_key
from s2composite.scenes.model import Scene
from s2composite.scenes.storage import absolute, display, filesystem, is_remote, join
from s2composite.service.sending import Patience, Sent, Tile, post_tiles, publish_tiles
from s2composite.writing.progress import progress_bar
from s2composite.writing.reconstruct import reconstruct
from s2composite.writing.targets import target_of

__all__ = ["Dispatched", "dispatch"]

SIDE = 1024
"""Side of a window in pixels, unless the job says another."""

_TAKEN = frozenset({
    "source", "output", "pattern", "times", "datetime", "duplicates", "alternate", "chunks", "raster", "overwrite",
    "policy", "cluster",
})  # fmt: skip
"""Keys of a job that mean something here; the service makes the masked luminance median of RGB scenes, nothing else."""

_LOOK = 2.0
"""Seconds between two looks at which tiles are there."""


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What became of a job."""

    path: str | None
    """The file; None where windows failed."""

    tiles: str
    """Where the tiles are."""

    windows: int
    """Windows of the job."""

    attempts: int
    """Requests that were needed."""

    seconds: float
    """Time it took."""

    failed: tuple[Failure, ...] = ()
    """Windows that could not be made."""


def dispatch(
    job: Job | str | Path | Mapping[str, Any],
    *,
    url: str | None = None,
    topic: str | None = None,
    token: str | None = None,
    patience: Patience | None = None,
    silence: float = 900.0,
) -> Dispatched:
    """Send all windows of a job to a service, wait for them, and put them together.

    What is interrupted is gone on with by calling it again: the service finds the windows that it has made.

    Parameters
    ----------
    job
        As for `run_job`; its scenes and its output must be where the service may read and write. Windows are of
        `chunks`, or of 1024 pixels.
    url
        Of a service's endpoint, ``https://host/median``.
    topic
        Instead of that a Pub/Sub topic, ``projects/PROJECT/topics/TOPIC``, whose subscription pushes to a service.
    token
        What the service wants to see.
    patience
        How many windows at a time, how often they are tried.
    silence
        With a topic: seconds without a new tile after which the rest counts as failed.

    Raises
    ------
    JobError
        The job asks for what a service's window is not.
    ServiceError
        Neither or both of `url` and `topic` are given, or the topic cannot be published to.
    TilesError
        Tiles are missing, or do not fit together.
    S2CompositeError
        One of its kinds for what is wrong with scenes or output.

    Examples
    --------
    >>> dispatch("job.yaml", url="https://median-xyz.a.run.app/median", token="...")  # doctest: +SKIP
    """
    start = time.perf_counter()
    job = job if isinstance(job, Job) else load_job(job)
    if (url is None) == (topic is None):
        raise ServiceError("give the url of a service, or a topic that is pushed to one")
    _check_keys(job)
    output = target_of(job.output, overwrite=job.overwrite)
    plan = _planned(job, output)
    patience = patience or Patience()
    with Ledger(ledger_key(job), f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}") as ledger:
        facts = {"token": plan.token, "windows": plan.grid, "timeout": patience.timeout, "files": [display(output)]}
        ledger.add("start", **facts, done=0, todo=len(plan.tiles))
        try:
            notes = _sent(job, plan, url, topic, token, patience, silence, ledger)
            path = None if notes.failed else _put_together(job, plan, output, ledger)
        finally:
            ledger.add("end", token=plan.token)
    failed = tuple(sorted(notes.failed, key=_place))
    return Dispatched(path, plan.folder, len(plan.tiles), notes.attempts, time.perf_counter() - start, failed)


def _sent(
    job: Job,
    plan: _Plan,
    url: str | None,
    topic: str | None,
    token: str | None,
    patience: Patience,
    silence: float,
    ledger: Ledger,
) -> _Notes:
    """Send all windows and wait for them; return what became of each."""
    notes = _Notes(ledger, plan, url or topic or "")
    with progress_bar(Path(job.output).name, len(plan.tiles)) as advance:
        if url is not None:
            asyncio.run(post_tiles(plan.tiles, url, token, patience, lambda sent: notes.add(sent, advance)))
        else:
            assert topic is not None
            publish_tiles(plan.tiles, topic, patience)
            _wait(plan, silence, lambda sent: notes.add(sent, advance))
    return notes


def _put_together(job: Job, plan: _Plan, output: str, ledger: Ledger) -> str:
    options = {"overwrite": job.overwrite, "progress": False, **(job.raster or {})}
    path = reconstruct([tile.payload["destination"] for tile in plan.tiles], output, shape=plan.shape, **options)
    ledger.add("product", token=plan.token, files=[display(path)])
    return path


def _place(failure: Failure) -> tuple[int, int]:
    return failure.window


def _check_keys(job: Job) -> None:
    for key in Job.model_fields:
        if key not in _TAKEN and getattr(job, key) != Job.model_fields[key].get_default():
            told = "a service makes luminance medians of RGB scenes on their own grid; leave it out, or run the job"
            raise JobError(f"{key}: {told}", key=key, line=None)
    if job.format != "tif":
        raise JobError("output: tiles are put together as a GeoTIFF; its name ends in .tif", key="output", line=None)


# --- which windows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """The windows of a job."""

    tiles: tuple[Tile, ...]
    """Column by column, as the course's dispatcher sends them."""

    folder: str
    """Where the tiles go: a place of its own for these scenes and windows, so that no other's are taken for them."""

    shape: tuple[int, int]
    """Rows and columns of the whole, in pixels."""

    grid: list[int]
    """Rows and columns of windows."""

    token: str
    """Hash of scenes and windows."""


def _planned(job: Job, output: str) -> _Plan:
    scenes = job_scenes(job)
    datasets = [_href(scene) for scene in scenes]
    height, width = (int(n) for n in read_header(datasets[0]).geobox.shape)
    chunks = (SIDE, SIDE) if isinstance(job.chunks, str) else job.chunks
    rows, columns = (chunks, chunks) if isinstance(chunks, int) else chunks
    facts = json.dumps([datasets, height, width, rows, columns])
    token = hashlib.sha256(facts.encode()).hexdigest()
    folder = f"{output.removesuffix('.tif')}.{token[:12]}.tiles"
    tiles = tuple(
        Tile(
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
    return _Plan(tiles, folder, (height, width), [-(-height // rows), -(-width // columns)], token)


def _href(scene: Scene) -> str:
    """Return the picture of a scene."""
    assets = scene.assets if len(scene.assets) == 1 else [a for a in scene.assets if a.name == "TCI"]
    if len(assets) != 1:
        names = ", ".join(asset.name for asset in scene.assets)
        told = f"source: scene {scene.id} has {names}; one RGB file a scene is taken"
        raise JobError(told, key="source", line=None)
    return absolute(assets[0].href)


# --- what became of them --------------------------------------------------------------------------------------------


class _Notes:
    """What happened so far: in the ledger, and counted."""

    def __init__(self, ledger: Ledger, plan: _Plan, where: str) -> None:
        self._ledger, self._plan, self._where = ledger, plan, display(where)
        self.attempts = 0
        self.failed: list[Failure] = []

    def add(self, sent: Sent, advance: Any) -> None:
        """Note an attempt."""
        self.attempts += 1
        facts: dict[str, Any] = {"token": self._plan.token, "window": list(sent.tile.position), "attempt": sent.attempt}
        facts |= {"seconds": round(sent.seconds, 3), "worker": self._where}
        if sent.error is None:
            # What a window's time was spent on is known where it was made.
            self._ledger.add("done", **facts, read=round(sent.seconds, 3), encode=0.0)
        else:
            self._ledger.add("failed" if sent.final else "retry", **facts, error=sent.error, kind="ServiceError")
        if sent.final:
            advance()
            if sent.error is not None:
                self.failed.append(Failure(sent.tile.position, sent.error))


def _wait(plan: _Plan, silence: float, note: Any) -> None:
    """Wait until all tiles are there, or none has come for a while; note each."""
    start = last = time.monotonic()
    missing = {str(tile.payload["destination"]).rpartition("/")[2]: tile for tile in plan.tiles}
    while missing:
        arrived = [name for name in _listed(plan.folder) if name in missing]
        for name in arrived:
            note(Sent(missing.pop(name), 1, time.monotonic() - start))
        last = time.monotonic() if arrived else last
        if time.monotonic() - last > silence:
            told = f"no tile has come for {silence:g} s; see the service's dead letters and the dead-letter topic"
            for tile in missing.values():
                note(Sent(tile, 1, time.monotonic() - start, told))
            return
        if missing:
            time.sleep(_LOOK)


def _listed(folder: str) -> Iterator[str]:
    """Yield the names of what is in a directory or below a prefix."""
    fs, path = filesystem(folder)
    if is_remote(folder):
        fs.invalidate_cache()
    try:
        for name in fs.ls(path, detail=False):
            yield str(name).rpartition("/")[2]
    except FileNotFoundError:
        return
