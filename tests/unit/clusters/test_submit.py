"""Bounded calls: never more in flight than asked for, tried again where that helps, elsewhere, and given up in the end."""

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
    """Fail `times` times, then return who succeeded."""
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


def test_slow_are_made_and_few_at_a_time(client):
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


def test_what_may_pass_is_tried_again_elsewhere(client, tmp_path):
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


def test_what_will_not_pass_is_given_up_at_once(client, tmp_path):
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


def test_a_dying_worker_costs_one_call(client, tmp_path):
    outcomes = list(run_bounded(client, calls("die", die, str(tmp_path), n=4), QUICK))
    assert sorted(o.result for o in outcomes if o.error is None) == [0, 1, 2, 3]


def thawed(directory):
    """Let those go on that froze themselves, and have not been replaced for it."""
    for marker in directory.glob("frozen-*"):
        with suppress(ProcessLookupError):
            os.kill(int(marker.read_text()), signal.SIGCONT)


def test_a_frozen_worker_is_left_behind(tmp_path):
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        try:
            quick = Policy(attempts=50, pause=0.05, timeout=3)
            outcomes = list(run_bounded(client, iter([ClusterCall("freeze", freeze, (str(tmp_path), 0), 0)]), quick))
        finally:
            thawed(tmp_path)
        assert [o.result for o in outcomes if o.error is None] == [0]
        assert re.fullmatch(r"freeze: no answer in 3 s from worker tcp://\S+; it is frozen, .*", str(outcomes[0].error))


def test_a_scheduler_that_forbids_to_restart_workers_ends_nothing(tmp_path, caplog):
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
    """A result with which its worker freezes when it is to hand it over, the first time."""

    def __init__(self, directory, n):
        self.frozen, self.n = (directory, n), n

    def __reduce__(self):
        freeze(*self.frozen)
        return (int, (self.n,))


def test_a_worker_that_freezes_with_a_result_in_its_hands_costs_no_other(tmp_path, monkeypatch):
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
    """A result that cannot be unpickled where it is wanted."""

    def __reduce__(self):
        return (bug, ())


def test_workers_that_are_all_paused_are_told(monkeypatch, caplog):
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


def test_suspects_are_restarted_if_they_stay_silent_and_only_then(monkeypatch):
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


def test_a_scheduler_that_is_gone_is_said(tmp_path):
    client = s2c.connect("local", workers=1, threads=1, memory="1GB", dashboard=":0", announce=False)
    client.close()
    with pytest.raises(ClusterError, match="scheduler was lost"):
        list(run_bounded(client, calls("double", double), QUICK))


class Pressed:
    """Ctrl-C at a moment at which Python can only drop what it raises: in a destructor."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass  # between two steps the handler is called


def test_an_interrupt_that_python_drops_is_heeded(client, monkeypatch):
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


def test_an_interrupt_that_python_tells_is_told_once(client):
    outcomes = run_bounded(client, calls("told", double, n=1000), QUICK)
    next(outcomes)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    outcomes.close()
    assert len(list(run_bounded(client, calls("then", double), QUICK))) == 8
