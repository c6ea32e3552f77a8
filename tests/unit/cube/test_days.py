"""Days: where products overlap, an observation and its masks come from the same product, the first valid one."""

import itertools

import numpy as np
import pytest
import rasterio
import scipy.ndimage as ndi
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import s2composite as s2c
from s2composite.cube.masking import WarpedMask, masks_of
from s2composite.cube.open import stack_of
from s2composite.pixels.mask_bands import SCL, CloudProbability
from s2composite.scenes.find import find_scenes
from support.rasters import ORIGIN, write_tif
from support.stac_items import item_of

HEIGHT, WIDTH = 72, 60
RULE = SCL(("cloud high probability",), cleanup=[("dilation", 1)])
RULES = [s2c.Nodata(), s2c.Saturated(), RULE]


def products(folder, seed, *, days=2, overlap=3, mask_scale=2, lefts=(0, 18, 6)):
    """Overlapping products of some days, each with its own holes, saturated pixels and clouds."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for day, i in itertools.product(range(days), range(overlap)):
        name = f"T31T{'CDE'[i]}J_2023070{day + 1}T10462{i}"
        left = lefts[i]
        bands = rng.integers(1, 250, (3, HEIGHT, WIDTH)).astype(np.uint8)
        bands[:, rng.random((HEIGHT, WIDTH)) < 0.2] = 0
        bands[0, rng.random((HEIGHT, WIDTH)) < 0.1] = 0
        bands[2, rng.random((HEIGHT, WIDTH)) < 0.2] = 255
        here = ORIGIN @ Affine.translation(left, 0)
        write_tif(folder / f"{name}_TCI.tif", bands, transform=here, nodata=0)
        small = (HEIGHT // mask_scale, WIDTH // mask_scale)
        scl = rng.choice(np.array([0, 4, 4, 4, 9], np.uint8), small)
        coarse = here @ Affine.scale(mask_scale)
        write_tif(folder / f"{name}_SCL.tif", scl, transform=coarse, nodata=0)
        write_tif(folder / f"{name}_CLDPRB.tif", rng.integers(0, 101, small, np.uint8), transform=coarse)
    return folder


def day_by_day(
    folder, rule=RULE, mask="SCL", bad=lambda scl: scl == 9, empty=lambda scl: scl == 0, grow=1, saturated=255
):
    """Each product's values and validity on the union grid, one pixel of one product after the other."""
    files = sorted(folder.glob("*_TCI.tif"), key=lambda path: (path.name[7:22], path.name))
    with rasterio.open(files[0]) as dataset:
        origin = dataset.transform
    bounds = [rasterio.open(path).bounds for path in files]
    width = round((max(b.right for b in bounds) - min(b.left for b in bounds)) / 10)
    west = min(b.left for b in bounds)
    days = {}
    for path in files:
        days.setdefault(path.name[7:15], []).append(path)
    pixels = np.zeros((len(days), 3, HEIGHT, width), np.uint8)
    usable = np.zeros((len(days), HEIGHT, width), bool)
    disc = np.hypot(*np.mgrid[-grow : grow + 1, -grow : grow + 1]) <= grow
    for day, members in enumerate(days.values()):
        for path in members:
            with rasterio.open(path) as dataset:
                values, left = dataset.read(), round((dataset.bounds.left - west) / 10)
            with rasterio.open(path.with_name(path.name.replace("TCI", mask))) as dataset:
                raw, factor = dataset.read(1), round(dataset.res[0] / origin.a)
            cloud = ndi.binary_dilation(bad(raw), disc) | empty(raw)
            clear = np.kron(~cloud, np.ones((factor, factor), bool))
            for y, x in np.ndindex(HEIGHT, WIDTH):
                value = values[:, y, x]
                good = clear[y, x] and (value > 0).all() and (value < saturated).all()
                if good and not usable[day, y, left + x]:
                    usable[day, y, left + x] = True
                    pixels[day, :, y, left + x] = value
    return pixels, usable


