"""Kubernetes, Coiled, Slurm: the requests sent to them. No real service is used, except that Slurm's jobs really run."""

import copy
import http.server
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from typing import ClassVar

import dask
import pytest
import yaml

from s2composite import connect
from s2composite.clusters.backends import coiled_arguments, kubernetes_manifest, slurm_arguments
from s2composite.clusters.connect import read_cluster
from s2composite.errors import ClusterError, JobError
from support.job_helpers import until

jsonschema = pytest.importorskip("jsonschema")

POD = {"type": "kubernetes", "image": "registry/s2composite:0.1", "workers": 3, "threads": 2, "memory": "4GiB"}
SHIPPED = {"environment": {"OMP_NUM_THREADS": 2, "GDAL_HTTP_MAX_RETRY": 7}, "credentials": ["AWS_SECRET_ACCESS_KEY"]}
ONE = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    for name in ONE:
        monkeypatch.delenv(name, raising=False)


FULL = {
    **POD, **SHIPPED, "name": "night", "namespace": "eo", "secret": "storage", "service_account": "reader",
    "node_selector": {"pool": "spot"}, "idle_timeout": 60,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("options", [POD, FULL], ids=["least", "most"])
def test_manifest_matches_the_operators_schema(check_manifest, options):
    made = kubernetes_manifest(read_cluster(options))
    assert yaml.safe_load(yaml.safe_dump(made)) == made
    check_manifest(made)
    assert "s3cret" not in str(made)


@pytest.mark.slow
@pytest.mark.parametrize("spoiled", ["spec.worker.replicas", "spec.worker.spec.containers", "spec.scheduler.service"])
def test_schema_rejects_an_invalid_manifest(check_manifest, spoiled):
    made = copy.deepcopy(kubernetes_manifest(read_cluster(POD)))
    *levels, last = spoiled.split(".")
    level = made
    for key in levels:
        level = level[key]
    level[f"{last}s"] = level.pop(last)
    with pytest.raises(jsonschema.ValidationError):
        check_manifest(made)


def test_manifest_has_the_options():
    spec = kubernetes_manifest(read_cluster(FULL))["spec"]
    assert (spec["worker"]["replicas"], spec["idleTimeout"]) == (3, 60)
    pod = spec["worker"]["spec"]
    assert (pod["serviceAccountName"], pod["nodeSelector"]) == ("reader", {"pool": "spot"})
    (worker,) = pod["containers"]
    assert {item["name"]: item["value"] for item in worker["env"]} == {**ONE, "OMP_NUM_THREADS": "2"}
    assert worker["envFrom"] == [{"secretRef": {"name": "storage"}}]
    assert worker["resources"] == {"requests": {"cpu": "2", "memory": "4294967296"}, "limits": {"memory": "4294967296"}}
    assert worker["args"][:6] == ["dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", "2"]


@pytest.mark.slow
def test_missing_kubernetes_is_reported(monkeypatch, tmp_path):
    pytest.importorskip("dask_kubernetes", reason="dask-kubernetes is not installed")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClusterError, match=r"the kubernetes cluster did not start .*kubectl"):
        connect({**POD, "timeout": 5})


CLUSTERS_PATH = "/apis/kubernetes.dask.org/v1/namespaces/eo/daskclusters"


class Api(http.server.BaseHTTPRequestHandler):
    """The part of the Kubernetes API that creates a DaskCluster: some names exist, and creation always fails."""

    taken = ()
    posted: ClassVar = []

    def log_message(self, *args):
        pass

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"{CLUSTERS_PATH}/")
        if path.rstrip("/") == "/version":
            self.answer(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
        elif name in self.taken:
            self.answer(200, kubernetes_manifest(read_cluster({**FULL, "name": name})))
        else:
            self.answer(404, {"kind": "Status", "status": "Failure", "code": 404, "message": "not found"})

    def do_POST(self):
        self.posted.append(
            (self.path.partition("?")[0], json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        )
        self.answer(422, {"kind": "Status", "status": "Failure", "code": 422, "message": "quota exceeded"})

    def do_DELETE(self):
        self.posted.append((self.path, "deleted"))
        self.answer(200, {"kind": "Status", "status": "Success"})


@pytest.fixture
def api(tmp_path, monkeypatch):
    """A Kubernetes API, and a kubeconfig for it."""
    pytest.importorskip("dask_kubernetes", reason="dask-kubernetes is not installed")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "me", "user": {"token": "none"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "eo"}}],
        }
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        monkeypatch.setattr(Api, "posted", [])
        yield Api
        server.shutdown()


