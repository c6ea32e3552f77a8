"""Synthetic scenes: real COGs on the real grid, reproducible, and like the real thing where it matters."""

import resource
import subprocess
import sys
import time
from collections import Counter
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pystac
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Compression, PhotometricInterp
from rio_cogeo import cog_validate

from s2composite.cube.open import open_cube
from s2composite.demo import make_items, make_scenes, run_demo
from s2composite.demo.imagery import (
    VARIANTS,
    Box,
    Cover,
    field,
    overpasses,
    refine,
    reflectances,
    render_land,
    render_sky,
    spectrum,
    sun_position,
    weather_of,
)
from s2composite.errors import ParameterError, SourceError, WriteError
from s2composite.scenes.find import find_scenes


def read(path):
    with rasterio.open(path) as file:
        return file.read()


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    """Twelve lossless scenes with their classification and two bands."""
    directory = tmp_path_factory.mktemp("season")
    make_scenes(directory, scenes=12, size=700, compress="deflate", assets=["TCI", "SCL", "B04", "B08"])
    return directory


def stack(directory, asset):
    return np.stack([read(path) for path in sorted(directory.glob(f"*_{asset}.tif"))])


@pytest.mark.parametrize("compress", ["jpeg", "deflate"])
def test_the_same_arguments_give_the_same_bytes(tmp_path, compress):
    arguments = {"scenes": 4, "size": 130, "seed": 7, "compress": compress, "assets": ["TCI", "SCL", "B08"]}
    one, two = (make_scenes(tmp_path / name, **arguments) for name in ("one", "two"))
    assert [Path(p).name for p in one] == [Path(p).name for p in two]
    assert [Path(p).read_bytes() for p in one] == [Path(p).read_bytes() for p in two]
    other = make_scenes(tmp_path / "other", **{**arguments, "seed": 8})
    assert all(Path(a).read_bytes() != Path(b).read_bytes() for a, b in zip(one, other, strict=True))


def test_names_are_those_of_sentinel_2(tmp_path):
    files = make_scenes(tmp_path, scenes=5, size=32)
    scenes = find_scenes(tmp_path)
    assert [scene.assets[0].href for scene in scenes] == list(files)
    assert [scene.id for scene in scenes] == [Path(path).stem.removesuffix("_TCI") for path in files]
    assert {scene.granule for scene in scenes} == {"31TCJ"}
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".tif"] == [], "nothing else is left"


def test_the_grid_is_that_of_the_granule(tmp_path):
    tci, classes = make_scenes(tmp_path, scenes=1, size=601, assets=["TCI", "SCL"])
    with rasterio.open(tci) as file, rasterio.open(classes) as coarse:
        assert file.crs == coarse.crs == rasterio.crs.CRS.from_epsg(32631)
        assert tuple(file.transform)[:6] == (10, 0, 300000, 0, -10, 4900020)
        assert tuple(coarse.transform)[:6] == (20, 0, 300000, 0, -20, 4900020)
        assert (file.shape, coarse.shape) == ((601, 601), (301, 301))
        assert tuple(file.transform @ (10980, 10980)) == (409800, 4790220)


@pytest.mark.parametrize(("compress", "kind"), [("jpeg", Compression.jpeg), ("deflate", Compression.deflate)])
@pytest.mark.parametrize("size", [40, 1100])
def test_files_are_valid_cogs(tmp_path, compress, kind, size):
    for path in make_scenes(tmp_path, scenes=1, size=size, compress=compress, assets=["TCI", "SCL", "B04"]):
        valid, errors, warnings = cog_validate(path, quiet=True)
        assert (valid, errors, warnings) == (True, [], [])
        with rasterio.open(path) as file:
            picture = path.endswith("_TCI.tif")
            assert file.compression == (kind if picture else Compression.deflate)
            assert file.dtypes == (("uint8",) * 3 if picture else ("uint8" if "SCL" in path else "uint16",))
            assert file.nodata == 0
            assert set(file.block_shapes) == {(512, 512)}
            assert len(file.overviews(1)) == (size == 1100) * (1 if "SCL" in path else 2)
            if picture and compress == "jpeg":
                assert file.photometric == PhotometricInterp.ycbcr


