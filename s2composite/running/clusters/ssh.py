"""Workers on machines that are reached with SSH."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from distributed import SSHCluster
from pydantic import Field

from s2composite.optional import needed
from s2composite.running.clusters.client import ClusterClient, client_of, one_thread, started
from s2composite.running.clusters.kind import KindOptions
from s2composite.running.jobs.document import Expected
from s2composite.running.jobs.fields import WHOLE, Count, Dashboard, FilePath, Memory, Positive, SomeTexts, Text

__all__ = ["SshOptions", "ssh", "ssh_arguments"]

QUOTED = 8
"""Lines of a remote process that did not start that are quoted in the error."""


class SshOptions(KindOptions):
    """Workers on machines that are reached with SSH, one scheduler beside them."""

    type: Literal["ssh"] = "ssh"
    """Names the kind of cluster."""

    hosts: Annotated[SomeTexts, Expected("a list of machines, such as [node1, node2]")]
    """Machines that work: names or IP addresses."""

    scheduler: Text | None = None
    """Machine of the scheduler; None: the first of `hosts`."""

    user: Text | None = None
    """Name to log in with; None: the one in use here."""

    key: FilePath | None = None
    """File of the private key; None: those of ``~/.ssh`` and of a running agent."""

    port: Annotated[int, Field(ge=1, le=65535), Expected("a port number")] = 22
    """Port of the SSH servers."""

    known_hosts: FilePath | None = None
    """File with the machines' host keys; None: ``~/.ssh/known_hosts``."""

    check_host_keys: Annotated[bool, Expected("true or false")] = True
    """Whether a machine must prove by its host key that it is the one that is known."""

    python: Text | None = None
    """Python there, with s2composite installed; None: the path that Python has here."""

    workers: Annotated[Count, WHOLE] = 1
    """Worker processes on each machine."""

    threads: Annotated[Count | None, WHOLE] = None
    """Threads of each worker; None: all cores of its machine."""

    memory: Annotated[Memory | None, Expected("memory of one worker, such as '4GB'")] = None
    """Memory limit of each worker; None: its share of its machine's memory."""

    dashboard: Dashboard = ":8787"
    """Where the scheduler serves the Dask dashboard; another port is found if that one is taken."""

    timeout: Annotated[Positive, Expected("a number of seconds")] = 60
    """Seconds that logging in may take, and that workers and scheduler wait for each other."""

    @property
    def awaited(self) -> int:
        """All workers: the machines are there."""
        return len(self.hosts) * self.workers


def ssh(options: SshOptions) -> ClusterClient:
    """Start a scheduler and workers over SSH; closing the client stops them."""
    needed("asyncssh", "ssh", "clusters over SSH")
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
