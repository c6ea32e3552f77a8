"""Jobs that are interrupted and gone on with: the same bytes, nothing made twice, everything in the ledger."""

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.errors import ParameterError, S2CompositeError, WriteError
from s2composite.jobs.schema import load_job
from s2composite.runner.ledger import Ledger, failures_in, ledger_root, ledger_table, read_ledger
from s2composite.runner.report import job_progress, job_report, write_report
from s2composite.runner.run import run_job
from support.job_helpers import DamagedCopy, digests, job, made

LAYERS = ["composite", "count", "source"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("many") / "scenes"
    make_scenes(str(directory), scenes=6, size=1100, seed=2, compress="deflate")
    return directory


@pytest.fixture(scope="module")
def undisturbed(scenes, client, tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    result = run_job(job(scenes, directory), client=client)
    assert result.made == result.windows == 81
    return digests(directory)


def test_a_job_writes_what_to_raster_writes(scenes, client, undisturbed, tmp_path):
    with client.as_current():
        comp = s2c.composite(s2c.open_cube(scenes))
        comp.to_raster(str(tmp_path / "median.tif"), layers=LAYERS, blocksize=128, progress=False)
    assert digests(tmp_path) == undisturbed


def test_windows_do_not_matter(scenes, client, undisturbed, tmp_path):
    run_job(job(scenes, tmp_path, chunks=200), client=client)
    assert digests(tmp_path) == undisturbed


def test_what_is_complete_is_not_made_again(scenes, client, undisturbed, tmp_path):
    run_job(job(scenes, tmp_path), client=client)
    again = run_job(job(scenes, tmp_path), client=client)
    assert again.made == 0
    assert len(again.paths) == 3
    assert max(made(tmp_path).values()) == 1
    assert not list(tmp_path.glob("*.parts"))
    with pytest.raises(WriteError, match="not what this job makes"):
        run_job(job(scenes, tmp_path, reducer="earliest"), client=client)
    assert digests(tmp_path) == undisturbed
    changed = run_job(job(scenes, tmp_path, reducer={"rank": {"quantile": 0.25}}, overwrite=True), client=client)
    assert changed.made == 81
    assert digests(tmp_path) != undisturbed


def test_windows_that_fail_are_kept_and_tried_again(scenes, client, undisturbed, tmp_path):
    copy = DamagedCopy(scenes, tmp_path / "scenes")
    broken = copy.directory
    out = tmp_path / "out"
    out.mkdir()
    first = run_job(job(broken, out), client=client)
    assert first.paths == ()
    assert 0 < len(first.failed) < 81
    assert copy.victim.stem[:20] in first.failed[0].error
    assert not list(out.glob("*.tif"))
    progress = job_progress(load_job(job(broken, out)))
    assert progress.state == "failed"
    assert len(progress.failures) == len(first.failed)
    assert progress.done + len(progress.failures) == progress.windows
    untried = run_job(job(broken, out), client=client, which="untried")
    assert untried.made == 0
    assert len(untried.failed) == len(first.failed)
    copy.mend()
    none = run_job(job(broken, out), client=client, which="failed", error="no such words")
    assert none.made == 0
    told = job_report(load_job(job(broken, out)))
    assert told.state == "failed"
    ((cause, windows),) = told.causes()
    assert "damaged" in cause
    assert len(windows) == len(first.failed)
    last = run_job(job(broken, out), client=client, which="failed", error="damaged")
    assert last.made == len(first.failed)
    assert len(last.paths) == 3
    assert max(made(out).values()) == 1
    assert job_progress(load_job(job(broken, out))).state == "complete"
    facts = json.loads(Path(write_report(load_job(job(broken, out)))[0]).read_text())
    assert (facts["state"], facts["done"], facts["failures"]) == ("complete", 81, [])
    assert facts["timings"]["read"] > 0
    assert (Path(ledger_root(str(out / "median.tif"))) / "report.html").stat().st_size > 5000
    with pytest.raises(S2CompositeError, match="regular expression"):
        run_job(job(broken, out), client=client, which="failed", error="(")


def test_periods_and_rules_of_a_job(scenes, client, tmp_path):
    keys = {"period": "month", "valid": ["nodata", {"value_range": {"high": 240}}], "keep_empty": False}
    result = run_job(job(scenes, tmp_path, layers=["composite"], **keys), client=client)
    with client.as_current():
        comp = s2c.composite(
            s2c.open_cube(scenes),
            period="month",
            keep_empty=False,
            valid=load_job(job(scenes, tmp_path, **keys)).rules,
        ).compute()
    labels = comp.dataset["period"].values.tolist()
    assert [Path(path).name for path in result.paths] == [f"median_{label}.tif" for label in labels]
    for path, label in zip(result.paths, labels, strict=True):
        with rasterio.open(path) as dataset:
            assert (dataset.read() == comp.period(label)["composite"].values).all()


def test_the_preview_of_a_job_is_that_of_to_raster(scenes, client, tmp_path):
    keys = {"layers": ["composite", "rgba"], "raster": {"blocksize": 128, "stretch": [20, 180]}}
    run_job(job(scenes, tmp_path, **keys), client=client)
    assert len(digests(tmp_path)) == 2
    plain = s2c.composite(s2c.open_cube(scenes)).compute()
    plain.to_raster(str(tmp_path / "plain.tif"), layers="composite", blocksize=128, progress=False)
    with rasterio.open(tmp_path / "median_rgba.tif") as preview, rasterio.open(tmp_path / "plain.tif") as whole:
        painted, values = preview.read(), whole.read().astype("float32")
    valid = (values != 0).all(0)
    expected = np.clip(np.rint((values - np.float32(20)) * np.float32(255 / 160)), 1, 255).astype("uint8")
    assert valid.any()
    assert (painted[:3] == np.where(valid, expected, 0)).all()
    assert (painted[3] == np.where(valid, 255, 0)).all()
    with pytest.raises(ParameterError, match="needs all pixels before the first is written; give values"):
        run_job(job(scenes, tmp_path, **{**keys, "raster": {"stretch": "2-98%"}, "overwrite": True}), client=client)


@pytest.mark.slow
def test_a_preview_for_each_period(scenes, client, tmp_path):
    keys = {"period": "month", "keep_empty": False, "layers": ["rgba"], "raster": {"blocksize": 128}}
    result = run_job(job(scenes, tmp_path, **keys), client=client)
    with client.as_current():
        comp = s2c.composite(s2c.open_cube(scenes), period="month", keep_empty=False)
        comp.to_raster(str(tmp_path / "other.tif"), layers="rgba", blocksize=128, progress=False)
    assert len(result.paths) > 1
    for ours, theirs in zip(map(Path, result.paths), sorted(tmp_path.glob("other_*.tif")), strict=True):
        assert theirs.name == ours.name.replace("median", "other")
        with rasterio.open(ours) as a, rasterio.open(theirs) as b:
            assert a.tags() == b.tags()
            assert [a.tags(band) for band in a.indexes] == [b.tags(band) for band in b.indexes]
            assert np.argwhere(a.read() != b.read()).tolist() == []
        assert ours.read_bytes() == theirs.read_bytes(), ours.name


# --- What is left behind -------------------------------------------------------------------------------------------------


def test_who_interrupted_a_job_and_changed_it_is_told_that_it_begins_anew(scenes, client, tmp_path, caplog):
    def told():
        messages = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        caplog.clear()
        return [one for one in messages if "was not finished" in one]

    run_job(job(scenes, tmp_path, reducer="latest"), client=client, windows=[(0, 0)])
    run_job(job(scenes, tmp_path, reducer="latest"), client=client, windows=[(0, 1)])
    assert told() == [], "it goes on"
    run_job(job(scenes, tmp_path), client=client, windows=[(0, 0)])
    (line,) = told()
    assert line.startswith(f"{tmp_path / 'median.tif'}: the run of 20")
    assert line.endswith("what it made is not used, the windows are made anew")
    run_job(job(scenes, tmp_path), client=client)
    assert told() == [], "once is enough"
    run_job(job(scenes, tmp_path, reducer="latest", overwrite=True), client=client, windows=[(0, 0)])
    assert told() == [], "the run before was finished"


def test_what_other_parameters_have_left_is_removed_when_nobody_needs_it(scenes, client, undisturbed, tmp_path):
    for reducer in ("earliest", "latest", {"rank": {"quantile": 0.25}}):
        run_job(job(scenes, tmp_path, reducer=reducer), client=client, windows=[(0, 0)])
    ended, alive, silent = (event for event in read_ledger(str(tmp_path / "median.tif")) if event["event"] == "start")
    rewritten(tmp_path, alive["run"], dt.timedelta(0))
    rewritten(tmp_path, silent["run"], dt.timedelta(hours=2))
    mine = tmp_path / "median.tif.notes.parts"
    mine.mkdir()
    assert len(list(tmp_path.glob("*.parts"))) == 4
    run_job(job(scenes, tmp_path), client=client)
    assert digests(tmp_path) == undisturbed
    assert not Path(ended["place"]).exists()
    assert not Path(silent["place"]).exists(), "a run that has said nothing for hours is dead"
    assert Path(alive["place"]).exists(), "that one may still be at work"
    assert mine.exists(), "nobody knows what that is"


def rewritten(directory, run, earlier):
    """Let a run's file look as if its process had been killed some time ago."""
    file = Path(directory, "median.tif.ledger", f"{run}.jsonl")
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    for event in kept:
        event["at"] = (dt.datetime.fromisoformat(event["at"]) - earlier).isoformat(timespec="milliseconds")
    file.write_text("".join(json.dumps(event) + "\n" for event in kept if event["event"] != "end"))


def test_what_was_made_without_being_noted_is_found_and_counts(scenes, client, undisturbed, tmp_path):
    spec, output = job(scenes, tmp_path), tmp_path / "median.tif"
    run_job(spec, client=client, windows=[(0, 0), (0, 1), (0, 2)])
    # As a client leaves its ledger that is killed before it notes what a worker has made.
    (file,) = Path(ledger_root(str(output))).glob("*.jsonl")
    told = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in told if '"window":[0,1]' not in line and '"event":"end"' not in line))
    run_job(spec, client=client, windows=[(0, 3)])
    first_row = {(0, 0), (0, 1), (0, 2), (0, 3)}
    assert [e["window"] for e in read_ledger(str(output)) if e["event"] == "found"] == [[0, 1]]
    assert set(made(tmp_path)) == first_row - {(0, 1)}
    assert job_progress(load_job(spec)).done == 4
    report = job_report(load_job(spec))
    assert {window for window, state in report.states().items() if state == "done"} == first_row
    assert json.loads(report.to_json())["done"] == 4
    assert run_job(spec, client=client).made == 77
    assert digests(tmp_path) == undisturbed
    assert job_progress(load_job(spec)).done == 81
    assert len([e for e in read_ledger(str(output)) if e["event"] == "found"]) == 1
    # Nothing is left of what the ledger tells about: it is made again, and counted from the start.
    for path in tmp_path.glob("median*.tif"):
        path.unlink()
    run_job(spec, client=client, windows=[(0, 0)])
    assert (job_progress(load_job(spec)).state, job_progress(load_job(spec)).done) == ("running or interrupted", 1)
    assert job_report(load_job(spec)).state == "interrupted"
    assert json.loads(job_report(load_job(spec)).to_json())["done"] == 1


