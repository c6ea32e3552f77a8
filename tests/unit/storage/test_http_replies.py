"""What servers may answer to a request for a byte range: a reply or an error of ours, and an end to it, always."""

import pickle
import random
import threading
from contextlib import contextmanager

import numpy as np
import pytest

import s2composite as s2c
from s2composite.errors import AccessError, ReadError, S2CompositeError, SceneError
from s2composite.geotiff.header import read_header
from s2composite.storage import http as fetch
from s2composite.storage.http import ByteRange, Fetching, Identity, Reply, read_head, remote_object, request
from s2composite.storage.retry import Retry
from s2composite.storage.urls import is_link_local
from support.http_faults import fault_server, raw_server
from support.rasters import write_tif

ENDS = 60
"""Seconds after which a read that has not ended hangs; none of those here takes more than a few."""
ONCE = Retry(attempts=1, timeout=30)
BODY = bytes(range(200))
GOOD = {"Content-Range": "bytes 0-199/200", "Content-Length": "200", "ETag": '"a"'}


def reply(status="206 Partial Content", body=BODY, version="HTTP/1.1", **headers):
    """Return the bytes of a reply; header names have underscores, None leaves one out."""
    told = GOOD | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in told.items() if value is not None]
    return "\r\n".join([f"{version} {status}", *lines, "", ""]).encode("utf-8", "surrogateescape") + body


def ask(url, retry=ONCE, size=200, identity=None):
    return request(remote_object(url), 0, size, identity, retry).result(ENDS)


@contextmanager
def answering(*parts):
    with raw_server(lambda _: iter(parts)) as url:
        yield f"{url}/a.tif?signature=secret"


@pytest.mark.parametrize(
    "headers",
    [
        {"Last_Modified": "yesterday"},
        {"Last_Modified": "Mon, 99 Foo 2023 99:99:99 GMT"},
        {"Last_Modified": "Mon, 01 Jan 999999 00:00:00 GMT"},
        {"Last_Modified": "Mon, 01 Jan 2023 00:00:00 +9999999999"},
        {"Last_Modified": ""},
        {"Last_Modified": "²"},
        {"Last_Modified": "Mon, 01 Jan 2023 00:00:00"},
        {"ETag": "\udcff\udcfe"},
        {"ETag": "W/" + "x" * 8000},
        {"Content_Encoding": "gzip"},
        {"Content_Encoding": "no-such"},
        {"Content_Range": " bytes 0-199/200 "},
        {"Content_Range": "bytes 0-65535/200"},
        {"Content_Range": None, "status": "200 OK"},
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense_says_nothing(headers):
    with answering(reply(**headers)) as url:
        got = ask(url)
    assert got.data == BODY
    assert got.identity.size == 200


CHUNKED = {"Content_Length": None, "Transfer_Encoding": "chunked"}


@pytest.mark.parametrize(
    "parts",
    [
        (reply(Content_Range="bytes 0-199/" + "9" * 5000),),
        (reply(Content_Range="bytes 0-199/*"),),
        (reply(Content_Range="bytes \u0660-\u0661\u0669\u0669/\u0662\u0660\u0660"),),
        (reply(Content_Range="bytes 7-206/300"),),
        (reply(Content_Range="bytes -1-199/200"),),
        (reply(Content_Range="bytes 0-199/100"),),
        (reply(Content_Range="bytes 0-199/0"),),
        (reply(Content_Range="items 0-199/200"),),
        (reply(Content_Range=None),),
        (reply(Content_Type="multipart/byteranges; boundary=x", Content_Range=None),),
        (reply("503 Busy", Retry_After="²"),),
        (reply("503 Busy", Retry_After="9" * 5000),),
        (reply("429 Busy", Retry_After="-1"),),
        (reply("503 \udcff\udcfe"),),
        (reply("999 Odd"),),
        (reply("99999999999999999999 Odd"),),
        (reply("² Odd"),),
        (reply("200 OK", Content_Range=None, Content_Length="100000", body=BODY * 500),),
        (reply(Content_Length="100"),),
        (reply(Content_Length="300"),),
        (reply(Content_Length="9" * 5000),),
        (reply(Content_Length="-1"),),
        (reply(Content_Length="1e2"),),
        (reply(Content_Length="²"),),
        (reply(body=b"zz\r\n", **CHUNKED),),
        (reply(body=b"-1\r\n" + BODY, **CHUNKED),),
        (reply(body=b"f" * 5000 + b"\r\n" + BODY, **CHUNKED),),
        (reply(body=b"c8\r\n" + BODY[:100], **CHUNKED),),
        (reply(body=b"c8\r\n" + BODY + b"x\r\n0\r\n\r\n", **CHUNKED),),
        (reply(version="HTTP/9.9"),),
        (reply(version="HTTQ/1.1"),),
        (reply(**{"X\udcff": "a"}),),
        (reply(**{"X Y": "a"}),),
        (reply(**{f"X{i}": "a" for i in range(5000)}),),
        (reply(X="y" * 10**6),),
        (reply(**{f"X{i}": "y" * 4000 for i in range(100)}) + BODY,),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,),
        (b"",),
        (b"\0" * 1000,),
        (b"II*\0" * 1000,),
        (reply("301 Moved", Location="http://"),),
        (reply("301 Moved", Location="http://[::1"),),
        (reply("301 Moved", Location="http://a:99999999/"),),
        (reply("301 Moved", Location="http://\udcff/"),),
        (reply("301 Moved", Location="file:///etc/passwd"),),
        (reply("301 Moved", Location="gopher://x/"),),
        (reply("301 Moved", Location="/again"),),
        (reply("301 Moved"),),
        (reply("304 Not Modified"),),
        (reply("416 No", Content_Range="bytes */" + "9" * 5000),),
        (reply("204 Nothing"),),
    ],
    ids=lambda parts: str(parts[0][:60]),
)
def test_an_answer_that_makes_no_sense_is_an_error_of_ours(parts):
    with answering(*parts) as url:
        with pytest.raises(ReadError, match=r"a\.tif") as caught:
            ask(url)
        ((_, fetched),) = Fetching([ByteRange(url, Identity(200), 0, 200)], ONCE)
    assert isinstance(fetched.error, ReadError)
    for error in (caught.value, fetched.error):
        assert "secret" not in str(error)
        assert len(str(error)) < 600
        str(error).encode("utf-8")
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert error.__cause__ is None


def dripping(*first, byte=b"x"):
    """Return a server's answer that goes on byte by byte until the client has given up."""
    stopped = threading.Event()

    def answer(_):
        yield from first
        while not stopped.wait(0.02):
            yield byte

    return answer, stopped


@pytest.mark.parametrize(
    "first",
    [
        (b"HTTP/1.1 206 ",),
        (b"HTTP/1.1 206 Partial Content\r\nX: ",),
        (reply(Content_Length="2000", Content_Range="bytes 0-1999/2000", body=b""),),
        (reply(Content_Range="bytes 0-1999/2000", body=b"1;", **CHUNKED),),
    ],
    ids=["reason", "header", "body", "chunk"],
)
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(first):
    """Each byte comes long before the time is over in which one must come."""
    answer, stopped = dripping(*first)
    try:
        with raw_server(answer) as url, pytest.raises(ReadError, match=r"a\.tif: no answer for 0\.5 s") as caught:
            ask(f"{url}/a.tif", Retry(attempts=1, timeout=0.5, least_rate=2000), size=2000)
    finally:
        stopped.set()
    assert caught.value.transient


def test_interim_answers_without_end_are_given_up():
    answer, stopped = dripping(byte=b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        with raw_server(answer) as url, pytest.raises(ReadError, match="no answer"):
            ask(f"{url}/a.tif", Retry(attempts=1, timeout=0.5))
    finally:
        stopped.set()


def test_how_long_is_waited_is_what_gdal_is_told(monkeypatch):
    assert (Retry().timeout, Retry().least_rate) == (30, 1024)
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "7")
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_LIMIT", "0")
    assert (Retry().timeout, Retry().least_rate) == (7, 0)
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "soon")
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_LIMIT", "nan")
    assert (Retry().timeout, Retry().least_rate) == (30, 1024)


