"""Tables of plans: a row for each window, as CSV with the columns of odc-stats first, and as GeoJSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox

from s2composite.reading.grid import footprint
from s2composite.running.planning.plan import Plan, WindowPlan
from s2composite.writing.targets import put_small, target_of

__all__ = ["plan_rows", "write_csv", "write_geojson"]

Named = tuple[str | None, Plan]
"""A plan and the name of its cell; None: the job has no grid."""


def plan_rows(plans: Sequence[Named]) -> list[dict[str, Any]]:
    """Return a row for each period and window.

    Columns are those of odc-stats (``T``, ``X``, ``Y``, ``datasets``, ``days``), then the cell, what reading takes, and
    what there is already.
    """
    return [
        {
            "T": label,
            "X": w.window[1],
            "Y": w.window[0],
            "datasets": len(w.scenes),
            "days": w.days,
            "cell": cell or "",
            "index": w.index,
            "requests": w.requests,
            "bytes": w.bytes,
            "decoded": w.decoded,
            "memory": plan.task_memory,
            "product": plan.state,
            "state": w.state,
        }
        for cell, plan in plans
        for label in plan.periods or (plan.unit or "all",)
        for w in plan.windows
    ]


def write_csv(plans: Sequence[Named], path: str | Path) -> None:
    """Write the rows of plans as CSV.

    Raises
    ------
    WriteError
        It cannot be written there.

    Examples
    --------
    >>> from s2composite import plan_job
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> plan = plan_job({"source": "doctest_scenes", "output": "planned.tif", "period": "2023-04/2023-09"})
    >>> write_csv([(None, plan)], "windows.csv")
    >>> Path("windows.csv").read_text().splitlines()[0]
    'T,X,Y,datasets,days,cell,index,requests,bytes,decoded,memory,product,state'
    """
    rows = plan_rows(plans)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["T", "X", "Y", "datasets", "days"])
    writer.writeheader()
    writer.writerows(rows)
    put_small(text.getvalue().encode(), target_of(path, overwrite=True), overwrite=True)


def write_geojson(plans: Sequence[Named], path: str | Path) -> None:
    """Write the windows of plans as polygons in degrees, one feature for each window.

    Raises
    ------
    WriteError
        It cannot be written there.

    Examples
    --------
    >>> from s2composite import plan_job
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> write_geojson([(None, plan_job({"source": "doctest_scenes", "output": "planned.tif"}))], "windows.geojson")
    >>> json.loads(Path("windows.geojson").read_text())["features"][0]["properties"]["region_code"]
    'x000y000'
    """
    features = [
        {
            "type": "Feature",
            "geometry": _outline(plan.geobox, w),
            "properties": {
                "title": " ".join(filter(None, [plan.unit, cell, f"window {w.window[0]}/{w.window[1]}"])),
                "region_code": f"x{w.window[1]:03d}y{w.window[0]:03d}",
                "cell": cell,
                "unit": plan.unit,
                "ix": w.window[1],
                "iy": w.window[0],
                "index": w.index,
                "total": len(w.scenes),
                "days": w.days,
                "bytes": w.bytes,
                "state": w.state,
            },
        }
        for cell, plan in plans
        for w in plan.windows
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    put_small(text.encode(), target_of(path, overwrite=True), overwrite=True)


def _outline(geobox: GeoBox, window: WindowPlan) -> dict[str, Any] | None:
    if geobox.crs is None:
        return None
    top, bottom, left, right = window.pixels
    shape: dict[str, Any] = footprint(geobox[top:bottom, left:right]).json
    return shape