def test_dates_follow_the_rhythm_of_two_satellites():
    year = overpasses(219, 2023)
    assert Counter(p.orbit for p in year) == {8: 73, 51: 73, 94: 73}
    assert list(year) == sorted(year, key=lambda p: p.time)
    for orbit in (8, 51, 94):
        days = [p.time.date() for p in year if p.orbit == orbit]
        assert {b - a for a, b in pairwise(days)} == {timedelta(5)}
    assert "T31TCJ_20230709T104629" in [p.stem for p in year]


@pytest.mark.parametrize(
    ("n", "first", "last"),
    [(1, date(2023, 4, 1), date(2023, 9, 30)), (24, date(2023, 4, 1), date(2023, 9, 30)),
     (110, date(2023, 4, 1), date(2023, 9, 30)), (216, date(2023, 1, 1), date(2023, 12, 31)),
     (500, date(2023, 1, 1), date(2025, 12, 31))],
)  # fmt: skip
def test_few_scenes_are_of_a_season_and_many_of_years(n, first, last):
    days = [p.time.date() for p in overpasses(n, 2023)]
    assert len(set(days)) == n
    assert days == sorted(days)
    assert first <= days[0] <= days[-1] <= last
    assert (days[-1] - days[0]) >= (last - first) * (0.8 if n > 1 else 0)


def test_the_sun_is_where_the_almanac_has_it():
    # NOAA's solar calculator for 43.8 N, 1.2 E, 10:46 UTC: 66.3 degrees high in azimuth 141 on 21 June,
    # 21.4 degrees high in azimuth 164 on 21 December.
    sun = {p.time.date(): sun_position(p) for p in overpasses(219, 2023)}
    summer, winter = sun[date(2023, 6, 24)], sun[date(2023, 12, 21)]
    assert np.degrees([summer.elevation, summer.azimuth]) == pytest.approx([66.3, 141], abs=3)
    assert np.degrees([winter.elevation, winter.azimuth]) == pytest.approx([21.4, 164], abs=3)


def test_swaths_end_in_zeros_on_a_slope(season):
    tci = stack(season, "TCI")
    missing = {}
    for path, scene in zip(sorted(season.glob("*_TCI.tif")), tci, strict=True):
        orbit = {"10": {"4": 8, "5": 51}, "11": {"0": 94}}[path.name[16:18]][path.name[18]]
        zero = (scene == 0).all(0)
        steps = np.diff(zero.astype(int), axis=1) != 0
        assert (steps.sum(1) <= 1).all(), "a row is cut once at most"
        edges = steps.argmax(1)[steps.any(1)]
        assert (np.diff(edges) <= 0).all(), "the edge runs to the west on the way south"
        missing.setdefault(orbit, []).append((zero[:, 0].mean(), zero[:, -1].mean(), zero.mean()))
    assert set(missing) == {8, 51, 94}
    west, east, share = np.mean(missing[8], 0)
    assert west == 1
    assert east == 0
    assert 0.15 < share < 0.5
    west, east, share = np.mean(missing[94], 0)
    assert west == 0
    assert east == 1
    assert 0.15 < share < 0.5
    assert 0 < np.mean(missing[51], 0)[2] < 0.1
    partly = (tci == 0).any(1) & ~(tci == 0).all(1)
    assert 0 < partly.sum() < 12 * 700 * 8, "bands end some pixels apart, and are 0 nowhere else"


