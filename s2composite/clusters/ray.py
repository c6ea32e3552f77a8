"""Convert Ray's cluster.yaml, as used by eo-grow, to our own options.

Provider ``local`` (existing machines) becomes ``ssh``, ``aws`` becomes ``coiled``. Keys without a counterpart are
listed with the reason: https://docs.ray.io/en/latest/cluster/vms/references/ray-cluster-configuration.html
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2composite.config import Document, Keys, Place, parse_text
from s2composite.errors import JobError

__all__ = ["RayCluster", "Unmapped", "is_ray", "read_ray_cluster"]

# Keys that are mapped in part; their unmapped keys are listed one by one.
_PARTLY_MAPPED = ("provider", "auth", "docker", "available_node_types")

_COMMANDS = "no commands are run on the machines; install s2composite there, or take an image that has it"
_FILES = "no files are copied to the machines; put them on storage that all of them can reach"
_REASONS = {  # why a key has no counterpart, by the first word of its path
    "max_workers": "all machines named are used",
    "min_workers": "all machines named are used",
    "cluster_name": "a cluster over SSH has no name",
    "idle_timeout_minutes": "the workers stop when the client is closed",
    "upscaling_speed": "Dask scales with the waiting work",
    "docker": "an image for Ray has no s2composite; name one that has it as 'container', or install it in 'python'",
    "head_start_ray_commands": "Dask starts its own processes",
    "worker_start_ray_commands": "Dask starts its own processes",
    **dict.fromkeys(
        ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"), _COMMANDS
    ),
    **dict.fromkeys(
        ("file_mounts", "file_mounts_sync_continuously", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
        _FILES,
    ),
}


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A key without a counterpart, ``"auth.ssh_proxy_command"``, its line from 1, and what to do instead."""

    key: str
    line: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Ray's cluster.yaml as a document of our own options, and the keys not mapped, in the order of the file."""

    document: Document
    unmapped: tuple[Unmapped, ...]


def is_ray(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is Ray's cluster.yaml, which has a ``provider``; False if it cannot be read."""
    try:
        return re.search(r"^provider\s*:", Path(path).read_text("utf-8"), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False


def read_ray_cluster(path: str | os.PathLike[str]) -> RayCluster:
    r"""Return Ray's cluster.yaml as our own options, and the keys that could not be mapped.

    Parameters
    ----------
    path
        Path of the file; ``${NAME}`` in it is meant for shells on the machines and not replaced.

    Raises
    ------
    JobError
        Not YAML, a provider other than ``local`` and ``aws``, or a placeholder that was not filled in.

    Examples
    --------
    >>> text = "provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}\nsetup_commands: [ls]"
    >>> Path("ray.yaml").write_text(text) > 0
    True
    >>> ray = read_ray_cluster("ray.yaml")
    >>> ray.document.values["hosts"], [left.key for left in ray.unmapped]
    (['10.0.0.2'], ['setup_commands'])
    """
    ray = parse_text(Path(path).read_text("utf-8").replace("${", "$${"), os.fspath(path))
    provider = _get(ray, "provider", "type")
    mapped: set[Keys] = {("provider", "type")}
    values: dict[str, Any] = {}
    places: dict[Keys, Place] = {}
    options: Iterable[tuple[str, Keys, Any]]  # our name, the keys in Ray's file, the value
    if provider == "local":
        values["type"], head = "ssh", _get(ray, "provider", "head_ip")
        options = [
            ("scheduler", ("provider", "head_ip"), head),
            ("hosts", ("provider", "worker_ips"), _get(ray, "provider", "worker_ips") or (head and [head])),
            ("user", ("auth", "ssh_user"), _get(ray, "auth", "ssh_user")),
            ("key", ("auth", "ssh_private_key"), _get(ray, "auth", "ssh_private_key")),
        ]
    elif provider == "aws":
        values["type"], options = "coiled", _coiled_options(ray)
        mapped.add(("head_node_type",))
    else:
        place = ray.place(("provider", "type"))
        raise JobError(
            f"{place.where}: provider.type: expected one of local, aws, got {provider!r}",
            key="provider.type",
            line=place.line,
        )
    for name, keys, value in options:
        if value is None:
            continue
        place = ray.place(keys)
        if any(str(text).startswith("<") for text in (value if isinstance(value, list) else [value])):
            key = ".".join(map(str, keys))
            raise JobError(
                f"{place.where}: {key} still has the template's placeholder; fill it in", key=key, line=place.line
            )
        values[name], places[name,] = value, place
        mapped.add(keys)
    return RayCluster(Document(ray.name, values, places), tuple(_unmapped(ray, ray.values, (), mapped)))


def _get(ray: Document, *keys: str | int) -> Any:
    level: Any = ray.values
    for key in keys:
        level = level.get(key) if isinstance(level, Mapping) else None
    return level


def _coiled_options(ray: Document) -> Iterator[tuple[str, Keys, Any]]:
    """Yield options of ``coiled``: name, keys in Ray's file, value; the last value of a name is used."""
    yield "name", ("cluster_name",), _get(ray, "cluster_name")
    yield "region", ("provider", "region"), _get(ray, "provider", "region")
    minutes = _get(ray, "idle_timeout_minutes")
    yield "idle_timeout", ("idle_timeout_minutes",), minutes and f"{minutes} minutes"
    machines, head = _get(ray, "available_node_types") or {}, _get(ray, "head_node_type")
    if head in machines:
        keys: Keys = ("available_node_types", head, "node_config", "InstanceType")
        yield "scheduler_vm_types", keys, _get(ray, *keys) and [_get(ray, *keys)]
    workers = next((name for name in machines if name != head), None)
    if workers is None:
        yield "maximum", ("max_workers",), _get(ray, "max_workers")
        return
    worker = ("available_node_types", workers)
    keys = (*worker, "node_config", "InstanceType")
    yield "vm_types", keys, _get(ray, *keys) and [_get(ray, *keys)]
    yield "minimum", (*worker, "min_workers"), _get(ray, *worker, "min_workers")
    bounds = [keys for keys in (("max_workers",), (*worker, "max_workers")) if _get(ray, *keys) is not None]
    for keys in sorted(bounds, key=lambda keys: _get(ray, *keys), reverse=True):  # the lower one wins
        yield "maximum", keys, _get(ray, *keys)
    keys = (*worker, "node_config", "InstanceMarketOptions", "MarketType")
    yield "spot_policy", keys, "spot" if _get(ray, *keys) == "spot" else None
    keys = (*worker, "node_config", "BlockDeviceMappings")
    disks = _get(ray, *keys)
    if isinstance(disks, list) and len(disks) == 1:
        yield "disk_size", keys, disks[0].get("Ebs", {}).get("VolumeSize")


def _unmapped(ray: Document, level: Mapping[str, Any], above: Keys, mapped: Container[Keys]) -> Iterator[Unmapped]:
    """Yield the keys of Ray's file that are not mapped, unless they are empty or off."""
    for key, value in level.items():
        keys = (*above, key)
        if keys in mapped or not value:
            continue
        if isinstance(value, Mapping) and keys[0] in _PARTLY_MAPPED:
            yield from _unmapped(ray, value, keys, mapped)
        else:
            reason = _REASONS.get(str(keys[0]), "there is no counterpart")
            yield Unmapped(".".join(map(str, keys)), ray.place(keys).line, reason)
