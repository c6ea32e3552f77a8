"""Spans: a job for each month of a span; what the seed's job files mean; months that fail stop no other."""

import datetime as dt
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geom import box
from typer.testing import CliRunner

import s2composite as s2c
from s2composite.cli import app
from s2composite.demo import make_scenes
from s2composite.errors import JobError, ParameterError
from s2composite.jobs.schedule import SpanOptions, spans_of
from s2composite.jobs.schema import load_job
from s2composite.runner.inputs import expand, span_jobs
from s2composite.runner.run import run_job, run_spans

TODAY = dt.date(2018, 6, 14)


def labels(since=None, today=TODAY, **keys):
    return [one.label for one in spans_of(SpanOptions(**keys), since, today)]


def jobs(text, **options):
    return [(one.period.label, one.job.output, one.job.datetime) for one in span_jobs(load_job(text), **options)]


def test_the_seeds_example_is_77_months():
    text = """
spanStart: "201201"
spanEnd: "201805"
spanUnit: month
source: gs://viirs/v10/{{pointInTime}}/vcmcfg/
output: viirs_{{pointInTime}}.tif
"""
    found = span_jobs(load_job(text))
    assert len(found) == 77
    assert found[0].job.source == "gs://viirs/v10/201201/vcmcfg/"
    assert found[-1].job.output == "viirs_201805.tif"
    assert found[-1].job.datetime == "2018-05-01/2018-05-31"
    assert found[0].job.span is None


@settings(max_examples=60, deadline=None)
@given(
    unit=st.sampled_from(["day", "week", "month", "quarter", "season", "year"]),
    first=st.dates(dt.date(2000, 1, 1), dt.date(2020, 1, 1)),
    days=st.integers(0, 900),
)
def test_units_are_those_of_pandas(unit, first, days):
    last = first + dt.timedelta(days=days)
    freq = {"day": "D", "week": "W-SUN", "month": "M", "quarter": "Q", "season": "Q-NOV", "year": "Y"}[unit]
    expected = pd.period_range(first, last, freq=freq)
    found = spans_of(SpanOptions(start=str(first), end=str(last), unit=unit))
    assert [(p.start, p.end) for p in found] == [(e.start_time.date(), (e + 1).start_time.date()) for e in expected]


@pytest.mark.parametrize("unit", ["day", "week", "month", "quarter", "season", "year"])
@settings(max_examples=40, deadline=None)
@given(today=st.dates(dt.date(2000, 1, 1), dt.date(2030, 1, 1)))
def test_the_last_unit_is_over_and_the_next_one_is_not(unit, today):
    start = str(today.year - 2)
    (last,) = spans_of(SpanOptions(start=start, unit=unit), "last", today)
    assert last.end <= today
    (following,) = spans_of(SpanOptions(start=str(last.end), end=str(last.end), unit=unit))
    assert following.start == last.end
    assert following.end > today
    assert spans_of(SpanOptions(start=start, unit=unit), None, today)[-1] == last


def test_since():
    assert labels("last", start="201201", end="201301") == ["2018-05"]
    assert labels("last", dt.date(2018, 6, 1), start="201201") == ["2018-05"]
    assert labels("last", dt.date(2018, 5, 31), start="201201") == ["2018-04"]
    assert labels("2018-03", start="201201") == ["2018-03", "2018-04", "2018-05"]
    assert labels("201803", start="201201", end="2018-04") == ["2018-03", "2018-04"]
    assert labels(start=2016) == ["2016", "2017"]
    with pytest.raises(ParameterError, match=r"yesterday.*or 'last'"):
        labels("yesterday", start="201201")
    with pytest.raises(ParameterError, match="no month from 2018-06-01 on is over"):
        labels(start="201806")


@pytest.mark.parametrize(
    ("name", "unit", "output"),
    [
        ("{{pointInTime}}.tif", "day", "20180131.tif"),
        ("{{ pointInTime }}.tif", "month", "201801.tif"),
        ("{{pointInTime}}.tif", "quarter", "201801.tif"),
        ("{{pointInTime}}.tif", "season", "201712.tif"),
        ("{{pointInTime}}.tif", "year", "2018.tif"),
        ("{{pointInTime:%Y/%b}}_{{pointInTime:%d.%m.%y}}.tif", "month", "2018/Jan_01.01.18.tif"),
    ],
)
def test_templates(name, unit, output):
    job = {"source": "x", "output": name, "span": {"start": "20180131", "end": "20180131", "unit": unit}}
    assert span_jobs(load_job(job))[0].job.output == output


