"""Jobs that survive: processes are killed and frozen, memory ends, storage fails; then the bytes are those of an undisturbed run."""

import os
import random
import resource
import signal
import time
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import Client
from flaky_proxy import flaky_proxy
from http_faults import fault_server
from job_helpers import (
    digests,
    events,
    farm_in,
    job,
    made,
    start_job,
    start_scheduler,
    start_worker,
    store_job,
    until,
)
from storage_servers import CREDENTIALS, s3_server

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.running.bounded import Call, Policy, run_bounded
from s2composite.running.ledger import read_ledger
from s2composite.running.run import run_job
from s2composite.scenes.storage import filesystem


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("many") / "scenes"
    make_scenes(str(directory), scenes=6, size=1100, seed=2, compress="deflate")
    return directory


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        run_job(job(scenes, directory), client=client)
    return digests(directory)


@pytest.fixture
def farm(tmp_path):
    with farm_in(tmp_path) as farm:
        yield farm


def lines(directory):
    return sum(made(directory).values())


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


def test_workers_are_killed_while_the_files_are_put_together(scenes, undisturbed, farm, tmp_path):
    address, _, workers, everyone = farm
    runner = start_job(tmp_path, job(scenes, tmp_path), address)
    until(lambda: list(tmp_path.glob("*.parts/*.assembled")), pause=0.001)
    for victim in workers:
        victim.kill()
    everyone += [start_worker(address), start_worker(address)]
    _, err = runner.communicate(timeout=120)
    assert runner.returncode == 0, err
    assert digests(tmp_path) == undisturbed
    assert max(made(tmp_path).values()) == 1
    assert not list(tmp_path.glob("*.parts"))


def test_a_worker_is_killed_while_shards_are_written(scenes, farm, tmp_path):
    address, _, workers, everyone = farm
    (tmp_path / "whole").mkdir()
    with Client(address) as client:
        run_job(store_job(scenes, tmp_path / "whole"), client=client)
    runner = start_job(tmp_path, store_job(scenes, tmp_path), address)
    until(lambda: list(tmp_path.glob("*.partial/composite/c/0/*/*")), pause=0.001)
    workers[0].kill()
    everyone.append(start_worker(address))
    _, err = runner.communicate(timeout=120)
    assert runner.returncode == 0, err
    found = digests(tmp_path)
    assert {name: found[name] for name in found if not name.startswith("whole")} == digests(tmp_path / "whole")
    assert set(made(tmp_path / "median.zarr").values()) == {1}


@pytest.mark.parametrize("kind", ["tif", "zarr"])
def test_a_frozen_worker_is_left_behind_and_does_no_harm_when_it_wakes(scenes, undisturbed, farm, tmp_path, kind):
    address, _, workers, _ = farm
    make, output = (job, "median.tif") if kind == "tif" else (store_job, "median.zarr")
    spec = make(scenes, tmp_path, policy={"timeout": 8, "pause": 0.1, "attempts": 8})
    runner = start_job(tmp_path, spec, address)
    until(lambda: sum(made(tmp_path / output).values()) >= 3)
    os.kill(workers[0].pid, signal.SIGSTOP)
    try:
        _, err = runner.communicate(timeout=120)
        assert runner.returncode == 0, err
        before = digests(tmp_path)
        told = [event for event in events(tmp_path / output) if event["event"] == "retry"]
        assert all("no answer in 8 s" in event["error"] for event in told)
        assert told
    finally:
        os.kill(workers[0].pid, signal.SIGCONT)
    # It ends what it was at, hears that it is no longer wanted, and goes.
    until(lambda: workers[0].poll() is not None)
    assert digests(tmp_path) == before
    assert kind == "zarr" or before == undisturbed
    assert set(made(tmp_path / output).values()) == {1}
    assert sorted(path.name for path in tmp_path.glob("median*")) == sorted(
        {*(name.split("/")[0] for name in before), f"{output}.ledger"}
    )


# --- Memory --------------------------------------------------------------------------------------------------------------


