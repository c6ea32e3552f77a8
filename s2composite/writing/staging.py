"""Where encoded tiles and Zarr stores wait until they are complete: beside the output."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import FsspecStore, LocalStore

from s2composite.errors import ParameterError, S2CompositeError, SourceError, WriteError
from s2composite.storage.files import (
    absolute,
    display,
    exists,
    filesystem,
    is_remote,
    join,
    reason,
    replace_directory,
    storage_errors,
    write_atomic,
)
from s2composite.storage.urls import check_write

__all__ = [
    "ASSEMBLED", "IDENTITY", "ROOT", "Parts", "StorePlace", "disk_errors", "place_of", "window_errors", "writable",
]  # fmt: skip

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(path: str, size: int) -> Iterator[None]:
    """Raise what the file system raises, while `size` bytes are written to `path`, as a WriteError."""
    try:
        yield
    except OSError as error:
        shown = display(path)
        if error.errno in _FULL:
            why = f"{shown}: the disk is full ({size:,} bytes were to be written); make room or write elsewhere"
            raise WriteError(why, path=shown, bytes_needed=size) from error
        raise WriteError(f"{shown}: cannot be written: {reason(path, error)}", path=shown) from error


@contextmanager
def window_errors(label: str, where: str, size: int) -> Iterator[None]:
    """Let errors name the window whose `size` bytes are written; more precise errors of the library pass unchanged."""
    with disk_errors(f"{label}, {where}", size):
        try:
            yield
        except WriteError as error:
            raise WriteError(f"{label}, {where}: {error}", **(error.__dict__ | {"window": where})) from error
        except (S2CompositeError, OSError):
            raise
        except Exception as error:  # whatever an encoder or a store raises
            why = f"{label}, {where}: {type(error).__name__}: {error}"
            raise WriteError(why, window=where, path=label) from error


def _read(href: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Return the bytes of a file or an object from `start` on and before `stop`."""
    if is_remote(href):
        fs, path = filesystem(href)
        return bytes(fs.cat_file(path, start=start, end=stop))
    with Path(href).open("rb") as file:
        file.seek(start or 0)
        return file.read(-1 if stop is None else stop - (start or 0))


def _names(href: str) -> frozenset[str]:
    """Return the names of what lies in a directory or below a prefix, of a file its own; none if nothing is there."""
    try:
        if not is_remote(href):
            return frozenset(path.name for path in Path(href).iterdir())
        fs, path = filesystem(href)
        fs.invalidate_cache()
        return frozenset(str(name).rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))
    except FileNotFoundError:
        return frozenset()
    except NotADirectoryError:
        return frozenset({Path(href).name})


# --- stores ----------------------------------------------------------------------------------------------------------

ROOT = "zarr.json"  # key of the metadata of the root: written last, so that a store that has it is complete
IDENTITY = "_identity"  # key of the hash that identifies what is being written
_DONE = "_done"  # prefix of the marks of what is done
_ROOTS = (ROOT, ".zgroup", ".zarray")


