"""The report of a job with failures, looked at in a real browser: what it says, that it is alone, that it keeps secrets."""

import json
from collections import Counter
from pathlib import Path

import pytest

import s2composite as s2c
from s2composite.jobs.schema import load_job
from s2composite.runner.ledger import ledger_root, read_ledger
from s2composite.runner.report import Report, WorkerDone, job_report, report_page, write_report
from s2composite.runner.run import run_job
from support.browser import chromium, needs_browser
from support.job_helpers import signed_job

SECRET = "VERYSECRETSIGNATURE"

SCRIPT = "<script>document.title = 'taken over'</script>"


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def job_with_failures(tmp_path_factory):
    """The job of a run in which the lower windows could not read one of three scenes on a server that wants signatures."""
    directory = tmp_path_factory.mktemp("reported")
    with signed_job(directory, 128, SECRET) as unsure:
        spec = {**unsure, "policy": {"attempts": 1}}
        with s2c.connect("local", workers=1, threads=2, memory="1GB", dashboard=":0", announce=False) as client:
            result = run_job(spec, client=client)
    assert 0 < len(result.failed) < result.windows == 25
    return load_job(spec)


@needs_browser
def test_the_page_shows_what_the_ledger_says(job_with_failures, browser):
    (_, page) = write_report(job_with_failures)
    browser.get(Path(page).as_uri())
    events = read_ledger(job_with_failures.output)
    last = {tuple(e["window"]): e["event"] for e in events if "window" in e}
    shown = [title.get_attribute("textContent") for title in browser.find_elements("css selector", "svg title")]
    states = {tuple(map(int, t.split(":")[0].split()[1].split("/"))): t.split()[2].strip(",:") for t in shown}
    assert states == last
    tiles = [e.text for e in browser.find_elements("css selector", "dl div")]
    counts = Counter(last.values())
    assert f"done\n{counts['done']} of 25" in tiles
    assert f"failed\n{counts['failed']}" in tiles
    assert browser.find_element("css selector", ".state").text == "failed"
    ((cause, windows),) = job_report(job_with_failures).causes()
    (group,) = browser.find_elements("css selector", "details")
    assert cause in group.text
    assert "damaged" in group.text
    assert group.text.startswith(str(counts["failed"]))
    assert all(f"{row}/{column}" in group.text for row, column in windows)
    table = browser.find_element("xpath", "//h2[text()='Workers']/../table").text
    (worker,) = {e["worker"] for e in events if "worker" in e}
    assert f"{worker} {counts['done']} " in table


@needs_browser
def test_the_page_is_alone_and_fits(job_with_failures, browser):
    (_, page) = write_report(job_with_failures)
    browser.get(Path(page).as_uri())
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.get_log("browser") == []
    width = "return [document.documentElement.scrollWidth, window.innerWidth]"
    content, window = browser.execute_script(width)
    assert content <= window, "no line sticks out of the page"


def test_signatures_are_nowhere(job_with_failures):
    write_report(job_with_failures)
    files = list(Path(ledger_root(job_with_failures.output)).iterdir())
    assert {file.name for file in files} >= {"report.json", "report.html"}
    for file in files:
        assert SECRET not in file.read_text(), file
    facts = json.loads(Path(ledger_root(job_with_failures.output), "report.json").read_text())
    assert "signature" not in facts["job"]
    assert "_TCI.tif" in facts["job"]


def report_of(shape, seconds, failures, state="failed", found=()):
    times = {"begun": "2026-01-01T00:00:00.000+00:00", "ended": "2026-01-02T01:00:00.000+00:00"}
    workers = {"tcp://10.0.0.1:1": WorkerDone(len(seconds), sum(seconds.values()), len(failures))}
    facts = {
        "timings": {"read": 1.0},
        "read": 0,
        "requests": 0,
        "retries": 0,
        "workers": workers,
        "failed_scenes": {},
        "versions": {},
    }
    return Report("source: x\n", state, ("median.tif",), shape, seconds, frozenset(found), failures, **facts, **times)


@needs_browser
def test_what_stands_in_an_error_is_text(browser, tmp_path):
    (tmp_path / "page.html").write_text(report_page(report_of((1, 2), {(0, 0): 1.0}, {(0, 1): SCRIPT})))
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.title == "median.tif"
    assert SCRIPT in browser.find_element("css selector", "details").text


@needs_browser
def test_many_windows_are_a_picture_with_the_same_colours(browser, tmp_path):
    seconds = {(row, column): 1.0 + row for row in range(60) for column in range(100)}
    failures = {(70, 3): "cause", (99, 99): "cause"}
    page = report_page(report_of((100, 100), seconds, failures))
    assert len(page) < 50_000
    (tmp_path / "page.html").write_text(page)
    browser.get((tmp_path / "page.html").as_uri())
    read = """
    const image = document.querySelector('figure img'), canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    return [[0, 0], [0, 59], [3, 70], [99, 99], [50, 80]].map((at) => [...context.getImageData(...at, 1, 1).data]);
    """
    fast, slow, *failed, unmade = browser.execute_script(read)
    assert failed == [[0xC8, 0x37, 0x2D, 255]] * 2
    assert unmade == [0xC9, 0xCE, 0xD6, 255]
    assert slow == [0x2F, 0x6F, 0xB7, 255]
    assert fast[3] < 80


def test_windows_that_were_not_noted_are_not_open():
    complete = report_of((2, 2), {(0, 0): 1.0}, {}, "complete", found=[(0, 1), (1, 0), (1, 1)])
    assert set(complete.states().values()) == {"done"}
    assert "window 1/1: done<" in report_page(complete)
    assert json.loads(complete.to_json())["done"] == 4
    interrupted = report_of((2, 2), {(0, 0): 1.0}, {}, "interrupted", found=[(1, 1)])
    assert interrupted.states() == {(0, 0): "done", (0, 1): "open", (1, 0): "open", (1, 1): "done"}
