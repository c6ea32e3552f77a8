"""No request causes an error of the service: each is accepted or rejected with a 4xx status."""

import asyncio
import base64
import copy
import json
import random
import uuid
from urllib.parse import quote

import pytest
import yaml

from s2composite.service.app import create_app
from s2composite.service.settings import load_settings
from s2composite.service.windows import WindowPool

TOKEN = "0123456789abcdef"
BEARER = b"Bearer " + TOKEN.encode()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    for name in ("in", "out", "store"):
        (root / name).mkdir()
    return root


@pytest.fixture
def app(places, tmp_path, monkeypatch):
    """Everything except computing windows and running jobs."""

    async def made(_, request):
        assert request.destination

    monkeypatch.setattr(WindowPool, "make", made)
    settings = {"read": [f"{places}/in", "gs://bucket/"], "write": [f"{places}/out"], "storage": f"{places}/store"}
    limits = {"jobs": 10**6}
    made_app = create_app(load_settings({**settings, "state": str(tmp_path / "state"), "limits": limits}), TOKEN)
    yield made_app
    made_app.state.backend.store.close()  # as at the end of a service's run, which there is none of here


def scope_of(method, path, query, headers):
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http",
        "method": method, "path": path, "raw_path": quote(path).encode(), "query_string": query, "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip


