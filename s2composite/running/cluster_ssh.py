"""Workers on machines that are reached with SSH."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import SSHCluster

from s2composite.errors import MissingDependencyError
from s2composite.running.cluster_client import ClusterClient, client_of, one_thread, started
from s2composite.running.cluster_options import SshOptions

__all__ = ["ssh", "ssh_arguments"]

QUOTED = 8
"""Lines of a remote process that did not start that are quoted in the error."""


def ssh(options: SshOptions) -> ClusterClient:
    """Start a scheduler and workers over SSH; closing the client stops them."""
    if importlib.util.find_spec("asyncssh") is None:
        raise MissingDependencyError("clusters over SSH need asyncssh; pip install 's2composite[ssh]'")
    cure = "check that 'ssh' reaches each machine with this user and key, and that 'python' names one with s2composite"
    with _overheard() as lines, started("ssh cluster", cure, lines):
        cluster = SSHCluster(**ssh_arguments(options))
        return client_of(cluster, options.timeout)


def ssh_arguments(options: SshOptions) -> dict[str, Any]:
    """Return the arguments of Dask's SSHCluster."""
    login = {
        "username": options.user,
        "client_keys": None if options.key is None else [options.key],
        "known_hosts": options.known_hosts,
    }
    connection: dict[str, Any] = {
        "port": options.port,
        "connect_timeout": options.timeout,
        "login_timeout": options.timeout,
        **{key: value for key, value in login.items() if value is not None},
    }
    if not options.check_host_keys:
        connection["known_hosts"] = None  # asyncssh's way to say that any key will do
    worker = {"nthreads": options.threads, "memory_limit": options.memory}
    return {
        "hosts": [options.scheduler or options.hosts[0], *options.hosts],
        "connect_options": connection,
        "worker_options": {
            "n_workers": options.workers,
            "death_timeout": options.timeout,
            # On the command line there, so nothing but thread counts: they must be set before Python starts.
            "env": one_thread(options.environment),
            **{key: value for key, value in worker.items() if value is not None},
        },
        "scheduler_options": {"port": 0, "dashboard_address": options.dashboard},
        "remote_python": options.python,
    }


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """Collect the last lines that remote processes write while they start; Dask logs them where nobody looks."""
    lines: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            del lines[:-QUOTED]

    logger, ear = logging.getLogger("distributed.deploy.ssh"), Ear()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(ear)
        logger.setLevel(level)
        logger.propagate = propagate
