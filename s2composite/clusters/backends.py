"""Backends that start Dask workers: the options and the start function of each, and one table of all backends."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed import Client, SSHCluster, comm
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.gc import disable_gc_diagnosis
from distributed.security import Security
from distributed.system import MEMORY_LIMIT
from pydantic import AfterValidator, Field, model_validator

from s2composite.config import (
    WHOLE,
    Count,
    Credentials,
    Dashboard,
    Environment,
    Expected,
    FilePath,
    Memory,
    Positive,
    SomeTexts,
    Strict,
    Text,
    Texts,
    Variable,
)
from s2composite.errors import ClusterError, JobError, S2CompositeError, needed

# Packages of extras are imported where they are used (PLC0415).
# ruff: noqa: PLC0415

__all__ = [
    "BACKENDS", "MEMORY_SHARE", "SCHEMES", "AddressOptions", "BackendOptions", "ClusterBackend", "ClusterClient",
    "CoiledOptions", "ElasticOptions", "GatewayOptions", "HostedOptions", "KubernetesOptions", "LocalOptions",
    "SlurmOptions", "SshOptions", "coiled_arguments", "kubernetes_manifest", "local_shape", "slurm_arguments",
    "ssh_arguments", "start_cluster",
]  # fmt: skip

_TYPE = Field(description="Names the kind of cluster.")
Seconds = Annotated[Positive, Expected("a number of seconds")]
Whole = Annotated[Count, WHOLE]
WholeOrNone = Annotated[Count | None, WHOLE]
MemoryOfWorker = Annotated[Memory, Expected("memory of one worker, such as '4GB'")]
MemoryOfWorkerOrNone = Annotated[Memory | None, Expected("memory of one worker, such as '4GB'")]


# --- what all backends share ------------------------------------------------------------------------------------------


class BackendOptions(Strict):
    """Options that all kinds of clusters have."""

    type: Annotated[str, _TYPE]

    environment: Environment = {}  # noqa: RUF012 - pydantic copies it
    """Environment variables of every worker, such as GDAL's settings or thread counts."""
    credentials: Credentials = ()
    """Names of environment variables that workers get with their values here, such as ``AWS_SECRET_ACCESS_KEY``."""
    timeout: Seconds = 60
    """Seconds to wait for the scheduler and the initial workers."""

    @property
    def awaited(self) -> int:
        """Workers that `connect` waits for."""
        return 0

    @property
    def joined(self) -> str | None:
        """The running cluster that is joined; None: a new one is started."""
        return None