@dataclass(frozen=True)
class StorePlace:
    """A Zarr store under construction."""

    target: str  # final name: absolute path or URL; for a store object, its description
    root: str  # where it is written: beside a local target until it is complete, or in place in an object store
    store: Store | None = None  # a store object that was given

    @property
    def label(self) -> str:
        """The final name as messages show it."""
        return display(self.target)

    @property
    def local(self) -> bool:
        """Whether it is a directory."""
        return self.store is None and not is_remote(self.root)

    def open(self) -> Store:
        """Return the store for the zarr library."""
        if self.store is not None:
            return self.store
        if self.local:
            return _StagedStore(self)
        fs, path = filesystem(self.root)
        return FsspecStore.from_mapper(fs.get_mapper(path))

    def create(self, identity: bytes) -> None:
        """Remove what is there, and make the place of a store of that identity."""
        self.clear()
        if self.local:
            with self._errors(IDENTITY, len(identity)):
                Path(self.root).mkdir(exist_ok=True)
        # First of all: it marks what is written here as ours, so that it may be removed again.
        self.put(IDENTITY, identity)

    def put(self, key: str, data: bytes) -> None:
        """Store an object, whole or not at all; the place itself must be there."""
        with self._errors(key, len(data)):
            try:
                write_atomic(join(self.root, key), data)
            except FileNotFoundError:
                if not self.local:
                    raise
                # Not the root: a worker that was frozen finds it gone when it wakes, and must not leave half a store.
                directory = Path(self.root)
                for name in key.split("/")[:-1]:
                    directory /= name
                    directory.mkdir(exist_ok=True)
                write_atomic(join(self.root, key), data)

    def get(self, key: str) -> bytes | None:
        """Return an object, None if there is none."""
        with self._errors(key, 0):
            try:
                return _read(join(self.root, key))
            except FileNotFoundError:
                return None

    def mark(self, name: str) -> None:
        """Mark a piece of work as done."""
        if self.store is None:
            self.put(f"{_DONE}/{name}", b"done")

    def done(self) -> frozenset[str]:
        """Return the pieces of work that are done, by asking the store."""
        if self.store is not None:
            return frozenset()
        with self._errors(_DONE, 0):
            return _names(join(self.root, _DONE))

    def require(self, identity: str) -> None:
        """Raise a WriteError if writing was given up, and remove what was written since."""
        if self.store is not None:
            return
        found = self.get(IDENTITY)
        if found is None and self.get(ROOT) is not None:
            # The store is complete: another worker has made this window while this one did not answer.
            self.remove(_DONE)
        elif found is None:
            self.clear()
        if found is None or found.decode() != identity:
            raise WriteError("writing was given up")

    def complete(self, root: bytes) -> None:
        """Give the store its final name, now that all its windows are written."""
        self.put(ROOT, root)
        if self.local:
            with self._errors("", 0):
                for unfinished in Path(self.root).rglob(".*"):  # of workers that were killed while they wrote
                    unfinished.unlink(missing_ok=True)
                replace_directory(self.root, self.target)
        self.tidy()

    @property
    def _final(self) -> StorePlace:
        return replace(self, root=self.target)

    def occupied(self) -> bool:
        """Return whether there is a Zarr store under the final name."""
        return any(self._final.get(key) is not None for key in _ROOTS)

    def named(self, identity: bytes) -> bool:
        """Return whether a store of that identity has its final name, and only the notes about it are left over."""
        return self._final.get(IDENTITY) == identity and self._final.get(ROOT) is not None

    def tidy(self) -> None:
        """Remove the notes of a store that has its final name; that of what it is last."""
        self._final.remove(_DONE)
        self._final.remove(IDENTITY)

    def clear(self) -> None:
        """Remove everything that has been written."""
        if self.local:
            shutil.rmtree(self.root, ignore_errors=True)
        elif self.store is None:
            # The root first: an incomplete store must never look complete.
            self.remove(ROOT)
            self.remove("")

    def remove(self, key: str) -> None:
        """Remove an object and all below it; the whole store for the empty key."""
        fs, path = filesystem(join(self.root, key) if key else self.root)
        message = f"{self.label}: {key or 'it'} cannot be removed"
        with storage_errors(WriteError, message, self.root), suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    @contextmanager
    def _errors(self, key: str, size: int) -> Iterator[None]:
        message = f"{self.label}: {key} cannot be written"
        with storage_errors(WriteError, message, self.root), disk_errors(join(self.target, key), size):
            yield


class _StagedStore(LocalStore):
    """A local place for the zarr library, which would make its directory again where it is gone."""

    def __init__(self, place: StorePlace) -> None:
        super().__init__(place.root)
        self.place = place

    async def _open(self, **_: Any) -> None:
        self._is_open = True

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self.place.put, key, value.to_bytes())


def writable(path: str | os.PathLike[str]) -> str:
    """Return the absolute path or URL of an output; an AccessError says that this process must not write there."""
    try:
        target = absolute(path)
    except SourceError as error:
        raise ParameterError(str(error)) from error
    check_write(target)
    return target


