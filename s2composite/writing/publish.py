"""Final names, which only complete and verified files take."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path

from s2composite.clusters.submit import ClusterCall
from s2composite.errors import WriteError
from s2composite.storage.files import display, filesystem, is_remote, join, replacing, storage_errors
from s2composite.writing.assemble import FileLayout, check_header, check_run, copy_parts, verify_file
from s2composite.writing.staging import ASSEMBLED, disk_errors, writable
from s2composite.writing.tiles import Raster

__all__ = ["assemble", "assembly_calls", "is_http", "name_files", "put_small", "remove", "target_of"]

_UPLOAD_BLOCK = 16 << 20
_MOST_BLOCKS = 9_000  # S3 takes 10 000 parts at most


def target_of(path: str | os.PathLike[str], *, overwrite: bool) -> str:
    """Return the absolute path or URL of an output, after all checks that can be made beforehand."""
    target = writable(path)
    if is_remote(target):
        # A URL that is signed for a PUT answers nothing else.
        if not overwrite and not is_http(target):
            fs, remote_path = filesystem(target)
            with storage_errors(WriteError, f"{display(target)}: cannot be checked", target):
                exists = fs.exists(remote_path)
            if exists:
                raise _exists_already(target)
        return target
    file = Path(target)
    if not file.parent.is_dir():
        raise WriteError(f"{target}: the directory {file.parent} does not exist; create it first", path=target)
    if file.is_dir():
        raise WriteError(f"{target}: is a directory; name a file in it", path=target)
    if file.exists() and not overwrite:
        raise _exists_already(target)
    return target


def _exists_already(target: str) -> WriteError:
    return WriteError(f"{display(target)}: exists already; pass overwrite=True to replace it", path=display(target))


def is_http(target: str) -> bool:
    """Return whether a target is a plain URL, signed for a PUT and perhaps for nothing else."""
    return target.startswith(("http://", "https://"))


def assembly_calls(layouts: Sequence[FileLayout], *, digest: bool = False) -> list[ClusterCall]:
    """Return the calls that put files together."""
    call = partial(assemble, digest=digest)
    named = [(layout, layout.raster.token, layout.raster.label) for layout in layouts]
    return [ClusterCall(f"assemble-file-{token}", call, (one,), f"assembling {label}") for one, token, label in named]


def assemble(layout: FileLayout, *, digest: bool = False) -> str:
    """Put a file together and verify it; return its SHA-256 in hexadecimal digits if `digest`, else nothing."""
    if is_remote(layout.raster.path) and not is_http(layout.raster.path):
        return assemble_object(layout, digest=digest)
    path = _assembled(layout.raster)
    with disk_errors(path, layout.size), replacing(path) as unfinished:
        with unfinished.open("wb") as file:
            checksum = copy_parts(layout, file, digest=digest)
            file.flush()
            os.fsync(file.fileno())
        verify_file(layout, str(unfinished))
    return checksum


def _assembled(raster: Raster) -> str:
    """Return where a file is put together until it takes its name."""
    return join(raster.parts.root, f"{raster.token}{ASSEMBLED}")


def name_files(rasters: Sequence[Raster], *, overwrite: bool) -> None:
    """Give assembled files their names; objects have them already."""
    for raster in rasters:
        if is_http(raster.path):
            put(_assembled(raster), raster.path)
        elif not is_remote(raster.path):
            take_name(_assembled(raster), raster.path, overwrite=overwrite)


def take_name(temporary: str, target: str, *, overwrite: bool) -> None:
    """Give a verified local file its final name."""
    if not overwrite and Path(target).exists():
        raise _exists_already(target)
    with disk_errors(target, 0):
        # Another file system has no renaming; parts of a local target always lie beside it.
        Path(temporary).replace(target)


def assemble_object(layout: FileLayout, *, digest: bool = False) -> str:
    """Stream a file into an object store; it exists there only once all tiles have been verified.

    The bytes are decoded and compared while they are sent; the digests of the store guard the transfer. Returns the
    SHA-256 of the file if `digest`.
    """
    check_header(layout)
    target = layout.raster.path
    fs, path = filesystem(target)
    block = max(_UPLOAD_BLOCK, -(-layout.size // _MOST_BLOCKS >> 18) + 1 << 18)
    with _upload_errors(target), ExitStack() as undo:
        out = fs.open(path, "wb", autocommit=False, block_size=block)

        def give_up() -> None:
            out.closed = True  # closing it would complete an incomplete file
            with suppress(Exception):  # an error while giving up would hide the one that made us
                out.discard()

        undo.callback(give_up)
        checksum = copy_parts(layout, out, lambda run, data: check_run(layout, run, data), digest=digest)
        out.close()
        layout.raster.parts.require()
        out.commit()
        undo.pop_all()
        fs.invalidate_cache()
        size = fs.info(path)["size"]
        if size != layout.size:
            fs.rm_file(path)
            raise WriteError(
                f"{layout.raster.label}: the store holds {size:,} of {layout.size:,} bytes, so it was removed"
            )
    return checksum


def _upload_errors(target: str) -> AbstractContextManager[None]:
    return storage_errors(WriteError, f"{display(target)}: cannot be uploaded", target, path=display(target))


def put_small(data: bytes, target: str, *, overwrite: bool) -> None:
    """Write a small file, whole or not at all."""
    if is_remote(target):
        with _upload_errors(target):
            fs, path = filesystem(target)
            # gcsfs loses a last byte \r; JSON ends in a line feed, pictures in their own marks.
            fs.pipe_file(path, data)
        return
    with disk_errors(target, len(data)), replacing(target) as unfinished:
        unfinished.write_bytes(data)
        if not overwrite and Path(target).exists():
            raise _exists_already(target)


def remove(target: str) -> None:
    """Remove a file if it is there."""
    fs, path = filesystem(target)
    with storage_errors(WriteError, f"{display(target)}: cannot be removed", target), suppress(FileNotFoundError):
        fs.rm_file(path)


def put(path: str, target: str) -> None:
    """Send a verified local file to a URL that is signed for a PUT."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        headers = {"Content-Length": str(size), "Content-Type": "image/tiff"}
        request = urllib.request.Request(target, file, headers, method="PUT")  # noqa: S310 - http(s), checked by target_of
        with _upload_errors(target):
            try:
                urllib.request.urlopen(request, timeout=600).close()  # noqa: S310 - as above
            except urllib.error.HTTPError as error:
                error.close()
                why = f"{display(target)}: the server refuses the upload: {error.code} {error.reason}"
                raise WriteError(why) from error