class ElasticOptions(BackendOptions):
    """A cluster with a fixed number of workers, or one that scales with the work between two bounds."""

    workers: WholeOrNone = None
    """Number of workers."""
    minimum: Annotated[int | None, Field(ge=0), Expected("a whole number from 0")] = None
    """Minimum workers, when there is no work; with `maximum`, instead of `workers`."""
    maximum: WholeOrNone = None
    """Maximum workers, under full load; with `minimum` (default 0), instead of `workers`."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.maximum is None and self.minimum is not None:
            raise ValueError(f"minimum is {self.minimum}, but there is no maximum; give both")
        if self.maximum is not None and self.workers is not None:
            raise ValueError("give either workers, or minimum and maximum")
        if self.maximum is not None and (self.minimum or 0) > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) is above maximum ({self.maximum})")
        return self

    @property
    def bounds(self) -> tuple[int, int] | None:
        """Minimum and maximum workers of a cluster that scales with the work; None: a fixed number."""
        return None if self.maximum is None else (self.minimum or 0, self.maximum)

    @property
    def initial_workers(self) -> int:
        """Initial number of workers."""
        return (self.workers or 0) if self.bounds is None else self.bounds[0]


class HostedOptions(ElasticOptions):
    """A cluster on machines that cost money or are shared, so its size must be given."""

    timeout: Seconds = 600
    """Seconds to wait for the scheduler, and for the first worker."""

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.workers is None and self.maximum is None and self.joined is None:
            raise ValueError("needs a number of workers: 'workers', or 'minimum' and 'maximum'")
        return self

    @property
    def awaited(self) -> int:
        """One worker is enough to start; none if the cluster may be empty without work."""
        return min(1, self.initial_workers)


class ClusterClient(Client):  # type: ignore[misc] # distributed has no types
    """A Client that closes the cluster started for it, and records the environment its workers were given."""

    # Called after the client has closed; None: the cluster outlives the client, or the client itself closes it.
    close_cluster: Callable[[], Any] | None = None
    shipped: tuple[str, ...] = ()  # names of the environment variables that the workers were given

    def close(self, *args: Any, **kwargs: Any) -> Any:
        """Close the client, then its cluster; a second call does nothing."""
        close_cluster, self.close_cluster = self.close_cluster, None
        try:
            return super().close(*args, **kwargs)
        finally:
            if close_cluster is not None:
                close_cluster()


def _client_of(cluster: Any, timeout: float) -> ClusterClient:
    """Return a client that owns a newly started cluster; on failure the cluster is closed."""
    with ExitStack() as undo:
        undo.callback(cluster.close)
        client = ClusterClient(cluster, timeout=timeout)
        undo.pop_all()
    client.close_cluster = cluster.close
    return client


def _wait_for_lost_workers(cluster: Any, options: ElasticOptions) -> None:
    """Let a cluster of a fixed size wait for workers that it has lost as long as for its first ones.

    Dask closes a worker's nanny, or its job in a queue, if the worker is not there 15 s after it was lost: it has died
    again, or takes long to start. A cluster that scales then starts another, one of a fixed size does not.
    """
    if options.bounds is not None:
        return
    lost: dict[Any, asyncio.TimerHandle] = {}
    closing: set[asyncio.Future[None]] = set()

    def update(op: str, message: Any) -> None:
        if op == "remove":
            name = cluster.scheduler_info["workers"][message]["name"]
            lost[name] = asyncio.get_running_loop().call_later(options.timeout, give_up, name)
        else:
            for worker in message["workers"].values():
                if worker["name"] in lost:
                    lost.pop(worker["name"]).cancel()
        Cluster._update_worker_status(cluster, op, message)  # noqa: SLF001

    def give_up(name: Any) -> None:
        if name in cluster.workers:
            closing.add(asyncio.ensure_future(cluster.workers.pop(name).close()))

    cluster._update_worker_status = update  # noqa: SLF001


def _thread_counts(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the thread-count variables for starting a worker: as in the options, as set here, or 1.

    Dask's own threads use the cores. Libraries read these variables on import, so they must be set at start. The rest
    of the environment is sent over Dask's connections (`s2composite.clusters.connect`), so that no command line, pod or
    job script contains secrets.
    """
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: environment.get(name, os.environ.get(name, "1")) for name in names}


def _given(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that are not None; the backend chooses the others."""
    return {name: value for name, value in arguments.items() if value is not None}


def _run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a new thread: a notebook's thread already runs an event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


# --- local ------------------------------------------------------------------------------------------------------------

# Share of the machine's memory for all local workers; the rest is for this process and the system.
MEMORY_SHARE = 0.9

# Runs in each local worker at its start. A task's error is raised where its result is requested, so workers do not
# print it again. While the cluster closes, heartbeats may fail and tasks be cancelled. A terminal also sends Ctrl-C to
# workers, which would print tracebacks; the parent process stops them instead. A worker exits without freeing compiled
# Numba code, which took 1.7 to 4.2 s on a busy machine (0.1 s without): after 4 s Dask kills the worker with a warning.
_WORKER_PRELOAD = """
import atexit, logging, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
NOISE = ("Compute Failed", "Failed to communicate with scheduler during heartbeat", "Async instruction for")
for name in ("distributed.worker", "distributed.worker.state_machine"):
    logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(NOISE))
def leave():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
atexit.register(leave)
"""


class LocalOptions(ElasticOptions):
    """Worker processes on this machine.

    Examples
    --------
    >>> local_shape(LocalOptions(workers=2, threads=4))
    (2, 4)
    """

    type: Annotated[Literal["local"], _TYPE] = "local"

    workers: WholeOrNone = None
    """Processes; None: one for each core, or the cores divided by `threads`."""
    threads: WholeOrNone = None
    """Threads of each worker; None: the cores divided by `workers`."""
    memory: MemoryOfWorkerOrNone = None
    """Memory limit of each worker, ``"4GB"``; None: nine tenths of the machine's memory divided by `workers`."""
    dashboard: Dashboard = ":8787"
    """Where to serve the Dask dashboard, ``"host:port"``; a free port is found if that one is taken."""


