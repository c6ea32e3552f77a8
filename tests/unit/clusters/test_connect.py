"""connect(): real worker processes, real schedulers, real sockets."""

import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import dask
import dask.array as da
import psutil
import pytest
from distributed import default_client
from distributed.system import MEMORY_LIMIT

from s2composite.clusters import backends
from s2composite.clusters.backends import BACKENDS, ClusterClient, LocalOptions, local_shape
from s2composite.clusters.connect import ClusterOptions, connect
from s2composite.errors import ClusterError, JobError, ParameterError, ReadError
from s2composite.metrics import running_workers
from s2composite.storage.limits import limit_for
from support.job_helpers import until


@pytest.fixture(scope="module")
def local():
    with connect(workers=2, threads=1, memory="700MB", dashboard=":0", announce=False) as client:
        yield client


def where(dask_worker):
    return os.getpid(), dask_worker.state.nthreads, os.environ["NUMBA_NUM_THREADS"], os.environ["OMP_NUM_THREADS"]


def fail():
    raise ReadError("scene A: tile 3 is truncated", scene="A", transient=False)


@pytest.mark.slow
def test_workers_are_processes_with_one_thread_for_numba(local):
    seen = local.run(where)
    assert len({pid for pid, *_ in seen.values()} - {os.getpid()}) == 2
    assert {tuple(rest) for _, *rest in seen.values()} == {(1, "1", "1")}
    limits = {worker["memory_limit"] for worker in running_workers(local).values()}
    assert limits == {700_000_000}


def test_computations_run_on_the_cluster(local):
    assert default_client() is local
    pids = da.map_blocks(lambda block: block + os.getpid(), da.zeros(8, chunks=1, dtype=int), dtype=int).compute()
    assert set(pids) <= {pid for pid, *_ in local.run(where).values()}


def test_library_errors_keep_their_attributes(local):
    with pytest.raises(ReadError, match="tile 3 is truncated") as caught:
        local.submit(fail).result()
    assert (caught.value.scene, caught.value.transient) == ("A", False)


@pytest.mark.parametrize(
    ("workers", "threads", "cores", "expected"),
    [
        (None, None, 1, (1, 1)), (None, None, 8, (8, 1)), (2, None, 8, (2, 4)), (3, None, 8, (3, 2)),
        (16, None, 8, (16, 1)), (None, 2, 8, (4, 2)), (None, 16, 8, (1, 16)), (5, 7, 8, (5, 7)),
    ],
)  # fmt: skip
def test_slow_cores_are_used(workers, threads, cores, expected):
    assert local_shape(LocalOptions(workers=workers, threads=threads), cores) == expected


@pytest.mark.slow
def test_defaults_use_the_whole_machine_and_closing_leaves_nothing(capfd):
    client = connect(dashboard=":0")
    workers = running_workers(client).values()
    processes = [psutil.Process(pid) for pid, *_ in client.run(where).values()]
    client.close()
    assert sum(worker["nthreads"] for worker in workers) == len(os.sched_getaffinity(0))
    assert 0.8 * MEMORY_LIMIT < sum(worker["memory_limit"] for worker in workers) < MEMORY_LIMIT
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert not alive
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("Dask: ")
    assert "GB each; dashboard: http://127.0.0.1:" in err


@pytest.mark.parametrize("form", ["mapping", "options", "file", "text of a path"])
def test_forms_of_a_local_cluster(tmp_path, form):
    file = tmp_path / "cluster.yaml"
    file.write_text("type: local\nworkers: 1\nthreads: 3\ndashboard: ':0'\n")
    options = {"workers": 1, "threads": 3, "dashboard": ":0"}
    configs = {"mapping": options, "options": LocalOptions(**options), "file": file, "text of a path": str(file)}
    with connect(configs[form], memory="500MB", announce=False) as client:
        (worker,) = running_workers(client).values()
    assert (worker["nthreads"], worker["memory_limit"]) == (3, 500_000_000)


@pytest.mark.slow
def test_workers_that_die_come_back_however_long_they_take_to_start():
    # Dask's own limit, 15 s, ends here long before another process has started.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}),
        connect("local", workers=2, threads=1, dashboard=":0", announce=False) as client,
    ):
        before = client.run(os.getpid)
        address, process = before.popitem()
        os.kill(process, signal.SIGKILL)
        until(lambda: len({*client.nthreads()} - {address}) == 2)
        assert len(client.cluster.workers) == 2  # nannies


