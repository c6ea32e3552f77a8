# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A catalogue, cloud masks from classes, and the geometric median
#
# The [first notebook](01_first_composite.py) composited true-colour files in a directory. Scientists mostly use *surface
# reflectance*, a file for each band, from a STAC catalogue, with a *scene classification* that marks the clouds. From these
# we compute the composite used for national products, the geometric median, and look at its measures of variation.
#
# All scenes and the catalogue are generated, so nothing is downloaded; the last section has the lines that change.

# %% tags=["parameters"]
DIRECTORY = "stac_scl_geomedian"  # where scenes and results go
SCENES = 24  # acquisitions
SIZE = 400  # rows and columns of 10 m

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import s2composite as s2c
from matplotlib.colors import BoundaryNorm, ListedColormap
from s2composite.demo import make_items, make_scenes

directory = Path(DIRECTORY)
make_scenes(directory / "l2a", scenes=SCENES, size=SIZE, seed=3, assets=["B02", "B03", "B04", "B08", "SCL"])
items = make_items(directory / "l2a", directory / "items")
print(len(items), "items, the first:", Path(items[0]).name)

# %% [markdown]
# ## STAC items
#
# A STAC item is a small JSON document about one acquisition: when, where, which files, on which grid, how cloudy. A cube can
# be opened from items without looking into a single file. Bands have the catalogue's names, or common ones.

# %%
cube = s2c.open_cube(directory / "items", bands=["blue", "green", "red", "nir"])
cube

# %% [markdown]
# Check the coordinate `offset` before any analysis. Since 2022 the values of Sentinel-2 reflectance have an offset of 1000,
# but not in every archive, and not by date. `open_cube` subtracts it if the product or the catalogue declares it, and
# records the number added: 0 means that there was no offset.

# %%
print("offsets:", np.unique(cube["offset"]), "| baselines:", np.unique(cube["baseline"]))

# %% [markdown]
# ## Clouds by classes
#
# Each scene comes with a classification, `SCL`, in pixels of 20 m. We plot one next to its image.

# %%
classes = s2c.open_cube(directory / "items", bands=["SCL"]).sel(band="SCL")
land = classes.isin([4, 5, 6]).mean(("y", "x")).values  # vegetation, soil, water
cloudy = np.abs(land - 0.4).argmin()  # a scene that shows some of it
picture = cube.isel(time=cloudy).sel(band=["red", "green", "blue"]).transpose("y", "x", "band").compute()
scl = classes.isel(time=cloudy).compute()

names = ["no data", "saturated", "dark", "shadow", "vegetation", "bare soil", "water", "unclassified"]
names += ["cloud, medium", "cloud, high", "thin cirrus", "snow"]
colours = ["black", "red", "0.3", "saddlebrown", "tab:green", "khaki", "tab:blue", "0.6", "0.75", "white", "skyblue", "pink"]

figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
axes[0].imshow(np.clip(picture / 3000, 0, 1))
axes[0].set_title(f"reflectance, {str(picture.time.values)[:10]}")
shown = axes[1].imshow(scl, cmap=ListedColormap(colours), norm=BoundaryNorm(np.arange(-0.5, 12), 12), interpolation="nearest")
axes[1].set_title("scene classification")
bar = figure.colorbar(shown, ax=axes[1], ticks=range(12), shrink=0.9)
bar.ax.set_yticklabels(names)
for ax in axes:
    ax.set_axis_off()

# %% [markdown]
# A classification is not perfect: there are speckles that are not clouds, and a real cloud extends beyond its class. So
# masks are *cleaned*: an opening removes objects smaller than a disc, then a dilation grows the rest. Digital Earth
# Australia and Africa do the same, with the same radii.

# %%
plain = s2c.SCL()
cleaned = s2c.SCL(cleanup=[("opening", 2), ("dilation", 5)])  # pixels of 20 m
coarse = np.clip(picture[::2, ::2].values / 3000, 0, 1)  # of 20 m, too
figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
for ax, rule, title in zip(axes, [plain, cleaned], ["classes as they are", "cleaned"], strict=True):
    mask = rule.valid(scl.values[None])[0]
    ax.imshow(np.where(mask[..., None], coarse, [0.9, 0.2, 0.6]))
    ax.set_title(f"{title}: {mask.mean():.0%} left")
    ax.set_axis_off()

# %% [markdown]
# ## How many observations are left?
#
# Before computing a composite, check how many observations it has: `valid_share` for each scene, `count` for each pixel.

# %%
rules = [s2c.Nodata(), cleaned]
shares = s2c.valid_share(cube, rules).compute()