def local_shape(options: LocalOptions, cores: int = CPU_COUNT) -> tuple[int, int]:
    """Return the largest number of workers, and the threads of each, so that they use all cores."""
    workers = options.maximum or options.workers or max(1, cores // (options.threads or 1))
    return workers, options.threads or max(1, cores // workers)


def _start_local(options: LocalOptions) -> ClusterClient:
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # a worker importing a script without `if __name__ == "__main__":`; the parent reports this
    logging.getLogger("distributed.nanny").addFilter(_is_not_about_killed_worker)
    workers, threads = local_shape(options)
    dashboard = options.dashboard
    host, _, port = dashboard.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:  # Dask would also use another port, but with a warning and a leaked socket
            dashboard = f"{host}:0"
    try:
        with warnings.catch_warnings():
            # Another process may take the port between the probe and here. `connect` prints the link in any case.
            warnings.filterwarnings("ignore", message=r"Port \d+ is already in use")
            client = ClusterClient(
                n_workers=workers if options.bounds is None else options.initial_workers,
                threads_per_worker=threads,
                memory_limit=options.memory or int(MEMORY_LIMIT * MEMORY_SHARE) // workers,
                processes=True,
                timeout=options.timeout,
                dashboard_address=dashboard,
                env=_thread_counts(options.environment),
                preload=[_WORKER_PRELOAD],
            )
    except (RuntimeError, OSError) as error:
        raise ClusterError(
            f"the local workers did not start ({error}); in a script, call connect() below "
            "`if __name__ == '__main__':`, because each worker imports the script"
        ) from error
    _wait_for_lost_workers(client.cluster, options)
    # The scheduler, which runs here, diagnoses garbage collections, and a Ctrl-C during one would be lost.
    disable_gc_diagnosis(force=True)
    return client


def _is_not_about_killed_worker(record: logging.LogRecord) -> bool:
    """Filter out the message that a worker was killed in the middle of a task when the cluster closed."""
    return not str(record.msg).startswith("Worker process still alive")


# --- address ----------------------------------------------------------------------------------------------------------

# How the address of a Dask scheduler begins.
SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://", "inproc://")


def _address(value: str) -> str:
    if not value.startswith(SCHEMES):
        raise ValueError(f"expected the address of a Dask scheduler, such as tcp://10.0.0.5:8786, got {value!r}")
    return value


class AddressOptions(BackendOptions):
    """A Dask scheduler that is already running.

    Examples
    --------
    >>> AddressOptions(address="tls://10.0.0.5:8786", ca="ca.pem", cert="me.pem", key="me.key").joined
    'tls://10.0.0.5:8786'
    """

    type: Annotated[Literal["address"], _TYPE] = "address"

    address: Annotated[str, AfterValidator(_address), Expected("an address such as tcp://10.0.0.5:8786")]
    """Address of the scheduler: ``"tcp://10.0.0.5:8786"``, ``"tls://..."``."""
    timeout: Seconds = 10
    """Seconds to wait for the scheduler to answer."""
    ca: FilePath | None = None
    """For ``tls://``: PEM file of the certificate authority."""
    cert: FilePath | None = None
    """For ``tls://``: PEM file of this client's certificate."""
    key: FilePath | None = None
    """For ``tls://``: PEM file of this client's private key."""

    @property
    def joined(self) -> str | None:
        """Address of the scheduler."""
        return self.address


def _join_scheduler(options: AddressOptions) -> ClusterClient:
    async def check_handshake() -> None:
        # Dask's own timeout ends when the connection is made: it would wait forever for something that accepts
        # connections but never answers (a dead tunnel, another service).
        connecting = comm.connect(options.address, timeout=options.timeout, **security.get_connection_args("client"))
        (await asyncio.wait_for(connecting, options.timeout)).abort()

    try:
        files = _given(tls_ca_file=options.ca, tls_client_cert=options.cert, tls_client_key=options.key)
        security = Security(**files)
        _run_async(check_handshake())
        return ClusterClient(options.address, timeout=options.timeout, security=security)
    except (OSError, TypeError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {options.address} ({error or 'timed out'}); check that it is running, the "
            "port, and for tls:// the certificates ca, cert and key",
            address=options.address,
        ) from error


# --- ssh --------------------------------------------------------------------------------------------------------------


class SshOptions(BackendOptions):
    """Workers and one scheduler on machines reached over SSH.

    Examples
    --------
    >>> SshOptions(hosts=["node1", "node2"], workers=2).awaited
    4
    """

    type: Annotated[Literal["ssh"], _TYPE] = "ssh"

    hosts: Annotated[SomeTexts, Expected("a list of machines, such as [node1, node2]")]
    """Machines of the workers: names or IP addresses."""
    scheduler: Text | None = None
    """Machine of the scheduler; None: the first of `hosts`."""
    user: Text | None = None
    """User to log in as; None: the current user."""
    key: FilePath | None = None
    """File of the private key; None: those of ``~/.ssh`` and of a running agent."""
    port: Annotated[int, Field(ge=1, le=65535), Expected("a port number")] = 22
    """Port of the SSH servers."""
    known_hosts: FilePath | None = None
    """File with the machines' host keys; None: ``~/.ssh/known_hosts``."""
    check_host_keys: Annotated[bool, Expected("true or false")] = True
    """Whether to verify the machines' host keys."""
    python: Text | None = None
    """Path of Python on the machines, with s2composite installed; None: the same path as here."""
    workers: Whole = 1
    """Worker processes on each machine."""
    threads: WholeOrNone = None
    """Threads of each worker; None: all cores of its machine."""
    memory: MemoryOfWorkerOrNone = None
    """Memory limit of each worker; None: its share of its machine's memory."""
    dashboard: Dashboard = ":8787"
    """Where the scheduler serves the Dask dashboard; another port is found if that one is taken."""
    timeout: Seconds = 60
    """Seconds for logging in, and for workers and scheduler to connect."""

    @property
    def awaited(self) -> int:
        """All workers: the machines are already running."""
        return len(self.hosts) * self.workers


def ssh_arguments(options: SshOptions) -> dict[str, Any]:
    """Return the arguments of Dask's SSHCluster."""
    connection = _given(
        port=options.port,
        connect_timeout=options.timeout,
        login_timeout=options.timeout,
        username=options.user,
        client_keys=None if options.key is None else [options.key],
        known_hosts=options.known_hosts,
    )
    if not options.check_host_keys:
        connection["known_hosts"] = None  # asyncssh then accepts any key
    return {
        "hosts": [options.scheduler or options.hosts[0], *options.hosts],
        "connect_options": connection,
        "worker_options": _given(
            n_workers=options.workers,
            death_timeout=options.timeout,
            env=_thread_counts(options.environment),  # on the remote command line
            nthreads=options.threads,
            memory_limit=options.memory,
        ),
        "scheduler_options": {"port": 0, "dashboard_address": options.dashboard},
        "remote_python": options.python,
    }


def _start_ssh(options: SshOptions) -> ClusterClient:
    return _client_of(SSHCluster(**ssh_arguments(options)), options.timeout)


# --- gateway ----------------------------------------------------------------------------------------------------------


class GatewayOptions(HostedOptions):
    """A cluster that a Dask Gateway starts, or already runs.

    Examples
    --------
    >>> options = GatewayOptions(address="https://gateway.example.org", maximum=20, options={"worker_cores": 2})
    >>> options.bounds
    (0, 20)
    """

    type: Annotated[Literal["gateway"], _TYPE] = "gateway"

    address: Annotated[str, Field(pattern=r"^https?://."), Expected("an address such as https://gateway.example.org")]
    """Address of the gateway."""
    proxy_address: Annotated[Text | None, Expected("an address such as gateway://gateway.example.org:8786")] = None
    """Address of the proxy to its schedulers; None: the gateway's own."""
    auth: Annotated[
        Literal["basic", "kerberos", "jupyterhub"] | None, Expected("one of basic, kerberos, jupyterhub")
    ] = None
    """How to log in; None: as in Dask's configuration, else ``basic`` without a password."""
    user: Text | None = None
    """For ``basic``: the user to log in as; None: the current user."""
    password: Variable | None = None
    """For ``basic``: name of the environment variable that holds the password."""
    cluster: Text | None = None
    """Name of a running cluster to join, which keeps running afterwards; None: start a new one."""
    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Options that the gateway offers, such as ``worker_cores``, ``worker_memory``, ``image``."""

    @property
    def joined(self) -> str | None:
        """The running cluster that is joined; None: a new one is started."""
        return self.cluster

    @model_validator(mode="after")
    def _cluster_or_options(self) -> Self:
        if self.cluster is not None and self.options:
            raise ValueError("'options' are for a new cluster, and 'cluster' joins a running one; leave one out")
        return self


def _start_gateway(options: GatewayOptions) -> ClusterClient:
    from dask_gateway import Gateway
    from dask_gateway.auth import BasicAuth

    auth: Any = options.auth
    if auth == "basic":
        if options.password is not None and options.password not in os.environ:
            raise JobError(
                f"password: the environment variable {options.password} is not set here; export it", key="password"
            )
        auth = BasicAuth(options.user, options.password and os.environ[options.password])
    gateway = Gateway(options.address, proxy_address=options.proxy_address, auth=auth)
    try:
        cluster = _gateway_cluster(gateway, options)
    finally:
        gateway.close()
        _do_not_close_again(gateway)

    def stop() -> None:
        cluster.close()
        _do_not_close_again(cluster.gateway)

    with ExitStack() as undo:
        undo.callback(stop)
        client = ClusterClient(cluster, security=cluster.security, set_as_default=True, timeout=options.timeout)
        if options.bounds is not None:
            cluster.adapt(minimum=options.bounds[0], maximum=options.bounds[1])
        elif options.workers is not None:
            cluster.scale(options.workers)
        undo.pop_all()
    client.close_cluster = stop
    return client


def _gateway_cluster(gateway: Any, options: GatewayOptions) -> Any:
    """Start a cluster with options that the gateway offers, or join the running one that is named."""
    if options.cluster is not None:
        running = [report.name for report in gateway.list_clusters()]
        if options.cluster not in running:
            raise ClusterError(
                f"the gateway at {options.address} runs no cluster {options.cluster!r} for this user; "
                f"it runs {', '.join(running) or 'none'}",
                address=options.address,
            )
        return gateway.connect(options.cluster, shutdown_on_close=False)
    offered = list(gateway.cluster_options())
    for name in options.options:
        if name not in offered:  # some gateways would ignore it and start their default cluster
            raise JobError(
                f"options: the gateway at {options.address} offers no {name!r}; "
                f"it offers {', '.join(offered) or 'none'}",
                key="options",
            )
    return gateway.new_cluster(shutdown_on_close=True, **options.options)


def _do_not_close_again(gateway: Any) -> None:
    """Keep a gateway's client from closing itself again in __del__, which fails because its loop has ended."""
    vars(gateway).pop("_loop_runner", None)


# --- kubernetes -------------------------------------------------------------------------------------------------------


class KubernetesOptions(HostedOptions):
    """A cluster in Kubernetes, where the Dask operator is installed.

    Examples
    --------
    >>> options = KubernetesOptions(image="registry.example.org/s2composite", workers=10, threads=2)
    >>> options.name, options.awaited
    ('s2composite', 1)
    """

    type: Annotated[Literal["kubernetes"], _TYPE] = "kubernetes"

    image: Annotated[Text, Expected("a container image with s2composite in it")]
    """Container image of workers and scheduler, with the same s2composite as here."""
    name: Annotated[
        str, Field(pattern=r"^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$"), Expected("a name of lower case letters, digits and -")
    ] = "s2composite"
    """Name of the DaskCluster resource, which must not exist yet."""
    namespace: Text | None = None
    """Namespace of the resource; None: the current one."""
    threads: Whole = 1
    """Threads of each worker, and cores requested for its pod."""
    memory: MemoryOfWorker = "4GB"
    """Memory of each worker: its pod's request and limit."""
    secret: Text | None = None
    """Name of a Secret whose keys become environment variables of the workers."""
    service_account: Text | None = None
    """Service account of the pods, such as one with read access to a bucket."""
    node_selector: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """Labels of the nodes that the pods may run on."""
    idle_timeout: Annotated[int, Field(ge=0), Expected("a whole number of seconds; 0: never")] = 1200
    """Seconds without work after which the operator deletes the cluster; 0: never."""


def kubernetes_manifest(options: KubernetesOptions) -> dict[str, Any]:
    """Return the DaskCluster resource, as ``kubectl apply`` takes it; it holds names of secrets, never values."""
    scheduler_port, dashboard_port, worker_dashboard_port = 8786, 8787, 8788
    memory, threads = str(parse_bytes(options.memory)), str(options.threads)
    worker_command = ["dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", threads]
    worker_command += ["--memory-limit", memory, "--dashboard", "--dashboard-address", str(worker_dashboard_port)]
    worker = {
        "name": "worker",
        "image": options.image,
        "args": worker_command,
        "env": [{"name": name, "value": value} for name, value in _thread_counts(options.environment).items()],
        **({} if options.secret is None else {"envFrom": [{"secretRef": {"name": options.secret}}]}),
        "resources": {"requests": {"cpu": threads, "memory": memory}, "limits": {"memory": memory}},
        "ports": [{"name": "http-dashboard", "containerPort": worker_dashboard_port, "protocol": "TCP"}],
    }
    ports = {"tcp-comm": scheduler_port, "http-dashboard": dashboard_port}
    health = {"httpGet": {"port": "http-dashboard", "path": "/health"}, "periodSeconds": 10}
    scheduler = {
        "name": "scheduler",
        "image": options.image,
        "args": ["dask", "scheduler", "--host", "0.0.0.0"],  # noqa: S104 - inside its pod
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()],
        "readinessProbe": {**health, "initialDelaySeconds": 0, "timeoutSeconds": 300},
        "livenessProbe": {**health, "initialDelaySeconds": 15},
    }
    service = {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": options.name, "dask.org/component": "scheduler"},
        "ports": [{"name": name, "protocol": "TCP", "port": port, "targetPort": name} for name, port in ports.items()],
    }
    pod = _given(serviceAccountName=options.service_account, nodeSelector=dict(options.node_selector) or None)
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": options.name},
        "spec": {
            "idleTimeout": int(options.idle_timeout),
            "worker": {"replicas": options.initial_workers, "spec": {"containers": [worker], **pod}},
            "scheduler": {"spec": {"containers": [scheduler], **pod}, "service": service},
        },
    }


