"""Sentinel-2 products in Zarr as scenes: what is in them, wherever they are, and whatever points to them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import s2composite as s2c
from s2composite.errors import BandError, ReadError, SceneError, SourceError
from s2composite.scenes.stac import item_of_store
from s2composite.storage.urls import Access
from support.http_faults import fault_server
from support.storage_servers import BUCKETS
from support.zarr_products import BANDS, DAYS, PLACES, consolidate, eopf, geozarr, name_of, pixels_of

SIDE = 60
R10M = "measurements/reflectance/r10m"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    directory = tmp_path_factory.mktemp("eopf")
    return [str(eopf(directory, day, SIDE, chunk=20)) for day in DAYS]


@pytest.fixture(scope="module")
def red():
    """The numbers of B04 without ESA's offset."""
    return np.stack([shifted(pixels_of(day, SIDE)["b04"]) for day in DAYS])


def shifted(numbers):
    return np.where(numbers == 0, 0, np.maximum(numbers.astype(int) - 1000, 1)).astype("u2")


def read(source, bands=("B04",), **options):
    return s2c.open_cube(source, bands=bands and list(bands), **options).values[:, 0]


# --- what a product says --------------------------------------------------------------------------------------------


def test_a_product_says_what_it_is(stores):
    (scene,) = s2c.find_scenes(stores[0])
    assert scene.id == name_of(1)
    assert (scene.granule, scene.orbit, scene.baseline, scene.platform) == ("32TQM", 122, "05.11", "S2A")
    assert f"{scene.time:%Y-%m-%dT%H:%M:%S}" == "2025-10-01T10:00:41"
    assert {asset.name for asset in scene.assets} == {"B02", "B03", "B04", "B08", "B11", "SCL", "CLD", "SNW"}
    assert scene.asset("B04").values.shift == -1000


def test_a_product_that_says_nothing_goes_by_its_name(tmp_path):
    (scene,) = s2c.find_scenes(str(geozarr(tmp_path, 4, SIDE)))
    assert (scene.id, scene.granule, scene.baseline) == (name_of(4), "32TQM", "05.11")
    assert f"{scene.time:%Y-%m-%d}" == "2025-10-04"


def test_bands_are_measurements_not_the_masks_of_their_names(stores):
    """Detectors and quality flags have arrays b02, b03 ... of the same shape, and come first."""
    hrefs = {name: asset["href"] for name, asset in item_of_store(stores[0])["assets"].items()}
    for band in BANDS:
        assert hrefs[band.upper()] == f"{stores[0]}/{PLACES[band]}"
    # unless these are asked for
    mask = s2c.open_cube(f"{stores[0]}/quality/mask/r10m", bands=["b04"]).values
    assert (mask == 3).all()


@pytest.mark.parametrize(
    ("name", "array"),
    [("b04", "b04"), ("B04", "b04"), ("red", "b04"), ("nir", "b08"), ("b11", "b11"), ("swir16", "b11")],
)
def test_bands_by_every_name(name, array, stores):
    numbers = pixels_of(1, SIDE)[array]
    np.testing.assert_array_equal(read(stores[0], [name])[0], shifted(numbers))
    np.testing.assert_array_equal(read(stores[0], [name], harmonise=False)[0], numbers)
    values = read(stores[0], [name], reflectance=True)[0]
    np.testing.assert_allclose(values[numbers > 1000], numbers[numbers > 1000] * 1e-4 - 0.1, atol=1e-7)
    assert np.isnan(values[numbers == 0]).all()


@pytest.mark.parametrize("name", ["SCL", "scl", "CLD", "SNW"])
def test_masks_are_as_they_are(name, stores):
    np.testing.assert_array_equal(read(stores[0], [name])[0], pixels_of(1, SIDE)[name.lower()])


