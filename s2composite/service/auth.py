"""Auth: who may call. One token for all, shown as a bearer or, by browsers that only look, as a password."""

from __future__ import annotations

import base64
import hmac
import logging
import time
from collections.abc import Mapping
from threading import Lock

import httpx
from google.auth import jwt
from google.auth.exceptions import GoogleAuthError

from s2composite.service.settings import PushOptions

__all__ = ["PushKeys", "is_pushed_by", "shows_token"]

LOG = logging.getLogger(__name__)

_KEYS_FRESH = 3600.0
"""Seconds after which the signer's public keys are fetched again: they change every few days."""

_KEYS_AGAIN = 30.0
"""Seconds before they are asked for again where they could not be fetched."""

_ISSUERS = ("https://accounts.google.com", "accounts.google.com")


def shows_token(header: str, token: str, *, looking: bool) -> bool:
    """Return whether an ``Authorization`` header shows the token.

    Parameters
    ----------
    header
        Its value, empty if there is none.
    token
        What it must show.
    looking
        Whether the request changes nothing. A browser adds a password that it knows to whatever any page makes it
        send, so a password is only taken for looking.

    Examples
    --------
    >>> shows_token("Bearer 0123456789abcdef", "0123456789abcdef", looking=False)
    True
    """
    scheme, _, value = header.partition(" ")
    shown = value.strip()
    if scheme.lower() == "basic" and looking:
        try:
            shown = base64.b64decode(shown, validate=True).decode().partition(":")[2]
        except ValueError:  # not ASCII, not base64, not UTF-8
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(shown.encode(), token.encode())


class PushKeys:
    """The public keys of whoever signs Pub/Sub's tokens, fetched when they are needed and kept for an hour.

    Where they cannot be fetched the old ones are kept, and nobody asks for a while: any stranger can cause a look.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._held: Mapping[str, str] = {}
        self._next = 0.0
        self._lock = Lock()

    def get(self) -> Mapping[str, str]:
        """Return certificates by their id; none before they could be fetched."""
        with self._lock:
            if time.monotonic() >= self._next:
                try:
                    self._held = dict(httpx.get(self._url, timeout=10).raise_for_status().json())
                    self._next = time.monotonic() + _KEYS_FRESH
                except (httpx.HTTPError, ValueError, TypeError) as error:
                    LOG.warning("the keys of who pushes cannot be fetched: %s", type(error).__name__)
                    self._next = time.monotonic() + _KEYS_AGAIN
            return self._held


def is_pushed_by(header: str, push: PushOptions, keys: PushKeys) -> bool:
    """Return whether an ``Authorization`` header holds a valid token of the account that pushes."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "bearer" or value.count(".") != 2:
        return False
    try:
        facts = jwt.decode(value, certs=keys.get(), audience=push.audience)  # type: ignore[no-untyped-call]
    except (GoogleAuthError, ValueError, LookupError, TypeError, AttributeError):  # the last ones: JSON of other shapes
        return False
    known = facts.get("iss") in _ISSUERS and facts.get("email_verified") is True
    return known and hmac.compare_digest(str(facts.get("email", "")).encode(), push.email.encode())
