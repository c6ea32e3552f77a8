"""Product: what one composite becomes, made window by window so that any of it can be done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import xarray as xr

import s2composite
from s2composite.cube import Chunks
from s2composite.errors import ParameterError, WriteError
from s2composite.pixels.recipe import Recipe
from s2composite.running.products.cog import cog_output, describe_cog
from s2composite.running.products.window import Step, WindowMaker, Writer
from s2composite.running.products.zarr import describe_zarr, zarr_output
from s2composite.windows import Work, work_in
from s2composite.writing.cog import plan_files
from s2composite.writing.options import RasterOptions
from s2composite.writing.window import Stage

__all__ = ["Output", "Product", "plan_product", "product_state", "require_free"]


class Output(Protocol):
    """One kind of output, from its beginning to its final name."""

    @property
    def writer(self) -> Writer:
        """Keeps windows."""

    @property
    def files(self) -> tuple[str, ...]:
        """Final names as messages show them."""

    @property
    def windows(self) -> Chunks:
        """Heights of the rows of windows, widths of their columns."""

    @property
    def place(self) -> str:
        """Path or URL of what is not finished."""

    def there(self) -> tuple[str, ...]:
        """Return what exists under its final name."""

    def begin(self, busy: Collection[str], *, overwrite: bool) -> None:
        """Make the place for windows, or go on with what is there.

        Parameters
        ----------
        busy
            Tokens of products that others are making here.
        overwrite
            Begin anew where the place holds something else.

        Raises
        ------
        WriteError
            It cannot be written to, or holds something else.
        """

    def done(self) -> frozenset[tuple[int, int]]:
        """Return the windows that are done, by asking the place."""

    def steps(self) -> Iterator[Sequence[Step]]:
        """Yield what is to be done when all windows are there, one batch after the other, its steps in any order."""

    def take_names(self) -> None:
        """Let the output take its final names; it does no harm where it has them already."""

    def tidy(self) -> None:
        """Remove what only led to the output, now that it has its names."""


@dataclass(frozen=True, eq=False)
class Product:
    """What one composite becomes."""

    work: Work
    """Scenes, recipe and masks; its windows are those of the product."""

    output: Output
    """What is written."""

    token: str
    """Hash of inputs, parameters and version: products of the same token have the same values."""

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of all windows, row by row."""
        rows, columns = self.work.spatial
        return tuple(np.ndindex(len(rows), len(columns)))

    @property
    def stage(self) -> Stage:
        """The windows as pixels."""
        return Stage(0, 0, 0, self.work.spatial)

    @property
    def files(self) -> tuple[str, ...]:
        """Final names as messages show them."""
        return self.output.files

    @property
    def maker(self) -> WindowMaker:
        """What workers need to make windows."""
        return WindowMaker(self.work, self.output.writer)

    def done(self) -> frozenset[tuple[int, int]]:
        """Return the windows that are done."""
        return self.output.done()


def plan_product(
    dataset: xr.Dataset,
    output: str,
    *,
    layers: Sequence[str] | None = None,
    options: RasterOptions | None = None,
) -> Product:
    """Plan what a lazy composite becomes; nothing is computed or written.

    Parameters
    ----------
    dataset
        Of a composite of a cube from files.
    output
        Path or URL that ends in ``.zarr``, or of a GeoTIFF; see `write_raster` for the names of several.
    layers, options
        Of GeoTIFFs; a Zarr store has all layers.

    Raises
    ------
    ParameterError
        The composite is not one of files, or options do not go together.
    WriteError
        The directory of an output does not exist, or its place cannot be read.
    """
    work = work_in(dataset)
    if work is None:
        raise ParameterError("a product is made window by window from files: composite a cube from open_cube()")
    made: Output
    if output.rstrip("/").endswith(".zarr"):
        token = _token(work, dataset, describe_zarr(output))
        made = zarr_output(work, dataset, output, token)
    else:
        plans = plan_files(dataset, output, layers, options or RasterOptions())
        token = _token(work, dataset, describe_cog(plans))
        made = cog_output(work, dataset, plans, token)
    return Product(replace(work, spatial=made.windows), made, token)


def product_state(product: Product, events: Sequence[Mapping[str, Any]], *, begun: bool = False) -> str:
    """Return ``"skip"`` if the last files written here are these and still there, ``"recompute"`` if others are.

    ``"begun"`` if a run was interrupted while these took their names. If there are none, ``"begun"`` or ``"new"``, as
    the caller knows.
    """
    there = product.output.there()
    if there == product.files and _last_here(product, events) == "product":
        return "skip"
    if there and _last_here(product, events) == "assemble":
        return "begun"
    return "recompute" if there else "begun" if begun else "new"


def _last_here(product: Product, events: Sequence[Mapping[str, Any]]) -> str | None:
    """Return how far the last files came that were written here, if they are those of this product."""
    last = next((event for event in reversed(events) if event["event"] in ("assemble", "product")), None)
    return str(last["event"]) if last is not None and last["token"] == product.token else None


def require_free(product: Product, events: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to write over what is there.

    Raises
    ------
    WriteError
        A file is there; says whether the ledger knows it.
    """
    if _last_here(product, events) == "assemble":
        return  # a run was interrupted while they took their names
    known = any(event["event"] == "product" for event in events)
    what = "is not what this job makes of its scenes now" if known else "no ledger beside it says what it is"
    for label in product.output.there():
        raise WriteError(f"{label}: exists already, and {what}; set overwrite to replace it", path=label)


def _token(work: Work, dataset: xr.Dataset, files: Sequence[str]) -> str:
    facts = {
        "version": s2composite.__version__,
        "stack": work.stack.token,
        "masks": [repr(mask.__dask_tokenize__()) for mask in work.masks],
        "recipe": _recipe_facts(work.recipe),
        "facts": {key: str(value) for key, value in sorted(dataset.attrs.items())},
        "files": list(files),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _recipe_facts(recipe: Recipe) -> list[str]:
    return [
        *map(str, recipe.reducers),
        *map(str, recipe.rules),
        repr((recipe.bands, recipe.nodata, recipe.min_count, recipe.days, recipe.periods)),
    ]
