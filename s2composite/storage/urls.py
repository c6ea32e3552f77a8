"""Which URLs and paths this process may read and write, and HTTP whose redirects and addresses are checked.

``S2COMPOSITE_ACCESS`` tells a process that works for strangers (a worker of the service) which places are open to them,
and all processes that it starts inherit the variable. A name may lead anywhere, such as to a metadata server, and
elsewhere a second later: the addresses of a name are checked when a connection is made, which goes to exactly those.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

from s2composite.errors import AccessError

__all__ = [
    "VARIABLE", "Access", "ReplyTimeout", "check_read", "check_touch", "check_write", "gdal_limits", "guarded_client",
    "is_link_local", "is_open_address", "limits", "web_client",
]  # fmt: skip

VARIABLE = "S2COMPOSITE_ACCESS"  # the environment variable that holds an `Access` as JSON

# characters on which parsers of URLs disagree: the host of one is the path of another
_STRANGE = re.compile(r"[\x00-\x20\x7f\\]")

# dots, slashes and percent signs that a server may decode after the path was compared
_HIDDEN = re.compile(r"%(2e|2f|5c|00|25)", re.IGNORECASE)

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Access:
    """The places that are open."""

    # directories, and URLs up to any /: /data, gs://bucket/prefix/, https://host/path/, gs://
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()  # the same for writing: directories, gs:// and s3://
    networks: tuple[str, ...] = ()  # networks that may be connected to although they are not public, 10.1.0.0/16

    def to_json(self) -> str:
        """Return it as the value of the environment variable."""
        return json.dumps(asdict(self))

    def may_read(self, href: str) -> None:
        """Raise an AccessError unless an absolute path or URL may be read."""
        _check_place(href, self.read, "read")

    def may_write(self, href: str) -> None:
        """Raise an AccessError unless an absolute path or URL may be written."""
        if urlsplit(href).scheme in _PORTS:
            raise AccessError(f"{_shown(href)}: nothing is written over HTTP here; use gs://, s3:// or a directory")
        _check_place(href, self.write, "written")


def limits() -> Access | None:
    """Return what this process is limited to; None: nothing limits it."""
    text = os.environ.get(VARIABLE)
    return None if text is None else _parsed(text)


@lru_cache(8)
def _parsed(text: str) -> Access:
    try:
        return Access(**{name: tuple(map(str, places)) for name, places in json.loads(text).items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise AccessError(
            f"{VARIABLE} is malformed ({error}); nothing may be read or written until that is corrected"
        ) from error


def check_read(href: str) -> None:
    """Raise an AccessError if this process must not read an absolute path or URL."""
    if (access := limits()) is not None:
        access.may_read(href)


def check_write(href: str) -> None:
    """Raise an AccessError if this process must not write an absolute path or URL."""
    if (access := limits()) is not None:
        access.may_write(href)


def check_touch(href: str) -> None:
    """Raise an AccessError if this process may neither read nor write an absolute path or URL."""
    if (access := limits()) is not None:
        _check_place(href, (*access.read, *access.write), "touched")


def gdal_limits(href: str) -> dict[str, str]:
    """Return the options with which GDAL may open a path or URL; in a limited process, GeoTIFF only.

    Other formats can name further files, which GDAL would open without asking.
    """
    if (access := limits()) is None:
        return {}
    access.may_read(href)
    if urlsplit(href).scheme in _PORTS:
        raise AccessError(f"{_shown(href)}: needs GDAL (its grid or coding), which is not let out to the web here")
    return {"driver": "GTiff"}


def _check_place(href: str, places: Sequence[str], what: str) -> None:
    scheme, is_url, rest = href.partition("://")
    path = rest.partition("?")[0]
    # what two readers might understand differently
    strange = {
        # GDAL reads such a path as a file in an archive or behind a URL.
        "paths that begin with /vsi are not files": not is_url and href.lower().startswith(("/vsi", "//vsi")),
        "a URL must not contain blanks, backslashes or control characters": is_url and _STRANGE.search(href),
        "a URL with a user in it is not accepted": "@" in path.partition("/")[0],
        "a URL with . or .. in its path is not accepted": {".", ".."} & set(path.split("/")[1:]),
        "a URL with encoded dots or slashes, or with #, is not accepted": (
            is_url and scheme in _PORTS and (_HIDDEN.search(path) or "#" in href)
        ),
    }
    for why, holds in strange.items():
        if holds:
            raise AccessError(f"{_shown(href)}: {why}; give the plain path or URL")
    if is_url:
        inside = any(_inside_url(href, place) for place in places)
    else:  # what counts is where links lead
        directories = [] if "\0" in href else [place for place in places if "://" not in place]
        inside = any(Path(href).resolve().is_relative_to(Path(place).expanduser().resolve()) for place in directories)
    if not inside:
        raise AccessError(f"{_shown(href)}: is not among the places that may be {what} here")


def _inside_url(href: str, place: str) -> bool:
    if "://" not in place:
        return False
    try:
        url, prefix_url = urlsplit(href), urlsplit(place)
        if url.scheme != prefix_url.scheme or (prefix_url.netloc and _host(url) != _host(prefix_url)):
            return False
    except ValueError:  # a port that is none
        return False
    path, prefix = unquote(url.path), unquote(prefix_url.path)
    return bool(url.netloc) and (path == prefix or path.startswith(prefix if prefix.endswith("/") else f"{prefix}/"))


def _host(url: SplitResult) -> tuple[str, int | None]:
    return (url.hostname or "").rstrip("."), url.port or _PORTS.get(url.scheme)


def _shown(href: str) -> str:
    """Return a name on one line, without secrets."""
    scheme, mark, rest = href.partition("://")
    if mark:
        authority, slash, path = rest.partition("?")[0].partition("/")
        rest = f"{authority.rpartition('@')[2]}{slash}{path}"
    return re.sub(r"[\x00-\x1f\x7f]", "?", f"{scheme}{mark}{rest}")[:300]


# Internal addresses of clouds that some versions of Python call public: Azure's platform, Oracle's metadata
_PLATFORMS = tuple(map(ipaddress.IPv4Network, ("168.63.129.16/32", "192.0.0.0/24")))

# addresses of metadata servers (Azure, Oracle, Alibaba, Amazon, Google) that are not link-local by their number
_METADATA = tuple(
    map(ipaddress.ip_address, ("168.63.129.16", "192.0.0.192", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"))
)

# IPv6 networks whose addresses are IPv4 ones in their last 32 bits
_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))

# host that serves the objects of a scheme, and the variables in which the operator names another one
_STORES = {
    "s3": ("amazonaws.com", ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")),
    "gs": ("storage.googleapis.com", ("STORAGE_EMULATOR_HOST",)),
}


_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_open_address(text: str, networks: tuple[str, ...] = ()) -> bool:
    """Return whether an address is a public one, or in one of the networks that are open.

    >>> is_open_address("142.250.74.123"), is_open_address("169.254.169.254"), is_open_address("::ffff:10.0.0.1")
    (True, False, False)
    >>> is_open_address("10.0.0.1", ("10.0.0.0/8",))
    True
    """
    if (address := _address(text)) is None:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inside(address)
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

    >>> is_link_local("169.254.169.254"), is_link_local("::ffff:169.254.0.1"), is_link_local("10.0.0.1")
    (True, True, False)
    """
    if (address := _address(text)) is None:
        return False
    inner = _inside(address) if isinstance(address, ipaddress.IPv6Address) else None
    return (inner is not None and is_link_local(str(inner))) or address.is_link_local or address in _METADATA


