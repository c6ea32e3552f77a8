"""Faults while writing, injected for real: whatever dies, nothing is left under the final name, and the error says where."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import rasterio
import zarr
from distributed import Client, LocalCluster

import s2composite.writing.cog
import s2composite.writing.zarr
from s2composite.errors import ReadError, WriteError
from s2composite.writing.cog import write_raster
from s2composite.writing.encode import Codec
from s2composite.writing.staging import StorePlace, place_of
from s2composite.writing.zarr import StoreOptions, begin_store, plan_store, write_zarr
from support import TESTS
from support.job_helpers import until
from support.writing_helpers import composite_of

HERE = Path(__file__).parent


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def made_by(function, rows=4, columns=3, chunk=128):
    """A dataset whose chunks `function(block_id)` makes."""
    chunks = ((3,), (chunk,) * rows, (chunk,) * columns)
    data = da.map_blocks(function, chunks=chunks, dtype="uint8", meta=np.empty((0, 0, 0), "uint8"))
    dataset = composite_of(np.zeros((3, chunk * rows, chunk * columns), "uint8"))
    dataset["composite"] = dataset["composite"].copy(data=data)
    return dataset


def good(block_id):
    return np.random.default_rng(block_id).integers(1, 200, (3, 128, 128)).astype("uint8")


def writers():
    return [
        pytest.param(lambda d, folder, **o: write_raster(d, folder / "out.tif", blocksize=128, **o), id="cog"),
        pytest.param(lambda d, folder, **o: write_zarr(d, folder / "out.zarr", chunk=128, **o), id="zarr"),
        pytest.param(
            lambda d, folder, **o: write_zarr(d, folder / "p.zarr", chunk=64, pyramid=True, **o), id="pyramid"
        ),
    ]


# --- what computes the pixels ------------------------------------------------------------------------------------------


def unreadable(block_id):
    if block_id == (0, 2, 1):
        raise ReadError("scene S2A, window y 256:384, x 128:256: truncated", scene="S2A", transient=False)
    return good(block_id)


def buggy(block_id):
    if block_id == (0, 2, 1):
        raise ZeroDivisionError("by accident")
    return good(block_id)


@pytest.fixture(scope="module")
def cluster():
    # Dask gives up a worker that has died twice if it is just starting 15 s after it was first lost.
    settings = {"distributed.scheduler.allowed-failures": 0, "distributed.deploy.lost-worker-timeout": "1h"}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as made,
        Client(made, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(params=["threads", pytest.param("cluster", marks=pytest.mark.slow)])
def scheduler(request):
    """Run the test in threads, and on a cluster of processes."""
    if request.param == "threads":
        yield request.param
        return
    with request.getfixturevalue("cluster").as_current():
        yield request.param


@pytest.mark.parametrize("write", writers())
def test_a_failed_read_is_let_through(tmp_path, scheduler, write):
    with pytest.raises(ReadError, match="scene S2A, window y 256:384") as caught:
        write(made_by(unreadable), tmp_path)
    assert caught.value.scene == "S2A"
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", writers())
def test_any_other_error_is_ours_and_names_the_window(tmp_path, scheduler, write):
    with pytest.raises(WriteError, match=r"y 256:384, x 128:256.*ZeroDivisionError: by accident"):
        write(made_by(buggy), tmp_path)
    assert names(tmp_path) == []


def deadly(block_id):
    if block_id == (0, 2, 1):
        os._exit(1)
    return good(block_id)


@pytest.mark.slow
@pytest.mark.parametrize("write", writers())
def test_a_worker_that_dies(tmp_path, cluster, write):
    # The worker takes the windows with it that wait for their turn there; any of them may be the one that is named.
    with (
        cluster.as_current(),
        pytest.raises(
            WriteError, match=r"window y \d+:\d+, x \d+:\d+.*(KilledWorker|worker that ran it died)"
        ) as caught,
    ):
        write(made_by(deadly), tmp_path)
    assert caught.value.window
    cluster.wait_for_workers(2)
    assert names(tmp_path) == []


def dies_once(marker):
    def make(block_id):
        if block_id == (0, 2, 1) and not Path(marker).exists():
            with open(marker, "w") as file:
                file.write("died")
            os._exit(1)
        return good(block_id)

    return make


@pytest.mark.slow
def test_a_window_that_runs_again_on_another_worker(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 3}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as made,
        Client(made),
    ):
        (path,) = write_raster(made_by(dies_once(str(tmp_path / "died"))), out / "out.tif", blocksize=128)
    with rasterio.open(path) as source, dask.config.set(scheduler="threads"):
        assert np.array_equal(source.read(), made_by(good)["composite"].values)
    assert names(out) == ["out.tif"]


# --- what encodes, stores and assembles them ----------------------------------------------------------------------------


def test_an_encoder_that_raises(tmp_path, monkeypatch):
    whole = Codec.encode
    calls = []

    def encode(self, tile):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("out of tables")
        return whole(self, tile)

    monkeypatch.setattr(Codec, "encode", encode)
    with pytest.raises(
        WriteError, match=r"out\.tif, window y \d+:\d+, x \d+:\d+: RuntimeError: out of tables"
    ) as caught:
        write_raster(made_by(good), tmp_path / "out.tif", blocksize=128)
    assert caught.value.window.startswith("window y")
    assert names(tmp_path) == []


def test_an_encoder_that_lies(tmp_path, monkeypatch):
    whole = Codec.encode

    def encode(self, tile):
        changed = tile.copy()
        changed[5, 5] = 0
        return whole(self, changed)

    monkeypatch.setattr(Codec, "encode", encode)
    with pytest.raises(WriteError, match=r"tile row 0 column 0 of level \d is damaged: its pixels are not those"):
        write_raster(made_by(good), tmp_path / "out.tif", blocksize=128)
    assert names(tmp_path) == []


def harmed(monkeypatch, harm):
    """Let `harm` at the parts between encoding and assembling."""
    whole = s2composite.writing.cog.lay_out

    def lay_out(raster, results):
        layout = whole(raster, results)
        harm(Path(raster.parts.root), layout)
        return layout

    monkeypatch.setattr(s2composite.writing.cog, "lay_out", lay_out)


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda root, layout: flip(root / layout.parts[3], 100), "cannot be decoded|its pixels are not those"),
        (
            lambda root, layout: flip(root / layout.parts[3], 1),
            "the size before it or the bytes repeated after it differ",
        ),
        (lambda root, layout: (root / layout.parts[3]).unlink(), "it does not exist"),
        (lambda root, layout: os.truncate(root / layout.parts[3], 50), "of .* bytes at"),
    ],
    ids=["flipped pixel", "flipped size", "lost", "truncated"],
)
@pytest.mark.parametrize("compress", ["deflate", "zstd", "none"])
def test_a_part_that_is_damaged_on_disk(tmp_path, monkeypatch, harm, says, compress):
    harmed(monkeypatch, harm)
    with pytest.raises(WriteError, match=says):
        write_raster(made_by(good), tmp_path / "out.tif", blocksize=128, compress=compress)
    assert names(tmp_path) == []


def test_a_window_that_is_missing(tmp_path, monkeypatch):
    whole = s2composite.writing.cog.lay_out
    monkeypatch.setattr(s2composite.writing.cog, "lay_out", lambda raster, results: whole(raster, results[:-2]))
    with pytest.raises(WriteError, match=r"tiles of level \d are missing, the first at row \d column \d"):
        write_raster(made_by(good), tmp_path / "out.tif", blocksize=128)
    assert names(tmp_path) == []


@pytest.mark.parametrize("where", ["file", "header", "short"])
def test_a_disk_that_returns_something_else(tmp_path, monkeypatch, where):
    from s2composite.writing import publish as targets

    whole = targets.verify_file

    def verify(layout, path):
        if where == "short":
            os.truncate(path, 500)
        else:
            flip(Path(path), 20 if where == "header" else len(layout.header) + 300)
        whole(layout, path)

    monkeypatch.setattr(targets, "verify_file", verify)
    says = {"file": "tile row", "header": "the header reads differently", "short": "500 bytes were written instead of"}
    with pytest.raises(WriteError, match=says[where]):
        write_raster(made_by(good), tmp_path / "out.tif", blocksize=128)
    assert names(tmp_path) == []


# --- where it is written ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("write", writers())
def test_a_full_disk(small_disk, write):
    with pytest.raises(WriteError, match=r"the disk is full \([\d,]+ bytes were to be written\)") as caught:
        write(made_by(good), small_disk)
    assert names(small_disk) == []
    assert caught.value.bytes_needed > 0


def test_a_disk_that_is_full_while_assembling_says_how_much_the_file_needs(small_disk):
    values = np.random.default_rng(0).integers(1, 200, (1, 512, 512)).astype("uint8")
    with pytest.raises(WriteError, match=r"assembled: the disk is full \([\d,]+ bytes were to be written\)") as caught:
        write_raster(composite_of(values, 512), small_disk / "out.tif", compress="none", blocksize=256)
    assert caught.value.bytes_needed >= 5 * 65536
    assert names(small_disk) == []


@pytest.mark.parametrize("write", writers())
def test_what_exists_is_kept_unless_it_may_be_overwritten(tmp_path, write):
    dataset = made_by(good)
    with dask.config.set(scheduler="threads"):
        write(dataset, tmp_path)
        (name,) = names(tmp_path)
        with pytest.raises(WriteError, match="exists already; pass overwrite=True"):
            write(made_by(lambda block_id: pytest.fail("computed")), tmp_path)
        with pytest.raises(ReadError):
            write(made_by(unreadable), tmp_path, overwrite=True)
        # What was there is still there, and whole.
        assert names(tmp_path) == [name]
        write(made_by(lambda block_id: good(block_id) // 2), tmp_path, overwrite=True)
    assert names(tmp_path) == [name]


def test_somebody_else_was_faster(tmp_path, monkeypatch):
    harmed(monkeypatch, lambda root, layout: (tmp_path / "out.tif").write_text("theirs"))
    with pytest.raises(WriteError, match="exists already"):
        write_raster(made_by(good), tmp_path / "out.tif", blocksize=128)
    assert (tmp_path / "out.tif").read_text() == "theirs"
    assert names(tmp_path) == ["out.tif"]


@pytest.mark.parametrize("write", writers())
def test_places_that_cannot_be_written_to(tmp_path, write):
    dataset = made_by(lambda block_id: pytest.fail("computed"))
    with pytest.raises(WriteError, match=r"the directory .*missing does not exist; create it first"):
        write(dataset, tmp_path / "missing")
    with pytest.raises(WriteError, match=r"cannot be written|cannot be checked"):
        write(dataset, Path("/proc"))


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(WriteError, match="is a directory; name a file in it"):
        write_raster(made_by(good), tmp_path, overwrite=True)


def test_only_stores_are_overwritten_by_stores(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("three years")
    (tmp_path / "file").write_text("text")
    for name in ("home", "file"):
        with pytest.raises(WriteError, match="not a Zarr store; write elsewhere or remove it"):
            write_zarr(made_by(good), tmp_path / name, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "three years"


# --- interruptions ------------------------------------------------------------------------------------------------------

SLOW = """
import fcntl, sys, time, warnings
from pathlib import Path
sys.path[:0] = {here!r}, {tests!r}
from test_writing_faults import good, made_by
from s2composite.writing.cog import write_raster
from s2composite.writing.zarr import write_zarr