def check(cube, folder, **how):
    rules = how.pop("rules", RULES)
    pixels, usable = day_by_day(folder, **how)
    comp = s2c.composite(cube, ["luminance_median", "mean"], valid=rules).compute()
    np.testing.assert_array_equal(comp["count"], usable.sum(0))
    plain = cube.copy(data=np.where(usable[:, None], pixels, 0))
    expected = s2c.composite(plain, ["luminance_median", "mean"], valid=s2c.Nodata())
    for layer in ("luminance_median", "luminance_median_source", "mean"):
        np.testing.assert_array_equal(comp[layer], expected[layer])
    return comp, usable


@pytest.mark.parametrize("chunks", [17, 512])
def test_data_and_mask_are_of_one_product(tmp_path, chunks):
    products(tmp_path, 1)
    cube = s2c.open_cube(tmp_path, bands=["TCI"], groupby="solar_day", chunks=chunks)
    assert cube.sizes["time"] == 2
    _, usable = check(cube, tmp_path)
    shares = s2c.valid_share(cube, RULES)["valid"].values
    np.testing.assert_allclose(shares, usable.mean((1, 2)))


@pytest.mark.parametrize("chunks", [17, 512])
def test_a_rule_drops_of_a_day_what_it_leaves_of_no_product(tmp_path, chunks):
    """Each rule alone: the oracle composes days by pixel and product with that rule and nodata only."""
    products(tmp_path, 1)
    cube = s2c.open_cube(tmp_path, bands=["TCI"], groupby="solar_day", chunks=chunks)
    dropped = s2c.composite(cube, valid=RULES).dropped()
    clear = {"bad": lambda scl: scl > 99, "empty": lambda scl: scl > 99}
    _, left = day_by_day(tmp_path, saturated=256, **clear)
    wanted = {
        "nodata 0": left,
        "saturated 255": day_by_day(tmp_path, **clear)[1],
        "SCL": day_by_day(tmp_path, saturated=256)[1],
        "all": day_by_day(tmp_path)[1],
    }
    assert dropped["rule"].values.tolist() == list(wanted)
    for name, usable in wanted.items():
        np.testing.assert_allclose(dropped.sel(rule=name), 1 - usable.sum((1, 2)) / left.sum((1, 2)), atol=1e-12)
    assert dropped.values[:, 1:].min() > 0


@given(seed=st.integers(0, 10**6), overlap=st.integers(1, 3), scale=st.sampled_from([1, 2, 6]), grow=st.integers(0, 2))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_products(tmp_path_factory, seed, overlap, scale, grow):
    folder = products(tmp_path_factory.mktemp("any"), seed, overlap=overlap, mask_scale=scale)
    rule = SCL(("cloud high probability",), cleanup=[("dilation", grow)] if grow else None)
    cube = s2c.open_cube(folder, bands=["TCI"], groupby="solar_day", chunks=40)
    check(cube, folder, rules=[s2c.Nodata(), s2c.Saturated(), rule], grow=grow)


def test_a_probability_of_zero_is_clear_and_not_missing(tmp_path):
    products(tmp_path, 3)
    cube = s2c.open_cube(tmp_path, bands=["TCI"], groupby="solar_day", chunks=40)
    rule = CloudProbability(50, band="CLDPRB")
    nothing = {"mask": "CLDPRB", "bad": lambda p: p > 50, "empty": lambda p: p > 100, "grow": 0}
    check(cube, tmp_path, rules=[s2c.Nodata(), s2c.Saturated(), rule], **nothing)


def test_masks_on_grids_of_their_own(tmp_path):
    """Masks whose coarse pixels are not aligned with those of other products are warped separately."""
    products(tmp_path, 4, lefts=(0, 19, 5))
    cube = s2c.open_cube(tmp_path, bands=["TCI"], groupby="solar_day", chunks=33)
    (mask,) = masks_of(stack_of(cube)[0], [RULE])
    assert isinstance(mask, WarpedMask)
    check(cube, tmp_path)


