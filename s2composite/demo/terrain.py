"""The land that does not change: hills, a river, parcels of fields, woods, roads and towns, as compact maps.

A pixel is one byte of cover (what grows or stands there, in one of sixteen variants), one of texture and one of slope.
What it looks like on a day of the year is for `seasons` to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2composite.demo.noise import Bits, Box, Float, field, hashed, key_of, spectrum, uniform
from s2composite.demo.seasons import VARIANTS, Cover

__all__ = ["Land", "render_land"]

_RELIEF = spectrum(10, (1.0, 0.75, 0.5, 0.32, 0.17, 0.08, 0.03))
_WARP = spectrum(8, (1.0, 0.5, 0.3, 0.12))
_WOODS = spectrum(7, (0.8, 1.0, 0.8, 0.5, 0.3, 0.2, 0.15, 0.1))
_GRAIN = spectrum(3, (0.6, 0.8, 1.0, 0.8))
_TOWNS = spectrum(5, (1.0, 0.8, 0.6, 0.4, 0.3, 0.3))

_DISTRICT = 140
"""Mean distance of the centres of districts, in pixels: inside one, all parcels lie in the same direction."""

_TOWN = 400
"""Mean distance of town centres, in pixels."""

_CROPS = (
    (0.33, Cover.CEREAL),
    (0.46, Cover.SUNFLOWER),
    (0.60, Cover.MAIZE),
    (0.66, Cover.RAPE),
    (0.86, Cover.MEADOW),
    (0.93, Cover.VINEYARD),
    (1.00, Cover.FALLOW),
)
"""Cumulated shares of what is grown on parcels."""

_URBAN = (
    (0.38, Cover.ROOF),
    (0.60, Cover.PAVED),
    (0.63, Cover.BRIGHT),
    (0.86, Cover.MEADOW),
    (1.00, Cover.BROADLEAF),
)
"""Cumulated shares of what stands on a plot in town."""

_ROUGH = {
    Cover.BROADLEAF: 0.13,
    Cover.CONIFER: 0.15,
    Cover.HEDGE: 0.15,
    Cover.MEADOW: 0.06,
    Cover.VINEYARD: 0.07,
    Cover.ROOF: 0.16,
    Cover.PAVED: 0.10,
    Cover.BRIGHT: 0.10,
    Cover.WATER: 0.02,
}
"""Standard deviation of the brightness inside a cover where it is not that of a field, 0.04."""

_ROUGHNESS = np.array([_ROUGH.get(cover, 0.04) for cover in Cover], np.float32)


@dataclass(frozen=True, slots=True)
class Land:
    """Maps of an area, each ``(y, x)``."""

    cover: NDArray[np.uint8]
    """Cover times the number of variants, plus the variant."""

    texture: NDArray[np.int8]
    """Brightness against the mean of the cover, in 1/256."""

    slope: NDArray[np.int8]
    """Slope towards the sun at 10:50, in 1/256; falls away from it where negative."""


@dataclass(frozen=True, slots=True)
class _Canvas:
    """The map being painted in place, from the ground up: later covers hide earlier ones. Each array is ``(y, x)``."""

    cover: NDArray[np.uint8]
    """A Cover."""

    variant: NDArray[np.uint8]
    """0 to VARIANTS - 1."""

    texture: Float
    """Relative brightness, 0: that of the cover."""

    def paint(self, where: NDArray[np.bool_], cover: Cover) -> None:
        self.cover[where] = cover


def render_land(box: Box, seed: int) -> Land:
    """Return the land in a box of pixels of the granule; the same pixel is the same in any box."""
    height = field(box.grown(1), key_of(seed, 1), _RELIEF)
    inner = height[1:-1, 1:-1]
    bend_y, bend_x = (field(box, key_of(seed, 2 + i), _WARP) * np.float32(14) for i in range(2))
    rows, columns = box.grid()
    y, x = rows + bend_y, columns + bend_x
    canvas = _fields(y, x, seed)
    _woods(canvas, box, inner, seed)
    _roads(canvas, y, x, seed)
    _towns(canvas, box, seed)
    _river(canvas, y, x, inner, seed)
    _ponds(canvas, box, inner, seed)
    canvas.texture[...] += field(box, key_of(seed, 5), _GRAIN) * _ROUGHNESS[canvas.cover]
    return Land(
        canvas.cover * np.uint8(VARIANTS) + canvas.variant,
        np.clip(canvas.texture * 256, -110, 127).astype(np.int8),
        _slope(height),
    )


def _slope(height: Float) -> NDArray[np.int8]:
    """Return the slope of a relief (one pixel larger on each side) towards the south-south-east."""
    down = height[2:, 1:-1] - height[:-2, 1:-1]
    right = height[1:-1, 2:] - height[1:-1, :-2]
    towards = -(down * np.float32(0.87) + right * np.float32(0.5))
    return np.clip(towards * np.float32(3200), -100, 100).astype(np.int8)


def _nearest(y: Float, x: Float, spacing: int, key: int) -> tuple[Bits, Bits, Float]:
    """Return the bits of the nearest and the second nearest of jittered points, and the distance to their border."""
    row, column = (np.floor(v / np.float32(spacing)).astype(np.int32) for v in (y, x))
    row0, column0 = int(row.min()) - 1, int(column.min()) - 1
    rows, columns = np.arange(row0, row.max() + 2), np.arange(column0, column.max() + 2)
    bits = hashed(key, rows[:, None], columns[None, :])
    point_y = (rows[:, None] + uniform(bits)).astype(np.float32).ravel() * np.float32(spacing)
    point_x = (columns[None, :] + uniform(hashed(1, bits))).astype(np.float32).ravel() * np.float32(spacing)
    own = (row - row0) * np.int32(len(columns)) + (column - column0)
    best, next_best = (np.full(y.shape, np.inf, np.float32) for _ in range(2))
    first, second = np.zeros_like(own), np.zeros_like(own)
    for step in (dy * len(columns) + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
        index = own + np.int32(step)
        distance = (point_y.take(index) - y) ** 2
        distance += (point_x.take(index) - x) ** 2
        closer = distance < best
        np.copyto(second, np.where(closer, first, index), where=distance < next_best)
        np.copyto(first, index, where=closer)
        next_best = np.where(closer, best, np.minimum(distance, next_best))
        best = np.minimum(distance, best)
    border: Float = (np.sqrt(next_best) - np.sqrt(best)) * np.float32(0.5)
    return bits.ravel().take(first), bits.ravel().take(second), border


def _fields(y: Float, x: Float, seed: int) -> _Canvas:
    """Return parcels with their crops: in each district rows of one direction, each row cut into parcels."""
    district, _, _ = _nearest(y, x, _DISTRICT, key_of(seed, 10))
    angle = uniform(hashed(11, district)) * np.float32(np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = x * cos + y * sin, y * cos - x * sin
    depth = 11 + 13 * uniform(hashed(12, district))
    row, beside_row = _split(across, depth, hashed(13, district))
    strip = hashed(14, district, row)
    width = uniform(strip)
    column, beside_column = _split(along + 40 * width, depth * (0.8 + 2.4 * width), strip)
    parcel = hashed(15, strip, column)
    tone, other = uniform(parcel), uniform(hashed(16, parcel))
    furrows = np.sin(across * np.float32(2.1)) * tone * np.float32(0.05)
    variant = (parcel % np.uint32(VARIANTS)).astype(np.uint8)
    canvas = _Canvas(_choose(other, _CROPS), variant, (tone - 0.5) * np.float32(0.16) + furrows)
    beside = np.minimum(beside_row, beside_column)
    canvas.paint(beside < 0.4, Cover.MEADOW)
    canvas.paint((beside < 0.55) & (tone < 0.3), Cover.HEDGE)
    return canvas


def _split(u: Float, width: Float, bits: Bits) -> tuple[NDArray[np.int32], Float]:
    """Cut an axis into pieces of about `width`; return the piece's number and the distance to its nearer end."""
    scaled = u / width
    cell = np.floor(scaled)
    inside = scaled - cell
    piece = cell.astype(np.int32)
    here = 0.6 * uniform(hashed(5, bits, piece))
    early = inside < here
    other = 0.6 * uniform(hashed(5, bits, np.where(early, piece - 1, piece + 1)))
    start = np.where(early, other - 1, here)
    stop = np.where(early, here, other + 1)
    return piece - early, np.minimum(inside - start, stop - inside) * width


