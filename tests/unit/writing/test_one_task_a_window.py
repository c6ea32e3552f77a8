"""One task a window: what is read is reduced and encoded in the same task, so that no window's pixels ever travel."""

import pickle
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
from dask._task_spec import Alias, DataNode, Task, TaskRef, execute_graph
from hypothesis import given
from hypothesis import strategies as st

import s2composite as s2c
from s2composite.writing.cog import write_raster
from s2composite.writing.layers import STATUS
from s2composite.writing.steps import fused
from s2composite.writing.zarr import write_zarr
from support.writing_helpers import assert_same_files, composed_windows, dataset_of, pixels

SIDE = 256
WINDOWS = 9


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six scenes of 600 x 600 in three months."""
    from s2composite.demo import make_scenes

    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(str(folder), scenes=6, size=600, seed=1, compress="deflate")
    return folder


class Results(dask.callbacks.Callback):
    """Bytes of the result of each task that is run in this process, by key."""

    def __init__(self):
        super().__init__(posttask=self.note)
        self.sizes = {}

    def note(self, key, result, *_):
        # The scenes and the files' plans come as data, of no size.
        self.sizes[key] = len(pickle.dumps(result))


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def written(folder, comp, **options):
    """Write a composite or its dataset; return the bytes of all files."""
    folder.mkdir()
    write_raster(getattr(comp, "dataset", comp), folder / "m.tif", blocksize=128, **options)
    return files_of(folder)


def mine(cube):
    """Return a mask of one's own for a cube, in chunks that are not its own."""
    usable = np.ones((cube.sizes["time"], 600, 600), bool)
    usable[0, 100:400] = False
    return xr.DataArray(
        da.from_array(usable, (2, 200, 300)), {name: cube[name] for name in ("time", "y", "x")}, ("time", "y", "x")
    )


JOBS = {
    "all layers": ({}, {"layers": "all"}),
    "one file": ({}, {"layers": "all", "separate": False}),
    "a preview": ({}, {"layers": ["composite", "rgba", "count"]}),
    "different tiles": ({}, {"layers": "all", "overrides": {"count": {"blocksize": 64}}}),
    "periods": ({"period": "month"}, {"layers": "all"}),
    "two reducers": ({"reducer": ("mean", "luminance_median")}, {"layers": "all"}),
    "a mask of one's own": ({"valid": mine}, {"layers": "all"}),
}


def composed(scenes, job, **options):
    cube = s2c.open_cube(scenes, chunks=SIDE, **options)
    return s2c.composite(cube, **{key: v(cube) if callable(v) else v for key, v in JOBS[job][0].items()})


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_no_task_gives_a_windows_pixels_away(tmp_path, scenes, job, on_error):
    comp = composed(scenes, job, on_error=on_error)
    with Results() as results, composed_windows() as windows:
        written(tmp_path / "lazy", comp, **JOBS[job][1])
    assert len(windows) == len({str(window) for window in windows}) == WINDOWS
    writing = {key: size for key, size in results.sizes.items() if key[0].startswith("write-")}
    assert sum(key[0].endswith("-0") for key in writing) == WINDOWS
    assert not [key for key in results.sizes if "composite-window" in str(key)]
    # What goes on is a sixteenth of the pixels, from which others make overviews.
    bands = sum(source.count for source in map(rasterio.open, sorted((tmp_path / "lazy").iterdir())))
    assert max(writing.values()) < bands * SIDE**2 / 2
    written(tmp_path / "computed", comp.compute(), **JOBS[job][1])
    assert_same_files(tmp_path / "lazy", tmp_path / "computed")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_no_task_gives_a_windows_pixels_away_that_goes_into_a_store(tmp_path, scenes, on_error):
    comp = composed(scenes, "all layers", on_error=on_error)
    with Results() as results, composed_windows() as windows:
        write_zarr(comp.dataset, tmp_path / "m.zarr", chunk=128, pyramid=True)
    assert len(windows) == WINDOWS
    assert not [key for key in results.sizes if "composite-window" in str(key)]
    assert sum("write-window" in str(key) for key in results.sizes) == WINDOWS
    with xr.open_zarr(tmp_path / "m.zarr", group="0") as opened:
        assert np.array_equal(opened["composite"].values, comp["composite"].compute().values)
        assert (STATUS in opened) == (on_error == "skip")
        assert STATUS not in opened or np.array_equal(opened[STATUS].values, comp.dataset[STATUS].compute().values)


def test_on_a_cluster_workers_send_each_other_no_windows(tmp_path, scenes, client_of_test):
    comp = composed(scenes, "all layers", on_error="skip")
    here = written(tmp_path / "here", comp, layers="all")

    def received(dask_worker):
        return sum(entry["total"] for entry in dask_worker.transfer_incoming_log)

    before = client_of_test.run(received)
    there = written(tmp_path / "there", comp, layers="all")
    sent = sum(client_of_test.run(received).values()) - sum(before.values())
    assert there == here
    assert sent < WINDOWS * SIDE * SIDE


