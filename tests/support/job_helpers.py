"""What tests of whole jobs share: a scheduler and workers that are nobody's children, and what a ledger tells."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from distributed import Client

from s2composite.demo import make_scenes
from s2composite.runner.ledger import read_ledger
from support import PYTHONPATH
from support.http_faults import fault_server


def job(scenes, directory, **keys):
    """Return a job of small windows."""
    return {
        "source": str(scenes),
        "output": str(directory / "median.tif"),
        "layers": ["composite", "count", "source"],
        "chunks": 128,
        "raster": {"blocksize": 128},
        **keys,
    }


def store_job(scenes, directory, **keys):
    """Return a job that writes a Zarr store."""
    return {"source": str(scenes), "output": str(directory / "median.zarr"), "chunks": 256, **keys}


def digests(directory):
    """Return a checksum of each file below a directory that is an output, no ledger."""
    files = [path for path in sorted(Path(directory).rglob("*")) if path.is_file()]
    wanted = [path for path in files if path.suffix == ".tif" or ".zarr/" in str(path)]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in wanted}


def damaged(whole, at):
    """Return a file whose tiles around a place, a share of its length, were overwritten."""
    start = int(at * len(whole))
    return whole[:start] + bytes(2000) + whole[start + 2000 :]


class DamagedCopy:
    """Copies of scenes of which the largest is damaged in the middle, until it is mended: then it is as it was, its time too."""

    def __init__(self, scenes, directory):
        self.directory = Path(directory)
        self.directory.mkdir()
        for path in Path(scenes).glob("*.tif"):
            (self.directory / path.name).write_bytes(path.read_bytes())
        self.victim = max(self.directory.glob("*.tif"), key=lambda path: path.stat().st_size)
        self._whole, self._stat = self.victim.read_bytes(), self.victim.stat()
        self._write(damaged(self._whole, 0.5))

    def mend(self):
        self._write(self._whole)

    def _write(self, data):
        self.victim.write_bytes(data)
        os.utime(self.victim, ns=(self._stat.st_atime_ns, self._stat.st_mtime_ns))


@contextmanager
def signed_job(directory, side, secret, fault=None):
    """Yield a job whose lower windows cannot read one of three scenes, on a server that wants signatures."""
    make_scenes(str(directory / "scenes"), scenes=3, size=600, seed=3, compress="deflate")
    files = sorted((directory / "scenes").glob("*.tif"))
    files[1].write_bytes(damaged(files[1].read_bytes(), 0.75))
    with fault_server(directory / "scenes", fault=fault) as server:
        yield {
            "source": [f"{server.url(file.name)}?signature={secret}" for file in files],
            "output": str(directory / "median.tif"),
            "chunks": side,
            "raster": {"blocksize": side},
        }


def events(output):
    """Return what the ledgers beside an output, or those of a directory, tell."""
    roots = [str(output)] if Path(output).suffix else [str(p).removesuffix(".ledger") for p in output.glob("*.ledger")]
    return [event for root in roots for event in read_ledger(root)]


def made(output):
    """Return how often each window was made."""
    return Counter(tuple(event["window"]) for event in events(output) if event["event"] == "done")


def until(condition, seconds=240, pause=0.02):
    """Wait until something has happened; the time only bounds a hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)


def environment(**more):
    """Return the environment of a process that finds the functions of tests."""
    path = [PYTHONPATH, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **more}


def start_scheduler(directory, **config):
    """Start a scheduler, with more variables of its environment; return its process and address."""
    file = Path(directory, "scheduler.json")
    file.unlink(missing_ok=True)
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    command = [sys.executable, "-m", "dask", "scheduler", *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment(**config))
    until(lambda: file.exists() and file.read_text().strip())
    return process, json.loads(file.read_text())["address"]


def start_worker(address, dies_at=()):
    """Start a worker without anybody who starts it again; it is killed over files of these names, see `dies`."""
    command = [sys.executable, "-m", "dask", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    command += ["--preload", str(Path(__file__).with_name("dies.py"))] if dies_at else []
    env = environment(DIES_AT=os.pathsep.join(dies_at))
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True, env=env)


def start_job(directory, spec, address):
    """Start the command that runs a job."""
    file = Path(directory, "job.json")
    file.write_text(json.dumps({**spec, "cluster": address}))
    command = [sys.executable, "-c", "from s2composite.cli import main; main()", "run", str(file)]
    # A client looks for a scheduler that is gone for 30 s unless told otherwise.
    env = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@contextmanager
def farm_in(directory, dies_at=(), **config):
    """Yield the address of a scheduler, its process, two workers, and the list of all that is killed at the end."""
    scheduler, address = start_scheduler(directory, **config)
    workers = [start_worker(address, dies_at) for _ in range(2)]
    everyone = [scheduler, *workers]
    try:
        with Client(address) as client:
            client.wait_for_workers(2, timeout=120)
        yield address, scheduler, workers, everyone
    finally:
        for process in everyone:
            process.kill()
            process.wait()
