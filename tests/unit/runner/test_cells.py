"""Areas cut into cells: granules lie where Sentinel-2's do, squares cover an area once, and cells put together are the whole."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geom import box
from typer.testing import CliRunner

import s2composite as s2c
from s2composite.cli import app
from s2composite.demo import make_scenes
from s2composite.errors import JobError
from s2composite.jobs.grid import CellsOptions, MgrsOptions, OdcOptions, UtmOptions, cells_of
from s2composite.jobs.schema import load_job
from s2composite.runner.inputs import job_cells
from s2composite.runner.ledger import read_ledger
from s2composite.runner.plan import plan_cells, plan_job
from s2composite.runner.run import run_cells, run_job


@pytest.mark.parametrize(
    ("place", "name", "epsg", "corner"),
    [  # upper left corners as the products' own metadata have them
        ((1.2, 43.6), "31TCJ", 32631, (300000, 4900020)),
        ((15.9, 45.7), "33TWL", 32633, (499980, 5100000)),
        ((18.4, -33.9), "34HBH", 32734, (199980, 6300000)),
        ((-3.5, 50.7), "30UVB", 32630, (399960, 5700000)),
    ],
)
def test_granules_are_those_of_sentinel_2(place, name, epsg, corner):
    x, y = place
    (cell,) = cells_of(MgrsOptions(type="mgrs"), box(x, y, x + 0.01, y + 0.01, "EPSG:4326"))
    assert cell.name == name
    assert cell.geobox.crs.to_epsg() == epsg
    assert (cell.geobox.transform.c, cell.geobox.transform.f) == corner
    assert tuple(cell.geobox.shape) == (10980, 10980)
    (coarse,) = cells_of(MgrsOptions(type="mgrs", resolution=60), box(x, y, x + 0.01, y + 0.01, "EPSG:4326"))
    assert tuple(coarse.geobox.shape) == (1830, 1830)
    assert coarse.geobox.extent == cell.geobox.extent


@settings(max_examples=30, deadline=None)
@given(west=st.floats(-179, 178), south=st.floats(-75, 75), width=st.floats(0.05, 0.9), height=st.floats(0.05, 0.9))
def test_squares_cover_an_area(west, south, width, height):
    area = box(west, south, west + width, south + height, "EPSG:4326")
    cells = cells_of(UtmOptions(type="utm", size=50_000, resolution=100), area)
    assert len({cell.name for cell in cells}) == len(cells)
    left = area
    for cell in cells:
        left = left - cell.geobox.extent.to_crs("EPSG:4326", resolution=5000)
    assert left.area < 2e-3 * area.area


def test_squares_with_a_buffer_overlap():
    area = box(1.0, 43.4, 1.2, 43.5, "EPSG:4326")
    plain = cells_of(UtmOptions(type="utm", size=20_000), area)
    wide = cells_of(UtmOptions(type="utm", size=20_000, buffer=500), area)
    assert [cell.name for cell in plain] == [cell.name for cell in wide]
    for a, b in zip(plain, wide, strict=True):
        assert tuple(b.geobox.shape) == (2100, 2100)
        assert b.geobox.transform.c == a.geobox.transform.c - 500


def test_a_grid_of_open_data_cube():
    job = load_job(
        {"source": "s", "output": "{cell}.tif", "grid": "EPSG:3035;10;10000", "bbox": [1.0, 43.4, 1.1, 43.5]}
    )
    assert job.grid == OdcOptions(crs="EPSG:3035", resolution=10, shape=10000)
    (cell,) = cells_of(job.grid, box(1.0, 43.6, 1.05, 43.65, "EPSG:4326"))
    assert cell.name == "x0035y0023"
    assert cell.geobox.transform.c == 3_500_000


def test_polygons_of_a_file(tmp_path):
    fields = [box(1.0 + i, 43.0, 1.1 + i, 43.1, "EPSG:4326") for i in range(3)]
    features = [{"type": "Feature", "geometry": f.json, "properties": {"id": f"f{i}"}} for i, f in enumerate(fields)]
    file = tmp_path / "fields.geojson"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    grid = CellsOptions(type="cells", file=str(file), name="id", resolution=20)
    assert [cell.name for cell in cells_of(grid, None)] == ["f0", "f1", "f2"]
    assert [cell.name for cell in cells_of(grid, fields[1])] == ["f1"]
    assert cells_of(grid, fields[1])[0].geobox.crs.to_epsg() == 32631
    with pytest.raises(JobError, match="no property 'nom'; it has id"):
        cells_of(CellsOptions(type="cells", file=str(file), name="nom"), None)
    for names, words in (
        (["a", "b", "a"], "two polygons are named 'a'"),
        (["a", "../b", "c"], "named '../b', which is not valid"),
        (["a", "", "c"], "named ''"),
    ):
        for feature, name in zip(features, names, strict=True):
            feature["properties"]["id"] = name
        file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        with pytest.raises(JobError, match=words):
            cells_of(grid, None)
    (tmp_path / "bad.geojson").write_text("{")
    with pytest.raises(JobError, match="not GeoJSON"):
        cells_of(CellsOptions(type="cells", file=str(tmp_path / "bad.geojson")), None)
    with pytest.raises(JobError, match="cannot be read"):
        cells_of(CellsOptions(type="cells", file=str(tmp_path / "none.geojson")), None)


@pytest.mark.slow
def test_cells_put_together_are_the_whole(tmp_path):
    make_scenes(str(tmp_path / "scenes"), scenes=4, size=1000, seed=3, compress="deflate")
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        whole = run_job({"source": str(tmp_path / "scenes"), "output": str(tmp_path / "whole.tif")}, client=client)
        with rasterio.open(whole.paths[0]) as dataset:
            expected, bounds = dataset.read(), dataset.bounds
        spec = {
            "source": str(tmp_path / "scenes"),
            "output": str(tmp_path / "cell_{cell}.tif"),
            "grid": {"type": "utm", "size": 6000},
            "bbox": list(bounds),
            "bbox_crs": "EPSG:32631",
        }
        results = dict(run_cells(spec, client=client))
        again = dict(run_cells(spec, client=client))
        planned = dict(plan_cells(spec))
    assert all(result is None or result.made == 0 for result in again.values())
    assert {cell.name for cell in planned} == {cell.name for cell in results}
    assert {plan.state for plan in planned.values() if plan is not None} == {"skip"}
    canvas = np.zeros_like(expected)
    for cell, result in results.items():
        if result is None:
            continue
        with rasterio.open(result.paths[0]) as dataset:
            assert Path(result.paths[0]).name == f"cell_{cell.name}.tif"
            part, left, top = dataset.read(), dataset.bounds.left, dataset.bounds.top
        x, y = round((left - bounds.left) / 10), round((bounds.top - top) / 10)
        rows = slice(max(y, 0), min(y + part.shape[1], 1000))
        columns = slice(max(x, 0), min(x + part.shape[2], 1000))
        canvas[:, rows, columns] = part[:, rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    np.testing.assert_array_equal(canvas, expected)
    assert any(result is None for result in results.values()) or len(results) >= 4


@pytest.mark.slow
def test_windows_of_the_next_cell_are_made_while_one_is_finished(tmp_path):
    make_scenes(str(tmp_path / "scenes"), scenes=4, size=1000, seed=3, compress="deflate")
    spec = {
        "source": str(tmp_path / "scenes"),
        "output": str(tmp_path / "together_{cell}.tif"),
        "grid": {"type": "utm", "size": 4000},
        "bbox": [300020, 4890040, 309980, 4900000],
        "bbox_crs": "EPSG:32631",
        "chunks": 128,
        "raster": {"blocksize": 128},
    }
    cells = [cell.name for cell in job_cells(load_job(spec))]
    taken = tmp_path / f"together_{cells[1]}.tif"
    taken.write_bytes(b"somebody else's")
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        together = {cell.name: result for cell, result in run_cells(spec, client=client)}
    assert sorted(together) == cells
    assert "exists already" in together.pop(cells[1]).error
    assert taken.read_bytes() == b"somebody else's"
    names = [name for name in cells if together.get(name)]
    assert len(names) > 3
    assert {name: together[name].error for name in names} == dict.fromkeys(names)
    assert all(together[name].paths for name in names)
    ledgers = [read_ledger(str(tmp_path / f"together_{name}.tif")) for name in names]
    done = [[event["at"] for event in events if event["event"] == "done"] for events in ledgers]
    assert [len(at) for at in done] == [together[name].windows for name in names]
    complete = [event["at"] for events in ledgers for event in events if event["event"] == "product"]
    assert len(complete) == len(names)
    early = [later[0] < end for end, later in zip(complete, done[1:], strict=False)]
    # Where a cell is small, the next one may not be planned in time.
    assert sum(early) > len(early) // 2, "windows of the next cell are done before the file of the one before is"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"grid": "mgrs"}, "put {cell}"),
        ({"area": "a.geojson"}, "give a grid"),
        ({"output": "{cell}.tif"}, "give a grid"),
        ({"output": "{cell}.tif", "grid": "mgrs", "crs": "EPSG:3035"}, "leave out crs"),
        ({"output": "{cell}.tif", "grid": "EPSG:3035;ten;1"}, "crs;resolution;shape"),
        ({"output": "{cell}.tif", "grid": {"type": "hex"}}, "unknown type 'hex'"),
        ({"output": "{cell}.tif", "grid": {"type": "utm", "sise": 3}}, "unknown key"),
    ],
)
def test_keys_that_do_not_go_together(keys, words):
    with pytest.raises(JobError, match=words):
        load_job({"source": "s", "output": "a.tif", **keys})


def test_a_grid_without_an_area_has_no_end():
    with pytest.raises(JobError, match="give an area"):
        list(run_cells({"source": "s", "output": "{cell}.tif", "grid": "mgrs"}))
    with pytest.raises(JobError, match="plan_cells"):
        plan_job({"source": "s", "output": "{cell}.tif", "grid": "mgrs"})
    with pytest.raises(JobError, match="run_cells"):
        run_job({"source": "s", "output": "{cell}.tif", "grid": "mgrs"})


def test_the_command_line_tells_of_each_cell(tmp_path):
    make_scenes(str(tmp_path / "scenes"), scenes=2, size=600, seed=1, compress="deflate")
    spec = {
        "source": str(tmp_path / "scenes"),
        "output": str(tmp_path / "taken_{cell}.tif"),
        "grid": {"type": "utm", "size": 6000},
        "bbox": [300000, 4890000, 306000, 4900000],
        "bbox_crs": "EPSG:32631",
        "cluster": {"workers": 1, "dashboard": ":0"},
    }
    (tmp_path / "job.json").write_text(json.dumps(spec))
    whole = {cell.name: plan for cell, plan in plan_cells(spec)}
    there = [name for name, plan in whole.items() if plan is not None]
    taken = there[0]
    (tmp_path / f"taken_{taken}.tif").write_bytes(b"something else")
    runner = CliRunner()
    ran = runner.invoke(app, ["run", str(tmp_path / "job.json")])
    assert ran.exit_code == 1, ran.output
    assert "exists already" in ran.stderr
    for name in there[1:]:
        assert (tmp_path / f"taken_{name}.tif.ledger" / "report.html").exists()
    status = json.loads(runner.invoke(app, ["status", str(tmp_path / "job.json"), "--json"]).stdout)
    assert {name: one["state"] for name, one in status.items()} == {
        name: "complete" if name in there[1:] else "new" for name in whole
    }
    lines = runner.invoke(app, ["status", str(tmp_path / "job.json")]).stdout.splitlines()
    assert f"{taken}: new: nothing has been done" in lines
    told = runner.invoke(app, ["report", str(tmp_path / "job.json")]).stdout.split()
    assert len(told) == 2 * (len(there) - 1)
