"""Access: what this process may read and write, if its environment limits that.

``S2COMPOSITE_ACCESS`` tells a process that works for strangers (a worker of the service) which places are open to them,
and all processes that it starts inherit the variable. Without it everything is allowed that the user's own rights
allow. Code that opens or writes a place whose name came from outside asks here first.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from s2composite.errors import AccessError

__all__ = ["VARIABLE", "Access", "check_read", "check_touch", "check_write", "gdal_limits", "limits"]

VARIABLE = "S2COMPOSITE_ACCESS"
"""The environment variable that holds an `Access` as JSON."""

_STRANGE = re.compile(r"[\x00-\x20\x7f\\]")
"""Characters on which parsers of URLs disagree: the host of one is the path of another."""

_HIDDEN = re.compile(r"%(2e|2f|5c|00|25)", re.IGNORECASE)
"""Dots, slashes and percent signs that a server may decode after the path was compared."""

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Access:
    """The places that are open."""

    read: tuple[str, ...] = ()
    """Directories, and URLs up to any ``/``: ``/data``, ``gs://bucket/prefix/``, ``https://host/path/``, ``gs://``."""

    write: tuple[str, ...] = ()
    """The same for writing: directories, ``gs://`` and ``s3://``."""

    networks: tuple[str, ...] = ()
    """Networks that may be connected to although they are not public, ``10.1.0.0/16``."""

    def to_json(self) -> str:
        """Return it as the value of the environment variable."""
        return json.dumps(asdict(self))

    def may_read(self, href: str) -> None:
        """Raise an AccessError unless an absolute path or URL may be read."""
        _check(href, self.read, "read")

    def may_write(self, href: str) -> None:
        """Raise an AccessError unless an absolute path or URL may be written."""
        if urlsplit(href).scheme in _PORTS:
            raise AccessError(f"{_shown(href)}: nothing is written over HTTP here; use gs://, s3:// or a directory")
        _check(href, self.write, "written")


def limits() -> Access | None:
    """Return what this process is limited to; None: nothing limits it.

    Raises
    ------
    AccessError
        The variable is malformed; nothing is open then.
    """
    text = os.environ.get(VARIABLE)
    return None if text is None else _parsed(text)


@lru_cache(8)
def _parsed(text: str) -> Access:
    try:
        facts = {name: tuple(map(str, places)) for name, places in json.loads(text).items()}
        return Access(**facts)
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
        _check(href, (*access.read, *access.write), "touched")


def gdal_limits(href: str) -> dict[str, str]:
    """Return the options with which GDAL may open a path or URL; in a limited process, GeoTIFF only.

    Other formats can name further files, which GDAL would open without asking.

    Raises
    ------
    AccessError
        This process is limited, and the URL is a web server's: GDAL follows redirects without asking.
    """
    if (access := limits()) is None:
        return {}
    access.may_read(href)
    if urlsplit(href).scheme in _PORTS:
        raise AccessError(f"{_shown(href)}: needs GDAL (its grid or coding), which is not let out to the web here")
    return {"driver": "GTiff"}


def _check(href: str, places: Sequence[str], what: str) -> None:
    strange = _strangeness(href)
    if strange:
        raise AccessError(f"{_shown(href)}: {strange}; give the plain path or URL")
    inside = _inside_url if "://" in href else _inside_directory
    if not any(inside(href, place) for place in places):
        raise AccessError(f"{_shown(href)}: is not among the places that may be {what} here")


def _strangeness(href: str) -> str:
    """Return why two readers might understand a name differently; empty for plain names."""
    if "://" not in href:
        # GDAL reads such a path as a file in an archive or behind a URL.
        return "paths that begin with /vsi are not files" if href.lower().startswith(("/vsi", "//vsi")) else ""
    scheme, _, rest = href.partition("://")
    path = rest.partition("?")[0]
    if _STRANGE.search(href):
        return "a URL must not contain blanks, backslashes or control characters"
    if "@" in path.partition("/")[0]:
        return "a URL with a user in it is not accepted"
    if {".", ".."} & set(path.split("/")[1:]):
        return "a URL with . or .. in its path is not accepted"
    if scheme in _PORTS and (_HIDDEN.search(path) or "#" in href):
        return "a URL with encoded dots or slashes, or with #, is not accepted"
    return ""


def _inside_directory(path: str, place: str) -> bool:
    if "://" in place or "\0" in path:
        return False
    # What counts is where links lead.
    return Path(path).resolve().is_relative_to(Path(place).expanduser().resolve())


def _inside_url(href: str, place: str) -> bool:
    if "://" not in place:
        return False
    try:
        there, open_ = urlsplit(href), urlsplit(place)
        if there.scheme != open_.scheme or (open_.netloc and _host(there) != _host(open_)):
            return False
    except ValueError:  # a port that is none
        return False
    path, prefix = unquote(there.path), unquote(open_.path)
    return bool(there.netloc) and (path == prefix or path.startswith(prefix if prefix.endswith("/") else f"{prefix}/"))


def _host(url: SplitResult) -> tuple[str, int | None]:
    return (url.hostname or "").rstrip("."), url.port or _PORTS.get(url.scheme)


def _shown(href: str) -> str:
    """Return a name on one line, without secrets."""
    scheme, mark, rest = href.partition("://")
    if mark:
        authority, slash, path = rest.partition("?")[0].partition("/")
        rest = f"{authority.rpartition('@')[2]}{slash}{path}"
    return re.sub(r"[\x00-\x1f\x7f]", "?", f"{scheme}{mark}{rest}")[:300]
