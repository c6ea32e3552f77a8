"""Plans: what they say is read is what is read, and what does not fit is refused with numbers."""

import csv
import json

import pytest
import rasterio
from http_faults import fault_server

import s2composite as s2c
from s2composite.demo import make_scenes
from s2composite.errors import ParameterError
from s2composite.running.plan import chosen_windows, plan_job
from s2composite.running.run import run_job


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("planned") / "scenes"
    make_scenes(str(directory), scenes=4, size=1100, seed=5, compress="deflate")
    return directory


def job(scenes, tmp_path, **keys):
    return {"source": str(scenes), "output": str(tmp_path / "median.tif"), "chunks": 512, **keys}


def test_a_plan_counts_what_the_server_is_asked_for(scenes, tmp_path):
    with fault_server(scenes) as server:
        urls = [server.url(path.name) for path in sorted(scenes.glob("*.tif"))]
        plan = plan_job(job(scenes, tmp_path) | {"source": urls})
        before = len(server.state.requests)
        cube = s2c.open_cube(urls, chunks=512)
        opened = len(server.state.requests)
        s2c.composite(cube).compute(scheduler="synchronous")
        # Windows are read in rows of tiles, a request each; the plan is for whole windows.
        assert sum(w.requests for w in plan.windows) <= len(server.state.requests) - opened
        assert before <= opened
    assert len(plan.windows) == 9
    assert plan.windows[0].scenes == (0, 1, 2, 3)
    pixels = 1100 * 1100 * 3 * 4
    assert sum(w.decoded for w in plan.windows) == pixels
    tiles = 0
    for path in scenes.glob("*.tif"):
        with rasterio.open(path) as dataset:
            for (row, column), _ in dataset.block_windows(1):
                size = dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=1)
                tiles += int(size or 0)
    assert tiles <= sum(w.bytes for w in plan.windows) <= 1.1 * tiles + 9 * 4 * 16


def test_states_follow_the_job(scenes, tmp_path):
    with s2c.connect("local", workers=1, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        spec = job(scenes, tmp_path)
        assert plan_job(spec).state == "new"
        chosen = chosen_windows(plan_job(spec).windows, "0,1::4")
        part = run_job(spec, client=client, windows=chosen)
        assert part.made == 3
        assert part.paths == ()
        begun = plan_job(spec)
        assert begun.state == "begun"
        assert [w.state for w in begun.windows].count("done") == 3
        assert run_job(spec, client=client).made == 6
        done = plan_job(spec)
        assert done.state == "skip"
        assert {w.state for w in done.windows} == {"done"}
        assert done.minutes == 0
        assert plan_job(spec | {"reducer": "medoid"}).state == "recompute"
    text = done.explain()
    assert "median.tif" in text
    assert "9 done" in text
    assert "4, on 4 to 4 solar days" in text


def test_tables(scenes, tmp_path):
    plan = plan_job(job(scenes, tmp_path, period="month"))
    plan.to_csv(tmp_path / "plan.csv")
    plan.to_geojson(tmp_path / "plan.geojson")
    with (tmp_path / "plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["T", "X", "Y", "datasets", "days"]
    assert len(rows) == 9 * len(plan.periods)
    features = json.loads((tmp_path / "plan.geojson").read_text())["features"]
    assert len(features) == 9
    longitude, latitude = features[0]["geometry"]["coordinates"][0][0]
    assert 0 < longitude < 3
    assert 43 < latitude < 45
    assert features[4]["properties"]["ix"] == features[4]["properties"]["iy"] == 1


def test_windows_that_do_not_fit_are_refused_with_numbers(scenes, tmp_path):
    spec = job(scenes, tmp_path, engine="gdal", chunks=1100)
    spec["cluster"] = {"type": "local", "workers": 1, "threads": 8, "memory": "500MB"}
    with pytest.raises(ParameterError, match=r"a window of .* GiB, 8 at once .* set chunks to \d+ or less"):
        plan_job(spec)
    assert plan_job(spec, check=False).task_memory > 0


@pytest.mark.parametrize("selection", ["9", "a", "3/3", "1:1", ""])
def test_a_selection_of_no_window_says_what_there_is(scenes, tmp_path, selection):
    plan = plan_job(job(scenes, tmp_path))
    with pytest.raises(ParameterError, match="9 windows, 3 rows of 3"):
        chosen_windows(plan.windows, selection)
    assert chosen_windows(plan.windows, "8, 0/1") == ((0, 1), (2, 2))
