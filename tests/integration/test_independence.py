"""Chunks, engines, grids and workers never show, whatever the rules are; rasterio and NumPy are the oracle."""

import datetime as dt
import itertools
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

import s2composite as s2c
import s2composite.pixels.recipe
import s2composite.reading.stack
import s2composite.reading.tiles
from s2composite.pixels.select import best_available_pixel
from support.morphology import peer
from support.oracles import unlike_of_pixel
from support.rasters import ORIGIN, write_tif

SIZE = 90
PLACES = ((0, 0), (0, 40), (36, 20), (500, 500))
"""Where the granules begin, in pixels (down, right): they overlap in part, and the last lies outside of the area."""

SERIES = tuple(range(0, 80, 10))
"""Days of eight scenes, in two of the places in turn: enough to compare each with those before and after."""

KINDS = (
    ("uint8", "nodata 0"), ("uint8", "nodata 255"), ("uint8", "alpha"), ("uint8", "mask"), ("uint8", "nothing"),
    ("uint16", "nothing"), ("uint16", "mask and nodata 7"), ("int16", "nodata -1"), ("int16", "mask"),
    ("float32", "nothing"), ("float32", "mask"), ("float32", "nodata -9999"),
)  # fmt: skip
"""Types of the numbers, and what says which of them are valid."""

GRIDS = {
    "own": (GeoBox((140, 130), ORIGIN, "EPSG:32631"), "nearest"),
    "zoomed": (GeoBox((150, 170), ORIGIN @ Affine.translation(20, 10) @ Affine.scale(0.5), "EPSG:32631"), "nearest"),
    "half a pixel": (GeoBox((140, 130), ORIGIN @ Affine.translation(0.5, -0.5), "EPSG:32631"), "nearest"),
    "other CRS": (None, "nearest"),
    "bilinear": (GeoBox((140, 130), ORIGIN @ Affine.translation(-4.3, 2.4), "EPSG:32631"), "bilinear"),
    "cubic, finer": (GeoBox((150, 170), ORIGIN @ Affine.translation(20, 10) @ Affine.scale(0.7), "EPSG:32631"), "cubic"),
    "bilinear, other CRS": (None, "bilinear"),
    "average, other CRS": (None, "average"),
}  # fmt: skip
"""Target grids, and how they are resampled."""

RULES = {
    "default": None,
    "everything": (),
    "value range": s2c.ValueRange(low=0, high=150),
    "saturated": s2c.Saturated(),
    "nodata": s2c.Nodata(),
    "swath edge": s2c.SwathEdge(1),
    "SCL": (s2c.Nodata(), s2c.SCL(cleanup=[("opening", 1), ("dilation", 2)])),
    "SCL alone": s2c.SCL(cleanup=[("closing", 2)]),
    "own mask": s2c.Usable("OWN"),
    "temporal mask": (s2c.Nodata(), s2c.TemporalMask(resolution=10, grow=1, min_left=1, white=255)),
    "array": (),
    "array and default": (s2c.Nodata(), s2c.Saturated()),
}


def grid_of(name):
    """Return the geobox and the method of a grid; that in another CRS lies around the granules."""
    geobox, method = GRIDS[name]
    if geobox is None:
        to = pyproj.Transformer.from_crs("EPSG:32631", "EPSG:3035", always_xy=True)
        x, y = to.transform(ORIGIN.c + 650, ORIGIN.f - 650)
        geobox = GeoBox((150, 140), Affine(10, 0, x - 713, 0, -10, y + 747), "EPSG:3035")
    return geobox, method


def declared(kind):
    return float(kind.split()[-1]) if "nodata" in kind else None


def write_scene(folder, t, dtype, kind, day, place):
    """Write a granule of three bands, its classes at 20 m and a mask of its own at 10 m; return the scene."""
    rng = np.random.default_rng([t, *map(ord, dtype + kind)])
    array = rng.integers(0, 201, (3, SIZE, SIZE)).astype(dtype)
    array[:, rng.random((SIZE, SIZE)) < 0.05] = 0
    array[:, rng.random((SIZE, SIZE)) < 0.05] = 1
    array[rng.integers(0, 3), rng.random((SIZE, SIZE)) < 0.05] = 255 if dtype == "float32" else np.iinfo(dtype).max
    valid = rng.random((SIZE, SIZE)) > 0.1
    valid[:, : 7 + t] = valid[30:44, 50:70] = False
    if kind.startswith("nodata"):
        array[:, ~valid] = declared(kind)
        array[t % 3, rng.random((SIZE, SIZE)) < 0.02] = declared(kind)  # in one of the bands only
    elif kind == "alpha":
        array = np.concatenate([array, np.where(valid, np.iinfo(dtype).max, 0)[None].astype(dtype)])
    down, right = place
    place = ORIGIN @ Affine.translation(right, down)
    options = {"photometric": "rgb", "nodata": declared(kind), "transform": place, "block": 32}
    options |= {"alpha": "yes"} if kind == "alpha" else {}
    paths = {"X": write_tif(folder / f"{t}_X.tif", array, interleave=("pixel", "band")[t % 2], **options)}
    if kind.startswith("mask"):
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(paths["X"], "r+") as dataset:
            dataset.write_mask(valid)
    classes = np.kron(rng.choice([0, 4, 5, 8, 9, 10], (9, 9), p=[0.1, 0.3, 0.3, 0.1, 0.1, 0.1]), np.ones((5, 5)))
    classes[rng.random(classes.shape) < 0.05] = 8
    paths["SCL"] = write_tif(folder / f"{t}_SCL.tif", classes.astype("uint8"), transform=place @ Affine.scale(2))
    own = (rng.random((SIZE, SIZE)) > 0.3).astype("uint8")
    paths["OWN"] = write_tif(folder / f"{t}_OWN.tif", own, transform=place)
    assets = tuple(s2c.Asset(name, path) for name, path in paths.items())
    time = dt.datetime(2023, 6, 1, 10, t, tzinfo=dt.UTC) + dt.timedelta(days=day)
    return s2c.Scene(f"T31TCJ_{t}", time, assets, granule="31TCJ")


