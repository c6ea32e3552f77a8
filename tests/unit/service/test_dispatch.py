"""Jobs whose windows a service computes: over HTTP and through a queue, with failures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from s2composite.errors import JobError, ServiceError, TilesError, WriteError
from s2composite.jobs.schema import load_job
from s2composite.runner.ledger import read_ledger
from s2composite.runner.report import job_progress, job_report
from s2composite.service.dispatch import dispatch
from s2composite.storage.retry import Retry
from support.rasters import series
from support.services import queue, seed_median, served

pytestmark = pytest.mark.slow

QUICK = {"concurrency": 8, "retry": Retry(attempts=20, first_wait=0.05, longest_wait=60, timeout=60)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("dispatch")
    (root / "scenes").mkdir()
    series(root / "scenes", scenes=4)
    return root


@pytest.fixture(scope="module")
def service(root):
    """It computes one window and queues one: further requests must be retried."""
    settings = {"read": [str(root / "scenes")], "write": [str(root / "out")], "limits": {"waiting": 2}}
    with served(root / "run", token="0123456789abcdef", **settings) as service:
        yield service


@pytest.fixture
def job(root, request):
    folder = root / "out" / request.node.name.replace("[", "_").replace("]", "")
    folder.mkdir(parents=True)
    return {"source": str(root / "scenes"), "output": str(folder / "median.tif"), "chunks": 48}


def check(job, path):
    assert path == job["output"]
    files = sorted(Path(job["source"]).glob("*.tif"))
    with rasterio.open(path) as made:
        assert made.shape == (200, 136)
        assert np.array_equal(made.read(), seed_median(files, (0, 0, 136, 200)))


def test_dispatch_sends_retries_and_assembles_windows(service, job):
    done = dispatch(job, url=f"{service.url}/median", token=service.token, **QUICK)
    check(job, done.path)
    assert (done.windows, done.failed) == (15, ())
    assert done.attempts > done.windows, "some were sent away, because too many were waiting"
    events = read_ledger(job["output"])
    assert sum(e["event"] == "done" for e in events) == 15
    assert {"429" in e["error"] for e in events if e["event"] == "retry"} == {True}
    assert job_progress(load_job(job)).state == "complete"
    assert job_report(load_job(job)).state == "complete"
    with pytest.raises(WriteError, match="exists"):
        dispatch(job, url=f"{service.url}/median", token=service.token, **QUICK)
    before = service.get("/health").json()["windows"]["made"]
    again = dispatch(job | {"overwrite": True}, url=f"{service.url}/median", token=service.token, **QUICK)
    check(job, again.path)
    assert service.get("/health").json()["windows"]["made"] == before, "what is there is not made again"


def test_the_command_line(service, job, tmp_path, monkeypatch):
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    monkeypatch.setenv("S2COMPOSITE_TOKEN", service.token)
    code = "from s2composite.cli import main; main()"
    command = [sys.executable, "-c", code, "dispatch", str(file), "--url", f"{service.url}/median"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check(job, done.stdout.splitlines()[-1])
    monkeypatch.setenv("S2COMPOSITE_TOKEN", "another-token-that-is-wrong")
    done = subprocess.run([*command, "-s", "overwrite=true"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "15 windows failed" in done.stderr
    assert "401: a token is needed" in done.stderr


def test_dispatch_reports_rejected_windows_and_writes_nothing(service, job, root):
    elsewhere = job | {"output": str(root / "median.tif")}
    done = dispatch(elsewhere, url=f"{service.url}/median", token=service.token, **QUICK)
    assert done.path is None
    assert len(done.failed) == 15
    assert "403" in done.failed[0].error
    assert "/destination" not in done.failed[0].error or "written" in done.failed[0].error
    assert not (root / "median.tif").exists()
    assert job_progress(load_job(elsewhere)).state == "failed"


def test_unreachable_service(job):
    retry = Retry(attempts=2, first_wait=0.01, timeout=5)
    done = dispatch(job, url="http://127.0.0.1:9/median", concurrency=4, retry=retry)
    assert (done.path, len(done.failed), done.attempts) == (None, 15, 30)
    assert "ConnectError" in done.failed[0].error


def test_through_a_queue_that_delivers_twice(service, job, monkeypatch):
    """Requests come too fast: rejected ones are retried."""
    before = service.get("/health").json()["windows"]
    with queue(f"{service.url}/median", token=service.token, pushers=6, twice=lambda number: number % 3 == 0) as topic:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", topic.host)
        done = dispatch(job, topic="projects/p/topics/windows", **QUICK, silence=120)
        check(job, done.path)
        with topic.ready:
            topic.ready.wait_for(lambda: not topic.waiting and len(topic.acknowledged) > 15, timeout=120)
        assert len(set(topic.acknowledged)) == 15
        assert len(topic.acknowledged) > 15, "some came twice"
        assert topic.dead == []
    after = service.get("/health").json()["windows"]
    assert after["made"] - before["made"] == 15
    assert service.get("/dead-letters").json() == []


def test_through_a_queue_to_a_service_that_refuses(service, job, root, monkeypatch):
    other = root / "other"
    other.mkdir()
    series(other, scenes=2)
    with queue(f"{service.url}/median", token=service.token) as topic:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", topic.host)
        done = dispatch(job | {"source": str(other)}, topic="projects/p/topics/windows", **QUICK, silence=3)
        with topic.ready:
            topic.ready.wait_for(lambda: len(topic.acknowledged) >= 15, timeout=120)
        assert len(topic.acknowledged) == 15, "each once: what can never succeed is not sent again"
        assert topic.statuses.count(200) == 15
        assert set(topic.statuses) <= {200, 429}
    assert done.path is None
    assert len(done.failed) == 15
    assert "dead letters" in done.failed[0].error
    letters = service.get("/dead-letters").json()
    assert len(letters) == 15
    assert json.loads(letters[0]["payload"])["destination"].startswith(job["output"].removesuffix(".tif"))


def test_invalid_topic(job, monkeypatch):
    with queue("http://127.0.0.1:9/") as topic:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", topic.host)
        with pytest.raises(ServiceError, match="status 404"):
            dispatch(job, topic="windows", **QUICK)


def test_a_tile_that_somebody_removed_is_named(service, job, monkeypatch):
    """A tile vanishes between the last response and assembly: completeness is checked."""
    import s2composite.service.dispatch as module

    post = module.post_windows

    async def and_remove(tiles, *rest):
        await post(tiles, *rest)
        Path(tiles[7].payload["destination"]).unlink()  # noqa: ASYNC240

    monkeypatch.setattr(module, "post_windows", and_remove)
    with pytest.raises((TilesError, Exception), match=r"tile_48_96\.tif"):
        dispatch(job, url=f"{service.url}/median", token=service.token, **QUICK)
    assert not Path(job["output"]).exists()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"reducer": "mean"}, "reducer"),
        ({"period": "month"}, "period"),
        ({"bands": ["red"]}, "bands"),
        ({"bbox": [0, 0, 1, 1]}, "bbox"),
        ({"layers": ["composite", "count"]}, "layers"),
        ({"output": "a.zarr"}, "output"),
    ],
)
def test_dispatch_rejects_jobs_that_the_service_does_not_support(job, change, key):
    with pytest.raises(JobError) as refused:
        dispatch(job | change, url="http://127.0.0.1:9/median")
    assert refused.value.key == key


def test_url_and_topic_exclude_each_other(job):
    for ways in ({}, {"url": "http://x", "topic": "projects/p/topics/t"}):
        with pytest.raises(ServiceError, match="url of a service, or a topic"):
            dispatch(job, **ways)
