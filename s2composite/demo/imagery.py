"""Pixels of synthetic Sentinel-2 scenes: when they are taken, land through the seasons, clouds and shadows.

Everything is a function of a seed and of the position in the granule, so any box of pixels can be rendered by itself
and is the same in every box that holds it. Arrays are ``(y, x)`` of 10 m pixels unless stated otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ASSETS", "BANDS", "GRANULE", "VARIANTS", "Box", "CloudType", "Cover", "Land", "Overpass", "Sky", "Spectrum", "Sun",
    "Weather", "field", "overpasses", "refine", "reflectances", "render", "render_land", "render_sky", "spectrum",
    "sun_position", "weather_of",
]  # fmt: skip

GRANULE = "T31TCJ"  # Toulouse and the hills to its west
BANDS = ("B02", "B03", "B04", "B08")  # blue, green, red, near infrared
ASSETS = ("TCI", "SCL", *BANDS)

Float = NDArray[np.float32]
Bits = NDArray[np.uint32]
Spectrum = tuple[float, ...]  # amplitude of each octave of a field, coarsest first, finest last


# Random fields. A field is the sum of octaves. Each octave is white noise on a lattice of 1, 2, 4 ... pixels; coarse
# lattices are refined to the next by cubic B-spline subdivision, so that the whole pyramid costs four thirds of its
# finest octave and shows none of the squares of bilinear noise.

_NOISE_SIDE = 1024  # of the tile of white noise that all lattices are cut from, each octave at its own offset
# Variance along one axis that is left of white noise after 0, 1, 2 ... subdivisions; then it stays.
_SMOOTHED = (1.0, 0.547, 0.495, 0.484, 0.481)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a lattice: the points ``y0 <= y < y1``, ``x0 <= x < x1``, anywhere, also below 0."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the box in an array that starts at 0, 0."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def moved(self, dy: int, dx: int) -> Box:
        """Return the box moved by `dy` rows and `dx` columns."""
        return Box(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def grown(self, n: int) -> Box:
        """Return the box with `n` more points on each side."""
        return Box(self.y0 - n, self.x0 - n, self.y1 + n, self.x1 + n)

    def coarser(self) -> Box:
        """Return the points of the next coarser lattice that `refine` needs to fill this box."""
        return Box(self.y0 // 2 - 1, self.x0 // 2 - 1, (self.y1 - 1) // 2 + 2, (self.x1 - 1) // 2 + 2)

    def grid(self) -> tuple[Float, Float]:
        """Return row numbers as a column and column numbers as a row, float32."""
        rows = np.arange(self.y0, self.y1, dtype=np.float32)
        return rows[:, None], np.arange(self.x0, self.x1, dtype=np.float32)[None, :]


def spectrum(coarsest: int, weights: tuple[float, ...]) -> Spectrum:
    """Return the spectrum of octaves with these weights, the first with lattice cells of ``2**coarsest`` points."""
    octaves = (*weights, *[0.0] * coarsest)[: coarsest + 1]
    variance = 0.0
    for i, weight in enumerate(octaves):
        variance += (weight * _SMOOTHED[min(coarsest - i, len(_SMOOTHED) - 1)]) ** 2
    return tuple(weight / variance**0.5 for weight in octaves)


_MIXING = ((0x85EBCA6B, 16), (0x7FEB352D, 15), (0x846CA68B, 16))  # factors and shifts of an integer hash


def _derive_key(*parts: int) -> int:
    """Return 32 bits that depend on all the parts."""
    key = 0x9E3779B9
    for part in parts:
        key ^= part & 0xFFFFFFFF
        for factor, shift in _MIXING:
            key = key * factor & 0xFFFFFFFF
            key ^= key >> shift
    return key


def _hash(key: int, *coords: NDArray[Any]) -> Bits:
    """Return 32 bits for each position, from integer coordinates that broadcast."""
    bits = np.full(1, key, np.uint32)
    for coord in coords:
        bits = bits ^ coord.astype(np.int64).astype(np.uint32)
        for factor, shift in _MIXING[:2]:
            bits = bits * np.uint32(factor)
            bits = bits ^ (bits >> np.uint32(shift))
    return bits


def _uniform(bits: Bits) -> Float:
    """Return hashed bits as numbers in [0, 1)."""
    return (bits >> np.uint32(8)).astype(np.float32) * (2.0**-24)


@cache
def _noise_tile() -> Float:
    rows = np.arange(_NOISE_SIDE)
    noise = _uniform(_hash(0x51ED270B, rows[:, None], rows[None, :]))
    return ((noise - 0.5) * (12**0.5)).astype(np.float32)


def _white_noise(box: Box, key: int) -> Float:
    """Return white noise over a box: uniform with mean 0 and variance 1."""
    rows = np.arange(box.y0 + (key & 1023), box.y1 + (key & 1023)) % _NOISE_SIDE
    columns = np.arange(box.x0 + (key >> 10 & 1023), box.x1 + (key >> 10 & 1023)) % _NOISE_SIDE
    return _noise_tile().take(rows, axis=0).take(columns, axis=1)


def refine(coarse: Float, box: Box) -> Float:
    """Return an array over ``box.coarser()``, refined to `box` by cubic B-spline subdivision."""
    values = coarse
    for axis in (0, 1):
        points = np.moveaxis(values, axis, 0)
        middle = points[1:-1]
        fine = np.empty_like(points, shape=(2 * len(middle), points.shape[1]))  # in the same order in memory
        fine[1::2] = (middle + points[2:]) * 0.5
        fine[0::2] = (points[:-2] + points[2:] + middle * 6) * 0.125
        values = np.moveaxis(fine, 0, axis)
    y, x = box.y0 % 2, box.x0 % 2
    return values[y : y + box.y1 - box.y0, x : x + box.x1 - box.x0]


def field(box: Box, key: int, spec: Spectrum, level: int = 0) -> Float:
    """Return a smooth random field over a box, about normal with mean 0 and variance 1.

    The box is in points of the field's own grid, refined `level` times; another key gives an unrelated field.
    """
    coarse = spec[:-1]
    values = refine(field(box.coarser(), key, coarse, level + 1), box) if coarse else np.zeros((), np.float32)
    return values + _white_noise(box, _derive_key(key, level)) * spec[-1] if spec[-1] else values


# Overpasses: when Sentinel-2 sees the granule, under which sun, and where the swaths of its three orbits end.

# Relative orbit, days after R008, hour and minute: neighbouring swaths are seen three days and ten minutes apart.
_ORBITS = ((8, 0, 10, 46), (94, 1, 11, 6), (51, 3, 10, 56))
_CYCLE = date(2023, 7, 9)  # a day on which S2A flew over on R008; it is back every 10 days, and S2B 5 days later
# Where an orbit's swath ends on the first row, as a share of the width, and on which side of that it is observed.
_SWATH_EDGES = {8: (0.42, 1), 94: (0.78, -1), 51: (1.10, -1)}
_TILT = 0.24  # columns that the edge runs to the west on one row to the south: the track of a descending orbit
_LATITUDE, _LONGITUDE = math.radians(43.8), 1.2


@dataclass(frozen=True, slots=True)
class Overpass:
    """One overpass of a satellite."""

    time: datetime  # start of sensing, UTC
    orbit: int  # relative orbit: 8, 51 or 94

    @property
    def stem(self) -> str:
        """Name of the scene without its asset: ``T31TCJ_20230709T104629``."""
        return f"{GRANULE}_{self.time:%Y%m%dT%H%M%S}"

    @property
    def day(self) -> int:
        """Day of the year, 1 to 366."""
        return self.time.timetuple().tm_yday


class Sun(NamedTuple):
    """Where the sun stands, in radians: above the horizon, and clockwise from north."""

    elevation: float
    azimuth: float


def overpasses(n: int, year: int) -> tuple[Overpass, ...]:
    """Return `n` overpasses, evenly picked: of April to September if they suffice, of the year, of several years."""
    first, last, candidates = date(year, 4, 1), date(year, 9, 30), list[Overpass]()
    while len(candidates) < n:
        candidates = []
        for since in range((first - _CYCLE).days, (last - _CYCLE).days + 1):
            day = _CYCLE + timedelta(days=since)
            for orbit, after, hour, minute in _ORBITS:
                if since % 5 == after:
                    second = 29 if since % 10 == after else 19  # S2A or S2B
                    sensed = datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=UTC)
                    candidates.append(Overpass(sensed, orbit))
        first, last = date(year, 1, 1), date(last.year + (last.month == 12), 12, 31)
    return tuple(candidates[(2 * i + 1) * len(candidates) // (2 * n)] for i in range(n))


def sun_position(overpass: Overpass) -> Sun:
    """Return where the sun stands over the middle of the granule."""
    declination = math.radians(23.44) * math.sin(2 * math.pi * (overpass.day - 81) / 365)
    angle = math.radians(15 * (overpass.time.hour + overpass.time.minute / 60 + _LONGITUDE / 15 - 12))
    sin_h = math.sin(_LATITUDE) * math.sin(declination) + math.cos(_LATITUDE) * math.cos(declination) * math.cos(angle)
    east = -math.cos(declination) * math.sin(angle)
    north = math.cos(_LATITUDE) * math.sin(declination) - math.sin(_LATITUDE) * math.cos(declination) * math.cos(angle)
    return Sun(math.asin(sin_h), math.atan2(east, north) % (2 * math.pi))


# Seasons: what the land looks like on a day of the year.

VARIANTS = 16  # ways a cover can look: four delays of the season by four tones of the ground

Cover = IntEnum(
    "Cover",
    "WATER BROADLEAF CONIFER HEDGE MEADOW CEREAL RAPE MAIZE SUNFLOWER VINEYARD FALLOW ROOF PAVED BRIGHT",
    start=0,
)

# Surface reflectance in per cent, in the order of BANDS: typical values of the Toulouse region.
_LOOKS = {
    "soil": (8.5, 11.5, 15.0, 21.0), "sprout": (6.5, 9.5, 10.5, 26.0), "green": (3.0, 6.3, 3.8, 40.0),
    "dense": (2.6, 5.2, 2.9, 46.0), "ripe": (9.5, 15.5, 19.5, 30.0), "stubble": (10.0, 14.0, 18.0, 26.0),
    "yellow": (4.5, 15.0, 13.0, 42.0), "sunny": (4.5, 11.0, 10.0, 38.0), "withered": (7.0, 9.5, 12.0, 20.0),
    "leaves": (2.2, 4.4, 2.5, 38.0), "fresh": (2.5, 5.8, 3.2, 42.0), "autumn": (2.9, 5.6, 6.8, 28.0),
    "bare": (4.2, 5.6, 6.3, 17.0), "needles": (2.0, 3.2, 2.2, 23.0), "grass": (3.5, 7.2, 5.0, 33.0),
    "straw": (7.0, 11.0, 12.5, 27.0), "vines": (6.0, 9.0, 9.5, 28.0), "clear": (4.0, 5.0, 3.6, 2.0),
    "muddy": (6.5, 9.5, 9.0, 4.5), "tiles": (11.0, 14.5, 19.5, 25.0), "concrete": (12.5, 13.5, 14.0, 18.0),
    "white": (27.0, 28.0, 29.0, 32.0),
}  # fmt: skip

# Days of the year and the look on them; between two days one turns into the other.
_CALENDAR = {
    Cover.WATER: "30 muddy, 130 muddy, 200 clear, 280 clear",
    Cover.BROADLEAF: "80 bare, 115 fresh, 160 leaves, 265 leaves, 300 autumn, 330 bare",
    Cover.CONIFER: "1 needles",
    Cover.HEDGE: "75 bare, 115 fresh, 180 leaves, 270 grass, 310 autumn, 335 bare",
    Cover.MEADOW: "20 grass, 110 green, 165 grass, 205 straw, 245 straw, 290 grass",
    Cover.CEREAL: "15 sprout, 75 green, 125 dense, 160 green, 183 ripe, 210 stubble, 250 soil, 325 soil",
    Cover.RAPE: "15 green, 85 green, 105 yellow, 122 yellow, 140 green, 175 ripe, 200 stubble, 245 soil, 290 sprout",
    Cover.MAIZE: "60 soil, 135 soil, 165 sprout, 195 dense, 245 green, 275 withered, 300 stubble",
    Cover.SUNFLOWER: "60 soil, 125 soil, 155 sprout, 185 green, 203 sunny, 225 green, 255 withered, 285 soil",
    Cover.VINEYARD: "90 stubble, 150 vines, 210 grass, 270 vines, 320 stubble",
    Cover.FALLOW: "60 grass, 100 soil, 170 straw, 230 soil, 300 sprout",
    Cover.ROOF: "1 tiles",
    Cover.PAVED: "1 concrete",
    Cover.BRIGHT: "1 white",
}
_WITHOUT_SEASONS = {Cover.WATER, Cover.ROOF, Cover.PAVED, Cover.BRIGHT}


@cache
def reflectances(day: int) -> Float:
    """Return the reflectance of each cover and variant on a day of the year, ``(covers * VARIANTS, bands)``, 0 to 1."""
    table = np.empty((len(Cover), VARIANTS, len(BANDS)), np.float32)
    for cover, calendar in _CALENDAR.items():
        entries = [entry.split() for entry in calendar.split(", ")]
        days, percents = [int(day) for day, _ in entries], np.array([_LOOKS[look] for _, look in entries])
        for variant in range(VARIANTS):
            delay = 0 if cover in _WITHOUT_SEASONS else (variant % 4 - 1.5) * 9
            tone = 0.84 + 0.11 * (variant // 4)
            for band in range(len(BANDS)):
                percent = np.interp(day - delay, days, percents[:, band], period=365)
                table[cover, variant, band] = percent * tone / 100
    return table.reshape(-1, len(BANDS))


# The land that does not change: hills, a river, parcels of fields, woods, roads and towns.

_HILLS = spectrum(10, (1.0, 0.75, 0.5, 0.32, 0.17, 0.08, 0.03))
_WARP = spectrum(8, (1.0, 0.5, 0.3, 0.12))
_WOODS = spectrum(7, (0.8, 1.0, 0.8, 0.5, 0.3, 0.2, 0.15, 0.1))
_GRAIN = spectrum(3, (0.6, 0.8, 1.0, 0.8))
_TOWNS = spectrum(5, (1.0, 0.8, 0.6, 0.4, 0.3, 0.3))

# Mean distance of the centres of districts (inside one, parcels lie in one direction), towns and ponds, in pixels.
_DISTRICT, _TOWN, _POND = 140, 400, 190

# Cumulated shares of what is grown on parcels, and of what stands on a plot in town.
_CROPS = (
    (0.33, Cover.CEREAL), (0.46, Cover.SUNFLOWER), (0.60, Cover.MAIZE), (0.66, Cover.RAPE), (0.86, Cover.MEADOW),
    (0.93, Cover.VINEYARD), (1.00, Cover.FALLOW),
)  # fmt: skip
_URBAN = (
    (0.38, Cover.ROOF), (0.60, Cover.PAVED), (0.63, Cover.BRIGHT), (0.86, Cover.MEADOW), (1.00, Cover.BROADLEAF),
)  # fmt: skip

# Standard deviation of the brightness inside each cover; in fields it is 0.04.
_ROUGH = {
    Cover.BROADLEAF: 0.13, Cover.CONIFER: 0.15, Cover.HEDGE: 0.15, Cover.MEADOW: 0.06, Cover.VINEYARD: 0.07,
    Cover.ROOF: 0.16, Cover.PAVED: 0.10, Cover.BRIGHT: 0.10, Cover.WATER: 0.02,
}  # fmt: skip
_ROUGHNESS = np.array([_ROUGH.get(cover, 0.04) for cover in Cover], np.float32)


class Land(NamedTuple):
    """Maps of an area, compact enough to keep those of the whole granule."""

    cover: NDArray[np.uint8]  # a Cover times VARIANTS, plus the variant: the row in `reflectances`
    texture: NDArray[np.int8]  # brightness against the mean of the cover, in 1/256
    slope: NDArray[np.int8]  # slope towards the sun at 10:50, in 1/256; falls away from it where negative

    def part(self, box: Box) -> Land:
        """Return views of the maps in a box."""
        return Land(self.cover[box.slices], self.texture[box.slices], self.slope[box.slices])


def render_land(box: Box, seed: int) -> Land:
    """Return the land in a box of pixels of the granule: painted from the ground up, later covers hide earlier ones."""
    height = field(box.grown(1), _derive_key(seed, 1), _HILLS)
    down, right = height[2:, 1:-1] - height[:-2, 1:-1], height[1:-1, 2:] - height[1:-1, :-2]
    slope = -(down * 0.87 + right * 0.5) * 3200  # towards the south-south-east
    height = height[1:-1, 1:-1]

    # Borders of fields, roads and the river follow a warped grid: nothing is quite straight.
    rows, columns = box.grid()
    bend_y, bend_x = (field(box, _derive_key(seed, 2 + i), _WARP) * 14 for i in range(2))
    y, x = rows + bend_y, columns + bend_x
    cover, variant, texture = _render_parcels(y, x, seed)

    # Woods on the higher ground, pines among them.
    woods = field(box, _derive_key(seed, 20), _WOODS) + 0.5 * height > 0.95
    cover[woods] = Cover.BROADLEAF
    cover[woods & (field(box, _derive_key(seed, 21), _WOODS) > 0.8)] = Cover.CONIFER
    texture[woods] *= 0.3

    # Roads along some borders of wide districts, and a motorway in long curves from west to east.
    one, other, border = _nearest(y, x, 2 * _DISTRICT, _derive_key(seed, 25))
    cover[(border < 0.7) & (_uniform(_hash(26, one ^ other)) < 0.7)] = Cover.PAVED
    motorway = 330 + 0.22 * x + 60 * np.sin(x / 310) + 25 * np.sin(x / 130 + 1)
    cover[np.abs(y - motorway) < 1.3] = Cover.PAVED

    # Towns, denser towards their centres, made of plots of two pixels, with streets.
    distance, bits = _scattered(box, _TOWN, _derive_key(seed, 30))
    radius = 14 + 80 * _uniform(_hash(6, bits)) ** 3
    density = 1.25 - distance / radius + 0.3 * field(box, _derive_key(seed, 31), _TOWNS)
    plot = _hash(_derive_key(seed, 32), rows // 2, columns // 2)
    built = _uniform(plot) * 0.6 < density - 0.2
    cover[built] = _choose(_uniform(_hash(7, plot)), _URBAN)[built]
    variant[built] = (_hash(8, plot) % np.uint32(VARIANTS)).astype(np.uint8)[built]
    streets = ((rows % 9 < 1) | (columns % 12 < 1)) & (density > 0.45)
    cover[built & streets] = Cover.PAVED

    # A river from the south-east to the north-west between trees, and ponds in the hollows.
    along, across = (x + y) * 0.7071, (x - y) * 0.7071
    phase = np.float32(2 * np.pi * (_derive_key(seed, 40) % 1000) / 1000)
    course = 90 * np.sin(along / 190 + phase) + 38 * np.sin(along / 71 + 2 * phase) + 16 * np.sin(along / 33)
    away = np.abs(across - course - 40)
    cover[away < 11 + 4 * height] = Cover.HEDGE
    distance, bits = _scattered(box, _POND, _derive_key(seed, 41))
    ponds = distance < 8 * _uniform(_hash(9, bits)) * (1 - np.minimum(height, 1))
    water = (away < 6.5 + 2 * np.sin(along / 57)) | ponds
    cover[water], variant[water], texture[water] = Cover.WATER, 8, 0

    texture += field(box, _derive_key(seed, 5), _GRAIN) * _ROUGHNESS[cover]
    return Land(
        cover * np.uint8(VARIANTS) + variant,
        np.clip(texture * 256, -110, 127).astype(np.int8),
        np.clip(slope, -100, 100).astype(np.int8),
    )


def _render_parcels(y: Float, x: Float, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Float]:
    """Return cover, variant and texture of parcels: in each district in rows of one direction."""
    district, _, _ = _nearest(y, x, _DISTRICT, _derive_key(seed, 10))
    angle = _uniform(_hash(11, district)) * np.pi
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = x * cos + y * sin, y * cos - x * sin
    depth = 11 + 13 * _uniform(_hash(12, district))
    row, beside_row = _split(across, depth, _hash(13, district))
    strip = _hash(14, district, row)
    width = _uniform(strip)
    column, beside_column = _split(along + 40 * width, depth * (0.8 + 2.4 * width), strip)
    parcel = _hash(15, strip, column)
    tone = _uniform(parcel)
    cover = _choose(_uniform(_hash(16, parcel)), _CROPS)
    beside = np.minimum(beside_row, beside_column)
    cover[beside < 0.4] = Cover.MEADOW
    cover[(beside < 0.55) & (tone < 0.3)] = Cover.HEDGE
    furrows = np.sin(across * 2.1) * tone * 0.05
    return cover, (parcel % np.uint32(VARIANTS)).astype(np.uint8), (tone - 0.5) * 0.16 + furrows


def _split(u: Float, width: Float, bits: Bits) -> tuple[NDArray[np.int32], Float]:
    """Cut an axis into pieces of about `width`; return the piece's number and the distance to its nearer end."""
    cell = np.floor(u / width)
    inside = u / width - cell
    piece = cell.astype(np.int32)
    cut = 0.6 * _uniform(_hash(5, bits, piece))
    early = inside < cut
    next_cut = 0.6 * _uniform(_hash(5, bits, np.where(early, piece - 1, piece + 1)))
    start = np.where(early, next_cut - 1, cut)
    stop = np.where(early, cut, next_cut + 1)
    return piece - early, np.minimum(inside - start, stop - inside) * width


