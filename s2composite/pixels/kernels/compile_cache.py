"""How kernels are compiled: by Numba, on their first call for each set of types, and kept on disk after that.

Numba's own cache on disk is not used: processes that fill it at the same time with kernels for different types share
one index and number their files alike, so one can be handed the code of the other. Here each compiled kernel is a file
of its own, named after everything it depends on and moved into place whole: nothing to share, nothing to go stale.
Without a directory to write to, each process compiles for itself.

What is loaded is run. So as with ssh's keys, the files and their directory must belong to this user, and nobody else
must be able to write to them or to a directory above; otherwise they are as good as not there, and the log says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar, cast

import llvmlite
import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

__all__ = ["cache_directory", "fast_part", "kernel", "kernel_in_memory", "part"]

LOG = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


def kernel_in_memory(function: F) -> F:
    """Compile a kernel that Python calls, on its first call for each set of types; it releases the interpreter lock."""
    return cast("F", numba.njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True)(function))


def kernel(function: F) -> F:
    """Compile a kernel of this package, as `kernel_in_memory`, and keep its compiled forms on disk."""
    dispatcher: Any = kernel_in_memory(function)
    dispatcher._cache = _KernelCache(function)  # noqa: SLF001 - where Numba puts its own cache
    return cast("F", dispatcher)


def part(function: F, *, fastmath: bool = False) -> F:
    """Compile a part of kernels, which only kernels can call: it becomes a piece of their machine code."""
    options = {"error_model": "numpy", "fastmath": fastmath, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("F", numba.njit(**options)(function))


def fast_part(function: F) -> F:
    """Compile a part of kernels whose sums of floats may be fused and reordered; its numbers must be finite."""
    return part(function, fastmath=True)


def cache_directory() -> Path | None:
    """Return where compiled kernels are kept, made if need be; None where nothing can be written, or others can write.

    ``NUMBA_CACHE_DIR`` or, if that is not set, the user's cache directory (``XDG_CACHE_HOME``, ``~/.cache``).
    """
    try:
        base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        directory = Path(base).expanduser() / "s2composite-kernels"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            return None
        weakness = _weakness(directory.resolve())
    except (OSError, RuntimeError):
        return None
    if weakness:
        _warn_once(f"{weakness}: compiled kernels are not kept there, each process compiles its own")
    return None if weakness else directory


def _weakness(directory: Path) -> str:
    """Return how others could put files into a directory; empty if only this user (and root) can."""
    if os.name != "posix":
        return ""
    for place in (directory, *directory.parents):
        status, above = place.stat(), place != directory
        if status.st_uid != os.geteuid() and not (above and status.st_uid == 0):
            return f"{place} belongs to another user"
        # in a directory like /tmp others cannot move what is not theirs
        if _others_can_write(status) and not (above and status.st_mode & stat.S_ISVTX):
            return f"other users can write to {place}"
    return ""


def _others_can_write(status: os.stat_result) -> bool:
    if not status.st_mode & stat.S_IWGRP or status.st_mode & stat.S_IWOTH:
        return bool(status.st_mode & stat.S_IWOTH)
    # With a group that has no member but this user, umask 002 is the rule.
    import grp  # noqa: PLC0415 - POSIX only
    import pwd  # noqa: PLC0415

    try:
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return True
    return group.gr_name != user or not set(group.gr_mem) <= {user}


@cache
def _warn_once(message: str) -> None:
    LOG.warning(message)


def _read(path: Path) -> bytes:
    """Return the content of a file that belongs to this user and that others cannot write; else a PermissionError."""
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if os.name == "posix" and (status.st_uid != os.geteuid() or _others_can_write(status)):
            _warn_once(f"{path} belongs to another user, or others can write to it: it is compiled again")
            raise PermissionError(path)
        return file.read()


def _write(path: Path, content: bytes) -> None:
    """Write a file that has its name only once it is complete."""
    with NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise


@cache
def _sources() -> bytes:
    """Return the digest of everything that all kernels depend on, whatever their types."""
    digest = hashlib.sha256(repr((sys.version, numba.__version__, llvmlite.__version__)).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.digest()


class _KernelCache(NullCache):  # type: ignore[misc]  # numba publishes no types
    """The compiled forms of one kernel on disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = function.__name__

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kernel compiled for types `sig`, or None."""
        target_context.refresh()
        path = self._path(sig, target_context.codegen())
        if path is None or not path.exists():
            return None
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(_read(path)))  # noqa: S301, SLF001 - the user's own file
        except Exception:  # noqa: BLE001 - a file cut short or from elsewhere fails anyhow, and is as good as none
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the kernel compiled for types `sig`."""
        path = self._path(sig, data.codegen)
        if path is None or data.library.has_dynamic_globals:
            return
        with suppress(OSError):  # disk full, directory gone: the kernel in memory is good
            _write(path, dumps(data._reduce()))  # noqa: SLF001 - what Numba's own cache writes

    def _path(self, sig: Any, codegen: Any) -> Path | None:
        """Return the file for types `sig` on this kind of processor."""
        directory = cache_directory()
        if directory is None:
            return None
        key = hashlib.sha256(_sources() + repr((str(sig), codegen.magic_tuple())).encode())
        return directory / f"{self._name}-{key.hexdigest()[:32]}"