def _address(text: str) -> _Address | None:
    """Return an IP address, as URLs and resolvers write it; None for what is none."""
    try:
        return ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address holds."""
    last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    embedded = int(address) > 0xFFFF and any(address in network for network in _EMBEDDING)
    return address.ipv4_mapped or address.sixtofour or (last if embedded else None)


@dataclass(frozen=True, slots=True)
class ReplyTimeout:
    """How long a server may take for the headers of an answer, for requests that have it as ``trace_request_ctx``.

    The time begins when a request has been sent: before that it may have waited for a free connection.
    """

    limit: asyncio.Timeout  # what ends the wait
    seconds: float  # how long it may take

    def begin(self) -> None:
        """Begin the time, anew if it has begun."""
        self.limit.reschedule(asyncio.get_running_loop().time() + self.seconds)

    def pause(self) -> None:
        """Let no time pass."""
        self.limit.reschedule(None)


async def web_client(loop: asyncio.AbstractEventLoop | None = None) -> aiohttp.ClientSession:
    """Return an HTTP client for processes that nothing limits: fsspec's ``get_client``."""
    return _client(loop, guarded=False)


async def guarded_client(loop: asyncio.AbstractEventLoop | None = None) -> aiohttp.ClientSession:
    """Return an HTTP client that observes the limits of this process: fsspec's ``get_client``."""
    return _client(loop, guarded=True)


