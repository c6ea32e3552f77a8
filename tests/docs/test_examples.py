"""The examples run as their first lines say, by themselves, and leave what these promise."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import rasterio

from s2composite.demo import make_scenes
from s2composite.jobs.schema import load_job
from support import ROOT

EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "MPLBACKEND": "Agg"}


def run(name, directory, *arguments):
    """Run an example in a directory; return what it prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(
        command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_first_composite(tmp_path):
    out = run("first_composite.py", tmp_path)
    assert out.strip().endswith("median.tif")
    with rasterio.open(tmp_path / "median.tif") as made:
        assert made.shape == (2048, 2048)
        assert (made.read() > 0).any(0).mean() > 0.95


@pytest.mark.slow
def test_months_and_zones(tmp_path):
    run("months_and_zones.py", tmp_path)
    table = pd.read_csv(tmp_path / "fields.csv")
    assert len(table) == 9 * 6 * 3  # zones, months, bands
    assert table["count"].gt(0).mean() > 0.9
    assert len(list(tmp_path.glob("median_2023??.tif"))) == 6
    assert (tmp_path / "months.png").stat().st_size > 10_000
    assert "<html" in (tmp_path / "months.html").read_text()


@pytest.mark.slow
def test_the_geometric_median_of_scenes_of_ones_own(tmp_path):
    make_scenes(str(tmp_path / "l2a"), scenes=5, size=512, assets=["B02", "B03", "B04", "B08", "SCL"])
    assert "geomedian.json" in run("l2a_geomedian.py", tmp_path, str(tmp_path / "l2a"))
    assert (tmp_path / "geomedian.json").exists()


@pytest.mark.slow
def test_a_mask_by_a_function_leaves_fewer_bright_pixels(tmp_path):
    assert run("mask_function.py", tmp_path).strip().endswith("clear.tif")
    bright = []
    for name in ("default.tif", "clear.tif"):
        with rasterio.open(tmp_path / name) as made:
            pixels = made.read()
        assert (pixels > 0).any(0).mean() > 0.95
        bright.append((pixels.min(0) > 100).mean())
    assert bright[1] < 0.6 * bright[0]


@pytest.mark.slow
def test_a_network_masks_clouds_and_its_classes_are_kept(tmp_path):
    pytest.importorskip("ukis_csmask", reason="needs s2composite[clouds]")
    assert run("cloud_masks.py", tmp_path).strip().endswith("cloud_net.tif")
    with rasterio.open(tmp_path / "cloud_net.tif") as made:
        assert (made.read() > 0).any(0).mean() > 0.5
    assert len(list((tmp_path / "masks").glob("*.tif"))) == 8


def test_products_in_zarr_and_cogs_are_composited_together(tmp_path):
    assert "same pixels" in run("zarr_products.py", tmp_path)


def test_the_job_file_is_a_job():
    assert load_job(EXAMPLES / "t31tcj.yaml").source == "gs://tb-be-bigdata/t31tcj/"
