"""Every reducer beside the best peers, on one thread and on two, in turns in one run: ratios, memory, compile times.

    python benchmarks/reducers.py                                 # everything: about ten minutes
    python benchmarks/reducers.py --only geomedian bands --rounds 9
    python benchmarks/reducers.py --only compile

Ways that are compared take turns, and the best round of each counts, so that what else the machine does disturbs all
alike. Peers get the layout and the type that they like best, ready made; where it is said, making it is counted too.
Results are checked against each other. "of the bandwidth" is how many bytes of the stack a reducer goes through in a
second, over what a plain sum of a large array goes through. "Waiting" is the part of the time that vanishes when the
stack is small enough for the cache; "loading" is what it takes there to load and judge every observation; the rest is
arithmetic.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from kernels import observations
from numba import njit
from original import median_of_lists

import s2composite as s2c
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer, valid_observations

DAYS = 365.0
RULES = (s2c.Nodata(0), s2c.Saturated(65535))
EVERY = {
    "luminance_median": {}, "rank": {"key": ("b3", "b2")}, "latest": {}, "closest_to": {"date": "1970-07-01"},
    "best_available_pixel": {"day_of_year": 180}, "medoid": {}, "geomedian": {}, "median": {},
    "percentile": {"q": (10, 50, 90)}, "mean": {}, "std": {}, "min": {}, "trimmed_mean": {},
}  # fmt: skip
OF_EACH_KERNEL = (
    "luminance_median", "rank", "latest", "best_available_pixel", "medoid", "geomedian", "median", "mean", "trimmed_mean",
)  # fmt: skip


def season(dates=80, bands=6, pixels=16384, missing=0.4):
    """Reflectances times 10000 with noise, clouds and 40 % missing: (t, b, 128, pixels / 128) uint16, 0 is nodata."""
    rng, shape = np.random.default_rng(0), (dates, bands, 128, pixels // 128)
    values = rng.gamma(3, 500, (1, *shape[1:])) + rng.normal(0, 200, shape)
    values += (rng.random((dates, 1, *shape[2:])) < 0.15) * rng.random(shape) * 6000
    values = values.round().clip(1, 10000).astype(np.uint16)
    values[(rng.random((dates, 1, *shape[2:])) < missing).repeat(bands, axis=1)] = 0
    return values


def in_turns(ways, rounds):
    """Return the best time of each way; the first call of each is not counted."""
    best = dict.fromkeys(ways, np.inf)
    for k in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start if k else np.inf)
    return best


def on_threads(function, array, threads, axis=-2):
    """Run a function on pieces of an array, one for each thread."""
    pieces = np.array_split(array, threads, axis=axis)
    if threads == 1:
        return [function(array)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, pieces))


def alike(pixels):
    """Return a copy whose bands lie together or apart as those of pixels (t, b, y, x) do."""
    if pixels.strides[1] < pixels.strides[3]:
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels)


def ours(name, pixels, threads, rules=RULES, **params):
    """Return a way to reduce pixels (t, b, y, x) on some threads: halves of its rows, each in its own memory."""
    days = tuple(np.linspace(0, DAYS, len(pixels)))
    bands = tuple(f"b{b}" for b in range(pixels.shape[1]))
    recipe = Recipe((resolve_reducer(name, **params),), rules=rules, nodata=0, bands=bands, days=days)
    pieces = [pixels] if threads == 1 else [alike(piece) for piece in np.array_split(pixels, threads, axis=2)]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda piece: reduce_block(piece, recipe), pieces))


def show(title, best, us, asked=""):
    print(f"\n{title}{f'   (asked: {asked})' if asked else ''}")
    for name, seconds in best.items():
        ratio = "" if name == us else f"   ours is {seconds / best[us]:7.1f} x as fast"
        print(f"  {name:<52}{seconds * 1e3:>10.1f} ms{ratio}")


@njit(nogil=True)
def add_up(values):
    total = np.int64(0)
    for i in range(values.size):
        total += values[i]
    return total


def bandwidth(threads=1, rounds=7):
    """Bytes a second that threads read together from memory, in order."""
    values = np.ones(1 << 25, np.int64)
    best = in_turns({"": lambda: on_threads(add_up, values, threads, axis=0)}, rounds)
    return values.nbytes / best[""]


def geomad_way(values, threads, eps, deviations, **kind):
    """geomad on values (y, x, b, t)."""
    import geomad

    def run():
        middle = geomad.nangeomedian_pcm(values, num_threads=threads, eps=eps, maxiters=1000, nocheck=True, **kind)
        if not deviations:
            return middle
        spreads = (geomad.smad_pcm, geomad.emad_pcm, geomad.bcmad_pcm)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return middle, *(spread(values, middle, num_threads=threads, nocheck=True, **kind) for spread in spreads)

    return run


def measure_geomedian(options):
    """6 bands, 80 dates, 40 % missing; geomad on the same numbers as uint16 and as float32, pixels by pixels."""
    pixels = season()
    wanted = np.ascontiguousarray(pixels.transpose(2, 3, 1, 0))
    floats = np.where(pixels == 0, np.nan, pixels * np.float32(1e-4)).astype(np.float32)
    wanted_floats = np.ascontiguousarray(floats.transpose(2, 3, 1, 0))
    whole = {"nodata": 0, "scale": 1e-4, "offset": 0}
    for deviations, asked in ((False, "6 x"), (True, "8 x")):
        for threads in (1, 2):
            best = in_turns(
                {
                    "ours, uint16": ours("geomedian", pixels, threads, deviations=deviations),
                    "geomad, uint16": geomad_way(wanted, threads, 1e-5, deviations, **whole),
                },
                options.rounds,
            )
            what = "geomedian + 3 MADs" if deviations else "geomedian"
            show(f"{what}, uint16, eps 0.1 DN, {threads} thread(s)", best, "ours, uint16", asked)
            best = in_turns(
                {
                    "ours, float32": ours("geomedian", floats, threads, rules=(), deviations=deviations),
                    "geomad, float32": geomad_way(wanted_floats, threads, 1e-5, deviations),
                    "geomad, eps 1e-4": geomad_way(wanted_floats, threads, 1e-4, deviations),
                },
                options.rounds,
            )
            # 1e-4 is what geomad takes by default, and in reflectances a whole DN: its answers are that far off
            show(f"{what}, float32, eps 0.1 DN, {threads} thread(s)", best, "ours, float32", asked)
    middle = geomad_way(wanted, 2, 1e-5, False, **whole)().transpose(2, 0, 1)
    found = ours("geomedian", pixels, 1)()[0]["composite"]
    np.testing.assert_allclose(found, middle, atol=0.5 + 5)  # halves, and the steps below eps that are left


def measure_bands(options):
    """Per-band median and percentile on uint16 with nodata, beside peers that need floats with NaN."""
    import bottleneck
    import numbagg

    pixels = season()

    def floats():
        values = pixels.astype(np.float32)
        values[pixels == 0] = np.nan
        return values

    ready = floats()
    peers = {
        "bottleneck nanmedian": (lambda x: bottleneck.nanmedian(x, axis=0), 50),
        "numbagg nanmedian": (lambda x: numbagg.nanmedian(x, axis=0), 50),
        "NumPy nanmedian": (lambda x: np.nanmedian(x, axis=0), 50),
        "numbagg nanquantile": (lambda x: numbagg.nanquantile(x, 0.1, axis=0), 10),
        "NumPy nanpercentile": (lambda x: np.nanpercentile(x, 10, axis=0), 10),
    }
    for q in (50, 10):
        for threads in (1, 2):
            us = "ours, median" if q == 50 else "ours, percentile 10"
            ways = {us: ours("median", pixels, threads) if q == 50 else ours("percentile", pixels, threads, q=q)}
            ways |= {name: partial(on_threads, way, ready, threads) for name, (way, at) in peers.items() if at == q}
            ways["(the float copy that peers need besides)"] = floats
            slow = "NumPy nanpercentile" in ways
            best = in_turns(ways, min(options.rounds, 3) if slow else options.rounds)
            show(
                f"{'median' if q == 50 else 'percentile 10'} of each band, {threads} thread(s)",
                best,
                us,
                "10 x the best",
            )
    found = ours("median", pixels, 1)()[0]["composite"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.nan_to_num(np.nanmedian(ready.astype(np.float64), axis=0))
    assert (np.abs(found - expected) <= 0.5).all()


def measure_luminance(options):
    """216 dates of three bands beside the original worker's list of triplets, which gets fewer pixels."""
    n, few, dates = 200_000, 500, 216
    for dtype, asked in (("uint8", "250 x"), ("uint16", "120 x"), ("float32", "60 x")):
        values, top = observations(dates, n, dtype)
        rules, kind = (s2c.Nodata(0), s2c.Saturated(top)), values.dtype.type
        lists = [np.ascontiguousarray(scene[0, :few].T).reshape(-1) for scene in values]
        pixels = values.reshape(dates, 500, -1, 3).transpose(0, 3, 1, 2)
        planar = np.ascontiguousarray(pixels)
        slow = "the original's list of triplets (one thread)"
        for threads in (1, 2):
            ways = {
                "ours, interleaved": ours("luminance_median", pixels, threads, rules=rules),
                "ours, planar": ours("luminance_median", planar, threads, rules=rules),
                slow: partial(median_of_lists, lists, kind(0), kind(top)),
            }
            best = in_turns(ways, options.rounds)
            best[slow] *= n / few
            show(f"luminance median, {dtype}, {threads} thread(s)", best, "ours, interleaved", asked + ", one thread")
        found = ours("luminance_median", pixels, 1, rules=rules)()[0]["composite"].reshape(3, -1)[:, :few]
        theirs = median_of_lists(lists, kind(0), kind(top)).reshape(3, few)
        np.testing.assert_allclose(found.astype(np.float64).sum(0), theirs.astype(np.float64).sum(0), rtol=1e-6)


