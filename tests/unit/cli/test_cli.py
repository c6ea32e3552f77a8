"""The command line: exit codes, stdout and stderr, of real processes where these matter."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
import xarray as xr
from typer.testing import CliRunner

import s2composite
from s2composite.cli import _flagged, app, main
from s2composite.demo import make_scenes
from s2composite.runner.run import run_job
from support.http_faults import Gate, fault_server
from support.job_helpers import until
from support.rasters import encoded, series, write_tif

COMMAND = [sys.executable, "-c", "from s2composite.cli import main; main()"]
WIDE = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


def shell(*arguments, cwd=None, timeout=120):
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=WIDE, timeout=timeout, check=False)


def here(monkeypatch, capfd, *arguments, cwd):
    """Do as `shell` in this process, which has imported all there is."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["s2composite", *map(str, arguments)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.setenv(name, WIDE[name])
    with pytest.raises(SystemExit) as ended:
        main()
    return subprocess.CompletedProcess(arguments, ended.value.code, *capfd.readouterr())


def refused(done, *says):
    """Assert that a command ended with a usage error: code 2, one line on stderr, no traceback."""
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
    """Four equal scenes, and five that differ in one property each."""
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


@pytest.mark.slow
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
    assert noted[:4] == ["—"] * 4  # the column before the last, of what says which pixels are valid: nothing to note
    assert noted[4:9] == kinds
    assert "not" in noted[9]
    assert total == "10 scenes, 10 files, 6 unlike the majority"
    assert "200 x 136" in lines[0]
    assert "64 x 64" in lines[0]
    assert lines[0].split()[-2:] == ["uint8", "—"]


@pytest.mark.slow
def test_scenes_selects_dates(tmp_path):
    series(tmp_path, 5)
    rows = json.loads(shell("scenes", tmp_path, "--datetime", "2023-06-06/2023-06-11", "--json").stdout)
    assert [row["time"][:10] for row in rows] == ["2023-06-06", "2023-06-11"]


