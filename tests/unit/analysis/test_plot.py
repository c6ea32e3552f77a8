"""Pictures: what is drawn is what the arrays hold."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.dates import date2num
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import s2composite as s2c
from s2composite.analysis import plot
from s2composite.analysis.picture import cloudy_scene, one_scene
from s2composite.demo import make_scenes
from s2composite.errors import ParameterError
from s2composite.pixels.stretch import NO_DATA_COLOUR


@pytest.fixture(autouse=True)
def figures():
    with mpl.rc_context({"backend": "agg"}):
        yield
        mpl.pyplot.close("all")


def dataset(values, count=None, source=None, times=3, bands=None, **attrs):
    """A composite's layers from plain arrays ``(band, y, x)`` and ``(y, x)``."""
    values = np.asarray(values)
    rows, columns = values.shape[1:]
    layers = {"composite": (("band", "y", "x"), values, {"nodata": 0, **attrs})}
    if count is not None:
        layers["count"] = (("y", "x"), np.asarray(count, "uint16"))
    if source is not None:
        layers["source"] = (("y", "x"), np.asarray(source, "int16"))
    scene_time = np.datetime64("2023-06-01", "ns") + np.arange(times) * np.timedelta64(10, "D")
    coords = {
        "y": ("y", 4900015.0 - 10 * np.arange(rows), {"units": "metre"}),
        "x": ("x", 300005.0 + 10 * np.arange(columns), {"units": "metre"}),
        "band": bands or [f"b{i}" for i in range(len(values))],
        "scene_time": ("scene", scene_time),
    }
    return xr.Dataset(layers, coords, {"reducer": "luminance_median"})


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


def random_rgb(rows=6, columns=5, dtype="uint8", high=255):
    return np.random.default_rng(0).integers(1, high, (3, rows, columns)).astype(dtype)


def test_bytes_are_shown_as_they_are_and_no_data_is_transparent():
    values = random_rgb()
    count = np.ones((6, 5))
    count[2, 3] = 0
    ax = plot.plot_composite(dataset(values, count))
    picture = drawn(ax)
    assert np.array_equal(picture[..., 3], np.where(count > 0, 255, 0))
    assert np.array_equal(picture[count > 0][:, :3], np.moveaxis(values, 0, 2)[count > 0])
    assert ax.images[0].get_extent() == [300000, 300050, 4899960, 4900020]
    assert ax.get_title() == "luminance median\n3 scenes, 2023-06-01 to 2023-06-21"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x (m)", "y (m)")


def test_a_picture_says_what_it_is_of():
    grid = GeoBox.from_bbox((300000, 4899940, 300050, 4900000), "EPSG:32631", resolution=10)
    data = dataset(random_rgb(), np.ones((6, 5)), bands=["red", "green", "nir"]).assign_coords(xr_coords(grid))
    ax = plot.plot_composite(data)
    assert ax.get_xlabel() == "x (m, EPSG:32631)"
    assert len(ax.figure.axes) == 1, "colours have no scale"
    grey = plot.plot_composite(data, bands=["nir"], stretch=(0, 200))
    assert grey.get_title().splitlines()[0] == "luminance median, nir"
    (scale,) = grey.figure.axes[1:]
    assert scale.get_ylim() == (0, 200)
    month = data.assign_coords(period="2023-06")
    assert plot.plot_composite(month).get_title() == "luminance median\nJun 2023"
    undated = data.drop_vars("scene_time")
    assert plot.plot_composite(undated).get_title() == "luminance median"
    degrees = GeoBox.from_bbox((1, 43, 1.05, 43.06), "EPSG:4326", resolution=0.01)
    ax = plot.plot_composite(data.drop_vars("spatial_ref").assign_coords(xr_coords(degrees, dims=("y", "x"))))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x (° east, EPSG:4326)", "y (° north)")


@pytest.mark.parametrize("shape", [(6, 60), (60, 6), (30, 30)])
def test_strips_are_drawn_in_figures_of_their_shape(shape):
    ax = plot.plot_count(dataset(random_rgb(*shape), np.ones(shape)))
    ax.figure.canvas.draw()
    width, height = ax.figure.get_size_inches()
    assert (width > height) == (shape[0] < shape[1]) or shape[0] == shape[1]
    image, scale = (axes.get_window_extent() for axes in ax.figure.axes)
    assert max(scale.width, scale.height) > 0.5 * max(image.width, image.height), "a scale that can be read"
    assert not image.overlaps(scale)


