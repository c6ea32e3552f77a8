"""Synthetic Sentinel-2 scenes of the granule T31TCJ, and the demonstration made with them.

`make_scenes` needs no network and no account; `make_items` describes what it made as a catalogue would. The same
arguments give the same bytes.
"""

from __future__ import annotations

from s2composite.demo.files import make_items, make_scenes
from s2composite.demo.run import run_demo

__all__ = ["make_items", "make_scenes", "run_demo"]
