"""CloudNet: the classes that ukis-csmask gives for whole scenes, whatever windows, areas, tiles and workers."""

import datetime as dt
import importlib
import logging
import pickle

import dask
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

import s2composite as s2c
from s2composite.cube import tile_masks
from s2composite.cube.masking import masks_of
from s2composite.cube.open import stack_of
from s2composite.errors import BandError, MissingDependencyError, ParameterError, SceneError
from s2composite.pixels import cloud_net
from s2composite.pixels.cloud_net import NETWORK_BANDS, CloudNet
from s2composite.scenes.products import product_level, sensor_of

CODES = dict(zip(NETWORK_BANDS, ("B02", "B03", "B04", "B08", "B11", "B12"), strict=True))
CODED = tuple(CODES.values())
RAW = {"cleanup": (), "level": "l2a"}


@pytest.fixture(autouse=True)
def _forgotten():
    """Each test evaluates its tiles itself."""
    tile_masks._TILES.clear()


@pytest.fixture
def csmask():
    """The package's own way, from reflectances ``(band, y, x)`` of a whole scene to its classes."""
    pytest.importorskip("ukis_csmask", reason="needs s2composite[clouds]")
    module = importlib.import_module("ukis_csmask.mask")

    def classes(pixels, level="l2a"):
        image = np.moveaxis(np.nan_to_num(pixels, nan=0.0).astype(np.float32), 0, -1)
        threads = {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "providers": ["CPUExecutionProvider"]}
        return module.CSmask(image, list(NETWORK_BANDS[: len(pixels)]), level, **threads).csm[..., 0]

    return classes


