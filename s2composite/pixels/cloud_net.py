"""Clouds and shadows found in each scene by a network that runs on a CPU: that of `ukis-csmask`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import MissingDependencyError, ParameterError, check_choice, needed
from s2composite.pixels.function_mask import UNSEEN, band_list, cache_folder, positive_resolution, shown
from s2composite.pixels.masks import Rule
from s2composite.pixels.morphology import Step, steps_of

__all__ = ["NETWORK_BANDS", "CloudNet", "Network", "network", "network_version"]

NETWORK_BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
"""What the networks take: the first four of these, or all."""

_CLASSES = {"cloud": 1, "shadow": 2}

_SIZE = 256
_OVERLAP = 51  # int(0.2 * 256), as in ukis-csmask
_STEP = 204  # int(256 - 0.2 * 256)

_TILE_SECONDS = 0.11
"""Seconds of a tile, by the same benchmark."""

_SESSION_BYTES = 350 << 20
"""Bytes of a loaded network (200 MiB) and of what a call of it takes: `python benchmarks/cloud_net.py` shows them."""


@dataclass(frozen=True)
class CloudNet(Rule):
    """Drop clouds and their shadows, as a network finds them in the pixels of each scene.

    For reflectances of Sentinel-2 or Landsat, with or without a mask of their own. The network is that of `ukis-csmask`
    [1]_ (``pip install 's2composite[clouds]'``), a U-Net that runs on a CPU. It looks at blue, green, red and near
    infrared, and at both bands of short-wave infrared where all scenes have them. Classes are those that the package
    itself gives for a whole scene, whatever the area, chunks or workers.

    Parameters
    ----------
    classes
        What is dropped: ``"cloud"``, ``"shadow"`` or both.
    resolution
        Size of the pixels that it looks at, in units of the scenes' CRS; from overviews where files have that one, else
        the nearest pixels. Default: the multiple of the scenes' own that is nearest to 30 m, for which it was made. Of
        60 m it takes a quarter of the time.
    bands
        Names (or numbers) of the four or six bands, in the order blue, green, red, near infrared, 1.6 and 2.2 µm.
        Default: the scenes' bands of these common names.
    level
        ``"l1c"`` for top-of-atmosphere reflectance, ``"l2a"`` for that of the surface. Default: as the names of the
        products or of their collection say.
    cleanup
        Steps on the mask of what is dropped, as for `SCL`, in pixels of `resolution`. Default: it is grown by 4 pixels,
        as by the package.
    cache
        A directory, or the URL of one, that keeps the classes, one file for each scene and tile of 1836 x 1836 pixels,
        so that other runs, jobs, areas and processes need not compute them. They are named after the scene and a hash
        of the network, `resolution`, `bands`, `level` and the scene's files.

    Raises
    ------
    ParameterError
        A parameter makes no sense.

    Notes
    -----
    A network of 256 x 256 pixels is evaluated every 204 pixels, in tiles that begin at the corner of the scene, and the
    probabilities are blended where they overlap. What was not observed is given to the network as 0, and is not valid.
    One thread takes about 0.1 s for each of these tiles: a granule of Sentinel-2 has 361 at 30 m and 100 at 60 m.

    References
    ----------
    .. [1] M. Wieland, F. Fichtner, S. Martinis (2022): UKIS-CSMASK: a Python package for multi-sensor cloud and cloud
       shadow segmentation. ISPRS Archives XLIII-B3-2022, 217-222.

    Examples
    --------
    >>> import s2composite as s2c
    >>> rules = [s2c.Nodata(), s2c.CloudNet(resolution=60, cleanup=[("dilation", 3)])]
    >>> print(rules[1])
    CloudNet(resolution=60.0, cleanup=(('dilation', 3),))
    """

    classes: tuple[str, ...] = ("cloud", "shadow")
    """What is dropped."""

    resolution: float | None = None
    """Size of the pixels that it looks at; None: about 30 m."""

    bands: tuple[str | int, ...] | None = None
    """Four or six bands; None: those of common names."""

    level: str | None = None
    """``"l1c"`` or ``"l2a"``; None: as the products say."""

    cleanup: tuple[Step, ...] = (("dilation", 4),)
    """Steps on the mask of what is dropped."""

    cache: str | None = None
    """Directory that keeps classes."""

    side: ClassVar[int] = 9 * _STEP  # 109.8 km of Sentinel-2 are one of these at 60 m, and two at 30 m
    step: ClassVar[int] = _STEP
    surroundings: ClassVar[int] = _SIZE
    at_once: ClassVar[int] = 1
    mirrored: ClassVar[bool] = True
    what: ClassVar[str] = "the network of CloudNet"

    def __post_init__(self) -> None:
        given: Any = self
        classes = (given.classes,) if isinstance(given.classes, str) else given.classes
        listed = tuple(classes) if isinstance(classes, Iterable) else ()
        if not listed or any(one not in _CLASSES for one in listed):
            raise ParameterError(f"the classes of CloudNet are {given.classes!r}; give one or both of cloud, shadow")
        object.__setattr__(self, "classes", tuple(name for name in _CLASSES if name in listed))
        object.__setattr__(self, "resolution", positive_resolution("CloudNet", given.resolution))
        object.__setattr__(self, "bands", bands := band_list("the bands of CloudNet", given.bands))
        if bands is not None and len(bands) not in (4, 6):
            raise ParameterError(
                f"the bands of CloudNet are {given.bands!r}; give four or six, as {', '.join(NETWORK_BANDS)}"
            )
        level = given.level.lower() if isinstance(given.level, str) else given.level
        check_choice("level of CloudNet", level, ("l1c", "l2a", None))
        object.__setattr__(self, "level", level)
        object.__setattr__(self, "cleanup", steps_of(given.cleanup))
        object.__setattr__(self, "cache", cache_folder("CloudNet", given.cache))

    @property
    def dropped(self) -> tuple[int, ...]:
        """The classes to drop, as numbers."""
        return tuple(_CLASSES[name] for name in self.classes)

    @property
    def key(self) -> tuple[object, ...]:
        """What decides its marks; its bands and level have to be known."""
        return "CloudNet", network_version(len(self.bands or ()), self.level or ""), self.bands

    def memory(self, tile: int, itemsize: int) -> int:
        """Return the bytes that a tile of so many values takes: as read, with what is mirrored; and the network."""
        return 2 * tile * itemsize + _SESSION_BYTES

    def seconds(self, pixels: int) -> float:
        """Return how long a thread computes for so many pixels of a scene, as measured on one machine."""
        return _TILE_SECONDS * pixels / _STEP**2

    def marks(self, pixels: NDArray[Any], inner: tuple[slice, slice]) -> NDArray[np.uint8]:
        """Return classes of the tile at `inner` of ``pixels (band, y, x)``: 0 neither, 1 cloud, 2 shadow.

        `pixels` are reflectances with `surroundings` on each side of the tile, which begins at a multiple of `step` in
        its scene; NaN where nothing was observed, which is `UNSEEN` if it holds for all bands.
        """
        net = network(len(pixels), self.level or "")
        y, x = inner
        height, width = y.stop - y.start, x.stop - x.start
        marks = np.empty((height, width), np.uint8)
        rows, columns = (range(-(-(n + _OVERLAP) // _STEP)) for n in (height, width))
        blended = np.zeros((3, _SIZE, len(columns) * _STEP + _SIZE - _STEP))
        for row in rows:
            top = y.start + row * _STEP - _OVERLAP
            for column in columns:
                left = x.start + column * _STEP - _OVERLAP
                patch = pixels[:, top : top + _SIZE, left : left + _SIZE]
                missing = np.isnan(patch)
                if not missing.all():  # else it has no weight where something was observed
                    found = net.probabilities(np.where(missing, np.float32(0), patch))
                    blended[:, :, column * _STEP : column * _STEP + _SIZE] += found * _WEIGHTS
            # nothing is added to the first rows any more; the sums are rounded as the package does
            first = row * _STEP - _OVERLAP
            done = slice(max(first, 0), min(first + _STEP, height))
            sums = blended[:, done.start - first : done.stop - first, _OVERLAP : _OVERLAP + width]
            marks[done] = sums.astype(np.float32).argmax(axis=0)
            blended[:, : _SIZE - _STEP] = blended[:, _STEP:]
            blended[:, _SIZE - _STEP :] = 0
        marks[np.isnan(pixels[(slice(None), *inner)]).all(axis=0)] = UNSEEN
        return marks

    __str__ = shown


def _tapered() -> NDArray[np.float64]:
    """Return the weights of the pixels of a tile, ``(256, 256)``: a Tukey window that tapers over the overlap."""
    n, alpha = np.arange(_SIZE), 0.4
    weights = np.ones(_SIZE)
    first, last = n[: _OVERLAP + 1], n[-_OVERLAP - 1 :]
    weights[first] = 0.5 * (1 + np.cos(np.pi * (-1 + 2.0 * first / alpha / (_SIZE - 1))))
    weights[last] = 0.5 * (1 + np.cos(np.pi * (-2.0 / alpha + 1 + 2.0 * last / alpha / (_SIZE - 1))))
    return weights[:, None] * weights


_WEIGHTS = _tapered()


@dataclass(frozen=True, eq=False)
class Network:
    """A loaded network: a session of ONNX Runtime, and how its input is scaled."""

    session: Any
    """It computes in the calling thread, and may be called by several."""

    mean: NDArray[np.float64]
    """Of the bands, ``(band, 1, 1)``."""

    deviation: NDArray[np.float64]
    """Of the bands, ``(band, 1, 1)``."""

    def probabilities(self, patch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities of classes ``(3, y, x)`` of reflectances ``(band, 256, 256)``, which are overwritten."""
        patch -= self.mean
        patch /= self.deviation
        (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: patch[None]})
        shifted = np.exp(logits[0] - logits[0].max(axis=0))
        shifted /= shifted.sum(axis=0)
        found: NDArray[np.float32] = shifted
        return found


