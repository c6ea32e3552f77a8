"""Tiles that separate workers have written become one file, or an error says what is missing or does not fit."""

import random
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo import cog_validate

import s2composite as s2c
from s2composite.errors import ParameterError, ReadError, SourceError, TilesError, WriteError
from s2composite.writing.mosaic import reconstruct
from support.storage_servers import CREDENTIALS, gcs_server, s3_server
from support.writing_helpers import UTM, pixels

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),  # aiohttp's opinion of gcsfs
]


def write_tile(path, values, x, y, *, crs="EPSG:32631", transform=UTM, **options):
    """Write one window of `values` as the original workers do."""
    profile = {"driver": "GTiff", "count": len(values), "dtype": values.dtype, "crs": crs, "nodata": 0}
    if transform is not None:
        profile["transform"] = transform * Affine.translation(x, y)
    profile |= {"height": values.shape[1], "width": values.shape[2]} | options
    with rasterio.open(path, "w", **profile) as out:
        out.write(values)


def cut(folder, values, size=256, **options):
    """Write the tiles of `values`, x outer and y inner, those at the edge cropped; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for x in range(0, values.shape[2], size):
        for y in range(0, values.shape[1], size):
            paths.append(folder / f"tile_{x}_{y}.tif")
            write_tile(paths[-1], values[:, y : y + size, x : x + size], x, y, **options)
    return paths


@pytest.fixture
def tiles(tmp_path):
    values = pixels((3, 700, 900))
    return cut(tmp_path / "tiles", values), values


def read(path):
    with rasterio.open(path) as source:
        return source.read()


@pytest.mark.parametrize("given", ["list", "directory", "glob", "strings"])
def test_tiles_become_one_file(tmp_path, tiles, given):
    paths, values = tiles
    folder = paths[0].parent
    (folder / "notes.txt").write_text("no tile")
    given = {"list": paths[::-1], "directory": folder, "glob": f"{folder}/tile_*.tif", "strings": map(str, paths)}[
        given
    ]
    out = s2c.reconstruct(given, tmp_path / "median.tif", blocksize=128)
    assert out == str(tmp_path / "median.tif")
    with rasterio.open(out) as source:
        assert np.array_equal(source.read(), values)
        assert source.transform == UTM
        assert source.crs.to_epsg() == 32631
        assert source.nodata == 0
        assert source.tags()["TILES"] == "12"
    assert cog_validate(out, strict=True, quiet=True)[0]


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("georeferenced", [True, False])
def test_names_or_georeference_say_where(tmp_path, tiles, names, georeferenced):
    paths, values = tiles
    if not georeferenced:
        paths = cut(tmp_path / "plain", values, crs=None, transform=None)
    if not names:
        paths = [path.rename(path.with_name(f"{i}.tif")) for i, path in enumerate(random.Random(1).sample(paths, 12))]
    if not names and not georeferenced:
        with pytest.raises(TilesError, match=r"0\.tif: neither its name .* nor its georeference say where it is"):
            reconstruct(paths, tmp_path / "out.tif")
        return
    out = reconstruct(paths, tmp_path / "out.tif", blocksize=64)
    assert np.array_equal(read(out), values)


def test_the_seeds_own_tiles(tmp_path):
    """Written as the original worker writes them: GDAL's COG driver, JPEG, YCbCr."""
    y, x = np.mgrid[:600, :700]
    values = np.stack([(x + y) % 200 + 20, (x * 2 + y) % 100 + 90, y % 150 + 30]).astype("uint8")
    options = {"driver": "COG", "compress": "JPEG", "quality": 90, "blocksize": 256, "nodata": None}
    paths = cut(tmp_path / "tiles", values, 512, **options)
    with rasterio.open(paths[0]) as first:
        assert first.photometric.name == "ycbcr"
    out = reconstruct(tmp_path / "tiles", tmp_path / "out.tif", blocksize=256)
    want = np.concatenate(
        [np.concatenate([read(tmp_path / "tiles" / f"tile_{x}_{y}.tif") for y in (0, 512)], axis=1) for x in (0, 512)],
        axis=2,
    )
    assert np.array_equal(read(out), want)


