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
# # A first composite
#
# Two satellites look at Toulouse every two or three days, and there is nearly always a cloud in the picture. Over a season,
# though, almost every place is seen clearly a few times. A *composite* takes, for each pixel, one good observation out of
# the season, and puts them together to a picture without clouds.
#
# We look at a scene, look at one pixel through the season, let the library do the same for all pixels, look at the result,
# and write it. The scenes are made up (nothing is downloaded), with the names, the grid and the format of real ones; the
# last section has the line that changes for the real ones.

# %% tags=["parameters"]
DIRECTORY = "first_composite"  # where scenes and results go
SCENES = 24  # acquisitions; a real year over Toulouse has 216
SIZE = 1024  # rows and columns of 10 m; a whole granule has 10980

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import s2composite as s2c
import xarray as xr
from s2composite.demo import make_scenes

directory = Path(DIRECTORY)
files = make_scenes(directory / "scenes", scenes=SCENES, size=SIZE, seed=1)
[Path(file).name for file in files[:3]]

# %% [markdown]
# A name tells which granule of the worldwide grid it is (`31TCJ`), when it was sensed, and what is in the file: `TCI`, the
# true-colour image. `find_scenes` reads names, nothing else, and takes a directory, a pattern, a list, or a bucket.

# %%
scenes = s2c.find_scenes(directory / "scenes")
print(len(scenes), "scenes from", scenes[0].time.date(), "to", scenes[-1].time.date())
scenes[0]

# %% [markdown]
# ## Look at one scene
#
# The files are *cloud-optimised GeoTIFFs*: the pixels lie in square tiles, and smaller copies of the picture, the
# *overviews*, lie beside them. Whoever wants a thumbnail reads an overview, and whoever wants a corner reads a few tiles,
# from a disk as from the other side of the world. Here is a thumbnail of each scene.

