"""What a raster file is and where its tiles lie. Read once; workers get it and never read a header again."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET
from xml.sax.saxutils import unescape

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError

from s2composite.errors import ReadError, SceneError
from s2composite.geotiff.structure import (
    FRAME,
    RPC,
    TIEPOINT,
    Coding,
    Directory,
    Level,
    Tiff,
    broken,
    crs_from_wkt,
    geobox_from_tags,
    level_of,
    open_tiff,
    why_undecodable,
)
from s2composite.storage.files import archive_of, display, in_archive, is_remote
from s2composite.storage.gdal import through_gdal
from s2composite.storage.http import Identity, Sign, read_identity
from s2composite.storage.urls import check_read, gdal_limits

__all__ = ["Header", "Scaling", "alpha_band", "mask_of", "nodata_in", "read_header", "signing"]

# what GDAL escapes in its metadata beside the three of all XML, and all of it twice
_QUOTES = {"&quot;": '"', "&apos;": "'"}


@dataclass(frozen=True, slots=True)
class Scaling:
    """What GDAL's metadata say of a band's numbers: ``number * scale + offset`` has the unit."""

    scale: float  # 1 where only the unit is known
    offset: float  # 0 where only the unit is known
    unit: str | None  # "K"; None: not said


@dataclass(frozen=True, slots=True)
class Header:
    """What a raster file is. Two headers are equal if they are of the same file in the same state."""

    href: str  # path or URL
    identity: Identity  # size, ETag and time of change when the header was read
    # pixel grid of the full resolution; without CRS, and the identity as transform, if the file has none
    geobox: GeoBox = field(compare=False)
    bands: int = field(compare=False)  # number of bands
    dtype: np.dtype[Any] = field(compare=False)  # of the pixels, in the machine's byte order
    # what the file declares as no data, for its first band where they differ
    nodata: float | None = field(compare=False)
    descriptions: tuple[str | None, ...] = field(compare=False)  # name of each band, if the file has one
    # the full resolution, then the overviews from fine to coarse
    levels: tuple[Level, ...] = field(compare=False, repr=False)
    # what it declares for each band, where they differ; empty: `nodata` is that of all
    band_nodata: tuple[float | None, ...] = field(default=(), compare=False)
    # the mask as a raster of one uint8 band, not 0 where valid, its levels those of the file; None: there is none, or
    # only GDAL can read it
    mask: Header | None = field(default=None, compare=False, repr=False)
    # where the mask is: "internal mask", ".msk" for a file beside, "mask" in other formats, "NODATA_VALUES" for a
    # colour that has no data; else empty
    mask_kind: str = field(default="", compare=False)
    # band, counted from 0, that is 0 where the others are not valid; None: there is none
    alpha: int | None = field(default=None, compare=False)
    # scale, offset and unit of each band in GDAL's metadata; empty: no band has any
    scaling: tuple[Scaling | None, ...] = field(default=(), compare=False)
    # why only GDAL can read the pixels; empty: they can be decoded here
    undecodable: str = field(default="", compare=False)
    # whether each tile stands between its size and a copy of its last four bytes, as GDAL's COG driver writes it
    framed: bool = field(default=False, compare=False, repr=False)
    sign: Sign | None = field(default=None, compare=False, repr=False)  # signs the URL when pixels are read

    @property
    def block(self) -> tuple[int, int]:
        """``(y, x)`` of a tile of the full resolution."""
        return self.levels[0].block

    @property
    def coding(self) -> Coding:
        """How the tiles of the full resolution are encoded."""
        return self.levels[0].coding

    @property
    def in_zarr(self) -> bool:
        """Whether it is an array of a Zarr store."""
        return self.levels[0].objects is not None

    @property
    def photometric(self) -> str:
        """TIFF's word: ``"RGB"``, ``"YCBCR"``, ``"MINISBLACK"`` ..."""
        return self.coding.photometric

    @property
    def valid_by(self) -> str:
        """What says which pixels are valid: ``"nodata 0"``, ``"internal mask"``, ``".msk"``, ``"alpha"``; or empty."""
        tags = [f"{one:g}" for one in self.band_nodata or (self.nodata,) if one is not None]
        tag = f"nodata {'/'.join(tags)}" if tags and not self.mask_kind else ""
        return ", ".join(filter(None, (self.mask_kind, tag, "" if self.alpha is None else "alpha")))

    def nodata_of(self, band: int) -> float | None:
        """Return which of its numbers are no data in a band, counted from 0: GDAL takes 3 of an integer for 3.5."""
        declared = self.band_nodata[band] if self.band_nodata else self.nodata
        return declared if declared is None or self.dtype.kind == "f" else float(int(declared))


