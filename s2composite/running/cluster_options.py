"""What a cluster is asked to be: the options of each kind, in Python, YAML and on the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from dask.utils import parse_bytes
from pydantic import AfterValidator, BeforeValidator, Field

from s2composite.running.document import Document, Expected, Strict, read_document, validated

__all__ = ["AddressOptions", "ClusterOptions", "Count", "FilePath", "LocalOptions", "Positive", "Text", "read_cluster"]

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


class LocalOptions(Strict):
    """Worker processes on this machine."""

    type: Literal["local"] = "local"
    """Names the kind of cluster."""

    workers: Annotated[Count | None, WHOLE] = None
    """Processes; None: one for each core, or as many as `threads` leaves cores for."""

    threads: Annotated[Count | None, WHOLE] = None
    """Threads of each worker; None: the cores divided by `workers`."""

    memory: Annotated[Memory | None, Expected("memory of one worker, such as '4GB'")] = None
    """Memory limit of each worker, ``"4GB"``; None: nine tenths of the machine's memory divided by `workers`."""

    dashboard: Annotated[str, Field(pattern=r":\d+$"), Expected("an address such as ':8787'")] = ":8787"
    """Where to serve the Dask dashboard, ``"host:port"``; a free port is found if that one is taken."""


def _address(value: str) -> str:
    if not value.startswith(SCHEMES):
        raise ValueError(f"expected the address of a Dask scheduler, such as tcp://10.0.0.5:8786, got {value!r}")
    return value


class AddressOptions(Strict):
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
    Annotated[LocalOptions | AddressOptions, Field(discriminator="type")],
    BeforeValidator(_cluster, json_schema_input_type=str | LocalOptions | AddressOptions),
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
