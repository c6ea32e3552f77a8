"""Morphology of masks by SciPy, with discs, and with the border that scikit-image has."""

import numpy as np
import rasterio
from scipy import ndimage


def eroded(scene, footprint):
    return ndimage.binary_erosion(scene, footprint, border_value=1)


PEERS = {
    "closing": lambda scene, footprint: eroded(ndimage.binary_dilation(scene, footprint), footprint),
    "dilation": ndimage.binary_dilation,
    "erosion": eroded,
    "opening": lambda scene, footprint: ndimage.binary_dilation(eroded(scene, footprint), footprint),
}


def disc(radius):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def peer(marked, steps):
    """Return masks `(scene, y, x)` after steps of SciPy's morphology, with scikit-image's border."""
    for name, radius in steps:
        if radius:
            marked = np.stack([PEERS[name](scene, disc(radius)) for scene in marked])
    return marked


CLOUDS = ("cloud shadows", "cloud medium probability", "cloud high probability", "thin cirrus")
"""Classes that SCL calls clouds."""


def expected_valid(directory, opening=2, dilation=3):
    """Whole masks at 20 m, cleaned by scipy, each pixel doubled."""
    valid = []
    for path in sorted(directory.glob("*_SCL.tif")):
        with rasterio.open(path) as dataset:
            scl = dataset.read(1)
        (bad,) = peer(np.isin(scl, (3, 8, 9, 10))[None], [("opening", opening), ("dilation", dilation)])
        valid.append(np.kron(~(bad | (scl == 0)), np.ones((2, 2), bool)))
    return np.stack(valid)