def read_header(href: str, sign: Sign | None = None) -> Header:
    """Read what a raster file is, in one request of 64 KiB for a remote COG.

    >>> header = read_header("T31TCJ_20230709T104629_TCI.tif")  # doctest: +SKIP
    >>> header.coding.compression, header.block, header.bands  # doctest: +SKIP
    ('JPEG', (512, 512), 3)
    """
    check_read(href)
    if in_archive(href):
        archive = archive_of(href)
        if archive is None:
            raise SceneError(f"{href}: there is no such archive; correct the path", href=href)
        return replace(_from_gdal(href, read_identity(archive)), undecodable="in an archive")
    try:
        tiff, identity = open_tiff(href, sign)
    except ReadError as error:
        if error.__dict__["transient"]:
            raise
        unsigned = " (a URL that must be signed, or whose signature has expired: sign=)"
        cure = f"check its name and your rights{unsigned if href.startswith('http') and sign is None else ''}"
        raise SceneError(f"{error}; {cure}, or leave it out", href=display(href)) from error
    if tiff is None or not tiff.directories:
        return _from_gdal(href, identity, sign)
    try:
        header = signing(_from_tiff(href, identity, tiff), sign)
    except (ValueError, OverflowError, TypeError, RasterioError) as error:
        raise broken(href, f"its header makes no sense ({error})") from error
    _check_sizes(header)
    header = header if is_remote(href) else _with_sidecar(header)
    if header.geobox.transform == Affine.identity():
        main, (stem, _, _) = tiff.directories[0], href.rpartition(".")
        beside = () if is_remote(href) else (f"{stem}{end}" for end in ("_RPC.TXT", "_rpc.txt", ".RPB", ".rpb"))
        rpcs = RPC in main.values or any(map(os.path.exists, beside))
        points = TIEPOINT in {tag for tag, *_ in main.geo}
        _refuse_off_grid(href, "ground control points" if points else "RPCs" if rpcs else None)
    return header


_WARP = {"ground control points": "-tps", "RPCs": "-rpc", "geolocation arrays": "-geoloc"}


def _refuse_off_grid(href: str, location: str | None) -> None:
    """Raise if pixels are located by something other than a grid: they would all be taken for pixels at (0, 0)."""
    if location is not None:
        raise SceneError(
            f"{display(href)} is located by {location}, so its pixels are on no grid; warp it first, such as with "
            f"gdalwarp {_WARP[location]} -t_srs EPSG:32631 in.tif out.tif, or take a product that is on a grid",
            href=display(href),
        )


def signing(header: Header, sign: Sign | None) -> Header:
    """Return a header, and that of its mask, whose file is read with a signature."""
    if sign is None:
        return header
    return replace(header, sign=sign, mask=header.mask and replace(header.mask, sign=sign))


