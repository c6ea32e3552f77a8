"""The headers of many files: read at once, or lazily where their catalogue already says enough."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from threading import Lock
from typing import Any

from affine import Affine
from odc.geo.geobox import GeoBox

from s2composite.errors import ParameterError, ReadError, S2CompositeError, SceneError
from s2composite.geotiff.header import Header, read_header
from s2composite.geotiff.index import load_index, save_index
from s2composite.geotiff.structure import same_geobox
from s2composite.reading.sources import ReadOptions
from s2composite.scenes.model import Asset, AssetGrid, Scene
from s2composite.storage.files import display
from s2composite.storage.http import Identity, Sign

__all__ = ["fulfilled", "is_promised", "open_headers", "promised"]

_UNSEEN = Identity(-1)  # identity of a file that was not opened

_KEPT = 4096  # headers that a process keeps: about 40 MB for scenes of 10980 x 10980

_READS = 16  # headers read at once in a task

_SEEN: dict[str, Header] = {}
_LOCK = Lock()


def promised(asset: Asset, like: Header, sign: Sign | None) -> Header:
    """Return the header that an asset should have: its catalogue's grid, the rest as of a file of the same kind."""
    assert asset.grid is not None
    return replace(like, href=asset.href, identity=_UNSEEN, geobox=_geobox(asset.grid), mask=None, sign=sign)


@lru_cache(4096)
def _geobox(grid: AssetGrid) -> GeoBox:
    return same_geobox(grid.shape, Affine(*grid.transform), grid.crs)


def is_promised(header: Header) -> bool:
    """Return whether the file was not opened yet."""
    return header.identity is _UNSEEN or header.identity == _UNSEEN


def fulfilled(headers: Sequence[Header]) -> Mapping[str, Header | ReadError]:
    """Return the real headers of promised ones, by href; an error where the file cannot be opened or is another.

    A process reads each once.
    """
    with _LOCK:
        found: dict[str, Header | ReadError] = {h.href: _SEEN[h.href] for h in headers if h.href in _SEEN}
    missing = list({h.href: h for h in headers if h.href not in found}.values())
    if missing:
        with ThreadPoolExecutor(min(_READS, len(missing))) as pool:
            read = dict(zip([h.href for h in missing], pool.map(_real, missing), strict=True))
        with _LOCK:
            if len(_SEEN) + len(read) > _KEPT:
                _SEEN.clear()
            _SEEN.update({href: header for href, header in read.items() if isinstance(header, Header)})
        found |= read
    return {h.href: _checked(h, found[h.href]) for h in headers}


def _real(header: Header) -> Header | ReadError:
    try:
        return read_header(header.href, header.sign)
    except ReadError as error:
        return error
    except S2CompositeError as error:
        return ReadError(str(error), href=display(header.href), transient=False, retries=0)


def _checked(promise: Header, real: Header | ReadError) -> Header | ReadError:
    if isinstance(real, ReadError):
        return real
    alike = {
        "grid": promise.geobox == real.geobox or _close(promise.geobox, real.geobox),
        "dtype": promise.dtype == real.dtype,
        "number of bands": promise.bands == real.bands,
        "scale and offset": promise.scaling == real.scaling,
        "nodata of single bands": list(map(str, promise.band_nodata)) == list(map(str, real.band_nodata)),
        "overviews": [v.shape for v in promise.levels] == [v.shape for v in real.levels],
    }
    unlike = [name for name, holds in alike.items() if not holds]
    if not unlike:
        return replace(real, sign=promise.sign)
    href = display(promise.href)
    why = f"{href}: its {' and '.join(unlike)} differ from what its catalogue and the other files promise"
    return ReadError(f"{why}; open the scenes with headers='read'", href=href, transient=False, retries=0)


def _close(told: GeoBox, found: GeoBox) -> bool:
    """Return whether two grids differ by rounding only: catalogues write CRS and numbers in their own way."""
    same = told.shape == found.shape and told.crs == found.crs
    return bool(same and told.transform.almost_equals(found.transform, 1e-6))


_HEADER_READS = 32  # headers read at once; remote ones wait for the network, local ones take 0.3 ms each


_LAZY_FROM = 256  # files from which their headers are left to the tasks, if their catalogue gives their grids


def open_headers(
    products: Sequence[Scene],
    wanted: Sequence[Sequence[Asset]],
    options: ReadOptions,
    index: str | os.PathLike[str] | None,
) -> tuple[dict[str, Header], dict[str, S2CompositeError]]:
    """Return headers by href, read or promised, and errors where they are to be skipped."""
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
