"""Job files: valid content, and errors that name the file, line, key and remedy."""

import inspect
import re
import string
from pathlib import Path

import pytest
import rasterio
import yaml
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st

import s2composite as s2c
from s2composite.clusters.backends import AddressOptions, LocalOptions
from s2composite.clusters.connect import read_cluster
from s2composite.config import parse_text
from s2composite.cube.open import stack_of
from s2composite.cube.windows import work_in
from s2composite.errors import JobError
from s2composite.jobs.schema import Job, job_schema, job_template, load_job
from s2composite.runner.inputs import job_composite, job_scenes
from s2composite.service.jobs import ALLOWED_KEYS
from support import ROOT
from support.rasters import ORIGIN, encoded, write_tif

GOOD = "source: scenes\noutput: median.tif\n"

# (text of the job file, line that is wrong, key that is wrong, what the message must say)
MISTAKES = [
    ("", 1, None, ["is empty"]),
    ("# only a comment\n", 1, None, ["is empty"]),
    ("~\n", 1, None, ["is empty"]),
    ("just some words\n", 1, None, ["'key: value' lines", "'just some words'"]),
    ("- source\n- output\n", 1, None, ["'key: value' lines"]),
    ("source: [a, b\noutput: x.tif\n", 2, None, ["not valid YAML", "column"]),
    ("source: a\n\toutput: x.tif\n", 2, None, ["not valid YAML", "\\t"]),
    ("source: a\noutput: 'x.tif\n", 3, None, ["not valid YAML", "quoted"]),
    ("source: a\n---\noutput: x.tif\n", 2, None, ["not valid YAML"]),
    ("source: *nowhere\n", 1, None, ["undefined alias"]),
    ("source: !!int abc\n", 1, None, ["not valid YAML", "abc"]),
    ("source: !!python/object:os.system x\n", 1, None, ["not valid YAML"]),
    ("a: &a [*a]\n", None, None, ["refers to itself"]),
    ("source: a\noutput: x.tif\nsource: b\n", 3, "source", ["given twice", "line 1"]),
    ("cluster:\n  workers: 1\n  threads: 1\n  workers: 2\n", 4, "cluster.workers", ["given twice", "line 2"]),
    ("? [a, b]\n: c\n", 1, None, ["a key must be a word"]),
    ("source: a\n", 1, "output", ["missing", ".tif or .zarr"]),
    ("# a comment\n\noutput: x.tif\n", 3, "source", ["missing", "a path, directory, pattern or URL"]),
    ("output:\nsource: a\n", 1, "output", ["no value", ".tif or .zarr"]),
    ("source: a\noutput: median.png\n", 2, "output", [".tif or .zarr", "'median.png'"]),
    ("source: a\noutput: .tif\n", 2, "output", [".tif or .zarr"]),
    ("source: a\noutput: 7\n", 2, "output", [".tif or .zarr", "got 7"]),
    ("source: ''\noutput: a.tif\n", 1, "source", ["empty"]),
    ("source: []\noutput: a.tif\n", 1, "source", ["empty list"]),
    ("source:\n- a.tif\n- 5\noutput: a.tif\n", 1, "source", ["a list of those", "['a.tif', 5]"]),
    ("source: {a: b}\noutput: a.tif\n", 1, "source", ["a path, directory"]),
    ("sorce: a\noutput: a.tif\n", 1, "sorce", ["unknown key 'sorce'", "did you mean 'source'?", "also wrong: source"]),
    (GOOD + "reducr: mean\n", 3, "reducr", ["unknown key 'reducr'", "did you mean 'reducer'?"]),
    (GOOD + "xyzzy: 1\n", 3, "xyzzy", ["unknown key 'xyzzy'", "valid keys: source, output"]),
    (GOOD + "5: 1\n", 3, "5", ["unknown key '5'"]),
    (GOOD + "policy: {retry: 3}\n", 3, "policy.retry", ["valid keys: attempts, pause"]),
    (GOOD + "grid: {type: utm, sise: 3}\n", 3, "grid.sise", ["did you mean 'size'?", "also wrong: grid.size"]),
    (GOOD + "area: a.geojson\n", 3, "area", ["area: area and {cell} in the output need a grid"]),
    (GOOD + "grid: mgrs\n", 3, "grid", ["grid: a grid makes a product for each cell"]),
    (GOOD + "reducer:\n", 3, "reducer", ["no value", "name of a reducer"]),
    (GOOD + "reducer: {a: {}, b: {}}\n", 3, "reducer", ["one reducer, got 2 (a, b)"]),
    (GOOD + "reducer: {rank: 1}\n", 3, "reducer", ["{name: {parameter: value}}"]),
    (GOOD + "reducer: 3\n", 3, "reducer", ["name of a reducer", "got 3"]),
    (GOOD + "reducer: luminance_medain\n", 3, "reducer", ["unknown reducer 'luminance_medain'", "luminance_median"]),
    (GOOD + "reducer:\n  rank: {quantle: 1}\n", 3, "reducer", ["no parameter 'quantle'", "quantile"]),
    (GOOD + "reducer:\n  rank: {quantile: 2}\n", 3, "reducer", ["quantile"]),
    (GOOD + "reducer:\n  rank: {key: 5}\n", 3, "reducer", ["reducer: "]),
    (GOOD + "pattern: '(?P<year>'\n", 3, "pattern", ["not a regular expression"]),
    (GOOD + "datetime: last summer\n", 3, "datetime", ["last summer", "2023-06"]),
    (GOOD + "chunks: large\n", 3, "chunks", ["'auto', a number of pixels, or [y, x]", "'large'"]),
    (GOOD + "chunks: 0\n", 3, "chunks", ["'auto'", "got 0"]),
    (GOOD + "chunks: true\n", 3, "chunks", ["'auto'", "got True"]),
    (GOOD + "chunks: 10.5\n", 3, "chunks", ["'auto'", "got 10.5"]),
    (GOOD + "chunks: [1, 2, 3]\n", 3, "chunks", ["[y, x]"]),
    (GOOD + "chunks: [512, big]\n", 3, "chunks", ["[y, x]"]),
    (GOOD + "bbox: [1, 2, 3]\n", 3, "bbox", ["four numbers", "[1, 2, 3]"]),
    (GOOD + "bbox:\n- 1\n- 43\n- two\n- 44\n", 6, "bbox.2", ["four numbers", "'two'"]),
    (GOOD + "bbox: [2, 43, 1, 44]\n", 3, "bbox", ["west < east"]),
    (GOOD + "bbox: [1, 43, .nan, 44]\n", 3, "bbox.2", ["four numbers", "nan"]),
    (GOOD + "datetime: [2023]\n", 3, "datetime", ["2023-06-01/2023-08-31"]),
    (GOOD + "datetime: true\n", 3, "datetime", ["2023-06-01/2023-08-31", "True"]),
    (GOOD + "bands: {red: 1}\n", 3, "bands", ["a list of names"]),
    (GOOD + "bands: []\n", 3, "bands", ["a list of names"]),
    (GOOD + "bands: [red, 0]\n", 3, "bands.1", ["a list of names", "got 0"]),
    (GOOD + "bands: [red, 2.5]\n", 3, "bands.1", ["a list of names", "got 2.5"]),
    (GOOD + "bands: true\n", 3, "bands", ["a list of names"]),
    (GOOD + "groupby: day\n", 3, "groupby", ["solar_day or utc_day", "'day'"]),
    (GOOD + "duplicates: oldest\n", 3, "duplicates", ["newest or keep"]),
    (GOOD + "harmonise: 'no'\n", 3, "harmonise", ["true, false, or a mapping"]),
    (GOOD + "harmonise: {S2A: many}\n", 3, "harmonise", ["numbers to add"]),
    (GOOD + "reflectance: 1\n", 3, "reflectance", ["true or false"]),
    (GOOD + "times: 2023\n", 3, "times", ["a list of dates"]),
    (GOOD + "times: [2023-13-01]\n", 3, "times.0", ["2023-13-01"]),
    (GOOD + "headers: never\n", 3, "headers", ["auto, read or lazy"]),
    (GOOD + "anchor: middle\n", 3, "anchor", ["edge, center, floating"]),
    (GOOD + "anchor: [0.5]\n", 3, "anchor", ["two fractions"]),
    (GOOD + "resampling: smooth\n", 3, "resampling", ["'smooth' is unknown", "bilinear"]),
    (GOOD + "resampling: {red: smooth}\n", 3, "resampling", ["'smooth' is unknown"]),
    (GOOD + "sign: planetary_computer\n", 3, "sign", ["the path of a function", "planetary_computer.sign"]),
    (GOOD + "sign: os.system('x')\n", 3, "sign", ["the path of a function"]),
    ("source: a\noutput: 'a{cell}.tif'\ngrid: mgrs\nlike: a.tif\n", None, None, ["a grid sets crs"]),
    (GOOD + "resolution: -10\n", 3, "resolution", ["above 0"]),
    (GOOD + "resolution: '20'\n", 3, "resolution", ["a number", "'20'"]),
    (GOOD + "engine: fast\n", 3, "engine", ["one of auto, tiles, gdal", "'fast'"]),
    (GOOD + "on_error: ignore\n", 3, "on_error", ["raise or skip"]),
    (GOOD + "overwrite: 'yes'\n", 3, "overwrite", ["true or false", "'yes'"]),
    ("source: a\noutput: a.zarr\nlayers: [count]\n", 3, "layers", ["a Zarr store holds all layers"]),
    (GOOD + "cluster: 5\n", 3, "cluster", ["'local'", "got 5"]),
    (GOOD + "cluster: locale\n", 3, "cluster", ["'local'", "'locale'"]),
    (
        GOOD + "cluster: {type: locl}\n",
        3,
        "cluster",
        ["unknown type 'locl'", "did you mean 'local'?", "local, address"],
    ),
    (GOOD + "cluster:\n  type: local\n  worker: 2\n", 5, "cluster.worker", ["did you mean 'workers'?"]),
    (GOOD + "cluster:\n  workers: two\n", 4, "cluster.workers", ["a whole number from 1", "'two'"]),
    (GOOD + "cluster:\n  workers:\n    0\n", 4, "cluster.workers", ["a whole number from 1", "got 0"]),
    (GOOD + "cluster:\n  memory: 4\n", 4, "cluster.memory", ["'4GB'", "got 4"]),
    (GOOD + "cluster:\n  memory: 4 sheep\n", 4, "cluster.memory", ["'4GB'", "4 sheep"]),
    (GOOD + "cluster:\n  memory: 4kB\n", 4, "cluster.memory", ["too little"]),
    (GOOD + "cluster:\n  dashboard: web\n", 4, "cluster.dashboard", ["':8787'"]),
    (GOOD + "cluster:\n  type: address\n", 3, "cluster.address", ["missing", "tcp://"]),
    (GOOD + "cluster:\n  address: 10.0.0.5\n", 4, "cluster.address", ["tcp://", "'10.0.0.5'"]),
    (
        GOOD + "cluster:\n  address: tcp://a:1\n  timeout: soon\n",
        5,
        "cluster.timeout",
        ["a number of seconds", "'soon'"],
    ),
    (
        GOOD + "cluster:\n  address: tcp://a:1\n  workers: 2\n",
        5,
        "cluster.workers",
        ["unknown key", "valid keys: type,"],
    ),
    ("base: &b {x: 1}\n" + GOOD, 1, "base", ["unknown key 'base'"]),
    (GOOD + "bands: [${S2C_UNSET}]\n", 3, "bands.0", ["'S2C_UNSET' is not set", "${S2C_UNSET:-default}"]),
    (GOOD + "\n\nchunks: a\nengine: b\n", 5, "chunks", ["also wrong: engine"]),
]


