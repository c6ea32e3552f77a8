"""Plans: what they say is read is what is read, and what does not fit is refused with numbers."""

import csv
import json
import re
import subprocess
import sys

import pytest
import rasterio
from dask.utils import parse_bytes
from odc.geo import geom
from typer.testing import CliRunner

import s2composite as s2c
from s2composite.cli import app
from s2composite.demo import make_scenes
from s2composite.errors import JobError, ParameterError, WriteError
from s2composite.jobs.schema import load_job
from s2composite.runner.ledger import read_ledger
from s2composite.runner.plan import plan_cells, plan_job, write_csv, write_geojson
from s2composite.runner.report import job_report, report_page
from s2composite.runner.run import run_cells, run_job
from s2composite.storage import limits
from support.http_faults import fault_server


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("planned") / "scenes"
    make_scenes(str(directory), scenes=4, size=1100, seed=5, compress="deflate")
    return directory


def job(scenes, tmp_path, **keys):
    return {"source": str(scenes), "output": str(tmp_path / "median.tif"), "chunks": 512, **keys}


def test_a_plan_says_how_long_limits_make_a_job(scenes, tmp_path, monkeypatch):
    """By hand: the requests beyond those of the first second, and all bytes; of a job half of whose files are local, half."""
    monkeypatch.setattr(limits, "_declared", ())
    with fault_server(scenes) as server:
        files = sorted(scenes.glob("*.tif"))
        urls = [server.url(path.name) for path in files]
        given = {"127.0.0.1": {"connections": 2, "requests": "10/second"}}
        free = plan_job(job(scenes, tmp_path) | {"source": urls})
        assert (free.limited, "limits" in free.explain()) == ((0.0, None), False)
        plan = plan_job(job(scenes, tmp_path) | {"source": urls, "limits": given})
        requests, size = sum(w.requests for w in plan.windows), sum(w.bytes for w in plan.windows)
        assert plan.minutes == plan.limited[0] == pytest.approx((requests / 10 - 1) / 60)
        line = r"limits +these reads take under a minute at least by 127.0.0.1: 2 connections, 10 requests a second\n"
        assert re.search(line, plan.explain())
        halves = [*map(str, files[:2]), *urls[2:]]
        half = plan_job(job(scenes, tmp_path) | {"source": halves, "limits": {"127.0.0.1": {"bytes": 100e6}}})
        assert half.limited[0] == pytest.approx(size / 2 / 100e6 / 60)


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


