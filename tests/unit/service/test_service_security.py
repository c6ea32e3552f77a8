"""Attacks on the service; the page `docs/pages/guides/security.md` has a row for each."""

import base64
import gzip
import http.server
import json
import os
import re
import socket
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from google.auth import crypt, jwt

from s2composite.errors import ParameterError
from s2composite.service.security import has_token
from s2composite.service.settings import TOKEN as TOKEN_NAME
from s2composite.service.settings import load_settings, take_token
from s2composite.storage.files import redact
from support import ROOT, TESTS
from support.http_faults import fault_server, redirecting
from support.rasters import encoded, series, vrt, write_tif
from support.services import served, until

TOKEN = "correct-horse-battery-staple"
DOCS = ROOT / "docs" / "pages" / "guides"
SIGNATURE = "X-Amz-Signature=5ec7e7"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("secure")
    for name in ("scenes", "out", "store", "secret", "web"):
        (root / name).mkdir()
    return root


@pytest.fixture(scope="module")
def files(root):
    series(root / "web", scenes=2)
    series(root / "secret", scenes=2)
    return series(root / "scenes", scenes=2)


@pytest.fixture(scope="module")
def web(root, files):
    with fault_server(root / "web") as server:
        yield server


@pytest.fixture(scope="module")
def signer():
    """A key pair like Google's for signing tokens, and a server for its certificate."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    answer = json.dumps({"k1": public.decode()}).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield crypt.RSASigner.from_string(private, "k1"), f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def service(root, web, signer):
    """With a token, on all addresses; all plain HTTP is allowed, so that only the address is checked."""
    settings = {
        "host": "0.0.0.0",
        "read": [str(root / "scenes"), web.url(""), "http://", "https://", "s3://open/"],
        "write": [str(root / "out")],
        "storage": str(root / "store"),
        "limits": {"body": 100_000},
        "push": {"audience": "https://median.example", "email": "push@p.iam", "certificates": signer[1]},
    }
    environment = {"VERY_SECRET": "hunter2hunter2", "AWS_EC2_METADATA_DISABLED": "true"}
    with served(root / "run", token=TOKEN, environment=environment, **settings) as service:
        service.url = service.url.replace("0.0.0.0", "127.0.0.1")
        yield service


@pytest.fixture
def ask(service, root, files):
    """Request a window with changed fields."""

    def ask(**change):
        good = {"window": [0, 0, 8, 8], "destination": str(root / "out" / "a.tif"), "datasets": files}
        return service.post("/median", good | change)

    return ask


def refused(answer, pointer, *statuses):
    assert answer.status_code in (statuses or (403,)), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["pointer"].startswith(pointer)
    return answer.json()["detail"]


# --- where scenes may come from -------------------------------------------------------------------------------------


def test_allowed_locations_work(ask, web, root):
    assert ask().status_code == 204
    names = [web.url(path.name) for path in sorted((root / "web").glob("*.tif"))]
    assert ask(datasets=names, destination=str(root / "out" / "b.tif")).status_code == 204


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "localhost",
        "0.0.0.0",
    ],
)
def test_loopback_in_all_spellings(ask, root, host):
    """A server at that address gets no request; it counts them."""
    with fault_server(root / "secret") as inner:
        port = urlsplit(inner.url("")).port
        name = next((root / "secret").glob("*.tif")).name
        refused(ask(datasets=[f"http://{host}:{port}/{name}"]), "/datasets", 403, 422, 503)
        assert not inner.state.requests


@pytest.mark.slow
@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]",
        "2852039166",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "10.0.0.1",
        "192.168.0.1",
        "metadata.google.internal",
        "metadata",
    ],
)
def test_metadata_and_private_addresses(ask, host):
    start = time.monotonic()
    refused(ask(datasets=[f"http://{host}/latest/meta-data/iam/a.tif"]), "/datasets", 403, 422, 503)
    assert time.monotonic() - start < 120


def test_a_redirect_to_a_private_address(ask, root):
    with fault_server(root / "secret") as inner:
        name = next((root / "secret").glob("*.tif")).name
        with redirecting(inner.url(name)) as outer:
            # Not even the first hop: it is a private address that nobody has named.
            refused(ask(datasets=[f"{outer}/a.tif"]), "/datasets")


@pytest.mark.slow
def test_a_redirect_from_an_open_address(root, files, tmp_path):
    """The operator allows one server, which redirects to another."""
    with fault_server(root / "secret") as inner:
        name = next((root / "secret").glob("*.tif")).name
        with redirecting(inner.url(name)) as outer:
            settings = {"read": [f"{outer}/", "http://"], "write": [str(tmp_path)]}
            with served(tmp_path / "run", **settings) as service:
                request = {"window": [0, 0, 8, 8], "destination": str(tmp_path / "a.tif")}
                detail = refused(service.post("/median", request | {"datasets": [f"{outer}/a.tif"]}), "/datasets")
                assert "not public" in detail or "not among" in detail


@pytest.mark.parametrize(
    "dataset",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "{scenes}/../secret/{name}",
        "file://{scenes}/../secret/{name}",
        "{scenes}/link.tif",
        "{scenes}/dir/{name}",
        "~/.ssh/id_rsa",
        "../../../../etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "/vsicurl/http://user@127.0.0.1/a.tif",
        "/vsicurl/file:///etc/passwd",
        "/vsizip/{scenes}/a.zip/a.tif",
        "/vsitar/{scenes}/a.tar/a.tif",
        "/vsimem/a.tif",
        "/vsis3/closed/a.tif",
        "/vsis3/open/../closed/a.tif",
        "/vsistdin/",
        "GTIFF_DIR:1:/etc/passwd",
        "NETCDF:/etc/passwd:x",
        'NETCDF:"/vsicurl/http://127.0.0.1/a.nc":x',
        "WMS:http://127.0.0.1/",
        "<VRTDataset/>",
        "s3://open/../closed/a.tif",
        "s3://closed/a.tif",
        "gs://closed/a.tif",
        "http://user:pw@127.0.0.1/a.tif",
        "https://open.example@127.0.0.1/a.tif",
        "http://127.0.0.1\\@open.example/a.tif",
        "http://open.example/a.tif\r\nHost: 127.0.0.1",
        "http://open.example/%2e%2e/a.tif",
    ],
)
def test_names_that_lead_elsewhere(ask, root, files, dataset):
    link, folder = root / "scenes" / "link.tif", root / "scenes" / "dir"
    if not link.is_symlink():
        link.symlink_to(next((root / "secret").glob("*.tif")))
        folder.symlink_to(root / "secret")
    name = next((root / "secret").glob("*.tif")).name
    dataset = dataset.replace("{scenes}", str(root / "scenes")).replace("{name}", name)
    refused(ask(datasets=[*files, dataset]), "/datasets/2", 403, 422)


@pytest.mark.parametrize("name", ["", "/vsicurl/", "/vsicurl_streaming/"])
def test_addresses_that_are_not_public_are_not_asked(ask, files, name):
    """GDAL's virtual path counts as its URL: here the operator allows http, but no private network."""
    refused(ask(datasets=[*files, f"{name}http://127.0.0.1/a.tif"]), "/datasets", 403, 422)


