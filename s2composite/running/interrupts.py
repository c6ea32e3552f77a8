"""Interrupts: a Ctrl-C is heeded, also one whose exception Python drops.

An exception that is raised in a destructor or in a callback of a weak reference or of the garbage collector, of which
Dask's futures have many, is printed at most, and the program goes on as if nobody had pressed a key.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Interrupts"]


class Interrupts:
    """Notes interrupts while it is open, a context manager; beside a handler there is, and in the main thread only."""

    def __init__(self) -> None:
        self._noted = False
        before = signal.getsignal(signal.SIGINT)
        self._before = before if _in_main_thread() and callable(before) else None

    def __enter__(self) -> Self:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A generator that is given up may be closed by any thread.
        if self._before is not None and _in_main_thread() and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._before)

    def require_none(self) -> None:
        """Raise KeyboardInterrupt if there has been one: who gets here has not been told."""
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = True
        if self._before is not None:
            self._before(signum, frame)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
