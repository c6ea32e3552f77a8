"""Fetching over a real server: every fault is repeated or given up as it deserves, and nothing false comes through."""

import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

import s2composite as s2c
from s2composite.errors import AccessError, ReadError, SceneError
from s2composite.geotiff.header import read_header
from s2composite.reading.tiles import TileRequest, begin_window, read_tiles, read_window
from s2composite.reading.warp import read_level
from s2composite.storage import http as fetch
from s2composite.storage.http import ByteRange, Fetching, Identity, read_head, read_identity, request
from s2composite.storage.retry import Retry
from support.http_faults import fault_server, raw_server
from support.job_helpers import until
from support.rasters import write_tif
from support.storage_servers import CREDENTIALS, gcs_server, s3_server

QUICK = Retry(first_wait=0.01, longest_wait=0.02, timeout=120)
"""What is repeated is repeated at once; an answer is waited for on the busiest machine."""
HASTY = replace(QUICK, timeout=1)
"""For servers that stay silent."""
SIZE = 256


@pytest.fixture
def scenes(tmp_path):
    """Six small files with 64-pixel blocks, of noise, so that no two tiles have the same bytes."""
    rng = np.random.default_rng(3)
    for i in range(6):
        write_tif(tmp_path / f"s{i}.tif", rng.integers(1, 255, (3, SIZE, SIZE), np.uint8), interleave="pixel")
    return tmp_path


def whole(header, retry=QUICK):
    """Read all of a file."""
    out = np.zeros((header.bands, *header.geobox.shape), header.dtype)
    window = (slice(0, out.shape[1]), slice(0, out.shape[2]))
    (result,) = read_window([TileRequest(header, 0, window, tuple(range(header.bands)), out)], retry=retry)
    return result, out


