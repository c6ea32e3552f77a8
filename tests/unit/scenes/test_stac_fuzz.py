"""Malformed STAC items: whatever a field holds, the item is understood, or there is one error of ours that names it."""

import contextlib
import copy
import json
import random

import numpy as np
import pystac
import pytest

import s2composite as s2c
from s2composite.errors import S2CompositeError, SceneError
from s2composite.scenes.find import find_scenes
from support.rasters import write_tif
from support.stac_items import RECORDED, item_of, recorded

CATALOGUES = sorted(path.stem for path in RECORDED.glob("*.json"))
JUNK = (
    None, True, False, 0, 1, -1, 7, 2.5, 1e308, -1e-320, 10**400, float("nan"), float("inf"), "", " ", "n/a", "nan",
    "0.0001", "EPSG:0", "2023-02-30", "9999-12-31T23:59:59-14:00", "0001-01-01", "\0", "x" * 5000, "s3://", "file://", "://",
    "http://[", "é/../..", [], [None], [1], [1, 2, 3, 4], ["a", "b"], [[[]]], [[{}]], {}, {"a": 1}, {"href": None}, {"": []},
)  # fmt: skip


def places(part, path=()):
    """Yield the path of everything in an item."""
    if path:
        yield path
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        yield from places(value, (*path, key))


def mutated(item, rng):
    """Return an item of which one to three things were replaced, left out or moved."""
    item = copy.deepcopy(item)
    for _ in range(rng.randint(1, 3)):
        *way, last = rng.choice(list(places(item)))
        at = item
        for key in way:
            at = at[key]
        junk = copy.deepcopy(rng.choice(JUNK))
        if isinstance(at, dict) and rng.random() < 0.2:
            del at[last]
        elif isinstance(at, dict) and rng.random() < 0.1:
            at[rng.choice(["proj:epsg", "proj:transform", "scale", "nodata", "bands", "alternate", "datetime"])] = junk
        else:
            at[last] = junk
        if not item:
            break
    return item


def ours(make):
    """Run something that may raise errors of ours only."""
    with contextlib.suppress(S2CompositeError):
        return make()
    return None


@pytest.mark.parametrize(
    "name", [*CATALOGUES[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in CATALOGUES[2:])]
)
def test_mutated_items_of_catalogues(name):
    rng = random.Random(name)
    whole = recorded(name)
    for _ in range(400):
        item = mutated(whole, rng)
        for options in ({}, {"alternate": "https"}, {"groupby": "solar_day"}):
            ours(lambda item=item, options=options: find_scenes(item, **options))
            ours(lambda item=item: find_scenes({"type": "FeatureCollection", "features": [whole, item]}))


@pytest.mark.slow
def test_mutated_items_are_opened_or_refused(tmp_path):
    rng = random.Random(1)
    files = {
        key: write_tif(tmp_path / f"{key}.tif", np.full((64, 64), 7, np.uint16), nodata=0) for key in ("red", "nir")
    }
    whole = item_of("S2A_31TCJ_20230601", "2023-06-01T10:46:29Z", files, **{"s2:processing_baseline": "05.09"})
    other = item_of("S2A_31TCJ_20230606", "2023-06-06T10:46:29Z", files, **{"s2:processing_baseline": "05.09"})
    opened = 0
    for _ in range(250):
        item = mutated(whole, rng)
        options = rng.choice(
            [{}, {"headers": "lazy"}, {"reflectance": True}, {"on_error": "skip"}, {"harmonise": False}]
        )
        cube = ours(lambda item=item, options=options: s2c.open_cube([item, other], bands=["red"], **options))
        opened += cube is not None
    assert opened > 80, "most mutations are of no account"


def test_mutated_files_of_items(tmp_path):
    rng = random.Random(2)
    whole = recorded("earth_search_v1")
    for i in range(60):
        path = tmp_path / f"{i}.json"
        collection = {"type": "FeatureCollection", "features": [mutated(whole, rng)], "links": rng.choice(JUNK)}
        content = rng.choice([mutated(whole, rng), collection, {"type": "Catalog", "links": rng.choice(JUNK)}])
        path.write_text(json.dumps(content))
        ours(lambda path=path: find_scenes(path))


