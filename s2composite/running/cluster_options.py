"""What a cluster is asked to be: the options of each kind, in Python, YAML and on the command line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from dask.utils import parse_bytes
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from s2composite.running.cluster_ray import is_ray, read_ray_cluster
from s2composite.running.document import Document, Expected, Strict, read_document, validated

__all__ = [
    "AddressOptions",
    "ClusterOptions",
    "CoiledOptions",
    "Count",
    "ElasticOptions",
    "FilePath",
    "GatewayOptions",
    "HostedOptions",
    "KindOptions",
    "KubernetesOptions",
    "LocalOptions",
    "Positive",
    "SlurmOptions",
    "SshOptions",
    "Text",
    "read_cluster",
]

LOG = logging.getLogger(__name__)

SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://", "inproc://")
"""How the address of a Dask scheduler begins."""


def _home(path: str) -> str:
    """Return a path with ``~`` written out, a URL as it is."""
    return path if "://" in path else os.path.expanduser(path)  # noqa: PTH111 - Path drops a trailing slash


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _some(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; give it a value or leave the key out")
    return value


def _memory(text: str) -> str:
    try:
        size = parse_bytes(text)
    except ValueError:
        raise ValueError(f"expected memory with its unit, such as '4GB', got {text!r}") from None
    if size < 100_000_000:
        raise ValueError(
            f"expected memory with its unit, such as '4GB', got {text!r}, which is {size} bytes: too little"
        )
    return text


Text = Annotated[str, BeforeValidator(_text), AfterValidator(_some)]
FilePath = Annotated[Text, AfterValidator(_home)]
Memory = Annotated[str, AfterValidator(_memory)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
WHOLE = Expected("a whole number from 1")

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""The name of an environment variable."""

SECRET = re.compile(r"SECRET|TOKEN|PASSW|PASSPHRASE|CONNECTION_STRING|ACCESS_KEY$|ACCOUNT_KEY|API_KEY|(^|_)SAS($|_)")
"""Names of environment variables whose values are secrets."""


def _environment_text(value: Any) -> Any:
    """Return a number as the text that a process's environment holds; YAML's ``yes`` was taken for a truth value."""
    if isinstance(value, bool):
        raise ValueError("is read as true or false; put the value in quotes, such as 'YES'")  # noqa: TRY004 - pydantic
    return str(value) if isinstance(value, int | float) else value


def _no_secrets(environment: dict[str, str]) -> dict[str, str]:
    """Refuse names whose values are secrets: options are printed, logged and kept beside results."""
    for name in environment:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if SECRET.search(name) and not name.endswith("_FILE"):
            raise ValueError(
                f"the value of {name} is a secret; write its name under 'credentials' instead, and set the variable "
                "where s2composite is started"
            )
    return environment


def _variable(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"expected the name of an environment variable, not its value; got {len(name)} characters")
    return name


EnvironmentText = Annotated[str, BeforeValidator(_environment_text)]
Variable = Annotated[str, AfterValidator(_variable)]
AsList = PlainSerializer(list)
Texts = Annotated[tuple[Text, ...], Field(strict=False), AsList]
SomeTexts = Annotated[tuple[Text, ...], Field(strict=False, min_length=1), AsList]
Environment = Annotated[
    dict[str, EnvironmentText], AfterValidator(_no_secrets), Expected("environment variables, {GDAL_CACHEMAX: 64}")
]
Credentials = Annotated[
    tuple[Variable, ...],
    Field(strict=False),
    Expected("a list of names of environment variables, such as [AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY]"),
    AsList,
]


Dashboard = Annotated[str, Field(pattern=r":\d+$"), Expected("an address such as ':8787'")]


class KindOptions(Strict):
    """What all kinds of clusters have: an environment for their workers."""

    type: str
    """Names the kind of cluster."""

    environment: Environment = {}  # noqa: RUF012 - pydantic copies it
    """Environment variables of every worker, those that come later too: GDAL's settings, thread counts."""

    credentials: Credentials = ()
    """Names of environment variables whose values here workers get too, such as ``AWS_SECRET_ACCESS_KEY``."""

    timeout: Annotated[Positive, Expected("a number of seconds")] = 60
    """Seconds to wait for the scheduler, and for the workers that are there from the beginning."""

    @property
    def awaited(self) -> int:
        """Workers that `connect` waits for."""
        return 0

    @property
    def joined(self) -> str | None:
        """The running cluster that is joined; None: a new one is started."""
        return None


