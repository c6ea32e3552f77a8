"""Stack: scenes x bands on a geobox, not yet read."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.errors import GridError, ReadError, SourceError
from s2composite.reading.bands import BandName, assets_of, layout_of
from s2composite.reading.grid import TargetGrid, Window, aligned_offset, crop, native_geoboxes, target_geobox
from s2composite.reading.headers import open_headers, opened_sources
from s2composite.reading.plan import (
    Piece,
    ReadCost,
    ReadGrid,
    along_tiles,
    cost_of_window,
    cut,
    largest_selection,
    shape_of,
    tile_selections,
    window_of,
)
from s2composite.reading.reader import FAILED, OUTSIDE, READ, PendingRead, WindowObservations, begin
from s2composite.reading.sources import (
    FileSource,
    ReadOptions,
    check_alike,
    numbers_of,
    sources_of,
    with_named_shifts,
)
from s2composite.reading.tiles import KeptTiles
from s2composite.scenes.model import Scene, Values
from s2composite.storage.files import is_remote
from s2composite.storage.limits import declare

__all__ = ["Products", "Stack", "open_stack"]


@dataclass(frozen=True, eq=False)
class Products:
    """The products that were fused into a stack's scenes."""

    stack: Stack  # each product as a separate scene, grouped by scene, the preferred product first
    scene: NDArray[np.intp]  # (p,), ascending: position of each product's scene


_Begun = tuple[Piece, NDArray[np.bool_] | None, PendingRead]
_Read = tuple[Piece, WindowObservations]

_OWN_GRID = TargetGrid()
_DEFAULTS = ReadOptions()