def test_masks_decide(stores):
    array, at = pixels_of(1, SIDE), s2c.open_cube(stores[:1], bands=["B04"])
    count = s2c.composite(at, valid=[s2c.Nodata(), s2c.CloudProbability(50)]).compute()["count"].values.squeeze()
    clear = np.repeat(np.repeat(array["cld"] <= 50, 2, 0), 2, 1) & (array["b04"] > 0)
    assert 0.2 < clear.mean() < 0.8
    np.testing.assert_array_equal(count > 0, clear)


def test_baselines(tmp_path):
    """The offset of a product is what its arrays say, of those that say none what its baseline does."""
    with_offset = eopf(tmp_path / "a", 1, SIDE)
    without = eopf(tmp_path / "b", 4, SIDE, baseline="02.14")
    for path in without.glob("measurements/**/.zattrs"):
        attributes = json.loads(path.read_text())
        if attributes.pop("add_offset", None) is not None:
            path.write_text(json.dumps({**attributes, "add_offset": 0.0}))
    consolidate(without)
    values = read([str(with_offset), str(without)])
    np.testing.assert_array_equal(values[0], shifted(pixels_of(1, SIDE)["b04"]))
    np.testing.assert_array_equal(values[1], pixels_of(4, SIDE)["b04"])
    assert [scene.baseline for scene in s2c.find_scenes([str(with_offset), str(without)])] == ["05.11", "02.14"]
    values = read([str(with_offset), str(without)], harmonise={name_of(1): -20.0, name_of(4, "02.14"): 0.0})
    numbers = pixels_of(1, SIDE)["b04"]
    np.testing.assert_array_equal(values[0], np.where(numbers == 0, 0, numbers - 20))


# --- where products are ---------------------------------------------------------------------------------------------


def test_sources(stores, red, tmp_path):
    directory = Path(stores[0]).parent
    for source in (directory, f"{directory}/*.zarr", stores, [Path(one) for one in stores], [f"{s}/" for s in stores]):
        np.testing.assert_array_equal(read(source), red)
    np.testing.assert_array_equal(read([f"{one}/{R10M}" for one in stores]), red)
    np.testing.assert_array_equal(read([f"{one}/{R10M}/b04" for one in stores], None), red)
    plain = tmp_path / name_of(DAYS[0])
    shutil.copytree(stores[0], plain)
    np.testing.assert_array_equal(read(plain), red[:1])
    assert len(s2c.find_scenes(str(directory), datetime="2025-10-04")) == 1


def test_stores_without_consolidated_metadata(red, tmp_path):
    store = eopf(tmp_path, DAYS[0], SIDE, consolidated=False)
    np.testing.assert_array_equal(read(store), red[:1])
    assert s2c.open_cube(geozarr(tmp_path, DAYS[1], SIDE, consolidated=False), bands=["red"]).dtype == np.float32
    with fault_server(tmp_path) as server, pytest.raises(SceneError, match="no consolidated metadata"):
        s2c.open_cube(server.url(store.name), bands=["B04"])


def test_over_http(stores, red):
    with fault_server(Path(stores[0]).parent) as server:
        urls = [server.url(Path(one).name) for one in stores]
        for source in (urls, [f"{url}/{R10M}/" for url in urls], [f"{url}?signature=a/b" for url in urls]):
            np.testing.assert_array_equal(read(source), red)


def test_what_a_server_refuses(stores, red):
    """Buckets that nobody may list answer 403 for what is not there, as for what is closed."""
    shut = {"zarr.json"}

    def fault(path, number):
        return "403" if Path(path).name in shut else None

    with fault_server(Path(stores[0]).parent, fault=fault) as server:
        url = server.url(Path(stores[0]).name)
        # the server of this test says 404 before it is asked
        (Path(stores[0]) / "zarr.json").touch()
        try:
            np.testing.assert_array_equal(read(url), red[:1])
            shut.add(".zmetadata")
            with pytest.raises(ReadError, match=r"zarr\.json: access is denied"):
                s2c.open_cube(url, bands=["B04"])
        finally:
            (Path(stores[0]) / "zarr.json").unlink()


