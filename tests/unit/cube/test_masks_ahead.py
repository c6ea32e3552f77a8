"""Over a network, the masks of the next window are on their way while a worker computes a window."""

import threading
from collections import Counter
from contextlib import contextmanager

import dask
import numpy as np
import pytest
from distributed import Client

import s2composite as s2c
from s2composite.cube import windows
from s2composite.demo import make_scenes
from s2composite.errors import ReadError
from s2composite.pixels.select import best_available_pixel
from support.http_faults import fault_server

SCENES = 4
RULES = [s2c.Nodata(), s2c.SCL(cleanup=[("opening", 2), ("dilation", 3)])]
KINDS = {
    "by rows of tiles": ("luminance_median", "composite"),
    "best scenes first": ("latest", "composite"),
    "with the pixels around": (best_available_pixel(distance=10), "count"),
}
"""Reducers and layers whose windows are read in different ways."""


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    directory = tmp_path_factory.mktemp("season")
    make_scenes(str(directory), scenes=SCENES, size=600, seed=3, assets=("TCI", "SCL"), compress="deflate")
    return directory


@contextmanager
def worker(threads=1, workers=1):
    with Client(processes=False, n_workers=workers, threads_per_worker=threads, dashboard_address=":0") as client:
        yield client


def layer_of(server, directory, kind="by rows of tiles", chunks=200):
    """A lazy layer, by default of nine windows."""
    reducer, layer = KINDS[kind]
    urls = [server.url(path.name) for path in sorted(directory.glob("*.tif"))]
    cube = s2c.open_cube(urls, bands=["TCI"], chunks=chunks)
    return s2c.composite(cube, reducer, valid=RULES)[layer]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_the_next_window_are_requested_before_this_one_has_its_data(kind, season):
    """No data are sent before the masks of two windows are asked for: a worker of one thread would wait for ever."""
    two, waited_in_vain = threading.Event(), []

    def fault(path, n):
        if "SCL" in path:
            asked[path] += 1
            if sum(asked.values()) == 2 * SCENES:
                two.set()
        elif begun.is_set() and not two.wait(30):
            waited_in_vain.append(path)

    asked, begun = Counter(), threading.Event()
    with fault_server(season, fault=fault) as server, worker():
        layer = layer_of(server, season, kind)
        asked.clear()
        begun.set()
        made = layer.compute()
    assert not waited_in_vain
    np.testing.assert_array_equal(made, layer_on_disk(season, kind))


def layer_on_disk(directory, kind):
    reducer, layer = KINDS[kind]
    return s2c.composite(s2c.open_cube(directory, bands=["TCI"], chunks=600), reducer, valid=RULES)[layer].compute()


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_is_requested_twice(kind, season):
    """Two workers make the same requests as a single thread without a worker."""
    with fault_server(season) as server:
        layer = layer_of(server, season, kind)
        requests, start = server.state.requests, len(server.state.requests)
        with dask.config.set(scheduler="synchronous"):
            alone = layer.compute()
        middle = len(requests)
        with worker(workers=2):
            np.testing.assert_array_equal(layer.compute(), alone)
        assert Counter(requests[middle:]) == Counter(requests[start:middle])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_computes_as_many_windows_at_once_as_it_has_threads(threads, season, monkeypatch):
    running, most, borrow = [], [], windows.borrow

    @contextmanager
    def counted(size, dtype):
        running.append(None)
        most.append(len(running))
        with borrow(size, dtype) as memory:
            yield memory
        running.pop()

    monkeypatch.setattr(windows, "borrow", counted)
    with fault_server(season) as server, worker(threads):
        layer_of(server, season).compute()
    assert len(most) == 9
    assert max(most) <= threads


def test_a_window_that_fails_does_not_hold_up_the_next(season):
    broken = threading.Event()
    with fault_server(season, fault=lambda path, _: "404" if broken.is_set() and "TCI" in path else None) as server:
        layer, other = layer_of(server, season), layer_of(server, season, chunks=300)
        with worker():
            broken.set()
            with pytest.raises(ReadError, match="404"):
                layer.compute()
            broken.clear()
            np.testing.assert_array_equal(other.compute(), layer_on_disk(season, "by rows of tiles"))
