"""The record of a window: what is noted is there again, what is damaged is told, and that of a development version."""

import io
import struct
import zlib

import numpy as np
import pytest

from s2composite.errors import WriteError
from s2composite.writing.encode import Statistics
from s2composite.writing.options import RasterOptions
from s2composite.writing.staging import Parts
from s2composite.writing.steps import raster_stages, recorded_windows
from s2composite.writing.tiles import Band, Raster, StagedFile, encode_files, load_record, recorded_index

TABLE = np.arange(4, dtype="uint8").reshape(4, 1, 1)


@pytest.fixture
def files(tmp_path):
    """Two files of one window, encoded with a table."""
    parts = Parts(str(tmp_path / "parts"))
    parts.create()
    options = RasterOptions(blocksize=64, predictor=1)
    raster = Raster((Band("b", "composite", "average"),), (100, 130), np.dtype("uint8"), 0, None, options, parts=parts)
    files = [StagedFile(n, raster, raster_stages(raster, ((100,), (128, 2)))) for n in (0, 1)]
    values = np.arange(100 * 130, dtype="uint32").reshape(1, 100, 130).astype("uint8")
    for column, part in enumerate((values[..., :128], values[..., 128:])):
        assert encode_files(files, [[part], [part // 2]], 0, (0, column), {"status": TABLE + column}) == {}
    return files


def test_what_is_noted_is_there_again(files):
    parts = files[0].raster.parts
    record = load_record(parts, files[0].record(0, (0, 0)))
    first = recorded_index(record, 1)
    assert (first.position, first.part) == ((0, 0), "_0_0_0.part")
    assert [tiles.shape for tiles in first.tiles] == [(2, 2), (1, 1)]
    assert first.tiles[0]["start"].tolist()[0][0] == 0
    assert isinstance(first.statistics[0][0], Statistics)
    assert first.statistics[0][0].maximum == 127
    assert record["top_0"].shape == (1, 25, 32)


def test_what_is_carried_is_what_would_be_stored(files):
    parts, values = files[0].raster.parts, np.ones((1, 100, 128), "uint8")
    carried = encode_files(files, [[values], [values]], 0, (0, 0), {"status": TABLE}, carry=True)
    encode_files(files, [[values], [values]], 0, (0, 0), {"status": TABLE})
    assert list(carried)[-1] == files[0].record(0, (0, 0))
    assert carried == {name: parts.read(name) for name in carried}


def test_a_record_that_is_damaged_is_named(files, tmp_path):
    name = files[0].record(0, (0, 1))
    path = tmp_path / "parts" / name
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], b""):
        path.write_bytes(data)
        with pytest.raises(WriteError, match=rf"{name}: the record of a window is damaged; remove it and resume"):
            load_record(files[0].raster.parts, name)
    path.unlink()
    with pytest.raises(WriteError, match="it does not exist"):
        load_record(files[0].raster.parts, name)


def test_a_record_of_an_early_development_version_is_refused(files):
    """These were NumPy's ZIP files."""
    parts, name = files[0].raster.parts, files[0].record(0, (0, 0))
    old = io.BytesIO()
    np.savez(old, allow_pickle=False, **load_record(parts, name))
    for data in (old.getvalue(), old.getvalue()[:-30], b"PK" + parts.read(name)[2:50]):
        parts.write(name, data)
        with pytest.raises(WriteError, match=rf"{name}: the record of a window is damaged; remove it and resume"):
            load_record(parts, name)


def test_a_record_whose_checksum_begins_as_a_zip_file_does_is_read(files):
    """One in 65536 does: a run of a few thousand windows failed now and then, on whatever window that was."""
    parts, name, pixels = files[0].raster.parts, files[0].record(0, (0, 0)), np.ones((1, 100, 128), "uint8")

    def encode(number, **how):
        tables = {"status": TABLE, "number": np.array([[number]], "<u4")}
        return encode_files(files, [[pixels], [pixels]], 0, (0, 0), tables, **how)

    record = encode(0, carry=True)[name]
    start = zlib.crc32(record[4:-4])  # the number is the last of the record
    number = next(n for n in range(1 << 22) if zlib.crc32(struct.pack("<I", n), start) & 0xFFFF == 0x4B50)
    encode(number)
    assert parts.read(name).startswith(b"PK")
    found = load_record(parts, name)
    assert found["table_number"] == number
    assert recorded_index(found, 1).part == "_0_0_0.part"


def test_tables_come_from_the_records_of_windows(files):
    one = [StagedFile(file.number, file.raster, file.stages[:1]) for file in files]
    results, tables = recorded_windows(one)
    assert [len(own) for own in results] == [2, 2]
    assert np.array_equal(tables["status"], np.concatenate([TABLE, TABLE + 1], axis=2))
