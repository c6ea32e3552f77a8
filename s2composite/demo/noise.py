"""Noise that depends on nothing but its key and the position: any window of a field can be computed by itself.

A field is the sum of octaves. Each octave is white noise on a lattice of 1, 2, 4 ... pixels; coarse lattices are
refined to the next by cubic B-spline subdivision (even points weigh their neighbours 1:6:1, odd points 1:1), so that
the whole pyramid costs four thirds of its finest octave and shows none of the squares of bilinear noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bits", "Box", "Float", "Spectrum", "field", "hashed", "key_of", "refine", "spectrum", "uniform", "white"]

Float = NDArray[np.float32]
Bits = NDArray[np.uint32]

_TILE = 1024
"""Side of the tile of white noise that all lattices are cut from, each octave of each field at its own offset."""

_SMOOTHED = (1.0, 0.547, 0.495, 0.484, 0.481)
"""Variance along one axis that is left of white noise after 0, 1, 2 ... subdivisions; then it stays."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a lattice: the points ``y0 <= y < y1``, ``x0 <= x < x1``, anywhere, also below 0."""

    y0: int
    """First row."""

    x0: int
    """First column."""

    y1: int
    """Row after the last."""

    x1: int
    """Column after the last."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    def moved(self, dy: int, dx: int) -> Box:
        """Return the box moved by `dy` rows and `dx` columns."""
        return Box(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def grown(self, n: int) -> Box:
        """Return the box with `n` more points on each side."""
        return Box(self.y0 - n, self.x0 - n, self.y1 + n, self.x1 + n)

    def coarser(self, levels: int = 1) -> Box:
        """Return the points of the lattice `levels` octaves above that refining needs to fill this box."""
        box = self
        for _ in range(levels):
            box = Box(box.y0 // 2 - 1, box.x0 // 2 - 1, (box.y1 - 1) // 2 + 2, (box.x1 - 1) // 2 + 2)
        return box

    def grid(self) -> tuple[Float, Float]:
        """Return row numbers as a column and column numbers as a row, float32."""
        rows = np.arange(self.y0, self.y1, dtype=np.float32)
        return rows[:, None], np.arange(self.x0, self.x1, dtype=np.float32)[None, :]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """How strong each octave of a field is."""

    coarsest: int
    """Base-2 logarithm of the widest lattice, in points of the field's own grid."""

    amplitudes: tuple[float, ...]
    """Factor of each octave, coarsest first; scaled so that the field has a variance of about 1."""


def spectrum(coarsest: int, weights: tuple[float, ...]) -> Spectrum:
    """Return the spectrum of octaves with these weights, the first with lattice cells of ``2**coarsest`` points."""
    if len(weights) > coarsest + 1:
        weights = weights[: coarsest + 1]
    variance = 0.0
    for i, weight in enumerate(weights):
        left = _SMOOTHED[min(coarsest - i, len(_SMOOTHED) - 1)]
        variance += (weight * left) ** 2
    return Spectrum(coarsest, tuple(weight / variance**0.5 for weight in weights))


def key_of(*parts: int) -> int:
    """Return 32 bits that depend on all the parts, the same on any machine."""
    key = 0x9E3779B9
    for part in parts:
        key = _scramble((key ^ (part & 0xFFFFFFFF)) * 0x85EBCA6B & 0xFFFFFFFF)
    return key


def _scramble(h: int) -> int:
    h ^= h >> 16
    h = h * 0x7FEB352D & 0xFFFFFFFF
    h ^= h >> 15
    h = h * 0x846CA68B & 0xFFFFFFFF
    return h ^ (h >> 16)


def hashed(key: int, *coords: NDArray[Any]) -> Bits:
    """Return 32 bits for each position, from integer coordinates that broadcast."""
    h = np.full(1, key, np.uint32)
    for coord in coords:
        h = h ^ coord.astype(np.int64).astype(np.uint32)
        h = h * np.uint32(0x85EBCA6B)
        h = h ^ (h >> np.uint32(16))
        h = h * np.uint32(0x7FEB352D)
        h = h ^ (h >> np.uint32(15))
    return h


def uniform(bits: Bits) -> Float:
    """Return hashed bits as float32 in [0, 1)."""
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


@cache
def _tile() -> Float:
    """Return the tile of white noise: uniform with mean 0 and variance 1, ``(_TILE, _TILE)``."""
    rows = np.arange(_TILE)
    noise = uniform(hashed(0x51ED270B, rows[:, None], rows[None, :]))
    return ((noise - np.float32(0.5)) * np.float32(12**0.5)).astype(np.float32)


def white(box: Box, key: int) -> Float:
    """Return white noise over a box: uniform with mean 0 and variance 1."""
    rows = np.arange(box.y0 + (key & 1023), box.y1 + (key & 1023)) % _TILE
    columns = np.arange(box.x0 + (key >> 10 & 1023), box.x1 + (key >> 10 & 1023)) % _TILE
    return _tile().take(rows, axis=0).take(columns, axis=1)


def refine(coarse: Float, box: Box, levels: int = 1) -> Float:
    """Return an array over ``box.coarser(levels)``, refined to `box`."""
    if levels > 1:
        coarse = refine(coarse, box.coarser(), levels - 1)
    wide = _refine_rows(coarse)
    fine = _refine_columns(wide)
    y, x = box.y0 % 2, box.x0 % 2
    height, width = box.shape
    return fine[y : y + height, x : x + width]


def _refine_rows(a: Float) -> Float:
    out = np.empty((2 * (a.shape[0] - 2), a.shape[1]), np.float32)
    middle = a[1:-1]
    out[1::2] = (middle + a[2:]) * np.float32(0.5)
    out[0::2] = (a[:-2] + a[2:] + middle * np.float32(6)) * np.float32(0.125)
    return out


def _refine_columns(a: Float) -> Float:
    out = np.empty((a.shape[0], 2 * (a.shape[1] - 2)), np.float32)
    middle = a[:, 1:-1]
    out[:, 1::2] = (middle + a[:, 2:]) * np.float32(0.5)
    out[:, 0::2] = (a[:, :-2] + a[:, 2:] + middle * np.float32(6)) * np.float32(0.125)
    return out


def field(box: Box, key: int, spec: Spectrum) -> Float:
    """Return a smooth random field over a box, about normal with mean 0 and variance 1.

    Parameters
    ----------
    box
        Where, in points of the field's own grid.
    key
        Which field: another key gives an unrelated one.
    spec
        Its octaves. Those finer than the last one given are smooth.
    """
    boxes = [box]
    for _ in range(spec.coarsest):
        boxes.append(boxes[-1].coarser())
    values: Float | None = None
    for i, level in enumerate(range(spec.coarsest, -1, -1)):
        values = None if values is None else refine(values, boxes[level])
        if i < len(spec.amplitudes):
            octave = white(boxes[level], key_of(key, level)) * np.float32(spec.amplitudes[i])
            values = octave if values is None else values + octave
    assert values is not None
    return values