def test_without_a_count_no_data_is_what_the_layer_declares():
    values = random_rgb()
    values[:, 0, 0] = 0
    values[0, 1, 1] = 0  # one band alone may be 0
    picture = drawn(plot.plot_composite(dataset(values)))
    assert picture[0, 0, 3] == 0
    assert (picture[..., 3] == 255).sum() == 29


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_types_are_stretched_between_percentiles_of_valid_pixels(dtype):
    values = random_rgb(40, 30, dtype, 10000)
    count = np.ones((40, 30))
    count[:, :15] = 0
    values[:, :, :15] = 60000 if dtype == "uint16" else np.nan
    picture = drawn(plot.plot_composite(dataset(values, count)))
    low, high = np.percentile(values[:, :, 15:].astype(float), [2, 98])
    expected = np.clip((values[:, :, 15:].astype(float) - low) / (high - low) * 255, 0, 255)
    assert np.abs(np.moveaxis(picture[:, 15:, :3], 2, 0) - expected).max() <= 0.51
    assert (picture[:, :15, 3] == 0).all()


def test_a_fixed_stretch():
    values = np.array([0, 500, 1000, 3000], "uint16").reshape(1, 2, 2).repeat(3, 0)
    picture = drawn(plot.plot_composite(dataset(values, np.ones((2, 2))), stretch=(0, 1000)))
    assert picture[..., 0].tolist() == [[0, 128], [255, 255]]
    with pytest.raises(ParameterError, match="stretch"):
        plot.plot_composite(dataset(values, np.ones((2, 2))), stretch=(1000, 0))


def test_a_constant_picture_has_no_contrast_to_stretch():
    picture = drawn(plot.plot_composite(dataset(np.full((3, 2, 2), 700, "uint16"), np.ones((2, 2)))))
    assert (picture == [0, 0, 0, 255]).all()


def test_red_green_and_blue_are_found_by_their_names():
    values = np.stack([np.full((2, 2), v, "uint8") for v in (2, 3, 4, 8)])
    named = dataset(values, np.ones((2, 2)), bands=["B02", "B03", "B04", "B08"])
    assert drawn(plot.plot_composite(named))[0, 0].tolist() == [4, 3, 2, 255]
    assert drawn(plot.plot_composite(named, bands=["B08", "B04", "B03"]))[0, 0].tolist() == [8, 4, 3, 255]
    assert drawn(plot.plot_composite(named, bands=["B08"]))[0, 0].tolist() == [8, 8, 8, 255]
    assert drawn(plot.plot_composite(named.isel(band=[3])))[0, 0].tolist() == [8, 8, 8, 255]
    for wrong in (["B8A"], ["B02", "B03"]):
        with pytest.raises(ParameterError, match="B08"):
            plot.plot_composite(named, bands=wrong)


def test_a_large_lazy_composite_is_drawn_from_every_nth_pixel():
    values = np.random.default_rng(1).integers(1, 255, (3, 4000, 60), dtype="uint8")
    lazy = dataset(values, np.ones((4000, 60))).chunk(y=500)
    picture = drawn(plot.plot_composite(lazy))
    assert picture.shape == (1334, 20, 4)
    assert np.array_equal(picture[..., :3], np.moveaxis(values[:, ::3, ::3], 0, 2))
    assert lazy["composite"].chunks is not None, "the caller's dataset stays lazy"


def test_nothing_to_draw_is_an_error_not_a_black_picture():
    empty = dataset(np.zeros((3, 4, 4), "uint8"), np.zeros((4, 4)), np.full((4, 4), -1))
    for draw in (plot.plot_composite, plot.plot_count, plot.plot_date, plot.timeline):
        with pytest.raises(ParameterError, match=r"no data|no observation"):
            draw(empty)


def test_a_missing_layer_and_wrong_dimensions_are_named():
    data = dataset(random_rgb())
    with pytest.raises(ParameterError, match=r"'count'.*composite"):
        plot.plot_count(data)
    with pytest.raises(ParameterError, match="period"):
        plot.plot_composite(data.expand_dims(period=2))
    with pytest.raises(ParameterError, match="scene_time"):
        plot.plot_date(dataset(random_rgb(), source=np.zeros((6, 5))).drop_vars("scene_time"))


