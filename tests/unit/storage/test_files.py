"""One place decides on credentials: the environment's if there are any, else anonymous, without asking the network."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

import s2composite as s2c
from s2composite.errors import GridError, SceneError, SourceError
from s2composite.storage.files import (
    absolute,
    display,
    filesystem,
    gdal_options,
    is_remote,
    join,
    reason,
    storage_options,
)
from support.rasters import series
from support.storage_servers import BUCKETS, CREDENTIALS, gcs_server, http_server

SHARED = "[default]\naws_access_key_id = key\naws_secret_access_key = hidden\n"


@pytest.fixture
def bare():
    """An environment without credentials, proxies and endpoints."""
    with http_server() as running, running.selected():
        yield running


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("/a/b.tif", "/a/b.tif"),
        ("/a/../b/./c.tif", "/b/c.tif"),
        ("file:///a/b%20c.tif", "/a/b c.tif"),
        ("gcs://b/k", "gs://b/k"),
        ("s3a://b/k", "s3://b/k"),
        ("S3://b/k", "s3://b/k"),
        ("https://h/a?x=1&y=a%20b", "https://h/a?x=1&y=a%20b"),
        ("http://h/été 1/*.tif", "http://h/%C3%A9t%C3%A9%201/*.tif"),
    ],
)
def test_absolute(href, expected):
    assert absolute(href) == expected
    assert absolute(absolute(href)) == expected


def test_pathlib_may_shorten_urls():
    assert absolute(Path("gs://b/k/a.tif")) == "gs://b/k/a.tif"
    assert absolute(Path("https://h/a.tif")) == "https://h/a.tif"
    assert absolute(Path("/a/b.tif")) == "/a/b.tif"


@pytest.mark.parametrize("scheme", ["ftp", "az", "abfs", "memory", "zip"])
def test_unknown_schemes_are_refused(scheme):
    for function in (absolute, is_remote, filesystem, storage_options, gdal_options):
        with pytest.raises(SourceError, match=f"the URL scheme {scheme}:// is unknown; use gs://"):
            function(f"{scheme}://host/a.tif")


def test_windows_drives_are_no_schemes():
    assert not is_remote("C:\\data\\a.tif")
    assert is_remote("HTTPS://host/a.tif")


def test_join_and_display():
    assert join("s3://b/out", "a", "/b.tif") == "s3://b/out/a/b.tif"
    assert join("/out/", "a.tif") == "/out/a.tif"
    assert display("http://h:80/a?b#c") == "http://h:80/a"
    assert display("gs://b/a?b") == "gs://b/a?b"


# --- who one is -----------------------------------------------------------------------------------------------------


def test_without_credentials_all_is_anonymous(bare):
    assert storage_options("gs://b/a")["token"] == "anon"
    assert storage_options("s3://b/a")["anon"] is True
    assert gdal_options("gs://b/a") == {"GS_NO_SIGN_REQUEST": "YES"}
    assert gdal_options("s3://b/a") == {"AWS_NO_SIGN_REQUEST": "YES"}
    assert gdal_options("https://h/a") == gdal_options("/a") == storage_options("/a") == {}


def test_google_credentials_are_used_where_gcloud_puts_them(bare, tmp_path):
    file = tmp_path / "application_default_credentials.json"
    file.write_text("{}")
    for variable, value in (("CLOUDSDK_CONFIG", tmp_path), ("GOOGLE_APPLICATION_CREDENTIALS", file)):
        with bare.selected(**{variable: str(value)}):
            assert storage_options("gs://b/a")["token"] == "google_default"
            assert gdal_options("gs://b/a") == {"GOOGLE_APPLICATION_CREDENTIALS": str(file)}
            with bare.selected(**{variable: str(value), "GS_NO_SIGN_REQUEST": "YES"}):
                assert storage_options("gs://b/a")["token"] == "anon"


def test_google_machines_are_asked_for_their_own_credentials(bare):
    with bare.selected(K_SERVICE="median"):
        assert storage_options("gs://b/a")["token"] is None
        assert gdal_options("gs://b/a") == {}


def test_aws_credentials_are_used_wherever_botocore_finds_them(bare, tmp_path):
    file = tmp_path / "credentials"
    file.write_text(SHARED)
    for environment in (CREDENTIALS, {"AWS_SHARED_CREDENTIALS_FILE": str(file)}):
        with bare.selected(**environment):
            assert storage_options("s3://b/a")["anon"] is False
            assert gdal_options("s3://b/a") == {}
            with bare.selected(**environment, AWS_NO_SIGN_REQUEST="YES"):
                assert storage_options("s3://b/a")["anon"] is True
    assert storage_options("s3://b/a")["anon"] is True  # an answer holds for its environment only


def test_an_unknown_profile_is_told_when_it_is_used_not_passed_over(bare):
    with bare.selected(AWS_PROFILE="nobody"):
        assert storage_options("s3://b/a")["anon"] is False


def test_endpoints_and_requester_pays(bare):
    with bare.selected(AWS_ENDPOINT_URL="https://minio:9000/", AWS_REQUEST_PAYER="requester", **CREDENTIALS):
        assert storage_options("s3://b/a") == {
            "anon": False,
            "use_listings_cache": False,
            "endpoint_url": "https://minio:9000",
            "requester_pays": True,
        }
        expected = {"AWS_S3_ENDPOINT": "minio:9000", "AWS_HTTPS": "YES", "AWS_VIRTUAL_HOSTING": "FALSE"}
        assert gdal_options("s3://b/a") == expected
        with bare.selected(AWS_ENDPOINT_URL="http://a", AWS_ENDPOINT_URL_S3="http://b"):
            assert storage_options("s3://b/a")["endpoint_url"] == "http://b"
    with bare.selected(STORAGE_EMULATOR_HOST="localhost:9023"):
        assert storage_options("gs://b/a")["endpoint_url"] == "http://localhost:9023"


def test_options_hold_no_secrets(bare, tmp_path):
    file = tmp_path / "credentials"
    file.write_text(SHARED)
    with bare.selected(AWS_SHARED_CREDENTIALS_FILE=str(file), AWS_SESSION_TOKEN="hidden"):
        assert "hidden" not in json.dumps([storage_options("s3://b/a"), gdal_options("s3://b/a")])


def test_the_decision_asks_no_network(bare):
    code = """