def test_clouds_differ_from_clear_to_overcast_and_their_tops_are_saturated(season):
    tci = stack(season, "TCI")
    seen = (tci > 0).all(1).sum((1, 2))
    saturated = (tci == 255).all(1).sum((1, 2)) / seen
    assert saturated.min() < 0.02
    assert saturated.max() > 0.6
    assert ((saturated > 0.05) & (saturated < 0.6)).sum() >= 2
    valid = ((tci > 0) & (tci < 255)).all(1).sum(0)
    assert valid.min() >= 1, "each pixel has an observation"


def test_land_is_never_0_or_255(season):
    tci, scl = stack(season, "TCI"), stack(season, "SCL")[:, 0].repeat(2, 1).repeat(2, 2)
    land = np.moveaxis(tci, 1, 3)[np.isin(scl, (3, 4, 5, 6, 10))]
    assert land.min() >= 1
    assert land.max() <= 254
    assert len(land) > 1e6


def test_classes_agree_with_the_picture(season):
    tci, scl = stack(season, "TCI"), stack(season, "SCL")[:, 0]
    assert set(np.unique(scl)) == {0, 3, 4, 5, 6, 8, 9, 10}
    wide = scl.repeat(2, 1).repeat(2, 2)
    light = tci.sum(1, dtype=int) / 3
    assert (wide[(tci == 0).any(1)] == 0).all()
    mean = {code: light[wide == code].mean() for code in (3, 4, 5, 8, 9)}
    assert mean[3] < mean[4] < mean[5] < mean[8] < mean[9]
    assert mean[9] > 225
    red, infrared = stack(season, "B04")[:, 0].astype(float), stack(season, "B08")[:, 0].astype(float)
    index = (infrared - red) / np.maximum(infrared + red, 1)
    assert index[wide == 4].mean() > 0.6
    assert index[wide == 6].mean() < 0
    assert np.array_equal(red == 0, stack(season, "TCI")[:, 0] == 0)


def test_clear_true_colour_is_reflectance_on_esas_scale(season):
    tci, red = stack(season, "TCI")[:, 0].astype(float), stack(season, "B04")[:, 0].astype(float)
    inner = (tci > 1) & (tci < 254)
    assert np.abs(tci[inner] - (1 + red[inner] * 254 / 3558)).max() < 0.54, "rounded to 1, and to 1/10000 before"


def test_land_has_seasons():
    winter, summer = reflectances(20), reflectances(190)
    infrared = 3
    woods = slice(Cover.BROADLEAF * VARIANTS, (Cover.BROADLEAF + 1) * VARIANTS)
    pines = slice(Cover.CONIFER * VARIANTS, (Cover.CONIFER + 1) * VARIANTS)
    assert (summer[woods, infrared] > 1.8 * winter[woods, infrared]).all()
    assert np.array_equal(summer[pines], winter[pines])
    assert np.array_equal(reflectances(1), reflectances(366))
    for day in (1, 100, 250):
        assert reflectances(day).min() > 0
        assert reflectances(day).max() < 0.6


