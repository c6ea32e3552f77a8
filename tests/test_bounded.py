"""Bounded calls: never more in flight than asked for, tried again where that helps, elsewhere, and given up in the end."""

import itertools
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from distributed import get_worker

import s2composite as s2c
from s2composite.errors import ClusterError, ReadError
from s2composite.running.bounded import Call, Policy, run_bounded

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
    return (Call(f"{name}-{i}-{time.time_ns()}", function, (*args, i), i) for i in range(n))


def test_all_are_made_and_few_at_a_time(client):
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
        return Call(f"again-{n}", flaky_twice, (str(tmp_path), n), n)

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
    (outcome,) = run_bounded(client, iter([Call("hopeless", hopeless, (str(tmp_path),))]), QUICK)
    assert outcome.final
    assert outcome.attempt == 1
    assert "no x" in str(outcome.error)
    assert outcome.worker.startswith("tcp://")
    (*before, last) = run_bounded(client, iter([Call("bug", bug, ())]), QUICK)
    assert len(before) == 2, "an error of another kind may have any cause"
    assert isinstance(last.error, ZeroDivisionError)


def hopeless(directory):
    return flaky(directory, "x", 9, transient=False)


def bug():
    return 1 / 0


def test_a_dying_worker_costs_one_call(client, tmp_path):
    outcomes = list(run_bounded(client, calls("die", die, str(tmp_path), n=4), QUICK))
    assert sorted(o.result for o in outcomes if o.error is None) == [0, 1, 2, 3]


def test_a_frozen_worker_is_left_behind(tmp_path):
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        start = time.monotonic()
        try:
            quick = Policy(attempts=3, pause=0.05, timeout=3)
            outcomes = list(run_bounded(client, iter([Call("freeze", freeze, (str(tmp_path), 0), 0)]), quick))
        finally:
            for marker in tmp_path.glob("frozen-*"):
                with suppress(ProcessLookupError):  # it was not heard of, so it has been replaced
                    os.kill(int(marker.read_text()), signal.SIGCONT)
        assert [o.result for o in outcomes if o.error is None] == [0]
        assert "no answer in 3 s" in str(outcomes[0].error)
        assert time.monotonic() - start < 30


def test_a_scheduler_that_is_gone_is_said(tmp_path):
    client = s2c.connect("local", workers=1, threads=1, memory="1GB", dashboard=":0", announce=False)
    client.close()
    with pytest.raises(ClusterError, match="scheduler is gone"):
        list(run_bounded(client, calls("double", double), QUICK))
