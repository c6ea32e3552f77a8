"""Interop: arrays of odc-stac and stackstac go into composite(), and open_cube() takes them as loaders."""

import copy

import numpy as np
import odc.geo.xr
import odc.stac
import pystac
import pytest
import stackstac

import s2composite as s2c
from s2composite.errors import BandError, MissingDependencyError, ParameterError, SourceError
from support.rasters import encoded, write_tif
from support.stac_items import item_of


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interop")
    made = []
    for i in range(5):
        assets = {
            key: write_tif(folder / f"{key}{i}.tif", encoded(i + b, 1)[0].astype(np.uint16) * 20, nodata=0)
            for b, key in enumerate(("red", "nir"))
        }
        item = item_of(f"S2A_31TCJ_2023060{i + 1}", f"2023-06-0{i + 1}T10:46:29Z", assets)
        item["properties"]["proj:code"] = "EPSG:32631"
        item["stac_extensions"] = ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"]
        made.append(item)
    return made


@pytest.mark.parametrize("name", ["odc", "stackstac"])
def test_a_cube_of_another_loader_is_ours(items, name):
    ours = s2c.open_cube(items, bands=["red", "nir"])
    theirs = s2c.open_cube(items, bands=["red", "nir"], loader=name, crs="EPSG:32631", resolution=10, chunks=64)
    assert theirs.dims == ("time", "band", "y", "x")
    assert theirs.chunks is not None
    assert list(theirs["band"].values) == ["red", "nir"]
    np.testing.assert_array_equal(np.nan_to_num(theirs.values), ours.values)
    mine = s2c.composite(ours, "median").compute()
    other = s2c.composite(theirs, "median", valid=s2c.Nodata()).compute()
    np.testing.assert_array_equal(np.nan_to_num(other["composite"].values), mine["composite"].values)
    assert other["composite"].odc.geobox == ours.odc.geobox


def test_arrays_of_the_libraries_go_straight_into_composite(items):
    objects = [pystac.Item.from_dict(item) for item in items]
    mine = s2c.composite(s2c.open_cube(items, bands=["red", "nir"]), "median").compute()["composite"].values
    loaded = odc.stac.load(objects, bands=["red", "nir"], chunks={"x": 64, "y": 64})
    np.testing.assert_array_equal(s2c.composite(loaded, "median").compute()["composite"], mine)
    stacked = stackstac.stack(items, assets=["red", "nir"], epsg=32631, resolution=10, chunksize=64)
    made = s2c.composite(stacked, "median", valid=s2c.Nodata()).compute()["composite"].values
    np.testing.assert_array_equal(np.nan_to_num(made), mine)


def test_ours_goes_where_theirs_do(items):
    """The other direction: a cube of ours has what odc-geo and xarray expect of theirs."""
    ours = s2c.open_cube(items, bands=["red", "nir"])
    geobox = ours.odc.geobox
    loaded = odc.stac.load([pystac.Item.from_dict(item) for item in items], bands=["red", "nir"], like=ours, chunks={})
    assert loaded.odc.geobox == geobox
    np.testing.assert_array_equal(loaded["red"].values, ours.sel(band="red").values)
    assert (loaded.time.values == ours.time.values).all()


def test_days_are_grouped_by_the_loader_too(items):
    day = s2c.open_cube(items, bands=["red"], loader="odc", groupby="solar_day", crs="EPSG:32631", resolution=10)
    assert day.sizes["time"] == 5


@pytest.mark.parametrize("key", ["scl", "SCL", "SCL_20m"])
def test_mask_bands_of_the_libraries_are_obeyed_whatever_their_catalogue_calls_them(tmp_path, key):
    rng = np.random.default_rng(0)
    made = []
    for i in range(4):
        assets = {
            "red": write_tif(tmp_path / f"red{i}.tif", encoded(i, 1)[0].astype(np.uint16) * 20, nodata=0),
            key: write_tif(tmp_path / f"{key}{i}.tif", rng.choice([4, 9], (200, 136)).astype("uint8"), nodata=0),
        }
        item = item_of(f"S2A_31TCJ_2023060{i + 1}", f"2023-06-0{i + 1}T10:46:29Z", assets)
        made.append(item)
    cube = s2c.open_cube(made, bands=["red"])
    ours = s2c.composite(cube, "median", valid=[s2c.Nodata(), s2c.SCL()]).compute()
    assert (ours["count"].values.min(), ours["count"].values.max()) == (0, 4)
    objects, box = [pystac.Item.from_dict(item) for item in made], cube.odc.geobox.boundingbox.bbox
    loaded = odc.stac.load(objects, bands=["red", key], like=cube, chunks={"x": 64, "y": 64})
    stacked = stackstac.stack(
        made, assets=["red", key], epsg=32631, resolution=10, bounds=box, snap_bounds=False, chunksize=64
    )
    for theirs in (loaded, stacked):
        comp = s2c.composite(theirs, "median", valid=[s2c.Nodata(), s2c.SCL()]).compute()
        assert comp["composite"]["band"].values.tolist() == ["red"]
        np.testing.assert_array_equal(np.nan_to_num(comp["composite"].values), ours["composite"].values)
        np.testing.assert_array_equal(comp["count"].values, ours["count"].values)


def test_what_loaders_cannot_do_is_said(items, tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match="loader is 'gdal'; it is one of 's2composite', 'odc', 'stackstac'"):
        s2c.open_cube(items, loader="gdal")
    write_tif(tmp_path / "T31TCJ_20230709T104629_TCI.tif", encoded(0))
    with pytest.raises(ParameterError, match="is not STAC"):
        s2c.open_cube(tmp_path, loader="odc")
    with pytest.raises(BandError, match="stackstac needs bands="):
        s2c.open_cube(items, loader="stackstac")
    gridless = copy.deepcopy(items)
    for facts in (part for item in gridless for part in (item["properties"], *item["assets"].values())):
        for name in [name for name in facts if name.startswith("proj:")]:
            del facts[name]
    for name in ("odc", "stackstac"):
        with pytest.raises(SourceError, match=f"{name} cannot load the 5 items: .*give crs= and resolution="):
            s2c.open_cube(gridless, bands=["red"], loader=name)
    with pytest.raises(ParameterError, match="harmonise"):
        s2c.open_cube(items, loader="odc", reflectance=True)
    monkeypatch.setitem(__import__("sys").modules, "odc.stac", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 's2composite\[stac\]'"):
        s2c.open_cube(items, bands=["red"], loader="odc")
    monkeypatch.setitem(__import__("sys").modules, "stackstac", None)
    with pytest.raises(MissingDependencyError, match=r"'s2composite\[stackstac\]' \(stackstac needs pandas < 3"):
        s2c.open_cube(items, bands=["red"], loader="stackstac")