@pytest.mark.parametrize(("text", "line", "key", "says"), MISTAKES, ids=[repr(m[0])[:60] for m in MISTAKES])
def test_mistake_is_named(tmp_path, text, line, key, says):
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(JobError) as caught:
        load_job(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    for words in says:
        assert words in message
    if line is not None:
        assert f"{file}, line {line}" in message
        assert (caught.value.line, caught.value.key) == (line, key)


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(JobError, match=r"missing.yaml: there is no such job file"):
        load_job(tmp_path / "missing.yaml")
    with pytest.raises(JobError, match="cannot be read: Is a directory"):
        load_job(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"source: \xe9t\xe9\n")
    with pytest.raises(JobError, match="not a text file in UTF-8"):
        load_job(str(tmp_path / "latin.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"source: a\x00b\n")
    with pytest.raises(JobError, match="not valid YAML"):
        load_job(str(tmp_path / "binary.yaml"))


def test_path_text_and_mapping_are_one_model(tmp_path):
    file = tmp_path / "job.yaml"
    text = "source: [a, b]\noutput: x.zarr\nchunks: [512, 1024]\nbbox: [1, 43, 1.5, 44]\ncluster: {workers: 2}\n"
    file.write_text(text)
    mapping = {
        "source": ("a", "b"), "output": Path("x.zarr"), "chunks": (512, 1024), "bbox": [1, 43, 1.5, 44],
        "cluster": LocalOptions(workers=2),
    }  # fmt: skip
    jobs = [
        load_job(file),
        load_job(str(file)),
        load_job(text),
        load_job(yaml.safe_load(text)),
        load_job(mapping),
        Job(**mapping),
    ]
    assert all(job == jobs[0] for job in jobs)
    assert jobs[0].chunks == (512, 1024)
    assert jobs[0].bbox == (1.0, 43.0, 1.5, 44.0)
    assert load_job(jobs[0]) == jobs[0]


def test_errors_of_mappings_have_no_line_numbers():
    with pytest.raises(JobError, match=r"^job: unknown key 'cluster.worker'; did you mean 'workers'\?$") as caught:
        load_job({"source": "a", "output": "a.tif", "cluster": {"type": "local", "worker": 2}})
    assert caught.value.line is None


def test_job_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_job(GOOD).chunks = 5


@pytest.mark.parametrize(
    ("written", "meant"),
    [("2023", "2023"), ("2023-06", "2023-06"), ("2023-06-01", "2023-06-01"), ("2023-06-01/..", "2023-06-01/..")],
)
def test_dates_stay_as_they_are_written(written, meant):
    assert load_job(GOOD + f"datetime: {written}\n").datetime == meant


def test_environment(monkeypatch):
    monkeypatch.setenv("S2C_DATA", "/data: [x")
    monkeypatch.setenv("S2C_N", "3")
    text = """
source: ${S2C_DATA}/scenes
output: ${S2C_OUT:-out}/$${S2C_N}.tif
cluster: {workers: ${S2C_N}, memory: "${S2C_N}GB"}
bands: ["${S2C_N}"]
"""
    job = load_job(text)
    assert job.source == "/data: [x/scenes"  # never parsed as YAML
    assert job.output == "out/${S2C_N}.tif"
    assert job.cluster == LocalOptions(workers=3, memory="3GB")
    assert job.bands == ("3",)  # quoted: text


def test_a_wrong_value_from_the_environment_is_not_shown(monkeypatch):
    monkeypatch.setenv("S2C_SECRET", "hunter2")
    with pytest.raises(JobError) as caught:
        load_job(GOOD + "chunks: ${S2C_SECRET}\n")
    assert "hunter2" not in str(caught.value)
    assert "'${S2C_SECRET}'" in str(caught.value)


def test_home_directory_is_expanded():
    job = load_job("source: ~/scenes/\noutput: ~/median.tif\n")
    assert job.source == f"{Path.home()}/scenes/"
    assert job.output == f"{Path.home()}/median.tif"
    assert load_job("source: gs://bucket/~x/\noutput: a.tif\n").source == "gs://bucket/~x/"


def test_anchors_and_merges():
    text = "cluster: &two {workers: 2, threads: 3}\nsource: a\noutput: a.tif\n"
    assert load_job(text).cluster == LocalOptions(workers=2, threads=3)
    document = parse_text("base: &b {workers: 2, threads: 3}\nother:\n  <<: *b\n  workers: 9\n", "x")
    assert document.values["other"] == {"workers": 9, "threads": 3}
    assert document.place(("other", "workers")).line == 4


SETTINGS = [
    (["chunks=512"], {"chunks": 512}),
    (["chunks=[512, 256]"], {"chunks": (512, 256)}),
    (["cluster.workers=4", "cluster.memory=2GB"], {"cluster": LocalOptions(workers=4, memory="2GB")}),
    (["cluster={type: local, threads: 2}"], {"cluster": LocalOptions(threads=2)}),
    (["cluster=tcp://a:1"], {"cluster": AddressOptions(address="tcp://a:1")}),
    (["datetime=2023-06-01"], {"datetime": "2023-06-01"}),
    (["output=a=b.tif"], {"output": "a=b.tif"}),
    (["overwrite=true"], {"overwrite": True}),
    (["chunks=1", "chunks=2"], {"chunks": 2}),
    (["reducer.rank.quantile=0.25"], {"reducer": {"rank": {"quantile": 0.25}}}),
]


@pytest.mark.parametrize(("settings", "expected"), SETTINGS, ids=[" ".join(s) for s, _ in SETTINGS])
def test_settings_of_the_command_line(settings, expected):
    job = load_job(GOOD, settings)
    assert {key: getattr(job, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["chunks"], ["-s chunks: expected key=value"]),
        (["=5"], ["expected key=value"]),
        (["cluster..workers=5"], ["expected key=value"]),
        (["chunks=big"], ["-s chunks=big: chunks: expected 'auto'", "got 'big'"]),
        (["chunk=1"], ["-s chunk=1: unknown key 'chunk'; did you mean 'chunks'?"]),
        (["chunks=[1"], ["-s chunks=[1", "not valid YAML"]),
        (["chunks="], ["-s chunks=: chunks: has no value"]),
        (["cluster=tcp://a:1", "cluster.workers=2"], ["'cluster' is 'tcp://a:1' here", "give all of it"]),
        (["cluster.workers=0"], ["-s cluster.workers=0: cluster.workers: expected a whole number"]),
    ],
)
def test_settings_that_are_wrong(settings, says):
    with pytest.raises(JobError) as caught:
        load_job(GOOD, settings)
    for words in says:
        assert words in str(caught.value)


def test_a_setting_replaces_what_the_file_has_wrong():
    assert load_job(GOOD + "chunks: big\n", ["chunks=5"]).chunks == 5
    with pytest.raises(JobError, match=r"-s bbox=\[1, 2\]"):  # not the line of the elements it replaced
        load_job(GOOD + "bbox:\n- 1\n- 2\n- 3\n- 4\n", ["bbox=[1, 2]"])


def test_cluster_from_a_separate_file(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("# two\ntype: local\nworkers: 2\n")
    assert load_job(GOOD + f"cluster: {file}\n").cluster == LocalOptions(workers=2)
    assert read_cluster(file, workers=3) == LocalOptions(workers=3)
    file.write_text("# two\ntype: local\nwrkers: 2\n")
    for read in (read_cluster, lambda path: load_job(GOOD + f"cluster: {path}\n")):
        with pytest.raises(
            JobError, match=r"cluster.yaml, line 3: unknown key .*wrkers'; did you mean 'workers'\?"
        ) as caught:
            read(str(file))
        assert caught.value.line == 3


def test_json_schema_describes_every_key():
    schema = Job.model_json_schema()
    assert schema["required"] == ["source", "output"]
    assert all(p.get("description") for p in schema["properties"].values())
    assert {"type": "string"} in schema["properties"]["cluster"]["anyOf"]
    assert schema["additionalProperties"] is False


def outcome(job):
    try:
        return load_job(job)
    except JobError as error:
        return error


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8)
SOURCES = TEXTS.filter(lambda text: not text.startswith("~"))
LOCALS = st.builds(
    LocalOptions,
    workers=st.none() | st.integers(1, 99),
    threads=st.none() | st.integers(1, 9),
    memory=st.none() | st.sampled_from(["4GB", "512 MiB", "1e9"]),
    dashboard=st.sampled_from([":8787", "0.0.0.0:1"]),
)
ADDRESSES = st.builds(
    AddressOptions, address=NAMES.map("tcp://{}:1".format), timeout=st.floats(0.1, 99), ca=st.none() | NAMES
)
BOXES = st.tuples(st.floats(-180, 0), st.floats(-90, 0), st.floats(1, 180), st.floats(1, 90))
REDUCERS = st.just("luminance_median") | st.builds(
    lambda key, quantile: {"rank": {"key": key, "quantile": quantile}}, TEXTS, st.floats(0, 1)
)
JOBS = st.builds(
    Job,
    source=SOURCES | st.lists(SOURCES, min_size=1, max_size=3).map(tuple),
    output=NAMES.map("{}.tif".format),
    reducer=REDUCERS,
    datetime=st.none() | st.sampled_from(["2023", "2023-06", "2023-06-01", "2023-06-01/..", "../2024"]),
    bands=st.none() | st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
    bbox=st.none() | BOXES,
    crs=st.none() | st.just("EPSG:32631") | st.integers(1024, 32767),
    resolution=st.none() | st.floats(0.001, 1e6),
    chunks=st.just("auto") | st.integers(1, 10980) | st.tuples(st.integers(1, 10980), st.integers(1, 10980)),
    engine=st.sampled_from(["auto", "tiles", "gdal"]),
    on_error=st.sampled_from(["raise", "skip"]),
    layers=st.none() | st.just(("composite", "count")),
    overwrite=st.booleans(),
    cluster=LOCALS | ADDRESSES,
)


@given(JOBS)
@example(Job(source="${HOME}/$${x}", output="a.tif"))
@example(Job(source="${", output="$${$} ${a b}.tif"))
@example(Job(source="yes", output="a.tif", bands=("1", "null", "2023-01-01")))
def test_round_trip_through_yaml(job):
    assert load_job(job.to_yaml() + "\n") == job


@settings(deadline=None)  # a thousand brackets take YAML a second
@given(st.text(max_size=60))
@example("source: a\noutput: &x [*x]\n")
def test_any_text_is_a_job_or_a_job_error(text):
    assert isinstance(outcome(text + "\n"), Job | JobError)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(Job.model_fields)), VALUES)
