"""Clusters in one's own cloud account, run by Coiled."""

from __future__ import annotations

import importlib.util
from typing import Any

from s2composite.errors import MissingDependencyError
from s2composite.running.cluster_client import ClusterClient, client_of, one_thread, started
from s2composite.running.cluster_options import CoiledOptions

__all__ = ["coiled", "coiled_arguments"]


def coiled(options: CoiledOptions) -> ClusterClient:
    """Start a cluster with Coiled; closing the client shuts it down."""
    if importlib.util.find_spec("coiled") is None:
        raise MissingDependencyError("clusters of Coiled need coiled; pip install 's2composite[coiled]'")
    with started("coiled cluster", "check 'coiled login', the workspace, the region and its quotas"):
        from coiled import Cluster  # noqa: PLC0415 - an extra

        cluster = Cluster(**coiled_arguments(options))
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
