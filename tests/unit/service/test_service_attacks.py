"""Attacks on the availability of the service: long texts, slow callers, races, lost databases."""

import base64
import gzip
import http.server
import re
import socket
import sqlite3
import struct
import threading
from urllib.parse import urlsplit

import pytest

from s2composite.service.security import PushKeys, has_push_token, printable
from s2composite.service.settings import PushOptions
from s2composite.storage.files import redact
from s2composite.storage.http import read_head
from support.http_faults import fault_server
from support.rasters import encoded, series, write_tif
from support.services import pushed, served, until

pytestmark = pytest.mark.slow

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
def endless():
    """A server that answers each range with endless bytes, with or without a Content-Length."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_GET(self):
            told = self.path.endswith("long.tif")
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-65535/70000")
            self.send_header(*(("Content-Length", "1000000000") if told else ("Transfer-Encoding", "chunked")))
            self.end_headers()
            data = b"II*\0" + b"\0" * 65532
            try:
                for _ in range(15_000):  # a gigabyte
                    self.wfile.write(data if told else b"10000\r\n%b\r\n" % data)
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


@pytest.fixture(scope="module")
def service(root, files, endless):
    settings = {
        "read": [str(root / "scenes"), endless[0]],
        "write": [str(root / "out")],
        "storage": str(root / "store"),
    }
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
    """It would take hours if it searched the rest of the text from each letter."""
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql://u:p@ss@db/x", "postgresql://db/x"),
        ("(https://a/b?sig=1) and https://c?x=1, why?", "(https://a/b) and https://c why?"),
        ("https://a/b?u=https://c?d=1", "https://a/b"),
    ],
)
def test_scrubbing_of_what_is_nested(text, told):
    assert redact(text) == told


def test_what_is_printed_is_one_entry_of_a_log():
    text = printable("a\r\n2026-01-01 INFO b\rc\x1b[31m\x85\u2028d\x00")
    assert text == "a\n    2026-01-01 INFO b\n    c?[31m??d?"


def test_a_long_text_in_a_dead_letter_stops_nobody(service, request_of):
    answer = service.post("/median", pushed(request_of | {"destination": "a" * 10**6}, "long"))
    assert answer.status_code == 200
    letter = next(one for one in service.get("/dead-letters").json() if one["message"] == "long")
    assert len(letter["payload"]) == 1 << 18, "the beginning is kept"


def test_callers_cannot_forge_log_lines(service, request_of):
    forged = "x\n2026-01-01 00:00:00,000 INFO all is well\x1b[2J"
    assert service.post("/median", pushed(request_of | {forged: 1}, forged)).status_code == 200
    assert service.post("/jobs", {forged: 1}).status_code == 422
    log = service.log()
    assert "all is well" in log
    assert "\x1b" not in log
    lines = log.splitlines()
    assert not [line for line in lines if line.startswith("2026-01-01")]
    assert not [line for line in lines if not (LINE.match(line) or line.startswith("s2composite"))], log


def test_headers_with_invalid_urls(service, request_of):
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
def test_lone_surrogates_are_rejected(service, path, body):
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
    """Return the bytes received until the other side closes."""
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
def test_idle_connections_are_closed(service, sent, status):
    url = urlsplit(service.url)
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(sent)
        answer = rest_of(connection)
    assert answer.partition(b"\r\n")[0].split(b" ")[1:2] == ([status] if status else [])


@pytest.mark.parametrize("answer", [None, "503", "no json", "[1]"])
def test_a_signer_that_does_not_answer_is_asked_once(tmp_path, answer):
    """Anything that looks like a token needs the signer's keys, but not one fetch for each request."""
    (tmp_path / "keys").write_text(answer or "")
    with fault_server(tmp_path, fault=lambda path, n: answer if answer == "503" else None) as server:
        keys = PushKeys(server.url("keys"))
        if answer is None:
            keys = PushKeys("http://127.0.0.1:1/keys")
        push = PushOptions(audience="a", email="e")
        for head in (b"[]", b"{}", b'{"alg": 5}', b'{"alg": "RS256", "kid": []}', b"\xff", b'"x"'):
            part = base64.urlsafe_b64encode(head).decode().rstrip("=")
            assert not has_push_token(f"Bearer {part}.{part}.{part}", push, keys)
        assert keys.get() == {}
        assert len(server.state.requests) == (0 if answer is None else 1)


# --- servers of scenes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chunked.tif", "long.tif"])
def test_a_server_that_sends_without_end(service, request_of, endless, name):
    url, sent = endless
    sent.clear()
    answer = service.post("/median", request_of | {"datasets": [url + name]})
    assert answer.status_code == 422, answer.text
    assert "more than" in answer.json()["detail"]
    assert sum(sent) < 100 << 20, "what the buffers of two sockets hold"


def test_a_scene_that_grows_when_it_is_unpacked(tmp_path):
    bomb = gzip.compress(bytes(20 << 20))
    (tmp_path / "a.tif").write_bytes(bomb)
    with fault_server(tmp_path, fault=lambda path, n: "packed") as server:
        assert read_head(server.url("a.tif"))[0] == bomb


def patched(path, tag, value):
    """Overwrite the value of a tag in a TIFF with one tile of 64 pixels."""
    data = bytearray(path.read_bytes())
    at = data.index(tag.to_bytes(2, "little"), data.index(b"\x00\x01\x03\x00\x01\x00"))
    size = {3: 2, 4: 4}[data[at + 2]]
    data[at + 8 : at + 8 + size] = value.to_bytes(size, "little")
    path.write_bytes(data)


def one_tile(path):
    write_tif(path, encoded(1, height=64, width=64), interleave="pixel", photometric="RGB")


def test_small_files_that_cost_much(service, root, request_of):
    """A tile of a gigabyte when decoded, one when encoded, and a header of a gigabyte."""
    decoded, fetched, header = (root / "scenes" / f"{name}.tif" for name in ("decoded", "fetched", "header"))
    one_tile(decoded)
    patched(decoded, 322, 16384)
    patched(decoded, 323, 16384)
    one_tile(fetched)
    patched(fetched, 325, 1 << 30)
    with fetched.open("ab") as file:
        file.truncate(2 << 30)  # its disk holds nothing of that
    entries = 20_000_000
    header.write_bytes(b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, entries))
    with header.open("ab") as file:
        file.truncate(1 << 30)
    for path, words in (
        (decoded, "a tile or strip of 805306368 when decoded"),
        (fetched, "fetched at once"),
        (header, "its header would have"),
    ):
        answer = service.post("/median", request_of | {"datasets": [str(path)]})
        assert (answer.status_code, words in answer.text) == (422, True), answer.text
        assert answer.json()["errors"][0]["pointer"] == "/datasets/0"


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_job_retried_while_its_process_is_ending(service, root, files):
    """Its process is still ending and another slot is free: it does not run twice, and the second run is not ended early."""
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


def test_queue_continues_after_a_database_outage(service, root, files):
    """Requests get 503 for a while; the queue continues by itself."""
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
    with pytest.raises(AssertionError, match="another service runs jobs"), served(root / "second", **settings):
        pass
