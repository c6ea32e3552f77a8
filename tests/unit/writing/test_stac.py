"""STAC items: valid, true about the files beside them, the same id for the same pixels, and there only if all is."""

import hashlib
import json
from pathlib import Path

import dask.array as da
import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.stac_object import STACObjectType
from pystac.validation import JsonSchemaSTACValidator
from rasterio.warp import transform_geom

import s2composite as s2c
from s2composite.errors import ParameterError, ReadError, WriteError
from s2composite.writing import publish as written_files
from s2composite.writing.stac import write_stac
from support.writing_helpers import (
    UTM,
    composed_windows,
    composite_of,
    dataset_of,
    periods_of_layers,
    pixels,
    three_layers,
)

RASTER_FIELDS = {"raster:sampling", "raster:spatial_resolution", "raster:scale", "raster:offset"}
"""Of those that version 2 of the raster extension has, the ones in use; data type, nodata and statistics are STAC's own."""


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def item_of(path):
    """Return an item after checks by the schemas that pystac brings, and of what the extensions demand."""
    item = json.loads(Path(path).read_text())
    validator = JsonSchemaSTACValidator()
    validator.validate_core(item, STACObjectType.ITEM, "1.1.0")
    text = json.dumps(item)
    for prefix in ("proj", "raster", "file", "processing", "eo"):
        declared = any(
            f"/{prefix.replace('proj', 'projection', 1) if prefix == 'proj' else prefix}/v" in uri
            for uri in item["stac_extensions"]
        )
        assert declared == (f'"{prefix}:' in text)
    for asset in item["assets"].values():
        assert asset["file:checksum"].startswith("1220")
        assert len(asset["file:checksum"]) == 68
        for band in asset.get("bands", []):
            assert {name for name in band if name.startswith("raster:")} <= RASTER_FIELDS
            assert {"minimum", "maximum", "mean", "stddev"} <= set(band["statistics"]) or band["statistics"][
                "count"
            ] == 0
    return item


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """A real composite of three scenes, written with its item, and how often each window was composed."""
    from s2composite.demo import make_scenes

    folder = tmp_path_factory.mktemp("stac")
    make_scenes(str(folder / "scenes"), scenes=3, size=600, seed=1, compress="deflate")
    comp = s2c.composite(s2c.open_cube(folder / "scenes", on_error="skip", chunks=256))
    out = folder / "out"
    out.mkdir()
    with composed_windows() as windows:
        (item,) = comp.to_stac(str(out / "median.json"), blocksize=128, size=200)
    return comp.compute(), item, windows


def test_the_item_is_valid_and_true(composed):
    comp, path, windows = composed
    item, folder = item_of(path), Path(path).parent
    assert len(windows) == 9
    assert names(folder) == [
        "median.json",
        "median.tif",
        "median_count.tif",
        "median_source.tif",
        "median_thumbnail.png",
    ]
    assert set(item["assets"]) == {"composite", "count", "source", "thumbnail"}
    for name, asset in item["assets"].items():
        data = (folder / asset["href"]).read_bytes()
        assert asset["file:size"] == len(data)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
        if name == "thumbnail":
            continue
        values = comp[name].values.reshape(-1, 600, 600).astype(float)
        for band, plane in zip(asset["bands"], values, strict=True):
            there = plane[plane != asset["nodata"]] if "nodata" in asset else plane.ravel()
            found = band["statistics"]
            assert (found["minimum"], found["maximum"], found["count"]) == (there.min(), there.max(), there.size)
            assert found["mean"] == pytest.approx(there.mean())
            assert found["stddev"] == pytest.approx(there.std())
            assert found["valid_percent"] == pytest.approx(100 * there.size / plane.size)
            assert band["raster:spatial_resolution"] == 10
        assert asset["data_type"] == comp[name].dtype.name
    assert [band["eo:common_name"] for band in item["assets"]["composite"]["bands"]] == ["red", "green", "blue"]


def test_pystac_reads_it(composed):
    comp, path, _ = composed
    item = pystac.Item.from_file(path)
    projection = ProjectionExtension.ext(item)
    assert projection.code == "EPSG:32631"
    assert projection.shape == [600, 600]
    assert Affine(*projection.transform[:6]) == comp["composite"].odc.geobox.transform
    for asset in item.assets.values():
        assert Path(asset.get_absolute_href()).exists()
        assert FileExtension.ext(asset).size == Path(asset.get_absolute_href()).stat().st_size
    geographic = transform_geom("EPSG:4326", "EPSG:32631", item.geometry)
    x, y = np.array(geographic["coordinates"][0]).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx(projection.bbox[0::2] + projection.bbox[1::2], abs=0.1)


