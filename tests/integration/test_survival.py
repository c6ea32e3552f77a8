"""Jobs that survive: processes are killed and frozen, memory ends, storage fails; then the bytes are those of an undisturbed run."""

import os
import random
import re
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from distributed import Client

import s2composite as s2c
from s2composite.clusters.submit import ClusterCall, Policy, run_bounded
from s2composite.demo import make_scenes
from s2composite.runner.ledger import read_ledger
from s2composite.runner.run import run_job
from s2composite.storage.files import filesystem
from support.flaky_proxy import flaky_proxy
from support.http_faults import Gate, fault_server
from support.job_helpers import (
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
from support.storage_servers import CREDENTIALS, s3_server
from support.writing_helpers import assert_same_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
"""Each starts half a dozen processes; a machine with too much to do takes minutes for that."""


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
    return directory


@pytest.fixture
def farm(tmp_path):
    with farm_in(tmp_path) as farm:
        yield farm


@pytest.fixture
def held(scenes):
    """The scenes on a server, and the gate before what the lower windows need: so long, there is a middle of a job."""
    gate = Gate(0.7)
    with fault_server(scenes, gate=gate) as server:
        yield [server.url(path.name) for path in sorted(scenes.glob("*.tif"))], gate


def lines(directory):
    return sum(made(directory).values())


def test_the_client_is_killed(undisturbed, held, farm, tmp_path):
    address, *_ = farm
    urls, gate = held
    spec = {**job("", tmp_path), "source": urls}
    runner = start_job(tmp_path, spec, address)
    until(lambda: lines(tmp_path) >= 10)
    runner.kill()
    runner.communicate()
    noted = set(made(tmp_path))
    assert len(noted) < 81
    assert not list(tmp_path.glob("median*.tif"))
    gate.open()
    again = start_job(tmp_path, spec, address)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert "made before" in out
    assert_same_files(tmp_path, undisturbed)
    # What was made when the client died without anybody noting it was found; nothing was made again that was noted.
    assert set(made(tmp_path).values()) == {1}
    found = [tuple(event["window"]) for event in events(tmp_path) if event["event"] == "found"]
    assert noted.isdisjoint(found)
    assert sorted([*made(tmp_path), *found]) == sorted(np.ndindex(9, 9))


def test_workers_are_killed_one_after_the_other(undisturbed, held, farm, tmp_path):
    address, _, workers, everyone = farm
    urls, gate = held
    runner = start_job(tmp_path, {**job("", tmp_path), "source": urls}, address)
    for n, victim in enumerate(list(workers)):
        until(lambda n=n: lines(tmp_path) >= 8 + 12 * n)
        os.kill(victim.pid, signal.SIGKILL)
        everyone.append(start_worker(address))
    gate.open()
    _, err = runner.communicate(timeout=240)
    assert runner.returncode == 0, err
    assert_same_files(tmp_path, undisturbed)
    assert set(made(tmp_path).values()) == {1}


def test_the_scheduler_is_killed(undisturbed, held, farm, tmp_path):
    address, scheduler, _, everyone = farm
    urls, gate = held
    spec = {**job("", tmp_path), "source": urls}
    runner = start_job(tmp_path, spec, address)
    until(lambda: lines(tmp_path) >= 10)
    scheduler.kill()
    _, err = runner.communicate(timeout=240)
    assert runner.returncode == 1, err
    assert "resume" in err
    assert not list(tmp_path.glob("median*.tif"))
    gate.open()
    fresh, address = start_scheduler(tmp_path)
    everyone += [fresh, start_worker(address)]
    again = start_job(tmp_path, spec, address)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert_same_files(tmp_path, undisturbed)
    assert set(made(tmp_path).values()) == {1}
    assert "made before" in out


def test_workers_are_killed_while_the_files_are_put_together(scenes, undisturbed, tmp_path):
    # Each has begun a file, and is about to read what belongs into it.
    with farm_in(tmp_path, dies_at=["*.parts/*.assembled", "*.parts/*"]) as (address, _, workers, everyone):
        runner = start_job(tmp_path, job(scenes, tmp_path), address)
        until(lambda: all(worker.poll() is not None for worker in workers))
        assert list(tmp_path.glob("*.parts/*.assembled"))
        everyone += [start_worker(address), start_worker(address)]
        _, err = runner.communicate(timeout=240)
    assert runner.returncode == 0, err
    assert_same_files(tmp_path, undisturbed)
    assert set(made(tmp_path).values()) == {1}
    assert not list(tmp_path.glob("*.parts"))


def test_workers_are_killed_while_shards_are_written(scenes, tmp_path):
    (tmp_path / "whole").mkdir()
    shard = "*.partial/composite/c/0/*/*"
    with farm_in(tmp_path, dies_at=[shard] * 3) as (address, _, workers, everyone):
        runner = start_job(tmp_path, store_job(scenes, tmp_path), address)
        until(lambda: any(worker.poll() is not None for worker in workers))
        everyone.append(start_worker(address))
        _, err = runner.communicate(timeout=240)
        with Client(address) as client:
            run_job(store_job(scenes, tmp_path / "whole"), client=client)
    assert runner.returncode == 0, err
    found = digests(tmp_path)
    assert {name: found[name] for name in found if not name.startswith("whole")} == digests(tmp_path / "whole")
    assert set(made(tmp_path / "median.zarr").values()) == {1}


@pytest.mark.parametrize("kind", ["tif", "zarr"])
def test_a_frozen_worker_is_left_behind_and_does_no_harm_when_it_wakes(undisturbed, held, farm, tmp_path, kind):
    address, _, workers, _ = farm
    urls, gate = held
    make, output = (job, "median.tif") if kind == "tif" else (store_job, "median.zarr")
    spec = make("", tmp_path, policy={"timeout": 8, "pause": 0.1, "attempts": 20}) | {"source": urls}
    with Client(address) as client:
        (frozen,) = (at for at, pid in client.run(os.getpid).items() if pid == workers[0].pid)
    runner = start_job(tmp_path, spec, address)
    until(lambda: sum(made(tmp_path / output).values()) >= 3)
    os.kill(workers[0].pid, signal.SIGSTOP)
    try:
        gate.open()
        _, err = runner.communicate(timeout=240)
        assert runner.returncode == 0, err
        before = digests(tmp_path)
        told = [event for event in events(tmp_path / output) if event["event"] == "retry"]
        # It was at a call, or held the result of one; another worker may have been too slow as well.
        known = "no answer in 8 s from worker|holds the result but does not send it"
        assert [event["error"] for event in told if not re.search(known, event["error"])] == []
        assert frozen in {event["worker"] for event in told}
    finally:
        os.kill(workers[0].pid, signal.SIGCONT)
    ended(address, workers[0], frozen)
    assert digests(tmp_path) == before
    if kind == "tif":
        assert_same_files(tmp_path, undisturbed)
    assert set(made(tmp_path / output).values()) == {1}
    assert sorted(path.name for path in tmp_path.glob("median*")) == sorted(
        {*(name.split("/")[0] for name in before), f"{output}.ledger"}
    )


def ended(address, process, worker):
    """Wait until a worker that wakes has ended what it was at: it hears that it is no longer wanted and goes, or has room.

    It was asked to go if the job had so much to do without it that it was found to be frozen.
    """
    with Client(address) as client:
        if worker in client.nthreads():
            client.submit(os.getpid, workers=[worker], pure=False).result(timeout=120)
        else:
            until(lambda: process.poll() is not None)


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
    # One call for each thread: one that waits behind a greedy one would be taken for the cause as well.
    policy = Policy(attempts=2, pause=0.05, timeout=240, look_ahead=1)
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        client = s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False)
    with client:
        turns = ["never", "once", "never", "always", "never"]
        calls = (ClusterCall(f"eat-{i}", eat, (str(tmp_path), i, greedy), i) for i, greedy in enumerate(turns))
        outcomes = list(run_bounded(client, calls, policy))
    assert sorted(o.result for o in outcomes if o.error is None) == [0, 1, 2, 4]
    (failed,) = [o for o in outcomes if o.final and o.error is not None]
    assert failed.call.about == 3
    assert "died, most likely out of memory; use smaller chunks" in str(failed.error)


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


def no_more_memory(dask_worker):
    """Let a nanny's worker have no more memory than it has now: it is killed for that, and may be again."""
    rss = psutil.Process(dask_worker.process.process.pid).memory_info().rss
    dask_worker.memory_manager.memory_limit = rss


def test_a_worker_that_is_killed_for_its_memory_while_it_makes_windows(undisturbed, held, tmp_path):
    urls, gate = held
    spec = {**job("", tmp_path, policy={"pause": 0.1, "attempts": 20}), "source": urls}
    with (
        s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(run_job, spec, client=client)
        until(lambda: gate.held and all(client.processing().values()))
        pids = client.run(os.getpid)
        poor = min(pids)
        client.run(no_more_memory, workers=[poor], nanny=True)
        until(lambda: client.get_events("worker-restart-memory"))
        gate.open()
        result = running.result(timeout=240)
        ((_, first), *_) = client.get_events("worker-restart-memory")
    assert first["pid"] == pids[poor]
    assert result.made == result.windows == 81
    assert_same_files(tmp_path, undisturbed)
    assert set(made(tmp_path).values()) == {1}


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
