"""The command line as a shell sees it: real processes, exit codes, stdout and stderr."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from rasters import encoded, series, write_tif
from typer.testing import CliRunner

import s2composite
from s2composite.cli import _flagged, app

COMMAND = [sys.executable, "-c", "from s2composite.cli import main; main()"]
WIDE = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


def shell(*arguments, cwd=None, timeout=120):
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=WIDE, timeout=timeout, check=False)


def refused(done, *says):
    """Assert that a command ended as one that was used wrongly: code 2, one line on stderr, no traceback."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    for words in says:
        assert words in done.stderr


def test_version_and_help():
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).stdout == f"s2composite {s2composite.__version__}\n"
    for arguments in ([], ["--help"]):
        out = runner.invoke(app, arguments).output
        assert all(f" {command} " in out for command in ("demo", "run", "scenes"))


def test_the_command_is_installed():
    script = Path(sys.executable).with_name("s2composite")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"s2composite {s2composite.__version__}\n"


def test_help_imports_no_heavy_library():
    code = (
        "import sys\nfrom s2composite.cli import main\nsys.argv = ['s2composite', 'run', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'dask', 'numba', 'numpy', 'rasterio', 'xarray'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["run"], ["scenes"], ["dance"], ["run", "job.yaml", "--fast"], ["--fast"]])
def test_wrong_usage_is_code_2(arguments):
    done = shell(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# --- scenes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """Four scenes alike, and five that differ in one thing each."""
    series(tmp_path, 4)
    odd = {
        "size": {"array": encoded(1, height=100)},
        "blocks": {"array": encoded(1), "block": 32},
        "compression": {"array": encoded(1), "compress": "lzw"},
        "dtype": {"array": encoded(1).astype("uint16")},
        "bands": {"array": encoded(1, bands=1)},
    }
    for day, options in enumerate(odd.values(), 1):
        write_tif(tmp_path / f"T31TCJ_202307{day:02d}T104629_TCI.tif", **options)
    (tmp_path / "T31TCJ_20230801T104629_TCI.tif").write_bytes(b"not a raster")
    return tmp_path, list(odd)


def test_scenes_as_json(mixed):
    directory, kinds = mixed
    done = shell("scenes", directory, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert [row["odd"] for row in rows] == [[]] * 4 + [[kind] for kind in kinds] + [["error"]]
    for row in rows[:-1]:  # against rasterio
        with rasterio.open(row["href"]) as dataset:
            assert row["size"] == list(dataset.shape)
            assert row["blocks"] == list(dataset.block_shapes[0])
            assert row["compression"] == dataset.compression.value.upper()
            assert (row["dtype"], row["bands"]) == (dataset.dtypes[0], dataset.count)
            assert row["grid"] == list(dataset.transform)[:6]
    assert rows[0]["time"] == "2023-06-01T10:46:29Z"
    assert rows[0]["granule"] == "31TCJ"
    assert "T31TCJ_20230801T104629_TCI.tif" in rows[-1]["error"]


def test_scenes_as_table(mixed):
    directory, kinds = mixed
    done = shell("scenes", directory)
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines, total = done.stdout.splitlines()
    assert head.split()[:3] == ["time", "granule", "id"]
    assert len(lines) == 10
    noted = [line.rstrip().split("  ")[-1].strip() for line in lines]
    assert noted[:4] == ["uint8"] * 4  # the column before the last: nothing to note
    assert noted[4:9] == kinds
    assert "not" in noted[9]
    assert total == "10 scenes, 10 files, 6 unlike the majority"
    assert "200 x 136" in lines[0]
    assert "64 x 64" in lines[0]
    assert lines[0].rstrip().endswith("uint8")


def test_scenes_selects_dates(tmp_path):
    series(tmp_path, 5)
    rows = json.loads(shell("scenes", tmp_path, "--datetime", "2023-06-06/2023-06-11", "--json").stdout)
    assert [row["time"][:10] for row in rows] == ["2023-06-06", "2023-06-11"]


def test_scenes_of_several_sources(tmp_path):
    files = series(tmp_path, 3)
    assert len(json.loads(shell("scenes", *files[:2], "--json").stdout)) == 2


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.tif"])
def test_scenes_of_nothing(tmp_path, source):
    refused(shell("scenes", tmp_path / source), "nowhere")


def test_scenes_without_a_date(tmp_path):
    write_tif(tmp_path / "holiday.tif", encoded(0))
    refused(shell("scenes", tmp_path), "holiday.tif", "date")


def test_majority_is_of_the_same_asset():
    rows = [{"asset": asset, "size": size} for asset, size in [("B02", [10, 10]), ("SCL", [5, 5]), ("SCL", [5, 5])]]
    assert [row["odd"] for row in _flagged(rows)] == [[], [], []]


# --- run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("source: nowhere\noutput: a.tif\n", [], ["nowhere"]),
        ("source: [a\n", [], ["job.yaml, line 2", "not valid YAML"]),
        ("source: a\noutput: a.tif\nchunk: 5\n", [], ["job.yaml, line 3", "did you mean 'chunks'?"]),
        ("source: a\noutput: a.tif\n", ["-s", "chunks=big"], ["-s chunks=big", "'auto'"]),
        ("source: a\noutput: a.tif\n", ["--performance-report", "no/r.html"], ["performance_report", "no/r.html"]),
    ],
)
def test_run_refuses_bad_jobs(tmp_path, text, arguments, says):
    (tmp_path / "job.yaml").write_text(text)
    refused(shell("run", "job.yaml", *arguments, cwd=tmp_path), *says)


def test_run_without_the_file(tmp_path):
    refused(shell("run", "job.yaml", cwd=tmp_path), "job.yaml: there is no such job file", str(tmp_path))
