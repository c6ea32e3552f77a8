"""Object stores: the same bytes as on a local disk; an upload that dies leaves no object, no parts, no open upload."""

import http.server
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import pytest
import s3fs
import xarray as xr
from distributed import Client, LocalCluster
from gcsfs.core import GCSFile
from s3fs.core import S3File

import s2composite.writing.cog
import s2composite.writing.publish
from s2composite.errors import ParameterError, WriteError
from s2composite.storage.files import filesystem
from s2composite.writing.cog import write_raster
from s2composite.writing.publish import assemble_object
from s2composite.writing.stac import write_stac
from s2composite.writing.zarr import write_zarr
from support.storage_servers import CREDENTIALS, gcs_server, locked, s3_server
from support.writing_helpers import composite_of, pixels, three_layers

# aiohttp's opinion of how gcsfs sends more than 1 MB.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@pytest.fixture(scope="module", params=[pytest.param(kind, marks=pytest.mark.slow) for kind in ("s3", "gs")])
def server(request):
    """A running object store that the environment points at, with a bucket."""
    running, more = (s3_server(), CREDENTIALS) if request.param == "s3" else (gcs_server(), {})
    with running as made, made.selected(**more):
        made.put("bucket/elsewhere/keep.txt", b"keep")
        yield made


@pytest.fixture
def bucket(server, request):
    """A prefix of its own for each test."""
    return server.url("bucket/" + "".join(c if c.isalnum() else "-" for c in request.node.name))


