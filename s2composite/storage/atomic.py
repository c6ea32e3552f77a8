"""Local files and directories that take their final name only when they are complete."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replace_directory", "replacing", "write_atomic"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path`; the file written there takes its name at the end, or is removed."""
    final = Path(path)
    # of its own for each attempt: a task that runs twice must not replace a whole file with half of one
    unfinished = final.with_name(f".{final.stem}.{uuid.uuid4().hex[:8]}{final.suffix}")
    try:
        yield unfinished
        unfinished.replace(final)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)


def replace_directory(complete: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a directory that is complete the name `target`; what has that name is removed, or stays if that fails."""
    complete, target, old = Path(complete), Path(target), Path(f"{complete}.old")
    if target.exists():
        target.replace(old)
    try:
        complete.replace(target)
    except OSError:
        if old.exists():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