@pytest.mark.slow
def test_workers_that_do_not_come_back_can_be_replaced():
    options = {"type": "local", "workers": 2, "threads": 1, "timeout": 20, "dashboard": ":0"}
    with connect(options, announce=False) as client:
        gone, stays = client.nthreads()
        client.retire_workers([gone], close_workers=True)
        until(lambda: len(client.cluster.workers) == 1)
        client.cluster.scale(2)
        until(lambda: len({*client.nthreads()} - {gone, stays}) == 1)


def test_dashboard_moves_when_its_port_is_taken():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with connect(
            workers=1, memory="500MB", dashboard=f":{port}", announce=False
        ) as client:  # a warning is an error
            link = client.dashboard_link
            assert f":{port}/" not in link
            with urllib.request.urlopen(link, timeout=120) as page:
                assert page.status == 200


def test_dashboard_moves_when_its_port_is_taken_meanwhile(monkeypatch):
    """As if another program started a cluster at the same time: only the correct link is printed."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]

    class LateClient(ClusterClient):
        def __init__(self, **options):
            with socket.socket() as late:
                late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                late.bind(("", port))
                late.listen()
                super().__init__(**options)

    monkeypatch.setattr(backends, "ClusterClient", LateClient)
    with connect(workers=1, memory="500MB", dashboard=f":{port}", announce=False) as client:  # a warning is an error
        assert f":{port}/" not in client.dashboard_link


def free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def test_dashboard_is_at_the_port_asked_for():
    port = next(port for port in range(20_000, 30_000) if free(port))  # below those that systems hand out
    with connect(workers=1, memory="500MB", dashboard=f":{port}", announce=False) as client:
        assert client.dashboard_link == f"http://127.0.0.1:{port}/status"


def script(tmp_path, text):
    file = tmp_path / "script.py"
    file.write_text(text)
    command = [sys.executable, "-X", "dev", "-W", "error", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_a_script_closes_quietly_even_if_a_task_failed(tmp_path):
    done = script(
        tmp_path,
        """
from s2composite import S2CompositeError, connect
def fail():
    raise S2CompositeError("bad scene")
if __name__ == "__main__":
    with connect(workers=1, memory="500MB", dashboard=":0") as client:
        try:
            client.submit(fail).result()
        except S2CompositeError as error:
            print("caught", error)
""",
    )
    assert (done.returncode, done.stdout) == (0, "caught bad scene\n")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("Dask: 1 worker x ")


@pytest.mark.slow
def test_closing_does_not_wait_for_tasks_and_logs_nothing(tmp_path):
    done = script(
        tmp_path,
        """
import time
import numba
from s2composite import connect
from pathlib import Path
def compile_and_sleep(asleep):
    numba.njit(lambda x: x + 1)(1)
    asleep.touch()
    time.sleep(600)
if __name__ == "__main__":
    with connect(workers=1, memory="1GB", dashboard=":0", announce=False) as client:
        asleep = Path(__file__).with_name("asleep")
        future = client.submit(compile_and_sleep, asleep)
        while not asleep.exists():
            time.sleep(0.05)
    print("closed")
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")


@pytest.mark.slow
def test_script_without_main_guard_gets_an_explanation(tmp_path):
    done = script(tmp_path, "import s2composite\ns2composite.connect(workers=2, memory='200MB', dashboard=':0')\n")
    assert done.returncode == 1
    assert "call connect() below `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]


WRONG = [
    ("locale", {}, ["expected 'local'", "tcp://", "got 'locale'"]),
    (None, {}, ["expected 'local'", "got None"]),
    ({"type": "locl"}, {}, ["unknown type 'locl'", "did you mean 'local'?", "Valid types: local, address, ssh"]),
    ({"type": "ray"}, {}, ["unknown type 'ray'", "Valid types: local, address, ssh"]),
    ("local", {"workers": 0}, ["workers", "a whole number from 1", "got 0"]),
    ("local", {"workers": 1.5}, ["workers", "a whole number from 1", "got 1.5"]),
    ("local", {"memory": "lots"}, ["memory", "'4GB'", "'lots'"]),
    ("local", {"dashboard": "8787"}, ["dashboard", "':8787'"]),
    ("tcp://127.0.0.1:1", {"workers": 2}, ["unknown key 'cluster.workers'", "valid keys: type,", "address"]),
    ("nowhere.yaml", {}, ["nowhere.yaml", "no such cluster file"]),
]


