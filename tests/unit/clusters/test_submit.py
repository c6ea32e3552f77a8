"""Bounded calls: a limited number in flight, retries on other workers, and failure after the last attempt."""

import itertools
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from distributed import Client, LocalCluster, get_worker

import s2composite as s2c
from s2composite.clusters.submit import ClusterCall, Policy, UnresponsiveWorkers, run_bounded
from s2composite.errors import ClusterError, ReadError, S2CompositeError
from s2composite.metrics import running_workers
from support.job_helpers import farm_in, until

# Kills, freezes and restarts workers; the limit only bounds a hang.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUICK = Policy(attempts=3, pause=0.05, timeout=60)


@pytest.fixture(scope="module")
def client():
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        yield client


def double(n):
    return 2 * n


def flaky(directory, n, times, transient):
    """Fail `times` times, then return the worker that succeeded."""
    tried = Path(directory, f"{n}")
    tried.mkdir(exist_ok=True)
    (tried / f"{time.time_ns()}-{get_worker().address.rsplit(':', 1)[1]}").touch()
    if len(list(tried.iterdir())) <= times:
        raise ReadError(f"no {n}", transient=transient)
    return n


def die(directory, n):
    marker = Path(directory, f"died-{n}")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def freeze(directory, n):
    marker = Path(directory, f"frozen-{n}")
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    return n


def calls(name, function, *args, n=8):
    return (ClusterCall(f"{name}-{i}-{time.time_ns()}", function, (*args, i), i) for i in range(n))


def test_all_calls_run_with_a_bounded_number_in_flight(client):
    asked = itertools.count()

    def watched():
        for call in calls("double", double, n=200):
            next(asked)
            yield call

    seen = []
    for outcome in run_bounded(client, watched(), Policy(look_ahead=3)):
        seen.append(outcome.result)
        assert next(asked) - 2 * len(seen) <= 3 * 2 + 1
    assert sorted(seen) == [2 * n for n in range(200)]


def test_transient_errors_are_retried_on_another_worker(client, tmp_path):
    def again(n):
        return ClusterCall(f"again-{n}", flaky_twice, (str(tmp_path), n), n)

    outcomes = list(run_bounded(client, iter([again("a"), again("b")]), QUICK))
    assert [o.attempt for o in outcomes if o.final] == [3, 3]
    assert sum(o.error is not None for o in outcomes) == 4
    for name in "ab":
        workers = [entry.name.rsplit("-", 1)[1] for entry in sorted((tmp_path / name).iterdir())]
        assert len(workers) == 3
        assert workers[0] != workers[1] != workers[2]


def flaky_twice(directory, n):
    return flaky(directory, n, 2, transient=True)


def test_permanent_errors_are_not_retried(client, tmp_path):
    (outcome,) = run_bounded(client, iter([ClusterCall("hopeless", hopeless, (str(tmp_path),))]), QUICK)
    assert outcome.final
    assert outcome.attempt == 1
    assert "no x" in str(outcome.error)
    assert outcome.worker.startswith("tcp://")
    (*before, last) = run_bounded(client, iter([ClusterCall("bug", bug, ())]), QUICK)
    assert len(before) == 2, "an error of another kind may have any cause"
    assert isinstance(last.error, ZeroDivisionError)


def hopeless(directory):
    return flaky(directory, "x", 9, transient=False)


def bug():
    return 1 / 0


def test_dead_worker_loses_only_its_call(client, tmp_path):
    outcomes = list(run_bounded(client, calls("die", die, str(tmp_path), n=4), QUICK))
    assert sorted(o.result for o in outcomes if o.error is None) == [0, 1, 2, 3]


def thawed(directory):
    """Resume workers that froze themselves and were not restarted."""
    for marker in directory.glob("frozen-*"):
        with suppress(ProcessLookupError):
            os.kill(int(marker.read_text()), signal.SIGCONT)


def test_frozen_worker_is_no_longer_used(tmp_path):
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        try:
            quick = Policy(attempts=50, pause=0.05, timeout=3)
            outcomes = list(run_bounded(client, iter([ClusterCall("freeze", freeze, (str(tmp_path), 0), 0)]), quick))
        finally:
            thawed(tmp_path)
        assert [o.result for o in outcomes if o.error is None] == [0]
        assert re.fullmatch(r"freeze: no answer in 3 s from worker tcp://\S+; it is frozen, .*", str(outcomes[0].error))


def test_scheduler_that_forbids_restarts_does_not_stop_the_run(tmp_path, caplog):
    blocked = {"DASK_DISTRIBUTED__SCHEDULER__BLOCKED_HANDLERS": '["run_function"]'}
    with farm_in(tmp_path, **blocked) as (address, *_), Client(address) as client:
        quick = Policy(attempts=50, pause=0.05, timeout=3)
        outcomes = list(run_bounded(client, calls("freeze", freeze, str(tmp_path), n=1), quick))
        with pytest.raises(ValueError, match="explicitly disallowed"):
            client.run_on_scheduler(os.getpid)
        thawed(tmp_path)
    assert [o.result for o in outcomes if o.error is None] == [0]
    assert "no answer in 3 s" in str(outcomes[0].error)
    assert "unresponsive workers could not be restarted: The 'run_function' handler has been" in caplog.text


