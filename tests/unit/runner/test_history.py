"""What ledgers say: who is at work, what failed, what is complete; runs that meet, and runs that were killed at bad moments."""

import datetime as dt
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2composite.demo import make_scenes
from s2composite.errors import WriteError
from s2composite.jobs.schema import load_job
from s2composite.runner import ledger as ledger_module
from s2composite.runner.ledger import (
    Ledger,
    begun_anew,
    busy_tokens,
    completed,
    done_in,
    done_windows,
    each_event,
    failures_in,
    order_of,
    read_ledger,
    read_turns,
    rival_in,
    trouble_in,
    whereabouts,
)
from s2composite.runner.plan import plan_job
from s2composite.runner.report import job_progress, job_report, report_page, write_report
from s2composite.runner.run import run_job
from support.job_helpers import digests, events, job, made, store_job

WAITS = [sys.executable, "-c", "print('ready', flush=True); input()"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("few") / "scenes"
    make_scenes(str(directory), scenes=3, size=512, seed=2, compress="deflate")
    return directory


@pytest.fixture(scope="module")
def undisturbed(scenes, client, tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    run_job(job(scenes, directory), client=client)
    run_job(store_job(scenes, directory), client=client)
    return digests(directory)


def of(digests, suffix):
    return {name: digest for name, digest in digests.items() if name.partition("/")[0].endswith(suffix)}


# --- Reading -------------------------------------------------------------------------------------------------------------

KINDS = ["start", "done", "retry", "failed", "assemble", "product", "end"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from("ab"), st.integers(0, 2), st.sampled_from("xy"))))
def test_what_is_kept_of_a_ledger_decides_as_all_of_it_does(tmp_path_factory, noted):
    output = str(tmp_path_factory.mktemp("turns") / "a.tif")
    ledgers = {run: Ledger(output, run) for run in "xy"}
    for kind, token, window, run in noted:
        windows = {"window": [0, window]} if kind in ("done", "retry") or (kind == "failed" and window < 2) else {}
        ledgers[run].add(kind, token=token, error="cause", files=["a.tif"], **windows)
    for ledger in ledgers.values():
        ledger.close()
    every, turns = read_ledger(output), read_turns(output)
    assert busy_tokens(turns) == busy_tokens(every)
    for token in "ab":
        assert trouble_in(turns, token) == trouble_in(every, token)
        if {run for *_, run in noted} <= {"x"}:  # what runs say that overlap is in the order of the runs
            assert failures_in(turns, token) == failures_in(every, token)
    assert not [event for event in turns if event["event"] == "done" and not failed_before(every, event)]


def failed_before(every, done):
    return any(e["event"] == "failed" and e.get("window") == done["window"] for e in every)


@pytest.mark.parametrize("torn", [b'{"at":"2026-01-01","eve', b"\0" * 40, b"\xff\xfe\xfa", b"[1]\n", b'{"at":"x"}\n'])
def test_a_line_that_is_none_is_left_out(tmp_path, torn):
    output = str(tmp_path / "a.tif")
    with Ledger(output, "a") as ledger:
        ledger.add("start", token="t")
    file = tmp_path / "a.tif.ledger" / "a.jsonl"
    file.write_bytes(file.read_bytes() + torn)
    assert [event["event"] for event in read_ledger(output)] == ["start"]
    assert [event["event"] for event in read_turns(output)] == ["start", "last"]


def test_a_ledger_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.tif.ledger" / "a.jsonl").mkdir(parents=True)
    for read in (read_ledger, read_turns):
        with pytest.raises(WriteError, match=r"a\.tif\.ledger: the ledger cannot be read"):
            read(str(tmp_path / "a.tif"))


# --- Clocks --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Sets the clock of ledgers to a day of 2026."""

    class Clock(dt.datetime):
        day = 1

        @classmethod
        def now(cls, tz=None):
            return dt.datetime(2026, 1, cls.day, tzinfo=tz)

    monkeypatch.setattr(ledger_module, "dt", SimpleNamespace(datetime=Clock, UTC=dt.UTC))

    def turn(day):
        Clock.day = day

    return turn


STEPS = [
    ("a", "start", {"done": 0, "windows": [1, 2], "files": []}),
    ("a", "done", {"window": [0, 0], "seconds": 1.0, "read": 0.5, "encode": 0.5, "worker": "w"}),
    ("a", "failed", {"window": [0, 1], "error": "damaged"}),
    ("a", "failed", {"step": "assemble", "error": "full"}),
    ("b", "start", {"done": 1, "windows": [1, 2], "files": []}),
    ("b", "done", {"window": [0, 1], "seconds": 1.0, "read": 0.5, "encode": 0.5, "worker": "w"}),
    ("b", "product", {"files": []}),
    ("c", "start", {"done": 0, "windows": [1, 2], "files": []}),
    ("c", "failed", {"window": [0, 0], "error": "gone"}),
]
"""What three runs note, one after the other: the third finds nothing of what was made."""


