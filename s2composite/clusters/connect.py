"""connect(): start or join a Dask cluster, with options from Python, YAML or the command line."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Annotated, Any

from distributed import Client, WorkerPlugin
from pydantic import BeforeValidator, Field
from rich.console import Console

from s2composite.clusters.backends import (
    BACKENDS,
    SCHEMES,
    AddressOptions,
    CoiledOptions,
    ElasticOptions,
    GatewayOptions,
    KubernetesOptions,
    LocalOptions,
    SlurmOptions,
    SshOptions,
    start_cluster,
)
from s2composite.clusters.ray import is_ray, read_ray_cluster
from s2composite.config import Document, Strict, read_document, validated
from s2composite.errors import ClusterError, JobError, plural
from s2composite.logs import forward_logs
from s2composite.metrics import WorkerMeters, running_workers
from s2composite.storage.limits import VARIABLE, limits_text

__all__ = ["ClusterOptions", "ShippedEnvironment", "connect", "read_cluster", "show_meters"]

LOG = logging.getLogger(__name__)


def _is_file(config: Any) -> bool:
    return isinstance(config, os.PathLike) or (isinstance(config, str) and config.endswith((".yaml", ".yml")))


def _expanded(config: Any) -> Any:
    """Return the mapping for a cluster's short name; anything else unchanged."""
    if isinstance(config, str) and config.startswith(SCHEMES):
        return {"type": "address", "address": config}
    if isinstance(config, str) and config == "local":
        return {"type": "local"}
    return config.model_dump() if isinstance(config, Strict) else config


def _with_type(config: Any) -> Any:
    """Return options in a form from which pydantic can choose a class: a mapping with ``type``, or checked options."""
    config = read_cluster(config) if _is_file(config) else _expanded(config)
    if not isinstance(config, Mapping | Strict):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors only
            "expected 'local', a scheduler's address (tcp://...), a .yaml file, "
            f"or a mapping such as {{type: local, workers: 2}}; got {config!r}"
        )
    if isinstance(config, Mapping) and "type" not in config:
        return {"type": "address" if "address" in config else "local", **config}
    return config


_AnyOptions = (
    LocalOptions | AddressOptions | SshOptions | GatewayOptions | KubernetesOptions | CoiledOptions | SlurmOptions
)

ClusterOptions = Annotated[
    Annotated[_AnyOptions, Field(discriminator="type")],
    BeforeValidator(_with_type, json_schema_input_type=str | _AnyOptions),
]


class _HasCluster(Strict):
    cluster: ClusterOptions


def read_cluster(config: Any, **settings: Any) -> ClusterOptions:
    """Return the checked options of a cluster.

    Parameters
    ----------
    config
        ``"local"``, the address of a scheduler, a mapping, the path of a YAML file with one, or options. The file may
        also be Ray's cluster.yaml (as used by eo-grow); keys that cannot be mapped are logged.
    **settings
        Options that override those of `config`.

    Raises
    ------
    JobError
        The message names the file, the line, the key and the expected value.
    """
    document = Document("connect()", {}, {})
    if not _is_file(config):
        config = _expanded(config)
    elif is_ray(config):
        ray = read_ray_cluster(config)
        for key in ray.unmapped:
            LOG.warning("%s, line %s: %s is not mapped: %s", os.fspath(config), key.line, key.key, key.reason)
        document, config = ray.document, ray.document.values
    else:
        document = read_document(config, "cluster")
        config = document.values
    values = {"cluster": {**config, **settings} if isinstance(config, Mapping) else config}
    places = {("cluster", *keys): place for keys, place in document.places.items()}
    return validated(_HasCluster, Document(document.name, values, places)).cluster


class ShippedEnvironment(WorkerPlugin):  # type: ignore[misc] # distributed has no types
    """Sets environment variables in every worker, including workers that start later.

    They are sent over Dask's own connections, so that no command line, pod, job script or graph contains secrets.
    """

    name = "s2composite-environment"

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = dict(values)

    def __repr__(self) -> str:
        return f"ShippedEnvironment({', '.join(self.values)})"

    def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask passes it
        """Set the variables; Dask calls this in each worker."""
        os.environ.update(self.values)


