"""A product as cloud-optimised GeoTIFF: files whose tiles wait in a place for parts until all of them are there."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from s2composite.cube import Chunks
from s2composite.running.products.window import Step
from s2composite.scenes.storage import exists
from s2composite.windows import STATUS, Work
from s2composite.writing.assemble import FileLayout, lay_out
from s2composite.writing.cog import status_tags
from s2composite.writing.durable import load_record, record_name, save_record
from s2composite.writing.files import FilePlan, assembling, name_files
from s2composite.writing.layers import RGBA
from s2composite.writing.parts import Parts
from s2composite.writing.preview import Preview, preview_of
from s2composite.writing.pyramid import plan_stages, regular_chunks
from s2composite.writing.raster import Raster
from s2composite.writing.targets import target_of
from s2composite.writing.window import FilePart, Stage, WindowIndex, WindowResult, encode_files, encode_window

__all__ = ["CogOutput", "CogWriter", "cog_output", "describe_cog"]

_WINDOWS = "windows"
"""Name of the part that holds the side of the windows, in pixels."""

_ALL = "all"
"""First word of the records of windows, which are about all files."""


@dataclass(frozen=True, eq=False)
class CogWriter:
    """Keeps windows as parts of files, with a record of each; see `Writer`."""

    files: tuple[FilePart, ...]
    """The files, with their final names and the place for parts, and the stage that the windows are."""

    layers: tuple[tuple[str, ...], ...]
    """For each file the names of its layers."""

    previews: tuple[Preview | None, ...]
    """For each file how its picture is painted, where it is one."""

    periods: tuple[int | None, ...]
    """For each file the period it is about; None: there are none."""

    def keep(self, layers: Mapping[str, NDArray[Any]], position: tuple[int, int]) -> None:
        """Encode a window for all files, store their parts, then its record."""
        results = encode_files((self._blocks(layers, n) for n in range(len(self.files))), self.files, position)
        first = self.files[0]
        save_record(first.raster.parts, record_name(_ALL, first.stage, position), results, {STATUS: layers[STATUS]})

    def _blocks(self, layers: Mapping[str, NDArray[Any]], number: int) -> list[NDArray[Any]]:
        preview, period = self.previews[number], self.periods[number]
        names = self.layers[number] if preview is None else (preview.layer,)
        blocks = [layers[name] if period is None else layers[name][period] for name in names]
        return blocks if preview is None else [preview.paint(blocks[0])]


@dataclass(frozen=True, eq=False)
class CogOutput:
    """Cloud-optimised GeoTIFFs; see `Output`."""

    writer: CogWriter
    """Keeps windows."""

    stages: tuple[tuple[Stage, ...], ...]
    """For each file what makes its levels."""

    dataset: xr.Dataset
    """The lazy composite."""

    token: str
    """Hash of all that decides about their bytes."""

    run: str = field(default_factory=lambda: uuid.uuid4().hex[:6])
    """Different for each run: two that put the same files together at once do not take them from each other."""

    @property
    def rasters(self) -> tuple[Raster, ...]:
        """The files."""
        return tuple(file.raster for file in self.writer.files)

    @property
    def files(self) -> tuple[str, ...]:
        """Their names as messages show them."""
        return tuple(raster.label for raster in self.rasters)

    @property
    def windows(self) -> Chunks:
        """Heights of the rows of windows, widths of their columns."""
        return self.stages[0][0].chunks

    @property
    def place(self) -> str:
        """Where parts lie."""
        return self._parts.root

    @property
    def _parts(self) -> Parts:
        return self.rasters[0].parts

    def there(self) -> tuple[str, ...]:
        """Return those files that exist."""
        return tuple(raster.label for raster in self.rasters if exists(raster.path))

    def begin(self, busy: Collection[str], *, overwrite: bool) -> None:  # noqa: ARG002 - each token has its own place
        """Make the place for parts, or see that it is there, and note the size of the windows."""
        self._parts.create()
        if self.token not in busy:
            self._parts.remove_assembled()
        self._parts.write(_WINDOWS, str(max(self.windows[0][0], self.windows[1][0])).encode())

    def done(self) -> frozenset[tuple[int, int]]:
        """Return the windows whose records are there."""
        names, stage = self._parts.names(), self.stages[0][0]
        positions = np.ndindex(*map(len, self.windows))
        return frozenset(at for at in positions if record_name(_ALL, stage, at) in names)

    def steps(self) -> Iterator[list[Step]]:
        """Yield what is to be done when all windows are there, one batch after the other: overviews, then files."""
        for level in range(1, max(map(len, self.stages))):
            yield [step for number in range(len(self.stages)) for step in self._overviews(number, level)]
        layouts = self._layouts()
        calls = zip(layouts, assembling(layouts), strict=True)
        yield [Step(f"assemble-file-{layout.raster.token}", function, args) for layout, (function, args) in calls]

    def take_names(self) -> None:
        """Let the files take their names."""
        name_files(list(map(self._own, self.rasters)), overwrite=True)

    def tidy(self) -> None:
        """Remove the parts."""
        self._parts.clear()

    def _overviews(self, number: int, level: int) -> Iterator[Step]:
        if level >= len(self.stages[number]):
            return
        below, stage = self.stages[number][level - 1 : level + 1]
        for at in np.ndindex(*map(len, stage.chunks)):
            args = (self.rasters[number], number, below, stage, at)
            yield Step(f"make-overview-{number}-{level}-{at[0]}-{at[1]}", make_overview, args)

    def _layouts(self) -> list[FileLayout]:
        """Return the layout of each file, all of whose windows are done."""
        found: list[list[tuple[Stage, WindowIndex]]] = [[] for _ in self.rasters]
        status = np.zeros((self.dataset.sizes["scene"], *map(len, self.windows)), np.uint8)
        first = self.stages[0][0]
        for at in np.ndindex(*map(len, self.windows)):
            results, tables = load_record(self._parts, record_name(_ALL, first, at))
            status[:, at[0], at[1]] = tables[STATUS].ravel()
            for number, result in enumerate(results):
                found[number].append((first, result.index))
        for number, stages in enumerate(self.stages):
            for stage in stages[1:]:
                for at in np.ndindex(*map(len, stage.chunks)):
                    found[number].append((stage, _result(self._parts, number, stage, at).index))
        more = self._status_tags(status)
        rasters = [replace(self._own(r), tags=tuple(sorted({**dict(r.tags), **more}.items()))) for r in self.rasters]
        return [lay_out(raster, results) for raster, results in zip(rasters, found, strict=True)]

    def _own(self, raster: Raster) -> Raster:
        """Return a file under a temporary name that is this run's."""
        return replace(raster, token=f"{raster.token}-{self.run}")

    def _status_tags(self, status: NDArray[np.uint8]) -> Mapping[str, str]:
        """Return the tag about scenes that were left out, where that is allowed."""
        if STATUS not in self.dataset:
            return {}
        starts = {
            f"window_{axis}": (f"window_{axis}", np.cumsum([0, *sizes[:-1]]))
            for axis, sizes in zip(("y", "x"), self.windows, strict=True)
        }
        return status_tags(self.dataset.drop_vars(STATUS).assign_coords(starts), {STATUS: status})


