"""Fixtures that many tests share: generated scenes, and where the real imagery is."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How fast a machine makes examples, and runs them, says nothing about what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# coiled brings gilknocker, with which Dask's monitor warns whenever numba holds the interpreter for long.
os.environ.setdefault("DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED", "false")

# Clusters that tests share wait most of the time. As Dask sets them up, that takes 8 % of a core for each; so, 3 %.
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "false")
os.environ.setdefault("DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL", "1s")


# What a shell starts in the background ignores Ctrl-C, as processes of pytest-xdist do, and so would all that they start;
# tests press it for real.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def ctrl_c_stays_what_it_is():
    """No test, and nothing that one imports, changes what Ctrl-C does in the tests after it."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="session")
def scenes_dir(tmp_path_factory):
    """Nine lossless scenes of 600 x 600, whose size is no multiple of their 512-pixel blocks."""
    from s2composite.demo import make_scenes

    directory = tmp_path_factory.mktemp("scenes")
    make_scenes(str(directory), scenes=9, size=600, seed=1, compress="deflate")
    return directory


@pytest.fixture(scope="session")
def local_cluster():
    """Two worker processes of one thread each, which all tests share that do not harm them."""
    from distributed import LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": "1GB", "dashboard_address": ":0"}
    with LocalCluster(processes=True, **options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(local_cluster):
    """A client of the shared cluster, from the first test that asks for it the scheduler of all others of the module."""
    from distributed import Client

    with Client(local_cluster) as client:
        yield client


@pytest.fixture
def client_of_test(local_cluster):
    """A client of the shared cluster, which is the scheduler of this test alone."""
    from distributed import Client

    with Client(local_cluster) as client:
        yield client


@pytest.fixture(scope="session")
def imagery():
    """The directory of real imagery."""
    directory = Path(os.environ.get("S2COMPOSITE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not directory.is_dir():
        pytest.skip(f"no real imagery in {directory}; set S2COMPOSITE_TEST_DATA")
    return directory


@pytest.fixture(scope="session")
def check_manifest():
    """Return the function that raises where a DaskCluster is not what the operator takes."""
    from support.kubernetes import manifest_validator

    return manifest_validator()
