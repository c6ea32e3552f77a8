"""Store: jobs and dead letters in a database, so that they survive the service. SQLite unless told otherwise."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from s2composite.errors import ParameterError
from s2composite.service.problems import scrubbed

__all__ = ["ENDED", "DeadLetter", "JobRow", "Store"]

ENDED = ("complete", "failed", "cancelled")
"""States in which nothing more happens by itself; the others are ``"queued"`` and ``"running"``."""

_LETTERS = 10_000
"""Dead letters that are kept; the oldest go first."""

_META = sa.MetaData()

_JOBS = sa.Table(
    "jobs",
    _META,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("created", sa.String(32), nullable=False, index=True),
    sa.Column("started", sa.String(32)),
    sa.Column("ended", sa.String(32)),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("which", sa.String(16), nullable=False),
    sa.Column("error", sa.Text),
)

_DEAD = sa.Table(
    "dead_letters",
    _META,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("message", sa.String(100), nullable=False),
    sa.Column("problem", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as it is kept."""

    id: str
    """UUID."""

    state: str
    """``"queued"``, ``"running"``, ``"complete"``, ``"failed"`` or ``"cancelled"``."""

    document: str
    """The job, as JSON."""

    created: str
    """Time it came, ISO 8601, UTC."""

    started: str | None
    """Time it was begun the last time."""

    ended: str | None
    """Time it ended."""

    attempts: int
    """How often it was begun."""

    which: str
    """Which windows its next run makes, see `run_job`."""

    error: str | None
    """Why it failed."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A pushed message that can never succeed."""

    at: str
    """Time, ISO 8601, UTC."""

    message: str
    """Pub/Sub's id of it."""

    problem: Mapping[str, Any]
    """What is wrong, as RFC 9457 has it."""

    payload: str
    """What it held, without signatures of URLs."""


class Store:
    """The database; safe to use from several threads.

    Parameters
    ----------
    url
        SQLAlchemy's.

    Raises
    ------
    ParameterError
        It cannot be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                sa.event.listen(self._engine, "connect", _prepare_sqlite)
            _META.create_all(self._engine)
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            shown = scrubbed(url.partition("@")[2] or url)
            told = str(error).partition("\n")[0]
            raise ParameterError(f"database {shown}: cannot be opened: {scrubbed(told)}") from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # --- jobs -------------------------------------------------------------------------------------------------------

    def add(self, number: str, document: str, waiting: int) -> bool:
        """Add a job to the queue; return False if `waiting` jobs wait already."""
        with self._engine.begin() as connection:
            queued = sa.select(sa.func.count()).select_from(_JOBS).where(_JOBS.c.state == "queued")
            if int(connection.execute(queued).scalar_one()) >= waiting:
                return False
            row = {"id": number, "state": "queued", "document": document, "created": _now()}
            connection.execute(_JOBS.insert().values(**row, attempts=0, which="missing"))
            return True

    def get(self, number: str) -> JobRow | None:
        """Return a job, None if there is none of that id."""
        with self._engine.connect() as connection:
            row = connection.execute(_JOBS.select().where(_JOBS.c.id == number)).one_or_none()
        return None if row is None else JobRow(*row)

    def jobs(self, limit: int, offset: int = 0) -> tuple[JobRow, ...]:
        """Return jobs, the newest first."""
        newest = _JOBS.select().order_by(_JOBS.c.created.desc(), _JOBS.c.id).limit(limit).offset(offset)
        with self._engine.connect() as connection:
            return tuple(JobRow(*row) for row in connection.execute(newest))

    def claim(self) -> JobRow | None:
        """Take the job that has waited longest, which then is running; None if none waits."""
        oldest = _JOBS.select().where(_JOBS.c.state == "queued").order_by(_JOBS.c.created, _JOBS.c.id).limit(1)
        with self._engine.begin() as connection:
            row = connection.execute(oldest).one_or_none()
            if row is None:
                return None
            mine = (_JOBS.c.id == row.id) & (_JOBS.c.state == "queued")
            values = {"state": "running", "started": _now(), "ended": None, "error": None}
            taken = connection.execute(_JOBS.update().where(mine).values(**values, attempts=row.attempts + 1))
            if taken.rowcount == 0:  # cancelled in between
                return None
        return self.get(row.id)

    def move(self, number: str, before: tuple[str, ...], state: str, **facts: Any) -> bool:
        """Bring a job from one of some states into another; return whether it was in one of those."""
        facts |= {"ended": _now()} if state in ENDED else {}
        there = (_JOBS.c.id == number) & _JOBS.c.state.in_(before)
        with self._engine.begin() as connection:
            return connection.execute(_JOBS.update().where(there).values(state=state, **facts)).rowcount > 0

    def requeue(self) -> int:
        """Put jobs that were running when the service ended back into the queue; return how many."""
        running = _JOBS.update().where(_JOBS.c.state == "running").values(state="queued")
        with self._engine.begin() as connection:
            return connection.execute(running).rowcount

    # --- dead letters -----------------------------------------------------------------------------------------------

    def bury(self, message: str, problem: Mapping[str, Any], payload: Any) -> None:
        """Keep a message that can never succeed."""
        held = {"at": _now(), "message": message, "problem": json.dumps(problem)}
        with self._engine.begin() as connection:
            made = connection.execute(_DEAD.insert().values(**held, payload=scrubbed(json.dumps(payload))))
            assert made.inserted_primary_key is not None
            newest = int(made.inserted_primary_key[0])
            connection.execute(_DEAD.delete().where(_DEAD.c.id <= newest - _LETTERS))

    def letters(self, limit: int) -> tuple[DeadLetter, ...]:
        """Return dead letters, the newest first."""
        newest = _DEAD.select().order_by(_DEAD.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            rows = list(connection.execute(newest))
        return tuple(DeadLetter(row.at, row.message, json.loads(row.problem), row.payload) for row in rows)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Let readers and a writer not wait for each other, and what is written be on the disk."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
