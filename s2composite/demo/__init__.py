"""Synthetic Sentinel-2 scenes of the granule T31TCJ, and the demonstration made with them.

`make_scenes` needs no network and no account; `make_items` describes what it made as a catalogue would. The same
arguments give the same bytes.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import rioxarray
import xarray as xr
from matplotlib.figure import Figure

from s2composite.analysis.plot import before_after
from s2composite.clusters.connect import connect
from s2composite.cube.composite import composite
from s2composite.cube.open import open_cube
from s2composite.demo.files import make_items, make_scenes
from s2composite.writing.publish import put_small
from s2composite.writing.steps import progress_bar

__all__ = ["make_items", "make_scenes", "run_demo"]

_LAYERS = ("composite", "count", "source")


def run_demo(
    directory: str | os.PathLike[str] = "demo",
    *,
    scenes: int = 24,
    size: int = 1024,
    seed: int = 0,
    compress: str = "jpeg",
    workers: int = 2,
    progress: bool = True,
) -> dict[str, str]:
    """Make scenes, composite them on a local cluster, and leave the rasters and a picture.

    No network and no account is needed; with the defaults it takes well under a minute on two cores.

    Parameters
    ----------
    directory
        Where everything goes: scenes into ``scenes/``, beside it ``median.tif``, ``median_count.tif``,
        ``median_source.tif`` and ``median.png``, which shows a cloudy scene beside the composite. Files of an earlier
        run are replaced.
    scenes, size, seed, compress
        Of `make_scenes`.
    workers
        Processes of the local cluster, one thread each.
    progress
        Show progress bars, in terminals and notebooks.

    Returns
    -------
    dict of str to str
        Paths by what they are: ``scenes`` (the directory), ``composite``, ``count``, ``source``, ``picture``.

    Raises
    ------
    ParameterError, WriteError
        An argument makes no sense; the directory cannot be written.

    Examples
    --------
    >>> from s2composite.demo import run_demo
    >>> paths = run_demo("doctest_demo", scenes=5, size=128, workers=1)  # doctest: +SKIP
    """
    home = Path(directory).absolute()
    with progress_bar("make scenes", scenes, shown=progress) as advance:
        files = make_scenes(
            home / "scenes", scenes=scenes, size=size, seed=seed, compress=compress, progress=lambda *_: advance()
        )
    with connect("local", workers=workers, threads=1, announce=False):
        cube = open_cube(files)
        comp = composite(cube)
        rasters = comp.to_raster(str(home / "median.tif"), layers=_LAYERS, overwrite=True, progress=progress)
        paths = dict(zip(_LAYERS, rasters, strict=True))
        layers = {}  # as they were written, so that drawing does not compute them again
        for name in ("composite", "count"):
            with rioxarray.open_rasterio(paths[name]) as file:
                layers[name] = comp.dataset[name].copy(data=file.values.reshape(comp.dataset[name].shape))
        written = xr.Dataset(layers, {"scene_time": comp.dataset["scene_time"]}, comp.dataset.attrs)
        figure = before_after(cube, written, figure=Figure(figsize=(13.5, 5), layout="compressed"))
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    put_small(picture.getvalue(), str(home / "median.png"), overwrite=True)
    return {"scenes": str(home / "scenes"), **paths, "picture": str(home / "median.png")}
