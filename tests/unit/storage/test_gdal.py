"""Reads through GDAL over a network that fails: a server that falls silent is given up, and what may pass tried again."""

import errno
import logging
import socket
import threading

import numpy as np
import pytest
import rasterio

import s2composite as s2c
from s2composite.errors import ReadError, SceneError
from s2composite.geotiff.header import read_header
from s2composite.storage.gdal import through_gdal
from support.http_faults import fault_server, raw_server
from support.rasters import write_tif


@pytest.fixture
def impatient(monkeypatch):
    """What a user may set too: two seconds of silence instead of half a minute; one is too few for a busy machine."""
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "2")


@pytest.fixture
def jp2(tmp_path):
    values = np.random.default_rng(0).integers(1, 4000, (1, 400, 300)).astype(np.uint16)
    path = tmp_path / "T31TCJ_20230709T104629_B04.jp2"
    options = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "crs": "EPSG:32631"}
    transform = rasterio.Affine(10, 0, 300000, 0, -10, 4900020)
    with rasterio.open(
        path, "w", width=300, height=400, count=1, dtype="uint16", transform=transform, **options
    ) as dataset:
        dataset.write(values)
    return path, values


@pytest.mark.parametrize(
    ("silent", "attempts"),
    [(1, 4), (2, 5), *(pytest.param(*later, marks=pytest.mark.slow) for later in ((3, 4), (4, 5)))],
)
def test_a_server_that_falls_silent_is_asked_again(jp2, impatient, caplog, silent, attempts):
    """Request 0 reads the first bytes without GDAL; its own follow, for the header and then for the pixels.

    After each of them comes one of a byte, without GDAL, that shows whether the file is still the same.
    """
    path, values = jp2
    with (
        fault_server(path.parent, fault=lambda _, n: "hang" if n == silent else None) as server,
        caplog.at_level(logging.WARNING, "s2composite"),
    ):
        cube = s2c.open_cube(server.url(path.name))
        np.testing.assert_array_equal(cube.compute(scheduler="threads").values[0], values)
    assert f"attempt 1 of {attempts} failed" in caplog.text


def test_digits_of_a_date_are_no_status(jp2, impatient, caplog):
    path = jp2[0].rename(jp2[0].with_name("T31TCJ_20230401T104629_B04.jp2"))
    with (
        fault_server(path.parent, fault=lambda _, n: "hang" if n == 1 else None) as server,
        caplog.at_level(logging.WARNING, "s2composite"),
    ):
        assert read_header(server.url(path.name)).geobox.shape == (400, 300)
    assert "attempt 1 of 4 failed" in caplog.text


@pytest.mark.parametrize("digits", ["404", *(pytest.param(code, marks=pytest.mark.slow) for code in ("401", "403"))])
def test_digits_of_a_port_are_no_status(digits):
    """libcurl writes the port as a word of its own."""

    def refuses(port):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED

    port = next(port for port in (int(f"{first}{digits}") for first in range(20, 60)) if refuses(port))
    with pytest.raises(ReadError, match=f"port {port}") as caught:
        through_gdal(lambda name: rasterio.open(name).close(), f"http://127.0.0.1:{port}/B04.jp2")
    assert caught.value.transient
    assert caught.value.retries == 3


def test_a_long_message_of_a_server_is_cut(monkeypatch, caplog):
    def refuse(_):
        body = b"<Error><Code>AccessDenied</Code><Message>" + b"x" * 300_000 + b"</Message></Error>"
        head = f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        yield f"{head}Connection: close\r\n\r\n".encode() + body

    with raw_server(refuse) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
        with pytest.raises(ReadError) as caught:
            through_gdal(lambda name: rasterio.open(name).close(), "s3://bucket/long.tif")
    assert not caught.value.transient
    assert "GDAL cannot read it: xxxxx" in caplog.text
    assert len(caplog.text) < 10_000


@pytest.mark.slow
def test_a_server_that_stays_silent_is_given_up_and_named(jp2, impatient):
    path, _ = jp2
    gone, held = threading.Event(), []

    def silent(_, n):
        if n > 0:
            held.append(gone.wait(60))

    with fault_server(path.parent, fault=silent) as server:
        with pytest.raises(SceneError, match=rf"{path.name} is not a TIFF, nor another raster"):
            read_header(server.url(path.name))
        assert not held, "four times a second of silence, and none of them ended by the server"
        gone.set()


def test_how_long_gdal_waits(tmp_path, monkeypatch):
    path = str(write_tif(tmp_path / "a.tif", np.ones((8, 8), np.uint8)))
    seen = []
    through_gdal(lambda _: seen.append(rasterio.env.getenv()), path)
    assert {key: seen[0][key] for key in ("GDAL_HTTP_CONNECTTIMEOUT", "GDAL_HTTP_LOW_SPEED_TIME")} == {
        "GDAL_HTTP_CONNECTTIMEOUT": "10", "GDAL_HTTP_LOW_SPEED_TIME": "30",
    }  # fmt: skip
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "7")
    through_gdal(lambda _: seen.append(rasterio.env.getenv()), path)
    assert "GDAL_HTTP_LOW_SPEED_TIME" not in seen[1], "the environment decides"
