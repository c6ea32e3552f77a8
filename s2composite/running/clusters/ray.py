"""Ray's cluster.yaml, as eo-grow uses it, read as our own options.

Provider ``local`` (existing machines) becomes ``ssh``, ``aws`` becomes ``coiled``. What has no counterpart is listed
with the reason, and nothing is guessed: https://docs.ray.io/en/latest/cluster/vms/references/ray-cluster-configuration.html
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2composite.errors import JobError
from s2composite.running.jobs.document import Document, parse_text
from s2composite.running.jobs.yaml_text import Place

__all__ = ["RayCluster", "Unmapped", "is_ray", "read_ray_cluster"]

Keys = tuple[str | int, ...]

PROVIDER = re.compile(r"^provider\s*:", re.MULTILINE)
"""What files for Ray have, and ours have not."""

OPENED = ("provider", "auth", "docker", "available_node_types")
"""Keys whose content is mapped in part; the rest of it is listed key by key."""

COMMANDS = "no commands are run on the machines; install s2composite there, or take an image that has it"
FILES = "no files are copied to the machines; put them on storage that all of them reach"
REASONS = {
    "max_workers": "all machines named are used",
    "min_workers": "all machines named are used",
    "cluster_name": "a cluster over SSH has no name",
    "idle_timeout_minutes": "the workers stop when the client is closed",
    "upscaling_speed": "Dask asks for workers by the work that waits",
    "docker": "an image for Ray has no s2composite; name one that has it as 'container', or install it in 'python'",
    "initialization_commands": COMMANDS,
    "setup_commands": COMMANDS,
    "head_setup_commands": COMMANDS,
    "worker_setup_commands": COMMANDS,
    "head_start_ray_commands": "Dask starts its own processes",
    "worker_start_ray_commands": "Dask starts its own processes",
    "file_mounts": FILES,
    "file_mounts_sync_continuously": FILES,
    "cluster_synced_files": FILES,
    "rsync_exclude": FILES,
    "rsync_filter": FILES,
}
"""Why a key has no counterpart, by the first word of its path."""

ELSE = "there is no counterpart"


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A key that has no counterpart."""

    key: str
    """Its path, ``"auth.ssh_proxy_command"``."""

    line: int | None
    """Line of the file, from 1."""

    reason: str
    """Why, and what to do instead."""


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Ray's cluster.yaml as our own options."""

    document: Document
    """The options, each with its position in the file."""

    unmapped: tuple[Unmapped, ...]
    """What could not be mapped, in the order of the file."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A file for Ray, and what was taken from it."""

    document: Document
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, Place] = field(default_factory=dict)
    used: set[Keys] = field(default_factory=set)

    def get(self, *keys: str) -> Any:
        level: Any = self.document.values
        for key in keys:
            level = level.get(key) if isinstance(level, Mapping) else None
        return level

    def take(self, name: str, value: Any, *keys: str) -> None:
        """Give option `name` the value found at `keys`; None is left out."""
        if value is None:
            return
        place = self.document.place(keys)
        if any(str(text).startswith("<") for text in (value if isinstance(value, list) else [value])):
            path = ".".join(keys)
            raise JobError(
                f"{place.where}: {path} still has the template's placeholder; fill it in", key=path, line=place.line
            )
        self.values[name] = value
        self.places[name,] = place
        self.used.add(keys)


def is_ray(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a cluster.yaml of Ray; False for one that cannot be read."""
    try:
        return PROVIDER.search(Path(path).read_text("utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return False


def read_ray_cluster(path: str | os.PathLike[str]) -> RayCluster:
    """Return Ray's cluster.yaml as our own options, and what could not be mapped.

    Parameters
    ----------
    path
        Path of the file; ``${NAME}`` in it is for shells on the machines and left alone.

    Raises
    ------
    JobError
        Not YAML, a provider other than ``local`` and ``aws``, or a placeholder that was not filled in.
    """
    text = Path(path).read_text("utf-8").replace("${", "$${")
    source = _Source(parse_text(text, os.fspath(path)))
    provider = source.get("provider", "type")
    if provider not in PROVIDERS:
        place = source.document.place(("provider", "type"))
        raise JobError(
            f"{place.where}: provider.type: expected one of {', '.join(PROVIDERS)}, got {provider!r}",
            key="provider.type",
            line=place.line,
        )
    source.used.add(("provider", "type"))
    PROVIDERS[provider](source)
    unmapped = tuple(_unmapped(source, source.document.values, ()))
    return RayCluster(Document(source.document.name, source.values, source.places), unmapped)


def _ssh(source: _Source) -> None:
    source.values["type"] = "ssh"
    head = source.get("provider", "head_ip")
    source.take("scheduler", head, "provider", "head_ip")
    source.take("hosts", source.get("provider", "worker_ips") or (head and [head]), "provider", "worker_ips")
    source.take("user", source.get("auth", "ssh_user"), "auth", "ssh_user")
    source.take("key", source.get("auth", "ssh_private_key"), "auth", "ssh_private_key")


def _coiled(source: _Source) -> None:
    source.values["type"] = "coiled"
    source.take("name", source.get("cluster_name"), "cluster_name")
    source.take("region", source.get("provider", "region"), "provider", "region")
    minutes = source.get("idle_timeout_minutes")
    source.take("idle_timeout", minutes and f"{minutes} minutes", "idle_timeout_minutes")
    types = source.get("available_node_types") or {}
    head = source.get("head_node_type")
    source.used.add(("head_node_type",))
    workers = [name for name in types if name != head]
    if head in types:
        _machine(source, head, "scheduler_vm_types")
    if workers:
        _workers(source, workers[0])
    else:
        source.take("maximum", source.get("max_workers"), "max_workers")


def _workers(source: _Source, name: str) -> None:
    """Take the type of the workers' machines, their number, and how they are paid for."""
    where = ("available_node_types", name)
    _machine(source, name, "vm_types")
    source.take("minimum", source.get(*where, "min_workers"), *where, "min_workers")
    bounds = [keys for keys in (("max_workers",), (*where, "max_workers")) if source.get(*keys) is not None]
    for keys in sorted(bounds, key=lambda keys: source.get(*keys), reverse=True):  # the lower one wins
        source.take("maximum", source.get(*keys), *keys)
    market = (*where, "node_config", "InstanceMarketOptions", "MarketType")
    if source.get(*market) == "spot":
        source.take("spot_policy", "spot", *market)
    disks = (*where, "node_config", "BlockDeviceMappings")
    listed = source.get(*disks)
    if isinstance(listed, list) and len(listed) == 1 and "VolumeSize" in listed[0].get("Ebs", {}):
        source.take("disk_size", listed[0]["Ebs"]["VolumeSize"], *disks)


def _machine(source: _Source, name: str, option: str) -> None:
    keys = ("available_node_types", name, "node_config", "InstanceType")
    kind = source.get(*keys)
    source.take(option, kind and [kind], *keys)


PROVIDERS = {"local": _ssh, "aws": _coiled}


def _unmapped(source: _Source, values: Mapping[str, Any], above: Keys) -> Iterator[Unmapped]:
    """Yield what was not taken, unless it is empty or off."""
    for key, value in values.items():
        keys = (*above, key)
        if keys in source.used or not value:
            continue
        if isinstance(value, Mapping) and keys[0] in OPENED:
            yield from _unmapped(source, value, keys)
        else:
            line = source.document.place(keys).line
            yield Unmapped(".".join(map(str, keys)), line, REASONS.get(str(keys[0]), ELSE))