class ElasticOptions(KindOptions):
    """A cluster whose number of workers is asked for: a fixed one, or between two bounds as there is work."""

    workers: Annotated[Count | None, WHOLE] = None
    """Number of workers."""

    minimum: Annotated[int | None, Field(ge=0), Expected("a whole number from 0")] = None
    """Workers that stay when there is nothing to do; with `maximum`, instead of `workers`."""

    maximum: Annotated[Count | None, WHOLE] = None
    """Workers at most when there is much to do; with `minimum` (0 if left out), instead of `workers`."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.maximum is None and self.minimum is not None:
            raise ValueError(f"minimum is {self.minimum}, but there is no maximum; give both")
        if self.maximum is not None and self.workers is not None:
            raise ValueError("give workers, or minimum and maximum, not all of them")
        if self.maximum is not None and (self.minimum or 0) > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) is above maximum ({self.maximum})")
        return self

    @property
    def bounds(self) -> tuple[int, int] | None:
        """Fewest and most workers of a cluster that follows the work; None: a fixed number."""
        return None if self.maximum is None else (self.minimum or 0, self.maximum)

    @property
    def first(self) -> int:
        """Workers to begin with."""
        return (self.minimum or 0) if self.maximum is not None else self.workers or 0


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


def _address(value: str) -> str:
    if not value.startswith(SCHEMES):
        raise ValueError(f"expected the address of a Dask scheduler, such as tcp://10.0.0.5:8786, got {value!r}")
    return value


class AddressOptions(KindOptions):
    """A Dask scheduler that runs already."""

    type: Literal["address"] = "address"
    """Names the kind of cluster."""

    address: Annotated[str, AfterValidator(_address), Expected("an address such as tcp://10.0.0.5:8786")]
    """Of the scheduler: ``"tcp://10.0.0.5:8786"``, ``"tls://..."``."""

    timeout: Annotated[Positive, Expected("a number of seconds")] = 10
    """Seconds to wait for the scheduler to answer."""

    ca: FilePath | None = None
    """For ``tls://``: PEM file of the certificate authority."""

    cert: FilePath | None = None
    """For ``tls://``: PEM file of this client's certificate."""

    key: FilePath | None = None
    """For ``tls://``: PEM file of this client's private key."""

    @property
    def joined(self) -> str | None:
        """The scheduler."""
        return self.address


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


class HostedOptions(ElasticOptions):
    """A cluster on machines of others: how many workers there are is said, since they cost."""

    timeout: Annotated[Positive, Expected("a number of seconds")] = 600
    """Seconds to wait for the scheduler, and for the first worker."""

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.workers is None and self.maximum is None and self.joined is None:
            raise ValueError("needs a number of workers: 'workers', or 'minimum' and 'maximum'")
        return self

    @property
    def awaited(self) -> int:
        """One worker is enough to begin with; none where there may be none without work."""
        return min(1, self.first)


class GatewayOptions(HostedOptions):
    """A cluster that a Dask Gateway starts, or one that it runs."""

    type: Literal["gateway"] = "gateway"
    """Names the kind of cluster."""

    address: Annotated[str, Field(pattern=r"^https?://."), Expected("an address such as https://gateway.example.org")]
    """Of the gateway."""

    proxy_address: Annotated[Text | None, Expected("an address such as gateway://gateway.example.org:8786")] = None
    """Of the proxy to its schedulers; None: the gateway's own."""

    auth: Annotated[
        Literal["basic", "kerberos", "jupyterhub"] | None, Expected("one of basic, kerberos, jupyterhub")
    ] = None
    """How to log in; None: as Dask's configuration says, else ``basic`` without a password."""

    user: Text | None = None
    """For ``basic``: the name to log in with; None: the one in use here."""

    password: Variable | None = None
    """For ``basic``: name of the environment variable that holds the password."""

    cluster: Text | None = None
    """Name of a running cluster to join, which is left alone at the end; None: a new one."""

    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """What the gateway offers to choose, such as ``worker_cores``, ``worker_memory``, ``image``."""

    @property
    def joined(self) -> str | None:
        """The running cluster that is joined; None: a new one is started."""
        return self.cluster

    @model_validator(mode="after")
    def _chosen_once(self) -> Self:
        if self.cluster is not None and self.options:
            raise ValueError("'options' are those of a new cluster; leave them out, or 'cluster'")
        return self