def test_tiles_of_different_sizes(tmp_path):
    values = pixels((2, 300, 400), "uint16")
    folder = tmp_path / "tiles"
    folder.mkdir()
    for i, (y, x) in enumerate(
        [((0, 100), (0, 400)), ((100, 300), (0, 150)), ((100, 180), (150, 400)), ((180, 300), (150, 400))]
    ):
        write_tile(folder / f"{i}.tif", values[:, slice(*y), slice(*x)], x[0], y[0])
    out = reconstruct(folder, tmp_path / "out.tif", blocksize=64)
    assert np.array_equal(read(out), values)


def test_on_a_cluster_memory_holds_a_few_tiles(tmp_path, tiles, client_of_test):
    paths, values = tiles
    out = reconstruct(paths, tmp_path / "out.tif", blocksize=128)
    assert np.array_equal(read(out), values)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3", "gs"])
def test_tiles_in_an_object_store(tmp_path, store):
    values = pixels((3, 300, 300))
    paths = cut(tmp_path / "tiles", values, 128)
    running, more = (s3_server(), CREDENTIALS) if store == "s3" else (gcs_server(), {})
    with running as server, server.selected(**more):
        for path in paths:
            server.put(f"bucket/results/{path.name}", path.read_bytes())
        prefix = server.url("bucket/results")
        out = reconstruct(f"{prefix}/", tmp_path / "one.tif", blocksize=64)
        again = reconstruct(f"{prefix}/tile_*.tif", tmp_path / "two.tif", blocksize=64)
        assert np.array_equal(read(out), values)
        assert Path(out).read_bytes() == Path(again).read_bytes()
        with pytest.raises(SourceError, match=r"does not exist|no tiles"):
            reconstruct(f"{prefix}/elsewhere/", tmp_path / "three.tif")


# --- what is not whole ---------------------------------------------------------------------------------------------------


def test_missing_tiles_are_listed_by_name(tmp_path, tiles):
    paths, _ = tiles
    for name in ("tile_0_0.tif", "tile_512_256.tif", "tile_512_512.tif"):
        (paths[0].parent / name).unlink()
    with pytest.raises(TilesError, match=r"3 tile\(s\) are missing besides the 9 found") as caught:
        reconstruct(paths[0].parent, tmp_path / "out.tif")
    assert sorted(caught.value.missing) == ["tile_0_0.tif", "tile_512_256.tif", "tile_512_512.tif"]
    assert not (tmp_path / "out.tif").exists()


def test_the_last_column_is_missed_where_the_shape_is_known(tmp_path, tiles):
    paths, values = tiles
    left = [path for path in paths if not path.name.startswith("tile_768")]
    out = reconstruct(left, tmp_path / "cut.tif", blocksize=64)
    assert np.array_equal(read(out), values[:, :, :768])
    with pytest.raises(TilesError) as caught:
        reconstruct(left, tmp_path / "out.tif", shape=(700, 900))
    assert sorted(caught.value.missing) == ["tile_768_0.tif", "tile_768_256.tif", "tile_768_512.tif"]
    assert np.array_equal(read(reconstruct(paths, tmp_path / "all.tif", shape=(700, 900))), values)
    with pytest.raises(TilesError, match="reaches beyond the 600 x 900 pixels of the whole"):
        reconstruct(paths, tmp_path / "out.tif", shape=(600, 900))


def test_missing_windows_of_tiles_without_names(tmp_path, tiles):
    paths, _ = tiles
    renamed = [path.rename(path.with_name(path.name.replace("tile", "part"))) for path in paths]
    with pytest.raises(TilesError, match=r"missing besides the 11 found: y 256:512, x 256:512") as caught:
        reconstruct([path for path in renamed if "256_256" not in path.name], tmp_path / "out.tif")
    assert caught.value.missing == ("y 256:512, x 256:512",)


