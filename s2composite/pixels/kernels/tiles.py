"""How kernels are compiled: by Numba, on their first call for each set of types, and kept on disk after that.

Numba's own cache on disk is not used: processes that fill it at the same time with kernels for different types
share
one index and number their files alike, so one can be handed the code of the other. Here each compiled kernel is a
file
of its own, named after everything it depends on and moved into place whole: nothing to share, nothing to go stale.
Without a directory to write to, each process compiles for itself.

What is loaded is run. So as with ssh's keys, the files and their directory must belong to this user, and nobody
else
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
from typing import Any, NamedTuple, TypeVar, cast

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.extending import intrinsic

__all__ = [
    "LINE_BYTES",
    "Source",
    "cache_directory",
    "count_valid",
    "count_values",
    "emit_prefetch",
    "fast_part",
    "fetch",
    "halve_by_means",
    "judge",
    "kernel",
    "kernel_in_memory",
    "load",
    "part",
    "prefetch",
    "split",
]

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


def part(function: F) -> F:
    """Compile a part of kernels, which only kernels can call: it becomes a piece of their machine code."""
    return cast("F", numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


def fast_part(function: F) -> F:
    """Compile a part of kernels whose sums of floats may be fused and reordered; its numbers must be finite."""
    return cast(
        "F", numba.njit(error_model="numpy", fastmath=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    )


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
    return bool(status.st_mode & stat.S_IWOTH) or (bool(status.st_mode & stat.S_IWGRP) and not _is_own(status.st_gid))


def _is_own(group: int) -> bool:
    """Whether a group has no member but this user: with such groups umask 002 is the rule."""
    import grp  # noqa: PLC0415 - POSIX only
    import pwd  # noqa: PLC0415

    try:
        user, entry = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == user and set(entry.gr_mem) <= {user}


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


@cache
def _sources() -> bytes:
    """Return the digest of everything that all kernels depend on, whatever their types."""
    digest = hashlib.sha256(repr((sys.version, numba.__version__, llvmlite.__version__)).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.digest()


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
        except Exception:  # noqa: BLE001 - a file cut short or from elsewhere is as good as none
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


LINE_BYTES = 64
"""A cache line of nearly every processor; where it is longer, some calls are redundant."""

_READ, _SECOND_LEVEL, _DATA = 0, 2, 1  # what LLVM's prefetch wants to know


def emit_prefetch(builder: Any, pointer: Any) -> None:
    """Write the instruction that brings the cache line of a pointer into the second-level cache."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    builder.call(function, [builder.bitcast(pointer, byte), number(_READ), number(_SECOND_LEVEL), number(_DATA)])