def test_files_that_name_other_files(ask, root, files):
    """A VRT called .tif, one with a URL inside, an archive, a TIFF that is cut off."""
    secret = next((root / "secret").glob("*.tif"))
    traps = {
        "vrt.tif": vrt(secret).encode(),
        "vsi.tif": vrt("/vsicurl/http://127.0.0.1:1/a.tif").encode(),
        "derived.tif": vrt(secret).replace("SimpleSource", "ComplexSource").encode(),
        "wms.tif": b"<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1/</ServerUrl></Service></GDAL_WMS>",
        "cut.tif": secret.read_bytes()[:3000],
        "empty.tif": b"",
    }
    for name, data in traps.items():
        path = root / "scenes" / name
        path.write_bytes(data)
        refused(ask(datasets=[str(path)]), "/datasets/0", 422)
    archive = root / "scenes" / "zip.tif"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(secret, "a.tif")
    refused(ask(datasets=[str(archive)]), "/datasets/0", 422)


def test_a_picture_that_claims_to_be_enormous(ask, root):
    """Its header declares 10 gigapixels in one strip: rejected, and the worker survives."""
    path = root / "scenes" / "huge.tif"
    write_tif(path, encoded(1, height=64, width=64), interleave="pixel")
    data = bytearray(path.read_bytes())
    at = data.index(b"\x00\x01\x03\x00\x01\x00\x00\x00")  # ImageWidth, SHORT, one value
    data[at + 2 : at + 12] = b"\x04\x00\x01\x00\x00\x00" + (100_000).to_bytes(4, "little")
    path.write_bytes(data)
    assert ask(datasets=[str(path)], window=[90_000, 0, 8, 8]).status_code == 422


