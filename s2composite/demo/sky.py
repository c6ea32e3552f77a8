"""The sky over the land: clouds of several kinds, their shadows on the ground, haze, and how the light changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from s2composite.demo.noise import Box, Float, Spectrum, field, key_of, spectrum
from s2composite.demo.passes import Pass, Sun, sun_at

__all__ = ["Sky", "Weather", "render_sky", "weather_of"]

_CUMULUS = spectrum(11, (0.30, 0.30, 0.35, 0.45, 0.8, 1.0, 0.8, 0.48, 0.28, 0.16, 0.09, 0.05))
_BROKEN = spectrum(11, (0.9, 0.7, 0.5, 0.45, 0.5, 0.6, 0.5, 0.33, 0.2, 0.11, 0.06, 0.03))
_BANK = spectrum(11, (1.0, 0.9, 0.7, 0.5, 0.4, 0.3, 0.22, 0.15, 0.1, 0.06, 0.03, 0.015))
_HAZE = spectrum(11, (1.0, 0.8, 0.7, 0.5, 0.3, 0.2))


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of weather."""

    share: float
    """Share of scenes that have it or one of the kinds before it."""

    clouds: Spectrum
    """Sizes of the clouds."""

    cover: tuple[float, float]
    """Least and most share of the sky that is cloudy."""

    sharpness: float
    """Optical thickness gained on the way into a cloud."""

    height: float
    """Mean height above ground, metres."""

    top: float
    """Reflectance of the thickest clouds."""


_KINDS = (
    _Kind(0.28, _CUMULUS, (0.0005, 0.02), 7.0, 1400, 0.75),
    _Kind(0.52, _CUMULUS, (0.04, 0.30), 7.0, 1400, 0.75),
    _Kind(0.72, _BROKEN, (0.30, 0.65), 5.0, 1900, 0.70),
    _Kind(0.87, _BANK, (0.60, 0.92), 3.5, 2400, 0.65),
    _Kind(0.96, _BANK, (0.97, 0.9995), 2.5, 1100, 0.70),
    _Kind(1.00, _BANK, (0.97, 0.9995), 1.5, 700, 0.34),
)
"""From clear to overcast; the last is fog, grey all over."""

_GOLDEN = 0.6180339887
"""Steps of this share of a circle never come close to each other: a few scenes in a row have all kinds of weather."""

_EDGE = 0.25
"""Reflectance of a cloud where it is thinnest."""

_RELIEF = 5
"""Distance over which a cloud's top is compared with its neighbourhood to find its lit side, in pixels."""


@dataclass(frozen=True, slots=True)
class Weather:
    """The state of the sky in one scene."""

    key: int
    """Which clouds."""

    cover: float
    """Expected share of the sky that is cloudy, 0 to 1."""

    clouds: Spectrum
    """Sizes of the clouds."""

    sharpness: float
    """Optical thickness gained on the way into a cloud."""

    top: float
    """Reflectance of the thickest clouds."""

    height: float
    """Height of the clouds above ground, metres."""

    haze: float
    """Opacity of the haze where it is thickest, 0 to 1."""

    light: float
    """Brightness of the land against the reflectances of `seasons`, about 1."""

    veil: float
    """Red light that clear air adds, as a reflectance; blue gets three times that."""

    sun: Sun
    """Where it stands."""


@dataclass(frozen=True, slots=True)
class Sky:
    """What lies between the sun, the land and the satellite; each ``(y, x)`` float32."""

    opacity: Float
    """Share of a pixel's light that comes from a cloud, 0 to 1."""

    brightness: Float
    """Reflectance of the cloud."""

    shadow: Float
    """Share of the direct light that a cloud keeps from the ground, 0 to 1."""

    haze: Float
    """Opacity of the haze, 0 to 1."""


def weather_of(scene: Pass, index: int, seed: int) -> Weather:
    """Return the weather of the `index`-th scene of a series."""
    key = key_of(seed, 50, scene.time.toordinal())
    quantile = (key_of(seed, 51) / 2**32 + index * _GOLDEN) % 1
    kind = next(kind for kind in _KINDS if quantile < kind.share)
    draws = [key_of(key, i) / 2**32 for i in range(5)]
    return Weather(
        key=key,
        cover=kind.cover[0] + (kind.cover[1] - kind.cover[0]) * draws[0],
        clouds=kind.clouds,
        sharpness=kind.sharpness,
        top=kind.top,
        height=kind.height * (0.7 + 0.6 * draws[1]),
        haze=0.02 + 0.38 * draws[2] ** 4,
        light=1.08 + 0.1 * draws[3],
        veil=0.004 + 0.008 * draws[4],
        sun=sun_at(scene),
    )


def render_sky(box: Box, weather: Weather) -> Sky:
    """Return the sky over a box of pixels; the same pixel is the same in any box."""
    thickness = _thickness(box.grown(_RELIEF), weather)
    here = thickness[_RELIEF:-_RELIEF, _RELIEF:-_RELIEF]
    towards_sun = thickness[2 * _RELIEF :, _RELIEF + _RELIEF // 2 : -_RELIEF + _RELIEF // 2]
    lit = here - towards_sun
    gain = np.float32(weather.top - _EDGE)
    brightness = np.float32(_EDGE) + gain * (1 - np.exp(np.float32(-1.5) * here) + np.float32(0.6) * lit)
    reach = weather.height / 10 / math.tan(weather.sun.elevation)
    down, right = round(-reach * math.cos(weather.sun.azimuth)), round(reach * math.sin(weather.sun.azimuth))
    shadow = _opacity(_thickness(box.moved(down, right), weather), weather)
    haze = field(box, key_of(weather.key, 2), _HAZE) * np.float32(0.5) + np.float32(0.5)
    return Sky(_opacity(here, weather), brightness, shadow, np.clip(haze, 0, 1.5) * np.float32(weather.haze))


def _thickness(box: Box, weather: Weather) -> Float:
    threshold = NormalDist().inv_cdf(1 - weather.cover)
    beyond: Float = np.maximum(field(box, key_of(weather.key, 1), weather.clouds) - np.float32(threshold), 0)
    return beyond


def _opacity(thickness: Float, weather: Weather) -> Float:
    passed: Float = np.exp(thickness * np.float32(-weather.sharpness))
    return 1 - passed
