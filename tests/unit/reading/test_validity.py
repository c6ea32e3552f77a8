"""Which pixels of a file are valid: nodata, internal mask, .msk file, alpha band. rasterio and GDAL's warper are the oracle."""

import datetime as dt
import subprocess

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from exactextract import exact_extract
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT
from typer.testing import CliRunner

import s2composite as s2c
from s2composite.cli import app
from s2composite.errors import ReadError
from s2composite.geotiff.header import read_header
from support.gdal_cli import needs_gdal
from support.rasters import ORIGIN, write_tif

SIZE = 150
KINDS = ("nodata", "nodata 255", "internal", "msk", "alpha", "mask and nodata")


def holes(scene):
    """(y, x): an edge, single pixels and a block are not valid."""
    rng = np.random.default_rng(scene)
    valid = rng.random((SIZE, SIZE)) > 0.2
    valid[:, : 10 + scene] = False
    valid[70:100, 40:80] = False
    valid[100:140, 90:140] = True
    return valid


def pixels(scene, bands=3, dtype="uint8"):
    rng = np.random.default_rng(100 + scene)
    array = rng.integers(0, 201, (bands, SIZE, SIZE)).astype(dtype)
    array[:, ::7, ::5] = 0  # valid zeros, where a mask says so
    array[:, 3::7, ::5] = 255
    return array


def write(path, kind, scene=0, dtype="uint8", **options):
    """Write a scene whose validity is declared in one of the ways."""
    array, valid = pixels(scene, dtype=dtype), holes(scene)
    overviews = options.pop("overviews", ())
    nodata = {"nodata": 0, "nodata 255": 255, "mask and nodata": 255}.get(kind)
    if kind.startswith("nodata"):
        array[:, ~valid] = nodata
    extra = {"alpha": "yes"} if kind == "alpha" else {}
    if kind == "alpha":
        array = np.concatenate([array, np.where(valid, np.iinfo(dtype).max, 0)[None].astype(dtype)])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind != "msk"):
        name = write_tif(path, array, photometric="rgb", nodata=nodata, **extra, **options)
        if kind in ("internal", "msk", "mask and nodata"):
            with rasterio.open(name, "r+") as dataset:
                dataset.write_mask(valid)
        if overviews:
            with rasterio.open(name, "r+") as dataset:
                dataset.build_overviews(overviews, Resampling.nearest)
    return name


def series(folder, kind, scenes=3, **options):
    return [write(folder / f"T31TCJ_202306{1 + 5 * t:02d}T104629_X.tif", kind, t, **options) for t in range(scenes)]


def expected(path, fill, level=None):
    """Pixels as rasterio masks them, `fill` where not valid, and a valid `fill` replaced by its neighbour as GDAL does."""
    with rasterio.open(path, **({} if level is None else {"overview_level": level})) as dataset:
        array, valid = dataset.read([1, 2, 3]), dataset.read_masks([1, 2, 3]) > 0
    array[valid & (array == fill)] = fill + 1 if fill == 0 else fill - 1
    array[~valid] = fill
    return array, valid.all(0)


