"""Scenes out of nothing: a season of synthetic Sentinel-2 pictures of T31TCJ, and the demonstration made with them.

`make_scenes` needs no network and no account; `make_items` describes what it made as a catalogue would. Land, clouds
and noise are functions of the arguments and the position alone (`noise`), so the same call gives the same bytes.
"""

from __future__ import annotations

from s2composite.demo.files import make_scenes
from s2composite.demo.items import make_items
from s2composite.demo.run import run_demo

__all__ = ["make_items", "make_scenes", "run_demo"]
