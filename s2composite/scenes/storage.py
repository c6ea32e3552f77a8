"""Storage: local paths and gs://, s3://, https:// URLs, and who one is there: the one place that decides that.

The environment decides, in the process that asks, so that workers use their own: credentials if some can be found, else
anonymous access, which is all that public buckets need. Nothing here returns or prints a secret.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import fsspec

from s2composite.errors import SourceError
from s2composite.scenes.access import check_touch, limits
from s2composite.scenes.addresses import guarded_client

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
_YES = ("1", "yes", "true", "on")
_DMI = Path("/sys/class/dmi/id")


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
        The scheme is none that can be read.

    Examples
    --------
    >>> absolute("file:///data/scene.tif"), absolute("gcs://bucket/scene.tif")
    ('/data/scene.tif', 'gs://bucket/scene.tif')
    """
    if isinstance(href, os.PathLike):
        href = _SHORTENED.sub(r"\1//", os.fspath(href))
    scheme = _scheme(href)
    if scheme != "file":
        _check_url(href)
        rest = href.partition("://")[2]
        # GDAL sends a URL as it is, and servers refuse blanks and accents.
        return f"{scheme}://{quote(rest, safe=_URL_SIGNS) if scheme.startswith('http') else rest}"
    path = url2pathname(urlsplit(href).path) if _SCHEME.match(href) else href
    return str(Path(os.path.abspath(Path(path).expanduser())))  # noqa: PTH100 - Path.absolute() leaves ".." in


def _check_url(href: str) -> None:
    try:
        urlsplit(href)
    except ValueError as error:  # such as a bracket that is never closed
        raise SourceError(f"{display(href)}: not a URL: {error}; check how it is written") from None


def join(href: str, *parts: str) -> str:
    """Return the path or URL of something inside of `href`.

    Examples
    --------
    >>> join("gs://bucket/out/", "tile", "median.tif")
    'gs://bucket/out/tile/median.tif'
    """
    return "/".join([href.rstrip("/"), *(part.strip("/") for part in parts)])


def display(href: str) -> str:
    """Return `href` as messages and logs may show it: without the user, password and query (signature) of a URL.

    Examples
    --------
    >>> display("https://me:secret@host/scene.tif?signature=abc")
    'https://host/scene.tif'
    """
    match = _HTTP.match(href)
    return "".join(match.groups()) if match else href


def display_text(text: str) -> str:
    """Return a text in which every URL is as messages and logs may show it.

    Examples
    --------
    >>> display_text("reading https://host/a.tif?signature=abc failed")
    'reading https://host/a.tif failed'
    """
    return _URL.sub(lambda match: display(match.group()), text)


