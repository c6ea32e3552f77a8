"""An HTTP server on loopback with byte ranges, ETags, latency, a cap on its bandwidth, and faults injected for real.

In a test, in a thread of its own process::

    with fault_server(directory, fault=lambda path, n: "503" if n < 2 else None) as server:
        read_header(server.url("scene.tif"))

For measurements, in a process of its own: ``throttled(directory, latency=0.05, bandwidth=100e6)``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.server
import json
import re
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK = 1 << 16


class Gate:
    """What a server holds back until it is opened: the later part of each file.

    Whoever reads all of a file is then in the middle of it, however fast or slow the machine is. `held` says whether
    anybody has come so far.
    """

    def __init__(self, share: float) -> None:
        self._share, self._opened, self.held = share, threading.Event(), False

    def open(self) -> None:
        self._opened.set()

    def wait(self, start: int, size: int) -> None:
        """Wait with a request that begins at `start` of a file's bytes."""
        if start > self._share * size:
            self.held = True
            self._opened.wait()


@dataclass
class State:
    """What the server is told, and what it has seen."""

    root: Path
    fault: object = None
    gate: Gate | None = None
    latency: float = 0.0
    bandwidth: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    free_at: float = 0.0
    seen: Counter = field(default_factory=Counter)
    requests: list = field(default_factory=list)
    """``(path, start, stop)`` of each."""
    sent: int = 0
    flying: int = 0
    most_flying: int = 0
    """Bytes asked for of which the answer had not begun, at most."""
    sockets: list = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the server ends: until then ``"hang"`` lasts."""

    def begin(self, path, size, span):
        with self.lock:
            number = self.seen[path]
            self.seen[path] += 1
            self.requests.append((path, *span))
            self.flying += size
            self.most_flying = max(self.most_flying, self.flying)
            return number

    def end(self, size):
        with self.lock:
            self.flying -= size

    def pay(self, count):
        """Wait until the line, which all connections share, has room for `count` bytes."""
        with self.lock:
            self.sent += count
            if not self.bandwidth:
                return
            now = time.monotonic()
            self.free_at = max(self.free_at, now) + count / self.bandwidth
            wait = self.free_at - now
        time.sleep(wait)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: State

    def setup(self):
        super().setup()
        self.state.sockets.append(self.connection)

    def log_message(self, *args):
        """Keep quiet."""

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).lstrip("/")
        if path == "__stats__":
            self.answer(json.dumps({"requests": len(self.state.requests), "bytes": self.state.sent}).encode())
            return
        file = self.state.root / path
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = file.stat().st_size if file.is_file() else 0
        first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
        count = max(0, last - first + 1)
        number = self.state.begin(path, count, (first, last + 1))
        try:
            time.sleep(self.state.latency)
            if self.state.gate is not None:
                self.state.gate.wait(first, size)
            fault = self.state.fault(path, number) if self.state.fault else None
        finally:
            # Before the answer: whoever has it may ask for more at once, sooner than this thread could count.
            self.state.end(count)
        self.serve(file, size, first, last, fault if file.is_file() else "404")

    def do_HEAD(self):
        """Say how large a file is: GDAL asks before it reads. Nothing of what goes wrong is done to this."""
        file = self.state.root / unquote(urlsplit(self.path).path).lstrip("/")
        self.send_response(200 if file.is_file() else 404)
        self.send_header("Content-Length", str(file.stat().st_size if file.is_file() else 0))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def serve(self, file, size, first, last, fault):
        if fault and fault.isdecimal():
            self.answer(b"no", int(fault), {"Retry-After": "0"})
        elif fault == "hang":
            self.state.closing.wait()
            self.close_connection = True
        elif first > last:
            self.answer(b"", 416, {"Content-Range": f"bytes */{size}"})
        else:
            self.send_part(file, size, first, last, fault)

    def send_part(self, file, size, first, last, fault):
        stat = file.stat()
        tag = hashlib.sha256(f"{stat.st_mtime_ns} {size}".encode()).hexdigest()[:16]
        whole = fault == "no-ranges"
        count = size if whole else last - first + 1
        self.send_response(200 if whole else 206)
        if not whole:
            shifted = first + (1 if fault == "other-range" else 0)
            self.send_header("Content-Range", f"bytes {shifted}-{last}/{size}")
        self.send_header("Content-Length", str(count))
        if fault != "no-etag":
            self.send_header("ETag", f'"{tag}"')
        if fault == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Last-Modified", self.date_time_string(stat.st_mtime))
        self.end_headers()
        with file.open("rb") as stream:
            stream.seek(0 if whole else first)
            data = stream.read(count)
        if fault in ("short", "reset"):
            self.wfile.write(data[: count // 2])
            self.wfile.flush()
            self.break_off(reset=fault == "reset")
            return
        if fault == "corrupt":
            data = data[: count // 2] + bytes([data[count // 2] ^ 0xFF]) + data[count // 2 + 1 :]
        for start in range(0, count, CHUNK):
            part = data[start : start + CHUNK]
            self.state.pay(len(part))
            self.wfile.write(part)

    def break_off(self, *, reset):
        if reset:  # with this a closed connection is reset, not ended
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        if reset:
            self.connection.close()

    def answer(self, body, status=200, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self):
        # clients that go away, and connections that were broken on purpose, are what this server is for
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def finish(self):
        with contextlib.suppress(OSError, ValueError):
            super().finish()


class Listener(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 256

    def shutdown_request(self, request):
        with contextlib.suppress(OSError):
            super().shutdown_request(request)


@dataclass
class FaultServer:
    """A running server."""

    endpoint: str
    state: State

    def url(self, name):
        return f"{self.endpoint}/{name}"


@contextlib.contextmanager
def fault_server(directory, *, fault=None, gate=None, latency=0.0, bandwidth=0.0):
    """Serve a directory.

    Parameters
    ----------
    directory
        What to serve.
    fault
        Called with the path and the number of the request for it (from 0); returns None or what goes wrong: a status
        (``"503"``), ``"reset"``, ``"short"``, ``"hang"``, ``"no-ranges"``, ``"other-range"``, ``"corrupt"``, ``"no-etag"``,
        ``"packed"`` (it says that it is, as a server that packs what it sends does).
    gate
        What is held back until it is opened.
    latency
        Seconds before each answer.
    bandwidth
        Bytes a second over all connections; 0: as fast as it goes.
    """
    state = State(Path(directory), fault, gate, latency, bandwidth)
    handler = type("BoundHandler", (Handler,), {"state": state})
    with Listener(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield FaultServer(f"http://127.0.0.1:{listening.server_port}", state)
        finally:
            state.closing.set()
            if gate is not None:
                gate.open()
            listening.shutdown()
            thread.join()
            for connection in state.sockets:  # those that clients keep open would hold up the end
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def raw_server(answer):
    """Answer each request with bytes as they are, and close the connection.

    Parameters
    ----------
    answer
        Called with a request's bytes; yields bytes to send, and None to wait until the client has given up.
    """

    class RawHandler(socketserver.BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):
                asked = b""
                while b"\r\n\r\n" not in asked and (part := self.request.recv(1 << 16)):
                    asked += part
                for part in answer(asked):
                    if part is None:
                        closing.wait()
                        return
                    self.request.sendall(part)

    class RawListener(socketserver.ThreadingTCPServer):
        daemon_threads = False
        request_queue_size = 256
        allow_reuse_address = True

    closing = threading.Event()
    with RawListener(("127.0.0.1", 0), RawHandler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            closing.set()
            listening.shutdown()
            thread.join()


@contextlib.contextmanager
def throttled(directory, *, latency=0.0, bandwidth=0.0):
    """Serve a directory from a process of its own and yield the URL; see `stats`."""
    options = ["--latency", str(latency), "--bandwidth", str(bandwidth)]
    command = [sys.executable, __file__, str(directory), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def stats(url):
    """Return the requests and bytes that a server has answered so far."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/__stats__") as response:
        return json.loads(response.read())


def redirecting(target):
    """A server that sends everybody elsewhere."""
    import http.server
    import threading
    from contextlib import contextmanager

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    @contextmanager
    def serve():
        with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()

    return serve()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--bandwidth", type=float, default=0.0)
    args = parser.parse_args()
    with fault_server(args.directory, latency=args.latency, bandwidth=args.bandwidth) as server:
        sys.stdout.write(f"{server.endpoint}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