async def asked(app, method="GET", path="/", query=b"", body=b"", *, auth=BEARER, media=b"application/json", **headers):
    """Return status and body of the answer to a request; None leaves a header out."""
    told = {b"host": b"127.0.0.1", b"authorization": auth, b"content-type": media, b"content-length": b"%d" % len(body)}
    told |= {name.replace("_", "-").encode(): value for name, value in headers.items()}
    parts, sent = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive():
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    present = [(name, value) for name, value in told.items() if value is not None]
    await app(scope_of(method, path, query, present), receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def ask(app, *request, **options):
    return asyncio.run(asked(app, *request, **options))


# --- one thing at a time ---------------------------------------------------------------------------------------------

BASIC = [b":" + TOKEN.encode(), b"\xff\xfe", "me:²".encode(), b":\xf0", b"\0" * 9, b"", b"no colon"]


@pytest.mark.parametrize(
    "auth",
    [
        *(b"Basic " + base64.b64encode(shown) for shown in BASIC[1:]),
        b"Basic \xff\xfe\xfd", b"Basic \xb2\xb3\xb9", b"Basic ====", b"Basic a", b"Basic " + b"A" * 100_001, b"Basic",
        b"Bearer \xff\xfe", b"Bearer " + b"\xc2\xb2" * 9, b"Bearer", b"bearer a.b.c", b"\xff", b"", b"Digest x", None,
        b"Bearer \xed\xa0\x80", b"Basic " + base64.urlsafe_b64encode(b":\xff\xef>>??"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_credentials_with_invalid_bytes_are_rejected(app, auth, method):
    assert ask(app, method, "/jobs", auth=auth)[0] == 401


def test_password_is_accepted_for_reading(app):
    assert ask(app, auth=b"Basic " + base64.b64encode(BASIC[0]))[0] == 200


NUMBERS = [str(2**63), str(2**63 - 1), str(-(2**63)), str(2**64), "9" * 5000, "-" + "9" * 5000, "nan", "inf", "1e400"]
NUMBERS += ["0.5", "²", "٣", "\uff11", "1_0", "0x10", " 1", "+1", "", "\0", "true", "null", "[]", "-1", "9" * 18]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["/jobs?limit=", "/jobs?offset=", "/dead-letters?limit=", "/jobs?limit=5&offset="])
def test_numbers_too_large_for_a_database_are_rejected(app, name, number):
    path, _, query = name.partition("?")
    status, body = ask(app, "GET", path, f"{query}{quote(number)}".encode())
    assert status in (200, 422), body
    json.loads(body)


@pytest.mark.parametrize("length", ["²", "9" * 5000, "-1", "1e3", "", " ", "nan", "\xff"])
@pytest.mark.parametrize("path", ["/median", "/jobs"])
def test_invalid_content_lengths_are_rejected(app, path, length):
    assert 400 <= ask(app, "POST", path, body=b"{}", content_length=length.encode("latin-1"))[0] < 500


NAMES = [
    "\0",
    "a\0b",
    "\ufffd",
    "\U0010ffff",
    "..",
    "%2e%2e",
    "a" * 10_000,
    "'; drop table jobs; --",
    "\r\nX: y",
    "\x1b[0m",
]


@pytest.mark.parametrize("number", NAMES)
@pytest.mark.parametrize("rest", ["", "/log", "/report", "/quicklook.png", "/retry"])
def test_jobs_of_odd_names_do_not_exist(app, number, rest):
    for method in ("GET", "POST", "DELETE"):
        assert ask(app, method, f"/jobs/{number}{rest}")[0] in (404, 405, 415, 422)


# --- anything --------------------------------------------------------------------------------------------------------

MEDIAN = {"window": [0, 0, 8, 8], "destination": "{places}/out/a.tif", "datasets": ["{places}/in/a.tif"]}
PUSHED = {"message": {"data": "", "messageId": "7", "attributes": {}}, "subscription": "projects/p/subscriptions/s"}
JOBS = [
    {"source": "{places}/in", "output": "a.tif", "datetime": "2023-06/2023-08", "bbox": [1.2, 43.4, 1.7, 43.8]},
    {"source": ["gs://bucket/a.tif"], "output": "a_{cell}.tif", "grid": {"type": "utm", "size": 20000},
     "bbox": [1.2, 43.4, 1.7, 43.8], "reducer": "luminance_median", "valid": ["nonzero", "unsaturated"]},
    {"source": "{places}/in", "output": "a_{period}.tif", "span": {"start": "2023-01", "end": "2023-06", "step": "month"}},
    {"source": "{places}/in", "output": "a.zarr", "crs": "EPSG:32631", "resolution": 20, "chunks": [512, 512],
     "period": "month", "policy": {"attempts": 2, "timeout": 5.5}, "raster": {"compress": "zstd"}, "layers": ["count"]},
]  # fmt: skip
"""What is taken, and then changed."""

VALUES = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    2**64,
    10**14,
    10**400,
    -(10**400),
    0.1,
    -0.0,
    1e308,
    5e-324,
    float("inf"),
    "",
]
VALUES += [
    float("nan"),
    float("-inf"),
    "\0",
    "\ud800",
    "\udfff\ud800",
    "²",
    "\uff19",
    "a" * 5000,
    "..",
    "/",
    "{cell}",
    "{{",
    "%s",
]
VALUES += [
    "2023-02-30",
    "9999-12",
    "0000-01-01",
    "2023-13/..",
    "10000-01-01",
    "../",
    "1/0",
    "-" * 40,
    "EPSG:9999999",
    "EPSG:0",
]
VALUES += [
    "gs://",
    "gs://bucket/\0",
    "https://[::1",
    "file:///etc/passwd",
    "/vsicurl/http://a",
    "s3://\udc80",
    "P1M",
    [],
    {},
]
VALUES += [
    [[]],
    {"": None},
    {"\0": 1},
    [None] * 50,
    [1e400] * 4,
    {"type": "utm"},
    [float("nan")] * 4,
    [180, 90, -180, -90],
]


def places_in(value, path=()):
    """Yield the path of every value in a document."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places_in(one, (*path, key))


def changed(rng, document):
    """Return a document with one to three of its values replaced, removed or moved."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        paths = [path for path in places_in(document) if path]
        if not paths:
            return document
        *outer, key = rng.choice(paths)
        level = document
        for step in outer:
            level = level[step]
        kind = rng.randrange(6)
        if kind == 0:
            del level[key]
        elif kind == 1 and isinstance(level, dict):
            level[rng.choice(["", "\0", "\ud800", "a" * 300, "cluster", "overwrite", key, "0", "~/"])] = rng.choice(
                VALUES
            )
        elif kind == 2:
            level[key] = [level[key]]
        else:
            level[key] = copy.deepcopy(rng.choice(VALUES))
    return document


def nested(rng):
    depth = rng.choice([10, 100, 1000, 50_000])
    return rng.choice([b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth])


def mangled(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:
            data[at : at + rng.randint(0, 9)] = rng.choice(
                [b"\0", b"\xff", b"\xed\xa0\x80", b"1" * 5000, b"NaN", b"-", b'"']
            )
        else:
            data = data[:at] if rng.random() < 0.2 else data[:at] + data[max(at - 9, 0) :]
    return bytes(data)


YAMLS = [
    "source: .inf",
    "source: !!python/object/apply:os.system [ls]",
    "source: !!binary '////'",
    "? [a]\n: b",
    "a: &x [*x]",
]
YAMLS += [
    "source: 2023-99-99",
    "output: 2023-02-30",
    "bbox: [1:99:99, 2, 3, 4]",
    f"chunks: 0x{'f' * 5000}",
    "<<: 3",
    "- a",
    "~",
]
YAMLS += [
    'source: "\\ud800"',
    "source: !!timestamp 2023",
    "source: !!int x",
    "source: !!float y",
    "chunks: 0b2",
    "a: !!set {a}",
]
YAMLS += [
    f"chunks: {'9' * 5000}",
    "resolution: 1e999",
    'source: "\\0"',
    "!!map x: y",
    "%YAML 9.9\n---\na: b",
    "a: !!omap [b]",
]

TAGS = [
    "int",
    "float",
    "bool",
    "null",
    "timestamp",
    "binary",
    "set",
    "omap",
    "pairs",
    "seq",
    "map",
    "str",
    "merge",
    "value",
]
YAMLS += [
    f"source: !!{tag} {value}" for tag in TAGS for value in ("x", "''", "'²'", "[a]", "{a: b}", "[{a: b}, c]", "~")
]


def filled(document, places):
    return json.loads(json.dumps(document).replace("{places}", str(places)))


def a_window(rng, places):
    return "POST", "/median", b"", json.dumps(changed(rng, filled(MEDIAN, places))).encode(), {}


def a_pushed_window(rng, places):
    inner = json.dumps(changed(rng, filled(MEDIAN, places))).encode()
    document = copy.deepcopy(PUSHED)
    document["message"]["data"] = base64.b64encode(mangled(rng, inner) if rng.random() < 0.3 else inner).decode()
    document = changed(rng, document) if rng.random() < 0.5 else document
    return "POST", "/median", b"", json.dumps(document).encode(), {}


def a_job(rng, places):
    return "POST", "/jobs", b"", json.dumps(changed(rng, filled(rng.choice(JOBS), places))).encode(), {}


def a_job_in_yaml(rng, places):
    text = rng.choice(YAMLS) if rng.random() < 0.5 else yaml.safe_dump(changed(rng, filled(rng.choice(JOBS), places)))
    return "POST", "/jobs", b"", text.encode("utf-8", "surrogatepass"), {"media": b"application/yaml"}


def a_broken_body(rng, places):
    document = filled(rng.choice([MEDIAN, *JOBS]), places)
    body = nested(rng) if rng.random() < 0.3 else mangled(rng, json.dumps(document).encode())
    media = [b"application/json", b"application/yaml", b"text/\xff", b"", b";", b"application/json; charset=\xff"]
    return "POST", rng.choice(["/median", "/jobs"]), b"", body[: 1 << 15], {"media": rng.choice(media)}


def a_look(rng, _):
    name = rng.choice(["limit", "offset", "follow", "product", "\0", "limit%00", ""])
    value = rng.choice([*NUMBERS, *map(str, VALUES)]).encode("utf-8", "surrogatepass")
    query = f"{name}={quote(value)}".encode() if rng.random() < 0.8 else bytes(rng.randrange(256) for _ in range(20))
    number = rng.choice(["{job}", "{job}", str(uuid.uuid4()), *NAMES])
    of_job = [f"/jobs/{number}{rest}" for rest in ("", "/log", "/report", "/quicklook.png", "/retry")]
    path = rng.choice(["/", "/health", "/jobs", "/jobs/", "/dead-letters", "/openapi.json", "/nothing", "//", *of_job])
    names = ("host", "origin", "accept", "cookie")
    odd = {name: bytes(rng.randrange(256) for _ in range(rng.randint(0, 12))) for name in names}
    headers = {name: value for name, value in odd.items() if rng.random() < 0.2}
    method = rng.choice(["GET", "GET", "GET", "HEAD", "DELETE", "POST", "PUT", "OPTIONS", "TRACE", "\xff"])
    return method, path, query, b"", headers


REQUESTS = [a_window, a_pushed_window, a_job, a_job_in_yaml, a_broken_body, a_look, a_look]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_request_is_accepted_or_rejected(app, places, seed):
    rng, taken = random.Random(seed), set()

    async def all_of_them():
        known = "none"
        for _ in range(700):
            method, path, query, body, headers = rng.choice(REQUESTS)(rng, places)
            path = path.replace("{job}", known)
            told = (method, path, query[:300], body[:600], headers)
            async with asyncio.timeout(60):
                try:
                    status, answer = await asked(app, method, path, query, body, **headers)
                except Exception as error:
                    raise AssertionError(told) from error
            if status == 202 and path == "/jobs":
                known = json.loads(answer)["id"]
            taken.add(status)
            assert status < 500 or (status, path) == (503, "/health"), (told, answer[:600])
            if body and status >= 400:
                json.loads(answer)

    asyncio.run(all_of_them())
    assert {200, 202, 204, 400, 404, 415, 422} <= taken
