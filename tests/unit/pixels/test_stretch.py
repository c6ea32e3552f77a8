"""Stretching and thumbnails: values become pictures in one place, whether they are plotted, previewed or shrunk."""

import imagecodecs
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from s2composite.errors import ParameterError, WriteError
from s2composite.pixels.stretch import Percentiles, as_stretch, colour_bands, limits, rgba, stretched
from s2composite.writing.cog import write_raster
from s2composite.writing.stac import write_stac, write_thumbnail
from support.writing_helpers import composite_of, dataset_of, periods_of_layers, pixels


def opened(path):
    data = path.read_bytes()
    return imagecodecs.png_decode(data) if path.suffix == ".png" else imagecodecs.webp_decode(data)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "common common",
        "2-98% commonly",
        "98%",
        "98-2%",
        "2-200%",
        (5, 5),
        (9, 1),
        (1, 2, 3),
        "x",
        [(0, 1), (2, 1)],
        (0, float("nan")),
        7,
        [[]],
    ],
)
def test_what_is_no_stretch(wrong):
    with pytest.raises(ParameterError, match="stretch is"):
        as_stretch(wrong)


def test_percentiles_of_all_bands_and_of_each():
    assert as_stretch("0.5-99.5%") == Percentiles(0.5, 99.5)
    assert as_stretch("common") == as_stretch(" 2-98% common ") == Percentiles(common=True)
    assert as_stretch("1-99% per band common") == Percentiles(1, 99, per_band=True, common=True)
    values = pixels((3, 50, 40), "uint16", nodata=None) * np.array([1, 2, 3], "uint16")[:, None, None]
    valid = np.random.default_rng(0).random((50, 40)) < 0.7
    assert np.allclose(limits(values, valid, "1-99%"), [np.percentile(values[:, valid], (1, 99))])
    each = limits(values, valid, "1-99% per band")
    assert np.allclose(each, [np.percentile(band[valid], (1, 99)) for band in values])


def test_a_stretch_for_another_number_of_bands():
    values = np.ones((2, 4, 4), "uint16")
    with pytest.raises(ParameterError, match="3 pairs of values for 2"):
        limits(values, np.ones((4, 4), bool), [(0, 1), (0, 2), (0, 3)])


def test_nothing_valid_and_values_beyond_numbers():
    values = np.full((1, 2, 2), np.nan, "float32")
    assert (rgba(values, np.zeros((2, 2), bool)) == 0).all()
    values[0] = [[np.inf, -np.inf], [np.nan, 0.5]]
    picture = rgba(values, np.ones((2, 2), bool), (0, 1))
    assert picture[..., 0].tolist() == [[255, 0], [0, 128]]


@given(
    st.sampled_from(["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"]),
    st.floats(-1000, 1000),
    st.floats(0.5, 5000),
    st.sampled_from([0, 1]),
)
def test_stretching_is_monotonic_and_ends_where_told(dtype, low, span, darkest):
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    ends = (low, low + span)
    values = np.linspace(*ends, 50)
    values = np.clip(np.rint(values), info.min, info.max) if info else values
    out = stretched(values.astype(dtype).reshape(1, 1, -1), np.array([ends]), darkest).ravel().astype(int)
    assert (np.diff(out) >= 0).all()
    want = np.clip((values - low) / span * 255, darkest, 255)
    # Half a step, and what single precision knows of values and ends beside their distance.
    unknown = np.finfo(np.result_type(dtype, np.float32)).eps * (abs(low) + span) / span
    assert np.abs(out - want).max() <= 0.5 + 4 * 255 * unknown + 1e-6


def test_colours_by_name():
    assert colour_bands(["B02", "B03", "B04"]) == [2, 1, 0]
    assert colour_bands(["nir", "red", "green", "blue"]) == [1, 2, 3]
    assert colour_bands(["a", "b", "c", "d"]) == [0, 1, 2]
    assert colour_bands(["a", "b"]) == [0]


# --- previews ----------------------------------------------------------------------------------------------------------