def smooth(rng, shape, cell):
    """Noise between 0 and 1 that changes over `cell` pixels."""
    coarse = rng.random([n // cell + 2 for n in shape])
    fine = coarse.repeat(cell, 0).repeat(cell, 1)
    for axis in (0, 1):
        fine = sum(np.roll(fine, by, axis) for by in range(cell)) / cell
    return fine[cell : cell + shape[0], cell : cell + shape[1]]


def make(directory, shape=(300, 260), scenes=2, size=30, names=CODED, seed=1):
    """Scenes of land with clouds and their shadows as files of bands, with a corner that was not observed."""
    rng = np.random.default_rng(seed)
    ground = {"B02": 900, "B03": 1100, "B04": 1200, "B08": 3000, "B11": 2600, "B12": 1900}
    relief = smooth(rng, shape, 30)
    for day in range(scenes):
        cloud = np.clip(smooth(rng, shape, 40) * 5 - 3.6, 0, 1)
        shadow = np.roll(cloud, (12, 9), (0, 1))
        for name in names:
            pixels = ground.get(name, 500) * (0.85 + 0.3 * relief) * (1 - 0.7 * shadow) * (1 - cloud) + 5200 * cloud
            pixels = np.clip(pixels + rng.normal(0, 10, shape), 1, 60000).astype(np.uint16)
            pixels[: shape[0] // 4, : shape[1] // 3] = 0
            write(directory / f"T31TCJ_202307{day + 1:02}T104629_{name}.tif", pixels[None], size)
    return directory


def write(path, pixels, size, names=()):
    """Write pixels ``(band, y, x)`` of some size in metres, 0 where there are none."""
    count, height, width = pixels.shape
    profile = {"count": count, "dtype": pixels.dtype, "crs": "EPSG:32631", "nodata": 0, "compress": "deflate"}
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256, "transform": from_origin(3e5, 49e5, size, size)}
    with rasterio.open(path, "w", "GTiff", height=height, width=width, **tiled, **profile) as file:
        file.write(pixels)
        for i, name in enumerate(names, 1):
            file.set_band_description(i, name)


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    return make(tmp_path_factory.mktemp("season"))


def opened(source, **how):
    return s2c.open_cube(source, bands=list(CODES.values())[:4], **how)


def classes_of(cube, **given):
    """Classes of all scenes ``(t, y, x)``, 255 where nothing was observed, by which classes are dropped."""
    stack, _ = stack_of(cube)
    region = tuple(slice(0, n) for n in stack.shape[2:])
    out = np.zeros((len(stack.scenes), *stack.shape[2:]), np.uint8)
    kept = []
    for names in (("cloud",), ("shadow",)):
        (mask,) = masks_of(stack, [CloudNet(names, **RAW | given)])
        failed = np.zeros(len(stack.scenes), bool)
        kept.extend(mask.begin(region)([region], failed, [None]))
        assert not failed.any()
    out[~kept[0]], out[~kept[1]] = 1, 2
    out[~kept[0] & ~kept[1]] = 255
    return out


def expected_of(source, csmask, names=NETWORK_BANDS):
    """What the package gives, 255 where no band has a value."""
    whole = s2c.open_cube(source, bands=[CODES[name] for name in names], reflectance=True).compute().values
    return np.where(np.isnan(whole).all(axis=1), 255, [csmask(pixels) for pixels in whole])


def test_classes_are_those_of_the_package_for_whole_scenes(season, csmask):
    expected = expected_of(season, csmask)
    np.testing.assert_array_equal(classes_of(opened(season, chunks=128)), expected)
    assert (np.bincount(expected.ravel(), minlength=256)[[0, 1, 2, 255]] > 2000).all()
    cube = opened(season, chunks=128)
    counts = s2c.composite(cube, valid=CloudNet(level="l2a", cleanup=[("dilation", 3)])).compute()["count"].values
    grown = s2c.pixels.morphology.dilation((expected == 1) | (expected == 2), 3)
    np.testing.assert_array_equal(counts, (~grown & (expected != 255)).sum(axis=0))


def test_four_bands_where_scenes_have_no_short_waves(tmp_path, csmask):
    make(tmp_path, (270, 256), 1, names=("B02", "B03", "B04", "B08"))
    expected = expected_of(tmp_path, csmask, NETWORK_BANDS[:4])
    np.testing.assert_array_equal(classes_of(opened(tmp_path)), expected)


def test_bands_may_be_named_and_levels_differ(season, csmask):
    whole = s2c.open_cube(season, bands=["B02", "B03", "B04", "B08"], reflectance=True).compute().values
    found = classes_of(opened(season), bands=["B02", "B03", "B04", "B08"], level="L1C")
    np.testing.assert_array_equal(
        found, np.where(np.isnan(whole).all(axis=1), 255, [csmask(one, "l1c") for one in whole])
    )
    assert (found != classes_of(opened(season))).any()


def test_a_network_is_loaded_once_and_each_tile_evaluated_once(season, monkeypatch):
    pytest.importorskip("ukis_csmask", reason="needs s2composite[clouds]")
    runtime = importlib.import_module("onnxruntime")
    loaded, session = [], runtime.InferenceSession

    def load(*args, **how):
        loaded.append(args)
        return session(*args, **how)

    monkeypatch.setattr(runtime, "InferenceSession", load)
    monkeypatch.setattr(cloud_net, "_NETWORKS", {})
    called, marks = [], CloudNet.marks
    monkeypatch.setattr(CloudNet, "marks", lambda self, *args: (called.append(self), marks(self, *args))[1])
    rule = CloudNet(level="l2a")
    with dask.config.set(scheduler="threads", num_workers=3):
        s2c.composite(opened(season, chunks=64), valid=rule).compute()
    assert len(loaded) == 1
    assert len(called) == 2  # scenes


# --- without the network ----------------------------------------------------------------------------------------------


@pytest.fixture
def bright(monkeypatch):
    """Any package or none: reflectance above 0.3 in blue is cloud."""

    class Bright:
        def probabilities(self, patch):
            cloud = (patch[0] > 0.3).astype(np.float32)
            return np.stack([1 - cloud, cloud, 0 * cloud])

    monkeypatch.setattr(cloud_net, "network", lambda bands, level: Bright())
    monkeypatch.setattr(cloud_net, "network_version", lambda bands, level: f"{bands} {level}")


@pytest.mark.parametrize("side", [204, 408, 1836])
def test_areas_windows_tiles_and_threads_do_not_show(tmp_path, bright, monkeypatch, side):
    make(tmp_path, (700, 450), 3)
    monkeypatch.setattr(CloudNet, "side", side)
    cube = opened(tmp_path, chunks=101)
    pixels = s2c.open_cube(tmp_path, bands=["B02"], reflectance=True).compute().values[:, 0]
    expected = np.where(np.isnan(pixels), 255, pixels > np.float32(0.3))
    np.testing.assert_array_equal(classes_of(cube), expected)
    part = {"y": slice(190, 431), "x": slice(250, 404)}
    tile_masks._TILES.clear()
    np.testing.assert_array_equal(classes_of(cube.isel(part)), expected[:, part["y"], part["x"]])
    rule = CloudNet(level="l2a", cleanup=())
    with dask.config.set(scheduler="threads", num_workers=4):
        counts = s2c.composite(cube, valid=rule).compute()["count"].values
    np.testing.assert_array_equal(counts, (expected == 0).sum(axis=0))


def test_it_looks_at_about_30_m_and_only_at_what_is_needed(tmp_path, bright):
    make(tmp_path, (1300, 1300), 1, size=10)
    stack, _ = stack_of(opened(tmp_path))
    (mask,) = masks_of(stack, [CloudNet(level="l2a")])
    assert mask.factor == 3
    assert mask.mask.stack.geobox.resolution.x == 30
    assert (mask.mask.tiles.origin, mask.mask.tiles.sides) == ((0, 0), (612, 612))
    stack, _ = stack_of(opened(tmp_path).isel(y=slice(700, 760), x=slice(300, 400)))
    (mask,) = masks_of(stack, [CloudNet(level="l2a", resolution=10)])
    assert (mask.mask.tiles.origin, mask.mask.tiles.sides) == ((612, 204), (204, 204))
    (mask,) = masks_of(stack, [CloudNet(level="l2a", resolution=60)])
    assert mask.factor == 6


def test_what_was_not_observed_is_not_run(tmp_path, monkeypatch, bright):
    make(tmp_path, (900, 900), 1)
    for path in tmp_path.glob("*.tif"):
        with rasterio.open(path, "r+") as file:
            pixels = file.read()
            pixels[:, :700] = 0
            file.write(pixels)
    shapes, network = [], cloud_net.network(6, "l2a")

    class Counted:
        def probabilities(self, patch):
            shapes.append(patch.shape)
            return network.probabilities(patch)

    monkeypatch.setattr(cloud_net, "network", lambda bands, level: Counted())
    assert (classes_of(opened(tmp_path))[:, :700] == 255).all()
    # of 5 x 5 the rows that begin at 561 and 765; both classes are asked for
    assert shapes == [(6, 256, 256)] * 2 * 2 * 5


def scene(name, *assets, collection=None):
    files = tuple(s2c.Asset(asset, f"/data/{name}/{asset}.tif") for asset in assets or ("B04",))
    return s2c.Scene(
        name, dt.datetime(2023, 7, 9, tzinfo=dt.UTC), files, collection=collection, sensor=sensor_of(name, collection)
    )


@pytest.mark.parametrize(
    ("one", "level"),
    [
        (scene("S2A_MSIL1C_20230709T104621_N0509_R051_T31TCJ_20230709T170403"), "1"),
        (scene("S2B_31TCJ_20230719_0_L2A"), "2"),
        (scene("LC08_L2SP_198030_20230601_20230605_02_T1"), "2"),
        (scene("LC08_L1TP_198030_20230601_20230605_02_T1"), "1"),
        (scene("T31TCJ_20230709T104629", collection="sentinel-2-l2a"), "2"),
        (scene("HLS.S30.T31TCJ.2023190T104629.v2.0_20230709"), "2"),
        (scene("T31TCJ_20230709T104629", "B04", "SCL"), "2"),
        (scene("T31TCJ_20230709T104629", "B04", "B10"), "1"),
        (scene("T31TCJ_20230709T104629"), None),
        (scene("LC08_20230601", "B10"), None),
    ],
)
def test_levels_are_those_that_names_say(one, level):
    assert product_level(one) == level


def test_files_in_a_product_have_its_level(tmp_path, bright):
    source = tmp_path / "S2A_MSIL1C_20230701T104621_N0509_R051_T31TCJ_20230701T170403.SAFE"
    source.mkdir()
    (mask,) = masks_of(stack_of(opened(make(source, (64, 64), 1)))[0], [CloudNet()])
    assert mask.mask.rule.level == "l1c"


def test_errors_say_what_is_missing(season, tmp_path, bright):
    with pytest.raises(ParameterError, match=r"level unknown; say which they are, level='l1c' or level='l2a'"):
        s2c.composite(opened(season), valid=CloudNet())
    make(tmp_path, (64, 64), 1, names=("B02", "B03", "B04"))
    three = s2c.open_cube(tmp_path, bands=["B02"])
    with pytest.raises(BandError, match=r"CloudNet looks at blue, green, red, nir.* has no band 'nir'; it has B02"):
        s2c.composite(three, valid=CloudNet(level="l2a"))
    names = ["sigma1", "sigma2", "sigma3", "sigma4"]
    write(tmp_path / "20230701_stack.tif", np.ones((4, 64, 64), np.uint16), 30, names)
    unknown = s2c.open_cube(tmp_path / "20230701_stack.tif", bands=names)
    with pytest.raises(SceneError, match=r"no reflectances \(reflectance=True, CloudNet\): the scale of band 'sigma1'"):
        s2c.composite(unknown, valid=CloudNet(level="l2a", bands=names))
    with pytest.raises(ParameterError, match="CloudNet"):
        s2c.composite(opened(season).compute(), valid=CloudNet(level="l2a"))
    for wrong in (
        {"classes": ()}, {"classes": "clouds"}, {"level": "2"}, {"bands": ["B02"]}, {"resolution": 0},
        {"cleanup": [("grown", 2)]},
    ):  # fmt: skip
        with pytest.raises(ParameterError, match=r"CloudNet|grown"):
            CloudNet(**wrong)


def test_a_missing_package_is_named_with_its_extra(season, monkeypatch):
    cloud_net.network_version.cache_clear()
    monkeypatch.setattr(cloud_net, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 's2composite\[clouds\]'"):
        s2c.composite(opened(season), valid=CloudNet(level="l2a"))
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"onnxruntime: pip install 's2composite\[clouds\]'"):
        s2c.composite(opened(season), valid=CloudNet(level="l2a"))


def test_a_scene_on_which_the_network_fails_stops_or_is_left_out(season, bright, monkeypatch, caplog):
    network, calls = cloud_net.network(6, "l2a"), []

    class Failing:
        def probabilities(self, patch):
            calls.append(patch)
            if len(calls) == 1:
                raise RuntimeError("out of memory")
            return network.probabilities(patch)

    monkeypatch.setattr(cloud_net, "network", lambda bands, level: Failing())
    rule = CloudNet(level="l2a", cleanup=())
    with pytest.raises(
        SceneError, match=r"scene T31TCJ_20230701T104629, window y 0:300 x 0:260 .*the network of Cloud"
    ):
        s2c.composite(opened(season), valid=rule).compute(scheduler="sync")
    tile_masks._TILES.clear()
    calls.clear()
    with caplog.at_level(logging.WARNING):
        counts = s2c.composite(opened(season, on_error="skip"), valid=rule).compute(scheduler="sync")["count"].values
    assert "out of memory; it is not used there" in caplog.text
    tile_masks._TILES.clear()
    second = s2c.composite(opened(season).isel(time=[1]), valid=rule).compute(scheduler="sync")["count"].values
    np.testing.assert_array_equal(counts, second)


def test_the_rule_is_parameters_alone():
    rule = CloudNet("shadow", level="L2A", resolution=60, cleanup=[["dilation", 2]])
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert str(rule) == "CloudNet(classes=('shadow',), resolution=60.0, level='l2a', cleanup=(('dilation', 2),))"
    named = s2c.pixels.mask_bands.resolve_rule(
        "cloud_net", classes=["shadow"], level="l2a", resolution=60, cleanup=[["dilation", 2]]
    )
    assert named == rule


def job_of(source, folder):
    rule = {"cloud_net": {"level": "l2a", "cleanup": [["dilation", 2]], "cache": str(folder / "cache")}}
    output = {"output": str(folder / "a.tif"), "layers": ["composite", "count"]}
    return {"source": str(source), "bands": list(CODED[:4]), "valid": ["nodata", rule], **output}


def test_plans_have_the_memory_and_the_seconds_of_the_network(season, tmp_path, bright):
    job = job_of(season, tmp_path)
    plain, made = s2c.plan({**job, "valid": ["nodata"]}), s2c.plan(job)
    assert made.task_memory > plain.task_memory + 300e6
    # two scenes of 300 x 260 pixels
    assert 0.3 < (made.minutes - plain.minutes) * 60 * made.workers * made.threads < 0.6


@pytest.fixture
def counted(bright, monkeypatch):
    """How often a tile was evaluated."""
    called, marks = [], CloudNet.marks
    monkeypatch.setattr(CloudNet, "marks", lambda self, *args: (called.append(self), marks(self, *args))[1])
    return called


def count_of(cube, rule):
    tile_masks._TILES.clear()  # as in another process
    return s2c.composite(cube, valid=rule).compute(scheduler="sync")["count"].values


def test_a_cache_serves_other_runs_areas_and_classes(season, tmp_path, counted):
    cube, folder = opened(season, chunks=128), tmp_path / "cache"
    expected = count_of(cube, CloudNet(level="l2a"))
    del counted[:]
    rule = CloudNet(level="l2a", cache=folder)
    assert "cache" not in str(rule)
    np.testing.assert_array_equal(count_of(cube, rule), expected)
    assert len(counted) == 2
    assert len(list(folder.iterdir())) == 2
    np.testing.assert_array_equal(count_of(cube, rule), expected)
    part = cube.isel(y=slice(40, 99), x=slice(3, 200), time=[1])
    other = {"classes": "cloud", "cleanup": (), "level": "l2a"}
    np.testing.assert_array_equal(
        count_of(part, CloudNet(cache=str(folder), **other)), count_of(part, CloudNet(**other))
    )
    assert len(counted) == 3  # of the rule without a cache
    # of other numbers it does not know anything
    count_of(cube, CloudNet(level="l1c", cache=folder))
    assert len(counted) == 5
    with rasterio.open(min(folder.iterdir())) as file:
        assert file.transform == from_origin(3e5, 49e5, 30, 30)
        assert set(np.unique(file.read(1))) == {0, 1, 128}


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "text"])
def test_damaged_files_of_a_cache_are_computed_again(season, tmp_path, counted, caplog, damage):
    cube, rule = opened(season), CloudNet(level="l2a", cache=tmp_path)
    expected = count_of(cube, rule)
    first, second = sorted(tmp_path.iterdir())
    if damage == "cut":
        first.write_bytes(first.read_bytes()[:-200])
    elif damage == "flipped":
        with rasterio.open(first, "r+") as file:
            file.write(1 - np.minimum(file.read(1), 1), 1)
    elif damage == "other":
        first.write_bytes(second.read_bytes())
    else:
        first.write_text("no TIFF")
    del counted[:]
    np.testing.assert_array_equal(count_of(cube, rule), expected)
    assert len(counted) == 1
    assert f"{first}: not used, the tile is computed again" in caplog.text
    np.testing.assert_array_equal(count_of(cube, rule), expected)
    assert len(counted) == 1


