"""The notebooks run from top to bottom, each in a fresh kernel and an empty directory."""

import time
from pathlib import Path

import jupytext
import nbclient
import pytest
import rasterio

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def executed(request, tmp_path_factory):
    """A notebook after it ran: its name, its outputs, its directory, and the seconds it took."""
    directory = tmp_path_factory.mktemp(request.param.stem)
    notebook = jupytext.read(request.param)
    start = time.monotonic()
    place = {"metadata": {"path": str(directory)}}
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return request.param.stem, outputs, directory, time.monotonic() - start


def test_it_runs_quietly_and_soon(executed):
    _, outputs, _, seconds = executed
    noise = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not [text for text in noise if "Warning" in text or "Traceback" in text]
    assert seconds < 150, f"{seconds:.0f} s: make its parameters smaller"


def test_it_shows_pictures(executed):
    _, outputs, *_ = executed
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


def test_first_composite_is_cloud_free(executed):
    name, outputs, directory, _ = executed
    if name != "01_first_composite":
        pytest.skip("about another notebook")
    with rasterio.open(directory / "first_composite" / "median.tif") as dataset:
        median = dataset.read()
    assert (median > 0).all()
    assert (median < 255).all()
    assert any("Dask: " in str(output) and "dashboard: http" in str(output) for output in outputs)
