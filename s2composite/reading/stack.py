"""Stack: scenes x bands on a geobox, unread."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox

from s2composite.errors import BandError, GridError, ReadError, S2CompositeError, SceneError, SourceError
from s2composite.reading.grid import Window, aligned_offset, common_geobox, crop, target_geobox
from s2composite.reading.header import Header, read_header
from s2composite.reading.index import load_index, save_index
from s2composite.reading.layout import Part, parts_of, wanted_assets
from s2composite.reading.observe import Observations, Pending, Target, begin
from s2composite.reading.source import ReadOptions, Source, choose_source
from s2composite.scenes.model import Asset, Scene
from s2composite.scenes.storage import is_remote

__all__ = ["Stack", "TargetGrid", "open_stack"]

_HEADER_READS = 32
"""Headers read at once; remote ones wait for the network, local ones take 0.3 ms each."""


@dataclass(frozen=True, slots=True)
class TargetGrid:
    """The pixel grid that is asked for; all None: the scenes' own."""

    geobox: GeoBox | None = None
    """Exactly this grid."""

    crs: Any = None
    """Anything that names a coordinate system."""

    resolution: float | None = None
    """Pixel size in units of the CRS."""

    bbox: BoundingBox | Sequence[float] | None = None
    """Crop to this: west, south, east, north in degrees, or a BoundingBox with its own CRS."""

    @property
    def named(self) -> bool:
        """Whether scenes that are not on one grid may be warped to this."""
        return self.geobox is not None or self.crs is not None


_OWN_GRID = TargetGrid()
_DEFAULTS = ReadOptions()