@dataclass(frozen=True, eq=False)
class Stack:
    """Scenes x bands on a geobox, not yet read."""

    scenes: tuple[Scene, ...]  # in order of time
    # the files of each scene; empty for a scene that could not be opened and is skipped
    sources: tuple[tuple[FileSource, ...], ...]
    bands: tuple[str, ...]  # names of the bands
    geobox: GeoBox  # pixel grid
    dtype: np.dtype[Any]  # of the pixels in the files
    nodata: float | None  # nodata value declared by the files
    options: ReadOptions  # how to read
    whole: GeoBox | None = None  # grid from which `geobox` was cut; None: it was not cut

    @cached_property
    def products(self) -> Products:
        """Its products as separate scenes; the stack itself if nothing was fused."""
        if not any(scene.members for scene in self.scenes):
            return Products(self, np.arange(len(self.scenes)))
        apart = [
            (t, product, tuple(source for source in files if source.member == member))
            for t, (scene, files) in enumerate(zip(self.scenes, self.sources, strict=True))
            # a scene that cannot be opened counts as one failure, however many products it has
            for member, product in enumerate(scene.parts if files else scene.parts[:1])
        ]
        days, scenes, sources = zip(*apart, strict=True)
        return Products(replace(self, scenes=scenes, sources=sources), np.array(days))

    @property
    def fill(self) -> float:
        """Value of pixels that no file covers: nodata, or 0 (NaN for floats) if none is declared."""
        if self.nodata is not None:
            return self.nodata
        return float("nan") if self.dtype.kind == "f" else 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Scenes, bands, rows, columns."""
        return len(self.scenes), len(self.bands), self.geobox.shape.y, self.geobox.shape.x

    @cached_property
    def _target(self) -> ReadGrid:
        whole = self.whole or self.geobox
        shift = aligned_offset(whole, self.geobox)
        assert shift is not None
        return ReadGrid(whole, shift, self.fill)

    @cached_property
    def block(self) -> tuple[int, int]:
        """Block ``(y, x)`` that windows snap to, in pixels of the geobox: the largest among the files on the grid."""
        on_grid = [s for s in self._all() if s.offset is not None]
        as_they_are = [s for s in on_grid if s.factor == 1] or on_grid
        blocks = [s.header.levels[s.level].block for s in as_they_are] or [(512, 512)]
        height, width = self.geobox.shape.y, self.geobox.shape.x
        return min(max(b[0] for b in blocks), height), min(max(b[1] for b in blocks), width)

    @cached_property
    def snaps(self) -> bool:
        """Whether any file is on the grid, so that windows of whole blocks decode each tile once."""
        return any(source.offset is not None for source in self._all())

    @cached_property
    def mixed(self) -> bool:
        """Whether any file has larger pixels than the grid, so that pieces of a window share its tiles."""
        return any(source.factor > 1 for source in self._all())

    @cached_property
    def remote(self) -> bool:
        """Whether any file is remote, so that reading waits for the network."""
        return any(is_remote(source.header.href) for source in self._all())

    @cached_property
    def block_origin(self) -> tuple[int, int]:
        """Position ``(y, x)`` of the geobox's origin within a block, so that windows of a cropped grid snap too."""
        on_grid = [s.offset for s in self._all() if s.offset is not None and s.factor == 1]
        offset = on_grid[0] if on_grid else (0, 0) if self.snaps else self._target.shift
        return offset[0] % self.block[0], offset[1] % self.block[1]

    @cached_property
    def token(self) -> str:
        """Hash of everything that determines the pixels: stacks of the same unchanged files have the same token."""
        digest = hashlib.sha256()
        for scene, files in zip(self.scenes, self.sources, strict=True):
            digest.update(repr((scene.id, scene.time)).encode())
            for s in files:
                how = (s.level, s.offset, s.factor, s.engine, s.resampling, s.conversion, s.nodata, s.alpha, s.member)
                digest.update(
                    repr((s.header.href, s.header.identity.state, s.part.file_bands, s.part.row, how)).encode()
                )
                if s.header.mask is not None:
                    digest.update(repr((s.header.mask.href, s.header.mask.identity.state)).encode())
        grid = (self.geobox.shape, self.geobox.transform, str(self.geobox.crs))
        whole = None if self.whole is None else (self.whole.shape, self.whole.transform)
        digest.update(repr((self.bands, grid, whole, self.dtype.str, self.nodata, self.options)).encode())
        return digest.hexdigest()[:32]

    def __dask_tokenize__(self) -> str:
        return self.token

    def _all(self) -> Iterator[FileSource]:
        return (source for files in self.sources for source in files)

    @cached_property
    def _extents(self) -> tuple[list[tuple[int, FileSource]], NDArray[np.int64]]:
        """All files with the positions of their scenes, and their extents ``(files, 4)``."""
        files = [(t, source) for t, sources in enumerate(self.sources) for source in sources]
        return files, np.array([source.extent for _, source in files], np.int64).reshape(-1, 4)

    @cached_property
    def _interleaved(self) -> bool:
        return len(self.bands) > 1 and all(
            len(files) == 1 and files[0].header.coding.interleave == "pixel" for files in self.sources if files
        )

    @cached_property
    def _opened(self) -> NDArray[np.bool_]:
        return np.array([bool(files) for files in self.sources], bool)

    def _files_near(self, window: Window, pad: int = 0) -> list[tuple[int, FileSource]]:
        """Return the files that may touch a window."""
        files, extents = self._extents
        y, x = window
        touching = (extents[:, 0] < y.stop + pad) & (extents[:, 1] > y.start - pad)
        touching &= (extents[:, 2] < x.stop + pad) & (extents[:, 3] > x.start - pad)
        return [files[i] for i in np.flatnonzero(touching)]

    def touching(self, window: Window, pad: int = 0) -> NDArray[np.intp]:
        """Return the scenes that may have pixels in a window, and those that could not be opened."""
        near = [t for t, _ in self._files_near(window, pad)]
        return np.union1d(np.array(near, np.intp), np.flatnonzero(~self._opened)).astype(np.intp)

    @cached_property
    def depth(self) -> int:
        """Maximum number of scenes with pixels in one place: those of a country seldom overlap."""
        height, width = self.geobox.shape.y, self.geobox.shape.x
        rows, columns = max(1, min(64, height)), max(1, min(64, width))
        counts = np.zeros((rows, columns), np.int64)
        files, extents = self._extents
        scale = np.array([rows / height, rows / height, columns / width, columns / width])
        cells = extents * scale
        low = np.floor(np.clip(cells[:, [0, 2]], 0, [rows, columns])).astype(int)
        high = np.ceil(np.clip(cells[:, [1, 3]], 0, [rows, columns])).astype(int)
        # files are in order of scenes
        for _, of_scene in itertools.groupby(range(len(files)), lambda i: files[i][0]):
            reached = np.zeros((rows, columns), bool)
            for i in of_scene:
                reached[low[i, 0] : high[i, 0], low[i, 1] : high[i, 1]] = True
            counts += reached
        return max(1, int(counts.max()) + int((~self._opened).sum()))

    def shifts(self) -> NDArray[np.float64]:
        """Return the number added to each scene's values to harmonise baselines: NaN if unknown or not one number."""
        shifts = np.full(len(self.sources), np.nan)
        for t, files in enumerate(self.sources):
            values = [(source.conversion.shift, one) for source in files for one in source.part.values]
            known = {shift for shift, one in values if one.scale is not None} or {0.0}
            if len(known) == 1 and all(one.shift is not None for _, one in values):
                shifts[t] = known.pop()
        return shifts

    @cached_property
    def numbers(self) -> tuple[Values | None, ...]:
        """Scale, offset and unit of each band; None if unknown, or not the same in all scenes."""
        return numbers_of(self.sources, len(self.bands))

    @cached_property
    def saturated(self) -> tuple[float, ...]:
        """Values of saturated pixels as float32, if they are not the largest of the stack's type."""
        conversions = {source.conversion for source in self._all()}
        return tuple(sorted({how.saturated_value for how in conversions if how.saturated is not None}))

    def select(self, positions: Sequence[int]) -> Stack:
        """Return the stack of some of the scenes."""
        scenes = tuple(self.scenes[t] for t in positions)
        return replace(self, scenes=scenes, sources=tuple(self.sources[t] for t in positions))

    def reopened(self, bands: Sequence[BandName], target: TargetGrid, options: ReadOptions) -> Stack:
        """Open bands of the same scenes on another grid, in the same order, which may not be that of time."""
        other = open_stack(self.scenes, bands, target, options)
        position = {scene.id: t for t, scene in enumerate(other.scenes)}
        order = [position[scene.id] for scene in self.scenes]
        return other if order == sorted(order) else other.select(order)

    def crop(self, geobox: GeoBox) -> Stack:
        """Return the stack on a part of its grid."""
        delta = aligned_offset(self.geobox, geobox)
        if delta is None:
            raise GridError("the area is not on the grid of the stack; open the scenes again with geobox=")
        down, right = delta

        def moved(source: FileSource) -> FileSource:
            top, bottom, left, end = source.extent
            extent = (top - down, bottom - down, left - right, end - right)
            offset = None if source.offset is None else (source.offset[0] + down, source.offset[1] + right)
            return replace(source, extent=extent, offset=offset)

        sources = tuple(tuple(map(moved, files)) for files in self.sources)
        return replace(self, geobox=geobox, sources=sources, whole=self.whole or self.geobox)

    def pieces(self, window: Window) -> tuple[Piece, ...]:
        """Cut a window into pieces to read one after the other.

        Local files are decoded in place, one tile position at a time. Remote files are read a row of tiles at a time,
        because the tiles of a row are adjacent and fetched together. For files on another grid with the same tiles, a
        piece holds the pixels from a group of these tiles. Files read by GDAL are opened once for a window.
        """
        declare(self.options.limits)
        found, _ = opened_sources(self._files_near(window))
        selections = tile_selections([source for _, source in found], self._target, window)
        return selections or self.rectangles(window)

    def rectangles(self, window: Window) -> tuple[Window, ...]:
        """Cut a window like `pieces`, but only into rectangles; opens nothing."""
        if any(source.engine != "tiles" or source.offset is None for source in self._all()):
            return (window,)
        if self.remote:
            return tuple((row, window[1]) for row in cut(window[0], self.block[0], self.block_origin[0]))
        return self.blocks(window)

    def blocks(self, window: Window) -> tuple[Window, ...]:
        """Cut a window at the borders of the files' blocks."""
        rows, columns = map(cut, window, self.block, self.block_origin)
        return tuple((row, column) for row in rows for column in columns)

    def largest(self, window: Window) -> int:
        """Return the maximum number of values in a piece of a window; opens nothing."""
        largest = max(map(self.size, self.rectangles(window)))
        pixels = largest_selection([source for _, source in self._files_near(window)], self.geobox)
        return largest if pixels is None else min(largest, pixels * self.shape[0] * self.shape[1])

    def size(self, piece: Piece) -> int:
        """Return the number of values in a window or piece."""
        times, bands = self.shape[:2]
        return times * bands * math.prod(shape_of(piece))

    def cost(self, window: Window) -> ReadCost:
        """Return the cost of reading a window, without reading anything."""
        return cost_of_window(self._files_near(window), self._target, window)

    def read(self, window: Window) -> WindowObservations:
        """Read a window of all scenes and bands."""
        ((_, seen),) = self.read_all([window])
        return seen

    def read_all(
        self,
        pieces: Sequence[Piece],
        scratch: NDArray[Any] | None = None,
        *,
        coverage: bool = False,
        wanted: Iterable[NDArray[np.bool_] | None] = (),
        kept: KeptTiles | None = None,
    ) -> Generator[_Read]:
        """Request the bytes of the first window, or piece, and return what reads them one after the other.

        Each is fetched while the one before it is processed. ``wanted (t, y, x)`` gives for each piece the pixels that
        are needed (None: all), and is taken one piece ahead. Tiles without any are neither fetched nor decoded, and
        cannot fail. `kept` has the tiles that pieces share which are read by several calls.
        """
        declare(self.options.limits)
        kept = KeptTiles() if kept is None and len(pieces) > 1 else kept
        times, bands = self.shape[:2]

        def begun() -> Iterator[_Begun]:
            for piece, need in itertools.zip_longest(pieces, wanted):
                near, (rows, columns) = self._files_near(window_of(piece)), shape_of(piece)
                flat = np.empty(self.size(piece), self.dtype) if scratch is None else scratch[: self.size(piece)]
                # if decoders return all bands of a pixel together, keep the window in that layout
                if self._interleaved:
                    pixels = np.moveaxis(flat.reshape(times, rows, columns, bands), 3, 1)
                else:
                    pixels = flat.reshape(times, bands, rows, columns)
                asked = begin(
                    near, self._opened, self._target, piece, pixels, coverage=coverage, wanted=need, kept=kept
                )
                yield piece, need, asked

        def finished(following: _Begun | None) -> Generator[_Read]:
            try:
                while following is not None:
                    (piece, need, pending), following = following, None
                    following = next(ahead, None)
                    seen = pending.finish()
                    if seen.failures and self.options.on_error == "raise":
                        (t, error), (y, x) = seen.failures[0], pending.window
                        scene = self.scenes[t]
                        raise ReadError(
                            f"scene {scene.id}, window y {y.start}:{y.stop} x {x.start}:{x.stop}: {error}; try again, "
                            "leave the scene out, or continue without it with on_error='skip'",
                            **error.__dict__ | {"scene": scene.id, "window": (y.start, y.stop, x.start, x.stop)},
                        )
                    yield piece, self._without_lost_tiles(piece, seen, need) if seen.failures else seen
            finally:
                if following is not None:
                    following[2].close()

        ahead = begun()
        return finished(next(ahead, None))

    def _without_lost_tiles(
        self, piece: Piece, seen: WindowObservations, wanted: NDArray[np.bool_] | None
    ) -> WindowObservations:
        """Read the scenes that failed in a piece again, each alone and tile by tile: only unreadable tiles are lost."""
        window = window_of(piece)
        lost = np.zeros((len(self.scenes), *seen.pixels.shape[2:]), bool)
        for t, _ in seen.failures:
            alone, states = self.select([t]), set[int]()
            found, _ = opened_sources([one for one in self._files_near(window) if one[0] == t])
            parts = along_tiles([source for _, source in found], self._target, piece, self.blocks(window))
            lost[t] = len(parts) == 1
            for part, place in parts if len(parts) > 1 else ():
                need = [] if wanted is None else [np.atleast_2d(wanted[t][place])[None]]
                ((_, again),) = alone.read_all([part], coverage=seen.covered is not None, wanted=need)
                seen.put(t, place, again)
                lost[t][place] = again.lost is not None
                states.add(int(again.status[0]))
            # whether it intersects the window at all; `lost` records where it cannot be used
            seen.status[t] = next((state for state in (READ, OUTSIDE) if state in states), FAILED)
        return replace(seen, lost=lost)


