"""Options of a cluster of any kind, however they are written: in Python, in YAML, on the command line."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from s2composite.running.clusters.address import SCHEMES, AddressOptions
from s2composite.running.clusters.coiled import CoiledOptions
from s2composite.running.clusters.gateway import GatewayOptions
from s2composite.running.clusters.kubernetes import KubernetesOptions
from s2composite.running.clusters.local import LocalOptions
from s2composite.running.clusters.ray import is_ray, read_ray_cluster
from s2composite.running.clusters.slurm import SlurmOptions
from s2composite.running.clusters.ssh import SshOptions
from s2composite.running.jobs.document import Document, Strict, read_document, validated

__all__ = ["ClusterOptions", "read_cluster"]

LOG = logging.getLogger(__name__)


def _is_file(config: Any) -> bool:
    return isinstance(config, os.PathLike) or (isinstance(config, str) and config.endswith((".yaml", ".yml")))


def _written_out(config: Any) -> Any:
    """Return the mapping that a short name of a cluster stands for; anything else unchanged."""
    if isinstance(config, str) and config.startswith(SCHEMES):
        return {"type": "address", "address": config}
    if isinstance(config, str) and config == "local":
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
        ``"local"``, the address of a scheduler, a mapping, the path of a YAML file that holds one, or options. The
        file may also be a cluster.yaml of Ray (as used by eo-grow); what cannot be mapped is logged.
    **settings
        Options that override those of `config`.

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
