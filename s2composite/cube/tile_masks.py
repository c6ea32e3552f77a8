"""Masks computed from pixels, in fixed tiles of the scenes' own grids.

The result of a tile depends only on the files, not on windows, chunks or workers. It is cached, as bits, for the other
windows within the tile.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from threading import Condition, Lock
from typing import Any, Self

import imagecodecs
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from s2composite.errors import ParameterError, ReadError, S2CompositeError, SceneError, WriteError
from s2composite.metrics import metered, record_read
from s2composite.pixels.cloud_net import CloudNet
from s2composite.pixels.function_mask import UNSEEN, Mask
from s2composite.pixels.morphology import apply_steps, dilation, halo_of
from s2composite.pixels.select import day_number
from s2composite.pixels.temporal_mask import WHITE, TemporalMask, alone, unlike
from s2composite.reading.grid import Window, intersection, with_halo, within
from s2composite.reading.plan import ReadCost
from s2composite.reading.reader import FAILED
from s2composite.reading.sources import target_extent
from s2composite.reading.stack import Stack
from s2composite.storage.files import absolute, display, filesystem, is_remote, join, storage_errors, write_atomic
from s2composite.storage.urls import check_read, check_write

__all__ = ["Evaluation", "FunctionMask", "SeriesMask"]

LOG = logging.getLogger(__name__)


Evaluation = Callable[[], tuple[NDArray[np.bool_], NDArray[np.bool_]]]
"""Returns which observations of a window of a mask's grid may be used, ``(t, y, x)``, and which scenes failed, at least
in part, ``(t,)``."""


_KEY, _DIGEST = "S2COMPOSITE_KEY", "S2COMPOSITE_SHA256"  # tags of files

_AT_ONCE = 8
"""Scenes read at once for a tile: one is fetched while another is decoded."""

_COMPARED = 1 << 14
"""Pixels of a series that are compared at once, in 30 ms for 216 scenes."""


@dataclass(frozen=True)
class Tiling:
    """A grid cut into tiles, of which any corner lies at `origin`."""

    origin: tuple[int, int]
    """``(y, x)``."""

    sides: tuple[int, int]
    """Of a tile, ``(y, x)``."""

    @classmethod
    def around(cls, area: Window, step: int, most: int) -> Tiling:
        """Return tiles that fit an area: they begin at multiples of `step`, and have a side of at most `most`."""
        first = [s.start // step for s in area]
        steps = [max(-(-s.stop // step) - one, 1) for s, one in zip(area, first, strict=True)]
        sides = [step * -(-n // -(-n * step // most)) for n in steps]
        return cls((first[0] * step, first[1] * step), (sides[0], sides[1]))

    def within(self, region: Window, shape: Sequence[int]) -> Iterator[tuple[tuple[int, int], Window]]:
        """Yield the tiles of a grid of some shape that touch a region, each with its number."""
        every = []
        for s, origin, side, n in zip(region, self.origin, self.sides, shape, strict=True):
            numbers = range((s.start - origin) // side, -((origin - s.stop) // side))
            every.append([(i, slice(max(origin + i * side, 0), min(origin + (i + 1) * side, n))) for i in numbers])
        for (row, y), (column, x) in product(*every):
            yield (row, column), (y, x)


_Evaluated = tuple[int, NDArray[np.bool_], bool]
"""A scene's position, its planes of a tile, and whether a part of it failed."""

_Share = Callable[[Iterable[Callable[[], None]]], None]
"""Makes calls in all threads that wait for a tile."""

_KEPT_BYTES = 64 << 20
"""Bytes of tiles cached by a process, as bits: 4096 x 4096 pixels of 10 m for 216 scenes take 2 MB at 80 m."""

_LOCK = Lock()


