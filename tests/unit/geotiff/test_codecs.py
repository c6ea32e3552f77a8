"""Tiles of one value are decoded once; what GDAL reads is what there is."""

import numpy as np
import pytest
import rasterio

import s2composite as s2c
import s2composite.geotiff.codecs
from support.rasters import write_tif

SIDE = 256


@pytest.fixture
def decoded(monkeypatch):
    """The sizes of the tiles that are really decoded, in bytes."""
    sizes, decode = [], s2composite.geotiff.codecs._decode

    def noted(coding, data, rows, out):
        sizes.append(len(data))
        decode(coding, data, rows, out)

    monkeypatch.setattr(s2composite.geotiff.codecs, "_SAME", {})
    monkeypatch.setattr(s2composite.geotiff.codecs, "_decode", noted)
    return sizes


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize(
    ("compress", "dtype", "options"),
    [
        ("deflate", "uint8", {}), ("deflate", "uint16", {"predictor": 2}), ("deflate", "float32", {"predictor": 3}),
        ("zstd", "float32", {}), ("lzw", "int16", {}), ("deflate", "float64", {}), ("jpeg", "uint8", {}),
        ("webp", "uint8", {"webp_lossless": True}), ("lerc", "float32", {}), ("packbits", "uint8", {}),
    ],
)  # fmt: skip
def test_tiles_of_one_value_are_decoded_once(compress, dtype, options, interleave, decoded, tmp_path):
    if compress == "webp" and interleave == "band":
        pytest.skip("WebP holds colours")
    rng = np.random.default_rng(3)
    pixels = rng.integers(1, 200, (3, 2 * SIDE, 3 * SIDE + 40)).astype(dtype)
    empty = np.nan if np.dtype(dtype).kind == "f" else 0
    pixels[:, :, :SIDE] = empty
    pixels[:, SIDE:, SIDE : 2 * SIDE] = np.array([7, 8, 9]).reshape(3, 1, 1)
    pixels[:, SIDE:, 2 * SIDE : 3 * SIDE] = empty
    pixels[:, 2 * SIDE - 1, 3 * SIDE - 1] = 5  # all but one
    path = write_tif(
        tmp_path / "T31TCJ_20230601T104629_X.tif",
        pixels,
        block=SIDE,
        nodata=empty,
        compress=compress,
        interleave=interleave,
        **options,
    )
    with rasterio.open(path) as dataset:
        expected = dataset.read()
    counts = []
    for _ in range(2):
        decoded.clear()
        np.testing.assert_array_equal(s2c.open_cube(path, engine="tiles").values[0], expected)
        counts.append(len(decoded))
    whole = 24 if interleave == "band" else 8
    assert counts[0] < whole, "the empty ones are alike"
    assert counts[1] < counts[0]


def test_the_same_bytes_mean_what_their_file_says(decoded, tmp_path):
    """Of the same compressed bytes, one file makes 16 bits of other sign, or twice the samples."""
    for dtype in ("uint16", "int16"):
        value = np.array(65000, "uint16").astype(dtype)
        pixels = np.full((1, SIDE, SIDE), value)
        (tmp_path / dtype).mkdir()
        path = write_tif(tmp_path / dtype / "T31TCJ_20230601T104629_X.tif", pixels, block=SIDE, compress="deflate")
        cube = s2c.open_cube(path, engine="tiles")
        assert cube.dtype == dtype
        assert (cube.values == value).all()
    assert len(decoded) == 2


def test_no_more_tiles_are_remembered_than_a_few_hundred(decoded, tmp_path):
    cache = s2composite.geotiff.codecs._SAME
    for value in range(1, 40):
        pixels = np.full((1, 64 * 16, 64 * 16), value, "uint8")
        pixels[0] += np.kron(np.arange(256).reshape(16, 16), np.ones((64, 64))).astype("uint8")
        path = write_tif(tmp_path / f"T31TCJ_20230601T1046{value:02}_X.tif", pixels, block=64, compress="deflate")
        cube = s2c.open_cube(path, engine="tiles")
        np.testing.assert_array_equal(cube.values[0], pixels)
    assert len(cache) <= s2composite.geotiff.codecs._SAME_KEPT