def test_other_files_of_a_scene_and_places_that_cannot_be_written(tmp_path, counted, caplog):
    source, folder = tmp_path / "scenes", tmp_path / "cache"
    source.mkdir()
    make(source, (64, 64), 1)
    rule = CloudNet(level="l2a", cache=folder)
    count_of(opened(source), rule)
    make(source, (64, 64), 1, seed=2)
    fresh = count_of(opened(source), rule)
    np.testing.assert_array_equal(fresh, count_of(opened(source), CloudNet(level="l2a")))
    assert len(counted) == 3
    assert len(list(folder.iterdir())) == 2
    taken = next(source.iterdir())
    np.testing.assert_array_equal(count_of(opened(source), CloudNet(level="l2a", cache=taken)), fresh)
    assert "this tile is not kept" in caplog.text
    for wrong in ("", 7):
        with pytest.raises(ParameterError, match="the cache of CloudNet"):
            CloudNet(cache=wrong)


def test_scenes_that_fail_are_not_kept(tmp_path, counted):
    source, folder = tmp_path / "scenes", tmp_path / "cache"
    source.mkdir()
    make(source, (300, 300), 2)
    broken = min(source.glob("*_B12.tif"))
    broken.write_bytes(broken.read_bytes()[:20000])
    rule = CloudNet(level="l2a", cache=folder, cleanup=())
    count_of(opened(source, on_error="skip"), rule)
    assert [path.name[:15] for path in folder.iterdir()] == ["T31TCJ_20230702"]


