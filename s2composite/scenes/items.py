"""Items: STAC items as dictionaries, from objects, files, catalogues, searches and stac-geoparquet."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urljoin

from s2composite.errors import AccessError, ParameterError, S2CompositeError, SourceError
from s2composite.optional import needed
from s2composite.scenes.access import limits
from s2composite.scenes.item_fields import checked_item
from s2composite.scenes.storage import absolute, display, filesystem, is_remote, reason

__all__ = ["found_by", "is_stac", "is_stac_file", "items_in", "items_of", "with_alternate"]

_FILES = (".json", ".geojson", ".parquet", ".geoparquet")
_SEARCH = ("url", "collections", "bbox", "datetime", "query")


def is_stac(source: object) -> bool:
    """Return whether `source` is STAC: a dictionary, an object of pystac, or a search of pystac-client."""
    if isinstance(source, type) or hasattr(source, "__array__"):  # a Series of pandas, which may hold paths
        return False
    return isinstance(source, Mapping) or any(hasattr(source, name) for name in ("to_dict", "items_as_dicts"))


def is_stac_file(href: str) -> bool:
    """Return whether a path or URL names a file of items."""
    return display(href).lower().endswith(_FILES)


def items_of(source: Any) -> list[Mapping[str, Any]]:
    """Return the items in a STAC object as dictionaries, with absolute asset hrefs where possible.

    Parameters
    ----------
    source
        A pystac Item, ItemCollection or Collection; a search of pystac-client; a Feature or FeatureCollection as a
        dictionary; or a search to be made, ``{"url", "collections", "bbox", "datetime", "query"}``.

    Raises
    ------
    SourceError
        The search finds nothing, or the server does not answer; the message says what was searched.
    """
    if isinstance(source, Mapping):
        return _searched(source) if "url" in source else _some(_features(source, "the dictionary"), "the dictionary")
    if hasattr(source, "items_as_dicts"):
        return _some(_asked(source.items_as_dicts, "the search"), f"the search at {_searched_at(source)}")
    if hasattr(source, "get_items"):  # a Catalog or Collection of pystac
        items = list(source.get_items(recursive=True))
        return _some([_plain(item) for item in items], f"the collection {source.id}")
    return (
        _some([_plain(item) for item in source], "the ItemCollection") if hasattr(source, "items") else [_plain(source)]
    )


def items_in(href: str) -> list[Mapping[str, Any]]:
    """Return the items in a JSON file (item, ItemCollection, collection, catalogue) or a stac-geoparquet file."""
    if not display(href).lower().endswith(".json") and not display(href).lower().endswith(".geojson"):
        return _some(_rows(href), display(href))
    content = read_json(href)
    kind = content.get("type")
    if kind in ("Collection", "Catalog"):
        return _some(list(_linked(content, href, 0)), display(href))
    return _some(_features(content, display(href), href), display(href))


def read_json(href: str) -> Mapping[str, Any]:
    """Return what a JSON file holds."""
    try:
        fs, path = filesystem(href)
        content = json.loads(fs.cat_file(path))
    except S2CompositeError:
        raise
    except ValueError as error:
        raise SourceError(f"{display(href)} is not JSON ({error}); give a STAC item or ItemCollection") from None
    except Exception as error:  # noqa: BLE001 - the backends of fsspec share no class of errors
        raise SourceError(f"cannot read {display(href)}: {reason(href, error)}", href=display(href)) from None
    if not isinstance(content, Mapping):
        raise SourceError(f"{display(href)} holds a list; give a STAC item or ItemCollection", href=display(href))
    return content


def _features(content: Mapping[str, Any], label: str, base: str | None = None) -> list[Mapping[str, Any]]:
    kind = content.get("type")
    if kind == "FeatureCollection":
        features = content.get("features") or []
        if not isinstance(features, Sequence):
            raise ParameterError(f"{label} is not an ItemCollection: its features are not a list")
        return [_absolute(item, base) for item in features]
    if kind == "Feature" and "assets" in content:
        return [_absolute(content, base)]
    raise ParameterError(
        f"{label} is not a STAC item (its type is {kind!r}); give an item, an ItemCollection, or a search as "
        f"{{{', '.join(map(repr, _SEARCH))}}}"
    )


def _linked(content: Mapping[str, Any], href: str, depth: int) -> Iterator[Mapping[str, Any]]:
    """Yield the items that a collection or catalogue links to, in its children too."""
    for link in checked_item({"links": content.get("links"), "id": href})["links"] or ():
        there = _resolved(str(link.get("href", "")), href)
        if link.get("rel") == "item":
            yield from _features(read_json(there), display(there), there)
        elif link.get("rel") == "child" and depth < 16:
            yield from _linked(read_json(there), there, depth + 1)


def _rows(href: str) -> list[Mapping[str, Any]]:
    parquet = needed("pyarrow.parquet", "stac")
    arrow = needed("stac_geoparquet.arrow", "stac")
    fs, path = filesystem(href)
    try:
        with fs.open(path, "rb") as file:
            return [_absolute(item, None) for item in arrow.stac_table_to_items(parquet.read_table(file))]
    except S2CompositeError:
        raise
    except Exception as error:  # noqa: BLE001 - pyarrow and the backends of fsspec share no class of errors
        raise SourceError(
            f"{display(href)} is not stac-geoparquet: {reason(href, error)}", href=display(href)
        ) from None


def _plain(item: Any) -> Mapping[str, Any]:
    """Return an item of pystac as a dictionary."""
    if isinstance(item, Mapping):
        return _absolute(item, None)
    if not (hasattr(item, "assets") and hasattr(item, "to_dict")):
        raise ParameterError(f"{type(item).__name__} is not a source; give STAC items, paths, URLs or scenes")
    content: Mapping[str, Any] = item.to_dict(include_self_link=True, transform_hrefs=False)
    return _absolute(content, item.get_self_href())


def _absolute(raw: object, base: str | None) -> Mapping[str, Any]:
    """Return an item, its fields checked, whose asset hrefs are absolute, if it says where it is."""
    item = checked_item(raw)
    links = (link["href"] for link in item.get("links") or () if link.get("rel") == "self" and link.get("href"))
    base = base or next(links, None)
    if base is None:
        return item
    assets = {
        key: {**asset, "href": _resolved(asset["href"], base)} if asset and asset.get("href") else asset
        for key, asset in (item.get("assets") or {}).items()
    }
    return {**item, "assets": assets}


def _resolved(href: str, base: str) -> str:
    if "://" in href or href.startswith(("/", "~")):
        return href
    if is_remote(base):
        # urljoin does not support gs:// and s3://.
        scheme, _, rest = base.partition("://")
        return f"{scheme}://{urljoin(f'http://{rest}', href).removeprefix('http://')}"
    return os.path.normpath(os.path.join(os.path.dirname(absolute(base)), href))  # noqa: PTH118, PTH120 - text in, text out


# --- Searches -------------------------------------------------------------------------------------------------------


def _searched(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Make a search and return what it finds."""
    unknown = [key for key in search if key not in (*_SEARCH, "intersects", "ids", "filter", "limit", "max_items")]
    if unknown:
        raise ParameterError(f"the search has the unknown keys {', '.join(unknown)}; there are {', '.join(_SEARCH)}")
    if limits() is not None:
        raise AccessError(f"{found_by(search)}: searches follow links unasked, so none is made here; give item files")
    client = needed("pystac_client", "stac")
    options = {key: value for key, value in search.items() if key != "url" and value is not None}
    label = found_by(search)
    found = _asked(lambda: client.Client.open(search["url"]).search(**options).items_as_dicts(), label)
    return _some(found, label)


