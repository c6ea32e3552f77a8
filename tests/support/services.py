"""The service, as a process of its own on a free port, and what talks to it: a client, a queue that pushes."""

from __future__ import annotations

import base64
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import rasterio
import yaml

COMMAND = [sys.executable, "-c", "from s2composite.cli import main; main()", "serve"]


@dataclass
class Service:
    """A running service."""

    url: str
    process: subprocess.Popen
    log_file: Path
    settings: dict[str, Any]
    token: str | None

    def client(self, **options) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **options)

    def post(self, path: str, payload: Any, **options) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=payload, **options)

    def get(self, path: str, **options) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **options)

    def log(self) -> str:
        return self.log_file.read_text()

    def job(self, number: str, *states: str, seconds: float = 240) -> dict[str, Any]:
        """Return a job's facts when it is in one of some states."""
        return until(lambda: (facts := self.get(f"/jobs/{number}").json())["state"] in states and facts, seconds)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def until(look: Callable[[], Any], seconds: float = 240) -> Any:
    """Return the first answer that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"still {look()!r} after {seconds} s")


@contextmanager
def served(directory: Path, *, token: str | None = None, environment=None, **settings) -> Iterator[Service]:
    """Run the service with its state in a directory; ready when the block begins."""
    directory.mkdir(exist_ok=True)
    chosen = {"port": 0, "state": str(directory / "state"), "workers": 1, "warm": False, **settings}
    config = directory / "service.yaml"
    config.write_text(yaml.safe_dump(chosen))
    log = directory / "service.log"
    env = {**os.environ, **(environment or {})} | ({"S2COMPOSITE_TOKEN": token} if token else {})
    with log.open("w") as output:
        process = subprocess.Popen([*COMMAND, str(config)], stdout=output, stderr=subprocess.STDOUT, env=env)
    try:
        found = until(lambda: process.poll() is not None or re.search(r"running on (http://\S+)", log.read_text()), 180)
        assert process.poll() is None, log.read_text()
        service = Service(found[1], process, log, chosen, token)
        until(lambda: service.get("/health").status_code == 200, 180)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Queue:
    """What a Pub/Sub topic with a push subscription and a dead-letter topic does, over its REST API.

    At least once: every message may be pushed again although it was acknowledged, as `twice` says. What is refused is
    pushed again after a pause that doubles, and given up after some attempts.
    """

    endpoint: str
    push_to: str
    host: str = ""
    token: str | None = None
    twice: Callable[[int], bool] = lambda number: False
    acknowledged: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    attempts: int = 20
    waiting: list[tuple[float, str, str, int]] = field(default_factory=list)
    ready: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False

    def publish(self, messages) -> list[str]:
        with self.ready:
            first = len(self.acknowledged) + len(self.waiting) + len(self.statuses)
            names = [f"m{first + i}" for i in range(len(messages))]
            self.waiting += [(0.0, name, message["data"], 1) for name, message in zip(names, messages, strict=True)]
            self.ready.notify_all()
        return names

    def taken(self) -> tuple[float, str, str, int] | None:
        """Return the next message whose time has come; None when closed."""
        with self.ready:
            while not self.closed:
                due = [one for one in self.waiting if one[0] <= time.monotonic()]
                if due:
                    self.waiting.remove(due[0])
                    return due[0]
                self.ready.wait(0.05 if self.waiting else None)
        return None

    def deliver(self) -> None:
        """Push messages until closed."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        with httpx.Client(timeout=120, headers=headers) as client:
            while True:
                taken = self.taken()
                if taken is None:
                    return
                _, name, data, attempt = taken
                envelope = {"message": {"data": data, "messageId": name}, "subscription": "projects/p/subscriptions/s"}
                try:
                    status = client.post(self.push_to, json=envelope).status_code
                except httpx.HTTPError:
                    status = 0
                with self.ready:
                    self.statuses.append(status)
                    if status in (102, 200, 201, 202, 204):
                        again = self.twice(len(self.acknowledged)) and name not in self.acknowledged
                        self.acknowledged.append(name)
                        self.waiting += [(0.0, name, data, attempt)] if again else []
                    elif attempt == self.attempts:
                        self.dead.append(name)
                    else:
                        pause = min(2.0, 0.05 * 2**attempt)
                        self.waiting.append((time.monotonic() + pause, name, data, attempt + 1))
                    self.ready.notify_all()


@contextmanager
def queue(
    push_to: str, *, token: str | None = None, pushers: int = 4, twice: Callable[[int], bool] = lambda number: False
) -> Iterator[Queue]:
    """Run a server that speaks Pub/Sub's REST API and pushes what is published to a URL."""
    made = Queue("", push_to, token=token, twice=twice)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 1

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not re.fullmatch(r"/v1/projects/[\w-]+/topics/[\w-]+:publish", self.path):
                return self.answer(404, {"error": {"code": 404, "status": "NOT_FOUND"}})
            for message in body["messages"]:
                base64.b64decode(message["data"], validate=True)
            return self.answer(200, {"messageIds": made.publish(body["messages"])})

        def answer(self, status, content):
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        made.host = f"127.0.0.1:{server.server_port}"
        threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})]
        threads += [threading.Thread(target=made.deliver) for _ in range(pushers)]
        for thread in threads:
            thread.start()
        try:
            yield made
        finally:
            with made.ready:
                made.closed = True
                made.ready.notify_all()
            server.shutdown()
            for thread in threads:
                thread.join()


def pushed(content, number="1"):
    data = content if isinstance(content, str) else json.dumps(content)
    return {"message": {"data": base64.b64encode(data.encode()).decode(), "messageId": number}}


def seed_median(files, window):
    """What the course's worker computes, pixel by pixel, in the order of the list; stable where sums are equal."""
    x, y, width, height = window
    stack = []
    for file in files:
        with rasterio.open(file) as source:
            stack.append(source.read()[:, y : y + height, x : x + width])
    out = np.zeros((3, height, width), np.uint8)
    for row in range(height):
        for column in range(width):
            samples = [image[:, row, column] for image in stack]
            samples = [s for s in samples if not ((s == 0).any() or (s == 255).any())]
            if samples:
                samples.sort(key=lambda s: int(s[0]) + int(s[1]) + int(s[2]))
                out[:, row, column] = samples[len(samples) // 2]
    return out


# --- windows --------------------------------------------------------------------------------------------------------