def noted(output, clock, days):
    """Note the steps, each on its day, and return what the ledger says after each run."""
    said, days = [], iter(days)
    for run, steps in itertools.groupby(STEPS, key=lambda step: step[0]):
        clock(next(days))
        with Ledger(output, run) as ledger:
            for _, event, facts in steps:
                ledger.add(event, token="t", **facts)
                clock(next(days))
        said += [(failures_in(told, "t"), trouble_in(told, "t")) for told in (read_ledger(output), read_turns(output))]
        every = read_ledger(output)
        start = [event for event in every if event["event"] == "start"][-1]
        said += [
            [event["event"] for event in every],
            start["run"],
            completed(every, start),
            sorted(done_in(every, "t")),
        ]
        said.append(done_windows(each_event(output), "t", begun_anew(every, "t")))
    return said


@pytest.mark.parametrize(
    "days",
    [[5, 5, 5, 5, 5, 4, 4, 4, 4, 3, 3, 3], list(range(12, 0, -1)), [1] * 12, [9, 9, 9, 9, 9, 1, 1, 1, 1, 5, 5, 5]],
)
def test_a_clock_that_is_set_back_changes_nothing(tmp_path, clock, days):
    right = noted(str(tmp_path / "right.tif"), clock, range(1, 13))
    assert right[-3:] == [False, [], set()], "the third run has begun anew, and failed"
    assert noted(str(tmp_path / "a.tif"), clock, days) == right


def test_a_ledger_of_an_earlier_version_comes_first_and_in_order_of_time(tmp_path, clock):
    output, root = str(tmp_path / "a.tif"), tmp_path / "a.tif.ledger"
    root.mkdir()
    told = {"token": "t", "window": [0, 0]}
    old = [("2026-01-20T00:00:01.000+00:00", "b", "done"), ("2026-01-20T00:00:00.000+00:00", "a", "failed")]
    for at, run, event in old:
        (root / f"{run}.jsonl").write_text(json.dumps({"at": at, "run": run, "event": event, **told}) + "\n")
    assert [event["event"] for event in read_ledger(output)] == ["failed", "done"]
    assert failures_in(read_turns(output), "t") == {}
    clock(3)
    with Ledger(output, "0") as ledger:
        ledger.add("failed", error="again", **told)
    assert failures_in(read_turns(output), "t") == {(0, 0): "again"}


# --- Steps that fail -----------------------------------------------------------------------------------------------------


def test_files_that_could_not_be_put_together_are_told(scenes, tmp_path):
    checked = load_job(job(scenes, tmp_path))
    start = {"token": "t", "windows": [1, 1], "done": 0, "files": [str(tmp_path / "median.tif")]}
    done = {"token": "t", "window": [0, 0], "seconds": 1.0, "read": 0.5, "encode": 0.5, "worker": "tcp://a:1"}
    with Ledger(checked.output, "a") as ledger:
        ledger.add("start", **start)
        ledger.add("done", **done)
        ledger.add("retry", token="t", step="assemble", worker=None, error="hiccup")
        ledger.add("failed", token="t", step="assemble", error="the disk is <full>")
    progress, report = job_progress(checked), job_report(checked)
    assert (progress.state, progress.error) == ("failed", "the disk is <full>")
    assert (report.state, report.error) == ("failed", "the disk is <full>")
    assert "the disk is &lt;full&gt;" in report_page(report)
    assert report.workers["unknown"].failed == 2
    with Ledger(checked.output, "b") as ledger:
        ledger.add("start", **start)
        ledger.add("product", token="t", files=start["files"])
    assert (job_report(checked).state, job_report(checked).error) == ("complete", None)
    assert job_progress(checked).state == "gone", "nobody has written the file"
    (tmp_path / "median.tif").write_bytes(b"")
    assert job_progress(checked).state == "complete"


def test_a_report_takes_its_name_when_it_is_whole(scenes, tmp_path):
    checked = load_job(job(scenes, tmp_path))
    with Ledger(checked.output, "a") as ledger:
        ledger.add("start", token="t", windows=[1, 1], done=0, files=["median.tif"])
    root = tmp_path / "median.tif.ledger"
    (root / "report.html").mkdir()
    with pytest.raises(WriteError, match=r"report\.html"):
        write_report(checked)
    assert sorted(path.name for path in root.iterdir()) == ["a.jsonl", "report.html", "report.json"]


