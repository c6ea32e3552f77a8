"""Clusters in Kubernetes, run by the Dask operator."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated, Any, Literal

from dask.utils import parse_bytes
from distributed.core import Status
from pydantic import Field

from s2composite.errors import ClusterError
from s2composite.optional import needed
from s2composite.running.clusters.client import ClusterClient, one_thread, started
from s2composite.running.clusters.kind import HostedOptions
from s2composite.running.jobs.document import Expected
from s2composite.running.jobs.fields import WHOLE, Count, Memory, Text

__all__ = ["KubernetesOptions", "kubernetes", "manifest"]

COMM, DASHBOARD, WORKER_DASHBOARD = 8786, 8787, 8788
"""Ports of the scheduler, its dashboard, and a worker's dashboard."""


class KubernetesOptions(HostedOptions):
    """A cluster in Kubernetes, where the Dask operator is installed."""

    type: Literal["kubernetes"] = "kubernetes"
    """Names the kind of cluster."""

    image: Annotated[Text, Expected("a container image with s2composite in it")]
    """Container image of workers and scheduler, with the same s2composite as here."""

    name: Annotated[
        str, Field(pattern=r"^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$"), Expected("a name of lower case letters, digits and -")
    ] = "s2composite"
    """Name of the DaskCluster resource, which must not exist yet."""

    namespace: Text | None = None
    """Namespace of the resource; None: the one in use."""

    threads: Annotated[Count, WHOLE] = 1
    """Threads of each worker, and cores that its pod asks for."""

    memory: Annotated[Memory, Expected("memory of one worker, such as '4GB'")] = "4GB"
    """Memory of each worker: its pod's request and limit."""

    secret: Text | None = None
    """Name of a Secret whose keys become environment variables of the workers."""

    service_account: Text | None = None
    """Service account of the pods, such as one that may read a bucket."""

    node_selector: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """Labels of the nodes that the pods may run on."""

    idle_timeout: Annotated[int, Field(ge=0), Expected("a whole number of seconds; 0: never")] = 1200
    """Seconds without work after which the operator deletes the cluster; 0: never."""


def kubernetes(options: KubernetesOptions) -> ClusterClient:
    """Create a DaskCluster resource and connect to its scheduler; closing the client deletes it."""
    needed("dask_kubernetes", "kubernetes", "clusters in Kubernetes")
    cure = "check that kubectl reaches the cluster, that the Dask operator is installed there, and the pods' events"
    with started("kubernetes cluster", cure):
        from dask_kubernetes.operator.kubecluster.kubecluster import CreateMode, KubeCluster  # noqa: PLC0415 - an extra

        with ThreadPoolExecutor(1) as thread:  # the thread of a notebook is already running an event loop
            thread.submit(asyncio.run, _check_name(options)).result()
        try:
            cluster = KubeCluster(
                custom_cluster_spec=manifest(options),
                namespace=options.namespace,
                create_mode=CreateMode.CREATE_ONLY,
                shutdown_on_close=True,
                resource_timeout=int(options.timeout),
                quiet=True,
            )
            client = ClusterClient(cluster, timeout=options.timeout)
        except BaseException:
            _give_up(KubeCluster, options.name)
            raise
    client.closes = cluster.close
    return client


def _give_up(kind: Any, name: str) -> None:
    """Delete the remains of a cluster that did not start, now and not when this process ends."""
    for cluster in list(kind._instances):  # noqa: SLF001 - the only place that lists one that failed to start
        if cluster.name == name:
            with suppress(Exception):  # the real error is being raised
                cluster.close(timeout=10)
            cluster.status = Status.closed


async def _check_name(options: KubernetesOptions) -> None:
    """Refuse a name that is taken: KubeCluster would too, but would delete that cluster when this process ends."""
    from dask_kubernetes.operator._objects import DaskCluster  # noqa: PLC0415 - an extra

    cluster = await DaskCluster(options.name, namespace=options.namespace)
    if await cluster.exists():
        raise ClusterError(
            f"Kubernetes already has a DaskCluster {options.name!r}; give another 'name', or delete it first"
        )


def manifest(options: KubernetesOptions) -> dict[str, Any]:
    """Return the DaskCluster resource, as ``kubectl apply`` takes it; it holds names of secrets, never values."""
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": options.name},
        "spec": {
            "idleTimeout": int(options.idle_timeout),
            "worker": {"replicas": options.first, "spec": _pod(_worker(options), options)},
            "scheduler": {"spec": _pod(_scheduler(options), options), "service": _service(options.name)},
        },
    }


def _pod(container: dict[str, Any], options: KubernetesOptions) -> dict[str, Any]:
    return {
        "containers": [container],
        **({} if options.service_account is None else {"serviceAccountName": options.service_account}),
        **({"nodeSelector": dict(options.node_selector)} if options.node_selector else {}),
    }


def _worker(options: KubernetesOptions) -> dict[str, Any]:
    memory = str(parse_bytes(options.memory))
    command = ["dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", str(options.threads)]
    command += ["--memory-limit", memory, "--dashboard", "--dashboard-address", str(WORKER_DASHBOARD)]
    secret = {} if options.secret is None else {"envFrom": [{"secretRef": {"name": options.secret}}]}
    return {
        "name": "worker",
        "image": options.image,
        "args": command,
        "env": [{"name": name, "value": value} for name, value in one_thread(options.environment).items()],
        **secret,
        "resources": {"requests": {"cpu": str(options.threads), "memory": memory}, "limits": {"memory": memory}},
        "ports": [{"name": "http-dashboard", "containerPort": WORKER_DASHBOARD, "protocol": "TCP"}],
    }


def _scheduler(options: KubernetesOptions) -> dict[str, Any]:
    health = {"httpGet": {"port": "http-dashboard", "path": "/health"}, "periodSeconds": 10}
    return {
        "name": "scheduler",
        "image": options.image,
        "args": ["dask", "scheduler", "--host", "0.0.0.0"],  # noqa: S104 - inside its pod
        "ports": [
            {"name": "tcp-comm", "containerPort": COMM, "protocol": "TCP"},
            {"name": "http-dashboard", "containerPort": DASHBOARD, "protocol": "TCP"},
        ],
        "readinessProbe": {**health, "initialDelaySeconds": 0, "timeoutSeconds": 300},
        "livenessProbe": {**health, "initialDelaySeconds": 15},
    }


def _service(name: str) -> dict[str, Any]:
    ports = {"tcp-comm": COMM, "http-dashboard": DASHBOARD}
    return {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
        "ports": [{"name": key, "protocol": "TCP", "port": port, "targetPort": key} for key, port in ports.items()],
    }