MEDOID_MEMORY = """
import re, sys, numpy as np
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer
recipe, dates = Recipe((resolve_reducer("medoid"),)), int(sys.argv[1])
pixels = np.random.default_rng(0).integers(1, 255, (dates, 6, 1, 64), dtype=np.uint8)
reduce_block(pixels[:2], recipe)
def kilobytes(what):
    return int(re.search(what + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")  # Linux forgets the peak so far
before = kilobytes("VmRSS")
reduce_block(pixels, recipe)
print(kilobytes("VmHWM") - before)
"""


def measure_medoid(_options):
    """The memory of the medoid, measured from outside: it grows with the dates, not with their square."""
    print("\nmedoid of one block of 64 pixels, 6 bands: growth of the process beside the stack   (asked: O(t))")
    for dates in (1000, 2000, 4000, 8000):
        command = [sys.executable, "-c", MEDOID_MEMORY, str(dates)]
        kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        table = 4 * dates * dates * 64 / 1e6
        print(f"  {dates:>5} dates: {kilobytes / 1e3:7.1f} MB; a table of distances would take {table:9.0f} MB")


def measure_memory(options):
    """Which share of the bandwidth each reducer reaches, and where the rest of the time goes."""
    full = bandwidth()
    print(f"\nreading memory in order: {full / 1e9:.1f} GB/s on one thread, {bandwidth(2) / 1e9:.1f} on two")
    print("4 bands, 80 dates, 40 % missing, uint16, one thread; shares of the time of each reducer")
    print(
        f"  {'':<22}{'ns/pixel':>9}{'GB/s':>8}{'of the bandwidth':>18}{'waiting':>10}{'loading':>9}{'arithmetic':>12}"
    )
    large, small = season(80, 4, 131072), season(80, 4, 4096)
    recipe = Recipe((), rules=RULES, nodata=0)
    judging = in_turns({"": lambda: valid_observations(small, recipe)}, options.rounds * 5)[""] / 4096
    for name, params in EVERY.items():
        best = in_turns(
            {"large": ours(name, large, 1, **params), "small": ours(name, small, 1, **params)}, options.rounds
        )
        rate = large.nbytes / best["large"]
        here, there = best["large"] / 131072, best["small"] / 4096
        waiting = max(here - there, 0) / here
        loading = min(judging, here) / here
        print(
            f"  {name:<22}{here * 1e9:>9.0f}{rate / 1e9:>8.1f}{rate / full:>17.0%} {waiting:>9.0%} {loading:>8.0%} "
            f"{max(1 - waiting - loading, 0):>11.0%}"
        )


