"""A catalogue of a country: opened in seconds, with headers read and checked by the tasks."""

import pickle
from time import process_time

import cloudpickle
import numpy as np
import pytest
from affine import Affine

import s2composite as s2c
from s2composite.cube.open import stack_of
from s2composite.errors import AccessError, ParameterError, ReadError, SceneError
from s2composite.geotiff.header import read_header
from s2composite.reading import headers as opening
from s2composite.storage.urls import Access
from support.rasters import ORIGIN, encoded, write_tif
from support.stac_items import item_of

LETTERS = "ABCDEFGHJK"


def country(sample, granules=(10, 10), dates=100):
    """Return items of a country; only files of the first date of each granule exist."""
    items = []
    for row in range(granules[0]):
        for column in range(granules[1]):
            granule = f"31T{LETTERS[column]}{LETTERS[row]}"
            for date in range(dates):
                item = {**sample, "id": f"S2A_{granule}_{date:03d}"}
                item["properties"] = {
                    **sample["properties"],
                    "datetime": f"2023-{1 + date // 28 % 12:02d}-{1 + date % 28:02d}T10:46:{column:02d}Z",
                    "grid:code": f"MGRS-{granule}",
                    "proj:epsg": 32631,
                }
                item["bbox"] = [column, 44 - row, column + 1.1, 45.1 - row]
                item["assets"] = {
                    key: {
                        **asset,
                        "href": f"/nowhere/{granule}/{date}/{key}.tif" if date or row or column else asset["href"],
                        "proj:transform": [10, 0, 300000 + 900 * column, 0, -10, 4900020 - 900 * row],
                    }
                    for key, asset in sample["assets"].items()
                }
                items.append(item)
    return items


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    assets = {key: write_tif(folder / f"{key}.tif", encoded(0, 1, 100, 100)[0], nodata=0) for key in ("red", "nir")}
    return item_of("x", "2023-01-01T00:00:00Z", assets)


@pytest.mark.slow
def test_ten_thousand_scenes_open_in_seconds(sample):
    items = country(sample)
    assert len(items) == 10_000
    start = process_time()
    cube = s2c.open_cube(items, bands=["red", "nir"])
    opened = process_time() - start
    assert cube.sizes["time"] == 10_000
    assert cube.shape[2:] == (910, 910), "granules of 1000 m that lie 900 m apart"
    assert opened < 25
    start = process_time()
    stack, _ = stack_of(cube)
    touching = stack.touching((slice(0, 50), slice(0, 50)))
    assert len(touching) == 100
    assert stack.depth == 400, "four granules meet in a corner"
    assert process_time() - start < 8
    assert len(cloudpickle.dumps(stack)) < 12 << 20


def promised(tmp_path, change=None):
    tmp_path.mkdir(exist_ok=True)
    items = []
    for i in range(4):
        pixels = encoded(i, 1, 100, 100)[0]
        options = {"nodata": 0, **(change or {} if i == 2 else {})}
        if options.pop("half", None):
            pixels = pixels[:50]
        if options.pop("wide", None):
            pixels = pixels.astype(np.uint16)
        path = write_tif(tmp_path / f"{i}.tif", pixels, **options)
        item = item_of(f"S2A_31TCJ_2023010{i + 1}", f"2023-01-0{i + 1}T10:00:00Z", {"red": path})
        item["assets"]["red"] |= {"proj:epsg": 32631, "proj:shape": [100, 100], "proj:transform": list(ORIGIN)}
        item["assets"]["red"]["raster:bands"] = [{"data_type": "uint8", "nodata": 0}]
        items.append(item)
    return items


