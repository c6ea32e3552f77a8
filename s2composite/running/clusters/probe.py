"""What each worker is asked when a cluster is checked; these functions run there.

They do not run as tasks: a worker without s2composite could not unpack one, and Dask ends a worker for that. To a
function sent by `Client.run` it answers with the error instead.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import s2composite
from s2composite.errors import S2CompositeError
from s2composite.running.clusters.client import ShippedEnvironment
from s2composite.scenes.storage import display, filesystem, reason

# Imported in the functions: a broken package must be a finding, not an import error of this module.
# ruff: noqa: PLC0415

__all__ = ["CONTENT", "Findings", "probe_worker", "read_object", "remove_object", "write_object"]

CONTENT = b"s2composite check\n"
"""Content of a probe object."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What one worker found."""

    version: str
    """Version of s2composite there."""

    gdal: str
    """Version of the GDAL in rasterio."""

    numba_threads: int
    """Threads that a parallel kernel would start in each task."""

    environment: tuple[str, ...]
    """Variables that do not have the value that was shipped."""

    source: str | None
    """Why the source cannot be read; None: it can, or was not asked for."""

    target: str | None
    """Why the target cannot be written to; None: it can, or was not asked for."""


async def probe_worker(shipped: Sequence[str], source: str | None, target: str | None, dask_worker: Any) -> Findings:
    """Return what this worker finds: versions, its environment, whether a header can be read and an object written."""
    environment = _environment(shipped, dask_worker)
    return await asyncio.to_thread(_findings, environment, source, target)  # the worker's event loop must not block


def _findings(environment: tuple[str, ...], source: str | None, target: str | None) -> Findings:
    import numba
    import rasterio

    return Findings(
        s2composite.__version__,
        rasterio.__gdal_version__,
        numba.config.NUMBA_NUM_THREADS,
        environment,
        None if source is None else _header(source),
        None if target is None else write_object(target),
    )


def _environment(shipped: Sequence[str], worker: Any) -> tuple[str, ...]:
    """Return the variables that differ from those shipped, or that came too late for the library they configure."""
    import numba
    from rasterio._env import get_gdal_config  # rasterio's public getenv() knows only what it has set itself

    plugin = next((plugin for plugin in worker.plugins.values() if isinstance(plugin, ShippedEnvironment)), None)
    if plugin is None:
        return tuple(shipped)
    wrong = set(plugin.differing()) | (set(shipped) - set(plugin.names))
    threads = os.environ.get("NUMBA_NUM_THREADS", "")
    if "NUMBA_NUM_THREADS" in shipped and str(numba.config.NUMBA_NUM_THREADS) != threads:
        wrong.add("NUMBA_NUM_THREADS")
    wrong |= {name for name in shipped if name.startswith("GDAL_") and get_gdal_config(name) is None}
    return tuple(sorted(wrong))


def _header(href: str) -> str | None:
    from s2composite.reading.header import read_header

    try:
        read_header(href)
    except S2CompositeError as error:
        return str(error)
    return None


def write_object(url: str) -> str | None:
    """Write a probe object and read it back; return why that fails, or None."""
    try:
        fs, path = filesystem(url)
        fs.pipe_file(path, CONTENT)
    except Exception as error:  # noqa: BLE001 - clients of object stores raise their own kinds
        return f"{display(url)} cannot be written: {reason(url, error)}"
    return read_object(url)


def read_object(url: str) -> str | None:
    """Return why a probe object cannot be read, or None."""
    try:
        fs, path = filesystem(url)
        same = fs.cat_file(path) == CONTENT
    except Exception as error:  # noqa: BLE001 - as above
        return f"{display(url)} cannot be read: {reason(url, error)}"
    return None if same else f"{display(url)} does not hold what was written to it"


async def remove_object(url: str) -> str | None:
    """Delete a probe object; return why that fails, or None."""
    return await asyncio.to_thread(_remove, url)


def _remove(url: str) -> str | None:
    try:
        fs, path = filesystem(url)
        if fs.exists(path):
            fs.rm_file(path)
    except Exception as error:  # noqa: BLE001 - as above
        return f"{display(url)} cannot be deleted: {reason(url, error)}"
    return None