def eat(directory, number, greedy):
    """Take memory until the worker is killed for it, if it is a greedy one's turn."""
    marker = Path(directory, f"ate-{number}")
    if greedy == "always" or (greedy == "once" and not marker.exists()):
        marker.touch()
        held = []
        while True:
            held.append(np.ones(1 << 22))  # 32 MiB, touched
            time.sleep(0.02)
    return number


def test_a_worker_that_runs_out_of_memory_costs_its_call_and_no_other(tmp_path):
    policy = Policy(attempts=2, pause=0.05, timeout=120)
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        client = s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False)
    with client:
        turns = ["never", "once", "never", "always", "never"]
        calls = (Call(f"eat-{i}", eat, (str(tmp_path), i, greedy), i) for i, greedy in enumerate(turns))
        outcomes = list(run_bounded(client, calls, policy))
    assert sorted(o.result for o in outcomes if o.error is None) == [0, 1, 2, 4]
    (failed,) = [o for o in outcomes if o.final and o.error is not None]
    assert failed.call.about == 3
    assert "died, most likely for want of memory; take smaller chunks" in str(failed.error)


def little_is_left(dask_worker):
    """Let this worker's process have no more memory than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20),) * 2)


def test_windows_for_which_a_worker_has_no_memory_are_made_by_another(scenes, tmp_path):
    spec = job(scenes, tmp_path, chunks=640, layers=["composite"], policy={"pause": 0.1, "attempts": 4})
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        run_job({**spec, "output": str(tmp_path / "whole.tif")}, client=client)
        poor = next(iter(client.nthreads()))
        client.run(little_is_left, workers=[poor])
        result = run_job(spec, client=client)
    assert (tmp_path / "median.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert result.made == result.windows == 4
    told = [event for event in events(tmp_path / "median.tif") if event["event"] == "retry"]
    assert {event["worker"] for event in told} <= {poor, None}
    assert set(made(tmp_path / "median.tif").values()) == {1}


# --- Storage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [job, store_job])
def test_storage_that_answers_one_request_in_twenty_with_an_error(scenes, tmp_path, make):
    chance = random.Random(5)
    faults = []

    def fault(path, number):
        if chance.random() >= 0.05:
            return None
        faults.append(chance.choice(["503", "reset", "short"]))
        return faults[-1]

    run_local = make(scenes, tmp_path, chunks=384)
    with (
        fault_server(scenes, fault=fault) as http,
        s3_server() as store,
        flaky_proxy(store.endpoint, share=0.05, seed=7) as tally,
        store.selected(**{**CREDENTIALS, "AWS_ENDPOINT_URL": tally.endpoint}),
        s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client,
    ):
        store.put("bucket/out/readme.txt", b"a bucket")
        run_job(run_local, client=client)
        urls = [http.url(path.name) for path in sorted(scenes.glob("*.tif"))]
        output = f"s3://bucket/out/{Path(run_local['output']).name}"
        remote = {**run_local, "source": urls, "output": output, "policy": {"pause": 0.1, "attempts": 5}}
        result = run_job(remote, client=client)
        assert result.paths
        assert result.failed == ()
        fs, root = filesystem("s3://bucket/out")
        found = {name.removeprefix(f"{root}/"): fs.cat_file(name) for name in fs.find(root)}
        kept = {name: data for name, data in found.items() if name.endswith(".tif") or ".zarr/" in name}
        told = read_ledger(output)
    expected = {name: Path(tmp_path, name).read_bytes() for name in digests(tmp_path)}
    assert sorted(kept) == sorted(expected)
    assert kept == expected
    assert faults
    assert len(tally.refused) > 2
    assert {tuple(event["window"]) for event in told if event["event"] == "done"} == set(made(run_local["output"]))
    done = [event for event in told if event["event"] == "done"]
    assert len(done) == result.windows == result.made
    assert len([event for event in told if event["event"] == "retry"]) <= len(faults) + len(tally.refused)
