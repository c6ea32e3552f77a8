"""Luminance medians of pixels in memory, by several ways in one run on one core: million observations a second.

    python benchmarks/kernels.py [--pixels 500000] [--dates 216] [--dtypes uint8 uint16 float32]

The slow ways get fewer pixels. "list of triplets" is what the original window worker does: a list of RGB triplets for
each pixel, sorted with a key function. Every way gives the same luminances; that is checked.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import xarray as xr
from numba import guvectorize, njit
from original import median_of_lists

import s2composite as s2c
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer

MEDIAN = Recipe((resolve_reducer("luminance_median"),))


def list_of_triplets(stack, top, out):
    """The original worker's way, on buffers like its own."""
    buffers = [np.ascontiguousarray(scene.T).reshape(-1) for scene in stack]
    out[:] = median_of_lists(buffers, stack.dtype.type(0), top).reshape(3, -1).sum(axis=0)


@njit(nogil=True)
def list_of_keys(stack, top, out):
    for i in range(stack.shape[1]):
        keys = []
        for t in range(stack.shape[0]):
            r, g, b = stack[t, i, 0], stack[t, i, 1], stack[t, i, 2]
            if min(r, g, b) == 0 or max(r, g, b) == top:
                continue
            keys.append((r + g + b, t))
        if len(keys) > 0:
            keys.sort()
            out[i] = keys[len(keys) // 2][0]


def sort_in_gufunc(stack, top, out):
    """A sort of packed keys for each pixel, in a gufunc over (pixels, dates, bands)."""
    _sort_in_gufunc(np.moveaxis(stack, 0, 1), top, out)


@guvectorize(["i8[:,:],i8,i8[:]", "f4[:,:],f4,f4[:]"], "(t,b),()->()", nopython=True)
def _sort_in_gufunc(samples, top, out):
    keys, n = np.empty(samples.shape[0], samples.dtype), 0
    for t in range(samples.shape[0]):
        r, g, b = samples[t, 0], samples[t, 1], samples[t, 2]
        if min(r, g, b) != 0 and max(r, g, b) != top:
            keys[n] = r + g + b
            n += 1
    keys[:n].sort()
    out[0] = keys[n // 2] if n > 0 else 0


def argsort(stack, top, out):
    valid = ((stack != 0) & (stack != top)).all(-1)
    keys = np.where(valid, stack[..., 0] + stack[..., 1] + stack[..., 2], np.iinfo(np.int32).max)
    order = np.argsort(keys, axis=0, kind="stable")
    n = valid.sum(0)
    picked = np.take_along_axis(order, np.minimum(n // 2, len(stack) - 1)[None], 0)
    out[:] = np.where(n > 0, np.take_along_axis(keys, picked, 0)[0], 0)


PEERS = {"list of triplets, sorted": (list_of_triplets, 500), "list of (key, index), sorted": (list_of_keys, 100)}
PEERS |= {"sort in a gufunc": (sort_in_gufunc, 50), "NumPy argsort": (argsort, 50)}


def observations(dates, pixels, dtype):
    """A year of skewed reflectances with 20 % nodata and some saturation, pixel-interleaved (t, 1, n, 3)."""
    rng, top = np.random.default_rng(0), np.iinfo(dtype).max if dtype != "float32" else 1.0
    values = rng.gamma(2.0, 0.12, (dates, 1, pixels, 3)).astype(np.float32)
    values = (
        np.clip(values, 0.001, 1.0) if dtype == "float32" else np.clip(values * min(top, 10000), 1, top).astype(dtype)
    )
    values[rng.random((dates, 1, pixels)) < 0.2] = 0
    return values, top


def seconds(function, *arguments, repeat=1):
    best = np.inf
    for _ in range(repeat):
        start = time.perf_counter()
        function(*arguments)
        best = min(best, time.perf_counter() - start)
    return best


def measure_ours(values, top):
    """Return luminances and seconds of the kernel alone and through composite()."""
    rules = (s2c.Nodata(0), s2c.Saturated(top))
    pixels, recipe = values.transpose(0, 3, 1, 2), Recipe(MEDIAN.reducers, rules=rules, nodata=0)
    cube = xr.DataArray(pixels, dims=("time", "band", "y", "x"), attrs={"nodata": 0})
    first = seconds(reduce_block, pixels[..., :1], recipe)
    kernel = seconds(reduce_block, pixels, recipe, repeat=3)
    whole = seconds(lambda: s2c.composite(cube, valid=rules).compute(), repeat=3)
    picked = reduce_block(pixels, recipe)["composite"]
    wide = picked if picked.dtype == np.float32 else picked.astype(np.int64)
    return (wide[0] + wide[1] + wide[2]).ravel(), first, kernel, whole


def measure(dtype, dates, pixels):
    values, top = observations(dates, pixels, dtype)
    expected, first, kernel, whole = measure_ours(values, top)
    rates = {"composite()": dates * pixels / whole / 1e6, "the kernel alone": dates * pixels / kernel / 1e6}
    for name, (way, fewer) in PEERS.items():
        n = max(pixels // fewer, 1)
        wide = values[:, 0, :n].astype(np.float32 if dtype == "float32" else np.int64)
        top_value, out = wide.dtype.type(top), np.zeros(n, wide.dtype)
        way(wide[:, :1].copy(), top_value, out[:1])
        rates[name] = dates * n / seconds(way, wide, top_value, out, repeat=3) / 1e6
        np.testing.assert_array_equal(out, expected[:n])
    print(f"\n{dtype}, {dates} dates, {pixels} pixels; first call {first:.2f} s; M observations/s/core")
    for name, rate in rates.items():
        print(f"  {name:<30}{rate:>9.1f}   composite() is {rates['composite()'] / rate:7.1f} x")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=500_000)
    parser.add_argument("--dates", type=int, default=216)
    parser.add_argument("--dtypes", nargs="+", default=["uint8", "uint16", "float32"])
    options = parser.parse_args()
    for dtype in options.dtypes:
        measure(dtype, options.dates, options.pixels)


if __name__ == "__main__":
    main()
