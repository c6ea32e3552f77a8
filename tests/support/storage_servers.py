"""Real servers on loopback for tests of remote access: S3 (moto), Google (gcp-storage-emulator) and plain HTTP.

Each is a context manager that yields a `Server` on a free port of its own and stops it at the end. The two buckets run
as processes of their own, so they neither share the interpreter's lock with what is measured nor leak sockets into it::

    with s3_server() as server, server.selected():
        server.put_file("bucket/scenes/T31TCJ_20230709T104629_TCI.tif", path)
        find_scenes("s3://bucket/scenes/")

`Server.selected` points the environment of this process at the server and hides all credentials of the machine;
processes started inside inherit that. A suite that wants one server for all its tests wraps these in a session fixture.
"""

import http.server
import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
"""Any credentials do for moto."""

_SECRETIVE = re.compile(r"(AWS|GOOGLE|GCE|GS|STORAGE|CLOUDSDK|CPL|BOTO)_|(https?|all|no)_proxy$", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """What a client has asked the plain HTTP server."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case, for example ``range`` and ``authorization``."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    endpoint: str
    """``http://127.0.0.1:PORT``, without a slash at the end."""

    scheme: str
    """Scheme of the URLs of what it holds: ``"s3"``, ``"gs"`` or ``"http"``."""

    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables that make clients use it."""

    upload: Callable[[str, bytes], None] | None = None
    """Stores bytes under ``bucket/key`` (or a path below the served directory)."""

    requests: list["Request"] = field(default_factory=list)
    """Each request so far, in order; plain HTTP server only."""

    def url(self, key: str = "") -> str:
        """Return the URL of ``bucket/key``."""
        return f"{self.endpoint}/{key}" if self.scheme == "http" else f"{self.scheme}://{key}"

    def put(self, key: str, data: bytes = b"-") -> str:
        """Store bytes (the emulator of Google wants at least one) for everybody to read, and return the URL."""
        self.upload(key, data)
        return self.url(key)

    def put_file(self, key: str, path: str | Path) -> str:
        """Store a file; see `put`."""
        return self.put(key, Path(path).read_bytes())

    @contextmanager
    def selected(self, **more: str) -> Iterator[None]:
        """Use this server and no credentials (but those in `more`) inside of the block."""
        before = dict(os.environ)
        for name in [name for name in os.environ if _SECRETIVE.match(name)]:
            del os.environ[name]
        nowhere = {"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_CONFIG_FILE": "/nonexistent"}
        os.environ.update({"CLOUDSDK_CONFIG": "/nonexistent"} | nowhere | self.environment | more)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def s3_server() -> Iterator[Server]:
    """Run moto's S3 server; a bucket is made at the first `put` into it, and is public; see also `locked`."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    with _process([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], endpoint):
        made: set[str] = set()

        def upload(key: str, data: bytes) -> None:
            bucket, _, name = key.partition("/")
            headers = {"x-amz-acl": "public-read"} | _SIGNED | _BYTES
            if bucket not in made:
                _request("PUT", f"{endpoint}/{bucket}", headers=headers)
                made.add(bucket)
            _request("PUT", f"{endpoint}/{bucket}/{quote(name)}", data, headers)

        environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
        yield Server(endpoint, "s3", environment, upload)


@contextmanager
def gcs_server() -> Iterator[Server]:
    """Run an emulator of Google Cloud Storage that keeps its objects in memory; a bucket is made at the first `put`."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = ["gcp_storage_emulator", "start", "-H", "127.0.0.1", "--port", str(port), "--in-memory", "--quiet"]
    with _process([sys.executable, "-m", *command], endpoint):
        made: set[str] = set()

        def upload(key: str, data: bytes) -> None:
            bucket, _, name = key.partition("/")
            if bucket not in made:
                _request("POST", f"{endpoint}/storage/v1/b?project=test", f'{{"name": "{bucket}"}}'.encode(), _JSON)
                made.add(bucket)
            url = f"{endpoint}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
            _request("POST", url, data, _BYTES)

        yield Server(endpoint, "gs", {"STORAGE_EMULATOR_HOST": endpoint}, upload)


@contextmanager
def http_server(
    directory: str | Path | None = None, refuse: Callable[[str, int], int | None] | None = None
) -> Iterator[Server]:
    """Serve a directory over HTTP with an index page for each folder and with byte ranges.

    Parameters
    ----------
    directory
        What to serve; by default an empty temporary directory that `Server.put` fills.
    refuse
        Called with the path and the number of each request (from 0); a status it returns (403, 503 ...) is the answer
        instead of the file: faults, injected for real.
    """
    with tempfile.TemporaryDirectory() as empty:
        root = Path(directory or empty)
        log: list[Request] = []
        handler = type(
            "Handler", (_RangeHandler,), {"root": root, "log": log, "refuse": staticmethod(refuse or _serve)}
        )
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
            listening.daemon_threads = False  # so that server_close() waits for them and no socket is left open
            thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                endpoint = f"http://127.0.0.1:{listening.server_port}"
                yield Server(endpoint, "http", {}, lambda key, data: _write(root / key, data), log)
            finally:
                listening.shutdown()
                thread.join()


BUCKETS = [pytest.param(server, marks=pytest.mark.slow) for server in (s3_server, gcs_server)]
"""Both kinds of object stores, for `pytest.mark.parametrize`; their emulators come with the extra ``test-slow``."""


def free_port() -> int:
    """Return a port of loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def locked(server: Server) -> Iterator[None]:
    """Let moto's S3 server check credentials inside of the block; nobody has any that it knows, so it refuses all."""
    url = f"{server.endpoint}/moto-api/reset-auth"
    _request("POST", url, b"0", _BYTES)
    try:
        yield
    finally:
        _request("POST", url, b"inf", _BYTES)


# moto does not check signatures (unless `locked`); it asks only whether a request has one.
_SCOPE = "Credential=test/20230709/us-east-1/s3/aws4_request"
_SIGNED = {"Authorization": f"AWS4-HMAC-SHA256 {_SCOPE}, SignedHeaders=host, Signature=0"}
_JSON = {"Content-Type": "application/json"}
_BYTES = {"Content-Type": "application/octet-stream"}  # urllib would call them a form, and moto would parse them


class _RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Python's file server with byte ranges, a log of requests and injected faults."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for each answer: without it each costs 40 ms of waiting
    disable_nagle_algorithm = True
    timeout = 1  # an idle connection that a client keeps open must not hold up the end of a test
    root: Path
    log: list[Request]
    refuse: Callable[[str, int], int | None]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, directory=str(self.root), **kwargs)

    def log_message(self, *args):
        """Keep quiet."""

    def send_head(self):
        self.log.append(Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        path = unquote(urlsplit(self.path).path)
        status = self.refuse(path, len(self.log) - 1)
        if status is not None:
            return self.send_error(status)
        file = self.root / path.lstrip("/")
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        return self._send_range(file, *asked.groups()) if asked and file.is_file() else super().send_head()

    def _send_range(self, file: Path, start: str, stop: str):
        size = file.stat().st_size
        first = int(start) if start else max(0, size - int(stop))
        last = min(size - 1, int(stop)) if start and stop else size - 1
        if first > last:
            return self.send_error(416)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
        self.end_headers()
        with file.open("rb") as stream:
            stream.seek(first)
            return io.BytesIO(
                stream.read(last - first + 1)
            )  # the caller sends it, unless it was asked for the HEAD only


def _serve(path: str, number: int) -> None:
    """Refuse nothing."""


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextmanager
def _process(command: list[str], endpoint: str) -> Iterator[None]:
    """Run a server's process until the block ends; enter the block when it answers."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(process, endpoint, output)
            yield
        finally:
            process.terminate()
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen, endpoint: str, output) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            _request("GET", endpoint)
        except urllib.error.HTTPError as answer:
            answer.close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
        else:
            return
    output.seek(0)
    raise RuntimeError(f"{process.args} did not start: {output.read().decode(errors='replace')[-2000:]}")


def _request(method: str, url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    request = urllib.request.Request(url, data=data, headers=headers or {}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        return response.read()
