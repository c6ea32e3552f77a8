"""Jobs: check a caller's document, turn it into a job of the service, and run each job in its own process."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from odc.geo.geom import box
from sqlalchemy.exc import SQLAlchemyError

from s2composite.config import Document, parse_text, validated
from s2composite.errors import JobError, S2CompositeError, WriteError
from s2composite.jobs.grid import CellsOptions, GridOptions, OdcOptions, UtmOptions
from s2composite.jobs.schedule import with_span_keys
from s2composite.jobs.schema import Job
from s2composite.pixels.mask_bands import rule_names
from s2composite.pixels.reducers import reducer_names
from s2composite.runner.inputs import span_jobs
from s2composite.scenes.dates import date_range
from s2composite.service.queue import JobRow, JobStore
from s2composite.service.security import (
    ProblemError,
    check_text,
    parse_json,
    printable,
    problem_from_error,
    problems_at,
)
from s2composite.service.settings import Settings
from s2composite.storage.files import absolute, filesystem, join, redact, storage_errors
from s2composite.storage.urls import VARIABLE, Access

__all__ = ["ALLOWED_KEYS", "LOG_NAME", "JobRunner", "accept_job", "job_text"]

LOG = logging.getLogger(__name__)


def accept_job(body: bytes, media: str, number: str, settings: Settings) -> str:
    """Return the checked job in a JSON or YAML body, with its results in its own directory, as the text to store."""
    # Environment variables are not substituted: they are the service's.
    if media == "application/json":
        content = parse_json(body)
        if not isinstance(content, Mapping):
            raise ProblemError(400, "a job is an object with keys such as source and output", "")
        document = Document("job", dict(content), {})
    else:
        document = _parse_yaml(body)
    if _depth(document.values) > _MAX_DEPTH:
        raise ProblemError(400, "the job is nested too deeply", "")
    check_text(document.values)
    with problems_at("/span"):
        document = with_span_keys(document)
    values = document.values
    _check_values(values)
    name = values.get("output", "composite.tif")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        detail = (
            "output: a plain name that ends in .tif or .zarr, in which {cell}, {period} or {{pointInTime}} may stand; "
            "the service puts it below the job's own directory"
        )
        raise ProblemError(422, detail, "/output")
    assert settings.storage is not None
    fixed = {"output": join(settings.storage, number, name), "overwrite": False}
    try:
        job = validated(Job, Document(document.name, values | fixed, document.places))
    except JobError as error:
        raise problem_from_error(error, _pointer(error)) from None
    _check_product_count(job, settings.limits.products)
    # Check the source of each unit of a span separately.
    if job.span is None:
        _check_sources(job, settings)
    else:
        with problems_at("/span"):
            units = span_jobs(job)
        for unit in units:
            _check_sources(unit.job, settings)
        # Fix the span's end at submission, so that a later view or retry has the same products.
        period = units[-1].period
        assert period is not None
        span = {"unit": job.span.step, "end": job.span.end or str(period.last)}
        job = job.model_copy(update={"span": job.span.model_copy(update=span)})
    return job_text(job.model_copy(update={"cluster": settings.cluster}))


def job_text(job: Job) -> str:
    """Return a job as the text to store."""
    return json.dumps(job.model_dump(mode="json"))


# --- from the body of a request to a document -----------------------------------------------------------------------

_MAX_DEPTH = 20
_MAX_YAML = 1 << 16  # bytes of a job in YAML: PyYAML takes 2 s for these, and a minute for the 2 MB of a whole body
_MAX_NUMBER = 10**15

_OPENING = (
    yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken, yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken,
)  # fmt: skip
_CLOSING = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)


def _parse_yaml(body: bytes) -> Document:
    if len(body) > _MAX_YAML:
        detail = f"a job in YAML has at most {_MAX_YAML} bytes; send longer ones as JSON"
        raise ProblemError(413, detail, "")
    try:
        text = body.decode()
        # Reject expensive documents before parsing: a few aliases can expand to gigabytes, and PyYAML's time grows with
        # the square of the depth: 80 s for 20 000 brackets.
        depth = 0
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken):
                raise ProblemError(400, "the job has a YAML alias (*name); write the values out", "")
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > _MAX_DEPTH:
                raise ProblemError(400, "the job is nested too deeply", "")
        return parse_text(text.replace("${", "$${"), "job")
    except UnicodeDecodeError as error:
        raise ProblemError(400, f"the job is not UTF-8 (byte {error.start})", "") from None
    except yaml.YAMLError as error:
        raise ProblemError(400, f"the job is not YAML: {' '.join(str(error).split())}", "") from None
    except JobError as error:
        raise ProblemError(400, str(error), _pointer(error)) from None
    except ValueError as error:  # from PyYAML's conversions, such as invalid dates
        raise ProblemError(400, f"the job is not YAML: {error}", "") from None


def _depth(value: Any, depth: int = 0) -> int:
    """Return the depth of a nested value; raise for numbers that are too long for any key."""
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        raise ProblemError(422, "the job has a number of more than 15 digits", "")
    if depth > _MAX_DEPTH:
        return depth
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return max((_depth(one, depth + 1) for one in inner), default=depth)


def _pointer(error: JobError) -> str:
    key = error.__dict__.get("key")
    return "".join(f"/{part}" for part in str(key).split(".")) if key else ""


# --- what a job that runs here may contain --------------------------------------------------------------------------

# Keys of a job that callers may set. The others belong to the operator, or name local files.
ALLOWED_KEYS = (
    "source", "output", "reducer", "valid", "min_count", "max_count", "prefer", "period", "keep_empty", "day",
    "datetime", "pattern", "times", "groupby", "duplicates", "alternate", "headers", "harmonise", "reflectance",
    "bands", "bbox", "bbox_crs", "grid", "span", "crs", "resolution", "anchor", "resampling", "chunks", "on_error",
    "layers", "raster", "policy",
)  # fmt: skip

_CRS = re.compile(r"[A-Za-z]{2,10}:\d{1,7}")  # codes of a CRS: PROJ's longer forms can name files

_NAME = re.compile(r"(?!\.)(?:[\w.-]|\{(?:cell|period)\}|\{\{pointInTime\}\}){1,100}\.(?:tif|zarr)", re.ASCII)


def _check_values(values: Mapping[str, Any]) -> None:
    """Reject keys that callers may not set, and names that would import or open something."""
    for key in values:
        if key in ALLOWED_KEYS:
            continue
        if key in Job.model_fields:
            raise ProblemError(403, f"{key}: only the operator may set it", f"/{key}")
        raise ProblemError(422, f"unknown key {str(key)[:100]!r}; there are {', '.join(ALLOWED_KEYS)}", "")
    # Reducers and rules only by registered name, without paths of functions: a path would be imported.
    for key, known in (("reducer", reducer_names()), ("valid", rule_names(imports=False))):
        for name in _names(values.get(key)):
            if name not in known:
                detail = f"{key}: {str(name)[:100]!r} is unknown; there are {', '.join(known)}"
                raise ProblemError(422, detail, f"/{key}")
    for rule in valid if isinstance(valid := values.get("valid"), list) else [valid]:
        options = rule.values() if isinstance(rule, Mapping) else ()
        if any(isinstance(one, Mapping) and "cache" in one for one in options):
            raise ProblemError(403, "valid: only the operator may set the cache of a rule", "/valid")
    grid = values.get("grid")
    written = grid.partition(";")[0].strip() if isinstance(grid, str) and ";" in grid else None
    grid_crs = grid.get("crs") if isinstance(grid, Mapping) else written
    for key, value in (("crs", values.get("crs")), ("bbox_crs", values.get("bbox_crs")), ("grid", grid_crs)):
        if isinstance(value, str) and not _CRS.fullmatch(value):
            raise ProblemError(422, f"{key}: expected a code such as EPSG:32631", f"/{key}")


def _names(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [name for one in value for name in _names(one)]
    return list(value) if isinstance(value, Mapping) else [] if value is None else [value]


def _check_sources(job: Job, settings: Settings) -> None:
    listed = (job.source,) if isinstance(job.source, str) else job.source
    if len(listed) > settings.limits.datasets:
        detail = f"{len(listed)} sources; at most {settings.limits.datasets} are taken"
        raise ProblemError(422, detail, "/source")
    for number, source in enumerate(listed):
        with problems_at("/source" if isinstance(job.source, str) else f"/source/{number}"):
            href = absolute(source)
            if "://" not in href or "*" in href:
                # The part before the first wildcard; matching paths are checked when they are opened.
                href = re.split(r"/[^/]*[*?\[]", href, maxsplit=1)[0]
            settings.access.may_read(href)


# --- the number of products of a job, estimated before any is listed: a grid of one metre would never end -----------

# Minimum days in a unit of a span.
_DAYS = {"day": 1, "week": 7, "month": 28, "quarter": 90, "season": 90, "year": 365}
_DEGREE = 111_320.0  # metres of a degree of latitude
_GRANULE = 100_000.0  # metres from one granule of Sentinel-2 to the next


def _check_product_count(job: Job, most: int) -> None:
    """Reject a job with more products than `most`: units of its span times cells of its grid."""
    units = 1.0
    if (span := job.span) is not None:
        first, last = date_range(span.start).first, None if span.end is None else date_range(span.end).last
        assert first is not None
        end = dt.datetime.now(dt.UTC).date() if last is None else last.date()
        units = (end - first.date()).days / _DAYS[span.step] + 1
        if units > most:
            detail = f"about {units:.0f} products, one for each {span.step}; at most {most} are made"
            raise ProblemError(422, f"span: {detail}", "/span")
    cells = 1.0 if job.grid is None else _cell_count(job, job.grid)
    if units * cells > most:
        detail = f"about {units * cells:.0f} products; at most {most} are made: take a smaller area or larger cells"
        raise ProblemError(422, f"grid: {detail}", "/grid")


def _cell_count(job: Job, grid: GridOptions) -> float:
    if isinstance(grid, CellsOptions):
        raise ProblemError(403, "grid.file: only the operator may set it", "/grid/file")
    if job.bbox is None:
        detail = "bbox: a grid is unbounded; give an area, [west, south, east, north]"
        raise ProblemError(422, detail, "/bbox")
    try:
        crs = grid.crs if isinstance(grid, OdcOptions) else "EPSG:4326"
        west, south, east, north = box(*job.bbox, job.bbox_crs).to_crs(crs).boundingbox.bbox
    except (S2CompositeError, ValueError, RuntimeError) as error:
        raise ProblemError(422, f"bbox: cannot be brought onto the grid: {error}", "/bbox") from None
    width, height = east - west, north - south
    if isinstance(grid, OdcOptions):
        side = grid.resolution * grid.shape
    else:
        nearest = 0.0 if south < 0 < north else min(abs(south), abs(north))
        width, height = width * _DEGREE * math.cos(math.radians(nearest)), height * _DEGREE
        side = grid.size if isinstance(grid, UtmOptions) else _GRANULE
    count: float = (width / side + 1) * (height / side + 1)
    if not math.isfinite(count):
        raise ProblemError(422, "bbox: cannot be brought onto the grid", "/bbox")
    return count


# --- running them ---------------------------------------------------------------------------------------------------

LOG_NAME = "job_log.txt"  # the log of a job, copied next to its results when it has ended
_GRACE = 5.0  # seconds for a cancelled job to close its cluster before it is killed
_POLL = 2.0  # seconds after which the queue is read even without notice of a new job
_STAMP = re.compile(r"^[\d-]+ [\d:,]+ [A-Z]+ ")  # time and level, before the message of a line in a job's log
_MAX_LINE = 1 << 16  # bytes of a line of a log


@dataclass(frozen=True, slots=True)
class _JobProcess:
    """The process that runs a job."""

    process: asyncio.subprocess.Process  # leader of a process group that contains the workers of its cluster
    ended: asyncio.Event  # set when all of it has ended

    async def end(self) -> None:
        """End it; kill it if it takes longer."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), _GRACE)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class JobRunner:
    """Runs jobs from the queue between `start` and `close`, a few at a time, each in a process that can be ended."""

    def __init__(self, settings: Settings, store: JobStore) -> None:
        self._settings, self._store = settings, store
        self._running: dict[str, _JobProcess] = {}
        self.notified = asyncio.Event()  # set: there is a new job
        self._slots: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start on the queue, first with jobs that were running when the service ended; they resume from the ledger."""
        again = await asyncio.to_thread(self._store.requeue)
        if again:
            LOG.info("%d interrupted jobs resume", again)
        self._slots = [asyncio.create_task(self._work()) for _ in range(self._settings.limits.running)]

    async def close(self) -> None:
        """End all jobs; they resume when the service starts again."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)

    async def cancel(self, number: str) -> None:
        """End the process of a job, if it has one."""
        if (running := self._running.get(number)) is not None:
            await running.end()

    def log_path(self, number: str) -> Path:
        """Return the path of a job's log while it runs."""
        return Path(self._settings.state) / "logs" / f"{number}.txt"

    async def _work(self) -> None:
        """Run one job after the other."""
        while True:
            self.notified.clear()
            row = None
            try:
                row = await asyncio.to_thread(self._store.claim)
            except SQLAlchemyError as error:  # the database does not answer; this may be temporary
                LOG.error("the queue cannot be read: %s", str(error).partition("\n")[0])  # noqa: TRY400 - logged every time
            if row is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.notified.wait(), _POLL)
                continue
            try:
                state, reason = await self._run(row)
            except Exception:  # an error in one job must not stop the next
                LOG.exception("job %s", row.id)
                state, reason = "failed", "the service could not run it; see its log"
            await self._finish(row, state, reason)

    async def _finish(self, row: JobRow, state: str, error: str | None) -> None:
        """Record the end of a job, retrying until the database accepts it."""
        while True:
            try:
                await asyncio.to_thread(self._store.finish, row, state, error)
            except SQLAlchemyError as problem:
                LOG.error("job %s is %s, but not recorded: %s", row.id, state, str(problem).partition("\n")[0])  # noqa: TRY400 - as above
                await asyncio.sleep(_POLL)
            else:
                return

    async def _run(self, row: JobRow) -> tuple[str, str | None]:
        """Run a job; return its final state, and the error if it failed."""
        storage = self._settings.storage
        assert storage is not None
        if (before := self._running.get(row.id)) is not None:  # cancelled and requeued while its process is ending
            await before.ended.wait()
        if "://" not in storage:
            await asyncio.to_thread(Path(storage, row.id).mkdir, parents=True, exist_ok=True)
        self.log_path(row.id).parent.mkdir(parents=True, exist_ok=True)
        running = _JobProcess(await self._start_process(row, storage), asyncio.Event())
        self._running[row.id] = running
        try:
            if not await asyncio.to_thread(self._store.is_current, row):  # cancelled before it had a process to end
                return "cancelled", None
            async with asyncio.timeout(self._settings.limits.job_seconds):
                last = await self._copy_log(row.id, running.process)
                code = await running.process.wait()
            error = None if code == 0 else last if code > 0 else f"its process was ended by signal {-code}"
        except TimeoutError:
            code, error = 1, f"it took longer than {self._settings.limits.job_seconds:g} s; retry resumes from there"
        finally:
            await asyncio.shield(running.end())
            del self._running[row.id]
            running.ended.set()
        await asyncio.to_thread(self._keep_log, row.id, join(storage, row.id, LOG_NAME))
        return ("complete" if code == 0 else "failed"), error

    async def _start_process(self, row: JobRow, storage: str) -> asyncio.subprocess.Process:
        # It may read and write only its own results.
        own = join(storage, row.id)
        access = Access((*self._settings.read, own), (own,), self._settings.networks)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "s2composite.service.process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, VARIABLE: access.to_json(), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            limit=_MAX_LINE,
        )
        order = {"id": row.id, "which": row.which, "job": json.loads(row.document)}
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
        return process

    async def _copy_log(self, number: str, process: asyncio.subprocess.Process) -> str:
        """Add a job's output to its log, without secrets, up to the limit; return the message of its last line.

        All attempts share the log; lines of earlier attempts are kept.
        """
        assert process.stdout is not None
        last, path = "", self.log_path(number)
        left = self._settings.limits.log - (path.stat().st_size if path.exists() else 0)
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line that is too long
                continue
            if not line:
                return _STAMP.sub("", last)
            text = printable(redact(line.decode(errors="replace").rstrip()))
            last = text or last
            if left <= 0:
                continue
            data = f"{text}\n".encode()
            left -= len(data)
            if left <= 0:
                data = b"the rest was dropped: the log has reached its limit\n"
            try:
                with path.open("ab") as file:
                    file.write(data)
            except OSError:  # a full log disk must not end a job; its results may be on another disk
                LOG.exception("%s cannot be written", path)
                left = 0

    def _keep_log(self, number: str, target: str) -> None:
        """Copy the log next to the results."""
        try:
            with storage_errors(WriteError, f"job {number}: its log cannot be kept", target):
                text = self.log_path(number).read_bytes()
                fs, path = filesystem(target)
                fs.pipe_file(path, text)
        except S2CompositeError as error:  # the job is done even if its log cannot be copied
            LOG.error("%s", error)  # noqa: TRY400 - the message says it all
