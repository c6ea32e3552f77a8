"""Logging: one line for each event, as ``key=value`` text or JSON, without secrets in URLs.

The library logs to `logging` under ``s2composite``; records may carry ``extra={"facts": {...}}``.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import sys
from typing import IO, Literal

from distributed import Client

from s2composite.storage.files import redact

__all__ = ["LogFormat", "LogFormatter", "forward_logs", "log_to_stderr"]

LogFormat = Literal["text", "json"]  # format of a line: ``key=value`` pairs, or a JSON object
_PLAIN = re.compile(r"[^\s\"=]+")  # values that need no quotes in a line of text


class LogFormatter(logging.Formatter):
    """Writes a record as one line: time, level, logger and message, then its facts, its worker and its traceback.

    Examples
    --------
    >>> record = logging.LogRecord("s2composite", logging.INFO, "", 0, "done", (), None)
    >>> record.facts = {"window": [3, 4], "error": "https://host/a.tif?sig=abc is damaged"}
    >>> LogFormatter("text").format(record).partition(" ")[2]
    'level=info logger=s2composite message=done window="[3, 4]" error="https://host/a.tif is damaged"'
    """

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        pairs = {"at": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        pairs |= getattr(record, "facts", {})
        worker = getattr(record, "worker", None)  # set by Dask in workers' records
        pairs |= {"worker": worker} if worker else {}
        pairs |= {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        if self._form == "json":
            return redact(json.dumps(pairs, default=str))
        words = []
        for key, value in pairs.items():
            text = redact(value if isinstance(value, str) else json.dumps(value, default=str))
            words.append(f"{key}={text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)}")
        return " ".join(words)


class _StderrHandler(logging.StreamHandler[IO[str]]):
    """Writes to the current stderr, so that lines appear above a progress bar."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.setStream(sys.stderr)
        super().emit(record)


def log_to_stderr(form: LogFormat) -> None:
    """Write the library's log records from INFO up to stderr, replacing earlier handlers."""
    handler = _StderrHandler()
    handler.setFormatter(LogFormatter(form))
    logger = logging.getLogger("s2composite")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def forward_logs(client: Client) -> None:
    """Forward workers' log records to the loggers here, if these have handlers."""
    if logging.getLogger("s2composite").hasHandlers():
        client.forward_logging("s2composite")
