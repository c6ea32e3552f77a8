"""Take the pictures of Dask's dashboard that the second notebook shows: real runs, seen by a real browser.

Run it anywhere: ``python docs/dashboard_pictures.py``. It needs ``pip install selenium`` and Chromium or Chrome, makes
1.5 GB of scenes in a temporary directory, and takes two minutes on two cores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from selenium import webdriver

import s2composite as s2c
from s2composite.demo import make_scenes

PICTURES = Path(__file__).parent / "pages" / "assets"
COLOURS = 96
"""Of a picture: enough for bars and letters, and a third of the bytes."""


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a browser without a window."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options)
    try:
        yield driver
    finally:
        driver.quit()


def photograph(driver: Any, name: str, size: tuple[int, int]) -> None:
    """Write what the browser shows."""
    driver.set_window_size(*size)
    time.sleep(2)  # until the plots have taken up the new size
    path = PICTURES / f"dashboard_{name}.png"
    driver.save_screenshot(str(path))
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    sys.stdout.write(f"{path}: {path.stat().st_size // 1000} kB\n")


@contextmanager
def looking_at(client: Any, page: str) -> Iterator[Any]:
    """Yield a browser that looks at a page of the dashboard."""
    with browser() as driver:
        driver.get(client.dashboard_link.replace("/status", page))
        time.sleep(3)  # the first look at a page of Bokeh takes a while
        yield driver


def while_it_runs(files: tuple[str, ...]) -> None:
    """Take a picture of the status page in the middle of a long composite."""
    with s2c.connect("local", workers=2, threads=1, memory="2GB") as client, looking_at(client, "/status") as driver:
        running = client.compute(s2c.composite(s2c.open_cube(files)).dataset["composite"].data)
        time.sleep(14)
        photograph(driver, "status", (1300, 900))
        running.cancel()


def task_stream(files: tuple[str, ...], name: str, chunks: str | int) -> None:
    """Take a picture of the tasks of a square of 1024 pixels, with windows of some size."""
    cluster = s2c.connect("local", workers=2, threads=1, memory="2GB")
    with cluster as client, looking_at(client, "/individual-task-stream") as driver:
        comp = s2c.composite(s2c.open_cube(files, chunks=chunks).isel(y=slice(0, 1024), x=slice(0, 1024)))
        start = time.perf_counter()
        comp.compute()
        sys.stdout.write(f"chunks={chunks!r}: {time.perf_counter() - start:.1f} s\n")
        photograph(driver, f"stream_{name}", (1300, 260))


def main() -> None:
    """Make the scenes, do the work, take the pictures."""
    with TemporaryDirectory() as directory:
        files = make_scenes(directory, scenes=216, size=4096, distinct=8)
        while_it_runs(files)
        task_stream(files, "good", 512)
        task_stream(files, "small", 64)


if __name__ == "__main__":
    main()
