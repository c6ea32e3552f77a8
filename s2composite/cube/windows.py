"""The pure function that reads and reduces one window, and the graph layer that runs it on all windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import tee
from threading import Lock, Thread, current_thread
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import delayed
from distributed import get_worker, secede
from distributed.threadpoolexecutor import thread_state
from numpy.typing import NDArray

from s2composite.cube.graph import Chunks, handle_in, take_layer, taken_layer
from s2composite.cube.masking import (
    BesideRule,
    EvaluationOfMasks,
    OpenedMask,
    asks_for_coverage,
    begin_days,
    begin_masks,
    combine_masks,
    masks_of,
    products_near,
)
from s2composite.cube.open import thread_memory, window_at
from s2composite.errors import ParameterError
from s2composite.metrics import metered, record_read
from s2composite.pixels.kernels.rank import keep_best
from s2composite.pixels.masks import reach_of
from s2composite.pixels.morphology import dilation
from s2composite.pixels.recipe import Scores
from s2composite.pixels.reducers import (
    Layer,
    Recipe,
    observation_scores,
    reduce_block,
    scene_shares,
    scores_of_scenes,
    usable_observations,
)
from s2composite.reading.grid import Window, with_halo, within
from s2composite.reading.plan import Piece, TileSelection
from s2composite.reading.reader import FAILED, OUTSIDE, READ, borrow, holds_any
from s2composite.reading.stack import Products, Stack
from s2composite.reading.tiles import KeptTiles

__all__ = [
    "STATUS",
    "Work",
    "compose_window",
    "counted_together",
    "layer_arrays",
    "refuse_masks",
    "source_shares",
    "work_in",
]

STATUS = "read_status"
"""Name of the layer that records for each scene and window whether it was read."""


def compose_window(
    stack: Stack,
    recipe: Recipe,
    window: Window,
    masks: Sequence[OpenedMask] = (),
    valid: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[Any]]:
    """Read and reduce a window of a stack: the pure function that all execution paths call.

    Parameters
    ----------
    window
        ``(y, x)`` slices of the stack's geobox.
    masks
        Mask bands that the recipe's rules need, from `masks_of`; for the stack's products.
    valid
        ``(t, y, x)``: False where an observation must not be used, in the window plus ``recipe.halo`` pixels around it
        where the stack has them.

    Returns
    -------
    dict
        The arrays that ``recipe.layers`` lists, and ``read_status`` ``(t, 1, 1)`` uint8.
    """
    near = products_near(stack, window, recipe.halo)
    products, positions = stack.products, None
    if products.stack is not stack or len(near) < len(stack.scenes):
        # Few of a country's scenes touch a window, and only these cost memory and time. `products_near` returns at
        # least one, so that there is always something to reduce.
        positions = np.unique(products.scene[near])
        valid = None if valid is None else valid[positions]
        masks = [mask.select(near.tolist()) for mask in masks]
        products = Products(products.stack.select(near.tolist()), np.searchsorted(positions, products.scene[near]))
    few, days = products.stack, int(products.scene[-1]) + 1
    if recipe.ends_early and days == len(few.scenes):
        out = _joined(window, _parts_by_score(few, recipe, window, masks, positions, valid))
    elif not recipe.halo and days == len(few.scenes):
        out = _joined(window, _parts(few, recipe, window, masks, positions, valid))
    else:  # in one piece, with the surrounding pixels that affect its edge
        region, inner = with_halo(window, recipe.halo, few.shape[2:])
        read = begin_days(products, recipe, region, masks, valid)
        _begin_next_task(few, masks)
        with borrow(few.size(region) // len(few.scenes) * days, few.dtype) as scratch:
            seen = read(scratch)
            # blocks that cannot be read are not valid
            scenes = None if seen.valid is not None else np.flatnonzero(seen.status == READ)
            with metered("kernel"):
                layers = reduce_block(
                    seen.pixels, recipe, valid=seen.valid, scenes=scenes, inner=inner, positions=positions
                )
        out = {**layers, STATUS: seen.status[:, None, None]}
    if positions is None:
        return out
    status = np.full((len(stack.scenes), 1, 1), OUTSIDE, np.uint8)
    status[positions] = out[STATUS]
    return {**out, STATUS: status}


_COMPUTING: dict[str, list[Thread]] = {}
_LOCK = Lock()


def _begin_next_task(stack: Stack, masks: Sequence[OpenedMask]) -> None:
    """Wait until this task's worker computes fewer windows than it has threads, then have it begin its next task.

    Nothing of a window can be requested before its masks have arrived. So a worker begins the next window, which
    requests its masks and waits here, while this one is decoded. Memory for pixels is taken after this.
    """
    if not (masks and stack.remote and hasattr(thread_state, "executor")):  # threads of workers have one
        return
    worker, me = get_worker(), current_thread()
    while True:
        with _LOCK:
            # a thread that has left the pool of its worker ends with its task
            others = [thread for thread in _COMPUTING.get(worker.address, ()) if thread.is_alive()]
            if me in others:
                return
            if len(others) < worker.state.nthreads:
                _COMPUTING[worker.address] = [*others, me]
                break
        others[0].join(0.02)
    secede()


def _parts(
    stack: Stack,
    recipe: Recipe,
    window: Window,
    masks: Sequence[OpenedMask],
    positions: NDArray[np.intp] | None,
    valid: NDArray[np.bool_] | None,
) -> list[_Composed]:
    """Compose the pieces of a window one after the other.

    Tiles in which nothing is valid are not read. A scene is left out of the tiles in which it fails, whatever else was
    read with them, so the result does not depend on the windows.
    """
    parts: list[_Composed] = []
    by_masks_of = begin_masks(masks, window, len(stack.scenes))
    pieces, coverage = stack.pieces(window), asks_for_coverage(stack, recipe)
    _begin_next_task(stack, masks)
    rectangles = [piece for piece in pieces if not isinstance(piece, TileSelection)]
    values = max(map(stack.size, pieces))
    size, marks = values * stack.dtype.itemsize, values // len(stack.bands)
    # masks of two pieces: the next is being fetched while one is reduced
    with borrow(size + 2 * marks * bool(masks), np.dtype(np.uint8)) as lent:
        scratch, memory = lent[:size].view(stack.dtype), [*lent[size:].view(bool).reshape(2, -1)]
        if len(rectangles) == len(pieces):
            # arrays of their own, which kernels need not copy as they would parts of one
            passing, unmasked = by_masks_of(rectangles, memory)
        else:
            (whole,), unmasked = by_masks_of([window], [None])
            passing = (_cut(whole, window, piece) for piece in pieces)
        marked = zip(passing, pieces, strict=True)
        by_masks, wanted = tee(combine_masks(p, _cut(valid, window, piece)) for p, piece in marked)
        with closing(stack.read_all(pieces, scratch, coverage=coverage, wanted=wanted)) as observed:
            for (piece, seen), mine in zip(observed, by_masks, strict=True):
                record_read(seen.tally)
                usable = combine_masks(mine, seen.usable)
                taking_part = (seen.status == READ) & (True if mine is None else holds_any(mine))
                with metered("kernel"):
                    scenes = np.flatnonzero(taking_part)
                    layers = reduce_block(seen.pixels, recipe, valid=usable, scenes=scenes, positions=positions)
                status = np.where(seen.failed | (unmasked & (seen.status == READ)), np.uint8(FAILED), seen.status)
                parts.append((piece, {**layers, STATUS: status[:, None, None]}))
    return parts


_SCENES_AT_ONCE, _REMOTE_SCENES_AT_ONCE = 2, 8
"""Scenes read at once if not all may be needed: more over a network, where requests wait together."""


@dataclass(frozen=True, eq=False)
class _ByScore:
    """Reads the pieces of a window: for each, the scenes with the highest scores first, and only as many as needed."""

    stack: Stack
    recipe: Recipe
    region: Window  # the window with the halo around it
    masks: Sequence[OpenedMask]
    valid: NDArray[np.bool_] | None  # (t, y, x) of the region, as in `compose_window`
    scores: Scores
    unmasked: NDArray[np.bool_]  # (t,): scenes whose masks could not be read so far
    begun: dict[int, EvaluationOfMasks] = field(default_factory=dict)  # masks on their way, for each batch
    masked: dict[int, NDArray[np.bool_] | None] = field(default_factory=dict)  # valid by masks, for each batch
    kept: KeptTiles = field(default_factory=KeptTiles)  # tiles that several pieces need

    @cached_property
    def batches(self) -> list[NDArray[np.intp]]:
        """Scenes that are read together, those with the highest scores first."""
        at_once = _REMOTE_SCENES_AT_ONCE if self.stack.remote else _SCENES_AT_ONCE
        ordered = np.argsort(-self.scores.of_scene, kind="stable")
        return [np.sort(ordered[start : start + at_once]) for start in range(0, ordered.size, at_once)]

    def begin_masks(self, number: int) -> None:
        """Request the bytes of the masks of a batch, if they are not on their way."""
        if number not in self.begun:
            some = self.batches[number].tolist()
            self.begun[number] = begin_masks([mask.select(some) for mask in self.masks], self.region, len(some))

    def read(
        self, around: Window, status: NDArray[np.uint8], needed: Callable[[NDArray[np.intp]], NDArray[np.bool_]]
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[Any], NDArray[np.bool_]]]:
        """Yield scenes, their pixels ``(t, b, y, x)``, and which of these are valid by masks and were read.

        ``needed(scenes)`` is called before each batch and returns where the scenes can still matter, ``(t, y, x)``;
        other tiles are not read. `status` is updated with the read status of the scenes.
        """
        stack, recipe = self.stack, self.recipe
        coverage, edge = asks_for_coverage(stack, recipe), reach_of(recipe.rules)
        for number, some in enumerate(self.batches):
            mine = needed(some)
            if not mine.any():
                continue
            few = stack.select(some.tolist())
            if number not in self.masked:
                self.begin_masks(number)
                (passing,), failed = self.begun.pop(number)([self.region], [None])
                self.masked[number] = combine_masks(passing, None if self.valid is None else self.valid[some])
                self.unmasked[some] = failed
            status[some[self.unmasked[some] & (status[some] == READ)]] = FAILED
            mine = dilation(mine, recipe.halo - edge)  # distances to invalid pixels count, too
            if (passing := _cut(self.masked[number], self.region, around)) is not None:
                mine &= passing
            if not mine.any():
                continue
            wanted = [dilation(mine, edge)]
            ((_, seen),) = few.read_all([around], coverage=coverage, wanted=wanted, kept=self.kept)
            record_read(seen.tally)
            if seen.usable is not None:
                mine &= seen.usable
            status[some[seen.failed]] = FAILED
            yield some, seen.pixels, mine


def _parts_by_score(
    stack: Stack,
    recipe: Recipe,
    window: Window,
    masks: Sequence[OpenedMask],
    positions: NDArray[np.intp] | None,
    valid: NDArray[np.bool_] | None,
) -> list[_Composed]:
    """Compose the pieces of a window, reading only as many scenes as needed; scenes not read do not count as failed.

    A tile is not read if no remaining scene can change its pixels: they have ``recipe.max_count`` observations, or one
    with a score that no remaining scene can reach.
    """
    count, shape = len(stack.scenes), (stack.shape[2], stack.shape[3])
    place = np.arange(count) if positions is None else positions
    groups = np.stack([np.isin(place, period) for period in recipe.periods or (place,)])
    region, _ = with_halo(window, recipe.halo, shape)
    scores, unmasked = scores_of_scenes(recipe, place), np.zeros(count, bool)
    source = _ByScore(stack, recipe, region, masks, valid, scores, unmasked)
    source.begin_masks(0)
    _begin_next_task(stack, masks)
    compose = _best_observations if recipe.max_count is None else _preferred_observations
    parts: list[_Composed] = []
    for piece in [window] if recipe.halo else stack.rectangles(window):
        around, inner = with_halo(piece, recipe.halo, shape)
        status = np.full(count, OUTSIDE, np.uint8)
        status[stack.touching(around)] = READ
        parts.append((piece, {**compose(source, around, inner, groups, place, status), STATUS: status[:, None, None]}))
    return parts


def _preferred_observations(
    source: _ByScore,
    around: Window,
    inner: Window,
    groups: NDArray[np.bool_],
    place: NDArray[np.intp],
    status: NDArray[np.uint8],
) -> dict[str, NDArray[Any]]:
    """Reduce the first valid observations of each pixel and period; the scenes of each are ``groups (p, t)``."""
    stack, recipe = source.stack, source.recipe
    size = tuple(s.stop - s.start for s in around)
    pixels = np.zeros((len(place), len(stack.bands), *size), stack.dtype)
    usable, counts = np.zeros((len(place), *size), bool), np.zeros((len(groups), *size), np.uint16)

    def needed(some: NDArray[np.intp]) -> NDArray[np.bool_]:
        short = counts < (recipe.max_count or 0)
        return np.stack([short[groups[:, t]].any(axis=0) for t in some])

    for some, found, valid in source.read(around, status, needed):
        pixels[some], usable[some] = found, valid
        passed = usable_observations(found, recipe, valid)
        for g, group in enumerate(groups):
            counts[g] += passed[group[some]].sum(axis=0, dtype=np.uint16)
    with metered("kernel"):
        return reduce_block(pixels, recipe, valid=usable, inner=inner, positions=place)


def _best_observations(
    source: _ByScore,
    around: Window,
    inner: Window,
    groups: NDArray[np.bool_],
    place: NDArray[np.intp],
    status: NDArray[np.uint8],
) -> dict[str, NDArray[Any]]:
    """Pick the observation with the highest score for each pixel and period, the first of equal ones.

    The recipe's reducer gives the same result from all observations.
    """
    stack, recipe, scores = source.stack, source.recipe, source.scores
    size = tuple(s.stop - s.start for s in around)
    highest = scores.of_scene + scores.of_distance.max(initial=0)  # upper bound for each scene
    best = np.full((len(groups), *size), -np.inf, np.float32)
    chosen, counts = np.full((len(groups), *size), -1, np.int16), np.zeros((len(groups), *size), np.uint16)
    picked = np.full((len(groups), len(stack.bands), *size), recipe.fill(stack.dtype), stack.dtype)

    def needed(some: NDArray[np.intp]) -> NDArray[np.bool_]:
        return np.stack([((best <= highest[t]) | (counts < recipe.min_count))[groups[:, t]].any(axis=0) for t in some])

    for some, found, valid in source.read(around, status, needed):
        with metered("kernel"):
            score = observation_scores(found, recipe, valid, Scores(scores.of_scene[some], scores.of_distance))
            for g, group in enumerate(groups):
                for i in np.flatnonzero(group[some]):
                    keep_best(found[i], score[i], some[i], best[g], counts[g], picked[g], chosen[g])
    short = counts < recipe.min_count
    np.moveaxis(picked, 1, -1)[short] = recipe.fill(stack.dtype)
    chosen = np.where(short | (chosen < 0), np.int16(-1), place[chosen].astype(np.int16))
    made, source_of = picked[..., inner[0], inner[1]], chosen[..., inner[0], inner[1]]
    layers = recipe.layers(stack.dtype, len(recipe.days or place))
    arrays = (made, source_of) if recipe.periods is not None else (made[0], source_of[0])
    return {layer.name: np.ascontiguousarray(a) for layer, a in zip(layers, arrays, strict=True)}


def _place(window: Window, piece: Piece) -> tuple[Any, Any]:
    """Return where a piece of a window lies in it: slices, or rows and columns of pixels."""
    if not isinstance(piece, TileSelection):
        return within(window, piece)
    y, x = within(window, piece.window)
    row, column = np.divmod(piece.pixels, np.int32(x.stop - x.start))
    return row + y.start, column + x.start


def _cut(valid: NDArray[np.bool_] | None, window: Window, piece: Piece) -> NDArray[np.bool_] | None:
    """Return which pixels are valid in a piece of a window: ``(t, y, x)``."""
    if valid is None:
        return None
    part = valid[(slice(None), *_place(window, piece))]
    return part[:, None] if isinstance(piece, TileSelection) else part


_Composed = tuple[Piece, dict[str, NDArray[Any]]]


def _joined(window: Window, parts: Sequence[_Composed]) -> dict[str, NDArray[Any]]:
    """Put the pieces of a window together."""
    if len(parts) == 1 and not isinstance(parts[0][0], TileSelection):
        return parts[0][1]
    height, width = (s.stop - s.start for s in window)
    statuses = np.stack([part[STATUS] for _, part in parts])
    failed, outside = (statuses == FAILED).any(0), (statuses == OUTSIDE).all(0)
    status = np.where(failed, np.uint8(FAILED), np.where(outside, np.uint8(OUTSIDE), np.uint8(READ)))
    out = {name: np.empty((*a.shape[:-2], height, width), a.dtype) for name, a in parts[0][1].items() if name != STATUS}
    for piece, part in parts:
        place = _place(window, piece)
        for name, array in out.items():
            array[(..., *place)] = part[name][..., 0, :] if isinstance(piece, TileSelection) else part[name]
    return {**out, STATUS: status}


def layer_arrays(
    cube: xr.DataArray,
    found: tuple[Stack, Chunks] | None,
    recipe: Recipe,
    layers: Sequence[Layer],
    valid: NDArray[np.bool_] | da.Array | None,
) -> dict[str, Any]:
    """Return the data of each layer of a composite: NumPy for a NumPy-backed cube, else lazy.

    `found` is the stack and the windows behind the cube ``(time, band, y, x)``, see `stack_of`; `valid`, of the cube's
    ``(time, y, x)``, is False where an observation must not be used.
    """
    if not isinstance(cube.data, da.Array):
        refuse_masks(recipe)
        return dict(reduce_block(cube.data, recipe, valid=None if valid is None else np.asarray(valid)))
    packed = _from_stack(*found, recipe, valid) if found else _from_array(cube, recipe, valid)
    quick, uncounted = packed, replace(recipe, counted=False)
    if found and uncounted.ends_early and not recipe.ends_early:  # all layers but ``count`` need fewer scenes
        quick = _from_stack(*found, uncounted, valid)
    sizes = {"band": cube.sizes["band"], "time": len(recipe.periods or ())}
    out = {}
    for layer in layers:
        head = tuple(sizes[dim] for dim in layer.dims if dim not in ("y", "x"))
        out[layer.name] = _output(packed if layer.name == "count" else quick, layer.name, layer.dtype, head)
    if found and found[0].options.on_error == "skip":
        windows = tuple((1,) * n for n in packed.numblocks)
        out[STATUS] = _output(quick, STATUS, np.dtype(np.uint8), (cube.sizes["time"],), windows)
    return out


@dataclass(frozen=True, eq=False)
class Work:
    """What all tasks of a composite from files need; sent once to each worker."""

    stack: Stack
    recipe: Recipe
    spatial: Chunks

    masks: tuple[OpenedMask, ...]
    """The mask bands that the recipe's rules need."""

    arrays: bool = False
    """Whether masks given as arrays are used, too."""

    def __dask_tokenize__(self) -> Any:
        return self.stack.token, tokenize(self.recipe), self.spatial, tokenize(self.masks)


