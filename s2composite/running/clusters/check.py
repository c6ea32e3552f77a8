"""check_cluster(): what every worker of a cluster has and can reach."""

from __future__ import annotations

import asyncio
import uuid
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
from s2composite.errors import ParameterError, S2CompositeError
from s2composite.running.clusters.probe import Findings, probe_worker, read_object, remove_object
from s2composite.scenes.listing import find_scenes
from s2composite.scenes.storage import absolute, display, join

__all__ = ["PACKAGES", "ClusterCheck", "WorkerCheck", "check_cluster"]

PACKAGES = (
    "s2composite", "dask", "distributed", "numpy", "numba", "llvmlite", "rasterio", "imagecodecs", "xarray", "zarr",
    "fsspec", "gcsfs", "s3fs",
)  # fmt: skip
"""Packages whose versions must be the same everywhere."""

_TRIES = 3
"""How often workers are asked, if some leave meanwhile."""

OF_THE_SCHEDULER = ("python", "dask", "distributed")
"""Packages that matter to a scheduler, which neither reads nor computes."""


@dataclass(frozen=True, slots=True)
class WorkerCheck:
    """What a check found out about one worker.

    Examples
    --------
    >>> silent = WorkerCheck("tcp://10.0.0.7:40123", "10.0.0.7", 4, None, {}, None, ("it did not answer in time",))
    >>> ClusterCheck({}, {}, (silent,), ()).problems
    ('worker tcp://10.0.0.7:40123: it did not answer in time',)
    """

    address: str
    """Address of the worker, ``"tcp://10.0.0.7:40123"``."""

    host: str
    """Address of its machine."""

    threads: int
    """Number of tasks that it runs at a time."""

    memory: int | None
    """Memory limit in bytes; None: no limit."""

    versions: Mapping[str, str | None]
    """Version of Python and of each of `PACKAGES`; None: not installed. Empty if it did not answer."""

    findings: Findings | None
    """What it found itself; None: it could not be checked."""

    problems: tuple[str, ...]
    """What is wrong with it."""


@dataclass(frozen=True, slots=True)
class ClusterCheck:
    """What a check found out about a cluster.

    Examples
    --------
    >>> ClusterCheck({}, {}, (), ("no worker came within 60 s",)).ok
    False
    """

    client: Mapping[str, str | None]
    """Versions in this process."""

    scheduler: Mapping[str, str | None]
    """Versions on the scheduler."""

    workers: tuple[WorkerCheck, ...]
    """All workers."""

    general: tuple[str, ...]
    """Problems that are not those of a single worker."""

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
    """Check every worker of a cluster: versions, memory, threads, environment, and what it can reach.

    Parameters
    ----------
    client
        Client of the cluster. One from `connect` also knows which environment the workers must have.
    source
        Scenes as for `find_scenes`: they are listed from here, and every worker reads the header of the first one.
    target
        Where outputs go, a directory, prefix or file name: every worker writes a small object there, which is read
        from here and then deleted by the worker.
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
    place = None if target is None else _place(target)
    href, general = _first_file(source)
    for _ in range(_TRIES):
        check = _checked(client, place, href, general, timeout)
        there = client.scheduler_info(n_workers=-1)["workers"]
        # On clusters that scale with the work, an idle worker may leave before it is asked.
        if all(worker.address in there for worker in check.workers):
            break
    return check


def _checked(client: Client, place: str | None, href: str | None, told: Sequence[str], timeout: float) -> ClusterCheck:
    """Check the workers that are there now."""
    workers = _workers(client, timeout)
    urls = {address: None if place is None else join(place, f".s2composite-check-{uuid4().hex}") for address in workers}
    shipped = getattr(client, "shipped", ())
    probes = {address: partial(probe_worker, shipped, href, url) for address, url in urls.items()}
    answers = _asked(client, probes, timeout)
    seen = {address: _seen_from_here(answers[address], url) for address, url in urls.items()}
    silent = [address for address, answer in answers.items() if answer is None]
    gone = _removed(client, {a: url for a, url in urls.items() if url is not None and a not in silent}, timeout)
    versions = _versions(client, [address for address in workers if address not in silent])
    here, scheduler = _here(), _at_scheduler(client)
    checks = tuple(
        _worker_check(
            address, facts, answers[address], versions.get(address, {}), here, [seen[address], gone.get(address)]
        )
        for address, facts in workers.items()
    )
    general = [*told, *(f"scheduler: {text}" for text in _differences(here, scheduler, OF_THE_SCHEDULER))]
    general += [] if workers else [f"no worker started within {timeout:g} s; see the logs of the cluster"]
    return ClusterCheck(here, scheduler, checks, tuple(general))


def _place(target: str) -> str:
    """Return the directory or prefix that outputs named `target` go to."""
    place = absolute(target)
    if place.startswith(("http://", "https://")):
        raise ParameterError(
            f"{display(place)}: an object at a plain URL cannot be read back or deleted; check a local path, "
            "gs:// or s3://"
        )
    is_output = PurePosixPath(place).suffix.lower() in (".tif", ".zarr")
    return place.rstrip("/").rpartition("/")[0] or "/" if is_output else place


def _first_file(source: Any) -> tuple[str | None, list[str]]:
    """Return one file of a source, and the problems of the source."""
    if source is None:
        return None, []
    try:
        scenes = find_scenes(source)
    except S2CompositeError as error:
        return None, [f"source: {error}"]
    return scenes[0].assets[0].href, []


def _workers(client: Client, timeout: float) -> dict[str, Any]:
    """Return the workers that are there; if there are none, ask for one, as clusters may scale with the work."""
    if not client.scheduler_info(n_workers=-1)["workers"]:
        with suppress(TimeoutError):
            wait(client.submit(int, key=f"await-worker-{uuid.uuid4().hex}"), timeout=timeout)
    return dict(client.scheduler_info(n_workers=-1)["workers"])


def _asked(client: Client, questions: Mapping[str, Callable[..., Any]], timeout: float) -> dict[str, Any]:
    """Return each worker's answer: a result, an exception, or None if it did not answer in time."""

    async def one(address: str, question: Callable[..., Any]) -> Any:
        try:
            answer = client.run(question, workers=[address], on_error="return")
            return (await asyncio.wait_for(answer, timeout)).get(address)
        except TimeoutError:
            return None
        except Exception as error:  # noqa: BLE001 - what a worker cannot unpack is raised here, and is its answer
            return error

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(one(address, question) for address, question in questions.items()))

    return dict(zip(questions, client.sync(all_at_once), strict=True))


