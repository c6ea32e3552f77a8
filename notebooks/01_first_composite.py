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
# Two satellites image Toulouse every two or three days, and nearly every scene has clouds. Over a season, though, almost
# every place is seen clearly a few times. A *composite* selects one good observation of the season for each pixel, and
# combines them into an image without clouds.
#
# We plot a scene, follow one pixel through the season, let the library do the same for all pixels, plot the result, and
# write it. The scenes are generated (nothing is downloaded), with the names, grid and format of real ones; the last
# section has the line that changes for real scenes.

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
# A name contains the granule of the worldwide grid (`31TCJ`), the sensing time, and the content of the file: `TCI`, the
# true-colour image. `find_scenes` reads only names, and takes a directory, a pattern, a list, or a bucket.

# %%
scenes = s2c.find_scenes(directory / "scenes")
print(len(scenes), "scenes from", scenes[0].time.date(), "to", scenes[-1].time.date())
scenes[0]

# %% [markdown]
# ## One scene
#
# The files are *cloud-optimised GeoTIFFs*: they store the pixels in square tiles, and smaller copies of the image, the
# *overviews*. A thumbnail needs only an overview, and a corner of the image only a few tiles, whether the file is on disk
# or remote. Here is a thumbnail of each scene.

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
# We see clouds, their shadows, and black where the satellite's swath did not cover the area. At full resolution, 200
# pixels or 2 km of one scene, and GDAL's description of its file:

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
# `open_cube` reads the headers of all files, checks that they fit together, and returns an array with `time`, `band`, `y`
# and `x`. It is lazy: no pixel has been read yet.

# %%
cube = s2c.open_cube(directory / "scenes")
cube

# %% [markdown]
# ## One pixel through the season
#
# An observation with a 0 in any band is *nodata*: the satellite did not observe the pixel. One with a 255 in any band is
# *saturated*, which is nearly always the top of a cloud. Both are dropped. The others are sorted by their luminance, red +
# green + blue, and the median is used: clouds are brighter than the land, shadows darker. This is a median of whole
# observations: red, green and blue come from one day. Three medians, one for each band, could mix three days into a colour
# that never occurred.

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
# `composite` does this for all pixels. It is lazy, too: it describes the result. In addition to the composite itself there
# are the *count* of valid observations of each pixel, and the *source*, the scene that each pixel comes from.

# %%
comp = s2c.composite(cube)
comp

# %% [markdown]
# Now we compute it. `connect` starts worker processes, one for each core, and prints the link of the dashboard that shows
# them. Each worker reads a *window*, some hundred pixels on a side, of all scenes, reduces it, and keeps only the result.
# So memory does not grow with the number of scenes, and the result is the same, bit by bit, for any number of workers.

# %%
client = s2c.connect("local")
done = comp.compute()
done

# %% [markdown]
# ## The result
#
# A cloudy scene, the composite, and the number of valid observations of each pixel:

# %%
done.plot.before_after(cube);

# %% [markdown]
# The pixel that we computed by hand has the same value:

# %%
assert (done["composite"][:, y, x].values == pixel.values[chosen]).all()
assert int(done["count"][y, x]) == valid.sum()
assert int(done["source"][y, x]) == chosen

# %% [markdown]
# Which scenes does the composite use? Here is the date of each pixel, and the share of each scene. Each pixel has its own
# median, so neighbours come from different dates; where there are few scenes, large areas come from one.

# %%
figure, axes = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
done.plot.date(ax=axes[0])
done.plot.timeline(ax=axes[1]);

# %% [markdown]
# ## Write
#
# The workers write the file from the lazy composite window by window, so it can be larger than the memory. It is a
# lossless cloud-optimised GeoTIFF, and gets its final name only when it is complete. `layers` adds the count and the
# source.

# %%
paths = comp.to_raster(str(directory / "median.tif"), layers=("composite", "count", "source"), overwrite=True)
for path in paths:
    print(f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# Read back, it has the same pixels, a georeference, and tags that describe how it was made:

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
# ## Real scenes
#
# One year of real scenes over Toulouse, 216 files and 22 GB, is in a public bucket. The line that changes:
#
# ```python
# cube = s2c.open_cube("gs://tb-be-bigdata/t31tcj/")
# ```
#
# To try it on the city first, give `open_cube` an area, `bbox=(1.40, 43.57, 1.48, 43.63)`. For an unattended job, the same
# as a file of two lines:

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