def test_what_waits_for_a_connection_is_not_slow(tmp_path):
    """More ranges than connections, of a server that answers none until the first ones have waited for long."""
    write_tif(tmp_path / "a.tif", np.ones((64, 64), np.uint8))
    with fault_server(tmp_path, latency=0.02) as server:
        header = read_header(server.url("a.tif"))
        ranges = [ByteRange(header.href, header.identity, 0, 10)] * 400
        fetched = dict(Fetching(ranges, Retry(attempts=1, timeout=20)))
    assert len(fetched) == 400
    assert not any(one.error for one in fetched.values())


# --- Redirects -------------------------------------------------------------------------------------------------------

LINK_LOCAL = ["169.254.169.254", "169.254.0.1", "[fe80::1]", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]"]
LINK_LOCAL += [
    "[64:ff9b::169.254.169.254]",
    "[2002:a9fe:a9fe::]",
    "[fd00:ec2::254]",
    "100.100.100.200",
    "168.63.129.16",
]


@pytest.mark.parametrize("host", LINK_LOCAL)
@pytest.mark.parametrize("location", ["http://{}/latest/meta-data/", "//{}:80/x", "https://user@{}/"])
def test_a_redirect_to_a_link_local_address_is_not_followed(host, location):
    with answering(reply("302 Found", Location=location.format(host), Content_Length="0", body=b"")) as url:
        with pytest.raises(AccessError, match=r"a\.tif.*link-local"):
            ask(url)
        with pytest.raises(AccessError, match="link-local"):
            read_header(url)
        ((_, fetched),) = Fetching([ByteRange(url, Identity(200), 0, 200)], ONCE)
        assert "link-local" in str(fetched.error)
        assert not fetched.error.transient


def test_a_redirect_elsewhere_is_followed(tmp_path):
    write_tif(tmp_path / "a.tif", np.ones((64, 64), np.uint8))
    with fault_server(tmp_path) as server:
        moved = reply("302 Found", Location=server.url("a.tif"), Content_Length="0", body=b"")
        with answering(moved) as url:
            assert read_header(url).identity.size == (tmp_path / "a.tif").stat().st_size