@pytest.fixture(scope="module")
def scenes_of(tmp_path_factory):
    """A function that returns the scenes of a kind, each on a day of its own or all on two days."""
    made = {}

    def scenes(dtype, kind, days=(0, 1, 2, 3)):
        if (dtype, kind, days) not in made:
            folder = tmp_path_factory.mktemp("scenes")
            places = PLACES if len(days) <= len(PLACES) else itertools.cycle(PLACES[:2])
            made[dtype, kind, days] = [
                write_scene(folder, t, dtype, kind, day, place)
                for t, (day, place) in enumerate(zip(days, places, strict=False))
            ]
        return made[dtype, kind, days]

    return scenes


def path_of(scene, name):
    return next(asset.href for asset in scene.assets if asset.name == name)


def taken(path, geobox):
    """Return the row and column of a file's pixel in which each centre of a grid lies, and whether there is one."""
    with rasterio.open(path) as dataset:
        inverse, crs, shape = ~dataset.transform, dataset.crs, dataset.shape
    x, y = geobox.transform @ tuple(n + 0.5 for n in np.meshgrid(*(np.arange(n) for n in geobox.shape[::-1])))
    if str(geobox.crs) != str(crs):
        x, y = pyproj.Transformer.from_crs(str(geobox.crs), crs, always_xy=True).transform(x, y)
    column, row = (np.floor(n + 1e-9).astype(int) for n in inverse @ (x, y))
    inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    return row.clip(0, shape[0] - 1), column.clip(0, shape[1] - 1), inside


def nearest(path, geobox, kind, fill):
    """Return the pixels ``(3, y, x)`` of a file on a grid, and where it covers that."""
    with rasterio.open(path) as dataset:
        array, valid = dataset.read([1, 2, 3]), (dataset.read_masks([1, 2, 3]) > 0).all(0)
    row, column, inside = taken(path, geobox)
    if "mask" in kind or kind == "alpha":
        array[(array == fill) & valid] = 1 if fill == 0 and array.dtype.kind == "u" else fill - 1
        array[:, ~valid] = fill
        return np.where(inside, array[:, row, column], array.dtype.type(fill)), inside & valid[row, column]
    return np.where(inside, array[:, row, column], array.dtype.type(fill)), inside


def warped(path, geobox, kind, fill, method, ones):
    """Return the same as GDAL resamples it, the whole grid at once."""
    how = {
        "crs": str(geobox.crs), "transform": geobox.transform, "width": geobox.shape.x, "height": geobox.shape.y,
        "resampling": Resampling[method], "tolerance": 1e-7, "XSCALE": "1", "YSCALE": "1",
    }  # fmt: skip
    source = {"nothing": {"src_nodata": fill}, "mask and nodata 7": {"src_nodata": None}}.get(kind, {})
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(dataset, nodata=fill, UNIFIED_SRC_NODATA="PARTIAL", **source, **how) as there,
    ):
        array = there.read([1, 2, 3])
        if "mask" in kind or kind == "alpha":
            return array, (~np.isnan(array) if np.isnan(fill) else array != fill).any(0)
        plain = write_tif(ones, np.ones(dataset.shape, "uint8"), transform=dataset.transform)
    with rasterio.open(plain) as dataset, WarpedVRT(dataset, add_alpha=True, **how) as there:
        return array, there.read(2) > 0