import sys
calls = []
network = ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, args: calls.append((event, args)) if event in network else None)
from s2composite.storage.files import filesystem, gdal_options
for href in ("gs://b/a", "s3://b/a", "https://h/a"):
    filesystem(href), gdal_options(href)
print(calls)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert out.stdout == "[]\n"


def test_equal_calls_share_their_connections(bare):
    assert filesystem("s3://b/a")[0] is filesystem("s3://c/d")[0]
    assert filesystem("gs://b/a")[0] is filesystem("gs://c/d")[0]
    with bare.selected(AWS_ENDPOINT_URL="http://elsewhere"):
        other = filesystem("s3://b/a")[0]
    assert other is not filesystem("s3://b/a")[0]


# --- the same access for fsspec and GDAL ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raster(tmp_path_factory):
    import numpy as np
    import rasterio

    path = tmp_path_factory.mktemp("raster") / "a.tif"
    profile = {"driver": "GTiff", "width": 300, "height": 200, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs="EPSG:32631", transform=rasterio.Affine(10, 0, 0, 0, -10, 0)) as out:
        out.write(np.random.default_rng(0).integers(0, 255, (1, 200, 300), dtype=np.uint8))
    return path


@pytest.mark.parametrize("make", [*BUCKETS, http_server])
@pytest.mark.parametrize("credentials", [{}, CREDENTIALS])
def test_fsspec_and_gdal_read_the_same_bytes(make, credentials, raster):
    import rasterio

    with make() as server, server.selected(**credentials):
        url = absolute(server.put_file("bucket/some folder/a.tif", raster))
        fs, path = filesystem(url)
        assert fs.cat_file(path) == raster.read_bytes()
        assert fs.cat_file(path, start=100, end=200) == raster.read_bytes()[100:200]
        options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsigs/:/vsicurl/"}
        with rasterio.Env(**options, **gdal_options(url)), rasterio.open(url) as remote, rasterio.open(raster) as local:
            assert (remote.read() == local.read()).all()


