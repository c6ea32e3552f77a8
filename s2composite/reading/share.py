"""Share: which part of each file a window takes, where it goes, and what it costs. No pixels here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.errors import ReadError
from s2composite.reading.grid import Window, level_geobox
from s2composite.reading.header import Header
from s2composite.reading.promise import fulfilled, is_promised
from s2composite.reading.source import Source, nodata_of_file
from s2composite.reading.tiles import TileRequest, cost_of
from s2composite.reading.warp import nearest_pixels

__all__ = [
    "ReadCost",
    "Share",
    "Target",
    "cost_of_window",
    "in_turn",
    "opened_sources",
    "requests_of",
    "share_of",
    "subgrid",
    "touched",
]


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A source, and the part of the window that it covers."""

    scene: int
    """Position of the scene."""

    member: int
    """Turn among the files of a scene that may cover the same pixels; those of turn 0 are the first to write."""

    source: Source
    """The file."""

    window: Window
    """What is decoded, in pixels of the source's level; in pixels of the geobox where GDAL warps."""

    place: Window
    """Where it goes, in pixels of the window."""

    inner: Window | None = None
    """The part of the decoded pixels, each repeated, that is wanted; None: they are not repeated."""

    index: NDArray[np.int32] | None = None
    """Which of the decoded pixels each of `place` takes, -1 for none; None: they are as they are."""

    @property
    def warped(self) -> bool:
        """Whether GDAL puts it on the target grid, and heeds the file's mask and alpha band itself."""
        return self.source.offset is None and self.source.resampling != "nearest"

    @property
    def masked(self) -> bool:
        """Whether a mask is read beside it."""
        return bool(self.source.header.mask_kind) and not self.warped

    @property
    def bands(self) -> tuple[int, ...]:
        """Bands of the file that are decoded: those of the stack, then the alpha band."""
        alpha = self.source.alpha
        return self.source.part.file_bands + (() if alpha is None or self.warped else (alpha,))

    @property
    def direct(self) -> bool:
        """Whether it is decoded where it goes."""
        alone = self.bands == self.source.part.file_bands
        return self.inner is None and self.index is None and self.member == 0 and alone

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(bands, y, x)`` of what is decoded."""
        y, x = self.window
        return len(self.bands), y.stop - y.start, x.stop - x.start

    def rows(self) -> slice:
        """Return its bands in the stack."""
        part = self.source.part
        return slice(part.row, part.row + len(part.file_bands))

    def memory(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return memory for what is decoded, laid out as the file is."""
        bands, height, width = self.shape
        if self.source.header.interleave == "pixel":
            return np.moveaxis(np.empty((height, width, bands), dtype), 2, 0)
        return np.empty((bands, height, width), dtype)


@dataclass(frozen=True, slots=True)
class Target:
    """The grid that is read onto."""

    whole: GeoBox
    """Pixel grid from which the stack's was cut: transforms of parts differ in their last digits, which rounding can
    show, so all parts are described as parts of the same grid."""

    shift: tuple[int, int]
    """``(y, x)`` of the stack's first pixel in it."""

    fill: float
    """Value of pixels that no file covers."""

    def in_whole(self, window: Window) -> Window:
        """Return a window of the stack as one of the whole grid, which it may leave."""
        y, x = (slice(s.start + n, s.stop + n) for s, n in zip(window, self.shift, strict=True))
        return y, x

    def grid(self, window: Window) -> GeoBox:
        """Return the grid of a window of the stack."""
        return subgrid(self.whole, self.in_whole(window))


@dataclass(frozen=True, slots=True)
class ReadCost:
    """What reading a window takes, as the tile index tells it: nothing is read to find out."""

    scenes: tuple[int, ...]
    """Positions of the scenes that are read."""

    requests: int
    """Byte ranges asked for."""

    bytes: int
    """Their size together."""

    decoded: int
    """Bytes of pixels that are decoded."""

    gdal: int
    """Files that GDAL reads, of which neither requests nor bytes are known."""


