"""Damaged TIFFs of every kind: a picture or one error of ours, in a moment, in little memory."""

import struct
from pathlib import Path

import numpy as np
import pytest
from tiff_costs import costs_of
from tiff_matrix import JPEG, LOSSLESS, make

pytestmark = pytest.mark.slow

NAMES = {
    case.name for case in LOSSLESS if "-uint8-p" in case.name or "float32-p3" in case.name or "-p0" not in case.name
}
CASES = [case for case in LOSSLESS + JPEG if "sparse" not in case.name]
VALUES = (0, 1, 2, 255, 0x7FFF, 0xFFFF, 1 << 20, 1 << 27, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
"""What counts, sizes and offsets are set to."""


def entries(content):
    """Return where the entries of all directories of a sound TIFF begin, and how long one is."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2 if order == ">" else 3 - 1] == 43 or struct.unpack(order + "H", content[2:4])[0] == 43
    count_code, size, next_code, at = ("Q", 20, "Q", 8) if big else ("H", 12, "I", 4)
    found, (start,) = [], struct.unpack_from(order + next_code, content, at)
    while start:
        (count,) = struct.unpack_from(order + count_code, content, start)
        first = start + struct.calcsize("<" + count_code)
        found += range(first, first + count * size, size)
        (start,) = struct.unpack_from(order + next_code, content, first + count * size)
    return found, size, order


def flip(content, rng):
    """Change a few bytes anywhere."""
    for place in rng.integers(0, len(content), rng.integers(1, 6)):
        content[place] = rng.integers(0, 256)


def cut(content, rng):
    """Lose the end."""
    del content[int(rng.integers(8, len(content))) :]


def claim(content, rng):
    """Let a few entries of a directory say something else: another type, count, value, or offset."""
    found, size, order = entries(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.choice(found))
        part = rng.choice(["type", "count", "value", "value", "value"])
        value = int(rng.choice(VALUES))
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


@pytest.mark.parametrize("damage", [flip, cut, claim, move])
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
    assert [cost for cost in costs if cost.seconds > 2] == []
    assert [cost for cost in costs if cost.grown > 64] == []
    assert len({cost.ended == "read" for cost in costs}) == 2
