"""Composite a season of generated scenes into one cloud-free picture: no network, no account.

Run it anywhere: ``python first_composite.py``. It writes ``scenes/`` and ``median.tif``.
"""

import s2composite as s2c
from s2composite.demo import make_scenes

if __name__ == "__main__":  # each worker process imports this file
    make_scenes("scenes", scenes=24, size=2048)
    with s2c.connect("local"):
        cube = s2c.open_cube("scenes")  # lazy (time, band, y, x); real ones: gs://tb-be-bigdata/t31tcj/
        comp = s2c.composite(cube)  # lazy; masked median by luminance
        print(*comp.to_raster("median.tif", overwrite=True))
