"""What was tried against the service that is about its own endurance: long texts, slow callers, races, lost databases."""

import gzip
import http.server
import re
import socket
import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from http_faults import fault_server
from rasters import encoded, series, write_tif
from services import served, until
from test_service import pushed

from s2composite.reading.fetch import read_head
from s2composite.service.problems import printable, scrubbed

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ | {4}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("attacks")
    for name in ("scenes", "out", "store"):
        (root / name).mkdir()
    return root


@pytest.fixture(scope="module")
def files(root):
    return series(root / "scenes", scenes=2)


@pytest.fixture(scope="module")
def service(root, files):
    settings = {"read": [str(root / "scenes")], "write": [str(root / "out")], "storage": str(root / "store")}
    with served(root / "run", limits={"running": 2, "arrival": 2.0}, **settings) as service:
        yield service


@pytest.fixture
def request_of(root, files):
    return {"window": [0, 0, 8, 8], "destination": str(root / "out" / "a.tif"), "datasets": files}


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a" * 10**6, "a://" * 250_000, "a://" + "b" * 10**6, "bearer " * 140_000, "?" * 10**6]
)
def test_scrubbing_takes_time_in_proportion(text):
    """It would take hours if it looked at the rest of the text from each of its letters."""
    assert scrubbed(text) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql://u:p@ss@db/x", "postgresql://db/x"),
        ("(https://a/b?sig=1) and https://c?x=1, why?", "(https://a/b) and https://c why?"),
        ("https://a/b?u=https://c?d=1", "https://a/b"),
    ],
)
def test_scrubbing_of_what_is_nested(text, told):
    assert scrubbed(text) == told


def test_what_is_printed_is_one_entry_of_a_log():
    text = printable("a\r\n2026-01-01 INFO b\rc\x1b[31m\x85\u2028d\x00")
    assert text == "a\n    2026-01-01 INFO b\n    c?[31m??d?"


def test_a_long_text_in_a_dead_letter_stops_nobody(service, request_of):
    answer = service.post("/median", pushed(request_of | {"destination": "a" * 10**6}, "long"))
    assert answer.status_code == 200
    letter = next(one for one in service.get("/dead-letters").json() if one["message"] == "long")
    assert len(letter["payload"]) == 1 << 18, "the beginning is kept"


def test_nobody_writes_lines_into_the_log(service, request_of):
    forged = "x\n2026-01-01 00:00:00,000 INFO all is well\x1b[2J"
    assert service.post("/median", pushed(request_of | {forged: 1}, forged)).status_code == 200
    assert service.post("/jobs", {forged: 1}).status_code == 422
    log = service.log()
    assert "all is well" in log
    assert "\x1b" not in log
    lines = log.splitlines()
    assert not [line for line in lines if line.startswith("2026-01-01")]
    assert not [line for line in lines if not (LINE.match(line) or line.startswith("s2composite"))], log


def test_headers_that_are_no_urls(service, request_of):
    with service.client() as client:
        assert client.post("/median", json=request_of, headers={"origin": "http://["}).status_code == 403
        assert client.get("/", headers={"host": "["}).status_code == 421
    assert "Traceback" not in service.log()


@pytest.mark.parametrize("path", ["/median", "/jobs"])
@pytest.mark.parametrize(
    "body",
    [
        rb'{"source": "\ud800", "output": "a.tif"}',
        rb'{"\ud800": 1}',
        rb'{"message": {"data": "e30=", "messageId": "\ud800"}}',
        b'{"source": "\xed\xa0\x80"}',
    ],
)
def test_half_characters(service, path, body):
    with service.client() as client:
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"source: [" + b"a," * 40_000 + b"]", 413, "JSON"),
        (b"source: a\noutput: a.tif\nmin_count: 1" + b":59" * 20_000, 422, "digits"),
        (b"source: a\noutput: a.tif\nmin_count: 0x" + b"f" * 60_000, 422, "digits"),
        (b'source: "\\ud800"\noutput: a.tif', 400, "surrogate"),
    ],
)
def test_yaml_that_costs_more_than_its_length(service, body, status, words):
    with service.client() as client:
        answer = client.post("/jobs", content=body, headers={"content-type": "application/yaml"})
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


# --- callers in no hurry --------------------------------------------------------------------------------------------


