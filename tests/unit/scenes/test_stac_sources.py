"""STAC in: the items of public catalogues, and every form they come in."""

import copy
import datetime as dt
import json
import sys

import numpy as np
import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st

import s2composite as s2c
from s2composite.errors import BandError, MissingDependencyError, ParameterError, SceneError, SourceError
from s2composite.reading.bands import wanted_assets
from s2composite.scenes.dates import solar_day, utc_day
from s2composite.scenes.find import find_scenes, longitude
from s2composite.scenes.products import same_band
from s2composite.scenes.stac import scene_of_item
from support.rasters import ORIGIN, write_tif
from support.stac_items import RECORDED, item_of, recorded, search_server

# What public catalogues say


CATALOGUES = [
    ("earth_search_v1", "29RKH", "S2A", "02.14", "red", 0, "EPSG:32629", "scl"),
    ("earth_search_v0", "17SPR", "S2A", "04.00", "B04", 0, "EPSG:32617", "SCL"),
    ("earth_search_c1", "31TCJ", "S2B", "05.10", "red", -1000, "EPSG:32631", "scl"),
    ("planetary_computer", "06VVN", "S2B", "02.12", "B04", 0, "EPSG:32606", "SCL"),
    ("cdse", "33UWP", "S2C", "05.11", "B04_10m", -1000, "EPSG:32633", "SCL_20m"),
    ("digital_earth_africa", "29RKH", "S2A", "02.14", "B04", 0, "EPSG:32629", "SCL"),
    ("digital_earth_africa_c1", "37MGP", "S2B", "05.10", "red", -1000, "EPSG:32737", "scl"),
    ("digital_earth_australia", "49JFM", "S2A", None, "nbart_red", 0, "EPSG:32749", "oa_fmask"),
]
ORBITS = {
    "earth_search_v1": 37,
    "earth_search_v0": 54,
    "earth_search_c1": 51,
    "planetary_computer": 43,
    "cdse": 122,
    "digital_earth_africa": 37,
    "digital_earth_africa_c1": 6,
    "digital_earth_australia": 3,
}
NO_DATA = {"thumbnail", "thumbnail:nbart", "preview", "overview", "rendered_preview", "tilejson", "Product", "info"}


@pytest.mark.parametrize(("name", "granule", "platform", "baseline", "red", "shift", "grid", "classes"), CATALOGUES)
def test_items_of_public_catalogues(name, granule, platform, baseline, red, shift, grid, classes):
    scene = scene_of_item(recorded(name))
    assert (scene.granule, scene.platform, scene.baseline) == (granule, platform, baseline)
    assert scene.time.tzinfo is dt.UTC
    assert scene.bbox is not None
    assert scene.orbit == ORBITS[name], "of the item, or of the name of its product"
    for wanted in ("red", "B04"):
        ((asset,),) = wanted_assets([scene], [wanted])
        assert asset.name == red, "by common name and by number, and never the red of the picture"
    assert asset.values.shift == shift
    assert asset.grid.crs == grid
    assert asset.grid.transform[0] == 10
    assert asset.grid.shape == (10980, 10980)
    assert scene.asset(classes).values.classes
    assert scene.asset(classes).values.shift == 0
    assert scene.asset(classes).grid.transform[0] == 20
    names = {asset.name for asset in scene.assets}
    assert not {name for name in names if name in NO_DATA or "metadata" in name}
    if name not in ("digital_earth_africa", "digital_earth_australia"):
        ((picture,),) = wanted_assets([scene], ["TCI"])
        assert picture.bands == ("red", "green", "blue")


def test_what_every_recorded_item_is_stands_beside_it():
    told = (RECORDED / "README.md").read_text()
    assert {path.stem for path in RECORDED.glob("*.json")} == {name for name, *_ in CATALOGUES}
    assert all(f"`{name}.json`" in told for name, *_ in CATALOGUES)


