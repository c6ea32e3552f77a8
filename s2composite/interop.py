"""Interop: STAC items loaded by odc-stac or stackstac, as cubes of the same form as our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xarray as xr
from rasterio.enums import Resampling

from s2composite.array_values import stacked
from s2composite.errors import (
    BandError,
    MissingDependencyError,
    ParameterError,
    S2CompositeError,
    SourceError,
    check_choice,
)
from s2composite.optional import needed
from s2composite.scenes.items import with_alternate
from s2composite.scenes.listing import items_of_source

__all__ = ["LOADERS", "load_with"]

_STACKSTAC_NEEDS = "stackstac needs pandas < 3; loader='odc' and open_cube's own do not"


def load_with(loader: str, source: Any, **options: Any) -> xr.DataArray:
    """Load STAC items with another library.

    Parameters
    ----------
    loader
        ``"odc"`` (odc-stac) or ``"stackstac"``.
    source
        STAC items in any form that `find_scenes` takes.
    **options
        Options of `open_cube`, in the form that it gives them; those that are None are left to the library.

    Returns
    -------
    xarray.DataArray
        ``(time, band, y, x)``, lazy.

    Raises
    ------
    ParameterError
        The loader is unknown, or the source holds something other than STAC items.
    MissingDependencyError
        The library is not installed.
    SourceError
        The library refuses the items.
    """
    check_choice("loader", loader, ("s2composite", *LOADERS))
    if any(isinstance(band, int) for band in options["bands"] or ()):
        raise ParameterError(f"loader={loader!r} takes bands by name; numbers are for scenes that are one file each")
    bbox = options["bbox"]
    options["bbox"] = None if bbox is None else tuple(bbox.to_crs("EPSG:4326").bbox)
    pystac = needed("pystac", "stac")
    found = with_alternate(items_of_source(source), options.pop("alternate", None))
    items = [pystac.Item.from_dict(dict(item)) for item in found]
    try:
        return LOADERS[loader](items, {key: value for key, value in options.items() if value is not None})
    except ValueError as error:
        if isinstance(error, S2CompositeError):
            raise
        told = str(error).partition("\n")[0]
        cure = "give crs= and resolution=, geobox= or like= where the items do not say their grid"
        raise SourceError(f"{loader} cannot load the {len(items)} items: {told}; {cure}") from error


def _odc(items: Sequence[Any], options: Mapping[str, Any]) -> xr.DataArray:
    odc = needed("odc.stac", "stac")
    size = [side or 2048 for side in options["chunks"]]
    passed = {
        key: options[key] for key in ("bands", "bbox", "crs", "geobox", "resolution", "resampling") if key in options
    }
    if "crs" in passed and "resolution" not in passed:
        raise ParameterError("odc-stac needs crs= together with resolution=; give both, or geobox=")
    grouping = {None: "id", "solar_day": "solar_day", "utc_day": "time"}[options.get("groupby")]
    data = odc.load(
        items, chunks={"y": size[0], "x": size[1]}, groupby=grouping, patch_url=options.get("sign"), **passed
    )
    spatial = next(iter(data.data_vars.values())).dims[-2:]
    return stacked(data).transpose("time", "band", *spatial)


def _stackstac(items: Sequence[Any], options: Mapping[str, Any]) -> xr.DataArray:
    try:
        stackstac = needed("stackstac", "stackstac", limits=_STACKSTAC_NEEDS)
    except AttributeError as error:
        raise MissingDependencyError(
            f"stackstac does not work with the installed pandas or numpy ({_STACKSTAC_NEEDS}): {error}"
        ) from error
    if "bands" not in options:
        raise BandError(
            "stackstac needs bands=: without them it stacks all assets, and it cannot read those of several bands"
        )
    passed: dict[str, Any] = {
        "assets": list(options["bands"]),
        "chunksize": tuple(side or 1024 for side in options["chunks"]),
        **_stackstac_grid(options),
    }
    if not isinstance(options["resampling"], str):
        raise ParameterError("stackstac takes one resampling method for all bands; give one name")
    passed["resampling"] = Resampling[options["resampling"]]
    plain = [_spelled(item.to_dict(transform_hrefs=False), options.get("sign")) for item in items]
    stacked: xr.DataArray = stackstac.stack(plain, **passed)
    return stacked


def _stackstac_grid(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stackstac calls the options that say which grid is wanted."""
    geobox = options.get("geobox")
    passed: dict[str, Any] = {"snap_bounds": geobox is None}
    if "crs" in options:
        passed["epsg"] = int(str(options["crs"]).upper().removeprefix("EPSG:"))
    if "resolution" in options:
        passed["resolution"] = options["resolution"]
    if "bbox" in options:
        passed["bounds_latlon"] = tuple(options["bbox"])
    if geobox is not None:
        passed["epsg"] = geobox.crs.to_epsg()
        passed["resolution"] = abs(geobox.resolution.x)
        passed["bounds"] = geobox.boundingbox.bbox
    return passed


def _spelled(item: dict[str, Any], sign: Callable[[str], str] | None) -> dict[str, Any]:
    """Return an item as stackstac reads it: ``proj:epsg`` for what is ``proj:code`` today, and signed hrefs.

    It has no way to sign later, so what it makes expires with the signatures.
    """
    for facts in (item["properties"], *item["assets"].values()):
        code = str(facts.get("proj:code") or "")
        if code.startswith("EPSG:"):
            facts.setdefault("proj:epsg", int(code.removeprefix("EPSG:")))
    if sign is not None:
        for asset in item["assets"].values():
            asset["href"] = sign(asset["href"])
    return item


LOADERS: Mapping[str, Callable[[Sequence[Any], Mapping[str, Any]], xr.DataArray]] = {
    "odc": _odc,
    "stackstac": _stackstac,
}
"""Libraries by the name of the loader."""
