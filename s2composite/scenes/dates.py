"""Dates as users write them, and the periods that each make one composite. Everything is UTC.

Periods are calendar periods, runs of days, seasons or rolling windows. A scene belongs to a period by its day,
which `day_of` counts
in UTC or mean solar time. The first day of a period is part of it, its end is not.
"""

from __future__ import annotations

import datetime as dt
import re
from calendar import monthrange
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any, Literal, TypeAlias, cast

from s2composite.errors import ParameterError

__all__ = [
    "DateRange",
    "Day",
    "Moment",
    "Period",
    "PeriodSpec",
    "date_range",
    "day_of",
    "find_periods",
    "period_title",
    "solar_day",
    "utc_day",
    "utc_time",
]

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


Day: TypeAlias = Literal["utc", "solar"]
"""How the day of a scene is counted: in UTC, or in mean solar time at the centre of the cube."""

PeriodSpec: TypeAlias = "str | int | Sequence[object] | Mapping[str, object]"
"""One specification or several; see `find_periods`."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_QUARTER = re.compile(r"(\d{4})-(Q[1-4])")
_LABEL = re.compile(
    r"(?P<first>\d{4}(?:-\d{2}){0,2})(?:--P(?P<n>\d{1,5})(?P<unit>[DMY])|_(?P<last>\d{4}-\d{2}-\d{2}))?"
)
"""Labels that `find_periods` gives, but for quarters."""


@dataclass(frozen=True, slots=True)
class Period:
    """A run of whole days."""

    label: str
    """Short name, safe in file names: ``"2023-06"``, ``"2023-Q2"``, ``"2022-12--P3M"``."""

    start: dt.date
    """First day."""

    end: dt.date
    """Day after the last."""

    def __contains__(self, day: dt.date) -> bool:
        return self.start <= day < self.end


def day_of(time: dt.datetime, day: Day = "utc", longitude: float = 0.0) -> dt.date:
    """Return the day of a moment, `utc_day` or `solar_day` at a longitude in degrees east.

    Examples
    --------
    >>> time = dt.datetime(2023, 6, 30, 23, 50, tzinfo=dt.timezone.utc)
    >>> day_of(time).isoformat(), day_of(time, "solar", 150.0).isoformat()
    ('2023-06-30', '2023-07-01')
    """
    return solar_day(time, longitude) if day == "solar" else utc_day(time)


def period_title(label: str) -> str:
    """Return what people call a period, for plots and pages; the label, which files and selections need, is ISO 8601.

    Parameters
    ----------
    label
        Label of a `Period`; one that its user chose is returned as it is.

    Examples
    --------
    >>> [period_title(label) for label in ("2023", "2023-06", "2023-Q2", "2022-12--P3M", "2023-06-01--P10D")]
    ['2023', 'Jun 2023', 'Q2 2023', 'Dec 2022-Feb 2023', '1-10 Jun 2023']
    >>> [period_title(label) for label in ("2023-05-20_2023-08-31", "2020--P3Y", "2023-06-09", "dry season")]
    ['20 May-31 Aug 2023', '2020-2022', '9 Jun 2023', 'dry season']
    """
    if quarter := _QUARTER.fullmatch(label):
        return f"{quarter[2]} {quarter[1]}"
    try:
        period = _labelled(label)
    except (ParameterError, ValueError, OverflowError):
        return label
    return label if period is None else _in_words(period.start, period.end)


def _labelled(label: str) -> Period | None:
    """Return the period of a label that `find_periods` gives; None for any other."""
    match = _LABEL.fullmatch(label)
    if match is None:
        return None
    if match["n"] is not None:
        start, length = _first_day(match["first"]), _length(match)
        return Period(label, start, start + dt.timedelta(days=length)) if _in_days(match) else _months(start, length)
    return _interval((match["first"], match["last"]) if match["last"] else match["first"])


def _in_words(start: dt.date, end: dt.date) -> str:
    """Return the days of a period in words: whole years and months by their names, else the first and the last day."""
    last = end - dt.timedelta(days=1)
    if start.day == end.day == 1:
        if start.month == end.month == 1:
            return _joined([[f"{start:%Y}"], [f"{last:%Y}"]])
        return _joined([[_month(day), f"{day:%Y}"] for day in (start, last)])
    return _joined([[str(day.day), _month(day), f"{day:%Y}"] for day in (start, last)])


def _month(day: dt.date) -> str:
    return _MONTHS[day.month - 1].capitalize()  # %b depends on the locale


def _joined(ends: list[list[str]]) -> str:
    """Return two ends, each from its smallest part to its year, without saying twice what they share."""
    first, last = ends
    shared = 0
    while shared < len(first) and first[-1 - shared] == last[-1 - shared]:
        shared += 1
    if shared == len(first):
        return " ".join(last)
    return f"{' '.join(first[: len(first) - shared])}-{' '.join(last)}"


def find_periods(spec: PeriodSpec, first: dt.date, last: dt.date) -> tuple[Period, ...]:
    """Return the periods that a specification stands for, given the days of the first and last scene.

    Parameters
    ----------
    spec
        - ``"month"``, ``"quarter"``, ``"year"`` of the calendar, ``"season"`` (December to February and so on),
          ``"day"``, ``"dekad"`` (days 1 to 10, 11 to 20 and the rest of each month), ``"all"``; also the names of
          odc-stats: ``annual``, ``annual-fy`` (from July), ``semiannual``, ``quarterly``, ``seasonal``,
          ``rolling-3months`` (any number: one period begins each month), ``nov-mar`` (any two months: that season of
          each year).
        - ``"10D"``, ``"2W"``, ``"3M"``, ``"1Y"`` or the same in ISO 8601 (``"P10D"``): runs of that length. Days and
          weeks are counted from January 1st of the first scene's year, or from a day that is given
          (``"R/2023-03-21/P10D"``); months and years from the January before the first scene.
        - pandas' names of calendar periods, ``"MS"``, ``"QE"``, ``"QS-DEC"`` (seasons), ``"YS"``, ``"2MS"``, and its
          offsets; the label is the period's own, whichever end the name stands for.
        - One period: ``"2023"``, ``"2023-06"``, ``"2023-06-01/2023-08-31"`` (both included), ``"2020-12--P3M"``,
          ``"2020-12/P3M"``.
        - A list of such, which may overlap and stay in their order, pairs ``(first, last)`` among them, or a mapping
          from labels to them.
    first, last
        Days of the first and last scene; repeated periods run from the one that holds the first day to the one that
        holds the last.

    Raises
    ------
    ParameterError
        The specification is not understood, or two periods have the same label.

    Examples
    --------
    >>> [p.label for p in find_periods("season", dt.date(2023, 1, 5), dt.date(2023, 6, 1))]
    ['2022-12--P3M', '2023-03--P3M', '2023-06--P3M']
    """
    found = tuple(_expanded(spec, first, last))
    twice = [label for label, times in Counter(period.label for period in found).items() if times > 1]
    if twice:
        raise ParameterError(f"two periods are called {twice[0]!r}; give a mapping from labels to periods")
    if not found:
        raise ParameterError(f"period {spec!r} holds no period; {_FORMS}")
    return found


_FORMS = (
    "write day, month, dekad, quarter, season, year, all, a length such as 10D or 3M, an interval such as "
    "2023-06-01/2023-08-31 or 2023-06--P3M, annual, annual-fy, semiannual, rolling-3months, nov-mar, or a list of these"
)


def _expanded(spec: object, first: dt.date, last: dt.date) -> Iterator[Period]:
    if isinstance(spec, Mapping):
        for label, one in spec.items():
            yield _renamed(str(label), one, first, last)
    elif isinstance(spec, Iterable) and not isinstance(spec, str):
        for one in spec:
            yield from _pair(one) if _is_pair(one) else _named(one, first, last)
    else:
        yield from _named(spec, first, last)


def _renamed(label: str, spec: object, first: dt.date, last: dt.date) -> Period:
    found = tuple(_pair(spec) if _is_pair(spec) else _named(spec, first, last))
    if len(found) != 1 or set(label) & set("/\\") or not label.strip():
        why = "its label cannot be part of a file name" if len(found) == 1 else f"{spec!r} is {len(found)} periods"
        raise ParameterError(f"period {label!r}: {why}; a mapping gives each label one period")
    return Period(label, found[0].start, found[0].end)


def _is_pair(spec: object) -> bool:
    return isinstance(spec, Sequence) and not isinstance(spec, str) and len(spec) == 2


def _pair(spec: object) -> Iterator[Period]:
    assert isinstance(spec, Sequence)
    yield _interval((spec[0], spec[1]))


def _named(spec: object, first: dt.date, last: dt.date) -> Iterator[Period]:
    ends = [getattr(spec, name, None) for name in ("start_time", "end_time")]  # of a Period of pandas
    if all(isinstance(end, dt.datetime) for end in ends):
        return _pair([cast("dt.datetime", end).date() for end in ends])
    spec = getattr(spec, "freqstr", spec)  # an offset of pandas
    if isinstance(spec, dt.timedelta) and spec % dt.timedelta(days=1) == dt.timedelta(0):
        spec = f"{spec.days}D"
    text = str(spec).strip() if isinstance(spec, str | int) and not isinstance(spec, bool) else ""
    for pattern, make in _PATTERNS:
        if match := pattern.fullmatch(text):
            return make(match, first, last)
    if not text[:4].isdigit():
        raise ParameterError(f"period {spec!r} is not understood; {_FORMS}")
    return iter([_interval(text)])


def _length(match: re.Match[str]) -> int:
    """Return the length that a specification names, in days or months."""
    length = int(match["n"]) * {"W": 7, "Y": 12}.get(match.groupdict().get("unit", "M").upper(), 1)
    if not 0 < length <= 36600:
        raise ParameterError(f"period {match[0]!r} has a length of {match['n']}; {_FORMS}")
    return length


def _in_days(match: re.Match[str]) -> bool:
    return match["unit"].upper() in "DW"


def _first_day(text: str) -> dt.date:
    found = date_range(text).first
    assert found is not None
    return found.date()


def _interval(value: object) -> Period:
    """Return an interval whose ends are named, both included."""
    found = date_range(cast("str", value))  # raises if it does not understand the value
    if found.first is None or found.last is None:
        raise ParameterError(f"period {value!r} is open; a period has a first and a last day")
    if found.first.time() != dt.time.min or (found.last + dt.timedelta(microseconds=1)).time() != dt.time.min:
        raise ParameterError(f"period {value!r} is not made of whole days; give days, months or years")
    start, end = found.first.date(), (found.last + dt.timedelta(microseconds=1)).date()
    return Period(_calendar_label(start, end) or f"{start}_{end - dt.timedelta(days=1)}", start, end)


def _calendar_label(start: dt.date, end: dt.date) -> str | None:
    """Return the label of a year or a month, None for other periods."""
    if start.day == 1 and end == _add_months(start, 1):
        return f"{start:%Y-%m}"
    return f"{start:%Y}" if (start.month, start.day) == (1, 1) and end == _add_months(start, 12) else None


def _from_start(match: re.Match[str], *_: dt.date) -> Iterator[Period]:
    start, length = _first_day(match["start"]), _length(match)
    if _in_days(match):
        return iter([Period(f"{start}--P{length}D", start, start + dt.timedelta(days=length))])
    return iter([_months(start, length)])


def _months(start: dt.date, count: int) -> Period:
    """Return the period of `count` months that begins on the first of a month."""
    if start.day != 1:
        raise ParameterError(f"a period of months begins on the first of one, not on {start}; give its length in days")
    end = _add_months(start, count)
    years = f"{start:%Y}--P{count // 12}Y" if count % 12 == 0 and start.month == 1 else None
    return Period(_calendar_label(start, end) or years or f"{start:%Y-%m}--P{count}M", start, end)


def _add_months(day: dt.date, months: int) -> dt.date:
    total = day.year * 12 + day.month - 1 + months
    return dt.date(total // 12, total % 12 + 1, 1)


def _repeated(match: re.Match[str], first: dt.date, last: dt.date) -> Iterator[Period]:
    if _in_days(match):
        return _runs_of_days(_length(match), dt.date(first.year, 1, 1), first, last)
    return _runs_of_months(_length(match), 0, first, last)


def _repeated_from(match: re.Match[str], first: dt.date, last: dt.date) -> Iterator[Period]:
    return _runs_of_days(_length(match), _first_day(match["start"]), first, last)


def _runs_of_days(length: int, anchor: dt.date, first: dt.date, last: dt.date) -> Iterator[Period]:
    start = anchor + dt.timedelta(days=max((first - anchor).days // length, 0) * length)
    while start <= last:
        yield Period(f"{start}--P{length}D", start, start + dt.timedelta(days=length))
        start += dt.timedelta(days=length)


def _runs_of_months(length: int, anchor: int, first: dt.date, last: dt.date) -> Iterator[Period]:
    """Yield consecutive runs of months, one of which begins in the month `anchor` (0 to 11) before `first`."""
    start = dt.date(first.year - (first.month - 1 < anchor), anchor + 1, 1)
    starts = [start]
    while starts[-1] <= last:
        starts.append(_add_months(starts[-1], length))
    return (_months(a, length) for a, b in pairwise(starts) if b > first)


def _rolling(match: re.Match[str], first: dt.date, last: dt.date) -> Iterator[Period]:
    """Yield a period for each month in which it can begin without reaching beyond the first and last month."""
    length = _length(match)
    start, end = first.replace(day=1), _add_months(last, 1)
    runs = (_months(_add_months(start, n), length) for n in range((end.year - start.year + 1) * 12))
    found = tuple(takewhile(lambda period: period.end <= end, runs))
    return iter(found or (_months(start, length),))


def _one_season(match: re.Match[str], first: dt.date, last: dt.date) -> Iterator[Period]:
    begin, end = (_MONTHS.index(match[n].lower()) for n in (1, 2))
    length = (end - begin) % 12 + 1
    start = dt.date(first.year - 1, begin + 1, 1)
    while start <= last:
        period = _months(start, length)
        if period.end > first:
            yield period
        start = _add_months(start, 12)


def _quarters(_: object, first: dt.date, last: dt.date) -> Iterator[Period]:
    for period in _runs_of_months(3, 0, first, last):
        yield Period(f"{period.start:%Y}-Q{period.start.month // 3 + 1}", period.start, period.end)


def _days(_: object, first: dt.date, last: dt.date) -> Iterator[Period]:
    for n in range((last - first).days + 1):
        day = first + dt.timedelta(days=n)
        yield Period(day.isoformat(), day, day + dt.timedelta(days=1))


def _dekads(_: object, first: dt.date, last: dt.date) -> Iterator[Period]:
    """Yield the thirds of months: days 1 to 10, 11 to 20, and from 21 to the end of the month."""
    start = first.replace(day=min(first.day - 1, 29) // 10 * 10 + 1)
    while start <= last:
        end = start.replace(day=start.day + 10) if start.day < 21 else _add_months(start, 1)
        yield _interval((start, end - dt.timedelta(days=1)))
        start = end


def _all(_: object, first: dt.date, last: dt.date) -> Iterator[Period]:
    yield Period(f"{first}_{last}", first, last + dt.timedelta(days=1))


def _calendar(length: int, anchor: int) -> Callable[[re.Match[str], dt.date, dt.date], Iterator[Period]]:
    return lambda _, first, last: _runs_of_months(length, anchor, first, last)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


_PATTERNS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], dt.date, dt.date], Iterator[Period]]], ...] = (
    (_pattern("all"), _all),
    (_pattern("1?D|day|daily"), _days),
    (_pattern("dekad|dekadal"), _dekads),
    (_pattern("1?M[SE]|month|monthly"), _calendar(1, 0)),
    (_pattern("1?Q([SE]|S-(JAN|APR|JUL|OCT)|E-(MAR|JUN|SEP|DEC))|quarter|quarterly"), _quarters),
    (_pattern("1?Q(S-(MAR|JUN|SEP|DEC)|E-(FEB|MAY|AUG|NOV))|season|seasonal"), _calendar(3, 11)),
    (_pattern("semiannual"), _calendar(6, 0)),
    (_pattern("1?Y([SE]|S-JAN|E-DEC)|year|yearly|annual"), _calendar(12, 0)),
    (_pattern("1?Y(S-JUL|E-JUN)|annual-fy"), _calendar(12, 6)),
    (_pattern(r"rolling-(?P<n>\d{1,4})-?months?"), _rolling),
    (_pattern(f"({'|'.join(_MONTHS)})-({'|'.join(_MONTHS)})"), _one_season),
    (_pattern(r"P?(?P<n>\d{1,4})(?P<unit>[DWMY])"), _repeated),
    (_pattern(r"(?P<n>\d{1,4})(?P<unit>[MY])[SE]"), _repeated),
    (_pattern(r"R/(?P<start>\d{4}-\d{2}-\d{2})/P(?P<n>\d{1,4})(?P<unit>[DW])"), _repeated_from),
    (_pattern(r"(?P<start>\d{4}(?:-\d{2}){0,2})(?:--|/)P(?P<n>\d{1,4})(?P<unit>[DWMY])"), _from_start),
)
"""How periods are written, and the functions that make them."""
