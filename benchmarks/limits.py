"""Limits of a host, kept by worker processes of a Dask cluster: what a server that counts refuses, and how much arrives.

By default at the limits of CDSE (4 connections, 2,000 requests a minute), 8 workers and 10,000 requests, in about five
minutes. Then what a request costs without limits, under limits of another host, and under limits that are never reached.

    python benchmarks/limits.py
    python benchmarks/limits.py --requests 2000 --rate 600/second --latency 5
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from distributed import Client, LocalCluster

import s2composite.cube.open  # noqa: F401 - as in the tasks of a composite
from s2composite.storage.http import ByteRange, Fetching, Identity
from s2composite.storage.limits import VARIABLE, resolve_limits

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.counting_server import SIZE, counting_server

HOST = "127.0.0.1"


def read(url, number, size):
    """Return how many byte ranges failed."""

    ranges = [ByteRange(url, Identity(SIZE), i * size, size) for i in range(number)]
    return sum(one.error is not None for _, one in Fetching(ranges))


def at_limits(args):
    given = {HOST: {"connections": args.connections, "requests": args.rate}}
    ((limit,), os.environ[VARIABLE]) = resolve_limits(given), f"{{{HOST}: {given[HOST]}}}"
    rates = limit.rates
    with (
        counting_server(
            connections=rates.connections, requests=rates.requests, period=rates.period, latency=args.latency / 1e3
        ) as server,
        LocalCluster(n_workers=args.workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        each = args.requests // args.workers
        urls = [f"{server.url}/{i}" for i in range(args.workers)]
        failed = sum(client.gather(client.map(read, urls, number=each, size=args.size, pure=False)))
        seen = server.stats()
    rate = seen["requests"] / seen["seconds"] * rates.period
    print(f"{limit}; {args.workers} workers, {args.latency:g} ms")
    print(f"  requests {seen['requests']}, refused {seen['refused']}, failed {failed}")
    print(f"  connections at most {seen['most_open']}, requests in any period at most {seen['most_in_a_period']}")
    print(f"  {seen['seconds']:.1f} s: {rate / rates.requests:.1%} of the allowed rate")


def cost(args):
    """Compare requests without limits, with limits of another host, and with limits that never bind."""
    with counting_server() as server:
        read(f"{server.url}/a", 500, 100)  # what is done once
        settings = {"no limits": None, "another host's": "cdse", "generous": f"{{{HOST}: {{requests: 100000000}}}}"}
        best = dict.fromkeys(settings, float("inf"))
        for _ in range(args.repeats):
            for name, text in settings.items():
                os.environ.pop(VARIABLE, None)
                if text is not None:
                    os.environ[VARIABLE] = text
                begin = time.perf_counter()
                assert read(f"{server.url}/a", 500, 100) == 0
                best[name] = min(best[name], (time.perf_counter() - begin) / 500)
    os.environ.pop(VARIABLE, None)
    for name, seconds in best.items():
        print(f"  {name:16} {seconds * 1e6:6.0f} us a request")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--rate", default="2000/minute")
    parser.add_argument("--latency", type=float, default=50.0, help="milliseconds that the server takes for a request")
    parser.add_argument("--size", type=int, default=1000, help="bytes of a request")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("limits", "cost"))
    args = parser.parse_args()
    if args.only != "cost":
        at_limits(args)
    if args.only != "limits":
        cost(args)


if __name__ == "__main__":
    main()