def test_unreadable_product_is_reported_and_affects_no_other(tmp_path):
    products(tmp_path, 5)
    (tmp_path / "T31TDJ_20230702T104621_SCL.tif").write_bytes(b"not a TIFF")
    cube = s2c.open_cube(tmp_path, bands=["TCI"], groupby="solar_day", on_error="skip")
    comp = s2c.composite(cube, valid=RULES).compute()
    assert comp["read_status"].values.ravel().tolist() == [0, 2], "a mask that cannot be read is reported, too"
    (tmp_path / "T31TDJ_20230702T104621_TCI.tif").unlink()
    (tmp_path / "T31TDJ_20230702T104621_SCL.tif").unlink()
    _, usable = day_by_day(tmp_path)
    np.testing.assert_array_equal(comp["count"], usable.sum(0), err_msg="as if that product were not there")
    folder = products(tmp_path / "data", 5)
    cube = s2c.open_cube(folder, bands=["TCI"], groupby="solar_day", on_error="skip", headers="read")
    victim = folder / "T31TDJ_20230702T104621_TCI.tif"
    victim.write_bytes(victim.read_bytes()[:2000])
    comp = s2c.composite(cube, valid=RULES).compute()
    assert comp["read_status"].values.ravel().tolist() == [0, 2]
    same = products(tmp_path / "same", 5)
    (same / victim.name).unlink()
    _, usable = day_by_day(same)
    np.testing.assert_array_equal(comp["count"], usable.sum(0), err_msg="the others of its day are there")


def test_next_product_fills_the_swath_edge(tmp_path):
    """Colours left by JPEG outside the swath look like valid values: only the rule detects them."""
    one, two = np.full((3, 40, 40), 9, np.uint8), np.full((3, 40, 40), 100, np.uint8)
    one[:, :, :20] = 0
    one[:, :, 22:] = 200
    for name, pixels in (("T31TCJ_20230701T104620", one), ("T31TDJ_20230701T104621", two)):
        write_tif(tmp_path / f"{name}_TCI.tif", pixels, nodata=0)
    cube = s2c.open_cube(tmp_path, groupby="solar_day", chunks=16)
    comp = s2c.composite(cube, valid=s2c.SwathEdge(2)).compute()
    assert comp["composite"][0, 7].values.tolist() == [100] * 22 + [200] * 18
    assert int(comp["count"].min()) == 1


@pytest.mark.parametrize("chunks", [25, 400])
def test_warped_days_are_those_of_each_product_alone(tmp_path, chunks):
    products(tmp_path, 6, lefts=(0, 19, 5))
    grid = {"crs": "EPSG:3035", "resolution": 13}
    cube = s2c.open_cube(tmp_path, bands=["TCI"], groupby="solar_day", chunks=chunks, **grid)
    pixels = np.zeros(cube.shape, np.uint8)
    usable = np.zeros((2, *cube.shape[2:]), bool)
    for scene in find_scenes(tmp_path):
        alone = s2c.open_cube([scene], bands=["TCI"], geobox=cube.odc.geobox)
        good = s2c.composite(alone, "mean", valid=RULES).compute()["count"].values == 1
        day = scene.time.day - 1
        take = good & ~usable[day]
        pixels[day][:, take] = alone.values[0][:, take]
        usable[day] |= good
    comp = s2c.composite(cube, valid=RULES).compute()
    np.testing.assert_array_equal(comp["count"], usable.sum(0))
    plain = s2c.composite(cube.copy(data=np.where(usable[:, None], pixels, 0)), valid=s2c.Nodata())
    np.testing.assert_array_equal(comp["composite"], plain["composite"])
    assert 0 < usable.mean() < 1


def test_masks_stay_with_their_products_where_days_interleave(tmp_path):
    """Both sides of the antimeridian: a product of the next solar day was sensed between two of this one."""
    items = []
    for minute, (east, scl) in enumerate([(-179.0, 9), (179.0, 9), (-179.5, 4)]):
        data = write_tif(tmp_path / f"red{minute}.tif", np.full((40, 40), 10 + minute, np.uint8), nodata=0)
        classes = write_tif(tmp_path / f"scl{minute}.tif", np.full((40, 40), scl, np.uint8), nodata=0)
        item = item_of(f"S2A_{minute}", f"2023-07-01T00:0{minute}:00Z", {"red": data, "scl": classes})
        items.append(item | {"bbox": [east, 10, east + 0.1, 11]})
    cube = s2c.open_cube(items, bands=["red"], groupby="solar_day", harmonise=False)
    assert cube.scene.values.tolist() == ["S2A_0+1", "S2A_1"]
    comp = s2c.composite(cube, "median", valid=[s2c.Nodata(), SCL()]).compute()
    assert np.unique(comp["composite"]).tolist() == [12]
    assert np.unique(comp["count"]).tolist() == [1]
