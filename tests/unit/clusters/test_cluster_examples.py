"""Files of examples/clusters, and the extras that the kinds of clusters need."""

import sys
import tomllib

import pytest
import yaml

from s2composite import connect
from s2composite.clusters.backends import BACKENDS
from s2composite.clusters.connect import read_cluster
from s2composite.errors import MissingDependencyError
from s2composite.jobs.schema import load_job
from support import ROOT

EXAMPLES = sorted((ROOT / "examples" / "clusters").glob("*.yaml"))
EXTRAS = {
    "ssh": "asyncssh", "gateway": "dask_gateway", "kubernetes": "dask_kubernetes", "coiled": "coiled",
    "slurm": "dask_jobqueue",
}  # fmt: skip


def example(kind):
    return next(path for path in EXAMPLES if path.stem == kind)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid(path):
    assert read_cluster(path).type == path.stem


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_commented_options_in_examples_are_valid(path):
    """Each commented key replaces those it excludes."""
    lines = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
    values = read_cluster(path).model_dump(exclude_unset=True)
    known = type(read_cluster(path)).model_fields
    for line in lines:
        key = line.partition(":")[0]
        if key not in known:
            continue
        excluded = {"minimum": ["workers"], "maximum": ["workers", "minimum"], "cluster": ["options"]}
        excluded |= {"container": ["package_sync_ignore"], "software": ["package_sync_ignore"]}
        kept = {name: value for name, value in values.items() if name not in excluded.get(key, ())}
        more = {"maximum": 9} if key == "minimum" else {}
        read_cluster({**kept, **more, **yaml.safe_load(line)})


def test_every_kind_has_an_example():
    assert {path.stem for path in EXAMPLES} == set(BACKENDS)


def test_the_local_example_runs():
    with connect(example("local"), announce=False, dashboard=":0") as client:
        assert client.submit(sum, [1, 2]).result(timeout=120) == 3


@pytest.mark.parametrize("kind", EXTRAS)
def test_a_missing_package_is_named_with_its_extra(kind, monkeypatch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(need.startswith(EXTRAS[kind].replace("_", "-")) for need in extras[kind])
    monkeypatch.setitem(sys.modules, EXTRAS[kind], None)
    with pytest.raises(MissingDependencyError, match=rf"s2composite\[{kind}\]"):
        connect(example(kind))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_job_keeps_its_cluster(path):
    job = load_job({"source": "scenes", "output": "median.tif", "cluster": str(path)})
    assert job.cluster == read_cluster(path)
    again = load_job(job.to_yaml())
    assert again == job
    assert read_cluster(job.cluster) == job.cluster
