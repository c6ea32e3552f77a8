"""Signed URLs: signed inside of the task, kept for a while, signed again when a server refuses, and never told."""

import contextlib
import datetime as dt
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import dask
import numpy as np
import pytest

import s2composite as s2c
from s2composite.errors import ParameterError, ReadError, SceneError
from s2composite.storage import http as signing
from support import ROOT, TESTS
from support.http_faults import Handler, Listener, State
from support.rasters import write_tif
from support.stac_items import item_of, recorded

VALID = {"token": "first"}
"""What the server takes; shared with the function that signs."""


class Guarded(Handler):
    """A server that refuses whoever has not today's token."""

    refused = 0

    def do_HEAD(self):  # noqa: N802 - the name that http.server calls
        path = self.state.root / urlsplit(self.path).path.lstrip("/")
        allowed = self.may()
        self.send_response(200 if allowed else 403)
        self.send_header("Content-Length", str(path.stat().st_size if allowed else 0))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def may(self):
        token = parse_qs(urlsplit(self.path).query).get("sig", [""])[0]
        file = self.state.root / "token"
        valid = file.read_text() if file.exists() else VALID["token"]
        type(self).refused += token != valid
        return token == valid

    def do_GET(self):  # noqa: N802 - the name that http.server calls
        if self.may():
            super().do_GET()
        else:
            self.answer(b"no", 403)