def test_count():
    count = np.arange(30).reshape(6, 5)
    ax = plot.plot_count(dataset(random_rgb(), count))
    assert np.array_equal(drawn(ax), count)
    assert ax.images[0].get_clim() == (0, 29)


def test_few_dates_have_a_colour_and_a_label_each():
    source = np.array([[0, 2], [2, -1]])
    ax = plot.plot_date(dataset(random_rgb(2, 2), source=source))
    assert ax.images[0].get_array().tolist() == [[0, 1], [1, None]]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["2023-06-01  33%", "2023-06-21  67%"], "a date nobody comes from has no label"
    patches = [patch.get_facecolor() for patch in ax.get_legend().get_patches()]
    np.testing.assert_allclose(patches, ax.images[0].to_rgba(np.array([0, 1])))


def test_many_dates_share_a_scale():
    source = np.arange(30).reshape(6, 5) - 1
    data = dataset(random_rgb(), source=source, times=30)
    ax = plot.plot_date(data)
    days = ax.images[0].get_array()
    assert days.mask[0, 0]
    assert np.array_equal(days.compressed(), date2num(data["scene_time"].values[:29]))
    ax.figure.canvas.draw()
    labels = [text.get_text() for text in ax.figure.axes[1].get_yticklabels()]
    first, last = np.datetime_as_string(data["scene_time"].values[[0, 28]], unit="D")
    assert 3 <= len([label for label in labels if first <= label <= last]) <= 8, "dates written out"


def test_timeline_shows_the_share_of_each_scene():
    ax = plot.timeline(dataset(random_rgb(2, 2), source=[[0, 2], [2, -1]]))
    heights = [segment[1, 1] for segment in ax.collections[0].get_segments()]
    assert heights == pytest.approx([100 / 3, 0, 200 / 3])
    assert ax.get_title() == "luminance median: pixels of 2 of 3 scenes"


def test_a_composite_of_several_scenes_a_pixel_has_no_dates_but_a_timeline():
    cube = cube_with_clouds((0, 0.5, 0, 0.1))
    cube[2, :, :20] = 0
    comp = s2c.composite(cube, "median")
    for draw in (comp.plot.date, comp.plot.timeline):
        with pytest.raises(ParameterError, match=r"median makes a pixel of several scenes.*plot\.timeline\(cube\)"):
            draw()
    ax = comp.plot.timeline(cube)
    (lines,) = ax.collections
    assert [segment[1, 1] for segment in lines.get_segments()] == pytest.approx([90, 90, 45, 90])
    assert ax.get_title() == "what 4 scenes show of the area"


