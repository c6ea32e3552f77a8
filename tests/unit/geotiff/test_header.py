"""Headers: what rasterio says of every kind of file, from one small read, and a clear error for what is no raster."""

import os
import pickle
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from rasterio.shutil import copy as copy_raster

import s2composite as s2c
from s2composite.errors import S2CompositeError, SceneError
from s2composite.geotiff.header import read_header
from s2composite.reading.headers import load_index, save_index
from support.rasters import ORIGIN, series, write_tif
from support.tiff_matrix import JPEG, LOSSLESS, SPECIAL, make, pixels


def agrees_with_rasterio(path):
    """Check everything that rasterio knows too, and return the header."""
    header = read_header(str(path))
    with rasterio.open(path) as dataset:
        assert header.geobox.transform == dataset.transform
        assert header.geobox.shape == dataset.shape
        assert header.geobox.crs == (CRS(dataset.crs.to_wkt()) if dataset.crs else None)
        if dataset.crs:
            assert rasterio.CRS.from_user_input(str(header.geobox.crs)) == dataset.crs
        assert (header.bands, header.dtype) == (dataset.count, np.dtype(dataset.dtypes[0]))
        assert header.nodata == dataset.nodata or (np.isnan(header.nodata) and np.isnan(dataset.nodata))
        assert header.descriptions == dataset.descriptions
        assert header.coding.interleave == (
            "band" if dataset.interleaving.name == "band" and header.bands > 1 else "pixel"
        )
        assert header.block == dataset.block_shapes[0]
        named = "NONE" if dataset.compression is None else dataset.compression.name.upper()
        assert named.removeprefix("LERC_") in (header.coding.compression, header.coding.inner)
        assert len(header.levels) == 1 + len(dataset.overviews(1))
    return header


def georeferenced(path, **profile):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", width=20, height=10, count=1, dtype="uint8", **profile
        ) as dataset:
            dataset.write(np.ones((1, 10, 20), np.uint8))
    return path


LAEA = "+proj=laea +lat_0=50.7 +lon_0=-3.5 +x_0=0 +y_0=0 +datum=WGS84 +units=m"


@pytest.mark.parametrize("case", [c for c in SPECIAL + JPEG if "photometric" not in c.name], ids=lambda c: c.name)
def test_files_of_every_kind(case, tmp_path):
    header = agrees_with_rasterio(make(case, tmp_path))
    assert not header.undecodable
    assert (header.mask is not None) == case.mask
    assert header.framed == (case.options.get("driver") == "COG")