@pytest.fixture
def server(tmp_path):
    import threading

    VALID["token"] = "first"
    state = State(tmp_path)
    handler = type("BoundHandler", (Guarded,), {"state": state})
    with Listener(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", state, handler
        finally:
            listening.shutdown()
            thread.join()
            for connection in state.sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(2)


class Signer:
    """Signs with the token that is valid now, and counts."""

    def __init__(self):
        self.calls = []

    def __call__(self, href):
        self.calls.append(href)
        return f"{href}?sig={VALID['token']}"

    def __reduce__(self):
        return Signer, ()


def served(tmp_path, url, scenes=3):
    items = []
    for i in range(scenes):
        name = f"s{i}.tif"
        path = write_tif(tmp_path / name, np.full((150, 140), 10 * (i + 1), np.uint16), nodata=0)
        item = item_of(f"S2A_31TCJ_2023060{i + 1}", f"2023-06-0{i + 1}T10:46:29Z", {"red": path})
        item["assets"]["red"]["href"] = f"{url}/{name}"
        items.append(item)
    return items


@pytest.mark.parametrize("options", [{}, {"headers": "lazy"}, {"crs": "EPSG:3035", "resolution": 10}])
def test_what_was_opened_long_ago_is_read_with_a_new_signature(tmp_path, server, options):
    url, _, handler = server
    sign = Signer()
    items = served(tmp_path, url)
    cube = s2c.open_cube(items, bands=["red"], sign=sign, chunks=64, **options)
    VALID["token"] = "second"  # the first one expires
    pixels = cube.compute(scheduler="threads").values
    for i, scene in enumerate(pixels):
        assert set(np.unique(scene)) - {0} == {10 * (i + 1)}
    assert handler.refused <= 40, "refused once for each request on its way, then signed anew"
    assert "sig=" not in str(cube.data.dask.layers) + str(cube)


def test_a_signature_is_used_again(tmp_path, server):
    url, state, _ = server
    sign = Signer()
    cube = s2c.open_cube(served(tmp_path, url), bands=["red"], sign=sign, chunks=64)
    cube.compute()
    assert len(state.requests) > 6
    assert len(sign.calls) == 3, "once for each file"


def test_old_signatures_are_made_anew(monkeypatch):
    sign, now = Signer(), [1000.0]
    monkeypatch.setattr(signing.time, "monotonic", lambda: now[0])
    for _ in range(3):
        signing.signed(sign, "http://x/a.tif")
    now[0] += 300
    signing.signed(sign, "http://x/a.tif")
    assert len(sign.calls) == 2
    assert signing.signed(None, "http://x/a.tif") == "http://x/a.tif"


def test_a_refusal_that_stays_is_told_once_and_without_the_signature(tmp_path, server, caplog):
    url, _, handler = server
    items = served(tmp_path, url)
    with pytest.raises(SceneError, match=r"s0\.tif: access is denied \(status 403\)") as error:
        s2c.open_cube(items[:1], bands=["red"], sign=lambda href: f"{href}?sig=wrong")
    assert "wrong" not in str(error.value)
    assert handler.refused == 2, "once more with a new signature, then no more"
    with pytest.raises(SceneError, match=r"status 403\); check .* your rights \(a URL that must be signed.*sign=\)"):
        s2c.open_cube(items[:1], bands=["red"])
    cube = s2c.open_cube(items, bands=["red"], sign=Signer(), on_error="skip")
    VALID["token"] = "of somebody else"
    with caplog.at_level(logging.DEBUG), pytest.raises((ReadError, SceneError)) as refused:
        s2c.open_cube(
            items, bands=["red"], sign=lambda href: f"{href}?sig=none", engine="gdal", headers="lazy"
        ).compute()
    assert "none" not in str(refused.value)
    assert cube.sizes["time"] == 3
    assert "sig=" not in caplog.text


def test_a_sign_that_fails_is_named(tmp_path, server):
    url, _, _ = server
    items = served(tmp_path, url, scenes=1)

    def broken(href):
        raise RuntimeError(f"no token for {href}?key=secret")

    with pytest.raises(
        (ReadError, SceneError), match=r"s0\.tif: it could not be signed: RuntimeError: no token"
    ) as error:
        s2c.open_cube(items, bands=["red"], sign=broken)
    assert "secret" not in str(error.value)
    with pytest.raises((ReadError, SceneError), match="it returns NoneType, not text"):
        s2c.open_cube(items, bands=["red"], sign=lambda href: None)
    with pytest.raises(ParameterError, match=r"sign is '\.\.tools\.sign', which cannot be imported: .*relative import"):
        s2c.open_cube(items, bands=["red"], sign="..tools.sign")
    with pytest.raises(ParameterError, match=r"sign is 'yes'; it is a function"):
        s2c.open_cube(items, bands=["red"], sign="yes")


def test_the_sign_of_the_planetary_computer():
    planetary_computer = pytest.importorskip("planetary_computer")
    from planetary_computer import sas

    item = recorded("planetary_computer")
    key = f"{sas.Settings.get().sas_url}/sentinel2l2a01/sentinel2-l2"
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    sas.TOKEN_CACHE[key] = sas.SASToken(**{"msft:expiry": later, "token": "sig=first"})  # what its server answers
    try:
        href = item["assets"]["B04"]["href"]
        sign = pickle.loads(pickle.dumps(planetary_computer.sign))
        assert signing.signed(sign, href) == f"{href}?sig=first"
        assert signing.signed(sign, "https://other.org/a.tif") == "https://other.org/a.tif"
    finally:
        del sas.TOKEN_CACHE[key]


def test_local_files_are_not_signed(tmp_path):
    path = write_tif(tmp_path / "a.tif", np.full((80, 80), 7, np.uint16))
    sign = Signer()
    for options in ({}, {"engine": "gdal"}):
        item = item_of("S2A_31TCJ_20230601", "2023-06-01T10:46:29Z", {"red": path})
        assert int(s2c.open_cube(item, bands=["red"], sign=sign, **options).max()) == 7
    assert not sign.calls


def test_gdal_reads_with_a_new_signature(tmp_path):
    """In a process of its own: GDAL holds Python still while it opens a file, and with it a server in this one."""
    (tmp_path / "token").write_text("first")
    with subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{TESTS}"},
    ) as process:
        try:
            url = process.stdout.readline().strip()
            items = served(tmp_path, url)

            def sign(href):
                return f"{href}?sig={(tmp_path / 'token').read_text()}"

            cube = s2c.open_cube(items, bands=["red"], sign=sign, engine="gdal")
            (tmp_path / "token").write_text("second")
            assert cube.compute(scheduler="sync").values[:, 0, 0, 0].tolist() == [10, 20, 30]
            refused = s2c.open_cube(items, bands=["red"], sign=sign, engine="gdal")
            (tmp_path / "token").write_text("third")
            wrong = s2c.open_cube(items, bands=["red"], sign=lambda href: f"{href}?sig=third", engine="gdal")
            (tmp_path / "token").write_text("fourth")
            with pytest.raises(ReadError) as error:
                wrong.compute(scheduler="sync")
            assert "third" not in str(error.value)
            assert refused.sizes["time"] == 3
        finally:
            process.terminate()


def test_a_process_signs_for_itself(tmp_path, server):
    url, _, handler = server
    cube = s2c.open_cube(served(tmp_path, url), bands=["red"], sign=Signer(), chunks=200)
    with dask.config.set(scheduler="processes", num_workers=1):
        pixels = cube.compute().values
    assert pixels[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert handler.refused == 0


if __name__ == "__main__":
    with Listener(("127.0.0.1", 0), type("BoundHandler", (Guarded,), {"state": State(Path(sys.argv[1]))})) as alone:
        sys.stdout.write(f"http://127.0.0.1:{alone.server_port}\n")
        sys.stdout.flush()
        alone.serve_forever()