@dataclass(eq=False)
class _TileBits:
    """The cached results of a tile: compressed planes of bits by position of the scene."""

    changed: Condition = field(default_factory=Condition)  # for all that follows
    planes: dict[int, bytes] = field(default_factory=dict)
    claimed: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    todo: deque[Callable[[], None]] = field(default_factory=deque)
    running: int = 0

    def fill(
        self,
        scenes: Sequence[int],
        at_once: int | None,
        evaluate: Callable[[Sequence[int], _Share], Iterator[_Evaluated]],
    ) -> None:
        """Have the scenes that are not cached evaluated, each by the thread that comes to it first."""
        while True:
            with self.changed:
                missing = [k for k in scenes if k not in self.planes]
                mine = [k for k in missing if k not in self.claimed][:at_once]
                if not missing:
                    return
                if not mine and not self.todo:
                    self.changed.wait()
                    continue
                self.claimed.update(mine)
            if not mine:
                self._help()
                continue
            try:
                for k, made, lost in evaluate(mine, self.share):
                    self.failed |= {k} if lost else set()
                    self.planes[k] = bytes(imagecodecs.lz4_encode(np.packbits(made, axis=-1).tobytes(), header=True))
            finally:
                with self.changed:
                    self.claimed.difference_update(mine)
                    self.changed.notify_all()

    def share(self, calls: Iterable[Callable[[], None]]) -> None:
        """Make calls in this thread and in those that wait for the tile; one evaluation at a time may do so."""
        with self.changed:
            self.todo.extend(calls)
            self.changed.notify_all()
        try:
            while self.todo or self.running:
                self._help()
                with self.changed:
                    self.changed.wait_for(lambda: self.todo or not self.running)
        finally:  # nobody begins what is left after an error
            with self.changed:
                self.todo.clear()
                self.changed.wait_for(lambda: not self.running)
                self.todo.clear()

    def _help(self) -> None:
        """Make shared calls until none is left to begin; one that fails here is left to the others."""
        while True:
            with self.changed:
                if not self.todo:
                    return
                call = self.todo.popleft()
                self.running += 1
            made = False
            try:
                call()
                made = True
            finally:
                with self.changed:
                    self.running -= 1
                    self.todo.extendleft([] if made else [call])
                    self.changed.notify_all()


_TILES: OrderedDict[Hashable, _TileBits] = OrderedDict()


