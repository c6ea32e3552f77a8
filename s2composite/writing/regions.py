"""Regions: what one task writes into a Zarr store: a window of all layers, read back and marked as done.

A region consists of whole shards and always has the same bytes, so it may be written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import S2CompositeError, WriteError
from s2composite.metering import metered
from s2composite.writing.overviews import halve
from s2composite.writing.parts import disk_error
from s2composite.writing.skeleton import array_path
from s2composite.writing.stores import IDENTITY, ROOT, StorePlace, opened
from s2composite.writing.window import Stage

__all__ = ["Regions", "mark_of", "write_extra", "write_overview", "write_window"]


@dataclass(frozen=True, eq=False)
class Regions:
    """What every task that writes into a store needs: it travels once to each worker."""

    place: StorePlace
    """Where to write."""

    names: tuple[str, ...]
    """Layers in the order of a task's blocks."""

    methods: tuple[str, ...]
    """How each layer's overviews are made."""

    nodata: tuple[float | None, ...]
    """Of each layer."""

    pyramid: bool
    """Levels beyond the full resolution are made."""

    token: str
    """Hash of what is written."""

    def require(self) -> None:
        """Raise if writing was given up, and remove what was written since.

        Raises
        ------
        WriteError
            The record of what is being written is gone, or is of other data.
        """
        if self.place.store is not None:
            return
        found = self.place.get(IDENTITY)
        if found is None and self.place.get(ROOT) is not None:
            # The store is complete: another worker has made this window while this one did not answer.
            self.place.forget()
        elif found is None:
            self.place.clear()
        if found is None or found.decode() != self.token:
            raise WriteError("writing was given up")


def mark_of(name: str, stage: Stage, position: Sequence[int]) -> str:
    """Return the name under which a window, or a block of another variable, is marked as done."""
    return "-".join([name or f"s{stage.number}", *map(str, position)])


def write_window(
    regions: Regions,
    stage: Stage,
    position: tuple[int, int],
    blocks: Sequence[NDArray[Any]],
    extras: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write a window of all layers, in all levels of the stage.

    Parameters
    ----------
    blocks
        Of each layer, ``(..., y, x)``.
    extras
        Values of other variables for this window by name, ``(..., 1, 1)``.

    Raises
    ------
    WriteError
        It cannot be written, or reads back differently; names the window.
    """

    def write() -> None:
        for name, values in (extras or {}).items():
            _store(_array(regions, name), (..., *(slice(n, n + 1) for n in position)), values)
        pixels = list(blocks)
        for level in range(stage.first, stage.last + 1):
            if level > stage.first:
                pixels = _halved(pixels, regions)
            _store_level(pixels, regions, level, stage.window(*position, level))

    size = sum(block.nbytes for block in blocks)
    _guarded(regions, mark_of("", stage, position), stage.describe(*position), size, write)


def write_overview(regions: Regions, stage: Stage, position: tuple[int, int]) -> None:
    """Make levels from the level below, which is in the store.

    Raises
    ------
    WriteError
        As for `write_window`.
    """
    y, x = stage.window(*position)
    below = tuple(slice(2 * axis.start, 2 * axis.stop) for axis in (y, x))

    def write() -> None:
        paths = {name: array_path(name, stage.first - 1, pyramid=True) for name in regions.names}
        arrays = opened(regions.place, paths)
        pixels = [np.asarray(arrays[name][(..., *below)]) for name in regions.names]
        for level in range(stage.first, stage.last + 1):
            pixels = _halved(pixels, regions)
            _store_level(pixels, regions, level, stage.window(*position, level))

    _guarded(regions, mark_of("", stage, position), stage.describe(*position), 0, write)


def write_extra(regions: Regions, variable: str, starts: Sequence[int], block: NDArray[Any], mark: str) -> None:
    """Write a block of a variable that is not a picture.

    Parameters
    ----------
    starts
        Its first index along each axis.
    mark
        Name under which it is marked as done.

    Raises
    ------
    WriteError
        As for `write_window`.
    """
    where = tuple(slice(start, start + n) for start, n in zip(starts, block.shape, strict=True))

    def write() -> None:
        _store(_array(regions, variable), where, block)

    _guarded(regions, mark, f"{variable}{tuple(starts)}", block.nbytes, write)


def _array(regions: Regions, variable: str) -> Any:
    return opened(regions.place, {variable: array_path(variable, 0, pyramid=regions.pyramid)})[variable]


def _guarded(regions: Regions, mark: str, where: str, size: int, write: Callable[[], None]) -> None:
    """Write a window of `size` bytes, mark it as done, and name it in errors."""
    label = regions.place.label
    try:
        regions.require()
        with metered("encode"):
            write()
        regions.place.mark(mark)
        regions.require()
    except WriteError as error:
        raise WriteError(f"{label}, {where}: {error}", **(error.__dict__ | {"window": where})) from error
    except OSError as error:
        raise disk_error(error, f"{label}, {where}", size) from error
    except S2CompositeError:
        raise
    except Exception as error:  # whatever a store raises
        raise WriteError(f"{label}, {where}: {type(error).__name__}: {error}", window=where, path=label) from error


def _halved(pixels: Sequence[NDArray[Any]], regions: Regions) -> list[NDArray[Any]]:
    out = []
    for layer, method, nodata in zip(pixels, regions.methods, regions.nodata, strict=True):
        halved = halve(layer.reshape(-1, *layer.shape[-2:]), method, nodata)
        out.append(halved.reshape(*layer.shape[:-2], *halved.shape[-2:]))
    return out


def _store_level(pixels: Sequence[NDArray[Any]], regions: Regions, level: int, window: tuple[slice, slice]) -> None:
    arrays = opened(regions.place, {name: array_path(name, level, pyramid=regions.pyramid) for name in regions.names})
    for name, layer in zip(regions.names, pixels, strict=True):
        _store(arrays[name], (..., *window), layer)


def _store(array: Any, where: tuple[Any, ...], values: NDArray[Any]) -> None:
    """Write a region and read it back."""
    array[where] = values
    back = np.asarray(array[where])
    if not np.array_equal(back, values, equal_nan=values.dtype.kind == "f"):
        raise WriteError(f"{array.path} reads back differently from what was written")
