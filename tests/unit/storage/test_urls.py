"""Which places a limited process may touch: every way of writing one that leads elsewhere is refused."""

import asyncio
import ipaddress
import itertools
import os
import socket
import zipfile

import aiohttp
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

import s2composite as s2c
from s2composite.errors import AccessError, S2CompositeError, SceneError, SourceError
from s2composite.geotiff.header import read_header
from s2composite.storage import urls as addresses
from s2composite.storage.files import absolute, filesystem
from s2composite.storage.http import ByteRange, Fetching, Identity
from s2composite.storage.urls import VARIABLE, Access, check_touch, guarded_client, is_open_address, limits
from support.http_faults import fault_server, redirecting
from support.rasters import encoded, series, vrt, write_tif

OPEN = Access(read=("gs://bucket/scenes/", "https://host.example/data", "s3://"), write=("gs://bucket/out",))


@pytest.fixture
def limited(monkeypatch):
    def limit(**places):
        monkeypatch.setenv(VARIABLE, Access(**places).to_json())

    return limit


@pytest.mark.parametrize(
    "href",
    [
        "gs://bucket/scenes/a.tif",
        "gs://bucket/scenes/b/c.tif",
        "https://host.example/data",
        "https://host.example/data/a.tif",
        "https://HOST.example:443/data/a.tif",
        "https://host.example./data/a.tif",
        "https://host.example/data/a.tif?signature=%2F..",
        "s3://any/key.tif",
    ],
)
def test_what_is_inside(href):
    OPEN.may_read(href)


@pytest.mark.parametrize(
    "href",
    [
        "gs://bucket/scene",
        "gs://bucket/scenes",
        "gs://bucket/scenes-of-others/a.tif",
        "gs://bucket2/scenes/a.tif",
        "gs://bucket/scenes/../secret.tif",
        "gs://bucket/scenes/./a.tif",
        "gs://bucket",
        "http://host.example/data/a.tif",
        "https://host.example/database/a.tif",
        "https://host.example/data/../secret",
        "https://host.example/data/%2e%2e/secret",
        "https://host.example/data/%2E./secret",
        "https://host.example/data/..%2fsecret",
        "https://host.example/data/%252e%252e/secret",
        "https://host.example/data/a%00.tif",
        "https://host.example/data\\..\\secret",
        "https://host.example:8443/data/a.tif",
        "https://host.example.evil.example/data/a.tif",
        "https://host.example@evil.example/data/a.tif",
        "https://evil.example@host.example/data/a.tif",
        "https://evil.example#@host.example/data/a.tif",
        "https://host.example/data/a.tif\r\nX-Header: 1",
        "https://host.example/data/a b.tif",
        "https://host.example:99999/data/a.tif",
        "https:///data/a.tif",
        "s3:///key",
        "/etc/passwd",
        "/vsicurl/https://host.example/data/a.tif",
        "/vsis3/any/key.tif",
        "/VSIZIP/x.zip/a.tif",
    ],
)
def test_what_is_outside(href):
    with pytest.raises(AccessError):
        OPEN.may_read(href)


def test_writing_has_its_own_places():
    OPEN.may_write("gs://bucket/out/a.tif")
    for href in ("gs://bucket/scenes/a.tif", "https://host.example/data/a.tif", "gs://bucket/outside/a.tif"):
        with pytest.raises(AccessError):
            OPEN.may_write(href)