def passes(name, pixels, covered, fill, scenes, geobox, mask):
    """Return which observations ``(t, y, x)`` pass the rules: from what the documentation says of each."""
    finite = np.isfinite(pixels).all(1)
    missing = (np.isnan(pixels) if np.isnan(fill) else pixels == fill).any(1)
    most = np.inf if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    saturated = (pixels == most).any(1)
    everything = covered & finite
    if name in ("default", "array and default"):
        return everything & ~missing & ~saturated & (mask if name != "default" else True)
    if name == "value range":
        return everything & ((pixels >= 0) & (pixels <= 150)).all(1)
    if name == "saturated":
        return everything & ~saturated
    if name == "swath edge":
        return everything & ~missing & ~peer(missing, [("dilation", 1)])
    if name == "own mask" or name.startswith("SCL"):
        return everything & np.stack([usable(name, scene, geobox) for scene in scenes]) & ~(missing & (name == "SCL"))
    given = True if mask is None else mask
    return (
        everything & {"everything": True, "nodata": ~missing, "array": given, "temporal mask": ~missing & given}[name]
    )


def usable(name, scene, geobox):
    """Return where a scene's mask band says that it may be used: cleaned as a whole, then looked up."""
    path = path_of(scene, "OWN" if name == "own mask" else "SCL")
    with rasterio.open(path) as dataset:
        band = dataset.read(1)
    steps = {"SCL": [("opening", 1), ("dilation", 2)], "SCL alone": [("closing", 2)], "own mask": []}[name]
    bad = np.zeros(band.shape, bool) if name == "own mask" else np.isin(band, (3, 8, 9, 10))
    valid = ~peer(bad[None], steps)[0] & (band != 0)
    row, column, inside = taken(path, geobox)
    return valid[row, column] & inside


def like_the_weeks_around(scenes, geobox, kind, fill):
    """Return what `TemporalMask` leaves of scenes that lie in two places in turn, each place by itself."""
    (_, rule), left = RULES["temporal mask"], np.zeros((len(scenes), *geobox.shape), bool)
    for place in (0, 1):
        mine = scenes[place::2]
        with rasterio.open(path_of(mine[0], "X")) as dataset:
            own = GeoBox(dataset.shape, dataset.transform, str(dataset.crs))
        found = [nearest(path_of(scene, "X"), own, kind, fill) for scene in mine]
        pixels, covered = (np.stack(arrays) for arrays in zip(*found, strict=True))
        seen = covered & ~(np.isnan(pixels) if np.isnan(fill) else pixels == fill).any(1)
        bits = pixels if pixels.dtype == "uint8" else np.nan_to_num(pixels).clip(1, 1023).astype("uint16")
        least, grey = bits.min(1), bits.sum(1, dtype=int) // 3
        days = [scene.time.timestamp() / 86400 for scene in mine]
        bad = np.zeros(seen.shape, bool)
        for y, x in np.ndindex(SIZE, SIZE):
            bad[:, y, x] = unlike_of_pixel(least[:, y, x], grey[:, y, x], seen[:, y, x], days, rule)
        bad |= peer(bad, [("opening", 1), ("dilation", rule.grow)])
        valid = ~bad | ((seen & ~bad).sum(0) < rule.min_left)
        row, column, inside = taken(path_of(mine[0], "X"), geobox)
        left[place::2] = valid[:, row, column] & inside
    return left


def opened(scenes, grid, **options):
    geobox, method = grid_of(grid)
    return s2c.open_cube(scenes, bands=["X"], geobox=geobox, resampling=method, **options)


def mask_for(cube):
    rng = np.random.default_rng(9)
    shape = (cube.sizes["time"], *cube.shape[2:])
    coords = {dim: cube[dim] for dim in ("time", "y", "x")}
    return xr.DataArray(rng.random(shape) > 0.3, coords, ("time", "y", "x"))


def composed(cube, name, mask, reducer):
    valid = RULES[name]
    if name.startswith("array"):
        valid = (*valid, mask)
    return s2c.composite(cube, reducer, valid=valid)


def expected(pixels, passed, fill):
    """Return counts and means."""
    count = passed.sum(0)
    total = np.where(passed[:, None], pixels, 0).astype(np.float64).sum(0)
    return count, np.where(count > 0, total / np.maximum(count, 1), fill)


def check_values(found, pixels, passed, fill, exact):
    """Compare counts and means; where GDAL interpolates, some ties round the other way."""
    count, mean = expected(pixels, passed, fill)
    tolerance = 0.501 if found["composite"].dtype.kind in "ui" else 1e-3
    differ = np.isclose(found["composite"], mean, rtol=1e-6, atol=tolerance, equal_nan=True)
    allowed = 0 if exact else 4 + count.size // 200
    assert (found["count"].values != count).sum() <= allowed
    assert (~differ).sum() <= 3 * allowed
    assert count.max() > 0
    assert count.min() < len(passed)  # something is left out somewhere


def assert_same(found, other, layers, part=...):
    """Compare layers, bit by bit."""
    for layer in layers:
        assert found[layer].values.tobytes() == other[layer].values[part].tobytes()


