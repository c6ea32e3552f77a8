"""The page of the service in a real browser."""

import re
from urllib.parse import urlsplit

from s2composite.service.views import jobs_page
from support.browser import chromium, needs_browser
from support.rasters import series
from support.services import served

TOKEN = "correct-horse-battery-staple"


@needs_browser
def test_jobs_page_loads_no_external_resources(tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    (tmp_path / "scenes").mkdir()
    (tmp_path / "store").mkdir()
    series(tmp_path / "scenes", scenes=3)
    settings = {"read": [str(tmp_path / "scenes")], "storage": str(tmp_path / "store")}
    with served(tmp_path / "run", token=TOKEN, **settings) as service, chromium(1100, 700) as browser:
        request = {"source": str(tmp_path / "scenes"), "output": "<b>median.tif", "chunks": 64}
        assert service.post("/jobs", request).status_code == 422
        good = service.post("/jobs", request | {"output": "median.tif", "raster": {"blocksize": 64}}).json()["id"]
        broken = service.post("/jobs", request | {"output": "m.tif", "bands": ["<script>alert(1)</script>"]}).json()[
            "id"
        ]
        # A browser shows the token as a password.
        browser.get(service.url.replace("http://", f"http://me:{TOKEN}@"))
        wait = WebDriverWait(browser, 120)
        # It loads itself again while jobs run.
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, f"#job-{good} .complete"))
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, f"#job-{broken} .failed"))
        assert "12 of 12" in browser.find_element(By.ID, f"job-{good}").text
        bar = browser.find_element(By.CSS_SELECTOR, f"#job-{good} progress")
        assert float(bar.get_attribute("value")) == 1.0
        picture = browser.find_element(By.CSS_SELECTOR, f"#job-{good} img")
        wait.until(lambda b: picture.get_property("naturalWidth") == 136)
        assert "<script>alert(1)</script>" in browser.find_element(By.ID, f"job-{broken}").text, "text and not markup"
        assert not browser.find_elements(By.TAG_NAME, "script")
        assert "refresh" not in browser.page_source, "nothing runs any more"
        used = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
        assert used
        assert {urlsplit(name).port for name in used} == {urlsplit(service.url).port}, "nothing from elsewhere"
        links = {a.text: a.get_attribute("href") for a in browser.find_elements(By.CSS_SELECTOR, f"#job-{good} a")}
        browser.get(links["report"])
        assert len(browser.find_elements(By.TAG_NAME, "rect")) == 12
        browser.get(links["log"])
        assert "written: " in browser.page_source
        errors = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
        assert [e for e in errors if not re.search(r"favicon\.ico", e)] == []
    assert TOKEN not in service.log()


@needs_browser
def test_long_names_and_errors_stay_within_the_page(tmp_path):
    from selenium.webdriver.common.by import By

    facts = {"state": "failed", "progress": 0.4, "counts": {"windows": 9, "done": 4, "failed": 1}, "ended": None}
    facts |= {
        "id": "0" * 36,
        "output": f"/x/{'a' * 100}.tif",
        "error": "b" * 1000 + "<b>",
        "created": "2023-06-01T00:00",
    }
    facts["products"] = [{"state": "complete"}, {"state": "new"}]
    page = tmp_path / "page.html"
    page.write_text(jobs_page([facts] * 3, 7, 0, 0))
    with chromium(1280, 900) as browser:
        browser.get(page.as_uri())
        wide = "return [document.documentElement.scrollWidth, window.innerWidth]"
        needed, there = browser.execute_script(wide)
        assert needed <= there
        text = browser.find_element(By.TAG_NAME, "body").text
        assert "1 of 2 products" in text
        assert "4 older jobs" in text
        folded = browser.find_element(By.TAG_NAME, "details")
        before = folded.size["height"]
        folded.find_element(By.TAG_NAME, "summary").click()
        assert folded.size["height"] > before, "the rest of a long error unfolds"
        assert "<b>" in folded.text, "text and not markup"
        needed, there = browser.execute_script(wide)
        assert needed <= there
