"""Sending: windows handed to a service, over HTTP or through Pub/Sub, a bounded number at a time, tried again."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google.auth
import httpx
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request as GoogleRequest

from s2composite.errors import ServiceError
from s2composite.service.problems import scrubbed

__all__ = ["Patience", "Sent", "Tile", "post_tiles", "publish_tiles"]

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

_BATCH = 100
"""Messages that are published at once: with 216 scenes in each they take 2 of the 10 MB that Pub/Sub takes."""

_SCOPE = "https://www.googleapis.com/auth/pubsub"


@dataclass(frozen=True, slots=True)
class Tile:
    """One window of a job, as it is sent."""

    position: tuple[int, int]
    """Row and column of windows."""

    payload: Mapping[str, Any]
    """What is posted: ``window``, ``destination``, ``datasets``."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one attempt."""

    tile: Tile
    """The window."""

    attempt: int
    """Number of the attempt, from 1."""

    seconds: float
    """Time it took."""

    error: str | None = None
    """Why it failed; None: it is made."""

    final: bool = True
    """Whether no further attempt follows."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How many windows are under way, and how failures are repeated."""

    concurrency: int = 16
    """Windows at a time."""

    attempts: int = 8
    """Attempts for each."""

    timeout: float = 600.0
    """Seconds for an answer."""

    pause: float = 1.0
    """Seconds before the second attempt; doubles, up to a minute, unless the service asks for more."""


async def post_tiles(
    tiles: Sequence[Tile], url: str, token: str | None, patience: Patience, note: Callable[[Sent], None]
) -> None:
    """Post tiles to a service and note what becomes of each attempt.

    Parameters
    ----------
    tiles
        The windows.
    url
        Of the endpoint, ``https://host/median``.
    token
        What the service wants to see; None: nothing.
    patience
        How many at a time, how often.
    note
        Called with every attempt's end, in this thread.
    """
    waiting = iter(tiles)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=patience.concurrency, max_keepalive_connections=patience.concurrency)
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=patience.timeout) as client:

        async def work() -> None:
            for tile in waiting:
                await _persist(client, url, tile, patience, note)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(patience.concurrency, len(tiles))):
                group.create_task(work())


async def _persist(
    client: httpx.AsyncClient, url: str, tile: Tile, patience: Patience, note: Callable[[Sent], None]
) -> None:
    for attempt in range(1, patience.attempts + 1):
        start, wait = time.perf_counter(), 0.0
        try:
            answer = await client.post(url, json=tile.payload)
            error = None if answer.status_code == httpx.codes.NO_CONTENT else _words(answer)
            again = answer.status_code in _AGAIN
            asked = answer.headers.get("retry-after", "")
            wait = float(asked) if asked.isdecimal() else 0.0
        except httpx.HTTPError as problem:
            error, again = f"{type(problem).__name__}: {scrubbed(str(problem))}", True
        final = error is None or not again or attempt == patience.attempts
        note(Sent(tile, attempt, time.perf_counter() - start, error, final))
        if final:
            return
        pause = min(60.0, patience.pause * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        await asyncio.sleep(max(pause, min(wait, 60.0)))


def _words(answer: httpx.Response) -> str:
    """Return what a service says is wrong."""
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = answer.reason_phrase
    return f"the service answers {answer.status_code}: {scrubbed(detail)[:1000]}"


def publish_tiles(tiles: Sequence[Tile], topic: str, patience: Patience) -> None:
    """Publish tiles to a Pub/Sub topic, whose subscription pushes them to a service.

    ``PUBSUB_EMULATOR_HOST`` names an emulator, as for Google's own clients.

    Parameters
    ----------
    topic
        ``projects/PROJECT/topics/TOPIC``.

    Raises
    ------
    ServiceError
        It cannot be published to.
    """
    emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
    base = f"http://{emulator}" if emulator else "https://pubsub.googleapis.com"
    headers = {} if emulator else {"Authorization": f"Bearer {_google_token()}"}
    with httpx.Client(base_url=base, headers=headers, timeout=60.0) as client:
        for batch in _batches(tiles):
            messages = [{"data": base64.b64encode(json.dumps(t.payload).encode()).decode()} for t in batch]
            _publish(client, topic, messages, patience)


def _publish(client: httpx.Client, topic: str, messages: list[dict[str, str]], patience: Patience) -> None:
    for attempt in range(1, patience.attempts + 1):
        try:
            answer = client.post(f"/v1/{topic}:publish", json={"messages": messages})
            error, again = f"status {answer.status_code}", answer.status_code in _AGAIN
            if answer.is_success:
                return
        except httpx.HTTPError as problem:
            error, again = f"{type(problem).__name__}: {problem}", True
        if not again or attempt == patience.attempts:
            break
        time.sleep(min(60.0, patience.pause * 2 ** (attempt - 1)))
    raise ServiceError(f"{topic}: cannot be published to: {error}; check its name and your rights (pubsub.publisher)")


def _google_token() -> str:
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
        credentials.refresh(GoogleRequest())  # type: ignore[no-untyped-call] # google-auth's
    except GoogleAuthError as error:
        raise ServiceError(f"no Google credentials to publish with: {error}") from error
    return str(credentials.token)


def _batches(tiles: Sequence[Tile]) -> Iterator[Sequence[Tile]]:
    for start in range(0, len(tiles), _BATCH):
        yield tiles[start : start + _BATCH]
