"""Parts: where encoded tiles wait until their file is assembled: beside it, so that no other disk is needed."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from s2composite.errors import WriteError
from s2composite.scenes.storage import display, filesystem, is_remote, join, reason

__all__ = ["Parts", "disk_error"]

_MARKER = "in-progress"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Parts:
    """A directory, or a prefix of an object store, for the parts of files that are being written."""

    root: str
    """Absolute path or URL, different for each attempt to write."""

    carried: bool = False
    """Whether workers do not see `root` and return their parts as results, which the client stores."""

    kept: bool = False
    """Whether parts stay until all are cleared, so that an interrupted write can resume from them."""

    @property
    def remote(self) -> bool:
        """Whether the parts are objects of a store."""
        return is_remote(self.root)

    def create(self) -> None:
        """Make the place and prove that it can be written to.

        Raises
        ------
        WriteError
            It cannot.
        """
        try:
            if not self.remote:
                Path(self.root).mkdir(exist_ok=self.kept)
            self._put(_MARKER, b"s2composite is writing here; left over only if it was killed\n")
        except OSError as error:
            self.clear()
            raise WriteError(f"{display(self.root)}: cannot be written: {reason(self.root, error)}") from error
        except Exception as error:  # clients of object stores raise their own kinds
            raise WriteError(f"{display(self.root)}: cannot be written: {reason(self.root, error)}") from error

    def visible(self) -> bool:
        """Return whether the place exists for this process."""
        if not self.remote:
            return Path(self.root, _MARKER).exists()
        fs, path = filesystem(join(self.root, _MARKER))
        return bool(fs.exists(path))

    def require(self) -> None:
        """Raise if the place is gone, because writing was given up.

        Raises
        ------
        WriteError
            It is gone.
        """
        if not self.visible():
            raise WriteError(f"{display(self.root)}: no longer exists, because writing was given up")

    def write(self, name: str, data: bytes) -> None:
        """Store a part, whole or not at all.

        Raises
        ------
        WriteError
            The place is gone (writing was given up), or full.
        """
        try:
            self.require()
            self._put(name, data)
        except OSError as error:
            raise disk_error(error, join(self.root, name), len(data)) from error

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return bytes of a part.

        Raises
        ------
        WriteError
            The part is gone or too short.
        """
        try:
            data = self._get(name, start, size)
        except OSError as error:
            raise WriteError(f"{display(join(self.root, name))}: {reason(self.root, error)}") from error
        if len(data) != size:
            raise WriteError(f"{display(join(self.root, name))}: {len(data)} of {size} bytes at {start} are there")
        return data

    def read_whole(self, name: str) -> bytes:
        """Return a part.

        Raises
        ------
        WriteError
            It is gone.
        """
        try:
            if not self.remote:
                return Path(self.root, name).read_bytes()
            fs, path = filesystem(join(self.root, name))
            return bytes(fs.cat_file(path))[:-1]  # without the byte that `_put` adds
        except OSError as error:
            raise WriteError(f"{display(join(self.root, name))}: {reason(self.root, error)}") from error

    def names(self) -> frozenset[str]:
        """Return the names of the parts that are there; none where the place does not exist."""
        if not self.remote:
            root = Path(self.root)
            return frozenset(entry.name for entry in root.iterdir()) if root.is_dir() else frozenset()
        fs, path = filesystem(self.root)
        fs.invalidate_cache()
        try:
            return frozenset(str(entry).rpartition("/")[2] for entry in fs.ls(path, detail=False))
        except FileNotFoundError:
            return frozenset()

    def remove(self, name: str) -> None:
        """Remove a part that is no longer needed."""
        if self.remote or self.kept:
            return  # one request for all, at the end
        Path(self.root, name).unlink(missing_ok=True)

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
            try:
                fs.rm(victim, recursive=recursive)
            except Exception:  # noqa: BLE001, S112 - clients raise their own kinds, and an error while cleaning up hides the real one
                continue

    def _put(self, name: str, data: bytes) -> None:
        if self.remote:
            fs, path = filesystem(join(self.root, name))
            # gcsfs ends what it sends with a line feed; a last byte \r would be taken for a part of that line end.
            fs.pipe_file(path, data + b".")
            return
        final = Path(self.root, name)
        # A task that Dask runs twice must not replace a whole part with half of one.
        unfinished = final.with_suffix(f".{uuid.uuid4().hex[:8]}")
        try:
            unfinished.write_bytes(data)
            unfinished.replace(final)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _get(self, name: str, start: int, size: int) -> bytes:
        if self.remote:
            fs, path = filesystem(join(self.root, name))
            return bytes(fs.cat_file(path, start=start, end=start + size))
        with Path(self.root, name).open("rb") as file:
            return os.pread(file.fileno(), size, start)


def disk_error(error: OSError, path: str, size: int) -> WriteError:
    """Return the error of the library for an error of the file system while writing `size` bytes to `path`."""
    if error.errno in _FULL:
        return WriteError(
            f"{display(path)}: the disk is full ({size:,} bytes were to be written); make room or write elsewhere",
            path=display(path),
            bytes_needed=size,
        )
    return WriteError(f"{display(path)}: cannot be written: {reason(path, error)}", path=display(path))
