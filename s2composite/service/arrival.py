"""Arrival: HTTP for callers who may be in no hurry: a connection whose request does not come in time is closed.

uvicorn waits for ever for the end of a header, and for the rest of a body that it has answered already. A thousand such
connections cost their owner nothing, and nobody else would be answered.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["prompt"]


def prompt(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol, with a limit to the time in which a request must have begun to be worked on."""

    class Prompt(H11Protocol):
        """HTTP/1.1; closes connections of which nothing is being worked on for too long."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._relax()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Begin to wait, unless that has begun, or a request is worked on."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._relax()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.close)

        def _relax(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Prompt
