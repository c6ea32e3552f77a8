"""GDAL: its settings, how long it waits for a server, and what is tried again."""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import rasterio
from rasterio.errors import RasterioError

from s2composite.errors import ReadError
from s2composite.storage.files import display, gdal_options, is_remote
from s2composite.storage.http import (
    LOW_SPEED_LIMIT,
    LOW_SPEED_TIME,
    REFUSED,
    Identity,
    Sign,
    read_identity,
    seconds_since_reply,
    signed,
)

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
# GDAL lists the folder of a file to find others beside it: on object stores that is slow, and there are none
_NO_LISTING = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}

# what holds unless the environment says something else
_PATIENCE = {
    # GDAL waits for ever by default. A limit on the whole transfer would end large reads over slow lines too, so it is
    # the silence that is limited, as long as the reads that do not go through GDAL wait.
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_TIME": f"{LOW_SPEED_TIME:.0f}",
    "GDAL_HTTP_LOW_SPEED_LIMIT": f"{LOW_SPEED_LIMIT:.0f}",
    # What fails is tried again here, where it is logged and a signature can be renewed.
    "GDAL_HTTP_MAX_RETRY": "0",
}

_ATTEMPTS = 4
_FOLLOWED = 240.0  # seconds for which it is believed that a server sends GDAL where it has sent this process

_READ: dict[str, Identity] = {}  # what files were when GDAL last read them here: it keeps parts of them
_MOST_READ = 1 << 16

_PERMANENT = ("404", "403", "401", "No such file", "does not exist", "Permission denied")


def through_gdal(
    read: Callable[[str], object],
    href: str,
    sign: Sign | None = None,
    identity: Identity | None = None,
    *,
    files_beside: bool = False,
) -> int:
    """Run `read` with a URL until it succeeds, the failure is permanent or the attempts are used up."""
    _check_redirects(href, sign)
    renewed, other = False, identity is not None and not _READ.get(href, identity).same(identity)
    sign = sign if is_remote(href) else None
    options = _options(href, files_beside=files_beside)
    for attempt in range(_ATTEMPTS):
        # GDAL remembers a failed request and would replay it, and what a file was: a retry has to bypass its cache.
        fresh = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsigs/:/vsis3/"} if attempt or other else {}
        try:
            with rasterio.Env(**options, **fresh):
                read(signed(sign, href))
        except (RasterioError, OSError) as error:
            # GDAL's own words may hold the whole URL, and a signature with it.
            told = re.sub(r"\?[^\s'\")]+", "", str(error))
            refused = sign is not None and not renewed and _is_refusal(told)
            transient = refused or (is_remote(href) and not any(word in told for word in _PERMANENT))
            why = f"{display(href)}: GDAL cannot read it: {told}"
            if not transient or attempt == _ATTEMPTS - 1:
                raise ReadError(why, href=display(href), transient=transient, retries=attempt) from None
            if refused:
                renewed = True
                signed(sign, href, fresh=True)
                continue
            wait = random.uniform(0.5, 1.0) * 0.25 * 2**attempt  # noqa: S311 - jitter, not a secret
            LOG.warning("%s; attempt %d of %d failed, the next in %.1f s", why, attempt + 1, _ATTEMPTS, wait)
            time.sleep(wait)
        else:
            if identity is not None:
                _check_unchanged(href, sign, identity)
            return attempt
    raise AssertionError


def _check_redirects(href: str, sign: Sign | None) -> None:
    """Raise an AccessError if a web server sends on to a place that is not open: GDAL follows wherever it is sent."""
    if href.startswith(("http://", "https://")) and seconds_since_reply(href) > _FOLLOWED:
        with suppress(ReadError):  # that is for GDAL to find out, which also reads what has no byte ranges
            read_identity(href, sign)


def _check_unchanged(href: str, sign: Sign | None, identity: Identity) -> None:
    """Raise a ReadError unless a file still is what it was, so that all that was read is of one state of it."""
    if not identity.same(read_identity(href, sign)):
        why = f"{display(href)} has changed since its header was read"
        raise ReadError(why, href=display(href), transient=False, retries=0)
    if len(_READ) >= _MOST_READ:
        _READ.clear()
    _READ[href] = identity


def _options(href: str, *, files_beside: bool) -> dict[str, str | int]:
    listing = {} if files_beside and not is_remote(href) else _NO_LISTING
    patience = {key: value for key, value in _PATIENCE.items() if key not in os.environ}
    return {**_OPTIONS, **listing, **patience, **gdal_options(href)}


def _is_refusal(told: str) -> bool:
    # of a server that does not answer with a raster's first bytes GDAL says that it does not know the format
    return any(str(status) in told for status in REFUSED) or "not recognized" in told or "does not exist" in told
