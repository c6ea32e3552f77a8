"""Status: what could not be read of each scene, short enough for the tags of a file."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from s2composite.reading.observe import FAILED
from s2composite.windows import STATUS

__all__ = ["STATUS", "read_status", "status_summary"]

_LISTED = 400
"""Windows that are listed individually: tags hold a few kB."""


def read_status(dataset: xr.Dataset) -> da.Array | None:
    """Return the table of what was read ``(scene, window_y, window_x)``; None if failures are errors."""
    if STATUS not in dataset:
        return None
    data = dataset[STATUS].data
    return data if isinstance(data, da.Array) else da.from_array(data, chunks=-1)


def status_summary(dataset: xr.Dataset, table: NDArray[np.uint8]) -> dict[str, Any]:
    """Return what failed, in the types of JSON.

    Parameters
    ----------
    table
        ``(scene, window_y, window_x)``: 0 read, 1 outside, 2 failed.

    Returns
    -------
    dict
        ``scenes`` and ``windows`` (rows, columns): their numbers; ``failed``: the windows that each scene is missing
        from, as pixels ``[top, bottom, left, right]`` or, if the dataset does not know these, as ``[row, column]`` of
        windows; ``unit``: which of the two; ``failed_windows``: their number; ``not_listed``: how many are left out of
        the list.
    """
    edges = [_edges(dataset, axis, n) for axis, n in zip(("y", "x"), table.shape[1:], strict=True)]
    known = all(edge is not None for edge in edges)
    found = np.argwhere(table == FAILED).tolist()
    failed: dict[str, list[list[int]]] = {}
    for scene, row, column in found[:_LISTED]:
        place = [row, column]
        if edges[0] is not None and edges[1] is not None:
            place = [*edges[0][row : row + 2], *edges[1][column : column + 2]]
        failed.setdefault(str(dataset["scene"].values[scene]), []).append(place)
    summary: dict[str, Any] = {
        "scenes": table.shape[0],
        "windows": list(table.shape[1:]),
        "unit": "pixels" if known else "windows",
        "failed_windows": len(found),
        "failed": failed,
    }
    return summary | ({"not_listed": len(found) - _LISTED} if len(found) > _LISTED else {})


def _edges(dataset: xr.Dataset, axis: str, windows: int) -> list[int] | None:
    """Return the first pixel of each window along an axis and the end of the last; None if unknown."""
    name = f"window_{axis}"
    if name in dataset.coords:
        return [*dataset[name].values.tolist(), dataset.sizes[axis]]
    for array in dataset.data_vars.values():
        chunks = dict(zip(array.dims, array.chunks or (), strict=False)).get(axis, ())
        if len(chunks) == windows:
            return [0, *accumulate(chunks)]
    return None
