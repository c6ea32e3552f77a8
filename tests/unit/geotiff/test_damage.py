"""Damaged and hostile TIFFs of every kind: a picture or one error of ours, in a moment, in little memory."""

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile

import s2composite as s2c
from s2composite.errors import SceneError
from s2composite.geotiff.header import read_header
from support.tiff_costs import costs_of
from support.tiff_matrix import JPEG, LOSSLESS, Case, make

SECONDS, MIB = 2, 64
"""Of processor time for a file, and of memory for all of them one after the other."""


def order_of(content):
    return "<" if content[:2] == b"II" else ">"


def entries(content):
    """Return where the entries of all directories of a sound TIFF begin, by tag, and how long one is."""
    order = order_of(content)
    big = struct.unpack_from(order + "H", content, 2) == (43,)
    count_code, size, next_code, at = ("Q", 20, "Q", 8) if big else ("H", 12, "I", 4)
    found, (start,) = [], struct.unpack_from(order + next_code, content, at)
    while start:
        (count,) = struct.unpack_from(order + count_code, content, start)
        first = start + struct.calcsize("<" + count_code)
        found += [
            (struct.unpack_from(order + "H", content, first + i * size)[0], first + i * size) for i in range(count)
        ]
        (start,) = struct.unpack_from(order + next_code, content, first + count * size)
    return found, size


def claim(content, tag, value, kind=4, count=1):
    """Let the first entry of a tag say something else; ``value`` is that of the entry, or where it is."""
    found, size = entries(content)
    at = next(at for t, at in found if t == tag)
    code = order_of(content) + ("HHQQ" if size == 20 else "HHII")
    struct.pack_into(code, content, at, tag, 16 if size == 20 else kind, count, value)


# --- what a header claims -------------------------------------------------------------------------------------------

