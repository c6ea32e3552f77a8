"""The notebooks run from top to bottom, each in a fresh kernel and an empty directory."""

import json

import numpy as np
import pandas as pd
import pytest
import rasterio

from support import ROOT

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def executed(request, tmp_path_factory):
    """A notebook after it ran: its name, its outputs, its directory, and the seconds of all its processors."""
    import jupytext
    import nbclient
    from nbformat.v4 import new_code_cell

    directory = tmp_path_factory.mktemp(request.param.stem)
    notebook = jupytext.read(request.param)
    notebook.cells.append(new_code_cell("import os; print(sum(os.times()[:4]))"))
    place = {"metadata": {"path": str(directory)}}
    nbclient.NotebookClient(notebook, timeout=280, kernel_name="python3", resources=place).execute()
    *cells, asked = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    return request.param.stem, outputs, directory, float(asked.outputs[0]["text"])


def texts(outputs):
    """Return all that is shown as text."""
    return [str(output.get("text", "") or output.get("data", {}).get("text/plain", "")) for output in outputs]


def test_it_runs_soon(executed):
    *_, seconds = executed
    assert 0 < seconds < 150, f"{seconds:.0f} s: make its parameters smaller"


def test_it_shows_no_warning(executed):
    _, outputs, *_ = executed
    assert [text for text in texts(outputs) if "Warning" in text or "Traceback" in text] == []


def test_it_shows_pictures(executed):
    _, outputs, *_ = executed
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


def test_first_composite_is_cloud_free(executed):
    name, outputs, directory, _ = executed
    if name != "01_first_composite":
        pytest.skip("about another notebook")
    with rasterio.open(directory / "first_composite" / "median.tif") as dataset:
        median = dataset.read().astype(int).sum(axis=0)
    scenes = sorted((directory / "first_composite" / "scenes").glob("*.tif"))
    bright = []
    for scene in scenes:
        with rasterio.open(scene) as dataset:
            bright.append((dataset.read().astype(int).sum(axis=0) > 600).mean())
    assert np.mean(bright) > 0.2  # a fifth of what was seen is cloud ...
    assert (median > 600).mean() < 0.01  # ... and next to nothing of what is left
    assert (median > 0).mean() > 0.999
    assert any(text.startswith("Dask: ") and "dashboard: http" in text for text in texts(outputs))


def test_the_geomedian_is_cloud_free(executed):
    name, _, directory, _ = executed
    if name != "03_stac_scl_geomedian":
        pytest.skip("about another notebook")
    with rasterio.open(directory / "stac_scl_geomedian" / "geomedian.tif") as dataset:
        blue = dataset.read(1)
    assert (blue == 0).mean() < 0.01
    assert (blue > 3000).mean() < 0.005  # a cloud's top is three times as bright


def test_the_fields_have_their_calendars(executed):
    name, _, directory, _ = executed
    if name != "04_months_and_zones":
        pytest.skip("about another notebook")
    table = pd.read_csv(directory / "months_and_zones" / "zones.csv")
    assert len(table) == 6 * 6 * 4  # zones, months, bands
    bands = table.pivot_table("mean", ["zone", "period"], "band")
    ndvi = ((bands["B08"] - bands["B04"]) / (bands["B08"] + bands["B04"])).to_xarray()
    spring, late = ndvi.sel(period="2023-04"), ndvi.sel(period="2023-08")
    assert spring.sel(zone="field A") - late.sel(zone="field A") > 0.4
    assert late.sel(zone="field C") - spring.sel(zone="field C") > 0.4
    assert (ndvi.sel(zone="river") < 0).all()
    assert len(list((directory / "months_and_zones").glob("median_20230?.tif"))) == 3


def test_the_interrupted_job_ends_as_if_nothing_had_happened(executed):
    name, outputs, directory, _ = executed
    if name != "05_scaling_out":
        pytest.skip("about another notebook")
    said = "".join(texts(outputs))
    assert "median.tif is there: False" in said
    files = [directory / "scaling_out" / file for file in ("median.tif", "undisturbed.tif")]
    assert files[0].read_bytes() == files[1].read_bytes()
    made = [
        json.loads(line)
        for run in files[0].with_name("median.tif.ledger").glob("*.jsonl")
        for line in run.read_text().splitlines()
    ]
    assert len({event["run"] for event in made if event["event"] == "done"}) == 2