def _client(loop: asyncio.AbstractEventLoop | None, *, guarded: bool) -> aiohttp.ClientSession:
    steps = aiohttp.TraceConfig()
    steps.on_request_redirect.append(_check_redirect)
    steps.on_request_headers_sent.append(_wait_for_reply)
    return aiohttp.ClientSession(
        loop=loop,
        connector=aiohttp.TCPConnector(resolver=_Resolver(guarded=guarded)),
        trace_configs=[steps],
        # Proxies and ~/.netrc, as curl and GDAL use them; but proxies look up names themselves, and ~/.netrc is the
        # operator's.
        trust_env=not guarded,
        middlewares=(_check,) if guarded else (),
    )


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
    # On a store of which the operator has opened something, which objects may be read was decided by their gs:// or
    # s3:// name; the store itself sends them on to other hosts of its own.
    name, domains = _url_host(href)[0], [_STORES[scheme][0] for scheme in _opened_stores(access)]
    served = href.startswith("https://") and any(f".{name}".endswith(f".{domain}") for domain in domains)
    if not served and _url_host(href) not in _own_endpoints(access):
        access.may_read(href)
        # whether the operator has opened this host by name, not just all hosts of a scheme
        named = any(_url_host(place) == _url_host(href) for place in access.read if "://" in place)
        if _address(host) is not None and not (named or is_open_address(host, access.networks)):
            raise _private(host)
    return await handler(request)


class _Resolver(AbstractResolver):
    """DNS without link-local addresses: nobody can tell whether whoever named a host meant one.

    Where it is `guarded`, all addresses of a name must be open to this process.
    """

    def __init__(self, *, guarded: bool) -> None:
        self._plain, self._guarded = DefaultResolver(), guarded

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name that may be connected to."""
        access = (limits() or Access()) if self._guarded else None
        answers = await self._plain.resolve(host, port, family)
        if access is not None:
            is_own = (host, port) in _own_endpoints(access)
            if not is_own and not all(is_open_address(answer["host"], access.networks) for answer in answers):
                raise _private(host)
            return answers
        others = [answer for answer in answers if not is_link_local(answer["host"])]
        if answers and not others:
            raise AccessError(f"{host}: leads to a link-local address, which is not followed; write the address itself")
        return others

    async def close(self) -> None:
        """Stop."""
        await self._plain.close()


def _private(host: str) -> AccessError:
    return AccessError(f"{host}: leads to an address that is not public; the operator can open its network")


def _url_host(href: str) -> tuple[str, int | None]:
    url = urlsplit(href)
    return url.hostname or "", url.port or _PORTS.get(url.scheme)


def _opened_stores(access: Access) -> set[str]:
    return {scheme for scheme in _STORES for place in (*access.read, *access.write) if place.startswith(f"{scheme}://")}


def _own_endpoints(access: Access) -> set[tuple[str, int | None]]:
    """Return host and port of the stores that the operator runs."""
    named = [os.environ.get(name, "") for scheme in _opened_stores(access) for name in _STORES[scheme][1]]
    return {_url_host(name if "://" in name else f"http://{name}") for name in named if name}