WIDTH, LENGTH, BITS, COMPRESSION, SAMPLES, PLANAR = 256, 257, 258, 259, 277, 284
PREDICTOR, TILE_WIDTH, TILE_LENGTH, OFFSETS, COUNTS, FORMAT = 317, 322, 323, 324, 325, 339
HUGE = [1 << 20, 1 << 27, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
CLAIMS = {
    **{f"{n} bands": [(SAMPLES, n)] for n in (4, 65535, 65536, *HUGE)},
    **{f"{n} columns": [(WIDTH, n)] for n in HUGE},
    **{f"{n} rows": [(LENGTH, n)] for n in HUGE},
    **{f"{n} square": [(WIDTH, n), (LENGTH, n)] for n in HUGE},
    **{f"one tile of {n} square": [(WIDTH, n), (LENGTH, n), (TILE_WIDTH, n), (TILE_LENGTH, n)] for n in HUGE},
    **{f"tiles {n} wide": [(TILE_WIDTH, n), (TILE_LENGTH, 80)] for n in HUGE},
    **{f"{n} offsets": [(OFFSETS, 8, 4, n)] for n in (0, 1, 3, *HUGE)},
    **{f"offsets at {n}": [(OFFSETS, n, 4, 6)] for n in HUGE},
    **{f"{n} types of bands": [(BITS, 0, 3, n)] for n in HUGE},
    "no columns": [(WIDTH, 0)],
    "no bands": [(SAMPLES, 0)],
    "tiles without columns": [(TILE_WIDTH, 0)],
    "planar configuration 3": [(PLANAR, 3)],
    "offsets of rationals": [(OFFSETS, 8, 5, 3)],
}
"""Entries to change in a file of three bands, 70 x 50 pixels in 2 x 2 tiles."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a classic and of a Big TIFF."""
    options = {"tiled": True, "blockxsize": 32, "blockysize": 48, "compress": "deflate", "interleave": "pixel"}
    directory = tmp_path_factory.mktemp("sound")
    cases = {kind: Case(kind, options={**options, "bigtiff": kind}) for kind in ("no", "yes")}
    return {kind: Path(make(case, directory, shape=(70, 50))).read_bytes() for kind, case in cases.items()}


@pytest.mark.parametrize("big", ["no", "yes"], ids=["classic", "big"])
@pytest.mark.parametrize("name", CLAIMS)
def test_claims_that_the_file_cannot_keep_are_damage(name, big, sound, tmp_path):
    content = bytearray(sound[big])
    for tag, value, *rest in CLAIMS[name]:
        claim(content, tag, value, *rest)
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with pytest.raises(SceneError, match=r"x\.tif is truncated or damaged"):
        read_header(str(path))


@pytest.mark.parametrize("offset", [(1 << 64) - 1, (1 << 64) - 300, 1 << 63, (1 << 32) + 5])
def test_offsets_that_wrap_are_damage(offset, sound, tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(sound["yes"])
    header = read_header(str(path))
    offsets = header.levels[0].offsets.astype("<u8").tobytes()
    content = sound["yes"].replace(offsets, struct.pack("<Q", offset) + offsets[8:])
    assert content != sound["yes"]
    path.write_bytes(content)
    with pytest.raises(SceneError, match="damaged"):
        read_header(str(path))


def test_of_a_tag_that_is_there_twice_the_first_counts(sound, tmp_path):
    content = bytearray(sound["no"])
    found, _ = entries(content)
    at = next(at for tag, at in found if tag == PLANAR)
    struct.pack_into("<HHII", content, at, WIDTH, 4, 1, 49)
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    with rasterio.open(path) as dataset:
        assert dataset.width == 50
    assert read_header(str(path)).levels[0].shape == (70, 50)


def test_directories_in_a_loop_or_over_each_other_are_damage(sound, tmp_path):
    path = tmp_path / "x.tif"
    (start,) = struct.unpack_from("<I", sound["no"], 4)
    (count,) = struct.unpack_from("<H", sound["no"], start)
    following = start + 2 + 12 * count
    loop = bytearray(sound["no"])
    struct.pack_into("<I", loop, following, start)
    # one table after the other, each of the same long values
    entry = struct.pack("<HHII", 42112, 2, 100_000, 8)
    chain = bytearray(b"II*\0" + struct.pack("<I", 100_008) + bytes(100_000))
    for _ in range(4000):
        chain += struct.pack("<H", 1) + entry + struct.pack("<I", len(chain) + 18)
    chain += bytes(18)
    for content, why in ((loop, "loop"), (chain, "overlap")):
        path.write_bytes(content)
        with pytest.raises(SceneError, match=why):
            read_header(str(path))


# --- what a tile claims ---------------------------------------------------------------------------------------------


def jpeg_of(side):
    """Return a JPEG of 8 x 8 pixels that claims to be larger."""
    content = bytearray(imagecodecs.jpeg8_encode(np.full((8, 8, 3), 9, np.uint8)))
    at = content.index(b"\xff\xc0")
    struct.pack_into(">HH", content, at + 5, side, side)
    return bytes(content)


def bombs():
    """Return compression by GDAL, inner one, and a tile that decodes to far more than a tile of 64 x 64 x 3."""
    blob = imagecodecs.lerc_encode(np.zeros((30000, 30000), np.uint8))
    zeros = bytes(200 << 20)
    deflated, zstd = zlib.compress(zeros, 1), imagecodecs.zstd_encode(zeros)
    return {
        "lerc": ("lerc", blob),
        "lerc-of-zstd": ("lerc", zstd),
        "lerc-of-deflate": ("lerc", b"\x78\x9c" + deflated[2:]),
        "lerc-deflate": ("lerc_deflate", deflated),
        "lerc-zstd": ("lerc_zstd", zstd),
        "lerc-zstd-blob": ("lerc_zstd", imagecodecs.zstd_encode(blob)),
        "webp": ("webp", imagecodecs.webp_encode(np.full((16000, 16000, 3), 7, np.uint8), lossless=True)),
        "jpeg": ("jpeg", jpeg_of(65500)),
        "deflate": ("deflate", deflated),
        "zstd": ("zstd", zstd),
        "lzma": ("lzma", imagecodecs.lzma_encode(zeros)),
    }


def with_tile(content, tile):
    """Return a TIFF of one tile that is replaced by another."""
    content = bytearray(content)
    claim(content, OFFSETS, len(content))
    claim(content, COUNTS, len(tile))
    return bytes(content + tile)


@pytest.mark.slow
def test_bombs_cost_little(tmp_path):
    (tmp_path / "sound").mkdir()
    (tmp_path / "bombs").mkdir()
    one = {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "pixel"}
    for name, (compress, tile) in bombs().items():
        case = Case(name, options={**one, "compress": compress})
        content = Path(make(case, tmp_path / "sound", shape=(64, 64))).read_bytes()
        (tmp_path / "bombs" / f"{name}.tif").write_bytes(with_tile(content, tile))
    # all of it is one tile, as its blob says
    whole = Case("whole", bands=1, options={**one, "compress": "lerc"})
    content = bytearray(Path(make(whole, tmp_path / "sound", shape=(64, 64))).read_bytes())
    for tag in (WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH):
        claim(content, tag, 30000)
    (tmp_path / "bombs" / "whole.tif").write_bytes(with_tile(content, bombs()["lerc"][1]))
    # words for entities that grow
    xml = '<!DOCTYPE x [<!ENTITY a "role role role">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 60}">' for a, b in zip("abcd", "bcde", strict=True)
    )
    xml += ']><GDALMetadata><Item name="d" sample="0" role="description">&e;</Item></GDALMetadata>'
    tifffile.imwrite(
        tmp_path / "bombs" / "xml.tif", np.ones((64, 64), np.uint8), extratags=[(42112, "s", 0, xml, True)]
    )
    costs = costs_of(tmp_path / "bombs")
    # that of LZMA is longer than the tile, of which libtiff takes as much as it needs
    assert {cost.name for cost in costs if not cost.ended.startswith("refused")} == {"lzma.tif", "xml.tif"}
    assert [cost for cost in costs if cost.ended != "read" and not cost.ended.startswith("refused")] == []
    assert [cost for cost in costs if cost.seconds > SECONDS or cost.grown > MIB] == []


def test_a_grey_tile_in_a_file_of_colours_is_an_error(tmp_path):
    case = Case(
        "x", options={"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "jpeg", "photometric": "rgb"}
    )
    path = Path(make(case, tmp_path, shape=(64, 64)))
    grey = imagecodecs.jpeg8_encode(np.full((64, 64), 9, np.uint8))
    path.write_bytes(with_tile(path.read_bytes(), grey))
    with rasterio.open(path) as dataset, pytest.raises(rasterio.errors.RasterioIOError):
        dataset.read()
    (cost,) = costs_of(tmp_path)
    assert "holds (64, 64, 1) instead of (64, 64, 3)" in cost.ended


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"compress": "jpeg", "photometric": "ycbcr"}, {COMPRESSION: 6}),
        ({"compress": "jpeg", "nbits": 12}, {}),
        ({"compress": "deflate", "predictor": 2}, {PREDICTOR: 3}),
        ({"compress": "deflate", "predictor": 2}, {PREDICTOR: 7}),
        ({"compress": "deflate"}, {COMPRESSION: 34712}),
        ({"compress": "deflate"}, {COMPRESSION: 50002}),
        ({"compress": "webp", "webp_lossless": True}, {FORMAT: 2}),
        ({"compress": "jpeg", "photometric": "rgb"}, {FORMAT: 2}),
    ],
    ids=["old JPEG", "12 bits", "predictor 3", "predictor 7", "JPEG 2000", "JPEG XL", "signed WebP", "signed JPEG"],
)
def test_odd_codings_are_read_as_gdal_reads_them_or_refused(options, changed, tmp_path):
    dtype = "uint16" if "nbits" in options else "uint8"
    one = {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "pixel", **options}
    path = Path(make(Case("T31TCJ_20230601T104629_TCI", dtype, options=one), tmp_path, shape=(64, 64)))
    content = bytearray(path.read_bytes())
    for tag, value in changed.items():
        claim(content, tag, value, kind=3)
    path.write_bytes(content)
    try:
        with rasterio.open(path) as dataset:
            expected = dataset.read()
    except rasterio.errors.RasterioIOError:
        with pytest.raises(s2c.S2CompositeError, match=path.name):
            s2c.open_cube([path]).load()
    else:
        assert np.array_equal(s2c.open_cube([path]).values[0], expected)


