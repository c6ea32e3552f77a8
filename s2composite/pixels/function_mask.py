"""Masks by a function of pixels: any cloud detection that says true or false, or a class, for each pixel of a scene."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ParameterError, imported
from s2composite.pixels.masks import Rule
from s2composite.pixels.morphology import Step, steps_of

__all__ = ["UNSEEN", "Mask", "MaskFunction", "band_list", "cache_folder", "positive_resolution", "shown"]

MaskFunction = Callable[[NDArray[Any]], NDArray[Any]]
"""What makes a mask: takes ``(band, y, x)`` of one scene, returns ``(y, x)``, bool (True: may be used) or classes."""

UNSEEN = 0x80
"""Bit of a pixel's mark that says that nothing was observed there."""

_MOST_AROUND = 4096
"""Pixels around a tile that a function may ask for."""


@dataclass(frozen=True)
class Mask(Rule):
    """Drop observations by a function of the pixels of their scene: a cloud detection of your own or of a library.

    The function is called with tiles of one scene at a time, of 1024 x 1024 pixels of the scene's own grid and those of
    `surroundings`, less at the edges of the scene. So what it finds does not depend on windows, chunks or workers.

    Parameters
    ----------
    function
        Takes an array ``(band, y, x)``, in numbers as the cube has them (nodata where nothing was observed), and
        returns an array ``(y, x)`` of bool, True where an observation may be used, or of integers, which are classes.
        Or its import path, ``"package.module:name"``, as in jobs. Where there are workers it has to be importable
        there, or one that can be pickled.
    bands
        Names (or numbers) of the bands that it takes, in this order. They are read beside the data; the cube does not
        need to have them. Default: the cube's bands.
    resolution
        Size of the pixels that it takes, in units of the scenes' CRS; from overviews where files have that one, else
        the nearest pixels. Default: that of the finest of the bands.
    surroundings
        Pixels around a tile that it needs to see: of a network, as many as its receptive field reaches.
    classes
        The classes to drop, where it returns classes.
    cleanup
        Steps on the mask of what is dropped, as for `SCL`: ``[("opening", 2), ("dilation", 5)]``; in pixels of
        `resolution`.
    cache
        A directory, or the URL of one, that keeps what the function returned, one file for each scene and tile, so that
        other runs, jobs and processes need not call it. Files are named after the scene and a hash of the function, its
        module's source, these parameters and the scene's files. Of what the function calls elsewhere, or loads, nothing
        is known: give another directory where that changes.

    Raises
    ------
    ParameterError
        A parameter makes no sense, or there is nothing to import at the path.

    Examples
    --------
    >>> import numpy as np, s2composite as s2c
    >>> from s2composite.demo import make_scenes
    >>> def not_white(pixels):
    ...     return pixels.min(axis=0) < 190
    >>> cube = s2c.open_cube(make_scenes("doctest_scenes", scenes=3, size=256))
    >>> comp = s2c.composite(cube, valid=[s2c.Nodata(), s2c.Mask(not_white, resolution=20)]).compute()
    >>> int(comp["count"].max()) <= 3
    True
    """

    function: MaskFunction
    """Takes ``(band, y, x)``, returns ``(y, x)``."""

    bands: tuple[str | int, ...] | None = None
    """Bands that it takes; None: those of the cube."""

    resolution: float | None = None
    """Size of the pixels that it takes; None: that of the finest band."""

    surroundings: int = 0
    """Pixels around a tile that it sees."""

    classes: tuple[int, ...] | None = None
    """Classes to drop; None: it returns bool."""

    cleanup: tuple[Step, ...] = ()
    """Steps on the mask of what is dropped."""

    cache: str | None = None
    """Directory that keeps what was computed."""

    side: ClassVar[int] = 1024  # of tiles: with 64 pixels around them they are 27 % larger
    step: ClassVar[int | None] = None  # tiles are those of the scene
    at_once: ClassVar[int] = 8  # scenes read at once for a tile: one is fetched while another is decoded
    mirrored: ClassVar[bool] = False
    dropped: ClassVar[tuple[int, ...]] = (1,)

    def __post_init__(self) -> None:
        given: Any = self
        function = given.function
        if isinstance(function, str):
            function = imported(function, f"the function {function!r} of Mask cannot be loaded")
        if not callable(function):
            raise ParameterError(
                f"the function of Mask is {given.function!r}; give one that takes an array (band, y, x), or its path, "
                "'package.module:name'"
            )
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "bands", band_list("the bands of Mask", given.bands))
        object.__setattr__(self, "resolution", positive_resolution("Mask", given.resolution))
        around = given.surroundings
        if not isinstance(around, (int, np.integer)) or isinstance(around, bool) or not 0 <= around <= _MOST_AROUND:
            raise ParameterError(f"the surroundings of Mask are {around!r}; give 0 to {_MOST_AROUND} pixels")
        classes = (given.classes,) if isinstance(given.classes, (int, np.integer)) else given.classes
        if classes is not None:
            listed = tuple(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else ()
            whole = all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in listed)
            if not listed or not whole:
                raise ParameterError(f"the classes of Mask are {given.classes!r}; give the numbers of those to drop")
            object.__setattr__(self, "classes", tuple(map(int, listed)))
        if isinstance(given.cleanup, Mapping):
            raise ParameterError("the classes of Mask are cleaned together; give cleanup= as one list of steps")
        object.__setattr__(self, "cleanup", steps_of(given.cleanup))
        object.__setattr__(self, "cache", cache_folder("Mask", given.cache))

    @property
    def name(self) -> str:
        """The function's name, with that of its module."""
        named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{named.__module__}.{named.__qualname__}"

    @property
    def what(self) -> str:
        """What computes it, for messages."""
        return f"the function {self.name} of Mask"

    @property
    def key(self) -> tuple[object, ...]:
        """What decides its marks."""
        function: Any = getattr(self.function, "func", self.function)
        try:
            source = Path(inspect.getsourcefile(inspect.unwrap(function)) or "").read_bytes()
        except (TypeError, OSError, ValueError):  # a builtin, an object, or typed in
            source = b""
        return self.function, str(self), source

    def memory(self, tile: int, itemsize: int) -> int:
        """Return the bytes that tiles of so many values take; the function's own: a copy in floats, and another."""
        return self.at_once * tile * itemsize + 2 * 4 * tile

    def seconds(self, pixels: int) -> float:
        """Return how long a thread computes for so many pixels of a scene, 0 if that is not known."""
        return 0.0 * pixels

    def marks(self, pixels: NDArray[Any], inner: tuple[slice, slice]) -> NDArray[np.uint8]:
        """Return 1 where the tile at `inner` of ``pixels (band, y, x)`` must not be used, else 0."""
        return (~self.valid(pixels)[inner]).view(np.uint8)

    def valid(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which observations are valid before any cleanup, ``(y, x)`` of ``pixels (band, y, x)`` of one scene.

        Raises
        ------
        ParameterError
            The function returns something else than bool or classes of the same ``(y, x)``.
        """
        found: Any = self.function(pixels)
        marks = np.asarray(found)
        what = f"{self.what} returned"
        if marks.shape != pixels.shape[1:]:
            raise ParameterError(
                f"{what} {type(found).__name__} of shape {marks.shape} for pixels (band, y, x) {pixels.shape}; return "
                f"an array (y, x), {pixels.shape[1:]}"
            )
        if marks.dtype == np.bool_ and self.classes is None:
            bad = ~marks
        elif marks.dtype.kind in "ui" and self.classes is not None:
            bad = np.isin(marks, self.classes)
        elif marks.dtype.kind in "ui":
            raise ParameterError(f"{what} classes ({marks.dtype}); say which to drop with classes=")
        elif marks.dtype == np.bool_:
            raise ParameterError(f"{what} bool, which has no classes; leave classes= out")
        else:
            raise ParameterError(
                f"{what} {marks.dtype}; return bool, True where an observation may be used (of a probability: p < 0.4) "
                "or integers as classes"
            )
        return np.asarray(~bad)

    def __str__(self) -> str:
        names = ("bands", "resolution", "surroundings", "classes", "cleanup")
        given = [f"{name}={value!r}" for name in names if (value := getattr(self, name)) not in (None, 0, ())]
        return f"Mask({', '.join([self.name, *given])})"


def band_list(
    what: str, bands: Any, cure: str = "give their names in a list", most: float = np.inf
) -> tuple[str | int, ...] | None:
    """Return the bands that a rule looks at, checked."""
    if bands is None:
        return None
    several = isinstance(bands, Iterable) and not isinstance(bands, str)
    listed = tuple(bands) if several else (bands,)
    named = all(isinstance(band, (str, int)) and not isinstance(band, bool) for band in listed)
    if not 1 <= len(listed) <= most or not named:
        raise ParameterError(f"{what} are {bands!r}; {cure}")
    return listed


def cache_folder(rule: str, cache: Any) -> str | None:
    """Return the directory that keeps what a rule computed, checked."""
    if cache is None:
        return None
    if not isinstance(cache, (str, os.PathLike)) or not os.fspath(cache):
        raise ParameterError(f"the cache of {rule} is {cache!r}; give a directory, or the URL of one")
    return os.fspath(cache)


def shown(rule: Any) -> str:
    """Return a rule's name and those of its options that are not as usual; where results are kept changes none."""
    usual = {name: field.default for name, field in type(rule).__dataclass_fields__.items() if name != "cache"}
    given = [f"{name}={getattr(rule, name)!r}" for name, value in usual.items() if getattr(rule, name) != value]
    return f"{type(rule).__name__}({', '.join(given)})"


def positive_resolution(rule: str, resolution: Any) -> float | None:
    """Return the pixel size that a rule looks at, checked."""
    if resolution is None:
        return None
    number = isinstance(resolution, (int, float, np.number)) and not isinstance(resolution, bool)
    if not number or not 0 < resolution < np.inf:
        raise ParameterError(
            f"the resolution of {rule} is {resolution!r}; give the side of a pixel in units of the CRS"
        )
    return float(resolution)
