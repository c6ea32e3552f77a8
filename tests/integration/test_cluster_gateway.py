"""Clusters of a Dask Gateway: a real gateway server, whose clusters are processes here."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from s2composite import connect
from s2composite.clusters.backends import start_cluster
from s2composite.clusters.connect import read_cluster
from s2composite.errors import ClusterError, JobError
from s2composite.metrics import running_workers
from support import PYTHONPATH
from support.storage_servers import free_port

pytestmark = pytest.mark.slow

CONFIG = """
from dask_gateway_server.options import Float, Integer, Options
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = "let me in"
c.DaskGateway.address = "127.0.0.1:{private}"
c.Proxy.address = "127.0.0.1:{public}"
c.UnsafeLocalBackend.clusters_directory = "{directory}"
c.UnsafeLocalBackend.inherited_environment = ["PATH", "PYTHONPATH"]
c.UnsafeLocalBackend.check_timeouts_period = 1
c.ClusterConfig.scheduler_cmd = ["{dask}", "scheduler"]
c.ClusterConfig.worker_cmd = ["{dask}", "worker"]
c.Backend.cluster_options = Options(Integer("worker_cores", default=1, min=1), Float("worker_memory", default=1.0),
    handler=lambda options: {{"worker_cores": options.worker_cores, "worker_memory": "%fG" % options.worker_memory}})
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The options that reach a gateway of its own."""
    directory = tmp_path_factory.mktemp("gateway")
    public = free_port()
    dask = Path(sys.executable).with_name("dask")
    config = CONFIG.format(private=free_port(), public=public, directory=directory, dask=dask)
    (directory / "config.py").write_text(config)
    command = [sys.executable, "-m", "dask_gateway_server", "-f", str(directory / "config.py")]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            address = f"http://127.0.0.1:{public}"
            _answers(f"{address}/api/health", process, directory / "log")
            yield {"type": "gateway", "address": address, "auth": "basic", "user": "me", "password": "GATEWAY_PASSWORD"}
        finally:
            process.terminate()
            process.wait(120)


def _answers(url, process, log):
    for _ in range(1200):
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(autouse=True)
def _password(monkeypatch):
    monkeypatch.setenv("GATEWAY_PASSWORD", "let me in")


def seen(dask_worker):
    return os.getpid(), dask_worker.state.nthreads, os.environ.get("GDAL_HTTP_MAX_RETRY"), os.environ.get("AWS_SECRET")


def test_a_cluster_of_its_own_grows_is_given_its_environment_and_stops(server, monkeypatch):
    monkeypatch.setenv("AWS_SECRET", "s3cret")
    shipped = {"environment": {"GDAL_HTTP_MAX_RETRY": 7}, "credentials": ["AWS_SECRET"]}
    config = {**server, **shipped, "workers": 1, "options": {"worker_cores": 2, "worker_memory": 0.5}}
    with connect(config, announce=False) as client:
        ((pid, *rest),) = client.run(seen).values()
        process = psutil.Process(pid)
        assert rest == [2, "7", "s3cret"]
        client.cluster.scale(2)
        client.wait_for_workers(2, timeout=120)
        assert {tuple(rest) for _, *rest in client.run(seen).values()} == {(2, "7", "s3cret")}  # the late one, too
        name = client.cluster.name
        with connect({**server, "cluster": name}, announce=False) as guest:
            assert guest.submit(sum, [1, 2]).result(timeout=120) == 3
        assert client.submit(sum, [1, 2, 3]).result(timeout=120) == 6  # the guest has left it alone
    _, alive = psutil.wait_procs([process], timeout=120)
    assert not alive
    with pytest.raises(ClusterError, match=f"runs no cluster '{name}'"):
        connect({**server, "cluster": name})


def test_workers_come_with_the_work(server):
    with connect({**server, "minimum": 0, "maximum": 1}, announce=False) as client:
        assert not running_workers(client)
        assert client.submit(sum, [1, 2]).result(timeout=120) == 3


def test_what_the_gateway_does_not_offer_is_named(server):
    with pytest.raises(JobError, match="offers no 'image'; it offers worker_cores, worker_memory"):
        connect({**server, "workers": 1, "options": {"image": "x"}})


def test_wrong_password(server, monkeypatch):
    monkeypatch.setenv("GATEWAY_PASSWORD", "guess")
    with pytest.raises(ClusterError, match=r"the gateway cluster did not start .*401") as caught:
        connect({**server, "workers": 1})
    assert "guess" not in str(caught.value)
    monkeypatch.delenv("GATEWAY_PASSWORD")
    with pytest.raises(JobError, match="GATEWAY_PASSWORD is not set here"):
        start_cluster(read_cluster({**server, "workers": 1}))


def test_nothing_answers():
    with pytest.raises(ClusterError, match=r"the gateway cluster did not start .*http://127.0.0.1:1"):
        connect({"type": "gateway", "address": "http://127.0.0.1:1", "workers": 1})


WRONG = [
    ({}, "needs a number of workers"),
    ({"workers": 1, "maximum": 2}, "give either workers, or minimum and maximum"),
    ({"minimum": 1}, "there is no maximum"),
    ({"minimum": 3, "maximum": 2}, r"minimum \(3\) is above maximum \(2\)"),
    ({"cluster": "a", "options": {"b": 1}}, "'options' are for a new cluster"),
    ({"workers": 1, "address": "gateway"}, "an address such as https://"),
    ({"workers": 1, "auth": "magic"}, "one of basic, kerberos, jupyterhub"),
]


@pytest.mark.parametrize(("options", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_options_start_nothing(options, says):
    with pytest.raises(JobError, match=says):
        connect({"type": "gateway", "address": "http://127.0.0.1:1", **options})
