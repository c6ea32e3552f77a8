"""When Sentinel-2 sees the granule T31TCJ, under which sun, and where the swaths of its three orbits end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from s2composite.demo.noise import Box, key_of

__all__ = ["GRANULE", "Pass", "Sun", "observed", "passes", "sun_at"]

GRANULE = "T31TCJ"
"""The granule all scenes are of: Toulouse and the hills to its west."""

_ORBITS = ((8, 0, 10, 46), (94, 1, 11, 6), (51, 3, 10, 56))
"""Relative orbit, days after R008, hour and minute: neighbouring swaths are seen three days and ten minutes apart."""

_CYCLE = date(2023, 7, 9)
"""A day on which S2A flew over on R008; it is back every 10 days, and S2B 5 days later."""

_SEASON = ((4, 1), (9, 30))
"""First and last month and day of the season that few scenes are taken from."""

_EDGES = {8: (0.42, 1), 94: (0.78, -1), 51: (1.10, -1)}
"""Where an orbit's swath ends on the first row, as a share of the width, and on which side of that it is observed."""

_TILT = 0.24
"""How far the edge of a swath runs to the west on one pixel to the south: the ground track of a descending orbit."""

_LATITUDE, _LONGITUDE = math.radians(43.8), 1.2


@dataclass(frozen=True, slots=True)
class Pass:
    """One overflight."""

    time: datetime
    """Start of sensing, UTC."""

    orbit: int
    """Relative orbit: 8, 51 or 94."""

    @property
    def stem(self) -> str:
        """Name of the scene without its asset: ``T31TCJ_20230709T104629``."""
        return f"{GRANULE}_{self.time:%Y%m%dT%H%M%S}"

    @property
    def day(self) -> int:
        """Day of the year, 1 to 366."""
        return self.time.timetuple().tm_yday


@dataclass(frozen=True, slots=True)
class Sun:
    """Where the sun stands."""

    elevation: float
    """Radians above the horizon."""

    azimuth: float
    """Radians clockwise from north."""


def passes(n: int, year: int) -> tuple[Pass, ...]:
    """Return `n` overflights, evenly picked: of April to September if they suffice, of the year, of several years."""
    (m0, d0), (m1, d1) = _SEASON
    last, found = year, _between(date(year, m0, d0), date(year, m1, d1))
    if len(found) < n:
        found = _between(date(year, 1, 1), date(year, 12, 31))
    while len(found) < n:
        last += 1
        found += _between(date(last, 1, 1), date(last, 12, 31))
    return tuple(found[(2 * i + 1) * len(found) // (2 * n)] for i in range(n))


def _between(first: date, last: date) -> list[Pass]:
    days = (first + timedelta(days=i) for i in range((last - first).days + 1))
    return [_pass(day, *orbit) for day in days for orbit in _ORBITS if (day - _CYCLE).days % 5 == orbit[1]]


def _pass(day: date, orbit: int, after: int, hour: int, minute: int) -> Pass:
    second = 29 if (day - _CYCLE).days % 10 == after else 19
    return Pass(datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=UTC), orbit)


def sun_at(scene: Pass) -> Sun:
    """Return where the sun stands over the middle of the granule."""
    declination = math.radians(23.44) * math.sin(2 * math.pi * (scene.day - 81) / 365)
    hours = scene.time.hour + scene.time.minute / 60 + _LONGITUDE / 15 - 12
    turned = math.radians(15 * hours)
    sin_h = math.sin(_LATITUDE) * math.sin(declination) + math.cos(_LATITUDE) * math.cos(declination) * math.cos(turned)
    east = -math.cos(declination) * math.sin(turned)
    north = math.cos(_LATITUDE) * math.sin(declination) - math.sin(_LATITUDE) * math.cos(declination) * math.cos(turned)
    return Sun(math.asin(sin_h), math.atan2(east, north) % (2 * math.pi))


def observed(box: Box, scene: Pass, band: int, size: int) -> NDArray[np.bool_]:
    """Return where a scene of ``size x size`` pixels sees the ground, ``(y, x)``.

    Each band has its own detectors, so its edge is a few pixels off the others', and no pass repeats the last exactly.
    """
    share, side = _EDGES[scene.orbit]
    jitter = key_of(scene.time.toordinal(), scene.orbit) % 41 - 20
    rows, columns = box.grid()
    edge = share * size + jitter * size / 10980 * 3 + 2 * band - _TILT * rows
    return (columns - edge) * side >= 0
