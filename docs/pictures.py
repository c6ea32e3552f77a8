"""Draw the pictures of the front page and of the guides: a season of generated scenes, as the library draws it.

Run it anywhere: ``python docs/pictures.py``. It takes a minute on two cores. With a directory of true-colour scenes it
draws only their first and last month, without and with masks from the series: ``python docs/pictures.py scenes``.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
from PIL import Image

import s2composite as s2c
from s2composite.demo import make_scenes

PICTURES = Path(__file__).parent / "pages" / "assets"
COLOURS = 256
"""Of a picture: enough for fields and letters, and half of the bytes."""


def keep(name: str, drawn: Any) -> None:
    """Write what was drawn, a figure or axes, with few colours."""
    figure = getattr(drawn, "figure", None) or drawn
    page = BytesIO()
    figure.savefig(page, format="png", dpi=90, bbox_inches="tight")
    plt.close(figure)
    Image.open(page).convert("RGB").quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE).save(
        PICTURES / name, optimize=True
    )


def main() -> None:
    """Draw all pictures."""
    with TemporaryDirectory() as directory:
        make_scenes(directory, scenes=24, size=1024, seed=1, assets=("TCI", "SCL"))
        cube = s2c.open_cube(directory, bands=["TCI"])
        comp = s2c.composite(cube).compute()
        keep("demo.png", comp.plot.before_after(cube))
        keep("timeline.png", comp.plot.timeline(cube))
        clear = [s2c.Nodata(), s2c.SCL(cleanup=[("opening", 2), ("dilation", 5)])]
        months = s2c.composite(cube, valid=clear, period="month").compute()
        keep("periods.png", months.plot.periods(columns=3))
        keep("dates.png", months.period("2023-07").plot.date())
    with TemporaryDirectory() as directory:
        make_scenes(directory, scenes=24, size=1024)
        figure, axes = plt.subplots(1, 2, figsize=(9, 4.8))
        for ax, (title, more) in zip(
            axes, (("default rules", []), ("with TemporalMask()", ["temporal_mask"])), strict=True
        ):
            comp = s2c.composite(s2c.open_cube(directory), valid=["nodata", "saturated", *more])
            comp.compute().isel(y=slice(500, 1000), x=slice(500, 1000)).plot(ax=ax)
            ax.set_title(title)
            ax.set_axis_off()
        keep("temporal_mask.png", figure)


def months(directory: str) -> None:
    """Draw the first and the last month of real scenes, without and with masks from the series."""
    cube = s2c.open_cube(directory)
    figure, axes = plt.subplots(2, 2, figsize=(9, 9), layout="constrained")
    for row, (title, more) in zip(
        axes, (("default rules", []), ("with TemporalMask()", ["temporal_mask"])), strict=True
    ):
        comp = s2c.composite(cube, valid=["nodata", "saturated", *more], period="month").compute()
        for ax, number in zip(row, (0, -1), strict=True):
            month = comp["composite"].isel(time=number)
            ax.imshow(month.transpose("y", "x", "band"))
            ax.set_title(f"{month['time'].dt.strftime('%B %Y').item()}, {title}")
            ax.set_axis_off()
    keep("temporal_mask_months.png", figure)


if __name__ == "__main__":
    plt.switch_backend("agg")
    months(sys.argv[1]) if sys.argv[1:] else main()