def cost_of_window(sources: Sequence[tuple[int, Source]], target: Target, window: Window) -> ReadCost:
    """Return what reading a window of files takes; see `begin`."""
    shares = [share for t, source in sources if (share := share_of(t, source, window, target)) is not None]
    known = [share for share in shares if share.source.engine == "tiles" and not is_promised(share.source.header)]
    zeros = [np.broadcast_to(share.source.header.dtype.type(0), share.shape) for share in known]
    costs = [
        cost_of(request)
        for share, out in zip(known, zeros, strict=True)
        for request in requests_of(share, out, out[:1] if share.masked else None)
    ]
    return ReadCost(
        tuple(sorted({share.scene for share in shares})),
        sum(requests for requests, _ in costs),
        sum(size for _, size in costs),
        sum(int(np.prod(share.shape)) * share.source.header.dtype.itemsize for share in shares),
        len(shares) - len(known),
    )


def opened_sources(
    sources: Sequence[tuple[int, Source]],
) -> tuple[list[tuple[int, Source]], tuple[tuple[int, ReadError], ...]]:
    """Open the files that were not opened yet, and return the sources that can be read."""
    real = fulfilled([source.header for _, source in sources if is_promised(source.header)])
    found: list[tuple[int, Source]] = []
    lost: list[tuple[int, ReadError]] = []
    for t, source in sources:
        header = real.get(source.header.href) if is_promised(source.header) else source.header
        if isinstance(header, Header):
            found.append((t, source if header is source.header else _with_header(source, header)))
        elif header is not None:
            lost.append((t, header))
    return found, tuple(lost)


def _with_header(source: Source, header: Header) -> Source:
    nodata = nodata_of_file(header, source.part)
    if not header.undecodable or source.engine == "gdal":
        return replace(source, header=header, nodata=nodata)
    return replace(source, header=header, nodata=nodata, engine="gdal", why=header.undecodable)


def in_turn(shares: Sequence[Share]) -> tuple[Share, ...]:
    """Count the members of each scene that touch the window."""
    turns: dict[int, dict[int, int]] = {}
    for share in shares:
        members = turns.setdefault(share.scene, {})
        members.setdefault(share.source.member, len(members))
    return tuple(replace(share, member=turns[share.scene][share.source.member]) for share in shares)


def share_of(t: int, source: Source, window: Window, target: Target) -> Share | None:
    """Return what a source gives to a window, None if they do not touch."""
    met = touched(source, window)
    if met is None:
        return None
    there, at = met
    if source.offset is None:
        return _warped(t, source, there, at, target)
    y, x = (slice(s.start + o, s.stop + o) for s, o in zip(there, source.offset, strict=True))
    if source.factor == 1:
        return Share(t, 0, source, (y, x), at)
    f = source.factor
    coarse = tuple(slice(s.start // f, -(-s.stop // f)) for s in (y, x))
    inner = tuple(slice(s.start - c.start * f, s.stop - c.start * f) for s, c in zip((y, x), coarse, strict=True))
    return Share(t, 0, source, (coarse[0], coarse[1]), at, (inner[0], inner[1]))


def touched(source: Source, window: Window) -> tuple[Window, Window] | None:
    """Return the part of a window that a source may reach, in pixels of the target and of the window; None: no part."""
    spans, place = [], []
    for s, (first, last) in zip(window, (source.extent[:2], source.extent[2:]), strict=True):
        start, stop = max(s.start, first), min(s.stop, last)
        if start >= stop:
            return None
        spans.append(slice(start, stop))
        place.append(slice(start - s.start, stop - s.start))
    return (spans[0], spans[1]), (place[0], place[1])


def _warped(t: int, source: Source, there: Window, place: Window, target: Target) -> Share | None:
    """Return the share of a file on another grid: pixels picked from it, or interpolated by GDAL."""
    if source.resampling != "nearest":
        return Share(t, 0, source, there, place)
    shape = source.header.levels[source.level].shape
    found = nearest_pixels(level_geobox(source.header.geobox, shape), target.grid(there))
    return None if found is None else Share(t, 0, source, found[0], place, index=found[1])


def requests_of(share: Share, out: NDArray[Any], mask: NDArray[Any] | None) -> list[TileRequest]:
    """Return the tiles of a share, to be decoded into `out`, and those of its file's mask, if that is wanted."""
    header, level, window = share.source.header, share.source.level, share.window
    pixels = TileRequest(header, level, window, share.bands, out)
    if mask is None:
        return [pixels]
    assert header.mask is not None
    return [pixels, TileRequest(header.mask, level, window, (0,), mask)]


def subgrid(geobox: GeoBox, window: Window) -> GeoBox:
    """Return the grid of a window, which may leave that of `geobox`."""
    y, x = window
    return geobox.translate_pix(x.start, y.start).crop((y.stop - y.start, x.stop - x.start))