def test_alternate_places_of_files():
    item = recorded("cdse")
    assert all(asset.href.startswith("s3://eodata/") for asset in find_scenes(item)[0].assets)
    scene = find_scenes(item, alternate="https")[0]
    assert {asset.href.partition("/odata/")[0] for asset in scene.assets} == {"https://zipper.dataspace.copernicus.eu"}
    assert scene.asset("B04_10m").values.shift == -1000
    mixed = find_scenes([item, recorded("earth_search_v1")], alternate="https")
    assert mixed[0].asset("red").href.startswith("https://sentinel-cogs"), "which has no alternates"
    with pytest.raises(ParameterError, match="alternate is 'http', and the assets of the 1 items have 'https'; leave"):
        find_scenes(item, alternate="http")
    with pytest.raises(ParameterError, match="have no alternates; leave it out"):
        s2c.open_cube(recorded("planetary_computer"), alternate="https")


def test_alternate_places_are_read(items):
    moved = copy.deepcopy(items)
    for item in moved:
        asset = item["assets"]["red"]
        asset |= {"alternate": {"disk": {"href": asset["href"]}}, "href": "s3://nowhere/B04.tif"}
    cube = s2c.open_cube(moved, bands=["red"], alternate="disk")
    assert cube.values[:, 0, 0, 0].tolist() == [100, 200, 300]


def test_a_picture_is_served_by_band_and_whole():
    scene = scene_of_item(recorded("planetary_computer"))
    ((asset,),) = wanted_assets([scene], ["TCI"])
    assert asset.name == "visual"
    assert asset.bands == ("red", "green", "blue")
    ((asset,),) = wanted_assets([scene], ["green"])  # there is no B03 in this item
    assert asset.name == "visual"


def test_names_that_mean_several_bands_are_refused():
    scene = scene_of_item(recorded("earth_search_v1"))
    with pytest.raises(BandError, match="'rededge' may mean rededge1, rededge2; name one"):
        wanted_assets([scene], ["rededge"])
    with pytest.raises(BandError, match="no band 'B11'"):
        s2c.open_cube(recorded("earth_search_v1"), bands=["B11"])


