"""Signing: URLs that are signed just before they are read, because signatures do not outlive a long run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from threading import Lock
from typing import TypeAlias, cast

from s2composite.errors import ParameterError, ReadError
from s2composite.optional import imported
from s2composite.scenes.storage import display

__all__ = ["REFUSED", "Sign", "sign_function", "signed"]

Sign: TypeAlias = Callable[[str], str]
"""Returns a URL with a signature, ``planetary_computer.sign``; runs in the workers."""

REFUSED = (400, 401, 403)
"""What servers answer to a signature that has expired; Amazon says 400."""

_KEPT = 240.0
"""Seconds a signed URL is used again: shorter than any signature is valid, long enough for the windows of a file."""
_MOST = 1 << 16

_URLS: dict[tuple[int, str], tuple[float, str]] = {}
_LOCK = Lock()


def sign_function(sign: Sign | str | None) -> Sign | None:
    """Return the function that signs URLs: a function, or its import path, ``"planetary_computer.sign"``.

    Raises
    ------
    ParameterError
        It is neither.
    """
    found: object = sign
    if isinstance(sign, str):
        try:
            found = imported(sign)
        except (ImportError, AttributeError, ValueError) as error:
            raise ParameterError(f"sign is {sign!r}, which cannot be imported: {error}") from error
    if sign is not None and not callable(found):
        raise ParameterError(
            f"sign is {sign!r}; it is a function of a URL, such as planetary_computer.sign, or its import path"
        )
    return cast("Sign | None", found)


def signed(sign: Sign | None, href: str, *, fresh: bool = False) -> str:
    """Return where `href` can be read: signed, where there is a `sign`, in this process and not long ago.

    Parameters
    ----------
    fresh
        Sign again: the last signature was refused.

    Raises
    ------
    ReadError
        `sign` fails.
    """
    if sign is None:
        return href
    now, key = time.monotonic(), (id(sign), href)
    with _LOCK:
        known = _URLS.get(key)
    if known is not None and not fresh and now - known[0] < _KEPT:
        return known[1]
    url = _sign(sign, href)
    with _LOCK:
        if len(_URLS) >= _MOST:
            _URLS.clear()
        _URLS[key] = (now, url)
    return url


def _sign(sign: Sign, href: str) -> str:
    try:
        url: object = sign(href)
    except Exception as error:  # noqa: BLE001 - a user's function raises what it likes
        why = re.sub(r"\?[^\s'\")]+", "", f"{type(error).__name__}: {error}")
    else:
        if isinstance(url, str):
            return url
        why = f"it returns {type(url).__name__}, not text"
    label = display(href)
    raise ReadError(f"{label}: it could not be signed: {why}", href=label, transient=True, retries=0)