def rest_of(connection):
    """Return what comes until the other side closes."""
    connection.settimeout(120)
    got = b""
    try:
        while part := connection.recv(4096):
            got += part
    except ConnectionResetError:
        pass
    return got


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", b""),
        (
            b"POST /median HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
            b"408",
        ),
        (b"POST /median HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\n\r\n{", b"413"),
    ],
    ids=["nothing", "header", "body", "refused body"],
)
def test_who_sends_nothing_more_is_hung_up_on(service, sent, status):
    url = urlsplit(service.url)
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(sent)
        answer = rest_of(connection)
    assert answer.partition(b"\r\n")[0].split(b" ")[1:2] == ([status] if status else [])


# --- servers of scenes ----------------------------------------------------------------------------------------------


@contextmanager
def endless(length):
    """Run a server that answers each range with bytes without end; `length`: what it says, None: nothing."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_GET(self):
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-65535/70000")
            self.send_header(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))))
            self.end_headers()
            data = b"II*\0" + b"\0" * 65532
            try:
                for _ in range(16_000):  # a gigabyte
                    self.wfile.write(b"10000\r\n%b\r\n" % data if length is None else data)
                    sent.append(len(data))
            except OSError:
                self.close_connection = True

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", sent
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("length", [None, 10**9])
def test_a_server_that_sends_without_end(request_of, tmp_path, length):
    with endless(length) as (url, sent):
        with served(tmp_path / "run", read=[url], write=[request_of["destination"].rpartition("/")[0]]) as service:
            answer = service.post("/median", request_of | {"datasets": [f"{url}a.tif"]})
        assert answer.status_code == 422, answer.text
        assert "more than" in answer.json()["detail"]
    assert sum(sent) < 100 << 20, "what the buffers of two sockets hold"


def test_a_scene_that_grows_when_it_is_unpacked(tmp_path):
    bomb = gzip.compress(bytes(20 << 20))
    (tmp_path / "a.tif").write_bytes(bomb)
    with fault_server(tmp_path, fault=lambda path, n: "packed") as server:
        assert read_head(server.url("a.tif"))[0] == bomb


def test_a_small_file_with_an_enormous_tile(service, root, request_of):
    """A kilobyte of deflated zeros may stand for a gigabyte, which one pixel of it would cost."""
    path = root / "scenes" / "tile.tif"
    write_tif(path, encoded(1, height=64, width=64), interleave="pixel", tiled=True, blockxsize=64, blockysize=64)
    data = bytearray(path.read_bytes())
    for tag in (322, 323):
        at = data.index(tag.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00\x40\x00")
        data[at + 8 : at + 10] = (16384).to_bytes(2, "little")
    path.write_bytes(data)
    answer = service.post("/median", request_of | {"datasets": [str(path)]})
    assert (answer.status_code, "decoded at once" in answer.text) == (422, True), answer.text


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_cancelled_and_put_back_at_once(service, root, files):
    """While its process still ends, another slot is free: it neither runs twice, nor is the second run taken to be over."""
    job = {"source": files, "output": "m.tif", "chunks": 64, "raster": {"blocksize": 64}}
    number = service.post("/jobs", job).json()["id"]
    for attempt in range(1, 4):
        until(lambda n=attempt: service.get(f"/jobs/{number}").json()["attempts"] == n)
        with service.client() as client:
            cancelled = threading.Thread(target=client.delete, args=(f"/jobs/{number}",))
            cancelled.start()
            until(lambda: service.post(f"/jobs/{number}/retry", None).status_code == 202)
            cancelled.join()
    facts = service.job(number, "complete", "failed", "cancelled")
    assert (facts["state"], facts["attempts"]) == ("complete", 4), service.get(f"/jobs/{number}/log").text


def test_a_database_that_goes_and_comes_back(service, root, files):
    """Requests are sent away for a while; the queue goes on by itself."""
    with sqlite3.connect(root / "run" / "state" / "service.db") as database:
        database.execute("ALTER TABLE jobs RENAME TO away")
        database.commit()
        answer = service.get("/jobs")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), answer.text
        assert service.post("/jobs", {"source": files, "output": "m.tif"}).status_code == 503
        until(lambda: service.log().count("the queue cannot be read") > 2)
        database.execute("ALTER TABLE away RENAME TO jobs")
        database.commit()
    database.close()
    number = service.post("/jobs", {"source": files, "output": "m.tif"}).json()["id"]
    assert service.job(number, "complete", "failed")["state"] == "complete"


def test_two_services_do_not_take_the_same_jobs(service, root):
    settings = {key: service.settings[key] for key in ("read", "write", "storage", "state")}
    with pytest.raises(AssertionError, match="another service takes jobs"), served(root / "second", **settings):
        pass