def check(scenes_of, tmp_path, dtype, kind, grid, name):
    """Compare a composite with the oracle, and with those of other chunks, engines and crops."""
    scenes = scenes_of(dtype, kind, SERIES) if name == "temporal mask" else scenes_of(dtype, kind)
    geobox, method = grid_of(grid)
    cube = opened(scenes, grid, chunks=64)
    fill = cube.attrs.get("nodata", np.nan if dtype == "float32" else 0)
    assert np.isnan(fill) if dtype == "float32" and declared(kind) is None else fill == (declared(kind) or 0)
    found = [
        nearest(path_of(scene, "X"), geobox, kind, fill)
        if method == "nearest"
        else warped(path_of(scene, "X"), geobox, kind, fill, method, tmp_path / "ones.tif")
        for scene in scenes
    ]
    pixels, covered = (np.stack(arrays) for arrays in zip(*found, strict=True))
    mask = mask_for(cube)
    kept = like_the_weeks_around(scenes, geobox, kind, fill) if name == "temporal mask" else mask.values
    passed = passes(name, pixels, covered, fill, scenes, geobox, kept)
    with dask.config.set(scheduler="threads"):
        first = composed(cube, name, mask, "mean").compute()
        check_values(first, pixels, passed, fill, exact=method == "nearest")
        engines = ("tiles", "gdal", "auto") if method == "nearest" else ("gdal", "auto", "auto")
        for chunks, engine in zip(("auto", 50, (33, 1000)), engines, strict=True):
            again = composed(opened(scenes, grid, chunks=chunks, engine=engine), name, mask, "mean").compute()
            assert_same(again, first, ("composite", "count"))
        picked = composed(cube, name, mask, "luminance_median").compute()
        assert (picked["count"] == first["count"]).all()
        if name != "swath edge":  # looks at pixels around, which a part does not have
            part = {"y": slice(21, 101), "x": slice(17, 99)}
            cut = composed(cube.isel(part), name, mask.isel(part), "luminance_median").compute()
            assert_same(cut, picked, ("composite", "count", "source"), (..., *part.values()))
        if name in ("default", "nodata", "array and default"):
            loaded = composed(cube.compute(), name, mask, "luminance_median")
            np.testing.assert_array_equal(loaded["composite"], picked["composite"])
            np.testing.assert_array_equal(loaded["count"], picked["count"])


EVERY = [(*kind, grid, name) for i, (kind, grid, name) in enumerate(itertools.product(KINDS, GRIDS, RULES))]
"""All there are: each kind with each grid and each rule."""


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "kind", "grid", "name"), EVERY[::131])
def test_a_composite_is_that_of_rasterio_and_numpy(dtype, kind, grid, name, scenes_of, tmp_path):
    check(scenes_of, tmp_path, dtype, kind, grid, name)


@pytest.mark.parametrize(
    ("dtype", "kind", "grid"),
    [("uint8", "mask", "own"), pytest.param("int16", "nodata -1", "other CRS", marks=pytest.mark.slow)],
)
def test_a_series_is_that_of_a_place(dtype, kind, grid, scenes_of, tmp_path):
    check(scenes_of, tmp_path, dtype, kind, grid, "temporal mask")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "kind", "grid"), [(*kind, grid) for kind, grid in itertools.product(KINDS, GRIDS)][::5]
)  # every kind, and every grid, with others each time: all 96 take a quarter of an hour
def test_every_kind_and_every_grid_with_every_rule(dtype, kind, grid, scenes_of, tmp_path):
    for name in RULES:
        check(scenes_of, tmp_path, dtype, kind, grid, name)


@pytest.mark.parametrize(("dtype", "kind"), [("uint8", "alpha"), ("int16", "nodata -1"), ("float32", "nothing")])
@pytest.mark.parametrize("grid", ["own", "other CRS"])
@pytest.mark.parametrize("name", ["everything", "default", "own mask"])
def test_the_first_product_of_a_day_that_passes_is_taken(name, grid, dtype, kind, scenes_of):
    """Days of several products, with rules under which what no file covers would pass, too."""
    scenes = scenes_of(dtype, kind, (0, 0, 0, 4))
    geobox, _ = grid_of(grid)
    alone = opened(scenes, grid)
    fill = alone.attrs.get("nodata", np.nan if dtype == "float32" else 0)
    found = [nearest(path_of(scene, "X"), geobox, kind, fill) for scene in scenes]
    pixels, covered = (np.stack(arrays) for arrays in zip(*found, strict=True))
    passed = passes(name, pixels, covered, fill, scenes, geobox, None)
    order = passed[:3].argmax(0)
    day = np.take_along_axis(pixels[:3], order[None, None], 0)[0]
    for chunks in (50, "auto"):
        cube = opened(scenes, grid, chunks=chunks, groupby="solar_day")
        assert cube.sizes["time"] == 2
        comp = s2c.composite(cube, "mean", valid=RULES[name]).compute()
        np.testing.assert_array_equal(comp["count"], passed[:3].any(0))
        np.testing.assert_allclose(comp["composite"], np.where(passed.any(0), day, fill), rtol=1e-6)
    assert passed[:3].any(0).any()


