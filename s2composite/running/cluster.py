"""connect(): the Dask workers that a computation runs on."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dask.system import CPU_COUNT
from distributed import Client, comm
from distributed.gc import disable_gc_diagnosis
from distributed.security import Security
from distributed.system import MEMORY_LIMIT
from rich.console import Console

from s2composite.errors import ClusterError
from s2composite.running.cluster_client import (
    ClusterClient,
    await_workers,
    one_thread,
    ship,
    show_meters,
    values_to_ship,
)
from s2composite.running.cluster_coiled import coiled
from s2composite.running.cluster_gateway import gateway
from s2composite.running.cluster_kubernetes import kubernetes
from s2composite.running.cluster_options import AddressOptions, ElasticOptions, LocalOptions, read_cluster
from s2composite.running.cluster_slurm import slurm
from s2composite.running.cluster_ssh import ssh

__all__ = ["CLUSTERS", "connect"]

LOG = logging.getLogger(__name__)

MEMORY_SHARE = 0.9
"""Share of the machine's memory that local workers get together; the rest is for this process and the system."""

SCALES_ITSELF = ("gateway", "coiled")
"""Kinds that are told the bounds of their size when they are started."""

WORKER_PRELOAD = """
import atexit, logging, os, sys
NOISE = ("Compute Failed", "Failed to communicate with scheduler during heartbeat", "Async instruction for")
for name in ("distributed.worker", "distributed.worker.state_machine"):
    logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(NOISE))
def leave():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
atexit.register(leave)
"""
"""Runs in each local worker at its start.

A task's error is raised where its result is asked for; the copy that each worker would write to the terminal as well
hides the one line that matters among tracebacks. While the cluster is closed a heartbeat may fail, or a task be
cancelled. And a worker leaves without taking down what numba compiled: that took 1.7 to 4.2 s on a busy machine (0.1 s
without), and after 4 s Dask kills the worker with a warning."""


def _no_goodbye(record: logging.LogRecord) -> bool:
    """Leave out that a worker was killed because it was still in a task when the cluster was closed."""
    return not str(record.msg).startswith("Worker process still alive")


def _no_early_cancel(record: logging.LogRecord) -> bool:
    """Leave out that Dask, interrupted before a call to the scheduler has begun, fails to cancel that call."""
    return "sync.<locals>.cancel" not in record.getMessage()


def connect(
    config: Any = "local",
    *,
    workers: int | None = None,
    threads: int | None = None,
    memory: str | None = None,
    dashboard: str | None = None,
    announce: bool = True,
) -> Client:
    """Start or join a Dask cluster and make it the one that computations run on.

    Parameters
    ----------
    config
        ``"local"``: worker processes on this machine; ``"tcp://host:port"`` or ``"tls://..."``: a scheduler that runs
        already; a mapping with a ``type`` (``{"type": "local", "workers": 2}``); the path of a YAML file that has one.
        Types: ``local``, ``address``, ``ssh``, ``gateway``, ``kubernetes``, ``coiled``, ``slurm``, each with a file in
        ``examples/clusters``. A cluster.yaml of Ray is mapped to ``ssh`` or ``coiled``.
    workers, threads, memory, dashboard
        Win over those of `config`, for types that have them. Local: processes (None: one for each core), threads of
        each (None: the cores divided by `workers`), memory limit of each (None: nine tenths of the machine's memory
        divided by `workers`), where to serve the dashboard (a free port is found if ``":8787"`` is taken).
    announce
        Whether to write one line with the workers and the dashboard's link to the terminal or notebook.

    Returns
    -------
    distributed.Client
        A context manager. Closing it stops what was started; the workers of an address are left alone. Environment
        variables that those were given stay set until they end.

    Raises
    ------
    JobError
        An option is unknown or wrong; lists those that are valid.
    ClusterError
        The scheduler does not answer, or the workers do not start or cannot be given their environment.
    MissingDependencyError
        The kind of cluster needs an optional package; says which extra has it.

    Examples
    --------
    >>> with connect("local", workers=1, memory="1GB", announce=False) as client:
    ...     client.submit(sum, [1, 2, 3]).result()
    6
    """
    settings = {"workers": workers, "threads": threads, "memory": memory, "dashboard": dashboard}
    options = read_cluster(config, **{key: value for key, value in settings.items() if value is not None})
    values = values_to_ship(options)  # before anything is started that would cost
    logging.getLogger("tornado.application").addFilter(_no_early_cancel)
    client = CLUSTERS[options.type](options)
    try:
        if options.awaited:
            await_workers(client, options.awaited, options.timeout)
        ship(client, values)
        if options.joined is None:  # on the scheduler of others it would stay
            show_meters(client)
        _follow_the_work(client, options)
    except BaseException:
        client.close()
        raise
    LOG.info("connected: %s", _summary(client))
    if announce:
        Console(stderr=True, highlight=False, soft_wrap=True).print(_summary(client))
    return client


