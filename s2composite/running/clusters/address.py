"""A Dask scheduler that is already running."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

from distributed import comm
from distributed.security import Security
from pydantic import AfterValidator

from s2composite.errors import ClusterError
from s2composite.running.clusters.client import ClusterClient
from s2composite.running.clusters.kind import KindOptions
from s2composite.running.jobs.document import Expected
from s2composite.running.jobs.fields import FilePath, Positive

__all__ = ["SCHEMES", "AddressOptions", "address"]

SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://", "inproc://")
"""How the address of a Dask scheduler begins."""


def _address(value: str) -> str:
    if not value.startswith(SCHEMES):
        raise ValueError(f"expected the address of a Dask scheduler, such as tcp://10.0.0.5:8786, got {value!r}")
    return value


class AddressOptions(KindOptions):
    """A Dask scheduler that is already running."""

    type: Literal["address"] = "address"
    """Names the kind of cluster."""

    address: Annotated[str, AfterValidator(_address), Expected("an address such as tcp://10.0.0.5:8786")]
    """Address of the scheduler: ``"tcp://10.0.0.5:8786"``, ``"tls://..."``."""

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
        """Address of the scheduler."""
        return self.address


def address(options: AddressOptions) -> ClusterClient:
    """Join a scheduler that is already running."""
    files = {"tls_ca_file": options.ca, "tls_client_cert": options.cert, "tls_client_key": options.key}
    given = {key: value for key, value in files.items() if value is not None}
    try:
        security = Security(**given)
        with ThreadPoolExecutor(1) as thread:  # the thread of a notebook is already running an event loop
            thread.submit(asyncio.run, _shake_hands(options, security)).result()
        return ClusterClient(options.address, timeout=options.timeout, security=security)
    except (OSError, TypeError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {options.address} ({error or 'timed out'}); check that it is running, the "
            "port, and for tls:// the certificates ca, cert and key",
            address=options.address,
        ) from error


async def _shake_hands(options: AddressOptions, security: Security) -> None:
    """Raise an OSError if no scheduler answers in time.

    Dask's own timeout ends when the connection is made: it would wait forever for something that accepts connections
    but never answers (a dead tunnel, another service).
    """
    arguments = security.get_connection_args("client")
    greeting = comm.connect(options.address, timeout=options.timeout, **arguments)
    (await asyncio.wait_for(greeting, options.timeout)).abort()