@example("cluster", {"type": "address", "address": "tcp://a:1", "timeout": "x"})
@example("cluster", {"type": []})
@example("cluster", {"type": {"a": 1}})
@example("reducer", {"": None})
@example("area", "0")
@example("grid", "mgrs")
@example("span", {"start": "201201", "end": "201203", "unit": "month"})
def test_any_value_is_accepted_or_named_in_the_error(key, value):
    job = outcome({"source": "a", "output": "a.tif", key: value})
    if isinstance(job, JobError):
        assert job.key.split(".")[0] == key
        assert key in str(job)
    else:
        assert load_job(job.to_yaml()) == job


def test_deep_nesting_is_named():
    for text in ("[" * 2000, "{a: " * 2000):
        with pytest.raises(JobError, match="nested too deeply"):
            load_job(f"source: {text}")


def test_the_example_is_a_job():
    job = load_job(ROOT / "examples" / "t31tcj.yaml")
    assert (job.source, job.output) == ("gs://tb-be-bigdata/t31tcj/", "t31tcj_2023.tif")
    assert [str(reducer) for reducer in job.reducers] == ["luminance_median"]
    assert job.datetime == "2023"


# --- Variables -----------------------------------------------------------------------------------------------------------

WITH_VARIABLES = """
variables:
  year: 2023
  root: ${ROOT_OF_TEST:-here}
source: ${root}/scenes
output: median_${year}.tif
datetime: ${year}
chunks: ${size:-512}
"""


