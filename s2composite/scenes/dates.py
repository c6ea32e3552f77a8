"""Dates as users write them, and the periods that each make one composite. Everything is UTC.

Periods are calendar periods, runs of days, seasons or rolling windows. A scene belongs to a period by its day, which
`day_of` counts in UTC or mean solar time. The first day of a period is part of it, its end is not.
"""

from __future__ import annotations

import datetime as dt
import re
from calendar import monthrange
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Any, Literal, TypeAlias, cast

from s2composite.errors import ParameterError

__all__ = [
    "DateRange", "Day", "Moment", "Period", "PeriodSpec", "date_range", "day_of", "find_periods", "period_title",
    "solar_day", "utc_day", "utc_time",
]  # fmt: skip

# A date or datetime object (also of NumPy or pandas), text, or a year; None leaves an end of an interval open.
Moment: TypeAlias = Any

_TICK = dt.timedelta(microseconds=1)
_FORM = '"2023", "2023-06", "2023-06-15", "2023-06-15T10:46:29Z"'
_INTERVAL = 'or an interval such as "2023-06-01/2023-08-31" or "2023-06-01/.."'
_YEAR_OR_MONTH = re.compile(r"(\d{4})(?:-(\d{2}))?")
_TO_THE_SECOND = re.compile(r"[T ]\d{2}:?\d{2}:?\d{2}(?![\d.,])")
_TO_THE_MINUTE = re.compile(r"[T ]\d{2}:?\d{2}(?![\d:])")


# --- dates and intervals --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DateRange:
    """An interval of time in UTC, both ends included; None: no limit."""

    first: dt.datetime | None
    last: dt.datetime | None

    def __contains__(self, time: dt.datetime) -> bool:
        return (self.first is None or self.first <= time) and (self.last is None or time <= self.last)

    def __str__(self) -> str:
        texts = []
        for end in (self.first, self.last):
            whole_day = end is not None and end.timetz().replace(tzinfo=None) in (dt.time.min, dt.time.max)
            texts.append(".." if end is None else f"{end:%Y-%m-%d}" if whole_day else f"{end:%Y-%m-%dT%H:%M:%SZ}")
        return "/".join(texts)


