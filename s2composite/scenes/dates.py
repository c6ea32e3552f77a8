"""Dates as users write them: a moment, a day, a month, a year, or an interval of these. Everything is UTC."""

from __future__ import annotations

import datetime as dt
import re
from calendar import monthrange
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from s2composite.errors import ParameterError

__all__ = ["DateRange", "Moment", "date_range", "solar_day", "utc_day", "utc_time"]

Moment: TypeAlias = Any
"""A date or datetime object (also of NumPy or pandas), text, or a year; None leaves an end of an interval open."""

_TICK = dt.timedelta(microseconds=1)
_FORM = '"2023", "2023-06", "2023-06-15", "2023-06-15T10:46:29Z"'
_INTERVAL = 'or an interval such as "2023-06-01/2023-08-31" or "2023-06-01/.."'
_YEAR_OR_MONTH = re.compile(r"(\d{4})(?:-(\d{2}))?")
_TO_THE_SECOND = re.compile(r"[T ]\d{2}:?\d{2}:?\d{2}(?![\d.,])")
_TO_THE_MINUTE = re.compile(r"[T ]\d{2}:?\d{2}(?![\d:])")


@dataclass(frozen=True, slots=True)
class DateRange:
    """An interval of time, both ends included."""

    first: dt.datetime | None
    """Earliest moment, UTC; None: no limit."""

    last: dt.datetime | None
    """Latest moment, UTC; None: no limit."""

    def __contains__(self, time: dt.datetime) -> bool:
        return (self.first is None or self.first <= time) and (self.last is None or time <= self.last)

    def __str__(self) -> str:
        return "/".join(".." if end is None else _brief(end) for end in (self.first, self.last))


def utc_time(value: dt.date | str) -> dt.datetime:
    """Return a moment given as a datetime, date or ISO 8601 text in UTC; without a time zone it is taken as UTC.

    Raises
    ------
    ParameterError
        The text is not a date.

    Examples
    --------
    >>> utc_time("2023-07-09T12:46:29+02:00")
    datetime.datetime(2023, 7, 9, 10, 46, 29, tzinfo=datetime.timezone.utc)
    """
    # pandas' NaT is a datetime, too, whose text is no date
    known = value if isinstance(value, dt.datetime) and str(value) != "NaT" else None
    try:
        time = known or dt.datetime.fromisoformat(str(value).strip())
        return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise ParameterError(f"{value!r} is not a date; write it like {_FORM}") from None


def utc_day(time: dt.datetime) -> dt.date:
    """Return the day of a moment in UTC.

    Examples
    --------
    >>> utc_day(dt.datetime(2023, 6, 2, 2, 57, tzinfo=dt.UTC))
    datetime.date(2023, 6, 2)
    """
    return time.astimezone(dt.UTC).date()


def solar_day(time: dt.datetime, longitude: float) -> dt.date:
    """Return the solar day of a moment: the day in UTC shifted by four minutes for each degree to the east.

    A pass of a satellite lies in one solar day everywhere; in UTC it may span two, near the antimeridian. The shift is
    in whole seconds, as in Open Data Cube.

    Parameters
    ----------
    time
        The moment, with a time zone.
    longitude
        Degrees, positive to the east; 190 is -170.

    Examples
    --------
    >>> solar_day(dt.datetime(2023, 6, 1, 23, 50, tzinfo=dt.UTC), 170.0)
    datetime.date(2023, 6, 2)
    """
    east = longitude if -180 <= longitude <= 180 else (longitude + 180) % 360 - 180
    return (time.astimezone(dt.UTC) + dt.timedelta(seconds=int(east * 240))).date()


def date_range(value: Moment | Sequence[Moment]) -> DateRange:
    """Return the interval that a date, or a pair of dates, stands for.

    Parameters
    ----------
    value
        ``"2023"``, ``"2023-06"`` and ``"2023-06-15"`` stand for the whole year, month or day,
        ``"2023-06-15T10:46:29Z"`` for that second; a number is read as text, a date object stands for that day, a
        datetime object for that moment.
        An interval is ``"a/b"``, a pair ``(a, b)`` or ``slice(a, b)`` of these, both included; ``".."`` or nothing (in
        a pair also None) leaves an end open.

    Raises
    ------
    ParameterError
        The value is malformed, or ends before it begins.

    Examples
    --------
    >>> print(date_range("2023-06/2023-08"))
    2023-06-01/2023-08-31
    """
    first, last = _ends(value)
    found = DateRange(
        None if _is_open(first) else _span(first, value)[0], None if _is_open(last) else _span(last, value)[1]
    )
    if found.first is not None and found.last is not None and found.first > found.last:
        raise ParameterError(f"datetime {value!r} ends before it begins; write the earlier date first")
    return found


def _ends(value: Moment | Sequence[Moment]) -> tuple[Moment, Moment]:
    """Split `value` into its two ends; a single date is both."""
    parts: Any = (value,)
    if isinstance(value, str):
        parts = value.split("/")
    elif isinstance(value, slice) and value.step is None:
        parts = (value.start, value.stop)
    elif isinstance(value, Iterable):
        parts = tuple(value)
    if len(parts) not in (1, 2) or all(map(_is_open, parts)):
        raise _malformed(value)
    return parts[0], parts[-1]


def _is_open(end: Moment) -> bool:
    return end is None or (isinstance(end, str) and end.strip() in ("", ".."))


def _span(end: Moment, value: object) -> tuple[dt.datetime, dt.datetime]:
    """Return the first and last moment of the year, month, day or second that an end names."""
    try:
        if isinstance(end, dt.datetime):
            return utc_time(end), utc_time(end)
        text = str(end).strip()
        if match := _YEAR_OR_MONTH.fullmatch(text):
            return _year_or_month(int(match[1]), match[2])
        first = utc_time(text)
        return first, first + (_precision(text) - _TICK)
    except (ParameterError, ValueError, OverflowError):
        raise _malformed(value) from None


def _year_or_month(year: int, month: str | None) -> tuple[dt.datetime, dt.datetime]:
    first = dt.datetime(year, int(month or 1), 1, tzinfo=dt.UTC)
    last_month = int(month or 12)
    last_day = dt.date(year, last_month, monthrange(year, last_month)[1])
    return first, dt.datetime.combine(last_day, dt.time.max, dt.UTC)


def _precision(text: str) -> dt.timedelta:
    """Return the duration that a text names: a day, a minute, a second, or with a fraction of one an instant."""
    if len(text) <= 10:
        return dt.timedelta(days=1)
    if _TO_THE_SECOND.search(text):
        return dt.timedelta(seconds=1)
    return dt.timedelta(minutes=1) if _TO_THE_MINUTE.search(text) else _TICK


def _malformed(value: object) -> ParameterError:
    return ParameterError(f"datetime {value!r} is not a date or an interval; write {_FORM}, {_INTERVAL}")


def _brief(time: dt.datetime) -> str:
    """Return a time as text; as a day if it is the first or last moment of one."""
    whole_day = time.timetz().replace(tzinfo=None) in (dt.time.min, dt.time.max)
    return f"{time:%Y-%m-%d}" if whole_day else f"{time:%Y-%m-%dT%H:%M:%SZ}"