def test_file_defines_variables(monkeypatch):
    monkeypatch.setenv("year", "1999")
    job = load_job(WITH_VARIABLES)
    assert (job.source, job.output, job.datetime, job.chunks) == ("here/scenes", "median_2023.tif", "2023", 512)
    monkeypatch.setenv("ROOT_OF_TEST", "there")
    other = load_job(WITH_VARIABLES, ["variables.year=2024", "chunks=256"])
    assert (other.source, other.output, other.datetime, other.chunks) == (
        "there/scenes",
        "median_2024.tif",
        "2024",
        256,
    )
    assert load_job("variables: {a: '0123'}\nsource: '${a}'\noutput: a.tif\n").source == "0123"
    assert load_job('{"variables": {"n": 64}, "source": "s", "output": "o${n}.tif"}\n').output == "o64.tif"


@pytest.mark.parametrize(
    ("text", "settings", "says"),
    [
        ("source: ${yaer}\noutput: a.tif\nvariables: {year: 2023}\n", [], "line 1: source: .*'yaer'.*mean 'year'"),
        ("variables: [1]\nsource: s\noutput: a.tif\n", [], "line 1: variables: expected names and values"),
        ("variables:\n  a: [1]\nsource: s\noutput: a.tif\n", [], "line 2: variables.a: .*a text or number"),
        ("variables: {a b: 1}\nsource: s\noutput: a.tif\n", [], "line 1: variables.a b: a variable has a name"),
        ("variables: {year: 1}\nsource: s\noutput: a.tif\n", ["variables.yaer=2"], "no such variable; it sets year"),
        ("source: s\noutput: a.tif\n", ["variables.year=2"], "no such variable; it sets none"),
    ],
)
def test_mistakes_with_variables_are_named(text, settings, says):
    with pytest.raises(JobError, match=says):
        load_job(text, settings)