def test_slow_kinds_of_land_are_there():
    land = render_land(Box(0, 0, 1024, 1024), 0)
    shares = np.bincount(land.cover.ravel() // VARIANTS, minlength=len(Cover)) / 1024**2
    assert (shares > 0.0002).all()
    assert shares[Cover.BROADLEAF] + shares[Cover.CONIFER] > 0.05
    assert 0.01 < shares[Cover.WATER] < 0.1


def test_shadows_fall_away_from_the_sun():
    scene = overpasses(24, 2023)[4]
    weather = next(w for i in range(40) if 0.1 < (w := weather_of(scene, i, 0)).cover < 0.3)
    sky = render_sky(Box(0, 0, 900, 900), weather)
    cloud, shade = sky.opacity > 0.5, sky.shadow > 0.5
    assert 0.02 < cloud.mean() < 0.6

    def agreement(distance):
        south, east = round(-distance * np.cos(weather.sun.azimuth)), round(distance * np.sin(weather.sun.azimuth))
        inner = slice(250, 650)
        return (shade[inner, inner] == cloud[250 + south : 650 + south, 250 + east : 650 + east]).mean()

    scores = {distance: agreement(distance) for distance in range(-200, 201, 5)}
    best = max(scores, key=scores.get)
    assert best == pytest.approx(weather.height / 10 / np.tan(weather.sun.elevation), abs=5)
    assert best > 20
    assert scores[best] > 0.98
    soft = (sky.opacity > 0.05) & (sky.opacity < 0.95)
    assert soft.mean() > 0.02, "edges are soft"


@settings(deadline=None, max_examples=40)
@given(st.integers(-3000, 12000), st.integers(-3000, 12000), st.integers(1, 70), st.integers(1, 70), st.data())
def test_a_field_is_the_same_in_any_window(y, x, height, width, data):
    spec = spectrum(data.draw(st.integers(0, 9)), (1.0, 0.7, 0.5, 0.3))
    whole = field(Box(y, x, y + height, x + width), 5, spec)
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    part = field(Box(y + y0, x + x0, y + height, x + width), 5, spec)
    assert whole.shape == (height, width)
    assert np.array_equal(whole[y0:, x0:], part)


def test_a_field_has_mean_0_and_variance_1():
    values = field(Box(0, 0, 2000, 2000), 3, spectrum(5, (1.0, 0.6, 0.4, 0.2)))
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert values.std() == pytest.approx(1, abs=0.05)


def test_refining_a_plane_gives_the_plane():
    box = Box(-7, 3, 40, 61)
    finer, fine = box.coarser().coarser(), box.coarser()
    rows, columns = finer.coarser().grid()
    fine_rows, fine_columns = box.grid()
    refined = refine(refine(refine(8 * rows + 24 * columns, finer), fine), box)
    assert np.allclose(refined, fine_rows + 3 * fine_columns)


def test_a_pixel_is_the_same_at_any_size_where_both_observe_it(tmp_path):
    small, large = (
        np.stack([read(p) for p in make_scenes(tmp_path / str(size), scenes=6, size=size, compress="deflate")])
        for size in (300, 560)
    )
    large = large[:, :, :300, :300]
    both = (small > 0) & (large > 0)
    assert both.mean() > 0.3
    assert np.array_equal(small[both], large[both])


def test_distinct_scenes_are_repeated_under_other_dates(tmp_path):
    calls = []
    files = make_scenes(tmp_path, scenes=9, size=64, distinct=2, progress=lambda *call: calls.append(call))
    assert len(set(files)) == 9 == len(list(tmp_path.iterdir()))
    contents = [Path(path).read_bytes() for path in files]
    assert len(set(contents)) == 2
    assert contents == sorted(contents, key=contents.index), "neighbours in time share their pixels"
    assert calls == [(done, 9) for done in range(1, 10)]
    again = make_scenes(tmp_path, scenes=9, size=64, distinct=9)
    assert len({Path(path).read_bytes() for path in again}) == 9, (
        "files that were links are replaced, not written through"
    )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"scenes": 0}, "scenes=0"),
        ({"size": 8}, "size=8"),
        ({"size": 10981}, "10980"),
        ({"compress": "zip"}, "deflate"),
        ({"assets": ["B05"]}, "B04"),
        ({"assets": []}, "assets"),
        ({"assets": ["TCI", "TCI"]}, "once"),
        ({"scenes": 3, "distinct": 4}, "distinct=4"),
        ({"scenes": 3, "distinct": 0}, "distinct=0"),
        ({"year": 0}, "year=0"),
    ],
)
def test_arguments_that_make_no_sense_are_named(tmp_path, wrong, named):
    with pytest.raises(ParameterError, match=named):
        make_scenes(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(WriteError, match="out"):
        make_scenes(tmp_path / "out", scenes=1, size=32)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [60_000, 300_000])
