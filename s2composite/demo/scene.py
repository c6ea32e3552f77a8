"""One scene: land under a sky, seen by an instrument. From the maps to the pixels of each asset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.demo.noise import Box, Float, key_of, white
from s2composite.demo.passes import Pass, observed
from s2composite.demo.seasons import BANDS, VARIANTS, Cover, reflectances
from s2composite.demo.sky import Sky, Weather, render_sky
from s2composite.demo.terrain import Land

__all__ = ["ASSETS", "View", "render"]

ASSETS = ("TCI", "SCL", *BANDS)
"""Products a scene can have: true colour (uint8), scene classification (uint8, 20 m), reflectance x 10000 (uint16)."""

_BRIGHTEST = 0.3558
"""Reflectance that true colour shows as 255, as in ESA's products."""

_HAZE_COLOUR = (0.30, 0.275, 0.255, 0.30)
_AIR = (3.0, 1.6, 1.0, 0.4)
_SHADE = (0.52, 0.58, 0.64, 0.74)
_CLOUD_COLOUR = (1.02, 1.0, 0.99, 1.0)
_NOISE = 0.0016
# Each per band, in the order of BANDS: haze's reflectance; the veil's strength against red's; light that a full shadow
# takes away; tint of clouds; standard deviation of the instrument's noise.

_CLOUDY = 0.25
"""Opacity from which a pixel may be brighter than any land is."""


@dataclass(frozen=True, slots=True)
class View:
    """What it takes to see a scene: who, when, and under which sky."""

    scene: Pass
    """The overflight."""

    weather: Weather
    """The sky."""

    size: int
    """Rows and columns of the whole scene, for the swath's edge."""

    assets: tuple[str, ...]
    """Which of ASSETS to make."""


def render(view: View, box: Box, land: Land) -> dict[str, NDArray[Any]]:
    """Return the pixels of each asset in a box, TCI as ``(3, y, x)``, the others ``(y, x)``.

    SCL has half the rows and columns; the corner of the box must have even coordinates.
    """
    sky = render_sky(box, view.weather)
    seen = {band: observed(box, view.scene, BANDS.index(band), view.size) for band in BANDS}
    wanted = [band for band in BANDS if band in view.assets or ("TCI" in view.assets and band != "B08")]
    light = {band: _reflectance(view, box, land, sky, BANDS.index(band)) for band in wanted}
    pixels: dict[str, NDArray[Any]] = {
        band: _integers(light[band], seen[band]) for band in wanted if band in view.assets
    }
    if "TCI" in view.assets:
        limit = np.where(sky.opacity < _CLOUDY, np.float32(254), np.float32(255))
        pixels["TCI"] = np.stack([_display(light[band], seen[band], limit) for band in ("B04", "B03", "B02")])
    if "SCL" in view.assets:
        pixels["SCL"] = _classes(land, sky, np.logical_and.reduce(list(seen.values())), view.scene.day)
    return pixels


def _reflectance(view: View, box: Box, land: Land, sky: Sky, band: int) -> Float:
    """Return what reaches the satellite in a band."""
    weather = view.weather
    slant = 0.6 / math.tan(weather.sun.elevation) / 256
    relief = land.texture * np.float32(1 / 256) + land.slope * np.float32(slant) + np.float32(1)
    value = (reflectances(view.scene.day)[:, band] * np.float32(weather.light)).take(land.cover)
    value *= relief
    value *= 1 - np.float32(_SHADE[band]) * sky.shadow
    value += np.float32(weather.veil * _AIR[band])
    value += sky.haze * (np.float32(_HAZE_COLOUR[band]) - value)
    value += sky.opacity * (sky.brightness * np.float32(_CLOUD_COLOUR[band]) - value)
    value += white(box, key_of(weather.key, 3, band)) * np.float32(_NOISE)
    return value


def _integers(value: Float, seen: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Return reflectance x 10000, 0 where nothing was observed."""
    scaled = np.clip(value * np.float32(10000), 1, 20000)
    return np.where(seen, np.rint(scaled).astype(np.uint16), 0)


def _display(value: Float, seen: NDArray[np.bool_], limit: Float) -> NDArray[np.uint8]:
    """Return a band of true colour: 1 to 255, 0 where nothing was observed."""
    scaled = value * np.float32(254 / _BRIGHTEST) + np.float32(1)
    return np.where(seen, np.rint(np.clip(scaled, 1, limit)).astype(np.uint8), 0)


def _classes(land: Land, sky: Sky, seen: NDArray[np.bool_], day: int) -> NDArray[np.uint8]:
    """Return the scene classification of pixels of 20 m, with the codes of Sen2Cor."""
    cloud, shade, haze = (_halved(a) for a in (sky.opacity, sky.shadow, sky.haze))
    classes = _ground(day).take(land.cover[::2, ::2])
    classes[shade > 0.4] = 3
    classes[haze > 0.15] = 10
    classes[_halved((sky.opacity >= _CLOUDY).astype(np.float32)) > 0] = 8
    classes[cloud > 0.6] = 9
    classes[_halved(seen.astype(np.float32)) < 1] = 0
    return classes


def _ground(day: int) -> NDArray[np.uint8]:
    """Return the class of each cover under a clear sky: water 6, vegetation 4, not vegetated 5."""
    table = reflectances(day)
    red, infrared = table[:, BANDS.index("B04")], table[:, BANDS.index("B08")]
    classes = np.where((infrared - red) / (infrared + red) > 0.45, 4, 5).astype(np.uint8)
    classes[Cover.WATER * VARIANTS : (Cover.WATER + 1) * VARIANTS] = 6
    return classes


def _halved(a: Float) -> Float:
    """Return the means of squares of 2 x 2 pixels; what is missing of a square at the end repeats the last pixel."""
    height, width = a.shape
    a = np.pad(a, ((0, height % 2), (0, width % 2)), mode="edge")
    return (a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2]) * np.float32(0.25)