def describe_cog(plans: Sequence[FilePlan]) -> list[str]:
    """Return all of some files that decides about their bytes, and where they are to be."""
    return [repr((p.path, p.raster.bands, p.raster.options, p.raster.nodata, p.raster.tags)) for p in plans]


def cog_output(work: Work, dataset: xr.Dataset, plans: Sequence[FilePlan], token: str) -> CogOutput:
    """Return the output that files make.

    Parameters
    ----------
    token
        Hash of all that decides about their bytes.

    Raises
    ------
    ParameterError
        A preview's stretch makes no sense, or needs pixels that are not there yet.
    WriteError
        The directory of an output does not exist, or its place for parts cannot be read.
    """
    targets = [target_of(plan.path, overwrite=True) for plan in plans]
    # Beside the first file: the workers write there anyway, and no other disk is needed.
    parts = Parts(f"{targets[0]}.{token[:12]}.parts", kept=True)
    windows = _begun_windows(parts, work) or _windows(work, plans)
    rasters = [
        replace(plan.raster, path=target, token=f"{token[:12]}-{i}", parts=parts)
        for i, (plan, target) in enumerate(zip(plans, targets, strict=True))
    ]
    stages = tuple(plan_stages(windows, r.block, r.levels, len(r.bands) * r.dtype.itemsize) for r in rasters)
    layers = tuple(tuple(layer.name for layer in plan.layers) for plan in plans)
    writer = CogWriter(
        tuple(FilePart(raster, own[0]) for raster, own in zip(rasters, stages, strict=True)),
        layers,
        tuple(_preview(plan) if RGBA in names else None for plan, names in zip(plans, layers, strict=True)),
        tuple(_period(plan, dataset) for plan in plans),
    )
    return CogOutput(writer, stages, dataset, token)