@pytest.mark.slow
def test_workers_make_the_same_bytes(scenes_of, client_of_test):
    """Two processes, and any number of threads here."""
    names = ("everything", "SCL alone", "swath edge", "own mask", "array", "default")
    kinds = itertools.islice(KINDS, 0, None, 2)
    cases = [(*kind, grid, name) for kind, grid, name in zip(kinds, itertools.cycle(GRIDS), names, strict=False)]
    cases += [("uint8", "nodata 0", grid, "temporal mask") for grid in ("own", "other CRS")]
    days = {"temporal mask": SERIES}
    cubes = [
        opened(scenes_of(dtype, kind, days.get(name, (0, 1, 2, 3))), grid, chunks=70)
        for dtype, kind, grid, name in cases
    ]
    made = [
        composed(cube, name, mask_for(cube), "luminance_median") for cube, (*_, name) in zip(cubes, cases, strict=True)
    ]
    here = dask.compute(*made, scheduler="threads")
    there = dask.compute(*made)
    for one, other in zip(here, there, strict=True):
        assert_same(one, other, ("composite", "count", "source"))


# --- masks are read first: what they leave nothing of is not read -----------------------------------------------------

REDUCERS = {
    "luminance_median": "luminance_median",
    "latest": "latest",
    "best of all": best_available_pixel(day_of_year=155, distance=6),
    "mean and geomedian": ["mean", "geomedian"],
}


def overcast(scenes, folder):
    """Return scenes whose classes are large fields of cloud, and the last all cloud."""
    made = []
    for t, scene in enumerate(scenes):
        path = path_of(scene, "SCL")
        with rasterio.open(path) as dataset:
            classes, transform = dataset.read(1), dataset.transform
        classes[classes == 0] = 4
        rng = np.random.default_rng(t)
        for _ in range(2):
            y, x = rng.integers(-8, 25, 2)
            classes[max(y, 0) : y + 30, max(x, 0) : x + 30] = 9
        classes[:] = 9 if t == 2 else classes
        cloudy = write_tif(folder / f"{t}_cloudy.tif", classes, transform=transform)
        assets = tuple(s2c.Asset("SCL", cloudy) if asset.name == "SCL" else asset for asset in scene.assets)
        made.append(replace(scene, assets=assets))
    return made


def fields_of(cube):
    """Return a mask of large fields as an array."""
    mask = mask_for(cube)
    rng = np.random.default_rng(1)
    for plane in mask.values:
        plane[:] = True
        y, x = rng.integers(0, 70, 2)
        plane[y : y + 90, x:] = False
    return mask


@contextmanager
def counted_tiles(*, everything=False):
    """Count the tiles that are decoded in this process while the block runs; with `everything`, nothing is held back."""
    decoded = Counter()
    decode, begin = s2composite.reading.tiles.decode_tile, s2composite.reading.stack.begin

    def counting(*args):
        decoded["tiles"] += 1
        return decode(*args)

    def reading_everything(*args, **options):
        return begin(*args, **{**options, "wanted": None})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s2composite.reading.tiles, "decode_tile", counting)
        if everything:
            patch.setattr(s2composite.reading.stack, "begin", reading_everything)
            patch.setattr(s2composite.pixels.recipe.Recipe, "ends_early", False)
        yield decoded


@pytest.mark.parametrize("days", [(0, 1, 2, 3), (0, 0, 1, 1)])
@pytest.mark.parametrize(
    "grid", [pytest.param(grid, marks=[pytest.mark.slow] * (grid not in ("own", "other CRS"))) for grid in GRIDS]
)
@pytest.mark.parametrize("name", ["SCL", "SCL alone", "array", "SCL and edge", "SCL and array"])
def test_what_masks_leave_out_is_not_read_and_nothing_else_changes(name, grid, days, scenes_of, tmp_path):
    dtype, kind = KINDS[(len(name) + len(grid)) % len(KINDS)]
    scenes = overcast(scenes_of(dtype, kind, days), tmp_path)
    reducer = REDUCERS[list(REDUCERS)[(len(grid) + len(days)) % len(REDUCERS)]]
    rules = RULES.get(name, ())
    if "SCL and" in name:
        rules = (*RULES["SCL"], *((s2c.SwathEdge(2),) if "edge" in name else ()))
    made, tiles = {}, {}
    for chunks, everything in itertools.product((50, 1000), (True, False)):
        cube = opened(scenes, grid, chunks=chunks, groupby="solar_day" if days[0] == days[1] else None)
        valid = (*rules, fields_of(cube)) if "array" in name else rules
        with dask.config.set(scheduler="synchronous"), counted_tiles(everything=everything) as decoded:
            made[chunks, everything] = s2c.composite(cube, reducer, valid=valid).compute()
        tiles[chunks, everything] = decoded["tiles"]
        assert made[chunks, everything]["count"].values.max() > 0
    layers = list(made[50, True].dataset.data_vars)
    assert "count" in layers
    for other in made.values():
        assert_same(other, made[50, True], layers)
    # Where edges of swaths matter, all products of a day are read: one may lie beside another.
    if grid_of(grid)[1] == "nearest" and not (name == "SCL and edge" and days[0] == days[1]):
        assert tiles[1000, False] < tiles[1000, True]


