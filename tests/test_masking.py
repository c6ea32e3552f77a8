"""Mask bands: at their own resolution, cleaned with the pixels around a window, the same for any chunks."""

import numpy as np
import pytest
import rasterio
import scipy.ndimage as ndi

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.errors import BandError, GridError, ParameterError
from s2composite.pixels.flags import SCL

CLOUDS = ("cloud shadows", "cloud medium probability", "cloud high probability", "thin cirrus")


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    directory = tmp_path_factory.mktemp("season")
    make_scenes(str(directory), scenes=6, size=600, seed=3, assets=("TCI", "SCL"), compress="deflate")
    return directory


def disc(radius):
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def expected_valid(directory, opening=2, dilation=3):
    """Whole masks at 20 m, cleaned by scipy, each pixel doubled."""
    valid = []
    for path in sorted(directory.glob("*_SCL.tif")):
        with rasterio.open(path) as dataset:
            scl = dataset.read(1)
        bad = ndi.binary_dilation(ndi.binary_opening(np.isin(scl, (3, 8, 9, 10)), disc(opening)), disc(dilation))
        valid.append(np.kron(~(bad | (scl == 0)), np.ones((2, 2), bool)))
    return np.stack(valid)


def test_a_mask_at_20_m_over_10_m_equals_scipy_on_the_whole(season):
    cube = s2c.open_cube(season, bands=["TCI"])
    rule = SCL(CLOUDS, cleanup=[("opening", 2), ("dilation", 3)])
    comp = s2c.composite(cube, valid=[s2c.Nodata(), rule]).compute()
    pixels, valid = cube.values, expected_valid(season)
    usable = valid & (pixels > 0).all(1)
    np.testing.assert_array_equal(comp["count"], usable.sum(0))
    masked = cube.copy(data=np.where(valid[:, None], pixels, 0))
    np.testing.assert_array_equal(comp["composite"], s2c.composite(masked, valid=s2c.Nodata())["composite"])
    assert int(comp["count"].min()) < int(comp["count"].max())


@pytest.mark.parametrize("chunks", [100, 170, 512, (64, 600)])
def test_borders_of_chunks_never_show(season, chunks):
    rule = SCL(CLOUDS, cleanup=[("opening", 2), ("dilation", 3)])
    whole = s2c.composite(s2c.open_cube(season, bands=["TCI"], chunks=600), valid=[s2c.Nodata(), rule]).compute()
    cut = s2c.composite(s2c.open_cube(season, bands=["TCI"], chunks=chunks), valid=[s2c.Nodata(), rule]).compute()
    for layer in ("composite", "count", "source"):
        np.testing.assert_array_equal(cut[layer], whole[layer])
    part = {"y": slice(101, 407), "x": slice(33, 500)}
    cropped = s2c.open_cube(season, bands=["TCI"]).isel(part)
    np.testing.assert_array_equal(
        s2c.composite(cropped, valid=[s2c.Nodata(), rule]).compute()["count"], whole["count"].isel(part)
    )


def test_what_cannot_be_masked_is_refused(season):
    cube = s2c.open_cube(season, bands=["TCI"])
    with pytest.raises(ParameterError, match="open_cube"):
        s2c.composite(cube.compute(), valid=SCL())
    with pytest.raises(BandError, match="no band 'SCL'"):
        s2c.composite(s2c.open_cube(str(season / "*_TCI.tif")), valid=SCL())
    with pytest.raises(GridError, match="does not fit"):
        s2c.composite(s2c.open_cube(season, bands=["TCI"], crs="EPSG:3035", resolution=10), valid=SCL())