def test_arrays_of_others(tmp_path):
    """Layers that share a source are encoded together, and neither that nor others' chunks change a byte."""
    values = pixels((3, 500, 400))
    cube = da.from_array(np.stack([values, values // 2]), chunks=(1, 3, 128, 128))
    plain = dataset_of({"composite": (values // 2, {"nodata": 0}), "count": (values[0], {"overviews": "nearest"})})
    dataset = plain.copy()
    dataset["composite"] = plain["composite"].copy(data=cube.min(axis=0).rechunk({0: -1}))
    dataset["count"] = plain["count"].copy(data=cube.max(axis=0)[0])
    with Results() as results:
        files = written(tmp_path / "lazy", dataset, layers="all")
    assert files == written(tmp_path / "plain", plain, layers="all")
    assert sum(key[0].startswith("write-") and key[0].endswith("-0") for key in results.sizes) == 16


def test_layers_of_different_origin_are_tasks_of_their_own(tmp_path):
    values = pixels((3, 300, 300))
    dataset = dataset_of({"composite": (values, {"nodata": 0}), "count": (values[0] // 2, {})}, 128)
    with Results() as results:
        written(tmp_path / "out", dataset, layers="all")
    assert len({key for key in results.sizes if "write-" in str(key) and len(key) == 3}) == 2 * 9


# --- fusing ---------------------------------------------------------------------------------------------------------------


def tasks(**needs):
    """Return a graph of tasks that add what they need to a number of their own."""
    return {
        key: Task(key, lambda *values, own=number: own + sum(values), *map(TaskRef, needed))
        for number, (key, needed) in enumerate(needs.items(), 1)
    }


def result(graph, key):
    return execute_graph(dict(graph), keys=[key])[key]


def test_a_diamond_becomes_one_task():
    graph = tasks(read=[], a=["read"], b=["read"], c=["b"], write=["a", "c"])
    (key,) = small = fused(graph, ["write"], ["write"])
    assert key == "write"
    assert result(small, "write") == result(graph, "write")


def test_what_others_need_stays_and_is_run_once():
    graph = tasks(read=[], a=["read"], b=["read"], write=["a", "b"], other=["b"])
    assert set(fused(graph, ["write"], ["write", "other"])) == {"read", "b", "write", "other"}


def test_what_is_wanted_stays():
    graph = tasks(read=[], a=["read"], b=["read"], write=["a", "b"])
    assert {"a", "write"} <= set(fused(graph, ["write"], ["a", "write"]))


def test_the_branches_of_a_sum_stay_apart():
    graph = tasks(a=[], b=[], c=[], total=["a", "b", "c"], x=["total"], y=["total"], write=["x", "y"])
    assert set(fused(graph, ["write"], ["write"])) == {"a", "b", "c", "write"}


def test_branches_of_their_own_are_taken_in_each():
    graph = tasks(read=[], a=["read"], b=["read"], load=[], c=["load"], write=["a", "b", "c"])
    assert set(fused(graph, ["write"], ["write"])) == {"write"}


def test_data_and_what_is_elsewhere_are_no_tasks():
    graph = tasks(read=["scenes", "on the cluster"], a=["read"], b=["read"], write=["a", "b", "plan"])
    graph |= {"scenes": DataNode("scenes", 1), "plan": DataNode("plan", 2)}
    small = fused(graph, ["write"], ["write"])
    assert set(small) == {"scenes", "plan", "write"}
    assert small["write"].dependencies == {"scenes", "plan", "on the cluster"}


def test_nothing_is_fused_where_dask_must_not_fuse():
    graph = tasks(read=[], write=["read"])
    with dask.config.set({"optimization.fuse.active": False}):
        assert fused(graph, ["write"], ["write"]) is graph


@given(st.data())
def test_any_graph_gives_the_same(data):
    """Random graphs: every wanted result is there and the same, and no task is run twice."""
    n = data.draw(st.integers(1, 12))
    needs = {
        f"t{i}": sorted(data.draw(st.sets(st.sampled_from([f"t{j}" for j in range(i)]), max_size=3))) if i else []
        for i in range(n)
    }
    graph = tasks(**needs)
    graph |= {
        key: Alias(key, needed[0]) for key, needed in needs.items() if len(needed) == 1 and data.draw(st.booleans())
    }
    wanted = data.draw(st.sets(st.sampled_from(sorted(graph)), min_size=1))
    heads = data.draw(st.lists(st.sampled_from([*sorted(graph), "not there"])))
    small = fused(graph, heads, wanted)
    assert {key: result(small, key) for key in wanted} == {key: result(graph, key) for key in wanted}
    assert sum(map(held, small.values())) == len(graph)


def held(node):
    """Return the number of tasks in a task."""
    inner = node.args[0] if isinstance(node, Task) and node.args and isinstance(node.args[0], dict) else None
    return 1 if inner is None else sum(map(held, inner.values()))