def test_directories_are_where_links_lead(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.tif").write_bytes(b"-")
    (inside / "link.tif").symlink_to(outside / "secret.tif")
    (inside / "dir").symlink_to(outside)
    (tmp_path / "input").mkdir()
    access = Access(read=(str(inside),))
    access.may_read(str(inside / "a.tif"))
    for path in ("in/link.tif", "in/dir/secret.tif", "in/../out/secret.tif", "input/a.tif", "in/a.tif\0.png"):
        with pytest.raises(AccessError):
            access.may_read(f"{tmp_path}/{path}")
    (tmp_path / "alias").symlink_to(inside)
    Access(read=(str(tmp_path / "alias"),)).may_read(str(inside / "a.tif"))


@given(st.text(alphabet="abc./\\%2eEfF:@?#~ ", max_size=30))
def test_nothing_below_a_prefix_leaves_it(tail):
    """What is accepted is still below the prefix after every decoding and tidying that a server or client may do."""
    from urllib.parse import unquote, urlsplit

    from yarl import URL

    href = f"https://host.example/data/{tail}"
    try:
        OPEN.may_read(href)
    except AccessError:
        return
    for seen in (href, unquote(href), unquote(unquote(href)), str(URL(href)), str(URL(href, encoded=True))):
        url = urlsplit(seen)
        assert url.hostname == "host.example"
        assert os.path.normpath(url.path.partition("?")[0]).startswith("/data")


def test_without_the_variable_nothing_is_limited(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert limits() is None
    check_touch("/etc/passwd")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"reed": []}', "null", '{"read": 5}'])
def test_a_variable_that_makes_no_sense_closes_everything(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(AccessError):
        check_touch("/tmp")


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "100.100.100.200", "192.0.0.192", "224.0.0.1", "255.255.255.255", "168.63.129.16", "198.18.0.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a00:1", "::127.0.0.1", "64:ff9b::10.0.0.1",
        "64:ff9b:1::a00:1", "2002:a00:1::", "2002:7f00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "nonsense", "",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_open_address(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "142.250.74.123", "2a00:1450:4009:80b::200e", "::ffff:8.8.8.8"])
def test_addresses_that_are(address):
    assert is_open_address(address)


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_alike(address):
    plain = is_open_address(str(address))
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert not is_open_address(wrapped) or plain
    assert plain <= address.is_global


def test_a_network_can_be_opened():
    assert is_open_address("10.1.2.3", ("10.1.0.0/16",))
    assert is_open_address("::ffff:10.1.2.3", ("10.1.0.0/16",))
    assert not is_open_address("10.2.2.3", ("10.1.0.0/16",))
    assert not is_open_address("169.254.169.254", ("10.0.0.0/8",))


def get(url):
    async def ask():
        async with await guarded_client() as client, client.get(url) as answer:
            return await answer.text()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "localhost.",
    ],
)
def test_no_spelling_of_loopback_is_reached_through_an_open_scheme(limited, tmp_path, host):
    """The server runs and would answer; all of http:// is open, and yet these are refused."""
    (tmp_path / "a.txt").write_text("reached")
    with fault_server(tmp_path) as server:
        port = server.url("").rstrip("/").rpartition(":")[2]
        limited(read=("http://",))
        # Numbers that are no plain address are refused by newer HTTP clients themselves, or else after their look-up.
        with pytest.raises((AccessError, aiohttp.InvalidURL, aiohttp.ClientConnectorDNSError)):
            get(f"http://{host}:{port}/a.txt")
        limited(read=(server.url(""),))
        assert get(server.url("a.txt")) == "reached", "an address that is named is open"


def test_a_name_is_checked_by_its_address_when_it_is_connected_to(limited, tmp_path):
    (tmp_path / "a.txt").write_text("reached")
    with fault_server(tmp_path) as server:
        url = server.url("a.txt").replace("127.0.0.1", "localhost")
        limited(read=(url,))
        with pytest.raises(AccessError, match="not public"):
            get(url)
        limited(read=(url,), networks=("127.0.0.0/8", "::1/128"))
        assert get(url) == "reached"


def test_a_name_that_leads_elsewhere_the_second_time(limited, tmp_path, monkeypatch):
    """DNS rebinding: what was looked at is what is connected to, and each connection is looked at."""
    (tmp_path / "a.txt").write_text("reached")
    answers, plain = itertools.chain(["127.0.0.2"], itertools.repeat("127.0.0.1")), socket.getaddrinfo

    def turning(host, *rest, **options):
        return plain(next(answers) if host == "rebind.example" else host, *rest, **options)

    monkeypatch.setattr(addresses, "DefaultResolver", aiohttp.ThreadedResolver)
    monkeypatch.setattr(socket, "getaddrinfo", turning)
    with fault_server(tmp_path) as server:
        url = server.url("a.txt").replace("127.0.0.1", "rebind.example")
        limited(read=("http://",), networks=("127.0.0.2/32",))
        with pytest.raises(aiohttp.ClientConnectorError):  # nobody listens there
            get(url)
        with pytest.raises(AccessError, match="not public"):
            get(url)
        assert not server.state.requests


def test_a_redirect_is_a_new_request(limited, tmp_path):
    (tmp_path / "a.tif").write_bytes(b"secret")
    with fault_server(tmp_path) as inner, redirecting(inner.url("a.tif")) as outer:
        limited(read=(f"{outer}/",))
        with pytest.raises(AccessError, match="not among the places"):
            get(f"{outer}/scene.tif")
        with pytest.raises(AccessError):
            read_header(f"{outer}/scene.tif")
        ((_, fetched),) = Fetching([ByteRange(f"{outer}/scene.tif", Identity(6), 0, 6)])
        assert "not among the places" in str(fetched.error), "whoever waits for bytes of a file is told, too"
        limited(read=(f"{outer}/", inner.url("")))
        assert get(f"{outer}/scene.tif") == "secret", "a redirect to an open place is followed"


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "gopher://x/"])
def test_redirects_to_where_secrets_are(limited, target):
    with redirecting(target) as outer:
        limited(read=(f"{outer}/", "http://"))
        with pytest.raises((AccessError, aiohttp.ClientError)):
            get(f"{outer}/scene.tif")


def test_a_proxy_of_the_environment_is_not_used(limited, monkeypatch, tmp_path):
    (tmp_path / "a.txt").write_text("direct")
    with fault_server(tmp_path) as server:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        limited(read=(server.url(""),))
        assert get(server.url("a.txt")) == "direct"


# --- all that opens and writes asks ---------------------------------------------------------------------------------