def smooth(bands=3, shape=(400, 300), dtype="uint16"):
    y, x = np.mgrid[: shape[0], : shape[1]]
    values = np.stack([(500 + (i + 1) * 2 * x + 3 * y) for i in range(bands)]).astype(dtype)
    values[:, :60, :50] = 0
    return values


def preview(path, **options):
    (written,) = write_raster(
        composite_of(options.pop("values"), options.pop("chunks", None)),
        path,
        layers="rgba",
        overrides={"rgba": options},
    )
    with rasterio.open(written) as source:
        return source.read()


def test_preview_with_a_stretch_for_each_band(tmp_path):
    values = smooth()
    ends = [(500, 1200), (600, 2000), (0, 3000)]
    out = preview(tmp_path / "p.tif", values=values, chunks=128, stretch=ends)
    for band, plane, (low, high) in zip(out[:3], values, ends, strict=True):
        want = np.clip(np.rint((plane - low) * np.float32(255 / (high - low))), 1, 255)
        assert np.abs(band[values[0] != 0] - want[values[0] != 0]).max() <= 1
    assert np.array_equal(out[3] == 255, values[0] != 0)


def test_preview_with_percentiles_needs_the_pixels(tmp_path):
    values = smooth()
    with pytest.raises(ParameterError, match=r"stretch='2-98%' needs all pixels before the first is written"):
        preview(tmp_path / "p.tif", values=values, chunks=128, stretch="2-98%")
    out = preview(tmp_path / "p.tif", values=values, stretch="2-98%")
    low, high = np.percentile(values[:, values[0] != 0], (2, 98))
    want = np.clip(np.rint((values - low) * (255 / (high - low))), 1, 255)
    assert np.abs(out[:3].astype(float) - want)[:, values[0] != 0].max() <= 1


def test_preview_of_bands_by_their_names_and_of_one(tmp_path):
    values = smooth(4)
    dataset = composite_of(values).assign_coords(band=["B02", "B03", "B04", "B08"])
    (path,) = write_raster(dataset, tmp_path / "p.tif", layers="rgba", overrides={"rgba": {"stretch": (0, 3000)}})
    with rasterio.open(path) as source:
        out = source.read().astype(float)
    want = np.clip(np.rint(values[[2, 1, 0]] * (255 / 3000)), 1, 255)
    assert np.abs(out[:3] - want)[:, values[0] != 0].max() <= 1
    gray = preview(tmp_path / "g.tif", values=values[:1], stretch="2-98% per band")
    assert (gray[0] == gray[1]).all()
    assert (gray[0] == gray[2]).all()


# --- thumbnails ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, 128, 100])
def test_a_thumbnail_has_the_pixels_of_an_overview(tmp_path, chunks):
    values = pixels((3, 700, 530))
    (path,) = write_raster(composite_of(values), tmp_path / "m.tif", blocksize=64)
    (written,) = write_thumbnail(composite_of(values, chunks), tmp_path / "t.png", size=200)
    with rasterio.open(path, overview_level=1) as source:
        want = source.read()
    picture = opened(tmp_path / "t.png")
    assert written == str(tmp_path / "t.png")
    assert picture.shape == (175, 133, 4)
    assert np.array_equal(picture[..., 3] == 255, (want != 0).all(axis=0))
    inside = picture[..., 3] == 255
    assert np.array_equal(np.moveaxis(picture[..., :3], 2, 0)[:, inside], want[:, inside])