def _from_tiff(href: str, identity: Identity, tiff: Tiff) -> Header:
    levels = [(level_of(d, tiff.order), d) for d in tiff.directories]
    (first, main), rest = levels[0], levels[1:]
    coding, metadata = first.coding, main.text(42112)
    items = _items(metadata)

    def finest_first(entry: tuple[Level, Directory]) -> int:
        return -entry[0].shape[0] * entry[0].shape[1]

    # other images in the file are not ours
    masks = sorted((entry for entry in rest if entry[1].number(254) & 4), key=finest_first)
    overviews = [
        (level, d)
        for level, d in rest
        if d.number(254) & 5 == 1 and (level.coding.samples, level.coding.dtype) == (coding.samples, coding.dtype)
    ]
    images = [levels[0], *sorted(overviews, key=finest_first)]
    dtype = np.dtype(coding.dtype).newbyteorder("=")
    _refuse_complex(href, dtype)
    descriptions = tuple(items.get(("description", str(band))) or None for band in range(coding.samples))
    # which band is an alpha band, by TIFF's tag or by GDAL's metadata
    extra = main.numbers(338)[: coding.samples]
    kinds = [""] * (coding.samples - len(extra)) + ["alpha" if kind in (1, 2) else "" for kind in extra]
    kinds = [items.get(("colorinterp", str(band)), "").lower() or kind for band, kind in enumerate(kinds)]
    nodata = None
    with suppress(ValueError):
        nodata = nodata_in(float(main.text(42113)), dtype)
    # a size before each tile and a copy of four bytes after it, unless they are no longer true
    framed = all(note in tiff.notes for note in ("BLOCK_LEADER=SIZE_AS_UINT4", "BLOCK_TRAILER=LAST_4_BYTES_REPEATED"))
    header = Header(
        href,
        identity,
        geobox_from_tags(main.geo, tiff.order, first.shape),
        coding.samples,
        dtype,
        nodata,
        descriptions,
        tuple(level for level, _ in images),
        alpha=alpha_band(kinds, descriptions),
        scaling=_scaling(items, coding.samples),
        undecodable=next((why for level, d in images if (why := why_undecodable(level, d))), ""),
        framed=framed and "KNOWN_INCOMPATIBLE_EDITION=YES" not in tiff.notes,
    )
    if masks:
        return _with_mask(header, masks)
    if 'name="NODATA_VALUES"' in metadata:
        why = header.undecodable or "a colour that has no data (NODATA_VALUES)"
        return replace(header, mask_kind="NODATA_VALUES", undecodable=why)
    return header


