"""What the Dask dashboard shows of our tasks, beside what the server of the scenes has seen and on the real pages."""

import time

import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.metrics import context_meter

import s2composite as s2c
from s2composite.clusters.connect import show_meters
from s2composite.metrics import metered, record_value, running_workers
from support.browser import chromium, needs_browser
from support.http_faults import fault_server

LAYERS = ["composite", "count"]


def totals(client):
    """Return the sums of all workers in the dashboard's table, as the scheduler knows them."""
    workers = running_workers(client).values()
    names = {name for worker in workers for name in worker["metrics"]}
    columns = [name for name in names if name.endswith((" MB", " s")) or name in ("requests", "retries")]
    return {name: sum(worker["metrics"][name] for worker in workers) for name in columns}


def settled(client, column, expected, seconds=120):
    """Wait for the heartbeats that bring a column to a value; return all columns."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = totals(client)
        if found.get(column) == expected:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{column} is {found.get(column)}, not {expected}")


def told(client):
    """Return the seconds, bytes and counts of all tasks by kind of task and label, as the scheduler knows them."""
    return client.run_on_scheduler(
        lambda dask_scheduler: {
            k[1:]: v for k, v in dask_scheduler.cumulative_worker_metrics.items() if k[0] == "execute"
        }
    )


@pytest.fixture(scope="module")
def client():
    with s2c.connect("local", workers=2, threads=1, memory="1GB", dashboard=":0", announce=False) as client:
        yield client


@pytest.fixture(scope="module")
def measured(client, scenes_dir, tmp_path_factory):
    """A composite of scenes on a server that refuses each of them once; what was asked of it, the columns."""
    refused = []

    def fault(path, n):
        if n == 1:  # request 0 is for the header
            refused.append(path)
        return "503" if n == 1 else None

    with fault_server(scenes_dir, fault=fault) as server:
        urls = [server.url(path.name) for path in sorted(scenes_dir.glob("*.tif"))]
        cube = s2c.open_cube(urls, chunks=512)
        opened = len(server.state.requests)
        start = time.monotonic()
        s2c.composite(cube).to_raster(tmp_path_factory.mktemp("metered") / "median.tif", layers=LAYERS)
        took = time.monotonic() - start
        asked = server.state.requests[opened:]
    return asked, len(refused), took, settled(client, "requests", len(asked) - len(refused))


@pytest.mark.slow
def test_columns_say_what_the_server_was_asked_for(measured):
    asked, refused, took, columns = measured
    assert refused == 9
    assert columns["requests"] == len(asked) - refused == len(set(asked))
    assert columns["read MB"] == pytest.approx(sum(stop - start for _, start, stop in set(asked)) / 1e6, abs=2e-3)
    assert 0 < columns["decode s"] < 2 * took
    assert 0 < columns["kernel s"] < 2 * took
    assert 0 < columns["encode s"] < 2 * took
    assert columns["GDAL s"] == 0


@pytest.mark.slow
def test_kinds_of_tasks_have_words_for_names_and_their_seconds_add_up(client, measured):
    found = told(client)
    kinds = {kind for kind, _, _ in found}
    assert kinds
    assert all(kind.replace("-", "").replace("+", "").isalnum() for kind in kinds), kinds
    labels = {label for _, label, unit in found if unit == "seconds"}
    assert {"decode", "kernel", "encode"} <= labels
    seconds = sum(value for (_, label, unit), value in found.items() if unit == "seconds" and label != "other")
    assert seconds <= 2 * measured[2] * 1.1, "two threads cannot be busy for longer: something was counted twice"


KINDS = {
    # what travels to each worker once
    *("send-headers", "send-recipe", "send-file-plan", "send-store-plan"),
    # windows, and the layers in them
    *("composite-window", "take-composite", "take-count", "take-source", "write-window"),
    *("write-overview", "write-table-shares", "assemble-file"),
    # Dask's own: layers in other windows; it puts the chunks of a result together, and calls that so
    *("rechunk-merge", "rechunk-split", "getitem", "finalize-hlgfinalizecompute"),
}


def test_every_kind_of_task_says_what_is_done(scenes_dir, tmp_path):
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        comp = s2c.composite(s2c.open_cube(scenes_dir, chunks=256))
        comp.compute()
        comp.to_raster(tmp_path / "median.tif", layers="all", blocksize=128)
        comp.to_zarr(tmp_path / "median.zarr", chunk=128, pyramid=True)
        comp.to_stac(tmp_path / "median.json", blocksize=128, overwrite=True)
        kinds = set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes)))
    assert kinds <= KINDS, kinds - KINDS
    assert {"composite-window", "write-window", "write-overview", "assemble-file"} <= kinds


def test_seconds_in_gdal_are_told_apart(client, scenes_dir):
    before = told(client)
    cube = s2c.open_cube(scenes_dir, chunks=512, engine="gdal")
    s2c.composite(cube)["count"].compute()
    end = time.monotonic() + 120
    while totals(client)["GDAL s"] == 0:
        assert time.monotonic() < end
        time.sleep(0.05)
    after = told(client)

    def seconds(label):
        return sum(v - before.get(k, 0) for k, v in after.items() if k[1:] == (label, "seconds"))

    assert seconds("gdal") > 0
    assert seconds("decode") == 0


def test_outside_of_a_worker_nobody_listens(scenes_dir):
    heard = []
    with metered("kernel"):
        record_value("read", 1, "bytes")
    with context_meter.add_callback(lambda *told: heard.append(told)):
        with metered("outer"), metered("inner"):
            record_value("read", 5, "bytes")
            record_value("retry", 0, "count")
        s2c.composite(s2c.open_cube(scenes_dir, chunks=600)).dataset["count"].compute(scheduler="synchronous")
    assert heard[0] == ("read", 5, "bytes"), "and nothing of what is zero or was told before"
    assert {label for label, _, _ in heard[1:3]} == {"inner", "outer"}
    assert {label for label, _, _ in heard[3:]} == {"read", "decode", "kernel"}
    assert np.isfinite([value for _, value, _ in heard]).all()


def test_a_cluster_that_cannot_take_the_columns_works_without(caplog, monkeypatch):
    with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as client:
        monkeypatch.setattr("s2composite.metrics._COLUMNS", None)
        show_meters(client)
        assert "does not show what workers read" in caplog.text
        client.cluster.scale(2)
        client.wait_for_workers(2, timeout=120)
        assert client.submit(sum, [1, 2]).result() == 3


TABLE_CELLS = """
const cells = [], walk = (node) => {
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.children) {
    if (child.matches('.slick-cell, .slick-column-name')) cells.push(child.textContent.trim());
    walk(child);
  }
};
walk(document.body);
return cells;
"""

ACTIVITIES = """
const sources = Bokeh.documents.flatMap((d) => [...d._all_models.values()]).filter((m) => m.data?.activity);
return sources.flatMap((m) => [...m.data.activity]);
"""


@needs_browser
def test_the_pages_of_the_dashboard_show_it(client, measured):
    from selenium.webdriver.support.ui import WebDriverWait

    root = client.dashboard_link.rpartition("/")[0]
    with chromium(1500, 1000) as browser:
        wait = WebDriverWait(browser, 120)
        browser.get(f"{root}/workers")
        cells = wait.until(lambda b: (found := b.execute_script(TABLE_CELLS)) and "kernel s" in found and found)
        assert {"read MB", "requests", "retries", "decode s", "kernel s", "encode s"} <= set(cells)
        browser.get(f"{root}/individual-fine-performance-metrics")
        shown = wait.until(lambda b: (found := b.execute_script(ACTIVITIES)) and "kernel" in found and found)
        assert {"decode", "kernel", "encode"} <= set(shown)