class KubernetesOptions(HostedOptions):
    """A cluster in Kubernetes, where the Dask operator is installed."""

    type: Literal["kubernetes"] = "kubernetes"
    """Names the kind of cluster."""

    image: Annotated[Text, Expected("a container image with s2composite in it")]
    """Container image of workers and scheduler, with the same s2composite as here."""

    name: Annotated[
        str, Field(pattern=r"^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$"), Expected("a name of lower case letters, digits and -")
    ] = "s2composite"
    """Name of the DaskCluster resource; there must be none of that name yet."""

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


class CoiledOptions(HostedOptions):
    """A cluster that Coiled starts in one's own cloud account."""

    type: Literal["coiled"] = "coiled"
    """Names the kind of cluster."""

    name: Text | None = None
    """Name of the cluster; None: Coiled makes one up."""

    workspace: Text | None = None
    """Workspace to use; None: the default one."""

    region: Text | None = None
    """Region of the machines, best the one where the scenes are; None: the workspace's."""

    vm_types: SomeTexts | None = None
    """Instance types of workers, the best one first; None: by `threads` and `memory`."""

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
    """Whether workers are spot instances, which cost less and may be taken away."""

    idle_timeout: Annotated[Text, Expected("a duration such as '20 minutes'")] = "20 minutes"
    """Time without work after which the cluster is shut down."""

    container: Text | None = None
    """Container image to run, instead of the packages here."""

    software: Text | None = None
    """Software environment at Coiled to run, instead of the packages here."""

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
            raise ValueError("vm_types says what machines have; leave threads and memory out, or vm_types")
        return self


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


def _is_file(config: Any) -> bool:
    return isinstance(config, os.PathLike) or (isinstance(config, str) and config.endswith((".yaml", ".yml")))


def _written_out(config: Any) -> Any:
    """Return the mapping that a short way to name a cluster stands for; all else as it is."""
    if isinstance(config, str) and config.startswith(SCHEMES):
        return {"type": "address", "address": config}
    if config == "local":
        return {"type": "local"}
    return config.model_dump() if isinstance(config, Strict) else config


def _cluster(config: Any) -> Any:
    config = read_cluster(config) if _is_file(config) else _written_out(config)
    if not isinstance(config, Mapping | Strict):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors only
            "expected 'local', a scheduler's address (tcp://...), a .yaml file, "
            f"or a mapping such as {{type: local, workers: 2}}; got {config!r}"
        )
    if isinstance(config, Mapping) and "type" not in config:
        return {"type": "address" if "address" in config else "local", **config}
    return config


AnyOptions = (
    LocalOptions | AddressOptions | SshOptions | GatewayOptions | KubernetesOptions | CoiledOptions | SlurmOptions
)

ClusterOptions = Annotated[
    Annotated[AnyOptions, Field(discriminator="type")],
    BeforeValidator(_cluster, json_schema_input_type=str | AnyOptions),
]


def _document(path: str | os.PathLike[str]) -> Document:
    if not is_ray(path):
        return read_document(path, "cluster")
    ray = read_ray_cluster(path)
    for left in ray.unmapped:
        LOG.warning("%s, line %s: %s is not mapped: %s", os.fspath(path), left.line, left.key, left.reason)
    return ray.document


class _HasCluster(Strict):
    cluster: ClusterOptions


def read_cluster(config: Any, **settings: Any) -> ClusterOptions:
    """Return the checked options of a cluster.

    Parameters
    ----------
    config
        ``"local"``, a scheduler's address, a mapping, the path of a YAML file that holds a mapping, or options. A
        file may also be a cluster.yaml of Ray (as eo-grow uses it), of which what cannot be mapped is logged.
    **settings
        Options that win over those of `config`.

    Raises
    ------
    JobError
        Names the file, the line, the key and what is expected there.
    """
    document = _document(config) if _is_file(config) else Document("connect()", {}, {})
    config = document.values if _is_file(config) else _written_out(config)
    values = {"cluster": {**config, **settings} if isinstance(config, Mapping) else config}
    places = {("cluster", *keys): place for keys, place in document.places.items()}
    return validated(_HasCluster, Document(document.name, values, places)).cluster