def _start_kubernetes(options: KubernetesOptions) -> ClusterClient:
    from dask_kubernetes.operator._objects import DaskCluster
    from dask_kubernetes.operator.kubecluster.kubecluster import CreateMode, KubeCluster

    async def name_is_taken() -> bool:
        return bool(await (await DaskCluster(options.name, namespace=options.namespace)).exists())

    if _run_async(name_is_taken()):  # KubeCluster would see it, too, but delete that cluster when this process ends
        raise ClusterError(
            f"Kubernetes already has a DaskCluster {options.name!r}; give another 'name', or delete it first"
        )

    def delete_remains() -> None:
        # Close it now, not when this process ends; a cluster that did not start is listed nowhere else.
        for remains in list(KubeCluster._instances):  # noqa: SLF001
            if remains.name == options.name:
                with suppress(Exception):  # the original error is being raised
                    remains.close(timeout=10)
                remains.status = Status.closed

    with ExitStack() as undo:
        undo.callback(delete_remains)
        cluster = KubeCluster(
            custom_cluster_spec=kubernetes_manifest(options),
            namespace=options.namespace,
            create_mode=CreateMode.CREATE_ONLY,
            shutdown_on_close=True,
            resource_timeout=int(options.timeout),
            quiet=True,
        )
        client = ClusterClient(cluster, timeout=options.timeout)
        undo.pop_all()
    client.close_cluster = cluster.close
    return client