# --- where results may go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "destination",
    [
        "/etc/cron.d/a.tif",
        "{out}/../secret/a.tif",
        "{out}/link/a.tif",
        "file:///etc/a.tif",
        "/vsimem/a.tif",
        "/vsis3/open/a.tif",
        "s3://open/a.tif",
        "http://127.0.0.1:1/a.tif",
        "https://host.example/a.tif",
        "../a.tif",
        "{scenes}/a.tif",
    ],
)
def test_destinations_that_lead_elsewhere(ask, root, destination):
    link = root / "out" / "link"
    if not link.is_symlink():
        link.symlink_to(root / "secret")
    before = sorted(p.name for p in (root / "secret").iterdir())
    place = destination.replace("{out}", str(root / "out")).replace("{scenes}", str(root / "scenes"))
    refused(ask(destination=place), "/destination", 403, 422)
    assert sorted(p.name for p in (root / "secret").iterdir()) == before


def test_a_link_at_the_destination_is_not_written_through(ask, root):
    victim = root / "secret" / "victim.txt"
    victim.write_text("untouched")
    (root / "out" / "through.tif").symlink_to(victim)
    refused(ask(destination=str(root / "out" / "through.tif")), "/destination")
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize("number", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "' OR '1'='1", "a" * 5000])
def test_invalid_job_ids(service, number):
    for path in (f"/jobs/{number}", f"/jobs/{number}/log", f"/jobs/{number}/report", f"/jobs/{number}/quicklook.png"):
        assert service.get(path).status_code in (404, 405)


# --- who may call ---------------------------------------------------------------------------------------------------

ROUTES = [
    ("POST", "/median"), ("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/jobs/x"), ("GET", "/jobs/x/log"),
    ("GET", "/jobs/x/report"), ("GET", "/jobs/x/quicklook.png"), ("DELETE", "/jobs/x"), ("POST", "/jobs/x/retry"),
    ("GET", "/dead-letters"), ("GET", "/"), ("GET", "/openapi.json"), ("GET", "/nowhere"), ("OPTIONS", "/jobs"),
]  # fmt: skip

HEADERS = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": f"Bearer {TOKEN[:-1]}"},
    {"authorization": f"Bearer {TOKEN}x"},
    {"authorization": f"Bearer {TOKEN.upper()}"},
    {"authorization": TOKEN},
    {"authorization": f"Token {TOKEN}"},
    {"authorization": f"Digest {TOKEN}"},
    {"authorization": "Basic !!!"},
    {"authorization": "Basic " + base64.b64encode(b"me:wrong").decode()},
    {"authorization": "Basic " + base64.b64encode(TOKEN.encode()).decode()},
    {"authorization": "Bearer eyJhbGciOiJub25lIn0.e30."},
    {"x-token": TOKEN},
    {"cookie": f"token={TOKEN}"},
]


def test_without_the_token_nothing_is_answered(service):
    with httpx.Client(base_url=service.url) as client:
        for method, path in ROUTES:
            for headers in HEADERS:
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path, headers)
                assert TOKEN not in answer.text
        assert client.get(f"/jobs?token={TOKEN}").status_code == 401, "a token in a URL ends up in logs"
        assert client.get("/health").status_code == 200


def test_browser_password_allows_only_reading(service):
    """A browser adds a stored password to requests made by any page."""
    password = httpx.BasicAuth("any", TOKEN)
    with httpx.Client(base_url=service.url, auth=password) as client:
        assert client.get("/jobs").status_code == 200
        assert client.post("/jobs", json={}).status_code == 401
        assert client.delete("/jobs/x").status_code == 401


def test_comparing_tokens_takes_as_long_for_any(monkeypatch):
    import hmac

    seen = []
    plain = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((a, b)) or plain(a, b))
    assert not has_token("Bearer x", TOKEN, read_only=True)
    assert has_token(f"Bearer {TOKEN}", TOKEN, read_only=True)
    assert not has_token("Bearer é", TOKEN, read_only=True)
    assert len(seen) == 3


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.10", "example.org"])
def test_it_does_not_listen_elsewhere_without_a_token(host, monkeypatch):
    settings = load_settings({"read": ["/data"], "write": ["/out"], "host": host})
    for token in ("", "   ", "short"):
        monkeypatch.setenv(TOKEN_NAME, token)
        with pytest.raises(ParameterError, match=TOKEN_NAME):
            take_token(settings)
    monkeypatch.setenv(TOKEN_NAME, TOKEN)
    assert take_token(settings) == TOKEN
    assert TOKEN_NAME not in os.environ, "no process that is started inherits it"


