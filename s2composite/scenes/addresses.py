"""Addresses: HTTP for processes with limited access, with every hop and every address checked.

A name may lead anywhere, such as to a metadata server, and elsewhere a second later. So the addresses of a name are
checked when a connection is made, and it is made to exactly those; each redirect is a URL to be checked anew.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from s2composite.errors import AccessError
from s2composite.scenes.access import Access, limits

__all__ = ["guarded_client", "is_open_address"]

_PLATFORMS = tuple(map(ipaddress.IPv4Network, ("168.63.129.16/32", "192.0.0.0/24")))
"""Internal addresses of clouds that some versions of Python call public: Azure's platform, Oracle's metadata."""

_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))
"""IPv6 networks whose addresses are IPv4 ones in their last 32 bits."""

_STORES = {
    "s3": ("amazonaws.com", ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")),
    "gs": ("storage.googleapis.com", ("STORAGE_EMULATOR_HOST",)),
}
"""Host that serves the objects of a scheme, and the variables in which the operator names another one."""


def is_open_address(text: str, networks: tuple[str, ...] = ()) -> bool:
    """Return whether an address is a public one, or in one of the networks that are open.

    Examples
    --------
    >>> is_open_address("142.250.74.123"), is_open_address("169.254.169.254"), is_open_address("::ffff:10.0.0.1")
    (True, False, False)
    >>> is_open_address("10.0.0.1", ("10.0.0.0/8",))
    True
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or _embedded(address)
        if inner is not None and not is_open_address(str(inner), networks):
            return False
        if address.ipv4_mapped is not None:
            return True
        if address.teredo is not None:
            return False
    if any(address in ipaddress.ip_network(network, strict=False) for network in networks):
        return True
    own = any(address in network for network in _PLATFORMS)
    return address.is_global and not address.is_multicast and not own


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(address in network for network in _EMBEDDING) and int(address) > 0xFFFF:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


async def guarded_client(**options: Any) -> aiohttp.ClientSession:
    """Return an HTTP client that observes the limits of this process: fsspec's ``get_client``."""
    connector = aiohttp.TCPConnector(resolver=_Resolver())
    # Proxies would look up names themselves, and ~/.netrc is the operator's.
    return aiohttp.ClientSession(**{**options, "trust_env": False}, connector=connector, middlewares=(_check,))


Handler = Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]


async def _check(request: aiohttp.ClientRequest, handler: Handler) -> aiohttp.ClientResponse:
    """Check a request; aiohttp calls this for each one, also after redirects."""
    access = limits() or Access()
    href, host = str(request.url), request.url.raw_host or ""
    if not _is_store(access, href):
        access.may_read(href)
        if _is_literal(host) and not (_is_named(access, href) or is_open_address(host, access.networks)):
            raise _private(host)
    return await handler(request)


class _Resolver(AbstractResolver):
    """DNS whose answers are checked before they are used."""

    def __init__(self) -> None:
        self._plain = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name, all of which must be open."""
        access = limits() or Access()
        found = await self._plain.resolve(host, port, family)
        if (host, port) in _own_endpoints(access):
            return found
        for answer in found:
            if not is_open_address(answer["host"], access.networks):
                raise _private(host)
        return found

    async def close(self) -> None:
        """Stop."""
        await self._plain.close()


def _private(host: str) -> AccessError:
    return AccessError(f"{host}: leads to an address that is not public; the operator can open its network")


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def _is_named(access: Access, href: str) -> bool:
    """Return whether the operator has opened this host by name, not just all hosts of a scheme."""
    return any(_host(place) == _host(href) for place in access.read if "://" in place)


def _is_store(access: Access, href: str) -> bool:
    """Return whether a URL is on an object store of which the operator has opened something.

    Which of its objects may be read was decided by their gs:// or s3:// name; the store itself sends them on to other
    hosts of its own.
    """
    if _host(href) in _own_endpoints(access):
        return True
    host = _host(href)[0]
    domains = [_STORES[scheme][0] for scheme in _opened_stores(access)]
    return href.startswith("https://") and any(host == domain or host.endswith(f".{domain}") for domain in domains)


def _host(href: str) -> tuple[str, int | None]:
    url = urlsplit(href)
    return url.hostname or "", url.port or {"http": 80, "https": 443}.get(url.scheme)


def _opened_stores(access: Access) -> set[str]:
    return {scheme for scheme in _STORES for place in (*access.read, *access.write) if place.startswith(f"{scheme}://")}


def _own_endpoints(access: Access) -> set[tuple[str, int | None]]:
    """Return host and port of the stores that the operator runs."""
    named = [os.environ.get(name, "") for scheme in _opened_stores(access) for name in _STORES[scheme][1]]
    return {_host(name if "://" in name else f"http://{name}") for name in named if name}
