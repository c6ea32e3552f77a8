"""Masks computed from pixels, in fixed tiles of the scenes' own grids.

The result of a tile depends only on the files, not on windows, chunks or workers. It is cached, as bits, for the other
windows within the tile.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Any, Protocol

import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from s2composite.errors import ParameterError, SceneError
from s2composite.metrics import record_read
from s2composite.pixels.function_mask import Mask
from s2composite.pixels.morphology import apply_steps, halo_of
from s2composite.reading.grid import Window, with_halo, within
from s2composite.reading.plan import ReadCost
from s2composite.reading.reader import FAILED
from s2composite.reading.stack import Stack

__all__ = ["FunctionMask", "GridMask"]

LOG = logging.getLogger(__name__)


class GridMask(Protocol):
    """A mask of some scenes on its own grid."""

    @property
    def stack(self) -> Stack:
        """The bands that it uses, on its grid."""

    def select(self, positions: Sequence[int]) -> Any:
        """Return the mask of some of the scenes."""

    def valid(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which observations of a window of its grid may be used, ``(t, y, x)``, and which scenes failed."""

    def cost(self, window: Window) -> ReadCost:
        """Return the cost of reading for a window."""

    def memory(self) -> int:
        """Return the bytes that evaluating it takes beside the mask itself."""

    def __dask_tokenize__(self) -> object: ...


_AT_ONCE = 8
"""Scenes read at once for a tile: one is fetched while another is decoded."""


@dataclass(frozen=True, eq=False)
class FunctionMask:
    """A function of pixels, ready to be evaluated for a window of the scenes' own grid."""

    rule: Mask

    stack: Stack
    """The bands that it takes, for all scenes on one grid."""

    scenes: tuple[int, ...]
    """The requested scenes of the stack."""

    SIDE = 1024
    """Side of the tiles that the function gets: with 64 pixels around them they are 27 % larger."""

    @cached_property
    def token(self) -> str:
        """Hash of everything that determines the result of a tile."""
        return str(tokenize(self.rule.function, str(self.rule), self.stack.token))

    def __dask_tokenize__(self) -> object:
        return self.token, self.scenes

    def select(self, positions: Sequence[int]) -> FunctionMask:
        """Return the mask of some of the scenes."""
        return replace(self, scenes=tuple(self.scenes[t] for t in positions))

    def memory(self) -> int:
        """Return the bytes that evaluating it takes beside the mask itself."""
        y, x = (min(self.SIDE + 2 * self.rule.surroundings, n) for n in self.stack.shape[2:])
        tile = self.stack.shape[1] * y * x
        # the function's own: a copy of a scene's tile in floats, and as much again
        return _AT_ONCE * tile * self.stack.dtype.itemsize + 2 * 4 * tile + _KEPT_BYTES

    def cost(self, window: Window) -> ReadCost:
        """Return the cost of reading for a window: its share of the tiles."""
        around = halo_of(self.rule.cleanup) + self.rule.surroundings
        return self.stack.select(self.scenes).cost(with_halo(window, around, self.stack.shape[2:])[0])

    def valid(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which observations of a window may be used, ``(t, y, x)``, and which scenes failed."""
        region, inner = with_halo(window, halo_of(self.rule.cleanup), self.stack.shape[2:])
        (bad, lost), failed = tile_planes(self.token, region, self.SIDE, self.stack, self.scenes, self._evaluate)
        valid = ~(apply_steps(bad, self.rule.cleanup) | lost)
        return valid[(slice(None), *inner)], failed & lost[(slice(None), *inner)].any(axis=(1, 2))

    def _evaluate(self, tile: Window, scenes: Sequence[int]) -> Iterator[_Evaluated]:
        """Yield scenes with what is bad in a tile and what is lost, ``(2, y, x)``, and whether any of it failed."""
        region, inner = with_halo(tile, self.rule.surroundings, self.stack.shape[2:])
        for some in (scenes[i : i + _AT_ONCE] for i in range(0, len(scenes), _AT_ONCE)):
            ((_, seen),) = self.stack.select(some).read_all([region], coverage=True)
            record_read(seen.tally)
            assert seen.covered is not None
            failed = {failure.scene for failure in seen.failures} | set(np.flatnonzero(seen.status == FAILED).tolist())
            for failure in seen.failures:
                seen.covered[(failure.scene, *within(region, failure.part))] = False
            for i, k in enumerate(some):
                planes = np.zeros((2, *seen.covered.shape[1:]), bool)
                planes[1] = ~seen.covered[i]
                if seen.covered[i].any():
                    valid = self._called(self.stack.scenes[k].id, region, seen.pixels[i])
                    planes[0 if valid is not None else 1] |= True if valid is None else ~valid
                    failed |= {i} if valid is None else set()
                yield k, planes[(slice(None), *inner)], i in failed

    def _called(self, scene: str, region: Window, pixels: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return the function's result for a tile of a scene; None if it fails and scenes may be skipped."""
        y, x = region
        window = (y.start, y.stop, x.start, x.stop)
        size = f"{self.stack.geobox.resolution.x:.10g}"
        where = f"scene {scene}, window y {y.start}:{y.stop} x {x.start}:{x.stop} of pixels of {size}"
        try:
            return self.rule.valid(np.ascontiguousarray(pixels))
        except ParameterError as error:
            raise ParameterError(f"{where}: {error}", scene=scene, window=window) from error
        except Exception as error:
            said = f"{where}: the function {self.rule.name} of Mask raised {type(error).__name__}: {error}"
            if self.stack.options.on_error == "raise":
                cure = "leave the scene out, or continue without it there with on_error='skip'"
                raise SceneError(f"{said}; {cure}", scene=scene, window=window) from error
            LOG.warning("%s; it is not used there", said)
            return None


_Evaluated = tuple[int, NDArray[np.bool_], bool]
"""A scene's position, its planes of a tile, and whether a part of it failed."""

_KEPT_BYTES = 64 << 20
"""Bytes of tiles cached by a process, as bits: 4096 x 4096 pixels of 10 m for 216 scenes take 14 MB at 80 m."""

_LOCK = Lock()


@dataclass(eq=False)
class _TileBits:
    """The cached results of a tile: planes of bits by position of the scene."""

    lock: Lock = field(default_factory=Lock)
    planes: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)

    def bytes(self) -> int:
        """Return its size."""
        return sum(planes.nbytes for planes in list(self.planes.values()))


