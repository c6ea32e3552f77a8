"""Old names of modules, for one release: importing one returns the module with its contents, and warns."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["install"]

MOVED = {
    "compositing": "cube.composite", "interop": "cube.open", "masking": "cube.masking", "metering": "metrics",
    "screening": "cube.screening", "windows": "cube.windows",
    "pixels.codings": "pixels.mask_bands", "pixels.custom": "pixels.reducers", "pixels.flags": "pixels.mask_bands",
    "pixels.picking": "pixels.select", "pixels.registry": "pixels.reducers", "pixels.rules": "pixels.mask_bands",
    "pixels.scoring": "pixels.select", "pixels.stretching": "pixels.stretch",
    "reading.codecs": "geotiff.codecs", "reading.fetch": "storage.http", "reading.gdal": "storage.gdal",
    "reading.header": "geotiff.header", "reading.index": "reading.headers", "reading.remote": "storage.http",
    "reading.signing": "storage.http",
    "scenes.access": "storage.urls", "scenes.credentials": "storage.files", "scenes.grouping": "scenes.find",
    "scenes.items": "scenes.stac", "scenes.listing": "scenes.find", "scenes.periods": "scenes.dates",
    "scenes.storage": "storage.files", "scenes.values": "scenes.products",
    "writing.reconstruct": "writing.mosaic", "writing.thumbnail": "writing.stac",
}  # fmt: skip


class _Finder(MetaPathFinder, Loader):
    """Finds the modules in `MOVED`, and returns their replacements."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - as of any finder
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "s2composite" and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = f"s2composite.{MOVED[module.__name__.partition('.')[2]]}"
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


def install() -> None:
    """Allow imports by old names."""
    sys.meta_path.append(_Finder())
