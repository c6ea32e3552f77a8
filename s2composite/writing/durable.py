"""Durable: what a window has written, recorded beside its parts so that another process can resume from there.

A window is done when its record exists. A record holds what `encode_window` returned for each file: where the tiles
lie in the parts, their statistics, and the pixels that the next overviews are made of. It is written after the parts,
whole or not at all, so a window that was interrupted is not done, and doing it again writes the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import WriteError
from s2composite.scenes.storage import display, join
from s2composite.writing.parts import Parts
from s2composite.writing.statistics import Statistics
from s2composite.writing.window import Stage, WindowIndex, WindowResult

__all__ = ["SUFFIX", "load_record", "record_name", "save_record"]

SUFFIX = ".done"
"""Suffix of the names of records."""


def record_name(kind: str, stage: Stage, position: tuple[int, int]) -> str:
    """Return the name of a window's record.

    >>> record_name("all", Stage(0, 0, 1, ((512,), (512,))), (0, 3))
    'all_0_0_3.done'
    """
    return f"{kind}_{stage.number}_{position[0]}_{position[1]}{SUFFIX}"


def save_record(parts: Parts, name: str, results: Sequence[WindowResult], tables: dict[str, NDArray[Any]]) -> None:
    """Keep what a window has written, one result for each file, and small arrays that came with it.

    Raises
    ------
    WriteError
        The place is full or gone.
    """
    arrays: dict[str, NDArray[Any]] = {f"table_{key}": table for key, table in tables.items()}
    for number, result in enumerate(results):
        index = result.index
        arrays[f"name_{number}"] = np.array(index.part)
        arrays[f"position_{number}"] = np.array(index.position)
        arrays |= {f"tiles_{number}_{level}": tiles for level, tiles in enumerate(index.tiles)}
        if index.statistics:
            # Integers up to 2**53 are exact in float64, and a tile has no more pixels than that.
            arrays[f"statistics_{number}"] = np.array(index.statistics, np.float64)
        if result.top is not None:
            arrays[f"top_{number}"] = result.top
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    parts.write(name, buffer.getvalue())


def load_record(parts: Parts, name: str) -> tuple[list[WindowResult], dict[str, NDArray[Any]]]:
    """Return what `save_record` has kept.

    Raises
    ------
    WriteError
        It is gone or damaged.
    """
    try:
        with np.load(io.BytesIO(parts.read_whole(name)), allow_pickle=False) as record:
            results: list[WindowResult] = []
            while f"name_{len(results)}" in record:
                results.append(_result(record, len(results)))
            tables = {key.removeprefix("table_"): record[key] for key in record if key.startswith("table_")}
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        where = display(join(parts.root, name))
        raise WriteError(f"{where}: the record of a window is damaged ({error}); remove it and resume") from error
    return results, tables


def _result(record: Any, number: int) -> WindowResult:
    row, column = record[f"position_{number}"].tolist()
    tiles: list[NDArray[Any]] = []
    while f"tiles_{number}_{len(tiles)}" in record:
        tiles.append(record[f"tiles_{number}_{len(tiles)}"])
    statistics = record[f"statistics_{number}"].tolist() if f"statistics_{number}" in record else []
    index = WindowIndex(
        (row, column),
        str(record[f"name_{number}"]),
        tuple(tiles),
        tuple(tuple(_statistics(band) for band in tile) for tile in statistics),
    )
    top = record.get(f"top_{number}", None)
    return WindowResult(index, top)


def _statistics(values: Sequence[float]) -> Statistics:
    return Statistics(int(values[0]), int(values[1]), *values[2:])