# --- damage at random -----------------------------------------------------------------------------------------------

VALUES = (0, 1, 2, 255, 0x7FFF, 0xFFFF, *HUGE)
CASES = [case for case in LOSSLESS + JPEG if "sparse" not in case.name]


def flip(content, rng):
    """Change a few bytes anywhere."""
    for place in rng.integers(0, len(content), rng.integers(1, 6)):
        content[place] = rng.integers(0, 256)


def cut(content, rng):
    """Lose the end."""
    del content[int(rng.integers(8, len(content) - 4)) :]


def lie(content, rng):
    """Let a few entries of a directory say something else: another type, count, value, or offset."""
    (found, size), order = entries(content), order_of(content)
    for _ in range(rng.integers(1, 4)):
        _, at = found[rng.integers(len(found))]
        part, value = rng.choice(["type", "count", "value", "value", "value"]), int(rng.choice(VALUES))
        if part == "type":
            struct.pack_into(order + "H", content, at + 2, int(rng.integers(0, 20)))
        elif part == "count":
            struct.pack_into(order + "I", content, at + 4, value)
        else:
            struct.pack_into(order + "H", content, at + 2, 4)
            struct.pack_into(order + "I", content, at + size - (8 if size == 20 else 4), value)


def move(content, rng):
    """Write some bytes of the file over others."""
    size = int(rng.integers(2, 64))
    source, target = rng.integers(0, max(len(content) - size, 1), 2)
    content[target : target + size] = content[source : source + size]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, cut, lie, move])
def test_damage_is_an_error_or_a_picture_and_costs_little(damage, tmp_path):
    (tmp_path / "sound").mkdir()
    (tmp_path / "damaged").mkdir()
    rng = np.random.default_rng(14)
    for case in CASES:
        sound = Path(make(case, tmp_path / "sound", shape=(70, 50))).read_bytes()
        for i in range(8):
            content = bytearray(sound)
            damage(content, rng)
            (tmp_path / "damaged" / f"{case.name}-{i}.tif").write_bytes(content)
    costs = costs_of(tmp_path / "damaged")
    assert [cost for cost in costs if cost.ended != "read" and not cost.ended.startswith("refused")] == []
    assert [cost for cost in costs if cost.seconds > SECONDS or cost.grown > MIB] == []
    read = sum(cost.ended == "read" for cost in costs)
    assert read == 0 if damage is cut else 0 < read < len(costs)
