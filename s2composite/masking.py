"""Masking: mask bands of a stack's scenes, read beside its data and brought to its grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import GridError
from s2composite.pixels.flags import MaskRule, upsample
from s2composite.pixels.masks import Rule
from s2composite.reading.grid import Window
from s2composite.reading.observe import FAILED
from s2composite.reading.stack import Stack, open_stack

__all__ = ["Mask", "masks_of"]


@dataclass(frozen=True, eq=False)
class Mask:
    """A rule on a mask band, and where that band is read."""

    rule: MaskRule
    """The rule."""

    stack: Stack
    """The band alone, on its own grid, the same scenes as the data."""

    factor: int
    """Pixels of the data along one of the mask."""

    origin: tuple[int, int]
    """``(y, x)`` of the data's grid in pixels of the data from the corner of the mask's."""

    def __dask_tokenize__(self) -> tuple[str, str]:
        return self.stack.token, repr(self.rule)

    def valid(self, region: Window) -> NDArray[np.bool_]:
        """Return which observations of a region may be used: ``(t, y, x)``, at the data's resolution.

        The mask is cleaned at its own resolution, with as many of its pixels around the region as decide about it; a
        scene whose mask cannot be read is not valid.
        """
        halo, factor = self.rule.halo, self.factor
        spans = [slice(s.start + o, s.stop + o) for s, o in zip(region, self.origin, strict=True)]
        y, x = (slice(s.start // factor, -(-s.stop // factor)) for s in spans)
        seen = self.stack.read((y, x), pad=halo)
        valid = self.rule.valid(np.ascontiguousarray(seen.pixels[:, 0]))
        valid = valid[:, halo : valid.shape[1] - halo, halo : valid.shape[2] - halo]
        valid[seen.status == FAILED] = False
        shape = (spans[0].stop - spans[0].start, spans[1].stop - spans[1].start)
        top, left = spans[0].start - factor * y.start, spans[1].start - factor * x.start
        return upsample(valid, factor, shape, top=top, left=left)


def masks_of(stack: Stack, rules: Sequence[Rule]) -> tuple[Mask, ...]:
    """Open the mask bands that rules need, for the scenes of a stack.

    Raises
    ------
    BandError
        A scene has no such band.
    GridError
        The band is not on the data's grid, nor on one a whole number of times coarser.
    """
    return tuple(_mask(stack, rule) for rule in rules if isinstance(rule, MaskRule))


def _mask(stack: Stack, rule: MaskRule) -> Mask:
    band = open_stack(stack.scenes, [rule.band], options=stack.options)
    to_mask = ~band.geobox.transform @ stack.geobox.transform
    factor = round(1 / to_mask.a)
    x, y = to_mask.c * factor, to_mask.f * factor
    same = band.geobox.crs == stack.geobox.crs and to_mask.b == to_mask.d == 0
    whole = max(abs(to_mask.a * factor - 1), abs(to_mask.e * factor - 1)) * max(stack.geobox.shape) < 1e-3
    if factor < 1 or not (same and whole) or max(abs(x - round(x)), abs(y - round(y))) > 1e-3:
        raise GridError(
            f"the mask band {rule.band} ({band.geobox.crs}, pixels of {band.geobox.resolution.x:g}) does not fit the "
            f"data ({stack.geobox.crs}, pixels of {stack.geobox.resolution.x:g}): it has to be on the same grid or a "
            "whole number of times coarser; open the cube on the scenes' own grid"
        )
    return Mask(rule, band, factor, (round(y), round(x)))
