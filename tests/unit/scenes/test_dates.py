"""Dates as users write them select what their text says, both ends included."""

import datetime as dt
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2composite.errors import ParameterError
from s2composite.scenes.dates import date_range, utc_time

DAY = dt.date(2023, 7, 9)
MOMENT = dt.datetime(2023, 7, 9, 10, 46, 29, tzinfo=dt.UTC)
FORMS = ["%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
LENGTHS = {"%Y": 4, "%Y-%m": 7, "%Y-%m-%d": 10, "%Y-%m-%dT%H:%M": 16, "%Y-%m-%dT%H:%M:%S": 19}

# Few different fields, so that times often fall into the same year, month, day, minute.
times = st.builds(
    dt.datetime,
    st.sampled_from([1, 2023, 2024, 9999]), st.sampled_from([1, 2, 12]), st.sampled_from([1, 28]),
    st.sampled_from([0, 23]), st.sampled_from([0, 59]), st.sampled_from([0, 59]), st.sampled_from([0, 999_999]),
    tzinfo=st.just(dt.UTC),
)  # fmt: skip


def text(time, form):
    return time.replace(tzinfo=None).isoformat()[: LENGTHS[form]]


@given(times, times, st.sampled_from(FORMS))
def test_a_single_date_selects_what_begins_like_it(time, named, form):
    assert (time in date_range(text(named, form))) == text(time, "%Y-%m-%dT%H:%M:%S").startswith(text(named, form))


@given(times, times, times, st.sampled_from(FORMS), st.sampled_from(FORMS))
def test_an_interval_selects_between_its_ends_inclusively(time, first, last, first_form, last_form):
    a, b = text(first, first_form), text(last, last_form)
    both = min(len(a), len(b))
    if a[:both] > b[:both]:
        with pytest.raises(ParameterError, match="ends before it begins"):
            date_range(f"{a}/{b}")
        return
    if a > b and not a.startswith(b):
        return
    whole = time.replace(tzinfo=None).isoformat()
    assert (time in date_range(f"{a}/{b}")) == (whole[: len(a)] >= a and whole[: len(b)] <= b)
    assert (time in date_range(f"{a}/..")) == (whole[: len(a)] >= a)
    assert (time in date_range(f"/{b}")) == (whole[: len(b)] <= b)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2023", "2023-01-01/2023-12-31"),
        ("2023-02", "2023-02-01/2023-02-28"),
        ("2024-02", "2024-02-01/2024-02-29"),
        ("2023-12", "2023-12-01/2023-12-31"),
        ("20230709", "2023-07-09/2023-07-09"),
        ("2023-06/2023-08", "2023-06-01/2023-08-31"),
        ("../2023-08", "../2023-08-31"),
        ("2023-06-01/", "2023-06-01/.."),
        (DAY, "2023-07-09/2023-07-09"),
        (2023, "2023-01-01/2023-12-31"),  # as YAML reads it
        (20230709, "2023-07-09/2023-07-09"),
        ((2023, 2024), "2023-01-01/2024-12-31"),
        ("9999", "9999-01-01/9999-12-31"),
        ((DAY, None), "2023-07-09/.."),
        ((None, "2023"), "../2023-12-31"),
        (["2023-06", DAY], "2023-06-01/2023-07-09"),
        ((MOMENT, MOMENT), "2023-07-09T10:46:29Z/2023-07-09T10:46:29Z"),
        ("2023-07-09T12:46:29+02:00", "2023-07-09T10:46:29Z/2023-07-09T10:46:29Z"),
    ],
)
def test_forms(value, expected):
    assert str(date_range(value)) == expected


def test_a_moment_is_one_and_a_second_is_a_second():
    after = MOMENT + dt.timedelta(milliseconds=500)
    assert MOMENT in date_range(MOMENT)
    assert after not in date_range(MOMENT)
    assert after in date_range("2023-07-09T10:46:29Z")
    assert after not in date_range("2023-07-09T10:46:29.400Z")
    assert after.replace(second=59) in date_range("2023-07-09T10:46Z")


@pytest.mark.parametrize(
    "value",
    ["", "..", "../..", "/", "June 2023", "2023-13", "2023-02-30", "2023-06-01/2023-07-01/2023-08-01", "0000", "10000",
     "2023-06-01 to 2023-07-01", "2023--06", 1.5, (), (DAY, DAY, DAY), (None, None), b"2023", None],
)  # fmt: skip
def test_malformed_dates_are_shown_with_the_forms_that_are_good(value):
    with pytest.raises(ParameterError, match=re.escape(f"datetime {value!r} is not a date or an interval")) as caught:
        date_range(value)
    assert "2023-06-01/2023-08-31" in str(caught.value)


def interval_or_message(value):
    try:
        return date_range(value)
    except ParameterError as error:
        return str(error)


@given(st.text(max_size=30) | st.from_regex(r"[0-9T:Z./ -]{0,30}", fullmatch=True))
def test_any_text_is_an_interval_or_one_clear_error(value):
    found = interval_or_message(value)
    if isinstance(found, str):
        assert repr(value) in found
    else:
        assert found.first is None or found.last is None or found.first <= found.last


@pytest.mark.parametrize("value", [MOMENT, "2023-07-09T10:46:29", "2023-07-09T10:46:29Z", "20230709T124629+0200"])
def test_moments_are_utc(value):
    assert utc_time(value) == MOMENT
    assert utc_time(value).tzinfo is dt.UTC


def test_days_are_their_midnight():
    assert utc_time(DAY) == utc_time("2023-07-09") == dt.datetime(2023, 7, 9, tzinfo=dt.UTC)


@pytest.mark.parametrize("value", ["yesterday", "", "2023-02-30", None, 5])
def test_moments_that_are_none(value):
    with pytest.raises(ParameterError, match="is not a date; write it like"):
        utc_time(value)
