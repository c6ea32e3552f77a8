"""Clusters over SSH: a real server, real keys, real workers."""

import os
import sys

import psutil
import pytest

from s2composite import connect
from s2composite.clusters.backends import ssh_arguments
from s2composite.clusters.connect import read_cluster
from s2composite.errors import ClusterError, JobError
from s2composite.metrics import running_workers
from support.sshd import SSHD, make_key, ssh_server
from support.storage_servers import free_port


def needs_sshd(test):
    """Mark a test that starts an SSH server: it is slow, and skipped where there is none."""
    return pytest.mark.slow(pytest.mark.skipif(SSHD is None, reason="no sshd here; install openssh-server")(test))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def seen(dask_worker):
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "GDAL_HTTP_MAX_RETRY", "AWS_SECRET_ACCESS_KEY")
    return os.getpid(), dask_worker.state.nthreads, *(os.environ.get(name) for name in names)


def gdal_retries():
    from rasterio._env import get_gdal_config

    return str(get_gdal_config("GDAL_HTTP_MAX_RETRY"))


@needs_sshd
def test_workers_on_each_host_have_their_environment_and_closing_leaves_nothing(server, monkeypatch, capfd):
    sshd, options = server
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "it's secret")
    config = {**options, "threads": 3, "memory": "700MB", "environment": {"GDAL_HTTP_MAX_RETRY": 37}}
    with connect({**config, "credentials": ["AWS_SECRET_ACCESS_KEY"]}) as client:
        found = client.run(seen)
        retries = set(client.run(gdal_retries).values())
        limits = {worker["memory_limit"] for worker in running_workers(client).values()}
        processes = [psutil.Process(pid) for pid, *_ in found.values()]
        below = [sshd.pid in {parent.pid for parent in process.parents()} for process in processes]
        commands = [p.cmdline() for process in processes for p in [process, *process.parents()] if p.pid != os.getpid()]
        held = (repr(client.cluster.workers), str(client.shipped))
    assert len(processes) == 2
    assert all(below)
    assert {tuple(rest) for _, *rest in found.values()} == {(3, "1", "1", "37", "it's secret")}
    assert retries == {"37"}
    assert limits == {700_000_000}
    assert "secret" not in f"{commands} {held}".replace("'AWS_SECRET_ACCESS_KEY'", "").lower()
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert not alive
    assert capfd.readouterr().err.startswith("Dask: 2 workers x 3 threads, 0.7 GB each; dashboard: http://")


@needs_sshd
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"known_hosts": None}, "Host key is not trusted"),
        ({"key": "wrong"}, "Permission denied"),
        ({"python": "/nowhere/python"}, "/nowhere/python"),
        ({"python": f"{sys.executable} -S"}, "No module named"),
        ({"port": free_port()}, "refused|Connect call failed"),
    ],
    ids=["unknown host", "wrong key", "no python", "no dask", "no server"],
)
def test_what_keeps_a_worker_from_starting_is_told(server, tmp_path, monkeypatch, change, says):
    monkeypatch.setenv("HOME", str(tmp_path))  # neither known hosts nor keys of whoever runs the tests
    make_key(tmp_path / "wrong")
    if "key" in change:
        change = {"key": str(tmp_path / "wrong")}
    with pytest.raises(ClusterError, match=f"(?s)the ssh cluster did not start .*({says})"):
        connect({**server[1], **change}, announce=False)


@needs_sshd
def test_host_keys_are_not_asked_for_if_so_wished(server):
    options = {**server[1], "hosts": ["localhost"], "known_hosts": None, "check_host_keys": False}
    with connect(options, announce=False, workers=2, threads=1) as client:
        assert len(running_workers(client)) == 2


def test_arguments_of_the_cluster():
    options = read_cluster({"type": "ssh", "hosts": ["a", "b"], "environment": {"OMP_NUM_THREADS": 2, "GDAL_X": "'"}})
    arguments = ssh_arguments(options)
    assert arguments["hosts"] == ["a", "a", "b"]
    assert arguments["connect_options"] == {"port": 22, "connect_timeout": 60, "login_timeout": 60}
    assert arguments["worker_options"]["env"]["OMP_NUM_THREADS"] == "2"
    assert "GDAL_X" not in str(arguments)  # what is asked for travels over Dask's connections, not in a command line
    assert ssh_arguments(read_cluster({"type": "ssh", "hosts": ["a"], "scheduler": "s"}))["hosts"] == ["s", "a"]


WRONG = [
    ({"hosts": []}, "hosts"),
    ({"hosts": ["a"], "port": 0}, "a port number, got 0"),
    ({"hosts": ["a"], "environment": {"AWS_SECRET_ACCESS_KEY": "x"}}, "AWS_SECRET_ACCESS_KEY is a secret"),
    ({"hosts": ["a"], "environment": {"GDAL_DISABLE_READDIR_ON_OPEN": True}}, "put the value in quotes"),
    ({"hosts": ["a"], "environment": {"a b": "1"}}, "not the name of an environment variable"),
    ({"hosts": ["a"], "credentials": ["abc def/+"]}, "not its value; got 9 characters"),
    ({"hosts": ["a"], "credentials": ["NOT_SET_HERE"]}, "NOT_SET_HERE is not set here"),
    ({"hosts": ["a"], "maximum": 3}, "unknown key 'cluster.maximum'"),
]


@pytest.mark.parametrize(("options", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_options_start_nothing(options, says):
    with pytest.raises(JobError, match=says.replace("(", r"\(")) as caught:
        connect({"type": "ssh", **options})
    assert "abc def" not in str(caught.value)
