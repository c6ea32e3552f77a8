"""Periods: specifications, their scenes, and that each equals a composite of its scenes alone."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import s2composite as s2c
from s2composite.errors import ParameterError
from s2composite.scenes.dates import Period, day_of, find_periods, period_title

FIRST, LAST = dt.date(2023, 1, 5), dt.date(2023, 12, 20)


def spans(spec, first=FIRST, last=LAST):
    return [(p.label, str(p.start), str(p.end)) for p in find_periods(spec, first, last)]


@pytest.mark.parametrize(
    ("spec", "titles"),
    [
        ("season", ["Dec 2022-Feb 2023", "Mar-May 2023", "Jun-Aug 2023", "Sep-Nov 2023", "Dec 2023-Feb 2024"]),
        ("quarter", ["Q1 2023", "Q2 2023", "Q3 2023", "Q4 2023"]),
        ("year", ["2023"]),
        ("2Y", ["2023-2024"]),
        ("annual-fy", ["Jul 2022-Jun 2023", "Jul 2023-Jun 2024"]),
        ("semiannual", ["Jan-Jun 2023", "Jul-Dec 2023"]),
        ("rolling-11months", ["Jan-Nov 2023", "Feb-Dec 2023"]),
        ("R/2022-12-28/P200D", ["28 Dec 2022-15 Jul 2023", "16 Jul 2023-31 Jan 2024"]),
        ("2023-06-01--P10D", ["1-10 Jun 2023"]),
        ("2023-06-25--P10D", ["25 Jun-4 Jul 2023"]),
        (["2023-06", "2023-06-09", "2023-06-01/2023-08-31"], ["Jun 2023", "9 Jun 2023", "Jun-Aug 2023"]),
        ("all", ["5 Jan-20 Dec 2023"]),
        ({"growing": "2023-04/2023-09", "2023--P0D": "2023"}, ["growing", "2023--P0D"]),
    ],
)
def test_readable_names_of_periods(spec, titles):
    assert [period_title(period.label) for period in find_periods(spec, FIRST, LAST)] == titles


@pytest.mark.parametrize(
    ("spec", "count", "begins"),
    [
        ("month", 12, ("2023-01", "2023-01-01", "2023-02-01")),
        ("quarter", 4, ("2023-Q1", "2023-01-01", "2023-04-01")),
        ("season", 5, ("2022-12--P3M", "2022-12-01", "2023-03-01")),
        ("seasonal", 5, ("2022-12--P3M", "2022-12-01", "2023-03-01")),
        ("year", 1, ("2023", "2023-01-01", "2024-01-01")),
        ("annual", 1, ("2023", "2023-01-01", "2024-01-01")),
        ("annual-fy", 2, ("2022-07--P12M", "2022-07-01", "2023-07-01")),
        ("semiannual", 2, ("2023-01--P6M", "2023-01-01", "2023-07-01")),
        ("rolling-3months", 10, ("2023-01--P3M", "2023-01-01", "2023-04-01")),
        ("nov-mar", 2, ("2022-11--P5M", "2022-11-01", "2023-04-01")),
        ("apr-oct", 1, ("2023-04--P7M", "2023-04-01", "2023-11-01")),
        ("10D", 36, ("2023-01-01--P10D", "2023-01-01", "2023-01-11")),
        ("P2W", 26, ("2023-01-01--P14D", "2023-01-01", "2023-01-15")),
        ("3M", 4, ("2023-01--P3M", "2023-01-01", "2023-04-01")),
        ("2Y", 1, ("2023--P2Y", "2023-01-01", "2025-01-01")),
        ("R/2023-03-21/P100D", 3, ("2023-03-21--P100D", "2023-03-21", "2023-06-29")),
        ("2023", 1, ("2023", "2023-01-01", "2024-01-01")),
        (2023, 1, ("2023", "2023-01-01", "2024-01-01")),
        ("2023-06", 1, ("2023-06", "2023-06-01", "2023-07-01")),
        ("2020-05--P1M", 1, ("2020-05", "2020-05-01", "2020-06-01")),
        ("2022-12/P3M", 1, ("2022-12--P3M", "2022-12-01", "2023-03-01")),
        ("2023-03-21--P10D", 1, ("2023-03-21--P10D", "2023-03-21", "2023-03-31")),
        ("2023-06-01/2023-08-31", 1, ("2023-06-01_2023-08-31", "2023-06-01", "2023-09-01")),
        ("all", 1, ("2023-01-05_2023-12-20", "2023-01-05", "2023-12-21")),
        ("day", 350, ("2023-01-05", "2023-01-05", "2023-01-06")),
        (["2023-06", ("2023-06-10", "2023-06-12")], 2, ("2023-06", "2023-06-01", "2023-07-01")),
        ({"growing": "2023-04/2023-09"}, 1, ("growing", "2023-04-01", "2023-10-01")),
        ({"growing": ("2023-04", "2023-09")}, 1, ("growing", "2023-04-01", "2023-10-01")),
    ],
)
def test_period_specifications(spec, count, begins):
    found = spans(spec)
    assert len(found) == count
    assert found[0] == begins


@pytest.mark.parametrize("freq", ["month", "quarter", "year", "season"])
@settings(max_examples=40)
@given(first=st.dates(dt.date(1990, 1, 1), dt.date(2030, 1, 1)), days=st.integers(0, 1500))
def test_calendar_periods_are_those_of_pandas(freq, first, days):
    last = first + dt.timedelta(days=days)
    expected = pd.period_range(first, last, freq={"month": "M", "quarter": "Q", "year": "Y", "season": "Q-NOV"}[freq])
    found = find_periods(freq, first, last)
    assert [(p.start, p.end) for p in found] == [
        (one.start_time.date(), (one + 1).start_time.date()) for one in expected
    ]


@settings(max_examples=60)
@given(
    spec=st.sampled_from(["10D", "3W", "1M", "5M", "2Y", "season", "annual-fy", "semiannual", "day", "dekad", "all"]),
    first=st.dates(dt.date(1990, 1, 1), dt.date(2030, 1, 1)),
    days=st.integers(0, 900),
)
def test_repeated_periods_hold_each_day_once(spec, first, days):
    last = first + dt.timedelta(days=days)
    found = find_periods(spec, first, last)
    for n in range(0, days + 1, 7):
        day = first + dt.timedelta(days=n)
        assert sum(day in period for period in found) == 1
    assert first in found[0]
    assert last in found[-1]


def test_dekads_are_thirds_of_months():
    found = find_periods("dekad", dt.date(2024, 2, 12), dt.date(2024, 3, 1))
    assert [period.label for period in found] == [
        "2024-02-11_2024-02-20",
        "2024-02-21_2024-02-29",
        "2024-03-01_2024-03-10",
    ]
    assert [len(find_periods("dekad", day, day)) for day in (dt.date(2023, 1, 30), dt.date(2023, 1, 31))] == [1, 1]


def test_odc_labels():
    assert [p.label for p in find_periods("annual-fy", dt.date(2015, 8, 1), dt.date(2015, 8, 1))] == ["2015-07--P12M"]
    assert Period("x", FIRST, LAST).label == "x"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("monthy", "write day, month"),
        ("0D", "length of 0"),
        ("2023-06/..", "open"),
        ("2023-06-01T10:00/2023-06-02", "whole days"),
        ("2023-06-02/2023-06-01", "ends before"),
        ("2023-13", "not a date"),
        ("2023-05-15--P3M", "first of one"),
        ([], "holds no period"),
        (["2023", "2023"], "two periods"),
        ({"a/b": "2023"}, "file name"),
        ({"all months": "month"}, "12 periods"),
        (3.5, "not understood"),
        (True, "not understood"),
        (None, "not understood"),
    ],
)
def test_invalid_period_error_lists_valid_periods(spec, words):
    with pytest.raises(ParameterError, match=words):
        find_periods(spec, FIRST, LAST)


def test_day_of_a_time_in_utc_and_solar_time():
    late = dt.datetime(2023, 6, 30, 23, 50, tzinfo=dt.UTC)
    assert day_of(late) == dt.date(2023, 6, 30)
    assert day_of(late, "solar", 150.0) == dt.date(2023, 7, 1)
    assert day_of(late, "solar", -70.0) == dt.date(2023, 6, 30)
    assert day_of(late.astimezone(dt.timezone(dt.timedelta(hours=9)))) == dt.date(2023, 6, 30)


# --- Composites of periods -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cube(scenes_dir):
    return s2c.open_cube(scenes_dir, chunks=512)


def months_of(cube):
    return sorted(set(cube["time"].values.astype("datetime64[M]").astype(str).tolist()))


@pytest.mark.parametrize("lazy", [True, False])
def test_each_period_is_the_composite_of_its_scenes(cube, lazy):
    cube = cube if lazy else cube.compute()
    comp = s2c.composite(cube, period="month").compute()
    assert comp["composite"].dims == ("time", "band", "y", "x")
    assert comp["count"].dims == ("time", "y", "x")
    labels = comp.dataset["period"].values.tolist()
    assert set(months_of(cube)) <= set(labels)
    stamps = cube["time"].values.astype("datetime64[M]").astype(str)
    for t, label in enumerate(labels):
        members = np.flatnonzero(stamps == label)
        assert comp.dataset["scenes"].values[t] == len(members)
        if not len(members):
            assert int(comp["count"][t].max()) == 0
            assert int(comp["composite"][t].max()) == 0
            assert int(comp["source"][t].max()) == -1
            continue
        alone = s2c.composite(cube.isel(time=members)).compute()
        for layer in ("composite", "count"):
            np.testing.assert_array_equal(comp[layer][t], alone[layer])
        picked = alone["source"].values
        np.testing.assert_array_equal(comp["source"][t], np.where(picked < 0, -1, members[picked]))


def test_overlapping_periods_come_from_one_read(cube, monkeypatch):
    from s2composite.reading.stack import Stack

    reads = []
    read = Stack.read_all
    monkeypatch.setattr(Stack, "read_all", lambda *args, **how: (reads.append(1), read(*args, **how))[1])
    s2c.composite(cube, ["luminance_median", "mean"], period="rolling-2months").compute()
    assert len(reads) == cube.data.npartitions


@pytest.mark.parametrize(
    "reducer", ["mean", "percentile", "geomedian", "medoid", "max_ndvi", "latest", "best_available_pixel"]
)
def test_every_kind_of_reducer_takes_periods_and_empty_ones(cube, reducer):
    part = cube.isel(y=slice(0, 40), x=slice(0, 50)).assign_coords(band=["B04", "B08", "B02"]).compute()
    params = {"q": 0.5} if reducer == "percentile" else {}
    if reducer == "max_ndvi":
        params = {"red": "B04", "nir": "B08"}
    empty = ("1999-01-01", "1999-01-31")
    whole = (str(part["time"].values.min())[:10], str(part["time"].values.max())[:10])
    comp = s2c.composite(part, reducer, period=[whole, empty], **params)
    alone = s2c.composite(part, reducer, **params)
    for name, layer in alone.dataset.data_vars.items():
        np.testing.assert_array_equal(comp[name][0], layer)
        nodata = layer.attrs.get("nodata", 0)
        np.testing.assert_array_equal(comp[name][1], np.full(layer.shape, nodata, layer.dtype))


def test_time_axis_has_bounds_and_attributes(cube):
    comp = s2c.composite(cube, period="month")
    time = comp.dataset["time"]
    assert time.attrs["bounds"] == "time_bounds"
    assert time.attrs["day"] == "utc"
    np.testing.assert_array_equal(comp.dataset["time_bounds"][:, 0], time)
    assert comp.dataset["time_bounds"].dims == ("time", "bnds")
    starts = pd.DatetimeIndex(time.values)
    assert (starts.day == 1).all()
    assert comp["count"].sel(time=starts[0]).dims == ("y", "x")
    one = comp.period(str(comp.dataset["period"].values[0]))
    assert one["composite"].dims == ("band", "y", "x")
    with pytest.raises(ParameterError, match=str(comp.dataset["period"].values[0])):
        comp.period("2001")


def test_empty_periods_are_kept_or_dropped(cube):
    part = cube.isel(y=slice(0, 64), x=slice(0, 64))
    kept = s2c.composite(part, period="5D")
    dropped = s2c.composite(part, period="5D", keep_empty=False)
    assert 0 < dropped.dataset.sizes["time"] < kept.dataset.sizes["time"]
    assert (dropped.dataset["scenes"] > 0).all()
    with pytest.raises(ParameterError, match="no scene lies in"):
        s2c.composite(part, period="1999")
    with pytest.raises(ParameterError, match=r"it is one of .utc., .solar."):
        s2c.composite(part, period="month", day="local")


def test_solar_days_need_a_place_and_can_differ():
    times = np.array(["2023-06-30T23:50", "2023-07-01T10:00"], "datetime64[ns]")
    cube = xr.DataArray(np.full((2, 1, 2, 2), 9, np.uint8), {"time": times}, ("time", "band", "y", "x"))
    assert s2c.composite(cube, period="month").dataset["scenes"].values.tolist() == [1, 1]
    with pytest.raises(ParameterError, match="no CRS"):
        s2c.composite(cube, period="month", day="solar")
    japan = cube.assign_coords(y=[36.0, 35.9], x=[140.0, 140.1]).odc.assign_crs("EPSG:4326")
    assert s2c.composite(japan, period="month", day="solar").dataset["scenes"].values.tolist() == [2]
    with pytest.raises(ParameterError, match="has none"):
        s2c.composite(cube.assign_coords(time=[1, 2]), period="month")


def test_shares_of_scenes(cube):
    comp = s2c.composite(cube, period="month")
    lazy = comp.shares().compute()
    loaded = comp.compute()
    np.testing.assert_allclose(lazy, loaded.shares())
    assert lazy.dims == ("time", "scene")
    source = loaded["source"].values
    for t in range(source.shape[0]):
        for scene in range(loaded.dataset.sizes["scene"]):
            assert lazy.values[t, scene] == pytest.approx((source[t] == scene).mean())
    whole = s2c.composite(cube).shares().compute()
    assert whole.dims == ("scene",)
    assert whole["scene_time"].size == 9
    with pytest.raises(ParameterError, match="no layer 'source'"):
        s2c.composite(cube, "mean").shares()
