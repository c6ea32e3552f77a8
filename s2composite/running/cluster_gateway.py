"""Clusters that a Dask Gateway starts on behalf of its users."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from typing import Any

from s2composite.errors import ClusterError, JobError, MissingDependencyError
from s2composite.running.cluster_client import ClusterClient, started
from s2composite.running.cluster_options import GatewayOptions

# dask-gateway is an extra, and the library is there without it (PLC0415).
# ruff: noqa: PLC0415

__all__ = ["gateway"]


def gateway(options: GatewayOptions) -> ClusterClient:
    """Start a cluster through a gateway, or join one that it runs; closing the client stops what was started here."""
    if importlib.util.find_spec("dask_gateway") is None:
        raise MissingDependencyError("clusters of a Dask Gateway need dask-gateway; pip install 's2composite[gateway]'")
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
    """Keep a gateway's client from closing itself again in its __del__, which fails because its loop has ended."""
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
