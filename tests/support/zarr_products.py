"""Products of Sentinel-2 whose pixels are the same in Zarr, as ESA (EOPF, v2) and others (GeoZarr, v3) store them, as COG
and as JPEG 2000.

Their attributes are cut from those of a real product (S2A, 2025-10-08, T32TQM, baseline 05.11).
"""

import warnings
from pathlib import Path

import numcodecs
import numpy as np
import rasterio
import zarr
from affine import Affine
from zarr.errors import ZarrUserWarning

BANDS = ("b02", "b03", "b04", "b08")
WEST, NORTH, EPSG = 699960.0, 4700040.0, 32632
DAYS = (1, 4, 7)


def consolidate(store):
    """Write the metadata of all arrays of a store to one document, as products have it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # it is no part of the specification of v3
        zarr.consolidate_metadata(str(store))


def name_of(day, baseline="05.11"):
    stamp = f"202510{day:02d}"
    return f"S2A_MSIL2A_{stamp}T100041_N{baseline.replace('.', '')}_R122_T32TQM_{stamp}T122613"


def pixels_of(day, side=120):
    """Return numbers with ESA's offset by name of the array, those of 10 m first; 0 in a corner is no data."""
    rng = np.random.default_rng(day)
    y, x = np.mgrid[:side, :side]
    arrays = {}
    for k, band in enumerate(BANDS):
        values = 1600 + 300 * k + 4 * x + 3 * y + rng.integers(0, 900, (side, side))
        values[: side // 6, : side // 5] = 0
        arrays[band] = values.astype("u2")
    half = (side // 2, side // 2)
    arrays["b11"] = rng.integers(1100, 5000, half).astype("u2")
    arrays["scl"] = np.repeat(np.repeat(rng.choice([4, 5, 8, 9, 3], (side // 12, side // 12)), 6, 0), 6, 1).astype("u1")
    arrays["cld"] = rng.integers(0, 101, half).astype("u1")
    arrays["snw"] = rng.integers(0, 101, half).astype("u1")
    return arrays


def coarse(array):
    """Return every second pixel, as GDAL's overviews of nearest neighbours have it."""
    return np.ascontiguousarray(array[::2, ::2])


def grid(array, resolution):
    transform = [resolution, 0.0, WEST, 0.0, -resolution, NORTH, 0.0, 0.0, 1.0]
    return {"proj:epsg": EPSG, "proj:shape": list(array.shape), "proj:transform": transform}


def discovery(day, baseline="05.11"):
    """Return the attributes of the root of ESA's product."""
    return {
        "other_metadata": {"UTM_zone_identification": f"S2A_OPER_MSI_L2A_TL_2APS_A053773_T32TQM_N{baseline}"},
        "stac_discovery": {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": f"{name_of(day, baseline)}.SAFE",
            # as they are in the real one: west and east are swapped
            "bbox": [12.763136432704886, 41.40403474612011, 11.393460776835221, 42.426911995973605],
            "geometry": None,
            "links": [{"href": "./.zattrs.json", "rel": "self", "type": "application/json"}],
            "assets": {"analytic": {"eo:bands": [{"name": "02", "common_name": "blue"}], "href": "null"}},
            "properties": {
                "datetime": None,
                "start_datetime": f"2025-10-{day:02d}T10:00:41.024000+00:00",
                "end_datetime": f"2025-10-{day:02d}T10:00:41.024000+00:00",
                "created": f"2025-10-{day:02d}T12:26:13+00:00",
                "platform": "sentinel-2a",
                "constellation": "sentinel-2",
                "instrument": "msi",
                "product:type": "S02MSIL2A",
                "eopf:baseline": baseline,
                "sat:relative_orbit": 122,
                "bands": [{"name": "b02", "common_name": "blue", "center_wavelength": 492.7}],
            },
        },
    }


PLACES = {
    "b11": "measurements/reflectance/r20m/b11",
    "scl": "conditions/mask/l2a_classification/r20m/scl",
    "cld": "quality/probability/r20m/cld",
    "snw": "quality/probability/r20m/snw",
    **{band: f"measurements/reflectance/r10m/{band}" for band in BANDS},
}


def eopf(directory, day, side=120, *, chunk=50, consolidated=True, baseline="05.11", compressor=None, skip=()):
    """Write ESA's product and return its path."""
    path = Path(directory) / f"{name_of(day, baseline)}.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2, attributes=discovery(day, baseline))
    reflectance = {"scale_factor": 1e-4, "add_offset": -0.1, "fill_value": 0, "units": "digital_counts"}
    pixels = pixels_of(day, side)

    def put(place, array, resolution, fill, **attributes):
        stored = root.create_array(
            place,
            shape=array.shape,
            chunks=(min(chunk, array.shape[0]),) * 2,
            dtype=array.dtype,
            compressors=compressor or numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE),
            fill_value=fill,
            attributes={**grid(array, resolution), "_ARRAY_DIMENSIONS": ["y", "x"], **attributes},
        )
        stored[:] = array

    for name, array in pixels.items():
        if name in skip:
            continue
        resolution = 10.0 if name in BANDS else 20.0
        spectral = array.dtype == np.uint16
        put(PLACES[name], array, resolution, 0 if spectral else None, **(reflectance if spectral else {}))
        if name in BANDS:
            put(f"measurements/reflectance/r20m/{name}", coarse(array), 20.0, 0, **reflectance)
            # which detector saw a pixel, and its flags: masks that have the names of bands
            put(f"conditions/mask/detector_footprint/r10m/{name}", (array % 7).astype("u1"), 10.0, None)
            put(f"quality/mask/r10m/{name}", np.full(array.shape, 3, "u1"), 10.0, None)
    if consolidated:
        consolidate(path)
    return path


def reflectance_of(array):
    return np.where(array == 0, np.nan, array * 1e-4 - 0.1).astype("f4")


def geozarr(directory, day, side=120, *, inner=10, consolidated=True, baseline="05.11"):
    """Write the GeoZarr made of it, reflectances as floats in one shard for each array, and return its path."""
    path = Path(directory) / f"{name_of(day, baseline)}.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=3)

    def put(place, array, resolution, **attributes):
        sharded = array.dtype.kind == "f"
        stored = root.create_array(
            place,
            shape=array.shape,
            chunks=(inner, inner) if sharded else array.shape,
            shards=array.shape if sharded else None,
            dtype=array.dtype,
            compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
            fill_value=float("nan") if sharded else 0,
            dimension_names=["y", "x"],
            attributes={**grid(array, resolution), "grid_mapping": "spatial_ref", **attributes},
        )
        stored[:] = array

    for name, array in pixels_of(day, side).items():
        resolution = 10.0 if name in BANDS else 20.0
        if array.dtype == np.uint16:
            values = reflectance_of(array)
            put(PLACES[name], values, resolution, units="1", _FillValue="AAAAAAAA+H8=")
            if name in BANDS:
                put(f"measurements/reflectance/r20m/{name}", coarse(values), 20.0, units="1", _FillValue="AAAAAAAA+H8=")
        else:
            put(PLACES[name], array, resolution)
    if consolidated:
        consolidate(path)
    return path


_FILES = {"cld": "MSK_CLDPRB_20m", "snw": "MSK_SNWPRB_20m", "scl": "SCL_20m", "b11": "B11_20m"}


def rasters(directory, day, side=120, *, driver="GTiff", baseline="05.11", names=(*BANDS, "b11", "scl")):
    """Write the same as a file for each band, COG or JPEG 2000, without loss, and return the directory."""
    folder = Path(directory) / f"{name_of(day, baseline)}.SAFE"
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in pixels_of(day, side).items():
        if name not in names:
            continue
        resolution = 10 if name in BANDS else 20
        profile = {
            "driver": driver, "count": 1, "height": array.shape[0], "width": array.shape[1], "dtype": array.dtype,
            "crs": f"EPSG:{EPSG}", "transform": Affine(resolution, 0, WEST, 0, -resolution, NORTH),
        }  # fmt: skip
        file = folder / f"T32TQM_202510{day:02d}T100041_{_FILES.get(name, f'{name.upper()}_10m')}"
        if driver == "JP2OpenJPEG":
            options = {"REVERSIBLE": "YES", "QUALITY": "100", "RESOLUTIONS": "1"}
            with rasterio.open(f"{file}.jp2", "w", **profile, **options) as dataset:
                dataset.write(array, 1)
            continue
        options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
        with rasterio.open(f"{file}.tif", "w", nodata=0 if name != "scl" else None, **profile, **options) as dataset:
            dataset.write(array, 1)
            if name in BANDS:
                dataset.build_overviews([2], rasterio.enums.Resampling.nearest)
    return folder
