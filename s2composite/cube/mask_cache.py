"""Marks of tiles of masks kept in files: one small GeoTIFF for each scene and tile, in a directory or a bucket."""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from s2composite.errors import ReadError, WriteError
from s2composite.reading.grid import Window
from s2composite.storage.files import absolute, display, filesystem, is_remote, join, storage_errors, write_atomic
from s2composite.storage.urls import check_read, check_write

__all__ = ["TileFile"]

LOG = logging.getLogger(__name__)

_KEY, _DIGEST = "S2COMPOSITE_KEY", "S2COMPOSITE_SHA256"  # tags


@dataclass(frozen=True)
class TileFile:
    """The file of a tile of a scene; it is replaced as a whole, so that processes may write it at the same time."""

    href: str

    key: str
    """Hash of everything that decides its pixels; it is in the file, too."""

    shape: tuple[int, int]

    @classmethod
    def of(cls, folder: str, scene: str, tile: Window, decides: str) -> TileFile:
        """Return the file of a tile in a folder, named after scene and hash."""
        y, x = tile
        key = hashlib.sha256(f"{decides} {scene} {y} {x}".encode()).hexdigest()[:32]
        name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', scene)[:120]}_{y.start}_{x.start}_{key}.tif"
        return cls(join(absolute(folder), name), key, (y.stop - y.start, x.stop - x.start))

    def read(self) -> NDArray[np.uint8] | None:
        """Return its pixels; None if there is no such file, or it is not what it should be."""
        check_read(self.href)
        try:
            with storage_errors(ReadError, f"{display(self.href)}: cannot be read", self.href):
                fs, path = filesystem(self.href)
                data = None
                with suppress(FileNotFoundError):
                    data = fs.cat_file(path)
            return None if data is None else self._pixels(data)
        except (ReadError, RasterioError, ValueError, KeyError) as error:
            LOG.warning("%s: not used, the tile is computed again: %s", display(self.href), error)
            return None

    def _pixels(self, data: bytes) -> NDArray[np.uint8]:
        with MemoryFile(data) as memory, memory.open() as file:
            tags = file.tags()
            pixels: NDArray[np.uint8] = file.read(1)
        if tags[_KEY] != self.key or pixels.shape != self.shape or pixels.dtype != np.uint8:
            raise ValueError("it holds another tile")
        if tags[_DIGEST] != hashlib.sha256(pixels.tobytes()).hexdigest():
            raise ValueError("its pixels have changed")
        return pixels

    def write(self, pixels: NDArray[np.uint8], geobox: GeoBox) -> None:
        """Write pixels ``(y, x)``, which lie on a grid; what cannot be kept is computed again the next time."""
        check_write(self.href)
        height, width = pixels.shape
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "compress": "deflate", "height": height}
        place = {"transform": geobox.transform, "crs": str(geobox.crs) if geobox.crs else None, "width": width}
        tags = {_KEY: self.key, _DIGEST: hashlib.sha256(pixels.tobytes()).hexdigest()}
        with MemoryFile() as memory:
            with memory.open(**profile, **place) as file:
                file.write(pixels, 1)
                file.update_tags(**tags)
            data = memory.read()
        try:
            with storage_errors(WriteError, f"{display(self.href)}: cannot be written", self.href):
                if is_remote(self.href):
                    fs, path = filesystem(self.href)
                    fs.pipe_file(path, data)
                else:
                    Path(self.href).parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(self.href, data)
        except WriteError as error:
            LOG.warning("%s; this tile is not kept", error)