def connect(
    config: Any = "local",
    *,
    workers: int | None = None,
    threads: int | None = None,
    memory: str | None = None,
    dashboard: str | None = None,
    limits: Any = None,
    announce: bool = True,
) -> Client:
    """Start or join a Dask cluster and make it the default for computations.

    Parameters
    ----------
    config
        ``"local"``: worker processes on this machine; ``"tcp://host:port"`` or ``"tls://..."``: a running scheduler; a
        mapping with a ``type``, ``{"type": "local", "workers": 2}``; or the path of a YAML file with one. Types are
        ``local``, ``address``, ``ssh``, ``gateway``, ``kubernetes``, ``coiled`` and ``slurm``, each with a file in
        ``examples/clusters``. Ray's cluster.yaml is mapped to ``ssh`` or ``coiled``.
    workers, threads, memory, dashboard
        Override those of `config`, for types that have them. Local: number of processes (None: one per core), threads
        of each (None: the cores divided by `workers`), memory limit of each (None: nine tenths of the machine's memory
        divided by `workers`), address of the dashboard (another port if ``":8787"`` is taken).
    limits
        What hosts allow, kept by all workers and this process together; see `open_cube`, whose ``limits=`` take the
        place of these. They become the value of ``S2COMPOSITE_LIMITS`` here and in the workers.
    announce
        Print one line with the workers and the dashboard's link, to the terminal or notebook.

    Returns
    -------
    distributed.Client
        A context manager. Closing it stops a cluster that was started. Workers of a scheduler that was already running
        continue, and keep the environment variables that they were given.

    Raises
    ------
    JobError
        An option is unknown or invalid; the message lists the valid ones.
    ParameterError
        A limit is unknown or invalid.
    ClusterError
        The scheduler does not answer, or workers do not start or do not accept their environment.
    MissingDependencyError
        The kind of cluster needs an optional package; the message names the extra that installs it.

    Examples
    --------
    >>> with connect("local", workers=1, memory="1GB", announce=False) as client:
    ...     client.submit(sum, [1, 2, 3]).result()
    6
    """
    settings = {"workers": workers, "threads": threads, "memory": memory, "dashboard": dashboard}
    options = read_cluster(config, **{key: value for key, value in settings.items() if value is not None})
    for name in options.credentials:  # before starting anything that costs money
        if name not in os.environ:
            raise JobError(
                f"credentials: the environment variable {name} is not set here, so workers cannot get it; "
                "export it, or leave it out",
                key="credentials",
                variable=name,
            )
    environment = {**options.environment, **{name: os.environ[name] for name in options.credentials}}
    if limits is not None:
        environment[VARIABLE] = os.environ[VARIABLE] = limits_text(limits)
    logging.getLogger("tornado.application").addFilter(_is_not_about_cancelled_call)
    client = start_cluster(options)
    with ExitStack() as undo:
        undo.callback(client.close)
        if options.awaited:
            try:
                client.wait_for_workers(options.awaited, timeout=options.timeout)
            except TimeoutError as error:
                started = len(running_workers(client))
                raise ClusterError(
                    f"after {options.timeout:g} s only {started} of {options.awaited} workers have started; see their "
                    "logs, or raise 'timeout' if machines take longer",
                    workers=started,
                ) from error
        if environment:
            _register(client, ShippedEnvironment(environment), "its environment")
            client.shipped = tuple(environment)
        if options.joined is None:  # on a shared scheduler they would remain
            show_meters(client)
            forward_logs(client)
        if isinstance(options, ElasticOptions) and options.bounds is not None and not BACKENDS[options.type].adapts:
            minimum, maximum = options.bounds
            client.cluster.adapt(minimum=minimum, maximum=maximum)
        undo.pop_all()
    LOG.info("connected: %s", _summary(client))
    if announce:
        Console(stderr=True, highlight=False, soft_wrap=True).print(_summary(client))
    return client


def _is_not_about_cancelled_call(record: logging.LogRecord) -> bool:
    """Filter out the message that Dask could not cancel a scheduler call that had not started."""
    return "sync.<locals>.cancel" not in record.getMessage()


def _register(client: Client, plugin: WorkerPlugin, what: str) -> None:
    """Register a plugin with all current and future workers."""
    try:
        client.register_plugin(plugin)
    except Exception as error:  # errors while importing the plugin in a worker are raised here
        with suppress(Exception):  # otherwise later workers could not start; workers that lack it raise again
            client.unregister_worker_plugin(plugin.name)
        raise ClusterError(
            f"a worker did not accept {what} ({type(error).__name__}: {error}); install the same s2composite in its "
            "Python as here"
        ) from error


def show_meters(client: Client) -> None:
    """Show the reads of each worker on the dashboard; without s2composite on the workers, only warn."""
    try:
        _register(client, WorkerMeters(), "what meters it")
    except ClusterError as error:
        why = error.__cause__
        LOG.warning("the dashboard does not show what workers read: %s: %s", type(why).__name__, why)


def _summary(client: Client) -> str:
    """Return ``"Dask: 2 workers x 1 thread, 4.2 GB each; dashboard: http://..."``."""
    workers = running_workers(client).values()
    shapes = {(worker["nthreads"], worker["memory_limit"]) for worker in workers}
    text = f"Dask: {plural(len(workers), 'worker')}"
    if len(shapes) == 1:
        threads, memory = shapes.pop()
        text += f" x {plural(threads, 'thread')}" + (f", {memory / 1e9:.1f} GB each" if memory else "")
    return f"{text}; dashboard: {client.dashboard_link}" if client.dashboard_link else text