def test_the_schema_takes_files_with_variables():
    jsonschema = pytest.importorskip("jsonschema")
    schema = job_schema()
    jsonschema.validate({"variables": {"year": 2023}, "source": "s", "output": "o.tif"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"variables": {"year": [1]}, "source": "s", "output": "o.tif"}, schema)


# --- The keys are those of the functions -----------------------------------------------------------------------------

NOT_KEYS = {
    "cube": "the scenes of the job",
    "geobox": "has no text form; `like` takes a raster with that grid, `grid` the cells of one",
    "loader": "windows are read by the workers themselves, and not by another library",
    "params": "parameters of a reducer are written beside its name",
}


@pytest.mark.parametrize("function", [s2c.find_scenes, s2c.open_cube, s2c.composite])
def test_a_job_has_every_key_that_a_function_has(function):
    lacking = set(inspect.signature(function).parameters) - Job.model_fields.keys()
    assert lacking <= NOT_KEYS.keys(), f"{function.__name__}: a job cannot say {lacking - NOT_KEYS.keys()}"
    for name, parameter in inspect.signature(function).parameters.items():
        if name in Job.model_fields and name not in ("source", "valid"):
            assert Job.model_fields[name].default == parameter.default, name


def test_every_key_is_assigned_to_callers_or_the_operator():
    operators = {"area", "cluster", "engine", "index", "like", "limits", "overwrite", "performance_report", "sign"}
    assert set(ALLOWED_KEYS) | operators == Job.model_fields.keys()
    assert not set(ALLOWED_KEYS) & operators