@pytest.mark.parametrize("kind", BUCKETS)
def test_on_buckets(kind, stores, red, tmp_path):
    bare = eopf(tmp_path, DAYS[0], SIDE, consolidated=False)
    with kind() as server, server.selected():
        for one in [*stores, bare]:
            prefix = "bare" if one is bare else "products"
            for path in sorted(Path(one).rglob("*")):
                if path.is_file() and ("b04" in str(path) or path.name.startswith(".z")):
                    server.put_file(f"granule/{prefix}/{path.relative_to(Path(one).parent)}", path)
        np.testing.assert_array_equal(read(f"{server.scheme}://granule/products/"), red)
        np.testing.assert_array_equal(read(f"{server.scheme}://granule/products/*.zarr"), red)
        np.testing.assert_array_equal(read(f"{server.scheme}://granule/bare/{bare.name}"), red[:1])


# --- STAC -----------------------------------------------------------------------------------------------------------


def asset(href, *roles):
    return {"href": href, "type": "application/vnd+zarr", "roles": list(roles or ["data"])}


def item(store, day, assets):
    properties = {
        "datetime": f"2025-10-{day:02d}T10:00:41.024Z", "platform": "sentinel-2a", "constellation": "sentinel-2",
        "processing:version": "05.11", "proj:code": "EPSG:32632",
    }  # fmt: skip
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": Path(store).name.removesuffix(".zarr"), "geometry": None,
        "collection": "sentinel-2-l2a", "properties": properties, "links": [], "assets": assets,
    }  # fmt: skip


ASSETS = {
    "groups": lambda store: {
        "SR_10m": asset(f"{store}/{R10M}"),
        "SCL_20m": asset(f"{store}/conditions/mask/l2a_classification/r20m"),
        "zarr_metadata": {"href": f"{store}/.zmetadata", "type": "application/json", "roles": ["metadata"]},
        "thumbnail": {"href": f"{store}/quality/tci.png", "type": "image/png", "roles": ["thumbnail"]},
    },
    "bands": lambda store: {"B04_10m": asset(f"{store}/{PLACES['b04']}"), "SCL": asset(f"{store}/{PLACES['scl']}")},
    "the product": lambda store: {"product": asset(store, "data", "metadata")},
}


@pytest.mark.parametrize("kind", ASSETS)
@pytest.mark.parametrize("headers", ["read", "lazy"])
def test_items(kind, headers, stores, red):
    items = [item(store, day, ASSETS[kind](store)) for store, day in zip(stores, DAYS, strict=True)]
    np.testing.assert_array_equal(read(items, headers=headers), red)
    np.testing.assert_array_equal(read(items, ["SCL"], headers=headers)[1], pixels_of(DAYS[1], SIDE)["scl"])
    names = {one.name for one in s2c.find_scenes(items[0])[0].assets}
    assert names >= {"B04", "SCL"}
    assert ("CLD" in names) == (kind == "the product")


def test_an_item_beside_files(stores, red, tmp_path):
    """Items of one search may have Zarr or COG; those without Zarr are what they are."""
    content = item(stores[0], DAYS[0], ASSETS["groups"](os.path.relpath(stores[0], tmp_path)))
    (tmp_path / "item.json").write_text(json.dumps(content))
    np.testing.assert_array_equal(read(tmp_path / "item.json"), red[:1])


# --- what cannot be read --------------------------------------------------------------------------------------------


def test_what_is_not_there(stores, tmp_path):
    with pytest.raises(BandError, match=r"no band 'b05'; it has B02, B03"):
        s2c.open_cube(stores[0], bands=["b05"])
    with pytest.raises(SceneError, match="nothing holds no array"):
        s2c.open_cube(f"{stores[0]}/nothing", bands=["b04"])
    with pytest.raises((SceneError, SourceError), match=r"20251001T100041\.zarr"):
        s2c.open_cube(str(tmp_path / "T32TQM_20251001T100041.zarr"), bands=["b04"])


