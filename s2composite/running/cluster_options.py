"""What a cluster is asked to be: the options of each kind, in Python, YAML and on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from dask.utils import parse_bytes
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from s2composite.running.document import Document, Expected, Strict, read_document, validated

__all__ = [
    "AddressOptions",
    "ClusterOptions",
    "Count",
    "ElasticOptions",
    "FilePath",
    "GatewayOptions",
    "HostedOptions",
    "KindOptions",
    "LocalOptions",
    "Positive",
    "SshOptions",
    "Text",
    "read_cluster",
]

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

    @property
    def joined(self) -> str | None:
        """The running cluster that is joined; None: a new one is started."""
        return None

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


ClusterOptions = Annotated[
    Annotated[LocalOptions | AddressOptions | SshOptions | GatewayOptions, Field(discriminator="type")],
    BeforeValidator(_cluster, json_schema_input_type=str | LocalOptions | AddressOptions | SshOptions | GatewayOptions),
]


class _HasCluster(Strict):
    cluster: ClusterOptions


def read_cluster(config: Any, **settings: Any) -> ClusterOptions:
    """Return the checked options of a cluster.

    Parameters
    ----------
    config
        ``"local"``, a scheduler's address, a mapping, the path of a YAML file that holds a mapping, or options.
    **settings
        Options that win over those of `config`.

    Raises
    ------
    JobError
        Names the file, the line, the key and what is expected there.
    """
    document = read_document(config, "cluster") if _is_file(config) else Document("connect()", {}, {})
    config = document.values if _is_file(config) else _written_out(config)
    values = {"cluster": {**config, **settings} if isinstance(config, Mapping) else config}
    places = {("cluster", *keys): place for keys, place in document.places.items()}
    return validated(_HasCluster, Document(document.name, values, places)).cluster