BASE = "source: x\noutput: '{{pointInTime}}.tif'\n"
SPAN = "span: {start: 201201, end: 201203}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BASE, "output has {{pointInTime}}, and the job has no date for it"),
        ("source: '{{pointInTime}}/x'\noutput: a.tif", "source has {{pointInTime}}, and the job has no date"),
        ("source: x\noutput: a.tif\n" + SPAN, "put {{pointInTime}} into the output's name"),
        ("source: x\noutput: '{{pointInTme}}.tif'\n" + SPAN, "unknown template {{pointInTme}}; did you mean"),
        (BASE + SPAN + "datetime: 2012", "leave datetime out"),
        (BASE + SPAN + "spanStart: 201201", "line 3: span and spanStart say the same"),
        (BASE + "spanStart: 201201\nspanEnd: 20121\n", "line 4: span.end: expected a year, month or day"),
        (BASE + "spanEnd: 201201\n", "span.start"),
        ("source: x\noutput: a.tif\nspanStart: 201201\n", "line 3: span: a span makes a product for each date"),
        (BASE + "span: {start: 201213}\n", "2012-13"),
        (BASE + "span: {start: 201203, end: 201201}\n", "end 2012-01 is before start 2012-03"),
        (BASE + "span: {start: 201203, unit: fortnight}\n", "span.unit: expected day, week, month"),
        (BASE + "span: {start: 201203, stop: 201204}\n", "unknown key 'span.stop'"),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(JobError) as caught:
        load_job(text)
    assert words in str(caught.value)


def test_two_months_cannot_be_one_file():
    with pytest.raises(JobError, match=r"2012-01 and 2012-02 would both be 2012\.tif"):
        jobs("source: x\noutput: '{{pointInTime:%Y}}.tif'\n" + SPAN)
    with pytest.raises(JobError, match="not a date format"):
        jobs("source: x\noutput: '{{pointInTime:%!}}.tif'\n" + SPAN)


def test_a_job_with_a_span_is_not_one_product():
    with pytest.raises(JobError, match=r"run_spans\(\) runs it"):
        run_job(BASE + SPAN)
    with pytest.raises(JobError, match=r"run_job\(\) runs it"):
        span_jobs(load_job("source: x\noutput: a.tif"))


def test_a_job_with_a_span_survives_being_written():
    job = load_job(BASE + SPAN)
    assert load_job(job.to_yaml()) == job


@pytest.fixture(scope="module")
def months(tmp_path_factory):
    """Scenes of a few months, and one month's scenes broken."""
    directory = tmp_path_factory.mktemp("months") / "scenes"
    make_scenes(str(directory), scenes=12, size=128, seed=5, compress="deflate")
    found = s2c.find_scenes(str(directory))
    by_month = {}
    for scene in found:
        by_month.setdefault(f"{scene.time:%Y%m}", []).append(scene.assets[0].href)
    assert len(by_month) >= 3
    return directory, by_month


def span_file(tmp_path, source, start, end):
    job = {"source": str(source), "output": str(tmp_path / "m{{pointInTime}}.tif"), "chunks": 128}
    return {**job, "span": {"start": start, "end": end}}


@pytest.mark.slow
def test_each_month_is_the_composite_of_its_scenes_and_made_once(months, client, tmp_path):
    directory, by_month = months
    first, last = min(by_month), max(by_month)
    job = span_file(tmp_path, directory, first, last)
    results = list(run_spans(job, client=client))
    every = [
        p.strftime("%Y%m") for p in pd.period_range(f"{first[:4]}-{first[4:]}", f"{last[:4]}-{last[4:]}", freq="M")
    ]
    assert [result.product.period.label.replace("-", "") for result in results] == every
    for month, result in zip(every, results, strict=True):
        assert result.complete == (month in by_month)
        if not result.complete:
            assert "no scene" in str(result.error) or "none of" in str(result.error)
            continue
        alone = s2c.composite(s2c.open_cube(by_month[month])).compute()
        with rasterio.open(tmp_path / f"m{month}.tif") as file:
            np.testing.assert_array_equal(file.read(), alone["composite"].values)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tif")}
    again = list(run_spans(job, client=client))
    assert all(result.made == 0 for result in again if result.complete)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tif")} == stamps


def test_since_last_makes_the_month_that_is_over(months, client, tmp_path):
    directory, by_month = months
    month = sorted(by_month)[1]
    today = (dt.date(int(month[:4]), int(month[4:]), 1) + dt.timedelta(days=45)).replace(day=3)
    today = today if f"{today - dt.timedelta(days=3):%Y%m}" == month else today.replace(day=1)
    (result,) = run_spans(span_file(tmp_path, directory, "2001-01", None), since="last", today=today, client=client)
    assert result.complete
    assert [path.name for path in tmp_path.glob("*.tif")] == [f"m{month}.tif"]