def found_by(search: Mapping[str, Any]) -> str:
    """Return a search in words."""
    told = ", ".join(f"{key} {value}" for key, value in search.items() if key != "url" and value is not None)
    return f"the search at {display(str(search['url']))} for {told or 'everything'}"


def _asked(ask: Callable[[], Any], label: str) -> list[Mapping[str, Any]]:
    try:
        return [_absolute(item, None) for item in ask()]
    except S2CompositeError:
        raise
    except Exception as error:  # noqa: BLE001 - pystac-client, requests and urllib3 share no class of errors
        told = re.sub(r"\?[^\s'\")]+", "", str(error)).partition("\n")[0]
        raise SourceError(f"{label} failed: {type(error).__name__}: {told}") from None


def _searched_at(search: Any) -> str:
    told = ", ".join(f"{key} {value}" for key, value in getattr(search, "_parameters", {}).items())
    return f"{display(str(getattr(search, 'url', 'its address')))} for {told}"


def _some(items: list[Mapping[str, Any]], label: str) -> list[Mapping[str, Any]]:
    if not items:
        raise SourceError(f"{label} gives no items; widen the area, the time or the query, or correct the collection")
    return items


def with_alternate(items: Sequence[Mapping[str, Any]], name: str | None) -> list[Mapping[str, Any]]:
    """Return items with the hrefs of a catalogue's ``alternate`` of a name; assets without it are unchanged.

    Parameters
    ----------
    items
        Dictionaries, with the alternate-assets extension where they have it.
    name
        Key of the alternate, such as ``"https"``; None: leave the items unchanged.

    Raises
    ------
    ParameterError
        No asset has that alternate.

    Examples
    --------
    >>> asset = {"href": "s3://eodata/B04.jp2", "alternate": {"https": {"href": "https://host/B04.jp2"}}}
    >>> with_alternate([{"id": "a", "assets": {"B04": asset}}], "https")[0]["assets"]["B04"]["href"]
    'https://host/B04.jp2'
    """
    if name is None or not items:
        return list(items)
    known = {key for item in items for asset in _assets(item).values() for key in asset.get("alternate") or ()}
    if name not in known:
        raise ParameterError(
            f"alternate is {name!r}, and the assets of the {len(items)} items have "
            f"{', '.join(sorted(map(repr, known))) or 'no alternates'}; leave it out to read their own hrefs"
        )
    return [
        {**item, "assets": {key: _alternate(asset, name) for key, asset in _assets(item).items()}} for item in items
    ]


def _assets(item: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return {key: asset for key, asset in (item.get("assets") or {}).items() if asset}


def _alternate(asset: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = (asset.get("alternate") or {}).get(name) or {}
    return {**asset, "href": found["href"]} if found.get("href") else asset