def test_requests_are_signed_with_credentials_only():
    with http_server(refuse=lambda _path, _number: 404) as running:
        for credentials in ({}, CREDENTIALS):
            with running.selected(AWS_ENDPOINT_URL=running.endpoint, **credentials):
                fs, path = filesystem("s3://bucket/a.tif")
                with pytest.raises(FileNotFoundError):
                    fs.cat_file(path)
                assert ("authorization" in running.requests[-1].headers) == bool(credentials)


@pytest.mark.slow
def test_google_emulators_and_public_buckets_are_read_without_grpc():
    from gcsfs.core import GCSFileSystem

    with gcs_server() as server, server.selected():
        assert type(filesystem("gs://bucket/a")[0]) is GCSFileSystem
    with server.selected(STORAGE_EMULATOR_HOST=""):
        assert type(filesystem("gs://bucket/a")[0]) is GCSFileSystem


# --- reasons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError("x"), "it does not exist"),
        (PermissionError("x"), "access is denied"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError(), "ValueError"),
        (OSError("see https://h/a?sig=abc for more"), "OSError: see https://h/a for more"),
    ],
)
def test_reasons(error, expected):
    assert reason("/a", error) == expected


def test_a_url_that_is_none_is_named():
    with pytest.raises(SourceError, match="not a URL"):
        absolute("https://[bad/S2A_T31TCJ_20230709T104629_TCI.tif")
    with pytest.raises(SourceError, match="not a URL"):
        absolute("file://[bad/S2A_T31TCJ_20230709T104629_TCI.tif")