def _seen_from_here(answer: Any, url: str | None) -> str | None:
    """Return the problem if the object that a worker has written cannot be read from here."""
    if url is None or not isinstance(answer, Findings) or answer.target is not None:
        return None
    wrong = read_object(url)
    return wrong and f"target: written there, but {wrong} from here; is the directory a shared one?"


def _removed(client: Client, urls: Mapping[str, str], timeout: float) -> dict[str, str]:
    """Have the workers delete what they have written; return the problems."""
    answers = _asked(client, {address: partial(remove_object, url) for address, url in urls.items()}, timeout)
    return {address: f"target: {answer}" for address, answer in answers.items() if isinstance(answer, str)}


def _here() -> dict[str, str | None]:
    return {**_picked(get_versions(packages=PACKAGES)), "s2composite": s2composite.__version__}


def _at_scheduler(client: Client) -> dict[str, str | None]:
    return _picked(client.sync(client.scheduler.versions, packages=list(PACKAGES)))


def _versions(client: Client, workers: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """Return the versions on those workers, by a request of Dask's own that does not need s2composite there."""
    if not workers:
        return {}
    question = {"op": "versions", "packages": list(PACKAGES)}
    answers = client.sync(client.scheduler.broadcast, msg=question, workers=list(workers), on_error="ignore")
    return {address: _picked(answer) for address, answer in answers.items()}


def _picked(answer: Mapping[str, Any]) -> dict[str, str | None]:
    packages = answer["packages"]
    return {
        "python": ".".join(answer["host"]["python"].split(".")[:3]),
        **{name: packages.get(name) for name in PACKAGES},
    }


def _worker_check(
    address: str,
    facts: Mapping[str, Any],
    answer: Any,
    versions: Mapping[str, str | None],
    here: Mapping[str, str | None],
    more: Sequence[str | None],
) -> WorkerCheck:
    findings = answer if isinstance(answer, Findings) else None
    if findings is not None:
        versions = {**versions, "s2composite": findings.version}
    problems = [
        *_differences(here, versions, ("python", *PACKAGES)),
        *_trouble(answer),
        *(text for text in more if text),
    ]
    return WorkerCheck(
        address, facts["host"], facts["nthreads"], facts["memory_limit"] or None, versions, findings, tuple(problems)
    )


def _differences(here: Mapping[str, str | None], there: Mapping[str, str | None], names: Sequence[str]) -> list[str]:
    """Return a sentence for each version that differs from the one here; Python's third number does not matter.

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


def _trouble(answer: Any) -> list[str]:
    """Return the problems in a worker's answer."""
    if answer is None:
        return ["it did not answer in time: it is busy, frozen, or gone"]
    if not isinstance(answer, Findings):
        return [
            f"it could not be checked ({type(answer).__name__}: {answer}); install the same s2composite there as here"
        ]
    problems = [] if answer.source is None else [f"source: {answer.source}"]
    problems += [] if answer.target is None else [f"target: {answer.target}"]
    if answer.environment:
        problems.append(f"environment: {', '.join(answer.environment)} not as shipped, or set too late")
    return problems
