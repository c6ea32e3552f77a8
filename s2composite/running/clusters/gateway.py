"""Clusters that a Dask Gateway starts on behalf of its users."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from s2composite.errors import ClusterError, JobError
from s2composite.optional import needed
from s2composite.running.clusters.client import ClusterClient, started
from s2composite.running.clusters.kind import HostedOptions
from s2composite.running.jobs.document import Expected
from s2composite.running.jobs.fields import Text, Variable

# dask-gateway is an extra, and the library is there without it (PLC0415).
# ruff: noqa: PLC0415

__all__ = ["GatewayOptions", "gateway"]


class GatewayOptions(HostedOptions):
    """A cluster that a Dask Gateway starts, or already runs."""

    type: Literal["gateway"] = "gateway"
    """Names the kind of cluster."""

    address: Annotated[str, Field(pattern=r"^https?://."), Expected("an address such as https://gateway.example.org")]
    """Address of the gateway."""

    proxy_address: Annotated[Text | None, Expected("an address such as gateway://gateway.example.org:8786")] = None
    """Address of the proxy to its schedulers; None: the gateway's own."""

    auth: Annotated[
        Literal["basic", "kerberos", "jupyterhub"] | None, Expected("one of basic, kerberos, jupyterhub")
    ] = None
    """How to log in; None: as Dask's configuration says, or else ``basic`` without a password."""

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
    def _chosen_once(self) -> Self:
        if self.cluster is not None and self.options:
            raise ValueError("'options' are for a new cluster, and 'cluster' joins a running one; leave one out")
        return self


def gateway(options: GatewayOptions) -> ClusterClient:
    """Start a cluster through a gateway, or join a running one; closing the client stops what was started here."""
    needed("dask_gateway", "gateway", "clusters of a Dask Gateway")
    from dask_gateway import Gateway

    cure = f"check that a Dask Gateway answers at {options.address}, 'auth', and its limits"
    with started("gateway cluster", cure):
        door = Gateway(options.address, proxy_address=options.proxy_address, auth=_auth(options))
        try:
            cluster = _cluster(door, options)
        finally:
            door.close()
            _put_away(door)
        try:
            client = ClusterClient(cluster, security=cluster.security, set_as_default=True, timeout=options.timeout)
            _resize(cluster, options)
        except BaseException:
            _stop(cluster)
            raise
    client.closes = partial(_stop, cluster)
    return client


def _stop(cluster: Any) -> None:
    cluster.close()
    _put_away(cluster.gateway)


def _put_away(door: Any) -> None:
    """Keep a gateway's client from closing itself again in __del__, which fails since its loop has ended."""
    vars(door).pop("_loop_runner", None)


def _cluster(door: Any, options: GatewayOptions) -> Any:
    if options.cluster is None:
        _check_names(door, options)
        return door.new_cluster(shutdown_on_close=True, **options.options)
    there = [report.name for report in door.list_clusters()]
    if options.cluster not in there:
        raise ClusterError(
            f"the gateway at {options.address} runs no cluster {options.cluster!r} for this user; "
            f"it runs {', '.join(there) or 'none'}",
            address=options.address,
        )
    return door.connect(options.cluster, shutdown_on_close=False)


def _check_names(door: Any, options: GatewayOptions) -> None:
    """Refuse options that the gateway does not offer; it would start its default cluster for some of them."""
    offered = list(door.cluster_options())
    for name in options.options:
        if name not in offered:
            raise JobError(
                f"options: the gateway at {options.address} offers no {name!r}; "
                f"it offers {', '.join(offered) or 'none'}",
                key="options",
            )


def _resize(cluster: Any, options: GatewayOptions) -> None:
    if options.bounds is not None:
        cluster.adapt(minimum=options.bounds[0], maximum=options.bounds[1])
    elif options.workers is not None:
        cluster.scale(options.workers)


def _auth(options: GatewayOptions) -> Any:
    if options.auth != "basic":
        return options.auth
    from dask_gateway.auth import BasicAuth

    if options.password is not None and options.password not in os.environ:
        raise JobError(
            f"password: the environment variable {options.password} is not set here; export it", key="password"
        )
    return BasicAuth(options.user, None if options.password is None else os.environ[options.password])
