"""Addresses: HTTP whose redirects and addresses are checked: some of them everywhere, all in limited processes.

A name may lead anywhere, such as to a metadata server, and elsewhere a second later. So the addresses of a name are
checked when a connection is made, and it is made to exactly those; each redirect is a URL to be checked anew.

A link-local address is where clouds hand out credentials: no server can send anybody there, limited or not.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

from s2composite.errors import AccessError
from s2composite.scenes.access import Access, limits

__all__ = ["ReplyTimeout", "guarded_client", "is_link_local", "is_open_address", "web_client"]

_PLATFORMS = tuple(map(ipaddress.IPv4Network, ("168.63.129.16/32", "192.0.0.0/24")))
"""Internal addresses of clouds that some versions of Python call public: Azure's platform, Oracle's metadata."""

_METADATA = tuple(
    map(ipaddress.ip_address, ("168.63.129.16", "192.0.0.192", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"))
)
"""Addresses of metadata servers (Azure, Oracle, Alibaba, Amazon, Google) that are not link-local by their number."""

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


def is_link_local(text: str) -> bool:
    """Return whether an address is link-local, or a metadata server's elsewhere; False for what is no address.

    Examples
    --------
    >>> is_link_local("169.254.169.254"), is_link_local("::ffff:169.254.0.1"), is_link_local("10.0.0.1")
    (True, True, False)
    """
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or _embedded(address)
        if inner is not None and is_link_local(str(inner)):
            return True
    return address.is_link_local or address in _METADATA


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if any(address in network for network in _EMBEDDING) and int(address) > 0xFFFF:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


@dataclass(frozen=True, slots=True)
class ReplyTimeout:
    """How long a server may take for the headers of an answer, for requests that have it as ``trace_request_ctx``.

    The time begins when a request has been sent: before that it may have waited for a free connection.
    """

    limit: asyncio.Timeout
    """What ends the wait."""

    seconds: float
    """How long it may take."""

    def begin(self) -> None:
        """Begin the time, anew if it has begun."""
        self.limit.reschedule(asyncio.get_running_loop().time() + self.seconds)

    def pause(self) -> None:
        """Let no time pass."""
        self.limit.reschedule(None)


async def web_client(**options: Any) -> aiohttp.ClientSession:
    """Return an HTTP client for processes that nothing limits: fsspec's ``get_client``."""
    return _client(_Resolver(), **options)


async def guarded_client(**options: Any) -> aiohttp.ClientSession:
    """Return an HTTP client that observes the limits of this process: fsspec's ``get_client``."""
    # Proxies would look up names themselves, and ~/.netrc is the operator's.
    return _client(_GuardedResolver(), **{**options, "trust_env": False}, middlewares=(_check,))


def _client(resolver: AbstractResolver, **options: Any) -> aiohttp.ClientSession:
    steps = aiohttp.TraceConfig()
    steps.on_request_redirect.append(_check_redirect)
    steps.on_request_headers_sent.append(_wait_for_reply)
    connector = aiohttp.TCPConnector(resolver=resolver)
    return aiohttp.ClientSession(**options, connector=connector, trace_configs=[steps])


async def _check_redirect(_: aiohttp.ClientSession, context: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
    if isinstance(context.trace_request_ctx, ReplyTimeout):
        context.trace_request_ctx.pause()
    headers = redirect.response.headers
    try:
        host = redirect.url.join(URL(headers.get("Location") or headers.get("URI") or "")).host or ""
    except ValueError:  # no URL, which aiohttp says itself
        return
    if is_link_local(host):
        redirect.response.close()
        raise AccessError(f"the server sends on to {host}, a link-local address; that is never followed")


async def _wait_for_reply(_: aiohttp.ClientSession, context: Any, __: aiohttp.TraceRequestHeadersSentParams) -> None:
    if isinstance(context.trace_request_ctx, ReplyTimeout):
        context.trace_request_ctx.begin()


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
    """DNS without link-local addresses: nobody can tell whether whoever named a host meant one."""

    def __init__(self) -> None:
        self._plain = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name that may be connected to."""
        found = await self._plain.resolve(host, port, family)
        others = [answer for answer in found if not is_link_local(answer["host"])]
        if found and not others:
            raise AccessError(f"{host}: leads to a link-local address, which is not followed; write the address itself")
        return others

    async def close(self) -> None:
        """Stop."""
        await self._plain.close()


class _GuardedResolver(_Resolver):
    """DNS whose answers must be open to this process."""

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