def test_lazy_headers_give_the_same_pixels(tmp_path):
    items = promised(tmp_path)
    lazy = s2c.open_cube(items, bands=["red"], headers="lazy", chunks=64)
    read = s2c.open_cube(items, bands=["red"], headers="read", chunks=64)
    assert lazy.chunks == read.chunks
    np.testing.assert_array_equal(lazy.values, read.values)
    np.testing.assert_array_equal(pickle.loads(cloudpickle.dumps(lazy)).values, read.values)
    warped = [
        s2c.open_cube(items, bands=["red"], headers=h, crs="EPSG:3035", resolution=10).values for h in ("lazy", "read")
    ]
    np.testing.assert_array_equal(*warped)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"half": True}, "its grid and overviews differ"),
        ({"wide": True}, "its dtype differ"),
        ({"crs": "EPSG:32632"}, "its grid differ"),
        ({"transform": ORIGIN @ Affine.translation(1, 0)}, "its grid differ"),
    ],
)
def test_lazy_headers_are_checked_against_the_catalogue(tmp_path, change, words):
    items = promised(tmp_path, change)
    with pytest.raises(ReadError, match=rf"scene S2A_31TCJ_20230103.*2\.tif: {words}.*headers='read'"):
        s2c.open_cube(items, bands=["red"], headers="lazy").compute()
    comp = s2c.composite(s2c.open_cube(items, bands=["red"], headers="lazy", on_error="skip"), "median").compute()
    assert comp["read_status"].values.ravel().tolist() == [0, 0, 2, 0]


def test_a_file_that_is_missing_is_named_when_it_is_read(tmp_path):
    items = promised(tmp_path)
    (tmp_path / "3.tif").unlink()
    cube = s2c.open_cube(items, bands=["red"], headers="lazy")
    with pytest.raises(ReadError, match=r"scene S2A_31TCJ_20230104.*3\.tif"):
        cube.compute()
    with pytest.raises(SceneError, match=r"3\.tif"):
        s2c.open_cube(items, bands=["red"], headers="read")
    items = promised(tmp_path)
    del items[1]["assets"]["red"]["proj:transform"]
    with pytest.raises(ParameterError, match=r"headers='lazy' needs the projection extension, and .*1\.tif has none"):
        s2c.open_cube(items, bands=["red"], headers="lazy")
    assert s2c.open_cube(items, bands=["red"]).sizes["time"] == 4


def test_an_undecodable_file_among_promised_ones_is_read_by_gdal(tmp_path):
    items = promised(tmp_path, {"nbits": 7})
    lazy = s2c.open_cube(items, bands=["red"], headers="lazy").values
    np.testing.assert_array_equal(lazy, s2c.open_cube(items, bands=["red"], headers="read").values)


def test_lazy_headers_with_an_index(tmp_path, monkeypatch):
    items, index = promised(tmp_path / "data"), tmp_path / "index"
    asked = []
    monkeypatch.setattr(opening, "read_header", lambda href, sign: asked.append(href) or read_header(href, sign))
    expected = s2c.open_cube(items, bands=["red"], headers="read").values
    asked.clear()
    first = s2c.open_cube(items, bands=["red"], headers="lazy", index=index)
    assert len(asked) == 1, "one of a kind"
    np.testing.assert_array_equal(first.values, expected)
    asked.clear()
    s2c.open_cube(items, bands=["red"], headers="lazy", index=index)
    assert not asked, "that one is kept"
    s2c.open_cube(items, bands=["red"], headers="read", index=index)
    assert len(asked) == 3, "the others are added"
    monkeypatch.setattr("s2composite.reading.headers.read_identity", lambda *_: pytest.fail("no file is looked at"))
    known = s2c.open_cube(items, bands=["red"], headers="lazy", index=index)
    np.testing.assert_array_equal(known.values, expected)
    promised(tmp_path / "data", {"half": True})
    with pytest.raises(ReadError, match="changed since its header was read"):
        s2c.open_cube(items, bands=["red"], headers="lazy", index=index).compute()


def test_index_does_not_bypass_access_limits(tmp_path, monkeypatch):
    items, index = promised(tmp_path / "data"), tmp_path / "index"
    s2c.open_cube(items, bands=["red"], headers="read", index=index)
    monkeypatch.setenv("S2COMPOSITE_ACCESS", Access(read=(str(tmp_path / "other"),)).to_json())
    for headers in ("lazy", "read"):
        with pytest.raises(AccessError):
            s2c.open_cube(items, bands=["red"], headers=headers, index=index)
