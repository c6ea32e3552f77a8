"""connect(): start or join the Dask workers that computations run on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from distributed import Client
from rich.console import Console

from s2composite.running.clusters.address import address
from s2composite.running.clusters.client import await_workers, ship, show_meters, values_to_ship
from s2composite.running.clusters.coiled import coiled
from s2composite.running.clusters.gateway import gateway
from s2composite.running.clusters.kind import ElasticOptions
from s2composite.running.clusters.kubernetes import kubernetes
from s2composite.running.clusters.local import local
from s2composite.running.clusters.options import read_cluster
from s2composite.running.clusters.slurm import slurm
from s2composite.running.clusters.ssh import ssh
from s2composite.running.reports.logs import forward_logs

__all__ = ["CLUSTERS", "connect"]

LOG = logging.getLogger(__name__)

SCALES_ITSELF = ("gateway", "coiled")
"""Kinds that are given the bounds of their size when they start."""


def _no_early_cancel(record: logging.LogRecord) -> bool:
    """Filter out the message that Dask could not cancel a call to the scheduler that had not begun."""
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
        ``"local"``: worker processes on this machine; ``"tcp://host:port"`` or ``"tls://..."``: a running scheduler; a
        mapping with a ``type``, ``{"type": "local", "workers": 2}``; or the path of a YAML file that holds one. Types
        are ``local``, ``address``, ``ssh``, ``gateway``, ``kubernetes``, ``coiled`` and ``slurm``, each with a file in
        ``examples/clusters``. A cluster.yaml of Ray is mapped to ``ssh`` or ``coiled``.
    workers, threads, memory, dashboard
        Override those of `config`, for types that have them. Local: number of processes (None: one per core), threads
        of each (None: the cores divided by `workers`), memory limit of each (None: nine tenths of the machine's memory
        divided by `workers`), address of the dashboard (another port if ``":8787"`` is taken).
    announce
        Print one line with the workers and the link of the dashboard, to the terminal or notebook.

    Returns
    -------
    distributed.Client
        A context manager. Closing it stops what was started; workers of a running scheduler are left alone, and keep
        the environment variables that they were given.

    Raises
    ------
    JobError
        An option is unknown or invalid; lists the valid ones.
    ClusterError
        The scheduler does not answer, or workers do not start or do not accept their environment.
    MissingDependencyError
        The kind of cluster needs an optional package; says which extra installs it.

    Examples
    --------
    >>> with connect("local", workers=1, memory="1GB", announce=False) as client:
    ...     client.submit(sum, [1, 2, 3]).result()
    6
    """
    settings = {"workers": workers, "threads": threads, "memory": memory, "dashboard": dashboard}
    options = read_cluster(config, **{key: value for key, value in settings.items() if value is not None})
    values = values_to_ship(options)  # before anything starts that costs money
    logging.getLogger("tornado.application").addFilter(_no_early_cancel)
    client = CLUSTERS[options.type](options)
    try:
        if options.awaited:
            await_workers(client, options.awaited, options.timeout)
        ship(client, values)
        if options.joined is None:  # on someone else's scheduler they would stay
            show_meters(client)
            forward_logs(client)
        _follow_the_work(client, options)
    except BaseException:
        client.close()
        raise
    LOG.info("connected: %s", _summary(client))
    if announce:
        Console(stderr=True, highlight=False, soft_wrap=True).print(_summary(client))
    return client


def _follow_the_work(client: Client, options: Any) -> None:
    """Let the number of workers follow the work, if it has bounds."""
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


CLUSTERS: dict[str, Callable[[Any], Client]] = {
    "local": local,
    "address": address,
    "ssh": ssh,
    "gateway": gateway,
    "kubernetes": kubernetes,
    "coiled": coiled,
    "slurm": slurm,
}
"""The function that starts each kind of cluster, by the ``type`` of its options."""