def test_a_long_list_is_cut_in_the_message_only(tmp_path):
    paths = cut(tmp_path / "tiles", pixels((1, 640, 640)), 64)
    with pytest.raises(TilesError, match="and 78 more") as caught:
        reconstruct([paths[0], paths[-1]], tmp_path / "out.tif")
    assert len(caught.value.missing) == 98


def test_tiles_that_overlap(tmp_path, tiles):
    paths, values = tiles
    write_tile(paths[0].parent / "again.tif", values[:, 300:400, 300:400], 300, 300)
    with pytest.raises(TilesError, match=r"again\.tif.* and .*tile_256_256\.tif overlap|tile_256_256.*again") as caught:
        reconstruct(paths[0].parent, tmp_path / "out.tif")
    assert len(caught.value.overlapping) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "uint16"}, "its dtype is uint16, but uint8 for most tiles"),
        ({"crs": "EPSG:32632"}, "its CRS is WGS 84 / UTM zone 32N, but WGS 84 / UTM zone 31N for most tiles"),
        ({"nodata": 255}, r"its nodata value is 255\.0, but 0\.0 for most tiles"),
        ({"count": 2}, "its number of bands is 2, but 3 for most tiles"),
        ({"transform": UTM * Affine.translation(256, 256) * Affine.scale(2)}, "its size of pixels is"),
        ({"transform": UTM * Affine.translation(256.3, 256)}, "lies between the pixels of the others"),
        ({"transform": UTM * Affine.translation(0, 256)}, "its name and its georeference say different places"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_tiles_unlike_the_others(tmp_path, tiles, change, says):
    paths, values = tiles
    odd = next(path for path in paths if path.name == "tile_256_256.tif")
    part = values[: change.get("count", 3), 256:512, 256:512].astype(change.get("dtype", "uint8"))
    write_tile(odd, part, 256, 256, **change)
    with pytest.raises(TilesError, match=rf"tile_256_256\.tif: {says}"):
        reconstruct(paths, tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


def test_a_mask_would_be_lost(tmp_path):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = tmp_path / "tile_0_0.tif"
        write_tile(path, pixels((1, 64, 64)), 0, 0, nodata=None)
        with rasterio.open(path, "r+") as out:
            out.write_mask(np.eye(64, dtype=bool))
    with pytest.raises(TilesError, match="has a mask beside its pixels"):
        reconstruct([path], tmp_path / "out.tif")


def test_a_tile_that_is_broken(tmp_path, tiles):
    paths, _ = tiles
    data = paths[3].read_bytes()
    paths[3].write_bytes(data[: len(data) // 2])
    with pytest.raises(ReadError, match=paths[3].name):
        reconstruct(paths, tmp_path / "out.tif")
    paths[3].write_bytes(b"not a tiff")
    with pytest.raises(ReadError, match=paths[3].name):
        reconstruct(paths, tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


def test_no_tiles_and_wrong_places(tmp_path, tiles):
    paths, _ = tiles
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "missing", [], f"{tmp_path}/tile_*.tif"):
        with pytest.raises(SourceError, match=r"no tiles|does not exist"):
            reconstruct(source, tmp_path / "out.tif")
    with pytest.raises(WriteError, match="exists already"):
        reconstruct(paths, paths[0])
    with pytest.raises(ParameterError, match="compress is 'gzip'"):
        reconstruct(paths, tmp_path / "out.tif", compress="gzip")


def test_nothing_warns_about_tiles_without_a_place(tmp_path, recwarn):
    paths = cut(tmp_path / "tiles", pixels((1, 100, 100)), 64, crs=None, transform=None)
    recwarn.clear()
    with pytest.raises(TilesError):
        reconstruct(paths[1:], tmp_path / "out.tif")
    assert not [w for w in recwarn if issubclass(w.category, NotGeoreferencedWarning)]