class Clinging:
    """A result whose worker freezes when it first sends it."""

    def __init__(self, directory, n):
        self.frozen, self.n = (directory, n), n

    def __reduce__(self):
        freeze(*self.frozen)
        return (int, (self.n,))


def test_worker_frozen_with_a_result_loses_no_other_result(tmp_path, monkeypatch):
    monkeypatch.setattr("s2composite.clusters.submit._FETCH_TIMEOUT", 2.0)
    mixed = itertools.chain(calls("double", double, n=4), calls("cling", Clinging, str(tmp_path), n=1))
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        try:
            outcomes = list(run_bounded(client, mixed, Policy(attempts=50, pause=0.05, timeout=60)))
        finally:
            thawed(tmp_path)
    assert sorted(o.result for o in outcomes if o.error is None) == [0, 0, 2, 4, 6]
    lost = next(o for o in outcomes if o.error is not None and o.call.name.startswith("cling"))
    told = rf"cling-\S+: worker {lost.worker} holds the result but does not send it; it is frozen or .*"
    assert re.fullmatch(told, str(lost.error))
    assert not lost.final


class Unreadable:
    """A result that cannot be unpickled by the client."""

    def __reduce__(self):
        return (bug, ())


def test_paused_workers_are_logged(monkeypatch, caplog):
    monkeypatch.setattr("s2composite.clusters.submit._PAUSED_AFTER", 0.0)
    # Workers in threads of this process: the memory of the process is far beyond their limit, so they are paused.
    with (
        LocalCluster(n_workers=1, processes=False, memory_limit="1MB", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        until(lambda: {w["status"] for w in running_workers(client).values()} == {"paused"})
        (outcome,) = run_bounded(client, calls("paused", double, n=1), Policy(attempts=1, timeout=5))
    assert isinstance(outcome.error, S2CompositeError)
    assert "no answer in" in str(outcome.error)
    assert "all 1 workers are paused" in caplog.text


def unreadable(n):
    return Unreadable() if n == 1 else n


def test_a_result_that_cannot_be_unpickled_costs_no_other(client):
    outcomes = list(run_bounded(client, calls("unreadable", unreadable, n=4), QUICK))
    assert sorted(o.result for o in outcomes if o.error is None) == [0, 2, 3]
    failed = [o for o in outcomes if o.error is not None]
    assert [(o.call.about, o.attempt, o.final) for o in failed] == [(1, 1, False), (1, 2, False), (1, 3, True)]
    assert all(isinstance(o.error, ZeroDivisionError) and o.worker for o in failed)


def test_only_workers_that_stay_silent_are_restarted(monkeypatch):
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        pids = client.run(os.getpid)
        frozen, well = sorted(pids)
        unresponsive = UnresponsiveWorkers(client)
        unresponsive.add([well, None, "tcp://127.0.0.1:1"])
        unresponsive.restart_frozen()
        os.kill(pids[frozen], signal.SIGSTOP)
        try:
            unresponsive.add([frozen])
            unresponsive.restart_frozen()
            assert frozen in client.nthreads(), "not at once"
            until(lambda: silent_for(client, well) < 1 and silent_for(client, frozen) > 4)
            monkeypatch.setattr("s2composite.clusters.submit._HEARTBEAT_TIMEOUT", 4.0)
            until(lambda: unresponsive.restart_frozen() or frozen not in client.nthreads())
        finally:
            with suppress(ProcessLookupError):
                os.kill(pids[frozen], signal.SIGCONT)
        until(lambda: pids[frozen] not in client.run(os.getpid, on_error="return").values())


def silent_for(client, worker):
    return time.time() - running_workers(client)[worker]["last_seen"]


def test_lost_scheduler_raises_cluster_error(tmp_path):
    client = s2c.connect("local", workers=1, threads=1, memory="1GB", dashboard=":0", announce=False)
    client.close()
    with pytest.raises(ClusterError, match="scheduler was lost"):
        list(run_bounded(client, calls("double", double), QUICK))


class Pressed:
    """Ctrl-C in a destructor, where Python drops exceptions."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass  # between two steps the handler is called


def test_interrupt_dropped_by_python_still_stops_the_run(client, monkeypatch):
    dropped, before = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "unraisablehook", lambda args: dropped.append(args.exc_type))
    outcomes = run_bounded(client, calls("interrupted", double, n=1000), QUICK)
    next(outcomes)
    Pressed()
    assert dropped == [KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        list(outcomes)
    assert signal.getsignal(signal.SIGINT) == before
    assert len(list(run_bounded(client, calls("after", double), QUICK))) == 8


def test_interrupt_is_raised_once(client):
    outcomes = run_bounded(client, calls("told", double, n=1000), QUICK)
    next(outcomes)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    outcomes.close()
    assert len(list(run_bounded(client, calls("then", double), QUICK))) == 8