@pytest.mark.slow
def test_one_broken_month_stops_no_other_and_is_gone_on_with(months, client, tmp_path):
    _, by_month = months
    chosen = sorted(by_month)[:3]
    for month in chosen:
        (tmp_path / "in" / month).mkdir(parents=True)
        for href in by_month[month]:
            shutil.copy(href, tmp_path / "in" / month)
    broken = next((tmp_path / "in" / chosen[1]).iterdir())
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    (tmp_path / "out").mkdir()
    job = span_file(tmp_path / "out", f"{tmp_path}/in/{{{{pointInTime}}}}", chosen[0], chosen[2])
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({**job, "cluster": client.scheduler.address}))
    files = [str(tmp_path / "out" / f"m{month}.tif") for month in chosen]

    done = CliRunner().invoke(app, ["run", str(file)])
    assert done.exit_code == 1, done.output
    assert broken.name in done.output.replace("\n", "") or broken.stem in done.output
    assert [Path(path).exists() for path in files] == [True, False, True]
    assert [path in done.output for path in files] == [True, False, True]

    broken.write_bytes(whole)
    done = CliRunner().invoke(app, ["run", str(file), "--since", chosen[1]])
    assert done.exit_code == 0, done.output
    assert [path in done.output for path in files] == [False, True, True]
    dashed = [f"{month[:4]}-{month[4:]}" for month in chosen]
    status = json.loads(CliRunner().invoke(app, ["status", str(file), "--json"]).output)
    assert {label: status[label]["state"] for label in dashed} == dict.fromkeys(dashed, "complete")
    plan = CliRunner().invoke(app, ["plan", str(file), "--csv", str(tmp_path / "plan.csv")])
    assert plan.exit_code == 0, plan.output
    first, *_, total = plan.output.splitlines()
    assert first.startswith(f"{dashed[0]}: skip: 1 done of 1 window")
    assert first.endswith(files[0])
    assert total.startswith("3 products")
    table = pd.read_csv(tmp_path / "plan.csv")
    assert table["T"].tolist() == dashed
    assert table["datasets"].tolist() == [len(by_month[month]) for month in chosen]


def test_since_needs_a_span(tmp_path):
    (tmp_path / "job.yaml").write_text("source: x\noutput: a.tif")
    found = CliRunner().invoke(app, ["run", str(tmp_path / "job.yaml"), "--since", "last"])
    assert isinstance(found.exception, JobError)
    assert "--since selects from a span" in str(found.exception)


def test_run_and_plan_take_a_job_of_months_and_cells(months, client, tmp_path):
    directory, by_month = months
    first, last = min(by_month), max(by_month)
    spec = span_file(tmp_path, directory, first, last) | {
        "output": str(tmp_path / "m{{pointInTime}}_{cell}.tif"),
        "grid": {"type": "utm", "size": 5000},
        "bbox": [300000, 4895000, 309000, 4900000],
        "bbox_crs": "EPSG:32631",
    }
    products = expand(load_job(spec))
    names = [product.name for product in products]
    assert names == sorted(names)
    assert {name.partition(", ")[0] for name in names} >= {f"{month[:4]}-{month[4:]}" for month in by_month}
    seen = []
    result = s2c.run(spec, client=client, on_product=seen.append)
    assert [one.name for one in result.products] == [one.name for one in seen] == names
    for one in result.products:
        month = f"{one.product.period.start:%Y%m}"
        assert (one.error is None) == (month in by_month), one.error
        assert all(Path(path).name == f"m{month}_{one.product.cell.name}.tif" for path in one.paths)
    assert any(one.paths for one in result.products)
    assert result.complete == all(one.error is None for one in result.products)
    plan = s2c.plan(spec)
    assert [one.product.name for one in plan.products] == names
    for done, planned in zip(result.products, plan.products, strict=True):
        assert (planned.error is None) == (done.error is None)
        assert (planned.plan is not None and planned.plan.state == "skip") == bool(done.paths)
    assert plan.explain().count("\n") == len(names)
    again = s2c.run(spec, client=client)
    assert (again.made, again.paths) == (0, result.paths)


def test_an_area_that_one_month_lacks_stops_no_other(months, client, tmp_path):
    directory, by_month = months
    spec = span_file(tmp_path, directory, min(by_month), max(by_month)) | {
        "output": str(tmp_path / "m{{pointInTime}}_{cell}.tif"),
        "grid": {"type": "utm", "size": 5000},
        "area": str(tmp_path / "{{pointInTime}}.geojson"),
    }
    whole = box(300000, 4898000, 301000, 4900000, "EPSG:32631").to_crs("EPSG:4326")
    (tmp_path / f"{min(by_month)}.geojson").write_text(json.dumps(whole.json))
    first, *others = s2c.run(spec, client=client).products
    assert first.complete
    assert others
    assert all("cannot be read" in other.error for other in others if other.product.cell is None)
    with pytest.raises(JobError, match="cannot be read"):
        expand(load_job(spec))


def test_what_selects_is_about_what_there_is():
    with pytest.raises(JobError, match="since selects from a span"):
        s2c.run("source: x\noutput: a.tif", since="last")
    with pytest.raises(JobError, match="cells: the job has no grid"):
        s2c.plan(BASE + SPAN, cells="31TCJ")
    with pytest.raises(JobError, match="windows: the job has a grid"):
        s2c.run({"source": "x", "output": "{cell}.tif", "grid": "mgrs"}, windows="0")
