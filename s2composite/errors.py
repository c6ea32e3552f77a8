"""The errors of the library: one base class, so that ``except S2CompositeError`` catches all that is not a bug.

Every message names the thing (scene, band, window, key, path) and says what to do. Facts are attributes as well, and
survive the trip from a Dask worker: an exception is pickled as its message plus its ``__dict__``.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AccessError",
    "BandError",
    "ClusterError",
    "GridError",
    "JobError",
    "MissingDependencyError",
    "ParameterError",
    "ReadError",
    "S2CompositeError",
    "SceneError",
    "ServiceError",
    "SourceError",
    "TilesError",
    "WriteError",
]


class S2CompositeError(Exception):
    """Base of every error that the library raises on purpose.

    Parameters
    ----------
    message
        What is wrong, with the name of the thing, and what to do about it.
    **facts
        The same facts as attributes (``error.href``, ``error.window`` ...), for programs.
    """

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


class SourceError(S2CompositeError):
    """The source gives no scenes: nothing matches, or it cannot be listed."""


class SceneError(S2CompositeError):
    """A scene cannot be used: no date in its name, not a TIFF, truncated, unlike the others."""


class GridError(S2CompositeError):
    """Grids, coordinate systems or areas do not go together."""


class BandError(S2CompositeError):
    """A band that is asked for or needed is not there."""


class AccessError(S2CompositeError):
    """A place that this process must not read or write; see `s2composite.scenes.access`."""


class ReadError(S2CompositeError):
    """Pixels could not be read; carries ``scene``, ``href``, ``window``, ``transient`` and the cause in its message."""


class ParameterError(S2CompositeError):
    """An argument has a value that makes no sense; the message lists those that do."""


class WriteError(S2CompositeError):
    """The output could not be written; nothing is left under its final name."""


class TilesError(S2CompositeError):
    """Tiles do not make a whole; carries ``missing``, ``overlapping`` or ``unlike``, tuples of their names."""


class JobError(S2CompositeError):
    """A job file is wrong; carries ``key`` and ``line``."""


class ClusterError(S2CompositeError):
    """A scheduler does not answer, workers do not start, or they lack what they need."""


class ServiceError(S2CompositeError):
    """A service cannot be reached, or what it is sent through cannot."""


class MissingDependencyError(S2CompositeError):
    """An optional package is needed; the message says which extra to install."""
