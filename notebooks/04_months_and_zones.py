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
# # Months and zones
#
# A composite of a year has no information about *when*. Often the question is about time and places: how did these fields
# develop, which of them were mown, what is different this July? The answer takes two steps: a composite for each month, and
# statistics of each month over polygons. Both are one line.

# %% tags=["parameters"]
DIRECTORY = "months_and_zones"  # where scenes and results go
SCENES = 36  # acquisitions from April to September
SIZE = 512  # rows and columns of 10 m

# %%
from pathlib import Path

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import s2composite as s2c
import shapely
from s2composite.demo import make_scenes

directory = Path(DIRECTORY)
make_scenes(directory / "scenes", scenes=SCENES, size=SIZE, seed=3, assets=["B02", "B03", "B04", "B08", "SCL"])
cube = s2c.open_cube(directory / "scenes", bands=["B02", "B03", "B04", "B08"])
clear = [s2c.Nodata(), s2c.SCL(cleanup=[("opening", 2), ("dilation", 3)])]

# %% [markdown]
# ## A composite for each month
#
# `period="month"` makes six composites from one read of the scenes. Other periods are `"season"`, `"10D"`,
# `"rolling-3months"`, a list of your own.

# %%
months = s2c.composite(cube, "median", valid=clear, period="month").compute()
months

# %%
months.plot.periods(stretch=(0, 2800), columns=3);

# %% [markdown]
# The fields change their colours, the woods less, the river not at all. Where a month is grey there was no clear
# observation. Check the number of observations before you draw conclusions from a month.

# %%
months.plot.periods(layer="count", columns=3);

# %% [markdown]
# ## Zones
#
# Zones are polygons in any file or CRS that geopandas reads. Ours are drawn by hand, in degrees: one on the river, one in a
# wood, some in fields. Zones need not be aligned to pixels: a pixel that a zone covers by a third counts a third.

# %%
geobox = cube.odc.geobox


def around(name, row, column, metres):
    """Return a circle around a pixel."""
    x, y = geobox.transform @ (column, row)
    return {"name": name, "geometry": shapely.Point(x, y).buffer(metres)}


spots = [
    around("river", 0.381 * SIZE, 0.666 * SIZE, 50),
    around("wood", 0.049 * SIZE, 0.744 * SIZE, 50),
    around("field A", 0.332 * SIZE, 0.676 * SIZE, 50),
    around("field B", 0.129 * SIZE, 0.471 * SIZE, 50),
    around("field C", 0.322 * SIZE, 0.551 * SIZE, 50),
    around("field D", 0.420 * SIZE, 0.389 * SIZE, 50),
]
zones = gpd.GeoDataFrame(spots, crs=str(geobox.crs)).to_crs("EPSG:4326")
zones.to_file(directory / "zones.geojson", driver="GeoJSON")

ax = months.period("2023-07").plot(stretch=(0, 2800))
there = zones.to_crs(str(geobox.crs))
there.boundary.plot(ax=ax, color="yellow", linewidth=2)
for _, zone in there.iterrows():
    ax.annotate(zone["name"], zone.geometry.centroid.coords[0], xytext=(7, 7), textcoords="offset points", color="yellow")
ax.set_title("July, and the zones");

# %% [markdown]
# ## Statistics
#
# `zonal_stats` takes a composite, with its months if it has any, and returns a tidy table: a row for each zone, month and
# band. A lazy composite is computed chunk by chunk on the workers together with its statistics, never as a whole.

# %%
table = s2c.zonal_stats(months, directory / "zones.geojson", ["mean", "stdev", "p10", "p90", "count"], name="name")
table.head(8)

# %% [markdown]
# Any array with a georeference can be used. Vegetation is clearest in an index, so we use NDVI, which is high where plants
# are green.

# %%
red, nir = (months["composite"].sel(band=band, drop=True).astype("float32") for band in ("B04", "B08"))
seen = months["count"] > 0
ndvi = ((nir - red) / (nir + red)).where(seen).expand_dims(band=["ndvi"], axis=1)
ndvi.attrs = {"nodata": np.nan}
development = s2c.zonal_stats(ndvi, directory / "zones.geojson", ["mean", "p10", "p90", "count"], name="name")

# %%
plt.figure(figsize=(10, 4))
colours = ["tab:blue", "darkgreen", "C1", "C3", "C4", "C5"]
for (name, rows), colour in zip(development.groupby("zone", sort=False), colours, strict=True):
    plt.fill_between(rows["time"], rows["p10"], rows["p90"], color=colour, alpha=0.15)
    plt.plot(rows["time"], rows["mean"], "o-", color=colour, label=name)
plt.ylabel("NDVI: mean, and 10 to 90 % of the pixels")
plt.legend(loc="upper left", bbox_to_anchor=(1, 1));

# %% [markdown]
# The wood is green all summer and the river never; each field has its own calendar. A is a winter crop: green in April,
# ripe in June, bare from July on. B grows after A, C later still, and D is meadow. The band around a line shows whether a
# zone is homogeneous: a narrow one is a single field.
#
# If the `count` of a month is much smaller than the zone's area, the zone was only partly observed; interpret it with care
# or leave it out:

# %%
counts = development.pivot(index="zone", columns="period", values="count")
counts.div(counts.max(axis=1), axis=0).round(2)

# %% [markdown]
# ## Saving the table
#
# As CSV, with the column names of `tif_stats`, or as Parquet:

# %%
path = s2c.write_zonal_stats(table, directory / "zones.csv", overwrite=True)
print("".join(Path(path).read_text().splitlines(keepends=True)[:4]))

# %% [markdown]
# ## Month after month
#
# To repeat this every month, a *span* in a job file runs the job once for each month from a first to a last;
# `{{pointInTime}}` is the month in names and sources. Each month is computed and resumed separately, and
# `s2composite run job.yaml --since last` computes the last complete month.

# %%
job = s2c.load_job(f"""
span: {{start: 2023-04, end: 2023-06, unit: month}}
source: {directory}/scenes
bands: [B04, B03, B02]
reducer: median
valid: [nodata, scl]
output: {directory}/median_{{{{pointInTime}}}}.tif
cluster: {{type: local, workers: 1, dashboard: ":0"}}
""")
s2c.run(job, on_product=lambda month: print(month.summary()));