def test_a_name_with_a_link_local_address_is_not_followed(monkeypatch):
    """As a metadata server's own name has; aiohttp caches what a name leads to, so no way to it is open."""
    from aiohttp import resolver

    async def resolve(self, host, port=0, family=0):
        return [{"hostname": host, "host": "169.254.169.254", "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr(resolver.DefaultResolver, "resolve", resolve)
    moved = reply("302 Found", Location="http://metadata.test/", Content_Length="0", body=b"")
    with answering(moved) as url, pytest.raises(AccessError, match="link-local"):
        ask(url)


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "127.0.0.1", "10.0.0.1", "2a00:1450::1", "169.253.0.1", "fec0::1", "host", ""]
)
def test_what_is_not_link_local(text):
    assert not is_link_local(text)


# --- Anything --------------------------------------------------------------------------------------------------------

PIECES = [
    b"\r\n",
    b"\r",
    b"\n",
    b": ",
    b"\0",
    b"\xff\xfe",
    b"HTTP/1.1 ",
    b"206",
    b"bytes ",
    b"/",
    b"-",
    b"9" * 40,
    b"9" * 5000,
]
PIECES += [
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 7\r\n",
    b"Location: http://169.254.169.254/\r\n",
    b"0\r\n\r\n",
]
PIECES += [
    "²".encode(),
    "٣".encode(),
    b"Content-Encoding: gzip\r\n",
    b"Connection: close\r\n",
    b"-1",
    b"*",
    b"Retry-After: ",
]


def mutated(rng, data):
    """Return bytes with some of them changed, cut out, doubled, or replaced by what parsers dislike."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        end = len(data) if rng.random() < 0.3 else min(len(data), 260)  # mostly in the headers
        at = rng.randrange(max(end, 1))
        kind = rng.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 30)]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randint(1, 60)]
        elif kind == 3:
            data[at:at] = rng.choice(PIECES)
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.slow
def test_whatever_a_server_answers_a_read_ends_with_a_reply_or_an_error_of_ours(tmp_path):
    rng, path = random.Random(14), tmp_path / "a.tif"
    content = write_tif(path, np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)) and path.read_bytes()
    size = len(content)
    told = {"Content_Range": f"bytes 0-{size - 1}/{size}", "Content_Length": str(size), "body": content}
    told["Last_Modified"] = "Mon, 02 Jan 2023 10:00:00 GMT"
    bases = [reply(**told), reply("503 Busy", Retry_After="0"), reply("302 Found", Location="/b.tif", **told)]
    bases += [
        reply(**told | {"Content_Length": None, "Transfer_Encoding": "chunked", "body": b"%x\r\n" % size + content})
    ]
    bases += [reply("200 OK", **told | {"Content_Range": None}), reply("416 No", Content_Range="bytes */0")]
    bases += [reply("307 Moved", Location="http://169.254.169.254/")]
    sent = []

    def answer(_):
        sent.append(mutated(rng, rng.choice(bases)))
        yield sent[-1]

    retry, outcomes = Retry(attempts=2, first_wait=0.0, longest_wait=0.0, timeout=5), set()
    with raw_server(answer) as url:
        for number in range(1500):
            try:
                got = ask(f"{url}/{number}.tif", retry, size)
                assert len(got.data) == min(size, got.identity.size)
                outcomes.add(type(got))
            except S2CompositeError as error:
                outcomes.add(type(error))
            except BaseException:
                print(f"answers of {number}:", *sent[-3:], sep="\n")  # noqa: T201 - what to look at
                raise
    assert outcomes == {Reply, ReadError, AccessError}


@pytest.mark.slow
def test_whatever_a_server_answers_a_header_is_read_or_refused(tmp_path, monkeypatch):
    quick = Retry(attempts=2, first_wait=0.0, longest_wait=0.0, timeout=5)
    monkeypatch.setattr(fetch, "Retry", lambda: quick)
    rng, path = random.Random(15), tmp_path / "T31TCJ_20230102T104441_TCI.tif"
    content = write_tif(path, np.ones((64, 64), np.uint8)) and path.read_bytes()
    size, known = len(content), {"Content_Length": str(len(content)), "body": content}
    base = reply(Content_Range=f"bytes 0-{size - 1}/{size}", **known)
    with raw_server(lambda _: iter([mutated(rng, base)])) as url:
        for number in range(150):
            try:
                assert s2c.open_cube(f"{url}/{number}/{path.name}").shape[-2:] == (64, 64)
            except S2CompositeError:
                continue
            except BaseException:
                print("number", number)  # noqa: T201 - what to look at
                raise


def test_a_head_that_is_refused_names_the_file():
    with answering(reply(Content_Range="bytes 0-199/" + "9" * 5000)) as url:
        with pytest.raises(ReadError, match=r"a\.tif"):
            read_head(url, ONCE)
        with pytest.raises(SceneError, match=r"a\.tif"):
            read_header(url)