def test_a_window_that_failed_and_is_found_made_has_not_failed():
    events = [{"event": event, "token": "t", "window": [0, 0]} for event in ("failed", "found")]
    assert failures_in(events[:1], "t") == {(0, 0): ""}
    assert failures_in(events, "t") == {}
    assert failures_in(events, "other") == {}


# --- The ledger ----------------------------------------------------------------------------------------------------------


def test_a_ledger_is_only_added_to_and_readable_as_a_table(tmp_path):
    output = str(tmp_path / "median.tif")
    with Ledger(output, "a") as ledger:
        ledger.add("start", windows=[1, 2])
        ledger.add("done", window=[0, 0])
    with Ledger(output, "b") as ledger:
        ledger.add("done", window=[0, 1])
    file = Path(ledger_root(output), "a.jsonl")
    file.write_bytes(file.read_bytes() + b'{"at":"2026-01-01","eve')  # whoever wrote this has died
    events = read_ledger(output)
    assert [event["event"] for event in events] == ["start", "done", "done"]
    table = ledger_table(output)
    assert table["run"].tolist() == ["a", "a", "b"]
    assert read_ledger(str(tmp_path / "other.tif")) == ()


def test_a_ledger_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(WriteError, match="ledger"), Ledger(str(tmp_path / "nowhere" / "median.tif"), "a") as ledger:
        ledger.add("start")