@pytest.mark.parametrize(
    "profile",
    [
        {"crs": "EPSG:32631", "transform": ORIGIN},
        {"crs": "EPSG:4326", "transform": Affine(0.1, 0, -180, 0, -0.1, 90)},
        {"crs": "EPSG:3035", "transform": ORIGIN},
        {"crs": "EPSG:3857", "transform": Affine(1.25, 0, 0.1, 0, -2.5, 0.3)},
        {
            "crs": "EPSG:27700",
            "transform": Affine(19.99296690111639, 0, 289813.58026064973, 0, -19.99, 95714.02472178134),
        },
        {"crs": LAEA, "transform": ORIGIN},
        {"crs": "EPSG:32631", "transform": ORIGIN * Affine.rotation(30)},
        {"crs": "EPSG:32631", "transform": Affine(10, 0, 0, 0, 10, 0)},
        {"transform": ORIGIN},
        {"crs": "EPSG:32631", "transform": ORIGIN, "endianness": "big"},
        {"crs": "EPSG:32631", "transform": ORIGIN, "bigtiff": "yes", "endianness": "big"},
    ],
    ids=[
        "utm",
        "geographic",
        "laea",
        "mercator",
        "odd",
        "custom",
        "rotated",
        "south up",
        "no crs",
        "big",
        "bigtiff big",
    ],
)
@pytest.mark.parametrize("point", [False, True], ids=["area", "point"])
def test_georeference_is_exactly_that_of_gdal(profile, point, tmp_path):
    path = georeferenced(tmp_path / "x.tif", **profile)
    if point:
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(AREA_OR_POINT="Point")
    agrees_with_rasterio(path)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_no_georeference(tmp_path):
    header = agrees_with_rasterio(georeferenced(tmp_path / "x.tif"))
    assert header.geobox.crs is None
    crs_only = georeferenced(tmp_path / "y.tif", crs="EPSG:32631")
    assert agrees_with_rasterio(crs_only).geobox.crs == "EPSG:32631"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_files_beside_a_file(tmp_path):
    path = georeferenced(tmp_path / "world.tif")
    (tmp_path / "world.tfw").write_text("10\n0\n0\n-10\n300005\n4900015\n")
    assert agrees_with_rasterio(path).geobox.transform == ORIGIN
    path = georeferenced(tmp_path / "aux.tif")
    (tmp_path / "aux.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>1,2,0,3,0,-4</GeoTransform>"
        '<PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    header = agrees_with_rasterio(path)
    assert (header.nodata, header.geobox.crs) == (7, "EPSG:32633")
    (tmp_path / "aux.tif.aux.xml").write_text("<PAMDataset><Metadata/></PAMDataset>")
    assert agrees_with_rasterio(path).nodata is None


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("uint8", "0"), ("uint8", "255"), ("uint8", "256"), ("uint8", "-1"), ("uint8", "nan"), ("uint8", "3.5"),
        ("uint8", " 7 "), ("uint8", "none"), ("uint8", ""), ("int16", "-9999"), ("int16", "-99999"), ("int8", "-128"),
        ("uint16", "65535"), ("float32", "nan"), ("float32", "-3.4028234663852886e+38"), ("float32", "1e300"),
        ("float32", "-inf"), ("float64", "1e300"), ("int32", "-2147483648"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_nodata_as_gdal_reads_it(dtype, text, tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((4, 4), dtype), extratags=[(42113, "s", 0, text, True)])
    if text in ("none", ""):  # GDAL takes what is no number for 0
        assert read_header(str(path)).nodata is None
    else:
        agrees_with_rasterio(path)


def test_names_of_bands(tmp_path):
    path = write_tif(tmp_path / "x.tif", np.ones((3, 9, 9), np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B02", None, "<B&08>")
        dataset.update_tags(1, note="x")
    assert agrees_with_rasterio(path).descriptions == ("B02", None, "<B&08>")


def test_overviews_are_ordered_from_fine_to_coarse(tmp_path):
    path = write_tif(tmp_path / "x.tif", np.ones((1, 301, 277), np.uint8), overviews=(8, 2, 4))
    header = read_header(path)
    assert [level.shape for level in header.levels] == [(301, 277), (151, 139), (76, 70), (38, 35)]


@pytest.mark.parametrize("options", [{}, {"nbits": 12}], ids=["tiles", "gdal"])
def test_pixels_of_overviews_in_any_order(options, tmp_path):
    array = np.random.default_rng(0).integers(0, 4000, (1, 304, 280), np.uint16)
    path = write_tif(tmp_path / "T31TCJ_20230601T104629_B04.tif", array, overviews=(8, 2, 4), **options)
    assert bool(read_header(path).undecodable) == bool(options)
    for number, factor in enumerate((8, 2, 4)):
        with rasterio.open(path, overview_level=number) as dataset:
            expected = dataset.read()
        cube = s2c.open_cube([path], resolution=10 * factor)
        assert np.array_equal(cube.values[0], expected)


UNDECODABLE = [
    ("12 bits", {"dtype": "uint16", "nbits": 12, "compress": "deflate"}),
    ("half", {"dtype": "float32", "nbits": 16}),
    ("jxl or odd", {"dtype": "uint8", "compress": "ccittfax4", "nbits": 1}),
]


@pytest.mark.parametrize("options", [o for _, o in UNDECODABLE], ids=[n for n, _ in UNDECODABLE])
def test_what_only_gdal_can_read_says_why(options, tmp_path):
    path = str(tmp_path / "x.tif")
    options = {
        "driver": "GTiff",
        "width": 70,
        "height": 70,
        "count": 1,
        "crs": "EPSG:32631",
        "transform": ORIGIN,
        **options,
    }
    with rasterio.open(path, "w", **options) as dataset:
        dataset.write(np.ones((1, 70, 70), options["dtype"]))
    header = read_header(path)
    assert header.undecodable
    assert header.geobox.transform == ORIGIN


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
@pytest.mark.parametrize("driver", ["GTiff", "VRT"])
def test_complex_numbers_are_refused(dtype, driver, tmp_path):
    path = tmp_path / "x.tif"
    profile = {"driver": "GTiff", "width": 70, "height": 70, "count": 1, "crs": "EPSG:32631", "transform": ORIGIN}
    with rasterio.open(path, "w", dtype=dtype, **profile) as dataset:
        dataset.write(np.full((1, 70, 70), 3 - 4j, np.complex64))
    if driver == "VRT":
        copy_raster(path, tmp_path / "x.vrt", driver="VRT")
    with pytest.raises(SceneError, match=r"x\.(tif|vrt) has complex numbers.*amplitude"):
        read_header(str(path.with_suffix(".vrt") if driver == "VRT" else path))


@pytest.mark.parametrize("options", [{}, {"crs": "EPSG:3035", "resolution": 10}], ids=["own grid", "warped"])
def test_bands_of_different_types_have_one_that_holds_them_all(options, tmp_path):
    arrays = [pixels(dtype, 1)[0] for dtype in ("uint8", "int16", "float32")]
    paths = [
        write_tif(tmp_path / f"{array.dtype}_20230601.tif", np.nan_to_num(array, posinf=4, neginf=5))
        for array in arrays
    ]
    bands = "".join(
        f'<VRTRasterBand dataType="{name}" band="{i + 1}"><SimpleSource><SourceFilename relativeToVRT="0">{path}'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for i, (name, path) in enumerate(zip(("Byte", "Int16", "Float32"), paths, strict=True))
    )
    place = "<SRS>EPSG:32631</SRS><GeoTransform>300000, 10, 0, 4900020, 0, -10</GeoTransform>"
    vrt = tmp_path / "mixed_20230601.vrt"
    vrt.write_text(f'<VRTDataset rasterXSize="217" rasterYSize="150">{place}{bands}</VRTDataset>')
    cube = s2c.open_cube([vrt], **options)
    assert cube.dtype == np.float32
    alone = [s2c.open_cube([path], engine="gdal", **options).values[0, 0].astype(np.float32) for path in paths]
    covered = ~np.isnan(alone[2])  # outside of floats is NaN, of integers 0
    for values, expected in zip(cube.values[0], alone, strict=True):
        assert np.array_equal(values, np.where(covered, expected, np.nan), equal_nan=True)


def test_ycbcr_without_jpeg_is_left_to_gdal(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="ycbcr", compression="lzw", tile=(32, 32))
    assert "YCBCR" in read_header(str(path)).undecodable


def test_other_formats_are_left_to_gdal(imagery):
    for path in sorted((imagery / "single_scenes").glob("*.jp2")):
        header = read_header(str(path))
        with rasterio.open(path) as dataset:
            assert header.geobox.transform == dataset.transform
            assert header.geobox.crs == CRS(dataset.crs.to_wkt())
            assert (header.bands, header.dtype) == (dataset.count, np.dtype(dataset.dtypes[0]))
            assert len(header.levels) == 1 + len(dataset.overviews(1))
        assert "JP2" in header.undecodable
        assert pickle.loads(pickle.dumps(header)) == header


@pytest.mark.slow
def test_slow_imagery(imagery):
    paths = sorted(imagery.glob("*/*.tif"))
    assert len(paths) > 100
    for path in paths:
        assert not agrees_with_rasterio(path).undecodable


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"I", "not a TIFF"),
        (b"hello, this is a text", "not a TIFF"),
        (b"II*\0", "truncated or damaged"),
        (b"II*\0\x08\0\0\0", "truncated or damaged"),
        (b"II*\0\0\0\0\0", "not a TIFF"),
        (b"MM\0*\xff\xff\xff\xff", "truncated or damaged"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 8, "truncated or damaged"),
        (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "truncated or damaged"),
    ],
)
def test_no_raster(content, says, tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes(content)
    with pytest.raises(SceneError, match=says) as caught:
        read_header(str(path))
    assert "scene.tif" in str(caught.value)


def test_missing_and_directories(tmp_path):
    for path in (tmp_path / "none.tif", tmp_path):
        with pytest.raises(SceneError) as caught:
            read_header(str(path))
        assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_denied(tmp_path):
    path = write_tif(tmp_path / "x.tif", np.ones((9, 9), np.uint8))
    Path(path).chmod(0)
    with pytest.raises(SceneError, match="Permission denied"):
        read_header(path)


@pytest.fixture(scope="module")
def cog(tmp_path_factory):
    case = next(c for c in LOSSLESS if c.name == "cog")
    return Path(make(case, tmp_path_factory.mktemp("cog")))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_never_opened(cog, scratch, part):
    path = scratch / "cut.tif"
    content = cog.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(SceneError, match=r"cut\.tif"):
        read_header(str(path))


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_damaged_header_gives_our_error_or_a_header(cog, scratch, changes):
    damaged = bytearray(cog.read_bytes())
    for place, value in changes:
        damaged[place] = value
    path = scratch / "damaged.tif"
    path.write_bytes(damaged)
    try:
        header = read_header(str(path))
    except S2CompositeError as error:
        message = str(error)
    else:
        message = header.href
        assert min(header.levels[0].shape) > 0
    assert "damaged.tif" in message


def granule(path, noise):
    """Make a file with the header of a full granule of 10980 x 10980 x 3, 512 blocks, whose tiles hold nothing."""
    level = [(10980, 484), (5490, 121), (2745, 36), (1373, 9), (687, 4)]
    start = 8192
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 8))
        at = 8
        for i, (size, tiles) in enumerate(level):
            counts = noise.integers(20_000, 200_000, tiles, np.uint32)
            offsets = start + np.concatenate([[0], np.cumsum(counts + 8)[:-1]]).astype(np.uint32)
            start += int((counts + 8).sum())
            tags = [
                (254, 4, 1, int(i > 0)), (256, 4, 1, size), (257, 4, 1, size), (258, 3, 1, 8), (259, 3, 1, 7),
                (262, 3, 1, 6), (277, 3, 1, 3), (322, 3, 1, 512), (323, 3, 1, 512), (324, 4, tiles, None), (325, 4, tiles, None),
            ]  # fmt: skip
            data = at + 2 + 12 * len(tags) + 4
            table = struct.pack("<H", len(tags))
            for tag, kind, count, value in tags:
                where = data if tag == 324 else data + 4 * tiles
                table += struct.pack("<HHII", tag, kind, count, where if value is None else value)
            at = data + 8 * tiles
            table += struct.pack("<I", at if i + 1 < len(level) else 0)
            file.write(table + offsets.astype("<u4").tobytes() + counts.astype("<u4").tobytes())
        file.truncate(start)