@dataclass(frozen=True, eq=False)
class Stack:
    """Scenes x bands on a geobox, unread."""

    scenes: tuple[Scene, ...]
    """In order of time."""

    sources: tuple[tuple[Source, ...], ...]
    """The files of each scene; empty for a scene that could not be opened and is skipped."""

    bands: tuple[str, ...]
    """Names of the bands."""

    geobox: GeoBox
    """Pixel grid."""

    dtype: np.dtype[Any]
    """Of the pixels, as the files have it."""

    nodata: float | None
    """What the files declare as no data."""

    options: ReadOptions
    """How to read."""

    @property
    def fill(self) -> float:
        """Value of pixels that no file covers: nodata, or 0 (NaN for floats) where none is declared."""
        if self.nodata is not None:
            return self.nodata
        return float("nan") if self.dtype.kind == "f" else 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Scenes, bands, rows, columns."""
        return len(self.scenes), len(self.bands), self.geobox.shape.y, self.geobox.shape.x

    @cached_property
    def block(self) -> tuple[int, int]:
        """Block ``(y, x)`` that windows snap to, in pixels of the geobox: the largest among the files on the grid."""
        blocks = [s.header.levels[s.level].block for s in self._all() if s.offset is not None] or [(512, 512)]
        height, width = self.geobox.shape.y, self.geobox.shape.x
        return min(max(b[0] for b in blocks), height), min(max(b[1] for b in blocks), width)

    @cached_property
    def block_origin(self) -> tuple[int, int]:
        """Position ``(y, x)`` of the geobox's origin within a block, so that windows of a cropped grid snap too."""
        offset = next((s.offset for s in self._all() if s.offset is not None), (0, 0))
        return offset[0] % self.block[0], offset[1] % self.block[1]

    @cached_property
    def token(self) -> str:
        """Hash of all that decides the pixels: stacks of the same unchanged files have the same token."""
        digest = hashlib.sha256()
        for scene, files in zip(self.scenes, self.sources, strict=True):
            digest.update(repr((scene.id, scene.time)).encode())
            for s in files:
                digest.update(repr((s.header.href, s.header.identity, s.part, s.level, s.offset, s.engine)).encode())
        grid = (self.geobox.shape, self.geobox.transform, str(self.geobox.crs))
        digest.update(repr((self.bands, grid, self.dtype.str, self.nodata, self.options)).encode())
        return digest.hexdigest()[:32]

    def __dask_tokenize__(self) -> str:
        return self.token

    def _all(self) -> Iterator[Source]:
        return (source for files in self.sources for source in files)

    @cached_property
    def _interleaved(self) -> bool:
        """Whether decoders hand out all bands of a pixel together, so that the window is best kept that way."""
        return len(self.bands) > 1 and all(
            len(files) == 1 and files[0].header.interleave == "pixel" for files in self.sources if files
        )

    def engines(self) -> Mapping[str, str]:
        """Return the engines in use and why, ``{"tiles": "216 file(s): on the target grid"}``."""
        reasons: dict[str, dict[str, int]] = {}
        for source in self._all():
            why = reasons.setdefault(source.engine, {})
            why[source.why] = why.get(source.why, 0) + 1
        return {e: "; ".join(f"{n} file(s): {why}" for why, n in rs.items()) for e, rs in reasons.items()}

    def select(self, positions: Sequence[int]) -> Stack:
        """Return the stack of some of the scenes."""
        scenes = tuple(self.scenes[t] for t in positions)
        return replace(self, scenes=scenes, sources=tuple(self.sources[t] for t in positions))

    def crop(self, geobox: GeoBox) -> Stack:
        """Return the stack on a part of its grid.

        Raises
        ------
        GridError
            `geobox` is not on the stack's grid.
        """
        delta = aligned_offset(self.geobox, geobox)
        if delta is None:
            raise GridError("the area is not on the grid of the stack; open the scenes again with geobox=")
        sources = tuple(tuple(_moved(source, delta) for source in files) for files in self.sources)
        return replace(self, geobox=geobox, sources=sources)

    def pieces(self, window: Window) -> tuple[Window, ...]:
        """Cut a window into the pieces that are best read one after the other.

        Tiles of local files are decoded one position at a time, in place. Remote ones go a row of tiles at a time,
        because tiles of a row lie together and are fetched together. What GDAL reads is opened once for a window.
        """
        if any(source.engine == "gdal" for source in self._all()):
            return (window,)
        if any(is_remote(source.header.href) for source in self._all()):
            return tuple((row, window[1]) for row in _cut(window[0], self.block[0], self.block_origin[0]))
        return self.blocks(window)

    def blocks(self, window: Window) -> tuple[Window, ...]:
        """Cut a window at the borders of the files' blocks."""
        rows, columns = map(_cut, window, self.block, self.block_origin)
        return tuple((row, column) for row in rows for column in columns)

    def size(self, window: Window, pad: int = 0) -> int:
        """Return how many values a window holds."""
        times, bands = self.shape[:2]
        y, x = window
        height, width = int(y.stop - y.start) + 2 * pad, int(x.stop - x.start) + 2 * pad
        return times * bands * height * width

    def read(self, window: Window, pad: int = 0, scratch: NDArray[Any] | None = None) -> Observations:
        """Read a window of all scenes and bands.

        Parameters
        ----------
        window
            ``(y, x)`` slices of the geobox.
        pad
            Pixels to add on each side; beyond the geobox they are still read if a file has them.
        scratch
            Flat memory for the pixels, at least `size` values; None: fresh memory.

        Returns
        -------
        Observations
            Pixels of shape ``(t, b, y + 2 pad, x + 2 pad)``.

        Raises
        ------
        ReadError
            A scene could not be read and ``on_error`` is ``"raise"``; names scene, window, href and cause.
        """
        return self._finish(self._begin(window, pad, scratch), window)

    def read_all(
        self, windows: Sequence[Window], scratch: NDArray[Any] | None = None
    ) -> Iterator[tuple[Window, Observations]]:
        """Read windows one after the other, the bytes of each on their way while the one before is used.

        Parameters
        ----------
        scratch
            Memory for any of them: what is yielded is valid until the next one is asked for.
        """
        pending: Pending | None = self._begin(windows[0], 0, scratch)
        try:
            for window, following in itertools.zip_longest(windows, windows[1:]):
                current, pending = pending, None
                assert current is not None
                pending = self._begin(following, 0, scratch) if following is not None else None
                yield window, self._finish(current, window)
        finally:
            if pending is not None:
                pending.close()

    def _begin(self, window: Window, pad: int, scratch: NDArray[Any] | None) -> Pending:
        y, x = (slice(s.start - pad, s.stop + pad) for s in window)
        pixels = self._allocate(y.stop - y.start, x.stop - x.start, scratch)
        return begin(self.sources, Target(self.geobox, self.fill, self.options.resampling), (y, x), pixels)

    def _finish(self, pending: Pending, window: Window) -> Observations:
        seen = pending.finish()
        if seen.errors and self.options.on_error == "raise":
            raise self._failure(*min(seen.errors.items()), window)
        return seen

    def _allocate(self, height: int, width: int, scratch: NDArray[Any] | None) -> NDArray[Any]:
        times, bands = self.shape[:2]
        size = times * bands * height * width
        flat = np.empty(size, self.dtype) if scratch is None else scratch[:size]
        if self._interleaved:
            return np.moveaxis(flat.reshape(times, height, width, bands), 3, 1)
        return flat.reshape(times, bands, height, width)

    def _failure(self, t: int, error: ReadError, window: Window) -> ReadError:
        y, x = window
        scene = self.scenes[t]
        facts = {**error.__dict__, "scene": scene.id, "window": (y.start, y.stop, x.start, x.stop)}
        return ReadError(
            f"scene {scene.id}, window y {y.start}:{y.stop} x {x.start}:{x.stop}: {error}; try again, leave the scene "
            "out, or go on without it with on_error='skip'",
            **facts,
        )