def objects(url):
    """Return the names of all objects below a prefix."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    try:
        return sorted(name.removeprefix(path).lstrip("/") for name in fs.find(path))
    except FileNotFoundError:
        return []


def content(url):
    fs, path = filesystem(url)
    return fs.cat_file(path)


def open_uploads(url):
    fs, path = filesystem(url)
    if not isinstance(fs, s3fs.S3FileSystem):
        return []
    answer = fs.call_s3("list_multipart_uploads", Bucket=path.split("/")[0])
    return answer.get("Uploads", [])


def sharded(url):
    """Say whether shards can be read: the emulator of Google answers "the last n bytes" with the whole object.

    It also loses the last byte of an object where that is a carriage return, which the chunks of these tests do not end in.
    """
    return url.startswith("s3:")


def upload_class(url):
    return S3File if url.startswith("s3:") else GCSFile


def noisy(shape=(3, 2100, 1500), chunks=512):
    """9 MB that do not compress: an upload in several parts."""
    return composite_of(np.random.default_rng(1).integers(0, 255, shape).astype("uint8"), chunks)


# --- GeoTIFF -----------------------------------------------------------------------------------------------------------


def test_the_same_bytes_as_on_a_disk(tmp_path, bucket):
    dataset, *_ = three_layers()
    local = write_raster(dataset, tmp_path / "median.tif", layers="all")
    remote = write_raster(dataset, f"{bucket}/median.tif", layers="all")
    assert remote == tuple(f"{bucket}/{Path(path).name}" for path in local)
    for path, url in zip(local, remote, strict=True):
        assert content(url) == Path(path).read_bytes()
    assert objects(bucket) == ["median.tif", "median_count.tif", "median_source.tif"]
    assert open_uploads(bucket) == []


def test_an_upload_in_parts(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(s2composite.writing.publish, "_UPLOAD_BLOCK", 5 << 20)
    dataset = noisy()
    (local,) = write_raster(dataset, tmp_path / "out.tif", compress="none")
    (url,) = write_raster(dataset, f"{bucket}/out.tif", compress="none")
    assert len(content(url)) > 10 << 20
    assert content(url) == Path(local).read_bytes()
    assert objects(bucket) == ["out.tif"]


def test_workers_upload(tmp_path, bucket):
    dataset, *_ = three_layers()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as made,
        Client(made),
    ):
        (url,) = write_raster(dataset, f"{bucket}/out.tif")
        store = write_zarr(dataset, f"{bucket}/out.zarr", chunk=128, shards=sharded(bucket))
    with dask.config.set(scheduler="threads"):
        (local,) = write_raster(dataset, tmp_path / "out.tif")
        fs, path = filesystem(store)
        with xr.open_zarr(fs.get_mapper(path)) as opened:
            assert np.array_equal(opened["composite"].values, dataset["composite"].values)
    assert content(url) == Path(local).read_bytes()
    assert not [name for name in objects(bucket) if "parts" in name or "_done" in name or "_identity" in name]


def test_what_exists_is_kept_unless_it_may_be_overwritten(bucket):
    dataset = composite_of(pixels((1, 300, 300)), 128)
    (url,) = write_raster(dataset, f"{bucket}/out.tif")
    before = content(url)
    with pytest.raises(WriteError, match=r"out\.tif: exists already; pass overwrite=True"):
        write_raster(dataset, url)
    write_raster(composite_of(pixels((1, 300, 300), seed=2), 128), url, overwrite=True)
    assert content(url) != before


def test_an_upload_that_dies_leaves_nothing(bucket, monkeypatch):
    monkeypatch.setattr(s2composite.writing.publish, "_UPLOAD_BLOCK", 5 << 20)
    kind = upload_class(bucket)
    whole, calls = kind._upload_chunk, []

    def dies(self, final=False):
        calls.append(final)
        if len(calls) == 2:
            raise OSError("connection reset by peer")
        return whole(self, final)

    monkeypatch.setattr(kind, "_upload_chunk", dies)
    with pytest.raises(WriteError, match=r"out\.tif: cannot be uploaded: OSError: connection reset by peer"):
        write_raster(noisy(), f"{bucket}/out.tif", compress="none")
    assert len(calls) == 2
    assert objects(bucket) == []
    assert open_uploads(bucket) == []


def test_an_encoder_that_dies_leaves_nothing(bucket):
    dataset = noisy()
    dataset["composite"] = dataset["composite"].copy(
        data=dataset["composite"].data.map_blocks(lambda block: block[:, :, ::0], dtype="uint8")
    )
    for write in (write_raster, write_zarr):
        with pytest.raises(WriteError, match=r"window y .*slice step cannot be zero"):
            write(dataset, f"{bucket}/out")
        assert objects(bucket) == []


@pytest.mark.parametrize("harm", ["part", "store"])
def test_what_is_damaged_does_not_become_an_object(bucket, monkeypatch, harm):
    whole = s2composite.writing.cog.lay_out

    def lay_out(raster, results):
        layout = whole(raster, results)
        fs, path = filesystem(raster.parts.root)
        part = f"{path}/{layout.parts[0]}"
        data = bytearray(fs.cat_file(part))
        data[200] ^= 0xFF
        fs.pipe_file(part, bytes(data))
        return layout

    if harm == "part":
        monkeypatch.setattr(s2composite.writing.cog, "lay_out", lay_out)
        says = "cannot be decoded|its pixels are not those"
    else:
        fs, path = filesystem(bucket)
        kind = upload_class(bucket)
        commit = kind.commit

        def truncates(self):
            commit(self)
            fs.pipe_file(f"{path}/out.tif", b"short")

        monkeypatch.setattr(kind, "commit", truncates)
        says = r"the store holds 5 of [\d,]+ bytes, so it was removed"
    with pytest.raises(WriteError, match=says):
        write_raster(composite_of(pixels((3, 300, 300)), 128), f"{bucket}/out.tif", blocksize=128)
    monkeypatch.undo()
    assert objects(bucket) == []
    assert open_uploads(bucket) == []


def test_a_given_up_write_is_not_completed_elsewhere(bucket, monkeypatch):
    """An interrupted client removes the parts; the worker that is uploading must notice and abort."""

    def interrupted(layout, **options):
        fs, path = filesystem(layout.raster.parts.root)
        check = s2composite.writing.publish.check_run

        def late(*args):
            check(*args)
            if fs.exists(f"{path}/in-progress"):
                fs.rm_file(f"{path}/in-progress")

        monkeypatch.setattr(s2composite.writing.publish, "check_run", late)
        return assemble_object(layout, **options)

    monkeypatch.setattr(s2composite.writing.publish, "assemble_object", interrupted)
    with pytest.raises(WriteError, match="no longer exists, because writing was given up"):
        write_raster(composite_of(pixels((1, 300, 300)), 128), f"{bucket}/out.tif")
    assert objects(bucket) == []
    assert open_uploads(bucket) == []


@pytest.mark.slow
def test_a_store_without_permission():
    with s3_server() as server, server.selected(**CREDENTIALS):
        server.put("bucket/there.txt", b"x")
        dataset = composite_of(pixels((1, 30, 30)))
        with locked(server):
            for write in (write_raster, write_zarr):
                with pytest.raises(WriteError, match="access is denied"):
                    write(dataset, "s3://bucket/out", overwrite=write is write_raster)
        for write in (write_raster, write_zarr):
            with pytest.raises(WriteError, match=r"nobucket.*(does not exist|NoSuchBucket)"):
                write(dataset, "s3://nobucket/out")


# --- Zarr --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pyramid", [False, True])
def test_zarr(bucket, pyramid):
    dataset, values, *_ = three_layers()
    url = write_zarr(dataset, f"{bucket}/out.zarr", chunk=128, shards=sharded(bucket), pyramid=pyramid)
    fs, path = filesystem(url)
    with xr.open_zarr(fs.get_mapper(path), group="0" if pyramid else None) as opened:
        assert np.array_equal(opened["composite"].values, values)
        assert opened.odc.geobox == dataset.odc.geobox
    assert not [name for name in objects(url) if name.startswith("_")]
    with pytest.raises(WriteError, match="exists already"):
        write_zarr(dataset, url)
    write_zarr(dataset, url, overwrite=True, chunk=128, shards=sharded(bucket))
    assert ("0/zarr.json" in objects(url)) is False


def test_an_interrupted_zarr_store_has_no_root_and_is_resumed(bucket):
    dataset = composite_of(pixels((1, 256, 256)), 64)
    whole = dataset["composite"].data
    seen = []

    def fails_late(block, block_id):
        seen.append(block_id)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return block

    lazy = whole.map_blocks(fails_late, dtype="uint8", name="fixed-name", meta=np.empty((0, 0, 0), "uint8"))
    dataset["composite"] = dataset["composite"].copy(data=lazy)
    url = f"{bucket}/out.zarr"
    with dask.config.set(scheduler="synchronous"):
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            write_zarr(dataset, url, chunk=32, shards=sharded(url), resume=True)
        assert "zarr.json" not in objects(url)
        assert "composite/zarr.json" in objects(url)
        done = len([name for name in objects(url) if name.startswith("_done/")])
        assert done == 8
        write_zarr(dataset, url, chunk=32, shards=sharded(url), resume=True)
        assert len(seen) == 9 + 16 - done
        fs, path = filesystem(url)
        with xr.open_zarr(fs.get_mapper(path)) as opened:
            assert np.array_equal(opened["composite"].values, whole.compute())


def test_other_objects_are_left_alone(server):
    with pytest.raises(WriteError, match="not a Zarr store; write elsewhere or remove it"):
        write_zarr(composite_of(pixels((1, 30, 30))), server.url("bucket/elsewhere"), overwrite=True)
    assert objects(server.url("bucket/elsewhere")) == ["keep.txt"]


# --- signed URLs ---------------------------------------------------------------------------------------------------------


@contextmanager
def upload_server(status=200):
    """Take PUTs; yields the base URL and what came."""
    came = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            came[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            """Keep quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = False
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", came
        finally:
            listening.shutdown()
            thread.join()