def _nearest(y: Float, x: Float, spacing: int, key: int) -> tuple[Bits, Bits, Float]:
    """Return the bits of the nearest and the second nearest of jittered points, and the distance to their border."""
    row, column = (np.floor(v / spacing).astype(np.int32) for v in (y, x))
    row0, column0 = int(row.min()) - 1, int(column.min()) - 1
    rows, columns = np.arange(row0, row.max() + 2), np.arange(column0, column.max() + 2)
    bits = _hash(key, rows[:, None], columns[None, :])
    point_y = (rows[:, None] + _uniform(bits)).astype(np.float32).ravel() * spacing
    point_x = (columns[None, :] + _uniform(_hash(1, bits))).astype(np.float32).ravel() * spacing
    own = (row - row0) * np.int32(len(columns)) + (column - column0)
    # the points of the nine cells around each pixel
    index = np.stack([own + np.int32(dy * len(columns) + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    distance = (point_y.take(index) - y) ** 2
    distance += (point_x.take(index) - x) ** 2
    found = []
    for _ in range(2):
        nearest = distance.argmin(0)[None]
        found += [np.take_along_axis(values, nearest, 0)[0] for values in (index, distance)]
        np.put_along_axis(distance, nearest, np.inf, 0)
    first, best, second, next_best = found
    border = ((np.sqrt(next_best) - np.sqrt(best)) * 0.5).astype(np.float32)
    return bits.ravel().take(first), bits.ravel().take(second), border


def _scattered(box: Box, spacing: int, key: int) -> tuple[Float, Bits]:
    """Return the distance to the point scattered in a pixel's own cell of a lattice, never near its sides; its bits."""
    rows, columns = box.grid()
    row, column = np.floor(rows / spacing), np.floor(columns / spacing)
    bits = _hash(key, row, column)
    away_y = rows - (row + 0.35 + 0.3 * _uniform(bits)) * spacing
    away_x = columns - (column + 0.35 + 0.3 * _uniform(_hash(1, bits))) * spacing
    return np.hypot(away_y, away_x).astype(np.float32), bits


def _choose(u: Float, shares: tuple[tuple[float, Cover], ...]) -> NDArray[np.uint8]:
    """Return the covers that uniform numbers fall on."""
    steps = np.arange(1024) / 1024
    table = np.array([next(cover for share, cover in shares if step < share) for step in steps], np.uint8)
    return table[(u * 1024).astype(np.int16)]


# The sky over the land: clouds of several kinds, their shadows on the ground, haze.

_CUMULUS = spectrum(11, (0.30, 0.30, 0.35, 0.45, 0.8, 1.0, 0.8, 0.48, 0.28, 0.16, 0.09, 0.05))
_BROKEN = spectrum(11, (0.9, 0.7, 0.5, 0.45, 0.5, 0.6, 0.5, 0.33, 0.2, 0.11, 0.06, 0.03))
_BANK = spectrum(11, (1.0, 0.9, 0.7, 0.5, 0.4, 0.3, 0.22, 0.15, 0.1, 0.06, 0.03, 0.015))
_HAZE = spectrum(11, (1.0, 0.8, 0.7, 0.5, 0.3, 0.2))


@dataclass(frozen=True, slots=True)
class CloudType:
    """A kind of clouds, and how often the sky has it."""

    share: float  # share of scenes that have it or one of the types before it
    sizes: Spectrum  # sizes of the clouds
    cover: tuple[float, float]  # least and most share of the sky that is cloudy
    sharpness: float  # optical thickness gained on the way into a cloud
    height: float  # mean height above ground, metres
    top: float  # reflectance of the thickest clouds


# From clear to overcast; the last is fog, grey all over.
_CLOUD_TYPES = (
    CloudType(0.28, _CUMULUS, (0.0005, 0.02), 7.0, 1400, 0.75),
    CloudType(0.52, _CUMULUS, (0.04, 0.30), 7.0, 1400, 0.75),
    CloudType(0.72, _BROKEN, (0.30, 0.65), 5.0, 1900, 0.70),
    CloudType(0.87, _BANK, (0.60, 0.92), 3.5, 2400, 0.65),
    CloudType(0.96, _BANK, (0.97, 0.9995), 2.5, 1100, 0.70),
    CloudType(1.00, _BANK, (0.97, 0.9995), 1.5, 700, 0.34),
)

# Steps of this share of a circle never come close to each other: a few scenes in a row have all kinds of weather.
_GOLDEN = 0.6180339887
_CLOUD_EDGE = 0.25  # reflectance of a cloud where it is thinnest
_LIT = 5  # distance over which a cloud's top is compared with its neighbourhood to find its lit side, in pixels


@dataclass(frozen=True, slots=True)
class Weather:
    """The state of the sky in one scene."""

    key: int  # which clouds of their type
    clouds: CloudType
    cover: float  # expected share of the sky that is cloudy, 0 to 1
    height: float  # height of the clouds above ground, metres
    haze: float  # opacity of the haze where it is thickest, 0 to 1
    light: float  # brightness of the land against `reflectances`, about 1
    veil: float  # red light that clear air adds, as a reflectance; blue gets three times that
    sun: Sun


@dataclass(frozen=True, slots=True)
class Sky:
    """What lies between the sun, the land and the satellite; shares and opacities are 0 to 1."""

    opacity: Float  # share of a pixel's light that comes from a cloud
    brightness: Float  # reflectance of the cloud
    shadow: Float  # share of the direct light that a cloud keeps from the ground
    haze: Float  # opacity of the haze


def weather_of(overpass: Overpass, index: int, seed: int) -> Weather:
    """Return the weather of the `index`-th scene of a series."""
    key = _derive_key(seed, 50, overpass.time.toordinal())
    quantile = (_derive_key(seed, 51) / 2**32 + index * _GOLDEN) % 1
    clouds = next(clouds for clouds in _CLOUD_TYPES if quantile < clouds.share)
    draws = [_derive_key(key, i) / 2**32 for i in range(5)]
    return Weather(
        key=key,
        clouds=clouds,
        cover=clouds.cover[0] + (clouds.cover[1] - clouds.cover[0]) * draws[0],
        height=clouds.height * (0.7 + 0.6 * draws[1]),
        haze=0.02 + 0.38 * draws[2] ** 4,
        light=1.08 + 0.1 * draws[3],
        veil=0.004 + 0.008 * draws[4],
        sun=sun_position(overpass),
    )


def render_sky(box: Box, weather: Weather) -> Sky:
    """Return the sky over a box of pixels."""
    wide = _thickness(box.grown(_LIT), weather)
    thickness = wide[_LIT:-_LIT, _LIT:-_LIT]
    lit = thickness - wide[2 * _LIT :, _LIT + _LIT // 2 : -_LIT + _LIT // 2]  # against that towards the sun
    gain = weather.clouds.top - _CLOUD_EDGE
    brightness = _CLOUD_EDGE + gain * (1 - np.exp(-1.5 * thickness) + 0.6 * lit)
    reach = weather.height / 10 / math.tan(weather.sun.elevation)
    down, right = round(-reach * math.cos(weather.sun.azimuth)), round(reach * math.sin(weather.sun.azimuth))
    # the share of light that clouds keep from what lies behind them, seen by the satellite and by the sun
    opacity, shadow = (
        1 - np.exp(clouds * -weather.clouds.sharpness)
        for clouds in (thickness, _thickness(box.moved(down, right), weather))
    )
    haze = field(box, _derive_key(weather.key, 2), _HAZE) * 0.5 + 0.5
    return Sky(opacity, brightness, shadow, np.clip(haze, 0, 1.5) * weather.haze)


def _thickness(box: Box, weather: Weather) -> Float:
    """Return the thickness of clouds, 0 where there are none: a field above the quantile of the clear sky."""
    threshold = NormalDist().inv_cdf(1 - weather.cover)
    thickness: Float = np.maximum(field(box, _derive_key(weather.key, 1), weather.clouds.sizes) - threshold, 0)
    return thickness


# A scene: land under a sky, seen by an instrument.

_BRIGHTEST = 0.3558  # reflectance that true colour shows as 255, as in ESA's products
_CLOUDY = 0.25  # opacity from which a pixel may be brighter than any land is
# Each per band, in the order of BANDS.
_HAZE_COLOUR = (0.30, 0.275, 0.255, 0.30)  # reflectance of haze
_AIR = (3.0, 1.6, 1.0, 0.4)  # strength of the veil of clear air against that in red
_SHADE = (0.52, 0.58, 0.64, 0.74)  # light that a full shadow takes away
_CLOUD_COLOUR = (1.02, 1.0, 0.99, 1.0)
_INSTRUMENT_NOISE = 0.0016  # standard deviation, the same in all


def render(
    box: Box, land: Land, overpass: Overpass, weather: Weather, *, size: int, assets: tuple[str, ...]
) -> dict[str, NDArray[Any]]:
    """Return the pixels of each asset in a box of a scene of ``size x size`` pixels, ``(band, y, x)``.

    SCL has half the rows and columns; the corner of the box must have even coordinates.
    """
    sky = render_sky(box, weather)
    slant = 0.6 / math.tan(weather.sun.elevation) / 256
    relief = land.texture * np.float32(1 / 256) + land.slope * np.float32(slant) + np.float32(1)
    # Where the swath ends: no overpass repeats the last exactly.
    share, side = _SWATH_EDGES[overpass.orbit]
    jitter = _derive_key(overpass.time.toordinal(), overpass.orbit) % 41 - 20
    rows, columns = box.grid()
    light, observed = {}, {}
    for i, band in enumerate(BANDS):
        # Each band has its own detectors, some pixels off the others'.
        edge = share * size + jitter * size / 10980 * 3 + 2 * i - _TILT * rows
        observed[band] = (columns - edge) * side >= 0
        if band not in assets and ("TCI" not in assets or band == "B08"):
            continue
        value = (reflectances(overpass.day)[:, i] * weather.light).take(land.cover)
        value *= relief
        value *= 1 - _SHADE[i] * sky.shadow
        value += weather.veil * _AIR[i]
        value += sky.haze * (_HAZE_COLOUR[i] - value)
        value += sky.opacity * (sky.brightness * _CLOUD_COLOUR[i] - value)
        value += _white_noise(box, _derive_key(weather.key, 3, i)) * _INSTRUMENT_NOISE
        light[band] = value

    pixels: dict[str, NDArray[Any]] = {}
    for band in (band for band in light if band in assets):
        scaled = np.clip(light[band] * 10000, 1, 20000)
        pixels[band] = np.where(observed[band], np.rint(scaled).astype(np.uint16), 0)[None]
    if "TCI" in assets:
        limit = np.where(sky.opacity < _CLOUDY, np.float32(254), np.float32(255))
        pixels["TCI"] = np.empty((3, *limit.shape), np.uint8)
        for out, band in zip(pixels["TCI"], ("B04", "B03", "B02"), strict=True):
            scaled = light[band] * (254 / _BRIGHTEST) + 1
            out[...] = np.where(observed[band], np.rint(np.clip(scaled, 1, limit)).astype(np.uint8), 0)
    if "SCL" in assets:
        # pixels of 20 m, with the codes of Sen2Cor
        table = reflectances(overpass.day)
        red, infrared = table[:, BANDS.index("B04")], table[:, BANDS.index("B08")]
        is_vegetated = (infrared - red) / (infrared + red) > 0.45
        ground = np.where(is_vegetated, 4, 5).astype(np.uint8)
        ground[Cover.WATER * VARIANTS : (Cover.WATER + 1) * VARIANTS] = 6
        classes = ground.take(land.cover[::2, ::2])
        classes[_halved(sky.shadow) > 0.4] = 3
        classes[_halved(sky.haze) > 0.15] = 10  # thin cirrus
        classes[_halved((sky.opacity >= _CLOUDY).astype(np.float32)) > 0] = 8
        classes[_halved(sky.opacity) > 0.6] = 9
        classes[_halved(np.logical_and.reduce(list(observed.values())).astype(np.float32)) < 1] = 0
        pixels["SCL"] = classes[None]
    return pixels


def _halved(a: Float) -> Float:
    """Return the means of squares of 2 x 2 pixels; what is missing of a square at the end repeats the last pixel."""
    height, width = a.shape
    a = np.pad(a, ((0, height % 2), (0, width % 2)), mode="edge")
    return (a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2]) * 0.25