plt.figure(figsize=(10, 3))
plt.bar(shares["time"].values, shares["observed"], width=2.5, color="0.85", label="observed")
plt.bar(shares["time"].values, shares["valid"], width=2.5, color="tab:green", label="and clear")
plt.ylabel("share of the area")
plt.legend();

# %% [markdown]
# ## The geometric median
#
# The median of one band is the value in the middle. For four bands, the separate medians can come from four different days
# and mix into a spectrum that no plant has. The *geometric median* treats an observation as a point in a space of four
# dimensions, and finds the point with the smallest sum of distances to all observations. It preserves the ratios of the
# bands, which indices use, and it is robust as long as less than half of the observations are clouds that the mask missed.

# %%
comp = s2c.composite(cube, "geomedian", valid=rules).compute()
comp

# %%
single = s2c.composite(cube.isel(time=[cloudy]), "latest", valid=s2c.Nodata()).compute()
figure, axes = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
single.plot(ax=axes[0], stretch=(0, 3000))
axes[0].set_title("one scene")
comp.plot(ax=axes[1], stretch=(0, 3000))
axes[1].set_title("geometric median")
comp.plot.count(ax=axes[2])
for ax in axes:
    ax.set(xlabel="", ylabel="", xticks=[], yticks=[])

# %% [markdown]
# ## Variation
#
# The reducer also returns three layers with the deviation of a pixel's observations from its geometric median. `smad` is the
# typical angle between spectra, large where the *kind* of surface changes (a field that is ploughed); `emad` the typical
# distance, large where *brightness* changes; `bcmad` is a relative distance. They have no direction in time, but distinguish
# stable surfaces from changing ones, which improves classifications.

# %%
ndvi = (comp["composite"].sel(band="nir") - 1.0 * comp["composite"].sel(band="red")) / (
    comp["composite"].sel(band="nir") + 1.0 * comp["composite"].sel(band="red")
)
figure, axes = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
for ax, layer, title, cmap in zip(
    axes,
    [ndvi, comp["smad"], comp["emad"]],
    ["NDVI of the geometric median", "smad: how the spectrum varies", "emad: how much, in reflectance x 10000"],
    ["RdYlGn", "magma", "magma"],
    strict=True,
):
    shown = ax.imshow(layer, cmap=cmap, vmin=np.nanpercentile(layer, 2), vmax=np.nanpercentile(layer, 98))
    figure.colorbar(shown, ax=ax, shrink=0.8)
    ax.set_title(title)
    ax.set_axis_off()

# %% [markdown]
# The river and the woods are dark in the middle picture: the same all summer. Fields are not.
#
# ## Does the mask matter?
#
# To check, we compute the same without the classification. A geometric median tolerates some clouds, not all: where few
# observations were clear, the image without a mask is too bright.

# %%
careless = s2c.composite(cube, "geomedian", valid=s2c.Nodata(), deviations=False).compute()
difference = careless["composite"].sel(band="blue").astype(float) - comp["composite"].sel(band="blue")
figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
careless.plot(ax=axes[0], stretch=(0, 3000))
axes[0].set_title("without the classification")
shown = axes[1].imshow(difference, cmap="RdBu_r", vmin=-1500, vmax=1500)
axes[1].set_title("blue: brighter (red) than with it")
figure.colorbar(shown, ax=axes[1], shrink=0.8)
for ax in axes:
    ax.set(xlabel="", ylabel="", xticks=[], yticks=[])
print(f"median of the difference: {float(difference.median()):.0f}, reflectance x 10000")

# %% [markdown]
# ## Writing a STAC item
#
# `to_stac` writes the files, a thumbnail, and last an item that describes how they were made; if the item exists, the
# files are complete.

# %%
(item,) = comp.to_stac(str(directory / "geomedian.json"), layers="all", overwrite=True, progress=False)
for path in sorted(directory.glob("geomedian*")):
    print(f"{path.name:32} {path.stat().st_size / 1e6:6.2f} MB")

# %% [markdown]
# ## Real scenes
#
# With `pip install 's2composite[stac]'` a search replaces the items:
#
# ```python
# search = {
#     "url": "https://earth-search.aws.element84.com/v1",
#     "collections": ["sentinel-2-l2a"],
#     "bbox": [1.40, 43.57, 1.48, 43.63],
#     "datetime": "2023-06-01/2023-08-31",
# }
# cube = s2c.open_cube(search, bands=["blue", "green", "red", "nir"], bbox=search["bbox"])
# ```
#
# The rest does not change. `examples/l2a_geomedian.py` is a script that does this.