def test_a_signed_url_is_put_to(tmp_path):
    dataset, *_ = three_layers()
    (local,) = write_raster(dataset, tmp_path / "out.tif")
    with upload_server() as (base, came):
        files = write_raster(dataset, f"{base}/out.tif?signature=secret")
    assert files == (f"{base}/out.tif",)
    assert came == {"/out.tif?signature=secret": Path(local).read_bytes()}


def test_a_signed_url_that_is_refused(tmp_path):
    dataset = composite_of(pixels((1, 30, 30)))
    with upload_server(status=403) as (base, _):
        with pytest.raises(WriteError, match="the server refuses the upload: 403") as caught:
            write_raster(dataset, f"{base}/out.tif?signature=secret")
        assert "secret" not in str(caught.value)
    with pytest.raises(WriteError, match="cannot be uploaded") as caught:
        write_raster(dataset, f"{base}/out.tif?signature=secret")
    assert "secret" not in str(caught.value)


def test_a_signed_url_takes_one_file():
    dataset, *_ = three_layers()
    with pytest.raises(ParameterError, match="a signed URL takes one file"):
        write_raster(dataset, "https://example.org/out.tif?signature=secret", layers="all")


# --- STAC ----------------------------------------------------------------------------------------------------------------


def test_an_item_with_its_files_and_thumbnail(tmp_path, bucket):
    dataset, *_ = three_layers((300, 270), 128)
    write_stac(dataset, tmp_path / "m.json", blocksize=128, size=150)
    (item,) = write_stac(dataset, f"{bucket}/m.json", blocksize=128, size=150)
    assert item == f"{bucket}/m.json"
    assert objects(bucket) == ["m.json", "m.tif", "m_count.tif", "m_source.tif", "m_thumbnail.png"]
    local, remote = (json.loads(text) for text in ((tmp_path / "m.json").read_text(), content(item)))
    for facts in (local, remote):
        facts["properties"].pop("created")
    assert local == remote
    for name in ("m_thumbnail.png", "m.tif"):
        assert content(f"{bucket}/{name}") == (tmp_path / name).read_bytes()
    with pytest.raises(WriteError, match="exists already"):
        write_stac(dataset, item)
    write_stac(dataset, item, overwrite=True, blocksize=128)
    assert len(objects(bucket)) == 5


@pytest.mark.slow
def test_a_store_that_refuses_leaves_no_item():
    with s3_server() as server, server.selected(**CREDENTIALS):
        server.put("bucket/there.txt", b"x")
        with locked(server), pytest.raises(WriteError, match="access is denied"):
            write_stac(three_layers((30, 30))[0], "s3://bucket/m.json", overwrite=True)
        assert objects("s3://bucket") == ["there.txt"]