def _cut(span: slice, block: int, origin: int) -> list[slice]:
    """Cut a slice at the borders of blocks, the first of which starts `origin` pixels before 0.

    >>> _cut(slice(100, 1100), 512, 0)
    [slice(100, 512, None), slice(512, 1024, None), slice(1024, 1100, None)]
    """
    first = span.start + block - (span.start + origin) % block
    borders = [span.start, *range(first, span.stop, block), span.stop]
    return [slice(a, b) for a, b in itertools.pairwise(borders)]


def _moved(source: Source, delta: tuple[int, int]) -> Source:
    if source.offset is None:
        return source
    return replace(source, offset=(source.offset[0] + delta[0], source.offset[1] + delta[1]))


def open_stack(
    scenes: Sequence[Scene],
    bands: Sequence[str] | None = None,
    target: TargetGrid = _OWN_GRID,
    options: ReadOptions = _DEFAULTS,
    index: str | os.PathLike[str] | None = None,
) -> Stack:
    """Read the headers of scenes, once and concurrently, check them against each other and put them on one grid.

    Parameters
    ----------
    scenes
        In any order; they are sorted by time, then id.
    bands
        Names of bands or whole assets; None: the only asset, or the true-colour picture.
    target
        The grid that is wanted.
    options
        How to read.
    index
        File that keeps the headers for the next time; one that changed since is read again.

    Raises
    ------
    SourceError
        No scenes.
    SceneError
        A file is missing, not a raster, truncated, or has other bands than its name says.
    GridError
        Scenes differ in size, grid, CRS, dtype or number of bands, or the target lies elsewhere.
    BandError
        A band is not there.
    """
    if not scenes:
        raise SourceError("there are no scenes to open; find_scenes(source) shows what a source holds")
    scenes = sorted(scenes, key=lambda scene: (scene.time, scene.id))
    wanted = wanted_assets(scenes, bands)
    headers, broken = _read_headers(wanted, options, index)
    usable = [not any(a.href in broken for a in assets) for assets in wanted]
    if not any(usable):
        raise next(iter(broken.values()))
    names, parts = _layout(scenes, wanted, headers, bands, usable)
    used = {s.id: [headers[p.asset.href] for p in ps] for s, ps in zip(scenes, parts, strict=True) if ps}
    native = common_geobox(used, grid=not target.named)
    first = next(iter(used.values()))
    grid = target_geobox(native, first, crs=target.crs, resolution=target.resolution, geobox=target.geobox)
    geobox = crop(grid, target.bbox)
    sources = tuple(tuple(choose_source(headers[p.asset.href], p, geobox, options) for p in ps) for ps in parts)
    dtype = np.result_type(*(header.dtype for header in first))
    return Stack(tuple(scenes), sources, names, geobox, dtype, first[0].nodata, options)


def _read_headers(
    wanted: Sequence[Sequence[Asset]], options: ReadOptions, index: str | os.PathLike[str] | None
) -> tuple[dict[str, Header], dict[str, S2CompositeError]]:
    """Return headers, and errors where they are to be skipped, by href."""
    hrefs = list(dict.fromkeys(asset.href for assets in wanted for asset in assets))
    known = {} if index is None else load_index(index, hrefs)

    def read(href: str) -> Header | S2CompositeError:
        try:
            return known.get(href) or read_header(href)
        except (SceneError, ReadError) as error:
            if options.on_error == "raise":
                raise
            return error

    with ThreadPoolExecutor(_HEADER_READS) as pool:
        found = dict(zip(hrefs, pool.map(read, hrefs), strict=True))
    headers = {href: header for href, header in found.items() if isinstance(header, Header)}
    if index is not None and headers.keys() - known.keys():
        save_index(list(headers.values()), index)
    return headers, {href: error for href, error in found.items() if not isinstance(error, Header)}


def _layout(
    scenes: Sequence[Scene],
    wanted: Sequence[Sequence[Asset]],
    headers: Mapping[str, Header],
    bands: Sequence[str] | None,
    usable: Sequence[bool],
) -> tuple[tuple[str, ...], tuple[tuple[Part, ...], ...]]:
    names: tuple[str, ...] | None = None
    parts: list[tuple[Part, ...]] = []
    for scene, assets, ok in zip(scenes, wanted, usable, strict=True):
        if not ok:
            parts.append(())
            continue
        found, files = parts_of(scene, assets, headers, bands)
        names = names or found
        if found != names:
            raise BandError(
                f"scene {scene.id} has bands {', '.join(found)}, the scenes before it {', '.join(names)}; "
                "leave it out, or choose bands= that all have",
                scene=scene.id,
            )
        parts.append(files)
    assert names is not None
    return names, tuple(parts)