def open_stack(
    scenes: Sequence[Scene],
    bands: Sequence[BandName] | None = None,
    target: TargetGrid = _OWN_GRID,
    options: ReadOptions = _DEFAULTS,
    index: str | os.PathLike[str] | None = None,
) -> Stack:
    """Read the headers of scenes, once and concurrently, check them against each other and put them on one grid."""
    if not scenes:
        raise SourceError("there are no scenes to open; find_scenes(source) shows what a source holds")
    scenes = sorted(scenes, key=lambda scene: (scene.time, scene.id))
    products = [product for scene in scenes for product in scene.parts]
    declare(options.limits)
    skip = options.on_error == "skip"
    wanted = assets_of(products, bands, skip=skip)
    headers, broken = open_headers(products, wanted, options, index)
    usable = [bool(assets) and not any(a.href in broken for a in assets) for assets in wanted]
    if not any(usable):
        raise next(iter(broken.values()))
    names, found = layout_of(products, wanted, headers, bands, usable, skip=skip)
    parts = with_named_shifts(products, found, options)
    used = {s.id: [headers[p.asset.href] for p in ps] for s, ps in zip(products, parts, strict=True) if ps}
    # scenes located by a catalogue without a granule may be anywhere
    places = {p.id: p.granule or (p.id if p.bbox is not None else None) for p in products}
    natives = native_geoboxes(used, places, grid=not target.named, converted=options.reflectance)
    first, first_parts = next((used[s.id], ps) for s, ps in zip(products, parts, strict=True) if ps)
    grid = target_geobox(natives, first, target)
    geobox = crop(grid, target.bbox)
    check_alike(products, parts, headers, names, options)
    sources = sources_of(scenes, parts, names, headers, geobox, options)
    nodata = first[0].nodata_of(first_parts[0].file_bands[0])
    nodata = first_parts[0].values[0].nodata if nodata is None else nodata
    if nodata is None and any(s.header.mask_kind or s.alpha is not None for files in sources for s in files):
        nodata = float("nan") if first[0].dtype.kind == "f" else 0.0
    dtype = np.result_type(*(header.dtype for header in first))
    scaled = any(values.scale is not None and not values.classes for part in first_parts for values in part.values)
    if options.reflectance and scaled:
        dtype, nodata = np.dtype(np.float32), float("nan")
    return Stack(tuple(scenes), sources, names, geobox, dtype, nodata, options, grid)
