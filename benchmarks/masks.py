"""Agreement of cloud masks: of each two, the share of observed pixels for which they say the same, and what each takes.

    python benchmarks/masks.py DIRECTORY                       # scenes of Sentinel-2 L2A with SCL, of different dates
    python benchmarks/masks.py DIRECTORY --days 9 --picture masks.png --scene 3

None of them is the truth. The picture shows one scene with what each mask drops. Rules that scenes lack a band for are
left out, and `CloudNet` where its packages are not installed.
"""

from __future__ import annotations

import argparse
import time
from io import BytesIO

import dask
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import s2composite as s2c
from s2composite.cube import tile_masks

COLOURS = ("B04", "B03", "B02")
RULES = {
    "SCL": s2c.SCL(),
    "SCL, cleaned": s2c.SCL(cleanup=[("opening", 2), ("dilation", 5)]),
    "CloudProbability(40)": s2c.CloudProbability(40),
    "CloudNet": s2c.CloudNet(),
}
TINT = np.array([1.0, 0.1, 0.4])
"""Of what is dropped."""


def kept(cube, rule):
    """Return which pixels of each date a rule keeps, ``(t, y, x)``."""
    dates = {date: date for date in np.datetime_as_string(cube.time.values, "D")}
    comp = s2c.composite(cube, "latest", valid=[s2c.Nodata(), rule], period=dates)
    return comp["count"].values > 0


def agreement(cube, masks):
    """Print a table of agreement, and the share that each mask drops."""
    observed = (cube != 0).all("band").values
    print(f"{'':22}" + "".join(f"{name:>22}" for name in masks) + f"{'dropped':>12}")
    for name, mask in masks.items():
        same = [f"{100 * (mask == other)[observed].mean():20.1f} %" for other in masks.values()]
        print(f"{name:22}" + "".join(same) + f"{100 * (~mask)[observed].mean():10.1f} %")


def draw(cube, masks, scene, path):
    """Draw a scene with what each mask drops."""
    colours = cube.isel(time=scene).transpose("y", "x", "band").values.astype(float)
    picture = np.clip(colours / np.percentile(colours[colours > 0], 98), 0, 1)
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.6), layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    drawn = {str(cube.time.values[scene])[:10]: picture}
    for name, mask in masks.items():
        drawn[name] = np.where(mask[scene][..., None], picture, 0.5 * picture + 0.5 * TINT)
    for ax, (name, pixels) in zip(axes.flat, drawn.items(), strict=False):
        ax.imshow(pixels)
        ax.set_title(name)
    page = BytesIO()
    figure.savefig(page, format="png", dpi=90)
    Image.open(page).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--days", type=float, default=45, help="of `TemporalMask`: fewer for a short series")
    parser.add_argument("--picture", help="file to draw a scene to")
    parser.add_argument("--scene", type=int, default=0, help="number of the scene to draw")
    args = parser.parse_args()
    cube = s2c.open_cube(args.directory, bands=list(COLOURS)).compute()
    lazy = s2c.open_cube(args.directory, bands=list(COLOURS))
    masks = {}
    rules = {**RULES, "TemporalMask": s2c.TemporalMask(days=args.days)}
    for name, rule in rules.items():
        with dask.config.set(scheduler="synchronous"):
            try:
                kept(lazy, rule)  # kernels are compiled, and models loaded
            except s2c.S2CompositeError as error:
                print(f"{name}: left out, {error}")
                continue
            tile_masks._TILES.clear()
            start = time.process_time()
            masks[name] = kept(lazy, rule)
            took = (time.process_time() - start) / cube.sizes["time"]
            print(f"{name}: {took:.3f} s of one core a scene of {cube.shape[2]} x {cube.shape[3]}, with reading it")
    agreement(cube, masks)
    if args.picture:
        draw(cube, masks, args.scene, args.picture)


if __name__ == "__main__":
    main()
