"""check_cluster(): with real healthy and unhealthy workers."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from s2composite import connect
from s2composite.cli import app
from s2composite.clusters.check import check_cluster
from s2composite.errors import ClusterError, ParameterError
from s2composite.metrics import running_workers
from s2composite.storage.files import join
from support import PYTHONPATH
from support.storage_servers import free_port

DASK = "from dask.__main__ import main; main()"
LACKING = f"import sys; sys.modules['s2composite'] = None; {DASK}"
"""A Dask worker in whose Python there is no s2composite."""


def mounts():
    """Return whether a process can have a private mount of a directory here."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A directory that all workers but one share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, shared):
    """A scheduler with one healthy and several unhealthy workers; yields its address and their processes."""
    directory = tmp_path_factory.mktemp("zoo")
    odd = directory / "odd" / "numba-0.1.dist-info"
    odd.mkdir(parents=True)
    (odd / "METADATA").write_text("Metadata-Version: 2.1\nName: numba\nVersion: 0.1\n")
    address = f"tcp://127.0.0.1:{free_port()}"
    paths = PYTHONPATH
    worker = ["worker", address, "--nworkers", "1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]

    def process(code, *arguments, path=paths, before=()):
        command = [*before, sys.executable, "-c", code, *arguments]
        environment = {**os.environ, "PYTHONPATH": path}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=environment, cwd=directory, **quiet)

    def named(name):
        return [*worker, "--name", name]

    apart = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(shared)]
    processes = {
        "scheduler": process(DASK, "scheduler", "--host", address, "--dashboard-address", "127.0.0.1:0"),
        "well": process(DASK, *named("well"), "--memory-limit", "1GB"),
        "lacking": process(LACKING, *named("lacking")),
        "odd": process(DASK, *named("odd"), path=f"{odd.parent}:{paths}"),
        "frozen": process(DASK, *named("frozen")),
    }
    if mounts():
        processes["apart"] = process(DASK, *named("apart"), before=apart)
    try:
        with connect({"address": address, "timeout": 60}, announce=False) as client:
            client.wait_for_workers(len(processes) - 1, timeout=120)
        yield address, processes
    finally:
        for running in reversed(processes.values()):
            running.kill()
            running.wait(120)


def by_name(client, found):
    workers = running_workers(client)
    assert {check.address for check in found.workers} == set(workers), [(w.address, w.problems) for w in found.workers]
    return {workers[check.address]["name"]: check for check in found.workers}


@pytest.mark.slow
def test_check_reports_each_unhealthy_worker(zoo, shared, scenes_dir):
    address, processes = zoo
    os.kill(processes["frozen"].pid, signal.SIGSTOP)
    try:
        with connect(address, announce=False) as client:
            found = check_cluster(client, source=scenes_dir, target=str(shared / "median.tif"), timeout=25)
            checks = by_name(client, found)
    finally:
        os.kill(processes["frozen"].pid, signal.SIGCONT)
    assert len(checks) == len(processes) - 1
    assert not found.ok
    assert not found.general
    well = checks["well"]
    assert (well.problems, well.threads, well.memory, well.host) == ((), 1, 1_000_000_000, "127.0.0.1")
    assert well.versions == found.client
    assert well.findings.gdal
    assert checks["odd"].problems == (f"numba is 0.1 there, {found.client['numba']} here",)
    (problem,) = checks["lacking"].problems
    assert "could not be checked" in problem
    assert "install the same s2composite" in problem
    assert checks["frozen"].problems == ("it did not answer in time: it is busy, frozen or lost",)
    if "apart" in processes:
        (problem,) = checks["apart"].problems
        assert "is the directory a shared one?" in problem
    assert not list(shared.iterdir())
    assert any(checks["odd"].address in problem and "numba" in problem for problem in found.problems)


def test_worker_without_s2composite_rejects_the_environment(zoo):
    with pytest.raises(ClusterError, match=r"did not accept its environment .*install the same s2composite"):
        connect({"address": zoo[0], "environment": {"GDAL_HTTP_MAX_RETRY": "7"}}, announce=False)


@pytest.fixture(scope="module")
def local():
    options = {"workers": 1, "threads": 2, "memory": "1GB", "dashboard": ":0"}
    with connect({**options, "environment": {"GDAL_HTTP_MAX_RETRY": 7, "ANSWER": 42}}, announce=False) as client:
        yield client


def spoil():
    os.environ["ANSWER"] = "43"


def mend():
    os.environ["ANSWER"] = "42"


def test_check_reports_unreachable_storage(local, tmp_path, scenes_dir):
    (tmp_path / "S2A_31TCJ_20230101_0_TCI.tif").write_bytes(b"II*\0")
    found = check_cluster(local, source=tmp_path, target=str(tmp_path / "nowhere" / "median.zarr"))
    problems = " ".join(found.workers[0].problems)
    assert "source: " in problems
    assert "cannot be written: it does not exist" in problems
    found = check_cluster(local, source=tmp_path / "nothing")
    assert found.problems == found.general
    assert "source: " in found.general[0]
    with pytest.raises(ParameterError, match="plain URL"):
        check_cluster(local, target="https://example.org/a?signature=secret")


def test_changed_environment_is_reported(local):
    assert check_cluster(local).ok
    local.run(spoil)
    try:
        assert "ANSWER not as shipped" in check_cluster(local).problems[0]
    finally:
        local.run(mend)


def test_restarted_worker_has_its_environment(local):
    (pid,) = local.run(os.getpid).values()
    os.kill(pid, signal.SIGKILL)
    for _ in range(1200):
        again = list(local.run(os.getpid, on_error="return").values())
        if again and isinstance(again[0], int) and again[0] != pid:
            break
        time.sleep(0.1)
    found = check_cluster(local)
    assert found.ok, found.problems
    assert len(found.workers) == 1


@pytest.mark.slow
def test_object_storage_as_the_workers_reach_it(local, scenes_dir, tmp_path):
    from support.storage_servers import s3_server

    with s3_server() as server:
        scene = min(scenes_dir.glob("*.tif"))
        source = server.put_file(f"bucket/{scene.name}", scene)
        with server.selected():
            target = join(source.rpartition("/")[0], "out", "median.tif")
            names = [name for name in os.environ if name.startswith("AWS_")]
            values = {name: os.environ[name] for name in names}
            with connect({"address": local.scheduler.address, "credentials": names}, announce=False) as client:
                assert sorted(client.shipped) == sorted(values)
                found = check_cluster(client, source=source, target=target)
                assert found.ok, found.problems


@pytest.mark.slow  # on a loaded machine the worker that came is retired before it has answered
def test_check_starts_a_worker_on_scaling_clusters():
    with connect({"type": "local", "minimum": 0, "maximum": 1, "dashboard": ":0"}, announce=False) as client:
        assert not running_workers(client)
        found = check_cluster(client, timeout=200)
        assert (found.ok, len(found.workers)) == (True, 1)


def test_the_command(zoo, tmp_path, scenes_dir):
    file = tmp_path / "cluster.yaml"
    file.write_text("type: local\nworkers: 1\nmemory: 1GB\ndashboard: ':0'\nenvironment: {ANSWER: 42}\n")
    done = CliRunner().invoke(app, ["check", str(file), "--source", str(scenes_dir), "--target", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "1 worker, 0 problems" in done.stdout
    assert "1.0 GB" in done.stdout
    done = CliRunner().invoke(app, ["check", zoo[0], "--timeout", "30"])
    assert done.exit_code == 2
    assert "numba is 0.1 there" in done.stdout