FIRST_CALL = """
import sys, time, numpy as np
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer
import benchmarks_every
name, dtype = sys.argv[1:]
recipe = Recipe((resolve_reducer(name, **benchmarks_every.EVERY[name]),), nodata=0, bands=("b0", "b1", "b2", "b3"),
                days=tuple(range(3)))
start = time.process_time()
reduce_block(np.ones((3, 4, 2, 2), dtype), recipe)
print(time.process_time() - start)
"""


def measure_compile(_options):
    """The first call of each reducer in a fresh process: with nothing kept on disk, then with what that kept."""
    print(
        "\nfirst call in a fresh process, without imports: seconds of the processor, cold / with the kernels kept on disk"
    )
    dtypes = ("uint8", "uint16", "float32")
    print("  " + " " * 22 + "".join(f"{dtype:>16}" for dtype in dtypes))
    with tempfile.TemporaryDirectory() as place:
        Path(place, "benchmarks_every.py").write_text(f"EVERY = {EVERY!r}\n")
        paths = os.pathsep.join([place, *filter(None, [os.environ.get("PYTHONPATH")])])
        for name in OF_EACH_KERNEL:
            cells = []
            for dtype in dtypes:
                with tempfile.TemporaryDirectory() as kept:
                    there = {**os.environ, "NUMBA_CACHE_DIR": kept, "PYTHONPATH": paths}
                    command = [sys.executable, "-c", FIRST_CALL, name, dtype]
                    both = [
                        subprocess.run(command, env=there, capture_output=True, text=True, check=True) for _ in "ab"
                    ]
                    cells.append(" / ".join(f"{float(done.stdout):.2f}" for done in both))
            print(f"  {name:<22}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


PARTS = {
    "geomedian": measure_geomedian, "bands": measure_bands, "luminance": measure_luminance, "medoid": measure_medoid,
    "memory": measure_memory, "compile": measure_compile,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in options.only:
        PARTS[name](options)


if __name__ == "__main__":
    main()