@pytest.mark.slow
def test_the_process_does_not_start_either(root, tmp_path):
    settings = {"read": [str(root / "scenes")], "write": [str(root / "out")], "host": "0.0.0.0"}
    with pytest.raises(AssertionError, match="no token protects the service"), served(tmp_path / "run", **settings):
        pass


@pytest.fixture(scope="module")
def open_service(root, files, tmp_path_factory):
    """Without a token, on loopback."""
    settings = {"read": [str(root / "scenes")], "write": [str(root / "out")], "storage": str(root / "store")}
    with served(tmp_path_factory.mktemp("open") / "run", limits={"body": 50_000}, **settings) as service:
        yield service


@pytest.mark.slow
def test_pages_elsewhere_cannot_use_it(open_service, root, files):
    """Not by a form, a script, or a host name that resolves to this machine."""
    body = json.dumps({"window": [0, 0, 8, 8], "destination": str(root / "out" / "csrf.tif"), "datasets": files})
    json_type = {"content-type": "application/json"}
    with httpx.Client(base_url=open_service.url) as client:
        for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            for path in ("/median", "/jobs"):
                assert client.post(path, content=body, headers={"content-type": media}).status_code == 415
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            assert client.post("/median", content=body, headers=json_type | {"origin": origin}).status_code == 403
        for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""):
            assert client.post("/median", content=body, headers=json_type | {"host": host}).status_code in (400, 421)
        preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = client.options("/median", headers=preflight)
        assert "access-control-allow-origin" not in answer.headers
        assert not (root / "out" / "csrf.tif").exists()
        own = {"origin": open_service.url}
        assert client.post("/median", content=body, headers=json_type | own).status_code == 204


def push_token(signer, **change):
    now = int(time.time())
    facts = {
        "iss": "https://accounts.google.com",
        "aud": "https://median.example",
        "email": "push@p.iam",
        "email_verified": True,
        "iat": now,
        "exp": now + 600,
    }
    return jwt.encode(signer, facts | change).decode()


def test_pubsub_shows_a_token_of_its_own(service, signer, root, files):
    body = {"window": [0, 0, 8, 8], "destination": str(root / "out" / "p.tif"), "datasets": files}
    pushed = {"message": {"data": base64.b64encode(json.dumps(body).encode()).decode(), "messageId": "1"}}

    def post(token, path="/median"):
        return httpx.post(service.url + path, json=pushed, headers={"Authorization": f"Bearer {token}"}).status_code

    assert post(push_token(signer[0])) == 204
    assert post(push_token(signer[0]), "/jobs") == 401, "it opens windows, nothing else"
    now = int(time.time())
    for change in (
        {"aud": "https://other.example"},
        {"email": "other@p.iam"},
        {"email_verified": False},
        {"iss": "https://evil.example"},
        {"iat": now - 7200, "exp": now - 3600},
        {"iat": now + 7200, "exp": now + 9000},
    ):
        assert post(push_token(signer[0], **change)) == 401, change
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    assert post(push_token(crypt.RSASigner.from_string(pem, "k1"))) == 401, "signed by somebody else"
    head, facts, _ = push_token(signer[0]).split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    assert post(f"{none}.{facts}.") == 401
    assert post(f"{head}.{facts}.") == 401


# --- how much -------------------------------------------------------------------------------------------------------


def raw(service, data, pause=0.0):
    """Send bytes as they are; return the status."""
    url = urlsplit(service.url)
    with socket.create_connection((url.hostname, url.port), timeout=120) as connection:
        for part in data:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(pause)
        answer = b""
        while b"\r\n" not in answer:
            got = connection.recv(4096)
            if not got:
                break
            answer += got
    return int(answer.split(b" ", 2)[1]) if answer else 0


def head(service, *lines):
    shown = f"Authorization: Bearer {service.token}\r\n" if service.token else ""
    host = urlsplit(service.url).netloc
    return f"POST /median HTTP/1.1\r\nHost: {host}\r\n{shown}Content-Type: application/json\r\n{''.join(lines)}\r\n".encode()