def work_in(dataset: xr.Dataset) -> Work | None:
    """Return the work of all layers behind a lazy composite of a cube from files, None for any other."""
    graphs = [array.data.dask for array in dataset.data_vars.values() if isinstance(array.data, da.Array)]
    handles = (handle_in(layer, Work) for layer in graphs[0].layers.values()) if graphs else ()
    work = next((work for work in handles if work), None)
    return work and replace(work, recipe=replace(work.recipe, counted=True))


def _compose_block(
    valid: NDArray[np.bool_] | None = None, *, work: Work, block_id: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    return compose_window(work.stack, work.recipe, window_at(work.spatial, *block_id), work.masks, valid)


def _reduce(block: NDArray[Any], valid: NDArray[np.bool_] | None = None, *, recipe: Recipe) -> dict[str, NDArray[Any]]:
    with metered("kernel"):
        return dict(reduce_block(block, recipe, valid=None if valid is None else valid[:, 0]))


def _from_stack(stack: Stack, spatial: Chunks, recipe: Recipe, valid: NDArray[np.bool_] | da.Array | None) -> da.Array:
    work = Work(stack, recipe, spatial, masks_of(stack, recipe.rules), valid is not None)
    token = tokenize(work)
    common = {
        "work": delayed(work, name=f"send-recipe-{token}", pure=True, traverse=False),
        "chunks": spatial,
        "dtype": object,
        "meta": np.empty((0, 0), object),
    }
    if valid is None:
        return da.map_blocks(_compose_block, name=f"composite-window-{token}", **common)
    mask = _chunked(valid, spatial)
    if recipe.halo:  # one chunk for each window, with the pixels around it
        rows, columns = (
            [
                slice(max(stop - n - recipe.halo, 0), stop + recipe.halo)
                for n, stop in zip(sizes, np.cumsum(sizes), strict=True)
            ]
            for sizes in spatial
        )
        mask = da.block([[mask[:, y, x].rechunk(-1) for x in columns] for y in rows])
    name = f"composite-window-{tokenize(token, mask.name)}"
    packed = da.map_blocks(_compose_block, mask, name=name, drop_axis=0, **common)
    (fused,) = dask.optimize(packed)
    return fused


def _chunked(valid: NDArray[np.bool_] | da.Array, spatial: Chunks) -> da.Array:
    """Return a mask ``(t, y, x)`` as a Dask array in the windows' chunks."""
    chunks = ((valid.shape[0],), *spatial)
    if isinstance(valid, da.Array):
        return valid.rechunk(chunks)
    return da.from_array(valid, chunks, name=f"send-mask-{tokenize(valid, chunks)}")


def _from_array(cube: xr.DataArray, recipe: Recipe, valid: NDArray[np.bool_] | da.Array | None) -> da.Array:
    refuse_masks(recipe)
    data = cube.data
    if not len(data.chunks[0]) == len(data.chunks[1]) == 1:
        size = data.shape[0] * data.shape[1] * max(data.chunks[2]) * max(data.chunks[3]) * data.dtype.itemsize
        if size > thread_memory() // 2:
            raise ParameterError(
                f"the cube is chunked over time, and a window of all times would take {size / 2**30:.1f} GiB of the "
                f"{thread_memory() / 2**30:.1f} GiB of a worker thread; open it with smaller windows and all times in "
                "one chunk, for example chunks={'time': -1, 'band': -1, 'y': 512, 'x': 512}"
            )
        data = data.rechunk({0: -1, 1: -1})
    if recipe.halo and data.npartitions > 1:
        raise ParameterError(
            f"{recipe.reducers[0].name} and its rules need {recipe.halo} pixels around each pixel, but this cube is "
            "chunked in y and x; open the scenes with open_cube(), which reads these pixels, or compute the cube first"
        )
    # A mask gets a band axis of length one, so that its chunks match those of the data.
    masks = [] if valid is None else [_chunked(valid, data.chunks[2:])[:, None]]
    packed = da.map_blocks(
        _reduce,
        data,
        *masks,
        recipe=recipe,
        drop_axis=[0, 1],
        dtype=object,
        meta=np.empty((0, 0), object),
        name=f"composite-window-{tokenize(data.name, recipe, [mask.name for mask in masks])}",
    )
    # Dask starts fusing at whichever key comes first. From one of several outputs it does not reach the read, and a
    # window of all dates would become a task result; from a single output it does. So fuse before the outputs branch.
    (fused,) = dask.optimize(packed)
    return fused


def refuse_masks(recipe: Recipe) -> None:
    """Raise a ParameterError if rules need the scenes' files, for cubes that do not have them."""
    beside = [str(rule) for rule in recipe.rules if isinstance(rule, BesideRule)]
    if beside:
        raise ParameterError(
            f"{', '.join(beside)} need the scenes' files: rules on mask bands need that band, either in the cube or "
            "Dataset itself, or in the scenes of a cube from open_cube() with unchanged values, and Mask, CloudNet "
            "and TemporalMask need such a cube; or pass a boolean DataArray (time, y, x)"
        )


def _output(packed: da.Array, name: str, dtype: Any, head: tuple[int, ...], windows: Chunks | None = None) -> da.Array:
    """Return one layer of the packed results; `head` holds the sizes of the axes before y and x."""
    return da.map_blocks(
        take_layer,
        packed,
        layer=name,
        name=f"take-{name.replace('_', '-')}-{tokenize(packed.name, name)}",
        new_axis=list(range(len(head))) or None,
        chunks=(*((n,) for n in head), *(windows or packed.chunks)),
        dtype=dtype,
        meta=np.empty((0,) * (len(head) + 2), dtype),
    )


def counted_together(dataset: xr.Dataset) -> xr.Dataset:
    """Return a composite whose layers are all taken from the windows of its count: what computes that has them all."""
    count = dataset.get("count")
    if count is None or not isinstance(count.data, da.Array):
        return dataset
    graph, name = count.data.dask, count.data.name
    if taken_layer(name, graph) != "count":
        return dataset
    (source,) = graph.dependencies[name]
    packed = da.Array(graph, source, count.data.chunks[-2:], dtype=object, meta=np.empty((0, 0), object))
    made = {}
    for layer, array in ((str(layer), array) for layer, array in dataset.data_vars.items()):
        data = array.data
        if not isinstance(data, da.Array):
            continue
        if taken_layer(data.name, data.dask) == layer and data.dask.dependencies[data.name] != {source}:
            made[layer] = array.copy(data=_output(packed, layer, data.dtype, data.shape[:-2], data.chunks[-2:]))
    return dataset.assign(made)


def source_shares(source: NDArray[np.int16] | da.Array, n_scenes: int) -> NDArray[np.float64] | da.Array:
    """Return the share of pixels from each scene: ``(..., n_scenes)`` for a source layer ``(..., y, x)``."""
    size = max(source.shape[-2] * source.shape[-1], 1)
    if not isinstance(source, da.Array):
        return _source_counts(source, n_scenes)[..., 0, 0, :] / size
    parts = da.map_blocks(
        _source_counts,
        source,
        n_scenes,
        name=f"count-sources-{tokenize(source.name, n_scenes)}",
        new_axis=source.ndim,
        chunks=(*source.chunks[:-2], *((1,) * n for n in source.numblocks[-2:]), (n_scenes,)),
        dtype=np.float64,
        meta=np.empty((0,) * (source.ndim + 1)),
    )
    return parts.sum(axis=(-3, -2)) / size


def _source_counts(source: NDArray[np.int16], n_scenes: int) -> NDArray[np.float64]:
    """Return the number of pixels from each scene, with y and x axes of length one."""
    planes = source.reshape(-1, *source.shape[-2:])
    counts = np.stack([np.rint(scene_shares(plane, n_scenes) * plane.size) for plane in planes])
    return counts.reshape(*source.shape[:-2], 1, 1, n_scenes)