@pytest.mark.slow
def test_scenes_of_several_sources(tmp_path):
    files = series(tmp_path, 3)
    assert len(json.loads(shell("scenes", *files[:2], "--json").stdout)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.tif"])
def test_scenes_without_any_scene(tmp_path, source):
    refused(shell("scenes", tmp_path / source), "nowhere")


@pytest.mark.slow
def test_scenes_without_a_date(tmp_path):
    write_tif(tmp_path / "holiday.tif", encoded(0))
    refused(shell("scenes", tmp_path), "holiday.tif", "date")


def test_scenes_are_compared_by_asset():
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
def test_run_refuses_bad_jobs(tmp_path, text, arguments, says, monkeypatch, capfd):
    (tmp_path / "job.yaml").write_text(text)
    refused(here(monkeypatch, capfd, "run", "job.yaml", *arguments, cwd=tmp_path), *says)


def test_a_process_that_refuses_a_job_ends_with_code_2(tmp_path):
    (tmp_path / "job.yaml").write_text("source: nowhere\noutput: a.tif\n")
    refused(shell("run", "job.yaml", cwd=tmp_path), "nowhere")


@pytest.mark.slow
def test_run_without_the_file(tmp_path):
    refused(shell("run", "job.yaml", cwd=tmp_path), "job.yaml: there is no such job file", str(tmp_path))


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    """Five lossless scenes, and their composite by NumPy: for each pixel the median of a stable sort by luminance."""
    directory = tmp_path_factory.mktemp("season")
    series(directory, 5)
    stack = np.stack([encoded(t) for t in range(5)])
    valid = ((stack != 0) & (stack != 255)).all(axis=1)
    luminance = np.where(valid, stack.sum(axis=1, dtype=int), 10_000)
    count = valid.sum(axis=0)
    order = np.argsort(luminance, axis=0, kind="stable")
    source = np.take_along_axis(order, (count // 2)[None], axis=0)
    median = np.take_along_axis(stack, source[:, None], axis=0)[0]
    return directory, np.where(count, median, 0), count


def job_file(directory, season, **keys):
    file = directory / "job.yaml"
    lines = {
        "source": season[0],
        "output": "median.tif",
        "cluster": "{workers: 1, dashboard: ':0'}",
        "chunks": 64,
        **keys,
    }
    file.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return file


@pytest.mark.slow
def test_run_writes_the_composite(tmp_path, season):
    job_file(tmp_path, season)
    (tmp_path / "median.tif").write_text("precious")
    done = shell("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert all(word in done.stderr.splitlines()[-1] for word in ("median.tif", "overwrite"))
    assert (tmp_path / "median.tif").read_text() == "precious"

    done = shell("run", "job.yaml", "--overwrite", "-s", "chunks=128", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary, path = done.stdout.splitlines()
    assert summary.startswith("5 scenes, 200 x 136 pixels, 1 window in ")
    assert Path(path) == tmp_path / "median.tif"
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), season[1])
        assert dataset.crs.to_epsg() == 32631
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.yaml", "median.tif", "median.tif.ledger"]

    done = shell("run", "job.yaml", "-s", "chunks=128", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith(" s, complete before: nothing was made")


@pytest.mark.slow
def test_run_writes_a_report_of_its_performance(tmp_path, season):
    job_file(tmp_path, season)
    done = shell("run", "job.yaml", "--performance-report", "report.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bokeh" in (tmp_path / "report.html").read_text().lower()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.yaml", "median.tif", "median.tif.ledger", "report.html"]


def test_run_job_writes_layers(tmp_path, season, client):
    job = {"source": str(season[0]), "output": str(tmp_path / "a.tif"), "layers": ["composite", "count"], "chunks": 64}
    result = run_job({**job, "cluster": "tcp://127.0.0.1:1"}, client=client)  # the client counts, not the job's cluster
    # Windows of a job are whole tiles of its files, and these are smaller than one.
    assert (result.scenes, result.shape, result.windows) == (5, (200, 136), 1)
    assert [Path(path).name for path in result.paths] == ["a.tif", "a_count.tif"]
    with rasterio.open(result.paths[0]) as composite, rasterio.open(result.paths[1]) as count:
        np.testing.assert_array_equal(composite.read(), season[1])
        np.testing.assert_array_equal(count.read(1), season[2])
    assert client.submit(sum, [1, 2]).result() == 3  # still open


def test_run_job_writes_zarr(tmp_path, season, client):
    result = run_job({"source": str(season[0]), "output": str(tmp_path / "a.zarr")}, client=client)
    with xr.open_zarr(result.paths[0]) as store:
        np.testing.assert_array_equal(store["composite"], season[1])
        np.testing.assert_array_equal(store["count"], season[2])


def test_run_job_selects_dates_and_area(tmp_path, season, client):
    box = {"bbox": [300320, 4899000, 300960, 4899700], "bbox_crs": "EPSG:32631", "datetime": "2023-06-06/.."}
    result = run_job({"source": str(season[0]), "output": str(tmp_path / "a.tif"), **box}, client=client)
    assert (result.scenes, result.shape) == (4, (70, 64))
    with rasterio.open(result.paths[0]) as dataset:
        assert tuple(dataset.bounds) == (300320, 4899000, 300960, 4899700)


def test_run_job_passes_the_reducer_its_parameters(tmp_path, season, client):
    job = {"source": str(season[0]), "reducer": {"rank": {"key": "red", "quantile": 1}}}
    result = run_job({**job, "output": str(tmp_path / "a.tif")}, client=client)
    stack = np.stack([encoded(t) for t in range(5)])
    valid = ((stack != 0) & (stack != 255)).all(axis=1)
    with rasterio.open(result.paths[0]) as dataset:
        np.testing.assert_array_equal(dataset.read(1), np.where(valid, stack[:, 0], 0).max(axis=0))


def test_run_names_the_scene_that_is_broken(tmp_path, season):
    files = [Path(file) for file in series(tmp_path, 3)]
    files[1].write_bytes(files[1].read_bytes()[:-9000])
    job_file(tmp_path, (tmp_path, None))
    done = shell("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "T31TCJ_20230606T104629" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*median*"))


@pytest.mark.slow
def test_interrupt_is_code_130_and_leaves_no_file(tmp_path):
    make_scenes(tmp_path / "scenes", scenes=3, size=600, compress="deflate", distinct=1)
    gate = Gate(0.7)  # what the lower windows need does not come: there is a middle in which to press Ctrl-C
    with fault_server(tmp_path / "scenes", gate=gate) as server:
        urls = [server.url(path.name) for path in sorted((tmp_path / "scenes").glob("*.tif"))]
        job_file(tmp_path, (json.dumps(urls), None), raster="{blocksize: 64}")
        command = [*COMMAND, "run", "job.yaml"]
        with subprocess.Popen(command, cwd=tmp_path, env=WIDE, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr.readline().startswith("Dask: ")
                children = psutil.Process(process.pid).children(recursive=True)
                assert len(children) >= 1
                ledger = tmp_path / "median.tif.ledger"
                until(lambda: any('"event":"done"' in file.read_text() for file in ledger.glob("*.jsonl")))
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=200)
                assert process.returncode == 130, err
                assert "Traceback" not in err
                _, alive = psutil.wait_procs(children, timeout=60)
                assert not alive
            finally:
                gate.open()
                process.kill()
    # What has been made is kept for the next run, beside the ledger that says so.
    assert not (tmp_path / "median.tif").exists()
    assert all(path.suffix in (".ledger", ".parts") for path in tmp_path.glob("*median*"))


# --- demo -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_writes_the_listed_files(tmp_path):
    done = shell("demo", "--directory", "out", "--scenes", 5, "--size", 256, "--workers", 1, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    named = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert named == ["out/median.png", "out/median.tif", "out/median_count.tif", "out/median_source.tif", "out/scenes"]
    assert all((tmp_path / name).exists() for name in named)
    with rasterio.open(tmp_path / "out" / "median.tif") as dataset:
        assert dataset.shape == (256, 256)
        assert dataset.read().std() > 5
    assert len(list((tmp_path / "out" / "scenes").glob("*.tif"))) == 5


@pytest.mark.slow
def test_demo_rejects_invalid_options(tmp_path):
    refused(shell("demo", "--scenes", 2, "--size", 64, "--compress", "zip", cwd=tmp_path), "zip", "jpeg")
    (tmp_path / "taken").write_text("a file")
    refused(shell("demo", "--scenes", 2, "--size", 64, "--directory", "taken", cwd=tmp_path), "taken")
    assert shell("demo", "--size", 20000, cwd=tmp_path).returncode == 2