def test_every_key_is_in_the_template_and_the_schema():
    assert set(job_schema()["properties"]) == {*Job.model_fields, "variables"}
    keys = re.findall(r"^(?:# )?(\w+): ", job_template(), re.MULTILINE)
    assert [key for key in keys if key in Job.model_fields] == list(Job.model_fields)


def signed_here(url):
    return url


@pytest.fixture(scope="module")
def two_granules(tmp_path_factory):
    """Scenes of two granules on three days, one of them processed twice."""
    folder = tmp_path_factory.mktemp("two_granules")
    east = ORIGIN * Affine.translation(136, 0)
    for day in (1, 6, 11):
        write_tif(folder / f"T31TCJ_202306{day:02d}T104629_TCI.tif", encoded(day), photometric="RGB")
        write_tif(folder / f"T31TDJ_202306{day:02d}T104629_TCI.tif", encoded(day), transform=east, photometric="RGB")
    for path in folder.iterdir():
        with rasterio.open(path, "r+") as dataset:
            dataset.scales = (1e-4, 1e-4, 1e-4)  # what reflectance takes
    return folder


KEY_VALUES = {
    "groupby": "solar_day",
    "datetime": "2023-06-02/2023-06-30",
    "bands": ["red"],
    "reflectance": True,
    "harmonise": False,
    "resolution": 1e1,
    "like": "like.tif",
    "anchor": "center",
    "resampling": {"*": "CUBIC"},
    "on_error": "skip",
    "engine": "gdal",
    "sign": "test_job.signed_here",
    "headers": "read",
    "index": "headers.index",
    "times": [f"2023-0{month}-01" for month in range(1, 7)],
    "pattern": r"(?P<date>\d{8})",
    "duplicates": "keep",
}