def cube_with_clouds(shares):
    """One grey scene for each share of its pixels that is white, 0 on a strip at the left."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 70, (len(shares), 3, 40, 40)).astype("uint8")
    for scene, share in zip(pixels, shares, strict=True):
        scene[:, rng.random((40, 40)) < share] = 240
        scene[:, :, :4] = 0
    times = np.datetime64("2023-06-01", "ns") + np.arange(len(shares)) * np.timedelta64(5, "D")
    coords = {"time": times, "scene": ("time", [f"s{i}" for i in range(len(shares))])}
    return xr.DataArray(pixels, coords, ("time", "band", "y", "x"), attrs={"nodata": 0})


@pytest.mark.parametrize("shares", [(0, 0.02, 0.5, 0.05, 1, 0), (1, 0.4, 0, 0, 0, 0.9, 0)])
def test_the_cloudy_scene_is_half_covered(shares):
    half = int(np.argmin(np.abs(np.array(shares) - 0.45)))
    assert cloudy_scene(cube_with_clouds(shares)) == half


def test_a_cube_without_any_observation_has_no_cloudy_scene_to_prefer():
    assert cloudy_scene(xr.zeros_like(cube_with_clouds((0, 1)))) == 0


def test_reflectances_below_zero_do_not_disturb_the_choice():
    cube = cube_with_clouds((0, 0.5, 0.02)).astype("float32") - 65
    assert cloudy_scene(cube) in range(3)


def test_the_timeline_of_a_cube_shows_what_each_scene_shows(tmp_path):
    make_scenes(tmp_path, scenes=4, size=512, compress="deflate")
    cube = s2c.open_cube(tmp_path)
    comp = s2c.composite(cube).compute()
    ax = comp.plot.timeline(cube, resolution=10)
    shown, taken = ([segment[1, 1] for segment in lines.get_segments()] for lines in ax.collections)
    assert shown == pytest.approx(s2c.valid_share(cube)["valid"].values * 100)
    assert taken == pytest.approx(comp.shares().values / comp.shares().values.sum() * 100)
    assert [text.get_text()[:5] for text in ax.get_legend().get_texts()] == ["valid", "taken"]
    coarse = comp.plot.timeline(cube).collections[0].get_segments()
    assert [segment[1, 1] for segment in coarse] == pytest.approx(shown, abs=10), "an estimate from overviews"
    with pytest.raises(ParameterError, match="not the same ones"):
        comp.plot.timeline(cube.isel(time=slice(1, None)))


def monthly(values, count=None):
    """Layers of a composite with a period for each of values ``(t, band, y, x)``."""
    parts = [dataset(one, np.ones(one.shape[1:]) if count is None else count[t]) for t, one in enumerate(values)]
    labels = [f"2023-{month:02}" for month in range(1, len(values) + 1)]
    whole = xr.concat(parts, xr.DataArray(np.array(labels, "datetime64[ns]"), dims="time", name="time"))
    return whole.assign_coords(scene_time=parts[0]["scene_time"], period=("time", labels))


def test_no_data_has_one_colour_in_all_figures():
    """That of the axes, which what is drawn leaves free."""
    values, count = random_rgb(), np.ones((6, 5))
    values[:, 2, 3] = count[2, 3] = 0
    data = dataset(values, count, np.where(count > 0, 0, -1))
    cube = xr.DataArray(values[None], dims=("time", "band", "y", "x"), attrs={"nodata": 0})
    cube = cube.assign_coords(time=data["scene_time"].values[:1])
    whole = monthly(values[None], count[None])
    figures = [draw(data).figure for draw in (plot.plot_composite, plot.plot_count, plot.plot_date)]
    figures += [plot.before_after(cube, data), plot.periods(whole), plot.periods(whole, layer="count")]
    drawn_axes = [ax for figure in figures for ax in figure.axes if ax.images]
    assert len(drawn_axes) == 8
    for ax in drawn_axes:
        (image,) = ax.images
        shown = image.to_rgba(image.get_array())
        assert np.array_equal(shown[..., 3] == 0, count == 0), ax.get_title()
        assert mpl.colors.to_hex(ax.get_facecolor()) == NO_DATA_COLOUR


def seasons():
    """A summer, a winter with snow and an empty period, of ``uint16``."""
    summer, winter = random_rgb(12, 10, "uint16", 1000), random_rgb(12, 10, "uint16", 9000)
    count = np.ones((3, 12, 10))
    count[2] = 0
    return monthly(np.stack([summer, winter, np.zeros_like(summer)]), count)


def stretched(values, ends):
    return np.clip((values.astype(float) - ends[0]) / (ends[1] - ends[0]) * 255, 0, 255)


def differs(ax, expected):
    return np.abs(np.moveaxis(drawn(ax)[..., :3], 2, 0) - expected).max() > 0.51


def test_each_period_can_be_seen_or_all_in_one_stretch():
    data = seasons()
    values = data["composite"].values
    each = plot.periods(data)
    common = plot.periods(data, stretch="common")
    narrow = plot.periods(data, stretch="10-90% common")
    all_ends, narrow_ends = (np.percentile(values[:2].astype(float), ends) for ends in ((2, 98), (10, 90)))
    for t in (0, 1):
        assert not differs(each.axes[t], stretched(values[t], np.percentile(values[t].astype(float), (2, 98))))
        assert not differs(common.axes[t], stretched(values[t], all_ends))
        assert not differs(narrow.axes[t], stretched(values[t], narrow_ends))
    assert drawn(each.axes[0]).mean() > 1.5 * drawn(common.axes[0]).mean(), "a summer beside snow"
    one = plot.periods(data, bands=["b1"])
    scales = [ax.get_ylim() for ax in one.axes if not ax.images or ax.get_title() == ""][-2:]
    assert scales == [pytest.approx(np.percentile(values[t, 1].astype(float), (2, 98))) for t in (0, 1)]


def test_periods_are_drawn_side_by_side():
    values = np.stack(
        [random_rgb(12, 10, "uint16", 4000), random_rgb(12, 10, "uint16", 1000) + 1, np.zeros((3, 12, 10), "uint16")]
    )
    count = np.ones((3, 12, 10))
    count[2] = 0
    figure = plot.periods(monthly(values, count), columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["Jan 2023", "Feb 2023", "Mar 2023"]
    assert figure.get_suptitle() == "luminance median\n3 scenes, 2023-06-01 to 2023-06-21"
    assert (drawn(figure.axes[2])[..., 3] == 0).all()
    assert [text.get_text() for text in figure.axes[2].texts] == ["no data"]
    assert not figure.axes[0].texts
    fixed = plot.periods(monthly(values, count), stretch=(0, 4000), bands=["b1"])
    assert drawn(fixed.axes[0])[3, 4, 0] == round(values[0, 1, 3, 4] / 4000 * 255)
    assert fixed.get_suptitle().startswith("luminance median, b1\n")
    assert fixed.axes[3].get_ylim() == (0, 4000), "greys have a scale"


def test_counts_of_periods_share_a_scale():
    count = np.stack([np.full((6, 5), 3), np.full((6, 5), 7), np.zeros((6, 5))])
    figure = plot.periods(monthly(np.ones((3, 3, 6, 5), "uint8"), count), layer="count")
    assert {ax.images[0].get_clim() for ax in figure.axes[:3]} == {(0, 7)}
    assert [len(ax.texts) for ax in figure.axes[:3]] == [0, 0, 1]


def test_periods_that_cannot_be_drawn():
    two = monthly(np.zeros((2, 3, 6, 5), "uint8"), np.zeros((2, 6, 5)))
    for layer in ("composite", "count"):
        with pytest.raises(ParameterError, match="period"):
            plot.periods(two, layer=layer)
    with pytest.raises(ParameterError, match="no periods"):
        plot.periods(dataset(random_rgb()))
    with pytest.raises(ParameterError, match=r"plot\.periods\(\)"):
        plot.plot_composite(two)
    with pytest.raises(ParameterError, match="columns=0"):
        plot.periods(two, columns=0)


def test_before_and_after():
    cube = cube_with_clouds((0, 0.5, 0, 0.1))
    after = np.full((3, 40, 40), 65, "uint8")
    data = dataset(after, np.full((40, 40), 3))
    figure = plot.before_after(cube, data)
    before, composite, count = figure.axes[:3]
    assert before.get_title() == "one scene, 2023-06-06"
    assert (drawn(before)[:, :4, 3] == 0).all()
    assert np.array_equal(drawn(before)[:, 4:, :3], np.moveaxis(cube.values[1, :, :, 4:], 0, 2))
    assert (drawn(composite) == [65, 65, 65, 255]).all()
    assert (drawn(count) == 3).all()
    assert plot.before_after(cube, data, "s3").axes[0].get_title() == "one scene, 2023-06-16"
    assert plot.before_after(cube, data, -1).axes[0].get_title() == "one scene, 2023-06-16"
    for wrong in ("s9", 4):
        with pytest.raises(ParameterError, match="no scene"):
            plot.before_after(cube, data, wrong)
    with pytest.raises(ParameterError, match="no data"):
        plot.before_after(cube, dataset(np.zeros((3, 40, 40), "uint8"), np.zeros((40, 40))))


def test_drawing_one_scene_of_a_cube_reads_no_other(tmp_path):
    files = make_scenes(tmp_path, scenes=3, size=64, compress="deflate")
    cube = s2c.open_cube(files)
    expected = cube.values[1]
    for other in (files[0], files[2]):
        (tmp_path / other).unlink()
    assert np.array_equal(one_scene(cube, 1).values, expected)


def test_the_verbs_of_a_composite_draw():
    pixels = cube_with_clouds((0, 0.5, 0, 0.1))
    comp = s2c.composite(pixels.drop_vars("scene"))
    assert drawn(comp.plot()).shape == (40, 40, 4)
    assert drawn(comp.plot.count()).max() == 4
    assert comp.plot.date().images
    assert comp.plot.timeline().collections
    assert len(comp.plot.before_after(pixels).axes) >= 3
    months = s2c.composite(pixels.drop_vars("scene"), period=["2023-06-01/2023-06-10", "2023-06-11/2023-06-30"])
    assert len(months.plot.periods().axes) == 2
    assert s2c.plot.periods is plot.periods