def test_a_file_that_cannot_be_read_where_it_is_not_needed_has_not_failed(scenes_of, tmp_path):
    scenes = overcast(scenes_of("uint8", "nodata 0"), tmp_path)
    broken = tmp_path / "broken_X.tif"
    broken.write_bytes(Path(path_of(scenes[2], "X")).read_bytes())
    assets = tuple(s2c.Asset("X", str(broken)) if asset.name == "X" else asset for asset in scenes[2].assets)
    scenes[2] = replace(scenes[2], assets=assets)
    cube = opened(scenes, "own", headers="read")
    broken.write_bytes(b"gone")
    comp = s2c.composite(cube, valid=RULES["SCL"]).compute()
    without = s2c.composite(opened([scenes[i] for i in (0, 1, 3)], "own"), valid=RULES["SCL"]).compute()
    assert_same(comp, without, ("composite", "count"))
    with pytest.raises(s2c.S2CompositeError, match="T31TCJ_2, window"):
        s2c.composite(cube, valid=s2c.Nodata()).compute()


def test_a_tile_of_a_coarser_band_is_decoded_once_for_all_pieces_of_a_window(tmp_path):
    rng = np.random.default_rng(0)
    for day in range(1, 4):
        stem = f"T31TCJ_202306{day:02}T104629"
        write_tif(tmp_path / f"{stem}_B04.tif", rng.integers(1, 200, (1, 128, 128)).astype("uint16"), block=32)
        place = ORIGIN @ Affine.scale(2)
        write_tif(
            tmp_path / f"{stem}_B11.tif", rng.integers(1, 200, (1, 64, 64)).astype("uint16"), block=32, transform=place
        )
    cube = s2c.open_cube(tmp_path, bands=["B04", "B11"], resolution=10, chunks=128)
    with dask.config.set(scheduler="synchronous"), counted_tiles() as decoded:
        made = s2c.composite(cube, "median").compute()
    assert decoded["tiles"] == 3 * (16 + 4)
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"), counted_tiles() as decoded:
        patch.setattr(s2composite.reading.tiles.KeptTiles, "keep", lambda *_: None)  # no room for any
        assert_same(s2c.composite(cube, "median").compute(), made, ("composite", "count"))
        assert decoded["tiles"] == 3 * (16 + 16)
    small = s2c.open_cube(tmp_path, bands=["B04", "B11"], resolution=10, chunks=32)
    assert_same(s2c.composite(small, "median").compute(), made, ("composite", "count"))


# --- a few observations of each pixel are enough: no more are read ----------------------------------------------------


def limited(cube, valid, most, order, groups):
    """Return which observations are used, one pixel after the other, from those that pass the rules one by one."""
    passed = np.stack(
        [
            s2c.composite(cube.isel(time=[t]), "mean", valid=valid).compute()["count"].values > 0
            for t in range(cube.sizes["time"])
        ]
    )
    used = []
    for group in groups:
        kept = np.zeros(passed.shape, bool)
        for y, x in np.ndindex(*passed.shape[1:]):
            good = [t for t in order if t in group and passed[t, y, x]]
            kept[good[:most], y, x] = True
        used.append(kept)
    return used