@dataclass(frozen=True, eq=False)
class _TiledMask(ABC):
    """A mask that is evaluated in tiles of the scenes' own grid, which are cached, for any window of that grid."""

    stack: Stack
    """The bands that it takes, for all scenes on one grid."""

    scenes: tuple[int, ...]
    """The requested scenes of the stack."""

    tiles: Tiling
    """How the grid is cut into the tiles that are evaluated."""

    token: str
    """Hash of everything that determines the result of a tile."""

    def select(self, positions: Sequence[int]) -> Self:
        """Return the mask of some of the scenes."""
        return replace(self, scenes=tuple(self.scenes[t] for t in positions))

    def begin(self, window: Window) -> Evaluation:
        """Return what evaluates a window: which tiles must be read for it depends on those that are cached by then."""
        return partial(self.evaluate, window)

    @abstractmethod
    def evaluate(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which observations of a window may be used, ``(t, y, x)``, and which scenes failed."""

    @abstractmethod
    def evaluate_tile(self, tile: Window, scenes: Sequence[int], share: _Share) -> Iterator[_Evaluated]:
        """Yield the planes of a tile, at least of some scenes of the stack."""

    def _planes(
        self, region: Window, scenes: Sequence[int], at_once: int | None = None, *, shared: bool = False
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return planes of bits of a region of the grid, ``(plane, t, y, x)``, and which scenes failed, ``(t,)``.

        They are assembled from tiles. Those that are not cached are evaluated, `at_once` scenes at most; a thread
        evaluates those that no other has begun, and waits for the others, or takes part in what they share. `shared`:
        results are shared with other processes, so each begins with another scene.
        """
        out: NDArray[np.bool_] | None = None
        failed = np.zeros(len(scenes), bool)
        first = int(len(scenes) * (os.getpid() * 0.618 % 1)) if shared else 0
        order = [*scenes[first:], *scenes[:first]]
        for number, (y, x) in self.tiles.within(region, self.stack.shape[2:]):
            with _LOCK:
                tile = _TILES.setdefault((self.token, *number), _TileBits())
                _TILES.move_to_end((self.token, *number))
            tile.fill(order, at_once, partial(self.evaluate_tile, (y, x)))
            failed |= [k in tile.failed for k in scenes]
            met = intersection((y, x), region)
            (rows, columns), place = within((y, x), met), within(region, met)
            height, width = y.stop - y.start, -(-(x.stop - x.start) // 8)
            first, shift = columns.start // 8, columns.start % 8
            for i, k in enumerate(scenes):
                flat = np.frombuffer(imagecodecs.lz4_decode(tile.planes[k], header=True), np.uint8)
                bits = flat.reshape(-1, height, width)[:, rows, first : -(-columns.stop // 8)]
                if out is None:
                    out = np.empty((len(bits), len(scenes), *(s.stop - s.start for s in region)), bool)
                found = np.unpackbits(bits, axis=-1).view(bool)
                out[(slice(None), i, *place)] = found[..., shift : shift + columns.stop - columns.start]
        with _LOCK:  # the least recently used tiles make room
            size = sum(len(planes) for tile in _TILES.values() for planes in list(tile.planes.values()))
            while size > _KEPT_BYTES and len(_TILES) > 1:
                size -= sum(map(len, list(_TILES.popitem(last=False)[1].planes.values())))
        assert out is not None
        return out, failed


@dataclass(frozen=True)
class _TileFile:
    """The file of a tile of a scene: a small GeoTIFF of marks, in a directory or a bucket.

    It is replaced as a whole, so that processes may write it at the same time.
    """

    href: str

    key: str
    """Hash of everything that decides its pixels; it is in the file, too."""

    shape: tuple[int, int]

    def read(self) -> NDArray[np.uint8] | None:
        """Return its pixels; None if there is no such file, or it is not what it should be."""
        check_read(self.href)
        try:
            with storage_errors(ReadError, f"{display(self.href)}: cannot be read", self.href):
                fs, path = filesystem(self.href)
                try:
                    data = fs.cat_file(path)
                except FileNotFoundError:
                    return None
            with MemoryFile(data) as memory, memory.open() as file:
                tags = file.tags()
                pixels: NDArray[np.uint8] = file.read(1)
            if tags[_KEY] != self.key or pixels.shape != self.shape or pixels.dtype != np.uint8:
                raise ValueError("it holds another tile")  # noqa: TRY301
            if tags[_DIGEST] != hashlib.sha256(pixels.tobytes()).hexdigest():
                raise ValueError("its pixels have changed")  # noqa: TRY301
        except (ReadError, RasterioError, ValueError, KeyError) as error:
            LOG.warning("%s: not used, the tile is computed again: %s", display(self.href), error)
            return None
        return pixels

    def write(self, pixels: NDArray[np.uint8], geobox: GeoBox) -> None:
        """Write pixels ``(y, x)``, which lie on a grid; what cannot be kept is computed again the next time."""
        check_write(self.href)
        height, width = pixels.shape
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "compress": "deflate", "height": height}
        place = {"transform": geobox.transform, "crs": str(geobox.crs) if geobox.crs else None, "width": width}
        with MemoryFile() as memory:
            with memory.open(**profile, **place) as file:
                file.write(pixels, 1)
                file.update_tags(**{_KEY: self.key, _DIGEST: hashlib.sha256(pixels.tobytes()).hexdigest()})
            data = memory.read()
        try:
            with storage_errors(WriteError, f"{display(self.href)}: cannot be written", self.href):
                if not is_remote(self.href):
                    Path(self.href).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self.href, data)
        except WriteError as error:
            LOG.warning("%s; this tile is not kept", error)


@dataclass(frozen=True, eq=False)
class FunctionMask(_TiledMask):
    """A function of pixels, or a network."""

    rule: Mask | CloudNet

    decides: str
    """Hash of what determines the result of a tile, but for scenes, area and classes."""

    @classmethod
    def of(cls, rule: Mask | CloudNet, stack: Stack, geobox: GeoBox) -> FunctionMask:
        """Return the mask of all scenes of a stack, for data on a grid."""
        tiles = Tiling((0, 0), (rule.side, rule.side))
        if rule.cache is not None:  # of any area
            rule = replace(rule, cache=absolute(rule.cache))
        elif rule.step is not None:
            # what of the mask's grid the data look at, about
            top, bottom, left, right = target_extent(geobox, stack.geobox)
            spans = ((top, bottom, stack.shape[2]), (left, right, stack.shape[3]))
            y, x = (slice(min(max(first, 0), n - 1), max(min(last, n), 1)) for first, last, n in spans)
            tiles = Tiling.around(with_halo((y, x), halo_of(rule.cleanup), stack.shape[2:])[0], rule.step, rule.side)
        decides = str(tokenize(rule.key))
        token = str(tokenize(decides, rule.dropped, tiles, stack.token))
        return cls(stack, tuple(range(len(stack.scenes))), tiles, token, rule, decides)

    def __dask_tokenize__(self) -> object:
        return self.token, str(self.rule), self.scenes

    def memory(self) -> int:
        """Return the bytes that evaluating it takes beside the mask itself."""
        sides = zip(self.tiles.sides, self.stack.shape[2:], strict=True)
        y, x = (min(side, n) + 2 * self.rule.surroundings for side, n in sides)
        return self.rule.memory(self.stack.shape[1] * y * x, self.stack.dtype.itemsize) + _KEPT_BYTES

    def cost(self, window: Window) -> ReadCost:
        """Return the cost of reading for a window: its share of the tiles."""
        around = halo_of(self.rule.cleanup) + self.rule.surroundings
        cost = self.stack.select(self.scenes).cost(with_halo(window, around, self.stack.shape[2:])[0])
        pixels = (window[0].stop - window[0].start) * (window[1].stop - window[1].start)
        return replace(cost, seconds=len(cost.scenes) * self.rule.seconds(pixels))

    def evaluate(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which observations of a window may be used, ``(t, y, x)``, and which scenes failed."""
        region, inner = with_halo(window, halo_of(self.rule.cleanup), self.stack.shape[2:])
        shared = self.rule.cache is not None
        (bad, lost), failed = self._planes(region, self.scenes, self.rule.at_once, shared=shared)
        valid = ~(apply_steps(bad, self.rule.cleanup) | lost)
        return valid[(slice(None), *inner)], failed & lost[(slice(None), *inner)].any(axis=(1, 2))

    def evaluate_tile(self, tile: Window, scenes: Sequence[int], _share: _Share) -> Iterator[_Evaluated]:
        """Yield scenes with what is bad in a tile and what is lost, ``(2, y, x)``, and whether any of it failed."""
        dropped = np.isin(np.arange(UNSEEN), self.rule.dropped)

        def planes(marks: NDArray[np.uint8]) -> NDArray[np.bool_]:
            return np.stack([dropped[marks & ~np.uint8(UNSEEN)], marks >= UNSEEN])

        files, left = dict[int, _TileFile](), list(scenes)
        if self.rule.cache is not None:
            files, left = {k: self._file(self.rule.cache, tile, k) for k in scenes}, []
            for k, file in files.items():
                if (kept := file.read()) is None:
                    left.append(k)
                else:
                    yield k, planes(kept), False
        if not left:
            return
        region, inner = with_halo(tile, self.rule.surroundings, self.stack.shape[2:])
        ((_, seen),) = self.stack.select(left).read_all([region], coverage=True)
        record_read(seen.tally)
        assert seen.usable is not None
        for i, (k, usable, failed) in enumerate(zip(left, seen.usable, seen.failed.tolist(), strict=True)):
            marks, whole = np.full([s.stop - s.start for s in tile], UNSEEN, np.uint8), True
            if usable.any():
                marks, whole = self._marked(self.stack.scenes[k].id, region, inner, seen.pixels[i])
                marks[~usable[inner]] |= UNSEEN
            whole = whole and not failed
            if whole and k in files:
                files[k].write(marks, self.stack.geobox[tile])
            yield k, planes(marks), not whole

    def _file(self, folder: str, tile: Window, k: int) -> _TileFile:
        """Return the file of a scene's tile in a cache, named after scene and hash."""
        alone, scene, (y, x) = self.stack.select([k]), self.stack.scenes[k].id, tile
        # what becomes of scenes that fail does not matter to the others
        files = replace(alone, options=replace(alone.options, on_error="raise")).token
        key = hashlib.sha256(f"{self.decides} {files} {scene} {y} {x}".encode()).hexdigest()[:32]
        name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', scene)[:120]}_{y.start}_{x.start}_{key}.tif"
        return _TileFile(join(folder, name), key, (y.stop - y.start, x.stop - x.start))

    def _marked(
        self, scene: str, region: Window, inner: Window, pixels: NDArray[Any]
    ) -> tuple[NDArray[np.uint8], bool]:
        """Return marks of a tile, which lies at `inner` of its region, and whether they could be computed.

        If not, and scenes may be skipped, it is as if nothing were observed.
        """
        y, x = region
        window = (y.start, y.stop, x.start, x.stop)
        size = f"{self.stack.geobox.resolution.x:.10g}"
        where = f"scene {scene}, window y {y.start}:{y.stop} x {x.start}:{x.stop} of pixels of {size}"
        if self.rule.mirrored:
            # as many pixels on each side as the rule looks at, mirrored where the scene ends
            around = self.rule.surroundings
            lacking = [(around - s.start, around - (n - s.stop)) for s, n in zip(inner, pixels.shape[1:], strict=True)]
            pixels = np.pad(pixels, [(0, 0), *lacking], "symmetric")
            rows, columns = (slice(around, around + s.stop - s.start) for s in inner)
            inner = rows, columns
        try:
            return self.rule.marks(np.ascontiguousarray(pixels), inner), True
        except ParameterError as error:
            raise ParameterError(f"{where}: {error}", scene=scene, window=window) from error
        except S2CompositeError:
            raise
        except Exception as error:
            said = f"{where}: {self.rule.what} raised {type(error).__name__}: {error}"
            if self.stack.options.on_error == "raise":
                cure = "leave the scene out, or continue without it there with on_error='skip'"
                raise SceneError(f"{said}; {cure}", scene=scene, window=window) from error
            LOG.warning("%s; it is not used there", said)
            return np.full([s.stop - s.start for s in inner], UNSEEN, np.uint8), False


_SPECKLE = (("opening", 1),)
"""What is taken off before clouds and shadows of a series are grown. A field that changes is a pixel or two: grown like
clouds, such spots took a third of the clear observations, and with a lower threshold clouds are found whole instead."""


@dataclass(frozen=True, eq=False)
class SeriesMask(_TiledMask):
    """Clouds and shadows found in the series itself: each scene is compared with all of the stack."""

    rule: TemporalMask

    white: tuple[tuple[float, float], ...]
    """Of each band what is added to its numbers, and the number of white after that."""

    SIDE = 512
    """Of the tiles that are evaluated at once: those of overviews, so that each is decoded once."""

    @classmethod
    def of(cls, rule: TemporalMask, stack: Stack) -> SeriesMask:
        """Return the mask of all scenes of a stack."""
        token = str(tokenize(str(rule), stack.token))
        if (lonely := alone(_days(stack), rule)).any():
            ids = [scene.id for scene, one in zip(stack.scenes, lonely, strict=True) if one]
            LOG.warning(
                "%s compares scenes with those of %g days before and after, in steps of a third of that, and there are "
                "none for %d of %d (%s ...): all of their observations are kept; for a shorter series give fewer days=",
                rule, rule.days, len(ids), len(stack.scenes), ids[0],
            )  # fmt: skip
        tiles = Tiling((0, 0), (cls.SIDE, cls.SIDE))
        return cls(stack, tuple(range(len(stack.scenes))), tiles, token, rule, _whites(rule, stack))

    def __dask_tokenize__(self) -> object:
        return self.token, self.scenes

    def memory(self) -> int:
        """Return the bytes that evaluating it takes beside the mask itself."""
        pixels = min(self.SIDE, self.stack.shape[2]) * min(self.SIDE, self.stack.shape[3])
        # two values, where there are observations and what is bad, twice; some scenes' pixels and a copy in floats
        values = 2 * (1 if self.stack.dtype == np.uint8 else 2) + 2 * 3
        read = min(_AT_ONCE, len(self.stack.scenes)) * self.stack.shape[1] * (self.stack.dtype.itemsize + 4)
        return pixels * (len(self.stack.scenes) * values + read) + _KEPT_BYTES

    def cost(self, window: Window) -> ReadCost:
        """Return what evaluating a window reads: its share of the tiles, of all scenes."""
        return self.stack.cost(window)

    def evaluate(self, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which observations of a window may be used, ``(t, y, x)``, and which scenes failed."""
        region, inner = with_halo(window, self.rule.grow + halo_of(_SPECKLE), self.stack.shape[2:])
        (bad, seen, lost), failed = self._planes(region, range(len(self.stack.scenes)))
        bad = (bad | dilation(apply_steps(bad, _SPECKLE), self.rule.grow))[(slice(None), *inner)]
        seen, lost = seen[(slice(None), *inner)], lost[(slice(None), *inner)]
        few = (seen > bad).sum(axis=0, dtype=np.int16) < self.rule.min_left
        asked = list(self.scenes)
        return (~bad[asked] | few) & ~lost[asked], failed[asked] & lost[asked].any(axis=(1, 2))

    def evaluate_tile(self, tile: Window, _scenes: Sequence[int], share: _Share) -> Iterator[_Evaluated]:
        """Yield all scenes with what is bad in a tile, seen and lost, ``(3, y, x)``, and whether any of it failed."""
        times = len(self.stack.scenes)
        y, x = tile
        shape = (times, y.stop - y.start, x.stop - x.start)
        least, grey = np.zeros((2, *shape), np.uint8 if self.stack.dtype == np.uint8 else np.uint16)
        seen, lost, bad = np.zeros((3, *shape), bool)
        failed = np.zeros(times, bool)

        def read(start: int) -> None:
            some = slice(start, min(start + _AT_ONCE, times))
            ((_, found),) = self.stack.select(range(times)[some]).read_all([tile], coverage=True)
            record_read(found.tally)
            here = seen[some]
            here[...] = found.usable
            # each band by itself: of interleaved pixels every further step would take several times as long
            bands_apart = [np.ascontiguousarray(band) for band in np.moveaxis(found.pixels, 1, 0)]
            for band in bands_apart:
                here &= ~np.isnan(band) if np.isnan(self.stack.fill) else band != self.stack.fill
            if found.lost is not None:
                lost[some] = found.lost
            lost[some][found.status == FAILED] = True
            failed[some] = found.failed
            values = [_as_bits(b, *white, least.dtype) for b, white in zip(bands_apart, self.white, strict=True)]
            least[some], total = values[0], values[0].astype(np.uint16)
            for value in values[1:]:
                np.minimum(least[some], value, out=least[some])
                total += value
            grey[some] = total // np.uint16(len(values))

        share(partial(read, start) for start in range(0, times, _AT_ONCE))  # all of them, whichever are asked for
        flat, days = [array.reshape(times, -1) for array in (least, grey, seen, bad)], _days(self.stack)

        def compare(start: int) -> None:
            some = slice(start, start + _COMPARED)
            with metered("kernel"):
                flat[3][:, some] = unlike(flat[0], flat[1], flat[2], days, self.rule, some)

        share(partial(compare, start) for start in range(0, flat[0].shape[1], _COMPARED))
        for k in range(times):
            yield k, np.stack([bad[k], seen[k], lost[k]]), bool(failed[k])


def _days(stack: Stack) -> list[float]:
    return [day_number(scene.time) for scene in stack.scenes]


def _as_bits(pixels: NDArray[Any], add: float, white: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers in 255ths of white, 1 at least, in 8 or 10 bits."""
    if pixels.dtype == dtype == np.uint8 and (add, white) == (0.0, 255.0):
        return pixels
    scaled = np.nan_to_num((pixels.astype(np.float32) + np.float32(add)) * np.float32(255 / white), nan=0.0)
    bits: NDArray[Any] = np.rint(np.clip(scaled, 1, 255 if dtype == np.uint8 else 1023)).astype(dtype)
    return bits


def _whites(rule: TemporalMask, stack: Stack) -> tuple[tuple[float, float], ...]:
    """Return of each band what is added to its numbers, and what is white then."""
    whites, parts = [], [source.part for files in stack.sources for source in files]
    for row, (band, numbers) in enumerate(zip(stack.bands, stack.numbers, strict=True)):
        if numbers is not None:
            scale, offset = numbers.scale, numbers.offset
        else:  # the offset may not be known, and differences do not need it
            found = (values for part in parts for i, values in enumerate(part.values, part.row) if i == row)
            scales = {values.scale if values.unit == "1" else None for values in found}
            scale, offset = scales.pop() if len(scales) == 1 else None, 0.0
        if rule.white is not None:
            whites.append((0.0, float(rule.white)))
        elif stack.dtype == np.uint8:
            whites.append((0.0, 255.0))
        elif scale and (numbers is None or numbers.unit == "1"):
            whites.append((offset / scale, WHITE / scale))
        else:
            raise ParameterError(
                f"TemporalMask compares reflectances, and nothing says what the numbers of band {band!r} "
                f"({stack.dtype}) mean; say which is a reflectance of {WHITE} with white="
            )
    return tuple(whites)