# --- coiled -----------------------------------------------------------------------------------------------------------


class CoiledOptions(HostedOptions):
    """A cluster that Coiled starts in the user's own cloud account.

    Examples
    --------
    >>> CoiledOptions(region="europe-west9", maximum=40, spot_policy="spot_with_fallback").bounds
    (0, 40)
    """

    type: Annotated[Literal["coiled"], _TYPE] = "coiled"

    name: Text | None = None
    """Name of the cluster; None: Coiled generates one."""
    workspace: Text | None = None
    """Workspace to use; None: the default one."""
    region: Text | None = None
    """Region of the machines, preferably that of the scenes; None: the workspace's."""
    vm_types: SomeTexts | None = None
    """Instance types of workers, the preferred one first; None: by `threads` and `memory`."""
    scheduler_vm_types: SomeTexts | None = None
    """Instance types of the scheduler; None: Coiled chooses."""
    threads: WholeOrNone = None
    """Cores of each worker's machine; None: Coiled chooses."""
    memory: Annotated[Memory | None, Expected("memory of one worker, such as '16GiB'")] = None
    """Memory of each worker's machine; None: Coiled chooses."""
    disk_size: Annotated[Count | None, Expected("a whole number of GiB")] = None
    """Disk of each worker in GiB; None: Coiled chooses."""
    spot_policy: Annotated[
        Literal["on-demand", "spot", "spot_with_fallback"], Expected("one of on-demand, spot, spot_with_fallback")
    ] = "on-demand"
    """Whether workers are spot instances, which cost less but may be interrupted."""
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
    def _one_environment(self) -> Self:
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