@intrinsic  # type: ignore[untyped-decorator]  # numba publishes no types
def prefetch(_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001 - its type is always the same
    """Bring the cache line of ``array[index]`` into the second-level cache; the index may lie outside the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        emit_prefetch(builder, builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


class Source(NamedTuple):
    """The stack as a kernel sees it: flat memory, and how to find a value in it."""

    values: Any
    """The values from the first pixel on, 1-D, of memory ``(scene, b, plane)`` or interleaved ``(scene, plane, b)``."""

    bands: int
    """Number of bands ``b``."""

    pixels: int
    """Number of pixels ``n``."""

    plane: int
    """Pixels from a band or scene to the next in memory: more than `pixels` where these are a run of them."""

    interleaved: bool
    """True: the bands of a pixel lie together."""

    scenes: Any
    """``(t,)`` int64: the scenes to use, as indices into the stack, in the order that settles ties."""

    usable: Any
    """``(scenes of the stack, plane)`` bool, 1-D from the first pixel on: what mask rules said; empty if nothing."""

    low: Any
    """``(b,)``, type of the values: smallest valid value of each band."""

    high: Any
    """``(b,)``: largest valid value of each band."""

    dropped: Any
    """``(k,)``: values in between that make an observation invalid too."""

    plain: bool
    """True: all bands have the same range."""


@part
def fetch(source: Source, t: int, start: int, n: int) -> None:
    """Bring `n` pixels of the `t`-th scene from pixel `start` on into the cache, for later; beyond the end: nothing."""
    if t >= source.scenes.size or start + n > source.pixels:
        return
    size = source.bands * source.plane
    step = LINE_BYTES // source.values.itemsize
    if source.interleaved:
        first = source.scenes[t] * size + start * source.bands
        for at in range(first, first + n * source.bands, step):
            prefetch(source.values, at)
    else:
        for b in range(source.bands):
            first = source.scenes[t] * size + b * source.plane + start
            for at in range(first, first + n, step):
                prefetch(source.values, at)


@part
def split_three(values: Any, n: int, first: Any, second: Any, third: Any) -> None:
    """Move `n` interleaved pixels of three bands apart; a loop of its own because only constant strides vectorise."""
    for i in range(n):
        first[i] = values[3 * i]
        second[i] = values[3 * i + 1]
        third[i] = values[3 * i + 2]


@part
def split(source: Source, scene: int, start: int, n: int, rows: Any) -> None:
    """Copy `n` pixels of one scene from pixel `start` on into ``rows (b, at least n)``."""
    values, bands = source.values, source.bands
    at = scene * bands * source.plane
    if source.interleaved:
        pixels = values[at + bands * start : at + bands * (start + n)]
        if bands == 3:
            split_three(pixels, n, rows[0], rows[1], rows[2])
            return
        for b in range(bands):
            row = rows[b]
            for i in range(n):
                row[i] = pixels[bands * i + b]
    else:
        for b in range(bands):
            row, begin = rows[b], at + b * source.plane + start
            band = values[begin : begin + n]
            for i in range(n):  # a slice assignment would look for overlap first, and is five times slower
                row[i] = band[i]


@part
def judge(source: Source, scene: int, start: int, n: int, rows: Any, valid: Any) -> None:
    """Write which of `n` pixels are valid: usable, and every band within its range and not a dropped value."""
    if source.usable.size > 0:
        at = scene * source.plane + start
        usable = source.usable[at : at + n]
        for i in range(n):
            valid[i] = usable[i]
    else:
        valid[:n] = 1
    for b in range(rows.shape[0]):
        row, low, high = rows[b], source.low[b], source.high[b]
        for i in range(n):
            valid[i] &= (row[i] >= low) & (row[i] <= high)  # NaN fails both
        for value in source.dropped:
            for i in range(n):
                valid[i] &= row[i] != value


@part
def load(source: Source, start: int, n: int, block: Any, valid: Any) -> None:
    """Load `n` pixels from pixel `start` on.

    Parameters
    ----------
    source
        The stack.
    start, n
        First pixel and number of pixels; ``n`` is at most the width of the block.
    block
        ``(t, b, width)``, type of the source: the values. Pixels beyond `n` keep what they held.
    valid
        ``(t, width)`` uint8: 1 where the observation may be used, else 0; 0 beyond `n`.
    """
    for t in range(source.scenes.size):
        fetch(source, t + 2, start, n)
        scene = source.scenes[t]
        split(source, scene, start, n, block[t])
        judge(source, scene, start, n, block[t], valid[t])
        valid[t, n:] = 0


@part
def count_valid(valid: Any, n: int, counts: Any, out: Any) -> None:
    """Count the valid observations of each pixel of a block.

    Parameters
    ----------
    valid
        ``(t, width)`` uint8: 1 or 0.
    n
        How many of the pixels are wanted in `out`.
    counts
        ``(width,)`` uint16, out: the counts.
    out
        ``(n,)`` uint16, out: the first of them once more.
    """
    counts[:] = 0
    for t in range(valid.shape[0]):
        row = valid[t]
        for i in range(counts.size):
            counts[i] += np.uint16(row[i])
    for i in range(n):  # a slice assignment would compile for a second and a half more
        out[i] = counts[i]


@kernel
def count_values(values: Any, lowest: int, out: Any) -> None:
    """Count how often each value occurs.

    Parameters
    ----------
    values
        ``(n,)`` of whole numbers, unsigned.
    lowest
        What counts as the first: a value ``v`` counts as ``v - lowest``, in the arithmetic of its dtype.
    out
        ``(4, k)`` int64, out: the counts of each fourth of the values, to be added up.
    """
    # Four counts: where neighbours are alike, each addition to one would wait for the one before.
    n = values.size
    mask = (1 << (8 * values.itemsize)) - 1
    whole = n - n % 4
    for i in range(0, whole, 4):
        out[0, (np.int64(values[i]) - lowest) & mask] += 1
        out[1, (np.int64(values[i + 1]) - lowest) & mask] += 1
        out[2, (np.int64(values[i + 2]) - lowest) & mask] += 1
        out[3, (np.int64(values[i + 3]) - lowest) & mask] += 1
    for i in range(whole, n):
        out[0, (np.int64(values[i]) - lowest) & mask] += 1


@kernel
def halve_by_means(pixels: Any, known: bool, nodata: int, instead: int, out: Any) -> None:
    """Take the mean of each block of 2 x 2 pixels, of those that have a value; halves are rounded up.

    Parameters
    ----------
    pixels
        ``(b, y, x)`` of whole numbers; y and x are even.
    known
        Whether some value means "no value".
    nodata
        Which.
    instead
        Written where a mean is `nodata` by coincidence.
    out
        ``(b, y / 2, x / 2)`` of the same dtype, out: `nodata` where no pixel has a value.
    """
    bands, height, width = out.shape
    for b in range(bands):
        for y in range(height):
            above, below, row = pixels[b, 2 * y], pixels[b, 2 * y + 1], out[b, y]
            for x in range(width):
                p, q = np.int64(above[2 * x]), np.int64(above[2 * x + 1])
                r, s = np.int64(below[2 * x]), np.int64(below[2 * x + 1])
                total = p + q + r + s
                mean: Any = (total + 2) >> 2
                if known:
                    bad = np.int64(p == nodata) + (q == nodata) + (r == nodata) + (s == nodata)
                    if bad:
                        # 12 is divisible by every count, so means are exact in whole numbers.
                        share = 4 if bad == 1 else 6 if bad == 2 else 12
                        mean = ((total - bad * nodata) * share + 6) // 12
                    mean = nodata if bad == 4 else instead if mean == nodata else mean
                row[x] = mean