def test_files_of_the_original_keep_their_own_offset():
    item = recorded("earth_search_v1")
    item["properties"] |= {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.09"}
    scene = scene_of_item(item)
    assert scene.asset("red").values.shift == 0
    assert scene.asset("red-jp2").values.shift == -1000


@pytest.mark.parametrize(
    ("flag", "baseline", "raster", "shift"),
    [
        (True, "05.09", -0.1, 0),  # Earth Search names the offset of the original also where it took it off
        (False, "05.09", None, -1000),
        (False, "03.01", None, 0),
        (None, "05.09", None, -1000),
        (None, "02.14", None, 0),
        (None, "02.14", -0.1, -1000),  # the catalogue speaks of its own files
        (None, "05.00", 0, 0),
        (None, None, -0.1, -1000),
        (None, None, None, None),
        (False, None, None, None),
        (None, "99.99", None, None),
    ],
)
@pytest.mark.parametrize("year", ["2017", "2024"])
def test_the_offset_goes_by_the_product_and_never_by_the_date(flag, baseline, raster, shift, year):
    item = recorded("earth_search_c1")
    item["properties"]["datetime"] = f"{year}-07-09T10:56:24Z"
    for key in ("s2:processing_baseline", "s2:product_uri"):
        del item["properties"][key]
    if baseline:
        item["properties"]["s2:processing_baseline"] = baseline
    if flag is not None:
        item["properties"]["earthsearch:boa_offset_applied"] = flag
    band = item["assets"]["red"]["raster:bands"][0]
    del band["offset"]
    if raster is not None:
        band["offset"] = raster
    assert scene_of_item(item).asset("red").values.shift == shift
    assert scene_of_item(item).asset("scl").values.shift == 0


def test_other_satellites_have_units_and_no_offset_of_baselines():
    item = recorded("earth_search_c1")
    item |= {"id": "LC09_L2SP_199030_20230709", "collection": "landsat-c2-l2"}
    item["properties"] |= {"platform": "landsat-9", "constellation": "landsat"}
    item["assets"]["red"]["raster:bands"][0] |= {"scale": 2.75e-5, "offset": -0.2}
    values = scene_of_item(item).asset("red").values
    assert (values.shift, values.scale, values.offset) == (0, 2.75e-5, -0.2)


def test_names_of_bands_in_all_dialects():
    assert same_band("nbart_swir_3") == same_band("B12") == same_band("swir22") == same_band("B12_20m")
    assert same_band("b4") == same_band("red-jp2") == same_band("RED")
    assert same_band("nir") != same_band("nir08")
    assert same_band("anything") == ("ANYTHING",)


# Every form


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rasters")
    made = []
    for i, day in enumerate(("01", "06", "11")):
        path = write_tif(folder / f"red{day}.tif", np.full((80, 70), 100 * (i + 1), np.uint16), nodata=0)
        made.append(item_of(f"S2A_31TCJ_202306{day}_0_L2A", f"2023-06-{day}T10:46:29Z", {"red": path}))
    return made


def ids(source, **options):
    return [scene.id for scene in find_scenes(source, **options)]


def test_slow_forms_give_the_same_scenes(items, tmp_path):
    expected = [item["id"] for item in items]
    collection = {"type": "FeatureCollection", "features": items}
    folder = tmp_path / "items"
    folder.mkdir()
    for item in items:
        (folder / f"{item['id']}.json").write_text(json.dumps(item))
    (tmp_path / "all.json").write_text(json.dumps(collection))
    catalogue = {
        "type": "Collection", "id": "c", "links": [{"rel": "item", "href": f"./items/{item['id']}.json"} for item in items],
    }  # fmt: skip
    (tmp_path / "collection.json").write_text(json.dumps(catalogue))
    parent = {"type": "Catalog", "id": "p", "links": [{"rel": "child", "href": "collection.json"}]}
    (tmp_path / "catalog.json").write_text(json.dumps(parent))
    objects = [pystac.Item.from_dict(copy.deepcopy(item)) for item in items]
    forms = [
        items, tuple(items), collection, objects, pystac.ItemCollection(objects), folder, str(folder / "*.json"),
        tmp_path / "all.json", tmp_path / "collection.json", tmp_path / "catalog.json",
        [items[0], objects[1], folder / f"{items[2]['id']}.json"], [*items, *items],
    ]  # fmt: skip
    for form in forms:
        assert ids(form) == expected
    assert ids(items[1]) == ids(objects[1]) == expected[1:2]
    assert ids(items, datetime="2023-06-06") == expected[1:2]
    cubes = [s2c.open_cube(form, bands=["red"]) for form in (items, tmp_path / "all.json", objects)]
    assert len({cube.data.name for cube in cubes}) == 1
    np.testing.assert_array_equal(cubes[0].values[:, 0, 0, 0], [100, 200, 300])
    assert list(cubes[0].band.values) == ["red"]
    assert list(s2c.open_cube(items, bands=["B04"]).band.values) == ["B04"]


def test_relative_hrefs_start_at_the_item(items, tmp_path):
    write_tif(tmp_path / "B04.tif", np.full((80, 70), 7, np.uint16))
    item = copy.deepcopy(items[0])
    item["assets"]["red"]["href"] = "./B04.tif"
    (tmp_path / "item.json").write_text(json.dumps(item))
    assert int(s2c.open_cube(tmp_path / "item.json", bands=["red"]).max()) == 7
    assert int(s2c.open_cube(pystac.Item.from_file(str(tmp_path / "item.json")), bands=["red"]).max()) == 7
    remote = {**item, "links": [{"rel": "self", "href": "s3://bucket/a/item.json"}]}
    assert find_scenes(remote)[0].assets[0].href == "s3://bucket/a/B04.tif"


def test_stac_geoparquet(items, tmp_path):
    arrow = pytest.importorskip("stac_geoparquet.arrow")
    path = tmp_path / "items.parquet"
    table = arrow.parse_stac_items_to_arrow(copy.deepcopy(items))
    arrow.to_parquet(table, path)
    assert ids(path) == [item["id"] for item in items]
    assert s2c.open_cube(path, bands=["red"]).values[:, 0, 0, 0].tolist() == [100, 200, 300]
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(SourceError, match=r"bad\.parquet is not stac-geoparquet"):
        find_scenes(tmp_path / "bad.parquet")


def test_searches_against_a_server(items):
    client = pytest.importorskip("pystac_client")
    with search_server(items) as (url, asked):
        search = {"url": url, "collections": ["sentinel-2-l2a"], "bbox": [0, 40, 5, 48], "datetime": "2023-06"}
        assert ids(search) == [item["id"] for item in items], "all pages"
        assert asked[0]["collections"] == ["sentinel-2-l2a"]
        assert asked[0]["datetime"] == "2023-06-01T00:00:00Z/2023-06-30T23:59:59Z"
        made = client.Client.open(url).search(collections=["sentinel-2-l2a"])
        assert ids(made) == [item["id"] for item in items]
        with pytest.raises(SourceError, match=r"the search at http.* for collections \['landsat'\].*gives no items"):
            find_scenes({"url": url, "collections": ["landsat"]})
        with pytest.raises(SourceError, match="gives no items"):
            find_scenes(client.Client.open(url).search(collections=["landsat"]))
        with pytest.raises(ParameterError, match="unknown keys colections"):
            find_scenes({"url": url, "colections": ["landsat"]})
    with pytest.raises(SourceError, match=r"the search at .* failed"):
        find_scenes({"url": url, "collections": ["landsat"]})


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    with pytest.raises(MissingDependencyError, match=r"pystac_client: pip install 's2composite\[stac\]'"):
        find_scenes({"url": "http://127.0.0.1:9", "collections": ["a"]})


def test_plain_items_need_no_package_of_stac(items):
    import subprocess

    code = (
        f"import sys, json; sys.modules['pystac'] = None; import s2composite as s; print(len(s.find_scenes({items!r})))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "3"


# What is refused


def broken(change):
    item = recorded("earth_search_c1")
    change(item)
    return item


def test_items_that_lack_something():
    def without_time(item):
        item["properties"]["datetime"] = None

    with pytest.raises(SceneError, match="item S2B_T31TCJ_20230709T105624_L2A has no datetime"):
        find_scenes(broken(without_time))
    span = broken(without_time)
    span["properties"]["start_datetime"] = "2023-07-09T10:00:00Z"
    assert find_scenes(span)[0].time.hour == 10
    with pytest.raises(SceneError, match="has no rasters among its assets"):
        find_scenes(broken(lambda item: item.update(assets={"meta": {"href": "a.xml", "type": "application/xml"}})))
    with pytest.raises(SceneError, match="has no id"):
        find_scenes(broken(lambda item: item.pop("id")))
    with pytest.raises(
        SceneError,
        match=r"item S2B_T31TCJ_20230709T105624_L2A: properties.datetime is 'yesterday', which is not a date",
    ):
        find_scenes(broken(lambda item: item["properties"].update(datetime="yesterday")))
    with pytest.raises(SceneError, match="has no datetime"):
        find_scenes(broken(lambda item: item.update(properties=None)))
    odd = broken(lambda item: item["assets"]["red"].update({"proj:transform": ["ten"] * 6}))
    assert find_scenes(odd)[0].asset("red").grid is None, "the header will tell"
    assert find_scenes(broken(lambda item: item.update(geometry=None, bbox=None)))[0].bbox is None
    assert find_scenes(broken(lambda item: item.pop("bbox")))[0].bbox == (0.4, 43.2, 1.8, 44.2)
    with pytest.raises(SourceError, match="the dictionary gives no items"):
        find_scenes({"type": "FeatureCollection", "features": []})
    for wrong in ({"type": "Feature"}, {"type": "Point"}, {}):
        with pytest.raises(ParameterError, match="is not a STAC item"):
            find_scenes(wrong)


def test_files_that_are_no_items(tmp_path):
    (tmp_path / "a.json").write_text("not json")
    with pytest.raises(SourceError, match=r"a\.json is not JSON"):
        find_scenes(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(SourceError, match="holds a list"):
        find_scenes(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(SourceError, match=r"a\.json gives no items"):
        find_scenes(tmp_path / "a.json")
    with pytest.raises(SourceError, match="does not exist"):
        find_scenes(tmp_path / "nothing.json")


def test_assets_missing_in_some_items_are_named_or_skipped(items):
    lacking = copy.deepcopy(items)
    lacking[1]["assets"] = {"blue": lacking[1]["assets"]["red"]}
    with pytest.raises(
        BandError, match=r"scene S2A_31TCJ_20230606_0_L2A has no band 'red'; it has blue; .*on_error='skip'"
    ):
        s2c.open_cube(lacking, bands=["red"])
    comp = s2c.composite(s2c.open_cube(lacking, bands=["red"], on_error="skip"), "median").compute()
    assert comp["read_status"].values.ravel().tolist() == [0, 2, 0]
    with pytest.raises(BandError, match="no band 'nir'"):
        s2c.open_cube(lacking, bands=["nir"], on_error="skip")


# Products made again, and days


def product(
    scene_id, time="2023-07-09T10:56:24Z", baseline="05.09", made="2023-07-09T15:00:00Z", box=None, tile="31TCJ"
):
    item = recorded("earth_search_c1")
    item |= {"id": scene_id, "bbox": box or [0.4, 43.2, 1.8, 44.2]}
    item["properties"] |= {
        "datetime": time, "s2:processing_baseline": baseline, "s2:generation_time": made, "grid:code": f"MGRS-{tile}",
    }  # fmt: skip
    return item


def test_of_products_made_again_the_newest_counts():
    old = product("old", baseline="04.00")
    new = product("new", baseline="05.10")
    same = product("again", baseline="05.10", made="2024-01-01T00:00:00Z", time="2023-07-09T10:56:30Z")
    half = product("half", baseline="05.10", box=[0.4, 43.2, 1.1, 44.2], time="2023-07-09T10:56:40Z")
    other = product("other tile", baseline="04.00", tile="31TDJ")
    later = product("later", baseline="04.00", time="2023-07-14T10:56:24Z")
    every = [old, new, same, half, other, later]
    assert ids(every) == ["other tile", "again", "half", "later"]
    assert len(ids(every, duplicates="keep")) == 6
    with pytest.raises(ParameterError, match="duplicates is 'first'"):
        find_scenes(every, duplicates="first")


def test_levels_are_no_products_made_again_and_do_not_mix(items):
    both = [product("surface"), product("top", made="2024-01-01T00:00:00Z")]
    both[1]["collection"] = "sentinel-2-l1c"
    assert sorted(ids(both)) == ["surface", "top"]
    mixed = copy.deepcopy(items)
    mixed[1]["collection"] = "sentinel-2-l1c"
    with pytest.raises(
        SceneError, match=r"20230606.*\(sentinel-2-l1c\) is of level 1.*level 2.*one collection at a time"
    ):
        s2c.open_cube(mixed, bands=["red"])


def test_files_whose_names_tell_no_baseline_all_stay():
    assert len(find_scenes([f"gs://b/T31TCJ_20230709T1046{second}_TCI.tif" for second in (21, 29)])) == 2


def test_a_day_is_fused_by_the_sun():
    one = product("a", time="2023-07-09T23:50:00Z", tile="60HUC", box=[174.0, -44.0, 175.0, -43.0])
    two = product("b", time="2023-07-10T00:10:00Z", tile="60HVC", box=[175.0, -44.0, 176.0, -43.0])
    (day,) = find_scenes([one, two], groupby="solar_day")
    assert [member.id for member in day.parts] == ["a", "b"]
    assert (day.granule, day.id, day.bbox) == ("60HUC+60HVC", "a+1", (174.0, -44.0, 176.0, -43.0))
    assert len(find_scenes([one, two], groupby="utc_day")) == 2
    assert len(find_scenes([one, two], groupby=None)) == 2
    with pytest.raises(ParameterError, match="groupby is 'day'"):
        find_scenes([one], groupby="day")
    with pytest.raises(SceneError, match="so is its solar day; use groupby='utc_day'"):
        find_scenes(["gs://b/scene_20230709.tif"], groupby="solar_day")


def test_the_middle_of_a_box_over_the_antimeridian():
    scene = find_scenes(product("a", box=[179.0, -20.0, -179.0, -19.0]))[0]
    assert abs(longitude(scene)) == 180
    assert longitude(find_scenes(["gs://b/T31TCJ_20230709T104629_TCI.tif"])[0]) == 3


@given(st.datetimes(), st.floats(-180, 180))
def test_a_solar_day_is_at_most_one_from_utc(time, east):
    time = time.replace(tzinfo=dt.UTC, year=2015 + time.year % 15, day=min(time.day, 28))
    assert abs((solar_day(time, east) - utc_day(time)).days) <= 1
    assert solar_day(time, 0) == utc_day(time)
    noon = time.replace(hour=12, minute=0) - dt.timedelta(hours=east / 15)  # noon by the sun is on its own day
    assert solar_day(noon, east) == time.date()


def test_recorded_items_are_small():
    assert sum(path.stat().st_size for path in RECORDED.iterdir()) < 70_000
    assert ORIGIN.a == 10
