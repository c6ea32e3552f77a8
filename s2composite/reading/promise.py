"""Promise: headers of files that were not opened yet, and the real ones when a task needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from threading import Lock

from affine import Affine
from odc.geo.geobox import GeoBox

from s2composite.errors import ReadError, S2CompositeError
from s2composite.reading.crs import same_geobox
from s2composite.reading.fetch import Identity
from s2composite.reading.header import Header, read_header
from s2composite.reading.signing import Sign
from s2composite.scenes.model import Asset, AssetGrid
from s2composite.scenes.storage import display

__all__ = ["fulfilled", "is_promised", "promised"]

_UNSEEN = Identity(-1)
"""Identity of a file that was not opened."""

_KEPT = 4096
"""Headers that a process keeps: about 40 MB for scenes of 10980 x 10980."""

_READS = 16
"""Headers read at once in a task."""

_SEEN: dict[str, Header] = {}
_LOCK = Lock()


def promised(asset: Asset, like: Header, sign: Sign | None) -> Header:
    """Return the header that an asset should have: its catalogue's grid, the rest as of a file of the same kind.

    Parameters
    ----------
    asset
        With a grid.
    like
        Header of the same asset of another scene.
    sign
        Signs the URL.
    """
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
