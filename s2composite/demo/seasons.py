"""What the land looks like on a day of the year: reflectances of each cover and variant in the bands of 10 m."""

from __future__ import annotations

from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["BANDS", "VARIANTS", "Cover", "reflectances"]

BANDS = ("B02", "B03", "B04", "B08")
"""Blue, green, red, near infrared."""

VARIANTS = 16
"""Ways a cover can look: four delays of the season by four tones of the ground."""


class Cover(IntEnum):
    """What grows or stands on a pixel."""

    WATER = 0
    BROADLEAF = 1
    CONIFER = 2
    HEDGE = 3
    MEADOW = 4
    CEREAL = 5
    RAPE = 6
    MAIZE = 7
    SUNFLOWER = 8
    VINEYARD = 9
    FALLOW = 10
    ROOF = 11
    PAVED = 12
    BRIGHT = 13


# Surface reflectance in per cent, in the order of BANDS: typical values of the Toulouse region.
_SOIL = (8.5, 11.5, 15.0, 21.0)
_SPROUT = (6.5, 9.5, 10.5, 26.0)
_GREEN = (3.0, 6.3, 3.8, 40.0)
_DENSE = (2.6, 5.2, 2.9, 46.0)
_RIPE = (9.5, 15.5, 19.5, 30.0)
_STUBBLE = (10.0, 14.0, 18.0, 26.0)
_YELLOW = (4.5, 15.0, 13.0, 42.0)
_SUNNY = (4.5, 11.0, 10.0, 38.0)
_WITHERED = (7.0, 9.5, 12.0, 20.0)
_LEAVES = (2.2, 4.4, 2.5, 38.0)
_FRESH = (2.5, 5.8, 3.2, 42.0)
_AUTUMN = (2.9, 5.6, 6.8, 28.0)
_BARE = (4.2, 5.6, 6.3, 17.0)
_NEEDLES = (2.0, 3.2, 2.2, 23.0)
_GRASS = (3.5, 7.2, 5.0, 33.0)
_STRAW = (7.0, 11.0, 12.5, 27.0)
_VINES = (6.0, 9.0, 9.5, 28.0)
_CLEAR = (4.0, 5.0, 3.6, 2.0)
_MUDDY = (6.5, 9.5, 9.0, 4.5)
_TILES = (11.0, 14.5, 19.5, 25.0)
_CONCRETE = (12.5, 13.5, 14.0, 18.0)
_WHITE = (27.0, 28.0, 29.0, 32.0)

_YEAR: dict[Cover, tuple[tuple[int, tuple[float, float, float, float]], ...]] = {
    Cover.WATER: ((30, _MUDDY), (130, _MUDDY), (200, _CLEAR), (280, _CLEAR)),
    Cover.BROADLEAF: ((80, _BARE), (115, _FRESH), (160, _LEAVES), (265, _LEAVES), (300, _AUTUMN), (330, _BARE)),
    Cover.CONIFER: ((1, _NEEDLES),),
    Cover.HEDGE: ((75, _BARE), (115, _FRESH), (180, _LEAVES), (270, _GRASS), (310, _AUTUMN), (335, _BARE)),
    Cover.MEADOW: ((20, _GRASS), (110, _GREEN), (165, _GRASS), (205, _STRAW), (245, _STRAW), (290, _GRASS)),
    Cover.CEREAL: ((15, _SPROUT), (75, _GREEN), (125, _DENSE), (160, _GREEN), (183, _RIPE), (210, _STUBBLE),
                   (250, _SOIL), (325, _SOIL)),
    Cover.RAPE: ((15, _GREEN), (85, _GREEN), (105, _YELLOW), (122, _YELLOW), (140, _GREEN), (175, _RIPE),
                 (200, _STUBBLE), (245, _SOIL), (290, _SPROUT)),
    Cover.MAIZE: ((60, _SOIL), (135, _SOIL), (165, _SPROUT), (195, _DENSE), (245, _GREEN), (275, _WITHERED),
                  (300, _STUBBLE)),
    Cover.SUNFLOWER: ((60, _SOIL), (125, _SOIL), (155, _SPROUT), (185, _GREEN), (203, _SUNNY), (225, _GREEN),
                      (255, _WITHERED), (285, _SOIL)),
    Cover.VINEYARD: ((90, _STUBBLE), (150, _VINES), (210, _GRASS), (270, _VINES), (320, _STUBBLE)),
    Cover.FALLOW: ((60, _GRASS), (100, _SOIL), (170, _STRAW), (230, _SOIL), (300, _SPROUT)),
    Cover.ROOF: ((1, _TILES),),
    Cover.PAVED: ((1, _CONCRETE),),
    Cover.BRIGHT: ((1, _WHITE),),
}  # fmt: skip
"""Calendar of each cover: days of the year and the look on them; between two days one turns into the other."""

_LIVING = frozenset(_YEAR) - {Cover.WATER, Cover.ROOF, Cover.PAVED, Cover.BRIGHT}


@cache
def reflectances(day: int) -> NDArray[np.float32]:
    """Return the reflectance of each cover and variant on a day of the year.

    Parameters
    ----------
    day
        1 to 366.

    Returns
    -------
    numpy.ndarray
        ``(covers * VARIANTS, 4)`` float32, 0 to 1, in the order of `BANDS`; the row is that of `Land.cover`.
    """
    table = np.empty((len(Cover), VARIANTS, len(BANDS)), np.float32)
    for cover in Cover:
        for variant in range(VARIANTS):
            delay = (variant % 4 - 1.5) * 9 if cover in _LIVING else 0
            tone = 0.84 + 0.11 * (variant // 4)
            table[cover, variant] = _look(cover, day - delay) * tone / 100
    return table.reshape(-1, len(BANDS))


def _look(cover: Cover, day: float) -> NDArray[np.float64]:
    days = [d for d, _ in _YEAR[cover]]
    looks = np.array([look for _, look in _YEAR[cover]])
    return np.array([np.interp(day, days, looks[:, band], period=365) for band in range(len(BANDS))])
