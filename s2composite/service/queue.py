"""The queue of jobs, and the dead letters (messages that can never succeed), kept in a database across restarts."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from s2composite.errors import ParameterError
from s2composite.storage.files import redact

__all__ = ["ENDED", "JobRow", "JobStore"]

# Final states; the others are ``"queued"`` and ``"running"``.
ENDED = ("complete", "failed", "cancelled")

_MAX_DEAD_LETTERS = 10_000  # dead letters to keep; the oldest are removed first
_MAX_PAYLOAD = 1 << 18  # characters to keep of a dead letter's payload; enough for 1500 scenes
_LOCK = 0x5332434F  # number of the PostgreSQL lock held by the service that runs jobs

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
    """A stored job. Times are ISO 8601, UTC."""

    id: str  # UUID
    state: str  # "queued", "running", "complete", "failed" or "cancelled"
    document: str  # the job, as JSON
    created: str
    started: str | None  # start of the last attempt
    ended: str | None
    attempts: int  # number of attempts
    which: str  # windows that its next run computes, see `run`
    error: str | None  # why it failed


class JobStore:
    """The database at a URL of SQLAlchemy's; safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self._lock = ExitStack()
        try:
            # Errors would show data of a job, which belongs to the caller.
            self._engine = sa.create_engine(url, hide_parameters=True)
            if self._engine.dialect.name == "sqlite":
                sa.event.listen(self._engine, "connect", _prepare_sqlite)
            _META.create_all(self._engine)
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            name, message = redact(url.partition("@")[2] or url), redact(str(error).partition("\n")[0])
            raise ParameterError(f"database {name}: cannot be opened: {message}") from error

    def lock(self) -> None:
        """Reserve the jobs of this database for this service, until `close` or the end of the process.

        Of two services, each would treat the other's running jobs as interrupted, and run them again to the same files.
        """
        kind, name = self._engine.dialect.name, self._engine.url.database
        locked = True
        if kind == "sqlite" and name and name != ":memory:":
            file = self._lock.enter_context(Path(f"{name}.lock").open("w"))  # noqa: SIM115 - the exit stack closes it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked = False
        elif kind == "postgresql":
            # The lock belongs to the connection, so keep it open.
            options = {"isolation_level": "AUTOCOMMIT"}
            connection = self._lock.enter_context(self._engine.connect().execution_options(**options))
            locked = bool(connection.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK))).scalar_one())
        if not locked:
            self.close()
            raise ParameterError(
                f"database {name}: another service runs jobs from it; stop that one, or name another database"
            )

    def close(self) -> None:
        """Close all connections."""
        self._lock.close()
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
        """Return the job with an id, or None."""
        with self._engine.connect() as connection:
            row = connection.execute(_JOBS.select().where(_JOBS.c.id == number)).one_or_none()
        return None if row is None else JobRow(*row)

    def job_count(self) -> int:
        """Return the number of jobs."""
        return self._count(_JOBS)

    def jobs(self, limit: int, offset: int = 0) -> tuple[JobRow, ...]:
        """Return jobs, newest first."""
        newest = _JOBS.select().order_by(_JOBS.c.created.desc(), _JOBS.c.id).limit(limit).offset(offset)
        with self._engine.connect() as connection:
            return tuple(JobRow(*row) for row in connection.execute(newest))

    def claim(self) -> JobRow | None:
        """Take the job that has waited longest and mark it as running; None if none is waiting."""
        oldest = _JOBS.select().where(_JOBS.c.state == "queued").order_by(_JOBS.c.created, _JOBS.c.id).limit(1)
        with self._engine.begin() as connection:
            row = connection.execute(oldest).one_or_none()
            if row is None:
                return None
            mine = (_JOBS.c.id == row.id) & (_JOBS.c.state == "queued")
            values = {"state": "running", "started": _now(), "ended": None, "error": None}
            taken = connection.execute(_JOBS.update().where(mine).values(**values, attempts=row.attempts + 1))
            if taken.rowcount == 0:  # cancelled in the meantime
                return None
        return self.get(row.id)

    def transition(self, number: str, before: tuple[str, ...], state: str, **values: Any) -> bool:
        """Move a job from one of several states to another; return whether it was in one of them."""
        values |= {"ended": _now()} if state in ENDED else {}
        return self._update((_JOBS.c.id == number) & _JOBS.c.state.in_(before), state=state, **values) > 0

    def is_current(self, row: JobRow) -> bool:
        """Return whether a job is unchanged since `claim`: neither cancelled nor started again."""
        now = self.get(row.id)
        return now is not None and (now.state, now.attempts) == ("running", row.attempts)

    def finish(self, row: JobRow, state: str, error: str | None) -> None:
        """Record the end of a claimed job, unless it was cancelled or started again since."""
        mine = (_JOBS.c.id == row.id) & (_JOBS.c.state == "running") & (_JOBS.c.attempts == row.attempts)
        self._update(mine, state=state, error=error, ended=_now())

    def requeue(self) -> int:
        """Requeue jobs that were running when the service ended; return their number."""
        return self._update(_JOBS.c.state == "running", state="queued")

    def _update(self, which: sa.ColumnElement[bool], /, **values: Any) -> int:
        with self._engine.begin() as connection:
            return connection.execute(_JOBS.update().where(which).values(**values)).rowcount

    # --- dead letters -----------------------------------------------------------------------------------------------

    def add_dead_letter(self, message: str, problem: Mapping[str, Any], payload: Any) -> None:
        """Store a message that can never succeed; remove the oldest above the limit."""
        text = redact(json.dumps(payload))[:_MAX_PAYLOAD]
        row = {"at": _now(), "message": message, "problem": json.dumps(problem), "payload": text}
        with self._engine.begin() as connection:
            made = connection.execute(_DEAD.insert().values(**row))
            assert made.inserted_primary_key is not None
            newest = int(made.inserted_primary_key[0])
            connection.execute(_DEAD.delete().where(_DEAD.c.id <= newest - _MAX_DEAD_LETTERS))

    def dead_letter_count(self) -> int:
        """Return the number of dead letters."""
        return self._count(_DEAD)

    def dead_letters(self, limit: int) -> list[dict[str, Any]]:
        """Return dead letters, newest first: time, Pub/Sub's id, problem details (RFC 9457), and payload.

        Signatures of URLs are removed from the payload, and a payload too long for a window is truncated.
        """
        columns = (_DEAD.c.at, _DEAD.c.message, _DEAD.c.problem, _DEAD.c.payload)
        newest = sa.select(*columns).order_by(_DEAD.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [{**row, "problem": json.loads(row["problem"])} for row in connection.execute(newest).mappings()]

    def _count(self, table: sa.Table) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Configure SQLite so that readers and a writer do not block each other, and writes are durable."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