def coiled_arguments(options: CoiledOptions) -> dict[str, Any]:
    """Return the arguments of ``coiled.Cluster``, without those that Coiled chooses."""
    passed = {
        "name", "workspace", "region", "scheduler_vm_types", "spot_policy", "idle_timeout", "container", "software",
    }  # fmt: skip
    return _given(
        **options.model_dump(include=passed),
        n_workers=options.workers if options.bounds is None else list(options.bounds),
        worker_vm_types=options.vm_types and list(options.vm_types),
        worker_cpu=options.threads,
        worker_memory=options.memory,
        worker_disk_size=options.disk_size,
        package_sync_only=list(options.package_sync_only) or None,
        package_sync_ignore=list(options.package_sync_ignore) or None,
        environ=_thread_counts(options.environment),  # goes to Coiled's servers
        timeout=options.timeout,
        wait_for_workers=False,
        shutdown_on_close=True,
        show_widget=False,
    )


def _start_coiled(options: CoiledOptions) -> ClusterClient:
    import coiled

    return _client_of(coiled.Cluster(**coiled_arguments(options)), options.timeout)


# --- slurm ------------------------------------------------------------------------------------------------------------


class SlurmOptions(HostedOptions):
    """A cluster on an HPC system, where each worker is a Slurm job.

    Examples
    --------
    >>> slurm_arguments(SlurmOptions(queue="short", workers=10, threads=4, memory="16GB"))["cores"]
    4
    """

    type: Annotated[Literal["slurm"], _TYPE] = "slurm"

    queue: Text | None = None
    """Partition to submit to; None: the centre's default."""
    account: Text | None = None
    """Account to charge; None: the user's default."""
    walltime: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$"), Expected("a time such as '02:00:00'")] = (
        "01:00:00"
    )
    """Time limit of each worker's job."""
    threads: Whole = 1
    """Threads of each worker, and cores requested for its job."""
    memory: MemoryOfWorker = "4GB"
    """Memory of each worker's job."""
    directives: Texts = ()
    """Additional ``#SBATCH`` options, such as ``--constraint=cascadelake``."""
    prologue: Texts = ()
    """Shell commands to run before the worker, such as ``module load python``."""
    interface: Text | None = None
    """Network interface that all nodes share, such as ``ib0``."""
    python: Text | None = None
    """Path of Python on the nodes, with s2composite installed; None: the same path as here."""
    log_directory: FilePath | None = None
    """Directory of the jobs' output; None: Slurm's default."""
    local_directory: FilePath | None = None
    """Directory on a local disk of the node to which workers spill data that does not fit into memory."""
    dashboard: Dashboard = ":8787"
    """Where to serve the Dask dashboard; another port is found if that one is taken."""


