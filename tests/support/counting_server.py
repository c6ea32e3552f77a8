"""A server on loopback that keeps limits as hosts do: whoever makes more requests than it allows is refused (429).

It counts the requests of any `period` before each request, and the connections that are open then. It runs in a process
of its own::

    with counting_server(connections=4, requests=600, period=1.0) as server:
        read_range(f"{server.url}/a.bin", ...)
        server.stats()["refused"]

Any name that is no file of `root` is one of `SIZE` zeros.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SIZE = 1 << 30


class Counts:
    """What has come, and whether it may."""

    def __init__(self, connections, requests, period, latency):
        self.connections, self.requests, self.period, self.latency = connections, requests, period, latency
        self.lock = threading.Lock()
        self.open = set()
        self.recent = deque()
        self.times = []
        self.most_open = self.most_recent = self.refused = self.bytes = 0

    def opened(self, connection):
        with self.lock:
            self.open.add(connection)
            self.most_open = max(self.most_open, self.number_open())

    def closed(self, connection):
        with self.lock:
            self.open.discard(connection)

    def number_open(self):
        """Connections whose clients have not closed them, also where the thread that serves one has not noticed."""
        return sum(not ended(connection) for connection in self.open)

    def allows(self, size):
        """Count a request."""
        with self.lock:
            now = time.monotonic()
            while self.recent and self.recent[0] <= now - self.period:
                self.recent.popleft()
            self.recent.append(now)
            self.times.append(now)
            self.bytes += size
            self.most_recent = max(self.most_recent, len(self.recent))
            allowed = len(self.recent) <= self.requests and self.number_open() <= self.connections
            self.refused += not allowed
            return allowed

    def stats(self):
        with self.lock:
            first, last = (self.times[0], self.times[-1]) if self.times else (0.0, 0.0)
            return {
                "requests": len(self.times), "refused": self.refused, "most_open": self.most_open, "bytes": self.bytes,
                "most_in_a_period": self.most_recent, "seconds": last - first,
            }  # fmt: skip


def ended(connection):
    try:
        if not select.select([connection], [], [], 0)[0]:
            return False
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except (OSError, ValueError):
        return True


class Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    counts: Counts
    root: Path | None

    def handle(self):
        first = True
        with suppress(OSError):
            while (line := self.rfile.readline()).strip():
                headers = [line.decode("latin-1")]
                while (line := self.rfile.readline()).strip():
                    headers.append(line.decode("latin-1"))
                path = headers[0].split()[1]
                if path == "/__stats__":
                    self.answer(200, json.dumps(self.counts.stats()).encode(), [])
                    continue
                if first:
                    self.counts.opened(self.connection)
                    first = False
                text = "".join(headers).lower()
                self.serve(path, headers[0].startswith("HEAD"), re.search(r"range: bytes=(\d+)-(\d+)", text))
                if "connection: close" in text:
                    break
        self.counts.closed(self.connection)

    def serve(self, path, head, asked):
        file = self.root / path.lstrip("/") if self.root else None
        data = file.read_bytes() if file and file.is_file() else None
        size = SIZE if data is None else len(data)
        start, stop = (int(asked[1]), min(int(asked[2]) + 1, size)) if asked else (0, 1 if data is None else size)
        if not self.counts.allows(stop - start):
            self.answer(429, b"too many", ["Retry-After: 1"])
            return
        time.sleep(self.counts.latency)
        fields = [f'ETag: "{size}"', "Accept-Ranges: bytes"]
        fields += [f"Content-Range: bytes {start}-{stop - 1}/{size}"] if asked else []
        body = bytes(stop - start) if data is None else data[start:stop]
        self.answer(206 if asked else 200, body, fields, head=head)

    def answer(self, status, body, fields, *, head=False):
        lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *fields, "", ""]
        self.wfile.write("\r\n".join(lines).encode() + (b"" if head else body))


class Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True


@dataclass
class CountingServer:
    """A running server."""

    url: str

    def stats(self):
        """What it has counted so far; ``seconds`` from the first request to the last."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/__stats__") as response:
            return json.loads(response.read())


@contextmanager
def counting_server(root=None, *, connections=1 << 30, requests=1 << 30, period=60.0, latency=0.0):
    options = {"connections": connections, "requests": requests, "period": period, "latency": latency}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, __file__, *arguments, *(["--root", str(root)] if root else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield CountingServer(process.stdout.readline().strip())
        finally:
            process.terminate()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--period", type=float)
    parser.add_argument("--latency", type=float)
    parser.add_argument("--root", type=Path)
    args = parser.parse_args()
    counts = Counts(args.connections, args.requests, args.period, args.latency)
    with Listener(
        ("127.0.0.1", 0), type("BoundHandler", (Handler,), {"counts": counts, "root": args.root})
    ) as listening:
        sys.stdout.write(f"http://127.0.0.1:{listening.server_address[1]}\n")
        sys.stdout.flush()
        listening.serve_forever()


if __name__ == "__main__":
    main()
