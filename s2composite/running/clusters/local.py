"""Worker processes on this machine."""

from __future__ import annotations

import logging
import multiprocessing
import socket
import sys
from typing import Annotated, Literal

from dask.system import CPU_COUNT
from distributed.gc import disable_gc_diagnosis
from distributed.system import MEMORY_LIMIT

from s2composite.errors import ClusterError
from s2composite.running.clusters.client import ClusterClient, one_thread
from s2composite.running.clusters.kind import ElasticOptions
from s2composite.running.jobs.document import Expected
from s2composite.running.jobs.fields import WHOLE, Count, Dashboard, Memory

__all__ = ["MEMORY_SHARE", "LocalOptions", "local", "local_shape"]

MEMORY_SHARE = 0.9
"""Share of the machine's memory that local workers get together; the rest is for this process and the system."""

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

The error of a task is raised where its result is requested; the copy that each worker would print hides the one line
that matters among tracebacks. While the cluster closes, a heartbeat may fail or a task be cancelled. And a worker exits
without tearing down what Numba compiled, which took 1.7 to 4.2 s on a busy machine (0.1 s without): after 4 s Dask
kills the worker with a warning."""


class LocalOptions(ElasticOptions):
    """Worker processes on this machine."""

    type: Literal["local"] = "local"
    """Names the kind of cluster."""

    workers: Annotated[Count | None, WHOLE] = None
    """Processes; None: one for each core, or as many as `threads` leaves cores for."""

    threads: Annotated[Count | None, WHOLE] = None
    """Threads of each worker; None: the cores divided by `workers`."""

    memory: Annotated[Memory | None, Expected("memory of one worker, such as '4GB'")] = None
    """Memory limit of each worker, ``"4GB"``; None: nine tenths of the machine's memory divided by `workers`."""

    dashboard: Dashboard = ":8787"
    """Where to serve the Dask dashboard, ``"host:port"``; a free port is found if that one is taken."""


def local(options: LocalOptions) -> ClusterClient:
    """Start worker processes on this machine; the client owns them and stops them when it is closed."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # this is a worker that imports a script without `if __name__ == "__main__":`; its parent says so
    logging.getLogger("distributed.nanny").addFilter(_no_goodbye)
    workers, threads = local_shape(options)
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
    # The scheduler, which runs here, diagnoses garbage collections, and a Ctrl-C during one would be lost.
    disable_gc_diagnosis(force=True)
    return client


def local_shape(options: LocalOptions) -> tuple[int, int]:
    """Return the largest number of workers, and the threads of each."""
    return _shape(options.maximum or options.workers, options.threads, CPU_COUNT)


def _no_goodbye(record: logging.LogRecord) -> bool:
    """Filter out the message that a worker was killed in the middle of a task when the cluster closed."""
    return not str(record.msg).startswith("Worker process still alive")


def _shape(workers: int | None, threads: int | None, cores: int) -> tuple[int, int]:
    """Return how many workers of how many threads use all cores.

    >>> _shape(None, None, 8), _shape(2, None, 8), _shape(None, 2, 8), _shape(3, 5, 8), _shape(4, None, 2)
    ((8, 1), (2, 4), (4, 2), (3, 5), (4, 1))
    """
    if workers is None:
        workers = max(1, cores // (threads or 1))
    return workers, threads or max(1, cores // workers)


def _dashboard_address(wanted: str) -> str:
    """Return the address, with port 0 (any) if the port is taken: Dask would also take another, but warn and leak."""
    host, _, port = wanted.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return f"{host}:0"
    return wanted