@pytest.mark.parametrize(("size", "compress"), [(1000, "deflate"), (200, "deflate"), (60, "deflate"), (200, "jpeg")])
def test_the_thumbnail_of_an_item_is_that_of_the_composite(tmp_path, size, compress):
    values = (
        pixels((3, 700, 530))
        if compress == "deflate"
        else np.clip(smooth(3, (700, 530), "int32") // 12, 0, 250).astype("uint8")
    )
    dataset = composite_of(values, 128)
    write_stac(dataset, tmp_path / "m.json", size=size, blocksize=128, compress=compress)
    write_thumbnail(dataset, tmp_path / "t.png", size=size)
    one, two = opened(tmp_path / "m_thumbnail.png").astype(int), opened(tmp_path / "t.png").astype(int)
    assert one.shape == two.shape
    if compress == "deflate":
        assert np.array_equal(one, two)
    else:
        assert np.abs(one - two)[..., :3].mean() < 3


def test_webp_percentiles_and_periods(tmp_path):
    dataset, arrays = periods_of_layers(("2023-01", "2023-02"), shape=(300, 270))
    files = write_thumbnail(dataset, tmp_path / "t.webp", size=300, stretch="2-98% per band")
    assert files == (str(tmp_path / "t_2023-01.webp"), str(tmp_path / "t_2023-02.webp"))
    picture = opened(tmp_path / "t_2023-02.webp")
    assert picture.shape == (300, 270, 4)
    valid = (arrays["composite"][1] != 0).all(axis=0)
    assert np.array_equal(picture[..., 3] == 255, valid)


def test_thumbnails_of_periods_can_be_compared(tmp_path):
    summer = np.linspace(100, 200, 3 * 64 * 64).reshape(3, 64, 64).astype("uint16")
    dataset, _ = periods_of_layers(("2023-01", "2023-07"), shape=(64, 64))
    dataset = dataset[["composite"]].copy(data={"composite": np.stack([summer, summer * 40])})
    means = {}
    for stretch in (None, "common"):
        files = write_thumbnail(dataset, tmp_path / "t.png", stretch=stretch, overwrite=True)
        assert files == (str(tmp_path / "t_2023-01.png"), str(tmp_path / "t_2023-07.png"))
        means[stretch] = [opened(tmp_path / f"t_2023-{month}.png")[..., :3].mean() for month in ("01", "07")]
    assert means[None][0] == pytest.approx(means[None][1], abs=2)
    assert means["common"][0] < 3
    assert means["common"][1] > 100
    alone = r"'common'; .* are made one by one"
    with pytest.raises(ParameterError, match=alone):
        write_stac(composite_of(summer), tmp_path / "t.json", stretch="common")
    with pytest.raises(ParameterError, match=alone):
        write_raster(dataset, tmp_path / "t.tif", layers="rgba", overrides={"rgba": {"stretch": "common"}})


def test_a_thumbnail_of_one_band_of_floats(tmp_path):
    values = pixels((1, 90, 80), "float32", nodata=np.nan)
    write_thumbnail(composite_of(values, nodata=np.nan), tmp_path / "t.png")
    picture = opened(tmp_path / "t.png")
    assert np.array_equal(picture[..., 3] == 255, np.isfinite(values[0]))
    assert (picture[..., 0] == picture[..., 2]).all()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("t.gif", {}, r"is a \.png or \.webp file"),
        ("t.png", {"size": 5000}, "size is 5000"),
        ("t.png", {"stretch": (3, 1)}, "white must be above"),
        ("t.png", {"layer": "count"}, "no layer 'count' to make a picture of; there are composite"),
        ("missing/t.png", {}, "does not exist; create it first"),
    ],
)
def test_thumbnails_that_make_no_sense(tmp_path, name, options, says):
    dataset = dataset_of({"composite": (pixels((3, 40, 40)), {"nodata": 0}), "count": (pixels((40, 40)), {})})
    with pytest.raises((ParameterError, WriteError), match=says):
        write_thumbnail(dataset, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_thumbnail_is_kept(tmp_path):
    (tmp_path / "t.png").write_text("theirs")
    dataset = composite_of(pixels((3, 40, 40)))
    with pytest.raises(WriteError, match="exists already"):
        write_thumbnail(dataset, tmp_path / "t.png")
    assert (tmp_path / "t.png").read_text() == "theirs"
    write_thumbnail(dataset, tmp_path / "t.png", overwrite=True)
    assert opened(tmp_path / "t.png").shape == (40, 40, 4)
