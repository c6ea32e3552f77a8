"""Spans: a job repeated for each month, day or year from one date to another. Pure functions of dates and texts.

``{{pointInTime}}`` in a text is replaced by the first day of the unit, with the precision of the unit (``201806`` for a
month); ``{{pointInTime:%Y-%m}}`` is formatted with `datetime.date.strftime`.
"""

from __future__ import annotations

import datetime as dt
import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from s2composite.config import Document, Expected, Strict, Text
from s2composite.errors import JobError, ParameterError
from s2composite.scenes.dates import Period, date_range, find_periods

__all__ = ["SpanOptions", "Unit", "has_template", "number_as_text", "spans_of", "with_span_keys", "written_out"]

Unit = Literal["day", "week", "month", "quarter", "season", "year"]

# Default format of a unit's first day.
_FORMATS: Mapping[Unit, str] = {
    "day": "%Y%m%d",
    "week": "%Y%m%d",
    "month": "%Y%m",
    "quarter": "%Y%m",
    "season": "%Y%m",
    "year": "%Y",
}
# The unit of a date: ``2012``, ``2012-01``, ``2012-01-15``.
_UNITS_BY_LENGTH: Mapping[int, Unit] = {4: "year", 7: "month", 10: "day"}

_NAME = "pointInTime"
_TEMPLATE = re.compile(r"\{\{\s*(?P<name>[^{}:]*?)\s*(?::(?P<format>[^{}]*))?\}\}")
_COMPACT = re.compile(r"(\d{4})(\d{2})(\d{2})?")

# Cumulus' names of the keys, at the top of a job file.
_KEYS = {"spanStart": "start", "spanEnd": "end", "spanUnit": "unit"}


def number_as_text(value: Any) -> Any:
    """Return a number, as which YAML reads a year, as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _iso(value: Any) -> Any:
    """Return a date in ISO 8601: ``201201`` and the number 201201 are ``2012-01``."""
    text = number_as_text(value)
    match = _COMPACT.fullmatch(text.strip()) if isinstance(text, str) else None
    return text if match is None else "-".join(part for part in match.groups() if part)


def _whole_days(text: str) -> str:
    if len(text) not in _UNITS_BY_LENGTH:
        raise ValueError(f"expected a year, month or day such as 2012-01 or 201201, got {text!r}")
    try:
        date_range(text)
    except ParameterError as error:
        raise ValueError(str(error)) from error
    return text


PointInTime = Annotated[
    Text, BeforeValidator(_iso), AfterValidator(_whole_days), Expected("a year, month or day such as 2012-01 or 201201")
]


class SpanOptions(Strict):
    """Start, end and unit of a repeated job.

    Examples
    --------
    >>> SpanOptions(start="201201").step, SpanOptions(start="2012", unit="week").step
    ('month', 'week')
    """

    start: PointInTime
    """First year, month or day: ``2012-01``, ``201201``, ``2012``, ``2012-01-15``."""

    end: PointInTime | None = None
    """Last year, month or day, inclusive; None: the last unit that has ended."""

    unit: Annotated[Unit | None, Expected("day, week, month, quarter, season or year")] = None
    """``day``, ``week`` (from Monday), ``month``, ``quarter``, ``season`` (from December), ``year``; None: the unit of
    `start`."""

    @model_validator(mode="after")
    def _in_order(self) -> SpanOptions:
        if self.end is not None and _period(self.end).last < _period(self.start).start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        return self

    @property
    def step(self) -> Unit:
        """The unit."""
        return self.unit or _UNITS_BY_LENGTH[len(self.start)]


def _period(text: str) -> Period:
    return find_periods(text, dt.date.min, dt.date.min)[0]


def spans_of(span: SpanOptions, since: str | None = None, today: dt.date | None = None) -> tuple[Period, ...]:
    """Return the units of a span in order; raise a ParameterError if none has ended.

    `since` is ``"last"``: only the most recent unit that has ended, whatever the span's start and end; or a date: the
    units from the one that contains it. `today` (default: in UTC) decides which units have ended.

    >>> [one.label for one in spans_of(SpanOptions(start="201711", end="201802"))]
    ['2017-11', '2017-12', '2018-01', '2018-02']
    >>> [one.label for one in spans_of(SpanOptions(start="201201"), "last", dt.date(2018, 6, 1))]
    ['2018-05']
    """
    over = (today or dt.datetime.now(dt.UTC).date()) - dt.timedelta(days=1)
    if since == "last":
        return (_last_complete(span.step, over),)
    first = _period(span.start).start
    if since is not None:
        try:
            first = _period(_whole_days(_iso(since))).start
        except ValueError as error:
            raise ParameterError(f"since {since!r}: {error}; or 'last'") from error
    last = (_last_complete(span.step, over) if span.end is None else _period(span.end)).last
    if last < first:
        raise ParameterError(f"nothing to make: no {span.step} from {first} on is over before {last}")
    return _units(span.step, first, last)


def _units(unit: Unit, first: dt.date, last: dt.date) -> tuple[Period, ...]:
    monday = first - dt.timedelta(days=first.weekday())
    return find_periods(f"R/{monday}/P1W" if unit == "week" else unit, first, last)


def _last_complete(unit: Unit, over: dt.date) -> Period:
    """Return the last unit whose last day is not after a day."""
    current = _units(unit, over, over)[0]
    if current.last <= over:
        return current
    before = current.start - dt.timedelta(days=1)
    return _units(unit, before, before)[0]


def has_template(text: str) -> bool:
    """Return whether a text contains a template; raise a ValueError for an unknown one."""
    templates = list(_TEMPLATE.finditer(text))
    for match in templates:
        if match["name"] != _NAME:
            hint = "did you mean" if difflib.get_close_matches(match["name"], [_NAME], 1) else "there is"
            raise ValueError(f"unknown template {match[0]}; {hint} {{{{{_NAME}}}}} or {{{{{_NAME}:%Y-%m}}}}?")
    return bool(templates)


def written_out(text: str, period: Period, unit: Unit) -> str:
    """Return a text with its templates replaced by the date; raise a JobError for an invalid format.

    >>> january = spans_of(SpanOptions(start="201201", end="201201"))[0]
    >>> written_out("v10/{{pointInTime}}/{{pointInTime:%d.%m.%Y}}.tif", january, "month")
    'v10/201201/01.01.2012.tif'
    """

    def date(match: re.Match[str]) -> str:
        out = period.start.strftime(match["format"] or _FORMATS[unit])
        if "%" in out or not out:
            raise JobError(f"{match[0]}: {match['format']!r} is not a date format; write it like %Y-%m-%d", key="span")
        return out

    return _TEMPLATE.sub(date, text)


def with_span_keys(document: Document) -> Document:
    """Return a document with Cumulus' ``spanStart``, ``spanEnd`` and ``spanUnit`` as the mapping ``span``."""
    given = {key: document.values[key] for key in _KEYS if key in document.values}
    if not given:
        return document
    if "span" in document.values:
        raise document.place(("span",)).error(f"span and {', '.join(given)} say the same; keep one", "span")
    values = {key: value for key, value in document.values.items() if key not in _KEYS}
    places = {(("span", _KEYS[str(k[0])]) if k and k[0] in _KEYS else k): place for k, place in document.places.items()}
    places[("span",)] = document.place((next(iter(given)),))
    return Document(document.name, {**values, "span": {_KEYS[k]: v for k, v in given.items()}}, places)
