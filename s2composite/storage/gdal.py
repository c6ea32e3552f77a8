"""GDAL: its settings, how long it waits for a server, and what is tried again."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress

import rasterio
from fsspec.asyn import get_loop
from rasterio.errors import RasterioError

from s2composite.errors import ReadError
from s2composite.storage.files import display, gdal_options, is_remote, without_queries
from s2composite.storage.http import REFUSED, Identity, Sign, read_identity, seconds_since_reply, signed
from s2composite.storage.limits import gdal_permit
from s2composite.storage.retry import LOW_SPEED_LIMIT, LOW_SPEED_TIME, AttemptError, Retry, retrying

__all__ = ["through_gdal"]

LOG = logging.getLogger(__name__)

_OPTIONS: Mapping[str, str | int] = {
    # ReadMultiRange of GDAL before 3.13 does not retry a failed part.
    "GDAL_HTTP_MULTIRANGE": "SERIAL",
    # 5 % of the memory for each process by default, which looks like a leak; a window is read once.
    "GDAL_CACHEMAX": 64 << 20,
    "VSI_CACHE": "NO",
    # Several decoding threads on a remote file can leave blank pixels and no error (GDAL#11552).
    "GDAL_NUM_THREADS": "1",
}
# What holds unless the environment says something else
_DEFAULTS = {
    # GDAL waits for ever by default. A limit on the whole transfer would end large reads over slow lines too, so it is
    # the silence that is limited, as long as the reads that do not go through GDAL wait.
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_TIME": f"{LOW_SPEED_TIME:.0f}",
    "GDAL_HTTP_LOW_SPEED_LIMIT": f"{LOW_SPEED_LIMIT:.0f}",
    # What fails is tried again here, where it is logged and a signature can be renewed.
    "GDAL_HTTP_MAX_RETRY": "0",
}

_RETRY = Retry(attempts=4)
_REDIRECTS_KEPT = 240.0  # seconds for which it is believed that a server sends GDAL where it has sent this process

_READ: dict[str, Identity] = {}  # what files were when GDAL last read them here: it keeps parts of them
_MOST_READ = 1 << 16

_PERMANENT = ("No such file", "does not exist", "Permission denied")
_LONGEST = 2000  # characters of what GDAL says
_STATUS = re.compile(r"(?<!port )(?<!after )(?<![\w.])[45]\d\d(?!\.?\w)")  # no port, time, date or file's name


def through_gdal(
    read: Callable[[str], object],
    href: str,
    sign: Sign | None = None,
    identity: Identity | None = None,
    *,
    files_beside: bool = False,
    requests: int = 2,
    size: int = 0,
) -> int:
    """Run `read`, which opens what it is given with rasterio, until it succeeds; return the retries that were needed.

    A file that must still have `identity` and has changed is a ReadError, too. `files_beside` says whether those beside
    a local file count (``.aux.xml``). `requests` and `size`, in bytes, are an estimate of what it asks a server for, by
    which the host's limits are kept: GDAL does not say.
    """
    remote = is_remote(href)
    # GDAL follows wherever a server sends it: a place that is not open is an AccessError here
    if href.startswith(("http://", "https://")) and seconds_since_reply(href) > _REDIRECTS_KEPT:
        with suppress(ReadError):  # that is for GDAL to find out, which also reads what has no byte ranges
            read_identity(href, sign)
    changed = identity is not None and not _READ.get(href, identity).same(identity)
    sign = sign if remote else None
    # GDAL lists the folder of a file to find others beside it: on object stores that is slow, and there are none.
    listing = {} if files_beside and not remote else {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    defaults = {key: value for key, value in _DEFAULTS.items() if key not in os.environ}
    options = {**_OPTIONS, **listing, **defaults, **gdal_options(href)}
    again = renewed = False

    def attempt() -> None:
        nonlocal again, renewed
        # GDAL remembers a failed request and would replay it, and what a file was: a retry has to bypass its cache.
        uncached = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsigs/:/vsis3/"} if again or changed else {}
        again = True
        try:
            with gdal_permit(href, size, requests, get_loop()) if remote else nullcontext() as lease:
                closing = {}
                if lease is not None and lease.has_connection:  # else GDAL keeps connections open between reads
                    own = os.environ.get("GDAL_HTTP_HEADERS", "")
                    closing = {"GDAL_HTTP_HEADERS": f"{own},Connection: close".removeprefix(",")}
                with rasterio.Env(**options, **uncached, **closing):
                    read(signed(sign, href))
        except (RasterioError, OSError) as error:
            failure = _failure(str(error), remote=remote, renewable=sign is not None and not renewed)
        else:
            return
        if failure.refused:
            failure.renewed = renewed = True
            signed(sign, href, fresh=True)
        raise failure

    label = display(href)
    try:
        _, retries = retrying(attempt, _RETRY, label, LOG)
    except AttemptError as error:
        retries = error.attempts - 1
        why = f"{label}: {error}"
        raise ReadError(why, href=label, transient=error.transient, retries=retries) from None
    if identity is not None:
        # so all that was read is of one state of the file
        if not identity.same(read_identity(href, sign)):
            why = f"{label} has changed since its header was read"
            raise ReadError(why, href=label, transient=False, retries=0)
        if len(_READ) >= _MOST_READ:
            _READ.clear()
        _READ[href] = identity
    return retries


def _failure(words: str, *, remote: bool, renewable: bool) -> AttemptError:
    """Return what GDAL's words for an error mean; `renewable` says whether a signature may have expired."""
    # They may hold the whole URL, and a signature with it, and whatever a server says.
    message = without_queries(words)[:_LONGEST]
    # not in a URL: it may hold such digits, too
    said = " ".join(word for word in message.split() if "://" not in word and "/vsi" not in word)
    statuses = {int(status) for status in _STATUS.findall(said)}
    # of a server that does not answer with a raster's first bytes GDAL says that it does not know the format
    unknown = "not recognized" in said or "does not exist" in said
    refused = renewable and (unknown or not statuses.isdisjoint(REFUSED))
    permanent = not statuses.isdisjoint({401, 403, 404}) or any(word in said for word in _PERMANENT)
    return AttemptError(
        f"GDAL cannot read it: {message}", transient=refused or (remote and not permanent), refused=refused
    )
