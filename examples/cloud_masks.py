"""Clouds found in the pixels of each scene by `CloudNet`, s2cloudless or OmniCloudMask.

    pip install 's2composite[clouds]'
    python cloud_masks.py                     # CloudNet, on generated scenes: writes scenes/ and cloud_net.tif
    python cloud_masks.py s2cloudless l1c/    # Sentinel-2 of level 1 with ten bands; pip install s2cloudless
    python cloud_masks.py omnicloudmask l2a/  # red, green and near infrared; pip install omnicloudmask

What a network finds is kept in ``masks/``: the next composite of these scenes does not compute it again.
"""

import sys

import s2composite as s2c
from s2composite.demo import make_scenes

TEN = ["B01", "B02", "B04", "B05", "B08", "B8A", "B09", "B10", "B11", "B12"]


def s2cloudless(pixels):
    """Return where numbers of Sentinel-2's level 1, ten bands without offset, are clouds."""
    from s2cloudless import S2PixelCloudDetector  # noqa: PLC0415 - only where it is used

    detector = S2PixelCloudDetector(threshold=0.4, average_over=4, dilation_size=2)
    return detector.get_cloud_masks(pixels.transpose(1, 2, 0)[None] / 1e4)[0].astype("uint8")


def omnicloudmask(pixels):
    """Return classes of red, green and near infrared: 0 clear, 1 thick cloud, 2 thin cloud, 3 shadow."""
    from omnicloudmask import predict_from_array  # noqa: PLC0415 - as above

    return predict_from_array(pixels)[0].astype("uint8")


RULES = {
    "cloud_net": lambda: s2c.CloudNet(level="l2a", resolution=60, cache="masks"),
    "s2cloudless": lambda: s2c.Mask(s2cloudless, TEN, resolution=160, surroundings=8, classes=[1], cache="masks"),
    "omnicloudmask": lambda: s2c.Mask(
        omnicloudmask, ["B04", "B03", "B8A"], resolution=20, surroundings=64, classes=[1, 2, 3], cache="masks"
    ),
}


def main(name="cloud_net", source=None):
    """Write the median of the observations that a mask leaves."""
    if source is None:
        source = "scenes"
        make_scenes(source, scenes=8, size=1024, assets=["B02", "B03", "B04", "B08"])
    cube = s2c.open_cube(source, bands=["B04", "B03", "B02"])
    comp = s2c.composite(cube, "median", valid=["nodata", "saturated", RULES[name]()])
    print(*comp.to_raster(f"{name}.tif", overwrite=True))


if __name__ == "__main__":  # each worker process imports this file
    main(*sys.argv[1:])