@pytest.mark.parametrize("broken", ["cut", "gone", "no grid", "scale"])
def test_a_store_that_cannot_be_opened_is_named_or_left_out(broken, stores, red, tmp_path):
    copies = [shutil.copytree(one, tmp_path / Path(one).name) for one in stores]
    metadata = copies[1] / ".zmetadata"
    content = json.loads(metadata.read_text())
    attributes = content["metadata"][f"{PLACES['b04']}/.zattrs"]
    if broken == "no grid":
        attributes["proj:shape"] = [5, 5]
    if broken == "scale":
        attributes["scale_factor"] = "NaN"
    metadata.write_text(json.dumps(content)[: 1000 if broken == "cut" else None])
    if broken == "gone":
        shutil.rmtree(copies[1])
    source = [str(one) for one in copies]
    with pytest.raises((SceneError, ReadError), match=copies[1].name):
        s2c.open_cube(source, bands=["B04"])
    cube = s2c.open_cube(source, bands=["B04"], on_error="skip")
    comp = s2c.composite(cube, reducer="latest").compute()
    assert comp["read_status"].values.reshape(3, -1).max(axis=1).tolist() == [0, 2, 0]
    expected = s2c.composite(s2c.open_cube([source[0], source[2]], bands=["B04"]), reducer="latest").compute()
    np.testing.assert_array_equal(comp["composite"], expected["composite"])


def test_a_damaged_chunk_loses_its_own_pixels(stores, red, tmp_path):
    copies = [shutil.copytree(one, tmp_path / Path(one).name) for one in stores]
    chunk = copies[1] / PLACES["b04"] / "1.1"
    chunk.write_bytes(chunk.read_bytes()[:-30])
    with pytest.raises(ReadError, match=r"b04/1\.1.*damaged"):
        read(tmp_path)
    values = read(tmp_path, on_error="skip")
    np.testing.assert_array_equal(values[[0, 2]], red[[0, 2]])
    (chunk.parent / "1.1").unlink()
    values = read(tmp_path)
    assert not values[1, 20:40, 20:40].any()
    values[1, 20:40, 20:40] = red[1, 20:40, 20:40]
    np.testing.assert_array_equal(values, red)


def test_assets_in_places_that_nobody_reads_do_not_matter(tmp_path, monkeypatch):
    """Catalogues have them beside rasters; only those that are asked for are opened."""
    assets = {
        "B04": {"href": str(tmp_path / "B04.tif"), "type": "image/tiff"},
        "cube": {"href": "abfs://container/cube.zarr", "type": "application/vnd+zarr"},
        "archive": {"href": "ftp://host/product.zip", "type": "application/zip"},
        "gone": {"href": str(tmp_path / "gone.zarr"), "type": "application/vnd+zarr"},
        "no URL": {"href": "file://[x/cube.zarr", "type": "application/vnd+zarr"},
    }
    item = {"type": "Feature", "id": "a", "properties": {"datetime": "2025-10-01T10:00:41Z"}, "assets": assets}
    (scene,) = s2c.find_scenes(item)
    assert [asset.name for asset in scene.assets] == ["B04"]
    # nor those in places that must not be read
    monkeypatch.setenv("S2COMPOSITE_ACCESS", Access(read=(assets["B04"]["href"],)).to_json())
    assert s2c.find_scenes(item) == (scene,)


@pytest.mark.parametrize("written", [Path.as_uri, os.path.relpath])
def test_assets_may_be_written_as_any_path_is(stores, red, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assets = {"reflectance": {"href": f"{written(Path(stores[0]))}/{R10M}", "type": "application/vnd+zarr"}}
    item = {"type": "Feature", "id": "a", "properties": {"datetime": "2025-10-01T10:00:41Z"}, "assets": assets}
    np.testing.assert_array_equal(read([item], harmonise={"a": -1000})[0], red[0])