@pytest.mark.parametrize(("config", "options", "says"), WRONG, ids=[f"{c} {o}" for c, o, _ in WRONG])
def test_wrong_options_start_nothing(config, options, says):
    with pytest.raises(JobError) as caught:
        connect(config, **options)
    for words in says:
        assert words in str(caught.value)


def test_every_kind_of_options_has_its_starter():
    kinds = {model.model_fields["type"].default for model in ClusterOptions.__args__[0].__args__}
    assert kinds == set(BACKENDS)


def test_scheduler_that_does_not_answer():
    start = time.monotonic()
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 ") as caught:
        connect({"address": "tcp://127.0.0.1:1", "timeout": 1})
    assert time.monotonic() - start < 20, "Dask's own patience is 30 s"
    assert caught.value.address == "tcp://127.0.0.1:1"


def test_something_else_listens_at_the_address():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Dask scheduler answers at {address}"):
            connect({"address": address, "timeout": 1})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A self-signed certificate for authority, server and client."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(hours=1))
    certificate = builder.sign(key, hashes.SHA256())
    directory = tmp_path_factory.mktemp("tls")
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(certificate.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(secret)
    return {"ca": str(directory / "cert.pem"), "cert": str(directory / "cert.pem"), "key": str(directory / "key.pem")}


@pytest.fixture(params=["tcp", "tls"])
def scheduler(request, tmp_path):
    """A separate scheduler and worker, started with Dask's commands."""
    files = request.getfixturevalue("certificates") if request.param == "tls" else {}
    tls = [f for k, v in files.items() for f in (f"--tls-{k}{'-file' if k == 'ca' else ''}", v)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"{request.param}://127.0.0.1:{probe.getsockname()[1]}"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    commands = [
        [*dask, "scheduler", "--host", address, "--dashboard-address", "127.0.0.1:0", *tls],
        [*dask, "worker", address, "--nworkers", "1", "--nthreads", "2", "--no-dashboard", *tls],
    ]
    processes = [subprocess.Popen(command, **quiet) for command in commands]
    host, port = address.partition("://")[2].split(":")
    for _ in range(1200):  # on a busy machine it takes longer to start than connect() waits
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                break
        time.sleep(0.1)
    yield {"address": address, "timeout": 30, **files}
    for process in reversed(processes):
        process.terminate()
        process.wait(120)


@pytest.mark.slow
def test_a_scheduler_that_runs_already_outlives_its_clients(scheduler):
    config = scheduler if "ca" in scheduler else scheduler["address"]
    for _ in range(2):
        with connect(config, announce=False) as client:
            client.wait_for_workers(1, timeout=120)
            assert client.submit(os.getpid).result(timeout=120) != os.getpid()
            assert client.scheduler.address == scheduler["address"]


def test_tls_without_certificates_is_refused(certificates):
    with pytest.raises(ClusterError, match="certificates"):
        connect("tls://127.0.0.1:1")


def test_limits_hold_here_and_in_the_workers(monkeypatch):
    """They come before those of the environment, host by host."""
    monkeypatch.setenv("S2COMPOSITE_LIMITS", "{cdse: {connections: 3}, a.org: {connections: 5}}")
    with pytest.raises(ParameterError, match=r"^limits: 'cdsee' .* did you mean 'cdse'"):
        connect(workers=1, limits="cdsee", announce=False)
    options = {"workers": 1, "threads": 1, "memory": "700MB", "dashboard": ":0", "announce": False}
    with connect(**options, limits={"cdse": {"requests": 7}}) as client:
        told = client.run(lambda: os.environ["S2COMPOSITE_LIMITS"])
        assert set(told.values()) == {os.environ["S2COMPOSITE_LIMITS"]}
    cdse = limit_for("https://eodata.dataspace.copernicus.eu/a.jp2")
    other = limit_for("https://a.org/a.tif")
    assert (cdse.rates.connections, cdse.rates.requests, other.rates.connections) == (4, 7, 5)