def test_everything_that_opens_asks(limited, tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    good, secret = series(inside, scenes=2), series(outside, scenes=2)
    (inside / "T31TCJ_20230721T104629_TCI.tif").symlink_to(secret[1])
    limited(read=(str(inside),), write=(str(inside),))
    for refused in (
        lambda: s2c.open_cube(secret),
        lambda: s2c.open_cube(str(outside)),
        lambda: s2c.open_cube(str(inside)),
        lambda: filesystem("gs://bucket/a.tif"),
        lambda: s2c.reconstruct(secret, str(inside / "a.tif")),
        lambda: s2c.composite(s2c.open_cube(good)).to_raster(str(outside / "a.tif"), progress=False),
        lambda: s2c.composite(s2c.open_cube(good)).to_zarr(str(outside / "a.zarr")),
    ):
        with pytest.raises(AccessError):
            refused()
    s2c.composite(s2c.open_cube(good)).to_raster(str(inside / "made.tif"), progress=False)
    assert not list(outside.glob("a.*"))


def test_files_that_name_other_files_are_not_opened(limited, tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    secret = write_tif(outside / "secret.tif", encoded(1, bands=1))
    trap = inside / "T31TCJ_20230601T104629_TCI.tif"
    trap.write_text(vrt(secret))
    assert read_header(str(trap)).bands == 1, "without limits GDAL opens it"
    limited(read=(str(inside),))
    with pytest.raises(SceneError, match="not a TIFF"):
        read_header(str(trap))


def test_gdal_is_not_let_out_to_the_web(limited, tmp_path):
    """It would follow redirects and look up names by itself."""
    write_tif(tmp_path / "T31TCJ_20230601T104629_TCI.tif", encoded(1), interleave="pixel")
    with fault_server(tmp_path) as server:
        url = server.url("T31TCJ_20230601T104629_TCI.tif")
        limited(read=(server.url(""),))
        assert np.array_equal(s2c.open_cube(url).values[0], rasterio.open(tmp_path / url.rpartition("/")[2]).read())
        with pytest.raises(S2CompositeError, match="not let out to the web"):
            s2c.open_cube(url, crs="EPSG:3857", resolution=20, resampling="bilinear").compute()


def test_every_private_network_of_the_registry_is_closed():
    for network in ipaddress._IPv4Constants._private_networks:
        assert not is_open_address(str(network[0]))
        assert not is_open_address(str(network[-1]))


def test_workers_inherit_the_limits(limited, tmp_path):
    """What a job's cluster starts is limited as the job is."""
    limited(read=(str(tmp_path),))
    with s2c.connect("local", workers=1, threads=1, dashboard=":0", announce=False) as client:
        client.submit(check_touch, str(tmp_path / "a.tif")).result(timeout=120)
        with pytest.raises(AccessError, match="not among the places"):
            client.submit(check_touch, "/etc/passwd").result(timeout=120)


@pytest.mark.parametrize(
    "name",
    [
        "/vsis3/closed/T31TCJ_20230601.tif",
        "/vsis3_streaming/closed/T31TCJ_20230601.tif",
        "/vsigs/open/T31TCJ_20230601.tif",
        "/vsis3/open/../closed/T31TCJ_20230601.tif",
        "/vsicurl/http://169.254.169.254/T31TCJ_20230601.tif",
        "/vsicurl?url=http%3A%2F%2F127.0.0.1%2FT31TCJ_20230601.tif",
        "/vsicurl?url=file%3A%2F%2F{secret}",
        "/vsicurl/file://{secret}",
        "/vsizip/{secret}/T31TCJ_20230601.tif",
        "/vsizip/{open}/a.zip/T31TCJ_20230601.tif",
        "/vsizip//vsicurl/http://127.0.0.1/a.zip/T31TCJ_20230601.tif",
        "zip://{open}/a.zip!T31TCJ_20230601.tif",
        "tar://{secret}!T31TCJ_20230601.tif",
        "/VSIS3/closed/T31TCJ_20230601.tif",
        "//vsis3/closed/T31TCJ_20230601.tif",
        "/vsimem/T31TCJ_20230601.tif",
        "GTIFF_DIR:1:{secret}",
        "NETCDF:{secret}:x",
    ],
)
def test_names_of_gdal_open_no_more(tmp_path, monkeypatch, name):
    opened_, secret = tmp_path / "open", tmp_path / "T31TCJ_20230601.tif"
    opened_.mkdir()
    write_tif(secret, encoded(0))
    with zipfile.ZipFile(opened_ / "a.zip", "w") as archive:
        archive.write(secret, secret.name)
    monkeypatch.setenv(VARIABLE, Access(read=(str(opened_), "s3://open/")).to_json())
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it asks the network"))
    href = name.replace("{open}", str(opened_)).replace("{secret}", str(secret))
    write_tif(opened_ / secret.name, encoded(0))
    assert s2c.open_cube(opened_).shape == (1, 3, 200, 136)
    with pytest.raises((AccessError, SourceError)):
        s2c.open_cube([href])
    with pytest.raises((AccessError, SourceError)):
        s2c.open_cube(opened_, like=href)


def test_an_open_bucket_is_open_by_its_name_in_gdal():
    access = Access(read=("s3://open/",))
    access.may_read(absolute("/vsis3/open/a.tif"))
    with pytest.raises(AccessError):
        access.may_read(absolute("/vsis3/closed/a.tif"))
