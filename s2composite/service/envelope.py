"""Envelope: a request as it was sent, bare or as Pub/Sub pushes it, and the window that it asks for."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, JsonValue, ValidationError

from s2composite.running.jobs.document import Strict
from s2composite.service.problems import Problem, ProblemError, invalid

__all__ = ["EXAMPLE", "PUSHED_EXAMPLE", "Delivery", "WindowRequest", "check_text", "delivered", "parsed_json"]

EXAMPLE: dict[str, JsonValue] = {
    "window": [0, 0, 1024, 1024],
    "destination": "gs://bucket/results/tile_0_0.tif",
    "datasets": [
        "gs://bucket/t31tcj/T31TCJ_20230102T104441_TCI.tif",
        "gs://bucket/t31tcj/T31TCJ_20230103T110349_TCI.tif",
    ],
}
"""A payload."""

PUSHED_EXAMPLE = {
    "message": {"data": base64.b64encode(json.dumps(EXAMPLE).encode()).decode(), "messageId": "7"},
    "subscription": "projects/my-project/subscriptions/windows",
}
"""The same as Pub/Sub pushes it."""

Whole = Annotated[int, Field(ge=0, le=10**7)]
Side = Annotated[int, Field(ge=1, le=10**6)]
Href = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]


class WindowRequest(Strict):
    """One window: the median of some scenes there, and where it goes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [EXAMPLE]},
    )

    window: Annotated[tuple[Whole, Whole, Side, Side], Field(strict=False)]
    """First column, first row, width and height, in pixels of the scenes."""

    destination: Href
    """The cloud-optimised GeoTIFF that is written: ``gs://``, ``s3://`` or a path, ending in ``.tif``."""

    datasets: Annotated[tuple[Href, ...], Field(strict=False, min_length=1)]
    """RGB scenes on one grid; of equal luminances the one listed first wins."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came in."""

    payload: Any
    """The payload, not checked yet."""

    message: str | None = None
    """Pub/Sub's id of the message; None where the payload came bare."""

    broken: Problem | None = None
    """Why a pushed message holds no payload: it would not the next time either."""

    @property
    def pushed(self) -> bool:
        """Whether Pub/Sub sent it, which reads any refusal as "try again"."""
        return self.message is not None

    def request(self, datasets: int) -> WindowRequest:
        """Return the window that is asked for, of at most some `datasets`.

        Raises
        ------
        ProblemError
            The payload is not one.
        """
        if self.broken is not None:
            raise ProblemError(self.broken)
        if not isinstance(self.payload, Mapping):
            raise ProblemError(Problem(422, "the payload is not an object with window, destination and datasets", ""))
        listed = self.payload.get("datasets")
        if isinstance(listed, list) and len(listed) > datasets:
            raise ProblemError(Problem(422, f"{len(listed)} datasets; at most {datasets} are taken", "/datasets"))
        try:
            return WindowRequest.model_validate(self.payload)
        except ValidationError as error:
            raise ProblemError(invalid(error, "window, destination, datasets")) from None


def delivered(body: bytes) -> Delivery:
    """Return what a body holds, a payload or Pub/Sub's envelope around one.

    Raises
    ------
    ProblemError
        It is not JSON, or an envelope that is not Pub/Sub's.
    """
    content = parsed_json(body)
    if not isinstance(content, Mapping) or "message" not in content:
        return Delivery(content)
    message = content["message"]
    if not isinstance(message, Mapping):
        raise ProblemError(Problem(400, "message: not an object; Pub/Sub sends {'message': {'data': ...}}", "/message"))
    number = str(message.get("messageId") or message.get("message_id") or "without id")[:100]
    data = message.get("data")
    if not isinstance(data, str):
        raise ProblemError(Problem(400, "message.data: is missing, or no text in base64", "/message/data"))
    try:
        return Delivery(parsed_json(base64.b64decode(data, validate=True)), number)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        return Delivery(None, number, Problem(422, f"message.data: not base64: {error}", "/message/data"))
    except ProblemError as error:
        told = f"message.data: {error.problem.detail}"
        return Delivery(None, number, Problem(422, told, "/message/data"))


def parsed_json(body: bytes) -> Any:
    """Return what a body of JSON holds.

    Raises
    ------
    ProblemError
        It is empty or not JSON; says where.
    """
    if not body.strip():
        raise ProblemError(Problem(400, "the body is empty; send JSON", ""))
    try:
        text = body.decode("utf-8-sig")
        content = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ProblemError(Problem(400, "the body is nested too deeply", "")) from None
    except UnicodeDecodeError as error:
        raise ProblemError(Problem(400, f"the body is not UTF-8 (byte {error.start})", "")) from None
    except ValueError as error:
        raise ProblemError(Problem(400, f"the body is not JSON: {error}", "")) from None
    if "\\u" in text:
        check_text(content)
    return content


def check_text(content: Any) -> None:
    r"""Refuse half a character (``\ud800``), which JSON and YAML can name and nothing can write.

    Raises
    ------
    ProblemError
        There is one.
    """
    try:
        json.dumps(content, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ProblemError(Problem(400, "the body has half a surrogate pair, which is no text", "")) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")