def _choose(u: Float, shares: tuple[tuple[float, Cover], ...]) -> NDArray[np.uint8]:
    """Return the covers that uniform numbers fall on."""
    steps = np.arange(1024) / 1024
    table = np.array([next(cover for share, cover in shares if step < share) for step in steps], np.uint8)
    return table[(u * 1024).astype(np.int16)]


def _woods(canvas: _Canvas, box: Box, height: Float, seed: int) -> None:
    """Cover the higher ground with woods, pines among them."""
    wooded = field(box, key_of(seed, 20), _WOODS) + np.float32(0.5) * height
    where = wooded > 0.95
    canvas.paint(where, Cover.BROADLEAF)
    canvas.paint(where & (field(box, key_of(seed, 21), _WOODS) > 0.8), Cover.CONIFER)
    canvas.texture[where] *= np.float32(0.3)


def _roads(canvas: _Canvas, y: Float, x: Float, seed: int) -> None:
    """Draw roads along some borders of wide districts, and a motorway in long curves from west to east."""
    one, other, border = _nearest(y, x, 2 * _DISTRICT, key_of(seed, 25))
    road = uniform(hashed(26, one ^ other)) < 0.7
    canvas.paint((border < 0.7) & road, Cover.PAVED)
    course = 330 + 0.22 * x + 60 * np.sin(x / 310) + 25 * np.sin(x / 130 + 1)
    canvas.paint(np.abs(y - course) < 1.3, Cover.PAVED)


