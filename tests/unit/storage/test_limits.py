"""Limits of hosts: a server that counts refuses nothing, whoever reads, and as much is read as it allows."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import rasterio

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.errors import ParameterError, ReadError
from s2composite.geotiff.header import read_header
from s2composite.reading.warp import read_level
from s2composite.storage import limits
from s2composite.storage.http import ByteRange, Fetching, Identity, read_range
from s2composite.storage.limits import PRESETS, Desk, Rates, declare, limit_for, limits_text, permit, resolve_limits
from support.counting_server import SIZE, counting_server
from support.job_helpers import until

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    """Each test begins without limits, and leaves none."""
    monkeypatch.delenv(limits.VARIABLE, raising=False)
    monkeypatch.setattr(limits, "_declared", ())


def fetched(url, number, size=100):
    """Read byte ranges of one file, all asked for at once; return how many failed."""
    ranges = [ByteRange(url, Identity(SIZE), i * size, size) for i in range(number)]
    return sum(one.error is not None for _, one in Fetching(ranges))


# --- What is asked for ----------------------------------------------------------------------------------------------


def test_a_preset_is_what_its_host_says():
    (cdse,) = resolve_limits("cdse")
    assert (cdse.rates.connections, cdse.rates.requests, cdse.rates.period) == (4, 2000, 60)
    assert {limit.name for limit in resolve_limits(list(PRESETS))} == set(PRESETS)


def test_numbers_take_the_place_of_those_of_a_preset():
    cdse, own = resolve_limits({"cdse": {"connections": 2}, "a.org": {"requests": "10/second", "bytes": "1.5 MB"}})
    assert cdse.rates == Rates(2, 2000, 60.0, None)
    assert own.rates == Rates(None, 10, 1.0, 1.5e6)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("cdsee", "'cdsee' is neither a preset nor a host.*did you mean 'cdse'"),
        (["cdse", "nowhere"], "'nowhere'.*there are cdse, planetary-computer, earth-search"),
        ({"a.org": {"connections": -4}}, "a.org: connections: expected a whole number from 1, got -4"),
        ({"a.org": {"connections": 0}}, "a.org: connections"),
        ({"a.org": {"connections": True}}, "a.org: connections"),
        ({"a.org": {"connections": 2.5}}, "a.org: connections"),
        ({"cdse": {"requests": -1}}, "cdse: requests: .*got -1"),
        ({"cdse": {"requests": "10/hour"}}, "cdse: requests: .*'100/second', got '10/hour'"),
        ({"cdse": {"requests": "0/second"}}, "cdse: requests"),
        ({"a.org": {"bytes": "much"}}, "a.org: bytes: .*20MB, got 'much'"),
        ({"a.org": {"bytes": float("inf")}}, "a.org: bytes"),
        ({"a.org": {"bytes": float("nan")}}, "a.org: bytes"),
        ({"a.org": {"conections": 4}}, "a.org: conections: unknown key; did you mean connections"),
        ({"a.org": 4}, "a.org: expected numbers such as {connections: 4}, got 4"),
        ({"a.org": {}}, "a.org: has no numbers"),
        ("a.org", "a.org: has no numbers"),
        (4, "expected a preset .*got 4"),
        ([4], r"expected a preset .*got \[4\]"),
    ],
)
def test_what_is_wrong_is_named(given, named):
    with pytest.raises(ParameterError, match=f"^limits: {named}"):
        resolve_limits(given)
    with pytest.raises(ParameterError, match=f"^limits: {named}"):
        s2c.open_cube("nowhere", limits=given)


def test_the_environment_is_checked_when_something_is_read(monkeypatch):
    for text, named in (("cdsee", "did you mean 'cdse'"), ("{cdse: ", "S2COMPOSITE_LIMITS is not valid YAML")):
        monkeypatch.setenv(limits.VARIABLE, text)
        with pytest.raises(ParameterError, match=named):
            limit_for("https://a.org/a.tif")


def test_the_nearer_one_holds_host_by_host(monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "{cdse: {connections: 3}, a.org: {connections: 5}}")
    cdse, other = "https://eodata.dataspace.copernicus.eu/a.jp2", "https://data.a.org/a.tif"
    assert limit_for(cdse).rates.connections == 3
    monkeypatch.setenv(limits.VARIABLE, limits_text({"cdse": {"connections": 2}}))
    assert (limit_for(cdse).rates.connections, limit_for(other).rates.connections) == (2, 5)
    declare(resolve_limits({"cdse": {"connections": 1}}))
    assert (limit_for(cdse).rates.connections, limit_for(other).rates.connections) == (1, 5)


def test_the_most_particular_host_holds(monkeypatch):
    declare(resolve_limits({"a.org": {"connections": 5}, "data.a.org": {"connections": 2}}))
    found = {host: limit_for(f"https://{host}/a.tif") for host in ("a.org", "x.data.a.org", "data.a.org", "ba.org")}
    assert {host: limit and limit.name for host, limit in found.items()} == {
        "a.org": "a.org", "x.data.a.org": "data.a.org", "data.a.org": "data.a.org", "ba.org": None
    }  # fmt: skip


def test_objects_on_stores_have_hosts(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    declare(resolve_limits(["cdse", "earth-search"]))
    assert limit_for("s3://sentinel-cogs/a.tif").name == "earth-search"
    assert limit_for("https://sentinel-cogs.s3.us-west-2.amazonaws.com/a.tif").name == "earth-search"
    assert limit_for("s3://eodata/a.jp2") is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://eodata.dataspace.copernicus.eu")
    assert limit_for("s3://eodata/a.jp2").name == "cdse"


def test_without_limits_nothing_is_counted(monkeypatch):
    asked = []
    monkeypatch.setattr(limits._Gate, "turn", lambda *a: asked.append(a))

    async def read():
        async with permit("https://a.org/a.tif", 100) as lease:
            assert lease is None

    asyncio.run(read())
    declare(resolve_limits({"b.org": {"connections": 1}}))
    asyncio.run(read())
    assert not asked


# --- The desk, in a time of its own -----------------------------------------------------------------------------------


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to what comes next."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, min(timer.when() for timer in self._scheduled if not timer.cancelled()))
        super()._run_once()


def in_virtual_time(coroutine):
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(coroutine(loop))
    finally:
        loop.close()


async def worker(desk, loop, name, rates, number, host, rng, size=0):
    """Make requests as a process does, with answers that take from 20 ms to 200 ms."""
    left = number
    while left:
        grant = await desk.lease(name, "host", rates, [(1, size)] * min(left, 64))
        made = 0
        while made < grant.requests:
            before, after = rng.uniform(0.01, 0.1), rng.uniform(0.01, 0.1)
            host.append((loop.time() + before, 1, size))
            host.append((loop.time() + before + after, -1, 0))
            await asyncio.sleep(before + after)
            made += 1
        left -= made
        desk.settle(grant.number, made, size * made)


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_requests_of_eight_processes_at_the_limits_of_cdse(seed):
    """What arrives at the host, in any minute, is what it allows; and 95 % of what it allows arrives."""
    rates, host, rng = PRESETS["cdse"].rates, [], random.Random(seed)

    async def all_workers(loop):
        desk = Desk(clock=loop.time)
        await asyncio.gather(*(worker(desk, loop, f"w{i}", rates, 1250, host, rng) for i in range(8)))

    in_virtual_time(all_workers)
    arrivals = np.sort([time for time, step, _ in host if step == 1])
    assert len(arrivals) == 10_000
    assert (arrivals[2000:] - arrivals[:-2000]).min() >= 60
    running = itertools.accumulate(step for _, step, _ in sorted(host))
    assert max(running) <= 4
    assert 10_000 / (arrivals[-1] - arrivals[0]) * 60 >= 0.95 * 2000


def test_bytes_a_second_are_kept_on_average():
    rates, host, rng = Rates(bytes=1e6), [], random.Random(0)

    async def all_workers(loop):
        desk = Desk(clock=loop.time)
        await asyncio.gather(*(worker(desk, loop, f"w{i}", rates, 100, host, rng, 200_000) for i in range(4)))

    in_virtual_time(all_workers)
    times, _, sizes = np.array(sorted(host)).T
    sent = np.cumsum(sizes)
    # 80 MB at 1 MB/s; the bytes of one lease, a second's, and those that were on their way may come before their time
    assert times[-1] >= 78
    assert times[-1] <= 80 / 0.95 + 20
    assert (sent - (times - times[0]) * 1e6).max() <= 3e6


def test_a_holder_that_dies_gives_back_its_connections_and_its_requests_go_on_counting():
    alive = {"a", "b"}

    async def story(loop):
        desk = Desk(lambda holder: holder in alive, loop.time)
        rates = Rates(connections=1, requests=3, period=60.0)
        await desk.lease("a", "host", rates, [(3, 0)])
        waiting = asyncio.ensure_future(desk.lease("b", "host", rates, [(1, 0)]))
        dead = asyncio.ensure_future(desk.lease("a", "host", rates, [(1, 0)]))
        await asyncio.sleep(10)
        assert not waiting.done()
        alive.remove("a")
        desk.forget("a")
        grant = await waiting
        assert await dead is None or desk.settle(grant.number, 1, 0) or await dead is None
        return loop.time(), grant

    time, grant = in_virtual_time(story)
    assert grant.requests == 1
    assert 70 <= time <= 71


def test_a_read_of_more_requests_than_a_period_allows_begins_all_the_same():
    async def story(loop):
        desk, rates = Desk(clock=loop.time), Rates(requests=10, period=1.0)
        first = await desk.lease("a", "host", rates, [(1000, 0)])
        desk.settle(first.number, first.requests, 0)
        await desk.lease("a", "host", rates, [(1000, 0)])
        return loop.time()

    assert 1 <= in_virtual_time(story) <= 1.1


def test_a_lease_that_was_settled_twice_counts_once():
    async def story(loop):
        desk, rates = Desk(clock=loop.time), Rates(connections=1)
        first = await desk.lease("a", "host", rates, [(1, 0)])
        desk.settle(first.number, 1, 0)
        desk.settle(first.number, 1, 0)
        await desk.lease("a", "host", rates, [(1, 0)])
        third = asyncio.ensure_future(desk.lease("a", "host", rates, [(1, 0)]))
        await asyncio.sleep(1)
        assert not third.done()
        third.cancel()

    in_virtual_time(story)


# --- A server that counts -------------------------------------------------------------------------------------------


def test_threads_of_a_process_keep_the_limits():
    with counting_server(connections=3, requests=100, period=1.0, latency=0.002) as server:
        declare(resolve_limits({HOST: {"connections": 3, "requests": "100/second"}}))
        with ThreadPoolExecutor(6) as pool:
            failed = list(pool.map(lambda i: fetched(f"{server.url}/{i}", 50), range(6)))
        seen = server.stats()
    assert failed == [0] * 6
    assert (seen["requests"], seen["refused"]) == (300, 0)
    assert seen["most_open"] <= 3


@pytest.mark.slow
def test_without_limits_the_same_server_refuses():
    """The server of these tests can tell: what the test above does is refused without limits."""
    with counting_server(connections=3, requests=100, period=1.0, latency=0.002) as server:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda i: fetched(f"{server.url}/{i}", 50), range(6)))
        assert server.stats()["refused"] > 0


def test_bytes_are_counted_too():
    with counting_server() as server:
        declare(resolve_limits({HOST: {"bytes": "1MB"}}))
        begun = time.monotonic()
        assert fetched(f"{server.url}/a", 30, 100_000) == 0
        # 3 MB at 1 MB/s, of which the last second's may come at once
        assert time.monotonic() - begun >= 2


def test_what_is_given_up_gives_back_its_turn():
    with counting_server(connections=1, latency=0.3) as server:
        declare(resolve_limits({HOST: {"connections": 1}}))
        for i in range(3):
            fetching = Fetching([ByteRange(f"{server.url}/{i}", Identity(SIZE), n * 10, 10) for n in range(20)])
            until(lambda i=i: server.stats()["requests"] > i)
            fetching.close()
        assert fetched(f"{server.url}/after", 2) == 0
        assert server.stats()["refused"] == 0


@pytest.mark.slow
def test_what_fails_gives_back_its_turn(tmp_path):
    declare(resolve_limits({HOST: {"connections": 1}}))
    with counting_server(tmp_path, requests=0) as server:
        for _ in range(2):
            with pytest.raises(ReadError, match="429"):
                read_range(f"{server.url}/a", 0, 10, Identity(SIZE))


@pytest.fixture
def jp2(tmp_path):
    values = np.random.default_rng(0).integers(1, 4000, (1, 1100, 900)).astype(np.uint16)
    path = tmp_path / "T31TCJ_20230709T104629_B04.jp2"
    options = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "crs": "EPSG:32631"}
    transform = rasterio.Affine(10, 0, 300000, 0, -10, 4900020)
    with rasterio.open(
        path, "w", width=900, height=1100, count=1, dtype="uint16", transform=transform,
        blockxsize=256, blockysize=256, **options
    ) as dataset:  # fmt: skip
        dataset.write(values)
    return path, values


def test_reads_through_gdal_keep_connections(jp2):
    path, values = jp2
    with counting_server(path.parent, connections=2, latency=0.005) as server:
        declare(resolve_limits({HOST: {"connections": 2}}))
        header = read_header(f"{server.url}/{path.name}")

        def read(_):
            out = np.zeros_like(values)
            read_level(header, (0,), 0, (slice(0, 1100), slice(0, 900)), out)
            return out

        with ThreadPoolExecutor(5) as pool:
            for out in pool.map(read, range(5)):
                np.testing.assert_array_equal(out, values)
        seen = server.stats()
    assert seen["refused"] == 0
    assert seen["most_open"] <= 2


def test_requests_of_gdal_are_estimated_from_the_blocks(jp2, monkeypatch):
    """The estimate of a whole file is not below what GDAL asks the server for."""
    path, values = jp2
    estimated = []
    real = limits.permit
    monkeypatch.setattr(limits, "permit", lambda href, size, requests=1: estimated.append(requests) or real(href, size))
    with counting_server(path.parent) as server:
        declare(resolve_limits({HOST: {"requests": 10**6}}))
        header = read_header(f"{server.url}/{path.name}")
        before = server.stats()["requests"]
        estimated.clear()
        read_level(header, (0,), 0, (slice(0, 1100), slice(0, 900)), np.zeros_like(values))
        made = server.stats()["requests"] - before
    assert estimated == [2 + 5 * 4]
    assert made <= sum(estimated)


# --- Dask clusters --------------------------------------------------------------------------------------------------


def read_in_worker(url, number):
    import s2composite.cube.open  # noqa: F401 - as in every task

    return fetched(url, number)


def given_to_workers(client, text):
    client.run(lambda: os.environ.update({limits.VARIABLE: text}))


@pytest.fixture
def limited_workers(client_of_test, monkeypatch):
    """The client of two workers, where these and this process have limits."""

    def give(text):
        monkeypatch.setenv(limits.VARIABLE, text)
        given_to_workers(client_of_test, text)
        return client_of_test

    yield give
    client_of_test.run(lambda: os.environ.pop(limits.VARIABLE, None) and None)


@pytest.mark.slow
def test_workers_and_the_client_keep_the_limits_together(limited_workers):
    with counting_server(connections=2, requests=100, period=1.0, latency=0.002) as server:
        client = limited_workers(f"{{{HOST}: {{connections: 2, requests: 100/second}}}}")
        futures = [client.submit(read_in_worker, f"{server.url}/{i}", 100, pure=False) for i in range(2)]
        assert fetched(f"{server.url}/here", 100) == 0
        assert client.gather(futures) == [0, 0]
        seen = server.stats()
    assert (seen["requests"], seen["refused"]) == (300, 0)
    assert seen["most_open"] <= 2


def test_limits_of_a_cube_hold_in_the_workers(client_of_test, tmp_path):
    make_scenes(str(tmp_path), scenes=4, size=600, compress="deflate")
    with counting_server(tmp_path, connections=2, requests=40, period=1.0) as server:
        urls = [f"{server.url}/{path.name}" for path in sorted(tmp_path.glob("*.tif"))]
        cube = s2c.open_cube(urls, chunks=512, limits={HOST: {"connections": 2, "requests": "40/second"}})
        found = s2c.composite(cube).dataset["composite"].compute()
        seen = server.stats()
    expected = s2c.composite(s2c.open_cube(str(tmp_path), chunks=512)).dataset["composite"].compute()
    np.testing.assert_array_equal(found.values, expected.values)
    assert (seen["refused"], seen["most_open"] <= 2) == (0, True)
    client_of_test.restart()  # the workers of other tests have no limits


def test_limits_do_not_change_what_a_cube_is(tmp_path):
    make_scenes(str(tmp_path), scenes=2, size=256)
    plain, limited = s2c.open_cube(str(tmp_path)), s2c.open_cube(str(tmp_path), limits="cdse")
    assert plain.data.name == limited.data.name


@pytest.mark.slow
def test_a_worker_that_dies_gives_back_what_it_held(monkeypatch):
    """The only connection is held by a worker that is killed; the other one reads."""
    from distributed import Client, LocalCluster

    text = f"{{{HOST}: {{connections: 1}}}}"
    with (
        counting_server(latency=60) as slow,
        counting_server(connections=1) as server,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        given_to_workers(client, text)
        first, second = client.scheduler_info(n_workers=-1)["workers"]
        pid = client.run(os.getpid, workers=[first])[first]
        held = client.submit(read_in_worker, f"{slow.url}/a", 1, workers=[first], pure=False)
        until(lambda: slow.stats()["requests"] == 1)
        waiting = client.submit(read_in_worker, f"{server.url}/a", 5, workers=[second], pure=False)
        assert server.stats()["requests"] == 0
        held.release()
        os.kill(pid, signal.SIGKILL)
        assert waiting.result() == 0
        assert server.stats()["refused"] == 0


def test_where_the_scheduler_is_gone_a_process_counts_by_itself(monkeypatch, caplog):
    """A client waits for a lease in a scheduler that is killed: it reads all the same."""
    from distributed import Client

    # nested functions travel as they are: the scheduler cannot import this module
    async def take_all(dask_scheduler, holder, host):
        await dask_scheduler.handlers["s2composite_lease"](holder, host, (1, None, 60.0, None), [(1, 0)])

    def number_waiting(dask_scheduler, host):
        return len(dask_scheduler.plugins["s2composite-limits"]._desk._asks[host])

    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--host", HOST]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as scheduler, ExitStack() as undo:
        undo.callback(scheduler.kill)
        server = undo.enter_context(counting_server())
        address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at" in line)
        threading.Thread(target=scheduler.stderr.read, daemon=True).start()
        monkeypatch.setenv(limits.VARIABLE, f"{{{HOST}: {{connections: 1}}}}")
        client = undo.enter_context(Client(address))
        assert fetched(f"{server.url}/a", 3) == 0
        # somebody else holds the connection, and never gives it back
        client.run_on_scheduler(take_all, holder=client.id, host=HOST)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(fetched, f"{server.url}/b", 3)
            until(lambda: client.run_on_scheduler(number_waiting, host=HOST) == 1)
            assert server.stats()["requests"] == 3
            scheduler.kill()
            assert waiting.result() == 0
    assert any(
        "this process keeps the limits of 127.0.0.1: 1 connection by itself" in record.getMessage()
        for record in caplog.records
    )


@pytest.mark.slow
def test_eight_workers_are_refused_nothing():
    """A fifth of CDSE's ten thousand requests, at its connections and a faster rate; all of it: benchmarks/limits.py."""
    from distributed import Client, LocalCluster

    with (
        counting_server(connections=4, requests=200, period=1.0, latency=0.002) as server,
        LocalCluster(n_workers=8, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        given_to_workers(client, f"{{{HOST}: {{connections: 4, requests: 200/second}}}}")
        futures = [client.submit(read_in_worker, f"{server.url}/{i}", 250, pure=False) for i in range(8)]
        assert client.gather(futures) == [0] * 8
        seen = server.stats()
    assert (seen["requests"], seen["refused"]) == (2000, 0)
    assert seen["most_open"] <= 4
    assert seen["most_in_a_period"] <= 200