# --- slow: real data, larger scenes, workers --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("side", [408, 1836])
def test_a_larger_scene_in_tiles_of_any_size(tmp_path, csmask, monkeypatch, side):
    make(tmp_path, (1100, 830), 1)
    monkeypatch.setattr(CloudNet, "side", side)
    np.testing.assert_array_equal(classes_of(opened(tmp_path)), expected_of(tmp_path, csmask))


@pytest.mark.slow
def test_real_scenes_have_the_classes_of_the_package(imagery, csmask):
    source = str(imagery / "zagreb_t33twl_120m" / "*_B0*.tif")
    cube = opened(source, harmonise=False)
    expected = expected_of(source, csmask, NETWORK_BANDS[:4])
    found = classes_of(cube)
    np.testing.assert_array_equal(found, expected)
    clouds = s2c.open_cube(str(imagery / "zagreb_t33twl_120m" / "*_SCL.tif")).isin([8, 9]).values[:, 0]
    seen = found != 255
    assert (clouds == (found == 1))[seen].mean() > 0.8


@pytest.mark.slow
def test_workers_give_the_same_result(tmp_path, csmask, client_of_test):
    source, folder = tmp_path / "scenes", tmp_path / "cache"
    source.mkdir()
    make(source, (520, 400), 2)
    rule = CloudNet(level="l2a")
    there = s2c.composite(opened(source, chunks=256), valid=rule).compute()
    kept = CloudNet(level="l2a", cache=folder)
    again = s2c.composite(opened(source, chunks=256), valid=kept).compute()
    assert again["count"].values.tobytes() == there["count"].values.tobytes()
    assert len(list(folder.iterdir())) == 2
    with dask.config.set(scheduler="threads"):
        for chunks in (512, 520):
            here = s2c.composite(opened(source, chunks=chunks), valid=rule).compute()
            for name in ("composite", "count"):
                assert here[name].values.tobytes() == there[name].values.tobytes()


@pytest.mark.slow
def test_a_job_by_name_is_the_composite(season, tmp_path, csmask, client_of_test):
    s2c.run(job_of(season, tmp_path), client=client_of_test)
    with rasterio.open(tmp_path / "a_count.tif") as file, dask.config.set(scheduler="threads"):
        rule = CloudNet(level="l2a", cleanup=[("dilation", 2)])
        counts = s2c.composite(opened(season), valid=["nodata", rule]).compute()["count"].values
        np.testing.assert_array_equal(file.read(1), counts)
    assert len(list((tmp_path / "cache").iterdir())) == 2