def _model_file(bands: int, level: str) -> Path:
    """Return the file of the model for four or six bands and a level; what describes it lies beside it."""
    # without importing the package, which imports scipy, too
    spec = find_spec("ukis_csmask")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            "masks by CloudNet need the package ukis-csmask: pip install 's2composite[clouds]'"
        )
    return Path(spec.submodule_search_locations[0]) / f"model_{bands}b_{level}.onnx"


@lru_cache
def network_version(bands: int, level: str) -> str:
    """Return name and hash of the model for four or six bands and a level.

    Raises
    ------
    MissingDependencyError
        `ukis-csmask` or ONNX Runtime is not installed.
    """
    needed("onnxruntime", "clouds", "masks by CloudNet")
    model = _model_file(bands, level)
    content = model.with_suffix(".json").read_bytes() + model.read_bytes()
    return f"{model.stem} {hashlib.sha256(content).hexdigest()[:16]}"


_NETWORKS: dict[tuple[int, str], Network] = {}
_LOADING = Lock()


def network(bands: int, level: str) -> Network:
    """Return the network for four or six bands and a level, loaded once in each process."""
    with _LOADING:
        if (bands, level) not in _NETWORKS:
            runtime = needed("onnxruntime", "clouds", "masks by CloudNet")
            model = _model_file(bands, level)
            options = runtime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1  # scenes are evaluated side by side
            session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            described = json.loads(model.with_suffix(".json").read_text())["data"]["dataset_statistics"]
            mean, deviation = (np.array(numbers)[:, None, None] for numbers in described["img"])
            _NETWORKS[bands, level] = Network(session, mean, deviation)
        return _NETWORKS[bands, level]