def test_bodies_that_are_too_large(service):
    assert raw(service, [head(service, "Content-Length: 10000000000\r\n")]) == 413
    assert raw(service, [head(service, "Content-Length: -5\r\n")]) in (400, 413)
    assert raw(service, [head(service, "Content-Length: 5\r\nContent-Length: 6\r\n")]) == 400
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    # Nobody says how long it is: it is cut off at the limit, long before its end.
    assert raw(service, [head(service, "Transfer-Encoding: chunked\r\n"), *[chunk] * 1000]) == 413
    assert raw(service, [b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n"]) in (0, 400)
    assert raw(service, [head(service, *[f"X-{i}: {'a' * 1000}\r\n" for i in range(200)])]) in (0, 400, 431)


def test_bodies_that_grow_when_they_are_unpacked(service):
    bomb = gzip.compress(b" " * 50_000_000)
    with service.client() as client:
        for coding in ("gzip", "deflate", "br", "gzip, gzip"):
            headers = {"content-type": "application/json", "content-encoding": coding}
            assert client.post("/median", content=bomb[:90_000], headers=headers).status_code == 415


@pytest.mark.slow
def test_documents_that_grow_when_they_are_read(open_service):
    """A thousand million laughs, depth, one number of many digits."""
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    start = time.monotonic()
    with open_service.client() as client:
        for text in (
            laughs,
            "source: !!python/object/apply:os.system [id]",
            "source: " + "[" * 20_000,
            "{" * 20_000,
            "source: " + "9" * 40_000,
            "? " * 20_000,
        ):
            answer = client.post("/jobs", content=text, headers={"content-type": "application/yaml"})
            assert answer.status_code in (400, 403, 422), answer.text
    assert time.monotonic() - start < 120


@pytest.mark.slow
def test_more_windows_than_may_wait(root, files, tmp_path):
    settings = {"read": [str(root / "scenes")], "write": [str(tmp_path)], "limits": {"waiting": 2, "seconds": 60.0}}
    with served(tmp_path / "run", **settings) as service:
        answers = []

        def post(i):
            request = {"window": [0, 0, 136, 200], "destination": str(tmp_path / f"{i}.tif"), "datasets": files * 200}
            answers.append(service.post("/median", request))

        threads = [threading.Thread(target=post, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(answer.status_code for answer in answers)
        assert set(statuses) == {204, 429}, statuses
        assert all(int(a.headers["retry-after"]) > 0 for a in answers if a.status_code == 429)


@pytest.mark.slow
def test_a_window_that_takes_too_long_is_ended(root, tmp_path):
    """Its server sends nothing; the worker is ended, and the next window gets a new one."""
    folder = tmp_path / "web"
    folder.mkdir()
    names = [Path(file).name for file in series(folder, scenes=2)]
    hanging = {"now": True}
    with fault_server(folder, fault=lambda path, n: "hang" if hanging["now"] else None) as server:
        settings = {"read": [server.url("")], "write": [str(tmp_path)], "limits": {"seconds": 3.0}}
        with served(tmp_path / "run", **settings) as service:
            urls = [server.url(name) for name in names]
            request = {"window": [0, 0, 8, 8], "destination": str(tmp_path / "a.tif"), "datasets": urls}
            answer = service.post("/median", request)
            assert answer.status_code == 504, answer.text
            hanging["now"] = False
            assert until(lambda: service.post("/median", request).status_code == 204)


# --- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_signatures_and_passwords_are_nowhere(service, root, web):
    """Not in responses, logs, dead letters or reports, whatever error a signed URL causes."""
    name = next((root / "web").glob("*.tif")).name
    texts = []
    for dataset in (
        f"{web.url('none.tif')}?{SIGNATURE}",
        f"http://me:hunter2hunter2@127.0.0.1:1/a.tif?{SIGNATURE}",
        f"http://10.0.0.1/a.tif?{SIGNATURE}",
        f"ftp://me:hunter2hunter2@host/a.tif?{SIGNATURE}",
        f"{web.url(name)}?{SIGNATURE}",
    ):
        request = {"window": [0, 0, 9999, 8], "destination": str(root / "out" / "s.tif"), "datasets": [dataset]}
        texts.append(service.post("/median", request).text)
        data = base64.b64encode(json.dumps(request).encode()).decode()
        texts.append(service.post("/median", {"message": {"data": data, "messageId": "1"}}).text)
        texts.append(service.post("/jobs", {"source": dataset, "output": "a.tif"}).text)
    texts += [service.get("/dead-letters").text, service.get(f"/jobs?{SIGNATURE}").text, service.get("/").text]
    job = service.post("/jobs", {"source": f"{web.url('none.tif')}?{SIGNATURE}", "output": "a.tif"}).json()["id"]
    texts.append(json.dumps(service.job(job, "failed")))
    texts += [service.get(f"/jobs/{job}/log").text, (root / "store" / job / "job_log.txt").read_text(), service.log()]
    for text in texts:
        assert "5ec7e7" not in text
        assert "hunter2" not in text
        assert TOKEN not in text


def test_variables_of_the_service_are_not_filled_in(service):
    for text in ("source: ${VERY_SECRET}\noutput: a.tif", "source: $${VERY_SECRET}\noutput: ${VERY_SECRET}.tif"):
        with service.client() as client:
            answer = client.post("/jobs", content=text, headers={"content-type": "application/yaml"})
        assert answer.status_code in (403, 422)
        assert "hunter2" not in answer.text
    answer = service.post("/jobs", {"source": "${VERY_SECRET}", "output": "a.tif"})
    assert answer.status_code == 403
    assert "hunter2" not in answer.text


def test_no_process_inherits_the_token(service):
    import psutil

    main = psutil.Process(service.process.pid)
    assert main.children(recursive=True)
    for process in main.children(recursive=True):
        assert TOKEN not in json.dumps(process.environ())
        assert TOKEN not in " ".join(process.cmdline())


@pytest.mark.slow
def test_a_job_cannot_read_the_results_of_another(service, root, files):
    other = root / "store" / "other"
    other.mkdir()
    series(other, scenes=2)
    assert service.post("/jobs", {"source": str(other), "output": "a.tif"}).status_code == 403
    # Found only when it is listed: a link to the other's results.
    trap = root / "scenes" / "trap"
    trap.mkdir()
    for path in other.glob("*.tif"):
        (trap / path.name).symlink_to(path)
    job = service.post("/jobs", {"source": str(trap), "output": "a.tif"}).json()["id"]
    assert "not among the places" in service.job(job, "failed")["error"]


@pytest.mark.slow
def test_workers_of_a_job_are_limited_too(service, root):
    """A scene that became a link after its header was read, and a catalogue that names files elsewhere."""
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "S2A_31TCJ_20230601_0_L2A", "geometry": None, "links": [],
        "properties": {"datetime": "2023-06-01T10:00:00Z"},
        "assets": {"TCI": {"href": str(next((root / "secret").glob("*.tif"))), "type": "image/tiff"}},
    }  # fmt: skip
    folder = root / "scenes" / "stac"
    folder.mkdir()
    (folder / "item.json").write_text(json.dumps(item))
    job = service.post("/jobs", {"source": str(folder / "item.json"), "output": "a.tif"}).json()["id"]
    assert "not among the places" in service.job(job, "failed")["error"]


def test_answers_carry_the_headers_that_browsers_obey(service):
    for path in ("/", "/jobs", "/nowhere", "/health"):
        headers = service.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "script-src" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers
    assert service.get("/docs").status_code == 404


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://a/b?sig=5ec7e7 x", "5ec7e7"),
        ("('https://a/b?sig=5ec7e7')", "5ec7e7"),
        ('{"href": "https://u:5ec7e7@a/b"}', "5ec7e7"),
        ("s3://k:5ec7e7@bucket/x", "5ec7e7"),
        ("postgresql://u:5ec7e7@db/x", "5ec7e7"),
        ("authorization: bearer 5ec7e75ec7e7", "5ec7e7"),
    ],
)
def test_scrubbing(text, secret):
    assert secret not in redact(text)
    assert redact("why? because") == "why? because"


def functions_of(file):
    return set(re.findall(r"^def (test_\w+)", (TESTS / "unit" / file).read_text(), flags=re.MULTILINE))


def test_every_row_of_the_page_is_a_test():
    rows = [
        line for line in (DOCS / "security.md").read_text().splitlines() if line.startswith("| ") and "`test_" in line
    ]
    named = {name for row in rows for name in re.findall(r"`(test_\w+)`", row.rpartition("|")[0].rpartition("|")[2])}
    there = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    there |= functions_of("service/test_service_attacks.py")
    assert len(rows) > 25
    assert named <= there | functions_of("storage/test_urls.py")
    untold = there - named - {"test_allowed_locations_work", "test_every_row_of_the_page_is_a_test"}
    assert not untold, "what was tried and is not in the table"
