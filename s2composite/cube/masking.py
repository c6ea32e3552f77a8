"""Mask bands read beside the data, cleaned on their own grid, brought to the data's; daily mosaics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from s2composite.cube.tile_masks import Evaluation, FunctionMask, SeriesMask
from s2composite.errors import BandError, GridError, ParameterError, S2CompositeError
from s2composite.metrics import record_read
from s2composite.pixels.cloud_net import NETWORK_BANDS, CloudNet
from s2composite.pixels.function_mask import Mask
from s2composite.pixels.mask_bands import MaskRule, upsample
from s2composite.pixels.masks import Rule, lets_through, reach_of
from s2composite.pixels.morphology import dilation
from s2composite.pixels.reducers import Recipe, usable_observations
from s2composite.pixels.temporal_mask import TemporalMask
from s2composite.reading.bands import BandName, declares, wanted_assets
from s2composite.reading.grid import TargetGrid, Window, intersection, subgrid, with_halo, within
from s2composite.reading.plan import ReadCost
from s2composite.reading.reader import FAILED, OUTSIDE, READ
from s2composite.reading.sources import ReadOptions
from s2composite.reading.stack import Products, Stack, open_stack
from s2composite.reading.warp import source_pixels
from s2composite.scenes.model import Scene
from s2composite.scenes.products import common_name, named_values, product_level

__all__ = [
    "AlignedMask",
    "BesideRule",
    "DayObservations",
    "EvaluationOfMasks",
    "OpenedMask",
    "WarpedMask",
    "asks_for_coverage",
    "begin_days",
    "begin_masks",
    "coded",
    "combine_masks",
    "masks_of",
    "products_near",
]

_LARGEST_READ = 128 << 20
"""Pixels of a mask band, of all scenes together, in memory at once where the data are coarser than the mask."""

_OPENED_AT_ONCE = 32
"""Scenes whose mask bands are opened at once, where they have different grids."""


_Bits = NDArray[np.bool_]

_Memory = Sequence[NDArray[Any] | None]
"""Where parts of a region lie, one-dimensional, in turn: each holds until the memory's turn comes again. None: anew."""

EvaluationOfParts = Callable[[Sequence[Window], _Bits, _Memory], Iterator[_Bits]]
"""Yields which observations of each part of a region may be used, ``(t, y, x)``, at the data's resolution. Where a mask
cannot be read its scene is not valid, and marked in the second argument, ``(t,)``."""


@dataclass(frozen=True, eq=False)
class BandMask:
    """A rule on a mask band, on the band's grid."""

    rule: MaskRule

    stack: Stack
    """The band alone."""

    def __dask_tokenize__(self) -> tuple[str, str]:
        return self.stack.token, repr(self.rule)

    def select(self, positions: Sequence[int]) -> BandMask:
        """Return the mask of some of the scenes."""
        return replace(self, stack=self.stack.select(positions))

    def cost(self, window: Window) -> ReadCost:
        """Return what evaluating a window reads."""
        return self.stack.cost(with_halo(window, self.rule.halo, self.stack.shape[2:])[0])

    def memory(self) -> int:
        """Return the bytes that evaluating it takes beside the mask itself."""
        return 0

    def begin(self, window: Window) -> Evaluation:
        """Request the bytes of a window, and return what evaluates the rule in it, at the resolution of the band.

        The pixels around the window that matter to the rule are read with it. What lies beyond the edge of a file
        changes nothing. A block of a file that cannot be read is not valid, nor is what the file does not cover, or
        leaves out by a mask of its own or a nodata value other than 0, which means something in most codings.
        """
        rule, stack = self.rule, self.stack
        region, inner = with_halo(window, rule.halo, stack.shape[2:])
        reading = stack.read_all([region], coverage=True)

        def evaluate() -> tuple[_Bits, _Bits]:
            ((_, seen),) = reading
            record_read(seen.tally)
            pixels, valid = seen.pixels[:, 0], np.zeros(seen.pixels[:, 0].shape, bool)
            for t, files in enumerate(stack.sources):  # each as far as its files reach, which is where its image ends
                if files:
                    tops, bottoms, lefts, rights = zip(*(source.extent for source in files), strict=True)
                    reach = slice(min(tops), max(bottoms)), slice(min(lefts), max(rights))
                    y, x = met = intersection(reach, region)
                    if y.start < y.stop and x.start < x.stop:
                        part = (t, *within(region, met))
                        valid[part] = rule.valid(np.ascontiguousarray(pixels[part])[None])[0]
            if seen.usable is not None:
                valid &= seen.usable
            if stack.fill:
                valid &= pixels != stack.fill
            valid[seen.status == FAILED] = False
            return valid[:, inner[0], inner[1]], seen.failed

        return evaluate