def _follow_the_work(client: Client, options: Any) -> None:
    """Let the number of workers follow the work where bounds are given."""
    if isinstance(options, ElasticOptions) and options.bounds is not None and options.type not in SCALES_ITSELF:
        minimum, maximum = options.bounds
        client.cluster.adapt(minimum=minimum, maximum=maximum)


def _summary(client: Client) -> str:
    """Return ``"Dask: 2 workers x 1 thread, 4.2 GB each; dashboard: http://..."``."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    shapes = {(worker["nthreads"], worker["memory_limit"]) for worker in workers}
    text = f"Dask: {_plural(len(workers), 'worker')}"
    if len(shapes) == 1:
        threads, memory = next(iter(shapes))
        text += f" x {_plural(threads, 'thread')}" + (f", {memory / 1e9:.1f} GB each" if memory else "")
    return f"{text}; dashboard: {client.dashboard_link}" if client.dashboard_link else text


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _local(options: LocalOptions) -> Client:
    """Start worker processes on this machine; the client owns them and stops them when it is closed."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # a worker imports a script that has no `if __name__ == "__main__":`; its parent says so
    logging.getLogger("distributed.nanny").addFilter(_no_goodbye)
    workers, threads = _shape(options.maximum or options.workers, options.threads, CPU_COUNT)
    try:
        client = ClusterClient(
            n_workers=workers if options.bounds is None else options.first,
            threads_per_worker=threads,
            memory_limit=options.memory or int(MEMORY_LIMIT * MEMORY_SHARE) // workers,
            processes=True,
            timeout=options.timeout,
            dashboard_address=_dashboard_address(options.dashboard),
            env=one_thread(options.environment),
            preload=[WORKER_PRELOAD],
        )
    except (RuntimeError, OSError) as error:
        raise ClusterError(
            f"the local workers did not start ({error}); in a script, connect() goes below "
            "`if __name__ == '__main__':`, because each worker imports the script"
        ) from error
    # Dask's scheduler, which runs here, watches the garbage collection: a Ctrl-C that comes meanwhile is lost.
    disable_gc_diagnosis(force=True)
    return client


def _shape(workers: int | None, threads: int | None, cores: int) -> tuple[int, int]:
    """Return how many workers of how many threads use all cores.

    >>> _shape(None, None, 8), _shape(2, None, 8), _shape(None, 2, 8), _shape(3, 5, 8), _shape(4, None, 2)
    ((8, 1), (2, 4), (4, 2), (3, 5), (4, 1))
    """
    if workers is None:
        workers = max(1, cores // (threads or 1))
    return workers, threads or max(1, cores // workers)


def _dashboard_address(wanted: str) -> str:
    """Return the address, with port 0 (any) where the port is taken: Dask would take another too, but warn and leak."""
    host, _, port = wanted.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return f"{host}:0"
    return wanted


def _address(options: AddressOptions) -> Client:
    """Join a scheduler that runs already."""
    files = {"tls_ca_file": options.ca, "tls_client_cert": options.cert, "tls_client_key": options.key}
    given = {key: value for key, value in files.items() if value is not None}
    try:
        security = Security(**given)
        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has an event loop that runs already
            thread.submit(asyncio.run, _shake_hands(options, security)).result()
        return ClusterClient(options.address, timeout=options.timeout, security=security)
    except (OSError, TypeError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {options.address} ({error or 'timed out'}); check that it runs, the port, "
            "and, for tls://, the certificates ca, cert and key",
            address=options.address,
        ) from error


async def _shake_hands(options: AddressOptions, security: Security) -> None:
    """Raise an OSError if no scheduler answers in time.

    Dask's own timeout ends with the connection: something that accepts it and says nothing (a dead tunnel, another
    service) would be waited for without end.
    """
    arguments = security.get_connection_args("client")
    greeting = comm.connect(options.address, timeout=options.timeout, **arguments)
    (await asyncio.wait_for(greeting, options.timeout)).abort()


CLUSTERS: dict[str, Callable[[Any], Client]] = {
    "local": _local,
    "address": _address,
    "ssh": ssh,
    "gateway": gateway,
    "kubernetes": kubernetes,
    "coiled": coiled,
    "slurm": slurm,
}
"""What starts each kind of cluster, by the ``type`` of its options."""
