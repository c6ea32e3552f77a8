"""Jobs that write Zarr: in the ledger window by window, gone on with and tried again like those that write files."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.errors import WriteError
from s2composite.jobs.schema import load_job
from s2composite.runner.ledger import Ledger
from s2composite.runner.plan import plan_job
from s2composite.runner.report import job_progress, job_report
from s2composite.runner.run import run_job
from support.job_helpers import DamagedCopy, digests, events, made, store_job


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("many") / "scenes"
    make_scenes(str(directory), scenes=5, size=1100, seed=2, compress="deflate")
    return directory


@pytest.fixture(scope="module")
def undisturbed(scenes, client, tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    result = run_job(store_job(scenes, directory), client=client)
    assert result.made == result.windows == 25
    assert result.paths == (str(directory / "median.zarr"),)
    return digests(directory)


def test_a_store_is_what_to_zarr_writes(scenes, client, undisturbed, tmp_path):
    with client.as_current():
        s2c.composite(s2c.open_cube(scenes, chunks=256)).to_zarr(tmp_path / "median.zarr", progress=False)
    assert digests(tmp_path) == undisturbed


def test_half_of_a_store_is_gone_on_with(scenes, client, undisturbed, tmp_path):
    spec, output = store_job(scenes, tmp_path), tmp_path / "median.zarr"
    windows = [window.window for window in plan_job(spec).windows]
    half = run_job(spec, client=client, windows=windows[::2])
    assert (half.paths, half.made) == ((), 13)
    assert not output.exists(), "it has no name before it is complete"
    plan = plan_job(spec)
    assert plan.state == "begun"
    assert [window.state for window in plan.windows] == ["done", "new"] * 12 + ["done"]
    assert job_progress(load_job(spec)).done == 13
    # Windows of another size would be other shards: those that were begun with are gone on with.
    rest = run_job({**spec, "chunks": 512}, client=client)
    assert (rest.made, rest.windows) == (12, 25)
    assert digests(tmp_path) == undisturbed
    assert set(made(output).values()) == {1}
    assert run_job(spec, client=client).made == 0
    assert job_progress(load_job(spec)).state == "complete"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["median.zarr", "median.zarr.ledger"]
    with pytest.raises(WriteError, match="not what this job makes"):
        run_job({**spec, "reducer": "earliest"}, client=client)
    assert run_job({**spec, "reducer": "earliest", "overwrite": True}, client=client).made == 25
    assert digests(tmp_path) != undisturbed


def test_windows_that_fail_are_kept_and_tried_again(scenes, client, undisturbed, tmp_path):
    copy = DamagedCopy(scenes, tmp_path / "scenes")
    out = tmp_path / "out"
    out.mkdir()
    spec = store_job(copy.directory, out)
    first = run_job(spec, client=client)
    assert first.paths == ()
    assert 0 < len(first.failed) < 25
    assert copy.victim.stem[:20] in first.failed[0].error
    assert job_report(load_job(spec)).state == "failed"
    assert run_job(spec, client=client, which="untried").made == 0
    copy.mend()
    last = run_job(spec, client=client, which="failed", error="damaged")
    assert last.made == len(first.failed)
    assert digests(out) == undisturbed
    assert set(made(out / "median.zarr").values()) == {1}


def test_what_could_not_be_read_is_in_the_store(scenes, client, tmp_path):
    copy = DamagedCopy(scenes, tmp_path / "scenes")
    spec = store_job(copy.directory, tmp_path, on_error="skip")
    (path,) = run_job(spec, client=client).paths
    done = [event for event in events(path) if event["event"] == "done"]
    told = {tuple(event["window"]) for event in done if event.get("failed_scenes")}
    with xr.open_zarr(path) as store:
        table = store["read_status"].values
        assert table.shape == (5, 5, 5)
        assert told == {tuple(at) for at in np.argwhere((table == 2).any(0)).tolist()}
        assert told
        assert store.attrs["read_status"]["failed_windows"] == len(told)
        assert copy.victim.stem[:20] in next(iter(store.attrs["read_status"]["failed"]))


def test_what_another_job_has_left_gives_way_unless_it_is_at_work(scenes, client, undisturbed, tmp_path):
    spec, output = store_job(scenes, tmp_path), tmp_path / "median.zarr"
    other = {**spec, "reducer": "earliest"}
    run_job(other, client=client, windows=[(0, 0)])
    token = events(output)[-1]["token"]
    with Ledger(str(output), "somebody") as ledger:
        ledger.add("start", token=token, timeout=1800, windows=[5, 5], done=1, files=[], place=f"{output}.partial")
    with pytest.raises(WriteError, match="another run is writing there"):
        run_job(spec, client=client)
    with Ledger(str(output), "somebody") as ledger:
        ledger.add("end", token=token)
    assert run_job(spec, client=client).made == 25
    assert digests(tmp_path) == undisturbed
    foreign = tmp_path / "foreign.zarr"
    foreign.mkdir()
    Path(foreign, ".zgroup").write_text("{}")
    with pytest.raises(WriteError, match="no ledger beside it says what it is"):
        run_job({**spec, "output": str(foreign)}, client=client)
    assert [path.name for path in foreign.iterdir()] == [".zgroup"]
