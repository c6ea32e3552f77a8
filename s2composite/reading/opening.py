"""Opening: the headers of many files, read at once, or promised by their catalogue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from s2composite.errors import ParameterError, ReadError, S2CompositeError, SceneError
from s2composite.reading.header import Header, read_header
from s2composite.reading.index import load_index, save_index
from s2composite.reading.promise import promised
from s2composite.reading.source import ReadOptions
from s2composite.scenes.model import Asset, Scene
from s2composite.scenes.storage import display

__all__ = ["open_headers"]

_HEADER_READS = 32
"""Headers read at once; remote ones wait for the network, local ones take 0.3 ms each."""


_LAZY_FROM = 256
"""Files from which their headers are left to the tasks, if their catalogue gives their grids."""


def open_headers(
    products: Sequence[Scene],
    wanted: Sequence[Sequence[Asset]],
    options: ReadOptions,
    index: str | os.PathLike[str] | None,
) -> tuple[dict[str, Header], dict[str, S2CompositeError]]:
    """Return headers by href, read or promised, and errors where they are to be skipped.

    Parameters
    ----------
    products
        The scenes.
    wanted
        Those assets of each that are read.
    options
        How to read.
    index
        File that keeps headers. Those in it are not read again: if they are left to the tasks, those in it are taken
        as they are, and a read notices a file that changed since; else each is checked now.

    Raises
    ------
    SceneError, ReadError
        A file cannot be opened, and is not to be skipped.
    ParameterError
        Headers are to be left to the tasks, and a catalogue does not give the grids.
    """
    if not _is_lazy(wanted, options, index):
        return _read_headers(wanted, options, index)
    kinds = _kinds(products, wanted)
    hrefs = [asset.href for members in kinds for asset in members]
    known = {} if index is None else load_index(index, hrefs, sign=options.sign, check=False)
    unknown = [members for members in kinds if not any(asset.href in known for asset in members)]
    samples, broken = _read_headers([members[:1] for members in unknown], options, None)
    # of a kind whose first file cannot be opened none can be promised
    failed = [members for members in unknown if members[0].href in broken]
    more, lost = _read_headers(failed, options, None) if failed else ({}, {})
    seen = known | samples | more
    if index is not None and seen.keys() - known.keys():
        save_index(list(seen.values()), index)
    headers = dict(seen)
    for members in kinds:
        sample = next((seen[asset.href] for asset in members if asset.href in seen), None)
        if sample is not None and members not in failed:
            headers |= {a.href: promised(a, sample, options.sign) for a in members if a.href not in seen}
    return headers, broken | lost


def _kinds(products: Sequence[Scene], wanted: Sequence[Sequence[Asset]]) -> list[list[Asset]]:
    """Return the files of each kind: asset, size and type decide the rest of a header, and the tasks check it."""
    kinds: dict[tuple[Any, ...], list[Asset]] = {}
    for product, assets in zip(products, wanted, strict=True):
        for asset in assets:
            assert asset.grid is not None
            kinds.setdefault((product.collection, asset.name, asset.grid.shape, asset.values.dtype), []).append(asset)
    return list(kinds.values())


def _is_lazy(wanted: Sequence[Sequence[Asset]], options: ReadOptions, index: str | os.PathLike[str] | None) -> bool:
    if options.headers == "read" or (index is not None and options.headers == "auto"):
        return False
    assets = [asset for assets in wanted for asset in assets]
    complete = all(asset.grid is not None for asset in assets)
    if options.headers == "lazy" and not complete:
        lacking = next(asset for asset in assets if asset.grid is None)
        raise ParameterError(
            f"headers='lazy' needs the projection extension, and {display(lacking.href)} has none; use headers='read'"
        )
    return complete and (options.headers == "lazy" or len(assets) >= _LAZY_FROM)


def _read_headers(
    wanted: Sequence[Sequence[Asset]], options: ReadOptions, index: str | os.PathLike[str] | None
) -> tuple[dict[str, Header], dict[str, S2CompositeError]]:
    """Return headers, and errors where they are to be skipped, by href."""
    hrefs = list(dict.fromkeys(asset.href for assets in wanted for asset in assets))
    known = {} if index is None else load_index(index, hrefs, sign=options.sign)

    def read(href: str) -> Header | S2CompositeError:
        try:
            return known.get(href) or read_header(href, options.sign)
        except (SceneError, ReadError) as error:
            if options.on_error == "raise":
                raise
            return error

    with ThreadPoolExecutor(_HEADER_READS) as pool:
        found = dict(zip(hrefs, pool.map(read, hrefs), strict=True))
    headers = {href: header for href, header in found.items() if isinstance(header, Header)}
    if index is not None and headers.keys() - known.keys():
        save_index(list(headers.values()), index)
    return headers, {href: error for href, error in found.items() if not isinstance(error, Header)}
