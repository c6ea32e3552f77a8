"""What running a job costs beside its windows: overhead over the bare graph, two workers over one, resuming what is half
done, and a scheduler that is fed a great many windows without pixels.

    python benchmarks/runner.py                                  # 216 scenes of 8192 x 8192, a million windows without pixels
    python benchmarks/runner.py --only windows --windows 20000   # fewer of these; a million take most of an hour on two cores
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
from distributed import Client

import s2composite as s2c
from s2composite.clusters.submit import ClusterCall, Policy, run_bounded
from s2composite.demo import make_scenes
from s2composite.runner.plan import plan
from s2composite.runner.run import run

LAYERS = ["composite", "count", "source"]


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def job(directory, output, **keys):
    return {"source": str(directory), "output": str(output), "layers": LAYERS, "overwrite": True, **keys}


def overhead(directory, scratch, rounds):
    """The runner beside `to_raster` on the same workers, in turns, the best of each."""
    with s2c.connect("local", workers=2, threads=1, announce=False) as client:
        bare, runner = [], []
        for turn in range(rounds + 1):
            comp = s2c.composite(s2c.open_cube(directory, chunks=1024))
            took = timed(
                lambda comp=comp: comp.to_raster(
                    str(scratch / "bare.tif"), layers=LAYERS, overwrite=True, progress=False
                )
            )
            spec = job(directory, scratch / f"job{turn}.tif", chunks=1024)
            again = timed(lambda spec=spec: run(spec, client=client))
            if turn:  # the first compiles and fills caches
                bare.append(took)
                runner.append(again)
    print(f"to_raster {min(bare):6.2f} s   run {min(runner):6.2f} s   overhead {min(runner) / min(bare) - 1:+.1%}")


def scaling(directory, scratch, rounds):
    """The same job on one worker and on two."""
    best = {workers: best_of(directory, scratch, workers, rounds) for workers in (1, 2)}
    print(f"1 worker  {best[1]:6.2f} s   2 workers {best[2]:6.2f} s   speed-up {best[1] / best[2]:.2f}")


def best_of(directory, scratch, workers, rounds):
    """Seconds of a job on some workers, the best of several but for the first."""
    with s2c.connect("local", workers=workers, threads=1, announce=False) as client:
        specs = [job(directory, scratch / f"scale{workers}-{turn}.tif", chunks=1024) for turn in range(rounds + 1)]
        return min([timed(lambda spec=spec: run(spec, client=client)) for spec in specs][1:])


def resuming(directory, scratch):
    """A job of which half of the windows are done."""
    with s2c.connect("local", workers=2, threads=1, announce=False) as client:
        whole = timed(lambda: run(job(directory, scratch / "whole.tif", chunks=1024), client=client))
        spec = job(directory, scratch / "half.tif", chunks=1024)
        windows = [w.window for w in plan(spec).windows]
        first = timed(lambda: run(spec, client=client, windows=windows[::2]))
        rest = timed(lambda: run(spec, client=client))
        skipped = timed(lambda: run({**spec, "overwrite": False}, client=client))
    print(f"whole {whole:.2f} s   half {first:.2f} s   resumed {rest:.2f} s   complete already {skipped:.2f} s")


def nothing(number):
    return number


@contextmanager
def scheduler_of_its_own(workers):
    """Yield a client, and the process of a scheduler that does nothing else, so that its memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        dask = [sys.executable, "-m", "dask"]
        quiet = ["--no-dashboard", "--scheduler-file", str(file)]
        place = ["--host", "127.0.0.1", "--port", "0"]
        everyone = [subprocess.Popen([*dask, "scheduler", *place, *quiet], stderr=subprocess.DEVNULL)]
        try:
            while not (file.exists() and file.read_text().strip()):
                time.sleep(0.05)
            for _ in range(workers):
                command = [*dask, "worker", "--nthreads", "1", "--no-nanny", *quiet]
                everyone.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            with Client(scheduler_file=str(file)) as client:
                client.wait_for_workers(workers)
                yield client, psutil.Process(everyone[0].pid)
        finally:
            for process in everyone:
                process.kill()
                process.wait()


def many_windows(count, look_ahead):
    """Calls without pixels: how many a second, and what the processes of scheduler and client hold while they pass."""
    with scheduler_of_its_own(workers=2) as (client, scheduler):
        start = last = time.perf_counter()
        calls = (ClusterCall(f"nothing-{i}", nothing, (i,), i) for i in range(count))
        step = max(count // 20, 1)
        for seen, _ in enumerate(run_bounded(client, calls, Policy(look_ahead=look_ahead)), 1):
            if seen % step == 0 or seen == count:
                now = time.perf_counter()
                tasks = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
                sizes = [process.memory_info().rss / 2**20 for process in (scheduler, psutil.Process())]
                print(
                    f"{seen:9d} windows   {step / (now - last):6.0f} a second   scheduler {sizes[0]:.0f} MiB, "
                    f"knows {tasks} tasks   client {sizes[1]:.0f} MiB",
                    flush=True,
                )
                last = now
        print(f"together {count / (time.perf_counter() - start):.0f} a second, {look_ahead} for each thread at a time")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=216)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--look-ahead", type=int, default=64, help="of the windows without pixels, for each thread")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=["overhead", "scaling", "resume", "windows"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch, directory = Path(folder), Path(folder) / "scenes"
        if args.only != "windows":
            make_scenes(str(directory), scenes=args.scenes, size=args.size, distinct=4)
        for name, measure in {
            "overhead": lambda: overhead(directory, scratch, args.rounds),
            "scaling": lambda: scaling(directory, scratch, args.rounds),
            "resume": lambda: resuming(directory, scratch),
            "windows": lambda: many_windows(args.windows, args.look_ahead),
        }.items():
            if args.only in (None, name):
                print(name)
                measure()


if __name__ == "__main__":
    main()