def utc_time(value: dt.date | str) -> dt.datetime:
    """Return a moment given as a datetime, date or ISO 8601 text in UTC; without a time zone it is taken as UTC.

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
    """Return the day of a moment in UTC."""
    return time.astimezone(dt.UTC).date()


def solar_day(time: dt.datetime, longitude: float) -> dt.date:
    """Return the solar day of a moment: the day in UTC shifted by four minutes for each degree to the east.

    A pass of a satellite lies in one solar day everywhere; in UTC it may span two, near the antimeridian. The shift is
    in whole seconds, as in Open Data Cube. A longitude of 190 is -170.

    >>> solar_day(dt.datetime(2023, 6, 1, 23, 50, tzinfo=dt.UTC), 170.0)
    datetime.date(2023, 6, 2)
    """
    east = longitude if -180 <= longitude <= 180 else (longitude + 180) % 360 - 180
    return (time.astimezone(dt.UTC) + dt.timedelta(seconds=int(east * 240))).date()


def date_range(value: Moment | Sequence[Moment]) -> DateRange:
    """Return the interval that a date, or a pair of dates, stands for.

    ``"2023"``, ``"2023-06"`` and ``"2023-06-15"`` stand for the whole year, month or day, ``"2023-06-15T10:46:29Z"``
    for that second; a number is read as text, a date object stands for that day, a datetime object for that moment.
    An interval is ``"a/b"``, a pair ``(a, b)`` or ``slice(a, b)`` of these, both included; ``".."`` or nothing (in a
    pair also None) leaves an end open.

    >>> print(date_range("2023-06/2023-08"))
    2023-06-01/2023-08-31
    """
    parts: Any = (value,)
    if isinstance(value, str):
        parts = value.split("/")
    elif isinstance(value, slice) and value.step is None:
        parts = (value.start, value.stop)
    elif isinstance(value, Iterable):
        parts = tuple(value)
    is_open = [part is None or (isinstance(part, str) and part.strip() in ("", "..")) for part in parts]
    if len(parts) not in (1, 2) or all(is_open):
        raise _malformed(value)
    try:
        first = None if is_open[0] else _span(parts[0])[0]
        last = None if is_open[-1] else _span(parts[-1])[1]
    except (ParameterError, ValueError, OverflowError):
        raise _malformed(value) from None
    if first is not None and last is not None and first > last:
        raise ParameterError(f"datetime {value!r} ends before it begins; write the earlier date first")
    return DateRange(first, last)


def _malformed(value: object) -> ParameterError:
    return ParameterError(f"datetime {value!r} is not a date or an interval; write {_FORM}, {_INTERVAL}")


def _span(end: Moment) -> tuple[dt.datetime, dt.datetime]:
    """Return the first and last moment of the year, month, day, minute or second that an end names."""
    if isinstance(end, dt.datetime):
        return utc_time(end), utc_time(end)
    text = str(end).strip()
    if match := _YEAR_OR_MONTH.fullmatch(text):
        year, last_month = int(match[1]), int(match[2] or 12)
        last_day = dt.date(year, last_month, monthrange(year, last_month)[1])
        first = dt.datetime(year, int(match[2] or 1), 1, tzinfo=dt.UTC)
        return first, dt.datetime.combine(last_day, dt.time.max, dt.UTC)
    first, length = utc_time(text), _TICK  # a fraction of a second names an instant
    if len(text) <= 10:
        length = dt.timedelta(days=1)
    elif _TO_THE_SECOND.search(text):
        length = dt.timedelta(seconds=1)
    elif _TO_THE_MINUTE.search(text):
        length = dt.timedelta(minutes=1)
    return first, first + (length - _TICK)


# --- periods --------------------------------------------------------------------------------------------------------

Day: TypeAlias = Literal["utc", "solar"]  # how days are counted: in mean solar time it is that of the cube's centre
PeriodSpec: TypeAlias = "str | int | Sequence[object] | Mapping[str, object]"  # see `find_periods`

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_QUARTER = re.compile(r"(\d{4})-(Q[1-4])")
# Labels that `find_periods` gives, but for quarters.
_LABEL = re.compile(
    r"(?P<start>\d{4}(?:-\d{2}){0,2})(?:--P(?P<n>\d{1,5})(?P<unit>[DMY])|_(?P<last>\d{4}-\d{2}-\d{2}))?"
)
_FORMS = (
    "write day, month, dekad, quarter, season, year, all, a length such as 10D or 3M, an interval such as "
    "2023-06-01/2023-08-31 or 2023-06--P3M, annual, annual-fy, semiannual, rolling-3months, nov-mar, or a list of these"
)


@dataclass(frozen=True, slots=True)
class Period:
    """A run of whole days."""

    label: str  # short name, safe in file names: ``"2023-06"``, ``"2023-Q2"``, ``"2022-12--P3M"``
    start: dt.date  # first day
    end: dt.date  # day after the last

    def __contains__(self, day: dt.date) -> bool:
        return self.start <= day < self.end

    @property
    def last(self) -> dt.date:
        """Its last day."""
        return self.end - dt.timedelta(days=1)


def day_of(time: dt.datetime, day: Day = "utc", longitude: float = 0.0) -> dt.date:
    """Return the day of a moment, `utc_day` or `solar_day` at a longitude in degrees east."""
    return solar_day(time, longitude) if day == "solar" else utc_day(time)


def period_title(label: str) -> str:
    """Return what people call a period, for plots and pages; the label, which files and selections need, is ISO 8601.

    A label that its user chose is returned as it is.

    >>> [period_title(label) for label in ("2023", "2023-06", "2023-Q2", "2022-12--P3M", "2023-06-01--P10D")]
    ['2023', 'Jun 2023', 'Q2 2023', 'Dec 2022-Feb 2023', '1-10 Jun 2023']
    >>> [period_title(label) for label in ("2023-05-20_2023-08-31", "2020--P3Y", "2023-06-09", "dry season")]
    ['20 May-31 Aug 2023', '2020-2022', '9 Jun 2023', 'dry season']
    """
    if quarter := _QUARTER.fullmatch(label):
        return f"{quarter[2]} {quarter[1]}"
    if (match := _LABEL.fullmatch(label)) is None:
        return label
    try:
        days = (match["start"], match["last"]) if match["last"] else match["start"]
        period = _interval(days) if match["n"] is None else _run(match)
    except (ParameterError, ValueError, OverflowError):
        return label
    # The first and the last day from their smallest part to the year; the days of whole months and the months of whole
    # years are left out, and what both share is said once.
    ends = (period.start, period.last)
    first, last = ([str(day.day), _MONTHS[day.month - 1].capitalize(), f"{day:%Y}"] for day in ends)
    if period.start.day == period.end.day == 1:
        coarsest = 2 if period.start.month == period.end.month == 1 else 1
        first, last = first[coarsest:], last[coarsest:]
    if first == last:
        return " ".join(last)
    while first[-1] == last[len(first) - 1]:
        first.pop()
    return f"{' '.join(first)}-{' '.join(last)}"


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
    periods: list[Period] = []
    if isinstance(spec, Mapping):
        for label, one in spec.items():
            name, named = str(label), _periods_of(one, first, last)
            if len(named) != 1 or set(name) & set("/\\") or not name.strip():
                count = f"{one!r} is {len(named)} periods"
                why = "its label cannot be part of a file name" if len(named) == 1 else count
                raise ParameterError(f"period {name!r}: {why}; a mapping gives each label one period")
            periods.append(Period(name, named[0].start, named[0].end))
    elif isinstance(spec, Iterable) and not isinstance(spec, str):
        for one in spec:
            periods += _periods_of(one, first, last)
    else:
        periods = _periods_of(spec, first, last)
    twice = [label for label, times in Counter(period.label for period in periods).items() if times > 1]
    if twice:
        raise ParameterError(f"two periods are called {twice[0]!r}; give a mapping from labels to periods")
    if not periods:
        raise ParameterError(f"period {spec!r} holds no period; {_FORMS}")
    return tuple(periods)


def _periods_of(spec: object, first: dt.date, last: dt.date) -> list[Period]:
    """Return the periods of one specification."""
    if isinstance(spec, Sequence) and not isinstance(spec, str) and len(spec) == 2:
        return [_interval((spec[0], spec[1]))]
    ends = [getattr(spec, name, None) for name in ("start_time", "end_time")]  # of a Period of pandas
    if all(isinstance(end, dt.datetime) for end in ends):
        return [_interval(tuple(cast("dt.datetime", end).date() for end in ends))]
    spec = getattr(spec, "freqstr", spec)  # an offset of pandas
    if isinstance(spec, dt.timedelta) and spec % dt.timedelta(days=1) == dt.timedelta(0):
        spec = f"{spec.days}D"
    text = str(spec).strip() if isinstance(spec, str | int) and not isinstance(spec, bool) else ""
    for pattern, make in _PATTERNS:
        if match := re.fullmatch(pattern, text, re.IGNORECASE):
            return list(make(match, first, last))
    if not text[:4].isdigit():
        raise ParameterError(f"period {spec!r} is not understood; {_FORMS}")
    return [_interval(text)]


def _interval(value: object) -> Period:
    """Return the period between two dates, both included, or of a year, month or day."""
    span = date_range(value)
    if span.first is None or span.last is None:
        raise ParameterError(f"period {value!r} is open; a period has a first and a last day")
    end = span.last + _TICK
    if span.first.time() != dt.time.min or end.time() != dt.time.min:
        raise ParameterError(f"period {value!r} is not made of whole days; give days, months or years")
    first_day, end_day = span.first.date(), end.date()
    label = _calendar_label(first_day, end_day) or f"{first_day}_{end_day - dt.timedelta(days=1)}"
    return Period(label, first_day, end_day)


def _calendar_label(start: dt.date, end: dt.date) -> str | None:
    """Return the label of a year or a month, None for other periods."""
    if start.day == 1 and end == _add_months(start, 1):
        return f"{start:%Y-%m}"
    return f"{start:%Y}" if (start.month, start.day) == (1, 1) and end == _add_months(start, 12) else None


def _add_months(day: dt.date, months: int) -> dt.date:
    """Return the first day of the month that is `months` later."""
    total = day.year * 12 + day.month - 1 + months
    return dt.date(total // 12, total % 12 + 1, 1)


def _period(start: dt.date, count: int, unit: str) -> Period:
    """Return the period of so many days ("D") or months ("M") from a day."""
    if unit == "D":
        return Period(f"{start}--P{count}D", start, start + dt.timedelta(days=count))
    if start.day != 1:
        raise ParameterError(f"a period of months begins on the first of one, not on {start}; give its length in days")
    end = _add_months(start, count)
    years = f"{start:%Y}--P{count // 12}Y" if count % 12 == 0 and start.month == 1 else None
    return Period(_calendar_label(start, end) or years or f"{start:%Y-%m}--P{count}M", start, end)


def _length(match: re.Match[str]) -> tuple[int, str]:
    """Return the length that a specification names, in days ("D") or months ("M")."""
    unit = match.groupdict().get("unit", "M").upper()
    length = int(match["n"]) * {"W": 7, "Y": 12}.get(unit, 1)
    if not 0 < length <= 36600:
        raise ParameterError(f"period {match[0]!r} has a length of {match['n']}; {_FORMS}")
    return length, "D" if unit in "DW" else "M"


def _run(match: re.Match[str]) -> Period:
    """Return the period of a first day and a length."""
    return _period(_interval(match["start"]).start, *_length(match))


def _repeated(match: re.Match[str], first: dt.date, last: dt.date) -> Iterable[Period]:
    """Return consecutive periods of a length."""
    length, unit = _length(match)
    if unit == "M":
        return _runs_of_months(length, 0, first, last)
    anchor = _interval(match["start"]).start if "start" in match.groupdict() else dt.date(first.year, 1, 1)
    begin = max((first - anchor).days // length, 0) * length
    days = range(begin, (last - anchor).days + 1, length)
    return [_period(anchor + dt.timedelta(days=n), length, unit) for n in days]


def _runs_of_months(length: int, anchor: int, first: dt.date, last: dt.date) -> list[Period]:
    """Return consecutive runs of months, one of which begins in the month `anchor` (0 to 11) before `first`."""
    start = dt.date(first.year - (first.month - 1 < anchor), anchor + 1, 1)
    starts = [start]
    while starts[-1] <= last:
        starts.append(_add_months(starts[-1], length))
    return [_period(a, length, "M") for a, b in pairwise(starts) if b > first]


def _rolling(match: re.Match[str], first: dt.date, last: dt.date) -> Iterable[Period]:
    """Return a period for each month in which it can begin without reaching beyond the first and last month."""
    length, _ = _length(match)
    start, end = first.replace(day=1), _add_months(last, 1)
    runs = (_period(_add_months(start, n), length, "M") for n in range((end.year - start.year + 1) * 12))
    return list(takewhile(lambda period: period.end <= end, runs)) or [_period(start, length, "M")]


def _one_season(match: re.Match[str], first: dt.date, last: dt.date) -> Iterable[Period]:
    """Return the months from one to another, of each year."""
    begin, end = (_MONTHS.index(match[n].lower()) for n in (1, 2))
    years = _runs_of_months(12, begin, first, last)
    seasons = [_period(year.start, (end - begin) % 12 + 1, "M") for year in years]
    return [season for season in seasons if season.end > first]


def _quarters(_: object, first: dt.date, last: dt.date) -> Iterable[Period]:
    runs = _runs_of_months(3, 0, first, last)
    return [replace(run, label=f"{run.start:%Y}-Q{run.start.month // 3 + 1}") for run in runs]


def _single_days(_: object, first: dt.date, last: dt.date) -> Iterable[Period]:
    days = [first + dt.timedelta(days=n) for n in range((last - first).days + 1)]
    return [Period(day.isoformat(), day, day + dt.timedelta(days=1)) for day in days]


def _dekads(_: object, first: dt.date, last: dt.date) -> Iterator[Period]:
    """Yield the thirds of months: days 1 to 10, 11 to 20, and from 21 to the end of the month."""
    start = first.replace(day=min(first.day - 1, 29) // 10 * 10 + 1)
    while start <= last:
        end = start.replace(day=start.day + 10) if start.day < 21 else _add_months(start, 1)
        yield _interval((start, end - dt.timedelta(days=1)))
        start = end


def _calendar(length: int, anchor: int) -> _Maker:
    return lambda _, first, last: _runs_of_months(length, anchor, first, last)


_Maker: TypeAlias = Callable[[re.Match[str], dt.date, dt.date], Iterable[Period]]

# How periods are written, in any case of letters, and the functions that make them.
_PATTERNS: tuple[tuple[str, _Maker], ...] = (
    ("all", lambda _, first, last: [Period(f"{first}_{last}", first, last + dt.timedelta(days=1))]),
    ("1?D|day|daily", _single_days),
    ("dekad|dekadal", _dekads),
    ("1?M[SE]|month|monthly", _calendar(1, 0)),
    ("1?Q([SE]|S-(JAN|APR|JUL|OCT)|E-(MAR|JUN|SEP|DEC))|quarter|quarterly", _quarters),
    ("1?Q(S-(MAR|JUN|SEP|DEC)|E-(FEB|MAY|AUG|NOV))|season|seasonal", _calendar(3, 11)),
    ("semiannual", _calendar(6, 0)),
    ("1?Y([SE]|S-JAN|E-DEC)|year|yearly|annual", _calendar(12, 0)),
    ("1?Y(S-JUL|E-JUN)|annual-fy", _calendar(12, 6)),
    (r"rolling-(?P<n>\d{1,4})-?months?", _rolling),
    (f"({'|'.join(_MONTHS)})-({'|'.join(_MONTHS)})", _one_season),
    (r"P?(?P<n>\d{1,4})(?P<unit>[DWMY])", _repeated),
    (r"(?P<n>\d{1,4})(?P<unit>[MY])[SE]", _repeated),
    (r"R/(?P<start>\d{4}-\d{2}-\d{2})/P(?P<n>\d{1,4})(?P<unit>[DW])", _repeated),
    (r"(?P<start>\d{4}(?:-\d{2}){0,2})(?:--|/)P(?P<n>\d{1,4})(?P<unit>[DWMY])", lambda match, *_: [_run(match)]),
)