def truth(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_a_remote_header_is_one_request_and_equals_the_local_one(scenes):
    with fault_server(scenes) as server:
        header = read_header(server.url("s0.tif"))
        assert len(server.state.requests) == 1
    local = read_header(str(scenes / "s0.tif"))
    assert (header.geobox, header.nodata, header.dtype) == (local.geobox, local.nodata, local.dtype)
    assert (header.levels[0].offsets == local.levels[0].offsets).all()
    assert header.identity.size == local.identity.size
    assert header.identity.etag


@pytest.mark.parametrize("fault", ["503", "500", "429", "408", "reset", "short", "hang"])
def test_what_may_pass_is_repeated_counted_and_reported(scenes, fault, caplog):
    with fault_server(scenes, fault=lambda path, n: fault if 1 <= n <= 2 else None) as server:
        header = read_header(server.url("s0.tif") + "?signature=secret")
        result, out = whole(header, HASTY if fault == "hang" else QUICK)
    assert result.error is None
    assert result.retries == 2
    told = [record.getMessage() for record in caplog.records if record.name == "s2composite.storage.http"]
    assert len(told) == 2
    assert all("s0.tif" in line and f"attempt {n} of 5 failed" in line for n, line in enumerate(told, 1))
    assert "secret" not in caplog.text
    assert (out == truth(scenes / "s0.tif")).all()


@pytest.mark.parametrize("fault", ["503", "reset", "short", "hang"])
def test_repeating_ends(scenes, fault):
    retry = Retry(attempts=3, first_wait=0.01, timeout=0.2)
    with fault_server(scenes, fault=lambda path, n: fault if n else None) as server:
        result, out = whole(read_header(server.url("s0.tif")), retry)
        assert len(server.state.requests) == 1 + 3
    assert result.error.transient
    assert result.retries == 2
    assert "s0.tif" in str(result.error)
    assert "tried 3 times" in str(result.error)
    assert "status 400" not in str(result.error)
    assert (out == 0).all()


@pytest.mark.parametrize(
    ("fault", "says"), [("404", "does not exist"), ("403", "denied"), ("401", "denied"), ("400", "refused")]
)
def test_what_will_not_pass_is_given_up_at_once(scenes, fault, says):
    with fault_server(scenes, fault=lambda path, n: fault if n else None) as server:
        result, _ = whole(read_header(server.url("s0.tif")))
        assert len(server.state.requests) == 2
    assert not result.error.transient
    assert result.retries == 0
    assert says in str(result.error)


@pytest.mark.parametrize("fault", ["no-ranges", "other-range"])
def test_a_server_that_sends_other_bytes_than_asked_for_is_refused(scenes, fault):
    with fault_server(scenes, fault=lambda path, n: fault if n else None) as server:
        result, _ = whole(read_header(server.url("s0.tif")))
    assert not result.error.transient
    assert "byte ranges" in str(result.error)


def test_a_small_file_may_come_whole(tmp_path):
    path = write_tif(tmp_path / "small.tif", np.ones((64, 64), np.uint8))
    with fault_server(tmp_path, fault=lambda path, n: "no-ranges") as server:
        header = read_header(server.url("small.tif"))
    assert header.identity.size == Path(path).stat().st_size


@pytest.mark.parametrize(("fault", "says"), [("404", "does not exist"), ("403", "denied")])
def test_a_scene_that_is_not_there_is_named_at_opening(scenes, fault, says):
    with fault_server(scenes, fault=lambda path, n: fault) as server, pytest.raises(SceneError, match=says) as caught:
        read_header(server.url("s0.tif") + "?signature=secret")
    assert "s0.tif" in str(caught.value)
    assert "secret" not in str(caught.value) + repr(caught.value.__dict__)


def test_no_server_is_a_passing_failure(scenes):
    with fault_server(scenes) as server:
        header = read_header(server.url("s0.tif"))
    result, _ = whole(header, Retry(attempts=2, first_wait=0.01))
    assert result.error.transient
    assert result.retries == 1


def test_an_object_that_is_empty(tmp_path):
    (tmp_path / "empty.tif").touch()
    with fault_server(tmp_path) as server, pytest.raises(SceneError, match="empty"):
        read_header(server.url("empty.tif"))


@pytest.mark.parametrize("where", ["remote", "local"])
@pytest.mark.parametrize("change", ["longer", "same size", "gone"])
def test_an_object_that_changed_since_it_was_opened_is_refused(scenes, where, change):
    path = scenes / "s0.tif"
    with fault_server(scenes) as server:
        header = read_header(server.url("s0.tif") if where == "remote" else str(path))
        content = path.read_bytes()
        if change == "gone":
            path.unlink()
        else:
            path.write_bytes(content + b"x" if change == "longer" else content[:-9] + b"\0" + content[-8:])
            os.utime(path, (1, 1))
        result, out = whole(header)
    assert not result.error.transient
    assert "s0.tif" in str(result.error)
    assert ("has changed" in str(result.error)) == (change != "gone")
    assert (out == 0).all()


def test_without_etag_a_change_shows_by_time(scenes):
    with fault_server(scenes, fault=lambda path, n: "no-etag") as server:
        header = read_header(server.url("s0.tif"))
        os.utime(scenes / "s0.tif", (1, 1))
        result, _ = whole(header)
    assert header.identity.etag is None
    assert "has changed" in str(result.error)


def test_corrupted_on_the_way(scenes):
    with fault_server(scenes, fault=lambda path, n: "corrupt" if n else None) as server:
        result, out = whole(read_header(server.url("s0.tif")))
    assert "damaged" in str(result.error)
    assert (out == 0).all()


def test_one_scene_that_fails_leaves_the_others_whole(scenes):
    names = [f"s{i}.tif" for i in range(6)]
    with fault_server(scenes, fault=lambda path, n: "404" if n and path == "s3.tif" else None) as server:
        headers = [read_header(server.url(name)) for name in names]
        out = np.zeros((6, 3, SIZE, SIZE), np.uint8)
        window = (slice(0, SIZE), slice(0, SIZE))
        results = read_window([TileRequest(h, 0, window, (0, 1, 2), o) for h, o in zip(headers, out, strict=True)])
    assert [r.error is not None for r in results] == [name == "s3.tif" for name in names]
    for name, pixels in zip(names, out, strict=True):
        assert (pixels == (0 if name == "s3.tif" else truth(scenes / name))).all()


def test_neighbouring_tiles_are_one_request_of_their_bytes_only(scenes):
    with fault_server(scenes) as server:
        header = read_header(server.url("s0.tif"))
        out = np.empty((3, 128, SIZE), np.uint8)
        read_tiles(header, 0, (slice(64, 192), slice(0, SIZE)), (0, 1, 2), out)
        ((_, start, stop),) = server.state.requests[1:]
    level = header.levels[0]
    assert (start, stop) == (int(level.offsets[4]), int(level.offsets[11] + level.counts[11]))
    assert (out == truth(scenes / "s0.tif")[:, 64:192]).all()


def test_tiles_far_apart_are_fetched_apart(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (3, 512, 1024), np.uint8)
    write_tif(tmp_path / "wide.tif", noise, block=128, interleave="pixel")
    with fault_server(tmp_path) as server:
        header = read_header(server.url("wide.tif"))
        out = np.empty((3, 512, 128), np.uint8)
        result = read_tiles(header, 0, (slice(0, 512), slice(0, 128)), (0, 1, 2), out)
        parts = server.state.requests[1:]
    assert result.requests == len(parts) == 4
    assert result.bytes == sum(stop - start for _, start, stop in parts) == int(header.levels[0].counts[::8].sum())
    assert (out == noise[:, :, :128]).all()


def test_waiting_for_many_scenes_takes_as_long_as_for_one(scenes):
    """A server that answers none of the files before it was asked for all of them."""
    together = threading.Barrier(18)
    with fault_server(scenes) as server:
        headers = [read_header(server.url(f"s{i}.tif")) for i in range(6)] * 3
        server.state.fault = lambda path, n: together.wait(60) and None
        out = np.empty((18, 3, SIZE, SIZE), np.uint8)
        window = (slice(0, SIZE), slice(0, SIZE))
        results = read_window(
            [TileRequest(h, 0, window, (0, 1, 2), o) for h, o in zip(headers, out, strict=True)], retry=QUICK
        )
    assert not any(result.error for result in results)
    assert sum(result.requests for result in results) == 18


def test_the_next_window_travels_while_this_one_is_decoded(scenes):
    window = (slice(0, SIZE), slice(0, SIZE))
    with fault_server(scenes) as server:
        headers = [read_header(server.url(f"s{i}.tif")) for i in range(6)]
        asked = len(server.state.requests)
        out = np.full((6, 3, SIZE, SIZE), 7, np.uint8)
        begun = [begin_window([TileRequest(h, 0, window, (0, 1, 2), o)]) for h, o in zip(headers, out, strict=True)]
        until(lambda: len(server.state.requests) == asked + 6 and server.state.flying == 0)
        assert (out == 7).all()
        results = [b.finish() for b in begun]
        assert len(server.state.requests) == asked + 6, "nothing was left to ask for"
    assert not any(r.error for (r,) in results)
    for i in range(6):
        assert (out[i] == truth(scenes / f"s{i}.tif")).all()


def test_a_window_that_is_given_up_asks_for_nothing_more(scenes):
    window = (slice(0, SIZE), slice(0, SIZE))
    with fault_server(scenes, latency=0.1) as server:
        header = read_header(server.url("s0.tif"))
        begun = begin_window([TileRequest(header, 0, window, (0, 1, 2), np.empty((3, SIZE, SIZE), np.uint8))])
        begun.close()
        (result,) = begun.finish()
    assert result.requests == 0
    assert "cancelled" in str(result.error)


def test_bytes_in_flight_are_bounded(scenes):
    budget = 100_000
    with fault_server(scenes, latency=0.02) as server:
        headers = [read_header(server.url(f"s{i}.tif")) for i in range(6)]
        ranges = [ByteRange(h.href, h.identity, k * 20_000, 20_000) for h in headers for k in range(5)]
        server.state.most_flying = 0
        got = dict(Fetching(ranges, QUICK, budget))
        assert 2 * 20_000 <= server.state.most_flying <= budget
    for i, part in enumerate(ranges):
        content = (scenes / part.href.rsplit("/", 1)[1]).read_bytes()
        assert got[i].data == content[part.start : part.start + part.size]


def test_a_range_larger_than_the_budget_still_comes(scenes):
    with fault_server(scenes) as server:
        header = read_header(server.url("s0.tif"))
        ((_, fetched),) = Fetching([ByteRange(header.href, header.identity, 0, header.identity.size)], QUICK, 10)
    assert fetched.data == (scenes / "s0.tif").read_bytes()


def test_a_caller_that_stops_early_leaves_nothing_behind(scenes, monkeypatch):
    """With a server that answers the first range only: all that are on their way or wait for a connection are given up."""
    stopped, asked = threading.Event(), []

    def hold(path, number):
        if number > 1:
            stopped.wait(60)

    def noted(*arguments):
        asked.append(request(*arguments))
        return asked[-1]

    with fault_server(scenes, fault=hold) as server:
        header = read_header(server.url("s0.tif"))
        monkeypatch.setattr(fetch, "request", noted)
        fetching = iter(Fetching([ByteRange(header.href, header.identity, i, 10) for i in range(300)], QUICK))
        next(fetching)
        fetching.close()
        assert len(asked) == 300
        assert sum(future.cancelled() for future in asked) == 299
        stopped.set()
        result, out = whole(header)
    assert result.error is None
    assert (out == truth(scenes / "s0.tif")).all()


def test_local_files_are_closed_again(scenes):
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc here")

    def descriptors():
        """Those of the scenes: threads of other tests may open and close others."""
        return sum(os.path.realpath(path).startswith(str(scenes)) for path in folder.iterdir())

    headers = [read_header(str(scenes / f"s{i}.tif")) for i in range(6)] * 20
    for header in headers:
        whole(header)
    assert descriptors() == 0
    fetching = iter(Fetching([ByteRange(h.href, h.identity, 0, 10) for h in headers]))
    next(fetching)
    assert 0 < descriptors() <= 8
    fetching.close()
    assert descriptors() == 0


def test_local_failures_are_results_too(tmp_path):
    missing = ByteRange(str(tmp_path / "none"), Identity(5), 0, 5)
    ((_, fetched),) = Fetching([missing])
    assert not fetched.error.transient
    assert str(tmp_path / "none") in str(fetched.error)
    with pytest.raises(ReadError):
        read_head(str(tmp_path))
    with pytest.raises(ReadError):
        read_identity(str(tmp_path / "none"))


def test_many_threads_read_at_once(scenes):
    with fault_server(scenes, fault=lambda path, n: "503" if n % 7 == 3 else None) as server:
        headers = [read_header(server.url("s1.tif")), read_header(str(scenes / "s1.tif"))]
        expected, wrong = truth(scenes / "s1.tif"), []

        def work(header):
            for _ in range(5):
                result, out = whole(header)
                if result.error is not None or (out != expected).any():
                    wrong.append(result)

        threads = [threading.Thread(target=work, args=(headers[i % 2],)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("fault", ["404", "reset", "short", "hang", "corrupt"])
def test_errors_reach_the_client_from_workers(scenes, fault):
    from distributed.core import error_message

    with fault_server(scenes, fault=lambda path, n: fault if n else None) as server:
        result, _ = whole(read_header(server.url("s0.tif")), Retry(attempts=2, first_wait=0.01, timeout=0.1))
    # A worker sends causes and contexts along, or mere text if one of them cannot be pickled, as those of aiohttp.
    assert result.error.__cause__ is None
    assert result.error.__context__ is None
    copy = pickle.loads(error_message(result.error)["exception"].data)
    assert type(copy) is ReadError
    assert (str(copy), copy.href, copy.transient) == (str(result.error), result.error.href, result.error.transient)


def check_bucket(server, scenes):
    url = server.put_file("bucket/a folder/s+0 %.tif", scenes / "s0.tif")
    header = read_header(url)
    result, out = whole(header)
    assert result.error is None
    assert (out == truth(scenes / "s0.tif")).all()
    with pytest.raises(SceneError, match="does not exist"):
        read_header(url.replace("s+0", "s-0"))
    server.put("bucket/a folder/s+0 %.tif", (scenes / "s1.tif").read_bytes() + b"x")
    result, _ = whole(header)
    assert "has changed" in str(result.error)


@pytest.mark.slow
@pytest.mark.parametrize("credentials", [{}, CREDENTIALS], ids=["anonymous", "signed"])
def test_s3(scenes, credentials):
    with s3_server() as server, server.selected(**credentials):
        check_bucket(server, scenes)


@pytest.mark.slow
def test_google_cloud_storage(scenes):
    with gcs_server() as server, server.selected():
        check_bucket(server, scenes)


# --- The same size, and another file -----------------------------------------------------------------------------------


def replaced(path, pixels, *, by):
    """Give a file other pixels, and leave its size and time of change as they are."""
    before = path.stat()
    other = path.with_name("other") if by == "renaming" else path
    write_tif(other, pixels, compress="none", interleave="pixel")
    while True:  # clocks of file systems tick every few milliseconds
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        if other.stat().st_ctime_ns != before.st_ctime_ns:
            break
    other.replace(path)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def plain(tmp_path):
    """Two rasters of the same size in bytes, the second of which is not there yet."""
    pixels = np.random.default_rng(5).integers(1, 255, (2, 3, SIZE, SIZE), np.uint8)
    path = tmp_path / "T31TCJ_20230102T104441_TCI.tif"
    write_tif(path, pixels[0], compress="none", interleave="pixel")
    return path, *pixels


@pytest.mark.parametrize("by", ["renaming", "writing"])
@pytest.mark.parametrize("options", [{}, {"engine": "gdal"}, {"resampling": "bilinear", "resolution": 20}], ids=str)
def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(plain, by, options):
    path, _, other = plain
    cube = s2c.open_cube(str(path), **options)
    cube.compute(scheduler="synchronous")
    replaced(path, other, by=by)
    with pytest.raises(ReadError, match=rf"{path.name}.* has changed"):
        cube.compute(scheduler="synchronous")
    again = s2c.open_cube(str(path), **options).compute(scheduler="synchronous")
    if "resampling" not in options:
        assert (again.values[0] == other).all()


def test_a_file_that_is_written_to_while_it_is_read_is_noticed(plain):
    path, _, other = plain
    header = read_header(str(path))
    ranges = [ByteRange(header.href, header.identity, i * 1000, 1000) for i in range(20)]
    fetching = iter(Fetching(ranges))
    assert next(fetching)[1].error is None
    replaced(path, other, by="writing")
    assert all("has changed" in str(fetched.error) for _, fetched in fetching)


def test_a_copy_on_another_machine_is_the_same_file(plain):
    path, *_ = plain
    here = read_identity(str(path))
    assert here.system
    there = replace(here, ctime=1, inode=2, system="other 7")
    assert here.same(there)
    assert not here.same(replace(there, modified=1))
    assert not here.same(replace(here, ctime=1))
    assert here.same(Identity(here.size, None, here.modified)), "an index of an earlier version"


@pytest.mark.parametrize("options", [{}, {"engine": "gdal"}, {"resampling": "bilinear", "resolution": 20}], ids=str)
def test_an_object_of_the_same_size_and_second_is_told_by_its_etag(plain, options):
    """GDAL keeps parts of what it has read: whoever opens the object again must not get those."""
    path, _, other = plain
    with fault_server(path.parent) as server:
        cube = s2c.open_cube(server.url(path.name), **options)
        before = cube.compute(scheduler="synchronous")
        stat = path.stat()
        write_tif(path, other, compress="none", interleave="pixel")
        os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns // 10**9 * 10**9 + (stat.st_mtime_ns + 1) % 10**9))
        with pytest.raises(ReadError, match=rf"{path.name}.* has changed"):
            cube.compute(scheduler="synchronous")
        again = s2c.open_cube(server.url(path.name), **options).compute(scheduler="synchronous")
    right = s2c.open_cube(str(path), **options).compute(scheduler="synchronous")
    assert (again.values == right.values).all()
    assert (again.values != before.values).any()


def test_gdal_is_not_sent_to_a_link_local_address(tmp_path):
    """It follows redirects by itself, so that is looked at before."""
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/a.tif\r\nContent-Length: 0\r\n\r\n"
    header = read_header(write_tif(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint8)))
    with raw_server(lambda _: iter([moved])) as url, pytest.raises(AccessError, match="link-local"):
        read_level(
            replace(header, href=f"{url}/a.tif"), (0,), 0, (slice(0, 8), slice(0, 8)), np.empty((1, 8, 8), np.uint8)
        )
