"""A proxy in front of a real server on loopback that answers some requests with an error, and counts them."""

import http.client
import http.server
import random
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Tally:
    """What a proxy has seen."""

    endpoint: str = ""
    requests: int = 0
    refused: list = field(default_factory=list)
    """``(method, path)`` of each request that was answered with an error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.sockets.append(self.connection)

    def log_message(self, *args):
        """Keep quiet."""

    def relay(self):
        body = self.body()
        with self.lock:
            self.tally.requests += 1
            unlucky = self.chance.random() < self.share
            if unlucky:
                self.tally.refused.append((self.command, self.path))
        if unlucky:
            self.answer(
                503, [], b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            )
            return
        server = http.client.HTTPConnection(self.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        server.request(self.command, self.path, body, headers)
        response = server.getresponse()
        self.answer(response.status, response.getheaders(), response.read())
        server.close()

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def answer(self, status, headers, body):
        self.send_response_only(status)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(body)))
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay  # noqa: N815 - names of the standard library


@contextmanager
def flaky_proxy(endpoint, *, share, seed=0):
    """Relay to a server, but answer a share of all requests with status 503; yields the `Tally`."""
    tally = Tally()
    bound = {
        "upstream": urlsplit(endpoint).netloc,
        "share": share,
        "tally": tally,
        "chance": random.Random(seed),
        "lock": threading.Lock(),
        "sockets": [],
    }
    handler = type("BoundHandler", (_Handler,), bound)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        listening.daemon_threads = False  # so that server_close() waits for them and no socket is left open
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        tally.endpoint = f"http://127.0.0.1:{listening.server_port}"
        try:
            yield tally
        finally:
            listening.shutdown()
            thread.join()
            for connection in bound["sockets"]:  # those that clients keep open would hold up the end
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
