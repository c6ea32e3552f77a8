"""Clusters in the user's own cloud account, run by Coiled."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from s2composite.optional import needed
from s2composite.running.clusters.client import ClusterClient, client_of, one_thread, started
from s2composite.running.clusters.kind import HostedOptions
from s2composite.running.jobs.document import Expected
from s2composite.running.jobs.fields import WHOLE, Count, Memory, SomeTexts, Text, Texts

__all__ = ["CoiledOptions", "coiled", "coiled_arguments"]


class CoiledOptions(HostedOptions):
    """A cluster that Coiled starts in the user's own cloud account."""

    type: Literal["coiled"] = "coiled"
    """Names the kind of cluster."""

    name: Text | None = None
    """Name of the cluster; None: Coiled makes one up."""

    workspace: Text | None = None
    """Workspace to use; None: the default one."""

    region: Text | None = None
    """Region of the machines, preferably that of the scenes; None: the workspace's."""

    vm_types: SomeTexts | None = None
    """Instance types of workers, the preferred one first; None: by `threads` and `memory`."""

    scheduler_vm_types: SomeTexts | None = None
    """Instance types of the scheduler; None: Coiled chooses."""

    threads: Annotated[Count | None, WHOLE] = None
    """Cores of each worker's machine; None: Coiled chooses."""

    memory: Annotated[Memory | None, Expected("memory of one worker, such as '16GiB'")] = None
    """Memory of each worker's machine; None: Coiled chooses."""

    disk_size: Annotated[Count | None, Expected("a whole number of GiB")] = None
    """Disk of each worker in GiB; None: Coiled chooses."""

    spot_policy: Annotated[
        Literal["on-demand", "spot", "spot_with_fallback"], Expected("one of on-demand, spot, spot_with_fallback")
    ] = "on-demand"
    """Whether workers are spot instances, which cost less but may be taken away."""

    idle_timeout: Annotated[Text, Expected("a duration such as '20 minutes'")] = "20 minutes"
    """Time without work after which the cluster is shut down."""

    container: Text | None = None
    """Container image to run, instead of the packages here."""

    software: Text | None = None
    """Software environment at Coiled to use, instead of the packages here."""

    package_sync_only: Texts = ()
    """Only these packages are copied from the environment here; empty: all."""

    package_sync_ignore: Texts = ()
    """These packages are not copied from the environment here."""

    @model_validator(mode="after")
    def _one_software(self) -> Self:
        given = {
            "container": self.container,
            "software": self.software,
            "package_sync_only or package_sync_ignore": self.package_sync_only or self.package_sync_ignore,
        }
        several = [name for name, value in given.items() if value]
        if len(several) > 1:
            raise ValueError(f"{' and '.join(several)} exclude each other; give one")
        if self.vm_types is not None and (self.threads or self.memory):
            raise ValueError("vm_types already sets threads and memory; leave these out, or vm_types")
        return self


def coiled(options: CoiledOptions) -> ClusterClient:
    """Start a cluster with Coiled; closing the client shuts it down."""
    package = needed("coiled", "coiled", "clusters of Coiled")
    with started("coiled cluster", "check 'coiled login', the workspace, the region and its quotas"):
        cluster = package.Cluster(**coiled_arguments(options))
        return client_of(cluster, options.timeout)


def coiled_arguments(options: CoiledOptions) -> dict[str, Any]:
    """Return the arguments of ``coiled.Cluster``; what is left to Coiled is left out."""
    arguments = {
        "name": options.name,
        "workspace": options.workspace,
        "region": options.region,
        "n_workers": options.workers if options.bounds is None else list(options.bounds),
        "worker_vm_types": options.vm_types and list(options.vm_types),
        "worker_cpu": options.threads,
        "worker_memory": options.memory,
        "worker_disk_size": options.disk_size,
        "scheduler_vm_types": options.scheduler_vm_types and list(options.scheduler_vm_types),
        "spot_policy": options.spot_policy,
        "idle_timeout": options.idle_timeout,
        "container": options.container,
        "software": options.software,
        "package_sync_only": list(options.package_sync_only) or None,
        "package_sync_ignore": list(options.package_sync_ignore) or None,
        "environ": one_thread(options.environment),  # goes to Coiled's servers: thread counts, and nothing else
        "timeout": options.timeout,
        "wait_for_workers": False,
        "shutdown_on_close": True,
        "show_widget": False,
    }
    return {name: value for name, value in arguments.items() if value is not None}