def test_lineage(composed):
    comp, path, _ = composed
    facts = item_of(path)["properties"]
    source = comp["source"].values
    scenes = facts["s2composite:scenes"]
    assert [scene["id"] for scene in scenes] == comp.dataset["scene"].values.tolist()
    assert [scene["share"] for scene in scenes] == pytest.approx([(source == i).mean() for i in range(3)], abs=1e-6)
    assert scenes[0]["datetime"] == facts["start_datetime"] == "2023-05-01T11:06:29Z"
    assert facts["end_datetime"] == scenes[-1]["datetime"]
    assert facts["datetime"] is None
    assert facts["s2composite:reducer"] == "luminance_median"
    assert facts["s2composite:rules"] == comp.dataset.attrs["rules"]
    assert facts["s2composite:engine"].startswith("tiles")
    assert facts["s2composite:read_status"]["failed"] == {}
    assert facts["processing:software"]["s2composite"] == s2c.__version__
    assert facts["processing:software"]["GDAL"] == rasterio.__gdal_version__
    assert all(isinstance(version, str) for version in facts["processing:software"].values())


# --- the id --------------------------------------------------------------------------------------------------------------


def write(dataset, folder, name="m.json", **options):
    (path,) = write_stac(dataset, folder / name, **options)
    return item_of(path)


def test_the_id_is_that_of_the_pixels(tmp_path):
    one = write(three_layers((300, 200), None)[0], tmp_path, "a.json")
    two = write(three_layers((300, 200), 128)[0], tmp_path, "b.json", compress="zstd")
    assert one["id"] == two["id"]
    assert one["id"].startswith("luminance_median_2023-06-01_2023-06-06_")
    base = three_layers((300, 200))[0]
    for other in (
        base.assign_attrs(rules="Nodata()"),
        base.assign_attrs(software="s2composite 0.2.0"),
        base.assign_coords(scene=["A", "B"]),
        base.isel(y=slice(0, 256)),
    ):
        assert write(other, tmp_path, "c.json", overwrite=True)["id"] != one["id"]


# --- last, or not at all -------------------------------------------------------------------------------------------------


def failing():
    dataset = three_layers((300, 300), 128)[0]

    def fail(block):
        raise ReadError("scene S2A: truncated")

    dataset["count"] = dataset["count"].copy(data=dataset["count"].data.map_blocks(fail, dtype="uint16"))
    return dataset


def test_a_failure_leaves_no_item_and_no_files(tmp_path):
    with pytest.raises(ReadError, match="truncated"):
        write_stac(failing(), tmp_path / "m.json")
    assert names(tmp_path) == []


