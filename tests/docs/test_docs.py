"""The documentation: every block of code runs, the site builds without a warning and opens without a network."""

import json
import os
import re
import shutil
import subprocess
import sys
import zlib

import matplotlib.pyplot as plt
import pytest
from distributed import LocalCluster

import s2composite
from s2composite.pixels import reducers as registry
from support.browser import chromium, needs_browser
from support.doc_blocks import ROOT, Reader, blocks, directory, pages
from support.stac_items import search_server

START = ROOT / "docs" / "pages" / "index.md"
"""The page whose first block of Python makes the scenes that all pages use."""

DATA = ("scenes", "l2a", "items")
BUCKET = "gs://tb-be-bigdata/t31tcj/"
CATALOGUES = ("https://earth-search.aws.element84.com/v1", "https://planetarycomputer.microsoft.com/api/stac/v1")
FIELDS = {
    "type": "Polygon",
    "coordinates": [[[0.505, 44.19], [0.515, 44.19], [0.515, 44.2], [0.505, 44.2], [0.505, 44.19]]],
}
"""A field among the scenes, which a reader of the README has a file of."""

PAGES = [page for page in pages() if blocks(page)]


@pytest.fixture(autouse=True)
def reducers_of_its_own(monkeypatch):
    """Reducers that a page registers are not there for anybody else."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    with directory(home):
        first = next(block for block in blocks(START) if block.language == "python")
        Reader(None, {}).read(first)
    assert {path.name for path in home.iterdir()} == set(DATA)
    return home


@pytest.fixture(scope="module")
def address():
    """A scheduler whose workers are threads of this process: kernels are compiled once for all pages."""
    # A limit of memory out of reach: what is compared with it is the memory of the whole process of the tests,
    # and workers over their limit are paused.
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0", memory_limit="64GB"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def catalogue(data):
    """A server that is searched in the place of catalogues."""
    found = [json.loads(path.read_text()) for path in sorted((data / "items").glob("*.json"))]
    for item in found:
        for asset in item["assets"].values():
            asset["href"] = str((data / "items" / asset["href"]).resolve())
    with search_server(found, page=100) as (url, _):
        yield url


@pytest.mark.filterwarnings("ignore:Support for class-based")  # of planetary-computer
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # odc-loader warps into memory
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=() if page == START else pytest.mark.slow) for page in PAGES],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_block_of_a_page_runs(page, data, address, catalogue, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    if page != START:
        for name in DATA:  # copies: a page may break a scene to show what happens
            shutil.copytree(data / name, tmp_path / name)
    (tmp_path / "fields.geojson").write_text(json.dumps(FIELDS))
    reader = Reader(address, {BUCKET: str(tmp_path / "l2a"), **dict.fromkeys(CATALOGUES, catalogue)})
    with directory(tmp_path):
        for block in blocks(page):
            if block.not_run is None:
                reader.read(block)
        reader.finish()
    plt.close("all")


def test_nearly_every_block_is_run():
    found = [block for page in pages() for block in blocks(page)]
    left_out = [block for block in found if block.not_run]
    assert len(found) > 60
    assert len(left_out) < len(found) / 5, [block.where for block in left_out]


# --- The site ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocstrings", reason="needs pip install 's2composite[docs]'")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml", "-d", str(target)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return target


@pytest.mark.slow
def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?([^\"> ]+)", page.read_text())
        assert loaded
        for href in loaded:
            assert "//" not in href, f"{page.name} loads {href}"
            if page.name != "404.html" and not href.startswith("#"):
                assert (page.parent / href.partition("#")[0].partition("?")[0]).exists(), f"{page.name}: {href}"


@needs_browser
def test_the_site_is_searched_from_the_disk(site):
    """In a browser, from file://, where the index lies in a script and the search runs in a frame."""
    from selenium.webdriver.support.ui import WebDriverWait

    with chromium() as driver:
        driver.get((site / "guides" / "masks.html").as_uri())
        waiting = WebDriverWait(driver, 120)
        box = waiting.until(lambda d: d.find_element("css selector", ".md-search__input"))
        driver.execute_script("arguments[0].focus()", box)
        waiting.until(lambda d: "Initializing" not in text_of(d, ".md-search-result__meta"))
        driver.switch_to.active_element.send_keys("geomedian")
        waiting.until(lambda d: "matching document" in text_of(d, ".md-search-result__meta"))
        found = [link.get_attribute("href") for link in driver.find_elements("css selector", ".md-search-result__link")]
        assert any(
            "api/reducers.html" in href and href.endswith("#s2composite.pixels.spectral.geomedian") for href in found
        )
        assert driver.get_log("browser") == []


def text_of(driver, selector):
    return driver.find_element("css selector", selector).get_attribute("textContent")


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    known = (site / "objects.inv").read_bytes()
    listed = zlib.decompress(known.split(b"\n", 4)[4]).decode()
    names = {line.split(" ")[0] for line in listed.splitlines()}
    missing = [name for name in s2composite.__all__ if f"s2composite.{name}" not in names]
    assert missing == []


@pytest.mark.slow
def test_commands_are_those_of_the_command_line(site):
    page = (site / "api" / "cli.html").read_text()
    from s2composite.cli import app

    for command in app.registered_commands:
        assert f"s2composite {command.name or command.callback.__name__}" in page