@pytest.mark.parametrize(
    "grid", ["own", *(pytest.param(grid, marks=pytest.mark.slow) for grid in ("zoomed", "other CRS", "bilinear"))]
)
@pytest.mark.parametrize(
    ("reducer", "most", "prefer", "order"),
    [
        ("latest", 1, None, (3, 2, 1, 0)), ("earliest", 1, None, (0, 1, 2, 3)), ("mean", 2, "earliest", (0, 1, 2, 3)),
        ("luminance_median", 3, None, (3, 2, 1, 0)), ("mean", 2, "2023-06-02T12:00", (1, 2, 0, 3)),
        ("mean", 1, "cloudiness", (2, 0, 3, 1)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("period", [None, ["2023-06-01/2023-06-02", "2023-06-02/2023-06-04"]])
def test_so_many_observations_as_are_asked_for_are_used_and_read(period, reducer, most, prefer, order, grid, scenes_of):
    scenes = scenes_of("uint8", "mask")
    rules = RULES["SCL"]
    cloudiness = ("time", [0.5, np.nan, 0.1, 0.7])
    given = {"max_count": most, "prefer": prefer, "period": period, "valid": rules}
    cube = opened(scenes, grid, chunks=1000).assign_coords(cloudiness=cloudiness)
    groups = [range(4)] if period is None else [(0, 1), (1, 2, 3)]
    used = limited(cube, rules, most, order, groups)
    masks = [xr.DataArray(kept, {d: cube[d] for d in ("time", "y", "x")}, ("time", "y", "x")) for kept in used]
    made = {}
    for chunks in (50, 1000):
        cube = opened(scenes, grid, chunks=chunks).assign_coords(cloudiness=cloudiness)
        with dask.config.set(scheduler="synchronous"), counted_tiles() as decoded:
            made[chunks] = s2c.composite(cube, reducer, **given).compute()
    with counted_tiles() as decoded_all:
        everything = s2c.composite(cube, reducer, valid=rules, period=period).compute()
    layers = list(made[50].dataset.data_vars)
    assert_same(made[50], made[1000], layers)
    for i, mask in enumerate(masks):
        expected = s2c.composite(cube, reducer, valid=(*rules, mask)).compute()
        for layer in layers:
            found = made[1000][layer].values if period is None else made[1000][layer].values[i]
            np.testing.assert_array_equal(found, expected[layer].values)
    assert int(made[1000]["count"].max()) == min(most, int(everything["count"].max()))
    assert decoded["tiles"] <= decoded_all["tiles"] or period


def test_many_scenes_are_read_only_until_there_are_enough(tmp_path):
    for day in range(1, 25):
        pixels = np.full((1, 64, 96), day, "uint8")
        pixels[:, :32, :32] = 0 if day % 3 else day  # a tile that is empty in most of the scenes
        write_tif(tmp_path / f"T31TCJ_202306{day:02}T104629_X.tif", pixels, block=32, nodata=0)
    cube = s2c.open_cube(tmp_path, on_error="skip")
    with dask.config.set(scheduler="synchronous"), counted_tiles() as decoded:
        comp = s2c.composite(cube, "median", max_count=4, prefer="latest").compute()
    assert comp["count"].values.min() == comp["count"].values.max() == 4
    assert comp["composite"].values[0, 40, 40] == np.median([21, 22, 23, 24]).round()
    assert comp["composite"].values[0, 0, 0] == np.median([15, 18, 21, 24]).round()
    assert decoded["tiles"] == 4 * 6 + 6, "four scenes, then the one tile that is short of observations in six more"
    assert (comp["read_status"].values == 0).all()
    same = s2c.composite(cube.compute(), "median", max_count=4, prefer="latest")
    assert_same(same, comp, ("composite", "count"))


PICKS = {
    "latest": ("latest", {}),
    "earliest of two": ("earliest", {"min_count": 2}),
    "closest to": ("closest_to", {"date": "2023-06-02T22:00"}),
    "best by season": ("best_available_pixel", {"day_of_year": 155, "weights": (1, 0, 0)}),
    "best of all": ("best_available_pixel", {"day_of_year": 155, "distance": 6}),
    "equally good": ("best_available_pixel", {"weights": (0, 1, 0), "distance": 3}),
}


@pytest.mark.parametrize(
    "grid", ["own", *(pytest.param(grid, marks=pytest.mark.slow) for grid in ("zoomed", "other CRS", "bilinear"))]
)
@pytest.mark.parametrize(
    ("name", "days"),
    [
        *((name, (0, 1, 2, 3)) for name in PICKS),
        # Fused days, by default without two whose ways of ranking others have: by distance in time, and by season.
        *((name, (0, 0, 1, 1)) for name in ("latest", "earliest of two", "best of all", "equally good")),
        *(pytest.param(name, (0, 0, 1, 1), marks=pytest.mark.slow) for name in ("closest to", "best by season")),
    ],
)
@pytest.mark.parametrize(
    "period", [None, pytest.param(["2023-06-01/2023-06-02", "2023-06-02/2023-06-04"], marks=pytest.mark.slow)]
)
def test_what_cannot_be_picked_need_not_be_read(period, name, grid, days, scenes_of, tmp_path):
    dtype, kind = KINDS[(len(name) + len(grid)) % len(KINDS)]
    scenes, (reducer, given) = overcast(scenes_of(dtype, kind, days), tmp_path), PICKS[name]
    for rules in (None, RULES["SCL"], (*RULES["SCL"], s2c.SwathEdge(2)), "array"):
        made, tiles = {}, {}
        for chunks, everything in itertools.product((50, 1000), (True, False)):
            cube = opened(scenes, grid, chunks=chunks, groupby="solar_day" if days[0] == days[1] else None)
            valid = (s2c.Nodata(), fields_of(cube)) if rules == "array" else rules
            comp = s2c.composite(cube, reducer, valid=valid, period=period, **given)
            with dask.config.set(scheduler="synchronous"), counted_tiles(everything=everything) as decoded:
                made[chunks, everything] = comp.dataset[["composite", "source"]].compute()
            tiles[chunks, everything] = decoded["tiles"]
        for other in made.values():
            assert_same(other, made[50, True], ("composite", "source"))
        assert tiles[1000, False] <= tiles[1000, True]
        with dask.config.set(scheduler="synchronous"):
            counts = [comp["count"].compute()]
            with counted_tiles(everything=True):
                counts.append(s2c.composite(cube, reducer, valid=valid, period=period, **given)["count"].compute())
        np.testing.assert_array_equal(*counts)


def test_the_latest_and_the_best_pixel_of_many_scenes_take_few_of_them(tmp_path):
    for day in range(1, 25):
        pixels = np.full((1, 64, 96), day, "uint8")
        pixels[:, :32, :32] = 0 if day % 3 else day  # a tile that is empty in most of the scenes
        write_tif(tmp_path / f"T31TCJ_202306{day:02}T104629_X.tif", pixels, block=32, nodata=0)
    (tmp_path / "T31TCJ_20230601T104629_X.tif").write_bytes(b"no TIFF, and never read")
    cube = s2c.open_cube(tmp_path, on_error="skip")
    season = {"day_of_year": 174, "spread": 3, "distance": 4}
    for reducer, given, picked, tiles in (
        ("latest", {}, (24, 24), 2 * 6),
        ("closest_to", {"date": "2023-06-13"}, (12, 13), 2 * 6),
        ("best_available_pixel", season, (24, 23), 4 * 6),
    ):
        comp = s2c.composite(cube, reducer, **given)
        with dask.config.set(scheduler="synchronous"), counted_tiles() as decoded:
            made = comp["composite"].values
        assert (made[0, 10, 10], made[0, 40, 70]) == picked, reducer
        assert decoded["tiles"] <= tiles, "of 24 * 6"
        with dask.config.set(scheduler="synchronous"):
            assert comp["count"].values[0, 0] == 8
            assert comp["count"].values[-1, -1] == 23


def test_what_is_computed_with_its_count_is_read_once(tmp_path):
    for day in range(1, 7):
        pixels = np.full((1, 64, 96), day, "uint8")
        write_tif(tmp_path / f"T31TCJ_202306{day:02}T104629_X.tif", pixels, block=32, nodata=0)
    comp = s2c.composite(s2c.open_cube(tmp_path, on_error="skip"), "latest")
    out = tmp_path / "out"
    out.mkdir()
    ways = {
        "compute": (comp.compute, 36),
        "persist": (comp.persist, 36),
        "to_zarr": (lambda: comp.to_zarr(out / "a.zarr"), 36),
        "to_raster": (lambda: comp.to_raster(out / "a.tif"), 12),
        "to_raster with count": (lambda: comp.to_raster(out / "b.tif", layers=["composite", "count"]), 36),
        "to_stac": (lambda: comp.to_stac(out / "c.json", thumbnail=None), 36),
        "part": (lambda: comp.isel(y=slice(0, 5)).compute(), 48),  # as any arrays
    }
    for name, (way, tiles) in ways.items():
        with dask.config.set(scheduler="synchronous"), counted_tiles() as decoded:
            way()
        assert decoded["tiles"] == tiles, name
    made, whole = comp.compute(), s2c.composite(s2c.open_cube(tmp_path).compute(), "latest")
    assert_same(made, whole, ("composite", "source", "count"))
    assert made["composite"].attrs == comp["composite"].attrs
    assert made["read_status"].shape == comp["read_status"].shape
    with rasterio.open(out / "a.tif") as one, rasterio.open(out / "b.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())


def test_what_is_preferred_is_known_or_refused(scenes_of):
    cube = opened(scenes_of("uint8", "mask"), "own")
    for given, says in (
        ({"max_count": 0}, "max_count=0; give a whole number"),
        ({"max_count": 2, "min_count": 3}, "no pixel would have a value"),
        ({"prefer": "latest"}, "give max_count, too"),
        ({"max_count": 2, "prefer": "clearest"}, "it is 'latest', 'earliest', a date"),
        ({"max_count": 2.5}, "give a whole number"),
    ):
        with pytest.raises(s2c.S2CompositeError, match=re.escape(says)):
            s2c.composite(cube, **given)


@pytest.mark.parametrize("granules", [("31TCJ",) * 4, ("31TCJ", "31TDJ", "31TCK", "31TGL")])
@pytest.mark.parametrize("name", ["SCL", "SCL alone"])
def test_a_mask_is_cleaned_as_far_as_its_file_reaches_whatever_else_is_in_the_cube(name, granules, scenes_of):
    scenes = [
        replace(scene, granule=granule, id=f"T{granule}_{t}")
        for t, (scene, granule) in enumerate(zip(scenes_of("uint8", "nothing"), granules, strict=True))
    ]
    rule = RULES[name][1] if name == "SCL" else RULES[name]
    cube = opened(scenes, "own", chunks=50)
    together = s2c.composite(cube, "mean", valid=(rule,)).compute()["count"]
    one_by_one = sum(
        s2c.composite(cube.isel(time=[t]), "mean", valid=(rule,)).compute()["count"].values for t in range(4)
    )
    geobox, _ = grid_of("own")
    inside = [taken(path_of(scene, "X"), geobox)[2] for scene in scenes]
    expected = sum(usable(name, scene, geobox) & there for scene, there in zip(scenes, inside, strict=True))
    np.testing.assert_array_equal(together, expected)
    np.testing.assert_array_equal(one_by_one, expected)