@pytest.mark.slow
def test_kubernetes_gets_the_manifest(api):
    with pytest.raises(ClusterError, match=r"the kubernetes cluster did not start .*(422|quota)"):
        connect({**FULL, "timeout": 5})
    (path, posted), *_ = api.posted  # refused, it is asked for again
    assert path == CLUSTERS_PATH
    asked = kubernetes_manifest(read_cluster(FULL))
    assert posted["spec"] == asked["spec"]
    assert posted["metadata"]["name"] == "night"


@pytest.mark.slow
def test_kubernetes_cluster_name_already_in_use_is_an_error(api, monkeypatch):
    monkeypatch.setattr(Api, "taken", ("night",))
    with pytest.raises(ClusterError, match="Kubernetes already has a DaskCluster 'night'"):
        connect({**FULL, "timeout": 5})
    assert not api.posted


def test_coiled_gets_exactly_these_arguments():
    options = {
        **SHIPPED, "type": "coiled", "name": "night", "workspace": "eo", "region": "europe-west1", "minimum": 2,
        "maximum": 40, "vm_types": ["c5.large"], "scheduler_vm_types": ["m5.large"], "disk_size": 40,
        "spot_policy": "spot_with_fallback", "idle_timeout": "5 minutes", "package_sync_ignore": ["ruff"], "timeout": 900,
    }  # fmt: skip
    assert coiled_arguments(read_cluster(options)) == {
        "name": "night",
        "workspace": "eo",
        "region": "europe-west1",
        "n_workers": [2, 40],
        "worker_vm_types": ["c5.large"],
        "scheduler_vm_types": ["m5.large"],
        "worker_disk_size": 40,
        "spot_policy": "spot_with_fallback",
        "idle_timeout": "5 minutes",
        "package_sync_ignore": ["ruff"],
        "environ": {**ONE, "OMP_NUM_THREADS": "2"},
        "timeout": 900,
        "wait_for_workers": False,
        "shutdown_on_close": True,
        "show_widget": False,
    }
    least = coiled_arguments(read_cluster({"type": "coiled", "workers": 4, "container": "image:1"}))
    assert (least["n_workers"], least["container"], least["spot_policy"]) == (4, "image:1", "on-demand")
    assert "region" not in least


MORE = {"threads": 4, "memory": "16GiB", "package_sync_only": ["s2composite"], "software": "env"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, *({key: value} for key, value in MORE.items())], ids=["least", *MORE])
def test_coiled_accepts_all_arguments(options):
    coiled = pytest.importorskip("coiled", reason="coiled is not installed")
    arguments = coiled_arguments(read_cluster({"type": "coiled", "workers": 1, **options}))
    inspect.signature(coiled.Cluster.__init__).bind(None, **arguments)


@pytest.mark.slow
def test_missing_coiled_account_is_reported(monkeypatch):
    pytest.importorskip("coiled", reason="coiled is not installed")
    import dask

    with (
        dask.config.set({"coiled.token": "none", "coiled.server": "http://127.0.0.1:1"}),
        pytest.raises(ClusterError, match=r"the coiled cluster did not start .*coiled login"),
    ):
        connect({"type": "coiled", "workers": 1, "timeout": 5})


@pytest.fixture
def jobqueue():
    """dask-jobqueue without its change of Ctrl-C on import."""
    before = signal.getsignal(signal.SIGINT)
    module = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    signal.signal(signal.SIGINT, before)
    return module


