"""Tags of a GeoTIFF that say where it is and what its bands are."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import rasterio
import tifffile
from odc.geo.geobox import GeoBox
from rasterio.io import MemoryFile

from s2composite.errors import GridError
from s2composite.writing.raster import Band
from s2composite.writing.statistics import Statistics
from s2composite.writing.tiff import ASCII, Tag

__all__ = ["geo_tags", "metadata_tag", "nodata_tag"]

_GEO_CODES = (33550, 33922, 34264, 34735, 34736, 34737)
_METADATA, _NODATA = 42112, 42113


def geo_tags(geobox: GeoBox | None) -> tuple[Tag, ...]:
    """Return the tags that hold the transform and the CRS of a geobox, as GDAL writes them.

    Raises
    ------
    GridError
        The CRS cannot be expressed in a GeoTIFF.
    """
    if geobox is None:
        return ()
    crs = None if geobox.crs is None else rasterio.crs.CRS.from_wkt(geobox.crs.to_wkt())
    profile = {"driver": "GTiff", "width": 1, "height": 1, "count": 1, "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(**profile, crs=crs, transform=geobox.transform):
            pass
        with memory.open() as back:
            if crs is not None and back.crs is None:
                raise GridError(f"a GeoTIFF cannot express the CRS {str(geobox.crs)[:200]}; reproject to another")
        return _copied(memory.read())


def _copied(data: bytes) -> tuple[Tag, ...]:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        tags = tiff.pages[0].tags
        return tuple(Tag(code, int(tags[code].dtype), _values(tags[code].value)) for code in _GEO_CODES if code in tags)


def _values(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(value)


def nodata_tag(nodata: float | None) -> tuple[Tag, ...]:
    """Return the tag of the nodata value, if there is one."""
    return () if nodata is None else (Tag(_NODATA, ASCII, _number(nodata)),)


def _number(value: float) -> str:
    if math.isnan(value):
        return "nan"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def metadata_tag(facts: Mapping[str, str], bands: Sequence[Band], statistics: Sequence[Statistics]) -> Tag:
    """Return the tag with GDAL's XML: facts of the file, names, units, scales and statistics of its bands."""
    items = [_item(name, value) for name, value in sorted(facts.items())]
    for sample, (band, statistic) in enumerate(zip(bands, statistics, strict=True)):
        items += _band_items(sample, band)
        items += [_item(name, value, sample=sample) for name, value in _figures(statistic)]
    return Tag(_METADATA, ASCII, "<GDALMetadata>\n" + "".join(items) + "</GDALMetadata>")


def _band_items(sample: int, band: Band) -> Iterator[str]:
    yield _item("DESCRIPTION", band.name, sample=sample, role="description")
    if band.long_name:
        yield _item("LONG_NAME", band.long_name, sample=sample)
    if band.units:
        yield _item("UNITTYPE", band.units, sample=sample, role="unittype")
    for name, value in (("SCALE", band.scale), ("OFFSET", band.offset)):
        if value is not None:
            yield _item(name, repr(float(value)), sample=sample, role=name.lower())


def _figures(statistic: Statistics) -> Iterator[tuple[str, str]]:
    if statistic.valid:
        yield "STATISTICS_MAXIMUM", repr(statistic.maximum)
        yield "STATISTICS_MEAN", repr(statistic.mean)
        yield "STATISTICS_MINIMUM", repr(statistic.minimum)
        yield "STATISTICS_STDDEV", repr(statistic.deviation)
    yield "STATISTICS_VALID_PERCENT", f"{100 * statistic.valid / max(statistic.pixels, 1):.4g}"


def _item(name: str, value: str, **attributes: Any) -> str:
    # GDAL escapes values twice, and undoes it twice when it reads them.
    more = "".join(f" {key}={quoteattr(str(v))}" for key, v in attributes.items())
    return f"  <Item name={quoteattr(name)}{more}>{escape(escape(value))}</Item>\n"