GridMask = BandMask | FunctionMask | SeriesMask
"""A mask of some scenes on its own grid."""


@dataclass(frozen=True, eq=False)
class AlignedMask:
    """A mask on the data's grid, or on one a whole number of times coarser."""

    mask: GridMask
    """On its own grid, of the same scenes as the data."""

    factor: int
    """Pixels of the data along one of the mask."""

    origin: tuple[int, int]
    """``(y, x)`` offset of the data's corner from the mask's, in pixels of the data."""

    def __dask_tokenize__(self) -> object:
        return self.mask.__dask_tokenize__()

    def select(self, positions: Sequence[int]) -> AlignedMask:
        """Return the mask of some of the scenes."""
        return replace(self, mask=self.mask.select(positions))

    def memory(self) -> int:
        """Return the bytes that evaluating it takes beside the mask itself."""
        return self.mask.memory()

    def begin(self, region: Window) -> EvaluationOfParts:
        """Request the bytes of a region, and return what evaluates the mask in parts of it.

        The mask is cleaned at its own resolution, with as many pixels around the region as matter to it.
        """
        _, own = self._own(region)
        evaluate = self.mask.begin(own)

        def valid_in(parts: Sequence[Window], failed: _Bits, memory: _Memory) -> Iterator[_Bits]:
            valid, lost = evaluate()
            failed |= lost
            for part, here in zip(parts, cycle(memory), strict=False):
                rows, columns = self._own(part)[0]
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                top, left = rows.start - self.factor * own[0].start, columns.start - self.factor * own[1].start
                yield upsample(valid, self.factor, shape, top=top, left=left, memory=here)

        return valid_in

    def costs(self, region: Window) -> list[ReadCost]:
        """Return what evaluating it takes."""
        return [self.mask.cost(self._own(region)[1])]

    def _own(self, region: Window) -> tuple[Window, Window]:
        """Return a region in pixels of the data from the mask's corner, and the pixels of the mask that it needs."""
        y, x = (slice(s.start + o, s.stop + o) for s, o in zip(region, self.origin, strict=True))
        own = tuple(slice(s.start // self.factor, -(-s.stop // self.factor)) for s in (y, x))
        return (y, x), (own[0], own[1])


@dataclass(frozen=True, eq=False)
class WarpedMask:
    """A mask on other grids than the data's: each pixel of the data takes the nearest of the mask."""

    groups: tuple[tuple[tuple[int, ...], GridMask], ...]
    """Scenes whose masks share a grid: their positions in the data's stack, and the mask on that grid."""

    geobox: GeoBox
    """Grid of the data."""

    n_scenes: int
    """Of the data; a scene in no group is not valid anywhere."""

    def __dask_tokenize__(self) -> tuple[object, ...]:
        grid = (tuple(self.geobox.shape), tuple(self.geobox.transform), str(self.geobox.crs))
        return tuple((at, mask.__dask_tokenize__()) for at, mask in self.groups), grid, self.n_scenes

    def select(self, positions: Sequence[int]) -> WarpedMask:
        """Return the mask of some of the scenes."""
        new = {int(old): i for i, old in enumerate(positions)}
        groups = []
        for at, mask in self.groups:
            kept = [i for i, old in enumerate(at) if old in new]
            if kept:
                groups.append((tuple(new[at[i]] for i in kept), mask.select(kept)))
        return replace(self, groups=tuple(groups), n_scenes=len(positions))

    def memory(self) -> int:
        """Return the bytes that evaluating it takes beside the mask itself."""
        return max((mask.memory() for _, mask in self.groups), default=0)

    def begin(self, region: Window) -> EvaluationOfParts:
        """Request the bytes of a region, and return what evaluates the mask in parts of it.

        The mask is cleaned at its own resolution before it is warped. Each pixel is projected exactly, so the result
        does not depend on the region. Where a scene's mask does not reach, the scene is not valid.
        """
        # the bytes of one part of the region after the other, one ahead
        begun = ((piece, piece.mask.begin(piece.own)) for piece in self._pieces(region))
        first = next(begun, None)

        def valid_in(parts: Sequence[Window], failed: _Bits, _memory: _Memory) -> Iterator[_Bits]:
            out = np.zeros((self.n_scenes, *(s.stop - s.start for s in region)), bool)
            opened = [t for positions, _ in self.groups for t in positions]
            failed[np.setdiff1d(np.arange(self.n_scenes), opened)] = True
            following = first
            while following is not None:
                (piece, evaluate), following = following, next(begun, None)
                piece.put(*evaluate(), out, failed)
                del piece, evaluate  # which hold more bytes than the result, and that is in use for a while
            for part in parts:
                yield out[(slice(None), *within(region, part))]

        return valid_in

    def costs(self, region: Window) -> list[ReadCost]:
        """Return what evaluating it takes."""
        return [piece.mask.cost(piece.own) for piece in self._pieces(region)]

    def _pieces(self, region: Window) -> Iterator[_WarpedPiece]:
        """Yield the parts of a region that masks reach, each of which needs few enough pixels of its mask."""
        for scenes, mask in self.groups:
            # row and column of the mask's grid in which the centre of each pixel lies; -1 outside
            rows, columns = (np.full([s.stop - s.start for s in region], -1, np.intp) for _ in range(2))
            for part, r, c, reached in source_pixels(mask.stack.geobox, subgrid(self.geobox, region)):
                rows[part][reached], columns[part][reached] = r[reached], c[reached]
            height, width = mask.stack.shape[2:]
            for y, x in _quarters(rows, columns, _LARGEST_READ // len(scenes)):
                row, column = rows[y, x], columns[y, x]
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                if inside.any():
                    spans = [slice(int(n[inside].min()), int(n[inside].max()) + 1) for n in (row, column)]
                    own = spans[0], spans[1]
                    yield _WarpedPiece(scenes, mask, own, (y, x), inside, row - own[0].start, column - own[1].start)


@dataclass(frozen=True, slots=True, eq=False)
class _WarpedPiece:
    """A part of a region of the data, and the pixels of a mask that it takes."""

    scenes: tuple[int, ...]
    mask: GridMask
    own: Window  # of the mask's grid
    place: Window  # in the region
    inside: _Bits  # (y, x): which pixels lie on the mask's grid
    row: NDArray[np.intp]  # (y, x), in `own`
    column: NDArray[np.intp]

    def put(self, valid: _Bits, lost: _Bits, region: _Bits, failed: _Bits) -> None:
        """Put the mask ``(t, y, x)`` of `own` into a region ``(t, y, x)``, and which scenes could not be read."""
        failed[np.array(self.scenes)[lost]] = True
        out, row, column, inside = region[(slice(None), *self.place)], self.row, self.column, self.inside
        # Neither turned nor in another CRS: columns of its few rows, then whole rows, which are copied as they are.
        straight = inside.all() and (row == row[:, :1]).all() and (column == column[:1]).all()
        for t, one in zip(self.scenes, valid, strict=True):
            if straight:
                out[t] = one[:, column[0]][row[:, 0]]
            else:
                out[t][inside] = one[row[inside], column[inside]]


OpenedMask = AlignedMask | WarpedMask
"""A rule that looks beside the data, ready to be evaluated for a region of them."""


def _quarters(rows: NDArray[np.intp], columns: NDArray[np.intp], limit: int) -> Iterator[tuple[slice, slice]]:
    """Cut a region, given as rows and columns of a mask, into parts that need at most `limit` of its pixels each."""
    height, width = rows.shape
    todo = [(slice(0, height), slice(0, width))]
    while todo:
        y, x = todo.pop()
        needs = float(np.ptp(rows[y, x]) + 1) * float(np.ptp(columns[y, x]) + 1)
        if needs <= limit or (y.stop - y.start) * (x.stop - x.start) == 1:
            yield y, x
            continue
        halves = []
        for s in (y, x):
            middle = (s.start + s.stop) // 2
            halves.append([slice(a, b) for a, b in ((s.start, middle), (middle, s.stop)) if a < b])
        todo += [(a, b) for a in halves[0] for b in halves[1]]


def masks_of(stack: Stack, rules: Sequence[Rule]) -> tuple[OpenedMask, ...]:
    """Open what rules look at beside the data, one mask for each product of a stack."""
    products = stack.products.stack
    return tuple(_opened(products, rule) for rule in rules if isinstance(rule, BesideRule))


EvaluationOfMasks = Callable[[Sequence[Window], _Memory], tuple[Iterator[_Bits | None], _Bits]]
"""Returns which observations of each part of a region pass all masks, ``(t, y, x)``, None if there are no masks, and of
which scenes a mask cannot be read in the region, ``(t,)``, known with the first part. To be called once."""


def begin_masks(masks: Sequence[OpenedMask], region: Window, scenes: int) -> EvaluationOfMasks:
    """Request the bytes of masks of some scenes in a region, and return what evaluates them in parts of it."""
    begun = [mask.begin(region) for mask in masks]

    def evaluate(parts: Sequence[Window], memory: _Memory) -> tuple[Iterator[_Bits | None], _Bits]:
        failed = np.zeros(scenes, bool)
        if not begun:
            return iter([None] * len(parts)), failed
        each = [one(parts, failed, (None,) if i else memory) for i, one in enumerate(begun)]
        begun.clear()
        return all_of(each), failed

    def all_of(each: Sequence[Iterator[_Bits]]) -> Iterator[_Bits]:
        for first, *others in zip(*each, strict=True):
            for other in others:
                np.logical_and(first, other, out=first)
            yield first

    return evaluate


def combine_masks(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return what is valid by two masks; None stands for a mask by which everything is."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def coded(rule: MaskRule, scenes: Sequence[Scene]) -> MaskRule:
    """Return a rule on Fmask in the coding that is known of all scenes; see `MaskRule.in_coding`."""
    if not rule.codings:
        return rule
    parts = [part for scene in scenes for part in scene.parts]
    codings: dict[str | None, str] = {}
    for part, assets in zip(parts, wanted_assets(parts, [rule.band]), strict=True):
        named = named_values(rule.band, None, part.sensor, f"{part.id} {part.collection or ''}")
        codings.setdefault(next((a.values.coding for a in assets if a.values.coding), named.coding), part.id)
    if len(codings) > 1:
        kinds = ", ".join(f"{coding or 'unknown'} ({scene})" for coding, scene in codings.items())
        raise ParameterError(
            f"the mask bands {rule.band!r} have different codings of Fmask: {kinds}; give one that holds for all, "
            "Fmask(coding='odc'), or open the scenes apart"
        )
    return rule.in_coding(next(iter(codings), None))


BesideRule = MaskRule | Mask | CloudNet | TemporalMask
"""Rules that look at more than the values of an observation: they need the scenes' files."""


def _opened(stack: Stack, rule: BesideRule) -> OpenedMask:
    """Open what a rule looks at, for the scenes of a stack of single products."""
    if isinstance(rule, MaskRule):
        rule = coded(rule, stack.scenes)
        # Its numbers are classes, flags or percent, whatever becomes of those of the data.
        options = replace(stack.options, harmonise=False, reflectance=False, classes=True)
        groups = _opened_together(stack, [rule.band], TargetGrid(), options, parts=True)
        masks: list[tuple[tuple[int, ...], GridMask]] = [(at, BandMask(rule, band)) for at, band in groups]
    else:
        options = replace(stack.options, resampling="nearest")
        if isinstance(rule, CloudNet):
            rule = _with_network(rule, stack)
            options = replace(options, reflectance=True, harmonise=options.harmonise or True)
        bands = rule.bands or (colours_of(stack) if isinstance(rule, TemporalMask) else stack.bands)
        try:
            groups = _opened_together(stack, bands, TargetGrid(resolution=rule.resolution), options, parts=False)
        except BandError as error:
            if not isinstance(rule, CloudNet):
                raise
            raise BandError(f"CloudNet looks at {', '.join(map(str, bands))}: {error}; or give it bands=") from error
        if rule.resolution is None and not isinstance(rule, Mask):
            series = isinstance(rule, TemporalMask)
            groups = tuple(one for at, band in groups for one in _coarser(stack, at, band, options, series=series))
        if isinstance(rule, TemporalMask):
            masks = [(at, SeriesMask.of(rule, band)) for at, band in groups]
        else:
            masks = [(at, FunctionMask.of(rule, band, stack.geobox)) for at, band in groups]
    if len(masks) == 1 and len(masks[0][0]) == len(stack.scenes):
        mask = masks[0][1]
        # Does each pixel of the mask cover a whole number of the data's?
        grid = mask.stack.geobox
        to_mask = ~grid.transform @ stack.geobox.transform
        factor = round(1 / to_mask.a)
        x, y = to_mask.c * factor, to_mask.f * factor
        same = grid.crs == stack.geobox.crs and to_mask.b == to_mask.d == 0
        whole = max(abs(to_mask.a * factor - 1), abs(to_mask.e * factor - 1)) * max(stack.geobox.shape) < 1e-3
        if factor >= 1 and same and whole and max(abs(x - round(x)), abs(y - round(y))) <= 1e-3:
            return AlignedMask(mask, factor, (round(y), round(x)))
    return WarpedMask(tuple(masks), stack.geobox, len(stack.scenes))


def _coarser(stack: Stack, at: tuple[int, ...], band: Stack, options: ReadOptions, *, series: bool) -> _Groups:
    """Return bands of scenes on one grid, with as many of their pixels in one as masks look at by default."""
    own = abs(float(band.geobox.resolution.x))
    degrees = band.geobox.crs is not None and band.geobox.crs.geographic
    metres = own * 111_320 if degrees else own
    # Scenes of a series are compared at a power of two, nearest to 80 m: larger than most of what moves, and smaller
    # than most clouds. Networks were made for 30 m.
    pixels = 1 << max(round(math.log2(80 / metres)), 0) if series else max(round(30 / metres), 1)
    coarser = min(pixels, *band.geobox.shape)
    if coarser == 1:
        return ((at, band),)
    some = stack if len(at) == len(stack.scenes) else stack.select(at)
    found = _opened_together(some, band.bands, TargetGrid(resolution=own * coarser), options, parts=False)
    return tuple((tuple(at[i] for i in mine), coarse) for mine, coarse in found)


def _with_network(rule: CloudNet, stack: Stack) -> CloudNet:
    """Return a rule with the bands and the level that products have, where it does not name them."""
    bands, level = rule.bands, rule.level
    parts = [part for scene in stack.scenes for part in scene.parts]
    if bands is None:
        infrared = NETWORK_BANDS[4:]
        own = {common_name(band, part.sensor) for part in parts[:1] for band in stack.bands}
        six = own.issuperset(infrared) or all(declares(part, infrared) for part in parts)
        bands = NETWORK_BANDS if six else NETWORK_BANDS[:4]
    if level is None:
        found = {product_level(part): part.id for part in parts}
        if len(found) > 1 or None in found:
            said = ", ".join(f"{one} of level {level or 'unknown'}" for level, one in found.items())
            raise ParameterError(
                f"CloudNet has networks for top-of-atmosphere and for surface reflectance, and scenes are {said}; say "
                "which they are, level='l1c' or level='l2a', or open them apart"
            )
        (number,) = found
        level = {"1": "l1c", "2": "l2a"}[str(number)]
    return replace(rule, bands=bands, level=level)


def colours_of(stack: Stack) -> tuple[str, ...]:
    """Return the names of red, green and blue among the bands of a stack; of other bands if it has up to three."""
    sensor = next((part.sensor for scene in stack.scenes for part in scene.parts), None)
    named = {common_name(band, sensor): band for band in reversed(stack.bands)}
    colours = tuple(named[name] for name in ("red", "green", "blue") if name in named)
    if len(colours) == 3:
        return colours
    if len(stack.bands) <= 3:
        return stack.bands
    raise BandError(
        f"TemporalMask looks at red, green and blue, and the cube has the bands {list(stack.bands)}; give it bands="
    )


_Groups = tuple[tuple[tuple[int, ...], Stack], ...]


def _opened_together(
    stack: Stack, bands: Sequence[BandName], target: TargetGrid, options: ReadOptions, *, parts: bool
) -> _Groups:
    """Return bands of the scenes of a stack, of those on one grid together, with the scenes' positions.

    With `parts`, grids that are parts of one count as one.
    """
    try:
        band = stack.reopened(bands, target, options)
    except GridError:
        return _opened_alone(stack, bands, target, options)
    finest = {
        min((s.header.geobox for s in files), key=lambda geobox: abs(float(geobox.resolution.x)))
        for files in band.sources
        if files
    }
    # On a grid made for files on several, they would be resampled before they are cleaned.
    if any(s.offset is None for files in band.sources for s in files) if parts else len(finest) > 1:
        return _opened_alone(stack, bands, target, options)
    return ((tuple(range(len(stack.scenes))), band),)


def _opened_alone(stack: Stack, bands: Sequence[BandName], target: TargetGrid, options: ReadOptions) -> _Groups:
    """Return bands of each scene, opened alone and then merged where grids are the same, with the scenes' positions.

    Unreadable ones are left out if they are to be skipped.
    """

    def opened(t: int) -> Stack | None:
        try:
            return open_stack([stack.scenes[t]], bands, target, options)
        except S2CompositeError:
            if stack.options.on_error == "raise":
                raise
            return None

    groups: dict[GeoBox, list[tuple[int, Stack]]] = {}
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        for t, one in enumerate(pool.map(opened, range(len(stack.scenes)))):
            if one is not None:
                groups.setdefault(one.geobox, []).append((t, one))
    merged = []
    for members in groups.values():
        scenes = tuple(scene for _, one in members for scene in one.scenes)
        sources = tuple(files for _, one in members for files in one.sources)
        merged.append((tuple(t for t, _ in members), replace(members[0][1], scenes=scenes, sources=sources)))
    return tuple(merged)


@dataclass(frozen=True, slots=True, eq=False)
class DayObservations:
    """What a window of days holds."""

    pixels: NDArray[Any]
    """``(t, b, y, x)``."""

    valid: NDArray[np.bool_] | None
    """``(t, y, x)``: which observations pass the rules on mask bands, are covered by files where the rules on values do
    not tell, and do not lie in a block that cannot be read; None: all."""

    status: NDArray[np.uint8]
    """``(t,)``: as `WindowObservations.status`; a day has failed if a block of one of its products has."""


def products_near(stack: Stack, window: Window, pad: int = 0) -> NDArray[np.intp]:
    """Return the positions of the products that may have pixels in a window, ascending: at least one of them."""
    near = stack.products.stack.touching(window, pad=pad)
    return near if near.size else np.zeros(1, np.intp)


def asks_for_coverage(stack: Stack, recipe: Recipe) -> bool:
    """Return whether it matters where files cover pixels: rules that drop what fills the others drop those anyway."""
    return lets_through(stack.fill, recipe.rules, stack.dtype, len(stack.bands), recipe.nodata, recipe.bands)


def begin_days(
    products: Products,
    recipe: Recipe,
    region: Window,
    masks: Sequence[OpenedMask],
    valid: NDArray[np.bool_] | None = None,
    *,
    all_pixels: bool = False,
) -> Callable[[NDArray[Any] | None], DayObservations]:
    """Request the masks of a region of days, and return what reads these, each fused from its products, into memory.

    Each pixel comes from the first product whose observation passes all rules: those on values, and those on the mask
    bands of that product, cleaned at their own resolution. If none passes, it comes from the first product that has all
    bands, or else from the first that has any. So an observation and its masks always belong to one product, and a
    cloud in one product does not hide the clear view of another.

    `products` are those of the days, which are numbered from 0 without gaps; of the recipe only its rules matter;
    `region` is a window of the grid with ``recipe.halo`` pixels around it; ``valid (t, y, x)`` is False where a day
    must not be used. Masks are read first: where an observation must not be used, its pixels need not be read, unless
    with `all_pixels`. In a block that cannot be read a product is as if it were not there.
    """
    # the turn of each product among those of its scene: 0 0 1 2 0 1 for the scenes 0 1 1 1 4 4
    turn = np.arange(len(products.scene)) - np.searchsorted(products.scene, products.scene)
    # A pixel that looks at its surroundings may look at those of another product, whichever is read there.
    all_pixels = all_pixels or (bool(turn.any()) and reach_of(recipe.rules) > 0)
    turns = [np.flatnonzero(turn == k) for k in range(int(turn.max()) + 1)]
    fill = float("nan") if asks_for_coverage(products.stack, recipe) else products.stack.fill

    def begin(some: NDArray[np.intp]) -> Callable[[NDArray[Any] | None], DayObservations]:
        stack, masks_of_some = products.stack, masks
        if len(turns) > 1:
            stack, masks_of_some = stack.select(some.tolist()), [mask.select(some.tolist()) for mask in masks]
        mine = None if valid is None else valid[products.scene[some]]
        return _begin_products(stack, recipe, region, masks_of_some, mine, all_pixels)

    begun = [begin(some) for some in turns]

    def read(memory: NDArray[Any] | None) -> DayObservations:
        # the first products of all days, then the better pixels of the second ones in their place, and so on
        days = begun[0](memory)
        best = {t: _rank(days, t, recipe, fill) for later in turns[1:] for t in set(products.scene[later].tolist())}
        for later, read_later in zip(turns[1:], begun[1:], strict=True):
            more = read_later(None)
            if days.valid is None and more.valid is not None:
                days = replace(days, valid=np.ones(days.pixels[:, 0].shape, bool))
            for i, t in enumerate(products.scene[later].tolist()):
                rank = _rank(more, i, recipe, fill)
                better = rank > best[t]
                np.copyto(days.pixels[t], more.pixels[i], where=better)
                np.copyto(best[t], rank, where=better)
                if days.valid is not None:
                    np.copyto(days.valid[t], True if more.valid is None else more.valid[i], where=better)
                states = {int(days.status[t]), int(more.status[i])}
                days.status[t] = FAILED if FAILED in states else READ if READ in states else OUTSIDE
        return days

    return read


def _begin_products(
    stack: Stack,
    recipe: Recipe,
    region: Window,
    masks: Sequence[OpenedMask],
    valid: NDArray[np.bool_] | None,
    all_pixels: bool,
) -> Callable[[NDArray[Any] | None], DayObservations]:
    """Request the masks of a region of days of one product each, and return what reads these and what they leave."""
    by_masks = begin_masks(masks, region, len(stack.scenes))

    def read(memory: NDArray[Any] | None) -> DayObservations:
        (passing,), failed = by_masks([region], [None])
        usable = wanted = combine_masks(passing, valid)
        if all_pixels:
            wanted = None
        elif usable is not None and (reach := reach_of(recipe.rules)):
            wanted = dilation(usable, reach)
        coverage = asks_for_coverage(stack, recipe)
        ((_, seen),) = stack.read_all([region], memory, coverage=coverage, wanted=[wanted])
        record_read(seen.tally)
        seen.status[(failed & (seen.status == READ)) | seen.failed] = FAILED
        return DayObservations(seen.pixels, combine_masks(usable, seen.usable), seen.status)

    return read


def _rank(seen: DayObservations, t: int, recipe: Recipe, fill: float) -> NDArray[np.uint8]:
    """Return how good the observations of one scene are, ``(y, x)``: 0 none, 1 some bands, 2 all of them, 3 usable.

    `fill` is what bands have that are missing; NaN where ``seen.valid`` says what is covered, and any value is one.
    """
    pixels = seen.pixels[t : t + 1]
    present = ~np.isnan(pixels[0]) if np.isnan(fill) else pixels[0] != fill
    rank: NDArray[np.uint8] = present.any(0).astype(np.uint8) + present.all(0).astype(np.uint8)
    usable = usable_observations(pixels, recipe, None if seen.valid is None else seen.valid[t : t + 1])[0]
    rank[usable & (rank > 0)] = 3
    return rank
