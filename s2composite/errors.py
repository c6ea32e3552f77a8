"""The errors of the library: one base class, so that ``except S2CompositeError`` catches everything that is not a bug.

Every message names the thing (scene, band, window, key, path) and says what to do. The same details
are attributes, which survive pickling from a Dask worker: an exception is pickled as its message and its ``__dict__``.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

__all__ = [
    "AccessError", "BandError", "ClusterError", "GridError", "JobError", "MissingDependencyError", "ParameterError",
    "ReadError", "S2CompositeError", "SceneError", "ServiceError", "SourceError", "TilesError", "WriteError",
    "check_choice", "imported", "listed", "needed", "plural", "size_text",
]  # fmt: skip


class S2CompositeError(Exception):
    """Base class of every error that the library raises intentionally.

    Parameters
    ----------
    message
        What is wrong, with the name of the thing, and what to do about it.
    **details
        The same as attributes, for programs: ``error.href``, ``error.window`` ...

    Examples
    --------
    >>> import s2composite as s2c
    >>> try:
    ...     s2c.find_scenes([])
    ... except s2c.S2CompositeError as error:
    ...     print(type(error).__name__)
    SourceError
    """

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        self.__dict__.update(details)


class SourceError(S2CompositeError):
    """A source has no scenes: nothing matches, or it cannot be listed."""


class SceneError(S2CompositeError):
    """A scene cannot be used: no date in its name, not a TIFF, a truncated file, or it differs from the others."""


class GridError(S2CompositeError):
    """Grids, coordinate systems or areas do not fit each other."""


class BandError(S2CompositeError):
    """A requested or required band does not exist."""


class AccessError(S2CompositeError):
    """A location may not be read or written by this process; see `s2composite.storage.urls`."""


class ReadError(S2CompositeError):
    """Pixels could not be read; has ``scene``, ``href``, ``window`` and ``transient``, and names the cause."""


class ParameterError(S2CompositeError):
    """An argument has an invalid value; the message lists the valid values."""


class WriteError(S2CompositeError):
    """An output could not be written; nothing is left under its final name."""


class TilesError(S2CompositeError):
    """Tiles do not form a complete mosaic; has ``missing``, ``overlapping`` or ``unlike``, tuples of names."""


class JobError(S2CompositeError):
    """A job file is wrong; has ``key`` and ``line``."""


class ClusterError(S2CompositeError):
    """A scheduler does not answer, workers do not start, or they lack what they need."""


class ServiceError(S2CompositeError):
    """A service, or the topic that pushes to it, cannot be reached."""


class MissingDependencyError(S2CompositeError):
    """An optional package is needed; the message names the extra to install."""


def plural(n: int, word: str) -> str:
    """Return a number with its noun.

    >>> plural(1, "window"), plural(2, "window")
    ('1 window', '2 windows')
    """
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listed(names: Iterable[object], most: int) -> str:
    """Return names for a message: the first ones, and how many more there are.

    >>> listed(["B02", "B03", "B04"], 2)
    'B02, B03 and 1 more'
    """
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def size_text(size: float) -> str:
    """Return a number of bytes in readable units.

    >>> size_text(8_400_000), size_text(78_000_000_000), size_text(2.5e12)
    ('8.4 MB', '78.0 GB', '2.5 TB')
    """
    unit, one = next((pair for pair in (("TB", 1e12), ("GB", 1e9)) if size >= pair[1]), ("MB", 1e6))
    return f"{size / one:.1f} {unit}"


def check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    """Raise a ParameterError unless an argument, of any type, is one of its choices; the message lists these."""
    if not isinstance(value, str | None) or value not in choices:
        raise ParameterError(f"{name} is {value!r}; it is one of {', '.join(map(repr, choices))}")


def imported(path: str, problem: str) -> Any:
    """Return the object at ``"package.module:name"`` or ``"package.module.name"``; None if `path` is neither.

    If there is none, a ParameterError says `problem` and why.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        return getattr(import_module(module), name) if module and name else None
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: of a relative path
        raise ParameterError(f"{problem}: {error}") from error


def needed(module: str, extra: str, purpose: str = "this", limits: str = "") -> Any:
    """Import an optional module, or raise a MissingDependencyError that names the extra of s2composite to install.

    `purpose` names what needs it, in the plural or "this"; `limits` are further conditions for installing it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        verb = "needs" if purpose == "this" else "need"
        raise MissingDependencyError(
            f"{purpose} {verb} the package {module.partition('.')[0]}: pip install 's2composite[{extra}]'"
            + (f" ({limits})" if limits else "")
        ) from error