def slurm_arguments(options: SlurmOptions) -> dict[str, Any]:
    """Return the arguments of dask-jobqueue's SLURMCluster."""
    passed = {"queue", "account", "walltime", "memory", "interface", "python", "log_directory", "local_directory"}
    # Other users may be able to read the job script: only thread counts go in it, not the rest of the environment.
    exports = [f"export {name}={shlex.quote(value)}" for name, value in _thread_counts(options.environment).items()]
    return _given(
        **options.model_dump(include=passed),
        cores=options.threads,
        processes=1,
        job_extra_directives=list(options.directives),
        job_script_prologue=[*exports, *options.prologue],
        death_timeout=options.timeout,
        scheduler_options={"dashboard_address": options.dashboard},
    )


def _start_slurm(options: SlurmOptions) -> ClusterClient:
    from dask_jobqueue import SLURMCluster

    if shutil.which("sbatch") is None:  # dask-jobqueue would only log that, and wait for workers
        raise ClusterError("sbatch was not found; start s2composite on a login node of a Slurm cluster")
    cluster = SLURMCluster(**slurm_arguments(options), n_workers=options.initial_workers)
    _wait_for_lost_workers(cluster, options)
    return _client_of(cluster, options.timeout)


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClusterBackend:
    """How to start clusters of one kind."""

    start: Callable[[Any], ClusterClient]  # starts or joins a cluster; closing the client stops what was started
    package: str | None = None  # required, from the extra with the backend's name; its errors become a ClusterError
    purpose: str = ""  # what needs the package, for the error if it is missing
    advice: str = ""  # what to check if a cluster does not start, for the error; {options} are its options
    adapts: bool = False  # whether `start` also sets the bounds of a cluster that scales with the work
    log: str | None = None  # logger whose last lines explain why a cluster does not start


