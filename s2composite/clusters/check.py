"""check_cluster(): check the installation and access to storage of every worker in a cluster."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

from distributed import Client, wait
from distributed.versions import get_versions

import s2composite
from s2composite.clusters.connect import ShippedEnvironment
from s2composite.errors import ParameterError, S2CompositeError, WriteError
from s2composite.metrics import running_workers
from s2composite.storage.files import absolute, display, filesystem, join, storage_errors

# Workers import this module: a broken package there must be reported, not prevent the import (PLC0415).
# ruff: noqa: PLC0415

__all__ = ["PACKAGES", "ClusterCheck", "Findings", "WorkerCheck", "check_cluster"]

# Packages whose versions must be the same everywhere.
PACKAGES = (
    "s2composite", "dask", "distributed", "numpy", "numba", "llvmlite", "rasterio", "imagecodecs", "xarray", "zarr",
    "fsspec", "gcsfs", "s3fs",
)  # fmt: skip

_ATTEMPTS = 3  # checks made if workers leave during the check

_CONTENT = b"s2composite check\n"  # of the object that a worker writes


@dataclass(frozen=True, slots=True)
class Findings:
    """Results of the checks that a worker runs."""

    version: str  # of s2composite there
    gdal: str  # version of the GDAL in rasterio
    numba_threads: int  # started by a parallel kernel in each task
    environment: tuple[str, ...]  # variables that do not have the value that was shipped
    source: str | None  # why the source cannot be read; None: it can, or was not checked
    target: str | None  # why the target cannot be written to; None: it can, or was not checked


@dataclass(frozen=True, slots=True)
class WorkerCheck:
    """Result of a check for one worker."""

    address: str
    """Address of the worker, ``"tcp://10.0.0.7:40123"``."""
    host: str
    """Address of its machine."""
    threads: int
    """Number of tasks that it runs concurrently."""
    memory: int | None
    """Memory limit in bytes; None: no limit."""
    versions: Mapping[str, str | None]
    """Version of Python and of each of `PACKAGES`; None: not installed. Empty if it did not answer."""
    findings: Findings | None
    """Results of the checks on the worker; None: it could not be checked."""
    problems: tuple[str, ...]
    """Problems of this worker."""


@dataclass(frozen=True, slots=True)
class ClusterCheck:
    """Result of a check for a cluster.

    Examples
    --------
    >>> silent = WorkerCheck("tcp://10.0.0.7:40123", "10.0.0.7", 4, None, {}, None, ("it did not answer in time",))
    >>> check = ClusterCheck({}, {}, (silent,), ())
    >>> check.ok, check.problems
    (False, ('worker tcp://10.0.0.7:40123: it did not answer in time',))
    """

    client: Mapping[str, str | None]
    """Versions in this process."""
    scheduler: Mapping[str, str | None]
    """Versions on the scheduler."""
    workers: tuple[WorkerCheck, ...]
    """All workers."""
    general: tuple[str, ...]
    """Problems that do not belong to a single worker."""

    @property
    def problems(self) -> tuple[str, ...]:
        """All problems, a sentence each."""
        return (*self.general, *(f"worker {w.address}: {problem}" for w in self.workers for problem in w.problems))

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def check_cluster(
    client: Client, *, source: Any = None, target: str | None = None, timeout: float = 60.0
) -> ClusterCheck:
    """Check every worker of a cluster: versions, memory, threads, environment, and access to source and target.

    Parameters
    ----------
    client
        Client of the cluster. For a client from `connect`, the workers' environment is also checked.
    source
        Scenes as for `find_scenes`: they are listed in this process; every worker reads the header of the first one.
    target
        A directory, prefix or file name for outputs: every worker writes a small object there, which this process
        reads and the worker then deletes.
    timeout
        Seconds to wait for the answers of all workers.

    Returns
    -------
    ClusterCheck
        A `WorkerCheck` for each worker, and the problems found.

    Raises
    ------
    ParameterError
        The target cannot be read back (``https://``).

    Examples
    --------
    >>> from s2composite import connect
    >>> with connect("local", workers=1, announce=False) as client:
    ...     check = check_cluster(client)
    >>> check.ok, len(check.workers)
    (True, 1)
    """
    from s2composite.scenes.find import find_scenes

    directory = None if target is None else absolute(target)
    if directory is not None:
        if directory.startswith(("http://", "https://")):
            raise ParameterError(
                f"{display(directory)}: an object at a plain URL cannot be read back or deleted; check a local path, "
                "gs:// or s3://"
            )
        if PurePosixPath(directory).suffix.lower() in (".tif", ".zarr"):  # the name of an output
            directory = directory.rstrip("/").rpartition("/")[0] or "/"
    href, source_problems = None, []
    if source is not None:
        try:
            href = find_scenes(source)[0].assets[0].href
        except S2CompositeError as error:
            source_problems = [f"source: {error}"]
    for _ in range(_ATTEMPTS):
        check = _check_now(client, directory, href, source_problems, timeout)
        running = running_workers(client)
        # On clusters that scale with the work, an idle worker may leave before it is asked.
        if all(worker.address in running for worker in check.workers):
            break
    return check


def _check_now(
    client: Client, directory: str | None, href: str | None, source_problems: Sequence[str], timeout: float
) -> ClusterCheck:
    """Check the workers that are running; if there are none, wait for one: clusters may scale with the work."""
    if not running_workers(client):
        with suppress(TimeoutError):
            wait(client.submit(int, key=f"await-worker-{uuid4().hex}"), timeout=timeout)
    workers = dict(running_workers(client))
    urls = {} if directory is None else {a: join(directory, f".s2composite-check-{uuid4().hex}") for a in workers}
    shipped = getattr(client, "shipped", ())
    probes = {address: partial(_probe_worker, shipped, href, urls.get(address)) for address in workers}
    answers = _ask(client, probes, timeout)

    # This process reads what a worker has written, before the worker deletes it.
    storage: dict[str, list[str]] = {address: [] for address in workers}
    for address, url in urls.items():
        answer = answers[address]
        if isinstance(answer, Findings) and answer.target is None and (problem := _read_object(url)):
            storage[address].append(f"target: written there, but {problem} from here; is the directory a shared one?")
    answering = [address for address, answer in answers.items() if answer is not None]
    removals = {address: partial(_remove_object, urls[address]) for address in answering if address in urls}
    for address, answer in _ask(client, removals, timeout).items():
        if isinstance(answer, str):
            storage[address].append(f"target: {answer}")

    here = {**_versions_in(get_versions(packages=PACKAGES)), "s2composite": s2composite.__version__}
    scheduler = _versions_in(client.sync(client.scheduler.versions, packages=list(PACKAGES)))
    replies: dict[str, Any] = {}
    if answering:  # one of Dask's own requests, which does not need s2composite on the workers
        question = {"op": "versions", "packages": list(PACKAGES)}
        replies = client.sync(client.scheduler.broadcast, msg=question, workers=answering, on_error="ignore")
    checks = []
    for address, worker in workers.items():
        versions = _versions_in(replies[address]) if address in replies else {}
        findings = answers[address] if isinstance(answers[address], Findings) else None
        if findings is not None and versions:
            versions["s2composite"] = findings.version
        problems = _differences(here, versions, ("python", *PACKAGES))
        problems += _problems_in(answers[address]) + storage[address]
        memory = worker["memory_limit"] or None
        checks.append(
            WorkerCheck(address, worker["host"], worker["nthreads"], memory, versions, findings, tuple(problems))
        )
    # The scheduler reads and computes nothing.
    differences = _differences(here, scheduler, ("python", "dask", "distributed"))
    general = [*source_problems, *(f"scheduler: {text}" for text in differences)]
    general += [] if workers else [f"no worker started within {timeout:g} s; see the logs of the cluster"]
    return ClusterCheck(here, scheduler, tuple(checks), tuple(general))


def _ask(client: Client, questions: Mapping[str, Callable[..., Any]], timeout: float) -> dict[str, Any]:
    """Return each worker's answer: a result, an exception, or None if it did not answer in time.

    This uses `Client.run`, not tasks: a worker without s2composite could not unpickle a task, and Dask would stop the
    worker; `Client.run` returns the error instead.
    """

    async def ask(address: str, question: Callable[..., Any]) -> Any:
        try:
            answer = client.run(question, workers=[address], on_error="return")
            return (await asyncio.wait_for(answer, timeout)).get(address)
        except TimeoutError:
            return None
        except Exception as error:  # noqa: BLE001 - unpickling errors on a worker are raised here, as its answer
            return error

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(ask(address, question) for address, question in questions.items()))

    return dict(zip(questions, client.sync(ask_all), strict=True))


def _versions_in(answer: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the versions of Python and of `PACKAGES` in Dask's answer."""
    packages = answer["packages"]
    return {
        "python": ".".join(answer["host"]["python"].split(".")[:3]),
        **{name: packages.get(name) for name in PACKAGES},
    }


def _differences(here: Mapping[str, str | None], there: Mapping[str, str | None], names: Sequence[str]) -> list[str]:
    """Return a message for each version that differs from the one here; Python's patch version is ignored.

    >>> _differences({"python": "3.11.7", "numpy": "2.1"}, {"python": "3.11.9", "numpy": None}, ("python", "numpy"))
    ['numpy is not installed there, 2.1 here']
    """
    if not there:
        return []

    def compared(name: str, version: str | None) -> str | None:
        return version.rpartition(".")[0] if name == "python" and version else version

    return [
        f"{name} is {there[name] or 'not installed'} there, {here[name] or 'not installed'} here"
        for name in names
        if compared(name, there[name]) != compared(name, here[name])
    ]


def _problems_in(answer: Any) -> list[str]:
    """Return the problems in a worker's answer."""
    if answer is None:
        return ["it did not answer in time: it is busy, frozen or lost"]
    if not isinstance(answer, Findings):
        return [
            f"it could not be checked ({type(answer).__name__}: {answer}); install the same s2composite there as here"
        ]
    problems = [] if answer.source is None else [f"source: {answer.source}"]
    problems += [] if answer.target is None else [f"target: {answer.target}"]
    if answer.environment:
        problems.append(f"environment: {', '.join(answer.environment)} not as shipped, or set too late")
    return problems


# --- what runs on the workers -----------------------------------------------------------------------------------------


async def _probe_worker(shipped: Sequence[str], source: str | None, target: str | None, dask_worker: Any) -> Findings:
    plugin = next((p for p in dask_worker.plugins.values() if isinstance(p, ShippedEnvironment)), None)
    return await asyncio.to_thread(_probe, shipped, plugin, source, target)  # the worker's event loop must not block


def _probe(
    shipped: Sequence[str], plugin: ShippedEnvironment | None, source: str | None, target: str | None
) -> Findings:
    """Check this worker: versions, environment, whether a header can be read and an object written."""
    import numba
    import rasterio
    from rasterio._env import get_gdal_config  # rasterio's public getenv() returns only options set by rasterio

    from s2composite.reading.headers import header_of

    wrong = set(shipped)
    if plugin is not None:  # variables that differ, or were set too late for the library that reads them
        wrong = {name for name, value in plugin.values.items() if os.environ.get(name) != value}
        wrong |= set(shipped) - plugin.values.keys()
        threads = os.environ.get("NUMBA_NUM_THREADS", "")
        if "NUMBA_NUM_THREADS" in shipped and str(numba.config.NUMBA_NUM_THREADS) != threads:
            wrong.add("NUMBA_NUM_THREADS")
        wrong |= {name for name in shipped if name.startswith("GDAL_") and get_gdal_config(name) is None}
    source_problem = None
    if source is not None:
        try:
            header_of(source)
        except S2CompositeError as error:
            source_problem = str(error)
    target_problem = None
    if target is not None:
        _, target_problem = _on_storage(target, "written", lambda fs, path: fs.pipe_file(path, _CONTENT))
        target_problem = target_problem or _read_object(target)
    versions = (s2composite.__version__, rasterio.__gdal_version__, numba.config.NUMBA_NUM_THREADS)
    return Findings(*versions, tuple(sorted(wrong)), source_problem, target_problem)


def _read_object(url: str) -> str | None:
    """Return why the written object cannot be read, or None."""
    content, problem = _on_storage(url, "read", lambda fs, path: fs.cat_file(path))
    if problem is None and content != _CONTENT:
        return f"{display(url)} does not hold what was written to it"
    return problem


async def _remove_object(url: str) -> str | None:
    """Delete the object if it was written; return why that failed, or None."""

    def remove(fs: Any, path: str) -> None:
        if fs.exists(path):
            fs.rm_file(path)

    return (await asyncio.to_thread(_on_storage, url, "deleted", remove))[1]


def _on_storage(url: str, verb: str, operation: Callable[[Any, str], Any]) -> tuple[Any, str | None]:
    """Return the result of an operation on the filesystem of `url`, and the problem if it fails."""
    try:
        with storage_errors(WriteError, f"{display(url)} cannot be {verb}", url):
            fs, path = filesystem(url)
            return operation(fs, path), None
    except S2CompositeError as error:
        return None, str(error)