def test_a_year_of_a_granule_travels_in_less_than_a_megabyte(tmp_path):
    noise = np.random.default_rng(0)
    for i in range(216):
        granule(tmp_path / f"{i}.tif", noise)
    headers = [read_header(str(tmp_path / f"{i}.tif")) for i in range(216)]
    travelling = pickle.dumps(headers)
    assert len(travelling) < 800_000
    for before, after in zip(headers, pickle.loads(travelling), strict=True):
        assert before == after
        for level, copy in zip(before.levels, after.levels, strict=True):
            assert (level.shape, level.block, level.coding, level.tiled) == (
                copy.shape,
                copy.block,
                copy.coding,
                copy.tiled,
            )
            assert (level.offsets == copy.offsets).all()
            assert (level.counts == copy.counts).all()


def equal(header, other):
    fields = ("href", "identity", "geobox", "bands", "dtype", "descriptions", "undecodable", "framed")
    assert all(getattr(header, name) == getattr(other, name) for name in fields)
    assert header.nodata == other.nodata or np.isnan([header.nodata, other.nodata]).all()
    assert (header.mask is None) == (other.mask is None)
    for a, b in zip(header.levels, other.levels, strict=True):
        assert (a.shape, a.block, a.tiled, a.coding) == (b.shape, b.block, b.tiled, b.coding)
        assert (a.offsets == b.offsets).all()
        assert (a.counts == b.counts).all()
    if header.mask:
        equal(header.mask, other.mask)