def test_a_failed_replacement_keeps_the_old_whole(tmp_path):
    write(three_layers((300, 300))[0], tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ReadError, match="truncated"):
        write_stac(failing(), tmp_path / "m.json", overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_old_item_is_gone_before_its_files_are(tmp_path, monkeypatch):
    """Dying between two files must not leave an item that describes one new and one old file."""
    dataset = three_layers((300, 300))[0]
    write(dataset, tmp_path)
    whole, calls = written_files.take_name, []

    def die(temporary, target, **options):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        assert not (tmp_path / "m.json").exists()
        whole(temporary, target, **options)

    monkeypatch.setattr(written_files, "take_name", die)
    with pytest.raises(KeyboardInterrupt):
        write_stac(dataset, tmp_path / "m.json", overwrite=True)
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("name", ["m.json", "m.tif", "m_count.tif", "m_thumbnail.png"])
def test_whatever_exists_stops_it_before_anything_is_computed(tmp_path, name):
    (tmp_path / name).write_text("theirs")
    with pytest.raises(WriteError, match=rf"{name}: exists already; pass overwrite=True"):
        write_stac(never_computed(), tmp_path / "m.json")
    assert names(tmp_path) == [name]


def never_computed():
    dataset = three_layers((300, 300), 128)[0]

    def fail(block):
        raise AssertionError("pixels were computed")

    layers = {
        n: dataset[n].copy(data=da.map_blocks(fail, a.data, dtype=a.dtype, meta=np.empty((0,) * a.ndim, a.dtype)))
        for n, a in dataset.data_vars.items()
    }
    return dataset.assign(layers)


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        ("m.tif", {}, r"name a \.json file"),
        ("https://host/m.json", {}, r"name a \.json file"),
        ("m.json", {"thumbnail": "gif"}, "thumbnail is 'gif'; it is one of png, webp"),
        ("m.json", {"size": 3}, "size is 3"),
        ("m.json", {"stretch": "5%"}, "stretch is '5%'"),
        ("m.json", {"compress": "jpeg"}, "takes uint8 pixels"),
        ("m.json", {"derived_from": {"S2Z": "x.json"}}, "'S2Z', which is not a scene"),
        ("m.json", {"layers": "median"}, "no layer 'median'"),
        ("missing/m.json", {}, "the directory .*missing does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused_before_computing(tmp_path, path, options, says):
    with pytest.raises((ParameterError, WriteError), match=says):
        write_stac(never_computed(), path if ":" in path else tmp_path / path, **options)
    assert names(tmp_path) == []


def test_scenes_without_times_or_names(tmp_path):
    dataset = never_computed()
    with pytest.raises(ParameterError, match="no 'scene_time' with any"):
        write_stac(dataset.assign_coords(scene_time=("scene", [1, 2])), tmp_path / "m.json")
    with pytest.raises(ParameterError, match="no coordinate 'scene'"):
        write_stac(dataset.drop_vars(["scene", "scene_time"]), tmp_path / "m.json")


def test_a_source_of_another_composite(tmp_path):
    dataset = three_layers((100, 100))[0]
    with pytest.raises(ParameterError, match="names scene 7, but there are 2"):
        write_stac(dataset.assign(source=dataset["source"] * 0 + 7), tmp_path / "m.json")
    assert names(tmp_path) == []


# --- periods, places, layers ---------------------------------------------------------------------------------------------


def test_an_item_for_each_period(tmp_path):
    dataset, arrays = periods_of_layers(("2023-01", "2023-02"))
    items = write_stac(dataset, tmp_path / "m.json", blocksize=128, size=100)
    assert [Path(path).name for path in items] == ["m_2023-01.json", "m_2023-02.json"]
    one, two = map(item_of, items)
    assert one["id"] != two["id"]
    assert two["properties"]["start_datetime"] == "2023-02-01T00:00:00Z"
    assert two["properties"]["end_datetime"] == "2023-02-28T23:59:59Z"
    assert two["properties"]["s2composite:period"] == "2023-02"
    assert two["assets"]["count"]["href"] == "./m_count_2023-02.tif"
    assert two["assets"]["thumbnail"]["href"] == "./m_thumbnail_2023-02.png"
    for item, source in ((one, arrays["source"][0]), (two, arrays["source"][1])):
        shares = [scene["share"] for scene in item["properties"]["s2composite:scenes"]]
        assert shares == pytest.approx([(source == i).mean() for i in range(2)], abs=1e-6)


def test_on_both_sides_of_the_antimeridian(tmp_path):
    transform = Affine(1000, 0, 500000, 0, -1000, 4900000)
    item = write(composite_of(pixels((1, 300, 500)), crs="EPSG:32660", transform=transform), tmp_path)
    assert item["geometry"]["type"] == "MultiPolygon"
    west, south, east, north = item["bbox"]
    assert 170 < west < 180
    assert -180 < east < -170
    assert 41 < south < north < 45


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_without_a_place_on_earth(tmp_path):
    item = write(composite_of(pixels((1, 30, 30)), transform=None), tmp_path)
    assert item["geometry"] is None
    assert "bbox" not in item


def test_a_crs_without_a_code(tmp_path):
    sinusoidal = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m"
    facts = write(composite_of(pixels((1, 30, 30)), crs=sinusoidal), tmp_path)["properties"]
    assert facts["proj:code"] is None
    assert facts["proj:wkt2"].startswith("PROJCRS")


def test_one_file_for_all_layers_links_and_properties(tmp_path):
    dataset = three_layers((300, 300), 128)[0]
    href = "https://host/S2A.json"
    item = write(
        dataset,
        tmp_path,
        separate=False,
        thumbnail=None,
        derived_from={"S2A_31TCJ_20230601": href},
        properties={"title": "June", "license": "CC-BY-4.0"},
    )
    assert set(item["assets"]) == {"data"}
    assert [band["name"] for band in item["assets"]["data"]["bands"]] == ["red", "green", "blue", "count", "source"]
    assert item["links"][0]["href"] == href
    assert item["links"][0]["rel"] == "derived_from"
    assert item["properties"]["title"] == "June"


def test_layers_without_bands_nor_values(tmp_path):
    count = np.zeros((40, 50), "float32")
    dataset = dataset_of({"count": (count, {"nodata": np.nan})}, transform=UTM)
    item = write(dataset.assign(count=dataset["count"] * np.nan).assign_attrs(dataset.attrs), tmp_path)
    assert "thumbnail" not in item["assets"]
    assert item["assets"]["count"]["bands"][0]["statistics"] == {"count": 0, "valid_percent": 0.0}


def test_previews_are_visual(tmp_path):
    item = write(composite_of(pixels((3, 300, 300), "uint16"), 128), tmp_path, layers=("composite", "rgba"))
    assert item["assets"]["rgba"]["roles"] == ["visual", "overview"]
    assert item["assets"]["composite"]["nodata"] == 0