@pytest.mark.parametrize("key", KEY_VALUES)
def test_a_key_does_what_the_parameter_does(two_granules, tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    write_tif("like.tif", encoded(0), transform=ORIGIN * Affine.translation(20.5, 10))
    written = yaml.safe_dump({"source": str(two_granules), "output": "a.tif", "crs": 32631, key: KEY_VALUES[key]})
    plain = {"crs": 32631} if key != "like" else {}
    job = load_job(written if key != "like" else written.replace("crs: 32631\n", ""))
    work = work_in(job_composite(job, job_scenes(job)).dataset)
    stack, _ = stack_of(s2c.open_cube(two_granules, **plain, **{key: KEY_VALUES[key]}))
    assert work.stack.token == stack.token
    assert [scene.id for scene in work.stack.scenes] == [scene.id for scene in stack.scenes]


def test_numbers_with_an_exponent_are_numbers():
    job = load_job(GOOD + "crs: EPSG:4326\nresolution: 1e-4\nbbox: [1e0, 43, 1.5, 4.4e1]\n")
    assert (job.resolution, job.bbox) == (1e-4, (1, 43, 1.5, 44))
    assert load_job(job.to_yaml()) == job


def test_older_job_files_keep_their_meaning():
    job = load_job(GOOD)
    assert job.to_yaml() == GOOD
    assert (job.groupby, job.duplicates, job.harmonise, job.reflectance) == (None, "newest", True, False)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("limits: cdsee\n", 3, "limits: 'cdsee' is neither a preset nor a host .*did you mean 'cdse'"),
        ("limits:\n  cdse: {connections: -4}\n", 3, "limits: cdse: connections: expected a whole number .*got -4"),
        ("limits: {a.org: {conections: 4}}\n", 3, "limits: a.org: conections: unknown key; did you mean connections"),
    ],
)
def test_mistakes_in_limits_are_named(text, line, says):
    with pytest.raises(JobError, match=f"line {line}: {says}"):
        load_job("source: s\noutput: a.tif\n" + text)
    limited = load_job("source: s\noutput: a.tif\nlimits: {a.org: {requests: 10/second, bytes: 20MB}}")
    assert load_job(limited.to_yaml()) == limited
