"""What the service costs: latency over the bare window function, 200 requests at once, a queue of 10 000 with faults.

The queue delivers one window in ten twice, 5 % of the answers of the server that holds the scenes are errors, and so are
5 % of those of the object store that the windows go to; a process that makes windows is killed every 2000.

    python benchmarks/service.py                     # everything; the queue takes some minutes
    python benchmarks/service.py --queue 1000
    python benchmarks/service.py --queue 0           # latency alone
    python benchmarks/service.py --disk              # windows of the queue go to a disk: the store takes most of the time
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import s3fs

from s2composite.demo import make_scenes
from s2composite.service.windows import WindowRequest, make_window

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.flaky_proxy import flaky_proxy
from support.http_faults import fault_server
from support.services import served
from support.storage_servers import s3_server


def payload(files, folder, number, side, size):
    """Return a window that no other number has, as long as there are places."""
    per_row = (size - side) // 4
    x, y = number % per_row * 4, number // per_row % per_row * 4
    return {"window": [x, y, side, side], "destination": f"{folder}/tile_{number}.tif", "datasets": files}


def latency(service, files, out, args):
    """Print how much longer an answer takes than the function that makes the window, alternating between both."""
    bare, over, again = [], [], []
    with service.client() as client:
        for number in range(args.rounds + 5):
            request = payload(files, out, 2 * number, args.side, args.size)
            start = time.perf_counter()
            make_window(WindowRequest.model_validate(request | {"destination": str(out / f"bare_{number}.tif")}))
            middle = time.perf_counter()
            assert client.post("/median", json=request).status_code == 204
            end = time.perf_counter()
            assert client.post("/median", json=request).status_code == 204
            bare.append(middle - start)
            over.append(end - middle)
            again.append(time.perf_counter() - end)
    print(
        f"latency of {args.rounds} windows of {args.side} x {args.side}, {len(files)} scenes, one at a time, medians in ms"
    )
    added = statistics.median(o - b for o, b in zip(over[5:], bare[5:], strict=True)) * 1e3
    bare, over, again = (statistics.median(times[5:]) * 1e3 for times in (bare, over, again))
    print(f"  function {bare:.1f}, over HTTP {over:.1f}: {over - bare:+.1f}, in pairs {added:+.1f}")
    print(f"  asked again, nothing to make: {again:.1f}")


async def insist(client, request, statuses):
    """Push a window until it is acknowledged."""
    data = base64.b64encode(json.dumps(request).encode()).decode()
    while True:
        try:
            answer = await client.post("/median", json={"message": {"data": data, "messageId": "1"}})
            statuses.append(answer.status_code)
            if answer.status_code == 204:
                return
            assert answer.status_code in (429, 503), answer.text
            await asyncio.sleep(random.uniform(0.2, 1.0))
        except httpx.HTTPError as error:
            statuses.append(type(error).__name__)


async def push(url, requests, at_once, statuses):
    """Push windows, some at once."""
    waiting = iter(requests)
    limits = httpx.Limits(max_connections=at_once)

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=300) as client:

        async def work():
            for request in waiting:
                await insist(client, request, statuses)

        await asyncio.gather(*(work() for _ in range(at_once)))


class Watch:
    """Memory of a service and its processes, and a process killed now and then."""

    def __init__(self, service, statuses, every):
        self.main, self.statuses, self.every = psutil.Process(service.process.pid), statuses, every
        self.most = self.most_main = 0
        self.killed = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def __enter__(self):
        self.first = self.main.memory_info().rss
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def watch(self):
        while not self.over.wait(0.2):
            processes = self.main.children(recursive=True)
            total = self.main.memory_info().rss
            self.most_main = max(self.most_main, total)
            for process in processes:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, total)
            makers = [p for p in processes if p.is_running() and p.ppid() != self.main.pid]
            if makers and self.every and len(self.statuses) > self.every * (self.killed + 1):
                makers[0].send_signal(signal.SIGKILL)
                self.killed += 1


def found_in(folder):
    """Return the names of the files in a directory or below a prefix of the store."""
    if not str(folder).startswith("s3://"):
        return {path.name for path in Path(folder).iterdir()}
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    return {name.rpartition("/")[2] for name in fs.ls(str(folder), detail=False)}


def burst(service, requests, at_once, every, label):
    """Push windows and print what became of them."""
    before, statuses = service.get("/health").json()["windows"], []
    start = time.perf_counter()
    with Watch(service, statuses, every) as watch:
        asyncio.run(push(service.url, requests, at_once, statuses))
    seconds = time.perf_counter() - start
    after = service.get("/health").json()["windows"]
    wanted = {request["destination"] for request in requests}
    there = len(found_in(next(iter(wanted)).rpartition("/")[0]) & {path.rpartition("/")[2] for path in wanted})
    counted = {str(status): statuses.count(status) for status in sorted(set(statuses), key=str)}
    print(f"{label}: {len(wanted)} windows, {len(requests)} deliveries, {at_once} at once, {seconds:.1f} s")
    print(
        f"  there {there}, lost {len(wanted) - there}, made {after['made'] - before['made']}, processes killed {watch.killed}"
    )
    print(f"  answers {counted}, dead letters {len(service.get('/dead-letters').json())}")
    grown = (watch.most_main - watch.first) / 2**20
    print(f"  memory at most {watch.most / 2**30:.2f} GiB together, the service itself grew by {grown:.0f} MiB")
    assert there == len(wanted)


def main():
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--side", type=int, default=256, help="of the windows whose latency is measured")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--queue", type=int, default=10_000)
    parser.add_argument("--disk", action="store_true", help="no object store")
    args = parser.parse_args()
    rng, lock = random.Random(7), threading.Lock()

    def fault(_path, _number):
        with lock:
            return rng.choice(("503", "reset", "short")) if rng.random() < 0.05 else None

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "scenes").mkdir()
        (root / "out").mkdir()
        files = make_scenes(root / "scenes", scenes=args.scenes, size=args.size, compress="jpeg", distinct=6)
        with fault_server(root / "scenes", fault=fault) as server, store(args.disk) as (target, refused):
            settings = {"read": [str(root / "scenes"), server.url("")], "write": [str(root / "out"), "s3://bucket/"]}
            with served(root / "run", workers=args.workers, warm=True, **settings) as service:
                latency(service, files, root / "out", args)
                if not args.queue:
                    return
                few = [server.url(file.rpartition("/")[2]) for file in files[:3]]
                many = [payload(few, root / "out", i, 128, args.size) for i in range(200)]
                burst(service, many, 200, 0, "200 at once")
                for path in (root / "out").iterdir():
                    path.unlink()
                queue = [payload(few, target or root / "out", i, 32, args.size) for i in range(args.queue)]
                queue += random.Random(1).sample(queue, args.queue // 10)
                random.Random(2).shuffle(queue)
                burst(service, queue, 64, 2000, "queue with faults")
                print(f"  requests that the store answered with an error: {len(refused)}")


@contextmanager
def store(disk):
    """Run an object store that answers 5 % of all requests with an error; yield a prefix, and what it refused."""
    if disk:
        yield None, ()
        return
    with s3_server() as server, flaky_proxy(server.endpoint, share=0.05, seed=7) as tally:
        server.put("bucket/results/begin.txt")
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": tally.endpoint}
        with server.selected(**keys):
            yield "s3://bucket/results", tally.refused


if __name__ == "__main__":
    main()
