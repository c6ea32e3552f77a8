"""Geometric medians of real imagery, masked by scene classification: equal to geomad's, by year and by season."""

import warnings

import numpy as np
import pytest
import rasterio

import s2composite as s2c
from s2composite.pixels.mask_bands import SCL, CloudProbability
from support import ROOT, oracles

pytestmark = pytest.mark.slow

geomad = pytest.importorskip("geomad", reason="geomad is the peer that these tests compare with")

BAD = (
    "saturated or defective", "cloud shadows", "cloud medium probability", "cloud high probability", "thin cirrus",
    "snow or ice",
)  # fmt: skip
NUMBERS = (1, 3, 8, 9, 10, 11, 12)  # six pixels of these files have 12, which is no class
EPS = 0.01  # digital numbers
BANDS = ["B02", "B03", "B04", "B08"]


def classes(directory):
    """The classification of all scenes, in order of dates, read without the library: (t, y, x)."""
    layers = []
    for path in sorted(directory.glob("*_SCL.tif")):
        with rasterio.open(path) as dataset:
            layers.append(dataset.read(1))
    return np.stack(layers)


def peer(values, good):
    """geomad's geometric median (b, y, x) and deviations (3, y, x) of values (t, b, y, x) where good (t, y, x)."""
    there = good & (values > 0).all(axis=1)
    floats = np.where(there[:, None], values, np.nan).astype(np.float32)
    pixels = np.ascontiguousarray(floats.transpose(2, 3, 1, 0))
    middle = geomad.nangeomedian_pcm(pixels, num_threads=2, eps=EPS, maxiters=2000, nocheck=True)
    spreads = (geomad.smad_pcm, geomad.emad_pcm, geomad.bcmad_pcm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy, which takes its medians, warns of pixels without observations
        deviations = np.stack([spread(pixels, middle, num_threads=2) for spread in spreads])
    return middle.transpose(2, 0, 1), deviations, there.sum(0)


def assert_geomads(comp, values, good):
    middle, spreads, count = peer(values, good)
    comp = comp.compute()
    np.testing.assert_array_equal(comp["count"], count)
    enough = count >= 3
    assert enough.mean() > 0.5, "there is something to compare"
    ours = comp["composite"].values.astype(np.float64)
    off = np.where(enough, np.abs(ours - middle).max(axis=0), 0)
    apart = off > 0.5 + 25 * EPS  # rounded, and two ways to a place where steps are below eps
    assert apart.sum() <= 0.05 * enough.sum()
    for y, x in np.argwhere(apart):  # geomad stops early where many places are nearly equally good
        points = values[good[:, y, x] & (values[:, :, y, x] > 0).all(axis=1), :, y, x].astype(np.float64)
        distances = (oracles.total_distance(points, place[:, y, x].astype(np.float64)) for place in (ours, middle))
        assert next(distances) <= next(distances) * (1 + 1e-4) + 0.5  # ours is rounded
    same = enough & ~apart
    for name, spread, slack in zip(("smad", "emad", "bcmad"), spreads, (2e-5, 0.5, 2e-4), strict=True):
        close = np.isclose(comp[name].values[same], spread[same], rtol=1e-3, atol=slack)
        assert close.mean() > 0.999
        np.testing.assert_allclose(comp[name].values[same], spread[same], rtol=1e-2, atol=10 * slack)
    assert (comp["composite"].values[:, count == 0] == 0).all()
    return comp


@pytest.fixture(scope="module")
def forest(imagery):
    directory = imagery / "romania_s2_l2a_10m"
    return s2c.open_cube(str(directory / "*_BOA.tif")).compute(), classes(directory)


@pytest.mark.parametrize("months", [tuple(range(1, 13)), (3, 4, 5), (6, 7, 8), (9, 10, 11)])
def test_a_forest_by_year_and_season(forest, months):
    cube, scl = forest
    year, month = cube["time"].dt.year.values, cube["time"].dt.month.values
    scenes = np.flatnonzero((year >= 2018) & (year <= 2020) & np.isin(month, months))
    good = ~np.isin(scl[scenes], NUMBERS)
    part = cube.isel(time=scenes)
    masked = part.copy(data=np.where(good[:, None], part.values, 0))
    comp = assert_geomads(s2c.composite(masked, "geomedian", valid=s2c.Nodata(), eps=EPS), part.values, good)
    blue, _, red, infrared = np.median(comp["composite"].values, axis=(1, 2))
    assert blue < infrared
    assert red < infrared, "a forest is bright in the near infrared in every season"


@pytest.fixture(scope="module")
def tile(imagery):
    directory = imagery / "zagreb_t33twl_120m"
    return s2c.open_cube(directory, bands=BANDS), classes(directory)


def test_a_tile_with_swath_edges(tile):
    cube, scl = tile
    rules = (s2c.Nodata(), SCL(BAD))
    comp = s2c.composite(cube, "geomedian", valid=rules, eps=EPS)
    assert_geomads(comp, cube.values, ~np.isin(scl, NUMBERS))


def test_a_summer_tile_shows_no_cloud_and_no_window(tile, imagery):
    """Cut into windows of its blocks or not, with masks cleaned: the same bits; clouds are bright, and gone."""
    cube, _ = tile
    rules = (s2c.Nodata(), SCL(BAD, cleanup=[("opening", 1), ("dilation", 2)]), CloudProbability(40))
    whole = s2c.composite(cube, "geomedian", valid=rules).compute()
    small = s2c.open_cube(imagery / "zagreb_t33twl_120m", bands=BANDS, chunks=128)
    assert small.data.npartitions > cube.data.npartitions
    cut = s2c.composite(small, "geomedian", valid=rules).compute()
    for name in ("composite", "smad", "emad", "bcmad", "count"):
        np.testing.assert_array_equal(cut[name], whole[name])
    seen = whole["count"].values > 0
    assert seen.mean() > 0.97
    assert ((whole["composite"].values[0] > 2000) & seen).sum() / seen.sum() < 0.01
    assert (cube.values[:, 0] > 2000).mean(axis=(1, 2)).max() > 0.2


def test_the_example_runs_on_real_data(imagery, tmp_path, monkeypatch):
    import runpy

    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(ROOT / "examples" / "l2a_geomedian.py"))
    example["main"](str(imagery / "romania_s2_l2a_10m" / "ROMANIA_2019*.tif"))
    with rasterio.open(tmp_path / "geomedian.tif") as dataset:
        values = dataset.read()
    assert values.shape == (4, 100, 100)
    assert (values > 0).all()
    assert values[3].mean() > 2 * values[0].mean(), "forest is bright in the near infrared"
    assert (tmp_path / "geomedian_thumbnail.png").exists()
