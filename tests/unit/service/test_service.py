"""The service over HTTP: windows as by the original worker, persistent jobs, errors that name the field."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import pytest
import rasterio
import yaml
from rio_cogeo import cog_validate

import s2composite as s2c
from s2composite.errors import JobError, ParameterError
from s2composite.jobs.schema import load_job
from s2composite.runner.ledger import read_ledger
from s2composite.service.jobs import job_text
from s2composite.service.queue import JobRow, JobStore
from s2composite.service.settings import load_settings
from s2composite.service.views import Views
from support.http_faults import Gate, fault_server
from support.rasters import ORIGIN, encoded, series, write_tif
from support.services import COMMAND, pushed, seed_median, served, until
from support.storage_servers import s3_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("service")
    for name in ("scenes", "out", "store"):
        (root / name).mkdir()
    return root


@pytest.fixture(scope="module")
def scenes(places):
    return series(places / "scenes", scenes=5)


@pytest.fixture(scope="module")
def service(places, scenes):
    settings = {"read": [str(places / "scenes")], "write": [str(places / "out")], "storage": str(places / "store")}
    with served(places / "run", **settings, limits={"body": 300_000, "pixels": 250_000, "jobs": 3}) as service:
        yield service


def payload(places, scenes, name, window=(0, 0, 64, 48), **more):
    return {"window": list(window), "destination": str(places / "out" / name), "datasets": scenes, **more}


@pytest.mark.parametrize("wrap", [lambda p: p, pushed], ids=["bare", "pushed"])
def test_window_equals_the_original_worker(service, places, tmp_path, wrap):
    rng = np.random.default_rng(3)
    folder = places / "scenes" / f"seed_{wrap is pushed}"
    folder.mkdir()
    # Few values, so that there are zeros, saturation and equal sums; names without dates; not in order of names.
    values = rng.choice([0, 40, 41, 90, 200, 255], (6, 3, 90, 70), p=[0.08, 0.24, 0.2, 0.2, 0.2, 0.08]).astype("uint8")
    files = [write_tif(folder / f"{name}.tif", v) for name, v in zip("fbdcea", values, strict=True)]
    request = payload(places, files, f"{folder.name}.tif", (3, 11, 60, 70))
    answer = service.post("/median", wrap(request))
    assert answer.status_code == 204, answer.text
    assert answer.content == b""
    with rasterio.open(request["destination"]) as made:
        assert np.array_equal(made.read(), seed_median(files, request["window"]))
        assert made.transform == ORIGIN * rasterio.Affine.translation(3, 11)
        assert made.crs.to_epsg() == 32631
        assert made.profile["blockxsize"] == 256 or made.width < 256
    assert cog_validate(request["destination"], strict=True, quiet=True)[0]


def test_repeated_request_finds_the_window(service, places, scenes):
    request = payload(places, scenes, "again.tif")
    assert service.post("/median", request).status_code == 204
    before = Path(request["destination"]).stat()
    assert service.post("/median", pushed(request)).status_code == 204
    after = Path(request["destination"]).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    other = payload(places, scenes, "again.tif", (8, 8, 64, 48))
    assert service.post("/median", other).status_code == 204
    assert Path(request["destination"]).stat().st_ino != before.st_ino


def test_scenes_that_are_replaced_are_noticed(service, places):
    folder = places / "scenes" / "replaced"
    folder.mkdir()
    files = series(folder, scenes=3)
    request = payload(places, files, "replaced.tif")
    assert service.post("/median", request).status_code == 204
    write_tif(files[1], encoded(9), interleave="pixel", photometric="RGB")
    other = payload(places, files, "replaced.tif", (1, 0, 64, 48))
    assert service.post("/median", other).status_code == 204
    with rasterio.open(other["destination"]) as made:
        assert np.array_equal(made.read(), seed_median(files, other["window"]))


def bad_scene(places, name, array, **options):
    folder = places / "scenes" / "bad"
    folder.mkdir(exist_ok=True)
    return write_tif(folder / name, array, **options)


def test_bad_input_names_the_field(service, places, scenes):
    good = payload(places, scenes, "bad.tif")
    five = bad_scene(places, "five.tif", encoded(1, bands=5))  # a fourth band alone would be an alpha band
    deep = bad_scene(places, "deep.tif", encoded(1).astype("uint16"))
    small = bad_scene(places, "small.tif", encoded(1, height=100))
    other = bad_scene(places, "other.tif", encoded(1) // 2, nbits=7)
    text = places / "scenes" / "bad" / "text.tif"
    text.write_text("no raster")
    (places / "scenes" / "nowhere.vrt").write_text("<VRTDataset/>")
    cases = [
        (good | {"window": [0, 0, 64]}, 422, "/window/3", "missing"),
        (good | {"window": [0, 0, 64, "48"]}, 422, "/window/3", "integer"),
        (good | {"window": [0, 0, 64.5, 48]}, 422, "/window/2", "integer"),
        (good | {"window": [-1, 0, 64, 48]}, 422, "/window/0", "greater"),
        (good | {"window": [0, 0, 0, 48]}, 422, "/window/2", "greater"),
        (good | {"window": [100, 0, 64, 48]}, 422, "/window", "out of bounds"),
        (good | {"window": [0, 0, 10**6, 10]}, 422, "/window", "at most 250000"),
        (good | {"datasets": []}, 422, "/datasets", "at least 1"),
        (good | {"datasets": scenes[0]}, 422, "/datasets", "tuple"),
        (good | {"datasets": [*scenes, 5]}, 422, "/datasets/5", "string"),
        (good | {"datasets": ["x.tif"] * 3400}, 422, "/datasets", "3400 datasets; at most 1500"),
        (good | {"datasets": [*scenes, str(places / "scenes" / "none.tif")]}, 422, "/datasets/5", "no such file"),
        (good | {"datasets": [*scenes, str(text)]}, 422, "/datasets/5", "not a TIFF"),
        (good | {"datasets": [*scenes, small]}, 422, "/datasets", "small"),
        (good | {"datasets": [other]}, 422, "/datasets/0", "needs GDAL"),
        (good | {"datasets": [five]}, 422, "/datasets/0", "expecting 3 bands, got 5"),
        (good | {"datasets": [deep]}, 422, "/datasets/0", "uint8"),
        (good | {"datasets": ["ftp://host/a.tif"]}, 422, "/datasets/0", "scheme"),
        (good | {"destination": 5}, 422, "/destination", "string"),
        (good | {"destination": ""}, 422, "/destination", "at least 1"),
        (good | {"destination": str(places / "out" / "a.png")}, 422, "/destination", "ends in .tif"),
        (good | {"destination": "/usr/a.tif"}, 403, "/destination", "may be written"),
        (good | {"destintion": "x"}, 422, "/destintion", "unknown field"),
        ({k: v for k, v in good.items() if k != "window"}, 422, "/window", "missing"),
        ([1, 2], 422, "", "object"),
        ("text", 422, "", "object"),
        ({"message": "hello"}, 400, "/message", "not an object"),
        ({"message": {}}, 400, "/message/data", "base64"),
        ({"message": {"data": 5}}, 400, "/message/data", "base64"),
    ]
    for request, status, pointer, words in cases:
        answer = service.post("/median", request)
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.status_code, problem["status"]) == (status, status), problem
        assert problem["errors"][0]["pointer"] == pointer, problem
        assert words.lower() in problem["detail"].lower(), problem
    assert not (places / "out" / "bad.tif").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"   ", "empty"),
        (b"{", "line 1 column 2"),
        (b'{"window": [1, 2, NaN, 4]}', "NaN"),
        (b'{"window": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "nested"),
        (b'{"window": ' + b"9" * 10_000 + b"}", "digits"),
    ],
)
def test_bodies_with_invalid_json(service, body, words):
    with service.client() as client:
        answer = client.post("/median", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "pointer"),
    [("no json", "/message/data"), ({"window": [0, 0, 9, 9]}, "/destination"), ([], "")],
)
def test_what_can_never_succeed_is_acknowledged_and_kept(service, content, pointer):
    number = f"dead {pointer}"
    answer = service.post("/median", pushed(content, number))
    assert answer.status_code == 200, "anything else and Pub/Sub would send it four times more"
    assert answer.json()["status"] == 422
    (letter, *_) = service.get("/dead-letters").json()
    assert letter["message"] == number
    assert letter["problem"]["errors"][0]["pointer"] == pointer
    assert service.post("/median", content).status_code == 422, "a caller who is not Pub/Sub is told"


def test_invalid_base64_becomes_a_dead_letter(service):
    answer = service.post("/median", {"message": {"data": "%%%", "messageId": "b"}})
    assert (answer.status_code, answer.json()["status"]) == (200, 422)


def test_dispatch_retries_transient_errors(places, tmp_path):
    """A server that is down for a while: 503 and Retry-After, direct or pushed; no dead letter."""
    folder = tmp_path / "served"
    folder.mkdir()
    files = series(folder, scenes=2)
    down = {"now": False}
    with fault_server(folder, fault=lambda path, n: "503" if down["now"] else None) as server:
        settings = {"read": [server.url("")], "write": [str(tmp_path)], "limits": {"seconds": 60.0}}
        with served(tmp_path / "run", **settings) as service:
            names = [server.url(Path(file).name) for file in files]
            request = {"window": [0, 0, 32, 32], "destination": str(tmp_path / "a.tif"), "datasets": names}
            down["now"] = True
            for one in (request, pushed(request)):
                answer = service.post("/median", one)
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["retry-after"]) > 0
                assert answer.json()["errors"][0]["pointer"].startswith("/datasets/")
            assert service.get("/dead-letters").json() == []
            down["now"] = False
            assert service.post("/median", pushed(request)).status_code == 204
            with rasterio.open(request["destination"]) as made:
                assert np.array_equal(made.read(), seed_median(files, request["window"]))


@pytest.mark.slow
def test_object_stores_both_ways(tmp_path):
    files = series(tmp_path, scenes=3)
    with s3_server() as server, server.selected(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test"):
        names = [server.put_file(f"bucket/scenes/{Path(file).name}", file) for file in files]
        server.put("bucket/results/seen.txt")
        settings = {"read": ["s3://bucket/scenes/"], "write": ["s3://bucket/results/", "s3://none/"]}
        with served(tmp_path / "run", **settings) as service:
            request = {"window": [5, 6, 40, 50], "destination": "s3://bucket/results/t.tif", "datasets": names}
            assert service.post("/median", request).status_code == 204
            refused = service.post("/median", request | {"destination": "s3://none/t.tif"})
            assert refused.status_code == 403, refused.text
            assert refused.json()["errors"][0]["pointer"] == "/destination"
            gone = service.post("/median", request | {"datasets": [*names, "s3://bucket/scenes/gone.tif"]})
            assert (gone.status_code, gone.json()["errors"][0]["pointer"]) == (422, "/datasets/3")
        import s3fs

        fs = s3fs.S3FileSystem(endpoint_url=server.endpoint, key="test", secret="test", skip_instance_cache=True)
        local = tmp_path / "t.tif"
        local.write_bytes(fs.cat_file("bucket/results/t.tif"))
        with rasterio.open(local) as made:
            assert np.array_equal(made.read(), seed_median(files, request["window"]))


# --- jobs -----------------------------------------------------------------------------------------------------------


def job(places, **more):
    return {"source": str(places / "scenes" / "T31*.tif"), "output": "median.tif", "chunks": 64, **more}


def test_a_job_from_its_request_to_its_report(service, places, scenes):
    text = yaml.safe_dump(job(places, layers=["composite", "count"], raster={"blocksize": 64}))
    with service.client() as client:
        answer = client.post("/jobs", content=text, headers={"content-type": "application/yaml"})
        assert answer.status_code == 202, answer.text
        number = answer.json()["id"]
        assert answer.headers["location"] == f"/jobs/{number}"
        with client.stream("GET", f"/jobs/{number}/log", params={"follow": True}) as stream:
            log = "".join(stream.iter_text())
        facts = client.get(f"/jobs/{number}").json()
        assert (facts["state"], facts["progress"], facts["error"]) == ("complete", 1.0, None), log
        assert facts["counts"] == {"windows": 12, "done": 12, "failed": 0}
        assert "written: " in log
        folder = places / "store" / number
        assert (folder / "job_log.txt").read_text() == client.get(f"/jobs/{number}/log").text == log
        assert {p.name for p in folder.glob("*.tif")} == {"median.tif", "median_count.tif"}
        with rasterio.open(folder / "median.tif") as made:
            assert np.array_equal(made.read(), seed_median(scenes, (0, 0, 136, 200)))
        assert "<svg" in client.get(f"/jobs/{number}/report").text
        report = client.get(f"/jobs/{number}/report", headers={"accept": "application/json"}).json()
        assert (report["state"], report["done"]) == ("complete", 12)
        look = client.get(f"/jobs/{number}/quicklook.png")
        assert look.content[:8] == b"\x89PNG\r\n\x1a\n"
        assert client.get("/jobs").json()[0] == facts
        assert client.delete(f"/jobs/{number}").status_code == 409
        assert client.post(f"/jobs/{number}/retry").status_code == 409


def test_a_quicklook_of_a_zarr_store(scenes, tmp_path):
    path = str(tmp_path / "median.zarr")
    s2c.composite(s2c.open_cube(scenes)).to_zarr(path)
    document = job_text(load_job({"source": scenes, "output": path}))
    row = JobRow("x", "complete", document, "2023-06-01T00:00:00", None, None, 1, "missing", None)
    picture = imagecodecs.png_decode(Views().quicklook(row))
    assert picture.shape == (200, 136, 4)
    want = seed_median(scenes, (0, 0, 136, 200))
    valid = (want > 0).all(axis=0)
    assert np.array_equal(picture[..., 3] > 0, valid)
    assert np.array_equal(picture[valid][:, :3], want[:, valid].T)


def test_unknown_jobs(service):
    with service.client() as client:
        for answer in (
            client.get("/jobs/nowhere"),
            client.get("/jobs/nowhere/log"),
            client.get("/jobs/nowhere/report"),
            client.get("/jobs/nowhere/quicklook.png"),
            client.delete("/jobs/nowhere"),
            client.post("/jobs/nowhere/retry"),
            client.get("/elsewhere"),
        ):
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("change", "status", "pointer"),
    [
        ({"source": "/etc"}, 403, "/source"),
        ({"source": 5}, 422, "/source"),
        ({"source": []}, 422, "/source"),
        ({"output": "../median.tif"}, 422, "/output"),
        ({"output": "/tmp/median.tif"}, 422, "/output"),
        ({"output": "median.png"}, 422, "/output"),
        ({"reducer": "os:system"}, 422, "/reducer"),
        ({"reducer": [{"subprocess.run": {"args": "id"}}]}, 422, "/reducer"),
        ({"valid": ["os.system"]}, 422, "/valid"),
        ({"valid": [{"mask": {"function": "os:system"}}]}, 422, "/valid"),
        ({"valid": ["nodata", {"cloud_net": {"cache": "/tmp/masks"}}]}, 403, "/valid"),
        ({"cluster": "tcp://10.0.0.1:8786"}, 403, "/cluster"),
        ({"performance_report": "/tmp/a.html"}, 403, "/performance_report"),
        ({"area": "/etc/passwd"}, 403, "/area"),
        ({"engine": "gdal"}, 403, "/engine"),
        ({"sign": "os.system"}, 403, "/sign"),
        ({"like": "/etc/passwd"}, 403, "/like"),
        ({"index": "/tmp/headers.index"}, 403, "/index"),
        ({"groupby": "month"}, 422, "/groupby"),
        ({"harmonise": "no"}, 422, "/harmonise"),
        ({"resampling": {"*": "smooth"}}, 422, "/resampling"),
        ({"crs": "+init=/etc/passwd:1"}, 422, "/crs"),
        ({"chunks": "many"}, 422, "/chunks"),
        ({"policy": {"attempts": 0}}, 422, "/policy/attempts"),
        ({"sorce": "x"}, 422, ""),
        ({"output": "{0.__class__}.tif"}, 422, "/output"),
        ({"output": "m_{cell}.tif", "grid": {"type": "cells", "file": "/etc/passwd"}}, 403, "/grid/file"),
        ({"output": "m_{cell}.tif", "grid": "mgrs"}, 422, "/bbox"),
        ({"output": "m_{cell}.tif", "grid": {"type": "utm", "size": 1}, "bbox": [0, 40, 9, 50]}, 422, "/grid"),
        ({"output": "m_{cell}.tif", "grid": "/etc/proj;10;100", "bbox": [0, 40, 9, 50]}, 422, "/grid"),
        ({"output": "m.tif", "grid": "mgrs", "bbox": [0, 40, 9, 50]}, 422, "/grid"),
        ({"output": "{{pointInTime}}.tif", "span": {"start": "0001-01-01"}}, 422, "/span"),
        ({"output": "{{pointInTime}}.tif", "span": {"start": "2023-07", "end": "2023-06"}}, 422, "/span"),
        (
            {"source": "/etc/{{pointInTime}}", "output": "{{pointInTime}}.tif", "span": {"start": "2023"}},
            403,
            "/source",
        ),
    ],
)
def test_rejected_jobs(service, places, change, status, pointer):
    answer = service.post("/jobs", job(places) | change)
    assert answer.status_code == status, answer.text
    assert answer.json().get("errors", [{}])[0].get("pointer") == pointer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("a: &a [1]\nsource: *a", "alias"),
        ("source: [", "YAML"),
        ("", "is empty"),
        ("- a", "key: value"),
        ("source: " + "[" * 60 + "]" * 60, "deep"),
    ],
)
def test_rejected_yaml(service, body, words):
    with service.client() as client:
        answer = client.post("/jobs", content=body, headers={"content-type": "application/yaml"})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["detail"]


def test_failed_job_has_its_error_and_can_be_retried(service, places, scenes):
    folder = places / "scenes" / "broken"
    folder.mkdir()
    files = [Path(file) for file in series(folder, scenes=3)]
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2])
    number = service.post("/jobs", job(places, source=str(folder))).json()["id"]
    facts = service.job(number, "failed")
    assert files[1].name in facts["error"]
    files[1].write_bytes(whole)
    assert service.post(f"/jobs/{number}/retry", None).status_code == 202
    assert service.job(number, "complete", "failed")["state"] == "complete"
    assert service.get(f"/jobs/{number}").json()["attempts"] == 2


@pytest.mark.timeout(900)
def test_jobs_outlive_the_service_and_can_be_cancelled(tmp_path):
    """After a kill, the job resumes from its ledger; a cancelled job ends with all its processes."""
    folder = tmp_path / "served"
    folder.mkdir()
    # The lower two of four rows of windows lie in the later half of the files: until then they cannot be made.
    files, gate = series(folder, scenes=4, compress="none"), Gate(0.5)
    with fault_server(folder, gate=gate) as server:
        settings = {"read": [server.url("")], "storage": str(tmp_path / "store")}
        source = [server.url(Path(file).name) for file in files]
        request = {"source": source, "output": "m.tif", "chunks": 64, "raster": {"blocksize": 64}}
        with served(tmp_path / "run", **settings) as service:
            number = service.post("/jobs", request).json()["id"]
            output = tmp_path / "store" / number / "m.tif"
            until(lambda: noted(output, "done"))
            inside = set(psutil.Process(service.process.pid).children(recursive=True))
            service.kill()
            until(lambda: not any(p.is_running() and p.status() != "zombie" for p in inside))
        before = noted(output, "done")
        assert 0 < len(before) <= 6
        with served(tmp_path / "run", **settings) as service:
            assert service.job(number, "running")["attempts"] == 2
            group = until(lambda: psutil.Process(service.process.pid).children(recursive=True))
            assert service.post(f"/jobs/{number}/retry", None).status_code == 409
            with service.client() as client:
                assert client.delete(f"/jobs/{number}").status_code == 202
                assert client.get(f"/jobs/{number}").json()["state"] == "cancelled"
            until(lambda: not any("service.process" in " ".join(_command(p)) for p in group))
            gate.open()
            assert service.post(f"/jobs/{number}/retry", None).status_code == 202
            facts = service.job(number, "complete", "failed")
            assert facts["state"] == "complete", service.get(f"/jobs/{number}/log").text
        made, found = noted(output, "done"), noted(output, "found")
        assert len(set(made)) == len(made), "no window is made twice"
        assert made[: len(before)] == before
        # Some that were made when the power went were not noted any more: they are found by their records, and count.
        assert sorted([*made, *found]) == list(np.ndindex(4, 3))
        assert facts["counts"] == {"windows": 12, "done": 12, "failed": 0}
        with rasterio.open(output) as composite:
            assert np.array_equal(composite.read(), seed_median(files, (0, 0, 136, 200)))


def noted(output, event):
    """Return the windows in the ledger, in order of time."""
    return [tuple(e["window"]) for e in read_ledger(str(output)) if e["event"] == event]


def _command(process):
    try:
        return process.cmdline() if process.status() != "zombie" else []
    except psutil.NoSuchProcess:
        return []


def test_queue_of_jobs_is_limited(service, places, scenes):
    answers = [service.post("/jobs", job(places)) for _ in range(8)]
    taken = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    assert {a.status_code for a in answers} == {202, 429}
    assert len(taken) in (3, 4), "three wait, and one may be running"
    assert int(answers[-1].headers["retry-after"]) > 0
    with service.client() as client:
        for number in taken[::-1]:
            assert client.delete(f"/jobs/{number}").status_code == 202
        assert {client.get(f"/jobs/{number}").json()["state"] for number in taken} == {"cancelled"}


# --- the service itself ---------------------------------------------------------------------------------------------


def test_openapi_has_examples(service):
    api = service.get("/openapi.json").json()
    body = api["paths"]["/median"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["examples"]) == {"bare", "pushed"}
    inner = body["examples"]["pushed"]["value"]["message"]["data"]
    assert json.loads(base64.b64decode(inner)) == body["examples"]["bare"]["value"]
    assert "application/yaml" in api["paths"]["/jobs"]["post"]["requestBody"]["content"]
    assert {"202", "429"} <= set(api["paths"]["/jobs"]["post"]["responses"])


def test_without_the_extra_the_message_names_it(tmp_path):
    code = (
        "import sys; sys.modules['uvicorn'] = None; from s2composite.cli import main; sys.argv[1:] = ['serve']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "s2composite[service]" in done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "nothing is allowed"),
        ({"read": ["/data"]}, "nothing is allowed"),
        ({"read": ["ftp://x"], "write": ["/tmp"]}, "read"),
        ({"read": ["s3://k:s@x"], "write": ["/tmp"]}, "no user"),
        ({"read": ["/data"], "write": ["/tmp"], "prot": 1}, "did you mean 'port'"),
        ({"read": ["/data"], "write": ["/tmp"], "networks": ["nonsense"]}, "nonsense"),
        ({"read": ["/data"], "write": ["/tmp"], "limits": {"body": 0}}, "limits.body"),
        ({"read": ["/data"], "write": ["/tmp"], "workers": "two"}, "workers"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(JobError, match=words):
        load_settings(settings)


def test_a_database_that_cannot_be_opened(tmp_path):
    for url in ("nosuch://x", f"sqlite:///{tmp_path}/none/service.db", "postgresql+psycopg2://u:hunter2@127.0.0.1:1/x"):
        with pytest.raises(ParameterError, match="cannot be opened") as refused:
            JobStore(url)
        assert "hunter2" not in str(refused.value)


def test_the_command_line_says_what_is_wrong(tmp_path):
    config = tmp_path / "service.yaml"
    config.write_text("read: [/data]\nwrite: [/tmp]\nprot: 1\n")
    done = subprocess.run([*COMMAND, str(config)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "service.yaml, line 3: unknown key 'prot'; did you mean 'port'?" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