# --- Runs that meet ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_gives_way_to_one_that_lives(scenes, client, undisturbed, tmp_path):
    spec = job(scenes, tmp_path)
    assert run_job(spec, client=client, windows="0").made == 1
    token = events(tmp_path)[-1]["token"]
    with subprocess.Popen(WAITS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        facts = {**whereabouts(), "process": other.pid, "whole": True, "timeout": 1.0, "windows": [4, 4], "done": 1}
        with Ledger(spec["output"], "other") as ledger:
            ledger.add("start", token=token, files=[], place="", **facts)
        with pytest.raises(WriteError, match=rf"another run is making it, process {other.pid} since 20"):
            run_job(spec, client=client)
        assert token in busy_tokens(read_turns(spec["output"]))
        assert run_job(spec, client=client, windows="1").made == 1, "who makes chosen windows shares the work"
        other.kill()
        other.wait()
    assert token not in busy_tokens(read_turns(spec["output"])), "its process is gone"
    assert run_job(spec, client=client).made == 14
    assert digests(tmp_path) == of(undisturbed, ".tif")


def test_a_process_of_the_same_number_is_another_one(tmp_path):
    output = str(tmp_path / "a.tif")
    with subprocess.Popen(WAITS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        start = {"run": "a", "event": "start", "token": "t", "whole": True, **whereabouts(), "process": other.pid}
        assert rival_in([{**start, "at": "2020-01-01T00:00:00+00:00"}], "t") is None, "that one began later"
        assert rival_in([{**start, "at": "2099-01-01T00:00:00+00:00"}], "t")
        assert rival_in([{**start, "at": "2099-01-01T00:00:00+00:00", "host": "elsewhere"}], "t") is None
        other.kill()
    assert read_ledger(output) == ()


@pytest.mark.slow
def test_two_runs_at_once_are_both_complete(scenes, client, undisturbed, tmp_path):
    """Of one process here, as of two machines: neither knows of the other, and one takes the parts away first."""
    spec = job(scenes, tmp_path, policy={"attempts": 1})
    with ThreadPoolExecutor(2) as pool:
        results = [future.result() for future in [pool.submit(run_job, spec, client=client) for _ in range(2)]]
    assert [len(result.paths) for result in results] == [3, 3]
    assert [result.failed for result in results] == [(), ()]
    assert digests(tmp_path) == of(undisturbed, ".tif")
    assert job_progress(load_job(spec)).state == "complete"
    assert job_progress(load_job(spec)).failures == ()
    assert job_report(load_job(spec)).failures == {}
    assert run_job(spec).made == 0


# --- Killed while names are taken ----------------------------------------------------------------------------------------

KILLED = """
import json, os, sys
from distributed import Client
import s2composite.runner.product as product
from s2composite.runner.run import run_job
{harm}
run_job(json.loads(sys.argv[1]), client=Client(sys.argv[2]))
"""
AFTER_ONE_FILE = """
whole = product.name_files
def half(rasters, overwrite):
    whole(rasters[:1], overwrite=overwrite)
    os._exit(9)
product.name_files = half
"""
BEFORE_TIDYING = "product.StorePlace.tidy = lambda place: os._exit(9)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "harm", "named"),
    [(job, AFTER_ONE_FILE, ["median.tif"]), (store_job, BEFORE_TIDYING, ["median.zarr"])],
)
def test_a_run_that_was_killed_while_files_took_their_names_is_gone_on_with(
    scenes, client, undisturbed, tmp_path, make, harm, named
):
    spec = make(scenes, tmp_path)
    code = KILLED.format(harm=harm)
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(spec), client.scheduler.address],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 9, process.stderr
    assert [path.name for path in sorted(tmp_path.glob("median*")) if path.suffix in (".tif", ".zarr")] == named
    assert plan_job(spec).state == "begun"
    assert job_progress(load_job(spec)).state == "running or interrupted"
    rest = run_job(spec, client=client)
    assert rest.made == 0
    assert rest.paths
    assert set(made(spec["output"]).values()) == {1}
    assert digests(tmp_path) == of(undisturbed, f".{spec['output'].rpartition('.')[2]}")
    assert not list(tmp_path.glob("*.part*"))
    assert plan_job(spec).state == "skip"


def test_going_on_does_not_make_again_what_is_complete(scenes, client, tmp_path):
    spec = job(scenes, tmp_path, overwrite=True)
    assert run_job(spec, client=client).made == 16
    assert run_job(spec, which="untried").made == 0
    assert run_job(spec, which="failed").made == 0
    assert run_job(spec, client=client).made == 16, "that is what overwrite means"


def test_what_no_ledger_knows_is_not_replaced(scenes, client, tmp_path):
    (tmp_path / "median.tif").write_bytes(b"somebody's")
    with pytest.raises(WriteError, match=r"exists already, and no ledger beside it says what it is; set overwrite"):
        run_job(job(scenes, tmp_path), client=client)
    assert [path.name for path in tmp_path.iterdir()] == ["median.tif"]


def test_a_product_that_is_begun_anew_counts_from_there_in_whatever_order_it_is_told():
    def event(at, kind, **facts):
        return {"at": f"2026-01-01T00:00:{at:02}", "run": "r", "event": kind, "token": "t", **facts}

    first = [event(1, "start", done=0), event(2, "done", window=[0, 0]), event(3, "done", window=[0, 1])]
    anew = [event(4, "start", done=0), event(5, "done", window=[0, 1])]
    on = [event(6, "start", done=1), event(7, "found", window=[1, 0]), event(8, "failed", window=[1, 1])]
    other = [{**event(9, "done", window=[5, 5]), "token": "u"}, {**event(9, "start", done=0), "token": "u"}]
    for runs in itertools.permutations([first, anew, on, other]):
        events = [event for run in runs for event in run]
        assert begun_anew(events, "t") == order_of(anew[0])
        assert done_windows(events, "t", begun_anew(events, "t")) == {(0, 1), (1, 0)}
    assert done_windows(first, "t", begun_anew([], "t")) == {(0, 0), (0, 1)}
