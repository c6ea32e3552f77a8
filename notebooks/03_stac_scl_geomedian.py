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
# # A catalogue, clouds by classes, and the geometric median
#
# The [first notebook](01_first_composite.py) made a picture of true-colour files in a directory. Scientists mostly have
# something else: *surface reflectance*, a file for each band, found in a STAC catalogue, with a *scene classification* that
# says where the clouds are. From these we make the composite that national products are made of, the geometric median, and
# look at what it knows about each place beside its colour.
#
# Everything is made up here, the catalogue too, so nothing is downloaded; the last section has the lines that change.

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
# ## What a catalogue knows
#
# A STAC item is a small JSON document about one acquisition: when, where, which files, on which grid, how cloudy. A cube can
# be opened from items without looking into a single file. Bands have the catalogue's names, or common ones.

# %%
cube = s2c.open_cube(directory / "items", bands=["blue", "green", "red", "nir"])
cube

# %% [markdown]
# The coordinate `offset` deserves a look before any science. Since 2022 the numbers of Sentinel-2's reflectance carry 1000
# on top, but not in every archive, and not by date. `open_cube` takes it off where the product or the catalogue says that it
# is there, and notes what it has done: 0 means that there was nothing to do.

# %%
print("offsets:", np.unique(cube["offset"]), "| baselines:", np.unique(cube["baseline"]))

# %% [markdown]
# ## Clouds by classes
#
# Each scene comes with a classification, `SCL`, in pixels of 20 m. Let us see one beside the picture it belongs to.

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
# A classification is not perfect: there are speckles that are no clouds, and the edge of a real cloud reaches farther than
# the class says. So masks are *cleaned*: opened, which removes what is smaller than a disc, then dilated, which lets the
# rest grow. This is what Digital Earth Australia and Africa do, with these very radii.

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
# Before a composite is made it is worth knowing from how much. `valid_share` tells it for each scene, `count` for each pixel.

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
# The median of one band is the value in the middle. Four bands have no middle: taken one by one, their medians can come from
# four different days and mix to a spectrum that no plant has. The *geometric median* takes an observation for what it is, a
# point in a space of four dimensions, and looks for the point whose distances to all observations add up to the least. It
# keeps the ratios of the bands, which indices are made of, and up to half of the observations may be clouds that the mask has
# missed before it gives way.

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
# ## What varies
#
# Three more layers came along, for nothing: how far the observations of a pixel lie from its geometric median. `smad` is the
# typical angle between spectra, large where the *kind* of surface changes (a field that is ploughed); `emad` the typical
# distance, large where *brightness* changes; `bcmad` is a relative one. They have no direction in time, but they tell what is
# stable from what is not, and classifications are better with them.

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
# Let us be sceptical, and make the same without the classification. A geometric median forgives some clouds, not all: where
# few observations were clear, the picture without a mask is brighter than it should be.

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
# ## Keep it
#
# A result of a catalogue belongs into one. `to_stac` writes the files, a thumbnail, and last of all an item that says what
# they are made of; where the item is, the files are complete.

# %%
(item,) = comp.to_stac(str(directory / "geomedian.json"), layers="all", overwrite=True, progress=False)
for path in sorted(directory.glob("geomedian*")):
    print(f"{path.name:32} {path.stat().st_size / 1e6:6.2f} MB")

# %% [markdown]
# ## The real thing
#
# With `pip install 's2composite[stac]'` a search takes the place of the items:
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
# The rest stays as it is. `examples/l2a_geomedian.py` is that, as a script.