def earth_search(**changes):
    """An item of Earth Search whose red band says what `changes` say."""
    item = recorded("earth_search_c1")
    item["assets"]["red"]["raster:bands"][0] |= changes
    return item


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": "0.0001", "offset": "-0.1"}, (1e-4, -1000.0, 0.0)),
        ({"scale": 1e-4, "offset": 0}, (1e-4, 0.0, 0.0)),
        ({"scale": None, "offset": None}, (1e-4, -1000.0, 0.0)),
        ({"nodata": "nan"}, (1e-4, -1000.0, "nan")),
        ({"nodata": "65535"}, (1e-4, -1000.0, 65535.0)),
        ({"nodata": None}, (1e-4, -1000.0, 0.0)),
        ({"nodata": "-inf"}, (1e-4, -1000.0, float("-inf"))),
    ],
)
def test_numbers_as_text_are_understood(changes, said):
    (scene,) = find_scenes(earth_search(**changes))
    values = scene.asset("red").values
    nodata = "nan" if values.nodata != values.nodata else values.nodata
    assert (values.scale, values.shift, nodata) == said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda item: item["assets"]["red"]["raster:bands"][0].update(scale="small"), r"assets\.red\.raster:bands\[0\]\.scale is 'small'"),
        (lambda item: item["assets"]["red"]["raster:bands"][0].update(scale=0), r"scale is 0, which is not a number other"),
        (lambda item: item["assets"]["red"]["raster:bands"][0].update(offset=float("nan")), "offset is nan"),
        (lambda item: item["assets"]["red"].update({"raster:bands": {"scale": 1}}), r"assets\.red\.raster:bands is .* list of bands"),
        (lambda item: item["assets"]["red"].update(href=[1]), r"assets\.red\.href is \[1\], which is not text"),
        (lambda item: item.update(assets=[]), r"assets is \[\], which is not an object"),
        (lambda item: item.update(bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\]"),
        (lambda item: item.update(properties="none"), "properties is 'none'"),
        (lambda item: item["properties"].update(created="n/a"), r"properties\.created is 'n/a', which is not a date"),
        (lambda item: item["properties"].update({"sat:relative_orbit": "R8"}), "sat:relative_orbit is 'R8'"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(change, words):
    item = recorded("earth_search_c1")
    change(item)
    with pytest.raises(SceneError, match=f"item {item['id']}: .*{words}"):
        find_scenes(item)


def test_times_that_an_axis_cannot_hold_are_refused():
    item = recorded("earth_search_c1")
    item["properties"]["datetime"] = "1066-10-14T09:00:00Z"
    with pytest.raises(SceneError, match=r"S2B_31TCJ_20230709_0_L2A|S2B_T31TCJ.*1066-10-14.*1678"):
        find_scenes(item)


def test_a_malformed_grid_is_that_of_the_file(tmp_path):
    path = write_tif(tmp_path / "red.tif", np.full((64, 64), 7, np.uint16), nodata=0)
    for field, junk in (
        ("proj:transform", [1, 2, 3, 4]),
        ("proj:shape", ["a", None]),
        ("proj:epsg", 1),
        ("proj:epsg", "x"),
    ):
        item = item_of(
            "S2A_31TCJ_20230601", "2023-06-01T10:46:29Z", {"red": path}, **{"s2:processing_baseline": "02.14"}
        )
        item["assets"]["red"][field] = junk
        assert int(s2c.open_cube(item, bands=["red"]).max()) == 7
        with pytest.raises(S2CompositeError, match=r"headers='lazy' needs"):
            s2c.open_cube(item, bands=["red"], headers="lazy")


def test_items_of_pystac_are_as_their_dictionaries():
    item = recorded("earth_search_c1")
    assert find_scenes(pystac.Item.from_dict(copy.deepcopy(item))) == find_scenes(item)