# --- names as GDAL and rasterio write them -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("/vsicurl/https://host/a.tif", "https://host/a.tif"),
        ("/vsicurl_streaming/http://host/a.tif?sig=b", "http://host/a.tif?sig=b"),
        ("/vsicurl?max_retry=3&url=https%3A%2F%2Fhost%2Fa.tif%3Fsig%3Db", "https://host/a.tif?sig=b"),
        (Path("/vsicurl/https://host/a.tif"), "https://host/a.tif"),
        ("/vsicurl/file:///data/a.tif", "/data/a.tif"),
        ("/vsis3/bucket/a b.tif", "s3://bucket/a b.tif"),
        ("/vsis3_streaming/bucket/a.tif", "s3://bucket/a.tif"),
        (Path("/vsigs/bucket/a.tif"), "gs://bucket/a.tif"),
        ("/vsigs_streaming/bucket/a.tif", "gs://bucket/a.tif"),
        ("/vsizip//data/a.zip/b.tif", "/vsizip//data/a.zip/b.tif"),
        ("/vsizip/{/data/a.zip}/b.tif", "/vsizip//data/a.zip/b.tif"),
        ("/vsitar//data/x/../a.tar.gz/b.tif", "/vsitar//data/a.tar.gz/b.tif"),
        ("zip:///data/a.zip!b.tif", "/vsizip//data/a.zip/b.tif"),
        ("zip+file:///data/a.zip!/in/b.tif", "/vsizip//data/a.zip/in/b.tif"),
        ("tar:///data/a.tar!b.tif", "/vsitar//data/a.tar/b.tif"),
        ("vsis3/a.tif", f"{Path.cwd()}/vsis3/a.tif"),
    ],
)
def test_names_of_gdal(name, meant):
    assert absolute(name) == meant
    assert absolute(meant) == meant


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/vsiaz/container/a.tif", "https:// URL, signed"),
        ("/vsimem/a.tif", "memory of one process"),
        ("/vsistdin/", "give the file"),
        ("/vsioss/bucket/a.tif", "/vsioss is not read here; give a local path"),
        ("/vsisubfile/0_1000,/data/a.tif", "is not read here"),
        ("/vsicurl/", "is not read here"),
        ("/vsicurl/host/a.tif", "is not read here"),
        ("/vsicurl/ftp://host/a.tif", "scheme ftp:// is unknown"),
        ("/vsicurl?list_dir=no", "is not read here"),
        ("/vsizip//vsicurl/https://host/a.zip/b.tif", "behind a URL or in another archive"),
        ("/vsizip/vsis3/bucket/a.zip/b.tif", "behind a URL or in another archive"),
        ("/vsizip/https://host/a.zip/b.tif", "behind a URL"),
        ("/vsitar//vsigzip//data/a.tar.gz/b.tif", "in another archive"),
        ("zip+https://host/a.zip!b.tif", "scheme zip"),
        ('NETCDF:"a.nc":ndvi', "dataset within a file as GDAL does; give the file itself"),
        ("NETCDF:a.nc:ndvi", "dataset within a file"),
        ('HDF4_EOS:EOS_GRID:"a.hdf":grid:band', "dataset within a file"),
        ("ZARR:/data/a.zarr:/band", "dataset within a file"),
        ("GTIFF_DIR:2:a.tif", "dataset within a file"),
        ("SENTINEL2_L2A:/data/MTD.xml:10m:EPSG_32631", "dataset within a file"),
        ("vrt://a.tif?bands=1", "scheme vrt:// is unknown"),
        ("C:\\data\\a.tif", "path of Windows"),
        ("C:/data/a.tif", "path of Windows"),
        ("\\\\server\\share\\a.tif", "path of Windows"),
        ("a\0.tif", "NUL"),
        ("~nobody-of-that-name/a.tif", "home directory"),
    ],
)
def test_names_of_gdal_that_mean_nothing_here(name, words):
    with pytest.raises(SourceError, match=re.escape(words)):
        absolute(name)


def test_a_file_of_an_odd_name_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ZARR:odd.tif").touch()
    assert absolute("ZARR:odd.tif") == str(tmp_path / "ZARR:odd.tif")


@pytest.mark.parametrize("engine", ["auto", "gdal"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_files_in_archives_are_read_as_gdal_reads_them(tmp_path, kind, engine):
    names = [Path(path).name for path in series(tmp_path, scenes=2, nodata=0, overviews=(2,))]
    archive = tmp_path / f"scenes.{kind}"
    shutil.make_archive(str(archive.with_suffix("")), kind, tmp_path)
    for name in names:
        (tmp_path / name).unlink()
    hrefs = [f"/vsi{kind}/{archive}/{name}" for name in names]
    cube = s2c.open_cube([Path(href) for href in hrefs], engine=engine)
    for t, href in enumerate(hrefs):
        with rasterio.open(href) as dataset:
            np.testing.assert_array_equal(cube.values[t], dataset.read())
    assert (cube.attrs["engine"], cube.attrs["engine_reason"]) == ("gdal", "in an archive (2 files)")
    assert s2c.open_cube(hrefs, resolution=20).shape == (2, 3, 100, 68)
    with pytest.raises(GridError, match="in an archive"):
        s2c.open_cube(hrefs, engine="tiles")
    with pytest.raises(SceneError, match="not a TIFF, nor another raster"):
        s2c.open_cube(f"/vsi{kind}/{archive}/T31TCJ_20230101.tif")
    with pytest.raises(SceneError, match="there is no such archive"):
        s2c.open_cube(f"/vsi{kind}//nowhere/a.{kind}/T31TCJ_20230101.tif")
