"""What is done to every pixel that is written besides encoding it: counting its value, and means for the overviews."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2composite.pixels.kernels.compiled import kernel

__all__ = ["count_values", "halve_by_means"]


@kernel
def count_values(values: Any, lowest: int, out: Any) -> None:
    """Count how often each value occurs.

    Parameters
    ----------
    values
        ``(n,)`` of whole numbers, unsigned.
    lowest
        What counts as the first: a value ``v`` counts as ``v - lowest``, in the arithmetic of its dtype.
    out
        ``(4, k)`` int64, out: the counts of each fourth of the values, to be added up.
    """
    # Four counts: where neighbours are alike, each addition to one would wait for the one before.
    n = values.size
    mask = (1 << (8 * values.itemsize)) - 1
    whole = n - n % 4
    for i in range(0, whole, 4):
        out[0, (np.int64(values[i]) - lowest) & mask] += 1
        out[1, (np.int64(values[i + 1]) - lowest) & mask] += 1
        out[2, (np.int64(values[i + 2]) - lowest) & mask] += 1
        out[3, (np.int64(values[i + 3]) - lowest) & mask] += 1
    for i in range(whole, n):
        out[0, (np.int64(values[i]) - lowest) & mask] += 1


@kernel
def halve_by_means(pixels: Any, known: bool, nodata: int, instead: int, out: Any) -> None:
    """Take the mean of each block of 2 x 2 pixels, of those that have a value; halves are rounded up.

    Parameters
    ----------
    pixels
        ``(b, y, x)`` of whole numbers; y and x are even.
    known
        Whether some value means "no value".
    nodata
        Which.
    instead
        Written where a mean is `nodata` by coincidence.
    out
        ``(b, y / 2, x / 2)`` of the same dtype, out: `nodata` where no pixel has a value.
    """
    bands, height, width = out.shape
    for b in range(bands):
        for y in range(height):
            above, below, row = pixels[b, 2 * y], pixels[b, 2 * y + 1], out[b, y]
            for x in range(width):
                p, q = np.int64(above[2 * x]), np.int64(above[2 * x + 1])
                r, s = np.int64(below[2 * x]), np.int64(below[2 * x + 1])
                total = p + q + r + s
                mean: Any = (total + 2) >> 2
                if known:
                    bad = np.int64(p == nodata) + (q == nodata) + (r == nodata) + (s == nodata)
                    if bad:
                        # 12 is divisible by every count, so means are exact in whole numbers.
                        share = 4 if bad == 1 else 6 if bad == 2 else 12
                        mean = ((total - bad * nodata) * share + 6) // 12
                    mean = nodata if bad == 4 else instead if mean == nodata else mean
                row[x] = mean
