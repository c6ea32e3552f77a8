"""The store of jobs: the same on SQLite and PostgreSQL, also with concurrent access."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s2composite.errors import ParameterError
from s2composite.service.queue import JobStore
from support.storage_servers import free_port

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
INITDB = shutil.which("initdb") or next((str(b / "initdb") for b in BINARIES), None)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A separate PostgreSQL server."""
    if INITDB is None:
        pytest.skip("no PostgreSQL here; install postgresql")
    pytest.importorskip("psycopg")
    # It will not run as root, and needs a directory that it may enter.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    home = Path("/tmp") / f"s2composite-postgres-{os.getpid()}"
    home.mkdir()
    if user:
        shutil.chown(home, "postgres")
    port, control = free_port(), str(Path(INITDB).resolve().with_name("pg_ctl"))
    data = str(home / "data")
    try:
        subprocess.run([*user, INITDB, "-D", data, "-U", "test", "-A", "trust"], check=True, capture_output=True)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home} -c fsync=off"
        start = [*user, control, "-D", data, "-o", options, "-l", str(home / "log"), "-w", "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
        yield f"postgresql+psycopg://test@127.0.0.1:{port}/postgres"
        subprocess.run([*user, control, "-D", data, "-m", "immediate", "stop"], check=True, capture_output=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request, tmp_path):
    return f"sqlite:///{tmp_path}/service.db" if request.param == "sqlite" else request.getfixturevalue("postgres")


@pytest.fixture
def store(url):
    store = JobStore(url)
    for row in store.jobs(1000):
        store.transition(row.id, ("queued", "running"), "cancelled")
    yield store
    store.close()


def test_job_states_in_the_store(store, url):
    assert store.add("a-1", '{"source": "x"}', 10)
    assert store.get("a-1").state == "queued"
    assert store.get("nobody") is None
    row = store.claim()
    assert (row.id, row.state, row.attempts) == ("a-1", "running", 1)
    assert store.claim() is None
    assert not store.transition("a-1", ("queued",), "cancelled")
    assert store.transition("a-1", ("running",), "failed", error="because")
    assert store.get("a-1").error == "because"
    assert store.get("a-1").ended is not None
    assert store.transition("a-1", ("failed",), "queued", error=None, ended=None)
    assert store.claim().attempts == 2
    again = JobStore(url)
    assert again.get("a-1").state == "running", "another connection sees it"
    assert again.requeue() == 1
    assert store.get("a-1").state == "queued"
    again.close()


def test_waiting_jobs_are_limited(store):
    assert [store.add(f"b-{i}", "{}", 3) for i in range(5)] == [True] * 3 + [False] * 2


def test_job_is_claimed_once(store):
    """With many concurrent claims, while others are added and cancelled."""
    names = [f"c-{i:03d}" for i in range(60)]

    def take(_):
        taken = []
        for _ in range(40):
            row = store.claim()
            if row is not None:
                taken.append(row.id)
        return taken

    with ThreadPoolExecutor(9) as pool:
        adding = pool.submit(lambda: [store.add(name, "{}", 1000) for name in names])
        taken = [name for part in pool.map(take, range(8)) for name in part]
        assert all(adding.result())
    while (row := store.claim()) is not None:
        taken.append(row.id)
    assert sorted(taken) == names


def test_outdated_run_does_not_change_a_new_one(store):
    """A job is cancelled and requeued while its process ends: the outcome of the first run is ignored."""
    store.add("e-1", "{}", 100)
    first = store.claim()
    assert store.is_current(first)
    store.transition("e-1", ("running",), "cancelled")
    assert not store.is_current(first)
    store.transition("e-1", ("cancelled",), "queued")
    second = store.claim()
    assert not store.is_current(first)
    store.finish(first, "failed", "because")
    assert store.is_current(second)
    store.finish(second, "complete", None)
    assert (store.get("e-1").state, store.get("e-1").error) == ("complete", None)
    assert store.job_count() >= 1


def test_one_service_takes_jobs(store, url):
    other = JobStore(url)
    store.lock()
    with pytest.raises(ParameterError, match="another service runs jobs"):
        other.lock()
    other.close()
    store.close()
    third = JobStore(url)
    third.lock()
    third.close()


def test_jobs_are_listed_newest_first(store):
    for name in ("d-1", "d-2", "d-3"):
        store.add(name, "{}", 100)
        store.claim()
    times = [row.created for row in store.jobs(3)]
    assert times == sorted(times, reverse=True)
    assert len(store.jobs(2)) == 2


def test_dead_letters_are_kept_without_signatures(store):
    payload = {"datasets": ["https://u:pw1234@host/a.tif?sig=5ec7e7", "é"]}
    store.add_dead_letter("m1", {"status": 422}, payload)
    store.add_dead_letter("m2", {"status": 403}, None)
    assert store.dead_letter_count() >= 2
    newest, older = store.dead_letters(2)
    assert (newest["message"], older["message"], older["problem"]) == ("m2", "m1", {"status": 422})
    assert "5ec7e7" not in older["payload"]
    assert "pw1234" not in older["payload"]
    assert "host/a.tif" in older["payload"]