# %%
columns = 8
figure, axes = plt.subplots(-(-SCENES // columns), columns, figsize=(14, 1.9 * -(-SCENES // columns)), layout="constrained")
for ax, scene in zip(axes.flat, scenes, strict=False):
    with rasterio.open(scene.assets[0].href) as dataset:
        thumbnail = dataset.read(out_shape=(3, SIZE // 8, SIZE // 8))
    ax.imshow(np.moveaxis(thumbnail, 0, -1))
    ax.set_title(f"{scene.time:%d %B}", fontsize=9)
for ax in axes.flat:
    ax.set_axis_off()

# %% [markdown]
# Clouds, their shadows, and black where the satellite's path did not cover the area. At full resolution, 200 pixels or
# 2 km of one scene, and what GDAL says about its file:

# %%
with rasterio.open(files[SCENES // 2]) as dataset:
    extract = dataset.read(window=rasterio.windows.Window(SIZE // 2, SIZE // 2, 200, 200))
    print(dataset.shape, dataset.count, "bands", dataset.dtypes[0], dataset.crs, "tiles", dataset.block_shapes[0])
    print("overviews", dataset.overviews(1), "compression", dataset.compression.value)
plt.imshow(np.moveaxis(extract, 0, -1))
plt.axis("off");

# %% [markdown]
# ## All scenes as one cube
#
# `open_cube` reads the headers of all files, checks that they fit together, and gives an array of `time`, `band`, `y` and
# `x`. It is lazy: no pixel has been read yet.

# %%
cube = s2c.open_cube(directory / "scenes")
cube

# %% [markdown]
# ## One pixel through the season
#
# An observation that has a 0 in any band is *nodata*: the satellite did not look there. One that has a 255 in any band is
# *saturated*, which is nearly always the top of a cloud. Both are left out. The others are ordered by their luminance, red +
# green + blue, and the one in the middle is taken: clouds are brighter than the land, shadows darker, and in the middle is
# the land. This is the median, but of whole observations: red, green and blue stay together, from one day. Three medians,
# one for each band, could mix three days to a colour that was never there.

# %%
y, x = SIZE // 2, SIZE // 2
pixel = cube.isel(y=y, x=x).compute()

valid = ((pixel != 0) & (pixel != 255)).all("band").values
luminance = pixel.values.astype("uint16").sum(axis=1)  # 255 + 255 + 255 does not fit into 8 bits
in_order = np.flatnonzero(valid)[np.argsort(luminance[valid], kind="stable")]
chosen = in_order[len(in_order) // 2]

plt.figure(figsize=(10, 3))
plt.plot(pixel.time[valid], luminance[valid], "o", color="tab:green", label="usable")
plt.plot(pixel.time[~valid], luminance[~valid], "x", color="tab:red", label="nodata or saturated")
plt.plot(pixel.time[chosen], luminance[chosen], "o", markersize=14, fillstyle="none", color="black", label="the middle one")
plt.ylabel("red + green + blue")
plt.legend()
print("taken:", pixel.values[chosen], "from", str(pixel.time.values[chosen])[:10], "of", valid.sum(), "usable observations")

# %% [markdown]
# ## Every pixel
#
# `composite` does this for all pixels. It is lazy, too: it says what will come out. Beside the composite itself there are
# the *count* of usable observations of each pixel, and the *source*, the scene that each pixel was taken from.

# %%
comp = s2c.composite(cube)
comp

# %% [markdown]
# Now the work. `connect` starts worker processes, one for each core; its line has the link of a page where you can watch
# them. Each worker takes a *window*, some hundred pixels on a side, of all scenes, reads it, reduces it, and keeps only the
# result. So the size of the season does not matter, and neither does the number of workers: the result is the same, bit by
# bit.

# %%
client = s2c.connect("local")
done = comp.compute()
done

# %% [markdown]
# ## Look
#
# A cloudy scene, the composite, and from how many observations each of its pixels could choose:

# %%
done.plot.before_after(cube);

# %% [markdown]
# Our one pixel is in there, and is what we found by hand:

# %%
assert (done["composite"][:, y, x].values == pixel.values[chosen]).all()
assert int(done["count"][y, x]) == valid.sum()
assert int(done["source"][y, x]) == chosen

# %% [markdown]
# Where does the picture come from? Here is the date of each pixel, and how much each scene has given. Each pixel has its own
# median, so that neighbours come from different dates; where few scenes look, large parts come from one.

# %%
figure, axes = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
done.plot.date(ax=axes[0])
done.plot.timeline(ax=axes[1]);

# %% [markdown]
# ## Write
#
# From the lazy composite the workers write the file piece by piece, so that it can be larger than the memory. It is a
# cloud-optimised GeoTIFF itself, without loss, and takes its name only when it is complete. `layers` asks for the count and
# the source as well.

# %%
paths = comp.to_raster(str(directory / "median.tif"), layers=("composite", "count", "source"), overwrite=True)
for path in paths:
    print(f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# Read back, it has the pixels we saw, in their place on Earth, and says how it was made:

# %%
with rasterio.open(paths[0]) as dataset:
    assert (dataset.read() == done["composite"].values).all()
    assert dataset.transform == cube.odc.geobox.transform
    print(dataset.profile["driver"], dataset.crs, "nodata", dataset.nodata, "overviews", dataset.overviews(1))
    for tag, text in dataset.tags().items():
        print(f"{tag}: {text[:100]}")

# %% [markdown]
# As Zarr, all layers are in one store, for xarray:

# %%
comp.to_zarr(str(directory / "median.zarr"), overwrite=True)
store = xr.open_zarr(directory / "median.zarr")
assert (store["composite"].values == done["composite"].values).all()
store

# %% [markdown]
# The workers are no longer needed.

# %%
client.close()

# %% [markdown]
# ## The real thing
#
# One year of real scenes over Toulouse, 216 files and 22 GB, is in a public bucket. The line that changes:
#
# ```python
# cube = s2c.open_cube("gs://tb-be-bigdata/t31tcj/")
# ```
#
# To try it on the city first, give `open_cube` an area, `bbox=(1.40, 43.57, 1.48, 43.63)`. For a job that runs without you,
# the same as a file of two lines:

# %%
job = s2c.load_job(
    """
source: gs://tb-be-bigdata/t31tcj/
output: t31tcj_2023.tif
"""
)
print(job.to_yaml())

# %% [markdown]
# ```
# s2composite run job.yaml
# ```
