"""How a local path or a gs://, s3:// or https:// URL is reached, and with which credentials.

Also how messages show it, and how a local file is replaced.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit
from urllib.request import url2pathname

import fsspec

from s2composite.errors import ParameterError, S2CompositeError, SourceError
from s2composite.storage.urls import check_touch, guarded_client, limits, web_client

__all__ = [
    "absolute", "archive_of", "display", "exists", "filesystem", "gdal_options", "in_archive", "is_remote", "join",
    "reason", "redact", "replace_directory", "replacing", "s3_endpoint", "storage_errors", "storage_options",
    "without_queries", "write_atomic",
]  # fmt: skip

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SHORTENED = re.compile(r"^((?:gs|gcs|s3|s3a|https?):)/(?!/)")  # what pathlib makes of a URL
_SCHEMES = {"gs": "gs", "gcs": "gs", "s3": "s3", "s3a": "s3", "http": "http", "https": "https", "file": "file"}
# Each takes time in proportion to the text, whatever it holds: one that began with \w+:// took minutes for 100 kB of a.
_WORD = re.compile(r"[^\s'\"]+")
_USER = re.compile(r"(?<=://)[^\s'\"/?#]*@")
_QUERY, _HTTP_END = re.compile(r"\?"), re.compile(r"[?#]")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}")
_HTTP = re.compile(r"(https?://)(?:[^/?#]*@)?([^?#]*)", re.IGNORECASE)
_URL_SIGNS = "%/:?#[]@!$&'()*+,;=~"


def is_remote(href: str) -> bool:
    """Return whether `href` is a URL that is read over the network.

    >>> is_remote("gs://bucket/scene.tif"), is_remote("/data/scene.tif")
    (True, False)
    """
    return _scheme(href) != "file"


def absolute(href: str | os.PathLike[str]) -> str:
    """Return an absolute local path (``~`` and ``file://`` resolved) or a URL whose scheme is gs, s3, http or https.

    GDAL's names become one of these, or stay what they are for files in archives: ``/vsizip//data/a.zip/b.tif``.

    >>> absolute("file:///data/scene.tif"), absolute("gcs://bucket/scene.tif")
    ('/data/scene.tif', 'gs://bucket/scene.tif')
    >>> absolute("/vsis3/bucket/scene.tif"), absolute("/vsicurl/https://host/scene.tif")
    ('s3://bucket/scene.tif', 'https://host/scene.tif')
    """
    if not isinstance(href, (str, os.PathLike)):
        raise ParameterError(f"{href!r} is no path; give text or a pathlib.Path")
    if isinstance(href, os.PathLike):
        # pathlib leaves out slashes: of URLs, and of a root after /vsizip/
        href = _SHORTENED.sub(r"\1//", os.fspath(href))
        if (match := _ARCHIVED.match(href)) and not archive_of(os.path.abspath(href[match.end() :])):  # noqa: PTH100
            href = f"{match[0]}/{href[match.end() :]}"
    if "\0" in href:
        raise SourceError(f"{href!r} holds a NUL character, which no name of a file has")
    href = _without_gdal(href)
    if _ARCHIVED.match(href):
        return href
    scheme = _scheme(href)
    try:
        split = urlsplit(href if _SCHEME.match(href) else "")
    except ValueError as error:  # such as a bracket that is never closed
        raise SourceError(f"{display(href)}: not a URL: {error}; check how it is written") from None
    if scheme != "file":
        rest = href.partition("://")[2]
        # GDAL sends a URL as it is, and servers refuse blanks and accents.
        return f"{scheme}://{quote(rest, safe=_URL_SIGNS) if scheme.startswith('http') else rest}"
    path = url2pathname(split.path) if split.scheme else href
    try:
        home = Path(path).expanduser()
    except RuntimeError as error:
        raise SourceError(f"{href}: {error}; write the directory out") from None
    return str(Path(os.path.abspath(home)))  # noqa: PTH100 - Path.absolute() leaves ".." in


_VSI = re.compile(r"/vsi([a-z0-9_]+)([/?]|$)")
_ARCHIVED = re.compile(r"/vsi(?:zip|tar|gzip)/")
_STORES = {"s3": "s3", "s3_streaming": "s3", "gs": "gs", "gs_streaming": "gs"}
_ARCHIVE_OF_RASTERIO = re.compile(r"(zip|tar)(?:\+file)?://([^!]+)!/*(.+)")
_DATASET = re.compile(
    r"(?:NETCDF|HDF[45]\w*|ZARR|GTIFF_(?:DIR|RAW)|SENTINEL2_\w+|DERIVED_SUBDATASET|NITF_IM|GPKG|VRT|WMT?S):(?!//)",
    re.IGNORECASE,
)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")

# what to do about GDAL's virtual file systems that are none of ours
_CURES = {
    "az": "give its https:// URL, signed: sign= takes a function that does so",
    "adls": "give its https:// URL, signed: sign= takes a function that does so",
    "mem": "it exists only in the memory of one process; write a file, or give composite() the array",
    "stdin": "give the file",
}


def _without_gdal(href: str) -> str:
    """Return what a name of GDAL or rasterio stands for: a URL, a file in an archive, or else the name itself."""
    if match := _ARCHIVE_OF_RASTERIO.fullmatch(href):
        href = f"/vsi{match[1]}/{match[2]}/{match[3]}"
    if (match := _VSI.match(href)) is None:
        if os.path.lexists(href):
            return href
        if _DATASET.match(href):
            cure = "give the file itself if it is a raster, or write the dataset as a GeoTIFF with gdal_translate"
            raise SourceError(f"{display(href)}: names a dataset within a file as GDAL does; {cure}")
        if os.name != "nt" and _WINDOWS.match(href):
            system = f"is a path of Windows, and this is {os.name}"
            raise SourceError(f"{display(href)}: {system}; give the path it has here")
        return href
    kind, rest = match[1], href[match.end() :]
    if match[2] == "?":
        rest = dict(parse_qsl(rest)).get("url", "")
    if kind in _STORES:
        return f"{_STORES[kind]}://{rest}"
    if kind in ("curl", "curl_streaming") and _SCHEME.match(url := _SHORTENED.sub(r"\1//", rest)):
        return url
    if kind not in ("zip", "tar", "gzip"):
        cure = _CURES.get(kind, "give a local path, or a gs://, s3:// or https:// URL")
        raise SourceError(f"{display(href)}: GDAL's /vsi{kind} is not read here; {cure}")
    inside = rest.replace("{", "").replace("}", "")
    if _VSI.match(f"/{inside.lstrip('/')}") or "://" in inside:
        cure = "download the archive, or give the URLs of unpacked files"
        raise SourceError(f"{display(href)}: an archive behind a URL or in another archive is not read here; {cure}")
    path = os.path.abspath(os.path.expanduser(inside))  # noqa: PTH100, PTH111 - not a file that there is
    return f"/vsi{kind}/{path}"


def archive_of(href: str) -> str | None:
    """Return the archive that a file of GDAL's ``/vsizip/``, ``/vsitar/`` or ``/vsigzip/`` lies in; None: in none.

    Of a path without such a prefix, the file that it leads into.
    """
    path = Path(_ARCHIVED.sub("", href))
    inside = (path, *path.parents)
    return next((str(part) for part in inside if part.is_file()), None)


def in_archive(href: str) -> bool:
    """Return whether an absolute name is that of a file in an archive, which only GDAL reads."""
    return _ARCHIVED.match(href) is not None


def join(href: str, *parts: str) -> str:
    """Return the path or URL of something inside `href`.

    >>> join("gs://bucket/out/", "tile", "median.tif")
    'gs://bucket/out/tile/median.tif'
    """
    return "/".join([href.rstrip("/"), *(part.strip("/") for part in parts)])


def display(href: str) -> str:
    """Return `href` for messages and logs: without user, password and query (signature) of a URL.

    >>> display("https://me:secret@host/scene.tif?signature=abc")
    'https://host/scene.tif'
    """
    match = _HTTP.match(href)
    return "".join(match.groups()) if match else href


def redact(text: str) -> str:
    """Return a text without users, passwords and signatures of URLs in it, and without credentials of headers.

    >>> redact("GET https://me:pw@host/a.tif?sig=abc failed; Authorization: Bearer abcdefghij")
    'GET https://host/a.tif failed; Authorization: Bearer ...'
    """

    def without_query(word: re.Match[str]) -> str:
        before, mark, rest = word[0].partition("://")
        end = _HTTP_END.search(rest) if before.lower().endswith(("http", "https")) else _QUERY.search(rest)
        if not mark or end is None:
            return word[0]
        closing = rest[len(rest.rstrip(")]")) :]  # of what stands around the URL
        return f"{before}{mark}{rest[: end.start()]}{closing}"

    return _BEARER.sub(r"\1 ...", _WORD.sub(without_query, _USER.sub("", text)))


def without_queries(text: str) -> str:
    """Return what a library says of an error without anything that may be a query: it may cut URLs anywhere."""
    return re.sub(r"\?[^\s'\")]+", "", text)


def filesystem(href: str) -> tuple[Any, str]:
    """Return the fsspec filesystem that holds `href`, with credentials or anonymous, and the path in it.

    Equal calls in a process return the same instance with its open connections (fsspec's own cache, which is
    thread-safe and emptied in a forked child).

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
    if options.get("token") == "anon":
        # gcsfs without its support of zonal buckets: that asks over gRPC what kind a bucket is; emulators do not
        # answer, and anonymous callers are refused at every access anew. The environment variable that switches it
        # off is read only once, when gcsfs is imported.
        from gcsfs.core import GCSFileSystem  # noqa: PLC0415 - 0.9 s that only users of gs:// should pay

        fs = GCSFileSystem(**options)
    else:
        fs = fsspec.filesystem(scheme, **options)
    return fs, href if scheme in ("http", "https", "file") else href.partition("://")[2]


def exists(href: str) -> bool:
    """Return whether there is a file, a directory or an object at `href`."""
    if not is_remote(href):
        return Path(href).exists()
    fs, path = filesystem(href)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def reason(href: str, error: BaseException) -> str:
    """Return why `href` could not be used, and what to do; `error` is what its filesystem raised."""
    status = _status(error)
    if isinstance(error, PermissionError) or status in (401, 403):
        scheme, cure = _scheme(href), " to the credentials in use: ask for the right to list and read it"
        if scheme == "gs" and _gcs_token() == "anon":
            cure = (
                ", and no Google credentials were found: run 'gcloud auth application-default login' or set "
                "GOOGLE_APPLICATION_CREDENTIALS"
            )
        elif scheme == "s3" and _s3_anonymous():
            cure = ", and no AWS credentials were found: run 'aws configure' or set AWS_PROFILE or AWS_ACCESS_KEY_ID"
        elif scheme in ("http", "https"):
            cure = ": its user and password go into ~/.netrc; a signed URL may have expired"
        return f"access is denied{'' if scheme == 'file' else cure}"
    if isinstance(error, FileNotFoundError) or status == 404:
        return "it does not exist"
    if status is not None:
        return f"the server answers with HTTP status {status}; try again later, or check the address"
    text = without_queries(str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def storage_errors(kind: type[S2CompositeError], message: str, href: str, /, **facts: Any) -> Iterator[None]:
    """Raise what an access to `href` raises as `kind`, with the reason after `message`; our own errors pass."""
    try:
        yield
    except S2CompositeError:
        raise
    except Exception as error:  # noqa: BLE001 - fsspec, aiohttp, botocore, gcsfs, google-auth share no class of errors
        text = f"{message}: {reason(href, error)}"
    else:
        return
    # outside of the except clause: what they raise may hold a signature, and workers cannot pickle it
    raise kind(text, **facts)


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


# --- credentials: who this process is on Google Cloud Storage and on S3, for fsspec and for GDAL ----------------------

# The environment decides, in the process that asks, so that workers use their own: credentials where some can be found,
# otherwise anonymous access, which is all that public buckets need. Nothing here returns or prints a secret.

_YES = ("1", "yes", "true", "on")
_DMI = Path("/sys/class/dmi/id")


def storage_options(href: str) -> dict[str, Any]:
    """Return the options with which fsspec opens `href` (``storage_options=`` of xarray, zarr and others)."""
    scheme = _scheme(href)
    if scheme in ("http", "https"):
        return {"get_client": web_client if limits() is None else guarded_client}
    # Listings of a bucket that others write to must be fresh.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "gs":
        options |= {"token": _gcs_token(), "session_kwargs": {"trust_env": True}}
        endpoint = _gcs_emulator()
        if endpoint:
            # gcsfs would ask the emulator over gRPC what kind its bucket is and hang for a minute.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    elif scheme == "s3":
        options["anon"], endpoint = _s3_anonymous(), s3_endpoint()
        if os.environ.get("AWS_REQUEST_PAYER") == "requester":  # GDAL's switch
            options["requester_pays"] = True
    else:
        return {}
    return options | ({"endpoint_url": endpoint} if endpoint else {})


def gdal_options(href: str) -> dict[str, str]:
    """Return GDAL's configuration options for the same access to `href` as `filesystem` has.

    GDAL finds credentials in the environment itself; the options say where, or that there are none.
    """
    scheme, options = _scheme(href), dict[str, str]()
    if scheme == "gs":
        endpoint, token = _gcs_emulator(), _gcs_token()
        if endpoint:
            options["CPL_GS_ENDPOINT"] = f"{endpoint}/"
        if token == "anon":  # noqa: S105 - says that there is none
            options["GS_NO_SIGN_REQUEST"] = "YES"
        elif token:  # GDAL does not look where gcloud puts its credentials
            options["GOOGLE_APPLICATION_CREDENTIALS"] = str(_gcs_credentials_file())
    elif scheme == "s3":
        if _s3_anonymous():
            options["AWS_NO_SIGN_REQUEST"] = "YES"
        if endpoint := s3_endpoint():
            protocol, _, host = endpoint.partition("://")
            https = "NO" if protocol == "http" else "YES"
            options |= {"AWS_S3_ENDPOINT": host, "AWS_HTTPS": https, "AWS_VIRTUAL_HOSTING": "FALSE"}
    return options


def _gcs_token() -> str | None:
    """Return what gcsfs logs in with: ``"anon"``, ``"google_default"``, or None (ask the machine)."""
    if _gcs_emulator() or _is_set("GS_NO_SIGN_REQUEST"):
        return "anon"
    if _gcs_credentials_file() is not None:
        return "google_default"
    named = any(os.environ.get(name) for name in ("GCE_METADATA_HOST", "K_SERVICE", "CLOUD_RUN_JOB"))
    on_google_cloud = named or _is_set("CPL_MACHINE_IS_GCE") or _machine("product_name").startswith("Google")
    # gcsfs would wait for the metadata server for seconds on machines that have none.
    return None if on_google_cloud else "anon"


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


def _s3_anonymous() -> bool:
    """Return whether S3 is used without credentials: botocore finds none."""
    if _is_set("AWS_NO_SIGN_REQUEST"):
        return True
    # Looking takes 10 ms, so it is done once for an environment, not for every range that is read.
    return not _aws_credentials_exist(tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


def s3_endpoint() -> str | None:
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
        named = "AWS_EC2_METADATA_SERVICE_ENDPOINT" in dict(environment)
        if not (named or _machine("sys_vendor").startswith("Amazon")):
            # Elsewhere the metadata server does not answer, which would take seconds to find out.
            chain.remove("iam-role")
        return chain.load_credentials() is not None
    except BotoCoreError:
        # There is something, but it is wrong (an unknown profile): s3fs will say so when it is used.
        return True


def _machine(name: str) -> str:
    """Return what the firmware says of the machine; empty where it says nothing."""
    try:
        return (_DMI / name).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in _YES


# --- local files and directories take their final name only when they are complete -----------------------------------


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path`; the file written there takes its name at the end, or is removed."""
    final = Path(path)
    # of its own for each attempt: a task that runs twice must not replace a whole file with half of one
    unfinished = final.with_name(f".{final.stem}.{uuid.uuid4().hex[:8]}{final.suffix}")
    try:
        yield unfinished
        unfinished.replace(final)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file or an object, whole or not at all."""
    if is_remote(str(path)):
        fs, name = filesystem(str(path))
        fs.pipe_file(name, data)
        return
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)


def replace_directory(complete: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a directory that is complete the name `target`; what has that name is removed, or stays if that fails."""
    complete, target, old = Path(complete), Path(target), Path(f"{complete}.old")
    if target.exists():
        target.replace(old)
    try:
        complete.replace(target)
    except OSError:
        if old.exists():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