@pytest.mark.parametrize("engine", ["tiles", "gdal"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cube_and_its_counts_are_masked_as_by_rasterio(kind, engine, tmp_path):
    paths = series(tmp_path, kind)
    cube = s2c.open_cube(paths, engine=engine, chunks=64)
    fill = cube.attrs["nodata"]
    assert fill == (255 if "255" in kind or kind == "mask and nodata" else 0)
    assert cube["band"].values.tolist() == ["red", "green", "blue"]
    arrays, valid = zip(*(expected(path, int(fill)) for path in paths), strict=True)
    np.testing.assert_array_equal(cube.values, np.stack(arrays))
    comp = s2c.composite(cube, "mean", valid=s2c.Nodata()).compute()
    np.testing.assert_array_equal(comp["count"], np.sum(valid, axis=0))
    loaded = s2c.composite(cube.compute(), "mean", valid=s2c.Nodata())
    np.testing.assert_array_equal(comp["composite"], loaded["composite"])
    if kind not in ("nodata", "nodata 255"):
        every = s2c.composite(cube, "mean", valid=()).compute()
        np.testing.assert_array_equal(every["count"], np.sum(valid, axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_overviews_and_repeated_pixels_are_masked(kind, tmp_path):
    path = write(tmp_path / "T31TCJ_20230601T104629_X.tif", kind, overviews=(2,))
    coarse = s2c.open_cube(path, resolution=20)
    array, _ = expected(path, int(coarse.attrs["nodata"]), 0)
    assert "gdal" not in coarse.attrs["engine"]
    np.testing.assert_array_equal(coarse.values[0], array)
    fine = s2c.open_cube(path, resolution=5, chunks=50).values[0]
    np.testing.assert_array_equal(fine, expected(path, int(coarse.attrs["nodata"]))[0].repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize(
    "resampling",
    ["nearest", "bilinear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cubic", "average"))],
)
@pytest.mark.parametrize("kind", KINDS)
def test_warped_pixels_are_those_of_valid_ones_only(kind, resampling, tmp_path):
    path = write(tmp_path / "T31TCJ_20230601T104629_X.tif", kind)
    cube = s2c.open_cube(path, crs="EPSG:3035", resolution=10, resampling=resampling, chunks=70)
    geobox, fill = cube.odc.geobox, cube.attrs["nodata"]
    source = path
    if resampling == "nearest":  # GDAL leaves valid numbers that are its nodata value as they are here, and here only
        source = write_tif(tmp_path / "plain.tif", expected(path, int(fill))[0], nodata=fill)
    with (
        rasterio.open(source) as dataset,
        WarpedVRT(
            dataset, crs="EPSG:3035", transform=geobox.transform, width=geobox.shape.x, height=geobox.shape.y,
            resampling=Resampling[resampling], nodata=fill, tolerance=1e-7, XSCALE="1", YSCALE="1",
            UNIFIED_SRC_NODATA="PARTIAL",
            **({"src_nodata": None} if kind == "mask and nodata" and source == path else {}),
        ) as warped,
    ):  # fmt: skip
        # GDAL's own coordinates are off by up to 1e-7 pixels
        assert (cube.values[0] != warped.read([1, 2, 3])).sum() <= 3
    by_gdal = s2c.open_cube(path, engine="gdal", crs="EPSG:3035", resolution=10, resampling=resampling)
    np.testing.assert_array_equal(by_gdal.values, cube.values)
    assert (cube.values == fill).any()
    if kind not in ("nodata", "nodata 255"):
        count = s2c.composite(cube, "mean", valid=())["count"].compute()
        np.testing.assert_array_equal(count, (cube.values[0] != fill).any(0))


def test_files_with_different_validity_declarations_make_one_cube(tmp_path):
    paths = [write(tmp_path / f"T31TCJ_2023060{i + 1}T104629_X.tif", kind, i) for i, kind in enumerate(KINDS)]
    cube = s2c.open_cube(paths, geobox=GeoBox((SIZE, SIZE), ORIGIN, "EPSG:32631"))
    assert "gdal" not in cube.attrs["engine"]
    arrays, valid = zip(*(expected(path, 0) for path in paths), strict=True)
    np.testing.assert_array_equal(cube.values, np.stack(arrays))
    count = s2c.composite(cube, valid=s2c.Nodata())["count"].compute()
    np.testing.assert_array_equal(count, np.sum(valid, axis=0))


def test_alpha_band_is_not_data_and_not_saturated(tmp_path):
    path = write(tmp_path / "T31TCJ_20230601T104629_TCI.tif", "alpha")
    with_name = s2c.open_cube(path, bands=["TCI"])
    assert with_name["band"].values.tolist() == ["red", "green", "blue"]
    array, valid = expected(path, 0)
    count = s2c.composite(with_name)["count"].compute()
    np.testing.assert_array_equal(count, valid & (array != 255).all(0))
    path = write(tmp_path / "T31TCJ_20230601T104629_X.tif", "alpha")
    alpha = s2c.open_cube(path, bands=["alpha"])
    np.testing.assert_array_equal(alpha.values[0, 0], np.where(holes(0), 255, 0))


def test_the_fourth_of_four_bands_is_alpha_unless_it_has_another_name(tmp_path):
    """GDAL writes and reads it as alpha, whatever it is, if four bands of 8 bits are written without options."""
    path = write_tif(tmp_path / "T31TCJ_20230601T104629_X.tif", pixels(0, 4))
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    assert read_header(path).alpha == 3
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B02", "B03", "B04", "B08")
    cube = s2c.open_cube(path)
    assert cube["band"].values.tolist() == ["B02", "B03", "B04", "B08"]
    np.testing.assert_array_equal(cube.values[0], pixels(0, 4))


@pytest.mark.parametrize("resampling", ["bilinear", "cubic", "average"])
def test_fourth_data_band_is_not_used_as_weights_by_gdal(resampling, tmp_path):
    """GDAL's warper treats it as alpha; the oracle is a file whose bands have another interpretation."""
    array = pixels(0, 4)
    plain = write_tif(tmp_path / "T31TCJ_20230601T104629_X.tif", array, alpha="unspecified")
    called = write_tif(tmp_path / "T31TCJ_20230602T104629_X.tif", array)
    for path in (plain, called):
        with rasterio.open(path, "r+") as dataset:
            assert (dataset.colorinterp[3] == ColorInterp.alpha) == (path == called)
            dataset.descriptions = ("B02", "B03", "B04", "B08")
            dataset.build_overviews((2,), Resampling.nearest)
    for resolution in (7, 26):
        grid = {"geobox": GeoBox((60, 60), ORIGIN @ Affine.scale(resolution / 10), "EPSG:32631")}
        one, other = s2c.open_cube([plain, called], resampling=resampling, **grid).values
        np.testing.assert_array_equal(one, other)


def vrt_of(path, array, nodata, dtype):
    """Write each band to a file, and a VRT of these whose bands have these nodata values."""
    bands = []
    for b, (band, value) in enumerate(zip(array, nodata, strict=True), 1):
        source = write_tif(path.with_name(f"{path.stem}_{b}.tif"), band)
        declared = "" if value is None else f"<NoDataValue>{value}</NoDataValue>"
        bands.append(
            f'<VRTRasterBand dataType="{dtype}" band="{b}">{declared}<SimpleSource><SourceFilename>{source}'
            "</SourceFilename></SimpleSource></VRTRasterBand>"
        )
    path.write_text(
        f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><SRS>EPSG:32631</SRS>'
        f"<GeoTransform>300000,10,0,4900020,0,-10</GeoTransform>{''.join(bands)}</VRTDataset>"
    )
    return str(path)


@needs_gdal
@pytest.mark.parametrize("resampling", ["nearest", pytest.param("bilinear", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dtype", "name", "nodata"),
    [
        ("uint8", "Byte", (0, 255, None)),
        ("uint8", "Byte", (255, 0, 0)),
        ("int16", "Int16", (-1, 0, 255)),
        ("uint8", "Byte", (-9999, 255, 7)),
        ("float32", "Float32", (-9999, "nan", 0)),
    ],
)
def test_each_band_has_its_own_nodata(dtype, name, nodata, resampling, tmp_path):
    """A VRT of several products, as gdalbuildvrt -separate makes them."""
    if resampling == "nearest":
        array = pixels(0, 3, dtype)
    else:  # no pixel lacks all bands, and none has a nodata value that is valid
        array = np.random.default_rng(0).integers(10, 200, (3, SIZE, SIZE)).astype(dtype)
    missing = np.arange(3)[:, None, None] == np.random.default_rng(5).integers(0, 20, (SIZE, SIZE))
    held = [None if value == -9999 and dtype == "uint8" else value for value in nodata]
    for band, hole, value in zip(array, missing, held, strict=True):
        band[hole] = 3 if value is None else value
    (tmp_path / "in").mkdir()
    path = vrt_of(tmp_path / "in" / "T31TCJ_20230601T104629_X.vrt", array, nodata, name)
    grid = {} if resampling == "nearest" else {"crs": "EPSG:3035", "resolution": 10}
    for index in (None, tmp_path / "index", tmp_path / "index"):
        cube = s2c.open_cube(path, resampling=resampling, index=index, chunks=64, **grid)
    fill, geobox = cube.attrs.get("nodata", np.nan if dtype == "float32" else 0), cube.odc.geobox
    assert fill == (held[0] or 0)
    west, south, east, north = geobox.boundingbox.bbox
    size, out = [str(geobox.shape.x), str(geobox.shape.y)], str(tmp_path / "warped.tif")
    where = ["-t_srs", str(geobox.crs), "-te", *map(str, (west, south, east, north)), "-ts", *size]
    subprocess.run(
        ["gdalwarp", "-q", "-r", resampling, "-et", "0", "-dstnodata", str(fill), *where, path, out], check=True
    )
    with rasterio.open(out) as dataset:
        warped = dataset.read()
    for b, value in enumerate(held, 1):
        expected = array[b - 1].copy()
        hole = np.isnan(expected) if value == "nan" else expected == (fill if value is None else value)
        if resampling == "nearest":
            expected[~hole & (expected == fill)] = fill + 1 if fill in (0, -9999) and dtype == "uint8" else fill - 1
            expected[hole] = fill
        else:
            expected = warped[b - 1]
        # two builds of GDAL and PROJ round differently
        np.testing.assert_allclose(cube.values[0, b - 1], expected, rtol=0, atol=0 if resampling == "nearest" else 1)


@pytest.mark.parametrize(
    ("bands", "options"),
    [
        (2, {"alpha": "yes"}),
        (5, {"photometric": "rgb", "extra": True}),
        (4, {"alpha": "yes", "interleave": "pixel", "photometric": "rgb", "compress": "webp", "webp_lossless": True}),
        (4, {"alpha": "yes", "interleave": "band", "photometric": "rgb"}),
        (4, {"alpha": "premultiplied", "photometric": "rgb"}),
    ],
)
def test_alpha_bands_of_all_kinds(bands, options, tmp_path):
    array = np.maximum(pixels(0, bands), 1)
    array[-1] = np.where(holes(0), 255, 0)
    extra = options.pop("extra", False)
    path = write_tif(tmp_path / "T31TCJ_20230601T104629_X.tif", array, **options)
    if extra:
        with rasterio.open(path, "r+") as dataset:
            dataset.colorinterp = [*dataset.colorinterp[:4], ColorInterp.alpha]
    with rasterio.open(path) as dataset:
        assert [c == ColorInterp.alpha for c in dataset.colorinterp] == [False] * (bands - 1) + [True]
    for engine in ("tiles", "gdal"):
        cube = s2c.open_cube(path, engine=engine)
        assert cube.sizes["band"] == bands - 1
        np.testing.assert_array_equal(cube.values[0] != 0, np.broadcast_to(holes(0), cube.shape[1:]))


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint16"])
def test_masks_of_other_types(dtype, tmp_path):
    array, valid = pixels(0, 1, dtype), holes(0)
    path = tmp_path / "T31TCJ_20230601T104629_B04.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_tif(path, array)
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(valid)
    for engine in ("tiles", "gdal"):
        cube = s2c.open_cube(str(path), engine=engine)
        values = cube.values[0, 0]
        if dtype == "float32":
            np.testing.assert_array_equal(values, np.where(valid, array[0], np.nan))
        else:
            beside = 1 if dtype == "uint16" else -1
            np.testing.assert_array_equal(values, np.where(valid, np.where(array[0] == 0, beside, array[0]), 0))
        count = s2c.composite(cube, "mean")["count"].compute()
        np.testing.assert_array_equal(count, valid & (array[0] != np.iinfo(dtype).max if dtype != "float32" else True))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_other_formats_have_masks_too(tmp_path):
    """A PNG with alpha, a VRT with a mask."""
    with rasterio.open(
        tmp_path / "T31TCJ_20230601T104629_X.png", "w", driver="PNG", width=SIZE, height=SIZE, count=4, dtype="uint8",
        crs="EPSG:32631", transform=ORIGIN,
    ) as dataset:  # fmt: skip
        dataset.write(np.concatenate([pixels(0), np.where(holes(0), 255, 0)[None].astype("uint8")]))
    write(tmp_path / "source.tif", "internal")
    (tmp_path / "T31TCJ_20230602T104629_X.vrt").write_text(
        f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><SRS>EPSG:32631</SRS>'
        "<GeoTransform>300000,10,0,4900020,0,-10</GeoTransform>"
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{b}"><SimpleSource><SourceFilename relativeToVRT="1">source.tif'
            f"</SourceFilename><SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>"
            for b in (1, 2, 3)
        )
        + '<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource><SourceFilename relativeToVRT="1">source.tif'
        "</SourceFilename><SourceBand>mask,1</SourceBand></SimpleSource></VRTRasterBand></MaskBand></VRTDataset>"
    )
    for name in ("T31TCJ_20230601T104629_X.png", "T31TCJ_20230602T104629_X.vrt"):
        cube = s2c.open_cube(str(tmp_path / name))
        np.testing.assert_array_equal(cube.values[0], expected(tmp_path / name, 0)[0])


def write_vrt(path, said, mask=""):
    """Write a VRT of the three bands of source.tif beside it, with what is said of each of them."""
    source = '<SimpleSource><SourceFilename relativeToVRT="1">{}.tif</SourceFilename><SourceBand>{}</SourceBand></SimpleSource>'
    bands = ""
    for b, one in enumerate(said, 1):
        masked = f'<MaskBand><VRTRasterBand dataType="Byte">{source.format(mask, b)}</VRTRasterBand></MaskBand>'
        bands += (
            f'<VRTRasterBand dataType="Byte" band="{b}">{one}{source.format("source", b)}'
            f"{masked if mask else ''}</VRTRasterBand>"
        )
    path.write_text(
        f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><SRS>EPSG:32631</SRS>'
        f"<GeoTransform>300000,10,0,4900020,0,-10</GeoTransform>{bands}</VRTDataset>"
    )


def by_band(folder, kind):
    """Write a raster whose bands have a nodata value or a mask each, or a colour that has no data."""
    path = folder / "T31TCJ_20230601T104629_X.tif"
    array = pixels(0)
    array[:, ~holes(0)] = np.array([[3], [0], [9]], "uint8")
    if kind in ("NODATA_VALUES", "aux.xml"):
        write_tif(path, array)
    if kind == "NODATA_VALUES":
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(NODATA_VALUES="3 0 9")
    elif kind == "aux.xml":
        said = "".join(
            f'<PAMRasterBand band="{b}"><NoDataValue>{3 * b}</NoDataValue></PAMRasterBand>' for b in (1, 2, 3)
        )
        (folder / f"{path.name}.aux.xml").write_text(f"<PAMDataset>{said}</PAMDataset>")
    else:
        write_tif(folder / "source.tif", array)
        write_tif(folder / "masks.tif", np.stack([255 * holes(band) for band in range(3)]).astype("uint8"))
        path = path.with_suffix(".vrt")
        said = [f"<NoDataValue>{3 * b}</NoDataValue>" if kind == "nodata" else "" for b in (1, 2, 3)]
        write_vrt(path, said, "masks" if kind == "masks" else "")
    return str(path)


@pytest.mark.parametrize("kind", ["nodata", "aux.xml", "masks", "NODATA_VALUES"])
def test_bands_with_their_own_masks(kind, tmp_path):
    path = by_band(tmp_path, kind)
    with rasterio.open(path) as dataset:
        array, valid = dataset.read(), dataset.read_masks() > 0
    assert 0 < valid.sum() < valid.size
    for options in ({}, {"index": tmp_path / "index"}, {"index": tmp_path / "index"}):
        cube = s2c.open_cube(path, chunks=64, **options)
        fill = cube.attrs["nodata"]
        np.testing.assert_array_equal(cube.values[0] != fill, valid)
        same = valid & (array != fill)
        np.testing.assert_array_equal(cube.values[0][same], array[same])
        count = s2c.composite(cube, "mean", valid=s2c.Nodata())["count"].compute()
        np.testing.assert_array_equal(count, valid.all(0))
    for band in (1, 2, 3):
        alone = s2c.open_cube(path, bands=[band])
        np.testing.assert_array_equal(alone.values[0, 0] != alone.attrs["nodata"], valid[band - 1])


@pytest.mark.parametrize(
    ("suffix", "nodata"),
    [("tif", 0.5), ("tif", 7.9), ("vrt", 7.9), ("vrt", -9999), ("vrt", 256), ("vrt", "nan"), ("vrt", "inf")],
)
def test_a_nodata_value_that_integers_cannot_have_is_what_gdal_takes_it_for(suffix, nodata, tmp_path):
    path = tmp_path / f"T31TCJ_20230601T104629_X.{suffix}"
    if suffix == "tif":
        write_tif(path, pixels(0), nodata=nodata)
    else:
        write_tif(tmp_path / "source.tif", pixels(0))
        write_vrt(path, [f"<NoDataValue>{nodata}</NoDataValue>"] * 3)
    with rasterio.open(path) as dataset:
        array, valid = dataset.read(), dataset.read_masks() > 0
    cube = s2c.open_cube(str(path))
    np.testing.assert_array_equal(cube.values[0], array)
    if valid.all():
        assert "nodata" not in cube.attrs
    else:
        np.testing.assert_array_equal(cube.values[0] != cube.attrs["nodata"], valid)


def test_a_mask_that_cannot_be_read_fails_its_scene(tmp_path):
    paths = series(tmp_path, "msk", scenes=2)
    content = bytearray((tmp_path / f"{paths[1]}.msk").read_bytes())
    header = read_header(f"{paths[1]}.msk")
    start = int(header.levels[0].offsets[0])
    content[start : start + 40] = bytes(40)
    (tmp_path / f"{paths[1]}.msk").write_bytes(content)
    with pytest.raises(ReadError, match=r"20230606.*\.msk"):
        s2c.open_cube(paths).load()
    skipped = s2c.composite(s2c.open_cube(paths, on_error="skip"), "mean", valid=s2c.Nodata()).compute()
    first, _ = (slice(0, n) for n in header.levels[0].block)
    np.testing.assert_array_equal(skipped["count"][first, first], expected(paths[0], 0)[1][first, first])


def test_an_index_notices_a_mask_file_that_came_or_changed(tmp_path):
    path, index = write(tmp_path / "T31TCJ_20230601T104629_X.tif", "none"), tmp_path / "index"
    assert (s2c.open_cube(path, index=index).values == pixels(0)).all()
    write(tmp_path / "other.tif", "msk")
    (tmp_path / "other.tif.msk").rename(f"{path}.msk")
    for _ in range(2):
        np.testing.assert_array_equal(s2c.open_cube(path, index=index).values[0], expected(path, 0)[0])
    (tmp_path / f"{path}.msk").unlink()
    assert (s2c.open_cube(path, index=index).values == pixels(0)).all()


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_zonal_statistics_of_a_path_are_those_of_exactextract(kind, tmp_path):
    """If a file has a mask and a nodata value, exactextract uses both, GDAL and this package only the mask."""
    path = write(tmp_path / "x.tif", kind)
    west, north = ORIGIN.c, ORIGIN.f
    zones = gpd.GeoDataFrame(
        {"id": ["a", "b"]},
        geometry=[
            shapely.box(west + 33, north - 1200, west + 801, north - 55),
            shapely.Point(west + 700, north - 700).buffer(555),
        ],
        crs="EPSG:32631",
    )
    ours = s2c.zonal_stats(path, zones, ["count", "mean", "min"], name="id")
    theirs = exact_extract(path, zones, ["count", "mean", "min"], output="pandas")
    assert len(ours) == 6
    for row in ours.itertuples():
        other = theirs.iloc[["a", "b"].index(row.zone)]
        for name in ("count", "mean", "min"):
            assert getattr(row, name) == pytest.approx(other[f"band_{row.band}_{name}"], rel=1e-6)


def test_our_own_jpeg_read_back_has_nothing_beyond_the_edge(tmp_path):
    for t in range(3):
        array = np.random.default_rng(t).integers(150, 250, (3, 300, 300)).astype("uint8")
        array[:, :, :87] = 0
        write_tif(tmp_path / f"T31TCJ_2023060{t + 1}T104629_TCI.tif", array, nodata=0, photometric="rgb")
    comp = s2c.composite(s2c.open_cube(tmp_path))
    (tmp_path / "out").mkdir()
    out = comp.to_raster(str(tmp_path / "out" / "median_20230601.tif"), compress="jpeg", blocksize=128, progress=False)
    for level in (None, 0, 1):
        with rasterio.open(out[0], **({} if level is None else {"overview_level": level})) as dataset:
            valid, resolution = dataset.dataset_mask() > 0, dataset.res[0]
        cube = s2c.open_cube(out[:1], resolution=resolution)
        assert "gdal" not in cube.attrs["engine"]
        count = s2c.composite(cube, valid=s2c.Nodata())["count"].compute()
        np.testing.assert_array_equal(count[: valid.shape[0], : valid.shape[1]], valid)


def test_scenes_shows_what_says_which_pixels_are_valid(tmp_path):
    for i, kind in enumerate(("none", *KINDS)):
        write(tmp_path / f"T31TCJ_2023060{i + 1}T104629_X.tif", kind, i)
    lines = CliRunner().invoke(app, ["scenes", str(tmp_path)]).output.splitlines()
    words = ("—", "nodata 0", "nodata 255", "internal mask", ".msk", "alpha", "internal mask")
    assert "valid by" in lines[0]
    for line, word in zip(lines[1:], words, strict=False):
        assert word in line


def test_floats_that_declare_nothing_are_nan_where_no_file_covers(tmp_path):
    for t in range(2):
        write_tif(tmp_path / f"T31TCJ_2023060{t + 1}T104629_B04.tif", np.full((200, 200), 5, "float32"))
    for options in ({}, {"engine": "gdal"}, {"resampling": "bilinear"}, {"resampling": "average"}):
        cube = s2c.open_cube(tmp_path, crs="EPSG:3035", resolution=10, **options)
        values = cube.values
        assert np.isnan(values).any()
        assert set(np.unique(values[~np.isnan(values)])) == {5}
        comp = s2c.composite(cube, "mean").compute()
        np.testing.assert_array_equal(comp["count"], 2 * ~np.isnan(values[0, 0]))


def scene(**paths):
    return s2c.Scene("one", dt.datetime(2023, 6, 1, tzinfo=dt.UTC), tuple(s2c.Asset(k, v) for k, v in paths.items()))


def test_a_mask_band_has_a_mask_of_its_own(tmp_path):
    """Nodata in a mask band's file is not valid: 0 means clear in QA60, and 255 is undefined in a classification."""
    data, usable = np.full((SIZE, SIZE), 7, "uint16"), holes(0)
    data = write_tif(tmp_path / "data.tif", data)
    qa = write_tif(tmp_path / "qa.tif", np.zeros((SIZE, SIZE), "uint16"))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(qa, "r+") as dataset:
        dataset.write_mask(usable)
    scl = write_tif(tmp_path / "scl.tif", np.where(usable, 4, 255).astype("uint8"), nodata=255)
    one = scene(B04=data, QA60=qa, SCL=scl)
    for grid in ({}, {"crs": "EPSG:3035", "resolution": 10}):
        cube = s2c.open_cube([one], bands=["B04"], chunks=64, **grid)
        counts = [s2c.composite(cube, valid=rule)["count"].compute() for rule in (s2c.QABits("qa60"), s2c.SCL())]
        if not grid:
            np.testing.assert_array_equal(counts[0], usable)
        np.testing.assert_array_equal(counts[0], counts[1])


@pytest.mark.parametrize("nodata", [None, 0, 255])
def test_a_class_does_not_become_its_neighbour(nodata, tmp_path):
    """A valid value equal to nodata becomes the adjacent value, except for classes and flags."""
    usable, flags = holes(0), np.random.default_rng(0).integers(0, 2, (SIZE, SIZE)).astype("uint8")
    data = write_tif(tmp_path / "data.tif", np.full((SIZE, SIZE), 7, "uint16"))
    names = [write_tif(tmp_path / f"{name}.tif", flags, nodata=nodata) for name in ("QA", "T31TCJ_20230601T104629_SCL")]
    for path in names:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(usable)
    cube = s2c.open_cube([scene(B04=data, QA=names[0])], bands=["B04"])
    count = s2c.composite(cube, valid=s2c.Usable("QA"))["count"].compute()
    np.testing.assert_array_equal(count, usable & (flags == 1))
    cube = s2c.open_cube(names[1])
    np.testing.assert_array_equal(cube.values[0, 0], np.where(usable, flags, cube.attrs["nodata"]))


def test_pixels_outside_the_mask_band_are_not_valid(tmp_path):
    data = write_tif(tmp_path / "data.tif", np.full((64, 96), 7, "uint16"))
    qa = write_tif(tmp_path / "qa.tif", np.zeros((64, 64), "uint16"))
    cube = s2c.open_cube([scene(B04=data, QA60=qa)], bands=["B04"])
    count = s2c.composite(cube, valid=s2c.QABits("qa60"))["count"].compute().values
    assert count[:, :64].all()
    assert not count[:, 64:].any()
