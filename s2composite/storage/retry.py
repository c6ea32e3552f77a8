"""Retries: which failures may pass, how long to wait before the next attempt, and the loop that makes them."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeVar

__all__ = [
    "LOW_SPEED_LIMIT", "LOW_SPEED_TIME", "TRANSIENT", "AttemptError", "Retry", "backoff", "retry_after", "retrying",
    "retrying_async",
]  # fmt: skip

T = TypeVar("T")

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses after which the same request may succeed

_LONGEST_ASKED = 60.0  # seconds that a server may ask to wait before the next attempt

# Seconds without an answer, or of too few bytes, after which a connection counts as lost, and bytes a second that are
# too few, unless GDAL_HTTP_LOW_SPEED_TIME and GDAL_HTTP_LOW_SPEED_LIMIT say otherwise
LOW_SPEED_TIME, LOW_SPEED_LIMIT = 30.0, 1024.0


def _setting(name: str, default: float) -> float:
    """Return a number of the environment, the default where it is none that GDAL would take."""
    try:
        value = float(os.environ.get(name, ""))
    except ValueError:
        return default
    return value if value >= 0 and math.isfinite(value) else default


@dataclass(frozen=True, slots=True)
class Retry:
    """How failures that may pass are repeated: connection lost, timeout, 429, 5xx, short body.

    GDAL's variables for slow servers hold for the reads that do not go through GDAL, too.
    """

    attempts: int = 5  # in all, before giving up
    first_wait: float = 0.25  # seconds before the second attempt; doubles each time
    longest_wait: float = 8.0  # seconds at most between attempts, unless the server asks for more
    # Seconds after which a connection counts as lost: without a byte, without all headers of an answer, or with fewer
    # bytes than `least_rate` a second
    timeout: float = field(default_factory=lambda: _setting("GDAL_HTTP_LOW_SPEED_TIME", 0) or LOW_SPEED_TIME)
    # Bytes a second that must come on average over `timeout`; 0: any rate will do
    least_rate: float = field(default_factory=lambda: _setting("GDAL_HTTP_LOW_SPEED_LIMIT", LOW_SPEED_LIMIT))


@dataclass(eq=False)
class AttemptError(Exception):
    """One attempt failed."""

    why: str = ""
    _: KW_ONLY
    transient: bool = True  # another attempt may succeed
    wait: float = 0.0  # seconds that the server asks for
    refused: bool = False  # by its status the signature may have expired
    renewed: bool = False  # the next attempt has a new signature, so there is nothing to wait for
    missing: bool = False  # there is no such object
    forbidden: bool = False  # the place is not open to this process
    attempts: int = 1  # those that were made when it is the last one

    def __str__(self) -> str:
        return self.why


def backoff(failed: int, first: float, longest: float) -> float:
    """Return the seconds to wait after so many failed attempts; half of it is random, so that workers spread out."""
    return min(longest, first * 2.0 ** min(failed - 1, 63)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def retry_after(text: str) -> float:
    """Return the seconds of a ``Retry-After`` header; 0 for what says none."""
    return float(text) if re.fullmatch(r"[0-9]{1,9}", text.strip()) else 0.0


def retrying(attempt: Callable[[], T], retry: Retry, label: str, log: logging.Logger | None = None) -> tuple[T, int]:
    """Return what `attempt` gives and how often it failed before; it raises an `AttemptError` to be called again.

    The last `AttemptError` is let through. `log` gets a line for each wait, which names `label`.
    """
    failed = 0
    while True:
        try:
            return attempt(), failed
        except AttemptError as error:
            failed += 1
            time.sleep(_wait_after(error, failed, retry, label, log))


async def retrying_async(
    attempt: Callable[[], Awaitable[T]], retry: Retry, label: str, log: logging.Logger | None = None
) -> tuple[T, int]:
    """As `retrying`, of a coroutine function."""
    failed = 0
    while True:
        try:
            return await attempt(), failed
        except AttemptError as error:
            failed += 1
            await asyncio.sleep(_wait_after(error, failed, retry, label, log))


def _wait_after(error: AttemptError, failed: int, retry: Retry, label: str, log: logging.Logger | None) -> float:
    """Return the seconds to wait after an attempt that failed; raise its error if it was the last one."""
    error.attempts = failed
    if failed >= retry.attempts or not (error.transient or error.renewed):
        raise error
    if error.renewed:
        return 0.0
    wait = max(backoff(failed, retry.first_wait, retry.longest_wait), min(error.wait, _LONGEST_ASKED))
    if log is not None:
        facts = {"href": label, "attempt": failed}
        message = "%s: %s; attempt %d of %d failed, the next in %.1f s"
        log.warning(message, label, error, failed, retry.attempts, wait, extra={"facts": facts})
    return wait