def _preview(plan: FilePlan) -> Preview:
    return preview_of(plan.period.dataset, plan.raster.options.stretch)


def _period(plan: FilePlan, dataset: xr.Dataset) -> int | None:
    """Return which of the dataset's periods a file is about."""
    if "period" not in dataset.coords:
        return None
    own = plan.period.dataset["period"].values
    return int(np.flatnonzero(dataset["period"].values == own)[0])


def _begun_windows(parts: Parts, work: Work) -> Chunks | None:
    """Return the windows in which a product was begun: any give the same bytes, but not in one place for parts."""
    if _WINDOWS not in parts.names():
        return None
    return regular_chunks(work.stack.shape[2:], int(parts.read_whole(_WINDOWS)))


def _windows(work: Work, plans: Sequence[FilePlan]) -> Chunks:
    """Return the windows: as large as those of the cube, their edges on tiles of all files."""
    block = lcm(*(plan.raster.block for plan in plans))
    side = max(*work.spatial[0], *work.spatial[1]) // block * block
    return regular_chunks(work.stack.shape[2:], max(side, block))


def make_overview(raster: Raster, number: int, below: Stage, stage: Stage, position: tuple[int, int]) -> None:
    """Make the overviews of one window of a later stage from what the windows below it have left, and keep its record.

    Raises
    ------
    WriteError
        A record is missing or damaged, or encoding failed; names the window.
    """
    y, x = stage.window(*position)
    out = np.empty((len(raster.bands), y.stop - y.start, x.stop - x.start), raster.dtype)
    for at in np.ndindex(len(below.chunks[0]), len(below.chunks[1])):
        top_y, top_x = below.window(at[0], at[1], stage.first)
        rows, columns = _overlap(top_y, y), _overlap(top_x, x)
        if rows is None or columns is None:
            continue
        top = _result(raster.parts, number, below, at).top
        assert top is not None
        out[:, _shifted(rows, y), _shifted(columns, x)] = top[:, _shifted(rows, top_y), _shifted(columns, top_x)]
    result = encode_window([out], raster, stage, position)
    save_record(raster.parts, record_name(str(number), stage, position), [result], {})


def _overlap(a: slice, b: slice) -> slice | None:
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop else None


def _shifted(part: slice, whole: slice) -> slice:
    return slice(part.start - whole.start, part.stop - whole.start)


def _result(parts: Parts, number: int, stage: Stage, position: tuple[int, int]) -> WindowResult:
    if stage.number == 0:
        return load_record(parts, record_name(_ALL, stage, position))[0][number]
    return load_record(parts, record_name(str(number), stage, position))[0][0]
