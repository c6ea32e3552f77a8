"""Detect clouds with your own function, in scenes without a mask: no network, no account.

Run it anywhere: ``python mask_function.py``. It writes ``scenes/``, ``default.tif`` and ``clear.tif``. Libraries are
used the same way: the guide to masks shows OmniCloudMask and s2cloudless.
"""

import numpy as np

import s2composite as s2c
from s2composite.demo import make_scenes


def clear(pixels):
    """Return where a scene ``(band, y, x)`` of red, green and blue is clear: clouds are bright and white."""
    red, green, blue = pixels.astype(np.float32)
    grey = (red + green + blue) / 3
    return (grey < 110) | (np.abs(red - blue) > 0.35 * grey)


if __name__ == "__main__":  # each worker process imports this file
    make_scenes("scenes", scenes=24, size=1024)
    with s2c.connect("local"):
        cube = s2c.open_cube("scenes")
        rule = s2c.Mask(clear, resolution=20, cleanup=[("opening", 2), ("dilation", 6)])
        s2c.composite(cube).to_raster("default.tif", overwrite=True)
        print(*s2c.composite(cube, valid=["nodata", "saturated", rule]).to_raster("clear.tif", overwrite=True))