def slow(block_id, place=sys.argv[4]):
    # One after the other, however many threads there are, and from the fourth on not before somebody says so.
    with open(f"{{place}}/turn", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        Path(place, f"begun {{block_id}}").touch()
        while len(list(Path(place).glob("begun *"))) > 3 and not Path(place, "go").exists():
            time.sleep(0.02)
        time.sleep(0.1)
    return good(block_id)

if __name__ == "__main__":
    dataset = made_by(slow, 8, 8)
    if sys.argv[3] == "cluster":
        from distributed import Client, LocalCluster
        client = Client(LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0"))
    if sys.argv[2] == "cog":
        write_raster(dataset, sys.argv[1] + "/out.tif", blocksize=128)
    else:
        write_zarr(dataset, sys.argv[1] + "/out.zarr", chunk=128, resume=sys.argv[2] == "resume")
"""


def interrupted(folder, *args, stop=signal.SIGINT, begun="begun *"):
    """Start writing in another process, stop it when there is this, and return its exit code and its errors."""
    with tempfile.TemporaryDirectory() as place:
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(SLOW.format(here=str(HERE), tests=str(TESTS))),
            str(folder),
            *args,
            place,
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            until(lambda: process.poll() is not None or [*Path(place).glob(begun), *folder.glob(begun)])
            process.send_signal(stop)
            Path(place, "go").touch()
            _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cog", "zarr"])
@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_control_c_leaves_nothing(tmp_path, kind, where):
    code, errors = interrupted(tmp_path, kind, where)
    assert code != 0
    assert "KeyboardInterrupt" in errors
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path):
    interrupted(tmp_path, "cog", "threads", stop=signal.SIGKILL)
    assert not (tmp_path / "out.tif").exists()
    (left,) = names(tmp_path)
    assert left.startswith("out.tif.")
    write_raster(made_by(good), tmp_path / "out.tif", blocksize=128)
    assert (tmp_path / "out.tif").exists()


def test_a_zarr_store_is_resumed_where_it_was_interrupted(tmp_path, monkeypatch):
    computed = []

    def count(block_id):
        computed.append(block_id)
        if len(computed) == 7:
            raise ReadError("a hiccup")
        return good(block_id)

    # The name is the hash of how pixels are made; a closure that changes has no stable one.
    def dataset():
        out = made_by(good)
        data = da.map_blocks(
            count,
            chunks=out["composite"].data.chunks,
            dtype="uint8",
            name="pixels-fixed",
            meta=np.empty((0, 0, 0), "uint8"),
        )
        out["composite"] = out["composite"].copy(data=data)
        return out

    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(ReadError, match="a hiccup"):
            write_zarr(dataset(), tmp_path / "out.zarr", chunk=128, resume=True)
        assert names(tmp_path) == ["out.zarr.partial"]
        with pytest.raises(WriteError, match="an interrupted write of other data"):
            write_zarr(made_by(good), tmp_path / "out.zarr", chunk=128, resume=True)
        before = len(computed)
        write_zarr(dataset(), tmp_path / "out.zarr", chunk=128, resume=True)
    assert len(computed) - before == 12 - 6
    assert names(tmp_path) == ["out.zarr"]
    import xarray as xr

    with xr.open_zarr(tmp_path / "out.zarr") as opened, dask.config.set(scheduler="synchronous"):
        assert np.array_equal(opened["composite"].values, made_by(good)["composite"].values)


@pytest.mark.slow
def test_a_killed_zarr_write_is_resumed(tmp_path):
    interrupted(tmp_path, "resume", "threads", stop=signal.SIGKILL, begun="out.zarr.partial/_done/*")
    assert names(tmp_path) == ["out.zarr.partial"]
    assert len(list((tmp_path / "out.zarr.partial" / "_done").iterdir())) > 0
    # The data of that process cannot be made again here; without resume=True the rest of it is cleared away.
    write_zarr(made_by(good), tmp_path / "out.zarr", chunk=128)
    assert names(tmp_path) == ["out.zarr"]


@pytest.mark.parametrize("fate", ["named", "given up"])
@pytest.mark.parametrize("step", [(zarr.Array, "__setitem__"), (StorePlace, "mark")], ids=["pixels", "mark"])
def test_a_worker_that_wakes_when_the_store_is_gone_leaves_nothing(tmp_path, monkeypatch, step, fate):
    plan = plan_store(made_by(good), place_of(tmp_path / "out.zarr", overwrite=False), StoreOptions(128))
    begin_store(plan, resume=False)
    take = getattr(*step)
    left = set()

    def frozen(self, *args):
        if fate == "named":
            plan.place.complete(b"{}")
        else:
            plan.place.clear()
        left.update(tmp_path.rglob("*"))
        take(self, *args)

    monkeypatch.setattr(*step, frozen)
    monkeypatch.setattr(StorePlace, "require", lambda self, identity: None)  # it ends before it comes to that
    with pytest.raises(
        WriteError, match=r"out.zarr, window y 0:128, x 0:128: .*out.zarr/(composite|_done)/.* it does not exist"
    ):
        plan.regions.keep({"composite": good((0, 0, 0))}, (0, 0))
    assert {*tmp_path.rglob("*")} == left
    assert names(tmp_path) == (["out.zarr"] if fate == "named" else [])


def test_a_zarr_store_that_stores_something_else(tmp_path, monkeypatch):
    whole = zarr.Array.__setitem__

    def store(self, where, values):
        whole(self, where, values // 2 if isinstance(values, np.ndarray) and values.ndim == 3 else values)

    monkeypatch.setattr(zarr.Array, "__setitem__", store)
    with pytest.raises(WriteError, match="composite reads back differently from what was written"):
        write_zarr(made_by(good), tmp_path / "out.zarr", chunk=128)
    assert names(tmp_path) == []
