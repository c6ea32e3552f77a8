"""Settings of the service: allowed locations, limits and state. Everything is denied unless allowed."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from s2composite.clusters.backends import LocalOptions
from s2composite.clusters.connect import ClusterOptions
from s2composite.config import (
    Count,
    Document,
    Expected,
    FilePath,
    Positive,
    Strict,
    Text,
    read_document,
    validated,
    with_setting,
)
from s2composite.errors import ParameterError
from s2composite.storage.files import absolute
from s2composite.storage.urls import Access

__all__ = ["TOKEN", "PushOptions", "ServiceLimits", "Settings", "load_settings", "take_token"]

# Environment variable with the token that callers must send.
TOKEN = "S2COMPOSITE_TOKEN"  # noqa: S105 - the name of the variable

_SHORTEST = 16  # minimum characters of a token: shorter ones can be guessed


def _place(text: str) -> str:
    scheme, mark, rest = text.partition("://")
    if not mark:
        return absolute(text)
    if scheme not in ("gs", "s3", "http", "https"):
        raise ValueError(f"expected a directory, gs://, s3://, http:// or https://, got {text!r}")
    if "@" in rest.partition("/")[0] or "?" in rest:
        raise ValueError("a location has no user and no query")
    return text


Place = Annotated[Text, AfterValidator(_place)]
Places = Annotated[tuple[Place, ...], Field(strict=False), Expected("a list of directories and URL prefixes")]
Networks = Annotated[
    tuple[Annotated[Text, AfterValidator(lambda text: str(ipaddress.ip_network(text, strict=False)))], ...],
    Field(strict=False),
    Expected("a list of networks such as 10.1.0.0/16"),
]


class ServiceLimits(Strict):
    """Limits for one caller and for all together."""

    body: Count = 2 << 20
    """Bytes of a request."""
    datasets: Count = 1500
    """Scenes of a window."""
    pixels: Count = 2048 * 2048
    """Pixels of a window."""
    observations: Count = 4 << 30
    """Total bytes of pixels of a window's scenes."""
    waiting: Count = 256
    """Windows that wait for a worker; further ones get 429."""
    seconds: Positive = 540.0
    """Seconds for a window; less than the deadline of the queue that sends it (600 for Pub/Sub)."""
    arrival: Positive = 30.0
    """Seconds for a request's header to arrive, and again for its body."""
    connections: Count = 1024
    """Open connections; further ones get 503."""
    jobs: Count = 100
    """Jobs that wait; further ones get 429."""
    products: Count = 1000
    """Products of a job: cells of its grid times units of its span."""
    running: Count = 1
    """Jobs that run concurrently."""
    job_seconds: Positive = 86400.0
    """Seconds for a job."""
    log: Count = 16 << 20
    """Bytes to keep of a job's log."""


class PushOptions(Strict):
    """Authentication of pushes: Pub/Sub signs them with the identity of a service account."""

    audience: Text
    """Audience of the token, as set in the subscription."""
    email: Text
    """The service account."""
    certificates: Text = "https://www.googleapis.com/oauth2/v1/certs"
    """URL of the signer's public keys."""


class Settings(Strict):
    """All settings of a service except its token, which comes from the environment.

    >>> Settings(read=("gs://bucket/scenes/",), write=("gs://bucket/results/",)).access.read
    ('gs://bucket/scenes/',)
    """

    host: Text = "127.0.0.1"
    """Address to listen on; any address except loopback needs a token."""
    port: Annotated[int, Field(ge=0, le=65535), Expected("a port, 0 to 65535")] = 8080
    """Port; 0: a free one."""
    names: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Host names accepted in requests in addition to loopback; with a token, any name is."""
    read: Places = ()
    """Where scenes may be read: directories, and URL prefixes up to any ``/``."""
    write: Places = ()
    """Where windows may be written: directories, ``gs://``, ``s3://``."""
    networks: Networks = ()
    """Private networks that may be read from."""
    storage: Place | None = None
    """Where to write the results of jobs, each in a directory named by its id; None: jobs are not accepted."""
    state: FilePath = "s2composite-service"
    """Directory of the database, unless `database` is set, and of the logs of jobs."""
    database: Text | None = None
    """SQLAlchemy URL; None: SQLite in `state`. Only one service per database may run jobs."""
    workers: Count = 2
    """Processes that compute windows, one window at a time each."""
    warm: bool = True
    """Whether workers compile their kernels before the first window instead of during it."""
    cluster: ClusterOptions = LocalOptions(workers=1, dashboard="127.0.0.1:0")
    """The cluster for jobs."""
    push: PushOptions | None = None
    """Accept Pub/Sub's own tokens at ``/median``."""
    limits: ServiceLimits = ServiceLimits()
    """Limits for callers."""

    @model_validator(mode="after")
    def _opened(self) -> Settings:
        if not self.read or not (self.write or self.storage):
            raise ValueError("nothing is allowed: set 'read', and 'write' or a 'storage' for jobs")
        return self

    @property
    def access(self) -> Access:
        """Where windows may read and write."""
        return Access(self.read, self.write, self.networks)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can call the service."""
        return self.host in ("localhost", "127.0.0.1", "::1")

    @property
    def database_url(self) -> str:
        """Where to store the state of jobs."""
        return self.database or f"sqlite:///{Path(self.state).absolute() / 'service.db'}"


def load_settings(
    source: str | os.PathLike[str] | Mapping[str, Any] | None, settings: Sequence[str] = (), **more: Any
) -> Settings:
    """Return settings from a YAML file or a mapping, overridden by ``key=value`` pairs and values."""
    document = Document("service", {}, {}) if source is None else read_document(source, "service")
    for setting in settings:
        document = with_setting(document, setting)
    values = document.values | {key: value for key, value in more.items() if value is not None}
    return validated(Settings, Document(document.name, values, document.places))


def take_token(settings: Settings) -> str | None:
    """Remove the token from the environment, so that no child process inherits it, and return it; None: not set."""
    token = os.environ.pop(TOKEN, "").strip() or None
    if token is None and not settings.loopback:
        raise ParameterError(
            f"host={settings.host}: others could call, and no token protects the service: set {TOKEN}, or listen on "
            "127.0.0.1"
        )
    if token is not None and len(token) < _SHORTEST:
        raise ParameterError(f"{TOKEN} has fewer than {_SHORTEST} characters; use 'openssl rand -hex 32'")
    return token
