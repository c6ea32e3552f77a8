"""Compute a table of fields by month, and a map, from a season of scenes: no network, no account.

Run it anywhere: ``pip install 's2composite[zones]'``, then ``python months_and_zones.py``. It writes a composite for
each month, ``fields.csv``, ``months.png`` and ``months.html``.
"""

import geopandas as gpd
import shapely

import s2composite as s2c
from s2composite.demo import make_scenes


def some_fields(cube):
    """Return nine circles in degrees, in place of a vector file that geopandas reads."""
    west, south, east, _ = cube.odc.geobox.boundingbox.bbox
    step = (east - west) / 4
    centres = [(west + i * step, south + j * step) for j in (1, 2, 3) for i in (1, 2, 3)]
    names = [f"field {i + 1}" for i in range(9)]
    circles = [shapely.Point(centre).buffer(step / 5) for centre in centres]
    return gpd.GeoDataFrame({"id": names}, geometry=circles, crs=cube.odc.crs.to_wkt()).to_crs("EPSG:4326")


if __name__ == "__main__":  # each worker process imports this file
    make_scenes("scenes", scenes=24, size=1024)
    with s2c.connect("local") as client:
        # One composite for each month, from one read of the scenes, and statistics of the fields in it.
        cube = s2c.open_cube("scenes")
        months = s2c.composite(cube, period="month")
        table = s2c.zonal_stats(months, some_fields(cube), ["mean", "stdev", "median", "count"], name="id")
        print(table[table["band"] == table["band"][0]].pivot(index="zone", columns="period", values="mean").round(1))
        print(s2c.write_zonal_stats(table, "fields.csv", overwrite=True))

        # The same as a job: each month is a separate product, which is not computed again in a second run. A job file
        # has the same keys; `s2composite run job.yaml --since last` computes the last complete month.
        job = {
            "source": "scenes",
            "output": "median_{{pointInTime}}.tif",
            "span": {"start": "2023-04", "end": "2023-09"},
        }
        s2c.run(job, client=client, on_product=lambda month: print(month.summary()))

        # A preview, computed from overviews in a second.
        small = months.preview()
        small.plot.periods(columns=3).savefig("months.png")
        print(small.explore().save("months.html", overwrite=True))
