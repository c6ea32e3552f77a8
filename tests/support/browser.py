"""A real browser, without a window, for pages that people look at."""

import shutil
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it will not run as root otherwise, as in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

_there_is_one = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium and driver here; install chromium and chromium-driver"
)


def needs_browser(test):
    """Mark a test that opens pages in a browser: it is slow, and skipped where there is none."""
    return pytest.mark.slow(_there_is_one(test))


@contextmanager
def chromium(width=1280, height=900):
    """Yield a selenium webdriver of a Chromium of its own; `get_log("browser")` has what pages print."""
    from selenium import webdriver

    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
        try:
            driver.set_page_load_timeout(60)
            yield driver
        finally:
            driver.quit()
