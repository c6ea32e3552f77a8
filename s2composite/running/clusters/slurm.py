"""Clusters of a computing centre: each worker is a job in Slurm's queue."""

from __future__ import annotations

import shlex
import shutil
from typing import Annotated, Any, Literal

from pydantic import Field

from s2composite.errors import ClusterError
from s2composite.optional import needed
from s2composite.running.clusters.client import ClusterClient, client_of, one_thread, started
from s2composite.running.clusters.kind import HostedOptions
from s2composite.running.jobs.document import Expected
from s2composite.running.jobs.fields import WHOLE, Count, Dashboard, FilePath, Memory, Text, Texts

__all__ = ["SlurmOptions", "job_script", "slurm", "slurm_arguments"]


class SlurmOptions(HostedOptions):
    """A cluster of a computing centre, of which each worker is a job in Slurm's queue."""

    type: Literal["slurm"] = "slurm"
    """Names the kind of cluster."""

    queue: Text | None = None
    """Partition to submit to; None: the centre's default."""

    account: Text | None = None
    """Account that is charged; None: the user's default."""

    walltime: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$"), Expected("a time such as '02:00:00'")] = (
        "01:00:00"
    )
    """Longest time that a worker runs."""

    threads: Annotated[Count, WHOLE] = 1
    """Threads of each worker, and cores that its job asks for."""

    memory: Annotated[Memory, Expected("memory of one worker, such as '4GB'")] = "4GB"
    """Memory of each worker's job."""

    directives: Texts = ()
    """More lines for ``#SBATCH``, such as ``--constraint=cascadelake``."""

    prologue: Texts = ()
    """Lines of shell that run before the worker, such as ``module load python``."""

    interface: Text | None = None
    """Network interface that all nodes share, such as ``ib0``."""

    python: Text | None = None
    """Python on the nodes, with s2composite installed; None: the path that Python has here."""

    log_directory: FilePath | None = None
    """Where the jobs' output goes; None: where Slurm puts it."""

    local_directory: FilePath | None = None
    """Where workers put what does not fit into memory, a disk of the node."""

    dashboard: Dashboard = ":8787"
    """Where to serve the Dask dashboard; another port is found if that one is taken."""


def slurm(options: SlurmOptions) -> ClusterClient:
    """Start a scheduler here and submit a job for each worker; closing the client cancels them."""
    package = _jobqueue()
    if shutil.which("sbatch") is None:  # dask-jobqueue would only log that, and wait for workers
        raise ClusterError("sbatch was not found; start s2composite on a login node of a Slurm cluster")
    with started("slurm cluster", "check that sbatch works here, and the queue, the account and the limits"):
        cluster = package.SLURMCluster(**slurm_arguments(options), n_workers=options.first)
        return client_of(cluster, options.timeout)


def job_script(options: SlurmOptions) -> str:
    """Return the script that is submitted for each worker, for a scheduler that is not known yet."""
    package = _jobqueue()
    arguments = slurm_arguments(options)
    del arguments["scheduler_options"]
    return str(package.slurm.SLURMJob(scheduler="tcp://scheduler:8786", name="worker", **arguments).job_script())


def _jobqueue() -> Any:
    return needed("dask_jobqueue", "slurm", "clusters of Slurm")


def slurm_arguments(options: SlurmOptions) -> dict[str, Any]:
    """Return the arguments of dask-jobqueue's SLURMCluster."""
    # In a file that others may read: thread counts, and nothing else of the environment.
    threads = [f"export {name}={shlex.quote(value)}" for name, value in one_thread(options.environment).items()]
    arguments = {
        "queue": options.queue,
        "account": options.account,
        "walltime": options.walltime,
        "cores": options.threads,
        "memory": options.memory,
        "processes": 1,
        "job_extra_directives": list(options.directives),
        "job_script_prologue": [*threads, *options.prologue],
        "interface": options.interface,
        "python": options.python,
        "log_directory": options.log_directory,
        "local_directory": options.local_directory,
        "death_timeout": options.timeout,
        "scheduler_options": {"dashboard_address": options.dashboard},
    }
    return {name: value for name, value in arguments.items() if value is not None}