@pytest.mark.parametrize("case", SPECIAL + JPEG, ids=lambda c: c.name)
def test_headers_survive_pickle_and_index(case, tmp_path):
    header = read_header(make(case, tmp_path))
    equal(header, pickle.loads(pickle.dumps(header)))
    save_index([header], tmp_path / "index")
    equal(header, load_index(tmp_path / "index", [header.href])[header.href])


def test_an_index_holds_what_is_unchanged(tmp_path):
    paths = series(tmp_path, 4)
    index = tmp_path / "scenes.index"
    assert load_index(index, paths) == {}
    first = [read_header(path) for path in paths]
    save_index(first, index)
    assert [p.name for p in tmp_path.iterdir() if "index" in p.name] == ["scenes.index"]
    assert set(load_index(index, paths)) == set(paths)
    assert load_index(index, paths[:1]) == {paths[0]: first[0]}
    os.utime(paths[1], (1, 1))
    Path(paths[2]).unlink()
    shutil.copy(paths[0], tmp_path / "copy")
    (tmp_path / "copy").replace(paths[3])
    assert set(load_index(index, paths)) == {paths[0]}
    save_index([*load_index(index, paths).values(), read_header(paths[1])], index)
    assert set(load_index(index, paths)) == {paths[0], paths[1]}