def test_no_room_leaves_nothing_under_a_final_name(tmp_path, limit):
    program = f"""
import resource, signal, sys
from s2composite.cube.open import open_cube
from s2composite.demo import make_items, make_scenes, run_demo
from s2composite.errors import WriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))
try:
    make_scenes(sys.argv[1], scenes=2, size=300, compress="deflate", assets=["B04"])
except WriteError as error:
    print("WriteError", error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert run.stdout.startswith("WriteError"), run.stderr
    assert str(tmp_path / "out") in run.stdout
    assert list((tmp_path / "out").iterdir()) == []


def test_a_dozen_small_scenes_take_moments(tmp_path):
    start = time.process_time()
    make_scenes(tmp_path, scenes=12, size=256)
    assert time.process_time() - start < 15, "0.4 s on two idle cores"


@pytest.mark.slow
def test_the_demonstration_leaves_a_clear_composite_and_a_picture(tmp_path, capfd):
    paths = run_demo(tmp_path, scenes=9, size=300, compress="deflate", workers=1)
    assert capfd.readouterr() == ("", "")
    assert {name: Path(path).name for name, path in paths.items()} == {
        "scenes": "scenes", "composite": "median.tif", "count": "median_count.tif", "source": "median_source.tif",
        "picture": "median.png",
    }  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(Path(path).name for path in paths.values())
    pixels = stack(tmp_path / "scenes", "TCI")
    light = pixels.sum(1, dtype=float)
    light[((pixels == 0) | (pixels == 255)).any(1)] = np.nan
    n = np.isfinite(light).sum(0)
    ranked = np.sort(light, 0)  # NaN last
    expected = np.where(n > 0, np.take_along_axis(ranked, n[None] // 2, 0)[0], 0)
    assert np.array_equal(read(paths["count"])[0], n)
    composite = read(paths["composite"])
    assert np.array_equal(composite.sum(0, dtype=float), expected)
    source = read(paths["source"])[0]
    assert np.array_equal(np.take_along_axis(pixels, source.clip(0)[None, None], 0)[0][:, n > 0], composite[:, n > 0])
    picture = plt.imread(paths["picture"])
    assert picture.shape[1] > picture.shape[0] > 500
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 1000
    assert run_demo(tmp_path, scenes=4, size=100, workers=1, progress=False) == paths, "a second run replaces the first"


def test_the_demonstration_names_a_place_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file"):
        run_demo(tmp_path / "file")


def test_items_say_what_the_files_do(tmp_path):
    make_scenes(tmp_path / "l2a", scenes=3, size=130, compress="deflate", assets=["B04", "B08", "SCL"])
    items = make_items(tmp_path / "l2a", tmp_path / "items")
    for path in items:
        item = pystac.Item.from_file(path)
        item.make_asset_hrefs_absolute()
        classes = read(item.assets["SCL"].href)
        assert item.properties["eo:cloud_cover"] == pytest.approx(
            100 * np.isin(classes, (8, 9, 10)).sum() / max((classes > 0).sum(), 1), abs=0.01
        )
        for asset in item.assets.values():
            with rasterio.open(asset.href) as file:
                assert asset.extra_fields["proj:shape"] == list(file.shape)
                assert asset.extra_fields["proj:transform"] == list(file.transform)[:6]
    by_item = open_cube(tmp_path / "items", bands=["red", "nir"])
    by_name = open_cube(tmp_path / "l2a", bands=["B04", "B08"])
    assert np.array_equal(by_item, by_name)
    assert by_item["scene"].values.tolist() == by_name["scene"].values.tolist()
    assert (by_item["offset"] == 0).all()


def test_items_need_scenes_and_a_place(tmp_path):
    with pytest.raises(SourceError, match="nowhere"):
        make_items(tmp_path / "nowhere", tmp_path / "items")
    make_scenes(tmp_path / "scenes", scenes=1, size=32)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(WriteError, match="taken"):
        make_items(tmp_path / "scenes", tmp_path / "taken")
