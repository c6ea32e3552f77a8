"""Storage: how a local path or a gs://, s3:// or https:// URL is reached, and how messages may show it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import fsspec

from s2composite.errors import SourceError
from s2composite.scenes.access import check_touch, limits
from s2composite.scenes.addresses import guarded_client, web_client
from s2composite.scenes.credentials import (
    gcs_options,
    gcs_token,
    gdal_gcs,
    gdal_s3,
    plain_gcs,
    s3_anonymous,
    s3_options,
)

__all__ = [
    "absolute",
    "display",
    "display_text",
    "exists",
    "filesystem",
    "gdal_options",
    "is_remote",
    "join",
    "reason",
    "storage_options",
]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SHORTENED = re.compile(r"^((?:gs|gcs|s3|s3a|https?):)/(?!/)")  # what pathlib makes of a URL
_SCHEMES = {"gs": "gs", "gcs": "gs", "s3": "s3", "s3a": "s3", "http": "http", "https": "https", "file": "file"}
_URL = re.compile(r"https?://[^\s'\"]+", re.IGNORECASE)
_HTTP = re.compile(r"(https?://)(?:[^/?#]*@)?([^?#]*)", re.IGNORECASE)
_URL_SIGNS = "%/:?#[]@!$&'()*+,;=~"


def is_remote(href: str) -> bool:
    """Return whether `href` is a URL that is read over the network.

    Examples
    --------
    >>> is_remote("gs://bucket/scene.tif"), is_remote("/data/scene.tif")
    (True, False)
    """
    return _scheme(href) != "file"


def absolute(href: str | os.PathLike[str]) -> str:
    """Return an absolute local path (``~`` and ``file://`` resolved) or a URL whose scheme is gs, s3, http or https.

    Raises
    ------
    SourceError
        The scheme is not supported.

    Examples
    --------
    >>> absolute("file:///data/scene.tif"), absolute("gcs://bucket/scene.tif")
    ('/data/scene.tif', 'gs://bucket/scene.tif')
    """
    if isinstance(href, os.PathLike):
        href = _SHORTENED.sub(r"\1//", os.fspath(href))
    if "\0" in href:
        raise SourceError(f"{href!r} holds a NUL character, which no name of a file has")
    scheme = _scheme(href)
    if scheme != "file":
        _check_url(href)
        rest = href.partition("://")[2]
        # GDAL sends a URL as it is, and servers refuse blanks and accents.
        return f"{scheme}://{quote(rest, safe=_URL_SIGNS) if scheme.startswith('http') else rest}"
    path = url2pathname(urlsplit(href).path) if _SCHEME.match(href) else href
    try:
        home = Path(path).expanduser()
    except RuntimeError as error:
        raise SourceError(f"{href}: {error}; write the directory out") from None
    return str(Path(os.path.abspath(home)))  # noqa: PTH100 - Path.absolute() leaves ".." in


def _check_url(href: str) -> None:
    try:
        urlsplit(href)
    except ValueError as error:  # such as a bracket that is never closed
        raise SourceError(f"{display(href)}: not a URL: {error}; check how it is written") from None


def join(href: str, *parts: str) -> str:
    """Return the path or URL of something inside `href`.

    Examples
    --------
    >>> join("gs://bucket/out/", "tile", "median.tif")
    'gs://bucket/out/tile/median.tif'
    """
    return "/".join([href.rstrip("/"), *(part.strip("/") for part in parts)])


def display(href: str) -> str:
    """Return `href` for messages and logs: without user, password and query (signature) of a URL.

    Examples
    --------
    >>> display("https://me:secret@host/scene.tif?signature=abc")
    'https://host/scene.tif'
    """
    match = _HTTP.match(href)
    return "".join(match.groups()) if match else href


def display_text(text: str) -> str:
    """Return a text for messages and logs, with every URL as `display` shows it.

    Examples
    --------
    >>> display_text("reading https://host/a.tif?signature=abc failed")
    'reading https://host/a.tif failed'
    """
    return _URL.sub(lambda match: display(match.group()), text)


def filesystem(href: str) -> tuple[Any, str]:
    """Return the fsspec filesystem that holds `href`, with credentials or anonymous, and the path in it.

    Equal calls in a process return the same instance with its open connections (fsspec's own cache, which is
    thread-safe and emptied in a forked child).

    Raises
    ------
    SourceError
        The scheme is not supported.
    AccessError
        This process is limited to other places.

    Examples
    --------
    >>> fs, path = filesystem("/tmp/../tmp/scene.tif")
    >>> fs.protocol[0], path
    ('file', '/tmp/scene.tif')
    """
    href = absolute(href)
    scheme = _scheme(href)
    if not href.endswith("://"):  # a bare scheme asks for a connection, not for a place
        check_touch(href)
    options = storage_options(href)
    # gcsfs logs the traceback of what it raises; without a handler that would be printed.
    if scheme == "gs" and not (logger := logging.getLogger("gcsfs")).handlers:
        logger.addHandler(logging.NullHandler())
    fs = plain_gcs(options) if options.get("token") == "anon" else fsspec.filesystem(scheme, **options)
    return fs, href if scheme in ("http", "https", "file") else href.partition("://")[2]


def exists(href: str) -> bool:
    """Return whether there is a file, a directory or an object at `href`."""
    if not is_remote(href):
        return Path(href).exists()
    fs, path = filesystem(href)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def storage_options(href: str) -> dict[str, Any]:
    """Return the options with which fsspec opens `href` (``storage_options=`` of xarray, zarr and others)."""
    scheme = _scheme(href)
    if scheme == "gs":
        return gcs_options()
    if scheme == "s3":
        return s3_options()
    if scheme in ("http", "https") and limits() is not None:
        return {"get_client": guarded_client}
    # trust_env: proxies and ~/.netrc, as curl and GDAL use them.
    return {"get_client": web_client, "client_kwargs": {"trust_env": True}} if scheme in ("http", "https") else {}


def gdal_options(href: str) -> dict[str, str]:
    """Return GDAL's configuration options for the same access to `href` as `filesystem` has.

    GDAL finds credentials in the environment itself; the options say where, or that there are none.
    """
    scheme = _scheme(href)
    if scheme == "gs":
        return gdal_gcs()
    return gdal_s3() if scheme == "s3" else {}


def reason(href: str, error: BaseException) -> str:
    """Return why `href` could not be used, and what to do; `error` is what its filesystem raised."""
    status = _status(error)
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"access is denied{_cure(_scheme(href))}"
    if isinstance(error, FileNotFoundError) or status == 404:
        return "it does not exist"
    if status is not None:
        return f"the server answers with HTTP status {status}; try again later, or check the address"
    text = re.sub(r"\?[^\s'\")]+", "", str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _scheme(href: str) -> str:
    match = _SCHEME.match(href)
    if match is None:
        return "file"
    scheme = _SCHEMES.get(match[1].lower())
    if scheme is None:
        raise SourceError(
            f"{display(href)}: the URL scheme {match[1]}:// is unknown; use gs://, s3://, https:// or a local path"
        )
    return scheme


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status in an error of aiohttp (status), gcsfs (code) or botocore (response), or in its cause."""
    if error is None:
        return None
    if str(error).startswith("Forbidden: "):  # gcsfs drops the number of this one
        return 403
    response = getattr(error, "response", None)
    coded = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, Mapping) else None
    status = getattr(error, "status", None) or getattr(error, "code", None) or coded
    return int(str(status)) if str(status).isdecimal() else _status(error.__cause__)


def _cure(scheme: str) -> str:
    if scheme == "gs" and gcs_token() == "anon":
        return (
            ", and no Google credentials were found: run 'gcloud auth application-default login' or set "
            "GOOGLE_APPLICATION_CREDENTIALS"
        )
    if scheme == "s3" and s3_anonymous():
        return ", and no AWS credentials were found: run 'aws configure' or set AWS_PROFILE or AWS_ACCESS_KEY_ID"
    if scheme in ("http", "https"):
        return ": its user and password go into ~/.netrc; a signed URL may have expired"
    return "" if scheme == "file" else " to the credentials in use: ask for the right to list and read it"