def place_of(target: Any, *, overwrite: bool) -> StorePlace:
    """Return where a store is written, after all checks that can be made beforehand."""
    if isinstance(target, Store):
        if not overwrite:
            with suppress(FileNotFoundError):
                zarr.open_group(target, mode="r")
                raise WriteError(f"{target}: holds a hierarchy already; pass overwrite=True to replace it")
        return StorePlace(str(target), "", target)
    path = writable(target)
    if path.startswith(("http://", "https://")):
        raise ParameterError(
            f"{display(path)}: a Zarr store cannot be written over HTTP; use gs://, s3:// or a local path"
        )
    place = StorePlace(path, path if is_remote(path) else f"{path}.partial")
    if place.local and not Path(path).parent.is_dir():
        raise WriteError(f"{path}: the directory {Path(path).parent} does not exist; create it first", path=path)
    for root in {path, place.root}:
        check_write(root)
        with storage_errors(WriteError, f"{display(path)}: cannot be checked", root):
            names = _names(root)
        # An interrupted write may be replaced, and a store if it may be overwritten, but nothing else.
        interrupted = IDENTITY in names and not (root == path and ROOT in names)
        if names and not interrupted and not names & set(_ROOTS):
            raise WriteError(f"{display(root)}: exists and is not a Zarr store; write elsewhere or remove it")
        if names and not interrupted and not overwrite:
            raise WriteError(f"{place.label}: exists already; pass overwrite=True to replace it", path=place.label)
    return place


# --- parts of files --------------------------------------------------------------------------------------------------

ASSEMBLED = ".assembled"  # suffix of a file that is put together, until it takes its name
_MARKER = "in-progress"


@dataclass(frozen=True, slots=True)
class Parts:
    """A directory, or a prefix of an object store, for the parts of files that are being written."""

    root: str  # absolute path or URL, different for each attempt to write
    kept: bool = False  # whether parts stay until all are cleared, so that an interrupted write can resume from them

    @property
    def remote(self) -> bool:
        """Whether the parts are objects of an object store."""
        return is_remote(self.root)

    def create(self) -> None:
        """Make the place and prove that it can be written to."""
        with storage_errors(WriteError, f"{display(self.root)}: cannot be written", self.root):
            try:
                if not self.remote:
                    Path(self.root).mkdir(exist_ok=self.kept)
                self._put(_MARKER, b"s2composite is writing here; left over only if it was killed\n")
            except OSError:
                self.clear()
                raise

    def visible(self) -> bool:
        """Return whether the place exists for this process."""
        return exists(join(self.root, _MARKER))

    def require(self) -> None:
        """Raise if the place is gone, because writing was given up."""
        if not self.visible():
            raise WriteError(f"{display(self.root)}: no longer exists, because writing was given up")

    def write(self, name: str, data: bytes) -> None:
        """Store a part, whole or not at all."""
        with disk_errors(join(self.root, name), len(data)):
            self.require()
            self._put(name, data)

    def _put(self, name: str, data: bytes) -> None:
        # gcsfs ends what it sends with a line feed; a last byte \r would be taken for a part of that line end.
        write_atomic(join(self.root, name), data + b"." if self.remote else data)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """Return bytes of a part, by default all."""
        href = join(self.root, name)
        try:
            data = _read(href, start, None if size is None else start + size)
        except OSError as error:
            raise WriteError(f"{display(href)}: {reason(self.root, error)}") from error
        if size is None:
            return data[:-1] if self.remote else data  # without the byte that `_put` adds
        if len(data) != size:
            raise WriteError(f"{display(href)}: {len(data)} of {size} bytes at {start} are there")
        return data

    def names(self) -> frozenset[str]:
        """Return the names of the parts that are there; none where the place does not exist."""
        return _names(self.root)

    def remove(self, name: str) -> None:
        """Remove a part that is no longer needed."""
        if not self.remote and not self.kept:  # else all are removed at the end, objects by one request
            Path(self.root, name).unlink(missing_ok=True)

    def remove_assembled(self) -> None:
        """Remove files that were put together, or half so, when a run was interrupted: the disk need not hold two."""
        if not self.remote:
            for path in Path(self.root).glob(f"*{ASSEMBLED}"):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the place and all in it; what cannot be removed stays."""
        if not self.remote:
            # A task that is still running may add a file meanwhile.
            for _ in range(5):
                shutil.rmtree(self.root, ignore_errors=True)
                if not Path(self.root).exists():
                    return
                time.sleep(0.05)
            return
        fs, path = filesystem(self.root)
        # The marker first, so that tasks still running elsewhere give up.
        for victim, recursive in ((join(path, _MARKER), False), (path, True)):
            with suppress(Exception):  # an error while cleaning up would hide the real one
                fs.rm(victim, recursive=recursive)