_TILES: OrderedDict[Hashable, _TileBits] = OrderedDict()


def tile_planes(
    token: str,
    region: Window,
    side: int,
    stack: Stack,
    scenes: Sequence[int],
    evaluate: Callable[[Window, Sequence[int]], Iterator[_Evaluated]],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return planes of bits of a region of a stack's grid, ``(plane, t, y, x)``, and scenes that failed, ``(t,)``.

    They are assembled from tiles. `evaluate` computes tiles that are not cached, at least for the requested scenes: one
    thread does so, while others that need the tile wait.
    """
    out: NDArray[np.bool_] | None = None
    failed = np.zeros(len(scenes), bool)
    rows, columns = (range(s.start // side, -(-s.stop // side)) for s in region)
    for row, column in ((row, column) for row in rows for column in columns):
        y, x = (slice(i * side, min((i + 1) * side, n)) for i, n in zip((row, column), stack.shape[2:], strict=True))
        with _LOCK:
            tile = _TILES.setdefault((token, row, column), _TileBits())
            _TILES.move_to_end((token, row, column))
        with tile.lock:
            missing = [k for k in scenes if k not in tile.planes]
            if missing:
                for k, made, lost in evaluate((y, x), missing):
                    tile.planes[k] = np.packbits(made, axis=-1)
                    tile.failed |= {k} if lost else set()
            bits = np.stack([tile.planes[k] for k in scenes], axis=1)
            failed |= [k in tile.failed for k in scenes]
        if out is None:
            out = np.empty((*bits.shape[:2], *(s.stop - s.start for s in region)), bool)
        met = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip((y, x), region, strict=True))
        part, place = (within(outer, (met[0], met[1])) for outer in ((y, x), region))
        found = np.unpackbits(bits[:, :, part[0]], axis=-1, count=x.stop - x.start).view(bool)
        out[(..., *place)] = found[..., part[1]]
    _forget()
    assert out is not None
    return out, failed


def _forget() -> None:
    """Remove the least recently used tiles until the others fit."""
    with _LOCK:
        size = sum(tile.bytes() for tile in _TILES.values())
        while size > _KEPT_BYTES and len(_TILES) > 1:
            _, tile = _TILES.popitem(last=False)
            size -= tile.bytes()