def filesystem(href: str) -> tuple[Any, str]:
    """Return the fsspec filesystem that holds `href`, with credentials or anonymous, and the path in it.

    Equal calls in a process get the same instance with its open connections (fsspec's own cache, which is safe with
    threads and empties itself in a forked child).

    Raises
    ------
    SourceError
        The scheme is none that can be read.
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
    if not href.endswith("://"):  # the bare scheme: whoever wants a connection, not a place
        check_touch(href)
    options = storage_options(href)
    # gcsfs logs the traceback of what it raises; without any handler that would land on the user's screen.
    if scheme == "gs" and not (logger := logging.getLogger("gcsfs")).handlers:
        logger.addHandler(logging.NullHandler())
    fs = _plain_gcs(options) if options.get("token") == "anon" else fsspec.filesystem(scheme, **options)
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
        return _gcs_options()
    if scheme == "s3":
        return _s3_options()
    if scheme in ("http", "https") and limits() is not None:
        return {"get_client": guarded_client}
    # trust_env: proxies and ~/.netrc, as curl and GDAL use them.
    return {"client_kwargs": {"trust_env": True}} if scheme in ("http", "https") else {}


def gdal_options(href: str) -> dict[str, str]:
    """Return GDAL's configuration options for the same access to `href` as `filesystem` has.

    Credentials in the environment GDAL finds itself; the options say where, or that there are none.
    """
    scheme = _scheme(href)
    if scheme == "gs":
        return _gdal_gcs()
    return _gdal_s3() if scheme == "s3" else {}


def reason(href: str, error: BaseException) -> str:
    """Return why `href` could not be used, in words that say what to do; `error` is what its filesystem raised."""
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
    if scheme == "gs" and _gcs_token() == "anon":
        return (
            ", and no Google credentials were found: run 'gcloud auth application-default login' or set "
            "GOOGLE_APPLICATION_CREDENTIALS"
        )
    if scheme == "s3" and _s3_anonymous():
        return ", and no AWS credentials were found: run 'aws configure' or set AWS_PROFILE or AWS_ACCESS_KEY_ID"
    if scheme in ("http", "https"):
        return ": its user and password go into ~/.netrc; a signed URL may have expired"
    return "" if scheme == "file" else " to the credentials in use: ask for the right to list and read it"


# --- Google ---------------------------------------------------------------------------------------------------------


def _gcs_token() -> str | None:
    """Decide who one is on Google Cloud Storage: ``"anon"``, ``"google_default"``, or None (ask the machine)."""
    if _gcs_emulator() or _is_set("GS_NO_SIGN_REQUEST"):
        return "anon"
    if _gcs_credentials_file() is not None:
        return "google_default"
    # gcsfs would wait for the metadata server for seconds on machines that have none.
    return None if _on_google_cloud() else "anon"


def _gcs_options() -> dict[str, Any]:
    options: dict[str, Any] = {
        "token": _gcs_token(),
        "session_kwargs": {"trust_env": True},
        # Listings of a bucket that others write to must be fresh.
        "use_listings_cache": False,
    }
    if endpoint := _gcs_emulator():
        # gcsfs would ask the emulator over gRPC what kind its bucket is and hang for a minute.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        options["endpoint_url"] = endpoint
    return options


def _plain_gcs(options: Mapping[str, Any]) -> Any:
    """Return gcsfs without its support of zonal buckets.

    That asks over gRPC what kind a bucket is; emulators do not answer, and anonymous callers are refused at every
    access anew. The environment variable that switches it off is read only once, when gcsfs is imported.
    """
    from gcsfs.core import GCSFileSystem  # noqa: PLC0415 - 0.9 s that only users of gs:// should pay

    return GCSFileSystem(**options)


def _gdal_gcs() -> dict[str, str]:
    endpoint, token = _gcs_emulator(), _gcs_token()
    options = {"CPL_GS_ENDPOINT": f"{endpoint}/"} if endpoint else {}
    if token == "anon":  # noqa: S105 - says that there is none
        return options | {"GS_NO_SIGN_REQUEST": "YES"}
    # GDAL does not look where gcloud puts its credentials.
    return options | ({"GOOGLE_APPLICATION_CREDENTIALS": str(_gcs_credentials_file())} if token else {})


def _gcs_emulator() -> str | None:
    host = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if host in ("", "default"):
        return None
    return host if "://" in host else f"http://{host}"


def _gcs_credentials_file() -> Path | None:
    """Return the file with Google credentials that the environment names or gcloud has left."""
    if named := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return Path(named)
    folder = os.environ.get("CLOUDSDK_CONFIG") or Path("~/.config/gcloud").expanduser()
    file = Path(folder) / "application_default_credentials.json"
    return file if file.exists() else None


def _on_google_cloud() -> bool:
    named = any(os.environ.get(name) for name in ("GCE_METADATA_HOST", "K_SERVICE", "CLOUD_RUN_JOB"))
    return named or _is_set("CPL_MACHINE_IS_GCE") or _machine("product_name").startswith("Google")


# --- Amazon, and all that speak its protocol ------------------------------------------------------------------------


def _s3_anonymous() -> bool:
    """Decide who one is on S3: anonymous if botocore finds no credentials."""
    if _is_set("AWS_NO_SIGN_REQUEST"):
        return True
    # Looking takes 10 ms, so it is done once for an environment, not for every range that is read.
    return not _aws_credentials_exist(tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


def _s3_options() -> dict[str, Any]:
    options: dict[str, Any] = {"anon": _s3_anonymous(), "use_listings_cache": False}
    if endpoint := _s3_endpoint():
        options["endpoint_url"] = endpoint
    if os.environ.get("AWS_REQUEST_PAYER") == "requester":  # GDAL's switch
        options["requester_pays"] = True
    return options


def _gdal_s3() -> dict[str, str]:
    options = {"AWS_NO_SIGN_REQUEST": "YES"} if _s3_anonymous() else {}
    if endpoint := _s3_endpoint():
        scheme, _, host = endpoint.partition("://")
        https = "NO" if scheme == "http" else "YES"
        options |= {"AWS_S3_ENDPOINT": host, "AWS_HTTPS": https, "AWS_VIRTUAL_HOSTING": "FALSE"}
    return options


def _s3_endpoint() -> str | None:
    """Return the server that stands in for Amazon's (MinIO, Ceph, an emulator)."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return named.rstrip("/") if named else None


@lru_cache(maxsize=8)
def _aws_credentials_exist(environment: tuple[tuple[str, str], ...]) -> bool:
    """Return whether botocore finds credentials; `environment` is what its answer depends on."""
    # 0.1 s that only users of s3:// should pay
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    try:
        chain = Session().get_component("credential_provider")
        if not _on_amazon(dict(environment)):
            # Elsewhere the metadata server does not answer, which would take seconds to find out.
            chain.remove("iam-role")
        return chain.load_credentials() is not None
    except BotoCoreError:
        # There is something, but it is wrong (an unknown profile): s3fs will say so when it is used.
        return True


def _on_amazon(environment: Mapping[str, str]) -> bool:
    return "AWS_EC2_METADATA_SERVICE_ENDPOINT" in environment or _machine("sys_vendor").startswith("Amazon")


def _machine(fact: str) -> str:
    """Return what the machine's firmware says of itself; empty where it says nothing."""
    try:
        return (_DMI / fact).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in _YES