def _refuse_complex(href: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind == "c":
        raise SceneError(
            f"{display(href)} has complex numbers, which have no order; write amplitude, phase or real part to a file "
            "of real numbers, or leave it out",
            href=display(href),
        )


def _with_mask(header: Header, masks: list[tuple[Level, Directory]]) -> Header:
    """Return the header with its mask as a raster of one band beside it."""
    why = next((why for level, d in masks if (why := why_undecodable(level, d))), "")
    levels = tuple(level for level, _ in masks)
    if [level.shape for level in levels] != [level.shape for level in header.levels]:
        why = why or "a mask that not all overviews have"
    if any(level.coding.samples > 1 for level in levels):
        why = why or "a mask for each band"
    if why:
        return replace(header, mask_kind="internal mask", undecodable=header.undecodable or f"mask: {why}")
    return replace(header, mask_kind="internal mask", mask=mask_of(header, levels))


def mask_of(header: Header, levels: tuple[Level, ...]) -> Header:
    """Return the mask of a file as a raster of one band."""
    return replace(
        header,
        bands=1,
        dtype=np.dtype(np.uint8),
        nodata=None,
        descriptions=(None,),
        scaling=(),
        band_nodata=(),
        levels=levels,
        mask=None,
        mask_kind="",
        alpha=None,
    )


def alpha_band(interpretations: Sequence[str], descriptions: Sequence[str | None]) -> int | None:
    """Return the alpha band; None if there is none.

    GDAL calls the fourth of any four bands of 8 bits an alpha band, unless it was told otherwise: not one that has
    another name.
    """
    bands = [band for band, name in enumerate(interpretations) if name == "alpha" and len(interpretations) > 1]
    if not bands:
        return None
    name = (descriptions[bands[-1]] or "alpha").lower()
    return bands[-1] if "alpha" in name or "mask" in name or "transparen" in name else None


def _check_sizes(header: Header) -> None:
    """Raise if a tile lies beyond the end of the file, which was cut off then, or cannot be as large as it claims."""
    frame = FRAME if header.framed else 0
    # GDAL takes the memory that a block claims; what is decoded here, only that which the block's bytes decode to
    least, ratio = (16 << 20, 1 << 10) if header.undecodable else (64 << 20, 1 << 15)
    for level in (*header.levels, *(header.mask.levels if header.mask else ())):
        # an offset and a count are compared one after the other: their sum may begin again at 0
        end = np.uint64(header.identity.size - frame)
        beyond = (level.offsets > end) | (level.counts > end - level.offsets)
        before = (level.offsets < frame) & (level.counts > 0)
        if beyond.any() or before.any():
            offset, count = (int(numbers[np.argmax(beyond | before)]) for numbers in (level.offsets, level.counts))
            place = f"{count} bytes from byte {offset}"
            raise broken(header.href, f"it has {header.identity.size} bytes, and a tile of {place}")
        stored = level.counts.any() or not len(level.counts)
        if stored and level.block_bytes > max(least, ratio * header.identity.size):
            claim = f"a tile or strip of {level.block_bytes} when decoded"
            raise broken(header.href, f"it has {header.identity.size} bytes, and {claim}")


def nodata_in(value: float, dtype: np.dtype[Any]) -> float | None:
    """Return a nodata value that is declared somewhere; None if no number of the type can be that."""
    if dtype.kind == "f":
        return math.copysign(math.inf, value) if abs(value) > float(np.finfo(dtype).max) else value
    limits = np.iinfo(dtype)
    return value if limits.min <= value <= limits.max else None


def _items(xml: str) -> dict[tuple[str, str], str]:
    """Return the items of GDAL's metadata tag, by role and the number of the band as text."""
    # GDAL declares no entities, with which few bytes can become many
    if not xml or "<!DOCTYPE" in xml:
        return {}
    # expat, which parses it, fetches nothing; a tag that is no XML describes nothing
    with suppress(ET.ParseError):
        items = ET.fromstring(xml).iter("Item")  # noqa: S314
        return {(i.get("role", ""), i.get("sample", "")): unescape(i.text or "", _QUOTES) for i in items}
    return {}


def _scaling(items: Mapping[tuple[str, str], str], bands: int) -> tuple[Scaling | None, ...]:
    """Return scale, offset and unit of each band from GDAL's metadata; empty if no band has any."""
    if not any(role in ("scale", "offset", "unittype") for role, _ in items):
        return ()

    def number(role: str, band: str, default: float) -> float:
        with suppress(ValueError):
            return float(items.get((role, band), default))
        return default

    named = map(str, range(bands))
    return tuple(
        scaling_of(number("scale", b, 1.0), number("offset", b, 0.0), items.get(("unittype", b))) for b in named
    )


def scaling_of(scale: float, offset: float, unit: str | None) -> Scaling | None:
    """Return what GDAL says of a band's numbers; None if that is nothing: its defaults, or no numbers."""
    if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0:
        return None
    return Scaling(scale, offset, unit or None) if (scale, offset) != (1.0, 0.0) or unit else None


def _with_sidecar(header: Header) -> Header:
    """Return the header as GDAL sees it where a file beside it says more: ``.aux.xml``, a world file."""
    path = header.href
    notes = b""
    # for each of many files, os.path takes a third of the time of pathlib
    if os.path.exists(path + ".aux.xml"):  # noqa: PTH110
        with suppress(OSError):
            notes = Path(path + ".aux.xml").read_bytes()
    telling = re.search(
        rb"<(SRS|GeoTransform|GCPList|NoDataValue|Description|Scale|Offset|UnitType|ColorInterp)[ >]", notes
    )
    masked = os.path.exists(f"{path}.msk")  # noqa: PTH110
    if not (telling or masked):
        world = (".tfw", ".TFW", ".tifw", ".wld", ".tab", ".TAB")
        placed = header.geobox.transform != Affine.identity()
        if placed or not any(Path(path).with_suffix(suffix).exists() for suffix in world):
            return header
    seen = _from_gdal(path, header.identity)
    header = replace(
        header,
        geobox=seen.geobox,
        nodata=seen.nodata,
        band_nodata=seen.band_nodata,
        descriptions=seen.descriptions,
        scaling=seen.scaling,
        alpha=seen.alpha,
    )
    if not (masked and seen.mask_kind):
        return header
    # the mask in the file beside it, which GDAL prefers to one in the file itself
    beside = read_header(f"{path}.msk")
    undecodable = beside.undecodable
    if [level.shape for level in beside.levels] != [level.shape for level in header.levels] or beside.bands > 1:
        undecodable = undecodable or "a .msk file for each band, or without the overviews"
    if undecodable:
        why = header.undecodable or f".msk: {undecodable}"
        return replace(header, mask=None, mask_kind=".msk", undecodable=why)
    return replace(header, mask=beside, mask_kind=".msk")


def _from_gdal(href: str, identity: Identity, sign: Sign | None = None) -> Header:
    """Return the header of a raster that is not a TIFF, as GDAL reads it."""
    headers: list[Header] = []

    def read(url: str) -> None:
        with rasterio.open(url, **gdal_limits(href)) as dataset:
            headers.append(_header_of(dataset, href, identity))

    try:
        through_gdal(read, href, sign, identity, files_beside=True)
    except ReadError as error:
        raise SceneError(
            f"{display(href)} is not a TIFF, nor another raster that GDAL can open ({error}); leave it out",
            href=display(href),
        ) from None
    return signing(headers[-1], sign)


def _header_of(dataset: Any, href: str, identity: Identity) -> Header:
    if dataset.transform == Affine.identity():
        beside = "RPCs" if dataset.rpcs else "geolocation arrays" if dataset.tags(ns="GEOLOCATION") else None
        _refuse_off_grid(href, "ground control points" if dataset.gcps[0] else beside)
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    # GDAL's complex integers have names that NumPy does not know
    dtype = np.result_type(*("complex64" if name.startswith("complex_int") else name for name in dataset.dtypes))
    _refuse_complex(href, dtype)
    coding = Coding(
        compression=structure.get("COMPRESSION", dataset.driver),
        predictor=1,
        photometric="OTHER",
        interleave="band",
        samples=dataset.count,
        dtype=dtype.str,
        bits=8 * dtype.itemsize,
    )
    shapes = [dataset.shape]
    for overview in range(len(dataset.overviews(1))):
        with rasterio.open(dataset.name, overview_level=overview, **gdal_limits(href)) as coarser:
            shapes.append(coarser.shape)
    (rows, columns), empty = dataset.block_shapes[0], np.empty(0, np.uint64)
    nodata = tuple(None if one is None else nodata_in(one, dtype) for one in dataset.nodatavals)
    # neither a number nor an alpha band says what is valid in a band; no flags: it has a mask of its own
    masked = any(
        not {MaskFlags.all_valid, MaskFlags.alpha} & set(flags)
        and (MaskFlags.nodata not in flags or MaskFlags.per_dataset in flags)
        for flags in dataset.mask_flag_enums
    )
    blocks = [(min(rows, height), min(columns, width)) for height, width in shapes]
    return Header(
        href,
        identity,
        GeoBox(dataset.shape, dataset.transform, crs_from_wkt(dataset.crs.to_wkt()) if dataset.crs else None),
        dataset.count,
        dtype,
        nodata[0],
        dataset.descriptions,
        tuple(
            Level(s, b, tiled=True, coding=coding, offsets=empty, counts=empty)
            for s, b in zip(shapes, blocks, strict=True)
        ),
        band_nodata=nodata if len(set(map(repr, nodata))) > 1 else (),
        mask_kind=("" if not masked else ".msk" if Path(f"{href}.msk").exists() else "mask"),
        alpha=alpha_band([one.name for one in dataset.colorinterp], dataset.descriptions),
        scaling=tuple(map(scaling_of, dataset.scales, dataset.offsets, dataset.units)),
        undecodable=f"{dataset.driver} is no TIFF",
    )