INTERRUPT_AFTER_SLURM = """
import signal
before = signal.getsignal(signal.SIGINT)
import s2composite as s2c
from s2composite.errors import ClusterError
try:
    s2c.connect({"type": "slurm", "workers": 1, "dashboard": ":0"}, announce=False)
except ClusterError as error:
    print(error)
import dask_jobqueue
assert signal.getsignal(signal.SIGINT) is before, signal.getsignal(signal.SIGINT)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("jobqueue")
def test_importing_dask_jobqueue_does_not_change_ctrl_c(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPT_AFTER_SLURM],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "sbatch was not found" in ended.stdout


SLURM = {
    **SHIPPED, "type": "slurm", "queue": "short", "account": "eo", "walltime": "02:00:00", "threads": 4,
    "memory": "8GiB", "directives": ["--constraint=ib"], "prologue": ["module load python"], "workers": 2,
}  # fmt: skip


@pytest.mark.slow
def test_slurm_job_script_has_the_options(jobqueue, tmp_path):
    options = read_cluster({**SLURM, "log_directory": str(tmp_path), "local_directory": "/scratch"})
    arguments = slurm_arguments(options)
    del arguments["scheduler_options"]
    script = jobqueue.slurm.SLURMJob(scheduler="tcp://scheduler:8786", name="worker", **arguments).job_script()
    lines = script.splitlines()
    assert lines[0].startswith("#!")
    for line in ("-p short", "-A eo", "-t 02:00:00", "--cpus-per-task=4", "--mem=8G", "--constraint=ib", "-n 1"):
        assert f"#SBATCH {line}" in lines, script
    assert lines.index("export OMP_NUM_THREADS=2") < lines.index("module load python")
    assert "--nthreads 4 --memory-limit 8.00GiB" in lines[-1]
    assert "tcp://scheduler:8786" in lines[-1]
    assert "--local-directory /scratch" in lines[-1]
    assert "s3cret" not in script
    assert "GDAL" not in script


QUEUE = """#!/bin/sh
cp "$1" "$0.$$.sh"
setsid sh "$0.$$.sh" >"$0.$$.log" 2>&1 &
echo $! >>"$0.pids"
echo "Submitted batch job $!"
"""
"""A queue that has room at once."""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands that run jobs here; returns the file with the jobs' process groups."""
    for name, text in {"sbatch": QUEUE, "scancel": '#!/bin/sh\nkill -TERM -- "-$1"\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    pids = tmp_path / "sbatch.pids"
    yield pids
    for pid in pids.read_text().split() if pids.exists() else ():
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", "--", f"-{pid}"], capture_output=True, check=False)


def seen(dask_worker):
    names = ("OMP_NUM_THREADS", "GDAL_HTTP_MAX_RETRY", "AWS_SECRET_ACCESS_KEY")
    return dask_worker.state.nthreads, *(os.environ[name] for name in names)


@pytest.mark.slow
@pytest.mark.usefixtures("jobqueue")
def test_jobs_of_a_queue_become_workers(queue, monkeypatch):
    from support import PYTHONPATH

    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    options = {**SHIPPED, "type": "slurm", "threads": 2, "memory": "1GiB", "dashboard": ":0", "workers": 1}
    # Dask's own limit for a worker to come back, 15 s, ends here long before another process has started.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}),
        connect({**options, "timeout": 60}, announce=False) as client,
    ):
        assert list(client.run(seen).values()) == [(2, "2", "7", "s3cret")]
        ((address, process),) = client.run(os.getpid).items()
        os.kill(process, signal.SIGKILL)
        until(lambda: {*client.nthreads()} - {address})
        assert list(client.run(seen).values()) == [(2, "2", "7", "s3cret")]
        assert len(client.cluster.workers) == len(queue.read_text().split()) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("jobqueue")
def test_missing_slurm_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="sbatch was not found"):
        connect({"type": "slurm", "workers": 1, "dashboard": ":0"}, announce=False)


WRONG = [
    ({"type": "kubernetes", "workers": 1}, "key 'cluster.image' is missing"),
    ({"type": "kubernetes", "image": "a", "workers": 1, "name": "A b"}, "lower case letters"),
    ({"type": "kubernetes", "image": "a"}, "needs a number of workers"),
    ({"type": "coiled", "workers": 1, "container": "a", "package_sync_only": ["b"]}, "exclude each other"),
    ({"type": "coiled", "workers": 1, "vm_types": ["a"], "threads": 2}, "vm_types already sets threads and memory"),
    ({"type": "coiled", "workers": 1, "spot_policy": "cheap"}, "one of on-demand, spot, spot_with_fallback"),
    ({"type": "slurm", "workers": 1, "walltime": "long"}, "a time such as '02:00:00'"),
    ({"type": "slurm", "workers": 1, "queu": "x"}, "did you mean 'queue'"),
]


@pytest.mark.parametrize(("options", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_options_start_nothing(options, says):
    with pytest.raises(JobError, match=says):
        connect(options)
