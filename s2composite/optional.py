"""Optional packages: imported where they are used, with an error that names the extra where they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from s2composite.errors import MissingDependencyError

__all__ = ["imported", "needed"]


def imported(path: str) -> Any:
    """Return what lies at ``"package.module:name"`` or ``"package.module.name"``; None where `path` is neither.

    Raises
    ------
    ImportError, AttributeError
        There is no such module, or no such name in it.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    return getattr(import_module(module), name) if module and name else None


def needed(module: str, extra: str, purpose: str = "this", limits: str = "") -> Any:
    """Import an optional module, or say which extra brings it.

    Parameters
    ----------
    module
        Its full name, ``"odc.stac"``.
    extra
        The extra of s2composite that installs it.
    purpose
        What needs it, in the plural or "this", for the message.
    limits
        What else has to be known to install it, for the message.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        verb = "needs" if purpose == "this" else "need"
        raise MissingDependencyError(
            f"{purpose} {verb} the package {module.partition('.')[0]}: pip install 's2composite[{extra}]'"
            + (f" ({limits})" if limits else "")
        ) from error
