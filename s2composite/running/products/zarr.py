"""A product as Zarr store: each window writes its own shards in place, and a mark when they are all there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from s2composite.cube import Chunks
from s2composite.errors import WriteError
from s2composite.running.products.window import Step
from s2composite.windows import STATUS, Work
from s2composite.writing.building import Building, StoreOptions, begin_store, complete_store, plan_store
from s2composite.writing.layers import raster_layers
from s2composite.writing.pyramid import regular_chunks
from s2composite.writing.regions import Regions, mark_of, write_window
from s2composite.writing.stores import IDENTITY, StorePlace, place_of
from s2composite.writing.window import Stage

__all__ = ["ZarrOutput", "ZarrWriter", "describe_zarr", "zarr_output"]

_OPTIONS = StoreOptions()

_IDENTITY = re.compile(r"(?P<token>[0-9a-f]{64})-(?P<side>\d+)")
"""Of a store that a job is writing: the product's token, and the side of the windows, which are the store's shards."""


@dataclass(frozen=True, eq=False)
class ZarrWriter:
    """Keeps windows as shards; see `Writer`."""

    regions: Regions
    """The store."""

    stage: Stage
    """The windows."""

    status: bool
    """The store has a table of what was read."""

    def keep(self, layers: Mapping[str, NDArray[Any]], position: tuple[int, int]) -> None:
        """Write a window of all layers, then its mark."""
        extras = {STATUS: layers[STATUS]} if self.status else {}
        write_window(self.regions, self.stage, position, [layers[name] for name in self.regions.names], extras)


@dataclass(frozen=True, eq=False)
class ZarrOutput:
    """A Zarr store; see `Output`."""

    writer: ZarrWriter
    """Keeps windows."""

    building: Building
    """The store."""

    @property
    def files(self) -> tuple[str, ...]:
        """Its name as messages show it."""
        return (self._place.label,)

    @property
    def windows(self) -> Chunks:
        """Heights of the rows of windows, widths of their columns."""
        return self.writer.stage.chunks

    @property
    def place(self) -> str:
        """Where it is written: beside its final name, or in an object store under it, without the root's metadata."""
        return self._place.root

    @property
    def _place(self) -> StorePlace:
        return self.writer.regions.place

    def there(self) -> tuple[str, ...]:
        """Return the store if it is complete."""
        return self.files if self._place.occupied() else ()

    def begin(self, busy: Collection[str], *, overwrite: bool) -> None:
        """Write all but pixels, or go on with what was begun; give way to a run that writes something else there."""
        if self._named:
            return
        identity = self._place.get(IDENTITY)
        own = identity == self.writer.regions.token.encode()
        # What another job has left here and is not at work on is of no use any more.
        left = None if own or identity is None else _IDENTITY.fullmatch(identity.decode())
        if left is not None and left["token"] in busy:
            raise WriteError(f"{self._place.label}: another run is writing there; wait for its end, or stop it")
        begin_store(self.building, resume=own or not (overwrite or left))

    def done(self) -> frozenset[tuple[int, int]]:
        """Return the windows whose marks are there."""
        if self._named:
            return frozenset(np.ndindex(*map(len, self.windows)))
        marks = self._place.done()
        positions = np.ndindex(*map(len, self.windows))
        return frozenset(at for at in positions if mark_of("", self.writer.stage, at) in marks)

    def steps(self) -> Iterator[list[Step]]:
        """Yield what is to be done when all windows are there: nothing."""
        yield from ()

    def take_names(self) -> None:
        """Let the store look complete."""
        if not self._named:
            complete_store(self.building)

    def tidy(self) -> None:
        """Remove the notes of a run that was interrupted while the store took its name."""
        self._place.tidy()

    @property
    def _named(self) -> bool:
        """Whether the store was just about complete when a run was interrupted."""
        return self._place.named(self.writer.regions.token.encode())


def describe_zarr(path: str) -> list[str]:
    """Return all of a store that decides about its values, and where it is to be."""
    return [repr((path, _OPTIONS))]


def zarr_output(work: Work, dataset: xr.Dataset, path: str, token: str) -> ZarrOutput:
    """Return the output that a store makes.

    Parameters
    ----------
    token
        Hash of all that decides about its values.

    Raises
    ------
    WriteError
        Its directory does not exist, or something else is there.
    """
    place = place_of(path, overwrite=True)
    windows = _begun_windows(place, token, work) or _windows(work)
    identity = f"{token}-{max(windows[0][0], windows[1][0])}"
    building = plan_store(_template(dataset, windows), place, _OPTIONS, windows=windows, token=identity)
    writer = ZarrWriter(building.regions, building.hierarchy.stages[0], STATUS in dataset)
    return ZarrOutput(writer, building)


def _template(dataset: xr.Dataset, windows: Chunks) -> xr.Dataset:
    """Return the dataset as it will be, in the chunks of the windows, with nothing in it."""
    ones: Chunks = (tuple(1 for _ in windows[0]), tuple(1 for _ in windows[1]))
    chunks = dict.fromkeys(raster_layers(dataset), windows) | {STATUS: ones}
    out = {}
    for name, array in dataset.data_vars.items():
        spatial = chunks[str(name)]
        shape = (*array.shape[:-2], *map(sum, spatial))
        data = da.zeros(shape, dtype=array.dtype, chunks=(*((n,) for n in array.shape[:-2]), *spatial))
        out[name] = xr.Variable(array.dims, data, array.attrs, array.encoding)  # which says that attrs are true
    return xr.Dataset(out, dataset.coords, dataset.attrs)


def _begun_windows(place: StorePlace, token: str, work: Work) -> Chunks | None:
    """Return the windows in which a store was begun: they are its shards."""
    found = _IDENTITY.fullmatch((place.get(IDENTITY) or b"").decode())
    if found is None or found["token"] != token:
        return None
    return regular_chunks(work.stack.shape[2:], int(found["side"]))


def _windows(work: Work) -> Chunks:
    """Return the windows: as large as those of the cube, and whole chunks of the store."""
    side = max(*work.spatial[0], *work.spatial[1]) // _OPTIONS.chunk * _OPTIONS.chunk
    return regular_chunks(work.stack.shape[2:], max(side, _OPTIONS.chunk))