# All backends, by the `type` of their options.
BACKENDS = {
    "local": ClusterBackend(_start_local),
    "address": ClusterBackend(_join_scheduler),
    "ssh": ClusterBackend(
        _start_ssh,
        "asyncssh",
        "clusters over SSH",
        "check that 'ssh' reaches each machine with this user and key, and that 'python' names one with s2composite",
        log="distributed.deploy.ssh",  # what remote processes write
    ),
    "gateway": ClusterBackend(
        _start_gateway,
        "dask_gateway",
        "clusters of a Dask Gateway",
        "check that a Dask Gateway answers at {options.address}, 'auth', and its limits",
        adapts=True,
    ),
    "kubernetes": ClusterBackend(
        _start_kubernetes,
        "dask_kubernetes",
        "clusters in Kubernetes",
        "check that kubectl reaches the cluster, that the Dask operator is installed there, and the pods' events",
    ),
    "coiled": ClusterBackend(
        _start_coiled,
        "coiled",
        "clusters of Coiled",
        "check 'coiled login', the workspace, the region and its quotas",
        adapts=True,
    ),
    "slurm": ClusterBackend(
        _start_slurm,
        "dask_jobqueue",
        "clusters of Slurm",
        "check that sbatch works here, and the queue, the account and the limits",
    ),
}


def start_cluster(options: BackendOptions) -> ClusterClient:
    """Start or join a cluster, with the errors of `connect`; closing the client stops a cluster that was started."""
    backend = BACKENDS[options.type]
    if backend.package is None:
        return backend.start(options)
    interrupt = signal.getsignal(signal.SIGINT)
    needed(backend.package, options.type, backend.purpose)
    if threading.current_thread() is threading.main_thread():
        # Importing dask-jobqueue makes Ctrl-C end the process silently, including a notebook's kernel.
        signal.signal(signal.SIGINT, interrupt)
    with nullcontext(()) if backend.log is None else _last_lines(backend.log) as last:
        try:
            return backend.start(options)
        except S2CompositeError:
            raise
        except Exception as error:  # each backend raises its own exceptions
            why = "; ".join([f"{type(error).__name__}: {error}".removesuffix(": "), *last])
            advice = backend.advice.format(options=options)
            raise ClusterError(f"the {options.type} cluster did not start ({why}); {advice}") from error


@contextmanager
def _last_lines(name: str) -> Iterator[Sequence[str]]:
    """Yield a logger's last lines, which are collected instead of logged."""
    last: deque[str] = deque(maxlen=8)

    def keep(record: logging.LogRecord) -> bool:
        last.append(record.getMessage())
        return False

    logger = logging.getLogger(name)
    level = logger.level
    logger.addFilter(keep)
    logger.setLevel(logging.INFO)
    try:
        yield last
    finally:
        logger.removeFilter(keep)
        logger.setLevel(level)
