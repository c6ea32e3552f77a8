"""The time axis of periods: which scenes of a cube each period holds, and the coordinates that say so."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from s2composite.errors import ParameterError
from s2composite.georeference import geobox_of
from s2composite.reading.grid import centre_longitude
from s2composite.scenes.periods import Day, Period, PeriodSpec, day_of, find_periods

__all__ = ["DAYS", "Group", "groups_of", "with_time_axis"]

DAYS = ("utc", "solar")
"""How days are counted."""


@dataclass(frozen=True, slots=True)
class Group:
    """A period and its scenes."""

    period: Period
    """The period."""

    scenes: tuple[int, ...]
    """Indices of its scenes in the cube, in order; may be empty."""


def groups_of(cube: xr.DataArray, spec: PeriodSpec, day: Day, *, keep_empty: bool) -> tuple[Group, ...]:
    """Return the periods of a cube ``(time, band, y, x)`` with the scenes in each.

    Raises
    ------
    ParameterError
        `spec` is unknown, the cube has no dates, or no period holds a scene.
    """
    days = _days(cube, day)
    groups = [
        Group(period, tuple(t for t, one in enumerate(days) if one in period))
        for period in find_periods(spec, min(days), max(days))
    ]
    if not any(group.scenes for group in groups):
        raise ParameterError(
            f"no scene lies in period {spec!r}: it covers {groups[0].period.start} to {groups[-1].period.end}, "
            f"the scenes {min(days)} to {max(days)}"
        )
    return tuple(group for group in groups if keep_empty or group.scenes)


def _days(cube: xr.DataArray, day: Day) -> list[dt.date]:
    times = cube["time"].values
    if not np.issubdtype(times.dtype, np.datetime64) or np.isnat(times).any():
        raise ParameterError("periods need dates, and the cube's time coordinate has none; assign them to it")
    longitude = _longitude(cube) if day == "solar" else 0.0
    moments = times.astype("datetime64[us]").astype(dt.datetime)
    return [day_of(moment.replace(tzinfo=dt.UTC), day, longitude) for moment in moments]


def _longitude(cube: xr.DataArray) -> float:
    """Return the longitude of the cube's centre, in degrees east."""
    geobox = geobox_of(cube)
    if geobox is None or geobox.crs is None:
        raise ParameterError('day="solar" needs the position of the cube, which has no CRS; use day="utc"')
    return centre_longitude(geobox)


def with_time_axis(dataset: xr.Dataset, groups: Sequence[Group], day: Day) -> xr.Dataset:
    """Return a dataset with the coordinates of its dimension ``time``.

    ``time`` is the first day of each period, ``time_bounds`` ``(time, bnds)`` that day and the day after the last,
    ``period`` its label, and ``scenes`` the number of scenes in it.
    """
    bounds = np.array([(g.period.start, g.period.end) for g in groups], "datetime64[ns]")
    bounds_meaning = {"long_name": "first day of the period, day after its last"}
    coords = {
        "time": ("time", bounds[:, 0], {"standard_name": "time", "bounds": "time_bounds", "day": day}),
        "time_bounds": (("time", "bnds"), bounds, bounds_meaning),
        "period": ("time", np.array([g.period.label for g in groups], dtype=str)),
        "scenes": ("time", np.array([len(g.scenes) for g in groups], np.int32), {"long_name": "scenes in the period"}),
    }
    return dataset.assign_coords(coords)