@given(damage=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_a_damaged_index_is_no_index(scratch, damage, value):
    path = write_tif(scratch / "one.tif", np.ones((64, 64), np.uint8))
    header = read_header(path)
    save_index([header], scratch / "index")
    content = bytearray((scratch / "index").read_bytes())
    content[damage % len(content)] = value
    (scratch / "index").write_bytes(content)
    assert load_index(scratch / "index", [path]) in ({}, {path: header})


@pytest.mark.parametrize("form", ["tags", "sidecar", "vrt"])
def test_scale_offset_and_unit_of_each_band_are_those_of_gdal(tmp_path, form):
    path = write_tif(tmp_path / "a.tif", np.ones((3, 64, 64), np.int16))
    if form == "tags":
        with rasterio.open(path, "r+") as dataset:
            dataset.scales, dataset.offsets, dataset.units = (
                (1e-4, 0.00341802, 1.0),
                (-0.1, 149.0, 0.0),
                ("", "K", "m&"),
            )
    else:
        bands = "".join(
            f"<PAMRasterBand band='{b}'><UnitType>{u}</UnitType><Offset>{o}</Offset><Scale>{s}</Scale></PAMRasterBand>"
            for b, s, o, u in ((1, 1e-4, -0.1, ""), (2, 0.00341802, 149, "K"), (3, 1, 0, "m&amp;"))
        )
        (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    if form == "vrt":
        copy_raster(path, tmp_path / "a.vrt", driver="VRT")
        path = str(tmp_path / "a.vrt")
    with rasterio.open(path) as dataset:
        expected = list(zip(dataset.scales, dataset.offsets, (u or None for u in dataset.units), strict=True))
    assert expected[1] == (0.00341802, 149.0, "K")
    header = read_header(path)
    assert [(s.scale, s.offset, s.unit) for s in header.scaling] == expected
    save_index([header], tmp_path / "index")
    assert load_index(tmp_path / "index", [path])[path].scaling == header.scaling


@pytest.mark.parametrize("text", ["nan", "inf", "0", "", "two"])
def test_a_scale_that_is_no_number_says_nothing(tmp_path, text):
    path = write_tif(tmp_path / "a.tif", np.ones((64, 64), np.int16))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (3.25,)
    Path(path).write_bytes(Path(path).read_bytes().replace(b">3.25<", f">{text:>4}<".encode(), 1))
    assert read_header(path).scaling in ((), (None,))
