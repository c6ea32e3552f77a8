"""The command line: ``s2composite demo``, ``run``, ``resume``, ``retry``, ``status``, ``scenes``, ``zonal`` ..."""

from s2composite.cli.main import app, main

__all__ = ["app", "main"]