def _scattered(box: Box, spacing: int, key: int) -> tuple[Float, Bits]:
    """Return the distance to the point scattered in a pixel's own cell of a lattice, never near its sides; its bits."""
    rows, columns = box.grid()
    row, column = np.floor(rows / spacing), np.floor(columns / spacing)
    bits = hashed(key, row, column)
    away_y = rows - (row + 0.35 + 0.3 * uniform(bits)) * spacing
    away_x = columns - (column + 0.35 + 0.3 * uniform(hashed(1, bits))) * spacing
    return np.hypot(away_y, away_x).astype(np.float32), bits


def _towns(canvas: _Canvas, box: Box, seed: int) -> None:
    """Build towns: denser towards their centres, made of plots of two pixels, with streets."""
    rows, columns = box.grid()
    distance, bits = _scattered(box, _TOWN, key_of(seed, 30))
    radius = 14 + 80 * uniform(hashed(6, bits)) ** 3
    density = 1.25 - distance / radius + 0.3 * field(box, key_of(seed, 31), _TOWNS)
    plot = hashed(key_of(seed, 32), rows // 2, columns // 2)
    built = uniform(plot) * 0.6 < density - 0.2
    canvas.cover[built] = _choose(uniform(hashed(7, plot)), _URBAN)[built]
    canvas.variant[built] = (hashed(8, plot) % np.uint32(VARIANTS)).astype(np.uint8)[built]
    street = ((rows % 9 < 1) | (columns % 12 < 1)) & (density > 0.45)
    canvas.paint(built & street, Cover.PAVED)


def _river(canvas: _Canvas, y: Float, x: Float, height: Float, seed: int) -> None:
    """Let a river run from the south-east to the north-west between trees."""
    along, across = (x + y) * np.float32(0.7071), (x - y) * np.float32(0.7071)
    phase = np.float32(2 * np.pi * (key_of(seed, 40) % 1000) / 1000)
    course = 90 * np.sin(along / 190 + phase) + 38 * np.sin(along / 71 + 2 * phase) + 16 * np.sin(along / 33)
    away = np.abs(across - course - 40)
    canvas.paint(away < 11 + 4 * height, Cover.HEDGE)
    _fill(canvas, away < 6.5 + 2 * np.sin(along / 57))


def _ponds(canvas: _Canvas, box: Box, height: Float, seed: int) -> None:
    """Fill ponds in the hollows."""
    distance, bits = _scattered(box, 190, key_of(seed, 41))
    _fill(canvas, distance < 8 * uniform(hashed(9, bits)) * (1 - np.minimum(height, 1)))


def _fill(canvas: _Canvas, where: NDArray[np.bool_]) -> None:
    canvas.paint(where, Cover.WATER)
    canvas.variant[where] = 8
    canvas.texture[where] = 0
