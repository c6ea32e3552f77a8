"""A summer's geometric median of Sentinel-2 L2A surface reflectance, with clouds masked by the scene classification.

pip install 's2composite[stac]'
python examples/l2a_geomedian.py                    # a search of Earth Search, over the network
python examples/l2a_geomedian.py /data/my_scenes    # or scenes of your own: a directory, a glob, STAC items as JSON
"""

import sys

import s2composite as s2c

SEARCH = {
    "url": "https://earth-search.aws.element84.com/v1",
    "collections": ["sentinel-2-l2a"],
    "bbox": [1.40, 43.57, 1.48, 43.63],
    "datetime": "2023-06-01/2023-08-31",
}
BANDS = ["red", "green", "blue", "nir"]


def main(source):
    # The offset of baseline 04.00 is subtracted from products that have it. For a search, granules and halves of a pass
    # are merged by day: a day counts once, with its clear product rather than a cloudy one.
    how = {"bbox": SEARCH["bbox"], "groupby": "solar_day"} if source is SEARCH else {}
    cube = s2c.open_cube(source, bands=BANDS, **how)
    print(cube)
    clear = [s2c.Nodata(), s2c.SCL(cleanup=[("opening", 2), ("dilation", 5)])]
    comp = s2c.composite(cube, "geomedian", valid=clear)
    (item,) = comp.to_stac("geomedian.json", layers="all", overwrite=True)
    print(f"written: {item}, with the files and the thumbnail it names")


if __name__ == "__main__":
    with s2c.connect("local"):
        main(sys.argv[1] if len(sys.argv) > 1 else SEARCH)
