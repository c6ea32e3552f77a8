"""Many windows at once, with everything going wrong that does: each is made once in effect, none is lost."""

import asyncio
import base64
import json
import random
import signal
import threading

import httpx
import numpy as np
import psutil
import pytest
import rasterio

from support.http_faults import fault_server
from support.rasters import series
from support.services import seed_median, served, until

pytestmark = pytest.mark.slow

WINDOWS = 200
DUPLICATES = 60
SIDE = 16


def requests_for(urls, folder, count):
    """Windows all over the scenes, each of its own."""
    rng = random.Random(4)
    places = {(rng.randrange(136 - SIDE), rng.randrange(200 - SIDE)) for _ in range(4 * count)}
    return [
        {"window": [x, y, SIDE, SIDE], "destination": str(folder / f"tile_{x}_{y}.tif"), "datasets": urls}
        for x, y in sorted(places)[:count]
    ]


async def insist(client, request, pushed, statuses):
    """Send a window as a queue does: until it is acknowledged."""
    data = base64.b64encode(json.dumps(request).encode()).decode()
    body = {"message": {"data": data, "messageId": request["destination"]}} if pushed else request
    while True:
        try:
            answer = await client.post("/median", json=body)
        except httpx.HTTPError as error:
            statuses.append(type(error).__name__)
            continue
        statuses.append(answer.status_code)
        if answer.status_code < 300:
            return
        assert answer.status_code in (429, 503), answer.text
        await asyncio.sleep(random.uniform(0.05, 0.2))


async def send_all(url, requests, statuses):
    limits = httpx.Limits(max_connections=WINDOWS + DUPLICATES)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:
        await asyncio.gather(*(insist(client, one, number % 2, statuses) for number, one in enumerate(requests)))


def makers(service):
    """The processes that make windows: those that the process with the libraries has begun."""
    found = psutil.Process(service.process.pid).children(recursive=True)
    return [p for p in found if p.ppid() != service.process.pid]


@pytest.mark.timeout(600)
def test_two_hundred_at_once_with_faults(tmp_path):
    folder, out = tmp_path / "served", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    files = series(folder, scenes=3)
    rng, lock, statuses = random.Random(7), threading.Lock(), []

    def fault(path, number):
        # Nothing can be made before so many have come that one had to be sent away.
        until(lambda: 429 in statuses)
        with lock:
            return rng.choice(("503", "reset", "short")) if rng.random() < 0.05 else None

    with fault_server(folder, fault=fault) as server:
        settings = {"read": [server.url("")], "write": [str(out)], "workers": 2, "limits": {"waiting": 150}}
        with served(tmp_path / "run", **settings) as service:
            urls = [server.url(file.rpartition("/")[2]) for file in files]
            requests = requests_for(urls, out, WINDOWS)
            mixed = [*requests, *random.Random(1).sample(requests, DUPLICATES)]
            random.Random(2).shuffle(mixed)
            killed = []
            before = psutil.Process(service.process.pid).memory_info().rss

            def kill():
                # Not before the first windows: then the processes are in the middle of it.
                until(lambda: statuses.count(204) > 40)
                for process in makers(service)[:1]:
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)

            killer = threading.Thread(target=kill)
            killer.start()
            asyncio.run(send_all(service.url, mixed, statuses))
            killer.join()
            windows = service.get("/health").json()["windows"]
            assert killed
            assert service.get("/dead-letters").json() == []
            after = psutil.Process(service.process.pid).memory_info().rss
    assert 429 in statuses, "more came than may wait"
    assert statuses.count(204) == WINDOWS + DUPLICATES
    # One that was killed after it had written its window is found the next time.
    assert WINDOWS - len(killed) <= windows["made"] <= WINDOWS
    # One that was killed while it wrote leaves the parts of its file, of which nothing has a final name.
    left = [path.name for path in out.glob("*.parts")]
    assert len(left) <= len(killed)
    assert {path.name for path in out.iterdir()} == {r["destination"].rpartition("/")[2] for r in requests} | set(left)
    for request in requests[::10]:
        with rasterio.open(request["destination"]) as made:
            assert np.array_equal(made.read(), seed_median(files, request["window"]))
    assert after - before < 100 << 20
