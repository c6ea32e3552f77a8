"""Jobs that are interrupted and gone on with: the same bytes, nothing made twice, everything in the ledger."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import rasterio

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.errors import S2CompositeError, WriteError
from s2composite.running.job import load_job
from s2composite.running.ledger import Ledger, ledger_root, ledger_table, read_ledger
from s2composite.running.progress import job_progress
from s2composite.running.report import job_report
from s2composite.running.report_page import write_report
from s2composite.running.run import run_job

LAYERS = ["composite", "count", "source"]


@pytest.fixture(scope="module")
def client():
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        yield client


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("many") / "scenes"
    make_scenes(str(directory), scenes=6, size=1100, seed=2, compress="deflate")
    return directory


def job(scenes, tmp_path, **keys):
    return {
        "source": str(scenes),
        "output": str(tmp_path / "median.tif"),
        "layers": LAYERS,
        "chunks": 128,
        "raster": {"blocksize": 128},
        **keys,
    }


def digests(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(directory).glob("*.tif"))}


@pytest.fixture(scope="module")
def undisturbed(scenes, client, tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    result = run_job(job(scenes, directory), client=client)
    assert result.made == result.windows == 81
    return digests(directory)


def made(directory):
    """How often each window was made."""
    events = read_ledger(str(Path(directory) / "median.tif"))
    return Counter(tuple(event["window"]) for event in events if event["event"] == "done")


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
    broken = tmp_path / "scenes"
    broken.mkdir()
    for path in scenes.glob("*.tif"):
        (broken / path.name).write_bytes(path.read_bytes())
    victim = max(broken.glob("*.tif"), key=lambda path: path.stat().st_size)
    whole, stat = victim.read_bytes(), victim.stat()
    mangled = bytearray(whole)
    middle = len(mangled) // 2
    mangled[middle : middle + 2000] = b"\0" * 2000
    victim.write_bytes(mangled)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    out = tmp_path / "out"
    out.mkdir()
    first = run_job(job(broken, out), client=client)
    assert first.paths == ()
    assert 0 < len(first.failed) < 81
    assert victim.stem[:20] in first.failed[0].error
    assert not list(out.glob("*.tif"))
    progress = job_progress(load_job(job(broken, out)))
    assert progress.state == "failed"
    assert len(progress.failures) == len(first.failed)
    assert progress.done + len(progress.failures) == progress.windows
    untried = run_job(job(broken, out), client=client, which="untried")
    assert untried.made == 0
    assert len(untried.failed) == len(first.failed)
    victim.write_bytes(whole)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
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


# --- Survival ------------------------------------------------------------------------------------------------------------


def start_scheduler(directory):
    file = Path(directory, "scheduler.json")
    file.unlink(missing_ok=True)
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    process = subprocess.Popen([sys.executable, "-m", "dask", "scheduler", *options], stderr=subprocess.DEVNULL)
    until(lambda: file.exists() and file.read_text().strip())
    return process, json.loads(file.read_text())["address"]


def start_worker(address):
    command = [sys.executable, "-m", "dask", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def start_job(directory, spec, address):
    file = Path(directory, "job.json")
    file.write_text(json.dumps({**spec, "cluster": address}))
    command = [sys.executable, "-c", "from s2composite.cli import main; main()", "run", str(file)]
    # A client looks for a scheduler that is gone for 30 s unless told otherwise.
    env = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def lines(directory):
    return sum(made(directory).values())


@pytest.fixture
def farm(tmp_path):
    """A scheduler and two workers that are nobody's children."""
    scheduler, address = start_scheduler(tmp_path)
    workers = [start_worker(address) for _ in range(2)]
    everyone = [scheduler, *workers]
    yield address, scheduler, workers, everyone
    for process in everyone:
        process.kill()
        process.wait()


def test_the_client_is_killed(scenes, undisturbed, farm, tmp_path):
    address, *_ = farm
    runner = start_job(tmp_path, job(scenes, tmp_path), address)
    until(lambda: lines(tmp_path) >= 10)
    runner.kill()
    runner.communicate()
    before = lines(tmp_path)
    assert before < 81
    assert not list(tmp_path.glob("median*.tif"))
    again = start_job(tmp_path, job(scenes, tmp_path), address)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "made before" in out
    assert digests(tmp_path) == undisturbed
    # What was under way when the client died may have been finished without anybody noting it, or be made again.
    assert sum(made(tmp_path).values()) <= 81 + 4


def test_workers_are_killed_one_after_the_other(scenes, undisturbed, farm, tmp_path):
    address, _, workers, everyone = farm
    runner = start_job(tmp_path, job(scenes, tmp_path), address)
    for n, victim in enumerate(list(workers)):
        until(lambda n=n: lines(tmp_path) >= 8 + 12 * n)
        os.kill(victim.pid, signal.SIGKILL)
        everyone.append(start_worker(address))
    _, err = runner.communicate(timeout=120)
    assert runner.returncode == 0, err
    assert digests(tmp_path) == undisturbed
    assert max(made(tmp_path).values()) == 1


def test_the_scheduler_is_killed(scenes, undisturbed, farm, tmp_path):
    address, scheduler, _, everyone = farm
    runner = start_job(tmp_path, job(scenes, tmp_path), address)
    until(lambda: lines(tmp_path) >= 10)
    scheduler.kill()
    _, err = runner.communicate(timeout=120)
    assert runner.returncode == 1, err
    assert "resume" in err
    assert not list(tmp_path.glob("median*.tif"))
    before = lines(tmp_path)
    fresh, address = start_scheduler(tmp_path)
    everyone += [fresh, start_worker(address)]
    again = start_job(tmp_path, job(scenes, tmp_path), address)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert digests(tmp_path) == undisturbed
    assert before >= 10
    assert "made before" in out


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