def test_a_plan_says_the_most_that_is_read_and_the_report_what_was(tmp_path):
    make_scenes(tmp_path / "scenes", scenes=12, size=512, compress="deflate", assets=("TCI", "SCL"))
    of_files = sum(path.stat().st_size for path in (tmp_path / "scenes").glob("*TCI*"))
    read = {}
    with s2c.connect("local", workers=1, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        for name, keys in {
            "all": {"valid": ["nodata"]},
            "masked": {"valid": ["nodata", "scl"]},
            "latest": {"valid": ["nodata"], "reducer": "latest"},
            "latest and count": {"valid": ["nodata"], "reducer": "latest", "layers": ["composite", "count"]},
        }.items():
            spec = job(tmp_path / "scenes", tmp_path, bands=["TCI"], output=str(tmp_path / f"{name}.tif"), **keys)
            plan = plan_job(spec)
            assert plan.at_most == ("at most" in plan.explain()) == (name in ("masked", "latest"))
            assert run_job(spec, client=client).paths
            report = job_report(load_job(spec))
            planned = sum(w.bytes for w in plan.windows)
            read[name] = report.read
            assert 0 < report.read <= planned
            assert report.read == planned or plan.at_most
            assert f"{report.read / 1e6:.1f} MB in " in report_page(report)
    assert 0.9 * of_files < read["all"] == read["latest and count"] <= of_files
    assert read["latest"] < 0.6 * read["all"]


def test_states_follow_the_job(scenes, tmp_path):
    with s2c.connect("local", workers=1, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        spec = job(scenes, tmp_path)
        assert plan_job(spec).state == "new"
        part = run_job(spec, client=client, windows="0,1::4")
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
    assert "4, on 4 solar days" in text


def test_the_end_of_a_name_decides_the_format_in_any_case(scenes, tmp_path):
    plan = plan_job(job(scenes, tmp_path) | {"output": str(tmp_path / "MEDIAN.ZARR")})
    assert (plan.state, plan.files) == ("new", (str(tmp_path / "MEDIAN.ZARR"),))


def test_tables(scenes, tmp_path):
    plan = plan_job(job(scenes, tmp_path, period="month"))
    write_csv([(None, plan)], tmp_path / "plan.csv")
    write_geojson([(None, plan)], tmp_path / "plan.geojson")
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
    with pytest.raises(
        ParameterError, match=r"a window of .* GiB, 8 at once .* set chunks to (\d+) or less"
    ) as refusal:
        plan_job(spec)
    assert plan_job(spec, check=False).task_memory > 0
    told = str(refusal.value)
    for cure, name in (
        (r"chunks to (\d+)", "chunks"),
        (r"threads to (\d+)", "threads"),
        (r"memory to ([\d.]+ GiB)", "memory"),
    ):
        value = re.search(cure, told)[1]
        cured = {**spec, "chunks": int(value)} if name == "chunks" else spec
        if name != "chunks":
            cured = {**spec, "cluster": {**spec["cluster"], name: int(value) if name == "threads" else "0.9GiB"}}
        assert plan_job(cured), f"what the refusal proposes about {name} is accepted"


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("memory", ["450MB", "1GB"])
def test_the_size_of_windows_follows_from_the_memory_of_the_workers(scenes, tmp_path, memory, threads):
    spec = job(scenes, tmp_path, chunks="auto", engine="gdal", reducer="geomedian", raster={"blocksize": 64})
    spec["cluster"] = {"type": "local", "workers": 1, "threads": threads, "memory": memory}
    plan = plan_job(spec)
    assert plan.worker_memory <= plan.worker_limit == parse_bytes(memory)
    small = plan_job({**spec, "cluster": {**spec["cluster"], "memory": "5GB"}})
    assert len(small.windows) <= len(plan.windows)


@pytest.mark.slow
def test_a_plan_and_its_run_mean_the_same_windows(scenes, tmp_path):
    spec = job(scenes, tmp_path, chunks="auto", engine="gdal", raster={"blocksize": 64})
    spec["cluster"] = {"type": "local", "workers": 1, "threads": 4, "memory": "450MB", "dashboard": ":0"}
    planned = plan_job(spec)
    result = run_job(spec, windows="0", announce=False)
    assert result.made == 1
    assert result.windows == len(planned.windows) > 1


# --- Some of the windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["9", "a", "3/3", "1:1", "", "0,x3y0"])
def test_a_selection_of_no_window_says_what_there_is(scenes, tmp_path, selection):
    with pytest.raises(ParameterError, match="9 windows, 3 rows of 3"):
        plan_job(job(scenes, tmp_path), windows=selection)


def polygon(path, bounds, crs):
    shape = geom.box(*bounds, crs).to_crs("EPSG:4326")
    path.write_text(json.dumps({"type": "Feature", "geometry": shape.json, "properties": {}}))
    return str(path)


def test_windows_by_number_place_and_name(scenes, tmp_path):
    plan = plan_job(job(scenes, tmp_path), windows="8, 0/1, x002y001, 3:5")
    assert [w.index for w in plan.windows] == [1, 3, 4, 5, 8]
    assert [w.window for w in plan.windows] == [(0, 1), (1, 0), (1, 1), (1, 2), (2, 2)]


def test_windows_by_area_are_those_that_it_meets(scenes, tmp_path):
    whole = plan_job(job(scenes, tmp_path))
    transform = whole.geobox.transform
    for (row, column), (height, width) in {(100, 100): (20, 20), (500, 500): (40, 40), (0, 0): (600, 100)}.items():
        left, top = transform * (column, row)
        right, bottom = transform * (column + width, row + height)
        file = polygon(tmp_path / "area.geojson", (left, bottom, right, top), whole.geobox.crs)
        plan = plan_job(job(scenes, tmp_path), area=file)
        met = [
            w.window
            for w in whole.windows
            if w.pixels[0] < row + height
            and row < w.pixels[1]
            and w.pixels[2] < column + width
            and column < w.pixels[3]
        ]
        assert [w.window for w in plan.windows] == met
    with pytest.raises(ParameterError, match="touches none of the windows"):
        plan_job(job(scenes, tmp_path), area=polygon(tmp_path / "far.geojson", (40, 40, 41, 41), "EPSG:4326"))


def cli(*arguments):
    command = [sys.executable, "-c", "from s2composite.cli import main; main()", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_the_command_line_plans_and_runs_the_same_windows(scenes, tmp_path):
    spec = {**job(scenes, tmp_path), "cluster": {"workers": 1, "dashboard": ":0"}}
    (tmp_path / "job.json").write_text(json.dumps(spec))
    whole = plan_job(spec)
    left, top = whole.geobox.transform * (520, 100)
    right, bottom = whole.geobox.transform * (600, 700)
    file = polygon(tmp_path / "area.geojson", (left, bottom, right, top), whole.geobox.crs)
    planned = cli("plan", str(tmp_path / "job.json"), "--area", file, "--csv", str(tmp_path / "plan.csv"))
    assert planned.returncode == 0, planned.stderr
    with (tmp_path / "plan.csv").open() as rows:
        asked = {(int(row["Y"]), int(row["X"])) for row in csv.DictReader(rows)}
    assert asked == {(0, 1), (1, 1)}
    ran = cli("run", str(tmp_path / "job.json"), "--area", file)
    assert ran.returncode == 1, ran.stderr
    assert {tuple(e["window"]) for e in read_ledger(spec["output"]) if e["event"] == "done"} == asked
    wrong = cli("run", str(tmp_path / "job.json"), "--cells", "31TCJ")
    assert (wrong.returncode, "has no grid" in wrong.stderr) == (2, True)


def test_too_few_scenes_are_refused_before_anything_is_read(scenes, tmp_path):
    spec = job(scenes, tmp_path, policy={"min_scenes": 5})
    for verb in (plan_job, run_job):
        with pytest.raises(JobError, match=r"min_scenes is 5, and 4 scenes touch the area"):
            verb(spec)
    assert plan_job({**spec, "policy": {"min_scenes": 4}}).windows


@pytest.mark.slow
def test_cells_by_name_area_and_number_of_scenes(scenes, tmp_path):
    spec = {
        "source": str(scenes),
        "output": str(tmp_path / "cell_{cell}.tif"),
        "grid": {"type": "utm", "size": 4000},
        "bbox": [0.4, 44.1, 0.6, 44.3],
    }
    whole = {cell.name: plan for cell, plan in plan_cells(spec)}
    there = sorted(name for name, plan in whole.items() if plan is not None)
    assert len(there) >= 4
    assert [cell.name for cell, _ in plan_cells(spec, cells=f"{there[2]},{there[0]}")] == [there[0], there[2]]
    assert [cell.name for cell, _ in plan_cells(spec, cells="0,-1")] == [min(whole), max(whole)]
    one = whole[there[1]].geobox.extent
    middle = one.buffer(-1000).to_crs("EPSG:4326")
    (tmp_path / "area.geojson").write_text(json.dumps(middle.json))
    assert [cell.name for cell, _ in plan_cells(spec, area=str(tmp_path / "area.geojson"))] == [there[1]]
    with pytest.raises(
        JobError, match=rf"cells: '{there[0][:-1]}z' is none of the {len(whole)} cells, such as {there[0][:-1]}"
    ):
        list(plan_cells(spec, cells=f"{there[0][:-1]}z"))
    assert all(plan is None for _, plan in plan_cells({**spec, "policy": {"min_scenes": 5}}))
    assert all(result is None for _, result in run_cells({**spec, "policy": {"min_scenes": 5}}, announce=False))
    named = [(name, plan) for name, plan in whole.items() if plan is not None]
    write_csv(named, tmp_path / "cells.csv")
    with (tmp_path / "cells.csv").open() as file:
        assert {row["cell"] for row in csv.DictReader(file)} == set(there)


def test_tables_and_job_files_that_cannot_be_written_are_told_before_the_work(tmp_path):
    (tmp_path / "job.yaml").write_text("source: nowhere\noutput: median.tif\n")
    nowhere = str(tmp_path / "none" / "file")
    plan = ["plan", str(tmp_path / "job.yaml")]
    for arguments in (["init", nowhere], [*plan, "--csv", nowhere], [*plan, "--geojson", nowhere]):
        found = CliRunner().invoke(app, arguments)
        assert isinstance(found.exception, WriteError), found.output
        assert "does not exist; create it first" in str(found.exception)
    with pytest.raises(WriteError, match="create it first"):
        run_job({"source": "nowhere", "output": str(tmp_path / "none" / "median.tif")})
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]
